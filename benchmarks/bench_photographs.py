"""Labels in seconds: quick classifiers on a frozen embedding, of random or chosen rows.

``--data`` takes a folder of class folders, or the name of a ``fetch_*`` data set: its
first 5,000 training images. ``--weights FILE`` embeds with a published
MobileNet v2 (torchvision's state dict); without it SimCLR of 40 epochs with a small
network. The labels are drawn with one of each class at least, then at random, or chosen
by a selector. Accuracy and calibration error on all other rows, in percent; seconds of
the processor, fit and prediction together. Vectors are kept under ``--cache``, and rows
that are in the results file are not run again, so a broken run continues.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
from _common import UPRIGHT, Results, load, parse, shared, small_network
from bench_classification import draw
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

from sklabel import datasets, selection
from sklabel.augment import Contrastive
from sklabel.classification import EmbeddingClassifier, SupervisedClassifier
from sklabel.embedding import PretrainedTransformer, SimCLRTransformer
from sklabel.metrics import expected_calibration_error
from sklabel.selection import USLSelector


def images_of(data, n_train):
    """Return images (an array, or paths) and their classes."""
    if Path(data).is_dir():
        bunch = datasets.load_image_folder(data)
        known = bunch.target >= 0
        return bunch.paths[known], bunch.target[known]
    x, y, _, _ = load(data)
    return x[:n_train], y[:n_train]


def vectors(args):
    """Return the name of the embedding, its vectors, and the classes of the rows."""
    name = "mobilenet" if args.weights else "simclr"
    path = Path(args.cache) / f"{Path(args.data).stem}-{name}.npz"
    if not path.exists():
        x, y = images_of(args.data, args.n_train)
        if args.weights:
            size = None if Path(args.data).is_dir() else 96  # for small images
            embedder = PretrainedTransformer(
                "mobilenet_v2", weights=args.weights, input_size=size
            )
        else:
            upright = args.data in UPRIGHT
            own = Contrastive(flip=0, crop=(0.5, 1.0), rotate=20)
            embedder = SimCLRTransformer(
                temperature=0.2,
                projection_layers=3,
                backbone=small_network(x, 16, 0),
                augment=own if upright else "auto",
                max_epochs=40,
                batch_size=256,
                **shared(args, 0),
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, Z=embedder.fit(x).transform(x), y=y)
    with np.load(path) as file:
        return name, file["Z"], file["y"]


def scaled(model, scaler=StandardScaler):
    return lambda seed: make_pipeline(scaler(), model)


LINEAR = LogisticRegression(max_iter=1000)
SPREADING = LabelSpreading("knn", n_neighbors=7)
METHODS = {
    "EmbeddingClassifier": lambda seed: EmbeddingClassifier(random_state=seed),
    "its probe alone": lambda seed: EmbeddingClassifier(
        graph_weight=0.0, random_state=seed
    ),
    "its graph alone": lambda seed: EmbeddingClassifier(
        graph_weight=1.0, random_state=seed
    ),
    "SupervisedClassifier": lambda seed: SupervisedClassifier(random_state=seed),
    "logistic regression": scaled(LINEAR),
    "logistic regression, unit rows": scaled(LINEAR, Normalizer),
    "label spreading": scaled(SPREADING),
    "label spreading, unit rows": scaled(SPREADING, Normalizer),
    "self-training": scaled(SelfTrainingClassifier(LINEAR, threshold=0.9)),
}
CHOICES = {
    "random": None,
    "USL": lambda n, seed: USLSelector(n, random_state=seed),
    "typical of k-means": lambda n, seed: USLSelector(
        n, reg_weight=0.0, random_state=seed
    ),
}
if hasattr(selection, "MaxHerdingSelector"):
    CHOICES["MaxHerding"] = lambda n, seed: selection.MaxHerdingSelector(n)


def labels(choice, Z, y, n_labels, seed):
    """Return y with all but ``n_labels`` labels hidden."""
    if choice == "random":
        return draw(y, n_labels, seed)
    rows = CHOICES[choice](n_labels, seed).fit(Z).sample_indices_
    hidden = np.full(len(y), -1)
    hidden[rows] = y[rows]
    return hidden


def measure(method, Z, y, hidden, seed):
    """Return the figures of a classifier on the rows without a label."""
    clf, rest = METHODS[method](seed), hidden < 0
    known, begin = ~rest, time.process_time()
    if method.startswith("logistic"):
        clf.fit(Z[known], hidden[known])
    else:
        clf.fit(Z, hidden)
    # label spreading knows nothing of a row whose neighbors have no label
    found = np.nan_to_num(clf.predict_proba(Z[rest]))
    seconds = time.process_time() - begin
    p = np.zeros((len(found), y.max() + 1), found.dtype)
    p[:, np.unique(hidden[known])] = found
    figures = {
        "accuracy": float((p.argmax(1) == y[rest]).mean()),
        "calibration_error": expected_calibration_error(y[rest], p),
        "highest": float(p.max()),
        "cpu_seconds": round(seconds, 2),
        "classes": len(np.unique(hidden[known])),
    }
    if hasattr(clf, "estimated_accuracy_"):
        low, high = clf.estimated_accuracy_interval_
        figures["estimated"] = clf.estimated_accuracy_
        figures["inside"] = bool(low <= figures["accuracy"] <= high)
        figures["graph_weight"] = clf.graph_weight_
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", required=True, help="folder of class folders, or name"
    )
    parser.add_argument("--weights", help="of MobileNet v2; default: train SimCLR")
    parser.add_argument("--labels", type=int, nargs="+", default=[10, 40, 100, 250])
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument(
        "--n-train", type=int, default=5000, help="first rows of a name"
    )
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--choice", nargs="+", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--cache", default="vectors", help="folder of the vectors")
    args = parse(parser)

    embedding, Z, y = vectors(args)
    results = Results("photographs")
    key = {"data": Path(args.data).stem, "embedding": embedding, "n_train": len(Z)}
    warnings.simplefilter("ignore")  # that label spreading is not through, and the like
    for seed in range(args.seeds):
        for choice in args.choice:
            for n_labels in args.labels:
                hidden = None
                for method in args.method:
                    own = {"choice": choice, "n_labels": n_labels, "method": method}
                    own = {**key, **own, "seed": seed}
                    if hidden is None and results.find(**own) is None:
                        hidden = labels(choice, Z, y, n_labels, seed)

                    def run(method=method, hidden=hidden, seed=seed):
                        return measure(method, Z, y, hidden, seed)

                    results.run(run, **own)


if __name__ == "__main__":
    main()
