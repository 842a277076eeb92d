"""Folds and scorers for partly labeled y, and scorers that need no y at all."""

import numbers

import numpy as np
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score, get_scorer, silhouette_score
from sklearn.model_selection import (
    BaseCrossValidator,
    StratifiedKFold,
    StratifiedShuffleSplit,
    check_cv,
)
from sklearn.utils import _safe_indexing
from sklearn.utils.metadata_routing import get_routing_for_object

from ._core.labels import encode_labels
from ._core.learner import Learner
from ._core.nested import encoded, inner_estimator, last_step
from .neighbors import kneighbors


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

    def split(self, X, y=None, groups=None):
        """Yield the rows of each training and test part.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            The data.
        y : array-like of shape (n_samples,)
            Labels; ``-1``, ``None`` and NaN mark unlabeled rows.
        groups : array-like of shape (n_samples,), default=None
            Groups of rows that must not be torn apart, for splitters that use them.

        Yields
        ------
        train : ndarray of shape (n_train,)
            Rows to train on, in order: labeled ones and all unlabeled ones.
        test : ndarray of shape (n_test,)
            Rows to test on, all labeled.

        Raises
        ------
        ValueError
            If y is missing, has no labeled row, has another length than X, or too
            few labeled rows for the number of folds.
        """
        codes = self._codes(y)
        rows, rest = np.flatnonzero(codes >= 0), np.flatnonzero(codes < 0)
        if X is not None and _length(X) != len(codes):
            raise ValueError(
                "Found input variables with inconsistent numbers of samples: "
                f"X has {_length(X)} rows, y has {len(codes)}."
            )
        inner = self._splitter(codes[rows])
        if X is not None and self._foreign:
            X_labeled = _safe_indexing(X, rows)
        else:
            X_labeled = np.zeros((len(rows), 1))  # stands in: nobody looks at it
        if groups is None:
            for train, test in inner.split(X_labeled, codes[rows]):
                yield np.sort(np.concatenate([rows[train], rest])), rows[test]
            return
        groups = np.asarray(groups)
        if groups.shape != codes.shape:
            raise ValueError(
                f"groups must have shape {codes.shape} as y has, got {groups.shape}."
            )
        for train, test in inner.split(X_labeled, codes[rows], groups[rows]):
            train, test = rows[train], rows[test]
            free = rest
            if self._foreign:
                held_out = np.setdiff1d(groups[test], groups[train])
                free = rest[~np.isin(groups[rest], held_out)]
            yield np.sort(np.concatenate([train, free])), test

    def _codes(self, y):
        if y is None:
            raise ValueError(
                f"{type(self).__name__} needs y to tell labeled rows from unlabeled "
                "ones, but y is None."
            )
        _, codes = encode_labels(y, unlabeled=self.unlabeled)
        if not (codes >= 0).any():
            raise ValueError(
                f"y has no labeled row among its {len(codes)} rows: there is nothing "
                "to test on."
            )
        return codes


