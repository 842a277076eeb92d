"""The reference lists every public name on exactly one page, and no other name."""

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

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
    assert {f"{module}.{name}" for name in names} - UNLISTED <= set(listed())


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
