"""MixMatch: guessed labels, sharpened and mixed with given ones (Berthelot et al., 2019)."""

from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from .._core.callbacks import fitting
from .._core.learner import Learner
from .._core.roles.classification import CLASSIFIER_CONSTRAINTS, ClassificationRole
from .._core.samplers import Mixed
from ..losses import guessed_labels, mixmatch_losses, mixup
from ..modules import AveragedClassifier, linear_classifier


class _MixMatch(AveragedClassifier):
    def __init__(self, online, decay, ramp, n_classes, weak, n_rows, **settings):
        super().__init__(online, decay, ramp)
        self.n_classes = n_classes
        self.weak = weak
        for name, value in settings.items():
            setattr(self, name, value)
        self.total_steps = 1
        # the last class guessed for every row; -1: none yet
        self.register_buffer("predicted", torch.full((n_rows,), -1))

    def before_epoch(self, net, samples):
        self.total_steps = net.total_steps_

    def loss(self, x, y):
        n_labeled = int((y >= 0).sum())
        x_labeled, x_unlabeled = x[:n_labeled], x[n_labeled:]
        views = [self.weak(x_labeled)]
        targets = [nn.functional.one_hot(y[:n_labeled], self.n_classes).float()]
        if len(x_unlabeled):
            views += [self.weak(x_unlabeled) for _ in range(self.n_augmentations)]
            guesses = self._guess(views)
            targets += [guesses] * self.n_augmentations
        views, targets = torch.cat(views), torch.cat(targets)
        order = torch.randperm(len(views), device=x.device)
        weights = self._mixing_weights(len(views)).to(x.device)
        # one forward: BatchNorm sees what comes from labeled and unlabeled rows together
        logits = self.online(mixup(views, order, weights))
        targets = mixup(targets, order, weights)
        labeled_loss, unlabeled_loss = mixmatch_losses(logits, targets, n_labeled)
        if not len(x_unlabeled):
            return labeled_loss
        rows, (confidence, classes) = -1 - y[n_labeled:], guesses.max(1)
        agreement = (self.predicted[rows] == classes).float().mean()
        self.predicted[rows] = classes
        classes = nn.functional.one_hot(classes, self.n_classes).float()
        weight = self._ramped_weight(n_labeled)
        return labeled_loss + weight * unlabeled_loss, {
            "labeled_loss": labeled_loss.detach(),
            "unlabeled_loss": unlabeled_loss.detach(),
            "pseudo_label_confidence": confidence.mean(),
            "pseudo_label_classes": classes.mean(0),
            "pseudo_label_agreement": agreement,
        }

    @torch.no_grad()
    def _guess(self, views):
        """Return soft labels from all views but the first, which are of labeled rows."""
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

    def _mixing_weights(self, n):
        """Draw the share that each row keeps of itself, at least one half."""
        if self.alpha == 0:
            return torch.ones(n)
        # by logarithms of Gamma(alpha), which for a small alpha is mostly below 1e-38
        gamma = torch.distributions.Gamma(self.alpha + 1, 1.0).sample((2, n)).log()
        gamma += torch.rand(2, n).log() / self.alpha
        return (gamma[0] - gamma[1]).abs().sigmoid()

    def _ramped_weight(self, n_labeled):
        """Return the weight of the unlabeled loss at this step."""
        if isinstance(self.ramp_up, Integral):
            done, length = self.n_steps * n_labeled, self.ramp_up
        else:
            done, length = self.n_steps, self.ramp_up * self.total_steps
        return self.unlabeled_weight * (min(1, done / length) if length else 1)

    def drop_training_state(self):
        """Drop what is of use in training only."""
        self.predicted = None


