"""Inspection: pictures of results, and images and labels that look wrong."""

from ._asking import Labeling, label
from ._displays import ClusterDisplay, SelectionDisplay
from ._duplicates import Duplicates, find_duplicates
from ._images import ImageMeasures, PoorImages, find_poor_images, measure_images
from ._labels import SuspiciousLabels, suspicious_labels

__all__ = [
    "ClusterDisplay",
    "Duplicates",
    "ImageMeasures",
    "Labeling",
    "PoorImages",
    "SelectionDisplay",
    "SuspiciousLabels",
    "find_duplicates",
    "find_poor_images",
    "label",
    "measure_images",
    "suspicious_labels",
]
