"""The role of the clusterers: predict, labels."""

import numpy as np
from sklearn.base import (
    ClusterMixin,
)

from ..callbacks import fitting
from ..health import check_cluster_sizes
from ..labels import most_probable
from ..parameters import Parameters


class PredictClustersMixin(Parameters, abstract=True):
    """Predict the cluster of samples from the module's probabilities.

    Parameters
    ----------
    embedder : estimator or None
        Embeds X for the neighbors; its encoder is the backbone if ``backbone="auto"``.
        Cloned and fitted, or used as is in a ``FrozenEstimator``. None: SimCLR for
        images; vectors are used directly. Give ``SimCLRTransformer()`` to reach its
        parameters as ``embedder__temperature``.

    Attributes
    ----------
    encoder_ : nn.Module
        Trained encoder.
    """

    def predict_proba(self, X):
        """Return the probability of each cluster.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_clusters), float32
        """
        return self._predict_rows(X)

    def predict(self, X):
        """Return the cluster of each sample.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        labels : ndarray of int of shape (n_samples,)
            -1 for a file that cannot be read, with ``on_error="skip"``.
        """
        return most_probable(self.predict_proba(X))


class ClusteringRole(ClusterMixin, Parameters, abstract=True):
    """Shared behavior of the clusterers that train a network.

    Attributes
    ----------
    labels_ : ndarray of int of shape (n_samples,)
        Cluster of each row, from 0 to ``n_clusters_ - 1``, all in use.
    n_clusters_ : int
        Number of clusters in use.
    """

    @fitting
    def fit(self, X, y=None):
        """Cluster X.

        Parameters
        ----------
        X : array-like
            Images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``; paths of image
            files; or vectors ``(n, D)``.
        y : None
            Ignored.

        Returns
        -------
        self : estimator
        """
        samples = self._check_X(X, reset=True)
        self._check_samples(samples)
        with self._seeded() as seed:
            self._train(X, samples, seed)
            self.net_.module_.drop_training_state()
            outputs = self._assign(samples)
        self.n_clusters_ = int(self.labels_.max()) + 1
        self._check_health(outputs)
        return self

    def _check_samples(self, samples):
        """Raise an error if these samples cannot be clustered."""
        check_n_clusters(self, samples)

    def _train(self, X, samples, seed):
        """Train the method's module."""
        raise NotImplementedError

    def _assign(self, samples):
        """Set ``labels_`` and what goes with them; return what they were read from."""
        raise NotImplementedError

    def _remedies(self):
        """Return what to do about missing clusters, and about one of most rows."""
        raise NotImplementedError

    def _check_health(self, outputs, **settings):
        """Warn if clusters are missing, or if one holds most rows.

        ``outputs``: what `_assign` returned. ``settings``: see `check_cluster_sizes`.
        """
        sizes = np.bincount(self.labels_[self.labels_ >= 0])
        check_cluster_sizes(sizes, self.n_clusters, self._remedies(), **settings)


class ProbabilisticClusteringRole(PredictClustersMixin, ClusteringRole, abstract=True):
    """Shared behavior of the clusterers whose module gives probabilities.

    Attributes
    ----------
    confidence_ : ndarray of shape (n_samples,), float32
        Probability of each row's cluster.
    """

    def _assign(self, samples):
        p = self._forward_rows(samples)
        used = self._set_labels(p, samples)
        self.net_.module_.keep_outputs(used)
        return p

    def _set_labels(self, p, samples):
        """Set ``labels_`` and ``confidence_``; return the clusters in use.

        Parameters
        ----------
        p : ndarray of shape (n_samples, K)
            Probabilities; clusters that no row uses do not count.
        samples : Samples
        """
        good = ~samples.bad
        labels = p[good].argmax(1)
        used = np.unique(labels)
        p = p[:, used] / p[:, used].sum(1, keepdims=True)
        self.labels_ = np.full(len(samples), -1)
        self.labels_[good] = np.searchsorted(used, labels)
        self.confidence_ = np.where(good, p.max(1), np.nan).astype(np.float32)
        return used


class NeighborhoodMixin:
    """For estimators that look for the neighbors of rows in an embedding.

    Where ``embedder`` is None, images get a ``_default_embedder``, a class that the
    method names, and vectors are taken as they are.
    """

    def _fit_embedder(self, X, samples):
        """Set ``embedder_``, fitted on the readable rows; vectors may have none."""
        embedder = self.embedder
        if embedder is None and len(self.sample_shape_) == 3:
            # as published, neighbors come from the head's output
            embedder = self._new_embedder(output="projection")
        if embedder is None:
            vars(self).pop("embedder_", None)  # of an earlier fit
        else:
            # unreadable files have been warned of already, and are nobody's neighbors
            self.embedder_ = self._fit_nested(embedder, samples.readable(X))

    def _embed(self, X, samples, standardize=False):
        """Return the readable rows as vectors (n, D); without an embedder X itself.

        ``standardize``: whether the features of X itself are given equal spread.
        """
        if hasattr(self, "embedder_"):
            return np.asarray(self.embedder_.transform(samples.readable(X)))
        Z = samples[samples.good]
        if standardize:
            mean, std = samples.statistics()
            Z = (Z - mean) / std
        return Z.numpy()


def check_n_clusters(clusterer, samples):
    """Check that there are as many readable rows as clusters."""
    if clusterer.n_clusters > samples.n_trained:
        raise ValueError(
            f"n_clusters={clusterer.n_clusters} is larger than the number of samples, "
            f"{samples.n_trained}."
        )
