"""SimCLR: learns without labels, every parameter counts, collapse is said."""

import numpy as np
import pytest
import torch
from torch import nn

from sklabel import CollapseWarning
from sklabel.datasets import load_digit_images
from sklabel.embedding import SimCLRTransformer
from sklabel.losses import nt_xent

X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)


def short(**parameters):
    return SimCLRTransformer(**{"max_steps": 2, "random_state": 0, **parameters})


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


def test_every_parameter_of_training_counts():
    base = {"max_steps": None, "max_epochs": 2, "batch_size": 32}
    plain = short(**base).fit_transform(X)
    for change in (
        {"temperature": 0.1},
        {"max_epochs": 3},
        {"batch_size": 16},
        {"optimizer": "sgd"},
        {"lr": 1e-2},
        {"weight_decay": 10.0},
        {"schedule": "constant"},
        {"warmup_epochs": 0},
        {"augment": None},
    ):
        assert not np.array_equal(short(**{**base, **change}).fit_transform(X), plain)


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
