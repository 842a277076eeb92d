"""What X may be, and what is refused."""

import os
import struct
import unicodedata
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from sklearn.base import BaseEstimator

from sklabel._core import image_files
from sklabel._core.inputs import check_pixel_range, check_samples
from sklabel._core.samplers import Shuffled
from sklabel._core.samples import Samples, to_unit
from sklabel.embedding import SimCLRTransformer


class Face(BaseEstimator):
    """The parameters that decide how X is read."""

    def __init__(
        self, image_shape=None, image_size=None, on_error="raise", max_pixels=None
    ):
        self.image_shape = image_shape
        self.image_size = image_size
        self.on_error = on_error
        self.max_pixels = max_pixels


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
        assert torch.equal(samples[np.arange(6)], expected)
    flat = check_samples(Face(image_shape=(5, 7, 3)), X.reshape(6, -1), True)
    assert torch.equal(flat[[4, 1]], expected[[4, 1]])
    grey = check_samples(Face(), X[..., 0], True)
    assert torch.equal(grey[[0]], expected[:1, :1])


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
    assert torch.equal(samples[np.arange(6)], expected)


def test_paths_are_resized(folder):
    samples = check_samples(Face(image_size=(4, 6)), paths(folder), True)
    assert samples[[0, 3]].shape == (2, 3, 4, 6)
    assert check_samples(Face(image_size=8), paths(folder), True).sample_shape == (
        3,
        8,
        8,
    )


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
        samples[[1, 5]], torch.from_numpy(images()[[1, 5]]).permute(0, 3, 1, 2)
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
        samples = check_samples(
            Face(image_size=6, on_error="skip"), paths(folder), True
        )
    assert samples.bad.tolist() == [False, False, True, False, False, False]
    drawn = np.concatenate(list(Shuffled(samples).epoch(2)))
    assert sorted(drawn) == [0, 1, 3, 4, 5]
    assert (samples[[2]] == 0).all()


