"""SimCLR: its loss, its head, and what happens where nothing is left to learn."""

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


def test_widths_of_the_head():
    fitted = short(projection_size=7, projection_hidden=9, projection_layers=3).fit(X)
    widths = [
        (m.in_features, m.out_features)
        for m in fitted.net_.module_.project.modules()
        if isinstance(m, nn.Linear)
    ]
    assert widths == [(128, 9), (9, 9), (9, 7)]


def test_an_augmentation_that_leaves_nothing():
    class Black(nn.Module):
        def forward(self, x):
            return x * 0

    images = load_digit_images().images[:64]
    with pytest.warns(CollapseWarning):
        SimCLRTransformer(
            augment=Black(), max_epochs=60, lr=0.05, weight_decay=50, random_state=0
        ).fit(images)


def test_scans_pretext_contrasts_first_views_alone_behind_a_head_without_norms():
    fitted = short(anchors="first", temperature=0.1, projection_norm=False).fit(X)
    module, x = fitted.net_.module_.eval(), torch.from_numpy(X[:8])
    kinds = [type(m) for m in module.project.modules() if not list(m.children())]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear]
    module.augment = nn.Identity()
    z = module.projected(x)
    expected = nt_xent(z, z, 0.1, anchors="first")
    torch.testing.assert_close(module.loss(x, None), expected)
    assert not torch.isclose(expected, nt_xent(z, z, 0.1))
