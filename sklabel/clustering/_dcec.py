"""DEC, IDEC and DCEC: clustering in the code of an autoencoder (Xie et al., 2016)."""

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._core.callbacks import fitting
from .._core.codes import CenteredCodes, CodesMixin
from .._core.health import CollapseWarning, cluster_metrics, lost_clusters
from .._core.learner import Learner
from .._core.nested import encoded
from .._core.parameters import (
    KW_ONLY,
    Count,
    NonNegative,
    Optimizer,
    Positive,
    Schedule,
    UnitInterval,
)
from .._core.roles.clustering import ClusteringRole, check_n_clusters
from .._core.samplers import FixedSteps, Shuffled
from .._core.warn import warn
from ..losses import sharpened_targets, student_assignment, target_divergence
from ..modules import Snapshot
from ..neighbors import kneighbors

# in the codes before training, that the agreement is taken with
_N_NEIGHBORS = 10


class _DCEC(CenteredCodes):
    """With ``keep_clusters`` the first round that loses a cluster is the last, and undone."""

    neighbors = None  # (n_readable, k + 1), the row itself first

    def __init__(self, embed, centers, **settings):
        super().__init__(embed, centers, **settings)
        if self.keep_clusters:
            # a buffer: a fit that continues from a checkpoint has not seen the start
            self.register_buffer("used", torch.zeros(len(centers), dtype=torch.bool))
            self.whole = Snapshot(*self.parts())

    def parts(self):
        return self.embed, nn.ParameterList([self.centers])

    def loss(self, x, y):
        z = self.embed(x)
        q = student_assignment(z, self.centers, self.alpha)
        cluster_loss = target_divergence(q, self.targets[y])
        figures = {"cluster_loss": cluster_loss.detach()}
        loss = self.cluster_weight * cluster_loss
        if self.reconstruction_weight:
            error = self.embed.error(z, x)
            figures["reconstruction_loss"] = error.detach()
            loss = loss + self.reconstruction_weight * error
        return loss, figures

    def before_epoch(self, net, sampler):
        super().before_epoch(net, sampler)
        if self.keep_clusters and not self.used.any():
            self.used[self.labels.unique()] = True
            self.whole.keep_if_better(0, *self.parts())

    def after_epoch(self, net, sampler):
        self.q = net.evaluate(sampler.samples, sampler.samples.good)
        labels = self.q.argmax(1)
        changed = float((labels != self.labels).float().mean())
        if changed < self.tol:
            net.stop()
        figures = {"changed_share": changed, **cluster_metrics(self.q, self.neighbors)}
        if self.keep_clusters:
            lost = lost_clusters(self.used, labels)
            figures["lost_clusters"] = int(lost.sum())
            if lost.any():
                net.stop()
            else:
                self.whole.keep_if_better(-len(net.history), *self.parts())
        return figures

    def drop_training_state(self):
        super().drop_training_state()
        self.neighbors = self.used = self.whole = None


