"""Learning loss: rows of high predicted loss (Yoo and Kweon, 2019)."""

from numbers import Integral
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from .._core.layers import choose_layers, output_shapes, outputs_of, pooled
from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    ArrayLike,
    AtLeastTwo,
    Augment,
    Count,
    CountOrZero,
    NonNegative,
    Optimizer,
    Positive,
    SampleCount,
    Schedule,
    UnitInterval,
)
from .._core.processes import gathered
from .._core.roles.selection import PredictedLossRole
from .._core.samplers import Mixed
from ..losses import learning_loss
from ..modules import Method, filled_


class _LossHead(nn.Module):
    """Predict the loss of each row from the outputs of some layers."""

    def __init__(self, sizes, width):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.last = nn.Linear(len(sizes) * width, 1)

    def forward(self, outputs):
        # which of two losses is larger is lost in the few digits of bfloat16
        with torch.autocast(outputs[0].device.type, enabled=False):
            h = [
                layer(pooled(x).to(layer.weight.dtype)).relu()
                for layer, x in zip(self.layers, outputs, strict=True)
            ]
            return self.last(torch.cat(h, 1))[:, 0]  # (B,)


class _LearningLoss(Method):
    backbone: nn.Module
    head: nn.Linear
    layers: tuple
    loss_head: _LossHead
    augment: nn.Module
    _: KW_ONLY
    margin: float
    loss_weight: float
    detach_after: float | int | None

    def __post_init__(self):
        self.n_steps, self.n_attached = 0, float("inf")

    def forward(self, x):
        return self.loss_head(self._features(x)[1])[:, None]  # (B, 1)

    def loss(self, x, y):
        h, outputs = self._features(self.augment(x))
        logits = self.head(h).float()
        losses = cross_entropy(logits, y, reduction="none")
        if self.n_steps >= self.n_attached:
            outputs = [output.detach() for output in outputs]
        predicted = gathered(self.loss_head(outputs))
        ranking = learning_loss(predicted, gathered(losses), self.margin)
        class_loss = losses.mean()
        return class_loss + self.loss_weight * ranking, {
            "class_loss": class_loss.detach(),
            "ranking_loss": ranking.detach(),
            "train_accuracy": (logits.argmax(1) == y).float().mean(),
        }

    def before_epoch(self, net, sampler):
        """Set the number of steps in which the loss head trains the backbone too."""
        self.n_steps = net.step_
        if self.detach_after is None:
            self.n_attached = float("inf")
        elif isinstance(self.detach_after, Integral):
            self.n_attached = self.detach_after * sampler.n_batches(net.batch_size)
        else:
            self.n_attached = self.detach_after * net.total_steps_

    def after_step(self):
        self.n_steps += 1

    def _features(self, x):
        """Return the backbone's features, and the pooled outputs of the layers."""
        with outputs_of(self.backbone.body, self.layers) as outputs:
            h = self.backbone(x)
        return h, [outputs[name] for name in self.layers]


