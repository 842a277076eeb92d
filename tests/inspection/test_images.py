"""Poor images that were planted are found; the measures are what they say."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sklabel.inspection import find_poor_images, measure_images

RNG = np.random.default_rng(0)


def pictures(n=20):
    """Return pictures of edges and noise, (n, 40, 40, 3)."""
    small = RNG.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    large = small.repeat(5, axis=1).repeat(5, axis=2).astype(int)
    return (large + RNG.integers(-10, 11, large.shape)).clip(0, 255).astype(np.uint8)


def blur(image):
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(4)))


def planted():
    x = pictures()
    x[2] = x[2] // 5  # dark
    x[5] = 200 + x[5] // 5  # bright
    x[9] = 120  # blank
    x[11] = blur(x[11])
    return x


@pytest.mark.parametrize("form", ["array", "float", "NCHW", "paths"])
def test_planted_faults_are_found(form, tmp_path):
    x = planted()
    if form == "float":
        x = x / 255
    elif form == "NCHW":
        x = x.transpose(0, 3, 1, 2)
    elif form == "paths":
        paths = [str(tmp_path / f"{i:02}.png") for i in range(len(x))]
        for image, path in zip(x, paths, strict=True):
            Image.fromarray(image).save(path)
        x = paths
    found = find_poor_images(x)
    assert found.dark.tolist() == [2] and found.bright.tolist() == [5]
    assert found.blank.tolist() == [9] and 11 in found.blurred
    assert set(found.blurred) <= {2, 5, 11}  # a faint image is not sharp, either
    assert not len(found.odd)


def test_the_odd_one():
    x = (100 + 10 * RNG.normal(size=(60, 8, 8))).clip(0, 255).astype(np.uint8)
    x[:, :4] += np.uint8(80)
    x[33] = x[33, ::-1]
    flat = FunctionTransformer(lambda x: x.reshape(len(x), -1).astype(float))
    found = find_poor_images(x, embedder=make_pipeline(flat, PCA(10, random_state=0)))
    assert found.odd[0] == 33 and len(found.odd) < 4


def test_measures():
    step = np.zeros((1, 10, 10), np.uint8)
    step[:, :, 5:] = 255
    found = measure_images(step)
    assert found.brightness == 0.5 and found.contrast == 0.5 and found.entropy == 1
    assert found.darkest == 0 and found.brightest == 1
    # the Laplacian is 1 and -1 beside the step, in two of eight inner columns
    assert found.sharpness == 0.25
    color = np.zeros((1, 5, 5, 3), np.uint8)
    color[..., 1] = 255
    assert measure_images(color).brightness == pytest.approx(0.587, abs=1e-5)


def test_the_size_of_photographs_does_not_matter(tmp_path):
    small = Image.fromarray(pictures(1)[0]).resize((128, 96), Image.Resampling.NEAREST)
    large = small.resize((1280, 960), Image.Resampling.NEAREST)
    paths = [str(tmp_path / name) for name in ("small.png", "large.png")]
    small.save(paths[0])
    large.save(paths[1])
    one, other = np.transpose(measure_images(paths))
    np.testing.assert_allclose(one, other, rtol=1e-3)


def test_one_pixel_and_vectors():
    assert measure_images(np.zeros((2, 1, 1), np.uint8)).sharpness.tolist() == [0, 0]
    with pytest.raises(ValueError, match="give images"):
        measure_images(np.ones((5, 4)))
