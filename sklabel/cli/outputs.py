"""What the commands write: checked before the long work, replaced at its end."""

import csv
import io
import os
import tempfile
from pathlib import Path

from .._core.files import replacing


def check_file(path):
    """Raise an error if a file cannot be written, while nothing has been done yet."""
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write {path}: it is not a file.")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"cannot write {path}: it is write-protected.")
    _check_place(path, path.parent)


def check_folder(folder):
    """The same for a folder that may have to be made; None: there is none."""
    if folder is None:
        return
    folder = place = Path(folder)
    while not place.exists():
        place = place.parent
    _check_place(folder, place)


def _check_place(path, folder):
    if not folder.is_dir():
        missing = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"cannot write {path}: {folder} {missing}.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}.") from None


def check_not_filled_in(path):
    """Raise an error if a CSV holds labels: an hour of somebody's work."""
    if not path.exists():
        return
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        filled = sum(bool((row.get("label") or "").strip()) for row in rows)
    except (UnicodeDecodeError, csv.Error):
        filled = "other"
    if filled or (rows and "label" not in rows[0]):
        raise ValueError(
            f"{path} exists and is no empty list of sklabel select: it is not "
            "overwritten. Give another --out, or remove it."
        )


def csv_text(header, rows):
    text = io.StringIO()
    # until Python 3.13 a lone carriage return is not quoted by itself
    odd = any("\r" in str(cell) for row in rows for cell in row)
    quoting = csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL
    writer = csv.writer(text, lineterminator="\n", quoting=quoting)
    writer.writerows([header, *rows])
    return text.getvalue()


def write_csv(path, header, rows):
    with replacing(path) as file:
        file.write(csv_text(header, rows).encode())


def write_picture(path, picture):
    with replacing(path) as file:
        picture.save(file, format="PNG")
