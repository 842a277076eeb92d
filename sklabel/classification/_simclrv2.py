"""SimCLRv2: pretrain, fine-tune from the head's middle, distill (Chen et al., 2020)."""

import copy

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from .._core.callbacks import fitting
from .._core.learner import Learner, unfrozen
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
from .._core.roles.classification import ClassificationRole
from .._core.samplers import Mixed, Shuffled
from ..backbones import build_backbone
from ..embedding import SimCLRTransformer
from ..losses import distillation
from ..modules import frozen_copy, split_batchnorm_


class _FineTuned(nn.Module):
    """Encoder, the first layers of its projection head, and a new linear layer."""

    def __init__(self, backbone, project, n_classes, augment=None):
        super().__init__()
        self.backbone = backbone
        self.project = project
        widths = [
            m.out_features for m in project.modules() if hasattr(m, "out_features")
        ]
        self.head = nn.Linear([backbone.n_features_out, *widths][-1], n_classes)
        # as published: every class is equally likely at first
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.augment = augment

    def logits(self, x):
        return self.head(self.project(self.backbone(x))).float()  # (B, K)

    def forward(self, x):
        return self.logits(x).softmax(1)

    def loss(self, x, y):
        return cross_entropy(self.logits(self.augment(x)), y)

    def after_epoch(self, net, samples):
        return {"stage": "fine-tune"}


class _Distilled(nn.Module):
    """A student learns to answer on every row as its teacher does."""

    def __init__(self, teacher, student, augment, temperature, alpha):
        super().__init__()
        self.teacher = frozen_copy(teacher)
        self.student = student
        self.augment = augment
        self.temperature = temperature
        self.alpha = alpha

    @property
    def backbone(self):
        return self.student.backbone

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x):
        # sure answers of the teacher, sharpened, are matched by small logits
        temperature = self.temperature if self.alpha > 0 else 1
        return (self.student.logits(x) / temperature).softmax(1)  # (B, K)

    def loss(self, x, y):
        n_labeled = int((y >= 0).sum()) if self.alpha < 1 else 0
        x = self.augment(x)
        # where every row is labeled, those are what there is to distill
        first = n_labeled if n_labeled < len(x) else 0
        with torch.no_grad():
            told = self.teacher.logits(x[first:])
        # one forward: BatchNorm sees labeled and unlabeled rows together
        logits = self.student.logits(x)
        said = logits[first:]
        loss = distillation(told, said, self.temperature)
        same = told.argmax(1) == said.argmax(1)
        classes = one_hot(said.argmax(1), said.shape[1])
        figures = {
            "distillation_loss": loss.detach(),
            "teacher_agreement": same.float().mean(),
            "class_shares": classes.float().mean(0),
        }
        if n_labeled:
            labeled = cross_entropy(logits[:n_labeled], y[:n_labeled])
            figures["labeled_loss"] = labeled.detach()
            loss = (1 - self.alpha) * labeled + self.alpha * loss
        return loss, figures

    def after_epoch(self, net, samples):
        return {"stage": "distill"}


