"""The demo's table, files and bar."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sklabel.cli import demo, main
from sklabel.datasets import load_digit_images
from tests.cli._running import SHORT, columns, complaint, read_csv

ARMS = [
    (choice, labeler)
    for choice in ("TypiClust", "random")
    for labeler in ("sklabel", "scikit-learn")
]


def accuracies(out, spread=False):
    """Return the accuracy of each row of the table."""
    found = {}
    for choice, labeler in ARMS:
        number = r"(\d\.\d{3})" + (r" \+- \d\.\d{3}" if spread else "")
        row = re.search(
            rf"^{choice} +{labeler} +(\d+\.\d) of 10 +{number} +\d+\.\d$",
            out,
            re.MULTILINE,
        )
        assert row, out
        assert 1 <= float(row[1]) <= 10
        found[choice, labeler] = float(row[2])
    return found


def test_the_demo_labels_nine_of_ten_digits(here, capsys):
    assert main(["demo", "--quiet"]) == 0
    out, err = capsys.readouterr()
    found = accuracies(out)
    assert found["TypiClust", "sklabel"] > 0.9
    assert found["TypiClust", "sklabel"] > found["random", "scikit-learn"] + 0.1
    assert "1777 of 1797 digits" in out and "One run" in out and err == ""


def test_demo(here, capsys):
    argv = ["demo", "--seeds", "2", "--n-samples", "12", "--steps", "3", *SHORT]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    # after three steps nobody is sure, which is said, and nothing else
    assert all(line.startswith("sklabel: warning: ") for line in err.splitlines())
    assert "EmbeddingClassifier" not in err
    assert "1785 of 1797 digits" in out and "of 2 runs" in out
    accuracies(out, spread=True)
    rows = read_csv("sklabel-demo/labels.csv")
    assert columns(rows) == ["image", "label", "confidence", "source", "truth"]
    assert [row["image"] for row in rows] == [str(i) for i in range(1797)]
    given = [row for row in rows if row["source"] == "given"]
    assert len(given) == 12
    assert all(r["label"] == r["truth"] and r["confidence"] == "1.0000" for r in given)
    with Image.open("sklabel-demo/chosen.png") as picture:
        assert picture.width > 400 and picture.height > 12 * 48
    # once more over its own files; not over changed ones, nor beside photographs
    short = ["demo", "--seeds", "1", "--n-samples", "1", "--steps", "1", *SHORT]
    assert main(short) == 0
    capsys.readouterr()
    with open("sklabel-demo/labels.csv", "a") as file:
        file.write("1797,mine\n")
    assert "labels.csv exists, was not written by" in complaint(capsys, *short)
    before = sorted(here.rglob("*"))
    assert "photos holds other files" in complaint(capsys, *short, "--out", "photos")
    assert sorted(here.rglob("*")) == before


def test_demo_with_a_single_label_and_its_bar(here, capsys):
    argv = ["demo", "--seeds", "1", "--n-samples", "1", "--epochs", "1"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "1.0 of 10" in out and "+-" not in out
    assert "100%" in err


class Bar:
    """What the demo needs of a bar, with all its places."""

    def __init__(self, n):
        self.places = [n]

    @property
    def n(self):
        return self.places[-1]

    def update(self, amount):
        self.places.append(self.n + amount)


def test_the_bar_moves_and_the_features_are_watched():
    images = load_digit_images().images[:100]
    bar = Bar(3)
    embedder = demo._embed(images, 0, SimpleNamespace(epochs=4, device="cpu"), bar)
    np.testing.assert_allclose(bar.places, [3, 3.25, 3.5, 3.75, 4])
    assert "feature_std" in embedder.net_.history[-1]


@pytest.mark.parametrize(
    "argv, said",
    [
        ("demo --seeds 0", "--seeds.*at least 1"),
        ("demo --n-samples 1798", "1798 is more than the 1797 images"),
        ("demo --out filled.csv", "filled.csv is not a folder"),
    ],
)
def test_wrong_input(wrong_input_is_refused, argv, said):
    wrong_input_is_refused(argv, said)
