"""DCEC, IDEC and DEC: codes gather, the reconstruction stays, rounds and their end."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.frozen import FrozenEstimator

import sklabel
from sklabel import CollapseWarning
from sklabel._core.nested import encoded
from sklabel._core.samplers import FixedSteps
from sklabel._core.samples import Samples
from sklabel.classification import CCLClassifier
from sklabel.clustering import DCECClusterer, _dcec
from sklabel.datasets import load_digit_images
from sklabel.embedding import (
    AutoencoderTransformer,
    CLIPTransformer,
    SimCLRTransformer,
)
from sklabel.losses import sharpened_targets, student_assignment, target_divergence
from sklabel.metrics import clustering_accuracy
from sklabel.neighbors import kneighbors
from tests._making import blobs, mixed
from tests._pictures import stripes

X, Y = blobs()
CODES = AutoencoderTransformer(2, hidden_sizes=(20, 30), max_steps=60)


def short(**parameters):
    given = {"n_clusters": 3, "embedder": CODES, "max_steps": 4, "random_state": 0}
    return DCECClusterer(**{**given, "batch_size": 32, **parameters})


def test_groups_of_vectors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        embedder = AutoencoderTransformer(2, hidden_sizes=(20, 30), max_steps=400)
        labels = short(embedder=embedder, max_steps=200).fit_predict(mixed(X))
    assert clustering_accuracy(Y, labels) > 0.8  # chance: 0.4


@pytest.mark.parametrize("cls", [DCECClusterer, CCLClassifier])
def test_codes_of_clip_are_its_projections(cls, tmp_path):
    tower = {"text_width": 8, "text_layers": 1, "text_heads": 2}
    texts = [f"kind {kind}" for kind in Y]
    clip = CLIPTransformer(4, **tower, max_steps=2, random_state=0).fit(X, texts)
    held = {"embedder": FrozenEstimator(clip), "reconstruction_weight": 0}
    model = cls(**held, max_steps=2, random_state=0).fit(X, Y)
    assert encoded(model, X).shape[1] == 4 != encoded(clip, X).shape[1]
    model.save(tmp_path / "model")
    loaded = sklabel.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))


def test_groups_of_images():
    images, kinds = stripes(120)
    settings = {"batch_size": 40, "precision": "float32"}
    codes = AutoencoderTransformer(10, filters=(16, 32), max_epochs=20, **settings)
    fitted = short(embedder=codes, max_steps=None, max_epochs=10, tol=0, **settings)
    fitted.fit(images)
    assert clustering_accuracy(kinds, fitted.labels_) > 0.9
    # the codes gather, and the images can still be drawn, better than by their mean
    before = fitted.embedder_.transform(images)
    assert _spread(encoded(fitted, images), kinds) < 0.9 * _spread(before, kinds)
    error = fitted.net_.history[-1, "reconstruction_loss"]
    assert error < 0.8 * (images / 255).var(0).mean()
    assert (fitted.predict(images) == fitted.labels_).all()


def _spread(Z, kinds):
    """Return how far codes are from their kind's mean, for each unit of all codes."""
    means = np.stack([Z[kinds == k].mean(0) for k in range(3)])
    return np.square(Z - means[kinds]).sum() / np.square(Z - Z.mean(0)).sum()


def test_the_loss_is_a_mean_of_pixels_and_a_mean_of_rows():
    fitted = short().fit(X)
    module, x = fitted.net_.module_.eval(), torch.from_numpy(X)
    q = module(x)
    z = module.embed(x)
    torch.testing.assert_close(q, student_assignment(z, module.centers))
    module.targets = sharpened_targets(q)
    loss, figures = module.loss(x, torch.arange(len(x)))
    expected = 0.1 * target_divergence(q, module.targets) + module.embed.error(z, x)
    torch.testing.assert_close(loss, expected)
    assert set(figures) == {"cluster_loss", "reconstruction_loss"}


def test_dec_has_no_decoder_and_takes_other_embedders():
    settings = {"reconstruction_weight": 0, "cluster_weight": 1}
    fitted = short(embedder=SimCLRTransformer(max_steps=2), **settings).fit(X)
    assert "reconstruction_loss" not in fitted.net_.history[-1]
    assert fitted.cluster_centers_.shape == (fitted.n_clusters_, 128)
    with pytest.raises(ValueError, match="SimCLRTransformer has no decoder"):
        short(embedder=SimCLRTransformer(max_steps=2)).fit(X)


@pytest.mark.parametrize("interval", [3, 50])
def test_warmup_is_counted_in_passes_over_the_rows(interval):
    settings = {"max_epochs": 4, "max_steps": None, "batch_size": 4, "tol": 0}
    settings |= {"warmup_epochs": 2, "update_interval": interval}
    net = short(**settings).fit(X).net_
    assert net.warmup_steps_ == net.total_steps_ / 2


