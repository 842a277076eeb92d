"""Copies that were planted are found, of every form of X."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sklabel.inspection import find_duplicates
from sklabel.inspection._duplicates import as_gray

RNG = np.random.default_rng(0)


def photographs(n=20):
    """Return smooth random pictures, (n, 32, 32, 3)."""
    small = RNG.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    pictures = [Image.fromarray(x).resize((32, 32), 3) for x in small]
    return np.stack([np.asarray(p) for p in pictures])


def groups(found):
    return [part.tolist() for part in found]


def test_copies_in_arrays():
    x = photographs()
    x[[4, 9, 17]] = x[1]
    x[12] = x[3]
    changed = x[6].astype(int) + RNG.integers(-3, 4, x[6].shape)
    x[15] = changed.clip(0, 255)
    for images in (x, x.transpose(0, 3, 1, 2), list(x)):
        found = find_duplicates(images)
        assert groups(found.exact) == [[1, 4, 9, 17], [3, 12]]
        assert groups(found.near) == [[1, 4, 9, 17], [3, 12], [6, 15]]


def test_files_that_were_resized_or_saved_again(tmp_path):
    paths = []
    for i, image in enumerate(photographs(8)):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image).save(paths[-1])
    copy, resized, saved = (str(tmp_path / n) for n in ("c.png", "r.png", "s.jpg"))
    (tmp_path / "c.png").write_bytes((tmp_path / "2.png").read_bytes())
    Image.open(paths[2]).resize((90, 90)).save(resized)
    Image.open(paths[5]).save(saved, quality=80)
    paths += [copy, resized, saved]
    for X in (paths, pd.DataFrame({"path": paths})):
        found = find_duplicates(X)
        assert groups(found.exact) == [[2, 8]]
        assert groups(found.near) == [[2, 8, 9], [5, 10]]


def test_vectors_and_embedders():
    Z = RNG.normal(size=(300, 12))
    Z[50] = 2 * Z[10]  # another length, but the same direction
    Z[60] = Z[10]
    found = find_duplicates(Z)
    assert groups(found.exact) == [[10, 60]]
    assert groups(found.near) == [[10, 50, 60]]
    x = photographs()
    x[7] = np.roll(x[2], 1, axis=1)
    flat = FunctionTransformer(lambda x: x.reshape(len(x), -1).astype(float))
    embedder = make_pipeline(flat, PCA(5, random_state=0)).fit(x)
    assert [2, 7] in groups(find_duplicates(x, embedder=embedder, threshold=0.9).near)


def test_more_copies_than_neighbors():
    Z = RNG.normal(size=(100, 8))
    Z[40:80] = Z[0]
    assert groups(find_duplicates(Z).exact) == [[0, *range(40, 80)]]
    # nearly the same, each a little otherwise
    Z[40:80] += 1e-4 * RNG.normal(size=(40, 8))
    assert groups(find_duplicates(Z).near) == [[0, *range(40, 80)]]


def test_nothing_and_everything():
    assert find_duplicates(RNG.normal(size=(30, 9))) == ([], [])
    found = find_duplicates(np.ones((5, 4)))
    assert groups(found.exact) == groups(found.near) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("nothing", [None, 3])
def test_what_has_no_rows_is_refused(nothing):
    with pytest.raises(
        TypeError, match=rf"X is {nothing}, which has no rows. X may be"
    ):
        find_duplicates(nothing)


def test_wrong_thresholds_are_refused():
    with pytest.raises(ValueError, match="threshold=1.5"):
        find_duplicates(np.ones((5, 4)), threshold=1.5)


def test_a_large_photograph_takes_no_floats_for_its_colors():
    photograph = RNG.integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    tracemalloc.start()
    try:
        gray = np.asarray(as_gray(photograph))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 3e6 + 16 * 2**18  # gray, twice; colors alone would take 36 MB
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(gray, photograph @ weights / 255, atol=1e-6)
    for odd in (photograph[:3, :1], photograph[:, :1, 0], np.ones((2, 0))):
        assert as_gray(odd).size == odd.shape[1::-1]
