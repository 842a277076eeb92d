"""The base: one seed, held estimators, what is written down after a fit."""

import pickle
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.frozen import FrozenEstimator

import sklabel
from sklabel import CollapseWarning
from sklabel._core.health import neighbor_agreement
from sklabel._core.roles import classification as role
from sklabel.classification import (
    CCLClassifier,
    FixMatchClassifier,
    SimCLRv2Classifier,
    SupervisedClassifier,
)
from sklabel.classification._fixmatch import _FixMatch
from sklabel.clustering import DCECClusterer, SCANClusterer
from sklabel.embedding import (
    AutoencoderTransformer,
    BYOLTransformer,
    SimCLRTransformer,
)
from sklabel.embedding._autoencoder import _Autoencoder
from sklabel.embedding._simclr import _SimCLR

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
X = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
Y = np.where(np.arange(40) < 10, np.arange(40) % 2, -1)


class Spy(BaseEstimator):
    """An embedder that remembers how it was fitted."""

    n_fits = 0

    def __init__(self, image_shape=None, image_size=None, random_state=None):
        self.image_shape = image_shape
        self.image_size = image_size
        self.random_state = random_state

    def fit(self, X, y=None):
        type(self).n_fits += 1
        self.fitted_ = True
        return self

    def transform(self, X):
        return np.asarray(X, dtype=float).reshape(len(X), -1)


