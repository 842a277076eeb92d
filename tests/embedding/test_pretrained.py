"""Pretrained encoders: the right weights and pixels, a cache to be trusted."""

import json
import os
import pickle
import threading
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted

import sklabel
from sklabel._core import vector_cache
from sklabel._core.image_files import ImageFiles
from sklabel._core.inputs import check_samples
from sklabel._core.samples import Samples
from sklabel.classification import FixMatchClassifier
from sklabel.embedding._pretrained import PretrainedTransformer
from sklabel.pretrained import Frame, load_weights_, pretrained_backbone

TINY_CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {
        "context_length": 8,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}


def photos(n=12, h=20, w=24, c=3, seed=0):
    """Return smooth random images (n, h, w, c), uint8."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (n, 5, 6, 3), dtype=np.uint8)
    images = [
        Image.fromarray(x).resize((w, h), Image.Resampling.BICUBIC) for x in small
    ]
    return np.stack([np.asarray(image) for image in images])[..., :c]


X = photos()


def tiny(**parameters):
    return PretrainedTransformer(
        **{
            "backbone": "squeezenet1_1",
            "weights": None,
            "input_size": 32,
            "precision": "float32",
            "random_state": 0,
            **parameters,
        }
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of open_clip that is small: its name, with two published weights."""
    open_clip = pytest.importorskip("open_clip")
    path = tmp_path_factory.mktemp("clip") / "tiny-test-clip.json"
    path.write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(path)
    tags = open_clip.pretrained._PRETRAINED
    tags["tiny-test-clip"] = {
        "first": {
            "url": "https://unreachable.invalid/first.pt",
            "hf_hub": "",
            "mean": (0.1, 0.2, 0.3),
            "std": (0.4, 0.5, 0.6),
            "interpolation": "bilinear",
            "resize_mode": "squash",
            "quick_gelu": True,
        },
        "second": {"url": "https://unreachable.invalid/second.pt", "hf_hub": ""},
    }
    yield "open_clip/tiny-test-clip"
    del tags["tiny-test-clip"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for i, image in enumerate(X):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return sorted(map(str, folder.glob("*.png")))


# -- the pixels


def pil_and_tensor(h, w):
    image = photos(1, h, w)[0]
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    return Image.fromarray(image), x


@pytest.mark.parametrize("size", [(97, 131), (300, 260), (40, 40)])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "shufflenet_v2_x2_0"])
def test_pixels_are_those_of_torchvision(name, size):
    enum = torchvision.models.get_model_weights(name)
    pil, x = pil_and_tensor(*size)
    with torch.device("meta"):
        _, frame = pretrained_backbone(name, None)
    preset = enum.DEFAULT.transforms()
    mean, std = (torch.tensor(v)[:, None, None] for v in (preset.mean, preset.std))
    expected = preset(pil) * std + mean
    # its own images are rounded to 256 levels in between
    assert (frame(x)[0] - expected).abs().max() < 1.6 / 255


@pytest.mark.parametrize("size", [(97, 131), (300, 260)])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"crop_mode": "squash", "crop_pct": 0.8},
        {"crop_mode": "border", "interpolation": "bilinear"},
        {"input_size": (3, 60, 90), "crop_pct": 1.0, "interpolation": "bilinear"},
    ],
    ids=["center", "squash", "border", "wide"],
)
def test_pixels_are_those_of_timm(config, size, monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model

    def changed(*args, **kwargs):
        net = create(*args, **kwargs)
        net.pretrained_cfg = {**net.pretrained_cfg, **config}
        return net

    monkeypatch.setattr(timm, "create_model", changed)
    encoder, frame = pretrained_backbone("timm/test_resnet", None)
    data = timm.data.resolve_data_config(model=changed("test_resnet"))
    pil, x = pil_and_tensor(*size)
    expected = timm.data.create_transform(**data)(pil)
    found = (frame(x)[0] - encoder.mean) / encoder.std
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1.6 / 255 / min(data["std"])


def test_pixels_are_those_of_open_clip(clip):
    import open_clip

    pil, x = pil_and_tensor(97, 131)
    for weights in (None, "second"):
        encoder, frame = pretrained_backbone(clip, weights, load=False)
        preprocess = open_clip.image_transform(32, is_train=False)
        found = (frame(x)[0] - encoder.mean) / encoder.std
        assert (found - preprocess(pil)).abs().max() < 1.6 / 255 / 0.26
    encoder, frame = pretrained_backbone(clip, "first", load=False)
    assert (frame.mode, frame.interpolation) == ("squash", "bilinear")
    torch.testing.assert_close(encoder.mean.ravel(), torch.tensor([0.1, 0.2, 0.3]))


def test_borders_are_filled():
    frame = Frame((10, 10), (10, 10), mode="longest", fill=(0.1, 0.2, 0.3))
    x = frame(torch.ones(1, 3, 20, 10))[0]
    torch.testing.assert_close(x[:, 5, 0], torch.tensor([0.1, 0.2, 0.3]))
    assert (x[:, :, 3:7] == 1).all()


@given(
    h=st.integers(1, 60),
    w=st.integers(1, 60),
    channels=st.sampled_from([1, 3]),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "nearest"]),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    more=st.integers(0, 5),
)
@hypothesis_settings(max_examples=60)
def test_any_image_gets_the_size(h, w, channels, mode, interpolation, size, more):
    frame = Frame(size, [n + more for n in size], mode, interpolation)
    x = torch.rand(2, channels, h, w)
    before = x.clone()
    y = frame(x)
    assert y.shape == (2, 3, *size) and y.min() >= 0 and y.max() <= 1
    assert torch.equal(x, before)
    # rows do not know of each other
    torch.testing.assert_close(frame(x[1:]), y[1:])


