"""The nearest rows to each query: by all products, or by NN-descent."""

import numpy as np
import torch
from tqdm.auto import tqdm

from .._core.checks import check_number
from .._core.devices import device_for, to_device
from .._core.processes import once
from ._blocks import BLOCK_PAIRS, BLOCK_PRODUCTS, check_matrix

# Rows of Z on the long side of a block of products.
_BLOCK_KEYS = 2**17
# Spare candidates: rounding of the products may push a true neighbor just outside.
_SPARE = 8


@once
def kneighbors(
    Z,
    n_neighbors,
    queries=None,
    metric="euclidean",
    include_self=True,
    method="auto",
    block_size=None,
    random_state=None,
    verbose=0,
    device="cpu",
):
    """Find the nearest rows of Z to each query.

    Candidates come from a blocked matrix product and a top-k (or from
    pynndescent); the distances of the kept ones are then computed from the differences
    of the rows, so equal rows have distance 0 exactly.

    Parameters
    ----------
    Z : array-like of shape (n_rows, n_features)
        Vectors. ``float64`` is searched in ``float64``, everything else in
        ``float32``. A ``np.memmap`` is read block by block.
    n_neighbors : int
        Number of neighbors of each query, from 1 to the number of rows (one
        fewer with ``include_self=False``).
    queries : array-like of shape (n_queries, n_features), default=None
        Vectors to find neighbors of; None: the rows of Z themselves.
    metric : {"euclidean", "cosine"}, default="euclidean"
        Distance: ``||a - b||``, or ``1 - cos(a, b)`` (1 if a row is all zeros).
    include_self : bool, default=True
        Used with ``queries=None``. True: each row is its own first neighbor, at
        distance 0, even if it has more than ``n_neighbors`` copies. False: the row is
        left out, but not its copies.
    method : {"auto", "exact", "approximate"}, default="auto"
        "exact" compares every pair; "approximate" is NN-descent (pynndescent),
        which misses few neighbors and compiles once per process; "auto" uses the faster
        of the two for this size.
    block_size : int, default=None
        Queries compared at once. None keeps a block of products near 256 MB.
    random_state : int, RandomState instance or None, default=None
        Seed of the approximate search. The exact search is not random.
    verbose : int, default=0
        1: a progress bar; the approximate search first prints its own steps.
    device : str or torch.device, default="cpu"
        Device of the computation; "auto": CUDA, then MPS, then CPU. The results are the
        same up to the order of ties. MPS has no float64: the CPU computes such vectors.

    Returns
    -------
    distances : ndarray of shape (n_queries, n_neighbors)
        Ascending. Ties are in row order, after the row itself.
    indices : ndarray of shape (n_queries, n_neighbors)
        Row numbers of Z, int64.

    Raises
    ------
    ValueError
        If a shape, ``n_neighbors``, ``metric``, ``method`` or ``block_size`` is not as
        above.

    Notes
    -----
    Exact: time n_queries * n_rows * n_features, memory the results and one block.
    If several rows tie for the last place, any of them may be kept.

    References
    ----------
    .. [1] W. Dong, M. Charikar, K. Li, "Efficient k-nearest neighbor graph
       construction for generic similarity measures", WWW 2011 (NN-descent).
    """
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric={metric!r}: use 'euclidean' or 'cosine'.")
    if method not in ("auto", "exact", "approximate"):
        raise ValueError(f"method={method!r}: use 'auto', 'exact' or 'approximate'.")
    Z = check_matrix(Z, "Z")
    to_itself = queries is None
    Q = Z
    if not to_itself:
        Q = check_matrix(queries, "queries").astype(Z.dtype, copy=False)
    if Q.shape[1] != Z.shape[1]:
        raise ValueError(f"queries has {Q.shape[1]} features, but Z has {Z.shape[1]}.")
    without_self = to_itself and not include_self
    most = len(Z) - without_self
    if not 1 <= n_neighbors <= most:
        raise ValueError(
            f"n_neighbors={n_neighbors} must lie between 1 and {most} for "
            f"{len(Z)} rows{' without the row itself' if without_self else ''}."
        )
    n_candidates = min(len(Z), n_neighbors + without_self + _SPARE)
    if method == "auto":
        exact = _exact_is_cheaper(len(Z), len(Q), Z.shape[1], n_candidates)
        method = "exact" if exact else "approximate"

    device = _device_of(Z, device)
    keys = _Rows(Z, metric, device)
    rows = keys if to_itself else _Rows(Q, metric, device)
    if method == "exact":
        blocks = _search_exact(rows, keys, n_candidates, metric, block_size)
    else:
        blocks = _search_approximate(
            Z, None if to_itself else Q, n_candidates, metric, random_state, verbose
        )
    distances = np.empty((len(Q), n_neighbors), dtype=Z.dtype)
    indices = np.empty((len(Q), n_neighbors), dtype=np.int64)
    with tqdm(total=len(Q), desc="neighbors", unit="row", disable=not verbose) as bar:
        for start, candidates in blocks:
            stop = start + len(candidates)
            found = _nearest_first(
                rows,
                keys,
                np.arange(start, stop),
                candidates,
                n_neighbors,
                metric,
                include_self if to_itself else None,
            )
            distances[start:stop], indices[start:stop] = found
            bar.update(len(candidates))
    return distances, indices


