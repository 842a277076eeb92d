"""Files: written whole or not at all, read only where they are plain files."""

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sklabel._core import files
from sklabel._core.display import contact_sheet
from sklabel._core.files import open_image, read_regular, replacing
from sklabel._core.inputs import check_images
from sklabel.embedding import SimCLRTransformer

SOURCE = Path(files.__file__).parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="needs pipes and links")


def test_what_is_written_replaces_the_old_one_with_the_users_mode(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a"]
    if os.name == "posix":
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_one_and_nothing_beside(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(error):
        with replacing(path) as file:
            file.write(b"ne")
            raise error
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_with_the_path(tmp_path, monkeypatch):
    path = tmp_path / "a"
    with pytest.raises(OSError, match="No space left") as caught:
        with replacing(path) as file, open("/dev/full", "wb", 0) as full:
            monkeypatch.setattr(file, "write", full.write, raising=False)
            file.write(b"new")
    assert caught.value.filename == str(path) and not os.listdir(tmp_path)


@posix
def test_no_link_is_followed(tmp_path):
    own = tmp_path / "own"
    own.write_bytes(b"mine")
    path = tmp_path / "a"
    path.symlink_to(own)
    with replacing(path) as file:
        file.write(b"new")
    assert own.read_bytes() == b"mine" and path.read_bytes() == b"new"
    assert not path.is_symlink()


@posix
def test_the_temporary_name_is_opened_exclusively(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.write_bytes(b"mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "guessed")
    (tmp_path / ".a.guessed.partial").symlink_to(own)
    with pytest.raises(FileExistsError):
        with replacing(tmp_path / "a") as file:
            file.write(b"new")
    assert own.read_bytes() == b"mine"


def test_two_writers_do_not_meet(tmp_path):
    path, n = tmp_path / "a", 8
    ready = threading.Barrier(n)

    def write(letter):
        with replacing(path) as file:
            file.write(letter * 1000)
            ready.wait()
            file.write(letter * 1000)

    threads = [threading.Thread(target=write, args=(b"%d" % i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = path.read_bytes()
    assert len(content) == 2000 and len(set(content)) == 1
    assert os.listdir(tmp_path) == ["a"]


HALF = ".0123456789abcdef.partial"


def test_what_no_process_writes_to_goes_with_the_next_writing(tmp_path):
    left = tmp_path / f".a{HALF}"
    others = [f".b{HALF}", ".a.partial", ".a.mine.partial", f"a{HALF}", f".a.c{HALF}"]
    for name in (left.name, *others):
        (tmp_path / name).touch()
    with replacing(tmp_path / "a") as file:
        file.write(b"new")
    assert sorted(os.listdir(tmp_path)) == sorted(["a", *others])


@posix
@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_the_file_of_a_living_process_stays_and_that_of_a_killed_one_goes(
    tmp_path, end
):
    code = (
        "import sys\n"
        "from sklabel._core.files import replacing\n"
        "with replacing(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush()\n"
        "    print('ready', flush=True); sys.stdin.read()\n"
    )
    path = tmp_path / "a"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=SOURCE.parent,
    ) as running:
        assert running.stdout.readline() == b"ready\n"
        (half,) = os.listdir(tmp_path)
        os.utime(tmp_path / half, (0, 0))  # its age does not matter
        with replacing(path) as file:
            file.write(b"new")
        assert sorted(os.listdir(tmp_path)) == [half, "a"]
        getattr(running, end)()
    assert sorted(os.listdir(tmp_path)) == [half, "a"]
    with replacing(path) as file:
        file.write(b"newer")
    assert os.listdir(tmp_path) == ["a"] and path.read_bytes() == b"newer"


@pytest.mark.parametrize("has_locks", [False, True])
def test_without_locks_the_age_of_a_file_decides(tmp_path, monkeypatch, has_locks):
    old, young = tmp_path / f".a{HALF}", tmp_path / f".a{HALF.replace('0', 'f')}"
    old.touch()
    os.utime(old, (0, 0))
    young.touch()
    if has_locks and files.fcntl is not None:  # but not this file system
        monkeypatch.setattr(files.fcntl, "flock", refuse)
    else:
        monkeypatch.setattr(files, "fcntl", None)
    with replacing(tmp_path / "a") as file:
        file.write(b"new")
    assert sorted(os.listdir(tmp_path)) == [young.name, "a"]


def refuse(*args):
    raise OSError(95, "Operation not supported")


@posix
def test_a_link_of_such_a_name_is_not_followed(tmp_path):
    (tmp_path / "own").write_bytes(b"mine")
    (tmp_path / f".a{HALF}").symlink_to(tmp_path / "own")
    with replacing(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "own").read_bytes() == b"mine"


@posix
def test_an_error_of_the_system_names_the_file_not_the_partial_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    with pytest.raises(OSError) as caught:
        with replacing(tmp_path / "a") as file:
            file.write(b"new")
    assert caught.value.filename == str(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]


# -- what is no regular file


def special(folder, kind, name):
    """Make something that is no regular file, and return its path."""
    path = folder / name
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        here = os.getcwd()
        os.chdir(folder)  # the names of sockets are short
        try:
            socket.socket(socket.AF_UNIX).bind(name)
        finally:
            os.chdir(here)
    return path


KINDS = ["a pipe", "a folder", "a device", "a socket"]


@posix
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_by_name(tmp_path, kind):
    path = special(tmp_path, kind, "b.jpg")
    for read in (read_regular, open_image):
        with pytest.raises(ValueError, match=f"b.jpg.*is {kind}, not a regular file"):
            read(path)


@posix
def test_a_pipe_among_the_images_is_refused_by_name_or_left_out(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((8, 8, 3), 50 * i, np.uint8)).save(path)
    paths.append(str(special(tmp_path, "a pipe", "b.jpg")))
    for size in (8, None):
        with pytest.raises(ValueError, match="b.jpg.*is a pipe"):
            SimCLRTransformer(image_size=size, max_steps=1).fit(paths)
    with pytest.warns(UserWarning, match="1 of 5 image files.*b.jpg"):
        SimCLRTransformer(on_error="skip", max_steps=1, random_state=0).fit(paths)
    with pytest.raises(ValueError, match="is a pipe"):
        check_images(paths, [4])
    contact_sheet(paths, [""] * 5)  # shows a frame in its place


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_regular(path, limit=5) == b"12345"
    with pytest.raises(ValueError, match="larger than 4 bytes"):
        read_regular(path, limit=4)


# -- images


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_the_formats_of_photographs_are_read(tmp_path, kind):
    path = tmp_path / "image"
    Image.new("RGB", (4, 3), (200, 0, 0)).save(path, kind)
    with open_image(path) as image:
        assert image.convert("RGB").size == (4, 3)


@pytest.mark.parametrize("read", ["fit", "fit in its size", "look", "sheet"])
def test_no_image_starts_a_program(tmp_path, monkeypatch, read):
    paths = [str(tmp_path / f"{i}.jpg") for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((8, 8, 3), 50 * i, np.uint8)).save(path)
    Image.new("RGB", (8, 8)).save(paths[2], "EPS")

    def run(*args, **kwargs):
        raise AssertionError(f"a program was started: {args}")

    monkeypatch.setattr("subprocess.Popen", run)
    monkeypatch.setattr("subprocess.check_call", run)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    if read == "sheet":
        contact_sheet(paths, [""] * 3)
        return
    with pytest.raises((ValueError, OSError), match=r"2\.jpg.*|not an image"):
        if read == "look":
            check_images(paths, [2])
        else:
            size = None if read == "fit in its size" else 8
            SimCLRTransformer(image_size=size, max_steps=1).fit(paths)


def test_images_are_opened_in_one_place():
    users = {p for p in SOURCE.rglob("*.py") if "Image.open(" in p.read_text("utf-8")}
    assert users == {SOURCE / "_core" / "files.py"}
