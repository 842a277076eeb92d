"""Noise for vectors."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone

from sklabel import augment as A


def test_vector_noise():
    center, scale = torch.tensor([5.0, -5, 0, 1]), torch.tensor([1.0, 2, 3, 4])
    policy = A.VectorNoise(0.5, 0.25, center, scale)
    x = torch.zeros(20000, 4)
    out = policy(x)
    dropped = out == center
    assert (dropped.float().mean(0) - 0.25).abs().max() < 0.02
    spread = torch.stack([out[~dropped[:, i], i].std() for i in range(4)])
    torch.testing.assert_close(spread, 0.5 * scale, rtol=0.05, atol=0)
    assert policy.get_params()["center"] is center
    assert set(policy.state_dict()) == {"center_", "scale_"}
    quiet = A.VectorNoise(noise=0, dropout=0)
    assert torch.equal(quiet(x), x)
    policy.set_params(center=None)
    assert policy.center_ == 0 and set(policy.state_dict()) == {"center_", "scale_"}
    for other in (clone(policy, safe=False), pickle.loads(pickle.dumps(policy))):
        assert torch.equal(other.scale_, scale)
    assert A.VectorNoise(scale=np.ones(4))(x.double()).dtype == torch.float64
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        policy(torch.zeros(2, 3, 4, 4))


@given(st.integers(0, 8), st.integers(1, 8), st.floats(0, 2), st.floats(0, 1))
def test_vector_noise_keeps_shape(n, width, noise, dropout):
    out = A.VectorNoise(noise, dropout)(torch.zeros(n, width))
    assert out.shape == (n, width) and torch.isfinite(out).all()
