"""LARS, schedules, parameter groups: golden values and torch's conventions."""

import copy
import io
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from skorch.callbacks import Callback
from torch import nn

from sklabel.embedding import SwAVTransformer
from sklabel.optim import (
    LARS,
    constant,
    layer_scales,
    param_groups,
    scaled_lr,
    step_counts,
    step_decay,
    truncated_cosine,
    warmup_cosine,
)
from tests._golden import cases

VARIANTS = ["simclr", "byol", "larc", "clip"]
SCHEDULES = [warmup_cosine, truncated_cosine, constant]


def parameter(values):
    return nn.Parameter(torch.tensor(np.asarray(values), dtype=torch.float64))


# -- LARS


def golden_lars(found, variant):
    for case in found:
        w = parameter(case["w0"])
        optimizer = LARS(
            [{"params": [w], "adapt": not case["excluded"]}],
            lr=0.0,
            momentum=float(case["momentum"]),
            weight_decay=float(case["weight_decay"]),
            trust_coefficient=float(case["eeta"]),
            variant=variant,
        )
        rates = np.broadcast_to(case["lr"], len(case["grads"]))
        for i, (gradient, lr) in enumerate(zip(case["grads"], rates)):
            optimizer.param_groups[0]["lr"] = float(lr)
            before = optimizer.state[w].get("momentum_buffer", torch.zeros(())).clone()
            w.grad = torch.from_numpy(gradient)
            decayed = gradient + (
                0 if case["excluded"] else case["weight_decay"] * w.detach().numpy()
            )
            optimizer.step()
            velocity = optimizer.state[w]["momentum_buffer"]
            np.testing.assert_allclose(w.detach(), case["weights"][i], rtol=1e-10)
            np.testing.assert_allclose(velocity, case["velocity"][i], rtol=1e-10)
            moved = (velocity - float(case["momentum"]) * before).norm()
            if variant == "simclr":
                moved = moved / lr
            ratio = moved / np.linalg.norm(decayed)
            np.testing.assert_allclose(ratio, case["trust_ratio"][i], rtol=1e-10)


def test_lars_golden_simclr():
    golden_lars(cases("simclr_lars"), "simclr")


def test_lars_golden_byol():
    golden_lars(cases("byol_lars"), "byol")


