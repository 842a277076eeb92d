"""Encoders: from a name, a module or a fitted embedder to images-in, vectors-out."""

import copy
import difflib
import logging
import math
import pickle
import sys
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise
from numbers import Integral
from pathlib import Path

import torch
import torchvision
from safetensors import safe_open
from torch import nn

from ._optional import import_optional
from .augment import sobel
from .modules import split_batchnorm_

_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")
_INTERPOLATION = {"bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest"}
# what training programs put around a state dict
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "weights")
# the last part of a residual branch, in blocks of torchvision and of our own
_BRANCH_ENDS = ("body", "bn3", "bn2", "conv3", "conv2")


class Encoder(nn.Module):
    """Standardize the input, then encode it.

    Parameters
    ----------
    body : nn.Module
        Maps ``(B, *sample_shape)`` to ``(B, D)``, or to ``(B, D, H, W)`` maps, which are
        then averaged over H and W.
    sample_shape : tuple of int
        ``(D,)`` for vectors, ``(C, H, W)`` for images.
    mean, std : Tensor or None
        Of shape ``(C, 1, 1)`` or ``(D,)``; None: 0 and 1.

    Attributes
    ----------
    n_features_out : int
        Length D of the encoding.
    """

    def __init__(self, body, sample_shape, mean=None, std=None):
        super().__init__()
        self.body = body
        self.sample_shape = tuple(sample_shape)
        self.register_buffer("mean", torch.zeros(()) if mean is None else mean)
        self.register_buffer("std", torch.ones(()) if std is None else std)
        self.n_features_out = _n_features_out(self)

    def forward(self, x):
        h = self.body((x - self.mean) / self.std)
        return h.mean((2, 3)) if h.ndim == 4 else h.flatten(1)  # (B, D)


def build_backbone(spec, sample_shape, mean=None, std=None):
    """Return a fresh encoder for samples of one shape.

    Parameters
    ----------
    spec : str, nn.Module or fitted embedder
        - ``"auto"``: a two-layer perceptron for vectors, ``"resnet8"`` for images;
        - ``"resnet8"``, ``"resnet9"``, ``"wrn_28_2"``, ``"wrn_28_8"``: networks for small
          images (larger ones are reduced by their first layers);
        - ``"resnet18"`` and every other classifier of torchvision, untrained; its ResNets
          get the CIFAR stem (3x3, stride 1, no pooling) for sides up to 64;
        - ``"timm/NAME"``: an untrained model of timm (extra ``backbones``);
        - a module: copied, never trained in place;
        - a fitted embedding estimator: its trained encoder is copied.
    sample_shape : tuple of int
        ``(D,)`` or ``(C, H, W)``.
    mean, std : Tensor or None
        Standardization of the input; an embedder keeps its own.

    Returns
    -------
    encoder : Encoder

    Raises
    ------
    ValueError
        For an unknown name, an embedder fitted on samples of another shape, or a network
        that cannot take samples of this shape (a vision transformer has one size).
    """
    trained = getattr(spec, "encoder_", None)
    if trained is not None:
        if trained.sample_shape != tuple(sample_shape):
            raise ValueError(
                f"backbone={type(spec).__name__} was fitted on samples of shape "
                f"{trained.sample_shape}, but X has samples of shape "
                f"{tuple(sample_shape)}: fit the embedder on data of that shape."
            )
        # what MoCo splits for its own training is whole again
        trained = split_batchnorm_(copy.deepcopy(trained), 1)
        return trained.requires_grad_(True)
    if isinstance(spec, nn.Module):
        body = copy.deepcopy(spec).requires_grad_(True)
    elif isinstance(spec, str):
        body = _named(spec, tuple(sample_shape))
    else:
        raise ValueError(
            f"backbone={spec!r} is neither a name, an nn.Module nor a fitted embedder: "
            "call fit on the embedder first; in a search or a pipeline that is cloned, "
            "give sklearn.frozen.FrozenEstimator(embedder), which stays fitted."
        )
    try:
        return Encoder(body, sample_shape, mean, std)
    except Exception as error:  # networks of others fail in many ways
        name = repr(spec) if isinstance(spec, str) else type(spec).__name__
        reason = " ".join(str(error).split())
        raise ValueError(
            f"backbone={name} cannot turn samples of shape {tuple(sample_shape)} into "
            f"vectors ({reason}). Resize the images to what it takes, or use "
            'backbone="auto".'
        ) from error


