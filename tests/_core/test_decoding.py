"""Every mode, depth, page and transparency of an image file means what it shows."""

import functools
import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, features

import sklabel
from sklabel._core.decoding import decode, opened
from sklabel._core.display import contact_sheet
from sklabel._core.image_files import ImageFiles
from sklabel._core.inputs import check_images, check_samples
from sklabel.clustering import SCANClusterer
from sklabel.datasets import load_image_folder
from sklabel.embedding import AutoencoderTransformer, PretrainedTransformer
from tests._core.test_inputs import Face

ROOT = Path(__file__).parents[2]
H, W = 6, 9
RAMP = np.linspace(0, 1, H * W).reshape(H, W)  # black to white


def read(path, **given):
    """Return the pixels of one file, as an estimator gets them."""
    samples = check_samples(Face(**given), [str(path)] * 2, True)
    return samples[[1]][0].permute(1, 2, 0).numpy()


def save(image, path, **options):
    image.save(path, **options)
    return path


def gray(values):
    """Return the RGB pixels of gray levels in [0, 1]."""
    return np.repeat(np.rint(np.asarray(values) * 255)[..., None], 3, 2)


def png(path, depth, color, rows, *chunks):
    """Write a PNG file of rows of bytes."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = len(rows), len(rows[0]) * 8 // depth // {0: 1, 2: 3}[color]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    body = [*(chunk(*c) for c in chunks), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + b"".join(body))
    return path


def tiff(path, values, bits, sample_format=1, photometric=1, order="<"):
    """Write a TIFF file of one strip as other programs do."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if bits == 12:
        data = pack_12_bits(values)
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8}
    tags |= {277: 1, 278: height, 279: len(data), 339: sample_format}
    at = 8 + len(data) + len(data) % 2
    entries = b"".join(struct.pack(f"{order}HHII", n, 4, 1, v) for n, v in tags.items())
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", at)
    data += b"\0" * (len(data) % 2)
    ifd = struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4
    path.write_bytes(start + data + ifd)
    return path


