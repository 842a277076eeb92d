"""ReMixMatch: strong views are anchored to a weak one (Berthelot et al., 2020)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, one_hot

from .._core.devices import to_device
from .._core.parameters import (
    KW_ONLY,
    Augment,
    BelowOne,
    Count,
    CountOrZero,
    NonNegative,
    Positive,
    Schedule,
    UnitInterval,
)
from .._core.processes import gathered, own_part
from .._core.samplers import split_labeled
from .._core.transfer import GuessingClassifier
from ..losses import guessed_labels, mixup
from ..modules import (
    AveragedClassifier,
    DistributionAlignment,
    PredictedClasses,
    linear_classifier,
    mixing_weights,
    probe_policy_,
)
from ..optim import linear_ramp


class _ReMixMatch(AveragedClassifier):
    _: KW_ONLY
    weak: nn.Module
    strong: nn.Module
    align: nn.Module
    turn: nn.Module
    predicted: nn.Module
    n_classes: int
    n_augmentations: int
    temperature: float
    alpha: float
    unlabeled_weight: float
    anchor_weight: float
    rotation_weight: float
    ramp_up: int | float

    training_only = ("align", "turn", "predicted")
    total_steps = 1

    def before_epoch(self, net, sampler):
        self.total_steps = net.total_steps_

    def loss(self, x, y):
        x_labeled, x_unlabeled, labels, rows = split_labeled(x, y)
        n = len(labels)
        views = [self._strong(x_labeled)]
        targets = [one_hot(labels, self.n_classes).float()]
        if len(rows):
            strong = [self._strong(x_unlabeled) for _ in range(self.n_augmentations)]
            views += [self.weak(x_unlabeled), *strong]
            # the labeled rows go along: of all rows alike BatchNorm is to know
            logits = self._apart(self.online, torch.cat(views[:3])).float()[n:]
            weak, anchored = logits.chunk(2)
            weak = self.align(gathered(weak.detach()), self.n_steps + 1)
            weak = own_part(weak)
            guesses = guessed_labels(weak[None], self.temperature)
            targets += [guesses] * (1 + self.n_augmentations)
        if hasattr(self.strong, "probe"):
            seen = self.weak(x_labeled)
            probe_policy_(self.strong, self.average, seen, labels)
        views, targets = torch.cat(views), torch.cat(targets)
        order = torch.randperm(len(views), device=x.device)
        weights = to_device(mixing_weights(len(views), self.alpha), x.device)
        mixed = self.online(mixup(views, order, weights)).float()
        targets = mixup(targets, order, weights)
        labeled_loss = cross_entropy(mixed[:n], targets[:n])
        if not len(rows):
            return labeled_loss
        parts = {
            "unlabeled_loss": cross_entropy(mixed[n:], targets[n:]),
            "anchor_loss": cross_entropy(anchored, guesses),
            "rotation_loss": self._rotation_loss(strong[0]),
        }
        ramp = linear_ramp(self.ramp_up, self.n_steps, self.total_steps, n)
        loss = (
            labeled_loss
            + ramp * self.unlabeled_weight * parts["unlabeled_loss"]
            + ramp * self.anchor_weight * parts["anchor_loss"]
            + self.rotation_weight * parts["rotation_loss"]
        )
        confidence, classes = guesses.max(1)
        return loss, {
            "labeled_loss": labeled_loss.detach(),
            **{name: part.detach() for name, part in parts.items()},
            "pseudo_label_confidence": confidence.mean(),
            "pseudo_label_classes": one_hot(classes, self.n_classes).float().mean(0),
            "pseudo_label_agreement": self.predicted.update(
                gathered(rows), gathered(classes)
            ),
        }

    def _strong(self, x):
        return self.strong(self.weak(x))

    def _rotation_loss(self, views):
        """Return the loss of the predicted rotations; 0 for what cannot be rotated."""
        # BatchNorm cannot train on one
        if views.ndim != 4 or len(views) < 2 or not self.rotation_weight:
            return views.new_zeros(())
        square = views.shape[2] == views.shape[3]
        turns = [0, 1, 2, 3] if square else [0, 2]
        parts = views.tensor_split(len(turns))
        turned = [part.rot90(k, (2, 3)) for part, k in zip(parts, turns, strict=True)]
        asked = torch.cat(
            [
                torch.full((len(part),), k, device=views.device)
                for part, k in zip(parts, turns, strict=True)
            ]
        )
        features = self._apart(self.online[0], torch.cat(turned))
        return cross_entropy(self.turn(features).float(), asked)

    def _apart(self, part, x):
        """Apply a part of the network; its running statistics do not change."""
        own = {name: value.clone() for name, value in part.named_buffers()}
        return functional_call(part, own, x)


class ReMixMatchClassifier(GuessingClassifier):
    """Classify images from a few labels and many strongly augmented unlabeled images.

    The successor of MixMatch. The prediction on one weakly augmented view of an
    unlabeled image, scaled to the class distribution of the labels and sharpened, is
    the guessed label of that view and of several strongly augmented ones. All are mixed
    with each other and with the labeled images; the first strong view is also learned
    unmixed, and rotated, when the network must predict the rotation. Predictions come
    from a moving average of the weights. Read more in the :ref:`User Guide
    <remixmatch>`.

    Parameters
    ----------
    unlabeled_weight : float
        Weight of the mixed unlabeled rows, >= 0. Paper: lambda_U.
    unlabeled_ratio : float
        Unlabeled rows per labeled row in a batch, >= 0.
    n_augmentations : int
        Strong views of an unlabeled row. Paper: K. Fewer are quicker.
    temperature : float
        Sharpens the guessed labels, > 0; 1 leaves them as they are. Paper: T.
    alpha : float
        Parameter of the Beta(alpha, alpha) distribution of each row's share in a
        mixture, >= 0; 0: nothing is mixed.
    anchor_weight : float
        Weight of the unmixed first strong view, >= 0. Paper: lambda_U1.
    rotation_weight : float
        Weight of the rotation loss, >= 0. Vectors are not rotated, and images that are
        not square only by 180 degrees. Paper: lambda_r.
    ramp_up : int or float
        How long ``unlabeled_weight`` and ``anchor_weight`` take to grow from 0: a share
        of the training (float in [0, 1]), or labeled rows drawn until then (int).
        Published: 2**20 rows, 1/64 of the training.
    include_labeled : bool
        Whether labeled images are also used as unlabeled ones.
    ema_decay : float
        Decay of the averaged weights, in [0, 1).
    ema_ramp : bool
        Whether the decay grows as (1 + t) / (10 + t) up to ``ema_decay``. The paper has
        no ramp; without it, a training of a few hundred steps ends with averaged
        weights close to the random initial ones.
    weak_augment : "auto", nn.Module or None
        Weak view; "auto": :class:`sklabel.augment.Weak` for images,
        :class:`sklabel.augment.VectorNoise` for vectors. Turn off flips for digits:
        ``Weak(flip=0)``.
    strong_augment : {"randaugment", "ctaugment"}, nn.Module or None
        Strong view, applied after a weak one.
    max_epochs : int
        Passes over the unlabeled rows, or over the labeled rows if that takes more
        steps.
    max_steps
        Published: 2**20.
    batch_size : int
        Labeled samples per step; labeled rows are repeated as needed.
    weight_decay
        With "adamw", each step multiplies a weight by ``1 - lr * weight_decay``.
    schedule : {"cosine", "truncated_cosine", "step", "constant"} or callable
        Learning rate schedule after the warm-up; "truncated_cosine", also called
        "fixmatch": cos(7 pi k / 16 K).

    Attributes
    ----------
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, its parts without
        their weights (``labeled_loss``, ``unlabeled_loss``, ``anchor_loss``,
        ``rotation_loss``), and for the guessed labels ``pseudo_label_confidence`` (mean
        of the largest probability, sharpened), ``pseudo_label_classes`` (share of the
        unlabeled rows by most probable class) and ``pseudo_label_agreement`` (share of
        the unlabeled rows whose most probable class has not changed); with
        ``calibration_size`` also ``held_accuracy`` (on the rows withheld).
    encoder_ : nn.Module
        Trained encoder with averaged weights.

    Raises
    ------
    ValueError
        If no row is labeled, all labels are of one class, y does not fit X, or too few
        rows are labeled for ``calibration_size``.

    Warns
    -----
    CollapseWarning
        If, at the end, a class is guessed for hardly any unlabeled row, or for nearly
        all of them; or if, with ``calibration_size``, the accuracy on the withheld rows
        has fallen, or if a linear probe on the pretrained encoder's features predicts
        the given labels better than the network.

    See Also
    --------
    MixMatchClassifier : Without strong views, which may change the class.
    FixMatchClassifier : Learns from confident predictions only.

    Notes
    -----
    Unlabeled rows are -1 in y, as in :mod:`sklearn.semi_supervised`; None and NaN mean
    the same. The published setting is
    ``backbone="wrn_28_2", max_steps=2**20, ramp_up=2**20, ema_ramp=False``.

    Differences from the public code: labeled rows, weak views and the first strong ones
    pass through the network together, not separately, so that BatchNorm normalizes them
    by the same statistics; the mean prediction is a moving average, not the mean of 128
    steps; weight decay also applies to the rotation layer.

    A step costs ``2 + n_augmentations`` forward passes of the unlabeled rows, and three
    more.

    A pretrained encoder is trained at a lower learning rate, after a warm-up, below a
    last layer that is initialized by logistic regression. As published:
    ``backbone_lr=1, head_init="random", warmup_epochs=0``.

    References
    ----------
    .. [1] D. Berthelot et al., "ReMixMatch: semi-supervised learning with distribution
       alignment and augmentation anchoring", ICLR 2020; algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.classification import ReMixMatchClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 100, y, -1)
    >>> clf = ReMixMatchClassifier(n_augmentations=2, max_epochs=2, random_state=0)
    >>> clf.fit(X, y_partly).transduction_.shape
    (1797,)
    """

    unlabeled_weight: NonNegative = 1.5
    unlabeled_ratio: NonNegative = 1
    _: KW_ONLY
    n_augmentations: Count = 8
    temperature: Positive = 0.5
    alpha: NonNegative = 0.75
    anchor_weight: NonNegative = 0.5
    rotation_weight: NonNegative = 0.5
    ramp_up: CountOrZero | UnitInterval = 1.0
    include_labeled: bool = False
    ema_decay: BelowOne = 0.999
    ema_ramp: bool = True
    weak_augment: Augment = "auto"
    strong_augment: (
        Literal["randaugment", "ctaugment"] | nn.Module | Callable | None
    ) = "ctaugment"
    max_epochs: Count = 60
    batch_size: Count = 64
    lr: Positive = 2e-3
    weight_decay: NonNegative = 0.02
    schedule: Schedule = "constant"

    def _build_module(self, mean, std, mixed=None):
        n_classes = len(self.classes_)
        online = linear_classifier(self._build_backbone(mean, std), n_classes)
        turn = linear_classifier(online[0], 4)[1]
        prior = torch.full((n_classes,), 1 / n_classes)
        if mixed is not None:
            prior = torch.from_numpy(mixed.class_shares(n_classes, drawn=True)).float()
        module = _ReMixMatch(
            online,
            self.ema_decay,
            self.ema_ramp,
            weak=self._build_augment(self.weak_augment, "weak", mean, std),
            strong=self._build_strong(self.strong_augment, mean, std),
            align=DistributionAlignment(prior),
            turn=turn,
            predicted=PredictedClasses(len(mixed or ())),
            n_classes=n_classes,
            n_augmentations=self.n_augmentations,
            temperature=self.temperature,
            alpha=self.alpha,
            unlabeled_weight=self.unlabeled_weight,
            anchor_weight=self.anchor_weight,
            rotation_weight=self.rotation_weight,
            ramp_up=self.ramp_up,
        )
        return self._take_over(module, "online", "average", "n_steps")
