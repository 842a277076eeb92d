"""Folds that keep groups together: copies of an image on one side of every split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import config_context
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from sklabel.model_selection import LabeledKFold, LabeledSplit


def copies(n=12, times=3, n_unlabeled=15, seed=0):
    """Return X of which each row stands there some times, y and the groups."""
    rng = np.random.default_rng(seed)
    X = np.repeat(rng.normal(size=(n, 3)), times, axis=0)
    y = np.repeat(np.arange(n) % 2, times)
    y[rng.permutation(len(y))[:n_unlabeled]] = -1
    return X, y, np.unique(X, axis=0, return_inverse=True)[1]


@pytest.mark.parametrize("cv", [LabeledKFold(3), LabeledSplit(3)])
def test_copies_are_never_in_both_parts(cv):
    X, y, groups = copies()
    tested = []
    for train, test in cv.split(X, y, groups):
        assert not np.intersect1d(groups[train], groups[test]).size
        assert (y[test] >= 0).all()
        # whatever is not a copy of what is tested is trained on
        rest = np.flatnonzero(~np.isin(groups, groups[test]))
        np.testing.assert_array_equal(train, rest)
        tested.append(test)
    np.testing.assert_array_equal(
        np.sort(np.concatenate(tested)), np.flatnonzero(y >= 0)
    )
    for train, test in LabeledKFold(3).split(X, y):  # without, they are
        if np.intersect1d(groups[train], groups[test]).size:
            break
    else:
        raise AssertionError("no copy was torn apart")


def test_copies_that_leak_raise_the_score_and_groups_lower_it():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 5)), rng.integers(0, 2, 30)  # nothing can be learned
    X, y, groups = np.tile(X, (4, 1)), np.tile(y, 4), np.tile(np.arange(30), 4)
    y[rng.permutation(120)[:40]] = -1
    model, cv = KNeighborsClassifier(1), LabeledKFold(3, shuffle=True, random_state=0)
    # it learns -1 as a class: only labeled rows are given
    labeled = y >= 0
    leak = cross_val_score(model, X[labeled], y[labeled], cv=cv).mean()
    honest = cross_val_score(
        model, X[labeled], y[labeled], cv=cv, groups=groups[labeled]
    ).mean()
    assert leak > 0.85 and honest < 0.7


def test_groups_reach_searches_and_routing():
    X, y, groups = copies(n_unlabeled=0)
    search = GridSearchCV(
        KNeighborsClassifier(), {"n_neighbors": [1, 3]}, cv=LabeledKFold(3)
    )
    plain = search.fit(X, y, groups=groups).cv_results_["mean_test_score"]
    with config_context(enable_metadata_routing=True):
        routed = search.fit(X, y, groups=groups).cv_results_["mean_test_score"]
    np.testing.assert_array_equal(plain, routed)


def test_too_few_groups_are_an_error():
    X, y, _ = copies()
    with pytest.raises(ValueError, match="number of groups of labeled rows, 2"):
        next(LabeledKFold(3).split(X, y, np.arange(len(y)) % 2))


def test_shuffled_groups_have_a_seed():
    X, y, groups = copies()
    splits = [
        [test.tolist() for _, test in cv.split(X, y, groups)]
        for cv in (
            LabeledKFold(3, shuffle=True, random_state=0),
            LabeledKFold(3, shuffle=True, random_state=0),
            LabeledKFold(3, shuffle=True, random_state=3),
        )
    ]
    assert splits[0] == splits[1] != splits[2]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4))
@pytest.mark.filterwarnings("ignore:The least populated class")
def test_any_groups_partition_the_labeled_rows(seed, n_splits):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(8, 60))
    groups = rng.integers(0, rng.integers(4, 12), n)
    y = rng.integers(-1, 3, n)
    labeled = np.flatnonzero(y >= 0)
    largest = np.bincount(y[labeled]).max() if len(labeled) else 0
    if largest < n_splits or len(np.unique(groups[labeled])) < n_splits:
        return
    X, tested = np.zeros((n, 1)), []
    for train, test in LabeledKFold(n_splits).split(X, y, groups):
        assert len(test) and len(train)
        assert not set(groups[train]) & set(groups[test])
        tested.append(test)
    np.testing.assert_array_equal(np.sort(np.concatenate(tested)), labeled)
