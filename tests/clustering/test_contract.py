"""What every clusterer of images promises; see also test_common."""

import warnings

import numpy as np
import pytest
from PIL import Image

from sklabel.clustering import (
    DCECClusterer,
    DeepClusterer,
    IICClusterer,
    IICSegmenter,
    SCANClusterer,
    TURTLEClusterer,
)
from sklabel.datasets import load_digit_images
from sklabel.embedding import AutoencoderTransformer, SimCLRTransformer

SHARED = {"image_size": 8, "on_error": "skip", "random_state": 0}
HELD = {"image_size": 8, "on_error": "skip", "max_steps": 3}
CLUSTERERS = [
    DCECClusterer(
        3,
        embedder=AutoencoderTransformer(4, **HELD),
        update_interval=2,
        max_steps=4,
        **SHARED,
    ),
    DeepClusterer(3, max_epochs=2, **SHARED),
    IICClusterer(3, max_epochs=2, **SHARED),
    IICSegmenter(2, half_side=1, max_epochs=1, **SHARED),
    SCANClusterer(
        3,
        n_neighbors=3,
        embedder=SimCLRTransformer(**HELD),
        max_epochs=2,
        self_label_epochs=2,
        self_label_threshold=0.3,
        **SHARED,
    ),
    TURTLEClusterer(
        3,
        embedder=[SimCLRTransformer(**HELD), AutoencoderTransformer(4, **HELD)],
        n_steps=4,
        **SHARED,
    ),
]


@pytest.mark.parametrize("clusterer", CLUSTERERS, ids=lambda c: type(c).__name__)
def test_a_file_that_cannot_be_read_has_no_share_in_anything(clusterer, tmp_path):
    files = [str(tmp_path / f"{i:02d}.png") for i in range(40)]
    for file, image in zip(files, load_digit_images().images, strict=False):
        Image.fromarray((image / image.max() * 255).astype(np.uint8)).save(file)
    bad = tmp_path / "99.png"
    bad.write_bytes(b"no image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = clusterer.fit(files)
        labels, history = expected.labels_, list(expected.net_.history)
        found = clusterer.fit([*files, str(bad)])
    np.testing.assert_array_equal(found.labels_[:-1], labels)
    assert (found.labels_[-1] == -1).all()
    seen = {"largest_cluster", "clusters_used", "confident_share", "neighbor_agreement"}
    for before, after in zip(history, found.net_.history, strict=True):
        assert seen < before.keys()
        assert before.keys() == after.keys()
        for name, value in before.items():
            if name not in ("dur", "batches"):
                assert after[name] == pytest.approx(value, abs=1e-6), name
