"""The reference lists every public name on exactly one page, and no other name."""

import importlib
import importlib.util
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest
from sklearn.base import BaseEstimator

from sklabel._core.docstrings import parameter_entries, split_sections

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted((DOCS / "reference").glob("*.rst"))
# a ready-made scorer, constants, and bases of modules (see docs/contributing.rst)
UNLISTED = {
    "model_selection.labeled_accuracy",
    "augment.CTAUGMENT",
    "augment.FIXMATCH",
    "augment.OPERATIONS",
    "modules.LinearHeaded",
    "modules.Method",
    "modules.filled_",
}
MODULES = [
    "active_learning",
    "augment",
    "backbones",
    "classification",
    "clustering",
    "datasets",
    "embedding",
    "ensemble",
    "inspection",
    "labels",
    "losses",
    "metrics",
    "model_selection",
    "modules",
    "neighbors",
    "optim",
    "pretrained",
    "selection",
    "text",
]


def listed():
    """Return how often each name is listed."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return Counter(
        re.findall(r"^   ([a-z_]\w*\.\w+|load|CollapseWarning)$", text, re.M)
    )


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_an_entry(module):
    found = importlib.import_module(f"sklabel.{module}")
    names = getattr(found, "__all__", None) or [
        name
        for name, value in vars(found).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "") == found.__name__
    ]
    missing = {f"{module}.{name}" for name in names} - UNLISTED - set(listed())
    assert not missing, f"add to a page of docs/reference: {sorted(missing)}"


def test_entries_exist_and_none_is_listed_twice():
    for name, count in listed().items():
        module, _, attribute = name.rpartition(".")
        assert hasattr(
            importlib.import_module(f"sklabel.{module}".rstrip(".")), attribute
        )
        assert count == 1, name


def test_the_overview_links_every_page():
    overview = (DOCS / "api.rst").read_text(encoding="utf-8")
    for page in PAGES:
        assert f":doc:`reference/{page.stem}`" in overview


# -- an estimator's page shows its own parameters first


@pytest.fixture(scope="module")
def extension():
    path = DOCS / "_extensions/shared_parameters.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def estimators():
    """Return the listed estimators by name."""
    found = {}
    for name in listed():
        module, _, attribute = name.rpartition(".")
        value = getattr(
            importlib.import_module(f"sklabel.{module}".rstrip(".")), attribute
        )
        if inspect.isclass(value) and issubclass(value, BaseEstimator):
            found[name] = value
    return found


ESTIMATORS = estimators()


def described(docstring, section):
    """Return the names of the parameters that a section describes."""
    return list(parameter_entries(split_sections(docstring).get(section, "")))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_own_parameters_come_first_and_none_is_lost(name, extension):
    cls = ESTIMATORS[name]
    separated = extension.separate(cls.__doc__, extension.shared_names(cls))
    own = described(separated, "Parameters")
    shared = described(separated, "Other Parameters")
    assert sorted(own + shared) == sorted(inspect.signature(cls).parameters)
    assert own
    assert not shared or not {"device", "checkpoint_dir", "net_params"} & set(own)


@pytest.mark.parametrize(
    "name, own, shared",
    [
        (
            "classification.FixMatchClassifier",
            ["threshold", "unlabeled_weight", "unlabeled_ratio", "temperature"],
            ["backbone_lr", "class_weight", "backbone", "lr", "device", "verbose"],
        ),
        ("selection.USLSelector", ["n_samples", "alpha"], ["device", "random_state"]),
        ("selection.BADGESelector", ["n_samples", "classifier"], ["random_state"]),
    ],
)
def test_parameters_stand_in_their_block(name, own, shared, extension):
    found = extension.shared_names(ESTIMATORS[name])
    assert set(shared) <= set(found) and not set(own) & set(found)


def test_the_page_gives_the_shared_parameters_a_heading(extension):
    docscrape = pytest.importorskip("numpydoc.docscrape_sphinx")
    cls = ESTIMATORS["embedding.SimCLRTransformer"]
    text = extension.separate(cls.__doc__, extension.shared_names(cls))
    rendered = str(docscrape.SphinxDocString(text, config={})).split("\n")
    lines = extension.give_heading(rendered)
    heading = lines.index(".. rubric:: Shared parameters")
    own = [i for i, line in enumerate(lines) if line.startswith("    **temperature**")]
    assert own and own[0] < heading
    shared = [line for line in lines[heading:] if line.startswith("**")]
    names = [line.split("**")[1] for line in shared]
    assert names == extension.shared_names(cls)
    assert [line for line in lines[heading + 1 :] if line.startswith("..")] == []
    assert not any("Other Parameters" in line for line in lines)


def test_what_has_no_shared_parameters_stays(extension):
    text = "Do it.\n\nParameters\n----------\na : int\n    One."
    assert extension.separate(text, ["b"]) == text
    assert extension.separate(text, ["a"]) == text
    assert extension.give_heading(["Do it.", ""]) == ["Do it.", ""]
