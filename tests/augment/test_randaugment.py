"""RandAugment: golden tables, what is drawn, holes."""

import numpy as np
import pytest
import torch

from sklabel import augment as A
from tests._golden import cases
from tests.augment._policies import images

TABLES = "randaugment_tables.npz"


def values_of(op, levels, name, size=(100, 100)):
    number = torch.full((len(levels),), A.OPERATIONS.index(op))
    return A.op_values(number, torch.as_tensor(levels), name, size).numpy()


def test_golden_table_of_the_port():
    for case in cases("randaugment_tables"):
        names, top, bias = (
            case[f"fixmatch_port_{k}"] for k in ("names", "max", "bias")
        )
        assert set(names) == set(A.FIXMATCH)
        for op, most, low in zip(names, top, bias, strict=True):
            found = values_of(op, [0, 10], "port")
            if np.isnan(most):
                expected = [0, 0]
            elif op == "Solarize":
                expected = [256, 256 - most]
            elif op.startswith("Translate"):
                expected = [0, 100 * most]
            else:
                expected = [low, low + most]
            np.testing.assert_allclose(found, expected, atol=1e-12, err_msg=op)


def test_golden_table_of_the_official_code():
    for case in cases("randaugment_tables"):
        levels = case["fixmatch_official_levels"]
        names = case["fixmatch_official_names"]
        assert set(names) == set(A.FIXMATCH)
        rows = np.nan_to_num(case["fixmatch_official_level_values"])
        for op, expected in zip(names, rows, strict=True):
            found = values_of(op, levels, "official")
            np.testing.assert_allclose(found, expected, atol=1e-12, err_msg=op)


@pytest.mark.parametrize("golden, name", [("uslt", "scan"), ("usb", "usb")])
def test_golden_continuous_tables(golden, name):
    for case in cases("randaugment_tables"):
        names, low, high = (case[f"{golden}_{k}"] for k in ("names", "low", "high"))
        assert set(names) == set(A.FIXMATCH)
        for op, least, most in zip(names, low, high, strict=True):
            found = values_of(op, [0.0, 1.0], name)
            if op in ("Identity", "AutoContrast", "Equalize"):
                continue  # nothing to set
            if op.startswith("Translate"):
                least, most = 100 * least, 100 * most
            np.testing.assert_allclose(found, [least, most], atol=1e-9, err_msg=op)


def test_unknown_names_are_refused():
    x = images(1, 3, 8, 8)
    with pytest.raises(ValueError, match="table='x'"):
        A.RandAugment(table="x")(x)
    with pytest.raises(ValueError, match="Twirl"):
        A.RandAugment(ops=("Twirl",))(x)
    with pytest.raises(ValueError, match="ops='Invert'"):
        A.RandAugment(ops="Invert")(x)
    with pytest.raises(ValueError, match="magnitude=1 "):
        A.RandAugment(magnitude=1)(x)


def test_probability_and_pool():
    x = images(1000, 1, 8, 8)
    half = A.RandAugment(n_ops=1, probability=0.5, cutout=0, ops=("Invert",))
    inverted = (half(x) != x).flatten(1).any(1).float().mean()
    assert 0.44 < inverted < 0.56
    always = A.RandAugment(n_ops=2, probability=1.0, cutout=0, ops=("Invert",))
    assert torch.equal(always(x), x)  # twice inverted
    never = A.RandAugment(probability=0.0, cutout=0)
    assert torch.equal(never(x), x)


def test_the_pool_is_drawn_from_evenly():
    policy = A.RandAugment(probability=1.0)
    ops, values = policy._draw(7000, 32, 32)
    counts = torch.bincount(ops.flatten(), minlength=len(A.OPERATIONS))
    drawn = {A.OPERATIONS[i]: int(n) for i, n in enumerate(counts) if n}
    assert set(drawn) == set(A.FIXMATCH) and len(drawn) == 14
    assert all(850 < n < 1150 for n in drawn.values())
    rotate = values[ops == A.OPERATIONS.index("Rotate")]
    assert set(rotate.tolist()) == {s * 3 * v for v in range(1, 10) for s in (-1, 1)}
    bright = values[ops == A.OPERATIONS.index("Brightness")]
    np.testing.assert_allclose(bright.unique(), 0.05 + 0.09 * np.arange(1, 10))
    shift = values[ops == A.OPERATIONS.index("TranslateX")].abs().unique()
    assert shift.tolist() == [int(0.3 * v / 10 * 32) for v in range(1, 10)]


@pytest.mark.parametrize("name, side", [("port", 17), ("official", 16)])
def test_the_hole(name, side):
    x = torch.zeros(600, 3, 32, 32)
    policy = A.RandAugment(n_ops=0, table=name)
    hole = policy(x)[:, 0] > 0
    assert set(policy(x).unique().tolist()) == {0.0, float(torch.tensor(127) / 255)}
    heights, widths = hole.any(2).sum(1), hole.any(1).sum(1)
    assert (hole.sum((1, 2)) == heights * widths).all()
    assert heights.max() == widths.max() == side
    assert heights.min() < side  # cut at the border
    assert hole.float().mean(0).min() > 0  # anywhere


def test_holes_of_scan_have_many_sizes_and_the_color_of_the_data():
    x = torch.zeros(2000, 3, 32, 32)
    out = A.scan_strong(n_ops=0, fill=(0.2, 0.4, 0.6))(x)
    color = out.amax((2, 3))[out.amax((1, 2, 3)) > 0][0]
    assert torch.equal(color, torch.tensor([51.0, 102, 153]) / 255)
    heights = (out[:, 0] > 0).any(2).sum(1)
    assert heights.max() == 16 and len(heights.unique()) > 8


def test_the_mean_of_images_is_a_color_of_scans_holes():
    mean = torch.tensor([0.25, 0.5, 0.75])
    assert A.scan_strong(fill=mean.reshape(3, 1, 1)).fill == (0.25, 0.5, 0.75)


def test_the_weak_policy_comes_first():
    x = images(50, 3, 8, 8)
    policy = A.RandAugment(n_ops=0, cutout=0, weak=A.Weak(flip=1.0, shift=0))
    assert torch.equal(policy(x), x.flip(3))
