"""The README's commands are those of CI, and its code runs."""

import re
from pathlib import Path

import numpy as np
import pytest

from sklabel.datasets import load_digit_images

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_ci_runs_the_test_command():
    (command,) = (c.strip() for c in blocks("sh") if "pytest" in c)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for part in command.split(" && "):
        assert part in script


def test_its_code_runs():
    images, target = load_digit_images(return_X_y=True)
    images, target = images[:400], target[:400]
    given = {
        "X": images,
        "X_new": images[:3],
        "ask_a_person": lambda chosen: [
            target[np.flatnonzero((images == image).all((1, 2)))[0]] for image in chosen
        ],
    }
    first, second = blocks("python")
    short = first.replace("random_state=0)", "random_state=0, max_epochs=1)")
    exec(short, given)
    assert given["clf"].transduction_.shape == (400,)
    exec(second.replace("max_epochs=10", "max_epochs=1"), given)
    assert given["search"].best_params_["threshold"] in (0.8, 0.95)


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)(.*?)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()
