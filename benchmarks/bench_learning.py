"""Learning on real images: FixMatch on chosen labels, SCAN without labels.

Every row is one seed; scores are those of the last epoch on the test images. Rows that
are in the results file are not run again, so a broken run continues.
"""

import argparse

import numpy as np
from _common import UPRIGHT, Results, load, parse, shared, summary
from sklearn.cluster import KMeans
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.preprocessing import normalize

from sklabel.augment import Contrastive, RandAugment, Weak
from sklabel.classification import FixMatchClassifier
from sklabel.clustering import SCANClusterer
from sklabel.embedding import SimCLRTransformer
from sklabel.metrics import class_coverage, clustering_accuracy
from sklabel.selection import RandomSelector, USLSelector


def views(data):
    """Return the augmentations for one data set, chosen by what its images are."""
    if data in UPRIGHT:
        return {
            "contrastive": Contrastive(flip=0, crop=(0.5, 1.0), rotate=20),
            "weak": Weak(flip=0),
        }
    return {"contrastive": "auto", "weak": "auto"}


def embedder(args, seed):
    return SimCLRTransformer(
        temperature=args.temperature,
        output="projection",  # in which neighbors are sought
        augment=views(args.data)["contrastive"],
        max_epochs=args.embed_epochs,
        batch_size=256,
        **shared(args, seed),
    )


def fixmatch(args, seed, data, choice, fitted):
    x, y, x_test, y_test = data
    Z = fitted.transform(x)
    if choice == "usl":
        rows = USLSelector(n_samples=args.n_labels, random_state=seed).fit(Z)
    else:
        rows = RandomSelector(n_samples=args.n_labels, random_state=seed).fit(Z)
    rows = rows.sample_indices_
    y_partly = np.full(len(y), -1)
    y_partly[rows] = y[rows]
    classifier = FixMatchClassifier(
        backbone=fitted,
        weak_augment=views(args.data)["weak"],
        max_steps=args.steps,
        batch_size=args.batch_size,
        **shared(args, seed),
    ).fit(x, y_partly)
    return {
        "accuracy": classifier.score(x_test, y_test),
        "coverage": class_coverage(y[rows], np.unique(y)),
        "pseudo_label_share": classifier.net_.history[-1, "pseudo_label_share"],
    }


def scan(args, seed, data, fitted):
    x, y, x_test, y_test = data
    clusterer = SCANClusterer(
        n_clusters=len(np.unique(y)),
        n_heads=args.heads,
        embedder=FrozenEstimator(fitted),
        augment=RandAugment(weak=Weak(flip=0)) if args.data in UPRIGHT else "auto",
        max_epochs=args.scan_epochs,
        self_label_epochs=args.self_label_epochs,
        **shared(args, seed),
    ).fit(x)
    labels = clusterer.predict(x_test)
    return {
        "accuracy": clustering_accuracy(y_test, labels),
        "nmi": normalized_mutual_info_score(y_test, labels),
        "ari": adjusted_rand_score(y_test, labels),
        "clusters": clusterer.n_clusters_,
    }


def kmeans(args, seed, data, fitted):
    x, y, x_test, y_test = data
    # on the sphere, where the embedding was trained
    Z, Z_test = (normalize(fitted.transform(part)) for part in (x, x_test))
    model = KMeans(len(np.unique(y)), n_init=3, random_state=seed)
    labels = model.fit(Z).predict(Z_test)
    return {
        "accuracy": clustering_accuracy(y_test, labels),
        "nmi": normalized_mutual_info_score(y_test, labels),
        "ari": adjusted_rand_score(y_test, labels),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=["fixmatch", "scan"], required=True)
    parser.add_argument("--data", default="mnist", help="a name of fetch_*, or .npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-labels", type=int, default=40)
    parser.add_argument("--n-train", type=int, help="first rows of the training images")
    parser.add_argument("--embed-epochs", type=int, default=6)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--scan-epochs", type=int, default=3)
    parser.add_argument("--self-label-epochs", type=int, default=2)
    parser.add_argument("--heads", type=int, default=10)
    args = parse(parser)

    x, y, x_test, y_test = load(args.data)
    data = x[: args.n_train], y[: args.n_train], x_test, y_test
    results = Results("learning")
    setting = {
        "data": args.data,
        "n_train": len(data[0]),
        "embed": args.embed_epochs,
        "temperature": args.temperature,
    }
    rows = []
    for seed in args.seeds:
        fitted = embedder(args, seed).fit(data[0])
        key = {**setting, "seed": seed}
        if args.task == "fixmatch":
            key = {"task": "fixmatch", **key, "n_labels": args.n_labels}
            key = {**key, "steps": args.steps, "batch_size": args.batch_size}
            for choice in ("usl", "random"):
                rows.append(
                    results.run(
                        lambda c=choice, s=seed, f=fitted: fixmatch(
                            args, s, data, c, f
                        ),
                        **key,
                        choice=choice,
                    )
                )
        else:
            length = [args.scan_epochs, args.self_label_epochs]
            scan_key = {"epochs": length, "heads": args.heads}
            for name, task in (("kmeans", kmeans), ("scan", scan)):
                rows.append(
                    results.run(
                        lambda t=task, s=seed, f=fitted: t(args, s, data, f),
                        task="cluster",
                        choice=name,
                        **key,
                        **(scan_key if name == "scan" else {}),
                    )
                )
    summary(rows, ["task", "data", "choice"], "accuracy")


if __name__ == "__main__":
    main()
