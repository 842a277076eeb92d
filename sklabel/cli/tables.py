"""CSV: read from any program, and written so that no spreadsheet runs a cell."""

import codecs
import csv
import hashlib
import io
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

# What a spreadsheet takes for a formula: one of these at the beginning of a cell, also
# after characters that it skips. A cell may begin at a separator within our cell, where
# the spreadsheet splits at another one than the comma.
_FORMULA = r"[\s\x00-\x1f\u200b\ufeff']*[=+\-@＝＋－＠]"
_TO_ESCAPE = re.compile(rf"(^|[;|\t\r\n])(?={_FORMULA})")
_ESCAPED = re.compile(rf"(^|[;|\t\r\n])'(?={_FORMULA})")

# The last column's name in a file of ours: the command, and a digest of all the rest
_MARK = r"sklabel-([a-z]+):([0-9a-f]{16})"
_MARKED_LINE = re.compile(rb"\A([^\r\n]*)," + _MARK.encode() + rb"(?=\n)")

_SEPARATORS = ",;\t|"
_BYTE_ORDERS = {  # the longer ones first
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NO_TEXT = {
    b"PK\x03\x04": "a workbook of Excel (.xlsx) or LibreOffice (.ods)",
    b"\xd0\xcf\x11\xe0": "a workbook of Excel (.xls)",
    b"PAR1": "a Parquet file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}


def escape(cell):
    """Return a cell, with an apostrophe if a spreadsheet would run it."""
    return _TO_ESCAPE.sub(r"\1'", str(cell))


def unescape(cell):
    """Return the cell before `escape`; other cells do not change."""
    return _ESCAPED.sub(r"\1", cell)


def number(value):
    """Return a confidence between 0 and 1 from a cell or a number, or None.

    A spreadsheet may have written it with a decimal comma.
    """
    if isinstance(value, str):
        value = re.sub(r"^(\s*[01]?),(?=\d+\s*$)", r"\1.", value)
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if 0 <= value <= 1 else None


# -- what is written


def as_text(header, rows):
    """Return a CSV as text."""
    return as_it_is([header, *([escape(cell) for cell in row] for row in rows)])


def as_it_is(rows, separator=",", newline="\n"):
    """Return a CSV as text without escaped cells."""
    rows = list(rows)
    text = io.StringIO()
    # until Python 3.13 a lone carriage return is not quoted by itself
    odd = any("\r" in cell for row in rows for cell in row)
    writer = csv.writer(
        text,
        delimiter=separator,
        lineterminator=newline,
        quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL,
    )
    writer.writerows(rows)
    return text.getvalue()


def as_marked(command, header, rows):
    """Return the bytes of a CSV with a mark that reveals later changes.

    The name of an empty last column holds the command and a digest of all other bytes.

    Parameters
    ----------
    command : str
    header : list of str
    rows : iterable of list
    """
    content = as_text(header, ([*row, ""] for row in rows)).encode()
    first, rest = content.split(b"\n", 1)
    return first + f",sklabel-{command}:{_digest(content)}\n".encode() + rest


def is_unchanged(content, command):
    """Return whether bytes are unchanged since a command wrote them by `as_marked`."""
    found = _MARKED_LINE.match(content)
    if found is None or found[2].decode() != command:
        return False
    return found[3].decode() == _digest(found[1] + content[found.end() :])


def _digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


# -- what is read


class Row(NamedTuple):
    """Cells of a CSV and the line of the file on which they begin."""

    line: int
    cells: list

    def cell(self, column):
        """Return the cell of a column (a number or None), "" if there is none."""
        known = column is not None and column < len(self.cells)
        return self.cells[column] if known else ""


class Form(NamedTuple):
    """The format of a CSV: the text before its header, and its separator."""

    encoding: str = "utf-8"
    start: str = ""
    separator: str = ","
    newline: str = "\n"


class Table(NamedTuple):
    """A CSV: the names of its columns, its rows, and its format."""

    path: str
    header: list
    rows: list
    form: Form = Form()

    def column(self, name, remedy=None):
        """Return the number of a column by its name.

        Spaces around a name and its case do not matter.

        Parameters
        ----------
        name : str
        remedy : str or None
            What to do if there is no such column; None: return None then.
        """
        alike = [i for i, n in enumerate(self.header) if _plain(n) == _plain(name)]
        if len(alike) > 1:
            raise ValueError(
                f"{self.path} has {len(alike)} columns {name!r}: rename or remove all "
                "but one."
            )
        if alike:
            return alike[0]
        if remedy is None:
            return None
        shown = [repr(n if len(n) <= 40 else f"{n[:40]}...") for n in self.header[:20]]
        found = ", ".join([*shown, *["..."] * (len(self.header) > 20)]) or "none"
        raise ValueError(
            f"{self.path} has no column {name!r}; found: {found}. {remedy}"
        )


def read(path, wanted):
    """Return the `Table` of a CSV as spreadsheets and other programs write it.

    Parameters
    ----------
    path : str
    wanted : sequence of str
        Columns that identify the separator: comma, semicolon, tab or "|".
    """
    text, encoding = _decoded(path)
    line, start = 1, ""
    told = re.match(r'(?i)"?sep=(.)"?[ ,;\t|]*(?:\r\n|\r|\n|\Z)', text)
    if told:  # Excel's own first line
        start, text, line = told[0], text[told.end() :], 2
        separator = told[1]
    else:
        separator = max(
            _SEPARATORS, key=lambda s: _n_found(_first_row(text, s), wanted)
        )
    first = _first_row(text, separator)[1:]
    # "path, label": then a quote may follow the space
    spaced = bool(first) and all(name.startswith(" ") for name in first)
    rows = _rows(path, text, line, separator, spaced)
    form = Form(encoding, start, separator, "\r\n" if "\r\n" in text else "\n")
    if not rows:
        raise ValueError(
            f"{path} is empty: its first line must name the columns, such as "
            f"{','.join(wanted[:2])}."
        )
    header = [name.strip() for name in rows[0].cells]
    if re.fullmatch(_MARK, header[-1]):
        header.pop()
        for row in rows[1:]:
            _take_typed(row.cells, len(header))
    for row in rows[1:]:
        if any(cell.strip() for cell in row.cells[len(header) :]):
            remedy = (
                f'A cell that holds "{separator}" must be in quotes: "a{separator} b".'
            )
            if all(len(row.cells) == len(header) + 1 for row in rows[1:]):
                remedy += " If R has written its row names: row.names = FALSE."
            raise ValueError(
                f"{path}, line {row.line}: {len(row.cells)} cells, but "
                f"{len(header)} columns have a name. {remedy}"
            )
    return Table(path, header, rows[1:], form)


def _take_typed(cells, n):
    """Move text typed at the end of one of our lines into the column before it."""
    if len(cells) == n + 1 and cells[n].strip() and not cells[n - 1].strip():
        cells[n - 1] = cells.pop()


def _decoded(path):
    """Return the text of a file, and its encoding."""
    content = Path(path).read_bytes()
    for start, what in _NO_TEXT.items():
        if content.startswith(start):
            raise ValueError(f"{path} is {what}, not a CSV: save it as CSV UTF-8.")
    encoding = next((e for b, e in _BYTE_ORDERS.items() if content.startswith(b)), None)
    if encoding is None:
        odd, even = content[:200:2].count(0), content[1:200:2].count(0)
        encoding = "utf-8"
        if max(odd, even) > 25 and max(odd, even) > 4 * min(odd, even):
            encoding = "utf-16-be" if odd > even else "utf-16-le"
    try:
        return content.decode(encoding), encoding
    except UnicodeDecodeError:
        name = encoding.upper().removesuffix("-SIG")
        raise ValueError(f"{path} is not {name}: save it as CSV UTF-8.") from None


def _first_row(text, separator):
    """Return the readable part of the first row that is not empty."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        return next((cells for cells in lines if any(cells)), [])
    except csv.Error:
        return []


def _n_found(header, wanted):
    """Return how well a header fits; more cells are better if a name is missing."""
    names = {_plain(name) for name in header}
    found = sum(_plain(name) in names for name in wanted)
    return found, 0 if found == len(wanted) else len(header)


def _rows(path, text, line, separator, spaced):
    """Return the rows that are not blank."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        skipinitialspace=spaced,
        strict=True,
    )
    rows, before = [], 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append(Row(line + before, cells))
            before = reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{path} is not a CSV: {error} (line {line + before} and on)."
        ) from None
    return rows


def _plain(name):
    return unicodedata.normalize("NFC", name).strip().casefold()
