"""Lists of labels: the label of each image of the folder, from one or more CSVs."""

import os
import re
import shlex
import unicodedata
import urllib.parse
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .._core.files import expanded
from .._core.label_texts import text_label
from .._core.wording import n_of
from . import options, tables

HEADER = ["path", "label", "confidence", "source", "predicted"]
_BY_LABEL_STUDIO = re.compile(r"[0-9a-f]{8}-(.+)")  # before a name that was uploaded


class Labels(NamedTuple):
    """The content of lists for the images of a folder.

    Parameters
    ----------
    given : dict
        {name: label} of the images that a person has labeled.
    corrected : int
        Number of them that were predictions and were changed by a person.
    predicted : int
        Number of rows with an unchanged prediction, which is not a label.
    """

    given: dict
    corrected: int
    predicted: int

    def counts(self):
        """Return these numbers in words."""
        corrected = f" ({self.corrected} of them corrected)" if self.corrected else ""
        left = (
            f", {n_of(self.predicted, 'prediction')} not used" if self.predicted else ""
        )
        return f"{n_of(len(self.given), 'label')} given{corrected}{left}"


class Entry(NamedTuple):
    """The content of lists for one image.

    Parameters
    ----------
    name : str
        Path within the folder.
    label : str
        "" if there is none; a `ClassName` if it looks like none.
    confidence : str
        Between 0 and 1, "" if it is not known.
    source : str
        "given" by a person, "predicted", or "".
    predicted : str
        Prediction of a model, "" if it is not known.
    others : tuple of (str, str)
        The next most likely classes with their confidence.
    corrected : bool
        Whether the label was a prediction that a person has changed.
    """

    name: str
    label: str
    confidence: str = ""
    source: str = ""
    predicted: str = ""
    others: tuple = ()
    corrected: bool = False

    @property
    def is_given(self):
        return self.source == "given"

    def probability(self):
        """Return the confidence as a number between 0 and 1, or None."""
        if not self.confidence:
            return None
        p = tables.number(self.confidence)
        if p is None:
            raise ValueError(
                f"the confidence {self.confidence!r} of {self.name!r} is not a number "
                "from 0 to 1: correct it, or leave the cell empty."
            )
        return p

    def row(self):
        """Return a row in the order of `header`."""
        first = [self.name, self.label, self.confidence, self.source, self.predicted]
        return [*first, *(cell for pair in self.others for cell in pair)]


def header(n_others=0):
    """Return the names of columns, including those of the next most likely classes."""
    return HEADER + [
        f"{name}_{rank}"
        for rank in range(2, n_others + 2)
        for name in ("label", "confidence")
    ]


def rows(entries):
    """Return the header and the rows of entries, all of one length."""
    n_others = max((len(entry.others) for entry in entries), default=0)
    names = header(n_others)
    found = [entry.row() for entry in entries]
    return names, [row + [""] * (len(names) - len(row)) for row in found]


def given_entry(name, label, prediction=""):
    """Return the entry of a label that a person has given."""
    return Entry(name, label, "1.0000", "given", prediction)


def predicted_entry(name, label, confidence, others=()):
    """Return the entry of a prediction.

    Its row holds the label twice. If they differ later, a person has changed the first.
    """
    return Entry(name, label, confidence, "predicted" if label else "", label, others)


def read(paths, files, folder, args):
    """Return the `Labels` of some CSVs.

    Parameters
    ----------
    paths : list of str
    files : dict
        Of `inputs.list_images`.
    folder : str
        Their folder.
    args : namespace
        Of `options.add_lists`.
    """
    found = entries(paths, files, folder, args)
    given = {entry.name: entry.label for entry in found if entry.is_given}
    corrected = sum(entry.corrected for entry in found)
    predicted = sum(entry.source == "predicted" for entry in found)
    return Labels(given, corrected, predicted)


def entries(paths, files, folder, args):
    """Return every `Entry` of some CSVs: for each image the given one, or the last.

    Parameters are those of `read`.
    """
    names = Names(files, folder, args.path_prefix)
    found, origin, unclear = {}, {}, {}
    for path in paths:
        strangers = []
        table = tables.read(path, [args.path_column, args.label_column])
        for line, cell, entry in table_entries(
            table, args.path_column, args.label_column, args.unlabeled
        ):
            where = f"{path}, line {line}"
            name = names.find(cell, path, where) if cell.strip() else None
            label = entry.label
            if entry.is_given:
                try:
                    label = text_label(label, args.keep_label)
                except ValueError as error:
                    unclear.setdefault(entry.label, f"{where}: {error}")
                    continue
            if name is None:
                if cell.strip():
                    strangers.append((line, cell))
                elif entry.is_given:
                    raise ValueError(f"{where}: the label {label!r} has no path.")
                continue
            before = found.get(name)
            if before is not None and before.is_given and entry.is_given:
                if before.label != label:
                    raise ValueError(
                        f"two labels for {name}: {before.label!r} ({origin[name]}) and "
                        f"{label!r} ({where}). Remove one of them."
                    )
            if before is None or entry.is_given or not before.is_given:
                found[name] = entry._replace(name=name, label=label)
                origin[name] = where
        if strangers:
            raise _unknown(strangers, path, folder, names)
    if unclear:
        raise _unclear(unclear)
    return list(found.values())


def own_entries(path):
    """Yield the line, the path and the `Entry` of each row of our own list."""
    for line, cell, entry in table_entries(tables.read(path, HEADER)):
        yield line, tables.unescape(cell), entry


