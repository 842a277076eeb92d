"""Losses as functions of tensors, one file for each family of methods."""

from ._precision import unit_rows
from .clustering import (
    contrastive_clustering,
    entropy,
    iic_loss,
    iic_segmentation_loss,
    mean_entropy,
    scan_consistency,
    scan_head_scores,
    scan_loss,
    sharpened_targets,
    student_assignment,
    target_divergence,
)
from .contrastive import (
    clip_loss,
    group_discrimination,
    info_nce,
    lloyd_groups,
    normalized_mse,
    nt_xent,
    sinkhorn,
    swapped_prediction,
)
from .pseudo_labels import (
    confidence_cross_entropy,
    distillation,
    guessed_labels,
    mixmatch_losses,
    mixup,
    noisy_student_loss,
    pseudo_label,
    pseudo_targets,
    self_adaptive_fairness,
    sharpen,
)
from .selection import (
    learning_loss,
    temporal_consistency,
    uslt_global_loss,
    uslt_local_loss,
)

__all__ = [
    # contrastive
    "nt_xent",
    "info_nce",
    "normalized_mse",
    "sinkhorn",
    "swapped_prediction",
    "lloyd_groups",
    "group_discrimination",
    "clip_loss",
    "unit_rows",
    # clustering
    "scan_loss",
    "scan_consistency",
    "scan_head_scores",
    "iic_loss",
    "iic_segmentation_loss",
    "student_assignment",
    "sharpened_targets",
    "target_divergence",
    "contrastive_clustering",
    "entropy",
    "mean_entropy",
    # pseudo-labels
    "pseudo_label",
    "pseudo_targets",
    "self_adaptive_fairness",
    "confidence_cross_entropy",
    "sharpen",
    "guessed_labels",
    "mixup",
    "mixmatch_losses",
    "noisy_student_loss",
    "distillation",
    # selection
    "uslt_local_loss",
    "uslt_global_loss",
    "learning_loss",
    "temporal_consistency",
]
