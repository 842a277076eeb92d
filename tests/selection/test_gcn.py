"""UncertainGCN and CoreGCN: golden values, the graph never formed, and any features."""

import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklabel._core.kcenter import k_center_greedy
from sklabel._core.nested import hidden_features
from sklabel.classification import SupervisedClassifier
from sklabel.losses import unit_rows
from sklabel.selection._gcn import (
    GCN,
    CoreGCNSelector,
    Graph,
    UncertainGCNSelector,
    _GCNSelector,
    train,
)
from tests._golden import assert_farthest_first, assert_same_ranking, cases

both = pytest.mark.parametrize("cls", [UncertainGCNSelector, CoreGCNSelector])
QUICK = {"n_steps": 10, "n_hidden": 8, "random_state": 0, "device": "cpu"}

# Our weights, and what the released code calls them.
NAMES = {
    "weight1": "gc1_weight",
    "bias1": "gc1_bias",
    "weight2": "gc3_weight",
    "bias2": "gc3_bias",
}


@pytest.fixture(scope="module")
def digits():
    X, target = load_digits(return_X_y=True)
    X, target = X[:300].astype(np.float32), target[:300]
    return X, np.where(np.arange(300) < 60, target, -1)


def dense(F, normalization="column"):
    """The matrix of the graph, formed in full from its definition."""
    F = np.asarray(F, dtype=np.float64)
    S = F @ F.T
    np.fill_diagonal(S, 0)
    degrees = np.maximum(S.sum(0), (S**2).sum(0))
    inverse = np.divide(1, degrees, where=degrees > 1e-9, out=np.zeros(len(F)))
    return (S * inverse if normalization == "column" else S.T * inverse[:, None]) + (
        np.eye(len(F))
    )


def formed(graph):
    return (graph @ torch.eye(len(graph.F), dtype=graph.F.dtype)).numpy()


# -- the graph and the network


def published(case):
    """The network with the published first weights, and the labeled rows."""
    F = torch.from_numpy(case["features"])
    gcn = GCN(Graph(F), int(case["hidden"]), 0.0, None)
    gcn.load_state_dict(
        {ours: torch.from_numpy(case[f"w_{theirs}"]) for ours, theirs in NAMES.items()}
    )
    return gcn, torch.arange(len(F)) >= int(case["n_unlabeled"])


