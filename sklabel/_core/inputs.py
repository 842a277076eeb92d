"""What X may be: vectors, images, paths of image files."""

import functools
import math
from numbers import Integral

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_array, validate_data

from .columns import WHAT_X_MAY_BE, as_array, item_column
from .decoding import GRAY, UNREADABLE, Pictures
from .image_files import _CACHE_BYTES, ImageFiles, unreadable
from .samples import PIXEL_RANGES, Samples, _blocks, to_unit
from .warn import warn, warn_once
from .wording import n_of

_CHANNELS = (1, 3, 4)


def check_samples(estimator, X, reset, sample_shape=None):
    """Validate X, whatever it is, and return it as `Samples`.

    Parameters
    ----------
    estimator : Learner
        Its ``image_shape``, ``image_size``, ``on_error`` and ``max_pixels`` are used;
        with ``reset`` its ``n_features_in_`` is set, and ``_value_range`` where images
        have values without a range of their own.
    X : array-like
        See ``WHAT_X_MAY_BE``.
    reset : bool
        True in ``fit``; otherwise X must have the fitted ``sample_shape``.
    sample_shape : tuple of int
        The fitted shape.

    Returns
    -------
    samples : Samples

    Raises
    ------
    ValueError
        Naming the row or file and what to do.
    """
    X = as_array(X)
    column = item_column(X)
    files = column is not None and column.kind in ("path", "bytes", "picture")
    if reset and not files:
        vars(estimator).pop("_value_range", None)
    if files:
        samples = _from_files(estimator, column, reset, sample_shape)
    else:
        bad = None
        if column is not None:
            X, bad = _from_arrays(column, getattr(estimator, "on_error", "raise"))
        ndim = 0 if X is None or not hasattr(X, "shape") else len(X.shape)
        if not reset:
            _refuse_one(X, sample_shape, type(estimator).__name__)
        if ndim not in (3, 4):
            return _from_table(estimator, X, reset)
        given = getattr(estimator, "image_shape", None)
        samples = _from_images(X, sample_shape, given)
        if bad is not None:
            samples = samples.without(bad)
        if reset:
            _warn_of_dark_bytes(samples)
    if reset:
        estimator.n_features_in_ = int(np.prod(samples.sample_shape))
        vars(estimator).pop("feature_names_in_", None)
    elif samples.sample_shape != sample_shape:
        _refuse_shape(samples, sample_shape, type(estimator).__name__)
    return samples


def unpacked(X):
    """Return X as an array if it is one in another form, else unchanged."""
    X = as_array(X)
    column = item_column(X)
    if column is not None and column.kind in ("array", "vector"):
        return _from_arrays(column, "raise")[0]
    return X


def _refuse_one(X, fitted, name):
    """Raise an error where X is one image of the fitted shape, and not many."""
    shape = tuple(getattr(X, "shape", ()))
    if len(fitted) != 3 or len(shape) not in (2, 3):
        return
    n_channels, height, width = fitted
    one = [(n_channels, height, width), (height, width, n_channels)]
    if n_channels == 1 and (len(shape) == 2 and shape[1] != math.prod(fitted)):
        one.append((height, width))
    many = len(shape) == 3 and n_channels == 1 and shape[1:] == (height, width)
    if shape in one and not many:
        raise ValueError(
            f"X of shape {shape} is one image, but {name} takes many: give X[None] for "
            f"one. {WHAT_X_MAY_BE}"
        )


def _refuse_shape(samples, fitted, name):
    """Raise an error for samples of another shape than the fitted one."""
    found = samples.sample_shape
    channels = n_of(fitted[0], "channel")
    remedy = "resize the images to that size"
    if len(fitted) != 3:
        remedy = "fit it on such images, or give it vectors"
    elif found[0] != fitted[0] and found[1:] == fitted[1:]:
        if getattr(samples.source, "is_encoded", False):
            remedy = (
                "image files are read as RGB, so fit on files too, or give the pixels "
                f"as an array of {channels}, "
                'for example of pictures opened by Pillow, image.convert("L")'
            )
        else:
            remedy = f"give images of {channels}, not of {found[0]}"
            if (found[0], fitted[0]) == (1, 3):
                remedy += ", for example np.repeat(X[..., None], 3, axis=3)"
    raise ValueError(
        f"X has samples of shape {found}, but {name} was fitted on samples of shape "
        f"{fitted}: {remedy}."
    )


