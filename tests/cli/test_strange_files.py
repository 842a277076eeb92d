"""Files of other programs that are cut, contradict themselves or want to lead away."""

import json
import os
import shlex
from pathlib import Path

import pytest

from sklabel.cli import lists, main, tables
from tests.cli._running import complaint, read_csv, write_csv, write_images

HEADER = ["path", "label", "confidence", "source", "predicted"]
COCO = {
    "images": [{"id": 1, "file_name": "0.png"}, {"id": 2, "file_name": "1.png"}],
    "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    "annotations": [
        {"image_id": 1, "category_id": 1},
        {"image_id": 2, "category_id": 2},
    ],
}


def task(address="0.png", label="red"):
    value = {"choices": [label]}
    result = [{"type": "choices", "from_name": "label", "value": value}]
    return {"data": {"image": address}, "annotations": [{"result": result}]}


@pytest.mark.parametrize("confidence", ["abc", "nan", "91%", "-1", "2", "1e400"])
@pytest.mark.parametrize(
    "argv",
    [
        ["export", "l.csv", "photos", "--to", "coco"],
        ["export", "l.csv", "photos", "--to", "csv", "--min-confidence", "0.5"],
        ["evaluate", "filled.csv", "photos", "--predictions", "l.csv"],
        ["report", "l.csv", "photos", "--map", "none"],
        ["import", "l.csv"],
    ],
)
def test_a_confidence_that_is_no_number(here, capsys, argv, confidence):
    rows = [("0.png", "red", "1", "given", ""), ("2.png", "red", "", "predicted", "")]
    rows += [("1.png", "blue", confidence, "predicted", "blue")]
    write_csv("l.csv", rows, HEADER)
    before = sorted(here.iterdir())
    said = complaint(capsys, *argv)
    assert f"the confidence {confidence!r} of '1.png' is not a number" in said
    assert sorted(here.iterdir()) == before


def test_a_decimal_comma_is_a_confidence(here, capsys):
    rows = [("0.png", "red", "1", "given", ""), ("2.png", "red", "", "predicted", "")]
    rows += [("1.png", "blue", "0,91", "predicted", "blue")]
    write_csv("l.csv", rows, HEADER, ";")
    assert main(["export", "l.csv", "photos", "--to", "coco"]) == 0
    found = json.loads(Path("coco.json").read_text())
    scores = [a["score"] for a in found["annotations"] if "score" in a]
    assert 0.91 in scores
    evaluate = ["evaluate", "filled.csv", "photos", "--predictions", "l.csv"]
    assert main(evaluate) == 0
    assert "91 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"images": [*COCO["images"], {"id": 1, "file_name": "2.png"}]}, "two images"),
        ({"categories": [*COCO["categories"], {"id": 1, "name": "c"}]}, "two categ"),
        ({"images": COCO["images"][:1]}, "the image_id 2, which is not in it"),
        ({"categories": []}, "the category_id 1, which is not in it"),
        ({"categories": None}, "'categories' is not a list of objects"),
        ({"annotations": {"a": 1}}, "'annotations' is not a list of objects"),
        ({"images": [{"id": [], "file_name": "x"}]}, "has no id or no file_name"),
        ({"images": [{"id": 1, "file_name": {}}]}, "is not a text, which is expected"),
    ],
)
def test_a_coco_file_that_contradicts_itself(here, capsys, change, reason):
    Path("c.json").write_text(json.dumps({**COCO, **change}))
    said = complaint(capsys, "import", "c.json", "--out", "o.csv")
    assert said.startswith("c.json") and reason in said
    assert not Path("o.csv").exists()


def test_an_image_that_stands_in_a_coco_file_twice(here):
    images = [*COCO["images"], COCO["images"][0]]
    Path("c.json").write_text(json.dumps({**COCO, "images": images}))
    assert main(["import", "c.json", "--out", "o.csv"]) == 0
    assert {row["path"]: row["label"] for row in read_csv("o.csv")} == {
        "0.png": "a",
        "1.png": "b",
    }


@pytest.mark.parametrize(
    "content, reason",
    [
        ('{"classes": 3, "labels": {"0": {"label": 0}}}', "'classes' is not a list"),
        ('{"classes": [{}], "labels": {"0": {"label": 0}}}', "a text, which is"),
        ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
        (json.dumps([task()])[:-20], "It may be incomplete"),
        (" " * 2_000_000, "x.json is empty"),
        ("", "x.json is empty"),
        ("{" + " " * 2_000_000, "is not JSON"),
        (json.dumps([task(label="gr\udcfcn")]), "half a character"),
        (json.dumps([task("\udcff.png")]), "half a character"),
        (json.dumps([task()])[:-1].encode() + b',{"x": "\xff"}]', "is not UTF-8"),
    ],
)
def test_json_that_cannot_be_taken(here, capsys, content, reason):
    Path("x.json").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    said = complaint(capsys, "import", "x.json", "--out", "o.csv")
    assert "x.json" in said and reason in said
    assert not Path("o.csv").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("before", ["", " \n" * 5000])
