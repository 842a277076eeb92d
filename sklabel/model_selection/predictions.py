"""Predictions for labeled rows by models that have not seen them."""

import numpy as np
from sklearn.base import clone
from sklearn.utils import _safe_indexing
from sklearn.utils.parallel import Parallel, delayed

from .._core.checks import check_option
from .._core.labels import as_column, decode_labels, encode_labels
from .._core.nested import fit_partly_labeled
from .folds import LabeledKFold, LabeledSplit, _LabeledSplitter


def labeled_cross_val_predict(
    estimator,
    X,
    y,
    *,
    cv=None,
    groups=None,
    method="predict",
    n_jobs=None,
    unlabeled=-1,
):
    """Predict each labeled row by a model trained without it.

    Like :func:`sklearn.model_selection.cross_val_predict`, for partly labeled y: the
    labeled rows are split into folds, and unlabeled rows are in every training part.

    Parameters
    ----------
    estimator : classifier
        Cloned for each fold. sklabel's classifiers and scikit-learn's semi-supervised
        ones, alone, in a pipeline or in a search, are trained on all rows of a training
        part; others are trained on its labeled rows.
    X : array-like of shape (n_samples, ...)
        Input of the classifier.
    y : array-like of shape (n_samples,)
        Labels; ``-1``, ``None``, NaN and blank texts mark unlabeled rows.
    cv : int, splitter or None, default=None
        ``LabeledKFold(cv)`` for an int, 5 for None; or any splitter that tests each
        labeled row once. scikit-learn's splitters are applied to the labeled rows.
    groups : array-like of shape (n_samples,), default=None
        Groups of rows that must not be split, such as copies of an image.
    method : {"predict", "predict_proba"}, default="predict"
        Method called on each fold's model.
    n_jobs : int or None, default=None
        Number of folds in parallel, as in scikit-learn.
    unlabeled : int, str or None, default=-1
        Value that marks unlabeled rows in y, besides ``None``, NaN and blank texts;
        ``None``: no other value.

    Returns
    -------
    predictions : ndarray of shape (n_samples,) or (n_samples, n_classes)
        Classes, or probabilities with a column for each class of y, sorted. Unlabeled
        rows, which every model was trained with, get -1 or NaN: use ``estimator.fit(X,
        y)`` to predict those. A class that a training part lacks has probability 0.

    Raises
    ------
    ValueError
        If the test parts do not contain each labeled row once, or ``method`` is
        invalid.

    See Also
    --------
    LabeledKFold : The folds.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.semi_supervised import LabelSpreading
    >>> from sklabel.model_selection import labeled_cross_val_predict
    >>> X, truth = load_iris(return_X_y=True)
    >>> y = truth.copy()
    >>> y[::2] = -1
    >>> found = labeled_cross_val_predict(LabelSpreading(), X, y)
    >>> found[:4].tolist()
    [-1, 0, -1, 0]
    """
    check_option(("predict", "predict_proba"), method=method)
    column = as_column(y)
    classes, codes = encode_labels(column, unlabeled=unlabeled)
    if cv is None or isinstance(cv, (int, np.integer)):
        cv = LabeledKFold(5 if cv is None else int(cv), unlabeled=unlabeled)
    elif not isinstance(cv, _LabeledSplitter):
        cv = LabeledSplit(cv, unlabeled=unlabeled)
    splits = list(cv.split(X, column, groups))
    tested = np.concatenate([test for _, test in splits])
    if not np.array_equal(np.sort(tested), np.flatnonzero(codes >= 0)):
        raise ValueError(
            f"cv={cv!r} does not test each labeled row once, so rows do not get one "
            "prediction each: use LabeledKFold."
        )
    y = decode_labels(codes, classes)  # -1 for unlabeled rows, whatever was the mark
    found = Parallel(n_jobs=n_jobs)(
        delayed(_predict_fold)(estimator, X, y, train, test, method, classes)
        for train, test in splits
    )
    if method == "predict":
        predicted = np.full(len(codes), -1)
        for (_, test), part in zip(splits, found, strict=True):
            predicted[test] = part
        return decode_labels(predicted, classes)
    p = np.full((len(codes), len(classes)), np.nan)
    for (_, test), part in zip(splits, found, strict=True):
        p[test] = part
    return p


def _predict_fold(estimator, X, y, train, test, method, classes):
    """Return a new model's predictions for a test part, as codes or columns."""
    model = fit_partly_labeled(
        clone(estimator), _safe_indexing(X, train), _safe_indexing(y, train)
    )
    found = np.asarray(getattr(model, method)(_safe_indexing(X, test)))
    code = {name: i for i, name in enumerate(classes.tolist())}
    if method == "predict":
        return np.array([code.get(name, -1) for name in found.tolist()])
    columns = [code[name] for name in np.asarray(model.classes_).tolist()]
    p = np.zeros((len(test), len(classes)))
    p[:, columns] = found
    return p