def _warn_of_dark_bytes(samples):
    """Warn of uint8 images that use less than half of their range."""
    if not samples.is_bytes:
        return
    low, high = 255, 0
    for rows in _blocks(len(samples)):
        block = samples.source[rows]
        low, high = min(low, int(block.min())), max(high, int(block.max()))
        if high > 127:  # nearly always in the first block
            return
    if high > low:
        warn_once(
            "dark",
            f"X holds uint8 images with values from {low} to {high}, which are read "
            f"on the scale from 0 to 255, so all images are dark. If {high} is white, "
            f"rescale them: (X * (255 / {high})).astype(np.uint8).",
        )


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
    remedy = "scale them like those given to fit"
    if fitted == (0.0, 1.0) and low >= 0 and high <= 255:
        remedy = "divide them by 255"
    elif fitted == (0.0, 255.0) and low >= 0 and high <= 1:
        remedy = "multiply them by 255"
    raise ValueError(
        f"X holds images with values from {low:g} to {high:g}, but {name} was fitted "
        f"on values from {fitted[0]:g} to {fitted[1]:g}: {remedy}."
    )


def _same_scale(samples, black, white):
    if getattr(samples.source, "is_encoded", False):
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


def check_images(X, rows, max_pixels=None):
    """Return some images of X as a picture library shows them.

    Parameters
    ----------
    X : array-like
        Images or paths, as `check_samples` takes them; 2-D X is refused.
    rows : ndarray of int of shape (m,)
    max_pixels : int or None
        Largest number of pixels of an image file.

    Returns
    -------
    images : list of m ndarray of shape (h, w) or (h, w, 3)
        uint8, or floats in [0, 1].
    """
    return images_by_row(X, max_pixels)(rows)


def images_by_row(X, max_pixels=None):
    """Return the function of rows that `check_images` is; X is checked once."""
    X = as_array(X)
    column = item_column(X)
    if column is not None and column.kind in ("path", "bytes", "picture"):
        return functools.partial(_decoded, column, Pictures(column, max_pixels))
    if column is not None:
        X, _ = _from_arrays(column, "raise")
    if np.ndim(X) not in (3, 4):
        raise ValueError(
            f"X has shape {np.shape(X)}: give images, (n, h, w), (n, h, w, c) or "
            f"(n, c, h, w), or paths of image files. {WHAT_X_MAY_BE}"
        )
    samples = _from_images(X, None)
    return functools.partial(_of_samples, samples, samples.pixel_range())


def _decoded(column, pictures, rows):
    images, errors = [], {}
    for row in rows:
        try:
            images.append(pictures[row])
        except UNREADABLE as error:
            errors[column.name(row)] = error
    if errors:
        raise unreadable(errors)
    return images


def _of_samples(samples, pixel_range, rows):
    images = samples[rows]
    if images.dtype != torch.uint8:
        images = to_unit(images, pixel_range)
    images = images.permute(0, 2, 3, 1).numpy()
    return [image[..., 0] if image.shape[2] == 1 else image for image in images]


def _from_table(estimator, X, reset):
    """2-D X: vectors, or flattened images where the estimator has an image_shape."""
    shape = getattr(estimator, "image_shape", None)
    if shape is None:
        # float32 first: with another first dtype lists of floats would be cast to it
        X = check_vectors(estimator, X, reset, dtype=np.float32)
        return Samples(X, X.shape[1:])
    X = check_vectors(estimator, X, reset)
    if np.prod(shape) != X.shape[1]:
        raise ValueError(
            f"image_shape={tuple(shape)} has {np.prod(shape)} values, but the rows of "
            f"X have {X.shape[1]}."
        )
    height, width = shape[:2]
    n_channels = shape[2] if len(shape) == 3 else 1
    X = _pixels(X.reshape(len(X), height, width, n_channels))
    return Samples(X, (n_channels, height, width), channels_last=True)


def check_vectors(estimator, X, reset, **kwargs):
    """Return X as scikit-learn's ``validate_data`` does; its errors say what X may be.

    Parameters
    ----------
    estimator : estimator
    X : array-like
    reset : bool
        Whether X is that of ``fit``.
    **kwargs : dict
        Further arguments of ``validate_data``.
    """
    try:
        return validate_data(estimator, X, reset=reset, **kwargs)
    except (TypeError, ValueError) as error:
        # what numpy says where a cell is no number
        odd = "could not convert", "setting an array element", "must be a string or a"
        if not any(text in str(error) for text in odd):
            raise
        reason = " ".join(str(error).split())[:200]
        remedy = ""
        if "setting an array element" in reason:
            remedy = "Make one array of its rows: np.stack(list(X)). "
        raise type(error)(
            f"X is a {type(X).__name__} that holds no numbers ({reason}). {remedy}"
            f"{WHAT_X_MAY_BE}"
        ) from error


