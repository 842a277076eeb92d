"""What the benchmarks share: data, rows of results, and a line about the machine."""

import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sklabel import datasets

RESULTS = Path(__file__).parent / "results"
# what a mirror or a strong crop would turn into something else
UPRIGHT = ("mnist", "usps", "fashion_mnist")


def load(data):
    """Return x_train, y_train, x_test, y_test of a data set's name or an .npz file."""
    if str(data).endswith(".npz"):
        with np.load(data) as file:
            return tuple(file[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    bunch = getattr(datasets, f"fetch_{data}")()
    return bunch.x_train, bunch.y_train, bunch.x_test, bunch.y_test


def parse(parser):
    """Return the arguments, with those of all long benchmarks; set the threads."""
    parser.add_argument("--checkpoints", help="folder; a broken run continues from it")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--verbose", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def shared(args, seed):
    """Return what every estimator of a long benchmark is told."""
    return {
        "random_state": seed,
        "checkpoint_dir": args.checkpoints,
        "verbose": args.verbose,
    }


def small_network(x, width, seed):
    """Return four convolutions, 3x3 but for the first; the side is halved three times.

    Parameters
    ----------
    x : ndarray
        Images, of which the channels are counted.
    width : int
        Channels of the first layer; each other has twice as many as the one before.
    seed : int
        Of the initial weights.
    """
    torch.manual_seed(seed)
    layers, n_in = [], 1 if x.ndim == 3 else x.shape[-1]
    for i, n_out in enumerate((width, 2 * width, 4 * width, 8 * width)):
        side, stride = (5, 2) if i == 0 else (3, 1)
        conv = nn.Conv2d(n_in, n_out, side, stride, side // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]
        if i in (1, 2):
            layers.append(nn.MaxPool2d(2))
        n_in = n_out
    return nn.Sequential(*layers)


def as_tensor(x):
    """Return images as a tensor (n, C, H, W) of values in [0, 1]."""
    pixels = torch.from_numpy(x / np.float32(255))
    return pixels[:, None] if x.ndim == 3 else pixels.permute(0, 3, 1, 2)


def machine():
    """Return processor, threads and load, to stand beside every timing."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "machine": device,
        "threads": torch.get_num_threads(),
        "load": round(load, 2),
        "torch": torch.__version__,
    }


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x for x in lines if "model name" in x).split(":")[1].strip()
    except (OSError, StopIteration):
        return platform.processor()


class Results:
    """Rows of one benchmark, one JSON line each; a row that is there is not run again.

    Parameters
    ----------
    name : str
        ``results/NAME.jsonl``.
    """

    def __init__(self, name):
        self.path = RESULTS / f"{name}.jsonl"
        RESULTS.mkdir(exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def find(self, **key):
        """Return the row with these entries, or None."""
        for row in self.rows:
            if all(row.get(name) == value for name, value in key.items()):
                return row
        return None

    def run(self, function, **key):
        """Return the row of a key, computing it where it is missing."""
        row = self.find(**key)
        if row is None:
            start = time.perf_counter()
            figures = function()
            seconds = round(time.perf_counter() - start, 1)
            row = {**key, **figures, "seconds": seconds, **machine()}
            self.rows.append(row)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        return row


def summary(rows, by, figure):
    """Print mean and standard deviation of a figure over the seeds, per group."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row[figure])
    for group, values in groups.items():
        mean, std = np.mean(values), np.std(values, ddof=len(values) > 1)
        print(
            f"{' '.join(map(str, group)):40s} {figure} {mean:.4f} +- {std:.4f} "
            f"({len(values)} seeds)"
        )


def alternate(candidates, rounds=10, seed=0):
    """Time candidates in turn, in a new order each round.

    Parameters
    ----------
    candidates : dict of str to callable
    rounds : int
    seed : int

    Returns
    -------
    seconds : dict of str to ndarray of shape (rounds,)
    """
    rng = np.random.default_rng(seed)
    seconds = {name: [] for name in candidates}
    for name in candidates:
        candidates[name]()  # warm up
    for _ in range(rounds):
        for name in rng.permutation(list(candidates)):
            start = time.perf_counter()
            candidates[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(times) for name, times in seconds.items()}


def print_ratios(seconds, ours, aim=None):
    """Print how many times as long each other candidate takes: median and worst."""
    for name, times in seconds.items():
        line = f"{name:36s} {np.median(times):9.4f} s"
        if name != ours:
            ratio = times / seconds[ours]
            line += f"   {np.median(ratio):6.2f} times ours, worst {ratio.min():.2f}"
            line += f" (aim {aim[name]})" if aim and name in aim else ""
        print(line)
    print(machine())
