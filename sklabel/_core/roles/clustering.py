"""The role of the clusterers: predict, labels."""

import numpy as np
from sklearn.base import (
    ClusterMixin,
)

from ..callbacks import fitting
from ..health import set_n_clusters
from ..labels import most_probable
from ..parameters import Parameters


class PredictClustersMixin(Parameters, abstract=True):
    """Predict the cluster of samples from the module's probabilities.

    Parameters
    ----------
    embedder : estimator or None
        Embeds X for the neighbors; its encoder is the backbone where ``backbone="auto"``.
        Cloned and fitted, or used as it is inside a ``FrozenEstimator``. None: SimCLR for
        images; vectors are taken as they are. Give ``SimCLRTransformer()`` to reach its
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


class ClusteringRole(PredictClustersMixin, ClusterMixin, abstract=True):
    """Shared behavior of the clusterers that train a network.

    Attributes
    ----------
    labels_ : ndarray of int of shape (n_samples,)
        Cluster of each row, 0 to ``n_clusters_ - 1``, all of them in use.
    n_clusters_ : int
        Clusters in use.
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
        check_n_clusters(self, samples)
        with self._seeded() as seed:
            self._train(X, samples, seed)
            self.net_.module_.drop_training_state()
            p = self._forward_rows(samples)
        self._check_health(p)
        used = self._set_labels(p, samples)
        self.net_.module_.keep_outputs(used)
        return self

    def _check_health(self, p):
        """Warn if a stage of the training has learned nothing."""

    def _remedies(self):
        """Return what to do about too few clusters in use, and about one of most rows."""
        raise NotImplementedError

    def _set_labels(self, p, samples, prior=None):
        """Set ``labels_`` and what goes with them; return the clusters in use.

        Parameters
        ----------
        p : ndarray of shape (n_samples, K)
            Probabilities; clusters that no row uses do not count.
        samples : Samples
        prior : Tensor of shape (K,) or None
            Shares that the clusters were asked to have; None: equal ones.
        """
        good = ~samples.bad
        labels = p[good].argmax(1)
        used = np.unique(labels)
        p = p[:, used] / p[:, used].sum(1, keepdims=True)
        self.labels_ = np.full(len(samples), -1)
        self.labels_[good] = np.searchsorted(used, labels)
        self.confidence_ = np.where(good, p.max(1), np.nan).astype(np.float32)
        set_n_clusters(self, *self._remedies(), prior)
        return used


def check_n_clusters(clusterer, samples):
    """Check that there are as many readable rows as clusters."""
    if clusterer.n_clusters > samples.n_trained:
        raise ValueError(
            f"n_clusters={clusterer.n_clusters} is larger than the number of samples, "
            f"{samples.n_trained}."
        )
