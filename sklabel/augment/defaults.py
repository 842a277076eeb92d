"""The default policies of estimators."""

from .contrastive import Contrastive
from .ctaugment import CTAugment
from .randaugment import RandAugment
from .vectors import VectorNoise
from .weak import Weak


def is_small(sample_shape):
    """Return whether images are small enough for CIFAR's recipes.

    Parameters
    ----------
    sample_shape : tuple of int
        ``(C, H, W)``.

    Returns
    -------
    small : bool
        Whether a side is less than 64 pixels. False for vectors.
    """
    return any(side < 64 for side in sample_shape[1:])


def build_augment(kind, sample_shape, center=None, scale=None):
    """Return a policy of one kind for samples of one shape.

    Parameters
    ----------
    kind : {"weak", "strong", "ctaugment", "contrastive"}
        For images :class:`Weak`, :class:`RandAugment`, :class:`CTAugment` or
        :class:`Contrastive`, the last with SimCLR's strength for their size.
    sample_shape : tuple of int
        ``(D,)`` for vectors or ``(C, H, W)`` for images.
    center, scale : Tensor or None, default=None
        Mean and standard deviation of each feature; for vectors only.

    Returns
    -------
    policy : nn.Module
        For vectors :class:`VectorNoise`, with twice the noise if ``kind`` is "strong"
        or "ctaugment".

    Raises
    ------
    ValueError
        For an unknown kind or another number of dimensions.
    """
    kinds = ("weak", "strong", "ctaugment", "contrastive")
    if kind not in kinds:
        raise ValueError(f"kind={kind!r} is not one of {kinds}.")
    if len(sample_shape) == 1:
        strength = 0.2 if kind in ("strong", "ctaugment") else 0.1
        return VectorNoise(strength, strength, center, scale)
    if len(sample_shape) != 3:
        raise ValueError(f"sample_shape={sample_shape} is neither (D,) nor (C, H, W).")
    if kind == "weak":
        return Weak()
    if kind == "strong":
        return RandAugment()
    if kind == "ctaugment":
        return CTAugment()
    if is_small(sample_shape):
        return Contrastive()
    return Contrastive(jitter=1.0, blur=0.5)
