"""USL-T: unsupervised selective labeling, with training (Wang, Lian, Yu, 2022)."""

from typing import Annotated, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import nn

from .._core.choice import choose_rows
from .._core.health import CollapseWarning
from .._core.labels import as_column, is_labeled
from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    Augment,
    BelowOne,
    Count,
    CountOrZero,
    NonNegative,
    Optimizer,
    Positive,
    SampleCount,
    Schedule,
    one_of,
)
from .._core.processes import gathered
from .._core.roles.clustering import (
    NeighborhoodMixin,
    PredictClustersMixin,
    check_n_clusters,
)
from .._core.roles.selection import NetworkSelectionRole
from .._core.samplers import Paired
from .._core.warn import warn
from ..augment import scan_strong
from ..embedding import SimCLRTransformer
from ..losses import unit_rows, uslt_global_loss, uslt_local_loss
from ..modules import Method, MultiHead, NormLinear
from ..neighbors import kneighbors


class _CosineHeads(MultiHead):
    """Heads of scaled cosines, initialized with features of random rows."""

    def __init__(self, in_features, n_classes, n_heads=1, scale=40.0):
        super().__init__(in_features, n_classes, n_heads)
        self.linear = NormLinear(in_features, n_heads * n_classes, scale)

    def forward(self, x):
        # times 40, the three digits of bfloat16 would be none
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())

    @torch.no_grad()
    def start_at_(self, features):
        """Take (n_heads * n_classes, D) features as weights, scaled to length 1."""
        self.linear.weight.copy_(unit_rows(features))


HEADS = {"linear": MultiHead, "cosine": _CosineHeads}


class _USLT(Method):
    """Heads agree with neighbors, and strong views with confident plain ones."""

    backbone: nn.Module
    heads: MultiHead
    augment: nn.Module
    _: KW_ONLY
    start_heads: bool
    train_backbone: bool
    head_used: int
    threshold: float
    cluster_weights: str | None
    mean_over: str
    adjustment_weight: float
    ema_decay: float
    temperature: float
    local_weight: float
    reassign_interval: int | None
    min_size: float
    max_size: float
    count_decay: float

    def __post_init__(self):
        self.set_trained("backbone", self.train_backbone)
        shape = self.heads.n_heads, self.heads.n_classes
        self.register_buffer("mean_probabilities", torch.ones(shape) / shape[1])
        # sizes of clusters in multiples of the mean size
        self.register_buffer("sizes", torch.ones(shape))
        self.register_buffer("n_steps", torch.tensor(0))

    @property
    def n_features_out(self):
        return self.backbone.n_features_out

    def forward(self, x):
        return self._logits(x).softmax(-1)  # (heads, B, K)

    def loss(self, x, y):
        x, neighbors = x
        # the passes without gradient are in train mode too, as in the public code
        with torch.no_grad():
            weak = gathered(self._logits(x), 1)  # (heads, B, K)
            near = gathered(self._logits(self.augment(neighbors)), 1)
        strong = gathered(self._logits(self.augment(x)), 1)
        global_loss = local_loss = 0
        for h in range(len(strong)):
            mean = self.mean_probabilities[h]
            local_loss = local_loss + uslt_local_loss(
                strong[h], near[h], mean, self.adjustment_weight, self.temperature
            )
            global_loss = global_loss + uslt_global_loss(
                weak[h],
                strong[h],
                self.threshold,
                self.cluster_weights,
                self.mean_over,
            )
        confidence, clusters = weak.softmax(-1).max(-1)  # (heads, B)
        kept = confidence > self.threshold
        self.mean_probabilities = moved_mean(
            self.mean_probabilities, near, self.ema_decay
        )
        if self.reassign_interval is not None:
            self.sizes = moved_sizes(self.sizes, clusters, kept, self.count_decay)
        return global_loss + self.local_weight * local_loss, {
            "local_loss": local_loss.detach(),
            "global_loss": global_loss.detach(),
            "kept_share": kept.float().mean(),
        }

    def after_step(self):
        if self.reassign_interval is None:
            return
        self.n_steps += 1
        if self.n_steps % self.reassign_interval == 0:
            reassign_(self.heads, self.sizes, self.min_size, self.max_size)

    def before_epoch(self, net, sampler):
        if not self.start_heads:
            return
        self.start_heads = False
        if net.step_ > 0:
            return  # continued from a checkpoint
        samples = sampler.samples
        good = torch.from_numpy(samples.good)
        n_heads, n_clusters = self.heads.n_heads, self.heads.n_classes
        rows = [good[torch.randperm(len(good))[:n_clusters]] for _ in range(n_heads)]
        rows = torch.cat(rows).numpy()
        self.heads.start_at_(net.evaluate(samples, rows, self.backbone))

    def after_epoch(self, net, sampler):
        samples = sampler.samples
        clusters, confidence = predict_clusters(net, samples)
        good = ~samples.bad
        own = clusters[self.head_used]
        sizes = np.bincount(own[good], minlength=self.heads.n_classes)
        near = sampler.neighbors[:, 1:]
        return {
            "largest_cluster": float(sizes.max() / sizes.sum()),
            "clusters_used": int((sizes > 0).sum()),
            "confident_share": float((confidence[:, good] > self.threshold).mean()),
            "neighbor_agreement": float((own[near] == own[:, None])[good].mean()),
        }

    def _logits(self, x):
        return self.heads(self.backbone(x)).float()


