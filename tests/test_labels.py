"""The public names for partly labeled y, and the table of marks in the guide."""

import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.multiclass import (
    OneVsOneClassifier,
    OneVsRestClassifier,
    OutputCodeClassifier,
)
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.semi_supervised import SelfTrainingClassifier

from sklabel.classification import SupervisedClassifier
from sklabel.labels import is_labeled, keep_as_class, partial_labels
from sklabel.model_selection import (
    LabeledKFold,
    labeled_cross_val_predict,
    labeled_scorer,
)

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
TRUTH = (X[:, 0] > 0).astype(int)


@pytest.mark.parametrize(
    "answers, dtype",
    [
        ([3, 7, 3], np.int64),
        (np.array([3, 7, 3], np.uint8), np.int64),
        (["a", "b", "a"], object),
        ([True, False, True], object),
        (pd.Series(["a", "b", "a"]), object),
        ({1: "b", 4: "a", 0: "a"}, object),
        (pd.Series([3, 3, 7], index=[0, 4, 1]), np.int64),
    ],
)
def test_partial_labels(answers, dtype):
    y = partial_labels(6, [4, 1, 0], answers)
    assert y.dtype == dtype and len(y) == 6
    assert is_labeled(y).tolist() == [True, True, False, False, True, False]
    assert y[4] == y[0] != y[1] and y[2] == -1


def test_partial_labels_of_some():
    assert partial_labels(3, [0, 2], [5, None]).tolist() == [5, -1, -1]
    assert partial_labels(3, [0, 2], {2: 5}).tolist() == [-1, -1, 5]
    assert partial_labels(3, [], []).tolist() == [-1, -1, -1]
    assert partial_labels(2, [0, 1], [None, ""]).tolist() == [-1, -1]
    for answers, error in (([1], ValueError), ({1, 2}, TypeError), ("ab", TypeError)):
        with pytest.raises(error):
            partial_labels(3, [0, 2], answers)
    for rows in ([0, 3], [0, 0], [-1, 0], [0.0, 1.0], [True, False]):
        with pytest.raises(ValueError, match="indices"):
            partial_labels(3, rows, [1, 2])


def test_keep_as_class_says_what_it_does_not_find():
    with pytest.raises(ValueError, match="no label 'NA'"):
        keep_as_class(["none", "a"], "NA")
    with pytest.raises(TypeError, match="must be texts"):
        keep_as_class(["none", "a"], None)


def test_a_class_named_none_is_fitted_scored_folded_and_predicted():
    names = np.array(["none", "scratch"])[TRUTH]
    y = keep_as_class(names, "none")
    y[40:] = -1
    clf = SupervisedClassifier(max_steps=60, random_state=0, lr=0.01)
    with pytest.raises(ValueError, match="'none'"):
        clf.fit(X, names)
    clf.fit(X, y)
    assert clf.classes_.tolist() == ["none", "scratch"]
    found = clf.predict(X)
    assert set(found) == {"none", "scratch"}
    # y as it was is understood where the classes are known
    assert clf.score(X, names) == labeled_scorer()(clf, X, names)
    assert clf.score(X, names) == np.mean(found == names) > 0.8
    assert labeled_scorer("neg_log_loss")(clf, X, names) < 0
    folded = labeled_cross_val_predict(clf, X, y, cv=LabeledKFold(2))
    assert set(folded[:40]) == {"none", "scratch"}
    again = pickle.loads(pickle.dumps(clf))
    assert again.score(X, names) == clf.score(X, names)
    # what was predicted may be learned
    SupervisedClassifier(max_steps=2, random_state=0).fit(X, clf.transduction_)


def test_masked_labels_are_neither_learned_nor_scored():
    wrong = np.ma.array(TRUTH.copy(), mask=np.arange(60) >= 40)
    wrong.data[40:] = 1 - TRUTH[40:]
    plain = np.where(np.arange(60) < 40, TRUTH, -1)
    fits = [
        SupervisedClassifier(max_steps=20, random_state=0).fit(X, y)
        for y in (wrong, plain)
    ]
    np.testing.assert_array_equal(*[clf.predict_proba(X) for clf in fits])
    assert fits[0].score(X, wrong) == fits[0].score(X, plain)
    for mine, theirs in zip(
        LabeledKFold(2).split(X, wrong), LabeledKFold(2).split(X, plain), strict=True
    ):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])


# -- within scikit-learn's meta-estimators, and the tables of the guide

GUIDE = Path(__file__).parents[1] / "docs/user_guide/labels.rst"


def rows_of(title):
    """Return the cells of the simple table under a title of the guide."""
    text = GUIDE.read_text(encoding="utf-8").split(f"\n{title}\n", 1)[1]
    lines = text.split("\n")
    rules = [i for i, line in enumerate(lines) if re.fullmatch(r"=+( +=+)+", line)]
    starts = [m.start() for m in re.finditer("=+", lines[rules[0]])]
    rows = []
    for line in lines[rules[1] + 1 : rules[2]]:
        cells = [
            line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)
        ]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [" ".join(pair).strip() for pair in zip(rows[-1], cells)]
    return rows


