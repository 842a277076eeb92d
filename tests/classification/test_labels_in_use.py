"""What all classifiers do with labels: which are drawn, and how often."""

import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.exceptions import DataConversionWarning

from sklabel import CollapseWarning, classification
from sklabel._core.roles import classification as role
from sklabel.classification import (
    CLIPClassifier,
    EmbeddingClassifier,
    FixMatchClassifier,
    MixMatchClassifier,
    NoisyStudentClassifier,
    SimCLRv2Classifier,
    SupervisedClassifier,
)
from tests.test_common import make

# these have no course of training to watch
UNWATCHED = [CLIPClassifier, EmbeddingClassifier]
WATCHED = [
    cls
    for cls in (getattr(classification, name) for name in classification.__all__)
    if cls not in UNWATCHED
]


def drawn_labels(clf, x, y, sample_weight=None):
    """Return how often each labeled row is drawn in a long fit, summing to 1."""
    seen = []

    class Note(torch.nn.Module):
        def forward(self, x):
            seen.append(x[:, 0].round().int())
            return x

    clf.set_params(augment=Note()).fit(x, y, sample_weight)
    counts = np.bincount(torch.cat(seen).numpy(), minlength=len(x))
    return counts / counts.sum()


def numbered(n):
    """Return rows that bear their number."""
    return np.arange(n, dtype=np.float32)[:, None] * [[1.0, 0.1]]


def test_balance_is_that_of_the_rows_in_training():
    y = np.where(np.arange(100) < 95, 0, 1)
    clf = SupervisedClassifier(
        class_weight="balanced", calibration_size=0.6, batch_size=20, max_steps=200
    )
    shares = drawn_labels(clf.set_params(random_state=0), numbered(100), y)
    assert abs(shares[y == 1].sum() - 0.5) < 0.03
    assert (shares > 0).sum() == 40


@pytest.mark.parametrize("seed", range(4))
def test_rows_without_weight_are_for_nothing(seed, monkeypatch):
    y = np.where(np.arange(120) < 80, np.arange(120) % 2, -1)
    weight = np.where(np.arange(120) < 24, 1.0, 0.0)
    clf = FixMatchClassifier(
        calibration_size=0.5, max_steps=2, batch_size=4, random_state=seed
    )
    seen = []
    monkeypatch.setattr(
        role, "fit_temperature", lambda p, codes, given: seen.append(given) or 1.0
    )
    clf.fit(numbered(120), y, weight)
    np.testing.assert_array_equal(seen, np.ones((1, 12)))
    clf = SupervisedClassifier(batch_size=5, max_steps=20, random_state=seed)
    shares = drawn_labels(clf, numbered(120), y, weight)
    assert np.flatnonzero(shares).tolist() == list(range(24))