def pack_12_bits(values):
    """Return rows of 12-bit values, two in three bytes."""
    rows = []
    for row in values.astype(int):
        bits = "".join(f"{v:012b}" for v in row)
        bits += "0" * (-len(bits) % 8)
        rows.append(int(bits, 2).to_bytes(len(bits) // 8, "big"))
    return b"".join(rows)


# -- depth


@pytest.mark.parametrize("ending", ["png", "tif", "jp2", "pgm"])
def test_16_bits_keep_their_range(tmp_path, ending):
    values = np.rint(RAMP * 65535).astype(np.uint16)
    path, options = tmp_path / f"x.{ending}", {}
    if ending == "jp2":
        if not features.check("jpg_2000"):
            pytest.skip("no JPEG 2000")
        options = {"irreversible": False}
    if ending == "pgm":
        path.write_bytes(b"P5 9 6 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path, **options)
    pixels = read(path)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, gray(RAMP))


@pytest.mark.parametrize("order", "<>")
def test_16_bits_of_either_byte_order(tmp_path, order):
    values = np.rint(RAMP * 65535).astype(np.uint16)
    path = tiff(tmp_path / "x.tif", values, 16, order=order)
    np.testing.assert_array_equal(read(path), gray(RAMP))


def test_12_bits_have_the_range_of_12_bits(tmp_path):
    values = np.rint(RAMP * 4095).astype(np.uint16)
    np.testing.assert_array_equal(
        read(tiff(tmp_path / "x.tif", values, 12)), gray(RAMP)
    )


def test_every_level_of_16_bits_is_a_257th():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = decode(Image.fromarray(values))[..., 0].ravel()
    np.testing.assert_array_equal(found, np.rint(np.arange(65536) / 257))


def test_zero_may_be_white(tmp_path):
    values = np.rint(RAMP * 65535).astype(np.uint16)
    path = tiff(tmp_path / "x.tif", values, 16, photometric=0)
    np.testing.assert_array_equal(read(path), 255 - gray(RAMP))


@pytest.mark.parametrize(
    "dtype, bits, sample_format, low, high",
    [
        ("f4", 32, 3, -3.0, 5.0),
        ("i1", 8, 2, -128, 127),
        ("i2", 16, 2, -1000, 3000),
        ("i4", 32, 2, -70_000, 9),
        ("u4", 32, 1, 0, 2**32 - 1),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_values_without_a_range_have_that_of_their_data_set(
    tmp_path, dtype, bits, sample_format, low, high, order
):
    if dtype == "u4" and order == ">":
        pytest.skip("Pillow does not know these")
    path = tmp_path / "0.tif"
    whole = np.array(low + RAMP * (high - low)).astype(dtype)
    dim = np.array(low + RAMP * (high - low) / 4).astype(dtype)
    tiff(path, whole, bits, sample_format, order=order)
    other = tiff(tmp_path / "1.tif", dim, bits, sample_format, order=order)
    samples = check_samples(Face(), [str(path), str(other)], True)
    x = samples[[0, 1]][:, 0].numpy()
    level = 255 / (high - low)  # of whole numbers
    np.testing.assert_allclose(x[0], 255 * RAMP, atol=max(1, level))
    np.testing.assert_allclose(x[1], 255 * RAMP / 4, atol=max(1, level))


def test_floats_within_0_and_1_are_as_they_are(tmp_path):
    paths = [str(tmp_path / f"{i}.tif") for i in range(2)]
    for i, path in enumerate(paths):
        Image.fromarray((RAMP * (0.2 + 0.3 * i)).astype(np.float32)).save(path)
    face = Face()
    x = check_samples(face, paths, True)[[0, 1]][:, 0].numpy()
    assert face._value_range == (0.0, 1.0)
    np.testing.assert_array_equal(x[1], np.rint(RAMP.astype(np.float32) * 0.5 * 255))


def write_floats(folder, high, n=6, low=-100.0):
    folder.mkdir()
    for i in range(n):
        values = (low + RAMP * (high - low) * (i + 1) / n).astype(np.float32)
        Image.fromarray(values).save(folder / f"{i}.tif")
    return sorted(str(path) for path in folder.iterdir())


@pytest.mark.parametrize("in_memory", [True, False])
def test_predict_and_a_saved_model_have_the_range_of_fit(
    tmp_path, monkeypatch, in_memory
):
    if not in_memory:
        monkeypatch.setattr("sklabel._core.image_files._CACHE_BYTES", 100)
    paths = write_floats(tmp_path / "train", 3000.0)
    settings = {"max_steps": 1, "batch_size": 2, "random_state": 0}
    embedder = AutoencoderTransformer(**settings).fit(paths)
    assert embedder._value_range == (-100.0, 3000.0)
    Z = embedder.transform(paths)
    np.testing.assert_allclose(embedder.transform(paths[1:2]), Z[1:2], atol=1e-5)
    embedder.save(tmp_path / "model")
    again = sklabel.load(tmp_path / "model")
    np.testing.assert_allclose(again.transform(paths[1:2]), Z[1:2], atol=1e-5)
    scale = again._check_X(paths[1:2])[[0]].max()
    assert scale == round(255 / 3)
    # another estimator that goes on from it reads alike
    after = AutoencoderTransformer(backbone=embedder, **settings).fit(paths[1:])
    assert after._value_range == (-100.0, 3000.0)
    far = write_floats(tmp_path / "far", 60_000.0)
    with pytest.raises(ValueError, match=r"5\.tif.*those of fit between -100 and 3000"):
        again.transform(far[-1:])


def test_floats_are_refused_where_fit_has_seen_none(tmp_path):
    bytes_ = [
        str(save(Image.new("L", (W, H), 9 * i), tmp_path / f"{i}.png"))
        for i in range(4)
    ]
    embedder = AutoencoderTransformer(max_steps=1, batch_size=2).fit(bytes_)
    assert "_value_range" not in vars(embedder)
    floats = write_floats(tmp_path / "f", 3.0)
    with pytest.raises(ValueError, match=r"0\.tif.*from -100.*it is unknown"):
        embedder.transform(floats)


def test_pretrained_encoders_read_alike(tmp_path):
    paths = write_floats(tmp_path / "train", 3000.0)
    embedder = PretrainedTransformer(
        "resnet18", weights=None, input_size=32, random_state=0
    ).fit(paths)
    Z = embedder.transform(paths)
    assert np.abs(Z[0] - Z[-1]).max() > 1e-3
    np.testing.assert_allclose(embedder.transform(paths[2:3]), Z[2:3], atol=1e-5)
    embedder.save(tmp_path / "model")
    again = sklabel.load(tmp_path / "model").transform(paths[2:3])
    np.testing.assert_allclose(again, Z[2:3], atol=1e-5)


def test_what_is_looked_at_is_read_alike(tmp_path):
    paths = write_floats(tmp_path / "train", 3000.0)
    images = check_images(paths, np.array([5, 2]))
    assert [image.max() for image in images] == [255, 128]
    sheet = np.asarray(contact_sheet(paths, [""] * 6, tile=64))
    assert len(np.unique(sheet)) > 100


def test_nan_in_a_file_is_refused_by_name(tmp_path):
    values = RAMP.astype(np.float32)
    values[2, 3] = np.nan
    path = save(Image.fromarray(values), tmp_path / "x.tif")
    with pytest.raises(ValueError, match="x.tif.*NaN"):
        read(path)


# -- colors


def test_the_colors_of_every_mode(tmp_path):
    color = (200, 60, 20)
    full = Image.new("RGB", (W, H), color)
    forms = {
        "RGB": (full, 0),
        "P": (full.quantize(4), 0),
        "CMYK": (full.convert("CMYK"), 1),
        "YCbCr": (full.convert("YCbCr"), 3),
        "HSV": (full.convert("HSV"), 3),
        "RGBX": (full.convert("RGBX"), 0),
    }
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    forms["LAB"] = ImageCms.profileToProfile(full, srgb, lab, outputMode="LAB"), 3
    for mode, (image, tolerance) in forms.items():
        assert image.mode == mode
        np.testing.assert_allclose(decode(image)[0, 0], color, atol=tolerance)
        if mode in ("CMYK", "YCbCr", "LAB"):
            path = save(image, tmp_path / f"{mode}.tif")
            np.testing.assert_allclose(read(path)[0, 0], color, atol=tolerance)


def test_adobes_inverted_cmyk(tmp_path):
    """Pillow writes and reads the JPEG files of Adobe, whose inks are inverted."""
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    path = save(image, tmp_path / "x.jpg", quality=100)
    assert b"Adobe" in path.read_bytes()
    np.testing.assert_allclose(read(path)[3, 3], (255, 0, 0), atol=4)


def test_colors_of_16_bits(tmp_path):
    row = np.array([[65535, 0, 30000]] * 3, ">u2").tobytes()
    pixels = read(png(tmp_path / "x.png", 16, 2, [row]))
    np.testing.assert_array_equal(pixels[0, 0], (255, 0, 117))


def test_bytes_keep_their_bits(tmp_path):
    color = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        read(save(Image.fromarray(color), tmp_path / "c.png")), color
    )
    level = color[..., 0]
    found = read(save(Image.fromarray(level), tmp_path / "g.png"))
    np.testing.assert_array_equal(found, np.repeat(level[..., None], 3, 2))
    bits = Image.fromarray(level).convert("1")
    found = read(save(bits, tmp_path / "b.png"))[..., 0]
    np.testing.assert_array_equal(found, np.asarray(bits) * 255)


# -- transparency


ALPHA = np.zeros((H, W), np.uint8)
ALPHA[2:4, 3:6] = 255
ALPHA[4, 4] = 51  # a fifth
DRAWN = 255 - ALPHA  # black ink on white paper


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_transparent_places_are_white(tmp_path, mode):
    image = Image.fromarray(np.dstack([np.zeros((H, W, 3), np.uint8), ALPHA]))
    image = image.convert({"La": "LA"}.get(mode, mode)).convert(mode)
    assert image.mode == mode
    np.testing.assert_array_equal(decode(image)[..., 0], DRAWN)
    if mode in ("RGBA", "LA"):
        for ending in ("png", "tif"):
            path = save(image, tmp_path / f"x.{ending}")
            np.testing.assert_array_equal(read(path)[..., 0], DRAWN)


def test_transparent_palettes(tmp_path):
    image = Image.fromarray((ALPHA > 0).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 0, 0, 0])  # black on transparent black
    for name, transparency in (("a.png", 0), ("b.gif", 0), ("c.png", b"\0\xff")):
        path = save(image, tmp_path / name, transparency=transparency)
        found = read(path)[..., 0]
        np.testing.assert_array_equal(found, np.where(ALPHA > 0, 0, 255))


@pytest.mark.parametrize(
    "depth, color, rows, key, expected",
    [
        (8, 0, [[7, 9]], [7], [[255] * 3, [9] * 3]),
        (1, 0, [[0b10000000]], [1], [[255] * 3, *[[0] * 3] * 7]),
        (1, 0, [[0b10000000]], [0], [[255] * 3] * 8),
        (2, 0, [[0b01101100]], [1], [[255] * 3, [170] * 3, [255] * 3, [0] * 3]),
        (4, 0, [[0x5F]], [15], [[85] * 3, [255] * 3]),
        (4, 0, [[0x50]], [0], [[85] * 3, [255] * 3]),
        (16, 0, [[1, 1, 1, 2]], [0x0101], [[255] * 3, [1] * 3]),
        (8, 2, [[1, 2, 3, 3, 2, 1]], [1, 2, 3], [[255] * 3, [3, 2, 1]]),
        (8, 2, [[1, 2, 3, 1, 2, 4]], [1, 2, 3], [[255] * 3, [1, 2, 4]]),
    ],
)
def test_the_transparent_color_of_png(tmp_path, depth, color, rows, key, expected):
    chunk = b"tRNS", struct.pack(f">{len(key)}H", *key)
    pixels = read(png(tmp_path / "x.png", depth, color, rows, chunk))
    np.testing.assert_array_equal(pixels[0], expected)


# -- orientation, pages


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "name, mode",
    [("x.png", "I;16"), ("x.tif", "I;16"), ("x.tif", "F"), ("x.png", "RGBA")],
)
def test_every_mode_lies_upright(tmp_path, orientation, name, mode):
    values = np.rint(RAMP * 65535)
    if mode == "RGBA":
        image = Image.fromarray(gray(RAMP).astype(np.uint8)).convert("RGBA")
    else:
        dtype = {"I;16": np.uint16, "F": np.float32}[mode]
        image = Image.fromarray(values.astype(dtype))
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = Image.fromarray(gray(RAMP).astype(np.uint8))
    expected.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(expected))
    path = save(image, tmp_path / name, exif=exif)
    np.testing.assert_array_equal(read(path), expected)
    assert read(path, image_size=expected.shape[:2]).shape == expected.shape


