"""Supervised training on the labeled rows alone: the base line."""

from numbers import Integral, Real

from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn
from torch.nn.functional import cross_entropy

from .._core.callbacks import fitting
from .._core.learner import Learner
from .._core.roles.classification import CLASSIFIER_CONSTRAINTS, ClassificationRole
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
    label_smoothing : float, default=0.0
        Share of the target that goes to all classes alike, in [0, 1).
    train_backbone : bool, default=True
        Whether the encoder is trained too, or the last layer only, a linear probe.
    augment : "auto", nn.Module or None, default="auto"
        Random views; "auto": :class:`sklabel.augment.Weak` for images,
        :class:`sklabel.augment.VectorNoise` for vectors. Turn off flips for digits:
        ``Weak(flip=0)``.
    class_weight : dict, "balanced" or None, default=None
        How often labeled rows of a class are drawn: {class: weight}; "balanced": every
        class equally often; None: every row equally often.
    calibration_size : int, float or None, default=None
        Labeled rows, or their share, that are withheld from training to fit the
        temperature of :meth:`predict_proba`; their images count as unlabeled ones. None:
        probabilities as trained, usually too sure.
    backbone : str, nn.Module or fitted embedder, default="auto"
        Encoder; see :func:`sklabel.backbones.build_backbone`.
    max_epochs : int, default=100
        Passes over the labeled rows.
    max_steps : int or None, default=None
        Length of training in optimizer steps; overrides ``max_epochs``.
    batch_size : int, default=32
        Samples per step.
    optimizer : str or class, default="nesterov"
        "sgd", "nesterov", "adam", "adamw", or one of the LARS family for batches of
        thousands, see :class:`sklabel.optim.LARS`: "lars", "lars_byol", "larc", "lars_cifar".
    lr : float, default=0.03
        Peak learning rate.
    weight_decay : float, default=5e-4
        Decay of weights; biases and norms have none.
    schedule : {"cosine", "fixmatch", "step", "constant"} or callable, default="cosine"
        Course of the learning rate after the warm-up.
    warmup_epochs : float, default=0
        Epochs of linear warm-up.
    image_shape : tuple or None, default=None
        (height, width) or (height, width, channels) of images that come as 2-D X.
    image_size : int, tuple or None, default=None
        Size to which image files are resized; None: they must have one size.
    on_error : {"raise", "skip"}, default="raise"
        What to do with image files that cannot be read.
    warm_start : bool, default=False
        Whether ``fit`` continues from the weights of the last fit.
    device : str or torch.device, default="auto"
        "auto": CUDA, then MPS, then CPU.
    precision : {"auto", "bfloat16", "float32"}, default="auto"
        "auto": bfloat16 autocast for images where the hardware multiplies it.
    checkpoint_dir : str, Path or None, default=None
        Folder for checkpoints; the same fit called again continues from the last one.
    random_state : int, RandomState instance or None, default=None
        Seed of everything random; the global generators are left alone.
    verbose : int, default=0
        1: a progress bar.
    net_params : dict or None, default=None
        Further settings of the net, such as ``compile``, ``callbacks`` or
        ``optimizer__momentum``.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Classes, sorted.
    transduction_ : ndarray of shape (n_samples,)
        A class for every row of X: the given label, else the predicted one.
    calibration_temperature_ : float
        Divides the logits of :meth:`predict_proba`; 1 without ``calibration_size``.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss`` and
        ``train_accuracy`` (of the augmented labeled rows) and, with
        ``calibration_size``, ``held_accuracy`` (on the rows withheld).
    encoder_ : nn.Module
        Trained encoder.
    sample_shape_ : tuple of int
        Shape of one sample: ``(D,)`` or ``(C, H, W)``.
    n_features_in_ : int
        Values per sample.
    n_iter_ : int
        Epochs trained.
    interrupted_ : bool
        Whether Ctrl-C ended the training early.

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

    _parameter_constraints = {
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "train_backbone": ["boolean"],
        "augment": [StrOptions({"auto"}), nn.Module, callable, None],
        **CLASSIFIER_CONSTRAINTS,
        "batch_size": [Interval(Integral, 2, None, closed="left")],
    }

    def __init__(
        self,
        *,
        label_smoothing=0.0,
        train_backbone=True,
        augment="auto",
        class_weight=None,
        calibration_size=None,
        backbone="auto",
        max_epochs=100,
        max_steps=None,
        batch_size=32,
        optimizer="nesterov",
        lr=0.03,
        weight_decay=5e-4,
        schedule="cosine",
        warmup_epochs=0,
        image_shape=None,
        image_size=None,
        on_error="raise",
        warm_start=False,
        device="auto",
        precision="auto",
        checkpoint_dir=None,
        random_state=None,
        verbose=0,
        net_params=None,
    ):
        self.label_smoothing = label_smoothing
        self.train_backbone = train_backbone
        self.augment = augment
        self.class_weight = class_weight
        self.calibration_size = calibration_size
        self.backbone = backbone
        self.max_epochs = max_epochs
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup_epochs = warmup_epochs
        self.image_shape = image_shape
        self.image_size = image_size
        self.on_error = on_error
        self.warm_start = warm_start
        self.device = device
        self.precision = precision
        self.checkpoint_dir = checkpoint_dir
        self.random_state = random_state
        self.verbose = verbose
        self.net_params = net_params

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
