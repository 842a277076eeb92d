"""What X may be, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import BaseEstimator

from sklabel._data import Mixed, Pairs, Samples, check_samples, to_unit


class Face(BaseEstimator):
    """The parameters that decide how X is read."""

    def __init__(self, image_shape=None, image_size=None, on_error="raise"):
        self.image_shape = image_shape
        self.image_size = image_size
        self.on_error = on_error


def images(n=6, h=5, w=7, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, c), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    for i, image in enumerate(images(6, 10, 14)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    return tmp_path


def paths(folder):
    return sorted(str(path) for path in folder.glob("*.png"))


def test_every_layout_of_images_reads_the_same():
    X = images()
    expected = torch.from_numpy(X).permute(0, 3, 1, 2)
    for layout in (X, X.transpose(0, 3, 1, 2), list(X), torch.from_numpy(X)):
        samples = check_samples(Face(), layout, True)
        assert samples.sample_shape == (3, 5, 7)
        assert torch.equal(samples[np.arange(6)][0], expected)
    flat = check_samples(Face(image_shape=(5, 7, 3)), X.reshape(6, -1), True)
    assert torch.equal(flat[[4, 1]][0], expected[[4, 1]])
    grey = check_samples(Face(), X[..., 0], True)
    assert torch.equal(grey[[0]][0], expected[:1, :1])


def test_n_features_in_counts_all_values_of_an_image():
    face = Face()
    check_samples(face, images(), True)
    assert face.n_features_in_ == 5 * 7 * 3


@pytest.mark.parametrize("form", ["list", "object", "str", "series", "frame", "column"])
def test_every_form_of_paths_reads_the_same(folder, form):
    names = paths(folder)
    X = {
        "list": names,
        "object": np.array(names, dtype=object),
        "str": np.array(names),
        "series": pd.Series(names),
        "frame": pd.DataFrame({"path": names}),
        "column": np.array(names, dtype=object)[:, None],
    }[form]
    samples = check_samples(Face(), X, True)
    assert samples.sample_shape == (3, 10, 14)
    expected = torch.from_numpy(images(6, 10, 14)).permute(0, 3, 1, 2)
    assert torch.equal(samples[np.arange(6)][0], expected)


def test_paths_are_resized(folder):
    samples = check_samples(Face(image_size=(4, 6)), paths(folder), True)
    assert samples[[0, 3]][0].shape == (2, 3, 4, 6)
    assert check_samples(Face(image_size=8), paths(folder), True).sample_shape == (3, 8, 8)


def test_fitted_size_holds_at_prediction(folder):
    samples = check_samples(Face(image_size=99), paths(folder), False, (3, 4, 4))
    assert samples.sample_shape == (3, 4, 4)


def test_memmap_stays_on_disk(tmp_path):
    X = np.lib.format.open_memmap(
        tmp_path / "x.npy", "w+", dtype=np.uint8, shape=(6, 5, 7, 3)
    )
    X[:] = images()
    samples = check_samples(Face(), X, True)
    assert isinstance(samples.source, np.memmap)
    assert torch.equal(
        samples[[1, 5]][0], torch.from_numpy(images()[[1, 5]]).permute(0, 3, 1, 2)
    )


@pytest.mark.parametrize(
    "X, match",
    [
        (np.zeros((4, 3, 5, 3)), "ambiguous"),
        (np.zeros((4, 5, 6, 7)), "no axis can hold the channels"),
        (np.zeros((0, 5, 6, 3)), "0 sample"),
        (np.zeros((4, 5, 0, 3)), "at least one pixel"),
        (np.full((4, 5, 6), np.nan), "image 0"),
        ([np.zeros((4, 4)), np.zeros((5, 4))], r"X\[1\] is \(5, 4\)"),
        (["a.png", 3], r"X\[1\] is 3"),
        ("a.png", "single path"),
        (np.zeros((4, 5, 5), dtype=complex), "complex"),
    ],
)
def test_refusals_name_the_trouble(X, match):
    with pytest.raises(ValueError, match=match):
        check_samples(Face(), X, True)


def test_infinite_pixel_is_found_in_its_row():
    X = np.zeros((9, 4, 4), np.float32)
    X[7, 1, 2] = np.inf
    with pytest.raises(ValueError, match="image 7"):
        check_samples(Face(), X, True)


def test_wrong_shape_at_prediction():
    with pytest.raises(ValueError, match=r"\(3, 5, 7\).*fitted on.*\(3, 5, 8\)"):
        check_samples(Face(), images(), False, (3, 5, 8))


def test_image_shape_must_fit():
    with pytest.raises(ValueError, match="image_shape"):
        check_samples(Face(image_shape=(3, 3)), np.zeros((4, 8)), True)


def test_mixed_sizes_need_image_size(folder):
    Image.fromarray(images(1, 3, 3)[0]).save(folder / "9.png")
    with pytest.raises(ValueError, match="image_size=64"):
        check_samples(Face(), paths(folder), True)


def test_broken_file_is_named_or_skipped(folder):
    data = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(data[: len(data) // 2])
    for face in (Face(), Face(image_size=6)):
        with pytest.raises(ValueError, match="2.png"):
            check_samples(face, paths(folder), True)
    with pytest.warns(UserWarning, match="1 of 6"):
        samples = check_samples(Face(image_size=6, on_error="skip"), paths(folder), True)
    assert samples.bad.tolist() == [False, False, True, False, False, False]
    drawn = np.concatenate(list(samples.epoch(2)))
    assert sorted(drawn) == [0, 1, 3, 4, 5]
    assert (samples[[2]][0] == 0).all()


def test_missing_file_is_named(folder):
    with pytest.raises(ValueError, match="nowhere.png"):
        check_samples(Face(), [*paths(folder), "nowhere.png"], True)


@given(n=st.integers(2, 60), batch_size=st.integers(2, 20))
def test_an_epoch_visits_every_row_once_and_no_batch_has_one_row(n, batch_size):
    samples = Samples(np.zeros((n, 3), np.float32), (3,))
    batches = list(samples.epoch(batch_size))
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert min(map(len, batches)) > 1
    assert len(batches) == samples.n_batches(batch_size)


@given(
    n=st.integers(3, 50),
    n_labeled=st.integers(1, 50),
    batch_size=st.integers(1, 9),
    ratio=st.floats(0.2, 7),
)
def test_mixed_batches(n, n_labeled, batch_size, ratio):
    n_labeled = min(n_labeled, n - 1)
    targets = np.where(np.arange(n) < n_labeled, np.arange(n) % 2, -1)
    samples = Mixed(Samples(np.arange(n)[:, None], (1,)), targets, ratio)
    batches = [samples[rows] for rows in samples.epoch(batch_size)]
    assert len(batches) == samples.n_batches(batch_size)
    for x, y in batches:
        assert (y[:batch_size] >= 0).all() and (y[batch_size:] == -1).all()
        assert torch.equal(torch.from_numpy(targets)[x[:batch_size, 0].long()], y[:batch_size])
        assert len(set(x[batch_size:, 0].tolist())) == len(y) - batch_size


def test_mixed_with_everything_labeled_is_supervised():
    targets = np.arange(10) % 2
    samples = Mixed(Samples(np.zeros((10, 1)), (1,)), targets, 7)
    batches = [samples[rows] for rows in samples.epoch(4)]
    assert sum(len(y) for _, y in batches) == 10
    assert all((y >= 0).all() for _, y in batches)


def test_balanced_batches_hold_every_class_equally():
    targets = np.array([0] * 20 + [1] * 2 + [-1] * 20)
    samples = Mixed(Samples(np.zeros((42, 1)), (1,)), targets, 1, balance=True)
    for rows in samples.epoch(8):
        _, y = samples[rows]
        assert (y == 0).sum() == (y == 1).sum() == 4


def test_pairs_draw_from_the_given_neighbors():
    neighbors = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
    samples = Pairs(Samples(np.arange(4)[:, None], (1,)), neighbors)
    seen = set()
    for _ in range(30):
        for rows in samples.epoch(2):
            (x, partner), y = samples[rows]
            assert torch.equal(x[:, 0].long(), y)
            seen |= set(zip(x[:, 0].tolist(), partner[:, 0].tolist(), strict=True))
    assert seen == {(a, b) for a, row in enumerate(neighbors) for b in row}


@pytest.mark.parametrize(
    "X, expected",
    [
        (np.array([0, 255], np.uint8), (0, 255)),
        (np.array([0.2, 0.9]), (0, 1)),
        (np.array([0.0, 16.0]), (0, 16)),
        (np.array([-2.0, 2.0]), (-2, 2)),
        (np.array([5.0, 5.0]), (5, 6)),
    ],
)
def test_pixel_range(X, expected):
    samples = check_samples(Face(), np.tile(X[:, None, None], (1, 3, 3)), True)
    low, high = samples.pixel_range()
    assert (low, high) == expected
    x = to_unit(samples[[0, 1]][0], (low, high))
    assert x.dtype == torch.float32
    assert 0 <= x.min() and x.max() <= 1


def test_statistics_leave_constant_features_alone():
    X = np.random.default_rng(0).normal(3, 2, (500, 2)).astype(np.float32)
    X = np.c_[X, np.full(500, 7, np.float32)]
    mean, std = Samples(X, (3,)).statistics()
    assert torch.allclose(mean, torch.from_numpy(X.mean(0)), atol=1e-5)
    assert torch.allclose(std[:2], torch.from_numpy(X[:, :2].std(0)), atol=1e-4)
    assert std[2] == 1
