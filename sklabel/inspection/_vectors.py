"""Vectors of X for neighbor searches: X itself, or its embedding."""

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import normalize
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted


def as_vectors(X, embedder, why):
    """Return the vectors (n, D) of X.

    Parameters
    ----------
    X : array-like
        Vectors, or what the embedder takes.
    embedder : transformer or None
        A fitted one is used as is, another one is cloned and fitted to X.
    why : str
        Purpose of the vectors; begins the error message if X has none.
    """
    if embedder is None:
        if len(np.shape(X)) != 2:
            raise ValueError(
                f"{why} needs vectors, but X has shape {np.shape(X)}: give embedder=, "
                "such as a fitted PretrainedTransformer."
            )
        return check_array(X, dtype=[np.float32, np.float64])
    if not _is_fitted(embedder):
        embedder = clone(embedder).fit(X)
    Z = np.asarray(embedder.transform(X))
    if np.isnan(Z).any():
        raise ValueError(
            f"{int(np.isnan(Z).any(1).sum())} rows of X cannot be embedded: leave out "
            "files that cannot be read."
        )
    return Z


def unit_rows(Z, center=True):
    """Return rows of length 1, centered first; a row of zeros stays zero."""
    Z = np.asarray(Z, dtype=np.float64)
    return normalize(Z - Z.mean(0) if center else Z)


def _is_fitted(embedder):
    if isinstance(embedder, FrozenEstimator):
        return True
    try:
        check_is_fitted(embedder)
    except Exception:  # NotFittedError, or a TypeError of what is no estimator
        return False
    return True
