"""Words that public texts do not use: another one says the same plainly."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = "README.md", "SECURITY.md", "CONTRIBUTING.md", "docs", "sklabel", "benchmarks"
# each with what to write
WORDS = {
    r"base[ -]lines?": "baseline",
    r"[Gg]rey": "gray",
    r"[Yy]ardsticks?": "baseline",
    r"riddles?": "task",
    r"most telling": "most informative",
    r"aspect ratio gives way": "the image is stretched to fit",
    r"is told by": "is recognized by",
    r"; kept is": "... is kept",
    r"next to nothing": "hardly anything",
    r"it is no probability": "it is not a probability",
    r", which see\.": "see ...",
    r"is as if it were not there": "is ignored",
    r"(row|number) among equals": "ties by lowest row number",
    r"rows are asked": "rows are requested",
    r"also stands? among": "are also used as",
    r"is of use": "can be used",
    r"what is rare": "rare classes",
    r"compares? only at": "are comparable only for",
    r"whichever is (more|less)": "whichever is larger, smaller",
    r"as far as chance goes": "random error only",
    r"brings? (its|no) weights": "includes, has no published weights",
    r"nothing to disagree": "cannot disagree",
    r"labelling|labelled|unlabelled": "labeling, labeled, unlabeled",
    r"behaviours?|colours?|neighbours?": "American spelling",
    r"(optim|normal|initial)is(e|ed|ing)": "American spelling",
}
# the name of a parameter, and a word of HTML
NAMES = re.compile(
    r"aria-labelledby|`+grey`+|\bgrey ?[:=!,\[)]|[(.]grey\b|(if|=) grey\b"
)


def public_texts():
    """Return the files that people read, without what is generated."""
    run = subprocess.run(
        ["git", "ls-files", *PLACES], cwd=ROOT, capture_output=True, text=True
    )
    endings = ".py", ".rst", ".md", ".html", ".js"
    return [name for name in run.stdout.split("\n") if name.endswith(endings)]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout to look through")
@pytest.mark.parametrize("word", WORDS)
def test_a_plainer_word_is_used(word):
    found = []
    for name in public_texts():
        for n, line in enumerate((ROOT / name).read_text("utf-8").split("\n"), 1):
            if re.search(rf"(?<!\w)({word})(?!\w)", NAMES.sub("", line)):
                found.append(f"{name}:{n}: {line.strip()}")
    assert not found, f"write {WORDS[word]!r}:\n" + "\n".join(found)
