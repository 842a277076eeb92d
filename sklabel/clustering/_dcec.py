"""DEC, IDEC and DCEC: clustering in the code of an autoencoder (Xie et al., 2016)."""

from typing import ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._core.codes import CenteredCodes, CodesMixin
from .._core.health import BestClusters, CollapseWarning, cluster_metrics
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
from .._core.roles.clustering import ProbabilisticClusteringRole
from .._core.samplers import FixedSteps, Shuffled
from .._core.warn import warn
from ..embedding import AutoencoderTransformer
from ..losses import sharpened_targets, student_assignment, target_divergence
from ..neighbors import kneighbors

# in the codes before training, that the agreement is taken with
_N_NEIGHBORS = 10


class _DCEC(CenteredCodes):
    _: KW_ONLY
    tol: float
    neighbors: np.ndarray | None = None  # (n_readable, k + 1), the row itself first

    training_only: ClassVar[tuple[str, ...]] = (
        *CenteredCodes.training_only,
        "neighbors",
    )

    def loss(self, x, y):
        z = self.embed(x)
        q = student_assignment(z, self.centers, self.alpha)
        cluster_loss = target_divergence(q, self.targets[y])
        metrics = {"cluster_loss": cluster_loss.detach()}
        loss = self.cluster_weight * cluster_loss
        if self.reconstruction_weight:
            error = self.embed.error(z, x)
            metrics["reconstruction_loss"] = error.detach()
            loss = loss + self.reconstruction_weight * error
        return loss, metrics

    def after_epoch(self, net, sampler):
        self.q = net.evaluate(sampler.samples, sampler.samples.good)
        changed = float((self.q.argmax(1) != self.labels).float().mean())
        if changed < self.tol:
            net.stop()
        return {"changed_share": changed, **cluster_metrics(self.q, self.neighbors)}

    def keep_outputs(self, used):
        """Forget the other centers."""
        self.centers = nn.Parameter(self.centers.detach()[used])


class _KeepingDCEC(_DCEC):
    """Stop at the first round that loses a cluster, and undo it."""

    training_only = (*_DCEC.training_only, "best")

    def __post_init__(self):
        super().__post_init__()
        self.best = BestClusters(len(self.centers), *self.parts())

    def parts(self):
        return self.embed, nn.ParameterList([self.centers])

    def before_epoch(self, net, sampler):
        super().before_epoch(net, sampler)
        if not self.best.started:
            self.best.start(self.labels, 0, *self.parts())

    def after_epoch(self, net, sampler):
        metrics = super().after_epoch(net, sampler)
        # each round is better than the one before, unless it loses a cluster
        later = -len(net.history)
        _, n_lost = self.best.judge(net, self.q.argmax(1), later, *self.parts())
        return {**metrics, "lost_clusters": n_lost}

    def keep_best(self):
        """Undo a round that has lost a cluster, or was interrupted."""
        self.best.restore_(*self.parts())


