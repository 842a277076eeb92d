"""MaxHerding and UHerding: rows that cover the others (Bae et al., 2024 and 2025)."""

from typing import Annotated, Literal

import numpy as np
import torch
from scipy.special import entr
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import normalize as unit_rows
from sklearn.utils import _safe_indexing, check_random_state
from tqdm.auto import tqdm

from .._core.calibration import fit_temperature, rescale
from .._core.devices import device_for, to_device
from .._core.labels import encode_labels
from .._core.nested import hidden_features
from .._core.parameters import (
    KW_ONLY,
    Count,
    Positive,
    RandomState,
    SampleCount,
    Verbosity,
    one_of,
)
from .._core.roles.selection import ClassifierSelectionRole, SelectionRole, clipped
from ..neighbors import kneighbors

# Values of the kernel computed at once.
_BLOCK_VALUES = 2**20
# The kernel is at least exp(-_FAR), 1e-26: less would be slow to multiply.
_FAR = 60.0
# Rows whose gains are computed together: at most, and at first.
_MANY_ROWS = 256
_FEW_ROWS = 16
# Gains that differ by less than this share are equal.
_ROUNDING = 1e-9
# Single precision can be used while it is wrong by no more than this share of a gain.
_LARGEST_ERROR = 0.05
# Share of the labels on which the temperature is fitted, as published.
_HELD_SHARE = 0.3