@torch.no_grad()
def moved_mean(mean, neighbors, decay):
    """Move the running mean probability (..., K) by a batch of logits (..., B, K)."""
    moved = decay * mean + (1 - decay) * neighbors.softmax(-1).mean(-2)
    return moved / moved.sum(-1, keepdim=True)


@torch.no_grad()
def moved_sizes(sizes, clusters, kept, decay, total=None):
    """Move the running sizes (H, K) of clusters by the kept rows (H, B) of a batch.

    They sum to ``total``, by default K, as multiples of the mean size. For a head that
    keeps no row they do not change; the public code divides by zero.
    """
    total = sizes.shape[-1] if total is None else total
    counts = torch.zeros_like(sizes, dtype=torch.float32)
    counts.scatter_add_(1, clusters, kept.float())
    n_kept = kept.sum(-1, keepdim=True)
    shares = (counts / n_kept.clamp_min(1)).to(sizes)
    return torch.where(n_kept > 0, decay * sizes + (1 - decay) * total * shares, sizes)


@torch.no_grad()
def reassign_(heads, sizes, min_size, max_size, noise=1e-7):
    """Split the largest cluster of each head if its smallest is nearly empty.

    The smallest cluster gets the weights of the largest plus noise, and both get half
    of its size.
    """
    least, smallest = sizes.min(1)
    most, largest = sizes.max(1)
    for h in torch.nonzero((least < min_size) & (most > max_size)).ravel().tolist():
        source, target = (h * heads.n_classes + int(c[h]) for c in (largest, smallest))
        for values in heads.linear.parameters():
            drawn = noise * (2 * torch.rand_like(values[source]) - 1)
            values[target] = values[source] + drawn
        sizes[h, largest[h]] = sizes[h, smallest[h]] = most[h] / 2


def predict_clusters(net, samples):
    """Return cluster and confidence of all rows as plain views, each (heads, n).

    For large data, probabilities of all clusters would not fit into memory.
    """

    def most_probable(x):
        confidence, clusters = net.module_(x).max(-1)
        return torch.stack([confidence, clusters.float()], -1)  # (heads, B, 2)

    found = net.evaluate(samples, forward=most_probable).movedim(-1, 0).contiguous()
    return found[1].long().numpy(), found[0].numpy()


