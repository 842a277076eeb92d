"""Checkpoints: found by the whole content, whole or refused in one line."""

import functools
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from sklabel._core import files, net
from sklabel._core.identity import digest, fingerprint
from sklabel._core.inputs import ImageFiles
from sklabel._core.net import Net
from sklabel._core.samplers import Shuffled
from sklabel._core.samples import Samples
from sklabel.embedding import SimCLRTransformer

X = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)


def fit(folder, seed=0, **settings):
    settings = {"max_epochs": 2, "batch_size": 16, "random_state": seed, **settings}
    return SimCLRTransformer(checkpoint_dir=folder, **settings).fit(X)


def weights(fitted):
    state = fitted.net_.module_.state_dict().values()
    return torch.cat([tensor.flatten().float() for tensor in state])


# -- names


def name(source=X, **settings):
    samples = source if isinstance(source, Samples) else Samples(source, (5,))
    return fingerprint(SimCLRTransformer(**settings), Shuffled(samples))


def test_every_row_counts(tmp_path):
    large = np.random.default_rng(0).normal(size=(3000, 5)).astype(np.float32)
    other = large.copy()
    mapped = np.memmap(tmp_path / "a", np.float32, "w+", shape=large.shape)
    mapped[:] = large
    first = name(large)
    assert name(large.copy()) == name(mapped) == first
    assert name(np.asfortranarray(large)) == first
    found = {first}
    for row in (1, 1000, 2998):
        other[row, 2] += 1
        found.add(name(other))
    mapped[1777] = 0
    found.add(name(mapped))
    assert len(found) == 5


def test_the_kind_and_the_layout_of_rows_count():
    images = np.zeros((4, 3, 3, 3), np.uint8)
    found = {
        name(Samples(images, (3, 3, 3))),
        name(Samples(images, (3, 3, 3), channels_last=True)),
        name(Samples(images.astype(np.float32), (3, 3, 3))),
        name(Samples(images, (3, 3, 3), bad=np.array([True, False, False, False]))),
    }
    assert len(found) == 4


