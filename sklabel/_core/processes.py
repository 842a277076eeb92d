"""Several processes that train one network together, as torchrun starts them."""

import atexit
import multiprocessing
import os
import pickle
import random
import threading
import time
import warnings
import zlib
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from functools import wraps

import numpy as np
import torch
from torch import distributed

_of_fit: ContextVar = ContextVar("the processes that share this fit", default=None)
_of_step: ContextVar = ContextVar("the processes that share this step", default=None)
_n_alone = 0
_is_abandoned = False
# in which a fit that fails in one process must fail in all
_SECONDS_TO_FAIL = 5
_inherited = None  # the group of the process that this one is a copy of


def _after_fork():
    global _inherited
    if distributed.is_available() and distributed.is_initialized():
        _inherited = distributed.group.WORLD


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Group:
    """The processes that share a fit; one alone gives back what it is given.

    Parameters
    ----------
    rank : int
        Number of this process.
    size : int
        Number of processes.
    """

    n_fits = 0  # that the processes have shared

    def __init__(self, rank=0, size=1):
        self.rank, self.size = rank, size
        self.is_broken = False  # whether another process has been waited for in vain
        self.objects = None  # the group for what lies on the CPU; None: the default one
        if size > 1 and "cpu:gloo" not in distributed.get_backend_config():
            self.objects = _second_group()

    @property
    def is_first(self):
        """Whether this process writes files, and speaks for all."""
        return self.rank == 0

    def part(self, rows):
        """Return this process's share of rows: consecutive ones, equally many for each.

        Rows that do not divide are filled up with the first ones.

        Parameters
        ----------
        rows : ndarray or Tensor of shape (n, ...), or tuple of these
            Numbers in a tuple stay as they are.
        """
        if self.size == 1 or isinstance(rows, int):
            return rows
        if isinstance(rows, tuple):
            return tuple(self.part(own) for own in rows)
        n = -(-len(rows) // self.size)
        return rows[np.arange(self.rank * n, (self.rank + 1) * n) % max(1, len(rows))]

    def shared(self, make):
        """Return what the first process makes, or raise what it raises."""
        if self.size == 1:
            return make()
        told = [None, None]
        if self.is_first:
            try:
                told[0] = make()
            except Exception as error:
                told[1] = _sendable(error)
        with self._meeting():
            distributed.broadcast_object_list(told, 0, self.objects)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def together(self, act):
        """Return what each process's own act returned; if one fails, all raise that.

        Parameters
        ----------
        act : callable
            May not wait for other processes.
        """
        if self.size == 1:
            return [act()]
        own = [None, None]
        try:
            own[0] = act()
        except (Exception, KeyboardInterrupt) as error:
            own[1] = error
        said = [None] * self.size
        with self._meeting():
            sent = own[0], _sendable(own[1])
            distributed.all_gather_object(said, sent, self.objects)
        for failure in (own[1], *(failed for _, failed in said)):
            if failure is not None:
                raise failure
        return [found for found, _ in said]

    def agree(self, what):
        """Raise an error if the processes do not say the same.

        Parameters
        ----------
        what : dict of str to object
        """
        if self.size == 1:
            return
        said = [None] * self.size
        with self._meeting():
            distributed.all_gather_object(said, what, self.objects)
        differ = [name for name in what if any(o.get(name) != what[name] for o in said)]
        if differ:
            raise ValueError(
                f"The {self.size} processes of torch.distributed train one network "
                f"together, but differ in {', '.join(differ)}: run the same lines with "
                "the same seeds in all of them, or train a network in each within "
                "`with sklabel.alone():`."
            )

    def collected(self, x, n, dim):
        """Return all rows, on the CPU, of which each process has computed its part.

        Parameters
        ----------
        x : Tensor of shape (..., n_own, D)
        n : int
            Rows before they were parted.
        dim : int
        """
        if self.size == 1:
            return x
        with self._meeting():
            return _all_gather(x, dim, self.objects).narrow(dim, 0, n)

    def average_gradients_(self, module):
        """Make every gradient the mean over the processes."""
        if self.size == 1:
            return
        weights = [p for p in module.parameters() if p.requires_grad]
        # a weight that no process has used must stay without a gradient
        used = torch.tensor([p.grad is not None for p in weights], dtype=torch.int32)
        with self._meeting():
            distributed.all_reduce(used, group=self.objects)
            weights = [p for p, n in zip(weights, used.tolist(), strict=True) if n]
            for p in weights:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            self.average_([p.grad for p in weights])

    def average_(self, tensors, group=None):
        """Make every tensor of floats the mean over the processes, in place.

        ``group``: of torch, which sends them; None: the default one.
        """
        if self.size == 1:
            return

        def average(flat):
            distributed.all_reduce(flat, group=group)
            flat /= self.size

        self._at_once(tensors, average)

    def averaged(self, values):
        """Return the mean over the processes of each value of a dict."""
        if self.size == 1:
            return values
        own = {name: torch.as_tensor(x) for name, x in values.items()}
        own = {name: x.to("cpu", torch.float64, copy=True) for name, x in own.items()}
        self.average_(own.values(), self.objects)
        return own

    @torch.no_grad()
    def copy_first_(self, tensors):
        """Give every tensor, in place, the values that it has in the first process."""
        if self.size == 1:
            return
        self._at_once(tensors, lambda flat: distributed.broadcast(flat, 0))

    def _at_once(self, tensors, send):
        """Change tensors in place: ``send`` changes those of one type as one vector."""
        for own in _by_type(tensors):
            flat = torch.cat([x.reshape(-1) for x in own])
            with self._meeting():
                send(flat)
            for x, part in zip(own, flat.split([x.numel() for x in own]), strict=True):
                x.copy_(part.view_as(x))

    def all_fail(self):
        """Return whether this fit fails in all processes, within seconds."""
        with suppress(Exception):
            store = distributed.distributed_c10d._get_default_store()
            keys = [f"sklabel/failed/{self.n_fits}/{n}" for n in range(self.size)]
            store.set(keys[self.rank], "")
            end = time.monotonic() + _SECONDS_TO_FAIL
            while time.monotonic() < end:
                if store.check(keys):
                    return not self.is_broken
                time.sleep(0.05)
        return False

    @contextmanager
    def step(self):
        """While a loss is computed: `gathered` and `summed` reach all processes."""
        token = _of_step.set(self if self.size > 1 else None)
        try:
            yield
        finally:
            _of_step.reset(token)

    @contextmanager
    def _meeting(self):
        try:
            yield
        except RuntimeError as error:
            self.is_broken = True
            said = " ".join(str(error).split())[:300]
            raise RuntimeError(
                f"Process {self.rank} of {self.size} waited in vain for another one, "
                "which has ended, or does something else: look for the first error "
                f"among those of all processes. torch says: {said}"
            ) from error


ALONE = Group()


def current():
    """Return the processes that share the fit that runs."""
    return _of_fit.get() or ALONE


def n_in_step():
    """Return the number of processes that compute the loss of one batch together."""
    group = _of_step.get()
    return 1 if group is None else group.size


@contextmanager
def sharing():
    """While a fit runs: share it, if there are several processes to do so."""
    group = None if _of_fit.get() or _n_alone else _join()
    if group is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            f"The {group.size} processes of torch.distributed train together, which "
            "several threads cannot do at once: search with n_jobs=1, or train a "
            "network in each process within `with sklabel.alone():`."
        )
    token = _of_fit.set(group)
    Group.n_fits += 1
    try:
        with _common_numbers(group):
            yield
    except BaseException as error:
        # else the others would wait, where this one goes on, as a search does
        if not (isinstance(error, Exception) and group.all_fail()):
            _abandon()
        raise
    finally:
        _of_fit.reset(token)


