"""Every container of images reads the same, and others are refused with a remedy."""

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import sparse
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sklabel._core import image_files, inputs
from sklabel._core.columns import WHAT_X_MAY_BE, item_column
from sklabel._core.inputs import check_samples
from sklabel.active_learning import ActiveLearningClassifier
from sklabel.classification import FixMatchClassifier, SupervisedClassifier
from sklabel.embedding import AutoencoderTransformer, SimCLRTransformer
from sklabel.selection import RandomSelector, UncertaintySelector, USLSelector
from tests._core.test_inputs import Face, images

GUIDE = Path(__file__).parents[2] / "docs" / "user_guide" / "data.rst"
N, H, W = 6, 10, 14
IMAGES = images(N, H, W)
CHANNELS_FIRST = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
Y = np.array([0, 1, 0, 1, -1, -1])
SHORT = {"max_steps": 1, "batch_size": 2, "random_state": 0}


class Pairs(Dataset):
    """A torch Dataset of (image, label)."""

    def __init__(self, make):
        self.make, self.fetched = make, []

    def __len__(self):
        return N

    def __getitem__(self, row):
        if not 0 <= row < N:
            raise IndexError(row)
        self.fetched.append(row)
        return self.make(row), int(Y[row])


def encoded(row):
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[row]).save(buffer, "PNG")
    return buffer.getvalue()


def objects(items):
    column = np.empty(len(items), object)
    column[:] = list(items)
    return column


def package(name):
    return pytest.importorskip(name)


# What the user guide lists, row by row: its first cell, and how it is made from the
# paths of PNG files with the pixels of IMAGES.
PICTURES = [Image.fromarray(image) for image in IMAGES]
BYTES = [encoded(row) for row in range(N)]


def zarr_array(paths):
    return package("zarr").array(IMAGES, chunks=(2, H, W, 3))


def h5_array(paths):
    file = package("h5py").File(Path(paths[0]).parent / "x.h5", "w")
    return file.create_dataset("x", data=IMAGES)


def memory_map(paths):
    X = np.lib.format.open_memmap(
        Path(paths[0]).parent / "x.npy", "w+", IMAGES.dtype, IMAGES.shape
    )
    X[:] = IMAGES
    return X


def hugging_face(paths):
    datasets = package("datasets")
    data = datasets.Dataset.from_dict({"image": paths, "label": Y.tolist()})
    return data.cast_column("image", datasets.Image())["image"]


