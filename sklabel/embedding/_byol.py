"""BYOL: bootstrap your own latent (Grill et al., 2020)."""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import nn

from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    BelowOne,
    Count,
    LearningRateScaling,
    NonNegative,
)
from .._core.roles.embedding import EmbeddingRole
from ..augment import Contrastive, is_small
from ..losses import normalized_mse
from ..modules import ProjectionNet, cosine_decay, ema_update_, frozen_copy, mlp


class _BYOL(ProjectionNet):
    _: KW_ONLY
    predict: nn.Module
    augment1: nn.Module
    augment2: nn.Module
    decay: float
    ramp: bool

    policies: ClassVar[tuple[str, ...]] = ("augment1", "augment2")

    def __post_init__(self):
        self.average = frozen_copy(self.parts())

    def before_epoch(self, net, sampler):
        self.step, self.total_steps = net.step_, net.total_steps_

    def loss(self, x, y):
        # a forward for each view: BatchNorm must not see both together
        x1, x2 = self.augment1(x), self.augment2(x)
        p1, p2 = (self.predict(self.projected(view)) for view in (x1, x2))
        with torch.no_grad():
            t1, t2 = self.average(x1), self.average(x2)
        return normalized_mse(p1, t2) + normalized_mse(p2, t1)

    def after_step(self):
        decay = self.decay
        if self.ramp:
            decay = cosine_decay(self.step, decay, self.total_steps)
        self.step += 1
        # the average's own BatchNorm statistics come from its own forwards
        ema_update_(self.average, self.parts(), decay, copy_buffers=False)


def _views(sample_shape):
    """Return the two views of the paper, without blur for small images."""
    blurs = (0.0, 0.0) if is_small(sample_shape) else (1.0, 0.1)
    return [
        Contrastive(jitter=(0.4, 0.4, 0.2, 0.1), blur=blur, solarize=solarize)
        for blur, solarize in zip(blurs, (0.0, 0.2), strict=True)
    ]


class BYOLTransformer(EmbeddingRole, Learner):
    """Embed images with a network that predicts its average's output for another view.

    Two views of an image pass through the network and through a slow moving average of
    it. From the network's output for one view, a small predictor predicts the average's
    output for the other view. There are no negative pairs. The embedding is the
    features before the head. Read more in the :ref:`User Guide <byol>`.

    Parameters
    ----------
    ema_decay : float
        Decay of the averaged weights at the start, in [0, 1). Paper: tau; 0.97 for 40
        epochs, 0.99 for 100 and 300, 0.996 for 1000.
    ema_ramp : bool
        Whether the decay grows to 1 along half a cosine, as in the paper.
    projection_size : int
        Output width of the projection head and of the predictor.
    projection_hidden : int
        Hidden width of both. Published: 4096; 1024 is usual for CIFAR.
    augment : "auto", nn.Module, pair of nn.Module or None
        Random views; a pair: one for each view. "auto": for images
        :class:`sklabel.augment.Contrastive` with the paper's two settings, for vectors
        :class:`sklabel.augment.VectorNoise`. Turn off flips for digits:
        ``Contrastive(flip=0)``.
    max_epochs
        Published: 1000.
    lr
        Published: 0.2 with "lars_outer" and "linear" scaling.
    warmup_epochs
        Published: 10.

    See Also
    --------
    SimCLRTransformer, MoCoTransformer : Use negative pairs.
    sklabel.selection.USLSelector : Choose the images worth a label from the embedding.

    Notes
    -----
    Without BatchNorm or another normalization in head or backbone, BYOL collapses. The
    loss is that of the paper, 0 to 8; a loss below 0.01 after a few epochs is a
    collapse. Differences from the paper, for small data and batches: AdamW at 1e-3,
    narrower heads, no blur below 64 pixels, the average starts with the network's own
    weights, and brightness changes by a factor, not by an added offset as in the
    authors' code. The paper's setting: ``backbone="resnet50", optimizer="lars_outer",
    lr=0.2, lr_scaling="linear", weight_decay=1.5e-6, batch_size=4096, warmup_epochs=10,
    max_epochs=1000, ema_decay=0.996, projection_hidden=4096``. These learning rates are
    for LARS only.

    References
    ----------
    .. [1] J.-B. Grill et al., "Bootstrap your own latent: a new approach to
       self-supervised learning", NeurIPS 2020; equations 2 and 3.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.embedding import BYOLTransformer
    >>> X = load_digits().images[:100]
    >>> embedder = BYOLTransformer(max_epochs=2, random_state=0).fit(X)
    >>> embedder.transform(X).shape
    (100, 128)
    """

    ema_decay: BelowOne = 0.97
    _: KW_ONLY
    ema_ramp: bool = True
    projection_size: Count = 256
    projection_hidden: Count = 1024
    output: Literal["backbone", "projection"] = "backbone"
    augment: Literal["auto"] | nn.Module | Callable | tuple | list | None = "auto"
    lr_scaling: LearningRateScaling = None
    final_lr: NonNegative = 0.0
    weight_decay: NonNegative = 1e-4
    warmup_epochs: NonNegative = 1

    remedy = "lower lr={lr}, or train longer"

    def _build_module(self, mean, std):
        backbone = self._build_backbone(mean, std)
        size, hidden = self.projection_size, self.projection_hidden
        given = self.augment
        pair = given if isinstance(given, (tuple, list)) else (given, given)
        if len(pair) != 2:
            raise ValueError(f"augment={given!r} must be one policy or a pair.")
        augment1, augment2 = (
            self._build_augment(augment, default, mean, std)
            for augment, default in zip(pair, _views(self.sample_shape_), strict=True)
        )
        return _BYOL(
            backbone,
            # the paper's bias before BatchNorm would have no effect
            mlp(backbone.n_features_out, hidden, size, last_norm=None, bias=False),
            size,
            predict=mlp(size, hidden, size, last_norm=None, bias=False),
            augment1=augment1,
            augment2=augment2,
            decay=self.ema_decay,
            ramp=self.ema_ramp,
            output=self.output,
        )
