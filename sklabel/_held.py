"""Classifiers that selectors and the loop hold: fit them, and look inside."""

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, check_array
from sklearn.utils.validation import check_is_fitted

from ._base import ClassificationMixin
from ._data import _as_paths, check_samples
from ._labels import is_labeled


def fit_partly(classifier, X, y):
    """Fit a classifier to partly labeled y, and return it.

    Of one that does not know unlabeled rows the labeled rows are fitted.
    """
    last = last_step(classifier)
    semi_supervised = type(last).__module__.startswith("sklearn.semi_supervised")
    if semi_supervised or isinstance(last, ClassificationMixin):
        return classifier.fit(X, y)
    rows = np.flatnonzero(is_labeled(y))
    # as a list, names among marks of unlabeled rows become text again
    return classifier.fit(
        _safe_indexing(X, rows), np.asarray(list(_safe_indexing(y, rows)))
    )


def last_step(estimator):
    """Return the estimator, fitted or not, within pipelines, searches, frozen ones."""
    while True:
        if isinstance(estimator, Pipeline):
            estimator = estimator[-1]
        elif isinstance(estimator, FrozenEstimator) or hasattr(estimator, "refit"):
            estimator = estimator.estimator  # refit: a search
        else:
            return estimator


def check_rows(selector, X):
    """Check X, vectors or whatever a classifier takes.

    Parameters
    ----------
    selector : SelectionMixin
        With a ``classifier``; its ``n_features_in_`` is set. Not for paths.
    X : array-like
        Vectors, images or paths.

    Returns
    -------
    given : array-like of length n_rows
        X for the classifier.
    vectors : ndarray of shape (n_rows, n_features) or None
        X as float32; None where X holds images or paths.
    """
    for name in ("n_features_in_", "feature_names_in_"):
        vars(selector).pop(name, None)  # paths set none
    if selector.classifier is not None:  # the default one takes vectors only
        paths = _as_paths(X)
        if paths is not None:
            return X, None
        if len(getattr(X, "shape", None) or np.shape(X)) > 2:
            check_samples(selector, X, True)
            return X, None
    vectors = selector._check_vectors(X)
    # A frame has names that a frozen classifier looks for, uint8 are pixels.
    as_given = hasattr(X, "columns") or getattr(X, "dtype", None) == np.uint8
    return (X if as_given else vectors), vectors


def fit_classifier(selector, X, y, random):
    """Return the classifier of a selector fitted, with seeds where it has none.

    Parameters
    ----------
    selector : SelectionMixin
        With a ``classifier``; it stays as it is.
    X : array-like of length n_rows
    y : array-like of shape (n_rows,) or None
    random : RandomState
        Gives the seeds.

    Returns
    -------
    classifier : estimator
        A clone of the selector's, or itself where it is frozen.

    Raises
    ------
    ValueError
        If it must be fitted and no row has a label.
    """
    classifier = selector.classifier
    if isinstance(classifier, FrozenEstimator):
        check_is_fitted(classifier)
        return classifier
    if y is None or not is_labeled(y).any():
        raise ValueError(
            f"{type(selector).__name__} asks a classifier, which needs labels to be "
            "fitted: pass y with some labels (a first choice can be that of "
            "USLSelector), or a fitted classifier as FrozenEstimator(classifier)."
        )
    if classifier is None:
        return fit_partly(LogisticRegression(max_iter=1000), X, y)
    seeds = {
        name: int(random.randint(2**31 - 1))
        for name, value in sorted(classifier.get_params().items(), key=lambda p: p[0])
        if value is None and name.split("__")[-1] == "random_state"
    }
    return fit_partly(clone(classifier).set_params(**seeds), X, y)


def inner_estimator(estimator, X):
    """Return the classifier or clusterer within pipelines and the like, and its X.

    Parameters
    ----------
    estimator : estimator
        Fitted; a pipeline, search or frozen one is looked into.
    X : array-like
        Rows as ``estimator`` takes them.

    Returns
    -------
    estimator : estimator
    X : array-like
        Rows as this one takes them: after the steps before it.
    """
    while not isinstance(estimator, ClassificationMixin):
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif isinstance(estimator, Pipeline):
            if len(estimator.steps) > 1:
                X = estimator[:-1].transform(X)
            estimator = estimator[-1]
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        else:
            break
    return estimator, X


def hidden_features(classifier, X):
    """Return what the last layer of a fitted classifier gets to see of each row.

    Parameters
    ----------
    classifier : estimator
        Of sklabel's: the features of its ``encoder_``. Of others: X itself, after the
        steps of a pipeline.
    X : array-like of length n

    Returns
    -------
    features : ndarray of shape (n, D), float32 or float64

    Raises
    ------
    ValueError
        If a classifier that is not sklabel's has no vectors as X.
    """
    classifier, X = inner_estimator(classifier, X)
    if not isinstance(classifier, ClassificationMixin):
        if len(getattr(X, "shape", None) or np.shape(X)) != 2:
            raise ValueError(
                f"{type(classifier).__name__} has no features to look at but its X, "
                f"which is of shape {np.shape(X)} and not vectors: take one of "
                "sklabel's classifiers, or embed the images first."
            )
        return check_array(X, dtype=[np.float32, np.float64], order="C")
    return encoded(classifier, X)


def encoded(estimator, X):
    """Return the features (n, D) that the ``encoder_`` of a trained estimator gives X."""
    samples = estimator._check_X(X)
    net, encoder = estimator.net_, estimator.encoder_.eval()
    features = []
    with torch.inference_mode(), net.autocast():
        for x, _ in net.get_iterator(samples):
            features.append(encoder(net.to_device(x)).float().flatten(1).cpu())
    return torch.cat(features).numpy()


def open_rows(labeled, unreadable, n_samples):
    """Return the rows among which to choose: neither labeled nor unreadable.

    Parameters
    ----------
    labeled : ndarray of shape (n,), dtype bool
    unreadable : ndarray of shape (n,), dtype bool
        Files that cannot be read, which have no probabilities.
    n_samples : int
        Rows that will be chosen.

    Returns
    -------
    rows : ndarray of int

    Raises
    ------
    ValueError
        If there are fewer rows than will be chosen.
    """
    rows = np.flatnonzero(~labeled & ~unreadable)
    if len(rows) < n_samples:
        raise ValueError(
            f"n_samples={n_samples} rows are asked, but {unreadable.sum()} rows have no "
            f"probabilities (NaN), which leaves {len(rows)} without a label: ask for "
            "fewer, or replace the files that cannot be read."
        )
    return rows
