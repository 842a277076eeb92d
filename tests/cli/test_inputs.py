"""Every kind of image file and CSV is read, or named with the remedy."""

import os
import unicodedata
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import sklabel
from sklabel.cli import inputs, main
from tests.cli._running import (
    SHORT,
    break_file,
    complaint,
    read_csv,
    write_csv,
    write_images,
)


def test_broken_files_are_left_out_on_request(here, saved, capsys):
    break_file(here / "photos" / "3.png")
    (here / "photos" / "7.jpg").write_text("no image")
    embedder = ["--embedder", str(saved / "embedder"), "--quiet"]
    fit = ["fit", "filled.csv", "photos", "--steps", "2", *embedder, "--model", "model"]
    assert main([*fit, "--skip-broken"]) == 0
    assert "3.png" in capsys.readouterr().err
    rows = {row["path"]: row for row in read_csv("labels.csv")}
    assert len(rows) == 11
    # what a person has said stays, also of a file that cannot be read here
    assert rows["3.png"]["label"] == "blue" and rows["3.png"]["source"] == "given"
    assert "".join(rows["7.jpg"].values()) == "7.jpg"
    assert main(["predict", "model", "photos", "--skip-broken", "--quiet"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "7.jpg,,,," in printed and "3.png,,,," in printed and len(printed) == 12
    select = ["select", "photos", "--n-samples", "9", *embedder]
    assert main([*select, "--skip-broken"]) == 0
    names = {row["path"] for row in read_csv("to_label.csv")}
    assert len(names) == 9 and not names & {"3.png", "7.jpg"}


@pytest.mark.parametrize("command", ["select", "fit", "predict"])
def test_a_broken_file_is_named_with_the_remedy(here, saved, capsys, command):
    break_file(here / "photos" / "3.png")
    argv = {
        "select": ["select", "photos", "--n-samples", "2", *SHORT],
        "fit": ["fit", "filled.csv", "photos", *SHORT],
        "predict": ["predict", saved / "model", "photos", "--quiet"],
    }[command]
    before = sorted(here.rglob("*"))
    said = complaint(capsys, *argv)
    assert "1 of 10 image files cannot be read" in said
    assert str(Path("photos", "3.png")) in said and "--skip-broken" in said
    (here / "photos" / "5.png").write_bytes(b"")
    said = complaint(capsys, *argv)
    assert "2 of 10 image files" in said and "3.png" in said
    for path in (here / "photos").glob("*.png"):
        path.write_bytes(b"")
    said = complaint(capsys, *argv, "--skip-broken")
    least = "one image is" if command == "predict" else "two images are"
    assert f"At least {least} needed" in said
    assert sorted(here.rglob("*")) == before


def test_photographs_of_any_size_and_kind(tmp_path, monkeypatch, saved):
    monkeypatch.chdir(tmp_path)
    folder = write_images(tmp_path / "photos", 4, (30, 20))
    sub = folder / "b, c" / "d"
    sub.mkdir(parents=True)
    Image.new("L", (9, 40), 90).save(sub / "gray.JPG")
    Image.new("RGBA", (50, 8), (9, 9, 200, 120)).save(sub / 'q"uoted.png')
    Image.new("P", (12, 12)).save(sub / "palette.gif")
    names = {f"{i}.png" for i in range(4)}
    names |= {"b, c/d/gray.JPG", 'b, c/d/q"uoted.png', "b, c/d/palette.gif"}
    if os.name == "posix":
        Image.new("1", (20, 20)).save(sub / "two\nlines.png")
        Image.new("RGB", (20, 20)).save(sub / "car\rriage ü.png")
        names |= {"b, c/d/two\nlines.png", "b, c/d/car\rriage ü.png"}
    embedder = ["--embedder", str(saved / "embedder"), "--quiet"]
    select = ["select", "photos", "--n-samples", str(len(names)), *embedder]
    assert main(select) == 0
    asked = [row["path"] for row in read_csv("to_label.csv")]
    assert set(asked) == names
    write_csv("filled.csv", [(n, f"k, {i % 2}\n") for i, n in enumerate(asked[:4])])
    assert main(["fit", "filled.csv", "photos", "--steps", "2", *embedder]) == 0
    rows = {row["path"]: row for row in read_csv("labels.csv")}
    assert set(rows) == names
    assert rows[asked[1]]["label"] == "k, 1"


@pytest.mark.skipif(os.name != "posix", reason="such names do not exist elsewhere")
def test_a_name_that_is_no_utf8(here, capsys):
    name = os.fsencode(here / "photos") + b"/\xff.png"
    try:
        os.rename(here / "photos" / "0.png", name)
    except OSError:
        pytest.skip("the file system knows no such names")
    assert "is not UTF-8" in complaint(capsys, "select", "photos", "--n-samples", "2")


def test_files_of_every_ending_are_labeled_and_the_others_counted(here, saved, capsys):
    for name in ("a.jfif", "b"):
        Image.open(here / "photos" / "0.png").convert("RGB").save(
            here / "photos" / name, "JPEG"
        )
    (here / "photos" / "c.cr2").write_bytes(b"II*\0\x10\0\0\0CR")
    write_csv("t.csv", [("a.jfif", "blue"), ("1.png", "red")])
    fit = ["fit", "t.csv", "photos", "--embedder", str(saved / "embedder"), "--quiet"]
    assert main([*fit, "--steps", "2"]) == 0
    assert "1 file ignored: .cr2 1" in capsys.readouterr().err
    rows = {row["path"] for row in read_csv("labels.csv")}
    assert {"a.jfif", "b"} <= rows and "c.cr2" not in rows


def test_all_broken_files_are_named(here, saved, capsys):
    for name in ("3.png", "5.png"):
        (here / "photos" / name).write_bytes(b"")
    said = complaint(capsys, "predict", saved / "model", "photos", "--quiet")
    assert "3.png" in said and "5.png" in said


def test_large_images_are_allowed_by_an_option(here, saved, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    Image.new("1", (100, 80)).save(here / "photos" / "scan.png")
    predict = ["predict", saved / "model", "photos", "--quiet"]
    assert "--max-pixels 8000" in complaint(capsys, *predict)
    assert main([*map(str, predict), "--max-pixels", "8000"]) == 0
    assert "scan.png," in capsys.readouterr().out
    select = [
        "select",
        "photos",
        "--n-samples",
        "11",
        "--quiet",
        "--max-pixels",
        "8000",
    ]
    assert main([*select, "--embedder", str(saved / "embedder")]) == 0


@pytest.mark.skipif(os.name != "posix", reason="other systems compose names")
@pytest.mark.parametrize("on_disk, listed", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_however_their_accents_are_written(here, saved, on_disk, listed):
    name = "Grüße.png"
    os.rename("photos/0.png", f"photos/{unicodedata.normalize(on_disk, name)}")
    rows = [(unicodedata.normalize(listed, name), "blue"), ("1.png", "red")]
    write_csv("t.csv", rows)
    fit = ["fit", "t.csv", "photos", "--embedder", str(saved / "embedder"), "--quiet"]
    assert main([*fit, "--steps", "2"]) == 0
    given = {row["path"] for row in read_csv("labels.csv") if row["source"] == "given"}
    assert given == {unicodedata.normalize(on_disk, name), "1.png"}


def test_values_without_a_range_have_that_of_fit(tmp_path, monkeypatch, capsys):
    """Also in the commands, and kept in the model."""
    monkeypatch.chdir(tmp_path)
    for folder, n in (("photos", 8), ("few", 2)):
        os.mkdir(folder)
        for i in range(n):
            values = np.full((16, 16), [-900.0, 2000.0][i % 2], np.float32)
            values += np.arange(256, dtype=np.float32).reshape(16, 16)
            Image.fromarray(values).save(f"{folder}/{i}.tif")
    short = ["--quiet", "--image-size", "16", "--epochs", "1"]
    select = ["select", "photos", "--n-samples", "2", *short]
    assert main([*select, "--save-embedder", "emb"]) == 0
    assert sklabel.load("emb")._value_range == (-900.0, 2255.0)
    write_csv("t.csv", [("0.tif", "dark"), ("1.tif", "light")])
    fit = ["fit", "t.csv", "photos", "--embedder", "emb", "--steps", "2", "--quiet"]
    assert main([*fit, "--model", "model"]) == 0
    capsys.readouterr()
    results = []
    for folder in ("photos", "few"):
        assert main(["predict", "model", folder, "--quiet"]) == 0
        results.append(capsys.readouterr().out.splitlines()[1:3])
    assert results[0] == results[1]


@pytest.mark.parametrize("known", ["fit", "predict"])
def test_files_with_several_pages_are_named_also_by_a_trained_model(
    here, capsys, known
):
    pages = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    pages[0].save("photos/two.tif", save_all=True, append_images=pages[1:])
    args = Namespace(skip_broken=False, quiet=True, max_pixels=None)
    model = SimpleNamespace(classes_=[0, 1]) if known == "predict" else None
    inputs.read_images(inputs.list_images("photos"), (16, 16), args, model)
    said = capsys.readouterr().err
    assert said == (
        "sklabel: warning: 1 of 11 image files holds several pages or frames; only the "
        "first is read: 'photos/two.tif'.\n"
    )
