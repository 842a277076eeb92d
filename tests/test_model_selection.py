"""Folds and scorers for partly labeled y, on scikit-learn's own estimators."""

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.cluster import Birch, KMeans
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    get_scorer,
    make_scorer,
    silhouette_score,
)
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    RepeatedStratifiedKFold,
    ShuffleSplit,
    cross_val_predict,
    cross_val_score,
    cross_validate,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading, SelfTrainingClassifier

from sklabel import CollapseWarning
from sklabel.classification import FixMatchClassifier
from sklabel.clustering import (
    DCECClusterer,
    DeepClusterer,
    IICClusterer,
    IICSegmenter,
    SCANClusterer,
)
from sklabel.datasets import load_digit_images
from sklabel.embedding import AutoencoderTransformer
from sklabel.model_selection import (
    LabeledKFold,
    LabeledShuffleSplit,
    LabeledSplit,
    clustering_scorer,
    labeled_accuracy,
    labeled_scorer,
)


@pytest.fixture(scope="module")
def digits():
    """Digits with 10 labels per class: X, y with -1, the truth."""
    X, truth = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    rows = np.concatenate(
        [rng.permutation(np.flatnonzero(truth == c))[:10] for c in range(10)]
    )
    y = np.full(len(X), -1)
    y[rows] = truth[rows]
    return X / 16, y, truth


def toy(n_labeled=12, n_unlabeled=8):
    y = np.concatenate([np.arange(n_labeled) % 2, np.full(n_unlabeled, -1)])
    y = np.random.default_rng(0).permutation(y)
    return np.arange(len(y), dtype=float)[:, None], y


def test_plain_folds_are_silently_wrong_and_labeled_folds_are_right(digits):
    X, y, truth = digits
    model = SelfTrainingClassifier(KNeighborsClassifier(3), threshold=0.9)
    plain = cross_val_score(model, X, y, cv=5).mean()
    labeled = cross_val_score(model, X, y, cv=LabeledKFold(5)).mean()
    unlabeled = y == -1
    right = model.fit(X, y).score(X[unlabeled], truth[unlabeled])
    assert plain < 0.1
    assert right > 0.9
    assert abs(labeled - right) < 0.05


@given(
    st.lists(st.integers(-1, 2), min_size=1, max_size=40),
    st.integers(2, 4),
    st.booleans(),
)
def test_folds_partition_the_labeled_rows(labels, n_splits, shuffle):
    y = np.array(labels + [0] * n_splits)
    cv = LabeledKFold(n_splits, shuffle=shuffle, random_state=0 if shuffle else None)
    tested = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        folds = list(cv.split(np.zeros((len(y), 1)), y))
    assert len(folds) == n_splits == cv.get_n_splits()
    for train, test in folds:
        assert np.isin(np.flatnonzero(y == -1), train).all()
        assert (y[test] != -1).all()
        assert sorted(np.concatenate([train, test])) == list(range(len(y)))
        tested.append(test)
        counts = np.bincount(y[test], minlength=3)
        shares = np.bincount(y[y >= 0], minlength=3) / n_splits
        assert (np.abs(counts - shares) < 1).all()
    assert sorted(np.concatenate(tested)) == np.flatnonzero(y != -1).tolist()


@pytest.mark.parametrize(
    "names",
    [
        np.array(["b", "a", -1], dtype=object),
        np.array(["b", "a", None], dtype=object),
        np.array([1.0, 0.0, np.nan]),
        np.array([1, 0, None], dtype=object),
    ],
)
def test_every_kind_of_mark(names):
    X, y = toy()
    expected = [test.tolist() for _, test in LabeledKFold(3).split(X, y)]
    found = [test.tolist() for _, test in LabeledKFold(3).split(X, names[y])]
    assert len(found) == 3
    # classes change places, so folds are compared by their counts
    assert sorted(sum(found, [])) == sorted(sum(expected, []))