CONTAINERS = {
    "numpy array": [lambda p: IMAGES, lambda p: IMAGES.transpose(0, 3, 1, 2)],
    "torch tensor": [
        lambda p: torch.from_numpy(IMAGES),
        lambda p: CHANNELS_FIRST.float().requires_grad_(),
        lambda p: CHANNELS_FIRST.to(torch.bfloat16),
        lambda p: CHANNELS_FIRST.half(),
        lambda p: CHANNELS_FIRST.double(),
    ],
    "memory map": [memory_map],
    "zarr or h5py array": [zarr_array, h5_array],
    "dask or xarray array": [
        lambda p: pytest.importorskip("dask.array").from_array(IMAGES, chunks=2),
        lambda p: package("xarray").DataArray(IMAGES),
    ],
    "list or tuple": [
        list,
        tuple,
        lambda p: [Path(path) for path in p],
        lambda p: list(IMAGES),
        lambda p: list(CHANNELS_FIRST),
        lambda p: PICTURES,
        lambda p: BYTES,
        lambda p: [{"bytes": b, "path": None} for b in BYTES],
        lambda p: [{"bytes": None, "path": path} for path in p],
        lambda p: [(picture, 1) for picture in PICTURES],
    ],
    "array of objects or texts": [
        lambda p: np.array(p),
        objects,
        lambda p: objects(p)[:, None],
        lambda p: objects(PICTURES),
        lambda p: objects(IMAGES),
        lambda p: objects(BYTES),
    ],
    "pandas Series, Index or frame of one column": [
        pd.Series,
        pd.Index,
        lambda p: pd.DataFrame({"path": p}),
        lambda p: pd.Series(p, dtype="category"),
        lambda p: pd.Series(p, index=range(9, 9 + N)),
        lambda p: pd.Series(list(IMAGES)),
        lambda p: pd.Series(PICTURES),
        lambda p: pd.Series(BYTES),
    ],
    "polars Series or frame of one column": [
        lambda p: package("polars").Series(p),
        lambda p: package("polars").DataFrame({"path": p}),
        lambda p: package("polars").Series(BYTES),
    ],
    "pyarrow array or table of one column": [
        lambda p: package("pyarrow").array(p),
        lambda p: package("pyarrow").chunked_array([p[:2], p[2:]]),
        lambda p: package("pyarrow").table({"path": p}),
        lambda p: package("pyarrow").array(BYTES),
    ],
    "torch Dataset": [
        lambda p: Pairs(lambda row: p[row]),
        lambda p: Pairs(lambda row: BYTES[row]),
        lambda p: Pairs(lambda row: PICTURES[row]),
        lambda p: Pairs(lambda row: CHANNELS_FIRST[row]),
        lambda p: TensorDataset(CHANNELS_FIRST, torch.arange(N)),
    ],
    "Hugging Face column": [hugging_face],
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for row, data in enumerate(BYTES):
        (folder / f"{row}.png").write_bytes(data)
    return [str(folder / f"{row}.png") for row in range(N)]


def listed(title):
    """Return the first cells of a table of the guide."""
    text = GUIDE.read_text("utf-8").partition(f".. table:: {title}")[2]
    lines = text.split("\n\n")[1].splitlines()
    width = lines[0].strip().index(" ")
    cells = [line.strip()[:width].strip() for line in lines[3:-1]]
    return [cell for cell in cells if cell]


def test_the_guide_lists_the_containers_that_are_tried():
    assert listed("Containers") == list(CONTAINERS)


CASES = [(name, i) for name, forms in CONTAINERS.items() for i in range(len(forms))]


@pytest.mark.parametrize("name, i", CASES)
def test_every_container_reads_the_same(paths, name, i):
    X = CONTAINERS[name][i](paths)
    samples = check_samples(Face(), X, True)
    assert samples.sample_shape == (3, H, W) and len(samples) == N
    x = samples[np.arange(N)].float()
    tolerance = 1 if getattr(X, "dtype", None) == torch.bfloat16 else 0
    torch.testing.assert_close(x, CHANNELS_FIRST.float(), atol=tolerance, rtol=0)
    again = check_samples(Face(), X, False, (3, H, W))
    assert torch.equal(again[[3, 0]].float(), x[[3, 0]])
    # and once more where nothing is kept
    if not isinstance(samples.source, np.ndarray):
        samples.source._cache = None


@pytest.mark.parametrize("name", ["torch Dataset", "Hugging Face column"])
def test_what_does_not_fit_into_memory_is_fetched_by_rows(paths, name, monkeypatch):
    monkeypatch.setattr(image_files, "_CACHE_BYTES", 100)
    monkeypatch.setattr(inputs, "_CACHE_BYTES", 100)
    for form in CONTAINERS[name]:
        samples = check_samples(Face(), form(paths), True)
        assert not isinstance(samples.source, np.ndarray)
        assert torch.equal(samples[[5, 0, 5]], CHANNELS_FIRST[[5, 0, 5]])


@pytest.mark.parametrize("form", [zarr_array, h5_array])
def test_arrays_on_disk_are_fetched_by_rows(paths, form, monkeypatch):
    monkeypatch.setattr(inputs, "_CACHE_BYTES", 100)
    samples = check_samples(Face(), form(paths), True)
    assert not isinstance(samples.source, np.ndarray)
    assert torch.equal(samples[[5, 0, 5]], CHANNELS_FIRST[[5, 0, 5]])
    assert samples.pixel_range() == (0, 255)


def test_a_dataset_is_fetched_by_one_thread_once(paths):
    data = Pairs(lambda row: BYTES[row])
    data.fetched.clear()
    samples = check_samples(Face(image_size=8), data, True)
    samples[np.arange(N)]
    rows = data.fetched[1:]  # the first one says what they are
    assert sorted(rows) == list(range(N))


@given(st.data())
def test_vectors_of_a_dataset(data):
    n, width = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 5))
    X = torch.arange(n * width).reshape(n, width).float()
    samples = check_samples(Face(), TensorDataset(X, torch.arange(n)), True)
    assert samples.sample_shape == (width,)
    assert torch.equal(samples[np.arange(n)], X)


@pytest.mark.parametrize(
    "make",
    [lambda p: Pairs(lambda row: PICTURES[row]), lambda p: pd.Series(PICTURES), list],
    ids=["Dataset", "Series of pictures", "list of paths"],
)
def test_estimators_take_them_from_fit_to_score(paths, make):
    X = make(paths)
    clf = FixMatchClassifier(**SHORT).fit(X, Y)
    expected = FixMatchClassifier(**SHORT).fit(IMAGES, Y).predict_proba(IMAGES)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-5)
    assert RandomSelector(2).fit_select(X).shape == (2,)
    own = UncertaintySelector(n_samples=1, classifier=SupervisedClassifier(**SHORT))
    assert own.fit(X, Y).sample_indices_[0] in (4, 5)
    loop = ActiveLearningClassifier(
        SupervisedClassifier(**SHORT),
        embedder=AutoencoderTransformer(**SHORT),
        n_samples=2,
    ).begin(X)
    assert len(loop.query()) == 2
    with pytest.raises(ValueError, match="selects among vectors.*embed the images"):
        USLSelector(2).fit(X)


