"""IIC: groups are found, the best head is kept, collapse is said."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from sklabel import CollapseWarning
from sklabel._core.nested import encoded
from sklabel.augment import Contrastive, sobel
from sklabel.clustering._iic import _IIC, IICClusterer
from sklabel.datasets import load_digit_images
from sklabel.embedding import SimCLRTransformer
from sklabel.losses import iic_loss
from sklabel.metrics import clustering_accuracy
from sklabel.modules import MultiHead
from tests._making import blobs, quiet
from tests._pictures import stripes

X, Y = blobs()


def short(**parameters):
    given = {"n_clusters": 3, "max_epochs": 2, **parameters}
    return IICClusterer(**{"random_state": 0, **given})


def digits(n):
    images, target = load_digit_images(return_X_y=True)
    return images[:n], target[:n]


def weights(clusterer):
    return torch.cat([p.detach().ravel() for p in clusterer.encoder_.parameters()])


def test_views_always_change_the_colors():
    x = np.random.default_rng(0).random((8, 3, 64, 64), dtype=np.float32)
    fitted = quiet(short(max_steps=1, max_epochs=1, backbone="resnet8"), x)
    view = fitted.net_.module_.augment
    assert (view.crop, view.jitter) == ((0.4, 1), (0.4, 0.4, 0.4, 0.125))
    assert (view.jitter_probability, view.grayscale, view.blur) == (1, 0, 0)


def test_groups_of_vectors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        clusterer = short(max_epochs=40, lr=1e-2).fit(X)
    assert clustering_accuracy(Y, clusterer.labels_) > 0.95
    assert clusterer.score(X) > 0.8  # at best log 3 = 1.10


def test_images_and_their_views_are_in_one_cluster():
    images, kinds = stripes(120)
    view = Contrastive(flip=0, crop=(0.6, 1.0), jitter=0.2)
    settings = {"lr": 3e-3, "batch_size": 40, "n_repeats": 2, "precision": "float32"}
    settings |= {"augment": view, "overcluster_epochs": 0}
    clusterer = quiet(short(max_epochs=12, **settings), images)
    # log 3 = 1.10 where all kinds are told apart, 0.64 where two share a cluster
    assert clusterer.score(images) > 0.5
    assert clustering_accuracy(kinds, clusterer.labels_) > 0.6
    untrained = quiet(short(max_steps=1, **{**settings, "lr": 1e-9}), images)
    assert untrained.score(images) < 0.1


def test_what_fit_sets():
    clusterer = quiet(short(lr=1e-2, max_epochs=20), X)
    p = clusterer.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(clusterer.labels_, clusterer.predict(X))
    np.testing.assert_allclose(clusterer.confidence_, p.max(1), rtol=1e-5)
    assert sorted(set(clusterer.labels_)) == list(range(clusterer.n_clusters_))
    assert p.shape == (90, clusterer.n_clusters_)
    figures = clusterer.net_.history[-1]
    assert figures["clusters_used"] == clusterer.n_clusters_
    assert -np.log(3) <= figures["cluster_loss"] <= 0
    assert -np.log(15) <= figures["overcluster_loss"] <= 0
    mean = (figures["cluster_loss"] + figures["overcluster_loss"]) / 2
    np.testing.assert_allclose(figures["train_loss"], mean, rtol=1e-4)


def test_the_agreement_of_neighbors_is_that_of_the_kept_head():
    noise = np.random.default_rng(0).normal(size=(90, 6)).astype(np.float32)
    clusterer = quiet(short(lr=1e-2, max_epochs=5), noise)
    near = NearestNeighbors(n_neighbors=10).fit(encoded(clusterer, noise))
    labels = clusterer.labels_
    agreement = (labels[near.kneighbors(return_distance=False)].T == labels).mean()
    assert 1 / 3 < agreement < 1
    figures = clusterer.net_.history[-1]
    np.testing.assert_allclose(figures["neighbor_agreement"], agreement, rtol=1e-4)


def make_module(augment, n_heads=2, n_repeats=3):
    torch.manual_seed(0)
    return _IIC(
        torch.nn.Identity(),
        MultiHead(6, 15, n_heads, init_std=0.01),
        MultiHead(6, 3, n_heads, init_std=0.01),
        augment,
        n_restarts=0,
        n_repeats=n_repeats,
        marginal_weight=1.5,
        overcluster_epochs=1,
        cluster_epochs=1,
    )


def test_the_loss_is_that_of_all_pairs():
    shifts = iter([0.5, -1.0, 2.0])
    views = []

    def augment(x):
        views.append(x + next(shifts))
        return views[-1]

    module = make_module(augment)
    x = torch.from_numpy(X[:20])
    loss, figures = module.loss(x, None)
    # each plain row stands beside each of its copies
    p1 = module.heads(torch.cat([x] * 3)).softmax(-1)
    p2 = module.heads(torch.cat(views)).softmax(-1)
    torch.testing.assert_close(loss, iic_loss(p1, p2, 1.5).mean())
    torch.testing.assert_close(figures["cluster_loss"], loss.detach())
    torch.testing.assert_close(
        figures["information"], -iic_loss(p1, p2).mean().detach()
    )


def test_passes_go_through_the_two_kinds_of_heads_in_turn(monkeypatch):
    seen = []
    views = _IIC.views

    def spy(self, x, heads):
        seen.append(heads.n_classes)
        return views(self, x, heads)

    monkeypatch.setattr(_IIC, "views", spy)
    quiet(short(batch_size=30, cluster_epochs=2), X)
    assert seen == ([15] * 3 + [3] * 6) * 2
    seen.clear()
    quiet(short(batch_size=30, overcluster_epochs=0), X)
    assert seen == [3] * 6


@pytest.mark.parametrize(
    "n_restarts, epochs, expected",
    [(0, 6, []), (2, 6, [2, 4]), (3, 6, [1, 3, 4]), (9, 3, [1, 2])],
)
def test_heads_start_anew(n_restarts, epochs, expected, monkeypatch):
    seen, restart = [], _IIC.restart

    def spy(self, net, samples):
        others = [*self.backbone.parameters(), *self.overcluster.parameters()]
        others += self.backbone.buffers()
        before = [p.clone() for p in others]
        z = self.paired_features(net, samples)
        old = self.losses_of(self.heads, z)[self.best_head]
        restart(self, net, samples)
        seen.append(len(net.history) - 1)
        # all heads are one now, which is no worse than the best one was
        losses = self.losses_of(self.heads, z)
        assert torch.equal(losses, losses[:1].expand(5))
        assert losses[0] < old + 1e-3
        assert not any(p in net.optimizer_.state for p in self.heads.parameters())
        assert all(map(torch.equal, before, others))
        trained = [*self.backbone.parameters(), *self.overcluster.parameters()]
        assert all(p in net.optimizer_.state for p in trained)

    monkeypatch.setattr(_IIC, "restart", spy)
    quiet(short(n_restarts=n_restarts, max_epochs=epochs), X)
    assert seen == expected


def test_new_heads_find_what_the_old_ones_do_not(monkeypatch):
    # one head that has two groups in a cluster, on features that tell all three apart
    module = make_module(torch.nn.Identity(), n_heads=1, n_repeats=1)
    module.n_restarts, module.marginal_weight = 1, 1.0
    with torch.no_grad():
        module.heads.linear.weight.copy_(torch.eye(3, 6) * 9)
        module.heads.linear.weight[1] = module.heads.linear.weight[2]
    z = torch.from_numpy(X).expand(2, *X.shape)
    monkeypatch.setattr(_IIC, "paired_features", lambda *_: z)
    optimizer = torch.optim.Adam(module.parameters())
    net = SimpleNamespace(optimizer_=optimizer, total_steps_=600, batch_size=30)
    before = module.losses_of(module.heads, z)
    module.restart(net, None)
    after = module.losses_of(module.heads, z)
    assert before > -0.7 and after < -1  # at best -log 3 = -1.10


def test_new_heads_have_their_share_of_the_training(monkeypatch):
    seen = []
    monkeypatch.setattr(
        _IIC, "restart", lambda self, net, samples: seen.append(net.step_)
    )
    # six steps an epoch: after half of the 13 steps the last one is all that is left
    quiet(short(n_restarts=1, batch_size=30, max_epochs=30, max_steps=13), X)
    assert seen == [6]


def test_restarts_are_the_same_after_a_break(tmp_path, monkeypatch):
    settings = {"n_restarts": 2, "max_epochs": 6, "lr": 1e-2}
    whole = quiet(short(**settings), X)
    after_epoch = _IIC.after_epoch

    def breaks(self, net, samples):
        figures = after_epoch(self, net, samples)
        if len(net.history) == 3:
            raise RuntimeError("power cut")
        return figures

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        patch.setattr(_IIC, "after_epoch", breaks)
        quiet(short(**settings, checkpoint_dir=tmp_path), X)
    again = quiet(short(**settings, checkpoint_dir=tmp_path), X)
    torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=0)


def test_a_batch_that_is_too_small_for_its_clusters_is_said():
    with pytest.warns(UserWarning, match="A batch of 8 pairs is too small to"):
        short(n_clusters=10, batch_size=8, n_repeats=1, max_steps=2).fit(X)


def test_the_sub_head_of_the_lowest_loss_is_kept(monkeypatch):
    losses, before = [], []
    after_epoch, keep_best = _IIC.after_epoch, _IIC.keep_best

    def spy(self, net, samples):
        losses.append(self.head_losses)
        figures = after_epoch(self, net, samples)
        mean = losses[-1].mean() / (net.history[-1, "train_batch_count"] // 2)
        assert net.history[-1, "cluster_loss"] == pytest.approx(float(mean), rel=1e-5)
        return figures

    def spy_before(self):
        before.append(self.heads.linear.weight.detach().clone())
        return keep_best(self)

    monkeypatch.setattr(_IIC, "after_epoch", spy)
    monkeypatch.setattr(_IIC, "keep_best", spy_before)
    clusterer = quiet(short(n_sub_heads=4, max_epochs=20, lr=1e-2), X)
    best = int(losses[-1].argmin())
    heads = clusterer.net_.module_.heads
    assert heads.n_heads == 1 and clusterer.n_clusters_ == 3
    torch.testing.assert_close(heads.linear.weight, before[0][3 * best : 3 * best + 3])


def test_heads_start_as_published():
    module = IICClusterer(4)
    module.sample_shape_, module._continued = (6,), None
    built = module._build_module(None, None)
    for heads in (built.heads, built.overcluster):
        assert abs(float(heads.linear.weight.detach().std()) - 0.01) < 1e-3
        assert (heads.linear.bias == 0).all()


def test_the_same_seed_gives_the_same_clusters_and_score():
    a, b = (quiet(short(lr=1e-2), X) for _ in range(2))
    np.testing.assert_array_equal(a.predict_proba(X), b.predict_proba(X))
    assert a.score(X) == a.score(X) == b.score(X)


def test_edges_in_place_of_colors():
    x = np.random.default_rng(0).random((20, 8, 9, 3), dtype=np.float32)
    clusterer = quiet(short(sobel=True, max_steps=2), x)
    grey = (x @ np.float32([0.299, 0.587, 0.114]))[..., None].repeat(3, -1)
    expected = clusterer.predict_proba(x)
    np.testing.assert_allclose(clusterer.predict_proba(grey), expected, atol=1e-4)
    encoder = clusterer.encoder_
    images = torch.from_numpy(x).permute(0, 3, 1, 2)
    h = encoder.body[1].eval()(sobel(images))
    torch.testing.assert_close(encoder.eval()(images), h)
    # the trained encoder takes images like any other
    SimCLRTransformer(backbone=clusterer, max_steps=1).fit(x)


def test_edges_of_vectors_are_refused():
    with pytest.raises(ValueError, match="sobel=True needs images.*6"):
        short(sobel=True).fit(X)


def test_one_cluster_and_too_many():
    assert set(quiet(short(n_clusters=1), X).labels_) == {0}
    with pytest.raises(ValueError, match="n_clusters=91 is larger.*90"):
        short(n_clusters=91).fit(X)


@pytest.mark.parametrize(
    "x, settings",
    [
        (np.zeros((40, 6), np.float32), {}),
        (np.repeat(X[:2], 20, 0), {}),
        (X, {"marginal_weight": 0.01, "max_epochs": 30, "lr": 1e-2}),
    ],
    ids=["constant", "fewer distinct rows than clusters", "no entropy"],
)
def test_collapse_is_said_with_what_to_change(x, settings):
    with pytest.warns(CollapseWarning, match="max_epochs=.*marginal_weight="):
        clusterer = short(**settings).fit(x)
    assert clusterer.n_clusters_ < clusterer.n_clusters
    assert clusterer.predict_proba(x).shape[1] == clusterer.n_clusters_


def test_training_goes_on_with_what_was_learned():
    clusterer = quiet(short(lr=1e-2, max_epochs=30, warm_start=True), X)
    before, labels = weights(clusterer).clone(), clusterer.labels_
    clusterer.set_params(lr=1e-8, max_epochs=1, n_overclusters=4).fit(X)
    torch.testing.assert_close(weights(clusterer), before, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(clusterer.labels_, labels)
    assert clusterer.net_.module_.overcluster.n_classes == 4


def test_the_same_encoder_for_another_number_of_clusters(tmp_path, monkeypatch):
    clusterer = quiet(short(lr=1e-2, max_epochs=30, warm_start=True), X)
    before = weights(clusterer).clone()
    assert quiet(clusterer.set_params(n_clusters=2), X).n_clusters_ == 2
    clusterer.set_params(n_clusters=8, lr=1e-8, max_steps=1)
    assert quiet(clusterer, X).n_clusters_ < 8  # outputs were dropped
    assert (weights(clusterer) - before).abs().max() < 1  # still the trained encoder
    # what is broken off goes on with heads of the same number
    clusterer.set_params(max_steps=None, max_epochs=4, checkpoint_dir=tmp_path)
    before_epoch = _IIC.before_epoch

    def interrupt(self, net, samples):
        assert (self.heads.n_classes, self.heads.n_heads) == (8, 5)
        if len(net.history) == 3:
            raise KeyboardInterrupt
        before_epoch(self, net, samples)

    with monkeypatch.context() as patch:
        patch.setattr(_IIC, "before_epoch", interrupt)
        with pytest.warns(UserWarning, match="interrupted"):
            quiet(clusterer, X)
    assert clusterer.n_iter_ == 2
    assert quiet(clusterer, X).n_iter_ == 4


@pytest.mark.parametrize("marginal_weight", [1.0, 1.1])
def test_views_that_say_nothing_are_told(marginal_weight):
    settings = {"marginal_weight": marginal_weight, "lr": 1e-8, "max_epochs": 2}
    with pytest.warns(CollapseWarning, match="information 0.* at best 1.10. Raise lr="):
        short(**settings).fit(X)
    with warnings.catch_warnings():
        # above 1, entropy may merge two clusters; that warning is another one
        warnings.simplefilter("ignore", CollapseWarning)
        warnings.filterwarnings("error", "The clusters of views", CollapseWarning)
        settings |= {"lr": 1e-2, "max_epochs": 40, "batch_size": 30}
        clusterer = short(**settings).fit(X)
    assert 0.2 < clusterer.net_.history[-1, "information"] < np.log(3)


@pytest.mark.parametrize(
    "n_clusters, n_others", [(3, 15), (100, 500), (120, 500), (600, 600)]
)
def test_over_clustering_heads_stay_of_a_size_that_can_be_trained(n_clusters, n_others):
    clusterer = short(n_clusters=n_clusters)
    assert clusterer._n_overclusters() == n_others
    assert short(n_clusters=n_clusters, n_overclusters=7)._n_overclusters() == 7


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_many_clusters_take_a_step_of_bounded_size():
    x = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    settings = {"n_clusters": 500, "max_steps": 2, "batch_size": 300, "n_restarts": 1}
    heads = short(**settings).fit(x).net_.module_.overcluster
    assert heads.n_heads * heads.n_classes**2 <= 5 * 500**2
