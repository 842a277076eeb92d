"""SCAN: clustering by adopting nearest neighbors (Van Gansbeke et al., 2020)."""

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn

from .._core.freezing import thaw_
from .._core.health import BestClusters, CollapseWarning, cluster_metrics
from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    ArrayLike,
    AtLeastTwo,
    Augment,
    BelowOne,
    Count,
    CountOrZero,
    NonNegative,
    Optimizer,
    Positive,
    Schedule,
)
from .._core.processes import gathered
from .._core.roles.clustering import NeighborhoodMixin, ProbabilisticClusteringRole
from .._core.samplers import Paired, Shuffled
from .._core.warn import warn
from ..augment import scan_strong
from ..embedding import SimCLRTransformer
from ..losses import confidence_cross_entropy, scan_head_scores, scan_loss
from ..modules import Method, MultiHead, Snapshot, ema_update_, frozen_copy
from ..neighbors import kneighbors, mine_neighbors


class _SCAN(Method):
    """Stage 1: anchor and neighbor agree, and all clusters are used."""

    backbone: nn.Module
    heads: MultiHead
    augment: nn.Module
    entropy_weight: float
    prior: torch.Tensor | None  # (K,)
    train_backbone: bool

    frozen = ("best",)

    def __post_init__(self):
        self.set_trained("backbone", self.train_backbone)
        self.register_buffer("best_head", torch.tensor(0))
        self.best = Snapshot(self.backbone, self.heads)

    def forward(self, x):
        return self._logits(x).float().softmax(-1)  # (heads, B, K)

    def loss(self, x, y):
        anchors, neighbors = (
            gathered(self._logits(self.augment(part)).float(), 1) for part in x
        )
        parts = [
            scan_loss(a, n, self.entropy_weight, self.prior)
            for a, n in zip(anchors, neighbors, strict=True)
        ]
        return sum(parts)

    def after_epoch(self, net, sampler):
        samples = sampler.samples
        probabilities = net.evaluate(samples, samples.good)  # (heads, n, K)
        neighbors = samples.among_readable(sampler.neighbors)
        scores, consistency, entropy = scan_head_scores(
            probabilities, torch.from_numpy(neighbors), self.prior
        )
        head = int(scores.argmin())
        best = self.best.keep_if_better(scores[head], self.backbone, self.heads)
        if best:
            self.best_head.fill_(head)
        return {
            "stage": "cluster",
            "best": best,
            "score": float(scores[head]),
            "consistency": float(consistency[head]),
            "entropy": float(entropy[head]),
            **cluster_metrics(probabilities[head], neighbors),
        }

    def keep_best(self):
        """Return backbone and single head of the epoch with the lowest score."""
        backbone, heads = thaw_(self.best.parts)
        return backbone, heads.keep_head(int(self.best_head))

    def _logits(self, x):
        return self.heads(self.backbone(x))


class _SelfLabel(Method):
    """Stage 2: confident predictions on plain views teach augmented views."""

    backbone: nn.Module
    heads: MultiHead
    augment: nn.Module
    threshold: float
    balance: bool
    train_backbone: bool
    _: KW_ONLY
    neighbors: np.ndarray | None = None  # (n, k + 1), the row itself first
    ema_decay: float | None = None

    training_only: ClassVar[tuple[str, ...]] = ("neighbors", "p", "average")

    def __post_init__(self):
        self.p = None  # (n, K), of the plain rows after the last epoch
        self.set_trained("backbone", self.train_backbone)
        self.average = None
        if self.ema_decay is not None:
            self.average = frozen_copy(self.parts())

    def parts(self):
        return nn.ModuleList([self.backbone, self.heads])

    def after_step(self):
        if self.average is None:
            return
        # as published: the weights themselves go back to the average in every step
        ema_update_(self.average, self.parts(), self.ema_decay, copy_buffers=False)
        ema_update_(self.parts(), self.average, 0, copy_buffers=False)

    @property
    def n_features_out(self):
        return self.backbone.n_features_out

    def forward(self, x):
        return self._logits(x).softmax(-1)  # (B, K)

    def loss(self, x, y):
        # the plain view's pass is in train mode, as in the public code
        with torch.no_grad():
            weak = gathered(self._logits(x))
        strong = gathered(self._logits(self.augment(x)))
        return confidence_cross_entropy(weak, strong, self.threshold, self.balance)

    def after_epoch(self, net, sampler):
        self.p = net.evaluate(sampler.samples, sampler.samples.good)
        return {"stage": "self-label", **cluster_metrics(self.p, self.neighbors)}

    def keep_outputs(self, used):
        """Forget the other clusters."""
        self.heads = self.heads.keep_outputs(used)

    def _logits(self, x):
        return self.heads(self.backbone(x))[0].float()


