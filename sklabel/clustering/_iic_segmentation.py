"""IIC for segmentation: clusters of pixels (Ji, Henriques and Vedaldi, 2019)."""

import copy
import math
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .._core.health import cluster_metrics
from .._core.learner import Learner
from .._core.overclustering import Overclustering, OverclusteringMixin
from .._core.parameters import (
    KW_ONLY,
    AtLeastTwo,
    Augment,
    BelowOne,
    Count,
    CountOrZero,
    Optimizer,
    Positive,
    Schedule,
    UnitInterval,
    between,
)
from .._core.processes import gathered
from .._core.roles.clustering import ClusteringRole
from .._core.samplers import Shuffled
from ..augment import Contrastive
from ..backbones import build_backbone
from ..losses import iic_segmentation_loss

# sides below which the published network would see more than half an image at once
_SMALL = 64


class _IICSegmentation(Overclustering):
    head: nn.Module
    augment: nn.Module
    half_side: int
    collapsed: bool
    flip: float
    rotate: float
    zoom: float

    def forward(self, x):
        # the net takes one row per sample
        return self.maps(x, self.head).flatten(1)  # (B, K * H * W)

    def maps(self, x, head):
        """Return the probabilities (B, K, H, W) of the clusters of each pixel."""
        encoder = self.backbone
        # the encoder itself averages its maps
        p = head(encoder.body((x - encoder.mean) / encoder.std)).float().softmax(1)
        return F.interpolate(p, x.shape[2:], mode="bilinear", align_corners=False)

    def loss(self, x, y):
        views = self.views(x, self.overcluster if self.overclusters else self.head)
        loss = self.information_loss(*views)
        if self.overclusters:
            return loss, {"overcluster_loss": loss.detach()}
        with torch.no_grad():
            information = -iic_segmentation_loss(*views)
        return loss, {"cluster_loss": loss.detach(), "information": information}

    def information_loss(self, *views):
        """Return the loss of the output of `views`."""
        return iic_segmentation_loss(
            *views, self.marginal_weight, self.half_side, self.collapsed
        )

    def views(self, x, head):
        """Return the probabilities of images and of their recolored, moved copies.

        Also return the maps that move the copies back, and masks of where these show
        the image.
        """
        # in full precision: a grid in bfloat16 is off by tenths of a pixel
        with torch.autocast(x.device.type, enabled=False):
            there, back = _random_moves(x, self.flip, self.rotate, self.zoom)
            grid = F.affine_grid(there, x.shape, align_corners=False)
            # what comes into view from outside is a mirror image, and not compared
            view = F.grid_sample(
                self.augment(x), grid, padding_mode="reflection", align_corners=False
            )
            inside = F.affine_grid(back, x.shape, align_corners=False).abs() <= 1
        found = self.maps(x, head), self.maps(view, head), back, inside.all(-1)
        return gathered(found)

    def after_epoch(self, net, sampler):
        samples = sampler.samples
        p = net.evaluate(samples, samples.spread(32))  # some images stand for all
        p = p.unflatten(1, (self.n_outputs, *samples.sample_shape[1:]))
        maps = p.argmax(1)  # (n, H, W)
        same = [maps.diff(dim=dim).flatten() == 0 for dim in (1, 2)]
        same = torch.cat(same).float()  # none in images of one pixel
        agreement = float(same.mean()) if len(same) else 1.0
        metrics = cluster_metrics(p.movedim(1, 3).flatten(0, 2))
        return {**metrics, "neighbor_agreement": agreement}

    @property
    def n_outputs(self):
        return self.head.out_channels

    def keep_outputs(self, used):
        """Forget the clusters that no pixel uses."""
        used = torch.as_tensor(used, device=self.head.weight.device)
        # a copy rather than a new module: that would draw from the global generator
        head = copy.deepcopy(self.head)
        for name, values in self.head.named_parameters():
            setattr(head, name, nn.Parameter(values.detach()[used].clone()))
        head.out_channels = len(used)
        self.head = head