# -- pictures by their mode


def test_gray_pictures_have_one_channel_and_color_three():
    gray = [p.convert("L") for p in PICTURES]
    samples = check_samples(Face(), gray, True)
    assert samples.sample_shape == (1, H, W)
    levels = np.stack([np.asarray(p) for p in gray])
    np.testing.assert_array_equal(samples[np.arange(N)][:, 0], levels)
    assert check_samples(Face(), [gray[0], *PICTURES], True).sample_shape == (3, H, W)
    # one at a time their modes are not known before: they are colors
    lazy = Pairs(lambda row: gray[row])
    assert check_samples(Face(), lazy, True).sample_shape == (3, H, W)
    again = check_samples(Face(), lazy, False, (1, H, W))
    np.testing.assert_array_equal(again[np.arange(N)][:, 0], levels)
    with pytest.raises(ValueError, match="X.0.*is a color image"):
        check_samples(Face(), PICTURES, False, (1, H, W))[[0]]


def test_pictures_and_bytes_are_resized():
    for X in (PICTURES, BYTES):
        samples = check_samples(Face(image_size=(4, 5)), X, True)
        assert samples[[0, 5]].shape == (2, 3, 4, 5)


# -- missing cells


@pytest.mark.parametrize("nothing", [None, np.nan, pd.NA, pd.NaT])
@pytest.mark.parametrize("row", [0, 2, N - 1])
@pytest.mark.parametrize("kind", ["path", "bytes", "picture", "array"])
def test_missing_cells_are_left_out_or_named(paths, nothing, row, kind):
    items = {"path": paths, "bytes": BYTES, "picture": PICTURES, "array": IMAGES}[kind]
    items = [nothing if i == row else item for i, item in enumerate(items)]
    for X in (items, objects(items), pd.Series(items, dtype=object)):
        with pytest.raises(ValueError, match=rf"X\[{row}\].*on_error=\"skip\""):
            check_samples(Face(), X, True)
        with pytest.warns(UserWarning, match=rf"1 of 6.*X\[{row}\]"):
            samples = check_samples(Face(on_error="skip"), X, True)
        assert samples.bad.tolist() == [i == row for i in range(N)]


@pytest.mark.parametrize("form", ["polars", "pyarrow", "pandas string"])
def test_missing_cells_of_tables(paths, form):
    items = [paths[0], None, *paths[2:]]
    X = {
        "polars": lambda: package("polars").Series(items),
        "pyarrow": lambda: package("pyarrow").array(items),
        "pandas string": lambda: pd.Series(items, dtype="string"),
    }[form]()
    with pytest.warns(UserWarning, match=r"X\[1\]"):
        samples = check_samples(Face(on_error="skip"), X, True)
    assert np.flatnonzero(samples.bad).tolist() == [1]


# -- refusals


def sparse_tensor():
    return torch.eye(4).to_sparse()


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3, 4, 4), 0


