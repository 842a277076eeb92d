"""Files are written completely or not at all."""

import csv
import io
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sklabel.cli import outputs, tables
from tests.cli._running import complaint

cells = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_any_text_survives_the_csv(rows):
    text = tables.as_text(["path", "label"], rows)
    read = csv.reader(io.StringIO(text, newline=""))
    assert [tuple(row) for row in read] == [("path", "label"), *rows]


def test_a_write_protected_place(here, capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", refuse)
    said = complaint(capsys, "select", "photos", "--n-samples", "2")
    assert said == "cannot write to_label.csv: Permission denied."


def test_an_older_file_survives_a_failed_writing(here, saved, capsys, monkeypatch):
    Path("labels.csv").write_text("old")
    fit = ["fit", "filled.csv", "photos", "--steps", "2", "--quiet"]
    fit += ["--embedder", str(saved / "embedder")]

    def full(*args):
        raise OSError(28, "No space left on device", "labels.csv")

    monkeypatch.setattr(outputs.os, "replace", full)
    before = sorted(here.rglob("*"))
    assert complaint(capsys, *fit) == "labels.csv: No space left on device"
    assert Path("labels.csv").read_text() == "old"
    assert sorted(here.rglob("*")) == before