def test_golden_graph_and_first_step():
    for case in cases("gcn_selection"):
        gcn, labeled = published(case)
        A = formed(gcn.graph)
        np.testing.assert_allclose(A, case["adjacency"], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(A.sum(0), case["adjacency_colsum"], rtol=1e-10)
        np.testing.assert_allclose(A.sum(1), case["adjacency_rowsum"], rtol=1e-10)
        by_row = formed(Graph(gcn.graph.F, "row"))
        np.testing.assert_allclose(by_row, A.T, rtol=1e-10, atol=1e-14)
        h, logits = gcn()
        want = case["scores_initial"][:, 0]
        np.testing.assert_allclose(logits.detach().sigmoid(), want, rtol=1e-7)
        want = case["hidden_initial_first20"]
        np.testing.assert_allclose(h.detach()[:20], want, rtol=1e-7, atol=1e-12)
        loss = gcn.loss(labeled, float(case["lambda_loss"]))
        assert loss.item() == pytest.approx(float(case["loss_initial"]), rel=1e-9)
        loss.backward()
        for ours, theirs in NAMES.items():
            np.testing.assert_allclose(
                getattr(gcn, ours).grad, case[f"grad_{theirs}"], rtol=1e-7, atol=1e-12
            )


def test_golden_training_and_choices(monkeypatch):
    for case in cases("gcn_selection"):
        gcn, labeled = published(case)
        losses = train(
            gcn,
            labeled,
            unlabeled_weight=float(case["lambda_loss"]),
            lr=1e-3,
            weight_decay=5e-4,
            n_steps=len(case["loss_history"]),
        )
        np.testing.assert_allclose(losses, case["loss_history"], rtol=1e-7)
        with torch.inference_mode():
            h, logits = gcn()
        s = logits.sigmoid()
        np.testing.assert_allclose(s, case["scores_trained"][:, 0], rtol=1e-6)
        np.testing.assert_allclose(h, case["coregcn_hidden"], rtol=1e-6, atol=1e-9)
        # the selectors themselves, from the published weights and in float32
        monkeypatch.setattr(
            "sklabel.selection._gcn.GCN",
            lambda graph, *_, case=case: published(
                {**case, "features": graph.F.double().numpy()}
            )[0],
        )
        y = np.where(labeled, 1, -1)
        given = {
            "n_samples": int(case["budget"]),
            "n_steps": len(losses),
            "device": "cpu",
        }
        margin = float(case["s_margin"])
        selector = UncertainGCNSelector(margin=margin, **given)
        selector.fit(case["features"], y)
        # published from the end of a descending order
        want = -abs(case["scores_trained"][:, 0] - margin)
        assert_same_ranking(
            selector.sample_indices_, case["uncertain_selected"][::-1], want, atol=1e-5
        )
        found = selector.scores_[~labeled]
        np.testing.assert_allclose(found, want[~labeled], atol=1e-5)
        np.testing.assert_allclose(
            selector.loss_curve_, case["loss_history"], rtol=1e-5
        )
        selector = CoreGCNSelector(**given).fit(case["features"], y)
        # the published rows, but for near ties
        for rows, rtol in (
            (case["coregcn_selected"], 1e-9),
            (selector.sample_indices_, 1e-4),
        ):
            known = np.flatnonzero(labeled)
            assert_farthest_first(case["coregcn_hidden"], rows, known, rtol)
        # the released features: the third output of its network
        s = case["scores_trained"].astype(np.float64)  # (n, 1)
        both = np.concatenate([case["coregcn_hidden"], np.log(s / (1 - s))], axis=1)
        given["features"] = "hidden_and_logit"
        rows = CoreGCNSelector(**given).fit_select(case["features"], y)
        assert_farthest_first(both, rows, known, 1e-4)
        assert set(rows.tolist()) != set(selector.sample_indices_.tolist())


def _slow_farthest_first(Z, known, n_samples):
    """The choice of k-center, row by row in double precision."""
    Z, centers, chosen = Z.astype(np.float64), list(known), []
    for _ in range(n_samples):
        best, farthest = -1.0, None
        for i in range(len(Z)):
            if i in centers:
                continue
            nearest = min(np.sqrt(((Z[i] - Z[c]) ** 2).sum()) for c in centers)
            if nearest > best:
                best, farthest = nearest, i
        centers.append(farthest)
        chosen.append(farthest)
    return chosen


@pytest.mark.parametrize("features", ["hidden", "hidden_and_logit"])
def test_the_choice_in_float32_is_that_of_float64(features, digits, monkeypatch):
    X, y = digits[0][:150], np.where(np.arange(150) < 20, digits[1][:150], -1)
    seen = []
    monkeypatch.setattr(
        "sklabel.selection._gcn.k_center_greedy",
        lambda Z, *given: seen.append(Z) or k_center_greedy(Z, *given),
    )
    selector = CoreGCNSelector(15, features=features, **QUICK).fit(X, y)
    (Z,) = seen
    assert Z.dtype == np.float32
    assert Z.shape[1] == QUICK["n_hidden"] + (features == "hidden_and_logit")
    want = _slow_farthest_first(Z, range(20), 15)
    np.testing.assert_array_equal(selector.sample_indices_, want)
    if Z.shape[1] > QUICK["n_hidden"]:  # the last column is the logit
        p = 1 / (1 + np.exp(-Z[:, -1].astype(np.float64)))
        np.testing.assert_allclose(p, selector.probabilities_, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    X=arrays(
        np.float64,
        st.tuples(st.integers(1, 9), st.integers(1, 5)),
        elements=st.sampled_from([-2.0, -1, -0.5, 0, 0, 1, 3]),
    ),
    normalization=st.sampled_from(["column", "row"]),
)
def test_the_graph_equals_the_matrix_in_full(X, normalization):
    F = unit_rows(torch.from_numpy(X))
    graph = Graph(F, normalization)
    want = dense(F, normalization)
    np.testing.assert_allclose(formed(graph), want, atol=1e-9)
    assert (graph.inverse >= 0).all() and graph.inverse.isfinite().all()
    # one column and several go the same way
    several = torch.from_numpy(np.random.default_rng(0).normal(size=(len(X), 3)))
    np.testing.assert_allclose(graph @ several, want @ several.numpy(), atol=1e-9)


def test_degrees_without_signs_are_the_published_sums():
    F = unit_rows(torch.rand(50, 6, generator=torch.Generator().manual_seed(0)))
    want = (F @ F.T).sum(0) - 1
    np.testing.assert_allclose(1 / Graph(F).inverse[:, 0], want, rtol=1e-4)


def test_degrees_with_signs_are_never_negative_nor_near_zero():
    # each row has a copy and two opposite ones: the sums are 1 - 2 = -1
    F = unit_rows(torch.tensor([[1.0, 2], [1, 2], [-1, -2], [-1, -2]]))
    graph = Graph(F)
    np.testing.assert_allclose(1 / graph.inverse, np.full((4, 1), 3), rtol=1e-6)
    assert (np.diag(formed(graph)) == pytest.approx(1)) and formed(graph)[0, 2] < 0
    # features around their mean: the sums are about 0, the edges no more than cosines
    Z = np.random.default_rng(0).normal(size=(400, 8))
    F = unit_rows(torch.from_numpy(Z - Z.mean(0)))
    sums = (F @ F.T).sum(0) - 1
    assert sums.min() < 0 < sums.max()
    A = formed(Graph(F))
    assert abs(A - np.eye(400)).sum(0).max() < 8
    np.testing.assert_allclose(np.diag(A), 1)


def test_rows_without_neighbors_keep_to_themselves():
    F = unit_rows(torch.eye(5)[[0, 0, 1, 2, 3]])
    F[4] = 0
    A = formed(Graph(F))
    want = np.eye(5)
    want[0, 1] = want[1, 0] = 1
    np.testing.assert_allclose(A, want, atol=1e-6)


def test_the_loss_is_finite_where_the_network_is_sure_and_wrong():
    F = unit_rows(torch.eye(4))
    gcn = GCN(Graph(F), 3, 0.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        gcn.weight2.zero_()
        gcn.bias2.fill_(500.0)  # s = 1 for all: log(1 - s) is log 0
    labeled = torch.tensor([True, False, False, False])
    assert gcn.loss(labeled, 1.2).item() == pytest.approx(600)
    with torch.no_grad():
        gcn.bias2.fill_(-500.0)
    assert gcn.loss(labeled, 1.2).item() == pytest.approx(500)


def test_dropout_is_for_the_training_only_and_keeps_the_mean():
    F = unit_rows(torch.rand(40, 5))
    gcn = GCN(Graph(F), 2000, 0.5, torch.Generator().manual_seed(0))
    assert not torch.equal(gcn()[1], gcn()[1])
    assert torch.equal(gcn()[0], gcn()[0])  # the hidden layer is whole
    noisy = torch.stack([gcn()[1] for _ in range(50)]).mean(0)
    gcn.eval()
    assert torch.equal(gcn()[1], gcn()[1])
    np.testing.assert_allclose(noisy.detach(), gcn()[1].detach(), atol=0.5)


def test_nothing_is_as_large_as_all_pairs(monkeypatch):
    n = 20000  # all pairs: 1.6 GB in float32
    X = np.random.default_rng(0).random((n, 4), dtype=np.float32)
    y = np.where(np.arange(n) < 10, 1, -1)
    sizes = []
    original = torch.Tensor.__matmul__

    def watched(a, b):
        product = original(a, b)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    selector = CoreGCNSelector(3, n_candidates=n, **{**QUICK, "n_steps": 2})
    tracemalloc.start()
    try:
        selector.fit(X, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(sizes) == n * selector.n_hidden
    assert peak < 50e6  # what numpy holds


# -- the selectors


def test_uncertain_ones_are_nearest_to_the_margin(digits):
    X, y = digits
    for margin in (0.1, 0.5):
        selector = UncertainGCNSelector(20, margin=margin, **QUICK).fit(X, y)
        p = selector.probabilities_
        assert ((p > 0) & (p < 1)).all()
        distance = np.where(y == -1, abs(p - margin), np.inf)
        want = np.argsort(distance, kind="stable")[:20]
        np.testing.assert_array_equal(selector.sample_indices_, want)
        np.testing.assert_array_equal(selector.scores_, -distance)


def test_core_ones_cover_the_hidden_layer(digits, monkeypatch):
    X, y = digits
    seen = []

    def watched(Z, n_samples, centers):
        seen.append((Z, centers))
        return k_center_greedy(Z, n_samples, centers)

    monkeypatch.setattr("sklabel.selection._gcn.k_center_greedy", watched)
    selector = CoreGCNSelector(20, **QUICK).fit(X, y)
    (Z, centers), *_ = seen
    assert Z.shape == (300, 8) and centers.tolist() == list(range(60))
    when_chosen = selector.scores_[selector.sample_indices_]
    assert (np.diff(when_chosen) <= 0).all()
    to_labeled = np.linalg.norm(Z[60:, None] - Z[None, :60], axis=-1).min(1)
    assert selector.sample_indices_[0] == 60 + to_labeled.argmax()
    assert when_chosen[0] == pytest.approx(to_labeled.max(), rel=1e-5)


@both
def test_classes_without_a_label_come_first(cls):
    X, target = load_digits(return_X_y=True)
    X, target = X[:900], target[:900]
    known = np.flatnonzero(target < 7)[:100]
    y = np.full(900, -1)
    y[known] = target[known]
    selector = cls(50, random_state=0).fit(X, y)
    share = (target[selector.sample_indices_] >= 7).mean()
    among_all = (target[y == -1] >= 7).mean()
    assert share > 1.4 * among_all
    # the training has taught it to tell the labeled rows from the others
    assert selector.loss_curve_[-1] < 0.8 * selector.loss_curve_[0]
    p = selector.probabilities_
    assert p[known].mean() > p[y == -1].mean() + 0.1
    assert p[(y == -1) & (target < 7)].mean() > p[target >= 7].mean()


@both
@pytest.mark.parametrize("n_samples", [1, 7, 0.5, 240, None])
def test_promises(cls, n_samples, digits):
    X, y = digits
    before = X.copy()
    selector = cls(n_samples, **QUICK)
    rows = selector.fit_select(X, y)
    n = {0.5: 120, None: 24}.get(n_samples, n_samples)
    assert rows.shape == (n,) and rows.dtype == np.int64
    assert len(set(rows.tolist())) == n and (y[rows] == -1).all()
    np.testing.assert_array_equal(np.flatnonzero(selector.support_), np.sort(rows))
    assert selector.scores_.shape == (300,)
    assert (selector.scores_[:60] == -np.inf).all()
    assert np.isfinite(selector.scores_[60:]).all()
    np.testing.assert_array_equal(selector.assignments_[rows], np.arange(n))
    distances = np.linalg.norm(X[:, None] - X[rows], axis=-1)
    reached = distances[np.arange(300), selector.assignments_]
    np.testing.assert_allclose(reached, distances.min(1), rtol=1e-4)
    assert selector.n_features_in_ == 64 and not hasattr(selector, "classifier_")
    assert selector.loss_curve_.shape == (10,)
    np.testing.assert_array_equal(X, before)
    with pytest.raises(ValueError, match="n_samples=241 .* only 240 of the 300 rows"):
        cls(241, **QUICK).fit(X, y)


@both
@pytest.mark.parametrize("y", [None, np.full(300, -1), np.full(300, None)])
def test_without_labels_the_first_choice_is_another_selectors(cls, y, digits):
    held = FrozenEstimator(LogisticRegression().fit(digits[0][:60], digits[1][:60]))
    for classifier in (None, held):
        with pytest.raises(ValueError, match="no labeled row.*USLSelector"):
            cls(classifier=classifier, **QUICK).fit(digits[0], y)


@both
def test_nothing_is_left_to_ask(cls, digits):
    selector = cls(classifier=LogisticRegression(), **QUICK)
    selector.fit(*digits).fit(digits[0], np.zeros(300))
    assert selector.sample_indices_.shape == (0,)
    assert (selector.scores_ == -np.inf).all() and (selector.assignments_ == -1).all()
    assert np.isnan(selector.probabilities_).all()
    assert selector.loss_curve_.shape == (0,) and not hasattr(selector, "classifier_")


@both
def test_only_candidates_take_part(cls, digits):
    X, y = digits
    selector = cls(5, n_candidates=30, **QUICK).fit(X, y)
    part = ~np.isnan(selector.probabilities_)
    assert part[:60].all() and part[60:].sum() == 30
    assert np.isfinite(selector.scores_[60:]).sum() == 30
    assert (selector.scores_[~part] == -np.inf).all()
    assert part[selector.sample_indices_].all()
    other = clone(selector).set_params(random_state=1).fit(X, y)
    assert (np.isnan(other.probabilities_) == part).any()
    # as many as are asked for take part at least
    selector.set_params(n_samples=50).fit(X, y)
    part = ~np.isnan(selector.probabilities_[60:])
    assert part.sum() == 50 and (selector.support_[60:] == part).all()
    # those that take no part change nothing
    hidden = X.copy()
    hidden[np.isnan(selector.probabilities_)] = 7
    again = clone(selector).fit(hidden, y)
    np.testing.assert_array_equal(again.probabilities_, selector.probabilities_)


@both
def test_same_seed_same_choice_clone_and_pickle(cls, digits):
    X, y = digits
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    selector = cls(15, **QUICK).fit(X, y)
    again = clone(selector).fit(X, y)
    np.testing.assert_array_equal(again.sample_indices_, selector.sample_indices_)
    np.testing.assert_array_equal(again.scores_, selector.scores_)
    other = clone(selector).set_params(random_state=1).fit_select(X, y)
    assert other.tolist() != selector.sample_indices_.tolist()
    kept = pickle.loads(pickle.dumps(selector))
    np.testing.assert_array_equal(kept.sample_indices_, selector.sample_indices_)
    np.testing.assert_array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])


@both
@pytest.mark.parametrize("value", [2.5, 0, -1])
@pytest.mark.parametrize("n", [13, 90])
def test_equal_rows(cls, value, n):
    X = np.full((n, 64), value) * np.random.default_rng(0).normal(size=64)
    y = np.full(n, -1)
    y[5] = 1
    selector = cls(7, **QUICK).fit(X, y)
    assert selector.sample_indices_.tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert len(set(selector.probabilities_.tolist())) == 1


@both
def test_rounding_does_not_decide_between_copies(cls, digits, monkeypatch):
    train_all = _GCNSelector._train

    def rounded(selector, features, labeled, seed):
        p, hidden = train_all(selector, features, labeled, seed)
        noise = np.random.default_rng(0).random(len(p), dtype=np.float32) * 1e-6
        noise = torch.from_numpy(noise)
        return p + noise, hidden + noise[:, None]

    monkeypatch.setattr(_GCNSelector, "_train", rounded)
    X, y = digits[0][:20].repeat(3, axis=0), np.where(np.arange(60) < 6, 1, -1)
    selector = cls(54, **QUICK).fit(X, y)
    rows = selector.sample_indices_.tolist()
    of_copies = selector.probabilities_.reshape(20, 3)
    assert (of_copies == of_copies[:, :1]).all()
    assert rows.index(6) < rows.index(7) < rows.index(8)
    if cls is CoreGCNSelector:  # the second copies come after the first of all
        assert all(row % 3 == 0 for row in rows[:18])
        assert (selector.scores_[rows[18:]] == 0).all()


@both
def test_few_rows_and_one_class(cls):
    X = [[0.0, 1], [1, 0], [1, 1]]
    assert cls(1, **QUICK).fit_select(X[:2], [0, -1]).tolist() == [1]
    assert sorted(cls(2, **QUICK).fit_select(X, [-1, 0, -1])) == [0, 2]
    column = cls(1, **QUICK).fit([[3.0], [-2], [5]], [1, -1, -1])
    assert np.isfinite(column.scores_[1:]).all()


@both
@pytest.mark.parametrize("power", [-100, -60, 60, 100])
def test_large_and_small_features(cls, power, digits):
    X, y = digits
    want = cls(9, **QUICK).fit_select(X, y)
    # a power of two changes no digit
    found = cls(9, **QUICK).fit_select(X * np.float32(2) ** power, y)
    np.testing.assert_array_equal(found, want)


@both
def test_labels_of_any_kind(cls, digits):
    X, y = digits
    want = cls(9, **QUICK).fit_select(X, y)
    for given_y in (
        np.array([f"class {k}" if k >= 0 else None for k in y], dtype=object),
        np.where(y >= 0, y, np.nan),
        y.tolist(),
    ):
        np.testing.assert_array_equal(cls(9, **QUICK).fit_select(X, given_y), want)


@both
def test_features_of_a_classifier_on_images(cls, digits):
    X, y = digits
    images = (X.reshape(-1, 8, 8) * 15).astype(np.uint8)
    classifier = SupervisedClassifier(max_steps=5)
    selector = cls(10, classifier=classifier, **QUICK).fit(images, y)
    rows = selector.sample_indices_
    assert len(set(rows.tolist())) == 10 and (y[rows] == -1).all()
    assert not hasattr(selector, "assignments_")
    assert classifier.random_state is None
    again = clone(selector).fit(images, y)
    np.testing.assert_array_equal(again.sample_indices_, rows)
    features = hidden_features(selector.classifier_, images)
    as_vectors = cls(10, **QUICK).fit(features, y)
    np.testing.assert_allclose(
        as_vectors.probabilities_, selector.probabilities_, atol=1e-5
    )
    held = cls(10, classifier=FrozenEstimator(selector.classifier_), **QUICK)
    np.testing.assert_array_equal(held.fit_select(images, y), rows)
    with pytest.raises(ValueError, match="embed the images first"):
        cls(10, **QUICK).fit(images, y)


@both
def test_files_that_cannot_be_read(cls, digits, tmp_path):
    X, target = digits
    files = []
    for i, image in enumerate(X[:30].reshape(-1, 8, 8)):
        files.append(str(tmp_path / f"{i:02d}.png"))
        Image.fromarray((image * 15).astype(np.uint8)).save(files[-1])
    for i in (3, 29):
        (tmp_path / f"{i:02d}.png").write_bytes(b"no image")
    y = np.where(np.arange(30) < 25, target[:30], -1)
    classifier = SupervisedClassifier(max_steps=2, on_error="skip")
    selector = cls(4, classifier=classifier, **QUICK)
    with pytest.warns(UserWarning):
        selector.fit(files, y)
    assert sorted(selector.sample_indices_.tolist()) == [25, 26, 27, 28]
    assert selector.scores_[29] == -np.inf
    assert np.flatnonzero(np.isnan(selector.probabilities_)).tolist() == [3, 29]
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="which leaves 4 unlabeled rows"),
    ):
        clone(selector).set_params(n_samples=5).fit(files, y)
    only = np.where(np.arange(30) == 3, 1, -1)
    held = FrozenEstimator(selector.classifier_)
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"no labeled row \(that can be read\)"),
    ):
        cls(4, classifier=held, **QUICK).fit(files, only)