def mine_neighbors(Z, n_neighbors, normalize=True, block_size=None, device="cpu"):
    """Find the rows of largest inner product for each row, the row itself first.

    This is how SCAN finds the neighbors that should share a cluster.

    Parameters
    ----------
    Z : array-like of shape (n_rows, n_features)
        Vectors, e.g. embeddings.
    n_neighbors : int
        Number of neighbors besides the row itself, from 1 to ``n_rows - 1``.
    normalize : bool, default=True
        Divide each row by its length first, which makes the product a cosine.
        False keeps the plain inner product, which favors long vectors: a row may then
        not be among its own neighbors.
    block_size : int, default=None
        Rows compared at once. None keeps a block of products near 256 MB.
    device : str or torch.device, default="cpu"
        See `kneighbors`.

    Returns
    -------
    similarities : ndarray of shape (n_rows, n_neighbors + 1)
        Descending (column 0 may be a rounding error below a copy of the row).
    indices : ndarray of shape (n_rows, n_neighbors + 1)
        Row numbers, int64. With ``normalize=True``, column 0 is the row itself, even if
        other rows are copies of it.

    Raises
    ------
    ValueError
        If ``Z`` is not two-dimensional, or ``n_neighbors`` or ``block_size`` is out of
        range.

    References
    ----------
    .. [1] W. Van Gansbeke et al., "SCAN: Learning to classify images without
       labels", ECCV 2020, section 2.1.
    """
    Z = check_matrix(Z, "Z")
    if not 1 <= n_neighbors <= len(Z) - 1:
        raise ValueError(
            f"n_neighbors={n_neighbors} must lie between 1 and {len(Z) - 1} for "
            f"{len(Z)} rows: column 0 is the row itself."
        )
    metric = "cosine" if normalize else "product"
    rows = _Rows(Z, metric, _device_of(Z, device))
    n_columns = n_neighbors + 1
    similarities = np.empty((len(Z), n_columns), dtype=Z.dtype)
    indices = np.empty((len(Z), n_columns), dtype=np.int64)
    n_candidates = min(len(Z), n_columns + _SPARE)
    for start, candidates in _search_exact(
        rows, rows, n_candidates, "product", block_size
    ):
        stop = start + len(candidates)
        distances, indices[start:stop] = _nearest_first(
            rows,
            rows,
            np.arange(start, stop),
            candidates,
            n_columns,
            "product",
            True if normalize else None,
        )
        similarities[start:stop] = -distances
    return similarities, indices


