"""Warnings that point at the user's line, however deep they come from."""

import sys
import warnings
from contextlib import contextmanager
from contextvars import ContextVar

from .processes import current

# what stands between the user's call and ours
_PASSED_THROUGH = {"sklabel", "sklearn", "contextlib"}


# what has been said in the fit in progress
_said: ContextVar[set | None] = ContextVar("said", default=None)


@contextmanager
def one_fit():
    """Let `warn_once` warn once, also in the fits of the estimators within a fit."""
    if _said.get() is not None:
        yield
        return
    token = _said.set(set())
    try:
        yield
    finally:
        _said.reset(token)


def warn_once(kind, message, category=UserWarning):
    """Warn of something that every estimator within a fit would say again."""
    said = _said.get()
    if said is None or kind not in said:
        warn(message, category)
    if said is not None:
        said.add(kind)


def warn(message, category=UserWarning):
    """Warn at the line outside this package and scikit-learn that led here.

    Of several processes that share a fit, the first one warns.
    """
    if not current().is_first:
        return
    level, frame = 1, sys._getframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module not in _PASSED_THROUGH:
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
