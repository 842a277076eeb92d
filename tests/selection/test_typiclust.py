"""Tests of TypiClust: the released rule written again, and odd clusters."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

from sklabel.selection import TypiClustSelector
from sklabel.selection._typiclust import typicality


def released(Z, clusters, labeled, n_samples, n_neighbors=20, smallest=6):
    """The released rule, row by row: clusters in turn, the fewest labels first."""
    clusters = clusters.copy()
    kept = []
    for cluster in np.unique(clusters):
        size = int((clusters == cluster).sum())
        if size >= smallest:
            n_labels = int(((clusters == cluster) & labeled).sum())
            kept.append((n_labels, -size, cluster))
    kept = [cluster for *_, cluster in sorted(kept)]
    clusters[labeled] = -1
    rows = []
    for i in range(n_samples):
        own = np.flatnonzero(clusters == kept[i % len(kept)])
        k = min(n_neighbors, len(own) // 2)
        D = np.sort(cdist(Z[own], Z[own], "sqeuclidean"), axis=1)[:, 1 : k + 1]
        rows.append(own[(1 / (D.mean(axis=1) + 1e-5)).argmax()])
        clusters[rows[-1]] = -1
    return rows


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:600].astype(np.float32), y[:600]


@pytest.mark.parametrize("n_labeled", [0, 1, 12])
@pytest.mark.parametrize("settings", [{}, {"max_clusters": 5}, {"n_neighbors": 3}])
def test_golden_the_released_rule(settings, n_labeled, digits):
    X, y = digits
    labeled = np.zeros(600, dtype=bool)
    labeled[np.random.default_rng(0).choice(600, n_labeled, replace=False)] = True
    selector = TypiClustSelector(20, random_state=0, **settings)
    rows = selector.fit_select(X, np.where(labeled, y, -1))
    Z = X / np.linalg.norm(X, axis=1, keepdims=True)
    n_clusters = min(20 + n_labeled, settings.get("max_clusters", 500))
    assert len(set(selector.labels_)) == n_clusters
    want = released(Z, selector.labels_, labeled, 20, settings.get("n_neighbors", 20))
    np.testing.assert_array_equal(rows, want)


def test_clusters_without_a_label_come_first(digits):
    X, y = digits
    partly = np.where(np.arange(600) < 30, y, -1)
    selector = TypiClustSelector(10, random_state=0).fit(X, partly)
    covered = set(selector.labels_[:30])
    chosen = selector.labels_[selector.sample_indices_]
    assert not covered & set(chosen) and len(set(chosen)) == 10
    sizes = np.bincount(selector.labels_)[chosen]
    assert (np.diff(sizes) <= 0).all()


def test_small_clusters_come_last():
    rng = np.random.default_rng(0)
    X = np.concatenate(
        [rng.normal(10 * k, 0.1, (n, 2)) for k, n in enumerate([30, 30, 3])]
    )
    selector = TypiClustSelector(2, random_state=0, normalize=False, max_clusters=3)
    selector.set_params(n_samples=60).fit(X)
    assert selector.sample_indices_.max() < 60  # all of the two large ones
    selector.set_params(n_samples=63).fit(X)
    assert set(selector.sample_indices_[60:]) == {60, 61, 62}


def test_typicality_by_hand():
    Z = np.array([[0.0], [1.0], [3.0], [9.0]])
    np.testing.assert_allclose(
        typicality(Z, 2), 1 / (np.array([5.0, 2.5, 6.5, 50.0]) + 1e-5), rtol=1e-6
    )
    np.testing.assert_allclose(typicality(Z[:1], 20), [1e5])