@pytest.mark.parametrize("cls", [*WATCHED, CLIPClassifier])
@pytest.mark.parametrize("change", [{}, {"alpha": 0.5}, {"include_labeled": True}])
def test_labeled_rows_without_weight_are_as_if_they_were_not_there(cls, change):
    if not set(change) <= set(cls().get_params()):
        return
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)), np.where(rng.random(60) < 0.6, -1, 0)
    y[y == 0] = np.arange((y == 0).sum()) % 2
    weight = np.where(y < 0, 0.0, rng.integers(0, 3, 60))  # of no use in unlabeled rows
    weightless = (y >= 0) & (weight == 0)
    x[weightless] += 9  # the scale of X is that of the others
    there = ~weightless
    assert 5 < weightless.sum() < there.sum() - 30
    found = []
    for rows in (slice(None), there):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clf = make(cls, max_steps=9, **change).fit(x[rows], y[rows], weight[rows])
        found.append(clf.predict_proba(x[there]))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "cls", [SupervisedClassifier, NoisyStudentClassifier, SimCLRv2Classifier]
)
def test_one_labeled_row_is_enough(cls):
    weight = np.zeros(20)
    weight[3] = 1
    clf = make(cls, batch_size=2, max_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf.fit(numbered(20), np.arange(20) % 2, weight)
    assert np.isfinite(clf.predict_proba(numbered(20))).all()


@pytest.mark.parametrize("cls", [FixMatchClassifier, MixMatchClassifier])
def test_batches_of_one_labeled_row(cls):
    for y in (np.arange(20) % 2, np.where(np.arange(20) < 6, np.arange(20) % 2, -1)):
        clf = cls(batch_size=1, max_steps=3, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clf.fit(numbered(20), y)
        assert np.isfinite(clf.predict_proba(numbered(20))).all()


def test_a_class_whose_labels_are_of_no_use_is_named():
    y = np.array(["ant", "bee", "cat"] * 10, object)
    clf = SupervisedClassifier(max_steps=2, random_state=0)
    with pytest.warns(
        UserWarning, match="No labeled row of class bee, cat can be used"
    ):
        clf.fit(numbered(30), y, y == "ant")
    clf.set_params(class_weight={"bee": 0})
    with pytest.warns(
        UserWarning, match="No labeled row of class bee can be used: .*class_weight"
    ):
        clf.fit(numbered(30), y)


def test_a_score_names_what_is_wrong():
    clf = SupervisedClassifier(max_steps=2, random_state=0)
    clf.fit(numbered(30), np.arange(30) % 2)
    with pytest.raises(ValueError, match="X has 30 rows, y has 20"):
        clf.score(numbered(30), np.arange(20) % 2)
    with pytest.raises(ValueError, match="is 0 for every labeled row"):
        clf.score(numbered(30), np.arange(30) % 2, np.zeros(30))
    with pytest.raises(ValueError, match="finite and not negative"):
        clf.score(numbered(30), np.arange(30) % 2, -np.ones(30))


def test_a_column_of_labels_is_told_of_once():
    with pytest.warns(DataConversionWarning) as seen:
        SupervisedClassifier(max_steps=2).fit(numbered(30), np.arange(30)[:, None] % 2)
    assert sum(w.category is DataConversionWarning for w in seen) == 1


# -- the rows withheld


@pytest.mark.parametrize("cls", WATCHED)
def test_a_warm_start_withholds_the_same_rows(cls, monkeypatch):
    held, hold_out = [], role.hold_out

    def spy(*given):
        rest, rows = hold_out(*given)
        held.append(rows.tolist())
        return rest, rows

    monkeypatch.setattr(role, "hold_out", spy)
    x, y = numbered(60), np.where(np.arange(60) < 40, np.arange(60) % 2, -1)
    clf = make(cls, calibration_size=12, warm_start=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in (0, 1, None):
            clf.set_params(random_state=seed).fit(x, y)
        clf.set_params(warm_start=False, random_state=1).fit(x, y)
    assert held[0] == held[1] == held[2] != held[3]


@pytest.mark.parametrize("cls", WATCHED)
def test_withheld_rows_are_watched(cls):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 4)).astype(np.float32)
    truth = np.array(["no", "yes"])[(x[:, 0] > 0).astype(int)]
    y = truth.astype(object)
    y[60:] = -1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = make(cls).fit(x, y)
        clf = make(cls, calibration_size=0.5).fit(x, y)
    assert all("held_accuracy" not in epoch for epoch in plain.net_.history)
    course = clf.net_.history[:, "held_accuracy"]
    assert len(course) == clf.n_iter_ and all(0 <= a <= 1 for a in course)
    # the last figure is that of the classifier as it is
    watch = clf.net_.watch.keywords
    found = clf.predict(x[watch["rows"]]) == clf.classes_[watch["codes"]]
    assert len(found) == 30 and course[-1] == found.mean()
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(again.predict(x), clf.predict(x))


def test_accuracy_that_falls_late_is_told():
    def check(n_rows, *course, **last):
        history = [{"held_accuracy": a} for a in course]
        history[-1] |= last
        clf = SupervisedClassifier()
        clf.net_ = SimpleNamespace(history=history)
        clf._check_held(n_rows)

    with pytest.warns(CollapseWarning, match="40 withheld rows fell from 90% to 40%"):
        check(40, 0.5, 0.9, 0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(4, 0.5, 1.0, 0.5)  # may be chance
        for n_rows, last in ((10, 0.8), (100, 0.98), (1000, 0.998)):
            check(n_rows, 1.0, last)
        check(100, 1.0, 0.5, stage="distill")  # of a network that begins


def test_what_is_set_is_no_remedy():
    shares, prior = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    clf = FixMatchClassifier(class_weight="balanced")
    clf.classes_ = np.array([0, 1])
    with pytest.warns(CollapseWarning) as seen:
        settings = {"class_weight": "balanced", "class_thresholds": True}
        clf._check_shares(shares, prior, "rows", 100, "a longer fit", **settings)
    text = "try class_thresholds=True or a longer fit or more labels of rare classes."
    assert str(seen[0].message).endswith(text)


NEUTRAL = {
    "ones": lambda y: {"sample_weight": np.ones(len(y))},
    "a constant": lambda y: {"sample_weight": np.full(len(y), 0.3)},
    "one number": lambda y: {"sample_weight": 7},
    "the largest": lambda y: {"sample_weight": np.full(len(y), 1.7e308)},
    "the smallest": lambda y: {"sample_weight": np.full(len(y), 5e-324)},
    "of unlabeled rows": lambda y: {"sample_weight": np.where(y >= 0, 2.0, np.nan)},
    "balanced": lambda y: {"class_weight": "balanced"},
    "balanced and equal": lambda y: {
        "class_weight": "balanced",
        "sample_weight": np.full(len(y), 0.1),
    },
    "of classes": lambda y: {"class_weight": {0: 0.7, 1: 0.7}},
    "undone": lambda y: {
        "class_weight": {0: 3.0, 1: 0.7},
        "sample_weight": np.where(y == 0, 0.7, 3.0),
    },
}


# what is left when rows are withheld need not be balanced, and class_weight does not
# count in the calibration
NOT_OF_SOME_ROWS = {"balanced", "balanced and equal", "undone"}


@pytest.mark.parametrize("calibration_size", [None, 12])
@pytest.mark.parametrize("name", classification.__all__)
def test_neutral_weights_are_the_same_as_none(name, calibration_size):
    cls = getattr(classification, name)
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    y = np.where(np.arange(60) < 40, np.arange(60) % 2, -1)

    def probabilities(sample_weight=None, **given):
        clf = make(cls, calibration_size=calibration_size, random_state=0, **given)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return clf.fit(x, y, sample_weight).predict_proba(x)

    expected = probabilities()
    for label, given in NEUTRAL.items():
        if calibration_size is not None and label in NOT_OF_SOME_ROWS:
            continue
        found = probabilities(**given(y))
        np.testing.assert_array_equal(found, expected, err_msg=label)
    if name not in ("CCLClassifier", "CLIPClassifier"):  # which are not drawn by them
        weight = np.where(y == 0, 1.0, 9.0)
        assert (probabilities(sample_weight=weight) != expected).any()


@pytest.mark.parametrize("scale", [2.0**1000, 2.0**-1000, 1e308 / 9, 1e-300])
def test_only_the_ratio_of_weights_counts(scale):
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    y = np.where(np.arange(60) < 40, np.arange(60) % 2, -1)
    weight = np.arange(60) % 7 + 1.0
    clf = make(FixMatchClassifier, calibration_size=12)
    expected = clf.fit(x, y, weight)
    p, score = expected.predict_proba(x), expected.score(x, y, weight)
    found = clf.fit(x, y, weight * scale)
    np.testing.assert_allclose(found.predict_proba(x), p, rtol=1e-4)
    assert found.score(x, y, weight * scale) == pytest.approx(score)


def test_names_of_classes_are_known_whatever_they_look_like():
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    truth = np.array(["none", "n/a"])[(x[:, 0] > 0).astype(int)]
    y = truth.astype(object)
    y[20:] = ["", None, -1, np.nan] * 5
    clf = make(CLIPClassifier, class_names=["none", "n/a"], max_steps=3).fit(x, y)
    assert clf.classes_.tolist() == ["n/a", "none"]
    assert 0 <= clf.score(x, truth) <= 1
    with pytest.raises(ValueError, match="'NA'"):
        clf.score(x, ["NA"] * 40)
    with pytest.raises(ValueError, match="'none'|'n/a'"):
        make(CLIPClassifier, max_steps=3).fit(x, y)


@pytest.mark.parametrize("cls", [*WATCHED, EmbeddingClassifier])
def test_every_container_of_labels_trains_the_same(cls):
    pa = pytest.importorskip("pyarrow")
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    truth = (x[:, 0] > 0).astype(int)
    known = np.arange(40) < 20
    plain = np.where(known, truth, -1)
    forms = [
        plain,
        np.ma.array(np.where(known, truth, 1 - truth), mask=~known),
        pa.array([int(v) if v >= 0 else None for v in plain]),
        torch.tensor(plain, dtype=torch.float64, requires_grad=True),
        np.array(["no", "yes", "  "])[plain],
        np.array([False, True, None], dtype=object)[plain],
    ]
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for y in forms:
            clf = make(cls).fit(x, y)
            found.append((clf.score(x, y), clf.predict_proba(x)))
    for score, p in found[1:]:
        assert score == found[0][0]
        np.testing.assert_array_equal(p, found[0][1])
