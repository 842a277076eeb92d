"""Temperature scaling: known temperatures come back, labels are withheld fairly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklabel._core.calibration import (
    beta_interval,
    fit_temperature,
    hold_out,
    match_temperature,
    rescale,
    with_doubt,
)


def draw(n=20_000, k=4, scale=2.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k)) * scale
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    codes = (p.cumsum(1) > rng.random((n, 1))).argmax(1)
    return p, codes


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_a_known_temperature_is_found(temperature):
    p, codes = draw()
    too_sure = rescale(p, 1 / temperature)
    found = fit_temperature(too_sure, codes)
    assert abs(found / temperature - 1) < 0.05
    np.testing.assert_allclose(rescale(too_sure, temperature), p, atol=1e-6)


def loss(p, codes):
    return -np.log(p[np.arange(len(codes)), codes]).mean()


@pytest.mark.parametrize("n", [10, 15, 30])
@pytest.mark.parametrize("seed", range(5))
def test_few_rows_that_are_all_right_do_not_make_all_answers_sure(n, seed):
    p, codes = draw(scale=6.0, seed=seed)
    right = np.flatnonzero(p.argmax(1) == codes)[:n]
    found = fit_temperature(p[right], codes[right])
    assert 0.4 < found < 1
    assert loss(rescale(p, found), codes) < 1.35 * loss(p, codes)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_many_rows_have_the_most_likely_temperature(temperature):
    p, codes = draw(n=500)
    p = rescale(p, 1 / temperature)
    grid = np.geomspace(0.1, 10, 2001)
    best = grid[np.argmin([loss(rescale(p, t), codes) for t in grid])]
    assert abs(fit_temperature(p, codes) / best - 1) < 0.02


def test_sure_answers_stay_finite():
    p = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    assert 5 < fit_temperature(p, np.array([0, 1, 2, 1])) < 30
    assert abs(fit_temperature(p, np.array([0, 1, 2, 0])) - 1) < 1e-3
    scaled = rescale(p, 3.0)
    assert scaled.dtype == np.float32 and np.isfinite(scaled).all()
    np.testing.assert_allclose(scaled.sum(1), 1, rtol=1e-6)
    assert rescale(p, 1.0) is p


def test_an_unreadable_row_stays_so():
    p = np.array([[np.nan, np.nan], [0.9, 0.1]], np.float32)
    scaled = rescale(p, 2.0)
    assert np.isnan(scaled[0]).all() and np.isfinite(scaled[1]).all()


@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    size=st.one_of(st.integers(1, 60), st.floats(0.05, 0.95)),
    seed=st.integers(0, 99),
)
def test_labels_are_withheld_of_every_class(counts, size, seed):
    codes = np.append(np.repeat(np.arange(len(counts)), counts), [-1] * 5)
    try:
        trained, rows = hold_out(codes, size, seed)
    except ValueError as error:
        assert f"calibration_size={size} would withhold" in str(error)
        return
    assert (codes[rows] >= 0).all() and (trained[rows] == -1).all()
    rest = np.setdiff1d(np.arange(len(codes)), rows)
    np.testing.assert_array_equal(trained[rest], codes[rest])
    assert set(trained) == set(codes)  # no class is lost
    wanted = size if isinstance(size, int) else round(size * sum(counts))
    assert len(rows) == wanted >= 10
    assert len(set(rows)) == len(rows)
    found = np.bincount(codes[rows], minlength=len(counts))
    spare = np.array(counts) - 1  # one of each class stays
    assert (np.abs(found - len(rows) * spare / spare.sum()) < 1 + 1e-9).all()


@pytest.mark.parametrize("accuracy", [0.25, 0.5, 0.9, 0.99])
def test_the_mean_confidence_is_matched(accuracy):
    p = np.random.default_rng(0).dirichlet(np.ones(5), 400).astype(np.float32)
    found = rescale(p, match_temperature(p, accuracy))
    assert found.max(1).mean() == pytest.approx(accuracy, abs=1e-3)
    np.testing.assert_array_equal(found.argmax(1), p.argmax(1))


def test_no_temperature_makes_a_guess_less_sure_or_the_sure_surer():
    p = np.random.default_rng(0).dirichlet(np.ones(5), 400)
    assert 1 < match_temperature(p, 0.0) <= 100  # a fifth is the least there is
    assert 0.01 <= match_temperature(p, 1.0) < 1
    assert match_temperature(np.full((9, 5), 0.2), 0.9) == 0.01
    assert match_temperature(p[:0], 0.9) == 1


def test_nothing_is_certain():
    p = with_doubt(np.eye(4, dtype=np.float32))
    assert p.max() < 0.9995 and p.dtype == np.float32
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)


def test_the_interval_holds_the_accuracy():
    low, high = beta_interval(36, 6)
    assert low == pytest.approx(0.72, abs=0.02) and high == pytest.approx(
        0.94, abs=0.02
    )