def test_grey_images_are_repeated():
    grey = X[..., :1]
    expected = tiny().fit_transform(np.repeat(grey, 3, 3))
    np.testing.assert_array_equal(tiny().fit_transform(grey), expected)
    np.testing.assert_array_equal(tiny().fit_transform(grey[..., 0]), expected)


# -- the forms of X


def test_every_form_of_images_gives_the_same(files, tmp_path):
    expected = tiny().fit_transform(X)
    assert expected.shape == (12, 512) and expected.dtype == np.float32
    assert np.isfinite(expected).all() and len(np.unique(expected[:, 0])) == 12
    np.save(tmp_path / "x.npy", X)
    for form, parameters in (
        (np.ascontiguousarray(X.transpose(0, 3, 1, 2)), {}),
        (list(X), {}),
        (torch.from_numpy(X), {}),
        (np.load(tmp_path / "x.npy", mmap_mode="r"), {}),
        (X.reshape(12, -1), {"image_shape": X.shape[1:]}),
        (files, {}),
        (pd.DataFrame({"path": [Path(f) for f in files]}), {}),
        (X, {"batch_size": 5}),
    ):
        found = tiny(**parameters).fit_transform(form)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    floats = tiny().fit_transform((X / 255).astype(np.float32))
    np.testing.assert_allclose(floats, expected, rtol=1e-3, atol=1e-4)


def test_files_of_several_sizes_keep_their_shape(files, tmp_path):
    for i, (h, w) in enumerate([(20, 24), (40, 30), (33, 90)]):
        Image.fromarray(photos(1, h, w, seed=i)[0]).save(tmp_path / f"{i}.png")
    paths = sorted(tmp_path.glob("*.png"))
    embedder = tiny().fit(paths)
    assert embedder.sample_shape_ == (3, 32, 32) == embedder.encoder_.sample_shape
    found = embedder.transform(paths)
    for path, z in zip(paths, found, strict=True):
        alone = np.asarray(Image.open(path))[None]
        np.testing.assert_allclose(tiny().fit_transform(alone)[0], z, 1e-4, 1e-5)
    # what other estimators make of files: all of one size first
    squashed = tiny(image_size=(16, 18)).fit(paths)
    assert squashed.sample_shape_ == (3, 16, 18)
    assert not np.allclose(squashed.transform(paths), found)


def test_a_file_does_not_depend_on_those_of_fit(embedded, tmp_path):
    for i, (h, w) in enumerate([(40, 40), (40, 40), (30, 90)]):
        Image.fromarray(photos(1, h, w, seed=i)[0]).save(tmp_path / f"{i}.png")
    paths = sorted(tmp_path.glob("*.png"))
    cached = tiny(cache_dir=tmp_path / "cache")
    expected = clone(cached).fit_transform(paths)
    alike = clone(cached).fit(paths[:2])
    assert alike.encoder_.sample_shape == (3, 40, 40)
    embedded.clear()
    np.testing.assert_array_equal(alike.transform(paths), expected)
    assert not embedded
    floats = photos(2, 40, 40) / 255
    np.testing.assert_array_equal(tiny().fit(floats).transform(paths), expected)
    # files have 256 levels also where the images of fit had other values
    squashed = tiny(image_size=40).fit(floats).transform(paths)
    np.testing.assert_allclose(squashed[:2], expected[:2], 1e-4, 1e-5)


def test_files_lying_on_their_side_are_turned(tmp_path):
    image = Image.fromarray(photos(1, 20, 30)[0])
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("a.png", "a.jpg"):
        image.save(tmp_path / name, exif=turned)
        embedder = tiny().fit([tmp_path / name])
        assert embedder.sample_shape_ == (3, 30, 20)
    upright = np.asarray(image.rotate(-90, expand=True))[None]
    expected = tiny().fit_transform(upright)
    found = tiny().fit_transform([tmp_path / "a.png"])
    np.testing.assert_allclose(found, expected, 1e-4, 1e-5)
    # among files of other sizes too
    image.resize((40, 40)).save(tmp_path / "b.png")
    found = tiny().fit_transform([tmp_path / "a.png", tmp_path / "b.png"])
    np.testing.assert_allclose(found[:1], expected, 1e-4, 1e-5)


def test_large_inputs_stream(tmp_path, monkeypatch, files):
    big = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", big)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    embedder = tiny(batch_size=16).fit(mapped[:2])
    read, seen = [], []
    fetch = Samples.__getitem__
    monkeypatch.setattr(
        Samples,
        "__getitem__",
        lambda self, rows: read.append(len(rows)) or fetch(self, rows),
    )
    embedder.net_.module_.register_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0]))
    )
    Z = embedder.transform(mapped)
    assert max(read) == max(seen) == 16 and sum(seen) == 90
    np.testing.assert_allclose(Z[40:44], embedder.transform(big[40:44]), 1e-4, 1e-5)
    # images that are large make batches smaller
    monkeypatch.setattr("sklabel.embedding._pretrained._BATCH_BYTES", 4 * 3 * 8 * 8 * 3)
    seen.clear()
    embedder.transform(mapped)
    assert max(seen) == 3


def test_bfloat16_leaves_as_float32():
    plain = tiny(precision="float32").fit_transform(X)
    low = tiny(precision="bfloat16").fit(X)
    Z = low.transform(X)
    assert Z.dtype == np.float32 and not np.array_equal(Z, plain)
    np.testing.assert_allclose(Z, plain, atol=0.05 * np.abs(plain).max())
    assert next(low.encoder_.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    "wrong, message",
    [
        (np.ones((9, 4)), "image_shape"),
        (np.ones((9, 8, 8, 4)), "4 channels.*RGB"),
        (np.full((9, 5, 5, 3), np.nan), "NaN"),
        (np.empty((0, 5, 5, 3)), "0 sample"),
        (["no-such-file.png"], "no-such-file.png"),
        ("photo.png", "single path"),
    ],
    ids=["vectors", "alpha", "nan", "empty", "missing file", "one path"],
)
def test_wrong_X_is_refused_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        tiny().fit(wrong)
    assert len(str(caught.value).splitlines()) == 1


