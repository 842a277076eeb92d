"""FixMatch beside that of semilearn (USB): accuracy, and seconds of a step.

The same network and initial weights, labels, batches of the same sizes, steps,
optimizer and schedule, all in float32 with the same number of threads; semilearn's
loader may have workers, which count as cores. Each predicts in its own way: ours by its
moving average of the weights, semilearn by its own (decay 0.999, from the first weights
on) or by the last weights, whichever is better on the test images, which favors it.
"""

import argparse
import time

import numpy as np
import torch
from _common import Results, load, small_network, summary
from bench_classification import draw

from sklabel.classification import FixMatchClassifier


def ours(args, seed, x, y, x_test, y_test):
    start = time.perf_counter()
    clf = FixMatchClassifier(
        backbone=small_network(x, args.width, seed),
        batch_size=args.batch_size,
        max_steps=args.steps,
        precision="float32",
        random_state=seed,
    ).fit(x, y)
    seconds = sum(clf.net_.history[:, "dur"]) / args.steps
    return {
        "accuracy": clf.score(x_test, y_test),
        "step_seconds": seconds,
        "fit_seconds": time.perf_counter() - start,
    }


def theirs(args, seed, x, y, x_test, y_test):
    from _semilearn import fixmatch

    body = small_network(x, args.width, seed)
    start = time.perf_counter()
    predict, seconds = fixmatch(
        x, y, body, 8 * args.width, args.steps, args.batch_size, seed, args.workers
    )
    taken = time.perf_counter() - start
    averaged, last = (
        float((predict(x_test, averaged) == y_test).mean())
        for averaged in (True, False)
    )
    return {
        "accuracy": max(averaged, last),
        "averaged": averaged,
        "last": last,
        "step_seconds": seconds,
        "fit_seconds": taken,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="cifar10", help="a name of fetch_*, or .npz")
    parser.add_argument("--n-labels", type=int, default=250)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-train", type=int, default=10_000, help="first rows")
    parser.add_argument("--width", type=int, default=32, help="of the first layer")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0, help="of semilearn's loader")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    x, y, x_test, y_test = load(args.data)
    x, y = x[: args.n_train], y[: args.n_train]
    results, rows = Results("fixmatch"), []
    for seed in args.seeds:
        hidden = draw(y, args.n_labels, seed)
        for by, function in (("sklabel", ours), ("semilearn", theirs)):
            row = results.run(
                lambda f=function, s=seed, h=hidden: f(args, s, x, h, x_test, y_test),
                data=args.data,
                n_train=len(x),
                n_labels=args.n_labels,
                width=args.width,
                steps=args.steps,
                batch_size=args.batch_size,
                workers=args.workers,
                by=by,
                seed=seed,
            )
            rows.append(row)
    summary(rows, ["by"], "accuracy")
    summary(rows, ["by"], "step_seconds")
    seconds = {
        by: np.array([row["step_seconds"] for row in rows if row["by"] == by])
        for by in ("sklabel", "semilearn")
    }
    ratios = seconds["semilearn"] / seconds["sklabel"]
    print(
        f"semilearn takes {np.median(ratios):.2f} times ours, worst {ratios.min():.2f}"
    )


if __name__ == "__main__":
    main()
