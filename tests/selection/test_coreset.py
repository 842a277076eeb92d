"""Tests of core-set selection: golden values, slow loops, and what it chooses."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklabel._core import kcenter as _kcenter
from sklabel._core.kcenter import k_center_greedy
from sklabel.selection import RandomSelector
from sklabel.selection._coreset import (
    CoreSetSelector,
    k_center_robust,
)
from tests._golden import assert_farthest_first, cases


def _labels(n, known):
    y = np.full(n, -1)
    y[np.asarray(known, dtype=int)] = 0
    return y


def _slow_greedy(Z, n_samples, centers, first=None):
    """Greedy k-center by all distances at every step, in float64."""
    Z = np.asarray(Z, dtype=np.float64)
    centers, chosen = list(centers), []
    for i in range(n_samples):
        d = np.full(len(Z), np.inf)
        if centers:
            d = np.sqrt(((Z[:, None] - Z[centers]) ** 2).sum(-1)).min(1)
        d[centers] = -1
        row = first if i == 0 and first is not None else int(d.argmax())
        chosen.append(row)
        centers.append(row)
    return chosen


def _smallest_radius(Z, n_samples, centers, n_outliers):
    """Smallest covering radius, by trying every choice."""
    D = cdist(Z, Z)
    free = np.setdiff1d(np.arange(len(Z)), centers)
    radii = []
    for chosen in itertools.combinations(free, n_samples):
        d = np.sort(D[free][:, [*centers, *chosen]].min(1))
        radii.append(d[len(free) - n_outliers - 1])
    return min(radii)


@pytest.fixture
def X():
    return np.random.default_rng(0).standard_normal((300, 5)).astype(np.float32)


# --- golden values ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("many_centers", [256, 0])
def test_golden_greedy(dtype, many_centers, monkeypatch):
    monkeypatch.setattr(_kcenter, "_MANY_CENTERS", many_centers)
    rtol = 1e-9 if dtype == np.float64 else 1e-5
    for case in cases("kcenter_greedy"):
        Z, n = case["features"].astype(dtype), int(case["n_meaningful_picks"])
        chosen, distances = k_center_greedy(Z, int(case["budget"]), case["labeled"])
        assert_farthest_first(case["features"], chosen[:n], case["labeled"], rtol)
        if set(chosen[:n]) != set(case["selected"][:n]):
            continue  # a near tie, after which all may be different
        np.testing.assert_array_equal(chosen[:n], case["selected"][:n])
        np.testing.assert_allclose(
            distances[chosen[:n]], case["distance_at_pick"][:n], rtol=rtol
        )
        left = np.setdiff1d(np.arange(len(Z)), [*chosen, *case["labeled"]])
        # the public code leaves up to 1e-7 between equal rows
        np.testing.assert_allclose(
            distances[left].max(), case["radius"], rtol=1e-5, atol=1e-6
        )
        if "min_distances_after" in case:
            np.testing.assert_allclose(
                distances[left], case["min_distances_after"][left], 1e-5, 1e-6
            )


def test_golden_greedy_through_the_selector():
    for case in cases("kcenter_greedy"):
        if not len(case["labeled"]):
            continue  # the selector draws the first row
        Z, n = case["features"], int(case["n_meaningful_picks"])
        selector = CoreSetSelector(int(case["budget"]))
        selector.fit(Z, _labels(len(Z), case["labeled"]))
        rows = selector.sample_indices_[:n]
        assert_farthest_first(Z, rows, case["labeled"], 1e-5)
        if set(rows) == set(case["selected"][:n]):  # else a near tie
            np.testing.assert_array_equal(rows, case["selected"][:n])
            np.testing.assert_allclose(
                selector.radius_, case["radius"], rtol=1e-5, atol=1e-6
            )


def test_golden_robust():
    for case in cases("kcenter_robust"):
        Z, budget = case["features"], int(case["budget"])
        n_outliers = int(case["outliers"])
        for n, key in [
            (0, "optimal_radius_no_outlier"),
            (n_outliers, "optimal_radius_with_outliers"),
        ]:
            chosen, distances, radius, bound = k_center_robust(
                Z, budget, case["labeled"], n
            )
            np.testing.assert_allclose(radius, case[key], rtol=1e-9)
            assert bound == radius
            assert (distances > radius).sum() - (distances[chosen] > radius).sum() <= n
            assert len(set(chosen.tolist()) - set(case["labeled"].tolist())) == budget
        y = _labels(len(Z), case["labeled"])
        greedy = CoreSetSelector(budget).fit(Z, y)
        np.testing.assert_allclose(greedy.radius_, case["greedy_radius"], rtol=1e-6)
        share = (n_outliers + 0.5) / (y == -1).sum()
        robust = CoreSetSelector(budget, robust=True, outlier_share=share).fit(Z, y)
        np.testing.assert_allclose(
            robust.radius_, case["optimal_radius_with_outliers"], rtol=1e-6
        )


# --- against slow loops ----------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_greedy_equals_a_slow_loop(data):
    n = data.draw(st.integers(2, 40))
    n_features = data.draw(st.integers(1, 20))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    # Rows on a grid: ties and copies are exact in both precisions, nothing is near.
    Z = rng.integers(0, data.draw(st.integers(1, 6)), (n, n_features))
    offset = data.draw(st.sampled_from([0, 1000]))
    known = rng.choice(n, data.draw(st.integers(0, n - 1)), replace=False)
    n_samples = data.draw(st.integers(1, n - len(known)))
    first = None if len(known) else int(rng.integers(n))
    want = _slow_greedy(Z, n_samples, known, first)
    got, distances = k_center_greedy(
        (Z + offset).astype(np.float32), n_samples, known, first
    )
    assert got.tolist() == want
    assert (np.diff(distances[got]) <= 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2), st.integers(1, 3))
def test_robust_finds_the_smallest_radius(seed, n_outliers, n_samples):
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((10, 2))
    if seed % 2:
        Z = Z.round()  # ties and copies
    known = rng.choice(10, seed % 3, replace=False)
    chosen, distances, radius, bound = k_center_robust(Z, n_samples, known, n_outliers)
    want = _smallest_radius(Z, n_samples, known, n_outliers)
    np.testing.assert_allclose([radius, bound], want, rtol=1e-12)
    assert len(set(chosen.tolist())) == n_samples
    assert not set(chosen.tolist()) & set(known.tolist())
    assert (distances[known] == -np.inf).all()
    rest = np.setdiff1d(np.arange(10), [*chosen, *known])
    assert (distances[rest] > radius).sum() <= n_outliers
    # without outliers greedy is a 2-approximation, and its bound is one
    greedy = CoreSetSelector(n_samples).fit(Z, _labels(10, known))
    smallest = _smallest_radius(Z, n_samples, known, 0)
    assert greedy.lower_bound_ <= smallest + 1e-5 <= greedy.radius_ + 2e-5
    assert greedy.radius_ <= 2 * smallest + 1e-5


def test_scores_and_radius_as_the_docstring_says(X):
    y = _labels(300, [4, 7])
    selector = CoreSetSelector(12).fit(X, y)
    rows, scores = selector.sample_indices_, selector.scores_
    centers = [4, 7]
    for row in rows:
        want = cdist(X[[row]].astype(float), X[centers].astype(float)).min()
        np.testing.assert_allclose(scores[row], want, rtol=1e-5)
        centers.append(row)
    rest = np.setdiff1d(np.arange(300), centers)
    want = cdist(X[rest].astype(float), X[centers].astype(float)).min(1)
    np.testing.assert_allclose(scores[rest], want, rtol=1e-5)
    np.testing.assert_allclose(selector.radius_, want.max(), rtol=1e-5)
    assert selector.lower_bound_ == selector.radius_ / 2
    assert selector.outliers_.tolist() == []
    # the scores alone tell the choice again
    np.testing.assert_array_equal(np.argsort(-scores, kind="stable")[:12], rows)


def test_first_row_is_drawn_and_scored_as_the_farthest(X):
    selectors = [CoreSetSelector(5, random_state=seed).fit(X) for seed in range(8)]
    assert len({s.sample_indices_[0] for s in selectors}) > 4
    for s in selectors:
        assert s.scores_[s.sample_indices_[0]] == s.scores_.max()
        assert s.scores_[s.sample_indices_[1]] == s.scores_.max()
        assert s.sample_indices_.tolist() == _slow_greedy(
            X, 5, [], s.sample_indices_[0]
        )
    alone = CoreSetSelector(1, random_state=0).fit(X)
    assert alone.scores_[alone.sample_indices_[0]] == alone.radius_
    np.testing.assert_allclose(
        alone.radius_, cdist(X, X[alone.sample_indices_]).max(), rtol=1e-5
    )


# --- edges -----------------------------------------------------------------------


@pytest.mark.parametrize("many_centers", [256, 0])
@pytest.mark.parametrize("offset", [0, 100, 1e4])
def test_copies_of_a_center_come_last_in_row_order(offset, many_centers, monkeypatch):
    monkeypatch.setattr(_kcenter, "_MANY_CENTERS", many_centers)
    rng = np.random.default_rng(3)
    distinct = (rng.standard_normal((40, 6)) + offset).astype(np.float32)
    X = distinct[rng.permutation(np.repeat(np.arange(40), 3))]
    known = np.arange(30)
    selector = CoreSetSelector(90).fit(X, _labels(120, known))
    n_new = len(np.unique(X, axis=0)) - len(np.unique(X[known], axis=0))
    rows, scores = selector.sample_indices_, selector.scores_
    assert (scores[rows[:n_new]] > 0).all() and (scores[rows[n_new:]] == 0).all()
    assert (np.diff(rows[n_new:]) > 0).all()
    assert selector.radius_ == 0


@pytest.mark.parametrize("n_clusters", [1, 20])
def test_close_rows_far_from_the_mean(n_clusters, monkeypatch):
    # Matrix products cannot tell these rows apart; copies must still be found.
    monkeypatch.setattr(_kcenter, "_MANY_CENTERS", 0)
    rng = np.random.default_rng(0)
    middles = 100 * rng.standard_normal((n_clusters, 1, 4))
    X = (middles + 1e-3 * rng.standard_normal((n_clusters, 50, 4))).reshape(-1, 4)
    X = np.concatenate([X, X]).astype(np.float32)
    n = len(X) // 2
    got = _kcenter._nearest_center(X, np.arange(n))
    np.testing.assert_array_equal(got, 0)


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("value", [0, 2.5, 1e6])
def test_constant_data(robust, value):
    X = np.full((30, 3), value, dtype=np.float32)
    selector = CoreSetSelector(10, robust=robust).fit(X, _labels(30, [3]))
    assert selector.sample_indices_.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert selector.radius_ == selector.lower_bound_ == 0
    first, *others = CoreSetSelector(30, robust=robust, random_state=0).fit_select(X)
    assert others == [i for i in range(30) if i != first]


@pytest.mark.parametrize("robust", [False, True])
def test_all_but_one_or_all_labeled(robust, X):
    y = np.arange(300)
    y[17] = -1
    selector = CoreSetSelector(robust=robust).fit(X, y)
    assert selector.sample_indices_.tolist() == [17]
    assert selector.radius_ == 0
    selector = CoreSetSelector(robust=robust).fit(X, np.arange(300))
    assert selector.sample_indices_.tolist() == []
    assert selector.radius_ == 0 and selector.outliers_.tolist() == []


@pytest.mark.parametrize("robust", [False, True])
def test_labeled_rows_are_never_chosen(robust, X):
    X = X[:60]
    for n_known in (1, 30, 55):
        y = _labels(60, np.random.default_rng(n_known).permutation(60)[:n_known])
        selector = CoreSetSelector(5, robust=robust, time_limit=2)
        rows = selector.fit_select(X, y)
        assert (y[rows] == -1).all() and len(set(rows.tolist())) == 5


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("known", [[], [3], range(100)])
def test_memory_map_and_blocks_give_the_same_rows(
    normalize, known, X, tmp_path, monkeypatch
):
    y = _labels(300, list(known))
    selector = CoreSetSelector(40, normalize=normalize, random_state=0)
    want = clone(selector).fit(X, y)
    X.tofile(tmp_path / "X")
    mapped = np.memmap(tmp_path / "X", np.float32, "r", shape=X.shape)
    frozen = X.copy()
    frozen.flags.writeable = False
    for block in (2**22, 35, 1):
        monkeypatch.setattr(_kcenter, "_BLOCK_NUMBERS", block)
        for form in (X, mapped, frozen):
            got = clone(selector).fit(form, y)
            np.testing.assert_array_equal(got.sample_indices_, want.sample_indices_)
            np.testing.assert_array_equal(got.scores_, want.scores_)


def test_many_centers_are_searched_to_the_same_distances(X):
    centers = np.arange(280)
    want = cdist(X.astype(float), X[centers].astype(float)).min(1)
    got = _kcenter._nearest_center(X, centers)  # more than _MANY_CENTERS
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_array_equal(got[centers], 0)


@pytest.mark.parametrize("offset", [0, 1e4])
@pytest.mark.parametrize("known", [(), (5, 250)])
def test_looking_at_the_farthest_rows_alone_changes_no_digit(
    offset, known, monkeypatch
):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 6)) + offset
    X = np.concatenate([X, X[:40], X[:10]]).astype(np.float32)  # copies: ties
    distances = cdist(X.astype(float), X.astype(float))
    nearest = distances[:, list(known)].min(1) if known else np.full(len(X), np.inf)
    want = []
    for _ in range(200):
        want.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distances[:, want[-1]])
    found = {}
    for fewest in (2, 20, 1000):
        monkeypatch.setattr(_kcenter, "_FEWEST", fewest)
        found[fewest] = k_center_greedy(X, 200, known)
        for a, b in zip(found[fewest], found[2], strict=True):
            np.testing.assert_array_equal(a, b)
    if not offset:  # where float32 has the digits
        assert found[2][0].tolist() == want


def test_normalize_is_the_choice_by_cosine():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80, 4)) * rng.uniform(0.1, 50, (80, 1))
    rows = CoreSetSelector(10, normalize=True).fit_select(X, _labels(80, [0]))
    centers = [0]
    for row in rows:
        cosine = cdist(X, X[centers], "cosine").min(1)
        cosine[centers] = -1
        assert row == cosine.argmax()
        centers.append(row)


# --- the robust choice -----------------------------------------------------------


def test_robust_ignores_outliers():
    rng = np.random.default_rng(0)
    middles = 10 * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    X = np.repeat(middles, 25, axis=0) + rng.uniform(-1, 1, (100, 2))
    X[[5, 50, 99]] = [[500, 0], [0, -900], [-300, 300]]
    greedy = CoreSetSelector(4, random_state=0).fit(X)
    assert set(greedy.sample_indices_.tolist()) & {5, 50, 99}
    robust = CoreSetSelector(4, robust=True, outlier_share=0.03, random_state=0).fit(X)
    assert robust.outliers_.tolist() == [5, 50, 99]
    assert sorted(robust.sample_indices_ // 25) == [0, 1, 2, 3]
    assert robust.radius_ == robust.lower_bound_ < 2
    # far less than half the greedy radius
    assert greedy.radius_ > 4 * robust.radius_
    rest = np.setdiff1d(np.arange(100), [*robust.outliers_, *robust.sample_indices_])
    np.testing.assert_allclose(robust.scores_[rest].max(), robust.radius_, rtol=1e-6)


def test_robust_is_never_worse_than_greedy(X):
    y = _labels(300, [0, 1])[:120]
    greedy = CoreSetSelector(8).fit(X[:120], y)
    robust = CoreSetSelector(8, robust=True, outlier_share=0).fit(X[:120], y)
    assert greedy.radius_ / 2 <= robust.radius_ * (1 + 1e-6)
    assert robust.radius_ <= greedy.radius_ * (1 + 1e-6)
    assert greedy.lower_bound_ <= robust.lower_bound_ == robust.radius_


def test_robust_does_not_depend_on_the_seed_for_its_radius(X):
    radii = {
        round(CoreSetSelector(5, robust=True, random_state=i).fit(X[:80]).radius_, 6)
        for i in range(3)
    }
    assert len(radii) == 1


def test_robust_with_more_rows_to_choose_than_it_needs():
    X = np.repeat(np.eye(3), 5, axis=0)
    X = np.concatenate([X, [[9, 9, 9]]])
    selector = CoreSetSelector(6, robust=True, outlier_share=0.07).fit(X)
    assert len(set(selector.sample_indices_.tolist())) == 6
    assert selector.radius_ == 0
    # everything is covered before any row is chosen but the outlier
    y = _labels(16, [0, 5, 10])
    selector = CoreSetSelector(2, robust=True, outlier_share=0.1).fit(X, y)
    assert selector.radius_ == 0


def test_robust_stops_when_its_time_is_over(X):
    selector = CoreSetSelector(15, robust=True, outlier_share=0, time_limit=1e-9)
    with pytest.warns(ConvergenceWarning, match=r"time_limit=1e-09 .* at least"):
        selector.fit(X, _labels(300, [0]))
    greedy = CoreSetSelector(15).fit(X, _labels(300, [0]))
    assert set(selector.sample_indices_) == set(greedy.sample_indices_)
    np.testing.assert_allclose(selector.radius_, greedy.radius_, rtol=1e-5)
    # half the greedy radius, or the next distance between two rows above it
    half = greedy.lower_bound_
    assert half * (1 - 1e-5) <= selector.lower_bound_ <= half * 1.01


def test_robust_refuses_too_many_rows():
    X = np.zeros((2005, 2))
    with pytest.raises(ValueError, match=r"2000 unlabeled rows.* 2005: use robust=F"):
        CoreSetSelector(robust=True).fit(X)
    # the labeled ones do not count
    y = _labels(2005, range(2000))
    assert CoreSetSelector(2, robust=True).fit_select(X, y).tolist() == [2000, 2001]


# --- as an estimator -------------------------------------------------------------


@pytest.mark.parametrize("robust", [False, True])
def test_same_seed_clone_pickle_and_pipeline(robust, X):
    X = X[:90]
    selector = CoreSetSelector(6, robust=robust, random_state=3).fit(X)
    for other in (clone(selector).fit(X), pickle.loads(pickle.dumps(selector))):
        np.testing.assert_array_equal(other.sample_indices_, selector.sample_indices_)
        np.testing.assert_array_equal(other.scores_, selector.scores_)
        assert other.radius_ == selector.radius_
    pipeline = make_pipeline(StandardScaler(), clone(selector)).fit(X)
    scaled = StandardScaler().fit_transform(X)
    np.testing.assert_array_equal(
        pipeline[-1].sample_indices_, clone(selector).fit_select(scaled)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"outlier_share": 1.0},
        {"outlier_share": 2},
        {"outlier_share": -0.1},
        {"time_limit": 0},
        {"robust": "yes"},
        {"n_samples": 0},
    ],
)
def test_refuses_wrong_parameters(wrong, X):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CoreSetSelector().set_params(**wrong).fit(X)


def test_progress_bar(X, capsys):
    CoreSetSelector(20, verbose=1).fit(X)
    assert "20/20" in capsys.readouterr().err
    CoreSetSelector(3, robust=True, verbose=1).fit(X[:50])
    assert "CoreSetSelector" in capsys.readouterr().err
    CoreSetSelector(3).fit(X)
    assert capsys.readouterr().err == ""


def test_covers_digits_better_than_chance():
    X, y = load_digits(return_X_y=True)
    selector = CoreSetSelector(40, random_state=0).fit(X)
    assert len(set(y[selector.sample_indices_])) == 10
    random = [
        cdist(X, X[RandomSelector(40, random_state=i).fit_select(X)]).min(1).max()
        for i in range(5)
    ]
    assert selector.radius_ < min(random)