def test_files_count_by_name_size_and_time(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, path in enumerate(paths):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(path)
        os.utime(path, ns=(10**18, 10**18))

    def now():
        return name(Samples(ImageFiles(paths, (8, 8)), (3, 8, 8), channels_last=True))

    first = now()
    assert now() == first
    os.utime(paths[1], ns=(10**18, 10**18 + 1))
    second = now()
    with open(paths[1], "ab") as file:
        file.write(b"more")
    os.utime(paths[1], ns=(10**18, 10**18 + 1))
    third = now()
    os.remove(paths[1])
    assert len({first, second, third, now()}) == 4


class Noise(nn.Module):
    def __init__(self, amount):
        super().__init__()
        self.inner = nn.Identity()
        self.inner.amount = amount

    def forward(self, x):
        return x + self.inner.amount


class Course:
    def __init__(self, factor):
        self.settings = {"factor": factor}

    def __call__(self, step, total_steps, warmup_steps):
        return self.settings["factor"]


FACTOR = 1.0


def from_here(step, total_steps, warmup_steps):
    return FACTOR


def frozen(estimator, data):
    return FrozenEstimator(estimator.fit(data, np.arange(len(data)) % 2))


DIFFERENT = {
    "the state of a module": [{"augment": Noise(a)} for a in (0.1, 2.0)],
    "the state of a schedule": [{"schedule": Course(a)} for a in (0.1, 2.0)],
    "a method of an object": [{"schedule": Course(a).__call__} for a in (0.1, 2.0)],
    "what a frozen one has learned": [
        {"backbone": frozen(PCA(2), X + i * X[:, ::-1])} for i in (0, 1)
    ],
    "its data, in what Python cannot look into": [
        {"backbone": frozen(KNeighborsClassifier(), X + i)} for i in (0, 1)
    ],
    "a seed that has been used": [
        {"random_state": np.random.RandomState(0)},
        {"random_state": np.random.RandomState(1)},
    ],
    "an array of objects": [
        {"net_params": {"a": np.array([1, part], dtype=object)}} for part in "ab"
    ],
    "a number and a text": [{"net_params": {"a": part}} for part in (1, "1", True)],
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_differs_has_another_name(what):
    found = [name(**settings) for settings in DIFFERENT[what]]
    assert len(set(found)) == len(found)
    assert found == [name(**settings) for settings in DIFFERENT[what]]


def test_a_number_that_a_function_takes_from_its_file_counts(monkeypatch):
    first = name(schedule=from_here)
    monkeypatch.setitem(from_here.__globals__, "FACTOR", 2.0)
    assert name(schedule=from_here) != first


SAME = {
    "numbers of numpy": [{"max_epochs": 2, "lr": 0.5}]
    + [{"max_epochs": np.int64(2), "lr": np.float64(0.5)}],
    "equal seeds": [{"random_state": np.random.RandomState(0)} for _ in range(2)],
    "equal modules": [{"augment": Noise(0.1)} for _ in range(2)],
    "equal schedules": [{"schedule": Course(0.1)} for _ in range(2)],
    "equal frozen ones": [{"backbone": frozen(PCA(2), X)} for _ in range(2)],
    "the order of settings": [{"net_params": d} for d in ({1: 2, 3: 4}, {3: 4, 1: 2})],
    "sets": [{"net_params": {"a": set(letters)}} for letters in ("abc", "cba")],
    "paths": [{"backbone": part} for part in ("a", np.str_("a"))],
    "what only tells": [{}, {"verbose": 1, "checkpoint_dir": "a", "warm_start": True}],
}


@pytest.mark.parametrize("what", SAME)
def test_what_is_equal_has_one_name(what):
    assert len({name(**settings) for settings in SAME[what]}) == 1


def test_a_circle_ends():
    course = Course(1)
    course.itself = course
    assert digest(course) == digest(course)


def test_a_random_state_continues(tmp_path):
    whole = fit(None, np.random.RandomState(0))
    fit(tmp_path, np.random.RandomState(0))
    (path,) = tmp_path.rglob("*.pt")
    before = path.stat().st_mtime_ns
    again = fit(tmp_path, np.random.RandomState(0))
    assert torch.equal(weights(again), weights(whole))
    assert [p.stat().st_mtime_ns for p in tmp_path.rglob("*.pt")] == [before]


# -- files


class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 1)
        self.n_features_out = 1

    def forward(self, x):
        return self.layer(x)

    def loss(self, x, y):
        return self(x).square().mean()


def trained(path, **settings):
    torch.manual_seed(0)
    given = {"max_epochs": 2, "checkpoint": path, "precision": "float32", **settings}
    made = Net(Squares(), **given).initialize()
    return made.partial_fit(Shuffled(Samples(X, (5,))))


def test_several_processes_share_a_folder(tmp_path):
    path, n = tmp_path / "fit.pt", 6
    nets = [trained(path) for _ in range(n)]
    ready, errors = threading.Barrier(n), []

    def write_often(one):
        ready.wait()
        try:
            for _ in range(20):
                one.save_checkpoint()
                torch.load(path, weights_only=True)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write_often, args=(one,)) for one in nets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and os.listdir(tmp_path) == ["fit.pt"]


def test_what_stands_in_a_checkpoint(tmp_path):
    trained(tmp_path / "fit.pt")
    state = torch.load(tmp_path / "fit.pt", weights_only=True)
    about = {k: state.pop(k) for k in ("format", "sklabel", "torch", "checksum")}
    assert about["torch"] == str(torch.__version__) and about["checksum"] == digest(
        state
    )


def altered(path, change, checksum=True):
    state = torch.load(path, weights_only=True)
    change(state)
    if checksum:
        about = ("format", "sklabel", "torch", "checksum")
        state["checksum"] = digest({k: v for k, v in state.items() if k not in about})
    torch.save(state, path)


