"""IIC: invariant information clustering (Ji, Henriques and Vedaldi, 2019)."""

from numbers import Integral, Real

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from .._base import (
    SHARED_CONSTRAINTS,
    BaseLearner,
    ClusteringMixin,
    check_information,
    check_n_clusters,
    cluster_figures,
    neighbor_agreement,
    predict_all,
    predict_some,
)
from .._callbacks import fitting
from .._data import Rounds
from .._warn import warn
from ..augment import Contrastive
from ..backbones import build_sobel_backbone
from ..losses import iic_loss
from ..modules import MultiHead, filled_

# what new heads are tried on: rows, and steps on their features
_TRIAL_ROWS, _TRIAL_STEPS, _TRIAL_LR = 20_000, 2000, 3e-3


class _IIC(nn.Module):
    """All rows pass through the over-clustering heads, then through the others."""

    def __init__(self, backbone, overcluster, heads, augment, **settings):
        super().__init__()
        self.backbone = backbone
        self.overcluster = overcluster
        self.heads = heads
        self.augment = augment
        self.register_buffer("best_head", torch.tensor(0))
        for name, value in settings.items():
            setattr(self, name, value)
        self.step, self.n_overcluster_steps, self.head_losses = 0, 0, 0.0

    def forward(self, x):
        return self.probabilities(self.backbone(x))

    def probabilities(self, h):
        return self.heads(h)[int(self.best_head)].float().softmax(-1)  # (B, K)

    def both(self, x):
        """Return features and probabilities side by side, (B, D + K)."""
        h = self.backbone(x)
        return torch.cat([h.float(), self.probabilities(h)], 1)

    def before_epoch(self, net, samples):
        n_passes = self.overcluster_epochs + self.cluster_epochs
        self.step, self.head_losses = 0, 0.0
        # what is left may be less than an epoch
        n_steps = min(samples.n_steps, net.total_steps_ - net.step_)
        # what is due within the epoch comes before it: new heads need their share
        due, due_before = (
            (step * (self.n_restarts + 1) - 1) // net.total_steps_
            for step in (net.step_ + n_steps, net.step_)
        )
        if net.step_ and due > due_before:
            self.restart(net, samples)
        self.n_overcluster_steps = n_steps * self.overcluster_epochs // n_passes

    def restart(self, net, samples):
        """Try new heads on the encoder as it is; the best, new or old, takes all places.

        Heads that learn together with their encoder stay with what they began with.
        """
        heads, z = self.heads, self.paired_features(net, samples)
        n_tried = heads.n_heads + 1
        tried = MultiHead(z.shape[2], heads.n_classes, n_tried, init_std=0.01).to(z)
        self.go_on_in(tried)
        n_steps = min(_TRIAL_STEPS, net.total_steps_ // (self.n_restarts + 1))
        self.fit_heads(tried, z, n_steps, net.batch_size * self.n_repeats)
        with torch.no_grad():
            found = tried.keep_head(int(self.losses_of(tried, z).argmin()))
        places = torch.arange(heads.n_heads * heads.n_classes)
        filled_(heads.linear, found.linear, places.view(heads.n_heads, -1))
        for parameter in heads.parameters():  # the optimizer forgets the old ones
            net.optimizer_.state.pop(parameter, None)

    def go_on_in(self, heads):
        """Make the first of other heads the one that was best so far."""
        best = self.heads.keep_head(int(self.best_head))
        filled_(heads.linear, best.linear, slice(heads.n_classes))

    def fit_heads(self, heads, z, n_steps, n_pairs):
        """Train heads on paired features (2, n, D)."""
        optimizer = torch.optim.Adam(heads.parameters(), lr=_TRIAL_LR)
        for _ in range(n_steps):
            rows = torch.randperm(z.shape[1])[:n_pairs].to(z.device)
            with torch.enable_grad():
                loss = self.losses_of(heads, z[:, rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def paired_features(self, net, samples):
        """Return features (2, n, D) of some plain rows and of a view of each."""
        z = predict_some(net, samples, samples.spread(_TRIAL_ROWS), self.pair)
        return torch.stack(z.chunk(2, 1))

    def pair(self, x):
        return torch.cat([self.backbone(x), self.backbone(self.augment(x))], 1)

    def losses_of(self, heads, z):
        """Return the loss of each head on paired features (2, n, D)."""
        p1, p2 = heads(z[0]).softmax(-1), heads(z[1]).softmax(-1)
        return iic_loss(p1, p2, self.marginal_weight)

    def loss(self, x, y):
        over = self.step < self.n_overcluster_steps
        p1, p2 = self.views(x, self.overcluster if over else self.heads)
        losses = iic_loss(p1, p2, self.marginal_weight)  # (heads,)
        loss = losses.mean()
        if over:
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
        return p1, p2.unflatten(1, (self.n_repeats, len(x))).mean(1)

    def after_step(self):
        self.step += 1

    def after_epoch(self, net, samples):
        if self.step > self.n_overcluster_steps:  # or else the heads are as they were
            self.best_head.fill_(self.head_losses.argmin())
        both = predict_all(net, samples, self.both)
        Z, p = both.split([self.backbone.n_features_out, self.heads.n_classes], 1)
        agreement = neighbor_agreement(Z.numpy(), p.argmax(1).numpy())
        return {**cluster_figures(p), "neighbor_agreement": agreement}

    def keep_best(self):
        """Forget all heads but the one of the lowest loss."""
        self.heads = self.heads.keep_head(int(self.best_head))
        self.best_head.fill_(0)


class IICClusterer(ClusteringMixin, BaseLearner):
    """Cluster images so that an image and a transformed copy share a cluster.

    A network is trained from nothing to tell as much as it can about the cluster of a
    transformed image from the cluster of the image. The mutual information of the two
    is greatest where they agree, each is sure, and all clusters are of one size. Heads
    with more clusters than are wanted are trained in turn with the others, and teach
    the encoder finer differences. Read more in the :ref:`User Guide <iic>`.

    Parameters
    ----------
    n_clusters : int, default=10
        Number of clusters. Outputs that no row of X uses are dropped at the end;
        ``warm_start`` then makes new heads on the trained encoder, as it does for
        another number of clusters.
    n_overclusters : int or None, default=None
        Clusters of the over-clustering heads; None: five times ``n_clusters``.
        Published: 70 for 10 clusters on CIFAR-10, 50 on MNIST.
    n_sub_heads : int, default=5
        Heads of each kind, trained side by side; the one with the lowest loss is kept.
        With ``warm_start`` it goes on beside new ones.
    n_restarts : int, default=0
        Times that ``n_sub_heads`` new heads of ``n_clusters`` are tried on the encoder
        trained so far, at equal distances in the training, rounded down to whole
        epochs: for 2000 steps at most, on features of 20,000 rows at most; the best,
        new or old, takes all places. Heads that learn together with their encoder may
        keep two kinds of images in one cluster for good. Published: 0.
    n_repeats : int, default=3
        Transformed copies that each row is paired with in a step. Published: 3 on
        CIFAR-10, 5 elsewhere.
    marginal_weight : float, default=1.0
        Weight of the entropy that keeps all clusters in use, > 0. Paper: lambda.
    overcluster_epochs : int, default=1
        Passes over X per epoch through the over-clustering heads; 0 leaves them out.
    cluster_epochs : int, default=1
        Passes over X per epoch through the heads of ``n_clusters``. Published: 2 on
        CIFAR-10 and MNIST.
    sobel : bool, default=False
        Whether the network sees the edges of the grey image, two channels, in place of
        its colors, see :func:`sklabel.augment.sobel`. Published: True, but for MNIST.
        Without, images of one color may become a cluster.
    backbone : str, nn.Module or fitted embedder, default="auto"
        Encoder; see :func:`sklabel.backbones.build_backbone`.
    augment : "auto", nn.Module or None, default="auto"
        Random views that the plain rows are paired with; "auto":
        :class:`sklabel.augment.Contrastive` with 40 to 100 % of the area and colors
        always changed for images, :class:`sklabel.augment.VectorNoise` for vectors.
        Turn off flips for digits: ``Contrastive(flip=0)``.
    max_epochs : int, default=30
        Epochs of ``overcluster_epochs + cluster_epochs`` passes over X. Published:
        2000.
    max_steps : int or None, default=None
        Length of training in optimizer steps; overrides ``max_epochs``.
    batch_size : int, default=256
        Samples per step; each makes ``n_repeats`` pairs. Published: 220 on CIFAR-10.
    optimizer : str or class, default="adam"
        "sgd", "nesterov", "adam", "adamw", or one of the LARS family for batches of
        thousands, see :class:`sklabel.optim.LARS`: "lars", "lars_byol", "larc", "lars_cifar".
    lr : float, default=1e-3
        Peak learning rate. Published: 1e-4, for hundreds of thousands of steps.
    weight_decay : float, default=0.0
        Decay of weights; biases and norms have none.
    schedule : {"cosine", "fixmatch", "step", "constant"} or callable, default="constant"
        Course of the learning rate after the warm-up.
    warmup_epochs : float, default=0
        Epochs of linear warm-up.
    image_shape : tuple or None, default=None
        (height, width) or (height, width, channels) of images that come as 2-D X.
    image_size : int, tuple or None, default=None
        Size to which image files are resized; None: they must have one size.
    on_error : {"raise", "skip"}, default="raise"
        What to do with image files that cannot be read.
    warm_start : bool, default=False
        Whether ``fit`` continues from the weights of the last fit.
    device : str or torch.device, default="auto"
        "auto": CUDA, then MPS, then CPU.
    precision : {"auto", "bfloat16", "float32"}, default="auto"
        "auto": bfloat16 autocast for images where the hardware multiplies it.
    checkpoint_dir : str, Path or None, default=None
        Folder for checkpoints; the same fit called again continues from the last one.
    random_state : int, RandomState instance or None, default=None
        Seed of everything random; the global generators are left alone.
    verbose : int, default=0
        1: a progress bar.
    net_params : dict or None, default=None
        Further settings of the net, such as ``compile``, ``callbacks`` or
        ``optimizer__momentum``.

    Attributes
    ----------
    labels_ : ndarray of int of shape (n_samples,)
        Cluster of each row, 0 to ``n_clusters_ - 1``, all of them in use.
    confidence_ : ndarray of shape (n_samples,), float32
        Probability of each row's cluster.
    n_clusters_ : int
        Clusters in use.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss`` (mean of all
        passes), ``cluster_loss`` and ``overcluster_loss`` (minus the mutual
        information, at best minus the log of the number of clusters), ``information``
        (that of ``n_clusters``, whatever ``marginal_weight``, at best their log),
        ``view_agreement`` (share of rows whose views are in their cluster),
        ``neighbor_agreement`` (how often one of the ten nearest in the encoder's
        features is in a row's cluster, of 1000 rows at most), ``largest_cluster``
        (share), ``clusters_used`` and ``confident_share``.
    encoder_ : nn.Module
        Trained encoder, the heads left out.
    sample_shape_ : tuple of int
        Shape of one sample: ``(D,)`` or ``(C, H, W)``.
    n_features_in_ : int
        Values per sample.
    n_iter_ : int
        Epochs trained.
    interrupted_ : bool
        Whether Ctrl-C ended the training early.

    Raises
    ------
    ValueError
        If ``n_clusters`` is larger than the number of samples, or ``sobel`` is asked
        for on vectors.

    See Also
    --------
    SCANClusterer : Starts from an embedding; less up to the seed.
    sklabel.metrics.clustering_accuracy : Score against classes, best one-to-one match.

    Notes
    -----
    Some seeds end far below others: set ``n_restarts``, or train several and keep the one
    with the highest ``score``. Data of some hundred rows make few steps: raise ``lr`` to
    1e-2 there. The joint distribution of ``n_clusters`` squared entries is estimated from
    one batch, which should hold many more pairs than a tenth of that (a warning);
    published batches hold 660 to 1000 for the 2500 to 19,600 of the over-clustering heads.
    Time and memory of a step grow with ``n_repeats``.

    Departures: the first view is the plain image, which is what is clustered in the
    end, where the public code crops it too; the rate is 1e-3, for shorter trainings;
    batch normalization tracks its statistics on all data, so that the cluster of a row
    does not depend on the rows it comes with.

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

    _parameter_constraints = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "n_overclusters": [Interval(Integral, 1, None, closed="left"), None],
        "n_sub_heads": [Interval(Integral, 1, None, closed="left")],
        "n_restarts": [Interval(Integral, 0, None, closed="left")],
        "n_repeats": [Interval(Integral, 1, None, closed="left")],
        "marginal_weight": [Interval(Real, 0, None, closed="neither")],
        "overcluster_epochs": [Interval(Integral, 0, None, closed="left")],
        "cluster_epochs": [Interval(Integral, 1, None, closed="left")],
        "sobel": ["boolean"],
        "augment": [StrOptions({"auto"}), nn.Module, callable, None],
        **SHARED_CONSTRAINTS,
    }

    def __init__(
        self,
        n_clusters=10,
        *,
        n_overclusters=None,
        n_sub_heads=5,
        n_restarts=0,
        n_repeats=3,
        marginal_weight=1.0,
        overcluster_epochs=1,
        cluster_epochs=1,
        sobel=False,
        backbone="auto",
        augment="auto",
        max_epochs=30,
        max_steps=None,
        batch_size=256,
        optimizer="adam",
        lr=1e-3,
        weight_decay=0.0,
        schedule="constant",
        warmup_epochs=0,
        image_shape=None,
        image_size=None,
        on_error="raise",
        warm_start=False,
        device="auto",
        precision="auto",
        checkpoint_dir=None,
        random_state=None,
        verbose=0,
        net_params=None,
    ):
        self.n_clusters = n_clusters
        self.n_overclusters = n_overclusters
        self.n_sub_heads = n_sub_heads
        self.n_restarts = n_restarts
        self.n_repeats = n_repeats
        self.marginal_weight = marginal_weight
        self.overcluster_epochs = overcluster_epochs
        self.cluster_epochs = cluster_epochs
        self.sobel = sobel
        self.backbone = backbone
        self.augment = augment
        self.max_epochs = max_epochs
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup_epochs = warmup_epochs
        self.image_shape = image_shape
        self.image_size = image_size
        self.on_error = on_error
        self.warm_start = warm_start
        self.device = device
        self.precision = precision
        self.checkpoint_dir = checkpoint_dir
        self.random_state = random_state
        self.verbose = verbose
        self.net_params = net_params

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
        self : IICClusterer
        """
        samples = self._check_X(X, reset=True)
        check_n_clusters(self, samples)
        self._check_pairs(samples.n_trained)
        n_passes = self.overcluster_epochs + self.cluster_epochs
        n_steps = n_passes * samples.n_batches(self.batch_size)
        with self._seeded():
            module = self._build_module(*samples.statistics())
            self._fit_net(module, Rounds(samples, n_steps))
            module.keep_best()
            p = self._forward_rows(samples)
        remedy = (
            f"Raise max_epochs={self.max_epochs}, lr={self.lr} or "
            f"marginal_weight={self.marginal_weight}"
        )
        check_information(self, "views")
        used = self._set_labels(
            p,
            samples,
            f"{remedy}, or lower n_clusters",
            f"{remedy}, or change the views",
        )
        module.heads = module.heads.keep_outputs(used)
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
            Mutual information of the clusters of the rows and of their views, all rows
            together, where ``marginal_weight`` is 1; higher is better. Values compare
            only at equal ``n_clusters`` and ``augment``.
        """
        samples = self._check_X(X)
        net = self.net_
        module = net.module_.eval()
        pairs = []
        with self._seeded(), torch.inference_mode():
            for rows in samples.epoch(self.batch_size):
                with net.autocast():
                    x = net.to_device(samples[rows][0])
                    pairs.append(module.views(x, module.heads))
            p1, p2 = (torch.cat(p, 1) for p in zip(*pairs, strict=True))
            return -float(iic_loss(p1, p2, self.marginal_weight).mean())

    def _check_pairs(self, n_rows):
        """Say so where a batch is too small to tell how clusters go together."""
        n_pairs = min(self.batch_size, n_rows) * self.n_repeats
        if self.n_clusters**2 > 10 * n_pairs:
            warn(
                f"A batch of {n_pairs} pairs says little of the {self.n_clusters**2} pairs "
                f"of clusters: raise batch_size={self.batch_size} or n_repeats="
                f"{self.n_repeats}, or lower n_clusters={self.n_clusters}.",
                UserWarning,
            )

    def _build_module(self, mean, std, n_clusters=None, n_heads=None):
        before = self._continued
        backbone = before.backbone if before else self._build_backbone(mean, std)
        wanted = self.n_overclusters or 5 * self.n_clusters, self.n_sub_heads
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
            heads,
            self._build_augment(self.augment, views, mean, std),
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
        self._continued = None
        return self._build_module(mean, std, self.n_clusters_, n_heads=1)
