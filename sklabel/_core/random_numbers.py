"""Random numbers of processes that train together: common ones, and each one's own."""

import random
import zlib
from contextlib import contextmanager

import numpy as np
import torch


class Numbers:
    """Random numbers: common ones for all processes, and own ones for each.

    What all processes must do alike, as the order of the rows, takes the common ones,
    and the augmentation of each one's rows its own.

    Parameters
    ----------
    group : Group
    device : torch.device
    """

    def __init__(self, group, device):
        self.group, self.device = group, torch.device(device)
        self._own = None

    def begin_epoch(self):
        """Start the own numbers anew; the common ones say where."""
        if self.group.size > 1:
            common = self._state()
            seed = zlib.crc32(common[0][0].numpy().tobytes())
            torch.manual_seed(seed + (self.group.rank << 32))
            np.random.seed((seed + self.group.rank) % 2**32)
            random.seed(seed + (self.group.rank << 32))
            self._own = self._state()
            self._set(common)

    @contextmanager
    def own(self):
        """Draw the own numbers."""
        if self.group.size == 1:
            yield
            return
        common = self._state()
        self._set(self._own)
        try:
            yield
        finally:
            self._own = self._state()
            self._set(common)

    def _state(self):
        cuda = self.device.type == "cuda"
        return _numbers(), cuda and torch.cuda.get_rng_state(self.device)

    def _set(self, state):
        _set_numbers(state[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state[1], self.device)


def _numbers():
    """Return the states of all generators that belong to the process."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _set_numbers(states):
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


@contextmanager
def common_numbers(group):
    """In all processes draw what the first one draws; give own numbers back.

    What has no seed draws from these. A generator that is the same before, as the
    script has seeded it, is so afterwards.
    """
    own = _numbers()
    first = group.shared(_numbers)
    same = [
        torch.equal(own[0], first[0]),
        all(map(np.array_equal, own[1], first[1])),
        own[2] == first[2],
    ]
    _set_numbers(first)
    try:
        yield
    finally:
        if not group.is_first:
            drawn = zip(same, _numbers(), own, strict=True)
            _set_numbers([now if kept else before for kept, now, before in drawn])
