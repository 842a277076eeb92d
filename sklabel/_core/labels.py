"""Partly labeled y: which rows have a label, labels to codes and back."""

import decimal
import numbers

import numpy as np
from sklearn.exceptions import DataConversionWarning

from .columns import is_missing
from .label_texts import ClassName, is_blank, is_unclear, look_alikes
from .warn import warn
from .wording import n_of

_MOST_NAMED = 3  # pairs of labels in one warning


def as_column(y):
    """Return y as a 1-D array of bool, number, text or object entries.

    None stands where a masked array, Arrow or polars has no value.
    """
    if y is None:
        raise ValueError(
            "This needs labels: it requires y to be passed, but the target y is None."
        )
    column = as_entries(y)
    if column.ndim == 2 and column.shape[1] == 1:
        warn(
            "A column-vector y was passed when a 1d array was expected. Please change "
            "the shape of y to (n_samples,), for example using ravel().",
            DataConversionWarning,
        )
        column = column[:, 0]
    if column.ndim != 1:
        kind = "" if column.ndim or np.isscalar(y) else f" (a {type(y).__name__})"
        raise ValueError(
            f"y should be a 1d array, got an array of shape {column.shape} instead"
            f"{kind}."
        )
    if column.dtype.kind == "T":  # numpy's variable-width text
        column = column.astype(object)
    if column.dtype.kind == "S":
        raise _bytes(column[0] if len(column) else b"")
    if column.dtype.kind not in "biufUO":
        raise _unknown_type(column.dtype)
    return column


def as_entries(y):
    """Return what y holds as an array of its shape."""
    library = type(y).__module__.partition(".")[0]
    if isinstance(y, np.ma.MaskedArray):
        return _of_masked(y)
    if isinstance(y, (list, tuple)):
        return _of_sequence(y)
    if library == "pyarrow" and hasattr(y, "to_pylist"):
        return _of_arrow(y)
    if library == "polars" and hasattr(y, "to_numpy"):
        return _of_polars(y)
    if hasattr(y, "to_numpy"):  # Series, Categorical, one-column DataFrame
        return _of_pandas(y)
    if hasattr(y, "detach"):
        return _of_tensor(y)
    return np.asarray(y)


def _of_masked(y):
    column, mask = np.ma.getdata(y), np.ma.getmaskarray(y)
    if column.dtype.names is None and mask.any():
        column = column.astype(object)
        column[mask] = None
    return column


def _of_sequence(y):
    """Return a list as an array; numpy alone writes ["cat", -1] and [True, -1] anew."""
    entries = [_of_entry(v) for v in y]
    kinds = set(map(type, entries))
    if any(issubclass(kind, (str, bytes)) for kind in kinds) or (
        len(kinds) > 1 and kinds & {bool, np.bool_}
    ):
        return np.array(entries, dtype=object)
    return np.asarray(entries)


def _of_entry(value):
    if value is np.ma.masked:
        return None
    if hasattr(value, "as_py"):  # of list(column) of pyarrow
        return value.as_py()
    if hasattr(value, "detach") and value.ndim == 0:
        return _of_tensor(value).item()
    return value


def _of_arrow(y):
    if hasattr(y, "column"):  # a table
        if y.num_columns != 1:
            return np.empty(y.shape)
        return _of_arrow(y.column(0))[:, None]
    if y.null_count or hasattr(y.type, "value_type"):
        return np.array(y.to_pylist(), dtype=object)
    return np.asarray(y)


def _of_polars(y):
    if hasattr(y, "to_series"):  # a frame
        return _of_polars(y.to_series())[:, None] if y.width == 1 else np.empty(y.shape)
    return np.array(y.to_list(), dtype=object) if y.null_count() else y.to_numpy()


def _of_pandas(y):
    """Return integers as integers, which pandas makes floats beside missing values."""
    column = _only_column(y)
    dtype = getattr(column, "dtype", None)
    if not hasattr(dtype, "construct_array_type"):  # a type of numpy
        return y.to_numpy()
    if hasattr(dtype, "categories"):
        codes = getattr(column, "array", column).codes
        entries = np.append(dtype.categories.to_numpy(dtype=object), np.nan)[codes]
    else:  # nullable
        entries = column.to_numpy(dtype=object)
    return entries.reshape(y.shape)


def _of_tensor(y):
    if y.is_meta:
        raise ValueError(
            "y is a tensor on the meta device, which holds no labels: create it on "
            "another device."
        )
    y = y.detach().cpu()
    y = y.to_dense() if y.is_sparse else y
    try:
        return y.numpy()
    except TypeError:  # bfloat16
        return y.float().numpy()


def _only_column(y):
    return y.iloc[:, 0] if hasattr(y, "iloc") and y.shape[1:] == (1,) else y