def test_json_in_any_form_of_unicode(here, encoding, before):
    text = before + json.dumps([task(label="grün")], ensure_ascii=False)
    Path("x.json").write_bytes(text.encode(encoding))
    assert main(["import", "x.json", "--out", "o.csv"]) == 0
    assert read_csv("o.csv")[0]["label"] == "grün"


@pytest.mark.parametrize(
    "address",
    [
        "http://x/../../etc/passwd",
        "file:///etc/passwd",
        "/etc/passwd",
        "../../../etc/passwd",
        "http://[x/0.jpg",
        "/data/local-files/?d=../../etc/passwd",
        "/data/local-files/?d=%00.png",
        "/tasks/1/resolve/?fileuri=!!!",
        "\0.png",
        "x" * 5000 + ".png",
        "~nobody/x.png",
    ],
)
def test_an_address_that_leads_away(here, capsys, address):
    Path("x.json").write_text(json.dumps([task(address), task("0.png")]))
    argv = ["import", "x.json", "--folder", "photos", "--out", "o.csv"]
    said = complaint(capsys, *argv)
    assert said.startswith("x.json names ") and "no such image" in said
    assert main([*argv, "--skip-missing"]) == 0
    assert [row["path"] for row in read_csv("o.csv")] == ["0.png"]


@pytest.mark.parametrize("cell", ["a\0.png", "x" * 5000, "~nobody/x", "a\0/../0.jpg"])
def test_a_path_in_a_csv_that_no_file_can_have(here, capsys, cell):
    write_csv("l.csv", [("0.png", "red"), (cell, "blue")])
    assert complaint(capsys, "fit", "l.csv", "photos").startswith("l.csv, line 3, ")


@pytest.mark.parametrize("content", ["[1]", "null", "{", "[" * 10_000])
def test_the_paths_beside_labels_of_fiftyone(here, capsys, content):
    (here / "set").mkdir()
    Path("set/labels.json").write_text('{"classes": ["a"], "labels": {"0": 0}}')
    Path("set/data.json").write_text(content)
    assert "set/data.json" in complaint(capsys, "import", "set")


def test_what_is_no_file(here, capsys):
    os.mkfifo("pipe.json")
    assert "is a pipe" in complaint(capsys, "import", "pipe.json")
    assert "is a device" in complaint(capsys, "import", "/dev/zero")


def test_parquet_of_other_programs(here, capsys):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def put(**columns):
        parquet.write_table(pa.table(columns), "x.parquet")

    argv = ["import", "x.parquet", "--out", "o.csv"]
    put(path=["0.png"], label=[["a", "b"]])
    assert "a column that is not text" in complaint(capsys, *argv)
    put(path=[b"0.png"], label=[b"\xff"])
    assert "a column that is not text" in complaint(capsys, *argv)
    Path("x.parquet").write_bytes(Path("x.parquet").read_bytes()[:-30])
    assert "x.parquet cannot be read as Parquet" in complaint(capsys, *argv)
    # pandas: whole numbers beside a missing one are floats
    put(path=[b"0.png", b"1.png", b"2.png"], label=[3.0, float("nan"), 2.5])
    assert main(argv) == 0
    found = {row["path"]: row["label"] for row in read_csv("o.csv")}
    assert found == {"0.png": "3", "1.png": "", "2.png": "2.5"}


@pytest.mark.parametrize("label", ['{"choices"', '{"choices": ' + "[" * 10_000])
def test_a_label_that_only_looks_like_several(here, label):
    write_csv("l.csv", [("0.png", label)])
    assert main(["import", "l.csv", "--out", "o.csv"]) == 0
    assert read_csv("o.csv")[0]["label"] == label


@pytest.mark.parametrize("label", ["labels.csv", "Labels.CSV"])
def test_a_class_called_as_the_list_in_the_folder(here, label):
    write_csv("l.csv", [("0.png", label), ("1.png", "other")])
    assert main(["export", "l.csv", "photos", "--to", "folders", "--link"]) == 0
    assert main(["import", "labeled", "--out", "o.csv"]) == 0
    assert {row["label"] for row in read_csv("o.csv")} == {label, "other"}


def test_a_folder_of_folders_is_made(here, monkeypatch):
    argv = ["export", "filled.csv", "photos", "--to", "folders", "--out"]
    assert main([*argv, "new/newer/newest"]) == 0
    assert Path("new/newer/newest/red/0.png").is_file()
    (here / "empty").mkdir()
    (here / "link").symlink_to("empty")
    assert main([*argv, "link"]) == 0
    assert Path("link").is_symlink() and Path("empty/red/0.png").is_file()
    # nothing is left of one that cannot be filled
    monkeypatch.setattr("shutil.copyfile", lambda *_: 1 / 0)
    assert main([*argv, "other/one"]) == 1
    assert not Path("other").exists()


