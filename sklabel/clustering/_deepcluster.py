"""DeepCluster: learn from the clusters of the features (Caron et al., 2018)."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import normalized_mutual_info_score, pairwise_distances_argmin
from torch import nn

from .._core.health import CollapseWarning, neighbor_agreement
from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    AtLeastTwo,
    Augment,
    Count,
    NonNegative,
    Optimizer,
    Positive,
    Schedule,
)
from .._core.roles.clustering import ClusteringRole
from .._core.roles.embedding import EmbeddingRole
from .._core.samplers import Shuffled, split
from .._core.warn import warn
from ..backbones import build_sobel_backbone
from ..modules import Method
from ..neighbors import kmeans
from ..optim import param_groups


class _DeepCluster(Method):
    backbone: nn.Module
    augment: nn.Module
    n_rows: int
    n_training_clusters: int
    _: KW_ONLY
    n_components: int
    n_kmeans_iter: int
    reassign_epochs: int

    training_only = ("head", "assigned", "agreement", "head_optimizer", "net_group")

    def __post_init__(self):
        # frozen until the first epoch: the net's optimizer must not take it
        self.head = nn.Linear(self.backbone.n_features_out, self.n_training_clusters)
        self.head.requires_grad_(False)
        self.register_buffer("assigned", torch.zeros(self.n_rows, dtype=torch.int64))
        self.register_buffer("agreement", torch.tensor(0.0))

    @property
    def n_features_out(self):
        return self.backbone.n_features_out

    def forward(self, x):
        return self.backbone(x)  # (B, D)

    def loss(self, x, y):
        logits = self.head(self.backbone(self.augment(x))).float()  # (B, K)
        p = logits.detach().softmax(1)
        metrics = {
            "view_agreement": (p.argmax(1) == y).float().mean(),
            "confident_share": (p.amax(1) > 0.99).float().mean(),
        }
        return F.cross_entropy(logits, y), metrics

    def before_epoch(self, net, sampler):
        self.nmi = 1.0  # of two equal assignments
        if (len(net.history) - 1) % self.reassign_epochs == 0:
            self.reassign(net, sampler.samples)
        sampler.targets = self.assigned.cpu().numpy()
        self.head.requires_grad_(True)
        groups = param_groups(self.head, net.weight_decay)
        # without momentum it has no state that a checkpoint would have to keep
        self.head_optimizer = torch.optim.SGD(groups, lr=net.lr)
        self.net_group = net.optimizer_.param_groups[0]

    def reassign(self, net, samples):
        """Cluster the features of all rows, and start a new head."""
        good = samples.good
        Z = net.evaluate(samples, good).numpy()
        Z = whiten(Z, *fit_whitening(Z, self.n_components))
        n_clusters, device = self.head.out_features, net.device
        labels, _ = _cluster(Z, n_clusters, self.n_kmeans_iter, device=device)
        before = self.assigned.cpu().numpy()[good]
        self.nmi = float(normalized_mutual_info_score(before, labels))
        self.agreement.fill_(neighbor_agreement(Z, labels))
        assigned = torch.full_like(self.assigned, -1)
        assigned[good] = torch.from_numpy(labels).to(assigned)
        self.assigned.copy_(assigned)
        # cluster numbers mean something else each time
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def after_step(self):
        for group in self.head_optimizer.param_groups:
            group["lr"] = self.net_group["lr"]
        self.head_optimizer.step()
        self.head_optimizer.zero_grad()

    def after_epoch(self, net, sampler):
        sizes = torch.bincount(self.assigned[self.assigned >= 0])
        return {
            "nmi": self.nmi,
            "clusters_used": int((sizes > 0).sum()),
            "largest_cluster": float(sizes.max() / sizes.sum()),
            "neighbor_agreement": float(self.agreement),
        }


class _Balanced(Shuffled):
    """Rows are drawn equally often from every cluster, which is their target.

    ``targets`` are set before each epoch.
    """

    identity = ()

    def epoch(self, batch_size):
        rows = balanced_rows(self.targets, self.samples.n_trained)
        yield from split(rows, batch_size)


def fit_whitening(Z, n_components):
    """Return the PCA whitening of rows: their mean, and scaled components.

    Parameters
    ----------
    Z : ndarray of shape (n, D)
    n_components : int
        Maximum number of principal components; those without variance are dropped.

    Returns
    -------
    mean : ndarray of shape (D,), float64
    components : ndarray of shape (D, m), float64
        ``(Z - mean) @ components`` has variance 1. Equal rows: one column of zeros.
    """
    mean = Z.mean(0, dtype=np.float64)
    covariance = power = 0.0
    for block in _blocks(Z):
        centered = block - mean
        covariance += centered.T @ centered / len(Z)
        power += np.square(block).sum() / Z.size
    variances, axes = np.linalg.eigh(covariance)
    # what is below this is the rounding of features in single precision
    floor = 1e-12 * max(variances[-1], power)
    kept = np.flatnonzero(variances > floor)[::-1][:n_components]
    if len(kept) == 0:
        return mean, np.zeros((Z.shape[1], 1))
    return mean, axes[:, kept] / np.sqrt(variances[kept])


def whiten(Z, mean, components):
    """Return whitened rows of length 1, shape (n, m); a row at the mean is 0."""
    W = np.concatenate([(block - mean) @ components for block in _blocks(Z)])
    return W / np.linalg.norm(W, axis=1, keepdims=True).clip(1e-6)


def _blocks(Z, size=2**16):
    """Yield blocks of rows in double precision; all rows may be too many."""
    for start in range(0, len(Z), size):
        yield Z[start : start + size].astype(np.float64)


def balanced_rows(labels, n_samples):
    """Draw rows equally often from every cluster, in random order.

    Parameters
    ----------
    labels : ndarray of int of shape (n,)
        Cluster of each row; rows with -1 are never drawn.
    n_samples : int

    Returns
    -------
    rows : ndarray of int of shape (n_samples,)
        ``n_samples // n_clusters + 1`` draws from each cluster, less what is cut off at
        the end; distinct rows if the cluster has more than that.
    """
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    clusters = np.split(order, starts)
    n_draws = n_samples // len(clusters) + 1
    drawn = []
    for rows in clusters:
        n = len(rows)
        distinct = n > n_draws
        draw = torch.randperm(n)[:n_draws] if distinct else torch.randint(n, (n_draws,))
        drawn.append(rows[draw.numpy()])
    drawn = np.concatenate(drawn)
    return drawn[torch.randperm(len(drawn)).numpy()[:n_samples]]


def _cluster(Z, n_clusters, max_iter, n_init=1, device="cpu"):
    """Return labels without gaps, and the centers in use, of the best k-means."""
    Z = Z.astype(np.float32)
    runs = []
    for _ in range(n_init):
        seed = int(torch.randint(2**31 - 1, ()))
        given = {"max_iter": max_iter, "random_state": seed, "device": device}
        runs.append(kmeans(Z, n_clusters, **given))
    labels, centers, *_ = min(runs, key=lambda run: run[2])
    used, labels = np.unique(labels, return_inverse=True)
    return labels, centers[used].astype(np.float64)


def _directions(Z, labels):
    """Return the direction from the overall mean to each cluster's mean; length 1.

    Not whitened: the features in which clusters differ most count most.
    """
    rows = np.arange(len(Z))
    mean = csr_array((np.ones(len(Z)), (labels, rows))) @ Z.astype(np.float64)
    mean /= np.bincount(labels)[:, None]
    mean -= Z.mean(0, dtype=np.float64)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True).clip(1e-12)


class DeepClusterer(ClusteringRole, EmbeddingRole, Learner):
    """Cluster images by features that are trained to predict their own clusters.

    Two steps alternate. K-means groups the features of all images into many small
    clusters, and the network is trained to predict the cluster of each augmented image.
    At the end the small clusters are merged into ``n_clusters``. Read more in the
    :ref:`User Guide <deepcluster>`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters.
    n_training_clusters : int or None
        Clusters of k-means, from ``n_clusters`` to ``n_samples``; the final ones are
        merged into ``n_clusters``. None: ``10 * n_clusters``, but at most a fiftieth of
        the rows, and at least ``n_clusters``, because in few steps a new layer learns
        few clusters. Published: 10 times the number of classes, 10,000 on ImageNet.
    n_components : int or None
        Principal components of the features that k-means uses; those without variance
        are left out. None: 256, but at most a fiftieth of the rows, and at least 2. All
        are scaled to the same variance, so too many of them add noise. Published: 256.
    n_kmeans_iter : int
        Maximum number of k-means iterations.
    reassign_epochs : int
        Epochs between two assignments of the rows to clusters.
    sobel : bool
        Whether the network sees the edges of the gray image (two channels) instead of
        its colors, see :func:`sklabel.augment.sobel`. Published: True on ImageNet.
        If False, images of one color may form a cluster.
    augment : "auto", nn.Module or None
        Random views; "auto": :class:`sklabel.augment.Contrastive` for images,
        :class:`sklabel.augment.VectorNoise` for vectors. Turn off flips for digits:
        ``Contrastive(flip=0)``. Published: crops and flips, with ``sobel``.
    max_epochs
        Published: 500 on ImageNet; default of the released code: 200.
    batch_size
        Published: 256.
    optimizer
        The new layer of each assignment is always trained by plain SGD with the same
        ``lr``.
    lr : float
        Peak learning rate; 0.2 for a few hundred rows.

    Attributes
    ----------
    confidence_ : ndarray of shape (n_samples,), float32
        How far each row is from the border of its cluster, see ``score_samples``.
    cluster_centers_ : ndarray of shape (n_centers, n_components)
        Centers of k-means in use, in the space of the whitened features.
    encoder_ : nn.Module
        Trained encoder.
    center_labels_ : ndarray of int of shape (n_centers,)
        Merged cluster of each center.
    whitening_mean_ : ndarray of shape (n_features_out,)
        Mean of the features.
    whitening_components_ : ndarray of shape (n_features_out, n_components)
        Principal axes, divided by the standard deviations along them.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``nmi``
        (normalized mutual information of this assignment and the one before; 0 in the
        first epoch, it rises as the clusters settle), ``clusters_used``,
        ``largest_cluster`` (share) and ``neighbor_agreement`` (how often one of the ten
        nearest neighbors in the whitened features is in a row's cluster, for at most
        1000 rows), all for the k-means clusters, ``view_agreement`` (share of views for
        which the network predicts the row's cluster) and ``confident_share`` (views
        with a probability above 0.99).

    Raises
    ------
    ValueError
        If ``n_clusters`` or ``n_training_clusters`` is larger than the number of
        samples, ``n_training_clusters`` is smaller than ``n_clusters``, or
        ``sobel=True`` with vectors.

    Warns
    -----
    CollapseWarning
        If fewer than ``n_clusters`` clusters are in use at the end, one holds most of
        the rows, or, after three epochs or more, the network predicts the clusters of
        views hardly better than by chance.

    See Also
    --------
    SCANClusterer : Uses neighbors in an embedding; better on photographs.
    sklabel.embedding.SwAVTransformer : Features from clusters found during training.

    Notes
    -----
    Each assignment is one pass over X in evaluation mode and k-means on all rows,
    with a cost of n_samples * n_training_clusters * n_components per iteration.

    The paper's setting for ImageNet is ``n_training_clusters=10_000, n_components=256,
    sobel=True, backbone="vgg16_bn", max_epochs=500, batch_size=256, lr=0.05``.

    Differences from the published method: ``batch_size`` is for trainings of hundreds
    of steps, where each new layer has few steps to learn its clusters. Every cluster is
    drawn equally often, as the paper says; the public code draws large clusters more
    often, because it numbers the images in two ways. An empty cluster gets the row
    farthest from its own center, while faiss splits a large cluster. The features are
    taken after the last activation. The bias of the new layer has no weight decay. The
    final clustering is the best of ten starts, and Ward's method merges its clusters by
    the directions of their mean features; merging in the whitened space, where small
    differences count as much as large ones, is much worse.

    References
    ----------
    .. [1] M. Caron, P. Bojanowski, A. Joulin, M. Douze, "Deep clustering for
       unsupervised learning of visual features", ECCV 2018; section 3.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.clustering import DeepClusterer
    >>> X = load_digits().images[:200]
    >>> DeepClusterer(n_clusters=5, max_epochs=2, random_state=0).fit_predict(X).shape
    (200,)
    """

    n_clusters: Count = 10
    _: KW_ONLY
    n_training_clusters: Count | None = None
    n_components: Count | None = None
    n_kmeans_iter: Count = 20
    reassign_epochs: Count = 1
    sobel: bool = False
    augment: Augment = "auto"
    batch_size: AtLeastTwo = 64
    optimizer: Optimizer = "sgd"
    lr: Positive = 0.05
    weight_decay: NonNegative = 1e-5
    schedule: Schedule = "constant"

    def _train(self, X, samples, seed):
        counts = self._check_counts(samples.n_trained)
        module = self._build_module(*samples.statistics(), len(samples), *counts)
        self._stage("fit", module, _Balanced(samples), predicts=False)

    def _assign(self, samples):
        Z = self._forward_rows(samples)
        module = self.net_.module_
        self._set_centers(
            Z[samples.good], module.n_training_clusters, module.n_components
        )
        self.labels_, _ = self._nearest(Z)
        self.confidence_ = self._border_distances(Z)
        return Z

    def predict(self, X):
        """Return the cluster of each sample: that of the nearest center.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        labels : ndarray of int of shape (n_samples,)
            -1 for a file that cannot be read, with ``on_error="skip"``.
        """
        return self._nearest(self._predict_rows(X))[0]

    def score_samples(self, X):
        """Return how far each sample is from the border of its cluster.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float32
            One minus the distance to the nearest center divided by the distance to the
            nearest center of another cluster (the simplified silhouette), from 0 on a
            border to 1 on a center; 1 if there is one cluster. NaN for a file that
            cannot be read, with ``on_error="skip"``.
        """
        return self._border_distances(self._predict_rows(X))

    def score(self, X, y=None):
        """Return minus the loss of k-means on X, so that a search needs no labels.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.
        y : None
            Ignored.

        Returns
        -------
        score : float
            Minus the mean squared distance to the nearest center; higher is better.
            Values are comparable only for equal ``n_training_clusters`` and
            ``n_components``.
        """
        return -float(np.nanmean(self._nearest(self._predict_rows(X))[1]))

    def _check_counts(self, n_samples):
        """Return the numbers of training clusters and of components."""
        n_training_clusters = self.n_training_clusters
        if n_training_clusters is None:
            n_training_clusters = min(10 * self.n_clusters, n_samples // 50)
            n_training_clusters = max(self.n_clusters, n_training_clusters)
        if not self.n_clusters <= n_training_clusters <= n_samples:
            raise ValueError(
                f"n_training_clusters={n_training_clusters} must lie between "
                f"n_clusters={self.n_clusters} and the number of samples, {n_samples}."
            )
        n_components = self.n_components or max(2, min(256, n_samples // 50))
        return n_training_clusters, n_components

    def _remedies(self):
        n_training_clusters = self.net_.module_.n_training_clusters
        remedy = (
            f"Raise n_training_clusters={n_training_clusters}, or lower lr={self.lr}"
        )
        return f"{remedy} or n_clusters", remedy

    def _check_health(self, Z):
        super()._check_health(Z)
        # Ctrl-C may have come between metrics
        whole = [epoch for epoch in self.net_.history if "clusters_used" in epoch]
        if len(whole) < 3 or whole[-1]["clusters_used"] == 1:
            return
        # the last epoch may be a few steps, too few for a new layer
        agreement = max(epoch["view_agreement"] for epoch in whole[-2:])
        chance = 1 / whole[-1]["clusters_used"]
        if agreement < chance + min(chance, 0.05):
            warn(
                "The network predicts the clusters of views hardly better than by "
                f"chance: view_agreement {agreement:.3f}, by chance {chance:.3f}. "
                f"Raise lr={self.lr} or reassign_epochs={self.reassign_epochs}, lower "
                f"batch_size={self.batch_size} or "
                f"n_training_clusters={self.net_.module_.n_training_clusters}, or "
                "weaken augment.",
                CollapseWarning,
            )

    def _build_module(self, mean, std, n_rows=0, n_training_clusters=1, n_components=1):
        return _DeepCluster(
            self._part("backbone", lambda: self._build_backbone(mean, std)),
            self._build_augment(self.augment, "contrastive", mean, std),
            n_rows,
            n_training_clusters,
            n_components=n_components,
            n_kmeans_iter=self.n_kmeans_iter,
            reassign_epochs=self.reassign_epochs,
        )

    def _build_backbone(self, mean=None, std=None):
        if self.sobel:
            return build_sobel_backbone(self.backbone, self.sample_shape_, "mean")
        return super()._build_backbone(mean, std)

    def _set_centers(self, Z, n_training_clusters, n_components):
        """Cluster features (n, D) for the last time, and merge surplus clusters."""
        mean, components = fit_whitening(Z, n_components)
        W = whiten(Z, mean, components)
        n_iter, device = self.n_kmeans_iter, self.device
        _, centers = _cluster(W, n_training_clusters, n_iter, n_init=10, device=device)
        # as in predict; centers that are nearest to no row are dropped
        nearest = pairwise_distances_argmin(W, centers)
        used, labels = np.unique(nearest, return_inverse=True)
        self.whitening_mean_, self.whitening_components_ = mean, components
        self.cluster_centers_ = centers[used]
        self.center_labels_ = np.arange(len(used))
        if len(used) > self.n_clusters:
            merge = AgglomerativeClustering(self.n_clusters, linkage="ward")
            self.center_labels_ = merge.fit_predict(_directions(Z, labels))

    def _nearest(self, Z, among=None):
        """Return labels of features (n, D), and squared distances to the centers.

        ``among``: which centers count, bool; None: all.
        """
        labels = np.full(len(Z), -1)
        squared = np.full(len(Z), np.nan)
        good = ~np.isnan(Z[:, 0])
        W = whiten(Z[good], self.whitening_mean_, self.whitening_components_)
        centers, names = self.cluster_centers_, self.center_labels_
        if among is not None:
            centers, names = centers[among], names[among]
        nearest = pairwise_distances_argmin(W, centers)
        labels[good] = names[nearest]
        squared[good] = np.square(W - centers[nearest]).sum(1)
        return labels, squared

    def _border_distances(self, Z):
        """Return the simplified silhouette of features (n, D), float32."""
        labels, own = self._nearest(Z)
        other = np.full(len(Z), np.inf)
        for k in np.unique(labels[labels >= 0]):
            rivals = self.center_labels_ != k
            if rivals.any():
                other[labels == k] = self._nearest(Z[labels == k], rivals)[1]
        ratio = np.divide(own, other, out=np.ones_like(own), where=other > 0)
        return np.where(np.isnan(own), np.nan, 1 - np.sqrt(ratio)).astype(np.float32)
