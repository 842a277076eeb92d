"""Any sequence of answers leaves the session and its store equal, and can be undone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklabel._pages.session import (
    CANNOT_TELL,
    MARKS,
    NONE_OF_THESE,
    SKIPPED,
    Answer,
    Insight,
    LooksAlike,
    Session,
    Stale,
)

N_ROWS = 6
names = st.sampled_from(["cat", "dog", "fox", "=cmd()", "Grüße 日本", "<b>x</b>"])
rows = st.integers(0, N_ROWS - 1)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("label"), rows, names),
        st.tuples(st.just("mark"), rows, st.sampled_from(MARKS)),
        st.tuples(st.just("clear"), rows, st.none()),
        st.tuples(st.just("rename"), names, names),
        st.tuples(st.just("undo"), st.none(), st.none()),
        st.tuples(st.just("redo"), st.none(), st.none()),
    ),
    max_size=25,
)


class Memory:
    """A store that others may change, or that may be full."""

    def __init__(self, answers=()):
        self.kept = dict(answers)
        self.is_changed = self.is_full = self.too_late = False

    def changed(self):
        return self.is_changed

    def read(self):
        self.is_changed = False
        return dict(self.kept)

    def write(self, answers):
        if self.is_full:
            raise OSError(28, "No space left on device", "labels.csv")
        if self.too_late:
            self.too_late, self.is_changed = False, True
            self.kept[5] = Answer("theirs")
            raise Stale
        for row, answer in answers.items():
            self.kept.pop(row, None)
            if answer is not None:
                self.kept[row] = answer

    def change(self, **answers):
        self.is_changed = True
        self.kept.update({int(row[1:]): a for row, a in answers.items()})


def take(session, kind, where, what):
    """Take a step; return whether it was possible."""
    version = session.version
    try:
        if kind == "label":
            session.answer(version, where, label=what)
        elif kind == "mark":
            session.answer(version, where, mark=what)
        elif kind == "clear":
            session.answer(version, where)
        elif kind == "rename":
            session.rename(version, where, what)
        else:
            getattr(session, kind)(version)
    except ValueError:  # no such class, nothing to undo
        return False
    return True


def snapshot(session):
    return dict(session.answers), list(session.classes)


@given(steps)
def test_store_and_session_are_equal_after_any_steps(steps):
    store = Memory()
    session = Session(N_ROWS, range(N_ROWS), store)
    for step in steps:
        before = session.version, snapshot(session)
        done = take(session, *step)
        assert store.kept == session.answers
        used = {a.label for a in session.answers.values()} - {None}
        assert used <= set(session.classes)
        assert len(set(session.classes)) == len(session.classes)
        assert done or (session.version, snapshot(session)) == before
        assert (session.version > before[0]) or snapshot(session) == before[1]
    again = Session(N_ROWS, range(N_ROWS), store)
    assert again.answers == session.answers


@given(steps)
def test_undo_goes_back_to_the_start_and_redo_to_the_end(steps):
    store = Memory({0: Answer("cat"), 1: Answer(None, SKIPPED)})
    session = Session(N_ROWS, range(N_ROWS), store)
    start = snapshot(session)
    for step in steps:
        take(session, *step)
    end = snapshot(session)
    n = 0
    while session.state()["can_undo"]:
        session.undo(session.version)
        n += 1
    assert snapshot(session) == start and store.kept == start[0]
    for _ in range(n):
        session.redo(session.version)
    assert snapshot(session) == end and store.kept == end[0]


def test_classes_are_offered_in_the_order_of_their_first_use():
    session = Session(4, range(4), Memory({2: Answer("old")}), classes=["first"])
    session.answer(0, 0, label="  new   class ")
    assert session.classes == ["first", "old", "new class"]
    session.undo(1)
    assert session.classes == ["first", "old"]


def test_renamed_and_merged():
    session = Session(4, range(4), Memory())
    for row, label in enumerate(["cat", "dog", "cat"]):
        session.answer(row, row, label=label)
    session.rename(3, "cat", "kitten")
    assert session.labels == {0: "kitten", 1: "dog", 2: "kitten"}
    assert session.classes == ["kitten", "dog"]  # each keeps its key
    change = session.rename(4, "kitten", "dog")
    assert change["changed"] == {0: ["dog", ""], 2: ["dog", ""]}
    assert session.classes == ["dog"] and session.store.kept == session.answers
    session.undo(5)
    assert session.labels == {0: "kitten", 1: "dog", 2: "kitten"}


def test_a_stale_page_changes_nothing():
    session = Session(4, range(4), Memory())
    session.answer(0, 0, label="cat")
    for change in (
        lambda: session.answer(0, 0, label="dog"),
        lambda: session.rename(0, "cat", "dog"),
        lambda: session.undo(0),
        lambda: session.redo(7),
    ):
        with pytest.raises(Stale):
            change()
    assert session.labels == {0: "cat"} and session.version == 1


def test_what_others_write_comes_first_and_can_be_undone():
    store = Memory()
    session = Session(4, range(4), store)
    session.answer(0, 0, label="cat")
    store.change(r0=Answer("by hand"), r3=Answer("more"))
    with pytest.raises(Stale):
        session.answer(1, 0, label="dog")
    assert (
        session.labels
        == {0: "by hand", 3: "more"}
        == {row: answer.label for row, answer in store.kept.items()}
    )
    session.undo(2)
    assert session.labels == {0: "cat"} and store.kept == session.answers


def test_what_others_write_at_the_same_moment_comes_first():
    store = Memory()
    session = Session(6, range(6), store)
    store.too_late = True
    with pytest.raises(Stale):
        session.answer(0, 0, label="dog")
    assert session.labels == {5: "theirs"} and session.version == 1


def test_what_cannot_be_kept_is_no_answer():
    store = Memory()
    session = Session(4, range(4), store)
    session.answer(0, 0, label="cat")
    store.is_full = True
    before = snapshot(session), session.version
    for change in (
        lambda: session.answer(1, 1, label="dog"),
        lambda: session.rename(1, "cat", "dog"),
        lambda: session.undo(1),
    ):
        with pytest.raises(OSError, match="No space"):
            change()
    assert (snapshot(session), session.version) == before
    store.is_full = False
    session.answer(1, 1, label="dog")


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "is empty"),
        (" \t ", "is empty"),
        ("\u200b", "is empty"),
        ("none", "may stand for a missing label.*choose another"),
        ("?", "may stand for a missing label"),
        ("todo", "means a missing label here"),
        ("x" * 101, "at most 100"),
        ("a\0b", "all of them visible"),
        ("\ud800", "all of them visible"),
    ],
)
def test_texts_that_name_no_class(text, said):
    session = Session(4, range(4), keep=["NA"], unlabeled=["todo"])
    session.answer(0, 1, label="NA")
    with pytest.raises(ValueError, match=said):
        session.answer(1, 0, label=text)
    with pytest.raises(ValueError, match=said):
        session.rename(1, "NA", text)
    assert session.classes == ["NA"]


@pytest.mark.parametrize("row, mark", [(-1, ""), (4, ""), (0, "maybe")])
def test_no_such_row_or_mark(row, mark):
    with pytest.raises(ValueError, match="no row|not an answer"):
        Session(4, range(4)).answer(0, row, mark=mark)


def test_a_class_that_looks_like_another_is_asked_about():
    session = Session(4, range(4))
    session.answer(0, 0, label="Cat")
    with pytest.raises(LooksAlike) as raised:
        session.answer(1, 1, label="cat")
    assert (raised.value.label, raised.value.known) == ("cat", "Cat")
    session.rename(1, "Cat", "cat")  # the only one: that is its new name
    session.answer(2, 1, label="Cat", alike=True)
    assert session.classes == ["cat", "Cat"]


def test_skipped_rows_stay_open_and_marks_do_not():
    session = Session(4, [2, 0, 1])
    assert session.n_open() == 3
    session.answer(0, 2, mark=SKIPPED)
    session.answer(1, 0, mark=CANNOT_TELL)
    session.answer(2, 1, mark=NONE_OF_THESE)
    assert session.n_open() == 1 and session.labels == {}


def test_rows_that_were_not_asked_can_be_answered():
    session = Session(9, [2, 0])
    change = session.answer(0, 7, label="cat")
    assert session.order == [2, 0, 7] and change["turn"] == 1


def test_what_is_learned_decides_what_is_asked_later():
    session = Session(20, [0, 1, 2, 3])
    assert session.more(5)["order"] == [0, 1, 2, 3]  # nothing is known yet
    session.learned(Insight(0, [3, 9, 8, 7, 6, 5]))
    assert session.order == [0, 1, 2, 3]
    assert session.more(4)["order"] == [0, 1, 2, 3, 9, 8, 7, 6]
    for row in range(4):
        session.answer(session.version, row, label="cat")
    session.learned(Insight(4, [15, 16, 17, 18]))
    # three have been loaded by the page
    assert session.order == [0, 1, 2, 3, 9, 8, 7, 15]
    assert session.state()["n_more"] == 3


def test_what_is_proposed():
    session = Session(3, range(3))
    assert session.proposal(0) is None
    session.learned(
        Insight(2, [], 0.8, (0.5, 0.9), 0.02, 40, ["a", "b"], [1, 0, 0], [0.9, 0.6, 1])
    )
    assert session.proposal(0) == ("b", 0.9)
    assert session.state()["insight"]["accuracy"] == 0.8
