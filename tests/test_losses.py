"""Losses against golden values, slow loops, invariances and extreme inputs."""

import ast
import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sklabel import losses
from sklabel.losses import (
    confidence_cross_entropy,
    contrastive_clustering,
    distillation,
    entropy,
    group_discrimination,
    guessed_labels,
    iic_loss,
    iic_segmentation_loss,
    info_nce,
    lloyd_groups,
    mean_entropy,
    mixmatch_losses,
    mixup,
    noisy_student_loss,
    normalized_mse,
    nt_xent,
    pseudo_label,
    pseudo_targets,
    scan_consistency,
    scan_head_scores,
    scan_loss,
    sharpen,
    sharpened_targets,
    sinkhorn,
    student_assignment,
    swapped_prediction,
    target_divergence,
    unit_rows,
)
from tests._golden import assert_same_ranking, cases


def leaf(values):
    """Return values as a float64 tensor that takes a gradient."""
    return torch.tensor(np.asarray(values), dtype=torch.float64, requires_grad=True)


def assert_close(actual, expected, rtol=1e-8, atol=1e-10):
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def pairs(max_value=50.0):
    """Two float64 arrays of one shape (B, K), finite."""
    shape = st.tuples(st.integers(1, 6), st.integers(2, 5))
    elements = st.floats(-max_value, max_value)
    return shape.flatmap(
        lambda s: st.tuples(
            arrays(np.float64, s, elements=elements),
            arrays(np.float64, s, elements=elements),
        )
    )


# -- contrastive


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


# -- MoCo, BYOL, SwAV, CLD


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


@given(pairs(), st.floats(1e-3, 1e3))
def test_unit_rows_have_length_one_or_zero(pair, scale):
    z = torch.tensor(pair[0])
    lengths = unit_rows(z * scale).norm(dim=-1).numpy()
    big = (z * scale).norm(dim=-1).numpy() > 1e-5
    np.testing.assert_allclose(lengths[big], 1, rtol=1e-6)
    assert (lengths < 1 + 1e-6).all()


def test_iic_loss_golden():
    for case in cases("iic_loss"):
        p1, p2 = leaf(case["p1"]), leaf(case["p2"])
        loss = iic_loss(p1, p2, float(case["lamb"]))
        loss.backward()
        assert_close(loss, case["loss"])
        assert_close(p1.grad, case["grad_p1"])
        assert_close(p2.grad, case["grad_p2"])
        assert_close(iic_loss(p1, p2), case["loss_no_lamb"])


def test_iic_loss_at_its_ends():
    sure = torch.eye(5).repeat(3, 1)
    assert_close(iic_loss(sure, sure), -math.log(5), rtol=1e-6)
    even = torch.full((15, 5), 0.2)
    assert_close(iic_loss(even, sure), 0, atol=1e-6)
    heads = iic_loss(torch.stack([sure, even]), torch.stack([sure, sure]))
    assert_close(heads, [-math.log(5), 0], rtol=1e-6, atol=1e-6)


@given(pairs(5))
def test_iic_loss_is_minus_the_information_of_views(pair):
    p1, p2 = (torch.tensor(x).softmax(1) for x in pair)
    loss = iic_loss(p1, p2)
    assert -math.log(p1.shape[1]) - 1e-9 <= loss <= 1e-9
    assert_close(iic_loss(p2, p1), loss)
    order = torch.randperm(len(p1))
    assert_close(iic_loss(p1[order], p2[order]), loss)


def test_iic_segmentation_loss_golden():
    for case in cases("iic_segmentation_loss"):
        p1, p2 = leaf(case["p1"]), leaf(case["p2"])
        parts = torch.tensor(case["affine2_to_1"]), torch.tensor(case["mask"])
        settings = int(case["half_side"]), not case["uncollapsed"]
        loss = iic_segmentation_loss(p1, p2, *parts, float(case["lamb"]), *settings)
        loss.backward()
        assert_close(loss, case["loss"], rtol=1e-7)
        assert_close(p1.grad, case["grad_p1"], rtol=1e-7)
        assert_close(p2.grad, case["grad_p2"], rtol=1e-7)


def test_iic_segmentation_of_single_pixels_is_the_clustering_loss():
    p1, p2 = torch.rand(2, 9, 4, 1, 1).softmax(2)
    expected = iic_loss(p1[:, :, 0, 0], p2[:, :, 0, 0])
    for collapsed in (True, False):
        found = iic_segmentation_loss(p1, p2, collapsed=collapsed)
        assert_close(found, expected, rtol=1e-5)


