"""What the commands did not write, or what was changed since, is never replaced."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import sklabel
from sklabel._core import files
from sklabel.cli import embedders, main, outputs
from tests.cli._running import complaint, read_csv, write_csv


def contents(folder):
    """Return the bytes of all files below a folder."""
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def argv(here, saved):
    """Return the words of short commands by name."""
    emb, model = saved / "embedder", saved / "model"
    quick = ["--embedder", emb, "--quiet"]
    commands = {
        "select": ["select", "photos", "--n-samples", 3, *quick],
        "fit": ["fit", "filled.csv", "photos", "--steps", 2, *quick],
        "predict": ["predict", model, "photos", "--quiet", "--out", "p.csv"],
        "demo": ["demo", "--seeds", 1, "--n-samples", 1, "--epochs", 1, "--quiet"],
    }
    return {name: [str(word) for word in words] for name, words in commands.items()}


@pytest.fixture
def refused(here, capsys, monkeypatch):
    """Return a check that a command is refused before it works, and writes nothing."""

    def check(argv, named, remedy="--overwrite"):
        before = contents(here)
        capsys.readouterr()
        with monkeypatch.context() as patch:
            for work in ("models.load_classifier", "embedders.embed"):
                patch.setattr(
                    f"sklabel.cli.{work}", lambda *_: pytest.fail("it has begun")
                )
            said = complaint(capsys, *argv)
        assert str(named) in said and remedy in said
        assert contents(here) == before

    return check


STRANGE = {
    "text": b"my notes\n",
    "labels": b"path,label\n0.png,red\n",
    "unfilled": b"path,label\n0.png,\n",  # not by us: the choice may be a person's
    "empty": b"",
    "picture": b"\x89PNG\r\n\x1a\n",
    "pipe": None,
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize(
    "command, more, path",
    [
        ("select", [], "to_label.csv"),
        ("select", [], "to_label.png"),
        ("select", ["--out", "holiday.csv"], "holiday.png"),
        ("select", ["--sheet", "a.jpg"], "a.jpg"),
        ("fit", [], "labels.csv"),
        ("fit", ["--out", "b.csv"], "b.csv"),
        ("predict", [], "p.csv"),
        ("demo", [], "sklabel-demo/labels.csv"),
        ("demo", [], "sklabel-demo/chosen.png"),
    ],
)
def test_a_file_of_somebody_else_is_not_replaced(
    argv, refused, kind, command, more, path
):
    Path(path).parent.mkdir(exist_ok=True)
    if STRANGE[kind] is not None:
        Path(path).write_bytes(STRANGE[kind])
        refused(argv[command] + more, path)
    elif hasattr(os, "mkfifo"):
        os.mkfifo(path)
        refused(argv[command] + more, path, "not a file")


def edit(row):
    row["label"] = "mine"


def test_own_outputs_are_replaced_until_somebody_changes_them(here, argv, refused):
    for command in ("select", "fit", "predict"):
        assert main(argv[command]) == 0
    first = contents(here)
    for command in ("select", "fit", "predict"):
        assert main(argv[command]) == 0
    assert contents(here) == first
    more = ["--seed", "3"]  # another run of the command is fine, too
    assert main(argv["select"] + more) == main(argv["fit"] + more) == 0
    # of another command
    refused([*argv["predict"], "--out", "labels.csv"], "labels.csv")
    refused([*argv["fit"], "--out", "to_label.csv"], "to_label.csv")
    refused([*argv["select"], "--out", "p.csv"], "p.csv")
    for command, path in [
        ("select", "to_label.csv"),
        ("fit", "labels.csv"),
        ("predict", "p.csv"),
    ]:
        rows = read_csv(path)
        edit(rows[0])
        write_csv(path, [list(row.values()) for row in rows], list(rows[0]))
        refused(argv[command], path)
        kept = Path(path).read_bytes()
        assert main([*argv[command], "--overwrite"]) == 0
        assert Path(path).read_bytes() != kept
        assert main(argv[command]) == 0
    with Image.open("to_label.png") as sheet:
        drawn, kept = sheet.copy(), sheet.info["sklabel"]
    ImageDraw.Draw(drawn).line((0, 0, 50, 50), "red")
    drawn.info["sklabel"] = kept
    about = __import__("PIL.PngImagePlugin", fromlist=["PngInfo"]).PngInfo()
    about.add_text("sklabel", kept)  # a program that keeps what it does not know
    drawn.save("to_label.png", pnginfo=about)
    refused(argv["select"], "to_label.png")


def test_copied_outputs_are_still_ours(here, argv, refused):
    assert main(argv["fit"]) == 0
    shutil.copyfile("labels.csv", "moved.csv")
    assert main([*argv["fit"], "--out", "moved.csv"]) == 0


def test_models_of_others_are_not_replaced(here, argv, refused, saved):
    model = [*argv["fit"], "--model", "m"]
    keep = [*argv["select"], "--save-embedder", "e"]
    assert main(model) == main(model) == main(keep) == main(keep) == 0
    refused([*argv["fit"], "--model", "e"], "e")  # of another command
    refused([*argv["select"], "--save-embedder", "m"], "m")
    refused([*argv["fit"], "--embedder", "e", "--model", "e"], "e")
    sklabel.load("m").save("m")  # a person has saved it again
    refused(model, "m")
    before = contents(Path("m"))
    assert main([*model, "--overwrite"]) == 0
    assert contents(Path("m")).keys() == before.keys()
    assert main(model) == 0
    Path("mine").mkdir()
    for name in ("estimator.json", "weights.safetensors", "notes.txt"):
        Path("mine", name).write_text("{}")
        refused([*argv["fit"], "--model", "mine"], "mine")
    Path("mine", "estimator.json").unlink()
    refused([*argv["fit"], "--model", "mine"], "mine")
    assert main([*argv["fit"], "--model", "mine", "--overwrite"]) == 0
    assert Path("mine", "weights.safetensors").read_text() == "{}"
    Path("new").mkdir()
    Path("new", ".DS_Store").touch()
    assert main([*argv["fit"], "--model", "new"]) == 0


def test_a_model_that_was_being_written_when_it_was_killed(here, argv):
    model = [*argv["fit"], "--model", "m"]
    assert main(model) == 0
    before = contents(Path("m"))
    Path("m", "estimator.json").unlink()  # it comes last
    Path("labels.csv").unlink()
    assert main(model) == 0
    assert contents(Path("m")).keys() == before.keys()


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_the_folder_of_the_photographs_is_no_output(argv, refused, overwrite):
    for command, option in [
        ("fit", "--model"),
        ("fit", "--checkpoint"),
        ("select", "--save-embedder"),
        ("select", "--checkpoint"),
    ]:
        words = [*argv[command], option, "./photos", *overwrite]
        refused(words, "photos", "give another")
    words = [*argv["select"], "--out", "photos/a.csv", *overwrite]
    refused(words, "photos", "among the images")


def test_a_demo_goes_into_a_new_folder(here, argv, refused):
    demo = argv["demo"]
    refused([*demo, "--out", "photos"], "photos", "new folder")
    refused([*demo, "--out", "."], ".", "new folder")


def test_two_outputs_of_one_name(argv, refused):
    refused([*argv["fit"], "--out", "a", "--model", "a"], "a", "give two places")
    refused(
        [*argv["select"], "--save-embedder", "a", "--checkpoint", "./a"], "a", "two"
    )
    write_csv("mine.csv", [("0.png", "red")])
    words = [*argv["select"], "--labeled", "mine.csv", "--out", "mine.csv"]
    refused([*words, "--overwrite"], "mine.csv", "give another")
    words = ["fit", "mine.csv", *argv["fit"][1:], "--out", "mine.csv"]
    refused(words, "mine.csv", "give another")


def test_what_is_changed_meanwhile_is_kept(here, argv, capsys, monkeypatch):
    embed = embedders.embed
    for command, paths in [
        ("select", ["to_label.csv", "to_label.png"]),
        ("fit", ["labels.csv"]),
    ]:
        assert main(argv[command]) == 0

        def and_a_person_saves(files, args, paths=paths):
            for path in paths:
                Path(path).write_bytes(b"mine")
            return embed(files, args)

        with monkeypatch.context() as patch:
            patch.setattr(embedders, "embed", and_a_person_saves)
            assert main(argv[command]) == 0
        said = capsys.readouterr().err
        for path in map(Path, paths):
            other = path.with_name(f"{path.stem}-2{path.suffix}")
            assert path.read_bytes() == b"mine" and other.exists()
            assert f"{path} was changed during the run" in said and str(other) in said


# -- disks


def test_a_write_protected_place(here, capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", refuse)
    said = complaint(capsys, "select", "photos", "--n-samples", "2")
    assert said == (
        "cannot write to_label.csv: Permission denied: change its permissions (chmod), "
        "or give another path."
    )
    write_csv("l.csv", [("0.png", "red"), ("1.png", "blue")])
    for more in (["--model", "m"], ["--checkpoint", "c"]):
        with monkeypatch.context() as patch:
            patch.setattr(outputs, "_check_writable", lambda path: None)
            said = complaint(capsys, "fit", "l.csv", "photos", *more)
        assert said.startswith(f"cannot write {more[1]}: Permission denied: change its")


@pytest.mark.parametrize("at", range(4))
def test_all_outputs_or_none(here, argv, capsys, monkeypatch, at):
    """The disk is full at one of the files of a command."""
    before, opened = contents(here), []
    new_partial = files._new_partial

    def full(path):
        opened.append(path)
        file = new_partial(path)
        if len(opened) == at + 1:
            file.write = no_space
        return file

    monkeypatch.setattr(files, "_new_partial", full)
    said = complaint(capsys, *argv["select"], "--save-embedder", "e")
    assert said.startswith(f"{opened[at]}: No space left on device: free some space")
    assert contents(here) == before and not Path("e").exists()


def no_space(content):
    raise OSError(28, "No space left on device")


@pytest.mark.skipif(os.name != "posix", reason="no such limit")
@pytest.mark.parametrize(
    "more, limit, named",
    [
        (["--checkpoint", "state"], 4096, "state"),
        (["--model", "m"], 4096, "m"),
        ([], 200, "labels.csv"),
    ],
)
def test_a_quota_is_told_with_the_path(here, argv, capsys, more, limit, named):
    import resource

    before = contents(here)
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, kept[1]))
    try:
        status = main([*argv["fit"], *more])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    last = capsys.readouterr().err.splitlines()[-1]
    assert status == 2 and last.startswith(f"sklabel: {named}")
    assert last.endswith(
        "File too large: give a place that takes larger files (see ulimit -f)."
    )
    assert contents(here) == before and not Path("m").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_printing_to_a_full_disk(here, argv, capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        status = main(argv["predict"][:-2])
        monkeypatch.undo()
    assert status == 2
    said = capsys.readouterr().err
    assert said == (
        "sklabel: standard output: No space left on device: free some space, or give "
        "another place.\n"
    )


def test_what_a_killed_run_left_goes_with_the_next(here, argv):
    left = [
        ".labels.csv.0123456789abcdef.partial",
        "m/.estimator.json.0123456789abcdef",
    ]
    left[1] += ".partial"
    Path("m").mkdir()
    for name in left:
        Path(name).write_text("half")
    assert main([*argv["fit"], "--model", "m"]) == 0
    assert not any(Path(name).exists() for name in left)
    assert json.loads(Path("m/estimator.json").read_text())["written_by"]