def scan(**parameters):
    given = {"max_steps": 1, "self_label_epochs": 1, "random_state": 0, **parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        return SCANClusterer(2, **given)


def fit(estimator, *data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        return estimator.fit(*data)


def test_a_held_estimator_reads_images_as_its_holder_does():
    flat = IMAGES.reshape(30, -1)
    held = fit(scan(embedder=Spy(), image_shape=(8, 8, 3)), flat).embedder_
    assert held.image_shape == (8, 8, 3)
    assert held.random_state is not None
    own = fit(scan(embedder=Spy(random_state=5), image_shape=(8, 8, 3)), flat)
    assert own.embedder_.random_state == 5
    assert own.embedder.image_shape is None  # the one given is left alone


def test_a_frozen_estimator_is_not_fitted_again():
    frozen = FrozenEstimator(Spy().fit(IMAGES))
    before = Spy.n_fits
    assert fit(scan(embedder=frozen), IMAGES).embedder_ is frozen
    assert Spy.n_fits == before


@pytest.mark.parametrize(
    "random_state", [0, np.random.RandomState(0), None], ids=["int", "state", "none"]
)
def test_kinds_of_seeds(random_state):
    first = SimCLRTransformer(max_steps=1, random_state=random_state).fit_transform(X)
    again = SimCLRTransformer(max_steps=1, random_state=random_state).fit_transform(X)
    # a RandomState goes on, as everywhere in scikit-learn
    assert np.array_equal(first, again) == (random_state == 0)


def test_score_is_repeatable_and_leaves_the_estimator_alone():
    fitted = SimCLRTransformer(max_steps=2, random_state=0).fit(X)
    Z = fitted.transform(X)
    assert fitted.score(X) == fitted.score(X) < 0
    np.testing.assert_array_equal(fitted.transform(X), Z)


@pytest.mark.parametrize(
    "form",
    [
        np.asarray,
        list,
        lambda y: y[:, None],
        lambda y: pd.DataFrame({"y": y}),
        lambda y: pd.Series(y, index=np.arange(len(y))[::-1]),
        lambda y: np.where(y >= 0, y, np.nan),
        lambda y: np.array([k if k >= 0 else None for k in y]),
    ],
    ids=["array", "list", "column", "frame", "series", "NaN", "None"],
)
def test_score_takes_y_in_every_form(form):
    clf = FixMatchClassifier(max_steps=5, batch_size=4, random_state=0).fit(X, Y)
    y = np.where(np.arange(40) < 30, np.arange(40) % 2, -1)
    truth = np.mean(clf.predict(X[:30]) == y[:30])
    assert 0 < truth < 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataConversionWarning)
        assert clf.score(X, form(y)) == pytest.approx(truth)
        weight = np.where(clf.predict(X) == 0, 2.0, 1.0)
        hits = clf.predict(X[:30]) == y[:30]
        expected = np.average(hits, weights=weight[:30])
        assert clf.score(X, form(y), sample_weight=weight) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no labeled row"):
        clf.score(X, np.full(40, -1))


@pytest.mark.parametrize("make", [SimCLRTransformer, FixMatchClassifier, SCANClusterer])
def test_going_on_keeps_no_older_weights(make):
    given = {"n_clusters": 2, "self_label_epochs": 1} if make is SCANClusterer else {}
    fitted = make(max_steps=1, warm_start=True, random_state=0, **given)
    fit(fitted, X, Y)
    size = len(pickle.dumps(fitted))
    fit(fitted, X, Y)
    assert len(pickle.dumps(fitted)) < 1.1 * size


@pytest.mark.parametrize("mark", [-1, None, np.nan], ids=str)
def test_unreadable_rows_come_back_as_y_marks_them(mark, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(9)]
    for file, image in zip(files, IMAGES, strict=False):
        Image.fromarray(image).save(file)
    files[4].write_bytes(b"no image")
    y = np.array([0, 1, 0, 1, *[mark] * 5], dtype=object)
    clf = FixMatchClassifier(max_steps=1, on_error="skip", random_state=0)
    with pytest.warns(UserWarning, match="1 of 9"):
        found = clf.fit(files, y).transduction_
    assert str(found[4]) == str(mark)
    assert set(np.delete(found, 4)) <= {0, 1}


def test_what_is_written_down():
    fitted = FixMatchClassifier(max_epochs=3, batch_size=4, random_state=0).fit(X, Y)
    assert fitted.n_iter_ == len(fitted.net_.history) == 3
    assert fitted.sample_shape_ == (5,) and fitted.n_features_in_ == 5
    assert fitted.interrupted_ is False
    assert isinstance(fitted.encoder_, torch.nn.Module)


def test_settings_of_the_net_win():
    fitted = SimCLRTransformer(
        max_epochs=5, net_params={"max_epochs": 2, "optimizer__betas": (0.5, 0.9)}
    ).fit(X)
    assert fitted.n_iter_ == 2
    assert fitted.net_.optimizer_.param_groups[0]["betas"] == (0.5, 0.9)
    with pytest.raises(ValueError, match="no_such_setting"):
        SimCLRTransformer(net_params={"no_such_setting": 1}).fit(X)


@pytest.mark.parametrize("n", [2, 3, 33])
def test_few_and_odd_numbers_of_rows(n):
    embedder = SimCLRTransformer(max_steps=2, batch_size=32, random_state=0)
    assert np.isfinite(embedder.fit_transform(X[:n] if n < 40 else X)).all()


def test_transform_streams_a_memory_map(tmp_path, monkeypatch):
    big = np.lib.format.open_memmap(
        tmp_path / "big.npy", "w+", np.uint8, (2000, 8, 8, 3)
    )
    big[:] = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3))
    fitted = SimCLRTransformer(max_steps=1, random_state=0).fit(IMAGES)
    largest = [0]
    forward = type(fitted.net_.module_).forward

    def watch(self, x):
        largest[0] = max(largest[0], len(x))
        return forward(self, x)

    monkeypatch.setattr(type(fitted.net_.module_), "forward", watch)
    assert (
        fitted.transform(np.load(tmp_path / "big.npy", mmap_mode="r")).shape[0] == 2000
    )
    assert largest[0] <= 256


def test_warnings_point_at_the_users_line():
    with pytest.warns(CollapseWarning) as caught:
        SimCLRTransformer(max_steps=1, augment=None).fit(np.ones((20, 4)))
    assert [Path(w.filename).name for w in caught] == ["test_learner.py"]


# -- stages of their own


def interrupted_after(monkeypatch, cls, n_steps, error=KeyboardInterrupt):
    """Let Ctrl-C be pressed in a step of a module's training, or the power fail."""
    loss, calls = cls.loss, []

    def broken(self, *given):
        calls.append(1)
        if len(calls) == n_steps:
            raise error
        return loss(self, *given)

    monkeypatch.setattr(cls, "loss", broken)