@pytest.mark.parametrize("collapsed", [False, True])
def test_iic_segmentation_leaves_out_displacements_without_pairs(collapsed):
    p1, p2 = torch.rand(2, 3, 4, 5, 5).softmax(2)
    mask = torch.zeros(3, 5, 5)
    mask[:, 2, 2] = 1  # pairs at displacement 0 only
    expected = iic_segmentation_loss(p1, p2, None, mask, collapsed=collapsed)
    p1.requires_grad_()
    found = iic_segmentation_loss(p1, p2, None, mask, 1.0, 2, collapsed)
    assert_close(found, expected, rtol=1e-5)
    nothing = iic_segmentation_loss(p1, p2, None, 0 * mask, 1.0, 2, collapsed)
    assert nothing == 0
    (found + nothing).backward()
    assert p1.grad.isfinite().all() and (p1.grad != 0).any()


def test_dec_golden():
    # entries below 1e-7 count as 1e-7 here, as in Keras, but not in the file's code
    for case in cases("dec_clustering"):
        z, centers = leaf(case["z"]), leaf(case["centers"])
        q = student_assignment(z, centers, float(case["alpha"]))
        assert_close(q, case["q"], rtol=1e-9)
        p = sharpened_targets(q)
        assert_close(p, case["p"], rtol=1e-9, atol=1e-15)
        loss = target_divergence(q, p)
        loss.backward()
        assert_close(loss, case["kl_batchmean"], rtol=1e-9, atol=1e-8)
        assert_close(z.grad, case["grad_z_batchmean"], rtol=1e-9, atol=1e-9)
        assert_close(centers.grad, case["grad_centers_batchmean"], rtol=1e-9, atol=1e-9)
        assert_close(entropy(q), case["entropy_q"], rtol=1e-9, atol=1e-6)


def test_dcec_golden():
    for case in cases("dcec_loss"):
        z, centers = leaf(case["z"]), leaf(case["centers"])
        x = leaf(case["x_reconstructed"])
        alpha, gamma = float(case["alpha"]), float(case["gamma"])
        q = student_assignment(z, centers, alpha)
        assert_close(q, case["q"])
        everyone = student_assignment(torch.tensor(case["z_all"]), centers, alpha)
        p = sharpened_targets(everyone)[: len(z)]
        assert_close(p, case["p"])
        divergence = target_divergence(q, p)
        error = torch.nn.functional.mse_loss(x, torch.tensor(case["x"]))
        loss = gamma * divergence + error
        loss.backward()
        assert_close(divergence, case["loss_cluster"])
        assert_close(error, case["loss_reconstruction"])
        assert_close(loss, case["loss"])
        assert_close(z.grad, case["grad_z"], atol=1e-12)
        assert_close(centers.grad, case["grad_centers"], atol=1e-12)
        assert_close(x.grad, case["grad_x_reconstructed"], atol=1e-12)


def test_sharpening_raises_what_is_sure():
    q = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    p = sharpened_targets(q)
    assert p[0, 0] > 0.9 and p[2, 1] > 0.8
    assert_close(p.sum(1), np.ones(3), rtol=1e-6)
    # an empty cluster gets no targets, and nothing is divided by 0
    assert sharpened_targets(torch.tensor([[1.0, 0.0]])).tolist() == [[1, 0]]


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


# -- SCAN


def scan_parts(case):
    anchors, neighbors = leaf(case["anchors"]), leaf(case["neighbors"])
    weight = float(case["entropy_weight"])
    loss = scan_loss(anchors, neighbors, weight)
    loss.backward()
    assert_close(loss, case["total"])
    assert_close(scan_consistency(anchors, neighbors), case["consistency"])
    assert_close(mean_entropy(anchors.softmax(1)), case["entropy"])
    return anchors, neighbors


def test_scan_loss_golden():
    for case in cases("scan_loss"):
        anchors, neighbors = scan_parts(case)
        assert_close(anchors.grad, case["grad_anchors"])
        assert_close(neighbors.grad, case["grad_neighbors"])


def test_scan_loss_golden_where_pairs_disagree():
    # ours is the exact gradient, which does not die
    for case in cases("scan_loss_disagree"):
        anchors, neighbors = scan_parts(case)
        assert_close(anchors.grad, case["grad_anchors_exact"])
        assert_close(neighbors.grad, case["grad_neighbors_exact"])
        similarity = (anchors.softmax(1) * neighbors.softmax(1)).sum(1)
        assert_close(similarity, case["similarity"], atol=0)


