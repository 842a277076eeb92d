"""Saved estimators: the same predictions after loading, nothing executable."""

import hashlib
import itertools
import json
import os
import stat
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator

import sklabel
from sklabel._core import files
from sklabel._core.identity import fingerprint
from sklabel._core.samplers import Shuffled
from sklabel._core.samples import Samples
from sklabel.augment import Contrastive, RandAugment, Weak
from sklabel.classification import FixMatchClassifier
from sklabel.clustering import SCANClusterer
from sklabel.embedding import SimCLRTransformer
from sklabel.selection import USLSelector

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
X = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
NAMES = np.array(["ant", "bee"], dtype=object)


def partly(n):
    y = np.full(n, -1, dtype=object)
    y[:10] = NAMES[np.arange(10) % 2]
    return y


def embedder(x):
    view = Contrastive(flip=0, crop=(0.5, 1.0)) if x.ndim == 4 else "auto"
    return SimCLRTransformer(augment=view, max_steps=2, random_state=0).fit(x)


MAKE = {
    "simclr": embedder,
    "fixmatch": lambda x: FixMatchClassifier(
        weak_augment=Weak(flip=0) if x.ndim == 4 else "auto",
        backbone=embedder(x),
        max_steps=2,
        batch_size=4,
        random_state=0,
    ).fit(x, partly(len(x))),
    "ctaugment": lambda x: FixMatchClassifier(
        strong_augment="ctaugment" if x.ndim == 4 else None,
        max_steps=2,
        batch_size=4,
        random_state=0,
    ).fit(x, partly(len(x))),
    "scan": lambda x: SCANClusterer(
        2,
        embedder=FrozenEstimator(embedder(x)),
        augment=RandAugment(weak=Weak(flip=0)) if x.ndim == 4 else "auto",
        max_epochs=2,
        self_label_epochs=1,
        random_state=0,
    ).fit(x),
    "usl": lambda x: USLSelector(3, random_state=0).fit(x.reshape(len(x), -1)),
}


def answer(estimator, x):
    for verb in ("predict_proba", "transform"):
        if hasattr(estimator, verb):
            return getattr(estimator, verb)(x)
    return estimator.sample_indices_


