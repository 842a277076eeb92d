"""The Python blocks of the documentation run as pasted; its commands are understood."""

# Each page runs in one namespace from its first block to its last, in an empty folder,
# on the data that the page itself makes. To be quick, the test shortens every training
# to `STEPS` optimizer steps (`short_trainings`), the only change to what a reader runs.
# So the test shows that a block runs, and nothing about what it computes. Warnings are
# no errors here, since after so few steps `fit` is right to warn.
#
# A block under the comment ``.. not run: REASON`` needs something that a test does not
# have, such as published weights. The test compiles it and runs its imports of sklabel.
# `NOT_RUN` counts these blocks page by page, so that none hides there.

import ast
import re
import shlex
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

from sklabel._core.net import Net
from sklabel.cli import _parse, _parser

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "docs/index.rst",
    "docs/install.rst",
    *(
        f"docs/user_guide/{p.name}"
        for p in sorted((ROOT / "docs/user_guide").iterdir())
    ),
]
STEPS = 2
NOT_RUN = {
    "docs/user_guide/active_learning.rst": 1,  # a person in the browser
    "docs/user_guide/classification.rst": 1,  # published weights of CLIP
    "docs/user_guide/coming_from.rst": 5,  # the other libraries
    "docs/user_guide/embedding.rst": 2,  # published weights
    "docs/user_guide/long_work.rst": 1,  # scikit-learn 1.9 and rich
}


@dataclass
class Block:
    """One block of code of a page."""

    line: int
    language: str
    code: str
    not_run: str


def blocks(page):
    """Return the blocks of a page in order, of Markdown or reStructuredText."""
    lines = (ROOT / page).read_text(encoding="utf-8").split("\n")
    found, not_run, i = [], "", 0
    while i < len(lines):
        fence = re.match(r"```(\w+)$", lines[i])
        directive = re.match(r"( *)\.\. code-block:: (\w+)$", lines[i])
        start = i + 1
        if fence:
            i = lines.index("```", start)
        elif directive:
            i, depth = start, len(directive[1])
            while i < len(lines) and (
                not lines[i].strip() or len(re.match(" *", lines[i])[0]) > depth
            ):
                i += 1
            i -= 1
        if fence or directive:
            code = textwrap.dedent("\n".join(lines[start:i])).strip("\n") + "\n"
            language = fence[1] if fence else directive[2]
            found.append(Block(start + 1, language, code, not_run))
            not_run = ""
        elif mark := re.match(r" *\.\. not run: (.+)", lines[i]):
            not_run = mark[1]
        i += 1
    return found


def python_blocks(page):
    """Return the Python blocks of a page."""
    return [b for b in blocks(page) if b.language == "python"]


@pytest.fixture
def short_trainings(monkeypatch):
    """End every stage of every training after `STEPS` steps."""
    whole = Net.fit_loop

    def fit_loop(self, *args, **kwargs):
        self.max_steps = min(self.max_steps or STEPS, STEPS)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Net, "fit_loop", fit_loop)


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)])
def test_python_blocks_run_as_pasted(page, short_trainings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matplotlib.pyplot, "show", lambda *a, **k: plt.close("all"))
    namespace = {"__name__": "__main__"}
    for block in python_blocks(page):
        padding = "\n" * (block.line - 1)  # so that tracebacks name the page's line
        code = compile(padding + block.code, str(ROOT / page), "exec")
        if block.not_run:
            _import_from_sklabel(block.code)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(code, namespace)
    plt.close("all")


def _import_from_sklabel(code):
    for node in ast.walk(ast.parse(code)):
        module = getattr(node, "module", None) or ""
        if isinstance(node, ast.ImportFrom) and module.split(".")[0] == "sklabel":
            exec(ast.unparse(node), {})


def test_blocks_that_are_not_run_are_counted():
    counts = {p: sum(bool(b.not_run) for b in python_blocks(p)) for p in PAGES}
    assert {page: n for page, n in counts.items() if n} == NOT_RUN


def shell_commands(code):
    """Return the commands of a shell block as lists of words, without comments."""
    lines = [line.removeprefix("$ ") for line in code.split("\n")]
    whole = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    words = [shlex.split(line, comments=True) for line in whole.split("\n") if line]
    return [
        command
        for line in words
        for command in _split(line, {"&&", "|", ";"})
        if command
    ]


def _split(words, at):
    found = [[]]
    for word in words:
        if word in at:
            found.append([])
        else:
            found[-1].append(word)
    return found


def sklabel_commands(page):
    """Return the arguments of each ``sklabel`` command of a page."""
    found = []
    for block in blocks(page):
        code = block.code
        if block.language == "console":
            code = _typed(code)
        elif block.language not in ("bash", "sh"):
            continue
        found += [c[1:] for c in shell_commands(code) if c[0] == "sklabel"]
    return found


def _typed(code):
    """Return what is typed in a console block, without the output."""
    kept, goes_on = [], False
    for line in code.split("\n"):
        if goes_on or line.startswith("$ "):
            kept.append(line)
            goes_on = line.endswith("\\")
    return "\n".join(kept)


@pytest.mark.parametrize("page", [p for p in PAGES if sklabel_commands(p)])
def test_commands_are_understood(page):
    for arguments in sklabel_commands(page):
        if arguments not in (["--help"], ["--version"]):
            _parse(arguments)


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page):
    """An option such as ``--seed`` in literals of the text is one of a command."""
    _, commands = _parser()
    if page == "README.md":
        text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.S)
        literals = re.findall(r"`([^`]+)`", text)
    else:
        text = (ROOT / page).read_text(encoding="utf-8")
        literals = re.findall(r"`+([^`]+)`+", text)
    named = {
        option
        for literal in literals
        if literal.startswith("--") or literal.split(" ")[0] in ("sklabel", *commands)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", literal)
    }
    known = {"--help", "--version"}
    for command in commands.values():
        known |= set(re.findall(r"--[a-z][a-z-]+", command.format_help()))
    assert named <= known


def test_blocks_are_found_and_told_apart(tmp_path, monkeypatch):
    page = tmp_path / "page.rst"
    page.write_text(
        "Text\n\n.. code-block:: python\n\n    a = 1\n\n    b = 2\n\nText\n\n"
        ".. not run: needs a network\n.. code-block:: python\n\n    c = 3\n\n"
        "- item\n\n  .. code-block:: bash\n\n     sklabel fit a.csv \\\n"
        "         photos && ls   # last\n\nEnd\n"
    )
    monkeypatch.setattr(__import__(__name__, fromlist="_"), "ROOT", tmp_path)
    first, second, third = blocks("page.rst")
    assert (first.code, first.not_run) == ("a = 1\n\nb = 2\n", "")
    assert (second.code, second.not_run) == ("c = 3\n", "needs a network")
    assert sklabel_commands("page.rst") == [["fit", "a.csv", "photos"]]
    assert third.language == "bash"
