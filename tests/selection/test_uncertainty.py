"""Uncertainty sampling: golden values, values by hand, and any classifier."""

import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading

from sklabel.classification import SupervisedClassifier
from sklabel.datasets import load_digit_images
from sklabel.selection._uncertainty import (
    UncertaintySelector,
    entropy,
    least_confidence,
    margin,
    variation_ratio,
)
from tests._golden import assert_same_ranking, cases
from tests._making import distributions

MEASURES = ["entropy", "margin", "least_confidence", "variation_ratio"]
GOLDEN = {
    "entropy": ("entropy_of_mean", 1),
    "margin": ("margin_of_mean", -1),
    "least_confidence": ("least_confidence_of_mean", 1),
    "variation_ratio": ("variation_ratio", 1),
}


class Told(ClassifierMixin, BaseEstimator):
    """A classifier whose probabilities are known beforehand; X holds row numbers."""

    def __init__(self, p=None):
        self.p = p

    def fit(self, X, y):
        return self

    def predict_proba(self, X):
        return self.p[np.asarray(X)[:, 0].astype(int)]

    def __sklearn_is_fitted__(self):
        return True


def numbered(n):
    return np.arange(n, dtype=float)[:, None]


def told(p):
    return FrozenEstimator(Told(np.asarray(p)))


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:300], np.where(np.arange(300) < 60, y[:300], -1)


@pytest.mark.parametrize("measure", MEASURES)
def test_golden_scores_and_order(measure):
    for case in cases("uncertainty_scores"):
        p = case["probs_mc"].mean(axis=0)
        key, sign = GOLDEN[measure]
        selector = UncertaintySelector(measure, len(p), classifier=told(p))
        selector.fit(numbered(len(p)))
        np.testing.assert_allclose(
            selector.scores_, sign * case[key], rtol=1e-6, atol=1e-9
        )
        order = case.get(f"order_{measure}")
        if order is not None:
            assert_same_ranking(selector.sample_indices_, order, case[key], atol=1e-9)
        np.testing.assert_allclose(
            variation_ratio(case["probs_mc"]), case["variation_ratio"], atol=1e-9
        )


def test_by_hand():
    p = [[0.5, 0.3, 0.2], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]]
    expected = -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2))
    np.testing.assert_allclose(entropy(p), [expected, 0, np.log(3)], atol=1e-15)
    np.testing.assert_allclose(margin(p), [0.2, 1, 0])
    np.testing.assert_allclose(least_confidence(p), [0.5, 0, 2 / 3])
    draws = [[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]]
    np.testing.assert_allclose(variation_ratio(draws), [1 / 3])
    one = np.ones((2, 1))
    assert entropy(one).tolist() == [0, 0] and margin(one).tolist() == [1, 1]
    assert not np.isnan(entropy([[-1e-17, 1 + 1e-16]])).any()


def test_measures_differ_where_they_should():
    p = [[0.5, 0.49, 0.01], [0.45, 0.275, 0.275], [0.9, 0.05, 0.05]]
    first = {
        m: UncertaintySelector(m, 1, classifier=told(p)).fit_select(numbered(3))[0]
        for m in MEASURES
    }
    assert first["margin"] == 0
    assert first["entropy"] == first["least_confidence"] == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6).flatmap(lambda k: distributions((5, k))))
def test_ranges(p):
    k = p.shape[1]
    assert (entropy(p) >= 0).all() and (entropy(p) <= np.log(k) + 1e-12).all()
    assert (margin(p) >= 0).all() and (margin(p) <= 1).all()
    assert (least_confidence(p) >= -1e-12).all()
    assert (least_confidence(p) <= 1 - 1 / k + 1e-12).all()
    reordered = p[:, ::-1]
    np.testing.assert_allclose(entropy(p), entropy(reordered), atol=1e-12)
    np.testing.assert_array_equal(margin(p), margin(reordered))


@pytest.mark.parametrize("measure", MEASURES)
def test_ties_go_to_the_lower_row(measure):
    p = np.tile([0.6, 0.4], (50, 1))
    p[::2] = [0.8, 0.2]
    rows = UncertaintySelector(measure, 30, classifier=told(p)).fit_select(numbered(50))
    assert rows.tolist() == [*range(1, 50, 2), *range(0, 10, 2)]


@pytest.mark.parametrize("measure", MEASURES)
def test_labeled_rows_are_never_chosen(measure, digits):
    X, y = digits
    selector = UncertaintySelector(measure, 240).fit(X, y)
    assert sorted(selector.sample_indices_.tolist()) == list(range(60, 300))
    assert (selector.scores_[:60] == -np.inf).all()
    assert np.isfinite(selector.scores_[60:]).all()
    assert selector.support_.sum() == 240
    assert selector.assignments_.shape == (300,)
    np.testing.assert_array_equal(
        selector.assignments_[selector.sample_indices_], np.arange(240)
    )
    with pytest.raises(ValueError, match="n_samples=241"):
        UncertaintySelector(measure, 241).fit(X, y)


