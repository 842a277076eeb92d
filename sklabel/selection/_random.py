"""Random and stratified choice: the baselines of every selector."""

from typing import Literal

import numpy as np
from sklearn.utils import check_random_state

from .._core.callbacks import fitting
from .._core.labels import as_column, is_labeled
from .._core.parameters import KW_ONLY, RandomState, SampleCount
from .._core.roles.selection import AnyRowsMixin, SelectionRole


def class_sequence(class_counts, n_samples, rule="proportional"):
    """Return the class of each of ``n_samples`` labels.

    "proportional" is FixMatch's rule: the next label goes to the class with the largest
    ``share / max(share) - taken / max(taken)``, ties by class number, where share is
    the size of the class. "equal": it goes to the class with fewest labels so far. A
    class without rows left is skipped.

    Parameters
    ----------
    class_counts : ndarray of shape (n_classes,)
        Rows of each class.
    n_samples : int
        Labels to give, at most the number of rows.
    rule : {"proportional", "equal"}, default="proportional"

    Returns
    -------
    sequence : ndarray of shape (n_samples,)
        Class number of each label, in order.

    References
    ----------
    .. [1] K. Sohn et al., "FixMatch: Simplifying semi-supervised learning with
       consistency and confidence", NeurIPS 2020; its ``create_split`` script.
    """
    counts = np.asarray(class_counts, dtype=np.float64)
    share = counts / counts.max() if rule == "proportional" else np.ones(len(counts))
    taken = np.zeros(len(counts))
    sequence = np.empty(n_samples, dtype=np.int64)
    for i in range(n_samples):
        want = share - taken / max(taken.max(), 1)
        sequence[i] = np.where(taken < counts, want, -np.inf).argmax()
        taken[sequence[i]] += 1
    return sequence


class RandomSelector(AnyRowsMixin, SelectionRole):
    """Select rows at random, each unlabeled row with the same probability.

    The baseline that every other selector must beat.

    Parameters
    ----------
    random_state : int, RandomState instance or None
        Seed of the draw.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows in the order of the draw.
    scores_ : ndarray of shape (n_rows,)
        0 for every row, ``-inf`` for labeled rows.
    assignments_ : ndarray of shape (n_rows,)
        Position in ``sample_indices_`` of the nearest chosen row. Only if X holds
        vectors.

    Raises
    ------
    ValueError
        If more rows are requested than are unlabeled.

    See Also
    --------
    StratifiedSelector : Random rows of each class, which needs all labels.
    USLSelector : Typical rows that are far from one another.

    Notes
    -----
    numpy's legacy generator draws without replacement. With a seed, these are the rows
    ``numpy.random.RandomState(seed).choice(n_rows, n_samples, replace=False)`` that
    published comparisons used.

    Examples
    --------
    >>> import numpy as np
    >>> from sklabel.selection import RandomSelector
    >>> X = np.zeros((50000, 1))
    >>> RandomSelector(n_samples=3, random_state=1).fit_select(X).tolist()
    [26247, 35067, 34590]
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    random_state: RandomState = None

    def _choose(self, pool):
        rows = np.flatnonzero(~pool.labeled)
        drawn = check_random_state(self.random_state).permutation(len(rows))
        scores = np.where(pool.labeled, -np.inf, 0.0)
        return rows[drawn[: pool.n_samples]], scores


class StratifiedSelector(AnyRowsMixin, SelectionRole):
    """Select rows at random within each class: an oracle that knows every label.

    This is a baseline, not a usable method: it reads the true labels of all rows from
    y. Published comparisons call it "stratified".

    Parameters
    ----------
    n_samples : int, float or None
        Number of rows to choose, >= 1; a float in (0, 1) is a share of the rows (at
        least one row). None: 40 or a tenth of the rows, rounded up, whichever is
        smaller.
    rule : {"proportional", "equal"}
        Number of rows of each class: in proportion to its size, by FixMatch's rule; or
        the same number (up to one) while the class has rows.
    random_state : int, RandomState instance or None
        Seed of the draw within the classes.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows; the classes alternate, so the first rows are stratified too.
    scores_ : ndarray of shape (n_rows,)
        0 for every row.
    assignments_ : ndarray of shape (n_rows,)
        Position in ``sample_indices_`` of the nearest chosen row. Only if X holds
        vectors.
    classes_ : ndarray of shape (n_classes,)
        The classes in y.

    Raises
    ------
    ValueError
        If y is missing or has an unlabeled row, or if more rows are requested than
        there are.

    See Also
    --------
    RandomSelector : Random rows, without labels.

    Notes
    -----
    Unlike in other selectors, a label in y does not mean that the row is already
    labeled: every row may be chosen.

    References
    ----------
    .. [1] K. Sohn et al., "FixMatch: Simplifying semi-supervised learning with
       consistency and confidence", NeurIPS 2020; its ``create_split`` script.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import StratifiedSelector
    >>> X, y = load_digits(return_X_y=True)
    >>> rows = StratifiedSelector(10, random_state=0).fit_select(X, y)
    >>> sorted(y[rows].tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    rule: Literal["proportional", "equal"] = "proportional"
    random_state: RandomState = None

    @fitting
    def fit(self, X, y=None):
        """Choose rows of X by their true labels.

        Parameters
        ----------
        X : array-like of shape (n_rows, ...)
            Vectors, images or paths.
        y : array-like of shape (n_rows,)
            True labels of all rows.

        Returns
        -------
        self : StratifiedSelector
        """
        pool = self._pool(X, y)
        return self._set_selection(pool, *self._choose(pool))

    def _check_labels(self, rows, y):
        """Return that every row may be chosen; check that all are labeled."""
        if y is None:
            raise ValueError(
                "StratifiedSelector requires y to be passed, but the target y is None: "
                "it reads the true label of every row. Without labels, use "
                "RandomSelector."
            )
        labeled = is_labeled(y)
        if not labeled.all():
            raise ValueError(
                f"StratifiedSelector reads the true label of every row, but "
                f"{(~labeled).sum()} of {len(labeled)} rows of y are unlabeled. "
                "Without labels, use RandomSelector."
            )
        return ~super()._check_labels(rows, y)

    def _choose(self, pool):
        self.classes_, codes, counts = np.unique(
            as_column(pool.y), return_inverse=True, return_counts=True
        )
        shuffled = check_random_state(self.random_state).permutation(len(codes))
        # Rows by class, in shuffled order within each.
        queue = shuffled[np.argsort(codes[shuffled], kind="stable")]
        first = np.cumsum(counts) - counts
        sequence = class_sequence(counts, pool.n_samples, self.rule)
        turn = np.array([(sequence[:i] == c).sum() for i, c in enumerate(sequence)])
        chosen = queue[first[sequence] + turn.astype(np.int64)]
        return chosen, np.zeros(len(codes))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags
