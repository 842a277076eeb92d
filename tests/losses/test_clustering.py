"""Clustering losses against golden values, invariances and extreme inputs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklabel.losses import (
    contrastive_clustering,
    entropy,
    iic_loss,
    iic_segmentation_loss,
    mean_entropy,
    scan_consistency,
    scan_head_scores,
    scan_loss,
    sharpened_targets,
    student_assignment,
    target_divergence,
)
from tests._golden import assert_same_ranking, cases
from tests.losses._checks import assert_close, leaf, pairs


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


@given(
    exponent=st.floats(-30, 37), alpha=st.floats(0.5, 5), seed=st.integers(0, 2**31 - 1)
)
def test_student_assignment_of_codes_of_any_size(exponent, alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(5, 3, generator=generator).clamp(-2, 2)
    centers = torch.randn(4, 3, generator=generator).clamp(-2, 2)
    z[0], centers[0] = 1e-3, 1.0  # rows of ordinary size beside the others
    z[1:], centers[1:] = z[1:] * 10.0**exponent, centers[1:] * 10.0**exponent
    squares = (z.double()[:, None] - centers.double()).square().sum(-1)
    expected = (-(alpha + 1) / 2 * (squares / alpha).log1p()).softmax(1)
    z.requires_grad_(), centers.requires_grad_()
    q = student_assignment(z, centers, alpha)
    torch.testing.assert_close(q.double(), expected, rtol=1e-3, atol=1e-4)
    loss = target_divergence(q, sharpened_targets(q))
    gradients = torch.autograd.grad(loss, (z, centers))
    assert all(g.isfinite().all() for g in gradients)


def test_student_assignment_of_ordinary_codes_keeps_its_bits():
    torch.manual_seed(0)
    z, centers = torch.randn(64, 10) * 100, torch.randn(7, 10)
    squares = (z[:, None] - centers).square().sum(-1)
    assert torch.equal(student_assignment(z, centers), (-squares.log1p()).softmax(1))
