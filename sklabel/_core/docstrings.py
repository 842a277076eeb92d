"""Docstrings (numpydoc) that say what is inherited: each text stands once."""

import inspect
import re


def join_docstring(cls, defaults):
    """Add what a class inherits to its docstring, and the defaults of its parameters.

    A class says in its own docstring what its parents do not say, or what means
    something else in it. An entry without a type, ``lr`` in place of ``lr : float``,
    adds its sentences to those of the parents.

    Parameters
    ----------
    cls : class
    defaults : dict
        Default of each parameter, in the order in which they are to be described;
        `inspect.Parameter.empty`: none.
    """
    if not vars(cls).get("__doc__"):  # none, or Python runs without docstrings
        return
    sections = split_sections(cls.__doc__)
    parameters, attributes = {}, {}
    for parent in reversed(cls.__mro__):
        if "_parameter_constraints" in vars(parent):
            described = split_sections(parent.__doc__ or "")
            _update(parameters, described.get("Parameters", ""))
            _update(attributes, described.get("Attributes", ""))
    texts = [
        _with_default(parameters[name], default)
        for name, default in defaults.items()
        if name in parameters
    ]
    own = parameter_entries(sections.pop("Attributes", ""))
    first = {name: attributes[name] for name in own}
    sections.pop("Parameters", None)
    whole = {
        "": sections.pop(""),
        "Parameters": "\n".join(texts),
        "Attributes": "\n".join({**first, **attributes, **first}.values()),
    }
    cls.__doc__ = join_sections({**whole, **sections})


def _update(known, section):
    """Replace known entries by those of a section; one without a type adds to it."""
    for name, text in parameter_entries(section).items():
        if name == text.partition("\n")[0] and name in known:
            text = known[name] + text[len(name) :]
        known[name] = text


def split_sections(docstring):
    """Return the text of each section by title; what comes before them is titled ""."""
    parts = re.split(r"^(\S.*)\n-{3,}\n", inspect.cleandoc(docstring), flags=re.M)
    titles, texts = ["", *parts[1::2]], [parts[0], *parts[2::2]]
    return {title: text.rstrip() for title, text in zip(titles, texts, strict=True)}


def join_sections(sections):
    """Return the docstring of these sections; those without a text are left out."""
    return "\n\n".join(
        f"{title}\n{'-' * len(title)}\n{text}" if title else text
        for title, text in sections.items()
        if text
    )


def parameter_entries(section):
    """Return the entries of a section by name: ``name : type`` and indented lines."""
    found = re.findall(r"^\S.*(?:\n(?:[ \t].*)?)*", section, flags=re.M)
    return {re.match(r".+?(?= :|$)", text, re.M)[0]: text.rstrip() for text in found}


def _with_default(entry, default):
    head, *rest = entry.split("\n")
    head = head.partition(", default=")[0]  # a parent may have another one
    if default is inspect.Parameter.empty:
        return "\n".join([head, *rest])
    shown = f'"{default}"' if isinstance(default, str) else repr(default)
    return "\n".join([f"{head}, default={shown}", *rest])
