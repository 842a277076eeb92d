"""Tests of BADGE."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklabel._core.nested import hidden_features
from sklabel.classification import FixMatchClassifier, SupervisedClassifier
from sklabel.selection._badge import (
    BADGESelector,
    choose_plus_plus,
    gradient_distances,
    gradient_norms,
    gradient_residuals,
)
from tests._golden import assert_same_ranking, cases


class _Says(ClassifierMixin, BaseEstimator):
    """A classifier whose last features of X are the logits it answers with."""

    def __init__(self, n_classes=3, scale=1.0):
        self.n_classes = n_classes
        self.scale = scale

    def fit(self, X, y=None):
        self.classes_ = np.arange(self.n_classes)
        return self

    def predict_proba(self, X):
        logits = self.scale * np.resize(X, (len(X), self.n_classes)).astype(np.float64)
        p = np.exp(logits - logits.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)


class _Knows(_Says):
    """Always answers with what it was given."""

    def __init__(self, p):
        self.p = p

    def fit(self, X, y=None):
        self.classes_ = np.arange(self.p.shape[1])
        return self

    def predict_proba(self, X):
        return self.p


def frozen(classifier):
    return FrozenEstimator(classifier.fit(None))


@pytest.fixture(scope="module")
def digits():
    X, target = load_digits(return_X_y=True)
    X = (X[:200] / 16).astype(np.float32)
    return X, np.where(np.arange(200) < 40, target[:200], -1), target[:200]


def explicit(probabilities, features):
    residuals = probabilities - np.eye(probabilities.shape[1])[probabilities.argmax(1)]
    return (residuals[:, :, None] * features[:, None]).reshape(len(features), -1)


# -- the functions


def test_golden_parts():
    for case in cases("badge_parts"):
        p, h = case["probs"], case["embedding"]
        residuals = gradient_residuals(p)
        first = np.einsum("ic,id->icd", residuals[:10], h[:10])
        expected = case["gradient_embedding_first10"].reshape(first.shape)
        np.testing.assert_allclose(first, expected, rtol=1e-8)
        norms = gradient_norms(residuals, h)
        np.testing.assert_allclose(norms**2, case["gradient_norm_sq"], rtol=1e-8)
        expected = [int(case["first_index"])]
        row = choose_plus_plus(residuals, h, 1)
        assert_same_ranking(row, expected, case["gradient_norm_sq"])
        squared = gradient_distances(residuals, h, norms**2, expected[0])
        np.testing.assert_allclose(
            np.sqrt(squared), case["dist_to_first"], rtol=1e-8, atol=1e-12
        )
        np.testing.assert_allclose(
            squared / squared.sum(), case["next_probability"], rtol=1e-8, atol=1e-12
        )
        selector = BADGESelector(1, classifier=frozen(_Knows(p))).fit(h)
        row = selector.sample_indices_
        assert_same_ranking(row, expected, case["gradient_norm_sq"])
        np.testing.assert_allclose(
            selector.scores_**2, case["gradient_norm_sq"], rtol=1e-5
        )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 12),
    n_classes=st.integers(1, 5),
    n_features=st.integers(1, 6),
    near=st.sampled_from([0, 1e-7, 1e-3, 1]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_distances_equal_explicit_ones(seed, n, n_classes, n_features, near, dtype):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(n_classes) / 2, size=1) + near * rng.dirichlet(
        np.ones(n_classes), size=n
    )
    p /= p.sum(1, keepdims=True)
    h = (
        rng.normal(size=(1, n_features)) + near * rng.normal(size=(n, n_features))
    ).astype(dtype)
    g = explicit(p, h.astype(np.float64))
    residuals = gradient_residuals(p)
    norms = gradient_norms(residuals, h)
    np.testing.assert_allclose(norms, np.linalg.norm(g, axis=1), rtol=1e-6, atol=1e-30)
    for row in range(n):
        want = ((g - g[row]) ** 2).sum(1)
        found = gradient_distances(residuals, h, norms**2, row)
        assert found[row] == 0 and (found >= 0).all()
        # the explicit differences lose digits themselves
        scale = np.abs(g).max() ** 2
        rtol = 1e-3 if dtype == np.float32 else 1e-6
        np.testing.assert_allclose(found, want, rtol=rtol, atol=1e-15 * scale)


def test_draws_follow_the_squared_distances():
    rng = np.random.default_rng(0)
    p, h = rng.dirichlet(np.ones(3), size=6), rng.normal(size=(6, 4))
    residuals = gradient_residuals(p)
    g = explicit(p, h)
    first = np.linalg.norm(g, axis=1).argmax()
    weights = ((g - g[first]) ** 2).sum(1)
    draws = np.array([choose_plus_plus(residuals, h, 3, seed) for seed in range(4000)])
    assert (draws[:, 0] == first).all()
    counts = np.bincount(draws[:, 1], minlength=6)
    # the seeds are fixed; 5 standard deviations of a binomial
    share = weights / weights.sum()
    limit = 5 * np.sqrt(4000 * share * (1 - share))
    assert (abs(counts - 4000 * share) <= limit).all()
    second = counts.argmax()
    thirds = draws[draws[:, 1] == second, 2]
    weights = np.minimum(weights, ((g - g[second]) ** 2).sum(1))
    share = weights / weights.sum()
    limit = 5 * np.sqrt(len(thirds) * share * (1 - share))
    counts = np.bincount(thirds, minlength=6)
    assert (abs(counts - len(thirds) * share) <= limit).all()


def test_copies_come_last_and_in_order():
    p = np.repeat([[0.5, 0.5], [0.8, 0.2], [1, 0]], 4, axis=0)
    h = np.repeat([[1.0, 2], [3, 1], [5, 5]], 4, axis=0).astype(np.float32)
    residuals = gradient_residuals(p)
    for seed in range(20):
        chosen = choose_plus_plus(residuals, h, 12, seed)
        assert sorted(chosen.tolist()) == list(range(12))
        # three different gradients, then what is left by number
        assert sorted((chosen[:3] // 4).tolist()) == [0, 1, 2]
        assert (np.diff(chosen[3:]) > 0).all()
    assert choose_plus_plus(residuals, h, 1)[0] == 0  # the first of the longest


def test_zero_gradients():
    p, h = np.eye(4)[[0, 1, 2, 3, 0]], np.ones((5, 2), np.float32)
    residuals = gradient_residuals(p)
    assert not residuals.any()
    np.testing.assert_array_equal(choose_plus_plus(residuals, h, 5), np.arange(5))
    h[:] = 0
    residuals = gradient_residuals(np.full((5, 4), 0.25))
    np.testing.assert_array_equal(choose_plus_plus(residuals, h, 3), np.arange(3))


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 1e37])
def test_large_and_small_features(scale):
    rng = np.random.default_rng(0)
    residuals = gradient_residuals(rng.dirichlet(np.ones(3), size=30))
    h = rng.normal(size=(30, 4)).astype(np.float32)
    want = choose_plus_plus(residuals, h, 10, 0)
    found = choose_plus_plus(residuals, h * np.float32(scale), 10, 0)
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("draw", [0.0, 1.0])
def test_the_ends_of_a_draw_take_rows_with_a_distance(draw):
    class Fixed(np.random.RandomState):
        def random_sample(self):
            return draw

    p = np.array([[0.5, 0.5], [0.6, 0.4], [0.5, 0.5]])
    h = np.array([[2.0], [1], [2]])
    chosen = choose_plus_plus(gradient_residuals(p), h, 2, Fixed(0))
    assert chosen.tolist() == [0, 1]


# -- the selector


def test_choices_are_unsure_and_unlike(digits):
    X, y, _ = digits
    selector = BADGESelector(20, random_state=0).fit(X, y)
    rows = selector.sample_indices_
    assert (y[rows] == -1).all() and len(set(rows.tolist())) == 20
    assert (selector.scores_[y != -1] == -np.inf).all()
    assert rows[0] == selector.scores_.argmax()
    open_scores = selector.scores_[y == -1]
    assert (open_scores > 0).all()
    assert selector.scores_[rows].mean() > open_scores.mean()
    p = selector.classifier_.predict_proba(X)
    g = explicit(p, X)
    np.testing.assert_allclose(
        open_scores, np.linalg.norm(g, axis=1)[y == -1], rtol=1e-5
    )
    with pytest.raises(ValueError, match="only 160 of the 200 rows"):
        BADGESelector(161).fit(X, y)


def test_what_it_was_taught_comes_from_the_labeled_rows(digits):
    X, y, _ = digits
    selector = BADGESelector(5, random_state=0).fit(X, y)
    known = y != -1
    by_hand = LogisticRegression(max_iter=1000).fit(X[known], y[known])
    np.testing.assert_allclose(selector.classifier_.coef_, by_hand.coef_, rtol=1e-5)


def test_without_labels(digits):
    X, _, target = digits
    for unlabeled in (None, np.full(len(X), -1)):
        with pytest.raises(ValueError, match="BADGESelector needs labels"):
            BADGESelector(5).fit(X, unlabeled)
    classifier = LogisticRegression(max_iter=1000).fit(X, target)
    selector = BADGESelector(5, classifier=FrozenEstimator(classifier))
    assert len(selector.fit_select(X)) == 5
    assert len(selector.fit_select(X, np.full(len(X), -1))) == 5


def test_every_row_is_labeled(digits):
    X, _, target = digits
    selector = BADGESelector().fit(X, target)
    assert len(selector.sample_indices_) == 0
    assert (selector.scores_ == -np.inf).all()
    assert not hasattr(selector, "classifier_")


def test_string_labels(digits):
    X, y, _ = digits
    names = np.array([None if label == -1 else f"digit {label}" for label in y], object)
    want = BADGESelector(10, random_state=3).fit_select(X, y)
    found = BADGESelector(10, random_state=3).fit_select(X, names)
    np.testing.assert_array_equal(found, want)


def test_same_seed_same_choice_clone_and_pickle(digits):
    X, y, _ = digits
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    selector = BADGESelector(15, random_state=1).fit(X, y)
    again = clone(selector).fit(X, y)
    np.testing.assert_array_equal(again.sample_indices_, selector.sample_indices_)
    np.testing.assert_array_equal(again.scores_, selector.scores_)
    other = clone(selector).set_params(random_state=2).fit_select(X, y)
    assert other.tolist() != selector.sample_indices_.tolist()
    kept = pickle.loads(pickle.dumps(selector))
    np.testing.assert_array_equal(kept.sample_indices_, selector.sample_indices_)
    np.testing.assert_array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])


def test_pipelines_around_and_inside(digits):
    X, y, _ = digits
    scaled = StandardScaler().fit_transform(X)
    want = BADGESelector(8, random_state=0).fit_select(scaled, y)
    around = make_pipeline(StandardScaler(), BADGESelector(8, random_state=0)).fit(X, y)
    np.testing.assert_array_equal(around[-1].sample_indices_, want)
    scaler = StandardScaler().fit(X)
    inside = make_pipeline(FrozenEstimator(scaler), LogisticRegression(max_iter=1000))
    found = BADGESelector(8, classifier=inside, random_state=0).fit_select(X, y)
    np.testing.assert_array_equal(found, want)


def test_searches_are_looked_into(digits):
    X, y, _ = digits
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": [0.1, 1]},
        cv=2,
    )
    selector = BADGESelector(3, classifier=search, random_state=0).fit(X, y)
    Z = hidden_features(selector.classifier_, X)
    scaler = selector.classifier_.best_estimator_[0]
    np.testing.assert_allclose(Z, scaler.transform(X), rtol=1e-6)


def test_a_supervised_classifier_on_images(digits):
    X, y, _ = digits
    images = (X.reshape(-1, 8, 8) * 255).astype(np.uint8)
    classifier = SupervisedClassifier(max_steps=5, random_state=0)
    selector = BADGESelector(10, classifier=classifier, random_state=0).fit(images, y)
    rows = selector.sample_indices_
    assert len(set(rows.tolist())) == 10 and (y[rows] == -1).all()
    assert not hasattr(selector, "assignments_") and selector.n_features_in_ == 64
    fitted = selector.classifier_
    h = hidden_features(fitted, images)
    assert h.shape == (200, fitted.encoder_.n_features_out) and h.dtype == np.float32
    # the features are those that the last layer turns into the probabilities
    with torch.inference_mode(), fitted.net_.autocast():
        head = fitted.net_.module_.head
        p = head(torch.from_numpy(h).to(fitted.net_.device)).float().softmax(1).cpu()
    np.testing.assert_allclose(p, fitted.predict_proba(images), atol=1e-5)
    g = explicit(fitted.predict_proba(images), h)
    want = np.linalg.norm(g, axis=1)[y == -1]
    np.testing.assert_allclose(selector.scores_[y == -1], want, rtol=1e-4, atol=1e-6)
    again = clone(selector).fit(images, y)
    np.testing.assert_array_equal(again.sample_indices_, rows)
    held = BADGESelector(10, classifier=FrozenEstimator(fitted), random_state=0)
    np.testing.assert_array_equal(held.fit_select(images, y), rows)


def test_a_classifier_without_a_seed_is_given_one(digits):
    X, y, _ = digits
    classifier = make_pipeline(StandardScaler(), SupervisedClassifier(max_steps=2))
    selector = BADGESelector(5, classifier=classifier, random_state=0).fit(X, y)
    again = clone(selector).fit(X, y)
    np.testing.assert_array_equal(again.scores_, selector.scores_)
    other = clone(selector).set_params(random_state=1).fit(X, y)
    assert (other.scores_ != selector.scores_).any()
    assert selector.classifier is classifier
    assert classifier[-1].random_state is None


@pytest.mark.filterwarnings("ignore::sklabel.CollapseWarning")
def test_a_classifier_that_knows_unlabeled_rows(digits):
    X, y, _ = digits
    classifier = FixMatchClassifier(max_steps=3, batch_size=8, random_state=0)
    selector = BADGESelector(4, classifier=classifier, random_state=0).fit(X, y)
    assert len(selector.classifier_.transduction_) == len(X)
    assert selector.assignments_.shape == (200,)


def test_files_that_cannot_be_read_are_not_chosen():
    p = np.array([[0.5, 0.5], [np.nan, np.nan], [0.9, 0.1], [0.8, 0.2]])
    X, y = np.eye(4, dtype=np.float32), np.array([-1, -1, -1, 1])
    selector = BADGESelector(2, classifier=frozen(_Knows(p))).fit(X, y)
    assert sorted(selector.sample_indices_.tolist()) == [0, 2]
    assert selector.scores_[1] == -np.inf
    with pytest.raises(ValueError, match="leaves 2 unlabeled rows"):
        clone(selector).set_params(n_samples=3).fit(X, y)


def test_images_need_a_classifier_for_images(digits):
    X, y, _ = digits
    images = X.reshape(-1, 8, 8)
    with pytest.raises(ValueError, match="embed the images first"):
        BADGESelector(5).fit(images, y)
    flat = FunctionTransformer(lambda x: np.reshape(x, (len(x), -1)))
    piped = make_pipeline(flat, LogisticRegression(max_iter=1000))
    rows = BADGESelector(5, classifier=piped, random_state=0).fit_select(images, y)
    want = BADGESelector(5, random_state=0).fit_select(X, y)
    np.testing.assert_array_equal(rows, want)
    p = np.full((200, 2), 0.5)
    with pytest.raises(ValueError, match="no features other than X"):
        BADGESelector(5, classifier=frozen(_Knows(p))).fit(images, y)
    with pytest.raises(ValueError, match="classifier' parameter"):
        BADGESelector(5, classifier="forest").fit(X, y)


@pytest.mark.parametrize("X", [np.full((12, 3), 2.5), np.zeros((12, 3))])
@pytest.mark.parametrize("n_samples", [1, 4, 12])
def test_equal_rows(X, n_samples):
    selector = BADGESelector(n_samples, classifier=frozen(_Says())).fit(X)
    assert selector.sample_indices_.tolist() == list(range(n_samples))
    assert np.isfinite(selector.scores_).all()