def test_entropy_golden():
    for case in cases("scan_entropy"):
        values = leaf(case["input"])
        found = entropy(values, from_logits=not case["as_probabilities"]).mean()
        found.backward()
        assert_close(found, case["entropy"], atol=1e-12)
        assert_close(values.grad, case["grad_input"], atol=1e-12)


def test_scan_head_scores_golden():
    for case in cases("scan_heads"):
        total, consistency, spread = scan_head_scores(
            torch.from_numpy(case["probabilities"]), torch.from_numpy(case["neighbors"])
        )
        assert_close(total, case["total"], atol=0)
        assert_close(consistency, case["consistency"], atol=0)
        assert_close(spread, case["entropy"], atol=0)
        best = [int(case["best_head"])]
        assert_same_ranking([int(total.argmin())], best, case["total"])


def test_scan_head_scores_cap_impossible_pairs():
    p = torch.eye(2, dtype=torch.float64)[None]  # two rows, surely different
    total, consistency, spread = scan_head_scores(p, torch.tensor([[0, 1], [1, 0]]))
    assert_close(consistency, [50.0])
    assert_close(total, consistency.numpy() - spread.numpy())


def test_scan_loss_by_hand():
    # both sure of one class with p = 3/4, one row each way
    sure = math.log(3)
    logits = torch.tensor([[sure, 0.0], [0.0, sure]], dtype=torch.float64)
    agree = -math.log(0.75**2 + 0.25**2)
    assert_close(scan_consistency(logits, logits), agree)
    assert_close(scan_loss(logits, logits, 2.0), agree - 2 * math.log(2))
    assert_close(scan_consistency(logits, logits.flip(0)), -math.log(2 * 0.75 * 0.25))


def test_scan_loss_of_heads_is_one_value_per_head():
    anchors, neighbors = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    one_by_one = [scan_loss(a, n).item() for a, n in zip(anchors, neighbors)]
    assert_close(scan_loss(anchors, neighbors), one_by_one)


def test_scan_loss_with_equal_shares_as_prior_is_without():
    anchors, neighbors = leaf(np.random.randn(9, 4)), leaf(np.random.randn(9, 4))
    plain = torch.autograd.grad(scan_loss(anchors, neighbors), anchors)[0]
    prior = torch.full((4,), 0.25)
    given_prior = scan_loss(anchors, neighbors, prior=prior)
    assert_close(given_prior, scan_loss(anchors, neighbors).item())
    assert_close(torch.autograd.grad(given_prior, anchors)[0], plain.numpy())


def test_scan_prior_is_where_the_shares_go():
    prior = torch.tensor([0.7, 0.2, 0.1, 0.0])
    logits = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        # of the loss only the entropy term: agreement is left out by its detached twin
        loss = scan_loss(logits, logits, 1.0, prior) - scan_consistency(logits, logits)
        loss.backward()
        optimizer.step()
    assert_close(logits.softmax(1)[0], prior.numpy(), rtol=0, atol=5e-3)


@given(pairs(), st.randoms(use_true_random=False))
def test_scan_loss_ignores_order_and_shifts(pair, random):
    anchors, neighbors = map(torch.from_numpy, pair)
    rows, classes = (random.sample(range(n), n) for n in anchors.shape)
    loss = scan_loss(anchors, neighbors)
    moved = scan_loss(anchors[rows][:, classes] + 3, neighbors[rows][:, classes] - 5)
    assert_close(moved, loss.item(), atol=1e-9)
    assert 0 <= scan_consistency(anchors, neighbors) + 1e-12 <= 100 + 1e-12
    # the agreement is mutual
    assert_close(
        scan_consistency(neighbors, anchors), scan_consistency(anchors, neighbors)
    )


@given(pairs())
def test_entropy_is_between_zero_and_even(pair):
    p = torch.from_numpy(pair[0]).softmax(1)
    rows, together = entropy(p), mean_entropy(p)
    slack = 1e-6  # of the clamp
    assert (rows >= 0).all()
    assert together <= math.log(p.shape[1]) + slack
    assert rows.mean() <= together + slack  # concave


