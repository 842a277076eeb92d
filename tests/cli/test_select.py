"""The choice depends on the seed, and leaves out what has a label."""

from pathlib import Path

import pytest

from sklabel.cli import main
from tests.cli._running import SHORT, read_csv


def test_the_same_seed_gives_the_same_files(here):
    select = ["select", "photos", "--n-samples", "3", "--image-size", "16", *SHORT]
    chosen = []
    for out, seed in (("a.csv", "5"), ("b.csv", "5"), ("c.csv", "6"), ("d.csv", "7")):
        assert main([*select, "--seed", seed, "--out", out]) == 0
        chosen.append(Path(out).read_text())
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 1


def test_labeled_images_are_not_asked_again(here, saved):
    select = ["select", "photos", "--embedder", str(saved / "embedder"), "--quiet"]
    assert main([*select, "--n-samples", "6", "--labeled", "filled.csv"]) == 0
    names = {row["path"] for row in read_csv("to_label.csv")}
    assert names == {f"{i}.png" for i in range(4, 10)}


@pytest.mark.parametrize(
    "argv, said",
    [
        ("select photos --n-samples 0", "--n-samples.*'0'.*at least 1"),
        ("select photos --n-samples -3", "--n-samples.*'-3'.*at least 1"),
        ("select photos --n-samples many", "'many' is not a whole number"),
        ("select photos --n-samples 11", "--n-samples 11 is more than the 10 images"),
        (
            "select photos --n-samples 7 --labeled filled.csv",
            "7 is more than the 6 images without a label",
        ),
        ("select nowhere", "There is no folder 'nowhere'"),
        ("select filled.csv", "is a file, not a folder"),
        ("select empty", "No image found in 'empty'"),
        ("select single", "folder single has only one image; 2 or more"),
        ("select photos --image-size 4", "--image-size.*at least 8"),
        ("select photos --epochs 0", "--epochs.*at least 1"),
        ("select photos --seed -1", "--seed.*at least 0"),
        ("select photos --device nonsense", "--device 'nonsense' is not available"),
        ("select photos --colour", "unrecognized arguments: --colour"),
        ("select photos --out no/such/a.csv", "cannot write no/such/a.csv.*not exist"),
        ("select photos --out empty", "cannot write empty: it is not a file"),
        ("select photos --out filled.csv/a.csv", "filled.csv is not a folder"),
        ("select photos --out filled.csv", "filled.csv exists.*--overwrite"),
        ("select photos --sheet no/a.png", "cannot write no/a.png"),
        ("select photos --out a.png", "both a.png: give another --sheet"),
        ("select photos --out photos/a.csv", "would be among the images"),
        ("select photos --save-embedder filled.csv/e", "is not a folder"),
        ("select photos --embedder empty", "empty.*holds no saved estimator"),
        ("select photos --embedder nowhere", "no model folder nowhere"),
        ("select photos --embedder empty --epochs 2", "leave one of them out"),
    ],
)
def test_wrong_input(wrong_input_is_refused, argv, said):
    wrong_input_is_refused(argv, said)