class DCECClusterer(CodesMixin, ProbabilisticClusteringRole, Learner):
    """Cluster images by short codes that are pulled toward cluster centers.

    An autoencoder is trained first, and k-means on its codes gives the centers. Then
    codes and centers move together: each row is assigned softly to all centers, and the
    assignment is trained toward a sharper version of itself. The decoder keeps
    reconstructing the images (DCEC for images, IDEC for vectors), which prevents the
    codes from collapsing; without it the method is DEC. Read more in the :ref:`User
    Guide <dcec>`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters. Centers that are nearest to no row of X are dropped at the
        end.
    cluster_weight : float
        Weight of the clustering loss, > 0. Paper: gamma; 1 for DEC.
    reconstruction_weight : float
        Weight of the reconstruction, >= 0. 0: DEC; the decoder is not trained.
    alpha : float
        Degrees of freedom of the assignment, > 0.
    update_interval : int
        Steps between two updates of the targets (a round); at most a fifth of the
        training. Published: 140 for MNIST, 30 for USPS.
    tol : float
        Training stops when less than this share of the rows changes cluster in a round.
    keep_clusters : bool
        Whether training stops when a cluster loses its last row, and keeps the round
        before. False: training continues, as published.
    n_init : int
        Number of k-means starts.
    embedder : estimator or None
        Computes the codes; cloned and fitted, or used as is in a
        :class:`sklearn.frozen.FrozenEstimator`. None:
        :class:`sklabel.embedding.AutoencoderTransformer` with codes of length 10. Other
        embedders have no decoder and need ``reconstruction_weight=0``. Searches reach
        its parameters as ``embedder__temperature``.
    max_epochs : int
        Maximum number of passes over X. Published: 20,000 steps.
    lr
        Published: 1e-3 for DCEC; for DEC, "sgd" with 0.01, since DEC collapses codes to
        points with "adam".

    Attributes
    ----------
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
        If ``n_clusters`` is larger than the number of samples, or
        ``reconstruction_weight`` is above 0 and the embedder has no decoder.

    Warns
    -----
    CollapseWarning
        If the training lost a cluster, fewer clusters than ``n_clusters`` are in use,
        or one holds most rows.

    See Also
    --------
    SCANClusterer : Uses neighbors in an embedding; better on photographs.
    sklabel.embedding.AutoencoderTransformer : The codes alone.

    Notes
    -----
    The loss is DCEC's, a mean over pixels plus ``cluster_weight`` times a mean over
    rows. Differences from the papers: by default, the autoencoder is trained as a whole
    for 40 epochs, not for 200, nor layer by layer as in DEC; rows are shuffled; ``tol``
    compares the labels before and after a round; a round that loses a cluster is undone
    (``keep_clusters``).

    With ``warm_start``, codes and centers continue from the last fit; if that has not
    left ``n_clusters`` centers, k-means finds new ones in its codes.

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

    _default_embedder = AutoencoderTransformer

    def _train(self, X, samples, seed):
        X = samples.readable(X)
        if self._continued is None:
            self.embedder_ = self._fit_embedder(X)
        Z = self._first_codes(X)
        centers = self._initial_centers(Z, X, seed)
        n_neighbors = min(_N_NEIGHBORS, len(Z) - 1)
        given = {"random_state": seed, "device": self.device}
        _, neighbors = kneighbors(Z, n_neighbors + 1, **given)
        n_steps = Shuffled(samples).n_batches(self.batch_size)
        n_all = self.max_steps or self.max_epochs * n_steps
        # in a single round nothing would be taught by what was learned
        n_round = min(self.update_interval, max(1, n_all // 5))
        trained = self._stage(
            "cluster",
            self._build_module(centers, neighbors),
            FixedSteps(samples, n_round),
            max_steps=n_all,
            # the net counts in rounds
            warmup_epochs=self.warmup_epochs * n_steps / n_round,
        )
        if self.keep_clusters:
            trained.keep_best()

    def _check_health(self, p):
        history = self.net_.history
        n_lost = history[-1].get("lost_clusters") if history else 0
        if n_lost:
            warn(
                f"The training ended with round {len(history)}, in which {n_lost} of "
                "the clusters became empty; the round before is kept. "
                f"{self._remedies()[1]}, or set keep_clusters=False to train on "
                "anyway.",
                CollapseWarning,
            )
        super()._check_health(p)

    def _remedies(self):
        remedy = f"Lower cluster_weight={self.cluster_weight}"
        if not self.reconstruction_weight:
            # the rate of DEC alone: Adam does not mind the scale of its only loss
            remedy = f"Lower lr={self.lr}, raise reconstruction_weight=0"
        return f"{remedy} or lower n_clusters", remedy

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
            Higher is better; the targets are those of X. Values are comparable only for
            equal ``n_clusters`` and weights of the losses.
        """
        samples = self._check_X(X)
        net, module = self.net_, self.net_.module_
        q = net.evaluate(samples, samples.good)
        loss = module.cluster_weight * target_divergence(q, sharpened_targets(q))
        if module.reconstruction_weight:
            module.eval()
            squares = 0.0
            with torch.inference_mode(), net.autocast():
                for rows in np.array_split(samples.good, -(-samples.n_trained // 256)):
                    x = net.to_device(samples[rows])
                    error = module.embed.error(module.embed(x), x)
                    squares += float(error) * len(rows)
            loss += module.reconstruction_weight * squares / samples.n_trained
        return -float(loss)

    def _initial_centers(self, Z, X, seed):
        """Return the initial centers, from the last fit or from k-means.

        Parameters
        ----------
        Z : ndarray of shape (n, D)
            Codes of X as the embedder gives them.
        X : array-like of length n
        seed : int
        """
        if self._continued is not None:
            if len(self._continued.centers) == self.n_clusters:
                return self._continued.centers.detach()
            Z = encoded(self, X)
        n_clusters = min(self.n_clusters, len(np.unique(Z, axis=0)))
        found = KMeans(n_clusters, n_init=self.n_init, random_state=seed).fit(Z)
        # where there are fewer different rows than clusters, some centers are doubled
        rows = np.arange(self.n_clusters) % n_clusters
        return torch.from_numpy(found.cluster_centers_[rows].astype(np.float32))

    def _build_module(self, centers, neighbors=None):
        names = "alpha", "cluster_weight", "reconstruction_weight", "tol"
        kind = _KeepingDCEC if self.keep_clusters else _DCEC
        return kind(
            self._build_embed(),
            centers,
            neighbors=neighbors,
            **{name: getattr(self, name) for name in names},
        )

    def _rebuild_module(self, mean, std):
        module = self._build_module(torch.zeros(self.n_clusters_, self._code_length()))
        module.drop_training_state()
        return module

    @property
    def cluster_centers_(self):
        """Centers, in the space of the codes."""
        check_is_fitted(self)
        return self.net_.module_.centers.detach().cpu().numpy()
