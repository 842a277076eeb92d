"""Selectors: which rows to label next."""

from ._badge import BADGESelector
from ._bald import BALDSelector
from ._coreset import CoreSetSelector
from ._mma import MMASelector
from ._random import RandomSelector, StratifiedSelector
from ._uncertainty import UncertaintySelector
from ._usl import USLSelector

__all__ = [
    "BADGESelector",
    "BALDSelector",
    "CoreSetSelector",
    "MMASelector",
    "RandomSelector",
    "StratifiedSelector",
    "USLSelector",
    "UncertaintySelector",
]
