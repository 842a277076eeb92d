"""Caches of the commands."""

import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from .._core.files import expanded


@contextmanager
def chosen(args):
    """Set ``args.kept``, a folder: that of ``--cache``, or one that is removed again.

    Parameters
    ----------
    args : namespace
        Commands without a cache have no ``cache``.
    """
    if not hasattr(args, "cache"):
        yield
    elif args.no_cache:
        # vectors are still found again within the command
        with tempfile.TemporaryDirectory(prefix="sklabel-") as folder:
            args.kept = Path(folder)
            yield
    else:
        args.kept = default() if args.cache is None else expanded(args.cache)
        yield


def default():
    """Return this package's folder in the system's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "sklabel"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        return Path(local) / "sklabel" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sklabel"
    return Path.home() / ".cache" / "sklabel"
