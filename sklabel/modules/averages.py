"""Copies of networks: averaged weights, and the best weights so far."""

import copy
import math

import torch
from torch import nn
from torch.nn.functional import one_hot

from .._core.checks import check_number
from .._core.freezing import lock_
from .._core.processes import gathered
from .heads import LinearHeaded


def frozen_copy(module):
    """Return a copy of a module whose parameters need no gradient.

    Parameters
    ----------
    module : nn.Module

    Returns
    -------
    copy : nn.Module
    """
    return lock_(copy.deepcopy(module))


class Snapshot(nn.Module):
    """A copy of modules at their lowest score so far.

    It is a module itself, so checkpoints of the module that contains it include it.

    Parameters
    ----------
    *parts : nn.Module
        Modules to copy.

    Attributes
    ----------
    parts : nn.ModuleList
        The copies, frozen.
    score : Tensor of shape ()
        Lowest score so far; inf at the start.
    """

    def __init__(self, *parts):
        super().__init__()
        self.parts = lock_(copy.deepcopy(nn.ModuleList(parts)))
        self.register_buffer("score", torch.tensor(float("inf")))

    def keep_if_better(self, score, *parts):
        """Copy these parts if their score is lower; return whether it is.

        Parameters
        ----------
        score : float or Tensor of shape ()
        *parts : nn.Module
            As given at the start.

        Returns
        -------
        kept : bool
        """
        if score >= self.score:
            return False
        self.score.fill_(float(score))
        for copied, part in zip(self.parts, parts, strict=True):
            copied.load_state_dict(part.state_dict())
        return True

    def restore_(self, *parts):
        """Restore the kept state of these parts, if there is one.

        Parameters
        ----------
        *parts : nn.Module
            As given at the start.
        """
        if self.score < float("inf"):
            for copied, part in zip(self.parts, parts, strict=True):
                part.load_state_dict(copied.state_dict())


@torch.no_grad()
def ema_update_(
    target_module, source_module, decay, copy_buffers=True, average_buffers=False
):
    """Move averaged weights toward the current ones, in place.

    ``target = decay * target + (1 - decay) * source`` for parameters.

    Parameters
    ----------
    target_module : nn.Module
        The average; changed in place.
    source_module : nn.Module
        Module of the same structure.
    decay : float
        In [0, 1]; 0 copies.
    copy_buffers : bool, default=True
        Whether buffers, such as the running statistics of BatchNorm, are copied. False
        if the target normalizes its own batches (MoCo, BYOL).
    average_buffers : bool, default=False
        Whether float buffers are averaged like parameters and other buffers copied
        (EMAN); overrides ``copy_buffers``.

    Raises
    ------
    ValueError
        If the modules do not have the same parameters and buffers.

    References
    ----------
    .. [1] Z. Cai et al., "Exponential moving average normalization for self-supervised
       and semi-supervised learning", CVPR 2021; equations 6 to 8.
    """
    check_number(0, 1, decay=decay)
    targets, sources = (list(m.parameters()) for m in (target_module, source_module))
    copies, originals = (list(m.buffers()) for m in (target_module, source_module))
    shapes, wanted = (
        [x.shape for x in tensors]
        for tensors in (targets + copies, sources + originals)
    )
    if shapes != wanted or len(targets) != len(sources):
        raise ValueError(
            f"{type(target_module).__name__} is not a copy of "
            f"{type(source_module).__name__}: parameters or buffers differ in shape."
        )
    if targets:
        torch._foreach_lerp_(targets, sources, 1 - decay)
    if copies and average_buffers:
        for average, value in zip(copies, originals, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)
    elif copies and copy_buffers:
        torch._foreach_copy_(copies, originals)


