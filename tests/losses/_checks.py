"""What the tests of losses share: leaves, tolerances, pairs of arrays."""

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays


def leaf(values):
    """Return values as a float64 tensor that takes a gradient."""
    return torch.tensor(np.asarray(values), dtype=torch.float64, requires_grad=True)


def assert_close(actual, expected, rtol=1e-8, atol=1e-10):
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def pairs(max_value=50.0):
    """Two float64 arrays of one shape (B, K), finite."""
    shape = st.tuples(st.integers(1, 6), st.integers(2, 5))
    elements = st.floats(-max_value, max_value)
    return shape.flatmap(
        lambda s: st.tuples(
            arrays(np.float64, s, elements=elements),
            arrays(np.float64, s, elements=elements),
        )
    )
