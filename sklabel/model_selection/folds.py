"""Folds of the labeled rows; unlabeled rows always train."""

import numbers

import numpy as np
from sklearn.model_selection import (
    BaseCrossValidator,
    StratifiedGroupKFold,
    StratifiedKFold,
    StratifiedShuffleSplit,
    check_cv,
)
from sklearn.utils import _safe_indexing

from .._core.labels import encode_labels


def _length(X):
    return X.shape[0] if hasattr(X, "shape") else len(X)


def _check_folds(n_splits, codes):
    if len(codes) < n_splits:
        raise ValueError(
            f"n_splits={n_splits} is more than the number of labeled rows, "
            f"{len(codes)}. Use fewer folds or label more rows."
        )
    largest = np.bincount(codes).max()
    if largest < n_splits:
        raise ValueError(
            f"n_splits={n_splits} is more than the number of labeled rows of any "
            f"class, the largest of which has {largest}. Use fewer folds or label "
            "more rows of each class."
        )


class _LabeledSplitter(BaseCrossValidator):
    """Splits of the labeled rows by `_splitter(codes)`; unlabeled rows always train."""

    # whether a splitter of the user's folds the rows, which may look at X and groups
    _foreign = False

    # whether the rows of a group are kept together
    _keeps_groups = True

    def split(self, X, y=None, groups=None):
        """Yield the rows of each training and test part.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            The data.
        y : array-like of shape (n_samples,)
            Labels; ``-1``, ``None`` and NaN mark unlabeled rows.
        groups : array-like of shape (n_samples,), default=None
            Groups of rows that must not be split, for splitters that use them.

        Yields
        ------
        train : ndarray of shape (n_train,)
            Rows to train on, ascending: labeled rows and all unlabeled rows.
        test : ndarray of shape (n_test,)
            Rows to test on, all labeled.

        Raises
        ------
        ValueError
            If y is missing, has no labeled row, differs in length from X, or has too
            few labeled rows for the number of folds.
        """
        codes = self._codes(y)
        rows, rest = np.flatnonzero(codes >= 0), np.flatnonzero(codes < 0)
        if X is not None and _length(X) != len(codes):
            raise ValueError(
                "Found input variables with inconsistent numbers of samples: "
                f"X has {_length(X)} rows, y has {len(codes)}."
            )
        if groups is not None:
            groups = np.asarray(groups)
            if groups.shape != codes.shape:
                raise ValueError(
                    f"groups must have shape {codes.shape} as y has, got "
                    f"{groups.shape}."
                )
        inner = self._splitter(codes[rows], None if groups is None else groups[rows])
        if X is not None and self._foreign:
            X_labeled = _safe_indexing(X, rows)
        else:
            X_labeled = np.zeros((len(rows), 1))  # stands in: nobody looks at it
        if groups is None:
            for train, test in inner.split(X_labeled, codes[rows]):
                yield np.sort(np.concatenate([rows[train], rest])), rows[test]
            return
        for train, test in inner.split(X_labeled, codes[rows], groups[rows]):
            train, test = rows[train], rows[test]
            free = rest
            if self._keeps_groups:
                held_out = np.setdiff1d(groups[test], groups[train])
                free = rest[~np.isin(groups[rest], held_out)]
            yield np.sort(np.concatenate([train, free])), test

    def get_n_splits(self, X=None, y=None, groups=None):
        """Return the number of splits.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), default=None
            Not used.
        y : array-like of shape (n_samples,), default=None
            Not used.
        groups : array-like of shape (n_samples,), default=None
            Not used.

        Returns
        -------
        n_splits : int
        """
        return self.n_splits

    def _codes(self, y):
        if y is None:
            raise ValueError(
                f"{type(self).__name__} needs y to find the labeled rows, but y is "
                "None: pass y."
            )
        _, codes = encode_labels(y, unlabeled=self.unlabeled)
        if not (codes >= 0).any():
            raise ValueError(
                f"y has no labeled row among its {len(codes)} rows, so there is "
                "nothing to test on: label some rows."
            )
        return codes


