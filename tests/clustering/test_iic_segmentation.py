"""IIC for segmentation: textures are told apart, maps keep their frame."""

import pickle
import warnings
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import sklabel
from sklabel import CollapseWarning
from sklabel.clustering._iic_segmentation import (
    IICSegmenter,
    _IICSegmentation,
    _published_net,
    _random_moves,
)
from sklabel.metrics import clustering_accuracy


def textures(n=32, side=24):
    """Return images of dashes along rows on one side and along columns on the other.

    Dashes are black or white by chance: brightness tells nothing of farther pixels.
    """
    rng = np.random.default_rng(0)
    columns = np.indices((side, side))[1]
    x, y = np.zeros((n, side, side), np.float32), np.zeros((n, side, side), int)
    for i in range(n):
        cut = rng.integers(side // 3, 2 * side // 3)
        y[i] = (columns < cut) ^ (rng.random() < 0.5)
        along, down = (rng.integers(0, 2, (side, side // 3)).repeat(3, 1) for _ in "ab")
        x[i] = np.where(y[i], along, down.T)
    x += rng.normal(0, 0.1, x.shape)
    return x.clip(0, 1), y


X, Y = textures()


def short(**parameters):
    given = {"n_clusters": 2, "half_side": 2, "max_epochs": 1, "batch_size": 16}
    return IICSegmenter(**{"random_state": 0, **given, **parameters})


def quiet(segmenter, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        return segmenter.fit(x)


@pytest.mark.parametrize("collapsed", [False, True])
def test_the_loss_is_the_slow_loop(collapsed):
    x = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    segmenter = short(
        backbone=torch.nn.Conv2d(1, 3, 3, padding=1),
        augment=None,
        flip=1.0,  # the view is the mirrored image
        rotate=0.0,
        zoom=0.0,
        half_side=1,
        marginal_weight=1.3,
        collapsed=collapsed,
        max_epochs=3,
        lr=0.1,
    )
    module = quiet(segmenter, x).net_.module_.eval()
    loss, figures = module.loss(torch.from_numpy(x)[:, None], None)
    p1 = segmenter.predict_proba(x).astype(float)
    p2 = segmenter.predict_proba(x[:, :, ::-1].copy())[..., ::-1].astype(float)
    assert abs(p1 - p2).max() > 1e-3

    def joint(down, right):
        total = np.zeros((2, 2))
        for n, row, column in np.ndindex(x.shape):
            if 0 <= row + down < 5 and 0 <= column + right < 6:
                pair = p1[n, :, row + down, column + right], p2[n, :, row, column]
                total += np.outer(*pair)
        return total

    def minus_information(p, weight):
        p = (p + p.T) / 2 / p.sum()
        log_marginals = np.log(p.sum(1))[:, None] + np.log(p.sum(0))
        return -(p * (np.log(p) - weight * log_marginals)).sum()

    joints = [joint(*place) for place in product((-1, 0, 1), repeat=2)]
    joints = [sum(joints)] if collapsed else joints
    expected = np.mean([minus_information(p, 1.3) for p in joints])
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-3)
    information = -minus_information(joint(0, 0), 1.0)
    np.testing.assert_allclose(figures["information"], information, rtol=1e-2)


def test_a_turned_view_is_brought_back_before_pixels_are_paired():
    coarse = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x = F.interpolate(coarse, (32, 32), mode="bicubic")[:, 0].numpy()
    segmenter = short(
        backbone=torch.nn.Conv2d(1, 3, 1),  # pixel by pixel, so turned with the image
        augment=None,
        flip=0.5,
        rotate=60.0,
        zoom=0.2,
        max_epochs=60,
        lr=0.1,
    )
    module = quiet(segmenter, x).net_.module_.eval()
    p = segmenter.predict_proba(x).transpose(1, 0, 2, 3).reshape(2, -1)
    joint = p @ p.T / p.shape[1]
    most = (joint * np.log(joint / np.outer(joint.sum(0), joint.sum(1)))).sum()
    found = [
        float(module.loss(torch.from_numpy(x)[:, None], None)[1]["information"])
        for _ in range(5)
    ]
    # interpolation twice costs some; another place in the image far more
    assert most > 0.5 and np.mean(found) > 0.8 * most


def weights(segmenter):
    return torch.cat([p.detach().ravel() for p in segmenter.encoder_.parameters()])


def test_textures_without_one_label():
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        views = {"half_side": 3, "rotate": 10, "zoom": 0.1}
        settings = {"max_epochs": 12, "lr": 1e-2, "precision": "float32"}
        segmenter = short(**settings, **views).fit(X)
    # chance: 0.5
    assert clustering_accuracy(Y.ravel(), segmenter.labels_.ravel()) > 0.85
    # the place of a pixel is not its cluster
    assert np.abs(segmenter.labels_.mean(0) - 0.5).mean() < 0.25
    assert segmenter.score(X) > 0.15  # at best log 2 = 0.69


def test_what_fit_sets():
    x = X[:, :20]  # not square
    segmenter = quiet(short(n_clusters=3), x)
    p = segmenter.predict_proba(x)
    assert p.shape == (32, segmenter.n_clusters_, 20, 24) and p.dtype == np.float32
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert segmenter.labels_.shape == (32, 20, 24)
    np.testing.assert_array_equal(segmenter.labels_, segmenter.predict(x))
    np.testing.assert_array_equal(segmenter.labels_, p.argmax(1))
    assert np.unique(segmenter.labels_).tolist() == list(range(segmenter.n_clusters_))
    np.testing.assert_array_equal(quiet(short(n_clusters=3), x).labels_, p.argmax(1))
    # an image's map does not depend on the images it comes with
    np.testing.assert_allclose(segmenter.predict_proba(x[3:4]), p[3:4], atol=1e-4)
    figures = segmenter.net_.history[-1]
    assert {"cluster_loss", "overcluster_loss", "clusters_used"} < set(figures)
    maps = segmenter.labels_
    rows, columns = (np.diff(maps, axis=axis).ravel() == 0 for axis in (1, 2))
    agreement = np.concatenate([rows, columns]).mean()
    np.testing.assert_allclose(figures["neighbor_agreement"], agreement, rtol=1e-6)
    assert segmenter.score(x) == segmenter.score(x)


def test_saved_pickled_channels_first_and_generators_left_alone(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (12, 9, 11, 3), dtype=np.uint8)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    segmenter = quiet(short(), x)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    p = segmenter.predict_proba(x)
    segmenter.save(tmp_path)
    for again in (pickle.loads(pickle.dumps(segmenter)), sklabel.load(tmp_path)):
        np.testing.assert_allclose(again.predict_proba(x), p, atol=1e-6)
    first = quiet(short(), x.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(first.predict_proba(x.transpose(0, 3, 1, 2)), p)


def test_a_broken_training_continues_to_the_same_end(tmp_path, monkeypatch):
    whole = quiet(short(max_epochs=4), X)
    after_epoch = _IICSegmentation.after_epoch

    def breaks(self, net, samples):
        figures = after_epoch(self, net, samples)
        if len(net.history) == 2:
            raise RuntimeError("power cut")
        return figures

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        patch.setattr(_IICSegmentation, "after_epoch", breaks)
        quiet(short(max_epochs=4, checkpoint_dir=tmp_path), X)
    again = quiet(short(max_epochs=4, checkpoint_dir=tmp_path), X)
    torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(7, 9, 3), (4, 5), (6, 6, 1)])
def test_odd_sizes_and_channels(shape):
    x = np.random.default_rng(0).integers(0, 256, (10, *shape), dtype=np.uint8)
    segmenter = quiet(short(), x)
    assert segmenter.predict(x).shape == (10, *shape[:2])
    assert np.isfinite(segmenter.predict_proba(x)).all()


@pytest.mark.parametrize("moves", [(1.0, 0, 0), (0.0, 90, 0.3), (0.5, 20, 0.2)])
def test_the_second_view_is_brought_back(moves):
    torch.manual_seed(0)
    side = torch.linspace(-1, 1, 40)
    smooth = (3 * side[:, None] + 2 * side[None, :30]).sin() + side[None, :30]
    x = smooth.expand(6, 1, 40, 30)
    there, back = _random_moves(x, *moves)

    def move(image, matrix):
        grid = F.affine_grid(matrix, x.shape, align_corners=False)
        return F.grid_sample(image, grid, align_corners=False), grid

    again, grid = move(move(x, there)[0], back)
    middle = (grid.abs() < 0.9).all(-1)[:, None]
    middle[:, :, :4] = middle[:, :, -4:] = False
    middle[..., :4] = middle[..., -4:] = False
    assert middle.float().mean() > 0.3
    assert (again - x)[middle].abs().max() < 0.05


def test_a_network_that_moves_with_the_image_has_nothing_to_lose():
    # one-hot maps of the pixels' own values are perfect answers

    class Two(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x, 1 - x], 1)

    encoder = torch.nn.Module()
    encoder.body, encoder.mean, encoder.std = Two(), 0.0, 1.0
    module = _IICSegmentation(
        encoder,
        overcluster=None,
        head=None,
        augment=torch.nn.Identity(),
        marginal_weight=1.0,
        overcluster_epochs=1,
        cluster_epochs=1,
        half_side=0,
        collapsed=False,
        flip=1.0,
        rotate=0.0,
        zoom=0.0,
    )
    x = torch.from_numpy((X > 0.5)[:, None] * 1.0).float()
    loss = module.information_loss(*module.views(x, lambda p: 50 * p))
    torch.testing.assert_close(float(loss), -np.log(2), atol=0.01, rtol=0)


def test_the_published_network():
    net = _published_net((3, 64, 70), 1.0)
    sizes = [m.out_channels for m in net if isinstance(m, torch.nn.Conv2d)]
    assert sizes == [64, 128, 256, 256, 512, 512]
    assert net(torch.zeros(2, 3, 64, 70)).shape == (2, 512, 32, 35)
    net = _published_net((3, 70, 12), 0.5)
    assert net(torch.zeros(2, 3, 70, 12)).shape == (2, 128, 70, 12)


def test_gradients_of_a_narrow_network_in_bfloat16():
    torch.manual_seed(0)
    net, x = _published_net((1, 64, 64), 0.1), torch.rand(3, 1, 64, 64)
    assert all(p.shape[0] % 16 == 0 for p in net.parameters())
    gradients = []
    for reduced in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            (net(x)[:, 0].float() ** 2).mean().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.ndim == 4])
    for exact, rough in zip(*gradients, strict=True):
        assert (rough - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("side, field", [(20, 7), (64, 30)])
def test_what_a_pixel_sees(side, field):
    net = _published_net((1, side, side), 0.1).eval()
    x = torch.zeros(1, 1, side, side, requires_grad=True)
    middle = net(x).shape[2] // 2
    net(x + torch.rand(1, 1, side, side))[0, :, middle, middle].sum().backward()
    seen = x.grad[0, 0].abs().sum(0).nonzero()
    assert field - 2 <= len(seen) <= field


def test_a_backbone_of_the_user():
    body = torch.nn.Sequential(torch.nn.Conv2d(1, 5, 3, 2), torch.nn.ReLU())
    before = body[0].weight.detach().clone()
    segmenter = quiet(short(backbone=body), X)
    assert segmenter.labels_.shape == X.shape
    assert torch.equal(body[0].weight, before)
    assert not torch.equal(segmenter.encoder_.body[0].weight, before)
    by_name = quiet(short(backbone="resnet8", max_steps=1), X)
    assert by_name.labels_.shape == X.shape
    trained = quiet(short(backbone=segmenter, max_steps=1, lr=1e-8), X).encoder_
    torch.testing.assert_close(
        trained.body[0].weight, segmenter.encoder_.body[0].weight, atol=1e-6, rtol=0
    )
    flat = torch.nn.Sequential(body, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(ValueError, match=r"Sequential.*\(2, 5\).*maps"):
        short(backbone=flat).fit(X)


def test_what_is_refused():
    with pytest.raises(ValueError, match="vectors of length 6.*image_shape"):
        short().fit(np.zeros((9, 6)))
    with pytest.raises(ValueError, match="half_side=24.*shorter side.*24"):
        short(half_side=24).fit(X)
    with pytest.raises(ValueError, match="shape"):
        quiet(short(), X).predict(X[:, :10])


def test_collapse_is_said_with_what_to_change():
    with pytest.warns(CollapseWarning, match="max_epochs=1, .*marginal_weight="):
        segmenter = short(n_clusters=4).fit(np.zeros_like(X))
    assert segmenter.n_clusters_ < 4
    assert segmenter.predict_proba(X).shape[1] == segmenter.n_clusters_


@pytest.mark.parametrize("marginal_weight", [1.0, 1.5])
def test_views_that_say_nothing_are_told(marginal_weight):
    settings = {"marginal_weight": marginal_weight, "lr": 1e-8}
    with pytest.warns(CollapseWarning, match="information 0.* at best 0.69. Raise lr="):
        short(**settings).fit(X)


def test_views_that_share_nothing_at_some_displacements():
    x = np.random.default_rng(0).random((6, 8, 8), dtype=np.float32)
    segmenter = quiet(short(half_side=7, rotate=45, batch_size=2, max_epochs=4), x)
    assert np.isfinite(segmenter.net_.history[:, "train_loss"]).all()


def test_labels_are_those_of_the_outputs_that_are_kept():
    x = np.random.default_rng(0).random((6, 64, 64), dtype=np.float32)
    settings = {"half_side": 0, "max_steps": 2, "batch_size": 3}
    settings |= {"precision": "float32", "overcluster_epochs": 0}
    segmenter = quiet(short(n_clusters=20, **settings), x)
    assert 1 < segmenter.n_clusters_ < 20
    np.testing.assert_array_equal(segmenter.predict(x), segmenter.labels_)
    assert np.unique(segmenter.labels_).tolist() == list(range(segmenter.n_clusters_))


def test_files_that_cannot_be_read(tmp_path):
    for i, image in enumerate(X[:6]):
        grey = Image.fromarray((image * 255).astype(np.uint8))
        grey.save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    files = sorted(map(str, tmp_path.glob("*.png")))
    with pytest.warns(UserWarning, match="left out"):
        segmenter = quiet(short(on_error="skip", image_size=24), files)
    bad = np.arange(6) == 3
    assert (segmenter.labels_[bad] == -1).all()
    assert (segmenter.labels_[~bad] >= 0).all()
    with pytest.warns(UserWarning):
        p = segmenter.predict_proba(files)
    assert np.isnan(p[bad]).all() and np.isfinite(p[~bad]).all()


def test_training_goes_on_with_what_was_learned():
    segmenter = quiet(short(warm_start=True), X)
    before = weights(segmenter).clone()
    head = segmenter.net_.module_.head.weight.detach().clone()
    quiet(segmenter.set_params(lr=1e-8, max_steps=1), X)
    torch.testing.assert_close(weights(segmenter), before, atol=1e-5, rtol=0)
    torch.testing.assert_close(segmenter.net_.module_.head.weight, head)
    quiet(segmenter.set_params(n_clusters=4, n_overclusters=10), X)
    torch.testing.assert_close(weights(segmenter), before, atol=1e-5, rtol=0)
    assert segmenter.n_clusters_ > 2