def test_a_name_that_is_too_long_is_told_before_the_work(here, capsys, monkeypatch):
    monkeypatch.setattr("sklabel.cli.inputs.readable", lambda *_: pytest.fail("works"))
    name = "x" * 240
    for argv in (
        ["export", "filled.csv", "photos", "--to", "folders", "--out", name],
        ["fit", "filled.csv", "photos", "--out", f"{name}.csv"],
        ["report", "filled.csv", "photos", "--out", f"{name}.html"],
    ):
        assert complaint(capsys, *argv).endswith(
            f"{argv[-1]}: File name too long: give a shorter name."
        )


def test_a_file_in_the_place_of_the_folder(here, capsys):
    write_csv("other.csv", [("1.png", "blue")])
    for more in (
        ["export", "--to", "csv"],
        ["report", "--map", "none"],
        ["evaluate", "--model", "x"],
    ):
        command, *more = more
        said = complaint(capsys, command, "filled.csv", "other.csv", *more)
        assert "other.csv is a file, but the folder of the images must" in said


@pytest.mark.parametrize(
    "argv",
    [
        "export photos filled.csv --to coco --out x.json",
        "evaluate photos filled.csv --predictions labels.csv",
        "report photos filled.csv --map none --title 'a b'",
    ],
)
def test_the_right_order_is_told_as_a_whole_command(here, capsys, argv):
    write_csv("labels.csv", [("4.png", "red", "0.9", "predicted", "red")], HEADER)
    write_csv("filled.csv", [("4.png", "red")])
    said = complaint(capsys, *shlex.split(argv))
    right = shlex.split(said.split("folder: ")[1])
    assert right[0] == "sklabel" and main(right[1:]) == 0


@pytest.mark.parametrize(
    "argv",
    [
        ["cluster", "photos", "--out", ""],
        ["cluster", ""],
        ["fit", "filled.csv", "photos", "--model", ""],
        ["report", "", "photos"],
        ["export", "filled.csv", "photos", "--to", "csv", "--out", ""],
    ],
)
def test_an_empty_text_is_no_place(here, capsys, argv):
    assert "is empty: " in complaint(capsys, *argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["cluster", "~no-such-person"],
        ["fit", "filled.csv", "~no-such-person"],
        ["predict", "model", "~no-such-person"],
    ],
)
def test_the_home_of_nobody(here, capsys, argv):
    assert "~no-such-person" in complaint(capsys, *argv)


def test_a_folder_may_be_called_so(here):
    write_images(here / "~no-such-person")
    argv = ["export", "filled.csv", "~no-such-person", "--to", "csv"]
    assert main(argv) == 0


def test_names_that_look_like_none_come_with_the_next_command(here, saved, capsys):
    entries = [lists.given_entry(f"{i}.png", ["none", "-1"][i % 2]) for i in range(4)]
    Path("l.csv").write_bytes(tables.as_marked("fit", *lists.rows(entries)))
    keep = ["--keep-label=none", "--keep-label=-1"]
    for to in ("coco", "folders", "fiftyone", "label-studio"):
        argv = ["export", "l.csv", "photos", "--to", to, "--out", f"x-{to}", *keep]
        assert main(argv) == 0
        argv = ["import", f"x-{to}", "--folder", "photos", "--out", f"{to}.csv"]
        capsys.readouterr()
        assert main(argv) == 0
        then = shlex.split(capsys.readouterr().out.split("Then: ")[1])
        more = ["--embedder", str(saved / "embedder"), "--quiet", "--overwrite"]
        assert main([*then[1:], *more]) == 0
    # what another program has written into a CSV may be a missing value
    write_csv("c.csv", [(f"{i}.png", "none") for i in range(4)])
    assert main(["import", "c.csv", "--out", "d.csv"]) == 0
    assert "keep-label" not in capsys.readouterr().out.split("Then: ")[-1]


def test_the_folder_of_the_next_command_holds_the_images(here, capsys):
    assert main(["export", "filled.csv", "photos", "--to", "folders"]) == 0
    assert main(["import", "labeled", "--out", "a.csv"]) == 0
    assert "sklabel fit a.csv FOLDER" in capsys.readouterr().out
    os.remove("labeled/labels.csv")  # then it is a folder of somebody else
    assert main(["import", "labeled", "--out", "b.csv"]) == 0
    assert "sklabel fit b.csv labeled" in capsys.readouterr().out


def test_a_full_disk_names_the_folder(here, capsys, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr("shutil.copyfile", full)
    said = complaint(capsys, "export", "filled.csv", "photos", "--to", "folders")
    assert said.startswith("labeled: No space left on device: free some space")
