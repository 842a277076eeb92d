"""ReMixMatch: each step a second time from its formulas; what its parts are for."""

import copy
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

import sklabel
from sklabel import CollapseWarning
from sklabel.augment import Weak
from sklabel.classification import ReMixMatchClassifier, _remixmatch
from sklabel.datasets import load_digit_images
from tests._making import Shift
from tests._pictures import stripes

N, K, LR = 60, 3, 0.1
TRUTH = np.arange(N) % K
X = np.random.default_rng(0).random((N, 6, 6)).astype(np.float32)
X[:, :2, :3] += TRUTH[:, None, None]
X /= X.max()
Y = np.where(np.arange(N) < 12, TRUTH, -1)
SHARE = 0.8  # that a row keeps of itself


class Record(Callback):
    """Keeps what a training begins with, its batches and its losses."""

    def initialize(self):
        self.batches, self.losses, self.start = [], [], None
        Record.last = self
        return self

    def on_batch_begin(self, net, batch=None, **kwargs):
        if self.start is None:
            self.start = copy.deepcopy((net.module_.online, net.module_.turn))
        self.batches.append((net.to_device(batch[0]), batch[1]))

    def on_batch_end(self, net, **figures):
        self.losses.append({k: v for k, v in figures.items() if k.endswith("loss")})


def body(n_in=36):
    torch.manual_seed(0)
    layers = nn.Linear(n_in, 8), nn.BatchNorm1d(8), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *layers)


