"""Pictures as 8-bit pixels, by what their values mean: every mode, depth and page."""

# The rules, in the order in which they are applied:
# - of several pages the first one counts; EXIF says which side is up
# - more than 8 bits: black and white are the ends of the format's range; integers and
#   floats without one have the range of their data set, which `fit` finds and keeps
# - transparent places show white paper
# - any colors become RGB

import io
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from .files import RAW_ENDINGS, open_image
from .optional import import_optional

# what is raised for a file that is no image, a cut one, or a giant one
UNREADABLE = (
    *(OSError, ValueError, SyntaxError, EOFError, ImportError, MemoryError),
    *(TypeError, Image.DecompressionBombError),
)
_ORIENTATION = 0x0112  # of EXIF; 5 to 8: height and width change places
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 256, 257, 258, 262, 339  # TIFF
_WIDE = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
GRAY = ("1", "L", *_WIDE)
_WHITE = 255
_HEIF_BRANDS = (
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    *(b"mif1", b"msf1"),
)
# a gray level of 1, 2 and 4 bits as Pillow unpacks it, but not the transparent one
_UNPACKED = {"L;2": 85, "L;4": 17}


class NoRange(ValueError):
    """The values of an image have no range of their own, and none was given.

    Parameters
    ----------
    low, high : float
        Its smallest and largest value.
    """

    def __init__(self, low, high):
        super().__init__(
            f"it holds signed, 32-bit or float values, from {low:g} to {high:g}, and "
            "it is unknown which of them are black and white: fit on such files too, "
            "or scale them to 8 or 16 bits"
        )
        self.low, self.high = low, high


class Head(NamedTuple):
    """What an image file says of itself before it is decoded."""

    size: tuple  # (height, width), upright
    several: bool  # pages
    ranged: bool  # black and white are known, without its data set


def content(item):
    """Return the path, bytes or picture of a row; a dict holds one of the first two."""
    if isinstance(item, dict):
        item = item.get("bytes") or item.get("path")
    if item is None:
        raise ValueError("it is missing")
    return item


@contextmanager
def opened(item, max_pixels=None):
    """Open an image, and close it afterwards.

    Parameters
    ----------
    item : str, PathLike, bytes, dict or PIL.Image.Image
        Of a dict ``"bytes"`` are read, or ``"path"`` where there are none. A picture is
        what it is, and stays open.
    max_pixels : int or None
        Largest number of pixels; None: Pillow's limit.
    """
    item = content(item)
    if isinstance(item, Image.Image):
        yield item
        return
    if isinstance(item, (str, os.PathLike)):
        if os.path.splitext(item)[1].lower() in RAW_ENDINGS:
            raise ValueError(
                "it is a camera's raw file, and only its preview could be read: export "
                "it as TIFF or JPEG"
            )
    elif not hasattr(item, "read"):
        if _is_path(item):
            raise ValueError("it looks like a path as bytes: give os.fsdecode(path)")
        item = io.BytesIO(item)
    with open_image(item, max_pixels, _open_heif) as image:
        yield image


def _is_path(content):
    """Return whether bytes are likely a path, as h5py and numpy give texts."""
    # by its looks: to ask the system for it may open a network
    try:
        text = bytes(content[:1025]).decode()
    except UnicodeDecodeError:
        return False
    ending = os.path.splitext(text)[1]
    return len(text) <= 1024 and text.isprintable() and ending[1:].isalnum()


def is_heif(head):
    """Return whether the first 64 bytes of a file are those of HEIC."""
    if head[4:8] != b"ftyp":
        return False
    # AVIF may name itself so, too, but then lists its own name
    is_avif = head[8:12] in (b"mif1", b"msf1") and (b"avif" in head or b"avis" in head)
    return head[8:12] in _HEIF_BRANDS and not is_avif


