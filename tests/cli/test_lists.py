"""Lists of other programs name the right images; predictions are no labels."""

import json
import os
import unicodedata
from argparse import Namespace
from pathlib import Path

import pyarrow.csv
import pytest
from PIL import Image

from sklabel.cli import inputs, lists, main, tables
from tests.cli._running import color_of, complaint, read_csv, write_csv

PLAIN = {
    "path_column": "path",
    "label_column": "label",
    "path_prefix": None,
    "unlabeled": [],
    "keep_label": [],
}


def read(*paths, folder="photos", **options):
    files = inputs.list_images(folder)
    return lists.read(list(paths), files, folder, Namespace(**PLAIN | options))


def labels(*paths, **options):
    return read(*paths, **options).given


@pytest.fixture
def named(here):
    """Photographs with names that lists spell in other ways."""
    for name in ("sub/photos/a b.png", "photos/x.png", "=1.png", "'=1.png", " s.png"):
        (here / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(here / "photos" / name)
    return here


@pytest.mark.parametrize(
    "cell, name",
    [
        ("0.png", "0.png"),
        ("./0.png", "0.png"),
        ("photos/0.png", "0.png"),
        (".\\photos\\0.png", "0.png"),
        ("HERE/photos/0.png", "0.png"),
        ("HERE/photos/../photos/0.png", "0.png"),
        ("../NAME/photos/0.png", "0.png"),
        ("NAME/photos/0.png", "0.png"),
        ("0", "0.png"),
        ("photos/0", "0.png"),
        (" 0.png ", "0.png"),
        (" s.png", " s.png"),
        ("sub\\photos\\a b.png", "sub/photos/a b.png"),
        ("photos/sub/photos/a%20b.png", "sub/photos/a b.png"),
        ("sub/photos/1f2e3d4c-a b.png", "sub/photos/a b.png"),
        ("photos/x.png", "photos/x.png"),  # the file itself before the folder's name
        ("photos/photos/x.png", "photos/x.png"),
        ("'=1.png", "=1.png"),
        ("''=1.png", "'=1.png"),
        ("=1.png", "=1.png"),
    ],
)
def test_names_are_found_however_they_are_spelled(named, cell, name):
    cell = cell.replace("HERE", str(named)).replace("NAME", named.name)
    write_csv("a.csv", [(cell, "red")])
    assert labels("a.csv") == {name: "red"}
    # from another place, too
    there = named / "there"
    there.mkdir()
    write_csv(there / "a.csv", [(cell, "red")])
    os.chdir(there)
    if not cell.startswith(".."):
        assert labels("a.csv", folder=str(named / "photos")) == {name: "red"}


@pytest.mark.parametrize(
    "prefix, cell",
    [
        ("/data/local-files/?d=photos/", "/data/local-files/?d=photos/3.png"),
        ("/data/local-files/?d=", "/data/local-files/?d=photos/3.png"),
        ("/data/upload/7/", "/data/upload/7/1f2e3d4c-3.png"),
        ("https://example.org/p", "https://example.org/p/3.png"),
        ("C:\\scan\\", "C:\\scan\\3.png"),
        ("C:/scan", "C:\\scan\\3"),
    ],
)
def test_a_prefix_is_cut_off(here, prefix, cell):
    write_csv("a.csv", [(cell, "red"), ("4.png", "blue")])
    assert labels("a.csv", path_prefix=prefix) == {"3.png": "red", "4.png": "blue"}
    with pytest.raises(ValueError, match="no such image is in photos.*--path-prefix"):
        labels("a.csv")


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_composed_and_decomposed_names(here, forms):
    on_disk, in_list = (unicodedata.normalize(form, "größe é.png") for form in forms)
    os.rename("photos/0.png", Path("photos", on_disk))
    write_csv("a.csv", [(in_list, "red"), (f"photos/{in_list}", "red")])
    assert labels("a.csv") == {on_disk: "red"}
    try:
        os.rename("photos/1.png", Path("photos", in_list))
    except OSError:
        return
    if len(inputs.list_images("photos")) == 10:  # both are files here: each its own
        assert labels("a.csv") == {in_list: "red"}


def test_what_may_be_two_images_is_refused(here):
    os.rename("photos/1.png", "photos/0.gif")
    write_csv("a.csv", [("2.png", "red"), ("0", "blue")])
    with pytest.raises(ValueError, match=r"a.csv, line 3: '0' may be .*0.gif.*0.png"):
        labels("a.csv")


def test_strangers_are_named_with_their_line(here):
    Path("photos/notes.txt").touch()
    write_csv("a.csv", [("0.png", "red"), ("no\n.png", ""), ("", ""), ("no2", "x")])
    with pytest.raises(
        ValueError, match=r"a.csv, line 3, names 'no\\n.png' and 1 more"
    ):
        labels("a.csv")
    write_csv("a.csv", [("notes.txt", "red")])
    with pytest.raises(ValueError, match="line 2.*in photos but is not a readable"):
        labels("a.csv")
    write_csv("a.csv", [("", "red")])
    with pytest.raises(ValueError, match="a.csv, line 2: the label 'red' has no path"):
        labels("a.csv")


def test_several_lists(here):
    write_csv("a.csv", [("0.png", "red"), ("1.png", ""), ("2.png", "red")])
    write_csv("b.csv", [("photos/2.png", "red"), ("1.png", "blue")], delimiter=";")
    assert labels("a.csv", "b.csv") == {"0.png": "red", "1.png": "blue", "2.png": "red"}
    write_csv("c.csv", [("4.png", "red"), ("./1", "red")])
    said = r"1.png: 'blue' \(b.csv, line 3\) and 'red' \(c.csv, line 3\)"
    with pytest.raises(ValueError, match=said):
        labels("a.csv", "b.csv", "c.csv")


# -- texts that may stand for a missing label


@pytest.mark.parametrize(
    "text", ["NA", "nan", "None", "null", "<NA>", "?", "-1", "N/A"]
)
def test_a_text_that_may_be_missing_is_refused_with_both_ways_out(here, text):
    rows = [("0.png", "red"), ("1.png", "blue"), ("2.png", text), ("3.png", " ")]
    write_csv("a.csv", rows)
    with pytest.raises(ValueError, match="a.csv, line 4: .* may stand for a missing"):
        labels("a.csv")
    without = {"0.png": "red", "1.png": "blue"}
    assert labels("a.csv", unlabeled=[text]) == without
    assert labels("a.csv", keep_label=[text]) == {**without, "2.png": text}


def test_all_unclear_texts_are_told_at_once(here):
    rows = [("0.png", "NA"), ("1.png", "?"), ("2.png", "NA"), ("3.png", "red")]
    write_csv("a.csv", rows)
    with pytest.raises(ValueError, match="line 2: .*'NA'.*as may '\\?'") as caught:
        labels("a.csv")
    assert "--unlabeled NA --unlabeled '?'" in str(caught.value)


def test_the_ways_out_are_options_of_the_commands(here, saved, capsys):
    rows = [(f"{i}.png", "-1" if i % 2 else "none") for i in range(6)]
    write_csv("a.csv", rows)
    emb = ["--embedder", saved / "embedder", "--quiet"]
    fit = ["fit", "a.csv", "photos", *emb, "--steps", "2"]
    said = complaint(capsys, *fit)
    assert "--unlabeled=-1" in said and "--keep-label none" in said
    fit += ["--keep-label=-1", "--keep-label", "none", "--model", "m"]
    assert main(list(map(str, fit))) == 0
    assert {row["label"] for row in read_csv("labels.csv")} == {"'-1", "none"}
    assert main(["predict", "m", "photos", "--quiet"]) == 0
    capsys.readouterr()
    select = ["select", "photos", "--labeled", "a.csv", "--n-samples", "4", *emb]
    assert "--unlabeled" in complaint(capsys, *select)
    select += ["--unlabeled", "none", "--keep-label=-1", "--n-samples", "7"]
    assert main(list(map(str, select))) == 0
    asked = {row["path"] for row in read_csv("to_label.csv")}
    assert asked == {f"{i}.png" for i in (0, 2, 4, 6, 7, 8, 9)}


# -- what the commands have written themselves


def test_a_list_to_fill_in(here):
    """Every reader takes it, and a label typed at the end of a line counts."""
    header, names = ["number", "path", "label"], ["0.png", "1.png", "2.png"]
    rows = [[number, name, ""] for number, name in enumerate(names, 1)]
    content = tables.as_marked("select", header, rows)
    Path("a.csv").write_bytes(content)
    table = pyarrow.csv.read_csv("a.csv")
    assert table["number"].to_pylist() == [1, 2, 3]
    assert table["path"].to_pylist() == names
    first, *lines = content.decode().splitlines()
    typed = [lines[0] + "red", lines[1].replace("png,,", "png,blue,"), lines[2]]
    Path("a.csv").write_text("\n".join([first, *typed]))
    assert labels("a.csv") == {"0.png": "red", "1.png": "blue"}
    # as they were before
    Path("old.csv").write_text(
        "path,label,sklabel-select:0123456789abcdef\n0.png,red\n1.png,\n"
    )
    assert labels("old.csv") == {"0.png": "red"}


def rewrite(path, change):
    """Change rows of a CSV as a person does in a spreadsheet."""
    rows = read_csv(path)
    for row in rows:
        change(row)
    write_csv(path, [list(row.values()) for row in rows], list(rows[0]), ";")


@pytest.fixture
def fitted(here, saved):
    """Return a command that fits lists; it has been run once."""

    def fit(*paths, out="labels.csv"):
        argv = ["fit", *paths, "photos", "--steps", 2, "--quiet", "--out", out]
        argv += ["--embedder", saved / "embedder", "--model", "m"]
        return main(list(map(str, argv)))

    assert fit("filled.csv") == 0
    return fit


def test_predictions_are_no_labels_until_they_are_changed(fitted, capsys):
    assert read("labels.csv") == (labels("filled.csv"), 0, 6)
    capsys.readouterr()
    assert fitted("labels.csv", out="new.csv") == 0
    assert "4 labels given, 6 predictions not used" in capsys.readouterr().out
    given = [row for row in read_csv("new.csv") if row["source"] == "given"]
    assert {row["path"] for row in given} == {f"{i}.png" for i in range(4)}

    def correct(row):
        if row["path"] == "7.png":
            row["label"] = "green"
        elif row["path"] == "8.png":  # looked at, and right
            row["source"] = "given"
        elif row["path"] == "9.png":
            row["label"] = ""
        elif row["path"] == "0.png":
            row["label"] = "purple"

    rewrite("labels.csv", correct)
    found = read("labels.csv")
    assert set(found.given) == {"0.png", "1.png", "2.png", "3.png", "7.png", "8.png"}
    assert found.given["7.png"] == "green" and found.given["0.png"] == "purple"
    assert found[1:] == (1, 3)
    assert fitted("labels.csv", out="new.csv") == 0
    said = capsys.readouterr().out
    assert "6 labels given (1 of them corrected), 3 predictions not used" in said
    # and so on, in the next round
    assert set(labels("new.csv")) == set(found.given)


def test_those_of_predict_neither(fitted, capsys):
    argv = ["predict", "m", "photos", "--quiet"]
    assert main([*argv, "--out", "p.csv"]) == 0
    capsys.readouterr()
    assert main(argv) == 0
    Path("printed.csv").write_text(capsys.readouterr().out)
    for path in ("p.csv", "printed.csv"):
        assert read(path) == ({}, 0, 10)
        said = complaint(capsys, "fit", path, "photos")
        assert "no label" in said and "10 predictions" in said and "source" in said
    label = read_csv("p.csv")[5]["label"]
    rewrite("p.csv", lambda row: row.update(label=color_of(row["path"]).upper()))
    assert label and read("p.csv")[1:] == (10, 0)


def test_select_asks_again_what_is_only_predicted(fitted, saved, capsys):
    rewrite("labels.csv", lambda row: row["path"] == "9.png" and row.update(label="x"))
    argv = ["select", "photos", "--labeled", "labels.csv", "--n-samples", "5"]
    argv += ["--embedder", str(saved / "embedder"), "--quiet"]
    assert main(argv) == 0
    assert "5 labels given (1 of them corrected), 5 pred" in capsys.readouterr().out
    asked = {row["path"] for row in read_csv("to_label.csv")}
    assert asked == {f"{i}.png" for i in range(4, 9)}


def test_a_source_column_of_somebody_else(here):
    rows = [("0.png", "red", "flickr"), ("1.png", "blue", "Predicted")]
    write_csv("a.csv", rows, ("path", "label", "source"))
    assert read("a.csv") == ({"0.png": "red"}, 0, 1)


def test_names_and_labels_that_a_spreadsheet_would_run(here, saved):
    wild = ["=HYPERLINK(1).png", "+1.png", "-1.png", "@a.png", "'=q.png", "\t=t.png"]
    if os.name != "posix":
        wild = wild[1:5]
    for i, name in enumerate(wild):
        os.rename(f"photos/{i}.png", Path("photos", name))
    emb = ["--embedder", str(saved / "embedder"), "--quiet"]
    assert main(["select", "photos", "--n-samples", "10", *emb]) == 0
    cells = [row["path"] for row in read_csv("to_label.csv")]
    assert not any(cell.lstrip()[0] in "=+-@" for cell in cells)

    def fill_in(row):
        row["label"] = "=cmd|' /C calc'!A0" if len(row["path"]) > 5 else "@sum"

    rewrite("to_label.csv", fill_in)
    given = labels("to_label.csv")
    assert set(given) == set(inputs.list_images("photos")) and "-1.png" in given
    argv = ["fit", "to_label.csv", "photos", "--steps", "2", *emb, "--model", "m"]
    assert main(argv) == 0
    assert labels("labels.csv") == given
    text = Path("labels.csv").read_text()
    assert ",=" not in text and ",@" not in text and '"=' not in text
    assert (
        json.loads(Path("m/estimator.json").read_text())["written_by"] == "sklabel fit"
    )
