"""Batches are fetched while the step before is computed: same rows, same bits."""

import itertools
import threading
import time
import types

import numpy as np
import pytest
import torch
from torch import nn

from sklabel._core import batches
from sklabel._core.batches import Batches
from sklabel._core.net import Net
from sklabel._core.samplers import Captioned, FixedSteps, Mixed, Paired, Shuffled
from sklabel._core.samples import Samples

X = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
TARGETS = np.where(np.arange(50) < 20, np.arange(50) % 3, -1)
SAMPLERS = {
    "shuffled": Shuffled,
    "fixed steps": lambda samples: FixedSteps(samples, 10),
    "paired": lambda samples: Paired(samples, np.arange(200).reshape(50, 4) % 50),
    "mixed": lambda samples: Mixed(samples, TARGETS, 2),
    "captioned": lambda samples: Captioned(
        samples,
        [["a", "b"], ["c"]] * 25,
        lambda texts: torch.arange(len(texts))[:, None] + 1,
        True,
        False,
    ),
}


class Slow(Samples):
    """Rows whose fetching takes long enough for a thread."""

    def __init__(self, source, shape, seconds=0.003):
        super().__init__(source, shape)
        self.seconds, self.threads, self.events = seconds, set(), []

    def __getitem__(self, rows):
        self.threads.add(threading.current_thread().name)
        self.events.append("fetch begins")
        time.sleep(self.seconds)
        self.events.append("fetch ends")
        return super().__getitem__(rows)

    def without(self, left_out):
        assert not left_out.any()
        return self


class Noisy(nn.Module):
    """A module whose loss draws random numbers, as augmentations do."""

    def __init__(self, events, seconds=0.0):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.events, self.seconds = events, seconds

    def forward(self, x):
        return self.layer(x)

    def loss(self, x, y):
        self.events.append("loss begins")
        time.sleep(self.seconds)
        x = torch.cat(x) if isinstance(x, tuple) else x
        self.events.append("loss ends")
        return self.layer(x + torch.randn_like(x)).square().mean()

    def after_step(self):
        self.events.append("step ends")


def trained(sampler, **settings):
    samples = sampler.samples
    torch.manual_seed(0)
    module = Noisy(getattr(samples, "events", []), settings.pop("seconds", 0.0))
    net = Net(module, max_epochs=3, batch_size=8, **settings).initialize()
    torch.manual_seed(1)
    net.partial_fit(sampler)
    return net, torch.get_rng_state()


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_thread_changes_no_bit(kind):
    plain, state = trained(SAMPLERS[kind](Samples(X, (4,))))
    slow = Slow(X, (4,))
    ahead, state_ahead = trained(SAMPLERS[kind](slow))
    assert any(name.startswith("sklabel-fetch") for name in slow.threads)
    for a, b in zip(plain.module_.parameters(), ahead.module_.parameters()):
        assert torch.equal(a, b)
    assert torch.equal(state, state_ahead)
    losses = (net.history[:, "train_loss"] for net in (plain, ahead))
    assert next(losses) == next(losses)


@pytest.mark.parametrize("seconds, has_thread", [(0.0009, False), (0.0011, True)])
def test_only_what_takes_long_is_fetched_by_a_thread(monkeypatch, seconds, has_thread):
    # by a clock that goes on by as much at each look: the machine may be busy
    clock = types.SimpleNamespace(perf_counter=itertools.count(0, seconds).__next__)
    monkeypatch.setattr(batches, "time", clock)
    some = Batches(Shuffled(Samples(X, (4,))), 8)
    list(some)
    assert (some._pool is not None) == has_thread
    some.close()


def test_fetches_begin_before_the_step_ends():
    # of ten steps, all fetches but the first begin within or before the step before
    slow = Slow(np.repeat(X, 2, 0)[:80], (4,), seconds=0.01)
    torch.manual_seed(0)
    module = Noisy(slow.events, seconds=0.01)
    Net(module, max_epochs=1, batch_size=8).initialize().partial_fit(Shuffled(slow))
    # what is looked at in the end is fetched once more
    events = slow.events[: len(slow.events) - slow.events[::-1].index("step ends")]
    begun = ended = steps = overlaps = 0
    for event in events:
        begun += event == "fetch begins"
        ended += event == "fetch ends"
        if event == "step ends":
            steps += 1
            overlaps += begun > steps
    assert steps == 10 and overlaps == 9


def test_fetches_take_place_in_the_time_of_steps():
    # a step and the fetch of the next batch wait for each other: one alone never ends
    meeting, met = threading.Barrier(2, timeout=60), []

    class Meets(Slow):
        def __getitem__(self, rows):
            if threading.current_thread().name.startswith("sklabel-fetch"):
                met.append(meeting.wait())
            return super().__getitem__(rows)

    class Waits(Noisy):
        n_steps = 0

        def loss(self, x, y):
            self.n_steps += 1
            if self.n_steps < 10:
                meeting.wait()
            return super().loss(x, y)

    slow = Meets(np.repeat(X, 2, 0)[:80], (4,))
    module = Waits([])
    Net(module, max_epochs=1, batch_size=8).initialize().partial_fit(Shuffled(slow))
    assert module.n_steps == 10 and len(met) == 9


@pytest.mark.parametrize("kind", ["shuffled", "paired"])
def test_an_error_of_a_fetch_comes_out_and_the_thread_ends(kind):
    class Broken(Slow):
        def __getitem__(self, rows):
            if len(self.events) > 6:
                raise OSError("the disk is gone")
            return super().__getitem__(rows)

    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        trained(SAMPLERS[kind](Broken(X, (4,))))
    assert threading.active_count() == before


def test_a_training_that_ends_within_an_epoch_ends_the_thread():
    before = threading.active_count()
    trained(Shuffled(Slow(X, (4,))), max_steps=3)
    assert threading.active_count() == before


# -- rows on a device, here on the CPU


def test_rows_that_are_held_are_the_same_rows():
    images = np.random.default_rng(0).integers(0, 256, (20, 5, 5, 3), np.uint8)
    for source, shape, last in (
        (images, (3, 5, 5), True),
        (images.transpose(0, 3, 1, 2), (3, 5, 5), False),
        (X.astype(np.float64), (4,), False),
    ):
        samples = Samples(source, shape, last)
        rows = np.array([3, 1, 1, 0])
        expected = samples[rows]
        samples._fit_on = lambda device: True
        with samples.held_on("cpu"):
            assert samples.is_held
            found = samples[rows]
        assert not samples.is_held
        assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_rows_are_held_where_they_fit_into_a_share_of_the_free_memory(monkeypatch):
    samples = Samples(np.zeros((100, 8), np.uint8), (8,))
    for free, fits in ((3200, True), (3199, False), (0, False)):
        monkeypatch.setattr("sklabel._core.samples.free_memory", lambda d, f=free: f)
        assert samples._fit_on("cpu") == fits
    # four bytes for each number that is no byte
    assert not Samples(np.zeros((100, 8)), (8,))._fit_on("cpu")
    monkeypatch.undo()
    with samples.held_on("cpu"):  # the CPU has the rows already
        assert not samples.is_held


def test_rows_on_a_disk_are_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr("sklabel._core.samples.free_memory", lambda device: 2**40)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert Samples(X, (4,))._fit_on("cpu") and not Samples(mapped, (4,))._fit_on("cpu")
