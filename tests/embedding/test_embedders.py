"""What all trained embedders promise: they learn, show health, and warn of collapse."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from torch import nn

import sklabel
from sklabel import CollapseWarning, embedding
from sklabel._core.health import watch_features
from sklabel.augment import Contrastive
from sklabel.classification import FixMatchClassifier
from sklabel.datasets import load_digit_images
from sklabel.embedding import (
    AutoencoderTransformer,
    BYOLTransformer,
    CLDTransformer,
    MoCoTransformer,
    SimCLRTransformer,
    SwAVTransformer,
)
from sklabel.metrics import knn_accuracy

X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
VIEW = Contrastive(flip=0, crop=(0.6, 1.0), rotate=15, jitter=0.4)

# What teaches each method something of 200 digits within seconds.
DIGITS = {
    AutoencoderTransformer: {"max_epochs": 8},
    BYOLTransformer: {
        "augment": VIEW,
        "max_epochs": 15,
        "ema_decay": 0.9,
        "projection_hidden": 64,
    },
    CLDTransformer: {"augment": VIEW, "max_epochs": 8, "n_groups": 10},
    MoCoTransformer: {"augment": VIEW, "max_epochs": 8, "bn_splits": 1},
    SimCLRTransformer: {"augment": VIEW, "max_epochs": 8},
    SwAVTransformer: {
        "augment": VIEW,
        "max_epochs": 15,
        "n_prototypes": 20,
        "projection_hidden": 64,
    },
}
SMALL = {
    AutoencoderTransformer: {"hidden_sizes": (20, 30)},
    BYOLTransformer: {"projection_hidden": 32},
    SwAVTransformer: {"n_prototypes": 20, "projection_hidden": 32},
}
every = pytest.mark.parametrize("cls", list(DIGITS), ids=lambda c: c.__name__)


def short(cls, **parameters):
    return cls(
        **{"max_steps": 2, "random_state": 0, **SMALL.get(cls, {}), **parameters}
    )


@pytest.fixture(scope="module")
def digits():
    images, target = load_digit_images(return_X_y=True)
    return images[:200], target[:200]


def test_every_trained_embedder_is_here():
    # CLIP learns from captions: tests/embedding/test_clip.py
    trained = {
        name
        for name in set(embedding.__all__) - {"CLIPTransformer"}
        if hasattr(getattr(embedding, name), "_stage")
    }
    missing = sorted(trained - {cls.__name__ for cls in DIGITS})
    assert not missing, f"add settings that teach {missing} something to DIGITS"


@every
def test_images_are_learned_without_labels(cls, digits):
    images, _ = digits
    settings = {"batch_size": 40, "precision": "float32", "random_state": 0}
    settings |= DIGITS[cls]
    untrained = cls(**{**settings, "max_steps": 1, "lr": 1e-9}).fit(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        trained = cls(**settings).fit(images)
    # the same X, the same score: searches compare them
    assert trained.score(images) == trained.score(images)
    if cls not in (MoCoTransformer, CLDTransformer):
        # a queue begins with random directions, which are easy to tell from keys
        assert trained.score(images) > untrained.score(images)
    if cls is AutoencoderTransformer:
        # nobody has told it what does not matter
        assert trained.score(images) > 0.5 * untrained.score(images)
        return
    unit = torch.from_numpy(images / np.float32(255))[:, None]
    views = [(255 * VIEW(unit)[:, 0]).byte().numpy() for _ in range(2)]

    def variation(embedder):
        """Return how far apart views of one image are, for each unit of two images."""
        a, b = map(embedder.transform, views)
        return np.square(a - b).mean() / np.square(a - np.roll(b, 1, axis=0)).mean()

    # what views change leaves the embedding, what tells images apart stays
    assert variation(trained) < 0.95 * variation(untrained)


@every
def test_vectors_are_learned(cls):
    rng = np.random.default_rng(0)
    group = rng.integers(3, size=300)
    signal = rng.normal(size=(3, 4))[group] * 5
    Z = np.hstack([signal, rng.normal(size=(300, 12))]) + rng.normal(size=(300, 16))
    length = {"max_epochs": 5}
    if cls is AutoencoderTransformer:
        length = {"max_epochs": 20, "lr": 3e-3}
    embedder = short(cls, max_steps=None, batch_size=64, **length)
    found = embedder.fit_transform(Z.astype(np.float32))
    # of three kinds; the noise has four times as many directions as the signal
    assert knn_accuracy(found[:200], group[:200], found[200:], group[200:], k=5) > 0.75


@every
@pytest.mark.parametrize("shape", [(8, 8), (11, 7, 3), (40, 44, 1), (70, 66, 3)])
def test_images_of_any_size(cls, shape):
    images = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    embedder = short(cls, batch_size=6).fit(images)
    Z = embedder.transform(images)
    assert Z.dtype == np.float32 and np.isfinite(Z).all()
    assert len(embedder.get_feature_names_out()) == Z.shape[1]
    assert np.isfinite(embedder.score(images))


@every
def test_large_inputs_stream_in_batches(cls, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((700, 6), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    embedder = short(cls).fit(mapped[:64])
    sizes = []
    embedder.net_.module_.register_forward_pre_hook(
        lambda module, inputs: sizes.append(len(inputs[0]))
    )
    Z = embedder.transform(mapped)
    assert Z.shape[0] == 700 and max(sizes) <= 256
    np.testing.assert_allclose(Z[300:310], embedder.transform(mapped[300:310]), 1e-5)


@every
@pytest.mark.parametrize("optimizer", ["lars", "lars_byol", "larc", "lars_cifar"])
def test_the_optimizers_of_the_papers(cls, optimizer):
    fitted = short(cls, optimizer=optimizer, lr=0.5, max_steps=6).fit(X)
    assert type(fitted.net_.optimizer_).__name__ == "LARS"
    assert np.isfinite(fitted.transform(X)).all()


@every
def test_collapse_is_said_with_what_to_change(cls):
    images = np.full((40, 8, 8), 7, np.uint8)
    with pytest.warns(CollapseWarning, match="lr=0.001"):
        short(cls, augment=None).fit(images)


@every
def test_health_is_in_the_history(cls):
    history = short(cls, max_steps=None, max_epochs=3).fit(X).net_.history
    assert len(history) == 3
    assert all(0.3 < s < 1.7 for s in history[:, "feature_std"])
    assert all(1.5 < r <= 128 for r in history[:, "effective_rank"])


class PowerCut:
    """Watch the features, and fail after the third epoch."""

    def __init__(self, watch):
        self.watch = watch

    def __call__(self, net, samples):
        if len(net.history) == 3:
            raise RuntimeError("the power fails")
        return self.watch(net, samples)


@every
def test_a_broken_training_continues_to_the_same_bits(cls, tmp_path, monkeypatch):
    settings = {"max_steps": None, "max_epochs": 4, "batch_size": 32}
    if cls is SwAVTransformer:
        settings |= {"queue_size": 40, "queue_start": 1}
    whole = short(cls, **settings).fit(X).transform(X)
    broken = short(cls, **settings, checkpoint_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            "sklabel._core.roles.embedding.watch_features", PowerCut(watch_features)
        )
        with pytest.raises(RuntimeError, match="the power fails"):
            broken.fit(X)
    assert list(tmp_path.rglob("*.pt"))
    np.testing.assert_array_equal(broken.fit(X).transform(X), whole)


@every
def test_a_search_needs_no_labels(cls):
    search = GridSearchCV(short(cls), {"lr": [1e-3, 1e-2]}, cv=2).fit(X)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all() and scores[0] != scores[1]
    assert search.transform(X).shape[0] == 64


@every
def test_warm_start_continues(cls):
    embedder = short(cls, warm_start=True, max_steps=4).fit(X)
    before = [p.detach().clone() for p in embedder.encoder_.parameters()]
    embedder.set_params(max_steps=1, lr=1e-9).fit(X)
    for p, old in zip(embedder.encoder_.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old)


@every
def test_saved_and_loaded(cls, tmp_path):
    images = load_digit_images().images[:40]
    for data in (X, images):
        embedder = short(cls).fit(data)
        embedder.save(tmp_path / "model")
        loaded = sklabel.load(tmp_path / "model")
        np.testing.assert_array_equal(loaded.transform(data), embedder.transform(data))
        assert loaded.score(data) == embedder.score(data)


@every
def test_the_encoder_goes_into_a_classifier(cls, digits):
    images, target = digits[0][:60], digits[1][:60]
    embedder = short(cls).fit(images)
    y = np.where(np.arange(60) < 30, target, -1)
    classifier = FixMatchClassifier(
        backbone=embedder, max_steps=1, lr=1e-9, batch_size=8
    )
    classifier.fit(images, y)
    assert not any(
        "SplitBatchNorm" in type(m).__name__ for m in classifier.net_.module_.modules()
    )
    # lr is as good as nothing: the weights are still those of the embedder
    pairs = zip(
        classifier.encoder_.parameters(), embedder.encoder_.parameters(), strict=True
    )
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_projections_are_wanted_by_some():
    for cls in set(DIGITS) - {AutoencoderTransformer}:
        fitted = short(cls, projection_size=7, output="projection").fit(X)
        assert fitted.transform(X).shape == (64, 7)
        assert len(fitted.get_feature_names_out()) == 7
        assert short(cls, projection_size=7).fit(X).transform(X).shape == (64, 128)


@pytest.mark.parametrize(
    "scaling, expected", [(None, 1e-3), ("linear", 1.25e-4), ("sqrt", 1e-3 * 32**0.5)]
)
def test_scaled_rates(scaling, expected):
    fitted = short(
        MoCoTransformer,
        lr_scaling=scaling,
        batch_size=32,
        schedule="constant",
        warmup_epochs=0,
    ).fit(X)
    np.testing.assert_allclose(fitted.net_.history[-1, "lr"], expected)


def test_an_augmentation_of_the_user():
    class Same(nn.Module):
        def forward(self, x):
            return x * 1

    for cls in DIGITS:
        given = short(cls, augment=Same()).fit_transform(X)
        none = short(cls, augment=None).fit_transform(X)
        np.testing.assert_array_equal(given, none)
