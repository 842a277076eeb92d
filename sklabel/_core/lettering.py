"""Text on pictures in any script: with Pillow's font, and those of the system."""

import functools
import importlib.util
import os
import sys
import unicodedata
from contextlib import suppress
from pathlib import Path

from PIL import ImageFont

_MISSING = "\uffff"  # no character: no font has it
_MOST_FILES = 3000
# parts of the names of fonts that are tried first, in this order
_FIRST = (
    *("dejavusans.ttf", "notosans-regular", "notosanscjk-regular", "sourcehansans"),
    *("arialuni", "unifont", "wqy", "droidsansfallback", "pingfang", "hiragino"),
    *("msyh", "yugoth", "meiryo", "malgun", "segoeui.ttf", "arial.ttf", "tahoma"),
)


class Lettering:
    """Letters of one size.

    Parameters
    ----------
    size : int
        Pixels.

    Notes
    -----
    Pillow's own font has the letters of English. Others are drawn with a font of
    matplotlib or of the system that has them. Where there is none, a letter loses its
    accent, or is written as its number, such as ``\\u65e5``.
    """

    def __init__(self, size):
        self.size = size
        self.plain = ImageFont.load_default(size)
        self.height = sum(self.plain.getmetrics()) + 1

    def spell(self, text):
        """Return a text with letters that can be drawn in place of those that cannot.

        What `draw` and `length` are given has been spelled already, or is ASCII.
        """
        return text if text.isascii() else "".join(map(self._spelled, text))

    def length(self, text):
        """Return the width of a text in pixels."""
        return sum(font.getlength(part) for font, part in self._runs(text))

    def draw(self, draw, place, text, fill, anchor):
        """Draw a text.

        Parameters
        ----------
        draw : ImageDraw
        place : (float, float)
        text : str
        fill : color
        anchor : {"ma", "rm", "lm"}
            As Pillow has it: middle, right or left, top or middle.
        """
        runs = self._runs(text)
        if len(runs) < 2:
            font = runs[0][0] if runs else self.plain
            draw.text(place, text, fill=fill, font=font, anchor=anchor)
            return
        x, y = place
        x -= self.length(text) * {"l": 0, "m": 0.5, "r": 1}[anchor[0]]
        # fonts differ in height: all stand on one line
        top = y + (self.height - 1) / 2 * {"a": 1, "m": 0}[anchor[1]]
        ascent, descent = self.plain.getmetrics()
        line = top + (ascent - descent) / 2
        for font, part in runs:
            draw.text((x, line), part, fill=fill, font=font, anchor="ls")
            x += font.getlength(part)

    def _runs(self, text):
        """Return pairs of a font and a part of the text."""
        if text.isascii():
            return [(self.plain, text)] if text else []
        runs = []
        for letter in text:
            # a space, and a mark on a letter, stay with what is before them
            stays = runs and _stays(letter, runs[-1][0])
            path = runs[-1][0] if stays else _font_of(letter) or ""
            if runs and runs[-1][0] == path:
                runs[-1][1] += letter
            else:
                runs.append([path, letter])
        return [(_open(path, self.size), part) for path, part in runs]

    def _spelled(self, letter):
        if letter.isascii() or _font_of(letter) is not None:
            return letter
        bare = unicodedata.normalize("NFKD", letter)
        bare = "".join(c for c in bare if not _is_mark(c)) or bare
        for other in (bare, letter.casefold()):
            if other != letter and all(_font_of(c) is not None for c in other):
                return other
        code = ord(letter)
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _stays(letter, path):
    return letter.isspace() or _is_mark(letter) and _has(path, letter)


def _is_mark(letter):
    return unicodedata.category(letter).startswith("M")


@functools.cache
def _font_of(letter):
    """Return the file of a font that has a letter, "" for Pillow's own, or None."""
    if letter.isascii() or _has("", letter):
        return ""
    if unicodedata.category(letter) in ("Cc", "Cs", "Cn", "Co"):
        return None
    return next((path for path in _paths() if _has(path, letter)), None)


@functools.cache
def _has(path, letter):
    """Return whether a font has a letter, and does not draw a box in its place."""
    font = _open(path, 16)
    if font is None:
        return False
    return _drawn(font, letter) != _drawn(font, _MISSING)


def _drawn(font, letter):
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@functools.lru_cache(maxsize=64)
def _open(path, size):
    if not path:
        return ImageFont.load_default(size)
    # the layout of each letter by itself is enough, and the same everywhere
    with suppress(OSError):
        return ImageFont.truetype(path, size)
    return None


@functools.cache
def _paths():
    """Return the files of fonts, those that have most first."""
    found = []
    for folder in _folders():
        for place, folders, names in os.walk(folder):
            folders.sort()
            found += [
                os.path.join(place, name)
                for name in sorted(names)
                if name.lower().endswith((".ttf", ".otf", ".ttc"))
                # these draw a box of their own for every letter, or nothing
                and not any(n in name.lower() for n in ("lastresort", "blank"))
            ]
            if len(found) > _MOST_FILES:
                break

    def order(path):
        name = os.path.basename(path).lower()
        known = [i for i, part in enumerate(_FIRST) if part in name]
        plain = "regular" in name or "-" not in name
        styled = any(part in name for part in ("bold", "italic", "oblique", "mono"))
        return known[0] if known else len(_FIRST), styled, not plain, "sans" not in name

    return sorted(found, key=order)


def _folders():
    """Yield where fonts are: of matplotlib, then of the system and its user."""
    try:
        spec = importlib.util.find_spec("matplotlib")
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.origin:
        yield Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    home = Path.home()
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"
        yield home / "AppData" / "Local" / "Microsoft" / "Windows" / "Fonts"
    elif sys.platform == "darwin":
        yield Path("/System/Library/Fonts")
        yield Path("/Library/Fonts")
        yield home / "Library" / "Fonts"
    else:
        yield Path("/usr/share/fonts")
        yield Path("/usr/local/share/fonts")
        yield home / ".local" / "share" / "fonts"
        yield home / ".fonts"
