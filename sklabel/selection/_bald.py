"""BALD and BatchBALD: rows on which draws of a model disagree (Houlsby et al.)."""

import copy
from typing import Annotated

import numpy as np
import torch
from scipy.special import entr
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.utils import _safe_indexing, check_random_state
from torch import nn

from .._core.calibration import rescale
from .._core.labels import encode_labels
from .._core.nested import inner_estimator, last_step
from .._core.parameters import (
    KW_ONLY,
    AtLeastTwo,
    Committee,
    Count,
    OpenUnitInterval,
    SampleCount,
    one_of,
)
from .._core.roles.classification import ClassificationRole
from .._core.roles.selection import ClassifierSelectionRole, clipped

_BLOCK_VALUES = 2**22
_BATCH_ROWS = 256
_ROWS_AT_ONCE = 16
_CACHE_VALUES = 2**15
# What is less is rounding, and rounding must not decide between equal rows.
_ROUNDING = 1e-12
_ENSEMBLES = (
    BaggingClassifier,
    ExtraTreesClassifier,
    RandomForestClassifier,
    VotingClassifier,
)


def bald(p):
    """Mutual information between a row's class and the model, from draws of the model.

    Entropy of the mean prediction minus the mean entropy of the predictions: high if
    each draw is confident, but in another class.

    Parameters
    ----------
    p : array-like of shape (n_draws, n, n_classes)
        Probabilities from each draw, in [0, 1]; they sum to 1 over the classes.

    Returns
    -------
    score : ndarray of shape (n,), float64
        In nats, from 0 to the smaller of ln ``n_draws`` and ln ``n_classes``; exactly 0
        below 1e-12.

    References
    ----------
    .. [1] N. Houlsby et al., "Bayesian active learning for classification and
       preference learning", 2011, equation 2.
    """
    p = clipped(p)
    score = entr(p.mean(axis=0)).sum(axis=-1) - _mean_entropy(p)
    score[score < _ROUNDING] = 0  # not NaN, which marks a row that cannot be read
    return score


def mean_std(p):
    """Standard deviation of each class over the draws, averaged over the classes.

    Parameters
    ----------
    p : array-like of shape (n_draws, n, n_classes)
        Probabilities from each draw, in [0, 1]; they sum to 1 over the classes.

    Returns
    -------
    score : ndarray of shape (n,), float64
        0 to about 0.7; with the divisor ``n_draws`` - 1; 0 for one draw.

    References
    ----------
    .. [1] A. Kendall, V. Badrinarayanan, R. Cipolla, "Bayesian SegNet", 2015; as in
       the code of BatchBALD.
    """
    p = clipped(p)
    squares = ((p - p.mean(axis=0)) ** 2).sum(axis=0)  # (n, C)
    return np.sqrt(squares / max(1, len(p) - 1)).mean(axis=-1)


def vote_entropy(p):
    """Entropy of the votes: the share of draws in which each class is most probable.

    Parameters
    ----------
    p : array-like of shape (n_draws, n, n_classes)
        Probabilities from each draw, in [0, 1]; in a tie, the first class gets the
        vote.

    Returns
    -------
    score : ndarray of shape (n,), float64
        In nats, from 0 to the smaller of ln ``n_draws`` and ln ``n_classes``.

    References
    ----------
    .. [1] I. Dagan, S. Engelson, "Committee-based sampling for training probabilistic
       classifiers", ICML 1995.
    """
    p = clipped(p)
    votes = p.argmax(axis=-1)[..., None] == np.arange(p.shape[-1])
    score = entr(votes.mean(axis=0)).sum(axis=-1)
    score[np.isnan(p).any(axis=(0, 2))] = np.nan
    return score