@pytest.mark.parametrize("warm_start", [False, True])
@pytest.mark.parametrize("name", ["simclrv2", "ccl", "scan", "dcec"])
def test_what_ctrl_c_broke_off_is_built_on_later(
    name, warm_start, tmp_path, monkeypatch
):
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    y = np.where(np.arange(60) < 20, np.arange(60) % 2, -1)
    short = {"max_epochs": 3, "batch_size": 20, "random_state": 0}
    simclr = SimCLRTransformer(projection_layers=3, **short)
    codes = AutoencoderTransformer(3, **short)
    cls, embedder, module = {
        "simclrv2": (SimCLRv2Classifier, simclr, _SimCLR),
        "ccl": (CCLClassifier, codes, _Autoencoder),
        "scan": (SCANClusterer, simclr, _SimCLR),
        "dcec": (DCECClusterer, codes, _Autoencoder),
    }[name]

    def make(**more):
        kwargs = {"n_clusters": 2} if name in ("scan", "dcec") else {}
        return cls(embedder=embedder, max_steps=4, random_state=0, **kwargs, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = make().fit(x, y).predict_proba(x)
        clf = make(checkpoint_dir=tmp_path, warm_start=warm_start)
        with monkeypatch.context() as patch:
            interrupted_after(patch, module, 5)
            clf.fit(x, y)
        assert clf.interrupted_ and clf.embedder_.interrupted_ and clf.n_iter_ == 0
        again = clf.fit(x, y)
    assert not again.interrupted_
    np.testing.assert_array_equal(again.predict_proba(x), whole)


def test_a_checkpoint_belongs_to_the_weights_it_started_from(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    given = {"max_steps": 4, "warm_start": True, "random_state": 0}
    plain = SimCLRTransformer(**given).fit(x)
    kept = SimCLRTransformer(**given, checkpoint_dir=tmp_path).fit(x)
    np.testing.assert_array_equal(kept.transform(x), plain.transform(x))
    once = kept.transform(x)
    # the second fit is another training, which goes on from the first
    np.testing.assert_array_equal(kept.fit(x).transform(x), plain.fit(x).transform(x))
    assert not np.array_equal(kept.transform(x), once)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("kept", [False, True])
def test_what_was_broken_off_goes_on_from_its_checkpoint(
    error, kept, tmp_path, monkeypatch
):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    given = {"max_epochs": 4, "batch_size": 20, "warm_start": True, "random_state": 0}
    whole = SimCLRTransformer(**given).fit(x)
    broken = SimCLRTransformer(**given, checkpoint_dir=tmp_path / "runs")
    for fit in range(2):  # the second goes on from the first
        if fit:
            whole.fit(x)
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            interrupted_after(patch, _SimCLR, 5, error)
            with suppress(RuntimeError):
                broken.fit(x)
        if kept and (fit or error is KeyboardInterrupt):  # else it is not fitted
            broken.save(tmp_path / "model")
            broken = sklabel.load(tmp_path / "model")
            broken.set_params(checkpoint_dir=tmp_path / "runs")
        broken.fit(x)
        np.testing.assert_array_equal(broken.transform(x), whole.transform(x))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, ValueError])
@pytest.mark.parametrize("warm_start", [False, True])
def test_a_fit_that_fails_leaves_what_was_fitted(error, warm_start, monkeypatch):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    y = np.where(np.arange(40) < 20, np.arange(40) % 2, -1)
    given = {"warm_start": warm_start, "max_steps": 3, "random_state": 0}
    clf = FixMatchClassifier(**given).fit(x, y)
    before, p = {**vars(clf)}, clf.predict_proba(x)

    def breaks(*_, **__):
        raise error("at the end")

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(FixMatchClassifier, "_finish", breaks)
        clf.fit(x if warm_start else x[:, :4], y)
    assert vars(clf).keys() == before.keys()
    assert clf.n_features_in_ == 6 and clf.net_ is before["net_"]
    np.testing.assert_array_equal(clf.predict_proba(x), p)
    fresh = FixMatchClassifier(**given)
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(FixMatchClassifier, "_finish", breaks)
        fresh.fit(x, y)
    with pytest.raises(NotFittedError):
        fresh.predict(x)


def test_a_training_that_diverges_in_its_last_step_is_an_error():
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    clf = SupervisedClassifier(max_steps=1, lr=1e30, random_state=0)
    with pytest.raises(ValueError, match=r"NaN or infinite .*lower lr=1e\+30"):
        clf.fit(x, np.arange(40) % 2)
    with pytest.raises(NotFittedError):
        clf.predict(x)


