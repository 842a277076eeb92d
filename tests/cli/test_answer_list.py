"""A list that takes answers: nothing of it is lost, and no other command is misled."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklabel._pages.session import MARKS, Answer, Session, Stale
from sklabel.cli import inputs, lists, tables
from sklabel.cli.answer_list import AnswerList
from tests._pages.test_session import names, rows, steps, take
from tests.cli._running import write_csv, write_images


class Args:
    label_column, path_column, path_prefix = "label", "path", None
    unlabeled, keep_label = [], []


def opened(path, folder="photos", args=Args):
    files = inputs.list_images(folder)
    return AnswerList(path, files, list(files), folder, args)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("photos"))


def test_answers_are_what_other_commands_read(here):
    write_csv("list.csv", [(f"{i}.png", "") for i in (4, 2, 0)])
    answers = opened("list.csv")
    assert answers.listed() == [4, 2, 0]
    answers.write({4: Answer("=cat"), 2: Answer(None, MARKS[0])})
    answers.write({7: Answer("dog")})
    assert Path("list.csv").read_text() == (
        "path,label,source\n4.png,'=cat,given\n2.png,,cannot tell\n0.png,,\n"
        "7.png,dog,given\n"
    )
    assert opened("list.csv").read() == {
        4: Answer("=cat"),
        2: Answer(None, MARKS[0]),
        7: Answer("dog"),
    }
    given = lists.read(["list.csv"], inputs.list_images("photos"), "photos", Args).given
    assert given == {"4.png": "=cat", "7.png": "dog"}


@given(steps, st.dictionaries(rows, names, max_size=3))
def test_any_steps_leave_the_list_as_the_session(photos, tmp_path_factory, steps, old):
    path = tmp_path_factory.mktemp("list") / "list.csv"
    write_csv(path, [(f"{i}.png", tables.escape(old.get(i, ""))) for i in range(4)])
    session = Session(6, range(6), opened(path, photos))
    for step in steps:
        take(session, *step)
    assert opened(path, photos).read() == session.answers
    while session.state()["can_undo"]:
        session.undo(session.version)
    found = {row: answer.label for row, answer in opened(path, photos).read().items()}
    assert found == {row: label for row, label in old.items() if row < 4}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "sep=;"])
def test_everything_else_stays_as_it_is(here, encoding, newline, start):
    lines = [start] if start else []
    lines += ["note;path;label", "'=1;0.png;", "-5;1.png;", '"a;b";2.png;Grün', ""]
    Path("list.csv").write_bytes(newline.join(lines).encode(encoding))
    opened("list.csv").write({1: Answer("blau; hell")})
    lines[-3] = '-5;1.png;"blau; hell"'
    assert Path("list.csv").read_bytes() == newline.join(lines).encode(encoding)


def test_predictions_are_open_and_come_back(here):
    entries = [
        lists.predicted_entry("0.png", "red", "0.9000"),
        lists.given_entry("1.png", "blue", "blue"),
    ]
    content = tables.as_marked("fit", *lists.rows(entries))
    Path("list.csv").write_bytes(content)
    answers = opened("list.csv")
    assert answers.read() == {1: Answer("blue")}
    answers.write({0: Answer("green")})
    assert "0.png,green,1.0000,given,red\n" in Path("list.csv").read_text()
    answers.write({0: None, 1: None})
    text = Path("list.csv").read_text()
    assert "0.png,red,0.9000,predicted,red\n1.png,,,,blue\n" in text
    assert not tables.is_unchanged(Path("list.csv").read_bytes(), "fit")


def test_changes_by_hand_are_noticed_and_kept(here):
    write_csv("list.csv", [("0.png", ""), ("1.png", "")])
    session = Session(10, range(10), opened("list.csv"))
    session.answer(0, 0, label="cat")
    write_csv("list.csv", [("0.png", "by hand"), ("1.png", ""), ("5.png", "more")])
    with pytest.raises(Stale):
        session.answer(1, 1, label="dog")
    assert session.labels == {0: "by hand", 5: "more"}
    session.answer(2, 1, label="dog")
    assert "0.png,by hand\n1.png,dog\n5.png,more" in Path("list.csv").read_text()


def test_a_change_in_the_very_moment_is_kept(here, monkeypatch):
    write_csv("list.csv", [("0.png", "")])
    answers = opened("list.csv")
    seen = iter([False, True, True])
    monkeypatch.setattr(answers, "changed", lambda: next(seen))
    session = Session(10, range(10), answers)
    before = Path("list.csv").read_bytes()
    with pytest.raises(Stale):
        session.answer(0, 0, label="cat")
    assert Path("list.csv").read_bytes() == before and os.listdir() == os.listdir(here)


def test_a_list_that_has_become_unreadable_is_not_overwritten(here):
    write_csv("list.csv", [("0.png", "")])
    session = Session(10, range(10), opened("list.csv"))
    Path("list.csv").write_text('path,label\n0.png,"half a li')
    for _ in range(2):
        with pytest.raises(ValueError, match="list.csv is not a CSV"):
            session.answer(0, 0, label="cat")
    assert Path("list.csv").read_text() == 'path,label\n0.png,"half a li'


def test_a_list_that_is_gone_is_written_anew(here):
    write_csv("list.csv", [("0.png", "red"), ("1.png", "")])
    session = Session(10, range(10), opened("list.csv"))
    os.unlink("list.csv")
    session.answer(0, 1, label="cat")
    assert Path("list.csv").read_text() == "path,label\n0.png,red\n1.png,cat\n"


def test_a_full_disk_changes_nothing(here, monkeypatch):
    write_csv("list.csv", [("0.png", ""), ("1.png", "")])
    answers = opened("list.csv")

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("sklabel.cli.answer_list.replacing", full)
        with pytest.raises(OSError, match="No space"):
            answers.write({0: Answer("lost")})
    answers.write({1: Answer("cat")})
    assert Path("list.csv").read_text() == "path,label\n0.png,\n1.png,cat\n"


def test_a_link_stays_a_link(here):
    write_csv("real.csv", [("0.png", "")])
    os.symlink("real.csv", "list.csv")
    opened("list.csv").write({0: Answer("cat")})
    assert os.path.islink("list.csv") and "0.png,cat" in Path("real.csv").read_text()


def test_two_who_write_at_the_same_time_lose_nothing(here):
    write_csv("list.csv", [("9.png", "")])

    def label(own):
        answers = opened("list.csv")
        for i in range(30):
            while True:
                try:
                    answers.write({own[i % 4]: Answer(f"{own[0]}-{i}")})
                    break
                except Stale:
                    answers.read()
            found = lists.read(["list.csv"], answers.files, "photos", Args).given
            assert found[f"{own[i % 4]}.png"] == f"{own[0]}-{i}"

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(label, own) for own in ((0, 1, 2, 3), (4, 5, 6, 7))]:
            done.result()
    assert len(opened("list.csv").read()) == 8


def test_a_list_that_another_program_keeps_locked(here, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr("sklabel._core.files._PATIENCE", 0.05)
    write_csv("list.csv", [("0.png", "")])
    answers = opened("list.csv")
    with open("list.csv") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="list.csv is locked by another"):
            answers.write({0: Answer("cat")})
    answers.write({0: Answer("dog")})
    assert "dog" in Path("list.csv").read_text()


def test_a_pipe_in_the_place_of_the_list(here):
    write_csv("list.csv", [("0.png", "")])
    session = Session(10, range(10), opened("list.csv"))
    os.unlink("list.csv")
    os.mkfifo("list.csv")
    with pytest.raises(ValueError, match="is a pipe"):
        session.answer(0, 0, label="cat")
    os.unlink("list.csv")
    session.answer(0, 0, label="cat")
    assert Path("list.csv").read_text() == "path,label\n0.png,cat\n"
