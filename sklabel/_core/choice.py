"""Choosing rows from clusters: which cluster comes next, and who keeps others away."""

import heapq
from dataclasses import dataclass
from functools import cached_property

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
