"""Data sets: scikit-learn's digits, image folders, and downloaded sets."""

import functools
import hashlib
import importlib.util
import io
import os
import re
import tempfile
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
from sklearn.datasets import get_data_home, load_digits
from sklearn.utils import Bunch

from ._core.decoding import decode, is_heif
from ._core.docstrings import join_sections, split_sections
from ._core.files import (
    RAW_ENDINGS,
    check_folder,
    expanded,
    explained,
    image_format,
    open_image,
    read_head,
    replacing,
)
from ._core.warn import warn

_DIGITS = [str(i) for i in range(10)]
_FASHION = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
_CIFAR10 = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
_BLOOD = [
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
]
_BLOOD_URL = "https://zenodo.org/records/10519652/files/bloodmnist.npz?download=1"
_BLOOD_MD5 = "7053d0359d879ad8a5505303e11de1dc"


def load_digit_images(*, return_X_y=False):
    """Load scikit-learn's handwritten digits as gray images.

    1,797 images of 8x8 pixels, 10 classes; they are part of scikit-learn, so nothing
    is downloaded.

    Parameters
    ----------
    return_X_y : bool, default=False
        Return ``(images, target)`` instead of a Bunch.

    Returns
    -------
    bunch : Bunch
        ``images`` uint8 of shape (1797, 8, 8) in 0..255, ``data`` the same flattened
        to (1797, 64), ``target`` int64 of shape (1797,), ``target_names``, ``DESCR``.

    Notes
    -----
    scikit-learn's gray levels are 0..16; here they are scaled to 0..255.

    Examples
    --------
    >>> from sklabel.datasets import load_digit_images
    >>> images = load_digit_images().images
    >>> images.shape, images.dtype.name, int(images.max())
    ((1797, 8, 8), 'uint8', 255)
    """
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    target = digits.target.astype(np.int64)
    if return_X_y:
        return images, target
    return Bunch(
        data=images.reshape(len(images), -1),
        images=images,
        target=target,
        target_names=np.array(_DIGITS),
        DESCR=digits.DESCR,
    )