def test_another_shape_than_the_fitted_one_is_refused():
    embedder = tiny().fit(X)
    with pytest.raises(ValueError, match="shape"):
        embedder.transform(X[:, :9])
    with pytest.raises(NotFittedError):
        tiny().transform(X)


def test_broken_files_are_skipped_on_request(files, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(files[0]).read_bytes()[:-30])  # its head is whole
    paths = [*files[:3], str(cut), *files[3:], str(tmp_path / "gone.png")]
    with pytest.raises(ValueError, match="gone.png"):
        tiny().fit(paths)
    with pytest.raises(ValueError, match="cut.png"):
        tiny().fit(files).transform(paths[:-1])
    for parameters in ({}, {"cache_dir": tmp_path / "cache"}, {"image_size": 16}):
        embedder = tiny(on_error="skip", **parameters).fit(paths)
        for _ in range(2):
            with pytest.warns(UserWarning, match="2 of 14 image files.*cut.png"):
                Z = embedder.transform(paths)
            assert np.isnan(Z[[3, 13]]).all()
            assert np.isfinite(np.delete(Z, [3, 13], 0)).all()
    with pytest.raises(ValueError, match="None of the 1 image files"):
        tiny(on_error="skip").fit([tmp_path / "gone.png"])
    with pytest.raises(ValueError, match="None of the 1 image files"):
        embedder.transform([str(cut)])
    for size in (None, 16):
        with pytest.raises(ValueError, match="cut.png") as caught:
            tiny(image_size=size).fit(files).transform([cut])
        assert str(caught.value).count("Cannot read") == 1


def test_one_image_is_enough():
    Z = tiny().fit_transform(X[:1])
    np.testing.assert_allclose(Z, tiny().fit(X).transform(X)[:1], 1e-4, 1e-5)


# -- weights


def forms_of(state, folder):
    """Yield a file for each form in which weights are handed around."""
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    for name, content in (
        ("plain.pt", state),
        ("wrapped.pth", {"state_dict": prefixed, "epoch": 3, "optimizer": {"lr": 1}}),
        ("model.pth", {"model": state, "args": None}),
    ):
        torch.save(content, folder / name)
        yield folder / name
    save_file(state, folder / "weights.safetensors")
    yield folder / "weights.safetensors"
    save_file(state, folder / "unusual.bin")
    yield str(folder / "unusual.bin")


def check_every_form(net, embedder, tmp_path):
    """Compare the embedding with that of ``net``, which the weights are taken from."""
    with torch.inference_mode():
        expected = None
        for path in forms_of(net.state_dict(), tmp_path):
            fitted = clone(embedder).set_params(weights=path).fit(X)
            Z = fitted.transform(X)
            if expected is None:
                encoder = fitted.encoder_
                x = torch.from_numpy(X).permute(0, 3, 1, 2).float() / 255
                frame, inner = encoder.body
                expected = net((frame(x) - inner.mean) / inner.std).numpy()
            np.testing.assert_allclose(Z, expected, rtol=1e-3, atol=1e-4)


def test_weights_of_torchvision(tmp_path):
    net = torchvision.models.shufflenet_v2_x0_5(num_classes=7)
    for part in net.modules():  # as if it was trained
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
    state = net.state_dict()
    headless = torchvision.models.shufflenet_v2_x0_5()
    headless.load_state_dict({k: v for k, v in state.items() if "fc" not in k}, False)
    headless.fc = torch.nn.Identity()
    check_every_form(
        net_with(headless, state), tiny(backbone="shufflenet_v2_x0_5"), tmp_path
    )


def net_with(net, state):
    """Return ``net``, whose state dict is that of a network with a head."""
    net = net.eval()
    net.state_dict = lambda: dict(state)
    return net


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_weights_of_timm(name, tmp_path):
    timm = pytest.importorskip("timm")
    state = timm.create_model(name, num_classes=7).state_dict()
    headless = timm.create_model(name, num_classes=0)
    headless.load_state_dict(
        {k: v for k, v in state.items() if k in headless.state_dict()}
    )
    embedder = tiny(backbone=f"timm/{name}", input_size=None)
    check_every_form(net_with(headless, state), embedder, tmp_path)


def test_weights_of_timm_under_other_names_and_of_another_size(tmp_path):
    timm = pytest.importorskip("timm")
    net = timm.create_model("test_vit", num_classes=7)
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    embedder = tiny(backbone="timm/test_vit", weights=tmp_path / "a.safetensors")
    assert embedder.set_params(input_size=96).fit(X).transform(X).shape == (12, 64)
    found = embedder.encoder_.body[1].body.pos_embed
    assert found.shape == (1, 37, 64) and embedder.net_.module_.frame.size == (96, 96)
    # what an open_clip with this tower would have been saved as
    state = {f"visual.trunk.{k}": v for k, v in net.state_dict().items()}
    torch.save(state | {"logit_scale": torch.ones(())}, tmp_path / "b.pt")
    other = clone(embedder).set_params(weights=tmp_path / "b.pt").fit(X)
    np.testing.assert_array_equal(other.transform(X), embedder.transform(X))


@pytest.mark.filterwarnings("ignore:weights=.*does not say:UserWarning")
def test_weights_of_open_clip(clip, tmp_path):
    import open_clip

    torch.manual_seed(1)
    model = open_clip.create_model("tiny-test-clip").eval()
    embedder = tiny(backbone=clip, input_size=None)
    # the whole model or its image tower
    check_every_form(net_with(model.visual, model.state_dict()), embedder, tmp_path)
    tower = open_clip.create_model("tiny-test-clip").visual
    check_every_form(net_with(tower, dict(tower.state_dict())), embedder, tmp_path)


