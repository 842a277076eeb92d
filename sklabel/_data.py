"""What X may be (vectors, images, paths), and how batches of rows are drawn from it."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_array, validate_data

from ._warn import warn

# black and white of floats within [0, 1] and of bytes; any others are learned from X
PIXEL_RANGES = (0.0, 1.0), (0.0, 255.0)
_CHANNELS = (1, 3, 4)
_CACHE_BYTES = 2**30  # decoded images are kept up to this size
# what Pillow raises for a file that is no image, a cut one, or a giant one
_UNREADABLE = OSError, ValueError, SyntaxError, Image.DecompressionBombError


def evenly(n, n_rows):
    """Return at most ``n_rows`` of the numbers below n, evenly spaced."""
    return np.linspace(0, n - 1, min(n_rows, n)).astype(int)


class Samples:
    """Rows of one shape, fetched by index list; a batch is a tensor, an image is CHW.

    Parameters
    ----------
    source : ndarray, memmap or ImageFiles
        Indexed by an integer array along its first axis.
    sample_shape : tuple of int
        ``(D,)`` or ``(C, H, W)``.
    channels_last : bool
        Whether the source holds ``(n, H, W, C)`` or ``(n, H, W)``.
    bad : ndarray of bool or None
        Rows that are never drawn for training: they could not be read, or are left out.
    """

    def __init__(self, source, sample_shape, channels_last=False, bad=None):
        self.source = source
        self.sample_shape = tuple(sample_shape)
        self.channels_last = channels_last
        self.bad = np.zeros(len(source), bool) if bad is None else bad
        self.targets = None

    def __len__(self):
        return len(self.source)

    @property
    def row_shape(self):
        """Shape of one row of images in the layout they came in."""
        n_channels, height, width = self.sample_shape
        shape = getattr(self.source, "shape", (0, height, width, n_channels))[1:]
        return tuple(shape)

    @property
    def good(self):
        """Numbers of the rows that can be read."""
        return np.flatnonzero(~self.bad)

    @property
    def n_trained(self):
        """Number of rows that an epoch visits."""
        return int((~self.bad).sum())

    def spread(self, n_rows):
        """Return at most ``n_rows`` readable rows, evenly spaced."""
        good = self.good
        return good[evenly(len(good), n_rows)]

    def readable(self, X):
        """Return X, of which these are the samples, without rows that cannot be read."""
        return _safe_indexing(X, self.good) if self.bad.any() else X

    def all_neighbors(self, found):
        """Return neighbors in numbers of all rows; unreadable rows are their own.

        Parameters
        ----------
        found : ndarray of int of shape (n_readable, k)
            Neighbors of each readable row, numbered among the readable ones.

        Returns
        -------
        neighbors : ndarray of int of shape (n, k)
        """
        neighbors = np.tile(np.arange(len(self))[:, None], found.shape[1])
        neighbors[self.good] = self.good[found]
        return neighbors

    def among_readable(self, neighbors):
        """Return neighbors of the readable rows, numbered among these.

        Parameters
        ----------
        neighbors : ndarray of int of shape (n, k)
            In numbers of all rows, as of `all_neighbors`.

        Returns
        -------
        found : ndarray of int of shape (n_readable, k)
        """
        if not self.bad.any():
            return neighbors
        return np.searchsorted(self.good, neighbors[self.good])

    def __getitem__(self, rows):
        rows = np.asarray(rows)
        x = torch.from_numpy(_native(self.source[rows]))
        if self.channels_last:
            x = x.reshape(len(rows), *self.sample_shape[1:], -1).permute(0, 3, 1, 2)
        y = rows if self.targets is None else self.targets[rows]
        return x.reshape(len(rows), *self.sample_shape), torch.from_numpy(y)

    def without(self, left_out):
        """Return the same rows, of which some, a mask, are not trained on, either."""
        bad = self.bad | left_out
        return Samples(self.source, self.sample_shape, self.channels_last, bad)

    def with_targets(self, targets):
        """Return the same rows with an integer target each."""
        other = Samples(self.source, self.sample_shape, self.channels_last, self.bad)
        other.targets = np.asarray(targets)
        return other

    def epoch(self, batch_size):
        """Yield the row indices of each batch of one shuffled epoch."""
        yield from _split(_shuffled(self.good), batch_size)

    def n_batches(self, batch_size):
        """Return the number of batches of one epoch."""
        return _n_batches(len(_my_share(self.good)), batch_size)

    @property
    def is_bytes(self):
        """Whether the values are uint8, as those of all files are."""
        return getattr(self.source, "dtype", None) == np.uint8

    def pixel_range(self):
        """Return (low, high), the values that stand for black and white; None: vectors.

        uint8 is 0 to 255 and float images within [0, 1] are as they are; any other float
        images are mapped from their own smallest and largest value.
        """
        if len(self.sample_shape) == 1:
            return None
        if self.is_bytes:
            return 0.0, 255.0
        low, high = self.extremes()
        if low >= 0 and high <= 1:
            return 0.0, 1.0
        return low, high if high > low else low + 1.0

    def extremes(self):
        """Return the smallest and the largest value; of files 0 and 255."""
        if hasattr(self.source, "paths"):
            return 0.0, 255.0
        low, high = np.inf, -np.inf
        for rows in _blocks(len(self)):
            low = min(low, float(np.min(self.source[rows])))
            high = max(high, float(np.max(self.source[rows])))
        return low, high

    def statistics(self, n_rows=2048):
        """Return mean and standard deviation per channel or feature, pixels in [0, 1].

        Parameters
        ----------
        n_rows : int, default=2048
            They are taken over at most so many rows, evenly spaced.
        """
        x = to_unit(self[self.spread(n_rows)][0], self.pixel_range()).double()
        axes = (0, 2, 3) if x.ndim == 4 else (0,)
        mean = x.mean(axes, keepdim=True)[0]
        std = x.std(axes, correction=0, keepdim=True)[0]
        # a constant feature carries nothing: leave its scale alone
        std = torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std))
        return mean.float(), std.float()


class Pairs(Samples):
    """Samples where every row drawn for training comes with one of its neighbors.

    Parameters
    ----------
    samples : Samples
    neighbors : ndarray of int of shape (n_samples, n_neighbors)
        A batch is ``(x, x_neighbor), rows``; the neighbor is drawn uniformly.
    """

    def __init__(self, samples, neighbors):
        super().__init__(
            samples.source, samples.sample_shape, samples.channels_last, samples.bad
        )
        self.neighbors = neighbors

    def epoch(self, batch_size):
        for rows in super().epoch(batch_size):
            draw = torch.randint(self.neighbors.shape[1], (len(rows),)).numpy()
            yield rows, self.neighbors[rows, draw]

    def __getitem__(self, rows):
        if not isinstance(rows, tuple):
            return super().__getitem__(rows)
        (x, y), (partner, _) = map(super().__getitem__, rows)
        return (x, partner), y


class Rounds(Samples):
    """Samples whose epoch is a number of steps, whatever the number of rows.

    Parameters
    ----------
    samples : Samples
    n_steps : int
        Batches of an epoch; passes over the rows follow each other, each in a new order.
    """

    def __init__(self, samples, n_steps):
        super().__init__(
            samples.source, samples.sample_shape, samples.channels_last, samples.bad
        )
        self.n_steps = n_steps

    def n_batches(self, batch_size):
        return self.n_steps

    def epoch(self, batch_size):
        passes = (super(Rounds, self).epoch(batch_size) for _ in itertools.count())
        yield from itertools.islice(itertools.chain.from_iterable(passes), self.n_steps)


class Mixed(Samples):
    """Samples whose every batch holds labeled and unlabeled rows.

    Parameters
    ----------
    samples : Samples
    targets : ndarray of int of shape (n_samples,)
        -1 for an unlabeled row.
    ratio : float
        Unlabeled rows per labeled row of a batch; 0 or no unlabeled row: none.
    include_labeled : bool
        Whether the labeled images also stand among the unlabeled ones.
    weights : ndarray of shape (n_samples,) or None
        How often a labeled row is drawn, compared with the others; None: equally often.

    Notes
    -----
    A batch is ``x, y``: first the labeled rows, then the unlabeled ones, where ``y`` is
    ``-1 - row``. An epoch is one pass over the unlabeled rows, or over the labeled ones
    where these take more steps; the others are repeated as often as needed. Labeled
    rows alone come at least two at a time, if need be a row twice, as BatchNorm cannot
    train on one.
    """

    def __init__(self, samples, targets, ratio, include_labeled=True, weights=None):
        super().__init__(
            samples.source, samples.sample_shape, samples.channels_last, samples.bad
        )
        self.targets = np.asarray(targets)
        self.ratio = ratio
        good = ~self.bad
        labeled = good & (self.targets >= 0)
        self.labeled = np.flatnonzero(labeled)
        self.weights = None if weights is None else weights[self.labeled]
        unlabeled = good & (self.targets < 0)
        self.unlabeled = np.flatnonzero(unlabeled | (labeled & include_labeled))
        if ratio <= 0 or len(self.unlabeled) == 0 or not (good & (targets < 0)).any():
            # everything is labeled: plain supervised training
            self.unlabeled = np.empty(0, int)

    def n_batches(self, batch_size):
        if len(self.unlabeled) == 0:
            return _n_batches(len(_my_share(self.labeled)), max(2, batch_size))
        n_labeled = _n_batches(len(self.labeled), batch_size)
        return max(n_labeled, len(self.unlabeled) // self.n_unlabeled(batch_size))

    def epoch(self, batch_size):
        if len(self.unlabeled) == 0:
            for rows in _split(self._labeled_pass(), max(2, batch_size)):
                yield rows.repeat(2 if len(rows) == 1 else 1), self.unlabeled
            return
        unlabeled = self._unlabeled_stream(self.n_unlabeled(batch_size))
        labeled = self._labeled_stream(batch_size)
        for _ in range(self.n_batches(batch_size)):
            rows = next(unlabeled)
            yield next(labeled), rows

    def __getitem__(self, rows):
        if not isinstance(rows, tuple):
            return super().__getitem__(rows)
        labeled, unlabeled = rows
        x, y = super().__getitem__(np.concatenate(rows))
        y[len(labeled) :] = torch.from_numpy(-1 - unlabeled)
        return x, y

    def class_shares(self, n_classes, drawn=False):
        """Return the share of each class in the labeled rows, as they are or as drawn."""
        codes, weights = self.targets[self.labeled], self.weights if drawn else None
        counts = np.bincount(codes, weights=weights, minlength=n_classes)
        return counts / counts.sum()

    def n_unlabeled(self, batch_size):
        return min(max(1, round(batch_size * self.ratio)), len(self.unlabeled))

    def _labeled_stream(self, batch_size):
        """Yield batches of labeled rows without end, one pass after the other."""
        passes = (self._labeled_pass() for _ in itertools.count())
        rows = itertools.chain.from_iterable(passes)
        while True:
            yield np.fromiter(itertools.islice(rows, batch_size), int, batch_size)

    def _unlabeled_stream(self, batch_size):
        """Yield batches of unlabeled rows without end, in none of them a row twice."""
        while True:
            order = _shuffled(self.unlabeled)
            for start in range(0, len(order) - batch_size + 1, batch_size):
                yield order[start : start + batch_size]

    def _labeled_pass(self):
        """Return the labeled rows in random order, each as often as its weight says."""
        if self.weights is None:
            return _shuffled(self.labeled)
        n = len(self.labeled)
        edges = np.append(0, self.weights.cumsum() / self.weights.sum() * n)
        edges[-1] = n
        counts = np.diff(np.floor(edges + float(torch.rand(()))).astype(int))
        return _shuffled(np.repeat(self.labeled, counts))


class ImageFiles:
    """Image files, decoded to uint8 RGB of one size when their rows are asked for.

    Parameters
    ----------
    paths : list of str
    size : (int, int)
        Height and width; other sizes are resized, anti-aliased, without regard to the
        aspect ratio, so that nothing of an image is cut off.

    Notes
    -----
    Decoded images stay in memory while all of them together fit into 1 GiB.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths, size):
        self.paths = np.asarray(paths, dtype=object)
        self.size = size
        self.bad = np.zeros(len(paths), bool)
        self._cache = self._cached = None

    def __len__(self):
        return len(self.paths)

    def __getstate__(self):
        return {**vars(self), "_cache": None, "_cached": None}

    @property
    def fits_in_memory(self):
        """Whether all images are kept once decoded."""
        return len(self) * 3 * self.size[0] * self.size[1] <= _CACHE_BYTES

    def __getitem__(self, rows):
        rows = np.asarray(rows)
        if self.fits_in_memory:
            if self._cache is None:
                self._cache = np.zeros((len(self), *self.size, 3), np.uint8)
                self._cached = np.zeros(len(self), bool)
            missing = np.unique(rows[~self._cached[rows]])
            for row, image in zip(missing, self._read(missing), strict=True):
                self._cache[row] = image
            self._cached[missing] = True
            return self._cache[rows]
        return np.stack(list(self._read(rows)))

    def find_unreadable(self):
        """Decode every file once; those that cannot be read are black from then on."""

        def fails(row):
            try:
                self[np.array([row])]
            except ValueError:
                return True
            return False

        self.bad = np.fromiter(map(fails, range(len(self))), bool, len(self))
        return self.bad

    def _read(self, rows):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield from pool.map(self._decode, rows)

    def _decode(self, row):
        if self.bad[row]:
            return np.zeros((*self.size, 3), np.uint8)
        path = self.paths[row]
        try:
            with Image.open(path) as image:
                image.draft("RGB", self.size[::-1])  # JPEG: decode at reduced scale
                image = ImageOps.exif_transpose(image).convert("RGB")
                if image.size != self.size[::-1]:
                    image = image.resize(
                        self.size[::-1], Image.Resampling.BILINEAR, reducing_gap=2.0
                    )
                return np.asarray(image)
        except _UNREADABLE as error:
            raise unreadable(path, error) from error


