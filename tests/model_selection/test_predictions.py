"""Predictions out of fold: no labeled row is seen by the model that predicts it."""

import warnings

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    RepeatedStratifiedKFold,
    ShuffleSplit,
    cross_val_predict,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import (
    LabelPropagation,
    LabelSpreading,
    SelfTrainingClassifier,
)

from sklabel import classification
from sklabel.active_learning import ActiveLearningClassifier
from sklabel.labels import keep_as_class
from sklabel.model_selection import LabeledKFold, labeled_cross_val_predict
from tests.test_common import make

N = 90
TRUTH = np.arange(N) % 3
X = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
X += 3 * np.eye(3, 4, dtype=np.float32)[TRUTH]
LABELED = np.random.default_rng(1).permutation(N)[:45]
Y = np.full(N, -1)
Y[LABELED] = TRUTH[LABELED]
KNOWN = Y >= 0


class Memory(ClassifierMixin, BaseEstimator):
    """Knows the rows of its training by heart, and says 0 of others."""

    def fit(self, X, y):
        self.known_ = dict(zip(map(bytes, X), y.tolist(), strict=True))
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.array([self.known_.get(bytes(x), 0) for x in X])


def test_no_row_is_predicted_by_a_model_that_has_seen_it():
    found = labeled_cross_val_predict(Memory(), X, Y)
    assert (found[KNOWN] == 0).all() and (found[~KNOWN] == -1).all()
    assert (cross_val_predict(Memory(), X[KNOWN], Y[KNOWN]) == 0).all()


def test_it_is_that_of_scikit_learn_where_every_row_is_labeled():
    model = LogisticRegression()
    for method in ("predict", "predict_proba"):
        mine = labeled_cross_val_predict(model, X, TRUTH, method=method)
        theirs = cross_val_predict(model, X, TRUTH, method=method)
        np.testing.assert_array_equal(mine, theirs)


SEMI = [
    SelfTrainingClassifier(KNeighborsClassifier()),
    LabelSpreading(gamma=0.5),
    LabelPropagation(gamma=0.5),
    make_pipeline(StandardScaler(), LabelSpreading(gamma=0.5)),
    KNeighborsClassifier(),
    ActiveLearningClassifier(LogisticRegression(), n_samples=9, n_rounds=1),
    GridSearchCV(
        SelfTrainingClassifier(KNeighborsClassifier()),
        {"threshold": [0.7, 0.9]},
        cv=LabeledKFold(2),
    ),
]


@pytest.mark.parametrize("form", ["int", "names", "bool", "None", "NaN", "blank"])
@pytest.mark.parametrize("model", SEMI, ids=lambda m: type(m).__name__)
def test_every_mark_with_every_semi_supervised_classifier(model, form):
    y = Y
    if form == "names":
        y = np.array(["ant", "bee", "cow", -1], dtype=object)[Y]
    elif form == "blank":
        y = np.array(["ant", "bee", "cow", " "])[Y]
    elif form == "bool":
        y = np.where(KNOWN, (TRUTH == 1).astype(object), -1)
    elif form == "None":
        y = np.where(KNOWN, Y.astype(object), None)
    elif form == "NaN":
        y = np.where(KNOWN, Y, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = labeled_cross_val_predict(model, X, y, cv=3)
        p = labeled_cross_val_predict(model, X, y, cv=3, method="predict_proba")
    truth = (TRUTH == 1) if form == "bool" else TRUTH
    if form in ("names", "blank"):
        truth = np.array(["ant", "bee", "cow"])[TRUTH]
    assert np.mean(found[KNOWN] == truth[KNOWN]) > 0.8
    assert all(value == -1 for value in found[~KNOWN].tolist())
    assert p.shape == (N, 2 if form == "bool" else 3)
    np.testing.assert_allclose(p[KNOWN].sum(1), 1, rtol=1e-5)
    assert np.isnan(p[~KNOWN]).all()


@pytest.mark.parametrize("name", classification.__all__)
def test_every_classifier_of_ours(name):
    y = np.array(["ant", "bee", "cow", -1], dtype=object)[Y]
    model = make(getattr(classification, name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = labeled_cross_val_predict(model, X, y, cv=2)
        p = labeled_cross_val_predict(model, X, y, cv=2, method="predict_proba")
    assert set(found[KNOWN]) <= {"ant", "bee", "cow"}
    columns = np.array(["ant", "bee", "cow"])[p[KNOWN].argmax(1)]
    np.testing.assert_array_equal(columns, found[KNOWN].astype(str))


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_a_class_that_a_training_part_lacks_has_probability_zero():
    y = Y.copy()
    rare = np.flatnonzero(y == 2)
    y[rare[1:]] = -1
    p = labeled_cross_val_predict(
        KNeighborsClassifier(3), X, y, cv=3, method="predict_proba"
    )
    assert p[rare[0], 2] == 0 and p[rare[0]].sum() == 1


def test_groups_stay_together():
    x, y = np.tile(X[:30], (3, 1)), np.tile(TRUTH[:30], 3)
    groups = np.tile(np.arange(30), 3)
    y[60:] = -1
    found = labeled_cross_val_predict(Memory(), x, y, cv=5, groups=groups)
    assert (found[y >= 0] == 0).all()
    torn = labeled_cross_val_predict(
        Memory(), x, y, cv=LabeledKFold(5, shuffle=True, random_state=0)
    )
    assert (torn[y >= 0] != 0).any()


def test_splitters_of_scikit_learn_fold_the_labeled_rows():
    found = labeled_cross_val_predict(Memory(), X, Y, cv=KFold(4))
    assert (found[KNOWN] == 0).all() and (found[~KNOWN] == -1).all()
    for cv in (ShuffleSplit(2, random_state=0), RepeatedStratifiedKFold(n_splits=3)):
        with pytest.raises(ValueError, match="each labeled row once"):
            labeled_cross_val_predict(Memory(), X, Y, cv=cv)


def test_jobs_and_kept_names():
    y = keep_as_class(np.array(["ant", "none", "cow", None], object)[Y], "none")
    model = SelfTrainingClassifier(KNeighborsClassifier())
    with parallel_config("threading"):
        found = [
            labeled_cross_val_predict(model, X, y, cv=2, n_jobs=n_jobs)
            for n_jobs in (None, 2)
        ]
    np.testing.assert_array_equal(*found)


def test_what_is_refused():
    with pytest.raises(ValueError, match="not one of .predict., .predict_proba."):
        labeled_cross_val_predict(Memory(), X, Y, method="decision_function")
    with pytest.raises(ValueError, match="no labeled row"):
        labeled_cross_val_predict(Memory(), X, np.full(N, -1))
    with pytest.raises(ValueError, match="X has 90 rows, y has 80"):
        labeled_cross_val_predict(Memory(), X, Y[:80])
    with pytest.raises(ValueError, match="'nan'"):
        labeled_cross_val_predict(Memory(), X, np.where(KNOWN, "a", "nan"))
