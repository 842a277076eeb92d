"""Segmentation without labels: digits on photographs, against k-means on pixel patches.

Each image is a handwritten digit drawn large and thick over a photograph, so that its
strokes cover about a half. They are white, or of a color of their own in each image,
when only their evenness tells them from the photograph. The mask is known, and seen by
nobody but the score: the share of pixels of the test images in the right one of two
parts, clusters matched to parts as suits them best, and the intersection over union of
strokes and found strokes.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from _common import Results, load, parse, shared, summary
from sklearn.cluster import KMeans

from sklabel.clustering import IICSegmenter
from sklabel.metrics import clustering_accuracy


def compose(digits, photographs, strokes, seed):
    """Return images (n, 32, 32, 3), uint8, and masks (n, 32, 32) of the strokes."""
    rng = np.random.default_rng(seed)
    n = min(len(digits), len(photographs))
    photographs = photographs[rng.permutation(len(photographs))[:n]]
    large = F.interpolate(
        torch.from_numpy(digits[:n, None]).float() / 255,
        size=(44, 44),
        mode="bilinear",
        antialias=True,
    )
    # thick, so that there is an inside that patches of the background do not look like
    large = F.max_pool2d(large, 5, 1, 2)[:, 0, 6:38, 6:38].numpy()
    color = rng.integers(0, 256, (n, 1, 1, 3))
    if strokes == "white":
        color[:] = 255
    shade = large[..., None]
    images = shade * color + (1 - shade) * photographs
    return images.round().astype(np.uint8), (large > 0.5).astype(int)


def patches(images, side=5):
    """Return the side x side pixels around every pixel, (n * 32 * 32, 75)."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    x = F.pad(x, (side // 2,) * 4, mode="replicate")
    return F.unfold(x, side).transpose(1, 2).flatten(0, 1).numpy()


def kmeans(args, seed, x, x_test):
    Z = patches(x[:500])
    model = KMeans(2, n_init=3, random_state=seed).fit(Z)
    return model.predict(patches(x_test)).reshape(x_test.shape[:3])


def iic(args, seed, x, x_test):
    segmenter = IICSegmenter(
        2,
        half_side=args.half_side,
        max_epochs=args.epochs,
        **shared(args, seed),
    ).fit(x)
    return segmenter.predict(x_test)


METHODS = {"k-means on patches": (kmeans, ()), "IIC": (iic, ("half_side", "epochs"))}


def figures(masks, labels):
    flat = masks.ravel(), labels.ravel()
    overlap = [
        np.logical_and(masks == 1, labels == k).sum()
        / np.logical_or(masks == 1, labels == k).sum()
        for k in np.unique(labels)
    ]
    return {"accuracy": clustering_accuracy(*flat), "iou": float(max(overlap))}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-train", type=int, default=4000)
    parser.add_argument("--n-test", type=int, default=1000)
    parser.add_argument("--strokes", choices=["white", "colored"], default="colored")
    parser.add_argument("--half-side", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10)
    args = parse(parser)

    digits, photographs = load("mnist"), load("cifar10")
    x, _ = compose(digits[0][: args.n_train], photographs[0], args.strokes, seed=0)
    x_test, masks = compose(
        digits[2][: args.n_test], photographs[2], args.strokes, seed=1
    )
    print(f"strokes cover {masks.mean():.1%} of the test images")
    results, rows = Results("segmentation"), []
    for seed in args.seeds:
        for name in args.method:
            function, names = METHODS[name]
            row = results.run(
                lambda f=function, s=seed: figures(masks, f(args, s, x, x_test)),
                strokes=args.strokes,
                n_train=len(x),
                n_test=len(x_test),
                method=name,
                **{key: getattr(args, key) for key in names},
                seed=seed,
            )
            rows.append(row)
    for figure in ("accuracy", "iou"):
        summary(rows, ["strokes", "method"], figure)


if __name__ == "__main__":
    main()