class DCECClusterer(CodesMixin, ClusteringRole, Learner):
    """Cluster images by short codes that are drawn toward cluster centers.

    An autoencoder is trained first, and k-means on its codes gives the centers. Then
    codes and centers move together: each row is assigned softly to all centers, and the
    assignment must become like a sharper version of itself. The decoder goes on drawing
    the images (DCEC for images, IDEC for vectors), which keeps the codes from falling
    together; without it the method is DEC. Read more in the :ref:`User Guide <dcec>`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters. Centers that no row of X is nearest to are dropped at the end.
    cluster_weight : float
        Weight of the clustering loss, > 0. Paper: gamma; 1 for DEC.
    reconstruction_weight : float
        Weight of the reconstruction, >= 0; 0: DEC, the decoder is not trained.
    alpha : float
        Degrees of freedom of the assignment, > 0.
    update_interval : int
        Steps between two updates of the targets; a round. At most a fifth of the training
        counts. Published: 140 for MNIST, 30 for USPS.
    tol : float
        The training ends when fewer than this share of the rows has changed its cluster
        in a round.
    keep_clusters : bool
        Whether the training ends when a cluster loses its last row, and the round before
        is kept. False: it goes on, as published.
    n_init : int
        Starts of k-means.
    embedder : estimator or None
        Gives the codes; cloned and fitted, or used as it is in a
        :class:`sklearn.frozen.FrozenEstimator`. None:
        :class:`sklabel.embedding.AutoencoderTransformer` with codes of length 10. Other
        embedders have no decoder and need ``reconstruction_weight=0``. Searches reach its
        parameters as ``embedder__temperature``.
    max_epochs : int
        Passes over X, at most. Published: 20,000 steps.
    lr
        Published: 1e-3 for DCEC; for DEC, "sgd" with 0.01: alone it draws codes
        together in points with "adam".

    Attributes
    ----------
    confidence_ : ndarray of shape (n_samples,), float32
        Probability of each row's cluster.
    cluster_centers_ : ndarray of shape (n_centers, n_components)
        Centers in use, in the space of the codes.
    embedder_ : estimator
        Fitted embedder.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per round ``train_loss``, ``cluster_loss``,
        ``reconstruction_loss``, ``changed_share`` (rows that changed their cluster),
        ``largest_cluster`` (share), ``clusters_used``, ``confident_share``,
        ``neighbor_agreement`` (how often a row shares its cluster with its neighbors in
        the codes before this training) and, with ``keep_clusters``, ``lost_clusters``.
    n_iter_ : int
        Rounds trained.

    Raises
    ------
    ValueError
        If ``n_clusters`` is larger than the number of samples, or the embedder has no
        decoder where a reconstruction is asked for.

    Warns
    -----
    CollapseWarning
        If the training lost a cluster, fewer clusters than ``n_clusters`` are in use, or
        one holds most rows.

    See Also
    --------
    SCANClusterer : From neighbors in an embedding; better on photographs.
    sklabel.embedding.AutoencoderTransformer : The codes alone.

    Notes
    -----
    The loss is that of DCEC, a mean over pixels plus ``cluster_weight`` times a mean over
    rows. Departures: rows are shuffled; ``tol`` compares the labels before and after a
    round; what would lose a cluster is undone (``keep_clusters``).

    With ``warm_start`` codes and centers go on from the last fit; where it did not leave
    ``n_clusters`` centers, k-means finds new ones in its codes.

    References
    ----------
    .. [1] J. Xie, R. Girshick, A. Farhadi, "Unsupervised deep embedding for clustering
       analysis", ICML 2016; equations 1 to 3.
    .. [2] X. Guo, L. Gao, X. Liu, J. Yin, "Improved deep embedded clustering with local
       structure preservation", IJCAI 2017.
    .. [3] X. Guo, X. Liu, E. Zhu, J. Yin, "Deep clustering with convolutional
       autoencoders", ICONIP 2017.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.clustering import DCECClusterer
    >>> from sklabel.embedding import AutoencoderTransformer
    >>> X = load_digits().images[:200]
    >>> embedder = AutoencoderTransformer(n_components=10, max_epochs=40)
    >>> clusterer = DCECClusterer(5, embedder=embedder, max_epochs=2, random_state=0)
    >>> clusterer.fit_predict(X).shape
    (200,)
    """

    n_clusters: Count = 10
    _: KW_ONLY
    cluster_weight: Positive = 0.1
    reconstruction_weight: NonNegative = 1.0
    alpha: Positive = 1.0
    update_interval: Count = 140
    tol: UnitInterval = 0.001
    keep_clusters: bool = True
    n_init: Count = 20
    embedder: BaseEstimator | None = None
    optimizer: Optimizer = "adam"
    schedule: Schedule = "constant"

    @fitting
    def fit(self, X, y=None):
        """Cluster X.

        Parameters
        ----------
        X : array-like
            Images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``; paths of image
            files; or vectors ``(n, D)``.
        y : None
            Ignored.

        Returns
        -------
        self : DCECClusterer
        """
        samples = self._check_X(X, reset=True)
        check_n_clusters(self, samples)
        with self._seeded() as seed:
            readable = samples.readable(X)
            if self._continued is None:
                self.embedder_ = self._fit_embedder(readable)
            Z = np.asarray(self.embedder_.transform(readable))
            if self._continued is None:
                centers = self._find_centers(Z, seed)
            elif len(self._continued.centers) == self.n_clusters:
                centers = self._continued.centers.detach()
            else:
                centers = self._find_centers(encoded(self, readable), seed)
            module = self._build_module(centers)
            _, module.neighbors = kneighbors(
                Z, min(_N_NEIGHBORS + 1, len(Z)), random_state=seed
            )
            n_steps = Shuffled(samples).n_batches(self.batch_size)
            n_all = self.max_steps or self.max_epochs * n_steps
            # in a single round nothing would be taught by what was learned
            n_round = min(self.update_interval, max(1, n_all // 5))
            self._fit_net(
                module,
                FixedSteps(samples, n_round),
                stage="cluster",
                max_steps=n_all,
                # the net counts in rounds
                warmup_epochs=self.warmup_epochs * n_steps / n_round,
            )
            history = self.net_.history
            n_lost = history[-1].get("lost_clusters") if history else 0
            # a round that Ctrl-C broke off may have lost some, too
            if n_lost or (self.interrupted_ and self.keep_clusters):
                module.whole.restore_(*module.parts())
            module.drop_training_state()
            p = self._forward_rows(samples)
        # the rate of DEC alone: Adam does not mind the scale of its only loss
        remedy = f"Lower cluster_weight={self.cluster_weight}"
        if not self.reconstruction_weight:
            remedy = f"Lower lr={self.lr}, raise reconstruction_weight=0"
        if n_lost:
            warn(
                f"The training ended with round {len(history)}, in which {n_lost} of the "
                f"clusters lost their last row; the round before is kept. {remedy}, or "
                "take keep_clusters=False to go on all the same.",
                CollapseWarning,
            )
        used = self._set_labels(p, samples, f"{remedy} or lower n_clusters", remedy)
        module.centers = nn.Parameter(module.centers.detach()[used])
        return self

    def score(self, X, y=None):
        """Return minus the loss on X, so that a search needs no labels.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.
        y : None
            Ignored.

        Returns
        -------
        score : float
            Higher is better; the targets are those of X. Values compare only at equal
            ``n_clusters`` and weights of the losses.
        """
        samples = self._check_X(X)
        net, module = self.net_, self.net_.module_
        q = net.evaluate(samples, samples.good)
        loss = self.cluster_weight * target_divergence(q, sharpened_targets(q))
        if self.reconstruction_weight:
            module.eval()
            squares = 0.0
            with torch.inference_mode(), net.autocast():
                for rows in np.array_split(samples.good, -(-samples.n_trained // 256)):
                    x = net.to_device(samples[rows])
                    error = module.embed.error(module.embed(x), x)
                    squares += float(error) * len(rows)
            loss += self.reconstruction_weight * squares / samples.n_trained
        return -float(loss)

    def _find_centers(self, Z, seed):
        """Return the centers of k-means on codes (n, D)."""
        n_clusters = min(self.n_clusters, len(np.unique(Z, axis=0)))
        found = KMeans(n_clusters, n_init=self.n_init, random_state=seed).fit(Z)
        # where there are fewer different rows than clusters, some centers are doubled
        rows = np.arange(self.n_clusters) % n_clusters
        return torch.from_numpy(found.cluster_centers_[rows].astype(np.float32))

    def _build_module(self, centers):
        return _DCEC(
            self._build_embed(),
            centers,
            alpha=self.alpha,
            cluster_weight=self.cluster_weight,
            reconstruction_weight=self.reconstruction_weight,
            tol=self.tol,
            keep_clusters=self.keep_clusters,
        )

    def _rebuild_module(self, mean, std):
        self._continued = None
        module = self._build_module(torch.zeros(self.n_clusters_, self._code_length()))
        module.drop_training_state()
        return module

    @property
    def cluster_centers_(self):
        """Centers, in the space of the codes."""
        check_is_fitted(self)
        return self.net_.module_.centers.detach().cpu().numpy()