@contextmanager
def alone():
    """Train a network in each process of `torchrun`, not one in all of them together.

    Examples
    --------
    >>> import sklabel
    >>> with sklabel.alone():
    ...     pass  # clf.fit(X, y)
    """
    global _n_alone
    token = _of_fit.set(None)
    _n_alone += 1
    try:
        yield
    finally:
        _n_alone -= 1
        _of_fit.reset(token)


def once(function):
    """Decorate a function that the first process computes for all that share a fit."""

    @wraps(function)
    def computed_once(*args, **kwargs):
        return current().shared(lambda: function(*args, **kwargs))

    return computed_once


def gathered(x, dim=0):
    """Return the rows of all processes that compute the loss of one batch together.

    Parameters
    ----------
    x : Tensor or tuple of Tensor
        Equally many rows in each process. Gradients pass.
    dim : int, default=0
        Axis of the rows.

    Returns
    -------
    x : Tensor or tuple of Tensor
        With the rows of the whole batch, in its order; of one process x itself.
    """
    group = _of_step.get()
    if group is None:
        return x
    if isinstance(x, tuple):
        return tuple(gathered(part, dim) for part in x)
    with group._meeting():
        return _Gathered.apply(x, dim)


def summed(x):
    """Return the sum over all processes that compute a loss together; gradients pass.

    Parameters
    ----------
    x : Tensor

    Returns
    -------
    x : Tensor
        Of one process x itself.
    """
    group = _of_step.get()
    if group is None:
        return x
    with group._meeting():
        return _Summed.apply(x)