class _KeepingSelfLabel(_SelfLabel):
    """Stop at the first epoch that loses a cluster.

    Before it, the epoch (or the start) with the lowest loss of stage 1 is kept.
    """

    entropy_weight: float
    prior: torch.Tensor | None

    training_only = (*_SelfLabel.training_only, "best", "prior")

    def __post_init__(self):
        super().__post_init__()
        self.best = BestClusters(self.heads.n_classes, self.backbone, self.heads)

    def before_epoch(self, net, sampler):
        if not self.best.started:
            p = net.evaluate(sampler.samples, sampler.samples.good)
            loss = self.clustering_loss(p)
            self.best.start(p.argmax(1), loss, self.backbone, self.heads)

    def after_epoch(self, net, sampler):
        metrics = super().after_epoch(net, sampler)
        loss, labels = float(self.clustering_loss(self.p)), self.p.argmax(1)
        best, n_lost = self.best.judge(net, labels, loss, self.backbone, self.heads)
        metrics |= {"clustering_loss": loss, "best": best, "lost_clusters": n_lost}
        return metrics

    def clustering_loss(self, p):
        """Return the loss of stage 1 on the probabilities (n, K) of plain rows."""
        log_p = p.clamp_min(1e-30).log()
        neighbors = torch.from_numpy(self.neighbors[:, 1:]).T
        losses = [
            scan_loss(log_p, log_p[column], self.entropy_weight, self.prior)
            for column in neighbors
        ]
        return sum(losses) / len(losses)

    def keep_best(self):
        """Go back to the best epoch."""
        self.best.restore_(self.backbone, self.heads)


