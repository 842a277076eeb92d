"""Selectors: which rows to label next."""

from ._random import RandomSelector, StratifiedSelector
from ._usl import USLSelector

__all__ = ["RandomSelector", "StratifiedSelector", "USLSelector"]