class LabeledSplit(_LabeledSplitter):
    """Let any splitter fold the labeled rows; unlabeled rows always train.

    scikit-learn's splitters count the mark -1 as one more class: test parts then
    consist mostly of unlabeled rows, and every score is silently wrong. Here the
    given splitter sees the labeled rows alone, and every training part receives all
    unlabeled rows on top.

    Parameters
    ----------
    cv : int or splitter, default=5
        An int means that many stratified folds of the labeled rows. A splitter
        (``RepeatedStratifiedKFold``, ``StratifiedGroupKFold``, ...) is handed the
        labeled rows of X, their classes as integers, and their groups.
    unlabeled : int, str or None, default=-1
        What marks an unlabeled row in y beside ``None`` and NaN; ``None``: nothing
        else.

    See Also
    --------
    LabeledKFold : Stratified folds of the labeled rows.
    LabeledShuffleSplit : Repeated stratified random splits of the labeled rows.

    Notes
    -----
    With ``groups``, an unlabeled row is left out of a training part where its group
    is only in the test part: photographs of a patient who is held out stay out.

    ``cross_val_predict`` refuses these splits, as they test the labeled rows only.

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

    def _splitter(self, codes):
        if not self._foreign:
            _check_folds(self.cv, codes)
        return check_cv(self.cv, codes, classifier=True)


class LabeledKFold(_LabeledSplitter):
    """Fold the labeled rows, stratified; every unlabeled row is always trained on.

    scikit-learn's splitters count the mark -1 as one more class: test parts then
    consist mostly of unlabeled rows, and every score is silently wrong. Here the
    test parts partition the labeled rows, each with about the same share of every
    class, and each training part holds all other labeled rows and all unlabeled
    ones.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds, at least 2.
    shuffle : bool, default=False
        Whether to shuffle the labeled rows of each class before they are split.
    random_state : int, RandomState instance or None, default=None
        Seed of the shuffling; only with ``shuffle=True``.
    unlabeled : int, str or None, default=-1
        What marks an unlabeled row in y beside ``None`` and NaN; ``None``: nothing
        else.

    See Also
    --------
    LabeledShuffleSplit : Repeated stratified random splits of the labeled rows.
    LabeledSplit : Any splitter on the labeled rows, with groups.

    Notes
    -----
    Rows of a test part are not trained on, not even as unlabeled ones: the score is
    that of new images.

    A class with fewer labeled rows than folds is missing from some test parts and
    gives scikit-learn's warning. ``groups`` are not used, which warns too; groups
    are the business of ``LabeledSplit(StratifiedGroupKFold())``.

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

    def __init__(self, n_splits=5, *, shuffle=False, random_state=None, unlabeled=-1):
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state
        self.unlabeled = unlabeled
        self._folds()  # as scikit-learn's splitters do: wrong parameters fail here

    def _folds(self):
        return StratifiedKFold(
            self.n_splits, shuffle=self.shuffle, random_state=self.random_state
        )

    def get_n_splits(self, X=None, y=None, groups=None):
        """Return the number of folds.

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

    def _splitter(self, codes):
        _check_folds(self.n_splits, codes)
        return self._folds()


class LabeledShuffleSplit(_LabeledSplitter):
    """Split the labeled rows at random, stratified; unlabeled rows always train.

    As :class:`LabeledKFold`, with independent random splits in place of a partition:
    for many repetitions, or for test parts of a chosen size.

    Parameters
    ----------
    n_splits : int, default=10
        Number of splits, at least 1.
    test_size : float or int, default=None
        Share (0 to 1) or number of the LABELED rows in the test part; ``None``: what
        ``train_size`` leaves, or 0.1.
    train_size : float or int, default=None
        Share (0 to 1) or number of the LABELED rows in the training part; ``None``:
        what ``test_size`` leaves.
    random_state : int, RandomState instance or None, default=None
        Seed of the splits.
    unlabeled : int, str or None, default=-1
        What marks an unlabeled row in y beside ``None`` and NaN; ``None``: nothing
        else.

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

    def _splitter(self, codes):
        return StratifiedShuffleSplit(
            self.n_splits,
            test_size=self.test_size,
            train_size=self.train_size,
            random_state=self.random_state,
        )


