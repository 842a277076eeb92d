"""Columns of single images: paths, bytes, pictures or arrays, in any container."""

import os
import threading
from collections.abc import Iterator, Mapping, Set
from itertools import islice
from numbers import Number

import numpy as np
import torch
from PIL import Image
from scipy.sparse import issparse

WHAT_X_MAY_BE = (
    "X may be images (n, h, w), (n, h, w, c) or (n, c, h, w), vectors (n, d), or "
    "single images: paths of image files, their bytes, PIL images or arrays of one "
    "shape, in a list, a Series, a frame of one column, or anything with len(X) and "
    "X[i], such as a torch Dataset."
)
_ENCODED = (bytes, bytearray, memoryview)
# rows of a lazily read column among which one that is not missing is sought
_FIRST = 64
# a missing value of pandas and numpy; by name, so that pandas need not be installed
_MISSING_TYPES = frozenset({"NAType", "NaTType", "MaskedConstant"})


class Column:
    """Single images, one a row, of one kind.

    Parameters
    ----------
    items : sequence
        Anything with a length and rows by number.
    lazy : bool
        Whether each row costs something, so that it is fetched only when it is needed.
        Then rows are fetched by one thread at a time: they are made by others.

    Attributes
    ----------
    kind : {"path", "bytes", "picture", "array", "vector"}
        "vector": only of rows that are fetched lazily.
    """

    def __init__(self, items, lazy):
        self.items, self.lazy = items, lazy
        self._lock = threading.Lock()
        self.kind = self._check_kinds()

    def __len__(self):
        return len(self.items)

    def __getstate__(self):
        return {**vars(self), "_lock": None}

    def __setstate__(self, state):
        vars(self).update(state)
        self._lock = threading.Lock()

    def __getitem__(self, row):
        """Return a row's image; None: it is missing."""
        row = int(row)
        if not self.lazy:
            item = self.items[row]
        else:
            with self._lock:
                item = self.items[row]
        if is_missing(item):
            return None
        item = _image_of(item, self.lazy)
        if self.lazy and _kind_of(item) != self.kind:
            raise ValueError(
                f"X[0] is {_said(self.kind)}, but X[{row}] is {item!r:.80}"
            )
        return item

    def name(self, row):
        """Return what a row is called in messages: its path, or its number."""
        if self.kind == "path" and not self.lazy:
            item = self.items[row]
            return f"X[{row}]" if is_missing(item) else str(item)
        return f"X[{row}]"

    def _check_kinds(self):
        kind = None
        if not self.lazy and set(map(type, self.items)) == {str}:  # the usual case
            return "path"
        rows = range(min(len(self), _FIRST)) if self.lazy else range(len(self))
        for row in rows:
            item = self.items[row]
            if is_missing(item):
                continue
            found = _kind_of(_image_of(item, self.lazy))
            if kind is None:
                if found is None or (found == "vector" and not self.lazy):
                    _refuse_row(row, item, self.lazy)
                    return None
                first, kind = row, found
                if self.lazy:
                    break
            elif found != kind:
                raise ValueError(
                    f"X[{first}] is {_said(kind)}, but X[{row}] is {_short(item)}: "
                    f"every row must be {_said(kind)}."
                )
        if kind is None and not self.lazy:
            raise ValueError(f"All {len(self)} rows of X are missing. {WHAT_X_MAY_BE}")
        return kind


def item_column(X):
    """Return X as a `Column` of single images; None: it is an array, or no images.

    Raises
    ------
    ValueError
        If X is nothing that an estimator could take, saying what it may be.
    """
    items, lazy = _items(X)
    if items is None or not len(items):
        return None
    column = Column(items, lazy)
    return None if column.kind is None else column


def image_column(X):
    """Return X as a `Column` where its rows are single images, else None."""
    column = item_column(X)
    return None if column is None or column.kind == "vector" else column


def holds_images(X):
    """Return whether the rows of X are single images."""
    return image_column(X) is not None