def test_a_file_of_open_clip_is_read_as_the_published_weights(
    clip, tmp_path, monkeypatch
):
    import open_clip

    path = tmp_path / "w.pt"
    torch.save(open_clip.create_model("tiny-test-clip").state_dict(), path)
    with pytest.warns(
        UserWarning, match="w.pt.*differ.*quick_gelu=False, resize_mode=s"
    ):
        _, frame = pretrained_backbone(clip, path)
    assert frame.mode == "shortest"
    tags = open_clip.pretrained._PRETRAINED
    only = {"first": tags["tiny-test-clip"]["first"]}
    monkeypatch.setitem(tags, "tiny-test-clip", only)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder, frame = pretrained_backbone(clip, path)
    assert (frame.mode, frame.interpolation) == ("squash", "bilinear")
    torch.testing.assert_close(encoder.mean.ravel(), torch.tensor([0.1, 0.2, 0.3]))
    assert any("QuickGELU" in type(m).__name__ for m in encoder.modules())


@pytest.mark.filterwarnings("ignore:weights=.*does not say:UserWarning")
@pytest.mark.parametrize("part", ["model", "tower"])
@pytest.mark.parametrize("timm_tower", [False, True])
def test_a_file_of_open_clip_for_another_size(
    timm_tower, part, clip, tmp_path, monkeypatch
):
    import open_clip

    if timm_tower:
        pytest.importorskip("timm")
        tower = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}
        config = {**TINY_CLIP, "vision_cfg": {**tower, "image_size": 160}}
        configs = open_clip.factory._MODEL_CONFIGS
        monkeypatch.setitem(configs, "tiny-test-clip", config)
    model = open_clip.create_model("tiny-test-clip")
    saved = model if part == "model" else model.visual
    torch.save(saved.state_dict(), tmp_path / "w.pt")
    encoder, frame = pretrained_backbone(clip, tmp_path / "w.pt", input_size=64)
    assert frame.size == (64, 64)
    # what open_clip makes of the file, if it holds the whole model
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    expected = open_clip.create_model(
        "tiny-test-clip", pretrained=str(tmp_path / "whole.pt"), force_image_size=64
    ).visual
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(encoder.body.state_dict()[name], tensor)
    if not timm_tower:
        # without being asked for, another size is taken for another network
        torch.save(encoder.body.state_dict(), tmp_path / "w.pt")
        with pytest.raises(ValueError, match="positional_embedding.*input_size"):
            pretrained_backbone(clip, tmp_path / "w.pt")


