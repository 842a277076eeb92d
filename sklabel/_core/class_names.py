"""Classes by their names: labels that are names or positions; texts of each class."""

import numpy as np

from .labels import as_column, encode_labels, is_labeled


def sorted_classes(class_names):
    """Return the classes, sorted, and the name of each.

    Parameters
    ----------
    class_names : list of str or dict
        Names, which are the classes; or the name of each class.

    Returns
    -------
    classes : ndarray of shape (K,)
    names : list of str
    """
    labels = np.array(list(class_names))
    if labels.ndim != 1 or len(labels) < 2:
        raise ValueError(f"class_names={class_names!r} must name at least two classes.")
    # sorted, as the scorers of scikit-learn take it for granted
    classes, order = np.unique(labels, return_index=True)
    if len(order) < len(labels):
        raise ValueError(f"class_names={class_names!r} names a class twice.")
    own = list(class_names.values() if isinstance(class_names, dict) else class_names)
    return classes, [str(own[position]) for position in order]


def encode_named(y, class_names, classes):
    """Return the code of each label, which is a class or a position in ``class_names``.

    Parameters
    ----------
    y : array-like of shape (n,)
        -1, None, NaN or a blank text for unlabeled rows.
    class_names : list or dict
    classes : ndarray of shape (K,)
        Sorted.

    Returns
    -------
    codes : ndarray of int of shape (n,)
        -1 for unlabeled rows.
    """
    labeled = is_labeled(y, classes=classes)
    if classes.dtype.kind == "U" and labeled.any():
        column = as_column(y).astype(object)
        if not any(isinstance(value, str) for value in column[labeled]):
            positions = column[labeled].astype(np.int64)
            lowest, highest = positions.min(), positions.max()
            if lowest < 0 or highest >= len(classes):
                raise ValueError(
                    f"y contains the positions {lowest} to {highest}, but class_names "
                    f"has {len(classes)} names."
                )
            column[labeled] = np.array(list(class_names))[positions]
            y = column
    return encode_labels(y, classes=classes)[1]


def write_prompts(prompts, classes, names):
    """Return the texts of each class.

    Parameters
    ----------
    prompts : str, list of str, or dict
        Templates with a place ``{}`` for the name; or the texts of each class or name.
    classes : ndarray of shape (K,)
    names : list of str

    Returns
    -------
    texts : list of K list of str
    """
    if isinstance(prompts, dict):
        return [
            _own_texts(prompts, label, name, names)
            for label, name in zip(classes.tolist(), names, strict=True)
        ]
    templates = [prompts] if isinstance(prompts, str) else list(prompts)
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise ValueError(
                f"The template {template!r} in prompts has no place for the "
                'name of a class: write {} in it, as in "a photo of a {}.".'
            )
    if not templates:
        raise ValueError("prompts is empty: give at least one template.")
    return [[t.replace("{}", name) for t in templates] for name in names]


def _own_texts(prompts, label, name, names):
    own = prompts.get(label, prompts.get(name, ()))
    own = [own] if isinstance(own, str) else list(own)
    if not own or not all(isinstance(t, str) and t.strip() for t in own):
        raise ValueError(
            f"prompts has no texts for the class {name!r}: give a text or a "
            f"list of texts for each of {names}."
        )
    return own
