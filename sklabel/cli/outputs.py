"""Outputs of the commands: checked before the long work, replaced at its end."""

# A command replaces a file only if it has written it itself and nobody has changed it
# since, which the file shows: a CSV by the name of its last column, a picture by a text
# in it, a model by an entry of its ``estimator.json``.

import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from itertools import chain, count
from pathlib import Path

from .._core.files import expanded, open_image, read_regular, remedy, replacing
from . import inputs, signals, tables, words

_KEY = "sklabel"  # of the text in a picture
_MODEL = "estimator.json"
_WEIGHTS = re.compile(r"weights-[0-9a-f]+\.safetensors")


def check_csv(path, option, args):
    """Raise an error if a CSV cannot be written, or would replace a file not ours."""
    _check_writable(path)
    _check_own(path, option, args, _is_own_csv)


def check_list(path):
    """Raise an error if a list cannot be written, whoever wrote it."""
    _check_writable(path)


def check_picture(path, option, args):
    """The same for a picture."""
    _check_writable(path)
    _check_own(path, option, args, _is_own_picture)


def check_sheet(out, sheet, args):
    """Raise an error if a sheet would be the CSV, or be among the photographs."""
    if sheet == out:
        raise ValueError(
            f"--out and the contact sheet are both {out}: give another --sheet."
        )
    if expanded(args.folder).resolve() in sheet.resolve().parents:
        raise ValueError(
            f"the contact sheet {sheet} would be among the images of {args.folder} and "
            "count as one: give --sheet or --out another folder."
        )


def check_file(path, option, args):
    """The same for a file without a mark of its origin: it must not exist."""
    _check_writable(path)
    if os.path.lexists(path) and not args.overwrite:
        raise ValueError(
            f"{path} exists and is not overwritten: give another {option}, or "
            "--overwrite."
        )


def check_page(path, option, args):
    """The same for a page of ours, which ends with a mark."""
    _check_writable(path)
    _check_own(path, option, args, _is_own_page)


def check_new_tree(folder, option, args):
    """Raise an error if a folder of new files cannot be created."""
    check_folder(folder, option, args)
    if Path(folder).exists() and any(os.scandir(folder)):
        raise ValueError(f"{option} {folder} is not empty: give a new folder.")
    photos = expanded(args.folder).resolve()
    if photos in Path(folder).resolve().parents:
        raise ValueError(
            f"{option} {folder} would be among the images of {args.folder}: give "
            "another place."
        )


def check_model(folder, option, args):
    """The same for the folder of a model, which may not exist; None: no folder."""
    if folder is None:
        return
    check_folder(folder, option, args)
    # weights alone are what a killed run has left of a model
    if any(not _WEIGHTS.fullmatch(name) for name in _names_in(folder)):
        _check_own(Path(folder), option, args, is_own_model)


def check_folder(folder, option, args):
    """Raise an error if a folder cannot be written, or is that of the photographs."""
    if folder is None:
        return
    folder = place = Path(folder)
    while not os.path.lexists(place):
        place = place.parent
    _check_place(folder, place)
    photos = getattr(args, "folder", None)
    if photos is not None and folder.exists() and folder.samefile(expanded(photos)):
        raise ValueError(
            f"{option} {folder} is the folder of the photographs: give another."
        )


def check_new_folder(folder, names, option, args):
    """Raise an error if files would be written among those of somebody else."""
    check_folder(folder, option, args)
    found = _names_in(folder)
    if found and not args.overwrite and not found & set(names):
        raise ValueError(
            f"{option} {folder} holds other files: give a new folder, or --overwrite."
        )


def check_distinct(**places):
    """Raise an error if two outputs have the same path; names are those of options."""
    seen = {}
    for name, place in places.items():
        if place is None:
            continue
        option = f"--{name.replace('_', '-')}"
        other = seen.setdefault(os.path.realpath(place), option)
        if other != option:
            raise ValueError(f"{other} and {option} are both {place}: give two places.")


def _names_in(folder):
    """Return the names in a folder, except system files such as .DS_Store."""
    folder = Path(folder)
    if not folder.is_dir():
        return set()
    return {name for name in os.listdir(folder) if not name.startswith(".")}


def _check_writable(path):
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write {path}: it is not a file: give a file.")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(
            f"cannot write {path}: it is write-protected. Allow it (chmod u+w), or "
            "give another file."
        )
    _check_place(path, path.parent)


def _check_place(path, folder):
    if not folder.is_dir():
        wrong = "is not a folder: give another path"
        if not os.path.lexists(folder):
            wrong = "does not exist: create this folder, or give another path"
        raise ValueError(f"cannot write {path}: {folder} {wrong}.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        with suppress(FileNotFoundError):  # a longer name, while it is written
            os.lstat(Path(folder, f".{path.name}.{'0' * 16}.partial"))
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error.strerror}: {remedy(error)}."
        ) from None


def _check_own(path, option, args, is_own):
    if not args.overwrite and not is_free(path, args.command, is_own):
        raise ValueError(
            f"{path} exists, was not written by sklabel {args.command} or was changed "
            f"since, and is not overwritten. Give another {option}, or --overwrite."
        )


# -- what is ours