def _random_moves(x, flip, rotate, zoom):
    """Draw affine maps (B, 2, 3) for `affine_grid`, and return their inverses too."""
    n, _, height, width = x.shape
    draw = torch.rand(3, n, device=x.device)
    radians = torch.deg2rad(rotate * (2 * draw[0] - 1))
    factor = 1 + zoom * (2 * draw[1] - 1)
    cos, sin = radians.cos() * factor, radians.sin() * factor
    # in pixels, so that a rotation stays one where the image is not square
    there = torch.stack([cos, -sin * height / width, sin * width / height, cos], -1)
    there = there.unflatten(-1, (2, 2))
    mirrored = torch.where(draw[2] < flip, -1.0, 1.0)
    columns = torch.stack([mirrored, torch.ones_like(mirrored)], -1)
    there = there * columns[:, None]
    nowhere = torch.zeros(n, 2, 1, device=x.device)
    return tuple(torch.cat([m, nowhere], 2) for m in (there, there.inverse()))


def _published_net(sample_shape, width):
    """Return the paper's network, narrower: maps of half the height and width.

    Its receptive field is 30 pixels, a quarter of the published images. On small images
    it would cover everything, and borders would be smooth and arbitrary; so for these
    the network is the first three layers, with a field of 7 pixels, without halving.
    """
    n_in, *side = sample_shape
    small = min(side) < _SMALL
    sizes = (64, 128, 256) if small else (64, 128, 256, 256, 512, 512)
    layers = []
    for i, size in enumerate(sizes):
        # with other than whole sixteens torch's bfloat16 gradients of a dilated
        # convolution are garbage on CPUs
        n_out = 16 * math.ceil(width * size / 16)
        d = 2 if i >= 4 else 1
        # a border of zeros would tell where a pixel lies, and that is easier to agree
        # on than what it shows: the clusters became the upper and the lower half
        conv = nn.Conv2d(n_in, n_out, 3, 1, d, d, bias=False, padding_mode="replicate")
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(n_out), nn.ReLU()]
        if i == 1 and not small:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        n_in = n_out
    return nn.Sequential(*layers)


def _head(n_features, n_outputs):
    head = nn.Conv2d(n_features, n_outputs, 1)
    nn.init.kaiming_normal_(head.weight, nonlinearity="relu")
    nn.init.zeros_(head.bias)
    return head


