"""Folds, predictions and scorers for partly labeled y, and scorers that need no y."""

from .clusters import clustering_scorer
from .folds import LabeledKFold, LabeledShuffleSplit, LabeledSplit
from .predictions import labeled_cross_val_predict
from .scorers import labeled_accuracy, labeled_scorer

__all__ = [
    "LabeledKFold",
    "LabeledShuffleSplit",
    "LabeledSplit",
    "clustering_scorer",
    "labeled_accuracy",
    "labeled_cross_val_predict",
    "labeled_scorer",
]
