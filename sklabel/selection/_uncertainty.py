"""Uncertainty sampling: what a classifier is least sure of (Lewis and Gale, 1994)."""

from typing import Annotated

import numpy as np
from scipy.special import entr
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from .._core.callbacks import CallbackSupportMixin, fitting
from .._core.parameters import (
    KW_ONLY,
    ProbabilisticClassifier,
    RandomState,
    SampleCount,
    one_of,
)
from .._core.roles.selection import (
    SelectionRole,
    check_rows,
    clipped,
    fit_classifier,
    open_rows,
)

_BLOCK_VALUES = 2**22


def entropy(p):
    r"""Entropy of each distribution, :math:`-\sum_c p_c \ln p_c` with 0 ln 0 = 0.

    Parameters
    ----------
    p : array-like of shape (..., n_classes)
        Probabilities in [0, 1], each row sums to 1.

    Returns
    -------
    entropy : ndarray of shape (...), float64
        In nats, 0 to ln ``n_classes``.

    References
    ----------
    .. [1] C. E. Shannon, "A mathematical theory of communication", 1948.
    """
    return entr(clipped(p)).sum(axis=-1)


def margin(p):
    """Difference of the two largest probabilities; small means unsure.

    Parameters
    ----------
    p : array-like of shape (..., n_classes)
        Probabilities in [0, 1], each row sums to 1.

    Returns
    -------
    margin : ndarray of shape (...), float64
        0 to 1; the probability itself where there is one class.

    References
    ----------
    .. [1] T. Scheffer, C. Decomain, S. Wrobel, "Active hidden Markov models for
       information extraction", IDA 2001.
    """
    p = clipped(p)
    if p.shape[-1] == 1:
        return p[..., 0]
    largest = np.partition(p, -2, axis=-1)
    return largest[..., -1] - largest[..., -2]


def least_confidence(p):
    """One minus the largest probability.

    Parameters
    ----------
    p : array-like of shape (..., n_classes)
        Probabilities in [0, 1], each row sums to 1.

    Returns
    -------
    score : ndarray of shape (...), float64
        0 to 1 - 1 / ``n_classes``.

    References
    ----------
    .. [1] D. D. Lewis, W. A. Gale, "A sequential algorithm for training text
       classifiers", SIGIR 1994.
    """
    return 1 - clipped(p).max(axis=-1)


def variation_ratio(p):
    """One minus the largest probability of the mean over draws.

    Parameters
    ----------
    p : array-like of shape (n_draws, n, n_classes)
        Probabilities of several draws of one model, or of several models.

    Returns
    -------
    score : ndarray of shape (n,), float64
        0 to 1 - 1 / ``n_classes``; of one draw: its :func:`least_confidence`.

    References
    ----------
    .. [1] Y. Gal, R. Islam, Z. Ghahramani, "Deep Bayesian active learning with image
       data", ICML 2017, section 3.
    """
    return 1 - clipped(p).mean(axis=0).max(axis=-1)


# Higher is more wanted. 1 - margin would lose the digits of the smallest margins.
_SCORES = {
    "entropy": entropy,
    "margin": lambda p: -margin(p),
    "least_confidence": least_confidence,
    "variation_ratio": lambda p: variation_ratio(p[None]),
}


class UncertaintySelector(SelectionRole, CallbackSupportMixin, BaseEstimator):
    """Select the rows of which a classifier is least sure.

    A classifier is fitted on the rows labeled so far and asked about the others; those
    near its decision boundary come first. Near copies of an unsure row are all unsure,
    so a batch may hold much of the same. Read more in the
    :ref:`User Guide <uncertainty>`.

    Parameters
    ----------
    measure : {"entropy", "margin", "least_confidence", "variation_ratio"}
        Unsure is what has a high entropy, a small margin between the two most probable
        classes, or a most probable class of low probability. The last two choose alike:
        variation ratio is what an ensemble, whose prediction is a mean, has it called.
        With two classes all four choose alike.
    classifier : estimator or None
        Has ``predict_proba``; cloned and fitted, or used as it is in a
        :class:`sklearn.frozen.FrozenEstimator`. A classifier that knows unlabeled rows
        is given all of them. None: logistic regression.
    random_state : int, RandomState instance or None
        Seed of the classifier, where that has no ``random_state`` of its own.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows, the least sure first, the lower row number among equals.
    scores_ : ndarray of shape (n_rows,)
        Entropy, negative margin, or one minus the largest probability; ``-inf`` for
        rows labeled already and for files that cannot be read.
    classifier_ : estimator
        Fitted classifier; none where every row is labeled.

    Raises
    ------
    ValueError
        If no row is labeled and the classifier is not frozen, or if more rows are asked
        than have no label (and can be read).

    See Also
    --------
    BALDSelector : What draws of a model disagree about.
    USLSelector : Needs no label; for the first choice.

    Notes
    -----
    Time and memory: those of the classifier, and one row of probabilities per row.

    References
    ----------
    .. [1] B. Settles, "Active learning literature survey", 2009, section 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import UncertaintySelector
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 50, y, -1)
    >>> rows = UncertaintySelector("margin", n_samples=20).fit_select(X, y_partly)
    >>> bool(rows.min() >= 50)
    True
    """

    measure: Annotated[str, one_of(_SCORES)] = "entropy"
    n_samples: SampleCount = None
    _: KW_ONLY
    classifier: ProbabilisticClassifier | None = None
    random_state: RandomState = None

    @fitting
    def fit(self, X, y=None):
        """Choose rows of X.

        Parameters
        ----------
        X : array-like of shape (n_rows, ...)
            What the classifier takes: vectors; for sklabel's classifiers images or
            paths too.
        y : array-like of shape (n_rows,), default=None
            Labels known so far, -1 (None, NaN) where there is none. Labeled rows are
            never chosen. None: no row is labeled, which takes a frozen classifier.

        Returns
        -------
        self : UncertaintySelector
        """
        X, vectors = check_rows(self, X)
        n_samples, labeled = self._candidates(X, y, self.n_samples)
        vars(self).pop("classifier_", None)
        if labeled.all():
            return self._set_selection(vectors, [], np.full(len(labeled), -np.inf))
        random = check_random_state(self.random_state)
        self.classifier_ = fit_classifier(self, X, y, random)
        p = np.asarray(self.classifier_.predict_proba(X))
        step = max(1, _BLOCK_VALUES // p.shape[1])
        scores = np.concatenate(
            [
                _SCORES[self.measure](p[start : start + step])
                for start in range(0, len(p), step)
            ]
        )
        open_rows(labeled, np.isnan(scores), n_samples)  # enough of them, or an error
        scores[labeled | np.isnan(scores)] = -np.inf
        chosen = np.argsort(-scores, kind="stable")[:n_samples]
        return self._set_selection(vectors, chosen, scores)
