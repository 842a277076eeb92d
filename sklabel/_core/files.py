"""Files: written whole or not at all, read only where they are plain files."""

import functools
import os
import re
import secrets
import stat
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

# What Pillow reads by itself; for others, such as EPS, it starts a program.
_IMAGE_FORMATS = ("BMP", "GIF", "ICO", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
_ABANDONED = 3600  # seconds after which nobody still writes to a partial file


def check_regular(path, mode=None):
    """Raise a ValueError for a pipe, a device or a folder: reading may never end."""
    mode = os.stat(path).st_mode if mode is None else mode
    if not stat.S_ISREG(mode):
        kind = next((kind for test, kind in _KINDS.items() if test(mode)), "special")
        raise ValueError(f"{str(path)!r} is {kind}, not a regular file")


def open_image(file):
    """Open an image as ``PIL.Image.open`` does, without any other program.

    Parameters
    ----------
    file : str, Path or file object

    Returns
    -------
    image : PIL.Image.Image
        BMP, GIF, ICO, JPEG (MPO too), PNG, PPM, TIFF or WebP.
    """
    if not hasattr(file, "read"):
        check_regular(file)
    return Image.open(file, formats=_image_formats())


@functools.cache
def _image_formats():
    Image.init()  # Pillow may have been built without one of them
    return [name for name in _IMAGE_FORMATS if name in Image.OPEN]


def read_regular(path, limit=None):
    """Return the bytes of a regular file.

    Parameters
    ----------
    path : str or Path
    limit : int or None
        Largest size in bytes; None: any.

    Raises
    ------
    ValueError
        If it is no regular file, or larger.
    """
    check_regular(path)  # opening a device may already do something
    # a pipe that has taken its place since must not block
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        check_regular(path, found.st_mode)
        if limit is not None and found.st_size > limit:
            raise ValueError(f"{str(path)!r} is larger than {limit:,} bytes")
        return file.read(found.st_size + 1)


@contextmanager
def replacing(path):
    """Yield a binary file to write to; it becomes ``path`` when all went well.

    A reader sees the old file or the new one, also after a power failure. Several
    processes may write to one path. A link at ``path`` is replaced, not followed. What
    a killed process has left is removed by the next one.
    """
    path = Path(path)
    remove_abandoned(path.parent, rf"\.{re.escape(path.name)}\..*\.partial")
    # as tempfile.mkstemp, but with the mode that the user's umask gives
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and error.errno:
            # such as a full disk: it does not say where
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def sync_folder(folder):
    """Make new and removed names of a folder last, where the system allows it."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        with suppress(OSError):  # nor do some network file systems
            os.fsync(number)
    finally:
        os.close(number)


def remove_abandoned(folder, pattern, keep=None):
    """Remove files of such names, a regular expression, that are over an hour old."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if name != keep and re.fullmatch(pattern, name):
                path = os.path.join(folder, name)
                with suppress(OSError):
                    if time.time() - os.lstat(path).st_mtime > _ABANDONED:
                        os.unlink(path)