def test_lars_golden_cifar():
    for case in cases("lars_cifar"):
        weight, bias = parameter(case["weight"]), parameter(case["bias"])
        optimizer = LARS(
            [
                {"params": [weight]},
                {"params": [bias], "adapt": not case["exclude_bias_n_norm"]},
            ],
            lr=float(case["learning_rate"]),
            momentum=float(case["momentum"]),
            weight_decay=float(case["weight_decay"]),
            trust_coefficient=float(case["eta"]),
            variant="clip" if case["clip_lr"] else "larc",
        )
        steps = zip(
            case["grad_weight"],
            case["grad_bias"],
            case["weight_after"],
            case["bias_after"],
        )
        for grad_weight, grad_bias, weight_after, bias_after in steps:
            weight.grad, bias.grad = map(torch.from_numpy, (grad_weight, grad_bias))
            optimizer.step()
            np.testing.assert_allclose(weight.detach(), weight_after, rtol=1e-9)
            np.testing.assert_allclose(bias.detach(), bias_after, rtol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_lars_first_step_by_hand(variant):
    w = parameter([3.0, 4.0])  # length 5
    w.grad = torch.tensor([0.0, 2.0], dtype=torch.float64)
    LARS([w], lr=0.5, trust_coefficient=0.1, variant=variant).step()
    ratio = 0.1 * 5 / 2  # 0.25; over lr it is 0.5, below the bound
    ratio = ratio / 0.5 if variant == "clip" else ratio
    np.testing.assert_allclose(w.detach(), [3.0, 4.0 - 0.5 * ratio * 2], rtol=1e-8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_lars_moves_as_far_whatever_the_scale_of_the_loss(variant):
    ends = []
    for scale in (1.0, 1e3):
        w = parameter(np.arange(1.0, 7.0).reshape(2, 3))
        optimizer = LARS([w], lr=0.3, variant=variant)
        for _ in range(3):
            optimizer.zero_grad()
            (scale * (w - 1).square().sum()).backward()
            optimizer.step()
        ends.append(w.detach().numpy())
    np.testing.assert_allclose(*ends, rtol=1e-8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_lars_without_ratio_is_torchs_sgd(variant):
    ours = [parameter(np.ones((2, 3))), parameter(np.ones(3))]
    torchs = copy.deepcopy(ours)
    optimizers = [
        LARS(
            [{"params": ours, "adapt": False}], lr=0.1, weight_decay=9, variant=variant
        ),
        torch.optim.SGD(torchs, lr=0.1, momentum=0.9),
    ]
    for _ in range(4):
        for optimizer, (w, b) in zip(optimizers, (ours, torchs)):
            optimizer.zero_grad()
            ((w.sum(0) * b).square().sum() + b.square().sum()).backward()
            optimizer.step()
    for a, b in zip(ours, torchs):
        torch.testing.assert_close(a, b)


def trained(optimizer_state=None, steps=2, model=None, variant="simclr"):
    """Return a small model and its optimizer after some steps."""
    torch.manual_seed(1)
    x = torch.randn(8, 4)
    if model is None:
        model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 1))
    optimizer = LARS(param_groups(model, 1e-2), lr=0.2, variant=variant)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        model(x).square().mean().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("variant", VARIANTS)
def test_lars_continues_from_its_state(variant):
    whole, _ = trained(steps=4, variant=variant)
    half, optimizer = trained(steps=2, variant=variant)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    trained(state, steps=2, model=half, variant=variant)
    for a, b in zip(whole.parameters(), half.parameters()):
        assert torch.equal(a, b)


def test_lars_pickles_and_copies():
    _, optimizer = trained()
    for other in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert [g["adapt"] for g in other.param_groups] == [True, False]
        found, wanted = other.state_dict(), optimizer.state_dict()
        assert found["param_groups"] == wanted["param_groups"]
        for i, state in wanted["state"].items():
            assert torch.equal(
                found["state"][i]["momentum_buffer"], state["momentum_buffer"]
            )


def test_lars_learns():
    model, optimizer = trained(steps=0)
    optimizer.param_groups[0]["trust_coefficient"] = 0.05
    x = torch.randn(64, 4)
    y = x[:, :1] - x[:, 1:2]
    losses = []
    for _ in range(200):

        def closure():
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    assert losses[-1] < losses[0] / 10


def test_lars_leaves_parameters_without_gradient_alone():
    used, unused = parameter([1.0, 2.0]), parameter([3.0])
    optimizer = LARS([used, unused], lr=0.1, weight_decay=0.1)
    assert optimizer.step() is None
    used.grad = torch.ones_like(used)
    optimizer.step()
    assert unused.item() == 3.0 and unused not in optimizer.state
    assert (used < torch.tensor([1.0, 2.0])).all()
    assert torch.equal(used.grad, torch.ones(2))  # gradients are not written to


def test_lars_takes_the_dtypes_of_one_group_apart():
    weights = [
        nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.float32, torch.float64)
    ]
    optimizer = LARS(weights, lr=0.1)
    for w in weights:
        w.grad = torch.ones_like(w)
    optimizer.step()
    assert [w.dtype for w in weights] == [torch.float32, torch.float64]
    np.testing.assert_allclose(*[w.detach() for w in weights], rtol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lr", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_lars_extremes_are_finite(variant, lr, dtype, scale):
    weights = [nn.Parameter(v * torch.ones(4, dtype=dtype)) for v in (0, 1e-3, 1e3)]
    optimizer = LARS(weights, lr=lr, weight_decay=1e-4, variant=variant)
    for _ in range(2):
        for w in weights:
            w.grad = torch.full_like(w, scale)
        optimizer.step()
    if lr == 0:
        assert all((w == w[0]).all() for w in weights)
    for w in weights[1:]:  # a weight of 0 has ratio 1, and goes where it is sent
        assert torch.isfinite(w).all()


def test_lars_with_a_rate_of_zero_stays():
    for variant in VARIANTS:
        w = parameter([1.0, 2.0])
        w.grad = torch.ones_like(w)
        LARS([w], lr=0.0, variant=variant).step()
        assert w.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_lars_without_a_slope(variant, weight_decay):
    w = parameter([1.0, 2.0])
    w.grad = torch.zeros_like(w)
    LARS([w], lr=0.5, weight_decay=weight_decay, variant=variant).step()
    # the first two decay at the speed of the ratio, the others not at all
    decays = weight_decay and variant in ("simclr", "byol")
    left = 1 - 0.5 * 0.001 if decays else 1
    np.testing.assert_allclose(w.detach(), [left, 2 * left], rtol=1e-12)


@pytest.mark.parametrize(
    "setting",
    [
        {"lr": -1},
        {"lr": math.nan},
        {"momentum": 1},
        {"weight_decay": -1},
        {"trust_coefficient": 0},
        {"variant": "lamb"},
    ],
)
def test_lars_refuses(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=name):
        LARS([parameter([1.0])], **{"lr": 0.1, **setting})
    with pytest.raises(ValueError, match=name):  # in a group too
        LARS([{"params": [parameter([1.0])], **setting}], lr=0.1)


def test_lars_refuses_sparse_gradients():
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([0])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        LARS(embedding.parameters(), lr=0.1).step()


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_lars_on_the_gpu(variant):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 1))
    x, ends = torch.randn(8, 4), []
    for device in ("cpu", "cuda"):
        moved = copy.deepcopy(model).to(device)
        optimizer = LARS(param_groups(moved, 1e-2), lr=0.2, variant=variant)
        for _ in range(3):
            optimizer.zero_grad()
            moved(x.to(device)).square().mean().backward()
            optimizer.step()
        ends.append([p.detach().cpu() for p in moved.parameters()])
    for a, b in zip(*ends):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# -- groups


