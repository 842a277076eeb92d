"""Labels are learned, and wrong lists are refused before the long work."""

import numpy as np
import pytest

import sklabel
from sklabel.classification import EmbeddingClassifier
from sklabel.cli import main
from tests.cli._running import (
    SHORT,
    break_file,
    color_of,
    complaint,
    read_csv,
    write_csv,
)


@pytest.fixture
def fit(here, saved):
    """The words of a command that trains no embedding."""
    argv = ["fit", "filled.csv", "photos", "--embedder", str(saved / "embedder")]
    return [*argv, "--quiet"]


@pytest.mark.parametrize(
    "method, more, name",
    [
        (None, [], "EmbeddingClassifier"),
        ("embedding", [], "EmbeddingClassifier"),
        (None, ["--steps", "2"], "FixMatchClassifier"),  # as before there were methods
        ("fixmatch", ["--steps", "2"], "FixMatchClassifier"),
        ("mixmatch", ["--steps", "2"], "MixMatchClassifier"),
        ("remixmatch", ["--steps", "2"], "ReMixMatchClassifier"),
        ("noisy-student", ["--steps", "1"], "NoisyStudentClassifier"),
        ("simclrv2", ["--steps", "2", "--no-flip"], "SimCLRv2Classifier"),
        ("supervised", ["--steps", "2", "--no-flip"], "SupervisedClassifier"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_methods(fit, capsys, method, more, name):
    method = [] if method is None else ["--method", method]
    assert main([*fit, *method, *more, "--model", "m"]) == 0
    assert type(sklabel.load("m")).__name__ == name
    out = capsys.readouterr().out
    assert "Of the other 6 labels " in out and "of at least 90 %" in out
    assert ("are right, between" in out) == (name == "EmbeddingClassifier")
    assert main(["predict", "m", "photos", "--quiet", "--out", "p.csv"]) == 0
    assert len(read_csv("p.csv")) == 10


def test_steps_of_what_does_not_train(fit, capsys):
    said = complaint(capsys, *fit, "--method", "embedding", "--steps", "3")
    assert "--steps is for methods that train" in said
    assert "invalid choice" in complaint(capsys, *fit, "--method", "magic")


def test_what_is_said_of_the_labels(fit, capsys):
    assert main([*fit, "--model", "m"]) == 0
    out = capsys.readouterr().out
    model = sklabel.load("m")
    low, high = model.estimated_accuracy_interval_
    about = f"about {100 * model.estimated_accuracy_:.0f} % are right"
    assert f"{about}, between {100 * low:.0f} and {100 * high:.0f} %" in out
    rows = [row for row in read_csv("labels.csv") if row["source"] == "predicted"]
    n_sure = sum(float(row["confidence"]) >= 0.9 for row in rows)
    assert f"{n_sure} have a confidence of at least 90 %" in out
    # nothing is left to predict
    write_csv("all.csv", [(f"{i}.png", color_of(f"{i}.png")) for i in range(10)])
    assert main(["fit", "all.csv", *fit[2:]]) == 0
    assert "right" not in capsys.readouterr().out


def test_no_prediction_is_certain(fit, monkeypatch):
    def certain(self, X):
        return np.eye(2)[np.arange(len(X)) % 2]

    monkeypatch.setattr(EmbeddingClassifier, "predict_proba", certain)
    assert main(fit) == 0
    rows = read_csv("labels.csv")
    assert {r["confidence"] for r in rows if r["source"] == "given"} == {"1.0000"}
    assert {r["confidence"] for r in rows if r["source"] != "given"} == {"0.9999"}


@pytest.mark.parametrize("more", [[], ["--steps", "40"]])
def test_the_colors_are_learned(here, more):
    argv = ["fit", "filled.csv", "photos", "--image-size", "16", *more]
    assert main([*argv, *SHORT]) == 0
    rest = [row for row in read_csv("labels.csv") if row["source"] == "predicted"]
    assert len(rest) == 6
    assert sum(row["label"] == color_of(row["path"]) for row in rest) >= 5


@pytest.mark.parametrize(
    "argv, said",
    [
        ("fit missing.csv photos", "missing.csv does not exist: correct the path"),
        ("fit photos photos", "photos is a folder, not a file: give a file"),
        ("fit filled.csv nowhere", "There is no folder 'nowhere'"),
        (
            "fit filled.csv photos --label-column kind",
            "no column 'kind'; found: 'path', 'label'.*--label-column",
        ),
        ("fit nopath.csv photos", "no column 'path'; found: 'file', 'label'"),
        ("fit nothing.csv photos", "nothing.csv is empty: .* path,label"),
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
