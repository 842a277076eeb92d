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
from .._core.columns import as_column, image_column
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
    """Embed images with a published encoder that others have trained, as it is.

    Nothing is learned from X but what stands for black and white in float images that
    do not lie within [0, 1]. The images are resized, cropped and standardized in the
    way that belongs to the weights, then encoded in batches. Read more in the
    :ref:`User Guide <pretrained>`.

    Parameters
    ----------
    backbone : str, nn.Module or list of these
        "resnet50" or another classifier of torchvision; "timm/NAME" (extra
        ``backbones``), such as "timm/vit_small_patch14_dinov2"; or "open_clip/NAME"
        (extra ``clip``), such as "open_clip/ViT-B-32" or, with weights of its own,
        "open_clip/hf-hub:OWNER/NAME". A network of your own, which takes images
        ``(B, 3, H, W)`` and gives vectors, maps or tokens; models of transformers, too.
        It is copied. Of several encoders each vector is scaled to length 1, and they
        are put one after the other; they share the frame of the largest.
    weights : str, Path, None or list of these
        "DEFAULT": those that the library recommends, for open_clip the first that it
        lists; downloaded once and kept where the library keeps them. The name of others
        that it offers, such as "IMAGENET1K_V1". The path of a file, safetensors or a
        state dict of ``torch.save``. None: random ones, for tests. A network of your
        own keeps its weights with "DEFAULT". A list: for each encoder.
    preprocessing : "auto", dict, image processor or list of these
        How images are brought to size and standardized. "auto": as the weights want it;
        for a network of your own what it says of itself, as those of timm and
        transformers do, else the colors of ImageNet and 224 pixels. A dict: some of
        "mean" and "std" (of pixels in [0, 1], one number or three), "size", "resize",
        "mode", "interpolation" and "fill" (see :class:`sklabel.pretrained.Frame`). An
        image processor of transformers, or its ``to_dict()``: its values.
    weights_precision : {"auto", "float32", "bfloat16", "float16"}
        Of the weights: half the memory in 16 bits, and other last digits. "auto": as
        they come, mostly float32. ``precision`` is that of products.
    pooling : {"auto", "avg", "max", "token"}
        What a vector is made of. "auto": as published, for open_clip the vectors that
        it compares with texts. "avg", "max": mean or largest value over all places.
        "token": the class token of a transformer. "max" is for timm and networks of
        your own only, of which "auto" takes vectors as they are, ``pooler_output`` of
        transformers, and the mean of maps.
    input_size : int, tuple or None
        Side, or (height, width), of what the network sees; None: that of the weights. A
        smaller one is faster; images of 32 pixels gain little from more than 96 to 128.
    batch_size : int
        Images per step; less where they are very large.
    cache_dir : str, Path or None
        Folder in which vectors are kept: the same image is embedded by the same model
        only once, in a search with folds too. None: nothing is kept.
    image_size : int, tuple or None
        Size to which image files are resized before anything else, as other estimators
        do; None: each is taken as it is, of whatever size.

    Attributes
    ----------
    net_ : skorch.NeuralNet
        Holds the encoder; it was not trained.
    encoder_ : nn.Module
        The encoder with its preprocessing, for images of ``sample_shape_`` in [0, 1].
    sample_shape_ : tuple of int
        Shape of one sample: ``(C, H, W)``. After files of several sizes, that of the
        images that the network sees.

    Raises
    ------
    ValueError
        For an unknown name, naming close ones; weights that do not exist, are damaged
        or do not fit; a pooling or size that the network cannot have; X without images.
    ImportError
        If timm or open_clip is asked for and not installed.
    OSError
        If weights cannot be downloaded.

    See Also
    --------
    SimCLRTransformer : Learns an encoder from your own images.
    sklabel.classification.FixMatchClassifier : Takes it as ``backbone=``, and trains it
        further.

    Notes
    -----
    Resizing is done on tensors, anti-aliased, without rounding to whole gray levels in
    between: pixels differ from those of the libraries' own transforms by one level at
    most. Images of one channel are repeated to three.

    Memory: the result, ``4 * n_samples * n_features_out`` bytes; two batches, each of
    ``batch_size`` images or 256 MiB of floats before the resizing, whichever is less
    (one image at least); the network with its activations; for files also one decoded
    image for each core. Memory maps and files are never read as a whole.

    The cache looks at content alone: for files, at their bytes, not at name or time of
    change, which copying and synchronizing alter or fake; reading costs little beside
    decoding. A renamed, moved or repeated image is known again, and so are rows of X in
    another order or selection. Other weights, preprocessing, precision, device type or
    versions of the libraries make another folder. What was embedded before an error or
    Ctrl-C is kept, and all but the last minute where the process is killed. Several
    users may share the folder. Nothing removes old files: delete it at any time. With
    ``weights=None`` it takes a ``random_state`` to find anything again, and after
    changes in the code of a network of your own another folder.

    ``save`` writes no code: with a network of your own it raises a TypeError, and
    ``joblib.dump`` is the way; so does an image processor, of which ``to_dict()`` can
    be given.

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
            image files, of which the heads are read.
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
        """Return how many images `transform` would embed, beside those kept."""
        samples = self._check_X(X)
        if self.cache_dir is None:
            return len(samples)
        name = self._cache_name(self._net_for(samples), samples)
        return VectorCache(self.cache_dir, name).n_unknown(samples)

    def _check_shape(self, X):
        """Check the X of ``fit``; return its sample shape, or None: of many sizes."""
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
                    f"X has images of {shape[0]} channels, but published encoders see "
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
            as_column(X),
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
        """Return the net for these samples; for files it takes frames."""
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
            raise ValueError("backbone=[] holds no encoder: name one at least.")
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
        """Return a name for all that a vector depends on, but its image."""
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
