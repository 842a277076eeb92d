"""Autoencoder: the published network, its way back, denoising."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from sklabel.backbones import build_autoencoder
from sklabel.datasets import load_digit_images
from sklabel.embedding import AutoencoderTransformer

X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32) * 5 + 100
DIGITS = load_digit_images().images[:200]


def short(**parameters):
    given = {"max_steps": 3, "hidden_sizes": (20, 30), "random_state": 0}
    return AutoencoderTransformer(**{**given, **parameters})


class Shift(torch.nn.Module):
    def forward(self, x):
        return x + 0.5


@pytest.mark.parametrize("standardize", [True, False])
def test_the_loss_is_the_slow_loop(standardize):
    x = np.random.default_rng(0).normal(2, 3, size=(30, 5)).astype(np.float32)
    fitted = short(augment=Shift(), standardize=standardize, n_components=2).fit(x)
    loss = fitted.net_.module_.eval().loss(torch.from_numpy(x), None)
    drawn = fitted.inverse_transform(fitted.transform(x + 0.5))  # of the view ...
    scale = x.std(0) if standardize else np.ones(5)
    squares = [
        ((drawn[i, j] - x[i, j]) / scale[j]) ** 2  # ... what it was a view of
        for i in range(30)
        for j in range(5)
    ]
    np.testing.assert_allclose(loss.item(), np.mean(squares), rtol=1e-4)


def test_the_published_network():
    encoder, decoder = build_autoencoder((1, 28, 28), 10, (32, 64, 128))
    parameters = [*encoder.parameters(), *decoder.parameters()]
    assert sum(p.numel() for p in parameters) == 275_979
    x = torch.randn(2, 1, 28, 28)
    assert [h.shape[2] for h in _maps(encoder, x)] == [14, 7, 3]
    assert decoder(encoder(x)).shape == x.shape
    assert all(not p.any() for p in parameters if p.ndim == 1)


def test_dense_layers_for_vectors_are_those_of_dec():
    encoder, decoder = build_autoencoder((784,), 10, (500, 500, 2000))
    widths = [m.out_features for m in [*encoder, *decoder] if hasattr(m, "weight")]
    assert widths == [500, 500, 2000, 10, 2000, 500, 500, 784]
    assert isinstance(decoder[-1], nn.Linear) and isinstance(encoder[-1], nn.Linear)


def _maps(encoder, x):
    for layer in encoder:
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            yield x


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
def test_the_decoder_gives_back_every_size(shape, sizes):
    encoder, decoder = build_autoencoder(shape, 3, sizes)
    x = torch.randn(2, *shape)
    assert encoder(x).shape == (2, 3) and decoder(encoder(x)).shape == x.shape


@pytest.mark.parametrize("sizes", [(), (3, 0), (2.5,)])
def test_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match="sizes="):
        build_autoencoder((1, 8, 8), 3, sizes)
    with pytest.raises(ValueError, match="sizes="):
        short(filters=sizes).fit(DIGITS)


def test_images_come_back():
    settings = {"max_epochs": 40, "batch_size": 50, "lr": 3e-3}
    embedder = short(max_steps=None, filters=(16, 32), precision="float32", **settings)
    found = embedder.fit(DIGITS).inverse_transform(embedder.transform(DIGITS))
    assert found.shape == DIGITS.shape and found.dtype == np.float32
    assert found.min() >= DIGITS.min() and found.max() <= DIGITS.max()
    error = ((found - DIGITS) ** 2).mean()
    assert error < 0.2 * ((DIGITS.mean(0) - DIGITS) ** 2).mean()
    # the score: the negative error of pixels in [0, 1], before any is cut off there
    scale = float(DIGITS.max() - DIGITS.min()) ** 2
    assert error / scale <= -embedder.score(DIGITS) < 1.3 * error / scale


def test_vectors_come_back_in_their_own_units():
    rng = np.random.default_rng(0)
    low = (rng.normal(size=(300, 2)) @ rng.normal(size=(2, 6)) * 50 + 1000).astype("f4")
    embedder = short(n_components=2, max_steps=400, lr=3e-3, batch_size=64).fit(low)
    found = embedder.inverse_transform(embedder.transform(low))
    assert ((found - low) ** 2).mean() < 0.1 * low.var(0).mean()


@pytest.mark.parametrize(
    "form", ["NHWC", "NCHW", "grey", "flat", "float", "memmap", "paths"]
)
def test_layouts_come_back_as_they_went(form, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (10, 9, 8, 3), dtype=np.uint8)
    parameters, expected = {}, None
    if form == "NCHW":
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    elif form == "grey":
        x = x[..., 0]
    elif form == "flat":
        parameters, x = {"image_shape": (9, 8, 3)}, x.reshape(10, -1)
        expected = (10, 9, 8, 3)
    elif form == "float":
        x = x / 100 - 3
    elif form == "memmap":
        np.save(tmp_path / "x.npy", x)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif form == "paths":
        for i, image in enumerate(x):
            Image.fromarray(image).save(tmp_path / f"{i}.png")
        x, expected = [str(tmp_path / f"{i}.png") for i in range(10)], (10, 9, 8, 3)
    embedder = short(**parameters).fit(x)
    found = embedder.inverse_transform(embedder.transform(x))
    assert found.shape == (expected or x.shape)


def test_wrong_codes_are_refused():
    embedder = short(n_components=4).fit(X)
    with pytest.raises(ValueError, match="n_components=4"):
        embedder.inverse_transform(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="NaN"):
        embedder.inverse_transform(np.full((2, 4), np.nan))


def test_denoising_reconstructs_the_undamaged_sample():
    class Black(nn.Module):
        def forward(self, x):
            return x * 0

    settings = {"filters": (8,), "max_steps": 120, "lr": 1e-2}
    fitted = short(augment=Black(), precision="float32", **settings).fit(DIGITS)
    blank = fitted.inverse_transform(fitted.transform(DIGITS * 0))
    # nothing to see: the best answer is the mean of what is wanted
    assert abs(blank[0] - DIGITS.mean(0)).mean() < 0.15 * DIGITS.max()
    assert np.corrcoef(blank[0].ravel(), DIGITS.mean(0).ravel())[0, 1] > 0.9


def test_another_backbone():
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU())
    embedder = short(backbone=body, n_components=5).fit(DIGITS)
    assert embedder.transform(DIGITS).shape == (200, 5)
    assert embedder.inverse_transform(np.zeros((3, 5))).shape == (3, 8, 8)
    again = short(backbone=embedder, n_components=4).fit(DIGITS)
    assert again.transform(DIGITS).shape == (200, 4)


@pytest.mark.parametrize("x", [X, DIGITS], ids=["vectors", "images"])
def test_standardize(x):
    plain, scaled = (
        short(standardize=standardize).fit(x) for standardize in (False, True)
    )
    for net in (plain.net_.module_, plain.encoder_):
        assert (net.mean == 0).all() and (net.std == 1).all()
    mean, std = scaled.encoder_.mean.numpy(), scaled.encoder_.std.numpy()
    if x.ndim == 2:
        np.testing.assert_allclose(mean, x.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(std, x.std(0), rtol=1e-4)
    else:
        np.testing.assert_allclose(std.item(), (x / 255).std(), rtol=1e-2)
    for fitted in (plain, scaled):
        assert fitted.inverse_transform(fitted.transform(x)).shape == x.shape
