"""Tests of MMA's choice beside MixMatch."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_distances
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklabel.augment import Weak
from sklabel.classification import SupervisedClassifier
from sklabel.selection._mma import (
    MEASURES,
    MMASelector,
    allocate,
    confidence,
    least_confident_of_clusters,
    mean_cosine_distance,
)
from tests._golden import assert_same_ranking, cases


class _Knows(ClassifierMixin, BaseEstimator):
    """Always answers with what it was given."""

    def __init__(self, p):
        self.p = p

    def fit(self, X, y=None):
        self.classes_ = np.arange(self.p.shape[1])
        return self

    def predict_proba(self, X):
        return self.p


def knows(p):
    return FrozenEstimator(_Knows(p).fit(None))


@pytest.fixture(scope="module")
def digits():
    X, target = load_digits(return_X_y=True)
    X = (X[:200] / 16).astype(np.float32)
    return X, np.where(np.arange(200) < 40, target[:200], -1), target[:200]


@pytest.fixture(scope="module")
def images(digits):
    X, y, _ = digits
    x = (X.reshape(-1, 8, 8) * 255).astype(np.uint8)
    classifier = SupervisedClassifier(max_steps=10, random_state=0)
    return x, y, classifier.fit(x[:40], y[:40])


SETTINGS = [
    {},
    {"measure": "least_confidence"},
    {"measure": "entropy"},
    {"measure": "std"},
    {"diversity": "kmeans"},
    {"diversity": "kmeans", "n_clusters": 3, "space": "input"},
    {"diversity": "density"},
    {"diversity": "density", "density": "distance", "measure": "entropy"},
    {"diversity": "density", "space": "input", "measure": "std"},
]
every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)


# -- the functions


def test_golden_query():
    names = {
        "max": "least_confidence",
        "std": "std",
        "entropy_neg": "entropy",
        "diff2": "margin",
    }
    for case in cases("mma_query"):
        views = case["probs_aug1"], (case["probs_aug1"] + case["probs_aug2"]) / 2
        for key, measure in names.items():
            for kind, p in zip(("direct", "aug"), views, strict=True):
                np.testing.assert_allclose(
                    confidence(p, measure),
                    case[f"{key}_{kind}"],
                    rtol=1e-9,
                    atol=1e-15,
                )
        Z, n = case["embedding"], int(case["grow_size"])
        distances = mean_cosine_distance(Z)
        np.testing.assert_allclose(distances, case["mean_cosine_distance"], rtol=1e-9)
        found = (1 - confidence(views[1])) * distances
        np.testing.assert_allclose(found, case["info_density"], rtol=1e-9)

        clusters = case["cluster_labels"]
        counts = allocate(np.bincount(clusters), n, 0)
        # rows to make up the number are drawn at random, so they are not stored
        n_drawn = n - case["alloc_after_trim"].sum()
        assert bool(case["alloc_needs_random_topup"]) == (n_drawn > 0)
        assert (counts - case["alloc_after_trim"]).sum() == n_drawn
        assert (counts >= case["alloc_after_trim"]).all()
        if not n_drawn:
            chosen = least_confident_of_clusters(confidence(views[1]), clusters, n)
            np.testing.assert_array_equal(chosen, case["selected_kmeanprop"])

        held = knows(views[1])
        direct = MMASelector(n, classifier=held).fit(Z)
        rows = direct.sample_indices_
        expected = case["selected_direct_sorted"]
        expected = expected[np.argsort(case["diff2_aug"][expected], kind="stable")]
        assert_same_ranking(rows, expected, case["diff2_aug"])
        np.testing.assert_allclose(direct.scores_, 1 - case["diff2_aug"], rtol=1e-9)
        dense = MMASelector(n, classifier=held, diversity="density", density="distance")
        rows = dense.fit_select(Z)
        expected = case["selected_id_sorted"]
        expected = expected[np.argsort(-case["info_density"][expected], kind="stable")]
        assert_same_ranking(rows, expected, case["info_density"], atol=1e-5)
        np.testing.assert_allclose(dense.scores_, case["info_density"], rtol=1e-5)


def test_confidence_at_its_ends():
    p = np.array([[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    for measure, sure, unsure in (
        ("margin", 1, 0),
        ("least_confidence", 1, 1 / 3),
        ("entropy", 0, -np.log(3)),
        ("std", np.sqrt(2) / 3, 0),
    ):
        np.testing.assert_allclose(
            confidence(p, measure), [sure, unsure], atol=1e-12, err_msg=measure
        )
        assert np.isfinite(confidence(np.ones((2, 1)), measure)).all()
    with pytest.raises(ValueError, match="measure='luck' is"):
        confidence(p, "luck")


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(any),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_clusters_give_in_proportion(sizes, share, seed):
    sizes = np.array(sizes)
    n = max(1, int(share * sizes.sum()))
    counts = allocate(sizes, n, seed)
    assert counts.sum() == n and (counts >= 0).all() and (counts <= sizes).all()
    # half a row for the rounding, and what it left over or took too much
    spare = abs(np.rint(n * (sizes / sizes.sum())).sum() - n)
    assert (abs(counts - n * sizes / sizes.sum()) <= 0.5 + spare + 1e-9).all()


def test_what_is_left_over_is_drawn():
    drawn = [allocate([1, 1, 1, 1], 1, seed).argmax() for seed in range(40)]
    assert set(drawn) == {0, 1, 2, 3}
    assert (
        allocate([5, 5, 5, 5], 2, 0).tolist() == allocate([5, 5, 5, 5], 2, 0).tolist()
    )
    # 0.5 and 1.5 are rounded to even: 2 + 2 is one too many, the first gives way
    assert allocate([3, 3], 3).tolist() == [1, 2]


def test_least_confident_of_clusters_by_hand():
    c = np.array([0.9, 0.1, 0.1, 0.5, 0.2, 0.3])
    clusters = np.array([0, 0, 0, 2, 2, 2])
    assert least_confident_of_clusters(c, clusters, 4, 0).tolist() == [1, 2, 4, 5]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 20), d=st.integers(1, 5))
def test_mean_cosine_distance_equals_the_explicit_one(seed, n, d):
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, d)) * rng.integers(2, size=(n, 1))
    want = cosine_distances(Z).mean(axis=1)
    np.testing.assert_allclose(mean_cosine_distance(Z), want, atol=1e-12)


# -- the selector


@every_setting
def test_promises(digits, setting):
    X, y, _ = digits
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    for n_samples in (1, 20, 160):
        selector = MMASelector(n_samples, random_state=0, **setting).fit(X, y)
        rows = selector.sample_indices_
        assert len(set(rows.tolist())) == n_samples
        assert (y[rows] == -1).all()
        assert (selector.scores_[y != -1] == -np.inf).all()
        assert (selector.scores_[y == -1] >= 0).all()
        assert (np.diff(selector.scores_[rows]) <= 1e-12).all()
        again = clone(selector).fit(X, y)
        np.testing.assert_array_equal(again.sample_indices_, rows)
        np.testing.assert_array_equal(again.scores_, selector.scores_)
    kept = pickle.loads(pickle.dumps(selector))
    np.testing.assert_array_equal(kept.sample_indices_, rows)
    np.testing.assert_array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])
    with pytest.raises(ValueError, match="only 160 of the 200 rows"):
        MMASelector(161, **setting).fit(X, y)


@every_setting
def test_the_choice_by_hand(digits, setting):
    X, y, _ = digits
    selector = MMASelector(20, random_state=0, **setting).fit(X, y)
    p = selector.classifier_.predict_proba(X)[y == -1]
    measure = setting.get("measure", "margin")
    score = (0 if measure == "entropy" else 1) - confidence(p, measure)
    if setting.get("diversity") == "density":
        distances = cosine_distances(X[y == -1]).mean(axis=1)
        is_far = setting.get("density") == "distance"
        score *= distances if is_far else 1 - distances / 2
    found = selector.scores_[y == -1]
    np.testing.assert_allclose(found, score, rtol=1e-5, atol=1e-6)
    if setting.get("diversity") != "kmeans":
        least = selector.scores_[selector.support_].min()
        assert (selector.scores_[~selector.support_] <= least + 1e-12).all()


@every_setting
@pytest.mark.parametrize("n_samples", [1, 4, 12])
def test_equal_rows_and_certainty(setting, n_samples):
    for X in (np.full((12, 3), 2.5), np.zeros((12, 3))):
        for p in (np.eye(3)[np.zeros(12, int)], np.full((12, 3), 1 / 3)):
            selector = MMASelector(
                n_samples, classifier=knows(p), random_state=0, **setting
            ).fit(X)
            rows = selector.sample_indices_.tolist()
            assert rows == list(range(n_samples))
            assert np.isfinite(selector.scores_).all()


def test_clusters_spread_the_choice():
    rng = np.random.default_rng(0)
    X = np.repeat(50 * np.eye(4), 25, axis=0) + rng.normal(size=(100, 4))
    # the 25 rows of the first group are the least sure
    p = np.where(np.arange(100) < 25, 0.55, 0.95) + 0.04 * rng.random(100)
    held = knows(np.c_[p, 1 - p])
    direct = MMASelector(8, classifier=held).fit_select(X)
    assert (direct < 25).all()
    spread = MMASelector(8, classifier=held, diversity="kmeans", n_clusters=4)
    chosen = spread.set_params(random_state=0).fit_select(X)
    assert np.bincount(chosen // 25).tolist() == [2, 2, 2, 2]
    for group in range(4):
        rows = np.arange(25 * group, 25 * group + 25)
        want = rows[p[rows].argsort()[:2]]
        assert sorted(chosen[chosen // 25 == group].tolist()) == sorted(want.tolist())


def test_density_prefers_common_rows_and_its_distance_odd_ones():
    X = np.array([[1, 0.1 * i] for i in range(9)] + [[-1.0, -1]])
    held = knows(np.full((10, 2), 0.5))
    selector = MMASelector(1, classifier=held, diversity="density")
    assert selector.fit_select(X)[0] != 9
    assert selector.scores_.argmin() == 9
    assert selector.set_params(density="distance").fit_select(X)[0] == 9


def test_string_labels_and_frames(digits):
    import pandas as pd

    X, y, _ = digits
    names = np.array([None if label == -1 else f"digit {label}" for label in y], object)
    want = MMASelector(10).fit_select(X, y)
    np.testing.assert_array_equal(MMASelector(10).fit_select(X, names), want)
    frame = pd.DataFrame(X).rename(columns="pixel{}".format)
    held = FrozenEstimator(LogisticRegression(max_iter=1000).fit(frame[:40], y[:40]))
    selector = MMASelector(10, classifier=held).fit(frame, pd.Series(names))
    np.testing.assert_array_equal(selector.sample_indices_, want)
    assert selector.feature_names_in_[0] == "pixel0"


def test_without_labels_and_with_all(digits):
    X, _, target = digits
    for unlabeled in (None, np.full(len(X), -1)):
        with pytest.raises(ValueError, match="MMASelector needs labels"):
            MMASelector(5).fit(X, unlabeled)
    held = FrozenEstimator(LogisticRegression(max_iter=1000).fit(X, target))
    assert len(MMASelector(5, classifier=held).fit_select(X)) == 5
    selector = MMASelector().fit(X, target)
    assert len(selector.sample_indices_) == 0
    assert (selector.scores_ == -np.inf).all()


def test_pipelines_around_and_inside(digits):
    X, y, _ = digits
    scaled = StandardScaler().fit_transform(X)
    selector = MMASelector(8, diversity="kmeans", n_clusters=3, random_state=0)
    want = clone(selector).fit_select(scaled, y)
    around = make_pipeline(StandardScaler(), clone(selector)).fit(X, y)
    np.testing.assert_array_equal(around[-1].sample_indices_, want)
    scaler = FrozenEstimator(StandardScaler().fit(X))
    inside = make_pipeline(scaler, LogisticRegression(max_iter=1000))
    found = clone(selector).set_params(classifier=inside).fit_select(X, y)
    np.testing.assert_array_equal(found, want)


# -- views of images


class _Shifts(nn.Module):
    """Views that are known: the first is the image, the second its mirror, ..."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x if self.calls % 2 else x.flip(-1)


