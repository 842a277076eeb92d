"""Texts as labels: no label, an unclear one, and labels that look alike."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklabel._core.label_texts import (
    ClassName,
    is_blank,
    is_unclear,
    look_alikes,
    text_label,
)


@pytest.mark.parametrize(
    "text", ["", " ", "\t\n", "\u00a0", "\u200b", "\ufeff ", "\u3000", "\u2800", "\x00"]
)
def test_what_shows_nothing_is_no_label(text):
    assert is_blank(text) and text_label(text) is None


UNCLEAR = (
    "nan NaN NAN -nan none None NONE NA na N/A n/a <NA> #N/A #NA null NULL NaT ? -- -1 "
    "-1.0 1.#IND"
).split()
# of data bases, SAS and spreadsheets
OF_PROGRAMS = ["\\N", "(null)", "<null>", "[NULL]", ".", "NA\u200b", "#REF!", "#DIV/0!"]


@pytest.mark.parametrize("text", [*UNCLEAR, *OF_PROGRAMS, " nan ", "#N/A N/A", "ＮＡ"])
def test_what_may_be_a_missing_value_is_an_error(text):
    assert is_unclear(text)
    with pytest.raises(ValueError, match="may stand for a missing label") as raised:
        text_label(text)
    assert repr(text) in str(raised.value)
    kept = text_label(text, keep=[text])
    assert kept == text and isinstance(kept, ClassName)
    assert text_label(kept) is kept  # it stays a name from then on


@pytest.mark.parametrize(
    "text",
    [
        "cat",
        "nancy",
        "no",
        "unknown",
        "+",
        "-",
        "0",
        "n.a",
        "1",
        "NA1",
        "??",
        "N",
        "#1",
    ],
)
def test_other_texts_are_labels(text):
    assert not is_unclear(text) and not is_blank(text) and text_label(text) == text


def test_a_name_is_a_text_in_copies_and_pickles():
    name = ClassName("none")
    for other in (copy.deepcopy(name), pickle.loads(pickle.dumps(name))):
        assert other == "none" and isinstance(other, ClassName)
    assert {name: 1}["none"] == 1 and repr(name) == "'none'"


@pytest.mark.parametrize(
    "names",
    [
        ["Blue", "blue", "BLUE "],
        ["light blue", "light  blue", "light\u00a0blue", "light_blue", "Light-Blue"],
        ["cat", "cat\u200b", "\ufeffcat", "c\u00adat"],
        ["caf\u00e9", "cafe\u0301"],
        ["fin", "\ufb01n"],
        ["1", "1.0", "01", "\uff11", "1,0", "+1", "1.", "\u0661"],
        ["stra\u00dfe", "strasse"],
        ["Cat", "\u0421\u0430t"],  # Cyrillic
        ["A1", "\u03911"],  # Greek
        ["t-shirt", "t\u2013shirt", "t shirt"],
        ["dog's", "dog\u2019s"],
        ["class 1", "class_1", "class1"],
        ["heart\ufe0f", "heart"],
    ],
)
def test_names_that_look_alike(names):
    assert look_alikes(["other", *names]) == [names]


@pytest.mark.parametrize(
    "names",
    [
        ["A", "A-", "A+"],
        ["+", "-", "_"],
        ["1", "10", "1.1", "-1x", "100"],
        ["1-2", "12", "1_2x"],
        ["cat", "cats", "act"],
        ["\u00e9", "e", "\u00e8"],
        ["", "x"],
        ["\u043d\u0435\u0442", "\u0434\u0430"],  # Russian alone
    ],
)
def test_names_that_do_not(names):
    assert look_alikes(names) == []


@given(st.sets(st.text(max_size=8), max_size=8))
def test_each_name_is_in_one_group_at_most(names):
    groups = look_alikes(sorted(names))
    found = [name for group in groups for name in group]
    assert len(found) == len(set(found)) and set(found) <= names
    assert all(len(group) > 1 for group in groups)


@given(st.text(max_size=30))
def test_every_text_is_a_label_or_none_or_an_error(text):
    try:
        label = text_label(text)
    except ValueError:
        assert is_unclear(text)
    else:
        assert label == text or (label is None and is_blank(text))
    assert text_label(text, keep=[text]) in (text, None)
