"""The loop: what is asked and learned, a person who refuses, a lost process."""

import pickle
import warnings

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading
from sklearn.utils.estimator_checks import check_estimator

from sklabel.active_learning import ActiveLearningClassifier
from sklabel.classification import CCLClassifier, SupervisedClassifier
from sklabel.datasets import load_digit_images
from sklabel.embedding import AutoencoderTransformer, SimCLRTransformer
from sklabel.model_selection import LabeledKFold
from sklabel.selection import RandomSelector, UncertaintySelector, USLSelector

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
    loop = short(n_samples=9, n_rounds=0).fit(X, TRUTH)
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
    loop.teach([rows[1], rows[0]], [TRUTH[rows[1]], (TRUTH[rows[0]] + 1) % 3])
    assert loop.refused_.tolist() == [] and loop.labels_[rows[0]] != TRUTH[rows[0]]
    asked = loop.sample_indices_
    assert len(asked) == len(set(asked)) == loop.history_[-1]["n_asked"]


def test_wrong_answers_change_nothing():
    loop = short().begin(X)
    rows = loop.query()
    before = loop.labels_.copy()
    with pytest.raises(TypeError):
        loop.teach(rows, [0, "one", 2.5, 1, 2, 0])
    np.testing.assert_array_equal(loop.labels_, before)
    np.testing.assert_array_equal(loop.query(), rows)
    assert loop.history_ == []


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
        with pytest.raises(ValueError, match="begun with 150 rows, but X has 149"):
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
