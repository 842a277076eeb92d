"""Predictions are compared with what a person says, and with nothing else."""

import re

import pytest

from sklabel.cli import evaluate, lists, main, tables
from tests.cli._running import color_of, complaint, read_csv, write_csv


@pytest.fixture
def compared(here):
    """``truth.csv`` of ten images; ``said.csv`` with two mistakes, one label given."""
    names = [f"{i}.png" for i in range(10)]
    write_csv("truth.csv", [(name, color_of(name)) for name in names])
    entries = [lists.given_entry("0.png", "red", "blue")]
    for i, name in enumerate(names[1:], 1):
        wrong = i in (3, 8)
        label = "green" if i == 8 else "red" if wrong else color_of(name)
        confidence = "0.9900" if i == 3 else f"0.{50 + 5 * i}00"
        entries.append(lists.predicted_entry(name, label, confidence))
    (here / "said.csv").write_bytes(tables.as_marked("fit", *lists.rows(entries)))


def test_predictions_of_a_list(compared, capsys):
    argv = ["evaluate", "truth.csv", "photos", "--predictions", "said.csv"]
    assert main([*argv, "--out", "wrong.csv"]) == 0
    out = capsys.readouterr().out
    assert "9 images with a label and a prediction; 1 left out, whose label" in out
    low, high = evaluate.interval(7, 9)
    assert "77.8 % are right" in out
    assert f"(95 % interval: {100 * low:.0f} to {100 * high:.0f} %)" in out
    assert re.search(r"red +4 +4 +75 % +75 %", out)
    assert re.search(r"blue +5 +4 +100 % +80 %", out)
    assert re.search(r"green +0 +1 +0 % +-", out)
    assert re.search(r"1  blue +red\n", out) and re.search(r"1  red +green\n", out)
    assert re.search(r"0.95 to 1.00 +2 +97 % +50 %", out)
    rows = read_csv("wrong.csv")
    assert [row["path"] for row in rows[:2]] == ["3.png", "8.png"]
    assert [row["right"] for row in rows] == ["0"] * 2 + ["1"] * 7
    # the folder last of all, and a list that a person has corrected
    argv = ["evaluate", "truth.csv", "--predictions", "said.csv", "photos"]
    assert main(argv) == 0
    assert capsys.readouterr().out == out


def test_a_corrected_prediction_was_wrong(compared, capsys):
    rows = read_csv("said.csv")
    rows[3]["label"] = "blue"
    write_csv("said.csv", [list(r.values())[:5] for r in rows], list(rows[0])[:5])
    argv = ["evaluate", "truth.csv", "photos", "--predictions", "said.csv"]
    assert main(argv) == 0
    assert "77.8 % are right" in capsys.readouterr().out


def test_a_model(here, saved, capsys):
    write_csv("truth.csv", [(f"{i}.png", color_of(f"{i}.png")) for i in range(4, 10)])
    argv = ["evaluate", "truth.csv", "photos", "--model", str(saved / "model")]
    assert main([*argv, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "6 images with a label and a prediction" in out and "Mean difference" in out


def test_the_interval_holds_the_truth():
    import numpy as np

    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        truth = rng.uniform(0.3, 0.98)
        low, high = evaluate.interval(rng.binomial(60, truth), 60)
        held += low <= truth <= high
    assert 0.92 < held / 400 < 0.99


@pytest.mark.parametrize(
    "argv, said",
    [
        ("evaluate truth.csv photos", "one of the arguments --model --predictions"),
        ("evaluate truth.csv photos --model nowhere", "no model folder nowhere"),
        ("evaluate photos --predictions said.csv", "CSV is missing|comes first"),
        ("evaluate empty.csv photos --predictions said.csv", "no label from a person"),
        ("evaluate truth.csv photos --predictions truth.csv", "no labeled image has"),
        ("evaluate said.csv photos --predictions said.csv", "no labeled image has"),
    ],
)
def test_wrong_input(compared, capsys, argv, said):
    write_csv("empty.csv", [("0.png", "")])
    assert re.search(said, complaint(capsys, *argv.split()))