def load_image_folder(folder, *, recursive=True, extensions=None, labels="folder"):
    """List the image files of a folder, with the names of subfolders as classes.

    The paths are a valid X for every estimator of sklabel. No image is decoded; only
    files with an unknown extension are opened, to read their first bytes.

    Parameters
    ----------
    folder : str or pathlib.Path
        The folder.
    recursive : bool, default=True
        Whether files in subfolders, at any depth, are listed too. Files and folders
        whose names begin with a dot are skipped.
    extensions : tuple of str or None, default=None
        Extensions of image files, in upper or lower case. None: all readable formats,
        recognized by extension or else by content: BMP, GIF, ICO, JPEG, JPEG 2000, PNG,
        PPM, TIFF, WebP, AVIF and, with the extra ``heif``, HEIC.
    labels : {"folder"} or None, default="folder"
        ``"folder"``: the top-level subfolder of a file is its class; files directly in
        ``folder`` are unlabeled. ``None``: all files are unlabeled.

    Returns
    -------
    bunch : Bunch
        ``paths`` object array of str of shape (n,), in natural order (``img2`` before
        ``img10``); ``target`` int64 of shape (n,), position in ``target_names``, or -1
        for unlabeled files; ``target_names`` the sorted names of the class folders;
        ``ignored`` list of str, the other files. A warning counts the ignored files
        that are probably images.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    NotADirectoryError
        If ``folder`` is a file.
    PermissionError
        If ``folder`` must not be read.
    TypeError
        If ``folder`` is not a path.
    ValueError
        If no image is found, or ``labels`` is invalid.

    Warns
    -----
    UserWarning
        If images are ignored, a subfolder cannot be read, or the class folders are
        parts of a data set, such as train and test.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"folder={folder!r} must be a str or a pathlib.Path.")
    folder = expanded(folder)
    if labels not in ("folder", None):
        raise ValueError(f"labels must be 'folder' or None, got {labels!r}.")
    check_folder(folder)
    if isinstance(extensions, str):
        extensions = (extensions,)
    endings = extensions and tuple(
        e.lower() if e.startswith(".") else f".{e.lower()}" for e in extensions
    )
    paths, ignored = [], []
    for path in sorted(_list_files(folder, recursive), key=_natural_key):
        if endings is None:
            listed = _is_image(os.path.join(folder, path))
        else:
            listed = os.path.basename(path).lower().endswith(endings)
        (paths if listed else ignored).append(path)
    left_out = _count_images(ignored) if endings is None else ""
    if not paths:
        where = "or its subfolders" if recursive else "itself (recursive=False)"
        wanted = f"no file ends in {', '.join(endings or _USUAL)}"
        wanted += "" if endings else ", or is an image by its content"
        raise ValueError(
            f"No image found in {str(folder)!r} {where}: {wanted}."
            f"{f' {left_out}.' if left_out else ''}"
        )
    if left_out:
        warn(f"{left_out} (in {str(folder)!r})", UserWarning)
    names = [p.split(os.sep)[0] if labels and os.sep in p else None for p in paths]
    target_names = sorted({n for n in names if n is not None}, key=_natural_text)
    _warn_of_parts(folder, target_names)
    code = {name: i for i, name in enumerate(target_names)}
    column = np.empty(len(paths), dtype=object)
    above = os.path.join("" if folder == Path() else folder, "")
    column[:] = [above + p for p in paths]
    return Bunch(
        paths=column,
        target=np.array([code.get(n, -1) for n in names], dtype=np.int64),
        target_names=np.array(target_names, dtype=object),
        ignored=[above + p for p in ignored],
    )


_USUAL = ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"
# endings that are not looked behind
_IMAGE_ENDINGS = frozenset(
    ".apng .avif .avifs .bmp .dib .gif .ico .j2c .j2k .jp2 .jpe .jpeg .jpf .jpg .jfif "
    ".jpx .mpo .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
# nor are those of what lies beside images, and is not missed among them
_COMPANIONS = frozenset(
    ".bak .cfg .csv .db .doc .docx .gz .html .ini .ipynb .joblib .json .jsonl .log .md "
    ".mat .npy .npz .parquet .pdf .pkl .pt .pth .py .rst .safetensors .sh .tar .toml "
    ".tsv .txt .xls .xlsx .xml .xmp .yaml .yml .zip".split()
)
_HEIF_ENDINGS = frozenset((".heic", ".heif", ".hif"))
_PARTS = frozenset(
    "dev eval holdout test testing train training val valid validation".split()
)


def _is_image(path):
    """Return whether a file can be read as an image, by its name or its content."""
    ending = os.path.splitext(path)[1].lower()
    if ending in RAW_ENDINGS or ending in _COMPANIONS:
        return False
    if ending in _IMAGE_ENDINGS:
        return True
    try:
        head = read_head(path)
    except (OSError, ValueError):
        return False
    if is_heif(head):
        return importlib.util.find_spec("pillow_heif") is not None
    found = image_format(head)
    if found not in ("BMP", "ICO", "PPM"):
        return found is not None
    try:  # two letters or a few zeros may begin anything
        open_image(path).close()
    except (OSError, ValueError, SyntaxError):
        return False
    return True


def _count_images(paths):
    """Return a line on ignored files that are probably images, by kind; or ""."""
    kinds = Counter(Path(path).suffix.lower() or "no ending" for path in paths)
    kinds = {kind: n for kind, n in kinds.items() if kind not in _COMPANIONS}
    if not kinds:
        return ""
    total = sum(kinds.values())
    counts = ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items()))
    remedies = []
    if _HEIF_ENDINGS & set(kinds):
        remedies.append("install sklabel[heif] to read .heic")
    if RAW_ENDINGS & set(kinds):
        remedies.append("export raw files of cameras as JPEG or TIFF")
    files = "files" if total > 1 else "file"
    return f"{total} {files} ignored: {'; '.join([counts, *remedies])}"


def _warn_of_parts(folder, names):
    """Warn if the classes are parts of a data set."""
    parts = [name for name in names if name.lower() in _PARTS]
    if parts and (len(parts) == len(names) or len(parts) > 1):
        warn(
            f"The folders {', '.join(map(repr, parts))} of {str(folder)!r} are used "
            "as classes, but their names look like parts of a data set. Give one "
            f"part, for example load_image_folder({str(folder / parts[0])!r}), or "
            "labels=None.",
            UserWarning,
        )


def _list_files(folder, recursive):
    """Return paths relative to the folder; links are followed, circles are not.

    They are texts: to make a `Path` takes longer than to find a file.
    """
    found, visited = [], set()
    for place, subfolders, files in os.walk(
        folder, onerror=_warn_of_unread, followlinks=True
    ):
        real = os.path.realpath(place)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(s for s in subfolders if recursive and s[0] != ".")
        inside = Path(place).relative_to(folder)
        above = os.path.join("" if inside == Path() else inside, "")
        found += [above + f for f in files if f[0] != "."]
    return found


def _warn_of_unread(error):
    """Warn of a subfolder that cannot be listed."""
    warn(f"Left out with its images: {explained(error)}", UserWarning)


def _natural_text(text):
    """Return a sorting key with the numbers in a text read as numbers."""
    pieces = re.split(r"(\d+)", text.lower())
    # digits stand at odd places, so texts and numbers are never compared
    return [int(p) if i % 2 else p for i, p in enumerate(pieces)], text


def _natural_key(path):
    *folders, name = path.split(os.sep)
    return [*map(_natural_folder, folders), _natural_text(name)]


_natural_folder = functools.lru_cache(1024)(_natural_text)


_OF_ALL_FETCHERS = """
Parameters
----------
data_home : str or pathlib.Path, default=None
    The data folder; ``None``: the environment variable ``SKLABEL_DATA`` or, if it is
    not set, scikit-learn's data home.
