"""Where the time of a training step goes: views, forward, backward, optimizer, rest.

``--avx2`` imitates a processor without AVX-512 and bfloat16. ``fit`` trains as it is,
in float32; its parts are timed around it, in processor time with one thread and wall
time with several. Medians over the steps.
"""

import argparse
import collections
import os
import sys
import time

import numpy as np

METHODS = ("SimCLR", "FixMatch")
KINDS = ("digits 8x8", "32x32x3", "64x64x3")


def images(kind):
    from sklabel.datasets import load_digit_images

    if kind == "digits 8x8":
        return load_digit_images(return_X_y=True)[0]
    side = int(kind.split("x")[0])
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (1024, side, side, 3), np.uint8)


class Clock:
    """Adds up the seconds spent in functions that it stands around."""

    def __init__(self, one_thread):
        self.now = time.process_time if one_thread else time.perf_counter
        self.spent = collections.Counter()
        self.inside = 0

    def around(self, owner, name, part):
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            if self.inside:  # a policy in a policy
                return function(*args, **kwargs)
            self.inside += 1
            start = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.inside -= 1
                self.spent[part] += self.now() - start

        setattr(owner, name, timed)
        return lambda: setattr(owner, name, function)


def parts_of(name, kind, n_steps, threads):
    """Return the median seconds of each part of a step of ``fit``, and of all."""
    import torch

    from sklabel import augment, classification, embedding
    from sklabel._core.net import Net

    settings = {"max_steps": n_steps + 3, "random_state": 0, "precision": "float32"}
    X = images(kind)
    if name == "SimCLR":
        # as `sklabel demo` has it for digits
        model = embedding.SimCLRTransformer(batch_size=128, **settings)
        if kind == "digits 8x8":
            views = augment.Contrastive(crop=(0.5, 1), flip=0, rotate=10)
            model.set_params(augment=views)
        y = None
    else:
        model = classification.FixMatchClassifier(batch_size=16, **settings)
        y = np.full(len(X), -1)
        y[:40] = np.arange(40) % 10
    clock = Clock(threads == 1)
    rows = []
    step = Net.train_step

    def whole(net, batch, **kwargs):
        if len(rows) == 0:
            module = net.module_
            for child in module.modules():
                if isinstance(child, augment.policy.Policy):
                    clock.around(child, "forward", "views")
        clock.spent.clear()
        start = clock.now()
        out = step(net, batch, **kwargs)
        after = clock.now()
        rows.append({**clock.spent, "all": after - start})
        return out

    undo = [
        clock.around(torch.Tensor, "backward", "backward"),
        clock.around(Net, "_step", "optimizer"),
    ]
    Net.train_step = whole
    try:
        model.fit(X) if y is None else model.fit(X, y)
    finally:
        Net.train_step = step
        for function in undo:
            function()
    names = ("views", "backward", "optimizer", "all")
    found = {
        part: float(np.median([row.get(part, 0) for row in rows[3:]])) for part in names
    }
    found["forward, loss, rest"] = found["all"] - sum(found[k] for k in names[:3])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS)
    args = parser.parse_args()
    if args.avx2 and "ONEDNN_MAX_CPU_ISA" not in os.environ:
        told = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **told})
    import torch
    from _common import machine

    torch.set_num_threads(args.threads)
    for name in args.method:
        for kind in args.kind:
            found = parts_of(name, kind, args.steps, args.threads)
            whole = found.pop("all")
            shares = ", ".join(f"{k} {v / whole:.0%}" for k, v in found.items())
            print(f"{name} {kind}: {1000 * whole:.1f} ms a step: {shares}", flush=True)
    print(machine(), torch.backends.cpu.get_cpu_capability())


if __name__ == "__main__":
    main()
