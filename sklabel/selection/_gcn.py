"""UncertainGCN and CoreGCN: sequential graph networks (Caramalau et al., 2021)."""

import math
from typing import Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing, check_random_state
from torch import nn
from torch.nn.functional import logsigmoid
from tqdm.auto import trange

from .._core.callbacks import CallbackSupportMixin, fitting
from .._core.kcenter import k_center_greedy
from .._core.nested import hidden_features
from .._core.net import resolve_device
from .._core.parameters import (
    KW_ONLY,
    BelowOne,
    Count,
    NonNegative,
    Positive,
    ProbabilisticClassifier,
    RandomState,
    SampleCount,
    UnitInterval,
    Verbosity,
)
from .._core.roles.selection import (
    SelectionRole,
    check_rows,
    fit_classifier,
    open_rows,
)
from ..losses import unit_rows


class Graph:
    """The graph of all pairs of n rows, weighted by cosine; nothing is n x n.

    With ``S = F F^T`` and the diagonal matrix ``D`` of the degrees it is
    ``A = (S - I) D^-1 + I``, or its transpose ``D^-1 (S - I) + I``, and ``A X`` comes
    from ``S X = F (F^T X)``.

    Parameters
    ----------
    F : Tensor of shape (n, D)
        Rows of length 1; a row of zeros has no edge but that to itself.
    normalization : {"column", "row"}
        Whether the first or the second of the two.

    Notes
    -----
    The degree of row i is ``max(sum_j s_ij, sum_j s_ij^2)`` over the other rows j.
    Where no feature is negative, s is in [0, 1] and the degree is the first sum, as
    published. Where features have signs, that sum may be near 0 or negative, which
    would blow up or turn around the edges; the second one is never negative, and at
    most ``sum_j |s_ij|``. A row with a degree of no more than rounding has no edges.

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
    """Two layers that tell labeled from unlabeled rows of a graph.

    ``h = relu(A X W1 + b1)`` and ``logit = A dropout(h) W2 + b2``; the rows of the
    graph are X.

    Parameters
    ----------
    graph : Graph
    n_hidden : int
    dropout : float
    generator : torch.Generator
        For the first weights, uniform in +-1 / sqrt(outputs), and the dropout.
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
    """Train on all rows at once, by Adam; the net for batches would not do here.

    Parameters
    ----------
    gcn : GCN
        Trained in place.
    labeled : Tensor of shape (n,), dtype bool
    unlabeled_weight, lr, weight_decay : float
        The last also for biases, as released.
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


def _fit_gcn(selector, X, y):
    """Check X and y, and train the network; what both selectors begin with.

    Sets ``classifier_``, ``loss_curve_`` and ``probabilities_``.

    Returns
    -------
    vectors : ndarray of shape (n_rows, n_features) or None
        See `check_rows`.
    n_samples : int
    nodes : ndarray of int
        Rows of the graph, ascending; none where every row is labeled.
    labeled : ndarray of shape (n_nodes,), dtype bool
    hidden : ndarray of shape (n_nodes, n_hidden), float32
    """
    given, vectors = check_rows(selector, X)
    n_samples, labeled = selector._candidates(given, y, selector.n_samples)
    vars(selector).pop("classifier_", None)
    selector.probabilities_ = np.full(len(labeled), np.nan)
    selector.loss_curve_ = np.empty(0)
    if not n_samples:
        none = np.empty(0, dtype=np.int64)
        return vectors, 0, none, none > 0, np.empty((0, 1), dtype=np.float32)
    _check_labeled(selector, labeled)
    random = check_random_state(selector.random_state)
    seed = random.randint(2**31 - 1)  # first: whatever seeds the classifier takes
    nodes = _nodes(labeled, max(selector.n_candidates, n_samples), seed)
    if selector.classifier is not None:
        selector.classifier_ = fit_classifier(selector, given, y, random)
        rows = _safe_indexing(given, nodes)
        probabilities = np.asarray(selector.classifier_.predict_proba(rows))
        unread = np.isnan(probabilities).any(axis=1)
        open_rows(labeled[nodes], unread, n_samples)  # enough, or an error
        read = ~unread
        features = hidden_features(selector.classifier_, rows)[read]
        nodes = nodes[read]
        _check_labeled(selector, labeled[nodes])
    else:
        features = vectors[nodes]
    labeled = labeled[nodes]
    probabilities, hidden = _apply_gcn(selector, features, labeled, seed)
    same = _first_copies(features)  # rounding must not decide between copies
    selector.probabilities_[nodes] = probabilities[same]
    return vectors, n_samples, nodes, labeled, hidden[same]


def _apply_gcn(selector, features, labeled, seed):
    """Train on all rows, set ``loss_curve_``; return probabilities and hidden layer."""
    device = resolve_device(selector.device)
    features = torch.from_numpy(np.asarray(features, dtype=np.float32)).to(device)
    peak = features.abs().max()
    features = features / torch.where(peak > 0, peak, 1)  # tiny ones are no zeros
    gcn = GCN(
        Graph(unit_rows(features), selector.normalization),
        selector.n_hidden,
        selector.dropout,
        torch.Generator(device).manual_seed(seed),
    )
    selector.loss_curve_ = train(
        gcn,
        torch.from_numpy(labeled).to(device),
        unlabeled_weight=selector.unlabeled_weight,
        lr=selector.lr,
        weight_decay=selector.weight_decay,
        n_steps=selector.n_steps,
        bar=type(selector).__name__ if selector.verbose else None,
    )
    with torch.inference_mode():
        hidden, logits = gcn()
    if not logits.isfinite().all():
        raise ValueError(
            f"The training of {type(selector).__name__} diverged: lower "
            f"lr={selector.lr}."
        )
    return logits.sigmoid().cpu().numpy(), hidden.cpu().numpy()


def _nodes(labeled, n_candidates, seed):
    """Return the labeled rows and a random subset of the others, ascending."""
    rows = np.flatnonzero(~labeled)
    if n_candidates < len(rows):
        rows = np.random.default_rng(seed).choice(rows, n_candidates, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(labeled), rows]))


def _first_copies(rows):
    """Return, for each row, the number of the first one that equals it."""
    seen = {}
    return np.array([seen.setdefault(row.tobytes(), i) for i, row in enumerate(rows)])


def _check_labeled(selector, labeled):
    if not labeled.any():
        raise ValueError(
            f"{type(selector).__name__} learns what the labeled rows are like, but y "
            "has no labeled row (that can be read): let USLSelector make the first "
            "choice."
        )


class UncertainGCNSelector(SelectionRole, CallbackSupportMixin, BaseEstimator):
    """Select rows that a graph network is unsure are like the labeled ones.

    A small network on the graph of labeled and unlabeled rows learns to tell the ones
    from the others; each row's neighbors take part in what is said of it. Rows to which
    it gives a probability of being labeled near ``margin`` are chosen. Read more in the
    :ref:`User Guide <gcn>`.

    Parameters
    ----------
    classifier : estimator with predict_proba or None
        Its features are the rows of the graph, as published. It is cloned and fitted;
        ``FrozenEstimator(classifier)`` is used as it is. None: X itself, vectors.
    n_candidates : int
        Unlabeled rows, drawn at random, that take part and may be chosen, >= 1; at
        least ``n_samples`` do.
    n_hidden : int
        Width of the hidden layer, >= 1.
    dropout : float
        Share of the hidden layer left out in each step, in [0, 1).
    unlabeled_weight : float
        Weight of the unlabeled rows in the loss, >= 0. Paper: lambda.
    margin : float
        Probability of being labeled near which rows are chosen, in [0, 1]; they are
        the less like the labeled rows the lower it is. Paper: s_margin.
    normalization : {"column", "row"}
        Whether the columns of the graph are divided by the degrees, as in the released
        code, or the rows, as in the paper.
    lr : float
        Learning rate of Adam, > 0.
    weight_decay : float
        Weight decay, >= 0.
    n_steps : int
        Steps of the training, each on all rows, >= 1.
    random_state : int, RandomState instance or None
        Seed of the candidates, of the first weights and of the dropout, and of the
        classifier where that has no ``random_state`` of its own.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows, the probability nearest to ``margin`` first, the lower row number
        among equals.
    scores_ : ndarray of shape (n_rows,)
        Minus the distance of the probability from ``margin``; ``-inf`` for rows labeled
        already, for those that are no candidates and for files that cannot be read.
    probabilities_ : ndarray of shape (n_rows,)
        Probability of being labeled that the network gives; NaN for rows that take no
        part.
    loss_curve_ : ndarray of shape (n_steps,)
        Loss before each step. Empty where every row is labeled.
    classifier_ : estimator
        The fitted classifier. Not with ``classifier=None``, nor where every row is
        labeled.

    Raises
    ------
    ValueError
        If y has no labeled row (the first choice can be that of USLSelector), if more
        rows are asked than have no label, if X holds images or paths and there is no
        classifier, or if the training diverges.

    See Also
    --------
    CoreGCNSelector : The same network; rows that cover its hidden layer.
    UncertaintySelector : What a classifier is unsure of.

    Notes
    -----
    The graph joins all pairs of rows by the cosine s of their features F (labeled rows
    and candidates), the network has two layers, and its loss is
    ``-mean log s_labeled - unlabeled_weight * mean log(1 - s_unlabeled)``.

    No matrix has n_rows * n_rows numbers: products with the graph are products with F
    and its transpose. With n labeled rows and candidates and D features, memory is
    some n * (5 D + 8 n_hidden) + 2 D * D float32 numbers; time grows in proportion to
    n, n * D * D once and n * D * n_hidden for each step.

    Departures from the paper and its released code:

    - Degrees are ``max(sum s, sum s^2)`` over the other rows. That is the published
      sum where no feature is negative; with signs that sum may be 0 or negative.
    - Logarithms come from logits and are always finite.
    - With ``classifier=None`` rows of the graph are X, and not the features of a
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
    classifier: ProbabilisticClassifier | None = None
    n_candidates: Count = 10000
    n_hidden: Count = 128
    dropout: BelowOne = 0.3
    unlabeled_weight: NonNegative = 1.2
    margin: UnitInterval = 0.1
    normalization: Literal["column", "row"] = "column"
    lr: Positive = 1e-3
    weight_decay: NonNegative = 5e-4
    n_steps: Count = 200
    device: str | torch.device = "auto"
    random_state: RandomState = None
    verbose: Verbosity = 0

    @fitting
    def fit(self, X, y=None):
        """Choose rows of X.

        Parameters
        ----------
        X : array-like of shape (n_rows, ...)
            Vectors; with a classifier what that takes, images and paths for sklabel's.
        y : array-like of shape (n_rows,), default=None
            Labels known so far, -1 (None, NaN) where there is none. Labeled rows are
            never chosen. At least one row must have a label.

        Returns
        -------
        self : UncertainGCNSelector
        """
        vectors, n_samples, nodes, labeled, _ = _fit_gcn(self, X, y)
        scores = np.full(len(self.probabilities_), -np.inf)
        rows = nodes[~labeled]
        scores[rows] = -abs(self.probabilities_[rows] - self.margin)
        chosen = np.argsort(-scores, kind="stable")[:n_samples]
        return self._set_selection(vectors, chosen, scores)


