"""The weak policy: shifts and mirror images."""

import torch

from sklabel import augment as A


def test_shifts_equal_padding_and_cropping():
    x = torch.rand(4, 2, 9, 7)
    down, right = torch.tensor([0, 3, -2, 8]), torch.tensor([1, -6, 0, 5])
    flip = torch.tensor([False, True, True, False])
    out = A.shift_flip(x, down, right, flip)
    for i in range(4):
        padded = torch.nn.functional.pad(x[i : i + 1], (6, 6, 8, 8), mode="reflect")[0]
        top, left = 8 - down[i], 6 - right[i]
        expected = padded[:, top : top + 9, left : left + 7]
        assert torch.equal(out[i], expected.flip(-1) if flip[i] else expected)


def test_weak_uses_all_its_shifts_and_both_sides():
    x = torch.arange(64.0).expand(2000, 1, 64, 64) / 64
    out = A.Weak(flip=0.5, shift=0.125)(x)
    steps = out[:, 0, 0, 31] * 64
    kept = out[:, 0, 0, 31] < out[:, 0, 0, 32]
    assert 0.45 < kept.float().mean() < 0.55
    assert set((31 - steps[kept]).int().tolist()) == set(range(-8, 9))
    assert torch.equal(A.Weak(flip=0, shift=0)(x[:5]), x[:5])