class LabeledSplit(_LabeledSplitter):
    """Split the labeled rows by any splitter; unlabeled rows always train.

    scikit-learn's splitters treat -1 as a class: test parts then consist mostly of
    unlabeled rows, and every score is silently wrong. Here the given splitter splits
    the labeled rows only, and every training part also gets all unlabeled rows.

    Parameters
    ----------
    cv : int or splitter, default=5
        An int: the number of stratified folds of the labeled rows. A splitter
        (``RepeatedStratifiedKFold``, ``StratifiedGroupKFold``, ...) gets the labeled
        rows of X, their classes as integers, and their groups.
    unlabeled : int, str or None, default=-1
        Value that marks unlabeled rows in y, besides ``None`` and NaN; ``None``: no
        other value.

    See Also
    --------
    LabeledKFold : Stratified folds of the labeled rows.
    LabeledShuffleSplit : Repeated stratified random splits of the labeled rows.

    Notes
    -----
    With ``groups``, an unlabeled row is left out of a training part if its group is
    only in the test part: photographs of a held-out patient are not trained on.

    ``cross_val_predict`` rejects these splits, because they test the labeled rows only:
    use :func:`labeled_cross_val_predict`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GroupKFold
    >>> from sklabel.model_selection import LabeledSplit
    >>> y = np.array([0, 1, -1, 0, 1, -1])
    >>> patient = np.array([1, 1, 1, 2, 2, 2])
    >>> cv = LabeledSplit(GroupKFold(n_splits=2))
    >>> for train, test in cv.split(np.zeros((6, 1)), y, groups=patient):
    ...     print(train, test)
    [0 1 2] [3 4]
    [3 4 5] [0 1]
    """

    # metadata routing: groups given to cross_validate or a search arrive here
    __metadata_request__split = {"groups": True}

    def __init__(self, cv=5, *, unlabeled=-1):
        self.cv = cv
        self.unlabeled = unlabeled
        if not isinstance(cv, numbers.Integral) and not hasattr(cv, "get_n_splits"):
            raise TypeError(
                "cv must be a number of folds or a splitter of scikit-learn's kind, "
                f"got {cv!r}."
            )

    def get_n_splits(self, X=None, y=None, groups=None):
        """Return the number of splits.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), default=None
            Not used.
        y : array-like of shape (n_samples,), default=None
            Labels; needed by splitters whose number of splits depends on the data.
        groups : array-like of shape (n_samples,), default=None
            Groups; needed by splitters whose number of splits depends on them.

        Returns
        -------
        n_splits : int
        """
        if not self._foreign:
            return int(self.cv)
        if y is None:
            return self.cv.get_n_splits(X, y, groups)
        codes = self._codes(y)
        rows = np.flatnonzero(codes >= 0)
        if groups is not None:
            groups = np.asarray(groups)[rows]
        return self.cv.get_n_splits(np.zeros((len(rows), 1)), codes[rows], groups)

    @property
    def _foreign(self):
        return not isinstance(self.cv, numbers.Integral)

    def _splitter(self, codes, groups):
        if not self._foreign:
            return LabeledKFold(int(self.cv))._splitter(codes, groups)
        return check_cv(self.cv, codes, classifier=True)