@pytest.mark.parametrize("ending", ["tif", "gif", "webp", "png"])
def test_several_pages_are_said_once(tmp_path, ending):
    first = np.full((H, W, 3), 30, np.uint8)
    pages = [Image.fromarray(first), Image.new("RGB", (W, H), (255, 255, 255))]
    paths = [str(tmp_path / f"{i}.{ending}") for i in range(3)]
    options = {"lossless": True} if ending == "webp" else {}
    for path in paths[:2]:
        pages[0].save(path, save_all=True, append_images=pages[1:], **options)
    pages[0].save(paths[2], **options)
    with pytest.warns(UserWarning) as caught:
        samples = check_samples(Face(), paths, True)
    said = [str(w.message) for w in caught if "several pages" in str(w.message)]
    assert len(said) == 1 and said[0].startswith("2 of 3 image files")
    assert all(repr(path) in said[0] for path in paths[:2])
    np.testing.assert_array_equal(
        samples[[0]][0].permute(1, 2, 0), samples[[2]][0].permute(1, 2, 0)
    )


def test_estimators_within_a_fit_do_not_say_it_again(tmp_path):
    pages = [Image.fromarray(np.full((8, 8), 30 * i, np.uint8)) for i in range(6)]
    paths = [str(tmp_path / f"{i}.tif") for i in range(6)]
    for path, page in zip(paths, pages, strict=True):
        page.save(path, save_all=True, append_images=pages[:1])
    short = {"max_steps": 1, "batch_size": 4, "random_state": 0}
    clusterer = SCANClusterer(
        2, embedder=AutoencoderTransformer(**short), self_label_epochs=0, **short
    )
    for _ in range(2):  # the next fit says it again
        with pytest.warns(UserWarning) as caught:
            clusterer.fit(paths)
        assert sum("several pages" in str(w.message) for w in caught) == 1


