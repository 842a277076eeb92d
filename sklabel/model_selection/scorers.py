"""Scorers that use labeled rows only."""

import copy
import functools
import inspect
from itertools import combinations

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import average_precision_score, get_scorer, roc_auc_score
from sklearn.utils import _safe_indexing
from sklearn.utils.metadata_routing import get_routing_for_object
from sklearn.utils.metaestimators import available_if

from .._core.labels import read_labels


class _LabeledScorer:
    """A scorer that uses labeled rows only; made by `labeled_scorer`."""

    def __init__(self, scorer, unlabeled):
        self._scorer = scorer
        self._unlabeled = unlabeled

    def __call__(self, estimator, X, y, **params):
        known = getattr(estimator, "classes_", None)
        if np.ndim(known) != 1:
            known = None
        classes, codes = _encode(y, known, self._unlabeled)
        rows = np.flatnonzero(codes >= 0)
        if len(rows) == 0:
            raise ValueError(
                f"y has no labeled row among its {len(codes)} rows, so there is "
                "nothing to score. Use LabeledKFold, whose test parts are labeled."
            )
        params = {
            name: _safe_indexing(value, rows) if _per_row(value, len(codes)) else value
            for name, value in params.items()
        }
        y = classes[codes[rows]]
        if known is None:
            return self._scorer(estimator, _safe_indexing(X, rows), y, **params)
        estimator, scorer = _for_classes(estimator, self._scorer, y)
        return scorer(estimator, _safe_indexing(X, rows), y, **params)

    def __repr__(self):
        return f"labeled_scorer({self._scorer!r})"

    def set_score_request(self, **kwargs):
        """Return a scorer that requests metadata, as scikit-learn's scorers do."""
        return _LabeledScorer(self._scorer.set_score_request(**kwargs), self._unlabeled)

    def get_metadata_routing(self):
        """Return the metadata that the wrapped scorer requests."""
        return get_routing_for_object(self._scorer)


def labeled_scorer(scoring="accuracy", *, unlabeled=-1):
    """Return a scorer that uses labeled rows only.

    Parameters
    ----------
    scoring : str or callable, default="accuracy"
        A name of scikit-learn's (``sklearn.metrics.get_scorer_names()``) or a
        callable ``scorer(estimator, X, y)``.
    unlabeled : int, str or None, default=-1
        Value that marks unlabeled rows in y, besides ``None`` and NaN; ``None``: no
        other value.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y, **params)``, for ``scoring=`` of ``cross_val_score``,
        ``GridSearchCV`` and the like. Parameters with one entry per row
        (``sample_weight``) are reduced to the labeled rows.

        Scores of probabilities also work if the rows lack a class of the estimator, as
        small test parts do: log loss, Brier score and top-k accuracy use the
        estimator's classes; the area under the ROC curve and average precision are
        averaged over the classes (or pairs of classes) that are present. A class that
        only the rows have gets probability 0.

    Raises
    ------
    ValueError
        If ``scoring`` is not a name that scikit-learn knows. The scorer raises it if y
        has no labeled row.
    TypeError
        If ``scoring`` is neither a name nor callable.

    Examples
    --------
    >>> from sklearn.dummy import DummyClassifier
    >>> from sklabel.model_selection import labeled_scorer
    >>> model = DummyClassifier(strategy="constant", constant=1).fit([[0], [0]], [0, 1])
    >>> labeled_scorer("accuracy")(model, [[0], [0], [0]], [1, -1, 0])
    0.5
    """
    if not isinstance(scoring, str) and not callable(scoring):
        raise TypeError(
            "scoring must be a name of scikit-learn's scorers or a callable "
            f"scorer(estimator, X, y), got {scoring!r}."
        )
    return _LabeledScorer(get_scorer(scoring), unlabeled)


def _per_row(value, n_samples):
    return hasattr(value, "__len__") and len(value) == n_samples


def _encode(y, known, unlabeled):
    """Return classes and codes of y; the estimator may treat some texts as classes."""
    column, labeled, values = read_labels(y, unlabeled, known)
    classes, positions = np.unique(values, return_inverse=True)
    codes = np.full(len(column), -1)
    codes[labeled] = positions
    return classes, codes


# -- scores of probabilities where rows or estimator lack a class


def _for_classes(estimator, scorer, y):
    """Return estimator and scorer, each extended to the classes of both."""
    if getattr(scorer, "_response_method", "predict") == "predict":
        return estimator, scorer
    known = np.asarray(estimator.classes_).tolist()
    there = np.unique(y).tolist()
    strange = [name for name in there if name not in known]
    if not strange and len(there) == len(known):
        return estimator, scorer
    if strange:
        estimator = _Widened(estimator, strange)
    classes = np.asarray(estimator.classes_)
    function = scorer._score_func
    scorer = copy.copy(scorer)
    if function in _AREAS and len(classes) > 2:
        scorer._score_func = functools.partial(_area, function, classes)
    elif "labels" in inspect.signature(function).parameters and function not in _AREAS:
        scorer._kwargs = {"labels": classes, **scorer._kwargs}
    return estimator, scorer


class _Widened(ClassifierMixin, BaseEstimator):
    """A fitted classifier with additional classes that it never predicts."""

    def __init__(self, estimator, strange):
        self.estimator = estimator
        self.strange = strange
        own = np.asarray(estimator.classes_).tolist()
        self.classes_ = np.array(sorted([*own, *strange]))
        self._columns = [self.classes_.tolist().index(name) for name in own]

    def _widen(self, scores, fill):
        wide = np.full((len(scores), len(self.classes_)), fill)
        wide[:, self._columns] = scores
        return wide

    @available_if(lambda self: hasattr(self.estimator, "predict_proba"))
    def predict_proba(self, X):
        return self._widen(self.estimator.predict_proba(X), 0.0)

    @available_if(lambda self: hasattr(self.estimator, "decision_function"))
    def decision_function(self, X):
        scores = np.asarray(self.estimator.decision_function(X))
        if scores.ndim == 1:
            scores = np.column_stack([-scores, scores])
        return self._widen(scores, np.finfo(float).min)


_AREAS = roc_auc_score, average_precision_score


def _area(
    function,
    classes,
    y_true,
    y_score,
    *,
    multi_class=None,
    average="macro",
    sample_weight=None,
):
    """Return the mean area over the classes in ``y_true``, or over their pairs.

    Each class is compared with all other rows, or with the other class of a pair.
    """
    if multi_class is None and function is roc_auc_score:
        raise ValueError(
            'roc_auc is for two classes: with more, use "roc_auc_ovr" or "roc_auc_ovo".'
        )
    there = [i for i, name in enumerate(classes) if (y_true == name).any()]
    if len(there) < 2:
        return np.nan
    scores = np.asarray(y_score)[:, there]
    hits = np.column_stack([y_true == classes[i] for i in there])
    if multi_class != "ovo":
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        return function(hits, scores, average=average, **weights)
    areas, shares = [], []
    for a, b in combinations(range(len(there)), 2):
        rows = hits[:, a] | hits[:, b]
        both = [function(hits[rows, c], scores[rows, c]) for c in (a, b)]
        areas.append(np.mean(both))
        shares.append(rows.mean())
    return np.average(areas, weights=shares if average == "weighted" else None)


labeled_accuracy = labeled_scorer("accuracy")
