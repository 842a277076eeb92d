"""Networks and image processors that users bring, half precision, several encoders."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from torch import nn

import sklabel
from sklabel._core.own_networks import Vectors, frame_of
from sklabel.classification import FixMatchClassifier
from sklabel.embedding import PretrainedTransformer
from tests.embedding.test_pretrained import X, photos, tiny


class Says(nn.Module):
    """A network of transformers, as far as one sees from outside."""

    main_input_name = "pixel_values"

    def __init__(self, **parts):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.parts = parts
        self.config = SimpleNamespace(image_size=16)

    def forward(self, pixel_values):
        self.seen = pixel_values.detach()
        means = pixel_values.mean((2, 3)) * self.weight  # (B, 3)
        found = {name: make(means) for name, make in self.parts.items()}
        return SimpleNamespace(**found)


class Processor:
    """An image processor of transformers, as far as one sees from outside."""

    def __init__(self, **values):
        self.values = values

    def to_dict(self):
        return dict(self.values)


def tokens(means):
    return torch.stack([means, 2 * means, 3 * means], 1)  # (B, 3, 3)


def maps(means):
    return torch.stack([means, 3 * means], 2)[..., None]  # (B, 3, 2, 1)


def own(net, **parameters):
    given = {"precision": "float32", "random_state": 0, "input_size": 16}
    return PretrainedTransformer(net, **{**given, **parameters})


def means(x=X, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), side=16):
    frame = frame_of({"size": side})[0]
    images = frame(torch.from_numpy(x).permute(0, 3, 1, 2) / 255)
    return ((images.mean((2, 3)) - torch.tensor(mean)) / torch.tensor(std)).numpy()


@pytest.mark.parametrize(
    "parts, pooling, factor",
    [
        ({"pooler_output": lambda m: m, "last_hidden_state": tokens}, "auto", 1),
        ({"pooler_output": lambda m: m[..., None, None]}, "auto", 1),
        ({"pooler_output": lambda m: None, "last_hidden_state": tokens}, "auto", 1),
        ({"image_embeds": lambda m: 5 * m, "pooler_output": lambda m: m}, "auto", 5),
        ({"last_hidden_state": maps}, "auto", 2),
        ({"pooler_output": lambda m: m, "last_hidden_state": tokens}, "avg", 2),
        ({"pooler_output": lambda m: m, "last_hidden_state": tokens}, "max", None),
        ({"last_hidden_state": tokens}, "token", 1),
    ],
)
def test_what_models_of_transformers_say(parts, pooling, factor):
    Z = own(Says(**parts), pooling=pooling).fit_transform(X)
    expected = means()
    if factor is None:
        expected = np.maximum(expected, 3 * expected)
        factor = 1
    np.testing.assert_allclose(Z, factor * expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [lambda m: m, tokens, maps, lambda m: (m, None)])
def test_what_plain_networks_say(make):
    class Net(nn.Module):
        def forward(self, x):
            return make(x.mean((2, 3)))

    factor = 1 if make not in (tokens, maps) else 2
    Z = own(Net()).fit_transform(X)
    np.testing.assert_allclose(Z, factor * means(), rtol=1e-3, atol=1e-4)


def test_the_vectors_that_are_compared_with_texts_are_taken():
    class Both(nn.Module):
        def __init__(self, name):
            super().__init__()
            setattr(self, name, lambda x: 7 * x.mean((2, 3)))

    for name in ("get_image_features", "encode_image"):
        Z = own(Both(name)).fit_transform(X)
        np.testing.assert_allclose(Z, 7 * means(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "values, x",
    [
        ({}, lambda v: v),
        ({"do_normalize": False}, lambda v: v),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, lambda v: (v - 0.5) * 4),
        (
            {"do_rescale": False, "image_mean": [10.0] * 3, "image_std": [50.0] * 3},
            lambda v: (255 * v - 10) / 50,
        ),
        (
            {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0]},
            lambda v: 2 * v - 1,
        ),
        ({"do_flip_channel_order": True}, lambda v: v.flip(1)),
    ],
)
def test_colors_of_an_image_processor(values, x):
    size = {"height": 16, "width": 12}
    processor = Processor(do_resize=True, size=size, resample=2, **values)
    for given in (processor, processor.to_dict(), Processor()):
        if given is not processor and not isinstance(given, dict):
            given.image_processor = processor  # of texts and images
        net = Says(pooler_output=lambda m: m)
        embedder = own(net, preprocessing=given, input_size=None).fit(X)
        Z = embedder.transform(X)
        frame = embedder.net_.module_.frame
        assert frame.size == (16, 12) and frame.mode == "squash"
        images = frame(torch.from_numpy(X).permute(0, 3, 1, 2) / 255)
        np.testing.assert_allclose(Z, x(images).mean((2, 3)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "values, size, resize, mode",
    [
        ({"size": 20}, (20, 20), (20, 20), "shortest"),
        ({"size": {"shortest_edge": 20}}, (20, 20), (20, 20), "shortest"),
        ({"size": {"longest_edge": 20}}, (20, 20), (20, 20), "longest"),
        ({"size": (20, 30)}, (20, 30), (20, 30), "squash"),
        (
            {"size": {"shortest_edge": 20}, "crop_size": 16, "do_center_crop": True},
            (16, 16),
            (20, 20),
            "shortest",
        ),
        ({"size": {"shortest_edge": 20}, "crop_size": 16}, (20, 20), (20, 20), None),
        (
            {"size": {"shortest_edge": 21}, "crop_pct": 0.875},
            (21, 21),
            (24, 24),
            "shortest",
        ),
        (
            {"size": {"shortest_edge": 400}, "crop_pct": 0.875},
            (400, 400),
            (400, 400),
            "squash",
        ),
    ],
)
def test_sizes_of_an_image_processor(values, size, resize, mode):
    frame, *_ = frame_of(Processor(do_rescale=True, resample=3, **values))
    assert (frame.size, frame.resize) == (size, resize)
    assert frame.mode == (mode or "shortest") and frame.interpolation == "bicubic"


def test_preprocessing_by_hand_and_what_a_network_says_of_itself():
    given = {"mean": 0.5, "std": (0.5, 0.25, 0.125), "size": 16, "resize": 16}
    Z = own(Says(pooler_output=lambda m: m), preprocessing=given).fit_transform(X)
    expected = means(mean=(0.5,) * 3, std=(0.5, 0.25, 0.125))
    np.testing.assert_allclose(Z, expected, rtol=1e-3, atol=1e-4)
    # transformers: the size; timm: all
    net = Says(pooler_output=lambda m: m)
    assert own(net, input_size=None).fit(X).net_.module_.frame.size == (16, 16)
    net = nn.Conv2d(3, 4, 1)
    net.pretrained_cfg = {
        "input_size": (3, 18, 18),
        "crop_pct": 0.9,
        "mean": (0.1, 0.2, 0.3),
        "std": (1.0, 1.0, 1.0),
        "interpolation": "bicubic",
    }
    frame, mean, _, _ = frame_of("auto", None, net)
    assert (frame.size, frame.resize) == ((18, 18), (20, 20))
    torch.testing.assert_close(mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    # and of a published one
    plain, other = tiny(), tiny(preprocessing={"mean": 0.0, "std": 1.0, "size": 32})
    assert not np.allclose(plain.fit_transform(X), other.fit_transform(X))
    encoder = other.encoder_.body[1]
    assert not encoder.mean.any() and (encoder.std == 1).all()


@pytest.mark.parametrize(
    "parameters, text",
    [
        ({"preprocessing": {"means": 0}}, r"keys \['means'\]"),
        ({"preprocessing": {"mean": (1, 2)}}, r"mean=\[1.0, 2.0\]"),
        ({"preprocessing": {"std": 0}}, "std that is not above 0"),
        ({"preprocessing": Processor(do_resize=True, size={"a": 1})}, "no height"),
        ({"weights": None}, "weights=None has no effect"),
        ({"pooling": "token"}, "without pooling='token'"),
        ({"weights": ["a", "b"], "backbone": ["resnet18"]}, "weights holds 2 values"),
        ({"backbone": []}, "holds no encoder"),
        ({"backbone": ["resnet18", 3], "weights": None}, "backbone=3 is neither"),
        ({"backbone": nn.Linear(5, 2)}, "cannot turn images of 16x16 pixels"),
        ({"backbone": nn.Flatten(0)}, "returns neither vectors"),
    ],
)
def test_wrong_values_are_told(parameters, text):
    given = {"backbone": nn.Conv2d(3, 4, 16), "input_size": 16}
    if "pooling" in parameters:
        given["backbone"] = nn.Sequential(given["backbone"], nn.Flatten())
    with pytest.raises(ValueError, match=text):
        PretrainedTransformer(**{**given, **parameters}).fit(X)


def test_a_network_is_copied_and_no_code_is_saved(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    embedder = own(net).fit(X)
    assert net.training and embedder.encoder_.body[1].body.net is not net
    with pytest.raises(TypeError, match="joblib.dump"):
        embedder.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    again = pickle.loads(pickle.dumps(embedder))
    np.testing.assert_array_equal(again.transform(X), embedder.transform(X))
    np.testing.assert_array_equal(
        clone(embedder).fit_transform(X), embedder.transform(X)
    )


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_weights_of_half_precision(kind, tmp_path):
    whole = tiny().fit(X)
    half = tiny(weights_precision=kind).fit(X)
    size = [
        sum(p.numel() * p.element_size() for p in e.encoder_.parameters())
        for e in (whole, half)
    ]
    assert size[0] == 2 * size[1]
    Z, near = whole.transform(X), half.transform(X)
    assert near.dtype == np.float32
    np.testing.assert_allclose(near, Z, atol=0.03 * np.abs(Z).max())
    assert not np.array_equal(near, Z)
    half.save(tmp_path / "saved")
    loaded = sklabel.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.transform(X), near)
    assert {p.dtype for p in loaded.encoder_.parameters()} == {getattr(torch, kind)}
    # a network that comes in half is taken so, and trained on in float32
    net = nn.Conv2d(3, 4, 3).to(getattr(torch, kind))
    embedder = own(net).fit(X)
    assert embedder.transform(X).dtype == np.float32
    y = np.where(np.arange(12) < 8, np.arange(12) % 2, -1)
    settings = {"max_steps": 1, "batch_size": 4, "random_state": 0}
    clf = FixMatchClassifier(backbone=embedder, **settings).fit(X, y)
    assert {p.dtype for p in clf.encoder_.parameters()} == {torch.float32}


def test_several_encoders_side_by_side(tmp_path):
    names = ["squeezenet1_1", "resnet18"]
    both = tiny(backbone=names).fit(X)
    Z = both.transform(X)
    start = 0
    for name in names:
        # random ones are drawn one after the other
        if name == "squeezenet1_1":
            alone = tiny(backbone=name).fit_transform(X)
            alone /= np.linalg.norm(alone, axis=1, keepdims=True)
            np.testing.assert_allclose(Z[:, : alone.shape[1]], alone, atol=1e-6)
            start = alone.shape[1]
    np.testing.assert_allclose(np.linalg.norm(Z[:, start:], axis=1), 1, rtol=1e-5)
    assert Z.shape == (12, 1024)
    both.save(tmp_path / "saved")
    np.testing.assert_array_equal(sklabel.load(tmp_path / "saved").transform(X), Z)
    files = []
    for i, image in enumerate(X):
        files.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image).save(files[-1])
    np.testing.assert_allclose(tiny(backbone=names).fit_transform(files), Z, atol=2e-3)


def test_encoders_of_several_kinds_and_sizes(tmp_path):
    small = Says(pooler_output=lambda m: m)
    given = [{"size": 8, "mean": 0.0, "std": 1.0}, "auto"]
    both = own([small, "squeezenet1_1"], preprocessing=given, input_size=None)
    both.set_params(weights=["DEFAULT", None], cache_dir=tmp_path)
    Z = both.fit_transform(X)
    assert Z.shape == (12, 3 + 512) and both.net_.module_.frame.size == (224, 224)
    np.testing.assert_allclose(np.linalg.norm(Z[:, :3], axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(both.transform(X), Z)  # of the cache
    files = []
    for i, side in enumerate((20, 30)):
        files.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(photos(1, side, side)[0]).save(files[-1])
    assert np.isfinite(both.fit_transform(files)).all()


def test_the_cache_tells_networks_apart_that_look_alike(tmp_path):
    class Scaled(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = by

        def forward(self, x):
            return self.by * x.mean((2, 3))

    one = own(Scaled(1.0), cache_dir=tmp_path).fit_transform(X)
    two = own(Scaled(2.0), cache_dir=tmp_path).fit_transform(X)
    np.testing.assert_allclose(two, 2 * one, rtol=1e-6)


def test_half_precision_is_not_mixed_with_autocast():
    net = Vectors(nn.Conv2d(3, 2, 1).to(torch.float16))
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.rand(2, 3, 4, 4)).dtype == torch.float32