class LearningLossSelector(PredictedLossRole, Learner):
    """Select the rows for which a network predicts its own loss to be high.

    A classifier is trained on the labeled rows. From the outputs of several layers, a
    small extra head learns which of two rows has the larger loss. The rows with the
    highest predicted loss are chosen. Read more in the :ref:`User Guide
    <learning_loss>`.

    Parameters
    ----------
    layers : "auto" or sequence of str
        Parts of the backbone whose outputs the head uses, by their names in
        ``named_modules()``. Maps ``(B, C, H, W)`` are averaged over H and W, tokens
        ``(B, T, D)`` over T. "auto": the ends of the last four stages or, without
        stages, up to four of the last blocks.
    width : int
        Neurons for each layer.
    margin : float
        Margin of the ranking loss between the predictions for two rows, > 0. Paper: xi.
    loss_weight : float
        Weight of the ranking loss relative to the classification loss, >= 0. Paper:
        lambda.
    detach_after : float, int or None
        When the head stops training the backbone: after a share of the training, in [0,
        1], or a number of epochs (int); None: never. Published: 120 of 200 epochs.
    n_candidates
        Published: 10000, to avoid near copies among the highest.
    max_epochs : int
        Passes over the labeled rows.
    batch_size
        Published: 128, with at least 1000 labels.
    lr
        Published: 0.1, for batches of 128.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows, the highest predicted loss first, ties by lower row number.
    scores_ : ndarray of shape (n_rows,)
        Predicted loss; only its order is meaningful. ``-inf`` for labeled rows, for
        rows that were not scored and for files that cannot be read.
    layers_ : tuple of str
        Parts of the backbone whose outputs the head uses; "" is the whole backbone.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``class_loss``,
        ``ranking_loss`` (equal to ``margin`` if nothing is learned) and
        ``train_accuracy``. Empty if every row is labeled.
    n_features_in_ : int
        Values per sample.

    Raises
    ------
    ValueError
        If no row is labeled, all labels are of one class, y does not fit X, more rows
        are requested than are unlabeled and readable, or ``layers`` names a part that
        the backbone does not have.

    See Also
    --------
    TODSelector : Estimates the loss from how predictions change.
    USLSelector : Needs no label; for the first choice.
    UncertaintySelector : Uses the confidence of any classifier.

    Notes
    -----
    The released code builds the network once and continues in every round: call
    ``fit`` again with more labels and ``warm_start=True``. The optimizer starts anew. A
    new class gets an output with random weights; a class that is gone keeps its output.
    The architecture (``backbone``, ``layers``, ``width``) cannot change.

    Differences from the paper: batches are smaller and the learning rate lower, since
    there are few labels; the rate also drops after 60 % of the training; in a batch of
    odd size the middle row has no partner, while the released code stops.

    The head learns only from differences between the losses of labeled rows. Once all
    of these are classified well, their order is mostly random; augmentation preserves
    some differences.

    References
    ----------
    .. [1] D. Yoo, I. S. Kweon, "Learning loss for active learning", CVPR 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import LearningLossSelector
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 50, y, -1)
    >>> selector = LearningLossSelector(20, max_epochs=30, random_state=0)
    >>> rows = selector.fit_select(X, y_partly)
    >>> bool(rows.min() >= 50)
    True
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    layers: Literal["auto"] | ArrayLike = "auto"
    width: Count = 128
    margin: Positive = 1.0
    loss_weight: NonNegative = 1.0
    detach_after: CountOrZero | UnitInterval | None = 0.6
    augment: Augment = "auto"
    max_epochs: Count = 200
    batch_size: AtLeastTwo = 32
    optimizer: Optimizer = "sgd"
    lr: Positive = 0.03
    weight_decay: NonNegative = 5e-4
    schedule: Schedule = "step"

    _bound = ("layers",)

    def _train(self, samples, codes, places, rows, random):
        module = self._build_module(*samples.statistics(), places)
        self._stage("fit", module, Mixed(samples, codes, ratio=0))
        return self.net_.evaluate(samples, rows).numpy()[:, 0]

    def _build_module(self, mean, std, places=None):
        before = self._continued
        n_classes = len(self.classes_)
        backbone = self._part("backbone", lambda: self._build_backbone(mean, std))
        shapes = output_shapes(backbone)
        layers = self._find_layers(backbone.body, shapes)
        # channels come first in maps, last in tokens
        sizes = [shapes[name][1 if len(shapes[name]) == 2 else 0] for name in layers]
        head = nn.Linear(backbone.n_features_out, n_classes)
        if before is not None:
            head = filled_(head.to(before.head.weight), before.head, places)
        loss_head = self._part("loss_head", lambda: _LossHead(sizes, self.width))
        self.layers_ = layers
        return _LearningLoss(
            backbone,
            head,
            layers,
            loss_head,
            self._build_augment(self.augment, "weak", mean, std),
            margin=self.margin,
            loss_weight=self.loss_weight,
            detach_after=self.detach_after,
        )

    def _find_layers(self, net, shapes):
        if isinstance(self.layers, str):
            return choose_layers(net, shapes)
        layers = tuple(map(str, self.layers))
        unknown = [name for name in layers if name not in shapes]
        if unknown or not layers:
            raise ValueError(
                f"layers={list(self.layers)!r} must be names of parts of the backbone "
                f"that give maps, tokens or vectors, at least one; {unknown} are not. "
                f"There are {list(shapes)}."
            )
        return layers
