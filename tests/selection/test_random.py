"""Tests of the random and of the stratified choice."""

import numpy as np
import pytest

from sklabel.selection import RandomSelector, StratifiedSelector
from sklabel.selection._random import class_sequence
from tests._golden import cases


def test_golden_random_selection():
    for case in cases("random_selection"):
        X = np.zeros((int(case["data_len"]), 1), dtype=np.float32)
        selector = RandomSelector(int(case["budget"]), random_state=int(case["seed"]))
        np.testing.assert_array_equal(selector.fit_select(X), case["selected"])


def test_golden_stratified_split():
    for case in cases("stratified_split"):
        counts, size = case["class_counts"], int(case["size"])
        np.testing.assert_array_equal(
            class_sequence(counts, size), case["class_sequence"]
        )
        y = np.repeat(np.arange(len(counts)), counts)
        X = np.zeros((len(y), 1), dtype=np.float32)
        rows = StratifiedSelector(size, random_state=0).fit_select(X, y)
        np.testing.assert_array_equal(y[rows], case["class_sequence"])
        np.testing.assert_array_equal(
            np.bincount(y[rows], minlength=len(counts)), case["labels_per_class"]
        )


def test_random_draws_every_candidate_equally_often():
    y = np.array([-1, 0, -1, -1, 1, -1])
    X = np.zeros((6, 1))
    rng = np.random.RandomState(0)
    selector = RandomSelector(1, random_state=rng)
    drawn = [selector.fit_select(X, y)[0] for _ in range(800)]
    counts = np.bincount(drawn, minlength=6)
    assert counts[[1, 4]].sum() == 0
    # Binomial(800, 1/4): mean 200, standard deviation 12.
    assert (abs(counts[[0, 2, 3, 5]] - 200) < 50).all()


def test_other_seeds_draw_other_rows():
    X = np.zeros((100, 1))
    a, b = (RandomSelector(20, random_state=seed).fit_select(X) for seed in (0, 1))
    assert set(a.tolist()) != set(b.tolist())


@pytest.mark.parametrize("selector", [RandomSelector, StratifiedSelector])
def test_images_and_paths_are_counted(selector):
    y = np.arange(30) % 3
    known = y if selector is StratifiedSelector else None
    forms = [
        np.zeros((30, 8, 8), np.uint8),
        np.zeros((30, 8, 8, 3), np.float32),
        [f"no/such/file{i}.png" for i in range(30)],
        np.array([[f"file{i}.png"] for i in range(30)], dtype=object),
    ]
    want = selector(6, random_state=0).fit_select(np.zeros((30, 1)), known)
    for X in forms:
        fitted = selector(6, random_state=0).fit(X, known)
        np.testing.assert_array_equal(fitted.sample_indices_, want)
        assert not hasattr(fitted, "assignments_")
    refitted = selector(6, random_state=0).fit(np.zeros((30, 1)), known)
    assert hasattr(refitted, "assignments_")
    assert not hasattr(refitted.fit(forms[0], known), "assignments_")


def test_equal_rule_gives_equal_counts_as_far_as_classes_reach():
    y = np.repeat(["a", "b", "c"], [100, 30, 2])
    X = np.zeros((len(y), 1))
    rows = StratifiedSelector(14, rule="equal", random_state=0).fit_select(X, y)
    classes, counts = np.unique(y[rows], return_counts=True)
    assert dict(zip(classes, counts, strict=True)) == {"a": 6, "b": 6, "c": 2}
    assert set(y[rows[:3]]) == {"a", "b", "c"}
    every = StratifiedSelector(len(y), rule="equal", random_state=0).fit_select(X, y)
    assert sorted(every.tolist()) == list(range(len(y)))


def test_rows_within_a_class_are_drawn_by_the_seed():
    y = np.arange(200) % 2
    X = np.zeros((200, 1))
    first = StratifiedSelector(20, random_state=0).fit_select(X, y)
    other = StratifiedSelector(20, random_state=1).fit_select(X, y)
    assert set(first.tolist()) != set(other.tolist())
    assert len(set(first.tolist())) == 20


def test_the_oracle_wants_every_label():
    X = np.zeros((4, 1))
    with pytest.raises(ValueError, match="2 of 4 rows of y are unlabeled"):
        StratifiedSelector(2).fit(X, [0, -1, 1, -1])
    with pytest.raises(ValueError, match="requires y to be passed"):
        StratifiedSelector(2).fit(X)
    with pytest.raises(ValueError, match="n_samples=5 rows are requested, but only 4"):
        StratifiedSelector(5).fit(X, [0, 1, 1, 0])


@pytest.mark.parametrize("selector", [RandomSelector(1), StratifiedSelector(1)])
def test_rows_of_several_lengths_are_refused(selector):
    with pytest.raises(ValueError, match=r"np\.stack\(list\(X\)\).*X may be"):
        selector.fit([[1, 2], [3]], [0, 1])