class IICSegmenter(OverclusteringMixin, ClusteringRole, Learner):
    """Cluster the pixels of images by what surrounds them.

    A convolutional network assigns each pixel to a cluster. It is trained from random
    weights to maximize the mutual information between the cluster of a pixel in a
    recolored and moved copy of the image and the clusters of the pixels around that
    place in the original. Read more in the :ref:`User Guide <iic>`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters. Outputs that no pixel of X uses are dropped at the end;
        ``warm_start`` then adds a new head to the trained encoder, as it does if
        ``n_clusters`` changes.
    n_overclusters : int or None
        Clusters of the over-clustering head; None: five times ``n_clusters``, but at
        most 500 or ``n_clusters``, whichever is larger. Published: 15 for 3 clusters on
        COCO-Stuff, 24 on Potsdam.
    half_side : int
        Pixels are paired over all displacements of up to this many rows and columns,
        less than the image's shorter side. The time for the loss grows with its square,
        and thinner regions are not found. Published: 10 for 128 pixels, 5 on Potsdam.
    marginal_weight : float
        Weight of the entropy that keeps all clusters in use, > 0. Paper: lambda.
        Published: 1, but 1.5 for the head of ``n_clusters`` on COCO-Stuff-3.
    collapsed : bool
        Whether all displacements share one joint distribution; False: one each, as in
        all published models.
    overcluster_epochs : int
        Passes over X per epoch through the over-clustering head; 0 leaves it out.
    cluster_epochs : int
        Passes over X per epoch through the head of ``n_clusters``.
    flip : float
        Probability that the second view is mirrored left to right.
    rotate : float
        Largest rotation of the second view in degrees, in both directions.
    zoom : float
        The side of the second view is scaled by factors from ``1 - zoom`` to ``1 +
        zoom``; in [0, 1).
    width : float
        Channels of the network with ``backbone="auto"``, as a multiple of the published
        ones, > 0, rounded up to multiples of 16. The published network has six 3 x 3
        convolutions of 64 to 512 channels, which halve the images once; for sides below
        64 pixels, only the first three, without halving, are used. Published: 1.
    augment : "auto", nn.Module or None
        Changes the second view and must leave pixels in their places; "auto":
        :class:`sklabel.augment.Contrastive` with its color changes only.
    max_epochs : int
        Epochs of ``overcluster_epochs + cluster_epochs`` passes over X. Published:
        4800.
    batch_size
        Published: 60 to 120.
    lr
        Published: 1e-4 to 1e-6, for hundreds of thousands of steps.

    Attributes
    ----------
    labels_ : ndarray of int of shape (n_samples, height, width)
        Cluster of each pixel, from 0 to ``n_clusters_ - 1``, all in use.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss`` (mean of all
        passes), ``cluster_loss`` and ``overcluster_loss`` (minus the mutual
        information, at best minus the log of the number of clusters), ``information``
        (mutual information of the ``n_clusters`` clusters at the same place of two
        views with ``marginal_weight=1``, at best their log) and, for the pixels of up
        to 32 images, ``neighbor_agreement`` (how often adjacent pixels share a
        cluster), ``largest_cluster`` (share), ``clusters_used`` and
        ``confident_share``.
    encoder_ : nn.Module
        Trained encoder; returns the mean of its maps over each image.
    sample_shape_ : tuple of int
        Shape of one sample: ``(C, H, W)``.

    Raises
    ------
    ValueError
        If X holds vectors, ``half_side`` does not fit into the images, or ``backbone``
        does not return maps ``(B, D, H', W')`` before pooling.

    See Also
    --------
    IICClusterer : Clusters whole images.

    Notes
    -----
    A step takes one matrix product for each of the ``(2 * half_side + 1) ** 2``
    displacements, over all pixels of the batch.

    A network that can infer a pixel's position may use the position as its cluster;
    look at ``labels_.mean(0)``. Zero padding reveals the position in images that are no
    larger than the receptive field.

    Differences from the published method: the network is a quarter as wide, with a
    learning rate of 1e-3, for small data, and half as deep for small images; both heads
    share one ``marginal_weight``; padding repeats the outermost pixels instead of
    zeros, for the reason above; the last convolution, which computes the clusters, has
    no padding, so that maps keep their frame; the input is colors alone, while the
    public code adds edges for COCO-Stuff.

    References
    ----------
    .. [1] X. Ji, J. F. Henriques, A. Vedaldi, "Invariant information clustering for
       unsupervised image classification and segmentation", ICCV 2019; equation 5.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.clustering import IICSegmenter
    >>> X = load_digits().images[:50]
    >>> segmenter = IICSegmenter(2, half_side=1, max_epochs=1, random_state=0).fit(X)
    >>> segmenter.predict(X).shape
    (50, 8, 8)
    """

    n_clusters: Count = 3
    _: KW_ONLY
    n_overclusters: Count | None = None
    half_side: CountOrZero = 5
    marginal_weight: Positive = 1.0
    collapsed: bool = False
    overcluster_epochs: CountOrZero = 1
    cluster_epochs: Count = 1
    flip: UnitInterval = 0.5
    rotate: Annotated[float, between(0, 180)] = 0.0
    zoom: BelowOne = 0.0
    width: Positive = 0.25
    augment: Augment = "auto"
    max_epochs: Count = 10
    batch_size: AtLeastTwo = 32
    optimizer: Optimizer = "adam"
    schedule: Schedule = "constant"

    def predict_proba(self, X):
        """Return the probability of each cluster for each pixel.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_clusters, height, width), float32
            NaN for a file that cannot be read, with ``on_error="skip"``.
        """
        samples = self._check_X(X)
        p = np.concatenate(list(self._probability_maps(samples)))
        p[samples.bad] = np.nan
        return p

    def predict(self, X):
        """Return the cluster of each pixel.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        labels : ndarray of int of shape (n_samples, height, width)
            -1 for a file that cannot be read, with ``on_error="skip"``.
        """
        return self._label_maps(self._check_X(X))

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
            pixels of two views, averaged over batches; higher is better. Values compare
            only at equal ``n_clusters`` and views.
        """
        samples = self._check_X(X)
        module = self.net_.module_
        with self._seeded():
            losses = self.net_.evaluate_epoch(
                Shuffled(samples),
                lambda x, y: float(
                    module.information_loss(*module.views(x, module.head))
                ),
            )
        return -float(np.mean(losses))

    def _check_samples(self, samples):
        shape = self.sample_shape_
        if len(shape) == 1:
            raise ValueError(
                f"IICSegmenter clusters the pixels of images, but X holds vectors of "
                f"length {shape[0]}: give image_shape=(height, width) if they are "
                "flattened images."
            )
        if self.half_side >= min(shape[1:]):
            raise ValueError(
                f"half_side={self.half_side} must be less than the shorter side of the "
                f"images, {min(shape[1:])}."
            )

    def _assign(self, samples):
        labels, module = self._label_maps(samples), self.net_.module_
        # without them a pixel may turn to another cluster: between two places of the
        # encoder's maps probabilities are mixed
        while len(used := np.unique(labels[labels >= 0])) < module.n_outputs:
            module.keep_outputs(used)
            labels = self._label_maps(samples)
        self.labels_ = labels
        return labels

    def _check_health(self, labels):
        self._check_information("a pixel in two views")
        # most of many an image is background
        super()._check_health(labels, of="pixels", largest=0.8)

    def _remedies(self):
        more = self._raise_learning()
        return f"{more}, or lower n_clusters", more

    def _build_module(self, mean, std, n_clusters=None):
        before = self._continued
        wanted = self._n_overclusters()
        n_clusters = n_clusters or self.n_clusters
        backbone = self._part("backbone", lambda: self._build_backbone(mean, std))
        head = before.head if before else None
        overcluster = before.overcluster if before else None
        if head is None or head.out_channels != n_clusters:
            head = _head(backbone.n_features_out, n_clusters)
        if overcluster is None or overcluster.out_channels != wanted:
            overcluster = _head(backbone.n_features_out, wanted)
        names = ("marginal_weight", "half_side", "collapsed", "flip", "rotate", "zoom")
        names += ("overcluster_epochs", "cluster_epochs")
        colors = Contrastive(crop=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0)
        return _IICSegmentation(
            backbone,
            overcluster,
            head=head,
            augment=self._build_augment(self.augment, colors, mean, std),
            **{name: getattr(self, name) for name in names},
        )

    def _build_backbone(self, mean=None, std=None):
        body = self.backbone
        if isinstance(body, str) and body == "auto":
            body = _published_net(self.sample_shape_, self.width)
        encoder = build_backbone(body, self.sample_shape_, mean, std)
        with torch.no_grad():
            maps = encoder.eval().body(torch.zeros(2, *self.sample_shape_))
        if maps.ndim != 4:
            name = repr(body) if isinstance(body, str) else type(body).__name__
            raise ValueError(
                f"backbone={name} gives an output of shape {tuple(maps.shape)} for two "
                "images; segmentation needs maps (B, D, H, W): remove the layers that "
                "pool or flatten them."
            )
        return encoder.train()

    def _rebuild_module(self, mean, std):
        return self._build_module(mean, std, self.n_clusters_)

    def _probability_maps(self, samples):
        """Yield the probabilities (B, K, H, W) of one batch after the other."""
        # not the net's own batches: those are for vectors, not for maps
        shape = self.net_.module_.n_outputs, *self.sample_shape_[1:]
        for start in range(0, len(samples), self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, len(samples)))
            p = self.net_.evaluation_step(samples[rows])
            yield p.cpu().numpy().reshape(len(rows), *shape)

    def _label_maps(self, samples):
        labels = np.concatenate([p.argmax(1) for p in self._probability_maps(samples)])
        labels[samples.bad] = -1
        return labels

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        return tags