@every_setting
def test_a_supervised_classifier_on_images(images, setting):
    x, y, fitted = images
    held = FrozenEstimator(fitted)
    selector = MMASelector(10, classifier=held, random_state=0, **setting).fit(x, y)
    rows = selector.sample_indices_
    assert len(set(rows.tolist())) == 10 and (y[rows] == -1).all()
    assert not hasattr(selector, "assignments_") and selector.n_features_in_ == 64
    state = torch.get_rng_state()
    again = clone(selector).fit(x, y)
    np.testing.assert_array_equal(again.scores_, selector.scores_)
    assert torch.equal(torch.get_rng_state(), state)
    other = clone(selector).set_params(random_state=1).fit(x, y)
    assert (other.scores_ != selector.scores_).any()


def test_a_clone_of_the_classifier_is_fitted(images):
    x, y, fitted = images
    held = MMASelector(10, classifier=FrozenEstimator(fitted), random_state=0)
    fresh = MMASelector(10, classifier=clone(fitted), random_state=0).fit(x, y)
    assert fresh.classifier_ is not fitted
    assert fresh.sample_indices_.shape == held.fit_select(x, y).shape


def test_probabilities_are_averaged_over_views(images):
    x, y, fitted = images
    held = FrozenEstimator(fitted)
    plain = fitted.predict_proba(x)
    mirrored = fitted.predict_proba(np.ascontiguousarray(x[:, :, ::-1]))
    selector = MMASelector(5, classifier=held, augment=_Shifts(), n_views=2).fit(x, y)
    want = 1 - confidence((plain + mirrored) / 2)
    np.testing.assert_allclose(selector.scores_[40:], want[40:], atol=1e-5)
    assert selector.augment.calls == 0  # a copy was used
    for augment, n_views in ((None, 2), (nn.Sequential(), 1), (nn.Sequential(), 3)):
        selector.set_params(augment=augment, n_views=n_views).fit(x, y)
        want = 1 - confidence(plain)
        np.testing.assert_allclose(selector.scores_[40:], want[40:], atol=1e-5)
    selector.set_params(augment=Weak(flip=0, shift=0.2), n_views=2).fit(x, y)
    assert abs(selector.scores_[40:] - want[40:]).max() > 1e-3
    assert np.isfinite(selector.scores_[40:]).all()


