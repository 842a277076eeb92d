"""USL: unsupervised selective labeling, training-free (Wang, Lian, Yu, 2022)."""

import time
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from sklearn.utils.validation import check_consistent_length
from tqdm.auto import tqdm

from .._core.callbacks import fitting
from .._core.choice import Repulsion, best_of_clusters, choose_more
from .._core.parameters import (
    KW_ONLY,
    ArrayLike,
    BelowOne,
    Count,
    NonNegative,
    Positive,
    RandomState,
    SampleCount,
    Verbosity,
)
from .._core.roles.selection import SelectionRole
from ..neighbors import kmeans, kneighbors

# Rows above which 400 neighbors of each would take gigabytes.
_MANY = 200_000


def mean_distances(distances, power=2):
    """Average the neighbor distances of each row, raised to a power.

    ``Dbar_i = mean over k of d_ik ** power``; the density of USL is its inverse.

    Parameters
    ----------
    distances : ndarray of shape (n, k)
        Euclidean distances to the neighbors; the released code includes the row itself,
        at distance 0.
    power : {1, 2}, default=2
        2: squared distances, as in the released code; 1: plain ones, as in equation 2
        of the paper.

    Returns
    -------
    means : ndarray of shape (n,), float64
        0 if all neighbors are copies of the row: its utility 1 / 0 is infinite.
    """
    if power == 2:
        return (
            np.einsum("ij,ij->i", distances, distances, dtype=np.float64)
            / (distances.shape[1])
        )
    return distances.mean(axis=1, dtype=np.float64)


def select_densest(means, clusters, n_samples, order=None):
    """Choose the row of smallest mean neighbor distance in each cluster.

    Parameters
    ----------
    means : ndarray of shape (n,)
        Mean neighbor distances; a row with ``np.inf`` is never chosen.
    clusters : ndarray of shape (n,)
        Cluster of each row, integers >= 0.
    n_samples : int
        Number of rows wanted.
    order : array-like of int, default=None
        Order in which clusters are visited; None: ascending. Clusters without rows are
        skipped.

    Returns
    -------
    selected : ndarray of shape (at most n_samples,)
        One row per visited cluster, ties by lowest row number.
    """
    best = best_of_clusters(-np.asarray(means), clusters, np.isfinite(means))
    by_cluster = dict(zip(clusters[best].tolist(), best.tolist(), strict=True))
    visited = sorted(by_cluster) if order is None else np.asarray(order).tolist()
    rows = [by_cluster[cluster] for cluster in visited if cluster in by_cluster]
    return np.array(rows[:n_samples], dtype=np.int64)


def select_regularized(
    utility,
    repulsion,
    *,
    n_rounds=10,
    reg_weight=0.5,
    ema_decay=0.9,
    candidates=None,
    chosen_before=(),
    history=None,
    verbose=0,
):
    """Choose one row per cluster: of high utility, and far from the other choices.

    In each round, every cluster chooses the row with the largest ``utility - reg_weight
    * average``, then moves the average towards the penalty::

        average = ema_decay * average + (1 - ema_decay) * repulsion(chosen rows)

    Parameters
    ----------
    utility : ndarray of shape (n,)
        Density of each row, larger is better; ``inf`` is allowed.
    repulsion : Repulsion
        Of the rows and their clusters.
    n_rounds : int, default=10
        Rounds, >= 1.
    reg_weight : float, default=0.5
        Weight of the penalty, >= 0. Paper: lambda.
    ema_decay : float, default=0.9
        Share of the old average, in [0, 1).
    candidates : ndarray of shape (n,), dtype bool, default=None
        Rows that may be chosen; clusters without any are skipped. None: all.
    chosen_before : array-like of int, default=()
        Rows chosen earlier (labeled): they add to the penalty of every round, and to
        the average that the first round uses.
    history : dict, default=None
        Receives lists with one entry per round: "selected" (m,), "average_used" (n,),
        "penalty" (n,) and "average" (n,) after the round.
    verbose : int, default=0
        1: a progress bar.

    Returns
    -------
    selected : ndarray of shape (m,)
        Row chosen last in each cluster that has candidates, by cluster number; ties by
        lowest row number.
    score : ndarray of shape (n,)
        ``utility - reg_weight * average`` of the last round.
    """
    n = len(utility)
    allowed = np.ones(n, dtype=bool) if candidates is None else candidates
    before = np.asarray(chosen_before, dtype=np.int64)
    average = np.zeros(n, repulsion.Z.dtype)
    if len(before):
        average = repulsion(before)
    for t in tqdm(range(n_rounds), "selection", unit="round", disable=not verbose):
        score = utility - reg_weight * average
        selected = best_of_clusters(score, repulsion.clusters, allowed)
        used = average
        if t < n_rounds - 1 or history is not None:
            penalty = repulsion(np.concatenate([selected, before]))
            average = ema_decay * average + (1 - ema_decay) * penalty
        if history is not None:
            for key, value in (
                ("selected", selected),
                ("average_used", used),
                ("penalty", penalty),
                ("average", average),
            ):
                history.setdefault(key, []).append(value)
    return selected, score