class Coverage:
    r"""Coverage of all rows by chosen rows, and the gain of one more.

    With the kernel ``k(a, b) = exp(-||a - b||^2 / sigma^2)`` row n is covered by
    ``c_n = max over chosen rows s of k(z_n, z_s)``, and row x would add
    ``mean over n of w_n max(0, k(z_n, z_x) - c_n)``.

    Parameters
    ----------
    Z : ndarray of shape (n, D), float32 or float64
        Vectors, held beside a centered copy.
    sigma : float
        Radius of the kernel, > 0.
    weights : ndarray of shape (n,) or None
        Weight of each row's coverage, >= 0. None: 1.
    device : str or torch.device, default="cpu"
        Device of the kernel; the CPU is used in place of MPS, which has no float64.

    Attributes
    ----------
    covered : Tensor of shape (n,), float64
        c, in [0, 1].
    """

    def __init__(self, Z, sigma=1.0, weights=None, device="cpu"):
        self.Z, self.sigma = Z, sigma
        self.device = device_for(device, torch.float64)
        # for single precision: distances stay, products lose fewer digits
        mean = Z.mean(axis=0, dtype=np.float64).astype(Z.dtype)
        self.centered = self._moved((Z - mean).astype(np.float32, copy=False))
        weights = np.ones(len(Z)) if weights is None else weights
        self.weights = self._moved(np.array(weights, dtype=np.float64))
        self.covered = torch.zeros(len(Z), dtype=torch.float64, device=self.device)
        on_cpu = self.device.type == "cpu"
        self.rows = None if on_cpu else self._moved(np.ascontiguousarray(Z))

    def add(self, rows):
        """Choose rows: an array of int."""
        for start in range(0, len(rows), _MANY_ROWS):
            for block, k in self._kernel(rows[start : start + _MANY_ROWS]):
                covered = self.covered[block]
                torch.maximum(covered, k.amax(1), out=covered)

    def gains(self, rows, dtype=torch.float64):
        """Return the gain of each of some hundred rows, computed in this dtype."""
        sums = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
        for block, k in self._kernel(rows, dtype):
            weights, covered = self.weights[block], self.covered[block]
            more = k.sub_(covered.to(k.dtype)[:, None]).clamp_(min=0)
            sums += (weights.to(k.dtype) @ more).double()
        return sums.cpu().numpy() / len(self.Z)

    def single_error(self):
        """Return the maximum error of gains in single precision.

        Rounding errors grow with the root of the number of terms, and are smaller in a
        mean.
        """
        longest = float(torch.linalg.vector_norm(self.centered, dim=1).max()) ** 2
        rounding = (8 + 2 * self.Z.shape[1] ** 0.5) * np.finfo(np.float32).eps
        error = rounding * (1 + 4 * longest / self.sigma**2)
        return error * float(self.weights.mean())

    def _rows(self, where, dtype):
        if not isinstance(where, slice):
            numbers = torch.from_numpy(np.asarray(where, dtype=np.int64))
            where_there = to_device(numbers, self.device)
        else:
            where_there = where
        if dtype == torch.float32:
            return self.centered[where_there]
        if self.rows is not None:
            return self.rows[where_there].double()
        return torch.from_numpy(self.Z[where].astype(np.float64))

    def _moved(self, values):
        return to_device(torch.from_numpy(values), self.device)

    def _kernel(self, rows, dtype=torch.float64):
        """Yield blocks of rows, and their kernel (b, m) with these m rows."""
        b = self._rows(rows, dtype)
        squares = b.square().sum(1)
        step = max(1, _BLOCK_VALUES // max(len(rows), self.Z.shape[1]))
        for start in range(0, len(self.Z), step):
            block = slice(start, start + step)
            a = self._rows(block, dtype)
            lengths = a.square().sum(1)[:, None] + squares
            k = torch.addmm(lengths, a, b.T, alpha=-2).mul_(-1 / self.sigma**2)
            yield block, k.clamp_(-_FAR, 0).exp_()


def herd(
    Z,
    n_samples,
    candidates=None,
    chosen=(),
    weights=None,
    sigma=1.0,
    verbose=0,
    device="cpu",
):
    """Choose repeatedly the row that adds most to the coverage of all rows.

    A row's gain only falls as others are chosen, so it is computed again only for rows
    whose last gain was above the best current one: in single precision while that
    separates most rows, and in double precision for those that may be the best.

    Parameters
    ----------
    Z : ndarray of shape (n, D), float32 or float64
        Vectors.
    n_samples : int
        Rows to choose, at most the candidates.
    candidates : ndarray of int or None
        Rows that may be chosen, ascending. None: all but the chosen ones.
    chosen : array-like of int, default=()
        Rows chosen before.
    weights : ndarray of shape (n,) or None
        See `Coverage`.
    sigma : float, default=1.0
        See `Coverage`.
    verbose : int, default=0
        1 shows a progress bar.
    device : str or torch.device, default="cpu"
        See `Coverage`.

    Returns
    -------
    rows : ndarray of shape (n_samples,)
        In order of choice, ties by lowest row number.
    gains : ndarray of shape (n,), float64
        Gain of each candidate at the start; ``-inf`` for other rows.
    coverage : ndarray of shape (n_samples,)
        Mean of c over all rows after each choice.
    """
    coverage = Coverage(Z, sigma, weights, device)
    coverage.add(np.asarray(chosen, dtype=np.int64))
    if candidates is None:
        candidates = np.setdiff1d(np.arange(len(Z)), chosen)
    bound = np.full(len(candidates), np.inf)  # of what each would add
    gains, rows, means = np.full(len(Z), -np.inf), [], []
    of_single = coverage.single_error()
    rounding = of_single * np.finfo(np.float64).eps / np.finfo(np.float32).eps
    with tqdm(total=n_samples, desc="herding", unit="row", disable=not verbose) as bar:
        for step in range(n_samples):
            dtype, error = torch.float32, of_single
            if error > _LARGEST_ERROR * bound.max():
                dtype, error = torch.float64, 0.0
            best = -np.inf  # the best row adds this at least
            for some in _by_bound(bound):
                if bound[some[0]] < _equal(best, rounding):
                    break
                found = coverage.gains(candidates[some], dtype)
                if not step:
                    gains[candidates[some]] = found
                bound[some] = np.minimum(bound[some], found + error)
                best = max(best, float(found.max()) - error)
            left = np.flatnonzero(bound >= _equal(best, rounding))
            best = -np.inf
            for part in _by_bound(bound[left]):
                some = left[part]
                if bound[some[0]] < _equal(best, rounding):
                    break
                bound[some] = coverage.gains(candidates[some])
                best = max(best, float(bound[some].max()))
            place = int((bound >= _equal(best, rounding)).argmax())
            bound[place] = -np.inf
            rows.append(int(candidates[place]))
            coverage.add(np.array(rows[-1:]))
            means.append(float(coverage.covered.mean()))
            bar.update()
            bar.set_postfix(coverage=f"{means[-1]:.4g}", refresh=False)
    return np.array(rows, dtype=np.int64), gains, np.array(means)


def _equal(gain, rounding):
    """Return the smallest gain that may equal this one."""
    return gain - _ROUNDING * abs(gain) - rounding if gain > -np.inf else gain


def _by_bound(bound):
    """Yield places in growing blocks, those of the largest bound first."""
    order = np.argsort(-bound, kind="stable")
    order = order[bound[order] > -np.inf]
    start, size = 0, _FEW_ROWS
    while start < len(order):
        yield order[start : start + size]
        start, size = start + size, min(2 * size, _MANY_ROWS)


def _drawn(pool, n_candidates, random_state):
    """Return the unlabeled candidates, ascending.

    With the same seed, a later round has the rest of these.
    """
    order = check_random_state(random_state).permutation(len(pool))
    is_free = ~pool.labeled[order]
    n_rows = len(pool) if n_candidates is None else min(n_candidates, len(pool))
    n_free = max(pool.n_samples, int(is_free[:n_rows].sum()))
    return np.sort(order[is_free][:n_free])


class MaxHerdingSelector(SelectionRole):
    """Select the rows that together cover most of the data.

    A row covers similar rows, weighted by a Gaussian kernel. Rows are chosen greedily,
    each the one that adds most to the mean coverage: first the middle of the densest
    region, then rows in regions that are not covered yet. The method needs no labels
    and no clusters, and 10 rows followed by 30 are the same as 40 at once. Read more in
    the :ref:`User Guide <herding>`.

    It works on vectors: embed images first, with a self-supervised or a pretrained
    transformer.

    Parameters
    ----------
    sigma : float
        Radius of the kernel ``exp(-||a - b||^2 / sigma^2)``, > 0. 1 suits vectors of
        length 1, as published.
    n_candidates : int or None
        Number of candidates, drawn at random, if X has more rows; at least
        ``n_samples``. Their coverage is computed over all rows. None: all.
    normalize : bool
        Divide each row by its length first, as published.
    random_state : int, RandomState instance or None
        Seed of the candidates; nothing else is random.
    verbose : int
        1: a progress bar.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows in labeling order: each adds most coverage to the labeled rows and
        those before it, ties by lowest row number.
    scores_ : ndarray of shape (n_rows,)
        What each row alone would add to the mean coverage by the labeled rows; without
        labeled rows, this is a density. ``-inf`` for labeled rows and for rows that
        were not drawn.
    coverage_ : ndarray of shape (n_samples,)
        Mean coverage of all rows, in [0, 1], after each choice. Once it levels off,
        more labels add little.
    assignments_ : ndarray of shape (n_rows,)
        Position in ``sample_indices_`` of the nearest chosen row.
    n_features_in_ : int
        Number of features seen in ``fit``.

    Raises
    ------
    ValueError
        If more rows are requested than are unlabeled, or if X is not 2-D (images,
        paths).

    See Also
    --------
    UHerdingSelector : The same, weighted by a classifier's uncertainty.
    USLSelector : Typical rows of clusters that are far from one another.
    CoreSetSelector : Covers the farthest rows, including outliers.

    Notes
    -----
    Labeled rows count as chosen before. The choice is nested: with the same
    ``random_state``, choosing ten rows, and thirty more after labeling these, gives the
    same forty rows as choosing forty at once.

    Time: the first row takes n_rows * n_candidates * n_features. Since gains never
    grow, a row's gain is then computed again only if its last value was above the best:
    a hundred rows took 3 to 6 times as long as the first. Memory: two copies of X,
    small blocks, and a few numbers per row; never n_rows ** 2.

    Differences from the released code: it draws at most 35,000 rows including the
    labeled ones and ignores the others; here the coverage is computed over all rows.
    The gains are exact in double precision.

    References
    ----------
    .. [1] W. Bae, J. Noh, D. J. Sutherland, "Generalized coverage for more robust
       low-budget active learning", ECCV 2024, algorithm 1.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import MaxHerdingSelector
    >>> X, y = load_digits(return_X_y=True)
    >>> selector = MaxHerdingSelector(20).fit(X)
    >>> len(set(y[selector.sample_indices_]))
    10
    >>> selector.coverage_[[0, -1]].round(2)
    array([0.66, 0.85])
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    sigma: Positive = 1.0
    n_candidates: Count | None = 35_000
    normalize: bool = True
    device: str | torch.device = "auto"
    random_state: RandomState = None
    verbose: Verbosity = 0

    def _choose(self, pool):
        if self.normalize:
            pool.space = unit_rows(pool.X)
        rows, gains, self.coverage_ = herd(
            pool.space,
            pool.n_samples,
            _drawn(pool, self.n_candidates, self.random_state),
            np.flatnonzero(pool.labeled),
            sigma=self.sigma,
            verbose=self.verbose,
            device=self.device,
        )
        return rows, gains


def label_radius(Z, rule="median"):
    """Return the kernel radius from the distances between labeled rows.

    Parameters
    ----------
    Z : ndarray of shape (n, D)
        Labeled rows; copies count once.
    rule : {"median", "least"}, default="median"
        The median or the minimum, over the rows, of the distance to the nearest other
        row.

    Returns
    -------
    radius : float
        1 if fewer than two rows differ, or by too little for a distance above 0.
    """
    Z = np.unique(Z, axis=0)
    if len(Z) < 2:
        return 1.0
    nearest = kneighbors(Z, 1, include_self=False, method="exact")[0]
    # rows may differ by less than a distance in single precision can say
    return float(np.median(nearest) if rule == "median" else nearest.min()) or 1.0


def _margin(p):
    largest = np.sort(p, axis=1)
    return 1 - (largest[:, -1] - (largest[:, -2] if p.shape[1] > 1 else 0))


_MEASURES = {
    "margin": _margin,
    "entropy": lambda p: entr(p).sum(1),
    "least_confidence": lambda p: 1 - p.max(1),
}


class UHerdingSelector(ClassifierSelectionRole):
    """Select the rows that cover most of a classifier's uncertainty.

    The coverage is that of :class:`MaxHerdingSelector`, with each row weighted by a
    classifier's uncertainty. With few labels the kernel is wide, and the choice covers
    the data; as labels get denser it narrows, and the choice shifts to single rows near
    the decision boundary. Read more in the :ref:`User Guide <uherding>`.

    Parameters
    ----------
    measure : {"margin", "entropy", "least_confidence"}
        Measure of uncertainty: one minus the difference of the two largest
        probabilities, as published; the entropy; one minus the largest probability.
    sigma : {"median", "least"} or float
        Radius of the kernel, > 0; or the rule that sets it: the median, over the
        labeled rows, of the distance to the nearest other labeled row, or the minimum
        of these distances, as published. It is 1 while fewer than two labeled rows
        differ.
    temperature : "auto" or float
        Divides the logits, > 0. "auto": fitted on 30 % of the labels, with a copy of
        the classifier that was trained on the others; see Notes.
    n_candidates : int or None
        Number of candidates, drawn at random, if X has more rows; at least
        ``n_samples``. Their coverage is computed over all rows. None: all.
    normalize : bool
        Divide each row by its length first, as published.
    random_state : int, RandomState instance or None
        Seed of the candidates and of the rows for the temperature, and of the
        classifier if it has no ``random_state`` of its own.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows in labeling order, ties by lowest row number.
    scores_ : ndarray of shape (n_rows,)
        What each row alone would add to the coverage, weighted by uncertainty; ``-inf``
        for labeled rows, for rows that were not drawn and for files that cannot be
        read.
    sigma_ : float
        Radius used.
    temperature_ : float
        Temperature used.
    classifier_ : estimator
        Fitted classifier. Absent if fewer than two classes are labeled.

    Raises
    ------
    ValueError
        If more rows are requested than are unlabeled and readable.

    See Also
    --------
    MaxHerdingSelector : Needs no classifier.
    BADGESelector : Draws rows by uncertainty and distance.

    Notes
    -----
    Without labels of two classes, all rows have the same weight, which gives
    :class:`MaxHerdingSelector`.

    Distances are computed on X if it holds vectors, and on the features of the
    classifier if it holds images. An embedding that is trained without labels is better
    than the features of a network that has seen few labels.

    Time: as for :class:`MaxHerdingSelector`, plus two fits of the classifier, or one
    with ``temperature=1``.

    Differences from the paper and its released code:

    - The radius is a median. The minimum is the distance of two near copies if the
      labeled rows have any, and then nothing is covered. ``sigma="least"`` is the
      published rule.
    - The temperature has the highest posterior probability, with a prior around 1 (as
      in :class:`sklabel.classification.SupervisedClassifier`), not the smallest
      calibration error, because on ten rows many temperatures have the same error. Each
      class keeps at least one row for training.
    - A frozen classifier is used as is; the copy for the temperature is fitted anew.
    - The coverage is computed over all rows, not over 35,000.

    References
    ----------
    .. [1] W. Bae, G. Oliveira, D. J. Sutherland, "Uncertainty herding: one active
       learning method for all label budgets", ICLR 2025, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import UHerdingSelector
    >>> X, target = load_digits(return_X_y=True)
    >>> y = np.where(np.arange(len(X)) < 50, target, -1)
    >>> selector = UHerdingSelector(20, random_state=0).fit(X / 16, y)
    >>> bool(selector.sample_indices_.min() >= 50)
    True
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    measure: Annotated[str, one_of(_MEASURES)] = "margin"
    sigma: Positive | Literal["median", "least"] = "median"
    temperature: Positive | Literal["auto"] = "auto"
    n_candidates: Count | None = 35_000
    normalize: bool = True

    def _reset(self, pool):
        super()._reset(pool)
        if self.normalize and pool.space is not None:
            pool.space = unit_rows(pool.space)

    def _ask(self, pool, random):
        drawn = _drawn(pool, self.n_candidates, random.randint(2**31 - 1))
        weights, self.temperature_ = np.ones(len(pool)), 1.0
        if pool.space is None or self._has_answers(pool):
            self.classifier_ = self._fit_classifier(pool.X, pool.y, random)
            p = clipped(self.classifier_.predict_proba(pool.X))
            self.temperature_ = self._fit_temperature(pool, random)
            weights = _MEASURES[self.measure](rescale(p, self.temperature_))
        readable = ~np.isnan(weights)
        drawn = drawn[readable[drawn]]
        if len(drawn) < pool.n_samples:
            drawn = pool.candidates(~readable)
        weights = np.where(readable & ~pool.labeled, weights, 0)
        if weights.max() <= 0:
            weights = readable.astype(float)  # sure of every row
        Z, known = pool.space, np.flatnonzero(pool.labeled & readable)
        if Z is None:
            Z = hidden_features(self.classifier_, pool.X)
            Z = np.where(readable[:, None], Z, 0)
            Z = unit_rows(Z) if self.normalize else Z
        self.sigma_ = self.sigma
        if isinstance(self.sigma, str):
            self.sigma_ = label_radius(Z[known], self.sigma)
        rows, gains, _ = herd(Z, pool.n_samples, drawn, known, weights, self.sigma_)
        return rows, gains

    def _has_answers(self, pool):
        """Return whether there is a classifier, or labels of two classes to fit one."""
        if isinstance(self.classifier, FrozenEstimator):
            return True
        return pool.labeled.any() and len(encode_labels(pool.y)[0]) > 1

    def _fit_temperature(self, pool, random):
        """Return the temperature, fitted on labels that a copy of the classifier lacks.

        It is 1 if no label can be spared.
        """
        if self.temperature != "auto":
            return self.temperature
        if not pool.labeled.any():
            return 1.0
        classes, codes = encode_labels(pool.y)
        labeled = random.permutation(np.flatnonzero(codes >= 0))
        _, kept = np.unique(codes[labeled], return_index=True)  # one row of each class
        held = np.delete(labeled, kept)[: int(_HELD_SHARE * len(labeled))]
        if len(classes) < 2 or not len(held):
            return 1.0
        names = classes.tolist()
        y = np.array([*names, None], dtype=object)[codes]  # -1 is the last one
        y[held] = None
        copy = self._fit_classifier(pool.X, y, random, again=True)
        p = clipped(copy.predict_proba(_safe_indexing(pool.X, held)))
        place = {label: i for i, label in enumerate(copy.classes_.tolist())}
        true = np.array([place.get(names[code], -1) for code in codes[held]])
        good = (true >= 0) & ~np.isnan(p).any(1)
        return fit_temperature(p[good], true[good]) if good.any() else 1.0
