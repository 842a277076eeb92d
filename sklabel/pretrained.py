"""Published encoders: architecture, weights, and their preprocessing."""

import functools
import logging
import math
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
import torchvision
from torch import nn

from ._core.checks import check_option, check_pair
from ._core.inputs import size_pair
from ._core.optional import import_optional
from ._core.persistence import refuse_external
from ._core.warn import warn
from ._core.weight_files import load_weights_, reason_of, some
from .backbones import Encoder, _checked_name, _drop_head_

__all__ = [
    "Frame",
    "load_weights_",
    "open_clip_model",
    "open_clip_tokenizer",
    "pretrained_backbone",
]

_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")
# how names of open_clip begin that say where a model and its weights lie
_WITH_WEIGHTS = ("hf-hub:", "local-dir:")
# what to do without a network
_FILE = 'get the file elsewhere and give its path: weights="path/to/file.safetensors"'
_FOLDER = 'get its files elsewhere and give their folder: "open_clip/local-dir:FOLDER"'


class Frame(nn.Module):
    """Resize and crop images for a pretrained network, as its authors did.

    Parameters
    ----------
    size : (int, int)
        Height and width of the result.
    resize : (int, int)
        Height and width that the image, or one of its sides, is resized to before the
        center crop.
    mode : {"shortest", "longest", "squash"}, default="shortest"
        "shortest": the aspect ratio is kept and the rest is cropped; "longest": it is
        kept and the borders are filled; "squash": the image is stretched to ``resize``.
    interpolation : {"bilinear", "bicubic", "nearest"}, default="bilinear"
        Interpolation, anti-aliased if the image gets smaller.
    fill : tuple of float, default=(0, 0, 0)
        Color of borders, in [0, 1].

    Notes
    -----
    ``(B, C, H, W)`` in [0, 1] become ``(B, 3, *size)``; one channel is repeated, a
    fourth (opacity) is dropped.
    """

    def __init__(
        self, size, resize, mode="shortest", interpolation="bilinear", fill=(0, 0, 0)
    ):
        super().__init__()
        check_option(("shortest", "longest", "squash"), mode=mode)
        check_option(("bilinear", "bicubic", "nearest"), interpolation=interpolation)
        check_pair(1, whole=True, size=size, resize=resize)
        self.size, self.resize = tuple(size), tuple(resize)
        self.mode, self.interpolation, self.fill = mode, interpolation, tuple(fill)

    def forward(self, x):
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x[:, :3]
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
        """Return the size after resizing, rounded as in each library."""
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
        """Crop the center, or add borders."""
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
    """Return a published image encoder, and the resizing of its images.

    Parameters
    ----------
    name : str
        ``"resnet50"`` and every other classifier of torchvision, ``"timm/NAME"`` (extra
        ``backbones``) or ``"open_clip/NAME"`` (extra ``clip``), where NAME is one of
        :func:`open_clip_model`.
    weights : str, Path or None, default="DEFAULT"
        "DEFAULT": the library's recommended weights, downloaded into its own cache; the
        name of other weights of the library; a file, see :func:`load_weights_`; None:
        random weights, from torch's generator.
    input_size : int, tuple or None, default=None
        Side, or height and width, of the network's input; None: as published.
    pooling : {"auto", "avg", "max", "token"}, default="auto"
        How features become one vector. "auto": as published, for open_clip the vectors
        that are compared with texts. "avg", "max": mean or maximum over all positions.
        "token": the class token of a transformer. "max" is for timm only.
    load : bool, default=True
        False: build the network for these weights without loading them.

    Returns
    -------
    encoder : Encoder
        Takes ``(B, 3, height, width)`` in [0, 1] and standardizes as published.
    frame : Frame
        Resizes images of any size to that size.

    Raises
    ------
    ValueError
        If a name is unknown (the message suggests similar ones), the network does not
        support the pooling or size, or weights do not exist or do not fit.
    ImportError
        If an optional package is not installed.
    OSError
        If the weights cannot be downloaded.

    Examples
    --------
    >>> import torch
    >>> from sklabel.pretrained import pretrained_backbone
    >>> encoder, frame = pretrained_backbone("resnet18", weights=None, input_size=64)
    >>> encoder.eval()(frame(torch.rand(2, 1, 30, 40))).shape
    torch.Size([2, 512])
    """
    check_option(("auto", "avg", "max", "token"), pooling=pooling)
    source, _, plain = name.partition("/")
    if source != "open_clip":
        source, plain = _checked_name(name)
    side = None if input_size is None else size_pair(input_size, "input_size")
    build = {
        "torchvision": _from_torchvision,
        "timm": _from_timm,
        "open_clip": _from_open_clip,
    }
    try:
        net, frame, mean, std = build[source](plain, weights, side, pooling, load)
        return Encoder(net.eval(), (3, *frame.size), mean, std), frame
    except _NoPooling as error:
        raise ValueError(
            f'pooling={pooling!r} is not for backbone={name!r}{error}: use "auto".'
        ) from None
    except (AssertionError, RuntimeError, TypeError) as error:
        if side is None:
            raise
        raise ValueError(
            f"backbone={name!r} does not accept images of input_size={side} "
            f"({reason_of(error)}): leave input_size=None, or use another backbone."
        ) from error


