"""Every golden file is claimed by a test, or its method is still to come."""

import ast
from pathlib import Path

import pytest

from tests._golden import FOLDER

TESTS = Path(__file__).parent

# Files of methods that are still to come. Whoever writes such a method claims its
# files in the method's test and takes their names out of here.
TO_COME = set(
    """
    uslt_global_loss uslt_local_loss uslt_normed_head uslt_selection
    vaal_losses vaal_query
    """.split()
)


def claims():
    """Return {golden file: tests that read it}."""
    found = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if path == Path(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = None
            if isinstance(node, ast.Call) and node.args:
                function = getattr(node.func, "id", getattr(node.func, "attr", None))
                argument = node.args[0]
                if function == "cases" and isinstance(argument, ast.Constant):
                    name = argument.value
            # a table without cases is read by its file name
            elif isinstance(node, ast.Constant) and str(node.value).endswith(".npz"):
                name = str(node.value)[: -len(".npz")]
            if name:
                found.setdefault(name, set()).add(path.name)
    return found


def test_claims_are_found():
    found = claims()
    assert "test_metrics.py" in found["hungarian_accuracy"]
    assert "test_metrics.py" in found["knn_weighted"]


def test_every_golden_file_is_claimed_or_to_come():
    files = {path.stem for path in FOLDER.glob("*.npz")}
    if not files:
        pytest.skip(f"no golden files in {FOLDER}")
    unknown = sorted(files - set(claims()) - TO_COME)
    assert not unknown, f"no test reads these golden files: {' '.join(unknown)}"


def test_what_is_to_come_has_not_come_yet():
    come = {name: sorted(tests) for name, tests in claims().items() if name in TO_COME}
    assert not come, f"claimed by now, take them out of TO_COME: {come}"


def test_names_to_come_are_names_of_files():
    own = {path.stem for path in (TESTS / "golden").glob("*.npz")}
    misspelt = sorted(TO_COME - own)
    assert not misspelt, f"in TO_COME, but not golden files: {' '.join(misspelt)}"