def _check_categories(y, classes):
    """Warn if pandas has a category without labeled rows."""
    names = getattr(getattr(_only_column(y), "dtype", None), "categories", ())
    unlabeled = set(names) - set(classes.tolist())
    missing = [repr(c) for c in names if c in unlabeled and not _is_marker(c, -1)]
    if missing:
        warn(
            f"No row of y is labeled with one of the categories {', '.join(missing)}, "
            "which will never be predicted. Label some rows of each, or drop them with "
            "remove_unused_categories().",
            UserWarning,
        )


def _unknown_type(kind):
    return ValueError(
        f"Unknown label type: {kind}. Maybe you are trying to fit a classifier, which "
        "expects discrete classes on a regression target with continuous values."
    )


def _bytes(value):
    return ValueError(
        f"Unknown label type: bytes, such as {bytes(value)!r} in y. Decode them into "
        'text, for example y = [name.decode("utf-8") for name in y].'
    )


def _is_missing(value):
    """Tell whether one entry of an object array is None, NaN, NA, NaT or masked."""
    if is_missing(value):
        return True
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(value))
    if isinstance(value, decimal.Decimal):
        return value.is_nan()
    return isinstance(value, np.floating) and value != value


def _is_marker(value, unlabeled):
    if isinstance(value, str) or isinstance(unlabeled, str):
        return (
            isinstance(value, str) and isinstance(unlabeled, str) and value == unlabeled
        )
    return (
        isinstance(value, numbers.Real)
        and not isinstance(value, (bool, np.bool_))
        and value == unlabeled
    )


def _labeled_mask(column, unlabeled):
    """Return the mask of the labeled rows of a 1-D array."""
    kind = column.dtype.kind
    if kind == "O":
        return np.array(
            [
                not is_blank(v) and v != unlabeled
                if isinstance(v, str)
                else not _is_missing(v) and not _is_marker(v, unlabeled)
                for v in column
            ],
            dtype=bool,
        )
    if kind == "b" or unlabeled is None or (kind == "U") != isinstance(unlabeled, str):
        labeled = np.ones(len(column), dtype=bool)
    else:
        labeled = column != unlabeled
    if kind == "f":
        labeled &= ~np.isnan(column)
    if kind == "U":
        blank = [text for text in set(column.tolist()) if is_blank(text)]
        labeled &= ~np.isin(column, blank)
    return labeled


def _check_texts(column, labeled, unlabeled, classes, what, rows):
    """Raise an error if a label is a text that may mean a missing one."""
    known = set() if classes is None else {c for c in classes if isinstance(c, str)}
    if unlabeled != -1:
        known |= {"-1", "-1.0", "-1."}
    values = column[labeled].tolist()
    texts = {v for v in values if isinstance(v, str) and not isinstance(v, ClassName)}
    unclear = {text for text in texts - known if is_unclear(text)}
    if not unclear:
        return
    row, text = next(
        (row if rows is None else rows[row], value)
        for row, value in zip(np.flatnonzero(labeled), values, strict=True)
        if not isinstance(value, ClassName) and value in unclear
    )
    more = len(unclear) - 1
    others = f" and {n_of(more, 'other such text')}" if more else ""
    raise ValueError(
        f"{what} holds the text {text!r} (first in row {row}){others}, which may stand "
        "for a missing label or name a class. Mark unlabeled rows by -1, None or "
        "np.nan, next to texts in an object array: y = np.array(names, dtype=object); "
        "y[unlabeled_rows] = -1. To keep it as a class: y = "
        f"sklabel.labels.keep_as_class(y, {text!r})."
    )


def _labeled_values(column, labeled):
    """Return the labels of the labeled rows in their natural dtype, checked."""
    values = column[labeled]
    if values.dtype == object:
        texts = [isinstance(v, str) for v in values]
        is_bool = [isinstance(v, (bool, np.bool_)) for v in values]
        for v in values:
            if isinstance(v, bytes):
                raise _bytes(v)
        if not any(texts):
            for v in values:
                if not isinstance(v, (numbers.Real, np.bool_)):
                    raise _unknown_type(type(v).__name__)
            if all(is_bool):
                values = values.astype(bool)
            elif any(is_bool):
                raise TypeError(
                    "y must hold either True and False or numbers as labels, not "
                    "both: write every label as a number, or mark unlabeled rows by "
                    "-1 or None."
                )
            else:
                values = np.array(values.tolist())
                if values.dtype.kind == "f" and all(
                    isinstance(v, numbers.Integral) for v in column[labeled]
                ):  # what int64 cannot hold would be rounded
                    values = np.array(column[labeled].tolist(), dtype=object)
        elif not all(texts):
            names = sorted({type(v).__name__ for v in values})
            raise TypeError(
                "y must hold either texts or numbers as labels, not both: got "
                f"{names}. Write every label as text and mark unlabeled rows with "
                "the number -1 in an object array."
            )
    if values.dtype.kind == "f":
        if np.isinf(values).any():
            raise ValueError("Input y contains infinity.")
        if np.any(values != np.floor(values)):
            raise _unknown_type("continuous")
    return values


