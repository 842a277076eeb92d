"""What is not a folder of images or of a classifier is refused."""

import csv
import os

import pytest
import torch
import torchvision

from sklabel.cli import main
from tests.cli._running import break_file, complaint, write_images


@pytest.mark.parametrize(
    "argv, said",
    [
        ("predict nowhere photos", "no model folder nowhere"),
        ("predict empty photos", "holds no saved estimator"),
        ("predict photos photos", "holds no saved estimator"),
        ("predict damaged photos", "'damaged' is damaged"),
        ("predict empty nowhere", "There is no folder 'nowhere'"),
    ],
)
def test_wrong_input(wrong_input_is_refused, argv, said):
    wrong_input_is_refused(argv, said)


def test_one_image(here, saved, capsys):
    write_images(here / "one", 1)
    argv = ["predict", str(saved / "model")]
    for place in ("one", "one/0.png"):
        assert main([*argv, place, "--quiet", "--top", "2"]) == 0
        first, row = capsys.readouterr().out.splitlines()
        assert first.endswith("source,predicted,label_2,confidence_2")
        cells = row.split(",")
        assert cells[0] == "0.png" and {cells[1], cells[5]} == {"red", "blue"}
        assert abs(float(cells[2]) + float(cells[6]) - 1) < 2e-4
    (here / "note.txt").write_text("no image")
    assert "cannot be read" in complaint(capsys, *argv, "note.txt", "--quiet")
    os.mkfifo("pipe.png")
    assert "pipe.png' is a pipe" in complaint(capsys, *argv, "pipe.png", "--quiet")


def test_a_written_list_is_summed_up(here, saved, capsys):
    write_images(here / "two", 2)
    argv = ["predict", str(saved / "model"), "two", "--out", "new.csv", "--quiet"]
    assert main(argv) == 0
    labels = sorted(row["label"] for row in csv.DictReader(open("new.csv", newline="")))
    counts = ", ".join(
        f"{label} {labels.count(label)}" for label in dict.fromkeys(labels)
    )
    assert capsys.readouterr().out == f"2 images in new.csv: {counts}\n"


def test_one_image_behind_a_published_encoder(here, capsys):
    torch.save(torchvision.models.squeezenet1_1().state_dict(), "w.pt")
    name = ["--embedder", "squeezenet1_1", "--weights", "w.pt", "--image-size", "32"]
    fit = ["fit", "filled.csv", "photos", *name, "--model", "m", "--quiet"]
    assert main(fit) == 0
    assert main(["predict", "m", "photos/0.png", "--quiet"]) == 0
    capsys.readouterr()
    write_images(here / "one", 1)
    break_file(here / "one" / "0.png")
    for place in ("one", "one/0.png"):
        for more in ([], ["--skip-broken"]):
            said = complaint(capsys, "predict", "m", place, "--quiet", *more)
            assert "one/0.png (" in said and "truncated" in said
