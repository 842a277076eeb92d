"""SimCLRv2: pretrain, fine-tune from the head's middle, distill (Chen et al., 2020)."""

import copy
from typing import Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from .._core.freezing import thaw_
from .._core.learner import unfrozen
from .._core.parameters import (
    KW_ONLY,
    AtLeastTwo,
    Augment,
    Count,
    CountOrZero,
    NonNegative,
    Positive,
    UnitInterval,
)
from .._core.samplers import Shuffled, count_labeled
from .._core.transfer import EncoderClassifier
from ..backbones import build_backbone
from ..embedding import SimCLRTransformer
from ..losses import distillation
from ..modules import LinearHeaded, frozen_copy, split_batchnorm_


class _FineTuned(LinearHeaded):
    """Encoder, the first layers of its projection head, and a new linear layer."""

    backbone: nn.Module
    project: nn.Sequential
    n_classes: int
    augment: nn.Module | None = None

    encoder_parts = ("backbone", "project")

    def __post_init__(self):
        widths = [
            m.out_features for m in self.project.modules() if hasattr(m, "out_features")
        ]
        n_features = [self.backbone.n_features_out, *widths][-1]
        self.head = nn.Linear(n_features, self.n_classes)
        # as published: every class is equally likely at first
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def logits(self, x):
        return self.head(self.project(self.backbone(x))).float()  # (B, K)

    def forward(self, x):
        return self.logits(x).softmax(1)

    def loss(self, x, y):
        return cross_entropy(self.logits(self.augment(x)), y)

    def after_epoch(self, net, sampler):
        return {"stage": "fine-tune"}


class _Distilled(LinearHeaded):
    """A student learns to predict what its teacher predicts for every row."""

    teacher: _FineTuned
    student: _FineTuned
    augment: nn.Module
    temperature: float
    alpha: float

    frozen = ("teacher",)
    encoder_parts = ("student.backbone",)
    head_parts = ("student.head",)

    def __post_init__(self):
        self.teacher = frozen_copy(self.teacher)

    @property
    def backbone(self):
        return self.student.backbone

    def forward(self, x):
        # confident answers of the teacher, sharpened, are matched by small logits
        temperature = self.temperature if self.alpha > 0 else 1
        return (self.student.logits(x) / temperature).softmax(1)  # (B, K)

    def loss(self, x, y):
        n_labeled = count_labeled(y) if self.alpha < 1 else 0
        x = self.augment(x)
        # where every row is labeled, those are what there is to distill
        first = n_labeled if n_labeled < len(x) else 0
        with torch.no_grad():
            teacher_logits = self.teacher.logits(x[first:])
        # one forward: BatchNorm sees labeled and unlabeled rows together
        logits = self.student.logits(x)
        student_logits = logits[first:]
        loss = distillation(teacher_logits, student_logits, self.temperature)
        classes = student_logits.argmax(1)
        metrics = {
            "distillation_loss": loss.detach(),
            "teacher_agreement": (teacher_logits.argmax(1) == classes).float().mean(),
            "class_shares": one_hot(classes, logits.shape[1]).float().mean(0),
        }
        if n_labeled:
            labeled_loss = cross_entropy(logits[:n_labeled], y[:n_labeled])
            metrics["labeled_loss"] = labeled_loss.detach()
            loss = (1 - self.alpha) * labeled_loss + self.alpha * loss
        return loss, metrics

    def after_epoch(self, net, sampler):
        return {"stage": "distill"}