def test_a_frozen_autoencoder_is_used_as_it_is():
    embedder = AutoencoderTransformer(
        2, hidden_sizes=(9,), max_steps=30, random_state=0
    ).fit(X)
    before = embedder.transform(X)
    fitted = short(embedder=FrozenEstimator(embedder)).fit(X)
    assert fitted.embedder_.estimator is embedder
    np.testing.assert_array_equal(embedder.transform(X), before)
    trained = fitted.encoder_.eval()(torch.from_numpy(X)).detach()
    assert not np.allclose(trained, before)
    with pytest.raises(ValueError, match="backbone='resnet9' has no effect"):
        short(embedder=FrozenEstimator(embedder), backbone="resnet9").fit(X)


def test_it_ends_when_few_rows_change():
    fitted = short(max_steps=None, max_epochs=1000, update_interval=5, tol=0.05).fit(X)
    changed = fitted.net_.history[:, "changed_share"]
    assert changed[-1] < 0.05 and all(share >= 0.05 for share in changed[:-1])
    assert fitted.n_iter_ == len(changed) < 100
    longer = short(max_steps=27, update_interval=5, tol=0).fit(X)
    assert longer.net_.history[:, "train_batch_count"] == [5, 5, 5, 5, 5, 2]
    # one round alone would have targets from before the training
    few = short(max_steps=12, update_interval=140, tol=0).fit(X)
    assert few.net_.history[:, "train_batch_count"] == [2] * 6


def falling_together(self, x, y):
    # codes that meet in a point have one nearest center
    return (self.embed(x) - 5).square().mean() + self.centers.square().mean()


def test_a_training_that_loses_a_cluster_is_undone(monkeypatch):
    settings = {"max_steps": 400, "update_interval": 2, "tol": 0, "lr": 1e-2}
    start = short(**{**settings, "max_steps": 1, "lr": 1e-9}).fit(X)
    assert start.n_clusters_ == 3
    monkeypatch.setattr(_dcec._DCEC, "loss", falling_together)
    with pytest.warns(CollapseWarning) as seen:
        kept = short(**settings).fit(X)
    said = [str(w.message) for w in seen if w.category is CollapseWarning]
    lost = "became empty; the round before is kept. Lower cluster_weight"
    assert sum(lost in text for text in said) == 1
    assert not any("in use" in text for text in said)
    history = kept.net_.history
    assert history[-1, "lost_clusters"] > 0 == max(history[:-1, "lost_clusters"])
    assert kept.n_clusters_ == 3 and kept.n_iter_ < 200
    np.testing.assert_array_equal(kept.labels_, kept.predict(X))
    with pytest.warns(CollapseWarning, match="Lower lr=0.01, raise reconstruction_w"):
        short(**settings, reconstruction_weight=0).fit(X)
    with pytest.warns(CollapseWarning, match="of n_clusters=3 clusters are in use"):
        lost = short(**settings, keep_clusters=False).fit(X)
    assert lost.n_clusters_ < 3 and "lost_clusters" not in lost.net_.history[-1]


def test_a_round_that_was_broken_off_is_undone_too(monkeypatch):
    def broken_off(self, x, y):
        self.n_losses = getattr(self, "n_losses", 0) + 1
        if self.n_losses == 300:
            raise KeyboardInterrupt
        return falling_together(self, x, y)

    monkeypatch.setattr(_dcec._DCEC, "loss", broken_off)
    settings = {"max_steps": 2500, "update_interval": 500, "tol": 0, "lr": 1e-2}
    with pytest.warns(UserWarning, match="was interrupted"):
        kept = short(**settings).fit(X)
    assert kept.n_clusters_ == 3
    with pytest.warns(CollapseWarning, match="clusters are in use"):
        lost = short(**settings, keep_clusters=False).fit(X)
    assert lost.n_clusters_ < 3


def test_what_is_undone_is_undone_after_a_break_too(tmp_path, monkeypatch):
    monkeypatch.setattr(_dcec._DCEC, "loss", falling_together)
    settings = {"max_steps": 400, "update_interval": 2, "tol": 0, "lr": 1e-2}
    settings["checkpoint_dir"] = tmp_path
    with pytest.warns(CollapseWarning, match="became empty"):
        kept = short(**settings).fit(X)
    # the checkpoint is that of the round to be undone
    with pytest.warns(CollapseWarning, match="became empty"):
        again = short(**settings).fit(X)
    np.testing.assert_array_equal(again.predict_proba(X), kept.predict_proba(X))


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_score_is_minus_the_loss(weight):
    fitted = short(reconstruction_weight=weight).fit(X)
    module, x = fitted.net_.module_.eval(), torch.from_numpy(X)
    q = module(x)
    module.targets = sharpened_targets(q)
    loss, _ = module.loss(x, torch.arange(len(x)))
    assert fitted.score(X) == pytest.approx(-float(loss), rel=1e-5)