def test_the_table_of_marks():
    pytest.importorskip("pyarrow")
    names = {"np": np, "pd": pd, "pa": __import__("pyarrow")}
    table = rows_of("What marks an unlabeled row")
    assert len(table) > 10
    for cell, meaning in table:
        for example in re.findall("`([^`]+)`", cell):
            entry = eval(example, names)  # the guide is ours
            y = entry if np.ndim(entry) else [entry]
            if meaning.startswith("error"):
                with pytest.raises(ValueError):
                    is_labeled(y)
            else:
                assert is_labeled(y)[-1] == (meaning != "no label"), example


LR = {"lr": [0.01, 0.02]}
WITHIN = {
    "Pipeline": make_pipeline,
    "FrozenEstimator": lambda c: c,
    "GridSearchCV": lambda c: GridSearchCV(c, LR, cv=LabeledKFold(2)),
    "RandomizedSearchCV": lambda c: RandomizedSearchCV(
        c, LR, n_iter=1, cv=LabeledKFold(2), random_state=0
    ),
    "SelfTrainingClassifier": lambda c: SelfTrainingClassifier(c, max_iter=1),
    "MultiOutputClassifier": MultiOutputClassifier,
    "ClassifierChain": ClassifierChain,
    "AdaBoostClassifier": lambda c: AdaBoostClassifier(c, n_estimators=2),
    "VotingClassifier": lambda c: VotingClassifier([("c", c)], voting="soft"),
    "StackingClassifier": lambda c: StackingClassifier(
        [("c", c)], LogisticRegression(), cv=2
    ),
    "BaggingClassifier": lambda c: BaggingClassifier(c, 2, random_state=0),
    "OneVsRestClassifier": OneVsRestClassifier,
    "OneVsOneClassifier": OneVsOneClassifier,
    "OutputCodeClassifier": lambda c: OutputCodeClassifier(c, random_state=0),
    "CalibratedClassifierCV": lambda c: CalibratedClassifierCV(c, cv=2),
    "FixedThresholdClassifier": FixedThresholdClassifier,
    "TunedThresholdClassifierCV": lambda c: TunedThresholdClassifierCV(c, cv=2),
}
META = "Within scikit-learn's meta-estimators"
Y = np.where(np.arange(60) < 40, TRUTH, -1)


class _Witness(SupervisedClassifier):
    """Tells whether it has got the marks as they are, and what as features."""

    seen = []

    def fit(self, X, y, sample_weight=None):
        self.seen.append((np.asarray(X), np.asarray(y), sample_weight))
        return super().fit(X, y, sample_weight)


def what_becomes_of(name, mark):
    """Return what the table says of a meta-estimator."""
    y = np.where(Y < 0, mark, Y)
    if name in ("MultiOutputClassifier", "ClassifierChain"):
        y = np.stack([y, y], 1)
    _Witness.seen.clear()
    model = WITHIN[name](_Witness(max_steps=4, random_state=0))
    try:
        model.fit(X, y)
    except ValueError:
        return "refused"
    if -1 in np.ravel(model.classes_):
        return "as a class"
    seen = _Witness.seen
    if any(-1 in x[:, 4:] for x, _, _ in seen):
        return "as a value"
    weights = seen[-1][2]
    if weights is not None:
        return "as errors"
    assert set(np.ravel(model.predict(X)).tolist()) <= {0, 1}
    return "works"


def test_the_table_of_meta_estimators():
    table = rows_of(META)
    assert [row[0].strip("`") for row in table] == list(WITHIN)
    for name, with_minus_one, with_nan, _ in table:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = [what_becomes_of(name.strip("`"), mark) for mark in (-1, np.nan)]
        assert found == [with_minus_one, with_nan], name


@pytest.mark.parametrize("names", [False, True])
def test_the_ways_that_work_within_meta_estimators(names):
    truth = np.array(["no", "yes"], object)[TRUTH] if names else TRUTH
    y = truth.copy()
    y[40:] = -1
    labeled = is_labeled(y)
    given = y[labeled].tolist()
    clf = SupervisedClassifier(max_steps=60, lr=0.01)
    fitted = [clone(clf).set_params(random_state=i).fit(X, y) for i in range(2)]
    frozen = [(str(i), FrozenEstimator(c)) for i, c in enumerate(fitted)]
    models = [
        VotingClassifier(frozen, voting="soft").fit(X[labeled], given),
        CalibratedClassifierCV(frozen[0][1]).fit(X[labeled], given),
    ]
    positive = {"pos_label": "yes"} if names else {}
    models.append(
        FixedThresholdClassifier(frozen[0][1], threshold=0.5, **positive).fit(
            X[labeled], given
        )
    )
    if not names:
        tuned = TunedThresholdClassifierCV(frozen[0][1], cv="prefit", refit=False)
        models.append(tuned.fit(X[labeled], given))
    for model in models:
        assert set(model.classes_) == set(given)
        assert np.mean(np.asarray(model.predict(X)) == truth) > 0.8
    np.testing.assert_allclose(
        models[0].predict_proba(X), np.mean([c.predict_proba(X) for c in fitted], 0)
    )
    p = labeled_cross_val_predict(fitted[0], X, y, cv=2, method="predict_proba")
    stack = LogisticRegression().fit(p[labeled], given)
    assert stack.score(p[labeled], given) > 0.8
    outputs = MultiOutputClassifier(clf).fit(
        X, np.stack([Y, np.where(Y < 0, Y, 1 - Y)], 1)
    )
    assert (outputs.predict(X).sum(1) == 1).mean() > 0.8
