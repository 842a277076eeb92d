"""Encoders by name, by module and from an embedder."""

import numpy as np
import pytest
import torch
from torch import nn

from sklabel.backbones import build_backbone
from sklabel.classification import EmbeddingClassifier
from sklabel.clustering import TURTLEClusterer
from sklabel.embedding import SimCLRTransformer

OWN = ["auto", "resnet8", "resnet9", "wrn_28_2", "wrn_28_8"]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (4, 17, 9), (2, 50, 90)])
def test_own_networks(name, shape):
    if name == "wrn_28_8" and shape != (1, 8, 8):
        pytest.skip("23 million weights: once is enough")
    encoder = build_backbone(name, shape)
    h = encoder(torch.rand(3, *shape))
    assert h.shape == (3, encoder.n_features_out)
    h.sum().backward()
    grads = [p.grad for p in encoder.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize(
    "name, n_features",
    [
        ("resnet18", 512),
        ("convnext_tiny", 768),
        ("mobilenet_v3_small", 1024),
        ("efficientnet_b0", 1280),
        ("densenet121", 1024),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_of_torchvision(name, n_features, channels):
    encoder = build_backbone(name, (channels, 32, 32)).eval()
    assert encoder.n_features_out == n_features
    assert encoder(torch.rand(2, channels, 32, 32)).shape == (2, n_features)


@pytest.mark.filterwarnings("ignore:The default weight init:FutureWarning")
@pytest.mark.parametrize(
    "name, n_features, side",
    [
        ("squeezenet1_1", 512, 48),  # its classifier is a convolution, not a Linear
        ("googlenet", 1024, 32),  # two more heads while it is trained
        ("vit_b_16", 768, 224),
        ("swin_t", 768, 48),
    ],
)
def test_networks_of_another_build(name, n_features, side):
    if name == "vit_b_16":  # 86 million weights: without them, shape for shape
        with torch.device("meta"):
            encoder = build_backbone(name, (3, side, side))
        assert encoder.n_features_out == n_features
        return
    encoder = build_backbone(name, (3, side, side))
    assert encoder.n_features_out == n_features
    h = encoder.train()(torch.rand(2, 3, side, side))
    assert h.shape == (2, n_features)
    h.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


class _Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    "spec, shape",
    [
        ("alexnet", (3, 32, 32)),
        (nn.Linear(3, 2), (5,)),
        (nn.Conv2d(1, 2, 3), (3, 9, 9)),
        (nn.Flatten(0), (3, 9, 9)),
        (_Pair(), (3, 9, 9)),
    ],
    ids=["too small", "vectors", "channels", "one row for all", "a tuple"],
)
def test_a_network_that_does_not_fit_is_named(spec, shape):
    name = spec if isinstance(spec, str) else type(spec).__name__
    with pytest.raises(ValueError) as caught:
        build_backbone(spec, shape)
    message = str(caught.value)
    assert f"backbone={name}" in message.replace("'", "") and str(shape) in message
    assert len(message.splitlines()) == 1


def test_a_vision_transformer_wants_its_own_size():
    # on the meta device: 86 million weights need not be drawn
    with torch.device("meta"), pytest.raises(ValueError, match="224.*Resize"):
        build_backbone("vit_b_16", (3, 32, 32))


def test_small_images_keep_their_pixels_in_a_resnet():
    small, large = (build_backbone("resnet18", (3, s, s)).body for s in (32, 96))
    assert small.conv1.stride == (1, 1) and isinstance(small.maxpool, nn.Identity)
    assert large.conv1.stride == (2, 2) and isinstance(large.maxpool, nn.MaxPool2d)


def test_large_images_are_reduced_first():
    encoder = build_backbone("auto", (3, 224, 224)).eval()
    stem = [m for m in encoder.body if not hasattr(m, "shortcut")]
    h = torch.rand(1, 3, 224, 224)
    for layer in stem:
        h = layer(h)
    assert max(h.shape[2:]) <= 40


def test_vectors():
    encoder = build_backbone("auto", (7,))
    assert encoder(torch.rand(5, 7)).shape == (5, encoder.n_features_out)
    with pytest.raises(ValueError, match="resnet8.*needs images.*image_shape"):
        build_backbone("resnet8", (7,))


def test_published_size_of_the_wide_resnet():
    # 1.467 million with a 10-class head of 1,290
    encoder = build_backbone("wrn_28_2", (3, 32, 32))
    n_weights = sum(p.numel() for p in encoder.parameters())
    assert abs(n_weights + 1290 - 1_467_610) < 2000


def test_a_module_is_copied_and_frozen_layers_stay_frozen():
    body = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 3), nn.ReLU())
    body[0].requires_grad_(False)
    encoder = build_backbone(body, (3, 9, 9))
    assert encoder.n_features_out == 4  # maps are averaged
    assert encoder.body is not body
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {"body.1.weight", "body.1.bias"}
    assert [p.requires_grad for p in body.parameters()] == [False, False, True, True]


