"""SwAV: the order of a step, queue, frozen prototypes, small crops."""

import itertools

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from sklabel.embedding import SimCLRTransformer, SwAVTransformer
from sklabel.embedding._swav import _SwAV, _views
from sklabel.modules import Prototypes
from tests._golden import cases

X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)


def short(**parameters):
    given = {"max_steps": 3, "n_prototypes": 20, "projection_hidden": 32}
    return SwAVTransformer(**{**given, "random_state": 0, **parameters})


def close(found, expected):
    if isinstance(found, torch.Tensor):
        found = found.detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_training_golden():
    for case in cases("swav_training"):
        backbone = nn.Identity()
        backbone.n_features_out = case["prototypes_initial"].shape[1]
        prototypes = Prototypes(*case["prototypes_initial"].shape[::-1]).double()
        prototypes.weight.data = torch.tensor(case["prototypes_initial"])
        prototypes.normalize_()
        module = _SwAV(
            backbone,
            nn.Identity(),
            backbone.n_features_out,
            augment=nn.Identity(),
            small_augment=nn.Identity(),
            prototypes=prototypes,
            queue_size=int(case["queue_size"]),
            temperature=float(case["temperature"]),
            epsilon=float(case["epsilon"]),
            n_iterations=int(case["n_iterations"]),
            n_small_crops=int(case["n_crops"]) - 2,
            queue_start=0,
            frozen_epochs=0,
            output="backbone",
        ).double()
        module.queued = True
        weight = prototypes.weight
        optimizer = torch.optim.SGD([weight], lr=float(case["lr"]))
        for i, embeddings in enumerate(case["embeddings"]):
            module.prototypes_frozen = i < int(case["freeze_steps"])
            z = torch.tensor(embeddings, requires_grad=True)
            close(weight, case["prototypes_used"][i])
            loss = module.swap(z.unflatten(0, (-1, int(case["n_samples"]))))
            loss.backward()
            close(loss, case["loss"][i])
            close(z.grad, case["grad_embeddings"][i])
            expected = case["grad_prototypes"][i]
            if module.prototypes_frozen:
                assert weight.grad is None and not expected.any()
            else:
                close(weight.grad, expected)
            close(module.queue, case["queue_after"][i])
            optimizer.step()
            optimizer.zero_grad()
            last = weight.detach().clone()
            module.after_step()
        close(last, case["prototypes_final"])


def test_frozen_prototypes_do_not_move_at_all():
    settings = {"max_steps": None, "weight_decay": 0.5, "optimizer": "adamw"}
    start = short(max_steps=1, lr=1e-9).fit(X).net_.module_.prototypes.weight
    frozen = short(**settings, max_epochs=2, frozen_epochs=2).fit(X)
    torch.testing.assert_close(frozen.net_.module_.prototypes.weight, start)
    free = short(**settings, max_epochs=2, frozen_epochs=1).fit(X)
    found = free.net_.module_.prototypes.weight
    assert not torch.allclose(found, start)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(20))


def test_the_queue_starts_when_told():
    settings = {"max_steps": None, "max_epochs": 3, "batch_size": 32, "queue_size": 40}
    late = short(**settings, queue_start=3).fit(X).net_.module_
    assert not late.queue.any()
    early = short(**settings, queue_start=2).fit(X).net_.module_
    assert early.queue.any(2).all() and early.queue.shape == (2, 40, 128)
    before = early.queue.clone()
    short(**settings).fit(X).score(X)
    assert torch.equal(early.queue, before)


@pytest.mark.parametrize("side, small_side, blur", [(32, 14, 0), (70, 30, 0.5)])
def test_views_of_both_sizes(side, small_side, blur):
    x = torch.rand(2, 3, side, side)
    large, small = _views(x.shape[1:])
    assert large.blur == small.blur == blur
    assert large(x).shape == x.shape
    assert small(x).shape == (2, 3, small_side, small_side)


def test_small_crops():
    images = np.random.default_rng(0).integers(0, 256, (12, 21, 28, 3), dtype=np.uint8)
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            seen.append(tuple(x.shape))
            return self.layer(x)

    fitted = short(n_small_crops=3, backbone=Spy(), batch_size=6, max_steps=1)
    fitted.fit(images)
    assert (12, 3, 21, 28) in seen and (18, 3, 9, 12) in seen
    module = fitted.net_.module_
    assert module.small_augment.crop == (0.05, 0.14)
    assert module.augment.crop == (0.14, 1.0)
    # vectors have no size: small crops are more damaged
    assert np.isfinite(short(n_small_crops=2).fit_transform(X)).all()


@pytest.mark.parametrize("n_prototypes", [0, 1])
def test_one_prototype_is_refused(n_prototypes):
    with pytest.raises(ValueError, match="n_prototypes"):
        short(n_prototypes=n_prototypes).fit(X)


