"""MoCo: the order of a step, the queue, both versions, split batch normalization."""

import numpy as np
import pytest
import torch
from torch import nn

from sklabel.augment import Contrastive
from sklabel.embedding import MoCoTransformer
from sklabel.embedding._moco import _MoCo, _views
from sklabel.losses import info_nce
from sklabel.modules import Queue, SplitBatchNorm
from tests._golden import cases

X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)


def short(**parameters):
    return MoCoTransformer(**{"max_steps": 3, "random_state": 0, **parameters})


@pytest.mark.parametrize(
    "version, side, crop, blur",
    [("v1", 32, 0.2, 0), ("v1", 64, 0.2, 0), ("v2", 32, 0.08, 0), ("v2", 64, 0.2, 0.5)],
)
def test_views_of_both_versions(version, side, crop, blur):
    view = _views(version, (3, side, side))
    assert view.crop == (crop, 1) and view.blur == blur
    assert view.jitter == (0.4, 0.4, 0.4, 0.4 if version == "v1" else 0.1)
    assert view.jitter_probability == (1 if version == "v1" else 0.8)
    x = torch.rand(2, 3, side, side)
    assert view(x).shape == x.shape


def test_training_golden():
    for case in cases("moco_training"):
        weight, queue = case["weight_initial"], case["queue_initial"]
        encoder = nn.Linear(*weight.shape, bias=False).double()
        encoder.weight.data = torch.tensor(weight.T)
        encoder.n_features_out = weight.shape[1]
        module = _MoCo(
            encoder,
            nn.Identity(),
            weight.shape[1],
            augment=nn.Identity(),
            queue=Queue(*queue.shape).double(),
            temperature=float(case["temperature"]),
            symmetric=False,
            decay=float(case["momentum"]),
            output="backbone",
        )
        module.queue.rows.copy_(torch.tensor(queue))
        optimizer = torch.optim.SGD([encoder.weight], lr=float(case["lr"]))
        for i in range(len(case["loss"])):
            key = module.average[0].weight
            np.testing.assert_allclose(key.T, case["key_weight"][i], rtol=1e-8)
            views = [torch.tensor(case[name][i]) for name in ("view_q", "view_k")]
            loss, module.keys = module.contrast(*views)
            loss.backward()
            gradient = encoder.weight.grad.T
            np.testing.assert_allclose(loss.item(), case["loss"][i], rtol=1e-8)
            np.testing.assert_allclose(gradient, case["grad_weight"][i], 1e-8, 1e-12)
            optimizer.step()
            optimizer.zero_grad()
            module.after_step()
            found = encoder.weight.detach().T
            np.testing.assert_allclose(found, case["query_weight"][i], rtol=1e-8)
            rows = module.queue.rows
            np.testing.assert_allclose(rows, case["queue_after"][i], rtol=1e-8)


def test_symmetric_loss_is_both_directions_against_the_old_queue():
    fitted = short(augment=None, bn_splits=1).fit(X)
    module, x = fitted.net_.module_.eval(), torch.from_numpy(X)
    queue = module.queue.rows.clone()
    q, k = (
        nn.functional.normalize(net(x)) for net in (module.projected, module.average)
    )
    torch.testing.assert_close(module.loss(x, None), 2 * info_nce(q, k, queue, 0.1))
    module.symmetric = False
    torch.testing.assert_close(module.loss(x, None), info_nce(q, k, queue, 0.1))
    assert torch.equal(module.queue.rows, queue)


def test_the_queue_fills_with_keys():
    fitted = short(queue_size=200, max_steps=1).fit(X)
    queue = fitted.net_.module_.queue
    assert fitted.queue_size_ == 200 and int(queue.pointer) == 128  # both views
    fitted = short(queue_size=200, symmetric=False, max_steps=1).fit(X)
    assert int(fitted.net_.module_.queue.pointer) == 64
    assert short().fit(X).queue_size_ == 64
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(200))


def test_scoring_leaves_the_queue_and_the_average_alone():
    fitted = short().fit(X)
    before = {k: v.clone() for k, v in fitted.net_.module_.state_dict().items()}
    fitted.score(X)
    for name, value in fitted.net_.module_.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert fitted.net_.module_.keys is None


def test_the_average_follows_slowly():
    settings = {"max_steps": 1, "ema_decay": 0.75, "warmup_epochs": 0}
    begin = short(**settings, lr=1e-30).fit(X).net_.module_.parts()
    module = short(**settings, lr=1e-2).fit(X).net_.module_
    start, now = (dict(m.named_parameters()) for m in (begin, module.parts()))
    for name, average in module.average.named_parameters():
        assert not average.requires_grad
        assert not torch.equal(start[name], now[name])
        expected = 0.75 * start[name] + 0.25 * now[name]
        torch.testing.assert_close(average, expected, rtol=1e-4, atol=1e-6)


def test_the_average_has_statistics_of_its_own():
    # of the same images, but by other weights
    module = short(lr=1e-2, warmup_epochs=0).fit(X).net_.module_
    own = dict(module.parts().named_buffers())
    for name, found in module.average.named_buffers():
        if "running" in name:
            assert not torch.allclose(found, own[name], rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(found, own[name])  # as many batches


def test_versions():
    images = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), dtype=np.uint8)
    heads, views = {}, {}
    for version in ("v1", "v2"):
        module = short(version=version, projection_hidden=9).fit(images).net_.module_
        heads[version] = [
            m.out_features for m in module.project.modules() if hasattr(m, "weight")
        ]
        views[version] = module.augment
    assert heads == {"v1": [128], "v2": [9, 128]}
    assert views["v1"].jitter == (0.4,) * 4 and views["v1"].jitter_probability == 1
    assert views["v2"].jitter == (0.4, 0.4, 0.4, 0.1)
    assert all(isinstance(view, Contrastive) for view in views.values())


@pytest.mark.parametrize("n_splits, expected", [(8, True), (1, False)])
def test_batch_norm_is_split_in_both_networks(n_splits, expected):
    module = short(bn_splits=n_splits).fit(X).net_.module_
    for net in (module.parts(), module.average):
        assert any(isinstance(m, SplitBatchNorm) for m in net.modules()) is expected


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.BatchNorm2d(8, momentum=None),
        nn.BatchNorm2d(8, affine=False),
        nn.GroupNorm(2, 8),
    ],
    ids=["batch statistics", "cumulative", "plain", "groups"],
)
def test_networks_with_norms_of_any_kind(norm):
    images = np.random.default_rng(0).integers(0, 256, (24, 9, 9, 3), dtype=np.uint8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU())
    settings = {"backbone": net, "bn_splits": 4, "batch_size": 8, "max_steps": 4}
    fitted = MoCoTransformer(**settings, random_state=0).fit(images)
    assert np.isfinite(fitted.transform(images)).all()
    if norm.__dict__.get("momentum", 0) is None:
        statistics = fitted.encoder_.body[1].norm
        assert statistics.running_mean.abs().max() > 0
