"""Uncertainty sampling: rows a classifier is least sure of (Lewis and Gale, 1994)."""

from typing import Annotated

import numpy as np
from scipy.special import entr

from .._core.parameters import SampleCount, one_of
from .._core.roles.selection import ClassifierSelectionRole, clipped

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
    """Difference of the two largest probabilities; small means uncertain.

    Parameters
    ----------
    p : array-like of shape (..., n_classes)
        Probabilities in [0, 1], each row sums to 1.

    Returns
    -------
    margin : ndarray of shape (...), float64
        0 to 1; the probability itself if there is one class.

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
        0 to 1 - 1 / ``n_classes``; equals :func:`least_confidence` for one draw.

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


class UncertaintySelector(ClassifierSelectionRole):
    """Select the rows that a classifier is least sure of.

    A classifier is fitted on the labeled rows and predicts the others; those near its
    decision boundary come first. Near copies of an uncertain row are uncertain too, so
    a batch may contain many similar rows. Read more in the :ref:`User Guide
    <uncertainty>`.

    Parameters
    ----------
    measure : {"entropy", "margin", "least_confidence", "variation_ratio"}
        Measure of uncertainty: a high entropy, a small margin between the two most
        probable classes, or a low largest probability. The last two choose the same
        rows: "variation_ratio" is the usual name for ensembles, whose prediction is a
        mean. With two classes, all four choose the same rows.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows, the most uncertain first, ties by lower row number.
    scores_ : ndarray of shape (n_rows,)
        Entropy, negative margin, or one minus the largest probability; ``-inf`` for
        labeled rows and for files that cannot be read.
    classifier_ : estimator
        Fitted classifier. Absent if every row is labeled.

    Raises
    ------
    ValueError
        If no row is labeled and the classifier is not frozen, or if more rows are
        requested than are unlabeled and readable.

    See Also
    --------
    BALDSelector : Rows on which draws of a model disagree.
    USLSelector : Needs no label; for the first choice.

    Notes
    -----
    Time and memory: as for the classifier, plus the probabilities of each row.

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

    def _ask(self, pool, random):
        self.classifier_ = self._fit_classifier(pool.X, pool.y, random)
        p = np.asarray(self.classifier_.predict_proba(pool.X))
        measure, step = _SCORES[self.measure], max(1, _BLOCK_VALUES // p.shape[1])
        blocks = (p[start : start + step] for start in range(0, len(p), step))
        scores = np.concatenate([measure(block) for block in blocks])
        unreadable = np.isnan(scores)
        pool.candidates(unreadable)  # enough of them, or an error
        scores[pool.labeled | unreadable] = -np.inf
        return pool.highest(scores), scores
