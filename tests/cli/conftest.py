"""Folders that the commands work in."""

import re
from pathlib import Path

import pytest

from sklabel.cli import main
from sklabel.embedding import SimCLRTransformer
from tests.cli._running import SHORT, color_of, complaint, write_csv, write_images


@pytest.fixture(autouse=True, scope="session")
def _cache_of_the_session(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("TORCH_HOME", raising=False)
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The user's folder for caches: a new one for every test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


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


@pytest.fixture
def wrong_input_is_refused(here, capsys, monkeypatch):
    """Return a check that a command says what is wrong, and writes nothing."""
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

    def check(argv, said):
        argv = argv.split()
        if argv[:2] == ["select", "photos"] and "--n-samples" not in argv:
            argv += ["--n-samples", "2"]
        assert re.search(said, complaint(capsys, *argv))
        assert sorted(here.rglob("*")) == before
        assert Path("filled.csv").read_bytes() == labels

    return check