class CoreGCNSelector(SelectionRole, CallbackSupportMixin, BaseEstimator):
    """Select rows that cover what a graph network has learned of all rows.

    A small network on the graph of labeled and unlabeled rows learns to tell the ones
    from the others; each row's neighbors take part in what is said of it. In its hidden
    layer the row farthest from all labeled and chosen rows is chosen, again and again.
    Read more in the :ref:`User Guide <gcn>`.

    Parameters
    ----------
    classifier : estimator with predict_proba or None
        Its features are the rows of the graph, as published. It is cloned and fitted;
        ``FrozenEstimator(classifier)`` is used as it is. None: X itself, vectors.
    n_candidates : int
        Unlabeled rows, drawn at random, that take part and may be chosen, >= 1; at
        least ``n_samples`` do.
    n_hidden : int
        Width of the hidden layer, >= 1.
    dropout : float
        Share of the hidden layer left out in each step, in [0, 1).
    unlabeled_weight : float
        Weight of the unlabeled rows in the loss, >= 0. Paper: lambda.
    normalization : {"column", "row"}
        Whether the columns of the graph are divided by the degrees, as in the released
        code, or the rows, as in the paper.
    lr : float
        Learning rate of Adam, > 0.
    weight_decay : float
        Weight decay, >= 0.
    n_steps : int
        Steps of the training, each on all rows, >= 1.
    random_state : int, RandomState instance or None
        Seed of the candidates, of the first weights and of the dropout, and of the
        classifier where that has no ``random_state`` of its own.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows in the order of asking: each is the farthest from the labeled rows
        and those before it, the lowest number among equals.
    scores_ : ndarray of shape (n_rows,)
        Distance in the hidden layer to the nearest labeled or chosen row: of a chosen
        row at the moment when it was chosen, of another row at the end; ``-inf`` for
        rows labeled already, for those that are no candidates and for files that cannot
        be read.
    probabilities_ : ndarray of shape (n_rows,)
        Probability of being labeled that the network gives; NaN for rows that take no
        part.
    loss_curve_ : ndarray of shape (n_steps,)
        Loss before each step. Empty where every row is labeled.
    classifier_ : estimator
        The fitted classifier. Not with ``classifier=None``, nor where every row is
        labeled.

    Raises
    ------
    ValueError
        If y has no labeled row (the first choice can be that of USLSelector), if more
        rows are asked than have no label, if X holds images or paths and there is no
        classifier, or if the training diverges.

    See Also
    --------
    UncertainGCNSelector : The same network; rows of which it is unsure.
    CoreSetSelector : The same choice among the features themselves.

    Notes
    -----
    The graph joins all pairs of rows by the cosine s of their features F (labeled rows
    and candidates), the network has two layers, and its loss is
    ``-mean log s_labeled - unlabeled_weight * mean log(1 - s_unlabeled)``.

    No matrix has n_rows * n_rows numbers: products with the graph are products with F
    and its transpose. With n labeled rows and candidates and D features, memory is
    some n * (5 D + 8 n_hidden) + 2 D * D float32 numbers; time grows in proportion to
    n, n * D * D once and n * D * n_hidden for each step.

    Departures from the paper and its released code:

    - Degrees are ``max(sum s, sum s^2)`` over the other rows. That is the published
      sum where no feature is negative; with signs that sum may be 0 or negative.
    - Logarithms come from logits and are always finite.
    - With ``classifier=None`` rows of the graph are X, and not the features of a
      classifier fitted on the labels.

    Each chosen row takes time n * n_hidden more. Nothing is left out of the hidden
    layer there.

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
    classifier: ProbabilisticClassifier | None = None
    n_candidates: Count = 10000
    n_hidden: Count = 128
    dropout: BelowOne = 0.3
    unlabeled_weight: NonNegative = 1.2
    normalization: Literal["column", "row"] = "column"
    lr: Positive = 1e-3
    weight_decay: NonNegative = 5e-4
    n_steps: Count = 200
    device: str | torch.device = "auto"
    random_state: RandomState = None
    verbose: Verbosity = 0

    @fitting
    def fit(self, X, y=None):
        """Choose rows of X.

        Parameters
        ----------
        X : array-like of shape (n_rows, ...)
            Vectors; with a classifier what that takes, images and paths for sklabel's.
        y : array-like of shape (n_rows,), default=None
            Labels known so far, -1 (None, NaN) where there is none. Labeled rows are
            never chosen. At least one row must have a label.

        Returns
        -------
        self : CoreGCNSelector
        """
        vectors, n_samples, nodes, labeled, hidden = _fit_gcn(self, X, y)
        scores = np.full(len(self.probabilities_), -np.inf)
        chosen, scores[nodes] = k_center_greedy(
            hidden, n_samples, np.flatnonzero(labeled)
        )
        return self._set_selection(vectors, nodes[chosen], scores)
