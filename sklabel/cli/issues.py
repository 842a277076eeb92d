"""What a person should check: labels and images that are probably wrong."""

from collections import Counter

import sklabel

from .._core.wording import n_of
from . import inputs, lists

# the most urgent first
_OF_LABELS = ("suspicious label", "unreadable", "exact copy", "near duplicate")
_OF_IMAGES = ("blank", "dark", "bright", "blurred", "odd")


def find(files, names, Z, given, max_pixels=None):
    """Return [(name, kind, detail)] of all issues, the most urgent first.

    Parameters
    ----------
    files : dict
        {name: path} of all images.
    names : list of str
        Of those that can be read.
    Z : ndarray of shape (len(names), D)
        Their vectors.
    given : dict
        {name: label}.
    max_pixels : int or None
        Largest number of pixels of an image.
    """
    return [one for part in parts(files, names, Z, given, max_pixels) for one in part]


def parts(files, names, Z, given, max_pixels=None):
    """Yield the result of `find` in parts, the quickest first."""
    readable = set(names)
    yield _suspicious(names, Z, given)
    yield [(name, "unreadable", "") for name in files if name not in readable]
    paths = [files[name] for name in names]
    yield _copies(names, paths, given, max_pixels)
    poor = sklabel.inspection.find_poor_images(
        paths, embedder=_known(Z), max_pixels=max_pixels
    )
    yield [(names[row], kind, "") for kind in _OF_IMAGES for row in getattr(poor, kind)]


def _suspicious(names, Z, given):
    if len({given[name] for name in names if name in given}) < 2:
        return []
    told = sklabel.inspection.suspicious_labels(Z, inputs.as_y(names, given))
    return [
        (names[row], "suspicious label", f"the other labels suggest {suggested}")
        for row, suggested in zip(told.rows, told.suggested, strict=True)
    ]


def _copies(names, paths, given, max_pixels):
    """Return images that are copies of an earlier one."""
    groups = sklabel.inspection.find_duplicates(paths, max_pixels=max_pixels)
    found, seen = [], set()
    for kind, some in (("exact copy", groups.exact), ("near duplicate", groups.near)):
        for rows in some:
            first, *others = sorted(rows)
            for row in others:
                if row in seen:
                    continue
                seen.add(row)
                detail = f"of {names[first]}"
                labels = given.get(names[row]), given.get(names[first])
                if None not in labels and labels[0] != labels[1]:
                    detail += f", which is labeled {labels[1]}"
                found.append((names[row], kind, detail))
    return found


def _known(Z):
    """Return a transformer for vectors computed already."""
    from sklearn.base import BaseEstimator
    from sklearn.frozen import FrozenEstimator

    class Known(BaseEstimator):
        def transform(self, X):
            return Z

    return FrozenEstimator(Known())


def rows(found, entries):
    """Return the header and the rows of a list: one row per image.

    It can be corrected and given to `fit`, like the list of all images.

    Parameters
    ----------
    found : list
        Of `find`.
    entries : list of `lists.Entry`
        Of all images.
    """
    entry_of = {entry.name: entry for entry in entries}
    told = {}
    for name, kind, detail in found:
        kinds, details = told.setdefault(name, ([], []))
        kinds.append(kind)
        details += [detail] * bool(detail)
    header, first = lists.rows([entry_of[name] for name in told])
    return [*header, "issue", "detail"], [
        [*row, "; ".join(kinds), "; ".join(details)]
        for row, (kinds, details) in zip(first, told.values(), strict=True)
    ]


def summary(found, path):
    """Return the number of images with each issue, in words."""
    counts = Counter(kind for _, kind, _ in found)
    kinds = [kind for kind in (*_OF_LABELS, *_OF_IMAGES) if counts[kind]]
    n = len({name for name, _, _ in found})
    if not n:
        return f"No image to check: {path} is empty.\n"
    told = ", ".join(f"{kind} {counts[kind]}" for kind in kinds)
    return f"{n_of(n, 'image')} to check in {path}: {told}.\n"
