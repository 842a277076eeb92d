"""The convolutional autoencoder of DCEC (Guo, Liu, Zhu and Yin, 2017)."""

from dataclasses import InitVar

import numpy as np
import torch
from sklearn.utils.validation import check_array, check_is_fitted
from torch import nn
from torch.nn import functional as F

from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    ArrayLike,
    Augment,
    Count,
    LearningRateScaling,
    Optimizer,
    Schedule,
)
from .._core.roles.embedding import EmbeddingRole
from ..backbones import Encoder, build_autoencoder
from ..modules import Method


class _Autoencoder(Method):
    backbone: nn.Module
    decoder: nn.Module
    augment: nn.Module
    mean: InitVar[torch.Tensor]
    std: InitVar[torch.Tensor]

    def __post_init__(self, mean, std):
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @property
    def n_features_out(self):
        return self.backbone.n_features_out

    def forward(self, x):
        return self.backbone(x)  # (B, D), the codes

    def loss(self, x, y):
        return self.error(self(self.augment(x)), x)

    def error(self, z, x):
        """Return the mean squared error of the samples reconstructed from codes z."""
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
    """Embed images by a short code from which they can be reconstructed.

    An encoder turns an image into a code, a decoder turns the code back into an image,
    and both are trained to reconstruct the input. No augmentation is needed, so the
    method also works if augmentation would change the class; but the code describes
    what covers many pixels, which may not be what you care about. Read more in the
    :ref:`User Guide <autoencoder>`.

    Parameters
    ----------
    n_components : int
        Length of the code. Published: 10 for MNIST; 128 to 256 suit color photographs.
    filters : tuple of int
        Channels of the convolutions, each of which halves the side of an image; the
        decoder mirrors them.
    hidden_sizes : tuple of int
        Widths of the layers for vectors; the decoder mirrors them.
    standardize : bool
        Whether channels of images, and features of vectors, are centered and divided by
        their standard deviation. If False, pixels are in [0, 1], as published, and
        vectors are not scaled: features of low variance count little.
    augment : nn.Module or None
        Corrupts the input, from which the clean sample is reconstructed (a denoising
        autoencoder). "auto": :class:`sklabel.augment.Weak` for images,
        :class:`sklabel.augment.VectorNoise` for vectors.
    max_epochs
        Published: 200.
    optimizer
        Published: Adam.
    lr
        Published: 1e-3.
    warmup_epochs
        Published: none.

    Attributes
    ----------
    encoder_ : nn.Module
        Trained encoder, from sample to code.

    See Also
    --------
    SimCLRTransformer : Learns features that are invariant to augmentation.

    Notes
    -----
    With ``backbone="auto"``, images pass through convolutions of 5, 5 and 3 pixels with
    stride 2, ReLU, and a linear layer, mirrored by transposed convolutions; vectors
    pass through the dense network of DEC. Initialization is Glorot's. Another backbone
    is followed by a linear layer that outputs the code, and the decoder is as above.
    The loss is the mean squared error over pixels in [0, 1], or over standardized
    features. One difference from the paper: the input is standardized pixels, not
    pixels in [0, 1].

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

    n_components: Count = 128
    _: KW_ONLY
    filters: ArrayLike = (32, 64, 128)
    hidden_sizes: ArrayLike = (500, 500, 2000)
    standardize: bool = True
    augment: Augment = None
    lr_scaling: LearningRateScaling = None
    optimizer: Optimizer = "adam"
    schedule: Schedule = "constant"

    _bound = ("standardize",)
    remedy = "lower lr={lr}, or check that the samples are not all equal"
    # codes are no directions: they may well share a large mean
    least_spread, least_rank = 0.01, 0

    def _train(self, samples):
        if len(samples.sample_shape) == 3:
            self._row_shape = samples.row_shape
            self._channels_last = samples.channels_last
        super()._train(samples)

    def inverse_transform(self, Z):
        """Reconstruct samples from codes.

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
        x = net.evaluate_tensor(torch.from_numpy(Z), net.module_.reconstruct)
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
