"""SwAV: swapping assignments between views (Caron et al., 2020)."""

from typing import ClassVar, Literal

import torch
from torch import nn

from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    AtLeastTwo,
    Augment,
    Count,
    CountOrZero,
    LearningRateScaling,
    NonNegative,
    Positive,
)
from .._core.processes import gathered
from .._core.roles.embedding import EmbeddingRole
from ..augment import Contrastive, is_small
from ..backbones import features_out
from ..losses import sinkhorn, swapped_prediction, unit_rows
from ..modules import ProjectionNet, Prototypes, mlp


class _SwAV(ProjectionNet):
    _: KW_ONLY
    augment: nn.Module
    small_augment: nn.Module
    prototypes: Prototypes
    temperature: float
    epsilon: float
    n_iterations: int
    n_small_crops: int
    queue_size: int
    queue_start: int
    frozen_epochs: float
    frozen_steps: int | None = None

    policies: ClassVar[tuple[str, ...]] = ("augment", "small_augment")

    def __post_init__(self):
        # one for each of the two crops that get codes
        rows = torch.zeros(2, self.queue_size, self.projection_size)
        self.register_buffer("queue", rows)
        self.prototypes_frozen, self.queued = False, False
        self.step = self.n_frozen = 0
        self.n_queued = [0, 0]  # the host's count of rows that are not zeros

    def before_epoch(self, net, sampler):
        self.n_frozen = self.frozen_steps
        if self.n_frozen is None:
            n_batches = sampler.n_batches(net.batch_size)
            self.n_frozen = round(self.frozen_epochs * n_batches)
        self.step = net.step_
        self.prototypes_frozen = self.step < self.n_frozen
        epoch = len(net.history) - 1
        self.queued = self.queue_size > 0 and epoch >= self.queue_start
        if self.queued:
            self.n_queued = self.queue.any(-1).sum(-1).tolist()

    def loss(self, x, y):
        # crops of one size in one forward, then all of them through the head
        h = self.backbone(torch.cat([self.augment(x), self.augment(x)]))
        if self.n_small_crops:
            h = torch.cat([h, self.embed_small(x, h)])
        z = unit_rows(self.project(h)).unflatten(0, (-1, len(x)))
        return self.swap(gathered(z, 1))

    def embed_small(self, x, h):
        """Return the features of small crops of x; h are those of the large ones."""
        crops = [self.small_augment(x) for _ in range(self.n_small_crops)]
        try:
            small = self.backbone(torch.cat(crops))
            reason = f"it gives shape {tuple(small.shape)}"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # networks of others fail in many ways
            small, reason = None, " ".join(str(error).split())[:300]
        if small is None or small.shape[1:] != h.shape[1:]:
            shapes = " and ".join(dict.fromkeys(str(tuple(c.shape)) for c in crops))
            raise ValueError(
                f"small_augment returns crops of shape {shapes}, for which the "
                f"backbone gives no vectors of length {h.shape[1]} as for large "
                f"crops ({reason}): return crops of one size that it accepts, or use a "
                "backbone that averages its maps."
            )
        return small

    def swap(self, z):
        """Return the loss of embedded crops z of shape (V, B, D)."""
        # detached prototypes get no gradient at all, so that nothing moves them
        scores = self.prototypes(z, frozen=self.prototypes_frozen)  # (V, B, K)
        codes = [self.assign(i, z[i], scores[i]) for i in range(2)]
        return swapped_prediction(scores, torch.stack(codes), self.temperature)

    @torch.no_grad()
    def assign(self, i, z, scores):
        """Return the codes of assigned crop i, and remember its embeddings."""
        n_rows = len(z)
        if self.queued:
            queue = self.queue[i]
            if self.n_queued[i] >= len(queue):
                scores = torch.cat([self.prototypes(queue), scores])
            if self.training:
                self.queue[i] = torch.cat([z.to(queue), queue])[: len(queue)]
                self.n_queued[i] += n_rows
        return sinkhorn(scores, self.epsilon, self.n_iterations)[-n_rows:]

    def after_step(self):
        self.prototypes.normalize_()
        self.step += 1
        self.prototypes_frozen = self.step < self.n_frozen


def _views(sample_shape):
    """Return the policies of large and small crops, without blur for CIFAR."""
    colors = {} if is_small(sample_shape) else {"jitter": 1.0, "blur": 0.5}
    size = tuple(max(1, round(side * 3 / 7)) for side in sample_shape[1:]) or None
    return (
        Contrastive(crop=(0.14, 1.0), **colors),
        Contrastive(crop=(0.05, 0.14), size=size, **colors),
    )