def is_free(path, command, is_own):
    """Return whether a path is free, or holds an output of the command."""
    if not os.path.lexists(path):
        return True
    try:
        return is_own(path, command)
    except Exception:  # what stands in the file may be anything
        return False


def _is_own_csv(path, command):
    return tables.is_unchanged(read_regular(path), command)


def _is_own_picture(path, command):
    with open_image(path) as image:
        told = image.info.get(_KEY)
        return told is not None and told == _picture_mark(image, command)


def as_page(text, command):
    """Return the bytes of a page of ours."""
    return text.encode() + _page_mark(text.encode(), command)


def _is_own_page(path, command):
    content = read_regular(path)
    text, mark, _ = content.rpartition(b"<!-- sklabel-")
    return bool(mark) and content == text + _page_mark(text, command)


def _page_mark(content, command):
    digest = hashlib.sha256(content).hexdigest()[:16]
    return f"<!-- sklabel-{command}:{digest} -->\n".encode()


def is_own_model(folder, command):
    """Return whether a folder holds a model that a command has written."""
    if not Path(folder, _MODEL).exists():
        return False
    described = json.loads(read_regular(Path(folder, _MODEL)))
    return described.get("written_by") == written_by(command)


def written_by(command):
    """Return the note that a command wrote a model."""
    return f"sklabel {command}"


def _picture_mark(image, command):
    pixels = image.convert("RGB")
    content = f"{pixels.size}".encode() + pixels.tobytes()
    return f"{command} {hashlib.sha256(content).hexdigest()[:16]}"


# -- writing


def free_csv(path, command, taken):
    """Return a path like the given one that a command may write to."""
    taken = {os.path.realpath(other) for other in taken}
    return _first(
        path,
        lambda other: (
            os.path.realpath(other) not in taken
            and is_free(other, command, _is_own_csv)
        ),
    )


def _first(path, fits):
    """Return the first of NAME, NAME-2, NAME-3 and so on that fits."""
    path = Path(path)
    others = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in count(2))
    return next(other for other in chain([path], others) if fits(other))


def picture(image, command):
    """Return the bytes of a PNG of ours."""
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_text(_KEY, _picture_mark(image, command))
    content = io.BytesIO()
    image.save(content, format="PNG", pnginfo=about)
    return content.getvalue()


@contextmanager
def streams():
    """Keep a process that began without standard streams from writing elsewhere.

    A scheduler may close them, and ``pythonw`` has none. The next files that are opened
    would get their numbers, and what is for stderr would go to stdout.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    with ExitStack() as stack:
        if sys.stderr is None:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def check_stdout(option):
    """Raise an error if a result cannot be printed."""
    if sys.stdout is None:
        raise ValueError(f"standard output is closed: give {option}.")


def show(text, as_it_is=False):
    """Print the output of a command completely, or raise an error.

    Parameters
    ----------
    text : str
    as_it_is : bool
        Whether it is for programs, in UTF-8, not for people.
    """
    if sys.stdout is None:  # closed: nobody reads it
        return
    if not as_it_is:
        text = words.shown(text)
    elif hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        encoding = sys.stdout.encoding or "utf-8"
        # a letter that the terminal does not know is shown by its number
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        give_up_stdout()
        raise OSError(error.errno, error.strerror, "standard output") from error


def give_up_stdout():
    """Drop output that cannot be printed; the exit would try again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def new_tree(folder):
    """Yield a folder to fill; it becomes ``folder`` on success.

    Parent folders are created, and a link to an empty folder is followed.
    """
    told, folder = folder, Path(os.path.realpath(folder))
    made = [above for above in folder.parents if not above.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)
    try:
        os.chmod(partial, 0o777 & ~_umask())
        yield Path(partial)
        with signals.finishing():
            if folder.exists():
                folder.rmdir()  # empty
            os.rename(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for above in made:
            with suppress(OSError):  # somebody else may have put something there
                above.rmdir()
        if isinstance(error, OSError) and error.errno:
            places = [str(error.filename), str(error.filename2)]
            if any(place.startswith(partial) for place in places):
                # nobody knows the partial folder
                raise OSError(error.errno, error.strerror, str(told)) from error
        raise


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def writing(args, *, csv=None, picture=None, file=None, issues=None):
    """Write files completely, all or none, after the block.

    Parameters
    ----------
    args : namespace
        ``command`` and ``overwrite`` are used.
    csv, picture, file, issues : (Path, bytes) or None
        If the file was changed since the command began, another name is used and
        printed.
    """
    kinds = (
        (csv, _is_own_csv),
        (picture, _is_own_picture),
        (file, _is_own_page),
        (issues, _is_own_csv),
    )
    with signals.finishing(), ExitStack() as stack:
        for output, is_own in kinds:
            if output is not None:
                path, content = output
                path = _unless_changed(path, args, is_own)
                file = stack.enter_context(replacing(path))
                file.write(content)
                file.flush()
        yield


def _unless_changed(path, args, is_own):
    if args.overwrite:
        return path
    other = _first(path, lambda other: is_free(other, args.command, is_own))
    if other != path:
        inputs.say(
            f"{path} was changed during the run and is kept: the result is in {other}."
        )
    return other
