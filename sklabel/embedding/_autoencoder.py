"""Convolutional autoencoder, as DCEC has it (Guo, Liu, Zhu and Yin, 2017)."""

from numbers import Integral

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_array, check_is_fitted
from torch import nn
from torch.nn import functional as F

from .._core.callbacks import fitting
from .._core.learner import SHARED_CONSTRAINTS, Learner
from .._core.roles.embedding import EmbeddingRole
from ..backbones import Encoder, build_autoencoder


class _Autoencoder(nn.Module):
    def __init__(self, backbone, decoder, augment, mean, std):
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.augment = augment
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.n_features_out = backbone.n_features_out

    def forward(self, x):
        return self.backbone(x)  # (B, D), the codes

    def loss(self, x, y):
        return self.error(self(self.augment(x)), x)

    def error(self, z, x):
        """Return how far samples drawn from codes z are from x, mean squared."""
        # pixels in [0, 1], but standardized vectors
        x = (x - self.mean) / self.std if x.ndim == 2 else x
        return F.mse_loss(self.decoder(z).float(), x)

    def reconstruct(self, z):
        """Return samples from codes; the inverse of ``forward``."""
        x = self.decoder(z).float()
        if x.ndim == 2:
            return x * self.std + self.mean
        return x.clamp(0, 1)


