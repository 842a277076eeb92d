"""What every selector promises, whatever its method; see also tests/test_common.py."""

import functools
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch.utils._python_dispatch import TorchDispatchMode

from sklabel import selection
from sklabel.selection import (
    BADGESelector,
    BALDSelector,
    CoreGCNSelector,
    CoreSetSelector,
    DFALSelector,
    LADASelector,
    LearningLossSelector,
    MaxHerdingSelector,
    MMASelector,
    RandomSelector,
    SRAALSelector,
    StratifiedSelector,
    TODSelector,
    TypiClustSelector,
    UHerdingSelector,
    UncertainGCNSelector,
    UncertaintySelector,
    USLSelector,
    USLTSelector,
    VAALSelector,
)


class AnyWidth(ClassifierMixin, BaseEstimator):
    """A fitted classifier for vectors of any length; y has no label or one class."""

    def __init__(self, slope=1.0):
        self.slope = slope

    def fit(self, X=None, y=None):
        self.classes_ = np.arange(3)
        return self

    def predict_proba(self, X):
        weights = np.cos(self.slope * np.arange(3 * X.shape[1])).reshape(-1, 3)
        logits = np.asarray(X, np.float64) @ weights
        p = np.exp(logits - logits.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)


def _committee():
    committee = VotingClassifier([("a", AnyWidth())], voting="soft")
    committee.estimators_ = [AnyWidth(s).fit() for s in (0.3, 1.0, 2.0, -0.5)]
    committee.classes_ = np.arange(3)
    return FrozenEstimator(committee)


HELD = FrozenEstimator(AnyWidth().fit())

# Selectors with the settings to try. Those that read all labels are in ORACLES, those
# that must have some to learn from in LEARNERS.
SELECTORS = [
    RandomSelector(random_state=0),
    USLSelector(random_state=0),
    USLSelector(random_state=0, n_neighbors=3, include_self=False, metric_power=1),
    USLSelector(random_state=0, horizon="nearest", horizon_neighbors=2, n_clusters=3),
    USLSelector(random_state=0, horizon=None, exclude_same_cluster=False),
    USLSelector(random_state=0, reg_weight=0, kmeans_init="k-means++"),
    USLSelector(random_state=0, normalize=False),
    USLSelector(random_state=0, n_clusters=4, nested=True),
    MaxHerdingSelector(random_state=0, n_candidates=6000),
    MaxHerdingSelector(random_state=0, n_candidates=6000, sigma=2.0, normalize=False),
    UHerdingSelector(classifier=HELD, random_state=0, n_candidates=6000),
    UHerdingSelector(
        classifier=HELD,
        random_state=0,
        n_candidates=6000,
        sigma="least",
        temperature=2.0,
    ),
    TypiClustSelector(random_state=0),
    TypiClustSelector(random_state=0, normalize=False, max_clusters=5),
    *[
        UncertaintySelector(measure, classifier=HELD, random_state=0)
        for measure in ("entropy", "margin", "least_confidence", "variation_ratio")
    ],
    BALDSelector(classifier=_committee(), random_state=0),
    BALDSelector(classifier=_committee(), random_state=0, measure="mean_std"),
    BALDSelector(classifier=_committee(), random_state=0, batch=True),
    BADGESelector(classifier=HELD, random_state=0),
    MMASelector(classifier=HELD, random_state=0),
    MMASelector(classifier=HELD, diversity="kmeans", random_state=0),
    MMASelector(classifier=HELD, diversity="density", random_state=0),
    USLTSelector(max_steps=2, n_heads=2, random_state=0),
    USLTSelector(
        max_steps=2,
        n_heads=1,
        head="linear",
        selection="density",
        n_clusters=3,
        random_state=0,
    ),
    CoreSetSelector(random_state=0),
    CoreSetSelector(random_state=0, normalize=True),
    CoreSetSelector(random_state=0, robust=True, time_limit=2),
]
LEARNERS = [
    SRAALSelector(max_steps=2, width=2, random_state=0),
    LADASelector(max_steps=2, policy_epochs=1, random_state=0),
    LearningLossSelector(max_steps=2, width=4, random_state=0),
    TODSelector(max_steps=2, batch_size=8, random_state=0),
    TODSelector(max_steps=2, batch_size=8, first_cycle="random", random_state=0),
    VAALSelector(max_steps=2, width=2, random_state=0),
    UncertainGCNSelector(n_steps=3, random_state=0),
    CoreGCNSelector(n_steps=3, random_state=0),
    CoreGCNSelector(n_steps=3, features="hidden_and_logit", random_state=0),
    DFALSelector(random_state=0),
]
ORACLES = [
    StratifiedSelector(random_state=0),
    StratifiedSelector(rule="equal", random_state=0),
]
# A selector that is in no list is tried with its defaults.
NAMED = {type(selector) for selector in SELECTORS + LEARNERS + ORACLES}
OTHERS = {getattr(selection, name) for name in selection.__all__} - NAMED
SELECTORS += [cls(random_state=0) for cls in sorted(OTHERS, key=lambda c: c.__name__)]