def test_published_weights_of_torchvision(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    enum = torchvision.models.SqueezeNet1_1_Weights
    path = tmp_path / "checkpoints" / Path(enum.DEFAULT.url).name
    path.parent.mkdir()
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    expected = tiny(weights=path).fit_transform(X)
    for weights in ("DEFAULT", "IMAGENET1K_V1"):
        found = tiny(weights=weights).fit_transform(X)
        np.testing.assert_array_equal(found, expected)


def test_published_weights_of_timm(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    path = tmp_path / "model.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    asked = []
    monkeypatch.setattr(
        "timm.models._hub.hf_hub_download",
        lambda repo_id, **kwargs: asked.append(repo_id) or str(path),
    )
    small = {"input_size": None}
    expected = tiny(backbone="timm/test_vit", weights=path, **small).fit_transform(X)
    for backbone, weights in (
        ("timm/test_vit", "DEFAULT"),
        ("timm/test_vit", "r160_in1k"),
        ("timm/test_vit.r160_in1k", "DEFAULT"),
    ):
        found = tiny(backbone=backbone, weights=weights, **small).fit_transform(X)
        np.testing.assert_array_equal(found, expected)
    assert asked == ["timm/test_vit.r160_in1k"] * 3


def test_published_weights_of_open_clip(clip, tmp_path, monkeypatch):
    import open_clip

    model = open_clip.create_model("tiny-test-clip")
    torch.save(model.state_dict(), tmp_path / "first.pt")
    monkeypatch.setattr(
        "open_clip.factory.download_pretrained",
        lambda about, **kwargs: str(tmp_path / f"{Path(about['url']).name}"),
    )
    embedder = tiny(backbone=clip, weights="DEFAULT", input_size=None).fit(X)
    frame, inner = embedder.encoder_.body
    assert frame.mode == "squash"
    assert any("QuickGELU" in type(m).__name__ for m in inner.body.modules())
    for name, tensor in inner.body.state_dict().items():
        assert torch.equal(tensor, model.visual.state_dict()[name])


def no_network(*args, **kwargs):
    raise ConnectionError("the cable\nis cut")


@pytest.mark.parametrize(
    "name, function",
    [
        ("squeezenet1_1", "torchvision.models._api.load_state_dict_from_url"),
        ("timm/test_vit", "timm.models._hub.hf_hub_download"),
        ("clip", "open_clip.factory.download_pretrained"),
    ],
)
def test_a_failed_download_says_why_and_what_to_do(
    name, function, request, monkeypatch
):
    if name != "squeezenet1_1":
        pytest.importorskip("timm" if "/" in name else "open_clip")
    name = request.getfixturevalue("clip") if name == "clip" else name
    monkeypatch.setattr(function, no_network)
    with pytest.raises(OSError, match="could not be downloaded.*the cable is cut") as e:
        tiny(backbone=name, weights="DEFAULT", input_size=None).fit(X)
    assert "weights=" in str(e.value) and name in str(e.value)
    assert len(str(e.value).splitlines()) == 1


class Trap:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_files_that_do_not_fit_are_told_in_one_line(tmp_path):
    widths = [24, 48, 96, 192, 1024]
    net = torchvision.models.ShuffleNetV2([1, 2, 1], widths)
    state = net.state_dict()
    deeper = torchvision.models.ShuffleNetV2([1, 3, 1], widths)
    torch.save(deeper.state_dict(), tmp_path / "deeper.pt")
    less = {k: v for k, v in state.items() if "stage4" not in k}
    torch.save(less, tmp_path / "cut.pt")
    grey = {**state, "conv1.0.weight": torch.ones(24, 1, 3, 3)}
    torch.save(grey, tmp_path / "grey.pt")
    twice = {f"q.{k}": v for k, v in state.items()}
    torch.save(twice | {f"k.{k}": v for k, v in state.items()}, tmp_path / "twice.pt")
    torch.save({"a": 1}, tmp_path / "nothing.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"state_dict": {"encoder.w": torch.ones(2)}}, tmp_path / "other.pt")
    torch.save(net, tmp_path / "module.pt")
    trap = tmp_path / "executed"
    torch.save({"state_dict": state, "x": Trap(trap)}, tmp_path / "trap.pt")
    whole = tmp_path / "whole.safetensors"
    save_file(state, whole)
    for n in (0, 5, 1000, whole.stat().st_size - 9):
        (tmp_path / f"{n}.safetensors").write_bytes(whole.read_bytes()[:n])
    torch.save(state, tmp_path / "whole.pt")
    for n in (0, 5, 1000, (tmp_path / "whole.pt").stat().st_size - 9):
        (tmp_path / f"{n}.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:n])
    before = {k: v.clone() for k, v in state.items()}
    for name, message in {
        "deeper.pt": "does not fit ShuffleNetV2; unknown to the network: stage3.2.",
        "cut.pt": "missing in the file: stage4.0.branch1.0.weight.* and .. more",
        "grey.pt": r"conv1.0.weight is \(24, 1, 3, 3\) in the file, \(24, 3, 3, 3\)",
        "twice.pt": "more than once, under 'q.', 'k.'",
        "nothing.pt": "the keys a, but no tensors",
        "list.pt": "holds no dict",
        "other.pt": "missing in the file: conv1.0.weight",
        "module.pt": "Python objects.*state_dict",
        "trap.pt": "Python objects",
        "gone.pt": "does not exist",
        ".": "is a folder",
        **{f"{n}.safetensors": "incomplete" for n in (0, 5, 1000)},
        **{f"{n}.pt": "incomplete" for n in (0, 5, 1000)},
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            load_weights_(net, tmp_path / name, heads=["fc"])
        text = str(caught.value)
        assert text.startswith(f"weights={str(tmp_path / name)!r}"), text
        assert len(text.splitlines()) == 1 and len(text) < 600
    for path in tmp_path.glob("*9*.*"):
        with pytest.raises(ValueError, match="incomplete"):
            load_weights_(net, path)
    assert not trap.exists()
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    with pytest.raises(ValueError, match="does not fit ShuffleNetV2"):
        tiny(backbone="shufflenet_v2_x0_5", weights=tmp_path / "deeper.pt").fit(X)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"backbone": "resnet_18"}, "did you mean 'resnet18'"),
        ({"backbone": "resnet9"}, "did you mean 'resnet(18|34|50)"),
        ({"backbone": "ResNet-50"}, "did you mean 'resnet50'"),
        ({"backbone": "timm/resnet5"}, "did you mean 'timm/resnet50'"),
        ({"backbone": "timm/test_vit.r16"}, "'timm/test_vit.r160_in1k'"),
        ({"backbone": "open_clip/vit-b-32"}, "did you mean 'open_clip/ViT-B-32'"),
        ({"backbone": "hub/resnet50"}, "'hub/resnet50' is unknown"),
        ({"weights": "IMAGENET"}, "neither a file nor.*IMAGENET1K_V1"),
        ({"weights": "no/such.pt"}, "weights='no/such.pt' does not exist"),
        ({"weights": Path("such")}, "weights='such' does not exist"),
        ({"pooling": "token"}, "pooling='token' is not for backbone='squeezenet1_1'"),
        ({"pooling": "max"}, "pooling='max' is not for"),
        ({"backbone": "timm/test_resnet", "pooling": "token"}, "no class token"),
        ({"backbone": "timm/test_vit", "input_size": 97}, "input_size=.*divisible"),
        ({"input_size": (64,)}, r"input_size=\(64,\) is not a size.*height, width"),
        ({"input_size": (32, 32, 3)}, r"input_size=\(32, 32, 3\) is not a size"),
        ({"input_size": (0, 32)}, r"input_size=\(0, 32\) is not a size"),
        ({"input_size": (9.5, 32)}, r"input_size=\(9.5, 32\) is not a size"),
        ({"batch_size": 0}, "batch_size"),
        ({"precision": "half"}, "precision"),
        ({"pooling": "sum"}, "pooling"),
        ({"device": "nowhere"}, "nowhere|device"),
        ({"backbone": "timm/test_vit", "weights": "a1"}, "which are r160_in1k"),
    ],
)
def test_a_wrong_parameter_is_named(parameters, message):
    for package in ("timm", "open_clip"):
        if package in str(parameters):
            pytest.importorskip(package)
    with pytest.raises((ValueError, RuntimeError), match=message):
        tiny(**parameters).fit(X)


@pytest.mark.parametrize("size", [(64,), (32, 32, 3), (-1, 32)])
def test_a_wrong_size_of_files_is_named(size, files):
    with pytest.raises(ValueError, match="image_size=.* is not a size.*height, width"):
        tiny(image_size=size).fit(files)


@pytest.mark.parametrize(
    "name, extra", [("timm/test_vit", "backbones"), ("open_clip/RN50", "clip")]
)
def test_missing_packages_are_named(name, extra, monkeypatch):
    package = name.partition("/")[0]

    def missing(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("sklabel._core.optional.import_module", missing)
    with pytest.raises(ImportError, match=rf"'{package}'.*sklabel\[{extra}\]"):
        tiny(backbone=name).fit(X)


def test_names_with_weights_of_their_own_are_refused_elsewhere(clip):
    with pytest.raises(ValueError, match="PretrainedTransformer"):
        FixMatchClassifier(backbone=clip).fit(X, np.arange(12) % 2)


def test_nan_weights_are_noticed(tmp_path):
    state = torchvision.models.squeezenet1_1().state_dict()
    state["features.0.weight"] *= np.nan
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match="NaN or infinity for row 0.*weights"):
        tiny(weights=tmp_path / "nan.pt").fit_transform(X)


# -- what a vector is made of


@pytest.mark.parametrize(
    "name, widths",
    [
        ("shufflenet_v2_x0_5", {"auto": 1024, "avg": 1024}),
        ("mobilenet_v3_small", {"auto": 1024, "avg": 576}),
        ("timm/test_resnet", {"auto": 96, "avg": 96, "max": 96}),
        ("timm/test_vit", {"auto": 64, "avg": 64, "max": 64, "token": 64}),
        ("clip", {"auto": 12, "avg": 64, "token": 64}),
    ],
)
def test_pooling(name, widths, request):
    if "/" in name:
        pytest.importorskip("timm")
    name = request.getfixturevalue("clip") if name == "clip" else name
    size = None if "vit" in name or "clip" in name else 64
    found = {}
    for pooling, width in widths.items():
        embedder = tiny(backbone=name, pooling=pooling, input_size=size)
        Z = found[pooling] = embedder.fit_transform(X)
        assert Z.shape == (12, width)
    if "max" in found:
        assert not np.allclose(found["max"], found["avg"])
    if "token" in found:
        assert not np.allclose(found["token"], found["avg"])
    if name == "timm/test_vit":
        np.testing.assert_array_equal(found["auto"], found["token"])


def test_pooling_of_a_transformer_of_torchvision(monkeypatch):
    from torchvision.models import VisionTransformer

    net = VisionTransformer(32, 16, 2, 2, 16, 32).eval()
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda name, weights, **options: net
    )
    tokens = {}
    net.encoder.register_forward_hook(lambda m, i, o: tokens.setdefault("h", o))
    encoder, _ = pretrained_backbone("vit_b_16", None, pooling="avg", input_size=32)
    x = torch.rand(2, 3, 32, 32)
    tokens.clear()
    found = encoder(x)
    torch.testing.assert_close(found, tokens["h"][:, 1:].mean(1))
    assert pickle.loads(pickle.dumps(encoder.body.net.heads)) is not None
    encoder, _ = pretrained_backbone("vit_b_16", None, pooling="token", input_size=32)
    torch.testing.assert_close(encoder(x), tokens["h"][:, 0])


