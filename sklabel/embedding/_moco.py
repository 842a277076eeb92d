"""MoCo: momentum contrast, versions 1 and 2 (He et al., 2020; Chen et al., 2020)."""

from typing import Literal

import torch
from torch import nn

from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    Augment,
    BelowOne,
    Count,
    LearningRateScaling,
    NonNegative,
    Positive,
)
from .._core.processes import gathered
from .._core.roles.embedding import EmbeddingRole
from ..augment import Contrastive, is_small
from ..losses import info_nce, unit_rows
from ..modules import (
    ProjectionNet,
    Queue,
    ema_update_,
    fitting_queue_size,
    frozen_copy,
    mlp,
    split_batchnorm_,
)


class _MoCo(ProjectionNet):
    _: KW_ONLY
    augment: nn.Module
    queue: Queue
    temperature: float
    symmetric: bool
    decay: float

    def __post_init__(self):
        self.average = frozen_copy(self.parts())
        self.keys = None  # of the batch, until the step is done

    def loss(self, x, y):
        x1, x2 = self.augment(x), self.augment(x)
        loss, keys = self.contrast(x1, x2)
        if self.symmetric:
            # both against the old queue: the partner must not be among the negatives
            other_loss, other_keys = self.contrast(x2, x1)
            loss, keys = loss + other_loss, torch.cat([other_keys, keys])
        if self.training:
            # of all parts of the batch, where it is computed in parts
            self.keys = keys if self.keys is None else torch.cat([self.keys, keys])
        return loss

    def contrast(self, x_query, x_key):
        q = unit_rows(self.projected(x_query))  # (B, D)
        with torch.no_grad():
            # other parts of the batch for the keys' BatchNorm than for the queries'
            order = torch.randperm(len(x_key), device=x_key.device)
            k = unit_rows(self.average(x_key[order]))[order.argsort()]
        return info_nce(q, k, self.queue.rows, self.temperature), gathered(k)

    def after_step(self):
        self.queue.push_(self.keys)
        self.keys = None
        # the average's own BatchNorm statistics come from the keys
        ema_update_(self.average, self.parts(), self.decay, copy_buffers=False)


def _views(version, sample_shape):
    """Return the version's views, without blur for CIFAR."""
    if version == "v1":
        return Contrastive(crop=(0.2, 1.0), jitter=(0.4,) * 4, jitter_probability=1.0)
    jitter = (0.4, 0.4, 0.4, 0.1)
    if is_small(sample_shape):
        return Contrastive(jitter=jitter)
    return Contrastive(crop=(0.2, 1.0), jitter=jitter, blur=0.5)


