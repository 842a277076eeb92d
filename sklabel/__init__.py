"""Label many images from almost no labels, as scikit-learn estimators over torch."""

__version__ = "0.1.0"

from . import classification, clustering, datasets, embedding, metrics, model_selection
from . import selection
from ._base import CollapseWarning
from ._persistence import load

__all__ = [
    "CollapseWarning",
    "classification",
    "clustering",
    "datasets",
    "embedding",
    "load",
    "metrics",
    "model_selection",
    "selection",
]
