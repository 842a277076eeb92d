"""Ctrl-C and SIGTERM end a command, but not while it writes its results."""

import os
import signal
import threading
from contextlib import contextmanager

_ENDS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}


class _State:
    """State of the running command."""

    received = None  # number of the first signal
    is_process = False  # whether the command is all that this process does
    loading = finishing = False


@contextmanager
def stopping(is_process):
    """Raise KeyboardInterrupt at Ctrl-C and at SIGTERM.

    A handler set by the calling program is kept.

    Parameters
    ----------
    is_process : bool
        Whether the process may be ended at once while libraries are loaded.
    """
    _State.received, _State.is_process = None, is_process
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number, usual in (
            (signal.SIGINT, signal.default_int_handler),
            (signal.SIGTERM, signal.SIG_DFL),
        ):
            if signal.getsignal(number) is usual:
                before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number, frame):
    _State.received = _State.received or number
    if _State.loading and _State.is_process:
        what, status = ending()
        os.write(2, f"sklabel: {what}: nothing written.\n".encode())
        os._exit(status)
    if not (_State.loading or _State.finishing):
        raise KeyboardInterrupt


def received():
    """Return whether there has been a signal since the command began."""
    return _State.received is not None


def ending():
    """Return the event in one word, and its exit status."""
    return _ENDS[_State.received or signal.SIGINT]


@contextmanager
def loading():
    """Keep KeyboardInterrupt out of library imports: torch aborts."""
    _State.loading = True
    try:
        yield
    finally:
        _State.loading = False
    if received():
        raise KeyboardInterrupt


@contextmanager
def finishing():
    """Ignore signals to finish a short task."""
    _State.finishing = True
    try:
        yield
    finally:
        _State.finishing = False
