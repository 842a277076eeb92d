"""Files: written whole or not at all, read only where they are plain files."""

import errno
import functools
import os
import re
import secrets
import stat
import threading
import time
import unicodedata
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image, UnidentifiedImageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# What Pillow reads by itself; for others, such as EPS, it starts a program.
_IMAGE_FORMATS = (
    *("BMP", "GIF", "ICO", "JPEG", "PNG", "PPM", "TIFF", "WEBP"),
    *("AVIF", "JPEG2000"),
)
# Files of cameras: they begin as TIFF, but what Pillow finds in them is a preview.
RAW_ENDINGS = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .k25 .kdc .mef .mos .mrw .nef "
    ".nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srf .srw .x3f".split()
)
_limit_lock = threading.Lock()  # Pillow's limit is one for the whole process

_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
_REMEDIES = {
    errno.ENOENT: "correct the path",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "give a folder",
    errno.EACCES: "change its permissions (chmod), or give another path",
    errno.EPERM: "change its permissions (chmod), or give another path",
    errno.EROFS: "give a place on another disk",
    errno.ENOSPC: "free some space, or give another place",
    errno.EDQUOT: "free some space, or give another place",
    errno.EFBIG: "give a place that takes larger files (see ulimit -f)",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "remove the link that leads to itself",
}
_PARTIAL = ".partial"  # end of the name of a file that is being written
_PATIENCE = 10  # seconds to wait for a lock
_ABANDONED = 3600  # seconds after which nobody still writes to it, where no lock tells


def expanded(path):
    """Return a `Path` with the home folder for ``~``; ``~name`` of nobody stays."""
    return Path(os.path.expanduser(path))


def explained(error):
    """Return a sentence on an OSError: the path, what is wrong, and what to do."""
    if not error.strerror:
        return str(error)
    if error.filename is None:
        return error.strerror
    places = [str(p) for p in (error.filename, error.filename2) if p is not None]
    return f"{trouble(error, ', '.join(places))}: {remedy(error)}."


def trouble(error, subject=None):
    """Return what is wrong with the path of an OSError, in words about a subject."""
    path, it = error.filename, subject or "it"
    number = error.errno if isinstance(path, (str, os.PathLike)) else None
    if number == errno.ENOENT and os.path.islink(path):
        return f"{it} is a link to {os.readlink(path)}, which does not exist"
    if number == errno.ENOENT:
        return f"{it} does not exist"
    if number == errno.EISDIR:
        return f"{it} is a folder, not a file"
    if number == errno.ENOTDIR:
        above = next((p for p in Path(path).parents if p.is_file()), None)
        if above is not None:
            return f"{it} cannot exist, because {above} is a file, not a folder"
        return f"{it} is a file, not a folder"
    return f"{subject}: {error.strerror}" if subject else error.strerror


def remedy(error):
    """Return what to do after an OSError of a path."""
    path = error.filename or ""
    if error.errno == errno.ENOENT and os.path.islink(path):
        return "remove the link, or restore that file"
    if error.errno == errno.ENOTDIR and not os.path.lexists(path):
        return _REMEDIES[errno.ENOENT]
    return _REMEDIES.get(error.errno, "give another path")


def check_folder(path):
    """Raise an error that names the remedy if a folder cannot be listed."""
    try:
        os.scandir(path).close()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not os.path.islink(path):
            raise FileNotFoundError(
                f"There is no folder {str(path)!r}: {remedy(error)}."
            ) from None
        raise type(error)(
            f"{trouble(error, repr(str(path)))}: {remedy(error)}."
        ) from None


def check_regular(path, mode=None):
    """Raise a ValueError for a pipe, a device or a folder: reading may never end."""
    mode = os.stat(path).st_mode if mode is None else mode
    if not stat.S_ISREG(mode):
        kind = next((kind for test, kind in _KINDS.items() if test(mode)), "special")
        raise ValueError(f"{str(path)!r} is {kind}, not a regular file")


def open_image(file, max_pixels=None, first=None):
    """Open an image as ``PIL.Image.open`` does, without any other program.

    Parameters
    ----------
    file : str, Path or file object
        A name is found however its accents are composed.
    max_pixels : int or None
        Largest number of pixels; None: ``2 * PIL.Image.MAX_IMAGE_PIXELS``.
    first : callable or None
        Is shown the file object before Pillow is; returns an image or None.

    Returns
    -------
    image : PIL.Image.Image
        BMP, GIF, ICO, JPEG (MPO too), JPEG 2000, PNG, PPM, TIFF, WebP or AVIF.

    Raises
    ------
    ValueError
        If it has more pixels.
    """
    if hasattr(file, "read"):
        return _open(file, max_pixels, first)
    file = open(_check_existing(file), "rb")
    try:
        image = _open(file, max_pixels, first)
        image._exclusive_fp = True  # the image closes it
    except BaseException:
        file.close()
        raise
    return image


def _check_existing(path):
    """Return the name of a regular file, in the form in which the folder has it."""
    try:
        check_regular(path)
    except FileNotFoundError:
        for form in ("NFC", "NFD"):
            other = unicodedata.normalize(form, os.fspath(path))
            if os.path.exists(other):
                check_regular(other)
                return other
        raise
    return path


