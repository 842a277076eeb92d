"""Pseudo-labels against golden values, slow loops, invariances and extreme inputs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklabel.losses import (
    confidence_cross_entropy,
    distillation,
    entropy,
    guessed_labels,
    mixmatch_losses,
    mixup,
    noisy_student_loss,
    pseudo_label,
    pseudo_targets,
    self_adaptive_fairness,
    sharpen,
)
from tests._golden import cases
from tests.losses._checks import assert_close, leaf, pairs


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


@given(pairs(8.0), st.floats(0, 1))
def test_pseudo_label_weighs_rows(pair, weight):
    weak, strong = map(torch.from_numpy, pair)
    weights = torch.full((len(weak),), weight)
    weights[0] = 0
    loss, given_back = pseudo_label(weak, strong, 2 / 3, weights=weights)
    classes = weak.softmax(1).argmax(1)
    each = torch.nn.functional.cross_entropy(strong, classes, reduction="none")
    assert_close(loss, float((weights * each).sum() / len(weak)), rtol=1e-6)
    assert given_back is weights
    # as a mask they are what the threshold gives
    mask = pseudo_label(weak, strong, 2 / 3)[1]
    assert (
        pseudo_label(weak, strong, 2 / 3)[0]
        == (pseudo_label(weak, strong, 0.0, weights=mask)[0])
    )


def test_a_row_of_weight_zero_may_be_infinitely_wrong():
    strong = torch.tensor([[-torch.inf, 0.0], [1.0, 0.0]])
    weak = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    loss, _ = pseudo_label(weak, strong, weights=torch.tensor([0.0, 1.0]))
    assert_close(loss, math.log1p(math.exp(-1)) / 2, rtol=1e-6)


@given(pairs(8.0), st.randoms(use_true_random=False))
def test_fairness_is_the_slow_loop(pair, random):
    logits, other = pair
    n, k = logits.shape
    used = [i for i in range(n) if random.random() < 0.6]
    # torch's, since rounding decides which of two equal classes is the most probable
    q = torch.from_numpy(logits).softmax(1).numpy()
    p = np.abs(other[0]) + 0.1
    p /= p.sum()
    h = np.array([random.choice([0.0, 0.3, 0.7]) for _ in range(k)])
    h[0] += 0.1
    weights = torch.tensor([float(i in used) for i in range(n)])
    found = self_adaptive_fairness(
        leaf(logits), weights, torch.from_numpy(p), torch.from_numpy(h)
    )
    expected = 0.0
    if used:
        wanted = [p[j] / h[j] if h[j] else 0 for j in range(k)]
        counts = [sum(q[i].argmax() == j for i in used) for j in range(k)]
        mean = [sum(q[i, j] for i in used) for j in range(k)]
        had = [m / c if c else 0 for m, c in zip(mean, counts, strict=True)]
        for w, f in zip(wanted, had, strict=True):
            expected += w / sum(wanted) * math.log(f / sum(had) + 1e-12)
    assert_close(found, expected, rtol=1e-6)
    found.backward()


def test_pseudo_label_of_no_rows_is_zero():
    none = torch.zeros(0, 3, requires_grad=True)
    loss, mask = pseudo_label(none, none)
    loss.backward()
    assert loss == 0 and mask.shape == (0,)


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
