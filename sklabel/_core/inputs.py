"""What X may be: vectors, images, paths of image files."""

import os
from numbers import Integral

import numpy as np
import torch
from PIL import ImageOps
from sklearn.utils.validation import check_array, validate_data

from .files import open_image
from .image_files import UNREADABLE, ImageFiles, decoded, unreadable
from .samples import PIXEL_RANGES, Samples, _blocks, to_unit
from .warn import warn

_CHANNELS = (1, 3, 4)


def check_samples(estimator, X, reset, sample_shape=None):
    """Validate X, whatever it is, and return it as `Samples`.

    Parameters
    ----------
    estimator : Learner
        Its ``image_shape``, ``image_size`` and ``on_error`` are used; with ``reset``
        its ``n_features_in_`` is set.
    X : array-like
        Vectors ``(n, D)``; images ``(n, h, w)``, ``(n, h, w, c)``, ``(n, c, h, w)``;
        or paths of image files, 1-D or one DataFrame column.
    reset : bool
        True in ``fit``; otherwise X must have the fitted ``sample_shape``.
    sample_shape : tuple of int or None
        The fitted shape.

    Returns
    -------
    samples : Samples

    Raises
    ------
    ValueError
        Naming the row or file and what to do.
    """
    paths = _as_paths(X)
    if paths is not None:
        samples = _from_paths(estimator, paths, reset, sample_shape)
    else:
        X = _as_images(X)
        ndim = 0 if X is None or not hasattr(X, "shape") else len(X.shape)
        if ndim not in (3, 4):
            return _from_table(estimator, X, reset)
        samples = _from_images(X, sample_shape)
    if reset:
        estimator.n_features_in_ = int(np.prod(samples.sample_shape))
        vars(estimator).pop("feature_names_in_", None)
    elif samples.sample_shape != sample_shape:
        raise ValueError(
            f"X has samples of shape {samples.sample_shape}, but "
            f"{type(estimator).__name__} was fitted on samples of shape "
            f"{sample_shape}: resize the images to that size."
        )
    return samples


def check_pixel_range(samples, fitted, name):
    """Refuse images whose values are on another scale than those of ``fit``.

    Not more than a thousandth of the values may lie far outside, nor may all be small
    fractions of 255.

    Parameters
    ----------
    samples : Samples
    fitted : (float, float) or None
        What black and white were in ``fit``; None: vectors.
    name : str
        The estimator.
    """
    bytes_again = samples.is_bytes and fitted == (0.0, 255.0)
    if fitted is None or bytes_again or _same_scale(samples, *fitted):
        return
    low, high = samples.extremes()
    remedy = "do to them what was done to those of fit"
    if fitted == (0.0, 1.0) and low >= 0 and high <= 255:
        remedy = "divide them by 255"
    elif fitted == (0.0, 255.0) and low >= 0 and high <= 1:
        remedy = "multiply them by 255"
    raise ValueError(
        f"X holds images with values from {low:g} to {high:g}, but {name} was fitted "
        f"on values from {fitted[0]:g} to {fitted[1]:g}: {remedy}."
    )


def _same_scale(samples, black, white):
    if hasattr(samples.source, "paths"):
        return white == 255  # or fit has seen something else than bytes
    # what others than [0, 1] and [0, 255] say is less sure: that was learned from X
    known = (black, white) in PIXEL_RANGES
    margin = (white - black) * np.array([0.25, 0.5] if known else [1, 1])
    n_outside, faint, fractions = 0, known and white > 1, False
    for rows in _blocks(len(samples)):
        x = np.asarray(samples.source[rows], np.float32)
        outside = (x < black - margin[0]) | (x > white + margin[1])
        n_outside += np.count_nonzero(outside)
        faint = faint and np.abs(x).max() <= 4
        fractions = fractions or (faint and bool((x % 1).any()))
    n_values = len(samples) * np.prod(samples.sample_shape)
    return n_outside <= n_values / 1000 and not (faint and fractions)


