"""SimCLR: contrastive learning of visual representations (Chen et al., 2020)."""

from typing import Literal

import torch
from torch import nn

from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    Augment,
    Count,
    LearningRateScaling,
    NonNegative,
    Positive,
)
from .._core.processes import gathered
from .._core.roles.embedding import EmbeddingRole
from ..losses import nt_xent
from ..modules import ProjectionNet, mlp


class _SimCLR(ProjectionNet):
    _: KW_ONLY
    augment: nn.Module
    temperature: float
    anchors: str

    def loss(self, x, y):
        # both views in one forward: BatchNorm sees all 2B images
        views = torch.cat([self.augment(x), self.augment(x)])
        z1, z2 = self.projected(views).chunk(2)  # (B, projection_size) each
        z1, z2 = gathered(z1), gathered(z2)
        return nt_xent(z1, z2, self.temperature, anchors=self.anchors)


class SimCLRTransformer(EmbeddingRole, Learner):
    """Embed images with a network that recognizes two random views of the same image.

    Each image of a batch is augmented twice. A small head maps both views to the unit
    sphere, where each view must identify the other among all views of the batch. The
    embedding is the features before the head. Read more in the :ref:`User Guide
    <embedding>`.

    Parameters
    ----------
    temperature : float
        Temperature of the contrastive loss, > 0. Paper: tau; 0.5 for CIFAR, 0.1 for
        ImageNet.
    anchors : {"both", "first"}
        Views that must identify their partner. "first": half the loss, as in SCAN's
        code.
    projection_hidden : int or None
        Hidden width of the projection head; None: that of the backbone.
    projection_layers : int
        Layers of the projection head: 2 in SimCLR, 3 in SimCLRv2.
    projection_norm : bool
        Whether BatchNorm follows each layer of the head. SCAN's code: False.
    augment : "auto", nn.Module or None
        Random views; "auto": :class:`sklabel.augment.Contrastive` for images,
        :class:`sklabel.augment.VectorNoise` for vectors. Turn off flips for digits:
        ``Contrastive(flip=0)``.
    max_epochs
        Published: 1000 on CIFAR-10.
    optimizer
        Published: "lars".
    lr
        Published for CIFAR-10: 1.0 with "lars" and "linear" scaling.
    warmup_epochs
        Published: 10 of 1000.

    See Also
    --------
    sklabel.selection.USLSelector : Choose the images worth a label from the embedding.
    sklabel.classification.FixMatchClassifier : Accepts it as ``backbone=``.

    Notes
    -----
    The loss is that of the official code, the sum over both views, twice equation 1.
    Differences from the paper, for small data and batches: AdamW at 1e-3 and a warm-up
    of one epoch; the head has torch's initial weights, not a standard deviation of
    0.01. The paper's setting for CIFAR-10 is ``optimizer="lars", lr=1.0,
    lr_scaling="linear", batch_size=512, warmup_epochs=10, max_epochs=1000,
    backbone="resnet18"``.

    References
    ----------
    .. [1] T. Chen, S. Kornblith, M. Norouzi, G. Hinton, "A simple framework for
       contrastive learning of visual representations", ICML 2020; equation 1.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.embedding import SimCLRTransformer
    >>> X = load_digits().images[:100]
    >>> embedder = SimCLRTransformer(max_epochs=2, random_state=0).fit(X)
    >>> embedder.transform(X).shape
    (100, 128)
    """

    temperature: Positive = 0.5
    _: KW_ONLY
    anchors: Literal["both", "first"] = "both"
    projection_size: Count = 128
    projection_hidden: Count | None = None
    projection_layers: Count = 2
    projection_norm: bool = True
    output: Literal["backbone", "projection"] = "backbone"
    augment: Augment = "auto"
    lr_scaling: LearningRateScaling = None
    final_lr: NonNegative = 0.0
    weight_decay: NonNegative = 1e-4
    warmup_epochs: NonNegative = 1

    remedy = "lower lr={lr} or temperature={temperature}"

    def _build_module(self, mean, std):
        backbone = self._build_backbone(mean, std)
        project = mlp(
            backbone.n_features_out,
            self.projection_hidden or backbone.n_features_out,
            self.projection_size,
            n_layers=self.projection_layers,
            norm=self.projection_norm,
            last_norm="scale" if self.projection_norm else None,
        )
        return _SimCLR(
            backbone,
            project,
            self.projection_size,
            augment=self._build_augment(self.augment, "contrastive", mean, std),
            temperature=self.temperature,
            anchors=self.anchors,
            output=self.output,
        )
