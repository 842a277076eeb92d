"""Parts of networks that methods share, and the base of the methods."""

from .._core.processes import gathered, own_part
from .averages import (
    AveragedClassifier,
    Snapshot,
    cosine_decay,
    ema_update_,
    frozen_copy,
    linear_classifier,
    mean_decay,
    probe_policy_,
    ramped_decay,
)
from .batchnorm import SplitBatchNorm, deinterleave, interleave, split_batchnorm_
from .heads import (
    LinearHeaded,
    MultiHead,
    NormLinear,
    ProjectionNet,
    Prototypes,
    ScaleBatchNorm1d,
    filled_,
    mlp,
)
from .memory import Queue, fitting_queue_size
from .method import Method
from .pseudo_labels import (
    ClassThresholds,
    Debiasing,
    DistributionAlignment,
    EveryRow,
    FixedThreshold,
    FreeThresholds,
    LowEnergy,
    NoAlignment,
    PredictedAlignment,
    PredictedClasses,
    RelativeThreshold,
    SoftWeights,
    mixing_weights,
)

__all__ = [
    # method
    "Method",
    # heads
    "ScaleBatchNorm1d",
    "mlp",
    "LinearHeaded",
    "ProjectionNet",
    "filled_",
    "MultiHead",
    "Prototypes",
    "NormLinear",
    # memory
    "Queue",
    "fitting_queue_size",
    # batchnorm
    "SplitBatchNorm",
    "split_batchnorm_",
    "interleave",
    "deinterleave",
    # processes
    "gathered",
    "own_part",
    # pseudo-labels
    "NoAlignment",
    "DistributionAlignment",
    "PredictedAlignment",
    "Debiasing",
    "FixedThreshold",
    "RelativeThreshold",
    "ClassThresholds",
    "FreeThresholds",
    "SoftWeights",
    "EveryRow",
    "LowEnergy",
    "PredictedClasses",
    "mixing_weights",
    # averages
    "frozen_copy",
    "Snapshot",
    "ema_update_",
    "AveragedClassifier",
    "probe_policy_",
    "linear_classifier",
    "ramped_decay",
    "mean_decay",
    "cosine_decay",
]
