"""Training alternately with over-clustering: the two kinds of IIC."""

from dataclasses import KW_ONLY

import numpy as np
from torch import nn

from ..modules import Method
from .health import CollapseWarning
from .samplers import FixedSteps, Shuffled
from .warn import warn

# clusters of the other heads that nobody has asked for: a step's time and memory grow
# with their square, and a batch says little of so many pairs
_MOST_OVERCLUSTERS = 500


class Overclustering(Method):
    """In each epoch all rows pass through over-clustering heads first, then the others.

    Subclasses count with ``n_steps`` and ``step``, those of the epoch.
    """

    backbone: nn.Module
    overcluster: nn.Module
    _: KW_ONLY
    marginal_weight: float
    overcluster_epochs: int
    cluster_epochs: int

    def __post_init__(self):
        self.step = self.n_steps = self.n_overcluster_steps = 0

    @property
    def overclusters(self):
        """Whether the over-clustering heads are trained now."""
        return self.step < self.n_overcluster_steps

    def before_epoch(self, net, sampler):
        # what is left may be less than an epoch
        self.n_steps = min(sampler.n_steps, net.total_steps_ - net.step_)
        n_passes = self.overcluster_epochs + self.cluster_epochs
        self.n_overcluster_steps = self.n_steps * self.overcluster_epochs // n_passes
        self.step = 0

    def after_step(self):
        self.step += 1


class OverclusteringMixin:
    """For clusterers whose module is `Overclustering`."""

    def _train(self, X, samples, seed):
        n_passes = self.overcluster_epochs + self.cluster_epochs
        n_steps = n_passes * Shuffled(samples).n_batches(self.batch_size)
        module = self._build_module(*samples.statistics())
        return self._stage("fit", module, FixedSteps(samples, n_steps))

    def _n_overclusters(self):
        """Return the clusters of the over-clustering heads; never fewer than wanted."""
        if self.n_overclusters is not None:
            return self.n_overclusters
        return max(self.n_clusters, min(5 * self.n_clusters, _MOST_OVERCLUSTERS))

    def _raise_learning(self):
        """Return the parameters to raise if too little was learned."""
        return (
            f"Raise max_epochs={self.max_epochs}, lr={self.lr} or "
            f"marginal_weight={self.marginal_weight}"
        )

    def _check_information(self, what):
        """Warn if the mutual information of views is near zero."""
        history = self.net_.history  # empty where Ctrl-C broke off the first epoch
        found = history[-1].get("information", np.inf) if history else np.inf
        best = np.log(self.n_clusters)
        if found < 0.05 * best:
            warn(
                f"The clusters of {what} share almost no information: "
                f"information {found:.3f}, at best {best:.2f}. Raise lr={self.lr} or "
                f"max_epochs={self.max_epochs}, or change augment.",
                CollapseWarning,
            )