REFUSED = {
    "one path": ("photos/a.png", "single path.*load_image_folder"),
    "one Path": (Path("a.png"), "single path"),
    "bytes": (b"\x89PNG", r"X is one image \(bytes\): give \[X\]"),
    "one picture": (PICTURES[0], r"X is one image .*: give \[X\]"),
    "dict of columns": ({"image": [1], "label": [2]}, "keys 'image', 'label'"),
    "set": ({"a.png", "b.png"}, r"set.*sorted\(X\)"),
    "generator": ((p for p in ["a.png"]), r"generator.*list\(X\)"),
    "map": (map(str, [1]), r"map.*list\(X\)"),
    "DataLoader": (
        DataLoader(TensorDataset(torch.zeros(2, 3))),
        "DataLoader.*X.dataset",
    ),
    "iterable Dataset": (Endless(), r"Endless.*list\(X\)"),
    "sparse matrix": (sparse.eye(4, format="csr"), "[Ss]parse.*toarray"),
    "sparse tensor": (sparse_tensor(), "sparse tensor.*to_dense"),
    "samples of ImageFolder": ([("a.png", 0)] * 4, r"\[row\[0\] for row in X\]"),
    "paths in rows": ([["a.png"], ["b.png"]], r"\[row\[0\] for row in X\]"),
    "empty dicts": ([{"bytes": b"", "path": None}] * 3, "neither bytes nor a path"),
    "dicts": ([{"image": PICTURES[0], "y": 1}] * 3, r'row\["image"\] for row in X'),
    "frame": (
        pd.DataFrame({"path": ["a.png"] * 3, "label": 0}),
        r"columns 'path', 'label'.*X\['path'\]",
    ),
    "frame of pictures": (
        pd.DataFrame({"label": [0] * N, "image": PICTURES}),
        r"X\['image'\]",
    ),
    "frame of arrays": (
        pd.DataFrame({"label": [0] * N, "image": list(IMAGES)}),
        r"X\['image'\]",
    ),
    "Dataset of texts in pairs": (Pairs(lambda row: 3.5), "not an image"),
    "object": (np.array([[object()] * 2] * 3), "holds no numbers"),
    "vectors in a Series": (pd.Series([[0.5, 1.0]] * 4), r"np\.stack\(list\(X\)\)"),
    "meta tensor": (torch.zeros(4, 3, device="meta"), "meta device.*holds no values"),
    "meta tensors": ([torch.zeros(3, 4, 4, device="meta")] * 4, "meta device"),
    "nested tensor": (
        torch.nested.as_nested_tensor([torch.zeros(2), torch.zeros(3)]),
        "nested tensor.*to_padded_tensor",
    ),
    "nothing but missing cells": (objects([None, np.nan]), "All 2 rows.*missing"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_refused_names_the_line_to_write(name):
    X, match = REFUSED[name]
    for check in (
        lambda: check_samples(Face(), X, True),
        lambda: SimCLRTransformer(**SHORT).fit(X),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            check()
        text = str(caught.value)
        assert re.search(match, text) and WHAT_X_MAY_BE in text
        assert len(text) < 900


@pytest.mark.parametrize("form", ["polars", "pyarrow", "datasets"])
def test_other_frames_of_several_columns(paths, form):
    columns = {"path": paths, "label": Y.tolist()}
    X = {
        "polars": lambda: package("polars").DataFrame(columns),
        "pyarrow": lambda: package("pyarrow").table(columns),
        "datasets": lambda: package("datasets").Dataset.from_dict(columns),
    }[form]()
    with pytest.raises(ValueError, match=r"'path', 'label'.*X\['path'\]"):
        check_samples(Face(), X, True)


def test_one_image_to_predict_names_the_line():
    for X, shape in ((IMAGES, (3, H, W)), (IMAGES[..., 0], (1, H, W))):
        for one in (X[0], torch.from_numpy(X[0])):
            with pytest.raises(ValueError, match=r"is one image.*give X\[None\]"):
                check_samples(Face(), one, False, shape)
    first = CHANNELS_FIRST[0].numpy()
    with pytest.raises(ValueError, match=r"is one image.*give X\[None\]"):
        check_samples(Face(), first, False, (3, H, W))
    check_samples(Face(), IMAGES[:1, ..., 0], False, (1, H, W))


def test_other_channels_than_in_fit(paths):
    with pytest.raises(ValueError, match="read as RGB.*fit on files") as caught:
        check_samples(Face(), paths, False, (1, H, W))
    assert "resize" not in str(caught.value)
    with pytest.raises(ValueError, match=r"np\.repeat"):
        check_samples(Face(), IMAGES[..., 0], False, (3, H, W))
    with pytest.raises(ValueError, match="fitted on vectors of length 5"):
        check_samples(Face(), paths, False, (5,))


def test_a_masked_array_is_not_unmasked():
    mask = np.zeros(IMAGES.shape, bool)
    assert len(check_samples(Face(), np.ma.array(IMAGES, mask=mask), True)) == N
    mask[2, 3] = True
    with pytest.raises(ValueError, match=r"masked array.*X\.filled"):
        check_samples(Face(), np.ma.array(IMAGES, mask=mask), True)


def test_rows_of_another_kind_are_named(paths):
    with pytest.raises(ValueError, match=r"X\[0\] is a path, but X\[1\] is "):
        check_samples(Face(), [paths[0], PICTURES[1]], True)
    mixed = Pairs(lambda row: paths[row] if row < 4 else BYTES[row])
    with pytest.raises(ValueError, match=r"X\[4\]"):
        check_samples(Face(), mixed, True)
    other = Pairs(lambda row: IMAGES[row][: 9 if row == 3 else None])
    with pytest.raises(ValueError, match=r"differ in size.*X\[3\] is \(9, 14, 3\)"):
        check_samples(Face(), other, True)


# -- more channels


@pytest.mark.parametrize("n_channels", [2, 6, 13])
def test_more_channels_are_told_by_image_shape(n_channels):
    X = np.random.default_rng(0).random((N, 8, 9, n_channels), np.float32)
    expected = torch.from_numpy(X).permute(0, 3, 1, 2)
    face = Face(image_shape=(8, 9, n_channels))
    for form in (X, X.transpose(0, 3, 1, 2)):
        with pytest.raises(ValueError, match=r"image_shape=\("):
            check_samples(Face(), form, True)
        samples = check_samples(face, form, True)
        assert samples.sample_shape == (n_channels, 8, 9)
        assert torch.equal(samples[np.arange(N)], expected)
        # what has been fitted says it, too
        again = check_samples(Face(), form, False, (n_channels, 8, 9))
        assert torch.equal(again[np.arange(N)], expected)
    clf = SupervisedClassifier(image_shape=(8, 9, n_channels), **SHORT).fit(X, Y)
    p = clf.predict_proba(X.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(p, clf.predict_proba(X), atol=1e-6)


def test_image_shape_settles_an_ambiguous_one():
    X = images(4, 3, 7, 3)
    with pytest.raises(
        ValueError, match=r"ambiguous.*image_shape=\(3, 7, 3\) or \(7, 3, 3\)"
    ):
        check_samples(Face(), X, True)
    for shape, axes in (((3, 7, 3), (0, 3, 1, 2)), ((7, 3, 3), (0, 1, 2, 3))):
        samples = check_samples(Face(image_shape=shape), X, True)
        assert torch.equal(samples[np.arange(4)], torch.from_numpy(X.transpose(axes)))


# -- what is taken from an embedder, and what is said of dark images


def test_the_size_is_that_of_a_fitted_backbone(paths):
    embedder = SimCLRTransformer(image_size=8, **SHORT).fit(paths)
    clf = FixMatchClassifier(backbone=embedder, **SHORT).fit(paths, Y)
    assert clf.sample_shape_ == (3, 8, 8)
    clf = FixMatchClassifier(image_size=16, **SHORT).fit(paths, Y)
    assert clf.sample_shape_ == (3, 16, 16)


def test_dark_bytes_are_said_of(recwarn):
    dark = (IMAGES // 16).astype(np.uint8)
    with pytest.warns(UserWarning, match=r"from 0 to 15.*X \* \(255 / 15\)"):
        check_samples(Face(), dark, True)
    recwarn.clear()
    for X in (IMAGES, np.zeros_like(IMAGES), dark.astype(float), dark > 7):
        check_samples(Face(), X, True)
    check_samples(Face(), dark, False, (3, H, W))
    assert not recwarn.list


def test_a_column_survives_pickling(paths):
    import pickle

    column = pickle.loads(pickle.dumps(item_column(paths)))
    assert column[2] == paths[2] and column.name(2) == paths[2]


def test_a_tensor_that_is_negated_lazily():
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    negated = torch.complex(x, -x).conj().imag
    assert negated.is_neg()
    assert torch.equal(check_samples(Face(), negated, True)[np.arange(N)], x)


def test_scalars_of_arrow_in_a_list(paths):
    arrow = package("pyarrow")
    for column in (arrow.array(list(map(str, paths))), arrow.array(BYTES)):
        samples = check_samples(Face(), list(column), True)
        np.testing.assert_array_equal(samples.source[np.arange(N)], IMAGES)


@pytest.mark.parametrize("library", ["xarray", "datasets"])
def test_tables_without_rows_by_number(library):
    if library == "xarray":
        X, line = package("xarray").Dataset({"a": ("n", [1, 2])}), r"keys 'a'.*X\[key\]"
    else:
        table = package("datasets").Dataset.from_dict({"a": [1, 2], "b": [1, 2]})
        X, line = table.to_iterable_dataset(), r"by number.*list\(X\)"
    with pytest.raises(ValueError, match=line):
        check_samples(Face(), X, True)


def test_paths_as_bytes_are_told_from_encoded_images(paths):
    # as h5py gives texts
    with pytest.raises(ValueError, match=r"path as bytes: give os\.fsdecode"):
        check_samples(Face(), [str(path).encode() for path in paths], True)
    for content in (b"<html>not found.</html>", b"a\n.png", b"\xff.png", b"x" * 2000):
        with pytest.raises(ValueError, match="not an image in a supported"):
            check_samples(Face(image_size=8), [content], True)
