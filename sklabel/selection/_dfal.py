"""DFAL: rows that a small adversarial step moves to another class (Ducoffe, 2018)."""

import copy

import numpy as np
import torch
from sklearn.utils import _safe_indexing

from .._core.nested import inner_estimator
from .._core.parameters import (
    KW_ONLY,
    AtLeastTwo,
    Count,
    NonNegative,
    SampleCount,
)
from .._core.roles.classification import ClassificationRole
from .._core.roles.selection import ClassifierSelectionRole
from .._core.samples import evenly_spaced

_BATCH_ROWS = 64
_ROWS_TO_COMPARE = 1000
_ROUNDING = 1e-5


def deepfool(logits, x, n_classes=10, max_steps=50, overshoot=0.02, extra=1e-4):
    r"""Look for the smallest step that changes the class of each row.

    The logits are linearized at the row, which is moved to the nearest border between
    its own class c and another class k; this is repeated until the class changes:

    .. math:: r = \frac{f_c - f_k}{\|\nabla f_k - \nabla f_c\|^2}
                  (\nabla f_k - \nabla f_c)

    Parameters
    ----------
    logits : callable
        Returns logits (B, K) of rows (B, ...); differentiable, each row independent.
    x : Tensor of shape (B, ...)
    n_classes : int, default=10
        Number of classes considered: those of the highest logits, the row's own
        included.
    max_steps : int, default=50
    overshoot : float, default=0.02
        How far a row moves beyond the border, as a share of the step.
    extra : float, default=1e-4
        Added to the length of each step, against rounding, as in the released code.

    Returns
    -------
    steps : Tensor of shape (B, ...)
        Without the overshoot. Infinite if the gradients of all classes are equal.

    Raises
    ------
    ValueError
        If the logits do not depend on the rows by a gradient.

    References
    ----------
    .. [1] S. Moosavi-Dezfooli, A. Fawzi, P. Frossard, "DeepFool: a simple and accurate
       method to fool deep neural networks", CVPR 2016; algorithm 2.
    """
    total = torch.zeros_like(x)
    with torch.no_grad():
        start = logits(x)
    k = min(n_classes, start.shape[1])
    top = start.topk(k, dim=1).indices  # (B, k), the row's own class first
    left = torch.arange(len(x), device=x.device)
    for _ in range(max_steps if k > 1 else 0):
        moved = x[left] + (1 + overshoot) * total[left]
        moved.requires_grad_(True)
        f = logits(moved)
        if not f.requires_grad:
            raise ValueError(
                "The logits have no gradient: the network runs without one, as under "
                "torch.no_grad(), so DFAL cannot be used with it."
            )
        same = f.argmax(1) == top[left, 0]
        f = f.gather(1, top[left])
        slopes = torch.stack(
            [
                torch.autograd.grad(f[:, i].sum(), moved, retain_graph=i < k - 1)[0]
                for i in range(k)
            ],
            dim=1,
        ).flatten(2)  # (B, k, D)
        left = left[same]
        if not len(left):
            break
        f, slopes = f.detach()[same], slopes[same]
        gaps = f[:, :1] - f[:, 1:]  # (B, k - 1)
        toward = slopes[:, 1:] - slopes[:, :1]
        squares = toward.square().sum(2)
        # on a border nothing is far, however flat it is
        lengths = torch.where(gaps == 0, 0.0, gaps / squares.sqrt())
        nearest = lengths.argmin(1)
        rows = torch.arange(len(left), device=x.device)
        toward = toward[rows, nearest]
        unit = toward / squares[rows, nearest].sqrt()[:, None].clamp_min(1e-30)
        length = lengths[rows, nearest][:, None]
        step = torch.where(length.isinf(), torch.inf, (length + extra) * unit)
        total[left] += step.view(-1, *x.shape[1:])
        left = left[(squares[rows, nearest] > 0) & length[:, 0].isfinite()]
        if not len(left):
            break
    return total