def test_shuffle_split_counts_labeled_rows_only():
    X, y = toy(n_labeled=20, n_unlabeled=100)
    cv = LabeledShuffleSplit(4, test_size=0.3, random_state=0)
    splits = list(cv.split(X, y))
    assert len(splits) == cv.get_n_splits(X, y) == 4
    for train, test in splits:
        assert len(test) == 6 and len(train) == 114
        assert np.bincount(y[test]).tolist() == [3, 3]
        assert not np.isin(test, train).any()
    again = list(cv.split(X, y))
    assert all((a[1] == b[1]).all() for a, b in zip(splits, again))
    assert len({tuple(sorted(test)) for _, test in splits}) > 1
    small = LabeledShuffleSplit(1, test_size=4, train_size=6, random_state=0)
    train, test = next(small.split(X, y))
    assert len(test) == 4 and len(train) == 106


def test_seed_of_the_shuffled_folds():
    X, y = toy()

    def tests(seed):
        cv = LabeledKFold(3, shuffle=True, random_state=seed)
        return [test.tolist() for _, test in cv.split(X, y)]

    assert tests(0) == tests(0)
    assert tests(0) != tests(1)


def test_any_splitter_inside():
    X, y = toy()
    repeated = LabeledSplit(RepeatedStratifiedKFold(n_splits=2, n_repeats=3))
    assert repeated.get_n_splits(X, y) == 6
    shuffled = LabeledSplit(ShuffleSplit(3, test_size=0.5, random_state=0))
    for cv in (repeated, shuffled, LabeledSplit(3)):
        splits = list(cv.split(X, y))
        assert len(splits) == cv.get_n_splits(X, y)
        for train, test in splits:
            assert (y[test] != -1).all()
            assert np.isin(np.flatnonzero(y == -1), train).all()


def test_groups_of_the_test_part_leave_the_unlabeled_rows_too():
    X, y = toy(12, 12)
    groups = np.arange(len(y)) % 4
    cv = LabeledSplit(GroupKFold(n_splits=4))
    splits = list(cv.split(X, y, groups))
    assert len(splits) == 4
    for train, test in splits:
        assert not np.isin(groups[test], groups[train]).any()
        free = (y == -1) & ~np.isin(groups, groups[test])
        assert np.isin(np.flatnonzero(free), train).all()
    assert LabeledSplit(LeaveOneGroupOut()).get_n_splits(X, y, groups) == 4
    with pytest.raises(ValueError, match=r"groups must have shape \(24,\)"):
        next(cv.split(X, y, groups[:3]))


def test_random_splits_do_not_use_groups_and_say_so():
    X, y = toy()
    with pytest.warns(UserWarning, match="groups parameter is ignored"):
        for train, _ in LabeledShuffleSplit(3).split(X, y, np.arange(len(y))):
            assert np.isin(np.flatnonzero(y == -1), train).all()


def test_groups_are_routed():
    X, y = toy(12, 12)
    groups = np.arange(len(y)) % 4
    model = LogisticRegression()
    with config_context(enable_metadata_routing=True):
        scores = cross_val_score(
            model,
            X,
            y,
            cv=LabeledSplit(GroupKFold(n_splits=4)),
            params={"groups": groups},
        )
    assert len(scores) == 4
    with config_context(enable_metadata_routing=False):
        plain = cross_val_score(
            model, X, y, cv=LabeledSplit(GroupKFold(n_splits=4)), groups=groups
        )
    np.testing.assert_array_equal(scores, plain)


def test_what_the_splitters_refuse():
    X, y = toy()
    with pytest.raises(ValueError, match="LabeledKFold needs y"):
        next(LabeledKFold().split(X))
    with pytest.raises(ValueError, match="no labeled row among its 20 rows"):
        next(LabeledKFold().split(X, np.full(20, -1)))
    with pytest.raises(ValueError, match="X has 19 rows, y has 20"):
        next(LabeledKFold().split(X[1:], y))
    with pytest.raises(ValueError, match="n_splits=13 is more than the number of lab"):
        next(LabeledKFold(13).split(X, y))
    with pytest.raises(ValueError, match="of any class, the largest of which has 6"):
        next(LabeledKFold(7).split(X, y))
    with pytest.raises(ValueError, match="at least one train/test split"):
        LabeledKFold(1)
    with pytest.raises(ValueError, match="random_state has no effect"):
        LabeledKFold(3, random_state=0)
    with pytest.raises(TypeError, match="number of folds or a splitter"):
        LabeledSplit("five")