class SwAVTransformer(EmbeddingRole, Learner):
    """Embed images with a network that predicts the cluster of one view from another.

    Each view is assigned softly to prototypes so that every batch uses all prototypes
    equally. Each view must then predict the assignments of the other views. Small
    crops, which are cheap, can be added to the two large ones. The embedding is the
    features before the head. Read more in the :ref:`User Guide <swav>`.

    Parameters
    ----------
    n_prototypes : int
        Number of prototypes. Published: 3000 on ImageNet, 512 to 3000 on CIFAR; about
        ten times the number of classes.
    temperature : float
        Temperature of the prediction, > 0. Paper: tau.
    epsilon : float
        Softness of the assignment, > 0; lower it to 0.03 if the loss stays at the log
        of the number of prototypes.
    n_iterations : int
        Steps of the Sinkhorn algorithm, which makes the shares equal.
    n_small_crops : int
        Small crops of each image, besides the two large ones. Published: 6 on ImageNet,
        none on CIFAR.
    small_augment : "auto", nn.Module or None
        Policy of the small crops; "auto": :class:`sklabel.augment.Contrastive` with 5
        to 14 % of the area and 3/7 of the side.
    queue_size : int
        Embeddings of earlier batches, per large crop, that are assigned together with
        the batch; for batches that are small compared with the number of prototypes.
        Published: 3840 at a batch size of 256.
    queue_start : int
        Epochs before the queue is used.
    frozen_epochs : float
        Epochs at the start in which the prototypes are frozen, such as 0.5.
    frozen_steps : int or None
        The same in steps, as published: 313 with batches of 4096, 5005 with those of
        256; overrides ``frozen_epochs``.
    projection_hidden : int
        Hidden width of the projection head.
    augment : "auto", nn.Module or None
        Random large views; "auto": :class:`sklabel.augment.Contrastive` with 14 to
        100 % of the area for images, :class:`sklabel.augment.VectorNoise` for vectors.
        Turn off flips for digits: ``Contrastive(flip=0)``.
    max_epochs
        Published: 400 to 800.
    lr
        Published: 0.6 with "larc" (LARS for all parameters alike) and batches of 256.
    final_lr
        Published: ``lr / 1000``.
    warmup_epochs
        Published: none with batches of 256.

    See Also
    --------
    sklabel.clustering.SCANClusterer : If clusters are wanted.
    SimCLRTransformer : Compares views directly.

    Notes
    -----
    Differences from the paper, for small data and batches: AdamW at 1e-3, 512
    prototypes, two crops; the warm-up starts at 0, not at 1/16 of the learning rate.
    The paper's setting for ImageNet at a batch size of 256: ``backbone="resnet50",
    optimizer="larc", lr=0.6, final_lr=0.0006, weight_decay=1e-6, warmup_epochs=0,
    max_epochs=400, n_prototypes=3000, n_small_crops=6, queue_size=3840,
    frozen_steps=5005``; at one of 4096: ``backbone="resnet50", optimizer="larc",
    lr=4.8, final_lr=0.0048, weight_decay=1e-6, batch_size=4096, warmup_epochs=10,
    max_epochs=800, n_prototypes=3000, n_small_crops=6, frozen_steps=313``. Small crops
    need a backbone that accepts several image sizes.

    References
    ----------
    .. [1] M. Caron, I. Misra, J. Mairal, P. Goyal, P. Bojanowski, A. Joulin,
       "Unsupervised learning of visual features by contrasting cluster assignments",
       NeurIPS 2020; equations 1 to 5.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.embedding import SwAVTransformer
    >>> X = load_digits().images[:100]
    >>> embedder = SwAVTransformer(max_epochs=2, random_state=0).fit(X)
    >>> embedder.transform(X).shape
    (100, 128)
    """

    n_prototypes: AtLeastTwo = 512
    _: KW_ONLY
    temperature: Positive = 0.1
    epsilon: Positive = 0.05
    n_iterations: Count = 3
    n_small_crops: CountOrZero = 0
    small_augment: Augment = "auto"
    queue_size: CountOrZero = 0
    queue_start: CountOrZero = 15
    frozen_epochs: NonNegative = 1
    frozen_steps: CountOrZero | None = None
    projection_size: Count = 128
    projection_hidden: Count = 2048
    output: Literal["backbone", "projection"] = "backbone"
    augment: Augment = "auto"
    lr_scaling: LearningRateScaling = None
    final_lr: NonNegative = 0.0
    weight_decay: NonNegative = 1e-4
    warmup_epochs: NonNegative = 1

    remedy = "lower lr={lr} or epsilon={epsilon}, raise frozen_epochs"

    def _build_module(self, mean, std):
        backbone = self._build_backbone(mean, std)
        project = mlp(
            backbone.n_features_out,
            self.projection_hidden,
            self.projection_size,
            last_norm=None,
        )
        large, small = _views(self.sample_shape_)
        if self.n_small_crops and self.small_augment == "auto" and small.size:
            self._check_small_crops(backbone, small.size)
        return _SwAV(
            backbone,
            project,
            self.projection_size,
            augment=self._build_augment(self.augment, large, mean, std),
            small_augment=self._build_augment(
                self.small_augment, small, mean, std, noise=0.2
            ),
            prototypes=Prototypes(self.projection_size, self.n_prototypes),
            temperature=self.temperature,
            epsilon=self.epsilon,
            n_iterations=self.n_iterations,
            n_small_crops=self.n_small_crops,
            queue_size=self.queue_size,
            queue_start=self.queue_start,
            frozen_epochs=self.frozen_epochs,
            frozen_steps=self.frozen_steps,
            output=self.output,
        )

    def _check_small_crops(self, backbone, size):
        """Raise if the backbone gives no vectors of the same length for small crops."""
        shape = (self.sample_shape_[0], *size)
        try:
            n_features = features_out(backbone, shape)
            reason = f"it gives {n_features}"
        except Exception as error:  # networks of others fail in many ways
            n_features, reason = None, " ".join(str(error).split())
        if n_features != backbone.n_features_out:
            raise ValueError(
                f"n_small_crops={self.n_small_crops} needs a backbone that gives "
                f"{backbone.n_features_out} features also for crops of shape {shape} "
                f"({reason}): use n_small_crops=0, or a backbone that averages its "
                "maps."
            )