def batch_bald(p, n_samples, n_configurations=40_000, random_state=None):
    """Choose rows one by one, each for the information that it adds to the batch.

    A row adds its :func:`bald` given the labels of the rows chosen before, averaged
    over the possible labels: draws are weighted by the probability that they give these
    labels. A copy of a chosen row adds little.

    Parameters
    ----------
    p : array-like of shape (n_draws, n, n_classes)
        Probabilities from each draw, in [0, 1]; they sum to 1 over the classes. Draw k
        must be the same model for every row.
    n_samples : int
        Rows to choose, at most n.
    n_configurations : int, default=40000
        Maximum number of joint labels of the chosen rows that are evaluated: all while
        there are no more, then this many random ones.
    random_state : int, RandomState instance or None, default=None
        Seed of these draws.

    Returns
    -------
    selected : ndarray of shape (n_samples,)
        Rows in order of choice, ties by lowest row number.
    scores : ndarray of shape (n_samples,), float64
        Information of the batch up to each row, in nats; at most ln ``n_draws``.

    References
    ----------
    .. [1] A. Kirsch, J. van Amersfoort, Y. Gal, "BatchBALD: efficient and diverse batch
       acquisition for deep Bayesian active learning", NeurIPS 2019, section 3.
    """
    p = clipped(p)
    random = check_random_state(random_state)
    n_draws, n, n_classes = p.shape
    expected = _mean_entropy(p)
    # Of each configuration: its probability, and that of each draw given it.
    weights, posterior = np.ones(1), np.full((1, n_draws), 1 / n_draws)
    drawn_by = None  # the draw that each configuration is sampled from; None: all
    gain, selected, gains = np.full(n, np.inf), [], []
    for _ in range(n_samples):
        best = _best_gain(gain, p, expected, weights, posterior)
        selected.append(best)
        gains.append(max(gain[best], 0.0))
        gain[best] = -np.inf
        if drawn_by is None and len(weights) * n_classes > n_configurations:
            drawn_by = np.arange(max(n_configurations, n_draws)) % n_draws
            weights = np.full(len(drawn_by), 1 / len(drawn_by))
            posterior = np.full((len(drawn_by), n_draws), 1 / n_draws)
            for row in selected:
                posterior = _sampled(p[:, row], posterior, drawn_by, random)
        elif drawn_by is not None:
            posterior = _sampled(p[:, best], posterior, drawn_by, random)
        else:
            weights, posterior = _enumerated(p[:, best], weights, posterior)
    return np.array(selected, dtype=np.int64), np.cumsum(gains)


def _mean_entropy(p):
    """Return the mean over the draws of the entropy of each row, (n,)."""
    return entr(p).sum(axis=-1).mean(axis=0)


def _best_gain(gain, p, expected, weights, posterior):
    """Return the row that adds most, ties by row number; ``gain`` is updated.

    A row's gain only falls as others are chosen, so it is computed again only if its
    last value is not below the best gain computed so far.
    """
    order = np.argsort(-gain, kind="stable")
    new = np.full(len(gain), -np.inf)
    for start in range(0, len(order), _ROWS_AT_ONCE):
        rows = order[start : start + _ROWS_AT_ONCE]
        if gain[rows[0]] < new.max() - _ROUNDING:
            break
        rows = rows[gain[rows] > -np.inf]
        known = _entropy_given(p[:, rows], weights, posterior)
        new[rows] = gain[rows] = known - expected[rows]
    return int((new >= new.max() - _ROUNDING).argmax())