def prototypes(**parameters):
    """Return the prototypes after each step."""
    found = []

    class Look(Callback):
        def on_batch_end(self, net, **kwargs):
            found.append(net.module_.prototypes.weight.detach().clone())

    settings = {"net_params": {"callbacks": [Look]}, "batch_size": 16, "lr": 0.1}
    short(**{**settings, "warmup_epochs": 0, "max_steps": 12, **parameters}).fit(X)
    return torch.stack(found)


@pytest.mark.parametrize(
    "settings, n_frozen",
    [
        ({"frozen_steps": 3}, 3),
        ({"frozen_steps": 0}, 0),
        ({"frozen_steps": 5, "frozen_epochs": 1}, 5),
        ({"frozen_epochs": 0.5}, 2),
        ({"frozen_epochs": 1}, 4),
        ({"frozen_epochs": 1.25}, 5),
    ],
)
def test_prototypes_are_frozen_for_steps_or_for_parts_of_epochs(settings, n_frozen):
    assert len(X) == 64  # four steps in an epoch
    found = prototypes(**settings)
    moved = (found[1:] != found[:-1]).any(2).any(1)
    if n_frozen:
        assert not moved[: n_frozen - 1].any()
    assert moved[max(0, n_frozen - 1) :].all()


def test_the_rate_ends_where_it_is_told():
    settings = {"max_steps": 200, "warmup_epochs": 0, "lr": 0.2, "final_lr": 0.05}
    rates = short(**settings, batch_size=32).fit(X).net_.history[:, "lr"]
    assert rates[-1] == pytest.approx(0.05, rel=1e-2) and max(rates) <= 0.2
    scaled = short(**settings, batch_size=32, lr_scaling="linear").fit(X)
    np.testing.assert_allclose(scaled.net_.history[:, "lr"], np.multiply(rates, 1 / 8))
    with pytest.raises(ValueError, match='final_lr=0.05 is for schedule="cosine"'):
        short(schedule="constant", final_lr=0.05).fit(X)
    with pytest.raises(ValueError, match="final_lr=1 is larger than lr=0.5"):
        short(lr=0.5, final_lr=1).fit(X)


def test_small_crops_that_the_backbone_refuses_are_named():
    x = np.random.default_rng(0).random((8, 12, 12)).astype(np.float32)
    maps = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    given = {"max_epochs": 1, "random_state": 0}
    for backbone in (maps, fixed):
        with pytest.raises(ValueError, match="n_small_crops=2 needs a backbone"):
            SwAVTransformer(backbone=backbone, n_small_crops=2, **given).fit(x)
        SwAVTransformer(backbone=backbone, **given).fit(x)


def test_small_crops_of_ones_own_that_the_backbone_refuses_are_named():
    x = np.random.default_rng(0).random((8, 12, 12)).astype(np.float32)
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    given = {"max_epochs": 1, "random_state": 0, "n_small_crops": 2}
    sizes = itertools.cycle([6, 7])
    for backbone, crop, shapes in (
        (fixed, lambda x: x[..., :6, :6], r"\(8, 1, 6, 6\)"),
        (nn.Flatten(), lambda x: x[..., :6, :6], r"\(8, 1, 6, 6\)"),
        ("auto", lambda x: x[..., : next(sizes)], r"\(8, 1, 12, 6\) and \(8, 1, 12, 7"),
    ):
        with pytest.raises(
            ValueError, match=f"small_augment returns crops of shape {shapes}"
        ):
            SwAVTransformer(backbone=backbone, small_augment=crop, **given).fit(x)


class Pooled(nn.Module):
    """A backbone whose output is of a type of its own, or not finite."""

    def __init__(self, dtype=torch.float32, factor=1.0):
        super().__init__()
        self.maps = nn.Conv2d(1, 4, 3)
        self.dtype, self.factor = dtype, factor

    def forward(self, x):
        return self.maps(x).mean((2, 3)).to(self.dtype) * self.factor


def test_a_backbone_that_returns_float16():
    x = np.random.default_rng(0).random((8, 12, 12)).astype(np.float32)
    for precision in ("auto", "float32", "bfloat16"):
        embedder = SwAVTransformer(
            backbone=Pooled(torch.float16),
            n_small_crops=2,
            max_epochs=1,
            precision=precision,
            random_state=0,
        )
        assert np.isfinite(embedder.fit_transform(x)).all()


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("estimator", [SwAVTransformer, SimCLRTransformer])
def test_a_backbone_that_gives_nan_by_itself_is_not_told_to_learn_more_slowly(
    estimator, factor
):
    x = np.random.default_rng(0).random((8, 12, 12)).astype(np.float32)
    given = {"max_epochs": 2, "batch_size": 4, "random_state": 0}
    backbone = Pooled(factor=factor)
    with pytest.raises(
        ValueError, match="the output of the backbone or of augment is not fin"
    ) as e:
        estimator(backbone=backbone, **given).fit(x)
    assert "lower lr" not in str(e.value)
