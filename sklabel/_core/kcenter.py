"""Greedy k-center: add the row farthest from all centers (Gonzalez, 1985)."""

from types import SimpleNamespace

import numpy as np
import torch
from tqdm.auto import tqdm

from ..neighbors import kneighbors
from .devices import device_for, to_device

# Numbers held at once where many centers are compared (float32: 16 MB).
_BLOCK_NUMBERS = 2**22
# More centers than this at once are searched by matrix products.
_MANY_CENTERS = 256
# Rows among which the next choices are looked for: a share of all, and how many at
# least.
_SHARE = 32
_FEWEST = 512


def k_center_greedy(Z, n_samples, centers=(), first=None, verbose=0, device="cpu"):
    """Choose repeatedly the row farthest from all centers so far.

    ``d_i = min over centers c of ||z_i - z_c||``; the row of largest ``d_i`` (ties by
    lowest row number) becomes a center.

    Parameters
    ----------
    Z : ndarray of shape (n, D), float32 or float64
        Vectors; a memory map stays on its disk. Distances are computed from differences
        of the rows, in their own precision, so those of equal rows are exactly 0.
    n_samples : int
        Rows to choose, at most ``n - len(centers)``.
    centers : array-like of int, default=()
        Rows that are centers from the start.
    first : int, default=None
        Row to choose first. None: the farthest; without centers row 0.
    verbose : int, default=0
        1 shows a progress bar.
    device : str or torch.device, default="cpu"
        Device that holds Z and computes the distances.

    Returns
    -------
    chosen : ndarray of shape (n_samples,)
        In order of choice; their distances never grow.
    distances : ndarray of shape (n,)
        To the nearest center: for a chosen row when it was chosen (``inf`` for the
        first row if there was no center), for other rows at the end; ``-inf`` for the
        centers from the start.
    """
    Z = np.ascontiguousarray(Z)
    z = _as_tensor(Z)
    device = device_for(device, z.dtype)
    z = to_device(z, device)
    centers = np.asarray(centers, dtype=np.int64)
    nearest = np.full(len(Z), np.inf, dtype=Z.dtype)
    if len(centers):
        nearest = _nearest_center(Z, centers, device)
    nearest[centers] = -np.inf  # and stays so: the minimum below keeps it
    squares = torch.linalg.vecdot(z, z)
    chosen, when_chosen = [], []
    with tqdm(
        total=n_samples,
        desc="CoreSetSelector",
        unit="row",
        mininterval=0.5,
        disable=not verbose,
    ) as bar:

        def choose(i, rows, nearest, number):
            """Take row i, and lower the distances of these rows to it, in place."""
            chosen.append(int(number))
            when_chosen.append(nearest[i])
            bar.update()
            bar.set_postfix(radius=f"{nearest[i]:.4g}", refresh=False)
            nearest[i] = -np.inf
            # All of them at once: threads that meet after each block lose time.
            distances = _distances(rows, rows[i : i + 1])[:, 0].cpu().numpy()
            np.minimum(nearest, distances, out=nearest)

        if first is not None and n_samples:
            choose(first, z, nearest, first)
        while len(chosen) < n_samples:
            # Distances never grow, so the next choice is among the farthest rows as
            # long as one of these is farther than all others were.
            top, limit = _farthest(nearest)
            if not len(top):
                row = int(nearest.argmax())
                choose(row, z, nearest, row)
                continue
            rows = z[torch.from_numpy(top).to(device)]
            bound, before = nearest[top], len(chosen)
            while len(chosen) < n_samples:
                i = int(bound.argmax())
                if bound[i] <= limit:
                    break
                choose(i, rows, bound, top[i])
            nearest[top] = bound
            _lower(nearest, z, squares, z[chosen[before:]])
    chosen = np.array(chosen, dtype=np.int64)
    nearest[chosen] = when_chosen
    return chosen, nearest


def _farthest(nearest):
    """Return the rows of largest distance, and the largest distance of the others."""
    n_top = max(_FEWEST, len(nearest) // _SHARE)
    if n_top >= len(nearest):
        return np.arange(len(nearest)), -np.inf
    limit = np.partition(nearest, -n_top - 1)[-n_top - 1]
    return np.flatnonzero(nearest > limit), limit


def _lower(nearest, z, squares, centers):
    """Lower the distances of all rows, in place, to those to new centers.

    Matrix products find the pairs that may be closer than known, with a margin for
    rounding; only their distances are computed from differences.
    """
    rounding = (z.shape[1] + 8) * torch.finfo(z.dtype).eps
    lengths = torch.linalg.vecdot(centers, centers)
    step = max(1, _BLOCK_NUMBERS // len(centers))
    pairs_at_once = max(1, _BLOCK_NUMBERS // z.shape[1])
    for start in range(0, len(z), step):
        x = z[start : start + step]
        own = torch.from_numpy(nearest)[start : start + step]
        known = own.to(z.device)
        sums = squares[start : start + step, None] + lengths
        products = torch.addmm(sums, x, centers.T, alpha=-2)
        # -inf stays: such rows are centers
        limit = torch.where(known > 0, known.square(), -torch.inf)[:, None]
        close = (products - rounding * sums < limit).nonzero()
        for pairs in close.split(pairs_at_once):
            i, j = pairs.T
            d = _distances(x[i][:, None], centers[j][:, None])[:, 0, 0]
            known.scatter_reduce_(0, i, d, "amin")
        if known is not own:
            own.copy_(known)


def _as_tensor(Z):
    """Return Z as a tensor without a copy; do not write to it."""
    if Z.flags.writeable:
        return torch.from_numpy(Z)
    # torch warns about read-only arrays, and a copy in blocks would double the time.
    interface = {**Z.__array_interface__, "data": (Z.ctypes.data, False)}
    return torch.from_numpy(
        np.asarray(SimpleNamespace(__array_interface__=interface, owner=Z))
    )


def _distances(a, b):
    """Distances of all rows of a to all rows of b, from their differences."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _nearest_center(Z, centers, device="cpu"):
    """Return the distance of every row to the nearest of these rows."""
    C = np.array(Z[centers])
    if len(C) > _MANY_CENTERS:
        found = kneighbors(C, 1, queries=Z, method="exact", device=device)
        nearest = found[0][:, 0]
        # Products of float32 resolve distances down to some 1e-3 of the spread. Rows
        # that have a center so close are looked at again, to find all copies.
        spread = np.linalg.norm(Z.max(axis=0) - Z.min(axis=0))
        again = np.flatnonzero((nearest > 0) & (nearest < 2e-3 * spread))
    else:
        nearest, again = np.empty(len(Z), dtype=Z.dtype), np.arange(len(Z))
    C = torch.from_numpy(C).to(device)
    step = max(1, _BLOCK_NUMBERS // max(C.shape))
    for rows in np.split(again, range(step, len(again), step)):
        block = torch.from_numpy(Z[rows]).to(device)
        nearest[rows] = _distances(block, C).amin(1).cpu().numpy()
    return nearest
