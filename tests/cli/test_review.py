"""A review corrects a list in place, and the rest is predicted anew."""

import time
from pathlib import Path

import pytest

from sklabel.cli import main
from tests._waiting import until
from tests.cli._running import SHORT, color_of, complaint, read_csv, write_csv
from tests.cli.test_label import Person

SMALL = ["--image-size", "16", *SHORT]


@pytest.fixture
def review(here, monkeypatch, capsys):
    """Return a function that runs the command while a person does something."""

    def run(argv, act):
        def wait(server):
            person = Person(server.url)
            act(person, person.state())

        monkeypatch.setattr("sklabel._pages.server.Server.wait", wait)
        assert main(["review", *argv, "--no-browser", *SMALL]) == 0
        return capsys.readouterr().out

    return run


def by_row():
    return {int(Path(row["path"]).stem): row for row in read_csv("labels.csv")}


@pytest.fixture
def labeled(here):
    """Write the labels of all images, as `fit` does."""
    given = [(f"{row}.png", color_of(f"{row}.png")) for row in range(4)]
    write_csv("given.csv", given)
    assert main(["fit", "given.csv", "photos", *SMALL]) == 0
    return by_row()


def test_corrections_are_given_and_the_rest_is_predicted_anew(labeled, review):
    def act(person, state):
        assert set(state["predictions"]) == {str(row) for row in range(4, 10)}
        assert state["insight"] is None  # fit has learned from these labels already
        # the person calls blue what is red, and the other way round
        other = {"red": "blue", "blue": "red"}
        version = 0
        for color in ("red", "blue"):
            rows = [row for row in range(4) if color_of(f"{row}.png") == color]
            reply = person.post(
                "correct", version=version, rows=rows, label=other[color]
            )
            version = reply["version"]
            assert all(by_row()[row]["label"] == other[color] for row in rows)
        found = until(lambda: person.state()["insight"])
        assert found["n_labels"] == 4
        state = person.state()
        assert state["news"] and set(state["news"]) <= set(range(4, 10))
        row = state["news"][0]
        reply = person.post("confirm", version=version, turn=state["turn"], rows=[row])
        assert str(row) in reply["changed"]

    out = review(["labels.csv", "photos", "--batch", "4"], act)
    assert "5 labels given in labels.csv (1 new, 4 changed)." in out
    found = by_row()
    assert [row["source"] for row in found.values()].count("given") == 5
    wrong = [r for r in range(10) if found[r]["label"] == color_of(f"{r}.png")]
    assert set(wrong) <= set(range(4, 10)) and len(wrong) < 3
    assert all(
        0 < float(row["confidence"]) < 1 and row["predicted"] == row["label"]
        for row in found.values()
        if row["source"] == "predicted"
    )
    # the list is as any other
    assert main(["report", "labels.csv", "photos", "--quiet", *SMALL]) == 0


def test_what_to_look_at_comes_while_the_page_is_shown(labeled, review):
    content = Path("photos/1.png").read_bytes()
    Path("photos/9.png").write_bytes(content)

    def act(person, state):
        def copies():
            issues = person.state()["issues"]
            return [issue for issue in issues if issue[1] == "exact copy"]

        assert until(copies) == [[9, "exact copy", "of 1.png"]]

    review(["labels.csv", "photos"], act)


def test_a_list_without_predictions_gets_them_at_once(here, review):
    write_csv("mine.csv", [(f"{row}.png", color_of(f"{row}.png")) for row in range(4)])

    def act(person, state):
        until(lambda: len(person.state()["predictions"]) == 10)

    out = review(["mine.csv", "photos"], act)
    assert "4 labels given in mine.csv." in out
    found = read_csv("mine.csv")
    assert len(found) == 10
    assert [row["source"] for row in found] == ["given"] * 4 + ["predicted"] * 6


def test_nothing_is_written_where_nothing_is_changed(labeled, review):
    before = Path("labels.csv").read_bytes()
    review(["labels.csv", "photos"], lambda person, state: time.sleep(0.3))
    assert Path("labels.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["photos"], "CSV is missing"),
        (["photos", "given.csv"], "the CSV comes first"),
        (["given.csv", "given.csv", "photos"], "written into one list, but 2 are"),
        (["nothing.csv", "photos"], "nothing.csv"),
        (["given.csv", "photos", "--port", "99999"], "more than 65535"),
    ],
)
def test_wrong_input(here, capsys, argv, told):
    write_csv("given.csv", [("1.png", "red"), ("2.png", "blue")])
    assert told in complaint(capsys, "review", *argv)


@pytest.mark.parametrize("place", ["outputs.show", "Learner.start", "Server.wait"])
def test_the_end_comes_at_any_moment(labeled, capsys, monkeypatch, place):
    def interrupt(*args, **kwargs):
        patched.undo()  # what follows is as usual
        raise KeyboardInterrupt

    where = {
        "outputs.show": "sklabel.cli.pages.outputs.show",
        "Learner.start": "sklabel._pages.learning.Learner.start",
        "Server.wait": "sklabel._pages.server.Server.wait",
    }
    with monkeypatch.context() as patched:
        patched.setattr(where[place], interrupt)
        argv = ["review", "labels.csv", "photos", "--no-browser", *SMALL]
        assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "labels.csv" in out and "nothing written" not in err
