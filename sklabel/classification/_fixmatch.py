"""FixMatch: pseudo-labels from weak views teach strong views (Sohn et al., 2020)."""

from numbers import Integral, Real

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn
from torch.nn.functional import cross_entropy

from .._base import SHARED_CONSTRAINTS, BaseLearner, ClassificationMixin
from .._callbacks import fitting
from .._data import Mixed
from ..losses import pseudo_label
from ..modules import ema_decay, ema_update_, frozen_copy


class _FixMatch(nn.Module):
    def __init__(self, backbone, n_classes, weak, strong, **settings):
        super().__init__()
        head = nn.Linear(backbone.n_features_out, n_classes)
        nn.init.xavier_normal_(head.weight)
        nn.init.zeros_(head.bias)
        self.online = nn.Sequential(backbone, head)
        self.average = frozen_copy(self.online)
        self.weak = weak
        self.strong = strong
        self.threshold = settings["threshold"]
        self.temperature = settings["temperature"]
        self.hard_labels = settings["hard_labels"]
        self.unlabeled_weight = settings["unlabeled_weight"]
        self.decay = settings["ema_decay"]
        self.ramp = settings["ema_ramp"]
        self.n_steps = 0

    @property
    def backbone(self):
        return self.average[0]

    def train(self, mode=True):
        super().train(mode)
        self.average.eval()
        return self

    def forward(self, x):
        return self.average(x).float().softmax(1)  # (B, K)

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
        unlabeled_loss, mask = pseudo_label(
            logits_weak,
            logits_strong,
            threshold=self.threshold,
            temperature=self.temperature,
            hard=self.hard_labels,
        )
        share = mask.float()
        classes = nn.functional.one_hot(logits_weak.argmax(1), logits.shape[1])
        return loss + self.unlabeled_weight * unlabeled_loss, {
            "labeled_loss": loss.detach(),
            "pseudo_label_share": share.mean(),
            "pseudo_label_classes": (classes * share[:, None]).mean(0),
        }

    def after_step(self):
        self.n_steps += 1
        kind = "noisy_student" if self.ramp else "fixmatch"
        decay = ema_decay(self.n_steps, self.decay, kind)
        ema_update_(self.average, self.online, decay)

    @torch.no_grad()
    def _probe(self, x, y):
        """CTAugment learns how strong each operation may be from the labeled rows."""
        views, draw = self.strong.probe(x)
        p = self.average(views).float().softmax(1)
        truth = nn.functional.one_hot(y, p.shape[1])
        self.strong.update(draw, 1 - 0.5 * (p - truth).abs().sum(1))

    def get_extra_state(self):
        return torch.tensor(self.n_steps)

    def set_extra_state(self, state):
        self.n_steps = int(state)


