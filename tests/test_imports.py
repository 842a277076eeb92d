"""The house: files import from lower floors only; `import sklabel` is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "sklabel"
FILES = sorted(ROOT.rglob("*.py"))

# A file may import from lower floors only. A folder stands on the floor of its files.
FLOORS = {
    "_warn": -1,
    "_labels": 0,
    "_optional": 0,
    "losses": 1,
    "augment": 1,
    "modules": 1,
    "optim": 1,
    "text": 1,
    "metrics": 1,
    "datasets": 1,
    "_data": 2,
    "_display": 1,
    "_calibration": 1,
    "_persistence": 2,
    "backbones": 2,
    "neighbors": 2,
    "pretrained": 2.5,
    "inspection": 3,
    "_callbacks": 3,
    "_net": 3,
    "_base": 4,
    "embedding": 5,
    "_codes": 5.5,
    "_held": 5.5,
    "_kcenter": 2.5,
    "clustering": 6,
    "classification": 6,
    "selection": 7,
    "active_learning": 8,
    "model_selection": 8,
    "_cli": 8.5,
    "__init__": 9,
    "__main__": 9,
}
METHOD_FOLDERS = {"embedding", "clustering", "classification", "selection"}
# Files that the others of their folder import from, from the bottom up.
STEPS = {
    "losses": ["_precision"],
    "augment": [
        "policy",
        "vectors",
        "weak",
        "contrastive",
        "operations",
        "ctaugment",
        "randaugment",
    ],
    **{folder: ["_base"] for folder in METHOD_FOLDERS},
}
PURE_TORCH = ["losses", "augment", "modules", "optim"]
# What `import sklabel` must not load: extras, and what takes long to load. (pandas and
# IPython are loaded by scikit-learn and tqdm themselves where they are installed.)
NOT_AT_IMPORT = [
    "matplotlib",
    "numba",
    "numpydoc",
    "open_clip",
    "pynndescent",
    "sphinx",
    "timm",
]


def dotted(path):
    """Return a file's place in the package: ("embedding", "_simclr")."""
    return path.relative_to(ROOT).with_suffix("").parts


def imports(path):
    """Yield (line, module, names) of every import; modules of ours begin with a dot."""
    package = dotted(path)[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, []
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if not node.level:
                yield node.lineno, node.module, names
                continue
            base = package[: len(package) - node.level + 1]
            inside = ".".join((*base, *(node.module or "").split("."))).strip(".")
            if node.module:
                yield node.lineno, f".{inside}", names
            else:  # from . import a, b: each name is a module or a name of __init__
                for name in names:
                    yield node.lineno, f".{inside}.{name}" if inside else f".{name}", []


def own_imports(path):
    """Yield (line, parts) of the imports from sklabel itself."""
    for line, module, _ in imports(path):
        if module.startswith("."):
            yield line, tuple(module[1:].split("."))
        elif module.split(".")[0] == "sklabel":
            yield line, tuple(module.split(".")[1:]) or ("__init__",)


def floor(parts):
    """Return the floor of a module of sklabel, and its step within a folder."""
    steps = STEPS.get(parts[0], [])
    step = steps.index(parts[-1]) - len(steps) if parts[-1] in steps else 0
    return FLOORS[parts[0]], step


def identity(path):
    return "/".join(dotted(path))


def test_there_is_something_to_look_at():
    assert len(FILES) > 10
    seen = [module for path in FILES for _, module, _ in imports(path)]
    assert "numpy" in seen and "torch" in seen


@pytest.mark.parametrize("path", FILES, ids=identity)
def test_every_file_has_a_floor(path):
    assert dotted(path)[0] in FLOORS, (
        f"{identity(path)} stands on no floor: add it to FLOORS in {__file__}"
    )


@pytest.mark.parametrize("path", FILES, ids=identity)
def test_imports_go_down(path):
    here = dotted(path)
    for line, parts in own_imports(path):
        where = f"{identity(path)}.py:{line} imports {'.'.join(parts)}"
        assert parts[0] in FLOORS or here == ("__init__",), f"{where}: no such module"
        if here[-1] == "__init__":
            # a public list imports the files it lists
            inside = parts[: len(here) - 1] == here[:-1]
            assert inside or floor(parts) < floor(here), where
        else:
            assert floor(parts) < floor(here), f"{where}: not a lower floor"


@pytest.mark.parametrize("path", FILES, ids=identity)
def test_other_folders_are_entered_by_the_door(path):
    here = dotted(path)
    for line, parts in own_imports(path):
        if parts[0] in METHOD_FOLDERS and parts[0] != here[0]:
            assert len(parts) == 1, (
                f"{identity(path)}.py:{line} imports {'.'.join(parts)}: take the "
                f"public name from {parts[0]}"
            )


def test_only_the_net_knows_skorch():
    users = {
        identity(path)
        for path in FILES
        for _, module, _ in imports(path)
        if module.split(".")[0] == "skorch"
    }
    assert users == {"_net"}


@pytest.mark.parametrize("name", PURE_TORCH)
def test_building_blocks_stand_on_torch_alone(name):
    allowed = {"torch", "numpy"} | set(sys.stdlib_module_names)
    paths = [path for path in FILES if dotted(path)[0] == name]
    assert paths, f"there is no {name}"
    for path in paths:
        for line, module, _ in imports(path):
            if not module.startswith("."):
                assert module.split(".")[0] in allowed, f"{identity(path)}.py:{line}"


def test_low_floors_do_not_know_estimators():
    for path in FILES:
        if FLOORS[dotted(path)[0]] <= 1:
            found = [
                line for line, module, _ in imports(path) if module == "sklearn.base"
            ]
            assert not found, f"{identity(path)}.py:{found}"


def test_import_is_light():
    code = (
        "import sys, sklabel\n"
        "print([m for m in ('torch', 'sklearn') if m in sys.modules])\n"
        "from sklabel import *\n"
        f"print([m for m in {NOT_AT_IMPORT!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        check=True,
    )
    assert done.stdout.split() == ["[]", "[]"]  # nothing; then: no extra either
    assert done.stderr == ""


def test_a_missing_optional_package_is_named(monkeypatch, tmp_path):
    from sklabel._core.optional import import_optional

    assert import_optional("json", extra="docs").dumps([1]) == "[1]"
    with pytest.raises(ImportError, match=r'no_such_thing.*"sklabel\[docs\]"'):
        import_optional("no_such_thing.part", extra="docs")
    (tmp_path / "half_there.py").write_text("import missing_inside\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="missing_inside"):
        import_optional("half_there", extra="docs")


def test_the_reader_of_imports_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "embedding").mkdir()
    path = tmp_path / "embedding" / "_x.py"
    path.write_text(
        "import os\nfrom .._base import A\nfrom . import _y\nfrom ..losses import b\n"
        "from .. import modules\n\ndef f():\n    from sklabel.selection import c\n"
    )
    assert [parts for _, parts in own_imports(path)] == [
        ("_base",),
        ("embedding", "_y"),
        ("losses",),
        ("modules",),
        ("selection",),
    ]
    bad = [p for _, p in own_imports(path) if not floor(p) < floor(("embedding", "_x"))]
    assert bad == [("embedding", "_y"), ("selection",)]
