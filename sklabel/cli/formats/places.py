"""Names of images in other programs, and the images of a folder they mean."""

import base64
import binascii
import os
import re
import unicodedata
import urllib.parse
from pathlib import PurePosixPath

from .. import lists

_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # by Label Studio, before the name
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def plain(place):
    """Return the path in an address of Label Studio, the web or a bucket."""
    if not (_ADDRESS.match(place) or place.startswith(("/data/", "/tasks/"))):
        return place
    try:
        parts = urllib.parse.urlsplit(place.replace("#", "%23"))
    except ValueError:  # http://[
        return place
    told = dict(
        pair.partition("=")[::2] for pair in parts.query.split("&") if "=" in pair
    )
    if parts.path.endswith("/data/local-files/") and "d" in told:
        return urllib.parse.unquote(told["d"])
    if parts.path.endswith(("/resolve/", "/presign/")) and "fileuri" in told:
        try:
            uri = base64.b64decode(urllib.parse.unquote(told["fileuri"])).decode()
        except (binascii.Error, ValueError):
            return place
        return plain(uri)
    if parts.scheme in ("", "http", "https", "file"):
        path = urllib.parse.unquote(parts.path)
    else:  # a bucket, whose keys are not quoted
        path = place.split("://", 1)[1].partition("/")[2]
    if "/data/upload/" in path:
        name = path.rsplit("/", 1)[1]
        uploaded = _UPLOADED.fullmatch(name)
        return uploaded[1] if uploaded else name
    return path if parts.scheme == "file" else path.lstrip("/")


class Finder:
    """Find the image of a folder that another program names.

    Parameters
    ----------
    files : dict
        {name: path} of the folder.
    folder : str
    """

    def __init__(self, files, folder):
        self.folder = folder
        self.names = lists.Names(files, folder, None)
        self.by_last = {}
        for name in files:
            last = name.rsplit("/", 1)[-1]
            for key in {_key(last), _key(os.path.splitext(last)[0])}:
                self.by_last.setdefault(key, []).append(name)

    def find(self, place, path):
        """Return the name of an image, or None.

        Parameters
        ----------
        place : str
            Name of the image in the file ``path``.
        """
        # an upload has lost its folder: it may be any image of that name
        texts = [] if "/data/upload/" in place else [place, plain(place)]
        for text in dict.fromkeys(texts):
            name = self.names.find(text, path, path) if text else None
            if name is not None:
                return name
        return self._by_end(plain(place), path)

    def _by_end(self, text, path):
        """Return the image whose path ends like a text, or the other way around."""
        meant = [_key(part) for part in PurePosixPath(text.replace("\\", "/")).parts]
        if not meant:
            return None
        best, found = 0, []
        for last in dict.fromkeys([meant[-1], _cut(meant[-1])]):
            for name in self.by_last.get(last, ()):
                known = [_key(part) for part in name.split("/")]
                known[-1] = last
                n = _n_common([*meant[:-1], last], known)
                if n < min(len(meant), len(known)):
                    continue
                if n > best:
                    best, found = n, []
                if n == best and name not in found:
                    found.append(name)
            if found:
                break
        if len(found) > 1:
            raise ValueError(
                f"{path}: {text!r} may be {found[0]!r} or {found[1]!r} of "
                f"{self.folder}. Rename one of them."
            )
        return found[0] if found else None


def _key(part):
    """Return a name as in Label Studio, without unusual characters of addresses."""
    part = unicodedata.normalize("NFC", part).strip().replace(" ", "_")
    return re.sub(r"[^-\w.]", "", part)


def _cut(last):
    uploaded = _UPLOADED.fullmatch(last)
    return uploaded[1] if uploaded else last


def _n_common(a, b):
    """Return the number of equal last parts of two paths."""
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n] == b[-1 - n]:
        n += 1
    return n