def _rename(state):
    state["module"] = {f"other.{k}": v for k, v in state["module"].items()}


def _reshape(state):
    state["module"]["layer.weight"] = torch.zeros(2, 5)


def _flip(state):
    state["module"]["layer.weight"].view(torch.int32)[0, 0] ^= 1


def _set(key, value):
    return lambda state: state.__setitem__(key, value)


REFUSED = {
    "no checkpoint": lambda path: path.write_bytes(b"x"),
    "nothing": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "a list": lambda path: torch.save([1], path),
    "a text": lambda path: torch.save("x", path),
    "an older format": lambda path: altered(path, lambda s: s.pop("format")),
    "another format": lambda path: altered(path, _set("format", 99)),
    "a flipped bit": lambda path: altered(path, _flip, checksum=False),
    "no checksum": lambda path: altered(path, lambda s: s.pop("checksum"), False),
    "other layers": lambda path: altered(path, _rename),
    "other shapes": lambda path: altered(path, _reshape),
    "no random state": lambda path: altered(path, lambda s: s.pop("rng")),
    "a random state of another kind": lambda path: altered(path, _set("rng", 1)),
    "another optimizer": lambda path: altered(path, _set("optimizer", {})),
    "a step that is none": lambda path: altered(path, _set("step", "x")),
    "a history that is none": lambda path: altered(path, _set("history", [1])),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
if os.name == "posix":
    REFUSED["a pipe"] = lambda path: (path.unlink(), os.mkfifo(path))


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_checkpoint_of_this_training_is_refused(what, tmp_path):
    path = tmp_path / "fit.pt"
    trained(path)
    REFUSED[what](path)
    with pytest.raises(ValueError, match="fit.pt.*remove the file") as caught:
        trained(path)
    assert len(str(caught.value).splitlines()) == 1


def test_one_of_other_versions_continues_and_says_so(tmp_path):
    path = tmp_path / "fit.pt"
    whole = trained(path)
    altered(path, _set("torch", "1.0"))
    with pytest.warns(UserWarning, match="fit.pt.*written with torch 1.0"):
        again = trained(path)
    assert torch.equal(again.module_.layer.weight, whole.module_.layer.weight)
    altered(path, _rename)
    with pytest.raises(ValueError, match="does not fit.*with torch 1.0.*remove"):
        trained(path)


def no_space(number):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left on device") as caught:
        fit(tmp_path)
    assert caught.value.filename.endswith(f"{os.sep}fit.pt")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_really_full_disk_is_told(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            trained(tmp_path / "fit.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(tmp_path / "fit.pt")
    assert not os.listdir(tmp_path)


def test_a_half_written_checkpoint_is_never_read(tmp_path, monkeypatch):
    whole = fit(None)
    replace, count = os.replace, [0]

    class Killed(BaseException):
        pass

    def die(*names):
        count[0] += 1
        if count[0] == 2:
            # what a killed process would leave, which removes nothing
            shutil.copy(names[0], kept)
            raise Killed
        replace(*names)

    kept = tmp_path / "kept"
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", die)
        with pytest.raises(Killed):
            fit(tmp_path / "a")
    (path,) = tmp_path.rglob("fit.pt")
    half = path.with_name(".fit.pt.0123456789abcdef.partial")
    half.write_bytes(kept.read_bytes()[:50])
    assert torch.equal(weights(fit(tmp_path / "a")), weights(whole))
    half.write_bytes(b"")
    trained(path.with_name("fit.pt2"))
    assert half.exists()  # of another file
    path.unlink()
    fit(tmp_path / "a")
    assert not half.exists()


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_no_link_is_written_through(tmp_path):
    own = tmp_path / "own"
    own.write_text("mine")
    (tmp_path / "fit.partial").symlink_to(own)
    trained(tmp_path / "fit.pt")
    assert own.read_text() == "mine"


def test_versions_are_those_that_run():
    assert functools.reduce(lambda a, b: a and b, net._versions().values())
