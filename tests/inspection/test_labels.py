"""Wrong labels that were planted are found."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from sklabel.inspection import suspicious_labels

X, TRUTH = load_digits(return_X_y=True)
NAMES = np.array("zero one two three four five six seven eight nine".split(), object)


def planted(n_labels, n_wrong, seed=0):
    rng = np.random.default_rng(seed)
    y = np.full(len(X), -1)
    rows = rng.choice(len(X), n_labels, replace=False)
    y[rows] = TRUTH[rows]
    wrong = rows[:n_wrong]
    y[wrong] = (y[wrong] + rng.integers(1, 10, n_wrong)) % 10
    return y, wrong


@pytest.mark.parametrize("n_labels, n_wrong", [(300, 15), (1000, 50)])
def test_planted_errors_are_found_with_their_true_class(n_labels, n_wrong):
    y, wrong = planted(n_labels, n_wrong)
    found = suspicious_labels(X, y)
    assert len(set(wrong) & set(found.rows)) >= 0.65 * n_wrong
    assert np.isin(found.rows[: n_wrong // 2], wrong).mean() >= 0.9
    assert np.isin(found.rows, wrong).mean() > 0.8
    hit = np.isin(found.rows, wrong)
    assert (found.suggested[hit] == TRUTH[found.rows[hit]]).mean() > 0.8
    np.testing.assert_array_equal(found.given, y[found.rows])
    assert (np.diff(found.margin) >= 0).all() and (found.margin < 0).all()


def test_right_labels_are_hardly_suspected():
    y, _ = planted(1000, 0)
    assert len(suspicious_labels(X, y).rows) < 0.03 * 1000


def test_given_probabilities_and_the_formula():
    y, _ = planted(500, 25)
    rows = np.flatnonzero(y >= 0)
    p = np.zeros((len(X), 10))
    model = LogisticRegression(C=1e-3, max_iter=1000)
    p[rows] = cross_val_predict(model, X[rows], y[rows], method="predict_proba")
    found = suspicious_labels(X, y, probabilities=p)
    expected = []
    thresholds = [p[y == k, k].mean() for k in range(10)]
    for row in rows:
        others = [k for k in range(10) if p[row, k] >= thresholds[k]]
        others = [k for k in others if p[row, k] > p[row, y[row]]]
        if others:
            best = max(others, key=lambda k: p[row, k])
            expected.append((p[row, y[row]] - p[row, best], row, best))
    expected.sort()
    np.testing.assert_array_equal(found.rows, [row for _, row, _ in expected])
    np.testing.assert_array_equal(found.suggested, [k for _, _, k in expected])


def test_names_embedders_and_the_same_seed():
    y, wrong = planted(400, 20)
    named = np.append(NAMES, None)[y]
    found = suspicious_labels(X, named, embedder=PCA(30, random_state=0))
    assert set(found.suggested) <= set(NAMES)
    assert len(set(found.rows) & set(wrong)) >= 13
    fitted = PCA(30, random_state=0).fit(X)
    again = suspicious_labels(X, named, embedder=fitted)
    np.testing.assert_array_equal(again.rows, found.rows)


def test_a_class_with_one_label_is_left_alone():
    y = np.where(np.arange(len(X)) < 100, TRUTH, -1)
    y[y == 3] = -1
    y[3] = 3
    assert 3 not in suspicious_labels(X, y).rows


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"X": X.reshape(-1, 8, 8)}, "give embedder="),
        ({"X": X[:50]}, "X has 50 rows"),
        ({"n_folds": 1}, "n_folds=1"),
        ({"probabilities": np.ones((3, 2))}, "probabilities have shape"),
        ({"y": np.full(len(X), -1)}, "no labeled row"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        suspicious_labels(**{"X": X, "y": planted(50, 0)[0], **arguments})
