"""Folders of images and CSV files for the commands, and commands that must fail."""

import csv
import re

import numpy as np
from PIL import Image

from sklabel.cli import main

SHORT = ["--epochs", "1", "--quiet"]
COLORS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


def color_of(name):
    return list(COLORS)[int(re.findall(r"\d+", name)[0]) % 2]


def write_images(folder, n=10, size=(16, 16)):
    """Write reddish and bluish noise, the colors taking turns."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        path = folder / f"{i}.png"
        noise = rng.integers(-25, 25, (*size, 3))
        pixels = np.clip(np.array(COLORS[color_of(path.name)]) + noise, 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def columns(rows):
    """Return the columns of a CSV without the one by which it is recognized."""
    return [name for name in rows[0] if not name.startswith("sklabel-")]


def write_csv(path, rows, header=("path", "label"), delimiter=","):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def break_file(path):
    """Cut an image file in half, so that it opens but cannot be decoded."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def complaint(capsys, *argv, status=2):
    """Run a command that must fail, and return its only line on stderr."""
    assert main([str(a) for a in argv]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sklabel: ") and err.endswith("\n")
    assert err.count("\n") == 1, err
    return err[len("sklabel: ") : -1]
