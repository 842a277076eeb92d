"""BYOL: bootstrap your own latent (Grill et al., 2020)."""

from numbers import Integral, Real

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from .._base import SHARED_CONSTRAINTS, BaseLearner, EmbeddingMixin
from .._callbacks import fitting
from ..augment import Contrastive, is_small
from ..losses import normalized_mse
from ..modules import ProjectionNet, cosine_decay, ema_update_, frozen_copy, mlp


class _BYOL(ProjectionNet):
    def __init__(self, *parts, predict, augments, decay, ramp, output):
        super().__init__(*parts, output)
        self.average = frozen_copy(self.parts())
        self.predict = predict
        self.augment1, self.augment2 = augments
        self.decay = decay
        self.ramp = ramp

    def before_epoch(self, net, samples):
        self.step, self.total_steps = net.step_, net.total_steps_

    def loss(self, x, y):
        # a forward for each view: BatchNorm must not see both together
        x1, x2 = self.augment1(x), self.augment2(x)
        p1, p2 = (self.predict(self.projected(view)) for view in (x1, x2))
        with torch.no_grad():
            t1, t2 = self.average(x1), self.average(x2)
        return normalized_mse(p1, t2) + normalized_mse(p2, t1)

    def after_step(self):
        decay = self.decay
        if self.ramp:
            decay = cosine_decay(self.step, decay, self.total_steps)
        self.step += 1
        # the average's own BatchNorm statistics come from its own forwards
        ema_update_(self.average, self.parts(), decay, copy_buffers=False)


def _views(sample_shape):
    """Return the two views of the paper; those of small images are not blurred."""
    jitter = (0.4, 0.4, 0.2, 0.1)
    first, second = (0.0, 0.0) if is_small(sample_shape) else (1.0, 0.1)
    return (
        Contrastive(jitter=jitter, blur=first),
        Contrastive(jitter=jitter, blur=second, solarize=0.2),
    )


