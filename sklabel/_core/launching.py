"""How a process meets those that torchrun has started beside it, and leaves them."""

import atexit
import multiprocessing
import os
import time
import warnings
from contextlib import suppress
from datetime import timedelta

import torch
from torch import distributed

_is_abandoned = False
_inherited = None  # the group of the process that this one is a copy of
_second: dict = {}  # groups for what lies on the CPU
# seconds after which a process that waits for another one to call fit says so, and
# after which it gives up
_PATIENCE, _LONGEST_WAIT = 60, 1800


def _after_fork():
    global _inherited
    if distributed.is_available() and distributed.is_initialized():
        _inherited = distributed.group.WORLD


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def joined():
    """Meet the processes that this one was started with, and return whether it did."""
    if not distributed.is_available():
        return False
    if not distributed.is_initialized():
        if not _is_one_of_several():
            return False
        if _is_abandoned:
            raise RuntimeError(
                "A fit before failed in some of the processes of torch.distributed "
                "only, so they cannot train together any more: mend its error, and "
                "start all of them again."
            )
        _initialize()
    if distributed.group.WORLD is _inherited:
        return False  # a copy of one of them: its connections are not its own
    return distributed.get_world_size() > 1


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


def abandon():
    """Close the connections to the others, so that they do not wait."""
    global _is_abandoned
    _is_abandoned = True
    _second.clear()
    with suppress(Exception):
        _leave()


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


def second_group():
    """Return a group for what lies on the CPU, beside one for GPUs alone."""
    world = distributed.group.WORLD
    if world not in _second:
        _second[world] = distributed.new_group(backend="gloo")
    return _second[world]
