"""Tests of USL: its steps against golden values, the estimator by what it chooses."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from sklabel._core import choice
from sklabel._core.choice import Repulsion
from sklabel.neighbors import kmeans, kneighbors
from sklabel.selection import RandomSelector, USLSelector, _usl
from sklabel.selection._usl import mean_distances, select_densest, select_regularized
from tests._golden import cases


def _settings_of(case):
    """Arguments of `_select` for one golden case."""
    given = {
        "n_rounds": int(case["iters"]),
        "reg_weight": float(case["w"]),
        "alpha": float(case["alpha"]),
        "ema_decay": float(case["momentum"]),
    }
    if "horizon_num" in case:
        exclude = bool(case["exclude_same_cluster"])
        number = int(case["horizon_num"])
        return given | {
            "horizon": "nearest",
            "horizon_neighbors": number,
            "exclude_same_cluster": exclude,
        }
    limit = float(case["horizon_dist"])
    if np.isnan(limit):
        return given | {"horizon": None}
    return given | {"horizon": "distance", "horizon_distance": limit}


def _select(Z, utility, clusters, **given):
    """Choose by `select_regularized` with a repulsion of some settings."""
    own = {field.name for field in fields(Repulsion)} & given.keys()
    repulsion = Repulsion(Z, clusters, **{name: given.pop(name) for name in own})
    return select_regularized(utility, repulsion, **given)


# --- golden values ---------------------------------------------------------------


def test_golden_density():
    for case in cases("usl_knn"):
        distances, _ = kneighbors(case["features"], int(case["K"]))
        means = mean_distances(distances)
        np.testing.assert_allclose(means, case["mean_sq_dist"], rtol=1e-4, atol=1e-6)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(1 / means, case["utility_f64"], rtol=1e-4)
            np.testing.assert_allclose(1 / means, case["utility"], rtol=1e-4)
        np.testing.assert_allclose(
            mean_distances(distances, power=1), case["paper_mean_dist_f64"], rtol=1e-4
        )


@pytest.mark.parametrize("block", [2**23, 1000])
def test_golden_select_cifar(block, monkeypatch):
    monkeypatch.setattr(choice, "_BLOCK_DISTANCES", block)
    for case in cases("usl_select_cifar"):
        history = {}
        selected, _ = _select(
            case["features"],
            1 / case["mean_sq_dist"],
            case["cluster_labels"],
            history=history,
            **_settings_of(case),
        )
        np.testing.assert_array_equal(selected, case["selected"])
        np.testing.assert_array_equal(history["selected"], case["selected_per_iter"])
        np.testing.assert_allclose(
            history["penalty"], case["raw_reg_per_iter"], rtol=1e-9
        )
        np.testing.assert_allclose(history["average"], case["reg_per_iter"], rtol=1e-9)


def test_golden_select_imagenet():
    for case in cases("usl_select_imagenet"):
        history = {}
        selected, _ = _select(
            case["features"],
            1 / case["mean_sq_dist"],
            case["cluster_labels"],
            history=history,
            **_settings_of(case),
        )
        np.testing.assert_array_equal(selected, case["selected"])
        np.testing.assert_array_equal(history["selected"], case["selected_per_iter"])
        np.testing.assert_allclose(
            history["average_used"], case["reg_used_at_iter"], rtol=1e-9
        )


def test_golden_select_without_regularization():
    for case in cases("usl_select_noreg"):
        means, clusters = case["mean_sq_dist"], case["cluster_labels"]
        budget = int(case["final_sample_num"])
        np.testing.assert_array_equal(
            select_densest(means, clusters, budget), case["selected_order_by_id"]
        )
        np.testing.assert_array_equal(
            select_densest(means, clusters, budget, case["centroid_ordering"]),
            case["selected_given_ordering"],
        )


def test_golden_end_to_end():
    for case in cases("usl_end_to_end"):
        Z = case["features"]
        means = mean_distances(kneighbors(Z, int(case["K"]))[0])
        np.testing.assert_allclose(means, case["mean_sq_dist"], rtol=1e-4)
        given = {
            "reg_weight": float(case["w"]),
            "alpha": float(case["alpha"]),
            "ema_decay": float(case["momentum"]),
            "horizon_distance": float(case["horizon_dist"]),
            "n_rounds": int(case["rounds"]),
        }
        for budget in case["budgets"].tolist():
            start = case[f"init_indices_m{budget}"]
            stored = case[f"cluster_labels_m{budget}"]
            max_iter = int(case["kmeans_iters"])
            labels, *_ = kmeans(Z, budget, init=start, max_iter=max_iter)
            assert (labels == stored).mean() >= 0.99
            exact = mean_distances(kneighbors(Z.astype(np.float64), int(case["K"]))[0])
            selected, _ = _select(Z.astype(np.float64), 1 / exact, stored, **given)
            np.testing.assert_array_equal(selected, case[f"selected_f64_m{budget}"])
            # The estimator: the same rows, its own order.
            selector = USLSelector(
                budget,
                int(case["K"]),
                reg_weight=given["reg_weight"],
                alpha=given["alpha"],
                ema_decay=given["ema_decay"],
                horizon_distance=given["horizon_distance"],
                n_rounds=given["n_rounds"],
                random_state=int(case["kmeans_seed"]),
                normalize=False,
            ).fit(Z, clusters=stored)
            np.testing.assert_array_equal(
                np.sort(selector.sample_indices_),
                np.sort(case[f"selected_f64_m{budget}"]),
            )
            by_kmeans = selector.set_params(kmeans_init=start, kmeans_max_iter=max_iter)
            by_kmeans.fit(Z)
            np.testing.assert_array_equal(by_kmeans.labels_, labels)
            if (labels == stored).all():
                np.testing.assert_array_equal(
                    np.sort(by_kmeans.sample_indices_),
                    np.sort(case[f"selected_f64_m{budget}"]),
                )


# --- the steps -------------------------------------------------------------------


def _slow_penalty(Z, clusters, chosen, alpha, power, horizon_distance, exclude):
    """Definition of the penalty, pair by pair."""
    penalty = np.zeros(len(Z))
    for i, z in enumerate(Z.astype(np.float64)):
        for j in chosen:
            d = np.linalg.norm(z - Z[j]) ** power
            own = clusters[i] == clusters[j]
            masked = own and (exclude or d == 0)
            if horizon_distance is not None and d >= horizon_distance:
                masked = True
            d = 1e10 if masked else max(d, 1e-10)
            penalty[i] += d**-alpha
    return penalty


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_first_round_takes_the_best_and_penalizes_by_definition(data):
    n = data.draw(st.integers(2, 14))
    values = st.sampled_from([0.0, 1.0, 2.5, -3.0])
    Z = data.draw(hnp.arrays(np.float64, (n, 2), elements=values))
    clusters = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, 4)))
    levels = st.sampled_from([0.5, 1.0, 2.0, np.inf])
    utility = data.draw(hnp.arrays(np.float64, n, elements=levels))
    alpha = data.draw(st.sampled_from([0.5, 1.0, 1.5]))
    power = data.draw(st.sampled_from([1, 2]))
    limit = data.draw(st.sampled_from([None, 1.7, 9.3]))  # no distance hits them
    exclude = data.draw(st.booleans())
    history = {}
    _select(
        Z,
        utility,
        clusters,
        n_rounds=2,
        alpha=alpha,
        power=power,
        ema_decay=0.0,
        reg_weight=0.5,
        horizon=None if limit is None else "distance",
        horizon_distance=limit,
        exclude_same_cluster=exclude,
        history=history,
    )
    first, second = history["selected"]
    for rows, score in (
        (first, utility),
        (second, utility - 0.5 * history["penalty"][0]),
    ):
        assert clusters[rows].tolist() == sorted(set(clusters.tolist()))
        for row in rows:
            members = np.flatnonzero(clusters == clusters[row])
            best = members[score[members] == score[members].max()]
            assert row == best[0]  # the first among equals
    expected = _slow_penalty(Z, clusters, first, alpha, power, limit, exclude)
    np.testing.assert_allclose(history["penalty"][0], expected, rtol=1e-7)


def test_nearest_horizon_counts_only_the_nearest():
    Z = np.array([[0.0], [1.0], [3.0], [10.0]])
    clusters = np.arange(4)
    given = {"n_rounds": 2, "ema_decay": 0.0, "alpha": 1.0, "horizon": "nearest"}
    history = {}
    _select(Z, np.ones(4), clusters, horizon_neighbors=2, history=history, **given)
    # The nearest chosen row is the row itself, masked; the next one counts.
    np.testing.assert_allclose(history["penalty"][0], [1, 1, 1 / 4, 1 / 49], rtol=1e-6)


def test_float32_near_copies_do_not_break_the_penalty():
    rng = np.random.default_rng(0)
    Z = rng.standard_normal((50, 8)).astype(np.float32)
    Z /= np.linalg.norm(Z, axis=1, keepdims=True)
    Z[25:] = Z[:25]  # copies in other clusters
    clusters = np.arange(50) % 5 + 5 * (np.arange(50) >= 25)
    history = {}
    _select(Z, np.ones(50), clusters, n_rounds=3, history=history)
    for penalty in history["penalty"]:
        assert np.isfinite(penalty).all() and (penalty > 0).all()
    copies = (history["selected"][0] + 25) % 50
    assert (history["penalty"][0][copies] > 1e4).all()


def test_candidates_and_rows_chosen_before():
    Z = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    clusters = np.array([0, 0, 0, 1, 1, 1])
    utility = np.array([1.0, 2.0, 1.0, 1.0, 1.5, 1.0])
    given = {"n_rounds": 1, "horizon": None, "reg_weight": 4.0, "alpha": 1.0}
    rows, _ = _select(Z, utility, clusters, **given)
    np.testing.assert_array_equal(rows, [1, 4])
    allowed = np.array([False] * 3 + [True] * 3)
    rows, _ = _select(
        Z, utility, clusters, candidates=allowed, chosen_before=[0], **given
    )
    np.testing.assert_array_equal(rows, [4])
    # A row chosen before, beside row 4 in space, turns the choice away from it.
    clusters[:] = [0, 2, 2, 1, 1, 1]
    Z[0] = 11.01
    rows, _ = _select(
        Z, utility, clusters, candidates=allowed, chosen_before=[0], **given
    )
    assert rows[0] in (3, 5)


# --- the estimator ---------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X.astype(np.float32), y


def test_covers_the_digits_better_than_chance(digits):
    X, y = digits
    covered, accuracy = {}, {}
    for name, selector in (("usl", USLSelector(20)), ("random", RandomSelector(20))):
        rows = [selector.set_params(random_state=s).fit_select(X) for s in range(5)]
        covered[name] = np.mean([len(set(y[r])) for r in rows])
        accuracy[name] = np.mean(
            [KNeighborsClassifier(1).fit(X[r], y[r]).score(X, y) for r in rows]
        )
    assert covered["usl"] > covered["random"] + 0.5
    assert accuracy["usl"] > accuracy["random"] + 0.05


def test_the_regularizer_spreads_the_choice(digits):
    X, _ = digits
    Z = X / np.linalg.norm(X, axis=1, keepdims=True)
    nearest = []
    for weight in (0.0, 5.0):
        rows = USLSelector(60, reg_weight=weight, random_state=0).fit_select(X)
        nearest.append(kneighbors(Z[rows], 1, include_self=False)[0].mean())
    assert nearest[1] > nearest[0] * 1.02


def test_larger_groups_are_asked_first():
    rng = np.random.default_rng(0)
    sizes = [20, 80, 40]
    groups = np.repeat([0, 1, 2], sizes)
    X = 10 * np.eye(3)[groups] + rng.standard_normal((140, 3))
    selector = USLSelector(3, kmeans_init="k-means++", random_state=0).fit(X)
    np.testing.assert_array_equal(groups[selector.sample_indices_], [1, 2, 0])
    # Each is a dense row of its group, not one of its border.
    for row in selector.sample_indices_:
        members = groups == groups[row]
        assert selector.utility_[row] > np.median(selector.utility_[members])


def test_groups_with_a_label_are_covered():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), 30)
    X = 10 * np.eye(4)[groups] + rng.standard_normal((120, 4))
    y = np.full(120, -1)
    y[[0, 31]] = groups[[0, 31]]
    selector = USLSelector(2, kmeans_init="k-means++", random_state=0).fit(X, y)
    assert sorted(groups[selector.sample_indices_]) == [2, 3]
    selector.fit(X, y, clusters=groups)
    assert sorted(groups[selector.sample_indices_]) == [2, 3]


def test_few_clusters_give_several_rows_by_their_size():
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], [90, 30])
    X = 10 * np.eye(2)[groups] + rng.standard_normal((120, 2))
    for weight in (0.5, 0.0):
        selector = USLSelector(8, reg_weight=weight, random_state=0)
        rows = selector.fit_select(X, clusters=groups)
        np.testing.assert_array_equal(np.bincount(groups[rows]), [6, 2])
    y = np.where(np.arange(120) < 10, 0, -1)
    rows = selector.fit_select(X, y, clusters=groups)
    # Ten labels in the large group: the small one is asked until it has as many.
    assert (groups[rows] == 1).sum() >= 3
    assert (rows >= 10).all()


def test_copies_of_a_chosen_row_come_last():
    X = np.array([[1.0, 0.0]] * 6 + [[0.0, 1.0], [1.0, 1.0], [-1.0, 0.3]])
    for reg_weight in (0.0, 0.5):
        selector = USLSelector(4, 3, n_clusters=1, reg_weight=reg_weight)
        rows = selector.fit_select(X)
        assert len(np.unique(X[rows], axis=0)) == 4
        assert rows[0] == 0  # the densest, the first among its copies


def test_spare_clusters_leave_out_the_smallest(digits):
    X, _ = digits
    selector = USLSelector(10, n_clusters=14, random_state=0).fit(X)
    sizes = np.bincount(selector.labels_)
    chosen = sizes[selector.labels_[selector.sample_indices_]]
    np.testing.assert_array_equal(chosen, np.sort(sizes)[::-1][:10])


def test_number_of_neighbors_by_size(monkeypatch):
    rng = np.random.default_rng(0)
    for n, expected in ((12, 12), (300, 20), (5000, 40)):
        X = rng.standard_normal((n, 2))
        assert USLSelector(1, random_state=0).fit(X).n_neighbors_ == expected
    monkeypatch.setattr(_usl, "_MANY", 4999)
    assert USLSelector(1, random_state=0).fit(X).n_neighbors_ == 20
    few = USLSelector(1, include_self=False, random_state=0).fit(X[:12])
    assert few.n_neighbors_ == 11
    assert USLSelector(1, 7, random_state=0).fit(X).n_neighbors_ == 7


def test_density_follows_its_definition(digits):
    X = digits[0][:200]
    Z = X / np.linalg.norm(X, axis=1, keepdims=True)
    d = np.sort(np.linalg.norm(Z[:, None] - Z[None], axis=-1).astype(float), axis=1)
    for power in (1, 2):
        for include_self, kept in ((True, d[:, :9]), (False, d[:, 1:10])):
            selector = USLSelector(
                5, 9, metric_power=power, include_self=include_self, random_state=0
            ).fit(X)
            np.testing.assert_allclose(
                selector.utility_, 1 / (kept**power).mean(1), rtol=1e-4
            )


def test_scale_of_rows_does_not_matter_when_normalized(digits):
    X = digits[0][:300]
    scales = np.random.default_rng(0).choice([0.5, 1.0, 2.0, 8.0], (300, 1))
    want = USLSelector(10, random_state=0).fit_select(X)
    got = USLSelector(10, random_state=0).fit_select(X * scales)
    np.testing.assert_array_equal(got, want)


def test_order_of_rows_does_not_matter_for_given_clusters(digits):
    X = np.unique(digits[0][:300], axis=0)
    clusters = np.arange(len(X)) % 12
    shuffle = np.random.default_rng(0).permutation(len(X))
    want = USLSelector(12, random_state=0).fit_select(X, clusters=clusters)
    got = USLSelector(12, random_state=0).fit_select(
        X[shuffle], clusters=clusters[shuffle]
    )
    assert set(shuffle[got].tolist()) == set(want.tolist())


def test_images_and_paths_are_to_be_embedded_first():
    for X in (
        np.zeros((9, 4, 4)),
        np.zeros((9, 4, 4, 3), np.uint8),
        ["a.png"] * 9,
        np.array([["a.png"]] * 9, dtype=object),
    ):
        with pytest.raises(ValueError, match="selects among vectors.*embed"):
            USLSelector(2).fit(X)


@pytest.mark.parametrize(
    "parameters",
    [
        {"n_samples": 0},
        {"n_samples": 1.0},
        {"n_neighbors": 0},
        {"n_neighbors": "all"},
        {"metric_power": 3},
        {"alpha": 0},
        {"ema_decay": 1},
        {"reg_weight": -1},
        {"horizon": "far"},
        {"n_rounds": 0},
        {"neighbor_method": "guess"},
    ],
)
def test_parameters_are_checked(parameters):
    (name,) = parameters
    with pytest.raises(ValueError, match=f"'{name}' parameter of USLSelector"):
        USLSelector(**parameters).fit(np.eye(4))


def test_clusters_that_do_not_fit_are_refused():
    X = np.eye(6)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        USLSelector(2).fit(X, clusters=[0, 1])
    with pytest.raises(ValueError, match="clusters must be"):
        USLSelector(2).fit(X, clusters=np.zeros((6, 2)))
    with pytest.raises(ValueError, match="n_clusters=7 must lie between 1 and"):
        USLSelector(2, n_clusters=7).fit(X)


def test_verbose_prints_the_steps(capsys):
    USLSelector(2).fit(np.eye(6))
    assert capsys.readouterr().out == ""
    USLSelector(2, verbose=1).fit(np.eye(6))
    printed = capsys.readouterr()
    for step in ("neighbors", "clusters", "selection", "assignments"):
        assert f"[USLSelector] {step}: " in printed.out
    for bar in ("neighbors: 100%", "clusters:", "selection: 100%"):
        assert bar in printed.err
