"""Encoders from images to vectors, built from a name, a module or a fitted embedder."""

import copy
import difflib
import math
from itertools import pairwise

import torch
import torchvision
from torch import nn

from ._core.checks import check_number, check_option
from ._core.freezing import keep_evaluating_, keep_frozen_
from ._core.optional import import_optional
from .augment import sobel
from .modules import split_batchnorm_
from .optim import _NORMS

# the last part of a residual branch, in blocks of torchvision and of our own
_BRANCH_ENDS = ("body", "bn3", "bn2", "conv3", "conv2")


class Encoder(nn.Module):
    """Standardize the input, then encode it.

    Parameters
    ----------
    body : nn.Module
        Maps ``(B, *sample_shape)`` to ``(B, D)``, or to ``(B, D, H, W)`` maps, which
        are then averaged over H and W.
    sample_shape : tuple of int
        ``(D,)`` for vectors, ``(C, H, W)`` for images.
    mean, std : Tensor or None
        Of shape ``(C, 1, 1)`` or ``(D,)``; None: 0 and 1.

    Attributes
    ----------
    n_features_out : int
        Length D of the encoding.
    pretrained : bool
        Whether it is pretrained; set by :func:`build_backbone`.
    """

    pretrained = False

    def __init__(self, body, sample_shape, mean=None, std=None):
        super().__init__()
        self.body = body
        self.sample_shape = tuple(sample_shape)
        self.register_buffer("mean", torch.zeros(()) if mean is None else mean)
        self.register_buffer("std", torch.ones(()) if std is None else std)
        self.n_features_out = features_out(self, self.sample_shape)

    def forward(self, x):
        h = _flat(self.body((x - self.mean) / self.std))  # (B, D)
        # of a network's own making: torch does little with it on a CPU
        return h.float() if h.dtype == torch.float16 and h.is_cpu else h

    def train(self, mode=True):
        """Switch to training or evaluation; frozen parts stay in evaluation."""
        super().train(mode)
        keep_evaluating_(self)
        return self


def build_backbone(spec, sample_shape, mean=None, std=None, *, projected=True):
    """Return a fresh encoder for samples of one shape.

    Parameters
    ----------
    spec : str, nn.Module or fitted embedder
        - ``"auto"``: a two-layer perceptron for vectors, ``"resnet8"`` for images;
        - ``"resnet8"``, ``"resnet9"``, ``"wrn_28_2"``, ``"wrn_28_8"``: networks for
          small images (larger ones are reduced by their first layers);
        - ``"resnet18"`` and every other classifier of torchvision, untrained; its
          ResNets get the CIFAR stem (3x3, stride 1, no pooling) for sides up to 64;
        - ``"timm/NAME"``: an untrained model of timm (extra ``backbones``);
        - a module: copied, never trained in place; it counts as pretrained if its norm
          layers have been trained;
        - a fitted embedding estimator: its trained encoder is copied; from
          :class:`~sklabel.embedding.CLIPTransformer`, image tower and projection.

        Layers that you have frozen (``requires_grad_(False)``) are not trained, and the
        statistics of their norms do not change.
    sample_shape : tuple of int
        ``(D,)`` or ``(C, H, W)``.
    mean, std : Tensor or None
        Standardization of the input; an embedder keeps its own.
    projected : bool, default=True
        Whether an image tower includes its projection.

    Returns
    -------
    encoder : Encoder

    Raises
    ------
    ValueError
        For an unknown name, an embedder fitted on samples of another shape, or a
        network that does not accept samples of this shape (a vision transformer has one
        size).
    """
    trained = getattr(spec, "encoder_", None)
    if trained is not None:
        if not isinstance(trained, Encoder):
            raise ValueError(
                f"backbone={type(spec).__name__} has trained no encoder, only layers "
                "on given vectors: give the embedder that these come from."
            )
        if trained.sample_shape != tuple(sample_shape):
            raise ValueError(
                f"backbone={type(spec).__name__} was fitted on samples of shape "
                f"{trained.sample_shape}, but X has samples of shape "
                f"{tuple(sample_shape)}: fit the embedder on data of that shape."
            )
        # what MoCo splits for its own training is whole again
        trained = split_batchnorm_(copy.deepcopy(trained), 1)
        projection = getattr(spec, "projection_", None)
        if projected and projection is not None:
            both = nn.Sequential(trained, copy.deepcopy(projection))
            trained = Encoder(both, sample_shape)
        trained.pretrained = True
        _in_full_(trained)  # steps get lost in weights of 16 bits
        return keep_frozen_(trained)
    if isinstance(spec, torch.jit.ScriptModule):
        raise ValueError(
            f"backbone={type(spec).__name__} is compiled by TorchScript, so it can be "
            "neither frozen nor pickled: give the nn.Module that it was made from."
        )
    if isinstance(spec, nn.Module):
        body = keep_frozen_(_with_widths(copy.deepcopy(spec), sample_shape))
    elif isinstance(spec, str):
        body = _named(spec, tuple(sample_shape))
    else:
        raise ValueError(
            f"backbone={spec!r} is neither a name, an nn.Module nor a fitted embedder: "
            "call fit on the embedder first; in a search or a cloned pipeline, give "
            "sklearn.frozen.FrozenEstimator(embedder), which stays fitted."
        )
    try:
        encoder = Encoder(body, sample_shape, mean, std)
        encoder.pretrained = isinstance(spec, nn.Module) and _has_learned(body)
        return encoder
    except Exception as error:  # networks of others fail in many ways
        name = repr(spec) if isinstance(spec, str) else type(spec).__name__
        reason = " ".join(str(error).split())
        raise ValueError(
            f"backbone={name} cannot turn samples of shape {tuple(sample_shape)} into "
            f"vectors ({reason}). {_remedy(body, error)}"
        ) from error


