"""Noisy Student: students with noise learn from a teacher without (Xie, 2020)."""

import copy
import functools
import itertools
from collections.abc import Callable
from dataclasses import InitVar
from numbers import Integral
from typing import Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn
from torch.nn.functional import cross_entropy

from .._core.calibration import rescale
from .._core.health import CollapseWarning
from .._core.parameters import (
    KW_ONLY,
    ArrayLike,
    AtLeastTwo,
    Augment,
    BelowOne,
    Count,
    CountOrZero,
    NonNegative,
    Optimizer,
    Positive,
    UnitInterval,
)
from .._core.samplers import Mixed, shuffled, split_labeled
from .._core.transfer import EncoderClassifier
from .._core.warn import warn
from ..augment import RandAugment
from ..backbones import build_backbone, drop_blocks_
from ..losses import noisy_student_loss
from ..modules import AveragedClassifier, frozen_copy


class _NoisyStudent(AveragedClassifier):
    """A teacher or a student; ``targets``: answers of the previous teacher."""

    _: KW_ONLY
    augment: nn.Module
    stochastic_depth: float
    stochastic_depth_rule: str
    label_smoothing: float
    number: int  # of the round; 0: the first teacher
    targets: InitVar[torch.Tensor | None]

    training_only = ("targets",)
    head_parts = ("online.2", "average.2")

    def __post_init__(self, targets):
        super().__post_init__()
        self.hooks = drop_blocks_(
            self.online, self.stochastic_depth, self.stochastic_depth_rule
        )
        # made anew from the teacher, never saved
        self.register_buffer("targets", targets, persistent=False)

    def loss(self, x, y):
        # one forward: BatchNorm sees labeled and unlabeled rows together
        logits = self.online(self.augment(x)).float()
        labeled, unlabeled, labels, rows = split_labeled(logits, y)
        targets = None if self.targets is None else self.targets[rows]
        loss = noisy_student_loss(
            labeled, labels, unlabeled, targets, self.label_smoothing
        )
        return loss, {"labeled_loss": cross_entropy(labeled.detach(), labels)}

    def after_epoch(self, net, sampler):
        return {"round": self.number}

    def drop_training_state(self):
        """Forget the teacher's answers, and switch off stochastic depth."""
        super().drop_training_state()
        for hook in self.hooks:
            hook.remove()
        self.hooks = []


class _Taught(Mixed):
    """Labeled rows, and as many copies of each unlabeled row as a teacher gives it.

    An epoch has the same length however many unlabeled rows are kept, so all rounds are
    equally long.
    """

    copies = None

    def epoch(self, batch_size):
        kept = np.empty(0, int)
        if self.copies is not None:
            kept = np.repeat(np.arange(len(self)), self.copies)
        passes = (shuffled(kept) for _ in itertools.count())
        stream = itertools.chain.from_iterable(passes) if len(kept) else iter(())
        for labeled, unlabeled in super().epoch(batch_size):
            part = itertools.islice(stream, len(unlabeled))
            yield labeled, np.fromiter(part, int)


def _class_threshold(scores, n_rows, threshold):
    """Return the highest hundredth that ``n_rows`` scores of one class reach.

    ``threshold`` where fewer rows than that reach it.
    """
    grid = np.arange(100, -1, -1) / 100
    grid = grid[grid >= threshold]
    counts = len(scores) - np.searchsorted(np.sort(scores), grid)
    enough = np.flatnonzero(counts >= n_rows)
    return grid[enough[0]] if len(enough) else threshold