def spread_labels(distances, clusters, rows, labels, n_rows=20):
    """Give the labels of rows to the densest rows of their clusters.

    Parameters
    ----------
    distances : ndarray of shape (n,)
        Mean squared distance to the neighbors; smaller is denser.
    clusters : ndarray of int of shape (n,)
    rows : array-like of int of shape (m,)
        Labeled rows.
    labels : array-like of shape (m,)
    n_rows : int, default=20
        Rows of each cluster that get the label, including the given row if it is among
        the densest.

    Returns
    -------
    spread : dict
        Label by row; the earlier one if a row gets two.
    """
    spread = {}
    for row, label in zip(np.asarray(rows).tolist(), labels, strict=True):
        members = np.flatnonzero(clusters == clusters[row])
        order = np.argsort(distances[members], kind="stable")
        for member in members[order[:n_rows]].tolist():
            spread.setdefault(member, label)
    return spread


class USLTSelector(
    NeighborhoodMixin, PredictClustersMixin, NetworkSelectionRole, Learner
):
    """Select the most confident row of each cluster that a network has learned.

    Unsupervised selective labeling with training: an embedding is learned, each row's
    nearest neighbors in it are found once, and a network is trained to sort the rows
    into as many clusters as there will be labels. Neighbors share a cluster, all
    clusters are used, and confident predictions are consistent under augmentation. The
    most confident row of each cluster is chosen. Read more in the :ref:`User Guide
    <uslt>`.

    It takes images, image files, or vectors.

    Parameters
    ----------
    n_clusters : int or None
        Number of clusters. None: one for each row to choose and each labeled row.
        Published: the number of rows to choose, and 3000 for 2911 rows on ImageNet.
    n_heads : int
        Cluster heads trained side by side.
    head : {"cosine", "linear"}
        "cosine": 40 times the cosine of features and weights, initialized with features
        of random rows, as published for ImageNet; "linear": with a bias, as for CIFAR.
    threshold : float
        A row is a target for its strong view if its probability is above this, in [0,
        1). Published: 0 for ImageNet, 0.95 for CIFAR, which takes thousands of steps to
        reach for most rows: see ``kept_share`` in the history.
    cluster_weights : {"balanced", "renormalized"} or None
        Weights of clusters in the global loss, inverse to their size, see
        :func:`sklabel.losses.uslt_global_loss`. Published: "balanced" for CIFAR,
        "renormalized" for ImageNet-100, None for ImageNet.
    mean_over : {"kept", "batch"}
        Rows over which the global loss is averaged: those above ``threshold``, as
        published for CIFAR-10, or the whole batch, as for the others.
    adjustment_weight : float
        How strongly the targets from neighbors avoid large clusters, >= 0. Paper: beta.
        Published: 5 for CIFAR, 2.5 for ImageNet.
    ema_decay : float
        Decay of the running mean probability of clusters, in [0, 1). Paper: momentum.
    temperature : float
        Sharpens the targets from neighbors, > 0. Published: 0.25 for CIFAR, 0.5 for
        ImageNet.
    local_weight : float
        Weight of the agreement with neighbors, >= 0. Published: 5 for CIFAR, 0.5 for
        ImageNet.
    n_neighbors : int
        Neighbors mined per row; fewer if X has fewer rows. For the density, the row
        itself is one of them.
    train_backbone : bool
        Whether the encoder is trained too, as published for CIFAR; False: only the
        heads.
    reassign_interval : int or None
        Every so many steps, a nearly empty cluster takes over half of the largest.
        None: never, as published for CIFAR; 124 for ImageNet-100, 1250 for ImageNet.
    min_size : float
        A cluster is nearly empty below this multiple of the mean size. Published: 50
        rows, which is 0.16, for ImageNet-100; 100 rows, 0.23, for ImageNet.
    max_size : float
        A cluster is large enough to be split above this multiple of the mean size.
        Published: 500 rows, which is 1.6, for ImageNet-100; 1000 rows, 2.3, for
        ImageNet.
    count_decay : float
        Decay of the running cluster sizes, in [0, 1).
    selection : {"confidence", "density"}
        Which row of a cluster is chosen: the one with the highest confidence, as
        published for CIFAR, or the one with the smallest mean squared distance to its
        neighbors, as for ImageNet.
    confidence : {"mean", "head"}
        Confidence of a row: its largest probability, averaged over the heads, as
        published for CIFAR-10, or from ``head_used``, as for CIFAR-100.
    head_used : int
        Number of the head whose clusters are used, from 0.
    normalize : bool
        Divide each row by its length first, as the released code does.
    augment : "auto", nn.Module or None
        Random views; "auto": :func:`sklabel.augment.scan_strong` for images,
        :class:`sklabel.augment.VectorNoise` for vectors.
    max_epochs
        Published: 200 on CIFAR, 49 steps each.
    max_steps : int or None
        Length of the training in optimizer steps; overrides ``max_epochs``.
    batch_size
        Published: 1024 on CIFAR.
    lr
        Published: 1e-4. At much higher rates, clusters become empty.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows in labeling order: those of the largest clusters first.
    scores_ : ndarray of shape (n_rows,)
        Confidence of each row or, with ``selection="density"``, the inverse of its mean
        squared distance to its neighbors; ``-inf`` for labeled rows and for files that
        cannot be read.
    assignments_ : ndarray of shape (n_rows,)
        Position in ``sample_indices_`` of the nearest chosen row, in the embedding; -1
        for files that cannot be read.
    labels_ : ndarray of int of shape (n_rows,)
        Cluster of each row, 0 to ``n_clusters_ - 1``; -1 for files that cannot be read.
    n_clusters_ : int
        Clusters trained.
    neighbors_ : ndarray of int of shape (n_rows, n_neighbors + 1)
        Mined neighbors, the row itself first.
    mean_distances_ : ndarray of shape (n_rows,)
        Mean squared distance of each row to its neighbors.
    embedder_ : estimator
        Fitted embedder, if there is one.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``local_loss``,
        ``global_loss`` (sums over the heads), ``kept_share`` (of the batches) and, for
        ``head_used`` on all rows, ``largest_cluster`` (share), ``clusters_used`` and
        ``neighbor_agreement``; ``confident_share`` is the share of rows above
        ``threshold``, over all heads.
    n_features_in_ : int
        Values per sample.

    Raises
    ------
    ValueError
        If more rows are requested than are unlabeled and readable, if ``n_clusters`` is
        larger than the number of rows, or if ``head_used`` is not below ``n_heads``.

    See Also
    --------
    USLSelector : The same idea without training.
    sklabel.clustering.SCANClusterer : Clusters that should match classes.

    Notes
    -----
    Published for CIFAR-10 with 40 labels: ``head="linear", threshold=0.95,
    max_epochs=200, batch_size=1024, lr=1e-4`` and the other defaults. For ImageNet:
    ``n_clusters=3000, cluster_weights=None, mean_over="batch", adjustment_weight=2.5,
    temperature=0.5, local_weight=0.5, train_backbone=False, reassign_interval=1250,
    selection="density"`` on a backbone of self-supervised weights, ``batch_size=2048,
    max_epochs=10, lr=1e-4``.

    Differences from the released code:

    - Default trainings have hundreds of steps, not 9800. In so few steps, linear heads
      leave clusters empty and no row reaches a threshold of 0.95, so heads and
      threshold are those for ImageNet, with the losses for CIFAR.
    - Rows of larger clusters come first with either ``selection``. Labeled rows are
      trained on like all others, but never chosen; clusters that hold one come last.
    - Empty clusters, which are an error in the released code, cause a warning: the
      clusters with most rows per label give further rows, the most confident or densest
      left, copies of chosen rows last.
    - The running mean is at least 1e-8; running sizes start equal, and do not change if
      a batch has no row above the threshold.
    - The released training loop for ImageNet leaves each epoch after one batch; this
      one does not.

    If every row is labeled, nothing is chosen, but the clusters are learned.

    References
    ----------
    .. [1] X. Wang, L. Lian, S. X. Yu, "Unsupervised selective labeling for more
       effective semi-supervised learning", ECCV 2022, section 4.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import USLTSelector
    >>> X, y = load_digits(return_X_y=True)
    >>> selector = USLTSelector(20, max_epochs=5, random_state=0)
    >>> rows = selector.fit_select(X[:400])
    >>> rows.shape, len(set(selector.labels_[rows]))
    ((20,), 20)
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    n_clusters: Count | None = None
    n_heads: Count = 3
    head: Annotated[str, one_of(HEADS)] = "cosine"
    threshold: BelowOne = 0.0
    cluster_weights: Literal["balanced", "renormalized"] | None = "balanced"
    mean_over: Literal["kept", "batch"] = "kept"
    adjustment_weight: NonNegative = 5.0
    ema_decay: BelowOne = 0.5
    temperature: Positive = 0.25
    local_weight: NonNegative = 5.0
    n_neighbors: Count = 20
    train_backbone: bool = True
    reassign_interval: Count | None = None
    min_size: NonNegative = 0.2
    max_size: Positive = 2.0
    count_decay: BelowOne = 0.9
    selection: Literal["confidence", "density"] = "confidence"
    confidence: Literal["mean", "head"] = "mean"
    head_used: CountOrZero = 0
    embedder: BaseEstimator | None = None
    normalize: bool = True
    augment: Augment = "auto"
    max_epochs: Count = 30
    optimizer: Optimizer = "adam"
    lr: Positive = 3e-4
    weight_decay: NonNegative = 1e-4
    schedule: Schedule = "constant"

    _default_embedder = SimCLRTransformer

    def _choose(self, pool):
        samples = pool.X
        self.n_clusters_ = self._count_clusters(pool)
        with self._seeded() as seed:
            statistics = samples.statistics()
            pool.space = self._vectors(pool)
            self._mine_neighbors(pool.space, samples, seed)
            module = self._build_module(*statistics)
            # the number depends on y, which a checkpoint does not know
            pairs, identity = Paired(samples, self.neighbors_), (self.n_clusters_,)
            self._stage("fit", module, pairs, identity=identity)
            clusters, confidence = predict_clusters(self.net_, samples)
        self.labels_ = np.where(samples.bad, -1, clusters[self.head_used])
        if self.selection == "density":
            # rows among copies are infinitely dense
            least = 1e-9 * self.mean_distances_.mean() or 1.0
            scores = 1 / np.maximum(self.mean_distances_, least)
        elif self.confidence == "mean":
            scores = confidence.mean(0, dtype=np.float64)
        else:
            scores = confidence[self.head_used].astype(np.float64)
        rows = self._best_rows(pool, scores)
        scores[pool.labeled | samples.bad] = -np.inf
        return rows, scores

    def spread_labels(self, y, n_rows=20):
        """Give the labels of the chosen rows to the densest rows of their clusters.

        The authors prepare ImageNet for semi-supervised training in this way: most of
        these labels are correct, and they cost nothing.

        Parameters
        ----------
        y : array-like of shape (n_rows,)
            Labels, -1 for unlabeled rows. Chosen rows spread their labels in labeling
            order.
        n_rows : int, default=20
            Rows of each cluster that get a label, including the chosen row if it is
            among the densest.

        Returns
        -------
        y : ndarray of shape (n_rows,)
            A copy with the additional labels.
        """
        check_is_fitted(self)
        check_consistent_length(self.labels_, y)
        known = is_labeled(y)
        y = as_column(y).copy()
        rows = self.sample_indices_[known[self.sample_indices_]]
        spread = spread_labels(
            self.mean_distances_, self.labels_, rows, y[rows], n_rows
        )
        for row, label in spread.items():
            if not known[row]:
                y[row] = label
        return y

    def _forward_rows(self, samples):
        module = self.net_.module_
        p = self.net_.evaluate(samples, forward=lambda x: module(x)[self.head_used])
        p[samples.bad] = np.nan
        return p.numpy()

    def _count_clusters(self, pool):
        """Return the number of clusters, and check what depends on the rows."""
        samples, labeled = pool.X, pool.labeled
        n_open = int((~labeled & ~samples.bad).sum())
        if n_open < pool.n_samples:
            raise ValueError(
                f"n_samples={pool.n_samples} rows are requested, but "
                f"{samples.bad.sum()} files cannot be read, which leaves {n_open} "
                "unlabeled rows: lower n_samples, or replace these files."
            )
        if self.head_used >= self.n_heads:
            raise ValueError(
                f"head_used={self.head_used} must be below n_heads={self.n_heads}: the "
                "first head is number 0."
            )
        if self.n_clusters is None:
            return min(samples.n_trained, pool.n_samples + int(labeled.sum()))
        check_n_clusters(self, samples)
        return self.n_clusters

    def _vectors(self, pool):
        """Return the vectors (n, D) whose nearest neighbors are mined."""
        samples = pool.X
        self._fit_embedder(pool.given, samples)
        found = self._embed(pool.given, samples).astype(np.float32, copy=False)
        Z = np.zeros((len(pool), found.shape[1]), dtype=np.float32)
        Z[samples.good] = (
            unit_rows(torch.from_numpy(found)) if self.normalize else found
        )
        return Z

    def _mine_neighbors(self, Z, samples, seed):
        """Set each row's neighbors, the row itself first, and its mean distance."""
        good = samples.good
        n_neighbors = min(self.n_neighbors, len(good) - 1)
        distances, found = kneighbors(Z[good], n_neighbors + 1, random_state=seed)
        self.neighbors_ = samples.all_neighbors(found)
        self.mean_distances_ = np.full(len(Z), distances.max() ** 2, dtype=np.float64)
        # the row itself counts; with one neighbor requested nothing else would
        counted = distances[:, : max(2, n_neighbors)].astype(np.float64)
        self.mean_distances_[good] = (counted**2).mean(1)

    def _build_module(self, mean, std):
        kind = HEADS[self.head]
        shape = self.n_heads, self.n_clusters_
        backbone = self._part("backbone", lambda: self._build_backbone(mean, std))
        heads = getattr(self._continued, "heads", None)
        # another number of rows to choose or labeled: new heads on the old encoder
        if type(heads) is not kind or (heads.n_heads, heads.n_classes) != shape:
            heads = None
        start_heads = heads is None and self.head == "cosine"
        if heads is None:
            heads = kind(backbone.n_features_out, self.n_clusters_, self.n_heads)
        return _USLT(
            backbone,
            heads,
            self._build_augment(self.augment, scan_strong(fill=mean), mean, std),
            start_heads=start_heads,
            train_backbone=self.train_backbone,
            head_used=self.head_used,
            threshold=self.threshold,
            cluster_weights=self.cluster_weights,
            mean_over=self.mean_over,
            adjustment_weight=self.adjustment_weight,
            ema_decay=self.ema_decay,
            temperature=self.temperature,
            local_weight=self.local_weight,
            reassign_interval=self.reassign_interval,
            min_size=self.min_size,
            max_size=self.max_size,
            count_decay=self.count_decay,
        )

    def _best_rows(self, pool, scores):
        """Return the rows in labeling order; warn if clusters have collapsed."""
        n_samples = pool.n_samples
        if not n_samples:
            return np.empty(0, np.int64)
        good = pool.X.good
        clusters = self.labels_[good]
        copies = np.unique(pool.space[good], axis=0, return_inverse=True)[1].reshape(-1)
        rows, n_open = choose_rows(
            scores[good], clusters, n_samples, pool.labeled[good], copies
        )
        sizes = np.bincount(clusters, minlength=self.n_clusters_)
        n_used, share = int((sizes > 0).sum()), sizes.max() / sizes.sum()
        remedy = (
            f"Raise adjustment_weight={self.adjustment_weight} or batch_size="
            f"{self.batch_size}, train longer, set reassign_interval, or check that "
            "the embedding separates the rows"
        )
        if n_open < n_samples and n_used < self.n_clusters_:
            warn(
                f"Only {n_used} of {self.n_clusters_} clusters are in use, and "
                f"{n_open} of them hold no labeled row: {n_samples - n_open} of the "
                f"{n_samples} rows are additional rows of large clusters. {remedy}.",
                CollapseWarning,
            )
        elif share > max(0.5, 3 / self.n_clusters_):
            warn(
                f"One cluster holds {share:.0%} of the rows. {remedy}.", CollapseWarning
            )
        return good[rows]