# -- the cache


@pytest.fixture
def embedded(monkeypatch):
    """A list of how many images each batch had that a network has seen."""
    from sklabel._core.net import Net

    seen, step = [], Net.evaluation_step

    def counted(self, batch, training=False):
        seen.append(len(batch))
        return step(self, batch, training)

    monkeypatch.setattr(Net, "evaluation_step", counted)
    return seen


def test_the_same_image_is_embedded_once(embedded, tmp_path):
    cached = tiny(cache_dir=tmp_path / "new" / "folder").fit(X)
    plain = tiny().fit(X).transform(X)
    embedded.clear()
    np.testing.assert_array_equal(cached.transform(X), plain)
    assert sum(embedded) == 12
    # another object, another order, a part, and rows that are repeated
    other = clone(cached).fit(X)
    for rows in (np.arange(12), np.arange(12)[::-1], [5], [3, 3, 3], [0, 11, 0]):
        np.testing.assert_array_equal(other.transform(X[rows]), plain[rows])
    assert sum(embedded) == 12
    more = np.concatenate([X, photos(2, seed=9), photos(2, seed=9)])
    Z = other.transform(more)
    assert sum(embedded) == 14
    np.testing.assert_array_equal(Z[12:14], Z[14:])


def test_whatever_changes_a_vector_is_seen(embedded, tmp_path):
    tiny(cache_dir=tmp_path).fit_transform(X)
    for X2, change in (
        (X, {"random_state": 1}),
        (X, {"input_size": 48}),
        (X, {"precision": "bfloat16"}),
        (X, {"backbone": "mobilenet_v3_small"}),
        (X, {"backbone": "mobilenet_v3_small", "pooling": "avg"}),
        (X[:, :, ::-1], {}),
        (X.astype(np.float32), {}),
        (X[:, :, :20], {}),
    ):
        embedded.clear()
        expected = tiny(**change).fit_transform(X2)
        found = tiny(cache_dir=tmp_path, **change).fit_transform(X2)
        assert sum(embedded) == 24, change
        np.testing.assert_array_equal(found, expected)
    embedded.clear()
    tiny(cache_dir=tmp_path, batch_size=3, verbose=1).fit_transform(X)
    assert not embedded


