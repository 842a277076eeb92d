"""What the commands read: a folder of images, and a CSV with labels."""

import csv
import io
import sys
import unicodedata
from pathlib import Path, PurePosixPath

import sklabel


def list_images(folder):
    """Return {path relative to the folder: path} of its images, in natural order."""
    files = {}
    for path in sklabel.datasets.load_image_folder(folder, labels=None).paths:
        name = Path(path).relative_to(Path(folder).expanduser()).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the name of the file {name!a} is not UTF-8: rename it."
            ) from None
        files[name] = path
    if len(files) < 2:
        raise ValueError(f"{folder} holds one image: at least two are needed.")
    return files


def read_images(files, size, args, model=None):
    """Decode all images once, for all that is done with them.

    An estimator would take the paths too, and decode them in each of its calls.

    Parameters
    ----------
    files : dict
        Of `list_images`.
    size : (int, int)
        Height and width to which they are resized.
    args : namespace
        ``skip_broken``, ``quiet`` and ``max_pixels`` are used; ``value_range`` is set,
        see `keep_range`.
    model : estimator or None
        What has been trained on other images already.

    Returns
    -------
    names : list of str
        Of the files that can be read.
    images : ndarray of shape (len(names), height, width, 3), uint8
    """
    import numpy as np
    from tqdm.auto import tqdm

    from .._core.image_files import ImageFiles

    known = vars(model).get("_value_range") if model is not None else None
    images = ImageFiles(
        list(files.values()),
        size,
        skip=True,
        value_range=known,
        learn=model is None or not hasattr(model, "classes_"),
        max_pixels=args.max_pixels,
    )
    pixels = np.empty((len(files), *size, 3), np.uint8)
    with tqdm(
        total=len(files), desc="reading", unit="image", disable=args.quiet
    ) as bar:
        images.read_into(pixels, bar.update)
    args.value_range = images.value_range
    if images.several:
        _say(images.pages_text())
    if not images.errors:
        return list(files), pixels
    found = images.broken_text()
    if not args.skip_broken:
        raise ValueError(
            f"{found}. Repair or remove such files, or leave them out with "
            "--skip-broken."
        )
    if len(files) - len(images.errors) < 2:
        raise ValueError(f"{found}. At least two images are needed.")
    _say(f"{found}; left out.")
    names = [name for row, name in enumerate(files) if row not in images.errors]
    return names, np.delete(pixels, list(images.errors), axis=0)


def _say(text):
    print(f"sklabel: {' '.join(text.split())}", file=sys.stderr)


def keep_range(estimator, args):
    """Let an estimator that has learned from `read_images` read other files alike."""
    if getattr(args, "value_range", None) is not None:
        estimator._value_range = args.value_range
    return estimator


def read_labels(path, column, files, folder):
    """Return {name: label} of the rows of a CSV that have a label.

    The separator may be a comma, a semicolon or a tab: spreadsheets write all three.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: save it as CSV UTF-8.") from None
    first_line = text.partition("\n")[0]
    separator = max(",;\t", key=first_line.count)
    try:
        table = csv.DictReader(
            io.StringIO(text, newline=""), delimiter=separator, strict=True
        )
        header, rows = list(table.fieldnames or []), list(table)
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV: {error}.") from None
    for name in ("path", column):
        if name not in header:
            found = ", ".join(map(repr, header)) or "none"
            remedy = "" if name == "path" else " Name one with --label-column."
            raise ValueError(f"{path} has no column {name!r}; found: {found}.{remedy}")
    composed = {unicodedata.normalize("NFC", name): name for name in files}
    labels, strangers = {}, []
    for row in rows:
        name, label = row["path"] or "", (row[column] or "").strip()
        if not name and not label:
            continue
        if name not in files:
            name = PurePosixPath(name.replace("\\", "/")).as_posix()
        if name not in files:  # accents are composed, or are signs of their own
            name = composed.get(unicodedata.normalize("NFC", name), name)
        if name not in files:
            strangers.append(row["path"])
        elif label and labels.setdefault(name, label) != label:
            raise ValueError(
                f"{path} has two labels for {name}: {labels[name]!r} and {label!r}."
            )
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise ValueError(
            f"{path} names {strangers[0]!r}{more}, but no such image is in {folder}: "
            "paths count from that folder."
        )
    if "-1" in labels.values():
        raise ValueError(
            f"{path} has the label '-1', which stands for unlabeled in this package: "
            "leave such cells empty, or give the class another name."
        )
    return labels


def as_y(names, labels):
    """Return the label of each name, -1 where there is none, as estimators take it."""
    import numpy as np

    return np.array([labels.get(name, -1) for name in names], dtype=object)