def _open_heif(file):
    """Return a HEIC image of a file object, or None where it is none."""
    if not is_heif(file.read(64)):
        return None
    file.seek(0)
    try:
        plugin = import_optional("pillow_heif.as_plugin", "heif")
    except ImportError as error:
        raise ValueError(f"it is a HEIC file. {error}") from error
    return plugin.HeifImageFile(file)


def look(image):
    """Return the `Head` of an open image; its pixels are not decoded."""
    stored = _tag(image, _WIDTH, image.width), _tag(image, _HEIGHT, image.height)
    # TIFF files have their upright size before they are decoded
    turned = _orientation(image) > 4 and stored == image.size
    size = image.size if turned else image.size[::-1]
    return Head(size, _has_pages(image), _own_range(image) is not None)


def _orientation(image):
    # of PNG files its own getexif would decode the whole image
    return Image.Image.getexif(image).get(_ORIENTATION, 1)


def _has_pages(image):
    # the second picture of MPO is a view or a preview of the first
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def decode(image, size=None, value_range=None, gray=False):
    """Return the pixels of an open image.

    Parameters
    ----------
    image : PIL.Image.Image
    size : (int, int) or None
        Height and width to which it is resized, anti-aliased; None: its own.
    value_range : (float, float) or None
        Black and white of images whose values have no range of their own.
    gray : bool, default=False
        Whether one channel is wanted; then a color image is an error.

    Returns
    -------
    pixels : ndarray of uint8 of shape (h, w, 3) or (h, w)
    """
    if gray and image.mode not in GRAY:
        raise ValueError(
            f"it is a color image (mode {image.mode}), but the others are not"
        )
    picture = _as_8_bits(image, value_range)
    picture = picture.convert("L" if gray else "RGB")
    if size is not None and picture.size != size[::-1]:
        picture = picture.resize(
            size[::-1], Image.Resampling.BILINEAR, reducing_gap=2.0
        )
    return np.asarray(picture)


def extremes(image):
    """Return the smallest and the largest value of an image of wide values."""
    values = _values(image)
    return float(values.min()), float(values.max())


def _own_range(image):
    """Return (black, white) of an image's format; None: it has none."""
    if _is_signed_byte(image):
        return None
    if image.mode not in _WIDE:
        return 0, 255
    if image.mode == "F":
        return None
    if image.mode == "I":
        # 16 bits, which Pillow unpacks to 32
        return (0, 65535) if image.format in ("PNG", "PPM") else None
    bits = _tag(image, _BITS, 16)
    return 0, 2 ** min(bits, 16) - 1


def _is_signed_byte(image):
    """Return whether an image has values from -128, which Pillow takes for bytes."""
    return image.mode == "L" and _tag(image, _SAMPLE_FORMAT, 1) == 2


def _tag(image, number, default):
    value = getattr(image, "tag_v2", {}).get(number, default)
    return value[0] if isinstance(value, tuple) else value


def _as_8_bits(image, value_range):
    """Return an image upright, on paper and with 8 bits for each channel."""
    if image.mode in _WIDE or _is_signed_byte(image):
        # what is known of the file is lost when it is turned, and not all modes can be
        picture = Image.fromarray(_levels(image, value_range))
        picture.getexif()[_ORIENTATION] = _orientation(image)
        return ImageOps.exif_transpose(picture)
    hole = _hole(image)
    picture = ImageOps.exif_transpose(image)
    if hole is not None:
        return _without_hole(picture, hole)
    return _on_paper(picture) if picture.has_transparency_data else picture


def _values(image):
    """Return the values of an image of more than 8 bits."""
    values = np.asarray(image)
    unsigned = _tag(image, _SAMPLE_FORMAT, 1) == 1
    if image.mode == "I" and unsigned and _tag(image, _BITS, 0) == 32:
        values = values.view(np.uint32)  # Pillow reads them as signed ones
    if _is_signed_byte(image):
        values = values.view(np.int8)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinity")
    return values