def _balanced_copies(p, draws, n_rows, threshold=0.3, duplicate=True):
    """Filter and balance pseudo-labels; return how often a student sees each row.

    Parameters
    ----------
    p : ndarray of shape (n, K)
        Probabilities.
    draws : ndarray of shape (n,)
        Uniform in [0, 1): rows above the threshold of their class get the same number
        of copies in expectation.
    n_rows : int or None
        Copies per class; None: every row above ``threshold`` once.
    threshold : float
        Smallest probability.
    duplicate : bool
        Whether a row may have several copies.

    Returns
    -------
    copies : ndarray of int of shape (n,)
    """
    classes, scores = p.argmax(1), p.max(1).astype(np.float64)
    copies = (scores >= threshold).astype(int)
    if n_rows is None:
        return copies
    for k in range(p.shape[1]):
        rows = np.flatnonzero(classes == k)
        kept = scores[rows] >= _class_threshold(scores[rows], n_rows, threshold)
        share = n_rows / max(1, kept.sum())
        if not duplicate:
            share = min(share, 1)
        copies[rows] = kept * (int(share) + (draws[rows] < share - int(share)))
    return copies


def _metrics(copies, p, before):
    """Return what a student was taught with, and its agreement with its teacher.

    Parameters
    ----------
    copies : ndarray of int of shape (n,)
    p, before : ndarray of shape (n, K)
        Probabilities after the round and before it, of the unlabeled rows.
    """
    classes, kept = before.argmax(1), copies > 0
    counts = np.bincount(classes[kept], minlength=p.shape[1])
    return {
        "pseudo_label_share": float(kept.mean()),
        "pseudo_label_classes": (counts / len(copies)).tolist(),
        "pseudo_label_agreement": float((p.argmax(1) == classes).mean()),
    }


