"""Tests of MaxHerding and UHerding: formulas written again, ties, what is nested."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklabel.classification import SupervisedClassifier
from sklabel.selection import (
    MaxHerdingSelector,
    UHerdingSelector,
    UncertaintySelector,
    _herding,
)
from sklabel.selection._herding import Coverage, herd, label_radius


def kernel_matrix(Z, sigma):
    """The kernel of all pairs, from their differences, in float64."""
    Z = np.asarray(Z, dtype=np.float64)
    return np.exp(-cdist(Z, Z, "sqeuclidean") / sigma**2)


def check_steps(Z, rows, sigma=1.0, labeled=(), weights=None, tolerance=1e-9):
    """Each row adds most to the coverage by those before it, after the formula.

    ``argmax over x of mean_n w_n max(0, k(x_n, x) - max_{s in S} k(x_n, s))``; a row
    within the tolerance of the best is one of the best. Returns the mean coverage after
    each step.
    """
    K = kernel_matrix(Z, sigma)
    w = np.ones(len(K)) if weights is None else weights
    S, coverage = list(labeled), []
    for row in rows:
        best_known = K[:, S].max(axis=1) if S else np.zeros(len(K))
        gain = (w[:, None] * np.maximum(0, K - best_known[:, None])).mean(axis=0)
        gain[S] = -1
        assert row not in S
        # near ties are one set, whose lowest number is taken
        ties = np.flatnonzero(gain >= gain.max() - tolerance)
        assert row in ties
        S.append(row)
        coverage.append(K[:, S].max(axis=1).mean())
    return coverage


def unit(X):
    X = np.asarray(X, dtype=np.float64)
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(lengths > 0, lengths, 1)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:400].astype(np.float32), y[:400]


# -- golden: the formulas, written again


@pytest.mark.parametrize("sigma", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("n_labeled", [0, 15])
def test_every_step_of_max_herding_is_the_formula(sigma, n_labeled, digits):
    X, y = digits
    known = np.random.default_rng(0).choice(400, n_labeled, replace=False)
    partly = np.full(400, -1)
    partly[known] = y[known]
    selector = MaxHerdingSelector(60, sigma=sigma).fit(X, partly)
    rows = selector.sample_indices_
    coverage = check_steps(unit(X), rows, sigma, known.tolist())
    np.testing.assert_allclose(selector.coverage_, coverage, rtol=1e-6)
    K = kernel_matrix(unit(X), sigma)
    start = K[:, known].max(axis=1, initial=0)
    density = np.maximum(0, K - start[:, None]).mean(axis=0)
    density[known] = -np.inf
    np.testing.assert_allclose(selector.scores_, density, atol=1e-6)


def test_every_step_without_normalization(digits):
    X = digits[0] / 16
    rows = MaxHerdingSelector(30, sigma=3, normalize=False).fit_select(X)
    check_steps(X, rows, 3)


def margin_weights(p, temperature, labeled):
    """U = 1 - (p1 - p2) of softmax(logits / T), 0 for labeled rows."""
    logits = np.log(p) / temperature
    q = np.exp(logits - logits.max(axis=1, keepdims=True))
    q /= q.sum(axis=1, keepdims=True)
    q.sort(axis=1)
    U = 1 - (q[:, -1] - q[:, -2])
    U[labeled] = 0
    return U


@pytest.mark.parametrize("rule", ["median", "least", 0.4])
@pytest.mark.parametrize("temperature", [1.0, 3.0, "auto"])
def test_every_step_of_uherding_is_the_formula(rule, temperature, digits):
    X, y = digits
    known = np.arange(40)
    partly = np.where(np.arange(400) < 40, y, -1)
    selector = UHerdingSelector(
        30, sigma=rule, temperature=temperature, random_state=0
    ).fit(X, partly)
    D = cdist(unit(X)[known], unit(X)[known]) + 9 * np.eye(40)
    sigma = {"median": np.median(D.min(axis=1)), "least": D.min()}.get(rule, rule)
    np.testing.assert_allclose(selector.sigma_, sigma, rtol=1e-4)
    if temperature != "auto":
        assert selector.temperature_ == temperature
    model = LogisticRegression(max_iter=1000).fit(X[known], y[known])
    U = margin_weights(model.predict_proba(X), selector.temperature_, known)
    check_steps(unit(X), selector.sample_indices_, selector.sigma_, known.tolist(), U)


@pytest.mark.parametrize(
    ("measure", "formula"),
    [
        ("entropy", lambda p: -(p * np.log(p)).sum(axis=1)),
        ("least_confidence", lambda p: 1 - p.max(axis=1)),
    ],
)
def test_other_measures_weigh_the_coverage(measure, formula, digits):
    X, y = digits
    model = LogisticRegression(max_iter=1000).fit(X[:40], y[:40])
    selector = UHerdingSelector(
        20, measure=measure, classifier=FrozenEstimator(model), temperature=1, sigma=0.5
    )
    rows = selector.fit_select(X)
    check_steps(unit(X), rows, 0.5, weights=formula(model.predict_proba(X)))


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.float32, st.tuples(st.integers(3, 40), st.integers(1, 4)),
           elements=st.floats(-4, 4, width=32)),
    st.sampled_from([0.05, 0.5, 1.0, 5.0]),
    st.integers(0, 3),
    st.data(),
)  # fmt: skip
def test_any_rows_and_weights(Z, sigma, n_known, data):
    n_known = min(n_known, len(Z) - 1)
    n_samples = data.draw(st.integers(1, len(Z) - n_known))
    weights = data.draw(
        arrays(np.float64, len(Z), elements=st.sampled_from([0.0, 0.3, 1.0]))
    )
    known = list(range(n_known))
    rows, _, coverage = herd(Z, n_samples, chosen=known, weights=weights, sigma=sigma)
    assert len(set(rows.tolist()) | set(known)) == n_samples + n_known
    np.testing.assert_allclose(
        coverage, check_steps(Z, rows, sigma, known, weights), atol=1e-9
    )


def test_close_rows_far_from_the_others():
    Z = np.zeros((17, 1), dtype=np.float32)
    Z[:2, 0] = -2.6835938, -2.7391012
    weights = np.zeros(17)
    weights[0] = 1
    rows, _, coverage = herd(Z, 3, weights=weights, sigma=0.05)
    assert rows[0] == 0
    np.testing.assert_allclose(coverage, check_steps(Z, rows, 0.05, (), weights))


# -- ties, copies, blocks


def test_of_equals_the_lowest_number_and_copies_last(digits):
    X = np.repeat(digits[0][:30], 3, axis=0)[np.random.default_rng(0).permutation(90)]
    rows = MaxHerdingSelector(90).fit_select(X)
    distinct = [tuple(X[row]) for row in rows[:30]]
    assert len(set(distinct)) == 30
    for row in rows[:30]:
        assert row == np.flatnonzero((X == X[row]).all(axis=1))[0]
    assert (np.diff(rows[30:]) > 0).all()


@pytest.mark.parametrize("size", [24, 1000])
def test_the_size_of_blocks_changes_nothing(size, digits, monkeypatch):
    X, _ = digits
    want = MaxHerdingSelector(25).fit(X)
    monkeypatch.setattr(_herding, "_BLOCK_VALUES", size * 100)
    monkeypatch.setattr(_herding, "_MANY_ROWS", size)
    monkeypatch.setattr(_herding, "_FEW_ROWS", max(1, size // 2))
    again = MaxHerdingSelector(25).fit(X)
    np.testing.assert_array_equal(again.sample_indices_, want.sample_indices_)
    np.testing.assert_allclose(again.scores_, want.scores_, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("n_features", [1, 20, 2000])
def test_single_precision_never_decides(scale, n_features):
    rng = np.random.default_rng(0)
    Z = rng.standard_normal((300, n_features)) * scale / n_features**0.5
    Z = (Z + 3 * scale).astype(np.float32)
    weights = rng.random(300)
    coverage = Coverage(Z, sigma=scale, weights=weights)
    coverage.add(np.arange(5))
    rows = np.arange(300)
    error = np.abs(coverage.gains(rows, torch.float32) - coverage.gains(rows)).max()
    assert 0 < error < coverage.single_error() < 1e-3


def test_few_gains_are_computed_again(digits, monkeypatch):
    X = np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32)
    looked_at = []
    gains = Coverage.gains

    def counting(self, rows, dtype=torch.float64):
        looked_at.append(len(rows))
        return gains(self, rows, dtype)

    monkeypatch.setattr(Coverage, "gains", counting)
    MaxHerdingSelector(50).fit(X)
    assert sum(looked_at) < 12 * 3000  # 50 * 3000 without bounds


# -- candidates


def test_candidates_are_drawn_and_all_rows_count(digits):
    X, _ = digits
    selector = MaxHerdingSelector(10, n_candidates=50, random_state=0).fit(X)
    drawn = np.flatnonzero(np.isfinite(selector.scores_))
    assert len(drawn) == 50 and np.isin(selector.sample_indices_, drawn).all()
    np.testing.assert_allclose(
        selector.scores_[drawn],
        kernel_matrix(unit(X), 1).mean(axis=0)[drawn],
        rtol=1e-5,
    )
    more = MaxHerdingSelector(60, n_candidates=50, random_state=0).fit(X)
    assert np.isfinite(more.scores_).sum() == 60


@pytest.mark.parametrize("n_candidates", [35_000, 100])
def test_ten_and_thirty_more_are_forty(n_candidates, digits):
    X, y = digits
    settings = {"n_candidates": n_candidates, "random_state": 0}
    forty = MaxHerdingSelector(40, **settings).fit_select(X)
    ten = MaxHerdingSelector(10, **settings).fit_select(X)
    partly = np.full(400, -1)
    partly[ten] = y[ten]
    thirty = MaxHerdingSelector(30, **settings).fit_select(X, partly)
    np.testing.assert_array_equal(np.concatenate([ten, thirty]), forty)


# -- UHerding: radius, temperature, classifiers


def test_radius_of_labeled_rows():
    Z = np.array([[0, 0], [3, 0], [3, 1], [0, 0], [10, 0]], dtype=np.float32)
    assert label_radius(Z, "least") == 1
    assert label_radius(Z, "median") == 2  # 3, 1, 1, 7
    assert label_radius(Z[:1]) == label_radius(Z[[0, 3]]) == label_radius(Z[:0]) == 1
    tiny = (Z * 1e-30).astype(np.float32)
    assert label_radius(tiny) == label_radius(tiny, "least") == 1


def test_the_radius_narrows_with_labels(digits):
    X, y = digits
    radii = [
        UHerdingSelector(5, random_state=0)
        .fit(X, np.where(np.arange(400) < n, y, -1))
        .sigma_
        for n in (10, 40, 300)
    ]
    assert radii[0] > radii[1] > radii[2]


def test_from_coverage_to_uncertainty_as_the_radius_narrows(digits):
    X, y = digits
    partly = np.where(np.arange(400) < 50, y, -1)
    settings = {"temperature": 1.0, "random_state": 0}

    def chosen(sigma):
        return set(UHerdingSelector(30, sigma=sigma, **settings).fit_select(X, partly))

    margin = set(UncertaintySelector("margin", 30).fit_select(X, partly))
    cover = set(MaxHerdingSelector(30, sigma=2).fit_select(X, partly))
    assert chosen(1e-3) == margin
    shared = [len(chosen(sigma) & margin) for sigma in (0.02, 0.3, 0.5)]
    assert shared[0] > shared[1] > shared[2]
    assert len(chosen(2.0) & cover) > len(margin & cover)


@pytest.mark.parametrize("y", [None, np.full(400, -1), np.r_[3, 3, np.full(398, -1)]])
def test_without_two_classes_it_is_max_herding(y, digits):
    X, _ = digits
    selector = UHerdingSelector(20, sigma=1.0, random_state=0).fit(X, y)
    np.testing.assert_array_equal(
        selector.sample_indices_, MaxHerdingSelector(20).fit_select(X, y)
    )
    assert selector.temperature_ == 1 and not hasattr(selector, "classifier_")


def test_a_classifier_that_is_sure_of_all_leaves_the_coverage(digits):
    X, y = digits

    class Sure(GaussianNB):
        def predict_proba(self, X):
            return np.eye(len(self.classes_))[np.zeros(len(X), int)]

    held = FrozenEstimator(Sure().fit(X, y))
    rows = UHerdingSelector(20, sigma=1.0, classifier=held).fit_select(X)
    np.testing.assert_array_equal(rows, MaxHerdingSelector(20).fit_select(X))


def test_the_temperature_is_that_of_labels_not_seen(digits):
    X, y = digits[0] / 16, digits[1]
    partly = np.where(np.arange(400) < 100, y, -1)
    too_sure = LogisticRegression(C=1e4, max_iter=2000)
    a = UHerdingSelector(5, classifier=too_sure, random_state=0).fit(X, partly)
    shy = LogisticRegression(C=1e-2, max_iter=2000)
    b = UHerdingSelector(5, classifier=shy, random_state=0).fit(X, partly)
    assert a.temperature_ > 1.2 and b.temperature_ < 0.97


@pytest.mark.parametrize(
    "classifier",
    [
        None,
        make_pipeline(StandardScaler(), LogisticRegression()),
        RandomForestClassifier(20),
        GaussianNB(),
        SupervisedClassifier(max_steps=3, backbone="auto"),
    ],
    ids=lambda c: type(c).__name__,
)
def test_any_classifier_also_frozen(classifier, digits):
    X, y = digits
    names = np.array([f"digit {k}" for k in y], dtype=object)
    names[40:] = None
    selector = UHerdingSelector(8, classifier=classifier, random_state=0)
    rows = selector.fit_select(X, names)
    assert len(set(rows.tolist())) == 8 and rows.min() >= 40
    if classifier is None:
        return
    held = FrozenEstimator(selector.classifier_)
    again = UHerdingSelector(8, classifier=held, random_state=0).fit(X, names)
    assert again.classifier_ is held
    assert again.sample_indices_.min() >= 40


def test_images_are_compared_by_the_features_of_the_classifier(digits):
    X, y = digits
    images = X.reshape(-1, 8, 8)
    partly = np.where(np.arange(400) < 60, y, -1)
    net = SupervisedClassifier(max_steps=5, random_state=0)
    selector = UHerdingSelector(6, classifier=net, temperature=1.0, random_state=0)
    rows = selector.fit_select(images, partly)
    assert len(set(rows.tolist())) == 6 and rows.min() >= 60
    assert not hasattr(selector, "assignments_")


def test_files_that_cannot_be_read_are_not_chosen(digits, tmp_path):
    images = (digits[0][:40] * 15).astype(np.uint8).reshape(-1, 8, 8)
    paths = []
    for i, image in enumerate(images):
        paths.append(str(tmp_path / f"{i:02d}.png"))
        Image.fromarray(image).save(paths[-1])
    for broken in (3, 30):
        (tmp_path / f"{broken:02d}.png").write_bytes(b"nothing")
    y = np.where(np.arange(40) < 20, digits[1][:40], -1)
    net = SupervisedClassifier(max_steps=2, on_error="skip", random_state=0)
    selector = UHerdingSelector(19, classifier=net, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = selector.fit_select(paths, y)
        assert sorted(rows) == [row for row in range(20, 40) if row != 30]
        assert selector.scores_[30] == -np.inf
        with pytest.raises(ValueError, match="replace the files"):
            selector.set_params(n_samples=20).fit(paths, y)


def test_better_than_entropy_from_few_labels(digits):
    X, y = load_digits(return_X_y=True)
    known = MaxHerdingSelector(10).fit_select(X)
    reached = {}
    for selector in (UHerdingSelector(30), UncertaintySelector("entropy", 30)):
        partly = np.full(len(y), -1)
        partly[known] = y[known]
        rows = selector.set_params(random_state=0).fit_select(X, partly)
        rows = np.concatenate([known, rows])
        model = LogisticRegression(max_iter=2000).fit(X[rows], y[rows])
        reached[type(selector).__name__] = model.score(X, y)
    assert reached["UHerdingSelector"] > reached["UncertaintySelector"] + 0.02
