"""Digits, image folders, and the fetchers on small files made here; no network."""

import bz2
import hashlib
import io
import os
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from sklabel import datasets
from sklabel.datasets import (
    fetch_bloodmnist,
    fetch_cifar10,
    fetch_fashion_mnist,
    fetch_mnist,
    fetch_usps,
    load_digit_images,
    load_image_folder,
)

FETCHERS = {
    "mnist.npz": (fetch_mnist, "MNIST", (28, 28)),
    "fashion-mnist.npz": (fetch_fashion_mnist, "FashionMNIST", (28, 28)),
    "usps.npz": (fetch_usps, "USPS", (16, 16)),
    "cifar10.npz": (fetch_cifar10, "CIFAR10", (32, 32, 3)),
}


@pytest.fixture(autouse=True)
def own_homes(tmp_path, monkeypatch):
    """Keep every test away from the user's data folders."""
    monkeypatch.delenv("SKLABEL_DATA", raising=False)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "sklearn"))

    def no_network(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)


def small(shape, n_train=6, n_test=4, n_classes=10):
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (n_train, *shape), dtype=np.uint8),
        "y_train": rng.integers(0, n_classes, n_train),
        "x_test": rng.integers(0, 256, (n_test, *shape), dtype=np.uint8),
        "y_test": rng.integers(0, n_classes, n_test),
    }


def test_digit_images():
    bunch = load_digit_images()
    assert bunch.images.shape == (1797, 8, 8) and bunch.images.dtype == np.uint8
    assert bunch.images.min() == 0 and bunch.images.max() == 255
    np.testing.assert_allclose(
        bunch.images / 255, load_digits().images / 16, atol=0.5 / 255
    )
    assert np.shares_memory(bunch.data, bunch.images)
    X, y = load_digit_images(return_X_y=True)
    np.testing.assert_array_equal(X, bunch.images)
    np.testing.assert_array_equal(y, load_digits().target)


def make_folder(folder):
    for name in (
        "dog/img10.png",
        "dog/img2.PNG",
        "cat/deep/er/a.jpg",
        "cat/notes.txt",
        "cat/.hidden.png",
        ".git/b.png",
        "empty/readme.md",
        "loose.jpeg",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(path, "png")
    return folder


def test_image_folder(tmp_path):
    folder = make_folder(tmp_path / "photos")
    for given in (folder, str(folder)):
        bunch = load_image_folder(given)
        names = [Path(p).relative_to(folder).as_posix() for p in bunch.paths]
        assert names == ["cat/deep/er/a.jpg", "dog/img2.PNG", "dog/img10.png"] + [
            "loose.jpeg"
        ]
        assert bunch.target.tolist() == [0, 1, 1, -1]
        assert bunch.target_names.tolist() == ["cat", "dog"]
        assert bunch.paths.dtype == object and isinstance(bunch.paths[0], str)


def test_image_folder_options(tmp_path):
    folder = make_folder(tmp_path / "photos")
    flat = load_image_folder(folder, recursive=False)
    assert [Path(p).name for p in flat.paths] == ["loose.jpeg"]
    assert flat.target.tolist() == [-1] and len(flat.target_names) == 0
    assert (load_image_folder(folder, labels=None).target == -1).all()
    for extensions in ((".png",), ("PNG",), "png"):
        assert len(load_image_folder(folder, extensions=extensions).paths) == 2


def test_image_folder_follows_links_but_not_circles(tmp_path):
    folder = make_folder(tmp_path / "photos")
    (tmp_path / "links").mkdir()
    os.symlink(folder / "dog", tmp_path / "links" / "hound")
    os.symlink(tmp_path / "links", tmp_path / "links" / "again")
    bunch = load_image_folder(tmp_path / "links")
    assert len(bunch.paths) == 2 and bunch.target_names.tolist() == ["hound"]


def test_image_folder_errors(tmp_path):
    with pytest.raises(TypeError, match="folder=None must be a str"):
        load_image_folder(None)
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
        load_image_folder(tmp_path / "nowhere")
    file = tmp_path / "file.png"
    file.write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="is a file, not a folder"):
        load_image_folder(file)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"No image found in .*empty.*\.jpg, \.jpeg"):
        load_image_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match="labels must be 'folder' or None"):
        load_image_folder(tmp_path, labels="names")


