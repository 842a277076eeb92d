"""Sphinx extension: pages of estimators show the method's own parameters first.

The docstring of an estimator describes all of its parameters. On its page, those that
many estimators share (training, input, device, checkpoints) stand in a block of their
own, after everything that the method alone has.
"""

import inspect
import re

from sklabel._core.docstrings import join_sections, parameter_entries, split_sections
from sklabel._core.parameters import Inference, Parameters

HEADING = "Shared parameters"
# declared by the engine, too, but what a selector is about
SELECTION = {"classifier", "n_samples", "n_candidates"}
# numpydoc's name for a second list of parameters; `give_heading` replaces it
_SECTION = "Other Parameters"


def shared_names(cls):
    """Return the parameters of an estimator that it shares with others, in order.

    They are the keywords that a class of the engine declares, and those that mean the
    same everywhere, such as ``device``, even where the estimator declares them itself.
    """
    declared = set(vars(Inference)["_parameter_constraints"])
    for parent in cls.__mro__:
        if parent.__module__.startswith("sklabel._core"):
            declared |= set(vars(parent).get("_parameter_constraints", ()))
    names = inspect.signature(cls).parameters
    return [name for name in names if name in declared - SELECTION]


def separate(docstring, names):
    """Move the entries of these parameters into a section of their own."""
    sections = split_sections(docstring)
    entries = parameter_entries(sections.get("Parameters", ""))
    own = {name: text for name, text in entries.items() if name not in names}
    shared = {name: text for name, text in entries.items() if name in names}
    if not own or not shared:
        return docstring
    sections["Parameters"] = "\n".join(own.values())
    sections[_SECTION] = "\n".join(shared.values())
    return join_sections(sections)


def give_heading(lines):
    """Give numpydoc's list of other parameters a heading, and put it at the end."""
    field = f":{_SECTION}:"
    if field not in lines:
        return lines
    start = end = lines.index(field)
    end += 1
    while end < len(lines) and re.match(r"\s|$", lines[end]):
        end += 1
    entries = [line.removeprefix("    ") for line in lines[start + 1 : end]]
    rest = [*lines[:start], *lines[end:], ""]
    return [*rest, f".. rubric:: {HEADING}", "", *entries, ""]


def _before_numpydoc(app, what, name, obj, options, lines):
    if inspect.isclass(obj) and issubclass(obj, Parameters):
        lines[:] = separate("\n".join(lines), shared_names(obj)).split("\n")


def _after_numpydoc(app, what, name, obj, options, lines):
    lines[:] = give_heading(lines)


def _signature(app, what, name, obj, options, signature, return_annotation):
    """Show the own parameters and three dots for the shared ones."""
    if not (inspect.isclass(obj) and issubclass(obj, Parameters)):
        return None
    whole, shared = inspect.signature(obj), shared_names(obj)
    own = [p for name, p in whole.parameters.items() if name not in shared]
    if not shared or not own:
        return None
    shown = str(whole.replace(parameters=own))[1:-1]
    return f"({shown}, ...)", return_annotation


def setup(app):
    """Work on docstrings before and after numpydoc, whose priority is 500."""
    app.connect("autodoc-process-docstring", _before_numpydoc, priority=400)
    app.connect("autodoc-process-docstring", _after_numpydoc, priority=600)
    app.connect("autodoc-process-signature", _signature, priority=400)
    return {"parallel_read_safe": True}
