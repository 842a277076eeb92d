"""Supervised training on the labeled rows alone: the baseline."""

from torch import nn
from torch.nn.functional import cross_entropy

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
from .._core.transfer import EncoderClassifier
from ..modules import LinearHeaded


class _Supervised(LinearHeaded):
    backbone: nn.Module
    head: nn.Module
    augment: nn.Module
    label_smoothing: float

    def forward(self, x):
        return self.logits(x).softmax(1)  # (B, K)

    def logits(self, x):
        return self.head(self.backbone(x)).float()

    def loss(self, x, y):
        logits = self.logits(self.augment(x))
        loss = cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        return loss, {"train_accuracy": (logits.argmax(1) == y).float().mean()}


class SupervisedClassifier(EncoderClassifier):
    """Classify images from the labeled rows alone.

    The network minimizes cross-entropy on augmented labeled images; unlabeled rows are
    not used in training. This is the baseline that every semi-supervised method must
    beat, and a quick model for choosing the next rows to label. Read more in the
    :ref:`User Guide <supervised>`.

    Parameters
    ----------
    label_smoothing : float
        Share of the target that goes to all classes alike, in [0, 1).
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
        the end, or if a linear probe on the pretrained encoder's features predicts the
        given labels better than the network.

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
    augment: Augment = "auto"
    max_epochs: Count = 100
    batch_size: AtLeastTwo = 32
    optimizer: Optimizer = "nesterov"
    lr: Positive = 0.03
    weight_decay: NonNegative = 5e-4

    def _train(self, X, labeled, seed):
        module = self._build_module(*labeled.rows.statistics())
        self._labeled_stage("fit", module, labeled.mixed(0), labeled)

    def _build_module(self, mean, std):
        backbone = self._part("backbone", lambda: self._build_backbone(mean, std))
        size = backbone.n_features_out, len(self.classes_)
        head = self._part("head", lambda: nn.Linear(*size))
        augment = self._build_augment(self.augment, "weak", mean, std)
        return _Supervised(backbone, head, augment, self.label_smoothing)
