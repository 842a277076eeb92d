"""Batches of a sampler, fetched while the step before is computed."""

import contextvars
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from .devices import pinned
from .processes import ALONE
from .samplers import Shuffled

# Batches that wait beside the one in use.
_AHEAD = 2
# Seconds of a fetch that are worth the hand-over to a thread and back.
_WORTH_A_THREAD = 1e-3


class Batches:
    """Batches of a shuffled epoch; every iteration draws a new order.

    Parameters
    ----------
    sampler : Shuffled or another sampler
    batch_size : int
    device : torch.device
        Where the batches are to go.
    group : Group
        Processes that share the batches: each fetches its part.

    Notes
    -----
    Fetching takes no random numbers, so a thread does it, where it takes long enough.
    Drawing does take them, from the generator that the steps draw from, too: it stays
    in the thread of the training, and in its place among the other draws. The batches
    of a `Shuffled` epoch are drawn at its beginning; of other samplers the next batch
    is drawn as soon as `look_ahead` says that the step takes no more numbers. So the
    rows and all bits are those of a plain loop. Where several processes share a
    training, all draws of an epoch come before its first step, as no process may draw
    sooner than another.
    """

    def __init__(self, sampler, batch_size, device="cpu", group=ALONE):
        self.sampler, self.batch_size, self.device = sampler, batch_size, device
        self.group = group
        self._pool, self._waiting, self._draws = None, deque(), iter(())
        self._is_slow = False

    def __len__(self):
        return self.sampler.n_batches(self.batch_size)

    def __iter__(self):
        self._draws = iter(self.sampler.epoch(self.batch_size))
        drawn_at_once = type(self.sampler).epoch is Shuffled.epoch
        if self.group.size > 1:
            drawn_at_once, self._draws = True, iter(list(self._draws))
        try:
            while True:
                if self._waiting:
                    batch = self._waiting.popleft().result()
                elif (draw := next(self._draws, None)) is not None:
                    batch = self._fetch(draw)
                else:
                    return
                if drawn_at_once:
                    self.look_ahead(_AHEAD)
                yield batch
        finally:
            for future in self._waiting:
                future.cancel()
            self._waiting.clear()

    def look_ahead(self, n_batches=1):
        """Draw up to so many batches that wait, and begin to fetch them."""
        while self._is_slow and len(self._waiting) < n_batches:
            draw = next(self._draws, None)
            if draw is None:
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, "sklabel-fetch")
            context = contextvars.copy_context()
            self._waiting.append(self._pool.submit(context.run, self._fetch, draw))

    def close(self):
        """End the thread; what it fetches is waited for."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _fetch(self, draw):
        start = time.perf_counter()
        x, y = self.sampler.fetch(self.group.part(draw))
        seconds = time.perf_counter() - start
        self._is_slow = seconds > _WORTH_A_THREAD and not self.sampler.samples.is_held
        return pinned(x, self.device), pinned(y, self.device)
