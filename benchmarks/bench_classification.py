"""Few labels: every classifier beside scikit-learn's on the same embedding and labels.

The embedding is SimCLR's with a small network, from the training images without labels.
Every classifier but CCL starts from its encoder; scikit-learn's self-training (around a
logistic regression) and label spreading see its vectors. The labeled rows are drawn
with one of each class at least, then at random. Accuracy and calibration error on the
test images, after the last step. Rows that are in the results file are not run again,
so a broken run continues.

Hard cases: ``--imbalance 100`` thins the training images, so that the sizes of the
classes fall geometrically and the first class has a hundred times as many as the last
(the test images stay as they are); ``--wrong 0.2`` gives a fifth of the labels another
class; ``--balanced`` tells our classifiers to draw every class equally often.
"""

import argparse

import numpy as np
from _common import UPRIGHT, Results, load, parse, shared, small_network, summary
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

from sklabel.augment import Contrastive, Weak
from sklabel.classification import (
    CCLClassifier,
    FixMatchClassifier,
    MixMatchClassifier,
    NoisyStudentClassifier,
    SimCLRv2Classifier,
    SupervisedClassifier,
)
from sklabel.embedding import AutoencoderTransformer, SimCLRTransformer
from sklabel.metrics import expected_calibration_error

# hard cases: part of a row's key where they are set
HARD = ("imbalance", "wrong", "balanced")


def draw(y, n_labels, seed):
    """Return y with all but ``n_labels`` labels hidden."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    _, first = np.unique(y[order], return_index=True)
    rows = order[np.r_[first, np.delete(np.arange(len(y)), first)][:n_labels]]
    hidden = np.full(len(y), -1)
    hidden[rows] = y[rows]
    return hidden


def thin(y, ratio, seed):
    """Return rows such that class sizes fall geometrically, first to last = ratio."""
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(y, return_counts=True)
    shares = ratio ** -np.linspace(0, 1, len(classes))
    sizes = np.maximum(1, np.round(shares * (counts / shares).min()).astype(int))
    rows = [
        rng.choice(np.flatnonzero(y == k), size, replace=False)
        for k, size in zip(classes, sizes, strict=True)
    ]
    return np.sort(np.concatenate(rows))


def mistake(hidden, share, seed):
    """Return labels of which a share is replaced by another class, at random."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(hidden >= 0)
    rows = rng.choice(rows, round(share * len(rows)), replace=False)
    classes = np.unique(hidden[hidden >= 0])
    positions = np.searchsorted(classes, hidden[rows])
    positions += rng.integers(1, len(classes), len(rows))
    hidden = hidden.copy()
    hidden[rows] = classes[positions % len(classes)]
    return hidden


def embedder(args, seed, x):
    upright = args.data in UPRIGHT
    return SimCLRTransformer(
        temperature=0.2,
        projection_layers=3,  # for SimCLRv2; the others leave the head behind
        backbone=small_network(x, args.width, seed),
        augment=Contrastive(flip=0, crop=(0.5, 1.0), rotate=20) if upright else "auto",
        max_epochs=args.embed_epochs,
        batch_size=256,
        **shared(args, seed),
    )


def ours(args, seed):
    return {"class_weight": "balanced" if args.balanced else None, **shared(args, seed)}


def weak(args):
    return Weak(flip=0) if args.data in UPRIGHT else "auto"


def on_vectors(model):
    def run(args, seed, fitted, x, y, x_test):
        Z, Z_test = fitted.transform(x), fitted.transform(x_test)
        clf = make_pipeline(StandardScaler(), model()).fit(Z, y)
        # label spreading knows nothing of a row whose neighbors have no label
        return np.nan_to_num(clf.predict_proba(Z_test))

    return run


def fit(estimator, x, y, x_test):
    return estimator.fit(x, y).predict_proba(x_test)


def supervised(args, seed, fitted, x, y, x_test):
    clf = SupervisedClassifier(
        augment=weak(args), backbone=fitted, max_steps=args.steps, **ours(args, seed)
    )
    return fit(clf, x, y, x_test)


def fixmatch(args, seed, fitted, x, y, x_test):
    clf = FixMatchClassifier(
        weak_augment=weak(args),
        backbone=fitted,
        batch_size=args.batch_size,
        max_steps=args.steps,
        **ours(args, seed),
    )
    return fit(clf, x, y, x_test)


def mixmatch(args, seed, fitted, x, y, x_test):
    clf = MixMatchClassifier(
        weak_augment=weak(args),
        backbone=fitted,
        max_steps=args.steps,
        **ours(args, seed),
    )
    return fit(clf, x, y, x_test)


def noisy_student(args, seed, fitted, x, y, x_test):
    clf = NoisyStudentClassifier(
        weak_augment=weak(args),
        backbone=fitted,
        max_steps=args.steps,
        **ours(args, seed),
    )
    return fit(clf, x, y, x_test)


