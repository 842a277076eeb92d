"""Docstrings: every public name has one, complete, true, and in the same words."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from sklearn.base import BaseEstimator
from torch import nn

import sklabel
from sklabel import classification

PACKAGE = Path(sklabel.__file__).parent
# Parameters that mean the same in every estimator that trains a net.
SHARED = [
    "backbone",
    "warm_start",
    "checkpoint_dir",
    "net_params",
    "image_shape",
    "image_size",
    "on_error",
    "max_pixels",
    "device",
    "precision",
    "random_state",
    "verbose",
]
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def module_names():
    """Return the names of all modules of sklabel."""
    found = pkgutil.walk_packages(sklabel.__path__, "sklabel.")
    return ["sklabel"] + [m.name for m in found if not m.name.endswith("__main__")]


def public_modules():
    """Return the names of the modules that their package lists."""
    found = ["sklabel"]
    for name in module_names()[1:]:
        package, _, last = name.rpartition(".")
        if package in found:
            listed = getattr(importlib.import_module(package), "__all__", ())
            found += [name] if last in listed else []
    return found


def public_objects():
    """Return (name, object) of everything that public modules offer."""
    found = {}
    for module_name in public_modules():
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", None)
        if names is None:
            names = [
                name
                for name, value in vars(module).items()
                if not name.startswith("_")
                and getattr(value, "__module__", None) == module_name
            ]
        for name in names:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isroutine(value):
                found.setdefault(value, f"{module_name}.{name}")
    return sorted((name, value) for value, name in found.items())


def public_methods(cls):
    """Return (name, function) of a class's own public methods, inherited or not."""
    found = []
    for name, value in inspect.getmembers(cls, inspect.isfunction):
        ours = (value.__module__ or "").startswith("sklabel")
        if ours and not name.startswith("_"):
            if not (issubclass(cls, nn.Module) and name in ("forward", "extra_repr")):
                found.append((name, value))
    return found


def section(doc, title):
    """Return [(name, type, description)] of one section of a numpydoc text."""
    lines = inspect.cleandoc(doc or "").splitlines()
    rows, inside, i = [], False, 0
    while i < len(lines):
        line = lines[i]
        ruled = i + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[i + 1].strip())
        if ruled:
            inside = line.strip() == title
            i += 2
            continue
        if inside and line and not line[0].isspace():
            names, _, kind = line.partition(" : ")
            rows += [
                [n.strip().lstrip("*"), kind.strip(), ""] for n in names.split(",")
            ]
        elif inside and line.strip():
            rows[-1][2] = f"{rows[-1][2]} {line.strip()}".strip()
        i += 1
    return rows


def signature_names(function):
    return [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.name != "self" and p.kind not in VARIADIC
    ]


def assert_lists_parameters(doc, function, where):
    listed = [row[0] for row in section(doc, "Parameters")]
    expected = signature_names(function)
    variadic = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind in VARIADIC
    ]
    listed = [name for name in listed if name not in variadic]
    assert listed == expected, f"{where}: lists {listed}, the signature has {expected}"


OBJECTS = public_objects()
CLASSES = [(name, value) for name, value in OBJECTS if inspect.isclass(value)]
FUNCTIONS = [(name, value) for name, value in OBJECTS if not inspect.isclass(value)]
LEARNERS = [
    (name, value)
    for name, value in CLASSES
    if issubclass(value, BaseEstimator) and "net_params" in signature_names(value)
]


def ids(pairs):
    return [name for name, _ in pairs]


def test_there_is_something_to_look_at():
    names = ids(OBJECTS)
    assert "sklabel.metrics.knn_accuracy" in names
    assert "sklabel.model_selection.LabeledKFold" in names
    assert len(LEARNERS) >= 3


@pytest.mark.parametrize("name, function", FUNCTIONS, ids=ids(FUNCTIONS))
def test_functions(name, function):
    assert function.__doc__, f"{name} has no docstring"
    assert_lists_parameters(function.__doc__, function, name)