def test_a_rare_class_warns_as_in_scikit_learn():
    X, y = toy()
    y[np.flatnonzero(y == 1)[:4]] = -1
    with pytest.warns(UserWarning, match="least populated class in y has only 2"):
        assert len(list(LabeledKFold(5).split(X, y))) == 5


def test_splitters_clone_pickle_and_print():
    cv = LabeledKFold(3, shuffle=True, random_state=0)
    assert "n_splits=3" in repr(cv) and "shuffle=True" in repr(cv)
    assert repr(pickle.loads(pickle.dumps(cv))) == repr(cv)
    clone(GridSearchCV(LogisticRegression(), {"C": [1]}, cv=cv))
    assert "GroupKFold" in repr(LabeledSplit(GroupKFold()))


def test_in_a_grid_search(digits):
    X, y, truth = digits
    search = GridSearchCV(
        LabelSpreading(kernel="knn"),
        {"n_neighbors": [3, 7, 200]},
        cv=LabeledKFold(3),
        scoring=labeled_accuracy,
    ).fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert search.best_score_ > 0.85
    assert scores[2] < scores[1]
    assert np.mean(search.best_estimator_.transduction_ == truth) > 0.85


def test_a_threshold_by_successive_halving():
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingGridSearchCV

    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 5)).astype(np.float32)
    X[::2] += 2
    y = np.where(np.arange(120) < 24, np.arange(120) % 2, -1)
    search = HalvingGridSearchCV(
        FixMatchClassifier(batch_size=8, lr=3e-3, random_state=0),
        {"threshold": [0.5, 0.8, 0.95, 1.0]},
        resource="max_steps",
        min_resources=10,
        max_resources=40,
        factor=2,
        cv=LabeledKFold(3),
        scoring=labeled_accuracy,
    ).fit(X, y)
    assert search.n_resources_ == [10, 20, 40] and search.n_candidates_ == [4, 2, 1]
    assert search.best_estimator_.max_steps == 40 and search.best_score_ > 0.8


def test_cross_val_predict_refuses():
    X, y = toy()
    with pytest.raises(ValueError, match="only works for partitions"):
        cross_val_predict(KNeighborsClassifier(3), X, y, cv=LabeledKFold(2))


class Constant(ClassifierMixin, BaseEstimator):
    """Predicts one class and remembers how many rows it saw."""

    def __init__(self, value):
        self.value = value
        self.classes_ = [value]

    def predict(self, X):
        self.seen = len(X)
        return np.full(len(X), self.value)


@pytest.mark.parametrize(
    "y, value",
    [
        (np.array([1, 0, -1, -1]), 1),
        (np.array([1.0, 0.0, np.nan, -1]), 1.0),
        (np.array(["b", "a", None, -1], dtype=object), "b"),
        (np.array([1, 0, None, None], dtype=object), 1),
    ],
)
def test_scorer_sees_labeled_rows_only(y, value):
    model = Constant(value)
    assert labeled_accuracy(model, np.zeros((4, 2)), y) == 0.5
    assert model.seen == 2
    assert labeled_accuracy(model, ["a.png", "b.png", "c.png", "d.png"], y) == 0.5
    assert labeled_accuracy(model, np.zeros((4, 3, 3, 1)), y) == 0.5


def test_scorer_of_a_name_or_a_callable(digits):
    X, y, _ = digits
    labeled = y != -1
    model = LogisticRegression(C=0.01).fit(X[labeled], y[labeled])
    for scoring in ("balanced_accuracy", "neg_log_loss", "roc_auc_ovr"):
        expected = get_scorer(scoring)(model, X[labeled], y[labeled])
        assert labeled_scorer(scoring)(model, X, y) == expected

    def rows_seen(estimator, X, y):
        return len(X)

    assert labeled_scorer(rows_seen)(model, X, y) == labeled.sum() == 100


def test_scorer_cuts_weights_to_labeled_rows():
    y = np.array([1, 0, -1, -1])
    weight = np.array([3.0, 1.0, 100.0, 100.0])
    score = labeled_accuracy(Constant(1), np.zeros((4, 1)), y, sample_weight=weight)
    assert score == 0.75


