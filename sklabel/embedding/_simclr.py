"""SimCLR: contrastive learning of visual representations (Chen et al., 2020)."""

from numbers import Integral, Real

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from .._core.callbacks import fitting
from .._core.learner import SHARED_CONSTRAINTS, Learner
from .._core.roles.embedding import EmbeddingRole
from ..losses import nt_xent
from ..modules import ProjectionNet, mlp


class _SimCLR(ProjectionNet):
    def __init__(self, *parts, augment, temperature, output):
        super().__init__(*parts, output)
        self.augment = augment
        self.temperature = temperature

    def loss(self, x, y):
        # both views in one forward: BatchNorm sees all 2B images
        views = torch.cat([self.augment(x), self.augment(x)])
        z1, z2 = self.projected(views).chunk(2)  # (B, projection_size) each
        return nt_xent(z1, z2, self.temperature)


class SimCLRTransformer(EmbeddingRole, Learner):
    """Embed images with a network that recognizes two random views of the same image.

    Each image of a batch is augmented twice. A small head maps both views to a sphere,
    where they must find each other among all other views of the batch. The features
    before the head are the embedding. Read more in the :ref:`User Guide <embedding>`.

    Parameters
    ----------
    temperature : float, default=0.5
        Temperature of the contrastive loss, > 0. Paper: tau; 0.5 for CIFAR, 0.1 for
        ImageNet.
    projection_size : int, default=128
        Output width of the projection head.
    projection_hidden : int or None, default=None
        Hidden width of the projection head; None: that of the backbone.
    projection_layers : int, default=2
        Layers of the projection head: 2 in SimCLR, 3 in SimCLRv2.
    output : {"backbone", "projection"}, default="backbone"
        Which features ``transform`` returns: those before the head, or the head's.
    backbone : str, nn.Module or fitted embedder, default="auto"
        Encoder; see :func:`sklabel.backbones.build_backbone`.
    augment : "auto", nn.Module or None, default="auto"
        Random views; "auto": :class:`sklabel.augment.Contrastive` for images,
        :class:`sklabel.augment.VectorNoise` for vectors. Turn off flips for digits:
        ``Contrastive(flip=0)``.
    max_epochs : int, default=40
        Passes over X. Published: 1000 on CIFAR-10.
    max_steps : int or None, default=None
        Length of training in optimizer steps; overrides ``max_epochs``.
    batch_size : int, default=256
        Samples per step.
    optimizer : str or class, default="adamw"
        "sgd", "nesterov", "adam", "adamw", or one of the LARS family for batches of
        thousands, see :class:`sklabel.optim.LARS`: "lars", "lars_byol", "larc", "lars_cifar".
        Published: "lars".
    lr : float, default=1e-3
        Peak learning rate. Published for CIFAR-10: 1.0 with "lars" and "linear" scaling.
    lr_scaling : {"linear", "sqrt"} or None, default=None
        "linear": times batch_size / 256; "sqrt": times sqrt(batch_size).
    weight_decay : float, default=1e-4
        Decay of weights; biases and norms have none.
    schedule : {"cosine", "fixmatch", "step", "constant"} or callable, default="cosine"
        Course of the learning rate after the warm-up.
    warmup_epochs : float, default=1
        Epochs of linear warm-up. Published: 10 of 1000.
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
    sklabel.selection.USLSelector : Choose the images worth a label from the embedding.
    sklabel.classification.FixMatchClassifier : Takes it as ``backbone=``.

    Notes
    -----
    The loss is the official one, the sum over both views, twice equation 1. Departures
    from the paper, for small data and batches: AdamW at 1e-3 and a warm-up of one epoch.
    The paper's setting for CIFAR-10 is ``optimizer="lars", lr=1.0, lr_scaling="linear",
    batch_size=512, warmup_epochs=10, max_epochs=1000, backbone="resnet18"``.

    References
    ----------
    .. [1] T. Chen, S. Kornblith, M. Norouzi, G. Hinton, "A simple framework for
       contrastive learning of visual representations", ICML 2020; equation 1.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.embedding import SimCLRTransformer
    >>> X = load_digits().images[:100]
    >>> embedder = SimCLRTransformer(max_epochs=2, random_state=0).fit(X)
    >>> embedder.transform(X).shape
    (100, 128)
    """

    _parameter_constraints = {
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "projection_size": [Interval(Integral, 1, None, closed="left")],
        "projection_hidden": [Interval(Integral, 1, None, closed="left"), None],
        "projection_layers": [Interval(Integral, 1, None, closed="left")],
        "output": [StrOptions({"backbone", "projection"})],
        "augment": [StrOptions({"auto"}), nn.Module, callable, None],
        "lr_scaling": [StrOptions({"linear", "sqrt"}), None],
        **SHARED_CONSTRAINTS,
    }

    def __init__(
        self,
        temperature=0.5,
        *,
        projection_size=128,
        projection_hidden=None,
        projection_layers=2,
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
        self.temperature = temperature
        self.projection_size = projection_size
        self.projection_hidden = projection_hidden
        self.projection_layers = projection_layers
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
        self : SimCLRTransformer
        """
        samples = self._check_X(X, reset=True)
        remedy = f"lower lr={self.lr} or temperature={self.temperature}"
        return self._fit_embedding(samples, remedy)

    def _build_module(self, mean, std):
        backbone = self._build_backbone(mean, std)
        project = mlp(
            backbone.n_features_out,
            self.projection_hidden or backbone.n_features_out,
            self.projection_size,
            n_layers=self.projection_layers,
        )
        return _SimCLR(
            backbone,
            project,
            self.projection_size,
            augment=self._build_augment(self.augment, "contrastive", mean, std),
            temperature=self.temperature,
            output=self.output,
        )
