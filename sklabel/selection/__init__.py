"""Selectors: which rows to label next."""

from ._badge import BADGESelector
from ._bald import BALDSelector
from ._coreset import CoreSetSelector
from ._dfal import DFALSelector
from ._gcn import CoreGCNSelector, UncertainGCNSelector
from ._herding import MaxHerdingSelector, UHerdingSelector
from ._lada import LADASelector
from ._learning_loss import LearningLossSelector
from ._mma import MMASelector
from ._random import RandomSelector, StratifiedSelector
from ._sraal import SRAALSelector
from ._tod import TODSelector
from ._typiclust import TypiClustSelector
from ._uncertainty import UncertaintySelector
from ._usl import USLSelector
from ._uslt import USLTSelector
from ._vaal import VAALSelector

__all__ = [
    "BADGESelector",
    "BALDSelector",
    "CoreGCNSelector",
    "CoreSetSelector",
    "DFALSelector",
    "LADASelector",
    "LearningLossSelector",
    "MMASelector",
    "MaxHerdingSelector",
    "RandomSelector",
    "SRAALSelector",
    "StratifiedSelector",
    "TODSelector",
    "TypiClustSelector",
    "UHerdingSelector",
    "USLSelector",
    "USLTSelector",
    "UncertainGCNSelector",
    "UncertaintySelector",
    "VAALSelector",
]
