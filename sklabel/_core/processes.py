"""Several processes that train one network together, as torchrun starts them."""

import pickle
import threading
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps

import numpy as np
import torch
from torch import distributed

from .launching import abandon, joined, second_group
from .random_numbers import common_numbers

_of_fit: ContextVar = ContextVar("the processes that share this fit", default=None)
_of_step: ContextVar = ContextVar("the processes that share this step", default=None)
_n_alone = 0
# in which a fit that fails in one process must fail in all
_SECONDS_TO_FAIL = 5


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
            self.objects = second_group()

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
    if _of_fit.get() or _n_alone or not joined():
        yield
        return
    group = Group(distributed.get_rank(), distributed.get_world_size())
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            f"The {group.size} processes of torch.distributed train together, which "
            "several threads cannot do at once: search with n_jobs=1, or train a "
            "network in each process within `with sklabel.alone():`."
        )
    token = _of_fit.set(group)
    Group.n_fits += 1
    try:
        with common_numbers(group):
            yield
    except BaseException as error:
        # else the others would wait, where this one goes on, as a search does
        if not (isinstance(error, Exception) and group.all_fail()):
            abandon()
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
