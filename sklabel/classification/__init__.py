"""Classification: from a few labels to the labels of all other images."""

from ._ccl import CCLClassifier
from ._clip import CLIPClassifier
from ._embedding import EmbeddingClassifier
from ._fixmatch import FixMatchClassifier
from ._mixmatch import MixMatchClassifier
from ._noisy_student import NoisyStudentClassifier
from ._remixmatch import ReMixMatchClassifier
from ._simclrv2 import SimCLRv2Classifier
from ._supervised import SupervisedClassifier

__all__ = [
    "CCLClassifier",
    "CLIPClassifier",
    "EmbeddingClassifier",
    "FixMatchClassifier",
    "MixMatchClassifier",
    "ReMixMatchClassifier",
    "NoisyStudentClassifier",
    "SimCLRv2Classifier",
    "SupervisedClassifier",
]