def unreadable(path, error):
    """Return what to raise for an image file that cannot be read."""
    return ValueError(
        f"Cannot read the image {str(path)!r} ({error}). Remove or replace the file, "
        'or pass on_error="skip" to leave such files out.'
    )


def check_samples(estimator, X, reset, sample_shape=None):
    """Validate X, whatever it is, and return it as `Samples`.

    Parameters
    ----------
    estimator : BaseLearner
        Its ``image_shape``, ``image_size`` and ``on_error`` are used; with ``reset`` its
        ``n_features_in_`` is set.
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
            f"{type(estimator).__name__} was fitted on samples of shape {sample_shape}: "
            "resize the images to that size."
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
        f"X holds images with values from {low:g} to {high:g}, but {name} was fitted on "
        f"values from {fitted[0]:g} to {fitted[1]:g}: {remedy}."
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
        return [_decoded(paths[row]) for row in rows]
    X = _as_images(X)
    if np.ndim(X) not in (3, 4):
        raise ValueError(
            f"X has shape {np.shape(X)}: give images, (n, h, w), (n, h, w, c) or "
            "(n, c, h, w), or paths of image files."
        )
    samples = _from_images(X, None)
    low, high = samples.pixel_range()
    images = samples[rows][0]
    if images.dtype != torch.uint8:
        images = to_unit(images, (low, high))
    images = images.permute(0, 2, 3, 1).numpy()
    return [image[..., 0] if image.shape[2] == 1 else image for image in images]


def _decoded(path):
    """Return an image file as (h, w, 3) uint8, upright."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


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
            f"image_shape={tuple(shape)} has {np.prod(shape)} values, but the rows of X "
            f"have {X.shape[1]}."
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
                f"{bad.sum()} of {len(bad)} image files cannot be read and are left out; "
                f"the first is {files.paths[bad][0]!r}.",
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
            with Image.open(path) as image:
                sizes.setdefault(ImageOps.exif_transpose(image).size[::-1], path)
        except _UNREADABLE as error:
            if on_error != "skip":
                raise unreadable(path, error) from error
        if len(sizes) > 1:
            (size1, path1), (size2, path2) = list(sizes.items())[:2]
            raise ValueError(
                f"The images differ in size: {path1!r} is {size1}, {path2!r} is {size2} "
                "(height, width). Give image_size, for example image_size=64."
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
    """Turn tensors and nested lists of images into arrays, leave anything else alone."""
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


def _native(block):
    """Return a fetched block as a writable array of uint8 or float32."""
    block = np.ascontiguousarray(block)
    return block if block.dtype == np.uint8 else block.astype(np.float32, copy=False)


def to_unit(x, pixel_range):
    """Return a float batch; pixels are mapped from their range to [0, 1]."""
    x = x.float()
    if pixel_range is None:
        return x
    low, high = pixel_range
    x = x.div_(high) if low == 0 else x.sub_(low).div_(high - low)
    return x if (low, high) == (0.0, 255.0) else x.clamp_(0, 1)


def _split(rows, batch_size):
    """Cut rows into batches; a last batch of one row joins the one before.

    BatchNorm cannot train on a single row.
    """
    rows = _my_share(rows)
    n_batches = _n_batches(len(rows), batch_size)
    for i in range(n_batches):
        last = i == n_batches - 1
        yield rows[i * batch_size : None if last else (i + 1) * batch_size]


def _n_batches(n_rows, batch_size):
    return max(1, n_rows // batch_size + (n_rows % batch_size > 1))


def _my_share(rows):
    """Under torch.distributed every process takes its own rows."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        size = torch.distributed.get_world_size()
        return rows[torch.distributed.get_rank() :: size]
    return rows


def _shuffled(rows):
    return rows[torch.randperm(len(rows)).numpy()]


def _blocks(n, size=4096):
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