def _with_widths(net, sample_shape):
    """Return a network whose lazy layers know their widths."""
    values = (*net.parameters(), *net.buffers())
    if any(nn.parameter.is_lazy(value) for value in values):
        training = net.training
        try:
            with torch.no_grad():
                net.eval()(torch.zeros(2, *sample_shape))
        except Exception as error:  # networks of others fail in many ways
            reason = " ".join(str(error).split())
            raise ValueError(
                f"backbone={type(net).__name__} has lazy layers that cannot take "
                f"samples of shape {tuple(sample_shape)} ({reason}). Call it once on "
                "such samples to see why."
            ) from error
        net.train(training)
    return net


def _remedy(body, error):
    """Return what to do about a network that has failed with an error."""
    if isinstance(error, _WrongOutput):
        return "Wrap it in an nn.Module that returns a tensor of shape (B, D)."
    kinds = {p.dtype for p in body.parameters() if p.is_floating_point()}
    other = sorted(map(str, kinds - {torch.float32}))
    if other:
        return f"Its weights are {' and '.join(other)}: give backbone.float()."
    return 'Resize the images to a size it accepts, or use backbone="auto".'


def _in_full_(module):
    """Convert weights of half precision to float32, in place."""
    for values in (*module.parameters(), *module.buffers()):
        if values.dtype in (torch.float16, torch.bfloat16):
            values.data = values.data.float()


def _has_learned(module):
    """Return whether the norm layers of a module show that it was trained."""
    for part in module.modules():
        if not isinstance(part, _NORMS):
            continue
        mean, var = (getattr(part, f"running_{s}", None) for s in ("mean", "var"))
        if mean is not None and (mean.any() or (var != 1).any()):
            return True
        # new ones are constant: 1, or 0 at the end of a residual branch
        for values in part.parameters(recurse=False):
            if values.numel() and (values != values.flatten()[0]).any():
                return True
    return False


def build_sobel_backbone(spec, sample_shape, grey="luma"):
    """Return a fresh encoder that sees the edges of the gray images, two channels.

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
        For vectors, and as in :func:`build_backbone`.
    """
    check_option(("luma", "mean"), grey=grey)
    if len(sample_shape) == 1:
        raise ValueError(
            "sobel=True needs images, but X holds vectors of length "
            f"{sample_shape[0]}: give image_shape, or sobel=False."
        )
    edges = build_backbone(spec, (2, *sample_shape[1:]))
    return Encoder(nn.Sequential(_Sobel(grey), edges), sample_shape)


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
    check_number(1, whole=True, n_components=n_components)
    sizes = list(sizes)
    if not sizes or any(int(size) != size or size < 1 for size in sizes):
        raise ValueError(f"sizes={sizes} must be positive integers, at least one.")
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


def drop_blocks_(net, rate, rule="linear"):
    """Skip residual blocks at random in training: stochastic depth, in place.

    Parameters
    ----------
    net : nn.Module
        Blocks are found in our own networks and in those of torchvision and timm: parts
        with a ``shortcut``, a ``downsample`` or their own stochastic depth.
    rate : float
        Probability that the last block is skipped for a row, in [0, 1). Kept outputs
        are scaled up to preserve the mean.
    rule : {"linear", "efficientnet"}, default="linear"
        "linear": the first block counts as 1, so block i of N has ``rate * i / N``.
        "efficientnet": it counts as 0, as in the released code of EfficientNet, so the
        last has ``rate * (N - 1) / N``.

    Returns
    -------
    hooks : list
        Their ``remove()`` undoes it.

    References
    ----------
    .. [1] G. Huang et al., "Deep networks with stochastic depth", ECCV 2016.
    """
    check_number(0, 1, rate=rate)
    check_option(("linear", "efficientnet"), rule=rule)
    first = int(rule == "linear")
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
        branch.register_forward_hook(_DropBranch(rate * (i / len(branches))))
        for i, branch in enumerate(branches, first)
        if rate * i > 0
    ]


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
            f"backbone={name!r} needs images, but X holds vectors of length "
            f"{shape[0]}: "
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
            f"backbone={name!r} has one input size and its own weights: fit "
            f"sklabel.embedding.PretrainedTransformer({name!r}), and use it as the "
            "backbone."
        )
    return _torchvision(name, shape)


def _checked_name(name, own=()):
    """Return the library of a network, and its name there."""
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

    ``activate_before_residual``: the shortcut starts from the activated input, as in
    the first block of the network.
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
    """Remove the classification head of a torchvision network."""
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


class _WrongOutput(TypeError):
    """A network returns something else than vectors or maps."""


def _flat(h):
    """Return vectors (B, D) of the output of a network."""
    if not isinstance(h, torch.Tensor) or h.ndim < 2:
        found = f"a {type(h).__name__}"
        if isinstance(h, torch.Tensor):
            found = f"a tensor of shape {tuple(h.shape)}"
        raise _WrongOutput(f"it returns {found}")
    return h.mean((2, 3)) if h.ndim == 4 else h.flatten(1)


@torch.no_grad()
def features_out(encoder, sample_shape):
    """Return how many features an encoder gives for samples of one shape.

    Parameters
    ----------
    encoder : Encoder
        It is asked in evaluation mode, and returned to the mode that it was in.
    sample_shape : tuple of int

    Returns
    -------
    n_features : int
    """
    training = encoder.training
    n_features = encoder.eval()(torch.zeros(2, *sample_shape)).shape[1]
    encoder.train(training)
    return n_features
