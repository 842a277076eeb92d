"""MixMatch: guessed labels, mixed with given ones (Berthelot et al., 2019)."""

import torch
from torch import nn
from torch.nn.functional import one_hot

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
from .._core.processes import gathered
from .._core.samplers import split_labeled
from .._core.transfer import GuessingClassifier
from ..losses import guessed_labels, mixmatch_losses, mixup
from ..modules import (
    AveragedClassifier,
    PredictedClasses,
    linear_classifier,
    mixing_weights,
)
from ..optim import linear_ramp


class _MixMatch(AveragedClassifier):
    _: KW_ONLY
    weak: nn.Module
    predicted: nn.Module
    n_classes: int
    n_augmentations: int
    temperature: float
    alpha: float
    unlabeled_weight: float
    ramp_up: int | float

    training_only = ("predicted",)
    total_steps = 1

    def before_epoch(self, net, sampler):
        self.total_steps = net.total_steps_

    def loss(self, x, y):
        x_labeled, x_unlabeled, labels, rows = split_labeled(x, y)
        views = [self.weak(x_labeled)]
        targets = [one_hot(labels, self.n_classes).float()]
        if len(rows):
            views += [self.weak(x_unlabeled) for _ in range(self.n_augmentations)]
            guesses = self._guess(views)
            targets += [guesses] * self.n_augmentations
        views, targets = torch.cat(views), torch.cat(targets)
        order = torch.randperm(len(views), device=x.device)
        weights = to_device(mixing_weights(len(views), self.alpha), x.device)
        # one forward: BatchNorm sees mixtures of labeled and unlabeled rows together
        logits = self.online(mixup(views, order, weights))
        targets = mixup(targets, order, weights)
        labeled_loss, unlabeled_loss = mixmatch_losses(logits, targets, len(labels))
        if not len(rows):
            return labeled_loss
        confidence, classes = guesses.max(1)
        weight = self._ramped_weight(len(labels))
        return labeled_loss + weight * unlabeled_loss, {
            "labeled_loss": labeled_loss.detach(),
            "unlabeled_loss": unlabeled_loss.detach(),
            "pseudo_label_confidence": confidence.mean(),
            "pseudo_label_classes": one_hot(classes, self.n_classes).float().mean(0),
            "pseudo_label_agreement": self.predicted.update(
                gathered(rows), gathered(classes)
            ),
        }

    @torch.no_grad()
    def _guess(self, views):
        """Return soft labels from all views but the first, of the labeled rows."""
        # the labeled rows go along: normalized by themselves, unlabeled rows would lose
        # what they have in common, where their classes are not those of the labels
        buffers = list(self.online.buffers())
        kept = [buffer.clone() for buffer in buffers]
        logits = self.online(torch.cat(views))[len(views[0]) :]
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)  # running statistics are those of mixed rows
        # older torch trains with what autocast has cast here, and gets no gradients
        torch.clear_autocast_cache()
        logits = logits.unflatten(0, (self.n_augmentations, -1))  # (V, B, K)
        return guessed_labels(logits, self.temperature)

    def _ramped_weight(self, n_labeled):
        """Return the weight of the unlabeled loss at this step."""
        ramp = linear_ramp(self.ramp_up, self.n_steps, self.total_steps, n_labeled)
        return self.unlabeled_weight * ramp


