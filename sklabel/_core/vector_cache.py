"""Vectors on disk: what a network has made of a row need not be computed again."""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load as deserialize
from safetensors.numpy import save as serialize

from .decoding import content
from .files import remove_partial, replacing
from .image_files import unreadable
from .samples import native
from .warn import warn

_FORMAT = "2"
_BLOCK_BYTES = 2**28  # of arrays, as floats
# vectors are written to disk when they are so many, or have waited so long
_SHARD_BYTES = 2**26
_SHARD_SECONDS = 60
# digests of files, by device and inode: (size and times, digest); some 300 bytes each
_REMEMBERED: dict = {}
_MOST_REMEMBERED = 2**20
_TICK = 3 * 10**9  # nanoseconds; times of files may be rounded to two seconds


class VectorCache:
    """Vectors on disk, found by the content of the row they belong to.

    Parameters
    ----------
    folder : str or Path
        Holds a folder for each name. Each file in it holds some rows with their
        digests; its name is a checksum; none is ever changed.
    name : str
        Of all that a vector depends on but its row: see `cache_name`.
    """

    def __init__(self, folder, name):
        self.folder = Path(folder) / name
        self.failed = False  # to be written

    def fill(self, samples, Z, embed, done):
        """Fill Z with the vectors of all rows; those that are not known are embedded.

        Parameters
        ----------
        samples : Samples
            Rows of missing files are marked as bad.
        Z : ndarray of float32 of shape (n_samples, n_features)
            Changed.
        embed : callable
            ``embed(rows, Z)`` fills these rows of Z, and yields the numbers of each
            batch of them. What it has filled is kept if it is interrupted.
        done : callable
            Told of the number of rows filled since the last call.
        """
        rows_of = {}
        for row, digest in enumerate(_digests(samples)):
            if digest is None:
                samples.bad[row] = True
            else:
                rows_of.setdefault(digest, []).append(row)
        self._read(rows_of, Z)
        done(len(samples) - len(rows_of))
        if not rows_of:
            return
        digest_of = {rows[0]: digest for digest, rows in rows_of.items()}
        waiting, since = [], time.monotonic()
        most = max(1, _SHARD_BYTES // (4 * Z.shape[1]))
        try:
            for batch in embed(np.array(list(digest_of)), Z):
                done(len(batch))
                for row in batch:
                    same = rows_of[digest_of[row]]
                    Z[same], samples.bad[same] = Z[row], samples.bad[row]
                waiting += list(batch[~samples.bad[batch]])
                if len(waiting) >= most or time.monotonic() - since > _SHARD_SECONDS:
                    ready, waiting = waiting, []
                    self._write([digest_of[row] for row in ready], Z[ready])
                    since = time.monotonic()
        finally:  # also what an error or Ctrl-C leaves
            self._write([digest_of[row] for row in waiting], Z[waiting])

    def n_unknown(self, samples):
        """Return how many rows would be embedded by `fill`; copies count once."""
        wanted = set(_digests(samples)) - {None}
        for path in self.folder.glob("*.safetensors"):
            with suppress(Exception):  # what is damaged is embedded again
                found = deserialize(path.read_bytes())["digests"]
                wanted.difference_update(digest.tobytes() for digest in found)
        return len(wanted)

    def _read(self, rows_of, Z):
        """Fill rows of Z; remove what was found from ``rows_of`` (digest: rows)."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if not rows_of:
                return
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue  # another process has removed it
            except OSError as error:  # it may be whole, and another's
                warn(
                    f"The file {str(path)!r} of cache_dir cannot be read ({error}): "
                    "its rows are embedded again. Check that you may read files "
                    "written by other users.",
                    UserWarning,
                )
                continue
            try:
                shard = deserialize(content)
                digests, found = shard["digests"], shard["Z"]
                if _checksum(digests, found) != path.stem:
                    raise ValueError("its checksum does not match")
                if found.shape[1:] != Z.shape[1:] or len(found) != len(digests):
                    raise ValueError(f"it holds vectors of shape {found.shape}")
            except Exception as error:  # what stands in the file may be anything
                warn(
                    f"The file {str(path)!r} of cache_dir is damaged ({error}): its "
                    "rows are embedded again.",
                    UserWarning,
                )
                with suppress(OSError):  # only its owner may remove it
                    path.unlink()
                continue
            for digest, z in zip(digests, found, strict=True):
                Z[rows_of.pop(digest.tobytes(), [])] = z

    def _write(self, digests, Z):
        """Write rows as one file, if that is allowed."""
        if not digests or self.failed:
            return
        try:
            self._write_file(digests, Z)
        except OSError as error:
            self.failed = True
            warn(
                f"cache_dir={str(self.folder.parent)!r} cannot be written ({error}); "
                "the vectors are returned, but not saved. Give another folder to save "
                "them.",
                UserWarning,
            )

    def _write_file(self, digests, Z):
        """Write a file that is there whole or not at all."""
        digests = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
        checksum = _checksum(digests, Z)
        data = serialize({"digests": digests, "Z": Z})
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_partial(self.folder, r"[0-9a-f]+\.safetensors")
        with replacing(self.folder / f"{checksum}.safetensors") as file:
            file.write(data)


def cache_name(module, *settings):
    """Return a name for what a module makes of rows: its weights, and some settings."""
    key = [_FORMAT, *settings, repr(module)]
    digest = hashlib.blake2b(repr(key).encode(), digest_size=12)
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def _digests(samples):
    """Return what stands for the content of each row; None for a missing file."""
    if getattr(samples.source, "is_encoded", False):
        return _digests_of_files(samples.source)
    layout = samples.channels_last, samples.row_shape
    step = max(1, _BLOCK_BYTES // (4 * int(np.prod(samples.sample_shape))))
    digests = []
    for i in range(0, len(samples), step):
        block = native(samples.source[i : i + step])
        kind = _blake()
        kind.update(repr((layout, block.dtype.str)).encode())
        for row in block:
            digest = kind.copy()
            digest.update(row)
            digests.append(digest.digest())
    return digests


def _digests_of_files(files):
    def digest(row):
        try:
            return _digest_of_file(files, row)
        except (OSError, ValueError) as error:
            if not files.skip:
                raise unreadable({files.name(row): error}) from error

    return files.map(digest, range(len(files)))


def _digest_of_file(files, row):
    """Return the digest of a row's content; a file is read once in a process.

    A file that has changed shows it by its size or its times. One that was changed just
    now may change again within the same tick of the clock: it is not remembered.
    """
    item, found = content(files.items[row]), None
    if isinstance(item, (str, os.PathLike)):
        now, found = time.time_ns(), os.stat(item)
        place = found.st_dev, found.st_ino
        state = found.st_size, found.st_mtime_ns, found.st_ctime_ns
        known = _REMEMBERED.get(place)
        if known is not None and known[0] == state:
            return known[1]
    digest = _blake()
    files.update_digest(row, digest)
    digest = digest.digest()
    if found is not None and now - max(state[1:]) > _TICK:
        if len(_REMEMBERED) >= _MOST_REMEMBERED:
            _REMEMBERED.clear()
        _REMEMBERED[place] = state, digest
    return digest


def _checksum(*arrays):
    digest = _blake()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _blake():
    return hashlib.blake2b(digest_size=16)
