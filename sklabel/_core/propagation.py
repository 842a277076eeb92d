"""Labels spread over a graph of nearest neighbors, in memory of n rows, not n x n."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array

from ..neighbors import kneighbors

# of a walk; after 50 with alpha 0.95 the rest weighs 8 %, nearly alike everywhere
_N_STEPS = 50
# numbers spread at once (float32: 128 MB)
_BLOCK_VALUES = 2**25
# of cosine distances: what single precision cannot tell from 0
SMALLEST_SCALE = 1e-5
# what a class has at least that no walk reaches, as a share of all walks
_FLOOR = 1e-4


@dataclass
class NeighborGraph:
    """The graph of the nearest neighbors of n rows; see `neighbor_graph`.

    Parameters
    ----------
    links : sparse array of shape (n, n), float32
        Symmetric, normalized: D^(-1/2) W D^(-1/2).
    scales : Tensor of shape (n,)
        Distance to the last neighbor.
    degrees : Tensor of shape (n,)
        D.
    near : ndarray of int of shape (n, 1 + n_neighbors)
        Each row itself, and its neighbors.
    weights : Tensor of shape (n, 1 + n_neighbors)
        Their weights.
    """

    links: csr_array
    scales: torch.Tensor
    degrees: torch.Tensor
    near: np.ndarray
    weights: torch.Tensor


def neighbor_graph(Z, n_neighbors, random_state=None):
    r"""Return the graph of the nearest neighbors of unit vectors.

    Weights have local scales (Zelnik-Manor and Perona, 2004), so that dense and sparse
    regions are linked alike:

    .. math:: w_{ij} = \exp(-2 d_{ij} / \sqrt{s_i s_j})

    where d is the cosine distance, and s that to the last neighbor.

    Parameters
    ----------
    Z : ndarray of shape (n, D)
        Rows of length 1.
    n_neighbors : int
        Less than n.
    random_state : int, RandomState instance or None
        Of the approximate search, where there are many rows.

    Returns
    -------
    graph : NeighborGraph
    """
    distances, neighbors = kneighbors(
        Z, n_neighbors, metric="cosine", include_self=False, random_state=random_state
    )
    rows = np.arange(len(Z))
    distances = torch.from_numpy(distances)
    scales = distances[:, -1].clamp(min=SMALLEST_SCALE)
    weights = local_weights(distances, scales[:, None], scales[neighbors])
    places = np.repeat(rows, n_neighbors), neighbors.ravel()
    edges = weights.double().numpy().ravel(), places
    one_way = csr_array(edges, shape=(len(Z), len(Z)))
    W = (one_way + one_way.T) / 2
    degrees = np.maximum(W.sum(axis=1), np.finfo(np.float32).tiny)
    root = diags_array(1 / np.sqrt(degrees))
    return NeighborGraph(
        csr_array(root @ W @ root).astype(np.float32),
        scales,
        torch.from_numpy(degrees).float(),
        np.column_stack([rows, neighbors]),
        torch.cat([torch.ones(len(Z), 1), weights], 1),
    )


def local_weights(distances, own_scale, their_scale):
    """Return the weights of edges; see `neighbor_graph`. All are tensors."""
    return (-2 * distances / (own_scale * their_scale).sqrt()).exp()


def propagate(links, sources, alpha, rows=None):
    r"""Return labels spread by walks on a graph (Zhou et al., 2003).

    .. math:: F = (1 - \alpha) \sum_{t=0}^{50} \alpha^t S^t Y

    The terms are never negative: rows that no walk reaches stay exactly 0.

    Parameters
    ----------
    links : sparse array of shape (n, n)
        S.
    sources : sparse array of shape (n, c)
        Y.
    alpha : float
        Probability that a walk continues, in [0, 1).
    rows : ndarray of int or None
        Rows to return; None: all.

    Returns
    -------
    F : ndarray of shape (n_rows, c), float32
    """
    size = max(1, _BLOCK_VALUES // links.shape[0])
    found = []
    for start in range(0, sources.shape[1], size):
        begin = sources[:, start : start + size].toarray().astype(np.float32)
        begin *= 1 - alpha
        F = begin
        for _ in range(_N_STEPS):
            F = alpha * (links @ F) + begin
        found.append(F if rows is None else F[rows])
    return np.concatenate(found, axis=1)


def spread(weights, values):
    """Return the logarithms of the shares that neighbors give to classes.

    Parameters
    ----------
    weights : Tensor of shape (n, k)
    values : Tensor of shape (n, k, K)
        Result of `propagate` for each neighbor, over the root of its degree.

    Returns
    -------
    log_shares : Tensor of shape (n, K)
        Of shares that are not quite 0 anywhere; all alike where no walk came.
    """
    F = torch.einsum("nk,nkc->nc", weights, values)
    shares = F / F.sum(1, keepdim=True).clamp(min=torch.finfo(F.dtype).tiny)
    return (shares + _FLOOR).log()


class LabeledRows:
    """Labeled rows, and their folds.

    Parameters
    ----------
    rows : ndarray of int of shape (m,)
    codes : ndarray of int of shape (m,)
    weights : ndarray of shape (m,)
    n_classes : int
    seed : int
        Of the folds.
    """

    # up to so many rows each one is a fold by itself
    leave_one_out = 50
    n_folds = 10
    # of more, these are left out and all others always there
    most_left_out = 500

    def __init__(self, rows, codes, weights, n_classes, seed):
        self.rows, self.codes, self.weights = rows, codes, weights
        self.n_classes = n_classes
        self.fold = self._draw_folds(np.random.default_rng(seed))
        self.n_folds = self.fold.max() + 1

    def _draw_folds(self, random):
        """Return the fold of each row, -1 for one that is never left out."""
        m = len(self.rows)
        if m <= self.leave_one_out:
            return np.arange(m)
        order = random.permutation(m)[: self.most_left_out]
        order = order[np.argsort(self.codes[order], kind="stable")]
        fold = np.full(m, -1)
        fold[order] = np.arange(len(order)) % self.n_folds
        return fold

    @property
    def left_out(self):
        """Positions of the rows in folds."""
        return np.flatnonzero(self.fold >= 0)

    @property
    def useful(self):
        """Which rows that are left out leave others of their class, a mask."""
        out = self.left_out
        return self.masses()[self.fold[out], self.codes[out]] > 0

    def masses(self):
        """Return the weight of each class: (n_folds + 1, K), without each fold; all."""
        given = np.zeros((self.n_folds + 2, self.n_classes))
        np.add.at(given, (self.fold, self.codes), self.weights)
        given[-1] = 0  # never left out
        total = np.bincount(self.codes, self.weights, self.n_classes)
        return np.maximum(total - given[:-1], 0)

    def training_weights(self):
        """Return the weights of the rows: (n_folds + 1, m), without each fold; all."""
        folds = np.arange(self.n_folds + 1)
        return np.where(self.fold == folds[:, None], 0, self.weights)

    def propagate(self, graph, alpha):
        """Return the graph's result: for all rows, and out of fold.

        Parameters
        ----------
        graph : NeighborGraph
        alpha : float

        Returns
        -------
        values : Tensor of shape (n, K)
            For `spread`.
        log_shares : Tensor of shape (n_left_out, K)
        """
        n, masses = graph.links.shape[0], self.masses()
        total = propagate(graph.links, self._sources(n, self.codes), alpha)
        # walks are sums over their sources: those of a fold are taken away again
        out = self.left_out
        pairs, column = np.unique(
            self.fold[out] * self.n_classes + self.codes[out], return_inverse=True
        )
        place = np.full((self.n_folds, self.n_classes), len(pairs))
        place.flat[pairs] = np.arange(len(pairs))
        near = graph.near[self.rows[out]]  # (n_left_out, k)
        wanted, position = np.unique(near, return_inverse=True)
        position = position.reshape(near.shape)
        own = propagate(
            graph.links, self._sources(n, column, out, len(pairs)), alpha, wanted
        )
        own = np.column_stack([own, np.zeros(len(wanted), np.float32)])
        fold = self.fold[out]
        values = total[near] - own[position[:, :, None], place[fold][:, None]]
        # what is left of a class that has lost all its rows is rounding
        without = _over_mass(values, masses[fold][:, None])
        without = torch.from_numpy(without) / graph.degrees[near].sqrt()[:, :, None]
        whole = torch.from_numpy(_over_mass(total, masses[-1]))
        whole = whole / graph.degrees.sqrt()[:, None]
        return whole, spread(graph.weights[self.rows[out]], without)

    def _sources(self, n, columns, which=slice(None), n_columns=None):
        entries = self.weights[which], (self.rows[which], columns)
        return csr_array(entries, shape=(n, n_columns or self.n_classes))


def _over_mass(F, masses):
    F = np.maximum(F, 0) / np.where(masses > 0, masses, np.inf)
    return F.astype(np.float32)
