"""Helpers of losses: float32 precision, and rows of length 1."""

import torch

# Smallest probability under a logarithm.
TINY = 1e-8


def at_least_float32(x):
    """Return x in at least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit_rows(z):
    """Scale rows to length 1.

    Parameters
    ----------
    z : Tensor of shape (..., D)

    Returns
    -------
    z : Tensor of shape (..., D)
        In at least float32. The squared length is at least 1e-12, so that a zero row
        stays zero.
    """
    z = at_least_float32(z)
    # rows with large entries are made smaller first: their squares could overflow
    z = z / z.detach().abs().amax(-1, keepdim=True).clamp_min(1)
    return z * z.square().sum(-1, keepdim=True).clamp_min(1e-12).rsqrt()
