"""DFAL: DeepFool against slow loops, linear classifiers exactly, networks, the loop."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklabel.active_learning import ActiveLearningClassifier
from sklabel.classification import (
    EmbeddingClassifier,
    FixMatchClassifier,
    SupervisedClassifier,
)
from sklabel.ensemble import VotingClassifier
from sklabel.selection import DFALSelector
from sklabel.selection._dfal import deepfool, linear_steps


@pytest.fixture(scope="module")
def digits():
    X, target = load_digits(return_X_y=True)
    X = (X[:200] / 16).astype(np.float32)
    return X, np.where(np.arange(200) < 60, target[:200], -1), target[:200]


# -- the second implementation: one row at a time, with slopes worked out by hand


def slow_deepfool(W, b, V, c, x, n_classes, max_steps, overshoot):
    """The step of one row for f(x) = V tanh(W x + b) + c."""
    total = np.zeros_like(x)

    def network(z):
        h = np.tanh(W @ z + b)
        return V @ h + c, V @ ((1 - h**2)[:, None] * W)

    f, _ = network(x)
    order = np.argsort(-f, kind="stable")[:n_classes]
    own = order[0]
    for _ in range(max_steps):
        f, slopes = network(x + (1 + overshoot) * total)
        if f.argmax() != own:
            break
        best, step = np.inf, None
        for k in order[1:]:
            w = slopes[k] - slopes[own]
            size = np.sqrt((w**2).sum())
            length = (f[own] - f[k]) / size if size else np.inf
            if length < best:
                best, step = length, length * w / size
        if step is None:  # far out it is flat
            return np.full_like(x, np.inf)
        total = total + step * (1 + 1e-4 / best)
    return total


@pytest.mark.parametrize("n_classes, max_steps", [(5, 50), (3, 50), (5, 1), (5, 2)])
def test_deepfool_equals_slow_loops(n_classes, max_steps):
    rng = np.random.default_rng(0)
    W, b = 2 * rng.standard_normal((7, 4)), rng.standard_normal(7)
    V, c = rng.standard_normal((5, 7)), rng.standard_normal(5)
    X = rng.standard_normal((40, 4))
    want = [slow_deepfool(W, b, V, c, x, n_classes, max_steps, 0.02) for x in X]
    W, b, V, c = map(torch.from_numpy, (W, b, V, c))

    def logits(x):
        return (x @ W.T + b).tanh() @ V.T + c

    x = torch.from_numpy(X)
    steps = deepfool(logits, x, n_classes, max_steps, 0.02)
    np.testing.assert_allclose(steps, want, atol=1e-10)
    if max_steps == 50:
        found = steps.isfinite().all(1)
        changed = logits(x + 1.02 * steps).argmax(1) != logits(x).argmax(1)
        assert changed[found].all() and found.sum() > 30


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), n_classes=st.integers(2, 6), d=st.integers(1, 5))
def test_of_linear_classifiers_the_margin_is_exact(seed, n_classes, d):
    rng = np.random.default_rng(seed)
    coef, bias = rng.standard_normal((n_classes, d)), rng.standard_normal(n_classes)
    Z = rng.standard_normal((9, d))
    steps = linear_steps(Z, coef, bias)
    for z, step in zip(Z, steps, strict=True):
        f = coef @ z + bias
        own, margins = f.argmax(), []
        for k in set(range(n_classes)) - {f.argmax()}:
            margins.append((f[own] - f[k]) / np.linalg.norm(coef[own] - coef[k]))
        assert np.linalg.norm(step) == pytest.approx(min(margins), rel=1e-9)
    both = linear_steps(Z, coef[:1], bias[:1])
    want = abs(Z @ coef[0] + bias[0]) / np.linalg.norm(coef[0])
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), want, rtol=1e-9)


def test_flat_networks_are_as_far_as_can_be():
    steps = deepfool(
        lambda x: x.sum(1, keepdim=True) * 0 + torch.arange(3.0), torch.ones(2, 4)
    )
    assert steps.isinf().all()
    steps = deepfool(lambda x: x @ torch.zeros(4, 3), torch.ones(2, 4))
    assert (steps == 0).all()  # on the border


# -- the selector


@pytest.mark.parametrize(
    "classifier",
    [
        LogisticRegression(max_iter=500),
        SGDClassifier(loss="log_loss", random_state=0),
        LinearDiscriminantAnalysis(),
    ],
    ids=lambda c: type(c).__name__,
)
def test_rows_nearest_to_the_border_of_a_linear_classifier(classifier, digits):
    X, y, _ = digits
    selector = DFALSelector(15, classifier=classifier).fit(X, y)
    fitted = selector.classifier_
    steps = linear_steps(X[60:], fitted.coef_, fitted.intercept_)
    want = np.linalg.norm(steps, axis=1)
    np.testing.assert_allclose(-selector.scores_[60:], want, rtol=1e-6)
    np.testing.assert_array_equal(
        selector.sample_indices_, 60 + np.argsort(want, kind="stable")[:15]
    )
    before = fitted.predict(X[selector.sample_indices_])
    after = fitted.predict(selector.adversaries_.astype(np.float32))
    assert (before != after).all()


class Linear(BaseEstimator):
    """Of three classes it decides by pairs, as an SVC does."""

    def __init__(self, pairs=True):
        self.pairs = pairs

    def fit(self, X, y):
        fitted = LogisticRegression(max_iter=500).fit(X, y)
        self.classes_, self.inner_ = fitted.classes_, fitted
        coef, bias = fitted.coef_, fitted.intercept_
        if self.pairs:
            a, b = np.triu_indices(3, 1)
            coef, bias = coef[a] - coef[b], bias[a] - bias[b]
        self.coef_, self.intercept_ = coef, bias
        return self

    def predict(self, X):
        return self.inner_.predict(X)

    def predict_proba(self, X):
        return self.inner_.predict_proba(X)


def test_columns_of_different_kinds(digits):
    X, y, _ = digits
    frame = pd.DataFrame(X, columns=[f"p{i}" for i in range(64)])
    whole = (16 * frame["p20"]).astype("Int64")
    frame = frame.assign(p10=frame["p10"] > 0.5, p20=whole)
    plain = frame.astype(np.float32)
    fitted = LogisticRegression(max_iter=500).fit(plain[:60], y[:60])
    want = DFALSelector(5, classifier=FrozenEstimator(fitted)).fit(plain, y)
    found = DFALSelector(5, classifier=FrozenEstimator(fitted)).fit(frame, y)
    assert found.adversaries_.dtype == np.float64
    np.testing.assert_allclose(found.adversaries_, want.adversaries_, atol=1e-5)


def test_coefficients_of_pairs_of_classes_are_no_scores(digits):
    X, y, _ = digits
    three = np.where(y >= 0, y % 3, -1)
    with pytest.raises(ValueError, match="gradient of a classifier, which Linear does"):
        DFALSelector(5, classifier=Linear()).fit(X, three)
    own = DFALSelector(5, classifier=Linear(pairs=False)).fit(X, three)
    plain = LogisticRegression(max_iter=500)
    want = DFALSelector(5, classifier=plain).fit(X, three)
    np.testing.assert_array_equal(own.sample_indices_, want.sample_indices_)


def test_two_classes_and_a_pipeline(digits):
    X, y, _ = digits
    two = np.where(y >= 0, y % 2, -1)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    selector = DFALSelector(9, classifier=pipeline).fit(X, two)
    scaler, linear = selector.classifier_
    f = abs(linear.decision_function(scaler.transform(X[60:])))
    want = f / np.linalg.norm(linear.coef_)
    np.testing.assert_allclose(-selector.scores_[60:], want, rtol=1e-4)
    again = pickle.loads(pickle.dumps(selector))
    np.testing.assert_array_equal(again.sample_indices_, selector.sample_indices_)


@pytest.mark.parametrize("classifier", [SupervisedClassifier, FixMatchClassifier])
def test_a_network_is_fooled_by_the_adversaries(classifier, digits):
    X, y, _ = digits
    images = X.reshape(-1, 8, 8)
    fitted = classifier(max_steps=20, random_state=0).fit(images, y)
    weights = [p.clone() for p in fitted.net_.module_.parameters()]
    selector = DFALSelector(8, classifier=FrozenEstimator(fitted)).fit(images, y)
    rows, moved = selector.sample_indices_, selector.adversaries_
    assert moved.shape == (8, 1, 8, 8) and rows.min() >= 60
    module = fitted.net_.module_.eval()
    given = images[rows][:, None]
    with torch.no_grad():  # not predict_proba, which may round to bfloat16
        before, after = (module(torch.from_numpy(x).float()) for x in (given, moved))
    assert (after.argmax(1) != before.argmax(1)).all()
    lengths = np.linalg.norm((moved - given).reshape(8, -1), axis=1)
    np.testing.assert_allclose(lengths, -1.02 * selector.scores_[rows], rtol=1e-3)
    for old, new in zip(weights, fitted.net_.module_.parameters(), strict=True):
        assert torch.equal(old, new) and new.grad is None


def test_some_candidates(digits):
    X, y, _ = digits
    selector = DFALSelector(5, n_candidates=30, random_state=0).fit(X, y)
    assert np.isfinite(selector.scores_).sum() == 30
    assert np.isfinite(selector.scores_[selector.sample_indices_]).all()
    other = clone(selector).set_params(random_state=1).fit(X, y)
    assert set(np.flatnonzero(np.isfinite(other.scores_))) != set(
        np.flatnonzero(np.isfinite(selector.scores_))
    )


class Sure(nn.Module):
    """A network whose probabilities of rows above a limit are exactly 0 and 1."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, x):
        return torch.where(x[:, :1] > self.limit, 1e5, 1.0) * x