def test_files_are_known_by_their_content(embedded, tmp_path, files):
    cached = tiny(cache_dir=tmp_path / "cache").fit(files)
    first = cached.transform(files)
    moved = tmp_path / "moved.png"
    moved.write_bytes(Path(files[4]).read_bytes())
    embedded.clear()
    np.testing.assert_array_equal(cached.transform([moved, files[1]]), first[[4, 1]])
    assert not embedded
    # another content, the same name, time and length
    before, other = moved.stat(), Path(files[5]).read_bytes()
    size = max(before.st_size, len(other))
    moved.write_bytes(Path(files[4]).read_bytes().ljust(size, b"\0"))
    cached.transform([moved])
    stat = moved.stat()
    moved.write_bytes(other.ljust(size, b"\0"))
    os.utime(moved, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    np.testing.assert_allclose(cached.transform([moved])[0], first[5], 1e-4, 1e-5)


def test_a_file_is_read_once_for_its_digest(tmp_path, monkeypatch, files):
    mine = [tmp_path / f"{i}.png" for i in range(3)]
    for path, other in zip(mine, files, strict=False):
        path.write_bytes(Path(other).read_bytes())
    read, update = [], ImageFiles.update_digest
    monkeypatch.setattr(
        ImageFiles,
        "update_digest",
        lambda self, row, digest: read.append(row) or update(self, row, digest),
    )
    cached = tiny(cache_dir=tmp_path / "cache").fit(mine)
    cached.transform(mine)
    first = cached.transform(mine)
    assert len(read) == 6  # they are so new that they may change without a sign
    monkeypatch.setattr(vector_cache, "_TICK", 0)
    read.clear()
    for _ in range(3):
        np.testing.assert_array_equal(cached.transform(mine), first)
    assert len(read) == 3
    mine[1].write_bytes(Path(files[5]).read_bytes())  # shows by its size or time
    Z = cached.transform(mine)
    assert len(read) == 4 and not np.array_equal(Z[1], first[1])
    np.testing.assert_array_equal(Z[[0, 2]], first[[0, 2]])


def test_a_search_embeds_once(embedded, tmp_path):
    y = np.arange(12) % 2
    pipe = make_pipeline(tiny(cache_dir=tmp_path), LogisticRegression())
    search = GridSearchCV(pipe, {"logisticregression__C": [0.1, 1, 10]}, cv=3)
    search.fit(X, y).predict(X)
    assert sum(embedded) == 12


def shards(folder):
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "checksum"])
def test_damaged_files_are_embedded_again(damage, embedded, tmp_path):
    cached = tiny(cache_dir=tmp_path).fit(X)
    expected = cached.transform(X)
    (path,) = shards(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-100]
    elif damage == "empty":
        data = b""
    elif damage == "flipped":
        data[-10] ^= 1
    if damage in ("other", "checksum"):
        save_file({"Z": torch.zeros(3), "digests": torch.zeros(3, 16)}, path)
    else:
        path.write_bytes(data)
    embedded.clear()
    with pytest.warns(UserWarning, match="cache_dir is damaged.*embedded again"):
        np.testing.assert_array_equal(cached.transform(X), expected)
    assert sum(embedded) == 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(cached.transform(X), expected)
    assert sum(embedded) == 12


