"""Networks that their user brings: what they see, and a vector of what they say."""

import copy
import math
from contextlib import nullcontext

import torch
from torch import nn

from ..backbones import Encoder
from ..losses import unit_rows
from ..pretrained import Frame
from .freezing import keep_frozen_
from .inputs import size_pair
from .weight_files import load_weights_, reason_of

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIDE = 224
_OWN_KEYS = ("mean", "std", "size", "resize", "mode", "interpolation", "fill")
_OF_TRANSFORMERS = {"image_mean", "do_resize", "do_rescale", "do_normalize"}
_HALF = (torch.float16, torch.bfloat16)
# numbers of Pillow; its other filters are nearer to bicubic than to bilinear
_RESAMPLING = {0: "nearest", 2: "bilinear"}


class Vectors(nn.Module):
    """A network of others that gives one vector for each image.

    Parameters
    ----------
    net : nn.Module
        Gives vectors, maps, tokens, or an output of transformers with some of these.
        Its weights may be of half precision.
    pooling : {"auto", "avg", "max", "token"}, default="auto"
    turned : bool, default=False
        Whether it sees blue, green and red, in this order.
    """

    def __init__(self, net, pooling="auto", turned=False):
        super().__init__()
        self.net, self.pooling, self.turned = net, pooling, turned

    def forward(self, x):
        kinds = (p.dtype for p in self.net.parameters() if p.is_floating_point())
        kind = next(kinds, x.dtype)
        plain = torch.autocast(x.device.type, enabled=False)
        with plain if kind in _HALF else nullcontext():
            x = x.flip(1) if self.turned else x
            return self._vectors(_call(self.net, x.to(kind))).float()

    def _vectors(self, found):
        """Return the vectors (B, D) in what a network gives."""
        if isinstance(found, (tuple, list)):
            found = found[0] if found else None
        if not isinstance(found, torch.Tensor):
            get = found.get if isinstance(found, dict) else _attribute_of(found)
            states = get("last_hidden_state")
            if self.pooling != "auto":
                found = states
            else:
                pooled = get("image_embeds"), get("pooler_output")
                found = next((p for p in pooled if p is not None), None)
                if found is not None:
                    return found.flatten(1)
                # of a transformer without a head: the class token
                found = states
                if states is not None and states.ndim == 3:
                    return states[:, 0]
        if not isinstance(found, torch.Tensor) or found.ndim not in (2, 3, 4):
            raise ValueError("it returns neither vectors nor maps nor tokens")
        if found.ndim == 2:
            if self.pooling != "auto":
                raise ValueError(f"it gives vectors, without pooling={self.pooling!r}")
            return found
        if self.pooling == "token":
            if found.ndim == 4:
                raise ValueError('it gives maps, without pooling="token"')
            return found[:, 0]
        places = (2, 3) if found.ndim == 4 else 1
        return found.amax(places) if self.pooling == "max" else found.mean(places)


def _attribute_of(found):
    return lambda name: getattr(found, name, None)


def _call(net, x):
    """Return the output of any network for images."""
    for name in ("get_image_features", "encode_image"):  # of CLIP and the like
        if hasattr(net, name):
            return getattr(net, name)(x)
    return net(x)


class SideBySide(nn.Module):
    """Vectors of several encoders, each of length 1, one after the other.

    Parameters
    ----------
    encoders : list of nn.Module
        Each takes the images that all of them share.
    """

    def __init__(self, encoders):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, x):
        return torch.cat([unit_rows(encoder(x)) for encoder in self.encoders], 1)


def side_by_side(encoders, frames):
    """Return one encoder of several, and the frame of the images that it sees.

    Parameters
    ----------
    encoders : list of Encoder
    frames : list of Frame
        Of each encoder. The largest is that of all; the others see its images, resized.

    Returns
    -------
    encoder : Encoder
    frame : Frame
    """
    frame = max(frames, key=lambda frame: math.prod(frame.size))
    parts = []
    for encoder, own in zip(encoders, frames, strict=True):
        if own.size != frame.size:
            resized = Frame(own.size, own.size, "squash", own.interpolation)
            encoder = Encoder(nn.Sequential(resized, encoder), (3, *frame.size))
        parts.append(encoder)
    return Encoder(SideBySide(parts), (3, *frame.size)), frame


def in_half(encoder, kind):
    """Give an encoder weights of another precision; its images stay as they are.

    Parameters
    ----------
    encoder : Encoder
        Changed in place.
    kind : {"float32", "bfloat16", "float16"}

    Returns
    -------
    encoder : Encoder
    """
    body = encoder.body if isinstance(encoder.body, Vectors) else Vectors(encoder.body)
    encoder.body = body.to(getattr(torch, kind))
    return encoder


def own_encoder(net, weights, preprocessing, side, pooling):
    """Return an encoder of a network that the user brings, and its frame.

    Parameters
    ----------
    net : nn.Module
        Copied.
    weights : str or Path
        "DEFAULT": its own; else a file.
    preprocessing : "auto", dict or image processor
        See `frame_of`.
    side : int, tuple or None
    pooling : {"auto", "avg", "max", "token"}
    """
    name = type(net).__name__
    if weights is None:
        raise ValueError(
            f"weights=None has no effect on a network of your own ({name}): use "
            '"DEFAULT" for its own weights, or give the path of a file.'
        )
    net = keep_frozen_(copy.deepcopy(net)).eval()
    if weights != "DEFAULT":
        load_weights_(net, weights)
    frame, mean, std, turned = frame_of(preprocessing, side, net)
    try:
        encoder = Encoder(Vectors(net, pooling, turned), (3, *frame.size), mean, std)
    except Exception as error:  # networks of others fail in many ways
        raise ValueError(
            f"backbone={name} cannot turn images of {frame.size[0]}x{frame.size[1]} "
            f"pixels into vectors ({reason_of(error)}): set input_size or "
            "preprocessing, or use another network."
        ) from error
    return encoder, frame


