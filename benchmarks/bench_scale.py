"""What more rows cost: processor seconds and peak memory at 10,000 to 1,000,000 rows.

Each measurement is a process of its own (``--task`` and ``--n``); ``--all`` starts one
after the other. Memory is the largest that was resident, ``beyond`` without what the
process held before the call, X among it. ``exponent`` of ``--table`` is that of n in
the processor time between the last two sizes: 1 is linear.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# how many rows are worth it: command and paths need a file for each
SIZES = {
    "neighbors": (10_000, 100_000, 300_000, 1_000_000),
    "kmeans": (10_000, 100_000, 1_000_000),
    "usl": (10_000, 100_000, 300_000, 1_000_000),
    "typiclust": (10_000, 100_000, 300_000, 1_000_000),
    "herding": (10_000, 100_000, 1_000_000),
    "propagation": (10_000, 100_000, 300_000, 1_000_000),
    "propagation_predict": (10_000, 100_000, 1_000_000),
    "simclr_array": (10_000, 100_000, 1_000_000),
    "simclr_memmap": (10_000, 100_000, 1_000_000),
    "simclr_paths": (10_000, 50_000, 200_000),
    "select": (10_000, 100_000),
    "predict": (10_000, 100_000),
}


def processor_seconds():
    """Return the processor time of this process, of all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _status(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1e6
    raise LookupError(name)


class Measured:
    """Wall and processor seconds and peak memory of what is done within (Linux)."""

    def __enter__(self):
        self.before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.wall, self.cpu = time.perf_counter(), processor_seconds()
        return self

    def __exit__(self, *error):
        self.figures = {
            "wall": round(time.perf_counter() - self.wall, 2),
            "cpu": round(processor_seconds() - self.cpu, 2),
            "peak_gb": round(_status("VmHWM"), 2),
            "beyond_gb": round(_status("VmHWM") - self.before, 2),
        }


# -- vectors


def vectors(args):
    """Return unit vectors in memory."""
    from bench_selection_scale import write_vectors

    path = Path(args.folder, f"vectors-{args.n}-{args.dim}.npy")
    if not path.exists():
        write_vectors(path, args.n, args.dim, seed=0)
    return np.load(path)


def neighbors(args):
    from sklabel.neighbors import kneighbors

    Z = vectors(args)
    with Measured() as measured:
        kneighbors(Z, 20, random_state=0)
    return measured.figures


def kmeans(args):
    from sklabel.neighbors import kmeans

    Z = vectors(args)
    with Measured() as measured:
        found = kmeans(Z, 100, max_iter=20, random_state=0)
    return measured.figures | {"iterations": found[3]}


def _select(selector, args):
    Z = vectors(args)
    with Measured() as measured:
        selector.fit(Z)
    return measured.figures


def usl(args):
    from sklabel.selection import USLSelector

    selector = USLSelector(
        100, 20, kmeans_max_iter=20, n_rounds=2, horizon="nearest", random_state=0
    )
    return _select(selector, args)


def typiclust(args):
    from sklabel.selection import TypiClustSelector

    return _select(TypiClustSelector(100, random_state=0), args)


def herding(args):
    from sklabel.selection import MaxHerdingSelector

    # fewer candidates than the default's 35,000, so that a million rows take minutes
    return _select(MaxHerdingSelector(40, n_candidates=1000, random_state=0), args)


def _partly_labeled(args):
    Z = vectors(args)
    y = np.full(len(Z), -1)
    rows = np.random.default_rng(0).choice(len(Z), 100, replace=False)
    y[rows] = (Z[rows, :3] > 0) @ [1, 2, 4]
    return Z, y


def propagation(args):
    from sklabel.classification import EmbeddingClassifier

    Z, y = _partly_labeled(args)
    with Measured() as measured:
        EmbeddingClassifier(random_state=0).fit(Z, y)
    return measured.figures


def propagation_predict(args):
    from sklabel.classification import EmbeddingClassifier

    Z, y = _partly_labeled(args)
    fitted = EmbeddingClassifier(random_state=0).fit(Z[:10_000], y[:10_000])
    with Measured() as measured:
        fitted.predict_proba(Z)
    return measured.figures


# -- images


def _first_steps(X, args, **settings):
    """Return the seconds to the first step of SimCLR, and of the next steps."""
    from skorch.callbacks import Callback

    from sklabel.embedding import SimCLRTransformer

    ends = []

    class Clock(Callback):
        def on_batch_end(self, net, **kwargs):
            ends.append((time.perf_counter(), processor_seconds()))

    model = SimCLRTransformer(
        batch_size=32,
        max_steps=6,
        precision="float32",
        random_state=0,
        net_params={"callbacks": [Clock()]},
        **settings,
    )
    with Measured() as measured:
        start, used = time.perf_counter(), processor_seconds()
        model.fit(X)
    steps = np.diff([wall for wall, _ in ends])
    cpu_steps = np.diff([cpu for _, cpu in ends])
    return measured.figures | {
        "first_step": round(ends[0][0] - start, 2),
        "first_step_cpu": round(ends[0][1] - used, 2),
        "step": round(float(np.median(steps)), 3),
        "step_cpu": round(float(np.median(cpu_steps)), 3),
    }


def _pixels(args):
    path = Path(args.folder, f"images-{args.n}.npy")
    if not path.exists():
        rng = np.random.default_rng(0)
        shape = args.n, args.side, args.side, 3
        X = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        for start in range(0, args.n, 4096):
            block = X[start : start + 4096]
            block[:] = rng.integers(0, 256, block.shape, np.uint8)
        X.flush()
    return path


def simclr_array(args):
    return _first_steps(np.load(_pixels(args)), args)


def simclr_memmap(args):
    return _first_steps(np.load(_pixels(args), mmap_mode="r"), args)


def write_jpegs(folder, n, linked):
    """Write n small JPEGs into 200 folders: linked to eight, or all different."""
    from PIL import Image

    rng = np.random.default_rng(0)
    contents = []
    for number in range(8):
        small = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(small).resize((64, 64)).save(folder / f"{number}.jpg")
        contents.append((folder / f"{number}.jpg").read_bytes())
    place = folder / "all"
    for k in range(200):
        (place / f"folder{k}").mkdir(parents=True)
    for i in range(n):
        path = place / f"folder{i % 200}" / f"image{i}.jpg"
        if linked:
            os.link(folder / f"{i % 8}.jpg", path)
        else:  # what follows the end of a JPEG is not looked at
            path.write_bytes(contents[i % 8] + i.to_bytes(4, "big"))
    return place


def simclr_paths(args):
    from sklabel.datasets import load_image_folder

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        place = write_jpegs(Path(folder), args.n, linked=True)
        with Measured() as listed:
            paths = load_image_folder(place).paths
        figures = _first_steps(paths, args, **args.settings)
    return figures | {"listing": listed.figures["wall"]}


def _embedder():
    """Return an embedder; `_command` takes the place of its network."""
    from sklabel.embedding import PretrainedTransformer

    return PretrainedTransformer(
        "shufflenet_v2_x0_5", weights=None, input_size=32, random_state=0
    )


def _command(args, arguments):
    """Run a command twice, without and with vectors kept from before.

    Decoding and the network are left out: what is measured is all that is beside them.
    """
    from sklabel import cli, embedding

    def embed(self, net, samples, rows, Z):
        rng = np.random.default_rng(0)
        for batch in np.array_split(rows, max(1, len(rows) // 64)):
            Z[batch] = rng.standard_normal((len(batch), Z.shape[1]), np.float32)
            yield batch

    embedding.PretrainedTransformer._embed = embed
    figures = {}
    for name in ("", "again_"):
        with Measured() as measured:
            if cli.main([*arguments, "--quiet", "--overwrite"]) != 0:
                raise RuntimeError("the command failed")
        figures |= {f"{name}{k}": v for k, v in measured.figures.items()}
    return figures


def select(args):
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folder = Path(folder)
        place = write_jpegs(folder, args.n, linked=False)
        embedder = _embedder().fit([str(folder / "0.jpg")])
        embedder.save(folder / "embedder")
        arguments = ["select", place, "--embedder", folder / "embedder", "--out"]
        arguments += [folder / "to_label.csv", "--cache", folder / "cache"]
        return _command(args, list(map(str, arguments)))


def predict(args):
    from sklearn.frozen import FrozenEstimator

    from sklabel.classification import EmbeddingClassifier

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folder = Path(folder)
        place = write_jpegs(folder, args.n, linked=False)
        paths = [str(folder / f"{k}.jpg") for k in range(8)] * 8
        embedder = _embedder().fit(paths)
        model = EmbeddingClassifier(FrozenEstimator(embedder), random_state=0)
        model.fit(np.array(paths, object), np.arange(64) % 8 % 4)
        model.save(folder / "model")
        arguments = ["predict", folder / "model", place, "--out"]
        arguments += [folder / "predicted.csv", "--cache", folder / "cache"]
        return _command(args, list(map(str, arguments)))


# -- all of them


def measure(args):
    import torch
    from _common import machine

    torch.set_num_threads(args.threads)
    figures = globals()[args.task](args)
    print(json.dumps({**figures, **machine()}))


def run_all(args):
    from _common import Results

    results = Results("scale")
    names = args.tasks or SIZES
    for name, n in sorted(
        ((t, n) for t in names for n in SIZES[t]), key=lambda x: x[1]
    ):
        if not args.least <= n <= args.most:
            continue
        command = [sys.executable, __file__, "--task", name, "--n", str(n)]
        command += ["--folder", args.folder, "--threads", str(args.threads)]
        key = {"task": name, "n": n, "state": args.state}

        def run(command=command):
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            line = done.stdout.splitlines()[-1:] or ["{}"]
            return json.loads(line[0]) if not done.returncode else {"failed": True}

        results.run(run, **key)


def table(args):
    from _common import Results

    rows = [row for row in Results("scale").rows if "cpu" in row]
    for name in SIZES:
        for state in dict.fromkeys(row["state"] for row in rows):
            found = [r for r in rows if (r["task"], r["state"]) == (name, state)]
            found.sort(key=lambda row: row["n"])
            shown = [
                f"{row['n']}: {row.get('first_step_cpu', row['cpu'])} s, "
                f"{row['peak_gb']} GB (+{row['beyond_gb']})"
                for row in found
            ]
            for a, b in zip(found[-2:], found[-1:], strict=False):
                if a is not b:
                    key = "first_step_cpu" if "first_step_cpu" in a else "cpu"
                    growth = np.log(b[key] / max(a[key], 1e-3))
                    shown.append(f"exponent {growth / np.log(b['n'] / a['n']):.2f}")
            print(f"{name} {state}: {'; '.join(shown)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=SIZES)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--tasks", nargs="+", choices=SIZES, help="of --all")
    parser.add_argument("--least", type=int, default=0, help="rows, of --all")
    parser.add_argument("--most", type=int, default=10**9, help="rows, of --all")
    parser.add_argument("--state", default="", help="a word for the rows of --all")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--dim", type=int, default=64, help="of vectors")
    parser.add_argument("--side", type=int, default=16, help="of images in an array")
    parser.add_argument(
        "--settings", type=json.loads, default={}, help="of SimCLR on paths, as JSON"
    )
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="for the data")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.table:
        table(args)
    elif args.all:
        run_all(args)
    else:
        measure(args)


if __name__ == "__main__":
    main()
