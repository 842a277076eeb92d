"""Texts of any script on pictures: drawn with a font that has them, or spelled out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from sklabel._core import lettering
from sklabel._core.display import contact_sheet
from sklabel._core.lettering import Lettering


@pytest.fixture
def bare(monkeypatch):
    """A system without fonts."""
    monkeypatch.setattr(lettering, "_folders", lambda: iter(()))
    forget()
    yield
    forget()


def forget():
    for function in (lettering._paths, lettering._font_of, lettering._has):
        function.cache_clear()


def test_without_fonts_names_are_spelled(bare):
    spell = Lettering(12).spell
    assert spell("plain name.jpg") == "plain name.jpg"
    assert spell("日本.jpg") == "\\u65e5\\u672c.jpg"
    assert spell("😀") == "\\U0001f600"
    assert spell("\ue000") == "\\ue000"
    # Pillow's own font has them, or they lose what it has not
    assert spell("Grüße") in ("Grüße", "Grusse")


def test_a_font_of_a_package_has_more_letters(monkeypatch):
    pytest.importorskip("matplotlib")
    first = next(lettering._folders())
    monkeypatch.setattr(lettering, "_folders", lambda: iter([first]))
    forget()
    try:
        spell = Lettering(12).spell
        assert spell("Grüße сова ελλ قطة") == "Grüße сова ελλ قطة"
        assert spell("日") == "\\u65e5"  # no font of it draws a box
    finally:
        forget()


def test_english_is_drawn_as_ever():
    letters, picture, other = Lettering(14), Image.new("L", (90, 20)), None
    letters.draw(ImageDraw.Draw(picture), (45, 2), "a name.jpg", 255, "ma")
    other = Image.new("L", (90, 20))
    ImageDraw.Draw(other).text(
        (45, 2), "a name.jpg", fill=255, font=letters.plain, anchor="ma"
    )
    assert np.array_equal(picture, other)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=3))
def test_any_caption(captions):
    images = [np.zeros((4, 4, 3), np.uint8)] * len(captions)
    before = lettering._folders
    lettering._folders = lambda: iter(())
    forget()
    try:
        assert contact_sheet(images, captions, tile=32).width > 32
    finally:
        lettering._folders = before
        forget()


@pytest.mark.parametrize("anchor", ["ma", "lm", "rm"])
def test_several_fonts_in_a_line(anchor):
    pytest.importorskip("matplotlib")
    letters = Lettering(16)
    text = letters.spell("ab сова ü")
    picture = Image.new("L", (200, 40))
    place = {"m": 100, "l": 10, "r": 190}[anchor[0]]
    letters.draw(ImageDraw.Draw(picture), (place, 20), text, 255, anchor)
    columns = np.flatnonzero(np.asarray(picture).any(0))
    width = letters.length(text)
    left = {"m": 100 - width / 2, "l": 10, "r": 190 - width}[anchor[0]]
    assert abs(columns[0] - left) < 4 and abs(columns[-1] - left - width) < 4
