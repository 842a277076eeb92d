"""The role of the selectors: which rows may be chosen, and how a choice is kept."""

import math
from numbers import Integral

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import (
    _num_samples,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from ...neighbors import kneighbors
from ..inputs import _as_paths, check_samples
from ..labels import check_labels, encode_labels, is_labeled
from ..nested import fit_partly
from ..parameters import Parameters


class SelectionRole(Parameters, abstract=True):
    """Verb of the selectors: choose rows for a person to label.

    ``fit(X, y)`` of a selector checks with `_check_vectors` and `_candidates`,
    computes, and ends in `_set_selection`.

    Parameters
    ----------
    n_samples : int, float or None
        Number of rows to choose, >= 1; a float in (0, 1) is a share of the unlabeled
        rows (at least one row). None: 40 or a tenth of the unlabeled rows, rounded up,
        whichever is less; 0 where every row is labeled.
    device : str or torch.device
        "auto": CUDA, then MPS, then CPU.
    verbose : int
        1: a progress bar.

    Attributes
    ----------
    support_ : ndarray of shape (n_rows,), dtype bool
        True for the chosen rows.
    assignments_ : ndarray of shape (n_rows,)
        Position in ``sample_indices_`` of the nearest chosen row. Only where X holds
        vectors.
    n_features_in_ : int
        Number of features seen in ``fit``. Not for paths.
    feature_names_in_ : ndarray of shape (``n_features_in_``,)
        Names of the features, where X has any that are all strings.
    """

    def fit_select(self, X, y=None, **fit_params):
        """Fit and return the rows to label.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features)
            Vectors.
        y : array-like of shape (n_rows,), default=None
            Labels known so far, -1 (None, NaN) where there is none. None: no row is
            labeled yet.
        **fit_params : dict
            Further arguments of ``fit``.

        Returns
        -------
        sample_indices : ndarray of shape (n_samples,)
            ``sample_indices_``: row numbers in the order of asking.
        """
        return self.fit(X, y, **fit_params).sample_indices_

    def _check_vectors(self, X):
        """Return X as float32 vectors, C-contiguous; a memory map is not copied."""
        shape = getattr(X, "shape", ())
        paths = len(shape) < 3 and _as_paths(X) is not None
        if paths or len(shape) > 2:
            given = "paths of images" if paths else f"an array of shape {shape}"
            raise ValueError(
                f"{type(self).__name__} selects among vectors (found array with dim "
                f"{len(shape)}; expected <= 2), but X is {given}: embed the images "
                "first, e.g. make_pipeline(SimCLRTransformer(), "
                f"{type(self).__name__}()).fit(X)."
            )
        return validate_data(self, X, reset=True, dtype=np.float32, order="C")

    def _candidates(self, X, y, n_samples):
        """Resolve how many rows to choose, and which rows are labeled already.

        Parameters
        ----------
        X : sequence of length n_rows
        y : array-like of shape (n_rows,) or None
        n_samples : int, float in (0, 1) or None
            Number of rows, share of the candidates (at least 1 row), or None: 40 or a
            tenth of the candidates, rounded up, whichever is less.

        Returns
        -------
        n_samples : int
        labeled : ndarray of shape (n_rows,), dtype bool
            Rows with a label; the others are the candidates.

        Raises
        ------
        ValueError
            If y has another length than X or more rows are asked than there are
            candidates.
        """
        n_rows = _num_samples(X)
        labeled = np.zeros(n_rows, dtype=bool)
        if y is not None:
            check_consistent_length(X, y)
            labeled = is_labeled(y)
        n_candidates = n_rows - int(labeled.sum())
        if n_samples is None:
            return min(40, math.ceil(n_candidates / 10)), labeled
        if not isinstance(n_samples, Integral):
            n_samples = max(1, int(n_samples * n_candidates))
        if n_samples > n_candidates:
            raise ValueError(
                f"n_samples={n_samples} rows are asked, but only {n_candidates} of the "
                f"{n_rows} rows have no label yet: ask for fewer, or pass a y with -1 "
                "where a label may be asked."
            )
        return int(n_samples), labeled

    def _set_selection(self, X, sample_indices, scores):
        """Set the fitted attributes of a choice and return the selector.

        Parameters
        ----------
        X : ndarray of shape (n_rows, n_features) or None
            Vectors in which the nearest chosen row is looked up; None (images, paths):
            there is no ``assignments_``.
        sample_indices : array-like of int
            Chosen rows, in the order of asking.
        scores : ndarray of shape (n_rows,)
            Higher is more wanted.
        """
        chosen = np.asarray(sample_indices, dtype=np.int64)
        self.sample_indices_ = chosen
        self.scores_ = scores
        self.support_ = np.zeros(len(scores), dtype=bool)
        self.support_[chosen] = True
        if X is None:
            vars(self).pop("assignments_", None)
            return self
        self.assignments_ = np.full(len(scores), -1, dtype=np.int64)
        if len(chosen):
            _, nearest = kneighbors(X[chosen], 1, queries=X, method="exact")
            self.assignments_[:] = nearest[:, 0]
            # Among copies of one row the nearest is ambiguous, but not for these.
            self.assignments_[chosen] = np.arange(len(chosen))
        return self


def clipped(p):
    """Return p in double precision, without the tiny negatives of some classifiers."""
    return np.clip(np.asarray(p, dtype=np.float64), 0, 1)


class OwnNetworkMixin:
    """What selectors share that train a network of their own on the labeled rows."""

    def _encode_y(self, y, samples):
        """Set ``classes_``; return class codes, and where the classes before stand."""
        if y is None or not is_labeled(y).any():
            given = (
                "the target y is None" if y is None else "all rows of y are unlabeled"
            )
            raise ValueError(
                f"{type(self).__name__} trains a network on labeled rows: it requires "
                f"y to be passed, but {given}: pass y with some labels (a first choice "
                "can be that of USLSelector)."
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
                f"The labeled image files that can be read are of {n_read} class(es), "
                "but at least 2 are needed: label others, or replace them."
            )
        self.classes_ = classes
        return codes, np.searchsorted(classes, labels[-1])

    def _readable_candidates(self, samples, labeled, n_samples):
        """Return the unlabeled rows that can be read, enough of them, or an error."""
        return open_rows(labeled, samples.bad, n_samples)

    def _drawn(self, rows, n_samples, random):
        """Return ``n_candidates`` of the rows, where that is asked for."""
        if self.n_candidates is None or self.n_candidates >= len(rows):
            return rows
        size = max(self.n_candidates, n_samples)
        return random.choice(rows, size, replace=False)

    def _train_nothing(self):
        """Forget what an earlier fit has trained, where this one has nothing to do."""
        self._continued = None
        if not self.warm_start:
            for name in ("net_", "classes_", "layers_", "n_cycles_", "n_iter_"):
                vars(self).pop(name, None)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def check_rows(selector, X):
    """Check X, vectors or whatever a classifier takes.

    Parameters
    ----------
    selector : SelectionRole
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
    selector : SelectionRole
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
