"""The roles of selectors: candidates, choice and fitted attributes."""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    _num_samples,
    check_consistent_length,
    check_is_fitted,
)

from ...neighbors import kneighbors
from ..callbacks import CallbackSupportMixin, fitting
from ..columns import holds_images, image_column
from ..inputs import check_samples, check_vectors, unpacked
from ..labels import check_labels, encode_labels, is_labeled
from ..nested import fit_partly_labeled, seeded_clone
from ..parameters import (
    KW_ONLY,
    Count,
    Parameters,
    ProbabilisticClassifier,
    RandomState,
)
from ..wording import n_of


@dataclass
class Pool:
    """The rows of a fit: labeled rows, and candidates.

    Parameters
    ----------
    given : array-like of length n
        X as `fit` got it.
    X : sequence of length n
        Input of the method: vectors, Samples, or input of a classifier.
    space : ndarray of shape (n, D) or None
        Vectors in which the nearest chosen row of each row is found; None (images,
        paths): there are no ``assignments_``. A method may replace them.
    y : array-like of shape (n,) or None
    labeled : ndarray of shape (n,), dtype bool
    n_samples : int
        Rows to choose.
    """

    given: Any
    X: Any
    space: np.ndarray | None
    y: Any
    labeled: np.ndarray
    n_samples: int

    def __len__(self):
        return len(self.labeled)

    def nothing(self):
        """Return an empty choice, and the scores of rows that are not scored."""
        return np.empty(0, np.int64), np.full(len(self), -np.inf)

    def highest(self, scores):
        """Return the rows of highest score, ties by lower row number."""
        return np.argsort(-scores, kind="stable")[: self.n_samples]

    def candidates(self, unreadable):
        """Return the candidates: rows that are neither labeled nor unreadable.

        Parameters
        ----------
        unreadable : ndarray of shape (n,), dtype bool
            Files that cannot be read, which have no probabilities.

        Returns
        -------
        rows : ndarray of int

        Raises
        ------
        ValueError
            If there are fewer rows than will be chosen.
        """
        rows = np.flatnonzero(~self.labeled & ~unreadable)
        if len(rows) < self.n_samples:
            raise ValueError(
                f"n_samples={self.n_samples} rows are requested, but "
                f"{(unreadable & ~self.labeled).sum()} of those without a label cannot "
                f"be read or predicted (NaN), which leaves {len(rows)} unlabeled rows: "
                "lower n_samples, or replace the files that cannot be read."
            )
        return rows


