"""Speed of reading image files: ours, that of another checkout, and Pillow alone.

Each candidate is a process of its own; they take turns, in a new order each round. Timed
is a fit of one step on all files: nearly all of it is reading. Pillow decodes the same
files in one thread.

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

KINDS = {
    "photographs": ("JPEG", (375, 500), 256, {"image_size": 64}),
    "small": ("PNG", (32, 32), 4000, {}),
    "large set": ("JPEG", (120, 160), 2000, {"image_size": 400}),
    "with skip": ("PNG", (32, 32), 4000, {"on_error": "skip"}),
}


def write(folder, kind, size, n):
    """Write n smooth images with noise, as photographs are."""
    rng = np.random.default_rng(0)
    for i in range(n):
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        pixels = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC), float)
        pixels = (pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.{kind}", kind)


def fit_seconds(paths, settings):
    from sklabel.embedding import AutoencoderTransformer

    model = AutoencoderTransformer(max_steps=1, batch_size=2, **settings)
    start = time.perf_counter()
    model.fit(paths)
    return time.perf_counter() - start


def pillow_seconds(paths, settings):
    start = time.perf_counter()
    for path in paths:
        with Image.open(path) as image:
            side = settings.get("image_size")
            if side:
                image.draft("RGB", (side, side))
            image = image.convert("RGB")
            np.asarray(image.resize((side, side)) if side else image)
    return time.perf_counter() - start


def work(candidate, folders):
    """Answer each name of a kind on stdin with the seconds that its files take."""
    time_of = pillow_seconds if candidate == "Pillow" else fit_seconds
    for line in sys.stdin:
        kind = line.strip()
        paths = sorted(map(str, Path(folders, kind).iterdir()))
        print(time_of(paths, KINDS[kind][3]), flush=True)


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
    return float(process.stdout.readline())


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
                rates = n / np.sort(values)[::-1]
                print(
                    f"{kind:12} {name:8} {np.median(rates):8.0f} files/s, best "
                    f"{rates[-1]:8.0f}"
                )
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()


if __name__ == "__main__":
    main()