def check_images(X, rows):
    """Return some images of X as a picture library shows them.

    Parameters
    ----------
    X : array-like
        Images or paths, as `check_samples` takes them; 2-D X is refused.
    rows : ndarray of int of shape (m,)

    Returns
    -------
    images : list of m ndarray of shape (h, w) or (h, w, 3)
        uint8, or floats in [0, 1].
    """
    paths = _as_paths(X)
    if paths is not None:
        return [decoded(paths[row]) for row in rows]
    X = _as_images(X)
    if np.ndim(X) not in (3, 4):
        raise ValueError(
            f"X has shape {np.shape(X)}: give images, (n, h, w), (n, h, w, c) or "
            "(n, c, h, w), or paths of image files."
        )
    samples = _from_images(X, None)
    low, high = samples.pixel_range()
    images = samples[rows]
    if images.dtype != torch.uint8:
        images = to_unit(images, (low, high))
    images = images.permute(0, 2, 3, 1).numpy()
    return [image[..., 0] if image.shape[2] == 1 else image for image in images]


def _from_table(estimator, X, reset):
    """2-D X: vectors, or flattened images where the estimator has an image_shape."""
    shape = getattr(estimator, "image_shape", None)
    if shape is None:
        # float32 first: with another first dtype lists of floats would be cast to it
        X = validate_data(estimator, X, reset=reset, dtype=np.float32)
        return Samples(X, X.shape[1:])
    X = validate_data(estimator, X, reset=reset, dtype="numeric")
    if np.prod(shape) != X.shape[1]:
        raise ValueError(
            f"image_shape={tuple(shape)} has {np.prod(shape)} values, but the rows of "
            f"X have {X.shape[1]}."
        )
    height, width = shape[:2]
    n_channels = shape[2] if len(shape) == 3 else 1
    X = _pixels(X.reshape(len(X), height, width, n_channels))
    return Samples(X, (n_channels, height, width), channels_last=True)


def _from_images(X, expected):
    shape = tuple(X.shape)
    if shape[0] == 0:
        raise ValueError(f"Found array with 0 sample(s) (shape={shape}): X is empty.")
    if 0 in shape:
        raise ValueError(f"X has shape {shape}: images need at least one pixel.")
    readings = {}
    if len(shape) == 3:
        readings["(n, h, w)"] = (1, *shape[1:])
    else:
        if shape[3] in _CHANNELS:
            readings["(n, h, w, c)"] = (shape[3], shape[1], shape[2])
        if shape[1] in _CHANNELS:
            readings["(n, c, h, w)"] = shape[1:]
    if not readings:
        raise ValueError(
            f"X has shape {shape}, but neither its second nor its last axis is "
            f"{_CHANNELS} long, so no axis can hold the channels."
        )
    if len(readings) == 2:
        fitted = [name for name, reading in readings.items() if reading == expected]
        if len(fitted) != 1 and len(set(readings.values())) > 1:
            raise ValueError(
                f"X of shape {shape} is ambiguous: it reads as (n, h, w, c) with "
                f"{shape[3]} channels or as (n, c, h, w) with {shape[1]}. Flatten it, "
                "X.reshape(len(X), -1), and give image_shape=(h, w, c)."
            )
        readings = {name: readings[name] for name in fitted or ["(n, h, w, c)"]}
    ((name, sample_shape),) = readings.items()
    X = _pixels(X)
    return Samples(X, sample_shape, channels_last=name != "(n, c, h, w)")


def _from_paths(estimator, paths, reset, expected):
    on_error = getattr(estimator, "on_error", "raise")
    if not reset:
        size = expected[1:]
    else:
        size = getattr(estimator, "image_size", None)
        if size is None:
            size = _common_size(paths, on_error)
        size = size_pair(size, "image_size")
    files = ImageFiles(paths, size)
    bad = None
    if on_error == "skip":
        bad = files.find_unreadable()
        if bad.any():
            warn(
                f"{bad.sum()} of {len(bad)} image files cannot be read and are left "
                f"out; the first is {files.paths[bad][0]!r}.",
                UserWarning,
            )
        if bad.all():
            raise ValueError(f"None of the {len(bad)} image files can be read.")
    elif reset and files.fits_in_memory:
        files[np.arange(len(files))]  # a broken file is met now, not after an hour
    return Samples(files, (3, *files.size), channels_last=True, bad=bad)


