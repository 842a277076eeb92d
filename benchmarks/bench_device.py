"""A device against the CPU, and `fit` on it against a bare loop.

Three parts: how far results of the device are from those of the CPU after a few steps,
and whether a second fit has the bits of the first; views a second of each policy; steps
a second of each method, `fit` and a loop written out over rows that lie on the device,
and the share of the device's largest rate of operations that this is.
Random images, no network. Exits with 1 where a result is farther off than it may be.
"""

import argparse
import copy
import sys
import time
import warnings

import numpy as np
import torch
from _common import machine
from torch.utils.flop_counter import FlopCounterMode

from sklabel import augment, classification, clustering, embedding, neighbors
from sklabel._core.net import Net, resolve_device
from sklabel.optim import param_groups

METHODS = {
    "SimCLR": embedding.SimCLRTransformer,
    "MoCo": embedding.MoCoTransformer,
    "BYOL": embedding.BYOLTransformer,
    "SwAV": embedding.SwAVTransformer,
    "CLD": embedding.CLDTransformer,
    "SCAN": clustering.SCANClusterer,
    "FixMatch": classification.FixMatchClassifier,
    "MixMatch": classification.MixMatchClassifier,
    "Supervised": classification.SupervisedClassifier,
}
POLICIES = {
    "Weak": augment.Weak(),
    "Contrastive": augment.Contrastive(),
    "RandAugment": augment.RandAugment(),
    "CTAugment": augment.CTAugment(),
}
# By how much embeddings and probabilities of three steps may differ.
TOLERANCE = 2e-2


