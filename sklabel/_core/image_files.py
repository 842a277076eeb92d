"""Image files: decoded when their rows are fetched."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image, ImageOps

from .files import open_image

_CACHE_BYTES = 2**30  # decoded images are kept up to this size
_BLOCK = 32  # files that are decoded side by side to find those that cannot be
_ORIENTATION = 0x0112  # of EXIF; 5 to 8: height and width change places
# what Pillow raises for a file that is no image, a cut one, or a giant one
UNREADABLE = OSError, ValueError, SyntaxError, Image.DecompressionBombError


class ImageFiles:
    """Image files, decoded to uint8 RGB of one size when their rows are asked for.

    Parameters
    ----------
    paths : list of str
    size : (int, int)
        Height and width; other sizes are resized, anti-aliased, without regard to the
        aspect ratio, so that nothing of an image is cut off.
    skip : bool, default=False
        Whether a file that cannot be read is black, marked in ``bad`` and explained in
        ``errors``; otherwise it is an error.

    Notes
    -----
    Decoded images stay in memory while all of them together fit into 1 GiB.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths, size, skip=False):
        self.paths = np.asarray(paths, dtype=object)
        self.size = size
        self.skip = skip
        self.bad = np.zeros(len(paths), bool)
        self.errors = {}  # row: what is wrong with its file
        self._cache = self._cached = None

    def __len__(self):
        return len(self.paths)

    def __getstate__(self):
        return {**vars(self), "_cache": None, "_cached": None}

    @property
    def fits_in_memory(self):
        """Whether all images are kept once decoded."""
        return len(self) * 3 * self.size[0] * self.size[1] <= _CACHE_BYTES

    def __getitem__(self, rows):
        rows = np.asarray(rows)
        if self.fits_in_memory:
            if self._cache is None:
                self._cache = np.zeros((len(self), *self.size, 3), np.uint8)
                self._cached = np.zeros(len(self), bool)
            missing = np.unique(rows[~self._cached[rows]])
            for row, image in zip(missing, self._read(missing), strict=True):
                self._cache[row] = image
            self._cached[missing] = True
            return self._cache[rows]
        return np.stack(list(self._read(rows)))

    def find_unreadable(self):
        """Decode every file once; those that cannot be read are black from then on."""
        skip, self.skip = self.skip, True
        for start in range(0, len(self), _BLOCK):
            self[np.arange(start, min(start + _BLOCK, len(self)))]
        self.skip = skip
        return self.bad

    def _read(self, rows):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield from pool.map(self._decode, rows)

    def _decode(self, row):
        if not self.bad[row]:
            try:
                return self._open(self.paths[row])
            except UNREADABLE as error:
                if not self.skip:
                    raise unreadable(self.paths[row], error) from error
                self.bad[row], self.errors[row] = True, str(error)
        return np.zeros((*self.size, 3), np.uint8)

    def _open(self, path):
        with open_image(path) as image:
            image.draft("RGB", self.size[::-1])  # JPEG: decode at reduced scale
            image = ImageOps.exif_transpose(image).convert("RGB")
            if image.size != self.size[::-1]:
                image = image.resize(
                    self.size[::-1], Image.Resampling.BILINEAR, reducing_gap=2.0
                )
            return np.asarray(image)


def unreadable(path, error):
    """Return what to raise for an image file that cannot be read."""
    return ValueError(
        f"Cannot read the image {str(path)!r} ({error}). Remove or replace the file, "
        'or pass on_error="skip" to leave such files out.'
    )


class StreamedFiles(ImageFiles):
    """Image files that are decoded batch by batch and not kept.

    With a ``frame``, files of any size are brought to that of the network one by one.
    """

    fits_in_memory = False

    def __init__(self, paths, size, skip, frame=None):
        super().__init__(paths, size, skip)
        self.frame = frame

    def _open(self, path):
        if self.frame is None:
            return super()._open(path)
        image = torch.from_numpy(decoded(path).copy())  # (h, w, 3)
        x = self.frame(image.permute(2, 0, 1)[None].float() / 255)[0]
        return (x.permute(1, 2, 0) * 255).numpy()

    def sizes(self):
        """Return the sizes (height, width) of all files; only their heads are read."""
        found = set()
        for path in self.paths:
            try:
                with open_image(path) as image:
                    # of PNG files its own getexif would decode the whole image
                    turned = Image.Image.getexif(image).get(_ORIENTATION, 1) > 4
                    found.add(image.size if turned else image.size[::-1])
            except UNREADABLE as error:
                if not self.skip:
                    raise unreadable(path, error) from error
        if not found:
            raise ValueError(f"None of the {len(self)} image files can be read.")
        return found


def decoded(path):
    """Return an image file as (h, w, 3) uint8, upright."""
    with open_image(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