class SimCLRv2Classifier(ClassificationRole, Learner):
    """Classify images with a network that has seen all of them before the first label.

    Three stages: a network learns from all images without labels (contrastive
    pretraining); it is fine-tuned on the labeled ones, together with the first layer of
    the projection head, which other methods throw away; then a student learns to answer
    on every image as this teacher does, and it is the student that predicts. It may be a
    smaller network. Read more in the :ref:`User Guide <simclrv2>`.

    Parameters
    ----------
    embedder : estimator or None
        Pretraining: cloned and fitted, or used as it is in a
        :class:`sklearn.frozen.FrozenEstimator`. None:
        :class:`sklabel.embedding.SimCLRTransformer` with a head of three layers, as
        published. Give one to set its views and its length; searches reach its
        parameters as ``embedder__temperature``.
    head_layer : int
        Layer of the projection head from whose output the network is fine-tuned; 0: from
        the encoder, as embedders without such a head are. Published: 1 with few labels, 0
        where all rows are labeled.
    student_backbone : str, nn.Module, fitted embedder or None
        Network of the student, see :func:`sklabel.backbones.build_backbone`; a name
        starts from nothing. None: the embedder's, with the weights of the pretraining.
    temperature : float
        Divides the logits of teacher and student, > 0; those of the student in
        prediction too, unless ``alpha`` is 0. Published: 0.1 for a student like the
        teacher, 1 for a smaller one.
    alpha : float
        Weight of the distillation, in [0, 1]; labeled rows add their cross-entropy with
        the weight 1 - alpha.
    distill_epochs : int
        Passes of the distillation over X, or with ``alpha`` below 1 over the labeled
        rows where these take more steps; 0 leaves it out, and the teacher predicts.
        Published: 400.
    distill_batch_size : int
        Rows of X per step of the distillation. Published: 4096.
    distill_lr : float or None
        Peak learning rate of the distillation; None: ``lr``. Published: that of the
        pretraining.
    distill_weight_decay : float
        Decay of weights in the distillation.
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
        Decay of weights in the fine-tuning; biases and norms have none.
    warmup_epochs : float
        Epochs of linear warm-up, in both stages.

    Attributes
    ----------
    embedder_ : estimator
        Fitted embedder.
    net_ : skorch.NeuralNet
        Trained net of the last stage; ``net_.history`` holds per epoch ``stage``
        ("fine-tune", then "distill") and ``train_loss``, and in the distillation
        ``distillation_loss``, ``teacher_agreement`` (share of the rows that student and
        teacher give the same class), ``class_shares`` (of the rows, by the student's
        class) and, with ``alpha < 1``, ``labeled_loss``; with ``calibration_size`` also
        ``held_accuracy`` (on the rows withheld).
    encoder_ : nn.Module
        Trained encoder, of the student where there is one.
    n_iter_ : int
        Epochs trained, fine-tuning and distillation together.

    Raises
    ------
    ValueError
        If no row is labeled, all labels are of one class, y does not fit X, too few rows
        are labeled for ``calibration_size``, the head has fewer layers than
        ``head_layer``, or the embedder trains no network.

    Warns
    -----
    CollapseWarning
        If the student gives hardly any row some class, or nearly all rows one; or if,
        with ``calibration_size``, the accuracy on the withheld rows has fallen at the
        end.

    See Also
    --------
    FixMatchClassifier : Learns from its own sure answers, without pretraining.
    sklabel.embedding.SimCLRTransformer : The pretraining alone.

    Notes
    -----
    Unlabeled rows are -1 in y, as in :mod:`sklearn.semi_supervised`; None and NaN mean the
    same. Departures, for small data and batches: AdamW, shifts in place of crops, and a
    student that starts from the pretrained encoder; the authors' notebook starts a small
    one from nothing, which needs more epochs. In the distillation every row counts as
    unlabeled too, as on ImageNet. The student, which has learned to match sharpened
    answers, predicts with its logits divided by ``temperature``: undivided they are
    much too unsure. With "lars" the new layer is adapted like the others, where the
    public code leaves it out.

    References
    ----------
    .. [1] T. Chen, S. Kornblith, K. Swersky, M. Norouzi, G. Hinton, "Big self-supervised
       models are strong semi-supervised learners", NeurIPS 2020; equations 2 and 3.

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

    @fitting
    def fit(self, X, y, sample_weight=None):
        """Pretrain on all rows, fine-tune on the labeled ones, distill on all.

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
        self : SimCLRv2Classifier
        """
        samples = self._check_X(X, reset=True)
        codes = self._encode_y(y, samples)
        with self._seeded() as seed:
            rows, trained, weights, held = self._split_calibration(
                codes, samples, sample_weight, seed
            )
            statistics, continued = rows.statistics(), self._continued
            if continued is None:
                self.embedder_ = self._fit_embedder(rows.readable(X))
            teacher = self._build_teacher(*statistics, continued)
            labeled = Mixed(rows, trained, 0, weights=weights)
            watch = self._watch(held)
            self._fit_net(teacher, labeled, stage="fine-tune", watch=watch)
            # a teacher that is half trained is better than an untrained student
            self._distilled = self.distill_epochs > 0 and not self.interrupted_
            if self._distilled:
                module = self._build_distilled(teacher, *statistics, continued)
                self._distill(module, rows, trained, weights, watch)
        self._finish(samples, codes, held, y)
        self._check_classes(labeled)
        return self

    def _fit_embedder(self, X):
        embedder = self.embedder
        if embedder is None:
            embedder = SimCLRTransformer(
                projection_layers=3,
                device=self.device,
                precision=self.precision,
                verbose=self.verbose,
            )
        return self._fit_nested(embedder, X, self.backbone)

    def _build_teacher(self, mean, std, continued=None):
        augment = self._build_augment(self.augment, "weak", mean, std)
        if continued is not None:
            teacher = getattr(continued, "teacher", continued).requires_grad_(True)
            teacher.augment = augment
            return teacher
        embedder = unfrozen(self.embedder_)
        if not hasattr(embedder, "encoder_"):
            raise ValueError(
                f"embedder={type(embedder).__name__} trains no network that could be "
                "fine-tuned: use one of sklabel.embedding."
            )
        return _FineTuned(
            build_backbone(embedder, self.sample_shape_),
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
        return kept.requires_grad_(True)

    def _build_distilled(self, teacher, mean, std, continued=None):
        student = getattr(continued, "student", None)
        if student is None:
            backbone = self.student_backbone
            if backbone is None:
                backbone = unfrozen(self.embedder_)
            student = _FineTuned(
                build_backbone(backbone, self.sample_shape_, mean, std),
                nn.Sequential(),
                len(self.classes_),
            )
        augment, teacher.augment = teacher.augment, None
        return _Distilled(teacher, student, augment, self.temperature, self.alpha)

    def _distill(self, module, rows, trained, weights, watch):
        """Train the student; the history goes on from that of the fine-tuning."""
        fine_tuning = self.net_.history
        if self.alpha == 1:
            sampler = Shuffled(rows, trained)
            batch_size = self.distill_batch_size
        else:
            ratio = self.distill_batch_size / self.batch_size
            sampler = Mixed(rows, trained, ratio, weights=weights)
            batch_size = self.batch_size
        self._fit_net(
            module,
            sampler,
            stage="distill",
            identity=(weights,),  # they have shaped the teacher
            watch=watch,
            max_epochs=self.distill_epochs,
            max_steps=None,
            batch_size=batch_size,
            lr=self.distill_lr or self.lr,
            weight_decay=self.distill_weight_decay,
        )
        self.net_.history[:0] = fine_tuning
        self.n_iter_ = len(self.net_.history)

    def _check_classes(self, labeled):
        """Say so where the student gives nearly all rows one class, or none another."""
        last = self.net_.history[-1] if self.net_.history else {}
        if "class_shares" not in last:
            return  # no student, or not one epoch was ended
        self._check_shares(
            np.array(last["class_shares"]),
            labeled.class_shares(len(self.classes_)),
            "student's answers",
            labeled.samples.n_trained,
            "a longer pretraining",
            class_weight="balanced",
        )

    def _rebuild_module(self, mean, std):
        teacher = self._build_teacher(mean, std)
        return self._build_distilled(teacher, mean, std) if self._distilled else teacher
