"""Labels go to other programs and come back; their files are read as they are."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklabel.cli import lists, main, tables
from sklabel.cli.formats import folders, places
from tests.cli._running import complaint, read_csv, write_csv

DATA = Path(__file__).parents[1] / "data" / "formats"
KINDS = ["folders", "label-studio", "coco", "fiftyone", "csv", "parquet"]
WILD = ["red", "=1+1", "a/b", "..", "<b>\"&'", "日本", "CON", "none", ".x", "_u", "a. "]


@pytest.fixture
def labeled(here):
    """``photos`` and ``labels.csv`` with given and predicted labels, and names as of
    hostile people.
    """
    (here / "photos" / "sub dir").mkdir()
    for old, new in (("8", "sub dir/=grün & <8>"), ("9", "sub dir/a#b?c%20d")):
        os.rename(f"photos/{old}.png", f"photos/{new}.png")
    names = [f"{i}.png" for i in range(8)]
    names += ["sub dir/=grün & <8>.png", "sub dir/a#b?c%20d.png"]
    entries = []
    for i, name in enumerate(names):
        label = WILD[i]
        if i < 3:
            entry = lists.given_entry(name, label, WILD[i + 1] if i else "")
        else:
            entry = lists.predicted_entry(name, label, f"0.{900 - 41 * i}1", ())
        entries.append(entry)
    write(entries)
    return entries


def write(entries, path="labels.csv"):
    Path(path).write_bytes(tables.as_marked("fit", *lists.rows(entries)))


def rows(path):
    """Return the rows of a list without the column by which it is known."""
    found = read_csv(path)
    known = columns = [name for name in found[0] if not name.startswith("sklabel-")]
    assert known
    return [[tables.unescape(row[name]) for name in columns] for row in found]


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("more", [[], ["--folder", "photos"]])
def test_all_comes_back(labeled, to, more, capsys):
    assert main(["export", "labels.csv", "photos", "--to", to, "--out", "x"]) == 0
    assert "10 labels in x: 3 given, 7 predicted.\n" in capsys.readouterr().out
    assert main(["import", "x", "--out", "back.csv", *more]) == 0
    assert "3 labels given, 7 predicted" in capsys.readouterr().out
    assert sorted(rows("back.csv")) == sorted(rows("labels.csv"))


@pytest.mark.parametrize("to", KINDS)
def test_the_next_classes_come_back(here, to, capsys):
    others = (("blue", "0.2000"), ("green", "0.1000"))
    entries = [
        lists.given_entry("0.png", "red", "blue"),
        lists.predicted_entry("1.png", "red", "0.7000", others),
    ]
    write(entries)
    argv = ["export", "labels.csv", "photos", "--to", to, "--out", "x", "--top"]
    assert "write more with sklabel fit --top 4" in complaint(capsys, *argv, "4")
    assert main([*argv, "3"]) == 0
    assert main(["import", "x", "--out", "back.csv"]) == 0
    assert rows("back.csv") == rows("labels.csv")
    shutil.rmtree("x") if to == "folders" else os.unlink("x")
    assert main([*argv[:-1]]) == 0
    assert main(["import", "x", "--out", "back.csv"]) == 0
    assert [row[:5] for row in rows("labels.csv")] == rows("back.csv")


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(names)
def test_a_class_is_known_by_its_folder(label):
    name = folders.folder_name(label)
    assert folders.label_of(name) == label
    assert name not in (".", "..") and "/" not in name and "\0" not in name
    assert not name.startswith((".", "_")) and not name.endswith((".", " "))


def test_folders(labeled):
    argv = ["export", "labels.csv", "photos", "--to", "folders", "--out", "x"]
    assert main([*argv, "--min-confidence", "0.7", "--link"]) == 0
    files = sorted(p.relative_to("x").as_posix() for p in Path("x").rglob("*.png"))
    assert len(files) == 5 and "red/0.png" in files and "a%2Fb/2.png" in files
    assert all(Path("x", name).is_symlink() for name in files)
    # a person moves one, takes one away, and adds one
    os.rename("x/red/0.png", "x/a%2Fb/0.png")
    os.unlink("x/a%2Fb/2.png")
    shutil.copy("photos/7.png", "x/red/7.png")
    assert main(["import", "x", "--out", "back.csv"]) == 0
    found = {row[0]: row for row in rows("back.csv")}
    assert found["0.png"][:4] == ["0.png", "a/b", "1.0000", "given"]
    assert found["7.png"][1:4] == ["red", "1.0000", "given"]
    assert "2.png" not in found and len(found) == 5
    assert [found[n][3] for n in ("1.png", "3.png", "4.png")] == [
        "given",
        "predicted",
        "predicted",
    ]
    Path("y").mkdir()
    shutil.copytree("photos", "y/red")
    assert main(["import", "y", "--out", "y.csv"]) == 0
    assert {row[1] for row in rows("y.csv")} == {"red"}
    assert rows("y.csv")[0][0] == "red/0.png"
    assert main(["import", "y", "--out", "z.csv", "--folder", "photos"]) == 0
    assert "0.png" in {row[0] for row in rows("z.csv")}


@pytest.mark.parametrize("to", KINDS)
def test_nothing_is_replaced(labeled, to, capsys):
    Path("x").write_text("mine")
    argv = ["export", "labels.csv", "photos", "--to", to, "--out", "x"]
    complaint(capsys, *argv)
    assert Path("x").read_text() == "mine"
    if to != "folders":
        assert main([*argv, "--overwrite"]) == 0
        capsys.readouterr()
        write_csv("mine.csv", [("0.png", "red")])
        said = complaint(capsys, "import", "x", "--out", "mine.csv")
        assert "is not overwritten" in said
        assert main(["import", "x", "--out", "labels2.csv"]) == 0
        assert main(["import", "x", "--out", "labels2.csv"]) == 0  # our own
    else:
        os.unlink("x")
        Path("x").mkdir()
        Path("x/note").write_text("mine")
        assert "not empty" in complaint(capsys, *argv, "--overwrite")
        said = complaint(capsys, *argv[:-1], "photos/new")
        assert "among the images" in said


def test_folders_are_complete_or_not_there(labeled, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device", "x")

    before = sorted(os.listdir())
    monkeypatch.setattr(shutil, "copyfile", full)
    argv = ["export", "labels.csv", "photos", "--to", "folders", "--out", "x"]
    assert "No space left" in complaint(capsys, *argv)
    assert sorted(os.listdir()) == before


def test_parquet_needs_a_library(labeled, capsys, monkeypatch):
    argv = ["export", "labels.csv", "photos", "--to", "parquet", "--out"]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main([*argv, "p"]) == 0  # by polars
    assert main(["import", "p", "--out", "back.csv"]) == 0
    assert rows("back.csv") == rows("labels.csv")
    monkeypatch.setitem(sys.modules, "polars", None)
    capsys.readouterr()
    said = complaint(capsys, *argv, "q")
    assert 'pip install "sklabel[parquet]"' in said and "--to csv" in said


def test_wrong_exports(labeled, capsys):
    argv = ["export", "labels.csv", "photos", "--to", "csv"]
    assert "for --to folders" in complaint(capsys, *argv, "--link")
    assert "for --to label-studio" in complaint(capsys, *argv, "--url-prefix", "x")
    assert "'1.5' is not a number from 0" in complaint(
        capsys, *argv, "--min-confidence", "1.5"
    )
    assert "FOLDER is missing" in complaint(capsys, *argv[:2], *argv[3:])
    assert "comes first" in complaint(
        capsys, "export", "photos", "labels.csv", *argv[3:]
    )
    shutil.copy("photos/0.png", "photos/0.jpg")
    write([lists.given_entry(n, "red") for n in ("0.png", "0.jpg")], "two.csv")
    said = complaint(capsys, "export", "two.csv", "photos", "--to", "fiftyone")
    assert "'0'" in said and "without their extension" in said


# -- files as other programs write them


def take(name, *more):
    assert main(["import", str(DATA / name), "--out", "in.csv", *more]) == 0
    return {row[0]: tuple(row[1:]) for row in rows("in.csv")}


@pytest.fixture
def uploaded(here):
    """Images that have been given to Label Studio."""
    (here / "photos" / "sub").mkdir()
    os.rename("photos/2.png", "photos/my cat (2).png")
    os.rename("photos/3.png", "photos/sub/grün & blau.png")
    return here


def test_label_studio(uploaded, capsys):
    found = take("label-studio.json", "--folder", "photos")
    assert found == {
        "0.png": ("red", "1.0000", "given", "blue", "", ""),
        "my cat (2).png": ("blue", "1.0000", "given", "", "", ""),
        "sub/grün & blau.png": ("red", "1.0000", "given", "", "", ""),
        "4.png": ("blue", "0.9500", "predicted", "blue", "red", "0.9000"),
        "5.png": ("blue", "0.6234", "predicted", "blue", "", ""),
        "6.png": ("red", "1.0000", "given", "", "", ""),
        "7.png": ("", "", "", "", "", ""),
    }
    said = capsys.readouterr().out
    assert "4 labels given, 2 predicted, 1 image without a label, 2 classes" in said
    assert "Then: sklabel fit in.csv photos" in said
    # and without the folder
    found = take("label-studio.json")
    assert list(found) == [
        *("0.png", "my_cat_2.png", "photos/sub/grün & blau.png", "4.png"),
        *("photos/5.png", "photos/6.png", "7.png"),
    ]
    found = take("label-studio.json", "--annotator", "ada@example.org")
    assert [n for n, row in found.items() if row[2] == "given"] == ["my_cat_2.png"]


def test_label_studio_min_and_csv(uploaded):
    expected = {"0.png": "red", "1.png": "blue"}
    found = take("label-studio-min.json", "--folder", "photos")
    assert {n: row[0] for n, row in found.items()} == expected | {"5.png": ""}
    found = take(
        "label-studio.csv",
        "--folder",
        "photos",
        "--path-column",
        "image",
        "--label-column",
        "choice",
    )
    assert {n: row[0] for n, row in found.items()} == expected


def test_annotators_disagree(here, capsys):
    path = DATA / "label-studio-conflict.json"
    said = complaint(capsys, "import", path, "--out", "in.csv")
    assert (
        "'0.png' has several labels: 'red', 'blue', and 1 more image has several."
        in said
    )
    for conflict, label in (("majority", "red"), ("latest", "blue"), ("skip", "")):
        found = take(path.name, "--conflict", conflict)
        assert [found[f"{i}.png"][0] for i in range(3)] == [label, "red", ""]
        assert "2 images had several labels" in capsys.readouterr().out


def test_coco_and_fiftyone(here, capsys):
    given = ("red", "1.0000", "given", "")
    found = take("coco.json", "--folder", "photos")
    assert found["0.png"] == given and found["5.png"] == ("", "", "", "")
    assert found["1.png"] == ("blue", "0.8125", "predicted", "blue")
    found = take("fiftyone.json", "--folder", "photos")
    assert found["0.png"] == given and found["5.png"] == ("", "", "", "")
    assert found["1.png"] == ("blue", "0.7500", "predicted", "blue")
    assert take("fiftyone-names.json")["1"] == ("blue", "1.0000", "given", "")
    os.makedirs("fo/data")
    shutil.copy(DATA / "fiftyone-names.json", "fo/labels.json")
    manifest = {"0": "/far/away/photos/0.png", "1": "/far/away/photos/1.png"}
    Path("fo/data.json").write_text(json.dumps(manifest))
    assert main(["import", "fo", "--out", "fo.csv", "--folder", "photos"]) == 0
    assert [row[:2] for row in rows("fo.csv")] == [["0.png", "red"], ["1.png", "blue"]]
    # ImageClassificationDirectoryTree
    os.makedirs("tree/_unlabeled")
    shutil.copytree("photos", "tree/red dog%")
    shutil.copy("photos/1.png", "tree/_unlabeled/new.png")
    assert main(["import", "tree", "--out", "tree.csv"]) == 0
    found = {row[0]: row[1] for row in rows("tree.csv")}
    assert found["_unlabeled/new.png"] == "" and found["red dog%/0.png"] == "red dog%"


def test_class_folders_of_a_split(here):
    for part, color in (("train", "red"), ("test", "blue")):
        shutil.copytree("photos", f"set/{part}/{color}")
    assert main(["import", "set", "--out", "set.csv"]) == 0
    found = {row[0]: row[1] for row in rows("set.csv")}
    assert found["train/red/0.png"] == "red" and found["test/blue/0.png"] == "blue"
    assert len(found) == 20


def test_what_fits_no_format(here, capsys):
    write_csv("strange.csv", [("nowhere/99.png", "red")])
    said = complaint(capsys, "import", "strange.csv", "--folder", "photos")
    assert "'nowhere/99.png'" in said and "--skip-missing" in said
    said = complaint(capsys, "import", "strange.csv", "--skip-missing")
    assert "--folder" in said
    for content, reason in (
        ("{", "is not JSON"),
        ("[]", "is not a JSON file of"),
        ('{"a": 1}', "is not a JSON file of"),
        ('[{"data": {"text": "x"}, "annotations": []}]', "Give --path-column"),
        ('{"images": [{}], "annotations": []}', "is not a COCO file"),
        ('{"images": 3, "annotations": []}', "is not a COCO file"),
        ('{"classes": ["a"], "labels": {"0": 4}}', "class 4 of 1"),
        ('[{"data": {"image": "0.png"}, "annotations": 7}]', "there is no label"),
        ("[" * 100000, "nested too deeply"),
    ):
        Path("odd.json").write_text(content)
        assert reason in complaint(capsys, "import", "odd.json", "--out", "o.csv")
    assert not Path("o.csv").exists()


@pytest.mark.parametrize(
    "place, path",
    [
        ("a/b c.png", "a/b c.png"),
        ("/abs/a.png", "/abs/a.png"),
        ("https://host/x/a%20b.png?token=1", "x/a b.png"),
        ("gs://bucket/x/a%20b.png", "x/a%20b.png"),
        ("file:///home/me/a%20b.png", "/home/me/a b.png"),
        ("/data/upload/12/deadbeef-a.png", "a.png"),
        ("/data/upload/12/plain.png", "plain.png"),
        ("/data/local-files/?d=x%2Fa%3Fb.png", "x/a?b.png"),
        ("http://h:8080/data/local-files/?d=x/a.png&t=1", "x/a.png"),
    ],
)
def test_addresses(place, path):
    assert places.plain(place) == path


def test_an_image_that_may_be_two(here, capsys):
    (here / "photos" / "b").mkdir()
    shutil.copy("photos/0.png", "photos/b/0.png")
    write_csv("a.csv", [("/data/upload/1/deadbeef-0.png", "red")])
    said = complaint(capsys, "import", "a.csv", "--folder", "photos", "--out", "o.csv")
    assert "may be" in said and "b/0.png" in said
    write_csv("a.csv", [("/somewhere/b/0.png", "red")])
    assert main(["import", "a.csv", "--folder", "photos", "--out", "o.csv"]) == 0
    assert rows("o.csv")[0][0] == "b/0.png"
