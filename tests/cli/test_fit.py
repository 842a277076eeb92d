"""Labels are learned, and wrong lists are refused before the long work."""

import pytest

from sklabel.cli import main
from tests.cli._running import SHORT, break_file, color_of, read_csv, write_csv


def test_the_colors_are_learned(here):
    argv = ["fit", "filled.csv", "photos", "--image-size", "16", "--steps", "40"]
    assert main([*argv, *SHORT]) == 0
    rest = [row for row in read_csv("labels.csv") if row["source"] == "predicted"]
    assert len(rest) == 6
    assert sum(row["label"] == color_of(row["path"]) for row in rest) >= 5


@pytest.mark.parametrize(
    "argv, said",
    [
        ("fit missing.csv photos", "missing.csv: No such file"),
        ("fit photos photos", "photos: Is a directory"),
        ("fit filled.csv nowhere", "There is no folder 'nowhere'"),
        (
            "fit filled.csv photos --label-column kind",
            "no column 'kind'; found: 'path', 'label'.*--label-column",
        ),
        ("fit nopath.csv photos", "no column 'path'; found: 'file', 'label'"),
        ("fit nothing.csv photos", "no column 'path'; found: none"),
        ("fit stranger.csv photos", "'99.png' and 1 more.*no such image is in photos"),
        ("fit unfilled.csv photos", "column 'label' of unfilled.csv has no label"),
        ("fit oneclass.csv photos", "one class only, 'red'"),
        (
            "fit twice.csv photos",
            "0.png: 'red' .twice.csv, line 2. and 'blue' .twice.csv, line 3",
        ),
        (
            "fit minus.csv photos",
            "text '-1' may stand for a missing label.*--unlabeled=-1",
        ),
        ("fit latin.csv photos", "latin.csv is not UTF-8"),
        ("fit quote.csv photos", "quote.csv is not a CSV"),
        ("fit filled.csv photos --out filled.csv", "the file with your labels"),
        ("fit filled.csv photos --out no/l.csv", "cannot write no/l.csv"),
        ("fit filled.csv photos --model filled.csv", "is not a folder"),
        ("fit filled.csv photos --steps 0", "--steps.*at least 1"),
    ],
)
def test_wrong_input(wrong_input_is_refused, argv, said):
    wrong_input_is_refused(argv, said)


def test_labels_on_broken_files_only(here, capsys):
    write_csv("filled.csv", [("0.png", "red"), ("1.png", "blue")])
    break_file(here / "photos" / "1.png")
    argv = ["fit", "filled.csv", "photos", "--skip-broken", *SHORT]
    assert main(argv) == 2
    assert "one class only, 'red'" in capsys.readouterr().err
