"""A CSV that takes answers one by one, while other programs may change it, too."""

import os

from .._core.files import check_regular, locked, replacing
from .._pages.session import MARKS, Answer, Stale
from . import lists, tables

_NO_FILE = None


class AnswerList:
    """The store of a labeling session: a list of labels, rewritten with each answer.

    A label goes into the column of labels. Where the answer is a mark, that cell stays
    empty and the column ``source`` holds the mark, so that every other command takes
    the image for unlabeled. All other cells stay as they are, and so do the separator
    and the encoding. Images that are not listed get a row once they are answered.

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
    """

    def __init__(self, path, files, names, folder, args):
        self.told, self.path = path, os.path.realpath(path)
        self.files, self.names, self.folder, self.args = files, names, folder, args
        self._row_of = {name: row for row, name in enumerate(names)}
        self.read()

    def changed(self):
        """Return whether the file is another one than was read or written last."""
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
        given = lists.read([self.path], self.files, self.folder, self.args).given
        table = tables.read(self.path, [self.args.path_column, self.args.label_column])
        names = lists.Names(self.files, self.folder, self.args.path_prefix)
        self._form, self._header = table.form, list(table.header)
        self._columns = {
            "path": table.column(self.args.path_column),
            "label": table.column(self.args.label_column),
            "source": table.column("source"),
            "confidence": table.column("confidence"),
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
        self._n_listed = len(self._cells)
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
        """Write answers {row: `Answer` or None} into the file, as a whole."""
        if any(a is not None and a.mark for a in answers.values()):
            self._add_source()
        before = list(self._cells), list(self._texts), dict(self._lines_of)
        try:
            for row, answer in answers.items():
                self._put(row, answer)
            self._replace()
        except BaseException:
            self._cells, self._texts, self._lines_of = before
            raise
        self._known.update(answers)

    def _add_source(self):
        if self._columns["source"] is not None:
            return
        self._columns["source"] = len(self._header)
        self._header.append("source")
        self._cells = [self._padded(cells) for cells in self._cells]
        for row, lines in self._lines_of.items():
            for line in lines:
                if (self._known.get(row) or Answer(None)).label is not None:
                    self._cells[line][-1] = "given"
        self._original = [self._padded(cells) for cells in self._original]
        self._texts = [self._text(cells) for cells in self._cells]

    def _padded(self, cells):
        return cells + [""] * (len(self._header) - len(cells))

    def _put(self, row, answer):
        for line in self._lines_of.get(row, ()):
            cells = self._filled(self._cells[line], answer)
            is_first = line < self._n_listed
            if answer is None and is_first and row not in self._was_answered:
                cells = self._original[line]  # also a prediction
            self._cells[line], self._texts[line] = cells, self._text(cells)
        if row not in self._lines_of and answer is not None:
            cells = [""] * len(self._header)
            cells[self._columns["path"]] = tables.escape(self.names[row])
            self._lines_of[row] = [len(self._cells)]
            self._cells.append(self._filled(cells, answer))
            self._texts.append(self._text(self._cells[-1]))

    def _filled(self, cells, answer):
        """Return cells with an answer in the place of another one."""
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


def _state(found):
    return found.st_mtime_ns, found.st_size, found.st_ino