class BYOLTransformer(EmbeddingMixin, BaseLearner):
    """Embed images with a network that predicts what its own average says of another view.

    Two views of an image go through the network and through a slowly moving average of
    it. A small predictor must tell, from one view in the network, the average's output
    for the other view. No image is pushed away from another. The features before the head
    are the embedding. Read more in the :ref:`User Guide <byol>`.

    Parameters
    ----------
    ema_decay : float, default=0.97
        Decay of the averaged weights at the start, in [0, 1). Paper: tau; 0.97 for 40
        epochs, 0.99 for 100 and 300, 0.996 for 1000.
    ema_ramp : bool, default=True
        Whether the decay grows to 1 along half a cosine, as in the paper.
    projection_size : int, default=256
        Output width of the projection head and of the predictor.
    projection_hidden : int, default=1024
        Hidden width of both. Published: 4096; 1024 is usual for CIFAR.
    output : {"backbone", "projection"}, default="backbone"
        Which features ``transform`` returns: those before the head, or the head's.
    backbone : str, nn.Module or fitted embedder, default="auto"
        Encoder; see :func:`sklabel.backbones.build_backbone`.
    augment : "auto", nn.Module, pair of nn.Module or None, default="auto"
        Random views; a pair: one for each view. "auto": for images
        :class:`sklabel.augment.Contrastive` in the paper's two settings, for vectors
        :class:`sklabel.augment.VectorNoise`. Turn off flips for digits:
        ``Contrastive(flip=0)``.
    max_epochs : int, default=40
        Passes over X. Published: 1000.
    max_steps : int or None, default=None
        Length of training in optimizer steps; overrides ``max_epochs``.
    batch_size : int, default=256
        Samples per step.
    optimizer : str or class, default="adamw"
        "sgd", "nesterov", "adam", "adamw", or one of the LARS family for batches of
        thousands, see :class:`sklabel.optim.LARS`: "lars", "lars_byol", "larc", "lars_cifar".
        Published: "lars_byol".
    lr : float, default=1e-3
        Peak learning rate. Published: 0.2 with "lars_byol" and "linear" scaling.
    lr_scaling : {"linear", "sqrt"} or None, default=None
        "linear": times batch_size / 256; "sqrt": times sqrt(batch_size).
    weight_decay : float, default=1e-4
        Decay of weights; biases and norms have none.
    schedule : {"cosine", "fixmatch", "step", "constant"} or callable, default="cosine"
        Course of the learning rate after the warm-up.
    warmup_epochs : float, default=1
        Epochs of linear warm-up. Published: 10.
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
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``feature_std``
        (1: spread over the sphere, 0: collapsed) and ``effective_rank``.
    encoder_ : nn.Module
        Trained encoder, the head left out.
    sample_shape_ : tuple of int
        Shape of one sample: ``(D,)`` or ``(C, H, W)``.
    n_features_in_ : int
        Values per sample.
    n_iter_ : int
        Epochs trained.
    interrupted_ : bool
        Whether Ctrl-C ended the training early.

    See Also
    --------
    SimCLRTransformer, MoCoTransformer : With negatives.
    sklabel.selection.USLSelector : Choose the images worth a label from the embedding.

    Notes
    -----
    Without BatchNorm or another normalization in head or backbone, BYOL collapses. The
    loss is that of the paper, 0 to 8; a loss below 0.01 after a few epochs is a collapse.
    Departures, for small data and batches: AdamW at 1e-3, narrower heads, no blur below 64
    pixels, and the average starts with the network's own weights. The paper's setting:
    ``backbone="resnet50", optimizer="lars_byol", lr=0.2, lr_scaling="linear",
    weight_decay=1.5e-6, batch_size=4096, warmup_epochs=10, max_epochs=1000,
    ema_decay=0.996, projection_hidden=4096``. Its rates are for LARS only.

    References
    ----------
    .. [1] J.-B. Grill et al., "Bootstrap your own latent: a new approach to
       self-supervised learning", NeurIPS 2020; equations 2 and 3.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.embedding import BYOLTransformer
    >>> X = load_digits().images[:100]
    >>> embedder = BYOLTransformer(max_epochs=2, random_state=0).fit(X)
    >>> embedder.transform(X).shape
    (100, 128)
    """

    _parameter_constraints = {
        "ema_decay": [Interval(Real, 0, 1, closed="left")],
        "ema_ramp": ["boolean"],
        "projection_size": [Interval(Integral, 1, None, closed="left")],
        "projection_hidden": [Interval(Integral, 1, None, closed="left")],
        "output": [StrOptions({"backbone", "projection"})],
        "augment": [StrOptions({"auto"}), nn.Module, callable, tuple, list, None],
        "lr_scaling": [StrOptions({"linear", "sqrt"}), None],
        **SHARED_CONSTRAINTS,
    }

    def __init__(
        self,
        ema_decay=0.97,
        *,
        ema_ramp=True,
        projection_size=256,
        projection_hidden=1024,
        output="backbone",
        backbone="auto",
        augment="auto",
        max_epochs=40,
        max_steps=None,
        batch_size=256,
        optimizer="adamw",
        lr=1e-3,
        lr_scaling=None,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_epochs=1,
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
        self.ema_decay = ema_decay
        self.ema_ramp = ema_ramp
        self.projection_size = projection_size
        self.projection_hidden = projection_hidden
        self.output = output
        self.backbone = backbone
        self.augment = augment
        self.max_epochs = max_epochs
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.lr_scaling = lr_scaling
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
    def fit(self, X, y=None):
        """Train the network on X.

        Parameters
        ----------
        X : array-like
            Images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``; paths of image
            files; or vectors ``(n, D)``.
        y : None
            Ignored.

        Returns
        -------
        self : BYOLTransformer
        """
        samples = self._check_X(X, reset=True)
        return self._fit_embedding(samples, f"lower lr={self.lr}, or train longer")

    def _build_module(self, mean, std):
        backbone = self._build_backbone(mean, std)
        size, hidden = self.projection_size, self.projection_hidden
        augments = self.augment
        if not isinstance(augments, (tuple, list)):
            augments = (augments, augments)
        if len(augments) != 2:
            raise ValueError(f"augment={self.augment!r} must be one policy or a pair.")
        return _BYOL(
            backbone,
            # the paper's bias before BatchNorm would have no effect
            mlp(backbone.n_features_out, hidden, size, last_norm=None, bias=False),
            size,
            predict=mlp(size, hidden, size, last_norm=None, bias=False),
            augments=[
                self._build_augment(augment, views, mean, std)
                for augment, views in zip(
                    augments, _views(self.sample_shape_), strict=True
                )
            ],
            decay=self.ema_decay,
            ramp=self.ema_ramp,
            output=self.output,
        )