def fitted(x=X, y=Y, **parameters):
    given = {
        "max_steps": 10,
        "batch_size": 6,
        "unlabeled_ratio": 2,
        "n_augmentations": 2,
        "weak_augment": Shift(0.02),
        "strong_augment": Shift(-0.05),
        "backbone": body(x[0].size),
        "optimizer": "sgd",
        "lr": LR,
        "weight_decay": 0.0,
        "ramp_up": 0.5,
        "device": "cpu",
        "precision": "float32",
        "random_state": 0,
        "net_params": {"callbacks": [Record], "optimizer__momentum": 0.0},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        clf = ReMixMatchClassifier(**{**given, **parameters}).fit(x, y)
    return clf, getattr(Record, "last", None)


@contextmanager
def still(module):
    """Let BatchNorm keep its running statistics."""
    norms = [m for m in module.modules() if hasattr(m, "running_mean")]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm in norms:
        norm.momentum = 0.1


def entropy_to(logits, targets):
    """Return the mean cross-entropy, row by row and class by class."""
    total = 0.0
    for row, target in zip(logits.double().log_softmax(1), targets, strict=True):
        for k, share in enumerate(target):
            total = total - share * row[k]
    return total / len(targets)


def train_again(record, n_steps, turns=(0, 1, 2, 3)):
    """Train anew, from algorithm 1 of the paper."""
    online, turn = record.start
    parameters = [*online.parameters(), *turn.parameters()]
    mean, prior, found = [1 / K] * K, np.bincount(Y[Y >= 0]) / 12, []
    for t, (x, y) in enumerate(record.batches):
        n = int((y >= 0).sum())
        m = len(x) - n
        labeled, weak = x[:n] + 0.02 - 0.05, x[n:] + 0.02
        strong = [x[n:] + 0.02 - 0.05 for _ in range(2)]
        with still(online):
            first = online.train()(torch.cat([labeled, weak, strong[0]]))
        q = first[n : n + m].detach().double().softmax(1).tolist()
        decay = min(0.999, (2 + t) / (11 + t))
        guesses = []
        for k in range(K):
            mean[k] = decay * mean[k] + (1 - decay) * np.mean([row[k] for row in q])
        for row in q:
            row = [row[k] * prior[k] / mean[k] for k in range(K)]
            row = [(p / sum(row)) ** (1 / 0.5) for p in row]
            guesses.append([p / sum(row) for p in row])
        turned, asked = [], []
        for part, k in zip(strong[0].tensor_split(len(turns)), turns, strict=True):
            for image in part:
                for _ in range(k):  # by a quarter, against the clock
                    image = image.transpose(1, 2).flip(1)
                turned.append(image)
                asked.append([float(k == j) for j in range(4)])
        with still(online):
            rotation = turn(online[0](torch.stack(turned)))
        views = torch.cat([labeled, weak, *strong])
        targets = [[float(c == k) for k in range(K)] for c in y[:n]] + guesses * 3
        others = list(range(len(views)))[::-1]
        mixed = torch.stack(
            [SHARE * views[i] + (1 - SHARE) * views[j] for i, j in enumerate(others)]
        )
        targets = [
            [SHARE * a + (1 - SHARE) * b for a, b in zip(targets[i], targets[j])]
            for i, j in enumerate(others)
        ]
        logits = online(mixed)
        parts = {
            "labeled_loss": entropy_to(logits[:n], targets[:n]),
            "unlabeled_loss": entropy_to(logits[n:], targets[n:]),
            "anchor_loss": entropy_to(first[n + m :], guesses),
            "rotation_loss": entropy_to(rotation, asked),
        }
        ramp = min(1.0, t / (0.5 * n_steps))
        weights = [1, 1.5 * ramp, 0.5 * ramp, 0.5]
        loss = sum(w * part for w, part in zip(weights, parts.values(), strict=True))
        for p in parameters:
            p.grad = None
        loss.backward()
        with torch.no_grad():
            for p in parameters:
                p -= LR * p.grad
        found.append({"loss": loss, **parts})
    return online, found


@pytest.mark.parametrize("shape", [(6, 6), (4, 9)])
def test_every_step_is_that_of_the_paper(shape, monkeypatch):
    monkeypatch.setattr(
        _remixmatch, "mixing_weights", lambda n, alpha: torch.full((n,), SHARE)
    )
    monkeypatch.setattr(torch, "randperm", lambda n, **k: torch.arange(n).flip(0))
    clf, record = fitted(X.reshape(N, *shape))
    turns = (0, 1, 2, 3) if shape == (6, 6) else (0, 2)  # others would not fit
    online, wanted = train_again(record, 10, turns)
    for step, own in zip(record.losses, wanted, strict=True):
        for name, value in own.items():
            np.testing.assert_allclose(
                float(step[name]), float(value.detach()), rtol=2e-4, err_msg=name
            )
    found = clf.net_.module_.online.state_dict()
    for name, value in online.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_images_from_few_labels():
    images, target = stripes(150)
    y = np.where(np.arange(150) < 15, target, -1)
    clf = ReMixMatchClassifier(
        n_augmentations=1,
        batch_size=12,
        max_steps=40,
        weak_augment=Weak(flip=0, shift=0),
        strong_augment=None,
        rotation_weight=0,  # a turned stripe is of another class
        precision="float32",
        random_state=0,
    ).fit(images, y)
    assert (clf.transduction_ == target)[15:].mean() > 0.9
    assert clf.net_.history[-1, "pseudo_label_agreement"] > 0.8
    assert clf.net_.history[-1, "rotation_loss"] == 0


def test_the_strong_views_learn_from_the_labels():
    images, target = load_digit_images(return_X_y=True)
    y = np.where(np.arange(40) < 20, target[:40], -1)
    settings = {"n_augmentations": 1, "batch_size": 5, "random_state": 0}
    rates = []
    for steps in (1, 3):
        clf = ReMixMatchClassifier(max_steps=steps, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)
            rates.append(clf.fit(images[:40], y).net_.module_.strong.rates)
    assert not torch.equal(*rates)


HARD = {
    "everything labeled": TRUTH,
    "one label a class": np.where(np.arange(N) < 3, TRUTH, -1),
    "one row unlabeled": np.where(np.arange(N) < N - 1, TRUTH, -1),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("x", [X, X.reshape(N, 36)], ids=["images", "vectors"])
def test_hard_cases(name, x):
    clf, _ = fitted(x, HARD[name], max_steps=3, net_params=None)
    np.testing.assert_allclose(clf.predict_proba(x).sum(1), 1, rtol=1e-5)


PUBLISHED = {"ramp_up": 2**20, "ema_ramp": False, "n_augmentations": 8}


def test_the_published_recipe_runs_is_saved_and_goes_on(tmp_path):
    clf = ReMixMatchClassifier(
        **PUBLISHED, max_steps=3, batch_size=4, random_state=0, warm_start=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        p = clf.fit(X, Y).predict_proba(X)
        clf.save(tmp_path / "model")
        loaded = sklabel.load(tmp_path / "model")
        np.testing.assert_array_equal(loaded.predict_proba(X), p)
        assert clf.net_.module_.turn is None  # of the training alone
        assert loaded.fit(X, Y).net_.module_.n_steps == 6
