"""FixMatch: pseudo-labels from weak views teach strong views (Sohn et al., 2020)."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, one_hot

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
from .._core.processes import gathered
from .._core.samplers import split_labeled
from .._core.transfer import EncoderClassifier
from ..losses import pseudo_label, self_adaptive_fairness
from ..modules import (
    AveragedClassifier,
    ClassThresholds,
    Debiasing,
    DistributionAlignment,
    EveryRow,
    FixedThreshold,
    FreeThresholds,
    LowEnergy,
    NoAlignment,
    PredictedAlignment,
    PredictedClasses,
    RelativeThreshold,
    SoftWeights,
    linear_classifier,
    probe_policy_,
)


class _FixMatch(AveragedClassifier):
    _: KW_ONLY
    weak: nn.Module
    strong: nn.Module
    align: nn.Module
    thresholds: nn.Module
    inliers: nn.Module
    predicted: nn.Module
    temperature: float
    hard_labels: bool
    unlabeled_weight: float
    fairness_weight: float
    interpolated: bool

    training_only = ("thresholds", "predicted")
    renamed = {"prior": "align.prior", "mean_prediction": "align.mean_prediction"}

    def loss(self, x, y):
        x_labeled, x_unlabeled, labels, rows = split_labeled(x, y)
        return self.loss_of(self.weak(x_labeled), labels, x_unlabeled, rows)

    def loss_of(self, seen, labels, x_unlabeled, rows):
        """Return the loss, given the weak views of the labeled rows."""
        views = [seen]
        if len(rows):
            views += [self.weak(x_unlabeled), self.strong(self.weak(x_unlabeled))]
        labeled, *others = (gathered(part) for part in self._logits(views))
        labels, rows = gathered(labels), gathered(rows)
        labeled_loss = cross_entropy(labeled, labels)
        if not len(rows):
            return labeled_loss
        weak, strong = others
        known, said = labeled.detach(), weak.detach()
        weak = self.align(said, self.n_steps + 1, known)
        strong = self.align.adjust(strong)
        weights = self.inliers(said, self.thresholds.weigh(rows, weak, known))
        unlabeled_loss, _ = pseudo_label(
            weak,
            strong,
            temperature=self.temperature,
            hard=self.hard_labels,
            weights=weights,
        )
        loss = labeled_loss + self.unlabeled_weight * unlabeled_loss
        classes, used = weak.argmax(1), weights.float()
        shares = one_hot(classes, weak.shape[1]) * used[:, None]
        if self.fairness_weight:
            averages = self.thresholds.mean_prediction, self.thresholds.class_shares
            fairness = self_adaptive_fairness(strong, weights, *averages)
            loss = loss + self.fairness_weight * fairness
        return loss, {
            "labeled_loss": labeled_loss.detach(),
            "pseudo_label_share": used.mean(),
            "pseudo_label_classes": shares.mean(0),
            "pseudo_label_agreement": self.predicted.update(rows, classes),
        }

    def _logits(self, views):
        """Return the logits of labeled views, and of weak and strong ones."""
        # one forward: BatchNorm sees labeled, weak and strong views together
        seen = views[::2] if self.average_buffers else views
        logits = self.online(torch.cat(seen)).float()
        logits = list(logits.split([len(part) for part in seen]))
        if self.interpolated and len(views[0]) > 1:  # BatchNorm cannot train on one
            logits[0] = self._interpolate(views[0], logits[0])
        if len(seen) < len(views):
            with torch.no_grad():  # the average is a teacher
                logits.insert(1, self.average(views[1]).float())
        return logits

    def _interpolate(self, views, logits):
        """Mix logits at random with those of a batch of these views alone."""
        # running statistics are those of all rows
        own = {name: value.clone() for name, value in self.online.named_buffers()}
        alone = functional_call(self.online, own, views).float()
        return logits + (alone - logits) * torch.rand_like(logits)


class _CTAugmented(_FixMatch):
    """Weak views of labeled rows set the strength of the strong views."""

    def loss_of(self, seen, labels, x_unlabeled, rows):
        loss = super().loss_of(seen, labels, x_unlabeled, rows)
        probe_policy_(self.strong, self.average, seen, labels)
        return loss


class FixMatchClassifier(EncoderClassifier):
    """Classify images from a few labels and many unlabeled images.

    A weakly augmented unlabeled image gets a prediction; if its probability reaches a
    threshold, the predicted class becomes the target for a strongly augmented view of
    the same image. Labeled rows give ordinary cross-entropy. Predictions come from a
    moving average of the weights. Read more in the :ref:`User Guide <classification>`.

    Parameters
    ----------
    threshold : float, "free" or "soft"
        Smallest probability of a pseudo-label, in [0, 1]. Paper: tau. "free": the mean
        confidence so far, lower for classes that are predicted with less confidence
        (FreeMatch [5]_). "soft": every row counts; below the mean confidence, its
        weight falls with its confidence (SoftMatch [6]_).
    unlabeled_weight : float
        Weight of the unlabeled loss, >= 0. Paper: lambda_u.
    unlabeled_ratio : float
        Unlabeled rows per labeled row in a batch, >= 0. Paper: mu.
    temperature : float
        Divides the weak view's logits, > 0.
    hard_labels : bool
        Whether the target is the most probable class; False: the probabilities.
    include_labeled : bool
        Whether labeled images are also used as unlabeled ones.
    distribution_alignment : bool, "predictions" or "debiased"
        Whether predictions on weak views are scaled so that their mean is the class
        distribution of the labeled rows, as drawn (ReMixMatch [2]_). "predictions": so
        that it is the mean of the predictions for labeled rows (AdaMatch [7]_).
        "debiased": the logarithm of the mean prediction is subtracted from the logits
        of weak views and added to those of strong views (DebiasPL [8]_).
    debias_strength : float
        With "debiased": factor of the logarithm of the mean prediction, >= 0.
    debias_decay : float
        With "debiased": decay of the mean prediction, in [0, 1). Published for
        ImageNet: 0.99.
    relative_threshold : bool
        Whether ``threshold`` is a share of the mean confidence in the labeled rows of
        the batch (AdaMatch). Published: True, with ``threshold=0.9``.
    logit_interpolation : bool
        Whether labeled rows also pass through the network without unlabeled ones, and
        their logits are random mixtures of both passes (AdaMatch), so that BatchNorm
        normalizes labeled and unlabeled rows alike.
    class_thresholds : bool
        Whether the threshold of a class is lower while fewer rows are confident of it
        (FlexMatch [3]_).
    energy_threshold : float or None
        Only rows with an energy (minus the log-sum-exp of the logits) below this count;
        the others fit no class, such as images of another kind (InPL [10]_). Published
        for CIFAR-10: -9.5, with ``threshold=0``.
    threshold_decay : float
        Decay of the averages that ``threshold="free"`` and "soft" use, in [0, 1).
    soft_sharpness : float
        With ``threshold="soft"``: how fast weights fall below the mean confidence, > 0.
        Paper: n in n_sigma.
    fairness_weight : float
        With ``threshold="free"``: weight of the term that keeps predictions on strong
        views near the class distribution, >= 0. Published: 0.01 or 0.05.
    ema_decay : float
        Decay of the averaged weights, in [0, 1).
    ema_ramp : bool
        Whether decays grow as (1 + t) / (10 + t) up to ``ema_decay``,
        ``threshold_decay`` and ``debias_decay``. The papers have no ramp; without it, a
        training of a few hundred steps ends with averaged weights close to the random
        initial ones.
    teacher : {"online", "average"}
        Which network predicts the pseudo-labels: the trained one, or the one with
        averaged weights in evaluation mode, with averaged BatchNorm statistics (EMAN
        [9]_).
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
        Published for CIFAR-100: 1e-3.
    schedule : {"cosine", "truncated_cosine", "step", "constant"} or callable
        Learning rate schedule after the warm-up; "truncated_cosine", also called
        "fixmatch": cos(7 pi k / 16 K).

    Attributes
    ----------
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``labeled_loss``,
        ``pseudo_label_share`` and ``pseudo_label_classes`` (shares of all unlabeled
        rows, per class), and ``pseudo_label_agreement`` (share of the unlabeled rows
        whose most probable class has not changed); with ``calibration_size`` also
        ``held_accuracy`` (on the rows withheld).
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
        If, at the end, hardly any unlabeled row has a pseudo-label, or a class has none
        or nearly all of them; or if, with ``calibration_size``, the accuracy on the
        withheld rows has fallen at the end, or if a linear probe on the pretrained
        encoder's features predicts the given labels better than the network.

    See Also
    --------
    sklabel.selection.USLSelector : Choose the rows to label.
    sklabel.model_selection.LabeledKFold : Cross-validation with partly labeled y.

    Notes
    -----
    Unlabeled rows are -1 in y, as in :mod:`sklearn.semi_supervised`; None and NaN mean
    the same. Put class names into an object array, ``y = np.array(names,
    dtype=object)``. The published setting is ``backbone="wrn_28_2", max_steps=2**20,
    ema_ramp=False``.

    Another difference: a pretrained encoder, such as a fitted embedder, is trained at a
    lower learning rate with its BatchNorm frozen, below a last layer that is
    initialized by logistic regression (LP-FT [4]_), after a warm-up. At the full rate,
    a hundred steps on a few dozen labels undo the pretraining. As published:
    ``backbone_lr=1, head_init="random", warmup_epochs=0``.

    References
    ----------
    .. [1] K. Sohn et al., "FixMatch: simplifying semi-supervised learning with
       consistency and confidence", NeurIPS 2020; algorithm 1.
    .. [2] D. Berthelot et al., "ReMixMatch: semi-supervised learning with distribution
       alignment and augmentation anchoring", ICLR 2020; section 3.1.
    .. [3] B. Zhang et al., "FlexMatch: boosting semi-supervised learning with
       curriculum pseudo labeling", NeurIPS 2021; equations 5, 7, 10 and 12.
    .. [4] A. Kumar et al., "Fine-tuning can distort pretrained features and
       underperform out-of-distribution", ICLR 2022.
    .. [5] Y. Wang et al., "FreeMatch: self-adaptive thresholding for semi-supervised
       learning", ICLR 2023.
    .. [6] H. Chen et al., "SoftMatch: addressing the quantity-quality trade-off in
       semi-supervised learning", ICLR 2023.
    .. [7] D. Berthelot et al., "AdaMatch: a unified approach to semi-supervised
       learning and domain adaptation", ICLR 2022.
    .. [8] X. Wang et al., "Debiased learning from naturally imbalanced pseudo-labels",
       CVPR 2022.
    .. [9] Z. Cai et al., "Exponential moving average normalization for self-supervised
       and semi-supervised learning", CVPR 2021.
    .. [10] Z. Yu, Y. Li, Y. J. Lee, "InPL: pseudo-labeling the inliers first for
       imbalanced semi-supervised learning", ICLR 2023.

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

    threshold: UnitInterval | Literal["free", "soft"] = 0.95
    unlabeled_weight: NonNegative = 1.0
    unlabeled_ratio: NonNegative = 7
    _: KW_ONLY
    temperature: Positive = 1.0
    hard_labels: bool = True
    include_labeled: bool = True
    distribution_alignment: bool | Literal["predictions", "debiased"] = False
    debias_strength: NonNegative = 0.4
    debias_decay: BelowOne = 0.999
    relative_threshold: bool = False
    logit_interpolation: bool = False
    class_thresholds: bool = False
    energy_threshold: float | None = None
    threshold_decay: BelowOne = 0.999
    soft_sharpness: Positive = 2.0
    fairness_weight: NonNegative = 0.0
    ema_decay: BelowOne = 0.999
    ema_ramp: bool = True
    teacher: Literal["online", "average"] = "online"
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

    # parameters that set the thresholds in ways of their own
    _ways = ("class_thresholds", "relative_threshold")

    def _train(self, X, labeled, seed):
        mixed = labeled.mixed(self.unlabeled_ratio, self.include_labeled)
        module = self._build_module(*labeled.rows.statistics(), mixed)
        self._labeled_stage("fit", module, mixed, labeled)
        return mixed

    def _build_module(self, mean, std, mixed=None):
        weak = self._build_augment(self.weak_augment, "weak", mean, std)
        strong = self._build_strong(self.strong_augment, mean, std)
        n_classes = len(self.classes_)
        module = (_CTAugmented if hasattr(strong, "probe") else _FixMatch)(
            linear_classifier(self._build_backbone(mean, std), n_classes),
            self.ema_decay,
            self.ema_ramp,
            average_buffers=self.teacher == "average",
            weak=weak,
            strong=strong,
            align=self._build_alignment(n_classes, mixed),
            thresholds=self._build_thresholds(n_classes, mixed),
            inliers=self._build_inliers(),
            predicted=PredictedClasses(len(mixed or ())),
            temperature=self.temperature,
            hard_labels=self.hard_labels,
            unlabeled_weight=self.unlabeled_weight,
            fairness_weight=self.fairness_weight,
            interpolated=self.logit_interpolation,
        )
        return self._take_over(module, "online", "average", "n_steps")

    def _build_alignment(self, n_classes, mixed):
        align = {
            False: NoAlignment,
            True: lambda: DistributionAlignment(self._label_shares(n_classes, mixed)),
            "predictions": lambda: PredictedAlignment(n_classes),
            "debiased": lambda: Debiasing(
                n_classes, self.debias_strength, self.debias_decay, self.ema_ramp
            ),
        }[self.distribution_alignment]()
        before = getattr(self._continued, "align", None)
        if type(before) is type(align):
            for name in align.learned:
                setattr(align, name, getattr(before, name))
        return align

    def _build_inliers(self):
        if self.energy_threshold is None:
            return EveryRow()
        return LowEnergy(self.energy_threshold)

    def _label_shares(self, n_classes, mixed):
        if mixed is None:
            return torch.full((n_classes,), 1 / n_classes)
        return torch.from_numpy(mixed.class_shares(n_classes, drawn=True)).float()

    def _check_settings(self):
        super()._check_settings()
        asked = [f"{n}=True" for n in self._ways if getattr(self, n)]
        if isinstance(self.threshold, str):
            asked = [f"threshold={self.threshold!r}", *asked]
        if len(asked) > 1:
            raise ValueError(
                f"{' and '.join(asked)} are alternative ways to select pseudo-labels: "
                "choose one."
            )
        if self.fairness_weight and self.threshold != "free":
            raise ValueError(
                f"fairness_weight={self.fairness_weight} needs the averages that "
                f'threshold="free" keeps, but threshold={self.threshold!r}.'
            )

    def _build_thresholds(self, n_classes, mixed):
        n_rows, n_seen = 0, 0
        if mixed is not None:
            n_rows, n_seen = len(mixed), len(mixed.unlabeled)
        # soft targets are sharpened after the rows have been chosen
        own = {"temperature": self.temperature if self.hard_labels else 1.0}
        averages = {"decay": self.threshold_decay, "ramp": self.ema_ramp, **own}
        threshold = self.threshold
        kinds = {
            "class_thresholds": lambda: ClassThresholds(
                threshold, n_classes, n_rows, n_rows - n_seen, **own
            ),
            "relative_threshold": lambda: RelativeThreshold(threshold, **own),
            "free": lambda: FreeThresholds(n_classes, **averages),
            "soft": lambda: SoftWeights(n_classes, self.soft_sharpness, **averages),
        }
        asked = [name for name in self._ways if getattr(self, name)]
        kind = asked[0] if asked else threshold
        return kinds.get(kind, lambda: FixedThreshold(threshold, **own))()

    def _check_health(self, mixed):
        """Warn if the last epoch had few pseudo-labels, or hardly any of a class."""
        last = self.net_.history[-1] if self.net_.history else {}
        if "pseudo_label_share" not in last:
            return  # no unlabeled row was used, or not one epoch was ended
        share = last["pseudo_label_share"]
        if share < 0.01:
            self._warn_hardly_used(share, "epoch", *self._excluding())
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
            **({"class_thresholds": True} if self._may_vary() else {}),
            distribution_alignment=True,
        )

    def _may_vary(self):
        """Return whether ``class_thresholds`` can be set."""
        return not isinstance(self.threshold, str) and not self.relative_threshold

    def _excluding(self):
        """Return by which rule rows are used, and how more of them would be."""
        if self.energy_threshold is None:
            return ()
        energy = f"an energy below energy_threshold={self.energy_threshold}"
        if isinstance(self.threshold, str) or not self.threshold:
            return f"had {energy}", "raise energy_threshold"
        return (
            f"reached threshold={self.threshold} with {energy}",
            "lower threshold or raise energy_threshold",
        )
