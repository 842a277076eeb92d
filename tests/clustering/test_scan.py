"""SCAN: groups are found, the best head and epoch are kept, collapse is said."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.frozen import FrozenEstimator
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline

import sklabel
from sklabel import CollapseWarning
from sklabel._core.samplers import Shuffled
from sklabel._core.samples import Samples
from sklabel.augment import Contrastive
from sklabel.clustering import SCANClusterer, _scan
from sklabel.clustering._scan import _SCAN, _KeepingSelfLabel, _SelfLabel
from sklabel.datasets import load_digit_images
from sklabel.embedding import MoCoTransformer, SimCLRTransformer
from sklabel.losses import scan_head_scores, scan_loss
from sklabel.metrics import clustering_accuracy
from sklabel.modules import SplitBatchNorm
from sklabel.neighbors import kneighbors
from tests._making import blobs, quiet
from tests._pictures import stripes

X, Y = blobs()


def short(**parameters):
    given = {"n_clusters": 3, "max_epochs": 2, "self_label_epochs": 1, **parameters}
    return SCANClusterer(**{"random_state": 0, **given})


def test_groups_of_vectors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        labels = SCANClusterer(3, lr=1e-2, random_state=0).fit_predict(X)
    assert clustering_accuracy(Y, labels) > 0.95


def test_groups_of_images():
    images, kinds = stripes(120)
    view = Contrastive(flip=0, crop=(0.6, 1.0), jitter=0.2)
    settings = {"batch_size": 40, "augment": view, "precision": "float32"}
    clusterer = short(
        n_neighbors=5,
        embedder=SimCLRTransformer(max_epochs=8, **settings),
        max_epochs=10,
        self_label_epochs=2,
        lr=1e-3,
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        labels = clusterer.fit_predict(images)
    assert clustering_accuracy(kinds, labels) > 0.9
    history = clusterer.net_.history
    stages = ["cluster"] * 10 + ["self-label"] * 2
    assert [epoch["stage"] for epoch in history] == stages
    assert clusterer.n_iter_ == 12 and history[9]["clusters_used"] == 3
    assert all(epoch["neighbor_agreement"] > 0.8 for epoch in history[9:])


def test_what_fit_sets():
    clusterer = quiet(short(lr=1e-2, max_epochs=30), X)
    p = clusterer.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(clusterer.labels_, clusterer.predict(X))
    np.testing.assert_allclose(clusterer.confidence_, p.max(1), rtol=1e-5)
    assert sorted(set(clusterer.labels_)) == list(range(clusterer.n_clusters_))
    assert p.shape == (90, clusterer.n_clusters_)


@pytest.mark.parametrize("n_neighbors", [1, 5, 500])
def test_neighbors_are_the_nearest(n_neighbors):
    found = quiet(short(n_neighbors=n_neighbors), X).neighbors_
    k = min(n_neighbors, 89) + 1
    Z = (X - X.mean(0)) / X.std(0)
    expected = NearestNeighbors(n_neighbors=k).fit(Z).kneighbors(Z)[1]
    assert found.shape == (90, k)
    np.testing.assert_array_equal(found[:, 0], np.arange(90))
    same = [len(set(a) & set(b)) for a, b in zip(found, expected, strict=True)]
    assert np.mean(same) > 0.99 * k


def test_the_loss_is_the_sum_over_heads():
    prior = torch.tensor([0.5, 0.3, 0.2])
    module = _SCAN(
        torch.nn.Identity(), _heads(2), torch.nn.Identity(), 2.0, prior, True
    )
    a, b = torch.from_numpy(X[:20]), torch.from_numpy(X[20:40])
    expected = sum(
        scan_loss(p, q, 2.0, prior)
        for p, q in zip(module._logits(a), module._logits(b), strict=True)
    )
    torch.testing.assert_close(module.loss((a, b), None), expected)


def _heads(n):
    from sklabel.modules import MultiHead

    torch.manual_seed(0)
    return MultiHead(6, 3, n)


def test_the_epoch_and_head_of_the_lowest_score_are_kept(monkeypatch):
    kept = []
    keep_best = _SCAN.keep_best

    def spy(self):
        kept.append((float(self.best.score), int(self.best_head)))
        return keep_best(self)

    monkeypatch.setattr(_SCAN, "keep_best", spy)
    clusterer = quiet(short(n_heads=3, max_epochs=6, lr=1e-2), X)
    clustering = [e for e in clusterer.net_.history if e["stage"] == "cluster"]
    scores = [epoch["score"] for epoch in clustering]
    np.testing.assert_allclose(kept[0][0], min(scores), rtol=1e-6)
    best = [epoch["best"] for epoch in clustering]
    assert best == [score < min([*scores[:i], 99]) for i, score in enumerate(scores)]
    assert kept[0][1] in (0, 1, 2)


def test_self_labeling_stops_before_it_loses_a_cluster(monkeypatch):
    def ruin(self, x, y):  # a loss that makes everything one cluster
        logits = self.heads(self.backbone(x))[0]
        return -10 * logits[:, 0].mean() + 10 * logits[:, 1:].mean()

    good = quiet(short(lr=1e-2, max_epochs=30, self_label_epochs=0), X)
    assert good.n_clusters_ == 3
    monkeypatch.setattr(_SelfLabel, "loss", ruin)
    settings = {"lr": 1e-2, "max_epochs": 30, "self_label_epochs": 200}
    with pytest.warns(
        CollapseWarning,
        match=r"empty; the weights .* are kept. Raise self_label_threshold=0.99, ",
    ):
        kept = short(**settings).fit(X)
    assert kept.n_clusters_ == 3 and kept.n_iter_ < 200
    taught = [e for e in kept.net_.history if e["stage"] == "self-label"]
    assert taught[-1]["lost_clusters"] > 0 == taught[0]["lost_clusters"]
    assert not taught[-1]["best"]
    np.testing.assert_array_equal(kept.labels_, good.labels_)
    with pytest.warns(CollapseWarning, match="entropy_weight"):
        lost = short(**settings, keep_clusters=False).fit(X)
    assert lost.n_clusters_ < 3
    # not even where the clustering loss likes it
    falling = iter(range(0, -1000, -1))
    monkeypatch.setattr(_KeepingSelfLabel, "clustering_loss", lambda *_: next(falling))
    assert quiet(short(**settings), X).n_clusters_ == 3


@pytest.mark.parametrize("after", [[0, 0, 2], [0, 0, 0], [0, 1, 2], [1, 1, 0]])
def test_a_lost_cluster_is_seen_where_another_comes_into_use(after, monkeypatch):
    class Net:
        stopped = False

        def stop(self):
            self.stopped = True

        def evaluate(self, samples, rows):
            return p[rows]

    p = torch.eye(3)[[0, 1, 1]]
    sampler = Shuffled(Samples(np.zeros((3, 1)), (1,)))
    parts = torch.nn.Identity(), _heads(1), torch.nn.Identity()
    more = {"neighbors": None, "entropy_weight": 5.0, "prior": None}
    module, net = _KeepingSelfLabel(*parts, 0.9, True, True, **more), Net()
    module.clustering_loss = lambda p: 1.0
    module.before_epoch(net, sampler)
    p = torch.eye(3)[after]
    module.after_epoch(net, sampler)
    assert net.stopped == (not {0, 1} <= set(after))
    module.keep_best()
    assert "best.used" in module.state_dict()
    module.drop_training_state()
    assert not any("best" in name for name in module.state_dict())


def test_neighbors_are_searched_with_the_seed(monkeypatch):
    seeds = []

    def spy(*args, random_state=None, **kwargs):
        seeds.append(random_state)
        return kneighbors(*args, **kwargs)

    monkeypatch.setattr(_scan, "kneighbors", spy)
    for seed in (0, 0, 1):
        quiet(short(max_steps=1, random_state=seed), X)
    assert seeds[0] == seeds[1] != seeds[2] and None not in seeds


@pytest.mark.parametrize("n_heads", [1, 3])
def test_warm_start_keeps_the_head_or_makes_another_number_of_outputs(n_heads):
    settings = {
        "lr": 1e-2,
        "max_epochs": 30,
        "self_label_epochs": 0,
        "n_heads": n_heads,
    }
    fitted = quiet(short(**settings, warm_start=True), X)
    labels, before = fitted.labels_, fitted.encoder_.body[0].weight.detach().clone()
    quiet(fitted.set_params(lr=1e-8, max_steps=1), X)
    np.testing.assert_array_equal(fitted.labels_, labels)
    quiet(fitted.set_params(n_clusters=2), X)
    assert fitted.predict_proba(X).shape[1] == fitted.n_clusters_ <= 2
    torch.testing.assert_close(fitted.encoder_.body[0].weight, before)
    # outputs that were dropped can be found again
    prior = [0.5, 0.3, 0.2, 0, 0, 0]
    fitted.set_params(n_clusters=6, prior=prior, lr=1e-2, max_steps=None)
    n_used = quiet(fitted, X).n_clusters_
    assert n_used <= 3
    quiet(fitted.set_params(prior=None, entropy_weight=20.0, max_epochs=60), X)
    assert fitted.n_clusters_ > n_used


def test_a_backbone_that_is_not_trained_keeps_its_bits():
    body = torch.nn.Linear(6, 4)
    module = quiet(
        short(backbone=body, train_backbone=False, self_label_threshold=0.3), X
    ).encoder_.body
    assert torch.equal(module.weight, body.weight)


def test_a_prior_is_followed():
    # where there are no groups, the prior alone says how large clusters are
    noise = np.random.default_rng(0).normal(size=(90, 6)).astype(np.float32)
    clusterer = short(
        n_clusters=2, prior=[4, 1], lr=1e-2, max_epochs=50, self_label_epochs=0
    )
    shares = quiet(clusterer, noise).predict_proba(noise).mean(0)
    np.testing.assert_allclose(shares, [0.8, 0.2], atol=0.15)
    np.testing.assert_allclose(clusterer.prior_, [0.8, 0.2])
    # a share of zero is a cluster that nobody wants
    clusterer.set_params(n_clusters=3, prior=[1, 1, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        assert clusterer.fit(X[Y < 2]).n_clusters_ == 2


@pytest.mark.parametrize(
    "prior, message",
    [
        ([1, 2, 3], r"prior.*\(3,\)"),
        ([0, 0], r"prior=\[0, 0\] must hold finite shares"),
        ([1, -1], "not negative"),
        ([1, np.inf], "finite"),
    ],
)
def test_a_prior_that_is_none_is_refused_before_the_embedder_learns(prior, message):
    class Unfit(SimCLRTransformer):
        def fit(self, X, y=None):
            raise AssertionError

    with pytest.raises(ValueError, match=message):
        short(n_clusters=2, prior=prior, embedder=Unfit()).fit(X)


@pytest.mark.parametrize("prior", [None, [0.2, 0.3, 0.5]])
def test_the_score_of_x_is_minus_that_of_the_kept_epoch(prior):
    settings = {"lr": 1e-2, "max_epochs": 30, "self_label_epochs": 0, "n_neighbors": 5}
    clusterer = quiet(short(**settings, prior=prior), X)
    lowest = min(epoch["score"] for epoch in clusterer.net_.history)
    assert clusterer.n_clusters_ == 3
    assert clusterer.score(X) == pytest.approx(-lowest, rel=1e-4)
    assert clusterer.score(X[:40]) > 0
    with pytest.raises(ValueError, match="fewer than two rows"):
        clusterer.score(X[:1])
    embedder = FrozenEstimator(SimCLRTransformer(max_steps=9, random_state=0).fit(X))
    clusterer = quiet(short(**settings, prior=prior, embedder=embedder), X)
    lowest = min(epoch["score"] for epoch in clusterer.net_.history)
    assert clusterer.n_clusters_ == 3
    assert clusterer.score(X) == pytest.approx(-lowest, rel=1e-4)


@pytest.mark.parametrize("prior", [[28, 3, 3, 3, 3], [1, 1, 1, 1, 1], None])
def test_a_large_cluster_that_was_asked_for_is_no_news(prior):
    sizes = [28 if k == 0 else 3 for k in range(5)]
    p = np.eye(5, dtype=np.float32)[np.repeat(np.arange(5), sizes)]
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    clusterer = quiet(short(n_clusters=5, n_neighbors=3, prior=prior), x)
    clusterer.prior_ = clusterer._check_prior()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        clusterer._set_labels(p, clusterer._check_X(x))
        clusterer._check_health(p)
    said = any("One cluster holds 70%" in str(warning.message) for warning in seen)
    assert said == (prior is None or prior[0] == 1)


def test_the_head_that_follows_the_prior_is_kept():
    y = np.r_[np.zeros(90, int), np.ones(10, int)]
    neighbors = torch.arange(100)[:, None]
    even = np.arange(100) % 2
    p = torch.stack([torch.eye(2)[y], torch.eye(2)[even]]) * 0.98 + 0.01
    for prior, best in ((None, 1), (torch.tensor([0.9, 0.1]), 0)):
        total, consistency, used = scan_head_scores(p, neighbors, prior)
        assert total.argmin() == best
        torch.testing.assert_close(total, consistency - used)
    assert abs(used[0] - np.log(2)) < 2e-3


def test_one_cluster_and_too_many():
    assert set(quiet(short(n_clusters=1), X).labels_) == {0}
    with pytest.raises(ValueError, match="n_clusters=91 is larger.*90"):
        short(n_clusters=91).fit(X)


@pytest.mark.parametrize(
    "x, settings",
    [
        (np.zeros((40, 6), np.float32), {}),
        (np.repeat(X[:2], 20, 0), {}),
        (X, {"n_clusters": 8, "entropy_weight": 0.0, "max_epochs": 30, "lr": 1e-2}),
    ],
    ids=["constant", "fewer distinct rows than clusters", "no entropy"],
)
def test_collapse_is_said_with_what_to_change(x, settings):
    with pytest.warns(CollapseWarning, match="entropy_weight"):
        clusterer = short(**settings).fit(x)
    assert clusterer.n_clusters_ < clusterer.n_clusters
    assert clusterer.predict_proba(x).shape[1] == clusterer.n_clusters_


def test_clusters_that_say_nothing_of_neighbors_are_told():
    settings = {"lr": 1e-2, "max_epochs": 30, "self_label_epochs": 0}
    for more in ({"n_clusters": 2}, {"n_clusters": 3}, {"n_clusters": 1}):
        with warnings.catch_warnings():
            warnings.simplefilter("error", CollapseWarning)
            short(**{**settings, **more}).fit(X)
    with pytest.warns(
        CollapseWarning, match=r"score -0.0.*-1.10. Raise max_epochs=2 or"
    ):
        short(self_label_epochs=0).fit(X)
    # a threshold that rows reach by chance teaches nothing either
    with pytest.warns(CollapseWarning, match="share almost no information"):
        short(self_label_threshold=0.3, lr=1e-8).fit(X)


def test_on_the_output_of_an_embedder():
    images = load_digit_images().images[:120]
    pipe = make_pipeline(SimCLRTransformer(max_steps=2, random_state=0), short())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        assert pipe.fit_predict(images).shape == (120,)
    assert not hasattr(pipe[-1], "embedder_")


def test_the_embedders_encoder_is_where_training_starts():
    images = load_digit_images().images[:60]
    clusterer = quiet(
        short(
            embedder=SimCLRTransformer(max_steps=2),
            train_backbone=False,
            self_label_epochs=0,
        ),
        images,
    )
    given = clusterer.embedder_.encoder_.state_dict()
    for name, value in clusterer.encoder_.state_dict().items():
        assert torch.equal(value, given[name])


def test_an_embedder_that_was_taken_away_has_no_part_in_the_next_fit():
    clusterer = quiet(short(embedder=SimCLRTransformer(max_steps=2)), X)
    quiet(clusterer.set_params(embedder=None), X)
    assert not hasattr(clusterer, "embedder_")
    np.testing.assert_array_equal(
        clusterer.predict_proba(X), quiet(short(), X).predict_proba(X)
    )


@pytest.mark.parametrize("form", [list, np.array, pd.Series])
def test_unreadable_files_are_told_of_once(form, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "03.png").write_bytes(b"no image")
    files = form(sorted(map(str, tmp_path.glob("*.png"))))
    scan = SCANClusterer(
        2,
        embedder=MoCoTransformer(max_steps=1),
        max_steps=1,
        self_label_epochs=1,
        on_error="skip",
        image_size=8,
        random_state=0,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scan.fit(files)
    assert sum("left out" in str(w.message) for w in caught) == 1
    assert scan.labels_[3] == -1 and (np.delete(scan.labels_, 3) >= 0).all()
    assert (scan.neighbors_[3] == 3).all() and (
        np.delete(scan.neighbors_, 3, 0) != 3
    ).all()
    # MoCo's split batch normalization is MoCo's alone
    module = scan.net_.module_
    assert not any(isinstance(m, SplitBatchNorm) for m in module.modules())


def test_saved_with_an_embedder_of_another_network(tmp_path):
    images = load_digit_images().images[:40]
    embedder = SimCLRTransformer(backbone="resnet9", max_steps=1)
    fitted = quiet(short(embedder=embedder, max_steps=1, n_neighbors=3), images)
    fitted.save(tmp_path / "model")
    loaded = sklabel.load(tmp_path / "model")
    np.testing.assert_array_equal(
        loaded.predict_proba(images), fitted.predict_proba(images)
    )


def rates(clusterer):
    """Return the learning rates of both stages."""
    found = {}
    for epoch in clusterer.net_.history:
        found.setdefault(epoch["stage"], set()).add(epoch["lr"])
    return found


def test_self_labeling_has_a_rate_of_its_own():
    both = quiet(short(lr=1e-2), X)
    assert rates(both) == {"cluster": {1e-2}, "self-label": {1e-2}}
    own = quiet(short(lr=1e-2, self_label_lr=3e-3), X)
    assert rates(own) == {"cluster": {1e-2}, "self-label": {3e-3}}


def test_weights_of_self_labeling_go_back_to_their_average():
    settings = {"lr": 1e-2, "optimizer": "sgd", "self_label_threshold": 0.0}
    settings |= {"keep_clusters": False, "net_params": {"optimizer__momentum": 0.0}}
    settings |= {"self_label_batch_size": 90, "augment": None, "weight_decay": 0.0}

    def weights(**parameters):
        clusterer = quiet(short(**settings, **parameters), X)
        return [p.detach() for p in clusterer.net_.module_.parameters()]

    start, free = weights(self_label_epochs=0), weights()
    averaged = weights(self_label_ema_decay=0.75)
    assert any(not torch.equal(a, b) for a, b in zip(start, free, strict=True))
    for begin, plain, found in zip(start, free, averaged, strict=True):
        # one step, of which a quarter is kept
        torch.testing.assert_close(found, 0.75 * begin + 0.25 * plain)
    # at 1 - 1e-9 nothing moves, at 0 there is no average
    still = weights(self_label_ema_decay=1 - 1e-9, self_label_lr=1e-3)
    assert all(torch.allclose(a, b) for a, b in zip(start, still, strict=True))
    same = weights(self_label_ema_decay=0.0)
    assert all(torch.equal(a, b) for a, b in zip(free, same, strict=True))


def test_a_broken_self_labeling_with_an_average_goes_on(tmp_path):
    settings = {"self_label_ema_decay": 0.9, "self_label_epochs": 3, "lr": 1e-2}
    whole = quiet(short(**settings), X)
    again = quiet(short(**settings, checkpoint_dir=tmp_path), X)
    again = quiet(short(**settings, checkpoint_dir=tmp_path), X)
    assert (whole.labels_ == again.labels_).all()
    whole.save(tmp_path / "saved")
    loaded = sklabel.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.predict(X), whole.labels_)
