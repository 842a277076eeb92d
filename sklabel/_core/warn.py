"""Warnings that point at the user's line, however deep they come from."""

import sys
import warnings

# what stands between the user's call and ours
_PASSED_THROUGH = {"sklabel", "sklearn", "contextlib"}


def warn(message, category=UserWarning):
    """Warn at the line outside this package and scikit-learn that led here."""
    level, frame = 1, sys._getframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module not in _PASSED_THROUGH:
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
