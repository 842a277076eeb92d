"""Scale of USLSelector: seconds per step, peak memory, recall of the neighbors.

One row per run. Example::

    python benchmarks/bench_selection_scale.py --n 100000 --dim 128 --n-samples 400
"""

import argparse
import os
import resource
import sys
import time

import numpy as np

from sklabel.neighbors import kneighbors
from sklabel.selection import USLSelector


def make_vectors(n, dim, seed):
    """Unit vectors of 50 overlapping groups on a 16-dimensional surface."""
    rng = np.random.default_rng(seed)
    inner = min(16, dim)
    centers = rng.standard_normal((50, inner), dtype=np.float32)
    Z = centers[rng.integers(50, size=n)]
    Z += 0.7 * rng.standard_normal((n, inner), dtype=np.float32)
    Z = Z @ rng.standard_normal((inner, dim), dtype=np.float32)
    Z += 0.1 * rng.standard_normal((n, dim), dtype=np.float32)
    return Z / np.linalg.norm(Z, axis=1, keepdims=True)


def load_vectors(path):
    """Rows of x_train as vectors of values in [0, 1]."""
    with np.load(path) as file:
        x = file["x_train"]
    return x.reshape(len(x), -1).astype(np.float32) / (255 if x.dtype == "u1" else 1)


def recall(Z, k, method, n_queries, seed):
    """Share of the true neighbors that kneighbors finds, on a sample of queries."""
    rows = np.random.default_rng(seed).choice(len(Z), min(n_queries, len(Z)), False)
    start = time.perf_counter()
    _, found = kneighbors(Z, k, method=method, random_state=seed)
    seconds = time.perf_counter() - start
    hits = 0
    for row in rows:  # one query against all rows, in float64: an independent answer
        d = np.square(Z - Z[row], dtype=np.float64).sum(axis=1)
        hits += (d[found[row]] <= np.partition(d, k - 1)[k - 1]).sum()
    return hits / (len(rows) * k), seconds


def peak_gigabytes():
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--n-samples", type=int, default=400)
    parser.add_argument("--n-neighbors", type=int, nargs="*", default=[0, 20])
    parser.add_argument("--method", default="auto")
    parser.add_argument("--n-queries", type=int, default=200, help="for the recall")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="npz with x_train instead of made vectors")
    args = parser.parse_args()

    if args.data:
        Z = load_vectors(args.data)
    else:
        Z = make_vectors(args.n, args.dim, args.seed)
    load = "%.1f" % os.getloadavg()[0] if hasattr(os, "getloadavg") else "?"
    print(f"{len(Z)} x {Z.shape[1]}, {args.n_samples} of them; load {load}")
    print(f"before: {peak_gigabytes():.2f} GB")
    for k in args.n_neighbors:
        selector = USLSelector(
            args.n_samples,
            k or "auto",
            neighbor_method=args.method,
            random_state=args.seed,
            verbose=1,
        )
        start = time.perf_counter()
        selector.fit(Z)
        seconds = time.perf_counter() - start
        print(
            f"n_neighbors={selector.n_neighbors_} total {seconds:.1f} s, "
            f"peak {peak_gigabytes():.2f} GB"
        )
        share, seconds = recall(
            Z, selector.n_neighbors_, args.method, args.n_queries, args.seed
        )
        print(f"recall {share:.4f} ({args.n_queries} queries; {seconds:.1f} s)")


if __name__ == "__main__":
    main()
