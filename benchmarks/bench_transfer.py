"""Training on from an encoder that has learned: what it gains, and what it costs.

``--data usps`` (or another name of ``fetch_*``): SimCLR of 40 epochs with a small
network. ``--weights FILE`` in its place: a published MobileNet v2, of images of 96
pixels; then ``--data`` may be a folder of class folders too. ``--clip`` (CIFAR-10): the
image tower of CLIP, which has learned from words around the names of eight of the ten
classes, as in bench_hybrid.py, on images that are not among those to label. FixMatch
and SimCLRv2 start from the encoder, with the settings for one that has learned nothing
(as published), with those of the library, and with others; beside them logistic
regression and EmbeddingClassifier on its vectors. Accuracy on the rows without a label.
Rows that are in the results file are not run again, so a broken run continues.

The labels are drawn, one of each class first. With ``--choice`` selectors choose them
in the same space, each seed among four fifths of the rows; those that ask a classifier
start from ten random rows. With ``--asked-in labels`` these see the features of a
network that was trained on the ten rows alone, as published, not those of the encoder.
FreeMatch, SoftMatch and AdaMatch are FixMatch with other
rules for which predictions count; the last is also run with its threshold alone.
"""

import argparse
import itertools
import warnings
from pathlib import Path

import numpy as np
import torch
from _common import (
    UPRIGHT,
    Results,
    as_tensor,
    load,
    parse,
    shared,
    small_network,
    summary,
)
from bench_classification import draw
from bench_clip import CIFAR, captions, cifar, fitted
from bench_selection import ASKING, FREE, choose, figures_of
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
    SupervisedClassifier,
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
# what is not the default of FixMatch
RULES = {
    "FixMatch": {},
    "FreeMatch": {"threshold": "free"},
    "SoftMatch": {"threshold": "soft"},
    "AdaMatch": {
        "threshold": 0.9,
        "relative_threshold": True,
        "distribution_alignment": "predictions",
        "logit_interpolation": True,
    },
    "relative threshold": {"threshold": 0.9, "relative_threshold": True},
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
    if args.clip:  # the first ones have taught the tower
        return x[-args.n_train :], y[-args.n_train :]
    return x[: args.n_train], y[: args.n_train]


# of the tower: images with captions, and the lengths of its training
TOWER = argparse.Namespace(
    held_out=["deer", "truck"],
    n_train=20_000,
    steps=1500,
    batch_size=256,
    lr=1e-3,
    size=128,
    width=32,
    text_width=128,
    text_layers=3,
    same_captions="positives",
)


def fit_embedder(args, x):
    if args.clip:
        tower = argparse.Namespace(**{**vars(args), **vars(TOWER)})
        seen, words, *_ = cifar(tower)
        return fitted(tower, 0, seen, captions(words, CIFAR))
    if args.weights:
        side = 96 if Path(args.data).is_dir() else None
        return PretrainedTransformer(
            "mobilenet_v2",
            weights=args.weights,
            input_size=args.input_size,
            image_size=side,
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
    if method in RULES:
        return FixMatchClassifier(
            **RULES[method],
            backbone=embedder,
            batch_size=args.batch_size,
            unlabeled_ratio=args.ratio,
            weak_augment=weak,
            **given,
        )
    return SimCLRv2Classifier(
        FrozenEstimator(embedder), distill_epochs=args.distill, augment=weak, **given
    )


def only(rows, y):
    """Return y with all labels hidden but those of some rows."""
    hidden = np.full(len(y), -1)
    hidden[rows] = y[rows]
    return hidden


def chosen(args, name, n_labels, seed, x, Z, y):
    """Return y with all labels hidden but those of the rows that a selector chooses."""
    rows, memory = np.empty(0, np.int64), {}
    for budget in (10, n_labels) if name in ASKING else (n_labels,):
        if args.asked_in == "labels" and len(rows):
            Z = features_of_labels(args, seed, x, only(rows, y))
        rows = choose(name, budget, seed, Z, y, rows, memory)
    return only(rows, y)


def features_of_labels(args, seed, x, hidden):
    """Return what a network sees in images that has learned from the labels alone."""
    clf = SupervisedClassifier(
        backbone=small_network(x, 16, seed),
        augment=Weak(flip=0) if args.data in UPRIGHT else "auto",
        **shared(args, seed),
    ).fit(x, hidden)
    backbone = clf.net_.module_.backbone
    with torch.inference_mode():
        return torch.cat([backbone(part) for part in as_tensor(x).split(500)]).numpy()


def learn(args, method, start, embedder, x, Z, y, hidden, seed):
    """Return the figures of a method on the rows without a label."""
    known, rest = hidden >= 0, hidden < 0
    warned = {}
    if method == "logistic regression":
        clf = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        found = clf.fit(Z[known], hidden[known]).predict(Z)
    elif method == "EmbeddingClassifier":
        clf = EmbeddingClassifier(random_state=seed)
        found = clf.fit(Z, hidden).transduction_
    else:
        clf = classifier(method, start, embedder, args, seed)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            found = clf.fit(x, hidden).transduction_
        said = [str(w.message) for w in seen]
        warned["warned"] = any("probe on the embedding" in s for s in said)
    return {"accuracy": float((found == y)[rest].mean()), **warned}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="name, or folder of folders")
    parser.add_argument("--weights", help="of MobileNet v2; default: train SimCLR")
    parser.add_argument("--clip", action="store_true", help="train it on words first")
    parser.add_argument("--input-size", type=int, default=96, help="of MobileNet v2")
    parser.add_argument("--labels", type=int, nargs="+", default=[40])
    parser.add_argument("--choice", nargs="+", choices=[*FREE, *ASKING])
    parser.add_argument("--asked-in", choices=["encoder", "labels"], default="encoder")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--n-train", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--distill", type=int, default=10, help="epochs")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--ratio", type=int, default=7)
    names = dict.fromkeys([*METHODS, *RULES])
    parser.add_argument("--method", nargs="+", choices=names, default=list(METHODS))
    parser.add_argument("--start", nargs="+", choices=STARTS, default=list(STARTS))
    args = parse(parser)

    x, y = images_of(args)
    embedder = fit_embedder(args, x)
    Z = embedder.transform(x)
    embedding = "clip" if args.clip else "mobilenet" if args.weights else "simclr"
    if args.weights and args.input_size != 96:
        embedding += f", {args.input_size} pixels"
    key = {"data": Path(args.data).stem, "embedding": embedding, "n_train": len(y)}
    key |= {"steps": args.steps, "batch_size": args.batch_size, "ratio": args.ratio}
    key["asked_in"] = None if args.asked_in == "encoder" else args.asked_in
    results, rows = Results("transfer"), []
    cases = itertools.product(range(args.seeds), args.labels, args.choice or [None])
    for seed, n_labels, choice in cases:
        used = np.arange(len(y))
        if choice is not None:
            used = np.random.default_rng(seed).permutation(used)[: len(y) * 4 // 5]
        seen = [x[i] for i in used] if isinstance(x, list) else x[used]
        if choice is None:
            hidden = draw(y, n_labels, seed)
        else:
            hidden = chosen(args, choice, n_labels, seed, seen, Z[used], y[used])
        of_choice = figures_of(hidden >= 0, y[used], len(np.unique(y)))
        for method in args.method:
            trained = method not in ("logistic regression", "EmbeddingClassifier")
            for start in args.start if trained else ["vectors"]:
                case = method, start, embedder, seen, Z[used], y[used], hidden, seed
                own = {"n_labels": n_labels, "method": method, "start": start}
                own |= {"choice": choice, "seed": seed}
                row = results.run(
                    lambda case=case, known=of_choice: {**learn(args, *case), **known},
                    **key,
                    **own,
                )
                rows.append(row)
    rows = [{"choice": None, **row} for row in rows]
    summary(rows, ("choice", "n_labels", "method", "start"), "accuracy")


if __name__ == "__main__":
    main()
