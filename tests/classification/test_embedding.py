"""EmbeddingClassifier: a probe and a graph on frozen vectors, and honest confidence."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading

import sklabel
from sklabel.classification import EmbeddingClassifier
from sklabel.classification._embedding import _ProbeAndGraph
from sklabel.embedding import AutoencoderTransformer, SimCLRTransformer
from sklabel.metrics import expected_calibration_error
from sklabel.model_selection import LabeledKFold
from sklabel.selection import BADGESelector

X, TRUTH = load_digits(return_X_y=True)
X = X.astype(np.float32)


def draw(n_labels, seed, truth=TRUTH):
    """Return labels of which n are known: one of each class, the others at random."""
    order = np.random.default_rng(seed).permutation(len(truth))
    _, first = np.unique(truth[order], return_index=True)
    rest = np.delete(np.arange(len(truth)), first)
    y = np.full(len(truth), -1)
    rows = order[np.r_[first, rest][:n_labels]]
    y[rows] = truth[rows]
    return y


def fit(y, x=X, **parameters):
    return EmbeddingClassifier(random_state=0, **parameters).fit(x, y)


def baselines(y):
    """Return the accuracies of scikit-learn's on the same rows."""
    rest, found = y < 0, []
    x = StandardScaler().fit_transform(X)
    linear = LogisticRegression(max_iter=300).fit(x[~rest], y[~rest])
    found.append((linear.predict(x[rest]) == TRUTH[rest]).mean())
    spread = LabelSpreading("knn", n_neighbors=7).fit(x, y)
    found.append((spread.transduction_[rest] == TRUTH[rest]).mean())
    return found


@pytest.mark.parametrize("n_labels", [10, 40, 100, 250])
def test_not_below_the_better_of_scikit_learns(n_labels):
    found = []
    for seed in range(3):
        y = draw(n_labels, seed)
        clf = fit(y)
        own = (clf.transduction_[y < 0] == TRUTH[y < 0]).mean()
        found.append([own, *baselines(y)])
    own, *others = np.mean(found, axis=0)
    assert own > max(others) - 0.01


@pytest.mark.parametrize("n_labels", [40, 250])
def test_confidence_is_the_accuracy(n_labels):
    errors, inside = [], []
    for seed in range(3):
        y = draw(n_labels, seed)
        clf, rest = fit(y), y < 0
        p = clf.predict_proba(X[rest])
        assert p.max() < 0.9995
        errors.append(expected_calibration_error(TRUTH[rest], p))
        low, high = clf.estimated_accuracy_interval_
        assert 0 < low < clf.estimated_accuracy_ < high < 1
        inside.append(low < clf.score(X[rest], TRUTH[rest]) < high)
        assert p.max(1).mean() == pytest.approx(clf.estimated_accuracy_, abs=0.01)
    assert np.mean(errors) < 0.08
    assert sum(inside) >= 2


def test_new_rows_are_as_good_as_those_of_fit():
    y = draw(100, 0)
    clf = fit(y[:1200], X[:1200])
    known = (clf.transduction_[y[:1200] < 0] == TRUTH[:1200][y[:1200] < 0]).mean()
    assert clf.score(X[1200:], TRUTH[1200:]) > known - 0.08
    np.testing.assert_array_equal(
        clf.transduction_[y[:1200] < 0], clf.predict(X[:1200])[y[:1200] < 0]
    )


def test_many_rows_take_the_neighbors_of_the_graph(monkeypatch):
    y, weights = draw(100, 0), np.ones(len(X))
    weights[np.flatnonzero(y >= 0)[0]] = 0  # it is no row of the graph
    expected = fit(y).fit(X, y, weights)
    monkeypatch.setattr("sklabel.classification._embedding._MANY_ROWS", 1000)
    asked = []
    spread = _ProbeAndGraph.spread
    monkeypatch.setattr(
        _ProbeAndGraph,
        "spread",
        lambda self, z: asked.append(len(z)) or spread(self, z),
    )
    found = fit(y).fit(X, y, weights)
    assert sum(asked) < 2 * len(X)  # before it was all of them, in both fits
    np.testing.assert_array_equal(found.transduction_, expected.transduction_)
    assert found.calibration_temperature_ == pytest.approx(
        expected.calibration_temperature_, abs=1e-5
    )
    np.testing.assert_allclose(
        found.predict_proba(X), expected.predict_proba(X), atol=1e-5
    )


