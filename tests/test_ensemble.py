"""Votes of several classifiers of partly labeled rows."""

import pickle
import warnings

import numpy as np
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import VotingClassifier as TheirVotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelPropagation, LabelSpreading
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklabel.classification import EmbeddingClassifier, SupervisedClassifier
from sklabel.ensemble import VotingClassifier
from sklabel.model_selection import LabeledKFold

N = 90
TRUTH = np.arange(N) % 3
X = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
X += 2 * np.eye(3, 6, dtype=np.float32)[TRUTH]
Y = np.where(np.arange(N) < 15, TRUTH, -1)
NAMES = np.array(["ant", "bee", "cow"], dtype=object)


def members():
    return [
        ("probe", EmbeddingClassifier(graph_weight=0, random_state=0)),
        ("graph", EmbeddingClassifier(graph_weight=1, random_state=0)),
        ("net", SupervisedClassifier(max_steps=20, random_state=0)),
    ]


def test_scikit_learns_own_takes_unlabeled_rows_for_a_class():
    theirs = TheirVotingClassifier(members(), voting="soft").fit(X, Y)
    assert (theirs.predict(X) == TRUTH).mean() < 0.2  # what this class is for
    ours = VotingClassifier(members(), voting="soft").fit(X, Y)
    assert (ours.predict(X) == TRUTH).mean() > 0.6


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_votes_are_counted_one_by_one(voting, weights):
    clf = VotingClassifier(members(), voting=voting, weights=weights).fit(X, Y)
    alone = [clone(member).fit(X, Y) for _, member in members()]
    given = weights or [1.0] * 3
    probabilities = [member.predict_proba(X) for member in alone]
    classes = [member.predict(X) for member in alone]
    found = clf.predict(X)
    for i in range(N):
        shares = [0.0] * 3
        for weight, p, own in zip(given, probabilities, classes, strict=True):
            p = p[i] if voting == "soft" else [float(own[i] == k) for k in range(3)]
            for k in range(3):
                shares[k] += weight * p[k] / sum(given)
        assert found[i] == np.argmax(shares)
        if Y[i] < 0:
            np.testing.assert_allclose(clf.label_distributions_[i], shares, rtol=1e-6)
            assert clf.transduction_[i] == np.argmax(shares)
        else:
            assert clf.label_distributions_[i, Y[i]] == 1
            assert clf.transduction_[i] == Y[i]
    assert hasattr(clf, "predict_proba") == (voting == "soft")
    assert clf.transform(X).shape[0] == N


def test_names_and_other_marks_of_unlabeled_rows():
    y = np.append(NAMES, None)[Y]
    clf = VotingClassifier(members()).fit(X, y)
    assert clf.classes_.tolist() == NAMES.tolist()
    assert set(clf.predict(X)) == set(NAMES) == set(clf.transduction_)
    assert clf.score(X, y) == 1 == clf.score(X[:15], NAMES[TRUTH[:15]])
    # a second classifier learns from the labels of the first ones
    SupervisedClassifier(max_steps=2, random_state=0).fit(X, clf.transduction_)


def test_what_takes_unlabeled_rows_for_a_class_is_refused():
    wrong = [("line", LogisticRegression())]
    with pytest.raises(ValueError, match="line=LogisticRegression takes -1, which"):
        VotingClassifier([*members(), *wrong]).fit(X, Y)
    both = [("line", LogisticRegression()), ("spread", LabelPropagation())]
    assert VotingClassifier(both).fit(X, TRUTH).score(X, TRUTH) > 0.8
    VotingClassifier(both[1:], voting="soft").fit(X, Y)
    for y, message in ((np.full(N, -1), "no labeled row"), (Y[:9], "90 rows, y has 9")):
        with pytest.raises(ValueError, match=message):
            VotingClassifier(members()).fit(X, y)


def test_a_wrong_parameter_is_named():
    for wrong in ({"voting": "soft "}, {"weights": "even"}):
        with pytest.raises(ValueError, match=f"'{next(iter(wrong))}' parameter"):
            VotingClassifier(members(), **wrong).fit(X, Y)
    with pytest.raises(ValueError, match="2 weights, 3 estimators"):
        VotingClassifier(members(), weights=[1, 2]).fit(X, Y)
    for weights in ([0, 0, 0], [3, -1, 0], [1, np.nan, 1], [1, np.inf, 1]):
        with pytest.raises(
            ValueError, match=r"weights=\[.* must be finite and not neg"
        ):
            VotingClassifier(members(), weights=weights).fit(X, Y)
    left_out = [("other", "drop"), members()[1]]
    with pytest.raises(ValueError, match="classifier that is not dropped"):
        VotingClassifier(left_out, weights=[1, 0]).fit(X, Y)
    VotingClassifier(left_out, weights=[0, 1]).fit(X, Y)
    silent = [*members(), ("svm", LinearSVC())]
    with pytest.raises(
        ValueError, match=r"svm=LinearSVC has no predict_proba: use vot"
    ):
        VotingClassifier(silent, voting="soft").fit(X, TRUTH)