class SelectionRole(Parameters, CallbackSupportMixin, BaseEstimator, abstract=True):
    """Choose rows for a person to label.

    A selector defines ``_choose(pool)``, which returns the chosen rows in labeling
    order, and the score of every row; higher is more wanted.

    Parameters
    ----------
    n_samples : int, float or None
        Number of rows to choose, >= 1; a float in (0, 1) is a share of the unlabeled
        rows (at least one row). None: 40 or a tenth of the unlabeled rows, rounded up,
        whichever is smaller; 0 if every row is labeled.
    device : str or torch.device
        "auto": CUDA, then MPS, then CPU.
    verbose : int
        1: a progress bar.

    Attributes
    ----------
    support_ : ndarray of shape (n_rows,), dtype bool
        True for the chosen rows.
    assignments_ : ndarray of shape (n_rows,)
        Position in ``sample_indices_`` of the nearest chosen row. Only if X holds
        vectors.
    n_features_in_ : int
        Number of features seen in ``fit``. Absent for paths.
    feature_names_in_ : ndarray of shape (``n_features_in_``,)
        Names of the features, if X has names that are all strings.
    """

    @fitting
    def fit(self, X, y=None):
        """Choose rows of X.

        Parameters
        ----------
        X : array-like
            Vectors ``(n_rows, n_features)``. Selectors with a classifier take its
            input; those that train a network also take images ``(n_rows, h, w)``,
            ``(n_rows, h, w, c)`` or ``(n_rows, c, h, w)`` and paths of image files.
        y : array-like of shape (n_rows,), default=None
            Labels so far; -1, None or NaN for unlabeled rows. Labeled rows are never
            chosen. None: no row is labeled yet.

        Returns
        -------
        self : estimator
        """
        pool = self._pool(X, y)
        return self._set_selection(pool, *self._choose(pool))

    def fit_select(self, X, y=None, **fit_params):
        """Fit and return the rows to label.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features)
            Vectors.
        y : array-like of shape (n_rows,), default=None
            Labels so far; -1, None or NaN for unlabeled rows. None: no row is labeled
            yet.
        **fit_params : dict
            Further arguments of ``fit``.

        Returns
        -------
        sample_indices : ndarray of shape (n_samples,)
            ``sample_indices_``: row numbers in labeling order.
        """
        return self.fit(X, y, **fit_params).sample_indices_

    def _choose(self, pool):
        """Return the chosen rows in labeling order, and the score of every row."""
        raise NotImplementedError

    def _check_rows(self, X):
        """Return X as the method takes it, and its vectors; None: it has none."""
        X = self._check_vectors(X)
        return X, X

    def _check_vectors(self, X):
        """Return X as float32 vectors, C-contiguous; a memory map is not copied."""
        X = unpacked(X)
        shape = getattr(X, "shape", ())
        paths = len(shape) < 3 and holds_images(X)
        if paths or len(shape) > 2:
            given = "paths of images" if paths else f"an array of shape {shape}"
            raise ValueError(
                f"{type(self).__name__} selects among vectors (found array with dim "
                f"{len(shape)}; expected <= 2), but X is {given}: embed the images "
                "first, e.g. make_pipeline(SimCLRTransformer(), "
                f"{type(self).__name__}()).fit(X)."
            )
        return check_vectors(self, X, True, dtype=np.float32, order="C")

    def _pool(self, X, y):
        """Check X, and find which rows are labeled already and how many to choose.

        Raises
        ------
        ValueError
            If y has another length than X or more rows are requested than there are
            candidates.
        """
        rows, vectors = self._check_rows(X)
        labeled = self._check_labels(rows, y)
        n_rows, n_samples = len(labeled), self.n_samples
        n_candidates = n_rows - int(labeled.sum())
        if n_samples is None:
            n_samples = min(40, math.ceil(n_candidates / 10))
        elif not isinstance(n_samples, Integral):
            n_samples = max(1, int(n_samples * n_candidates))
        if n_samples > n_candidates:
            raise ValueError(
                f"n_samples={n_samples} rows are requested, but only {n_candidates} of "
                f"the {n_rows} rows are unlabeled: lower n_samples, or mark rows that "
                "may be chosen by -1 in y."
            )
        return Pool(X, rows, vectors, y, labeled, int(n_samples))

    def _check_labels(self, rows, y):
        """Return which rows cannot be chosen because they are labeled."""
        if y is None:
            return np.zeros(_num_samples(rows), dtype=bool)
        check_consistent_length(rows, y)
        return is_labeled(y)

    def _set_selection(self, pool, chosen, scores):
        """Set the fitted attributes of a choice and return the selector.

        Parameters
        ----------
        pool : Pool
        chosen : array-like of int
            Rows in labeling order.
        scores : ndarray of shape (n_rows,)
            Higher is more wanted.
        """
        chosen = np.asarray(chosen, dtype=np.int64)
        self.sample_indices_ = chosen
        self.scores_ = scores
        self.support_ = np.zeros(len(scores), dtype=bool)
        self.support_[chosen] = True
        if pool.space is None:
            vars(self).pop("assignments_", None)
            return self
        self.assignments_ = np.full(len(scores), -1, dtype=np.int64)
        if len(chosen):
            _, nearest = kneighbors(
                pool.space[chosen],
                1,
                queries=pool.space,
                method="exact",
                device=getattr(self, "device", "cpu"),
            )
            self.assignments_[:] = nearest[:, 0]
            # Among copies of one row the nearest is ambiguous, but not for these.
            self.assignments_[chosen] = np.arange(len(chosen))
        return self


