"""SwAV: swapping assignments between views (Caron et al., 2020)."""

from numbers import Integral, Real

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from .._base import SHARED_CONSTRAINTS, BaseLearner, EmbeddingMixin
from .._callbacks import fitting
from ..augment import Contrastive, is_small
from ..losses import sinkhorn, swapped_prediction, unit_rows
from ..modules import ProjectionNet, Prototypes, mlp


class _SwAV(ProjectionNet):
    def __init__(self, *parts, augments, prototypes, queue_size, output, **settings):
        super().__init__(*parts, output)
        self.augment, self.small_augment = augments
        self.prototypes = prototypes
        # one for each of the two crops that get codes
        rows = torch.zeros(2, queue_size, prototypes.weight.shape[1])
        self.register_buffer("queue", rows)
        for name, value in settings.items():
            setattr(self, name, value)
        self.frozen, self.queued = False, False

    def before_epoch(self, net, samples):
        epoch = len(net.history) - 1
        self.frozen = epoch < self.frozen_epochs
        self.queued = self.queue.shape[1] > 0 and epoch >= self.queue_start

    def loss(self, x, y):
        # crops of one size in one forward, then all of them through the head
        h = self.backbone(torch.cat([self.augment(x), self.augment(x)]))
        if self.n_small_crops:
            small = [self.small_augment(x) for _ in range(self.n_small_crops)]
            h = torch.cat([h, self.backbone(torch.cat(small))])
        return self.swap(unit_rows(self.project(h)).unflatten(0, (-1, len(x))))

    def swap(self, z):
        """Return the loss of embedded crops z of shape (V, B, D)."""
        # detached prototypes get no gradient at all, so that nothing moves them
        scores = self.prototypes(z, frozen=self.frozen)  # (V, B, K)
        codes = [self.assign(i, z[i], scores[i]) for i in range(2)]
        return swapped_prediction(scores, torch.stack(codes), self.temperature)

    @torch.no_grad()
    def assign(self, i, z, scores):
        """Return the codes of assigned crop i, and remember its embeddings."""
        n_rows = len(z)
        if self.queued:
            queue = self.queue[i]
            if queue[-1].any():  # it is full
                scores = torch.cat([self.prototypes(queue), scores])
            if self.training:
                self.queue[i] = torch.cat([z.to(queue), queue])[: len(queue)]
        return sinkhorn(scores, self.epsilon, self.n_iterations)[-n_rows:]

    def after_step(self):
        self.prototypes.normalize_()


def _views(sample_shape):
    """Return the policies of large and small crops; CIFAR's are not blurred."""
    colors = {} if is_small(sample_shape) else {"jitter": 1.0, "blur": 0.5}
    size = tuple(max(1, round(side * 3 / 7)) for side in sample_shape[1:])
    return (
        Contrastive(crop=(0.14, 1.0), **colors),
        Contrastive(crop=(0.05, 0.14), size=size, **colors),
    )


