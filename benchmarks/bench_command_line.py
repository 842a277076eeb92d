"""The job of a user: choose photographs, label them, label the others, from the shell.

Photographs lie in FOLDER/train/CLASS and FOLDER/test/CLASS (or in a zip with such
folders). `sklabel select` chooses some of train, the truth (the name of the folder)
fills in the list, `sklabel fit` labels the others, and `sklabel predict` those of test.
First each command runs once in a process of its own, with an empty cache: seconds of
the clock, and of all cores together. Then for each seed and number of labels:
accuracies, what `fit` estimated, and how many labels reached a confidence of 90 %;
the same with random choice.
"""

import argparse
import csv
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from _common import Results, parse, summary

from sklabel.cli import main
from sklabel.cli.inputs import list_images


def fill_in(path, names=None):
    """Fill in a list, or write one; paths name the class."""
    if names is None:
        with open(path, newline="") as file:
            names = [row["path"] for row in csv.DictReader(file)]
    with open(path, "w", newline="") as file:
        rows = [(name, truth(name)) for name in names]
        csv.writer(file).writerows([("path", "label"), *rows])


def truth(name):
    return Path(name).parent.name


def predictions(path):
    """Return whether each predicted label of a CSV is right, and its confidence."""
    with open(path, newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["source"] == "predicted"]
    right = np.array([row["label"] == truth(row["path"]) for row in rows])
    return right, np.array([float(row["confidence"]) for row in rows])


def timed(argv):
    """Run a command in a process of its own; return its seconds and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    words = [sys.executable, "-m", "sklabel", *argv]
    out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"$ sklabel {' '.join(argv)}\n{out}")
    return {"wall": round(time.perf_counter() - start, 1), "cpu": round(cpu, 1)}


def here(argv):
    """Run a command in this process; return what it printed."""
    with redirect_stdout(StringIO()) as out:
        if main([*argv, "--quiet", "--overwrite"]):
            raise SystemExit(f"sklabel {' '.join(argv)} failed")
    return out.getvalue()


def seconds(photos, encoder, n_samples):
    """Return the seconds of each command, with an empty cache."""
    select = ["select", f"{photos}/train", "--n-samples", str(n_samples), *encoder]
    figures = {"select": timed([*select, "--out", "to_label.csv"])}
    figures["select again"] = timed([*select, "--out", "again.csv"])
    fill_in("to_label.csv")
    fit = ["fit", "to_label.csv", f"{photos}/train", *encoder]
    figures["fit"] = timed([*fit, "--out", "labels.csv", "--model", "model"])
    predict = ["predict", "model", f"{photos}/test", "--out", "new.csv"]
    figures["predict"] = timed([*predict, *encoder[-2:]])
    return figures


def labels(photos, encoder, choice, n_samples, seed):
    """Return how good the labels are."""
    folder, more = f"{photos}/train", [*encoder, "--seed", str(seed)]
    if choice == "select":
        n = ["--n-samples", str(n_samples)]
        here(["select", folder, *n, "--out", "few.csv", *more])
        fill_in("few.csv")
    else:
        names = list(list_images(folder))
        chosen = np.random.default_rng(seed).choice(len(names), n_samples, False)
        fill_in("few.csv", [names[row] for row in chosen])
    fit = ["fit", "few.csv", folder, "--out", "all.csv", "--model", "m"]
    told = here([*fit, *more])
    here(["predict", "m", f"{photos}/test", "--out", "new.csv", *encoder[-2:]])
    right, confidence = predictions("all.csv")
    bins = (confidence * 10).astype(int)
    gaps = [
        abs(right[bins == b].sum() - confidence[bins == b].sum()) for b in range(10)
    ]
    sure = confidence >= 0.9
    about, low, high = map(
        int, re.search(r"about (\d+) %.* (\d+) and (\d+) %", told).groups()
    )
    return {
        "accuracy": float(right.mean()),
        "new": float(predictions("new.csv")[0].mean()),
        "estimate": about / 100,
        "low": low / 100,
        "high": high / 100,
        "sure": float(sure.mean()),
        "accuracy_sure": float(right[sure].mean()) if sure.any() else None,
        "calibration_error": float(sum(gaps) / len(right)),
    }


if __name__ == "__main__":
    data = os.environ.get("SKLABEL_DATA", ".")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", default=f"{data}/clothing.zip")
    parser.add_argument("--embedder", default="mobilenet_v2")
    parser.add_argument(
        "--weights", default=f"{data}/mobilenet_v2-imagenet.safetensors"
    )
    parser.add_argument("--n-samples", type=int, nargs="+", default=[40, 100, 200])
    parser.add_argument("--seeds", type=int, default=3)
    args = parse(parser)
    weights = ["--weights", os.path.abspath(args.weights)] if args.weights else []
    encoder = ["--embedder", args.embedder, *weights, "--cache", "cache"]
    photos, results = Path(args.photos).resolve(), Results("command_line")
    key = {"photos": photos.stem, "embedder": args.embedder}
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        if photos.suffix == ".zip":
            zipfile.ZipFile(photos).extractall("unpacked")
            photos = next(Path("unpacked").rglob("train")).parent
        results.run(
            lambda: seconds(photos, encoder, args.n_samples[0]), what="seconds", **key
        )
        for n in args.n_samples:
            for seed in range(args.seeds):
                for choice in ("select", "random"):
                    results.run(
                        lambda c=choice, n=n, s=seed: labels(photos, encoder, c, n, s),
                        what="labels",
                        choice=choice,
                        n_samples=n,
                        seed=seed,
                        **key,
                    )
        os.chdir("/")
    rows = [row for row in results.rows if row["what"] == "labels"]
    for figure in ("accuracy", "new", "estimate", "sure", "calibration_error"):
        summary(rows, ("photos", "embedder", "n_samples", "choice"), figure)