def test_other_labels_after_a_break_go_on_from_what_was_learned(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    y = np.where(np.arange(60) < 20, np.arange(60) % 2, -1)
    more = np.where(np.arange(60) < 40, np.arange(60) % 2, -1)
    given = {"warm_start": True, "max_epochs": 6, "batch_size": 10, "random_state": 0}
    weights = []
    for folder in (None, tmp_path):
        clf = FixMatchClassifier(checkpoint_dir=folder, **given)
        with monkeypatch.context() as patch, pytest.warns(UserWarning, match="interr"):
            interrupted_after(patch, _FixMatch, 3)
            fit(clf, x, y)
        fit(clf, x, more)
        weights.append(clf.predict_proba(x))
    np.testing.assert_array_equal(*weights)


def test_a_mistaken_fit_loses_nothing(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    given = {"max_epochs": 4, "batch_size": 20, "warm_start": True, "random_state": 0}
    whole = SimCLRTransformer(**given).fit(x).fit(x)
    broken = SimCLRTransformer(**given, checkpoint_dir=tmp_path).fit(x)
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="interr"):
        interrupted_after(patch, _SimCLR, 5)
        broken.fit(x)
    with pytest.raises(ValueError, match="continues on samples of shape"):
        broken.fit(x[:, :5])
    np.testing.assert_array_equal(broken.fit(x).transform(x), whole.transform(x))


def test_ctrl_c_while_withheld_rows_are_watched(monkeypatch):
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    watch, calls = role.watch_accuracy, []

    def broken(*given, **more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return watch(*given, **more)

    monkeypatch.setattr(role, "watch_accuracy", broken)
    clf = FixMatchClassifier(calibration_size=0.5, max_epochs=3, batch_size=10)
    with pytest.warns(UserWarning, match="was interrupted"):
        fit(clf, x, np.arange(60) % 2)
    assert clf.interrupted_ and np.isfinite(clf.predict_proba(x)).all()


@pytest.mark.parametrize("fits", [1, 2])
def test_an_embedder_broken_off_does_not_undo_an_earlier_fit(fits, monkeypatch):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    clusterer = scan(embedder=SimCLRTransformer(max_epochs=2), warm_start=True)
    for _ in range(fits - 1):
        fit(clusterer, x)
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interrupted_after(patch, _SimCLR, 2)
        clusterer.fit(x)
    assert clusterer.interrupted_
    before = [p.detach().clone() for p in clusterer.encoder_.parameters()]
    fit(clusterer.set_params(lr=1e-12), x)
    after = list(clusterer.encoder_.parameters())
    same = all(torch.allclose(a, b) for a, b in zip(before, after, strict=True))
    assert same == (fits == 2)


def test_checkpoints_of_stages_are_found_without_a_seed(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    for _ in range(2):
        embedder = SimCLRTransformer(max_steps=2)
        found = scan(embedder=embedder, random_state=None, checkpoint_dir=tmp_path)
        p = fit(found, x).predict_proba(x)
    assert len(list(tmp_path.iterdir())) == 3  # SimCLR, clustering, self-labeling
    again = scan(embedder=embedder, random_state=None, checkpoint_dir=tmp_path)
    np.testing.assert_array_equal(fit(again, x).predict_proba(x), p)


def test_black_and_white_are_those_of_the_embedder():
    images = np.random.default_rng(0).normal(size=(40, 8, 8)).astype(np.float32)
    images[0, 0, 0] = 9  # not in what comes later
    embedder = AutoencoderTransformer(3, max_steps=2, random_state=0).fit(images)
    frozen = FrozenEstimator(embedder)
    clusterer = DCECClusterer(2, embedder=frozen, max_steps=1, lr=1e-12, random_state=0)
    clusterer = fit(clusterer, images[1:])
    Z = embedder.transform(images[1:])
    nearest = ((Z[:, None] - clusterer.cluster_centers_) ** 2).sum(2).argmin(1)
    np.testing.assert_array_equal(clusterer.labels_, nearest)
    clf = FixMatchClassifier(backbone=embedder, max_steps=1, random_state=0)
    y = np.where(np.arange(39) < 6, np.arange(39) % 2, -1)
    assert fit(clf, images[1:], y).net_.pixel_range == embedder.net_.pixel_range
    # bytes and [0, 1] say themselves what they are
    bright = np.abs(images[1:]) / 10
    assert fit(clf, bright, y).net_.pixel_range == (0, 1)


def test_codes_behind_a_head_are_refused():
    embedder = SimCLRTransformer(output="projection", max_steps=1)
    for held in (embedder, FrozenEstimator(embedder)):
        clusterer = DCECClusterer(2, embedder=held, reconstruction_weight=0)
        with pytest.raises(ValueError, match='use output="backbone"'):
            clusterer.fit(X)


@pytest.mark.parametrize("size", [11, 100])
def test_the_agreement_of_neighbors_knows_small_clusters(size):
    Z = np.repeat(np.eye(20, dtype=np.float32) * 9, size, axis=0)
    Z += np.random.default_rng(0).normal(size=Z.shape, scale=0.1).astype(np.float32)
    labels = np.repeat(np.arange(20), size)
    assert neighbor_agreement(Z, labels) == 1
    assert neighbor_agreement(Z, np.roll(labels, size // 2)) < 0.7
    shuffled = np.random.default_rng(0).permutation(labels)
    assert neighbor_agreement(Z, shuffled) < 0.1
    # a row is no neighbor of its own, not even among its copies
    copies = np.zeros((30, 2), np.float32)
    assert neighbor_agreement(copies, np.arange(30)) == 0


@pytest.mark.parametrize("kind", ["dcec", "ccl", "simclrv2"])
def test_a_fitted_backbone_goes_to_the_embedder_with_what_it_learned(kind):
    given = {"max_steps": 1, "lr": 1e-9, "random_state": 0}
    hidden = {"hidden_sizes": (9,)}
    embedders = {
        "dcec": AutoencoderTransformer(3, **hidden, max_steps=30, random_state=0),
        "ccl": AutoencoderTransformer(3, **hidden, max_steps=30, random_state=0),
        "simclrv2": SimCLRTransformer(max_steps=30, random_state=0),
    }
    fitted = embedders[kind].fit(X)
    further = type(fitted)(**fitted.get_params()).set_params(**given)
    make = {"dcec": DCECClusterer, "ccl": CCLClassifier, "simclrv2": SimCLRv2Classifier}
    estimator = make[kind](backbone=fitted, embedder=further, **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(X) if kind == "dcec" else estimator.fit(X, Y)
    first = next(p for p in fitted.encoder_.parameters() if p.ndim == 2)
    found = [p for p in estimator.embedder_.encoder_.parameters() if p.ndim == 2]
    torch.testing.assert_close(found[0], first, rtol=0, atol=1e-6)


def test_an_embedder_without_a_decoder_is_refused_before_it_learns():
    class Unfit(SimCLRTransformer):
        def fit(self, X, y=None):
            raise AssertionError

    with pytest.raises(ValueError, match="has no decoder"):
        DCECClusterer(2, embedder=Unfit()).fit(X)
    with pytest.raises(ValueError, match="has no decoder"):
        CCLClassifier(embedder=Unfit()).fit(X, Y)


@pytest.mark.parametrize("method", [SimCLRTransformer, BYOLTransformer])
def test_features_that_become_infinite_name_the_learning_rate(method):
    x = np.random.default_rng(0).integers(0, 255, (24, 12, 12, 3), np.uint8)
    embedder = method(max_epochs=1, lr=1e9, random_state=0)
    with pytest.raises(ValueError, match=r"lower lr=1000000000\.0"):
        embedder.fit(x)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (
            {"self_label_threshold": 0, "self_label_lr": 1e30},
            r"lower self_label_lr=1e\+30\.$",
        ),
        # in its first stage, which self_label_lr is not for
        ({"lr": 1e30, "self_label_lr": 1e30}, r"lower lr=1e\+30"),
    ],
)
def test_a_stage_that_diverges_names_its_own_learning_rate(given, named):
    x = np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32)
    embedder = SimCLRTransformer(max_epochs=1)
    clusterer = SCANClusterer(2, embedder=embedder, max_epochs=1, random_state=0)
    with pytest.raises(ValueError, match=named):
        clusterer.set_params(**given).fit(x)


def test_a_rate_that_is_scaled_is_named_as_it_was_given():
    x = np.random.default_rng(0).integers(0, 255, (24, 12, 12, 3), np.uint8)
    given = {"lr": 1e9, "lr_scaling": "linear", "batch_size": 8, "random_state": 0}
    with pytest.raises(ValueError, match=r"lower lr=1000000000\.0"):
        SimCLRTransformer(max_epochs=1, **given).fit(x)
    own = {"lr": 1e9}
    with pytest.raises(ValueError, match=r"lower net_params={'lr': 1000000000\.0}"):
        SimCLRTransformer(max_epochs=1, batch_size=8, net_params=own).fit(x)
