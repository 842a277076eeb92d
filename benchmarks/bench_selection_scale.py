"""Scale of the selectors that need no label: seconds, peak memory, recall, objective.

``--task usl``, ``coreset`` and ``herding``: one run on made vectors in a memory map, or
on a data set. ``--task peers``: in turn with what a user would take otherwise: USL's
two costly steps (exact neighbors, Lloyd's k-means from random rows) with KeOps on the
CPU as its released code has them with KeOps on a GPU, and scikit-activeml's k-center
(``pip install pykeops scikit-activeml``). KeOps is timed on ``--keops-rows`` of the
query rows and ``--keops-iter`` iterations, and counted for all. One run is one process,
so that the peak memory is that of the run.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _common import Results, load

from sklabel.neighbors import kneighbors
from sklabel.selection import CoreSetSelector, MaxHerdingSelector, USLSelector


def write_vectors(path, n, dim, seed):
    """Write unit vectors of 50 overlapping groups on a 16-dimensional surface."""
    rng = np.random.default_rng(seed)
    inner = min(16, dim)
    centers = rng.standard_normal((50, inner), dtype=np.float32)
    lift = rng.standard_normal((inner, dim), dtype=np.float32)
    Z = np.lib.format.open_memmap(path, "w+", np.float32, (n, dim))
    for start in range(0, n, 2**16):
        z = centers[rng.integers(50, size=min(2**16, n - start))]
        z += 0.7 * rng.standard_normal(z.shape, dtype=np.float32)
        z = z @ lift
        z += 0.1 * rng.standard_normal(z.shape, dtype=np.float32)
        Z[start : start + len(z)] = z / np.linalg.norm(z, axis=1, keepdims=True)
    Z.flush()


def peak_gigabytes():
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e9 if sys.platform == "darwin" else 1e6), 2)


def recall(Z, k, n_queries, seed):
    """Share of the true neighbors that USL's own search finds, on a sample of rows."""
    rows = np.random.default_rng(seed).choice(len(Z), min(n_queries, len(Z)), False)
    _, found = kneighbors(Z, k, random_state=seed)
    hits = 0
    for row in rows:  # one query against all rows, in float64: an independent answer
        d = np.square(Z - Z[row], dtype=np.float64).sum(axis=1)
        hits += (d[found[row]] <= np.partition(d, k - 1)[k - 1]).sum()
    return float(hits / (len(rows) * k))


def usl_selector(args, **steps):
    """Return USL with its published settings for ImageNet (CLIP)."""
    steps = steps or {
        "kmeans_init": args.kmeans_init,
        "kmeans_max_iter": args.kmeans_iter,
    }
    return USLSelector(
        args.n_samples,
        args.n_neighbors,
        **steps,
        n_rounds=2,
        reg_weight=0.05,
        alpha=1.0,
        ema_decay=0.0,
        horizon="nearest",
        horizon_neighbors=32,
        random_state=args.seed,
        verbose=args.task != "peers",
    )


def usl(args, Z):
    start = time.perf_counter()
    selector = usl_selector(args).fit(Z)
    seconds = time.perf_counter() - start
    figures = {"fit_seconds": round(seconds, 1), "peak_gb": peak_gigabytes()}
    centers = np.stack(
        [Z[selector.labels_ == c].mean(0) for c in range(args.n_samples)]
    )
    figures["inertia"] = float(np.square(Z - centers[selector.labels_]).sum())
    if args.n_queries:
        figures["recall"] = recall(Z, selector.n_neighbors_, args.n_queries, args.seed)
    return figures


def coreset(args, Z):
    start = time.perf_counter()
    selector = CoreSetSelector(args.n_samples, random_state=args.seed, verbose=1).fit(Z)
    seconds = time.perf_counter() - start
    d, _ = kneighbors(Z[selector.sample_indices_], 1, queries=Z[::100], method="exact")
    figures = {"fit_seconds": round(seconds, 1), "peak_gb": peak_gigabytes()}
    return figures | {"radius_of_a_hundredth": float(d.max())}


def herding(args, Z):
    start = time.perf_counter()
    selector = MaxHerdingSelector(args.n_samples, random_state=args.seed).fit(Z)
    seconds = time.perf_counter() - start
    figures = {"fit_seconds": round(seconds, 1), "peak_gb": peak_gigabytes()}
    return figures | {"coverage": float(selector.coverage_[-1])}


def utility_of(Z, chosen, k):
    """Return the sum of the density of chosen rows, by exact neighbors."""
    d, _ = kneighbors(Z, k, queries=Z[chosen], method="exact")
    return float((1 / np.square(d).mean(axis=1)).sum())


