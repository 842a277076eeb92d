"""TypiClust: typical rows of the unlabeled clusters (Hacohen et al., 2022)."""

from itertools import islice

import numpy as np
import torch
from sklearn.preprocessing import normalize as unit_rows

from .._core.parameters import (
    KW_ONLY,
    Count,
    CountOrZero,
    RandomState,
    SampleCount,
    Verbosity,
)
from .._core.roles.selection import SelectionRole
from ..neighbors import kmeans, kneighbors

# Keeps the typicality of copies finite, as in the released code.
_NEAR = 1e-5


def typicality(Z, n_neighbors):
    """Return how close each row is to its nearest neighbors.

    ``1 / (mean squared distance + 1e-5)``

    Parameters
    ----------
    Z : ndarray of shape (n, D)
        Vectors of one cluster.
    n_neighbors : int
        Number of neighbors without the row itself, at most half of the rows.

    Returns
    -------
    typicality : ndarray of shape (n,), float64
        Equal for all rows if there are fewer than two.
    """
    n_neighbors = min(n_neighbors, len(Z) // 2)
    if n_neighbors == 0:
        return np.full(len(Z), 1 / _NEAR)
    distances, _ = kneighbors(Z, n_neighbors, include_self=False, method="exact")
    return 1 / (np.square(distances, dtype=np.float64).mean(axis=1) + _NEAR)


class TypiClustSelector(SelectionRole):
    """Select the most typical row of each of the largest unlabeled clusters.

    k-means splits the rows into as many clusters as there will be labels. From each of
    the largest clusters without a label, the row closest to its neighbors is chosen.
    Read more in the :ref:`User Guide <typiclust>`.

    It works on vectors: embed images first, with a self-supervised transformer.

    Parameters
    ----------
    n_neighbors : int
        Neighbors in the cluster that define how typical a row is, at most half of the
        cluster.
    max_clusters : int
        Maximum number of clusters; there is one for each row to choose and each labeled
        row.
    min_cluster_size : int
        Clusters with fewer rows are used only when no other has a row left. Published:
        clusters of at most 5 rows are left out, which corresponds to 6 here.
    normalize : bool
        Divide each row by its length first, as published.
    random_state : int, RandomState instance or None
        Seed of the start of k-means.
    verbose : int
        1: a progress bar of k-means.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows in labeling order: those of clusters with the fewest labels first,
        ties by the larger cluster.
    scores_ : ndarray of shape (n_rows,)
        Typicality among the unlabeled rows of the cluster; ``-inf`` for labeled rows.
    labels_ : ndarray of shape (n_rows,)
        Cluster of each row; all 0 if there was nothing to choose.
    assignments_ : ndarray of shape (n_rows,)
        Position in ``sample_indices_`` of the nearest chosen row.
    n_features_in_ : int
        Number of features seen in ``fit``.

    Raises
    ------
    ValueError
        If more rows are requested than are unlabeled, or if X is not 2-D (images,
        paths).

    See Also
    --------
    USLSelector : Uses the density among all rows, and rows far from one another.
    MaxHerdingSelector : Uses no clusters; nested.

    Notes
    -----
    Time: k-means, n_rows * n_clusters * n_features in each iteration, and the neighbors
    within each cluster. Memory: X, its normalized copy, and blocks.

    Differences from the released code:

    - k-means is :func:`sklabel.neighbors.kmeans`; the released code uses mini-batches
      above 50 clusters.
    - If there are more rows to choose than clusters, the clusters take turns, as in the
      released code; a cluster without rows left is skipped, and small ones come last.

    References
    ----------
    .. [1] G. Hacohen, A. Dekel, D. Weinshall, "Active learning on a budget: opposite
       strategies suit high and low budgets", ICML 2022, algorithm 1. Its equation has
       distances, its released code their squares, which are used here.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import TypiClustSelector
    >>> X, y = load_digits(return_X_y=True)
    >>> rows = TypiClustSelector(20, random_state=0).fit_select(X)
    >>> len(set(y[rows])) >= 9
    True
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    n_neighbors: Count = 20
    max_clusters: Count = 500
    min_cluster_size: CountOrZero = 6
    normalize: bool = True
    device: str | torch.device = "auto"
    random_state: RandomState = None
    verbose: Verbosity = 0

    def _choose(self, pool):
        chosen, scores = pool.nothing()
        self.labels_ = np.zeros(len(pool), dtype=np.int64)
        if self.normalize:
            pool.space = unit_rows(pool.X)
        if not pool.n_samples:
            return chosen, scores
        n_wanted = pool.n_samples + int(pool.labeled.sum())
        self.labels_ = kmeans(
            pool.space,
            min(n_wanted, self.max_clusters, len(pool)),
            random_state=self.random_state,
            verbose=self.verbose,
            device=self.device,
        )[0]
        free = {}
        for cluster in np.unique(self.labels_[~pool.labeled]):
            rows = np.flatnonzero((self.labels_ == cluster) & ~pool.labeled)
            scores[rows] = typicality(pool.space[rows], self.n_neighbors)
            free[cluster] = rows
        chosen, seen = [], set()
        for cluster in islice(self._in_turn(free, pool.labeled), pool.n_samples):
            rows = free[cluster]
            key = scores[rows]
            if cluster in seen:  # what is chosen is no neighbor any more
                key = typicality(pool.space[rows], self.n_neighbors)
            seen.add(cluster)
            chosen.append(rows[key.argmax()])
            free[cluster] = np.delete(rows, key.argmax())
        return np.array(chosen, dtype=np.int64), scores

    def _in_turn(self, free, labeled):
        """Yield the clusters in the order of asking, while they have rows left."""
        sizes = np.bincount(self.labels_)
        n_labels = np.bincount(self.labels_[labeled], minlength=len(sizes))
        order = np.lexsort((-sizes, n_labels))
        is_small = sizes[order] < self.min_cluster_size
        for clusters in (order[~is_small], order[is_small]):
            left = [c for c in clusters if len(free.get(c, ()))]
            while left:
                yield from left
                left = [c for c in left if len(free[c])]
