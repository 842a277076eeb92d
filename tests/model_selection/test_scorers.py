"""Scores of probabilities where a test part lacks a class, or a training part does."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer, log_loss, roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.neighbors import KNeighborsClassifier
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.svm import SVC

from sklabel.classification import SupervisedClassifier
from sklabel.model_selection import LabeledKFold, labeled_scorer

OF_PROBABILITIES = [
    "average_precision",
    "d2_log_loss_score",
    "neg_brier_score",
    "neg_log_loss",
    "roc_auc_ovo",
    "roc_auc_ovo_weighted",
    "roc_auc_ovr",
    "roc_auc_ovr_weighted",
    "top_k_accuracy",
]
X, TRUTH = load_digits(return_X_y=True)
X = X / 16
MODEL = LogisticRegression(max_iter=200).fit(X[:300], TRUTH[:300])
ROWS = np.arange(300, 500)


def few():
    """Return y with one to four labels of each digit."""
    rng, y = np.random.default_rng(0), np.full(len(X), -1)
    for c in range(10):
        y[rng.permutation(np.flatnonzero(TRUTH == c))[: 1 + c % 4]] = c
    return y


@pytest.mark.parametrize("name", OF_PROBABILITIES)
@pytest.mark.filterwarnings("ignore")
def test_folds_that_lack_a_class_have_a_score(name):
    model = SelfTrainingClassifier(KNeighborsClassifier(3))
    scores = cross_val_score(
        model, X, few(), cv=LabeledKFold(4), scoring=labeled_scorer(name)
    )
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", OF_PROBABILITIES)
def test_where_no_class_is_lacking_it_is_that_of_scikit_learn(name):
    y = np.where(ROWS % 2, TRUTH[ROWS], -1)
    mine = labeled_scorer(name)(MODEL, X[ROWS], y)
    theirs = get_scorer(name)(MODEL, X[ROWS][y >= 0], TRUTH[ROWS][y >= 0])
    assert mine == theirs


def test_the_loss_of_rows_that_lack_a_class():
    rows = ROWS[TRUTH[ROWS] != 3]
    found = labeled_scorer("neg_log_loss")(MODEL, X[rows], TRUTH[rows])
    p = MODEL.predict_proba(X[rows])
    assert found == pytest.approx(-log_loss(TRUTH[rows], p, labels=range(10)))
    by_hand = np.log(p[np.arange(len(rows)), TRUTH[rows]]).mean()
    assert found == pytest.approx(by_hand)
    # one class only
    one = ROWS[TRUTH[ROWS] == 4]
    by_hand = np.log(MODEL.predict_proba(X[one])[:, 4]).mean()
    found = labeled_scorer("neg_log_loss")(MODEL, X[one], TRUTH[one])
    assert found == pytest.approx(by_hand)


@pytest.mark.parametrize("average", ["", "_weighted"])
@pytest.mark.parametrize("kind", ["ovr", "ovo"])
def test_areas_are_means_over_what_is_there(kind, average):
    y = np.array(list("abcdefghij"))[TRUTH]
    model = LogisticRegression(max_iter=200).fit(X[:300], y[:300])
    rows = ROWS[np.isin(y[ROWS], list("bdg"))]
    found = labeled_scorer(f"roc_auc_{kind}{average}")(model, X[rows], y[rows])
    p, areas, weights = model.predict_proba(X[rows]), [], []
    for a, b in (("b", "d"), ("b", "g"), ("d", "g")):
        if kind == "ovo":
            pair = np.isin(y[rows], [a, b])
            areas.append(
                np.mean(
                    [
                        roc_auc_score(y[rows][pair] == c, p[pair, ord(c) - ord("a")])
                        for c in (a, b)
                    ]
                )
            )
            weights.append(pair.mean())
    for c in "bdg":
        if kind == "ovr":
            areas.append(roc_auc_score(y[rows] == c, p[:, ord(c) - ord("a")]))
            weights.append((y[rows] == c).mean())
    expected = np.average(areas, weights=weights if average else None)
    assert found == pytest.approx(expected)


def test_a_class_that_was_not_in_training_has_probability_zero():
    seen = TRUTH[:300] < 9
    model = LogisticRegression(max_iter=200).fit(X[:300][seen], TRUTH[:300][seen])
    rows = ROWS[TRUTH[ROWS] >= 7]
    p = np.column_stack([model.predict_proba(X[rows]), np.zeros(len(rows))])
    found = labeled_scorer("neg_brier_score")(model, X[rows], TRUTH[rows])
    by_hand = np.square(p - np.eye(10)[TRUTH[rows]]).sum(1).mean()
    assert found == pytest.approx(-by_hand, rel=1e-6) or found == pytest.approx(
        -by_hand / 2, rel=1e-6
    )
    assert np.isfinite(labeled_scorer("neg_log_loss")(model, X[rows], TRUTH[rows]))
    assert 0 < labeled_scorer("roc_auc_ovr")(model, X[rows], TRUTH[rows]) < 1
    svc = SVC().fit(X[:300][seen], TRUTH[:300][seen])
    assert 0 < labeled_scorer("top_k_accuracy")(svc, X[rows], TRUTH[rows]) < 1
    # of two classes, of which the rows have a third
    two = TRUTH[:300] < 2
    svc = SVC().fit(X[:300][two], TRUTH[:300][two])
    rows = ROWS[TRUTH[ROWS] < 3]
    assert 0 < labeled_scorer("top_k_accuracy")(svc, X[rows], TRUTH[rows]) <= 1


def test_a_choice_is_asked_for_where_scikit_learn_asks():
    rows = ROWS[TRUTH[ROWS] < 4]
    with pytest.raises(ValueError, match="roc_auc_ovr"):
        labeled_scorer("roc_auc")(MODEL, X[rows], TRUTH[rows])


def test_weights_count():
    rows = ROWS[TRUTH[ROWS] < 4]
    weights = np.where(TRUTH[rows] == 1, 3.0, 1.0)
    found = labeled_scorer("neg_log_loss")(
        MODEL, X[rows], TRUTH[rows], sample_weight=weights
    )
    p = MODEL.predict_proba(X[rows])[np.arange(len(rows)), TRUTH[rows]]
    assert found == pytest.approx(np.average(np.log(p), weights=weights))


@pytest.mark.filterwarnings("ignore")
def test_in_searches_with_an_estimator_of_ours():
    y = np.where(np.arange(100) < 17, np.arange(100) % 6, -1)
    x = X[:100]
    clf = SupervisedClassifier(max_steps=3, random_state=0)
    scoring = {n: labeled_scorer(n) for n in ("neg_log_loss", "roc_auc_ovr")}
    result = cross_validate(clf, x, y, cv=LabeledKFold(3), scoring=scoring)
    assert all(np.isfinite(result[f"test_{name}"]).all() for name in scoring)
    search = GridSearchCV(
        clf, {"lr": [0.01, 0.1]}, cv=LabeledKFold(3), scoring=scoring["neg_log_loss"]
    )
    assert np.isfinite(search.fit(x, y).cv_results_["mean_test_score"]).all()


def test_scorers_of_ones_own_are_called_as_they_are():
    def own(estimator, X, y):
        return len(np.unique(y))

    rows = ROWS[TRUTH[ROWS] < 4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert labeled_scorer(own)(MODEL, X[rows], TRUTH[rows]) == 4
