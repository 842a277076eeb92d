"""BALD and BatchBALD: golden values, values by hand, draws of every kind."""

import itertools
import math
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_digits
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from sklabel.active_learning import ActiveLearningClassifier
from sklabel.classification import (
    FixMatchClassifier,
    SimCLRv2Classifier,
    SupervisedClassifier,
)
from sklabel.datasets import load_digit_images
from sklabel.embedding import SimCLRTransformer
from sklabel.selection import _bald
from sklabel.selection._bald import (
    BALDSelector,
    bald,
    batch_bald,
    mean_std,
    vote_entropy,
)
from tests._golden import assert_same_ranking, cases
from tests._making import distributions


class Told(ClassifierMixin, BaseEstimator):
    """A member whose probabilities are known beforehand; X holds row numbers."""

    def __init__(self, p=None):
        self.p = p

    def fit(self, X, y):
        return self

    def predict_proba(self, X):
        return self.p[np.asarray(X)[:, 0].astype(int)]


def told(p):
    """Return a frozen ensemble whose draws are p (K, n, C)."""
    ensemble = VotingClassifier([("a", Told())], voting="soft")
    ensemble.estimators_ = [Told(draw) for draw in np.asarray(p)]
    ensemble.classes_ = np.arange(np.shape(p)[2])
    return FrozenEstimator(ensemble)


def select(p, n_samples, y=None, **parameters):
    X = np.arange(np.shape(p)[1], dtype=float)[:, None]
    return BALDSelector(n_samples, classifier=told(p), **parameters).fit(X, y)


def random_draws(n_draws, n, n_classes, seed=0, sharpness=2.0):
    logits = np.random.default_rng(seed).normal(size=(n_draws, n, n_classes))
    p = np.exp(sharpness * logits)
    return p / p.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:300], np.where(np.arange(300) < 60, y[:300], -1)


@pytest.fixture(scope="module")
def images():
    X, target = load_digit_images(return_X_y=True)
    return X[:120], np.where(np.arange(120) < 60, target[:120], -1)


@pytest.fixture(scope="module")
def net(images):
    return SupervisedClassifier(max_epochs=15, random_state=0).fit(*images)


# -- golden values


def test_golden_scores(monkeypatch):
    monkeypatch.setattr(_bald, "_BLOCK_VALUES", 3000)  # several blocks of rows
    for case in cases("uncertainty_scores"):
        p = case["probs_mc"]
        for measure, key in (("bald", "bald"), ("mean_std", "mean_std")):
            selector = select(p, p.shape[1], measure=measure)
            np.testing.assert_allclose(
                selector.scores_, case[key], rtol=1e-6, atol=1e-9
            )
        order = select(p, p.shape[1]).sample_indices_
        assert_same_ranking(order, case["order_bald"], case["bald"], atol=1e-9)
        if "batchbald_selected" not in case:
            continue
        n_batch = len(case["batchbald_selected"])
        found = select(p, n_batch, batch=True, n_candidates=p.shape[1])
        scores = case["batchbald_score"]
        np.testing.assert_allclose(found.batch_scores_, scores, rtol=1e-6, atol=1e-9)
        if scores[0] < 1e-9:  # all draws are the same, and rounding decided
            assert (found.scores_ == 0).all()
            assert found.sample_indices_.tolist() == list(range(n_batch))
            continue
        rows, expected = found.sample_indices_, case["batchbald_selected"]
        for i in range(1, n_batch + 1):
            if set(rows[:i]) != set(expected[:i]):  # a near tie is worth the same
                worth = [information(p, part[:i]) for part in (rows, expected)]
                np.testing.assert_allclose(*worth, rtol=1e-9, atol=1e-9)


# -- by hand


