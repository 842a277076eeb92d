"""Images that are dark, bright, blank, blurred or unlike all others."""

from collections import namedtuple

import numpy as np
from PIL import Image
from sklearn.utils.validation import _num_samples

from .._core.inputs import check_images
from ..neighbors import kneighbors
from ._duplicates import as_gray
from ._vectors import as_vectors, unit_rows

ImageMeasures = namedtuple(
    "ImageMeasures", "brightness darkest brightest contrast entropy sharpness"
)
ImageMeasures.__doc__ = """Measures of images, each an array of shape (n_samples,).

Parameters
----------
brightness : ndarray
    Mean luminance, 0 (black) to 1 (white).
darkest, brightest : ndarray
    Percentiles 5 and 99 of the luminance, in [0, 1].
contrast : ndarray
    Standard deviation of the luminance, in [0, 0.5].
entropy : ndarray
    Entropy of the histogram of 64 gray levels, in bits, 0 to 6.
sharpness : ndarray
    Variance of the Laplacian of the luminance.
"""
PoorImages = namedtuple("PoorImages", "dark bright blank blurred odd")
PoorImages.__doc__ = """Rows of poor images by defect, the worst first.

Parameters
----------
dark, bright, blank, blurred, odd : ndarray of int
    See `find_poor_images`.
"""
_SIDE = 128  # longest side of what is measured
_BLOCK = 256  # images decoded at once
_LEVELS = 64
_N_NEIGHBORS = 5


def measure_images(X, *, max_pixels=None):
    """Measure brightness, contrast, content and sharpness of images.

    Images with a side above 128 pixels are reduced first, so that the sharpness of
    photographs of different sizes can be compared.

    Parameters
    ----------
    X : array-like of length n_samples
        Images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``, or paths of image
        files.
    max_pixels : int or None, default=None
        Maximum number of pixels of an image file; None: Pillow's limit.

    Returns
    -------
    measures : ImageMeasures
        Arrays of shape (n_samples,): ``brightness``, ``darkest``, ``brightest``,
        ``contrast``, ``entropy`` and ``sharpness``.

    References
    ----------
    .. [1] J. L. Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a
       comparative study", ICPR 2000 (variance of the Laplacian).

    Examples
    --------
    >>> import numpy as np
    >>> from sklabel.inspection import measure_images
    >>> gray = np.full((1, 8, 8), 51, dtype=np.uint8)
    >>> measure_images(gray).brightness
    array([0.2])
    """
    n, found = _num_samples(X), []
    for start in range(0, n, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, n))
        images = check_images(X, rows, max_pixels)
        found.extend(_measure(as_gray(image)) for image in images)
    return ImageMeasures(*np.array(found).reshape(n, -1).T.round(6))


def _measure(picture):
    longest = max(picture.size)
    if longest > _SIDE:
        size = [max(1, round(side * _SIDE / longest)) for side in picture.size]
        picture = picture.resize(size, Image.Resampling.BOX)
    gray = np.asarray(picture, np.float64)
    levels = np.minimum((gray * _LEVELS).astype(int), _LEVELS - 1).clip(0)
    shares = np.bincount(levels.ravel()) / gray.size
    shares = shares[shares > 0]
    inner = gray[1:-1, 1:-1]
    laplacian = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    return (
        gray.mean(),
        np.percentile(gray, 5),
        np.percentile(gray, 99),
        gray.std(),
        -(shares * np.log2(shares)).sum(),
        (laplacian - 4 * inner).var() if inner.size else 0.0,
    )


def find_poor_images(
    X,
    *,
    embedder=None,
    dark=0.3,
    bright=0.7,
    blank=0.02,
    blurred=0.1,
    odd=5.0,
    max_pixels=None,
):
    """Find images that are dark, bright, blank, blurred or unlike all others.

    A blank image is not also reported as dark, bright or blurred.

    Parameters
    ----------
    X : array-like of length n_samples
        Images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``, or paths of image
        files.
    embedder : transformer or None, default=None
        Embeds X to find odd images; a fitted one is used as is, another one is cloned
        and fitted. None: odd images are not searched for.
    dark : float, default=0.3
        An image is dark if 99 % of its pixels are below this luminance, in [0, 1].
    bright : float, default=0.7
        An image is bright if 95 % of its pixels are above this luminance, in [0, 1].
    blank : float, default=0.02
        An image is blank if the standard deviation of its luminance is below this.
    blurred : float, default=0.1
        An image is blurred if its sharpness is below this share of the median of all
        images, >= 0.
    odd : float, default=5.0
        An image is odd if its mean cosine distance to its 5 nearest neighbors is this
        many robust standard deviations (1.4826 times the median absolute deviation)
        above the median, > 0.
    max_pixels : int or None, default=None
        Maximum number of pixels of an image file; None: Pillow's limit.

    Returns
    -------
    found : PoorImages
        Arrays of rows, the worst first: ``dark``, ``bright``, ``blank``, ``blurred``
        and ``odd``.

    See Also
    --------
    measure_images : The measures themselves.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.inspection import find_poor_images
    >>> X = load_digits().images[:20] / 16
    >>> X[7] = 0.5
    >>> find_poor_images(X).blank
    array([7])
    """
    measures = measure_images(X, max_pixels=max_pixels)
    is_blank = measures.contrast < blank
    median = np.median(measures.sharpness[~is_blank]) if (~is_blank).any() else 0
    found = [
        _worst(measures.brightest, (measures.brightest < dark) & ~is_blank),
        _worst(-measures.darkest, (measures.darkest > bright) & ~is_blank),
        _worst(measures.contrast, is_blank),
        _worst(measures.sharpness, (measures.sharpness < blurred * median) & ~is_blank),
    ]
    far = np.zeros(len(X))
    if embedder is not None:
        far = _oddness(unit_rows(as_vectors(X, embedder, "A comparison")))
    return PoorImages(*found, _worst(-far, far > odd))


def _worst(values, mask):
    """Return the rows of a mask in the order of their values."""
    rows = np.flatnonzero(mask)
    return rows[np.argsort(values[rows], kind="stable")]


def _oddness(Z):
    """Return each row's distance to its neighbors, in deviations above the median."""
    n_neighbors = min(_N_NEIGHBORS, len(Z) - 1)
    if not n_neighbors:
        return np.zeros(len(Z))
    distances, _ = kneighbors(
        Z, n_neighbors, metric="cosine", include_self=False, random_state=0
    )
    mean = distances.mean(1)
    median = np.median(mean)
    deviation = 1.4826 * np.median(np.abs(mean - median))
    return (mean - median) / max(deviation, 1e-12)
