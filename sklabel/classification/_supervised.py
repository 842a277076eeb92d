"""Supervised training on the labeled rows alone: the base line."""

from torch import nn
from torch.nn.functional import cross_entropy

from .._core.callbacks import fitting
from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    AtLeastTwo,
    Augment,
    BelowOne,
    Count,
    NonNegative,
    Optimizer,
    Positive,
)
from .._core.roles.classification import ClassificationRole
from .._core.samplers import Mixed


class _Supervised(nn.Module):
    def __init__(self, backbone, head, augment, label_smoothing, train_backbone):
        super().__init__()
        self.backbone = backbone.requires_grad_(train_backbone)
        self.head = head
        self.augment = augment
        self.label_smoothing = label_smoothing
        self.train_backbone = train_backbone

    def train(self, mode=True):
        super().train(mode)
        if not self.train_backbone:
            self.backbone.eval()
        return self

    def forward(self, x):
        return self.head(self.backbone(x)).float().softmax(1)  # (B, K)

    def loss(self, x, y):
        logits = self.head(self.backbone(self.augment(x))).float()
        loss = cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        return loss, {"train_accuracy": (logits.argmax(1) == y).float().mean()}


class SupervisedClassifier(ClassificationRole, Learner):
    """Classify images from the labeled rows alone.

    Cross-entropy on augmented labeled images; unlabeled rows are not looked at in
    training. The base line that every use of unlabeled rows must beat, and a quick model
    to choose the next rows by. Read more in the :ref:`User Guide <supervised>`.

    Parameters
    ----------
    label_smoothing : float
        Share of the target that goes to all classes alike, in [0, 1).
    train_backbone : bool
        Whether the encoder is trained too, or the last layer only, a linear probe.
    augment : "auto", nn.Module or None
        Random views; "auto": :class:`sklabel.augment.Weak` for images,
        :class:`sklabel.augment.VectorNoise` for vectors. Turn off flips for digits:
        ``Weak(flip=0)``.
    max_epochs : int
        Passes over the labeled rows.

    Attributes
    ----------
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss`` and
        ``train_accuracy`` (of the augmented labeled rows) and, with
        ``calibration_size``, ``held_accuracy`` (on the rows withheld).

    Raises
    ------
    ValueError
        If no row is labeled, all labels are of one class, y does not fit X, or too few
        rows are labeled for ``calibration_size``.

    Warns
    -----
    CollapseWarning
        If, with ``calibration_size``, the accuracy on the withheld rows has fallen at
        the end.

    See Also
    --------
    FixMatchClassifier : Uses the unlabeled rows too.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.classification import SupervisedClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 100, y, -1)
    >>> clf = SupervisedClassifier(max_epochs=20, random_state=0).fit(X, y_partly)
    >>> clf.score(X, y) > 0.5
    True
    """

    _: KW_ONLY
    label_smoothing: BelowOne = 0.0
    train_backbone: bool = True
    augment: Augment = "auto"
    max_epochs: Count = 100
    batch_size: AtLeastTwo = 32
    optimizer: Optimizer = "nesterov"
    lr: Positive = 0.03
    weight_decay: NonNegative = 5e-4

    @fitting
    def fit(self, X, y, sample_weight=None):
        """Train on the labeled rows, and give every row a class.

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
        self : SupervisedClassifier
        """
        samples = self._check_X(X, reset=True)
        codes = self._encode_y(y, samples)
        with self._seeded() as seed:
            rows, trained, weights, held = self._split_calibration(
                codes, samples, sample_weight, seed
            )
            module = self._build_module(*rows.statistics())
            labeled = Mixed(rows, trained, ratio=0, weights=weights)
            self._fit_net(module, labeled, watch=self._watch(held))
        self._finish(samples, codes, held, y)
        return self

    def _build_module(self, mean, std):
        before = self._continued
        backbone = before.backbone if before else self._build_backbone(mean, std)
        head = before.head if before else None
        return _Supervised(
            backbone,
            head or nn.Linear(backbone.n_features_out, len(self.classes_)),
            self._build_augment(self.augment, "weak", mean, std),
            self.label_smoothing,
            self.train_backbone,
        )

    def _rebuild_module(self, mean, std):
        self._continued = None
        return self._build_module(mean, std)
