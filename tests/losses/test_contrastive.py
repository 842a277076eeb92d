"""Contrastive losses against golden values, slow loops, invariances and extremes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklabel.losses import (
    group_discrimination,
    info_nce,
    lloyd_groups,
    normalized_mse,
    nt_xent,
    sinkhorn,
    swapped_prediction,
    unit_rows,
)
from tests._golden import cases
from tests.losses._checks import assert_close, leaf, pairs


def test_nt_xent_golden():
    for case in cases("simclr_ntxent"):
        hidden = leaf(case["hidden"])
        z1, z2 = hidden.chunk(2)
        settings = float(case["temperature"]), bool(case["hidden_norm"])
        loss = nt_xent(z1, z2, *settings)
        loss.backward()
        assert_close(loss, case["loss_official"])
        assert_close(loss / 2, case["loss_mean_over_2N"])
        assert_close(hidden.grad, case["grad_hidden_official"])
        assert_close(nt_xent(z1, z2, *settings, "first"), case["per_example_a"].mean())
        assert_close(nt_xent(z2, z1, *settings, "first"), case["per_example_b"].mean())


def test_nt_xent_golden_first_views():
    for case in cases("scan_simclr_loss"):
        features = leaf(case["features"])
        z1, z2 = features.unbind(1)
        loss = nt_xent(z1, z2, float(case["temperature"]), False, anchors="first")
        loss.backward()
        assert_close(loss, case["loss"])
        assert_close(features.grad, case["grad_features"])


def slow_nt_xent(z1, z2, temperature):
    """Equation 1 anchor by anchor, with exponentials as they stand."""
    z = [row / np.linalg.norm(row) for row in np.concatenate([z1, z2])]
    total = 0
    for i, anchor in enumerate(z):
        partner = z[(i + len(z1)) % len(z)]
        others = [np.exp(anchor @ z[j] / temperature) for j in range(len(z)) if j != i]
        total -= np.log(np.exp(anchor @ partner / temperature) / sum(others))
    return total / len(z1)


def test_nt_xent_is_the_slow_loop():
    z1, z2 = torch.randn(2, 7, 5, dtype=torch.float64)
    assert_close(nt_xent(z1, z2, 0.3), slow_nt_xent(z1.numpy(), z2.numpy(), 0.3))


def test_nt_xent_by_hand():
    # two samples on two axes, both views equal: 1 against 0 and 0 over T = 1
    z = torch.eye(2, dtype=torch.float64)
    assert_close(nt_xent(z, z, 1.0), 2 * math.log((math.e + 2) / math.e))


@given(st.integers(1, 9), st.integers(0, 2**16))
def test_nt_xent_ignores_order_scale_and_which_view_is_first(n, seed):
    g = torch.Generator().manual_seed(seed)
    z1, z2 = torch.randn(2, n, 4, dtype=torch.float64, generator=g)
    scale = 10 ** torch.empty(n, 1, dtype=torch.float64).uniform_(-3, 3, generator=g)
    order = torch.randperm(n, generator=g)
    loss = nt_xent(z1, z2)
    assert_close(nt_xent(z1[order], z2[order]), loss)
    assert_close(nt_xent(z2, z1), loss)
    assert_close(nt_xent(z1 * scale, z2), loss)
    assert -1e-12 <= loss <= 2 * (math.log(2 * n - 1) + 4) + 1e-12


def test_nt_xent_pulls_partners_together():
    z1, z2 = torch.randn(2, 8, 4, dtype=torch.float64)
    z1.requires_grad_()
    loss = nt_xent(z1, z2)
    (slope,) = torch.autograd.grad(loss, z1)
    assert nt_xent(z1 - 0.1 * slope, z2) < loss
    assert nt_xent(z1, z1) < loss
    # a row's own length is no way out
    assert_close((slope * z1).sum(1), 0)


def test_nt_xent_no_gradient_through_the_self_pair():
    # with one sample, all that is left is the partner: nothing can be gained
    z1, z2 = leaf(np.random.randn(1, 4)), leaf(np.random.randn(1, 4))
    nt_xent(z1, z2, 0.1, normalize=False).backward()
    assert_close(z1.grad, 0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-7, 1.0, 6e4, 1e30])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_nt_xent_extremes_are_finite(dtype, scale, temperature):
    if scale > torch.finfo(dtype).max:
        pytest.skip("not a number of this type")
    z = torch.randn(2, 6, 4).clamp(-1, 1).mul(scale).to(dtype).requires_grad_()
    loss = nt_xent(*z, temperature)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    # turning a row of length 0 changes its direction a million times faster than
    # float16 can write down
    assert torch.isfinite(z.grad).all() or (dtype == torch.float16 and scale < 1e-6)


def test_nt_xent_keeps_its_digits_under_autocast():
    z1, z2 = torch.randn(2, 32, 16)
    exact = nt_xent(z1.double(), z2.double(), 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = nt_xent(z1, z2, 0.05)
    assert_close(mixed, exact.numpy(), rtol=1e-5)


def test_nt_xent_refuses():
    z = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(3, 3\)"):
        nt_xent(z, z[:3])
    with pytest.raises(ValueError, match="anchors='second'"):
        nt_xent(z, z, anchors="second")


def test_info_nce_golden_over_steps():
    for case in cases("moco"):
        queue = torch.tensor(case["queue_initial"])
        for i in range(len(case["q"])):
            q = leaf(case["q"][i])
            k = torch.tensor(case["k"][i])
            loss = info_nce(q, k, queue, float(case["temperature"]))
            loss.backward()
            assert_close(loss, case["loss"][i])
            assert_close(q.grad, case["grad_q"][i])
            queue = torch.tensor(case["queue_after"][i])


def test_info_nce_by_hand():
    q, k = torch.eye(2)[:1], torch.eye(2)[:1]
    queue = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    expected = -math.log(math.e**2 / (math.e**2 + 1 + math.e**-2))
    assert_close(info_nce(q, k, queue, 0.5), expected, rtol=1e-6)
    same = torch.ones(5, 3) / 3**0.5
    assert_close(info_nce(same, same, same[:4]), math.log(5), rtol=1e-6)


def test_info_nce_teaches_queries_only():
    q, k, queue = (leaf(np.eye(4)[:, :3]) for _ in range(3))
    info_nce(q, k.detach(), queue).backward()
    assert q.grad is not None and queue.grad is None


def golden_byol(found, rows=None):
    for case in found:
        p1, p2 = leaf(case["prediction_1"]), leaf(case["prediction_2"])
        t1, t2 = torch.tensor(case["target_1"]), torch.tensor(case["target_2"])
        loss = normalized_mse(p1, t2) + normalized_mse(p2, t1)
        loss.backward()
        assert_close(loss, case["loss"], atol=1e-12)
        for i in range(len(p1)):
            row = slice(i, i + 1)
            value = normalized_mse(p1[row], t2[row]) + normalized_mse(p2[row], t1[row])
            assert_close(value, case["per_sample"][i], atol=1e-12)
        rows = case.get("compare_gradient_rows", np.ones(len(p1), bool))
        expected = case["grad_prediction_1"]
        assert_close(p1.grad[torch.tensor(rows)], expected[rows], atol=1e-12)
        assert_close(p2.grad, case["grad_prediction_2"], atol=1e-12)


def test_normalized_mse_golden():
    golden_byol(cases("byol"))


def test_normalized_mse_golden_zero_rows():
    golden_byol(cases("byol_zero_vector"))


def test_normalized_mse_has_no_gradient_to_its_targets():
    p, t = leaf(np.eye(3)), leaf(np.ones((3, 3)))
    normalized_mse(p, t).backward()
    assert t.grad is None
    # a step against the gradient brings the directions together
    closer = (p - 0.1 * p.grad).detach()
    assert normalized_mse(closer, t) < normalized_mse(p, t)


@given(pairs(10), st.floats(0.1, 100))
def test_normalized_mse_is_two_minus_two_cosines(pair, scale):
    p, t = (torch.tensor(x) + 11 for x in pair)  # no zero rows
    cosine = torch.nn.functional.cosine_similarity(p, t)
    assert_close(normalized_mse(p, t), (2 - 2 * cosine).mean(), atol=1e-9)
    assert_close(normalized_mse(p * scale, t), normalized_mse(p, t), atol=1e-9)


def golden_sinkhorn(found, **tolerance):
    for case in found:
        scores = torch.tensor(case["scores"])
        settings = float(case["epsilon"]), int(case["n_iterations"])
        codes = sinkhorn(scores, *settings)
        assert_close(codes, case["assignment"], **tolerance)
        if "column_sums" in case:
            assert_close(codes.sum(0), case["column_sums"])
        low = sinkhorn(scores.float(), *settings)
        assert low.dtype == torch.float32 and low.isfinite().all()
        np.testing.assert_allclose(low, case["assignment"], rtol=1e-3, atol=1e-5)


def test_sinkhorn_golden():
    golden_sinkhorn(cases("sinkhorn"))


def test_sinkhorn_golden_where_exponentials_overflow():
    golden_sinkhorn(cases("sinkhorn_overflow"))


@given(pairs(3), st.floats(0.05, 2), st.integers(1, 5))
def test_sinkhorn_rows_sum_to_one(pair, epsilon, n_iterations):
    codes = sinkhorn(torch.tensor(pair[0]), epsilon, n_iterations)
    assert codes.isfinite().all() and (codes >= 0).all()
    assert_close(codes.sum(1), np.ones(len(codes)), rtol=1e-6)


def test_swapped_prediction_golden():
    for case in cases("swav_loss"):
        n, n_crops = int(case["n_samples"]), int(case["n_crops"])
        assigned = case["crops_for_assign"].tolist()
        scores = leaf(case["scores"])
        by_crop = scores.unflatten(0, (n_crops, n))
        settings = float(case["epsilon"]), int(case["n_iterations"])
        codes = []
        for i, crop in enumerate(assigned):
            rows = by_crop[crop].detach()
            if int(case["queue_size"]):
                queue, prototypes = case["queue"][i], case["prototypes"]
                rows = torch.cat([torch.tensor(queue @ prototypes.T), rows])
            codes.append(sinkhorn(rows, *settings)[-n:])
        assert_close(torch.stack(codes), case["codes"])
        temperature = float(case["temperature"])
        loss = swapped_prediction(by_crop, torch.stack(codes), temperature, assigned)
        loss.backward()
        assert_close(loss, case["loss"])
        assert_close(scores.grad, case["grad_scores"])


def test_swapped_prediction_of_nothing_learned():
    even = torch.zeros(3, 4, 7)
    codes = torch.softmax(torch.randn(2, 4, 7), -1)
    assert_close(swapped_prediction(even, codes), math.log(7), rtol=1e-5)


def golden_groups(case):
    settings = int(case["n_clusters"]), int(case["n_iterations"])
    for view in "12":
        z = torch.tensor(case[f"z{view}"])
        labels, centers = lloyd_groups(z, *settings)
        assert labels.tolist() == case[f"labels_{view}"].tolist()
        assert_close(centers, case[f"centroids_{view}"])
    return settings


def test_group_discrimination_golden():
    for case in cases("cld_loss"):
        n_groups, n_iterations = golden_groups(case)
        z1, z2 = leaf(case["z1"]), leaf(case["z2"])
        temperature = float(case["temperature"])
        loss = group_discrimination(z1, z2, n_groups, temperature, n_iterations)
        loss.backward()
        assert_close(loss, case["loss"])
        assert_close(z1.grad, case["grad_z1"])
        assert_close(z2.grad, case["grad_z2"])


def test_lloyd_groups_by_hand():
    z = torch.tensor([[0.0], [10.0], [1.0], [11.0], [0.0]])
    labels, centers = lloyd_groups(z, 2, 3)
    assert labels.tolist() == [0, 1, 0, 1, 0]
    assert_close(centers, [[1 / 3], [10.5]], rtol=1e-6)
    # equal rows: the first group takes them all, the others stay empty
    labels, centers = lloyd_groups(torch.ones(4, 2), 3)
    assert labels.tolist() == [0] * 4
    assert centers.tolist() == [[1, 1], [0, 0], [0, 0]]
    with pytest.raises(ValueError, match="n_groups=5 is more than the 4 rows"):
        lloyd_groups(torch.ones(4, 2), 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_embedding_extremes_are_finite(dtype, scale):
    z1, z2 = ((torch.randn(6, 4) * scale).to(dtype).requires_grad_() for _ in range(2))
    u1, u2 = unit_rows(z1), unit_rows(z2)
    codes = torch.stack([sinkhorn(u1), sinkhorn(u2)])
    total = (
        info_nce(u1, u2, u2, 0.01)
        + normalized_mse(z1, z2)
        + group_discrimination(u1, u2, 3, 0.01)
        + swapped_prediction(torch.stack([u1, u2]), codes, 0.01)
    )
    total.backward()
    assert total.isfinite() and total.dtype == torch.float32
    assert z1.grad.isfinite().all()