class SimCLRv2Classifier(EncoderClassifier):
    """Classify images with a network that is pretrained on all of them without labels.

    Three stages: a network learns from all images without labels (contrastive
    pretraining); it is fine-tuned on the labeled ones, together with the first layer of
    the projection head, which other methods discard; then a student, which may be a
    smaller network, learns to predict what this teacher predicts for every image. The
    student makes the predictions. Read more in the :ref:`User Guide <simclrv2>`.

    Parameters
    ----------
    embedder : estimator or None
        Pretrains the encoder; cloned and fitted, or used as is in a
        :class:`sklearn.frozen.FrozenEstimator`. None:
        :class:`sklabel.embedding.SimCLRTransformer` with a head of three layers, as
        published. Give one to set its views and training length; searches reach its
        parameters as ``embedder__temperature``.
    head_layer : int
        Number of layers of the projection head that are kept in fine-tuning; 0: the
        encoder only, as for embedders without a projection head. Published: 1 with few
        labels, 0 if all rows are labeled.
    student_backbone : str, nn.Module, fitted embedder or None
        Network of the student, see :func:`sklabel.backbones.build_backbone`; a name
        starts from random weights. None: the embedder's, with its pretrained weights.
    temperature : float
        Divides the logits of teacher and student, > 0; in prediction too, unless
        ``alpha`` is 0. Published: 0.1 for a student like the teacher, 1 for a smaller
        one.
    alpha : float
        Weight of the distillation, in [0, 1]; labeled rows add their cross-entropy with
        the weight 1 - alpha.
    distill_epochs : int
        Passes of the distillation over X or, with ``alpha`` below 1, over the labeled
        rows if that takes more steps; 0: no distillation, and the teacher predicts.
        Published: 400.
    distill_batch_size : int
        Rows of X per step of the distillation. Published: 4096.
    distill_lr : float or None
        Peak learning rate of the distillation; None: ``lr``. Published: as in the
        pretraining.
    distill_weight_decay : float
        Weight decay in the distillation.
    augment : "auto", nn.Module or None
        Random views in fine-tuning and distillation; teacher and student see the same.
        "auto": :class:`sklabel.augment.Weak` for images,
        :class:`sklabel.augment.VectorNoise` for vectors. Turn off flips for digits:
        ``Weak(flip=0)``. Published: ``Contrastive(jitter=0, grayscale=0)``.
    max_epochs : int
        Passes of the fine-tuning over the labeled rows. Published: 60 with 1 % of
        ImageNet's labels, 30 with 10 %.
    max_steps : int or None
        Length of the fine-tuning in optimizer steps; overrides ``max_epochs``.
    batch_size : int
        Labeled rows per step. Published: 1024.
    optimizer
        Published: "lars".
    lr : float
        Peak learning rate of the fine-tuning. Published: 0.16 with "lars".
    weight_decay : float
        Weight decay in the fine-tuning, not applied to biases and norms.
    backbone_lr
        It also applies to the student. Published: 1.
    head_init
        Published: "random".
    warmup_epochs
        In both stages. Published: 0.

    Attributes
    ----------
    embedder_ : estimator
        Fitted embedder.
    net_ : skorch.NeuralNet
        Trained net of the last stage; ``net_.history`` holds per epoch ``stage``
        ("fine-tune", then "distill") and ``train_loss``, and in the distillation
        ``distillation_loss``, ``teacher_agreement`` (share of the rows for which
        student and teacher predict the same class), ``class_shares`` (of the rows, by
        the student's class) and, with ``alpha < 1``, ``labeled_loss``; with
        ``calibration_size`` also ``held_accuracy`` (on the rows withheld).
    encoder_ : nn.Module
        Trained encoder; the student's if there is one.
    n_iter_ : int
        Epochs trained, fine-tuning and distillation together.

    Raises
    ------
    ValueError
        If no row is labeled, all labels are of one class, y does not fit X, too few
        rows are labeled for ``calibration_size``, the head has fewer layers than
        ``head_layer``, or the embedder has no network to fine-tune.

    Warns
    -----
    CollapseWarning
        If the student predicts a class for hardly any row, or for nearly all rows; or
        if, with ``calibration_size``, the accuracy on the withheld rows has fallen at
        the end, or if a linear probe on the pretrained encoder's features predicts the
        given labels better than the network.

    See Also
    --------
    FixMatchClassifier : Learns from its own confident predictions, without pretraining.
    sklabel.embedding.SimCLRTransformer : The pretraining alone.

    Notes
    -----
    Unlabeled rows are -1 in y, as in :mod:`sklearn.semi_supervised`; None and NaN mean
    the same. Differences from the paper, for small data and batches: AdamW, shifts
    instead of crops, and a student that starts from the pretrained encoder; the
    authors' notebook starts a small one from random weights, which needs more epochs.
    In the distillation every row also counts as unlabeled, as on ImageNet. The student,
    which has learned to match sharpened predictions, predicts with its logits divided
    by ``temperature``: without the division, its confidence is much too low. With
    "lars" the new layer is adapted like the others; the public code excludes it.

    As published, the whole encoder and its BatchNorm are trained at the full rate,
    below a last layer that starts at zero. A lower ``backbone_lr``, which freezes
    BatchNorm, and ``head_init="probe"`` (LP-FT [2]_) preserve the encoder better with a
    few dozen labels.

    References
    ----------
    .. [1] T. Chen, S. Kornblith, K. Swersky, M. Norouzi, G. Hinton, "Big
       self-supervised models are strong semi-supervised learners", NeurIPS 2020;
       equations 2 and 3.
    .. [2] A. Kumar et al., "Fine-tuning can distort pretrained features and
       underperform out-of-distribution", ICLR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.classification import SimCLRv2Classifier
    >>> from sklabel.embedding import SimCLRTransformer
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 100, y, -1)
    >>> embedder = SimCLRTransformer(projection_layers=3, max_epochs=2)
    >>> clf = SimCLRv2Classifier(
    ...     embedder, max_epochs=5, distill_epochs=2, random_state=0
    ... )
    >>> clf.fit(X, y_partly).transduction_.shape
    (1797,)
    """

    embedder: BaseEstimator | None = None
    head_layer: CountOrZero = 1
    _: KW_ONLY
    backbone_lr: Positive | Literal["auto"] = 1.0
    head_init: Literal["auto", "probe", "random"] = "random"
    warmup_epochs: NonNegative | Literal["auto"] = 0
    student_backbone: str | nn.Module | BaseEstimator | None = None
    temperature: Positive = 0.1
    alpha: UnitInterval = 1.0
    distill_epochs: CountOrZero = 40
    distill_batch_size: AtLeastTwo = 256
    distill_lr: Positive | None = None
    distill_weight_decay: NonNegative = 1e-4
    augment: Augment = "auto"
    max_epochs: Count = 100
    batch_size: AtLeastTwo = 64

    _bound = ("embedder", "backbone")  # a warm start does not pretrain
    _default_embedder = SimCLRTransformer

    def _train(self, X, labeled, seed):
        statistics, student = labeled.rows.statistics(), None
        if self._continued is None:
            embedder = self.embedder
            if embedder is None:
                embedder = self._new_embedder(projection_layers=3)
            readable = labeled.rows.readable(X)
            self.embedder_ = self._fit_nested(embedder, readable, self.backbone)
        if hasattr(self._continued, "student"):
            student = self._part("student", lambda: self._new_student(*statistics))
        teacher = self._build_teacher(*statistics)
        fine_tuning = labeled.mixed(0)
        self._labeled_stage("fine-tune", teacher, fine_tuning, labeled)
        # a teacher that is half trained is better than an untrained student
        learned = student is not None or not self.interrupted_
        self._distilled = self.distill_epochs > 0 and learned
        if self._distilled:
            distilled = self._build_distilled(teacher, *statistics, student)
            self._distill(distilled, labeled, fresh=student is None)
        return fine_tuning

    def _distill(self, distilled, labeled, fresh):
        if self.alpha == 1:
            sampler = Shuffled(labeled.rows, labeled.codes)
            batch_size = self.distill_batch_size
        else:
            sampler = labeled.mixed(self.distill_batch_size / self.batch_size)
            batch_size = self.batch_size
        self._labeled_stage(
            "distill",
            distilled,
            sampler,
            labeled,
            fresh,
            identity=(labeled.weights,),  # they have shaped the teacher
            max_epochs=self.distill_epochs,
            max_steps=None,
            batch_size=batch_size,
            lr_name="distill_lr",
            weight_decay=self.distill_weight_decay,
        )

    def _build_teacher(self, mean, std):
        augment = self._build_augment(self.augment, "weak", mean, std)
        name = "teacher" if hasattr(self._continued, "teacher") else ""
        return self._part(name, lambda: self._new_teacher(augment))

    def _new_teacher(self, augment):
        embedder = unfrozen(self.embedder_)
        if not hasattr(embedder, "encoder_"):
            raise ValueError(
                f"embedder={type(embedder).__name__} has no network to fine-tune: use "
                "one of sklabel.embedding."
            )
        return _FineTuned(
            # of its head, layers are chosen below
            build_backbone(embedder, self.sample_shape_, projected=False),
            self._kept_layers(embedder.net_.module_),
            len(self.classes_),
            augment,
        )

    def _kept_layers(self, module):
        """Return a copy of the layers of the projection head that are fine-tuned."""
        project = getattr(module, "project", nn.Sequential())
        if not isinstance(project, nn.Sequential):
            project = nn.Sequential(project)  # a head of one layer
        if 0 < len(project) < self.head_layer:
            raise ValueError(
                f"head_layer={self.head_layer}, but the embedder's projection head has "
                f"{len(project)} layers."
            )
        # what MoCo splits for its own training is whole again
        kept = split_batchnorm_(copy.deepcopy(project[: self.head_layer]), 1)
        return thaw_(kept)

    def _new_student(self, mean, std):
        backbone = self.student_backbone
        if backbone is None:
            backbone = unfrozen(self.embedder_)
        return _FineTuned(
            build_backbone(backbone, self.sample_shape_, mean, std),
            nn.Sequential(),
            len(self.classes_),
        )

    def _build_distilled(self, teacher, mean, std, student=None):
        if student is None:
            student = self._new_student(mean, std)
        augment, teacher.augment = teacher.augment, None
        return _Distilled(teacher, student, augment, self.temperature, self.alpha)

    def _check_health(self, fine_tuning):
        """Warn if the student predicts a class for nearly all rows, or for none."""
        last = self.net_.history[-1] if self.net_.history else {}
        if "class_shares" not in last:
            return  # no student, or not one epoch was ended
        self._check_shares(
            np.array(last["class_shares"]),
            fine_tuning.class_shares(len(self.classes_)),
            "student's answers",
            fine_tuning.samples.n_trained,
            "a longer pretraining",
            class_weight="balanced",
        )

    def _build_module(self, mean, std):
        teacher = self._build_teacher(mean, std)
        return self._build_distilled(teacher, mean, std) if self._distilled else teacher
