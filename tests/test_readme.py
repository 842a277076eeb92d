"""The README's commands are those of CI."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_ci_runs_the_test_command():
    (command,) = (c.strip() for c in blocks("sh") if "pytest" in c)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for part in command.split(" && "):
        assert part in script