class FixMatchClassifier(ClassificationMixin, BaseLearner):
    """Classify images from a few labels and many unlabeled images.

    A weakly augmented unlabeled image gets a prediction; if its probability reaches a
    threshold, the predicted class becomes the target for a strongly augmented view of the
    same image. Labeled rows give ordinary cross-entropy. Predictions come from a moving
    average of the weights. Read more in the :ref:`User Guide <classification>`.

    Parameters
    ----------
    threshold : float, default=0.95
        Smallest probability of a pseudo-label, in [0, 1]. Paper: tau.
    unlabeled_weight : float, default=1.0
        Weight of the unlabeled loss, >= 0. Paper: lambda_u.
    unlabeled_ratio : float, default=7
        Unlabeled rows per labeled row in a batch, >= 0. Paper: mu.
    temperature : float, default=1.0
        Divides the weak view's logits, > 0.
    hard_labels : bool, default=True
        Whether the target is the most probable class, or the probabilities.
    include_labeled : bool, default=True
        Whether the labeled images also stand among the unlabeled ones.
    balance_labeled : bool, default=False
        Whether labeled rows are drawn equally often from every class.
    ema_decay : float, default=0.999
        Decay of the averaged weights, in [0, 1).
    ema_ramp : bool, default=True
        Whether the decay grows as (1 + t) / (10 + t) up to ``ema_decay``. The paper has
        none; without it a training of a few hundred steps predicts with weights close to
        the random ones it began with.
    weak_augment : "auto", nn.Module or None, default="auto"
        Weak view; "auto": :class:`sklabel.augment.Weak` for images,
        :class:`sklabel.augment.VectorNoise` for vectors. Turn off flips for digits:
        ``Weak(flip=0)``.
    strong_augment : {"randaugment", "ctaugment"}, nn.Module or None, \
            default="randaugment"
        Strong view, applied after a weak one.
    backbone : str, nn.Module or fitted embedder, default="auto"
        Encoder; see :func:`sklabel.backbones.build_backbone`.
    max_epochs : int, default=60
        Passes over the unlabeled rows.
    max_steps : int or None, default=None
        Length of training in optimizer steps; overrides ``max_epochs``. Published: 2**20.
    batch_size : int, default=64
        Labeled samples per step; labeled rows are repeated as needed.
    optimizer : str or class, default="nesterov"
        "sgd", "nesterov", "adam", "adamw", or one of the LARS family for batches of
        thousands, see :class:`sklabel.optim.LARS`: "lars", "lars_byol", "larc", "lars_cifar".
    lr : float, default=0.03
        Peak learning rate.
    weight_decay : float, default=5e-4
        Decay of weights; biases and norms have none. Published for CIFAR-100: 1e-3.
    schedule : {"cosine", "fixmatch", "step", "constant"} or callable, default="fixmatch"
        Course of the learning rate after the warm-up; "fixmatch": cos(7 pi k / 16 K).
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
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``labeled_loss``,
        ``pseudo_label_share`` and ``pseudo_label_classes`` (shares of all unlabeled rows,
        per class).
    encoder_ : nn.Module
        Trained encoder, averaged weights.
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
        If no row is labeled, all labels are of one class, or y does not fit X.

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

    _parameter_constraints = {
        "threshold": [Interval(Real, 0, 1, closed="both")],
        "unlabeled_weight": [Interval(Real, 0, None, closed="left")],
        "unlabeled_ratio": [Interval(Real, 0, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "hard_labels": ["boolean"],
        "include_labeled": ["boolean"],
        "balance_labeled": ["boolean"],
        "ema_decay": [Interval(Real, 0, 1, closed="left")],
        "ema_ramp": ["boolean"],
        "weak_augment": [StrOptions({"auto"}), nn.Module, callable, None],
        "strong_augment": [
            StrOptions({"randaugment", "ctaugment"}),
            nn.Module,
            callable,
            None,
        ],
        **SHARED_CONSTRAINTS,
        "batch_size": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        threshold=0.95,
        unlabeled_weight=1.0,
        unlabeled_ratio=7,
        *,
        temperature=1.0,
        hard_labels=True,
        include_labeled=True,
        balance_labeled=False,
        ema_decay=0.999,
        ema_ramp=True,
        weak_augment="auto",
        strong_augment="randaugment",
        backbone="auto",
        max_epochs=60,
        max_steps=None,
        batch_size=64,
        optimizer="nesterov",
        lr=0.03,
        weight_decay=5e-4,
        schedule="fixmatch",
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
        self.threshold = threshold
        self.unlabeled_weight = unlabeled_weight
        self.unlabeled_ratio = unlabeled_ratio
        self.temperature = temperature
        self.hard_labels = hard_labels
        self.include_labeled = include_labeled
        self.balance_labeled = balance_labeled
        self.ema_decay = ema_decay
        self.ema_ramp = ema_ramp
        self.weak_augment = weak_augment
        self.strong_augment = strong_augment
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
    def fit(self, X, y):
        """Train on labeled and unlabeled rows.

        Parameters
        ----------
        X : array-like
            Images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``; paths of image
            files; or vectors ``(n, D)``.
        y : array-like of shape (n_samples,)
            Classes; -1, None or NaN for unlabeled rows.

        Returns
        -------
        self : FixMatchClassifier
        """
        samples = self._check_X(X, reset=True)
        codes = self._encode_y(y, samples)
        with self._seeded():
            module = self._continued or self._build_module(*samples.statistics())
            mixed = Mixed(
                samples,
                codes,
                self.unlabeled_ratio,
                self.include_labeled,
                self.balance_labeled,
            )
            self._fit_net(module, mixed)
        self.transduction_ = self._transduce(samples, codes, y)
        return self

    def _build_module(self, mean, std):
        weak = self._build_augment(self.weak_augment, "weak", mean, std)
        kind = self.strong_augment
        if kind in ("randaugment", "ctaugment"):
            kind = {"randaugment": "strong", "ctaugment": "ctaugment"}[kind]
            strong = self._build_augment("auto", kind, mean, std)
        else:
            strong = self._build_augment(kind, None, mean, std)
        return _FixMatch(
            self._build_backbone(mean, std),
            len(self.classes_),
            weak,
            strong,
            threshold=self.threshold,
            temperature=self.temperature,
            hard_labels=self.hard_labels,
            unlabeled_weight=self.unlabeled_weight,
            ema_decay=self.ema_decay,
            ema_ramp=self.ema_ramp,
        )
