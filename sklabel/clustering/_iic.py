"""IIC: invariant information clustering (Ji, Henriques and Vedaldi, 2019)."""

import torch
from torch import nn

from .._core.health import cluster_metrics, neighbor_agreement
from .._core.learner import Learner
from .._core.overclustering import Overclustering, OverclusteringMixin
from .._core.parameters import (
    KW_ONLY,
    Augment,
    Count,
    CountOrZero,
    Optimizer,
    Positive,
    Schedule,
)
from .._core.processes import gathered
from .._core.roles.clustering import ProbabilisticClusteringRole
from .._core.samplers import Shuffled
from .._core.warn import warn
from ..augment import Contrastive
from ..backbones import build_sobel_backbone
from ..losses import iic_loss
from ..modules import MultiHead, filled_

# what new heads are tried on: rows, and steps on their features
_TRIAL_ROWS, _TRIAL_STEPS, _TRIAL_LR = 20_000, 2000, 3e-3


class _IIC(Overclustering):
    heads: nn.Module
    augment: nn.Module
    n_restarts: int
    n_repeats: int

    def __post_init__(self):
        super().__post_init__()
        self.register_buffer("best_head", torch.tensor(0))
        self.head_losses = 0.0  # sum of each head's over the epoch

    def forward(self, x):
        return self.probabilities(self.backbone(x))

    def probabilities(self, h):
        return self.heads(h)[int(self.best_head)].float().softmax(-1)  # (B, K)

    def both(self, x):
        """Return features and probabilities side by side, (B, D + K)."""
        h = self.backbone(x)
        return torch.cat([h.float(), self.probabilities(h)], 1)

    def before_epoch(self, net, sampler):
        super().before_epoch(net, sampler)
        self.head_losses = 0.0
        # what is due within the epoch comes before it: new heads need their share
        due, due_before = (
            (step * (self.n_restarts + 1) - 1) // net.total_steps_
            for step in (net.step_ + self.n_steps, net.step_)
        )
        if net.step_ and due > due_before:
            self.restart(net, sampler.samples)

    def restart(self, net, samples):
        """Try new heads on the frozen encoder; the best of new and old replaces all.

        Heads that learn together with their encoder rarely leave their first solution.
        """
        heads, pairs = self.heads, self.paired_features(net, samples)
        n_tried = heads.n_heads + 1
        tried = MultiHead(pairs.shape[2], heads.n_classes, n_tried, init_std=0.01)
        self.go_on_in(tried.to(pairs))
        n_steps = min(_TRIAL_STEPS, net.total_steps_ // (self.n_restarts + 1))
        self.fit_heads(tried, pairs, n_steps, net.batch_size * self.n_repeats)
        with torch.no_grad():  # one after the other: pairs may be many
            heads_tried = [tried.keep_head(i) for i in range(n_tried)]
            losses = [self.losses_of(head, pairs) for head in heads_tried]
            best = heads_tried[int(torch.cat(losses).argmin())]
        places = torch.arange(heads.n_heads * heads.n_classes)
        filled_(heads.linear, best.linear, places.view(heads.n_heads, -1))
        for parameter in heads.parameters():  # the optimizer forgets the old ones
            net.optimizer_.state.pop(parameter, None)

    def go_on_in(self, heads):
        """Copy the best head so far into the first of other heads."""
        best = self.heads.keep_head(int(self.best_head))
        filled_(heads.linear, best.linear, slice(heads.n_classes))

    def paired_features(self, net, samples):
        """Return features (2, n, D) of some plain rows and of a view of each."""

        def pair(x):
            return torch.cat([self.backbone(x), self.backbone(self.augment(x))], 1)

        z = net.evaluate(samples, samples.spread(_TRIAL_ROWS), pair)
        return torch.stack(z.to(net.device).chunk(2, 1))

    def fit_heads(self, heads, pairs, n_steps, n_pairs):
        """Train heads alone, on ``n_pairs`` of the paired features in each step."""
        optimizer = torch.optim.Adam(heads.parameters(), lr=_TRIAL_LR)
        for _ in range(n_steps):
            rows = torch.randperm(pairs.shape[1])[:n_pairs].to(pairs.device)
            loss = self.losses_of(heads, pairs[:, rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def losses_of(self, heads, pairs):
        """Return the loss of each head on paired features (2, n, D)."""
        p1, p2 = (heads(z).softmax(-1) for z in pairs)
        return iic_loss(p1, p2, self.marginal_weight)

    def loss(self, x, y):
        p1, p2 = self.views(x, self.overcluster if self.overclusters else self.heads)
        losses = iic_loss(p1, p2, self.marginal_weight)  # (heads,)
        loss = losses.mean()
        if self.overclusters:
            return loss, {"overcluster_loss": loss.detach()}
        self.head_losses = self.head_losses + losses.detach()
        return loss, {
            "cluster_loss": loss.detach(),
            "view_agreement": (p1.argmax(-1) == p2.argmax(-1)).float().mean(),
            "information": -iic_loss(p1.detach(), p2.detach()).mean(),
        }

    def views(self, x, heads):
        """Return the probabilities (heads, B, K) of plain rows and of their views."""
        transformed = torch.cat([self.augment(x) for _ in range(self.n_repeats)])
        p1, p2 = (
            heads(self.backbone(view)).float().softmax(-1) for view in (x, transformed)
        )
        # the pairs' joint distribution is that of a row with the mean of its views
        p2 = p2.unflatten(1, (self.n_repeats, len(x))).mean(1)
        return gathered(p1, 1), gathered(p2, 1)

    def after_epoch(self, net, sampler):
        if self.step > self.n_overcluster_steps:  # or else the heads are as they were
            self.best_head.fill_(self.head_losses.argmin())
        both = net.evaluate(sampler.samples, sampler.samples.good, self.both)
        Z, p = both.split([self.backbone.n_features_out, self.heads.n_classes], 1)
        agreement = neighbor_agreement(Z.numpy(), p.argmax(1).numpy())
        return {**cluster_metrics(p), "neighbor_agreement": agreement}

    def keep_best(self):
        """Forget all heads but the one of the lowest loss."""
        self.heads = self.heads.keep_head(int(self.best_head))
        self.best_head.fill_(0)

    def keep_outputs(self, used):
        """Forget the other clusters."""
        self.heads = self.heads.keep_outputs(used)


class IICClusterer(OverclusteringMixin, ProbabilisticClusteringRole, Learner):
    """Cluster images so that an image and a transformed copy share a cluster.

    A network is trained from random weights to maximize the mutual information between
    the cluster of an image and the cluster of its transformed copy. It is greatest if
    the two agree, each is confident, and all clusters have the same size.
    Over-clustering heads, with more than ``n_clusters`` clusters, are trained
    alternately with the others and teach the encoder finer differences. Read more in
    the :ref:`User Guide <iic>`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters. Outputs that no row of X uses are dropped at the end;
        ``warm_start`` then adds new heads to the trained encoder, as it does if
        ``n_clusters`` changes.
    n_overclusters : int or None
        Clusters of the over-clustering heads; None: five times ``n_clusters``, but at
        most 500 or ``n_clusters``, whichever is larger. Time and memory of a step grow
        with its square. Published: 70 for 10 clusters on CIFAR-10, 50 on MNIST.
    n_sub_heads : int
        Heads of each kind, trained side by side; the one with the lowest loss is kept.
        With ``warm_start``, it continues beside new ones.
    n_restarts : int
        Number of times that ``n_sub_heads`` new heads of ``n_clusters`` are trained on
        the current encoder, at equal intervals rounded down to whole epochs, for at
        most 2000 steps on features of at most 20,000 rows; the best head, new or old,
        then replaces all. Without restarts, heads that learn together with their
        encoder may keep two kinds of images in one cluster forever. Published: 0.
    n_repeats : int
        Transformed copies that each row is paired with in a step. Published: 3 on
        CIFAR-10, 5 elsewhere.
    marginal_weight : float
        Weight of the entropy that keeps all clusters in use, > 0. Paper: lambda.
    overcluster_epochs : int
        Passes over X per epoch through the over-clustering heads; 0 leaves them out.
    cluster_epochs : int
        Passes over X per epoch through the heads of ``n_clusters``. Published: 2 on
        CIFAR-10 and MNIST.
    sobel : bool
        Whether the network sees the edges of the gray image (two channels) instead of
        its colors, see :func:`sklabel.augment.sobel`. Published: True, except on MNIST.
        Without, images of one color may become a cluster.
    augment : "auto", nn.Module or None
        Random views to pair with the plain rows; "auto":
        :class:`sklabel.augment.Contrastive` with 40 to 100 % of the area and always
        changed colors for images, :class:`sklabel.augment.VectorNoise` for vectors.
        Turn off flips for digits: ``Contrastive(flip=0)``.
    max_epochs : int
        Epochs of ``overcluster_epochs + cluster_epochs`` passes over X. Published:
        2000.
    batch_size : int
        Samples per step; each makes ``n_repeats`` pairs. Published: 220 on CIFAR-10.
    lr
        Published: 1e-4, for hundreds of thousands of steps.

    Attributes
    ----------
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss`` (mean of all
        passes), ``cluster_loss`` and ``overcluster_loss`` (minus the mutual
        information, at best minus the log of the number of clusters), ``information``
        (mutual information of the ``n_clusters`` clusters with ``marginal_weight=1``,
        at best their log), ``view_agreement`` (share of rows whose views are in their
        cluster), ``neighbor_agreement`` (how often one of the ten nearest neighbors in
        the encoder's features is in a row's cluster, for at most 1000 rows),
        ``largest_cluster`` (share), ``clusters_used`` and ``confident_share``.

    Raises
    ------
    ValueError
        If ``n_clusters`` is larger than the number of samples, or ``sobel=True`` with
        vectors.

    See Also
    --------
    SCANClusterer : Starts from an embedding; depends less on the seed.
    sklabel.metrics.clustering_accuracy : Score against classes, best one-to-one match.

    Notes
    -----
    Results vary greatly with the seed: set ``n_restarts``, or train several models and
    keep the one with the highest ``score``. With a few hundred rows there are few
    steps: raise ``lr`` to 1e-2. The joint distribution has ``n_clusters`` squared
    entries and is estimated from one batch, which should hold many more pairs than a
    tenth of that (else there is a warning); published batches hold 660 to 1000 pairs
    for the 2500 to 19,600 entries of the over-clustering heads. Time and memory of a
    step grow with ``n_repeats``.

    Differences from the public code: the first view is the plain image, which is
    clustered in the end, not a crop; crops have a random area, not one of a few sizes;
    the learning rate is 1e-3, for shorter trainings; batch normalization tracks its
    statistics on all data, so that the cluster of a row does not depend on the rows in
    its batch.

    References
    ----------
    .. [1] X. Ji, J. F. Henriques, A. Vedaldi, "Invariant information clustering for
       unsupervised image classification and segmentation", ICCV 2019; equations 2
       and 3.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.clustering import IICClusterer
    >>> X = load_digits().data[:200]
    >>> clusterer = IICClusterer(5, lr=1e-2, batch_size=50, random_state=0)
    >>> clusterer.fit_predict(X).shape
    (200,)
    """

    n_clusters: Count = 10
    _: KW_ONLY
    n_overclusters: Count | None = None
    n_sub_heads: Count = 5
    n_restarts: CountOrZero = 0
    n_repeats: Count = 3
    marginal_weight: Positive = 1.0
    overcluster_epochs: CountOrZero = 1
    cluster_epochs: Count = 1
    sobel: bool = False
    augment: Augment = "auto"
    max_epochs: Count = 30
    optimizer: Optimizer = "adam"
    schedule: Schedule = "constant"

    def _check_samples(self, samples):
        super()._check_samples(samples)
        n_pairs = min(self.batch_size, samples.n_trained) * self.n_repeats
        if (
            self.n_clusters**2 > 10 * n_pairs
        ):  # too few to tell how clusters go together
            warn(
                f"A batch of {n_pairs} pairs is too small to estimate the "
                f"probabilities of {self.n_clusters**2} pairs of clusters: raise "
                f"batch_size={self.batch_size} or n_repeats={self.n_repeats}, or "
                f"lower n_clusters={self.n_clusters}.",
                UserWarning,
            )

    def _train(self, X, samples, seed):
        super()._train(X, samples, seed).keep_best()

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
            With ``marginal_weight=1``, the mutual information between the clusters of
            all rows and of their views; higher is better. Values are comparable only
            for equal ``n_clusters`` and ``augment``.
        """
        samples = self._check_X(X)
        module = self.net_.module_
        with self._seeded(), torch.inference_mode():
            pairs = self.net_.evaluate_epoch(
                Shuffled(samples), lambda x, y: module.views(x, module.heads)
            )
            p1, p2 = (torch.cat(p, 1) for p in zip(*pairs, strict=True))
            return -float(iic_loss(p1, p2, self.marginal_weight).mean())

    def _check_health(self, p):
        self._check_information("views")
        super()._check_health(p)

    def _remedies(self):
        more = self._raise_learning()
        return f"{more}, or lower n_clusters", f"{more}, or change the views"

    def _build_module(self, mean, std, n_clusters=None, n_heads=None):
        before = self._continued
        backbone = self._part("backbone", lambda: self._build_backbone(mean, std))
        wanted = self._n_overclusters(), self.n_sub_heads
        overcluster = before.overcluster if before else None
        if before is None or wanted != (overcluster.n_classes, overcluster.n_heads):
            overcluster = MultiHead(backbone.n_features_out, *wanted, init_std=0.01)
        n_outputs = n_clusters or self.n_clusters, n_heads or self.n_sub_heads
        heads = MultiHead(backbone.n_features_out, *n_outputs, init_std=0.01)
        if before is not None and before.heads.n_classes == heads.n_classes:
            before.go_on_in(heads)
        views = Contrastive(
            # the public code cuts out 20 of 32 pixels for CIFAR, 40 % of the area
            crop=(0.4, 1.0),
            jitter=(0.4, 0.4, 0.4, 0.125),
            jitter_probability=1.0,
            grayscale=0.0,
        )
        return _IIC(
            backbone,
            overcluster,
            heads=heads,
            augment=self._build_augment(self.augment, views, mean, std),
            n_restarts=self.n_restarts,
            n_repeats=self.n_repeats,
            marginal_weight=self.marginal_weight,
            overcluster_epochs=self.overcluster_epochs,
            cluster_epochs=self.cluster_epochs,
        )

    def _build_backbone(self, mean=None, std=None):
        if self.sobel:
            return build_sobel_backbone(self.backbone, self.sample_shape_)
        return super()._build_backbone(mean, std)

    def _rebuild_module(self, mean, std):
        return self._build_module(mean, std, self.n_clusters_, n_heads=1)
