"""Clustering without labels: every clusterer beside k-means, on one data set.

Accuracy is that of the best one-to-one match of clusters and classes (Hungarian), on
the test images; training saw the training images alone, and no label. All but the
autoencoders have the same small network. DEC and IDEC take pixels as vectors, like
ClustPy's, which have the same layers, epochs and batches. An .npz file may hold vectors
in the place of images: then k-means, SCAN, DeepCluster and TURTLE run on them. With
``--curve`` the row of IIC holds the accuracy after each epoch as well, which nothing is
chosen by. Rows that are in the results file are not run again, so a broken run
continues.
"""

import argparse
import copy
import functools
from pathlib import Path

import numpy as np
import torch
from _common import (
    UPRIGHT,
    Results,
    alternate,
    as_tensor,
    load,
    parse,
    print_ratios,
    shared,
    small_network,
    summary,
)
from sklearn.cluster import KMeans
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import (
    adjusted_rand_score,
    confusion_matrix,
    normalized_mutual_info_score,
    pairwise_distances_argmin,
)
from sklearn.preprocessing import normalize
from skorch.callbacks import Callback
from torch.nn.functional import cross_entropy

from sklabel.augment import Contrastive, RandAugment, Weak
from sklabel.clustering import (
    DCECClusterer,
    DeepClusterer,
    IICClusterer,
    SCANClusterer,
    TURTLEClusterer,
)
from sklabel.embedding import AutoencoderTransformer, SimCLRTransformer
from sklabel.losses import iic_loss
from sklabel.metrics import clustering_accuracy, hungarian_match
from sklabel.optim import step_decay


def figures(y, labels):
    return {
        "accuracy": clustering_accuracy(y, labels),
        "nmi": normalized_mutual_info_score(y, labels),
        "ari": adjusted_rand_score(y, labels),
        "clusters": len(np.unique(labels)),
    }


def of_vectors(clusterer, data):
    """Return the figures of test rows, and the accuracy on those seen in training."""
    x, y, x_test, y_test = data
    seen = clustering_accuracy(y, clusterer.fit_predict(x))
    return {**figures(y_test, clusterer.predict(x_test)), "accuracy_train": seen}


def flat(x):
    return x.reshape(len(x), -1) / 255


def kmeans_of(Z, y, Z_test, y_test, seed):
    model = KMeans(len(np.unique(y)), n_init=3, random_state=seed).fit(Z)
    return figures(y_test, model.predict(Z_test))


def views(args, crop):
    """Return what digits bear, or else the method's own views."""
    return Contrastive(flip=0, crop=crop, rotate=20) if args.data in UPRIGHT else "auto"


def seen(args, x):
    """Return images with the channels that IIC and DeepCluster see: edges have two."""
    return x if args.data in UPRIGHT else x[..., :2]


def simclr(args, seed, x):
    return SimCLRTransformer(
        temperature=0.2,
        output="projection",  # in which neighbors are sought
        backbone=small_network(x, args.width, seed),
        augment=views(args, crop=(0.5, 1.0)),
        max_epochs=args.embed_epochs,
        **shared(args, seed),
    )


def autoencoder(args, seed, x):
    return AutoencoderTransformer(
        n_components=10,
        max_epochs=args.code_epochs,
        **shared(args, seed),
    )


def pixels(args, seed, data):
    x, y, x_test, y_test = data
    return kmeans_of(flat(x), y, flat(x_test), y_test, seed)


def kmeans_on(embedder):
    def run(args, seed, data):
        x, y, x_test, y_test = data
        fitted = embedder(args, seed, x).fit(x)
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
        embedder=FrozenEstimator(simclr(args, seed, x).fit(x)),
        augment=RandAugment(weak=Weak(flip=0)) if args.data in UPRIGHT else "auto",
        max_epochs=args.epochs,
        self_label_epochs=1,
        **shared(args, seed),
    ).fit(x)
    return figures(y_test, clusterer.predict(x_test))


def dcec(args, seed, data):
    x, y, x_test, y_test = data
    clusterer = DCECClusterer(
        len(np.unique(y)),
        embedder=FrozenEstimator(autoencoder(args, seed, x).fit(x)),
        max_epochs=args.epochs,
        **shared(args, seed),
    ).fit(x)
    return figures(y_test, clusterer.predict(x_test))


def kmeans_of_vectors(args, seed, data):
    n_clusters = len(np.unique(data[1]))
    return of_vectors(KMeans(n_clusters, n_init=3, random_state=seed), data)


def turtle(**settings):
    def run(args, seed, data):
        clusterer = TURTLEClusterer(
            len(np.unique(data[1])),
            n_steps=args.turtle_steps,
            batch_size=args.turtle_batch,
            random_state=seed,
            **settings,
        )
        found = of_vectors(clusterer, data)
        return {**found, "loss": -float(clusterer.init_scores_.max())}

    return run


