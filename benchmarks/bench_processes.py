"""Training in several processes beside one: seconds of a step, in turn.

Each round starts ``--processes`` processes by torchrun, and one, with ``--threads``
threads each, on a GPU each where there are some. The batch is the same in both.
Random images, no network. Best epoch of each training; median and worst round.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

METHODS = ("SimCLRTransformer", "MoCoTransformer", "FixMatchClassifier")


def one(name, batch_size, side):
    """Train in this process, and print the seconds of a step as a line of JSON."""
    import sklabel.classification
    import sklabel.embedding
    from sklabel._core.net import Net

    X = np.random.default_rng(0).integers(0, 256, (1024, side, side, 3), np.uint8)
    y = np.where(np.arange(len(X)) < 128, np.arange(len(X)) % 10, -1)
    folder = "classification" if name.endswith("Classifier") else "embedding"
    method = getattr(getattr(sklabel, folder), name)
    if name == "FixMatchClassifier":
        batch_size //= 8
    taken, run = [], Net.run_single_epoch

    def timed(net, *args, **kwargs):
        start, before = time.perf_counter(), net.step_
        run(net, *args, **kwargs)
        taken.append((time.perf_counter() - start) / (net.step_ - before))

    Net.run_single_epoch = timed
    warnings.simplefilter("ignore")
    given = {"backbone": "resnet8", "batch_size": batch_size, "random_state": 0}
    method(max_epochs=3, **given).fit(X, y)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(min(taken)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--side", type=int, default=32, help="of the images")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.batch_size, args.side)
        return
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for name in args.method:
        seconds = {1: [], args.processes: []}
        for _ in range(args.rounds):
            for n, found in seconds.items():
                command = [*launch, f"--nproc_per_node={n}", str(Path(__file__))]
                command += [f"--one={name}", f"--batch-size={args.batch_size}"]
                command += [f"--side={args.side}"]
                done = subprocess.run(
                    command, env=env, check=True, stdout=subprocess.PIPE, text=True
                )
                found.append(float(done.stdout.split()[-1]))
        ratios = np.divide(seconds[1], seconds[args.processes])
        print(
            f"{name}: {np.median(seconds[1]):.3f} s a step in one process; "
            f"{np.median(ratios):.2f} times as fast in {args.processes} (worst "
            f"{ratios.min():.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
