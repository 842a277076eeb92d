"""A CSV that stores answers one by one, while other programs may change it too."""

import os
import re
from contextlib import contextmanager

from .._core.files import check_regular, locked, replacing
from .._pages.session import MARKS, Answer, Stale
from . import lists, tables

_NO_FILE = None
_OTHERS = re.compile(r"(label|confidence)_\d+")  # columns of the next likely classes


class AnswerList:
    """The store of a labeling session: a list of labels, rewritten with each answer.

    A label is written into the label column. If the answer is a mark, that cell stays
    empty and the column ``source`` holds the mark, so other commands treat the image as
    unlabeled. All other cells, the separator and the encoding do not change. Images
    that are not listed get a row when they are answered.

    Parameters
    ----------
    path : str
        The CSV. A link is followed.
    files : dict
        Of `inputs.list_images`.
    names : list of str
        Those of the session's rows.
    folder : str
    args : namespace
        Of `options.add_lists`.

    Attributes
    ----------
    predictions : dict
        {row: (label, confidence or None)}, also of rows that have an answer since.
    """

    def __init__(self, path, files, names, folder, args):
        self.told, self.path = path, os.path.realpath(path)
        self.files, self.names, self.folder, self.args = files, names, folder, args
        self._row_of = {name: row for row, name in enumerate(names)}
        self.read()

    def changed(self):
        """Return whether the file has changed since it was last read or written."""
        state = self._state()
        return state not in (self._seen, _NO_FILE)  # what is gone is written anew

    def _state(self):
        try:
            return _state(os.stat(self.path))
        except FileNotFoundError:
            return _NO_FILE

    def read(self):
        """Return {row: `Answer`}; also of images that were labeled before."""
        check_regular(self.path)  # a pipe may be silent for ever
        seen = self._state()  # what is changed from now on is noticed
        found = lists.entries([self.path], self.files, self.folder, self.args)
        given = {entry.name: entry.label for entry in found if entry.is_given}
        self.predictions = {
            self._row_of[entry.name]: (entry.label, _number(entry.confidence))
            for entry in found
            if entry.source == "predicted" and entry.name in self._row_of
        }
        table = tables.read(self.path, [self.args.path_column, self.args.label_column])
        names = lists.Names(self.files, self.folder, self.args.path_prefix)
        self._form, self._header = table.form, list(table.header)
        self._columns = {
            "path": table.column(self.args.path_column),
            "label": table.column(self.args.label_column),
            **{n: table.column(n) for n in ("source", "confidence", "predicted")},
        }
        self._cells, self._lines_of, answers = [], {}, {}
        for line, row in enumerate(table.rows):
            cells = row.cells[: len(table.header)]
            self._cells.append(cells)
            cell = row.cell(self._columns["path"])
            where = f"{self.path}, line {row.line}"
            name = names.find(cell, self.path, where) if cell.strip() else None
            number = self._row_of.get(name)
            if number is None:  # cannot be read
                continue
            self._lines_of.setdefault(number, []).append(line)
            mark = row.cell(self._columns["source"]).strip().casefold()
            if name in given:
                answers[number] = Answer(given[name])
            elif mark in MARKS:
                answers[number] = Answer(None, mark)
        self._original = [list(cells) for cells in self._cells]
        self._was_answered = set(answers)
        self._known = dict(answers)
        self._texts = [self._text(cells) for cells in self._cells]
        self._seen = seen
        return answers

    def listed(self):
        """Return the rows that the file names, in its order."""
        return list(self._lines_of)

    def write(self, answers):
        """Write answers {row: `Answer` or None} into the file, all at once."""
        if any(a is not None and a.mark for a in answers.values()):
            self._add_column("source", "given")
        with self._replacing():
            for row, answer in answers.items():
                self._put(row, answer)
        self._known.update(answers)

    def predict(self, predictions):
        """Write predictions {row: (label, confidence)} for rows without an answer.

        If an answer is undone, its prediction returns.
        """
        of_given = {"source": "given", "confidence": "1.0000", "predicted": ""}
        for name, cell in of_given.items():
            self._add_column(name, cell)
        with self._replacing():
            for row, (label, confidence) in predictions.items():
                self._listed(row)
                for line in self._lines_of[row]:
                    cells = self._predicted(self._original[line], label, confidence)
                    self._original[line] = cells
                    if self._known.get(row) is None:
                        self._cells[line], self._texts[line] = cells, self._text(cells)
        self._was_answered -= set(predictions)
        self.predictions = {**self.predictions, **predictions}

    @contextmanager
    def _replacing(self):
        """Replace the file at the end of the block; after an error it is unchanged."""
        before = [list(part) for part in (self._cells, self._texts, self._original)]
        lines_of = dict(self._lines_of)
        try:
            yield
            self._replace()
        except BaseException:
            self._cells, self._texts, self._original = before
            self._lines_of = lines_of
            raise

    def _add_column(self, name, of_given):
        """Add a missing column, with its value for given labels."""
        if self._columns[name] is not None:
            return
        self._columns[name] = len(self._header)
        self._header.append(name)
        self._cells = [self._padded(cells) for cells in self._cells]
        for row, lines in self._lines_of.items():
            for line in lines:
                if (self._known.get(row) or Answer(None)).label is not None:
                    self._cells[line][-1] = of_given
        self._original = [self._padded(cells) for cells in self._original]
        self._texts = [self._text(cells) for cells in self._cells]

    def _padded(self, cells):
        return cells + [""] * (len(self._header) - len(cells))

    def _put(self, row, answer):
        if answer is not None:
            self._listed(row)
        for line in self._lines_of.get(row, ()):
            cells = self._filled(self._cells[line], answer)
            if answer is None and row not in self._was_answered:
                cells = self._original[line]  # also a prediction
            self._cells[line], self._texts[line] = cells, self._text(cells)

    def _listed(self, row):
        """Add a line for a row without one."""
        if row in self._lines_of:
            return
        cells = [""] * len(self._header)
        cells[self._columns["path"]] = tables.escape(self.names[row])
        self._lines_of[row] = [len(self._cells)]
        self._cells.append(cells)
        self._original.append(cells)
        self._texts.append(self._text(cells))

    def _predicted(self, cells, label, confidence):
        """Return cells with another prediction."""
        cells = self._padded(cells)
        label = tables.escape(label)
        cells[self._columns["label"]] = cells[self._columns["predicted"]] = label
        cells[self._columns["source"]] = "predicted"
        cells[self._columns["confidence"]] = f"{confidence:.4f}"
        for column, name in enumerate(self._header):
            if _OTHERS.fullmatch(name.strip().casefold()):  # of the prediction before
                cells[column] = ""
        return cells

    def _filled(self, cells, answer):
        """Return cells with another answer."""
        cells = self._padded(cells)
        answer = answer or Answer(None)
        cells[self._columns["label"]] = tables.escape(answer.label or "")
        if self._columns["source"] is not None:
            is_given = answer.label is not None
            cells[self._columns["source"]] = "given" if is_given else answer.mark
        if self._columns["confidence"] is not None:
            sure = "1.0000" if answer.label is not None else ""
            cells[self._columns["confidence"]] = sure
        return cells

    def _text(self, cells):
        return tables.as_it_is([cells], self._form.separator, self._form.newline)

    def _replace(self):
        header = self._text(self._header)
        text = "".join([self._form.start, header, *self._texts])
        # nobody else may write between the look at the file and its end
        with locked(self.path):
            if self.changed():
                raise Stale
            with replacing(self.path) as file:
                file.write(text.encode(self._form.encoding))
                file.flush()
                if self.changed():  # by a program that knows no locks
                    raise Stale
                written = _state(os.fstat(file.fileno()))
        self._seen = written


def _number(text):
    try:
        return float(text)
    except ValueError:
        return None


def _state(found):
    return found.st_mtime_ns, found.st_size, found.st_ino
