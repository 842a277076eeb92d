"""CLD: cross-level instance-group discrimination (Wang, Liu and Yu, 2021)."""

from numbers import Integral, Real

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from .._base import SHARED_CONSTRAINTS, BaseLearner, EmbeddingMixin
from .._callbacks import fitting
from ..augment import Contrastive, is_small
from ..losses import group_discrimination, info_nce, unit_rows
from ..modules import (
    NormLinear,
    ProjectionNet,
    Queue,
    ema_update_,
    fitting_queue_size,
    frozen_copy,
)


class _CLD(ProjectionNet):
    def __init__(self, *parts, augment, group, queue, output, **settings):
        super().__init__(*parts, output)
        self.average = frozen_copy(self.parts())
        self.group = group
        self.augment = augment
        self.queue = queue
        for name, value in settings.items():
            setattr(self, name, value)
        # the official start of this queue, not of length 1
        bound = (queue.rows.shape[1] / 3) ** -0.5
        nn.init.uniform_(queue.rows, -bound, bound)
        self.keys = None

    def loss(self, x, y):
        branches = []
        for _ in range(2):  # a forward for each view
            h = self.backbone(self.augment(x))
            branches.append((unit_rows(self.project(h)), unit_rows(self.group(h))))
        with torch.no_grad():
            k = unit_rows(self.average(self.augment(x)))  # a third view
        if self.training:
            self.keys = k
        (q1, z1), (q2, z2) = branches
        instance_loss, group_loss = self.discriminate(q1, q2, k, z1, z2)
        return instance_loss + self.group_weight * group_loss, {
            "instance_loss": instance_loss.detach(),
            "group_loss": group_loss.detach(),
        }

    def discriminate(self, q1, q2, k, z1, z2):
        """Return the instance and the group loss of unit rows, (B, D) each."""
        queue = self.queue.rows
        instance_loss = (
            sum(info_nce(q, k, queue, self.temperature) for q in (q1, q2)) / 2
        )
        group_loss = group_discrimination(
            z1,
            z2,
            min(self.n_groups, len(z1)),  # the last batch may be short
            self.group_temperature,
            self.n_lloyd,
        )
        return instance_loss, group_loss

    def after_step(self):
        self.queue.push_(self.keys)
        self.keys = None
        # the average's own BatchNorm statistics come from the keys
        ema_update_(self.average, self.parts(), self.decay, copy_buffers=False)


