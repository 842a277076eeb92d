"""Collections on several processes of dask: the values of one process, bit for bit."""

import os
import signal

import numpy as np
import pytest
from joblib import parallel_config
from PIL import Image
from sklearn.model_selection import GridSearchCV

from sklabel.classification import EmbeddingClassifier
from sklabel.datasets import load_digit_images
from sklabel.embedding import AutoencoderTransformer
from sklabel.model_selection import LabeledKFold
from sklabel.selection import USLSelector

da = pytest.importorskip("dask.array")
bag = pytest.importorskip("dask.bag")
distributed = pytest.importorskip("distributed")

N_BLOCKS = 6


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Two worker processes of one thread each."""
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            local_directory=str(tmp_path_factory.mktemp("dask")),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def images():
    return load_digit_images().images[:300]


@pytest.fixture(scope="module")
def embedder(images):
    return AutoencoderTransformer(max_epochs=1, random_state=0).fit(images[:100])


def embedded(embedder, images, directory=None):
    """Return the vectors of images as a dask array that is not computed yet."""
    X = da.from_array(images, chunks=(len(images) // N_BLOCKS, -1, -1))
    n_features = embedder.transform(images[:1]).shape[1]

    def transform(block):
        if directory is not None:  # the first time, the worker dies over its work
            first = directory / str(int(block.sum()))
            if not first.exists():
                first.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return embedder.transform(block)

    return X.map_blocks(
        transform,
        drop_axis=(1, 2),
        new_axis=1,
        chunks=(X.chunks[0], (n_features,)),
        meta=np.empty((0, n_features), np.float32),
    )


def test_blocks_of_a_collection(client, images, embedder):
    found = embedded(embedder, images).compute()
    np.testing.assert_array_equal(found, embedder.transform(images))


def test_a_worker_that_dies_loses_nothing(client, images, embedder, tmp_path):
    found = embedded(embedder, images[:60], tmp_path)[:20].compute()
    assert len(list(tmp_path.iterdir())) == 2  # each block's worker died once
    np.testing.assert_array_equal(found, embedder.transform(images[:20]))


def test_vectors_on_disk_and_a_choice_among_them(client, images, embedder, tmp_path):
    folder = str(tmp_path / "vectors")
    da.to_npy_stack(folder, embedded(embedder, images))
    kept = da.from_npy_stack(folder).compute(scheduler="threads")
    np.testing.assert_array_equal(kept, embedder.transform(images))
    np.save(tmp_path / "vectors.npy", kept)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    selector = USLSelector(10, random_state=0)
    np.testing.assert_array_equal(
        selector.fit_select(mapped), selector.fit_select(kept)
    )


def test_a_bag_of_paths(client, images, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(24)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray((image * (255 / images.max())).astype(np.uint8)).save(path)
    embedder = AutoencoderTransformer(max_epochs=1, image_size=8, random_state=0)
    embedder.fit(paths)
    parts = bag.from_sequence(paths, npartitions=3).map_partitions(
        lambda part: list(embedder.transform(list(part)))
    )
    np.testing.assert_array_equal(parts.compute(), embedder.transform(paths))


def test_a_search(client, images, embedder):
    Z, y = embedder.transform(images), load_digit_images().target[:300].copy()
    y[60:] = -1
    search = GridSearchCV(
        EmbeddingClassifier(), {"alpha": [0.5, 0.95]}, cv=LabeledKFold(3), refit=False
    )
    expected = search.fit(Z, y).cv_results_["mean_test_score"]
    with parallel_config("dask"):
        found = search.fit(Z, y).cv_results_["mean_test_score"]
    np.testing.assert_array_equal(found, expected)