def read_labels(y, unlabeled=-1, classes=None, what="y", rows=None):
    """Return what y holds, which rows are labeled, and their labels.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels. ``-1``, ``None``, NaN (pandas' NA and NaT, masked entries and nulls of
        Arrow too) and blank texts mark unlabeled rows.
    unlabeled : int, str or None, default=-1
        Value that marks unlabeled rows, besides these; ``None``: nothing else.
    classes : array-like of shape (n_classes,), default=None
        Known classes. Texts among them are labels whatever they look like.
    what : str, default="y"
        Name of y in messages.
    rows : array-like of int of shape (n_samples,), default=None
        Numbers of the rows in messages; ``None``: from 0.

    Returns
    -------
    column : ndarray of shape (n_samples,)
        Entries of y, those of unlabeled rows too.
    labeled : ndarray of shape (n_samples,), dtype bool
    labels : ndarray of shape (n_labeled,)
        In their natural dtype.

    Raises
    ------
    ValueError, TypeError
        As :func:`is_labeled` does.
    """
    column = as_column(y)
    labeled = _labeled_mask(column, unlabeled)
    if column.dtype.kind in "UO":
        _check_texts(column, labeled, unlabeled, classes, what, rows)
    return column, labeled, _labeled_values(column, labeled)


def check_look_alikes(classes):
    """Warn of classes that differ only by what a reader overlooks.

    Parameters
    ----------
    classes : array-like of shape (n_classes,)
        Each once. Only texts can look alike.
    """
    names = [str(name) for name in classes if isinstance(name, str)]
    groups = look_alikes(names)
    if not groups:
        return
    named = "; ".join(
        " and ".join(map(repr, group[:4])) + (" and others" if group[4:] else "")
        for group in groups[:_MOST_NAMED]
    )
    more = len(groups) - _MOST_NAMED
    warn(
        f"Classes that look alike: {named}{f'; and {more} more' if more > 0 else ''}. "
        "Each spelling is a separate class: if they mean the same, use one spelling.",
        UserWarning,
    )


def is_labeled(y, unlabeled=-1, classes=None):
    """Return which rows of a partly labeled y have a label.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels. ``-1``, ``None``, NaN (pandas' NA and NaT, masked entries and nulls of
        Arrow too) and blank texts mark unlabeled rows.
    unlabeled : int, str or None, default=-1
        Value that marks unlabeled rows, besides these; ``None``: nothing else.
    classes : array-like of shape (n_classes,), default=None
        Known classes, as ``classes_`` of a fitted classifier. Texts among them are
        labels even where they look like a mark, such as "none".

    Returns
    -------
    labeled : ndarray of shape (n_samples,), dtype bool
        True for labeled rows.

    Raises
    ------
    ValueError
        If y is None, has more than one column, holds continuous numbers, bytes, or a
        text that may stand for a missing label as well as name a class: "nan", "NA",
        "?", "-1" and the like. The message names the text, its first row and both ways
        out.
    TypeError
        If y mixes texts, numbers or bool as labels.

    Examples
    --------
    >>> from sklabel.labels import is_labeled
    >>> is_labeled([0, -1, 2]).tolist()
    [True, False, True]
    >>> is_labeled(["cat", "", None, "dog"]).tolist()
    [True, False, False, True]
    """
    return read_labels(y, unlabeled, classes)[1]


def check_labels(y, *, n_samples=None, min_classes=2, classes=None):
    """Check a partly labeled y and return it as a 1-D array.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels: bool, integers, whole floats or texts. ``-1``, ``None``, NaN and blank
        texts mark unlabeled rows; texts with -1 need an object array (or a list).
    n_samples : int, default=None
        Number of rows of X; ``None``: not compared.
    min_classes : int, default=2
        Smallest number of classes among the labeled rows. 0 allows that no row is
        labeled.
    classes : array-like of shape (n_classes,), default=None
        Known classes. Texts among them are labels whatever they look like.

    Returns
    -------
    y : ndarray of shape (n_samples,)
        The labels with their unlabeled rows as they were.

    Raises
    ------
    ValueError
        If y is None, has more than one column or another length than X, holds
        infinity, continuous numbers or a text that may stand for a missing label
        (:func:`is_labeled`), has no labeled row or too few classes. The message says
        what to do.
    TypeError
        If y mixes texts, numbers or bool as labels.

    Warns
    -----
    UserWarning
        If pandas has a category without labeled rows, or if two classes look alike.
    """
    column, labeled, values = read_labels(y, classes=classes)
    if n_samples is not None and len(column) != n_samples:
        raise ValueError(
            "Found input variables with inconsistent numbers of samples: "
            f"X has {n_samples} rows, y has {len(column)}."
        )
    if min_classes > 0 and not labeled.any():
        raise ValueError(
            f"y has no labeled row: all {len(column)} rows are -1, None, NaN or blank. "
            "Write the class of some rows into y."
        )
    found = np.unique(values)
    if len(found) < min_classes:
        raise ValueError(
            f"y has {len(found)} class ({', '.join(map(repr, found.tolist()))}) "
            f"among its {n_of(len(values), 'labeled row')}, but "
            f"at least {min_classes} classes are needed. Label rows of another class "
            "too."
        )
    if min_classes > 0:
        _check_categories(y, found)
        check_look_alikes(found)
    return column