def test_what_was_half_written_is_never_read(embedded, tmp_path, monkeypatch):
    cached = tiny(cache_dir=tmp_path).fit(X)
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: order.append("fsync") or fsync(f))

    def power_cut(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", power_cut)
        with pytest.raises(KeyboardInterrupt):
            cached.transform(X)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    monkeypatch.setattr(os, "replace", lambda *a: order.append("rename") or replace(*a))
    order.clear()
    expected = cached.transform(X)
    assert order == ["fsync", "rename", "fsync"]  # of the file, of its folder
    # what a killed process leaves
    (path,) = shards(tmp_path)
    path.with_suffix(".partial").write_bytes(path.read_bytes()[:50])
    embedded.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(cached.transform(X), expected)
    assert not embedded


@pytest.mark.parametrize(
    "limit, value, written",
    [("_SHARD_BYTES", 1, 2), ("_SHARD_SECONDS", -1, 2), ("_SHARD_SECONDS", 60, 0)],
)
def test_an_interrupted_transform_keeps_what_it_has(
    limit, value, written, embedded, tmp_path, monkeypatch
):
    monkeypatch.setattr(f"sklabel._core.vector_cache.{limit}", value)
    cached = tiny(cache_dir=tmp_path, batch_size=4).fit(X)
    step = cached.net_.evaluation_step

    def interrupted(batch):
        if len(embedded) == 2:
            assert len(shards(tmp_path)) == written  # a killed process would keep
            raise KeyboardInterrupt
        return step(batch)

    cached.net_.evaluation_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        cached.transform(X)
    again = tiny(cache_dir=tmp_path, batch_size=4).fit(X)
    embedded.clear()
    Z = again.transform(X)
    assert sum(embedded) == 4
    np.testing.assert_array_equal(Z, tiny(batch_size=4).fit_transform(X))


def test_images_are_read_alike_whatever_fit_has_seen():
    expected = tiny().fit_transform(X)
    floats = (X / 255).astype(np.float32)
    np.testing.assert_allclose(tiny().fit(X).transform(floats), expected, atol=1e-2)
    np.testing.assert_allclose(tiny().fit(floats).transform(X), expected, atol=1e-2)
    odd = 10 * floats - 5
    embedder = tiny().fit(odd)
    np.testing.assert_allclose(embedder.transform(X), expected, atol=1e-2)
    odd[2] = 0.5  # alone it might be of the usual scale
    np.testing.assert_allclose(
        embedder.transform(odd)[2:3], embedder.transform(odd[2:3]), atol=1e-5
    )
    with pytest.raises(ValueError, match="but PretrainedTransformer was fitted on"):
        tiny().fit(floats).transform(1000 * floats)


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(tmp_path):
    (tmp_path / "file").write_text("no folder")
    expected = tiny().fit_transform(X)
    with pytest.warns(UserWarning, match="cannot be written.*not saved"):
        found = tiny(cache_dir=tmp_path / "file").fit_transform(X)
    np.testing.assert_array_equal(found, expected)


def test_a_cache_is_shared_by_users(embedded, tmp_path, monkeypatch):
    cached = tiny(cache_dir=tmp_path).fit(X)
    before = os.umask(0o027)
    try:
        expected = cached.transform(X)
    finally:
        os.umask(before)
    (path,) = shards(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o640

    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    embedded.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", denied)
        patch.setattr(os, "replace", lambda *a: denied(a[1]))
        with pytest.warns(UserWarning, match="Permission denied") as caught:
            np.testing.assert_array_equal(cached.transform(X), expected)
    assert ["cannot be read" in str(w.message) for w in caught] == [True, False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(cached.transform(X), expected)
    assert sum(embedded) == 12
    # a damaged one may be another's
    path.write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", denied)
        with pytest.warns(UserWarning, match="damaged"):
            np.testing.assert_array_equal(cached.transform(X), expected)


def test_the_cache_in_threads(tmp_path):
    cached = tiny(cache_dir=tmp_path, batch_size=2).fit(X)
    expected, found = tiny().fit_transform(X), {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: cached.transform(X)}))
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for Z in found.values():
        np.testing.assert_allclose(Z, expected, 1e-4, 1e-5)


# -- among other estimators


class VectorsAsRows(PretrainedTransformer):
    """Takes a vector for an image of one row, for scikit-learn's checks."""

    def _check_shape(self, X):
        samples = check_samples(self, X, True)
        self._pixel_range = float(samples.source.min()), float(samples.source.max()) + 1
        return (1, 1, samples.sample_shape[0])

    def _check_X(self, X):
        check_is_fitted(self)
        source = check_samples(self, X, False, self.sample_shape_[2:]).source
        return Samples(source[:, None, None], self.sample_shape_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


@parametrize_with_checks(
    [VectorsAsRows("timm/test_resnet", weights=None, input_size=32, random_state=0)]
)
def test_scikit_learns_checks(estimator, check):
    pytest.importorskip("timm")
    check(estimator)


def test_names_and_frames():
    embedder = tiny().set_output(transform="pandas")
    Z = embedder.fit_transform(X)
    assert isinstance(Z, pd.DataFrame) and Z.dtypes.eq(np.float32).all()
    assert list(Z.columns) == list(embedder.get_feature_names_out())
    assert Z.columns[0] == "pretrainedtransformer0" and Z.shape == (12, 512)
    assert embedder.n_features_in_ == 20 * 24 * 3


def test_seeds_and_what_is_left_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    before = X.copy()
    first = tiny(random_state=1).fit_transform(X)
    np.testing.assert_array_equal(tiny(random_state=1).fit_transform(X), first)
    assert not np.allclose(tiny(random_state=2).fit_transform(X), first)
    floats = (X / 255).astype(np.float32)
    given = floats.copy()
    tiny().fit_transform(floats)
    np.testing.assert_array_equal(floats, given)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    np.testing.assert_array_equal(X, before)


def test_pickled_cloned_saved_and_loaded(tmp_path, files):
    state = torchvision.models.squeezenet1_1().state_dict()
    save_file(state, tmp_path / "w.safetensors")
    embedder = tiny(weights=tmp_path / "w.safetensors").fit(X)
    Z = embedder.transform(X)
    data = pickle.dumps(embedder)
    np.testing.assert_array_equal(pickle.loads(data).transform(X), Z)
    assert not any(name.endswith("_") for name in vars(clone(embedder)))
    assert len(data) < 1.2 * sum(4 * v.numel() for v in state.values())
    if not hasattr(sklabel.embedding, "PretrainedTransformer"):
        pytest.skip("not yet public")
    embedder.save(tmp_path / "saved")
    (tmp_path / "w.safetensors").unlink()  # it is not asked for again
    loaded = sklabel.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.transform(X), Z)
    np.testing.assert_allclose(loaded.transform(files), Z, 1e-4, 1e-5)


@pytest.mark.filterwarnings("ignore::sklabel.CollapseWarning")
@pytest.mark.parametrize("name", ["squeezenet1_1", "timm/test_vit", "clip"])
def test_others_take_it_as_backbone(name, request):
    if "/" in name:
        pytest.importorskip("timm")
    name = request.getfixturevalue("clip") if name == "clip" else name
    size = 32 if name == "squeezenet1_1" else None
    embedder = tiny(backbone=name, input_size=size).fit(X)
    assert not any(p.requires_grad for p in embedder.encoder_.parameters())
    y = np.where(np.arange(12) < 8, np.arange(12) % 2, -1)
    settings = {"max_steps": 1, "batch_size": 4, "random_state": 0}
    clf = FixMatchClassifier(backbone=embedder, lr=1e-3, **settings).fit(X, y)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(
            clf.encoder_.parameters(), embedder.encoder_.parameters(), strict=True
        )
    ]
    assert any(moved)
    np.testing.assert_array_equal(
        embedder.transform(X), tiny(backbone=name, input_size=size).fit_transform(X)
    )
    with pytest.raises(ValueError, match="fitted on samples of shape"):
        FixMatchClassifier(backbone=embedder, **settings).fit(X[:, :9], y)


def test_the_encoder_gives_what_transform_gives():
    embedder = tiny(precision="float32").fit(X)
    x = torch.from_numpy(X).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        h = embedder.encoder_.eval()(x)
    np.testing.assert_allclose(h.numpy(), embedder.transform(X), 1e-4, 1e-5)


@pytest.mark.gpu
def test_on_a_gpu():
    cpu = tiny(device="cpu", precision="float32").fit(X)
    gpu = tiny(device="cuda", precision="float32").fit(X)
    np.testing.assert_allclose(gpu.transform(X), cpu.transform(X), 1e-2, 1e-3)
    low = tiny(device="cuda").fit(X).transform(X)
    assert low.dtype == np.float32 and np.isfinite(low).all()
    loaded = pickle.loads(pickle.dumps(gpu))
    np.testing.assert_allclose(loaded.transform(X), gpu.transform(X), 1e-4, 1e-4)