def _name(selector):
    return repr(selector).replace("random_state=0", "")


every_selector = pytest.mark.parametrize("selector", SELECTORS + LEARNERS, ids=_name)
every_one = pytest.mark.parametrize(
    "selector", SELECTORS + LEARNERS + ORACLES, ids=_name
)


@pytest.fixture
def X():
    rng = np.random.default_rng(0)
    Z = rng.standard_normal((90, 6)) + 4 * rng.integers(3, size=(90, 1))
    return Z.astype(np.float32)


def _labels(selector, n, known=()):
    """All labels for an oracle; else -1 but for the known rows, two of a learner's."""
    if isinstance(selector, StratifiedSelector):
        return np.arange(n) % 3
    y = np.full(n, -1)
    y[list(known)] = 1
    if type(selector) in map(type, LEARNERS):
        y[[1, n // 2]] = 0, 1
    return y


def _n_open(selector, y):
    return len(y) if isinstance(selector, StratifiedSelector) else int((y == -1).sum())


def _check_promises(selector, X, y, n_samples):
    rows = selector.sample_indices_
    assert rows.shape == (n_samples,) and rows.dtype == np.int64
    assert len(set(rows.tolist())) == n_samples
    assert rows.min(initial=0) >= 0 and rows.max(initial=0) < len(X)
    support = np.zeros(len(X), dtype=bool)
    support[rows] = True
    np.testing.assert_array_equal(selector.support_, support)
    assert selector.scores_.shape == (len(X),)
    assert not np.isnan(selector.scores_).any()
    if y is not None and not isinstance(selector, StratifiedSelector):
        assert (y[rows] == -1).all()
        assert (selector.scores_[y != -1] == -np.inf).all()
        assert np.isfinite(selector.scores_[y == -1]).all()
    assert selector.assignments_.shape == (len(X),)
    if n_samples:
        np.testing.assert_array_equal(selector.assignments_[rows], np.arange(n_samples))
    assert selector.n_features_in_ == X.shape[1]


@functools.cache
def _without(cls, labels):
    """The checks label every row: return a selector that takes labels away first."""
    name = f"_{cls.__name__}{labels.__name__}"
    made = type(name, (cls,), {"__module__": __name__})
    made.fit = lambda self, X, y=None: cls.fit(self, X, labels(y))
    globals()[name] = made  # pickle looks for it here
    return made


def _some(y):
    if y is not None and np.ndim(y) == 1 and len(y) > 12:
        y = np.array(y, dtype=object)
        y[np.flatnonzero(y == y[0])[3:]] = None
    return y


def _all(y):
    return None


CHECKED = [
    *[clone(s).set_params(random_state=None) for s in SELECTORS + ORACLES],
    *LEARNERS,
    *[
        UncertaintySelector(measure)
        for measure in ("entropy", "margin", "least_confidence", "variation_ratio")
    ],
    BALDSelector(),
    BALDSelector(batch=True),
    BADGESelector(),
    MMASelector(),
    UHerdingSelector(),
    UncertainGCNSelector(),
    CoreGCNSelector(),
    # there are rows to choose
    _without(BADGESelector, _some)(),
    _without(MMASelector, _some)(diversity="kmeans"),
    _without(UncertainGCNSelector, _some)(n_steps=3, n_hidden=4),
    _without(CoreGCNSelector, _some)(n_steps=3, n_hidden=4),
    _without(DFALSelector, _some)(),
    _without(LADASelector, _some)(max_steps=2, policy_epochs=1, random_state=0),
    _without(SRAALSelector, _some)(max_steps=2, width=2),
    _without(LearningLossSelector, _some)(max_steps=2, width=8, random_state=0),
    _without(TODSelector, _some)(max_steps=2, batch_size=8, random_state=0),
    _without(VAALSelector, _some)(max_steps=2, width=2),
    _without(RandomSelector, _all)(1),
    _without(USLSelector, _all)(1),
    _without(MaxHerdingSelector, _all)(1),
    _without(TypiClustSelector, _all)(1),
    _without(UHerdingSelector, _some)(),
    _without(CoreSetSelector, _all)(1),
    _without(CoreSetSelector, _all)(1, robust=True),
]


@pytest.mark.parametrize("selector", CHECKED, ids=_name)
@pytest.mark.filterwarnings("ignore::sklabel.CollapseWarning")
def test_scikit_learns_checks(selector):
    results = check_estimator(selector)
    assert {result["status"] for result in results} == {"passed"}


class _Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that torch makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for part in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(part, torch.Tensor):
                self.numel = max(self.numel, part.numel())
        return made


@pytest.mark.parametrize(
    "selector",
    # the robust core-set's program holds all pairs within the radius
    [s for s in SELECTORS + LEARNERS + ORACLES if not vars(s).get("robust")],
    ids=_name,
)
def test_no_matrix_of_all_pairs_of_rows(selector):
    n = 16_000
    X = np.random.default_rng(0).standard_normal((n, 3)).astype(np.float32)
    y = _labels(selector, n)
    tracemalloc.start()
    try:
        with _Largest() as largest:
            clone(selector).set_params(n_samples=5).fit(X, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # blocks of products have 2**26 entries, whatever n
    assert largest.numel <= 2**26 < n**2 / 3
    assert peak < 4 * n**2 / 3


@every_one
@pytest.mark.parametrize("n_samples", [1, 2, 7, 40, 90])
def test_promises(selector, X, n_samples):
    y = _labels(selector, len(X))
    n_samples = min(n_samples, _n_open(selector, y))
    selector = clone(selector).set_params(n_samples=n_samples).fit(X, y)
    _check_promises(selector, X, y, n_samples)


@every_selector
@pytest.mark.parametrize("n_known", [1, 30, 83])
def test_labeled_rows_are_never_chosen(selector, X, n_known):
    known = np.random.default_rng(1).choice(len(X), n_known, replace=False)
    y = _labels(selector, len(X), known)
    selector = clone(selector).set_params(n_samples=5).fit(X, y)
    _check_promises(selector, X, y, 5)


@every_selector
def test_none_and_nan_mark_unlabeled_rows_too(selector, X):
    y = np.full(len(X), None, dtype=object)
    y[:40], y[40:80] = "cat", "dog"
    y[85:] = np.nan
    chosen = clone(selector).set_params(n_samples=10).fit_select(X, y)
    assert sorted(chosen.tolist()) == list(range(80, 90))


@every_selector
def test_asking_for_more_rows_than_there_are(selector, X):
    y = _labels(selector, len(X), known=range(60))
    selector = clone(selector).set_params(n_samples=31)
    with pytest.raises(ValueError, match="n_samples=31 .* only 30 of the 90 rows"):
        selector.fit(X, y)
    selector.set_params(n_samples=30).fit(X, y)
    assert sorted(selector.sample_indices_.tolist()) == list(range(60, 90))


@every_one
def test_default_and_share_of_the_budget(selector, X):
    y = _labels(selector, len(X))
    assert len(clone(selector).fit_select(X, y)) == 9
    half = _n_open(selector, y) // 2
    assert len(clone(selector).set_params(n_samples=0.5).fit_select(X, y)) == half
    assert len(clone(selector).set_params(n_samples=0.001).fit_select(X, y)) == 1
    many = np.random.default_rng(0).standard_normal((500, 2))
    assert len(clone(selector).fit_select(many, _labels(selector, 500))) == 40


@every_selector
def test_nothing_is_left_to_ask(selector, X):
    y = np.zeros(len(X), dtype=int)
    selector = clone(selector).fit(X, y)
    _check_promises(selector, X, y, 0)
    assert (selector.assignments_ == -1).all()


# Their order does not depend on how many rows are asked at once, as long as the labels
# tell a classifier nothing new.
NESTED = [
    MaxHerdingSelector(),
    MaxHerdingSelector(sigma=0.3),
    MaxHerdingSelector(n_candidates=60),
    CoreSetSelector(),
    CoreSetSelector(normalize=True),
    USLSelector(n_clusters=40, nested=True),
    USLSelector(n_clusters=25, nested=True),
    USLSelector(n_clusters=40, nested=True, reg_weight=0),
    UncertaintySelector("margin", classifier=HELD),
    UHerdingSelector(classifier=HELD, sigma=0.5, temperature=1),
]


@pytest.mark.parametrize("selector", NESTED, ids=_name)
@pytest.mark.parametrize("steps", [(10, 30), (1, 1, 38), (20, 5, 15)])
def test_choices_are_nested(selector, X, steps):
    X = np.concatenate([X, X[:10]])
    X += 0.3 * np.sin(np.arange(X.size)).reshape(X.shape)
    X[95:] = X[:5]  # and copies
    selector = clone(selector).set_params(random_state=0)
    at_once = selector.set_params(n_samples=40).fit_select(X)
    y, rows = np.full(len(X), -1), []
    for n_samples in steps:
        more = selector.set_params(n_samples=n_samples).fit_select(X, y)
        y[more] = 1
        rows.extend(more)
    np.testing.assert_array_equal(rows, at_once)


def test_the_default_choice_of_usl_is_not_nested(X):
    forty = USLSelector(40, random_state=0).fit_select(X)
    ten = USLSelector(10, random_state=0).fit_select(X)
    assert set(ten) - set(forty)


def test_nested_needs_the_number_of_labels_in_the_end(X):
    with pytest.raises(ValueError, match="nested=True needs n_clusters"):
        USLSelector(10, nested=True).fit(X)


@every_one
def test_same_seed_same_rows_and_unchanged_input(selector, X):
    y = _labels(selector, len(X))
    before, y_before, state = X.copy(), y.copy(), np.random.get_state()[1].copy()
    first = clone(selector).fit(X, y)
    second = clone(selector).fit(X, y)
    np.testing.assert_array_equal(first.sample_indices_, second.sample_indices_)
    np.testing.assert_array_equal(first.scores_, second.scores_)
    np.testing.assert_array_equal(X, before)
    np.testing.assert_array_equal(y, y_before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@every_one
def test_memory_map_and_other_forms_of_X(selector, X, tmp_path):
    y = _labels(selector, len(X))
    X.tofile(tmp_path / "X")
    mapped = np.memmap(tmp_path / "X", np.float32, "r", shape=X.shape)
    want = clone(selector).fit_select(X, y)
    for form in (mapped, X.astype(np.float64), np.asfortranarray(X), X.tolist()):
        np.testing.assert_array_equal(clone(selector).fit_select(form, y), want)


@every_one
@pytest.mark.parametrize("n_samples", [1, 4, 12])
def test_equal_rows(selector, n_samples):
    X = np.full((12, 3), 2.5, dtype=np.float32)
    y = _labels(selector, 12)
    n_samples = min(n_samples, _n_open(selector, y))
    selector = clone(selector).set_params(n_samples=n_samples).fit(X, y)
    _check_promises(selector, X, y, n_samples)
    zeros = clone(selector).fit(X * 0, y)
    _check_promises(zeros, X, y, n_samples)


@every_one
def test_copies_and_ties(selector):
    X = np.repeat(np.eye(4, 3, dtype=np.float32), 6, axis=0)
    X[18:] = 1
    y = _labels(selector, 24)
    for n_samples in (4, 9, _n_open(selector, y)):
        selector = clone(selector).set_params(n_samples=n_samples).fit(X, y)
        _check_promises(selector, X, y, n_samples)


@every_one
def test_assignments_name_the_nearest_chosen_row(selector, X):
    y = _labels(selector, len(X))
    Z = X
    if getattr(selector, "normalize", False):
        Z = X / np.linalg.norm(X, axis=1, keepdims=True)
    selector = clone(selector).set_params(n_samples=6).fit(X, y)
    centers = Z[selector.sample_indices_].astype(np.float64)
    distances = np.linalg.norm(Z[:, None] - centers, axis=-1)
    np.testing.assert_array_equal(selector.assignments_, distances.argmin(1))


@every_one
def test_a_pipeline_may_end_in_it(selector, X):
    y = _labels(selector, len(X))
    pipeline = make_pipeline(StandardScaler(), clone(selector)).fit(X, y)
    scaled = StandardScaler().fit_transform(X)
    np.testing.assert_array_equal(
        pipeline[-1].sample_indices_, clone(selector).fit_select(scaled, y)
    )


@every_one
def test_refuses_what_is_no_table_of_numbers(selector, X):
    y = _labels(selector, len(X))
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        clone(selector).fit(X, y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        clone(selector).fit(X[4:], y)