def build_sobel_backbone(spec, sample_shape, grey="luma"):
    """Return a fresh encoder that sees the edges of the grey images, two channels.

    Parameters
    ----------
    spec : str, nn.Module or fitted embedder
        See :func:`build_backbone`; an embedder must have been fitted on two channels.
    sample_shape : tuple of int
        ``(C, H, W)``.
    grey : {"luma", "mean"}, default="luma"
        See :func:`sklabel.augment.sobel`.

    Returns
    -------
    encoder : Encoder

    Raises
    ------
    ValueError
        For vectors, and as :func:`build_backbone`.
    """
    if len(sample_shape) == 1:
        raise ValueError(
            "sobel=True needs images, but X holds vectors of length "
            f"{sample_shape[0]}: give image_shape, or sobel=False."
        )
    edges = build_backbone(spec, (2, *sample_shape[1:]))
    return Encoder(nn.Sequential(_Sobel(grey), edges), sample_shape)


class Frame(nn.Module):
    """Bring images to the size that a pretrained network sees, as its authors did.

    Parameters
    ----------
    size : (int, int)
        Height and width of the result.
    resize : (int, int)
        Height and width that the image, or one of its sides, is resized to before the
        middle is cut out.
    mode : {"shortest", "longest", "squash"}, default="shortest"
        "shortest": the aspect ratio stays and what stands out is cut off; "longest": it
        stays and the borders are filled; "squash": the image is bent to ``resize``.
    interpolation : {"bilinear", "bicubic", "nearest"}, default="bilinear"
        Anti-aliased where the image gets smaller.
    fill : tuple of float, default=(0, 0, 0)
        Color of borders, in [0, 1].

    Notes
    -----
    ``(B, C, H, W)`` in [0, 1] become ``(B, 3, *size)``; one channel is repeated.
    """

    def __init__(
        self, size, resize, mode="shortest", interpolation="bilinear", fill=(0, 0, 0)
    ):
        super().__init__()
        self.size, self.resize = tuple(size), tuple(resize)
        self.mode, self.interpolation, self.fill = mode, interpolation, tuple(fill)

    def forward(self, x):
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        target = self._resized(*x.shape[2:])
        if tuple(x.shape[2:]) != target:
            smooth = {"align_corners": False, "antialias": True}
            smooth = {} if self.interpolation == "nearest" else smooth
            # float32 also where autocast would take less; bicubic overshoots
            x = nn.functional.interpolate(
                x.float(), target, mode=self.interpolation, **smooth
            ).clamp(0, 1)
        return self._centered(x)

    def _resized(self, height, width):
        """Return the size after the resizing, in the rounding of each library."""
        h, w = self.resize
        if self.mode == "squash":
            return h, w
        if self.mode == "shortest" and h == w:
            short, long = sorted((height, width))
            long = int(h * long / short)
            return (h, long) if height <= width else (long, h)
        ratios = height / h, width / w
        ratio = max(ratios) if self.mode == "longest" else min(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _centered(self, x):
        """Cut the middle out, or add borders."""
        missing = [
            max(0, side - n) for side, n in zip(self.size, x.shape[2:], strict=True)
        ]
        if any(missing):
            (top, bottom), (left, right) = ((n // 2, (n + 1) // 2) for n in missing)
            fill = x.new_tensor(self.fill)[:, None, None]
            x = nn.functional.pad(x - fill, (left, right, top, bottom)) + fill
        top, left = (
            round((n - side) / 2)
            for n, side in zip(x.shape[2:], self.size, strict=True)
        )
        return x[:, :, top : top + self.size[0], left : left + self.size[1]]

    def extra_repr(self):
        return (
            f"size={self.size}, resize={self.resize}, mode={self.mode!r}, "
            f"interpolation={self.interpolation!r}, fill={self.fill}"
        )


def pretrained_backbone(
    name, weights="DEFAULT", *, input_size=None, pooling="auto", load=True
):
    """Return a published image encoder, and how its images are brought to size.

    Parameters
    ----------
    name : str
        ``"resnet50"`` and every other classifier of torchvision, ``"timm/NAME"`` (extra
        ``backbones``) or ``"open_clip/NAME"`` (extra ``clip``).
    weights : str, Path or None, default="DEFAULT"
        "DEFAULT": those that the library recommends, which it downloads and keeps; the
        name of others that it offers; a file, see :func:`load_weights_`; None: random
        ones, from torch's generator.
    input_size : int, tuple or None, default=None
        Side, or height and width, of what the network sees; None: as published.
    pooling : {"auto", "avg", "max", "token"}, default="auto"
        What a vector is made of. "auto": as published, for open_clip the vectors that
        it compares with texts. "avg", "max": mean or largest value over all places.
        "token": the class token of a transformer. "max" is for timm only.
    load : bool, default=True
        False: build the network for these weights, but leave it random.

    Returns
    -------
    encoder : Encoder
        Takes ``(B, 3, height, width)`` in [0, 1]; standardizes as published.
    frame : Frame
        Brings images of any size to that one.

    Raises
    ------
    ValueError
        For an unknown name, naming close ones; a pooling or a size that the network
        cannot have; weights that do not exist or do not fit.
    ImportError
        If an optional package is not installed.
    OSError
        If the weights cannot be downloaded.

    Examples
    --------
    >>> import torch
    >>> from sklabel.backbones import pretrained_backbone
    >>> encoder, frame = pretrained_backbone("resnet18", weights=None, input_size=64)
    >>> encoder.eval()(frame(torch.rand(2, 1, 30, 40))).shape
    torch.Size([2, 512])
    """
    source, plain = _checked_name(name)
    side = input_size
    if side is not None:
        side = (side, side) if isinstance(side, Integral) else tuple(map(int, side))
    build = {"torchvision": _from_torchvision, "timm": _from_timm}
    try:
        net, config = build.get(source, _from_open_clip)(
            plain, weights, side, pooling, load
        )
        mean, std = (
            torch.tensor(config.pop(key)).reshape(3, 1, 1) for key in ("mean", "std")
        )
        frame = Frame(**config)
        return Encoder(net.eval(), (3, *frame.size), mean, std), frame
    except _NoPooling as error:
        raise ValueError(
            f'pooling={pooling!r} is not for backbone={name!r}{error}: use "auto".'
        ) from None
    except (AssertionError, RuntimeError, TypeError) as error:
        if side is None:
            raise
        raise ValueError(
            f"backbone={name!r} cannot see images of input_size={side} "
            f"({_reason(error)}): leave input_size=None, or take another backbone."
        ) from error


class _NoPooling(Exception):
    """A network has no such pooling; says what it has instead."""


def _published(name, weights, known, default):
    """Return which published weights are meant: None where a file or none is."""
    if weights is None:
        return None
    if weights == "DEFAULT":
        if default is None:
            raise ValueError(
                f'weights="DEFAULT", but {name!r} has no published weights: give the '
                "path of a file, or None for random ones."
            )
        return default
    if weights in known:
        return weights
    path = Path(weights)
    file = path.suffix in _SUFFIXES or path.exists() or len(path.parts) > 1
    if file or not isinstance(weights, str):
        return None
    raise ValueError(
        f"weights={weights!r} is neither a file nor the name of published weights of "
        f"{name!r}, which are {_some(known, 20) or 'none'}: take one of them, "
        '"DEFAULT" or the path of a file.'
    )


@contextmanager
def _downloading(name, weights):
    """Tell in one line why published weights cannot be had, and what to do."""
    try:
        yield
    except Exception as error:  # each library, and each way to fail, has its own
        cause = error
        while cause.__cause__ is not None or cause.__context__ is not None:
            cause = cause.__cause__ or cause.__context__
        raise OSError(
            f"The weights {weights!r} of {name!r} could not be downloaded or read "
            f"({type(cause).__name__}: {_reason(cause)}). Without a network, get the "
            'file elsewhere and give its path: weights="path/to/file.safetensors".'
        ) from error


def _from_torchvision(name, weights, side, pooling, load):
    enum = torchvision.models.get_model_weights(name)
    tag = _published(name, weights, [w.name for w in enum], enum["DEFAULT"].name)
    chosen = None if tag is None else enum[tag]
    shown = chosen or enum["DEFAULT"]
    if chosen is not None and load:
        with _downloading(name, tag):
            net = torchvision.models.get_model(name, weights=chosen)
    else:
        # what building with weights would set
        options = {}
        if name in ("googlenet", "inception_v3"):
            options = {"transform_input": True, "init_weights": False}
        elif name.startswith("vit_"):
            options = {"image_size": shown.meta["min_size"][0]}
        net = torchvision.models.get_model(name, weights=None, **options)
    whole = set(net.state_dict())
    _drop_head_(net)
    if chosen is None and weights is not None and load:
        load_weights_(net, weights, heads=sorted(whole - set(net.state_dict())))
    preset = shown.transforms()
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    size = side or (crop, crop)
    return _pooled_torchvision(net, pooling), {
        "size": size,
        "resize": [round(n * resize / crop) for n in size],
        "mode": "shortest",
        "interpolation": preset.interpolation.value,
        "mean": preset.mean,
        "std": preset.std,
        "fill": (0, 0, 0),
    }


def _pooled_torchvision(net, pooling):
    tokens = isinstance(net, torchvision.models.VisionTransformer)
    if pooling == "max" or (pooling == "token" and not tokens):
        raise _NoPooling(', which has "avg"' if not tokens else ' ("avg" or "token")')
    if pooling == "avg" and tokens:
        return _MeanToken(net)
    hidden = getattr(net, "classifier", None)
    if pooling == "avg" and any(
        isinstance(part, nn.Linear)
        for part in (hidden.modules() if isinstance(hidden, nn.Sequential) else ())
    ):
        # VGG and others have dense layers after the maps
        net.classifier = nn.Identity()
        if hasattr(net, "avgpool"):
            net.avgpool = nn.AdaptiveAvgPool2d(1)
    return net


class _MeanToken(nn.Module):
    """The mean of all tokens of torchvision's transformer but the class token."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        tokens = []
        hook = self.net.encoder.register_forward_hook(
            lambda part, inputs, output: tokens.append(output)
        )
        try:
            self.net(x)
        finally:
            hook.remove()
        return tokens[0][:, 1:].mean(1)


def _from_timm(name, weights, side, pooling, load):
    timm = import_optional("timm", extra="backbones")
    arch, _, tag = name.partition(".")
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{arch}.*")]
    config = timm.get_pretrained_cfg(name)
    default = (tag or getattr(config, "tag", "")) if known else None
    chosen = _published(f"timm/{name}", weights, known, default)
    if chosen is not None:
        name = f"{arch}.{chosen}" if chosen else arch
        config = timm.get_pretrained_cfg(name)
    options = {"num_classes": 0}
    if side is not None and getattr(config, "fixed_input_size", False):
        options["img_size"] = side
    if chosen is not None and load:
        with _downloading(f"timm/{name}", chosen):
            net = timm.create_model(name, pretrained=True, **options)
    else:
        net = timm.create_model(name, **options)
    if chosen is None and weights is not None and load:
        heads = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
        convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", 0)
        load_weights_(
            net,
            weights,
            heads=(heads,) if isinstance(heads, str) else heads,
            convert=convert or None,
        )
    if pooling != "auto":
        _pool_timm_(net, pooling)
    data = timm.data.resolve_data_config(model=net)
    size = side or data["input_size"][1:]
    mode = {"squash": "squash", "border": "longest"}.get(data["crop_mode"], "shortest")
    return net, {
        "size": size,
        "resize": [math.floor(n / data["crop_pct"]) for n in size],
        "mode": mode,
        # torch has no lanczos; "random" is for training
        "interpolation": _INTERPOLATION.get(data["interpolation"], "bicubic"),
        "mean": data["mean"],
        "std": data["std"],
        "fill": data["mean"] if mode == "longest" else (0, 0, 0),
    }


def _pool_timm_(net, pooling):
    if pooling == "token" and not getattr(net, "num_prefix_tokens", 0):
        raise _NoPooling(", which has no class token")
    try:
        net.reset_classifier(0, pooling)
    except Exception as error:  # each network of timm has its own reset_classifier
        raise _NoPooling(f" ({_reason(error)})") from error


def _from_open_clip(name, weights, side, pooling, load):
    open_clip = import_optional("open_clip", extra="clip")
    known = open_clip.list_pretrained_tags_by_model(name)
    # it has no default: the first is what the paper of that network is about
    tag = _published(f"open_clip/{name}", weights, known, known[0] if known else None)
    options = {"pretrained_text": False}
    if side is not None:
        options["force_image_size"] = side
    about = {}
    if tag is not None:
        about = open_clip.get_pretrained_cfg(name, tag)
        options["force_quick_gelu"] = bool(about.get("quick_gelu", False))
    with _quiet_root_logger():
        if tag is not None and load:
            with _downloading(f"open_clip/{name}", tag):
                model = open_clip.create_model(name, pretrained=tag, **options)
        else:
            model = open_clip.create_model(
                name, force_preprocess_cfg=_preprocessing(about), **options
            )
    tower = model.visual
    if tag is None and weights is not None and load:
        load_weights_(
            tower,
            weights,
            convert=lambda state, _: open_clip.convert.convert_state_dict(model, state),
        )
    data = tower.preprocess_cfg
    size = data["size"]
    size = side or ((size, size) if isinstance(size, int) else tuple(size))
    net = tower if pooling == "auto" else _pooled_open_clip(tower, pooling)
    return net, {
        "size": size,
        "resize": size,
        "mode": data.get("resize_mode") or "shortest",
        "interpolation": _INTERPOLATION.get(data.get("interpolation"), "bicubic"),
        "mean": data["mean"],
        "std": data["std"],
        "fill": [data.get("fill_color", 0) / 255] * 3,
    }


def _preprocessing(about):
    """Return what the description of published weights says of their images."""
    names = ("mean", "std", "interpolation", "resize_mode", "fill_color", "size")
    return {name: about[name] for name in names if name in about}


def _pooled_open_clip(tower, pooling):
    if hasattr(tower, "trunk"):  # a network of timm
        _pool_timm_(tower.trunk, pooling)
        return tower.trunk
    if hasattr(tower, "pool_type") and pooling != "max":
        tower.proj = tower.attn_pool = None
        tower.pool_type = {"avg": "avg", "token": "tok"}[pooling]
        return tower
    if hasattr(tower, "attnpool") and pooling == "avg":
        tower.attnpool = nn.Identity()  # the encoder averages maps
        return tower
    raise _NoPooling("")


@contextmanager
def _quiet_root_logger():
    """Keep open_clip from telling the root logger of each step."""

    def hush(record):
        return record.levelno > logging.WARNING

    root, nowhere = logging.getLogger(), logging.NullHandler()
    root.addHandler(nowhere)
    root.addFilter(hush)
    try:
        yield
    finally:
        root.removeFilter(hush)
        root.removeHandler(nowhere)


def build_autoencoder(sample_shape, n_components, sizes):
    """Return a fresh encoder into short codes, and the decoder that mirrors it.

    Parameters
    ----------
    sample_shape : tuple of int
        ``(D,)`` or ``(C, H, W)``.
    n_components : int
        Length of a code.
    sizes : sequence of int
        Channels of convolutions of stride 2 (5 x 5, the last 3 x 3), or widths of dense
        layers. DCEC: 32, 64, 128; DEC: 500, 500, 2000.

    Returns
    -------
    encoder : nn.Sequential
        Maps ``(B, *sample_shape)`` to ``(B, n_components)``.
    decoder : nn.Sequential
        Maps codes back to ``(B, *sample_shape)``; the last layer is linear.

    Raises
    ------
    ValueError
        If there are no sizes, or one is not a positive integer.
    """
    sizes = list(sizes)
    if not sizes or any(int(size) != size or size < 1 for size in sizes):
        raise ValueError(f"sizes={sizes} must be positive integers, one at least.")
    widths = [sample_shape[0], *map(int, sizes)]
    encode, decode = [], []
    side = tuple(sample_shape[1:])
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        if len(sample_shape) == 1:
            down, up = nn.Linear(n_in, n_out), nn.Linear(n_out, n_in)
        else:
            kernel = 3 if i == len(widths) - 2 else 5
            # as published: the last layer has no border where the side does not halve
            cut = kernel == 3 and min(side) >= 3 and any(n % 2 for n in side)
            border = 0 if cut else kernel // 2
            halved = tuple((n + 2 * border - kernel) // 2 + 1 for n in side)
            missing = [
                n - (2 * h - 2 - 2 * border + kernel)
                for n, h in zip(side, halved, strict=True)
            ]
            down = nn.Conv2d(n_in, n_out, kernel, 2, border)
            up = nn.ConvTranspose2d(n_out, n_in, kernel, 2, border, missing)
            side = halved
        encode += [down, nn.ReLU()]
        decode = [up, *([nn.ReLU()] if i else []), *decode]
    n_last = widths[-1] * math.prod(side)
    encode += [nn.Flatten(), nn.Linear(n_last, n_components)]
    decode = [
        nn.Linear(n_components, n_last),
        nn.ReLU(),
        nn.Unflatten(1, (widths[-1], *side)),
        *decode,
    ]
    encoder, decoder = nn.Sequential(*encode), nn.Sequential(*decode)
    for layer in (*encode, *decode):
        if hasattr(layer, "weight"):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return encoder, decoder


def drop_blocks_(net, rate):
    """Leave residual blocks out at random in training: stochastic depth, in place.

    Parameters
    ----------
    net : nn.Module
        Blocks are found in our own networks and in those of torchvision and timm: what
        has a ``shortcut`` or a ``downsample``, or a place for this of its own.
    rate : float
        Probability that the last block is left out for a row, in [0, 1); block i of N has
        ``rate * i / N``. What is kept is scaled up, so that the mean stays.

    Returns
    -------
    hooks : list
        Their ``remove()`` makes it undone.

    References
    ----------
    .. [1] G. Huang et al., "Deep networks with stochastic depth", ECCV 2016.
    """
    branches = []
    for part in net.modules():
        places = [
            child
            for name, child in part.named_children()
            if name == "stochastic_depth" or name.startswith("drop_path")
        ]
        for place in places:
            if hasattr(place, "p"):
                place.p = 0.0  # torchvision's own rate
        if not places and (hasattr(part, "shortcut") or hasattr(part, "downsample")):
            ends = (getattr(part, name, None) for name in _BRANCH_ENDS)
            places = [end for end in ends if isinstance(end, nn.Module)][:1]
        branches += places
    return [
        branch.register_forward_hook(_DropBranch(rate * ((i + 1) / len(branches))))
        for i, branch in enumerate(branches)
        if rate > 0
    ]


def load_weights_(module, path, *, heads=(), convert=None):
    """Read the weights of a module from a file, in place; nothing in it is executed.

    Parameters
    ----------
    module : nn.Module
        Left as it is if the file does not fit.
    path : str or Path
        A safetensors file, or a state dict written by ``torch.save``. It may stand
        under "state_dict", "model" and the like, and its names may have a prefix such
        as "module." or "visual."; what lies beside that prefix is left out.
    heads : sequence of str, default=()
        Parts, such as ``"fc"``, that the file need not have, or may have for another
        number of classes, or that the module need not have: those are left out.
    convert : callable or None, default=None
        ``convert(state_dict, module) -> state_dict`` renames what was published under
        other names.

    Returns
    -------
    module : nn.Module
        The same, on its device and of its dtype.

    Raises
    ------
    ValueError
        If there is no such file, if it is cut off or holds more than tensors, or if
        names or shapes are not those of the module; the message names them.

    Examples
    --------
    >>> import os, tempfile, torch
    >>> from sklabel.backbones import load_weights_
    >>> net = torch.nn.Linear(3, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "net.pt")
    ...     torch.save({"state_dict": net.state_dict()}, path)
    ...     other = load_weights_(torch.nn.Linear(3, 2), path)
    >>> torch.equal(other.weight, net.weight)
    True
    """
    read = _without_wrapping(_read_weights(path))
    state = _strip_prefix(read, module.state_dict(), path)
    problems = _mismatches(module, state, heads)
    if problems and convert is not None:
        try:
            converted = _strip_prefix(
                convert(dict(read), module), module.state_dict(), path
            )
            if not _mismatches(module, converted, heads):
                state, problems = converted, []
        except Exception:  # it met names that it was not written for
            pass
    if problems:
        raise ValueError(
            f"weights={str(path)!r} does not fit {type(module).__name__}; "
            f"{'; '.join(problems)}. Give the backbone that it was saved from."
        )
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    fitting = {k: v for k, v in state.items() if v.shape == shapes.get(k)}
    module.load_state_dict(fitting, strict=False)
    return module


def _mismatches(module, state, heads):
    """Return what of a state dict does not fit a module, in words."""
    wanted = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in state.items()}

    def in_head(name):
        return any(name == head or name.startswith(f"{head}.") for head in heads)

    missing = [
        name
        for name in wanted
        # a count that only training without momentum reads
        if name not in given
        and not (in_head(name) or name.endswith("num_batches_tracked"))
    ]
    unknown = [name for name in given if name not in wanted and not in_head(name)]
    other = [
        f"{name} is {given[name]} in the file, {shape} in the network"
        for name, shape in wanted.items()
        if given.get(name, shape) != shape and not in_head(name)
    ]
    return [
        f"{what}: {_some(names)}"
        for what, names in (
            ("missing in the file", missing),
            ("unknown to the network", unknown),
            ("of another shape", other),
        )
        if names
    ]


def _read_weights(path):
    """Return the tensors of a file by name."""
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(
            f"weights={str(path)!r} {what}: give the path of a .pt, .pth or "
            '.safetensors file, "DEFAULT" for the published weights, or None for '
            "random ones."
        )
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        if path.suffix == ".safetensors" or start[8:] == b"{":
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                return {name: file.get_tensor(name) for name in names}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise many kinds
        objects = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
        if objects or "TorchScript" in str(error):
            raise ValueError(
                f"weights={str(path)!r} holds Python objects, which could run code, so "
                "they are not read. Where it was made, write the tensors alone: "
                "torch.save(module.state_dict(), path)."
            ) from error
        raise ValueError(
            f"weights={str(path)!r} cannot be read ({_reason(error)}). It is cut off, "
            "or neither safetensors nor a state dict of torch.save: copy or download "
            "it again."
        ) from error
    return _unwrap(state, path)


def _unwrap(state, path):
    while isinstance(state, dict):
        inner = next((state[k] for k in _WRAPPERS if isinstance(state.get(k), dict)), 0)
        if not inner:
            tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
            if tensors:
                return tensors
            break
        state = inner
    found = f"the keys {_some(state)}" if isinstance(state, dict) else "no dict"
    raise ValueError(
        f"weights={str(path)!r} holds {found}, but no tensors under "
        f"{', '.join(_WRAPPERS)}: save module.state_dict() alone."
    )


def _without_wrapping(state):
    """Drop what parallel and compiled training put before every name."""
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: v for name, v in state.items()}
    return state


def _strip_prefix(state, wanted, path):
    """Return what stands under the prefix where most of the names wanted are found."""
    counts = Counter()
    for name in state:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                counts["".join(f"{part}." for part in parts[:i])] += 1
    if not counts or "" in counts and counts[""] == max(counts.values()):
        return state
    best = [prefix for prefix in counts if counts[prefix] == max(counts.values())]
    if len(best) > 1:
        raise ValueError(
            f"weights={str(path)!r} holds the network more than once, under "
            f"{_some(map(repr, best))}: save a file of one of them."
        )
    n = len(best[0])
    return {name[n:]: v for name, v in state.items() if name.startswith(best[0])}


def _some(names, n=3):
    """Return the first names, and how many there are beyond them."""
    names = list(map(str, names))
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more


def _reason(error, length=200):
    """Return an error in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else f"{text[:length]}..."


class _DropBranch:
    """Forward hook: in training, a residual branch is 0 for some of the rows."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, part, inputs, h):
        if not part.training:
            return h
        kept = h.new_empty(len(h), *[1] * (h.ndim - 1)).bernoulli_(1 - self.rate)
        return h * (kept / (1 - self.rate))


class _Sobel(nn.Module):
    def __init__(self, grey):
        super().__init__()
        self.grey = grey

    def forward(self, x):
        return sobel(x, self.grey)


def _named(name, shape):
    if name == "auto":
        name = "mlp" if len(shape) == 1 else "resnet8"
    if name == "mlp":
        return _mlp(shape)
    if len(shape) == 1:
        raise ValueError(
            f"backbone={name!r} needs images, but X holds vectors of length {shape[0]}: "
            'use backbone="auto" or give image_shape=(height, width, channels).'
        )
    if name in _OWN:
        return _OWN[name](shape)
    source, plain = _checked_name(name, own=_OWN)
    if source == "timm":
        timm = import_optional("timm", extra="backbones")
        return timm.create_model(plain, num_classes=0, in_chans=shape[0])
    if source == "open_clip":
        raise ValueError(
            f"backbone={name!r} has one size and its own weights: fit "
            f"sklabel.embedding.PretrainedTransformer({name!r}), and give that."
        )
    return _torchvision(name, shape)


def _checked_name(name, own=()):
    """Return where a network comes from, and its name there."""
    source, _, plain = name.partition("/") if "/" in name else ("torchvision", "", name)
    known = ()
    if source == "torchvision":
        known = torchvision.models.list_models(module=torchvision.models)
    elif source == "timm":
        timm = import_optional("timm", extra="backbones")
        known, (arch, _, tag) = timm.list_models(), plain.partition(".")
        if tag and arch in known:  # the tag of its weights
            known = timm.list_pretrained(f"{arch}.*")
    elif source == "open_clip":
        known = import_optional("open_clip", extra="clip").list_models()
    if plain in known:
        return source, plain
    prefix = name[: len(name) - len(plain)]
    candidates = {k.lower(): k for k in (*known, *own)}
    close = difflib.get_close_matches(plain.lower(), candidates, n=3)
    meant = " or ".join(repr(prefix + candidates[k]) for k in close)
    ours = (
        f"'auto', {sorted(own)}, " if own else "'open_clip/NAME' of its list_models(), "
    )
    raise ValueError(
        f"backbone={name!r} is unknown{f': did you mean {meant}?' if meant else '.'} "
        f"Known are {ours}'timm/NAME' of timm.list_models(), and "
        "torchvision.models.list_models()."
    )


def _mlp(shape, width=128):
    layers = []
    for n_in in (shape[0], width):
        layers += [nn.Linear(n_in, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers)


class _Block(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al., 2016)."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.body = nn.Sequential(
            *_conv(n_in, n_out, stride), nn.ReLU(inplace=True), *_conv(n_out, n_out)
        )
        same = n_in == n_out and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(*_conv(n_in, n_out, stride, side=1))
        )

    def forward(self, x):
        return torch.relu_(self.body(x) + self.shortcut(x))


def _conv(n_in, n_out, stride=1, side=3):
    conv = nn.Conv2d(n_in, n_out, side, stride, side // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(n_out)


def _stem(shape, width):
    """3x3 convolution, then halve until the shorter side is at most 40."""
    side = min(shape[1:])
    layers = [*_conv(shape[0], width, 2 if side > 40 else 1), nn.ReLU(inplace=True)]
    side = side // 2 if side > 40 else side
    while side > 40:
        layers.append(nn.MaxPool2d(3, 2, 1))
        side //= 2
    return layers


def _resnet8(shape, width=32):
    return nn.Sequential(
        *_stem(shape, width),
        _Block(width, width, 1),
        _Block(width, 2 * width, 2),
        _Block(2 * width, 4 * width, 2),
    )


def _resnet9(shape):
    def halve(n_in, n_out):
        return [
            *_conv(n_in, n_out),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, ceil_mode=True),
        ]

    return nn.Sequential(
        *_stem(shape, 64),
        *halve(64, 128),
        _Block(128, 128, 1),
        *halve(128, 256),
        *halve(256, 512),
        _Block(512, 512, 1),
    )


class _WideBlock(nn.Module):
    """Pre-activation block of Wide ResNets, LeakyReLU 0.1 as in FixMatch's code.

    ``activate_before_residual``: the shortcut starts from the activated input, which is
    what the first block of the network does.
    """

    def __init__(self, n_in, n_out, stride, activate_before_residual):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(n_in, momentum=0.001)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out, momentum=0.001)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.shortcut = None
        if n_in != n_out or stride != 1:
            self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
        self.activate_before_residual = activate_before_residual

    def forward(self, x):
        h = nn.functional.leaky_relu(self.norm1(x), 0.1)
        if self.activate_before_residual:
            x = h
        h = self.conv2(nn.functional.leaky_relu(self.norm2(self.conv1(h)), 0.1))
        return h + (x if self.shortcut is None else self.shortcut(x))


def _wide_resnet(shape, depth=28, widen=2):
    n_blocks, widths = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
    layers = [nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False)]
    for stage in range(3):
        for i in range(n_blocks):
            n_in = widths[stage] if i == 0 else widths[stage + 1]
            stride = 2 if i == 0 and stage > 0 else 1
            layers.append(
                _WideBlock(n_in, widths[stage + 1], stride, stage == 0 and i == 0)
            )
    layers += [nn.BatchNorm2d(widths[3], momentum=0.001), nn.LeakyReLU(0.1)]
    net = nn.Sequential(*layers)
    for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return net


_OWN = {
    "resnet8": _resnet8,
    "resnet9": _resnet9,
    "wrn_28_2": lambda shape: _wide_resnet(shape, 28, 2),
    "wrn_28_8": lambda shape: _wide_resnet(shape, 28, 8),
}


def _torchvision(name, shape):
    net = torchvision.models.get_model(name, weights=None)
    _drop_head_(net)
    if isinstance(net, torchvision.models.ResNet) and min(shape[1:]) <= 64:
        net.conv1 = nn.Conv2d(shape[0], 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()
    elif shape[0] != 3:
        _set_in_channels(net, shape[0])
    return net


def _drop_head_(net):
    """Leave the class scores of a network of torchvision out."""
    if hasattr(net, "fc"):
        net.fc = nn.Identity()
    elif hasattr(net, "classifier"):
        last = net.classifier
        if not isinstance(last, nn.Sequential):
            net.classifier = nn.Identity()
        elif isinstance(last[-1], nn.Linear):
            # ConvNeXt and others end in Flatten, norm, Linear: only the Linear goes
            last[-1] = nn.Identity()
        else:  # SqueezeNet scores its maps by a convolution
            net.classifier = nn.AdaptiveAvgPool2d(1)
    elif hasattr(net, "heads"):
        net.heads = nn.Identity()
    elif hasattr(net, "head"):
        net.head = nn.Identity()
    for head in {"aux1", "aux2", "AuxLogits"} & set(dict(net.named_children())):
        # GoogLeNet's and Inception's further class scores, in training only
        setattr(net, head, None)
        net.aux_logits = False


def _set_in_channels(net, n_channels):
    for parent in net.modules():
        for key, child in parent.named_children():
            if isinstance(child, nn.Conv2d):
                setattr(
                    parent,
                    key,
                    nn.Conv2d(
                        n_channels,
                        child.out_channels,
                        child.kernel_size,
                        child.stride,
                        child.padding,
                        bias=child.bias is not None,
                    ),
                )
                return


@torch.no_grad()
def _n_features_out(encoder):
    training = encoder.training
    x = torch.zeros(2, *encoder.sample_shape)
    n_features = encoder.eval()(x).shape[1]
    encoder.train(training)
    return n_features