def _giant(path):
    """Write the head of a PNG of 60,000 x 60,000 pixels."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    "spoil",
    [
        _giant,
        lambda path: path.mkdir(),
        lambda path: path.write_text("no image"),
        lambda path: path.write_bytes(b""),
        lambda path: None,
    ],
    ids=["giant", "folder", "text", "empty", "missing"],
)
def test_every_kind_of_unreadable_file(folder, spoil):
    path = folder / "bad.png"
    names = [*paths(folder), str(path)]
    spoil(path)
    for image_size in (None, 6):
        with pytest.raises(ValueError, match=r"bad\.png.*on_error=\"skip\""):
            check_samples(Face(image_size=image_size), names, True)
        with pytest.warns(UserWarning, match="1 of 7.*bad.png"):
            samples = check_samples(Face(None, image_size, "skip"), names, True)
        assert samples.bad.tolist() == [False] * 6 + [True]
    with pytest.raises(ValueError, match="None of the 2"):
        check_samples(Face(on_error="skip"), [str(path)] * 2, True)


def test_a_photograph_lies_as_it_was_taken(tmp_path):
    image = Image.fromarray(images(1, 4, 9)[0])
    turned = image.getexif()
    turned[0x0112] = 6  # turn by a quarter to the right to see it upright
    image.save(tmp_path / "turned.png", exif=turned)
    samples = check_samples(Face(), [tmp_path / "turned.png"], True)
    assert samples.sample_shape == (3, 9, 4)
    expected = np.rot90(images(1, 4, 9)[0], -1)
    np.testing.assert_array_equal(samples[[0]][0].permute(1, 2, 0), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_mode_is_read_as_color(mode, tmp_path):
    suffix = "tif" if mode == "CMYK" else "png"
    image = Image.new(mode, (5, 4))
    image.save(tmp_path / f"x.{suffix}")
    samples = check_samples(Face(), [str(tmp_path / f"x.{suffix}")], True)
    assert samples.sample_shape == (3, 4, 5)
    assert samples[[0]].dtype == torch.uint8


def test_files_beyond_the_cache_are_read_when_asked_for(folder, monkeypatch):
    monkeypatch.setattr(image_files, "_CACHE_BYTES", 100)
    samples = check_samples(Face(), paths(folder), True)
    expected = torch.from_numpy(images(6, 10, 14)).permute(0, 3, 1, 2)
    assert torch.equal(samples[[5, 0, 5]], expected[[5, 0, 5]])
    assert samples.source._cache is None


def test_all_broken_files_are_named_ten_at_most(folder):
    for i in range(7, 20):
        (folder / f"{i}.png").write_text("no image")
    for size in (None, 6):
        with pytest.raises(ValueError, match="Cannot read 13 images: ") as caught:
            check_samples(Face(image_size=size), paths(folder), True)
        assert str(caught.value).count("no image") == 0
        assert str(caught.value).count(".png'") == 10
        assert "and 3 more" in str(caught.value)
    with pytest.warns(UserWarning, match="13 of 19") as caught:
        check_samples(Face(None, 6, "skip"), paths(folder), True)
    assert str(caught[0].message).count(".png'") == 10


@pytest.mark.skipif(os.name != "posix", reason="other systems compose names")
@pytest.mark.parametrize("on_disk, given", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_path_is_found_however_its_accents_are_written(tmp_path, on_disk, given):
    name = unicodedata.normalize(on_disk, "Grüße.png")
    Image.fromarray(images(1, 3, 4)[0]).save(tmp_path / name)
    path = str(tmp_path / unicodedata.normalize(given, name))
    assert check_samples(Face(), [path], True).sample_shape == (3, 3, 4)


@pytest.mark.parametrize("in_memory", [True, False])
def test_files_are_decoded_once_at_a_time(folder, monkeypatch, in_memory):
    """With on_error="skip" too, what has been decoded is not decoded again."""
    if not in_memory:
        monkeypatch.setattr(image_files, "_CACHE_BYTES", 100)
    decoded, decode = [], image_files.decode
    monkeypatch.setattr(
        image_files, "decode", lambda *args: decoded.append(1) or decode(*args)
    )
    samples = check_samples(Face(on_error="skip"), paths(folder), True)
    assert len(decoded) == 6
    samples[np.arange(6)]
    assert len(decoded) == (6 if in_memory else 12)


@pytest.mark.parametrize("size", [None, 6])
def test_heads_are_looked_at_once(folder, monkeypatch, size):
    monkeypatch.setattr(image_files, "_CACHE_BYTES", 100)
    looked, look = [], image_files.look
    monkeypatch.setattr(
        image_files, "look", lambda image: looked.append(1) or look(image)
    )
    check_samples(Face(image_size=size), paths(folder), True)
    assert len(looked) == 6


def test_rows_keep_their_order_however_many_a_thread_is_given(folder):
    some = paths(folder)
    many = [some[i % 6] for i in np.random.default_rng(0).permutation(1500)]
    files = image_files.ImageFiles(many, (4, 5))
    told = []
    assert files.map(lambda row: row, range(1500), told.append) == [*range(1500)]
    assert sum(told) == 1500


def test_missing_file_is_named(folder):
    with pytest.raises(ValueError, match="nowhere.png"):
        check_samples(Face(), [*paths(folder), "nowhere.png"], True)


DTYPES = st.sampled_from([np.uint8, np.int64, np.float32, np.float64, bool])


@st.composite
def pictures(draw):
    """Images (n, h, w, c) whose channel axis can be told, of any dtype."""
    n, c = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3, 4]))
    side = st.integers(1, 7).filter(lambda s: s not in (1, 3, 4))
    h, w = draw(side), draw(side)
    elements = {"min_value": -1e4, "max_value": 1e4}
    dtype = draw(DTYPES)
    return draw(
        arrays(
            dtype,
            (n, h, w, c),
            elements=elements if np.dtype(dtype).kind == "f" else None,
        )
    )


@given(X=pictures(), data=st.data())
def test_any_images_in_any_layout_are_one_thing(X, data):
    n, h, w, c = X.shape
    if X.dtype == np.int64:
        X %= 1000  # float32 holds these exactly
    expected = torch.from_numpy(X.transpose(0, 3, 1, 2).astype(np.float32))
    forms = {
        "NHWC": (Face(), X),
        "NCHW": (Face(), X.transpose(0, 3, 1, 2)),
        "strided": (Face(), np.repeat(X, 2, axis=0)[::2]),
        "backwards": (Face(), X[::-1].copy()[::-1]),
        "Fortran": (Face(), np.asfortranarray(X)),
        "list": (Face(), list(X)),
        "flat": (Face(image_shape=(h, w, c)), X.reshape(n, -1)),
    }
    if c == 1:
        forms["grey"] = Face(), X[..., 0]
    rows = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=6))
    units = []
    for name, (face, form) in forms.items():
        samples = check_samples(face, form, True)
        assert samples.sample_shape == (c, h, w), name
        assert face.n_features_in_ == h * w * c
        x = samples[rows]
        assert torch.equal(x.float(), expected[rows]), name
        unit = to_unit(x.clone(), samples.pixel_range())
        assert 0 <= unit.min() and unit.max() <= 1
        units.append(unit)
        again = check_samples(face, form, False, (c, h, w))
        assert torch.equal(again[rows], x)
    if X.dtype == np.uint8:
        assert torch.equal(units[0], expected[rows] / 255)
    assert all(torch.equal(unit, units[0]) for unit in units)


@given(X=pictures(), data=st.data())
def test_one_wrong_pixel_anywhere_is_refused_in_its_row(X, data):
    X = X.astype(np.float64)
    place = tuple(data.draw(st.integers(0, side - 1)) for side in X.shape)
    X[place] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    with pytest.raises(ValueError, match=rf"image {place[0]}\b"):
        check_samples(Face(), X, True)


@given(
    X=arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements={"min_value": -1000, "max_value": 1000},
    )
)
def test_vectors_stay_what_they_are(X):
    samples = check_samples(Face(), X, True)
    assert samples.pixel_range() is None
    rows = np.arange(len(X))
    assert torch.equal(to_unit(samples[rows], None), torch.from_numpy(X))
    mean, std = samples.statistics()
    assert torch.isfinite(mean).all() and (std > 0).all()
    z = (samples[rows] - mean) / std
    assert torch.allclose(z.mean(0), torch.zeros(X.shape[1]), atol=0.1)


@given(shape=array_shapes(min_dims=4, max_dims=4, max_side=6), data=st.data())
def test_a_shape_is_read_one_way_or_refused(shape, data):
    """Only the channel axis decides, and where it cannot, image_shape does."""
    X = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    last, first = shape[3] in (1, 3, 4), shape[1] in (1, 3, 4)
    as_last, as_first = (shape[3], *shape[1:3]), shape[1:]
    if not (last or first) or (last and first and as_last != as_first):
        with pytest.raises(ValueError, match="channel|ambiguous"):
            check_samples(Face(), X, True)
    else:
        read = check_samples(Face(), X, True).sample_shape
        assert read == (as_last if last else as_first)
    told = Face(image_shape=shape[1:])
    assert check_samples(told, X.reshape(len(X), -1), True).sample_shape == as_last


def test_the_fitted_shape_settles_an_ambiguous_one():
    X = images(4, 3, 7, 3)
    for shape, axes in (((3, 3, 7), (0, 3, 1, 2)), ((3, 7, 3), (0, 1, 2, 3))):
        samples = check_samples(Face(), X, False, shape)
        expected = torch.from_numpy(X.transpose(axes))
        assert torch.equal(samples[np.arange(4)], expected)


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
    x = to_unit(samples[[0, 1]], (low, high))
    assert x.dtype == torch.float32
    assert 0 <= x.min() and x.max() <= 1


def test_statistics_leave_constant_features_alone():
    X = np.random.default_rng(0).normal(3, 2, (500, 2)).astype(np.float32)
    X = np.c_[X, np.full(500, 7, np.float32)]
    mean, std = Samples(X, (3,)).statistics()
    assert torch.allclose(mean, torch.from_numpy(X.mean(0)), atol=1e-5)
    assert torch.allclose(std[:2], torch.from_numpy(X[:, :2].std(0)), atol=1e-4)
    assert std[2] == 1


# -- the scale of pixels


def seen_as(fitted, X):
    """Check images against the range of a fit."""
    samples = check_samples(Face(), X, True)
    check_pixel_range(samples, fitted, "SimCLRTransformer")


@given(arrays(np.float32, (4, 3, 3), elements=st.floats(0, 1, width=32)))
def test_images_of_the_scale_of_fit_pass(x):
    for low, high in ((0.0, 1.0), (-2.0, 2.5), (0.0, 16.0), (0.0, 255.0)):
        scaled = low + (high - low) * x
        if high > 10:
            scaled[0, 0] = high  # all below 1 would look like another scale
        seen_as((low, high), scaled)
    seen_as((0.0, 255.0), (255 * x).astype(np.uint8))
    for fitted in ((0.0, 255.0), (0.0, 1.0)):
        seen_as(fitted, np.zeros((4, 3, 3)))
        seen_as(fitted, np.zeros((4, 3, 3), np.uint8))


@pytest.mark.parametrize(
    "fitted, X, message",
    [
        (
            (0.0, 255.0),
            np.full((4, 3, 3), 0.5),
            "from 0.5 to 0.5, .* 0 to 255: multiply",
        ),
        ((0.0, 255.0), np.linspace(-2, 2.5, 36), "from -2 to 2.5, .* 255: scale"),
        ((0.0, 1.0), np.full((4, 3, 3), 200.0), "from 200 to 200, .* 0 to 1: divide"),
        ((0.0, 1.0), np.full((4, 3, 3), 200, np.uint8), "from 200 to 200.*divide"),
        (
            (-8.0, 8.0),
            np.full((4, 3, 3), 200, np.uint8),
            "from 200 to 200, .* -8 to 8: scale",
        ),
        ((0.0, 1.0), np.linspace(-1, 1, 36), "from -1 to 1, .* from 0 to 1: scale"),
    ],
)
def test_images_of_another_scale_are_refused(fitted, X, message):
    with pytest.raises(ValueError, match=message):
        seen_as(fitted, X.reshape(4, 3, 3))


def test_a_single_odd_pixel_is_no_other_scale():
    x = np.random.default_rng(0).random((20, 8, 8))
    x[3, 4, 5] = 65535
    for fitted in ((0.0, 1.0), (0.0, 2998.0)):
        seen_as(fitted, x)
    seen_as((0.0, 255.0), 255 * x)
    seen_as((0.0, 12.0), (x > 0.5).astype(float))
    seen_as((0.0, 255.0), (x > 0.5).astype(float))  # nearly black


def test_a_fitted_estimator_refuses_images_of_another_scale():
    X = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    embedder = SimCLRTransformer(max_steps=1, random_state=0).fit(X)
    with pytest.raises(ValueError, match="SimCLRTransformer was fitted on values"):
        embedder.transform(X / 255)
    expected = embedder.transform(X)
    np.testing.assert_allclose(embedder.transform(X.astype(float)), expected, atol=1e-2)


@pytest.mark.parametrize("size", [(64,), (8, 8, 3), (0, 8), 0])
def test_sizes_that_are_none_are_refused(size, tmp_path):
    files = []
    for i in range(3):
        files.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(files[-1])
    with pytest.raises(ValueError, match=r"image_size=.* is not a size"):
        check_samples(Face(image_size=size), files, True)
