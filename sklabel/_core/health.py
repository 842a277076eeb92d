"""What shows trouble without labels, and the warning for it."""

import numpy as np
import torch

from ..metrics import effective_rank, feature_std
from ..modules import Snapshot
from ..neighbors import kneighbors
from .divergence import check_outputs
from .samples import evenly_spaced
from .warn import warn


class CollapseWarning(UserWarning):
    """Training has lost what it was to learn; the message names what to change."""


def watch_features(net, samples, n_rows=256):
    """Return spread and effective rank of some rows' features, for the history."""
    net.module_.eval()
    x = net.to_device(samples[samples.spread(n_rows)])
    with torch.inference_mode(), net.autocast():
        h = net.module_(x).float()
    net.module_.train()
    check_outputs(net, h)
    return {
        "feature_std": float(feature_std(h)),
        "effective_rank": float(effective_rank(h)),
    }


def cluster_metrics(p, neighbors=None):
    """Return what shows trouble without labels: how the rows (n, K) lie in clusters."""
    labels = p.argmax(1)
    counts = torch.bincount(labels, minlength=p.shape[1])
    metrics = {
        "largest_cluster": float(counts.max() / len(p)),
        "clusters_used": int((counts > 0).sum()),
        "confident_share": float((p.max(1).values > 0.99).float().mean()),
    }
    if neighbors is not None:
        same = labels[torch.from_numpy(neighbors[:, 1:])] == labels[:, None]
        metrics["neighbor_agreement"] = float(same.float().mean())
    return metrics


class BestClusters(Snapshot):
    """A copy of modules from the best epoch in which no cluster was lost.

    A cluster is lost when its last row leaves it.

    Parameters
    ----------
    n_clusters : int
    *parts : nn.Module
        What is copied.
    """

    def __init__(self, n_clusters, *parts):
        super().__init__(*parts)
        # a buffer: a fit that continues from a checkpoint has not seen the start
        self.register_buffer("used", torch.zeros(n_clusters, dtype=torch.bool))

    @property
    def started(self):
        """Whether the state before the first step is known."""
        return bool(self.used.any())

    def start(self, labels, loss, *parts):
        """Keep the state before the first step, and which clusters are in use in it."""
        self.used[labels.unique()] = True
        self.keep_if_better(loss, *parts)

    def judge(self, net, labels, loss, *parts):
        """Keep an epoch if its loss is lower; end the training if a cluster was lost.

        Parameters
        ----------
        net : Net
        labels : Tensor of int of shape (n,)
            Cluster of each row after the epoch.
        loss : float
        *parts : nn.Module
            As given at the start.

        Returns
        -------
        best : bool
            Whether the epoch is kept.
        n_lost : int
            Clusters lost.
        """
        # not by their number: one may come into use as another is lost
        lost = self.used.clone()
        lost[labels.unique()] = False
        if lost.any():
            net.stop()
        best = not lost.any() and self.keep_if_better(loss, *parts)
        return best, int(lost.sum())


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


def check_cluster_sizes(
    sizes, n_clusters, remedies, prior=None, of="rows", largest=0.5
):
    """Warn if clusters are missing, or if one of them is too large.

    Parameters
    ----------
    sizes : ndarray of int of shape (n_used,)
        Of the clusters in use.
    n_clusters : int
        How many were requested.
    remedies : tuple of two str
        What to do about missing clusters, and about one that is too large.
    prior : ndarray of shape (n_clusters,) or None
        Shares that the clusters were asked to have; None: equal ones.
    of : str
        What has clusters.
    largest : float
        Share at which a cluster is too large, if there are more than a few.
    """
    wanted, expected = n_clusters, 0.0
    if prior is not None:
        wanted, expected = int((prior > 0).sum()), float(prior.max())
    share = sizes.max() / sizes.sum()
    too_large = max(min(max(largest, 3 / wanted), 0.95), (1 + expected) / 2)
    if len(sizes) < wanted:
        warn(
            f"Only {len(sizes)} of n_clusters={n_clusters} clusters are in use; "
            f"sizes {sizes.tolist()}. {remedies[0]}.",
            CollapseWarning,
        )
    elif wanted > 1 and share > too_large:
        warn(
            f"One cluster holds {share:.0%} of the {of}. {remedies[1]}.",
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
