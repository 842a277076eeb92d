"""Texts as labels: missing, unclear and similar-looking ones."""

import re
import unicodedata
from collections import defaultdict

# What programs write where a value is missing (numpy, pandas, R, ARFF, SAS, data bases,
# spreadsheets, whose errors are no labels, either), and the mark -1, which an array of
# texts turns into text.
_UNCLEAR = frozenset(
    "nan -nan +nan none na <na> n/a #n/a #na #n/an/a null nat ? -- 1.#qnan -1.#qnan "
    "1.#ind -1.#ind -1 -1.0 -1. . \\n (null) <null> [null] <none> "
    "#null! #value! #ref! #name? #num! #div/0! #error! #spill! #calc!".split()
)
# characters that show nothing, beside those of the categories Cc, Cf, Zs, Zl and Zp
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {
    chr(code) for code in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
}
# letters of other scripts that are drawn as a Latin one, after casefold; dashes, quotes
_DRAWN_ALIKE = str.maketrans(
    {
        **dict(zip("авекмнорстухіјѕԁԛԝ", "abekmhopctyxijsdqw", strict=True)),
        **dict(zip("αβεηικνορτυχϲ", "abehikvoptuxc", strict=True)),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58", "-"),
        **dict.fromkeys("\u2018\u2019\u201b\u02bc\u00b4\u0060", "'"),
        **dict.fromkeys("\u201c\u201d\u201f", '"'),
    }
)
_HYPHEN = re.compile(r"(?<=[^\W\d_])[_-]+(?=[^\W_])|(?<=[^\W_])[_-]+(?=[^\W\d_])")
_NUMBER = re.compile(r"([+-]?)(\d+)(?:[.,](\d*))?")


class ClassName(str):
    """A text that is the name of a class, whatever else it might stand for."""

    __slots__ = ()


def text_label(text, keep=()):
    """Return the label that a text means, or None for no label.

    This is the rule for every text that may be a label: an entry of y, an answer, the
    cell of a CSV.

    Parameters
    ----------
    text : str
    keep : collection of str
        Texts that always name a class.

    Returns
    -------
    label : str or None
        None for an empty or blank text. A `ClassName` if it is in ``keep``.

    Raises
    ------
    ValueError
        If the text may mean a missing label as well as a class (:func:`is_unclear`).
        The message is the beginning of a sentence, without the remedy, which depends on
        the caller.

    Examples
    --------
    >>> text_label("cat"), text_label("  "), text_label("none", keep=["none"])
    ('cat', None, 'none')
    """
    if is_blank(text):
        return None
    if text in keep and not isinstance(text, ClassName):
        return ClassName(text)
    if is_unclear(text):
        raise ValueError(
            f"the text {text!r} may stand for a missing label or name a class"
        )
    return text


def is_blank(text):
    """Return whether a text is blank: empty, or only spaces and the like."""
    if text[:1].isalnum() and text[0] not in _INVISIBLE:  # soon told of most texts
        return False
    return all(map(_shows_nothing, text))


def is_unclear(text):
    """Return whether a text may mean a missing label: "nan", "NA", "?", "-1"."""
    if isinstance(text, ClassName):
        return False
    if len(text) > 20:  # the longest of them and some spaces
        return False
    return _visible(unicodedata.normalize("NFKC", text)).casefold() in _UNCLEAR


def look_alikes(names):
    """Return groups of names that a person may take for the same name.

    They differ only in case, spaces, hyphens, invisible characters, forms of Unicode,
    letters of other scripts, or notations of a number.

    Parameters
    ----------
    names : iterable of str
        Each once.

    Returns
    -------
    groups : list of list of str
        Each of at least two names, in the order of ``names``.

    Examples
    --------
    >>> look_alikes(["1", "Cat", "dog", "cat ", "1.0"])
    [['1', '1.0'], ['Cat', 'cat ']]
    """
    groups = defaultdict(list)
    for name in names:
        groups[_plain(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _shows_nothing(character):
    category = unicodedata.category(character)
    return category in ("Cc", "Cf", "Zs", "Zl", "Zp") or character in _INVISIBLE


def _visible(text):
    return "".join(c for c in text if not _shows_nothing(c))


def _plain(text):
    """Return a text without differences that a reader may overlook."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = unicodedata.normalize("NFKC", text).translate(_DRAWN_ALIKE)
    # "light blue", "light-blue", "lightblue"; but "1-2" is not "12", nor "A-" an "A"
    text = _HYPHEN.sub("", _visible(text))
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text
    sign, whole, rest = number.groups(default="")
    whole = "".join(str(int(digit)) for digit in whole).lstrip("0") or "0"
    rest = "".join(str(int(digit)) for digit in rest).rstrip("0")
    return f"{sign.replace('+', '')}{whole}.{rest}"
