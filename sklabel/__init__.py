"""Label many images from almost no labels, as scikit-learn estimators over torch."""

import importlib

__version__ = "0.1.0"

__all__ = [
    "CollapseWarning",
    "active_learning",
    "alone",
    "augment",
    "backbones",
    "classification",
    "clustering",
    "datasets",
    "embedding",
    "ensemble",
    "inspection",
    "labels",
    "load",
    "losses",
    "metrics",
    "model_selection",
    "modules",
    "neighbors",
    "optim",
    "pretrained",
    "selection",
    "text",
]

_HOME = {
    "CollapseWarning": "._core.health",
    "alone": "._core.processes",
    "load": "._core.persistence",
}


def __getattr__(name):
    # loaded when first used: torch takes seconds, and `sklabel --help` needs none of it
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
