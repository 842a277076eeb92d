"""Texts of images: what y may hold, what may be searched for, and their tokens."""

import math
from numbers import Number

import numpy as np

from .labels import _is_marker, _is_missing, as_entries
from .warn import warn
from .wording import n_of


def check_captions(y, samples):
    """Return a list of texts for each row; an empty one for an image without a text.

    Parameters
    ----------
    y : array-like of length n_samples
        Texts or lists of texts; -1, None or NaN for none. Numbers become their digits.
    samples : Samples
        The images.

    Returns
    -------
    texts : list of list of str
    """
    if hasattr(y, "to_numpy") or hasattr(y, "__array__"):
        y = as_entries(y)
    if isinstance(y, str) or not hasattr(y, "__len__"):
        raise ValueError(f"y={y!r} must hold a text for each of {len(samples)} rows.")
    if len(y) != len(samples):
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: X has "
            f"{len(samples)} rows, y has {len(y)}."
        )
    texts = [_as_texts(value, row) for row, value in enumerate(y)]
    read = [texts[row] for row in samples.good]
    different = {text for own in read for text in own}
    if len(different) < 2 or sum(map(bool, read)) < 2:
        raise ValueError(
            f"y has {n_of(len(different), 'different text')} for the images, but at "
            "least two images with different texts are needed: add texts."
        )
    return texts


def _as_texts(value, row):
    """Return the texts of one entry of y; an empty list for an image without one."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(
                f"y[{row}] is an empty text: mark images without a text by -1 or None."
            )
        if value == "-1":
            raise ValueError(
                f"y[{row}] is the text '-1': arrays of fixed-width text cannot hold "
                "the number -1 that marks an image without a text. Use an object "
                "array: y = np.array(texts, dtype=object); y[rows_without_text] = -1."
            )
        return [value]
    if isinstance(value, (list, tuple, np.ndarray)):
        return [text for part in value for text in _as_texts(part, row)]
    if _is_missing(value) or _is_marker(value, -1):
        return []
    if isinstance(value, (Number, np.generic)):
        return [str(value)]
    raise TypeError(
        f"y[{row}] is a {type(value).__name__}: give a text, a list of texts, or -1 "
        "for an image without one."
    )


def check_texts(texts):
    """Return texts to encode or to search for as a list of str."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    wrong = [repr(text) for text in texts if not isinstance(text, str)]
    if wrong or not texts:
        got = wrong[0] if wrong else "none"
        raise ValueError(f"texts must be a text or a list of them; got {got}.")
    return texts


def check_tokens(tokens, texts, tokenizer, context_length, vocabulary_size):
    """Check what a tokenizer has made of texts; warn of texts that were cut.

    Parameters
    ----------
    tokens : Tensor
        To be of int and of shape (n, L), L <= context_length.
    texts : list of n str
    tokenizer : str or callable
        As given, for messages.
    context_length : int
    vocabulary_size : int or None
        Tokens must be below; None: no limit.
    """
    shape = tuple(tokens.shape)
    if tokens.ndim != 2 or len(tokens) != len(texts) or tokens.is_floating_point():
        raise ValueError(
            f"tokenizer={tokenizer!r} returned {tokens.dtype} of shape "
            f"{shape} for {len(texts)} texts: it must return integers of shape (n, L)."
        )
    if shape[1] > context_length:
        raise ValueError(
            f"tokenizer={tokenizer!r} returned {shape[1]} tokens for a text: "
            f"at most context_length={context_length} are allowed."
        )
    limit = vocabulary_size or math.inf
    wrong = (tokens < 0).any(1) | (tokens >= limit).any(1) | (tokens == 0).all(1)
    if wrong.any():
        text = texts[int(wrong.int().argmax())]
        raise ValueError(
            f"tokenizer={tokenizer!r} returned no tokens for {text!r}, or tokens "
            f"outside [0, {limit}), the range of the text tower."
        )
    n_full = int((tokens[:, -1] != 0).sum())
    if n_full and shape[1] == context_length:
        warn(
            f"{n_full} of {len(texts)} texts have context_length="
            f"{context_length} tokens or more and are cut off: raise context_length "
            "before fit, or shorten them.",
            UserWarning,
        )