def _color(values):
    return torch.tensor(values).reshape(3, 1, 1)


class _NoPooling(Exception):
    """A network does not have this pooling; the message names those it has."""


def _published(name, weights, known, default):
    """Return the published weights; None for a file or random weights."""
    if weights is None:
        return None
    if weights == "DEFAULT":
        if default is None:
            raise ValueError(
                f'weights="DEFAULT", but {name!r} has no published weights: give the '
                "path of a file, or None for random weights."
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
        f"{name!r}, which are {some(known, 20) or 'none'}: use one of them, "
        '"DEFAULT" or the path of a file.'
    )


@contextmanager
def _downloading(name, what, remedy=_FILE):
    """Raise a one-line error with the reason and the remedy if a download fails."""
    try:
        yield
    except Exception as error:  # each library, and each way to fail, has its own
        cause = error
        while cause.__cause__ is not None or cause.__context__ is not None:
            cause = cause.__cause__ or cause.__context__
        raise OSError(
            f"The {what} of {name!r} could not be downloaded or read "
            f"({type(cause).__name__}: {reason_of(cause)}). Without a network, "
            f"{remedy}."
        ) from error


def _from_torchvision(name, weights, side, pooling, load):
    enum = torchvision.models.get_model_weights(name)
    tag = _published(name, weights, [w.name for w in enum], enum["DEFAULT"].name)
    chosen = None if tag is None else enum[tag]
    shown = chosen or enum["DEFAULT"]
    if chosen is not None and load:
        with _downloading(name, f"weights {tag!r}"):
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
    larger = [round(n * resize / crop) for n in size]
    frame = Frame(size, larger, interpolation=preset.interpolation.value)
    net = _pooled_torchvision(net, pooling)
    return net, frame, _color(preset.mean), _color(preset.std)


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
        with _downloading(f"timm/{name}", f"weights {chosen!r}"):
            net = timm.create_model(name, pretrained=True, **options)
    else:
        net = timm.create_model(name, **options)
    if chosen is None and weights is not None and load:
        heads = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
        load_weights_(
            net,
            weights,
            heads=(heads,) if isinstance(heads, str) else heads,
            convert=_converter(net),
        )
    if pooling != "auto":
        _pool_timm_(net, pooling)
    data = timm.data.resolve_data_config(model=net)
    size = side or data["input_size"][1:]
    mode = {"squash": "squash", "border": "longest"}.get(data["crop_mode"], "shortest")
    frame = Frame(
        size,
        [math.floor(n / data["crop_pct"]) for n in size],
        mode,
        _interpolation(data["interpolation"]),
        data["mean"] if mode == "longest" else (0, 0, 0),
    )
    return net, frame, _color(data["mean"]), _color(data["std"])


def _converter(net):
    """Return timm's function that renames and resamples weights, or None."""
    return getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)


def _interpolation(name):
    # torch has no lanczos; "random" is for training
    return name if name in ("bilinear", "nearest") else "bicubic"


