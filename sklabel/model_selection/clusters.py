"""Scorers of clusterers, which need no labels."""

import numpy as np
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score, silhouette_score

from .._core.learner import Learner
from .._core.nested import encoded, inner_estimator, last_step
from ..neighbors import kneighbors


class _ClusteringScorer:
    """Scorer of `clustering_scorer`."""

    def __init__(self, figure, embedder, n_neighbors):
        self.figure = figure
        self.embedder = embedder
        self.n_neighbors = n_neighbors

    def __call__(self, estimator, X, y=None):
        labels = np.asarray(estimator.predict(X))
        good = labels >= 0  # files that could be read
        if not good.any():
            raise ValueError("X has no row with a cluster to score.")
        if self.figure == "confidence":
            return float(_confidence(estimator, X)[good].mean())
        if len(np.unique(labels[good])) < 2:
            return 0.0
        if self.figure == "silhouette" and labels.ndim > 1:
            raise ValueError(
                f"{type(estimator).__name__} gives each image a map of clusters, "
                'which has no "silhouette": use another figure.'
            )
        if self.figure == "stability":
            other = clone(estimator)
            last = last_step(other)
            name, parameters = type(last).__name__, last.get_params(deep=False)
            if last is last_step(estimator):  # clone does not copy what is frozen
                raise ValueError(
                    f'"stability" trains a second {name}, but this one is frozen: '
                    "score it without FrozenEstimator."
                )
            if "random_state" not in parameters:
                raise ValueError(
                    f'{name} has no random_state, which "stability" needs: use '
                    '"neighbor_agreement" or "silhouette".'
                )
            seed = parameters["random_state"]
            # any other seed; None draws one by itself
            last.set_params(random_state=1 if seed is None or seed != 1 else 2)
            found = np.asarray(other.fit(X).predict(X))[good]
            return float(adjusted_rand_score(labels[good], found))
        shares = np.unique(labels[good], return_counts=True)[1] / good.sum()
        chance = np.square(shares).sum()
        if labels.ndim > 1:
            # beside each other in an image that could be read
            same = [
                np.diff(labels[good.all((1, 2))], axis=axis) == 0 for axis in (1, 2)
            ]
            same = np.concatenate([part.ravel() for part in same])
            if len(same) == 0:
                raise ValueError("Maps of one pixel have no adjacent pixels to score.")
            return float((same.mean() - chance) / (1 - chance))
        labels = labels[good]
        Z = self._embed(estimator, X)[good]
        if self.figure == "silhouette":
            rows = np.random.default_rng(0).permutation(len(Z))[:5000]
            if len(np.unique(labels[rows])) in (1, len(rows)):
                return 0.0
            return float(silhouette_score(Z[rows], labels[rows]))
        k = min(self.n_neighbors, len(Z) - 1)
        _, indices = kneighbors(Z, k, include_self=False, random_state=0)
        agreement = (labels[indices] == labels[:, None]).mean()
        return float((agreement - chance) / (1 - chance))

    def _embed(self, estimator, X):
        if self.embedder is not None:
            return np.asarray(self.embedder.transform(X))
        estimator, X = inner_estimator(estimator, X)
        # the transform of others, such as KMeans, gives distances to its centers
        if isinstance(estimator, Learner):
            for embedder in (getattr(estimator, "embedder_", None), estimator):
                if hasattr(embedder, "transform"):
                    return np.asarray(embedder.transform(X))
            return encoded(estimator, X)
        X = X.toarray() if issparse(X) else X
        return np.asarray(X, dtype=np.float32).reshape(
            (X.shape[0] if hasattr(X, "shape") else len(X)), -1
        )

    def __repr__(self):
        return f"clustering_scorer({self.figure!r})"


def _confidence(estimator, X):
    """Return the confidence of a clusterer in each row, or in each pixel."""
    if hasattr(estimator, "predict_proba"):
        return np.asarray(estimator.predict_proba(X)).max(1)
    clusterer, rows = inner_estimator(estimator, X)
    if isinstance(clusterer, Learner):
        return clusterer.score_samples(rows)
    raise ValueError(
        f'{type(clusterer).__name__} has no predict_proba, which "confidence" needs: '
        'use "neighbor_agreement" or "silhouette".'
    )


def clustering_scorer(figure="neighbor_agreement", *, embedder=None, n_neighbors=20):
    """Return a scorer of clusterers that needs no labels.

    Parameters
    ----------
    figure : str, default="neighbor_agreement"
        Figure to score by; higher is better:

        - "neighbor_agreement": how often a row and its nearest neighbors in the
          embedding share a cluster, from 0 (chance level, so few clusters have no
          advantage) to 1 (always). For maps: how often adjacent pixels do;
        - "silhouette": silhouette of the clusters in the embedding, -1 to 1, from at
          most 5000 rows;
        - "stability": agreement with the clusters of a second training with another
          seed, on the rows to be scored: adjusted Rand index, from 0 (chance level) to
          1. It costs a training, so the clusterer must not be frozen and must have a
          ``random_state``;
        - "confidence": mean probability of the rows' clusters, or the mean of
          ``score_samples``. Not meaningful alone, because it grows as the number of
          clusters falls.

        If all rows are in one cluster, all but "confidence" are 0.
    embedder : fitted transformer or None, default=None
        Computes the embedding. None: the embedding of sklabel's clusterers (their
        ``embedder_``, ``transform`` or ``encoder_``), and X itself for others. Give one
        to compare clusterers with different embeddings.
    n_neighbors : int, default=20
        Neighbors of "neighbor_agreement".

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y=None)``, for ``scoring=`` of ``GridSearchCV`` and the
        like.

    Raises
    ------
    ValueError
        If ``figure`` is unknown; when called, if the clusterer does not have it.

    Notes
    -----
    None of these figures knows which kinds you want to distinguish. Among settings with
    similar scores, choose the one with most clusters, because merging whole kinds into
    one cluster lowers the scores little. Look at the images of each cluster before you
    trust it.

    Examples
    --------
    >>> from sklearn.cluster import KMeans
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.model_selection import clustering_scorer
    >>> X = load_digits().data[:300]
    >>> model = KMeans(10, n_init=1, random_state=0).fit(X)
    >>> 0 < clustering_scorer()(model, X) < 1
    True
    """
    figures = ("neighbor_agreement", "silhouette", "stability", "confidence")
    if figure not in figures:
        raise ValueError(f"figure={figure!r} is not one of {figures}.")
    return _ClusteringScorer(figure, embedder, n_neighbors)