def _open(file, max_pixels, first):
    image = None
    try:
        if first is not None:
            image = first(file)
            file.seek(0)
        if image is not None and max_pixels is None:
            Image._decompression_bomb_check(image.size)
        elif image is None and max_pixels is None:
            image = Image.open(file, formats=_image_formats())
        elif image is None:
            with _limit_lock:
                before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
                try:
                    image = Image.open(file, formats=_image_formats())
                    large = before and before < image.width * image.height
                    large = large and image.width * image.height <= max_pixels
                    if large and image.format in ("GIF", "TIFF"):
                        image.load()  # which looks at the limit again
                finally:
                    Image.MAX_IMAGE_PIXELS = before
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(
            f"it is not an image in a supported format: {', '.join(_image_formats())}, "
            "HEIC"
        ) from error
    except Image.DecompressionBombError as error:
        found = re.search(r"\((\d+) pixels", str(error))
        n_pixels = int(found[1]) if found else 10**9
        most = max_pixels or 2 * Image.MAX_IMAGE_PIXELS
        raise ValueError(_too_large(n_pixels, most)) from error
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise ValueError(_too_large(image.width * image.height, max_pixels))
    return image


def _too_large(n_pixels, most):
    return (
        f"it has {n_pixels:,} pixels, and more than {most:,} may be an attack that "
        f"fills the memory; if you trust it, set max_pixels={n_pixels} (in commands, "
        f"--max-pixels {n_pixels})"
    )


def image_format(head):
    """Return the format that the first bytes of a file are of, or None."""
    if len(head) < 16:
        return None
    for name in _image_formats():
        accept = Image.OPEN[name][1]
        if accept is not None and accept(head[:16]) is True:
            return name
    return None


def read_head(path):
    """Return the first 64 bytes of a regular file."""
    check_regular(path)
    with open(path, "rb") as file:
        return file.read(64)


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
    a killed process has left is removed by the next one. An error of the disk names
    ``path``.
    """
    path = Path(path)
    remove_partial(path.parent, re.escape(path.name))
    partial = None
    try:
        with _new_partial(path) as file:
            partial = file.name
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:  # before the lock is given up
                os.replace(partial, path)
        if fcntl is None:  # Windows renames no open file
            os.replace(partial, path)
    except BaseException as error:
        if partial is not None:
            with suppress(OSError):
                os.unlink(partial)
        if isinstance(error, OSError) and error.errno:
            # a full disk does not say where, and nobody knows the partial file
            if error.filename is None or str(error.filename).endswith(_PARTIAL):
                raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


@contextmanager
def locked(path):
    """Keep a file from all others that ask for this, also where it is replaced.

    Where there is no file, or no locks, nothing is locked.

    Raises
    ------
    TimeoutError
        If another process has it for longer than 10 seconds.
    """
    file = None if fcntl is None else _locked(path)
    try:
        yield
    finally:
        if file is not None:
            os.close(file)


def _locked(path):
    """Return the number of the locked file that is at a path, or None."""
    last = time.monotonic() + _PATIENCE
    while True:
        try:
            check_regular(path)
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, ValueError):
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
            os.close(file)  # it was replaced meanwhile
        except FileNotFoundError:
            os.close(file)
        except BlockingIOError:
            os.close(file)
            if time.monotonic() > last:
                raise TimeoutError(
                    f"{path} is locked by another program: end it, or wait."
                ) from None
            time.sleep(0.005)
        except OSError:  # no locks on this file system
            return file


def _new_partial(path):
    """Open a new file beside ``path``, locked as long as its writer lives."""
    while True:
        # as tempfile.mkstemp, but with the mode that the user's umask gives
        name = f".{path.name}.{secrets.token_hex(8)}{_PARTIAL}"
        file = open(path.with_name(name), "xb")
        if fcntl is None:
            return file
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        if os.path.lexists(file.name):
            return file
        file.close()  # another process met it before it was locked


def remove_partial(folder, name):
    """Remove what killed processes left of files of such names, a regular expression.

    The file of a process that lives is locked, and stays. Where there are no locks, a
    file goes when it is over an hour old.
    """
    pattern = re.compile(rf"\.(?:{name})\.[0-9a-f]{{16}}{re.escape(_PARTIAL)}")
    with suppress(OSError):
        for entry in os.listdir(folder):
            if pattern.fullmatch(entry):
                with suppress(OSError):
                    _remove_if_abandoned(os.path.join(folder, entry))


def _remove_if_abandoned(path):
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return
    if fcntl is None:
        _remove_if_old(path)
        return
    number = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except BlockingIOError:
        pass
    except OSError:  # no locks here
        _remove_if_old(path)
    finally:
        os.close(number)


def _remove_if_old(path):
    if time.time() - os.lstat(path).st_mtime > _ABANDONED:
        os.unlink(path)


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
                with suppress(OSError):
                    _remove_if_old(os.path.join(folder, name))
