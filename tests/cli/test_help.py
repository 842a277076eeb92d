"""Every option is explained, and messages name options that their command has."""

import ast
import re
from pathlib import Path

import pytest

import sklabel.cli
from sklabel.cli import _parser

FOLDER = Path(sklabel.cli.__file__).parent
PARSER, COMMANDS = _parser()
OF_COMMAND = {
    name: {option for action in parser._actions for option in action.option_strings}
    for name, parser in COMMANDS.items()
}
ALL = set.union(*OF_COMMAND.values()) | {"--version"}
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.py"))
# options of `kill`, of `pip` and of a comment are none of ours
ADDED_BY = {
    "lists.py": "add_lists",
    "embedders.py": "add_embedding",
    "classifiers.py": None,
}


def texts(path):
    """Yield the line and every text of a file; parts of f-strings are joined."""
    tree = ast.parse((FOLDER / path).read_text(encoding="utf-8"))
    inner = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inner.update(map(id, node.values))
            parts = [
                v.value if isinstance(v, ast.Constant) else "{}" for v in node.values
            ]
            yield node.lineno, "".join(parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in inner:
                yield node.lineno, node.value


def options_in(text):
    return re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)


def command_of(path):
    name = {"import_.py": "import"}.get(path, path.removesuffix(".py"))
    return name if name in COMMANDS else None


@pytest.mark.parametrize("path", FILES)
def test_messages_name_options_that_exist(path):
    command = command_of(path)
    for line, text in texts(path):
        for option in options_in(text):
            where = f"{path}:{line} names {option}"
            assert option in ALL, where
            if command is None or option in OF_COMMAND[command]:
                continue
            # of another command, which the text names before it
            before = text[: text.index(option)]
            named = [c for c in COMMANDS if re.search(rf"\b{c}\b", before)]
            assert any(option in OF_COMMAND[c] for c in named), where


def test_the_words_of_shared_files_fit_all_commands_that_use_them():
    source = {c: None for c in COMMANDS}
    for path in FILES:
        if command_of(path):
            source[command_of(path)] = (FOLDER / path).read_text()
    for shared, adds in ADDED_BY.items():
        if adds is None:
            continue
        users = [c for c, text in source.items() if f"options.{adds}(" in text]
        assert users
        named = {o for _, text in texts(shared) for o in options_in(text)}
        for command in users:
            others = named - OF_COMMAND[command]
            # of the command that has made what is used here, and is named
            assert others <= {"--save-embedder"}, (shared, command)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_complete(name):
    parser = COMMANDS[name]
    text = parser.format_help()
    assert parser.description and text.startswith("usage: sklabel")
    for action in parser._actions:
        what = (name, action.option_strings or action.metavar)
        assert action.help, what
        silent = (None, False, [], "==SUPPRESS==")
        if action.option_strings and action.default not in silent:
            assert "default" in action.help.lower(), what
        if action.option_strings and action.nargs is None and action.choices is None:
            assert (
                action.metavar
                or action.dest in ("device", "seed", "seeds")
                or (action.type is not None)
            ), what
    assert name in PARSER.format_help()
    assert all(len(line) < 100 for line in text.splitlines())


def test_every_command_is_in_the_documentation():
    pages = list((Path(__file__).parents[2] / "docs" / "user_guide").glob("*.rst"))
    if not pages:
        pytest.skip("no documentation beside the tests")
    told = " ".join(page.read_text(encoding="utf-8") for page in pages)
    for name in COMMANDS:
        assert f"sklabel {name}" in told, f"add `sklabel {name}` to docs/user_guide"