class AutoencoderTransformer(EmbeddingRole, Learner):
    """Embed images by a short code from which they can be drawn again.

    An encoder turns an image into a code, a decoder turns the code into an image, and
    both are trained to give back what came in. Nothing is augmented, so it also works
    where no change of an image is harmless; it keeps what takes up many pixels, not what
    matters to you. Read more in the :ref:`User Guide <autoencoder>`.

    Parameters
    ----------
    n_components : int, default=128
        Length of the code. Published: 10 for MNIST; 128 to 256 suit color photographs.
    filters : tuple of int, default=(32, 64, 128)
        Channels of the convolutions, each of which halves the side of an image; the
        decoder mirrors them.
    hidden_sizes : tuple of int, default=(500, 500, 2000)
        Widths of the layers for vectors; the decoder mirrors them.
    standardize : bool, default=True
        Whether channels of images, and features of vectors, are centered and divided by
        their standard deviation. Without, pixels go from 0 to 1, as published, and
        vectors are taken as they are: what has little spread counts little.
    backbone : str, nn.Module or fitted embedder, default="auto"
        Encoder; see :func:`sklabel.backbones.build_backbone`.
    augment : nn.Module or None, default=None
        Damages the input; what is reconstructed is the undamaged sample (a denoising
        autoencoder). "auto": :class:`sklabel.augment.Weak` for images,
        :class:`sklabel.augment.VectorNoise` for vectors.
    max_epochs : int, default=40
        Passes over X. Published: 200.
    max_steps : int or None, default=None
        Length of training in optimizer steps; overrides ``max_epochs``.
    batch_size : int, default=256
        Samples per step.
    optimizer : str or class, default="adam"
        "sgd", "nesterov", "adam", "adamw", or one of the LARS family for batches of
        thousands, see :class:`sklabel.optim.LARS`: "lars", "lars_byol", "larc", "lars_cifar".
        Published: Adam.
    lr : float, default=1e-3
        Peak learning rate. Published: 1e-3.
    lr_scaling : {"linear", "sqrt"} or None, default=None
        "linear": times batch_size / 256; "sqrt": times sqrt(batch_size).
    weight_decay : float, default=0.0
        Decay of weights; biases and norms have none.
    schedule : {"cosine", "fixmatch", "step", "constant"} or callable, default="constant"
        Course of the learning rate after the warm-up.
    warmup_epochs : float, default=0
        Epochs of linear warm-up. Published: none.
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
        Trained encoder, from sample to code.
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
    SimCLRTransformer : Learns what stays the same under changes that you name.

    Notes
    -----
    With ``backbone="auto"``, images go through convolutions of 5, 5 and 3 pixels with
    stride 2, ReLU, and a linear layer, mirrored by transposed convolutions; vectors go
    through the dense network of DEC; Glorot initialization. Another backbone is followed
    by a linear layer that makes the code, and the decoder is as above. The loss is the
    mean squared error over pixels in [0, 1], or over standardized features. One departure:
    the encoder sees standardized pixels, the published one those in [0, 1].

    References
    ----------
    .. [1] X. Guo, X. Liu, E. Zhu, J. Yin, "Deep clustering with convolutional
       autoencoders", ICONIP 2017; section 3.
    .. [2] J. Xie, R. Girshick, A. Farhadi, "Unsupervised deep embedding for clustering
       analysis", ICML 2016.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.embedding import AutoencoderTransformer
    >>> X = load_digits().images[:100]
    >>> embedder = AutoencoderTransformer(max_epochs=2, random_state=0).fit(X)
    >>> embedder.transform(X).shape
    (100, 128)
    """

    _parameter_constraints = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "filters": ["array-like"],
        "hidden_sizes": ["array-like"],
        "standardize": ["boolean"],
        "augment": [StrOptions({"auto"}), nn.Module, callable, None],
        "lr_scaling": [StrOptions({"linear", "sqrt"}), None],
        **SHARED_CONSTRAINTS,
    }

    def __init__(
        self,
        n_components=128,
        *,
        filters=(32, 64, 128),
        hidden_sizes=(500, 500, 2000),
        standardize=True,
        backbone="auto",
        augment=None,
        max_epochs=40,
        max_steps=None,
        batch_size=256,
        optimizer="adam",
        lr=1e-3,
        lr_scaling=None,
        weight_decay=0.0,
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
        self.n_components = n_components
        self.filters = filters
        self.hidden_sizes = hidden_sizes
        self.standardize = standardize
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
        self : AutoencoderTransformer
        """
        samples = self._check_X(X, reset=True)
        if len(samples.sample_shape) == 3:
            self._row_shape = samples.row_shape
            self._channels_last = samples.channels_last
        remedy = f"lower lr={self.lr}, or check that the samples are not all alike"
        # codes are no directions: they may well share a large mean
        return self._fit_embedding(samples, remedy, least_spread=0.01, least_rank=0)

    def inverse_transform(self, Z):
        """Return the samples that codes stand for.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Codes, as ``transform`` returns them.

        Returns
        -------
        X : ndarray of float32
            In the layout and the range of values of the X given to ``fit``; image files
            come back as ``(n_samples, h, w, 3)`` with values from 0 to 255.
        """
        check_is_fitted(self)
        Z = check_array(Z, dtype=np.float32)
        if Z.shape[1] != self.n_components:
            raise ValueError(
                f"Z has {Z.shape[1]} columns, but a code has n_components="
                f"{self.n_components}."
            )
        net = self.net_
        module = net.module_.eval()
        parts = []
        with torch.inference_mode(), net.autocast():
            for z in torch.from_numpy(Z).split(max(256, self.batch_size)):
                parts.append(module.reconstruct(z.to(net.device)).float().cpu())
        x = torch.cat(parts)
        if x.ndim == 2:
            return x.numpy()
        low, high = self._pixel_range
        x = x * (high - low) + low
        x = x.permute(0, 2, 3, 1) if self._channels_last else x
        return np.ascontiguousarray(x.numpy()).reshape(len(x), *self._row_shape)

    def _build_module(self, mean, std):
        shape = self.sample_shape_
        sizes = self.filters if len(shape) == 3 else self.hidden_sizes
        encode, decode = build_autoencoder(shape, self.n_components, sizes)
        augment = self._build_augment(self.augment, "weak", mean, std)
        if not self.standardize:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        backbone = Encoder(encode, shape, mean, std)
        if not isinstance(self.backbone, str) or self.backbone != "auto":
            backbone = self._build_backbone(mean, std)  # it standardizes
            code = nn.Linear(backbone.n_features_out, self.n_components)
            backbone = Encoder(nn.Sequential(backbone, code), shape)
        return _Autoencoder(backbone, decode, augment, mean, std)
