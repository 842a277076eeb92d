"""Labels from the browser are in the CSV, and the same command continues."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from sklabel._pages.learning import Learner
from sklabel.cli import main
from tests.cli._running import SHORT, complaint, read_csv, write_csv

SMALL = ["--image-size", "16", *SHORT]


class Person:
    """A person with a browser."""

    def __init__(self, url):
        self.client = httpx.Client(follow_redirects=True)
        assert self.client.get(url).status_code == 200
        self.here = url.partition("/?")[0]

    def state(self):
        return self.client.get(f"{self.here}/state").json()

    def post(self, path, **body):
        headers = {"origin": self.here}
        found = self.client.post(f"{self.here}/{path}", json=body, headers=headers)
        assert found.status_code == 200, found.text
        return found.json()


@pytest.fixture
def label(here, monkeypatch, capsys):
    """Return a function that runs the command while a person does something."""

    def run(argv, act):
        seen = []

        def wait(server):
            person = Person(server.url)
            seen.append(person.state())
            act(person, seen[0])

        monkeypatch.setattr("sklabel._pages.server.Server.wait", wait)
        assert main(["label", *argv, "--no-browser", *SMALL]) == 0
        return seen[0], capsys.readouterr().out

    return run


def test_a_folder_is_labeled_and_the_same_command_continues(label):
    def first(person, state):
        version = 0
        for row in state["order"][:3]:
            text = "red" if row % 2 else "blue"
            person.post("answer", version=version, row=row, label=text)
            version += 1
        person.post("answer", version=3, row=state["order"][3], mark="cannot tell")

    state, out = label(["photos", "--n-samples", "6"], first)
    assert len(state["order"]) == 6 and state["answers"] == {}
    assert state["about"]["title"] == "photos"
    assert "3 labels in to_label.csv" in out and "; without an answer: 2." in out
    then = re.search("Then: (.*)", out)[1]
    assert then == (
        "sklabel fit to_label.csv photos --embedder simclr --epochs 1 --image-size 16"
    )
    assert then == state["about"]["next"]
    marks = [row["source"] for row in read_csv("to_label.csv")]
    assert marks == ["given"] * 3 + ["cannot tell", "", ""]

    state, out = label(["photos"], lambda *_: None)
    assert [row for row in state["order"] if str(row) in state["answers"]] == (
        state["order"][:4]
    )
    assert main([*then.split()[1:], "--quiet"]) == 0


def test_a_list_is_labeled_in_its_order_and_stays_what_it_was(label):
    write_csv(
        "mine.csv",
        [("a", "7.png", "red"), ("b", "2.png", "")],
        "note path label".split(),
    )

    def act(person, state):
        assert state["classes"] == ["green", "red"]
        person.post("answer", version=0, row=2, label="=blue")
        person.post("answer", version=1, row=5, label="red")  # not in the list

    state, out = label(["mine.csv", "photos", "--class", "green"], act)
    assert state["order"] == [7, 2]
    assert Path("mine.csv").read_text() == (
        "note,path,label\na,7.png,red\nb,2.png,'=blue\n,5.png,red\n"
    )
    assert "3 labels in mine.csv: green 0, red 2, =blue 1." in out
    assert not Path("to_label.csv").exists()


def test_names_of_classes_that_look_like_a_missing_one(label):
    write_csv("mine.csv", [("7.png", "NA"), ("2.png", "todo"), ("3.png", "")])

    def act(person, state):
        assert state["answers"] == {"7": ["NA", ""]}
        person.post("answer", version=0, row=3, label="NA")

    argv = ["mine.csv", "photos", "--keep-label", "NA", "--unlabeled", "todo"]
    _, out = label(argv, act)
    assert "--keep-label NA" in out and "--unlabeled todo" in out


@pytest.mark.parametrize(
    "argv, said",
    [
        ("label nowhere", "There is no folder 'nowhere'"),
        ("label filled.csv", "FOLDER is missing"),
        ("label photos filled.csv", "the CSV comes first.*sklabel label filled.csv"),
        ("label a.csv b.csv photos", "one CSV and one folder"),
        ("label nothing.csv photos", "nothing.csv is empty: "),
        ("label stranger.csv photos", "99.png.*no such image"),
        ("label photos --out twice.csv", "two labels for 0.png"),
        ("label filled.csv photos --out new.csv", "leave one of them out"),
        ("label photos --out no/such.csv", "cannot write no/such.csv"),
        ("label photos --port 0", "--port.*at least 1"),
        ("label photos --port 70000", "more than 65535"),
        ("label photos --batch 0", "--batch.*at least 1"),
        ("label empty", "No image found"),
        ("label single", "has only one image"),
    ],
)
def test_wrong_input(wrong_input_is_refused, argv, said):
    wrong_input_is_refused(argv, said)


def test_what_is_missing_is_named(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    said = complaint(capsys, "label", "photos")
    assert 'pip install "sklabel[label]"' in said


def test_ctrl_c_is_the_way_to_end(label, monkeypatch):
    write_csv("mine.csv", [("7.png", ""), ("2.png", "")])

    def act(person, state):
        person.post("answer", version=0, row=7, label="cat")
        raise KeyboardInterrupt

    _, out = label(["mine.csv", "photos"], act)
    assert "1 label in mine.csv: cat 1; without an answer: 1. Then: sklabel fit" in out


def test_a_kill_loses_nothing(here, label):
    write_csv("mine.csv", [("7.png", ""), ("2.png", "")])
    argv = [sys.executable, "-m", "sklabel", "label", "mine.csv", "photos"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [*argv, "--no-browser", *SMALL], stdout=subprocess.PIPE, text=True, env=env
    )
    url = re.search(r"http://\S+", process.stdout.readline())[0]
    Person(url).post("answer", version=0, row=7, label="cat")
    process.kill()
    process.communicate()
    assert Path("mine.csv").read_text() == "path,label\n7.png,cat\n2.png,\n"
    state, _ = label(["mine.csv", "photos"], lambda *_: None)
    assert state["answers"] == {"7": ["cat", ""]}


@pytest.mark.parametrize("place", ["outputs.show", "Learner.start", "Server.wait"])
def test_the_end_comes_at_any_moment(here, capsys, monkeypatch, place):
    write_csv("l.csv", [("0.png", "red"), ("1.png", "")])
    stopped = []

    def interrupt(*args):
        monkeypatch.undo()  # what follows is as usual
        monkeypatch.chdir(here)
        stop = Learner.stop
        monkeypatch.setattr(
            Learner, "stop", lambda self: stopped.append(1) or stop(self)
        )
        raise KeyboardInterrupt

    where = {
        "outputs.show": "sklabel.cli.pages.outputs.show",
        "Learner.start": "sklabel._pages.learning.Learner.start",
        "Server.wait": "sklabel._pages.server.Server.wait",
    }
    monkeypatch.setattr(where[place], interrupt)
    assert main(["label", "l.csv", "photos", "--no-browser", *SMALL]) == 0
    out, err = capsys.readouterr()
    assert "1 label in l.csv: red 1; without an answer: 1. Then: sklabel fit" in out
    assert "nothing written" not in err and stopped


def test_a_pipe_is_no_list(here, capsys):
    os.mkfifo("l.csv")
    assert "l.csv: it is not a file" in complaint(capsys, "label", "l.csv", "photos")


def test_the_summary_counts_what_others_have_written(label):
    write_csv("l.csv", [("0.png", "red"), ("1.png", "")])

    def act(person, state):
        write_csv("l.csv", [("0.png", "red"), ("1.png", "blue")])

    _, out = label(["l.csv", "photos"], act)
    assert "2 labels in l.csv: red 1, blue 1." in out


@pytest.mark.parametrize("name", ["", "none", "x" * 200])
def test_a_class_that_is_none_is_told_before_the_work(here, capsys, monkeypatch, name):
    monkeypatch.setattr("sklabel.cli.inputs.list_images", lambda *_: pytest.fail("no"))
    said = complaint(capsys, "label", "filled.csv", "photos", "--class", name)
    assert "class" in said


def test_the_right_order_of_label_keeps_its_options(here, capsys):
    said = complaint(capsys, "label", "photos", "filled.csv", "--port", "8000")
    assert said.endswith("folder: sklabel label filled.csv photos --port 8000")
