"""CLD: cross-level instance-group discrimination (Wang, Liu and Yu, 2021)."""

from typing import Literal

import torch
from torch import nn

from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    AtLeastTwo,
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
from ..losses import group_discrimination, info_nce, unit_rows
from ..modules import (
    NormLinear,
    ProjectionNet,
    Queue,
    ema_update_,
    fitting_queue_size,
    frozen_copy,
)


class _CLD(ProjectionNet):
    _: KW_ONLY
    group: nn.Module
    augment: nn.Module
    queue: Queue
    temperature: float
    group_temperature: float
    group_weight: float
    n_groups: int
    n_lloyd: int
    decay: float

    def __post_init__(self):
        self.average = frozen_copy(self.parts())
        self.keys = None  # of the batch, until the step is done
        # the official start of this queue, not of length 1
        bound = (self.queue.rows.shape[1] / 3) ** -0.5
        nn.init.uniform_(self.queue.rows, -bound, bound)

    def loss(self, x, y):
        branches = []
        for _ in range(2):  # a forward for each view
            h = self.backbone(self.augment(x))
            branches.append((unit_rows(self.project(h)), unit_rows(self.group(h))))
        with torch.no_grad():
            k = unit_rows(self.average(self.augment(x)))  # a third view
        if self.training:
            # of all parts of the batch, where it is computed in parts
            keys = gathered(k)
            self.keys = keys if self.keys is None else torch.cat([self.keys, keys])
        (q1, z1), (q2, z2) = branches
        z1, z2 = gathered(z1), gathered(z2)
        instance_loss, group_loss = self.discriminate(q1, q2, k, z1, z2)
        return instance_loss + self.group_weight * group_loss, {
            "instance_loss": instance_loss.detach(),
            "group_loss": group_loss.detach(),
        }

    def discriminate(self, q1, q2, k, z1, z2):
        """Return the instance and the group loss of unit rows, (B, D) each."""
        losses = [info_nce(q, k, self.queue.rows, self.temperature) for q in (q1, q2)]
        n_groups = min(self.n_groups, len(z1))  # the last batch may be short
        group_loss = group_discrimination(
            z1, z2, n_groups, self.group_temperature, self.n_lloyd
        )
        return sum(losses) / 2, group_loss

    def after_step(self):
        self.queue.push_(self.keys)
        self.keys = None
        # the average's own BatchNorm statistics come from the keys
        ema_update_(self.average, self.parts(), self.decay, copy_buffers=False)


class CLDTransformer(EmbeddingRole, Learner):
    """Embed images with a network that discriminates images, and groups of images too.

    Contrasting single images (as MoCo does) pushes similar images apart. Here a second
    head groups each batch by k-means, and every image must also identify its group
    among the groups of the other view, so similar images may stay together. The
    embedding is the features before the heads. Read more in the :ref:`User Guide
    <cld>`.

    Parameters
    ----------
    n_groups : int
        Groups of a batch, at most ``batch_size``. Published: 200 of 256 on CIFAR-10,
        100 of 128 on CIFAR-100; fewer if images are very similar, as in a video.
    temperature : float
        Temperature of the instance loss, > 0.
    group_temperature : float
        Temperature of the group loss, > 0.
    group_weight : float
        Weight of the group loss, >= 0. Paper: lambda; 0.8 on CIFAR-10, 0.25 on
        CIFAR-100 and ImageNet.
    n_lloyd : int
        Steps of k-means.
    queue_size : int or "auto"
        Keys in the queue of the instance loss. Published: 12288 on CIFAR-10. "auto": a
        tenth of the rows of X, at least ``batch_size`` and at most 4096.
    ema_decay : float
        Decay of the averaged weights, in [0, 1). Published: 0.999, for trainings of
        tens of thousands of steps.
    norm_head : bool
        Whether the heads compare unit features with unit weights ("NormLinear").
    projection_size : int
        Output width of both heads.
    output : {"backbone", "projection"}
        Which features ``transform`` returns: those before the heads, or the
        instance head's.
    augment : "auto", nn.Module or None
        Random views; "auto": :class:`sklabel.augment.Contrastive` with 20 to 100 % of
        the area for images, :class:`sklabel.augment.VectorNoise` for vectors. Turn off
        flips for digits: ``Contrastive(flip=0)``.
    max_epochs
        Published: 200.
    lr
        Published: 0.06 with "sgd".
    warmup_epochs
        Published: 5.

    Attributes
    ----------
    queue_size_ : int
        Keys in the queue.

    See Also
    --------
    MoCoTransformer : Uses the instance loss alone.
    sklabel.selection.USLSelector : Its paper chooses images from CLD's features.

    Notes
    -----
    The instance loss is MoCo's, with two queries and one key from three views.
    Differences from the authors' setting for CIFAR-10, for small data and short
    trainings: AdamW at 1e-3, a short queue, a faster average, heads without norms, no
    blur, and no random erasing. The authors' setting except for the erasing:
    ``backbone="resnet18", optimizer="sgd", lr=0.06, final_lr=1e-6, weight_decay=8e-4,
    warmup_epochs=5, max_epochs=200, queue_size=12288, ema_decay=0.999, norm_head=True,
    augment=Contrastive(crop=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), blur=0.5)``, with
    :class:`sklabel.augment.Contrastive`. Groups come from k-means, as in the authors'
    scripts; their code also offers normalized cuts.

    References
    ----------
    .. [1] X. Wang, Z. Liu, S. X. Yu, "Unsupervised feature learning by cross-level
       instance-group discrimination", CVPR 2021; equations 3 to 5.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.embedding import CLDTransformer
    >>> X = load_digits().images[:100]
    >>> embedder = CLDTransformer(max_epochs=2, random_state=0).fit(X)
    >>> embedder.transform(X).shape
    (100, 128)
    """

    n_groups: AtLeastTwo = 200
    _: KW_ONLY
    temperature: Positive = 0.07
    group_temperature: Positive = 0.2
    group_weight: NonNegative = 0.8
    n_lloyd: Count = 5
    queue_size: Count | Literal["auto"] = "auto"
    ema_decay: BelowOne = 0.99
    norm_head: bool = False
    projection_size: Count = 128
    output: Literal["backbone", "projection"] = "backbone"
    augment: Augment = "auto"
    lr_scaling: LearningRateScaling = None
    final_lr: NonNegative = 0.0
    weight_decay: NonNegative = 1e-4
    warmup_epochs: NonNegative = 1

    remedy = "lower lr={lr} or group_weight={group_weight}"

    def _train(self, samples):
        if self._continued is None or self.queue_size != "auto":
            self.queue_size_ = fitting_queue_size(
                self.queue_size, samples.n_trained, self.batch_size
            )
        super()._train(samples)

    def _build_module(self, mean, std):
        backbone = self._build_backbone(mean, std)
        head = NormLinear if self.norm_head else nn.Linear
        width, size = backbone.n_features_out, self.projection_size
        # MoCo's, as published; without a blur for CIFAR
        views = Contrastive(
            crop=(0.2, 1.0),
            jitter=(0.4, 0.4, 0.4, 0.1),
            blur=0.0 if is_small(self.sample_shape_) else 0.5,
        )
        return _CLD(
            backbone,
            head(width, size),
            size,
            augment=self._build_augment(self.augment, views, mean, std),
            group=head(width, size),
            queue=Queue(self.queue_size_, size),
            temperature=self.temperature,
            group_temperature=self.group_temperature,
            group_weight=self.group_weight,
            n_groups=self.n_groups,
            n_lloyd=self.n_lloyd,
            decay=self.ema_decay,
            output=self.output,
        )
