"""Every golden file is read by a test."""

import ast
from pathlib import Path

import pytest

from tests._golden import FOLDER, OWN, cases

TESTS = Path(__file__).parent


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


def test_a_file_that_is_missing_is_no_reason_to_skip(monkeypatch, tmp_path):
    monkeypatch.setattr("tests._golden.FOLDER", OWN)
    with pytest.raises(AssertionError, match="no_such_file.npz does not exist"):
        cases("no_such_" + "file")
    monkeypatch.setattr("tests._golden.FOLDER", tmp_path)
    with pytest.raises(pytest.skip.Exception):
        cases("no_such_" + "file")


def test_claims_are_found():
    found = claims()
    assert "test_metrics.py" in found["hungarian_accuracy"]
    assert "test_metrics.py" in found["knn_weighted"]


def test_every_golden_file_is_claimed():
    files = {path.stem for path in FOLDER.glob("*.npz")}
    if not files:
        pytest.skip(f"no golden files in {FOLDER}")
    unknown = sorted(files - set(claims()))
    assert not unknown, f"no test reads these golden files: {' '.join(unknown)}"
