"""What every classifier bears: few, wrong, missing and unequal labels of any type."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import cross_validate

from sklabel import classification
from sklabel.embedding import AutoencoderTransformer
from sklabel.model_selection import LabeledKFold
from tests.test_common import SHORT, SHORTEST, make

CLASSES = [getattr(classification, name) for name in classification.__all__]
every_classifier = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)

NAMES = np.array(["ant", "bee", "cow"], dtype=object)
N = 150
TRUTH = np.arange(N) % 3
X = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
X += 4 * np.eye(3, 5, dtype=np.float32)[TRUTH]


def labels(n):
    return np.where(np.arange(N) < n, TRUTH, -1)


def fit(cls, y, x=X, **parameters):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a collapse may be said, rightly
        return make(cls, SHORT, **parameters).fit(x, y)


def accuracy(clf, rest):
    return (np.asarray(clf.transduction_)[rest] == TRUTH[rest]).mean()


@every_classifier
def test_one_label_of_each_class(cls):
    clf = fit(cls, labels(3))
    # chance: 0.33; guesses of MixMatch may settle on one class, also as published
    if "MixMatch" not in cls.__name__:
        assert accuracy(clf, slice(3, None)) > 0.6
    p = clf.predict_proba(X)
    assert p.shape == (N, 3) and (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)


@every_classifier
def test_a_class_without_a_label_is_never_predicted_and_mostly_less_sure(cls):
    y = labels(30)
    y[y == 2] = -1
    clf = fit(cls, y)
    assert clf.classes_.tolist() == [0, 1]
    confidence = clf.predict_proba(X[30:]).max(1)
    # how often a row of a known class is more sure than one of the unknown class
    found = roc_auc_score(TRUTH[30:] < 2, confidence)
    if "MixMatch" not in cls.__name__ and cls.__name__ != "CCLClassifier":
        # of those, it depends on the draws, as the guide warns
        assert found > 0.75


@every_classifier
def test_a_category_without_a_label_is_named_once(cls):
    y = pd.Series(pd.Categorical(np.append(NAMES, None)[labels(30)], NAMES))
    y[y == "cow"] = None
    with pytest.warns(UserWarning) as seen:
        clf = make(cls, SHORTEST).fit(X, y)
    said = [str(w.message) for w in seen if "categories 'cow'" in str(w.message)]
    assert len(said) == 1
    assert clf.classes_.tolist() == ["ant", "bee"]


@every_classifier
def test_wrong_labels_among_the_few(cls):
    y = labels(30)
    wrong = [0, 7, 14]
    y[wrong] = (y[wrong] + 1) % 3
    clf = fit(cls, y)
    assert accuracy(clf, slice(30, None)) > 0.75
    # what a person has said is kept, and not hidden
    np.testing.assert_array_equal(clf.transduction_[:30], y[:30])


@every_classifier
def test_given_labels_are_kept_and_the_rest_is_predicted(cls):
    y = labels(30)
    y[0] = 1 - y[0]  # an odd answer is still the person's answer
    clf = fit(cls, y)
    np.testing.assert_array_equal(clf.transduction_[:30], y[:30])
    np.testing.assert_array_equal(clf.transduction_[30:], clf.predict(X)[30:])


WRONG = {
    "no label": (np.full(N, -1), "no labeled row"),
    "one class": (np.where(np.arange(N) < 5, 3, -1), "y has 1 class"),
    "too short": (labels(30)[:70], f"X has {N} rows, y has 70"),
}


@every_classifier
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_labels_are_refused(cls, kind):
    y, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        make(cls, SHORTEST).fit(X, y)


@every_classifier
def test_weights_below_zero_are_refused(cls):
    weights = np.ones(N)
    for weight in (-1.0, np.nan, np.inf):
        weights[3] = weight
        message = f"finite and not negative, but row 3 has {weight}. Give 0"
        with pytest.raises(ValueError, match=message):
            make(cls, SHORTEST).fit(X, labels(30), weights)


# what predicts with an average of its weights, ramped or not
AVERAGED = [cls for cls in CLASSES if "ema_ramp" in cls().get_params()]
every_average = pytest.mark.parametrize("cls", AVERAGED, ids=lambda c: c.__name__)


def test_there_are_averages():
    assert len(AVERAGED) >= 2


@every_average
@pytest.mark.parametrize("ramp, expected", [(False, 0.9), (True, 2 / 11)])
def test_the_average_after_one_step(cls, ramp, expected):
    settings = {"max_steps": 1, "ema_decay": 0.9, "ema_ramp": ramp}
    begin = fit(cls, labels(30), lr=1e-30, **settings).net_.module_
    after = fit(cls, labels(30), lr=0.5, **settings).net_.module_
    start = dict(begin.online.named_parameters())
    online = dict(after.online.named_parameters())
    for name, average in after.average.named_parameters():
        assert not torch.equal(start[name], online[name])
        moved = expected * start[name] + (1 - expected) * online[name]
        torch.testing.assert_close(average, moved, rtol=1e-4, atol=1e-6)


@every_average
def test_predictions_come_from_the_average(cls):
    clf = fit(cls, labels(30), max_steps=3)
    average = clf.net_.module_.average.eval()
    with torch.no_grad():
        expected = average(torch.from_numpy(X)).softmax(1).numpy()
    np.testing.assert_allclose(clf.predict_proba(X), expected, rtol=1e-5, atol=1e-6)
    assert clf.encoder_ is average[0]


@every_classifier
def test_hundred_to_one(cls):
    rng = np.random.default_rng(1)
    truth = (np.arange(404) % 101 == 0).astype(int)
    x = rng.normal(size=(404, 5)).astype(np.float32)
    x_new, truth_new = rng.normal(size=(200, 5)).astype(np.float32), np.arange(200) % 2
    for rows, classes in ((x, truth), (x_new, truth_new)):
        rows[classes == 1, 0] += 4
    y = np.where(np.arange(404) < 202, truth, -1)  # two labels of the rare class
    found = {}
    for weight in (None, "balanced"):
        clf = fit(cls, y, x, class_weight=weight)
        found[weight] = balanced_accuracy_score(truth_new, clf.predict(x_new))
    # 0.5 is to answer always with the common class; CCL has one center for each class,
    # whatever its weight
    if cls.__name__ != "CCLClassifier":
        assert found["balanced"] > max(0.6, found[None] + 0.05)


@every_classifier
def test_more_rows_in_a_batch_than_labels(cls):
    sized = "batch_size" in cls().get_params()
    clf = fit(cls, labels(6), **({"batch_size": 64} if sized else {}))
    assert accuracy(clf, slice(6, None)) > 0.6


@every_classifier
def test_everything_is_labeled(cls):
    clf = fit(cls, TRUTH)
    assert clf.score(X, TRUTH) > 0.85
    np.testing.assert_array_equal(clf.transduction_, TRUTH)


Y = labels(30)
TYPES = {  # with the classes that come of them
    "names": (np.append(NAMES, -1)[Y].astype(object), NAMES.tolist()),
    "None": (np.append(NAMES, None)[Y], NAMES.tolist()),
    "NaN": (np.array([0.0, 1.0, 2.0, np.nan])[Y], [0.0, 1.0, 2.0]),
    "Series": (pd.Series(Y, name="class"), [0, 1, 2]),
    "list": (Y.tolist(), [0, 1, 2]),
    "column": (Y[:, None], [0, 1, 2]),
    "bool": (TRUTH == 0, [False, True]),
    "bool and None": (np.array([True, False, False, None])[Y], [False, True]),
    "Categorical": (pd.Categorical(np.append(NAMES, None)[Y]), NAMES.tolist()),
    "nullable": (pd.Series(pd.array([0, 1, 2, pd.NA])[Y]), [0, 1, 2]),
}


@every_classifier
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
def test_labels_of_any_type(cls, kind):
    y, classes = TYPES[kind]
    clf = fit(cls, y)
    assert clf.classes_.tolist() == classes
    assert set(map(type, clf.classes_.tolist())) == {type(classes[0])}
    for found in (clf.predict(X), clf.transduction_):
        assert found.shape == (N,) and found.dtype == clf.classes_.dtype
        assert set(found) <= set(classes)
    assert clf.score(X, y) > 0.5


@every_classifier
def test_folds_of_the_labeled_rows(cls):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cross_validate(
            make(cls, SHORT),
            X,
            labels(30),
            cv=LabeledKFold(2),
            return_estimator=True,
            error_score="raise",
        )
    assert (found["test_score"] > 0.6).all()
    # every unlabeled row, and half of the labeled ones
    assert [len(clf.transduction_) for clf in found["estimator"]] == [N - 15] * 2


@every_classifier
def test_calibration_on_request(cls):
    clf = fit(cls, labels(90), calibration_size=0.4)
    assert 0.05 < clf.calibration_temperature_ < 5
    assert clf.calibration_temperature_ != 1
    p = clf.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    clf.calibration_temperature_ = 1.0
    # 36 rows withheld from training tell the temperature, more or less
    raw = clf.predict_proba(X)
    assert log_loss(TRUTH[90:], p[90:]) < log_loss(TRUTH[90:], raw[90:]) + 0.1
    with pytest.raises(ValueError, match="calibration_size=0.4 would withhold"):
        fit(cls, labels(9), calibration_size=0.4)


@every_classifier
def test_calibration_by_itself_withholds_a_fifth_of_many_labels(cls):
    clf = fit(cls, labels(90), calibration_size="auto")
    p = clf.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert p.max() < 0.9995
    low, high = clf.estimated_accuracy_interval_
    assert 0 < low < clf.estimated_accuracy_ < high < 1
    assert low - 0.05 < (clf.predict(X[90:]) == TRUTH[90:]).mean()
    if cls.__name__ != "EmbeddingClassifier":  # which withholds nothing by itself
        known = fit(cls, labels(90), calibration_size=18)
        assert clf.calibration_temperature_ == known.calibration_temperature_


TRAINED = [c for c in CLASSES if c.__name__ != "EmbeddingClassifier"]


@pytest.mark.parametrize("cls", TRAINED, ids=lambda c: c.__name__)
def test_calibration_by_itself_with_few_labels(cls):
    own = {}
    if "embedder" not in cls().get_params(deep=False):
        with pytest.raises(ValueError, match='="auto" with fewer than ten labels'):
            fit(cls, labels(12), calibration_size="auto")
        codes = AutoencoderTransformer(8, hidden_sizes=(20, 30), max_steps=30).fit(X)
        own["backbone"] = FrozenEstimator(codes)
    clf = fit(cls, labels(12), calibration_size="auto", **own)
    # no label is spent, and the mean confidence is what is expected
    confidence = clf.predict_proba(X[12:]).max(1).mean()
    assert confidence == pytest.approx(clf.estimated_accuracy_, abs=0.02)
    plain = fit(cls, labels(12), **own)
    np.testing.assert_array_equal(clf.predict(X), plain.predict(X))
    assert not hasattr(plain, "estimated_accuracy_")
    clf.set_params(calibration_size=None).fit(X, labels(12))
    assert not hasattr(clf, "estimated_accuracy_")
    assert not hasattr(clf, "estimated_accuracy_interval_")
