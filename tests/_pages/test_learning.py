"""What is learned while a person labels: an estimate, proposals, what to ask next."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklabel._pages.learning import Learner, expected_gain, learn
from sklabel._pages.session import CANNOT_TELL, Session
from tests._pages._making import COLORS, color_of, vectors
from tests._waiting import until

N_ROWS = 60
sizes = st.integers(10, 400)
shares = st.floats(0.02, 0.98)


@given(sizes, sizes, shares, shares, st.integers(1, 200))
def test_a_gain_is_positive_and_less_than_what_is_wrong(n, more_n, a, b, more):
    gain = expected_gain([n, n + more_n], [a, b], more)
    assert 0 < gain < 1 - b
    assert gain < expected_gain([n, n + more_n], [a, b], more + 50)


def test_a_gain_worked_out_by_hand():
    # one number says nothing of the way: the error falls by the fourth root
    assert expected_gain([40], [0.6], 40) == pytest.approx(0.4 * (1 - 2**-0.25))
    # exactly on that way
    accuracies = [0.6, 1 - 0.4 * 2**-0.25]
    error = 1 - accuracies[1]
    gain = expected_gain([40, 80], accuracies, 80)
    assert gain == pytest.approx(error * (1 - 2**-0.25))


def test_without_two_classes_the_data_are_covered():
    Z = vectors(N_ROWS)
    found = learn(Z, {}, answered=[5])
    assert found.accuracy is None and len(found.codes) == 0
    assert 5 not in found.rows and len(set(found.rows)) == N_ROWS - 1
    assert {color_of(row) for row in found.rows[:3]} == set(COLORS)
    assert learn(Z, {0: "red", 1: "red"}).accuracy is None


def test_what_few_labels_tell():
    Z = vectors(N_ROWS)
    labels = {row: color_of(row) for row in range(18)}
    found = learn(Z, labels, answered=[*labels, 40])
    proposed = [found.classes[code] for code in found.codes]
    right = np.mean([label == color_of(row) for row, label in enumerate(proposed)])
    assert right > 0.9
    assert found.interval[0] < found.accuracy < found.interval[1]
    assert 0 < found.gain < 1 - found.accuracy and found.more == 40
    assert not set(found.rows) & {*labels, 40}
    again = learn(Z, labels, answered=[*labels, 40])
    assert again.rows == found.rows and again.accuracy == found.accuracy


def test_a_class_that_is_not_known_yet_is_asked_soon():
    Z = vectors(N_ROWS)
    labels = {row: color_of(row) for row in range(20) if color_of(row) != "blue"}
    assert color_of(learn(Z, labels).rows[0]) == "blue"


def test_all_labeled():
    found = learn(vectors(12), {row: color_of(row) for row in range(12)})
    assert found.rows == [] and found.more == 0 and found.gain is None


def test_near_rows_come_first():
    learner = Learner(vectors(N_ROWS))
    near = learner.near(3, 5)
    assert len(near) == 5 and 3 not in near
    Z = learner.Z - learner.Z.mean(axis=0)
    Z = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    cosines = Z @ Z[3]
    assert near == [row for row in np.argsort(-cosines) if row != 3][:5]
    assert len(Learner(vectors(3)).near(0)) == 2


def test_it_learns_in_the_background_after_each_batch(monkeypatch):
    learned_from = []

    def fake(Z, labels, seed, answered, n_asked):
        learned_from.append(len(labels))
        return learn(Z, {}, seed, answered, n_asked)

    monkeypatch.setattr("sklabel._pages.learning.learn", fake)
    session = Session(N_ROWS, range(12))
    learner = Learner(vectors(N_ROWS), batch=4)
    learner.start(session)
    until(lambda: session.insight is not None)
    for row in range(12):
        turn = session.turn
        session.answer(row, row, label=color_of(row))
        if row in (3, 7, 11):
            until(lambda turn=turn: session.turn > turn)
    assert learned_from == [0, 4, 8, 12]
    session.answer(12, 0, mark=CANNOT_TELL)  # all are answered: nothing waits
    until(lambda: learned_from[-1] == 11)
    learner.stop()
    assert session.more(5)["order"][12:] == session.insight.rows[:5]


def test_an_error_of_learning_stops_nobody(monkeypatch):
    def fail(*args):
        raise RuntimeError("no memory")

    monkeypatch.setattr("sklabel._pages.learning.learn", fail)
    session = Session(N_ROWS, range(12))
    learner = Learner(vectors(N_ROWS), batch=1)
    learner.start(session)
    session.answer(0, 0, label="red")
    until(lambda: learner.error is not None)
    until(lambda: session.state()["trouble"] == "RuntimeError: no memory")
    session.answer(1, 1, label="blue")
    learner.stop()
    assert session.labels == {0: "red", 1: "blue"}
