"""TURTLE: the labels that linear classifiers learn best (Gadetsky et al., 2024)."""

from numbers import Integral
from typing import Annotated, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn
from torch.nn import functional as F

from .._core.few_shot import linear_probes
from .._core.health import cluster_metrics
from .._core.learner import VectorEstimator
from .._core.parameters import (
    KW_ONLY,
    ArrayLike,
    AtLeastTwo,
    Count,
    NonNegative,
    Positive,
)
from .._core.roles.clustering import ProbabilisticClusteringRole
from .._core.samplers import FixedSteps
from .._core.samples import evenly_spaced
from .._core.warn import warn
from ..losses import mean_entropy
from ..modules import Method
from ..neighbors import kneighbors

_STEPS_OF_EPOCH = 100
_N_FOLDS = 10
_N_NEIGHBORS = 10
# rows on which the found labels are cross-validated
_MOST_VALIDATED = 2000


class _TaskEncoder(nn.Module):
    """A linear layer whose rows have separate length and direction."""

    def __init__(self, n_features, n_clusters):
        super().__init__()
        start = nn.Linear(n_features, n_clusters)
        self.direction = nn.Parameter(start.weight.detach())
        self.length = nn.Parameter(self.direction.detach().norm(dim=1, keepdim=True))
        self.bias = nn.Parameter(start.bias.detach())

    def forward(self, z):
        unit = self.direction / self.direction.norm(dim=1, keepdim=True)
        return F.linear(z, self.length * unit, self.bias)  # (B, K)


class _TURTLE(Method):
    sizes: tuple  # features of each space
    n_clusters: int
    factors: torch.Tensor  # of each feature
    _: KW_ONLY
    entropy_weight: float
    inner_steps: int
    inner_lr: float
    neighbors: np.ndarray | None = None  # (n_readable, k + 1), the row itself first

    training_only = ("neighbors",)

    def __post_init__(self):
        self.tasks = nn.ModuleList(_TaskEncoder(n, self.n_clusters) for n in self.sizes)
        self.register_buffer("used", torch.arange(self.n_clusters))
        self.register_buffer("factors", vars(self).pop("factors"))

    @property
    def backbone(self):
        return self.tasks

    def spaces(self, x):
        """Return the vectors of each space, (B, D) each."""
        return (x * self.factors).split(self.sizes, 1)

    def label(self, spaces):
        """Return the labels from each space, (B, K) each."""
        pairs = zip(self.tasks, spaces, strict=True)
        return [task(z).softmax(1) for task, z in pairs]

    def forward(self, x):
        labels = sum(self.label(self.spaces(x))) / len(self.sizes)
        labels = labels[:, self.used]
        return labels / labels.sum(1, keepdim=True)  # (B, n_used)

    def loss(self, x, y):
        spaces = self.spaces(x)
        of_spaces = self.label(spaces)
        labels = sum(of_spaces) / len(of_spaces)  # (B, K)
        error = self._fitted_error(spaces, labels)
        entropy = sum(mean_entropy(p) for p in of_spaces)
        return error - self.entropy_weight * entropy, {
            "classifier_loss": error.detach(),
            "entropy": entropy.detach(),
        }

    def _fitted_error(self, spaces, labels):
        """Return the error of new linear classifiers, fitted to the labels."""
        fixed = labels.detach()
        layers = [
            nn.Linear(n, self.n_clusters, device=fixed.device) for n in self.sizes
        ]
        weights = [p for layer in layers for p in layer.parameters()]
        adam = torch.optim.Adam(weights, lr=self.inner_lr)
        for _ in range(self.inner_steps):
            error = _error(layers, spaces, fixed)
            for weight, slope in zip(
                weights, torch.autograd.grad(error, weights), strict=True
            ):
                weight.grad = slope
            adam.step()
        for weight in weights:
            weight.requires_grad_(False)
        return _error(layers, spaces, labels)

    def after_epoch(self, net, sampler):
        p = net.evaluate(sampler.samples, sampler.samples.good)
        return cluster_metrics(p, self.neighbors)

    def keep_outputs(self, used):
        """Forget the other clusters."""
        self.used = self.used[torch.from_numpy(used).to(self.used.device)]


def _error(layers, spaces, labels):
    pairs = zip(layers, spaces, strict=True)
    return sum(F.cross_entropy(layer(z), labels) for layer, z in pairs)


def _cross_validated(Z, labels, seed):
    """Return the cross-validated accuracy of a linear classifier on labels."""
    names, codes = np.unique(labels, return_inverse=True)
    spread = Z.std(0)
    Z = (Z - Z.mean(0)) / np.where(spread > 0, spread, 1)
    fold = np.random.RandomState(seed).permutation(len(Z)) % min(_N_FOLDS, len(Z))
    weights = (fold != np.arange(fold.max() + 1)[:, None]).astype(float)
    coef, bias = linear_probes(Z, codes, weights, len(names), C=1.0)
    logits = np.einsum("nd,nkd->nk", Z, coef[fold]) + bias[fold]
    return float((logits.argmax(1) == codes).mean())


