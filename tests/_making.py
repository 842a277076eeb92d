"""Data and small parts that the tests of several files are made of."""

import warnings
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from sklabel import CollapseWarning
from sklabel._core.net import Net


def blobs(n=90, k=3):
    """Return vectors (n, 6) in k groups far apart, and their groups, in turn."""
    rng = np.random.default_rng(0)
    centers = np.eye(6, dtype=np.float32)[:k] * 6
    y = np.arange(n) % k
    return (centers[y] + rng.normal(size=(n, 6))).astype(np.float32), y


def mixed(X):
    """Return vectors (n, 6) turned so that every feature tells the groups apart.

    Features are standardized, so those that hold noise alone would count as much.
    """
    turn = np.random.default_rng(0).normal(size=(6, 6))
    return (X @ turn).astype(np.float32)


def quiet(clusterer, x):
    """Return a clusterer fitted, whatever its health."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        return clusterer.fit(x)


def distributions(shape):
    """Return a strategy of probabilities along the last axis, zeros included."""
    values = arrays(np.float64, shape, elements=st.floats(0, 1))
    return values.map(lambda a: (a + 1e-300) / (a + 1e-300).sum(-1, keepdims=True))


class Shift(nn.Module):
    """A view that can be worked out by hand."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x + self.by


@contextmanager
def broken_off(at, monkeypatch, error=KeyboardInterrupt):
    """Raise an error in the training step number ``at`` of the block."""
    train_step, n_steps = Net.train_step, 0

    def step(net, *args, **kwargs):
        nonlocal n_steps
        n_steps += 1
        if n_steps == at:
            raise error("broken off")
        return train_step(net, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Net, "train_step", step)
        yield


def fit_broken_off(estimator, X, y, at, monkeypatch):
    """Fit an estimator that Ctrl-C ends in its training step number ``at``."""
    with broken_off(at, monkeypatch), pytest.warns(UserWarning, match="interrupted"):
        estimator.fit(X, y)
