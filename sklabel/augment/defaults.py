"""The policy that estimators use unless told otherwise."""

import torch

from .contrastive import Contrastive
from .ctaugment import CTAugment
from .randaugment import RandAugment, scan_strong
from .vectors import VectorNoise
from .weak import Weak

# What the methods' authors change in `Contrastive`, for images of less than 64 pixels and
# for larger ones. Blur is left out of the former, as in all recipes for CIFAR.
_MOCO = {"crop": (0.2, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1), "blur": 0.5}
_MOCO_V1 = {"crop": (0.2, 1.0), "jitter": (0.4,) * 4, "jitter_probability": 1.0}
_BYOL = {"jitter": (0.4, 0.4, 0.2, 0.1)}
# the public code cuts out 20 of 32 pixels for CIFAR, 40 % of the area
_IIC = {
    "crop": (0.4, 1.0),
    "jitter": (0.4, 0.4, 0.4, 0.125),
    "jitter_probability": 1.0,
    "grayscale": 0.0,
}
VIEWS = {
    "contrastive": ({}, {"jitter": 1.0, "blur": 0.5}),
    "moco_v1": (_MOCO_V1, _MOCO_V1),
    "moco_v2": ({**_MOCO, "crop": (0.08, 1.0), "blur": 0.0}, _MOCO),
    "byol_1": (_BYOL, {**_BYOL, "blur": 1.0}),
    "byol_2": ({**_BYOL, "solarize": 0.2}, {**_BYOL, "blur": 0.1, "solarize": 0.2}),
    "swav": ({"crop": (0.14, 1.0)}, {"crop": (0.14, 1.0), "jitter": 1.0, "blur": 0.5}),
    "swav_small": (
        {"crop": (0.05, 0.14)},
        {"crop": (0.05, 0.14), "jitter": 1.0, "blur": 0.5},
    ),
    "cld": ({**_MOCO, "blur": 0.0}, _MOCO),
    "iic": (_IIC, _IIC),
}


def build_augment(kind, sample_shape, center=None, scale=None):
    """Return the policy that estimators use unless told otherwise.

    Parameters
    ----------
    kind : str
        "weak", "strong", "ctaugment", "scan", "contrastive" (SimCLR's views),
        "moco_v1", "moco_v2", "byol_1" and "byol_2" (its first and second view), "swav",
        "swav_small" (its small crops), "cld" or "iic".
    sample_shape : tuple of int
        ``(D,)`` of vectors or ``(C, H, W)`` of images.
    center, scale : Tensor or None, default=None
        Mean and standard deviation of each feature or channel.

    Returns
    -------
    policy : nn.Module
        For vectors :class:`VectorNoise`, with twice the noise where ``kind`` is
        "strong", "ctaugment" or "swav_small".

    Raises
    ------
    ValueError
        For an unknown kind or another number of dimensions.
    """
    kinds = ("weak", "strong", "ctaugment", "scan", *VIEWS)
    if kind not in kinds:
        raise ValueError(f"kind={kind!r} is none of {kinds}.")
    if len(sample_shape) == 1:
        strength = 0.2 if kind in ("strong", "ctaugment", "swav_small") else 0.1
        return VectorNoise(strength, strength, center, scale)
    if len(sample_shape) != 3:
        raise ValueError(f"sample_shape={sample_shape} is neither (D,) nor (C, H, W).")
    if kind == "weak":
        return Weak()
    if kind == "strong":
        return RandAugment()
    if kind == "ctaugment":
        return CTAugment()
    if kind == "scan":
        if center is None:
            return scan_strong()
        return scan_strong(fill=tuple(torch.as_tensor(center).flatten().tolist()))
    small = min(sample_shape[1:]) < 64
    settings = VIEWS[kind][0 if small else 1]
    if kind == "swav_small":
        size = tuple(max(1, round(side * 3 / 7)) for side in sample_shape[1:])
        settings = {**settings, "size": size}
    return Contrastive(**settings)
