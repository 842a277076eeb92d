"""Classification: a few labels in, the labels of all other images out."""

from ._fixmatch import FixMatchClassifier

__all__ = ["FixMatchClassifier"]