class CLDTransformer(EmbeddingMixin, BaseLearner):
    """Embed images with a network that tells images apart, and groups of images too.

    Contrasting single images (as MoCo does) pushes similar images apart. Here a second
    head groups each batch by k-means, and every image must also find its group among
    those of the other view. So similar images may stay together. The features before the
    heads are the embedding. Read more in the :ref:`User Guide <cld>`.

    Parameters
    ----------
    n_groups : int, default=200
        Groups of a batch, at most ``batch_size``. Published: 200 of 256 on CIFAR-10, 100 of
        128 on CIFAR-100; fewer where images are much alike, as those of a video.
    temperature : float, default=0.07
        Temperature of the instance loss, > 0.
    group_temperature : float, default=0.2
        Temperature of the group loss, > 0.
    group_weight : float, default=0.8
        Weight of the group loss, >= 0. Paper: lambda; 0.8 on CIFAR-10, 0.25 on CIFAR-100
        and ImageNet.
    n_lloyd : int, default=5
        Steps of k-means.
    queue_size : int or "auto", default="auto"
        Keys in the queue of the instance loss. Published: 12288 on CIFAR-10. "auto": a
        tenth of the rows of X, at least a batch, at most 4096.
    ema_decay : float, default=0.99
        Decay of the averaged weights, in [0, 1). Published: 0.999, for trainings of tens
        of thousands of steps.
    norm_head : bool, default=False
        Whether the heads compare unit features with unit weights ("NormLinear").
    projection_size : int, default=128
        Output width of both heads.
    output : {"backbone", "projection"}, default="backbone"
        Which features ``transform`` returns: those before the heads, or the
        instance head's.
    backbone : str, nn.Module or fitted embedder, default="auto"
        Encoder; see :func:`sklabel.backbones.build_backbone`.
    augment : "auto", nn.Module or None, default="auto"
        Random views; "auto": :class:`sklabel.augment.Contrastive` with 20 to 100 % of the
        area for images, :class:`sklabel.augment.VectorNoise` for vectors. Turn off flips
        for digits: ``Contrastive(flip=0)``.
    max_epochs : int, default=40
        Passes over X. Published: 200.
    max_steps : int or None, default=None
        Length of training in optimizer steps; overrides ``max_epochs``.
    batch_size : int, default=256
        Samples per step.
    optimizer : str or class, default="adamw"
        "sgd", "nesterov", "adam", "adamw", or one of the LARS family for batches of
        thousands, see :class:`sklabel.optim.LARS`: "lars", "lars_byol", "larc", "lars_cifar".
        Published: "sgd".
    lr : float, default=1e-3
        Peak learning rate. Published: 0.06 with "sgd".
    lr_scaling : {"linear", "sqrt"} or None, default=None
        "linear": times batch_size / 256; "sqrt": times sqrt(batch_size).
    weight_decay : float, default=1e-4
        Decay of weights; biases and norms have none.
    schedule : {"cosine", "fixmatch", "step", "constant"} or callable, default="cosine"
        Course of the learning rate after the warm-up.
    warmup_epochs : float, default=1
        Epochs of linear warm-up. Published: 5.
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
        Trained encoder, the heads left out.
    queue_size_ : int
        Keys in the queue.
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
    MoCoTransformer : The instance loss alone.
    sklabel.selection.USLSelector : Its paper chooses images from CLD's features.

    Notes
    -----
    The instance loss is MoCo's, with two queries and one key from three views. Departures
    from the authors' setting for CIFAR-10, for small data and short trainings: AdamW at
    1e-3, a short queue, an average that forgets faster, and no erasing of image parts.
    That setting: ``backbone="resnet18", optimizer="sgd", lr=0.06, weight_decay=8e-4,
    warmup_epochs=5, max_epochs=200, queue_size=12288, ema_decay=0.999``.

    References
    ----------
    .. [1] X. Wang, Z. Liu, S. X. Yu, "Unsupervised feature learning by cross-level
       instance-group discrimination", CVPR 2021; equations 3 to 5.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.embedding import CLDTransformer
    >>> X = load_digits().images[:100]
    >>> embedder = CLDTransformer(max_epochs=2, random_state=0).fit(X)
    >>> embedder.transform(X).shape
    (100, 128)
    """

    _parameter_constraints = {
        "n_groups": [Interval(Integral, 2, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "group_temperature": [Interval(Real, 0, None, closed="neither")],
        "group_weight": [Interval(Real, 0, None, closed="left")],
        "n_lloyd": [Interval(Integral, 1, None, closed="left")],
        "queue_size": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "ema_decay": [Interval(Real, 0, 1, closed="left")],
        "norm_head": ["boolean"],
        "projection_size": [Interval(Integral, 1, None, closed="left")],
        "output": [StrOptions({"backbone", "projection"})],
        "augment": [StrOptions({"auto"}), nn.Module, callable, None],
        "lr_scaling": [StrOptions({"linear", "sqrt"}), None],
        **SHARED_CONSTRAINTS,
    }

    def __init__(
        self,
        n_groups=200,
        *,
        temperature=0.07,
        group_temperature=0.2,
        group_weight=0.8,
        n_lloyd=5,
        queue_size="auto",
        ema_decay=0.99,
        norm_head=False,
        projection_size=128,
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
        self.n_groups = n_groups
        self.temperature = temperature
        self.group_temperature = group_temperature
        self.group_weight = group_weight
        self.n_lloyd = n_lloyd
        self.queue_size = queue_size
        self.ema_decay = ema_decay
        self.norm_head = norm_head
        self.projection_size = projection_size
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
        self : CLDTransformer
        """
        samples = self._check_X(X, reset=True)
        if self._continued is None:
            self.queue_size_ = fitting_queue_size(
                self.queue_size, samples.n_trained, self.batch_size
            )
        remedy = f"lower lr={self.lr} or group_weight={self.group_weight}"
        return self._fit_embedding(samples, remedy)

    def _build_module(self, mean, std):
        backbone = self._build_backbone(mean, std)
        head = NormLinear if self.norm_head else nn.Linear
        width, size = backbone.n_features_out, self.projection_size
        # MoCo's, as published; without a blur for CIFAR
        views = Contrastive(
            crop=(0.2, 1.0),
            jitter=(0.4, 0.4, 0.4, 0.1),
            blur=0.0 if is_small(self.sample_shape_) else 0.5,
        )
        return _CLD(
            backbone,
            head(width, size),
            size,
            augment=self._build_augment(self.augment, views, mean, std),
            group=head(width, size),
            queue=Queue(self.queue_size_, size),
            temperature=self.temperature,
            group_temperature=self.group_temperature,
            group_weight=self.group_weight,
            n_groups=self.n_groups,
            n_lloyd=self.n_lloyd,
            decay=self.ema_decay,
            output=self.output,
        )
