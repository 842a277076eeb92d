"""Estimators that others hold: fit them, and look inside."""

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.semi_supervised import LabelPropagation, LabelSpreading
from sklearn.utils import _safe_indexing, check_array

from .labels import as_column, decode_labels, encode_labels, is_labeled
from .roles.classification import ClassificationRole, LabeledScoreMixin


def fit_partly_labeled(classifier, X, y):
    """Fit a classifier to partly labeled y, and return it.

    One that cannot learn from unlabeled rows gets the labeled rows alone. Those of
    scikit-learn that can get -1 as the mark, whatever it is in y, and bool as 0 and 1.
    """
    last = last_step(classifier)
    if isinstance(last, LabeledScoreMixin):
        return classifier.fit(X, y)
    if any(c.__module__.startswith("sklearn.semi_sup") for c in type(last).__mro__):
        return _fit_semi_supervised(classifier, X, y)
    rows = np.flatnonzero(is_labeled(y))
    # as a list, names among marks of unlabeled rows become text again
    return classifier.fit(
        _safe_indexing(X, rows), np.asarray(list(_safe_indexing(as_column(y), rows)))
    )


def _fit_semi_supervised(classifier, X, y):
    classes, codes = encode_labels(y)
    if classes.dtype == bool:
        return classifier.fit(X, codes)
    last = last_step(classifier)
    own = isinstance(last, (LabelPropagation, LabelSpreading)) and (
        last is classifier or getattr(classifier, "steps", [()])[-1][-1:] == (last,)
    )
    if classes.dtype.kind in "iuf" or not own:
        return classifier.fit(X, decode_labels(codes, classes))
    # these two sort their classes and the mark together, which names do not bear
    classifier = classifier.fit(X, codes)
    last.classes_ = np.array(classes.tolist())
    last.transduction_ = last.classes_[last.transduction_]
    return classifier


def seeded_clone(estimator, random):
    """Clone an estimator; each ``random_state`` within that is None gets a seed."""
    seeds = {
        name: int(random.randint(2**31 - 1))
        for name, value in sorted(estimator.get_params().items(), key=lambda p: p[0])
        if value is None and name.split("__")[-1] == "random_state"
    }
    return clone(estimator).set_params(**seeds)


def last_step(estimator):
    """Return the estimator, fitted or not, within pipelines, searches, frozen ones."""
    while True:
        if isinstance(estimator, Pipeline):
            estimator = estimator[-1]
        elif isinstance(estimator, FrozenEstimator) or hasattr(estimator, "refit"):
            estimator = estimator.estimator  # refit: a search
        else:
            return estimator


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
    while not isinstance(estimator, ClassificationRole):
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
    """Return what the last layer of a fitted classifier gets of each row.

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
    if not isinstance(classifier, ClassificationRole):
        if len(getattr(X, "shape", None) or np.shape(X)) != 2:
            raise ValueError(
                f"{type(classifier).__name__} has no features other than X, which has "
                f"shape {np.shape(X)} and does not hold vectors: use one of sklabel's "
                "classifiers, or embed the images first."
            )
        return check_array(X, dtype=[np.float32, np.float64], order="C")
    return encoded(classifier, X)


def has_features(classifier, X):
    """Return whether `hidden_features` finds any for a fitted classifier."""
    classifier, row = inner_estimator(classifier, _safe_indexing(X, [0]))
    if isinstance(classifier, ClassificationRole):
        return True
    return len(getattr(row, "shape", None) or np.shape(row)) == 2


def encoded(estimator, X):
    """Return the features (n, D) of X by the ``encoder_`` of a trained estimator."""
    encoder = estimator.encoder_.eval()
    return estimator.net_.evaluate(
        estimator._check_X(X), forward=lambda x: encoder(x).flatten(1)
    ).numpy()
