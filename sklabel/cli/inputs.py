"""The images that the commands read: a folder of them."""

import os
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import sklabel

from .._core.files import expanded
from . import words

# for more images and more seconds than these the expected time is printed
_MANY, _LONG = 100, 10


def list_images(folder, least=2, one=False):
    """Return {path relative to the folder: path} of its images, in natural order.

    With ``one``, a file instead of a folder is the only one.
    """
    folder, files = expanded(folder), {}
    if one and folder.exists() and not folder.is_dir():
        folder, paths = folder.parent, [folder]
    else:
        paths = sklabel.datasets.load_image_folder(folder, labels=None).paths
    above = "" if folder == Path() else os.path.join(folder, "")
    for path in map(str, paths):
        name = path.removeprefix(above).replace(os.sep, "/")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the name of the file {name!a} is not UTF-8: rename it."
            ) from None
        files[name] = path
    if len(files) < least:
        raise ValueError(
            f"the folder {folder} has only one image; {least} or more are needed."
        )
    return files


def read_images(files, size, args, model=None, least=2):
    """Decode all images once, for all uses.

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
        Model that was trained on other images.
    least : int
        Minimum number of readable files.

    Returns
    -------
    names : list of str
        Names of the files that can be read.
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
    _tell_pages(images, looked=images.learn)
    names = _names_of_readable(files, images, args, least)
    return names, np.delete(pixels, list(images.errors), axis=0)


def readable(embedder, files, args, least=2, told=False):
    """Embed files of any size, and return those that can be read.

    Vectors are kept in the ``cache_dir`` of the embedder: the next call finds them.
    Files with several pages are named, unless the embedder has ``told`` them in fit.

    Returns
    -------
    names : list of str
    paths : ndarray of str of shape (len(names),)
    """
    import numpy as np

    from .._core.image_files import ImageFiles

    paths = list(files.values())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* image files cannot be read")
        if not args.quiet:
            _announce(embedder, paths)
        embedder.set_params(verbose=int(not args.quiet))
        Z = embedder.transform(paths)
        embedder.set_params(verbose=0)
    bad = np.flatnonzero(np.isnan(Z).any(axis=1))
    images = ImageFiles(paths, (8, 8), skip=True, max_pixels=args.max_pixels)
    if len(bad):
        images[bad]  # says what is wrong with each
    if not told:
        _tell_pages(images)
    names = _names_of_readable(files, images, args, least)
    return names, np.array([files[name] for name in names], dtype=object)


def _tell_pages(images, looked=False):
    """Name the files with several pages; only their first page is read.

    ``looked``: whether the heads of all files have been read.
    """
    if not looked:
        with suppress(ValueError):  # no file can be read: the caller reports that
            images.sizes()
    if images.several:
        say(f"warning: {images.pages_text()}")


def _announce(embedder, paths):
    """Print the expected time of embedding, measured on a few images."""
    n = embedder._n_unknown(paths)
    if n < _MANY:
        return
    kept = embedder.cache_dir
    embedder.set_params(cache_dir=None, verbose=0)
    try:
        some = paths[:: -(-len(paths) // 8)]
        embedder.transform(some[:1])
        start = time.perf_counter()
        embedder.transform(some)
        seconds = (time.perf_counter() - start) / len(some) * n
    except ValueError:  # none of these few can be read
        return
    finally:
        embedder.set_params(cache_dir=kept)
    if seconds > _LONG:
        say(f"{n} images to embed: {words.duration(seconds)}.")


def _names_of_readable(files, images, args, least):
    """Return the names of readable files, if others may be left out."""
    if not images.errors:
        return list(files)
    found = images.broken_text()
    if not args.skip_broken:
        raise ValueError(
            f"{found}. Repair or remove such files, or leave them out with "
            "--skip-broken."
        )
    if len(files) - len(images.errors) < least:
        needed = "At least two images are" if least > 1 else "At least one image is"
        raise ValueError(f"{found}. {needed} needed.")
    say(f"{found}; left out.")
    return [name for row, name in enumerate(files) if row not in images.errors]


def say(text, args=None):
    """Print a line to stderr; with ``args``, not if quiet."""
    if args is None or not args.quiet:
        print(f"sklabel: {words.in_commands(text)}", file=sys.stderr)


def keep_range(estimator, args):
    """Make an estimator trained on `read_images` read other files alike."""
    if getattr(args, "value_range", None) is not None:
        estimator._value_range = args.value_range
    return estimator


def as_y(names, labels):
    """Return the label of each name for estimators, -1 for unlabeled."""
    import numpy as np

    return np.array([labels.get(name, -1) for name in names], dtype=object)