class TURTLEClusterer(ProbabilisticClusteringRole, VectorEstimator):
    """Cluster frozen embeddings by the labels that linear classifiers learn best.

    A linear layer, the task encoder, labels all rows. Linear classifiers are fitted to
    these labels for a few steps, and the task encoder is trained to reduce their error,
    that is, toward labels that are easy to learn from the embedding, while using all
    labels. With several embeddings, each has its own task encoder and classifier, and
    the labels are the mean, which all of them learn easily. The embeddings are not
    trained. Read more in the :ref:`User Guide <turtle>`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters. Empty ones are dropped at the end.
    embedder : transformer, list of transformers or None
        Embeds X; each transformer gives one space. Cloned and fitted to X, or used as
        is within a :class:`sklearn.frozen.FrozenEstimator`. None: X holds the vectors.
    space_sizes : sequence of int or None
        Features of each space, if X or the output of one ``embedder`` holds the vectors
        of several spaces side by side, as from ``np.hstack`` or a
        :class:`sklearn.pipeline.FeatureUnion`. None: all features are one space, or
        with a list of embedders each has its own.
    entropy_weight : float
        Weight of the entropy of the mean label of each space, >= 0. Paper: gamma.
    rescale : bool
        Whether the vectors of each space are divided by one number that makes the mean
        square of a feature 1. Published: False; vectors of length 1 need True, or a
        higher ``inner_lr``.
    n_steps : int
        Steps of the task encoder. Paper: T.
    inner_steps : int
        Steps that fit the new classifiers in each step of the task encoder. Paper: M.
    inner_lr : float
        Learning rate of the classifiers (Adam), > 0.
    lr : float
        Learning rate of the task encoder (Adam), > 0.
    batch_size : int
        Rows per step.
    n_init : int
        Number of trainings, each from another start; the best is kept.
    rank_by : {"loss", "accuracy"}
        How the best training is chosen: by the lowest loss in the last steps, or by the
        highest cross-validated accuracy of a logistic regression on its labels.

    Attributes
    ----------
    embedder_ : transformer or list of transformers
        Fitted embedders, if there are any.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per 100 steps ``train_loss``,
        ``classifier_loss``, ``entropy`` (of the mean labels, at most ln ``n_clusters``
        for each space), ``largest_cluster`` (share), ``clusters_used``,
        ``confident_share`` and ``neighbor_agreement`` (how often a row shares its
        cluster with its neighbors among all vectors).
    encoder_ : nn.ModuleList
        Trained task encoders.
    init_scores_ : ndarray of shape (n_init,)
        Score of each training by ``rank_by``: minus the loss, or the accuracy.
    sample_shape_ : tuple of int
        Shape of one sample: the embedder's if it has one, else ``(D,)``.

    Raises
    ------
    ValueError
        If ``n_clusters`` is larger than the number of samples, X holds no vectors and
        there is no embedder, or ``space_sizes`` do not add up to the features, or are
        given with a list of embedders.

    Warns
    -----
    CollapseWarning
        If fewer clusters than ``n_clusters`` are in use, or one holds most rows.

    See Also
    --------
    SCANClusterer : Trains the encoder, too.
    sklabel.embedding.PretrainedTransformer : Embeddings of published encoders.

    Notes
    -----
    The gradient of the outer loss treats the fitted classifiers as constants, as
    published. The entropy favors clusters of equal size; lower ``entropy_weight`` if
    sizes differ.

    Difference from the paper: batches are drawn without replacement in passes over the
    rows, not independently; for up to ``batch_size`` rows this is the same.

    References
    ----------
    .. [1] A. Gadetsky, Y. Jiang, M. Brbic, "Let go of your labels with unsupervised
       transfer", ICML 2024; equations 9 to 12.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.clustering import TURTLEClusterer
    >>> X = load_digits().data[:300]
    >>> clusterer = TURTLEClusterer(10, n_steps=100, random_state=0)
    >>> clusterer.fit_predict(X).shape
    (300,)
    """

    n_clusters: Count = 10
    _: KW_ONLY
    embedder: Annotated[BaseEstimator | list | None, BaseEstimator, list, None] = None
    space_sizes: ArrayLike | None = None
    entropy_weight: NonNegative = 10.0
    rescale: bool = False
    n_steps: Count = 6000
    inner_steps: Count = 10
    inner_lr: Positive = 1e-3
    lr: Positive = 1e-3
    batch_size: AtLeastTwo = 10_000
    n_init: Count = 1
    rank_by: Literal["loss", "accuracy"] = "loss"

    def _spaces(self, X):
        spaces = super()._spaces(X)
        if self.space_sizes is None:
            self._sizes = tuple(Z.shape[1] for Z in spaces)
        return spaces

    def _train(self, X, samples, seed):
        if self.space_sizes is not None or not hasattr(self, "embedder_"):
            self._sizes = self._given_sizes(samples.sample_shape[0])
        factors = self._factors(samples)
        n_neighbors = min(_N_NEIGHBORS, samples.n_trained - 1)
        Z = samples[samples.good].numpy()
        _, neighbors = kneighbors(Z, n_neighbors + 1, random_state=seed)
        nets, scores = [], []
        while len(nets) < self.n_init and not self.interrupted_:
            nets.append(self._train_once(samples, factors, neighbors))
            scores.append(self._rank(nets[-1], samples, seed))
        self.init_scores_ = np.array(scores)
        self.net_ = nets[int(np.argmax(scores))]

    def _given_sizes(self, n_features):
        if isinstance(self.embedder, list):
            raise ValueError(
                f"space_sizes={self.space_sizes} with a list of embedders: each "
                "of them is one space, so leave out space_sizes."
            )
        sizes = [n_features] if self.space_sizes is None else list(self.space_sizes)
        whole = all(isinstance(n, Integral) and n > 0 for n in sizes)
        if not whole or sum(sizes) != n_features:
            raise ValueError(
                f"space_sizes={sizes} must be numbers of features that add up to "
                f"{n_features}, those of X or of the embedder."
            )
        return tuple(map(int, sizes))

    def _factors(self, samples):
        """Return the factor of each feature, (D,)."""
        factors = torch.ones(sum(self._sizes))
        if self.rescale:
            Z = samples[samples.spread(_MOST_VALIDATED)].float()
            for part, z in zip(
                factors.split(self._sizes), Z.split(self._sizes, 1), strict=True
            ):
                square = float(z.double().square().mean())
                part.fill_(square**-0.5 if square > 0 else 1.0)
        return factors

    def _build_module(self, factors, **given):
        names = "entropy_weight", "inner_steps", "inner_lr"
        given.update({name: getattr(self, name) for name in names})
        return _TURTLE(self._sizes, self.n_clusters, factors, **given)

    def _train_once(self, samples, factors, neighbors):
        net = self._make_net(
            self._build_module(factors, neighbors=neighbors),
            optimizer="adam",
            lr=self.lr,
            schedule="constant",
            max_steps=self.n_steps,
            batch_size=self.batch_size,
            description=type(self).__name__,
            verbose=self.verbose,
        )
        net.partial_fit(FixedSteps(samples, min(_STEPS_OF_EPOCH, self.n_steps)))
        if net.interrupted_:
            self.interrupted_ = True
            warn(
                f"{type(self).__name__} was interrupted after {net.step_} of "
                f"{net.total_steps_} steps. It is fitted with its weights at that "
                "step.",
                UserWarning,
            )
        return net

    def _rank(self, net, samples, seed):
        """Return the score of a training, higher for a better one."""
        if self.rank_by == "accuracy":
            labels = net.evaluate(samples, samples.good).argmax(1).numpy()
            return self._generalization(samples, labels, seed)
        return -net.history[-1, "train_loss"] if net.history else -np.inf

    def _generalization(self, samples, labels, seed):
        """Return the cross-validated accuracy on labels of the readable rows.

        It is the mean over the spaces, on a limited number of rows.
        """
        some = evenly_spaced(len(labels), _MOST_VALIDATED)
        Z = samples[samples.good[some]].float()
        spaces = [z.numpy() for z in Z.split(self._sizes, 1)]
        return float(np.mean([_cross_validated(z, labels[some], seed) for z in spaces]))

    def score(self, X, y=None):
        """Return the cross-validated accuracy of linear classifiers on the labels.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.
        y : None
            Ignored.

        Returns
        -------
        score : float
            Accuracy in ten folds, in [0, 1], mean over the spaces; higher is better. It
            needs no labels, and ranks trainings of equal ``n_clusters``.
        """
        samples = self._check_X(X)
        labels = self._forward_rows(samples)[samples.good].argmax(1)
        return self._generalization(samples, labels, 0)

    def _rebuild_module(self, mean, std):
        module = self._build_module(torch.ones(sum(self._sizes)))
        module.used = module.used[: self.n_clusters_]
        return module

    def _remedies(self):
        more = f"Train longer (n_steps={self.n_steps}), raise n_init"
        return (
            f"{more}, or raise entropy_weight={self.entropy_weight}",
            f"{more}, set rescale=True, or raise entropy_weight={self.entropy_weight}",
        )