def test_the_weight_of_the_graph_is_learned():
    # rows along a line, of which neighbors say all and the line nothing
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 600)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    truth = (angle // (np.pi / 4)).astype(int) % 2  # eight arcs in turn
    x = np.column_stack([ring, 0.01 * rng.normal(size=(600, 3))]).astype(np.float32)
    y = np.where(np.arange(600) < 200, truth, -1)
    assert fit(y, x).graph_weight_ > 0.8
    assert fit(y, x, graph_weight=0.25).graph_weight_ == 0.25
    # labels in a direction that neighbors do not see
    x = rng.normal(size=(600, 40)).astype(np.float32)
    truth = (x[:, 0] > 0).astype(int)
    y = np.where(np.arange(600) < 300, truth, -1)
    assert fit(y, x).graph_weight_ < 0.6


def test_alone_the_probe_is_a_logistic_regression():
    y = draw(60, 0)
    clf = fit(y, graph_weight=0.0, calibration_size=None)
    z = X - X.mean(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    # theirs has no penalty on the intercept: a feature of its own has the same one
    known = np.column_stack([z, np.ones(len(z))])
    other = LogisticRegression(C=100.0, fit_intercept=False, max_iter=2000, tol=1e-8)
    other.fit(known[y >= 0], y[y >= 0])
    log_p = other.predict_log_proba(known)
    factor = float(clf.net_.module_.factors[0])
    expected = np.exp(log_softmax(factor * log_p, axis=1))
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=2e-3)


EMBEDDERS = {
    "scikit-learn's": PCA(20),
    "ours": AutoencoderTransformer(10, max_steps=20),
    "frozen": FrozenEstimator(PCA(20).fit(X)),
    "pipeline": make_pipeline(StandardScaler(), PCA(20)),
}


@pytest.mark.parametrize("name", EMBEDDERS)
def test_an_embedder_is_fitted_or_taken_as_it_is(name):
    embedder, y = EMBEDDERS[name], draw(60, 0)
    clf = fit(y, embedder=embedder)
    assert (clf.embedder_ is embedder) == (name == "frozen")
    if name == "frozen":
        Z = embedder.transform(X)
        np.testing.assert_array_equal(clf.predict_proba(X), fit(y, Z).predict_proba(Z))
    assert clf.score(X, TRUTH) > 0.7
    assert clf.predict(X[:1]).shape == (1,)


def test_files_that_cannot_be_read(tmp_path):
    images = (X.reshape(-1, 8, 8) * 15).astype(np.uint8)[:60]
    paths = []
    for i, image in enumerate(images):
        paths.append(str(tmp_path / f"{i:02}.png"))
        Image.fromarray(image).convert("RGB").save(paths[-1])
    (tmp_path / "59.png").write_bytes(b"no image")
    y = np.where(np.arange(60) < 30, TRUTH[:60], -1)
    embedder = SimCLRTransformer(max_steps=2)
    with pytest.warns(UserWarning, match="read"):
        clf = fit(y, paths, embedder=embedder, on_error="skip", image_size=8)
        p = clf.predict_proba(paths)
    assert clf.transduction_[59] == -1 and np.isnan(p[59]).all()
    assert np.isfinite(p[:59]).all() and clf.sample_shape_ == (3, 8, 8)


def test_images_without_an_embedder_are_refused():
    with pytest.raises(ValueError, match="give embedder="):
        fit(draw(40, 0), X.reshape(-1, 8, 8))


@pytest.mark.parametrize(
    "embedder", [None, AutoencoderTransformer(10, max_steps=2)], ids=["none", "ours"]
)
def test_saved_and_loaded(embedder, tmp_path):
    clf = fit(draw(40, 0), embedder=embedder, n_components=30)
    clf.save(tmp_path / "model")
    again = sklabel.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert again.estimated_accuracy_ == clf.estimated_accuracy_


def test_what_cannot_be_saved_is_said(tmp_path):
    with pytest.raises(TypeError, match="embedder.*joblib"):
        fit(draw(40, 0), embedder=PCA(10)).save(tmp_path / "model")


def test_in_a_search_and_for_a_selector():
    y = draw(60, 0)
    search = GridSearchCV(
        make_pipeline(PCA(20), EmbeddingClassifier(random_state=0)),
        {"embeddingclassifier__graph_weight": [0.0, 0.7]},
        cv=LabeledKFold(3),
    ).fit(X, y)
    assert search.best_params_ == {"embeddingclassifier__graph_weight": 0.7}
    asked = BADGESelector(5, classifier=FrozenEstimator(fit(y)), random_state=0)
    assert len(asked.fit(X, y).sample_indices_) == 5


def test_copies_and_rows_of_zeros():
    x = np.vstack([X[:50], np.repeat(X[50:51], 60, axis=0), np.zeros((3, 64))])
    y = np.where(np.arange(len(x)) < 30, np.r_[TRUTH[:50], [0] * 63], -1)
    clf = fit(y, x)
    p = clf.predict_proba(x)
    assert np.isfinite(p).all()
    assert (p[50:110].argmax(1) == p[50].argmax()).all()


def test_weights_of_rows_count():
    y = draw(60, 0)
    rows = np.flatnonzero(y >= 0)[:20]
    wrong = y.copy()
    wrong[rows] = (y[rows] + 1) % 10
    weights = np.ones(len(y))
    weights[rows] = 1e-3
    rest = y < 0
    careful = EmbeddingClassifier(random_state=0).fit(X, wrong, sample_weight=weights)
    assert careful.score(X[rest], TRUTH[rest]) > 0.05 + fit(wrong).score(
        X[rest], TRUTH[rest]
    )


def test_two_rows():
    clf = fit(np.array([3, 8]), X[:2])
    np.testing.assert_array_equal(clf.predict(X[:2]), [3, 8])
    assert torch.is_tensor(clf.net_.module_.keys)
