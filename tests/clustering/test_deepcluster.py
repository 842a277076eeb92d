"""DeepCluster: golden values, groups are found, collapse is said, fits resume."""

import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from skorch.callbacks import Callback

import sklabel
from sklabel import CollapseWarning
from sklabel.augment import Contrastive, sobel
from sklabel.clustering._deepcluster import (
    DeepClusterer,
    _cluster,
    _DeepCluster,
    balanced_rows,
    fit_whitening,
    whiten,
)
from sklabel.datasets import load_digit_images
from sklabel.metrics import clustering_accuracy
from tests._golden import cases
from tests._making import blobs, mixed, quiet
from tests._pictures import stripes

X, Y = blobs()


def short(**parameters):
    given = {"n_clusters": 3, "max_epochs": 3, "random_state": 0, **parameters}
    return DeepClusterer(**given)


# -- golden values


def test_golden_whitening():
    for case in cases("deepcluster_whiten"):
        Z = case["features"]
        W = whiten(Z, *fit_whitening(Z, int(case["n_components"])))
        np.testing.assert_allclose(W @ W.T, case["gram"], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(W @ W.T, case["gram_public"], atol=1e-3)


def test_golden_sampler():
    for case in cases("deepcluster_sampler"):
        labels, n_samples = case["labels"], int(case["n_samples"])
        sizes, n_draws = case["cluster_sizes"], int(case["per_cluster"])
        for _ in range(5):
            rows = balanced_rows(labels, n_samples)
            counts = np.bincount(labels[rows], minlength=len(sizes))
            assert len(rows) == int(case["epoch_length"])
            assert (counts <= int(case["max_count_per_cluster"])).all()
            assert (counts[sizes > 0] >= n_draws - int(case["dropped"])).all()
            assert (counts[sizes == 0] == 0).all()
            distinct = (sizes > 0) & ~case["drawn_with_replacement"]
            for cluster in np.flatnonzero(distinct):
                drawn = rows[labels[rows] == cluster]
                assert len(set(drawn)) == len(drawn)


def test_golden_order():
    for case in cases("deepcluster_order"):
        labels, n = case["assignment"], len(case["assignment"])
        counts = np.zeros(len(case["cluster_sizes"]))
        for _ in range(100):
            rows = balanced_rows(labels, n)
            counts += np.bincount(labels[rows], minlength=len(counts)) / 100
        np.testing.assert_allclose(counts, case["mean_count_intended"], rtol=0.05)


def test_golden_sobel():
    for case in cases("sobel"):
        found = sobel(torch.from_numpy(case["images"]), "mean")
        np.testing.assert_allclose(found, case["deepcluster"], rtol=1e-6, atol=1e-8)


# -- the parts


def test_whitened_features_have_one_variance_in_every_direction():
    Z = np.random.default_rng(0).normal(size=(300, 5)) * [1, 10, 100, 0.1, 0] + 7
    mean, components = fit_whitening(Z, 256)
    assert components.shape == (5, 4)  # nothing varies along the last axis
    np.testing.assert_allclose(
        np.cov((Z - mean) @ components, rowvar=False), np.eye(4), atol=0.01
    )
    np.testing.assert_allclose(np.linalg.norm(whiten(Z, mean, components), axis=1), 1)
    assert fit_whitening(Z, 2)[1].shape == (5, 2)


def test_equal_rows_are_whitened_to_zeros():
    Z = np.full((20, 4), 3e5, np.float32)
    W = whiten(Z, *fit_whitening(Z, 3))
    assert W.shape == (20, 1) and (W == 0).all()


def test_many_rows_are_whitened_in_blocks(monkeypatch):
    from sklabel.clustering import _deepcluster

    whole = _deepcluster._blocks
    Z = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    W = whiten(Z, *fit_whitening(Z, 3))
    monkeypatch.setattr(_deepcluster, "_blocks", lambda Z: whole(Z, size=7))
    parts = whiten(Z, *fit_whitening(Z, 3))
    np.testing.assert_allclose(parts @ parts.T, W @ W.T, rtol=1e-6, atol=1e-9)


def test_rows_without_a_cluster_are_never_drawn():
    labels = np.array([-1, 4, 4, -1, 0, 4, 4])
    rows = np.concatenate([balanced_rows(labels, 5) for _ in range(20)])
    assert set(rows) == {1, 2, 4, 5, 6}


def test_labels_of_k_means_have_no_gaps():
    Z = np.repeat(np.eye(3), 10, 0)
    labels, centers = _cluster(Z, 8, 20)
    assert set(labels) == {0, 1, 2} and centers.shape == (3, 3)
    np.testing.assert_allclose(centers[labels], Z, atol=1e-6)


def test_the_loss_is_the_slow_loop():
    losses = []

    class Compare(Callback):  # the head is gone after the fit
        def on_batch_begin(self, net, batch=None, **_):
            x, y = batch
            with torch.no_grad():
                logits = net.module_.head(net.module_.backbone(x)).double().numpy()
            self.loss, self.hits = 0.0, 0
            for scores, label in zip(logits, y.tolist()):
                self.loss -= scores[label] - np.log(np.exp(scores).sum())
                self.hits += scores.argmax() == label

        def on_batch_end(self, net, batch=None, loss=None, view_agreement=None, **_):
            n = len(batch[0])
            losses.append(float(loss))
            np.testing.assert_allclose(losses[-1], self.loss / n, rtol=1e-5)
            np.testing.assert_allclose(float(view_agreement), self.hits / n, rtol=1e-5)

    settings = {"backbone": torch.nn.Linear(X.shape[1], 4), "augment": None}
    quiet(
        short(
            **settings,
            n_training_clusters=5,
            sobel=False,
            optimizer="sgd",
            lr=0.5,
            warmup_epochs=0,
            batch_size=30,
            net_params={"callbacks": [Compare]},
        ),
        X,
    )
    assert len(losses) > 6 and losses[-1] < 0.9 * losses[0]


def test_the_head_is_new_each_time_and_has_an_optimizer_of_its_own(monkeypatch):
    heads, rates = [], []
    reassign, after_step = _DeepCluster.reassign, _DeepCluster.after_step

    def spy(self, net, samples):
        before = self.head.weight.detach().clone()
        reassign(self, net, samples)
        taken = [p for g in net.optimizer_.param_groups for p in g["params"]]
        assert not any(p is q for p in taken for q in self.head.parameters())
        assert len(taken) == len(list(self.backbone.parameters()))
        assert (self.head.bias == 0).all()
        heads.append((before, self.head.weight.detach().clone()))

    def spy_step(self):
        before = self.head.weight.detach().clone()
        gradient = self.head.weight.grad.clone()
        after_step(self)
        group = self.head_optimizer.param_groups[0]
        assert group["momentum"] == 0 and group["weight_decay"] == 0.1
        expected = before - group["lr"] * (gradient + 0.1 * before)
        torch.testing.assert_close(self.head.weight.detach(), expected)
        assert self.head.weight.grad is None
        rates.append((group["lr"], self.net_group["lr"]))

    monkeypatch.setattr(_DeepCluster, "reassign", spy)
    monkeypatch.setattr(_DeepCluster, "after_step", spy_step)
    quiet(short(schedule="cosine", weight_decay=0.1), X)
    assert len(heads) == 3
    for _, new in heads:
        assert 0.008 < float(new.std()) < 0.012
    (_, first), (trained, second), _ = heads
    assert not torch.equal(first, trained) and not torch.equal(first, second)
    assert all(a == b for a, b in rates) and rates[0][0] > rates[-1][0]


def test_what_an_epoch_trains_on(monkeypatch):
    seen = []
    loss = _DeepCluster.loss

    def spy(self, x, y):
        assert not x.isnan().any()
        seen.append((y, self.assigned))
        value, figures = loss(self, x, y)
        h = self.head(self.backbone(x)).float()
        torch.testing.assert_close(value, torch.nn.functional.cross_entropy(h, y))
        hits = (h.argmax(1) == y).float().mean()
        torch.testing.assert_close(figures["view_agreement"], hits)
        return value, figures

    monkeypatch.setattr(_DeepCluster, "loss", spy)
    body = torch.nn.Linear(6, 5)
    quiet(short(augment=None, backbone=body, max_epochs=1, n_training_clusters=6), X)
    y, assigned = torch.cat([y for y, _ in seen]), seen[0][1]
    assert len(y) == 90
    counts = torch.bincount(y)
    assert len(counts) == int(assigned.max()) + 1
    assert counts.max() - counts.min() <= 6  # whatever the sizes of the clusters


# -- learning


@pytest.mark.parametrize("n_training_clusters", [None, 3])
def test_groups_of_vectors(n_training_clusters):
    clusterer = DeepClusterer(
        3, n_training_clusters=n_training_clusters, max_epochs=20, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        labels = clusterer.fit_predict(mixed(X))
    assert clustering_accuracy(Y, labels) > 0.9


@pytest.mark.parametrize("sobel", [False, True])
def test_groups_of_images(sobel):
    images, kinds = stripes(120)
    clusterer = DeepClusterer(
        3,
        sobel=sobel,
        augment=Contrastive(flip=0, crop=(0.6, 1.0), jitter=0.2),
        max_epochs=10,
        batch_size=40,
        lr=0.2,
        precision="float32",
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        labels = clusterer.fit_predict(images)
    assert clustering_accuracy(kinds, labels) > 0.9
    history = clusterer.net_.history
    assert history[0, "nmi"] == 0 and history[-1, "nmi"] > 0.4
    # each epoch has new clusters and a new head: losses of two epochs do not compare
    assert history[-1, "view_agreement"] > 0.45  # chance: 0.33
    assert history[-1, "neighbor_agreement"] > 0.8
    names = ("view_agreement", "confident_share", "neighbor_agreement")
    shares = history[:, names]
    assert all(0 <= share <= 1 for epoch in shares for share in epoch)


def test_what_fit_sets():
    clusterer = quiet(short(n_training_clusters=12, n_components=4), X)
    np.testing.assert_array_equal(clusterer.labels_, clusterer.predict(X))
    assert sorted(set(clusterer.labels_)) == list(range(clusterer.n_clusters_))
    assert clusterer.n_clusters_ == 3
    n_centers = len(clusterer.cluster_centers_)
    assert 3 < n_centers <= 12
    assert clusterer.cluster_centers_.shape == (n_centers, 4)
    assert sorted(set(clusterer.center_labels_)) == [0, 1, 2]
    Z = clusterer.transform(X)
    assert Z.shape == (90, 128) and Z.dtype == np.float32
    assert clusterer.whitening_mean_.shape == (128,)
    assert clusterer.whitening_components_.shape == (128, 4)
    assert -2 < clusterer.score(X) < 0
    assert not hasattr(clusterer, "predict_proba")
    names = {"train_loss", "nmi", "clusters_used", "largest_cluster"}
    names |= {"view_agreement", "confident_share"}
    assert all(names <= set(epoch) for epoch in clusterer.net_.history)
    W = whiten(Z, clusterer.whitening_mean_, clusterer.whitening_components_)
    nearest = np.square(W[:, None] - clusterer.cluster_centers_).sum(2).argmin(1)
    np.testing.assert_array_equal(clusterer.labels_, clusterer.center_labels_[nearest])


def test_confidence_is_the_distance_from_the_border_of_the_cluster():
    clusterer = quiet(short(n_training_clusters=12, n_components=4), X)
    W = whiten(
        clusterer.transform(X),
        clusterer.whitening_mean_,
        clusterer.whitening_components_,
    )
    distances = np.linalg.norm(W[:, None] - clusterer.cluster_centers_, axis=2)
    # centers that were merged into one cluster are no rivals
    rival = clusterer.center_labels_ != clusterer.labels_[:, None]
    other = np.where(rival, distances, np.inf).min(1)
    expected = 1 - distances.min(1) / other
    np.testing.assert_allclose(clusterer.confidence_, expected, atol=1e-5)
    np.testing.assert_array_equal(clusterer.confidence_, clusterer.score_samples(X))
    assert clusterer.score(X) == pytest.approx(-np.square(distances.min(1)).mean())
    alone = quiet(short(n_clusters=1), X)
    np.testing.assert_array_equal(alone.confidence_, 1)


def test_assignments_are_kept_between_reassignments():
    history = quiet(short(reassign_epochs=2, max_epochs=6), X).net_.history
    nmi = history[:, "nmi"]
    assert nmi[0] == 0 and nmi[1] == nmi[3] == nmi[5] == 1
    assert 0 < nmi[2] < 1


@pytest.mark.parametrize("n, k, clusters, components", [(90, 3, 3, 2), (60, 12, 12, 2)])
def test_default_numbers(n, k, clusters, components, monkeypatch):
    asked = []
    init = _DeepCluster.__init__

    def spy(self, *args, **settings):
        asked.append((args[-1], settings["n_components"]))
        init(self, *args, **settings)

    monkeypatch.setattr(_DeepCluster, "__init__", spy)
    quiet(short(n_clusters=k, max_steps=1), X[:n])
    assert asked == [(clusters, components)]
    large = DeepClusterer(10)._check_counts
    assert large(800) == (16, 16) and large(50_000) == (100, 256)


@pytest.mark.parametrize("optimizer", ["adam", "lars"])
def test_the_same_seed_gives_the_same_bits(optimizer):
    first, again = (quiet(short(optimizer=optimizer), X) for _ in range(2))
    np.testing.assert_array_equal(first.transform(X), again.transform(X))
    np.testing.assert_array_equal(first.cluster_centers_, again.cluster_centers_)
    np.testing.assert_array_equal(first.labels_, again.labels_)


# -- going on


@pytest.mark.parametrize("reassign_epochs", [1, 2])
def test_an_interrupted_fit_goes_on_to_the_same_bits(
    reassign_epochs, tmp_path, monkeypatch
):
    settings = {"reassign_epochs": reassign_epochs, "max_epochs": 6, "lr": 0.05}
    whole = quiet(short(**settings), X)
    before_epoch = _DeepCluster.before_epoch

    def interrupt(self, net, samples):
        if len(net.history) == 4:  # with reassign_epochs=2 in the middle of a pair
            raise KeyboardInterrupt
        before_epoch(self, net, samples)

    clusterer = short(**settings, checkpoint_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(_DeepCluster, "before_epoch", interrupt)
        with pytest.warns(UserWarning, match="interrupted"):
            quiet(clusterer, X)
    assert clusterer.interrupted_ and clusterer.n_iter_ == 3
    assert clusterer.predict(X).shape == (90,)
    quiet(clusterer, X)
    assert not clusterer.interrupted_ and clusterer.n_iter_ == 6
    np.testing.assert_array_equal(clusterer.transform(X), whole.transform(X))
    np.testing.assert_array_equal(clusterer.labels_, whole.labels_)
    np.testing.assert_array_equal(clusterer.cluster_centers_, whole.cluster_centers_)
    for name in ("nmi", "clusters_used", "largest_cluster", "train_loss"):
        assert clusterer.net_.history[:, name] == whole.net_.history[:, name]


def test_warm_start_takes_the_encoder_and_other_numbers_of_clusters():
    clusterer = quiet(short(warm_start=True), X)
    before = clusterer.encoder_.body[0].weight.detach().clone()
    clusterer.set_params(n_clusters=4, n_training_clusters=20, lr=1e-8, max_steps=1)
    after = quiet(clusterer, X).encoder_.body[0].weight
    torch.testing.assert_close(after, before)
    assert clusterer.n_clusters_ == 4


@pytest.mark.parametrize("sobel", [False, True])
def test_saved_and_loaded(sobel, tmp_path):
    images = load_digit_images().images[:40]
    fitted = quiet(short(sobel=sobel), images)
    assert not any("head" in name for name in fitted.net_.module_.state_dict())
    fitted.save(tmp_path / "model")
    loaded = sklabel.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(images), fitted.labels_)
    np.testing.assert_array_equal(loaded.transform(images), fitted.transform(images))
    quiet(loaded.set_params(warm_start=True), images)


# -- hard inputs


@pytest.mark.parametrize(
    "x, n_distinct",
    [
        (np.zeros((40, 6), np.float32), 1),
        (np.repeat(X[:2], 20, 0), 2),
        (np.tile(X[:5], (60, 1)), 5),
        (np.full((40, 8, 8), 7, np.uint8), 1),
        (np.tile(load_digit_images().images[:4], (30, 1, 1)), 4),
    ],
    ids=["constant", "two rows", "five rows", "constant images", "four images"],
)
def test_fewer_distinct_rows_than_clusters(x, n_distinct):
    with pytest.warns(CollapseWarning, match="n_training_clusters=.*lr=.*n_clusters"):
        clusterer = short(n_clusters=8).fit(x)
    assert clusterer.n_clusters_ == n_distinct
    assert sorted(set(clusterer.labels_)) == list(range(n_distinct))
    _, of_row = np.unique(x, axis=0, return_inverse=True)
    assert clustering_accuracy(of_row.ravel(), clusterer.labels_) == 1
    assert clusterer.net_.history[-1, "clusters_used"] == n_distinct


@pytest.mark.parametrize(
    "agreements, warned",
    [
        ([0.9, 0.17, 0.15], True),
        ([0.9, 0.1, 0.0], True),
        ([0.1, 0.1, 0.4], False),
        # the last epoch may be one step of a new layer
        ([0.1, 0.4, 0.0], False),
    ],
)
def test_a_layer_that_learns_nothing_is_said(agreements, warned):
    clusterer = short(n_training_clusters=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        clusterer.fit(X)
    for epoch, agreement in zip(clusterer.net_.history, agreements, strict=True):
        epoch |= {"view_agreement": agreement, "clusters_used": 6}
    found = "view_agreement 0.*, by chance 0.167. Raise lr=.* or reassign_epochs=1"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        clusterer._check_health(clusterer.transform(X))
    assert [bool(re.search(found, str(w.message))) for w in said] == [True] * warned


@pytest.mark.parametrize("max_steps", [None, 23 * 4 + 1])
def test_a_layer_that_learns_is_not_warned_of(max_steps):
    settings = {"n_clusters": 3, "n_training_clusters": 6, "max_epochs": 4}
    settings |= {"random_state": 0, "max_steps": max_steps, "batch_size": 4}
    with warnings.catch_warnings():  # the last of 93 steps has a new layer
        warnings.simplefilter("error", CollapseWarning)
        DeepClusterer(**settings).fit(X)


def test_one_large_cluster_is_said():
    x = np.r_[np.zeros((70, 6)), X[:30]].astype(np.float32)
    with pytest.warns(CollapseWarning, match="One cluster holds.*n_training_clusters"):
        short(n_clusters=10).fit(x)


@pytest.mark.parametrize("shape", [(9, 7), (12, 5, 3), (33, 20, 3), (2, 3)])
@pytest.mark.parametrize("sobel", [False, True])
def test_images_of_any_size(shape, sobel):
    x = np.random.default_rng(0).integers(0, 256, (20, *shape), dtype=np.uint8)
    clusterer = quiet(short(sobel=sobel, max_steps=2), x)
    assert sorted(set(clusterer.labels_)) == list(range(clusterer.n_clusters_))
    assert np.isfinite(clusterer.transform(x)).all()


def test_one_cluster_as_many_as_rows_and_too_many():
    assert set(quiet(short(n_clusters=1), X).labels_) == {0}
    assert sorted(quiet(short(n_clusters=7), X[:7]).labels_) == list(range(7))
    with pytest.raises(ValueError, match="n_clusters=91 is larger.*90"):
        short(n_clusters=91).fit(X)
    for n in (2, 91):
        with pytest.raises(ValueError, match=f"n_training_clusters={n} must.*3.*90"):
            short(n_training_clusters=n).fit(X)


def test_sobel_of_vectors_is_refused():
    with pytest.raises(ValueError, match="sobel=True needs images.*image_shape"):
        short(sobel=True).fit(X)
    assert quiet(short(sobel=True, image_shape=(2, 3)), X).n_clusters_ == 3


def test_unreadable_files_get_no_cluster(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "03.png").write_bytes(b"no image")
    files = sorted(map(str, tmp_path.glob("*.png")))
    clusterer = short(n_clusters=2, on_error="skip", image_size=8)
    with pytest.warns(UserWarning, match="left out"):
        quiet(clusterer, files)
    assert clusterer.labels_[3] == -1
    assert (np.delete(clusterer.labels_, 3) >= 0).all()
    with pytest.warns(UserWarning):
        np.testing.assert_array_equal(clusterer.predict(files), clusterer.labels_)
    with pytest.warns(UserWarning):
        assert np.isfinite(clusterer.score(files))