class MixMatchClassifier(GuessingClassifier):
    """Classify images from a few labels and many unlabeled images, mixed in pairs.

    The guessed label of an unlabeled image is the sharpened mean prediction on several
    weakly augmented views of it. Every image, labeled or not, is then mixed with
    another image, and their labels are mixed alike. The loss is cross-entropy for mixed
    labeled images, and squared error, which wrong guesses cannot make large, for mixed
    unlabeled images. Predictions come from a moving average of the weights. Read more
    in the :ref:`User Guide <classification>`.

    Parameters
    ----------
    unlabeled_weight : float
        Weight of the unlabeled loss, >= 0. Paper: lambda_u. Published: 75 for CIFAR-10,
        150 for CIFAR-100, 250 for SVHN, 50 for STL-10.
    unlabeled_ratio : float
        Unlabeled rows per labeled row in a batch, >= 0.
    n_augmentations : int
        Views of an unlabeled row whose predictions are averaged; all of them are
        trained on. Paper: K.
    temperature : float
        Sharpens the guessed labels, > 0; 1 leaves them as they are. Paper: T.
    alpha : float
        Parameter of the Beta(alpha, alpha) distribution of each row's share in a
        mixture, >= 0; 0: nothing is mixed.
    ramp_up : int or float
        How long ``unlabeled_weight`` takes to grow from 0 to its value: a share of the
        training (float in [0, 1]), or labeled rows drawn until then (int). Published:
        2**20 rows, 1/64 of the training; for a short training, 1.0 is better.
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
    max_epochs : int
        Passes over the unlabeled rows, or over the labeled rows if that takes more
        steps.
    max_steps
        Published: 2**20.
    batch_size : int
        Labeled samples per step; labeled rows are repeated as needed.
    weight_decay
        With "adamw", each step multiplies a weight by ``1 - lr * weight_decay``.
        Published for a network of four times the width: 0.04.
    schedule : {"cosine", "truncated_cosine", "step", "constant"} or callable
        Learning rate schedule after the warm-up; "truncated_cosine", also called
        "fixmatch": cos(7 pi k / 16 K).

    Attributes
    ----------
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``labeled_loss``
        and ``unlabeled_loss`` without its weight, and for the guessed labels
        ``pseudo_label_confidence`` (mean of the largest probability, sharpened),
        ``pseudo_label_classes`` (share of the unlabeled rows by most probable class)
        and ``pseudo_label_agreement`` (share of the unlabeled rows whose most probable
        class has not changed); with ``calibration_size`` also ``held_accuracy`` (on the
        rows withheld).
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
    FixMatchClassifier : Needs fewer labels, and strong views that keep the class.
    sklabel.selection.USLSelector : Choose the rows to label.
    sklabel.model_selection.LabeledKFold : Cross-validation with partly labeled y.

    Notes
    -----
    Unlabeled rows are -1 in y, as in :mod:`sklearn.semi_supervised`; None and NaN mean
    the same. Put class names into an object array, ``y = np.array(names,
    dtype=object)``. The published setting is ``backbone="wrn_28_2", max_steps=2**20,
    ramp_up=2**20, ema_ramp=False``.

    The public code passes labeled rows and each set of views through the network
    separately. Here all pass together, so that BatchNorm normalizes them by the same
    statistics. The public code interleaves mixed rows for this purpose, but not the
    views whose labels are guessed; its guesses go wrong if most unlabeled rows are of
    other classes than the labeled ones. The running statistics are those of all mixed
    rows.

    A step costs one forward pass more than plain training on ``1 + n_augmentations *
    unlabeled_ratio`` times the rows. Without unlabeled rows, the training is plain
    mixup.

    Another difference: a pretrained encoder, such as a fitted embedder, is trained at a
    lower learning rate with its BatchNorm frozen, below a last layer that is
    initialized by logistic regression (LP-FT [2]_), after a warm-up. At the full rate,
    a hundred steps on a few dozen labels undo the pretraining. As published:
    ``backbone_lr=1, head_init="random", warmup_epochs=0``.

    References
    ----------
    .. [1] D. Berthelot et al., "MixMatch: a holistic approach to semi-supervised
       learning", NeurIPS 2019; algorithm 1.
    .. [2] A. Kumar et al., "Fine-tuning can distort pretrained features and
       underperform out-of-distribution", ICLR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.classification import MixMatchClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 100, y, -1)
    >>> clf = MixMatchClassifier(max_epochs=5, random_state=0).fit(X, y_partly)
    >>> clf.transduction_.shape
    (1797,)
    """

    unlabeled_weight: NonNegative = 75
    unlabeled_ratio: NonNegative = 1
    _: KW_ONLY
    n_augmentations: Count = 2
    temperature: Positive = 0.5
    alpha: NonNegative = 0.75
    ramp_up: CountOrZero | UnitInterval = 1.0
    include_labeled: bool = False
    ema_decay: BelowOne = 0.999
    ema_ramp: bool = True
    weak_augment: Augment = "auto"
    max_epochs: Count = 60
    batch_size: Count = 64
    lr: Positive = 2e-3
    weight_decay: NonNegative = 0.02
    schedule: Schedule = "constant"

    def _build_module(self, mean, std, mixed=None):
        n_classes = len(self.classes_)
        module = _MixMatch(
            linear_classifier(self._build_backbone(mean, std), n_classes),
            self.ema_decay,
            self.ema_ramp,
            weak=self._build_augment(self.weak_augment, "weak", mean, std),
            predicted=PredictedClasses(len(mixed or ())),
            n_classes=n_classes,
            n_augmentations=self.n_augmentations,
            temperature=self.temperature,
            alpha=self.alpha,
            unlabeled_weight=self.unlabeled_weight,
            ramp_up=self.ramp_up,
        )
        return self._take_over(module, "online", "average", "n_steps")
