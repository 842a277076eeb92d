"""The house: files import from lower floors only; `import sklabel` is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "sklabel"
FILES = sorted(ROOT.rglob("*.py"))

# Rooms by floor, the ground floor first. A room is a file or a folder; in the engine,
# `_core`, in its `roles` and in `_pages` every file is one. A file imports from lower
# floors only, or from its own room.
FLOORS = [
    "_core.launching _core.random_numbers _core.wording",
    "_core.checks _core.devices _core.freezing _core.processes",
    "losses augment modules optim neighbors _core.columns _core.docstrings _core.files "
    "_core.divergence _core.label_texts _core.layers _core.lettering _core.optional "
    "_core.plain _core.samples _core.warn",
    "backbones text _core.calibration _core.callbacks _core.choice _core.decoding "
    "_core.few_shot _core.identity _core.kcenter _core.labels _core.persistence "
    "_core.propagation _core.samplers _core.weight_files",
    "datasets _core.answers _core.batches _core.display _core.image_files "
    "_pages.photographs _pages.report _pages.session",
    "labels metrics _core.class_names _core.inputs _core.net _core.texts "
    "_core.vector_cache _pages.server",
    "inspection pretrained _pages.review _core.health _core.parameters _core.settings",
    "_core.learner _core.own_networks",
    "_core.codes _core.overclustering _core.roles.embedding _core.roles.clustering "
    "_core.roles.classification _core.roles.search",
    "_core.nested _core.transfer",
    "_core.roles.selection",
    "_core.adversary",
    "embedding",
    "clustering classification",
    "selection",
    "active_learning ensemble model_selection _pages.learning",
    "__init__",
    "cli",
    "__main__",
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
# lists of folders whose files are rooms
EMPTY = {
    ("_core", "__init__"),
    ("_core", "roles", "__init__"),
    ("_pages", "__init__"),
}
METHOD_FOLDERS = {"embedding", "clustering", "classification", "selection"}
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
    "starlette",
    "timm",
    "uvicorn",
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
                of_files = [
                    n
                    for n in names
                    if (ROOT / inside.replace(".", "/") / f"{n}.py").exists()
                ]
                for name in of_files:
                    yield node.lineno, f".{inside}.{name}", []
                if len(of_files) < len(names):
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


def room(parts):
    """Return the room of a module: ("_core", "roles", "embedding") is one."""
    engine = {("_core",): 2, ("_core", "roles"): 3, ("_pages",): 2}
    depth = engine.get(parts[:2], engine.get(parts[:1], 1))
    return ".".join(parts[:depth])


def identity(path):
    return "/".join(dotted(path))


def test_there_is_something_to_look_at():
    assert len(FILES) > 10
    seen = [module for path in FILES for _, module, _ in imports(path)]
    assert "numpy" in seen and "torch" in seen


@pytest.mark.parametrize("path", FILES, ids=identity)
def test_every_file_has_a_floor(path):
    if dotted(path) not in EMPTY:
        assert room(dotted(path)) in FLOOR, (
            f"{identity(path)} stands on no floor: add it to FLOORS in {__file__}"
        )


def test_every_room_is_there():
    assert set(FLOOR) == {room(dotted(p)) for p in FILES if dotted(p) not in EMPTY}


@pytest.mark.parametrize("path", FILES, ids=identity)
def test_imports_go_down(path):
    here = room(dotted(path))
    for line, parts in own_imports(path):
        where = f"{identity(path)}.py:{line} imports {'.'.join(parts)}"
        there = room(parts)
        assert there in FLOOR, f"{where}: no such module"
        assert there == here or FLOOR[there] < FLOOR[here], f"{where}: not below"


def test_no_circle_within_a_room():
    below = {dotted(path): {parts for _, parts in own_imports(path)} for path in FILES}
    below = {here: {p for p in parts if p in below} for here, parts in below.items()}

    def walk(here, way):
        assert here not in way, f"circle: {[*way, here]}"
        for there in below[here] - {here}:
            walk(there, (*way, here))

    for here in below:
        walk(here, ())


def test_the_engine_knows_no_method():
    for path in FILES:
        if dotted(path)[0] == "_core":
            known = {parts[0] for _, parts in own_imports(path)}
            assert not known & METHOD_FOLDERS, identity(path)


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
    assert users == {"_core/net"}


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
        if FLOOR.get(room(dotted(path))) == 1:
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


def test_options_are_read_before_anything_is_loaded():
    code = (
        "import sys, sklabel.cli\n"
        "sklabel.cli.main(['fit', '--help'])\n"
        "sklabel.cli.main(['fit', '--steps', '0'])\n"
        "print([m for m in ('numpy', 'torch', 'sklearn') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        check=True,
    )
    assert done.stdout.endswith("\n[]\n")


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
        "import os\nfrom .._core.net import A\nfrom . import _y\nfrom ..losses import "
        "b\nfrom .. import modules\n\ndef f():\n    from sklabel.selection import c\n"
    )
    found = [parts for _, parts in own_imports(path)]
    assert found == [
        ("_core", "net"),
        ("embedding", "_y"),
        ("losses",),
        ("modules",),
        ("selection",),
    ]
    assert [room(parts) for parts in found] == [
        "_core.net",
        "embedding",
        "losses",
        "modules",
        "selection",
    ]