def test_in_a_search_and_as_a_pickle():
    clf = VotingClassifier(members(), voting="soft")
    grid = {"probe__n_neighbors": [5, 10], "voting": ["soft", "hard"]}
    search = GridSearchCV(clf, grid, cv=LabeledKFold(3)).fit(X, Y)
    best = search.best_estimator_
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(best)).predict(X), best.predict(X)
    )
    pipe = make_pipeline(StandardScaler(), clf.set_params(graph="drop"))
    assert len(pipe.fit(X, Y)[-1].estimators_) == 2
    weighted = clone(clf).fit(X, Y, sample_weight=np.ones(N))
    assert weighted.score(X, Y) == 1


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_images_that_cannot_be_read_have_no_vote(voting, tmp_path):
    for i in range(12):
        image = np.full((8, 8, 3), 20 * i, np.uint8)
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    files = sorted(map(str, tmp_path.glob("*.png")))
    (tmp_path / "07.png").write_bytes(b"no image")
    settings = {"max_steps": 2, "random_state": 0, "on_error": "skip", "image_size": 8}
    clf = VotingClassifier([("net", SupervisedClassifier(**settings))], voting=voting)
    with pytest.warns(UserWarning, match="1 of 12"):
        clf.fit(files, [0, 1, 0, 1, *[-1] * 8])
        assert clf.predict(files)[7] == clf.transduction_[7] == -1
    assert np.isnan(clf.label_distributions_[7]).all()


@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 2.0]])
def test_who_does_not_know_a_row_has_no_vote_for_it(weights):
    far = X.copy()
    far[80] += 50  # no label gets there
    spread = LabelPropagation(kernel="rbf", gamma=5)
    clf = VotingClassifier(
        [*members()[:2], ("spread", spread)], voting="soft", weights=weights
    )
    with pytest.warns(RuntimeWarning, match="invalid value"):
        clf.fit(far, Y)
        p = [member.predict_proba(far) for member in clf.estimators_]
        found = clf.predict_proba(far)
    assert np.isnan(p[2][80]).all() and not np.isnan(found).any()
    want = np.average(np.array(p[:2])[:, 80], axis=0, weights=weights and weights[:2])
    np.testing.assert_allclose(found[80], want)
    assert clf.transduction_[80] == want.argmax()
    unsure = VotingClassifier([("spread", spread)], voting="soft")
    with pytest.warns(RuntimeWarning, match="invalid value"):
        assert unsure.fit(far, Y).transduction_[80] == -1


class Sparse(ClassifierMixin, BaseEstimator):
    """A classifier whose probabilities of far rows are NaN or 0."""

    def __init__(self, unknown=np.nan):
        self.unknown = unknown

    def fit(self, X, y):
        self.classes_ = np.unique(y[y >= 0])
        return self

    def predict_proba(self, X):
        p = np.tile([0.1, 0.2, 0.7], (len(X), 1))
        p[X[:, 0] > 20] = self.unknown
        return p

    def predict(self, X):
        return self.classes_[np.nan_to_num(self.predict_proba(X)).argmax(axis=1)]


@pytest.mark.parametrize("weights", [None, [1.0, 5.0]])
@pytest.mark.parametrize("unknown", [np.nan, 0.0])
@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_who_has_no_probabilities_of_a_row_has_no_vote_for_it(voting, unknown, weights):
    far = X.copy()
    far[:5] += 50
    sparse = ("sparse", Sparse(unknown))
    clf = VotingClassifier([members()[0], sparse], voting=voting, weights=weights)
    clf.fit(far, np.where(np.arange(N) < 5, -1, Y))
    probe = clf.estimators_[0].predict(far)
    np.testing.assert_array_equal(clf.predict(far)[:5], probe[:5])
    if weights:
        assert (clf.predict(far)[5:] == 2).all()
    alone = VotingClassifier([sparse], voting=voting).fit(
        far, np.where(far[:, 0] > 20, -1, Y)
    )
    assert alone.predict(far)[:5].tolist() == [-1] * 5
    assert (alone.predict(far)[5:] == 2).all()


@pytest.mark.parametrize("model", [LabelPropagation, LabelSpreading])
def test_a_graph_that_does_not_reach_a_row_has_no_vote_for_it(model):
    far = X.copy()
    far[80] += 50
    clf = VotingClassifier([("graph", model(kernel="rbf", gamma=5))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert clf.fit(far, Y).transduction_[80] == -1


@parametrize_with_checks(
    [VotingClassifier(members()[:2], voting="soft")],
    expected_failed_checks=lambda estimator: {
        "check_classifiers_classes": "-1 marks an unlabeled row",
    },
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)
