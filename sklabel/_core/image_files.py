"""Image files, encoded bytes and pictures: decoded when their rows are fetched."""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from .columns import Column
from .decoding import (
    UNREADABLE,
    NoRange,
    content,
    decode,
    look,
    opened,
    shared_range,
)
from .files import check_regular, trouble

_CACHE_BYTES = 2**30  # decoded images are kept up to this size
_BLOCK = 256  # images that are decoded before Ctrl-C is noticed
_AT_ONCE = 16  # most of them that a thread is given together
_NAMED = 10  # files in a message


class ImageFiles:
    """Images that are decoded to uint8 of one size when their rows are read.

    Parameters
    ----------
    items : Column or list of paths
    size : (int, int) or None
        Height and width; other sizes are resized, anti-aliased, without regard to the
        aspect ratio, so that nothing of an image is cut off. None: not known yet.
    skip : bool, default=False
        Whether an image that cannot be read is black, marked in ``bad`` and explained
        in ``errors``; otherwise it is an error.
    value_range : (float, float) or None, default=None
        Black and white of images whose values have no range of their own.
    learn : bool, default=True
        Whether ``value_range`` is that of all these images where it is None.
    near : (float, float) or None, default=None
        A range to take in its place where it holds that of these images.
    max_pixels : int or None, default=None
        Largest number of pixels of an image; None: Pillow's limit.
    gray : bool, default=False
        Whether they have one channel; otherwise all are RGB.

    Notes
    -----
    Decoded images stay in memory while all of them together fit into 1 GiB.
    """

    dtype = np.dtype(np.uint8)
    is_encoded = True
    _looked = False  # at all heads

    def __init__(
        self,
        items,
        size,
        skip=False,
        *,
        value_range=None,
        learn=True,
        near=None,
        max_pixels=None,
        gray=False,
    ):
        self.items = items if isinstance(items, Column) else Column(list(items), False)
        self.size = size
        self.skip = skip
        self.value_range = value_range
        self.learn = learn
        self.near = near
        self.max_pixels = max_pixels
        self.gray = gray
        self.bad = np.zeros(len(self.items), bool)
        self.errors = {}  # row: what is wrong with its file
        self.several = set()  # rows of files with several pages
        self._unranged = False  # some values have no range of their own
        self._reset()

    def _reset(self):
        self._cache = self._cached = self._pool = None
        self._lock = threading.Lock()

    def __len__(self):
        return len(self.items)

    def __getstate__(self):
        lost = dict.fromkeys(("_cache", "_cached", "_pool", "_lock"))
        return {**vars(self), **lost}

    def __setstate__(self, state):
        vars(self).update(state)
        self._reset()

    @property
    def n_channels(self):
        """1 or 3."""
        return 1 if self.gray else 3

    @property
    def fits_in_memory(self):
        """Whether all images are kept once decoded."""
        n_values = self.n_channels * self.size[0] * self.size[1]
        return len(self) * n_values <= _CACHE_BYTES

    def __getitem__(self, rows):
        rows = np.asarray(rows)
        if self.fits_in_memory:
            self._load(np.unique(rows))
            return self._cache[rows]
        found = self.map(self._decode, rows)
        self._raise()
        return np.stack(found)

    def name(self, row):
        """Return what an image is called in messages."""
        return self.items.name(row)

    def sizes(self):
        """Return {(height, width): a row of that size}; only heads are read."""
        found = {}
        for row, head in enumerate(self.map(self._look, range(len(self)))):
            if head is not None:
                found.setdefault(head.size, row)
        self._looked = True
        self._raise()
        if not found:
            raise ValueError(self.none_text())
        return found

    def prepare(self):
        """Find out what must be known of all images before the first one is used.

        Which cannot be read, which have several pages, and the range of the values of
        those that have none of their own. What fits into memory is decoded in passing.
        """
        rows = np.arange(len(self))
        if self.fits_in_memory:
            self._load(rows)
        elif self.skip:  # only what has been decoded is known to be whole
            self.map(self._decode, rows)
        else:
            if not self._looked:
                self.map(self._look, rows)
            self.learn_range()
        self._raise()

    def read_into(self, images, done=None):
        """Decode all images into an array.

        Parameters
        ----------
        images : ndarray of uint8 of shape (n, height, width, n_channels)
            Changed.
        done : callable or None
            Told of the number of images decoded since the last call.
        """

        def read(row):
            images[row] = self._decode(row).reshape(images.shape[1:])

        self.map(read, np.arange(len(self)), done)
        self._raise()

    def update_digest(self, row, digest):
        """Give all that an image is made from to an object of hashlib."""
        item = content(self.items[row])
        if isinstance(item, Image.Image):
            palette = item.getpalette() if item.mode in ("P", "PA") else None
            rest = item.mode, item.size, palette, sorted(item.info.items(), key=repr)
            digest.update(repr(rest).encode())
            digest.update(item.tobytes())
        elif isinstance(item, (str, os.PathLike)):
            check_regular(item)
            with open(item, "rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        else:
            digest.update(item)

    def states(self):
        """Return for each image what changes when it does; of files size and time."""
        return [self._state(row) for row in range(len(self))]

    def _state(self, row):
        item = self.items[row]
        if isinstance(item, (str, os.PathLike)):
            try:
                found = os.stat(item)
            except OSError:  # it is left out, or an error is raised for it
                return [str(item), None, None]
            return [str(item), found.st_size, found.st_mtime_ns]
        digest = hashlib.blake2b(digest_size=16)
        try:
            self.update_digest(row, digest)
        except UNREADABLE:
            return [None]
        return [digest.hexdigest()]

    def map(self, function, rows, done=None):
        """Return what a function makes of each row; rows are treated side by side.

        Parameters
        ----------
        function : callable
        rows : sequence of int
        done : callable or None
            Told of the number of rows treated since the last call.
        """
        if self.items.kind == "picture" and not self.items.lazy:
            # they are in memory, and one picture may stand in several rows
            found = [function(row) for row in rows]
            if done is not None:
                done(len(rows))
            return found
        if self._pool is None:
            self._pool = ThreadPoolExecutor(os.cpu_count())
        found = []
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            # some at once: to hand a row over takes as long as to look at a small file
            size = max(1, min(_AT_ONCE, len(block) // (4 * os.cpu_count())))
            parts = [block[i : i + size] for i in range(0, len(block), size)]
            for part in self._pool.map(lambda part: list(map(function, part)), parts):
                found += part
            if done is not None:
                done(len(block))
        return found

    def _load(self, rows):
        """Decode those of some images that are not in the cache yet."""
        if self._cache is None:
            channels = () if self.gray else (3,)
            self._cache = np.zeros((len(self), *self.size, *channels), np.uint8)
            self._cached = np.zeros(len(self), bool)

        def load(row):
            self._cache[row] = self._decode(row)

        missing = rows[~self._cached[rows]]
        self.map(load, missing)
        self._raise()
        self._cached[missing] = True

    def _look(self, row):
        """Return the head of an image; None: it cannot be read."""
        try:
            with self._opened(row) as image:
                head = look(image)
            if head.several:
                self.several.add(row)
            self._unranged |= not head.ranged
            return head
        except UNREADABLE as error:
            self._note(row, error)

    def _decode(self, row):
        if not self.bad[row]:
            try:
                with self._opened(row) as image:
                    if self.learn and look(image).several:
                        self.several.add(row)
                    try:
                        return self._pixels(image)
                    except NoRange:
                        if not self.learn:
                            raise
                self._learn_range()
                with self._opened(row) as image:
                    return self._pixels(image)
            except UNREADABLE as error:
                self._note(row, error)
        return np.zeros((*self.size, 3)[: 2 if self.gray else 3], np.uint8)

    def _opened(self, row):
        return opened(self.items[row], self.max_pixels)

    def _pixels(self, image):
        if self.items.kind != "picture":
            image.draft("RGB", self.size[::-1])  # JPEG: decode at reduced scale
        return decode(image, self.size, self.value_range, self.gray)

    def learn_range(self):
        """Find the range of values without one, if there are any among the heads."""
        if self.learn and self._unranged:
            self._learn_range()

    def _learn_range(self):
        with self._lock:
            if self.value_range is None:
                found = shared_range(self.items, self.max_pixels)
                holds = self.near is not None and range_holds(self.near, found)
                self.value_range = self.near if holds else found

    def _note(self, row, error):
        told = str(error) or repr(error)
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            told = trouble(error)
        self.bad[row], self.errors[int(row)] = True, told

    def _raise(self):
        """Raise an error that names the images that cannot be read, if it must."""
        if self.errors and not self.skip:
            errors = self.errors
            self.bad[:], self.errors = False, {}
            raise unreadable({self.name(row): errors[row] for row in sorted(errors)})

    def broken_text(self):
        """Return a line on the images that cannot be read, each with its reason."""
        texts = [f"{self.name(r)} ({self.errors[r]})" for r in sorted(self.errors)]
        what = f"{len(texts)} of {len(self)} image files cannot be read"
        return f"{what}: {_listed(texts)}"

    def none_text(self):
        """Return a line on unreadable images, each with its reason."""
        texts = [f"{self.name(r)} ({self.errors[r]})" for r in sorted(self.errors)]
        what = f"None of the {len(self)} image files can be read"
        return f"{what}: {_listed(texts)}." if texts else f"{what}."

    def warn_text(self):
        """Return a line on the images that are left out."""
        names = [self.name(row) for row in np.flatnonzero(self.bad)]
        return (
            f"{len(names)} of {len(self)} image files cannot be read and are left out: "
            f"{_listed(map(repr, names))}."
        )

    def pages_text(self):
        """Return a line on images with several pages."""
        names = [self.name(row) for row in sorted(self.several)]
        holds = "holds" if len(names) == 1 else "hold"
        return (
            f"{len(names)} of {len(self)} image files {holds} several pages or frames; "
            f"only the first is read: {_listed(map(repr, names))}."
        )


def range_holds(outer, inner):
    """Return whether one range of values holds three quarters of another at least."""
    common = min(outer[1], inner[1]) - max(outer[0], inner[0])
    return common >= 0.75 * (inner[1] - inner[0])


def unreadable(errors):
    """Return what to raise for images that cannot be read.

    Parameters
    ----------
    errors : dict
        What is wrong, by the name of the image.
    """
    if len(errors) == 1:
        ((name, error),) = errors.items()
        return ValueError(
            f"Cannot read the image {name!r} ({error}). Remove or replace the file, "
            'or pass on_error="skip" to leave such files out.'
        )
    listed = _listed(f"{name!r} ({error})" for name, error in errors.items())
    return ValueError(
        f"Cannot read {len(errors)} images: {listed}. Remove or replace the files, or "
        'pass on_error="skip" to leave such files out.'
    )


def _listed(texts):
    """Return the first ten of some texts, and how many there are more."""
    texts = list(texts)
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more


class StreamedFiles(ImageFiles):
    """Images that are decoded batch by batch and not kept.

    With a ``frame``, images of any size are brought to that of the network one by one.
    """

    fits_in_memory = False

    def __init__(self, items, size, skip, frame=None, **settings):
        super().__init__(items, size, skip, **settings)
        self.frame = frame

    def _pixels(self, image):
        if self.frame is None:
            return super()._pixels(image)
        pixels = decode(image, None, self.value_range)
        pixels = torch.from_numpy(pixels.copy())  # (h, w, 3)
        x = self.frame(pixels.permute(2, 0, 1)[None].float() / 255)[0]
        return (x.permute(1, 2, 0) * 255).numpy()