def test_param_groups_split():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.wide_norm = nn.LayerNorm((4, 2, 2))  # its weight has three axes
            self.linear = nn.Linear(16, 2)
            self.tied = nn.Linear(16, 2)
            self.tied.weight = self.linear.weight
            self.frozen = nn.Linear(2, 2).requires_grad_(False)
            self.token = nn.Parameter(torch.zeros(1, 1, 2))

    net = Net()
    decayed, plain = param_groups(net, 0.5)
    names = {id(p): name for name, p in net.named_parameters()}
    assert [names[id(p)] for p in decayed["params"]] == [
        "token",
        "conv.weight",
        "linear.weight",
    ]
    assert {names[id(p)] for p in plain["params"]} == {
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "wide_norm.weight",
        "wide_norm.bias",
        "linear.bias",
        "tied.bias",
    }
    assert decayed["weight_decay"] == 0.5 and "adapt" not in decayed
    assert plain["weight_decay"] == 0.0 and plain["adapt"] is False
    for optimizer in (torch.optim.SGD, torch.optim.AdamW, LARS):
        optimizer(param_groups(net, 0.5), lr=0.1).step()


class _Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3), nn.BatchNorm2d(width)


def test_the_rate_falls_from_the_last_layer_to_the_first():
    net = nn.Module()
    net.position = nn.Parameter(torch.zeros(1, 4))
    net.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    net.stages = nn.Sequential(
        nn.Sequential(_Residual(4), _Residual(4)), nn.Sequential(_Residual(4))
    )
    net.norm = nn.LayerNorm(4)
    model = nn.ModuleDict({"encoder": net, "project": nn.Linear(4, 4)})
    scales = layer_scales(model, ("encoder", "project"), 0.5, 0.1)
    model["head"] = nn.Linear(4, 2)
    wanted = {
        "encoder.position": 0.5**5,
        "encoder.stem.0.weight": 0.5**5,
        "encoder.stem.1.bias": 0.5**5,
        "encoder.stages.0.0.conv1.weight": 0.5**4,
        "encoder.stages.0.0.bn2.weight": 0.5**4,
        "encoder.stages.0.1.conv2.weight": 0.5**3,
        "encoder.stages.1.0.conv2.weight": 0.5**2,
        "encoder.norm.weight": 0.5**2,
        "project.weight": 0.5,
        "head.weight": None,
    }
    found = {
        id(p): group.get("lr_scale")
        for group in param_groups(model, 0.1, scales)
        for p in group["params"]
    }
    for name, scale in wanted.items():
        scale = scale if scale is None else pytest.approx(0.1 * scale)
        assert found[id(model.get_parameter(name))] == scale, name
    # without a decay there is one factor for all
    assert set(layer_scales(model, ("encoder", "project"), 1.0, 0.1).values()) == {0.1}


