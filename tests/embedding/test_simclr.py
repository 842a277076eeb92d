"""SimCLR: learns without labels, collapse is said."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from sklabel import CollapseWarning
from sklabel.augment import Contrastive
from sklabel.datasets import load_digit_images
from sklabel.embedding import SimCLRTransformer
from sklabel.losses import nt_xent
from sklabel.metrics import knn_accuracy

X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)


def short(**parameters):
    return SimCLRTransformer(**{"max_steps": 2, "random_state": 0, **parameters})


def test_digits_are_learned_without_labels():
    images, target = load_digit_images(return_X_y=True)
    images, target = images[:900], target[:900]
    view = Contrastive(flip=0, crop=(0.4, 1.0), rotate=15, jitter=0.2)
    settings = {"augment": view, "batch_size": 128, "random_state": 0}
    untrained = SimCLRTransformer(max_steps=1, lr=1e-9, **settings).fit(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        trained = SimCLRTransformer(max_epochs=8, **settings).fit(images)

    def accuracy(embedder):
        Z = embedder.transform(images)
        return knn_accuracy(Z[:600], target[:600], Z[600:], target[600:], k=5)

    assert accuracy(trained) > 0.9
    assert accuracy(trained) > accuracy(untrained) + 0.03
    history = trained.net_.history
    assert history[-1, "train_loss"] < history[0, "train_loss"] - 0.5
    assert trained.score(images) > untrained.score(images)


def test_vectors_are_learned():
    rng = np.random.default_rng(0)
    group = rng.integers(3, size=300)
    signal = rng.normal(size=(3, 4))[group] * 3
    Z = np.hstack([signal, rng.normal(size=(300, 12))]) + rng.normal(size=(300, 16))
    embedder = SimCLRTransformer(max_epochs=5, batch_size=64, random_state=0)
    found = embedder.fit_transform(Z.astype(np.float32))
    assert knn_accuracy(found[:200], group[:200], found[200:], group[200:], k=5) > 0.9


def test_the_loss_is_that_of_two_views():
    embedder = short(augment=None).fit(X)
    module, x = embedder.net_.module_.eval(), torch.from_numpy(X)
    z = module.project(module.backbone(x))
    expected = nt_xent(z, z, 0.5)
    torch.testing.assert_close(module.loss(x, None), expected)
    # score: the negative of it, of all rows as one batch
    np.testing.assert_allclose(embedder.score(X), -expected.item(), rtol=1e-5)


def test_projection_parameters():
    fitted = short(
        projection_size=7, projection_hidden=9, projection_layers=3, output="projection"
    ).fit(X)
    widths = [
        (m.in_features, m.out_features)
        for m in fitted.net_.module_.project.modules()
        if isinstance(m, nn.Linear)
    ]
    assert widths == [(128, 9), (9, 9), (9, 7)]
    assert fitted.transform(X).shape == (64, 7)
    assert len(fitted.get_feature_names_out()) == 7
    assert short(projection_size=7).fit(X).transform(X).shape == (64, 128)


@pytest.mark.parametrize(
    "scaling, expected", [(None, 1e-3), ("linear", 1.25e-4), ("sqrt", 1e-3 * 32**0.5)]
)
def test_scaled_rates(scaling, expected):
    fitted = short(
        lr_scaling=scaling, batch_size=32, schedule="constant", warmup_epochs=0
    ).fit(X)
    np.testing.assert_allclose(fitted.net_.history[-1, "lr"], expected)


def test_the_published_setting_of_the_optimizer():
    fitted = short(
        optimizer="lars", lr=1.0, lr_scaling="linear", batch_size=64, warmup_epochs=1
    ).fit(X)
    assert type(fitted.net_.optimizer_).__name__ == "LARS"
    assert np.isfinite(fitted.transform(X)).all()


@pytest.mark.parametrize(
    "images",
    [
        np.full((40, 8, 8), 7, np.uint8),
        np.zeros((40, 8, 8, 3), np.uint8),
    ],
    ids=["one grey", "black"],
)
def test_collapse_is_said_with_what_to_change(images):
    with pytest.warns(CollapseWarning, match="lr=0.001 or temperature=0.5"):
        short(augment=None).fit(images)


def test_an_augmentation_that_leaves_nothing():
    class Black(nn.Module):
        def forward(self, x):
            return x * 0

    images = load_digit_images().images[:64]
    with pytest.warns(CollapseWarning):
        SimCLRTransformer(
            augment=Black(), max_epochs=60, lr=0.05, weight_decay=50, random_state=0
        ).fit(images)


def test_health_is_in_the_history():
    history = short(max_steps=None, max_epochs=3).fit(X).net_.history
    spread = history[:, "feature_std"]
    assert len(spread) == 3 and all(0.3 < s < 1.7 for s in spread)
    assert all(1.5 < r <= 128 for r in history[:, "effective_rank"])
