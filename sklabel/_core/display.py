"""Pictures of a selection, drawn with Pillow alone: numbered sheets and clusters."""

import math

import numpy as np
from PIL import Image, ImageDraw

from .decoding import UNREADABLE, Pictures
from .lettering import Lettering

_PAPER = (255, 255, 255)
_INK = (25, 25, 25)
_GRAY = (110, 110, 110)
_FRAME = (200, 60, 20)
_MARGIN = 12
_GAP = 8
_LONGEST_SIDE = 8000  # of a sheet: larger ones are a burden to open


def contact_sheet(images, captions, *, n_columns=None, tile=160, max_pixels=None):
    """Draw numbered images in rows, in the order given.

    Parameters
    ----------
    images : sequence
        Paths of image files, or arrays ``(h, w)`` or ``(h, w, c)`` of uint8.
    captions : sequence of str
        One line under each number, cut in the middle if it is too long.
    n_columns : int or None, default=None
        Images in a row; None: 8, and more where there are more than 64 images.
    tile : int, default=160
        Side of the square in which an image is shown, in pixels; smaller where the
        sheet would be longer than 8,000 pixels.
    max_pixels : int or None, default=None
        Files of more pixels are empty tiles; None: Pillow's limit.

    Returns
    -------
    sheet : PIL.Image.Image
        RGB. An image keeps its aspect ratio. A file that cannot be read is an empty
        tile.
    """
    n = len(images)
    n_columns = n_columns or min(n, max(8, math.ceil(math.sqrt(n))))
    n_rows = math.ceil(n / n_columns)
    room = (_LONGEST_SIDE - 2 * _MARGIN) // max(n_columns, n_rows)
    tile = max(32, min(tile, room - 54))
    large, small = Lettering(max(12, tile // 8)), Lettering(max(10, tile // 13))
    caption_height = large.height + small.height + 4
    sheet = Image.new(
        "RGB",
        (
            2 * _MARGIN + n_columns * (tile + _GAP) - _GAP,
            2 * _MARGIN + n_rows * (tile + caption_height + _GAP) - _GAP,
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    pictures = Pictures(images, max_pixels, side=2 * tile)
    for i in range(n):
        x = _MARGIN + i % n_columns * (tile + _GAP)
        y = _MARGIN + i // n_columns * (tile + caption_height + _GAP)
        _paste(sheet, draw, pictures, i, x, y, tile)
        middle, y = x + tile / 2, y + tile + 2
        large.draw(draw, (middle, y), str(i + 1), _INK, "ma")
        y += large.height
        caption = _elide(captions[i], small, tile)
        small.draw(draw, (middle, y), caption, _GRAY, "ma")
    return sheet


def cluster_sheet(
    images,
    chosen,
    assignments,
    order,
    captions,
    *,
    n_shown=12,
    tile=48,
    max_pixels=None,
):
    """Draw each chosen image, framed, next to the images it represents.

    Parameters
    ----------
    images : sequence
        As in :func:`contact_sheet`.
    chosen : array-like of int of shape (m,)
        Rows, in labeling order.
    assignments : ndarray of int of shape (n,)
        Position in ``chosen`` of the row that each row stands nearest to.
    order : ndarray of shape (n,)
        Within a cluster, rows of smaller values are shown first; for example the
        distance to the chosen row.
    captions : sequence of str of length m
        Text next to the number of a cluster.
    n_shown : int, default=12
        Maximum number of images next to a chosen one.
    tile : int, default=48
        Side of an image in pixels.
    max_pixels : int or None, default=None
        As in :func:`contact_sheet`.

    Returns
    -------
    sheet : PIL.Image.Image
        RGB, one row per chosen image.
    """
    large, small = Lettering(18), Lettering(13)
    captions = [small.spell(caption) for caption in captions]
    members, notes = [], []
    for i, row in enumerate(chosen):
        rows = np.flatnonzero(np.asarray(assignments) == i)
        rows = rows[rows != row]
        shown = rows[np.argsort(np.asarray(order)[rows], kind="stable")][:n_shown]
        members.append(shown)
        rest = len(rows) - len(shown)
        notes.append(f"+ {rest} more" if rest else "")
    number = _widest([str(len(notes))], large)
    left = number + 10 + _widest(captions, small) + 14
    right = _widest(notes, small) + 10
    step = tile + 6
    width = left + step * (1 + max((len(m) for m in members), default=0)) + 14 + right
    sheet = Image.new(
        "RGB", (2 * _MARGIN + width, 2 * _MARGIN + len(notes) * (step + 4)), _PAPER
    )
    draw = ImageDraw.Draw(sheet)
    pictures = Pictures(images, max_pixels, side=2 * tile)
    for i, row in enumerate(chosen):
        y = _MARGIN + i * (step + 4) + 3
        middle = y + tile / 2
        x = _MARGIN + number
        large.draw(draw, (x, middle), str(i + 1), _INK, "rm")
        small.draw(draw, (x + 10, middle), captions[i], _GRAY, "lm")
        x = _MARGIN + left
        box = (x - 3, y - 3, x + tile + 2, y + tile + 2)
        draw.rectangle(box, outline=_FRAME, width=3)
        _paste(sheet, draw, pictures, row, x, y, tile)
        x += step + 14
        for member in members[i]:
            _paste(sheet, draw, pictures, member, x, y, tile)
            x += step
        small.draw(draw, (x + 4, middle), notes[i], _GRAY, "lm")
    return sheet


def _paste(sheet, draw, pictures, row, x, y, tile):
    """Put an image into the middle of its tile, as large as fits."""
    try:
        picture = _picture(pictures, row)
    except UNREADABLE:
        draw.rectangle((x, y, x + tile - 1, y + tile - 1), outline=_GRAY)
        return
    scale = tile / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    # also for a few pixels: the eye reads a smooth 8x8 digit, not 64 squares
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    sheet.paste(picture, (x + (tile - size[0]) // 2, y + (tile - size[1]) // 2))


def _picture(pictures, row):
    image = pictures.items[row]
    if not isinstance(image, np.ndarray):
        return Image.fromarray(pictures[row])
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    return Image.fromarray(image).convert("RGB")


def _elide(text, font, width):
    """Cut a text in its middle until it is at most ``width`` pixels wide."""
    text = font.spell(" ".join(text.split()))
    kept = len(text)
    short = text
    while font.length(short) > width and kept > 1:
        kept -= 1
        # the end of a path tells more than its beginning
        head = kept // 3
        short = f"{text[:head]}...{text[len(text) - (kept - head) :]}"
    return short


def _widest(texts, font):
    return math.ceil(max((font.length(text) for text in texts), default=0))