download_if_missing : bool, default=True
    Whether to download a missing file; False raises an error.

Returns
-------
bunch : Bunch
    ``images`` uint8 of shape (n, ...), ``data`` the same flattened, ``target``
    int64 of shape (n,), ``target_names``; the official parts ``x_train``,
    ``y_train``, ``x_test``, ``y_test`` (views, in this order in ``images``);
    ``path`` the file that was read.

Raises
------
OSError
    If the file is damaged, or is missing and is not or cannot be downloaded.
"""


def _documented(fetcher):
    """Add the sections shared by all fetchers to a docstring without them."""
    if fetcher.__doc__:  # there is none where Python runs without docstrings
        own = split_sections(fetcher.__doc__)
        fetcher.__doc__ = join_sections({**split_sections(_OF_ALL_FETCHERS), **own})
    return fetcher


@_documented
def fetch_mnist(data_home=None, *, download_if_missing=True):
    """Load MNIST: 70,000 handwritten digits, gray, 28x28 pixels.

    Read from ``mnist.npz`` in the data folder; if it is missing, downloaded through
    torchvision (11 MB) and written there.

    References
    ----------
    .. [1] Y. LeCun et al., "Gradient-based learning applied to document
       recognition", Proceedings of the IEEE, 1998.
    """
    return _fetch(
        ["mnist.npz"],
        _from_torchvision("MNIST"),
        _DIGITS,
        data_home,
        download_if_missing,
    )


@_documented
def fetch_fashion_mnist(data_home=None, *, download_if_missing=True):
    """Load Fashion-MNIST: 70,000 articles of clothing, gray, 28x28 pixels.

    Read from ``fashion-mnist.npz`` in the data folder; if it is missing, downloaded
    through torchvision (30 MB) and written there.

    References
    ----------
    .. [1] H. Xiao et al., "Fashion-MNIST: a novel image dataset for benchmarking
       machine learning algorithms", 2017.
    """
    return _fetch(
        ["fashion-mnist.npz"],
        _from_torchvision("FashionMNIST"),
        _FASHION,
        data_home,
        download_if_missing,
    )


@_documented
def fetch_usps(data_home=None, *, download_if_missing=True):
    """Load USPS: 9,298 handwritten digits of zip codes, gray, 16x16 pixels.

    Read from ``usps.npz`` in the data folder; if it is missing, downloaded through
    torchvision (8 MB) and written there.

    References
    ----------
    .. [1] J. J. Hull, "A database for handwritten text recognition research", IEEE
       Transactions on Pattern Analysis and Machine Intelligence, 1994.
    """
    return _fetch(
        ["usps.npz"],
        _from_torchvision("USPS"),
        _DIGITS,
        data_home,
        download_if_missing,
    )


@_documented
def fetch_cifar10(data_home=None, *, download_if_missing=True):
    """Load CIFAR-10: 60,000 small photographs, color, 32x32 pixels.

    Read from ``cifar10.npz`` in the data folder, or from ``cifar10-jpeg.npz``, a copy
    with JPEG images (``jpeg_train``: all bytes in a row; ``offsets_train``: the start
    of each image and the end of the last; ``y_train``; likewise ``_test``). If both are
    missing, downloaded through torchvision (170 MB) and written there.

    Notes
    -----
    The JPEG copy is decoded once; the arrays (180 MB) are kept beside it, or in
    scikit-learn's data home if its folder is read-only. Its pixels differ slightly from
    the originals.

    References
    ----------
    .. [1] A. Krizhevsky, "Learning multiple layers of features from tiny images",
       technical report, 2009.
    """
    return _fetch(
        ["cifar10.npz", "cifar10-jpeg.npz"],
        _from_torchvision("CIFAR10"),
        _CIFAR10,
        data_home,
        download_if_missing,
    )


@_documented
def fetch_bloodmnist(data_home=None, *, download_if_missing=True):
    """Load BloodMNIST: 17,092 blood cells under the microscope, color, 28x28 pixels.

    Read from ``bloodmnist.npz`` in the data folder, or from ``blood-cells.npz``, a
    rebuilt copy with another random split; if both are missing, downloaded from Zenodo
    (35 MB), checked against its checksum, and written there.

    Returns
    -------
    bunch : Bunch
        ``images`` uint8 of shape (n, ...), ``data`` the same flattened, ``target``
        int64 of shape (n,), ``target_names``; the official parts ``x_train``,
        ``y_train``, ``x_val``, ``y_val``, ``x_test``, ``y_test`` (views, in this order
        in ``images``); ``path`` the file that was read.

    References
    ----------
    .. [1] J. Yang et al., "MedMNIST v2: a large-scale lightweight benchmark for 2D and
       3D biomedical image classification", Scientific Data, 2023.
    """
    return _fetch(
        ["bloodmnist.npz", "blood-cells.npz"],
        _from_zenodo,
        _BLOOD,
        data_home,
        download_if_missing,
    )


def _fetch(names, download, target_names, data_home, download_if_missing):
    """Return the Bunch of the first file that exists, downloaded if none does."""
    folder = Path(data_home or os.environ.get("SKLABEL_DATA") or get_data_home())
    folder = expanded(folder)
    path = next((folder / n for n in names if (folder / n).exists()), None)
    if path is None:
        path = folder / names[0]
        if not download_if_missing:
            raise OSError(
                f"There is no {path.name} in {str(folder)!r}, and download_if_missing "
                "is False: set it to True, or put the file there."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                _save_npz(path, download(Path(scratch)))
        except (OSError, RuntimeError) as error:  # torchvision raises RuntimeError
            raise OSError(
                f"{path.name} could not be downloaded to {str(folder)!r}: {error}. "
                "Without a network, put the file there by hand, or set data_home or "
                "the environment variable SKLABEL_DATA to the folder that has it."
            ) from error
    return _as_bunch(_read_arrays(path), target_names, path)


def _read_arrays(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            if "jpeg_train" not in file.files:
                return {k: file[k] for k in file.files if k[:2] in ("x_", "y_")}
            decoded = _writable(path.parent) / f"{path.stem}-decoded.npz"
            if decoded.exists() and decoded.stat().st_mtime >= path.stat().st_mtime:
                return _read_arrays(decoded)
            arrays = {}
            for part in ("train", "test"):
                arrays[f"x_{part}"] = _decode_jpegs(
                    file[f"jpeg_{part}"], file[f"offsets_{part}"]
                )
                arrays[f"y_{part}"] = file[f"y_{part}"]
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise OSError(
            f"{str(path)!r} is damaged or not a data set of this kind ({error}). "
            "Delete it and call this function again to download it."
        ) from error
    try:
        _save_npz(decoded, arrays)
    except OSError as error:
        warn(
            f"The decoded images could not be saved in {str(decoded)!r} ({error}), so "
            "they will be decoded again next time. Make the folder writable to avoid "
            "this.",
        )
    return arrays


def _writable(folder):
    """Return the folder, or scikit-learn's data home if it is read-only."""
    # the mode is looked at too, because a superuser may write everywhere
    if os.access(folder, os.W_OK) and os.stat(folder).st_mode & 0o222:
        return folder
    return Path(get_data_home())


