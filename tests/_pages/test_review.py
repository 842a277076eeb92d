"""A review without a browser: corrections, confirmations, predictions written anew."""

import csv
import time

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from sklabel._pages.learning import Learner
from sklabel._pages.photographs import Photographs
from sklabel._pages.review import Issue, review_routes
from sklabel._pages.server import Guard
from sklabel._pages.session import Answer, Insight, Stale
from tests._pages._making import color_of, read, vectors, write_images
from tests._pages._serving import open_review
from tests._waiting import until

N_ROWS = 12
HEADER = ["path", "label", "confidence", "source", "predicted"]


@pytest.fixture
def review(tmp_path):
    """Return a review of twelve images: two are given, of the last nothing is known."""
    write_images(tmp_path / "photos", N_ROWS)
    rows = [
        (f"{r:05d}.png", "red", f"0.{r:02d}00", "predicted", "red") for r in range(11)
    ]
    rows[0] = ("00000.png", "red", "1.0000", "given", "red")
    rows[1] = ("00001.png", "blue", "1.0000", "given", "red")
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return open_review(tmp_path / "labels.csv", tmp_path / "photos")[0]


def lines(review):
    return {int(row["path"][:5]): row for row in read(review.store.path)}


def insight_of(labels, confidence=0.7):
    classes = sorted(set(labels))
    codes = [classes.index(label) for label in labels]
    return Insight(2, [], classes=classes, codes=codes, confidence=[confidence] * 12)


def test_what_a_page_is_told(review):
    state = review.state()
    assert state["classes"] == ["red", "blue"]
    assert state["answers"] == {0: ["red", ""], 1: ["blue", ""]}
    assert state["predictions"] == {r: ["red", r / 100] for r in range(2, 11)}
    assert state["news"] == state["issues"] == state["settled"] == []
    assert state["order"] == list(range(N_ROWS))


def test_a_run_is_corrected_as_one_change(review):
    reply = review.correct(0, [3, 5, 11], label="green")
    assert reply["changed"] == dict.fromkeys([3, 5, 11], ["green", ""])
    found = lines(review)
    assert [found[r]["source"] for r in (3, 5, 11, 4)] == ["given"] * 3 + ["predicted"]
    assert found[3]["confidence"] == "1.0000" and found[3]["predicted"] == "red"
    review.correct(1, [3], mark="cannot tell")
    assert lines(review)[3] | {"label": "", "source": "cannot tell"} == lines(review)[3]
    review.undo(2)
    review.undo(3)
    assert lines(review)[3] == {
        **{"path": "00003.png", "label": "red", "confidence": "0.0300"},
        **{"source": "predicted", "predicted": "red"},
    }
    assert review.labels == {0: "red", 1: "blue"}


def test_a_confirmed_prediction_is_given(review):
    reply = review.confirm(0, 0, [1, 4, 5, 11])
    assert reply["changed"] == {4: ["red", ""], 5: ["red", ""]}
    assert lines(review)[4]["source"] == "given"
    assert review.confirm(1, 0, [11])["changed"] == {}  # there is nothing to confirm


def test_what_the_person_has_not_seen_is_not_confirmed(review):
    review.learned(insight_of(["blue"] * 12))
    with pytest.raises(Stale):
        review.confirm(0, 0, [4])
    assert review.confirm(0, review.turn, [4])["changed"] == {4: ["blue", ""]}


def test_predictions_are_written_but_never_over_an_answer(review):
    review.correct(0, [2], label="blue")
    review.correct(1, [3], mark="none of these")
    labels = ["red"] * 6 + ["blue"] * 6
    review.learned(insight_of(labels, confidence=1.0))
    found = lines(review)
    assert [found[r]["label"] for r in range(4)] == ["red", "blue", "blue", ""]
    assert found[3]["source"] == "none of these"
    for row in range(4, 12):
        assert found[row] == {
            **{"path": f"{row:05d}.png", "label": labels[row], "confidence": "0.9999"},
            **{"source": "predicted", "predicted": labels[row]},
        }
    assert review.news == [6, 7, 8, 9, 10]  # of the last one nothing was known
    review.undo(2)
    assert (
        lines(review)[3]["label"] == "red"
        and lines(review)[3]["confidence"] == "0.9999"
    )
    review.learned(insight_of(labels))
    assert review.news == []


def test_a_given_label_that_is_taken_back_becomes_a_prediction(review):
    review.correct(0, [0])
    assert lines(review)[0]["label"] == ""
    review.learned(insight_of(["blue"] * 12))
    assert lines(review)[0]["source"] == "predicted"
    review.undo(1)
    assert lines(review)[0]["source"] == "given" and review.labels[0] == "red"


def test_a_plain_list_gets_the_columns_of_predictions(tmp_path):
    write_images(tmp_path / "photos", N_ROWS)
    path = tmp_path / "mine.csv"
    path.write_text("note;path;label\nx;00001.png;blue\ny;00002.png;\n")
    review, _ = open_review(path, tmp_path / "photos")
    review.learned(insight_of(["=red"] * 12))
    assert path.read_text().splitlines()[:4] == [
        "note;path;label;source;confidence;predicted",
        "x;00001.png;blue;given;1.0000;",
        "y;00002.png;'=red;predicted;0.7000;'=red",
        ";00000.png;'=red;predicted;0.7000;'=red",
    ]
    again, _ = open_review(path, tmp_path / "photos")
    assert again.labels == {1: "blue"}
    assert again.store.predictions[2] == ("=red", 0.7)


