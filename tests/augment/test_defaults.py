"""The policies that estimators use unless told otherwise."""

import pytest
import torch

from sklabel import augment as A
from tests.augment._policies import images


@pytest.mark.parametrize("kind", ["weak", "strong", "ctaugment", "contrastive"])
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
    }
    assert type(policy) is expected[kind]


def test_small_images_are_not_blurred():
    small, large = (A.build_augment("contrastive", (3, s, s)) for s in (63, 64))
    assert (small.jitter, small.blur) == (0.5, 0)
    assert (large.jitter, large.blur) == (1, 0.5)
    assert A.is_small((1, 64, 8)) and not A.is_small((8,))


def test_unknown_kinds_and_shapes_are_refused():
    with pytest.raises(ValueError, match="kind='mild'"):
        A.build_augment("mild", (3, 8, 8))
    with pytest.raises(ValueError, match="sample_shape"):
        A.build_augment("weak", (8, 8))