class LabeledKFold(_LabeledSplitter):
    """Stratified folds of the labeled rows; unlabeled rows always train.

    scikit-learn's splitters treat -1 as a class: test parts then consist mostly of
    unlabeled rows, and every score is silently wrong. Here the test parts partition the
    labeled rows, each with about the same share of every class, and each training part
    has all other labeled rows and all unlabeled rows.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds, at least 2.
    shuffle : bool, default=False
        Whether to shuffle the labeled rows of each class before they are split.
    random_state : int, RandomState instance or None, default=None
        Seed of the shuffling; only with ``shuffle=True``.
    unlabeled : int, str or None, default=-1
        Value that marks unlabeled rows in y, besides ``None`` and NaN; ``None``: no
        other value.

    See Also
    --------
    LabeledShuffleSplit : Repeated stratified random splits of the labeled rows.
    LabeledSplit : Any splitter on the labeled rows.

    Notes
    -----
    Rows of a test part are not trained on, not even as unlabeled rows, so the score
    estimates that of new images.

    If a class has fewer labeled rows than folds, it is missing from some test parts,
    and scikit-learn warns.

    Rows of one group, such as copies of an image, are never in both parts of a split:
    with ``groups``, given to ``split``, ``cross_validate`` or the ``fit`` of a search,
    labeled groups are kept whole, by
    :class:`sklearn.model_selection.StratifiedGroupKFold`, and unlabeled rows of a
    tested group are left out of the training part. Groups of equal rows are
    ``np.unique(X, axis=0, return_inverse=True)[1]``.

    Examples
    --------
    >>> import numpy as np
    >>> from sklabel.model_selection import LabeledKFold
    >>> y = np.array([0, 1, -1, 0, 1, -1])
    >>> for train, test in LabeledKFold(n_splits=2).split(np.zeros((6, 1)), y):
    ...     print(train, test)
    [2 3 4 5] [0 1]
    [0 1 2 5] [3 4]
    """

    # metadata routing: groups given to cross_validate or a search arrive here
    __metadata_request__split = {"groups": True}

    def __init__(self, n_splits=5, *, shuffle=False, random_state=None, unlabeled=-1):
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state
        self.unlabeled = unlabeled
        self._folds()  # as scikit-learn's splitters do: wrong parameters fail here

    def _folds(self, kind=StratifiedKFold):
        return kind(self.n_splits, shuffle=self.shuffle, random_state=self.random_state)

    def _splitter(self, codes, groups):
        _check_folds(self.n_splits, codes)
        if groups is None:
            return self._folds()
        n_groups = len(np.unique(groups))
        if n_groups < self.n_splits:
            raise ValueError(
                f"n_splits={self.n_splits} is more than the number of groups of "
                f"labeled rows, {n_groups}. Use fewer folds or label more groups."
            )
        return self._folds(StratifiedGroupKFold)


class LabeledShuffleSplit(_LabeledSplitter):
    """Stratified random splits of the labeled rows; unlabeled rows always train.

    Like :class:`LabeledKFold`, with independent random splits instead of a partition:
    for many repetitions, or for test parts of a chosen size.

    Parameters
    ----------
    n_splits : int, default=10
        Number of splits, at least 1.
    test_size : float or int, default=None
        Share (0 to 1) or number of the LABELED rows in the test part; ``None``: the
        complement of ``train_size``, or 0.1.
    train_size : float or int, default=None
        Share (0 to 1) or number of the LABELED rows in the training part; ``None``: the
        complement of ``test_size``.
    random_state : int, RandomState instance or None, default=None
        Seed of the splits.
    unlabeled : int, str or None, default=-1
        Value that marks unlabeled rows in y, besides ``None`` and NaN; ``None``: no
        other value.

    See Also
    --------
    LabeledKFold : Stratified folds of the labeled rows.
    LabeledSplit : Any splitter on the labeled rows, with groups.

    Examples
    --------
    >>> import numpy as np
    >>> from sklabel.model_selection import LabeledShuffleSplit
    >>> y = np.array([0, 1, -1, 0, 1, -1])
    >>> cv = LabeledShuffleSplit(n_splits=1, test_size=0.5, random_state=0)
    >>> train, test = next(cv.split(np.zeros((6, 1)), y))
    >>> bool(np.isin([2, 5], train).all()), sorted(y[test].tolist())
    (True, [0, 1])
    """

    def __init__(
        self,
        n_splits=10,
        *,
        test_size=None,
        train_size=None,
        random_state=None,
        unlabeled=-1,
    ):
        self.n_splits = n_splits
        self.test_size = test_size
        self.train_size = train_size
        self.random_state = random_state
        self.unlabeled = unlabeled

    _keeps_groups = False  # scikit-learn has no such split, and warns

    def _splitter(self, codes, groups):
        return StratifiedShuffleSplit(
            self.n_splits,
            test_size=self.test_size,
            train_size=self.train_size,
            random_state=self.random_state,
        )
