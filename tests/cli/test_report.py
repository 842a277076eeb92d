"""The report is one file that loads nothing, runs nothing and says what is known."""

import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sklabel._pages import report as page
from sklabel.cli import lists, main, tables
from tests.cli._running import break_file, color_of, complaint, read_csv, write_csv

WILD = [
    '<script>alert("1")</script>',
    "'\"><img src=x onerror=alert(2)>",
    "$body & 日本",
]


class Read(HTMLParser):
    """What stands in a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def argv(here, saved):
    """A report of ``labels.csv``: four labels given, six predicted."""
    emb = ["--embedder", str(saved / "embedder"), "--quiet"]
    assert main(["fit", "filled.csv", "photos", *emb]) == 0
    return ["report", "labels.csv", "photos", *emb]


def test_what_is_shown(argv, capsys):
    capsys.readouterr()
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert re.search(r"report.html: 10 labeled images, 0.\d MB. Pictures: 6, ", said)
    text = Path("report.html").read_text(encoding="utf-8")
    read = Read(text)
    assert not read.open
    shown = " ".join(read.texts)
    for words in (
        "Labels of photos",
        "10 labeled images in 2 classes",
        "Estimated right",
        "Accuracy by confidence",
        "All 10 images by t-SNE",
        "Most confident",
        "Least confident",
        "sklabel report labels.csv photos",
        "SHA-256",
        "scikit-learn",
        "Seed",
        "Pictures: 6, 0.0 MB of at most 4 MB.",
    ):
        assert words in shown, words
    assert read.tags.count("circle") == 10 and read.tags.count("img") == 6
    # one table of classes, with what fit has counted
    rows = read_csv("labels.csv")
    n = sum(row["label"] == "red" and row["source"] == "given" for row in rows)
    m = sum(row["label"] == "red" and row["source"] == "predicted" for row in rows)
    assert re.search(
        rf"red</bdi></a></th><td>{n}</td><td>{m}</td><td class=.all.>{n + m}</td>", text
    )


def test_nothing_is_loaded_and_nothing_runs(argv):
    assert main(argv) == 0
    check(Path("report.html").read_text(encoding="utf-8"))


def check(text):
    read = Read(text)
    assert not set(read.tags) & {"script", "link", "iframe", "object", "form", "base"}
    for tag, name, value in read.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value.startswith("data:image/jpeg;base64," if tag == "img" else "#")
    policy = dict(
        (n, v) for t, n, v in read.attributes if t == "meta" and n == "content"
    )
    assert "default-src 'none'" in text and policy
    assert "@import" not in text and "url(" not in text
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = {v for _, name, v in read.attributes if name == "aria-labelledby"}
    assert named <= set(ids)
    links = {v[1:] for _, name, v in read.attributes if name == "href"}
    assert links <= set(ids)
    for tag in ("img", "svg"):
        said = [
            n for t, n, v in read.attributes if t == tag and n in ("alt", "aria-label")
        ]
        assert len(said) == read.tags.count(tag)
    assert 'lang="en"' in text and 'name="viewport"' in text


def test_hostile_names(argv):
    os.rename("photos/0.png", f"photos/{WILD[0].replace('/', ' ')}.png")
    os.rename("photos/5.png", 'photos/"><b>&amp;\u202egnp.png')
    names = sorted(os.listdir("photos"))
    entries = [lists.given_entry(n, WILD[i]) for i, n in enumerate(names[:3])]
    entries += [
        lists.predicted_entry(n, WILD[i % 3], "0.7000") for i, n in enumerate(names[3:])
    ]
    content = tables.as_marked("fit", *lists.rows(entries))
    Path("wild.csv").write_bytes(content)
    assert main(["report", "wild.csv", *argv[2:], "--title", "</title><script>"]) == 0
    text = Path("report.html").read_text(encoding="utf-8")
    check(text)
    shown = " ".join(Read(text).texts)
    assert all(name in shown for name in WILD) and "\u202e" not in text


@given(st.text())
def test_any_text_is_text(text):
    shown = page.escaped(text)
    read = Read(f'<p title="{shown}">{shown}</p>')
    assert read.tags == ["p"] and "\x00" not in shown
    told = read.attributes[0][2], "".join(read.texts)
    assert told[0] == told[1] and len(told[0]) == len(text)


def test_what_is_not_known_is_left_out(here, argv, capsys):
    assert main([*argv, "--map", "none"]) == 0
    text = Path("report.html").read_text(encoding="utf-8")
    assert "circle class" not in text and "Estimated right" not in text
    assert "Mean confidence" in text
    # labels of a person alone
    write_csv("all.csv", [(f"{i}.png", color_of(f"{i}.png")) for i in range(10)])
    assert main(["report", "all.csv", *argv[2:], "--map", "pca"]) == 0
    text = Path("report.html").read_text(encoding="utf-8")
    assert "principal components" in text and "How far" not in text
    assert "none is predicted" in text and ">Given</h4>" in text
    check(text)
    write_csv("one.csv", [("0.png", "red")])
    assert main(["report", "one.csv", *argv[2:]]) == 0
    check(Path("report.html").read_text(encoding="utf-8"))
    write_csv("none.csv", [("0.png", "")])
    capsys.readouterr()
    assert "there is no label in none.csv" in complaint(
        capsys, "report", "none.csv", *argv[2:]
    )


def test_another_classifier_is_said(argv, capsys):
    rows = [list(row.values())[:5] for row in read_csv("labels.csv")]
    for row in rows:
        if row[3] == "predicted":
            row[1] = row[4] = {"red": "blue", "blue": "red"}[row[1]]
    write_csv("other.csv", rows, lists.HEADER)
    assert main(["report", "other.csv", *argv[2:]]) == 0
    text = Path("report.html").read_text(encoding="utf-8")
    assert "by another classifier, which agrees with 0 %" in text


def test_broken_files(argv, here):
    break_file(here / "photos" / "9.png")
    assert main([*argv, "--skip-broken"]) == 0
    text = Path("report.html").read_text(encoding="utf-8")
    assert "1 left out or not readable" in text and "9 of 10 images by" in text


def test_a_page_of_somebody_else_stays(argv, capsys):
    assert main(argv) == 0
    assert main(argv) == 0  # our own
    text = Path("report.html").read_text(encoding="utf-8")
    Path("report.html").write_text(text.replace("Classes", "My classes"))
    capsys.readouterr()
    assert "is not overwritten" in complaint(capsys, *argv)
    assert main([*argv, "--overwrite"]) == 0
    capsys.readouterr()
    shutil.copy("labels.csv", "x.html")
    assert "is not overwritten" in complaint(capsys, *argv, "--out", "x.html")


def test_pictures_are_bounded(tmp_path):
    paths = []
    for i in range(6):
        paths.append(str(tmp_path / f"{i}.png"))
        noise = np.random.default_rng(i).integers(0, 255, (300, 400, 3), np.uint8)
        Image.fromarray(noise).save(paths[-1])
    addresses, n_bytes = page.thumbnails(paths, range(6), 10**9)
    assert len(addresses) == 6
    assert n_bytes == sum(map(len, addresses.values())) > 60_000
    found, few = page.thumbnails(paths, [3, 3, 1, 0], n_bytes // 2)
    assert list(found)[0] == 3 and len(found) < 6 and few <= n_bytes // 2


def test_the_curve_tells_the_mean_confidence():
    accuracy = np.array([0.99, 0.9, 0.8, 0.6])
    text = page.curve(accuracy)
    assert "<td>4</td><td>60 %</td>" in text and "from 99 % to 60 %" in text
    assert page.curve(np.array([])) == ""
    for few in ([0.2], [1.0, 1.0]):
        assert "nan" not in page.curve(np.array(few))


def test_no_prediction_is_shown_as_certain():
    sure = page.curve(np.full(20, 0.9999))
    assert "99 %</td>" in sure and "100 %</td>" not in sure
    one = page.Class("cat", 0, 3, 0.9999, [], [], [])
    assert "0.99" in page.classes([one]) and "1.00" not in page.classes([one])
