"""What is not there or must not be read: a sentence with the path and the remedy."""

import errno
import os
from pathlib import Path

import pytest

from sklabel._core.files import explained
from sklabel.datasets import load_image_folder
from tests.cli._running import complaint, write_csv, write_images

COMMANDS = [
    "fit {} photos",
    "select photos --n-samples 2 --labeled {}",
    "label {} photos",
    "review {} photos",
    "report {} photos",
    "export {} photos --to csv",
    "evaluate {} photos --predictions filled.csv",
    "evaluate filled.csv photos --predictions {}",
    "import {}",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_list_that_cannot_be_read(here, capsys, command):
    Path("dead.csv").symlink_to("gone.csv")
    Path("loop.csv").symlink_to("loop.csv")
    Path("empty.csv").write_text("\ufeff \n", encoding="utf-8")
    told = {"gone.csv": "gone.csv does not exist: correct the path."}
    if not command.startswith(("label", "review")):  # which write into the list
        told["dead.csv"] = (
            "dead.csv is a link to gone.csv, which does not exist: remove the link, or "
            "restore that file."
        )
        told["filled.csv/x"] = (
            "filled.csv/x cannot exist, because filled.csv is a file, not a folder: "
            "correct the path."
        )
        told["loop.csv"] = (
            "loop.csv: Too many levels of symbolic links: remove the link that leads "
            "to itself."
        )
    for path, sentence in told.items():
        assert complaint(capsys, *command.format(path).split()) == sentence
    said = complaint(capsys, *command.format("empty.csv").split())
    assert said.startswith("empty.csv is empty: ")


@pytest.mark.parametrize("command", ["fit filled.csv {}", "select {}", "cluster {}"])
def test_a_folder_that_cannot_be_read(here, capsys, command):
    Path("dead").symlink_to("gone")
    for path, sentence in {
        "gone": "There is no folder 'gone': correct the path.",
        "dead": "'dead' is a link to gone, which does not exist: remove the link, or "
        "restore that file.",
        "filled.csv/x": "'filled.csv/x' cannot exist, because filled.csv is a file, "
        "not a folder: correct the path.",
    }.items():
        assert complaint(capsys, *command.format(path).split()) == sentence


def test_an_image_that_is_a_dead_link(here, capsys):
    Path("photos/dead.png").symlink_to("gone.png")
    argv = "fit filled.csv photos --embedder simclr --image-size 16 --quiet".split()
    said = complaint(capsys, *argv)
    assert "photos/dead.png (it is a link to gone.png, which does not exist)" in said


def test_a_list_and_folders_of_somebody_else(here, capsys, monkeypatch):
    """Permissions do not bind root, so the system's answer is put in their place."""
    write_images(here / "photos" / "sub", 2)
    hidden = {os.path.join("photos", "sub"), "hidden"}
    scandir, read = os.scandir, Path.read_bytes

    def guarded(path):
        if os.fspath(path) in hidden:
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    def refused(path):
        if path.name == "secret.csv":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(os, "scandir", guarded)
    monkeypatch.setattr(Path, "read_bytes", refused)
    denied = ": Permission denied: change its permissions (chmod), or give another path"
    said = complaint(capsys, "fit", "filled.csv", "hidden")
    assert said == f"'hidden'{denied}."
    with pytest.warns(UserWarning, match=r"Left out with its images: photos/sub: Perm"):
        assert len(load_image_folder("photos", labels=None).paths) == 10
    hidden.clear()
    assert complaint(capsys, "fit", "secret.csv", "photos") == f"secret.csv{denied}."


def test_every_error_of_a_path_has_a_remedy(tmp_path):
    for number in vars(errno).values():
        if isinstance(number, int):
            error = OSError(number, os.strerror(number), str(tmp_path / "x"))
            text = explained(error)
            assert text.startswith(str(tmp_path / "x")) and text.endswith(".")
            assert ": " in text and "Errno" not in text


@pytest.mark.parametrize(
    "cell", ["IMG_9.JPG", "img_9.jpeg", "PHOTOS/img_9.jpg", "photos\\IMG_9.jpg", "{}"]
)
def test_a_path_in_other_letters_or_with_another_ending(here, capsys, cell):
    Path("photos/9.png").rename("photos/Img_9.jpg")
    cell = cell.format(here / "Photos" / "img_9.png")
    write_csv("l.csv", [("0.png", "red"), ("1.png", "blue"), (cell, "blue")])
    said = complaint(capsys, "fit", "l.csv", "photos")
    assert said.startswith("l.csv, line 4, names ")
    assert said.endswith("Did you mean 'Img_9.jpg'?")
    said = complaint(capsys, "import", "l.csv", "--folder", "photos", "--out", "o.csv")
    assert "Did you mean 'Img_9.jpg'?" in said