def _pool_timm_(net, pooling):
    if pooling == "token" and not getattr(net, "num_prefix_tokens", 0):
        raise _NoPooling(", which has no class token")
    try:
        net.reset_classifier(0, pooling)
    except Exception as error:  # each network of timm has its own reset_classifier
        raise _NoPooling(f" ({reason_of(error)})") from error


def open_clip_model(
    name, weights="DEFAULT", *, input_size=None, images_only=False, load=True
):
    """Return a published model of images and texts, and its image preprocessing.

    Parameters
    ----------
    name : str
        One of ``open_clip.list_models()``, such as "ViT-B-32"; "hf-hub:OWNER/NAME" or
        "local-dir:FOLDER", which include their weights.
    weights : str, Path or None, default="DEFAULT"
        "DEFAULT": the weights included in the name, or the first that open_clip lists
        for it; the name of others of its list; a file, see :func:`load_weights_`; None:
        random weights, from torch's generator. For a file, the preprocessing shared by
        all published weights of the name is used.
    input_size : int, tuple or None, default=None
        Side, or height and width, of the network's input; None: as published.
    images_only : bool, default=False
        Whether a file may hold the weights of the image tower only.
    load : bool, default=True
        False: build the network for these weights without loading them.

    Returns
    -------
    model : nn.Module
        Its part ``visual`` turns standardized images into vectors; its method
        ``encode_text`` does so with tokens from :func:`open_clip_tokenizer`.
    frame : Frame
        Resizes images of any size to the network's input size.
    mean, std : Tensor of shape (3, 1, 1)
        Standardize the output of the frame.

    Raises
    ------
    ValueError
        If a name is unknown (the message suggests similar ones), or weights do not
        exist or do not fit.
    ImportError
        If open_clip is not installed.
    OSError
        If the weights cannot be downloaded.

    Warns
    -----
    UserWarning
        If a file is read, and open_clip lists weights for the name that differ in
        preprocessing or activation, since a file does not say which it needs.
    """
    open_clip = import_optional("open_clip", extra="clip")
    shown, tag, about = f"open_clip/{name}", None, {}
    brings = name.startswith(_WITH_WEIGHTS)
    if brings or _described_on_a_hub(name):
        refuse_external(f"{shown!r}")
    if brings and weights not in ("DEFAULT", None):
        raise ValueError(
            f"weights={str(weights)!r} has no effect, because {shown!r} includes its "
            "own: leave out weights."
        )
    if not brings:
        _checked_name(shown)
        known = open_clip.list_pretrained_tags_by_model(name)
        # it has no default: the first is what the paper of that network is about
        tag = _published(shown, weights, known, known[0] if known else None)
        file = tag is None and weights is not None
        about = _about(
            name, known if file else [tag], weights if file and load else None
        )
    options = (
        {}
        if input_size is None
        else {"force_image_size": size_pair(input_size, "input_size")}
    )
    fetched = load and (tag is not None or brings and weights is not None)
    telling = nullcontext()
    if fetched or brings:
        what, remedy = f"weights {tag or weights!r}", _FOLDER if brings else _FILE
        telling = _downloading(shown, what, remedy)
    with _quiet_root_logger(), telling:
        model = open_clip.create_model(
            name,
            pretrained=tag if fetched else None,
            load_weights=fetched,
            require_pretrained=fetched,
            pretrained_text=False,
            # with the other activation, weights lose accuracy and nothing else shows it
            force_quick_gelu=bool(about.get("quick_gelu", False)),
            # what is told of images must not depend on whether weights are read
            force_preprocess_cfg={k: v for k, v in about.items() if k != "size"},
            **options,
        )
    model.visual.output_tokens = False  # CoCa: the vector alone
    if tag is None and not brings and weights is not None and load:
        resized = input_size is not None
        with _quiet_root_logger():
            load_weights_(
                model.visual if images_only else model,
                weights,
                convert=lambda state, _: _as_in(model, state, resized),
            )
    data = model.visual.preprocess_cfg
    size = size_pair(input_size or data["size"], "input_size")
    frame = Frame(
        size,
        size,
        data.get("resize_mode") or "shortest",
        _interpolation(data.get("interpolation")),
        [data.get("fill_color", 0) / 255] * 3,
    )
    return model, frame, _color(data["mean"]), _color(data["std"])


