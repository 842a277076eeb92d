"""Links between the files of this project lead to files and headings that exist."""

# No network: addresses elsewhere are not opened. Sphinx checks the roles (``:ref:``,
# ``:doc:``) when it builds the documentation.

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MARKDOWN = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md"]
# made when the documentation is built
BUILT = "auto_examples", "generated"


def markdown_links(text):
    """Return the targets of links and pictures, without those in code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    text = re.sub(r"`[^`\n]+`", "", text)
    return re.findall(r"\]\(\s*<?([^)\s>]+)", text)


def anchors(text):
    """Return the anchors that GitHub gives to the headings of a Markdown text."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    found = re.findall(r"^#+ +(.+?) *#*$", text, flags=re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in found]
    return {heading.replace(" ", "-") for heading in plain}


def rst_targets(text):
    """Return pictures, targets of pictures, included files and links of a page."""
    found = re.findall(
        r"^ *\.\. (?:image|figure|include|literalinclude):: +(\S+)|^ *:target: +(\S+)",
        text,
        flags=re.M,
    )
    found += [("", link) for link in re.findall(r"`[^`<]*<([^`>\s]+)>`__?", text)]
    return [one or other for one, other in found]


def is_local(target):
    """Return whether a target is a file or a heading of this project."""
    return not re.match(r"[a-z]+:", target)


def missing_markdown(page, root=ROOT):
    """Return the local links of a Markdown file that lead nowhere."""
    text, missing = (root / page).read_text(encoding="utf-8"), []
    for link in filter(is_local, markdown_links(text)):
        path, _, anchor = link.partition("#")
        target = (root / page).parent / path if path else root / page
        if not target.exists():
            missing.append(link)
        elif anchor and target.suffix == ".md":
            if anchor not in anchors(target.read_text(encoding="utf-8")):
                missing.append(link)
    return missing


def missing_rst(page, docs=ROOT / "docs"):
    """Return the local targets of a page of the documentation that lead nowhere."""
    missing = []
    text = (docs / page).read_text(encoding="utf-8")
    for link in filter(is_local, rst_targets(text)):
        path = link.partition("#")[0]
        folder = docs if path.startswith("/") else (docs / page).parent
        target = (folder / path.lstrip("/")).resolve()
        relative = target.relative_to(docs.resolve())
        if relative.parts and relative.parts[0] in BUILT:
            exists = made_by_the_gallery(relative, docs)
        else:  # a page is linked by the name that it has in the browser
            exists = target.exists() or target.with_suffix(".rst").exists()
        if path and not exists:
            missing.append(link)
    return missing


def made_by_the_gallery(path, docs):
    """Return whether an example makes this page, or this picture of its own."""
    if path.stem == "index":
        return True
    picture = re.fullmatch(r"sphx_glr_(.+)_(?:\d{3}|thumb)", path.stem)
    return (docs / "examples" / f"{picture[1] if picture else path.stem}.py").exists()


def pages():
    """Return the pages of the documentation, and the texts of its examples."""
    docs = ROOT / "docs"
    found = [*docs.glob("*.rst"), *docs.glob("[ur]*/*.rst")]
    return sorted(str(path.relative_to(docs)) for path in found)


@pytest.mark.parametrize("page", MARKDOWN)
def test_links_of_markdown_lead_somewhere(page):
    assert missing_markdown(page) == []


@pytest.mark.parametrize("page", pages())
def test_links_of_the_documentation_lead_somewhere(page):
    assert missing_rst(page) == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout to look through")
def test_every_markdown_file_is_looked_at():
    run = ["git", "ls-files", "*.md"]
    names = subprocess.run(run, cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert set(names) <= set(MARKDOWN)


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "a.md").write_text(
        "# One & two\n[x](b.md) [y](#one--two) ![z](c.png) [w](#three)\n"
        "`[code](d.md)` [far](https://example.org/e.md)\n```\n[f](f.md)\n```\n"
    )
    assert missing_markdown("a.md", tmp_path) == ["b.md", "c.png", "#three"]
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/plot_one.py").write_text("")
    (tmp_path / "p.rst").write_text(
        ".. image:: gone.png\n   :target: auto_examples/plot_one.html\n\n"
        ".. figure:: /auto_examples/images/sphx_glr_plot_two_001.png\n"
        "   :target: p.html\n\n`text <q.html>`_ and `far <https://example.org>`_\n"
    )
    assert missing_rst("p.rst", tmp_path) == [
        "gone.png",
        "/auto_examples/images/sphx_glr_plot_two_001.png",
        "q.html",
    ]
