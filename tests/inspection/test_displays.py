"""Pictures show the right images, of every form of X."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklabel.clustering import DeepClusterer, IICSegmenter, SCANClusterer
from sklabel.datasets import load_digit_images
from sklabel.inspection import ClusterDisplay, SelectionDisplay
from sklabel.selection import CoreSetSelector

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


@pytest.mark.parametrize("scale", [1, 255.0])
def test_a_dark_image_is_drawn_dark(scale):
    x = np.zeros((3, 4, 4), np.uint8) + np.array([0, 20, 255], np.uint8)[:, None, None]
    x = x if scale == 1 else x / scale
    display = ClusterDisplay.from_predictions(x, [0, 0, 0], [3, 2, 1], n_images=3)
    limits = {ax.images[0].get_clim() for ax in display.axes_.flat if ax.images}
    assert limits == {(0, 255 / scale)}


def test_a_display_is_drawn_again_with_fewer_images():
    display = ClusterDisplay.from_predictions(
        X, LABELS, CONFIDENCE, n_images=3, clusters=[0, 1]
    )
    least = [row[-1] for row in shown(display)]
    display.plot(n_images=1)
    for row, last in zip(shown(display), least, strict=True):
        np.testing.assert_array_equal(row[-1], last)
    with pytest.raises(ValueError, match="n_images=9 is more than"):
        display.plot(n_images=9)


def test_maps_of_clusters_are_refused():
    segmenter = IICSegmenter(2, half_side=1, max_steps=1, random_state=0).fit(X)
    with pytest.raises(ValueError, match=r"shape \(30, 9, 8\).*plt.imshow\(labels"):
        ClusterDisplay.from_estimator(segmenter, X)


def test_a_clusterer_without_probabilities():
    images = load_digit_images().images[:60]
    clusterer = DeepClusterer(3, max_steps=2, random_state=0).fit(images)
    display = ClusterDisplay.from_estimator(clusterer, images, n_images=2)
    scores, labels = clusterer.score_samples(images), clusterer.predict(images)
    first = min(display.sizes)
    rows = np.flatnonzero(labels == first)
    np.testing.assert_array_equal(
        shown(display)[0][0], images[rows[scores[rows].argmax()]]
    )
    with pytest.raises(ValueError, match="KMeans has neither predict_proba"):
        ClusterDisplay.from_estimator(KMeans(2).fit(X.reshape(30, -1)), X)


def test_rows_without_a_cluster_are_left_out():
    labels = np.where(np.arange(30) < 5, -1, LABELS)
    display = ClusterDisplay.from_predictions(X, labels, CONFIDENCE)
    assert display.sizes == {0: 15, 1: 7, 2: 3}


def test_clusters_without_a_confidence_are_drawn_in_their_order():
    display = ClusterDisplay.from_predictions(X, LABELS, n_images=2)
    rows = np.flatnonzero(LABELS == 0)[[0, 1, -2, -1]]
    assert display.confidence is None
    for image, row in zip(display.images[:4], rows, strict=True):
        np.testing.assert_array_equal(np.asarray(image), X[row])
    assert not display.axes_[0, 0].get_title(loc="left")


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        ClusterDisplay.from_predictions(X, LABELS, CONFIDENCE[:-1])
    with pytest.raises(ValueError, match=r"clusters \[5\] have no row"):
        ClusterDisplay.from_predictions(X, LABELS, CONFIDENCE, clusters=[0, 5])
    with pytest.raises(ValueError, match="give images"):
        ClusterDisplay.from_predictions(np.ones((30, 4)), LABELS, CONFIDENCE)


def selection_images(display):
    return [ax.images[0].get_array() for ax in display.axes_.flat if ax.images]


@pytest.mark.parametrize("piped", [False, True])
def test_chosen_images_in_the_order_of_asking(piped):
    Z = X.reshape(30, -1).astype(np.float32)
    selector = CoreSetSelector(12, random_state=0)
    selector = make_pipeline(StandardScaler(), selector) if piped else selector
    selector.fit(Z)
    display = SelectionDisplay.from_estimator(selector, X, Z, n_images=10)
    rows = (selector[-1] if piped else selector).sample_indices_
    assert display.axes_.shape == (2, 8) and display.n_asked == 12
    found = selection_images(display)
    assert len(found) == 10
    for image, row in zip(found, rows, strict=False):
        np.testing.assert_array_equal(image, X[row])
    titles = [ax.get_title() for ax in display.axes_.flat if ax.images]
    assert titles == [str(i + 1) for i in range(10)]
    np.testing.assert_array_equal(display.sample_indices, rows[:10])


def test_places_of_the_chosen_are_those_on_the_map():
    Z = RNG.normal(size=(30, 5))
    display = SelectionDisplay.from_selection(X, Z, [3, 7, 29])
    np.testing.assert_allclose(display.chosen_map, display.map[[3, 7, 29]])
    grey, red = display.map_ax_.collections
    np.testing.assert_allclose(red.get_offsets(), display.chosen_map)
    assert len(grey.get_offsets()) == 30
    # the two directions in which the rows differ most
    stds = display.map.std(0)
    assert stds[0] > stds[1] > 0


@pytest.mark.parametrize("n_features", [1, 2])
def test_flat_vectors_are_taken_as_they_are(n_features):
    Z = RNG.normal(size=(30, n_features))
    display = SelectionDisplay.from_selection(X, Z, [4])
    np.testing.assert_array_equal(display.map[:, :n_features], Z)
    assert display.axes_.shape == (1, 1)


def test_a_long_map_is_thinned_and_keeps_the_chosen():
    Z = RNG.normal(size=(30, 2))
    figure = plt.figure()
    display = SelectionDisplay.from_selection(X, Z, [1], max_points=10, figure=figure)
    assert display.figure_ is figure
    np.testing.assert_array_equal(display.map, Z[::3])
    np.testing.assert_array_equal(display.chosen_map, Z[[1]])


def test_a_projection_of_the_user():
    Z = RNG.normal(size=(30, 5))
    projection = PCA(2, whiten=True)
    display = SelectionDisplay.from_selection(X, Z, [1], projection=projection)
    np.testing.assert_allclose(display.map.std(0), 1, rtol=0.1)
    assert not hasattr(projection, "components_")


@pytest.mark.parametrize(
    ("rows", "n", "words"),
    [([], 30, "at least"), ([30], 30, "0 to 29"), ([1], 20, "X has 30 images, but Z")],
)
def test_a_selection_that_cannot_be_drawn_is_refused(rows, n, words):
    with pytest.raises(ValueError, match=words):
        SelectionDisplay.from_selection(X, RNG.normal(size=(n, 2)), rows)