def test_bald_by_hand():
    p = [
        [[1, 0], [0.5, 0.5], [0.9, 0.1]],
        [[0, 1], [0.5, 0.5], [0.9, 0.1]],
    ]
    # sure but opposed, unsure alike, alike
    np.testing.assert_allclose(bald(p), [np.log(2), 0, 0], atol=1e-15)
    np.testing.assert_allclose(mean_std(p), [np.sqrt(0.5), 0, 0])
    assert mean_std(np.asarray(p)[:1]).tolist() == [0, 0, 0]
    # a row of which every draw says another mixture is told from one all are unsure of
    assert select(p, 1).sample_indices_.tolist() == [0]


def information(p, rows):
    """Joint entropy minus the mean of the draws' entropies, by enumeration."""
    n_draws, _, n_classes = p.shape
    joint = 0.0
    for labels in itertools.product(range(n_classes), repeat=len(rows)):
        q = np.mean([np.prod(p[k, rows, labels]) for k in range(n_draws)])
        joint -= q * np.log(q) if q > 0 else 0
    each = np.where(p > 0, -p * np.log(np.where(p > 0, p, 1)), 0).sum(2).mean(0)
    return joint - each[rows].sum()


def test_batch_bald_is_the_information_of_the_batch():
    p = random_draws(6, 12, 3)
    p[:, 3] = [1, 0, 0]
    selected, scores = batch_bald(p, 4)
    chosen = []
    for row, score in zip(selected, scores, strict=True):
        others = [i for i in range(12) if i not in chosen]
        best = max(others, key=lambda i: information(p, [*chosen, i]))
        assert row == best
        chosen.append(row)
        assert score == pytest.approx(information(p, chosen), abs=1e-12)


def test_sampled_configurations_come_close():
    p = random_draws(10, 40, 4, sharpness=1.0)
    exact, scores = batch_bald(p, 6)
    sampled, estimates = batch_bald(p, 6, n_configurations=2000, random_state=0)
    assert sampled[:5].tolist() == exact[:5].tolist()
    np.testing.assert_allclose(estimates, scores, rtol=0.05)
    again, _ = batch_bald(p, 6, n_configurations=2000, random_state=0)
    np.testing.assert_array_equal(sampled, again)


@pytest.mark.parametrize("n_configurations", [1, 50, 40_000])
def test_large_batches_stay_in_range(n_configurations):
    p = random_draws(5, 120, 4)
    p[:, ::2] = np.eye(4)[np.random.default_rng(0).integers(4, size=(5, 60))]
    n = 120 if n_configurations < 100 else 10
    selected, scores = batch_bald(p, n, n_configurations, random_state=0)
    assert len(set(selected.tolist())) == n
    assert np.isfinite(scores).all() and (np.diff(scores) >= 0).all()
    if n_configurations > 100:
        assert scores[-1] <= np.log(5) + 1e-9