class SCANClusterer(NeighborhoodMixin, ProbabilisticClusteringRole, Learner):
    """Cluster images so that nearest neighbors in an embedding share a cluster.

    An embedding is learned and each image's nearest neighbors in it are found once.
    Then a network is trained to assign an image and its neighbors to the same cluster,
    confidently, while using all clusters. Finally, it is fine-tuned on its own
    confident predictions. Read more in the :ref:`User Guide <clustering>`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters. Outputs that no row of X uses are dropped at the end.
    n_neighbors : int
        Neighbors mined per row; fewer if X has fewer rows. Published: 20, or 50 for
        ImageNet.
    entropy_weight : float
        Weight of the entropy that keeps all clusters in use, >= 0.
    n_heads : int
        Cluster heads trained side by side; the one with the lowest loss is kept.
    prior : array-like of shape (n_clusters,) or None
        Expected share of each cluster; None: equal shares.
    train_backbone : bool
        Whether the encoder is trained too; False: only the heads.
    self_label_epochs : int
        Epochs of self-labeling; 0 leaves it out. Published: 200.
    self_label_threshold : float
        A row is trained on if its probability is above this, in [0, 1).
    self_label_batch_size : int
        Samples per step of self-labeling. Published: 1000.
    self_label_lr : float or None
        Learning rate of self-labeling, > 0; None: ``lr``. Published: 1e-4.
    self_label_ema_decay : float or None
        Decay of the averaged weights that replace the network's weights after every
        step of self-labeling, in [0, 1); None: no average. Published: 0.999 for
        ImageNet.
    balance_clusters : bool
        Whether self-labeling weights clusters inversely to their size.
    keep_clusters : bool
        Whether self-labeling stops when a cluster loses its last row, and keeps the
        epoch with the lowest clustering loss on X, or the state before it: training on
        few confident rows can make it worse. False: the last epoch is kept, as
        published.
    metric : {"auto", "cosine", "euclidean"}
        Distance between embeddings. "auto": cosine with an embedder, as published, and
        euclidean on vectors without an embedder.
    augment : "auto", nn.Module or None
        Random views; "auto": :func:`sklabel.augment.scan_strong` for images,
        :class:`sklabel.augment.VectorNoise` for vectors.
    max_epochs : int
        Passes over X in the clustering stage. Published: 50 on CIFAR-10.
    max_steps : int or None
        Length of the clustering stage in optimizer steps; overrides ``max_epochs``.
    lr
        Published: 1e-4, for 390 steps per epoch.

    Attributes
    ----------
    neighbors_ : ndarray of int of shape (n_samples, n_neighbors + 1)
        Mined neighbors, the row itself first.
    embedder_ : estimator
        Fitted embedder, if there is one.
    net_ : skorch.NeuralNet
        Trained net of the last stage; ``net_.history`` holds per epoch of both stages
        ``stage`` ("cluster", then "self-label"), ``train_loss``, ``largest_cluster``
        (share), ``clusters_used``, ``confident_share``, ``neighbor_agreement`` (rows in
        the cluster of a neighbor); in the first stage ``score`` (lower is better, needs
        no labels), ``consistency``, ``entropy`` and ``best`` (whether it is the best
        epoch so far; the last of these is kept); and in self-labeling with
        ``keep_clusters`` ``clustering_loss``, ``lost_clusters`` and ``best`` (if no
        epoch is, the state before self-labeling is kept).
    prior_ : ndarray of shape (n_clusters,) or None
        Expected share of each cluster in use.
    n_iter_ : int
        Epochs trained in both stages.

    Raises
    ------
    ValueError
        If ``n_clusters`` is larger than the number of samples.

    Warns
    -----
    CollapseWarning
        If a stage has learned nothing, self-labeling lost a cluster, fewer clusters
        than asked for are in use, or one holds most rows.

    See Also
    --------
    sklabel.metrics.clustering_accuracy : Score against classes, best one-to-one match.

    Notes
    -----
    Differences from the published method: the learning rate of both stages is 1e-3
    because default trainings have hundreds of steps, not 20,000; the default embedder
    is SimCLR as in its own paper, with a temperature of 0.5, both views as anchors, and
    a head with BatchNorm; epoch and head are chosen on the training rows; self-labeling
    keeps its best epoch (``keep_clusters``); biases and norms have no weight decay;
    batches without a confident row are skipped, while the public code stops. The
    authors' setting for CIFAR-10: ``lr=1e-4, max_epochs=50, self_label_epochs=200,
    self_label_batch_size=1000, keep_clusters=False,
    embedder=SimCLRTransformer(temperature=0.1, anchors="first", projection_norm=False,
    output="projection", backbone="resnet18", augment=Contrastive(crop=(0.2, 1.0),
    jitter=(0.4, 0.4, 0.4, 0.1)), optimizer="sgd", lr=0.4, final_lr=4e-4,
    warmup_epochs=0, batch_size=512, max_epochs=500)``.

    With ``warm_start``, the encoder keeps learning, and so does the kept head if it has
    ``n_clusters`` outputs; other heads are new.

    References
    ----------
    .. [1] W. Van Gansbeke et al., "SCAN: learning to classify images without labels",
       ECCV 2020; equation 2.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.clustering import SCANClusterer
    >>> X = load_digits().data[:200]
    >>> SCANClusterer(n_clusters=5, random_state=0).fit_predict(X).shape
    (200,)
    """

    n_clusters: Count = 10
    n_neighbors: Count = 20
    entropy_weight: NonNegative = 5.0
    _: KW_ONLY
    n_heads: Count = 1
    prior: ArrayLike | None = None
    train_backbone: bool = True
    self_label_epochs: CountOrZero = 15
    self_label_threshold: BelowOne = 0.99
    self_label_batch_size: AtLeastTwo = 512
    self_label_lr: Positive | None = None
    self_label_ema_decay: BelowOne | None = None
    balance_clusters: bool = True
    keep_clusters: bool = True
    embedder: BaseEstimator | None = None
    metric: Literal["auto", "cosine", "euclidean"] = "auto"
    augment: Augment = "auto"
    max_epochs: Count = 30
    batch_size: AtLeastTwo = 128
    optimizer: Optimizer = "adam"
    weight_decay: NonNegative = 1e-4
    schedule: Schedule = "constant"

    _default_embedder = SimCLRTransformer

    def _train(self, X, samples, seed):
        self.prior_ = self._check_prior()
        statistics = samples.statistics()
        self._fit_embedder(X, samples)
        neighbors = self._mine_neighbors(X, samples, seed)
        self.neighbors_ = samples.all_neighbors(neighbors)
        clustered = self._stage(
            "cluster",
            self._build_module(*statistics),
            Paired(samples, self.neighbors_),
            predicts=False,
        )
        self_labeled = self._stage(
            "self-label",
            self._build_self_label(*clustered.keep_best(), *statistics, neighbors),
            Shuffled(samples),
            max_epochs=max(1, self.self_label_epochs),
            max_steps=None,
            batch_size=self.self_label_batch_size,
            lr_name="self_label_lr",
            train=self.self_label_epochs > 0,
        )
        if self.keep_clusters:
            self_labeled.keep_best()

    def score(self, X, y=None):
        """Return how well neighbors agree on X, so that a search needs no labels.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.
        y : None
            Ignored.

        Returns
        -------
        score : float
            Minus the ``score`` of ``net_.history``, on X and neighbors within X: the
            entropy of the clusters minus the disagreement of neighbors, at best the log
            of ``n_clusters``; higher is better. Values are comparable only for equal
            ``n_clusters``, ``n_neighbors`` and numbers of rows.
        """
        samples = self._check_X(X)
        if samples.n_trained < 2:
            raise ValueError("X has fewer than two rows to score: none has a neighbor.")
        p = torch.from_numpy(self._forward_rows(samples)[samples.good])
        neighbors = torch.from_numpy(self._mine_neighbors(X, samples, seed=0))
        return -float(scan_head_scores(p[None], neighbors, self._expected_shares())[0])

    def _check_prior(self):
        """Return the share of each cluster (n_clusters,); None: all are equal."""
        if self.prior is None:
            return None
        prior = np.asarray(self.prior, dtype=np.float32)
        if prior.shape != (self.n_clusters,):
            raise ValueError(
                f"prior has shape {prior.shape}; it must hold one share for each of "
                f"n_clusters={self.n_clusters}."
            )
        if not (np.isfinite(prior) & (prior >= 0)).all() or not prior.any():
            raise ValueError(
                f"prior={self.prior} must hold finite shares that are not negative, at "
                "least one above 0."
            )
        return prior / prior.sum()

    def _expected_shares(self):
        """Return ``prior_`` as a tensor."""
        return None if self.prior_ is None else torch.from_numpy(self.prior_)

    def _mine_neighbors(self, X, samples, seed):
        """Return the nearest of each readable row among these, the row itself first."""
        Z = self._embed(X, samples, standardize=True)
        n_neighbors = min(self.n_neighbors, len(Z) - 1)
        embedded = hasattr(self, "embedder_")
        if self.metric == "cosine" or (self.metric == "auto" and embedded):
            return mine_neighbors(Z, n_neighbors, device=self.device)[1]
        given = {"random_state": seed, "device": self.device}
        return kneighbors(Z, n_neighbors + 1, **given)[1]

    def _build_module(self, mean, std):
        before = self._continued
        backbone = self._part("backbone", lambda: self._build_backbone(mean, std))
        heads = MultiHead(backbone.n_features_out, self.n_clusters, self.n_heads)
        if before and before.heads.n_classes == self.n_clusters:
            # one head was kept: the first of these
            for new, kept in zip(heads.parameters(), before.heads.parameters()):
                new.data[: self.n_clusters] = kept.data[: self.n_clusters]
        return _SCAN(
            backbone,
            heads,
            self._build_augment(self.augment, scan_strong(fill=mean), mean, std),
            self.entropy_weight,
            self._expected_shares(),
            self.train_backbone,
        )

    def _build_self_label(self, backbone, heads, mean, std, neighbors=None):
        kind, of_clustering = _SelfLabel, {}
        if self.keep_clusters:
            kind = _KeepingSelfLabel
            of_clustering["entropy_weight"] = self.entropy_weight
            of_clustering["prior"] = self._expected_shares()
        return kind(
            backbone,
            heads,
            self._build_augment(self.augment, scan_strong(fill=mean), mean, std),
            self.self_label_threshold,
            self.balance_clusters,
            self.train_backbone,
            neighbors=neighbors,
            ema_decay=self.self_label_ema_decay,
            **of_clustering,
        )

    def _rebuild_module(self, mean, std):
        backbone = self._build_backbone(mean, std)
        heads = MultiHead(backbone.n_features_out, self.n_clusters_, 1)
        module = self._build_self_label(backbone, heads, mean, std)
        module.drop_training_state()
        return module

    def _set_labels(self, p, samples):
        used = super()._set_labels(p, samples)
        if self.prior_ is not None:
            self.prior_ = self.prior_[used]
        return used

    def _check_health(self, p):
        # Ctrl-C may leave an epoch without
        scores = [epoch["score"] for epoch in self.net_.history if "score" in epoch]
        score, best = min(scores, default=-math.inf), -math.log(self.n_clusters)
        if self.self_label_epochs and not (p > self.self_label_threshold).any():
            warn(
                "No row is confident enough for self-labeling, so it changes nothing: "
                f"raise max_epochs={self.max_epochs} or lr={self.lr}, or lower "
                f"self_label_threshold={self.self_label_threshold}.",
                CollapseWarning,
            )
        elif score > 0.05 * best:
            warn(
                "Neighbors' clusters share almost no information: score "
                f"{score:.3f}, at best {best:.2f}. Raise max_epochs={self.max_epochs} "
                f"or lr={self.lr}, or give a better embedder.",
                CollapseWarning,
            )
        taught = [e for e in self.net_.history if e.get("stage") == "self-label"]
        if taught and taught[-1].get("lost_clusters"):
            kept = max((i for i, e in enumerate(taught, 1) if e["best"]), default=0)
            warn(
                f"Self-labeling ended with epoch {len(taught)}, in which "
                f"{taught[-1]['lost_clusters']} of the clusters became empty; "
                f"the weights {f'of epoch {kept}' if kept else 'before it'} are kept. "
                f"Raise self_label_threshold={self.self_label_threshold}, "
                f"self_label_batch_size={self.self_label_batch_size} or max_epochs="
                f"{self.max_epochs}, or set keep_clusters=False to train on anyway.",
                CollapseWarning,
            )
        super()._check_health(p, prior=self._check_prior())

    def _remedies(self):
        more = f"Raise entropy_weight={self.entropy_weight}"
        return f"{more}, or lower n_clusters", f"{more}, or give prior if that is so"
