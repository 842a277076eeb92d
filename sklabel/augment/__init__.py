"""Random views of whole batches of images on their device; noise for vectors."""

from .contrastive import Contrastive, color_jitter, gaussian_blur, resized_crop
from .ctaugment import CTAUGMENT, CTAugment, ctaugment_values
from .defaults import build_augment, is_small
from .operations import OPERATIONS, apply_op, sobel
from .randaugment import FIXMATCH, RandAugment, op_values, scan_strong
from .vectors import VectorNoise
from .weak import Weak, shift_flip

__all__ = [
    # policies
    "Weak",
    "Contrastive",
    "RandAugment",
    "CTAugment",
    "VectorNoise",
    "scan_strong",
    "build_augment",
    "is_small",
    # operations
    "shift_flip",
    "resized_crop",
    "color_jitter",
    "gaussian_blur",
    "sobel",
    "apply_op",
    "op_values",
    "ctaugment_values",
    # their names
    "OPERATIONS",
    "FIXMATCH",
    "CTAUGMENT",
]