def _from_images(X, expected, image_shape=None):
    shape = tuple(X.shape)
    if shape[0] == 0:
        raise ValueError(f"Found array with 0 sample(s) (shape={shape}): X is empty.")
    if 0 in shape:
        raise ValueError(f"X has shape {shape}: images need at least one pixel.")
    told = expected
    if told is None and image_shape is not None:
        height, width, *n_channels = image_shape
        told = (*(n_channels or [1]), height, width)
    readings = {}
    if len(shape) == 3:
        readings["(n, h, w)"] = (1, *shape[1:])
    else:
        last, first = (shape[3], shape[1], shape[2]), shape[1:]
        if shape[3] in _CHANNELS or last == told:
            readings["(n, h, w, c)"] = last
        if shape[1] in _CHANNELS or first == told:
            readings["(n, c, h, w)"] = first
        if told in readings.values():
            readings = {name: r for name, r in readings.items() if r == told}
    if not readings:
        raise ValueError(
            f"X has shape {shape}, but neither its second nor its last axis is "
            f"{_CHANNELS} long, so no axis can hold the channels. Say which one does: "
            f"image_shape={(shape[1], shape[2], shape[3])} if it is the last one, "
            f"image_shape={(shape[2], shape[3], shape[1])} if it is the second."
        )
    if len(readings) == 2:
        fitted = [name for name, reading in readings.items() if reading == expected]
        if len(fitted) != 1 and len(set(readings.values())) > 1:
            raise ValueError(
                f"X of shape {shape} is ambiguous: it reads as (n, h, w, c) with "
                f"{shape[3]} channels or as (n, c, h, w) with {shape[1]}: give "
                f"image_shape={(shape[1], shape[2], shape[3])} or "
                f"{(shape[2], shape[3], shape[1])}, (height, width, channels)."
            )
        readings = {name: readings[name] for name in fitted or ["(n, h, w, c)"]}
    ((name, sample_shape),) = readings.items()
    X = _pixels(X)
    return Samples(X, sample_shape, channels_last=name != "(n, c, h, w)")


def _from_files(estimator, column, reset, expected):
    skip = getattr(estimator, "on_error", "raise") == "skip"
    settings = {"max_pixels": getattr(estimator, "max_pixels", None)}
    if reset:
        known = [vars(part) for part in _fitted_parts(estimator)]
        near = next((p["_value_range"] for p in known if "_value_range" in p), None)
        # pictures in memory know their mode; files may be gray in one row only
        gray = column.kind == "picture" and not column.lazy and _all_gray(column)
        files = ImageFiles(column, None, skip, near=near, gray=gray, **settings)
        size = getattr(estimator, "image_size", None)
        shapes = [p["sample_shape_"] for p in known if len(p["sample_shape_"]) == 3]
        if size is None and shapes:
            size = shapes[0][1:]
        files.size = (
            _common_size(files) if size is None else size_pair(size, "image_size")
        )
    else:
        if len(expected) != 3:
            raise ValueError(
                f"X holds images, but {type(estimator).__name__} was fitted on vectors "
                f"of length {expected[0]}: give it vectors."
            )
        files = ImageFiles(
            column,
            expected[1:],
            skip,
            value_range=getattr(estimator, "_value_range", None),
            learn=False,
            gray=column.kind == "picture" and expected[0] == 1,
            **settings,
        )
    bad = None
    if reset or skip:
        files.prepare()
    if skip:
        bad = files.bad
        if bad.any():
            warn(files.warn_text(), UserWarning)
        if bad.all():
            raise ValueError(files.none_text())
    if reset:
        vars(estimator).pop("_value_range", None)
        if files.value_range is not None:
            estimator._value_range = files.value_range
        if files.several:
            warn_once("pages", files.pages_text())
    shape = (files.n_channels, *files.size)
    return Samples(files, shape, channels_last=True, bad=bad)


def _all_gray(column):
    pictures = (column[row] for row in range(len(column)))
    return all(p is None or p.mode in GRAY for p in pictures)


def _fitted_parts(estimator):
    """Return the fitted estimators of ours that an estimator goes on from."""
    parts = [getattr(estimator, name, None) for name in ("backbone", "embedder")]
    parts = [p.estimator if isinstance(p, FrozenEstimator) else p for p in parts]
    return [
        part
        for part in parts
        if isinstance(part, BaseEstimator) and "sample_shape_" in vars(part)
    ]


