"""Samplers: which rows each batch of an epoch holds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklabel._core.samplers import (
    Coupled,
    LabeledThenCoupled,
    Mixed,
    Paired,
    Shuffled,
)
from sklabel._core.samples import Samples
from sklabel.classification._noisy_student import _Taught


@given(n=st.integers(2, 60), batch_size=st.integers(2, 20))
def test_an_epoch_visits_every_row_once_and_no_batch_has_one_row(n, batch_size):
    sampler = Shuffled(Samples(np.zeros((n, 3), np.float32), (3,)))
    batches = list(sampler.epoch(batch_size))
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert min(map(len, batches)) > 1
    assert len(batches) == sampler.n_batches(batch_size)


@given(
    n=st.integers(3, 50),
    n_labeled=st.integers(1, 50),
    batch_size=st.integers(1, 9),
    ratio=st.floats(0.2, 7),
)
def test_mixed_batches(n, n_labeled, batch_size, ratio):
    n_labeled = min(n_labeled, n - 1)
    targets = np.where(np.arange(n) < n_labeled, np.arange(n) % 2, -1)
    sampler = Mixed(Samples(np.arange(n)[:, None], (1,)), targets, ratio)
    batches = [sampler.fetch(rows) for rows in sampler.epoch(batch_size)]
    assert len(batches) == sampler.n_batches(batch_size)
    for x, y in batches:
        assert (y[:batch_size] >= 0).all()
        # an unlabeled row is told by its number
        assert torch.equal(y[batch_size:], -1 - x[batch_size:, 0].long())
        assert torch.equal(
            torch.from_numpy(targets)[x[:batch_size, 0].long()], y[:batch_size]
        )
        assert len(set(x[batch_size:, 0].tolist())) == len(y) - batch_size


@pytest.mark.parametrize("cls", [Mixed, _Taught])
@pytest.mark.parametrize("include_labeled", [False, True])
@pytest.mark.parametrize("n_unlabeled", [1, 5, 40])
def test_few_unlabeled_rows_do_not_shorten_an_epoch(cls, include_labeled, n_unlabeled):
    n_labeled, batch_size = 203, 8
    targets = np.append(np.arange(n_labeled) % 2, [-1] * n_unlabeled)
    sampler = cls(
        Samples(np.zeros((len(targets), 1)), (1,)), targets, 3, include_labeled
    )
    sampler.copies = (targets < 0).astype(int)  # of which _Taught teaches
    batches = list(sampler.epoch(batch_size))
    assert len(batches) == sampler.n_batches(batch_size) == 26
    labeled, unlabeled = map(np.concatenate, zip(*batches, strict=True))
    counts = np.bincount(labeled, minlength=n_labeled)
    assert counts.min() >= 1 and counts.max() <= 2 and counts.sum() == 26 * batch_size
    assert set(unlabeled) >= set(np.flatnonzero(targets < 0))


def test_where_unlabeled_rows_are_many_an_epoch_is_one_pass_over_them():
    targets = np.where(np.arange(100) < 20, 0, -1)
    sampler = Mixed(Samples(np.zeros((100, 1)), (1,)), targets, 2, False)
    batches = list(sampler.epoch(5))
    unlabeled = np.concatenate([rows for _, rows in batches])
    assert sorted(unlabeled) == list(range(20, 100))


def test_mixed_with_everything_labeled_is_supervised():
    targets = np.arange(10) % 2
    sampler = Mixed(Samples(np.zeros((10, 1)), (1,)), targets, 7)
    batches = [sampler.fetch(rows) for rows in sampler.epoch(4)]
    assert sum(len(y) for _, y in batches) == 10
    assert all((y >= 0).all() for _, y in batches)


@given(
    weights=st.lists(st.floats(0, 100), min_size=1, max_size=30).filter(sum),
    everything=st.booleans(),
)
def test_weights_say_how_often_labeled_rows_are_drawn(weights, everything):
    weights = np.array(weights)
    n = len(weights)
    targets = np.arange(n) % 2
    if not everything:
        targets, weights = np.append(targets, -1), np.append(weights, 9.0)
    sampler = Mixed(
        Samples(np.arange(len(targets))[:, None], (1,)), targets, 1, weights=weights
    )
    expected = weights[:n] / weights[:n].sum() * n
    for _ in range(3):
        counts = np.bincount(sampler._labeled_pass(), minlength=n)
        assert counts.sum() == n
        assert (np.abs(counts - expected) < 1 + 1e-6).all()
    shares = sampler.class_shares(2, drawn=True)
    np.testing.assert_allclose(
        shares * weights[:n].sum(),
        [weights[:n:2].sum(), weights[1:n:2].sum()],
        atol=1e-12 * weights[:n].sum(),  # a weight may be smaller than any share
    )


def test_pairs_draw_from_the_given_neighbors():
    neighbors = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
    sampler = Paired(Samples(np.arange(4)[:, None], (1,)), neighbors)
    seen = set()
    for _ in range(30):
        for rows in sampler.epoch(2):
            (x, partner), y = sampler.fetch(rows)
            assert torch.equal(x[:, 0].long(), y)
            seen |= set(zip(x[:, 0].tolist(), partner[:, 0].tolist(), strict=True))
    assert seen == {(a, b) for a, row in enumerate(neighbors) for b in row}


def test_pairs_come_once_in_an_epoch():
    samples = Samples(np.arange(12, dtype=np.float32)[:, None], (1,))
    pairs = np.array([[0, 5], [3, 1], [7, 8], [9, 2], [4, 4]])
    sampler = Coupled(samples, pairs)
    torch.manual_seed(0)
    batches = [sampler.fetch(numbers) for numbers in sampler.epoch(2)]
    assert len(batches) == sampler.n_batches(2) == 2  # the last one joins
    numbers = torch.cat([y for _, y in batches])
    assert sorted(numbers.tolist()) == list(range(5))
    found = [torch.cat([x[i] for x, _ in batches])[:, 0] for i in range(2)]
    assert torch.stack(found, 1).tolist() == pairs[numbers].tolist()
    in_order = Coupled(samples, pairs, in_order=True)
    assert np.concatenate(list(in_order.epoch(2))).tolist() == list(range(5))
    assert sampler.identity[0] is pairs


@pytest.mark.parametrize("n_pairs", [0, 3])
def test_labeled_rows_come_first_and_their_pairs_at_the_end(n_pairs):
    samples = Samples(np.arange(12, dtype=np.float32)[:, None], (1,))
    targets = np.array([1, -1, 0, 1, -1, 0, 1, -1, -1, 0, -1, -1])
    pairs = np.array([[0, 2], [3, 5], [9, 6]])[:n_pairs]
    sampler = LabeledThenCoupled(samples, targets, pairs)
    torch.manual_seed(0)
    batches = [sampler.fetch(rows) for rows in sampler.epoch(2)]
    assert len(batches) == sampler.n_batches(2) == 3 + (n_pairs > 0)
    rows = torch.cat([x[:, 0] for x, _ in batches[:3]]).int().tolist()
    assert sorted(rows) == [0, 2, 3, 5, 6, 9]
    for x, y in batches[:3]:
        assert y.tolist() == targets[x[:, 0].int()].tolist()
    for x, y in batches[3:]:
        assert torch.stack(x, 1)[..., 0].tolist() == pairs.tolist()
        assert y.tolist() == targets[pairs].tolist()
