"""Lists of labels: which image of the folder has which label, from one or more CSVs."""

import os
import re
import shlex
import unicodedata
import urllib.parse
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .._core.label_texts import text_label
from . import options, tables

HEADER = ["path", "label", "confidence", "source", "predicted"]
_BY_LABEL_STUDIO = re.compile(r"[0-9a-f]{8}-(.+)")  # before a name that was uploaded


class Labels(NamedTuple):
    """What lists say of the images of a folder.

    Parameters
    ----------
    given : dict
        {name: label} of the images that a person has labeled.
    corrected : int
        How many of them were predictions that a person has changed.
    predicted : int
        How many rows hold a prediction that nobody has changed: no label.
    """

    given: dict
    corrected: int
    predicted: int

    def counts(self):
        """Return these numbers in words."""
        corrected = f" ({self.corrected} of them corrected)" if self.corrected else ""
        left = f", {self.predicted} predictions not used" if self.predicted else ""
        return f"{len(self.given)} labels given{corrected}{left}"


def row_of_prediction(name, label, confidence):
    """Return a row, in the order of `HEADER`, of a label that nobody has given.

    The label stands in it twice. If both differ later, a person has changed the first.
    """
    return [name, label, confidence, "predicted" if confidence else "", label]


def row_of_label(name, label, prediction=""):
    """Return a row of a label that a person has given, and of what is predicted."""
    return [name, label, "1.0000", "given", prediction]


def read(paths, files, folder, args):
    """Return the `Labels` of some CSVs.

    Parameters
    ----------
    paths : list of str
    files : dict
        Of `inputs.list_images`.
    folder : str
        Where they are.
    args : namespace
        Of `options.add_lists`.
    """
    names = Names(files, folder, args.path_prefix)
    given, origin, corrected, predicted, unclear = {}, {}, set(), 0, {}
    for path in paths:
        strangers = []
        for line, cell, text, prediction, is_predicted in _entries(path, args):
            name = names.find(cell, path, line) if cell.strip() else None
            if text in args.unlabeled:
                text = ""
            if is_predicted and prediction in ("", text):
                predicted += bool(text)
                text = ""
            try:
                label = text_label(text, args.keep_label)
            except ValueError as error:
                unclear.setdefault(text, f"{path}, line {line}: {error}")
                continue
            if name is None and cell.strip():
                strangers.append((line, cell))
            elif name is None and label is not None:
                raise ValueError(
                    f"{path}, line {line}: the label {text!r} has no path."
                )
            elif label is not None:
                if given.setdefault(name, label) != label:
                    raise ValueError(
                        f"two labels for {name}: {given[name]!r} ({origin[name]}) and "
                        f"{label!r} ({path}, line {line}). Remove one of them."
                    )
                origin.setdefault(name, f"{path}, line {line}")
                if is_predicted:
                    corrected.add(name)
        if strangers:
            raise _unknown(strangers, path, folder)
    if unclear:
        raise _unclear(unclear)
    return Labels(given, len(corrected), predicted)


def _entries(path, args):
    """Yield line, path, label, predicted label and whether that is all there is."""
    table = tables.read(path, [args.path_column, args.label_column])
    of_path = table.column(
        args.path_column,
        "The first line must name the columns; name the one with the paths with "
        "--path-column.",
    )
    of_label = table.column(args.label_column, "Name one with --label-column.")
    of_source, of_prediction = table.column("source"), table.column("predicted")
    for row in table.rows:
        label, prediction = (
            tables.unescape(row.cell(column)).strip()
            for column in (of_label, of_prediction)
        )
        is_predicted = row.cell(of_source).strip().casefold() == "predicted"
        yield row.line, row.cell(of_path), label, prediction, is_predicted


def _unclear(texts):
    """Return an error for texts that may stand for a missing label."""
    first, *others = texts
    more = f" (as may {', '.join(map(repr, others))})" if others else ""
    unlabeled, kept = (
        shlex.join(word for text in texts for word in options.option(name, text))
        for name in ("unlabeled", "keep_label")
    )
    return ValueError(
        f"{texts[first]}{more}. Leave such cells empty or add {unlabeled}; add {kept} "
        "to keep it as a class."
    )


