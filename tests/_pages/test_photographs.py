"""Images for a browser: decoded here, of a screen's size, and never the files."""

import io

import numpy as np
import pytest
from PIL import Image

from sklabel._pages.photographs import Photographs, Unreadable


def opened(found):
    content, kind = found
    image = Image.open(io.BytesIO(content))
    assert kind == f"image/{image.format.lower()}"
    return image


def test_large_ones_are_made_smaller_and_small_ones_stay_exact(tmp_path):
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 255, (900, 1800, 3), dtype=np.uint8))
    large.save(tmp_path / "large.jpg", exif=b"Exif\0\0secret")
    pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    photographs = Photographs([tmp_path / "large.jpg", tmp_path / "small.png"])
    assert opened(photographs.file(0, 1600)).size == (1600, 800)
    assert opened(photographs.file(0, 160)).size == (160, 80)
    assert b"secret" not in photographs.file(0, 640)[0]
    np.testing.assert_array_equal(opened(photographs.file(1, 1600)), pixels)
    assert photographs.file(0, 160) is photographs.file(0, 160)  # kept


def test_every_kind_of_picture_becomes_one_of_the_web(tmp_path):
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "float.tiff")
    Image.fromarray((ramp * 65535).astype(np.uint16)).save(tmp_path / "wide.png")
    photographs = Photographs([tmp_path / "float.tiff", tmp_path / "wide.png"])
    for row in range(2):
        pixels = np.asarray(opened(photographs.file(row, 640)))
        assert pixels.min() == 0 and pixels.max() == 255


def test_what_cannot_be_read_is_told(tmp_path):
    (tmp_path / "text.png").write_text("<svg onload='alert(1)'>")
    photographs = Photographs([tmp_path / "text.png", tmp_path / "none.png"])
    for row in range(2):
        with pytest.raises(Unreadable):
            photographs.file(row, 640)


def test_no_more_is_kept_than_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr("sklabel._pages.photographs._KEPT_BYTES", 1000)
    pixels = np.random.default_rng(0).integers(0, 255, (9, 20, 20, 3), dtype=np.uint8)
    photographs = Photographs([Image.fromarray(image) for image in pixels])
    for row in [*range(9), 0]:
        content = photographs.file(row, 640)[0]
    assert photographs._n_bytes == sum(len(f[0]) for f in photographs._kept.values())
    assert photographs._n_bytes <= 1000 or len(content) > 1000