def scan_of_vectors(args, seed, data):
    clusterer = SCANClusterer(
        len(np.unique(data[1])),
        n_heads=10,
        max_epochs=args.epochs,
        metric="cosine",
        self_label_epochs=1,
        **shared(args, seed),
    )
    return of_vectors(clusterer, data)


def deepcluster_of_vectors(args, seed, data):
    n_clusters = len(np.unique(data[1]))
    clusterer = DeepClusterer(n_clusters, max_epochs=args.epochs, **shared(args, seed))
    return of_vectors(clusterer, data)


# training images whose features are kept, to train heads alone
_HEAD_ROWS = 20_000


class Curve(Callback):
    """Writes down the accuracy on images after each epoch."""

    def __init__(self, x, y):
        self.pixels, self.y, self.accuracies = as_tensor(x), y, []

    def on_epoch_end(self, net, **kwargs):
        module = net.module_.eval()
        found = outputs(module, self.pixels).argmax(1).numpy()
        self.accuracies.append(clustering_accuracy(self.y, found))
        module.train()


def iic(args, seed, data):
    x, _, x_test, y_test = data
    curve = Curve(x_test, y_test) if args.curve else None
    clusterer = fit_iic(args, seed, data, curve)
    found = {**figures(y_test, clusterer.predict(x_test)), "score": clusterer.score(x)}
    return {**found, "curve": curve.accuracies} if curve else found


def fit_iic(args, seed, data, curve):
    x, y = data[:2]
    upright = args.data in UPRIGHT
    strong = Contrastive(
        flip=0,
        crop=(args.iic_crop, 1.0),
        rotate=25,
        jitter=0.4,
        jitter_probability=1.0,
    )
    return IICClusterer(
        len(np.unique(y)),
        n_sub_heads=20,
        n_restarts=args.iic_restarts,
        n_repeats=args.iic_repeats,
        backbone=small_network(seen(args, x), args.width, seed),
        augment=strong if upright else "auto",
        sobel=not upright,
        max_epochs=args.iic_epochs,
        schedule=functools.partial(step_decay, milestones=(0.9,)),
        net_params={"callbacks": [curve]} if curve else None,
        **shared(args, seed),
    ).fit(x)


def deepcluster(args, seed, data):
    x, y, x_test, y_test = data
    clusterer = DeepClusterer(
        len(np.unique(y)),
        backbone=small_network(seen(args, x), args.width, seed),
        augment=views(args, crop=(0.4, 1.0)),
        sobel=args.data not in UPRIGHT,
        max_epochs=args.epochs,
        **shared(args, seed),
    ).fit(x)
    return figures(y_test, clusterer.predict(x_test))


def dec(reconstruction_weight, cluster_weight):
    def run(args, seed, data):
        x, y, x_test, y_test = data
        clusterer = DCECClusterer(
            len(np.unique(y)),
            cluster_weight=cluster_weight,
            reconstruction_weight=reconstruction_weight,
            tol=0.0,  # as many steps as ClustPy
            embedder=AutoencoderTransformer(
                10, standardize=False, max_epochs=args.code_epochs
            ),
            max_epochs=args.epochs,
            **shared(args, seed),
        ).fit(flat(x).astype(np.float32))
        labels = clusterer.predict(flat(x_test).astype(np.float32))
        return figures(y_test, labels)

    return run


def clustpy(name):
    def run(args, seed, data):
        from clustpy import deep  # pip install clustpy

        x, y, x_test, y_test = data
        clusterer = getattr(deep, name)(
            len(np.unique(y)),
            pretrain_epochs=args.code_epochs,
            clustering_epochs=args.epochs,
            random_state=seed,
        ).fit(flat(x).astype(np.float32))
        labels = clusterer.predict(flat(x_test).astype(np.float32))
        return figures(y_test, labels)

    return run


# what runs, and which of the arguments count for it
METHODS = {
    "k-means on pixels": (pixels, ()),
    "k-means on SimCLR": (kmeans_on(simclr), ("width", "embed_epochs")),
    "k-means on codes": (kmeans_on(autoencoder), ("code_epochs",)),
    "SCAN": (scan, ("width", "embed_epochs", "epochs")),
    "DCEC": (dcec, ("code_epochs", "epochs")),
    "DeepCluster": (deepcluster, ("width", "epochs")),
    "IIC": (iic, ("width", "iic_restarts", "iic_epochs", "iic_repeats", "iic_crop")),
    "k-means on vectors": (kmeans_of_vectors, ()),
    "SCAN on vectors": (scan_of_vectors, ("epochs",)),
    "DeepCluster on vectors": (deepcluster_of_vectors, ("epochs",)),
    "TURTLE": (turtle(), ("turtle_steps", "turtle_batch")),
    "TURTLE, rescaled": (turtle(rescale=True), ("turtle_steps", "turtle_batch")),
    "DEC": (dec(0.0, 1.0), ("code_epochs", "epochs")),
    "IDEC": (dec(1.0, 0.1), ("code_epochs", "epochs")),
    "ClustPy DEC": (clustpy("DEC"), ("code_epochs", "epochs")),
    "ClustPy IDEC": (clustpy("IDEC"), ("code_epochs", "epochs")),
}