def estimator(name, device, batch_size, **settings):
    settings = {"random_state": 0, "device": device, **settings}
    if name == "SCAN":
        settings["embedder"] = embedding.SimCLRTransformer(max_steps=1, device=device)
        settings["n_clusters"], settings["self_label_epochs"] = 10, 0
    if name in ("FixMatch", "MixMatch"):
        batch_size = max(2, batch_size // 8)
    return METHODS[name](batch_size=batch_size, **settings)


def fitted(name, X, *args, **settings):
    y = np.where(np.arange(len(X)) < 100, np.arange(len(X)) % 10, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator(name, *args, **settings).fit(X, y)


def wait(device):
    """Wait until a device has done what it was given."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


# -- results


def compare(X, device, args):
    """Print how far results are from those of the CPU; return how many are too far."""
    n_far = 0
    for name in args.method:
        found = []
        for where in ("cpu", device, device):
            model = fitted(name, X, where, 32, max_steps=3, precision="float32")
            verb = "predict_proba" if hasattr(model, "predict_proba") else "transform"
            found.append(getattr(model, verb)(X[:64]))
        gap = float(np.abs(found[0] - found[1]).max())
        n_far += gap > TOLERANCE
        again = "the same" if np.array_equal(*found[1:]) else "other"
        print(f"{name:11s} differs from the CPU by {gap:.1e}; bits again: {again}")
    Z = np.random.default_rng(0).normal(size=(len(X), 32)).astype(np.float32)
    for name, search in {
        "kneighbors": lambda where: neighbors.kneighbors(Z, 10, device=where)[1],
        "kmeans": lambda where: neighbors.kmeans(Z, 20, random_state=0, device=where)[
            0
        ],
    }.items():
        same = float((search("cpu") == search(device)).mean())
        n_far += same < 0.99
        print(f"{name:11s} {100 * same:.2f} % of the numbers are those of the CPU")
    return n_far


# -- speed


def views(device, args):
    for name, policy in POLICIES.items():
        policy = copy.deepcopy(policy).to(device)
        for side in args.sides:
            x = torch.rand(args.batch_size, 3, side, side, device=device)
            policy(x)
            seconds = []
            for _ in range(args.rounds):
                wait(device)
                start = time.perf_counter()
                policy(x)
                wait(device)
                seconds.append(time.perf_counter() - start)
            rate = len(x) / np.median(seconds)
            print(f"{name:11s} {side:3d} x {side:<3d} {rate:12,.0f} views/s")


def before_training(name, X, device, batch_size):
    """Return a fitted estimator, and its module as it was before the training."""
    kept, loop = [], Net.fit_loop

    def keep(net, *args, **kwargs):
        kept.append(copy.deepcopy(net.module_))
        return loop(net, *args, **kwargs)

    Net.fit_loop = keep
    try:
        model = fitted(name, X, device, batch_size, max_steps=1)
    finally:
        Net.fit_loop = loop
    return model, kept[-1]


class Bare:
    """The same training without a library around it, its rows on the device."""

    def __init__(self, name, X, device, args):
        model, self.module = before_training(name, X, device, args.batch_size)
        samples = model._check_X(X)
        self.module.train()
        net = model.net_
        self.autocast, self.device, self.net = net.autocast, device, net
        groups = param_groups(self.module, model.weight_decay)
        fused = {"fused": True} if device.type == "cuda" else {}
        kind = torch.optim.SGD if name in ("FixMatch",) else torch.optim.AdamW
        self.optimizer = kind(groups, lr=1e-3, **fused)
        self.x = samples[np.arange(len(samples))].to(device)
        self.n_rows, self.n_labeled = args.batch_size, None
        if name in ("FixMatch", "MixMatch"):
            self.n_labeled = max(2, args.batch_size // 8)
            self.n_rows = round(self.n_labeled * (1 + model.unlabeled_ratio))

        # in the middle of a training, as a module's before_epoch sees it
        self.history, self.step_, self.total_steps_ = [None] * 2, 100, 10_000
        if hasattr(self.module, "before_epoch"):
            self.module.before_epoch(self, None)

    def steps(self, n_steps):
        """Train; return the seconds of a step."""
        wait(self.device)
        start = time.perf_counter()
        for _ in range(n_steps):
            rows = torch.randint(len(self.x), (self.n_rows,), device=self.device)
            x = self.x[rows].float().div_(255)
            if self.n_labeled is None:
                y = rows % 10
            else:
                y = torch.cat(
                    [rows[: self.n_labeled] % 10, -1 - rows[self.n_labeled :]]
                )
                y.n_labeled = self.n_labeled
            with self.autocast():
                loss = self.module.loss(x, y)
            (loss[0] if isinstance(loss, tuple) else loss).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if hasattr(self.module, "after_step"):
                self.module.after_step()
        wait(self.device)
        return (time.perf_counter() - start) / n_steps


def steps_of_fit(name, X, device, args, **settings):
    """Return the seconds of a step of `fit`, within its fastest epoch."""
    taken = []
    run = Net.run_single_epoch

    def timed(net, *args, **kwargs):
        wait(device)
        start, before = time.perf_counter(), net.step_
        run(net, *args, **kwargs)
        wait(device)
        taken.append((time.perf_counter() - start) / max(1, net.step_ - before))

    Net.run_single_epoch = timed
    try:
        fitted(name, X, device, args.batch_size, max_steps=args.steps, **settings)
    finally:
        Net.run_single_epoch = run
    return min(taken)


def compiled(X, device, args):
    """Print how much faster compiled networks train, plain and compiled in turn."""
    for name in args.method:
        for mode in args.compile:
            if args.left() < 60:
                print(f"{name} {mode} and those after it: no time left")
                return
            how = {"compile": True, "compile__mode": mode}
            arms = {"plain": None, "compiled": how}
            taken = {arm: [] for arm in arms}
            for _ in range(3):
                for arm, given in arms.items():
                    seconds = steps_of_fit(name, X, device, args, net_params=given)
                    taken[arm].append(seconds)
            ratios = np.divide(taken["plain"], taken["compiled"])
            print(
                f"{name:11s} {mode}: {np.median(ratios):.2f} times as fast compiled "
                f"(worst {ratios.min():.2f}; {np.median(taken['plain']):.4f} s a step)",
                flush=True,
            )


def fastest_product(device, precision):
    """Return the operations a second of a large matrix product: the roof."""
    n = 512 if device.type == "cpu" else 8192
    dtype = getattr(torch, precision, torch.float32)
    a = torch.randn(n, n, device=device).to(dtype)
    rates = []
    for _ in range(8):
        wait(device)
        start = time.perf_counter()
        a @ a
        wait(device)
        rates.append(2 * n**3 / (time.perf_counter() - start))
    return max(rates)


def steps(X, device, args):
    roofs = {}
    for name in args.method:
        if args.left() < 30:
            print(f"{name} and those after it: no time left")
            return
        ours = 1 / steps_of_fit(name, X, device, args)
        if name == "SCAN":  # its rows come in pairs
            print(f"{name:11s} fit {ours:8.1f} steps/s")
            continue
        bare = Bare(name, X, device, args)
        bare.steps(3)
        with FlopCounterMode(display=False) as counter:
            bare.steps(1)
        precision = bare.net.used_precision()
        if precision not in roofs:
            roofs[precision] = fastest_product(device, precision)
        share = ours * counter.get_total_flops() / roofs[precision]
        bare = 1 / min(bare.steps(args.steps) for _ in range(3))
        print(
            f"{name:11s} fit {ours:8.1f} steps/s, bare loop {bare:8.1f} steps/s: "
            f"{bare / ours:.2f} times the bare loop's time; {100 * share:.1f} % of the "
            f"operations that a product of matrices does in {precision}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seconds", type=float, default=300, help="stop after them")
    parser.add_argument("--tiny", action="store_true", help="the least sizes")
    modes = ["default", "reduce-overhead", "max-autotune"]
    parser.add_argument("--compile", nargs="+", choices=modes, help="only this")
    parser.add_argument("--side", type=int, help="of the images")
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    args.left = lambda: end - time.monotonic()
    device = resolve_device(args.device)
    small = args.tiny or device.type == "cpu"
    args.batch_size, args.rounds, args.steps = (32, 2, 4) if small else (256, 20, 60)
    args.sides = (16,) if small else (32, 96, 224)
    n_rows, side = (128, 8) if small else (10_000, 32)
    side = args.side or side
    X = np.random.default_rng(0).integers(0, 256, (n_rows, side, side, 3), np.uint8)
    print(machine(), f"device {device}, torch {torch.__version__}", sep="\n")
    if args.compile:
        args.steps = 3 * (n_rows // args.batch_size)  # the first epoch compiles
        compiled(X, device, args)
        return
    n_far = compare(X[:256], device, args)
    views(device, args)
    steps(X, device, args)
    print(f"{n_far} results are too far from those of the CPU.")
    sys.exit(n_far > 0)


if __name__ == "__main__":
    main()