class AveragedClassifier(LinearHeaded):
    """A classifier whose averaged weights make the predictions.

    ``forward`` returns probabilities ``(B, K)``; ``after_step`` updates the average.

    Parameters
    ----------
    online : nn.Sequential
        Encoder first; maps ``(B, ...)`` to logits ``(B, K)``.
    decay : float
        Decay of the average, in [0, 1).
    ramp : bool, default=True
        Whether the decay grows as (1 + t) / (10 + t) up to ``decay``.
    average : nn.Sequential or None, default=None
        Network of the same structure whose parameters need no gradient; None: a copy.
    average_buffers : bool, default=False
        Whether running statistics are averaged too; False: copied. See `ema_update_`.
    """

    online: nn.Module
    decay: float
    ramp: bool = True
    average: nn.Module | None = None
    average_buffers: bool = False

    frozen = ("average",)
    encoder_parts = ("online.0",)
    head_parts = ("online.1", "average.1")

    def __post_init__(self):
        if self.average is None:
            self.average = frozen_copy(self.online)
        self.n_steps = 0

    @property
    def backbone(self):
        """Encoder of the average."""
        return self.average[0]

    def forward(self, x):
        return self.average(x).float().softmax(1)  # (B, K)

    def after_step(self):
        """Update the average after a step."""
        self.n_steps += 1
        decay = ramped_decay(self.n_steps, self.decay) if self.ramp else self.decay
        ema_update_(
            self.average, self.online, decay, average_buffers=self.average_buffers
        )

    def get_extra_state(self):
        """Return the number of steps for a checkpoint."""
        return torch.tensor(self.n_steps)

    def set_extra_state(self, state):
        """Set the number of steps from a checkpoint."""
        self.n_steps = int(state)


@torch.no_grad()
def probe_policy_(policy, classifier, x, labels):
    """Update the strength of a policy on labeled rows: CTAugment's probe.

    Parameters
    ----------
    policy : CTAugment
        Changed.
    classifier : nn.Module
        Maps samples to logits ``(B, K)``.
    x : Tensor of shape (B, ...)
    labels : Tensor of int of shape (B,)
    """
    views, draw = policy.probe(x)
    p = classifier(views).float().softmax(1)
    distance = (p - one_hot(labels, p.shape[1])).abs().sum(1)
    policy.update(gathered(draw), gathered(1 - 0.5 * distance))


def linear_classifier(backbone, n_classes):
    """Add a linear layer to an encoder, with FixMatch's initial weights.

    Parameters
    ----------
    backbone : nn.Module
        With ``n_features_out``.
    n_classes : int

    Returns
    -------
    classifier : nn.Sequential
        Maps samples to logits ``(B, n_classes)``. Initial weights are Glorot's, biases
        0.
    """
    head = nn.Linear(backbone.n_features_out, n_classes)
    nn.init.xavier_normal_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(backbone, head)


def ramped_decay(step, decay):
    """Decay of a weight average that grows as ``(1 + step) / (10 + step)``.

    Parameters
    ----------
    step : int
        Optimizer steps done, including the one before the update: 1 at the first.
    decay : float
        Upper limit, in [0, 1).

    Returns
    -------
    decay : float
    """
    check_number(0, 1, decay=decay)
    return min(decay, (1 + step) / (10 + step))


def mean_decay(step, decay):
    """Decay of a weight average that starts as the mean of all weights so far.

    Parameters
    ----------
    step : int
        Optimizer steps done, including the one before the update: 1 at the first.
    decay : float
        Upper limit of ``1 - 1 / (step + 1)``, in [0, 1).

    Returns
    -------
    decay : float
    """
    check_number(0, 1, decay=decay)
    return min(decay, 1 - 1 / (step + 1))


def cosine_decay(step, decay, total_steps):
    """Decay of a weight average that rises to 1 over the training, by half a cosine.

    Parameters
    ----------
    step : int
        Optimizer steps done before the current one: 0 at the first.
    decay : float
        Decay at the first step, in [0, 1).
    total_steps : int
        Step at which the decay is 1, >= 1.

    Returns
    -------
    decay : float
    """
    check_number(0, 1, decay=decay)
    check_number(1, total_steps=total_steps)
    return 1 - (1 - decay) * (1 + math.cos(math.pi * min(1, step / total_steps))) / 2
