"""The rows: images or vectors of one shape, fetched by their numbers."""

from contextlib import contextmanager

import numpy as np
import torch
from sklearn.utils import _safe_indexing

from .devices import SHARE_FOR_ROWS, free_memory, to_device

# black and white of floats within [0, 1] and of bytes; any others are learned from X
PIXEL_RANGES = (0.0, 1.0), (0.0, 255.0)


def evenly_spaced(n, n_rows):
    """Return at most ``n_rows`` of the numbers below n, evenly spaced."""
    return np.linspace(0, n - 1, min(n_rows, n)).astype(int)


class Samples:
    """Rows of one shape, fetched by index list; a batch is a tensor, an image is CHW.

    Parameters
    ----------
    source : ndarray, memmap, ImageFiles or another that is fetched by rows
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
        self._held = None  # all rows on a device

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
        return good[evenly_spaced(len(good), n_rows)]

    def readable(self, X):
        """Return X without the rows that cannot be read; these are its samples."""
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
        if self._held is not None:
            numbers = torch.from_numpy(rows).long()
            x = self._held[to_device(numbers, self._held.device)]
        else:
            x = torch.from_numpy(native(self.source[rows]))
        if self.channels_last:
            x = x.reshape(len(rows), *self.sample_shape[1:], -1).permute(0, 3, 1, 2)
        return x.reshape(len(rows), *self.sample_shape)

    @property
    def is_held(self):
        """Whether the rows lie on a device."""
        return self._held is not None

    @contextmanager
    def held_on(self, device):
        """Keep the rows on a device during the block, if they fit.

        They fit if they are an array in memory that takes at most ``SHARE_FOR_ROWS`` of
        what the device has left, 8-bit pixels as such.
        """
        if self._held is not None or not self._fit_on(device):
            yield
            return
        dtype = torch.uint8 if self.is_bytes else torch.float32
        held = torch.empty(self.source.shape, dtype=dtype, device=device)
        for rows in _blocks(len(self)):
            block = torch.from_numpy(native(self.source[rows]))
            held[rows] = to_device(block, device)
        self._held = held
        try:
            yield
        finally:
            self._held = None

    def _fit_on(self, device):
        if type(self.source) is not np.ndarray:  # on a disk, or decoded when asked for
            return False
        n_bytes = self.source.size * (1 if self.is_bytes else 4)
        return n_bytes <= SHARE_FOR_ROWS * free_memory(device)

    def without(self, left_out):
        """Return the same rows, with a mask of further rows not to train on."""
        bad = self.bad | left_out
        return Samples(self.source, self.sample_shape, self.channels_last, bad)

    @property
    def is_bytes(self):
        """Whether the values are uint8, as those of all files are."""
        return getattr(self.source, "dtype", None) == np.uint8

    def pixel_range(self):
        """Return (low, high), the values that stand for black and white; None: vectors.

        It is (0, 255) for uint8, (0, 1) for float images within [0, 1], and the
        smallest and largest value for any other float images.
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
        if getattr(self.source, "is_encoded", False):
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
            Maximum number of rows used, evenly spaced.
        """
        x = to_unit(self[self.spread(n_rows)], self.pixel_range()).double()
        axes = (0, 2, 3) if x.ndim == 4 else (0,)
        mean = x.mean(axes, keepdim=True)[0]
        std = x.std(axes, correction=0, keepdim=True)[0]
        # a constant feature carries nothing: leave its scale alone
        std = torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std))
        return mean.float(), std.float()


def native(block):
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


def _blocks(n, size=4096):
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