def test_scorer_refuses():
    with pytest.raises(ValueError, match="no labeled row among its 2 rows"):
        labeled_accuracy(Constant(1), np.zeros((2, 1)), [-1, -1])
    with pytest.raises(ValueError, match="acuracy"):
        labeled_scorer("acuracy")
    with pytest.raises(TypeError, match="got 3"):
        labeled_scorer(3)


def test_scorer_pickles_prints_and_is_routed(digits):
    assert "accuracy" in repr(labeled_accuracy)
    y = np.array([1, 0, -1])
    copy = pickle.loads(pickle.dumps(labeled_accuracy))
    assert copy(Constant(1), np.zeros((3, 1)), y) == 0.5
    X, y = digits[0][:300], digits[2][:300].copy()
    y[::6] = -1
    with config_context(enable_metadata_routing=True):
        scorer = labeled_scorer(make_scorer(accuracy_score)).set_score_request(
            sample_weight=True
        )
        found = cross_validate(
            KNeighborsClassifier(3),
            X,
            y,
            cv=LabeledKFold(2),
            scoring={
                "plain": labeled_accuracy.set_score_request(sample_weight=False),
                "weighted": scorer,
            },
            params={"sample_weight": np.linspace(0, 1, len(y))},
        )
    assert not np.array_equal(found["test_plain"], found["test_weighted"])


# -- clusters without labels


def three_groups(n=120):
    rng = np.random.default_rng(0)
    return np.repeat(np.eye(5)[:3] * 8, n // 3, axis=0) + rng.normal(size=(n, 5))


@pytest.mark.parametrize("figure", ["neighbor_agreement", "silhouette", "stability"])
def test_too_many_groups_are_seen_without_labels(figure):
    search = GridSearchCV(
        KMeans(n_init=5, random_state=0),
        {"n_clusters": [3, 2, 7]},
        scoring=clustering_scorer(figure, n_neighbors=10),
        cv=KFold(2, shuffle=True, random_state=0),
    ).fit(three_groups())
    # whole groups in one cluster cost little: where 2 scored alike, 3 came first
    assert search.best_params_ == {"n_clusters": 3}
    assert search.best_score_ > 0.6
    three, _, seven = search.cv_results_["mean_test_score"]
    assert seven < three - 0.2


def test_agreement_with_neighbors_is_corrected_for_chance():
    Z, score = three_groups(), clustering_scorer(n_neighbors=5)

    class Fixed:
        def __init__(self, labels):
            self.labels = labels

        def predict(self, X):
            return self.labels

    truth = np.repeat([0, 1, 2], 40)
    assert score(Fixed(truth), Z) == 1
    shuffled = np.random.default_rng(0).permutation(truth)
    assert abs(score(Fixed(shuffled), Z)) < 0.15
    assert score(Fixed(truth * 0), Z) == 0
    # an unreadable row has no cluster, and does not count
    assert score(Fixed(np.where(np.arange(120) == 7, -1, truth)), Z) == 1
    with pytest.raises(ValueError, match="no row with a cluster"):
        score(Fixed(truth * 0 - 1), Z)


def test_clusterers_are_scored_in_their_embedding():
    Z = three_groups().astype(np.float32)
    embedder = AutoencoderTransformer(
        2, hidden_sizes=(9,), max_steps=200, random_state=0
    )
    fitted = DCECClusterer(3, embedder=embedder, max_steps=20, random_state=0).fit(Z)
    p = fitted.predict_proba(Z)
    assert clustering_scorer("confidence")(fitted, Z) == pytest.approx(p.max(1).mean())
    for figure in ("neighbor_agreement", "silhouette", "stability"):
        own = clustering_scorer(figure)(fitted, Z)
        other = clustering_scorer(figure, embedder=fitted.embedder_)(fitted, Z)
        assert own == other > 0.3


@pytest.mark.parametrize("Clusterer", [DeepClusterer, IICClusterer, SCANClusterer])
def test_every_clusterer_is_scored_on_images_alone_and_in_a_pipeline(Clusterer):
    images = load_digit_images().images[:60]
    clusterer = Clusterer(3, max_steps=3, batch_size=20, random_state=0)
    x = images.reshape(60, -1) / 16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        on_images = clone(clusterer).fit(images)
        piped = make_pipeline(StandardScaler(), clone(clusterer)).fit(x)
        for figure in ("neighbor_agreement", "silhouette", "stability", "confidence"):
            score = clustering_scorer(figure)
            found = score(piped, x)
            assert np.isfinite(score(on_images, images)) and np.isfinite(found)
            if figure != "stability":
                assert found == score(piped[-1], piped[:-1].transform(x))


@pytest.mark.parametrize("piped", [False, True])
def test_the_stability_of_a_frozen_clusterer_is_refused_and_it_stays(piped):
    Z = three_groups()
    model = KMeans(3, random_state=0).fit(Z)
    frozen = FrozenEstimator(model)
    if piped:
        frozen = make_pipeline(FrozenEstimator(StandardScaler().fit(Z)), frozen)
    with pytest.raises(ValueError, match="second KMeans.*without FrozenEstimator"):
        clustering_scorer("stability")(frozen, Z)
    assert model.random_state == 0


def test_stability_needs_a_seed():
    Z = three_groups()
    with pytest.raises(ValueError, match="Birch has no random_state"):
        clustering_scorer("stability")(Birch(n_clusters=3).fit(Z), Z)
    # what is frozen before the clusterer does no harm
    scaled = FrozenEstimator(StandardScaler().fit(Z))
    model = make_pipeline(scaled, KMeans(3, n_init=5, random_state=0)).fit(Z)
    assert clustering_scorer("stability")(model, Z) == 1


def test_clusterers_of_others_are_scored_on_x_and_not_on_their_own_distances():
    Z = three_groups()
    model = KMeans(7, n_init=5, random_state=0).fit(Z)
    found = clustering_scorer("silhouette")(model, Z)
    assert found == pytest.approx(silhouette_score(Z, model.labels_))
    piped = make_pipeline(StandardScaler(), KMeans(7, random_state=0)).fit(Z)
    expected = silhouette_score(StandardScaler().fit_transform(Z), piped.predict(Z))
    found = clustering_scorer("silhouette")(piped, Z)
    assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="KMeans has no predict_proba"):
        clustering_scorer("confidence")(piped, Z)
    score, sparse = clustering_scorer(), csr_array(Z)
    assert score(KMeans(3, random_state=0).fit(sparse), sparse) == score(
        KMeans(3, random_state=0).fit(Z), Z
    )


