"""Partly labeled y: which rows have a label, and which texts are labels."""

import numpy as np

from ._core.label_texts import ClassName
from ._core.labels import as_column, is_labeled

__all__ = ["is_labeled", "keep_as_class"]


def keep_as_class(y, *names):
    """Return y with texts that name a class, though they look like a missing label.

    "none", "NA", "?" and the like are refused in y, since they are mostly what is left
    of a missing value. Where one is meant as a class, this says so.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels with texts.
    *names : str
        Texts that are classes, as they are written in y.

    Returns
    -------
    y : ndarray of shape (n_samples,), dtype object
        The same labels; those named are of a subclass of str, by which all of sklabel
        knows them. Slices and copies keep them, arrays of fixed-width text do not.

    Raises
    ------
    ValueError
        If a name is not in y.
    TypeError
        If a name is not a text.

    Notes
    -----
    What is fitted on it knows the class from then on: ``score`` takes y as it was.

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
            raise ValueError(f"y has no label {name!r} to keep as a class.")
        kept[rows] = ClassName(name)
    return kept
