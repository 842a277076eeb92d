"""Speed of reading image files: ours, that of another checkout, and Pillow alone.

Each candidate is a process of its own; they take turns, in a new order each round.
Timed is what a fit reads: all files once, and where they do not fit into memory, all of
them once more. Shown are the files per second of the clock, and per second of all
processors, which others at work on the machine disturb less. Pillow decodes them once
in one thread.

    python benchmarks/bench_reading.py
    python benchmarks/bench_reading.py --against ../other-checkout
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _common import machine
from PIL import Image
from sklearn.base import BaseEstimator

KINDS = {
    "photographs": ("JPEG", (375, 500), 256, {"image_size": 64}),
    "small": ("PNG", (32, 32), 2000, {}),
    "large set": ("JPEG", (120, 160), 2300, {"image_size": 400}),
    "with skip": ("PNG", (32, 32), 2000, {"on_error": "skip"}),
}


def write(folder, kind, size, n):
    """Write n smooth images with noise, as photographs are."""
    rng = np.random.default_rng(0)
    for i in range(n):
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        pixels = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC), float)
        pixels = (pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.{kind}", kind)


class Reader(BaseEstimator):
    """The parameters of an estimator that concern reading, and nothing else."""

    image_shape, max_pixels = None, None

    def __init__(self, image_size=None, on_error="raise"):
        self.image_size, self.on_error = image_size, on_error


def read(paths, settings):
    from sklabel._core.inputs import check_samples

    samples = check_samples(Reader(**settings), paths, True)
    for start in range(0, len(paths), 64):
        samples[np.arange(start, min(start + 64, len(paths)))]


def read_with_pillow(paths, settings):
    for path in paths:
        with Image.open(path) as image:
            side = settings.get("image_size")
            if side:
                image.draft("RGB", (side, side))
            image = image.convert("RGB")
            np.asarray(image.resize((side, side)) if side else image)


def work(candidate, folders):
    """Answer each name of a kind on stdin with the seconds that its files take."""
    read_all = read_with_pillow if candidate == "Pillow" else read
    for line in sys.stdin:
        kind = line.strip()
        paths = sorted(map(str, Path(folders, kind).iterdir()))
        start = time.perf_counter(), time.process_time()
        read_all(paths, KINDS[kind][3])
        ends = time.perf_counter(), time.process_time()
        print(ends[0] - start[0], ends[1] - start[1], flush=True)


def begin(candidate, checkout, folders):
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", candidate, "--folders", folders],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(process, kind):
    print(kind, file=process.stdin, flush=True)
    return [float(seconds) for seconds in process.stdout.readline().split()]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", help="another checkout of sklabel")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folders", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker, args.folders)
    own = Path(__file__).parents[1]
    checkouts = {"sklabel": own, "Pillow": own}
    if args.against:
        checkouts["other"] = Path(args.against).resolve()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folders:
        for name, (kind, size, n, _) in KINDS.items():
            (folder := Path(folders, name)).mkdir()
            write(folder, kind, size, n)
        workers = {name: begin(name, c, folders) for name, c in checkouts.items()}
        print(machine())
        for kind, (_, _, n, _) in KINDS.items():
            seconds = {name: [] for name in workers}
            for worker in workers.values():
                ask(worker, kind)  # to warm up
            for _ in range(args.rounds):
                for name in rng.permutation(list(workers)):
                    seconds[name].append(ask(workers[name], kind))
            for name, values in seconds.items():
                wall, cpu = n / np.median(values, axis=0)
                best, _ = n / np.min(values, axis=0)
                print(
                    f"{kind:12} {name:8} {wall:7.0f} files/s, best {best:7.0f}; per "
                    f"second of processors {cpu:7.0f}",
                    flush=True,
                )
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()


if __name__ == "__main__":
    main()
