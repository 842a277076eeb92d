"""Speed of training: `fit` against a bare torch loop, and against lightly.

Bare loop: the module, its augmentation, optimizer and precision are those of `fit`; the
loop around them is written out here. lightly: the same network, head sizes, batch size
and images, each with its own data pipeline, on the same number of cores. One whole
epoch of each is timed; that of `fit` is its second, with everything done between two
epochs.
"""

import argparse
import time
from contextlib import nullcontext

import numpy as np
import torch
from _common import load, machine, print_ratios

from sklabel import embedding
from sklabel._core.health import watch_features
from sklabel._core.net import multiplies_bfloat16
from sklabel.classification import FixMatchClassifier
from sklabel.datasets import load_digit_images
from sklabel.optim import param_groups

N_LABELED = 100
EMBEDDERS = ("SimCLR", "MoCo", "BYOL", "SwAV", "CLD", "Autoencoder")
PEERS = ("SimCLR", "MoCo", "BYOL", "SwAV")


def images_of(args):
    """Return {name: rows} of the kinds of data that are timed."""
    rng = np.random.default_rng(0)
    x = load(args.data)[0][: args.n_train]
    return {
        "32x32x3": x,
        "digits 8x8": load_digit_images(return_X_y=True)[0],
        "vectors 64": rng.normal(size=(4096, 64)).astype(np.float32),
    }


def estimator(name, n_epochs, precision="auto"):
    if name in EMBEDDERS:
        return getattr(embedding, f"{name}Transformer")(
            max_epochs=n_epochs, batch_size=256, random_state=0, precision=precision
        )
    return FixMatchClassifier(
        max_epochs=n_epochs, batch_size=32, random_state=0, precision=precision
    )


def targets(X):
    y = np.full(len(X), -1)
    y[:N_LABELED] = np.arange(N_LABELED) % 10
    return y


def epoch_of_fit(name, X, precision="auto"):
    """Return the seconds of the second epoch of a `fit`, all its trimmings included."""
    times = []

    def watch(net, samples):
        figures = watch_features(net, samples) if name in EMBEDDERS else {}
        times.append(time.perf_counter())
        return figures

    model = estimator(name, 2, precision).set_params(net_params={"watch": watch})
    model.fit(X, targets(X))
    return times[1] - times[0]


class Bare:
    """The same training without a library around it."""

    def __init__(self, name, X):
        fitted = estimator(name, 1).fit(X, targets(X))
        samples = fitted._check_X(X)
        self.module = fitted._build_module(*samples.statistics())
        self.module.to(memory_format=torch.channels_last)
        self.settings = fitted.get_params(deep=False)
        self.name = name
        self.x = samples[np.arange(len(samples))]
        self.y = torch.from_numpy(targets(X))
        kind = torch.optim.AdamW if name in EMBEDDERS else torch.optim.SGD
        kind = torch.optim.Adam if name == "Autoencoder" else kind
        more = {} if name in EMBEDDERS else {"momentum": 0.9, "nesterov": True}
        groups = param_groups(self.module, self.settings["weight_decay"])
        self.optimizer = kind(groups, lr=self.settings["lr"], **more)
        # the second epoch of a training, as a module's before_epoch sees it
        self.history, self.step_, self.total_steps_ = [None] * 2, 100, 200
        low = self.x.ndim == 4 and multiplies_bfloat16("cpu")
        self.autocast = (
            (lambda: torch.autocast("cpu", torch.bfloat16)) if low else nullcontext
        )

    def batches(self):
        """Yield rows and targets of one epoch."""
        size = self.settings["batch_size"]
        if self.name in EMBEDDERS:
            for rows in torch.randperm(len(self.x)).split(size):
                yield rows, rows
            return
        n_unlabeled = size * self.settings["unlabeled_ratio"]
        # FixMatch leaves out a last batch that is not full
        n_rows = len(self.x) // n_unlabeled * n_unlabeled
        for rows in torch.randperm(len(self.x))[:n_rows].split(n_unlabeled):
            labeled = torch.randint(N_LABELED, (size,))
            y = torch.cat([self.y[labeled], torch.full((len(rows),), -1)])
            yield torch.cat([labeled, rows]), y

    def epoch(self):
        """Train one epoch; return its seconds."""
        start = time.perf_counter()
        self.module.train()
        if hasattr(self.module, "before_epoch"):
            self.module.before_epoch(self, None)
        for rows, y in self.batches():
            x = self.x[rows]
            if x.dtype == torch.uint8:
                x = x.float() / 255
            with self.autocast():
                loss = self.module.loss(x, y)
            loss = loss[0] if isinstance(loss, tuple) else loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if hasattr(self.module, "after_step"):
                self.module.after_step()
        return time.perf_counter() - start