def table_entries(table, path_column="path", label_column="label", unlabeled=()):
    """Yield the line, the cell with the path, and the `Entry` of each row.

    Parameters
    ----------
    table : tables.Table
    path_column, label_column : str
    unlabeled : sequence of str
        Texts that mean no label.
    """
    of_path = table.column(
        path_column,
        "The first line must name the columns; name the one with the paths with "
        "--path-column.",
    )
    of_label = table.column(label_column, "Name one with --label-column.")
    of_source, of_prediction, of_confidence = map(
        table.column, ("source", "predicted", "confidence")
    )
    of_others = []
    while (rank := len(of_others) + 2) and table.column(f"label_{rank}") is not None:
        of_others.append(
            (table.column(f"label_{rank}"), table.column(f"confidence_{rank}"))
        )
    for row in table.rows:
        text, prediction = (
            tables.unescape(row.cell(column)).strip()
            for column in (of_label, of_prediction)
        )
        others = tuple(
            (tables.unescape(row.cell(label)).strip(), row.cell(confidence).strip())
            for label, confidence in of_others
            if row.cell(label).strip()
        )
        confidence = row.cell(of_confidence).strip()
        is_predicted = row.cell(of_source).strip().casefold() == "predicted"
        if text in unlabeled:
            text = ""
        if not text:
            entry = Entry("", "", "", "", prediction)
        elif is_predicted and prediction in ("", text):
            entry = Entry("", text, confidence, "predicted", text, others)
        else:
            entry = given_entry("", text, prediction)._replace(corrected=is_predicted)
        yield row.line, row.cell(of_path), entry


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


def _unknown(cells, path, folder, names):
    """Return an error for cells, each with its line, that name no image."""
    (line, name), more = cells[0], f" and {len(cells) - 1} more" if cells[1:] else ""
    question = names.did_you_mean(name, path)
    if question:
        return ValueError(
            f"{path}, line {line}, names {name!r}{more}, but no such image is in "
            f"{folder}. {question}"
        )
    if os.path.exists(expanded(folder) / name):
        return ValueError(
            f"{path}, line {line}, names {name!r}{more}, which is in {folder} but is "
            "not a readable image."
        )
    return ValueError(
        f"{path}, line {line}, names {name!r}{more}, but no such image is in {folder}: "
        "paths in the CSV must be relative to that folder. --path-prefix removes a "
        "prefix of such paths."
    )


class Names:
    """The names of the images of a folder, found in any spelling of a list.

    Parameters
    ----------
    files : dict
        {name: path}.
    folder : str
    prefix : str or None
        Prefix of the names in the list.
    """

    def __init__(self, files, folder, prefix):
        self.files = files
        self.prefix = prefix
        self.root = expanded(folder).absolute()
        self.composed, self.stems = {}, {}
        for name in files:
            self.composed.setdefault(_composed(name), []).append(name)
            stem = _composed(os.path.splitext(name)[0])
            self.stems.setdefault(stem, []).append(name)

    def find(self, cell, path, where):
        """Return the name that a cell means, or None.

        Parameters
        ----------
        cell : str
        path : str
            The CSV.
        where : str
            Beginning of an error message.
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
                        f"{where}: {cell!r} may be {found[0]!r} or {found[1]!r}. Write "
                        "the full path, or rename one of them."
                    )
                if found:
                    return found[0]
        return None

    def did_you_mean(self, cell, path):
        """Return a question for the image that a cell without one may mean, or "".

        Its path differs in upper and lower case, or in the ending.
        """
        if "\0" in cell:
            return ""
        places = [
            self.root,
            *self.root.parents,
            Path.cwd(),
            Path(path).absolute().parent,
        ]
        meant = {
            os.path.normpath(os.path.join(place, _slashes(text)))
            for text in self._without_prefix([tables.unescape(cell).strip()])
            for place in places
        }
        for part in (str, lambda full: os.path.splitext(full)[0]):
            wanted = {_composed(part(full)).casefold() for full in meant}
            found = [
                repr(name)
                for name in self.files
                if _composed(part(os.path.normpath(self.root / name))).casefold()
                in wanted
            ]
            if found:
                return f"Did you mean {' or '.join(found[:3])}?"
        return ""

    def _readings(self, cell, path):
        """Yield names that a cell may mean, the most likely first."""
        texts = [
            spelled
            for text in (cell, cell.strip())
            for spelled in (tables.unescape(text), text)
        ]
        for text in dict.fromkeys(self._without_prefix(texts)):
            yield from self._relative(text)
            yield from self._absolute(text, path)

    def _without_prefix(self, texts):
        """Yield texts, each after its part behind the prefix."""
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
        """Yield names of files that a path from elsewhere points to."""
        if "\0" in text:  # no path has it
            return
        for place in (Path.cwd(), Path(path).absolute().parent):
            full = os.path.join(place, _slashes(text))  # the place goes if absolute
            yield from self._inside(full)

    def _inside(self, text):
        """Yield the relative path of a path in the folder."""
        for root in dict.fromkeys([self.root, Path(os.path.realpath(self.root))]):
            for found in (os.path.normpath(text), os.path.realpath(text)):
                if Path(found).is_relative_to(root):
                    yield Path(found).relative_to(root).as_posix()


def _slashes(text):
    return text.replace("\\", "/")


def _composed(text):
    return unicodedata.normalize("NFC", text)