ON_VECTORS = [name for name in METHODS if "vectors" in name or "TURTLE" in name]


def print_losses(data):
    """Print what TURTLE makes small, of the true classes and of k-means' clusters."""
    z, y = torch.from_numpy(data[0]).float(), np.unique(data[1], return_inverse=True)[1]
    n_clusters = y.max() + 1
    clusters = KMeans(n_clusters, n_init=3, random_state=0).fit_predict(data[0])
    for name, labels in {"classes": y, "k-means": clusters}.items():
        shares = np.bincount(labels) / len(labels)
        entropy = -(shares * np.log(shares)).sum()
        target, errors = torch.from_numpy(labels).long(), []
        for seed in range(5):
            torch.manual_seed(seed)
            layer = torch.nn.Linear(z.shape[1], n_clusters)
            adam = torch.optim.Adam(layer.parameters(), lr=1e-3)
            for _ in range(10):
                adam.zero_grad()
                cross_entropy(layer(z), target).backward()
                adam.step()
            errors.append(cross_entropy(layer(z), target).item())
        error = np.mean(errors)
        print(f"{name}: {error - 10 * entropy:.2f} = {error:.2f} - 10 x {entropy:.2f}")


def print_losses_of_iic(args, data):
    """Print the losses that a head of IIC and a head of the labels come to.

    Both are linear, on the encoder of a finished fit. They are trained on by the loss
    of IIC: first alone, on 20,000 training images with four views each, then with the
    encoder, for three epochs.
    """
    x, y, x_test, y_test = data
    curve = Curve(x_test, y_test) if args.curve else None  # finds the same checkpoint
    module = fit_iic(args, args.seeds[0], data, curve).net_.module_.eval()
    pixels, test = as_tensor(x), as_tensor(x_test)
    some = torch.arange(_HEAD_ROWS) * len(x) // _HEAD_ROWS  # the first are easier
    labels = torch.from_numpy(y.astype(np.int64))[some]
    torch.manual_seed(0)
    plain, *views = (
        outputs(module.backbone, pixels[some], view)
        for view in [None, *[module.augment] * 4]
    )

    def train(head, loss, n_steps=3000):
        adam = torch.optim.Adam(head.parameters(), lr=3e-3)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
        for step in range(n_steps):
            rows, view = torch.randperm(len(plain))[:2000], views[step % len(views)]
            adam.zero_grad()
            loss(head, plain[rows], view[rows], labels[rows]).backward()
            adam.step()
            falling.step()
        return head

    def by_labels(head, z1, z2, y):
        return cross_entropy(head(z1), y) + cross_entropy(head(z2), y)

    def by_iic(head, z1, z2, y=None):
        return iic_loss(head(z1).softmax(1), head(z2).softmax(1))

    def train_all(head, n_epochs=3):
        backbone = copy.deepcopy(module.backbone).train()
        both = [*backbone.parameters(), *head.parameters()]
        adam = torch.optim.Adam(both, lr=3e-4)
        n_steps = n_epochs * len(pixels) // 500
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
        torch.manual_seed(1)
        for _ in range(n_steps):
            part = pixels[torch.randint(len(pixels), (500,))]
            adam.zero_grad()
            by_iic(head, backbone(part), backbone(module.augment(part))).backward()
            adam.step()
            falling.step()
        return backbone.eval()

    def show(name, head, backbone=module.backbone):
        torch.manual_seed(2)
        z1, z2 = (
            outputs(backbone, pixels[some], view) for view in (None, module.augment)
        )
        with torch.no_grad():
            loss = by_iic(head, z1, z2).item()
            found = head(outputs(backbone, test)).argmax(1).numpy()
        print(f"{name}: loss {loss:.4f}, {errors(y_test, found)}", flush=True)

    first = torch.nn.Linear(plain.shape[1], module.heads.n_classes)
    first.load_state_dict(module.heads.linear.state_dict())
    show("head of IIC", first)
    train(first, by_iic)
    show("trained on alone", first)
    show("trained on with the encoder", first, train_all(first))
    second = train(torch.nn.Linear(plain.shape[1], module.heads.n_classes), by_labels)
    show("head of the labels", second)
    train(second, by_iic)
    show("trained on alone", second)
    show("trained on with the encoder", second, train_all(second))


