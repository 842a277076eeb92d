"""Clustering without labels: every clusterer beside k-means, on one data set.

Accuracy is that of the best one-to-one match of clusters and classes (Hungarian), on the
test images; training saw the training images alone, and no label. Rows that are in the
results file are not run again, so a broken run continues.
"""

import argparse

import numpy as np
import torch
from _common import Results, load, summary
from sklearn.cluster import KMeans
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.preprocessing import normalize

from sklabel.augment import Contrastive, RandAugment, Weak
from sklabel.clustering import DCECClusterer, SCANClusterer
from sklabel.embedding import AutoencoderTransformer, SimCLRTransformer
from sklabel.metrics import clustering_accuracy

# what a mirror or a strong crop would turn into something else
UPRIGHT = ("mnist", "usps", "fashion_mnist")


def figures(y, labels):
    return {
        "accuracy": clustering_accuracy(y, labels),
        "nmi": normalized_mutual_info_score(y, labels),
        "ari": adjusted_rand_score(y, labels),
        "clusters": len(np.unique(labels)),
    }


def flat(x):
    return x.reshape(len(x), -1) / 255


def kmeans_of(Z, y, Z_test, y_test, seed):
    model = KMeans(len(np.unique(y)), n_init=3, random_state=seed).fit(Z)
    return figures(y_test, model.predict(Z_test))


def simclr(args, seed):
    upright = args.data in UPRIGHT
    return SimCLRTransformer(
        temperature=0.2,
        output="projection",  # in which neighbors are sought
        augment=Contrastive(flip=0, crop=(0.5, 1.0), rotate=20) if upright else "auto",
        max_epochs=args.embed_epochs,
        random_state=seed,
        checkpoint_dir=args.checkpoints,
        verbose=args.verbose,
    )


def autoencoder(args, seed):
    return AutoencoderTransformer(
        n_components=10,
        max_epochs=args.code_epochs,
        random_state=seed,
        checkpoint_dir=args.checkpoints,
        verbose=args.verbose,
    )


def pixels(args, seed, data):
    x, y, x_test, y_test = data
    return kmeans_of(flat(x), y, flat(x_test), y_test, seed)


def kmeans_on(embedder):
    def run(args, seed, data):
        x, y, x_test, y_test = data
        fitted = embedder(args, seed).fit(x)
        Z, Z_test = fitted.transform(x), fitted.transform(x_test)
        if embedder is simclr:  # on the sphere, where it was trained
            Z, Z_test = normalize(Z), normalize(Z_test)
        return kmeans_of(Z, y, Z_test, y_test, seed)

    return run


def scan(args, seed, data):
    x, y, x_test, y_test = data
    clusterer = SCANClusterer(
        len(np.unique(y)),
        n_heads=10,
        embedder=FrozenEstimator(simclr(args, seed).fit(x)),
        augment=RandAugment(weak=Weak(flip=0)) if args.data in UPRIGHT else "auto",
        max_epochs=args.epochs,
        self_label_epochs=1,
        random_state=seed,
        checkpoint_dir=args.checkpoints,
        verbose=args.verbose,
    ).fit(x)
    return figures(y_test, clusterer.predict(x_test))


def dcec(args, seed, data):
    x, y, x_test, y_test = data
    clusterer = DCECClusterer(
        len(np.unique(y)),
        embedder=FrozenEstimator(autoencoder(args, seed).fit(x)),
        max_epochs=args.epochs,
        random_state=seed,
        checkpoint_dir=args.checkpoints,
        verbose=args.verbose,
    ).fit(x)
    return figures(y_test, clusterer.predict(x_test))


# what runs, and which of the arguments count for it
METHODS = {
    "k-means on pixels": (pixels, ()),
    "k-means on SimCLR": (kmeans_on(simclr), ("embed_epochs",)),
    "k-means on codes": (kmeans_on(autoencoder), ("code_epochs",)),
    "SCAN": (scan, ("embed_epochs", "epochs")),
    "DCEC": (dcec, ("code_epochs", "epochs")),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="mnist", help="a name of fetch_*, or .npz")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-train", type=int, help="first rows of the training images")
    parser.add_argument("--embed-epochs", type=int, default=6, help="of SimCLR")
    parser.add_argument(
        "--code-epochs", type=int, default=20, help="of the autoencoder"
    )
    parser.add_argument("--epochs", type=int, default=6, help="of the clustering")
    parser.add_argument("--checkpoints", help="folder; a broken run continues from it")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--verbose", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    x, y, x_test, y_test = load(args.data)
    data = x[: args.n_train], y[: args.n_train], x_test, y_test
    results, rows = Results("clustering"), []
    for seed in args.seeds:
        for name in args.method:
            function, lengths = METHODS[name]
            run = results.run(
                lambda f=function, s=seed: f(args, s, data),
                data=args.data,
                n_train=len(data[0]),
                method=name,
                **{length: getattr(args, length) for length in lengths},
                seed=seed,
            )
            rows.append(run)
    for figure in ("accuracy", "nmi", "ari"):
        summary(rows, ["data", "method"], figure)


if __name__ == "__main__":
    main()
