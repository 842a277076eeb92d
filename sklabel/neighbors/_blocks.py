"""How many rows are held at once, and the squared distances between two blocks."""

import numpy as np
import torch

# Products held at once (float32: 256 MB).
BLOCK_PRODUCTS = 2**26
# Pairs of rows gathered at once where distances are computed directly.
BLOCK_PAIRS = 2**14


def squared_distances(A, B):
    """Compute the squared Euclidean distances of all rows of A to all rows of B.

    ``||a||^2 + ||b||^2 - 2 a.b`` by one matrix product; pairs so close that the
    subtraction would lose most digits are computed from their differences, so
    equal rows are exactly 0 apart.

    Parameters
    ----------
    A : Tensor of shape (n, D)
    B : Tensor of shape (m, D)
        Center both on a common mean first: shorter rows lose fewer digits.

    Returns
    -------
    squared : Tensor of shape (n, m)
        At least 0. Keep n * m small.
    """
    lengths = A.square().sum(1)[:, None] + B.square().sum(1)  # (n, m)
    squared = torch.addmm(lengths, A, B.T, alpha=-2)
    few_digits = 1e-3 if A.dtype == torch.float32 else 1e-9
    close = (squared < few_digits * lengths).nonzero()
    for pairs in close.split(BLOCK_PAIRS):
        i, j = pairs.T
        squared[i, j] = (A[i] - B[j]).square().sum(1)
    return squared.clamp_(min=0)


def check_matrix(Z, name):
    """Return a finite-sized 2-D float array; float64 is kept, others are float32."""
    Z = np.asarray(Z)
    if Z.ndim != 2 or 0 in Z.shape:
        raise ValueError(
            f"{name} must be a non-empty 2-D array of vectors, got shape {Z.shape}."
        )
    dtype = np.float64 if Z.dtype == np.float64 else np.float32
    Z = np.ascontiguousarray(Z, dtype=dtype)
    if not np.isfinite(Z).all():
        row = int(np.flatnonzero(~np.isfinite(Z).all(1))[0])
        raise ValueError(
            f"{name} holds NaN or infinity, first in row {row}: leave out such rows."
        )
    return Z
