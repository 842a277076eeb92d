"""Training on from an encoder that has learned: what it gains, and what it costs.

``--data usps`` (or another name of ``fetch_*``): SimCLR of 40 epochs with a small
network. ``--weights FILE`` in its place: a published MobileNet v2, of images of 96
pixels; then ``--data`` may be a folder of class folders too. FixMatch and SimCLRv2
start from the encoder, with the settings for one that has learned nothing (as
published), with those of the library, and with others; beside them logistic regression
and EmbeddingClassifier on its vectors. Accuracy on the rows without a label. Rows that
are in the results file are not run again, so a broken run continues.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
from _common import UPRIGHT, Results, load, parse, shared, small_network, summary
from bench_classification import draw
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklabel import datasets
from sklabel.augment import Contrastive, Weak
from sklabel.classification import (
    EmbeddingClassifier,
    FixMatchClassifier,
    SimCLRv2Classifier,
)
from sklabel.embedding import PretrainedTransformer, SimCLRTransformer

STARTS = {
    "as published": {"backbone_lr": 1.0, "head_init": "random", "warmup_epochs": 0},
    "default": {},
    "probe, rate 1": {"backbone_lr": 1.0},
    "probe, rate 0.1": {"backbone_lr": 0.1},
    "probe, rate 0.01": {"backbone_lr": 0.01},
    "probe, frozen": {"train_backbone": False},
}
METHODS = ("logistic regression", "EmbeddingClassifier", "FixMatch", "SimCLRv2")


def images_of(args):
    """Return images and their classes."""
    if Path(args.data).is_dir():
        bunch = datasets.load_image_folder(args.data)
        known = np.flatnonzero(bunch.target >= 0)
        known = np.random.default_rng(0).permutation(known)[: args.n_train]
        return [bunch.paths[i] for i in known], bunch.target[known]
    x, y, _, _ = load(args.data)
    return x[: args.n_train], y[: args.n_train]


def fit_embedder(args, x):
    if args.weights:
        side = 96 if Path(args.data).is_dir() else None
        return PretrainedTransformer(
            "mobilenet_v2", weights=args.weights, input_size=96, image_size=side
        ).fit(x)
    own = Contrastive(flip=0, crop=(0.5, 1.0), rotate=20)
    return SimCLRTransformer(
        temperature=0.2,
        projection_layers=3,
        backbone=small_network(x, 16, 0),
        augment=own if args.data in UPRIGHT else "auto",
        max_epochs=40,
        batch_size=256,
        **shared(args, 0),
    ).fit(x)


def classifier(method, start, embedder, args, seed):
    upright = args.data in UPRIGHT
    size = {"image_size": 96} if Path(args.data).is_dir() else {}
    given = {**STARTS[start], **size, **shared(args, seed), "max_steps": args.steps}
    weak = Weak(flip=0) if upright else "auto"
    if method == "FixMatch":
        return FixMatchClassifier(
            backbone=embedder,
            batch_size=args.batch_size,
            unlabeled_ratio=args.ratio,
            weak_augment=weak,
            **given,
        )
    return SimCLRv2Classifier(
        FrozenEstimator(embedder), distill_epochs=args.distill, augment=weak, **given
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="name, or folder of folders")
    parser.add_argument("--weights", help="of MobileNet v2; default: train SimCLR")
    parser.add_argument("--labels", type=int, nargs="+", default=[40])
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--n-train", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--distill", type=int, default=10, help="epochs")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--ratio", type=int, default=7)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--start", nargs="+", choices=STARTS, default=list(STARTS))
    args = parse(parser)

    x, y = images_of(args)
    embedder = fit_embedder(args, x)
    Z = embedder.transform(x)
    embedding = "mobilenet" if args.weights else "simclr"
    key = {"data": Path(args.data).stem, "embedding": embedding, "n_train": len(y)}
    key |= {"steps": args.steps, "batch_size": args.batch_size, "ratio": args.ratio}
    results, rows = Results("transfer"), []
    for seed in range(args.seeds):
        for n_labels in args.labels:
            hidden = draw(y, n_labels, seed)
            for method in args.method:
                trained = method in ("FixMatch", "SimCLRv2")
                for start in args.start if trained else ["vectors"]:

                    def run(method=method, start=start, hidden=hidden, seed=seed):
                        known, rest = hidden >= 0, hidden < 0
                        if method == "logistic regression":
                            clf = make_pipeline(
                                StandardScaler(), LogisticRegression(max_iter=1000)
                            ).fit(Z[known], hidden[known])
                            found = clf.predict(Z)
                        elif method == "EmbeddingClassifier":
                            clf = EmbeddingClassifier(random_state=seed).fit(Z, hidden)
                            found = clf.transduction_
                        else:
                            clf = classifier(method, start, embedder, args, seed)
                            with warnings.catch_warnings(record=True) as seen:
                                warnings.simplefilter("always")
                                found = clf.fit(x, hidden).transduction_
                            said = [str(w.message) for w in seen]
                            warned = any("probe on the embedding" in s for s in said)
                            accuracy = float((found == y)[rest].mean())
                            return {"accuracy": accuracy, "warned": warned}
                        return {"accuracy": float((found == y)[rest].mean())}

                    own = {"n_labels": n_labels, "method": method, "start": start}
                    rows.append(results.run(run, **key, **own, seed=seed))
    summary(rows, ("n_labels", "method", "start"), "accuracy")


if __name__ == "__main__":
    main()
