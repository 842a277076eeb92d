"""Choosing rows from clusters: one row of each, and more of the largest."""

import heapq
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch

from ..neighbors import squared_distances

# A masked pair counts as this far away, as in the code of USL: it adds _FAR ** -alpha,
# which is little but not 0.
_FAR = 1e10
# A copy of a row chosen in another cluster counts as this near, instead of 0.
_NEAR = 1e-10
_BLOCK_DISTANCES = 2**23


@dataclass(eq=False)
class Repulsion:
    """The penalty of each row for being close to chosen ones.

    ``penalty_i = sum over chosen rows j of (d_ij ** power) ** -alpha``

    Parameters
    ----------
    Z : ndarray of shape (n, D), float32 or float64
        Vectors; computed in their own precision.
    clusters : ndarray of int of shape (n,)
        Cluster of each row, >= 0.
    alpha : float
        Exponent on ``d ** power``, > 0. The alpha in the paper of USL is 2 * 0.5 = 1.
    power : {1, 2}
        Power of the Euclidean distance.
    horizon : {"distance", "nearest"} or None
        Which chosen rows count for a row: those with ``d ** power`` below
        ``horizon_distance``; the ``horizon_neighbors`` nearest; all.
    horizon_distance : float
    horizon_neighbors : int
    exclude_same_cluster : bool
        Leave out the row chosen in a row's own cluster; False leaves out only rows at
        distance 0 in it.
    """

    Z: np.ndarray
    clusters: np.ndarray
    alpha: float = 0.5
    power: int = 2
    horizon: str | None = "distance"
    horizon_distance: float = 4.0
    horizon_neighbors: int = 128
    exclude_same_cluster: bool = True

    def __call__(self, chosen):
        """Return the penalty of every row (n,) for the chosen ones (m,)."""
        rows, codes = self._centered, self._codes
        chosen = torch.from_numpy(chosen)
        targets, target_codes = rows[chosen], codes[chosen]
        sums = rows.new_empty(len(rows))
        step = max(1, _BLOCK_DISTANCES // len(chosen))
        for start in range(0, len(rows), step):
            stop = min(start + step, len(rows))
            d = squared_distances(rows[start:stop], targets)  # (b, m)
            if self.power == 1:
                d.sqrt_()
            code = codes[start:stop, None]
            if self.horizon == "nearest" and self.horizon_neighbors < len(chosen):
                d, index = d.topk(self.horizon_neighbors, dim=1, largest=False)
                own = target_codes[index] == code
            else:
                own = target_codes == code
            masked = own if self.exclude_same_cluster else own & (d == 0)
            if self.horizon == "distance":
                masked |= d >= self.horizon_distance
            d.clamp_(min=_NEAR)[masked] = _FAR
            terms = d.rsqrt_() if self.alpha == 0.5 else d.pow_(-self.alpha)
            sums[start:stop] = terms.sum(1)
        return sums.numpy()

    def within(self, rows, row):
        """Return the penalty of rows for a row of their own cluster, and its copies."""
        d = np.linalg.norm(self.Z[rows] - self.Z[row], axis=1)
        d = d.astype(np.float64) ** self.power
        return np.maximum(d, _NEAR) ** -self.alpha, d == 0

    @cached_property
    def _centered(self):
        # distances stay, products lose fewer digits
        mean = self.Z.mean(axis=0, dtype=np.float64).astype(self.Z.dtype)
        return torch.from_numpy(self.Z - mean)

    @cached_property
    def _codes(self):
        return torch.from_numpy(np.asarray(self.clusters).astype(np.int64))


def best_of_clusters(scores, clusters, allowed):
    """Return the row of the highest score in each cluster.

    Parameters
    ----------
    scores : ndarray of shape (n,)
    clusters : ndarray of int of shape (n,)
    allowed : ndarray of shape (n,), dtype bool
        Clusters without an allowed row are skipped.

    Returns
    -------
    rows : ndarray of int
        By cluster number; of equals the lowest row number.
    """
    rows = np.flatnonzero(allowed)
    order = rows[np.lexsort((-scores[rows], clusters[rows]))]  # stable
    return order[np.r_[True, np.diff(clusters[order]) != 0]] if len(order) else order


def clusters_in_need(sizes, n_labels, n_left):
    """Yield the cluster in which to label a row next, until no row is left.

    It is the one of most rows per label, the row to label included; of equals that of
    the lowest number.

    Parameters
    ----------
    sizes : ndarray of int of shape (n_clusters,)
        Rows of each cluster.
    n_labels : ndarray of int of shape (n_clusters,)
        Rows with a label, or chosen to get one.
    n_left : ndarray of int of shape (n_clusters,)
        Rows that can be chosen.

    Yields
    ------
    cluster : int
    """
    n_labels, n_left = n_labels.copy(), n_left.copy()
    need = [(-sizes[c] / (1 + n_labels[c]), c) for c in np.flatnonzero(n_left)]
    heapq.heapify(need)
    while need:
        _, cluster = heapq.heappop(need)
        yield cluster
        n_labels[cluster] += 1
        n_left[cluster] -= 1
        if n_left[cluster]:
            each = -sizes[cluster] / (1 + n_labels[cluster])
            heapq.heappush(need, (each, cluster))


def choose_rows(key, clusters, n_samples, labeled=None, copies=None):
    """Choose the best row of each cluster, largest clusters first; then further rows.

    Further rows come from `clusters_in_need`, which may hold a labeled row. Copies of
    chosen or labeled rows are the last that a cluster gives.

    Parameters
    ----------
    key : ndarray of shape (n,)
        Larger is better; ties by lowest row number.
    clusters : ndarray of int of shape (n,)
        Cluster of each row, >= 0.
    n_samples : int
        Rows wanted, at most those without a label.
    labeled : ndarray of bool of shape (n,), default=None
        Rows that may not be chosen. None: none.
    copies : ndarray of int of shape (n,), default=None
        The same number for rows that are copies of each other. None: there are none.

    Returns
    -------
    rows : ndarray of shape (n_samples,)
        In the order of asking.
    n_open : int
        Clusters with rows, but without a labeled one.
    """
    n = len(key)
    labeled = np.zeros(n, bool) if labeled is None else labeled
    sizes = np.bincount(clusters)
    given = np.bincount(clusters[labeled], minlength=len(sizes))
    order = np.lexsort((np.arange(n), -key, ~labeled))
    nth = np.zeros(n, int) if copies is None else _nth_copy(copies, order)
    order = np.lexsort((np.arange(n), -key, nth, clusters))
    order = order[~labeled[order]]
    members = np.split(order, np.searchsorted(clusters[order], np.arange(len(sizes))))
    members = [list(rows[::-1]) for rows in members[1:]]
    is_open = (sizes > 0) & (given == 0)
    n_open = int(is_open.sum())
    visited = [c for c in np.argsort(-sizes, kind="stable") if is_open[c]][:n_samples]
    chosen = [members[c].pop() for c in visited]
    given[visited] += 1
    n_left = np.array([len(rows) for rows in members])
    for c in islice(clusters_in_need(sizes, given, n_left), n_samples - len(chosen)):
        chosen.append(members[c].pop())
    return np.array(chosen, dtype=np.int64), n_open


def _nth_copy(copies, order):
    """Return how many copies of each row come before it in ``order``."""
    by_copy = order[np.argsort(copies[order], kind="stable")]
    starts = np.r_[True, np.diff(copies[by_copy]) != 0]
    position = np.arange(len(order))
    nth = np.empty(len(order), int)
    nth[by_copy] = position - np.maximum.accumulate(np.where(starts, position, 0))
    return nth


def choose_more(scores, repulsion, selected, labeled, n_more, reg_weight):
    """Choose further rows where clusters stand for more rows than they have labels.

    They come from `clusters_in_need`; each is the row of highest score minus the
    penalty for the labels of its own cluster. Copies of a labeled or chosen row come
    last.

    Parameters
    ----------
    scores : ndarray of shape (n,)
    repulsion : Repulsion
        Of the rows and their clusters.
    selected : ndarray of int
        Rows chosen already.
    labeled : ndarray of shape (n,), dtype bool
        Rows that may not be chosen.
    n_more : int
        Rows wanted, at most those that are left.
    reg_weight : float
        Weight of the penalty.

    Returns
    -------
    rows : ndarray of shape (n_more,)
        In the order of asking.
    """
    clusters = repulsion.clusters
    sizes = np.bincount(clusters)
    free = ~labeled
    free[selected] = False
    n_left = np.bincount(clusters[free], minlength=len(sizes))
    penalty, copied = np.zeros(len(scores)), np.zeros(len(scores), dtype=bool)
    by_cluster = np.argsort(clusters, kind="stable")
    members = np.split(by_cluster, np.cumsum(sizes)[:-1])

    def repel(row, rows):
        terms, copies = repulsion.within(rows, row)
        penalty[rows] += terms
        copied[rows] |= copies

    opened = np.zeros(len(sizes), dtype=bool)
    chosen = []
    need = clusters_in_need(sizes, sizes - n_left, n_left)
    for cluster in islice(need, n_more):
        rows = members[cluster]
        if not opened[cluster]:
            opened[cluster] = True
            for row in rows[~free[rows]]:
                repel(row, rows)
        rows = rows[free[rows]]
        value = scores[rows] - reg_weight * penalty[rows]
        row = rows[np.lexsort((-value, copied[rows]))[0]]
        chosen.append(row)
        free[row] = False
        repel(row, rows)
    return np.array(chosen, dtype=np.int64)
