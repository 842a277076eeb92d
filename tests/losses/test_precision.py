"""Rows of length 1."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklabel.losses import unit_rows
from tests.losses._checks import pairs


@given(pairs(), st.floats(1e-3, 1e3))
def test_unit_rows_have_length_one_or_zero(pair, scale):
    z = torch.tensor(pair[0])
    lengths = unit_rows(z * scale).norm(dim=-1).numpy()
    big = (z * scale).norm(dim=-1).numpy() > 1e-5
    np.testing.assert_allclose(lengths[big], 1, rtol=1e-6)
    assert (lengths < 1 + 1e-6).all()
