"""The loop: what is asked and learned, a person who refuses, a lost process."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import check_estimator

import sklabel
from sklabel.active_learning import ActiveLearningClassifier
from sklabel.classification import (
    CCLClassifier,
    EmbeddingClassifier,
    SupervisedClassifier,
)
from sklabel.datasets import load_digit_images
from sklabel.embedding import AutoencoderTransformer, SimCLRTransformer
from sklabel.labels import keep_as_class, partial_labels
from sklabel.model_selection import LabeledKFold
from sklabel.selection import (
    BADGESelector,
    CoreSetSelector,
    LearningLossSelector,
    RandomSelector,
    UncertaintySelector,
    USLSelector,
)

N = 150
TRUTH = np.arange(N) % 3
X = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
X += 3 * np.eye(3, 5, dtype=np.float32)[TRUTH]


def short(classifier=None, **parameters):
    given = {"n_rounds": 2, "n_samples": 6, "random_state": 0, **parameters}
    if classifier is None:
        classifier = LogisticRegression()
    return ActiveLearningClassifier(classifier, **given)


def test_labels_are_uncovered_for_the_rows_asked_alone():
    loop = short(n_initial=9).fit(X, TRUTH)
    asked = loop.sample_indices_
    assert len(asked) == len(set(asked)) == 21
    assert sorted(np.flatnonzero(loop.labels_ != -1)) == sorted(asked)
    assert (loop.labels_[asked] == TRUTH[asked]).all()
    steps = loop.history_
    assert [step["n_labeled"] for step in steps] == [9, 15, 21]
    assert [step["n_asked"] for step in steps] == [9, 15, 21]
    rest = np.delete(np.arange(N), asked)
    assert steps[-1]["accuracy"] == loop.score(X[rest], TRUTH[rest]) > 0.9
    assert loop.classes_.tolist() == [0, 1, 2]
    np.testing.assert_allclose(loop.predict_proba(X).sum(1), 1, rtol=1e-6)
    # the labels of other rows have no influence
    other = np.where(loop.labels_ == -1, (TRUTH + 1) % 3, TRUTH)
    np.testing.assert_array_equal(
        short(n_initial=9).fit(X, other).sample_indices_, asked
    )


def test_an_oracle_is_asked_in_rounds():
    asked = []

    def oracle(indices):
        asked.append(indices)
        return TRUTH[indices]

    loop = short(oracle=oracle).fit(X)
    np.testing.assert_array_equal(np.concatenate(asked), loop.sample_indices_)
    assert list(map(len, asked)) == [6, 6, 6]
    assert "accuracy" not in loop.history_[-1]
    known = np.where(np.arange(N) < 30, TRUTH, -1)
    loop = short(oracle=oracle).fit(X, known)
    assert loop.sample_indices_.min() >= 30 and loop.history_[-1]["n_labeled"] == 48


def test_uncertain_rows_are_asked():
    selector = UncertaintySelector("entropy")
    loop = short(selector=selector, n_samples=9, n_rounds=0).fit(X, TRUTH)
    rows = loop.query()
    p = loop.predict_proba(X)
    entropy = -(p * np.log(p)).sum(1)
    entropy[loop.sample_indices_[:9]] = -1
    assert set(rows) == set(np.argsort(-entropy)[:9])


def test_a_person_may_skip_refuse_and_correct():
    loop = short().begin(X)
    rows = loop.query()
    np.testing.assert_array_equal(loop.query(), rows)  # until it is answered
    answers = TRUTH[rows].tolist()
    answers[1] = None
    loop.teach(rows[:4], answers[:4])  # the last two are skipped
    assert loop.refused_.tolist() == [rows[1]]
    for _ in range(12):
        asked = loop.query()
        assert rows[1] not in asked and not set(asked) & set(
            np.flatnonzero(loop.labels_ != -1)
        )
        loop.teach(asked, TRUTH[asked])
    changed = [TRUTH[rows[1]], (TRUTH[rows[0]] + 1) % 3]
    with pytest.raises(ValueError, match=f"Row {rows[0]} has the label .*correct=True"):
        loop.teach([rows[1], rows[0]], changed)
    assert loop.refused_.tolist() == [rows[1]]  # nothing was changed
    loop.teach([rows[1], rows[0]], changed, correct=True)
    assert loop.refused_.tolist() == [] and loop.labels_[rows[0]] != TRUTH[rows[0]]
    asked = loop.sample_indices_
    assert len(asked) == len(set(asked)) == loop.history_[-1]["n_asked"]


WRONG = {
    "of all kinds": lambda rows: [0, "one", 2.5, 1, 2, 0],
    "a set": lambda rows: set(TRUTH[rows].tolist()) | {7, 8, 9},
    "a generator": lambda rows: (int(TRUTH[row]) for row in rows),
    "a map": lambda rows: map(int, TRUTH[rows]),
    "values of a dict": lambda rows: dict.fromkeys(rows, 1).values(),
    "one text": lambda rows: "abcdef",
    "one number": lambda rows: 3,
    "nothing": lambda rows: None,
    "too few": lambda rows: TRUTH[rows][1:],
    "too many": lambda rows: [*TRUTH[rows], 0],
    "two columns": lambda rows: np.stack([TRUTH[rows]] * 2, 1),
    "other rows": lambda rows: {(int(row) + 1) % N: 1 for row in rows},
    "texts as rows": lambda rows: {str(row): 1 for row in rows},
    "Series of other rows": lambda rows: pd.Series(1, index=(rows + 1) % N),
    "Series of names": lambda rows: pd.Series(list("abcdef"), index=list("abcdef")),
    "Series with a row twice": lambda rows: pd.Series(1, index=[rows[0]] * 6),
    "the text nan": lambda rows: np.array(["a", "b", "c", "a", np.nan, "b"]),
    "a question mark": lambda rows: ["a", "b", "?", "a", "b", "c"],
    "bytes": lambda rows: [b"a"] * 6,
    "shares": lambda rows: [0.5] * 6,
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_answers_change_nothing(kind):
    loop = short(initial_selector=RandomSelector()).begin(X)
    loop.teach([0, 1, 2], TRUTH[:3])
    rows = loop.query()
    state = pickle.dumps(loop)
    for given in (rows, rows.tolist()):
        with pytest.raises((TypeError, ValueError)) as raised:
            loop.teach(given, WRONG[kind](rows))
        assert len(str(raised.value)) > 20
    assert pickle.dumps(loop) == state
    loop.teach(rows, TRUTH[rows])  # the right ones are taken then
    assert loop.history_[-1]["n_labeled"] == 9


RIGHT = {
    "list": lambda rows, y: y[rows].tolist(),
    "tuple": lambda rows, y: tuple(y[rows]),
    "array": lambda rows, y: y[rows],
    "column": lambda rows, y: y[rows][:, None],
    "dict": lambda rows, y: {int(row): y[row] for row in rows[::-1]},
    "dict of numpy": lambda rows, y: {row: y[row] for row in rows[::-1]},
    "Series by row": lambda rows, y: pd.Series(y, dtype=object).loc[rows[::-1]],
    "Series in order": lambda rows, y: pd.Series(y[rows].tolist()),
    "one-column frame": lambda rows, y: pd.DataFrame({"y": y}).loc[rows[::-1]],
    "masked": lambda rows, y: np.ma.array(y[rows], mask=False),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
@pytest.mark.parametrize("kind", RIGHT)
@pytest.mark.parametrize("names", [None, ["ant", "bee", "cow"], [True, False, True]])
def test_answers_in_every_right_form_are_the_same(kind, names):
    y = TRUTH if names is None else np.array(names, dtype=object)[TRUTH]
    plain = short(oracle=lambda rows: y[rows].tolist()).fit(X)
    loop = short(oracle=lambda rows: RIGHT[kind](rows, y)).fit(X)
    np.testing.assert_array_equal(loop.sample_indices_, plain.sample_indices_)
    assert loop.labels_.tolist() == plain.labels_.tolist()
    asked = loop.sample_indices_
    assert loop.labels_[asked].tolist() == y[asked].tolist()
    np.testing.assert_array_equal(loop.predict(X), plain.predict(X))
    assert loop.classes_.tolist() == sorted(set(y.tolist()))
    assert {type(v) for v in loop.classes_.tolist()} == {type(y.tolist()[0])}


def test_a_mapping_may_leave_rows_out_and_refuse_some():
    loop = short().begin(X)
    rows = loop.query()
    loop.teach(rows, {rows[1]: 1, rows[0]: None, rows[2]: ""})
    assert loop.refused_.tolist() == sorted([rows[0], rows[2]])
    assert np.flatnonzero(loop.labels_ != -1).tolist() == [rows[1]]
    loop.teach(rows, {})
    assert loop.history_[-1]["n_labeled"] == 1


@pytest.mark.parametrize(
    "rows", [[1.0, 2.0], [True, False], [1, 1], [-1, 2], [N, 0], "12", {1, 2}]
)
def test_wrong_rows_change_nothing(rows):
    loop = short().begin(X)
    with pytest.raises(ValueError, match="indices"):
        loop.teach(rows, [0, 1])
    assert (loop.labels_ == -1).all() and loop.history_ == []


def test_answers_contradict_only_where_it_is_said():
    loop = short().begin(X, partial_labels(N, [0, 1, 2], ["a", "b", "a"]))
    loop.teach([0], ["a"])  # the same once more
    for answer in ("b", None, " "):
        with pytest.raises(ValueError, match="Row 0 has the label 'a'.*correct=True"):
            loop.teach([0], [answer])
    assert loop.labels_[0] == "a" and loop.refused_.tolist() == []
    loop.teach([0], ["b"], correct=True)
    assert loop.labels_[0] == "b"
    loop.teach([2], [None], correct=True)  # a label is taken back
    assert loop.labels_[2] == -1 and loop.refused_.tolist() == [2]
    loop.teach([2], ["a"])  # and given after all
    assert loop.labels_[2] == "a" and loop.refused_.tolist() == []


class _Fails(LogisticRegression):
    def fit(self, X, y, sample_weight=None):
        raise RuntimeError("no training")


@pytest.mark.parametrize("failure", ["oracle", "answers", "interrupt", "training"])
def test_what_an_oracle_has_said_is_not_lost(failure):
    said = {}

    def oracle(rows):
        if len(said) == 12 and failure != "training":
            if failure == "answers":
                return {"x": 1}
            raise {"oracle": OSError, "interrupt": KeyboardInterrupt}[failure]
        said.update({int(row): int(TRUTH[row]) for row in rows})
        return TRUTH[rows]

    loop = short(_Fails() if failure == "training" else None, oracle=oracle, n_rounds=5)
    with pytest.raises((OSError, KeyboardInterrupt, ValueError, RuntimeError)):
        loop.fit(X)
    kept = np.flatnonzero(loop.labels_ != -1)
    assert kept.tolist() == sorted(said) and len(kept) in (6, 12)
    if failure == "training":
        return
    rows = loop.query()  # the question is still open
    assert not set(rows) & set(said)
    assert loop.teach(rows, TRUTH[rows]).history_[-1]["n_labeled"] == 18
    again = short(oracle=lambda rows: TRUTH[rows]).fit(X, loop.labels_)
    assert again.history_[-1]["n_labeled"] == 18 + 18


def test_a_fit_that_fails_before_any_answer_leaves_the_loop_as_it_was():
    loop = short(oracle=lambda rows: TRUTH[rows]).fit(X)
    before = loop.labels_.copy()
    loop.set_params(oracle=lambda rows: None)
    with pytest.raises(TypeError):
        loop.fit(X)
    np.testing.assert_array_equal(loop.labels_, before)
    with pytest.raises(ValueError, match="inconsistent"):
        loop.begin(X, [0, 1])
    np.testing.assert_array_equal(loop.labels_, before)


def test_rows_that_have_no_answer_are_not_asked():
    y = np.where(np.arange(N) % 5 == 0, TRUTH, -1)  # 30 answers
    for form in (y, np.where(y < 0, np.nan, y), np.ma.array(TRUTH, mask=y < 0)):
        loop = short(n_samples=8, n_rounds=9).fit(X, form)
        assert [step["n_labeled"] for step in loop.history_] == [8, 16, 24, 30]
        assert loop.refused_.tolist() == []
        assert (y[loop.sample_indices_] >= 0).all()
    search = GridSearchCV(short(), {"n_samples": [4, 8]}, cv=LabeledKFold(3)).fit(X, y)
    found = search.best_estimator_
    assert found.history_[-1]["n_labeled"] == len(found.sample_indices_)
    # semi-supervised classifiers learn from them
    loop = short(LabelSpreading(gamma=0.5), n_samples=12).fit(X, y)
    assert len(loop.classifier_.transduction_) == N


@pytest.mark.parametrize("answers", [TRUTH > 0, (TRUTH > 0).astype(object)])
@pytest.mark.parametrize(
    "classifier",
    [LogisticRegression(), SupervisedClassifier(max_steps=5), LabelSpreading(gamma=1)],
)
def test_bool_stays_bool(classifier, answers):
    loop = short(classifier).fit(X, answers)
    assert loop.classes_.dtype == bool and loop.predict(X).dtype == bool
    assert loop.score(X, TRUTH > 0) == np.mean(loop.predict(X) == (TRUTH > 0))
    assert {type(v) for v in loop.labels_[loop.sample_indices_]} == {bool}


def test_names_with_the_spreading_classifiers_of_scikit_learn():
    names = np.array(["ant", "bee", "cow"])[TRUTH]
    loop = short(LabelSpreading(gamma=0.5), n_samples=12).fit(X, names)
    assert loop.classes_.tolist() == ["ant", "bee", "cow"]
    assert set(loop.classifier_.transduction_) <= set(names)
    assert loop.score(X, names) > 0.8


def test_labels_that_look_alike_are_told_in_the_round_they_come_up():
    loop = short(initial_selector=RandomSelector()).begin(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.teach([0, 1], ["Cat", "dog"])
    with pytest.warns(UserWarning, match="look alike: 'Cat' and 'cat'") as seen:
        loop.teach([2], ["cat"])
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.teach([3], ["cat"])


def test_a_class_named_none_in_the_loop():
    names = np.array(["none", "some", "many"], dtype=object)[TRUTH]
    loop = short().begin(X)
    rows = loop.query()
    with pytest.raises(ValueError, match="'none'.*keep_as_class"):
        loop.teach(rows, names[rows])
    loop.teach(rows, keep_as_class(names[rows], "none"))
    rows = loop.query()
    loop.teach(rows, names[rows])  # known by now
    assert loop.classes_.tolist() == ["many", "none", "some"]
    assert loop.score(X, names) > 0.5
    y = keep_as_class(names, "none")
    assert short().fit(X, y).score(X, names) > 0.5


def test_a_line_per_round(capsys):
    short(verbose=1, n_rounds=1).fit(X, TRUTH)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(
        "round 2: 12 of 12 queried rows are labeled, accuracy 0."
    )
    short(n_rounds=1).fit(X, TRUTH)
    assert capsys.readouterr().out == ""


class _Witness(RandomSelector):
    """Keeps what it is fitted on, and counts how often."""

    def fit(self, X, y=None):
        self.seen = [*vars(self).get("seen", []), (np.asarray(X), np.asarray(y))]
        return super().fit(X, y)


def test_a_selector_lives_through_all_rounds_and_sees_real_labels():
    loop = short(selector=_Witness()).begin(X)
    for _ in range(4):
        rows = loop.query()
        answers = TRUTH[rows].tolist()
        answers[0] = None  # refused: neither asked again nor shown as labeled
        loop.teach(rows, answers)
    seen = loop.selector_.seen
    assert [len(x) for x, _ in seen] == [N - 1, N - 2, N - 3]
    for i, (x, y) in enumerate(seen):
        kept = np.setdiff1d(np.arange(N), loop.sample_indices_[: 6 * (i + 1) : 6])
        np.testing.assert_array_equal(x, X[kept])
        known = np.isin(kept, loop.sample_indices_[: 6 * (i + 1)])
        assert (y[known] == TRUTH[kept][known]).all() and (y[~known] == -1).all()
    assert len(loop.refused_) == 4
    assert len(set(loop.sample_indices_)) == 24
    assert loop.get_params()["selector"] is not loop.selector_


def test_a_new_seed_in_every_round():
    loop = short(selector=RandomSelector(), n_rounds=1).begin(X)
    seeds = []
    for _ in range(4):
        rows = loop.query()
        loop.teach(rows, TRUTH[rows])
        if hasattr(loop, "selector_"):
            seeds.append(loop.selector_.random_state)
    assert len(set(seeds)) == 3
    given = short(selector=RandomSelector(random_state=7)).fit(X, TRUTH)
    assert given.selector_.random_state == 7


def test_nothing_is_left_to_ask():
    loop = short(n_rounds=99, n_samples=60).fit(X, TRUTH)
    assert [step["n_labeled"] for step in loop.history_] == [60, 120, 150]
    assert len(loop.query()) == 0 and "accuracy" not in loop.history_[-1]


def test_the_state_survives_the_process(tmp_path):
    whole = short().begin(X)
    broken = short().begin(X)
    for _ in range(3):
        rows = whole.query()
        np.testing.assert_array_equal(broken.query(), rows)
        state = pickle.dumps(broken)  # between a question and its answer
        assert len(state) < 30_000  # X is not in it
        broken = pickle.loads(state)
        with pytest.raises(ValueError, match=r"attach\(X\)"):
            broken.query()
        with pytest.raises(ValueError, match="started with 150 rows, but X has 149"):
            broken.attach(X[1:])
        broken.attach(X)
        np.testing.assert_array_equal(broken.query(), rows)
        for loop in (whole, broken):
            loop.teach(rows, TRUTH[rows])
    np.testing.assert_array_equal(broken.predict_proba(X), whole.predict_proba(X))


def test_the_state_of_a_loop_over_images_survives_the_process():
    images, target = load_digit_images(return_X_y=True)
    images, target = images[:120], target[:120]
    settings = {"selector": USLSelector(), "embedder": SimCLRTransformer(max_steps=2)}
    whole, broken = (
        short(SupervisedClassifier(max_steps=2), **settings).begin(images)
        for _ in range(2)
    )
    for _ in range(3):
        rows = whole.query()
        np.testing.assert_array_equal(broken.query(), rows)
        broken = pickle.loads(pickle.dumps(broken)).attach(images)
        for loop in (whole, broken):
            loop.teach(rows, target[rows])


@pytest.mark.parametrize(
    "classifier",
    [KNeighborsClassifier(), make_pipeline(StandardScaler(), KNeighborsClassifier())],
)
def test_warm_start_is_refused_where_nothing_can_continue(classifier):
    with pytest.raises(ValueError, match="KNeighborsClassifier has no parameter"):
        short(classifier, warm_start=True).fit(X, TRUTH)


@pytest.mark.parametrize("warm_start", [False, True])
def test_each_round_starts_anew_or_continues(warm_start):
    seen = []

    class Counting(SupervisedClassifier):
        def fit(self, X, y, sample_weight=None):
            seen.append((id(self), self.warm_start, hasattr(self, "net_")))
            return super().fit(X, y, sample_weight)

    loop = short(Counting(max_steps=2), warm_start=warm_start, n_samples=15)
    loop.fit(X, TRUTH)
    continued = [has_net and warm for _, warm, has_net in seen]
    assert continued == [False, warm_start, warm_start]
    assert not loop.classifier.warm_start  # what was given is left alone


def test_while_answers_are_of_one_class_the_first_selector_is_asked_again():
    y = np.where(np.arange(N) < 140, 0, 1)
    loop = short(initial_selector=RandomSelector(), n_samples=2, n_rounds=60)
    loop.fit(X, y)
    assert len(loop.classes_) == 2
    with pytest.raises(ValueError, match="All 6 answers are of one class.*n_rounds=2"):
        short(initial_selector=RandomSelector(), n_samples=2).fit(X, y)


@pytest.mark.parametrize(
    "classifier", [LabelSpreading(), make_pipeline(StandardScaler(), LabelSpreading())]
)
def test_classifiers_that_know_unlabeled_rows_see_them(classifier):
    loop = short(classifier, n_samples=12).fit(X, TRUTH)
    last = loop.classifier_[-1] if hasattr(loop.classifier_, "steps") else None
    assert len((last or loop.classifier_).transduction_) == N
    assert loop.score(X, TRUTH) > 0.8


def test_images_are_embedded_once_for_selectors_of_vectors():
    images, target = load_digit_images(return_X_y=True)
    images, target = images[:200], target[:200]
    fits = []

    class Counting(SimCLRTransformer):
        def fit(self, X, y=None):
            fits.append(1)
            return super().fit(X)

    settings = {"n_samples": 20, "embedder": Counting(max_steps=2)}
    loop = short(SupervisedClassifier(max_steps=5), selector=USLSelector(), **settings)
    loop.fit(images, target)
    assert fits == [1] and loop.history_[-1]["n_labeled"] == 60
    first = make_pipeline(AutoencoderTransformer(max_steps=2), USLSelector())
    loop = short(SupervisedClassifier(max_steps=5), initial_selector=first, n_rounds=0)
    assert len(loop.fit(images, target).sample_indices_) == 6


def test_the_published_loop_in_one_line():
    images, target = load_digit_images(return_X_y=True)
    images, target = images[:300], target[:300]
    ccl = CCLClassifier(embedder=AutoencoderTransformer(10, max_steps=5), max_steps=5)
    loop = short(ccl, selector=UncertaintySelector("entropy"), n_samples=20)
    loop.set_params(initial_selector=RandomSelector()).fit(images, target)
    assert [step["n_labeled"] for step in loop.history_] == [20, 40, 60]
    assert not hasattr(loop, "embedder_")  # chance needs no vectors


def test_a_selector_in_a_pipeline_has_its_own_classifier():
    images, target = load_digit_images(return_X_y=True)
    asks = make_pipeline(AutoencoderTransformer(4, max_steps=2), UncertaintySelector())
    loop = short(SupervisedClassifier(max_steps=2), selector=asks, n_samples=20)
    loop.set_params(initial_selector=RandomSelector()).fit(images[:100], target[:100])
    assert [step["n_labeled"] for step in loop.history_] == [20, 40, 60]
    assert loop.selector_[-1].classifier_.n_features_in_ == 4


def test_images_in_a_list_and_files_that_cannot_be_read(tmp_path):
    images, target = load_digit_images(return_X_y=True)
    settings = {"n_rounds": 0, "embedder": AutoencoderTransformer(4, max_steps=2)}
    loop = short(SupervisedClassifier(max_steps=2), **settings)
    assert loop.fit(list(images[:50]), target[:50]).predict(images[:3]).shape == (3,)
    files = [str(tmp_path / f"{i}.png") for i in range(30)]
    for file, image in zip(files, images, strict=False):
        Image.fromarray((image / image.max() * 255).astype(np.uint8)).save(file)
    (tmp_path / "3.png").write_bytes(b"no image")
    bad = {"on_error": "skip", "image_size": 8}
    loop.set_params(
        embedder=AutoencoderTransformer(4, max_steps=2, **bad),
        classifier=SupervisedClassifier(max_steps=2, **bad),
        n_samples=29,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop.fit(files, target[:30])
    assert loop.refused_.tolist() == [3] and 3 not in loop.sample_indices_
    assert loop.history_[-1]["n_labeled"] == 29


def test_in_a_grid_search():
    search = GridSearchCV(
        short(),
        {"n_samples": [3, 12], "classifier__C": [1.0], "selector": [None]},
        cv=LabeledKFold(3),
    ).fit(X, TRUTH)
    assert search.best_score_ > 0.8
    assert clone(search.best_estimator_).n_samples in (3, 12)


def test_names_and_their_marks():
    names = np.array(["ant", "bee", "cow"], dtype=object)[TRUTH]
    names[:20] = -1  # these get no answer
    loop = short(n_samples=30, n_rounds=3).fit(X, names)
    assert loop.classes_.tolist() == ["ant", "bee", "cow"]
    assert set(loop.refused_) == set(loop.sample_indices_) & set(range(20))


def test_what_is_refused():
    loop = short().begin(X)
    with pytest.raises(ValueError, match="2 answers for 3 rows"):
        loop.teach([1, 2, 3], [0, 1])
    with pytest.raises(ValueError, match="rows of X, 0 to 149, got 3 to 150"):
        loop.teach([3, 150], [0, 1])
    with pytest.raises(ValueError, match="needs labels"):
        short().fit(X)
    with pytest.raises(ValueError, match="X has 150 rows, y has 3"):
        short().begin(X, [0, 1, -1])
    assert (loop.labels_ == -1).all() and loop.history_ == []


def test_scikit_learns_checks():
    failures = {
        "check_classifiers_classes": "-1 marks an unlabeled row",
        "check_sample_weights_pandas_series": "no sample_weight",
    }
    found = check_estimator(
        short(LogisticRegression(), n_samples=40, n_rounds=3),
        expected_failed_checks=failures,
        on_fail=None,
        on_skip=None,
    )
    bad = [
        f"{r['check_name']}: {r['exception']}" for r in found if r["status"] == "failed"
    ]
    assert not bad, "\n".join(bad)


def test_names_of_features_are_kept():
    import pandas as pd

    frame = pd.DataFrame(X, columns=list("abcde"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = short().fit(frame, TRUTH)
        loop.predict(frame)
    assert loop.feature_names_in_.tolist() == list("abcde")


# -- saved


def same_loops(one, other):
    assert one.labels_.tolist() == other.labels_.tolist()
    assert [type(v) for v in one.labels_] == [type(v) for v in other.labels_]
    for name in ("sample_indices_", "pending_", "refused_"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.history_ == other.history_


@pytest.mark.parametrize(
    "selector",
    [
        UncertaintySelector(),
        CoreSetSelector(),
        BADGESelector(),
        LearningLossSelector(max_steps=3),
        RandomSelector(),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_loop_is_saved_between_any_two_steps(selector, tmp_path):
    names = keep_as_class(np.array(["none", "some", "many"], object)[TRUTH], "none")
    settings = {"selector": selector, "n_samples": 9, "verbose": 0}
    whole = short(SupervisedClassifier(max_steps=3), **settings).begin(X)
    broken = short(SupervisedClassifier(max_steps=3), **settings).begin(X)
    for i in range(3):
        folder = tmp_path / str(i)
        broken.save(folder)
        broken = sklabel.load(folder).attach(X)
        rows = whole.query()
        np.testing.assert_array_equal(broken.query(), rows)
        broken.save(folder)  # a question is open
        broken = sklabel.load(folder).attach(X)
        np.testing.assert_array_equal(broken.pending_, rows)
        answers = names[rows]
        answers[0] = None
        for loop in (whole, broken):
            loop.teach(rows, answers)
            for step in loop.history_:
                step["seconds"] = 0
        same_loops(whole, broken)
    broken.save(tmp_path / "end")
    again = sklabel.load(tmp_path / "end")
    np.testing.assert_array_equal(again.predict_proba(X), whole.predict_proba(X))
    assert again.score(X, np.asarray(names, dtype=str)) > 0
    with pytest.raises(ValueError, match=r"attach\(X\)"):
        again.query()


def test_a_loop_of_images_with_an_embedder_and_an_oracle_is_saved(tmp_path):
    images, target = load_digit_images(return_X_y=True)
    images, target = images[:60], target[:60] % 3
    loop = short(
        SupervisedClassifier(max_steps=2),
        oracle=lambda rows: target[rows],
        embedder=AutoencoderTransformer(4, max_steps=2),
        selector=USLSelector(),
        n_rounds=1,
    ).fit(images)
    loop.save(tmp_path)
    again = sklabel.load(tmp_path)
    assert again.oracle is None
    np.testing.assert_array_equal(again.predict(images), loop.predict(images))
    np.testing.assert_array_equal(again.attach(images).query(), loop.query())


@pytest.mark.parametrize(
    "parts",
    [
        {"classifier": LogisticRegression()},
        {"selector": make_pipeline(StandardScaler(), UncertaintySelector())},
        {"embedder": StandardScaler()},
    ],
)
def test_parts_of_scikit_learn_are_named_with_the_remedy(parts, tmp_path):
    given = {"classifier": SupervisedClassifier(max_steps=2), **parts}
    loop = short(**given, n_rounds=1).fit(X, TRUTH)
    with pytest.raises(TypeError, match="is a .*(Regression|Pipeline|Scaler).*joblib"):
        loop.save(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(NotFittedError):
        short().save(tmp_path)


class OfPixels(ClassifierMixin, BaseEstimator):
    """A classifier of another library that takes images and has no features."""

    def fit(self, X, y):
        self.inner_ = LogisticRegression(max_iter=200).fit(X.reshape(len(X), -1), y)
        self.classes_ = self.inner_.classes_
        return self

    def predict_proba(self, X):
        return self.inner_.predict_proba(np.reshape(X, (len(X), -1)))

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(1)]


@pytest.mark.parametrize(
    ("classifier", "of_images", "expected"),
    [
        (LogisticRegression(max_iter=200), False, BADGESelector),
        (
            make_pipeline(StandardScaler(), KNeighborsClassifier(1)),
            False,
            BADGESelector,
        ),
        (EmbeddingClassifier(), False, BADGESelector),
        (SupervisedClassifier(max_steps=3), True, BADGESelector),
        (
            make_pipeline(AutoencoderTransformer(4, max_steps=2), LogisticRegression()),
            True,
            BADGESelector,
        ),
        (OfPixels(), True, UncertaintySelector),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_the_default_selector_looks_at_features_where_there_are_any(
    classifier, of_images, expected
):
    X, y = load_digit_images(return_X_y=True)
    X, y = X[:150], y[:150]
    loop = ActiveLearningClassifier(
        classifier,
        initial_selector=RandomSelector(),
        n_rounds=1,
        n_samples=30,
        random_state=0,
    ).fit(X if of_images else X.reshape(150, -1), y)
    assert type(loop.selector_) is expected
    assert [step["n_labeled"] for step in loop.history_] == [30, 60]


def test_the_default_selector_is_better_than_entropy():
    X, y = load_digits(return_X_y=True)
    reached = {}
    for selector in (None, UncertaintySelector("entropy")):
        curves = []
        for seed in range(3):
            loop = ActiveLearningClassifier(
                make_pipeline(StandardScaler(), LogisticRegression()),
                selector,
                n_rounds=3,
                n_samples=10,
                random_state=seed,
            ).fit(X, y)
            curves.append(loop.history_[-1]["accuracy"])
        reached[selector is None] = np.mean(curves)
    assert reached[True] > reached[False] + 0.03


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"classifier": LinearRegression()}, r"LinearRegression\(\) is no classifier"),
        ({"classifier": KMeans(3)}, "is no classifier"),
        ({"selector": StandardScaler()}, r"selector=StandardScaler\(\) is no selector"),
        ({"initial_selector": LogisticRegression()}, "initial_selector=.* no selector"),
        ({"selector": FrozenEstimator(RandomSelector())}, "not frozen"),
        ({"classifier": LinearSVC()}, "BADGESelector.*CalibratedClassifierCV"),
        (
            {"classifier": LinearSVC(), "selector": UncertaintySelector()},
            r"UncertaintySelector.*LinearSVC\(\) has no predict_proba",
        ),
    ],
)
def test_parts_of_the_wrong_kind_are_told_before_a_label_is_requested(parts, message):
    def oracle(rows):
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        short(**{"oracle": oracle, **parts}).fit(X)


def test_a_classifier_without_probabilities_and_a_selector_that_needs_none():
    loop = short(LinearSVC(), selector=RandomSelector()).fit(X, TRUTH)
    assert loop.history_[-1]["n_labeled"] == 18


def test_an_oracle_that_changes_its_rows_does_not_change_the_loop():
    def oracle(rows):
        answers = TRUTH[rows]
        rows[:] = 0
        return answers

    loop = short(oracle=oracle).fit(X)
    same = short(oracle=lambda rows: TRUTH[rows]).fit(X)
    np.testing.assert_array_equal(loop.sample_indices_, same.sample_indices_)
    person = short().begin(X)
    person.query()[:] = 0
    assert len(set(person.query())) == 6
    person.query()[:] = 0
    assert len(set(person.pending_)) == 6


def test_an_oracle_that_never_answers_is_told():
    with pytest.raises(ValueError, match="None of the 18 queried rows got a label"):
        short(oracle=lambda rows: [None] * len(rows)).fit(X)