def linear_steps(Z, coef, intercept):
    """Return the smallest steps to another class of a linear classifier.

    Parameters
    ----------
    Z : ndarray of shape (n, D)
    coef : ndarray of shape (K, D), or (1, D) of two classes
    intercept : ndarray of shape (K,), or (1,)

    Returns
    -------
    steps : ndarray of shape (n, D), float64
        Infinite if the coefficients of all classes are equal.
    """
    Z, coef = np.asarray(Z, np.float64), np.asarray(coef, np.float64)
    if len(coef) == 1:
        coef = np.concatenate([-coef / 2, coef / 2])
        intercept = np.concatenate([-intercept / 2, intercept / 2])
    weights, bias = torch.tensor(coef), torch.tensor(intercept, dtype=torch.float64)

    def logits(z):
        return z @ weights.T + bias

    steps = [
        deepfool(logits, z, n_classes=len(coef), max_steps=1, extra=0)
        for z in torch.tensor(Z).split(_BATCH_ROWS)
    ]
    return torch.cat(steps).numpy()


class DFALSelector(ClassifierSelectionRole):
    """Select the rows that the smallest step moves to another class.

    The distance of a row from a network's decision boundary has no closed form.
    DeepFool searches for the smallest change of the row, in the space of X, that
    changes its class; the length of this change is the margin. Rows with the smallest
    margins are chosen. Read more in the :ref:`User Guide <dfal>`.

    Parameters
    ----------
    classifier : estimator with predict_proba or None
        One of :mod:`sklabel.classification`, or a linear one of scikit-learn; cloned
        and fitted, or used as is in a :class:`sklearn.frozen.FrozenEstimator`. For a
        pipeline, the margin is that of its last step, in that step's input; for an
        :class:`~sklabel.classification.EmbeddingClassifier`, in the vectors of its
        embedder. None: logistic regression, for vectors.
    n_classes : int
        Number of classes considered: the most probable ones, the row's own included.
    max_steps : int
        Maximum number of DeepFool steps per row.
    overshoot : float
        Share of its length by which a step is extended beyond the border, >= 0.
    n_candidates : int or None
        Number of unlabeled rows to score, drawn at random; at least ``n_samples``.
        None: all.
    random_state : int, RandomState instance or None
        Seed of the candidates, and of the classifier if it has no ``random_state`` of
        its own.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows, the smallest margin first, ties by lower row number.
    scores_ : ndarray of shape (n_rows,)
        Minus the margin, which is the Euclidean length of the step, for images with
        pixels in [0, 1], for vectors as the classifier gets them. Rows that no step
        moves to another class, as where a probability is exactly 1, count as twice as
        far as the farthest other row; as 1 if there is none. ``-inf`` for labeled rows,
        for rows that are not candidates and for files that cannot be read.
    adversaries_ : ndarray of shape (n_samples, ...)
        The chosen rows, moved to the other class; images are (C, H, W), with pixels in
        [0, 1] before the step, which may leave this range.
    classifier_ : estimator
        Fitted classifier. Absent if every row is labeled.

    Raises
    ------
    ValueError
        If the classifier has no gradient (of scikit-learn's, only linear ones have), if
        no row is labeled and it is not frozen, or if more rows are requested than are
        unlabeled and readable.

    See Also
    --------
    UncertaintySelector : The margin of probabilities, for any classifier.

    Notes
    -----
    In the paper the network is then trained on the chosen rows and on their
    ``adversaries_``, both with the label of the row.

    Time: up to ``max_steps * n_classes`` backward passes per row; most rows need two or
    three steps. For linear classifiers, one step is exact.

    References
    ----------
    .. [1] M. Ducoffe, F. Precioso, "Adversarial active learning for deep networks: a
       margin based approach", 2018.
    .. [2] S. Moosavi-Dezfooli, A. Fawzi, P. Frossard, "DeepFool: a simple and accurate
       method to fool deep neural networks", CVPR 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import DFALSelector
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 50, y, -1)
    >>> rows = DFALSelector(20).fit_select(X, y_partly)
    >>> bool(rows.min() >= 50)
    True
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    n_classes: AtLeastTwo = 10
    max_steps: Count = 50
    overshoot: NonNegative = 0.02
    n_candidates: Count | None = None

    def _reset(self, pool):
        super()._reset(pool)
        vars(self).pop("adversaries_", None)

    def _ask(self, pool, random):
        seed = random.randint(2**31 - 1)  # first: whatever seeds the classifier takes
        self.classifier_ = self._fit_classifier(pool.X, pool.y, random)
        classifier, X = inner_estimator(self.classifier_, pool.X)
        if isinstance(classifier, ClassificationRole):
            bad, look = self._of_network(classifier, X)
        else:
            bad, look = self._of_linear(classifier, X)
        rows = pool.candidates(bad)
        n_candidates = max(self.n_candidates or len(rows), pool.n_samples)
        if n_candidates < len(rows):
            draw = np.random.default_rng(seed).choice
            rows = np.sort(draw(rows, n_candidates, replace=False))
        _, scores = pool.nothing()
        scores[rows] = -_bounded([d for part in _blocks(rows) for d in look(part)[1]])
        chosen = pool.highest(scores)
        moved = [look(part)[0] for part in _blocks(chosen)]
        self.adversaries_ = np.concatenate(moved)
        return chosen, scores

    def _of_network(self, classifier, X):
        """Return which rows cannot be read, and a function that scores the others."""
        samples, net = classifier._check_X(X), classifier.net_
        # a copy is free of compiled parts, and gathers no slopes of its weights
        module = copy.deepcopy(net.module_).eval().requires_grad_(False)
        tiny = torch.finfo(torch.float32).tiny

        def logits(x):
            return module(x).float().clamp_min(tiny).log()

        def look(rows):
            x = net.to_device(samples[rows])
            steps = deepfool(logits, x, self.n_classes, self.max_steps, self.overshoot)
            return self._moved(x.cpu().numpy(), steps.cpu().numpy())

        return samples.bad, look

    def _of_linear(self, classifier, X):
        if not _decides_by_coef(classifier, X):
            raise ValueError(
                "DFALSelector needs the gradient of a classifier, which "
                f"{type(classifier).__name__} does not have: use one of "
                "sklabel.classification or a linear one, such as LogisticRegression, "
                'or UncertaintySelector("margin").'
            )
        coef = classifier.coef_
        intercept = np.broadcast_to(classifier.intercept_, len(coef))
        Z = np.asarray(X)

        def look(rows):
            z = np.asarray(Z[rows], np.float64)  # a frame's may be objects
            return self._moved(z, linear_steps(z, coef, intercept))

        return np.zeros(len(Z), dtype=bool), look

    def _moved(self, x, steps):
        """Return rows behind the border, and how far they were; not finite: no step."""
        lengths = np.linalg.norm(steps.reshape(len(x), -1).astype(np.float64), axis=1)
        steps = np.where(np.isfinite(steps), steps, 0)
        return x + (1 + self.overshoot) * steps, lengths


def _decides_by_coef(classifier, X):
    """Return whether a classifier predicts the class of the highest linear score."""
    coef, n_classes = getattr(classifier, "coef_", None), len(classifier.classes_)
    n_rows = 1 if n_classes == 2 else n_classes
    if coef is None or np.shape(coef)[:1] not in ((n_rows,), (n_classes,)):
        return False
    # an SVC has a row for each pair of classes: of three classes three, too
    some = _safe_indexing(X, evenly_spaced(len(X), _ROWS_TO_COMPARE))
    scores = np.asarray(some, np.float64) @ coef.T + classifier.intercept_
    if scores.shape[1] == 1:
        scores = np.column_stack([-scores, scores])
    own = np.asarray(classifier.predict(some))[:, None] == classifier.classes_
    behind = scores.max(axis=1) - (scores * own).sum(axis=1)
    return bool((behind <= _ROUNDING * np.abs(scores).max()).all())


def _bounded(lengths):
    """Return lengths; those that are not finite become twice the longest other one."""
    lengths = np.array(lengths)
    reached = np.isfinite(lengths)
    longest = lengths[reached].max(initial=0)
    lengths[~reached] = min(2 * longest, np.finfo(float).max) or 1.0
    return lengths


def _blocks(rows):
    return (rows[i : i + _BATCH_ROWS] for i in range(0, len(rows), _BATCH_ROWS))