def _items(X):
    """Return the rows of X, and whether fetching one costs something."""
    _refuse(X)
    if isinstance(X, (list, tuple)):
        if any(hasattr(item, "as_py") for item in X[:1]):  # list(column) of pyarrow
            X = [item.as_py() for item in X]
        return X, False
    if isinstance(X, torch.Tensor):
        return None, False
    if hasattr(X, "npartitions") and not hasattr(X, "chunks"):  # a frame of dask
        X = X.compute()
    names = _column_names(X)
    if names is not None:
        if len(names) != 1:
            _refuse_frame(X, names)
            return None, False
        X = X.iloc[:, 0] if hasattr(X, "iloc") else X[names[0]]
    if hasattr(X, "to_pylist"):  # pyarrow
        return X.to_pylist(), False
    if hasattr(X, "to_numpy") and hasattr(X, "to_list"):  # pandas, polars
        return (None if _holds_numbers(X) else X.to_list()), False
    shape, dtype = getattr(X, "shape", None), getattr(X, "dtype", None)
    if shape is not None and dtype is not None:
        if len(shape) == 0 or len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
            return None, False
        if getattr(dtype, "kind", "O") not in "OUST":
            return None, False
        if np.ma.isMaskedArray(X):
            X = np.where(np.ma.getmaskarray(X), None, X.data.astype(object))
        return np.asarray(X).ravel(), False
    if hasattr(X, "__len__") and hasattr(X, "__getitem__"):
        return X, True
    return None, False


def _holds_numbers(X):
    is_numeric = getattr(X.dtype, "is_numeric", None)  # of polars
    if is_numeric is not None:
        return is_numeric()
    return getattr(X.dtype, "kind", "O") in "biufcmM"


def _column_names(X):
    """Return the names of a frame's columns; None: it is no frame."""
    for attribute in ("column_names", "columns"):  # pyarrow and datasets; the others
        names = getattr(X, attribute, None)
        if names is not None and not callable(names):
            return list(names)
    return None


def _image_of(item, lazy):
    """Return the image of a row: of (image, label) and the like the first part."""
    if not isinstance(item, tuple) or not item:
        return item
    first = item[0]
    if lazy:
        return first
    # (path, label) of a list may as well be a pair of paths
    if _kind_of(first) in (None, "path"):
        return item
    # the rows or channels of an image may be a tuple, too
    alike = len(item) > 1 and _shape_of(item[1]) == _shape_of(first)
    return item if alike else first


def _shape_of(item):
    """Return the shape of an array or of nested lists; None: they have none."""
    shape = getattr(item, "shape", None)
    if shape is not None:
        return tuple(shape)
    try:
        return np.shape(item)
    except (ValueError, TypeError):  # not of one shape
        return None


def _kind_of(item):
    if isinstance(item, (str, os.PathLike)):
        return "path"
    if isinstance(item, _ENCODED):
        return "bytes"
    if isinstance(item, dict):
        return "bytes" if item.get("bytes") or item.get("path") else None
    if isinstance(item, Image.Image):
        return "picture"
    if isinstance(item, Number) or item is None:
        return None
    shape = _shape_of(item)
    if shape is None or len(shape) not in (1, 2, 3):
        return None
    return "vector" if len(shape) == 1 else "array"


def is_missing(item):
    """Return whether a cell is empty: None, NaN, NaT or pandas' NA."""
    if item is None or type(item).__name__ in _MISSING_TYPES:
        return True
    return isinstance(item, float) and item != item


def as_array(X):
    """Return what holds an array as numpy or as it is where it lies on disk."""
    if isinstance(X, torch.Tensor):
        if X.is_nested:
            raise TypeError(
                "X is a nested tensor, whose rows have different shapes: give "
                f"X.to_padded_tensor(0). {WHAT_X_MAY_BE}"
            )
        if X.layout != torch.strided:
            raise TypeError(f"X is a sparse tensor: give X.to_dense(). {WHAT_X_MAY_BE}")
        if X.is_meta:
            raise ValueError(
                "X is a tensor on the meta device, which holds no values: create it on "
                f"another device. {WHAT_X_MAY_BE}"
            )
        X = X.detach().cpu().resolve_conj().resolve_neg()
        if X.is_floating_point() and X.dtype not in _FLOATS:
            X = X.float()  # such as bfloat16, which numpy has not
        return X.numpy()
    if np.ma.isMaskedArray(X):
        if np.ma.getmaskarray(X).any():
            raise ValueError(
                "X is a masked array, but masked values would be used: fill them, for "
                "example X.filled(0)."
            )
        return X.data
    if getattr(getattr(X, "dtype", None), "kind", None) == "V":  # of ml_dtypes
        if X.dtype.names is None and "float" in X.dtype.name:
            return np.asarray(X).astype(np.float32)
    return X


_FLOATS = (torch.float16, torch.float32, torch.float64)


# -- refusals: each names what was given, what X may be, and the line to write


