"""Core-set selection: k-center, greedy and robust (Sener and Savarese, 2018)."""

import math
import time
import warnings

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, eye_array, hstack
from scipy.spatial import distance
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import normalize as unit_rows
from sklearn.utils import check_random_state
from tqdm.auto import tqdm

from .._core.kcenter import k_center_greedy
from .._core.parameters import (
    KW_ONLY,
    BelowOne,
    Positive,
    RandomState,
    SampleCount,
    Verbosity,
)
from .._core.roles.selection import SelectionRole

# Unlabeled rows up to which all pairs of rows may stand in an integer program.
_MOST_ROWS = 2000


def k_center_robust(
    Z,
    n_samples,
    centers=(),
    n_outliers=0,
    first=None,
    time_limit=None,
    verbose=0,
):
    """Choose the centers of smallest covering radius, some outliers allowed.

    The smallest radius is one of the distances between rows. Bisection over these
    solves an integer program for each::

        y_j in {0, 1}: row j is chosen       sum_j y_j <= n_samples
        0 <= z_i <= 1: row i is an outlier   sum_i z_i <= n_outliers
        for every row i that no center covers:
            sum of y_j over the rows j within the radius of i, plus z_i, is >= 1

    Parameters
    ----------
    Z : ndarray of shape (n, D)
        Vectors; computed in float64, with all pairs of rows.
    n_samples : int
        Rows to choose, at most ``n - len(centers)``.
    centers : array-like of int, default=()
        Rows that are centers from the start.
    n_outliers : int, default=0
        Maximum number of rows that need not be covered.
    first : int, default=None
        First row of the greedy choice, the initial solution.
    time_limit : float, default=None
        Seconds after which the best choice so far is returned. None: no limit.
    verbose : int, default=0
        1 shows a progress bar over the steps of the bisection.

    Returns
    -------
    chosen : ndarray of shape (n_samples,)
        Each row is the farthest from those before it; without centers, the first is the
        row with most rows around it.
    distances : ndarray of shape (n,), float64
        As of `k_center_greedy`.
    radius : float
        Largest distance to the nearest center, the ``n_outliers`` largest ignored.
    lower_bound : float
        No choice has a smaller radius; equal to the radius unless time ran out.

    References
    ----------
    .. [1] O. Sener, S. Savarese, "Active learning for convolutional neural networks:
       a core-set approach", ICLR 2018, section 4.2.
    """
    ends = time.monotonic() + (math.inf if time_limit is None else time_limit)
    Z = np.asarray(Z, dtype=np.float64)
    centers = np.asarray(centers, dtype=np.int64)
    rows = np.setdiff1d(np.arange(len(Z)), centers)
    D = distance.cdist(Z[rows], Z[rows])
    given = np.full(len(rows), np.inf)
    if len(centers):
        given = distance.cdist(Z[rows], Z[centers]).min(axis=1)

    def nearest(chosen):
        return np.minimum(given, D[:, chosen].min(axis=1, initial=np.inf))

    def radius_of(chosen):
        covered = np.sort(nearest(chosen))[: max(0, len(rows) - n_outliers)]
        return covered.max(initial=0)

    # n_samples + n_outliers greedy rows and the farthest one after them are at least
    # so far apart. Without any n_outliers of them, two still share one center.
    n_more = min(n_samples + n_outliers, len(rows))
    more, left = k_center_greedy(Z, n_more, centers, first)
    left[more] = -np.inf
    lower = max(0.0, left.max() / 2)
    best = np.searchsorted(rows, more[:n_samples])
    radius = radius_of(best)
    values = np.concatenate([D.ravel(), given])
    # The bound is rounded; the true smallest radius may not be lost for that.
    values = np.unique(values[(values >= lower * (1 - 1e-9)) & (values < radius)])
    low, high = 0, len(values)  # values[high], if any, is known to suffice
    with tqdm(
        total=len(values).bit_length(),
        desc="CoreSetSelector",
        unit="program",
        disable=not verbose,
    ) as bar:
        while low < high:
            middle = (low + high) // 2
            seconds = ends - time.monotonic()
            known, found = _cover(
                D, given, values[middle], n_samples, n_outliers, seconds
            )
            if not known:
                break
            if found is None:
                low = middle + 1
            else:
                best = found
                high = min(middle, int(np.searchsorted(values, radius_of(found))))
            bar.update()
    best = _fill(D, nearest, best, n_samples, radius_of(best))
    radius = radius_of(best)
    lower_bound = radius if low == high else max(lower, values[low])

    start = None
    if not len(centers):
        start = int(np.bincount(D[:, best].argmin(axis=1)).argmax())
    requested = np.concatenate([centers, rows[best]])
    order, when_chosen = k_center_greedy(
        Z[requested], n_samples, np.arange(len(centers)), start
    )
    distances = np.full(len(Z), -np.inf)
    distances[rows] = nearest(best)
    distances[requested[order]] = when_chosen[order]
    return requested[order], distances, float(radius), float(lower_bound)


