"""Tests of the nearest neighbors and of k-means."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sklabel.neighbors import (
    _search,
    kmeans,
    kneighbors,
    mine_neighbors,
    squared_distances,
)
from tests._golden import assert_same_ranking, cases


def _matrices(min_rows=2, max_rows=12):
    """Small matrices of few different values: full of copies and ties."""
    shapes = st.tuples(st.integers(min_rows, max_rows), st.integers(1, 3))
    return shapes.flatmap(
        lambda shape: hnp.arrays(
            np.float32, shape, elements=st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0])
        )
    )


def _all_distances(Z, queries, metric):
    """Slow definition of the distances, in float64."""
    Z, Q = np.asarray(Z, np.float64), np.asarray(queries, np.float64)
    if metric == "euclidean":
        return np.linalg.norm(Q[:, None] - Z[None], axis=-1)
    lengths = np.linalg.norm(Q, axis=1)[:, None] * np.linalg.norm(Z, axis=1)
    products = Q @ Z.T
    return 1 - np.divide(products, lengths, np.zeros_like(products), where=lengths > 0)


# --- golden values ---------------------------------------------------------------


def test_golden_usl_knn():
    for case in cases("usl_knn"):
        distances, indices = kneighbors(case["features"], int(case["K"]))
        squared = distances.astype(np.float64) ** 2
        np.testing.assert_allclose(squared, case["sq_dist"], rtol=1e-4, atol=1e-5)
        clear = case["indices_unambiguous"]
        np.testing.assert_array_equal(
            np.sort(indices[clear], axis=1), np.sort(case["indices"][clear], axis=1)
        )


def test_golden_usl_kmeans():
    for case in cases("usl_kmeans"):
        labels, centers, inertia, n_iter = kmeans(
            case["features"],
            int(case["K"]),
            init=case["init_indices"],
            max_iter=int(case["n_iter"]),
        )
        np.testing.assert_array_equal(labels, case["cluster_labels"])
        np.testing.assert_allclose(centers, case["centroids"], rtol=1e-8)
        np.testing.assert_allclose(inertia, case["sse_vs_final_centroids"], rtol=1e-8)
        assert n_iter <= case["n_iter"]
        np.testing.assert_array_equal(
            np.bincount(labels, minlength=len(centers)), case["counts"]
        )


def test_golden_kmeans_start_points_of_the_released_code():
    for case in cases("usl_kmeans"):
        if "pool" in str(case["note"]):
            continue  # drawn from a part of the rows
        X, K = case["features"], int(case["K"])
        by_seed = kmeans(X, K, random_state=int(case["seed"]), max_iter=3)
        by_rows = kmeans(X, K, init=case["init_indices"], max_iter=3)
        np.testing.assert_array_equal(by_seed[0], by_rows[0])


def test_golden_neighbors_mine():
    for case in cases("neighbors_mine"):
        similarities, indices = mine_neighbors(case["features"], int(case["k"]))
        np.testing.assert_allclose(similarities, case["similarity"], rtol=1e-6)
        F = case["features"].astype(np.float64)
        F /= np.linalg.norm(F, axis=1, keepdims=True)
        for own, found, expected in zip(F @ F.T, indices, case["indices"], strict=True):
            assert_same_ranking(found, expected, own, atol=1e-6)
        if case["smallest_gap"] > 1e-6:  # else the order is in doubt
            np.testing.assert_array_equal(indices, case["indices"])
        targets = case["targets"]
        agreement = (targets[case["indices"][:, 1:]] == targets[:, None]).mean()
        np.testing.assert_allclose(agreement, case["neighbor_accuracy"])


def test_golden_neighbors_edges():
    for case in cases("neighbors_edges"):
        F, k = case["features"], int(case["k"])
        normalized = np.allclose(np.linalg.norm(F, axis=1), 1, atol=1e-6)
        similarities, indices = mine_neighbors(F, k, normalize=normalized)
        np.testing.assert_allclose(similarities, case["similarity"], rtol=1e-6)
        own = np.einsum("id,ikd->ik", F, F[indices])
        np.testing.assert_allclose(own, case["similarity"], rtol=1e-6)
        if normalized:
            np.testing.assert_array_equal(indices[:, 0], np.arange(len(F)))
            assert not case["self_in_column_0"].all()  # what the case is about
        else:
            found = indices[:, 0] == np.arange(len(F))
            np.testing.assert_array_equal(found, case["self_in_column_0"])
            first = mine_neighbors(F, k)[1][:, 0]
            np.testing.assert_array_equal(first, np.arange(len(F)))
        # Without itself: by number, so copies of the row stay.
        _, others = kneighbors(F, k, include_self=False)
        assert (others != np.arange(len(F))[:, None]).all()


# --- kneighbors ------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("include_self", [True, False])
@settings(deadline=None, max_examples=60)
@given(Z=_matrices(), data=st.data())
def test_kneighbors_agrees_with_the_definition(metric, include_self, Z, data):
    n = len(Z)
    k = data.draw(st.integers(1, n if include_self else n - 1))
    block_size = data.draw(st.sampled_from([None, 1, 3]))
    distances, indices = kneighbors(
        Z, k, metric=metric, include_self=include_self, block_size=block_size
    )
    everything = _all_distances(Z, Z, metric)
    np.fill_diagonal(everything, 0 if include_self else np.inf)
    expected = np.sort(everything, axis=1)[:, :k]
    np.testing.assert_allclose(distances, expected, atol=2e-6)
    taken = np.take_along_axis(everything, indices, axis=1)
    np.testing.assert_allclose(distances, taken, atol=2e-6)
    assert all(len(set(row)) == k for row in indices.tolist())
    if include_self:
        np.testing.assert_array_equal(indices[:, 0], np.arange(n))
        assert (distances[:, 0] == 0).all()
    else:
        assert (indices != np.arange(n)[:, None]).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@settings(deadline=None, max_examples=40)
@given(Z=_matrices(), data=st.data())
def test_queries_agree_with_the_definition(metric, Z, data):
    shape = (data.draw(st.integers(1, 5)), Z.shape[1])
    Q = data.draw(
        hnp.arrays(np.float32, shape, elements=st.sampled_from([-1.0, 0.0, 2.0]))
    )
    k = data.draw(st.integers(1, len(Z)))
    distances, indices = kneighbors(Z, k, queries=Q, metric=metric)
    everything = _all_distances(Z, Q, metric)
    np.testing.assert_allclose(distances, np.sort(everything, axis=1)[:, :k], atol=2e-6)
    taken = np.take_along_axis(everything, indices, axis=1)
    np.testing.assert_allclose(distances, taken, atol=2e-6)


def test_copies_are_exactly_zero_apart_far_from_the_origin():
    rng = np.random.default_rng(0)
    Z = (1000 + rng.standard_normal((40, 16))).astype(np.float32)
    Z = np.concatenate([Z, Z])
    for metric in ("euclidean", "cosine"):
        distances, indices = kneighbors(Z, 2, metric=metric)
        np.testing.assert_array_equal(distances, 0)
        assert set(map(tuple, np.sort(indices, 1).tolist())) == {
            (i, i + 40) for i in range(40)
        }


def test_ties_stand_in_the_order_of_row_numbers():
    Z = np.array([[0.0], [1.0], [1.0], [-1.0], [1.0]])
    distances, indices = kneighbors(Z, 5)
    np.testing.assert_array_equal(indices[0], [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(indices[4], [4, 1, 2, 0, 3])
    np.testing.assert_array_equal(distances[4], [0, 0, 0, 1, 2])


def test_dtype_is_kept():
    Z = np.arange(12.0).reshape(6, 2)
    assert kneighbors(Z, 2)[0].dtype == np.float64
    assert kneighbors(Z.astype(np.float32), 2)[0].dtype == np.float32
    assert kneighbors(Z.astype(int), 2)[0].dtype == np.float32
    assert kneighbors(Z.tolist(), 2)[1].dtype == np.int64


def test_blocks_of_keys_are_merged(monkeypatch):
    Z = np.random.default_rng(0).standard_normal((157, 6)).astype(np.float32)
    whole = kneighbors(Z, 9)
    monkeypatch.setattr(_search, "_BLOCK_KEYS", 13)
    monkeypatch.setattr(_search, "BLOCK_PAIRS", 31)
    parts = kneighbors(Z, 9, block_size=10)
    np.testing.assert_array_equal(parts[1], whole[1])
    np.testing.assert_array_equal(parts[0], whole[0])


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_memory_maps_give_the_same(tmp_path, monkeypatch, mode, recwarn):
    Z = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    Z.tofile(tmp_path / "Z")
    mapped = np.memmap(tmp_path / "Z", np.float32, mode, shape=Z.shape)
    monkeypatch.setattr(_search, "_BLOCK_KEYS", 16)
    for metric in ("euclidean", "cosine"):
        want = kneighbors(Z, 4, metric=metric)
        got = kneighbors(mapped, 4, metric=metric)
        np.testing.assert_array_equal(got[1], want[1])
        np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(
        kmeans(mapped, 3, random_state=0)[0], kmeans(Z, 3, random_state=0)[0]
    )
    assert not [str(w.message) for w in recwarn]
    np.testing.assert_array_equal(np.fromfile(tmp_path / "Z", np.float32), Z.ravel())


def test_no_square_matrix_is_made():
    # 20,000 x 20,000 products would be 1.6 GB; the blocks hold 2 ** 26 at most.
    made = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                made.append(out.numel())
            return out

    Z = np.random.default_rng(0).standard_normal((20_000, 2)).astype(np.float32)
    with Watch():
        kneighbors(Z, 2, method="exact", block_size=64)
    assert max(made) < 20_000 * 100


def test_approximate_search_falls_back_where_there_is_nothing_to_approximate():
    Z = np.random.default_rng(0).standard_normal((15, 3)).astype(np.float32)
    want, got = kneighbors(Z, 5), kneighbors(Z, 5, method="approximate")
    np.testing.assert_array_equal(got[1], want[1])
    Q = Z[:4] + 0.1
    want, got = kneighbors(Z, 5, Q), kneighbors(Z, 5, Q, method="approximate")
    np.testing.assert_array_equal(got[1], want[1])


class _StubDescent:
    """Stands for pynndescent's index: right but for rows it leaves incomplete."""

    def __init__(self, Z, metric, n_neighbors, random_state, verbose):
        self.Z, self.metric = Z, metric
        found = kneighbors(Z, n_neighbors, metric=metric, method="exact")[1]
        found[::7, -3:] = -1
        self.neighbor_graph = found.astype(np.int32), None

    def query(self, queries, k):
        found = kneighbors(self.Z, k, queries, self.metric, method="exact")[1]
        found[1, 0] = -1
        return found.astype(np.int32), None


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_incomplete_rows_of_the_approximate_search_are_completed(monkeypatch, metric):
    import sys
    import types

    stub = types.SimpleNamespace(NNDescent=_StubDescent)
    monkeypatch.setitem(sys.modules, "pynndescent", stub)
    Z = np.random.default_rng(0).standard_normal((80, 4)).astype(np.float32)
    Z[40:60] = Z[0]  # more copies than neighbors
    for options in ({}, {"include_self": False}, {"queries": Z[:9] + 0.5}):
        want = kneighbors(Z, 6, metric=metric, method="exact", **options)
        got = kneighbors(Z, 6, metric=metric, method="approximate", **options)
        np.testing.assert_allclose(got[0], want[0], atol=1e-6)


