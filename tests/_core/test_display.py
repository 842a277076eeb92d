"""Sheets of images show the right pixels, in order, at any size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sklabel._core.display import cluster_sheet, contact_sheet


def pixels(picture):
    return np.asarray(picture).astype(int)


def is_color(picture, color):
    return (np.abs(pixels(picture) - color) <= 3).all(axis=2)


def test_contact_sheet_keeps_aspect_and_order(tmp_path):
    colors = [(200, 0, 0), (0, 160, 0), (0, 0, 200)]
    sizes = [(40, 10), (10, 40), (300, 300)]
    paths = []
    for i, (color, size) in enumerate(zip(colors, sizes, strict=True)):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", size, color).save(paths[-1])
    sheet = contact_sheet(paths, ["a", "b", "c"], tile=80)
    lefts = []
    for color, (width, height) in zip(colors, sizes, strict=True):
        rows, columns = np.nonzero(is_color(sheet, color))
        shape = np.array([np.ptp(rows) + 1, np.ptp(columns) + 1])
        scale = 80 / max(width, height)
        assert np.abs(shape - [height * scale, width * scale]).max() <= 1
        assert len(rows) == shape.prod()  # a full rectangle
        lefts.append(columns.min())
    assert lefts == sorted(lefts)
    # ink stands only under the pictures
    dark = (pixels(sheet).max(axis=2) < 60).nonzero()
    assert len(dark[0]) and dark[0].min() > 80


def test_contact_sheet_turns_and_flattens(tmp_path):
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (60, 20), (0, 0, 200)).save(turned, exif=exif, quality=95)
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (20, 20), (0, 160, 0, 0)).save(clear)
    gone = tmp_path / "gone.png"
    gone.write_text("no image")
    sheet = contact_sheet([turned, clear, gone], ["", "", ""], tile=60)
    rows, columns = np.nonzero(is_color(sheet, (0, 0, 200)))
    assert np.ptp(rows) > 2 * np.ptp(columns)
    assert not is_color(sheet, (0, 160, 0)).any()


@pytest.mark.parametrize("n", [1, 8, 9, 65, 700])
def test_contact_sheet_size(n):
    image = np.zeros((4, 4), np.uint8)
    sheet = contact_sheet([image] * n, ["name"] * n)
    assert max(sheet.size) <= 8100
    if n <= 64:
        assert sheet.width <= 1400


@settings(max_examples=20)
@given(st.text(), st.integers(1, 3))
def test_contact_sheet_takes_any_caption(caption, channels):
    image = np.zeros((5, 7, 3 if channels == 2 else channels), np.uint8)
    sheet = contact_sheet([image], [caption], tile=100)
    assert sheet.width == 124


def test_captions_are_cut_in_the_middle():
    from sklabel._core.display import _elide
    from sklabel._core.lettering import Lettering

    font = Lettering(12)
    text = "folder/" + "x" * 100 + "_17.jpg"
    short = _elide(text, font, 120)
    assert font.length(short) <= 120
    assert short.startswith("fold") and short.endswith("_17.jpg") and "..." in short
    assert _elide("a\nb.jpg", font, 120) == "a b.jpg"


def test_cluster_sheet():
    images = np.zeros((6, 4, 4, 3), np.uint8)
    images[0], images[3] = (200, 0, 0), (0, 0, 200)
    images[[1, 2]], images[[4, 5]] = (250, 0, 0), (0, 0, 250)
    assignments = np.array([0, 0, 0, 1, 1, 1])
    sheet = cluster_sheet(images, [3, 0], 1 - assignments, np.arange(6), ["b", "a"])
    blue = np.nonzero(is_color(sheet, (0, 0, 200)))
    red = np.nonzero(is_color(sheet, (200, 0, 0)))
    assert blue[0].max() < red[0].min()  # in the order of asking
    for own, others in (((0, 0, 200), (0, 0, 250)), ((200, 0, 0), (250, 0, 0))):
        own, others = is_color(sheet, own), is_color(sheet, others)
        assert own.sum() == 48 * 48 and others.sum() == 2 * 48 * 48
        assert np.nonzero(own)[1].max() < np.nonzero(others)[1].min()
        assert np.nonzero(own)[0].min() == np.nonzero(others)[0].min()
    few = cluster_sheet(
        images, [3, 0], 1 - assignments, np.arange(6), ["b", "a"], n_shown=1
    )
    assert is_color(few, (250, 0, 0)).sum() == 48 * 48