def encode_labels(y, *, classes=None, unlabeled=-1):
    """Return the classes of y and every row's class as a number.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels. ``-1``, ``None``, NaN and blank texts mark unlabeled rows.
    classes : array-like of shape (n_classes,), default=None
        Known classes, as ``classes_`` of a fitted classifier. ``None``: the sorted
        labels that occur in y.
    unlabeled : int, str or None, default=-1
        Value that marks unlabeled rows, besides these; ``None``: nothing else.

    Returns
    -------
    classes : ndarray of shape (n_classes,)
        Sorted classes (or the given ones), in the dtype of the labels.
    codes : ndarray of shape (n_samples,), dtype int64
        Position of each row's label in ``classes``; -1 for unlabeled rows.

    Raises
    ------
    ValueError
        If y is not a column of labels (see :func:`check_labels`) or has a label that
        is not in the given ``classes``.
    TypeError
        If y mixes texts, numbers or bool as labels.

    Examples
    --------
    >>> from sklabel._core.labels import encode_labels
    >>> classes, codes = encode_labels(["dog", -1, "cat"])
    >>> classes.tolist(), codes.tolist()
    (['cat', 'dog'], [1, -1, 0])
    """
    column, labeled, values = read_labels(y, unlabeled, classes)
    found, positions = np.unique(values, return_inverse=True)
    if classes is None:
        classes = found
    else:
        classes = np.asarray(classes)
        known = {c: i for i, c in enumerate(classes.tolist())}
        unknown = [c for c in found.tolist() if c not in known]
        if unknown:
            raise ValueError(
                f"y contains labels that are not among the classes: {unknown}. The "
                f"classes are {classes.tolist()}."
            )
        positions = np.array([known[c] for c in found.tolist()], dtype=np.int64)[
            positions
        ]
    codes = np.full(len(column), -1, dtype=np.int64)
    codes[labeled] = positions
    return classes, codes


def decode_labels(codes, classes, like=None):
    """Return labels from codes; unlabeled rows come back as they were marked.

    Parameters
    ----------
    codes : ndarray of shape (n_samples,), dtype int
        Positions in ``classes``; -1 for unlabeled rows.
    classes : ndarray of shape (n_classes,)
        The classes.
    like : array-like of shape (n_rows,), default=None
        The y whose mark is used: that of its first unlabeled row (``-1``, ``None`` or
        NaN); ``-1`` if it has none.

    Returns
    -------
    y : ndarray of shape (n_samples,)
        In the dtype of ``classes`` if that can hold the mark. Otherwise a signed
        integer array for unsigned classes with -1, a float array for integer classes
        with NaN, and an object array for everything else.

    Examples
    --------
    >>> import numpy as np
    >>> from sklabel._core.labels import decode_labels
    >>> decode_labels(np.array([1, -1]), np.array([3, 7])).tolist()
    [7, -1]
    >>> decode_labels(np.array([1, -1]), np.array([3, 7]), like=[3, None]).tolist()
    [7, None]
    """
    codes, classes = np.asarray(codes), np.asarray(classes)
    unlabeled = codes < 0
    if not unlabeled.any():
        return classes[codes]
    mark = -1
    if like is not None:
        column = as_column(like)
        marked = ~_labeled_mask(column, -1)
        if marked.any():
            mark = column[marked.argmax()]
            mark = str(mark) if isinstance(mark, str) else mark
    kind = classes.dtype.kind
    if isinstance(mark, (float, np.floating)) and kind in "iuf":
        dtype = np.promote_types(classes.dtype, np.float64)
    elif isinstance(mark, (int, np.integer)) and kind in "iuf":
        dtype = np.promote_types(classes.dtype, np.int8)
    else:
        dtype = object
    y = np.empty(len(codes), dtype=dtype)
    y[~unlabeled] = classes[codes[~unlabeled]]
    y[unlabeled] = mark
    return y


def most_probable(p):
    """Return the most probable column of each row (n, K); -1 for a row of NaN."""
    bad = np.isnan(p[:, 0])
    return np.where(bad, -1, np.nan_to_num(p).argmax(1))
