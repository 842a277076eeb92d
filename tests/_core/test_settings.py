"""Settings of a training that are refused before it begins, in one sentence."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import sklabel
from sklabel import augment, optim
from sklabel._core import learner
from sklabel._core.net import available_devices, resolve_device
from sklabel.classification import (
    FixMatchClassifier,
    SimCLRv2Classifier,
    SupervisedClassifier,
)
from sklabel.clustering import SCANClusterer
from sklabel.embedding import BYOLTransformer, PretrainedTransformer, SimCLRTransformer
from sklabel.selection import VAALSelector

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype(np.float32)
Y = np.where(np.arange(40) < 20, np.arange(40) % 2, -1)
MADE = [
    SimCLRTransformer,
    SCANClusterer,
    FixMatchClassifier,
    SimCLRv2Classifier,
    VAALSelector,
]


def nothing():
    pass


def none_of(step, total_steps, warmup_steps):
    return None


def refused(estimator, name, monkeypatch, *words):
    """Assert that a fit is refused for one parameter before anything is done."""

    def work(*given, **more):
        raise AssertionError("the work has begun")

    with monkeypatch.context() as patch:
        patch.setattr(learner, "check_samples", work)
        with pytest.raises(ValueError) as error:
            estimator.fit(X, Y)
    text = str(error.value)
    assert re.match(rf"{name}=", text) and text.endswith("."), text
    for word in words:
        assert word in text


@pytest.mark.parametrize("cls", MADE)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "gpu"),
        ("device", ""),
        ("device", "3"),
        ("device", "cuda:99"),
        ("device", "meta"),
        ("device", torch.device("cuda:77")),
        ("net_params", {"a": 1}),
        ("net_params", {1: 1}),
        ("net_params", {"optimizer__nothing": 1}),
        ("net_params", {"callbacks": 3}),
        ("net_params", {"device": "cpu"}),
        ("schedule", nothing),
        ("schedule", np.int64),
        ("schedule", lambda step: 1.0),
        ("optimizer", nothing),
        ("optimizer", nn.Linear),
        ("optimizer", lambda groups, lr: groups),
        ("checkpoint_dir", ""),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_wrong_setting_is_named_before_the_work(cls, name, value, monkeypatch):
    if name == "device" and str(value) in available_devices():
        pytest.skip("it is there")
    refused(cls(**{name: value}), name, monkeypatch)


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (SimCLRTransformer, "augment", nothing),
        (SimCLRTransformer, "augment", augment.VectorNoise),
        (SimCLRTransformer, "augment", lambda x, strength: x),
        (BYOLTransformer, "augment", [augment.VectorNoise(), augment.Weak]),
        (FixMatchClassifier, "strong_augment", nothing),
        (FixMatchClassifier, "weak_augment", dict),
    ],
)
def test_a_policy_that_takes_no_batch_is_named(cls, name, value, monkeypatch):
    refused(cls(**{name: value}), name, monkeypatch)


class Rows(nn.Module):
    """A policy that loses rows."""

    def forward(self, x):
        return x[:3]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (len, "int"),
        (lambda x: None, "NoneType"),
        (lambda x: x.numpy(), "ndarray"),
        (lambda x: x.long(), "torch.int64"),
        (lambda x: x[0], r"shape \(6,\)"),
        (Rows(), r"shape \(3, 6\)"),
    ],
)
@pytest.mark.parametrize("name", ["weak_augment", "strong_augment"])
def test_a_policy_that_gives_no_views_is_named(name, value, found):
    clf = FixMatchClassifier(max_steps=1, batch_size=8, **{name: value})
    with pytest.raises(ValueError, match=f"{name}=.* returns .*{found}.*floats"):
        clf.fit(X, Y)


@pytest.mark.parametrize("value", [None, "0.5", np.ones(3), float("nan")])
def test_a_schedule_that_gives_no_number_is_named(value):
    clf = SupervisedClassifier(max_steps=1, schedule=lambda *given: value)
    with pytest.raises(ValueError, match="schedule=.* gives|lr="):
        clf.fit(X, Y)


def test_what_is_right_stays_right(tmp_path):
    def halved(step, total_steps, warmup_steps=0):
        return np.float32(0.5)

    for given in (
        {"optimizer": torch.optim.RMSprop},
        {"optimizer": partial(torch.optim.SGD, momentum=0.5)},
        {"optimizer": optim.LARS},
        {"schedule": halved},
        {"schedule": partial(optim.step_decay, milestones=(0.5,))},
        {"net_params": {"optimizer__momentum": 0.5}},
        {"net_params": {"max_epochs": 1, "callbacks": []}},
        {"net_params": {}},
        {"augment": lambda x: x + 0.1},
        {"augment": nn.Sequential(nn.Identity(), nn.Dropout(0.1))},
        {"augment": torch.flipud},
        {"checkpoint_dir": tmp_path / "a" / "b"},
        {"device": torch.device("cpu")},
        {"device": "cpu:0"},
    ):
        assert hasattr(SupervisedClassifier(max_steps=1, **given).fit(X, Y), "net_")


@pytest.mark.parametrize("inside", ["", "/deeper"])
def test_a_file_is_no_folder_for_checkpoints(inside, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    folder = f"{file}{inside}"
    refused(SCANClusterer(checkpoint_dir=folder), "checkpoint_dir", monkeypatch)
    assert file.read_text() == ""


def test_the_devices_that_there_are():
    assert {"auto", "cpu"} <= set(available_devices())
    assert resolve_device("cpu") == torch.device("cpu")
    for name in available_devices():
        assert resolve_device(name).type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="device='hal'.* auto, cpu"):
        PretrainedTransformer("resnet18", weights=None, device="hal").fit(
            np.zeros((2, 8, 8))
        )
    with pytest.raises(ValueError, match="device='cuda:88'"):
        resolve_device("cuda:88")


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps"])
def test_what_another_device_has_saved_opens_here(device, tmp_path):
    fitted = SCANClusterer(
        2, max_steps=1, embedder=SimCLRTransformer(max_steps=1, device="cpu")
    ).fit(X)
    expected = fitted.predict_proba(X)
    fitted.set_params(device=device, embedder__device=device)
    fitted.embedder_.set_params(device=device)
    fitted.save(tmp_path / "model")
    text = (tmp_path / "model" / "estimator.json").read_text()
    assert f'"{device}"' not in text
    # folders of former versions name it
    old = text.replace('[["augment"', f'[["device", "{device}"], ["augment"')
    assert old != text
    for written in (text, old):
        (tmp_path / "model" / "estimator.json").write_text(written)
        loaded = sklabel.load(tmp_path / "model")
        assert loaded.device == loaded.embedder_.device == "auto"
        np.testing.assert_allclose(loaded.predict_proba(X), expected, atol=1e-5)