def test_images_are_found_by_content(tmp_path, recwarn):
    image = Image.new("RGB", (8, 8))
    for name, kind in (
        ("a.jfif", "JPEG"),
        ("b.JPE", "JPEG"),
        ("c.ppm", "PPM"),
        ("d", "PNG"),
        ("e.dat", "TIFF"),
        ("f.jpg", "PNG"),
        ("g.w", "PPM"),
        ("h.x", "BMP"),
    ):
        image.save(tmp_path / name, kind)
    for name, content in (
        ("notes.txt", b"P5 8 8 255 " + bytes(64)),
        ("letter", b"BM, as they say, is no image at all"),
        ("short", b"B"),
        ("empty", b""),
        ("labels.csv", b"path,label"),
    ):
        (tmp_path / name).write_bytes(content)
    bunch = load_image_folder(tmp_path)
    assert [Path(p).name for p in bunch.paths] == [
        *("a.jfif", "b.JPE", "c.ppm", "d", "e.dat", "f.jpg", "g.w", "h.x")
    ]
    assert sorted(Path(p).name for p in bunch.ignored) == [
        *("empty", "labels.csv", "letter", "notes.txt", "short")
    ]


@pytest.mark.skipif(os.name != "posix", reason="there are no pipes elsewhere")
def test_a_pipe_is_no_image(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b")
    bunch = load_image_folder(tmp_path)
    assert len(bunch.paths) == 1 and len(bunch.ignored) == 1


def test_what_is_left_out_is_counted_by_kind(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in ("a.heic", "b.HEIC", "c.cr2", "d.svg", "notes.txt"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(60))
    with pytest.warns(UserWarning) as caught:
        bunch = load_image_folder(tmp_path)
    (said,) = [str(w.message) for w in caught]
    assert said.startswith("4 files ignored: .cr2 1, .heic 2, .svg 1; install ")
    assert "sklabel[heif]" in said and len(bunch.ignored) == 5
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"No image found.*4 files ignored: \.cr2 1"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize(
    "names, warned",
    [
        (["train", "val"], True),
        (["Train", "Test", "valid"], True),
        (["test"], True),
        (["train", "test", "extra"], True),
        (["train", "car", "ship"], False),
        (["cat", "dog"], False),
    ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path, recwarn, names, warned):
    for name in names:
        (tmp_path / name / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "cat" / "a.png")
    load_image_folder(tmp_path)
    assert len(recwarn.list) == warned
    if warned:
        assert "parts of a data set" in str(recwarn.list[0].message)
    recwarn.clear()
    load_image_folder(tmp_path, labels=None)
    assert not recwarn.list


@pytest.mark.parametrize("name", FETCHERS)
@pytest.mark.parametrize("where", ["argument", "variable", "home"])
def test_a_file_that_is_there_is_read(name, where, tmp_path, monkeypatch):
    fetch, _, shape = FETCHERS[name]
    folder = tmp_path / ("sklearn" if where == "home" else "data")
    folder.mkdir()
    arrays = small(shape)
    np.savez(folder / name, **arrays, class_names=np.array(["x"]))
    if where == "variable":
        monkeypatch.setenv("SKLABEL_DATA", str(folder))
    bunch = fetch(folder if where == "argument" else None, download_if_missing=False)
    for key, value in arrays.items():
        np.testing.assert_array_equal(bunch[key], value)
    assert bunch.images.shape == (10, *shape)
    assert bunch.data.shape == (10, int(np.prod(shape)))
    assert bunch.target.dtype == np.int64
    assert np.shares_memory(bunch.images, bunch.x_train)
    np.testing.assert_array_equal(bunch.target[6:], arrays["y_test"])
    assert len(bunch.target_names) == 10
    assert bunch.path == str(folder / name)


@pytest.mark.parametrize("name", FETCHERS)
def test_a_missing_file_is_downloaded_once(name, tmp_path, monkeypatch):
    fetch, tv_name, shape = FETCHERS[name]
    arrays, calls = small(shape), []

    def fake(root, train=True, transform=None, target_transform=None, download=False):
        calls.append((train, download))
        (Path(root) / "raw").write_bytes(b"left over")
        part = "train" if train else "test"
        targets = arrays[f"y_{part}"].tolist()
        return SimpleNamespace(data=arrays[f"x_{part}"], targets=targets)

    monkeypatch.setattr(torchvision.datasets, tv_name, fake)
    folder = tmp_path / "new" / "data"
    for _ in range(2):
        bunch = fetch(folder)
        for key, value in arrays.items():
            np.testing.assert_array_equal(bunch[key], value)
    assert calls == [(True, True), (False, True)]
    assert os.listdir(folder) == [name]


class Response(io.BytesIO):
    """What a web server answers."""

    def __init__(self, url, content):
        super().__init__(content)
        self.url, self.length = url, len(content)


def test_usps_through_torchvision_itself(tmp_path, monkeypatch):
    arrays, served = small((16, 16), 3, 2), {}
    for part, (url, name, _) in torchvision.datasets.USPS.split_list.items():
        lines = [
            f"{label + 1} "
            + " ".join(f"{i}:{v / 127.5 - 1:.6f}" for i, v in enumerate(x))
            for x, label in zip(
                arrays[f"x_{part}"].reshape(-1, 256).astype(float), arrays[f"y_{part}"]
            )
        ]
        served[url] = bz2.compress(("\n".join(lines) + "\n").encode())
        monkeypatch.setitem(
            torchvision.datasets.USPS.split_list,
            part,
            [url, name, hashlib.md5(served[url]).hexdigest()],
        )

    def urlopen(request, *args, **kwargs):
        return Response(request.full_url, served[request.full_url])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    bunch = fetch_usps(tmp_path / "data")
    assert np.abs(bunch.x_train.astype(int) - arrays["x_train"]).max() <= 1
    np.testing.assert_array_equal(bunch.y_train, arrays["y_train"])
    np.testing.assert_array_equal(bunch.y_test, arrays["y_test"])


def zenodo_file(path):
    arrays = small((28, 28, 3), n_classes=8)
    arrays["x_val"], arrays["y_val"] = arrays["x_test"][:2], arrays["y_test"][:2]
    np.savez(
        path,
        **{f"{p}_images": arrays[f"x_{p}"] for p in ("train", "val", "test")},
        **{f"{p}_labels": arrays[f"y_{p}"][:, None] for p in ("train", "val", "test")},
    )
    return arrays


def test_bloodmnist_is_downloaded_and_checked(tmp_path, monkeypatch):
    source = tmp_path / "zenodo.npz"
    arrays = zenodo_file(source)
    content = source.read_bytes()
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(datasets, "_BLOOD_MD5", hashlib.md5(content).hexdigest())
    folder = tmp_path / "data"
    for _ in range(2):
        bunch = fetch_bloodmnist(folder)
        for key, value in arrays.items():
            np.testing.assert_array_equal(bunch[key], value)
    assert len(asked) == 1 and asked[0].startswith("https://zenodo.org/")
    assert bunch.images.shape == (12, 28, 28, 3) and bunch.target.ndim == 1
    assert len(bunch.target_names) == 8
    assert os.listdir(folder) == ["bloodmnist.npz"]


def test_a_cut_download_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"half a file")
    )
    with pytest.raises(OSError, match="MD5 checksum .* cut short"):
        fetch_bloodmnist(tmp_path / "data")
    assert os.listdir(tmp_path / "data") == []


def test_the_rebuilt_blood_cells_are_read(tmp_path):
    np.savez(tmp_path / "blood-cells.npz", **small((28, 28, 3), n_classes=8))
    assert fetch_bloodmnist(tmp_path).images.shape == (10, 28, 28, 3)


def jpeg_copy(path, sizes=(5, 3)):
    content, pixels = {}, {}
    for part, n in zip(("train", "test"), sizes):
        files, pixels[part] = [], []
        for i in range(n):
            buffer = io.BytesIO()
            Image.new("RGB", (32, 32), (40 * i, 9, 200)).save(buffer, "jpeg")
            files.append(buffer.getvalue())
            pixels[part].append((40 * i, 9, 200))
        content[f"jpeg_{part}"] = np.frombuffer(b"".join(files), dtype=np.uint8)
        content[f"offsets_{part}"] = np.cumsum([0] + [len(f) for f in files])
        content[f"y_{part}"] = np.arange(n)
    np.savez(path, **content)
    return pixels


def test_jpeg_copy_is_decoded_once(tmp_path, monkeypatch):
    pixels = jpeg_copy(tmp_path / "cifar10-jpeg.npz")
    bunch = fetch_cifar10(tmp_path)
    assert bunch.x_train.shape == (5, 32, 32, 3) and bunch.x_test.shape[0] == 3
    found = bunch.x_train.mean(axis=(1, 2))
    np.testing.assert_allclose(found, pixels["train"], atol=3)
    assert (tmp_path / "cifar10-jpeg-decoded.npz").exists()
    monkeypatch.setattr(datasets, "_decode_jpegs", None)  # a second use would fail
    again = fetch_cifar10(tmp_path)
    np.testing.assert_array_equal(again.images, bunch.images)
    np.testing.assert_array_equal(again.target, bunch.target)


def test_jpeg_copy_in_a_read_only_folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    jpeg_copy(folder / "cifar10-jpeg.npz")
    folder.chmod(0o555)
    try:
        fetch_cifar10(folder)
        assert os.listdir(folder) == ["cifar10-jpeg.npz"]
        assert os.listdir(tmp_path / "sklearn") == ["cifar10-jpeg-decoded.npz"]
    finally:
        folder.chmod(0o755)


def test_a_newer_jpeg_copy_is_decoded_again(tmp_path):
    jpeg_copy(tmp_path / "cifar10-jpeg.npz")
    fetch_cifar10(tmp_path)
    jpeg_copy(tmp_path / "cifar10-jpeg.npz", sizes=(2, 2))
    os.utime(tmp_path / "cifar10-jpeg-decoded.npz", (0, 0))
    assert len(fetch_cifar10(tmp_path).images) == 4


def test_decoded_images_that_cannot_be_kept_give_a_warning(tmp_path, monkeypatch):
    jpeg_copy(tmp_path / "cifar10-jpeg.npz")

    def full(path, arrays):
        raise OSError("disk full")

    monkeypatch.setattr(datasets, "_save_npz", full)
    with pytest.warns(UserWarning, match="disk full"):
        assert len(fetch_cifar10(tmp_path).images) == 8


@pytest.mark.parametrize(
    "fetch",
    [fetch_mnist, fetch_fashion_mnist, fetch_usps, fetch_cifar10, fetch_bloodmnist],
)
def test_without_a_network_the_error_says_what_to_do(fetch, tmp_path, monkeypatch):
    with pytest.raises(OSError, match="download_if_missing is False"):
        fetch(tmp_path / "data", download_if_missing=False)
    assert not (tmp_path / "data").exists()
    with pytest.raises(OSError, match="could not be downloaded.*SKLABEL_DATA"):
        fetch(tmp_path / "data")
    assert os.listdir(tmp_path / "data") == []


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "mnist.npz").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(OSError, match="mnist.npz.*is damaged.*Delete it"):
        fetch_mnist(tmp_path)
    np.savez(tmp_path / "usps.npz", x_train=np.zeros((2, 16, 16), np.uint8))
    with pytest.raises(OSError, match="not a data set of this kind.*x_train"):
        fetch_usps(tmp_path)


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", stop)
    with pytest.raises(KeyboardInterrupt):
        datasets._save_npz(tmp_path / "a.npz", {"x": np.zeros(3)})
    assert os.listdir(tmp_path) == []