class _Rows:
    """Rows of an array as tensors, in slices or by number, normalized if asked."""

    def __init__(self, Z, metric, device):
        self.Z = Z
        self.metric = metric
        self.device = device
        self.on_disk = _is_memory_map(Z)
        # torch warns about arrays that nobody may write to: copied by blocks.
        self.tensor = torch.from_numpy(Z) if Z.flags.writeable else None
        if device.type != "cpu":
            self.tensor = None if self.on_disk else to_device(torch.tensor(Z), device)

    def __len__(self):
        return len(self.Z)

    def block(self, start, stop):
        if self.tensor is not None:
            x = self.tensor[start:stop]
        else:
            x = to_device(torch.from_numpy(np.array(self.Z[start:stop])), self.device)
        return _unit(x) if self.metric == "cosine" else x

    def take(self, indices, out):
        """Write the rows of these numbers into the first rows of ``out``."""
        out = out[: indices.numel()]
        if self.tensor is not None:
            torch.index_select(self.tensor, 0, indices.reshape(-1), out=out)
        else:
            numbers = indices.reshape(-1).cpu().numpy()
            out.copy_(torch.from_numpy(np.take(self.Z, numbers, axis=0)))
        if self.metric == "cosine":
            out.copy_(_unit(out))
        return out.view(*indices.shape, -1)


def _device_of(Z, device):
    return device_for(device, torch.float64 if Z.itemsize == 8 else torch.float32)


def _is_memory_map(Z):
    while Z is not None and not isinstance(Z, np.memmap):
        Z = getattr(Z, "base", None)
    return Z is not None


def _unit(x):
    """Divide rows by their length; rows of zeros stay zeros."""
    lengths = x.norm(dim=1, keepdim=True)
    return x / lengths.where(lengths > 0, 1)


def _exact_is_cheaper(n_rows, n_queries, n_features, n_neighbors):
    """Compare the two searches' estimated seconds.

    Measured on 2 cores with AVX-512, float32, 128 features: products at 180
    GFLOP/s, top-k 0.6 ns an entry; pynndescent 25 to 35 s for import and
    compilation, then 2e-5 s a row with 20 neighbors, 5e-4 s with 400. Only the ratios
    matter.
    """
    exact = n_rows * n_queries * (2 * n_features / 180e9 + 6e-10)
    approximate = 30 + max(n_rows, n_queries) * 1.3e-6 * n_neighbors
    return exact <= approximate


