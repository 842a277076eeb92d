"""K-means by Lloyd's algorithm, which compares only rows that may change cluster."""

import numpy as np
import torch
from tqdm.auto import tqdm

from .._core.devices import device_for, to_device
from .._core.processes import once
from ._blocks import BLOCK_PRODUCTS, check_matrix

# Rows for each cluster that k-means starts on, where asked to.
_SAMPLE = 64


@once
def kmeans(
    Z,
    n_clusters,
    init="random",
    max_iter=100,
    random_state=None,
    verbose=0,
    device="cpu",
):
    """Cluster rows by Lloyd's k-means with squared Euclidean distances.

    There is one run, without restarts. It ends when no row changes its cluster, or
    after ``max_iter`` iterations.

    Parameters
    ----------
    Z : array-like of shape (n_rows, n_features)
        Vectors; ``float64`` is computed in ``float64``, everything else in
        ``float32``. Held in memory.
    n_clusters : int
        Number of clusters, 1 to ``n_rows``.
    init : {"random", "k-means++", "sample"} or array-like, default="random"
        Initial centers. "random": distinct random rows; "k-means++": rows drawn with
        probability proportional to the squared distance from those drawn before;
        "sample": the centers of k-means on a sample of 64 random rows per cluster,
        which saves most iterations with millions of rows; the numbers of ``n_clusters``
        rows (a 1-D array of integers); or the centers themselves, of shape (n_clusters,
        n_features).
    max_iter : int, default=100
        Maximum number of iterations, >= 1; one iteration is an assignment and an update
        of the centers.
    random_state : int, RandomState instance or None, default=None
        Seed of the initial centers. With an integer, "random" uses the first rows of
        torch's ``randperm`` under that seed, as in the released code of USL [2]_.
    verbose : int, default=0
        1: a progress bar; iterations may end before the bar does.
    device : str or torch.device, default="cpu"
        Device of the computation, see `kneighbors`; the initial centers are drawn on
        the CPU. Other devices round sums differently, so rows halfway between two
        centers may get the other one.

    Returns
    -------
    labels : ndarray of shape (n_rows,)
        Cluster of each row in the last assignment, int64.
    centers : ndarray of shape (n_clusters, n_features)
        Means of the rows of each cluster, after the last update.
    inertia : float
        Sum of squared distances of the rows to the centers of their clusters.
    n_iter : int
        Number of iterations.

    Raises
    ------
    ValueError
        If a shape, ``n_clusters``, ``init`` or ``max_iter`` is not as above.

    Notes
    -----
    A cluster that loses all its rows gets the row that is farthest from its own center
    (ties by lowest row number; never the last row of another cluster), within the
    assignment. Only with fewer distinct rows than clusters does a cluster stay empty
    and keep its center.

    An assignment compares only rows whose nearest center may have changed, given how
    far the centers moved [3]_. Time of a full one: n_rows * n_clusters * n_features;
    memory: one copy of Z and one block of products.

    References
    ----------
    .. [1] S. Lloyd, "Least squares quantization in PCM", IEEE Transactions on
       Information Theory, 1982.
    .. [2] X. Wang, L. Lian, S. Yu, "Unsupervised selective labeling for more
       effective semi-supervised learning", ECCV 2022.
    .. [3] G. Hamerly, "Making k-means even faster", SDM 2010.
    """
    Z = check_matrix(Z, "Z")
    n_rows = len(Z)
    if not 1 <= n_clusters <= n_rows:
        raise ValueError(
            f"n_clusters={n_clusters} must lie between 1 and the {n_rows} rows."
        )
    if max_iter < 1:
        raise ValueError(f"max_iter={max_iter} must be at least 1.")
    mean = Z.mean(axis=0, dtype=np.float64).astype(Z.dtype)
    # Centered rows are shorter, so the products lose fewer digits.
    X = torch.from_numpy(Z - mean)
    X = to_device(X, device_for(device, X.dtype))
    centers = _start(X, torch.from_numpy(mean), n_clusters, init, random_state)
    centers = to_device(centers, X.device)
    squares = X.square().sum(1)
    # Bounds are compared with this much slack, for the rounding of the products.
    slack = (1e-4 if X.dtype == torch.float32 else 1e-9) * float(squares.max()) ** 0.5

    labels = torch.full((n_rows,), -1, device=X.device)
    upper = X.new_full((n_rows,), torch.inf)  # distance to the own center, at most
    lower = X.new_zeros(n_rows)  # distance to any other center, at least
    sums = counts = None
    iterations = range(1, max_iter + 1)
    for n_iter in tqdm(iterations, "clusters", unit="iteration", disable=not verbose):
        active = (upper + slack >= lower).nonzero().squeeze(1)
        before = labels.clone()
        _assign(X, squares, centers, active, labels, upper, lower)
        counts = torch.bincount(labels, minlength=n_clusters)
        if (counts == 0).any():
            _fill_empty(X, centers, labels, counts, upper, lower)
        if torch.equal(before, labels):
            break
        sums = torch.zeros_like(centers).index_add_(0, labels, X)
        used = counts > 0
        moved = centers.clone()
        moved[used] = sums[used] / counts[used, None]
        steps = (moved - centers).norm(dim=1)
        centers = moved
        upper += steps[labels]
        lower -= steps.max()
    inertia = _precise(_own_squares(X, centers, labels)).sum(dtype=torch.float64).item()
    return labels.cpu().numpy(), centers.cpu().numpy() + mean, inertia, n_iter