class _LabeledScorer:
    """A scorer that looks at labeled rows only; made by `labeled_scorer`."""

    def __init__(self, scorer, unlabeled):
        self._scorer = scorer
        self._unlabeled = unlabeled

    def __call__(self, estimator, X, y, **params):
        classes, codes = encode_labels(y, unlabeled=self._unlabeled)
        rows = np.flatnonzero(codes >= 0)
        if len(rows) == 0:
            raise ValueError(
                f"y has no labeled row among its {len(codes)} rows: there is nothing "
                "to score. LabeledKFold makes test parts that are labeled."
            )
        params = {
            name: _safe_indexing(value, rows) if _per_row(value, len(codes)) else value
            for name, value in params.items()
        }
        return self._scorer(
            estimator, _safe_indexing(X, rows), classes[codes[rows]], **params
        )

    def __repr__(self):
        return f"labeled_scorer({self._scorer!r})"

    def set_score_request(self, **kwargs):
        """Return a scorer that asks for metadata, as scikit-learn's scorers do."""
        return _LabeledScorer(self._scorer.set_score_request(**kwargs), self._unlabeled)

    def get_metadata_routing(self):
        """Return what metadata the wrapped scorer asks for."""
        return get_routing_for_object(self._scorer)


def labeled_scorer(scoring="accuracy", *, unlabeled=-1):
    """Return a scorer that looks at labeled rows only.

    Parameters
    ----------
    scoring : str or callable, default="accuracy"
        A name of scikit-learn's (``sklearn.metrics.get_scorer_names()``) or a
        callable ``scorer(estimator, X, y)``.
    unlabeled : int, str or None, default=-1
        What marks an unlabeled row in y beside ``None`` and NaN; ``None``: nothing
        else.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y, **params)``; to be given as ``scoring=`` to
        ``cross_val_score``, ``GridSearchCV`` and the like. Parameters with one entry
        per row (``sample_weight``) are cut to the labeled rows.

    Raises
    ------
    ValueError
        If ``scoring`` is no name that scikit-learn knows. The scorer raises it where
        y has no labeled row.
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


labeled_accuracy = labeled_scorer("accuracy")


class _ClusteringScorer:
    """Scorer of `clustering_scorer`."""

    def __init__(self, figure, embedder, n_neighbors):
        self.figure = figure
        self.embedder = embedder
        self.n_neighbors = n_neighbors

    def __call__(self, estimator, X, y=None):
        labels = np.asarray(estimator.predict(X))
        good = labels >= 0  # files that could be read
        if not good.any():
            raise ValueError("X has no row with a cluster to score.")
        if self.figure == "confidence":
            return float(_confidence(estimator, X)[good].mean())
        if len(np.unique(labels[good])) < 2:
            return 0.0
        if self.figure == "silhouette" and labels.ndim > 1:
            raise ValueError(
                f"{type(estimator).__name__} gives each image a map of clusters, and "
                'pixels have no "silhouette": score another figure.'
            )
        if self.figure == "stability":
            other = clone(estimator)
            last = last_step(other)
            name, parameters = type(last).__name__, last.get_params(deep=False)
            if last is last_step(estimator):  # clone does not copy what is frozen
                raise ValueError(
                    f'"stability" trains a second {name}, but this one is frozen: '
                    "score "
                    "it without the FrozenEstimator around it."
                )
            if "random_state" not in parameters:
                raise ValueError(
                    f'{name} has no random_state, and so no "stability": score its '
                    '"neighbor_agreement" or "silhouette".'
                )
            seed = parameters["random_state"]
            # any other seed; None draws one by itself
            last.set_params(random_state=1 if seed is None or seed != 1 else 2)
            found = np.asarray(other.fit(X).predict(X))[good]
            return float(adjusted_rand_score(labels[good], found))
        shares = np.unique(labels[good], return_counts=True)[1] / good.sum()
        chance = np.square(shares).sum()
        if labels.ndim > 1:
            # beside each other in an image that could be read
            same = [
                np.diff(labels[good.all((1, 2))], axis=axis) == 0 for axis in (1, 2)
            ]
            same = np.concatenate([part.ravel() for part in same])
            if len(same) == 0:
                raise ValueError(
                    "Maps of one pixel have no pixels side by side to score."
                )
            return float((same.mean() - chance) / (1 - chance))
        labels = labels[good]
        Z = self._embed(estimator, X)[good]
        if self.figure == "silhouette":
            rows = np.random.default_rng(0).permutation(len(Z))[:5000]
            if len(np.unique(labels[rows])) in (1, len(rows)):
                return 0.0
            return float(silhouette_score(Z[rows], labels[rows]))
        k = min(self.n_neighbors, len(Z) - 1)
        _, indices = kneighbors(Z, k, include_self=False, random_state=0)
        agreement = (labels[indices] == labels[:, None]).mean()
        return float((agreement - chance) / (1 - chance))

    def _embed(self, estimator, X):
        if self.embedder is not None:
            return np.asarray(self.embedder.transform(X))
        estimator, X = inner_estimator(estimator, X)
        # the transform of others, such as KMeans, gives distances to its centers
        if isinstance(estimator, Learner):
            for embedder in (getattr(estimator, "embedder_", None), estimator):
                if hasattr(embedder, "transform"):
                    return np.asarray(embedder.transform(X))
            return encoded(estimator, X)
        X = X.toarray() if issparse(X) else X
        return np.asarray(X, dtype=np.float32).reshape(_length(X), -1)

    def __repr__(self):
        return f"clustering_scorer({self.figure!r})"


def _confidence(estimator, X):
    """Return how sure a clusterer is of each row, or of each pixel."""
    if hasattr(estimator, "predict_proba"):
        return np.asarray(estimator.predict_proba(X)).max(1)
    clusterer, rows = inner_estimator(estimator, X)
    if isinstance(clusterer, Learner):
        return clusterer.score_samples(rows)
    raise ValueError(
        f'{type(clusterer).__name__} has no predict_proba, and so no "confidence": '
        'score its "neighbor_agreement" or "silhouette".'
    )


def clustering_scorer(figure="neighbor_agreement", *, embedder=None, n_neighbors=20):
    """Return a scorer of clusterers that needs no labels.

    Parameters
    ----------
    figure : str, default="neighbor_agreement"
        What is scored, the higher the better:

        - "neighbor_agreement": how often a row and its nearest neighbors in the
          embedding share a cluster, 0 as by chance to 1 always; so that few clusters
          are no advantage. Of maps: how often pixels side by side do;
        - "silhouette": of the clusters in the embedding, -1 to 1, from at most 5000
          rows;
        - "stability": how well a second training with another seed, on the rows to be
          scored, finds the same clusters: adjusted Rand index, 0 as by chance to 1.
          Costs a training, so the clusterer must not be frozen, and needs a
          ``random_state``;
        - "confidence": mean probability of the rows' clusters, or the mean of
          ``score_samples``. Of little worth alone: it grows as clusters become fewer.

        Where all rows are in one cluster, all but "confidence" are 0.
    embedder : fitted transformer or None, default=None
        Gives the embedding. None: that of sklabel's clusterers (their ``embedder_``,
        ``transform`` or ``encoder_``), and X as it is for others. Give one where
        clusterers with different embeddings compete.
    n_neighbors : int, default=20
        Neighbors of "neighbor_agreement".

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y=None)``; to be given as ``scoring=`` to
        ``GridSearchCV`` and the like.

    Raises
    ------
    ValueError
        For an unknown ``figure``, and when called: for one that the clusterer does not
        have.

    Notes
    -----
    None of these figures knows what you want to tell apart. Of settings that score
    alike, take the one with most clusters: whole kinds that share a cluster cost them
    little. Look at the images of each cluster before you believe it.

    Examples
    --------
    >>> from sklearn.cluster import KMeans
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.model_selection import clustering_scorer
    >>> X = load_digits().data[:300]
    >>> model = KMeans(10, n_init=1, random_state=0).fit(X)
    >>> 0 < clustering_scorer()(model, X) < 1
    True
    """
    figures = ("neighbor_agreement", "silhouette", "stability", "confidence")
    if figure not in figures:
        raise ValueError(f"figure={figure!r} is none of {figures}.")
    return _ClusteringScorer(figure, embedder, n_neighbors)