class USLSelector(SelectionRole):
    """Select rows that are typical of many others and far from one another.

    Unsupervised selective labeling without training: the density of each row is
    estimated from its nearest neighbors, k-means splits the rows into as many clusters
    as there will be labels, and a few rounds choose in each cluster a dense row that is
    not close to the rows chosen in other clusters. Read more in the :ref:`User Guide
    <usl>`.

    It works on vectors: embed images first, with a self-supervised transformer.

    Parameters
    ----------
    n_neighbors : int or "auto"
        Neighbors for the density, at most the number of rows. "auto": 0.8 % of the
        rows, but at least 20 and at most 400, and 20 for more than 200,000 rows: the
        released values for the 50,000 images of CIFAR (400, which is 0.8 %) and for
        ImageNet (20). With about as many neighbors as rows, the distance to the center
        of the data would be measured, not density.
    include_self : bool
        Whether a row counts as its own neighbor, at distance 0, as in the released
        code.
    metric_power : {1, 2}
        Power of the Euclidean distance in density and penalty. 2: released code; 1:
        equations of the paper.
    n_clusters : int or None
        Number of clusters of k-means. None: one for each row to choose and each labeled
        row.
    kmeans_init : {"random", "k-means++", "sample"} or array-like
        Initialization of k-means, see :func:`sklabel.neighbors.kmeans`; use "sample"
        with about 10 iterations for millions of rows.
    kmeans_max_iter : int
        Maximum number of k-means iterations.
    n_rounds : int
        Rounds of the regularized choice.
    reg_weight : float
        Weight of the penalty for being close to rows chosen in other clusters, >= 0.
        Paper: lambda. 0: the densest row of each cluster.
    alpha : float
        Exponent of the distance (to the power ``metric_power``) in the penalty, > 0.
        The paper's alpha of 1 corresponds to 0.5 with squared distances.
    ema_decay : float
        Weight of the old average when penalties are averaged over rounds, in [0, 1).
    horizon : {"distance", "nearest"} or None
        Which chosen rows penalize a row: "distance": those nearer than
        ``horizon_distance``; "nearest": the ``horizon_neighbors`` nearest; None: all.
    horizon_distance : float
        Limit of the distance (to the power ``metric_power``), > 0. On unit vectors, the
        largest squared distance is 4.
    horizon_neighbors : int
        Number of nearest chosen rows.
    exclude_same_cluster : bool
        Whether a row has no penalty for the row chosen in its own cluster. If False,
        only at distance 0.
    nested : bool
        Whether the order of choice is independent of ``n_samples`` and of the labels:
        with ``n_clusters=40``, choosing ten rows, and thirty more after labeling these,
        gives the same forty rows as choosing forty at once. Needs ``n_clusters``, the
        final number of labels, and a ``random_state``. Labeled rows then cause no
        penalty.
    normalize : bool
        Divide each row by its length first, as the released code does.
    neighbor_method : {"auto", "exact", "approximate"}
        How neighbors are searched, see :func:`sklabel.neighbors.kneighbors`.
    random_state : int, RandomState instance or None
        Seed of the k-means initialization and of the approximate search.
    verbose : int
        1: a progress bar and the time of each step.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows in labeling order: rows of larger clusters, which represent more of
        the data, come first, ties by higher score. A person who stops early has labeled
        the most common kinds.
    scores_ : ndarray of shape (n_rows,)
        Density minus weighted penalty in the last round; ``-inf`` for labeled rows.
    assignments_ : ndarray of shape (n_rows,)
        Position in ``sample_indices_`` of the nearest chosen row.
    labels_ : ndarray of shape (n_rows,)
        Cluster of each row; all 0 if there was nothing to choose.
    utility_ : ndarray of shape (n_rows,)
        Density: one over the mean distance to the neighbors.
    n_neighbors_ : int
        Neighbors used.
    n_features_in_ : int
        Number of features seen in ``fit``.

    Raises
    ------
    ValueError
        If more rows are requested than are unlabeled, if X is not 2-D (images, paths),
        or if ``clusters`` or ``n_clusters`` do not fit X.

    See Also
    --------
    RandomSelector : The baseline.
    StratifiedSelector : Random rows of each class, which needs all labels.

    Notes
    -----
    The defaults are those released for CIFAR-10 with 40 labels. For ImageNet the
    authors used ``n_neighbors=20, kmeans_max_iter=100, n_rounds=2, ema_decay=0,
    horizon="nearest"`` and ``reg_weight=1.5, exclude_same_cluster=False`` on MoCo
    features, ``reg_weight=0.05, alpha=1, horizon_neighbors=32`` on CLIP features.

    Differences from the released code:

    - Labeled rows count as chosen before: they add to every penalty (from the first
      round), and no row is chosen in a cluster that holds one. Their number is added to
      the number of clusters, so enough clusters remain.
    - If more clusters than ``n_samples`` remain, the smallest are left out (in the
      released code, the last ones). If fewer remain, e.g. because of a smaller
      ``n_clusters`` or copies, the clusters with most rows per label give another row,
      copies of chosen rows last.
    - An empty cluster of k-means is filled with the row farthest from its center. Mean
      distances are at least 1e-9 of their average, so densities are finite. The
      distance to a copy chosen in another cluster is 1e-10.
    - k-means stops when no row changes its cluster, with the same result.

    Time: the neighbors take n_rows ** 2 * n_features (nearly linear in n_rows with the
    approximate search), k-means and each round n_rows * n_clusters * n_features.
    Memory: X, its normalized copy, 12 bytes per neighbor and blocks of a few hundred
    megabytes; never n_rows ** 2.

    References
    ----------
    .. [1] X. Wang, L. Lian, S. X. Yu, "Unsupervised selective labeling for more
       effective semi-supervised learning", ECCV 2022, section 3.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import USLSelector
    >>> X, y = load_digits(return_X_y=True)
    >>> rows = USLSelector(n_samples=20, random_state=0).fit_select(X)
    >>> len(set(y[rows]))
    10
    """

    n_samples: SampleCount = None
    n_neighbors: Count | Literal["auto"] = "auto"
    _: KW_ONLY
    include_self: bool = True
    metric_power: Literal[1, 2] = 2
    n_clusters: Count | None = None
    kmeans_init: Literal["random", "k-means++", "sample"] | ArrayLike = "random"
    kmeans_max_iter: Count = 200
    n_rounds: Count = 10
    reg_weight: NonNegative = 0.5
    alpha: Positive = 0.5
    ema_decay: BelowOne = 0.9
    horizon: Literal["distance", "nearest"] | None = "distance"
    horizon_distance: Positive = 4.0
    horizon_neighbors: Count = 128
    exclude_same_cluster: bool = True
    nested: bool = False
    normalize: bool = True
    neighbor_method: Literal["auto", "exact", "approximate"] = "auto"
    device: str | torch.device = "auto"
    random_state: RandomState = None
    verbose: Verbosity = 0

    @fitting
    def fit(self, X, y=None, clusters=None):
        """Choose rows of X.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features)
            Vectors.
        y : array-like of shape (n_rows,), default=None
            Labels so far; -1, None or NaN for unlabeled rows. Labeled rows are never
            chosen. None: no row is labeled yet.
        clusters : array-like of shape (n_rows,), default=None
            Cluster of each row, instead of k-means.

        Returns
        -------
        self : USLSelector
        """
        pool = self._pool(X, y)
        Z = pool.space = _unit_rows(pool.X) if self.normalize else pool.X
        with self._step("neighbors"):
            means = self._mean_distances(Z)
            self.utility_ = 1 / means
        with self._step("clusters"):
            self.labels_ = self._cluster(pool, clusters)
        with self._step("selection"):
            selected, scores = self._select(pool, means)
            scores = np.where(pool.labeled, -np.inf, scores)
        with self._step("assignments"):
            return self._set_selection(pool, selected, scores)

    def _mean_distances(self, Z):
        """Return mean neighbor distances, bounded away from 0."""
        n = len(Z)
        k = self.n_neighbors
        if k == "auto":
            k = 20 if n > _MANY else min(400, max(20, round(0.008 * n)))
        self.n_neighbors_ = min(k, n if self.include_self else n - 1)
        means = np.zeros(n)
        if self.n_neighbors_ > 0:
            distances, _ = kneighbors(
                Z,
                self.n_neighbors_,
                include_self=self.include_self,
                method=self.neighbor_method,
                random_state=self.random_state,
                verbose=self.verbose,
                device=self.device,
            )
            means = mean_distances(distances, self.metric_power)
        return np.maximum(means, 1e-9 * means.mean() if means.any() else 1.0)

    def _cluster(self, pool, clusters):
        """Return the cluster of each row: as given, or by k-means."""
        if clusters is not None:
            check_consistent_length(pool.X, clusters)
            if np.ndim(clusters) != 1:
                raise ValueError(
                    "clusters must be one number for each row, got shape "
                    f"{np.shape(clusters)}."
                )
            return np.unique(np.asarray(clusters), return_inverse=True)[1].reshape(-1)
        if not pool.n_samples:
            return np.zeros(len(pool), dtype=np.int64)
        if self.nested and self.n_clusters is None:
            raise ValueError(
                "nested=True needs n_clusters, the number of labels that you want in "
                "the end: clusters that change with n_samples cannot be nested."
            )
        wanted = pool.n_samples + int(pool.labeled.sum())
        n_clusters = self.n_clusters or min(len(pool), wanted)
        return kmeans(
            pool.space,
            n_clusters,
            init=self.kmeans_init,
            max_iter=self.kmeans_max_iter,
            random_state=self.random_state,
            verbose=self.verbose,
            device=self.device,
        )[0]

    def _select(self, pool, means):
        """Return rows in labeling order, and the score of every row."""
        clusters, utility = self.labels_, 1 / means
        sizes = np.bincount(clusters)
        is_open = np.ones(len(sizes), dtype=bool)
        is_open[clusters[pool.labeled]] = False
        candidates, before = is_open[clusters], np.flatnonzero(pool.labeled)
        if self.nested:  # order all clusters, then ask for the open ones
            candidates, before = np.ones(len(pool), dtype=bool), ()
        repulsion = Repulsion(
            pool.space,
            clusters,
            self.alpha,
            self.metric_power,
            self.horizon,
            self.horizon_distance,
            self.horizon_neighbors,
            self.exclude_same_cluster,
        )
        if self.reg_weight == 0:
            scores = utility
            order = np.argsort(-sizes, kind="stable")
            selected = select_densest(
                np.where(candidates, means, np.inf), clusters, len(sizes), order
            )
        else:
            selected, scores = select_regularized(
                utility,
                repulsion,
                n_rounds=self.n_rounds,
                reg_weight=self.reg_weight,
                ema_decay=self.ema_decay,
                candidates=candidates,
                chosen_before=before,
                verbose=self.verbose,
            )
        selected = selected[is_open[clusters[selected]]]
        order = np.lexsort((selected, -scores[selected], -sizes[clusters[selected]]))
        selected = selected[order][: pool.n_samples]
        n_more = pool.n_samples - len(selected)
        if n_more:
            more = choose_more(
                scores, repulsion, selected, pool.labeled, n_more, self.reg_weight
            )
            selected = np.concatenate([selected, more])
        return selected, scores

    @contextmanager
    def _step(self, name):
        """Print the seconds that a step of the fit takes, if verbose."""
        start = time.perf_counter()
        yield
        if self.verbose:
            print(f"[USLSelector] {name}: {time.perf_counter() - start:.2f} s")


def _unit_rows(X):
    """Return rows divided by their length; rows of zeros stay zeros."""
    lengths = np.sqrt(np.einsum("ij,ij->i", X, X))
    return X / np.where(lengths > 0, lengths, 1)[:, None]
