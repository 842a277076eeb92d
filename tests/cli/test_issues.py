"""What a person should look at is listed: wrong labels, copies, poor images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sklabel.cli import main
from tests.cli._running import (
    break_file,
    color_of,
    complaint,
    read_csv,
    write_csv,
    write_images,
)


@pytest.fixture
def argv(here, saved):
    """Photographs of which some are not what they should be, and a wrong label."""
    shutil.rmtree("photos")
    photos = write_images(here / "photos", 20, (64, 64))
    for path in photos.iterdir():  # no color shall be dark
        with Image.open(path) as image:
            light = Image.blend(image, Image.new("RGB", image.size, "white"), 0.4)
        light.save(path)
    shutil.copy(photos / "2.png", photos / "20.png")
    with Image.open(photos / "3.png") as image:
        image.resize((96, 96)).save(photos / "21.png")
    Image.new("RGB", (64, 64), (120, 120, 120)).save(photos / "22.png")
    noise = np.random.default_rng(0).integers(0, 30, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(photos / "23.png")
    labels = {f"{i}.png": color_of(f"{i}.png") for i in range(12)}
    labels |= {"5.png": "red", "20.png": "blue"}
    write_csv("wrong.csv", labels.items())
    fit = ["fit", "wrong.csv", "photos", "--embedder", str(saved / "embedder")]
    return [*fit, "--quiet", "--issues", "issues.csv"]


def test_large_images(here, saved, capsys, monkeypatch):
    write_images(here / "photos", 10, (64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    argv = ["--embedder", str(saved / "embedder"), "--quiet", "--max-pixels", "4096"]
    fit = ["fit", "filled.csv", "photos", "--issues", "issues.csv"]
    assert "--max-pixels 4096" in complaint(capsys, *fit, *argv[:-2])
    assert main([*fit, *argv]) == 0
    assert main(["cluster", "photos", "--sheets", "sheets", *argv]) == 0
    monkeypatch.undo()
    with Image.open(here / "clusters.png") as sheet:  # it shows them, and no crosses
        colors = np.asarray(sheet.convert("RGB")).reshape(-1, 3).astype(int)
    assert (np.ptp(colors, axis=1) > 100).sum() > 10 * 64 * 64


def test_issues(argv, capsys):
    assert main(argv) == 0
    said = capsys.readouterr().out
    rows = {row["path"]: row for row in read_csv("issues.csv")}
    assert rows["5.png"]["issue"] == "suspicious label"
    assert rows["5.png"]["detail"] == "the other labels suggest blue"
    assert rows["5.png"]["label"] == "red" and rows["5.png"]["source"] == "given"
    assert "exact copy" in rows["20.png"]["issue"]
    assert "of 2.png, which is labeled red" in rows["20.png"]["detail"]
    assert "near duplicate" in rows["21.png"]["issue"]
    assert "of 3.png" in rows["21.png"]["detail"]
    assert "blank" in rows["22.png"]["issue"] and "dark" in rows["23.png"]["issue"]
    assert rows["22.png"]["source"] == "predicted"
    assert list(rows)[0] in ("5.png", "20.png")
    assert not {"2.png", "3.png", "0.png"} & set(rows)
    n = f"{len(rows)} images to check in issues.csv: "
    n += "suspicious label 2, exact copy 1, near duplicate 1, blank "
    assert n in said
    # the labels are those of before
    before = Path("labels.csv").read_bytes()
    assert main([*argv[:-2], "--out", "plain.csv"]) == 0
    assert Path("plain.csv").read_bytes() == before


def test_it_can_be_corrected(argv, capsys):
    assert main(argv) == 0
    rows = read_csv("issues.csv")
    for row in rows:
        row["label"] = {"22.png": "gray", "5.png": "red"}.get(row["path"], row["label"])
    write_csv("issues.csv", [list(row.values()) for row in rows], list(rows[0]))
    capsys.readouterr()
    assert "is not overwritten" in complaint(capsys, *argv)
    assert main(["fit", "issues.csv", *argv[1:-1], "next.csv"]) == 0
    assert "14 labels given (1 of them corrected)" in capsys.readouterr().out


def test_broken_files_and_nothing_to_look_at(argv, here, capsys):
    for name in ("20.png", "21.png", "22.png", "23.png"):
        (here / "photos" / name).unlink()
    write_csv("wrong.csv", [(f"{i}.png", color_of(f"{i}.png")) for i in range(6)])
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "No image to check" in said or ": odd" in said
    break_file(here / "photos" / "9.png")
    assert main([*argv, "--skip-broken"]) == 0
    rows = {row["path"]: row for row in read_csv("issues.csv")}
    assert rows["9.png"]["issue"] == "unreadable" and rows["9.png"]["label"] == ""


@pytest.mark.parametrize(
    "place, said",
    [
        ("labels.csv", "--out and --issues are both"),
        ("wrong.csv", "is not overwritten"),
        ("no/i.csv", "cannot write"),
    ],
)
def test_wrong_places(argv, capsys, place, said):
    assert said in complaint(capsys, *argv[:-1], place)