class MoCoTransformer(EmbeddingRole, Learner):
    """Embed images with a network that identifies an image's key in a queue of keys.

    Two views of an image are encoded, one by the network (the query) and one by a slow
    moving average of it (the key). The query must identify its key among a queue of
    keys from earlier batches, which gives many negatives at a small batch size. The
    embedding is the features before the head. Read more in the :ref:`User Guide
    <moco>`.

    Parameters
    ----------
    temperature : float
        Temperature of the contrastive loss, > 0. Paper: tau; 0.07 in version 1 and 0.2
        in version 2 on ImageNet, 0.1 on CIFAR.
    version : {"v1", "v2"}
        "v1": a linear head, and views that always change colors; "v2": a head of two
        layers and the views of the second paper.
    queue_size : int or "auto"
        Keys in the queue. Paper: K; 65536 on ImageNet, 4096 on CIFAR. "auto": a tenth
        of the rows of X, at least ``batch_size`` and at most 4096, because old keys
        come from an outdated network.
    ema_decay : float
        Decay of the averaged weights, in [0, 1). Paper: m; 0.999 on ImageNet.
    symmetric : bool
        Whether each view is the query once, at twice the cost, as in the authors'
        setting for CIFAR; the papers have False.
    bn_splits : int
        Number of parts of a batch with separate BatchNorm statistics, as on several
        devices. Shared statistics reveal which images are in the same batch. 1: no
        split.
    projection_hidden : int or None
        Hidden width of the head of version 2; None: that of the backbone.
    augment : "auto", nn.Module or None
        Random views; "auto": :class:`sklabel.augment.Contrastive` with the version's
        setting for images, :class:`sklabel.augment.VectorNoise` for vectors. Turn off
        flips for digits: ``Contrastive(flip=0)``.
    max_epochs
        Published: 200 on ImageNet, 800 on CIFAR-10.
    lr
        Published: 0.03 with "sgd", 0.06 on CIFAR-10.
    warmup_epochs
        Published: none.

    Attributes
    ----------
    queue_size_ : int
        Keys in the queue.

    See Also
    --------
    SimCLRTransformer : Uses negatives from the same batch, no queue.
    BYOLTransformer : Uses no negatives.
    sklabel.selection.USLSelector : Choose the images worth a label from the embedding.

    Notes
    -----
    The symmetric loss is the sum of both directions. Differences from the papers, for
    small data and short trainings: AdamW at 1e-3 with a cosine schedule, a short queue,
    and a faster average; views of version 1 are turned gray after the color changes,
    not before. The papers' setting for ImageNet: ``backbone="resnet50",
    optimizer="sgd", lr=0.03, warmup_epochs=0, max_epochs=200, queue_size=65536,
    ema_decay=0.999, symmetric=False``, with ``version="v1", schedule="step",
    temperature=0.07`` or ``version="v2", temperature=0.2``. The authors' setting for
    CIFAR-10: ``backbone="resnet18", optimizer="sgd", lr=0.06, weight_decay=5e-4,
    batch_size=512, warmup_epochs=0, max_epochs=800, queue_size=4096, version="v1",
    augment=Contrastive(jitter=(0.4, 0.4, 0.4, 0.1))``, with
    :class:`sklabel.augment.Contrastive`.

    References
    ----------
    .. [1] K. He, H. Fan, Y. Wu, S. Xie, R. Girshick, "Momentum contrast for
       unsupervised visual representation learning", CVPR 2020; algorithm 1.
    .. [2] X. Chen, H. Fan, R. Girshick, K. He, "Improved baselines with momentum
       contrastive learning", 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.embedding import MoCoTransformer
    >>> X = load_digits().images[:100]
    >>> embedder = MoCoTransformer(max_epochs=2, random_state=0).fit(X)
    >>> embedder.transform(X).shape
    (100, 128)
    """

    temperature: Positive = 0.1
    _: KW_ONLY
    version: Literal["v1", "v2"] = "v2"
    queue_size: Count | Literal["auto"] = "auto"
    ema_decay: BelowOne = 0.99
    symmetric: bool = True
    bn_splits: Count = 8
    projection_size: Count = 128
    projection_hidden: Count | None = None
    output: Literal["backbone", "projection"] = "backbone"
    augment: Augment = "auto"
    lr_scaling: LearningRateScaling = None
    final_lr: NonNegative = 0.0
    weight_decay: NonNegative = 1e-4
    warmup_epochs: NonNegative = 1

    remedy = "lower lr={lr} or temperature={temperature}"

    def _train(self, samples):
        if self._continued is None or self.queue_size != "auto":
            self.queue_size_ = fitting_queue_size(
                self.queue_size, samples.n_trained, self.batch_size
            )
        super()._train(samples)

    def _build_module(self, mean, std):
        backbone = self._build_backbone(mean, std)
        project = mlp(
            backbone.n_features_out,
            self.projection_hidden or backbone.n_features_out,
            self.projection_size,
            n_layers=1 if self.version == "v1" else 2,
            norm=False,
            last_norm=None,
        )
        return _MoCo(
            split_batchnorm_(backbone, self.bn_splits),
            project,
            self.projection_size,
            augment=self._build_augment(
                self.augment, _views(self.version, self.sample_shape_), mean, std
            ),
            queue=Queue(self.queue_size_, self.projection_size),
            temperature=self.temperature,
            symmetric=self.symmetric,
            decay=self.ema_decay,
            output=self.output,
        )