def test_input_is_standardized():
    mean, std = torch.full((3, 1, 1), 0.25), torch.full((3, 1, 1), 0.5)
    encoder = build_backbone(nn.Identity(), (3, 4, 4), mean, std)
    x = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(encoder(x), ((x - 0.25) / 0.5).mean((2, 3)))


def test_measuring_the_width_leaves_the_network_alone():
    body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12))
    encoder = build_backbone(body, (3, 2, 2))
    assert encoder.training
    assert encoder.body[1].num_batches_tracked == 0


@pytest.mark.parametrize("name", ["resnet9000", "", "fcn_resnet50"])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="is unknown.*Known are"):
        build_backbone(name, (3, 32, 32))


@pytest.mark.parametrize(
    "name, meant", [("resnet_18", "resnet18"), ("WRN-28-2", "wrn_28_2")]
)
def test_close_names_are_named(name, meant):
    with pytest.raises(ValueError, match=f"did you mean.*'{meant}'"):
        build_backbone(name, (3, 32, 32))


def test_open_clip_needs_its_weights():
    pytest.importorskip("open_clip")
    with pytest.raises(ValueError, match="PretrainedTransformer"):
        build_backbone("open_clip/ViT-B-32", (3, 224, 224))


def test_embedders():
    x = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    with pytest.raises(ValueError, match="call fit on the embedder first"):
        build_backbone(SimCLRTransformer(), (5,))
    fitted = SimCLRTransformer(max_steps=1, random_state=0).fit(x)
    with pytest.raises(ValueError, match=r"shape \(5,\).*\(6,\)"):
        build_backbone(fitted, (6,))
    encoder = build_backbone(fitted, (5,))
    assert encoder is not fitted.encoder_
    for a, b in zip(
        encoder.state_dict().values(),
        fitted.encoder_.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b)
    for layers in (TURTLEClusterer(2, n_steps=1), EmbeddingClassifier()):
        layers.fit(x, np.where(np.arange(20) < 8, np.arange(20) % 2, -1))
        with pytest.raises(ValueError, match="er has trained no encoder"):
            build_backbone(layers, (5,))


def test_timm():
    pytest.importorskip("timm")
    encoder = build_backbone("timm/resnet10t", (1, 32, 32))
    assert encoder(torch.rand(2, 1, 32, 32)).shape == (2, encoder.n_features_out)


class _Returning(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(4, 3), kind

    def forward(self, x):
        h = self.layer(x)
        return {"tuple": (h, h), "dict": {"h": h}, "number": h.mean()}[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "dict", "number"])
def test_a_network_that_returns_no_vectors_is_told_what_to_return(kind):
    with pytest.raises(ValueError, match=r"it returns a \w+.*tensor of shape \(B, D\)"):
        build_backbone(_Returning(kind), (4,))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_named(kind):
    with pytest.raises(ValueError, match=rf"weights are {kind}: give backbone.float"):
        build_backbone(nn.Linear(4, 3).to(kind), (4,))


def test_a_compiled_network_is_refused():
    script = torch.jit.script(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"the nn\.Module that it was made from"):
        build_backbone(script, (4,))


def test_lazy_layers_learn_their_width_in_the_fit():
    x = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    lazy = nn.Sequential(nn.LazyLinear(7), nn.ReLU(), nn.LazyLinear(3))
    embedder = SimCLRTransformer(backbone=lazy, max_epochs=1, random_state=0)
    z = embedder.fit(x).transform(x)
    assert z.shape == (20, 3)
    assert nn.parameter.is_lazy(lazy[0].weight)
    np.testing.assert_array_equal(embedder.fit(x).transform(x), z)