def test_the_blocks_of_transformers_are_layers():
    vit = torchvision.models.VisionTransformer(8, 4, 12, 2, 16, 32)
    vit.heads = nn.Identity()
    model = nn.ModuleDict({"encoder": nn.Sequential(vit)})
    scales = layer_scales(model, ("encoder",), 0.5)
    layers = "encoder.0.encoder.layers.encoder_layer_"
    # published: twelve blocks, and the embedding before them
    for i in range(12):
        assert scales[f"{layers}{i}"] == 0.5 ** (12 - i)
    assert scales["encoder.0.conv_proj"] == scales["encoder"] == 0.5**13


def test_param_groups_may_be_empty():
    decayed, plain = param_groups(nn.BatchNorm1d(3), 0.1)
    assert decayed["params"] == [] and len(plain["params"]) == 2
    torch.optim.Adam(param_groups(nn.BatchNorm1d(3), 0.1)).step()


# -- schedules


def test_simclr_schedule_golden():
    for case in cases("simclr_schedule"):
        total, warmup = step_counts(
            int(case["num_examples"]),
            int(case["batch_size"]),
            int(case["epochs"]),
            float(case["warmup_epochs"]),
        )
        assert (total, warmup) == (case["total_steps"], case["warmup_steps"])
        peak = scaled_lr(
            float(case["base_lr"]), int(case["batch_size"]), str(case["scaling"])
        )
        rates = [peak * warmup_cosine(int(k), total, warmup) for k in case["steps"]]
        np.testing.assert_allclose(rates, case["lr"], rtol=1e-9, atol=1e-15)


def test_byol_schedule_golden():
    for case in cases("byol_schedule"):
        peak = scaled_lr(float(case["base_lr"]), int(case["batch_size"]))
        counts = int(case["total_steps"]), int(case["warmup_steps"])
        rates = [peak * warmup_cosine(int(k), *counts) for k in case["steps"]]
        np.testing.assert_allclose(rates, case["lr"], rtol=1e-9, atol=1e-12)


def test_truncated_cosine_golden():
    for case in cases("fixmatch_schedule"):
        lr, steps = float(case["base_lr"]), case["steps"].tolist()
        total, warmup = int(case["total_steps"]), int(case["warmup_steps"])
        ported = [lr * truncated_cosine(k, total, warmup, clip=False) for k in steps]
        np.testing.assert_allclose(ported, case["lr"], rtol=1e-10)
        official = [lr * truncated_cosine(k, total) for k in steps]
        np.testing.assert_allclose(
            official, case["lr_official_no_warmup_clipped"], rtol=1e-10
        )


