"""Parts of networks, against golden values and torch's own parts."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sklabel.modules import (
    MultiHead,
    NormLinear,
    Prototypes,
    Queue,
    ScaleBatchNorm1d,
    Snapshot,
    SplitBatchNorm,
    cosine_decay,
    deinterleave,
    ema_update_,
    fitting_queue_size,
    frozen_copy,
    interleave,
    mean_decay,
    mlp,
    ramped_decay,
    split_batchnorm_,
)
from tests._golden import cases


def kinds(layer):
    return [type(part) for part in layer]


# -- heads


def test_mlp_is_simclrs_head_by_default():
    head = mlp(6, 6, 4)
    first, last = head
    assert kinds(first) == [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds(last) == [nn.Linear, ScaleBatchNorm1d]
    assert first[0].bias is None and last[0].bias is None
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes == {
        "0.0.weight": (6, 6),
        "0.1.weight": (6,),
        "0.1.bias": (6,),
        "1.0.weight": (4, 6),
        "1.1.weight": (4,),
    }
    z = head(torch.randn(64, 6))
    torch.testing.assert_close(z.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(4), rtol=1e-2, atol=0)


def test_mlp_of_three_layers_is_cut_after_a_layer():
    head = mlp(5, 7, 3, n_layers=3)
    assert len(head) == 3
    assert [layer[0].out_features for layer in head] == [7, 7, 3]
    x = torch.randn(8, 5)
    middle = head.eval()[:1](x)
    assert middle.shape == (8, 7) and (middle >= 0).all()
    assert torch.equal(head[1:](middle), head(x))


def test_mlp_without_norms_has_biases():
    head = mlp(5, 7, 3, norm=False, last_norm=None)
    assert [kinds(layer) for layer in head] == [[nn.Linear, nn.ReLU], [nn.Linear]]
    assert all(layer[0].bias is not None for layer in head)
    assert mlp(5, 7, 3, last_norm=None)[0][0].bias is None
    assert mlp(5, 7, 3, last_norm=None)[1][0].bias is not None
    assert all(layer[0].bias is not None for layer in mlp(5, 7, 3, bias=True))
    assert all(layer[0].bias is None for layer in mlp(5, 7, 3, norm=False, bias=False))


def test_mlp_of_one_layer_and_with_an_offset():
    (layer,) = mlp(5, 99, 3, n_layers=1, last_norm=True)
    assert kinds(layer) == [nn.Linear, nn.BatchNorm1d]
    assert layer[0].weight.shape == (3, 5)


def test_mlp_draws_weights_as_told():
    head = mlp(300, 300, 200, init_std=0.01, norm=False, last_norm=None)
    for layer in head:
        assert layer[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not layer[0].bias.any()


@pytest.mark.parametrize("wrong", [{"n_layers": 0}, {"last_norm": "offset"}])
def test_mlp_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        mlp(3, 3, 3, **wrong)


def test_scale_batch_norm_is_batch_norm_without_an_offset():
    ours, torchs = ScaleBatchNorm1d(4), nn.BatchNorm1d(4)
    x = torch.randn(3, 16, 4) * 3 + 1
    for mode in (True, True, False):
        ours.train(mode), torchs.train(mode)
        torch.testing.assert_close(ours(x[0]), torchs(x[0]))
    assert [name for name, _ in ours.named_parameters()] == ["weight"]
    ours.weight.data.fill_(2)
    ours.reset_parameters()
    assert (ours.weight == 1).all() and not ours.running_mean.any()
    other = ScaleBatchNorm1d(4)
    other.load_state_dict(copy.deepcopy(torchs.state_dict()), strict=False)
    assert torch.equal(other.running_var, torchs.running_var)


def test_multi_head_is_a_list_of_linears():
    heads = MultiHead(5, 3, n_heads=4).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    logits = heads(x)
    assert logits.shape == (4, 7, 3)
    weights, biases = heads.linear.weight.view(4, 3, 5), heads.linear.bias.view(4, 3)
    for h in range(4):
        torch.testing.assert_close(logits[h], x @ weights[h].T + biases[h])
    # the gradient of one head stays in it
    logits[2].sum().backward()
    moved = heads.linear.weight.grad.view(4, 3, 5).abs().sum((1, 2)) > 0
    assert moved.tolist() == [False, False, True, False]


def test_multi_head_keeps_one_head_and_some_outputs():
    heads = MultiHead(5, 4, n_heads=3).requires_grad_(False).eval()
    x, before = torch.randn(6, 5), torch.get_rng_state()
    one = heads.keep_head(1)
    few = heads.keep_outputs(np.array([3, 0]))
    both = one.keep_outputs([2])
    assert torch.equal(torch.get_rng_state(), before)
    assert (one.n_heads, one.n_classes) == (1, 4)
    assert (few.n_heads, few.n_classes) == (3, 2)
    torch.testing.assert_close(one(x), heads(x)[1:2])
    torch.testing.assert_close(few(x), heads(x)[:, :, [3, 0]])
    torch.testing.assert_close(both(x), heads(x)[1:2, :, 2:3])
    assert both.linear.out_features == 1 and not both.training
    # they are trainable and their own
    for kept in (one, few):
        assert all(p.requires_grad and p.is_leaf for p in kept.parameters())
        kept.linear.weight.data.zero_()
    assert heads.linear.weight.any() and not heads.linear.weight.requires_grad
    # they open as any head of that size
    MultiHead(5, 2, 3).load_state_dict(few.state_dict())


def test_multi_head_refuses_an_output_that_is_not_there():
    with pytest.raises(IndexError):
        MultiHead(5, 4).keep_outputs([4])


# -- averages

# by the names in the golden file
DECAYS = {
    "fixmatch": lambda step, decay: decay,
    "noisy_student": ramped_decay,
    "tod": mean_decay,
}


class Averaged(nn.Module):
    """A weight, and the running mean of a norm."""

    def __init__(self, weight, n_features):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.norm = nn.BatchNorm1d(n_features).double()


def test_ema_update_golden():
    for case in cases("ema_update"):
        n_features = case["buffers"].shape[1] if "buffers" in case else 1
        source, kind = Averaged(case["initial"], n_features), str(case["kind"])
        target = frozen_copy(source)
        for i, values in enumerate(case["params"]):
            source.weight.data = torch.tensor(values)
            if "buffers" in case:
                source.norm.running_mean.copy_(torch.from_numpy(case["buffers"][i]))
            decay = DECAYS[kind](i + 1, float(case["decay"]))
            np.testing.assert_allclose(decay, case["effective_decay"][i], rtol=1e-10)
            ema_update_(target, source, decay)
            np.testing.assert_allclose(target.weight, case["ema"][i], rtol=1e-10)
            if "buffers" in case:
                found = target.norm.running_mean
                np.testing.assert_allclose(found, case["ema_buffers"][i], rtol=1e-10)


def test_ema_update_copies_every_buffer():
    source = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    target = frozen_copy(source)
    source(torch.randn(9, 4))
    weight = target[0].weight.clone()
    ema_update_(target, source, 0.5)
    for a, b in zip(target.buffers(), source.buffers(), strict=True):
        assert torch.equal(a, b)
    assert target[1].num_batches_tracked == 1
    assert torch.equal(target[0].weight, weight)  # equal weights stay


@given(st.floats(0, 1), st.integers(0, 99))
def test_ema_update_lies_between(decay, seed):
    torch.manual_seed(seed)
    target, source = nn.Linear(3, 2), nn.Linear(3, 2)
    before, kept = target.weight.detach().clone(), source.weight.detach().clone()
    storage = target.weight.data_ptr()
    ema_update_(target, source, decay)
    low, high = torch.minimum(before, kept), torch.maximum(before, kept)
    assert ((low - 1e-6 <= target.weight) & (target.weight <= high + 1e-6)).all()
    torch.testing.assert_close(
        target.weight.detach(), decay * before + (1 - decay) * kept
    )
    assert torch.equal(source.weight, kept)
    assert target.weight.data_ptr() == storage and target.weight.grad_fn is None


def test_ema_update_of_modules_without_parameters_or_buffers():
    ema_update_(nn.ReLU(), nn.ReLU(), 0.9)


@pytest.mark.parametrize(
    "other",
    [nn.Linear(3, 4), nn.Linear(3, 2, bias=False), nn.BatchNorm1d(3), nn.ReLU()],
    ids=repr,
)
def test_ema_update_refuses_another_structure(other):
    with pytest.raises(ValueError, match="not a copy of Linear"):
        ema_update_(other, nn.Linear(3, 2), 0.9)


def test_cosine_decay_golden():
    for case in cases("byol"):
        base, total = float(case["tau_base"]), int(case["total_steps"])
        found = [cosine_decay(int(t), base, total) for t in case["steps"]]
        np.testing.assert_allclose(found, case["tau"], rtol=1e-12)


def test_ema_update_can_leave_buffers_alone():
    source, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    source.running_mean += 1
    source.weight.data += 1
    ema_update_(target, source, 0.5, copy_buffers=False)
    assert target.weight.tolist() == [1.5] * 3
    assert target.running_mean.tolist() == [0] * 3


def test_decays_rise():
    assert ramped_decay(1, 0.9) == pytest.approx(2 / 11)
    assert mean_decay(1, 0.9) == 0.5
    for decay in (ramped_decay, mean_decay):
        ramp = [decay(step, 0.9) for step in range(1, 200)]
        assert ramp == sorted(ramp) and ramp[-1] == 0.9
    rise = [cosine_decay(step, 0.9, 100) for step in range(200)]
    assert rise == sorted(rise) and rise[0] == pytest.approx(0.9) and rise[100] == 1


def test_an_average_of_mean_decay_begins_as_the_plain_mean():
    source = nn.Linear(2, 1, bias=False)
    target, seen = frozen_copy(source), [source.weight.detach().clone()]
    for step in range(1, 6):
        source.weight.data.normal_()
        seen.append(source.weight.detach().clone())
        ema_update_(target, source, mean_decay(step, 0.999))
    torch.testing.assert_close(target.weight, torch.stack(seen).mean(0))


def test_frozen_copy_is_frozen_and_its_own():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    frozen = frozen_copy(module)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in module.parameters())
    module[0].weight.data.zero_()
    assert frozen[0].weight.any()
    assert not frozen(torch.randn(4, 2)).requires_grad


@pytest.mark.gpu
def test_ema_update_on_the_gpu():
    source = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).cuda()
    target = frozen_copy(source)
    source(torch.randn(9, 4, device="cuda"))
    before = target[0].weight.clone()
    source[0].weight.data.add_(1)
    ema_update_(target, source, 0.75)
    torch.testing.assert_close(target[0].weight, before + 0.25)
    assert torch.equal(target[1].running_mean, source[1].running_mean)


# -- row orders


def test_interleave_golden():
    for case in cases("fixmatch_interleave"):
        rows, size = torch.arange(int(case["n"])), int(case["size"])
        order = interleave(rows, size)
        np.testing.assert_array_equal(order, case["interleaved_order"])
        np.testing.assert_array_equal(deinterleave(order, size), case["roundtrip"])


@given(st.integers(1, 8), st.integers(1, 8), st.sampled_from([(), (3,), (2, 1, 2)]))
def test_interleave_is_undone(n, size, shape):
    x = torch.randn(n * size, *shape)
    mixed = interleave(x, size)
    assert mixed.shape == x.shape
    assert torch.equal(mixed[:n], x[::size])
    assert torch.equal(deinterleave(mixed, size), x)


@pytest.mark.parametrize("function", [interleave, deinterleave])
@pytest.mark.parametrize("size", [0, 3])
def test_interleave_refuses_rows_left_over(function, size):
    with pytest.raises(ValueError, match=f"size={size} does not divide the 4 rows"):
        function(torch.zeros(4), size)


# -- prototypes, queues, split batch normalization


def test_prototypes_are_directions():
    prototypes = Prototypes(4, 7)
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(7))
    prototypes.weight.data *= 3
    prototypes.normalize_()
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(7))
    z = nn.functional.normalize(torch.randn(5, 4))
    torch.testing.assert_close(prototypes(z), z @ prototypes.weight.T)
    assert not prototypes(z, frozen=True).requires_grad
    assert prototypes(z).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert prototypes(z).dtype == torch.float32


def test_norm_linear_is_a_cosine():
    layer, x = NormLinear(4, 3, scale=40), torch.randn(5, 4)
    expected = nn.functional.cosine_similarity(x[:, None], layer.weight[None], dim=2)
    torch.testing.assert_close(layer(x), 40 * expected)
    torch.testing.assert_close(layer(7 * x), layer(x))


def test_queue_golden():
    for case in cases("moco"):
        queue = Queue(*case["queue_initial"].shape).double()
        queue.rows.copy_(torch.tensor(case["queue_initial"]))
        for i, keys in enumerate(case["k"]):
            queue.push_(torch.tensor(keys))
            np.testing.assert_allclose(queue.rows, case["queue_after"][i], rtol=1e-12)
            assert int(queue.pointer) == case["pointer"][i]
        np.testing.assert_allclose(queue.rows, case["queue_final"], rtol=1e-12)


@given(st.integers(1, 9), st.lists(st.integers(1, 20), max_size=5))
def test_queue_holds_the_rows_seen_last(size, pushes):
    queue, seen = Queue(size, 1), [-1.0] * size
    queue.rows.fill_(-1)
    for n in pushes:
        rows = [float(len(seen) + i) for i in range(n)]
        queue.push_(torch.tensor(rows)[:, None])
        seen += rows
    assert sorted(queue.rows.flatten().tolist()) == sorted(seen[-size:])
    assert int(queue.pointer) == sum(pushes) % size


def test_queue_begins_with_directions_and_travels():
    queue = Queue(50, 8)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(50))
    other = Queue(50, 8)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.rows, queue.rows)


@pytest.mark.parametrize(
    "size, n_samples, batch_size, expected",
    [
        (7, 100, 256, 7),
        ("auto", 50_000, 256, 4096),
        ("auto", 5_000, 256, 500),
        ("auto", 500, 256, 256),
        ("auto", 30, 256, 30),
    ],
)
def test_fitting_queue_size(size, n_samples, batch_size, expected):
    assert fitting_queue_size(size, n_samples, batch_size) == expected


def test_split_batchnorm_golden():
    for case in cases("split_batchnorm"):
        norm = nn.BatchNorm2d(
            len(case["weight"]), float(case["eps"]), float(case["momentum"])
        ).double()
        norm.weight.data = torch.tensor(case["weight"])
        norm.bias.data = torch.tensor(case["bias"])
        n_splits = int(case["n_splits"])
        split = SplitBatchNorm(norm, n_splits)
        # there row i is in part i % n_splits, here parts are consecutive rows
        order = np.arange(len(case["x"][0])).reshape(-1, n_splits).T.ravel()
        for i, x in enumerate(case["x"]):
            y = split.train()(torch.tensor(x[order])).detach()
            expected = case["y_train"][i][order]
            np.testing.assert_allclose(y, expected, rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(
                norm.running_mean, case["running_mean"][i], rtol=1e-8, atol=1e-12
            )
            np.testing.assert_allclose(norm.running_var, case["running_var"][i], 1e-8)
        y = split.eval()(torch.tensor(case["x"][0])).detach()
        np.testing.assert_allclose(y, case["y_eval_first"], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("n, parts", [(16, 8), (12, 4), (13, 1), (8, 1), (2, 1)])
def test_split_batchnorm_of_batches_that_do_not_split(n, parts):
    norm, x = nn.BatchNorm1d(3), torch.randn(n, 3)
    split = SplitBatchNorm(copy.deepcopy(norm), 8)
    found = split(x)
    for part, rows in zip(found.chunk(parts), x.chunk(parts), strict=True):
        torch.testing.assert_close(part, norm(rows))


class _Activated(nn.BatchNorm1d):
    """As timm has it: a norm that activates what it gives."""

    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.BatchNorm1d(3, track_running_stats=False, affine=False),
        nn.BatchNorm1d(3, momentum=None),
        nn.BatchNorm1d(3, affine=False),
        _Activated(3),
    ],
    ids=["no statistics", "nothing", "cumulative", "plain", "activated"],
)
def test_split_batchnorm_is_the_norm_of_each_part(norm):
    torch.manual_seed(0)
    whole, split = copy.deepcopy(norm), SplitBatchNorm(norm, 4)
    for n_seen in (1, 2):
        x = torch.randn(8, 3, requires_grad=True)
        parts = [copy.deepcopy(whole) for _ in range(4)]
        expected = torch.cat([p(rows) for p, rows in zip(parts, x.chunk(4))])
        found = split(x)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad((y**3).sum(), x)[0] for y in (found, expected)]
        torch.testing.assert_close(*gradients)
        for name, buffer in norm.named_buffers():
            seen = torch.stack([p.get_buffer(name) for p in parts])
            torch.testing.assert_close(buffer, seen.double().mean(0).to(buffer))
        assert norm.num_batches_tracked in (None, n_seen)
        whole.load_state_dict(norm.state_dict())
    assert split.eval()(x).shape == x.shape


def test_split_batchnorm_is_put_in_and_taken_out():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()), nn.Flatten()
    )
    names = list(net.state_dict())
    norm = net[1][0]
    assert split_batchnorm_(net, 4) is net
    assert isinstance(net[1][0], SplitBatchNorm) and net[1][0].n_splits == 4
    split_batchnorm_(net, 2)
    assert net[1][0].n_splits == 2 and net[1][0].norm is norm
    split_batchnorm_(net, 1)
    assert net[1][0] is norm and list(net.state_dict()) == names


def test_a_snapshot_is_of_the_lowest_score():
    part = torch.nn.Linear(2, 1)
    snapshot = Snapshot(part)
    before = part.weight.detach().clone()
    snapshot.restore_(part)  # nothing was offered
    assert snapshot.keep_if_better(1.0, part)
    with torch.no_grad():
        part.weight += 1
    assert not snapshot.keep_if_better(2.0, part) and not snapshot.keep_if_better(
        1.0, part
    )
    torch.testing.assert_close(snapshot.parts[0].weight.detach(), before)
    assert not any(p.requires_grad for p in snapshot.parameters())
    snapshot.restore_(part)
    torch.testing.assert_close(part.weight.detach(), before)
    assert part.weight.requires_grad
    # it travels with the state of what holds it
    other = Snapshot(torch.nn.Linear(2, 1))
    other.load_state_dict(snapshot.state_dict())
    assert other.score == 1 and torch.equal(other.parts[0].weight, before)


@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 3, 4)])
@pytest.mark.parametrize("affine", [True, False])
def test_parts_normalized_by_one_kernel_are_those_of_a_loop(shape, affine):
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    x, weight = torch.randn(2, *shape)
    found = []
    for way in ("forward", "_in_one"):
        norm = SplitBatchNorm(kind(shape[1], affine=affine), 4)
        if affine:
            nn.init.uniform_(norm.norm.weight, 0.5, 1.5, torch.manual_seed(0))
        given = x.clone().requires_grad_()
        for _ in range(2):
            out = norm(given) if way == "forward" else norm._in_one(given, 4)
        (out * weight).sum().backward()
        state = [*norm.norm.buffers(), *(p.grad for p in norm.parameters())]
        found.append([out.detach(), given.grad, *state])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