@pytest.mark.parametrize("name, cls", CLASSES, ids=ids(CLASSES))
def test_classes(name, cls):
    assert cls.__dict__.get("__doc__"), f"{name} has no docstring"
    if cls.__init__ is not object.__init__ and not issubclass(cls, Exception):
        assert_lists_parameters(cls.__doc__, cls, name)
    for method_name, method in public_methods(cls):
        where = f"{name}.{method_name}"
        assert method.__doc__, f"{where} has no docstring"
        if section(method.__doc__, "Parameters"):
            assert_lists_parameters(method.__doc__, method, where)


@pytest.mark.parametrize("parameter", SHARED)
def test_shared_parameters_are_described_in_the_same_words(parameter):
    said = {}
    for name, cls in LEARNERS:
        for row_name, kind, description in section(cls.__doc__, "Parameters"):
            if row_name == parameter:
                said.setdefault((kind, description), []).append(name)
    assert said, f"no estimator has {parameter}"
    assert len(said) == 1, f"{parameter} is described in several ways: {said}"


@pytest.mark.parametrize("name, cls", LEARNERS)
def test_settings_name_parameters_that_there_are(name, cls):
    doc = " ".join(cls.__doc__.split())
    for code in re.findall("``([^`]+=[^`]+)``", doc):
        try:
            call = ast.parse(f"f({code})", mode="eval").body
        except SyntaxError:
            continue
        names = [keyword.arg for keyword in getattr(call, "keywords", [])]
        if len(names) > 2:  # fewer may be those of an augmentation
            missing = set(names) - {None, *signature_names(cls)}
            assert not missing, f"{name} has no {missing}: ``{code}``"


def test_every_classifier_says_when_it_warns_of_a_collapse():
    without = "CLIPClassifier", "EmbeddingClassifier"  # they watch no training
    trained = [c for c in classification.__all__ if c not in without]
    for name in trained:
        doc = getattr(classification, name).__doc__
        said = {row[0]: row[2] for row in section(doc, "Warns")}
        assert "calibration_size" in said["CollapseWarning"], name


def test_shared_parameters_stand_in_the_same_order():
    for name, cls in LEARNERS:
        order = [p for p in signature_names(cls) if p in SHARED]
        assert order == [p for p in SHARED if p in order], name


@pytest.mark.parametrize("module_name", module_names())
def test_examples_run(module_name):
    module = importlib.import_module(module_name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


FILES = sorted(PACKAGE.rglob("*.py")) + sorted(Path(__file__).parent.rglob("*.py"))


@pytest.mark.parametrize(
    "path", FILES, ids=[f"{p.parent.name}/{p.name}" for p in FILES]
)
def test_the_first_line_says_what_the_file_is(path):
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    assert re.fullmatch(r'"""[^"].*\."""', first), (
        f"{path.name} begins with {first!r}, not with a docstring of one line that "
        "ends with a period; a comment below it has room for more"
    )


def test_the_reader_of_docstrings_reads():
    def f(a, b, *args, c=1, **kwargs):
        """Do.

        Parameters
        ----------
        a, b : int
            Two.

            With a second paragraph.
        *args : int
            Rest.
        c : {"x", "y"}, default=1
            Three
            lines.

        Returns
        -------
        d : int
        """

    rows = section(f.__doc__, "Parameters")
    assert [row[0] for row in rows] == ["a", "b", "args", "c"]
    assert rows[1][2] == "Two. With a second paragraph."
    assert rows[3][1:] == ['{"x", "y"}, default=1', "Three lines."]
    assert section(f.__doc__, "Returns") == [["d", "int", ""]]
    assert_lists_parameters(f.__doc__, f, "f")
    with pytest.raises(AssertionError, match="f: lists"):
        assert_lists_parameters(f.__doc__.replace("c :", "e :"), f, "f")