def size_pair(size, name):
    """Return (height, width) of a parameter that may also be one side."""
    pair = (size, size) if isinstance(size, Integral) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, Integral) and n > 0 for n in pair):
        raise ValueError(
            f"{name}={size!r} is not a size: give a side in pixels, such as 224, or "
            "(height, width)."
        )
    return tuple(map(int, pair))


def _common_size(files):
    sizes = files.sizes()
    if len(sizes) > 1:
        (size1, row1), (size2, row2) = list(sizes.items())[:2]
        raise ValueError(
            f"The images differ in size: {files.name(row1)!r} is {size1}, "
            f"{files.name(row2)!r} is {size2} (height, width). Give image_size, for "
            "example image_size=64."
        )
    return next(iter(sizes))


class ArrayRows:
    """Images or vectors that are arrays of their own, fetched row by row.

    Parameters
    ----------
    column : Column
        Of arrays or tensors, all of one shape.
    """

    def __init__(self, column):
        self.column = column
        first = self._fetch(0)
        self.shape = (len(column), *first.shape)
        self.dtype = first.dtype

    def __len__(self):
        return len(self.column)

    def __getitem__(self, rows):
        if isinstance(rows, slice):
            rows = range(*rows.indices(len(self)))
        return np.stack([self._fetch(row) for row in rows])

    def _fetch(self, row):
        item = self.column[row]
        if item is None:
            raise ValueError(f"X[{row}] is missing: remove it, or give an image.")
        found = np.asarray(as_array(item))
        if row and found.shape != self.shape[1:]:
            _refuse_sizes(0, self.shape[1:], row, found.shape)
        return found


def _from_arrays(column, on_error):
    """Return a column of arrays as one array, and which rows are missing."""
    if column.lazy:
        rows = ArrayRows(column)
        n_bytes = rows.dtype.itemsize * math.prod(rows.shape)
        return (rows[:] if n_bytes <= _CACHE_BYTES else rows), None
    images = [column[row] for row in range(len(column))]
    images = [None if image is None else as_array(image) for image in images]
    bad = np.array([image is None for image in images])
    if bad.any():
        lost = ", ".join(f"X[{row}]" for row in np.flatnonzero(bad)[:10])
        if on_error != "skip":
            raise ValueError(
                f"{bad.sum()} of {len(bad)} images are missing: {lost}. Remove them, "
                'or pass on_error="skip" to leave them out.'
            )
        warn(f"{bad.sum()} of {len(bad)} images are missing: {lost}.", UserWarning)
        filler = np.zeros_like(images[int(np.flatnonzero(~bad)[0])])
        images = [filler if image is None else image for image in images]
    shapes = {np.shape(image): row for row, image in reversed([*enumerate(images)])}
    if len(shapes) > 1:
        (shape1, row1), (shape2, row2) = sorted(shapes.items(), key=lambda i: i[1])[:2]
        _refuse_sizes(row1, shape1, row2, shape2)
    return np.stack([np.asarray(image) for image in images]), bad if bad.any() else None


def _refuse_sizes(row1, shape1, row2, shape2):
    raise ValueError(
        f"The images differ in size: X[{row1}] is {shape1}, X[{row2}] is {shape2}. "
        "Resize them, or give paths of image files and image_size."
    )


class DiskRows:
    """Rows of an array on disk that does not fit into memory, such as zarr or h5py."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, tuple(array.shape), array.dtype

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        if isinstance(rows, slice):
            return np.asarray(self.array[rows])
        # h5py wants each row once, in rising order
        found, back = np.unique(np.asarray(rows), return_inverse=True)
        return np.asarray(self.array[found])[back]


def _loaded(X):
    """Return an array of another library in memory, if it fits."""
    big = X.dtype.itemsize * math.prod(X.shape) > _CACHE_BYTES
    return DiskRows(X) if big and hasattr(X, "__getitem__") else np.asarray(X)


def _pixels(X):
    """Return images as uint8 or float32, or as they are where they lie on disk."""
    on_disk = isinstance(X, (np.memmap, ArrayRows))
    if not isinstance(X, np.ndarray) and not on_disk:
        X = as_array(_loaded(X))
        on_disk = isinstance(X, DiskRows)
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
    if on_disk:
        return X
    return check_array(X, dtype=np.float32, allow_nd=True, ensure_all_finite=False)
