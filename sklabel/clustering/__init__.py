"""Clustering: images into groups without labels."""

from ._dcec import DCECClusterer
from ._deepcluster import DeepClusterer
from ._iic import IICClusterer
from ._iic_segmentation import IICSegmenter
from ._scan import SCANClusterer
from ._turtle import TURTLEClusterer

__all__ = [
    "DCECClusterer",
    "DeepClusterer",
    "IICClusterer",
    "IICSegmenter",
    "SCANClusterer",
    "TURTLEClusterer",
]
