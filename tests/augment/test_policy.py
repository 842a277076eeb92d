"""What all policies promise: shapes, ranges, randomness, state, parameters."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from sklabel import augment as A
from sklabel.augment.policy import pieces
from tests.augment._policies import POLICIES, SHAPES, images


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_ranges_and_input_unchanged(name, shape):
    x = images(*shape)
    before = x.clone()
    out = POLICIES[name](x)
    assert out.shape == x.shape and out.dtype == x.dtype
    assert not out.isnan().any()
    assert out.data_ptr() != x.data_ptr() or not x.numel()
    if x.numel():
        assert out.min() >= 0 and out.max() <= 1
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=15)
@given(
    st.integers(1, 6),
    st.sampled_from([1, 3]),
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.sampled_from([0.0, 1.0, None]),
)
def test_any_shape(name, n, channels, height, width, dtype, constant):
    x = images(n, channels, height, width, dtype=dtype)
    x = x if constant is None else torch.full_like(x, constant)
    out = POLICIES[name](x)
    assert out.shape == x.shape and out.dtype == dtype
    assert torch.isfinite(out).all() and out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("name", POLICIES)
def test_equal_images_come_out_different(name):
    x = images(1, 3, 32, 32).expand(32, 3, 32, 32)
    out = POLICIES[name](x)
    different = len(torch.unique(out.flatten(1), dim=0))
    # without flips, 81 shifts are left to 32 images; with them, and else, more
    assert different >= 20
    assert not torch.equal(out, POLICIES[name](x))


@pytest.mark.parametrize("name", POLICIES)
def test_same_seed_same_views(name):
    x = images(40, 3, 16, 16)
    views = []
    for _ in range(2):
        torch.manual_seed(3)
        views.append(POLICIES[name](x))
    assert torch.equal(*views)


@pytest.mark.parametrize("name", POLICIES)
def test_any_layout_of_memory(name):
    x = images(8, 3, 16, 12)
    torch.manual_seed(1)
    expected = POLICIES[name](x)
    torch.manual_seed(1)
    found = POLICIES[name](x.to(memory_format=torch.channels_last))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", POLICIES)
def test_half_precision_around_changes_nothing(name):
    x = images(8, 3, 16, 16)
    torch.manual_seed(1)
    expected = POLICIES[name](x)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = POLICIES[name](x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", POLICIES)
def test_wrong_input_is_refused(name):
    with pytest.raises(ValueError, match=r"floats in \[0, 1\]"):
        POLICIES[name](torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        POLICIES[name](torch.zeros(3, 8, 8))


@pytest.mark.parametrize("name", POLICIES)
def test_clones_copies_and_pickles(name):
    policy = POLICIES[name]
    x = images(6, 3, 16, 16)
    copies = [
        clone(policy, safe=False),
        type(policy)(**clone(policy).get_params(deep=False)),
        copy.deepcopy(policy),
        pickle.loads(pickle.dumps(policy)),
    ]
    for other in copies:
        assert other is not policy and repr(other) == repr(policy)
        results = []
        for p in (policy, other):
            torch.manual_seed(5)
            results.append(p(x))
        assert torch.equal(*results)


@pytest.mark.parametrize("name", POLICIES)
def test_policies_move_as_modules_do(name):
    policy = copy.deepcopy(POLICIES[name]).to("cpu").train().eval().double()
    x = images(4, 3, 16, 16)
    assert policy(x).dtype == torch.float32
    assert torch.nn.Sequential(policy).requires_grad_(False)(x).shape == x.shape


def test_more_pieces_than_one_are_put_together():
    # large enough for several pieces on a CPU
    x = images(700, 3, 32, 32)
    assert len(pieces(x)) > 1
    plain = A.Contrastive(crop=(1, 1), aspect=(1, 1), flip=0, jitter=0, grayscale=0)
    torch.testing.assert_close(plain(x), x, atol=1e-6, rtol=0)
    assert torch.equal(A.RandAugment(n_ops=0, cutout=0)(x), x)


def test_nested_parameters():
    policy = A.RandAugment(weak=A.Weak(flip=0))
    params = policy.get_params()
    assert params["weak__flip"] == 0 and params["weak"] is policy.weak
    assert "weak__flip" not in policy.get_params(deep=False)
    assert policy.set_params(weak__flip=0.3, n_ops=1) is policy
    assert policy.weak.flip == 0.3 and policy.n_ops == 1
    policy.set_params(weak=None)
    assert policy.weak is None and not list(policy.children())
    policy.set_params(weak=A.Weak(), weak__shift=0.2)
    assert policy.weak.shift == 0.2 and len(list(policy.children())) == 1
    with pytest.raises(ValueError, match="no parameter 'strength'.*n_ops"):
        policy.set_params(strength=1)


@pytest.mark.parametrize("name", POLICIES)
def test_arguments_are_stored_as_given(name):
    params = POLICIES[name].get_params(deep=False)
    again = type(POLICIES[name])(**params).get_params(deep=False)
    assert list(params) == list(again)
    assert all(params[k] is again[k] for k in params)


def test_a_policy_in_a_grid_of_a_pipeline():
    from sklearn.base import BaseEstimator

    class Holder(BaseEstimator):
        def __init__(self, augment=None):
            self.augment = augment

    holder = clone(Holder(A.Contrastive())).set_params(augment__jitter=0.1)
    assert holder.augment.jitter == 0.1
    assert clone(holder).augment.jitter == 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("name", POLICIES)
def test_on_a_gpu_without_waiting_for_it(name):
    policy = copy.deepcopy(POLICIES[name]).cuda()
    x = images(16, 3, 32, 32).cuda()
    policy(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = policy(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert out.device == x.device and out.min() >= 0 and out.max() <= 1