def _precise(x):
    """Return a tensor on a device with double precision, which MPS lacks."""
    return x.cpu() if x.device.type == "mps" else x


def _start(X, mean, n_clusters, init, random_state):
    """Return centered start centers of shape (n_clusters, D)."""
    if isinstance(init, str):
        if init not in ("random", "k-means++", "sample"):
            raise ValueError(
                f"init={init!r}: use 'random', 'k-means++', 'sample', row numbers or "
                "centers."
            )
        if not isinstance(random_state, (int, np.integer)):
            from sklearn.utils import check_random_state

            random_state = check_random_state(random_state).randint(2**31 - 1)
        generator = torch.Generator().manual_seed(int(random_state))
        if init in ("random", "sample"):
            order = torch.randperm(len(X), generator=generator)
            if init == "sample" and len(X) > _SAMPLE * n_clusters:
                sample = X[order[: _SAMPLE * n_clusters].to(X.device)].cpu().numpy()
                first, device = np.arange(n_clusters), X.device
                found = kmeans(sample, n_clusters, init=first, device=device)
                return torch.from_numpy(found[1])
            return X[order[:n_clusters].to(X.device)]
        return _plus_plus(X, n_clusters, generator)
    given = np.asarray(init)
    if given.ndim == 1 and given.dtype.kind in "iu":
        if given.shape != (n_clusters,) or not (
            (given >= 0).all() and (given < len(X)).all()
        ):
            raise ValueError(
                f"init must hold {n_clusters} row numbers from 0 to {len(X) - 1}, "
                f"got {len(given)} numbers."
            )
        return X[torch.from_numpy(given.astype(np.int64)).to(X.device)]
    if given.shape != (n_clusters, X.shape[1]):
        raise ValueError(
            f"init has shape {given.shape}; centers need "
            f"({n_clusters}, {X.shape[1]}), row numbers ({n_clusters},) integers."
        )
    return torch.from_numpy(given).to(X.dtype) - mean


def _plus_plus(X, n_clusters, generator):
    """Draw rows, each in proportion to its squared distance to those drawn before."""
    squares = X.square().sum(1)
    chosen = [int(torch.randint(len(X), (1,), generator=generator))]
    nearest = torch.full_like(squares, torch.inf)
    while len(chosen) < n_clusters:
        c = X[chosen[-1]]
        distance = (squares - 2 * (X @ c) + c.square().sum()).clamp_(min=0)
        nearest = torch.minimum(nearest, distance)
        nearest[chosen[-1]] = 0
        total = _precise(nearest).cumsum(0, dtype=torch.float64)
        if total[-1] <= 0:  # only copies of the drawn rows are left
            left = np.setdiff1d(np.arange(len(X)), chosen)
            chosen += left[: n_clusters - len(chosen)].tolist()
            break
        draw = torch.rand(1, generator=generator, dtype=torch.float64)
        draw = draw.to(total.device) * total[-1]
        row = int(torch.searchsorted(total, draw, right=True))
        chosen.append(min(row, len(X) - 1))
    return X[chosen]


def _assign(X, squares, centers, active, labels, upper, lower):
    """Give the active rows their nearest center; labels and bounds change in place."""
    half = centers.square().sum(1) / -2
    step = max(16, BLOCK_PRODUCTS // (8 * len(centers)))
    buffer = X.new_empty((min(step, len(active)), len(centers)))
    for rows in active.split(step):
        x = X if len(rows) == len(X) else X[rows]
        products = torch.addmm(half, x, centers.T, out=buffer[: len(rows)])
        best, label = products.max(1)
        labels[rows] = label
        upper[rows] = (squares[rows] - 2 * best).clamp_(min=0).sqrt_()
        products.scatter_(1, label[:, None], -torch.inf)
        second = products.amax(1)
        lower[rows] = (squares[rows] - 2 * second).clamp_(min=0).sqrt_()


def _own_squares(X, centers, labels):
    """Squared distance of each row to the center of its cluster."""
    step = max(1, BLOCK_PRODUCTS // (8 * X.shape[1]))
    return torch.cat(
        [
            (x - centers[label]).square().sum(1)
            for x, label in zip(X.split(step), labels.split(step), strict=True)
        ]
    )


def _fill_empty(X, centers, labels, counts, upper, lower):
    """Give each empty cluster the row farthest from its own center, in place."""
    squared = _own_squares(X, centers, labels)
    # Copies of one row may lie off their mean by its rounding.
    doubtful = 1e-6 * X.square().sum(1).max()
    uniform = set()  # clusters seen to hold copies of one row only
    taken = []
    farthest = iter(torch.argsort(squared, descending=True, stable=True).tolist())
    for cluster in (counts == 0).nonzero().squeeze(1).tolist():
        for row in farthest:
            if squared[row] <= 0:  # every row is a center: too few distinct rows
                return
            donor = int(labels[row])
            if donor in uniform or counts[donor] == 1:
                continue
            if squared[row] < doubtful and bool((X[labels == donor] == X[row]).all()):
                uniform.add(donor)
                continue
            if (X[taken] == X[row]).all(1).any():
                continue  # a copy of a row just given away
            counts[donor] -= 1
            labels[row], counts[cluster] = cluster, 1
            upper[row], lower[row] = torch.inf, 0
            taken.append(row)
            break