class AnyRowsMixin:
    """Selectors that do not read X: images and paths are only counted."""

    def _check_rows(self, X):
        X = unpacked(X)
        column = image_column(X)
        if column is not None:
            return column, None
        if len(getattr(X, "shape", ())) > 2:
            return check_samples(self, X, True), None
        return super()._check_rows(X)


class FitsClassifierMixin:
    """Selectors with a ``classifier``: fit it, or use a frozen one as is."""

    def _fit_classifier(self, X, y, random, again=False, classifier=None):
        """Return the classifier, fitted unless it is frozen.

        Parameters
        ----------
        X : array-like of length n_rows
        y : array-like of shape (n_rows,) or None
        random : RandomState
            Source of seeds for a classifier without one.
        again : bool
            Whether to fit a copy of a frozen classifier on these labels, with its
            settings.
        classifier : estimator or None
            Classifier to use instead of the selector's own.

        Raises
        ------
        ValueError
            If it must be fitted and no row is labeled.
        """
        classifier = self.classifier if classifier is None else classifier
        if isinstance(classifier, FrozenEstimator):
            check_is_fitted(classifier)
            if not again:
                return classifier
            while isinstance(classifier, FrozenEstimator):
                classifier = classifier.estimator
        if y is None or not is_labeled(y).any():
            raise ValueError(
                f"{type(self).__name__} needs labels to fit its classifier: pass y "
                "with some labels (USLSelector can choose the first rows), or a fitted "
                "classifier as FrozenEstimator(classifier)."
            )
        if classifier is None:
            return fit_partly_labeled(LogisticRegression(max_iter=1000), X, y)
        return fit_partly_labeled(seeded_clone(classifier, random), X, y)


class ClassifierSelectionRole(FitsClassifierMixin, SelectionRole, abstract=True):
    """Choose rows by what a classifier predicts for them.

    A selector defines ``_ask(pool, random)``, which fits the classifier and returns the
    result of `_choose`; it is called if there is a row to choose.

    Parameters
    ----------
    classifier : estimator with predict_proba or None
        Cloned and fitted, or used as is in a :class:`sklearn.frozen.FrozenEstimator`. A
        classifier that learns from unlabeled rows gets all rows, any other the labeled
        ones. None: logistic regression, for vectors.
    random_state : int, RandomState instance or None
        Seed of the classifier, if it has no ``random_state`` of its own.
    """

    _: KW_ONLY
    classifier: ProbabilisticClassifier | None = None
    random_state: RandomState = None

    def _choose(self, pool):
        self._reset(pool)
        if not pool.n_samples:
            return pool.nothing()
        return self._ask(pool, check_random_state(self.random_state))

    def _reset(self, pool):
        """Forget the classifier of an earlier fit."""
        vars(self).pop("classifier_", None)

    def _ask(self, pool, random):
        raise NotImplementedError

    def _check_rows(self, X):
        """Return X for the classifier, and as float32 vectors if it holds any."""
        for name in ("n_features_in_", "feature_names_in_"):
            vars(self).pop(name, None)  # paths set none
        if self._asked():  # the default classifier takes vectors only
            X = unpacked(X)
            if holds_images(X):
                return X, None
            if len(getattr(X, "shape", None) or np.shape(X)) > 2:
                check_samples(self, X, True)
                return X, None
        vectors = self._check_vectors(X)
        # A frame has names that a frozen classifier looks for, uint8 are pixels.
        as_given = hasattr(X, "columns") or getattr(X, "dtype", None) == np.uint8
        return (X if as_given else vectors), vectors

    def _asked(self):
        """Return the given classifiers."""
        return [] if self.classifier is None else [self.classifier]


