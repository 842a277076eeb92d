"""CTAugment: golden operations and rates, what is drawn and learned."""

import copy
import itertools

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sklabel import augment as A
from tests._golden import cases
from tests.augment._policies import from_batch, images, to_batch

TABLES = "randaugment_tables.npz"


def test_golden_ctaugment_operations():
    for case in cases("ctaugment_ops"):
        x = to_batch(case["image"])
        rows = zip(case["op"], case["level"], case["output"], strict=True)
        for op, (level, method), expected in rows:
            level, method = np.nan_to_num([level, method])
            values = A.ctaugment_values(
                str(op), torch.tensor([level], dtype=torch.float64), x.shape[2:]
            )
            out = A.apply_op(x, A.CTAUGMENT[op][0], values, method, blend=True)
            out = from_batch(out).astype(int)
            np.testing.assert_array_equal(out, expected, err_msg=f"{op} {level}")


@pytest.mark.parametrize("batches", [1, 7])
def test_golden_ctaugment_rates(batches):
    for case in cases("ctaugment_rates"):
        assert list(A.CTAUGMENT) == case["op_names"].tolist()
        policy = A.CTAugment(
            int(case["depth"]), float(case["decay"]), float(case["threshold"])
        )
        given_ = (case[k] for k in ("op_index", "levels", "proximity"))
        for op, level, proximity in zip(
            *(torch.from_numpy(t).chunk(batches) for t in given_), strict=True
        ):
            policy.update((op, level), proximity)
        known = ~np.isnan(case["rates"])
        np.testing.assert_array_equal(policy.known.numpy(), known)
        rates = policy.rates.numpy()
        np.testing.assert_allclose(rates[known], case["rates"][known], rtol=1e-5)
        weight = np.nan_to_num(case["unnormalised_prob"])
        expected = weight / np.maximum(weight.sum(2, keepdims=True), 1e-30)
        found = policy.probabilities().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)


def test_golden_bins_of_ctaugment():
    for case in cases("randaugment_tables"):
        assert case["cta_names"].tolist() == list(A.CTAUGMENT)
        assert case["cta_bins"].tolist() == [[*b] for _, *b in A.CTAUGMENT.values()]


def test_ctaugment_learns_and_keeps_its_state():
    policy = A.CTAugment()
    # wherever an op is stronger than half, the model fails
    for _ in range(60):
        _, (ops, levels) = policy.probe(images(64, 1, 4, 4))
        policy.update((ops, levels), (levels[..., 0] < 0.5).all(1).float())
    row = policy.rates[list(A.CTAUGMENT).index("rotate"), 0]
    assert row[:8].min() > row[9:].max()
    other = A.CTAugment()
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.rates, policy.rates)
    assert list(policy.state_dict()) == ["rates"]
    fresh = clone(policy, safe=False)
    assert torch.equal(fresh.rates, A.CTAugment().rates)
    assert torch.equal(copy.deepcopy(policy).rates, policy.rates)


def test_ctaugment_draws_by_its_rates(monkeypatch):
    policy = A.CTAugment()
    policy.rates[:, :, 3:] *= 0.5  # below the threshold
    probabilities = policy.probabilities()
    assert (probabilities[:, :, 3:] == 0).all()
    sums = probabilities.sum(2)
    assert torch.allclose(sums[sums > 0], torch.ones(()))
    seen = []
    apply = A.CTAugment._transform

    def spy(self, x, ops, levels, cutout=0):
        seen.append((ops, levels))
        return apply(self, x, ops, levels, cutout)

    monkeypatch.setattr(A.CTAugment, "_transform", spy)
    policy(images(500, 1, 4, 4))
    ops, levels = seen[0]
    bins = policy.bins[ops]
    drawn = (levels * bins).floor()[bins > 0]
    assert set(drawn.tolist()) == {0.0, 1.0, 2.0}
    assert (levels >= 0).all() and (levels <= 1).all()


def test_ctaugment_updates_in_the_order_of_rows():
    policy, slow = A.CTAugment(decay=0.7), A.CTAugment(decay=0.7)
    ops = torch.randint(19, (80, 2))
    levels, proximity = torch.rand(80, 2, 2), torch.rand(80)
    policy.update((ops, levels), proximity)
    for i, j, k in itertools.product(range(80), range(2), range(2)):
        bins = int(slow.bins[ops[i, j], k])
        if bins:
            b = int(float(levels[i, j, k]) * bins * 0.999)
            old = slow.rates[ops[i, j], k, b]
            slow.rates[ops[i, j], k, b] = 0.7 * old + 0.3 * proximity[i]
    torch.testing.assert_close(policy.rates, slow.rates, rtol=1e-5, atol=1e-6)
    assert not torch.equal(policy.rates, A.CTAugment().rates)


def test_ctaugment_hole_and_probe_without_one():
    x = torch.zeros(300, 3, 32, 32)
    policy = A.CTAugment(depth=0)
    hole = policy(x)[:, 0] > 0
    assert hole.any(2).sum(1).max() == 16 and hole.any(1).sum(1).max() == 16
    views, (ops, levels) = policy.probe(x)
    assert torch.equal(views, x) and ops.shape == (300, 0)
    assert levels.shape == (300, 0, 2)
    assert torch.equal(A.CTAugment(depth=0, cutout=0)(x), x)
