"""Pretrained encoders of torchvision, timm and open_clip, frozen."""

import functools
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import nn
from tqdm.auto import tqdm

from .._core.callbacks import fitting
from .._core.columns import image_column, item_column
from .._core.freezing import lock_
from .._core.identity import digest
from .._core.image_files import StreamedFiles
from .._core.inputs import check_pixel_range, check_samples, size_pair
from .._core.learner import NetEstimator
from .._core.net import Net, resolve_device
from .._core.own_networks import (
    Vectors,
    frame_of,
    in_half,
    own_encoder,
    side_by_side,
)
from .._core.parameters import KW_ONLY, ArrayLike, Count, ImageProcessor
from .._core.samples import PIXEL_RANGES, Samples
from .._core.vector_cache import VectorCache, cache_name
from .._core.warn import warn, warn_once
from ..backbones import Encoder
from ..modules import Method
from ..pretrained import pretrained_backbone

_BATCH_BYTES = 2**28  # as floats, before the resizing


class _Frozen(Method):
    backbone: nn.Module
    frame: nn.Module

    @property
    def n_features_out(self):
        return self.backbone.n_features_out

    def forward(self, x):
        return self.backbone(x)


class PretrainedTransformer(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, NetEstimator
):
    """Embed images with a published pretrained encoder, without training it.

    Nothing is learned from X, except the pixel range of float images outside [0, 1].
    The images are resized, cropped and standardized as the weights require, then
    encoded in batches. Read more in the :ref:`User Guide <pretrained>`.

    Parameters
    ----------
    backbone : str, nn.Module or list of these
        "resnet50" or another classifier of torchvision; "timm/NAME" (extra
        ``backbones``), such as "timm/vit_small_patch14_dinov2"; or "open_clip/NAME"
        (extra ``clip``), such as "open_clip/ViT-B-32" or, with weights of its own,
        "open_clip/hf-hub:OWNER/NAME". Or a network of your own that takes images ``(B,
        3, H, W)`` and returns vectors, maps or tokens, including models of
        transformers; it is copied. With several encoders, each vector is scaled to
        length 1 and they are concatenated; they share the frame of the largest.
    weights : str, Path, None or list of these
        "DEFAULT": the library's recommended weights, for open_clip the first that it
        lists, downloaded once into the library's own cache. Or the name of other
        weights of the library, such as "IMAGENET1K_V1"; or the path of a file in
        safetensors format or with a state dict of ``torch.save``. None: random weights,
        for tests. A network of your own keeps its weights with "DEFAULT". A list: one
        for each encoder.
    preprocessing : "auto", dict, image processor or list of these
        How images are resized and standardized. "auto": as the weights require; for a
        network of your own, its own settings if it has some, as those of timm and
        transformers do, else the mean and std of ImageNet and 224 pixels. A dict: some
        of "mean" and "std" (of pixels in [0, 1], one number or three), "size",
        "resize", "mode", "interpolation" and "fill" (see
        :class:`sklabel.pretrained.Frame`). An image processor of transformers, or its
        ``to_dict()``: its values.
    weights_precision : {"auto", "float32", "bfloat16", "float16"}
        Precision of the weights. 16 bits halve the memory and change the last digits.
        "auto": as stored, mostly float32. ``precision`` is for the computation.
    pooling : {"auto", "avg", "max", "token"}
        How features become one vector. "auto": as published, for open_clip the vectors
        that are compared with texts; for a network of your own, its vectors, the
        ``pooler_output`` of transformers, or the mean of maps. "avg", "max": mean or
        maximum over all positions; "max" only for timm and networks of your own.
        "token": the class token of a transformer.
    input_size : int, tuple or None
        Side, or (height, width), of the network's input; None: as the weights require.
        Smaller is faster; images of 32 pixels gain little from more than 96 to 128.
    batch_size : int
        Images per step; fewer if they are very large.
    cache_dir : str, Path or None
        Folder that caches vectors, so that a model embeds the same image only once,
        even across the folds of a search. None: no cache.
    image_size : int, tuple or None
        Size to which image files are resized first, as in other estimators; None: each
        file keeps its own size.

    Attributes
    ----------
    net_ : skorch.NeuralNet
        Holds the encoder; it was not trained.
    encoder_ : nn.Module
        The encoder with its preprocessing, for images of ``sample_shape_`` in [0, 1].
    sample_shape_ : tuple of int
        Shape of one sample: ``(C, H, W)``. For files of several sizes, the shape of the
        network's input.

    Raises
    ------
    ValueError
        If a name is unknown (the message suggests similar ones), weights do not exist,
        are damaged or do not fit, the network does not support the pooling or size, or
        X holds no images.
    ImportError
        If timm or open_clip is needed and not installed.
    OSError
        If weights cannot be downloaded.

    See Also
    --------
    SimCLRTransformer : Learns an encoder from your own images.
    sklabel.classification.FixMatchClassifier : Accepts it as ``backbone=``.

    Notes
    -----
    Tensors are resized with anti-aliasing and without rounding to whole gray levels:
    pixels differ from those of the libraries' own transforms by at most one level.
    Images of one channel are repeated to three.

    Memory: the result, ``4 * n_samples * n_features_out`` bytes; two batches, each of
    ``batch_size`` images or 256 MiB of floats before the resizing, whichever is smaller
    (one image at least); the network with its activations; for files also one decoded
    image per core. Memory maps and files are never loaded as a whole.

    The cache identifies images by content: files by their bytes, not by name or
    modification time, which copying and synchronizing change; reading costs little
    compared with decoding. Renamed, moved or repeated images are found again, and so
    are rows of X in another order or selection. Other weights, preprocessing,
    precision, device types or library versions use another subfolder. Vectors computed
    before an error or Ctrl-C are kept, and all but the last minute's if the process is
    killed. Several users may share the folder. Old files are never removed: delete the
    folder at any time. With ``weights=None``, set ``random_state`` or nothing is found
    again; after changes in the code of your own network, use another folder.

    ``save`` writes no code: with a network of your own it raises a TypeError; use
    ``joblib.dump``. It also does with an image processor; give its ``to_dict()``
    instead.

    References
    ----------
    .. [1] S. Kornblith, J. Shlens, Q. V. Le, "Do better ImageNet models transfer
       better?", CVPR 2019.
    .. [2] A. Radford et al., "Learning transferable visual models from natural language
       supervision", ICML 2021.

    Examples
    --------
    Random weights, since nothing is downloaded here:

    >>> from sklearn.datasets import load_digits
    >>> from sklabel.embedding import PretrainedTransformer
    >>> X = load_digits().images[:10]
    >>> embedder = PretrainedTransformer(
    ...     "resnet18", weights=None, input_size=32, random_state=0
    ... )
    >>> embedder.fit_transform(X).shape
    (10, 512)
    """

    backbone: str | nn.Module | list | tuple = "resnet50"
    _: KW_ONLY
    weights: str | Path | list | tuple | None = "DEFAULT"
    preprocessing: Literal["auto"] | dict | ImageProcessor | list | tuple = "auto"
    weights_precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    pooling: Literal["auto", "avg", "max", "token"] = "auto"
    input_size: Count | ArrayLike | None = None
    batch_size: Count = 64
    cache_dir: str | Path | None = None

    @fitting
    def fit(self, X, y=None):
        """Check X and load the weights; nothing is trained.

        Parameters
        ----------
        X : array-like
            Images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``, or paths of
            image files, whose headers are read.
        y : None
            Ignored.

        Returns
        -------
        self : PretrainedTransformer
        """
        sample_shape = self._check_shape(X)
        self._framed = sample_shape is None
        self.sample_shape_ = sample_shape
        with self._seeded():
            self.net_ = self._make_net(self._build(), self._pixel_range)
        self._built_with = self._made_with()
        self.sample_shape_ = self.encoder_.sample_shape
        self.n_features_in_ = int(np.prod(self.sample_shape_))
        return self

    def transform(self, X):
        """Embed images.

        Parameters
        ----------
        X : array-like
            Images of the fitted shape, or paths of image files.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_features_out), float32
            A row of NaN for a file that cannot be read, with ``on_error="skip"``.
        """
        samples = self._check_X(X)
        net = self._net_for(samples)
        Z = np.empty((len(samples), self._n_features_out), np.float32)
        with tqdm(
            total=len(samples), desc=type(self).__name__, disable=not self.verbose
        ) as progress:
            embed = functools.partial(self._embed, net, samples)
            if self.cache_dir is None:
                for batch in embed(np.arange(len(samples)), Z):
                    progress.update(len(batch))
            else:
                cache = VectorCache(self.cache_dir, self._cache_name(net, samples))
                cache.fill(samples, Z, embed, progress.update)
        bad = samples.bad
        if bad.all():
            raise ValueError(samples.source.none_text())
        if bad.any():
            Z[bad] = np.nan
            warn(samples.source.warn_text(), UserWarning)
        return Z

    def _n_unknown(self, X):
        """Return how many images `transform` would embed, the cached ones excluded."""
        samples = self._check_X(X)
        if self.cache_dir is None:
            return len(samples)
        name = self._cache_name(self._net_for(samples), samples)
        return VectorCache(self.cache_dir, name).n_unknown(samples)

    def _check_shape(self, X):
        """Check the X of ``fit``; return its sample shape, or None for many sizes."""
        if not self._holds_files(X):
            samples = check_samples(self, X, True)
            shape = samples.sample_shape
            if len(shape) == 1:
                raise ValueError(
                    f"{type(self).__name__} embeds images, but X holds vectors of "
                    f"length {shape[0]}: give image_shape=(height, width) or (height, "
                    "width, channels) if they are images."
                )
            if shape[0] not in (1, 3):
                raise ValueError(
                    f"X has images of {shape[0]} channels, but published encoders take "
                    "colors: give 1 (grey) or 3 (RGB), for example X[..., :3] of RGBA."
                )
            self._pixel_range = samples.pixel_range()
            return shape
        vars(self).pop("feature_names_in_", None)
        self._pixel_range = (0.0, 255.0)
        files = self._files(X, None, None, learn=True)
        sizes = list(files.sizes())
        files.learn_range()
        vars(self).pop("_value_range", None)
        if files.value_range is not None:
            self._value_range = files.value_range
        if files.several:
            warn_once("pages", files.pages_text())
        if self.image_size is not None:
            return (3, *size_pair(self.image_size, "image_size"))
        return (3, *sizes[0]) if len(sizes) == 1 else None

    def _holds_files(self, X):
        """Return whether X are images to decode, not an array or a list of arrays."""
        column = image_column(X)
        return column is not None and column.kind != "array"

    def _files(self, X, size, frame, learn=False):
        return StreamedFiles(
            item_column(X),
            size,
            self.on_error == "skip",
            frame,
            value_range=None if learn else getattr(self, "_value_range", None),
            learn=learn,
            max_pixels=self.max_pixels,
        )

    def _check_X(self, X):
        check_is_fitted(self)
        if not self._holds_files(X):
            return check_samples(self, X, False, self.sample_shape_)
        frame, size = None, self.sample_shape_[1:]
        if self.image_size is None:
            # one by one, also where all of fit had one size: others may follow
            frame = self.net_.module_.frame
            size = frame.size
        files = self._files(X, size, frame)
        return Samples(files, (3, *size), channels_last=True, bad=files.bad)

    def _net_for(self, samples):
        """Return the net for these samples; for files, it takes framed images."""
        module = self.net_.module_
        if not isinstance(samples.source, StreamedFiles):
            own = samples.pixel_range()
            usual = samples.is_bytes or {own, self._pixel_range} <= set(PIXEL_RANGES)
            if not usual:  # as in fit
                check_pixel_range(samples, self._pixel_range, type(self).__name__)
                own = self._pixel_range
            same = own == self._pixel_range
            return self.net_ if same else self._make_net(module, own)
        if samples.source.frame is not None and not self._framed:
            module = _Frozen(module.backbone.body[1], module.frame)
        return self._make_net(module, (0.0, 255.0))

    def _build(self, load=True):
        several = isinstance(self.backbone, (list, tuple))
        specs = list(self.backbone) if several else [self.backbone]
        if not specs:
            raise ValueError("backbone=[] holds no encoder: name at least one.")
        weights = self._of_each("weights", len(specs))
        preprocessing = self._of_each("preprocessing", len(specs))
        built = [
            self._build_one(*given, load)
            for given in zip(specs, weights, preprocessing, strict=True)
        ]
        encoder, frame = (
            side_by_side(*zip(*built, strict=True)) if several else built[0]
        )
        if not self._framed:
            encoder = Encoder(nn.Sequential(frame, encoder), self.sample_shape_)
        return lock_(_Frozen(encoder, frame)).eval()

    def _of_each(self, name, n_encoders):
        """Return the value of a parameter for each encoder."""
        value = getattr(self, name)
        if not isinstance(value, (list, tuple)):
            return [value] * n_encoders
        if len(value) != n_encoders:
            raise ValueError(
                f"{name} holds {len(value)} values, but backbone {n_encoders} "
                "encoders: give one for each, or one for all."
            )
        return list(value)

    def _build_one(self, spec, weights, preprocessing, load):
        """Return an encoder and its frame."""
        settings = {"input_size": self.input_size, "pooling": self.pooling}
        if isinstance(spec, nn.Module):
            encoder, frame = own_encoder(
                spec, weights, preprocessing, self.input_size, self.pooling
            )
        elif isinstance(spec, str):
            encoder, frame = pretrained_backbone(spec, weights, load=load, **settings)
            if preprocessing != "auto":
                frame, mean, std, turned = frame_of(preprocessing, self.input_size)
                body = Vectors(encoder.body, turned=True) if turned else encoder.body
                encoder = Encoder(body, (3, *frame.size), mean, std)
        else:
            raise ValueError(
                f"backbone={spec!r} is neither the name of an encoder nor an nn.Module."
            )
        if self.weights_precision != "auto":
            encoder = in_half(encoder, self.weights_precision)
        return encoder, frame

    def _make_net(self, module, pixel_range):
        return Net(
            module,
            pixel_range=pixel_range,
            precision=self.precision,
            batch_size=self.batch_size,
            device=resolve_device(self.device),
        ).initialize()

    def _rebuild_module(self, mean, std):
        return self._build(load=False)  # saved weights follow

    def _embed(self, net, samples, rows, Z):
        """Fill some rows of Z, and yield the numbers of each batch of them.

        The next batch is read while one is embedded.
        """
        values = 4 * int(np.prod(samples.sample_shape))
        step = int(np.clip(_BATCH_BYTES // values, 1, self.batch_size))
        batches = [rows[i : i + step] for i in range(0, len(rows), step)]
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(samples.__getitem__, batches[0])
            for batch, following in zip(batches, [*batches[1:], None], strict=True):
                x = ahead.result()
                if following is not None:
                    ahead = pool.submit(samples.__getitem__, following)
                Z[batch] = net.evaluation_step(x).cpu().numpy()
                finite = np.isfinite(Z[batch]).all(1)
                if not finite.all():
                    raise ValueError(
                        "The network gives NaN or infinity for row "
                        f"{batch[~finite][0]}: "
                        f'use precision="float32" (it is {self.precision!r}), or other '
                        f"weights than {self.weights!r}."
                    )
                yield batch

    def _cache_name(self, net, samples):
        """Return a name for everything that a vector depends on, except its image."""
        several = isinstance(self.backbone, (list, tuple))
        specs = list(self.backbone) if several else [self.backbone]
        # what a network of the user's is, beside its weights
        own = [digest(spec) for spec in specs if isinstance(spec, nn.Module)]
        sources = {s.partition("/")[0] for s in specs if isinstance(s, str)}
        packages = ["torch", "torchvision"]
        packages += ["open_clip_torch"] if "open_clip" in sources else []
        packages += ["timm"] if sources & {"timm", "open_clip"} else []
        return cache_name(
            net.module_,
            samples.sample_shape,
            net.pixel_range,
            getattr(self, "_value_range", None),
            self.pooling,
            torch.device(net.device).type,
            isinstance(net.autocast(), torch.autocast),
            [version(package) for package in packages],
            *own,
        )

    @property
    def _n_features_out(self):
        return self.net_.module_.n_features_out

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