def _levels(image, value_range):
    """Return an image of more than 8 bits as uint8."""
    own = _own_range(image)
    values = _values(image)
    if own is None and value_range is None:
        raise NoRange(float(values.min()), float(values.max()))
    low, high = own or value_range
    if own is None:
        _check_scale(values, low, high)
    levels = (values.astype(np.float64) - low) * (255 / (high - low))
    levels = np.rint(levels.clip(0, 255)).astype(np.uint8)
    if image.format == "TIFF" and _tag(image, _PHOTOMETRIC, 1) == 0:
        levels = 255 - levels  # 0 is white; of fewer bits Pillow sees to that
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels[values == transparent] = _WHITE
    return levels


def _check_scale(values, low, high):
    """Refuse values of another scale: not more than a thousandth lies far outside."""
    margin = high - low
    outside = (values < low - margin) | (values > high + margin)
    if np.count_nonzero(outside) > values.size / 1000:
        raise ValueError(
            f"its values lie between {values.min():g} and {values.max():g}, those of "
            f"fit between {low:g} and {high:g}: scale it like the others"
        )


def _hole(image):
    """Return the color that a PNG file calls transparent, or None: other ways do."""
    color = image.info.get("transparency")
    if image.mode not in ("1", "L", "RGB") or not isinstance(color, (int, tuple)):
        return None
    raw = image.tile[0][3] if getattr(image, "tile", None) else image.mode
    raw = raw[0] if isinstance(raw, tuple) else raw
    if isinstance(color, tuple):
        # of 16 bits Pillow keeps the upper 8
        return tuple(c >> 8 for c in color) if raw == "RGB;16B" else color
    return color * _UNPACKED.get(raw, 1)


def _without_hole(picture, color):
    values = np.asarray(picture.convert("L" if picture.mode == "1" else picture.mode))
    values = values.copy()
    same = values == np.array(color)
    values[same.all(-1) if values.ndim == 3 else same] = _WHITE
    return Image.fromarray(values)


def _on_paper(picture):
    """Return a picture with transparency as it looks on white paper."""
    if picture.mode == "La":
        picture = picture.convert("LA")
    picture = picture.convert("RGBA")
    paper = Image.new("RGBA", picture.size, (_WHITE,) * 4)
    return Image.alpha_composite(paper, picture).convert("RGB")


class Pictures:
    """Images in their own sizes, by one rule for all of them.

    Parameters
    ----------
    items : sequence
        As `opened` takes them.
    max_pixels : int or None
    side : int or None
        JPEG files larger than that are decoded at reduced scale.
    """

    def __init__(self, items, max_pixels=None, side=None):
        self.items, self.max_pixels, self.side = items, max_pixels, side
        self.value_range = None

    def __getitem__(self, row):
        """Return an image as uint8 of shape (h, w, 3)."""
        item = self.items[row]
        with opened(item, self.max_pixels) as image:
            if self.side and not isinstance(item, Image.Image):
                image.draft("RGB", (self.side, self.side))
            if self.value_range is None and not look(image).ranged:
                self.value_range = shared_range(self.items, self.max_pixels)
            return decode(image, None, self.value_range)


def shared_range(items, max_pixels=None):
    """Return (black, white) of all images without a range of their own; or None."""

    def find(row):
        try:
            with opened(items[row], max_pixels) as image:
                return None if look(image).ranged else extremes(image)
        except UNREADABLE:
            return None

    # a pool of its own: the one of the caller may wait for this; pictures are in
    # memory, and one may stand in several rows
    alone = len(items) and isinstance(items[0], Image.Image)
    with ThreadPoolExecutor(1 if alone else os.cpu_count()) as pool:
        found = [ends for ends in pool.map(find, range(len(items))) if ends]
    return common_range(found)


def common_range(found):
    """Return (black, white) for images of these smallest and largest values.

    As for arrays: values within [0, 1] are as they are, others go from the smallest to
    the largest of all.
    """
    if not found:
        return None
    low, high = min(low for low, _ in found), max(high for _, high in found)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1.0