def test_views_are_calibrated_as_predictions_are(images):
    x, y, fitted = images
    warm = pickle.loads(pickle.dumps(fitted))
    warm.calibration_temperature_ = 3.0
    selector = MMASelector(5, classifier=FrozenEstimator(warm), augment=nn.Identity())
    want = 1 - confidence(warm.predict_proba(x))
    np.testing.assert_allclose(selector.fit(x, y).scores_[40:], want[40:], atol=1e-5)


def test_vectors_have_no_views(digits):
    X, y, _ = digits
    classifier = SupervisedClassifier(max_steps=3, random_state=0)
    selector = MMASelector(5, classifier=classifier, random_state=0).fit(X, y)
    want = 1 - confidence(selector.classifier_.predict_proba(X))
    np.testing.assert_allclose(selector.scores_[40:], want[40:], rtol=1e-6)
    with pytest.raises(ValueError, match="makes views for sklabel's classifiers"):
        MMASelector(5, augment=Weak()).fit(X, y)


@pytest.mark.parametrize("space", ["features", "input"])
def test_paths_of_images(images, tmp_path, space):
    x, y, _ = images
    color = np.repeat(x[:60, :, :, None], 3, axis=3)
    paths = []
    for i, image in enumerate(color):
        paths.append(str(tmp_path / f"{i:02d}.png"))
        Image.fromarray(image).save(paths[-1])
    selector = MMASelector(
        5,
        classifier=SupervisedClassifier(max_steps=2, random_state=0),
        diversity="kmeans",
        n_clusters=3,
        space=space,
        random_state=0,
    )
    want = clone(selector).fit_select(color, y[:60])
    np.testing.assert_array_equal(selector.fit_select(paths, y[:60]), want)


def test_files_that_cannot_be_read_are_not_chosen(images, tmp_path):
    x, y, _ = images
    paths = [str(tmp_path / f"{i:02d}.png") for i in range(60)]
    for path, image in zip(paths, x, strict=False):
        Image.fromarray(image).save(path)
    (tmp_path / "50.png").write_bytes(b"no image")
    classifier = SupervisedClassifier(
        max_steps=2, image_size=8, on_error="skip", random_state=0
    )
    selector = MMASelector(19, classifier=classifier, random_state=0)
    with pytest.warns(UserWarning):
        rows = selector.fit_select(paths, y[:60])
    assert sorted(rows.tolist()) == [*range(40, 50), *range(51, 60)]
    assert selector.scores_[50] == -np.inf


@pytest.mark.parametrize(
    "wrong", [{"measure": "luck"}, {"n_views": 0}, {"diversity": "id"}]
)
def test_wrong_parameters(digits, wrong):
    X, y, _ = digits
    with pytest.raises(ValueError, match=f"'{next(iter(wrong))}' parameter"):
        MMASelector(5, **wrong).fit(X, y)


def test_the_measures_are_those_of_the_parameter():
    assert set(MEASURES) == {"margin", "least_confidence", "entropy", "std"}