def test_scan_gradient_pulls_pairs_together_and_spreads_clusters():
    wrong_pair = leaf([[40.0, 0.0]]), leaf([[0.0, 40.0]])
    scan_consistency(*wrong_pair).backward()
    assert wrong_pair[0].grad[0, 1] < -0.1 < 0.1 < wrong_pair[0].grad[0, 0]
    one_cluster = leaf([[2.0, 0.0]] * 4)
    (-mean_entropy(one_cluster.softmax(1))).backward()
    assert (one_cluster.grad[:, 0] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1.0, 6e4, 1e37])
def test_scan_extremes_are_finite(dtype, scale):
    if scale > torch.finfo(dtype).max:
        pytest.skip("not a number of this type")
    logits = torch.randn(2, 6, 4).clamp(-1, 1).mul(scale).to(dtype).requires_grad_()
    loss = scan_loss(*logits, prior=torch.tensor([1.0, 0.0, 0.0, 0.0]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


# -- SCAN's self-labeling


def golden_selflabel(found):
    for case in found:
        weak, strong = leaf(case["weak"]), leaf(case["strong"])
        balance = bool(case["class_balancing"])
        loss = confidence_cross_entropy(weak, strong, float(case["threshold"]), balance)
        loss.backward()
        assert weak.grad is None
        if case["raises"]:  # the public code stops; ours has nothing to learn
            assert not case["mask"].any()
            assert loss == 0 and not strong.grad.any()
            continue
        assert_close(loss, case["loss"])
        assert_close(strong.grad, case["grad_strong"])
        # gradients of rows are w (softmax - target) / sum of w
        target = torch.from_numpy(case["target"])
        slope = strong.detach().softmax(1)
        slope -= torch.nn.functional.one_hot(target, slope.shape[1])
        # a row whose target has all the probability has nothing more to learn
        learns = case["mask"] & (slope.abs().sum(1).numpy() > 1e-12)
        weight = (strong.grad.abs().sum(1) / slope.abs().sum(1)).numpy()
        assert not strong.grad[~case["mask"]].any() and (weight[learns] > 0).all()
        pushed = strong.grad.argmin(1).numpy()[learns]
        np.testing.assert_array_equal(pushed, case["target"][learns])
        if balance:
            wanted = case["class_weight"][case["target"]][learns]
            weight = weight[learns]
            assert_close(weight / weight.sum(), wanted / wanted.sum())


def test_confidence_cross_entropy_golden():
    golden_selflabel(cases("scan_selflabel"))


def test_confidence_cross_entropy_golden_edges():
    golden_selflabel(cases("scan_selflabel_edges"))


@given(pairs(8.0), st.floats(0.2, 0.999), st.booleans())
def test_confidence_cross_entropy_is_torchs_weighted_mean(pair, threshold, balance):
    weak, strong = map(torch.from_numpy, pair)
    p = weak.softmax(1)
    kept = p.amax(1) > threshold
    loss = confidence_cross_entropy(weak, strong, threshold, balance)
    if not kept.any():
        assert loss == 0
        return
    targets = p.argmax(1)[kept]
    counts = torch.bincount(targets, minlength=p.shape[1]).double()
    weight = torch.where(counts > 0, kept.sum() / counts, 1.0) if balance else None
    expected = torch.nn.functional.cross_entropy(strong[kept], targets, weight)
    assert_close(loss, expected.item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("term", [confidence_cross_entropy, pseudo_label])
@pytest.mark.parametrize("scale", [0.0, 1.0, 6e4, 1e37])
def test_self_taught_extremes_are_finite(dtype, term, scale):
    if scale > torch.finfo(dtype).max:
        pytest.skip("not a number of this type")
    weak, strong = torch.randn(2, 6, 4).clamp(-1, 1).mul(scale).to(dtype)
    strong.requires_grad_()
    loss = term(weak, strong)
    loss = loss[0] if isinstance(loss, tuple) else loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss) and torch.isfinite(strong.grad).all()


# -- FixMatch


def test_pseudo_label_golden():
    for case in cases("fixmatch_loss"):
        x, weak, strong = (
            leaf(case[key]) for key in ("logits_x", "logits_u_w", "logits_u_s")
        )
        settings = {
            "threshold": float(case["threshold"]),
            "temperature": float(case["temperature"]),
            "hard": bool(case["hard_label"]),
        }
        loss, mask = pseudo_label(weak, strong, **settings)
        labels = torch.from_numpy(case["targets_x"])
        loss_x = torch.nn.functional.cross_entropy(x, labels)
        total = loss_x + float(case["lambda_u"]) * loss
        total.backward()
        assert_close(loss, case["loss_u"])
        assert_close(total, case["loss"])
        np.testing.assert_array_equal(mask.numpy(), case["mask"] > 0)
        assert_close(strong.grad, case["grad_logits_u_s"])
        assert weak.grad is None and not case["grad_logits_u_w"].any()
        targets, sure = pseudo_targets(weak, **settings)
        assert torch.equal(sure, mask)
        if case["hard_label"]:
            np.testing.assert_array_equal(targets.numpy(), case["pseudo_label"])
        else:
            assert_close(targets, case["soft_target"])
            np.testing.assert_array_equal(targets.argmax(1), case["pseudo_label"])


@given(pairs(8.0), st.floats(0.2, 0.999), st.floats(0.3, 2), st.booleans())
def test_pseudo_label_is_the_slow_loop(pair, threshold, temperature, hard):
    total = 0.0
    for weak, strong in zip(*pair):
        p = np.exp(weak - weak.max())
        p /= p.sum()
        sharp = np.exp((weak - weak.max()) / temperature)
        sharp /= sharp.sum()
        log_q = strong - strong.max()
        log_q -= np.log(np.exp(log_q).sum())
        if (sharp if hard else p).max() >= threshold:
            total -= log_q[sharp.argmax()] if hard else sharp @ log_q
    loss, mask = pseudo_label(
        *map(torch.from_numpy, pair), threshold, temperature, hard
    )
    near = torch.from_numpy(pair[0] / (temperature if hard else 1)).softmax(1).amax(1)
    if (near - threshold).abs().min() > 1e-12:
        assert_close(loss, total / len(mask))


def test_pseudo_label_thresholds_of_classes():
    # rows sure of classes 2, 0, 1, 2 with 0.9 each
    classes = torch.tensor([2, 0, 1, 2])
    weak = torch.eye(3, dtype=torch.float64)[classes] * math.log(18)
    strong = torch.randn(4, 3, dtype=torch.float64)
    loss, mask = pseudo_label(weak, strong, torch.tensor([0.8, 0.95, 0.9 - 1e-6]))
    assert mask.tolist() == [True, True, False, True]
    losses = torch.nn.functional.cross_entropy(strong, classes, reduction="none")
    assert_close(loss, losses[mask].sum().item() / 4)
    # one for all, as a number or as a tensor of any kind
    for threshold in (0.85, torch.tensor(0.85), torch.full((3,), 0.85)):
        assert pseudo_label(weak, strong, threshold)[1].all()


def test_pseudo_label_reaches_and_self_label_exceeds():
    weak = torch.zeros(1, 2, dtype=torch.float64)  # exactly one half
    strong = leaf([[1.0, 2.0]])
    loss, mask = pseudo_label(weak, strong, 0.5)
    assert mask.all() and loss > 0
    assert confidence_cross_entropy(weak, strong, 0.5) == 0


@given(pairs(8.0), st.randoms(use_true_random=False))
def test_pseudo_label_ignores_order_and_counts_all_rows(pair, random):
    weak, strong = map(torch.from_numpy, pair)
    order = random.sample(range(len(weak)), len(weak))
    loss, mask = pseudo_label(weak, strong, 0.8)
    moved, moved_mask = pseudo_label(weak[order], strong[order], 0.8)
    assert_close(moved, loss.item())
    assert torch.equal(moved_mask, mask[order])
    # as many unsure rows again: half the loss
    unsure = torch.zeros_like(weak)
    both = torch.cat([weak, unsure]), torch.cat([strong, strong])
    assert_close(pseudo_label(*both, 0.8)[0], loss.item() / 2)


def test_pseudo_label_of_no_rows_is_zero():
    none = torch.zeros(0, 3, requires_grad=True)
    loss, mask = pseudo_label(none, none)
    loss.backward()
    assert loss == 0 and mask.shape == (0,)


def test_losses_leave_their_inputs_alone():
    a, b = torch.randn(2, 5, 4)
    before = a.clone(), b.clone()
    nt_xent(a, b), nt_xent(a, b, 1.0, False), scan_loss(a, b)
    confidence_cross_entropy(a, b, 0.1), pseudo_label(a, b, 0.1)
    scan_head_scores(a.softmax(1)[None], torch.zeros(5, 2, dtype=torch.long))
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


@pytest.mark.gpu
def test_losses_on_the_gpu():
    a, b = torch.randn(2, 33, 7)
    on_gpu = a.cuda(), b.cuda()
    for loss in (nt_xent, scan_loss, confidence_cross_entropy):
        assert_close(loss(*on_gpu).cpu(), loss(a, b).numpy(), rtol=1e-4)
    thresholds = torch.full((7,), 0.3)
    loss, mask = pseudo_label(*on_gpu, thresholds)
    expected, expected_mask = pseudo_label(a, b, thresholds)
    assert_close(loss.cpu(), expected.numpy(), rtol=1e-4)
    assert torch.equal(mask.cpu(), expected_mask)


@given(pairs())
def test_distillation_is_least_where_student_and_teacher_agree(given_pair):
    teacher, student = map(leaf, given_pair)
    loss = distillation(teacher, student, temperature=2.0)
    loss.backward()
    assert teacher.grad is None and torch.isfinite(student.grad).all()
    own = entropy(teacher.detach() / 2, from_logits=True).mean()
    assert_close(distillation(teacher, teacher, temperature=2.0), own)
    assert loss.item() >= own.item() - 1e-9


@given(pairs(5.0))
def test_guesses_are_sharpened_means(given_pair):
    logits = torch.stack([torch.from_numpy(part) for part in given_pair])
    mean = logits.softmax(-1).mean(0)
    guess = guessed_labels(logits, 0.5)
    assert_close(guess, mean**2 / (mean**2).sum(1, keepdim=True))
    assert_close(guess, sharpen(mean, 0.5))
    assert_close(sharpen(mean, 1.0), mean)
    assert (entropy(guess) <= entropy(mean) + 1e-9).all()


@given(pairs(5.0), st.integers(0, 99))
def test_mixed_rows_and_their_losses(given_pair, seed):
    logits, other = map(torch.from_numpy, given_pair)
    torch.manual_seed(seed)
    order, weights = torch.randperm(len(logits)), torch.rand(len(logits))
    targets = mixup(other.softmax(1), order, weights)
    assert_close(targets.sum(1), torch.ones(len(targets)), rtol=1e-6)
    assert_close(mixup(logits, order, torch.ones(len(logits))), logits)
    assert_close(mixup(logits, order, torch.zeros(len(logits))), logits[order])
    n_labeled = 1 + seed % len(logits)
    labeled, unlabeled = mixmatch_losses(logits, targets, n_labeled)
    by_hand = -(targets * logits.log_softmax(1))[:n_labeled].sum(1).mean()
    assert_close(labeled, by_hand, rtol=1e-6)
    assert 0 <= unlabeled.item() <= 2 / logits.shape[1] + 1e-6
    if n_labeled == len(logits):
        assert unlabeled.item() == 0


@given(pairs(5.0), st.floats(0, 0.9))
def test_noisy_student_weighs_every_row_alike(given_pair, smoothing):
    logits, other = map(torch.from_numpy, given_pair)
    labels = other.argmax(1)
    empty = logits[:0]
    alone = noisy_student_loss(logits, labels, empty, empty, smoothing)
    log_p = logits.log_softmax(1)
    exact = -log_p.gather(1, labels[:, None]).mean()
    assert_close(alone, (1 - smoothing) * exact - smoothing * log_p.mean(), rtol=1e-6)
    twice = torch.cat([other, other])
    both = noisy_student_loss(logits, labels, twice, twice.softmax(1), smoothing)
    # the targets are the predictions: their entropy, two rows for each labeled one
    assert_close(both - alone, 2 * entropy(other.softmax(1)).mean(), rtol=1e-6)


@given(pairs(3.0))
def test_contrastive_clustering_prefers_the_right_centers(given_pair):
    z, other = map(leaf, given_pair)
    k = z.shape[1]
    y = torch.arange(len(z)) % k
    centers = torch.eye(k, dtype=torch.float64)
    for contrast in ("rows", "literal", "centers"):
        right = contrastive_clustering(
            4 * centers[y], y, centers, 0.5, contrast, normalize=False
        )
        wrong = contrastive_clustering(
            4 * centers[(y + 1) % k], y, centers, 0.5, contrast, normalize=False
        )
        if len(z) > 1:
            assert right < wrong
        loss = contrastive_clustering(z, y, other, 0.5, contrast)
        grads = torch.autograd.grad(loss, (z, other), allow_unused=True)
        assert all(g is None or torch.isfinite(g).all() for g in grads)


def test_every_public_loss_is_tested():
    public = {
        name
        for name, value in vars(losses).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    tested = {
        alias.name
        for path in Path(__file__).parent.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "sklabel.losses"
        for alias in node.names
    }
    assert public - tested == set()