def _decode_jpegs(stream, offsets):
    """Return images (n, h, w, 3) from JPEG files in a row."""
    images = None
    for i, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:])):
        with open_image(io.BytesIO(stream[start:stop].tobytes())) as image:
            pixels = decode(image)
        if images is None:
            images = np.empty((len(offsets) - 1, *pixels.shape), dtype=np.uint8)
        images[i] = pixels
    return images


def _as_bunch(arrays, target_names, path):
    parts = [p for p in ("train", "val", "test") if f"x_{p}" in arrays]
    try:
        images = np.concatenate([arrays[f"x_{p}"] for p in parts])
        target = np.concatenate([arrays[f"y_{p}"] for p in parts]).astype(np.int64)
    except (KeyError, ValueError) as error:
        raise OSError(
            f"{str(path)!r} is not a data set of this kind: x_train, y_train, x_test "
            f"and y_test are needed, it has {sorted(arrays)}."
        ) from error
    bunch = Bunch(
        data=images.reshape(len(images), -1),
        images=images,
        target=target,
        target_names=np.array(target_names),
        path=str(path),
    )
    start = 0
    for part in parts:
        stop = start + len(arrays[f"x_{part}"])
        bunch[f"x_{part}"] = images[start:stop]
        bunch[f"y_{part}"] = target[start:stop]
        start = stop
    return bunch


