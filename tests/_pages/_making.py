"""Folders of small images, and sessions of them, for the tests of pages."""

import csv

import numpy as np
from PIL import Image

from sklabel._pages.photographs import Photographs
from sklabel._pages.server import labeling_routes

COLORS = {"red": (200, 40, 40), "green": (40, 170, 60), "blue": (40, 60, 200)}


def color_of(row):
    return list(COLORS)[row * 7 % 3]


def write_images(folder, n, size=(24, 18), names=None):
    """Write images of three colors with some noise; return their paths."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for row in range(n):
        noise = rng.integers(-30, 30, (size[1], size[0], 3))
        pixels = np.clip(np.array(COLORS[color_of(row)]) + noise, 0, 255)
        name = names[row] if names else f"{row:05d}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name, "PNG")
        paths.append(folder / name)
    return paths


def vectors(n, width=8):
    """Return vectors in three groups, as of `write_images`: no network is needed."""
    rng = np.random.default_rng(0)
    centers = np.eye(width, dtype=np.float32)[:3] * 4
    groups = [list(COLORS).index(color_of(row)) for row in range(n)]
    return (centers[groups] + rng.normal(size=(n, width))).astype(np.float32)


def make_routes(paths, session, learner=None, **settings):
    names = [path.name for path in paths]
    return labeling_routes(
        session,
        names,
        Photographs(paths),
        near=learner and learner.near,
        about={"title": "photos", "list": "list.csv", "next": "sklabel fit list.csv"},
        **settings,
    )


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