@both
def test_other_classifiers_and_pipelines(cls, digits):
    X, y = digits
    scaled = StandardScaler().fit_transform(X)
    want = cls(8, **QUICK).fit(scaled, y)
    around = make_pipeline(StandardScaler(), cls(8, **QUICK)).fit(X, y)
    np.testing.assert_array_equal(around[-1].sample_indices_, want.sample_indices_)
    scaler = FrozenEstimator(StandardScaler().fit(X))
    inside = make_pipeline(scaler, LogisticRegression(max_iter=1000))
    found = cls(8, classifier=inside, **QUICK).fit(X, y)
    np.testing.assert_allclose(found.probabilities_, want.probabilities_, atol=1e-5)
    assert found.classifier_[-1].classes_.tolist() == list(range(10))


@both
def test_a_memory_map_and_other_forms_of_X(cls, digits, tmp_path):
    X, y = digits
    X.tofile(tmp_path / "X")
    mapped = np.memmap(tmp_path / "X", np.float32, "r", shape=X.shape)
    want = cls(8, **QUICK).fit_select(X, y)
    for form in (mapped, X.astype(np.float64), np.asfortranarray(X), X.tolist()):
        np.testing.assert_array_equal(cls(8, **QUICK).fit_select(form, y), want)


@both
def test_rows_become_the_published_graph_by_default(cls, digits):
    X, y = digits
    by_column = cls(8, **QUICK).fit(X, y).probabilities_
    given = cls(8, normalization="column", **QUICK).fit(X, y).probabilities_
    by_row = cls(8, normalization="row", **QUICK).fit(X, y).probabilities_
    np.testing.assert_array_equal(given, by_column)
    assert (by_row != by_column).any()


@both
def test_a_progress_bar_on_request(cls, digits, capsys):
    cls(3, verbose=1, **QUICK).fit(*digits)
    assert cls.__name__ in capsys.readouterr().err
    cls(3, **QUICK).fit(*digits)
    assert not capsys.readouterr().err


@both
def test_refused(cls, digits):
    X, y = digits
    with pytest.raises(ValueError, match="diverged: lower lr=1e"):
        cls(3, **{**QUICK, "lr": 1e37}).fit(X, y)
    for wrong in (
        {"normalization": "both"},
        {"dropout": 1.0},
        {"n_steps": 0},
        {"unlabeled_weight": -1},
        {"n_candidates": 0},
        {"classifier": "forest"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            cls(3, **wrong).fit(X, y)
    with pytest.raises(ValueError, match="margin"):
        UncertainGCNSelector(margin=1.1).fit(X, y)
    broken = X.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        cls(3, **QUICK).fit(broken, y)


@pytest.mark.gpu
@both
def test_on_a_gpu(cls, digits):
    X, y = digits
    on_gpu = cls(10, **{**QUICK, "device": "cuda"})
    first = on_gpu.fit_select(X, y)
    np.testing.assert_array_equal(on_gpu.fit_select(X, y), first)
