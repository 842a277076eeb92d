"""Partly labeled y: which rows have a label, and which texts are labels."""

import numpy as np

from ._core.answers import check_rows, read_answers
from ._core.label_texts import ClassName
from ._core.labels import as_column, decode_labels, encode_labels, is_labeled

__all__ = ["is_labeled", "keep_as_class", "partial_labels"]


def keep_as_class(y, *names):
    """Return y with texts marked as class names that look like missing labels.

    Texts such as "none", "NA" and "?" raise an error in y, because they usually stand
    for a missing value. This function marks those that are class names.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels with texts.
    *names : str
        Texts that are class names, as written in y.

    Returns
    -------
    y : ndarray of shape (n_samples,), dtype object
        The same labels; the named ones are of a subclass of str that sklabel
        recognizes. Slices and copies keep them, arrays of fixed-width text do not.

    Raises
    ------
    ValueError
        If a name is not in y.
    TypeError
        If a name is not a text.

    Notes
    -----
    An estimator fitted on it remembers these classes: ``score`` takes the original y.

    Examples
    --------
    >>> from sklabel.labels import is_labeled, keep_as_class
    >>> y = keep_as_class(["scratch", "none", None, "dent"], "none")
    >>> is_labeled(y).tolist()
    [True, True, False, True]
    """
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise TypeError(f"names must be texts, got {wrong[0]!r}.")
    column = as_column(y)
    kept = np.empty(len(column), dtype=object)
    kept[:] = column
    for name in names:
        rows = [row for row, v in enumerate(kept) if isinstance(v, str) and v == name]
        if not rows:
            raise ValueError(
                f"y has no label {name!r} to keep as a class: name labels as in y."
            )
        kept[rows] = ClassName(name)
    return kept


def partial_labels(n_samples, rows, answers):
    """Return a partly labeled y.

    Parameters
    ----------
    n_samples : int
        Number of rows of X.
    rows : array-like of int
        Rows that were labeled, such as ``sample_indices_`` of a selector.
    answers : array-like, or mapping or Series by row
        Their labels in the same order; or {row: label}, in which rows may be left out.

    Returns
    -------
    y : ndarray of shape (n_samples,)
        The answers, and -1 in all other rows; dtype object if they are texts or bool.

    Raises
    ------
    ValueError
        If the numbers of answers and rows differ, there are answers for other rows, or
        a row is repeated or is not among the ``n_samples``.
    TypeError
        If the answers have no order, as in a set.

    Examples
    --------
    >>> from sklabel.labels import partial_labels
    >>> partial_labels(6, [4, 1], ["dog", "cat"])
    array([-1, 'cat', -1, -1, 'dog', -1], dtype=object)
    >>> partial_labels(4, [2, 0], {2: 7, 0: 3})
    array([ 3, -1,  7, -1])
    """
    rows, answers, labeled = read_answers(check_rows(rows, n_samples), answers)
    if not labeled.any():
        return np.full(n_samples, -1)
    classes, found = encode_labels(answers[labeled])
    codes = np.full(n_samples, -1)
    codes[rows[labeled]] = found
    return decode_labels(codes, classes)