@pytest.mark.parametrize("x", [X, IMAGES], ids=["vectors", "images"])
@pytest.mark.parametrize("name", MAKE)
def test_loaded_is_saved(name, x, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fitted = MAKE[name](x)
    if not hasattr(fitted, "save"):
        pytest.skip("selectors are a list of rows: joblib keeps them")
    fitted.save(tmp_path / "model")
    loaded = sklabel.load(tmp_path / "model")
    np.testing.assert_array_equal(answer(loaded, x), answer(fitted, x))
    kept = {k for k in vars(fitted) if k.endswith("_") and k != "net_"}
    assert kept <= set(vars(loaded))
    for attribute in ("classes_", "transduction_", "labels_", "confidence_"):
        if attribute in kept:
            a, b = getattr(loaded, attribute), getattr(fitted, attribute)
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
    losses = [e.net_.history[:, "train_loss"] for e in (loaded, fitted)]
    assert losses[0] == losses[1]
    assert repr(loaded.get_params()) == repr(fitted.get_params())


def test_files_hold_data_only_and_the_users_mode(tmp_path):
    before = os.umask(0o022)
    try:
        MAKE["simclr"](X).save(tmp_path)
    finally:
        os.umask(before)
    (weights,) = tmp_path.glob("weights-*.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {
        "estimator.json",
        weights.name,
    }
    checksum = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights.stem == f"weights-{checksum[:12]}"
    json.loads((tmp_path / "estimator.json").read_text())
    if os.name == "posix":
        for path in tmp_path.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_what_only_pickle_keeps_is_refused_and_nothing_is_written(tmp_path):
    body = torch.nn.Linear(5, 3)
    fitted = SimCLRTransformer(backbone=body, max_steps=1).fit(X)
    with pytest.raises(TypeError, match="backbone.*Linear.*joblib"):
        fitted.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_unfitted_estimator_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not fitted"):
        SimCLRTransformer().save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def _weights(folder):
    (path,) = folder.glob("weights-*.safetensors")
    return path


def _cut(path):
    path.write_bytes(path.read_bytes()[:20])


def _write(text):
    return lambda f: (f / "estimator.json").write_text(text)


def _replace(old, new):
    def damage(folder):
        path = folder / "estimator.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return damage


def _take_weights_of(make):
    def damage(folder):
        make().save(folder / "other")
        os.replace(_weights(folder / "other"), _weights(folder))

    return damage


def _flip_a_bit(folder):
    path = _weights(folder)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "nothing there": lambda f: [p.unlink() for p in f.iterdir()],
    "no description": lambda f: (f / "estimator.json").unlink(),
    "no weights": lambda f: _weights(f).unlink(),
    "half a description": lambda f: _cut(f / "estimator.json"),
    "half the weights": lambda f: _cut(_weights(f)),
    "another format": _write('{"format": 99}'),
    "a list": _write("[]"),
    "a text": _write('"estimator"'),
    "a format and nothing else": _write('{"format": 1}'),
    "a foreign class": _replace('"embedding"', '"os"'),
    "an unknown class": _replace("SimCLRTransformer", "Popen"),
    "an unknown parameter": _replace('"temperature"', '"temper"'),
    "an unknown policy": _replace('"Contrastive"', '"build_augment"'),
    "one bit of the weights": _flip_a_bit,
    "weights of another method": _take_weights_of(lambda: MAKE["fixmatch"](X)),
    # as a save over an older one leaves it that was broken off between its two files
    "weights of another fit": _take_weights_of(lambda: MAKE["simclr"](IMAGES + 1)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_gives_one_clear_error(damage, tmp_path):
    MAKE["simclr"](IMAGES).save(tmp_path)
    DAMAGES[damage](tmp_path)
    with pytest.raises(ValueError) as caught:
        sklabel.load(tmp_path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and repr(str(tmp_path)) in message


def test_loading_draws_nothing_from_the_global_generators(tmp_path):
    MAKE["simclr"](X).save(tmp_path)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    sklabel.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])


def test_saving_again_replaces_the_older_one(tmp_path):
    MAKE["fixmatch"](X).save(tmp_path)
    fitted = MAKE["simclr"](IMAGES)
    fitted.save(tmp_path)
    np.testing.assert_array_equal(
        sklabel.load(tmp_path).transform(IMAGES), fitted.transform(IMAGES)
    )


def test_a_loaded_embedder_is_a_backbone(tmp_path):
    MAKE["simclr"](X).save(tmp_path)
    clf = FixMatchClassifier(backbone=sklabel.load(tmp_path), max_steps=1)
    assert clf.fit(X, partly(40)).predict(X).shape == (40,)


def _thrice(step, total_steps, warmup_steps):
    return 3.0


def test_fingerprints_tell_functions_apart():
    def name(schedule):
        return fingerprint(
            SimCLRTransformer(schedule=schedule), Shuffled(Samples(X, (5,)))
        )

    different = [
        name(lambda step, total, warmup: 1.0),
        name(lambda step, total, warmup: 2.0),
        name(lambda step, total, warmup: step / total),
        name(_thrice),
        name(partial(_thrice, warmup_steps=1)),
        name(partial(_thrice, warmup_steps=2)),
    ]
    assert len(set(different)) == len(different)
    # the same code at another place in memory, as in the next process
    assert different[0] == name(lambda step, total, warmup: 1.0)
    assert different[-1] == name(partial(_thrice, warmup_steps=2))


def test_fingerprints_tell_fits_apart():
    samples = Shuffled(Samples(X, (5,)))
    plain = fingerprint(SimCLRTransformer(random_state=0), samples)
    assert plain == fingerprint(SimCLRTransformer(random_state=0, verbose=1), samples)
    body = torch.nn.Linear(5, 3)
    others = [
        fingerprint(SimCLRTransformer(random_state=1), samples),
        fingerprint(SimCLRTransformer(random_state=0, lr=0.1), samples),
        fingerprint(SimCLRTransformer(random_state=0, backbone=body), samples),
        fingerprint(SimCLRTransformer(random_state=0), Shuffled(Samples(X + 1, (5,)))),
        fingerprint(SimCLRTransformer(random_state=0), Shuffled(Samples(X[:-1], (5,)))),
        fingerprint(
            SimCLRTransformer(random_state=0, augment=Contrastive(flip=0)), samples
        ),
        fingerprint(
            SimCLRTransformer(random_state=0, augment=Contrastive(flip=1)), samples
        ),
    ]
    torch.nn.init.zeros_(body.weight)
    others.append(
        fingerprint(SimCLRTransformer(random_state=0, backbone=body), samples)
    )
    assert len({plain, *others}) == len(others) + 1


# -- replacing a model


class Killed(BaseException):
    """The process ends here."""


class Mortal:
    """Let the process die at a file operation, the number ``at``, and do no more."""

    def __init__(self, monkeypatch, at):
        self.n, self.at = 0, at
        for where, name in (
            (files.os, "replace"),
            (files.os, "fsync"),
            (files.os, "listdir"),
            (files.os, "unlink"),
            (Path, "mkdir"),
            (Path, "unlink"),
        ):
            monkeypatch.setattr(where, name, self.step(getattr(where, name)))
        monkeypatch.setattr(files, "open", self.open, raising=False)

    def step(self, operation):
        def counted(*args, **kwargs):
            self.live()
            return operation(*args, **kwargs)

        return counted

    def live(self):
        self.n += 1
        if self.n >= self.at:
            raise Killed

    def open(self, path, mode="r"):
        self.live()
        file = open(path, mode)
        write = file.write

        def write_half(data):
            write(data[: len(data) // 2])
            file.flush()
            self.live()
            return write(data[len(data) // 2 :])

        if "x" not in mode:
            return file
        file.write = write_half
        return file


def _as_format_1(folder):
    path = folder / "estimator.json"
    description = json.loads(path.read_text())
    description["format"] = 1
    path.write_text(json.dumps(description))
    _weights(folder).rename(folder / "weights.safetensors")


@pytest.mark.parametrize("older", [lambda folder: None, _as_format_1])
def test_killed_at_any_file_operation_one_of_two_models_loads(
    tmp_path, monkeypatch, older
):
    old = SimCLRTransformer(max_steps=1, random_state=0).fit(X)
    new = SimCLRTransformer(max_steps=1, random_state=1).fit(X)
    expected = [model.transform(X) for model in (old, new)]
    found = []
    for at in itertools.count(1):
        folder = tmp_path / f"{at}"
        old.save(folder)
        older(folder)
        with monkeypatch.context() as patch:
            mortal = Mortal(patch, at)
            try:
                new.save(folder)
            except Killed:
                pass
        got = sklabel.load(folder).transform(X)
        found.append([np.array_equal(got, z) for z in expected].index(True))
        if mortal.n < at:
            break
    assert found == sorted(found) and set(found) == {0, 1}
    assert at > 12  # two files, each opened, written, synchronized, renamed
    assert len(list(folder.iterdir())) == 2
    # and what the killed ones left goes, once nobody can still be writing it
    folder = tmp_path / "6"
    assert len(list(folder.iterdir())) > 2
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    new.save(folder)
    assert len(list(folder.iterdir())) == 2
    np.testing.assert_array_equal(sklabel.load(folder).transform(X), expected[1])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left")])
def test_a_save_that_fails_leaves_the_old_model_alone(tmp_path, monkeypatch, error):
    old = SimCLRTransformer(max_steps=1, random_state=0).fit(X)
    old.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(number):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fail)
        with pytest.raises(error if isinstance(error, type) else OSError) as caught:
            SimCLRTransformer(max_steps=1, random_state=1).fit(X).save(tmp_path)
    if isinstance(error, OSError):
        assert str(tmp_path) in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_of_others_in_the_folder_stay(tmp_path):
    mine = ["weights.safetensors", "weights-mine.safetensors", "notes.txt"]
    for name in mine:
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (0, 0))
    for seed in range(2):
        fitted = SimCLRTransformer(max_steps=1, random_state=seed).fit(X)
        fitted.save(tmp_path)
    assert all((tmp_path / name).read_text() == "mine" for name in mine)
    assert len(list(tmp_path.iterdir())) == len(mine) + 2


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_links_in_the_folder_are_replaced_not_written_through(tmp_path):
    fitted = SimCLRTransformer(max_steps=1, random_state=0).fit(X)
    fitted.save(tmp_path / "model")
    own = tmp_path / "own"
    own.write_text("mine")
    for path in list((tmp_path / "model").iterdir()):
        path.unlink()
        path.symlink_to(own)
    for name in ("weights.partial", "estimator.partial"):
        (tmp_path / "model" / name).symlink_to(own)
    fitted.save(tmp_path / "model")
    assert own.read_text() == "mine"
    sklabel.load(tmp_path / "model")


def test_a_model_of_format_1_loads(tmp_path):
    fitted = SimCLRTransformer(max_steps=1, random_state=0).fit(X)
    fitted.save(tmp_path)
    _as_format_1(tmp_path)
    loaded = sklabel.load(tmp_path)
    np.testing.assert_array_equal(loaded.transform(X), fitted.transform(X))


@pytest.mark.parametrize("folder", [None, 3, b"model", ["model"]])
def test_only_a_path_is_loaded(folder):
    with pytest.raises(TypeError, match="folder=.*give the path"):
        sklabel.load(folder)
