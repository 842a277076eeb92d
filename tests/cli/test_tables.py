"""CSVs of other programs are read; no spreadsheet runs what is written."""

import csv
import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sklabel.cli import tables

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
hostile = st.lists(
    st.sampled_from([*"=+-@'; |,\t\r\n\"", "\u3000", "＝", "a", "\ufeff"]), max_size=8
).map("".join)
cells = hostile | st.text(characters)
SKIPPED = "\t\r\n \u3000\ufeff'"  # what spreadsheets may skip before a formula


@given(cells)
@example("'=1")
@example("''@")
@example("\t\t=a")
@example("-1")
def test_a_cell_comes_back_and_no_spreadsheet_runs_it(cell):
    written = tables.escape(cell)
    assert tables.unescape(written) == cell
    # split anywhere: where else a spreadsheet expects the separator
    for part in re.split(r"[;|\t\r\n]", written):
        bare = part.lstrip(SKIPPED)
        assert part.startswith("'") or not bare or bare[0] not in "=+-@＝＋－＠"


@given(cells)
def test_what_needs_no_escape_stays_as_it_is(cell):
    cell = re.sub(r"[=+\-@＝＋－＠]", "", cell)
    assert tables.escape(cell) == tables.unescape(cell) == cell


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_any_cell_survives_a_file(rows):
    header = ["path", "label"]
    content = tables.as_marked("fit", header, rows)
    assert tables.is_unchanged(content, "fit")
    assert not tables.is_unchanged(content, "select")
    read = list(csv.reader(io.StringIO(content.decode(), newline="")))
    assert read[0][:2] == header and len(read[0]) == 3
    assert {len(row) for row in read[1:]} == {3}
    got = [tuple(tables.unescape(cell) for cell in row[:2]) for row in read[1:]]
    assert got == rows


CONTENT = tables.as_marked("select", ["path", "label"], [["a", ""], ["b", ""]])


@pytest.mark.parametrize(
    "changed",
    [
        CONTENT.replace(b"a,", b"a,cat"),
        CONTENT.replace(b"a,,\n", b""),  # a row removed
        CONTENT + b"c,\n",
        CONTENT.replace(b"\n", b"\r\n"),  # saved by a spreadsheet
        b"\xef\xbb\xbf" + CONTENT,
        CONTENT.replace(b",", b";"),
        CONTENT.replace(b"a,,\nb,,\n", b"b,,\na,,\n"),  # sorted
        CONTENT.rstrip(b"\n"),
        re.sub(rb",sklabel\S+", b"", CONTENT),
        b"path,label\na,\nb,\n",
        b"",
        b"sklabel-select:0123456789abcdef\n",
        b"\xff\xfe\x00",
    ],
)
def test_any_change_shows(changed):
    assert tables.is_unchanged(CONTENT, "select")
    assert not tables.is_unchanged(changed, "select")


ROWS = [["0.png", "red"], ["1.png", "dark, blue; or |"]]


def text_of(delimiter, header=("path", "label"), rows=ROWS, end="\r\n"):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows([header, *rows])
    return text.getvalue()


def labels_in(path, path_column="path", label_column="label"):
    table = tables.read(str(path), [path_column, label_column])
    columns = [table.column(name, "") for name in (path_column, label_column)]
    return [[row.cell(column) for column in columns] for row in table.rows]


@pytest.mark.parametrize("delimiter", list(",;\t|"))
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_and_encodings(tmp_path, delimiter, encoding, end):
    path = tmp_path / "a.csv"
    rows = [*ROWS, ["größe 日本.png", "grün"]] * 5
    path.write_bytes(text_of(delimiter, rows=rows, end=end).encode(encoding))
    assert labels_in(path) == rows


@pytest.mark.parametrize("first", ["sep=#", "SEP=#", '"sep=#"', "sep=#,,"])
def test_the_separator_may_be_told(tmp_path, first):
    path = tmp_path / "a.csv"
    path.write_text(f"{first}\n{text_of('#')}", newline="")
    assert labels_in(path) == ROWS
    table = tables.read(str(path), ["path"])
    assert [row.line for row in table.rows] == [3, 4]


@pytest.mark.parametrize(
    "header",
    ["path, label", "Path,LABEL", "path,label ", " path\t,\tlabel", "label,path"],
)
def test_spaces_and_capitals_in_the_header(tmp_path, header):
    path = tmp_path / "a.csv"
    swapped = header.startswith("label")
    path.write_text(f"{header}\n{'red,0.png' if swapped else '0.png,red'}\n")
    assert labels_in(path) == [["0.png", "red"]]


def test_a_quote_may_follow_the_space_of_the_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('path, label\n0.png, "dark, blue"\n')
    assert labels_in(path) == [["0.png", "dark, blue"]]


def test_other_columns_and_blank_rows_do_not_matter(tmp_path):
    path = tmp_path / "a.csv"  # as Label Studio exports
    path.write_text(
        "\n\nid,annotator,choice,image,note,note,\n"
        '1,"a; b",red,0.png,,,\n , ,,,,,\n\n2,x,blue,1.png,,"two\nlines",\n3,x,red\n'
    )
    rows = labels_in(path, "image", "choice")
    assert rows == [["0.png", "red"], ["1.png", "blue"], ["", "red"]]
    table = tables.read(str(path), ["image", "choice"])
    assert [row.line for row in table.rows] == [4, 7, 9]


@pytest.mark.parametrize(
    "content, said",
    [
        (b"path,label\n0.png,red\n1.png,dark, blue\n", r"line 3: 3 cells.*quotes"),
        (b"path;label\n0.png;dark; blue\n", r'line 2.*"dark; blue"|line 2.*"a; b"'),
        (CONTENT.replace(b"a,", b"a,dark, blue"), r"line 2: 4 cells, but 2 columns"),
        (b'"path","label"\n"1","0.png","a"\n"2","1.png","b"\n', "row.names = FALSE"),
        (b"path,label,label\n0.png,red,blue\n", "has 2 columns 'label'"),
        (b"path,label,Label \n0.png,red,blue\n", "has 2 columns 'label'"),
        (b"Path,label,path\n0.png,red,blue\n", "has 2 columns 'path'"),
        (b"PK\x03\x04\x14\x00", r"workbook.*\.xlsx.*save it as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", r"workbook of Excel \(.xls\)"),
        (b"PAR1\x15", "Parquet"),
        (b"path,label\n0.png,gr\xfcn\n", "not UTF-8"),
        (b'path,label\n0.png,"red\n', r"not a CSV: .*line 2"),
        (b"", "a.csv is empty: its first line must name the columns"),
        (b"\xef\xbb\xbf \n\n", "a.csv is empty: its first line must name the columns"),
        (b"0.png,red\n", "no column 'path'; found: '0.png', 'red'"),
    ],
)
def test_what_cannot_be_read_rightly_is_refused(tmp_path, content, said):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        labels_in(path)
    assert str(path) in str(caught.value)