def frame_of(preprocessing, side=None, net=None):
    """Return how images are brought to size and standardized.

    Parameters
    ----------
    preprocessing : "auto", dict or image processor of transformers
        A dict has some of the keys "mean", "std", "size", "resize", "mode",
        "interpolation" and "fill", see `Frame`, or is that of a processor. "auto": what
        the network says of itself, as those of timm and transformers do; else the
        colors of ImageNet and 224 pixels.
    side : int, tuple or None
        Side, or height and width, in place of those.
    net : nn.Module or None

    Returns
    -------
    frame : Frame
    mean, std : Tensor of shape (3, 1, 1)
    turned : bool
        Whether blue comes first.
    """
    if isinstance(preprocessing, str):
        own, turned = _said_by(net), False
    else:
        if not isinstance(preprocessing, dict):
            part = getattr(preprocessing, "image_processor", preprocessing)
            preprocessing = part.to_dict()
        if preprocessing.keys() & _OF_TRANSFORMERS:
            own, turned = _of_processor(preprocessing)
        else:
            own, turned = dict(preprocessing), False
    unknown = [key for key in own if key not in _OWN_KEYS]
    if unknown:
        raise ValueError(
            f"preprocessing has the keys {unknown}, but the keys may be {_OWN_KEYS}."
        )
    mean, std = (
        _three(own.pop(name, usual), name)
        for name, usual in zip(("mean", "std"), _IMAGENET, strict=True)
    )
    if not (std > 0).all():
        raise ValueError("preprocessing has a std that is not above 0.")
    size = size_pair(own.pop("size", _SIDE), "preprocessing size")
    resize = size_pair(own.pop("resize", size), "preprocessing resize")
    if side is not None:
        new = size_pair(side, "input_size")
        resize = tuple(
            max(1, round(r * n / s)) for r, n, s in zip(resize, new, size, strict=True)
        )
        size = new
    return Frame(size, resize, **own), mean, std, turned


def _three(values, name):
    values = torch.as_tensor(values, dtype=torch.float32).flatten()
    if values.numel() not in (1, 3) or not values.isfinite().all():
        raise ValueError(
            f"preprocessing has {name}={values.tolist()}, but it takes one number, or "
            "one for each of red, green and blue."
        )
    return values.expand(3).reshape(3, 1, 1).clone()


def _said_by(net):
    """Return what a network says of its own images; {}: nothing."""
    about = getattr(net, "pretrained_cfg", None)  # of timm
    if isinstance(about, dict) and "input_size" in about:
        size = tuple(about["input_size"][1:])
        mode = {"squash": "squash", "border": "longest"}.get(about.get("crop_mode"))
        filters = ("bilinear", "bicubic")
        interpolation = about.get("interpolation")
        return {
            "mean": about.get("mean", _IMAGENET[0]),
            "std": about.get("std", _IMAGENET[1]),
            "size": size,
            "resize": [math.floor(n / (about.get("crop_pct") or 1)) for n in size],
            "mode": mode or "shortest",
            "interpolation": interpolation if interpolation in filters else "bicubic",
        }
    config = getattr(net, "config", None)  # of transformers
    config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", None)
    return {} if size is None else {"size": size}


def _of_processor(about):
    """Return the values of an image processor of transformers, and if blue is first."""
    about = {name: value for name, value in about.items() if value is not None}
    size = _edges(about.get("size", _SIDE))
    crop = about.get("crop_size") if about.get("do_center_crop") else None
    resize, mode = size.get("resize", (_SIDE, _SIDE)), size["mode"]
    share = about.get("crop_pct")
    if not about.get("do_resize", True):
        mode = "shortest"
        resize = _edges(crop)["resize"] if crop is not None else resize
    if share and mode == "shortest" and crop is None:
        # ConvNeXT's: the middle of small images, and the whole of larger ones
        crop, mode = resize, "shortest" if resize[0] < 384 else "squash"
        if resize[0] < 384:
            resize = tuple(int(n / share) for n in resize)
    size = resize if crop is None else _edges(crop)["resize"]
    # pixels from 0 to 255 times a factor are what is standardized
    factor = 255.0
    if about.get("do_rescale", True):
        factor *= about.get("rescale_factor", 1 / 255)
    mean, std = 0.0, 1.0
    if about.get("do_normalize", "image_mean" in about):
        mean, std = about.get("image_mean", 0.0), about.get("image_std", 1.0)
    own = {
        "mean": torch.as_tensor(mean) / factor,
        "std": torch.as_tensor(std) / factor,
        "size": size,
        "resize": resize,
        "mode": mode,
        "interpolation": _RESAMPLING.get(about.get("resample", 2), "bicubic"),
    }
    return own, bool(about.get("do_flip_channel_order"))


def _edges(size):
    """Return height and width of a size of transformers, and what is kept of them."""
    if hasattr(size, "to_dict"):
        size = size.to_dict()
    if isinstance(size, int):
        size = {"shortest_edge": size}
    elif not isinstance(size, dict):
        size = dict(zip(("height", "width"), size, strict=True))
    if size.get("height"):
        return {"resize": (size["height"], size["width"]), "mode": "squash"}
    for edge, mode in (("shortest_edge", "shortest"), ("longest_edge", "longest")):
        if size.get(edge):
            return {"resize": (size[edge],) * 2, "mode": mode}
    raise ValueError(f"preprocessing has a size of {size}, which has no height.")
