"""UncertainGCN and CoreGCN: sequential graph networks (Caramalau et al., 2021)."""

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from sklearn.utils import _safe_indexing
from torch import nn
from torch.nn.functional import logsigmoid
from tqdm.auto import trange

from .._core.kcenter import k_center_greedy
from .._core.nested import hidden_features
from .._core.net import resolve_device
from .._core.parameters import (
    KW_ONLY,
    BelowOne,
    Count,
    NonNegative,
    Positive,
    SampleCount,
    UnitInterval,
    Verbosity,
)
from .._core.roles.selection import ClassifierSelectionRole
from ..losses import unit_rows


class Graph:
    """The graph of all pairs of n rows, weighted by cosine, without any n x n matrix.

    With ``S = F F^T`` and the diagonal matrix ``D`` of the degrees it is
    ``A = (S - I) D^-1 + I``, or its transpose ``D^-1 (S - I) + I``, and ``A X`` comes
    from ``S X = F (F^T X)``.

    Parameters
    ----------
    F : Tensor of shape (n, D)
        Rows of length 1; a row of zeros has only the edge to itself.
    normalization : {"column", "row"}
        "column": the first of the two; "row": the second.

    Notes
    -----
    The degree of row i is ``max(sum_j s_ij, sum_j s_ij^2)`` over the other rows j.
    If no feature is negative, s is in [0, 1] and the degree is the first sum, as
    published. If some are, that sum may be near 0 or negative, which would make edges
    huge or flip their sign; the second sum is never negative, and at most ``sum_j
    |s_ij|``. A row whose degree is only rounding error has no edges.

    Memory: n * D + D * D numbers, and n * C more for ``A X`` with C columns.
    """

    def __init__(self, F, normalization="column"):
        self.F, self.normalization = F, normalization
        self.own = (F * F).sum(dim=1, keepdim=True)  # (n, 1), 1 or 0
        sums = F @ F.sum(dim=0)[:, None] - self.own
        squares = ((F @ (F.T @ F)) * F).sum(dim=1, keepdim=True) - self.own**2
        degrees = torch.maximum(sums, squares)
        lone = degrees <= len(F) * torch.finfo(F.dtype).eps
        self.inverse = torch.where(lone, 0, 1 / torch.where(lone, 1, degrees))

    def __matmul__(self, X):
        """Return ``A X`` for X of shape (n, C)."""
        columns = self.normalization == "column"
        scaled = self.inverse * X if columns else X
        spread = self.F @ (self.F.T @ scaled) - self.own * scaled
        return (spread if columns else self.inverse * spread) + X


class GCN(nn.Module):
    """Two layers that classify rows of a graph as labeled or unlabeled.

    ``h = relu(A X W1 + b1)`` and ``logit = A dropout(h) W2 + b2``; the rows of the
    graph are X.

    Parameters
    ----------
    graph : Graph
    n_hidden : int
    dropout : float
    generator : torch.Generator
        For the initial weights, uniform in +-1 / sqrt(outputs), and the dropout.
    """

    def __init__(self, graph, n_hidden, dropout, generator):
        super().__init__()
        self.graph, self.dropout, self.generator = graph, dropout, generator
        self.AX = graph @ graph.F  # (n, D), the same in every step

        def uniform(*shape):
            limit = 1 / math.sqrt(shape[-1])
            weights = torch.empty(shape, dtype=graph.F.dtype, device=graph.F.device)
            return nn.Parameter(weights.uniform_(-limit, limit, generator=generator))

        self.weight1 = uniform(graph.F.shape[1], n_hidden)
        self.bias1 = uniform(n_hidden)
        self.weight2 = uniform(n_hidden, 1)
        self.bias2 = uniform(1)

    def forward(self):
        """Return the hidden layer (n, n_hidden) and the logits (n,) of all rows."""
        h = torch.relu(self.AX @ self.weight1 + self.bias1)
        kept, weight2 = h, self.weight2
        if self.training and self.dropout:
            left = torch.rand(h.shape, generator=self.generator, device=h.device)
            kept = h * (left >= self.dropout)
            weight2 = weight2 / (1 - self.dropout)
        # A (h W) and not (A h) W: one column instead of n_hidden
        return h, (self.graph @ (kept @ weight2) + self.bias2)[:, 0]

    def loss(self, labeled, unlabeled_weight):
        """Return ``-mean log s_labeled - weight mean log(1 - s_unlabeled)``."""
        _, logits = self()
        return (
            -logsigmoid(logits[labeled]).mean()
            - unlabeled_weight * logsigmoid(-logits[~labeled]).mean()
        )