def _search_exact(rows, keys, n_candidates, metric, block_size):
    """Yield (first query, candidates of shape (b, n_candidates)) block by block."""
    n_keys = len(keys)
    euclidean = metric == "euclidean"
    width = min(n_keys, _BLOCK_KEYS)
    if block_size is not None:
        check_number(1, whole=True, block_size=block_size)
    else:
        block_size = min(4096, max(16, BLOCK_PRODUCTS // width))
    # Centering both sides changes no distance and saves digits.
    mean = 0
    if euclidean:
        mean = torch.from_numpy(
            keys.Z.mean(axis=0, dtype=np.float64).astype(keys.Z.dtype)
        ).to(keys.device)

    def load(start):
        block = keys.block(start, start + width) - mean
        half = block.square().sum(1) / -2 if euclidean else block.new_zeros(len(block))
        return start, block, half

    starts = range(0, n_keys, width)
    # Keys in memory are prepared once; a large memory map stays on its disk.
    once = len(starts) == 1 or not keys.on_disk
    prepared = [load(start) for start in starts] if once else None
    # One buffer for all products: fresh memory costs as much as they do.
    buffer = keys.block(0, 1).new_empty(min(block_size, len(rows)) * width)
    for first in range(0, len(rows), block_size):
        q = rows.block(first, first + block_size) - mean
        best = found = None
        for start, block, half in prepared or map(load, starts):
            # a.b - ||b||^2 / 2 orders the keys as the distance does.
            products = buffer[: len(q) * len(block)].view(len(q), len(block))
            torch.addmm(half, q, block.T, out=products)
            values, index = _top(products, min(n_candidates, products.shape[1]))
            index += start
            if best is not None:
                values = torch.cat([best, values], 1)
                index = torch.cat([found, index], 1)
                values, order = _top(values, min(n_candidates, values.shape[1]))
                index = index.gather(1, order)
            best, found = values, index
        yield first, found


def _top(values, k):
    if k == 1:
        return values.max(1, keepdim=True)
    return values.topk(k, dim=1, sorted=False)


def _search_approximate(Z, queries, n_candidates, metric, random_state, verbose):
    """Yield candidates from NN-descent; incomplete rows are searched exactly."""
    n_neighbors, cpu = max(n_candidates, 15), torch.device("cpu")
    keys = _Rows(Z, metric, cpu)
    if n_neighbors >= len(Z):  # nothing to approximate
        rows = _Rows(Z if queries is None else queries, metric, cpu)
        yield from _search_exact(rows, keys, n_candidates, metric, None)
        return
    import pynndescent  # compiles for half a minute, so only where it pays
    from sklearn.utils import check_random_state

    index = pynndescent.NNDescent(
        Z,
        metric=metric,
        n_neighbors=n_neighbors,
        random_state=check_random_state(random_state).randint(2**31 - 1),
        verbose=bool(verbose),
    )
    if queries is None:
        found = index.neighbor_graph[0][:, :n_candidates].astype(np.int64)
    else:
        found = index.query(queries, k=n_candidates)[0].astype(np.int64)
    missing = np.flatnonzero((found < 0).any(axis=1))
    if len(missing):
        Q = Z if queries is None else queries
        rows = _Rows(np.ascontiguousarray(Q[missing]), metric, cpu)
        for first, candidates in _search_exact(rows, keys, n_candidates, metric, None):
            found[missing[first : first + len(candidates)]] = candidates
    step = max(1, BLOCK_PRODUCTS // (16 * n_candidates))
    for first in range(0, len(found), step):
        yield first, torch.from_numpy(found[first : first + step])


def _nearest_first(rows, keys, numbers, candidates, n_kept, metric, include_self):
    """Order candidates by their directly computed distance and keep the nearest.

    ``include_self``: True puts the row itself first, False leaves it out, None
    means that queries are not rows of Z. Distances under "product" are the negative
    inner products.
    """
    numbers = torch.from_numpy(numbers).to(keys.device)
    candidates = candidates.to(keys.device)
    if include_self:
        absent = (candidates != numbers[:, None]).all(1)
        candidates[:, -1] = torch.where(absent, numbers, candidates[:, -1])
    # By number first: the sort by distance is stable, so it decides among equals.
    # numpy sorts short rows many times faster than torch does.
    on_cpu = candidates.device.type == "cpu"
    if on_cpu:
        candidates = torch.from_numpy(np.sort(candidates.numpy(), axis=1))
    else:
        candidates = candidates.sort(1).values
    n, width = candidates.shape
    n_features = keys.Z.shape[1]
    distances = keys.block(0, 1).new_empty((n, width))
    step = max(1, BLOCK_PAIRS // width)
    # One buffer for all gathered rows: fresh memory costs more than the arithmetic.
    of_queries = distances.new_empty((min(step, n), n_features))
    of_keys = distances.new_empty((min(step, n) * width, n_features))
    for start in range(0, n, step):
        a = rows.take(numbers[start : start + step, None], of_queries)  # (b, 1, D)
        b = keys.take(candidates[start : start + step], of_keys)  # (b, width, D)
        distances[start : start + step] = _distances_(a, b, metric)
    own = candidates == numbers[:, None]
    itself = distances[own] if metric == "product" else 0
    if include_self is not None:
        distances[own] = -torch.inf if include_self else torch.inf
    if on_cpu:
        order = torch.from_numpy(np.argsort(distances.numpy(), axis=1, kind="stable"))
    else:
        order = distances.argsort(dim=1, stable=True)
    order = order[:, :n_kept]
    kept = distances.gather(1, order)
    if include_self:
        kept[:, 0] = itself
    return kept.cpu().numpy(), candidates.gather(1, order).cpu().numpy()


def _distances_(a, b, metric):
    """Distances of a (b, 1, D) to b (b, width, D) from their differences; b is lost."""
    if metric == "product":
        return -b.mul_(a).sum(-1)
    if metric == "euclidean":
        return torch.linalg.vector_norm(b.sub_(a), dim=-1)
    # 1 - a.b of unit rows; a row of zeros is 1 away from everything.
    unit = a.any(-1).to(a.dtype) + b.any(-1).to(a.dtype)
    return b.sub_(a).square_().sum(-1) / 2 + 1 - unit / 2