def print_losses_of_dcec(args, data):
    """Print what DCEC comes to from the centers of k-means and of the true classes.

    Both begin with the same codes. The loss is that of the training images.
    """
    x, y, x_test, y_test = data
    seed, n_clusters = args.seeds[0], len(np.unique(y))
    embedder = FrozenEstimator(autoencoder(args, seed, x).fit(x))
    codes = embedder.transform(x)
    kmeans = KMeans(n_clusters, n_init=20, random_state=seed).fit(codes)
    means = np.stack([codes[y == label].mean(axis=0) for label in np.unique(y)])
    starts = {
        "k-means": kmeans.cluster_centers_.astype(np.float32),
        "classes": means.astype(np.float32),
    }

    class Begun(DCECClusterer):
        """DCEC from given centers."""

        def _initial_centers(self, Z, X, seed):
            return torch.from_numpy(centers)

    Z_test = embedder.transform(x_test)
    for name, centers in starts.items():
        found = pairwise_distances_argmin(Z_test, centers)
        print(f"centers of {name}: {errors(y_test, found)}", flush=True)
        clusterer = Begun(
            n_clusters,
            embedder=embedder,
            max_epochs=args.epochs,
            **{**shared(args, seed), "checkpoint_dir": None},
        ).fit(x)
        loss, found = -clusterer.score(x), clusterer.predict(x_test)
        print(f"DCEC from them: loss {loss:.4f}, {errors(y_test, found)}", flush=True)


def errors(y, found):
    """Say how many rows are in clusters of other classes, and which most of all."""
    clusters, classes = hungarian_match(y, found)
    named = np.full(clusters.max() + 1, -1)
    named[clusters] = classes
    counts = confusion_matrix(y, named[found])
    wrong = counts - np.diag(np.diag(counts))
    a, b = np.unravel_index(wrong.argmax(), wrong.shape)
    return (
        f"accuracy {1 - wrong.sum() / len(found):.4f}, {wrong.sum()} errors, of which "
        f"{wrong[a, b]} are {a} among {b}"
    )


def outputs(module, pixels, augment=None):
    """Return what a module gives for images or for views of them."""
    with torch.inference_mode():
        parts = [
            module(part if augment is None else augment(part))
            for part in pixels.split(500)
        ]
    return torch.cat(parts).float().clone()


def compare_speed(args, data):
    """Time ours and ClustPy's in turn; a checkpoint would leave nothing to be done."""
    args = argparse.Namespace(**{**vars(args), "checkpoints": None})
    for name in ("DEC", "IDEC"):
        candidates = {
            method: functools.partial(METHODS[method][0], args, 0, data)
            for method in (name, f"ClustPy {name}")
        }
        print_ratios(alternate(candidates, args.rounds), name)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="mnist", help="a name of fetch_*, or .npz")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-train", type=int, help="first rows of the training images")
    parser.add_argument("--width", type=int, default=16, help="of the first layer")
    parser.add_argument("--embed-epochs", type=int, default=10, help="of SimCLR")
    parser.add_argument(
        "--code-epochs", type=int, default=20, help="of the autoencoders"
    )
    parser.add_argument("--epochs", type=int, default=6, help="of the clustering")
    parser.add_argument("--iic-epochs", type=int, default=40)
    parser.add_argument("--iic-restarts", type=int, default=4, help="of the heads")
    parser.add_argument("--iic-repeats", type=int, default=1, help="views of each row")
    parser.add_argument("--iic-crop", type=float, default=0.4, help="least area")
    parser.add_argument("--curve", action="store_true", help="of IIC")
    parser.add_argument("--turtle-steps", type=int, default=6000)
    parser.add_argument("--turtle-batch", type=int, default=10_000)
    parser.add_argument(
        "--losses", action="store_true", help="of TURTLE, IIC or DCEC, only"
    )
    parser.add_argument("--rounds", type=int, help="only compare speed, so many times")
    args = parse(parser)

    x, y, x_test, y_test = load(args.data)
    data = x[: args.n_train], y[: args.n_train], x_test, y_test
    if args.losses:
        own = {"IIC": print_losses_of_iic, "DCEC": print_losses_of_dcec}
        if args.method and args.method[0] in own:
            return own[args.method[0]](args, data)
        return print_losses(data)
    if args.rounds:
        return compare_speed(args, data)
    names = [n for n in METHODS if (n in ON_VECTORS) == (x.ndim == 2)]
    results, rows = Results("clustering"), []
    for seed in args.seeds:
        for name in args.method or names:
            function, lengths = METHODS[name]
            run = results.run(
                lambda f=function, s=seed: f(args, s, data),
                data=Path(args.data).stem,
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