def train(gcn, labeled, *, unlabeled_weight, lr, weight_decay, n_steps, bar=None):
    """Train on all rows at once by Adam; the net for batches does not fit here.

    Parameters
    ----------
    gcn : GCN
        Trained in place.
    labeled : Tensor of shape (n,), dtype bool
    unlabeled_weight, lr, weight_decay : float
        Weight decay also applies to biases, as released.
    n_steps : int
    bar : str, default=None
        Name of a progress bar. None: no bar.

    Returns
    -------
    losses : ndarray of shape (n_steps,)
        Before each step.
    """
    optimizer = torch.optim.Adam(gcn.parameters(), lr=lr, weight_decay=weight_decay)
    losses = []
    gcn.train()
    for _ in trange(n_steps, desc=bar, unit="step", disable=bar is None):
        loss = gcn.loss(labeled, unlabeled_weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    gcn.eval()
    return torch.stack(losses).cpu().numpy()


def _first_copies(rows):
    """Return, for each row, the number of the first one that equals it."""
    seen = {}
    return np.array([seen.setdefault(row.tobytes(), i) for i, row in enumerate(rows)])


class _GCNSelector(ClassifierSelectionRole, abstract=True):
    """Train the network on labeled rows and candidates, and choose by its output.

    A selector defines ``_rank(pool, nodes, labeled, hidden, logits)``.

    Parameters
    ----------
    classifier : estimator with predict_proba or None
        Its features are the nodes of the graph, as published. It is cloned and fitted;
        ``FrozenEstimator(classifier)`` is used as is. None: the vectors X themselves.
    n_candidates : int
        Number of unlabeled rows, drawn at random, that are in the graph and may be
        chosen, >= 1; at least ``n_samples``.
    n_hidden : int
        Width of the hidden layer, >= 1.
    dropout : float
        Dropout rate of the hidden layer, in [0, 1).
    unlabeled_weight : float
        Weight of the unlabeled rows in the loss, >= 0. Paper: lambda.
    normalization : {"column", "row"}
        Whether the columns of the adjacency matrix are divided by the degrees, as in
        the released code, or its rows, as in the paper.
    lr : float
        Learning rate of Adam, > 0.
    weight_decay : float
        Weight decay, >= 0.
    n_steps : int
        Steps of the training, each on all rows, >= 1.
    random_state : int, RandomState instance or None
        Seed of the candidates, the initial weights and the dropout, and of the
        classifier if it has no ``random_state`` of its own.

    Attributes
    ----------
    probabilities_ : ndarray of shape (n_rows,)
        Predicted probability of being labeled; NaN for rows that are not in the graph.
    loss_curve_ : ndarray of shape (n_steps,)
        Loss before each step. Empty if every row is labeled.
    classifier_ : estimator
        Fitted classifier. Absent with ``classifier=None`` or if every row is labeled.
    """

    _: KW_ONLY
    n_candidates: Count = 10000
    n_hidden: Count = 128
    dropout: BelowOne = 0.3
    unlabeled_weight: NonNegative = 1.2
    normalization: Literal["column", "row"] = "column"
    lr: Positive = 1e-3
    weight_decay: NonNegative = 5e-4
    n_steps: Count = 200
    device: str | torch.device = "auto"
    verbose: Verbosity = 0

    def _reset(self, pool):
        super()._reset(pool)
        self.probabilities_ = np.full(len(pool), np.nan)
        self.loss_curve_ = np.empty(0)

    def _ask(self, pool, random):
        self._check_some_labeled(pool.labeled)
        seed = random.randint(2**31 - 1)  # first: whatever seeds the classifier takes
        nodes = self._draw_nodes(pool, seed)
        nodes, features = self._features(pool, nodes, random)
        labeled = pool.labeled[nodes]
        logits, hidden = self._train(features, labeled, seed)
        same = _first_copies(features)  # rounding must not decide between copies
        self.probabilities_[nodes] = logits.sigmoid().cpu().numpy()[same]
        logits, hidden = logits.cpu().numpy(), hidden.cpu().numpy()
        return self._rank(pool, nodes, labeled, hidden[same], logits[same])

    def _rank(self, pool, nodes, labeled, hidden, logits):
        """Return the chosen rows and all scores.

        Parameters
        ----------
        pool : Pool
        nodes : ndarray of int
            Rows of the graph, ascending.
        labeled : ndarray of shape (n_nodes,), dtype bool
        hidden : ndarray of shape (n_nodes, n_hidden), float32
        logits : ndarray of shape (n_nodes,), float32
            Logits of being labeled.
        """
        raise NotImplementedError

    def _draw_nodes(self, pool, seed):
        """Return the labeled rows and a random subset of the others, ascending."""
        rows = np.flatnonzero(~pool.labeled)
        n_candidates = max(self.n_candidates, pool.n_samples)
        if n_candidates < len(rows):
            draw = np.random.default_rng(seed).choice
            rows = draw(rows, n_candidates, replace=False)
        return np.sort(np.concatenate([np.flatnonzero(pool.labeled), rows]))

    def _features(self, pool, nodes, random):
        """Return the nodes that can be read, and their features."""
        if self.classifier is None:
            return nodes, pool.space[nodes]
        self.classifier_ = self._fit_classifier(pool.X, pool.y, random)
        rows = _safe_indexing(pool.X, nodes)
        probabilities = np.asarray(self.classifier_.predict_proba(rows))
        unread = np.isnan(probabilities).any(axis=1)
        among = replace(pool, labeled=pool.labeled[nodes])
        among.candidates(unread)  # enough, or an error
        features = hidden_features(self.classifier_, rows)[~unread]
        nodes = nodes[~unread]
        self._check_some_labeled(pool.labeled[nodes])
        return nodes, features

    def _train(self, features, labeled, seed):
        """Train on all nodes; return their logits and hidden layer, on the device."""
        device = resolve_device(self.device)
        features = torch.from_numpy(np.asarray(features, dtype=np.float32)).to(device)
        peak = features.abs().max()
        features = features / torch.where(peak > 0, peak, 1)  # tiny ones are no zeros
        gcn = GCN(
            Graph(unit_rows(features), self.normalization),
            self.n_hidden,
            self.dropout,
            torch.Generator(device).manual_seed(seed),
        )
        self.loss_curve_ = train(
            gcn,
            torch.from_numpy(labeled).to(device),
            unlabeled_weight=self.unlabeled_weight,
            lr=self.lr,
            weight_decay=self.weight_decay,
            n_steps=self.n_steps,
            bar=type(self).__name__ if self.verbose else None,
        )
        with torch.inference_mode():
            hidden, logits = gcn()
        if not logits.isfinite().all():
            raise ValueError(
                f"The training of {type(self).__name__} diverged: lower lr={self.lr}."
            )
        return logits, hidden

    def _check_some_labeled(self, labeled):
        if not labeled.any():
            raise ValueError(
                f"{type(self).__name__} learns from labeled rows, but y has no labeled "
                "row (that can be read): let USLSelector make the first choice."
            )


class UncertainGCNSelector(_GCNSelector):
    """Select rows that a graph network is unsure to be labeled.

    A small network on the graph of labeled and unlabeled rows learns to classify rows
    as labeled or unlabeled, from each row and its neighbors. Rows whose probability of
    being labeled is near ``margin`` are chosen. Read more in the :ref:`User Guide
    <gcn>`.

    Parameters
    ----------
    margin : float
        Target probability of being labeled, in [0, 1]. The lower it is, the less the
        chosen rows resemble labeled rows. Paper: s_margin.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows, the probability nearest to ``margin`` first, ties by lower row
        number.
    scores_ : ndarray of shape (n_rows,)
        Minus the distance of the probability from ``margin``; ``-inf`` for labeled
        rows, for rows that are not candidates and for files that cannot be read.

    Raises
    ------
    ValueError
        If y has no labeled row (the first choice can be that of USLSelector), if more
        rows are requested than are unlabeled, if X holds images or paths and there is
        no classifier, or if the training diverges.

    See Also
    --------
    CoreGCNSelector : The same network, with rows that cover its hidden layer.
    UncertaintySelector : The uncertainty of a classifier.

    Notes
    -----
    The graph connects all pairs of rows (labeled rows and candidates) by the cosine s
    of their features F, the network has two layers, and its loss is ``-mean log
    s_labeled - unlabeled_weight * mean log(1 - s_unlabeled)``.

    No matrix has n_rows * n_rows numbers: products with the graph are products with F
    and its transpose. With n labeled rows and candidates and D features, memory is
    about n * (5 D + 8 n_hidden) + 2 D * D float32 numbers; time is linear in n: n * D *
    D once and n * D * n_hidden per step.

    Differences from the paper and its released code:

    - Degrees are ``max(sum s, sum s^2)`` over the other rows. This is the published sum
      if no feature is negative; otherwise that sum may be 0 or negative.
    - Logarithms are computed from logits and are always finite.
    - With ``classifier=None``, the nodes are the rows of X, not the features of a
      classifier fitted on the labels.

    References
    ----------
    .. [1] R. Caramalau, B. Bhattarai, T.-K. Kim, "Sequential graph convolutional
       network for active learning", CVPR 2021, sections 3.1 and 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import UncertainGCNSelector
    >>> X, target = load_digits(return_X_y=True)
    >>> y = np.where(np.arange(len(X)) < 50, target, -1)
    >>> selector = UncertainGCNSelector(20, n_steps=50, random_state=0).fit(X, y)
    >>> bool(selector.sample_indices_.min() >= 50)
    True
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    margin: UnitInterval = 0.1

    def _rank(self, pool, nodes, labeled, hidden, logits):
        _, scores = pool.nothing()
        rows = nodes[~labeled]
        scores[rows] = -abs(self.probabilities_[rows] - self.margin)
        return pool.highest(scores), scores


class CoreGCNSelector(_GCNSelector):
    """Select rows that cover the hidden layer of a graph network.

    A small network on the graph of labeled and unlabeled rows learns to classify rows
    as labeled or unlabeled, from each row and its neighbors. The row farthest from all
    labeled and chosen rows in its hidden layer is chosen repeatedly. Read more in the
    :ref:`User Guide <gcn>`.

    Parameters
    ----------
    features : {"hidden", "hidden_and_logit"}
        Space of the distances: the hidden layer, as in the paper, or the hidden layer
        together with the logit of being labeled, as in the released code. The logit may
        outweigh the whole hidden layer.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows in labeling order: each is the farthest from the labeled rows and
        those before it, ties by lowest row number.
    scores_ : ndarray of shape (n_rows,)
        Distance in the ``features`` to the nearest labeled or chosen row: for a chosen
        row, when it was chosen; for another row, at the end; ``-inf`` for labeled rows,
        for rows that are not candidates and for files that cannot be read.

    Raises
    ------
    ValueError
        If y has no labeled row (the first choice can be that of USLSelector), if more
        rows are requested than are unlabeled, if X holds images or paths and there is
        no classifier, or if the training diverges.

    See Also
    --------
    UncertainGCNSelector : The same network, with rows it is unsure of.
    CoreSetSelector : The same choice in the features themselves.

    Notes
    -----
    The graph, the network, their memory and the differences from the paper are those of
    :class:`UncertainGCNSelector`.

    Each chosen row takes additional time n * n_hidden. Distances are computed without
    dropout. Network and distances are in float32, as in the released code, but
    distances are computed from differences of rows, not from their products, so the
    choice equals that in float64.

    References
    ----------
    .. [1] R. Caramalau, B. Bhattarai, T.-K. Kim, "Sequential graph convolutional
       network for active learning", CVPR 2021, sections 3.1 and 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import CoreGCNSelector
    >>> X, target = load_digits(return_X_y=True)
    >>> y = np.where(np.arange(len(X)) < 50, target, -1)
    >>> selector = CoreGCNSelector(20, n_steps=50, random_state=0).fit(X, y)
    >>> bool(selector.sample_indices_.min() >= 50)
    True
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    features: Literal["hidden", "hidden_and_logit"] = "hidden"

    def _rank(self, pool, nodes, labeled, hidden, logits):
        _, scores = pool.nothing()
        if self.features == "hidden_and_logit":
            hidden = np.concatenate([hidden, logits[:, None]], axis=1)
        chosen, scores[nodes] = k_center_greedy(
            hidden, pool.n_samples, np.flatnonzero(labeled)
        )
        return nodes[chosen], scores
