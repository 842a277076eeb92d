"""USL-T: golden losses and rules; clusters are found, and rows of each are asked."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import sklabel
from sklabel import CollapseWarning
from sklabel._core.choice import choose_rows
from sklabel.active_learning import ActiveLearningClassifier
from sklabel.datasets import load_digit_images
from sklabel.embedding import AutoencoderTransformer, SimCLRTransformer
from sklabel.losses import confidence_cross_entropy, uslt_global_loss, uslt_local_loss
from sklabel.modules import MultiHead, NormLinear
from sklabel.selection._uslt import (
    _USLT,
    USLTSelector,
    _CosineHeads,
    moved_mean,
    moved_sizes,
    reassign_,
    spread_labels,
)
from tests._golden import cases
from tests._making import mixed
from tests.losses._checks import assert_close, leaf

# -- losses


def test_local_loss_golden():
    for case in cases("uslt_local_loss"):
        n_steps, n_heads, _, n_clusters = case["anchors"].shape
        assert n_heads == case["num_heads"]
        # the released code starts in float32, as the estimator does
        mean = (torch.ones(n_heads, n_clusters) / n_clusters).double()
        for step in range(n_steps):
            near = torch.from_numpy(case["neighbors"][step])
            for h in range(n_heads):
                anchors = leaf(case["anchors"][step, h])
                loss = uslt_local_loss(
                    anchors,
                    near[h],
                    mean[h],
                    float(case["adjustment_weight"]),
                    float(case["sharpen_temperature"]),
                )
                loss.backward()
                assert_close(loss, case["loss"][step, h])
                assert_close(anchors.grad, case["grad_anchors"][step, h])
                # the gradient is (softmax - target) / B
                p = anchors.detach().softmax(1)
                target = p - len(p) * anchors.grad
                assert_close(target, case["target"][step, h])
            mean = moved_mean(mean, near, float(case["momentum"]))
            assert_close(mean, case["prob_ema_after"][step])


def _cluster_weights(case):
    if case["reweight_renorm"]:
        return "renormalized"
    return "balanced" if case["reweight"] else None


def test_global_loss_golden():
    for case in cases("uslt_global_loss"):
        mean_over = "batch" if case["mean_outside_mask"] else "kept"
        threshold = float(case["threshold"])
        n_steps, n_heads, _, n_clusters = case["weak_logits"].shape
        sizes = (torch.ones(n_heads, n_clusters) / n_clusters).double()
        for step in range(n_steps):
            weak = torch.from_numpy(case["weak_logits"][step])
            for h in range(n_heads):
                strong = leaf(case["strong_logits"][step, h])
                loss = uslt_global_loss(
                    weak[h], strong, threshold, _cluster_weights(case), mean_over
                )
                loss.backward()
                assert_close(loss, case["loss"][step, h])
                assert_close(strong.grad, case["grad_strong"][step, h])
            if "count_ema_after" in case:
                confidence, clusters = weak.softmax(-1).max(-1)
                sizes = moved_sizes(
                    sizes,
                    clusters,
                    confidence > threshold,
                    float(case["count_momentum"]),
                    float(case["data_len"]),
                )
                assert_close(sizes, case["count_ema_after"][step])


def test_cosine_head_golden():
    for case in cases("uslt_normed_head"):
        x, weight = leaf(case["x"]), torch.from_numpy(case["weight"])
        head = NormLinear(weight.shape[1], weight.shape[0], float(case["scale"]))
        head.weight = torch.nn.Parameter(weight)
        logits = head(x)
        logits.square().sum().backward()
        assert_close(logits, case["logits"])
        assert_close(x.grad, case["grad_x_of_sum_sq"])
        assert_close(head.weight.grad, case["grad_w_of_sum_sq"])
        # and the heads that the estimator trains
        heads = _CosineHeads(weight.shape[1], weight.shape[0])
        heads.linear.weight.data = weight.float()
        assert_close(heads(x)[0], case["logits"], rtol=1e-4, atol=1e-4)


def test_selection_golden():
    for case in cases("uslt_selection"):
        p = torch.from_numpy(case["logits"]).softmax(-1)
        confidence, clusters = (part.numpy() for part in p.max(-1))
        head = int(case["head_in_use"])
        score = confidence.mean(0) if case["use_mean_prob"] else confidence[head]
        clusters = clusters[head]
        np.testing.assert_array_equal(clusters, case["assignment"])
        assert_close(score, case["score"])
        rows, n_open = choose_rows(score, clusters, int(case["num_clusters"]))
        assert n_open == case["num_clusters"]
        by_cluster = rows[np.argsort(clusters[rows])]
        np.testing.assert_array_equal(by_cluster, case["selected"])
        # ImageNet's rule, and its labels for the neighborhood
        distances = case["mean_sq_dist"]
        rows, _ = choose_rows(-distances, clusters, int(case["target_num_samples"]))
        spread = spread_labels(
            distances,
            clusters,
            rows,
            case["true_labels"][rows].tolist(),
            int(case["top_to_assign"]),
        )
        found = np.full(len(clusters), -1)
        found[list(spread)] = list(spread.values())
        np.testing.assert_array_equal(found, case["propagated_labels"])


@st.composite
def logits(draw, n=2):
    shape = draw(st.integers(1, 6)), draw(st.integers(2, 5))
    values = arrays(np.float64, shape, elements=st.floats(-50, 50))
    return [torch.from_numpy(draw(values)) for _ in range(n)]


@given(logits(), st.floats(0, 8), st.floats(0.1, 2))
@settings(max_examples=50)
def test_local_loss_is_a_divergence_of_slow_loops(pair, weight, temperature):
    a, n = pair
    mean = n.softmax(1).mean(0)
    found = uslt_local_loss(a, n, mean, weight, temperature)
    assert found > -1e-9 and torch.isfinite(found)
    total = 0.0
    for i in range(len(a)):
        r = (n[i] - weight * mean.clamp_min(1e-8).log()).softmax(0)
        t = r ** (1 / temperature) / (r ** (1 / temperature)).sum()
        p = a[i].softmax(0)
        total += sum(
            float(t[k] * (t[k].log() - p[k].log())) for k in range(len(t)) if t[k] > 0
        )
    if np.isfinite(total):
        assert_close(found, total / len(a), rtol=1e-6, atol=1e-6)
    order = torch.randperm(len(a))
    assert_close(uslt_local_loss(a[order], n[order], mean, weight, temperature), found)


def test_local_loss_of_an_empty_cluster_and_of_extreme_logits():
    z = torch.tensor([[0.0, 1e4, -1e4], [1e4, 0.0, 0.0]], requires_grad=True)
    loss = uslt_local_loss(z, z.flip(1), torch.tensor([0.0, 1.0, 0.0]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(z.grad).all()
    half = torch.randn(4, 3, dtype=torch.bfloat16)
    assert uslt_local_loss(half, half, torch.ones(3) / 3).dtype == torch.float32


def test_targets_turn_from_a_large_cluster():
    near = torch.tensor([[2.0, 1.9, 0.0]])
    anchors = torch.zeros(1, 3, requires_grad=True)
    uslt_local_loss(anchors, near, torch.tensor([0.8, 0.1, 0.1])).backward()
    assert anchors.grad.argmin() == 1  # pulled there, though the neighbor says 0


@given(logits(), st.floats(0, 0.99))
@settings(max_examples=50)
def test_global_loss_of_kept_rows_is_that_of_scan(pair, threshold):
    expected = confidence_cross_entropy(*pair, threshold)
    for weights in ("balanced", "renormalized"):
        found = uslt_global_loss(*pair, threshold, weights)
        assert_close(found, expected, rtol=1e-6)
    plain = confidence_cross_entropy(*pair, threshold, balance=False)
    assert_close(uslt_global_loss(*pair, threshold, None), plain, rtol=1e-6)


def test_the_gradient_of_the_global_loss_raises_the_sure_cluster_only():
    weak = torch.tensor([[9.0, 0, 0], [0.1, 0, 0]])
    strong = torch.zeros(2, 3, requires_grad=True)
    for mean_over, share in (("kept", 1.0), ("batch", 0.5)):
        strong.grad = None
        uslt_global_loss(weak, strong, 0.9, None, mean_over).backward()
        assert_close(strong.grad[0], share * np.array([-2, 1, 1]) / 3, rtol=1e-6)
        assert (strong.grad[1] == 0).all()


@pytest.mark.parametrize("wrong", [{"cluster_weights": "even"}, {"mean_over": "all"}])
def test_the_global_loss_names_a_wrong_word(wrong):
    z = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        uslt_global_loss(z, z, **wrong)


# -- running figures and re-seeding


def test_running_sizes_of_a_head_that_keeps_nothing_stay():
    sizes = torch.tensor([[1.5, 0.5], [1.0, 1.0]])
    clusters = torch.tensor([[0, 0, 1], [1, 1, 1]])
    kept = torch.tensor([[False] * 3, [True] * 3])
    moved = moved_sizes(sizes, clusters, kept, 0.9)
    assert_close(moved, [[1.5, 0.5], [0.9, 1.1]], rtol=1e-6)


@pytest.mark.parametrize("kind", [MultiHead, _CosineHeads])
def test_the_empty_cluster_takes_over_half_of_the_largest(kind):
    heads = kind(5, 3, 2)
    before = heads.linear.weight.detach().clone()
    sizes = torch.tensor([[0.01, 2.5, 0.49], [0.5, 1.5, 1.0]])
    reassign_(heads, sizes, 0.2, 2.0)
    weight = heads.linear.weight.detach()
    assert torch.allclose(weight[0], before[1], atol=2e-7)
    assert not torch.equal(weight[0], before[1])
    assert torch.equal(weight[1:], before[1:])  # the second head has no empty one
    assert_close(sizes, [[1.25, 1.25, 0.49], [0.5, 1.5, 1.0]], rtol=1e-6)
    reassign_(heads, torch.tensor([[0.1, 1.9, 1.0]] * 2), 0.2, 2.0)  # none is large
    assert torch.equal(heads.linear.weight, weight)


# -- choosing


def test_labeled_clusters_come_last_and_copies_after_them():
    clusters = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 4])
    key = np.array([0.1, 0.9, 0.8, 0.2, 0.5, 0.6, 0.7, 0.9, 0.3, 0.2])
    labeled = np.zeros(10, bool)
    labeled[1] = True
    rows, n_open = choose_rows(key, clusters, 9, labeled)
    assert n_open == 3
    assert rows[:3].tolist() == [6, 7, 9]  # by size, the surest of each
    assert rows[3] == 2  # cluster 0: 4 rows for one label plus one
    assert sorted(rows) == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    copies = np.array([0, 1, 1, 3, 4, 5, 6, 7, 8, 9])  # row 2 is row 1 again
    rows, _ = choose_rows(key, clusters, 9, labeled, copies)
    assert rows[3] == 3 and rows.tolist().index(2) > rows.tolist().index(0)


@given(st.data())
@settings(max_examples=60)
def test_so_many_rows_as_asked_are_chosen_and_clusters_opened_first(data):
    n = data.draw(st.integers(1, 30))
    clusters = data.draw(arrays(np.int64, n, elements=st.integers(0, 6)))
    key = data.draw(arrays(np.float64, n, elements=st.floats(0, 1)))
    labeled = data.draw(arrays(bool, n))
    copies = data.draw(arrays(np.int64, n, elements=st.integers(0, 8)))
    m = data.draw(st.integers(0, int((~labeled).sum())))
    rows, n_open = choose_rows(key, clusters, m, labeled, copies)
    assert len(rows) == len(set(rows.tolist())) == m
    assert not labeled[rows].any()
    covered = set(clusters[labeled].tolist())
    assert n_open == len(set(clusters.tolist()) - covered)
    first = clusters[rows[: min(m, n_open)]].tolist()
    assert len(set(first)) == len(first) and not set(first) & covered


# -- the estimator


class Shift(torch.nn.Module):
    def forward(self, x):
        return x + 0.2


def test_the_loss_is_the_slow_loop():
    selector = short(
        augment=Shift(),
        adjustment_weight=1.5,
        temperature=0.5,
        local_weight=3.0,
        max_steps=5,
        lr=0.01,
    )
    module = quiet(selector, X).net_.module_.eval()
    x, near = torch.from_numpy(X[:20]), torch.from_numpy(X[20:40])
    mean = module.mean_probabilities.double().numpy().copy()
    with torch.no_grad():  # (heads, rows, clusters) each
        weak, strong, neighbors = (
            module(part).double().numpy() for part in (x, x + 0.2, near + 0.2)
        )
    # some rows of each head are confident, some are not
    sure = weak.max(-1)
    module.threshold = (sure.min(1).max() + sure.max(1).min()) / 2
    loss, figures = module.loss((x, near), None)
    local_loss = global_loss = 0.0
    for h in range(2):
        kept = [i for i in range(20) if weak[h, i].max() > module.threshold]
        assert 0 < len(kept) < 20
        named = [int(weak[h, i].argmax()) for i in kept]
        weights = [len(kept) / named.count(k) for k in named]
        for i, k, weight in zip(kept, named, weights):
            global_loss -= weight / sum(weights) * np.log(strong[h, i, k])
        for i in range(20):
            target = neighbors[h, i] / mean[h] ** 1.5  # away from large clusters
            target = target ** (1 / 0.5) / (target ** (1 / 0.5)).sum()
            divergence = (target * np.log(target / strong[h, i])).sum()
            local_loss += divergence / 20
    np.testing.assert_allclose(figures["global_loss"], global_loss, rtol=1e-4)
    np.testing.assert_allclose(figures["local_loss"], local_loss, rtol=1e-4)
    np.testing.assert_allclose(loss.item(), global_loss + 3 * local_loss, rtol=1e-4)
    # what turns the next targets away: the neighbors, as they were
    mean = 0.5 * mean + 0.5 * neighbors.mean(1)
    np.testing.assert_allclose(module.mean_probabilities, mean, rtol=1e-4)


def blobs(n=120, k=4):
    rng = np.random.default_rng(0)
    y = np.arange(n) % k
    centers = np.eye(6, dtype=np.float32)[:k] * 8
    return (centers[y] + rng.normal(size=(n, 6))).astype(np.float32), y


X, Y = blobs()
IMAGES, TARGET = load_digit_images(return_X_y=True)


def short(n_samples=6, **parameters):
    given = {"max_steps": 4, "random_state": 0, "n_heads": 2, **parameters}
    return USLTSelector(n_samples, **given)


def quiet(selector, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        return selector.fit(*args)


# the heads whose training is shortest
GROUPS = {"head": "linear", "threshold": 0.95, "lr": 3e-4, "max_epochs": 50}


def test_one_row_of_each_group():
    selector = USLTSelector(4, batch_size=64, random_state=0, **GROUPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        rows = selector.fit_select(mixed(X))
    assert set(Y[rows]) == set(range(4))
    assert len(set(selector.labels_[rows])) == 4
    assert all(len(set(Y[selector.labels_ == k])) == 1 for k in range(4))
    last = selector.net_.history[-1]
    assert last["clusters_used"] == 4 and last["neighbor_agreement"] > 0.95
    assert last["largest_cluster"] == 0.25


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "linear", "threshold": 0.95},
        {},
        {
            "cluster_weights": None,
            "mean_over": "batch",
            "adjustment_weight": 2.5,
            "temperature": 0.5,
            "local_weight": 0.5,
            "selection": "density",
        },
    ],
    ids=["CIFAR", "default heads", "ImageNet"],
)
def test_what_a_fit_leaves(settings):
    selector = quiet(USLTSelector(4, max_epochs=2, random_state=0, **settings), X)
    np.testing.assert_array_equal(selector.predict(X), selector.labels_)
    p = selector.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    last = selector.net_.history[-1]
    names = {"local_loss", "global_loss", "kept_share", "confident_share"}
    assert names <= set(last)
    total = last["global_loss"] + selector.local_weight * last["local_loss"]
    np.testing.assert_allclose(last["train_loss"], total, rtol=1e-4)


def test_the_first_row_of_a_cluster_is_the_surest_or_the_densest():
    for rule in (
        {"confidence": "mean"},
        {"confidence": "head", "head_used": 1},
        {"selection": "density"},
    ):
        selector = quiet(short(**rule), X)
        np.testing.assert_array_equal(selector.predict(X), selector.labels_)
        seen = set()
        for row in selector.sample_indices_:
            cluster = selector.labels_[row]
            if cluster not in seen:
                members = selector.scores_[selector.labels_ == cluster]
                assert selector.scores_[row] == members.max()
            seen.add(cluster)
    densest = np.argmin(selector.mean_distances_)
    assert selector.scores_.argmax() == densest


def test_labeled_rows_are_not_chosen_and_their_clusters_come_last():
    y = np.where(Y == 0, 0, -1)
    y[1::8] = 1
    selector = USLTSelector(10, n_clusters=4, batch_size=64, random_state=0, **GROUPS)
    rows = selector.fit(mixed(X), y).sample_indices_
    assert (y[rows] == -1).all() and len(set(rows.tolist())) == 10
    assert set(Y[rows[:2]]) == {2, 3}
    assert (selector.scores_[y != -1] == -np.inf).all()
    assert USLTSelector(10, max_steps=1, n_heads=1).fit(X, y).n_clusters_ == 55
    with pytest.raises(ValueError, match="n_samples=90 .* only 75 of the 120"):
        short(90).fit(X, y)


def test_collapsed_clusters_still_give_all_rows_and_say_what_to_change():
    same = np.full((30, 3), 2.0, np.float32)
    with pytest.warns(CollapseWarning, match="adjustment_weight=5.0 .*reassign"):
        selector = short(7).fit(same)
    assert len(set(selector.sample_indices_.tolist())) == 7
    assert np.isfinite(selector.scores_).all()


def test_one_large_cluster_is_told():
    selector = short(1, n_clusters=8, adjustment_weight=0.0, lr=1e-2, max_steps=60)
    with pytest.warns(CollapseWarning, match="One cluster holds 100%"):
        selector.fit(np.full((30, 3), 2.0, np.float32))


def test_copies_of_chosen_rows_come_last():
    copied = np.repeat(X[:12], 4, axis=0)
    rows = quiet(short(12, n_clusters=3), copied).sample_indices_
    # clusters of few kinds of rows may have to give copies, but none does before
    labels = np.unique(copied[rows], axis=0)
    assert len(labels) >= 10


def test_a_backbone_that_is_not_trained_keeps_its_bits():
    body = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4))
    module = quiet(short(backbone=body, train_backbone=False), X).encoder_.body
    for name, value in module.state_dict().items():
        assert torch.equal(value, body.state_dict()[name])


def test_cosine_heads_start_at_features_of_rows():
    class Unmoved(torch.optim.SGD):
        def step(self, closure=None):
            pass

    body = torch.nn.Identity()
    selector = quiet(short(head="cosine", backbone=body, optimizer=Unmoved), X)
    features = selector.encoder_.eval()(torch.from_numpy(X)).detach()
    unit = torch.nn.functional.normalize(features)
    products = selector.net_.module_.heads.linear.weight.detach() @ unit.T
    assert (products.max(1).values > 1 - 1e-5).all()
    assert len(set(products[:6].argmax(1).tolist())) == 6


def test_the_running_figures_are_saved_with_the_module():
    state = quiet(short(reassign_interval=2), X).net_.module_.state_dict()
    np.testing.assert_allclose(state["mean_probabilities"].sum(1), 1, rtol=1e-5)
    assert int(state["n_steps"]) == 4
    assert isinstance(quiet(short(), X).net_.module_, _USLT)


def test_neighbors_and_assignments_are_those_of_unit_rows():
    selector = quiet(short(), X)
    Z = X / np.linalg.norm(X, axis=1, keepdims=True)
    d = ((Z[:, None] - Z) ** 2).sum(-1)
    found = np.take_along_axis(d, selector.neighbors_, 1)
    np.testing.assert_allclose(found, np.sort(d, 1)[:, :21], atol=1e-5)
    np.testing.assert_allclose(
        selector.mean_distances_, np.sort(d, 1)[:, :20].mean(1), rtol=1e-4
    )
    nearest = d[:, selector.sample_indices_].argmin(1)
    np.testing.assert_array_equal(selector.assignments_, nearest)


def test_spread_labels_go_to_the_densest_rows_of_a_cluster():
    selector = quiet(short(4, n_clusters=4, selection="density"), X)
    y = np.full(len(X), -1)
    y[selector.sample_indices_[:2]] = [7, 8]
    spread = selector.spread_labels(y, n_rows=3)
    for row, label in zip(selector.sample_indices_[:2], (7, 8), strict=True):
        members = np.flatnonzero(selector.labels_ == selector.labels_[row])
        dense = members[np.argsort(selector.mean_distances_[members])[:3]]
        assert (spread[dense] == label).all()
    assert (spread != -1).sum() <= 6 and (y != -1).sum() == 2
    names = np.full(len(X), -1, dtype=object)
    names[y >= 0] = "cat"
    assert set(selector.spread_labels(names)) == {-1, "cat"}
    with pytest.raises(ValueError, match="inconsistent"):
        selector.spread_labels(y[:5])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"n_clusters": 121}, "n_clusters=121 is larger.*120"),
        ({"head_used": 2}, "head_used=2 must be below n_heads=2"),
        ({"n_samples": 121}, "n_samples=121 rows are requested"),
        ({"selection": "sure"}, "selection"),
        ({"threshold": 1.0}, "threshold"),
    ],
    ids=lambda w: str(w)[:20],
)
def test_wrong_parameters_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        short(**wrong).fit(X)


def test_same_seed_pickle_clone_and_generators():
    state = torch.get_rng_state()
    first, second = (quiet(short(max_steps=3), X) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first.sample_indices_, second.sample_indices_)
    np.testing.assert_array_equal(first.scores_, second.scores_)
    loaded = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(loaded.predict_proba(X), first.predict_proba(X))
    assert not hasattr(clone(first), "net_")
    other = quiet(short(max_steps=3, random_state=1), X)
    assert not np.array_equal(other.scores_, first.scores_)


def test_saved_and_loaded(tmp_path):
    embedder = SimCLRTransformer(backbone="resnet9", max_steps=1)
    fitted = quiet(short(embedder=embedder, max_steps=1), IMAGES[:40])
    fitted.save(tmp_path / "model")
    loaded = sklabel.load(tmp_path / "model")
    found = loaded.predict_proba(IMAGES[:40])
    np.testing.assert_array_equal(found, fitted.predict_proba(IMAGES[:40]))
    np.testing.assert_array_equal(loaded.sample_indices_, fitted.sample_indices_)
    assert len(loaded.net_.history) == 1


def test_warm_start_keeps_the_encoder_when_more_rows_are_asked():
    selector = quiet(short(warm_start=True), X)
    before = selector.encoder_.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    selector.set_params(n_samples=9, lr=1e-9, train_backbone=False)
    quiet(selector, X)
    assert selector.n_clusters_ == 9
    for name, value in selector.encoder_.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_checkpoint_of_another_number_of_labels_is_not_read(tmp_path):
    selector = short(checkpoint_dir=tmp_path, max_steps=None, max_epochs=2)
    first = quiet(selector, X).scores_
    y = np.where(np.arange(120) < 5, 0, -1)
    assert quiet(selector, X, y).n_clusters_ == 11
    np.testing.assert_array_equal(quiet(selector, X).scores_, first)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "head": "linear",
            "train_backbone": False,
            "selection": "density",
            "reassign_interval": 1,
        },
    ],
    ids=["cosine", "linear"],
)
def test_scikit_learns_checks(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(USLTSelector(max_steps=2, n_heads=2, **settings))
    assert {result["status"] for result in results} == {"passed"}


# -- images, files, pipelines, the loop


EMBEDDER = SimCLRTransformer(max_steps=2, output="projection")


def test_on_images_the_embedders_encoder_is_where_training_starts():
    selector = quiet(short(embedder=EMBEDDER, train_backbone=False), IMAGES[:60])
    given = selector.embedder_.encoder_.state_dict()
    for name, value in selector.encoder_.state_dict().items():
        assert torch.equal(value, given[name])
    assert selector.assignments_.shape == (60,)
    frozen = FrozenEstimator(selector.embedder_)
    again = quiet(short(embedder=frozen, train_backbone=False), IMAGES[:60])
    assert again.embedder_ is frozen


def test_in_a_pipeline_on_vectors_of_an_embedder():
    pipe = make_pipeline(
        AutoencoderTransformer(5, hidden_sizes=(20,), max_steps=2, random_state=0),
        short(5),
    )
    rows = quiet(pipe, X)[-1].sample_indices_
    assert len(set(rows.tolist())) == 5 and not hasattr(pipe[-1], "embedder_")
    pipe = make_pipeline(EMBEDDER, short(5))
    assert quiet(pipe, IMAGES[:60])[-1].support_.sum() == 5


@pytest.mark.parametrize("known", [0, 12])
def test_in_the_loop_on_images(known):
    x, truth = IMAGES[:80], TARGET[:80]
    loop = ActiveLearningClassifier(
        make_pipeline(
            AutoencoderTransformer(4, max_steps=1, random_state=0), LogisticRegression()
        ),
        initial_selector=short(embedder=EMBEDDER),
        n_samples=10,
        oracle=lambda rows: truth[rows],
        embedder=SimCLRTransformer(max_steps=1),
        random_state=0,
    )
    y = np.full(80, -1)
    y[:known] = 0  # of one class: the first selector is still asked
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = loop.begin(x, y).query()
        assert len(rows) == 10 and rows.min() >= known
        assert loop.initial_selector_.sample_shape_ == (1, 8, 8)  # of the images
        assert loop.teach(rows, truth[rows]).predict(x).shape == (80,)


def test_files_that_cannot_be_read_are_not_asked(tmp_path):
    for i in range(12):
        image = (IMAGES[i].reshape(8, 8) * (255 / IMAGES.max())).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "03.png").write_bytes(b"no image")
    files = sorted(map(str, tmp_path.glob("*.png")))
    selector = short(4, embedder=EMBEDDER, on_error="skip", image_size=8)
    with pytest.warns(UserWarning, match="left out"):
        quiet(selector, files)
    assert 3 not in selector.sample_indices_
    assert selector.labels_[3] == -1 == selector.assignments_[3]
    assert selector.scores_[3] == -np.inf
    assert np.isfinite(np.delete(selector.scores_, 3)).all()
    with pytest.raises(ValueError, match="n_samples=12 .* 1 files .* leaves 11"):
        with pytest.warns(UserWarning):
            selector.set_params(n_samples=12).fit(files)


def test_nothing_left_to_choose():
    selector = short(None).fit(X, Y)
    assert selector.sample_indices_.shape == (0,)
    assert (selector.assignments_ == -1).all() and (selector.scores_ == -np.inf).all()