def test_rounds_are_so_many_steps_over_all_rows():
    rounds = FixedSteps(Samples(X, (6,)), 7)
    batches = list(rounds.epoch(40))
    assert len(batches) == rounds.n_batches(40) == 7
    assert sorted(np.concatenate(batches[:3]).tolist()) == list(range(90))
    assert sorted(np.concatenate(batches[3:6]).tolist()) == list(range(90))


def test_a_broken_training_continues_to_the_same_bits(tmp_path, monkeypatch):
    settings = {"max_steps": 20, "update_interval": 5, "tol": 0}
    whole = short(**settings).fit(X).predict_proba(X)
    broken = short(**settings, checkpoint_dir=tmp_path)
    figures, calls = _dcec.cluster_metrics, []

    def power_cut(*given):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the power fails")
        return figures(*given)

    with monkeypatch.context() as patch:
        patch.setattr(_dcec, "cluster_metrics", power_cut)
        with pytest.raises(RuntimeError, match="the power fails"):
            broken.fit(X)
    np.testing.assert_array_equal(broken.fit(X).predict_proba(X), whole)


def test_neighbors_are_searched_with_the_seed(monkeypatch):
    seeds = []

    def spy(*args, random_state=None, **kwargs):
        seeds.append(random_state)
        return kneighbors(*args, **kwargs)

    monkeypatch.setattr(_dcec, "kneighbors", spy)
    for seed in (0, 0, 1):
        short(random_state=seed).fit(X)
    assert seeds[0] == seeds[1] != seeds[2] and None not in seeds


def test_warm_start_goes_on_from_its_centers_or_finds_another_number():
    embedder = AutoencoderTransformer(2, hidden_sizes=(20, 30), max_steps=400)
    settings = {"embedder": embedder, "max_steps": 200, "cluster_weight": 3.0}
    fitted = short(**settings, lr=1e-2, tol=0, warm_start=True).fit(X)
    centers = fitted.cluster_centers_
    fitted.set_params(lr=1e-8, max_steps=1).fit(X)
    np.testing.assert_allclose(fitted.cluster_centers_, centers, atol=1e-4)
    codes = fitted.encoder_.eval()(torch.from_numpy(X)).detach().numpy()
    fitted.set_params(n_clusters=5).fit(X)
    assert fitted.n_clusters_ == len(fitted.cluster_centers_) == 5
    # in the codes as they are now, not in those of the embedder
    found = KMeans(5, n_init=20, random_state=0).fit(codes)
    inertia = ((codes - fitted.cluster_centers_[fitted.labels_]) ** 2).sum()
    assert inertia < 1.05 * found.inertia_
    assert fitted.set_params(n_clusters=2).fit(X).n_clusters_ == 2


def test_unused_centers_are_dropped_and_said():
    doubled = np.repeat(np.eye(6, dtype=np.float32)[:2] * 9, 20, axis=0)
    with pytest.warns(
        CollapseWarning, match="Only 2 of n_clusters=3.*cluster_weight=0.1"
    ):
        fitted = short().fit(doubled)
    assert fitted.n_clusters_ == 2 and set(fitted.labels_) == {0, 1}
    p = fitted.predict_proba(doubled)
    assert p.shape == (40, 2) and fitted.cluster_centers_.shape == (2, 2)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)


def test_more_clusters_than_rows_are_refused():
    with pytest.raises(ValueError, match="n_clusters=91 is larger"):
        short(n_clusters=91).fit(X)


def test_saved_and_loaded(tmp_path):
    images = load_digit_images().images[:60]
    for data in (X, images):
        fitted = short().fit(data)
        fitted.save(tmp_path / "model")
        loaded = sklabel.load(tmp_path / "model")
        np.testing.assert_array_equal(
            loaded.predict_proba(data), fitted.predict_proba(data)
        )


@pytest.mark.parametrize("scale", [1e15, 1e20, 1e30])
def test_rows_of_any_size(scale):
    codes = AutoencoderTransformer(2, hidden_sizes=(20, 30), max_steps=60)
    fitted = short(embedder=codes).fit(X * np.float32(scale))
    assert (
        clustering_accuracy(short(embedder=codes).fit(X).labels_, fitted.labels_) == 1
    )
    # far from all that it has seen
    p = fitted.predict_proba(np.float32(1e7) * X * np.float32(scale))
    assert np.isfinite(p).all()


def test_values_too_large_to_be_reconstructed_are_told():
    codes = AutoencoderTransformer(2, standardize=False, max_steps=3)
    with pytest.raises(ValueError, match="values of X are too large"):
        short(embedder=codes).fit(X * np.float32(1e25))
