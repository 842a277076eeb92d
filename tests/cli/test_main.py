"""From a folder of images to labels, and one line for whatever goes wrong."""

import io
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

import sklabel
from sklabel.cli import demo, inputs, main
from tests.cli._running import (
    COLORS,
    SHORT,
    color_of,
    columns,
    complaint,
    read_csv,
    write_csv,
)


def test_select_fit_predict(here, capsys):
    select = ["select", "photos", "--n-samples", "4", "--image-size", "16", *SHORT]
    assert main([*select, "--save-embedder", "embedder"]) == 0
    asked = read_csv("to_label.csv")
    assert columns(asked) == ["number", "path", "label"]
    assert [row["number"] for row in asked] == ["1", "2", "3", "4"]
    names = [row["path"] for row in asked]
    assert len(set(names)) == 4 and {row["label"] for row in asked} == {""}
    assert all((here / "photos" / name).exists() for name in names)
    with Image.open("to_label.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > sheet.height > 100
    assert "to_label.csv" in capsys.readouterr().out

    rows = [(name, color_of(name)) for name in names]
    if len({label for _, label in rows}) == 1:
        rows += [("0.png", "red"), ("1.png", "blue")]
    write_csv("filled.csv", [*rows[:-1], (rows[-1][0], ""), ("2.png", "red")])
    rows = {row["path"]: row["label"] for row in read_csv("filled.csv")}
    fit = ["fit", "filled.csv", "photos", "--embedder", "embedder", "--steps", "2"]
    assert main([*fit, "--model", "model", "--quiet"]) == 0
    labels = read_csv("labels.csv")
    header = ["path", "label", "confidence", "source", "predicted"]
    assert columns(labels) == header
    assert [row["path"] for row in labels] == [f"{i}.png" for i in range(10)]
    for row in labels:
        confidence = float(row["confidence"])
        if rows.get(row["path"]):
            assert row["source"] == "given" and confidence == 1
            assert row["label"] == rows[row["path"]]
        else:
            assert row["source"] == "predicted" and 0.5 <= confidence <= 1
            assert row["label"] in COLORS

    capsys.readouterr()
    assert main(["predict", "model", "photos", "--out", "new.csv", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("10 images in new.csv: ") and err == ""
    assert main(["predict", "model", "photos", "--quiet"]) == 0
    printed = capsys.readouterr().out
    predicted = read_csv("new.csv")
    assert columns(predicted) == header
    lines = [",".join(row[name] for name in header) for row in predicted]
    assert printed.splitlines() == [",".join(header), *lines]
    of_fit = {row["path"]: row for row in labels if row["source"] == "predicted"}
    assert of_fit
    for row in predicted:
        if row["path"] in of_fit:
            assert row["label"] == of_fit[row["path"]]["label"]
            assert row["confidence"] == of_fit[row["path"]]["confidence"]
    # the saved model is that of the estimators, and reads paths itself
    classifier = sklabel.load("model")
    paths = [str(here / "photos" / row["path"]) for row in predicted]
    assert classifier.predict(paths).tolist() == [row["label"] for row in predicted]
    assert classifier.device == "auto" and classifier.checkpoint_dir is None


def test_no_command_and_help(capsys):
    assert "COMMAND" in complaint(capsys)
    for argv in (["--help"], ["fit", "--help"], ["--version"]):
        assert main(argv) == 0
    out, err = capsys.readouterr()
    assert sklabel.__version__ in out and "predict" in out and err == ""


def test_an_unknown_command(wrong_input_is_refused):
    wrong_input_is_refused("guess photos", "'guess' is not a command")


def test_interrupted(here, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    argv = ["select", "photos", "--n-samples", "2", "--image-size", "16", *SHORT]
    before = sorted(here.rglob("*"))
    # in the training, which the estimator itself ends, and elsewhere
    for place in (
        "sklabel.embedding._simclr._SimCLR.loss",
        "sklabel.cli.tables.as_text",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, stop)
            assert "nothing written" in complaint(capsys, *argv, status=130)
        Path("to_label.png").unlink(missing_ok=True)
        assert sorted(here.rglob("*")) == before
    with monkeypatch.context() as patch:
        patch.setattr("sklabel.embedding._simclr._SimCLR.loss", stop)
        said = complaint(capsys, *argv, "--checkpoint", "state", status=130)
    assert "again to continue" in said


def test_an_unexpected_error(here, capsys, monkeypatch):
    def fail(*args):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(inputs, "list_images", fail)
    said = complaint(capsys, "select", "photos", status=1)
    assert "unexpected RuntimeError: first second" in said and "--traceback" in said
    with pytest.raises(RuntimeError):
        main(["select", "photos", "--traceback"])


def test_warnings_are_lines_too(capsys, monkeypatch):
    def warn(arguments):
        warnings.warn("mind\nthis", stacklevel=1)
        warnings.warn("not for users", FutureWarning, stacklevel=1)

    monkeypatch.setattr(demo, "run", warn)
    assert main(["demo"]) == 0
    assert capsys.readouterr().err == "sklabel: warning: mind this\n"


def test_as_a_program(here):
    """No traceback, whoever starts it and however it ends."""
    environment = {**os.environ, "PYTHONPATH": str(Path(sklabel.__file__).parents[1])}
    run = {"capture_output": True, "text": True, "env": environment}
    program = [sys.executable, "-m", "sklabel"]
    done = subprocess.run([*program, "--help"], **run, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert all(name in done.stdout for name in ("demo", "select", "fit", "predict"))
    done = subprocess.run([*program, "fit", "x.csv", "nowhere"], **run, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "sklabel: There is no folder 'nowhere': correct the path.\n"


@pytest.mark.skipif(os.name != "posix", reason="no such signal")
def test_ctrl_c_of_a_program(here):
    environment = {**os.environ, "PYTHONPATH": str(Path(sklabel.__file__).parents[1])}
    program = [sys.executable, "-u", "-m", "sklabel", "select", "photos"]
    program += ["--embedder", "simclr", "--image-size", "16", "--n-samples", "2"]
    program += ["--epochs", "4000"]
    with subprocess.Popen(
        program,
        stderr=subprocess.PIPE,
        env=environment,
        # what is started in the background of a script ignores the signal, and its
        # children do
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        shown = b""
        while b"1%" not in shown:  # it trains
            read = running.stderr.read(1)
            assert read, shown  # else it has ended
            shown += read
        running.send_signal(signal.SIGINT)
        shown += running.stderr.read()
    assert running.returncode == 130
    assert shown.splitlines()[-1] == b"sklabel: interrupted: nothing written."
    assert b"Traceback" not in shown and not Path("to_label.csv").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_are_printed_whatever_they_are(here, saved, monkeypatch, encoding):
    names = ["\x1b[31mrot", "zwei\nZeilen", "日本", "\u202egpj.exe"]
    write_csv("l.csv", [(f"{i}.png", names[i % 4]) for i in range(8)])
    model = ["--embedder", str(saved / "embedder"), "--quiet"]
    for argv in (
        ["fit", "l.csv", "photos", *model],
        ["cluster", "photos", "--out", "日本.csv", *model],
        ["export", "l.csv", "photos", "--to", "label-studio"],
        ["evaluate", "l.csv", "photos", "--model", str(saved / "model")],
        ["fit", "l.csv", "photos", "--label-column", "\x1b[31m"],
    ):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
        err.reconfigure(errors="backslashreplace")
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)
        status = main(argv)
        for stream in (out, err):
            stream.seek(0)
        said, error = out.read(), err.read()
        assert status == (2 if "--label-column" in argv else 0), error
        assert "\x1b" not in said + error and "\u202e" not in said
        if argv[0] in ("fit", "evaluate") and not status:
            assert "zwei Zeilen" in said
            assert ("日本" if encoding == "utf-8" else "\\u65e5\\u672c") in said


@pytest.mark.skipif(os.name != "posix", reason="starts a shell")
def test_a_program_without_standard_streams(here):
    """As a scheduler starts it."""
    write_csv("l.csv", [(f"{i}.png", "a") for i in range(4)])
    environment = {**os.environ, "PYTHONPATH": str(Path(sklabel.__file__).parents[1])}
    program = f"{sys.executable} -m sklabel"

    def run(command):
        done = subprocess.run(
            command, shell=True, env=environment, capture_output=True, check=False
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    export = f"{program} export l.csv photos --to csv --out"
    assert run(f"{export} new.csv <&- >&- 2>&-") == (0, "", "")
    assert len(read_csv("new.csv")) == 4
    # what is for stderr never goes to stdout
    assert run(f"{program} export no.csv photos --to csv 2>&-") == (2, "", "")
    said = "sklabel: standard output is closed: give --out.\n"
    assert run(f"{program} predict model photos >&-") == (2, "", said)
