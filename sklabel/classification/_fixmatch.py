"""FixMatch: pseudo-labels from weak views teach strong views (Sohn et al., 2020)."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from .._core.callbacks import fitting
from .._core.health import CollapseWarning
from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    Augment,
    BelowOne,
    Count,
    NonNegative,
    Optimizer,
    Positive,
    Schedule,
    UnitInterval,
)
from .._core.roles.classification import ClassificationRole
from .._core.samplers import Mixed
from .._core.warn import warn
from ..losses import pseudo_label, pseudo_targets
from ..modules import AveragedClassifier, linear_classifier, ramped_decay


class _FixMatch(AveragedClassifier):
    n_unused = 0  # rows that never stand among the unlabeled ones

    def __init__(self, online, decay, ramp, weak, strong, prior, n_rows, **settings):
        super().__init__(online, decay, ramp)
        self.weak = weak
        self.strong = strong
        for name, value in settings.items():
            setattr(self, name, value)
        self.register_buffer("prior", prior)  # of the labeled rows
        even = torch.full_like(prior, 1 / len(prior))
        self.register_buffer("mean_prediction", even)
        # of every row: its last prediction, and the last one that was sure; -1: none yet
        self.register_buffer("predicted", torch.full((n_rows,), -1))
        self.register_buffer("sure", torch.full((n_rows,), -1))

    def loss(self, x, y):
        n_labeled = int((y >= 0).sum())
        x_labeled, x_unlabeled = x[:n_labeled], x[n_labeled:]
        views = [self.weak(x_labeled)]
        if len(x_unlabeled):
            weak = self.weak(x_unlabeled)
            views += [weak, self.strong(self.weak(x_unlabeled))]
        # one forward: BatchNorm sees labeled, weak and strong views together
        logits = self.online(torch.cat(views)).float()
        loss = cross_entropy(logits[:n_labeled], y[:n_labeled])
        if hasattr(self.strong, "probe"):
            self._probe(x_labeled, y[:n_labeled])
        if not len(x_unlabeled):
            return loss
        logits_weak, logits_strong = logits[n_labeled:].chunk(2)
        logits_weak = self._align(logits_weak.detach())
        unlabeled_loss, mask = pseudo_label(
            logits_weak,
            logits_strong,
            threshold=self._thresholds(),
            temperature=self.temperature,
            hard=self.hard_labels,
        )
        rows, classes = -1 - y[n_labeled:], logits_weak.argmax(1)
        agreement = (self.predicted[rows] == classes).float().mean()
        self.predicted[rows] = classes
        if self.class_thresholds:
            # how well a class is learned is judged by the threshold that all share
            _, sure = pseudo_targets(
                logits_weak, self.threshold, self.temperature, self.hard_labels
            )
            self.sure[rows] = torch.where(sure, classes, self.sure[rows])
        share = mask.float()
        classes = nn.functional.one_hot(classes, logits.shape[1])
        return loss + self.unlabeled_weight * unlabeled_loss, {
            "labeled_loss": loss.detach(),
            "pseudo_label_share": share.mean(),
            "pseudo_label_classes": (classes * share[:, None]).mean(0),
            "pseudo_label_agreement": agreement,
        }

    def _align(self, logits):
        """Return logits whose mean prediction is that of the labels (ReMixMatch)."""
        if not self.distribution_alignment:
            return logits
        mean = logits.softmax(1).mean(0)
        decay = ramped_decay(self.n_steps + 1, 0.999)
        self.mean_prediction.lerp_(mean, 1 - decay)
        return logits + (self.prior / self.mean_prediction.clamp_min(1e-6)).log()

    def _thresholds(self):
        """Return one threshold, or one per class that grows with it (FlexMatch)."""
        if not self.class_thresholds:
            return self.threshold
        counts = torch.bincount(self.sure + 1, minlength=len(self.prior) + 1)
        counts[0] -= self.n_unused
        # rows without a sure prediction count as a class of their own
        learned = counts[1:] / counts.max()
        return self.threshold * learned / (2 - learned)

    @torch.no_grad()
    def _probe(self, x, y):
        """CTAugment learns how strong each operation may be from the labeled rows."""
        views, draw = self.strong.probe(x)
        p = self.average(views).float().softmax(1)
        truth = nn.functional.one_hot(y, p.shape[1])
        self.strong.update(draw, 1 - 0.5 * (p - truth).abs().sum(1))

    def drop_training_state(self):
        """Drop what is of use in training only."""
        self.predicted = self.sure = None


class FixMatchClassifier(ClassificationRole, Learner):
    """Classify images from a few labels and many unlabeled images.

    A weakly augmented unlabeled image gets a prediction; if its probability reaches a
    threshold, the predicted class becomes the target for a strongly augmented view of the
    same image. Labeled rows give ordinary cross-entropy. Predictions come from a moving
    average of the weights. Read more in the :ref:`User Guide <classification>`.

    Parameters
    ----------
    threshold : float
        Smallest probability of a pseudo-label, in [0, 1]. Paper: tau.
    unlabeled_weight : float
        Weight of the unlabeled loss, >= 0. Paper: lambda_u.
    unlabeled_ratio : float
        Unlabeled rows per labeled row in a batch, >= 0. Paper: mu.
    temperature : float
        Divides the weak view's logits, > 0.
    hard_labels : bool
        Whether the target is the most probable class, or the probabilities.
    include_labeled : bool
        Whether the labeled images also stand among the unlabeled ones.
    distribution_alignment : bool
        Whether predictions on weak views are scaled so that their mean is the class
        distribution of the labeled rows, as drawn (ReMixMatch [2]_).
    class_thresholds : bool
        Whether a class has a lower threshold while fewer rows are sure of it
        (FlexMatch [3]_).
    ema_decay : float
        Decay of the averaged weights, in [0, 1).
    ema_ramp : bool
        Whether the decay grows as (1 + t) / (10 + t) up to ``ema_decay``. The paper has
        none; without it a training of a few hundred steps predicts with weights close to
        the random ones it began with.
    weak_augment : "auto", nn.Module or None
        Weak view; "auto": :class:`sklabel.augment.Weak` for images,
        :class:`sklabel.augment.VectorNoise` for vectors. Turn off flips for digits:
        ``Weak(flip=0)``.
    strong_augment : {"randaugment", "ctaugment"}, nn.Module or None
        Strong view, applied after a weak one.
    max_epochs : int
        Passes over the unlabeled rows, or over the labeled ones where these take more
        steps.
    max_steps
        Published: 2**20.
    batch_size : int
        Labeled samples per step; labeled rows are repeated as needed.
    weight_decay
        Published for CIFAR-100: 1e-3.
    schedule : {"cosine", "truncated_cosine", "step", "constant"} or callable
        Course of the learning rate after the warm-up; "fixmatch": cos(7 pi k / 16 K).

    Attributes
    ----------
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``labeled_loss``,
        ``pseudo_label_share`` and ``pseudo_label_classes`` (shares of all unlabeled rows,
        per class), and ``pseudo_label_agreement`` (share of the unlabeled rows with the
        most probable class that they had before); with ``calibration_size`` also
        ``held_accuracy`` (on the rows withheld).
    encoder_ : nn.Module
        Trained encoder, averaged weights.

    Raises
    ------
    ValueError
        If no row is labeled, all labels are of one class, y does not fit X, or too few
        rows are labeled for ``calibration_size``.

    Warns
    -----
    CollapseWarning
        If hardly any unlabeled row has a pseudo-label at the end, a class has none, or
        one class has nearly all; or if, with ``calibration_size``, the accuracy on the
        withheld rows has fallen at the end.

    See Also
    --------
    sklabel.selection.USLSelector : Choose the rows to label.
    sklabel.model_selection.LabeledKFold : Cross-validation with partly labeled y.

    Notes
    -----
    Unlabeled rows are -1 in y, as in :mod:`sklearn.semi_supervised`; None and NaN mean the
    same. Class names go into an object array, ``y = np.array(names, dtype=object)``. The
    published setting is ``backbone="wrn_28_2", max_steps=2**20, ema_ramp=False``.

    References
    ----------
    .. [1] K. Sohn et al., "FixMatch: simplifying semi-supervised learning with
       consistency and confidence", NeurIPS 2020; algorithm 1.
    .. [2] D. Berthelot et al., "ReMixMatch: semi-supervised learning with distribution
       alignment and augmentation anchoring", ICLR 2020; section 3.1.
    .. [3] B. Zhang et al., "FlexMatch: boosting semi-supervised learning with curriculum
       pseudo labeling", NeurIPS 2021; equations 5, 7, 10 and 12.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.classification import FixMatchClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 100, y, -1)
    >>> clf = FixMatchClassifier(max_epochs=5, random_state=0).fit(X, y_partly)
    >>> clf.transduction_.shape
    (1797,)
    """

    threshold: UnitInterval = 0.95
    unlabeled_weight: NonNegative = 1.0
    unlabeled_ratio: NonNegative = 7
    _: KW_ONLY
    temperature: Positive = 1.0
    hard_labels: bool = True
    include_labeled: bool = True
    distribution_alignment: bool = False
    class_thresholds: bool = False
    ema_decay: BelowOne = 0.999
    ema_ramp: bool = True
    weak_augment: Augment = "auto"
    strong_augment: (
        Literal["randaugment", "ctaugment"] | nn.Module | Callable | None
    ) = "randaugment"
    max_epochs: Count = 60
    batch_size: Count = 64
    optimizer: Optimizer = "nesterov"
    lr: Positive = 0.03
    weight_decay: NonNegative = 5e-4
    schedule: Schedule = "fixmatch"

    @fitting
    def fit(self, X, y, sample_weight=None):
        """Train on labeled and unlabeled rows.

        Parameters
        ----------
        X : array-like
            Images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``; paths of image
            files; or vectors ``(n, D)``.
        y : array-like of shape (n_samples,)
            Classes; -1, None or NaN for unlabeled rows.
        sample_weight : array-like of shape (n_samples,), default=None
            How often a labeled row is drawn, compared with the others; times the weight
            of its class. One of weight 0 is in no batch, as an unlabeled row neither.
            Unlabeled rows have no weight.

        Returns
        -------
        self : FixMatchClassifier
        """
        samples = self._check_X(X, reset=True)
        codes = self._encode_y(y, samples)
        with self._seeded() as seed:
            rows, trained, weights, held = self._split_calibration(
                codes, samples, sample_weight, seed
            )
            mixed = Mixed(
                rows, trained, self.unlabeled_ratio, self.include_labeled, weights
            )
            module = self._build_module(*rows.statistics(), mixed)
            module.n_unused = len(mixed) - len(mixed.unlabeled)
            self._fit_net(module, mixed, watch=self._watch(held))
            module.drop_training_state()
        self._finish(samples, codes, held, y)
        self._check_pseudo_labels(module, mixed)
        return self

    def _build_module(self, mean, std, mixed=None):
        weak = self._build_augment(self.weak_augment, "weak", mean, std)
        kind = self.strong_augment
        if kind in ("randaugment", "ctaugment"):
            kind = {"randaugment": "strong", "ctaugment": "ctaugment"}[kind]
            strong = self._build_augment("auto", kind, mean, std)
        else:
            strong = self._build_augment(kind, None, mean, std)
        n_classes = len(self.classes_)
        prior = torch.full((n_classes,), 1 / n_classes)
        if mixed is not None:
            prior = torch.from_numpy(mixed.class_shares(n_classes, drawn=True)).float()
        module = _FixMatch(
            linear_classifier(self._build_backbone(mean, std), n_classes),
            self.ema_decay,
            self.ema_ramp,
            weak,
            strong,
            prior,
            len(mixed or ()),
            threshold=self.threshold,
            temperature=self.temperature,
            hard_labels=self.hard_labels,
            unlabeled_weight=self.unlabeled_weight,
            distribution_alignment=self.distribution_alignment,
            class_thresholds=self.class_thresholds,
        )
        if self._continued is not None:
            for name in ("online", "average", "n_steps", "mean_prediction"):
                setattr(module, name, getattr(self._continued, name))
        return module

    def _rebuild_module(self, mean, std):
        self._continued = None
        module = self._build_module(mean, std)
        module.drop_training_state()
        return module

    def _check_pseudo_labels(self, module, mixed):
        """Say what is wrong with the pseudo-labels of the last epoch."""
        last = self.net_.history[-1] if self.net_.history else {}
        if "pseudo_label_share" not in last:
            return  # no unlabeled row was used, or not one epoch was ended
        share = last["pseudo_label_share"]
        if share < 0.01:
            warn(
                f"{share:.1%} of the unlabeled rows reached threshold={self.threshold} "
                "in the last epoch, so that they are hardly used. Train longer, lower "
                "the threshold, or start from a fitted embedder (backbone=).",
                CollapseWarning,
            )
            return
        # the last epoch may be a part of one, or more than one pass
        n_rows = last["train_batch_count"] * mixed.n_unlabeled(self.batch_size)
        n_rows = min(n_rows, len(mixed.unlabeled))
        self._check_shares(
            np.array(last["pseudo_label_classes"]) / share,
            mixed.class_shares(len(self.classes_)),
            "pseudo-labels",
            round(share * n_rows),
            class_weight="balanced",
            class_thresholds=True,
            distribution_alignment=True,
        )