def take_turns(arms, rounds):
    """Return the seconds that each arm reports, in a new order each round."""
    rng, names = np.random.default_rng(0), list(arms)
    seconds = {name: [] for name in names}
    for arm in arms.values():
        arm()  # warm up
    for _ in range(rounds):
        for i in rng.permutation(len(names)):
            seconds[names[i]].append(arms[names[i]]())
    return {name: np.array(times) for name, times in seconds.items()}


def against_bare(args):
    for data, X in images_of(args).items():
        if args.kind and data not in args.kind:
            continue
        for name in args.method:
            arms = {
                "fit": lambda name=name, X=X: epoch_of_fit(name, X),
                "bare loop": Bare(name, X).epoch,
            }
            fit, loop = take_turns(arms, args.rounds).values()
            print(
                f"{name:11s} {data:11s} fit {np.median(fit):.4f} s, bare loop "
                f"{np.median(loop):.4f} s an epoch: "
                f"{np.median(fit) / np.median(loop):.3f} times (of pairs: median "
                f"{np.median(fit / loop):.3f}, worst {(fit / loop).max():.3f}); aim "
                "1.05"
            )
    print(machine())


def epoch_of_lightly(name, x, threads, workers):
    """Return a function that trains one epoch under lightly; it returns its seconds."""
    import _lightly

    model = _lightly.build(name, x)
    batches = _lightly.loader(name, x, workers)
    optimizer = torch.optim.AdamW(param_groups(model, 1e-4), lr=1e-3)

    def epoch():
        torch.set_num_threads(threads)
        start = time.perf_counter()
        _lightly.train_epoch(model, batches, optimizer, done=1, epochs=2)
        return time.perf_counter() - start

    return epoch


def against_lightly(args):
    x = load(args.data)[0][: args.n_lightly // 256 * 256]
    for name in args.method:
        if name in PEERS:
            against_lightly_by(name, x, args)


def against_lightly_by(name, x, args):
    def ours(precision):
        def epoch():
            torch.set_num_threads(args.threads)
            return epoch_of_fit(name, x, precision)

        return epoch

    # the cores are shared out between network and loader workers; the best way counts
    splits = [(args.threads, 0), (args.threads, args.threads)]
    splits += [(args.threads - n, n) for n in range(1, args.threads)]
    tried = {split: epoch_of_lightly(name, x, *split) for split in splits}
    trial = take_turns(tried, 2)
    best = min(splits, key=lambda split: trial[split].min())
    print(f"{name}, one epoch of {len(x)} images in batches of 256:")
    for (threads, workers), times in trial.items():
        print(f"lightly, {threads} threads, {workers} workers: {times.min():.2f} s")
    seconds = take_turns(
        {
            "ours, float32": ours("float32"),
            "ours, default": ours("auto"),
            "lightly (float32)": tried[best],
        },
        args.rounds_lightly,
    )
    print_ratios(seconds, "ours, float32", {"lightly (float32)": ">= 1.5"})
    print_ratios(seconds, "ours, default", {"lightly (float32)": ">= 3"})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="cifar10", help="a name of fetch_*, or .npz")
    names = [*EMBEDDERS, "FixMatch"]
    parser.add_argument("--method", nargs="+", choices=names, default=names)
    parser.add_argument("--kind", nargs="+", help="of the data: see images_of")
    parser.add_argument("--n-train", type=int, default=2048)
    parser.add_argument("--n-lightly", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rounds-lightly", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2, help="cores for each arm")
    parser.add_argument("--only", choices=["bare", "lightly"])
    parser.add_argument("--quick", action="store_true", help="few images and rounds")
    args = parser.parse_args()
    if args.quick:
        args.n_train = args.n_lightly = 1024
        args.rounds = args.rounds_lightly = 3
    torch.set_num_threads(args.threads)
    print(machine())
    if args.only != "lightly":
        against_bare(args)
    if args.only != "bare":
        against_lightly(args)


if __name__ == "__main__":
    main()