def _refuse(X):
    """Raise an error for what has no rows by number."""
    given = type(X).__name__
    if X is None or isinstance(X, Number):
        raise TypeError(f"X is {X!r}, which has no rows. {WHAT_X_MAY_BE}")
    if isinstance(X, (str, os.PathLike)):
        raise ValueError(
            f"X={str(X)!r} is a single path: give a list of image files, for example "
            "sklabel.datasets.load_image_folder(folder).paths, or [path] for one. "
            f"{WHAT_X_MAY_BE}"
        )
    if isinstance(X, (Image.Image, *_ENCODED)):
        raise ValueError(f"X is one image ({given}): give [X]. {WHAT_X_MAY_BE}")
    if hasattr(X, "collect") and not hasattr(X, "__len__"):
        raise ValueError(f"X is a {given}: give X.collect(). {WHAT_X_MAY_BE}")
    if issparse(X):
        raise TypeError(f"X is sparse data: give X.toarray(). {WHAT_X_MAY_BE}")
    names = _column_names(X)
    if names is not None and hasattr(X, "__len__"):
        return
    if isinstance(X, Mapping):  # a Dataset of xarray, too
        names = ", ".join(repr(name) for name in islice(X, 6))
        raise ValueError(
            f"X is a {given} with the keys {names}: give the images of one of them, "
            f"X[key]. {WHAT_X_MAY_BE}"
        )
    if names is None and hasattr(X, "__array__"):
        return
    if isinstance(X, Set):
        raise ValueError(
            f"X is a {given}, which has no order: give sorted(X). {WHAT_X_MAY_BE}"
        )
    if hasattr(X, "dataset") and not hasattr(X, "__getitem__"):  # a DataLoader
        raise ValueError(
            f"X is a {given}, whose batches have their own order: give its X.dataset. "
            f"{WHAT_X_MAY_BE}"
        )
    known = hasattr(X, "__len__") and hasattr(X, "__getitem__")
    if isinstance(X, Iterator) or (hasattr(X, "__iter__") and not known):
        raise ValueError(
            f"X is a {given}, whose rows cannot be fetched by number: give list(X). "
            f"{WHAT_X_MAY_BE}"
        )


def _refuse_frame(X, names):
    """Raise an error for a frame of several columns that holds images or texts."""
    for name in names:
        column = X[name]
        if hasattr(column, "iloc"):
            column = column.iloc
        try:
            first = next((v for v in islice(_values(column), _FIRST)), None)
        except (IndexError, KeyError, TypeError):
            continue
        if _is_text(first) or (
            not isinstance(first, str) and _kind_of(first) not in (None, "vector")
        ):
            listed = ", ".join(repr(str(n)) for n in names[:6])
            raise ValueError(
                f"X is a {type(X).__name__} with the columns {listed}: give the one "
                f"that holds the images, X[{name!r}]. {WHAT_X_MAY_BE}"
            )


def _values(column):
    for row in range(_FIRST):
        value = column[row]
        if hasattr(value, "as_py"):
            value = value.as_py()
        if not is_missing(value):
            yield value


def _is_text(value):
    """Return whether a cell is text, and none that reads as a number."""
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


def _refuse_row(row, item, lazy):
    """Raise an error for a first row that is no image; vectors are none of that."""
    if isinstance(item, Mapping):
        keys = ", ".join(repr(key) for key in islice(item, 6))
        if {"bytes", "path"} & set(item):
            what, line = "but holds neither bytes nor a path", "fill it"
        else:
            image = next((k for k in item if _kind_of(item[k])), "image")
            what = f"with the keys {keys}"
            line = (
                f'give one of them, X["{image}"] of a data set or '
                f'[row["{image}"] for row in X]'
            )
        raise ValueError(f"X[{row}] is a dict {what}: {line}. {WHAT_X_MAY_BE}")
    if isinstance(item, (tuple, list)) and item and _is_text(item[0]):
        raise ValueError(
            f"X[{row}] is {_short(item)}, not one path: give only the paths, [row[0] "
            f"for row in X]. {WHAT_X_MAY_BE}"
        )
    if lazy and not isinstance(item, Number):
        raise ValueError(f"X[{row}] is {_short(item)}, not an image. {WHAT_X_MAY_BE}")


def _said(kind):
    return {
        "path": "a path",
        "bytes": "the bytes of an image file",
        "picture": "a PIL image",
        "array": "an image as an array",
        "vector": "a vector",
    }[kind]


def _short(item):
    text = repr(item)
    return text if len(text) <= 60 else f"{text[:60]}..."
