"""Scores against golden values, worked examples and invariances."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from sklabel.metrics import (
    class_balance,
    class_coverage,
    clustering_accuracy,
    effective_rank,
    expected_calibration_error,
    feature_std,
    hungarian_match,
    knn_accuracy,
    knn_scores,
    many_to_one_accuracy,
    top_k_clustering_accuracy,
)
from tests._golden import assert_same_ranking, cases


def test_hungarian_accuracy_golden():
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    for case in cases("hungarian_accuracy"):
        y, c = case["targets"], case["predictions"]
        assert clustering_accuracy(y, c) == case["accuracy"]
        assert round(clustering_accuracy(y, c) * len(y)) == case["n_correct"]
        np.testing.assert_allclose(
            many_to_one_accuracy(y, c), case["many_to_one_accuracy"], rtol=1e-8
        )
        # the figures that papers give beside the accuracy are scikit-learn's
        np.testing.assert_allclose(
            normalized_mutual_info_score(y, c), case["nmi"], rtol=1e-8, atol=1e-12
        )
        np.testing.assert_allclose(
            adjusted_rand_score(y, c), case["ari"], rtol=1e-8, atol=1e-12
        )


def test_hungarian_top5_golden():
    for case in cases("hungarian_top5"):
        y, p = case["targets"], case["probabilities"]
        clusters, classes = hungarian_match(y, p.argmax(axis=1))
        # where two matches are right equally often, either may be found
        c = p.argmax(axis=1)
        match = np.zeros(case["match"].shape, int)
        match[clusters] = classes
        assert (match[c] == y).sum() == (case["match"][c] == y).sum()
        np.testing.assert_array_equal(p.argmax(axis=1), case["predictions"])
        np.testing.assert_allclose(
            clustering_accuracy(y, p.argmax(axis=1)), case["accuracy"], rtol=1e-10
        )
        if (match == case["match"]).all():
            np.testing.assert_allclose(
                top_k_clustering_accuracy(y, p), case["accuracy_top5"], rtol=1e-10
            )
        np.testing.assert_allclose(
            top_k_clustering_accuracy(y, p, k=1), case["accuracy"], rtol=1e-10
        )


def test_knn_weighted_golden():
    for case in cases("knn_weighted"):
        scores = knn_scores(
            case["train"],
            case["train_labels"],
            case["test"],
            k=int(case["k"]),
            temperature=float(case["temperature"]),
            n_classes=int(case["n_classes"]),
            block_size=7,
        )
        np.testing.assert_allclose(scores, case["score"], rtol=1e-8)
        found = scores.argmax(axis=1)
        for row, expected in enumerate(case["prediction"]):
            assert_same_ranking([found[row]], [expected], case["score"][row])
        accuracy = knn_accuracy(
            case["train"],
            case["train_labels"],
            case["test"],
            found,
            k=int(case["k"]),
            temperature=float(case["temperature"]),
        )
        assert accuracy == 1.0


def best_by_hand(y, c):
    """Try every one-to-one renaming of up to 4 clusters."""
    names = list(range(4))
    return max(
        np.mean([p[ci] == yi for yi, ci in zip(y, c)]) for p in permutations(names)
    )


labels = arrays(np.int64, 12, elements=st.integers(0, 3))


@given(labels, labels)
def test_clustering_accuracy_is_the_best_renaming(y, c):
    assert clustering_accuracy(y, c) == pytest.approx(best_by_hand(y, c))


@given(labels, labels)
def test_clustering_scores_do_not_see_names_or_order(y, c):
    order = np.random.default_rng(0).permutation(len(y))
    names = np.array([7, 2, 9, 4])
    words = np.array(["x", "b", "k", "a"], dtype=object)
    for score in (clustering_accuracy, many_to_one_accuracy):
        assert score(words[y][order], names[c][order]) == score(y, c)
    assert clustering_accuracy(y, c) <= many_to_one_accuracy(y, c)
    assert clustering_accuracy(y, y) == 1.0


def test_unlabeled_rows_are_left_out_and_no_cluster_is_wrong():
    assert clustering_accuracy([0, 0, 1, -1], [5, 5, 6, 6]) == 1.0
    assert clustering_accuracy([0, 0, 1, 1], [5, 5, -1, -1]) == 0.5
    assert many_to_one_accuracy([0, 0, 1, 1], [5, 5, -1, -1]) == 0.5
    assert many_to_one_accuracy([0, 1], [-1, -1]) == 0.0
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.8, 0.2]])
    assert top_k_clustering_accuracy([0, 1, -1], p, k=1) == 1.0


def test_clustering_errors():
    with pytest.raises(ValueError, match="same length, got 2 and 3"):
        clustering_accuracy([0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="no labeled row"):
        hungarian_match([-1, -1], [0, 1])
    with pytest.raises(ValueError, match="k=0 must be an integer of at least 1"):
        top_k_clustering_accuracy([0, 1], np.eye(2), k=0)


def test_knn_scores_by_a_slow_loop():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(30, 4)), rng.normal(size=(9, 4))
    codes = rng.integers(-1, 3, size=30)
    expected = np.zeros((9, 3))
    for i, z in enumerate(test):
        cosines = [
            (t @ z / np.linalg.norm(t) / np.linalg.norm(z), c)
            for t, c in zip(train, codes)
            if c >= 0
        ]
        for cosine, c in sorted(cosines, reverse=True)[:6]:
            expected[i, c] += np.exp(cosine / 0.2)
    np.testing.assert_allclose(
        knn_scores(train, codes, test, k=6, temperature=0.2), expected, rtol=1e-10
    )
    scaled = knn_scores(3 * train, codes, 5 * test, k=6, temperature=0.2)
    np.testing.assert_allclose(scaled, expected, rtol=1e-10)


def test_knn_scores_stay_finite_at_tiny_temperatures():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(30, 4)), rng.normal(size=(9, 4))
    codes = rng.integers(0, 3, size=30)
    for dtype in (np.float32, np.float64):
        scores = knn_scores(
            train.astype(dtype), codes, test.astype(dtype), temperature=1e-3
        )
        assert np.isfinite(scores).all()
    one = KNeighborsClassifier(1, metric="cosine").fit(train, codes).predict(test)
    assert (scores.argmax(axis=1) == one).all()


def test_knn_accuracy_on_digits():
    X, y = load_digits(return_X_y=True)
    assert knn_accuracy(X[:1000], y[:1000], X[1000:], y[1000:], k=5) > 0.9
    names = np.array(list("abcdefghij"), dtype=object)[y]
    names[::2] = None
    assert knn_accuracy(X[:1000], names[:1000], X[1000:], names[1000:], k=5) > 0.85
    shuffled = np.random.default_rng(0).permutation(y[:1000])
    assert knn_accuracy(X[:1000], shuffled, X[1000:], y[1000:]) < 0.25


def test_knn_class_unknown_in_training_is_missed():
    Z = np.eye(3)
    assert knn_accuracy(Z[:2], [0, 1], Z, [0, 1, 2], k=1) == pytest.approx(2 / 3)


def test_knn_errors():
    Z = np.eye(3)
    with pytest.raises(ValueError, match="No training row has a label"):
        knn_accuracy(Z, [-1, -1, -1], Z, [0, 1, 2])
    with pytest.raises(ValueError, match="y_test has no labeled row"):
        knn_accuracy(Z, [0, 1, 2], Z, [-1, -1, -1])
    with pytest.raises(ValueError, match="k=0 must be an integer of at least 1"):
        knn_accuracy(Z, [0, 1, 2], Z, [0, 1, 2], k=0)
    with pytest.raises(
        ValueError, match="temperature=0 must be a finite number above 0"
    ):
        knn_accuracy(Z, [0, 1, 2], Z, [0, 1, 2], temperature=0)
    for train, test in ((None, Z), (Z, None)):
        with pytest.raises(ValueError, match=r"Embeddings must have shape \(n, D\)"):
            knn_accuracy(train, [0, 1, 2], test, [0, 1, 2])
    with pytest.raises(ValueError, match="3 rows, but there are 2 labels"):
        knn_accuracy(Z, [0, 1], Z, [0, 1, 2])
    with pytest.raises(ValueError, match="3 rows, but y_test has 2"):
        knn_accuracy(Z, [0, 1, 2], Z, [0, 1])
    with pytest.raises(ValueError, match=r"shape \(n, D\)"):
        knn_scores(Z[0], [0], Z)


def test_selection_scores_by_hand():
    assert class_coverage([0, 0, 3], [0, 1, 2, 3]) == 0.5
    assert class_coverage([], [0, 1]) == 0.0
    assert class_balance([], [0, 1]) == 0.0
    assert class_balance([1, 1, 1], [0, 1]) == 0.0
    assert class_balance(["a", "b"], ["a", "b"]) == 1.0
    assert class_balance([0, -1], [0]) == 1.0
    quarter = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / np.log(2)
    assert class_balance([0, 1, 1, 1], [0, 1]) == pytest.approx(quarter)
    with pytest.raises(ValueError, match=r"not among the classes: \[4\]"):
        class_coverage([4], [0, 1])
    with pytest.raises(ValueError, match="classes is empty"):
        class_balance([], [])


@given(labels)
def test_selection_scores_stay_in_range(y):
    assert 0 < class_coverage(y, range(4)) <= 1
    assert 0 <= class_balance(y, range(4)) <= 1
    assert (class_balance(y, range(4)) == 0) == (len(np.unique(y)) == 1)


def test_feature_std_of_a_sphere_and_of_a_collapse():
    h = torch.randn(4000, 32)
    assert float(feature_std(h)) == pytest.approx(1, abs=0.01)
    lengths = torch.rand(4000, 1) + 0.5
    torch.testing.assert_close(feature_std(h * lengths), feature_std(h))
    assert float(feature_std(torch.ones(50, 8) * lengths[:50])) < 1e-3
    assert float(feature_std(h[:1])) == 0
    assert float(feature_std(torch.zeros(5, 3))) == 0
    near = torch.ones(500, 32) + 0.1 * torch.randn(500, 32)
    assert 0.05 < float(feature_std(near)) < 0.2


def test_effective_rank_counts_directions():
    for rank in (1, 3, 8):
        q = torch.linalg.qr(torch.randn(20, rank, dtype=torch.float64))[0]
        h = q @ torch.linalg.qr(torch.randn(8, rank, dtype=torch.float64))[0].T
        assert float(effective_rank(h)) == pytest.approx(rank)
    assert float(effective_rank(torch.zeros(4, 3))) == 0
    assert float(effective_rank(torch.ones(64, 16))) == pytest.approx(1, abs=1e-3)
    s = torch.tensor([3.0, 1.0])
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert float(effective_rank(torch.diag(s))) == pytest.approx(expected, rel=1e-5)


def test_collapse_scores_take_half_precision_and_gradients():
    h = torch.randn(16, 4).bfloat16().requires_grad_()
    for score in (feature_std, effective_rank):
        value = score(h)
        assert value.dtype == torch.float32 and not value.requires_grad
        with pytest.raises(ValueError, match=r"shape \(B, D\)"):
            score(torch.zeros(3))


@given(
    arrays(
        np.float32,
        (9, 4),
        elements=st.floats(-100, 100, width=32, allow_subnormal=False),
    )
)
def test_collapse_scores_stay_in_range(h):
    h = torch.from_numpy(h)
    assert 0 <= float(feature_std(h)) <= 1 + 1e-4
    rank = float(effective_rank(h))
    assert rank == 0 or 1 - 1e-3 <= rank <= 4 + 1e-3


def test_calibration_error_by_hand():
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [1.0, 0.0]])
    # bins 0.9: half right; 0.6: right; 0.7: wrong; 1.0: right
    expected = (2 * abs(0.5 - 0.9) + abs(1 - 0.6) + 0.7 + 0) / 5
    found = expected_calibration_error([0, 1, 1, 1, 0], p)
    np.testing.assert_allclose(found, expected)


@given(seed=st.integers(0, 99), n_bins=st.integers(1, 40))
def test_calibration_error_has_bounds(seed, n_bins):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(4), 50)
    y = rng.integers(0, 4, 50)
    assert 0 <= expected_calibration_error(y, p, n_bins) <= 1
    one_bin = abs((p.argmax(1) == y).mean() - p.max(1).mean())
    np.testing.assert_allclose(expected_calibration_error(y, p, 1), one_bin)


def test_calibration_error_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(2,\)"):
        expected_calibration_error([0, 1], np.ones((3, 2)) / 2)


def test_calibration_error_refuses_what_it_cannot_count():
    p = np.array([[0.5, 0.5], [np.nan, np.nan]])
    with pytest.raises(ValueError, match="Row 1 of probabilities is NaN"):
        expected_calibration_error([0, 1], p)
    with pytest.raises(ValueError, match="but column numbers are needed: give np"):
        expected_calibration_error(["a", "b"], p[[0, 0]])
