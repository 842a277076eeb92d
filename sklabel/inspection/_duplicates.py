"""Exact copies and near-duplicates, in groups."""

import hashlib
import os
from collections import namedtuple

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.utils.validation import _num_samples

from .._core.columns import as_array, item_column
from .._core.files import read_regular
from .._core.inputs import check_images
from ..neighbors import kneighbors
from ._vectors import as_vectors, unit_rows

Duplicates = namedtuple("Duplicates", "exact near")
Duplicates.__doc__ = """Groups of rows that are the same image.

Parameters
----------
exact : list of ndarray of int
    Groups of rows with equal bytes, the largest first.
near : list of ndarray of int
    Groups of similar rows, including exact copies.
"""
_SIDE = 16  # of the thumbnails
_N_NEIGHBORS = 10
_BLOCK = 256  # images decoded at once
_PIXELS = 2**18  # made gray at once
_BT601 = np.array([0.299, 0.587, 0.114], np.float32)  # weights of the colors


def find_duplicates(X, *, embedder=None, threshold=0.99, max_pixels=None):
    """Find exact copies and near-duplicates, in groups.

    Near-duplicates have a cosine similarity above a threshold: between their vectors
    or, for images without an embedder, between thumbnails of 16x16 gray pixels minus
    their mean. Thumbnails find copies that were resized or saved again; an embedder
    also finds copies that were cropped or shifted.

    Parameters
    ----------
    X : array-like of length n_samples
        Vectors; images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``; or paths of
        image files.
    embedder : transformer or None, default=None
        Embeds X; a fitted one is used as is, another one is cloned and fitted.
    threshold : float, default=0.99
        Minimum cosine similarity of near-duplicates, in (0, 1].
    max_pixels : int or None, default=None
        Maximum number of pixels of an image file; None: Pillow's limit.

    Returns
    -------
    found : Duplicates
        ``exact`` and ``near``: lists of groups, each an array of two rows or more,
        ascending; the largest group first. Files are exact copies if their bytes are
        equal, rows of an array if their values are equal. Two rows are in the same near
        group if a chain of near-duplicates connects them.

    Raises
    ------
    ValueError
        If the threshold is not in (0, 1], or X is none of the above.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.inspection import find_duplicates
    >>> X = load_digits().images[:20]
    >>> X[12] = X[3]
    >>> find_duplicates(X).exact
    [array([ 3, 12])]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold} must lie in (0, 1].")
    rows = as_array(X)
    column = item_column(rows)
    digests = _digests(np.asarray(rows) if column is None else column)
    exact = np.unique(digests, return_inverse=True)[1].ravel()
    if embedder is None and (column is not None or np.ndim(rows) > 2):
        Z = unit_rows(_thumbnails(X, max_pixels), center=False)
    else:
        Z = unit_rows(as_vectors(X, embedder, "A comparison"), center=False)
    return Duplicates(_groups(exact), _groups(_near(Z, exact, threshold)))


def _digests(rows):
    return [hashlib.sha256(_bytes(rows[i])).digest() for i in range(len(rows))]


def _bytes(row):
    """Return the bytes of a file, of an encoded image, of a picture or of an array."""
    if isinstance(row, (str, os.PathLike)):
        return read_regular(row)
    if isinstance(row, (bytes, bytearray, memoryview)):
        return row
    return np.ascontiguousarray(row)


def _thumbnails(X, max_pixels):
    """Return (n, 256): gray pixels minus their mean."""
    n, found = _num_samples(X), []
    for start in range(0, n, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, n))
        for image in check_images(X, rows, max_pixels):
            small = as_gray(image).resize((_SIDE, _SIDE), Image.Resampling.BOX)
            pixels = np.asarray(small, np.float64).ravel()
            found.append(pixels - pixels.mean())
    return np.array(found)


def as_gray(image):
    """Return the luminance of an image as a picture of floats from 0 to 1."""
    image = np.asarray(image)
    scale = 255 if image.dtype == np.uint8 else 1
    gray = np.empty(image.shape[:2], np.float32)
    step = max(1, _PIXELS // max(1, image.shape[1]))
    for start in range(0, len(image), step):  # a large image fills no memory
        rows = image[start : start + step].astype(np.float32) / scale
        gray[start : start + step] = rows if image.ndim == 2 else rows[..., :3] @ _BT601
    return Image.fromarray(gray)


def _near(Z, exact, threshold):
    """Return a group number for each row; copies count once in the search."""
    _, first = np.unique(exact, return_index=True)
    if len(first) < 2:
        return exact
    Z = Z[first].astype(np.float32)
    n_neighbors = min(_N_NEIGHBORS, len(Z) - 1)
    distances, neighbors = kneighbors(
        Z, n_neighbors, metric="cosine", include_self=False, random_state=0
    )
    rows, places = np.nonzero(distances <= 1 - threshold + 1e-6)
    edges = np.ones(len(rows)), (rows, neighbors[rows, places])
    graph = coo_array(edges, shape=(len(Z), len(Z)))
    return connected_components(graph, directed=False)[1][exact]


def _groups(numbers):
    """Return the groups of rows with the same number, the largest first."""
    order = np.argsort(numbers, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    parts = [part for part in parts if len(part) > 1]
    return sorted(parts, key=lambda part: (-len(part), part[0]))