def test_auto_takes_the_exact_search_until_compilation_pays():
    cheaper = _search._exact_is_cheaper
    assert cheaper(20_000, 20_000, 128, 28)
    assert cheaper(100_000, 100_000, 128, 408)
    assert not cheaper(1_280_000, 1_280_000, 128, 28)
    assert cheaper(1_280_000, 1, 128, 28)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_neighbors": 0}, "n_neighbors=0 must lie between 1 and 6"),
        ({"n_neighbors": 7}, "n_neighbors=7 must lie between 1 and 6"),
        ({"n_neighbors": 6, "include_self": False}, "between 1 and 5"),
        ({"n_neighbors": 1, "metric": "manhattan"}, "metric='manhattan'"),
        ({"n_neighbors": 1, "method": "fast"}, "method='fast'"),
        ({"n_neighbors": 1, "block_size": -1}, "block_size=-1 must be an integer of"),
        ({"n_neighbors": 1, "block_size": 2.0}, "block_size=2.0 must be an integer"),
        ({"n_neighbors": 1, "queries": np.ones((2, 3))}, "3 features, but Z has 2"),
        ({"n_neighbors": 1, "queries": np.ones(2)}, "queries must be a non-empty 2-D"),
    ],
)
def test_kneighbors_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        kneighbors(np.ones((6, 2)), **arguments)