def _entropy_given(p, weights, posterior):
    """Return the mean entropy of each row's label when the configuration is known."""
    n_draws, n, n_classes = p.shape
    flat = p.reshape(n_draws, -1)
    total = np.zeros(n)
    step = max(1, _CACHE_VALUES // flat.shape[1])
    for start in range(0, len(weights), step):
        block = slice(start, start + step)
        known = posterior[block] @ flat  # (m, n * C)
        # faster than entr by far, and 0 ln 0 is 0 as well
        known *= np.log(np.maximum(known, np.finfo(float).tiny))
        total -= (weights[block] @ known).reshape(n, n_classes).sum(axis=1)
    return total


def _enumerated(p, weights, posterior):
    """Return all configurations with one more row, whose probabilities are p (K, C)."""
    joint = posterior[:, None, :] * p.T  # (M, C, K)
    joint = joint.reshape(-1, len(p))
    total = joint.sum(axis=1)
    weights = np.repeat(weights, p.shape[1]) * total
    possible = weights > 0
    return weights[possible], joint[possible] / total[possible, None]


def _sampled(p, posterior, drawn_by, random):
    """Return the posterior of the draws after sampling a label of one more row."""
    bounds = np.cumsum(p, axis=1)  # (K, C)
    at = random.random_sample(len(drawn_by)) * bounds[drawn_by, -1]
    labels = (bounds[drawn_by] <= at[:, None]).sum(axis=1)  # never one of probability 0
    joint = posterior * p.T[labels]  # (M, K)
    return joint / joint.sum(axis=1, keepdims=True)


_SCORES = {"bald": bald, "mean_std": mean_std, "vote_entropy": vote_entropy}


class BALDSelector(ClassifierSelectionRole):
    """Select the rows on which draws of a model disagree.

    A row may be uncertain because it is ambiguous, which no label changes, or because
    the labels so far allow several models. BALD selects the latter: rows whose label is
    most informative about the model. ``batch=True`` chooses the rows that are jointly
    most informative (BatchBALD). Read more in the :ref:`User Guide <bald>`.

    Draws of a model are

    - for a classifier of sklabel: the trained net with dropout on the features before
      its last linear layer, with the same masks for every row;
    - for a random forest, extra trees, bagging or voting: its members;
    - for any other classifier: copies fitted on resampled labeled rows.

    With a ``committee`` of other classifiers it is query by committee [4]_.

    Parameters
    ----------
    measure : {"bald", "mean_std", "vote_entropy"}
        "bald": mutual information, which is the mean divergence of committee members
        from their mean [5]_. "mean_std": the standard deviation over the draws,
        averaged over the classes. "vote_entropy": the entropy of the votes of the
        draws.
    committee : list of classifiers or None
        At least two classifiers, used instead of draws of one: each is cloned and
        fitted on the labels, or used as is in a
        :class:`sklearn.frozen.FrozenEstimator`, which must have the same classes.
        Members without ``predict_proba`` need ``measure="vote_entropy"``.
        ``classifier`` is then not used. In a loop, the committee is fitted in every
        round.
    batch : bool
        Whether to choose by BatchBALD, so that near copies are not chosen together;
        False: the rows of highest score. Needs ``measure="bald"``.
    n_draws : int
        Draws of the model, >= 2; an ensemble has one per member. A batch has at most ln
        ``n_draws`` nats of information: use 100 with ``batch=True``.
    dropout : float
        Dropout rate of the features, in (0, 1).
    n_candidates : int or None
        Rows of highest BALD among which BatchBALD chooses, at least ``n_samples``.
        None: 200 or ``4 * n_samples``, whichever is larger.
    n_configurations : int
        Maximum number of joint labels of the chosen rows that BatchBALD evaluates: all
        while there are no more, then this many random ones.
    random_state : int, RandomState instance or None
        Seed of the draws, and of the classifier if it has no ``random_state`` of its
        own.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows in labeling order, ties by lower row number.
    scores_ : ndarray of shape (n_rows,)
        Measure of each row alone; ``-inf`` for labeled rows and for files that cannot
        be read.
    batch_scores_ : ndarray of shape (n_samples,)
        Information of the batch up to each row. Only with ``batch=True``.
    estimators_ : list of estimators
        Fitted classifiers: one, whose dropout or members give the draws, or the copies
        fitted on resampled rows, or the committee. Empty if every row is labeled.

    Raises
    ------
    ValueError
        If no row is labeled and a classifier must be fitted, if the members of a
        committee have different classes, if more rows are requested than are unlabeled
        and readable, or if ``batch=True`` and ``measure`` is not "bald".

    See Also
    --------
    UncertaintySelector : The uncertainty of a single model.

    Notes
    -----
    Differences from the published code of BatchBALD:

    - Dropout is applied to the last features only and not in training, so one pass
      through the encoder serves all draws; the published code has dropout between
      layers, in training too.
    - A row's gain is computed given each configuration, not as a difference of joint
      entropies; the value is the same, without underflow in large batches.
    - Sampled configurations are extended from row to row, not drawn anew, and the gains
      of rows that added little are not recomputed while others add more.

    For a frozen classifier that is neither sklabel's nor an ensemble, copies with its
    settings are fitted on the labels, as if it were not frozen.

    Resampled rows have at least one row of each class, so with a single label per class
    all members are equal and cannot disagree.

    Time: one prediction of all rows (one per member of a committee); BatchBALD takes up
    to ``n_samples * n_candidates * n_configurations * n_classes * n_draws``. Memory:
    blocks of rows, the draws of the candidates, ``n_configurations * n_draws``.

    References
    ----------
    .. [1] N. Houlsby et al., "Bayesian active learning for classification and
       preference learning", 2011.
    .. [2] Y. Gal, R. Islam, Z. Ghahramani, "Deep Bayesian active learning with image
       data", ICML 2017.
    .. [3] A. Kirsch, J. van Amersfoort, Y. Gal, "BatchBALD: efficient and diverse batch
       acquisition for deep Bayesian active learning", NeurIPS 2019.
    .. [4] H. S. Seung, M. Opper, H. Sompolinsky, "Query by committee", COLT 1992.
    .. [5] A. McCallum, K. Nigam, "Employing EM and pool-based active learning for text
       classification", ICML 1998.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from sklabel.selection import BALDSelector
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 50, y, -1)
    >>> forest = RandomForestClassifier(20)
    >>> selector = BALDSelector(5, batch=True, classifier=forest, random_state=0)
    >>> rows = selector.fit_select(X, y_partly)
    >>> bool(rows.min() >= 50)
    True
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    measure: Annotated[str, one_of(_SCORES)] = "bald"
    committee: Committee | None = None
    batch: bool = False
    n_draws: AtLeastTwo = 10
    dropout: OpenUnitInterval = 0.5
    n_candidates: Count | None = None
    n_configurations: Count = 40_000

    def _asked(self):
        return super()._asked() if self.committee is None else self.committee

    def _check_rows(self, X):
        if self.batch and self.measure != "bald":
            raise ValueError(
                f'batch=True needs measure="bald", got measure={self.measure!r}.'
            )
        if self.committee is not None:
            _check_can_disagree(self.committee)
        if self.measure != "vote_entropy":
            for member in self.committee or ():
                _check_gives_probabilities(member, self.measure)
        return super()._check_rows(X)

    def _reset(self, pool):
        self.estimators_ = []
        vars(self).pop("batch_scores_", None)
        if self.batch and not pool.n_samples:
            self.batch_scores_ = np.zeros(0)

    def _ask(self, pool, random):
        _, scores = pool.nothing()
        draw = self._draws(pool.X, pool.y, random)
        rows = np.flatnonzero(~pool.labeled)
        step = max(1, _BLOCK_VALUES // draw(rows[:1]).size)
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            scores[block] = _SCORES[self.measure](draw(block))
        rows = pool.candidates(np.isnan(scores))
        scores[np.isnan(scores)] = -np.inf
        if not self.batch:
            return pool.highest(scores), scores
        n_candidates = self.n_candidates or max(200, 4 * pool.n_samples)
        n_candidates = min(max(n_candidates, pool.n_samples), len(rows))
        best = np.sort(np.argsort(-scores, kind="stable")[:n_candidates])
        chosen, self.batch_scores_ = batch_bald(
            draw(best), pool.n_samples, self.n_configurations, random
        )
        return best[chosen], scores

    def _draws(self, X, y, random):
        """Return a function of row numbers (b,) that gives probabilities (K, b, C)."""
        if self.committee is not None:
            members = [
                self._fit_classifier(X, y, random, classifier=member)
                for member in self.committee
            ]
            _check_classes(members)
            self.estimators_ = members
            return _member_draws(members, len(members[0].classes_), X)
        last = last_step(self.classifier)
        if isinstance(last, (ClassificationRole, *_ENSEMBLES)):
            fitted = self._fit_classifier(X, y, random)
            self.estimators_ = [fitted]
            last, X = inner_estimator(fitted, X)
            if isinstance(last, ClassificationRole):
                return _dropout_draws(last, X, self.n_draws, self.dropout, random)
            columns = getattr(last, "estimators_features_", None)
            return _member_draws(last.estimators_, len(last.classes_), X, columns)
        members = []
        for rows in _resampled(y, self.n_draws, random):
            part = _safe_indexing(X, rows), _safe_indexing(y, rows)
            members.append(self._fit_classifier(*part, random, again=True))
        self.estimators_ = members
        return _member_draws(members, len(members[0].classes_), X)


def _check_can_disagree(members):
    for member in members:
        methods = hasattr(member, "fit") and hasattr(member, "predict")
        if isinstance(member, type) or not methods:
            raise ValueError(
                f"committee={members} must contain classifiers, such as "
                f"LogisticRegression(), but {member!r} is none."
            )
    if len(members) < 2:
        raise ValueError(
            f"A committee of {len(members)} cannot disagree: pass at least two "
            "classifiers."
        )


def _check_classes(members):
    for member in members:
        if not hasattr(member, "classes_"):
            raise ValueError(
                f"{type(last_step(member)).__name__} in the committee is not a "
                "classifier: it has no classes_ after fit."
            )
    for member in members:
        if not np.array_equal(member.classes_, members[0].classes_):
            raise ValueError(
                "The members of a committee must have the same classes, but "
                f"{type(last_step(members[0])).__name__} knows {members[0].classes_} "
                f"and {type(last_step(member)).__name__} {member.classes_}."
            )


def _check_gives_probabilities(member, measure):
    if not hasattr(member, "predict_proba"):
        name = type(last_step(member)).__name__
        raise ValueError(
            f"measure={measure!r} needs probabilities, but {name} in the committee has "
            'no predict_proba: use measure="vote_entropy", which counts votes.'
        )


def _probabilities(member, X):
    """Return probabilities (n, C); 1 for the vote of a member without probabilities."""
    if hasattr(member, "predict_proba"):
        return member.predict_proba(X)
    votes = np.asarray(member.predict(X))
    return (votes[:, None] == np.asarray(member.classes_)).astype(np.float64)


def _resampled(y, n_draws, random):
    """Yield rows to fit on: labeled ones drawn with replacement, and all unlabeled."""
    if y is None:
        yield np.zeros(0, dtype=np.int64)  # the classifier's own message tells why
        return
    classes, codes = encode_labels(y)
    labeled, unlabeled = np.flatnonzero(codes >= 0), np.flatnonzero(codes < 0)
    for _ in range(n_draws):
        kept = [random.choice(np.flatnonzero(codes == c)) for c in range(len(classes))]
        more = random.choice(labeled, len(labeled) - len(kept)) if len(labeled) else []
        yield np.concatenate([kept, more, unlabeled]).astype(np.int64)


def _member_draws(members, n_classes, X, columns=None):
    """Return a function of row numbers that runs every member of a committee."""

    def draw(rows):
        part = _safe_indexing(X, rows)
        p = np.zeros((len(members), len(rows), n_classes))
        for k, member in enumerate(members):
            own = part
            if hasattr(own, "to_numpy") and not hasattr(member, "feature_names_in_"):
                own = own.to_numpy()  # the ensemble fitted it without the names
            if columns is not None:
                own = _safe_indexing(own, columns[k], axis=1)
            q = _probabilities(member, own)
            if q.shape[1] < n_classes:  # bagging: some class may be missing in a bag
                p[k][:, np.asarray(member.classes_, dtype=np.int64)] = q
            else:
                p[k] = q
        return p

    return draw


def _dropout_draws(classifier, X, n_draws, dropout, random):
    """Return a function of row numbers that runs a net with each dropout mask."""
    samples, net = classifier._check_X(X), classifier.net_
    # A copy is free of compiled parts, and the hook is on nobody else's net.
    module = copy.deepcopy(net.module_).eval()

    def predict(rows):
        x = net.to_device(samples[rows])
        with torch.inference_mode(), net.autocast():
            return module(x).float()

    layer = _last_linear(module, lambda: predict(np.arange(min(2, len(samples)))))
    kept = random.random_sample((n_draws, layer.in_features)) >= dropout
    masks = torch.from_numpy(kept / (1 - dropout)).float().to(net.device)

    def spread(layer, inputs):
        h = inputs[0]  # (B, ..., D)
        mask = masks.to(h.dtype).view(n_draws, *[1] * (h.ndim - 1), -1)
        return (mask * h).flatten(0, 1)  # (K * B, ..., D)

    layer.register_forward_pre_hook(spread)

    def draw(rows):
        batches = [
            predict(rows[start : start + _BATCH_ROWS]).unflatten(0, (n_draws, -1)).cpu()
            for start in range(0, len(rows), _BATCH_ROWS)
        ]
        p = torch.cat(batches, dim=1).numpy()  # (K, b, C)
        flat = rescale(p.reshape(-1, p.shape[2]), classifier.calibration_temperature_)
        p = flat.reshape(p.shape)
        p[:, samples.bad[rows]] = np.nan
        return p

    return draw


def _last_linear(module, run):
    """Return the linear layer that is called last when ``run`` is called."""
    called = []
    hooks = [
        part.register_forward_hook(lambda part, *_: called.append(part))
        for part in module.modules()
        if isinstance(part, nn.Linear)
    ]
    run()
    for hook in hooks:
        hook.remove()
    if not called:
        raise ValueError(
            "Dropout goes before the last linear layer, but this classifier has none."
        )
    return called[-1]