def _described_on_a_hub(name):
    """Return whether open_clip fetches the description of a model's text tower."""
    open_clip = import_optional("open_clip", extra="clip")
    config = open_clip.get_model_config(name) or {}
    return bool(config.get("text_cfg", {}).get("hf_model_name"))


def _about(name, tags, file):
    """Return the settings of weights with these tags; warn of a possible mismatch."""
    open_clip = import_optional("open_clip", extra="clip")
    configs = [open_clip.get_pretrained_cfg(name, tag) for tag in tags if tag]
    keys = {key for config in configs for key in config} - {"url", "hf_hub"}
    values = {key: [config.get(key) for config in configs] for key in sorted(keys)}
    about = {k: v[0] for k, v in values.items() if all(other == v[0] for other in v)}
    if len(about) < len(values) and file is not None:
        usual = asdict(open_clip.transform.PreprocessCfg())
        usual |= {"quick_gelu": False, **open_clip.get_model_config(name)}
        taken = [f"{key}={usual.get(key)}" for key in values if key not in about]
        warn(
            f"weights={str(file)!r} does not say which settings it needs, and "
            f"published weights of 'open_clip/{name}' differ, so {', '.join(taken)} is "
            "used. If it needs other settings, give a folder with its configuration, "
            '"open_clip/local-dir:FOLDER", or for quick_gelu=True the name that ends '
            'in "-quickgelu".'
        )
    return about


def _as_in(model, state, resized):
    """Return published weights in the names and shapes of a model of open_clip."""
    open_clip = import_optional("open_clip", extra="clip")
    state = open_clip.convert.convert_state_dict(model, state)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name, None)
        if name in state and own is not None:
            state[name] = state[name].reshape(own.shape)
    # in OpenAI's own files there are sizes among the weights
    sizes = ("input_resolution", "context_length", "vocab_size")
    state = {name: value for name, value in state.items() if name not in sizes}
    return _resampled(model, state) if resized else state


def _resampled(model, state):
    """Return weights with the image tower's positions resized to its input."""
    open_clip = import_optional("open_clip", extra="clip")
    if not any(name.startswith("visual.") for name in state):  # the tower alone
        state = {f"visual.{name}": value for name, value in state.items()}
    open_clip.model.resize_pos_embed(state, model)
    trunk = getattr(model.visual, "trunk", None)  # a network of timm
    convert = None if trunk is None else _converter(trunk)
    if convert is not None:
        start = "visual.trunk."
        inner = {k[len(start) :]: v for k, v in state.items() if k.startswith(start)}
        state |= {start + k: v for k, v in convert(inner, trunk).items()}
    return state


@functools.lru_cache(maxsize=4)
def open_clip_tokenizer(name):
    """Return the tokenizer of a published model.

    Parameters
    ----------
    name : str
        As in :func:`open_clip_model`.

    Returns
    -------
    tokenizer : callable
        Turns a list of n str into a Tensor of int of shape (n, context_length).

    Raises
    ------
    ImportError
        If open_clip is not installed.
    OSError
        If the vocabulary cannot be downloaded.
    """
    open_clip = import_optional("open_clip", extra="clip")
    with _quiet_root_logger(), _downloading(f"open_clip/{name}", "tokenizer", _FOLDER):
        # what a folder or a hub describes may ask for code of its own to be run
        try:
            return open_clip.get_tokenizer(name, trust_remote_code=False)
        except TypeError as error:
            # open_clip's own tokenizer runs no such code, and has no such option
            if not str(error).startswith("SimpleTokenizer.__init__()"):
                raise
            return open_clip.get_tokenizer(name)


def _from_open_clip(name, weights, side, pooling, load):
    model, *preparation = open_clip_model(
        name, weights, input_size=side, images_only=True, load=load
    )
    net = model.visual
    return (net if pooling == "auto" else _pooled_open_clip(net, pooling), *preparation)


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
    """Keep open_clip from logging each step to the root logger."""

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