class NetworkSelectionRole(SelectionRole, abstract=True):
    """Choose rows by a network that the selector itself trains: a `Learner`."""

    def _check_rows(self, X):
        samples = self._check_X(X, reset=True)
        return samples, samples.source if len(samples.sample_shape) == 1 else None

    def _set_selection(self, pool, chosen, scores):
        super()._set_selection(pool, chosen, scores)
        if pool.space is not None:
            self.assignments_[pool.X.bad] = -1
        return self

    def _encode_y(self, y, samples):
        """Set ``classes_``; return class codes, and where the classes before stand."""
        if y is None or not is_labeled(y).any():
            given = (
                "the target y is None" if y is None else "all rows of y are unlabeled"
            )
            raise ValueError(
                f"{type(self).__name__} trains a network on labeled rows: it requires "
                f"y to be passed, but {given}: pass y with some labels (USLSelector "
                "can choose the first rows)."
            )
        column = check_labels(y, n_samples=len(samples))
        labels = [encode_labels(column)[0]]
        if self._continued is not None:
            labels.append(self.classes_)
            if len({isinstance(of.tolist()[0], str) for of in labels}) > 1:
                raise ValueError(
                    f"warm_start=True continues on the classes {self.classes_}, but "
                    f"y has {labels[0]}: use warm_start=False."
                )
        classes, codes = encode_labels(
            column, classes=np.unique(np.concatenate(labels))
        )
        n_read = len(np.unique(codes[(codes >= 0) & ~samples.bad]))
        if n_read < 2:
            raise ValueError(
                "The labeled image files that can be read are of "
                f"{n_of(n_read, 'class')}, but at least 2 are needed: label other "
                "rows, or replace unreadable files."
            )
        self.classes_ = classes
        return codes, np.searchsorted(classes, labels[-1])


class PredictedLossRole(NetworkSelectionRole, abstract=True):
    """Choose the rows with the highest estimated loss of a network.

    A selector defines ``_train(samples, codes, places, rows, random)``, which trains on
    the labeled rows and returns the scores of some others.

    Parameters
    ----------
    n_candidates : int or None
        Number of unlabeled rows to score, drawn at random; at least ``n_samples``.
        None: all.
    augment : "auto", nn.Module or None
        Random views; "auto": :class:`sklabel.augment.Weak` for images,
        :class:`sklabel.augment.VectorNoise` for vectors. Turn off flips for digits:
        ``Weak(flip=0)``.
    schedule
        Published: one drop, after 80 %, ``functools.partial(sklabel.optim.step_decay,
        milestones=(0.8,))``.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Classes, sorted; with ``warm_start`` those of earlier fits too.
    """

    _: KW_ONLY
    n_candidates: Count | None = None

    def _choose(self, pool):
        samples, (chosen, scores) = pool.X, pool.nothing()
        if not pool.n_samples:
            self._train_nothing(samples)
            return chosen, scores
        codes, places = self._encode_y(pool.y, samples)
        rows = pool.candidates(samples.bad)
        with self._seeded() as seed:
            random = np.random.RandomState(seed)
            if self.n_candidates is not None and self.n_candidates < len(rows):
                size = max(self.n_candidates, pool.n_samples)
                rows = random.choice(rows, size, replace=False)
            scores[rows] = self._train(samples, codes, places, rows, random)
        return self._order(pool, scores), scores

    def _order(self, pool, scores):
        """Return the rows to choose, in labeling order."""
        return pool.highest(scores)

    def _train(self, samples, codes, places, rows, random):
        """Train the network, and return the scores of the rows that are looked at.

        Parameters
        ----------
        samples : Samples
        codes : ndarray of int of shape (n_rows,)
            Class of each row, -1 for an unlabeled one.
        places : ndarray of int
            Positions of the classes of the last fit among those of this one.
        rows : ndarray of int
        random : RandomState
        """
        raise NotImplementedError

    def _train_nothing(self, samples):
        """Forget an earlier training; a warm start keeps it."""
        if not self.warm_start:
            self._forget("net_", "classes_", "layers_", "n_cycles_", "n_iter_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def clipped(p):
    """Return p in double precision, without the tiny negatives of some classifiers."""
    return np.clip(np.asarray(p, dtype=np.float64), 0, 1)