def test_empty_and_flat_arrays_are_refused():
    for Z in (np.ones(4), np.ones((0, 3)), np.ones((3, 0)), np.ones((2, 2, 2))):
        for call in (kneighbors, kmeans, mine_neighbors):
            with pytest.raises(ValueError, match="non-empty 2-D array"):
                call(Z, 1)


# --- mine_neighbors --------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(Z=_matrices(), data=st.data())
def test_mined_rows_have_the_largest_cosines_and_stand_behind_the_row(Z, data):
    k = data.draw(st.integers(1, len(Z) - 1))
    similarities, indices = mine_neighbors(Z, k)
    np.testing.assert_array_equal(indices[:, 0], np.arange(len(Z)))
    cosines = 1 - _all_distances(Z, Z, "cosine")
    taken = np.take_along_axis(cosines, indices, axis=1)
    np.testing.assert_allclose(similarities, taken, atol=2e-6)
    np.fill_diagonal(cosines, -np.inf)
    best = -np.sort(-cosines, axis=1)[:, :k]
    np.testing.assert_allclose(similarities[:, 1:], best, atol=2e-6)


def test_mining_refuses_as_many_neighbors_as_rows():
    with pytest.raises(ValueError, match="n_neighbors=3 must lie between 1 and 2"):
        mine_neighbors(np.eye(3), 3)
    with pytest.raises(ValueError, match="block_size=0 must be an integer of at least"):
        mine_neighbors(np.eye(3), 1, block_size=0)