def simclrv2(args, seed, fitted, x, y, x_test):
    clf = SimCLRv2Classifier(
        embedder=FrozenEstimator(fitted),
        augment=weak(args),
        max_steps=args.steps,
        distill_epochs=max(1, round(args.steps * 256 / len(x))),
        **ours(args, seed),
    )
    return fit(clf, x, y, x_test)


_codes = {}  # of the seeds: the same for every number of labels


def codes(args, seed, x):
    """Return an autoencoder as CCL has it by default, but for the epochs."""
    if (seed, len(x)) not in _codes:
        length = 64 if x.ndim == 4 else 10
        epochs = args.code_epochs
        embedder = AutoencoderTransformer(
            length, max_epochs=epochs, **shared(args, seed)
        )
        _codes[seed, len(x)] = embedder.fit(x)
    return _codes[seed, len(x)]


def ccl(args, seed, fitted, x, y, x_test):
    clf = CCLClassifier(
        embedder=FrozenEstimator(codes(args, seed, x)),
        max_steps=args.steps,
        **ours(args, seed),
    )
    return fit(clf, x, y, x_test)


def ccl_simclr(args, seed, fitted, x, y, x_test):
    clf = CCLClassifier(
        embedder=FrozenEstimator(fitted),
        reconstruction_weight=0,
        max_steps=args.steps,
        **ours(args, seed),
    )
    return fit(clf, x, y, x_test)


def probe(args, seed, fitted, x, y, x_test):
    clf = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    clf.fit(fitted.transform(x)[y >= 0], y[y >= 0])
    return clf.predict_proba(fitted.transform(x_test))


def probe_of_codes(args, seed, fitted, x, y, x_test):
    return probe(args, seed, codes(args, seed, x), x, y, x_test)


METHODS = {
    "self-training": on_vectors(
        lambda: SelfTrainingClassifier(LogisticRegression(max_iter=1000), threshold=0.9)
    ),
    "label spreading": on_vectors(lambda: LabelSpreading("knn", n_neighbors=20)),
    "supervised": supervised,
    "FixMatch": fixmatch,
    "MixMatch": mixmatch,
    "Noisy Student": noisy_student,
    "SimCLRv2": simclrv2,
    "CCL": ccl,
    "CCL of SimCLR": ccl_simclr,
    "probe of codes": probe_of_codes,
    "probe of SimCLR": probe,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="mnist", help="a name of fetch_*, or .npz")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--n-labels", type=int, nargs="+", default=[10, 40, 100, 250])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-train", type=int, default=5000, help="first rows")
    parser.add_argument("--width", type=int, default=16, help="of the first layer")
    parser.add_argument("--embed-epochs", type=int, default=40, help="of SimCLR")
    parser.add_argument("--code-epochs", type=int, default=60, help="of CCL's codes")
    parser.add_argument("--steps", type=int, default=500, help="of every stage")
    parser.add_argument("--batch-size", type=int, default=16, help="of FixMatch")
    parser.add_argument("--imbalance", type=float, help="largest class to smallest")
    parser.add_argument("--wrong", type=float, help="share of the labels")
    parser.add_argument("--balanced", action="store_true", help="draw classes equally")
    args = parse(parser)

    x_all, y_all, x_test, y_test = load(args.data)
    x_all, y_all = x_all[: args.n_train], y_all[: args.n_train]
    hard = {name: getattr(args, name) for name in HARD if getattr(args, name)}
    setting = {"data": args.data, "n_train": len(x_all), "steps": args.steps}
    setting |= {"width": args.width, "embed_epochs": args.embed_epochs, **hard}
    results, rows = Results("classification"), []
    # those of other cases would be taken for this one's
    results.rows = [
        r for r in results.rows if {k: r[k] for k in HARD if k in r} == hard
    ]
    for seed in args.seeds:
        fitted, x, y = None, x_all, y_all
        if args.imbalance:
            kept = thin(y, args.imbalance, seed)
            x, y = x[kept], y[kept]
        for n_labels in args.n_labels:
            hidden = draw(y, n_labels, seed)
            if args.wrong:
                hidden = mistake(hidden, args.wrong, seed)
            for name in args.method:
                key = {**setting, "n_labels": n_labels, "method": name, "seed": seed}
                without = name in ("CCL", "probe of codes")
                if fitted is None and not without and results.find(**key) is None:
                    fitted = embedder(args, seed, x).fit(x)

                def run(name=name, seed=seed, fitted=fitted, x=x, hidden=hidden):
                    found = METHODS[name](args, seed, fitted, x, hidden, x_test)
                    # a class may have lost its only label to a wrong one
                    p = np.zeros((len(found), y_test.max() + 1), found.dtype)
                    p[:, np.unique(hidden[hidden >= 0])] = found
                    return {
                        "accuracy": float((p.argmax(1) == y_test).mean()),
                        "calibration_error": expected_calibration_error(y_test, p),
                    }

                rows.append(results.run(run, **key))
    summary(rows, ["data", "n_labels", "method"], "accuracy")


if __name__ == "__main__":
    main()
