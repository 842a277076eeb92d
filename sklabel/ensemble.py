"""Votes of several classifiers of partly labeled rows."""

import numpy as np
from sklearn import ensemble
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _num_samples, check_is_fitted

from ._core.labels import check_labels, decode_labels, encode_labels, most_probable
from ._core.roles.classification import LabeledScoreMixin

__all__ = ["VotingClassifier"]


def _is_soft(self):
    return self.voting == "soft"


class VotingClassifier(LabeledScoreMixin, ensemble.VotingClassifier):
    """Label rows by the votes of several classifiers, such as from several encoders.

    It is scikit-learn's class for a partly labeled y; scikit-learn's own takes -1 for a
    class. Classifiers on different encoders make different errors, so their mean is
    better than each of them, and its labels are good pseudo-labels for training another
    classifier (V-PET [1]_). Read more in the :ref:`User Guide <voting>`.

    Parameters
    ----------
    estimators : list of (str, estimator)
        Names and classifiers, which are cloned and must take -1 for unlabeled, as those
        of sklabel and :mod:`sklearn.semi_supervised` do; "drop" leaves one out.
    voting : {"hard", "soft"}, default="hard"
        "hard": each classifier has one vote for each row, as in the paper; "soft": the
        mean of their probabilities. A classifier that cannot predict a row, whose
        probabilities are NaN or all 0 there, has no vote for it.
    weights : array-like of shape (n_classifiers,) or None, default=None
        Weights of the votes; None: equal weights.
    n_jobs : int or None, default=None
        Number of fits in parallel; -1: one per processor.
    flatten_transform : bool, default=True
        Whether ``transform`` with "soft" returns one flat row for each sample.
    verbose : bool, default=False
        Whether the time of each fit is printed.

    Attributes
    ----------
    estimators_ : list of estimators
        Fitted classifiers; their classes are positions in ``classes_``.
    named_estimators_ : Bunch
        The same by name.
    classes_ : ndarray of shape (n_classes,)
        Classes, sorted.
    label_distributions_ : ndarray of shape (n_samples, n_classes)
        For each row of X, the share of votes or the mean probability of each class; for
        a labeled row, 1 for its class.
    transduction_ : ndarray of shape (n_samples,)
        A class for every row of X: the given label, else the class with most votes.

    Raises
    ------
    ValueError
        If no row is labeled, all labels are of one class, y does not fit X, or a
        classifier takes unlabeled rows for a class.

    See Also
    --------
    sklabel.classification.EmbeddingClassifier : Works on a pretrained encoder.

    References
    ----------
    .. [1] P. Zhang et al., "Revisiting semi-supervised learning in the era of
       foundation models", NeurIPS 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.classification import EmbeddingClassifier
    >>> from sklabel.ensemble import VotingClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 100, y, -1)
    >>> probe = EmbeddingClassifier(graph_weight=0)
    >>> graph = EmbeddingClassifier(graph_weight=1)
    >>> clf = VotingClassifier([("probe", probe), ("graph", graph)], voting="soft")
    >>> clf.fit(X, y_partly).transduction_.shape
    (1797,)
    """

    def fit(self, X, y, **fit_params):
        """Fit all classifiers on labeled and unlabeled rows.

        Parameters
        ----------
        X : array-like
            What the classifiers take.
        y : array-like of shape (n_samples,)
            Classes; -1, None, NaN or a blank text for unlabeled rows.
        **fit_params : dict
            ``sample_weight``, for classifiers that take it.

        Returns
        -------
        self : VotingClassifier
        """
        self._validate_params()
        if getattr(getattr(X, "dtype", None), "kind", "") == "c":
            raise ValueError("Complex data not supported: X holds complex numbers.")
        self._check_votes()
        labels = check_labels(y, n_samples=_num_samples(X))
        self.classes_, codes = encode_labels(labels)
        self.le_ = LabelEncoder().fit(self.classes_)
        # what scikit-learn does once it has encoded y
        super(ensemble.VotingClassifier, self).fit(X, codes, **fit_params)
        for name, estimator in self.named_estimators_.items():
            if -1 in getattr(estimator, "classes_", ()):
                raise ValueError(
                    f"{name}={type(estimator).__name__} takes -1, which marks "
                    "unlabeled rows, for a class: use classifiers of sklabel or "
                    "sklearn.semi_supervised, or leave out unlabeled rows."
                )
        p, labeled = self._shares(X), codes >= 0
        p[labeled] = np.eye(len(self.classes_))[codes[labeled]]
        self.label_distributions_ = p
        self.transduction_ = decode_labels(most_probable(p), self.classes_, like=y)
        return self

    def _check_votes(self):
        """Raise an error if votes cannot be counted."""
        given = self._weights_not_none
        weights = np.ones(1) if given is None else np.asarray(given, dtype=float)
        if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
            raise ValueError(
                f"weights={self.weights} must be finite and not negative, with a "
                "positive one for a classifier that is not dropped."
            )
        for name, estimator in self.estimators:
            voted = isinstance(estimator, str) or hasattr(estimator, "predict_proba")
            if self.voting == "soft" and not voted:
                raise ValueError(
                    f'voting="soft" needs probabilities, but {name}='
                    f"{type(estimator).__name__} has no predict_proba: use "
                    'voting="hard".'
                )

    def predict(self, X):
        """Return the class with most votes for each sample.

        Parameters
        ----------
        X : array-like
            What the classifiers take.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            Ties go to the first class; -1 for samples without a vote, such as files
            that cannot be read.
        """
        check_is_fitted(self)
        return decode_labels(most_probable(self._shares(X)), self.classes_)

    @available_if(_is_soft)
    def predict_proba(self, X):
        """Return the mean probability of each class; with ``voting="soft"`` only.

        Parameters
        ----------
        X : array-like
            What the classifiers take.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        return self._shares(X)

    def _shares(self, X):
        """Return the share of the votes of each class, (n, K); NaN: none."""
        votes = [self._votes(estimator, X) for estimator in self.estimators_]
        votes, weights = np.array(votes), self._weights_not_none
        weights = np.ones(len(votes)) if weights is None else np.asarray(weights)
        shares = np.average(votes, axis=0, weights=weights)
        for row in np.flatnonzero(np.isnan(shares).any(axis=1)):
            known = ~np.isnan(votes[:, row]).any(axis=1)
            if weights[known].any():
                shares[row] = np.average(
                    votes[known, row], axis=0, weights=weights[known]
                )
        return shares

    def _votes(self, estimator, X):
        """Return the votes of one classifier, (n, K); NaN: it has no answer."""
        votes = np.zeros((_num_samples(X), len(self.classes_)))
        # ours predict -1 for a row without an answer, others the first class
        marks = isinstance(estimator, LabeledScoreMixin)
        asked = hasattr(estimator, "predict_proba") and not marks
        if self.voting == "soft" or asked:
            votes[:, np.asarray(estimator.classes_, dtype=int)] = (
                estimator.predict_proba(X)
            )
            votes[~(votes.sum(axis=1) > 0)] = np.nan
        if self.voting == "hard":
            found = np.asarray(estimator.predict(X), dtype=int)
            lost = (found < 0) | np.isnan(votes).any(axis=1)
            votes = np.eye(len(self.classes_))[found]
            votes[lost] = np.nan
        return votes