# --- kmeans ----------------------------------------------------------------------


def _lloyd(Z, centers, max_iter):
    """Plain k-means, written out; empty clusters keep their centers."""
    for _ in range(max_iter):
        labels = np.square(Z[:, None] - centers).sum(-1).argmin(1)
        for j in set(labels.tolist()):
            centers[j] = Z[labels == j].mean(0)
    return labels, centers


@pytest.mark.parametrize("max_iter", [1, 2, 5, 100])
def test_kmeans_skips_rows_without_changing_the_result(max_iter):
    rng = np.random.default_rng(max_iter)
    Z = rng.standard_normal((700, 5)) + 3 * rng.integers(4, size=(700, 1))
    start = Z[:25].copy()
    labels, centers, inertia, n_iter = kmeans(Z, 25, init=start, max_iter=max_iter)
    expected, expected_centers = _lloyd(Z, start.copy(), max_iter)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(centers, expected_centers, atol=1e-9)
    np.testing.assert_allclose(inertia, np.square(Z - centers[labels]).sum())
    assert n_iter <= max_iter


@settings(deadline=None, max_examples=80)
@given(Z=_matrices(min_rows=1), data=st.data())
def test_no_cluster_is_empty_while_rows_differ(Z, data):
    k = data.draw(st.integers(1, len(Z)))
    init = data.draw(st.sampled_from(["random", "k-means++", "sample"]))
    labels, centers, inertia, n_iter = kmeans(Z, k, init=init, random_state=0)
    assert labels.shape == (len(Z),) and labels.min() >= 0 and labels.max() < k
    assert np.isfinite(centers).all()
    n_used = len(set(labels.tolist()))
    assert n_used == min(k, len(np.unique(Z, axis=0))) or n_iter == 100
    if n_used >= len(np.unique(Z, axis=0)):
        assert inertia < 1e-9
    np.testing.assert_allclose(
        inertia, np.square(Z - centers[labels], dtype=np.float64).sum(), atol=1e-4
    )