def _save_npz(path, arrays):
    """Write arrays atomically: the file is complete or absent."""
    with replacing(path) as file:
        np.savez(file, **arrays)


def _from_torchvision(name):
    """Return a function that downloads and checks one of torchvision's sets."""

    def download(folder):
        from torchvision import datasets

        arrays = {}
        for part in ("train", "test"):
            images = getattr(datasets, name)(
                str(folder), part == "train", download=True
            )
            arrays[f"x_{part}"] = np.asarray(images.data, dtype=np.uint8)
            arrays[f"y_{part}"] = np.asarray(images.targets, dtype=np.int64)
        return arrays

    return download


def _from_zenodo(folder):
    """Download MedMNIST's file and return its arrays with our names."""
    path = folder / "bloodmnist.npz"
    _download(_BLOOD_URL, path, _BLOOD_MD5)
    arrays = {}
    with np.load(path, allow_pickle=False) as file:
        for part in ("train", "val", "test"):
            arrays[f"x_{part}"] = file[f"{part}_images"]
            arrays[f"y_{part}"] = file[f"{part}_labels"].ravel().astype(np.int64)
    return arrays


def _download(url, path, md5):
    """Download a URL to a file; a wrong checksum raises an OSError."""
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=60) as source, open(path, "wb") as file:
        while block := source.read(1 << 20):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != md5:
        raise OSError(
            f"{url} has the MD5 checksum {digest.hexdigest()}, expected {md5}: the "
            "transfer was cut short or the file was changed"
        )