def test_the_second_picture_of_a_camera_is_no_page(tmp_path, recwarn):
    image = Image.new("RGB", (16, 16), (90, 10, 10))
    path = save(
        image, tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[image]
    )
    assert read(path).shape == (16, 16, 3)
    assert not recwarn.list


# -- what has no meaning


def test_a_raw_file_is_refused_with_the_remedy(tmp_path):
    path = save(Image.new("RGB", (4, 4)), tmp_path / "x.dng", format="TIFF")
    with pytest.raises(ValueError, match="x.dng.*raw file.*TIFF or JPEG"):
        read(path)


def test_text_that_is_named_image(tmp_path):
    (tmp_path / "x.png").write_text("<html>")
    with pytest.raises(ValueError, match="x.png.*JPEG.*on_error"):
        read(tmp_path / "x.png")


def test_a_large_image_is_allowed_by_a_parameter(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name, kind in (("x.png", "PNG"), ("x.tif", "TIFF"), ("x.webp", "WEBP")):
        path = save(Image.new("L", (50, 60), 9), tmp_path / name, format=kind)
        with pytest.raises(ValueError, match="x.*3,000 pixels.*max_pixels=3000"):
            read(path)
        with pytest.raises(ValueError, match="more than 2,999"):
            read(path, max_pixels=2999)
        np.testing.assert_allclose(read(path, max_pixels=3000), 9, atol=2)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_heic_files(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    image = Image.new("RGB", (64, 48), (200, 60, 20))
    path = tmp_path / "x.heic"
    heif.from_pillow(image).save(path, quality=95)
    np.testing.assert_allclose(read(path)[9, 9], (200, 60, 20), atol=4)


def test_heic_without_its_package_names_the_extra(tmp_path, monkeypatch):
    def missing(name, extra):
        raise ImportError(f'Install it with: pip install "sklabel[{extra}]"')

    monkeypatch.setattr("sklabel._core.decoding.import_optional", missing)
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(60))
    with pytest.raises(ValueError, match=r"x\.heic.*HEIC.*sklabel\[heif\]"):
        read(tmp_path / "x.heic")


@pytest.mark.skipif(not features.check("avif"), reason="Pillow has no AVIF")
def test_avif_files(tmp_path):
    path = save(
        Image.new("RGB", (64, 48), (200, 60, 20)), tmp_path / "x", format="AVIF"
    )
    np.testing.assert_allclose(read(path)[9, 9], (200, 60, 20), atol=4)


def test_bytes_and_files_are_one_thing(tmp_path):
    path = save(Image.new("RGB", (W, H), (1, 2, 3)), tmp_path / "x.png")
    data = path.read_bytes()
    for item in (
        data,
        bytearray(data),
        memoryview(data),
        {"bytes": data, "path": None},
    ):
        with opened(item) as image:
            np.testing.assert_array_equal(decode(image)[0, 0], (1, 2, 3))
    with opened({"bytes": None, "path": str(path)}) as image:
        assert decode(image, (2, 3)).shape == (2, 3, 3)
    assert ImageFiles([data], (H, W))[[0]].shape == (1, H, W, 3)


def test_a_lazily_opened_picture_is_not_changed():
    buffer = io.BytesIO()
    Image.new("RGB", (640, 640)).save(buffer, "JPEG")
    picture = Image.open(buffer)
    samples = check_samples(Face(image_size=8), [picture, picture], True)
    assert samples[[0, 1]].shape == (2, 3, 8, 8)
    assert picture.size == (640, 640)


# -- the formats of the user guide

ENDINGS = {
    "BMP": "BMP",
    "GIF": "GIF",
    "ICO": "ICO",
    "JPEG": "JPEG",
    "JPEG 2000": "JPEG2000",
    "PNG": "PNG",
    "PPM": "PPM",
    "TIFF": "TIFF",
    "WebP": "WEBP",
    "AVIF": "AVIF",
    "HEIC": "HEIF",
}


def test_the_guide_lists_the_formats_that_are_read(tmp_path):
    text = (ROOT / "docs" / "user_guide" / "data.rst").read_text("utf-8")
    table = text.partition(".. table:: Formats")[2].split("\n\n")[1].splitlines()
    width = table[0].strip().index(" ")
    rows = {line.strip()[:width].strip(): line for line in table[3:-1]}
    assert list(rows) == list(ENDINGS)
    color = (200, 60, 20)
    image = Image.new("RGB", (64, 64), color)
    names = []
    for name, line in rows.items():
        if ENDINGS[name] == "HEIF":
            heif = pytest.importorskip("pillow_heif")
            save_as = heif.from_pillow(image).save
        else:
            save_as = functools.partial(image.save, format=ENDINGS[name])
        for ending in [*re.findall(r"`(\.\w+)`", line), ".strange", ""]:
            path = tmp_path / f"{name}{len(names):02}{ending}"
            try:
                save_as(path)
            except ValueError:  # pillow-heif looks at the ending
                path.write_bytes((tmp_path / names[-1]).read_bytes())
            names.append(path.name)
            np.testing.assert_allclose(read(path)[30, 30], color, atol=12)
    bunch = load_image_folder(tmp_path)
    assert {os.path.basename(path) for path in bunch.paths} == set(names)
    assert bunch.ignored == []


def test_one_file_with_several_pages_is_counted_in_the_singular():
    files = ImageFiles(["a.gif", "b.gif", "c.gif"], (8, 8))
    files.several.add(1)
    assert files.pages_text().startswith("1 of 3 image files holds several pages")
    files.several.add(2)
    assert files.pages_text().startswith("2 of 3 image files hold several pages")