def test_an_empty_cluster_gets_the_farthest_row():
    Z = np.array([[0.0], [0.1], [0.2], [0.3], [9.0], [0.15]])
    start = np.array([[0.0], [100.0], [200.0]])
    labels, *_ = kmeans(Z, 3, init=start, max_iter=1)
    # All rows fall to center 0; row 4 is farthest from it, row 3 next.
    np.testing.assert_array_equal(labels, [0, 0, 0, 2, 1, 0])


def test_kmeans_of_equal_rows():
    labels, centers, inertia, _ = kmeans(np.full((9, 3), 7.0), 4, random_state=0)
    assert len(set(labels.tolist())) == 1
    assert inertia == 0
    np.testing.assert_allclose(centers, 7)


def test_plus_plus_spreads_the_start():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 50)
    Z = 100 * np.eye(20)[groups] + rng.standard_normal((1000, 20))
    labels, *_ = kmeans(Z, 20, init="k-means++", random_state=0, max_iter=20)
    assert len(set(zip(groups.tolist(), labels.tolist(), strict=True))) == 20


def test_kmeans_repeats_and_leaves_generators_alone():
    Z = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    copy = Z.copy()
    for init in ("random", "k-means++", "sample"):
        for seed in (5, np.random.RandomState(5)):
            a = kmeans(Z, 8, init=init, random_state=5)
            b = kmeans(Z, 8, init=init, random_state=5)
            np.testing.assert_array_equal(a[0], b[0])
            kmeans(Z, 8, init=init, random_state=seed)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])
    np.testing.assert_array_equal(Z, copy)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_clusters": 0}, "n_clusters=0"),
        ({"n_clusters": 7}, "n_clusters=7 must lie between 1 and the 6 rows"),
        ({"n_clusters": 2, "max_iter": 0}, "max_iter=0"),
        ({"n_clusters": 2, "init": "far"}, "init='far'"),
        ({"n_clusters": 2, "init": [0, 6]}, "row numbers from 0 to 5"),
        ({"n_clusters": 2, "init": [0, 1, 2]}, "2 row numbers"),
        ({"n_clusters": 2, "init": np.ones((2, 5))}, r"shape \(2, 5\)"),
    ],
)
def test_kmeans_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        kmeans(np.ones((6, 2)), **arguments)


# --- squared_distances -----------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(A=_matrices(), data=st.data())
def test_squared_distances_agree_with_the_definition(A, data):
    rows = data.draw(st.lists(st.integers(0, len(A) - 1), min_size=1, max_size=5))
    B = A[rows]
    squared = squared_distances(torch.from_numpy(A), torch.from_numpy(B)).numpy()
    np.testing.assert_allclose(
        squared, _all_distances(B, A, "euclidean") ** 2, rtol=1e-4, atol=1e-6
    )
    for column, row in enumerate(rows):
        assert squared[row, column] == 0


def test_near_pairs_keep_their_digits():
    A = torch.tensor([[3.0, 4.0]])
    B = A + torch.tensor([[1e-4, 0.0]])
    want = float((A - B).double().square().sum())
    assert squared_distances(A, B).item() == pytest.approx(want, rel=1e-5)


def test_kmeans_that_starts_on_a_sample_needs_few_iterations_on_all_rows():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(40, 8))[rng.integers(40, size=8000)] * 2
    Z = (Z + rng.normal(size=Z.shape)).astype(np.float32)
    arguments = {"n_clusters": 50, "random_state": 3}

    def still_to_go(init):
        (*_, early, _), (*_, end, _) = (
            kmeans(Z, init=init, max_iter=n, **arguments) for n in (1, 100)
        )
        return early / end - 1

    assert still_to_go("sample") < 0.03 < 0.1 < still_to_go("random")
    # of few rows the sample is all, and its start that of "random"
    few = Z[: 50 * 64]
    for a, b in zip(
        kmeans(few, init="sample", **arguments), kmeans(few, **arguments), strict=True
    ):
        np.testing.assert_array_equal(a, b)
