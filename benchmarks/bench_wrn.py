"""FixMatch with the published network on CIFAR-10: 40 labels by USL and at random.

WRN-28-2 and the published settings, for as many steps as ``--seconds`` allows each of
the two; published are 2**20. The choice is made in an embedding of MobileNet v2
(``--weights``), or of SimCLR, trained here for a fifth of the time. Accuracy on the
test images after the last step. Without the data of ``fetch_cifar10``, and with
``--tiny``, it runs on random images, which shows that it works.
"""

import argparse
import time
import warnings

import numpy as np
from _common import load, machine

from sklabel import CollapseWarning
from sklabel.classification import FixMatchClassifier
from sklabel.embedding import PretrainedTransformer, SimCLRTransformer
from sklabel.selection import RandomSelector, USLSelector

# Wang, Lian, Yu, ECCV 2022, table 2: FixMatch on CIFAR-10 with 40 labels
PUBLISHED = {"random": 82.9, "USL": 90.4}


def images(args):
    if not args.tiny:
        try:
            return load("cifar10")
        except OSError as error:
            print(f"random images, since CIFAR-10 is not here: {error}")
    x = np.random.default_rng(0).integers(0, 256, (400, 16, 16, 3), np.uint8)
    y = np.arange(400) % 10
    return x, y, x[:100], y[:100]


def embedding(args, x):
    if args.weights:
        encoder = PretrainedTransformer(
            "mobilenet_v2", weights=args.weights, input_size=96, device=args.device
        )
        return encoder.fit_transform(x)
    given = {"backbone": "resnet18", "batch_size": min(512, len(x) // 4)}
    return trained(SimCLRTransformer, args.seconds / 5, args, x, **given).transform(x)


def trained(method, seconds, args, *data, **given):
    """Return an estimator trained for about so many seconds."""
    given |= {"device": args.device, "random_state": args.seed}
    n_first = 2 if args.tiny else 30

    def fit(n_steps):
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)
            made = method(max_steps=n_steps, **given).fit(*data)
        return made, time.perf_counter() - start

    _, once = fit(n_first)  # it compiles kernels
    _, short = fit(n_first)
    _, long = fit(3 * n_first)
    rate = 2 * n_first / max(long - short, 1e-3)
    left = seconds - once - short - long
    n_steps = int(max(n_first, min(rate * left, 1e9 if not args.tiny else 5)))
    made, taken = fit(n_steps)
    print(f"{method.__name__}: {n_steps} steps in {taken:.0f} s")
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=100, help="of each training")
    parser.add_argument("--weights", help="of MobileNet v2; default: train SimCLR")
    parser.add_argument("--labels", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="the least sizes")
    args = parser.parse_args()
    print(machine())
    x, y, x_test, y_test = images(args)
    Z = embedding(args, x)
    for name, kind in {"random": RandomSelector, "USL": USLSelector}.items():
        rows = kind(args.labels, random_state=args.seed).fit(Z).sample_indices_
        given = np.full(len(y), -1)
        given[rows] = y[rows]
        clf = trained(
            FixMatchClassifier,
            args.seconds,
            args,
            x,
            given,
            backbone="resnet8" if args.tiny else "wrn_28_2",
            batch_size=8 if args.tiny else 64,
        )
        accuracy = 100 * float((clf.predict(x_test) == y_test).mean())
        print(
            f"{name}: {accuracy:.1f} % of the test images, {len(np.unique(y[rows]))} "
            f"classes labeled; published, after 2**20 steps: {PUBLISHED[name]} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