def own_part(x):
    """Return the rows of x that belong to this process's share of the batch.

    Parameters
    ----------
    x : Tensor of shape (B, ...)
        Of the whole batch, in its order.
    """
    group = _of_step.get()
    return x if group is None else group.part(x)


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
def _common_numbers(group):
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


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dim):
        ctx.dim = dim
        return _all_gather(x, dim)

    @staticmethod
    def backward(ctx, grad):
        # training minimizes the mean of the losses of all processes
        grad = grad.contiguous()
        distributed.all_reduce(grad)
        size, rank = distributed.get_world_size(), distributed.get_rank()
        return grad.chunk(size, ctx.dim)[rank], None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        distributed.all_reduce(grad)
        return grad


def _all_gather(x, dim, group=None):
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x, group)
    return torch.cat(parts, dim)


def _sendable(error):
    """Return an error that other processes can read: itself, or what it says."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _by_type(tensors):
    """Return tensors in lists of one type each, which can be sent at once."""
    kinds: dict = {}
    for x in tensors:
        kinds.setdefault((x.dtype, x.device), []).append(x)
    return kinds.values()


def _join():
    """Return the group of processes that this one was started with; None: no other."""
    if not distributed.is_available():
        return None
    if not distributed.is_initialized():
        if not _is_one_of_several():
            return None
        if _is_abandoned:
            raise RuntimeError(
                "A fit before failed in some of the processes of torch.distributed "
                "only, so they cannot train together any more: mend its error, and "
                "start all of them again."
            )
        _initialize()
    if distributed.group.WORLD is _inherited:
        return None  # a copy of one of them: its connections are not its own
    size = distributed.get_world_size()
    return None if size == 1 else Group(distributed.get_rank(), size)


def _is_one_of_several():
    """Return whether a launcher has started this process beside others."""
    names = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    size = os.environ.get("WORLD_SIZE", "")
    if not names <= os.environ.keys() or not size.isdigit() or int(size) < 2:
        return False
    # else a worker that one of them has started, as joblib does
    return multiprocessing.current_process().name == "MainProcess"


def _initialize():
    """Meet the other processes, as torchrun and accelerate launch have said where."""
    backend = "gloo"
    if torch.cuda.is_available() and distributed.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
        local = int(os.environ.get("LOCAL_RANK", 0))
        torch.cuda.set_device(local % torch.cuda.device_count())
    _wait_for_all()
    distributed.init_process_group(backend)
    atexit.register(_leave)


def _leave():
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _abandon():
    """Close the connections to the others, so that they do not wait."""
    global _is_abandoned
    _is_abandoned = True
    _second.clear()
    with suppress(Exception):
        _leave()


# seconds after which a process that waits for another one to call fit says so, and
# after which it gives up
_PATIENCE, _LONGEST_WAIT = 60, 1800


def _store():
    """Return the launcher's store, by which processes can tell before they meet."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None  # the first process would have to keep one itself
    with suppress(Exception):  # the launcher may have ended, or speak another way
        return next(distributed.rendezvous("env://", timeout=timedelta(seconds=10)))[0]


def _wait_for_all():
    """Wait until all processes call fit; raise an error if one has ended without."""
    if (store := _store()) is None:
        return
    atexit.unregister(_tell_that_it_ends)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store.set(f"sklabel/came/{rank}", "")
    start, told = time.monotonic(), False
    for other in range(size):
        while not store.check([f"sklabel/came/{other}"]):
            waited, ended = time.monotonic() - start, f"sklabel/ended/{other}"
            if store.check([ended]) or waited > _LONGEST_WAIT:
                what = "has ended" if store.check([ended]) else "goes on"
                raise RuntimeError(
                    f"Process {other} of {size} {what} without a call of fit: call it "
                    "in all of them, or within `with sklabel.alone():`."
                )
            if waited > _PATIENCE and not told:
                told = True
                warnings.warn(
                    f"Process {rank} of {size} has waited {waited:.0f} s for process "
                    f"{other} to call fit, too.",
                    stacklevel=2,
                )
            time.sleep(min(0.5, waited / 10))


def _tell_that_it_ends():
    if (store := _store()) is not None:
        store.set(f"sklabel/ended/{os.environ['RANK']}", "")


if _is_one_of_several():
    atexit.register(_tell_that_it_ends)


_second: dict = {}


def _second_group():
    """Return a group for what lies on the CPU, beside one for GPUs alone."""
    world = distributed.group.WORLD
    if world not in _second:
        _second[world] = distributed.new_group(backend="gloo")
    return _second[world]
