"""The command line: files in, files out, and one line for whatever goes wrong."""

import csv
import io
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sklabel
from sklabel import _cli
from sklabel.__main__ import main
from sklabel._core.display import cluster_sheet, contact_sheet
from sklabel.embedding import SimCLRTransformer

SHORT = ["--epochs", "1", "--quiet"]
COLORS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


def color_of(name):
    return list(COLORS)[int(re.findall(r"\d+", name)[0]) % 2]


def write_images(folder, n=10, size=(16, 16)):
    """Write reddish and bluish noise, the colors taking turns."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        path = folder / f"{i}.png"
        noise = rng.integers(-25, 25, (*size, 3))
        pixels = np.clip(np.array(COLORS[color_of(path.name)]) + noise, 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path, rows, header=("path", "label"), delimiter=","):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def break_file(path):
    """Cut an image file in half, so that it opens but cannot be decoded."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with ``photos`` (10 images) and ``filled.csv`` (4 labels)."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos")
    write_csv("filled.csv", [(f"{i}.png", color_of(f"{i}.png")) for i in range(4)])
    return tmp_path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of an embedder and a classifier, trained for a moment."""
    folder = tmp_path_factory.mktemp("saved")
    photos = write_images(folder / "photos")
    filled = write_csv(
        folder / "filled.csv", [(f"{i}.png", color_of(f"{i}.png")) for i in range(4)]
    )
    out, model, embedder = folder / "labels.csv", folder / "model", folder / "embedder"
    select = ["select", photos, "--n-samples", 4, "--image-size", 16, *SHORT]
    select += ["--out", folder / "to_label.csv", "--save-embedder", embedder]
    assert main(list(map(str, select))) == 0
    fit = ["fit", filled, photos, "--embedder", embedder, "--steps", 2, "--quiet"]
    fit += ["--out", out, "--model", model]
    assert main(list(map(str, fit))) == 0
    return folder


def complaint(capsys, *argv, status=2):
    """Run a command that must fail, and return its only line on stderr."""
    assert main([str(a) for a in argv]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sklabel: ") and err.endswith("\n")
    assert err.count("\n") == 1, err
    return err[len("sklabel: ") : -1]


# -- the way through


def test_select_fit_predict(here, capsys):
    select = ["select", "photos", "--n-samples", "4", "--image-size", "16", *SHORT]
    assert main([*select, "--save-embedder", "embedder"]) == 0
    asked = read_csv("to_label.csv")
    assert list(asked[0]) == ["path", "label"]
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
    assert list(labels[0]) == ["path", "label", "confidence", "source"]
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
    assert capsys.readouterr() == ("", "")
    assert main(["predict", "model", "photos", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert printed == Path("new.csv").read_text(encoding="utf-8")
    predicted = read_csv("new.csv")
    assert list(predicted[0]) == ["path", "label", "confidence"]
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


def test_the_colors_are_learned(here):
    argv = ["fit", "filled.csv", "photos", "--image-size", "16", "--steps", "40"]
    assert main([*argv, *SHORT]) == 0
    rest = [row for row in read_csv("labels.csv") if row["source"] == "predicted"]
    assert len(rest) == 6
    assert sum(row["label"] == color_of(row["path"]) for row in rest) >= 5


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
    assert list(rows["7.jpg"].values()) == ["7.jpg", "", "", ""]
    assert main(["predict", "model", "photos", "--skip-broken", "--quiet"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "7.jpg,," in printed and "3.png,," in printed and len(printed) == 12
    select = ["select", "photos", "--n-samples", "9", *embedder]
    assert main([*select, "--skip-broken"]) == 0
    names = {row["path"] for row in read_csv("to_label.csv")}
    assert len(names) == 9 and not names & {"3.png", "7.jpg"}


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


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_spreadsheets_write_is_read(here, saved, delimiter):
    rows = [("0.png", "", "red", "x"), (".\\1.png", "y", " blue ", "")]
    rows += [("2.png", "", "", ""), ("", "", "", "")]
    write_csv("t.csv", rows, ("path", "note", "Class", "n"), delimiter)
    text = "\ufeff" + Path("t.csv").read_text()
    Path("t.csv").write_text(text.replace("\n", "\r\n"), newline="")
    fit = ["fit", "t.csv", "photos", "--embedder", str(saved / "embedder"), "--quiet"]
    assert main([*fit, "--steps", "2", "--label-column", "Class"]) == 0
    rows = [row for row in read_csv("labels.csv") if row["source"] == "given"]
    assert {row["path"]: row["label"] for row in rows} == {
        "0.png": "red",
        "1.png": "blue",
    }


cells = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_any_text_survives_the_csv(rows):
    text = _cli._csv_text(["path", "label"], rows)
    read = csv.reader(io.StringIO(text, newline=""))
    assert [tuple(row) for row in read] == [("path", "label"), *rows]


# -- what goes wrong


def test_no_command_and_help(capsys):
    assert "COMMAND" in complaint(capsys)
    for argv in (["--help"], ["fit", "--help"], ["--version"]):
        assert main(argv) == 0
    out, err = capsys.readouterr()
    assert sklabel.__version__ in out and "predict" in out and err == ""


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
        ("select single", "single holds one image"),
        ("select photos --image-size 4", "--image-size.*at least 8"),
        ("select photos --epochs 0", "--epochs.*at least 1"),
        ("select photos --seed -1", "--seed.*at least 0"),
        ("select photos --device nonsense", "device 'nonsense' is not available"),
        ("select photos --colour", "unrecognized arguments: --colour"),
        ("select photos --out no/such/a.csv", "cannot write no/such/a.csv.*not exist"),
        ("select photos --out empty", "cannot write empty: it is not a file"),
        ("select photos --out filled.csv/a.csv", "filled.csv is not a folder"),
        ("select photos --out filled.csv", "filled.csv exists.*not overwritten"),
        ("select photos --sheet no/a.png", "cannot write no/a.png"),
        ("select photos --out a.png", "both a.png: give --sheet"),
        ("select photos --out photos/a.csv", "would lie among the images"),
        ("select photos --save-embedder filled.csv/e", "is not a folder"),
        ("select photos --embedder empty", "empty.*holds no saved estimator"),
        ("select photos --embedder nowhere", "no model folder nowhere"),
        ("select photos --embedder empty --epochs 2", "leave one of them out"),
        ("fit missing.csv photos", "missing.csv: No such file"),
        ("fit photos photos", "photos: Is a directory"),
        ("fit filled.csv nowhere", "There is no folder 'nowhere'"),
        (
            "fit filled.csv photos --label-column kind",
            "no column 'kind'; found: 'path', 'label'.*--label-column",
        ),
        ("fit nopath.csv photos", "no column 'path'; found: 'file', 'label'"),
        ("fit nothing.csv photos", "no column 'path'; found: none"),
        ("fit stranger.csv photos", "'99.png' and 1 more.*no such image is in photos"),
        ("fit unfilled.csv photos", "column 'label' of unfilled.csv has no label"),
        ("fit oneclass.csv photos", "one class only, 'red'"),
        ("fit twice.csv photos", "two labels for 0.png: 'red' and 'blue'"),
        ("fit minus.csv photos", "label '-1'.*stands for unlabeled"),
        ("fit latin.csv photos", "latin.csv is not UTF-8"),
        ("fit quote.csv photos", "quote.csv is not a CSV"),
        ("fit filled.csv photos --out filled.csv", "the file with your labels"),
        ("fit filled.csv photos --out no/l.csv", "cannot write no/l.csv"),
        ("fit filled.csv photos --model filled.csv", "is not a folder"),
        ("fit filled.csv photos --steps 0", "--steps.*at least 1"),
        ("predict nowhere photos", "no model folder nowhere"),
        ("predict empty photos", "holds no saved estimator"),
        ("predict photos photos", "holds no saved estimator"),
        ("predict damaged photos", "'damaged' is damaged"),
        ("predict empty nowhere", "There is no folder 'nowhere'"),
        ("demo --seeds 0", "--seeds.*at least 1"),
        ("demo --n-samples 1798", "1798 is more than the 1797 images"),
        ("demo --out filled.csv", "filled.csv is not a folder"),
        ("guess photos", "invalid choice: 'guess'"),
    ],
)
def test_wrong_input(here, capsys, monkeypatch, argv, said):
    (here / "empty").mkdir()
    write_images(here / "single", 1)
    write_csv("nopath.csv", [("0.png", "red")], ("file", "label"))
    write_csv("stranger.csv", [("0.png", "red"), ("99.png", "blue"), ("98.png", "")])
    write_csv("unfilled.csv", [("0.png", ""), ("1.png", " ")])
    write_csv("oneclass.csv", [("0.png", "red"), ("2.png", "red")])
    write_csv("twice.csv", [("0.png", "red"), ("0.png", "blue")])
    write_csv("minus.csv", [("0.png", "-1"), ("1.png", "1")])
    Path("nothing.csv").write_text("")
    Path("latin.csv").write_bytes("path,label\n0.png,gr\xfcn\n".encode("latin-1"))
    Path("quote.csv").write_text('path,label\n0.png,"red\n')
    (here / "damaged").mkdir()
    (here / "damaged" / "estimator.json").write_text('{"format": 1')
    # all of this is noticed before the long work
    monkeypatch.setattr(SimCLRTransformer, "fit", lambda *_: pytest.fail("trained"))
    before = sorted(here.rglob("*"))
    labels = Path("filled.csv").read_bytes()
    argv = argv.split()
    if argv[:2] == ["select", "photos"] and "--n-samples" not in argv:
        argv += ["--n-samples", "2"]
    assert re.search(said, complaint(capsys, *argv))
    assert sorted(here.rglob("*")) == before
    assert Path("filled.csv").read_bytes() == labels


def test_wrong_models(here, saved, capsys):
    embedder, model = saved / "embedder", saved / "model"
    said = complaint(capsys, "predict", embedder, "photos")
    assert "holds a SimCLRTransformer, not a classifier" in said
    select = ["select", "photos", "--n-samples", 2, "--embedder"]
    said = complaint(capsys, *select, model)
    assert "holds a FixMatchClassifier, not an embedding" in said
    said = complaint(capsys, *select, embedder, "--image-size", 32)
    assert "was trained on images of 16x16 pixels" in said
    gray = np.zeros((8, 8, 8), np.uint8)
    SimCLRTransformer(max_epochs=1).fit(gray).save("gray")
    assert "not on RGB images" in complaint(capsys, *select, "gray")


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
    assert "At least two images" in complaint(capsys, *argv, "--skip-broken")
    assert sorted(here.rglob("*")) == before


def test_labels_on_broken_files_only(here, capsys):
    write_csv("filled.csv", [("0.png", "red"), ("1.png", "blue")])
    break_file(here / "photos" / "1.png")
    argv = ["fit", "filled.csv", "photos", "--skip-broken", *SHORT]
    assert main(argv) == 2
    assert "one class only, 'red'" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="such names do not exist elsewhere")
def test_a_name_that_is_no_utf8(here, capsys):
    name = os.fsencode(here / "photos") + b"/\xff.png"
    try:
        os.rename(here / "photos" / "0.png", name)
    except OSError:
        pytest.skip("the file system knows no such names")
    assert "is not UTF-8" in complaint(capsys, "select", "photos", "--n-samples", "2")


def test_a_write_protected_place(here, capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_cli.tempfile, "TemporaryFile", refuse)
    said = complaint(capsys, "select", "photos", "--n-samples", "2")
    assert said == "cannot write to_label.csv: Permission denied."


def test_an_older_file_survives_a_failed_writing(here, saved, capsys, monkeypatch):
    Path("labels.csv").write_text("old")
    fit = ["fit", "filled.csv", "photos", "--steps", "2", "--quiet"]
    fit += ["--embedder", str(saved / "embedder")]

    def full(*args):
        raise OSError(28, "No space left on device", "labels.csv")

    monkeypatch.setattr(_cli.os, "replace", full)
    before = sorted(here.rglob("*"))
    assert complaint(capsys, *fit) == "labels.csv: No space left on device"
    assert Path("labels.csv").read_text() == "old"
    assert sorted(here.rglob("*")) == before


def test_interrupted(here, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    argv = ["select", "photos", "--n-samples", "2", "--image-size", "16", *SHORT]
    before = sorted(here.rglob("*"))
    # in the training, which the estimator itself ends, and elsewhere
    for place in ("sklabel.embedding._simclr._SimCLR.loss", "sklabel._cli._csv_text"):
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

    monkeypatch.setattr(_cli, "_list_images", fail)
    said = complaint(capsys, "select", "photos", status=1)
    assert "unexpected RuntimeError: first second" in said and "--traceback" in said
    with pytest.raises(RuntimeError):
        main(["select", "photos", "--traceback"])


def test_warnings_are_lines_too(capsys, monkeypatch):
    def warn(arguments):
        warnings.warn("mind\nthis", stacklevel=1)
        warnings.warn("not for users", FutureWarning, stacklevel=1)

    monkeypatch.setattr(_cli, "demo", warn)
    assert main(["demo"]) == 0
    assert capsys.readouterr().err == "sklabel: warning: mind this\n"


def test_as_a_program(here):
    """No traceback, whoever starts it and however it ends."""
    environment = {**os.environ, "PYTHONPATH": str(Path(sklabel.__file__).parents[1])}
    run = {"capture_output": True, "text": True, "env": environment}
    program = [sys.executable, "-m", "sklabel"]
    start = time.perf_counter()
    done = subprocess.run([*program, "--help"], **run, check=False)
    assert time.perf_counter() - start < 30
    assert done.returncode == 0 and done.stderr == ""
    assert all(name in done.stdout for name in ("demo", "select", "fit", "predict"))
    done = subprocess.run([*program, "fit", "x.csv", "nowhere"], **run, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "sklabel: There is no folder 'nowhere'.\n"


@pytest.mark.skipif(os.name != "posix", reason="no such signal")
def test_ctrl_c_of_a_program(here):
    environment = {**os.environ, "PYTHONPATH": str(Path(sklabel.__file__).parents[1])}
    program = [sys.executable, "-u", "-m", "sklabel", "demo"]
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
            shown += running.stderr.read(1)
        running.send_signal(signal.SIGINT)
        shown += running.stderr.read()
    assert running.returncode == 130
    assert shown.splitlines()[-1] == b"sklabel: interrupted: nothing written."
    assert b"Traceback" not in shown and not Path("sklabel-demo").exists()


# -- the demo


def test_demo(here, capsys):
    argv = ["demo", "--seeds", "2", "--n-samples", "12", "--steps", "3", *SHORT]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    # after three steps nobody is sure, which is said, and nothing else
    assert all("reached threshold=0.95" in line for line in err.splitlines())
    assert "1785 of 1797 digits" in out
    number = r"(\d\.\d{3}) \+- (\d\.\d{3})"
    for arm in ("chosen by USL", "random"):
        row = re.search(
            rf"^{arm} +(\d+\.\d) of 10 +{number} +\d+\.\d$", out, re.MULTILINE
        )
        assert row, out
        assert 1 <= float(row[1]) <= 10 and 0 <= float(row[2]) <= 1
    rows = read_csv("sklabel-demo/labels.csv")
    assert list(rows[0]) == ["image", "label", "confidence", "source", "truth"]
    assert [row["image"] for row in rows] == [str(i) for i in range(1797)]
    given = [row for row in rows if row["source"] == "given"]
    assert len(given) == 12
    assert all(r["label"] == r["truth"] and r["confidence"] == "1.0000" for r in given)
    with Image.open("sklabel-demo/chosen.png") as picture:
        assert picture.width > 400 and picture.height > 12 * 48


def test_demo_with_a_single_label_and_its_bar(here, capsys):
    argv = ["demo", "--seeds", "1", "--n-samples", "1", "--epochs", "1"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "1.0 of 10" in out and "+- -" in out
    assert "100%" in err


# -- the pictures


def pixels(picture):
    return np.asarray(picture).astype(int)


def is_color(picture, color):
    return (np.abs(pixels(picture) - color) <= 3).all(axis=2)


def test_contact_sheet_keeps_aspect_and_order(tmp_path):
    colors = [(200, 0, 0), (0, 160, 0), (0, 0, 200)]
    sizes = [(40, 10), (10, 40), (300, 300)]
    paths = []
    for i, (color, size) in enumerate(zip(colors, sizes, strict=True)):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", size, color).save(paths[-1])
    sheet = contact_sheet(paths, ["a", "b", "c"], tile=80)
    lefts = []
    for color, (width, height) in zip(colors, sizes, strict=True):
        rows, columns = np.nonzero(is_color(sheet, color))
        shape = np.array([np.ptp(rows) + 1, np.ptp(columns) + 1])
        scale = 80 / max(width, height)
        assert np.abs(shape - [height * scale, width * scale]).max() <= 1
        assert len(rows) == shape.prod()  # a full rectangle
        lefts.append(columns.min())
    assert lefts == sorted(lefts)
    # ink stands only under the pictures
    dark = (pixels(sheet).max(axis=2) < 60).nonzero()
    assert len(dark[0]) and dark[0].min() > 80


def test_contact_sheet_turns_and_flattens(tmp_path):
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (60, 20), (0, 0, 200)).save(turned, exif=exif, quality=95)
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (20, 20), (0, 160, 0, 0)).save(clear)
    gone = tmp_path / "gone.png"
    gone.write_text("no image")
    sheet = contact_sheet([turned, clear, gone], ["", "", ""], tile=60)
    rows, columns = np.nonzero(is_color(sheet, (0, 0, 200)))
    assert np.ptp(rows) > 2 * np.ptp(columns)
    assert not is_color(sheet, (0, 160, 0)).any()


@pytest.mark.parametrize("n", [1, 8, 9, 65, 700])
def test_contact_sheet_size(n):
    image = np.zeros((4, 4), np.uint8)
    sheet = contact_sheet([image] * n, ["name"] * n)
    assert max(sheet.size) <= 8100
    if n <= 64:
        assert sheet.width <= 1400


@settings(max_examples=20)
@given(st.text(), st.integers(1, 3))
def test_contact_sheet_takes_any_caption(caption, channels):
    image = np.zeros((5, 7, 3 if channels == 2 else channels), np.uint8)
    sheet = contact_sheet([image], [caption], tile=100)
    assert sheet.width == 124


def test_captions_are_cut_in_the_middle():
    from sklabel._core.display import _elide, _font

    font = _font(12)
    text = "folder/" + "x" * 100 + "_17.jpg"
    short = _elide(text, font, 120)
    assert font.getlength(short) <= 120
    assert short.startswith("fold") and short.endswith("_17.jpg") and "..." in short
    assert _elide("a\nb.jpg", font, 120) == "a b.jpg"


def test_cluster_sheet():
    images = np.zeros((6, 4, 4, 3), np.uint8)
    images[0], images[3] = (200, 0, 0), (0, 0, 200)
    images[[1, 2]], images[[4, 5]] = (250, 0, 0), (0, 0, 250)
    assignments = np.array([0, 0, 0, 1, 1, 1])
    sheet = cluster_sheet(images, [3, 0], 1 - assignments, np.arange(6), ["b", "a"])
    blue = np.nonzero(is_color(sheet, (0, 0, 200)))
    red = np.nonzero(is_color(sheet, (200, 0, 0)))
    assert blue[0].max() < red[0].min()  # in the order of asking
    for own, others in (((0, 0, 200), (0, 0, 250)), ((200, 0, 0), (250, 0, 0))):
        own, others = is_color(sheet, own), is_color(sheet, others)
        assert own.sum() == 48 * 48 and others.sum() == 2 * 48 * 48
        assert np.nonzero(own)[1].max() < np.nonzero(others)[1].min()
        assert np.nonzero(own)[0].min() == np.nonzero(others)[0].min()
    few = cluster_sheet(
        images, [3, 0], 1 - assignments, np.arange(6), ["b", "a"], n_shown=1
    )
    assert is_color(few, (250, 0, 0)).sum() == 48 * 48