def test_the_next_likely_classes_go_with_their_prediction(tmp_path):
    write_images(tmp_path / "photos", N_ROWS)
    path = tmp_path / "labels.csv"
    header = [*HEADER, "label_2", "confidence_2"]
    rows = [["00001.png", "red", "0.6", "predicted", "red", "blue", "0.3"]]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    review, _ = open_review(path, tmp_path / "photos")
    review.learned(insight_of(["blue"] * 12))
    assert list(lines(review)[1].values())[1:] == (
        ["blue", "0.7000", "predicted", "blue", "", ""]
    )


def test_changes_by_hand_come_first(review):
    text = open(review.store.path).read()
    changed = text.replace("00004.png,red,0.0400,predicted", "00004.png,dog,,given")
    with open(review.store.path, "w") as file:
        file.write(changed)
    review.learned(insight_of(["blue"] * 12))
    assert review.labels[4] == "dog" and lines(review)[4]["label"] == "dog"
    assert lines(review)[5]["label"] == "blue"
    turn, version = review.turn, review.version
    text = open(review.store.path).read()
    with open(review.store.path, "w") as file:
        file.write(
            text.replace("00005.png,blue,0.7000", "00005.png,cat,0.7").replace(
                "predicted,blue\n00006", "predicted,cat\n00006"
            )
        )
    review.refresh()
    assert review.turn == turn + 1 and review.version == version
    assert review.proposal(5) == ("cat", 0.7) and "cat" in review.classes


def test_a_list_that_cannot_be_written_is_told(review, monkeypatch):
    def full(predictions):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(review.store, "predict", full)
    before = dict(review.store.predictions)
    review.learned(insight_of(["blue"] * 12))
    assert "No space left" in review.state()["trouble"]
    assert review.store.predictions == before and review.news == []


def test_an_issue_is_settled_once_the_label_is_looked_at(review):
    review.found([Issue(0, "suspicious label", "x"), Issue(1, "blurred")])
    review.found(iter([Issue(4, "dark")]))
    assert review.state()["issues"][2] == [4, "dark", ""]
    reply = review.correct(0, [1, 4], label="green")
    assert reply["settled"] == [1, 4]
    assert review.undo(1)["settled"] == []
    assert review.confirm(2, review.turn, [0])["settled"] == [0]  # it is given already
    assert review.version == 2


@pytest.mark.parametrize("rows", [[-1], [12], ["1"], [True], [None], [[1]], [1.0]])
def test_rows_that_there_are_not(review, rows):
    with pytest.raises(ValueError, match="there is no row"):
        review.correct(0, rows, label="red")
    with pytest.raises(ValueError, match="there is no row"):
        review.confirm(0, 0, rows)
    assert review.labels == {0: "red", 1: "blue"}


def test_routes(review, tmp_path):
    names = review.store.names
    learned = []
    paths = [tmp_path / "photos" / name for name in names]
    routes = review_routes(
        review, names, Photographs(paths), learn=lambda: learned.append(1)
    )
    here = "http://127.0.0.1:8123"
    client = TestClient(Guard(Starlette(routes=routes), "t", 8123), base_url=here)
    assert client.get("/?token=t").status_code == 200
    for path in ("/static/review.js", "/static/review.css", "/static/common.js"):
        found = client.get(path)
        assert found.status_code == 200 and "innerHTML" not in found.text
    assert client.get("/names").json() == names

    def post(path, **body):
        return client.post(path, json=body, headers={"origin": here})

    assert post("/correct", version=0, rows=[3], label="blue").json()["row"] == 3
    assert post("/correct", version=0, rows=[4], label="blue").status_code == 409
    alike = post("/correct", version=1, rows=[4], label="Blue").json()
    assert (alike["label"], alike["known"]) == ("Blue", "blue")
    assert post("/confirm", version=1, turn=0, rows=[5]).json()["version"] == 2
    assert post("/confirm", version=2, turn=9, rows=[6]).status_code == 409
    assert post("/correct", version=2, rows=["x"], label="a").status_code == 422
    assert post("/correct", version=2, rows=3, label="a").status_code == 400
    assert post("/learn").json() == {} and learned == [1]


def test_it_learns_after_a_batch_of_corrections_and_not_before(tmp_path):
    n = 30
    write_images(tmp_path / "photos", n)
    rows = [(f"{r:05d}.png", "red", "0.5", "predicted", "red") for r in range(n)]
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    review, _ = open_review(tmp_path / "labels.csv", tmp_path / "photos")
    learner = Learner(vectors(n), batch=6, n_asked=0)
    learner.start(review, known=review.labels)
    groups = {
        color: [r for r in range(n) if color_of(r) == color]
        for color in ("red", "green", "blue")
    }
    review.correct(0, groups["green"][:3], label="green")
    time.sleep(0.1)
    assert review.insight is None
    review.correct(1, groups["blue"][:3], label="blue")
    until(lambda: review.insight is not None)
    learner.now()
    review.confirm(2, review.turn, [])
    learner.stop()
    assert review.insight.rows == []
    labels = np.array([lines(review)[r]["label"] for r in range(n)])
    truth = np.array([color_of(r) for r in range(n)])
    assert (labels == truth)[groups["green"]].mean() > 0.8
    assert set(review.news) >= set(groups["green"][3:6])


def test_answers_keep_their_form(review):
    assert review.answers[0] == Answer("red")