def test_step_decay_is_mocos_schedule():
    # 200 epochs of 10 steps: a tenth from epoch 120 and again from 160
    factors = [step_decay(step, 2000) for step in (0, 1199, 1200, 1599, 1600)]
    np.testing.assert_allclose(factors, [1, 1, 0.1, 0.1, 0.01])
    assert step_decay(5, 2000, warmup_steps=10) == 0.5


def test_schedules_by_hand():
    assert warmup_cosine(0, 10) == 1
    assert warmup_cosine(5, 10) == pytest.approx(0.5)
    assert warmup_cosine(10, 10, final=0.2) == pytest.approx(0.2)
    assert warmup_cosine(1, 10, 4) == 0.25
    assert truncated_cosine(10, 10) == pytest.approx(math.cos(7 * math.pi / 16))
    assert [constant(k, 9, 2) for k in (0, 1, 2, 9)] == [0, 0.5, 1, 1]


@given(st.integers(1, 200), st.integers(0, 200), st.sampled_from(SCHEDULES))
def test_schedules_rise_then_fall_within_zero_and_one(total, warmup, schedule):
    factors = [schedule(k, total, warmup) for k in range(2 * total + warmup)]
    assert all(type(f) is float for f in factors)
    assert all(0 <= f <= 1 for f in factors)
    rising, falling = factors[: warmup + 1], factors[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if falling:
        assert falling[0] == 1
    # a schedule knows nothing of the past: it pickles, and can be entered anywhere
    assert pickle.loads(pickle.dumps(schedule)) is schedule


def test_scaled_lr():
    assert scaled_lr(0.3, 512) == 0.6
    assert scaled_lr(0.075, 4096, "sqrt") == pytest.approx(4.8)
    assert scaled_lr(0.1, 512, None) == 0.1
    with pytest.raises(ValueError, match="scaling='cubic'"):
        scaled_lr(0.1, 512, "cubic")


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_larc_of_an_estimator_adapts_biases_and_norms_too(weight_decay):
    # LARC wraps SGD over all parameters alike: a step by hand
    x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    nn.init.normal_(net[1].bias)
    settings = {"backbone": net, "augment": None, "warmup_epochs": 0, "max_steps": 1}
    settings |= {"lr": 0.6, "weight_decay": weight_decay, "random_state": 0}
    before, gradients = {}, {}

    class Look(Callback):
        def on_train_begin(self, net, **kwargs):
            module = net.module_
            before.update((n, p.detach().clone()) for n, p in module.named_parameters())
            for name, parameter in module.named_parameters():
                parameter.register_hook(partial(gradients.__setitem__, name))

    params = {"callbacks": [Look]}
    fitted = SwAVTransformer(
        20, optimizer="larc", net_params=params, frozen_epochs=0, **settings
    ).fit(x)
    assert len(gradients) == len(before) > 8
    for name, found in fitted.net_.module_.named_parameters():
        if name.startswith("prototypes"):
            continue  # scaled to length 1 after the step
        w, g = before[name], gradients[name]
        ratio = 0.001 * w.norm() / (g.norm() + weight_decay * w.norm() + 1e-8)
        expected = w - 0.6 * ratio * (g + weight_decay * w)
        expected = expected if g.any() and w.any() else found
        torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-7)
    # that of solo-learn leaves them out
    groups = SwAVTransformer(optimizer="lars_clip", **settings).fit(x).net_.optimizer_
    assert [group["adapt"] for group in groups.param_groups] == [True, False]


def test_groups_of_parameters_treated_alike():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    net[0].bias.requires_grad_(False)
    own, none = param_groups(net, 0.1, alike=True)
    assert len(own["params"]) == 5 and own["weight_decay"] == 0.1
    assert not none["params"]
    scaled = param_groups(net, 0.1, {"2": 0.5}, alike=True)
    assert [len(g["params"]) for g in scaled] == [3, 0, 2, 0]
    assert scaled[2]["lr_scale"] == 0.5