def size_pair(size, name):
    """Return (height, width) of a parameter that may also be one side."""
    pair = (size, size) if isinstance(size, Integral) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, Integral) and n > 0 for n in pair):
        raise ValueError(
            f"{name}={size!r} is no size: give a side in pixels, such as 224, or "
            "(height, width)."
        )
    return tuple(map(int, pair))


def _common_size(paths, on_error):
    sizes = {}
    for path in paths:
        try:
            with open_image(path) as image:
                sizes.setdefault(ImageOps.exif_transpose(image).size[::-1], path)
        except UNREADABLE as error:
            if on_error != "skip":
                raise unreadable(path, error) from error
        if len(sizes) > 1:
            (size1, path1), (size2, path2) = list(sizes.items())[:2]
            raise ValueError(
                f"The images differ in size: {path1!r} is {size1}, {path2!r} is "
                f"{size2} (height, width). Give image_size, for example image_size=64."
            )
    if not sizes:
        raise ValueError(f"None of the {len(paths)} image files can be read.")
    return next(iter(sizes))


def _as_paths(X):
    """Return a list of str where X is one column of paths, else None."""
    shape = getattr(X, "shape", None)
    if shape is not None and not (
        len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    ):
        return None
    if isinstance(X, (str, os.PathLike)):
        raise ValueError(
            f"X={str(X)!r} is a single path: give a list of image files, for example "
            "sklabel.datasets.load_image_folder(folder).paths."
        )
    if hasattr(X, "iloc"):
        X = X.to_numpy()
    if isinstance(X, np.ndarray):
        X = X.ravel() if X.dtype.kind in "OUST" else ()
    elif not isinstance(X, (list, tuple)):
        return None
    if not len(X) or not isinstance(X[0], (str, os.PathLike)):
        return None
    for row, path in enumerate(X):
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(
                f"X[0] is a path, but X[{row}] is {path!r}: every row must be a path."
            )
    return [os.fspath(path) for path in X]


def _as_images(X):
    """Turn tensors and lists of images into arrays, leave anything else alone."""
    if isinstance(X, torch.Tensor):
        return X.detach().cpu().numpy()
    if isinstance(X, (list, tuple)) and len(X) and np.ndim(X[0]) in (2, 3):
        shapes = {np.shape(image): row for row, image in enumerate(X)}
        if len(shapes) > 1:
            (shape1, row1), (shape2, row2) = list(shapes.items())[:2]
            raise ValueError(
                f"The images differ in size: X[{row1}] is {shape1}, X[{row2}] is "
                f"{shape2}. Resize them, or give paths of image files and image_size."
            )
        return np.stack([np.asarray(image) for image in X])
    return X


def _pixels(X):
    """Return images as uint8 or float32, or as they are where they lie on disk."""
    if not isinstance(X, np.ndarray):
        X = np.asarray(X)
    if X.dtype == np.uint8:
        return X
    if X.dtype.kind not in "fiub":
        raise ValueError(
            f"X holds images of dtype {X.dtype}: use uint8 or a float type."
        )
    for rows in _blocks(len(X)):
        finite = np.isfinite(X[rows]).reshape(len(X[rows]), -1).all(1)
        if not finite.all():
            row = rows.start + int(np.flatnonzero(~finite)[0])
            raise ValueError(
                f"Input X contains NaN or infinity in image {row}: remove or repair it."
            )
    if isinstance(X, np.memmap):
        return X
    return check_array(X, dtype=np.float32, allow_nd=True, ensure_all_finite=False)
