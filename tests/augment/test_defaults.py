"""The policies that estimators use unless told otherwise."""

import pytest
import torch

from sklabel import augment as A
from sklabel.augment.defaults import VIEWS
from tests.augment._policies import images


@pytest.mark.parametrize("kind", ["weak", "strong", "ctaugment", "contrastive", "scan"])
def test_build_augment(kind):
    vectors = A.build_augment(kind, (7,), torch.zeros(7), torch.ones(7))
    assert isinstance(vectors, A.VectorNoise)
    assert vectors.noise == (0.2 if kind in ("strong", "ctaugment") else 0.1)
    assert vectors(torch.rand(3, 7)).shape == (3, 7)
    for shape in ((1, 8, 8), (3, 32, 32), (3, 96, 96)):
        mean = torch.rand(shape[0], 1, 1)
        policy = A.build_augment(kind, shape, mean, torch.ones(shape[0], 1, 1))
        assert policy(images(2, *shape)).shape == (2, *shape)
    expected = {
        "weak": A.Weak,
        "strong": A.RandAugment,
        "ctaugment": A.CTAugment,
        "contrastive": A.Contrastive,
        "scan": A.RandAugment,
    }
    assert type(policy) is expected[kind]


def test_default_views_of_every_method():
    for kind in VIEWS:
        for side in (32, 70):
            view = A.build_augment(kind, (3, side, side))
            out = side if kind != "swav_small" else round(side * 3 / 7)
            x = torch.rand(4, 3, side, side)
            assert view(x).shape == (4, 3, out, out)
            # no recipe for CIFAR blurs, but all for ImageNet of the second generation do
            blurs = kind not in ("moco_v1", "iic") and side == 70
            assert bool(view.blur) == blurs


def test_unknown_kinds_and_shapes_are_refused():
    with pytest.raises(ValueError, match="kind='mild'"):
        A.build_augment("mild", (3, 8, 8))
    with pytest.raises(ValueError, match="sample_shape"):
        A.build_augment("weak", (8, 8))