def test_a_batch_holds_no_copies():
    p = np.repeat(random_draws(20, 5, 3), 4, axis=1)  # four copies of each row
    single = select(p, 4).sample_indices_
    batch = select(p, 4, batch=True).sample_indices_
    assert len(set((single // 4).tolist())) == 1
    assert len(set((batch // 4).tolist())) == 4
    assert (batch % 4 == 0).all()  # the lowest number among copies


# -- any probabilities


some_draws = st.tuples(st.integers(2, 5), st.integers(1, 4), st.integers(2, 4)).flatmap(
    distributions
)


@settings(max_examples=60, deadline=None)
@given(some_draws)
def test_ranges(p):
    scores = bald(p)
    assert (scores >= 0).all()
    assert (scores <= np.log(min(p.shape[0], p.shape[2])) + 1e-9).all()
    np.testing.assert_allclose(bald(p[::-1, :, ::-1]), scores, atol=1e-11)
    np.testing.assert_allclose(mean_std(p), p.std(axis=0, ddof=1).mean(1), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(some_draws)
def test_batch_of_one_and_of_copies(p):
    scores = bald(p)
    selected, information_of_one = batch_bald(p, 1)
    assert information_of_one[0] == pytest.approx(scores.max(), abs=1e-11)
    assert scores[selected[0]] == pytest.approx(scores.max(), abs=1e-11)
    twice = np.repeat(p[:, selected], 2, axis=1)
    _, gains = batch_bald(twice, 2)
    second = gains[1] - gains[0]
    assert -1e-12 <= second <= scores.max() + 1e-11
    if scores.max() > 1e-3:
        assert second < scores.max()


# -- the selector


def test_labeled_rows_and_ties():
    p = np.repeat(random_draws(8, 3, 3), 5, axis=1)
    y = np.where(np.arange(15) % 5 == 0, 1, -1)
    for batch in (False, True):
        selector = select(p, 12, y, batch=batch)
        assert sorted(selector.sample_indices_.tolist()) == [
            i for i in range(15) if i % 5
        ]
        assert (selector.scores_[y == 1] == -np.inf).all()
        assert np.isfinite(selector.scores_[y == -1]).all()
        with pytest.raises(ValueError, match="only 12 of the 15"):
            select(p, 13, y, batch=batch)
    same = select(np.repeat(p[:, :1], 15, axis=1), 4, y)
    assert same.sample_indices_.tolist() == [1, 2, 3, 4]


def test_candidates_bound_the_batch():
    p = random_draws(8, 50, 3)
    best = set(select(p, 10).sample_indices_.tolist())
    batch = select(p, 4, batch=True, n_candidates=10)
    assert set(batch.sample_indices_.tolist()) <= best
    few = select(p, 10, batch=True, n_candidates=2)
    assert set(few.sample_indices_.tolist()) == best
    assert few.batch_scores_.shape == (10,)
    with pytest.raises(ValueError, match='batch=True needs measure="bald"'):
        select(p, 4, batch=True, measure="mean_std")


CLASSIFIERS = {
    "default": (None, 10),
    "pipeline": (make_pipeline(StandardScaler(), GaussianNB()), 10),
    "forest": (RandomForestClassifier(12), 1),
    "trees in a pipeline": (
        make_pipeline(StandardScaler(), ExtraTreesClassifier(12)),
        1,
    ),
    "bagging": (
        BaggingClassifier(
            DecisionTreeClassifier(max_depth=3), 12, max_samples=0.2, max_features=0.5
        ),
        1,
    ),
    "voting": (
        VotingClassifier(
            [("a", GaussianNB()), ("b", LogisticRegression(max_iter=1000))],
            voting="soft",
        ),
        1,
    ),
    "search": (
        GridSearchCV(RandomForestClassifier(12), {"max_depth": [2, None]}, cv=2),
        1,
    ),
    "semi-supervised": (LabelSpreading(kernel="knn", max_iter=100), 10),
}


@pytest.mark.filterwarnings("ignore:The least populated class")
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_draws_of_scikit_learns_classifiers(name, digits):
    X, y = digits
    classifier, n_fitted = CLASSIFIERS[name]
    state = np.random.get_state()[1].copy()
    fitted = [
        BALDSelector(8, classifier=classifier, random_state=seed).fit(X, y)
        for seed in (0, 0)
    ]
    first, second = fitted
    np.testing.assert_array_equal(first.scores_, second.scores_)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert len(first.estimators_) == n_fitted
    assert (first.sample_indices_ >= 60).all()
    assert (first.scores_[60:] >= 0).all() and first.scores_.max() > 0.01
    assert np.isfinite(first.scores_[60:]).all()
    batch = BALDSelector(8, batch=True, classifier=classifier, random_state=0)
    assert len(set(batch.fit_select(X, y).tolist())) == 8
    assert (np.diff(batch.batch_scores_) >= 0).all()


def test_members_are_what_the_forest_averages(digits):
    X, y = digits
    forest = RandomForestClassifier(9, random_state=0).fit(X[:60], y[:60])
    selector = BALDSelector(5, classifier=FrozenEstimator(forest)).fit(X)
    p = np.stack([tree.predict_proba(X) for tree in forest.estimators_])
    np.testing.assert_allclose(p.mean(0), forest.predict_proba(X))
    np.testing.assert_allclose(selector.scores_, bald(p))
    bag = BaggingClassifier(KNeighborsClassifier(3), 9, max_samples=0.2)
    bag.set_params(max_features=0.5)
    bag.set_params(random_state=0).fit(X[:60], y[:60])
    assert min(len(member.classes_) for member in bag.estimators_) < 10
    draw = _bald._member_draws(bag.estimators_, 10, X, bag.estimators_features_)
    p = draw(np.arange(300))
    np.testing.assert_allclose(p.mean(0), bag.predict_proba(X), atol=1e-12)


def test_resampled_rows_hold_every_class():
    y = np.array(["a"] * 20 + ["b", -1, None], dtype=object)
    for rows in _bald._resampled(y, 20, np.random.RandomState(0)):
        assert len(rows) == 23
        assert "b" in y[rows] and {21, 22} <= set(rows.tolist())


def test_frames_names_and_other_marks(digits):
    X, y = digits
    forest = RandomForestClassifier(12)
    expected = BALDSelector(9, classifier=forest, random_state=0).fit_select(X, y)
    names = np.array([f"class {k}" if k >= 0 else None for k in y], dtype=object)
    frame = pd.DataFrame(X).rename(columns="x{}".format)
    selector = BALDSelector(9, classifier=forest, random_state=0)
    np.testing.assert_array_equal(selector.fit_select(X, names), expected)
    np.testing.assert_array_equal(
        selector.fit_select(frame, pd.Series(names)), expected
    )
    assert selector.feature_names_in_[0] == "x0"
    from_lists = BALDSelector(5, random_state=0).fit_select(X.tolist(), y.tolist())
    np.testing.assert_array_equal(
        from_lists, BALDSelector(5, random_state=0).fit_select(X, y)
    )


@pytest.mark.parametrize("y", [None, np.full(300, -1)])
@pytest.mark.parametrize("classifier", [None, RandomForestClassifier(5)])
def test_without_labels_there_is_an_error_that_helps(classifier, y, digits):
    with pytest.raises(ValueError, match=r"needs labels.*FrozenEstimator"):
        BALDSelector(classifier=classifier).fit(digits[0], y)


FROZEN = {
    "naive": GaussianNB(),
    "pipeline": make_pipeline(StandardScaler(), LogisticRegression()),
    "search": GridSearchCV(LogisticRegression(max_iter=500), {"C": [1, 2]}, cv=2),
    "neighbors": KNeighborsClassifier(3),
}


@pytest.mark.filterwarnings("ignore:The least populated class")
@pytest.mark.parametrize("name", FROZEN)
def test_copies_of_a_frozen_classifier_are_fitted_on_the_labels(name, digits):
    X, y = digits
    frozen = FrozenEstimator(clone(FROZEN[name]).fit(X[:60], y[:60]))
    before = frozen.predict_proba(X)
    held = BALDSelector(9, classifier=frozen, random_state=0).fit(X, y)
    free = BALDSelector(9, classifier=FROZEN[name], random_state=0).fit(X, y)
    np.testing.assert_array_equal(held.scores_, free.scores_)
    np.testing.assert_array_equal(frozen.predict_proba(X), before)
    with pytest.raises(ValueError, match="needs labels"):
        BALDSelector(classifier=frozen).fit(X)


@pytest.mark.filterwarnings("ignore:The least populated class")
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", [*FROZEN, "forest"])
def test_the_loop_with_any_classifier_of_scikit_learn(name, batch, digits):
    X = digits[0]
    target = load_digits().target[:300]
    classifier = FROZEN.get(name, RandomForestClassifier(5))
    loop = ActiveLearningClassifier(
        classifier,
        BALDSelector(batch=batch, n_draws=4),
        n_rounds=2,
        n_samples=20,
        random_state=0,
    ).fit(X, target)
    assert [step["n_labeled"] for step in loop.history_] == [20, 40, 60]
    assert loop.selector_.scores_.max() > 0


# -- a committee


def test_vote_entropy_by_hand():
    p = np.array([[[0.9, 0.1], [0.6, 0.4]], [[0.2, 0.8], [0.7, 0.3]]])  # (K, n, C)
    np.testing.assert_allclose(vote_entropy(p), [np.log(2), 0])
    assert np.isnan(vote_entropy(np.full((2, 1, 3), np.nan))).all()


@pytest.mark.parametrize("measure", ["bald", "mean_std", "vote_entropy"])
def test_a_committee_of_different_classifiers(measure, digits):
    X, y = digits[0].astype(np.float32), digits[1]
    committee = [
        LogisticRegression(max_iter=1000),
        GaussianNB(),
        make_pipeline(StandardScaler(), KNeighborsClassifier(3)),
    ]
    selector = BALDSelector(9, measure=measure, committee=committee, random_state=0)
    rows = selector.fit_select(X, y)
    fitted = [clone(member).fit(X[:60], y[:60]) for member in committee]
    p = np.stack([member.predict_proba(X[60:]) for member in fitted])
    np.testing.assert_allclose(
        selector.scores_[60:], getattr(_bald, measure)(p), atol=1e-12
    )
    assert rows.min() >= 60 and len(selector.estimators_) == 3
    frozen = [FrozenEstimator(member) for member in fitted]
    again = BALDSelector(9, measure=measure, committee=frozen).fit(X)
    np.testing.assert_allclose(again.scores_[60:], selector.scores_[60:])


def test_the_divergence_from_the_mean_is_bald():
    p = np.random.default_rng(0).dirichlet(np.ones(4), (5, 40))
    mean = p.mean(0)
    divergence = (p * np.log(p / mean)).sum(-1).mean(0)
    np.testing.assert_allclose(bald(p), divergence)


def _slow_committee(p):
    """Mean divergence and vote entropy of p (K, n, C), one number after the other."""
    n_members, n, n_classes = p.shape
    divergence, votes = np.zeros(n), np.zeros(n)
    for i in range(n):
        mean = [
            sum(p[k, i, c] for k in range(n_members)) / n_members
            for c in range(n_classes)
        ]
        for k in range(n_members):
            for c in range(n_classes):
                if p[k, i, c] > 0:
                    divergence[i] += (
                        p[k, i, c] * math.log(p[k, i, c] / mean[c]) / n_members
                    )
        counts = [0] * n_classes
        for k in range(n_members):
            best = max(range(n_classes), key=lambda c: (p[k, i, c], -c))
            counts[best] += 1
        for count in counts:
            if count:
                votes[i] -= count / n_members * math.log(count / n_members)
    return {"bald": divergence, "vote_entropy": votes}


@pytest.mark.parametrize("measure", ["bald", "vote_entropy"])
def test_a_committee_equals_slow_loops(measure, digits):
    X, y = digits[0].astype(np.float32), digits[1]
    committee = [
        LogisticRegression(max_iter=500),
        GaussianNB(),
        KNeighborsClassifier(5),
    ]
    selector = BALDSelector(12, measure=measure, committee=committee).fit(X, y)
    p = np.stack(
        [clone(m).fit(X[:60], y[:60]).predict_proba(X[60:]) for m in committee]
    )
    want = _slow_committee(p)[measure]
    np.testing.assert_allclose(selector.scores_[60:], want, atol=1e-12)
    chosen = selector.sample_indices_ - 60
    left = np.delete(np.arange(len(want)), chosen)
    assert want[chosen].min() >= want[left].max() - 1e-12


def test_members_without_probabilities_vote(digits):
    X, y = digits[0].astype(np.float32), digits[1]
    names = np.array([f"digit {k}" if k >= 0 else -1 for k in y], dtype=object)
    committee = [
        RidgeClassifier(),
        make_pipeline(StandardScaler(), LinearSVC(random_state=0)),
        GaussianNB(),
    ]
    selector = BALDSelector(12, measure="vote_entropy", committee=committee)
    selector.fit(X, names)
    known = names[:60].astype(str)
    votes = np.stack([clone(m).fit(X[:60], known).predict(X[60:]) for m in committee])
    p = (votes[..., None] == np.unique(known)).astype(float)
    want = _slow_committee(p)["vote_entropy"]
    np.testing.assert_allclose(selector.scores_[60:], want, atol=1e-12)
    assert selector.scores_[60:].max() > 0
    with pytest.raises(ValueError, match="RidgeClassifier .*vote_entropy"):
        selector.set_params(measure="bald").fit(X, names)


def test_a_committee_that_votes_in_the_loop(digits):
    X, target = digits[0], load_digits().target[:300]
    committee = [RidgeClassifier(), GaussianNB()]
    loop = ActiveLearningClassifier(
        LogisticRegression(max_iter=300),
        BALDSelector(committee=committee, measure="vote_entropy"),
        n_rounds=1,
        n_samples=20,
        random_state=0,
    ).fit(X, target)
    assert [type(m) for m in loop.selector_.estimators_] == [
        RidgeClassifier,
        GaussianNB,
    ]


def test_a_committee_in_the_loop(digits):
    X, target = digits[0], load_digits().target[:300]
    committee = [LogisticRegression(max_iter=500), GaussianNB()]
    loop = ActiveLearningClassifier(
        RandomForestClassifier(5),
        BALDSelector(committee=committee, measure="vote_entropy"),
        n_rounds=1,
        n_samples=20,
        random_state=0,
    ).fit(X, target)
    kinds = [type(member) for member in loop.selector_.estimators_]
    assert kinds == [LogisticRegression, GaussianNB]
    assert isinstance(clone(loop).fit(X, target).classifier_, RandomForestClassifier)


def test_what_is_no_committee(digits):
    X, y = digits
    with pytest.raises(ValueError, match="committee of 1 cannot disagree"):
        BALDSelector(committee=[GaussianNB()]).fit(X, y)
    for wrong in (None, GaussianNB, ("bayes", GaussianNB())):
        with pytest.raises(ValueError, match="must contain classifiers, .* is none"):
            BALDSelector(committee=[GaussianNB(), wrong]).fit(X, y)
    votes = BALDSelector(committee=[GaussianNB(), Ridge()], measure="vote_entropy")
    with pytest.raises(ValueError, match="Ridge in the committee is not a classifier"):
        votes.fit(X, y)
    part = FrozenEstimator(GaussianNB().fit(X[:6], y[:6]))
    with pytest.raises(ValueError, match="must have the same classes"):
        BALDSelector(committee=[GaussianNB(), part]).fit(X, y)
    with pytest.raises(ValueError, match="needs labels"):
        BALDSelector(committee=[GaussianNB(), GaussianNB()]).fit(X)
    with pytest.raises(ValueError, match="committee"):
        BALDSelector(committee="forest").fit(X, y)
    with pytest.raises(ValueError, match='batch=True needs measure="bald"'):
        BALDSelector(batch=True, measure="vote_entropy").fit(X, y)


@pytest.mark.parametrize("batch", [False, True])
def test_nothing_is_left_to_ask(batch, digits):
    selector = BALDSelector(batch=batch).fit(digits[0], np.zeros(300))
    assert selector.sample_indices_.shape == (0,)
    assert selector.estimators_ == []
    assert (selector.scores_ == -np.inf).all()


def test_clone_pickle_and_pipeline(digits):
    X, y = digits
    selector = BALDSelector(
        5, batch=True, classifier=RandomForestClassifier(12), random_state=0
    )
    pipeline = make_pipeline(StandardScaler(), clone(selector)).fit(X, y)
    rows = clone(selector).fit_select(StandardScaler().fit_transform(X), y)
    np.testing.assert_array_equal(pipeline[-1].sample_indices_, rows)
    again = pickle.loads(pickle.dumps(selector.fit(X, y)))
    np.testing.assert_array_equal(again.sample_indices_, selector.sample_indices_)
    np.testing.assert_array_equal(again.batch_scores_, selector.batch_scores_)


# -- dropout


def test_images(images, net):
    X, y = images
    before = {k: v.clone() for k, v in net.net_.module_.state_dict().items()}
    expected = net.predict_proba(X)
    state = torch.get_rng_state()
    first, second, third = (
        BALDSelector(6, classifier=FrozenEstimator(net), random_state=s).fit(X, y)
        for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.scores_, second.scores_)
    assert (first.scores_ != third.scores_).any()
    assert torch.equal(torch.get_rng_state(), state)
    assert first.sample_indices_.min() >= 60 and first.scores_.max() > 1e-3
    assert not hasattr(first, "assignments_")
    after = net.net_.module_.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    np.testing.assert_array_equal(net.predict_proba(X), expected)
    fresh = SupervisedClassifier(max_steps=3)
    one, two = (
        BALDSelector(4, batch=True, classifier=fresh, random_state=0).fit(X, y)
        for _ in range(2)
    )
    np.testing.assert_array_equal(one.sample_indices_, two.sample_indices_)


def test_masks_are_the_same_for_every_row(images, net):
    X, _ = images
    draw = _bald._dropout_draws(net, X, 7, 0.5, np.random.RandomState(0))
    whole = draw(np.arange(100))
    assert whole.shape == (7, 100, 10)
    np.testing.assert_allclose(whole.sum(-1), 1, atol=1e-5)
    assert np.ptp(whole, axis=0).max() > 0.01
    some = np.array([90, 3, 41, 77])
    np.testing.assert_allclose(draw(some), whole[:, some], atol=2e-2)  # bfloat16
    copies = draw(np.array([5, 5, 5]))
    np.testing.assert_array_equal(copies[:, 0], copies[:, 2])


def test_masks_by_hand(digits):
    X, y = digits
    clf = SupervisedClassifier(max_epochs=5, random_state=0).fit(X, y)
    draw = _bald._dropout_draws(clf, X, 4, 0.25, np.random.RandomState(3))
    module = clf.net_.module_.eval()
    with torch.no_grad():
        h = module.backbone(torch.from_numpy(X).float())
        kept = np.random.RandomState(3).random_sample((4, h.shape[1])) >= 0.25
        masks = torch.from_numpy(kept).float() / 0.75
        expected = torch.stack([module.head(m * h).softmax(1) for m in masks])
    np.testing.assert_allclose(draw(np.arange(300)), expected, atol=1e-5)
    clf.calibration_temperature_ = 2.0
    calibrated = draw(np.arange(300))
    expected = (expected.log() / 2).softmax(-1)
    np.testing.assert_allclose(calibrated, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*reached threshold")  # in a single step
def test_the_last_linear_layer_is_found_by_its_call(images):
    X, y = images
    fixmatch = FixMatchClassifier(max_steps=1, batch_size=8, random_state=0)
    simclr = SimCLRv2Classifier(
        embedder=SimCLRTransformer(max_steps=1), max_steps=2, distill_epochs=1
    )
    for clf in (fixmatch, simclr.set_params(random_state=0)):
        selector = BALDSelector(3, classifier=clf, random_state=0).fit(X, y)
        module = selector.estimators_[0].net_.module_
        samples = selector.estimators_[0]._check_X(X)
        x = samples[np.arange(2)]
        run = selector.estimators_[0].net_
        found = _bald._last_linear(module, lambda x=x, run=run: run.infer(x / 255))
        assert found.out_features == 10
        assert selector.scores_.max() > 0
    with pytest.raises(ValueError, match="this classifier has none"):
        _bald._last_linear(torch.nn.ReLU(), lambda: None)


def test_a_pipeline_that_ends_in_a_net(digits):
    X, y = digits
    pipeline = make_pipeline(StandardScaler(), SupervisedClassifier(max_steps=20))
    selector = BALDSelector(6, classifier=pipeline, random_state=0).fit(X, y)
    assert (selector.sample_indices_ >= 60).all() and selector.scores_.max() > 0
    assert selector.assignments_.shape == (300,)
