"""Embedding without labels: all methods, one network and budget, and lightly's.

Scores are those of the last epoch on the test images: weighted k-NN (k 200, T 0.1) and
a linear probe, a logistic regression on standardized features whose C is chosen by
cross-validation on the training images. Optimizer, rate, batch size, epochs and network
are the same for all: AdamW at 1e-3, one epoch of warm-up, cosine, 256. Rows that are in
the results file are not run again, so a broken run continues.
"""

import argparse
import warnings

from _common import Results, load, parse, shared, summary
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklabel.embedding import (
    AutoencoderTransformer,
    BYOLTransformer,
    CLDTransformer,
    MoCoTransformer,
    SimCLRTransformer,
    SwAVTransformer,
)
from sklabel.metrics import knn_accuracy

METHODS = {
    "SimCLR": SimCLRTransformer,
    "MoCo": MoCoTransformer,
    "BYOL": BYOLTransformer,
    "SwAV": SwAVTransformer,
    "CLD": CLDTransformer,
    "Autoencoder": AutoencoderTransformer,
}
PEERS = ("SimCLR", "MoCo", "BYOL", "SwAV")


def scores(Z, y, Z_test, y_test):
    probe = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(Cs=[1e-3, 1e-2, 1e-1, 1], cv=3, max_iter=100),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (ConvergenceWarning, FutureWarning))
        probe.fit(Z, y)
    return {
        "knn": knn_accuracy(Z, y, Z_test, y_test, k=200, temperature=0.1),
        "probe": probe.score(Z_test, y_test),
    }


def ours(args, name, seed, data, **length):
    x, y, x_test, y_test = data
    backbone = {} if name == "Autoencoder" else {"backbone": args.backbone}
    embedder = METHODS[name](
        **backbone,
        **{"max_epochs": args.epochs, **length},
        batch_size=256,
        **shared(args, seed),
    ).fit(x)
    last = embedder.net_.history[-1]
    return {
        **scores(embedder.transform(x), y, embedder.transform(x_test), y_test),
        "feature_std": last["feature_std"],
        "effective_rank": last["effective_rank"],
    }


def lightly(args, name, seed, data):
    from _lightly import embed

    x, y, x_test, y_test = data
    Z, Z_test = embed(
        name,
        x,
        x_test,
        args.epochs,
        seed,
        args.backbone,
        args.workers,
        args.checkpoints,
    )
    return scores(Z, y, Z_test, y_test)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="cifar10", help="a name of fetch_*, or .npz")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--by", nargs="+", default=["sklabel", "lightly"])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--backbone", default="resnet8")
    parser.add_argument("--n-train", type=int, help="first rows of the training images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=0, help="of lightly's loader")
    args = parse(parser)

    x, y, x_test, y_test = load(args.data)
    # a last batch that is not full is left out by lightly and trained on by ours
    n_train = (args.n_train or len(x)) // 256 * 256
    data = x[:n_train], y[:n_train], x_test, y_test
    setting = {"data": args.data, "n_train": n_train, "backbone": args.backbone}
    results, rows = Results("embedding"), []
    for seed in args.seeds:
        if "sklabel" in args.by:
            run = results.run(
                lambda s=seed: ours(args, "SimCLR", s, data, max_steps=1, lr=1e-9),
                **setting,
                epochs=0,
                method="untrained",
                by="sklabel",
                seed=seed,
            )
            rows.append(run)
        for name in args.method:
            for by, function in (("sklabel", ours), ("lightly", lightly)):
                if by not in args.by or (by == "lightly" and name not in PEERS):
                    continue
                run = results.run(
                    lambda f=function, n=name, s=seed: f(args, n, s, data),
                    **setting,
                    epochs=args.epochs,
                    method=name,
                    by=by,
                    seed=seed,
                )
                rows.append(run)
    for figure in ("knn", "probe"):
        summary(rows, ["method", "by"], figure)


if __name__ == "__main__":
    main()
