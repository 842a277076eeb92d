"""A frozen embedding classified in seconds: a linear probe and a neighbor graph."""

from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from torch import nn

from .._core.few_shot import left_out_probe
from .._core.freezing import lock_
from .._core.learner import VectorEstimator
from .._core.parameters import (
    KW_ONLY,
    BelowOne,
    Count,
    OpenUnitInterval,
    Positive,
    UnitInterval,
)
from .._core.propagation import (
    SMALLEST_SCALE,
    LabeledRows,
    local_weights,
    neighbor_graph,
    spread,
)
from .._core.roles.classification import ClassificationRole
from .._core.samples import evenly_spaced
from ..losses import unit_rows
from ..modules import Method

# normal priors, while few labels say anything: log odds of the graph's weight, and the
# logarithm of the factor of both
_WEIGHT_PRIOR = 1.1, 0.7
_FACTOR_PRIOR = 0.0, 0.6
# rows left out that the first guess of the accuracy counts as
_GUESS_ROWS = 10
# rows without a label in which the confidence is measured
_MOST_ASKED = 2000
# from so many rows on those of X take the neighbors that the graph has found
_MANY_ROWS = 2**15
# of more known rows the products with a batch are computed in parts (256 MB each), of
# not too few rows, which would be rounded in another way
_MANY_KEYS, _BLOCK_PRODUCTS, _FEWEST_ROWS = 2**18, 2**26, 64


class _Projection(nn.Module):
    """Center, project onto the principal components, and scale to length 1."""

    def __init__(self, mean, components):
        super().__init__()
        self.register_buffer("mean", mean)  # (D,)
        self.register_buffer("components", components)  # (d, D); 0 rows: none
        self.n_features_out = len(components) or len(mean)

    def forward(self, x):
        x = x - self.mean
        return unit_rows(x @ self.components.T if len(self.components) else x)