class MixMatchClassifier(ClassificationRole, Learner):
    """Classify images from a few labels and many unlabeled images, mixed in pairs.

    The label of an unlabeled image is guessed: the mean prediction on several weakly
    augmented views of it, sharpened. Every image, labeled or not, is then mixed with
    another one, and so are their labels. Mixed labeled images give cross-entropy, mixed
    unlabeled ones a squared error, which no wrong guess can make large. Predictions come
    from a moving average of the weights. Read more in the
    :ref:`User Guide <classification>`.

    Parameters
    ----------
    unlabeled_weight : float, default=75
        Weight of the unlabeled loss, >= 0. Paper: lambda_u. Published: 75 for CIFAR-10,
        150 for CIFAR-100, 250 for SVHN, 50 for STL-10.
    unlabeled_ratio : float, default=1
        Unlabeled rows per labeled row in a batch, >= 0.
    n_augmentations : int, default=2
        Views of an unlabeled row whose predictions are averaged; all of them are trained
        on. Paper: K.
    temperature : float, default=0.5
        Sharpens the guessed labels, > 0; 1 leaves them as they are. Paper: T.
    alpha : float, default=0.75
        Of the Beta(alpha, alpha) from which each row's share in a mixture is drawn, >= 0;
        0: nothing is mixed.
    ramp_up : int or float, default=1.0
        How long ``unlabeled_weight`` takes to grow from 0 to its value: a share of the
        training (float in [0, 1]), or labeled rows drawn until then (int). Published:
        2**20 rows, a 64th of the training; a short one goes better with all of it.
    include_labeled : bool, default=False
        Whether the labeled images also stand among the unlabeled ones.
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
    class_weight : dict, "balanced" or None, default=None
        How often labeled rows of a class are drawn: {class: weight}; "balanced": every
        class equally often; None: every row equally often.
    calibration_size : int, float or None, default=None
        Labeled rows, or their share, that are withheld from training to fit the
        temperature of :meth:`predict_proba`; their images count as unlabeled ones. None:
        probabilities as trained, usually too sure.
    backbone : str, nn.Module or fitted embedder, default="auto"
        Encoder; see :func:`sklabel.backbones.build_backbone`.
    max_epochs : int, default=60
        Passes over the unlabeled rows, or over the labeled ones where these take more
        steps.
    max_steps : int or None, default=None
        Length of training in optimizer steps; overrides ``max_epochs``. Published: 2**20.
    batch_size : int, default=64
        Labeled samples per step; labeled rows are repeated as needed.
    optimizer : str or class, default="adamw"
        "sgd", "nesterov", "adam", "adamw", or one of the LARS family for batches of
        thousands, see :class:`sklabel.optim.LARS`: "lars", "lars_byol", "larc", "lars_cifar".
    lr : float, default=2e-3
        Peak learning rate.
    weight_decay : float, default=0.02
        Decay of weights; biases and norms have none. With "adamw" each step takes away
        ``lr * weight_decay`` of a weight. Published for a network of four times the width:
        0.04.
    schedule : {"cosine", "fixmatch", "step", "constant"} or callable, default="constant"
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
    calibration_temperature_ : float
        Divides the logits of :meth:`predict_proba`; 1 without ``calibration_size``.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``labeled_loss`` and
        ``unlabeled_loss`` without its weight, and of the guessed labels
        ``pseudo_label_confidence`` (mean of their largest probability, sharpened),
        ``pseudo_label_classes`` (share of the unlabeled rows by most probable class) and
        ``pseudo_label_agreement`` (share of the unlabeled rows with the most probable
        class that they had before); with ``calibration_size`` also ``held_accuracy``
        (on the rows withheld).
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
        If no row is labeled, all labels are of one class, y does not fit X, or too few
        rows are labeled for ``calibration_size``.

    Warns
    -----
    CollapseWarning
        If at the end hardly any unlabeled row is guessed to be of some class, or one
        class has nearly all of them; or if, with ``calibration_size``, the accuracy on
        the withheld rows has fallen.

    See Also
    --------
    FixMatchClassifier : Needs fewer labels, and strong views that keep the class.
    sklabel.selection.USLSelector : Choose the rows to label.
    sklabel.model_selection.LabeledKFold : Cross-validation with partly labeled y.

    Notes
    -----
    Unlabeled rows are -1 in y, as in :mod:`sklearn.semi_supervised`; None and NaN mean the
    same. Class names go into an object array, ``y = np.array(names, dtype=object)``. The
    published setting is ``backbone="wrn_28_2", max_steps=2**20, ramp_up=2**20,
    ema_ramp=False``.

    Where the public code sends labeled rows and each set of views through the network
    apart, here all go at once, so that BatchNorm normalizes them by the same statistics:
    mixed rows, which it interleaves to that end, and views whose labels are guessed, which
    it does not; those guesses go wrong where the labels are of other classes than most
    unlabeled rows. The running statistics are those of all mixed rows.

    A step costs one forward more than plain training on ``1 + n_augmentations *
    unlabeled_ratio`` times the rows. With nothing unlabeled the training is plain mixup.

    References
    ----------
    .. [1] D. Berthelot et al., "MixMatch: a holistic approach to semi-supervised
       learning", NeurIPS 2019; algorithm 1.

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

    _parameter_constraints = {
        "unlabeled_weight": [Interval(Real, 0, None, closed="left")],
        "unlabeled_ratio": [Interval(Real, 0, None, closed="left")],
        "n_augmentations": [Interval(Integral, 1, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "ramp_up": [
            Interval(Integral, 0, None, closed="left"),
            Interval(Real, 0, 1, closed="both"),
        ],
        "include_labeled": ["boolean"],
        "ema_decay": [Interval(Real, 0, 1, closed="left")],
        "ema_ramp": ["boolean"],
        "weak_augment": [StrOptions({"auto"}), nn.Module, callable, None],
        **CLASSIFIER_CONSTRAINTS,
        "batch_size": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        unlabeled_weight=75,
        unlabeled_ratio=1,
        *,
        n_augmentations=2,
        temperature=0.5,
        alpha=0.75,
        ramp_up=1.0,
        include_labeled=False,
        ema_decay=0.999,
        ema_ramp=True,
        weak_augment="auto",
        class_weight=None,
        calibration_size=None,
        backbone="auto",
        max_epochs=60,
        max_steps=None,
        batch_size=64,
        optimizer="adamw",
        lr=2e-3,
        weight_decay=0.02,
        schedule="constant",
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
        self.unlabeled_weight = unlabeled_weight
        self.unlabeled_ratio = unlabeled_ratio
        self.n_augmentations = n_augmentations
        self.temperature = temperature
        self.alpha = alpha
        self.ramp_up = ramp_up
        self.include_labeled = include_labeled
        self.ema_decay = ema_decay
        self.ema_ramp = ema_ramp
        self.weak_augment = weak_augment
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
        self : MixMatchClassifier
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
            module = self._build_module(*rows.statistics(), len(mixed))
            self._fit_net(module, mixed, watch=self._watch(held))
            guessed = module.predicted.cpu().numpy()
            module.drop_training_state()
        self._finish(samples, codes, held, y)
        prior = mixed.class_shares(len(self.classes_))
        self._check_guesses(guessed, prior)
        return self

    def _build_module(self, mean, std, n_rows=0):
        module = _MixMatch(
            linear_classifier(self._build_backbone(mean, std), len(self.classes_)),
            self.ema_decay,
            self.ema_ramp,
            len(self.classes_),
            self._build_augment(self.weak_augment, "weak", mean, std),
            n_rows,
            n_augmentations=self.n_augmentations,
            temperature=self.temperature,
            alpha=self.alpha,
            unlabeled_weight=self.unlabeled_weight,
            ramp_up=self.ramp_up,
        )
        if self._continued is not None:
            for name in ("online", "average", "n_steps"):
                setattr(module, name, getattr(self._continued, name))
        return module

    def _rebuild_module(self, mean, std):
        self._continued = None
        module = self._build_module(mean, std)
        module.drop_training_state()
        return module

    def _check_guesses(self, guessed, prior):
        """Say what is wrong with the last guesses."""
        counts = np.bincount(guessed[guessed >= 0], minlength=len(prior))
        self._check_shares(
            counts / max(1, counts.sum()),
            prior,
            "guessed labels",
            counts.sum(),
            f"an unlabeled_weight below {self.unlabeled_weight}",
            "a longer training",
            class_weight="balanced",
        )
