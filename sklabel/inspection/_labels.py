"""Labels that are probably wrong: confident learning (Northcutt et al., 2021)."""

from collections import namedtuple

import numpy as np
from scipy.special import softmax

from .._core.few_shot import linear_probes
from .._core.labels import check_labels, encode_labels
from ._vectors import as_vectors, unit_rows

SuspiciousLabels = namedtuple("SuspiciousLabels", "rows given suggested margin")
SuspiciousLabels.__doc__ = """Labels to check, the most suspicious first.

Parameters
----------
rows : ndarray of int of shape (m,)
    Rows of X.
given : ndarray of shape (m,)
    Their labels.
suggested : ndarray of shape (m,)
    The class that the other rows suggest.
margin : ndarray of shape (m,)
    Probability of the given class minus that of the suggested one, in [-1, 0).
"""


def suspicious_labels(
    X, y, *, embedder=None, probabilities=None, n_folds=5, C=10.0, random_state=0
):
    r"""Find labels that are probably wrong, given the other labels.

    Confident learning: in cross-validation, a linear probe predicts each labeled row.
    Class k is confident for a row if its probability reaches the mean over the rows
    labeled k,

    .. math:: p_k(x) \ge t_k = \frac{1}{|X_k|} \sum_{x \in X_k} p_k(x),

    and a label is suspicious if another class is confident and more probable than the
    given one.

    Parameters
    ----------
    X : array-like of length n_samples
        Vectors, or what ``embedder`` takes: images or paths.
    y : array-like of shape (n_samples,)
        Classes; -1, None or NaN for unlabeled rows, which are ignored.
    embedder : transformer or None, default=None
        Embeds X; a fitted one is used as is, another one is cloned and fitted. None: X
        holds vectors.
    probabilities : array-like of shape (n_samples, n_classes), default=None
        Out-of-sample probabilities to use instead of the probe's, columns in the order
        of the sorted classes.
    n_folds : int, default=5
        Number of folds, at least 2; a class with fewer rows has each row in a separate
        fold.
    C : float, default=10.0
        Inverse strength of the probe's penalty, > 0, for vectors of length 1. Small
        values keep the probe from memorizing wrong labels.
    random_state : int or None, default=0
        Seed of the folds.

    Returns
    -------
    found : SuspiciousLabels
        ``rows``, ``given``, ``suggested`` and ``margin``, the most suspicious first.

    Raises
    ------
    ValueError
        If fewer than two classes are labeled, or shapes do not fit.

    Notes
    -----
    The label of a class with only one labeled row is never suspicious.

    References
    ----------
    .. [1] C. Northcutt, L. Jiang, I. Chuang, "Confident learning: estimating
       uncertainty in dataset labels", Journal of Artificial Intelligence Research,
       2021.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.inspection import suspicious_labels
    >>> X, y = load_digits(return_X_y=True)
    >>> y[7] = 1  # a seven
    >>> found = suspicious_labels(X, y)
    >>> 7 in found.rows
    True
    """
    if n_folds < 2:
        raise ValueError(f"n_folds={n_folds} must be 2 or more.")
    classes, codes = encode_labels(check_labels(y))
    rows = np.flatnonzero(codes >= 0)
    codes = codes[rows]
    if probabilities is None:
        Z = as_vectors(X, embedder, "A probe")
        if len(Z) != len(y):
            raise ValueError(f"X has {len(Z)} rows, y has {len(y)}.")
        z = unit_rows(Z)[rows]
        p = _out_of_fold(z, codes, len(classes), n_folds, C, random_state)
    else:
        p = np.asarray(probabilities, dtype=np.float64)
        if p.shape != (len(y), len(classes)):
            raise ValueError(
                f"probabilities have shape {p.shape}, expected {(len(y), len(classes))}"
            )
        p = p[rows]
    own = p[np.arange(len(rows)), codes]
    sizes = np.bincount(codes, minlength=len(classes))
    thresholds = np.bincount(codes, own, len(classes)) / sizes
    confident = (p >= thresholds) & (p > own[:, None])
    # with no other row of its class in training, no row can get it
    confident[sizes[codes] < 2] = False
    suspected = np.flatnonzero(confident.any(1))
    others = np.where(confident, p, -1)[suspected].argmax(1)
    margin = own[suspected] - p[suspected, others]
    order = np.argsort(margin, kind="stable")
    return SuspiciousLabels(
        rows[suspected][order],
        classes[codes[suspected]][order],
        classes[others][order],
        margin[order],
    )


def _out_of_fold(z, codes, n_classes, n_folds, C, seed):
    """Return the out-of-fold probabilities (m, K) of a probe."""
    order = np.random.default_rng(seed).permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    fold = np.empty(len(codes), int)
    fold[order] = np.arange(len(codes)) % min(n_folds, len(codes))
    masks = (fold != np.arange(fold.max() + 1)[:, None]).astype(float)
    coef, bias = linear_probes(z, codes, masks, n_classes, C)
    logits = np.empty((len(codes), n_classes))
    for k in range(len(coef)):
        own = fold == k
        logits[own] = z[own] @ coef[k].T + bias[k]
    return softmax(logits, axis=1)
