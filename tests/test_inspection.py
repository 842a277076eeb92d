"""Pictures show the right images, of every form of X."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sklabel.clustering import SCANClusterer
from sklabel.datasets import load_digit_images
from sklabel.inspection import ClusterDisplay

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")
plt = pytest.importorskip("matplotlib.pyplot")

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (30, 9, 8, 3), dtype=np.uint8)
LABELS = np.repeat([0, 1, 2], [20, 7, 3])
CONFIDENCE = np.linspace(0, 1, 30)[RNG.permutation(30)]


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def shown(display):
    """Return the images in the order of the axes, None for an empty one."""
    return [
        [ax.images[0].get_array() if ax.images else None for ax in line]
        for line in display.axes_
    ]


def test_ends_of_each_cluster_in_order():
    display = ClusterDisplay.from_predictions(X, LABELS, CONFIDENCE, n_images=4)
    lines = shown(display)
    assert np.shape(display.axes_) == (3, 9)
    for cluster, line in enumerate(lines):
        rows = np.flatnonzero(LABELS == cluster)
        rows = rows[np.argsort(-CONFIDENCE[rows])]
        # 20, 7 and 3 rows: each image once
        expected = {0: [*rows[:4], *rows[-4:]], 1: rows, 2: rows}[cluster]
        found = [image for image in line if image is not None]
        assert len(found) == len(expected)
        for image, row in zip(found, expected, strict=True):
            np.testing.assert_array_equal(image, X[row])
        assert line[4] is None
    texts = [line[0].texts[0].get_text() for line in display.axes_]
    assert texts == ["0\n20 rows", "1\n7 rows", "2\n3 rows"]


FORMS = {
    "NCHW": lambda x, folder: np.ascontiguousarray(x.transpose(0, 3, 1, 2)),
    "floats": lambda x, folder: x / 255,
    "own range": lambda x, folder: x.astype(float) - 128,
    "list": lambda x, folder: list(x),
    "paths": lambda x, folder: folder,
    "frame": lambda x, folder: pd.DataFrame({"path": folder}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_images(form, tmp_path):
    x = X.copy()
    x[0], x[1] = 0, 255
    for i, image in enumerate(x):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    files = sorted(map(str, tmp_path.glob("*.png")))
    given = FORMS[form](x, files)
    display = ClusterDisplay.from_predictions(given, LABELS, CONFIDENCE, n_images=2)
    expected = ClusterDisplay.from_predictions(x, LABELS, CONFIDENCE, n_images=2)
    for a, b in zip(sum(shown(display), []), sum(shown(expected), []), strict=True):
        if b is not None:
            a = a if a.dtype == np.uint8 else np.asarray(a) * 255
            np.testing.assert_allclose(a, b, atol=0.6)


def test_from_an_estimator_in_a_figure_of_the_user():
    images = load_digit_images().images[:60]
    clusterer = SCANClusterer(3, max_steps=3, self_label_epochs=0, random_state=0)
    clusterer.set_params(embedder=None, n_neighbors=5).fit(images)
    figure = plt.figure()
    display = ClusterDisplay.from_estimator(
        clusterer, images, n_images=3, clusters=[0], figure=figure
    )
    assert display.figure_ is figure and display.axes_.shape == (1, 7)
    rows = np.flatnonzero(clusterer.predict(images) == 0)
    best = rows[clusterer.predict_proba(images)[rows, 0].argmax()]
    np.testing.assert_array_equal(shown(display)[0][0], images[best])


def test_rows_without_a_cluster_are_left_out():
    labels = np.where(np.arange(30) < 5, -1, LABELS)
    display = ClusterDisplay.from_predictions(X, labels, CONFIDENCE)
    assert display.sizes == {0: 15, 1: 7, 2: 3}


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"clusters \[5\] have no row"):
        ClusterDisplay.from_predictions(X, LABELS, CONFIDENCE, clusters=[0, 5])
    with pytest.raises(ValueError, match="give images"):
        ClusterDisplay.from_predictions(np.ones((30, 4)), LABELS, CONFIDENCE)