@pytest.mark.parametrize("n_sure, limit", [(3, 1.0), (20, -9.0)])
def test_rows_that_no_step_moves_come_last_with_finite_scores(n_sure, limit):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 4)).astype(np.float32)
    X[:n_sure, 0] += 20
    classifier = SupervisedClassifier(
        backbone=Sure(limit), max_steps=1, batch_size=4, random_state=0
    ).fit(X, np.arange(20) % 2)
    p = classifier.predict_proba(X)
    assert (p[:n_sure].max(1) == 1).all() and (p[:n_sure].min(1) == 0).all()
    frozen = FrozenEstimator(classifier)
    selector = DFALSelector(20, classifier=frozen).fit(X)
    scores = selector.scores_
    assert np.isfinite(scores).all() and np.isfinite(selector.adversaries_).all()
    farthest = scores[n_sure:].min(initial=-0.5)
    np.testing.assert_allclose(scores[:n_sure], 2 * farthest)
    assert set(selector.sample_indices_[20 - n_sure :]) == set(range(n_sure))


def test_a_classifier_without_a_slope(digits):
    X, y, _ = digits
    with pytest.raises(ValueError, match="RandomForestClassifier does not have"):
        DFALSelector(classifier=RandomForestClassifier(5)).fit(X, y)
    voting = VotingClassifier([("probe", EmbeddingClassifier())], voting="soft")
    with pytest.raises(ValueError, match="Voting.*: use one of sklabel.classification"):
        DFALSelector(classifier=voting).fit(X, y)
    cut = SupervisedClassifier(max_steps=1, backbone=Cut())
    with pytest.raises(ValueError, match=r"runs without one, as under torch.no_grad"):
        DFALSelector(classifier=cut).fit(X, y)


class Cut(nn.Module):
    def forward(self, x):
        return x.detach()


def test_in_the_loop(digits):
    X, _, target = digits
    loop = ActiveLearningClassifier(
        LogisticRegression(max_iter=500),
        DFALSelector(),
        n_rounds=2,
        n_samples=15,
        random_state=0,
    ).fit(X, target)
    assert loop.history_[-1]["n_labeled"] == 45