def test_one_cluster_is_never_the_best():
    # it would be found again with every seed
    score, Z = clustering_scorer("stability"), three_groups()
    assert score(KMeans(1).fit(Z), Z) == 0 < score(KMeans(3, random_state=0).fit(Z), Z)


def test_maps_of_clusters_are_scored_by_pixels_side_by_side():
    images = load_digit_images().images[:20]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        segmenter = IICSegmenter(2, half_side=1, max_steps=2, random_state=0).fit(
            images
        )
        for figure in ("stability", "confidence", "neighbor_agreement"):
            assert -1 <= clustering_scorer(figure)(segmenter, images) <= 1
    with pytest.raises(ValueError, match="IICSegmenter gives each image a map"):
        clustering_scorer("silhouette")(segmenter, images)

    class Fixed:
        def __init__(self, maps):
            self.maps = maps

        def predict(self, X):
            return self.maps

    halves = np.zeros((5, 8, 8), dtype=int)
    halves[:, 4:] = 1
    # of 112 pairs 8 lie across the border; half of all would agree by chance
    score = clustering_scorer()
    assert score(Fixed(halves), images) == pytest.approx((104 / 112 - 0.5) / 0.5)
    unreadable = np.concatenate([halves, np.full((1, 8, 8), -1)])
    assert score(Fixed(unreadable), images) == score(Fixed(halves), images)
    noise = np.random.default_rng(0).integers(0, 2, (50, 8, 8))
    assert abs(score(Fixed(noise), images)) < 0.1
    with pytest.raises(ValueError, match="Maps of one pixel"):
        score(Fixed(noise[:, :1, :1]), images)


def test_an_unknown_figure_is_refused():
    with pytest.raises(ValueError, match="figure='beauty'"):
        clustering_scorer("beauty")
    assert repr(clustering_scorer()) == "clustering_scorer('neighbor_agreement')"
    pickle.loads(pickle.dumps(clustering_scorer()))
