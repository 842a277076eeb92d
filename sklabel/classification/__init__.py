"""Classification: a few labels in, the labels of all other images out."""

from ._fixmatch import FixMatchClassifier
from ._supervised import SupervisedClassifier

__all__ = ["FixMatchClassifier", "SupervisedClassifier"]