class NoisyStudentClassifier(EncoderClassifier):
    """Classify images by a chain of students, each taught by the one before.

    A teacher learns from the labels and predicts, without noise, the class
    probabilities of every unlabeled image. A student of the same size or larger learns
    from the confident predictions, balanced by class, under noise: strong augmentation,
    dropout and stochastic depth. Then the student becomes the teacher. Read more in the
    :ref:`User Guide <noisy_student>`.

    Parameters
    ----------
    n_rounds : int
        Students trained after the first teacher; 0: the teacher alone, plain supervised
        training on the labeled rows.
    threshold : float
        Smallest probability of a pseudo-label, in [0, 1].
    unlabeled_ratio : float
        Unlabeled rows per labeled row in a batch, >= 0. Published: 1 to 5; 14 for the
        largest network.
    student_backbone : spec or list of n_rounds specs or None
        Encoders of the students, as large as the teacher's or larger, for example
        ``["resnet9", "wrn_28_2", "wrn_28_2"]``; a single spec is used for all students;
        None: ``backbone``.
    hard_labels : bool
        Whether the target is the most probable class, or the probabilities.
    temperature : float
        Divides the teacher's logits in the targets, > 0, but not where rows are chosen.
    rows_per_class : int, "auto" or None
        Rows per class that a student is taught with: for common classes some confident
        rows are drawn, for rare classes the confident rows are copied. "auto": the mean
        over the classes of the rows above the threshold; None: each row above the
        threshold once. Published: 130,000 for ImageNet.
    duplicate : bool
        Whether rows of rare classes are copied.
    dropout : float
        Dropout rate before the last layer, in [0, 1). Published: 0.2 for the smallest
        network to 0.5 for the largest.
    stochastic_depth : float
        Probability that the last residual block is skipped for a row, in [0, 1); it is
        proportionally smaller in earlier blocks. Networks without residual blocks, such
        as the one for vectors, ignore it.
    stochastic_depth_rule : {"linear", "efficientnet"}
        "linear": the first block counts as 1. "efficientnet": as 0, as in the released
        code; the first block is then never skipped, and the last a little less often.
    label_smoothing : float
        Share of a label's weight that is spread over all classes, in [0, 1]; also for
        hard pseudo-labels, never for soft ones.
    ema_decay : float
        Decay of the averaged weights, in [0, 1); it grows as (1 + t) / (10 + t) up to
        this. Published: 0.9999.
    noisy_teacher : bool
        Whether the first teacher is trained with all the noise of the students, as
        published; False: with weak views alone, which is better with few labels.
    weak_augment : "auto", nn.Module or None
        Weak view; "auto": :class:`sklabel.augment.Weak` for images,
        :class:`sklabel.augment.VectorNoise` for vectors. Turn off flips for digits:
        ``Weak(flip=0)``.
    strong_augment : {"randaugment"}, nn.Module or None
        Strong view of all rows that a student is trained on, applied after a weak one;
        "randaugment": :class:`sklabel.augment.RandAugment` with ``probability=1,
        cutout=0`` for images, more noise for vectors. Published for 32 x 32 pixels:
        ``cutout=0.5``.
    max_epochs : int
        Length of each round, the teacher's included, in passes over the unlabeled rows,
        kept or not, or over the labeled rows if that takes more steps. Published: 350
        passes over the labeled rows.
    max_steps : int or None
        Length of each round in optimizer steps; overrides ``max_epochs``.
    batch_size : int
        Labeled samples per step; labeled rows are repeated as needed.
    optimizer
        Published: ``torch.optim.RMSprop``, with ``lr=0.016 * batch_size / 256``.
    weight_decay
        Published: 1e-5.
    schedule : {"cosine", "truncated_cosine", "step", "constant"} or callable
        Learning rate schedule after the warm-up, in each round. Published:
        :func:`sklabel.optim.exponential_decay`.

    Attributes
    ----------
    n_rounds_ : int
        Students trained; the last one predicts. Fewer than ``n_rounds`` if a round had
        no pseudo-labels.
    net_ : skorch.NeuralNet
        Trained net of the last round; ``net_.history`` holds the epochs of all rounds,
        with ``round`` (0: the first teacher), ``train_loss`` and ``labeled_loss``
        (without smoothing). Epochs of students also have values of the whole round:
        ``pseudo_label_share`` and ``pseudo_label_classes`` (share of all unlabeled rows
        that the student was taught with, copies not counted, in total and per class),
        and ``pseudo_label_agreement`` (share of the unlabeled rows whose most probable
        class is the same after this round as before it). With ``calibration_size`` all
        have ``held_accuracy`` (on the rows withheld).
    encoder_ : nn.Module
        Trained encoder with averaged weights.
    n_iter_ : int
        Epochs trained, all rounds together.
    interrupted_
        If a student's round is interrupted, it is dropped and its teacher predicts.

    Raises
    ------
    ValueError
        If no row is labeled, all labels are of one class, y does not fit X, too few
        rows are labeled for ``calibration_size``, or ``student_backbone`` does not have
        ``n_rounds`` entries.

    Warns
    -----
    CollapseWarning
        If, in the last round, hardly any unlabeled row has a pseudo-label, or a class
        has none or nearly all of them; or if, with ``calibration_size``, the accuracy
        on the withheld rows has fallen at the end, or if a linear probe on the
        pretrained encoder's features predicts the given labels better than the network.

    See Also
    --------
    FixMatchClassifier : One network that teaches itself, batch by batch.
    sklabel.selection.USLSelector : Choose the rows to label.

    Notes
    -----
    Unlabeled rows are -1 in y, as in :mod:`sklearn.semi_supervised`; None and NaN mean
    the same. Put class names into an object array, ``y = np.array(names,
    dtype=object)``.

    Pseudo-labels are predicted without noise, with averaged weights. Differences from
    the paper: the first teacher is trained on weak views (``noisy_teacher``); rows are
    chosen again in each round, while the public code keeps the first choice; strengths
    of RandAugment's operations are drawn, not fixed; there is no final training at a
    higher resolution. With ``warm_start`` there is no new teacher: the last fit's
    network teaches, and the students continue from its weights. Time: ``n_rounds + 1``
    trainings; memory: the targets, 4 bytes per row and class.

    Another difference: a pretrained encoder, such as a fitted embedder, is trained at a
    lower learning rate with its BatchNorm frozen, below a last layer that is
    initialized by logistic regression (LP-FT [3]_), after a warm-up. At the full rate,
    a hundred steps on a few dozen labels undo the pretraining. As published:
    ``backbone_lr=1, head_init="random", warmup_epochs=0``.

    References
    ----------
    .. [1] Q. Xie, M.-T. Luong, E. Hovy, Q. V. Le, "Self-training with Noisy Student
       improves ImageNet classification", CVPR 2020; algorithm 1.
    .. [2] G. Huang et al., "Deep networks with stochastic depth", ECCV 2016.
    .. [3] A. Kumar et al., "Fine-tuning can distort pretrained features and
       underperform out-of-distribution", ICLR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.classification import NoisyStudentClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 100, y, -1)
    >>> clf = NoisyStudentClassifier(n_rounds=1, max_epochs=5, random_state=0)
    >>> clf.fit(X, y_partly).transduction_.shape
    (1797,)
    """

    n_rounds: CountOrZero = 3
    threshold: UnitInterval = 0.3
    unlabeled_ratio: NonNegative = 3
    _: KW_ONLY
    student_backbone: str | nn.Module | BaseEstimator | ArrayLike | None = None
    hard_labels: bool = False
    temperature: Positive = 1.0
    rows_per_class: Literal["auto"] | Count | None = "auto"
    duplicate: bool = True
    dropout: BelowOne = 0.2
    stochastic_depth: BelowOne = 0.2
    stochastic_depth_rule: Literal["linear", "efficientnet"] = "linear"
    label_smoothing: UnitInterval = 0.1
    ema_decay: BelowOne = 0.999
    noisy_teacher: bool = False
    weak_augment: Augment = "auto"
    strong_augment: Literal["randaugment"] | nn.Module | Callable | None = "randaugment"
    max_epochs: Count = 30
    batch_size: AtLeastTwo = 64
    optimizer: Optimizer = "nesterov"
    lr: Positive = 0.03
    weight_decay: NonNegative = 5e-4

    def _train(self, X, labeled, seed):
        self._backbone_of(self.n_rounds)  # a wrong list is told of before the training
        taught = _Taught(
            labeled.rows, labeled.codes, self.unlabeled_ratio, False, labeled.weights
        )
        statistics = labeled.rows.statistics()
        n_rounds = self.n_rounds if len(taught.unlabeled) else 0
        self.n_rounds_ = self.n_iter_ = 0
        # in a warm start it is the last fit's network that teaches and goes on learning
        last = continued = self._continued
        if continued is None or not n_rounds:
            first = self._build_module(*statistics, 0, None, last)
            self._train_round(first, taught, labeled, last is None)
        p = self._forward_rows(labeled.rows)
        while self.n_rounds_ < n_rounds and not self.interrupted_:
            taught.copies = self._copies(p, taught.unlabeled)
            if not taught.copies.any():
                break
            teacher, n_iter = self.net_, self.n_iter_
            student = self._build_module(*statistics, self.n_rounds_ + 1, p, last)
            self._train_round(student, taught, labeled, last is None)
            if self.interrupted_:
                self.net_, self.n_iter_ = teacher, n_iter
                break
            self.n_rounds_ += 1
            p, before = self._forward_rows(labeled.rows), p
            self._record(taught, p, before)
            last = None if continued is None else student
        if continued is None:
            self._network = self.n_rounds_  # the weights fit the network of this round
        return taught

    def _train_round(self, module, taught, labeled, fresh):
        name = f"round-{module.number}"
        self._labeled_stage(name, module, taught, labeled, fresh)
        module.drop_training_state()

    def _record(self, taught, p, before):
        """Write the values of the whole last round into its epochs."""
        rows = taught.unlabeled
        metrics = _metrics(taught.copies[rows], p[rows], before[rows])
        for epoch in self.net_.history:
            if epoch["round"] == self.n_rounds_:
                epoch.update(metrics)

    def _copies(self, p, rows):
        """Return how often the next student sees each row of X."""
        n_rows = self.rows_per_class
        if n_rows == "auto":
            confident = rows[p[rows].max(1).astype(np.float64) >= self.threshold]
            n_classes = len(np.unique(p[confident].argmax(1)))
            n_rows = max(1, round(len(confident) / max(1, n_classes)))
        draws = torch.rand(len(rows), dtype=torch.float64).numpy()
        copies = np.zeros(len(p), int)
        copies[rows] = _balanced_copies(
            p[rows], draws, n_rows, self.threshold, self.duplicate
        )
        return copies

    def _backbone_of(self, number):
        """Return the spec of a round's encoder."""
        specs = self.student_backbone
        if number == 0 or specs is None:
            return self.backbone
        if not isinstance(specs, (list, tuple)):
            return specs
        if len(specs) != self.n_rounds:
            raise ValueError(
                f"student_backbone has {len(specs)} entries; it must have one for each "
                f"of n_rounds={self.n_rounds} students."
            )
        return specs[min(number, len(specs)) - 1]

    def _build_module(self, mean, std, number, p=None, last=None):
        """Return the network of a round; p (n, K) are the probabilities it learns."""
        if last is None:
            online = self._build_network(number, mean, std)
            average = frozen_copy(online)
        elif last is self._continued:
            made = functools.partial(self._build_network, self._network, mean, std)
            online, average = self._part("online", made), self._part("average", made)
            average = frozen_copy(average)
        else:
            # copies, since what was trained before is needed if this is broken off
            online, average = copy.deepcopy(last.online), frozen_copy(last.average)
        noisy = number > 0 or self.noisy_teacher
        online[1].p = self.dropout if noisy else 0.0
        module = _NoisyStudent(
            online,
            self.ema_decay,
            average=average,
            augment=self._build_views(noisy, mean, std),
            stochastic_depth=self.stochastic_depth if noisy else 0.0,
            stochastic_depth_rule=self.stochastic_depth_rule,
            label_smoothing=self.label_smoothing,
            number=number,
            targets=self._targets(p),
        )
        if last is not None:
            module.n_steps = last.n_steps
        return module

    def _build_network(self, number, mean, std):
        spec = self._backbone_of(number)
        backbone = build_backbone(spec, self.sample_shape_, mean, std)
        head = nn.Linear(backbone.n_features_out, len(self.classes_))
        return nn.Sequential(backbone, nn.Dropout(), head)

    def _targets(self, p):
        """Return what a student learns from the probabilities of its teacher (n, K)."""
        if p is None:
            return None
        p = p.argmax(1) if self.hard_labels else rescale(p, self.temperature)
        return torch.from_numpy(p)

    def _build_views(self, noisy, mean, std):
        weak = self._build_augment(self.weak_augment, "weak", mean, std)
        if not noisy:
            return weak
        strong = "auto" if self.strong_augment == "randaugment" else self.strong_augment
        # as published, every operation that is drawn is applied
        published = RandAugment(probability=1, cutout=0)
        strong = self._build_augment(strong, published, mean, std, noise=0.2)
        return nn.Sequential(weak, strong)

    def _rebuild_module(self, mean, std):
        module = self._build_module(mean, std, self._network)
        module.drop_training_state()
        return module

    def _check_health(self, taught):
        """Warn if the last round had few pseudo-labels, or hardly any of a class."""
        if taught.copies is None:
            return  # no student, or no unlabeled row
        if not taught.copies.any():
            warn(
                f"No unlabeled row reached threshold={self.threshold}, so round "
                f"{self.n_rounds_ + 1} of {self.n_rounds} has no pseudo-labels and "
                "the training stops. Train longer, lower the threshold, or start from "
                "a fitted embedder (backbone=).",
                CollapseWarning,
            )
            return
        last = self.net_.history[-1]
        if "pseudo_label_share" not in last:
            return  # interrupted
        share = last["pseudo_label_share"]
        if share < 0.01 and not isinstance(self.rows_per_class, Integral):
            self._warn_hardly_used(share, "round")
            return
        self._check_shares(
            np.array(last["pseudo_label_classes"]) / max(share, 1e-12),
            taught.class_shares(len(self.classes_)),
            "pseudo-labels",
            round(share * len(taught.unlabeled)),
            f"a threshold above {self.threshold}",
            class_weight="balanced",
        )
