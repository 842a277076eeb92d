"""Photographs by row for a browser, decoded at screen size."""

import io
import threading
from collections import OrderedDict

from PIL import Image

from .._core.decoding import UNREADABLE, Pictures

SIDES = (160, 640, 1600)  # pixels of the longer side: of a strip, a phone, a screen
_TINY = 200  # pixels, up to which nothing may be lost
_KEPT_BYTES = 2**27


class Unreadable(ValueError):
    """A file is not an image, or is incomplete."""


class Photographs:
    """Images as files for a browser, never the files of the folder themselves.

    Parameters
    ----------
    items : sequence
        Paths, or other items that :mod:`sklabel._core.decoding` reads.
    max_pixels : int or None
    """

    def __init__(self, items, max_pixels=None):
        self.pictures = {side: Pictures(items, max_pixels, side) for side in SIDES}
        self._kept, self._n_bytes = OrderedDict(), 0
        self._lock = threading.Lock()

    def file(self, row, side):
        """Return the bytes of a file and its type.

        Parameters
        ----------
        row : int
        side : int
            One of `SIDES`: maximum length of the longer side.

        Raises
        ------
        Unreadable
        """
        with self._lock:
            if (row, side) in self._kept:
                self._kept.move_to_end((row, side))
                return self._kept[row, side]
        try:
            found = _encoded(Image.fromarray(self.pictures[side][row]), side)
        except UNREADABLE as error:
            raise Unreadable(str(error)) from error
        with self._lock:
            if (row, side) not in self._kept:
                self._kept[row, side] = found
                self._n_bytes += len(found[0])
            while self._n_bytes > _KEPT_BYTES:
                self._n_bytes -= len(self._kept.popitem(last=False)[1][0])
        return found


def _encoded(picture, side):
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    content = io.BytesIO()
    if max(picture.size) <= _TINY and side > _TINY:
        picture.save(content, "PNG", compress_level=1)
        return content.getvalue(), "image/png"
    picture.save(content, "JPEG", quality=88)
    return content.getvalue(), "image/jpeg"