class SwAVTransformer(EmbeddingMixin, BaseLearner):
    """Embed images with a network that predicts the cluster of one view from another.

    Each view is assigned softly to prototypes, in such a way that every batch uses all
    prototypes equally. Each view must then predict the assignment of the other views.
    Small crops, which are cheap, can be added to the two large ones. The features before
    the head are the embedding. Read more in the :ref:`User Guide <swav>`.

    Parameters
    ----------
    n_prototypes : int, default=512
        Number of prototypes. Published: 3000 on ImageNet, 512 to 3000 on CIFAR; about ten
        times the number of kinds.
    temperature : float, default=0.1
        Temperature of the prediction, > 0. Paper: tau.
    epsilon : float, default=0.05
        Softness of the assignment, > 0; lower it to 0.03 where the loss stays at the log
        of the number of prototypes.
    n_iterations : int, default=3
        Steps of the Sinkhorn algorithm, which makes the shares equal.
    n_small_crops : int, default=0
        Small crops of each image, besides the two large ones. Published: 6 on ImageNet,
        none on CIFAR.
    small_augment : "auto", nn.Module or None, default="auto"
        Their policy; "auto": :class:`sklabel.augment.Contrastive` with 5 to 14 % of the
        area and three sevenths of the side.
    queue_size : int, default=0
        Embeddings of earlier batches that help to assign, per large crop, for batches
        that are small beside the number of prototypes. Published: 3840 at a batch size of
        256.
    queue_start : int, default=15
        Epochs before the queue is used.
    frozen_epochs : float, default=1
        Epochs at the start in which the prototypes do not move.
    projection_size : int, default=128
        Output width of the projection head.
    projection_hidden : int, default=2048
        Hidden width of the projection head.
    output : {"backbone", "projection"}, default="backbone"
        Which features ``transform`` returns: those before the head, or the head's.
    backbone : str, nn.Module or fitted embedder, default="auto"
        Encoder; see :func:`sklabel.backbones.build_backbone`.
    augment : "auto", nn.Module or None, default="auto"
        Random large views; "auto": :class:`sklabel.augment.Contrastive` with 14 to 100 %
        of the area for images, :class:`sklabel.augment.VectorNoise` for vectors. Turn off
        flips for digits: ``Contrastive(flip=0)``.
    max_epochs : int, default=40
        Passes over X. Published: 400 to 800.
    max_steps : int or None, default=None
        Length of training in optimizer steps; overrides ``max_epochs``.
    batch_size : int, default=256
        Samples per step.
    optimizer : str or class, default="adamw"
        "sgd", "nesterov", "adam", "adamw", or one of the LARS family for batches of
        thousands, see :class:`sklabel.optim.LARS`: "lars", "lars_byol", "larc", "lars_cifar".
        Published: "larc", LARS with all parameters alike.
    lr : float, default=1e-3
        Peak learning rate. Published: 0.6 with "larc" at a batch size of 256.
    lr_scaling : {"linear", "sqrt"} or None, default=None
        "linear": times batch_size / 256; "sqrt": times sqrt(batch_size).
    weight_decay : float, default=1e-4
        Decay of weights; biases and norms have none.
    schedule : {"cosine", "fixmatch", "step", "constant"} or callable, default="cosine"
        Course of the learning rate after the warm-up.
    warmup_epochs : float, default=1
        Epochs of linear warm-up. Published: none at 256.
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
    sklabel.clustering.SCANClusterer : Clusters, where those are wanted.
    SimCLRTransformer : Views are compared directly.

    Notes
    -----
    Departures from the paper, for small data and batches: AdamW at 1e-3, 512 prototypes,
    two crops. The paper's setting for ImageNet at a batch size of 256:
    ``backbone="resnet50", optimizer="larc", lr=0.6, weight_decay=1e-6, warmup_epochs=0,
    max_epochs=400, n_prototypes=3000, n_small_crops=6, queue_size=3840``. Backbones that
    take one size of images only cannot have small crops.

    References
    ----------
    .. [1] M. Caron, I. Misra, J. Mairal, P. Goyal, P. Bojanowski, A. Joulin,
       "Unsupervised learning of visual features by contrasting cluster assignments",
       NeurIPS 2020; equations 1 to 5.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.embedding import SwAVTransformer
    >>> X = load_digits().images[:100]
    >>> embedder = SwAVTransformer(max_epochs=2, random_state=0).fit(X)
    >>> embedder.transform(X).shape
    (100, 128)
    """

    _parameter_constraints = {
        "n_prototypes": [Interval(Integral, 2, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iterations": [Interval(Integral, 1, None, closed="left")],
        "n_small_crops": [Interval(Integral, 0, None, closed="left")],
        "small_augment": [StrOptions({"auto"}), nn.Module, callable, None],
        "queue_size": [Interval(Integral, 0, None, closed="left")],
        "queue_start": [Interval(Integral, 0, None, closed="left")],
        "frozen_epochs": [Interval(Integral, 0, None, closed="left")],
        "projection_size": [Interval(Integral, 1, None, closed="left")],
        "projection_hidden": [Interval(Integral, 1, None, closed="left")],
        "output": [StrOptions({"backbone", "projection"})],
        "augment": [StrOptions({"auto"}), nn.Module, callable, None],
        "lr_scaling": [StrOptions({"linear", "sqrt"}), None],
        **SHARED_CONSTRAINTS,
    }

    def __init__(
        self,
        n_prototypes=512,
        *,
        temperature=0.1,
        epsilon=0.05,
        n_iterations=3,
        n_small_crops=0,
        small_augment="auto",
        queue_size=0,
        queue_start=15,
        frozen_epochs=1,
        projection_size=128,
        projection_hidden=2048,
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
        self.n_prototypes = n_prototypes
        self.temperature = temperature
        self.epsilon = epsilon
        self.n_iterations = n_iterations
        self.n_small_crops = n_small_crops
        self.small_augment = small_augment
        self.queue_size = queue_size
        self.queue_start = queue_start
        self.frozen_epochs = frozen_epochs
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
        self : SwAVTransformer
        """
        samples = self._check_X(X, reset=True)
        remedy = f"lower lr={self.lr} or epsilon={self.epsilon}, raise frozen_epochs"
        return self._fit_embedding(samples, remedy)

    def _build_module(self, mean, std):
        backbone = self._build_backbone(mean, std)
        project = mlp(
            backbone.n_features_out,
            self.projection_hidden,
            self.projection_size,
            last_norm=None,
        )
        large, small = _views(self.sample_shape_)
        return _SwAV(
            backbone,
            project,
            self.projection_size,
            augments=(
                self._build_augment(self.augment, large, mean, std),
                self._build_augment(self.small_augment, small, mean, std, noise=0.2),
            ),
            prototypes=Prototypes(self.projection_size, self.n_prototypes),
            queue_size=self.queue_size,
            temperature=self.temperature,
            epsilon=self.epsilon,
            n_iterations=self.n_iterations,
            n_small_crops=self.n_small_crops,
            queue_start=self.queue_start,
            frozen_epochs=self.frozen_epochs,
            output=self.output,
        )
