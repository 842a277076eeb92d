"""Answers: the labels of some rows, in the order of the rows or by row number."""

from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np

from .label_texts import ClassName, is_unclear
from .labels import as_column, read_labels


def check_rows(rows, n_rows):
    """Return row numbers as an array of int64, each once and below ``n_rows``."""
    found = np.asarray(rows)
    if found.size == 0:
        return np.empty(0, np.int64)
    if found.dtype.kind not in "iu":
        raise ValueError(f"indices must be integer row numbers, got {_short(rows)}.")
    found = found.reshape(-1)
    if found.min() < 0 or found.max() >= n_rows:
        raise ValueError(
            f"indices must be rows of X, 0 to {n_rows - 1}, got {found.min()} to "
            f"{found.max()}."
        )
    found = found.astype(np.int64)
    numbers, counts = np.unique(found, return_counts=True)
    if counts.max() > 1:
        raise ValueError(
            f"indices names row {numbers[counts.argmax()]} {counts.max()} times: give "
            "each row once."
        )
    return found


def read_answers(rows, answers, classes=()):
    """Match answers with the rows that were asked.

    Parameters
    ----------
    rows : ndarray of int of shape (n,)
        Each once.
    answers : sequence, array, mapping or Series
        In the order of ``rows``; or by row, the keys of a mapping or the index of a
        Series, where some may be left out.
    classes : iterable
        Known classes; texts among them are labels whatever they look like.

    Returns
    -------
    rows : ndarray of int of shape (m,)
        Those that are answered.
    answers : ndarray of shape (m,), dtype object
    labeled : ndarray of shape (m,), dtype bool
        False for an answer that there is no label.

    Raises
    ------
    TypeError
        If the answers have no order and no rows (a set, a generator), or are one text.
    ValueError
        If there are not as many as rows, or some for rows that were not asked.
    """
    by_row = _by_row(answers, rows)
    if by_row is not None:
        rows = np.array([row for row in rows.tolist() if row in by_row], np.int64)
        answers = [by_row[row] for row in rows.tolist()]
    elif not _has_order(answers):
        raise TypeError(
            f"answers are a {type(answers).__name__}: give a list or an array in the "
            "order of the rows, or a dict or a Series {row: label}."
        )
    elif not hasattr(answers, "__array__"):
        answers = list(answers)
    answers = as_column(answers)
    if len(answers) != len(rows):
        raise ValueError(
            f"{len(answers)} answers for {len(rows)} rows: give one for each, -1 for a "
            "row without an answer."
        )
    column, labeled, _ = read_labels(
        answers, classes=classes, what="the answers", rows=rows
    )
    found = np.empty(len(rows), dtype=object)
    found[:] = [
        ClassName(v) if known and isinstance(v, str) and is_unclear(v) else v
        for v, known in zip(column.tolist(), labeled, strict=True)
    ]
    return rows, found, labeled


def _has_order(answers):
    if isinstance(answers, (str, bytes)):
        return False
    if getattr(answers, "ndim", 1) == 0:
        return False
    return isinstance(answers, Sequence) or hasattr(answers, "__array__")


def _by_row(answers, rows):
    """Return {row: answer} where answers say to which rows they belong, else None."""
    if isinstance(answers, Mapping):
        names, found = list(answers), dict(answers)
    elif hasattr(answers, "iloc"):
        if answers.ndim == 2 and answers.shape[1] == 1:
            answers = answers.iloc[:, 0]
        elif answers.ndim == 2:
            raise TypeError(
                f"answers are a table of {answers.shape[1]} columns: give one column."
            )
        names = answers.index.tolist()
        if names == list(range(len(names))):  # as pandas numbers what has no rows
            if len(rows) == len(names) and sorted(rows) == names != rows.tolist():
                raise ValueError(
                    "it is not clear whether answers are by row number or in the order "
                    "of the queried rows: give answers.to_list() if they are in that "
                    "order, or answers.to_dict() if the index holds row numbers."
                )
            return None
        found = dict(zip(names, answers.array, strict=True))
    else:
        return None
    wrong = [n for n in names if not isinstance(n, Integral) or isinstance(n, bool)]
    if wrong:
        raise ValueError(
            f"answers are for {wrong[0]!r}, which is not a row number. Give a list or "
            "an array if they are in the order of the rows."
        )
    strangers = sorted(set(names) - set(rows.tolist()))
    if strangers:
        raise ValueError(
            f"answers are for row {strangers[0]}"
            f"{f' and {len(strangers) - 1} more' if strangers[1:] else ''}, which were "
            "not queried. Give a list or an array if the answers are in the order of "
            "the rows."
        )
    if len(found) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"answers has row {twice} twice: give one answer for each.")
    return found


def _short(value):
    text = repr(value)
    return text if len(text) < 60 else f"a {type(value).__name__}"