class CoreSetSelector(SelectionRole):
    """Select rows so that every row is close to a chosen or labeled row.

    The largest distance from any row to its nearest center (a chosen or labeled row)
    is the covering radius. The greedy choice repeatedly takes the row farthest from all
    centers: its radius is at most twice the optimum. The robust choice finds the
    optimum for a few hundred rows, and may leave some outliers uncovered. Read more in
    the :ref:`User Guide <coreset>`.

    It works on vectors: embed images first.

    Parameters
    ----------
    robust : bool
        Whether to find the smallest radius by integer programs over all pairs of rows,
        for up to 2,000 unlabeled rows; practical for a few hundred.
    outlier_share : float
        Share of the unlabeled rows, in [0, 1), that the robust choice may leave
        uncovered, rounded down to a whole number of rows. The paper's 0.0001 means no
        row if there are fewer than 10,000. The greedy choice has no outliers.
    normalize : bool
        Divide each row by its length first; the order of distances is then that of
        cosine distances.
    time_limit : float or None
        Seconds for the integer programs of the robust choice, > 0. After that, the best
        choice so far is used, with a warning. None: no limit.
    random_state : int, RandomState instance or None
        Seed of the first row (for the robust choice: of its greedy initial solution).
        Not used if some rows are labeled.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows in labeling order: each is the farthest (with the robust choice,
        among the chosen rows) from the labeled rows and those before it, ties by lowest
        row number. Without labeled rows, the first is drawn at random; the robust
        choice starts with the row that is nearest to most rows.
    scores_ : ndarray of shape (n_rows,)
        Distance to the nearest center: for a chosen row, when it was chosen; for
        another row, at the end; ``-inf`` for labeled rows. A row chosen before there
        was a center has the largest of all other scores.
    assignments_ : ndarray of shape (n_rows,)
        Position in ``sample_indices_`` of the nearest chosen row.
    radius_ : float
        Covering radius: largest distance from a row that is not an outlier to its
        nearest chosen or labeled row.
    lower_bound_ : float
        No choice of the same number of rows has a smaller radius. Half of ``radius_``
        for the greedy choice, ``radius_`` itself for the robust one unless time ran
        out.
    outliers_ : ndarray of shape (n_outliers,)
        Rows farther than ``radius_`` from every center, ascending; empty with the
        greedy choice.
    n_features_in_ : int
        Number of features seen in ``fit``.

    Raises
    ------
    ValueError
        If more rows are requested than are unlabeled, if X is not 2-D (images, paths),
        or if the robust choice has more than 2,000 unlabeled rows.

    See Also
    --------
    USLSelector : Typical rows that are far from one another.
    RandomSelector : The baseline.

    Notes
    -----
    Copies of a center come last, in row order.

    Time of the greedy choice: one pass over X (n_rows * n_features) per chosen or
    labeled row; many labeled rows at once cost less. Memory: a few numbers per row plus
    X, which may be a memory map; ``normalize=True`` holds a copy of X. The robust
    choice holds all pairs of rows, and only ``time_limit`` bounds its time. Preparing a
    program cannot be interrupted; it takes a second with 1,000 rows and half a minute
    with 2,000.

    Differences from the paper and its released code:

    - Without labels, the first row is random; other implementations use row 0.
    - Distances are not squared, and are computed from differences, so that they are
      exactly 0 for equal rows; the usual product form leaves 1e-8 and chooses copies.
    - The robust program has variables for the chosen rows only, not for the assignment
      of each row: the radius is the same with fewer variables. It allows outliers, as
      in the paper; the released code allows none.
    - With outliers, the smallest radius may be less than half the greedy one. The
      bisection starts at a lower bound: half the greedy radius with one more row per
      outlier.

    References
    ----------
    .. [1] O. Sener, S. Savarese, "Active learning for convolutional neural networks:
       a core-set approach", ICLR 2018, section 4.2.
    .. [2] T. Gonzalez, "Clustering to minimize the maximum intercluster distance",
       Theoretical Computer Science, 1985.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import CoreSetSelector
    >>> X, y = load_digits(return_X_y=True)
    >>> selector = CoreSetSelector(n_samples=40, random_state=0).fit(X)
    >>> len(set(y[selector.sample_indices_]))
    10
    >>> round(selector.radius_, 1)
    41.1
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    robust: bool = False
    outlier_share: BelowOne = 0.01
    normalize: bool = False
    time_limit: Positive | None = 60.0
    device: str | torch.device = "auto"
    random_state: RandomState = None
    verbose: Verbosity = 0

    def _choose(self, pool):
        n_samples, labeled = pool.n_samples, pool.labeled
        if self.normalize:
            pool.space = unit_rows(pool.X)
        Z = pool.space
        centers, first = np.flatnonzero(labeled), None
        if not len(centers):
            first = check_random_state(self.random_state).randint(len(Z))
        if self.robust and n_samples:
            chosen, scores = self._robust(Z, n_samples, centers, first)
        else:
            chosen, scores = k_center_greedy(
                Z, n_samples, centers, first, self.verbose, self.device
            )
            left = ~labeled
            left[chosen] = False
            self.radius_ = float(scores[left].max(initial=0))
            self.lower_bound_ = self.radius_ / 2
        finite = np.isfinite(scores)
        scores[scores == np.inf] = scores[finite].max(initial=0)
        far = scores > self.radius_
        far[chosen] = False
        self.outliers_ = np.flatnonzero(far)
        return chosen, scores.astype(np.float32, copy=False)

    def _robust(self, Z, n_samples, centers, first):
        """Set radius and bound; return the chosen rows and the scores."""
        n_candidates = len(Z) - len(centers)
        if n_candidates > _MOST_ROWS:
            raise ValueError(
                "robust=True compares all pairs of rows in integer programs, for up to "
                f"{_MOST_ROWS} unlabeled rows, but X has {n_candidates}: use "
                "robust=False, or choose from fewer rows, e.g. from "
                "RandomSelector(n_samples=500).fit_select(X, y)."
            )
        n_outliers = int(self.outlier_share * n_candidates)
        chosen, scores, self.radius_, self.lower_bound_ = k_center_robust(
            Z,
            n_samples,
            centers,
            n_outliers,
            first,
            time_limit=self.time_limit,
            verbose=self.verbose,
        )
        if self.lower_bound_ < self.radius_:
            warnings.warn(
                f"time_limit={self.time_limit} seconds are over: the choice has the "
                f"covering radius {self.radius_:.4g}, and the smallest possible one "
                f"is at least {self.lower_bound_:.4g}. Raise time_limit, or choose "
                "from fewer rows.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return chosen, scores


def _cover(D, given, radius, n_samples, n_outliers, seconds):
    """Look for rows that cover all but ``n_outliers`` rows.

    Returns
    -------
    known : bool
        False if time ran out before an answer.
    chosen : ndarray of at most n_samples rows, or None
        None where there are no such rows.
    """
    if seconds <= 0:
        return False, None
    near = D[given > radius] <= radius
    open_rows, n = near.shape
    cover = hstack([csr_array(near, dtype=np.float64), eye_array(open_rows)])
    sums = csr_array(np.repeat(np.eye(2), [n, open_rows], axis=1))
    result = milp(
        np.zeros(n + open_rows),
        # An outlier is whole by itself: its row of the program has no other part.
        integrality=np.repeat([1, 0], [n, open_rows]),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(csr_array(cover), lb=1),
            LinearConstraint(sums, ub=[n_samples, n_outliers]),
        ],
        options={} if seconds == math.inf else {"time_limit": seconds},
    )
    if result.x is None:
        return result.status == 2, None  # 2: there is no solution
    chosen = np.flatnonzero(result.x[:n] > 0.5)
    covered = near[:, chosen].any(axis=1)
    # The program's own tolerances must not pass for an answer.
    return bool((~covered).sum() <= n_outliers), chosen


def _fill(D, nearest, chosen, n_samples, radius):
    """Add the farthest rows that are covered, then outliers, up to ``n_samples``."""
    chosen = list(chosen)
    while len(chosen) < n_samples:
        d = nearest(np.array(chosen, dtype=np.int64))
        wanted = np.where(d <= radius, d, -1)
        wanted[chosen] = -2
        chosen.append(int(wanted.argmax()))
    return np.array(chosen, dtype=np.int64)
