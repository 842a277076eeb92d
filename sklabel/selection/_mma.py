"""MMA: active learning with MixMatch (Song, Berthelot, Rostamizadeh, 2019)."""

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils import check_random_state

from .._core.calibration import rescale
from .._core.learner import seeded
from .._core.nested import hidden_features, inner_estimator
from .._core.parameters import KW_ONLY, Count, SampleCount, one_of
from .._core.roles.classification import ClassificationRole
from .._core.roles.selection import ClassifierSelectionRole
from ..augment import build_augment
from ..neighbors import kmeans

MEASURES = ("margin", "least_confidence", "entropy", "std")


def confidence(probabilities, measure="margin"):
    """Return a classifier's confidence in each row; the least confident are queried.

    Parameters
    ----------
    probabilities : ndarray of shape (n, C)
        Rows in [0, 1] that add up to 1.
    measure : {"margin", "least_confidence", "entropy", "std"}, default="margin"
        "margin": the largest probability minus the second ("diff2" in the released
        code; the largest alone if there is one class). "least_confidence": the largest
        ("max"). "entropy": minus the entropy, ``sum p log p`` with ``0 log 0 = 0``.
        "std": the standard deviation of the probabilities.

    Returns
    -------
    confidence : ndarray of shape (n,), float64
        In [0, 1]; in [-log C, 0] for "entropy".

    Raises
    ------
    ValueError
        For an unknown measure.

    References
    ----------
    .. [1] S. Song, D. Berthelot, A. Rostamizadeh, "Combining MixMatch and active
       learning for better accuracy with fewer labels", 2019.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if measure == "margin":
        p = np.sort(p, axis=1)
        return p[:, -1] - (p[:, -2] if p.shape[1] > 1 else 0)
    if measure == "least_confidence":
        return p.max(axis=1)
    if measure == "entropy":
        return (p * np.log(np.where(p > 0, p, 1))).sum(axis=1)
    if measure == "std":
        return p.std(axis=1)
    raise ValueError(f"measure={measure!r} is not one of {MEASURES}.")


def allocate(sizes, n_samples, random_state=None):
    """Divide ``n_samples`` among clusters in proportion to their sizes, rounded.

    Parameters
    ----------
    sizes : array-like of int of shape (n_clusters,)
        Rows of each cluster.
    n_samples : int
        Rows wanted, at most the sum of ``sizes``.
    random_state : int, RandomState instance or None, default=None
        Seed. If the rounded numbers add up to less than ``n_samples``, random clusters
        with rows left give one more; if to more, the cluster that gives most gives one
        less.

    Returns
    -------
    counts : ndarray of int of shape (n_clusters,)
        They sum to ``n_samples``; none is above the cluster's size.

    References
    ----------
    .. [1] S. Song, D. Berthelot, A. Rostamizadeh, "Combining MixMatch and active
       learning for better accuracy with fewer labels", 2019; its released code.
    """
    sizes = np.asarray(sizes)
    rng = check_random_state(random_state)
    counts = np.rint(n_samples * (sizes / sizes.sum())).astype(np.int64)
    while counts.sum() < n_samples:
        counts[rng.choice(np.flatnonzero(sizes > counts))] += 1
    while counts.sum() > n_samples:
        counts[counts.argmax()] -= 1
    return counts


def least_confident_of_clusters(confidences, clusters, n_samples, random_state=None):
    """Choose the least confident rows of each cluster, as many as `allocate` says.

    Parameters
    ----------
    confidences : ndarray of shape (n,)
        The smallest are chosen, ties by lowest row number.
    clusters : ndarray of int of shape (n,)
        Cluster of each row, >= 0.
    n_samples : int
        Rows wanted, at most n.
    random_state : int, RandomState instance or None, default=None
        See `allocate`.

    Returns
    -------
    chosen : ndarray of shape (n_samples,)
        Cluster by cluster.
    """
    counts = allocate(np.bincount(clusters), n_samples, random_state)
    order = np.lexsort((confidences, clusters))
    ends = np.cumsum(np.bincount(clusters))
    starts = np.concatenate([[0], ends[:-1]])
    return np.concatenate(
        [order[start : start + n] for start, n in zip(starts, counts, strict=True)]
    )


def mean_cosine_distance(Z):
    """Return the mean cosine distance of each row to all rows, itself included.

    Parameters
    ----------
    Z : ndarray of shape (n, D)
        Vectors. A row of zeros is 1 away from all others.

    Returns
    -------
    distances : ndarray of shape (n,), float64
        In [0, 2].

    Notes
    -----
    Time: n * D, since the mean product with all unit rows is the product with their
    mean.
    """
    Z = np.asarray(Z, dtype=np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", Z, Z))
    unit = Z / np.where(lengths > 0, lengths, 1)[:, None]
    # A row of zeros has no direction, but is at distance 0 of itself.
    products = unit @ unit.sum(axis=0) + (lengths == 0)
    return np.clip(1 - products / len(Z), 0, 2)


class MMASelector(ClassifierSelectionRole):
    """Select the rows with the least confident predictions, averaged over views.

    Predictions for two weak views of an image are averaged, so a row is confident only
    if both predictions agree. The least confident rows are chosen directly, in
    proportion from clusters, or weighted by their density. Read more in the :ref:`User
    Guide <mma>`.

    Parameters
    ----------
    classifier
        Published: :class:`~sklabel.classification.MixMatchClassifier`.
    measure : {"margin", "least_confidence", "entropy", "std"}
        Measure of confidence: the largest probability minus the second (paper: diff2),
        the largest (max), minus the entropy, or the standard deviation of the
        probabilities.
    diversity : {"kmeans", "density"} or None
        How diversity is ensured. None: not at all (paper: direct). "kmeans": rows are
        chosen from ``n_clusters`` clusters in proportion to their sizes (kmeanprop).
        "density": uncertainty is multiplied by information density (id).
    n_clusters : int
        Clusters of "kmeans", at most the number of unlabeled rows.
    density : {"similarity", "distance"}
        Information density of a row: its mean cosine similarity to the unlabeled rows,
        mapped from [-1, 1] to [0, 1]; or its mean cosine distance, as in the released
        code, which prefers outliers.
    space : {"features", "input"}
        Space of clusters and density: features of the classifier (paper: embd) or X
        itself, images as rows of pixels.
    augment : "auto", callable or None
        Makes the views of a batch, for sklabel's classifiers. "auto": the weak policy
        for images, none for vectors and for other classifiers. None: predictions for
        the original rows, as in the released code.
    n_views : int
        Views of each row whose predictions are averaged, >= 1.
    random_state : int, RandomState instance or None
        Seed of views, clusters and their counts, and of the classifier if it has no
        ``random_state`` of its own.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows in labeling order: the highest score first.
    scores_ : ndarray of shape (n_rows,)
        Uncertainty of each row: its entropy, or 1 minus the measure; times its density
        with ``diversity="density"``. ``-inf`` for labeled rows and for files that
        cannot be read.
    classifier_ : estimator
        The fitted classifier. Absent if every row is labeled.

    Raises
    ------
    ValueError
        If more rows are requested than are unlabeled, if the classifier must be fitted
        and y has no labels, or if ``augment`` is given for a classifier that is not
        sklabel's.

    See Also
    --------
    BADGESelector : Uncertainty and diversity in one measure.
    sklabel.classification.MixMatchClassifier : The classifier of the paper.

    Notes
    -----
    The paper never restarts MixMatch: use one classifier with ``warm_start=True`` in a
    loop, and pass it as ``FrozenEstimator(classifier)``.

    Differences from the released code: its averaging over two views, which the paper
    describes, is never executed; clusters come from full k-means, not from
    mini-batches; "density" is also defined for "std"; ties go to the lowest row number.

    References
    ----------
    .. [1] S. Song, D. Berthelot, A. Rostamizadeh, "Combining MixMatch and active
       learning for better accuracy with fewer labels", 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import MMASelector
    >>> X, target = load_digits(return_X_y=True)
    >>> y = np.where(np.arange(len(X)) < 50, target, -1)
    >>> selector = MMASelector(20, diversity="kmeans", random_state=0).fit(X / 16, y)
    >>> bool(selector.scores_[selector.support_].mean() > 0.5)
    True
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    measure: Annotated[str, one_of(MEASURES)] = "margin"
    diversity: Literal["kmeans", "density"] | None = None
    n_clusters: Count = 20
    density: Literal["similarity", "distance"] = "similarity"
    space: Literal["features", "input"] = "features"
    augment: Literal["auto"] | Callable | None = "auto"
    n_views: Count = 2

    def _ask(self, pool, random):
        seed = random.randint(2**31 - 1)  # first: whatever seeds the classifier takes
        self.classifier_ = self._fit_classifier(pool.X, pool.y, random)
        random = np.random.RandomState(seed)
        probabilities = self._probabilities(pool.X, random.randint(2**31 - 1))
        rows = pool.candidates(np.isnan(probabilities).any(axis=1))
        _, scores = pool.nothing()
        confidences = confidence(probabilities[rows], self.measure)
        scores[rows] = (0 if self.measure == "entropy" else 1) - confidences
        key, chosen = confidences, np.arange(len(rows))
        if self.diversity == "density":
            distances = mean_cosine_distance(self._vectors(pool)[rows])
            near = 1 - distances / 2
            scores[rows] *= near if self.density == "similarity" else distances
            key = -scores[rows]
        elif self.diversity == "kmeans":
            Z, n_clusters = self._vectors(pool)[rows], min(self.n_clusters, len(rows))
            clusters, *_ = kmeans(Z, n_clusters, init="k-means++", random_state=random)
            chosen = least_confident_of_clusters(
                confidences, clusters, pool.n_samples, random
            )
        chosen = chosen[np.lexsort((chosen, key[chosen]))][: pool.n_samples]
        return rows[chosen], scores

    def _probabilities(self, X, seed):
        """Return probabilities of all rows, averaged over views if there are any."""
        classifier, rows = inner_estimator(self.classifier_, X)
        ours = isinstance(classifier, ClassificationRole)
        if not ours and self.augment not in ("auto", None):
            raise ValueError(
                f"augment={self.augment!r} makes views for sklabel's classifiers, but "
                f'the classifier is {type(classifier).__name__}: use augment="auto".'
            )
        samples = (
            classifier._check_X(rows) if ours and self.augment is not None else None
        )
        automatic = self.augment == "auto"
        if samples is None or (automatic and len(samples.sample_shape) < 3):
            return np.asarray(self.classifier_.predict_proba(X))
        if automatic:
            augment = build_augment("weak", samples.sample_shape)
        else:
            augment = clone(self.augment, safe=False)
        return _average_views(classifier, samples, augment, self.n_views, seed)

    def _vectors(self, pool):
        """Return the vectors for clusters or density."""
        if self.space == "features":
            return hidden_features(self.classifier_, pool.X)
        if pool.space is not None:
            return pool.space
        classifier, rows = inner_estimator(self.classifier_, pool.X)
        if not isinstance(classifier, ClassificationRole):
            return np.asarray(pool.X, dtype=np.float32).reshape(len(pool), -1)
        samples = classifier._check_X(rows)
        return classifier.net_.evaluate(samples, forward=lambda x: x.flatten(1)).numpy()


def _average_views(classifier, samples, augment, n_views, seed):
    """Return the mean of a classifier's probabilities over views of each row."""
    net = classifier.net_
    module = net.module_.eval()
    if isinstance(augment, torch.nn.Module):
        augment = augment.to(net.device)
    total = 0.0
    with seeded(seed, net.device):
        for _ in range(n_views):
            with torch.inference_mode(), net.autocast():
                views = [
                    module(augment(net.to_device(x))).float().cpu()
                    for x in net.get_iterator(samples)
                ]
            p = torch.cat(views).numpy()
            total = total + rescale(p, classifier.calibration_temperature_)
    total = total / n_views
    total[samples.bad] = np.nan
    return total
