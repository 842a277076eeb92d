"""The images that the commands read: a folder of them."""

import sys
from pathlib import Path

import sklabel

_BLOCK = 256  # images that are read before Ctrl-C is noticed


def list_images(folder, least=2):
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
    if len(files) < least:
        raise ValueError(
            f"the folder {folder} has only one image; {least} or more are needed."
        )
    return files


def read_images(files, size, args, least=2):
    """Decode all images once, for all that is done with them.

    An estimator would take the paths too, and decode them in each of its calls.

    Parameters
    ----------
    files : dict
        Of `list_images`.
    size : (int, int)
        Height and width to which they are resized.
    args : namespace
        ``skip_broken`` and ``quiet`` are used.
    least : int
        How many must be readable.

    Returns
    -------
    names : list of str
        Of the files that can be read.
    images : ndarray of shape (len(names), height, width, 3), uint8
    """
    import numpy as np
    from tqdm.auto import tqdm

    from .._core.image_files import ImageFiles

    paths = list(files.values())
    images = np.empty((len(paths), *size, 3), np.uint8)
    errors = {}
    with tqdm(
        total=len(paths), desc="reading", unit="image", disable=args.quiet
    ) as bar:
        for start in range(0, len(paths), _BLOCK):
            block = ImageFiles(paths[start : start + _BLOCK], size, skip=True)
            images[start : start + _BLOCK] = block[np.arange(len(block))]
            errors.update({start + row: why for row, why in block.errors.items()})
            bar.update(len(block))
    if not errors:
        return list(files), images
    row = min(errors)
    found = (
        f"{len(errors)} of {len(paths)} image files cannot be read"
        f"{', the first is' if len(errors) > 1 else ':'} {paths[row]} "
        f"({errors[row]})"
    )
    if not args.skip_broken:
        raise ValueError(
            f"{found}. Repair or remove such files, or leave them out with "
            "--skip-broken."
        )
    if len(paths) - len(errors) < least:
        needed = "At least two images are" if least > 1 else "At least one image is"
        raise ValueError(f"{found}. {needed} needed.")
    print(f"sklabel: {' '.join(found.split())}; left out.", file=sys.stderr)
    names = [name for row, name in enumerate(files) if row not in errors]
    return names, np.delete(images, list(errors), axis=0)


def as_y(names, labels):
    """Return the label of each name, -1 where there is none, as estimators take it."""
    import numpy as np

    return np.array([labels.get(name, -1) for name in names], dtype=object)
