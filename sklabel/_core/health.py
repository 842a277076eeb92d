"""What shows trouble without labels, and the warning for it."""

import numpy as np
import torch

from ..metrics import effective_rank, feature_std
from ..neighbors import kneighbors
from .samples import evenly_spaced
from .warn import warn


class CollapseWarning(UserWarning):
    """Training has lost what it was to learn; the message names what to change."""


def watch_features(net, samples, n_rows=256):
    """Return spread and effective rank of the features of some rows."""
    net.module_.eval()
    x = net.to_device(samples[samples.spread(n_rows)])
    with torch.inference_mode(), net.autocast():
        h = net.module_(x).float()
    net.module_.train()
    return {
        "feature_std": float(feature_std(h)),
        "effective_rank": float(effective_rank(h)),
    }


def check_information(clusterer, what):
    """Say so where views say next to nothing of each other (IIC)."""
    history = clusterer.net_.history  # empty where Ctrl-C broke off the first epoch
    found = history[-1].get("information", np.inf) if history else np.inf
    best = np.log(clusterer.n_clusters)
    if found < 0.05 * best:
        warn(
            f"The clusters of {what} say next to nothing of each other: information "
            f"{found:.3f}, at best {best:.2f}. Raise lr={clusterer.lr} or "
            f"max_epochs={clusterer.max_epochs}, or change augment.",
            CollapseWarning,
        )


def cluster_metrics(p, neighbors=None):
    """Return what shows trouble without labels: how the rows (n, K) lie in clusters."""
    labels = p.argmax(1)
    counts = torch.bincount(labels, minlength=p.shape[1])
    figures = {
        "largest_cluster": float(counts.max() / len(p)),
        "clusters_used": int((counts > 0).sum()),
        "confident_share": float((p.max(1).values > 0.99).float().mean()),
    }
    if neighbors is not None:
        same = labels[torch.from_numpy(neighbors[:, 1:])] == labels[:, None]
        figures["neighbor_agreement"] = float(same.float().mean())
    return figures


def lost_clusters(used, labels):
    """Return which of the clusters that were in use (K,) have no row any more.

    Not by their number: one may come into use as another is lost.
    """
    lost = used.clone()
    lost[labels.unique()] = False
    return lost


def neighbor_agreement(Z, labels, n_rows=1000, n_neighbors=10):
    """Return how often the nearest rows of Z share a row's cluster, by some rows."""
    rows = evenly_spaced(len(Z), n_rows)
    k = min(n_neighbors, len(Z) - 1)
    _, near = kneighbors(Z, k + 1, queries=Z[rows], method="exact")
    same = labels[near] == labels[rows, None]
    return float(same[near != rows[:, None]].mean())


def watch_accuracy(net, samples, rows, codes):
    """Return the accuracy on rows with known classes, for the history."""
    p = net.evaluate(samples, rows)
    return {"held_accuracy": float((p.argmax(1).numpy() == codes).mean())}


def set_n_clusters(
    clusterer, remedy, remedy_largest, prior=None, of="rows", largest=0.5
):
    """Set ``n_clusters_`` by ``labels_``, and warn of missing or too large clusters.

    ``prior``: the shares that they were asked to have; None: equal ones. ``of``: what
    has labels. ``largest``: the share of one cluster that is too large, where there are
    more than a few.
    """
    sizes = np.bincount(clusterer.labels_[clusterer.labels_ >= 0])
    clusterer.n_clusters_, wanted = len(sizes), clusterer.n_clusters
    share, expected = sizes.max() / sizes.sum(), 0.0
    if prior is not None:
        wanted, expected = int((prior > 0).sum()), float(prior.max())
    if len(sizes) < wanted:
        warn(
            f"Only {len(sizes)} of n_clusters={clusterer.n_clusters} clusters are in "
            f"use; sizes {sizes.tolist()}. {remedy}.",
            CollapseWarning,
        )
    elif wanted > 1 and share > max(
        min(max(largest, 3 / wanted), 0.95), (1 + expected) / 2
    ):
        warn(
            f"One cluster holds {share:.0%} of the {of}. {remedy_largest}.",
            CollapseWarning,
        )


def warn_collapsed(embedder, remedy, least_spread=0.05, least_rank=1.5):
    """Warn if the features of the last epoch hardly differ."""
    if not embedder.net_.history:
        return  # interrupted in the first epoch
    last = embedder.net_.history[-1]
    spread, rank = last.get("feature_std", 1.0), last.get("effective_rank", np.inf)
    if spread < least_spread or rank < least_rank:
        warn(
            f"The features of {type(embedder).__name__} have collapsed (spread "
            f"{spread:.3f} of 1, effective rank {rank:.1f}): {remedy}.",
            CollapseWarning,
        )