class _ProbeAndGraph(Method):
    """Class probabilities of a linear probe and of the neighbors among known rows."""

    backbone: nn.Module
    probe: nn.Module
    n_neighbors: int
    keys: torch.Tensor  # (n, d), rows of length 1
    scales: torch.Tensor  # (n,)
    values: torch.Tensor  # (n, K), what walks have brought to each
    factors: torch.Tensor  # (2,), of the logarithms of probe and graph

    def __post_init__(self):
        for name in ("keys", "scales", "values", "factors"):
            tensor = vars(self).pop(name)
            self.register_buffer(name, tensor.float())
        lock_(self)

    def forward(self, x):
        z, parts = self.backbone(x), 1
        if len(self.keys) > _MANY_KEYS:
            step = max(_FEWEST_ROWS, _BLOCK_PRODUCTS // len(self.keys))
            parts = -(-len(z) // step)
        spreads = [self.spread(part) for part in z.chunk(parts)]
        return self.multiplied(z, torch.cat(spreads))

    def multiplied(self, z, of_graph):
        """Return the probabilities of both, (B, K)."""
        logits = self.factors[0] * self.probe(z).log_softmax(1)
        logits = logits + self.factors[1] * of_graph
        return logits.softmax(1)

    def of_known(self, graph):
        """Return the probabilities of the known rows, whose neighbors are known."""
        near, found = torch.from_numpy(graph.near), []
        with torch.inference_mode():
            for rows in torch.arange(len(near)).split(4096):
                of_graph = spread(graph.weights[rows], self.values[near[rows]])
                found.append(self.multiplied(self.keys[rows], of_graph))
        return torch.cat(found)

    def spread(self, z):
        """Return the logarithms of the graph's probabilities, (B, K)."""
        n_near = min(self.n_neighbors + 1, len(self.keys))  # a known row is its own
        cosines, near = (z @ self.keys.T).topk(n_near)
        distances = (1 - cosines).clamp(min=0)
        scale = distances[:, -1:].clamp(min=SMALLEST_SCALE)
        weights = local_weights(distances, scale, self.scales[near])
        return spread(weights, self.values[near])


class EmbeddingClassifier(ClassificationRole, VectorEstimator):
    """Classify from few labels on a frozen embedding, in seconds.

    The probabilities of two classifiers are multiplied: a linear probe (logistic
    regression) on the labeled rows, and label propagation, which spreads labels to the
    unlabeled rows over the graph of nearest neighbors. Cross-validation on the labeled
    rows sets the weight of each classifier and the confidence. No network is trained.
    Read more in the :ref:`User Guide <embedding_classifier>`.

    Parameters
    ----------
    embedder : transformer or None
        Embeds X: one of :mod:`sklabel.embedding` or of scikit-learn; cloned and fitted
        to X, or used as is within a :class:`sklearn.frozen.FrozenEstimator`. None: X
        holds the vectors.
    n_neighbors : int
        Neighbors of each row in the graph.
    alpha : float
        Probability that a random walk on the graph continues after each step, in [0,
        1). The larger, the farther labels spread.
    C : float
        Inverse strength of the probe's penalty, > 0, for vectors of length 1.
    graph_weight : float or "auto"
        Weight of the graph, in [0, 1], against the probe. "auto": about 0.7 with few
        labels; with more, the weight of the highest likelihood in cross-validation.
    n_components : int
        Principal components that are kept, if the vectors have more features.
    class_weight : dict, "balanced" or None
        Weight of labeled rows of a class in the probe: {class: weight}; "balanced":
        every class the same; None: every row the same. In the graph every class has
        the same weight.
    calibration_size : int, float, "auto" or None
        "auto": the temperature is set so that the mean confidence in unlabeled rows
        equals ``estimated_accuracy_``; no row is withheld. A number or share of the
        labeled rows: these are withheld to fit the temperature. None: the temperature
        of the highest likelihood in cross-validation.

    Attributes
    ----------
    embedder_ : transformer
        Fitted embedder, if there is one.
    estimated_accuracy_ : float
        Accuracy to expect on unlabeled rows: the mean confidence in them, corrected by
        the mean difference between accuracy and confidence in cross-validation [4]_.
    estimated_accuracy_interval_ : ndarray of shape (2,)
        95 % interval of the accuracy. It covers random error only: labeled rows that
        were not drawn at random may be easier or harder than the others.
    graph_weight_ : float
        Weight of the graph, in [0, 1].
    calibration_temperature_ : float
        Divides the logits of :meth:`predict_proba`.
    net_ : skorch.NeuralNet
        Net used for prediction: projection, probe, and the rows of X with their labels.
    encoder_ : nn.Module
        Projection of the vectors.
    sample_shape_ : tuple of int
        Shape of one sample: the embedder's if it has one, else ``(D,)``.

    Raises
    ------
    ValueError
        If no row is labeled, all labels are of one class, y does not fit X, or X holds
        no vectors and there is no embedder.

    See Also
    --------
    FixMatchClassifier : Trains the encoder too: better if there is time.
    sklabel.embedding.PretrainedTransformer : Embeddings of published encoders.

    Notes
    -----
    Vectors are centered, reduced to ``n_components`` and scaled to length 1. The graph
    has local scales [2]_ and labels spread over it as in [1]_, with 50 steps; each
    class starts with the same total mass [3]_. A new row gets its labels from its
    nearest rows of X, whose vectors are stored: ``4 * n_samples * n_components`` bytes.
    With 32,768 rows of X or more, ``fit`` takes their own nearest rows from the graph,
    so that its time grows nearly in proportion to the rows.

    Cross-validation leaves out one labeled row at a time; from 51 labels on it has ten
    folds, on at most 500 labeled rows. If each class has one label, nothing can be left
    out and the mean confidence is not corrected. The uncorrected mean always counts as
    ten rows.

    References
    ----------
    .. [1] D. Zhou et al., "Learning with local and global consistency", NIPS 2003.
    .. [2] L. Zelnik-Manor, P. Perona, "Self-tuning spectral clustering", NIPS 2004.
    .. [3] X. Zhu, Z. Ghahramani, J. Lafferty, "Semi-supervised learning using Gaussian
       fields and harmonic functions", ICML 2003; section 4.
    .. [4] A. N. Angelopoulos et al., "Prediction-powered inference", Science, 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.classification import EmbeddingClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 40, y, -1)
    >>> clf = EmbeddingClassifier(random_state=0).fit(X, y_partly)
    >>> clf.score(X, y) > 0.9
    True
    >>> low, high = clf.estimated_accuracy_interval_
    >>> bool(low < clf.score(X, y) < high)
    True
    """

    embedder: BaseEstimator | None = None
    _: KW_ONLY
    n_neighbors: Count = 10
    alpha: BelowOne = 0.95
    C: Positive = 100.0
    graph_weight: UnitInterval | Literal["auto"] = "auto"
    n_components: Count = 256
    calibration_size: Literal["auto"] | Count | OpenUnitInterval | None = "auto"

    _withholds = False  # unless it is asked to

    def _train(self, X, labeled, seed):
        rows = labeled.rows.good
        if len(rows) < 2:
            raise ValueError("X has fewer than two usable rows: add more.")
        Z, codes = labeled.rows[rows].float(), labeled.codes[rows]
        known = np.flatnonzero(codes >= 0)
        weights = np.ones(len(known))
        if labeled.weights is not None:
            weights = labeled.weights[rows][known]
            known, weights = known[weights > 0], weights[weights > 0]
            weights = weights * (len(weights) / weights.sum())
        projection = self._fit_projection(Z.numpy(), seed)
        keys = torch.cat([projection(z) for z in Z.split(4096)])
        given = LabeledRows(known, codes[known], weights, len(self.classes_), seed)
        module, surplus, graph = self._fit_both(projection, keys, given, seed)
        known = None
        if len(keys) >= _MANY_ROWS:
            known = rows, module.of_known(graph)
        self._sizes = tuple(module.values.shape), Z.shape[1], keys.shape[1]
        self.net_ = self._make_net(module)
        without = rows[codes < 0] if (codes < 0).any() else rows
        without = without[evenly_spaced(len(without), _MOST_ASKED)]
        p = self.net_.evaluate(labeled.rows, without)
        self._estimate_accuracy(float(p.max(1)[0].double().mean()), surplus)
        return known

    def _forward_trained(self, samples, trained):
        if trained is None:
            return super()._forward_trained(samples, trained)
        rows, p = trained
        found = np.full((len(samples), p.shape[1]), np.nan, np.float32)
        found[rows] = p.numpy()
        others = np.setdiff1d(samples.good, rows)  # without a weight
        if len(others):
            found[others] = self.net_.evaluate(samples, others).numpy()
        return found

    def _estimate_accuracy(self, confidence, surplus):
        """Set the accuracy to expect from the mean confidence, corrected.

        Parameters
        ----------
        confidence : float
            Mean in rows without a label.
        surplus : ndarray of shape (m,)
            For rows left out: 1 (right) or 0 (wrong), minus the confidence.
        """
        corrected = confidence + surplus.mean() if len(surplus) else 0.0
        right = len(surplus) * float(np.clip(corrected, 0, 1))
        right += _GUESS_ROWS * confidence
        wrong = len(surplus) + _GUESS_ROWS - right
        self._set_accuracy(right + 0.5, wrong + 0.5)

    def _fit_projection(self, Z, seed):
        if Z.shape[1] <= self.n_components:
            mean, components = Z.mean(0, dtype=np.float64), np.empty((0, Z.shape[1]))
        else:
            pca = PCA(min(self.n_components, len(Z)), random_state=seed).fit(Z)
            mean, components = pca.mean_, pca.components_
        return _Projection(_tensor(mean), _tensor(components))

    def _fit_both(self, projection, keys, given, seed):
        """Return the module of probe and graph, weighted by cross-validation.

        Also return how much more often than expected left-out rows are right, and the
        graph.
        """
        z = keys.numpy()
        graph = neighbor_graph(z, min(self.n_neighbors, len(z) - 1), seed)
        values, of_graph = given.propagate(graph, self.alpha)
        coef, bias, of_probe = left_out_probe(z, given, self.C)
        # a row whose class has no other says nothing
        useful = given.useful
        codes = given.codes[given.left_out][useful]
        parts = of_probe[useful], of_graph.numpy()[useful]
        self.graph_weight_, factor = self._weigh(*parts, codes)
        factors = factor * np.array([1 - self.graph_weight_, self.graph_weight_])
        p = softmax(factors[0] * parts[0] + factors[1] * parts[1], axis=1)
        surplus = (p.argmax(1) == codes) - p.max(1)
        probe = nn.Linear(z.shape[1], given.n_classes)
        probe.weight.data, probe.bias.data = _tensor(coef), _tensor(bias)
        module = _ProbeAndGraph(
            projection,
            probe,
            self.n_neighbors,
            keys,
            graph.scales,
            values,
            _tensor(factors),
        )
        return module, surplus, graph

    def _weigh(self, of_probe, of_graph, codes):
        """Return the weight of the graph and the factor of both that are most likely.

        Parameters
        ----------
        of_probe, of_graph : ndarray of shape (m, K)
            Logarithms of probabilities of rows that were left out.
        codes : ndarray of int of shape (m,)
        """
        rows = np.arange(len(codes))
        fixed = self.graph_weight != "auto"

        def loss(where):
            weight = self.graph_weight if fixed else expit(where[1])
            logits = np.exp(where[0]) * ((1 - weight) * of_probe + weight * of_graph)
            loss = -log_softmax(logits, axis=1)[rows, codes].sum()
            for value, (mean, deviation) in zip(where, priors, strict=False):
                loss += ((value - mean) / deviation) ** 2 / 2
            return loss

        priors = (_FACTOR_PRIOR, _WEIGHT_PRIOR)[: 1 if fixed else 2]
        best = minimize(loss, [mean for mean, _ in priors], method="Nelder-Mead").x
        weight = self.graph_weight if fixed else expit(best[1])
        return float(weight), float(np.exp(best[0]))

    def _rebuild_module(self, mean, std):
        (n_rows, n_classes), width, n_components = self._sizes
        n_kept = n_components if n_components < width else 0
        return _ProbeAndGraph(
            _Projection(torch.zeros(width), torch.zeros(n_kept, width)),
            nn.Linear(n_components, n_classes),
            self.n_neighbors,
            torch.zeros(n_rows, n_components),
            torch.zeros(n_rows),
            torch.zeros(n_rows, n_classes),
            torch.zeros(2),
        )


def _tensor(values):
    return torch.as_tensor(values, dtype=torch.float32)
