"""Class folders, as read by torchvision's ImageFolder and FiftyOne."""

import os
import re
import shutil
import urllib.parse
from pathlib import Path, PurePosixPath

from .. import lists, tables
from . import Found, of_entry

MANIFEST = "labels.csv"
_UNLABELED = "_unlabeled"  # as FiftyOne calls it
_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test"))
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f%/\\:*?"<>|]')
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def folder_name(label):
    """Return a name that every system allows; `label_of` returns the label."""
    name = _NOT_IN_NAMES.sub(lambda m: f"%{ord(m[0]):02X}", str(label))
    is_special = name.startswith((".", "_")) or name.casefold() == MANIFEST
    if is_special or _DEVICES.fullmatch(name):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if name.endswith((".", " ")):
        name = f"{name[:-1]}%{ord(name[-1]):02X}"
    return name


def label_of(name):
    return urllib.parse.unquote(name)


def places(entries):
    """Return the path of each image, relative to the new folder."""
    found = [f"{folder_name(entry.label)}/{entry.name}" for entry in entries]
    longest = max(
        found, key=lambda place: len(place.split("/")[0].encode()), default=""
    )
    if len(longest.split("/")[0].encode()) > 255:
        raise ValueError(
            f"the class {longest.split('/')[0][:40]!r}... is too long for the name of "
            "a folder: give it a shorter name."
        )
    return found


def manifest(entries, command):
    """Return the bytes of a list of labels and paths."""
    header, rows = lists.rows(entries)
    rows = [[*row, p] for row, p in zip(rows, places(entries), strict=True)]
    return tables.as_marked(command, [*header, "file"], rows)


def write(folder, entries, files, link, command):
    """Write all into a new folder."""
    for entry, place in zip(entries, places(entries), strict=True):
        target = Path(folder, place)
        target.parent.mkdir(parents=True, exist_ok=True)
        source = os.path.abspath(files[entry.name])
        if link:
            os.symlink(source, target)
        else:
            shutil.copyfile(source, target)
    Path(folder, MANIFEST).write_bytes(manifest(entries, command))


def is_ours(folder, command):
    """Return whether a folder has been written by `write`."""
    path = Path(folder, MANIFEST)
    return path.is_file() and tables.is_unchanged(path.read_bytes(), command)


def read(folder, files, command):
    """Return `Found` for each image in class folders.

    Parameters
    ----------
    folder : str
    files : dict
        {path relative to the folder: path} of its images.
    command : str
        Of the list that `write` has left there: files at their listed paths are
        unchanged, others were moved by a person.
    """
    known, by_rest = {}, {}
    if is_ours(folder, command):
        path = str(Path(folder, MANIFEST))
        table = tables.read(path, lists.HEADER)
        column = table.column("file", "")
        of_line = {row.line: tables.unescape(row.cell(column)) for row in table.rows}
        for line, cell, entry in lists.own_entries(path):
            place = of_line[line]
            known[place] = entry._replace(name=cell)
            by_rest.setdefault(place.split("/", 1)[1], []).append(known[place])
    found = []
    # train/cat/1.jpg and test/cat/2.jpg, as many data sets have it
    firsts = {PurePosixPath(name).parts[0] for name in files}
    is_split = not known and firsts <= _SPLITS
    for name in files:
        parts = PurePosixPath(name).parts
        if is_split:
            parts = parts[1:]
        if name in known:
            found.append(of_entry(known[name].name, known[name]))
            continue
        if len(parts) < 2 or parts[0] == _UNLABELED:
            found.append(Found(name))
            continue
        label, rest = label_of(parts[0]) if known else parts[0], "/".join(parts[1:])
        before = by_rest.get(rest, ())
        if len(before) == 1:
            (entry,) = before
            found.append(Found(entry.name, (label,), predicted=entry.predicted))
        else:
            found.append(Found(rest if known else name, (label,)))
    return found
