"""The public names for partly labeled y, and the table of marks in the guide."""

import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

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


# -- the guide

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
    for example, meaning in table:
        entry = eval(example.strip("`"), names)  # the guide is ours
        if not hasattr(entry, "__len__") or isinstance(entry, str):
            entry = [entry]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if meaning.startswith("error"):
                with pytest.raises(ValueError):
                    is_labeled(entry)
            else:
                found = is_labeled(entry)
                assert found[-1] == (meaning != "no label"), example