def radius_of(Z, chosen):
    """Return the largest distance of a row to the nearest chosen one."""
    d, _ = kneighbors(np.ascontiguousarray(Z[chosen]), 1, queries=Z, method="exact")
    return float(d.max())


def keops(args, Z):
    """Return the seconds of USL's neighbors and of its k-means with KeOps."""
    from pykeops.torch import LazyTensor

    z = torch.from_numpy(Z)
    keys, lazy = LazyTensor(z[None]), LazyTensor(z[:, None])

    def neighbors(rows):
        squared = ((LazyTensor(rows[:, None]) - keys) ** 2).sum(-1)
        return squared.Kmin_argKmin(args.n_neighbors, dim=1)

    def assign(centers):
        return ((lazy - LazyTensor(centers[None])) ** 2).sum(-1).argmin(1).view(-1)

    def seconds(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    def lloyd():
        centers = z[torch.randperm(len(z))[: args.n_samples]].contiguous()
        for _ in range(args.keops_iter):
            labels = assign(centers)
            sums = torch.zeros_like(centers).index_add_(0, labels, z)
            counts = torch.bincount(labels, minlength=len(centers)).clamp_(min=1)
            centers = sums / counts[:, None]

    neighbors(z[:10].contiguous())  # compiled
    assign(z[:10].contiguous())
    queries = z[: args.keops_rows].contiguous()
    share = len(queries) / len(z)
    return {
        "KeOps neighbors": round(seconds(lambda: neighbors(queries)) / share, 1),
        "KeOps k-means": round(seconds(lloyd) * 100 / args.keops_iter, 1),
    }


def peers(args, Z):
    """Time each in turn, ``--rounds`` times: medians, and the worst ratio."""
    from skactiveml.pool._core_set import k_greedy_center

    Z, chosen = np.array(Z), {}

    def ours():
        selector = CoreSetSelector(args.n_samples, random_state=args.seed)
        chosen["core-set"] = selector.fit_select(Z)

    def theirs():
        y = np.full(len(Z), np.nan)
        first = chosen["core-set"][0]  # the same first row
        y[first] = 0
        more, _ = k_greedy_center(Z, y, batch_size=args.n_samples - 1, random_state=0)
        chosen["scikit-activeml"] = np.r_[first, more]

    def our_usl():
        chosen["USL"] = usl_selector(args).fit_select(Z)

    runs = {"core-set": ours, "scikit-activeml": theirs, "USL": our_usl}
    seconds = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    ratio = np.divide(seconds["scikit-activeml"], seconds["core-set"])
    released = usl_selector(
        args, kmeans_init="random", kmeans_max_iter=100, neighbor_method="exact"
    ).fit_select(Z)
    return {
        **{name: round(float(np.median(s)), 2) for name, s in seconds.items()},
        "ratio": round(float(np.median(ratio)), 2),
        "worst": round(float(ratio.min()), 2),
        "radius": radius_of(Z, chosen["core-set"]),
        "radius, scikit-activeml": radius_of(Z, chosen["scikit-activeml"]),
        "utility": utility_of(Z, chosen["USL"], args.n_neighbors),
        "utility, all steps as released": utility_of(Z, released, args.n_neighbors),
        **keops(args, Z),
    }


TASKS = {"usl": usl, "coreset": coreset, "herding": herding, "peers": peers}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, default="usl")
    parser.add_argument("--data", help="a name of fetch_*, or .npz; else made vectors")
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--n-samples", type=int, default=400)
    parser.add_argument("--n-neighbors", type=int, default=20)
    parser.add_argument("--kmeans-init", default="sample")
    parser.add_argument("--kmeans-iter", type=int, default=10)
    parser.add_argument("--n-queries", type=int, default=200, help="for the recall")
    parser.add_argument("--rounds", type=int, default=3, help="of the peers")
    parser.add_argument("--keops-rows", type=int, default=2000)
    parser.add_argument("--keops-iter", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    key = {"task": args.task, "data": args.data, "seed": args.seed}
    for name in ("n", "dim", "n_samples", "n_neighbors", "kmeans_init", "kmeans_iter"):
        key[name] = getattr(args, name)
    with tempfile.TemporaryDirectory() as folder:
        if args.data:
            x = load(args.data)[0]
            Z = x.reshape(len(x), -1).astype(np.float32) / 255
            key |= {"n": len(Z), "dim": Z.shape[1]}
        else:
            write_vectors(Path(folder) / "vectors.npy", args.n, args.dim, args.seed)
            Z = np.load(Path(folder) / "vectors.npy", mmap_mode="r")
        Results("selection_scale").run(lambda: TASKS[args.task](args, Z), **key)


if __name__ == "__main__":
    main()
