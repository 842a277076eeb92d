"""Photographs without a label are put into groups."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sklabel.cli import cluster, main
from tests.cli._running import color_of, columns, complaint, read_csv, write_images


@pytest.fixture
def argv(here, saved):
    return ["cluster", "photos", "--embedder", str(saved / "embedder"), "--quiet"]


def test_more_groups_than_different_images(argv, here, capsys):
    for path in (here / "photos").iterdir():
        Image.new("RGB", (16, 16), "red").save(path)
    assert main([*argv, "--n-clusters", "3"]) == 0
    said = capsys.readouterr().out
    assert "--n-clusters 3 is more than the number of different images)" in said


def test_the_next_command_replaces_nothing(argv, capsys):
    Path("labels.csv").write_text("path,label\n0.png,mine\n")
    assert main([*argv, "--n-clusters", "2"]) == 0
    assert (
        "fit clusters.csv photos --out labels-2.csv"
        in capsys.readouterr().out.replace(f" --embedder {argv[3]}", "")
    )


def test_groups(argv, capsys):
    assert main([*argv, "--n-clusters", "3", "--sheets", "sheets"]) == 0
    out = capsys.readouterr().out
    assert "10 images in 3 groups" in out and "Then: sklabel fit clusters.csv" in out
    rows = read_csv("clusters.csv")
    assert columns(rows) == ["cluster", "number", "path", "label"]
    assert sorted(row["path"] for row in rows) == [f"{i}.png" for i in range(10)]
    sizes = [sum(row["cluster"] == str(k) for row in rows) for k in (1, 2, 3)]
    assert sizes == sorted(sizes, reverse=True) and sum(sizes) == 10
    for k, size in enumerate(sizes, 1):
        own = [int(row["number"]) for row in rows if row["cluster"] == str(k)]
        assert own == list(range(1, size + 1))
    assert sorted(os.listdir("sheets")) == [f"group-{k}.png" for k in (1, 2, 3)]
    with Image.open("clusters.png") as sheet:
        assert sheet.width > 200
    content = Path("clusters.csv").read_bytes()
    os.rename("sheets", "before")
    assert main([*argv, "--n-clusters", "3", "--sheets", "sheets"]) == 0
    assert Path("clusters.csv").read_bytes() == content


def test_the_list_is_one_to_fill_in(argv, saved, capsys):
    assert main([*argv, "--n-clusters", "2"]) == 0
    text = Path("clusters.csv").read_text()
    lines = text.splitlines()
    named = [
        line + color_of(line.split(",")[2])
        if i and line.split(",")[1] in "123"
        else line
        for i, line in enumerate(lines)
    ]
    Path("clusters.csv").write_text("\n".join(named))
    capsys.readouterr()
    assert "exists" in complaint(capsys, *argv, "--n-clusters", "2")
    fit = ["fit", "clusters.csv", "photos", "--embedder", str(saved / "embedder")]
    capsys.readouterr()
    assert main([*fit, "--quiet"]) == 0
    assert "6 labels given" in capsys.readouterr().out


def test_the_number_of_groups_is_estimated():
    rng = np.random.default_rng(0)
    centers = 5 * np.eye(6)
    Z = np.repeat(centers, 20, axis=0) + rng.normal(size=(120, 6)) / 3
    args = type("args", (), {"n_clusters": None, "seed": 0})
    groups, distances, how = cluster._group(Z, args)
    assert "silhouette" in how and len(set(groups)) == 6
    assert all(len(set(groups[i : i + 20])) == 1 for i in range(0, 120, 20))
    assert (distances >= 0).all()
    # copies of one image, and two images
    for rows in (np.ones((5, 3)), np.eye(2)):
        assert len(cluster._group(rows, args)[0]) == len(rows)


def test_wrong_input(here, argv, capsys):
    write_images(here / "single", 1)
    said = complaint(capsys, *argv, "--n-clusters", "11")
    assert "--n-clusters 11 is more than the 10 images" in said
    assert "among the images" in complaint(capsys, *argv, "--out", "photos/a.csv")
    assert "only one image" in complaint(capsys, "cluster", "single")
    assert "both a.png" in complaint(capsys, *argv, "--out", "a.png")
