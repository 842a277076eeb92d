"""Formats of other programs, which `export` writes and `import` reads."""

from typing import Any, NamedTuple

from ..tables import number


class Found(NamedTuple):
    """One annotation or prediction of an image by another program.

    Parameters
    ----------
    place : str
        Path or address of the image, as in the file.
    labels : tuple of str
        Empty if there is none.
    confidence : float or None
    is_given : bool
        Whether it is from a person.
    by : str
        Its author, "" if not known.
    when : str
        Texts of later times are larger.
    predicted : str
        Prediction of a model, if a person has changed it.
    others : tuple of (str, float)
        The next most likely classes.
    is_name : bool
        Whether each label is certainly a class name, even "none".
    """

    place: str
    labels: tuple = ()
    confidence: Any = None
    is_given: bool = True
    by: str = ""
    when: str = ""
    predicted: str = ""
    others: tuple = ()
    is_name: bool = True


def of_entry(place, entry):
    """Return `Found` of our entry, without what the format cannot hold."""
    labels = (str(entry.label),) if entry.label else ()
    confidence = number(entry.confidence)
    return Found(
        place, labels, confidence, entry.is_given, "", "", entry.predicted, entry.others
    )


def attributes(entry):
    """Return values without a field in the format, as a dict."""
    told = {"path": entry.name, "source": entry.source, "predicted": entry.predicted}
    if entry.others:
        told["others"] = [[label, number(p)] for label, p in entry.others]
    return told


def of_attributes(place, labels, confidence, told):
    """Return `Found` from a dict of `attributes`, or of another program's."""
    told = told if isinstance(told, dict) else {}
    ours = isinstance(told.get("source"), str) and "predicted" in told
    others = told.get("others") if ours else None
    is_given = told["source"] != "predicted" if ours else confidence is None
    return Found(
        text(told["path"]) if ours and told.get("path") else place,
        labels,
        None if is_given else confidence,
        is_given,
        predicted=text(told["predicted"]) if ours else "",
        others=tuple(
            (text(pair[0]), number(pair[1]))
            for pair in (others if isinstance(others, list) else [])
            if isinstance(pair, list) and len(pair) == 2
        ),
    )


def text(value):
    """Return a value of JSON as the text of a label or a path.

    Raises TypeError for a list or an object.
    """
    if isinstance(value, (list, dict)):
        raise TypeError(f"{str(value)[:40]!r} is not a text, which is expected here")
    return "" if value is None else str(value)


def wrong(path, what):
    """Return the error for an invalid file."""
    return ValueError(f"{path} {what}")