def _unknown(cells, path, folder):
    """Return an error for cells, each with its line, that name no image."""
    (line, name), more = cells[0], f" and {len(cells) - 1} more" if cells[1:] else ""
    if Path(folder, name).expanduser().exists():
        return ValueError(
            f"{path}, line {line}, names {name!r}{more}, which is in {folder} but "
            "is no image that is read."
        )
    return ValueError(
        f"{path}, line {line}, names {name!r}{more}, but no such image is in {folder}: "
        "paths in the CSV must be relative to that folder. --path-prefix cuts off what "
        "stands before such a path."
    )


class Names:
    """The names of the images of a folder, found however a list spells them.

    Parameters
    ----------
    files : dict
        {name: path}.
    folder : str
    prefix : str or None
        Stands before the names in the list.
    """

    def __init__(self, files, folder, prefix):
        self.files = files
        self.prefix = prefix
        self.root = Path(folder).expanduser().absolute()
        self.composed, self.stems = {}, {}
        for name in files:
            self.composed.setdefault(_composed(name), []).append(name)
            stem = _composed(os.path.splitext(name)[0])
            self.stems.setdefault(stem, []).append(name)

    def find(self, cell, path, line):
        """Return the name that a cell means, or None.

        Parameters
        ----------
        cell : str
        path : str
            The CSV.
        line : int
            Of it.
        """
        readings = []
        for name in self._readings(cell, path):
            if name in self.files:
                return name
            readings.append(name)
        for known in (self.composed, self.stems):
            for name in readings:
                found = known.get(_composed(name), ())
                if len(found) > 1:
                    raise ValueError(
                        f"{path}, line {line}: {cell!r} may be {found[0]!r} or "
                        f"{found[1]!r}. Write the whole name, or rename one of them."
                    )
                if found:
                    return found[0]
        return None

    def _readings(self, cell, path):
        """Yield names that a cell may mean, the likeliest first."""
        texts = [
            spelled
            for text in (cell, cell.strip())
            for spelled in (tables.unescape(text), text)
        ]
        for text in dict.fromkeys(self._without_prefix(texts)):
            yield from self._relative(text)
            yield from self._absolute(text, path)

    def _without_prefix(self, texts):
        """Yield texts, and before each what follows the prefix."""
        for text in texts:
            plain, prefix = _slashes(text), _slashes(self.prefix or "")
            if prefix and plain.startswith(prefix):
                yield plain[len(prefix) :].lstrip("/")
            yield text

    def _relative(self, text):
        """Yield names that a path relative to the folder may mean."""
        yield text
        name = PurePosixPath(_slashes(text)).as_posix()
        for plain in dict.fromkeys([name, urllib.parse.unquote(name)]):
            parts, above = PurePosixPath(plain).parts, self.root.parts
            # alone, or with the folder's own name and some of those above it
            for n in range(min(len(parts), len(above))):
                if n == 0 or parts[:n] == above[-n:]:
                    *folders, last = parts[n:]
                    yield "/".join([*folders, last])
                    uploaded = _BY_LABEL_STUDIO.fullmatch(last)
                    if uploaded:
                        yield "/".join([*folders, uploaded[1]])

    def _absolute(self, text, path):
        """Yield names of files that a path from another place leads to."""
        for place in (Path.cwd(), Path(path).absolute().parent):
            full = os.path.join(place, _slashes(text))  # the place goes if absolute
            yield from self._inside(full)

    def _inside(self, text):
        """Yield the place in the folder of a path that lies in it."""
        for root in dict.fromkeys([self.root, Path(os.path.realpath(self.root))]):
            for found in (os.path.normpath(text), os.path.realpath(text)):
                if Path(found).is_relative_to(root):
                    yield Path(found).relative_to(root).as_posix()


def _slashes(text):
    return text.replace("\\", "/")


def _composed(text):
    return unicodedata.normalize("NFC", text)