def test_the_default_is_logistic_regression(digits):
    X, y = digits[0].astype(np.float32), digits[1]
    selector = UncertaintySelector(n_samples=5).fit(X, y)
    p = LogisticRegression(max_iter=1000).fit(X[:60], y[:60]).predict_proba(X)
    expected = 60 + np.argsort(-entropy(p[60:]), kind="stable")[:5]
    np.testing.assert_array_equal(selector.sample_indices_, expected)
    assert isinstance(selector.classifier_, LogisticRegression)


@pytest.mark.parametrize("y", [None, np.full(300, -1)])
def test_without_labels_there_is_an_error_that_helps(y, digits):
    with pytest.raises(ValueError, match=r"needs labels.*FrozenEstimator"):
        UncertaintySelector().fit(digits[0], y)


@pytest.mark.parametrize("y", [None, np.full(300, -1)])
def test_a_frozen_classifier_needs_no_labels(y, digits):
    X, known = digits
    classifier = FrozenEstimator(
        LogisticRegression(max_iter=1000).fit(X[:60], known[:60])
    )
    selector = UncertaintySelector(n_samples=7, classifier=classifier).fit(X, y)
    assert len(selector.sample_indices_) == 7
    assert selector.classifier_ is classifier
    assert selector.scores_.argmax() == selector.sample_indices_[0]


def test_nothing_is_left_to_ask(digits):
    selector = UncertaintySelector().fit(digits[0], np.zeros(300))
    assert selector.sample_indices_.shape == (0,)
    assert (selector.scores_ == -np.inf).all()
    assert not hasattr(selector, "classifier_")


def test_labels_of_any_kind(digits):
    X, y = digits
    expected = UncertaintySelector(n_samples=9).fit_select(X, y)
    names = np.array([f"class {k}" if k >= 0 else -1 for k in y], dtype=object)
    empty = np.array([k if k >= 0 else None for k in y], dtype=object)
    for given_y in (names, empty, pd.Series(names), names.tolist(), y.tolist()):
        found = UncertaintySelector(n_samples=9).fit_select(X, given_y)
        np.testing.assert_array_equal(found, expected)


def test_feature_names_reach_the_classifier(digits):
    X = pd.DataFrame(digits[0]).rename(columns="x{}".format)
    selector = UncertaintySelector(n_samples=3).fit(X, digits[1])
    assert selector.classifier_.feature_names_in_[0] == "x0"
    assert selector.feature_names_in_[-1] == "x63"


def test_a_classifier_that_learns_from_unlabeled_rows(digits):
    X, y = digits
    spreading = LabelSpreading(kernel="knn", max_iter=100)
    selector = UncertaintySelector(n_samples=4, classifier=spreading).fit(X, y)
    assert len(selector.classifier_.transduction_) == 300
    assert (selector.sample_indices_ >= 60).all()


def test_images_and_unreadable_files(tmp_path):
    images, target = load_digit_images(return_X_y=True)
    images = images[:60]
    y = np.where(np.arange(60) < 30, target[:60], -1)
    classifier = SupervisedClassifier(max_steps=5, random_state=0)
    selector = UncertaintySelector(n_samples=6, classifier=classifier).fit(images, y)
    assert (selector.sample_indices_ >= 30).all()
    assert np.isfinite(selector.scores_[30:]).all()
    assert not hasattr(selector, "assignments_")
    files = []
    for i, image in enumerate(np.asarray(images[:30], dtype=float)):
        files.append(str(tmp_path / f"{i:02d}.png"))
        unit = image.reshape(image.shape[:2]) / image.max()
        Image.fromarray((255 * unit).astype(np.uint8)).save(files[-1])
    (tmp_path / "29.png").write_bytes(b"no image")
    y = np.where(np.arange(30) < 25, target[:30], -1)
    classifier.set_params(on_error="skip")
    selector = UncertaintySelector(n_samples=4, classifier=classifier)
    with pytest.warns(UserWarning):
        selector.fit(files, y)
    assert sorted(selector.sample_indices_.tolist()) == [25, 26, 27, 28]
    assert selector.scores_[29] == -np.inf
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="but 1 of .* which leaves 4 unlabeled rows"),
    ):
        selector.set_params(n_samples=5).fit(files, y)


def test_same_seed_same_choice(digits):
    X, y = digits
    forest = RandomForestClassifier(10)
    state = np.random.get_state()[1].copy()
    first, second, third = (
        UncertaintySelector(n_samples=20, classifier=forest, random_state=s).fit(X, y)
        for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.scores_, second.scores_)
    assert (first.scores_ != third.scores_).any()
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert forest.random_state is None and not hasattr(forest, "estimators_")


def test_clone_pickle_and_pipeline(digits):
    X, y = digits
    selector = UncertaintySelector("margin", 5, classifier=LogisticRegression(C=0.1))
    again = pickle.loads(pickle.dumps(clone(selector).fit(X, y)))
    pipeline = make_pipeline(StandardScaler(), clone(selector)).fit(X, y)
    rows = clone(selector).fit_select(StandardScaler().fit_transform(X), y)
    np.testing.assert_array_equal(pipeline[-1].sample_indices_, rows)
    np.testing.assert_array_equal(again.sample_indices_, selector.fit_select(X, y))
    selector.set_params(classifier__C=2.0)
    assert selector.classifier.C == 2
