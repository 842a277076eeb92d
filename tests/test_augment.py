"""Augmentations: golden operations, torchvision's pieces, randomness, state, shapes."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from torchvision.transforms import functional as TF

from sklabel import augment as A
from tests._golden import cases

SCAN = A.scan_strong()
POLICIES = {
    "weak": A.Weak(),
    "weak, no flip": A.Weak(flip=0),
    "contrastive": A.Contrastive(),
    "contrastive, all": A.Contrastive(blur=0.5, rotate=20, solarize=0.5),
    "contrastive, plain": A.Contrastive(jitter=0, grayscale=0),
    "port": A.RandAugment(),
    "official": A.RandAugment(table="official", probability=1.0),
    "usb": A.RandAugment(table="usb", n_ops=3, probability=1.0),
    "within": A.RandAugment(weak=A.Weak(), fill=(0.2,)),
    "scan": SCAN,
    "ctaugment": A.CTAugment(),
}
SHAPES = [(1, 3, 32, 32), (5, 1, 28, 28), (4, 3, 3, 3), (3, 3, 1, 7), (2, 1, 9, 1)]
SHAPES += [(3, 3, 17, 40), (2, 2, 8, 8), (1, 1, 1, 1), (0, 3, 8, 8)]


def images(*shape, dtype=torch.float32):
    return (torch.randint(256, shape) / 255).to(dtype)


def to_batch(image):
    """Return an (H, W, C) array as a batch of one."""
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def from_batch(x):
    return x[0].permute(1, 2, 0).numpy()


# -- golden values


def test_golden_fixmatch_operations():
    for case in cases("randaugment_fixmatch_ops"):
        x = to_batch(case["image"])
        rows = zip(case["op"], case["level"], case["sign"], case["output"], strict=True)
        for op, level, sign, expected in rows:
            number = torch.tensor(A.OPERATIONS.index(op))
            size = tuple(x.shape[2:])
            level = torch.tensor(int(level))
            value = A.op_values(number, level, "port", size, int(sign))
            out = from_batch(A.apply_op(x, str(op), value)).astype(int)
            where = f"{op} {level} {sign}"
            np.testing.assert_array_equal(out, expected, err_msg=where)


def test_golden_official_operations():
    for case in cases("randaugment_official_ops"):
        # the public code cuts off fractions when it makes 8-bit values of [-1, 1]
        levels = np.floor((case["image"] + 1) * 127.5)
        x = to_batch(levels / 255)
        rows = zip(case["op"], case["level"], case["sign"], case["output"], strict=True)
        for op, level, sign, expected in rows:
            number = torch.tensor(A.OPERATIONS.index(op))
            level = torch.tensor(int(level))
            value = A.op_values(number, level, "official", x.shape[2:], int(sign))
            out = from_batch(A.apply_op(x, str(op), value, fill=0.5)) * 2 - 1
            where = f"{op} {level} {sign}"
            np.testing.assert_allclose(out, expected, atol=1e-6, rtol=0, err_msg=where)


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


def test_golden_bins_of_ctaugment():
    for case in cases("randaugment_tables"):
        assert case["cta_names"].tolist() == list(A.CTAUGMENT)
        assert case["cta_bins"].tolist() == [[*b] for _, *b in A.CTAUGMENT.values()]


# -- operations against PIL on other shapes


@pytest.mark.parametrize("size", [(7, 12), (3, 3), (5, 2), (1, 4), (40, 31)])
def test_operations_equal_pil(size):
    from PIL import Image, ImageEnhance, ImageFilter, ImageOps

    height, width = size
    x = torch.randint(256, (1, 3, height, width), dtype=torch.uint8)
    image = Image.fromarray(from_batch(x))

    def mapped(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix)

    slope, angle, shift = 0.23, 17.3, 2.6
    pairs = {
        ("ShearX", slope): mapped(1, slope, 0, 0, 1, 0),
        ("ShearY", -slope): mapped(1, 0, 0, -slope, 1, 0),
        ("TranslateX", shift): mapped(1, 0, shift, 0, 1, 0),
        ("TranslateY", -1): mapped(1, 0, 0, 0, 1, -1),
        ("Rotate", angle): image.rotate(angle),
        ("Rotate", -30): image.rotate(-30),
        ("Brightness", 1.4): ImageEnhance.Brightness(image).enhance(1.4),
        ("Color", 0.3): ImageEnhance.Color(image).enhance(0.3),
        ("Contrast", 1.7): ImageEnhance.Contrast(image).enhance(1.7),
        ("AutoContrast", 0): ImageOps.autocontrast(image),
        ("Equalize", 0): ImageOps.equalize(image),
        ("Invert", 0): ImageOps.invert(image),
        ("Posterize", 3): ImageOps.posterize(image, 3),
        ("Solarize", 77): ImageOps.solarize(image, 77),
    }
    if min(size) >= 3:
        pairs["Sharpness", 1.9] = ImageEnhance.Sharpness(image).enhance(1.9)
        pairs["Smooth", 0] = image.filter(ImageFilter.SMOOTH)
    if min(size) >= 5:
        pairs["Blur", 0] = image.filter(ImageFilter.BLUR)
    for (op, value), expected in pairs.items():
        found = from_batch(A.apply_op(x, op, value))
        np.testing.assert_array_equal(found, np.asarray(expected), err_msg=op)


@pytest.mark.parametrize(
    "method, name", list(enumerate(["LANCZOS", "BICUBIC", "BILINEAR"]))
)
def test_rescale_equals_pil(method, name):
    from PIL import Image

    x = torch.randint(256, (1, 3, 21, 34), dtype=torch.uint8)
    image = Image.fromarray(from_batch(x))
    cut = 0.25 * 0.9
    box = (34 * cut, 21 * cut, 34 * (1 - cut), 21 * (1 - cut))
    expected = image.crop(box).resize(image.size, getattr(Image, name))
    found = from_batch(A.apply_op(x, "Rescale", 0.9, (method + 0.5) / 5.99))
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_grey_operations_equal_pil():
    from PIL import Image, ImageEnhance

    x = torch.randint(256, (1, 1, 9, 11), dtype=torch.uint8)
    image = Image.fromarray(x[0, 0].numpy())
    for op, value in (("Contrast", 0.4), ("Sharpness", 0.2), ("Color", 0.3)):
        found = A.apply_op(x, op, value)[0, 0].numpy()
        expected = getattr(ImageEnhance, op)(image).enhance(value)
        np.testing.assert_array_equal(found, np.asarray(expected), err_msg=op)


def test_each_image_of_a_batch_takes_its_own_value():
    x = images(6, 3, 10, 10)
    values = torch.linspace(0.1, 1.8, 6)
    for op in ("Brightness", "Contrast", "Sharpness", "Rotate", "ShearX"):
        whole = A.apply_op(x, op, values)
        single = [A.apply_op(x[i : i + 1], op, values[i]) for i in range(6)]
        assert torch.equal(whole, torch.cat(single)), op


def test_a_sorted_batch_is_the_same_as_one_by_one():
    # all but the last three, which take a method, draw, and do nothing
    ops = torch.randint(len(A.OPERATIONS) - 3, (3, 40))
    order, moves, counts = A._sort_plan(ops)
    x = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8)
    values = torch.rand(3, 40, dtype=torch.float64) * 2
    out = x
    for k in range(3):
        out = out.index_select(0, moves[k])
        out = A._apply_sorted(out, counts[k], values[k, order[k]], fill=9)
    out = out.index_select(0, moves[-1])
    for i in range(40):
        single = x[i : i + 1]
        for k in range(3):
            single = A.apply_op(single, A.OPERATIONS[ops[k, i]], values[k, i], fill=9)
        assert torch.equal(out[i : i + 1], single)


def test_unknown_names_are_refused():
    x = images(1, 3, 8, 8)
    with pytest.raises(ValueError, match="Twirl"):
        A.apply_op(x, "Twirl")
    with pytest.raises(ValueError, match="table='x'"):
        A.RandAugment(table="x")(x)
    with pytest.raises(ValueError, match="Twirl"):
        A.RandAugment(ops=("Twirl",))(x)
    with pytest.raises(ValueError, match="ops='Invert'"):
        A.RandAugment(ops="Invert")(x)
    with pytest.raises(ValueError, match="magnitude=1 "):
        A.RandAugment(magnitude=1)(x)
    with pytest.raises(ValueError, match="kind='mild'"):
        A.build_augment("mild", (3, 8, 8))
    with pytest.raises(ValueError, match="sample_shape"):
        A.build_augment("weak", (8, 8))


# -- the contrastive policy's pieces against torchvision


def test_crops_equal_torchvision():
    x = torch.rand(6, 3, 24, 18)
    boxes = [(0, 0, 24, 18), (3, 5, 7, 9), (10, 1, 14, 2), (23, 17, 1, 1)]
    boxes += [(4, 0, 20, 18), (2, 3, 5, 5)]
    flip = torch.tensor([False, True, True, False, False, True])
    out = A.resized_crop(x, *torch.tensor(boxes).T, flip)
    for i, box in enumerate(boxes):
        expected = TF.resized_crop(x[i], *box, [24, 18], antialias=True)
        expected = expected.flip(-1) if flip[i] else expected
        torch.testing.assert_close(out[i], expected, atol=1e-5, rtol=0)


def test_rotations_equal_torchvision_inside():
    x = TF.gaussian_blur(torch.rand(4, 3, 33, 41), 5)
    angles = torch.tensor([0.0, 10, -25, 90])
    full = [torch.tensor(v).expand(4) for v in (0, 0, 33, 41)]
    out = A.resized_crop(x, *full, None, angles)
    inside = (slice(None), slice(12, 21), slice(12, 29))
    for i, angle in enumerate(angles.tolist()):
        expected = TF.rotate(x[i], angle, TF.InterpolationMode.BILINEAR)
        torch.testing.assert_close(out[i][inside], expected[inside], atol=1e-4, rtol=0)


def test_a_turn_by_half_shows_the_mirrored_image():
    x = torch.rand(1, 1, 6, 5)
    full = [torch.tensor([v]) for v in (0, 0, 6, 5)]
    out = A.resized_crop(x, *full, torch.tensor([True]), torch.tensor([180.0]))
    torch.testing.assert_close(out, x.flip(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_equals_torchvision(channels):
    x = torch.rand(5, channels, 9, 7)
    factors = torch.tensor([0.0, 0.4, 1.0, 1.5, 1.9])
    steps = {"brightness": TF.adjust_brightness, "contrast": TF.adjust_contrast}
    if channels == 3:
        steps["saturation"] = TF.adjust_saturation
    for name, adjust in steps.items():
        out = A.color_jitter(x, **{name: factors})
        pairs = zip(x, factors.tolist(), strict=True)
        expected = [adjust(image, factor) for image, factor in pairs]
        torch.testing.assert_close(out, torch.stack(expected), atol=2e-6, rtol=0)
    if channels == 3:
        grey = A.color_jitter(x, saturation=0.0)
        expected = TF.rgb_to_grayscale(x, 3)
        torch.testing.assert_close(grey, expected, atol=1e-6, rtol=0)


def test_jitter_takes_every_order_as_torchvision():
    orders = list(itertools.permutations(range(3)))
    x = torch.rand(len(orders), 3, 9, 7)
    factors = (1.7, 1.6, 0.3)
    out = A.color_jitter(x, *factors, order=torch.tensor(orders))
    steps = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)
    for i, order in enumerate(orders):
        expected = x[i]
        for k in order:
            expected = steps[k](expected, factors[k])
        torch.testing.assert_close(out[i], expected, atol=5e-6, rtol=0)


def test_hue_turns_as_torchvision_does_but_linearly():
    x = 0.5 + 0.1 * torch.rand(1, 3, 16, 16)
    x[:, 0] += 0.1  # reddish
    grey = TF.rgb_to_grayscale(x)
    torch.testing.assert_close(A.color_jitter(x, hue=0.0), x, atol=1e-5, rtol=0)
    for turn in (-0.3, -0.1, 0.1, 0.3, 0.5):
        out = A.color_jitter(x, hue=turn)
        # the grey image stays, and colors move the way that torchvision's do
        torch.testing.assert_close(TF.rgb_to_grayscale(out), grey, atol=2e-3, rtol=0)
        views = out, TF.adjust_hue(x, turn)
        moved, wanted = ((t - TF.rgb_to_grayscale(t)).flatten() for t in views)
        assert torch.cosine_similarity(moved, wanted, dim=0) > 0.85, turn
    back = A.color_jitter(A.color_jitter(x, hue=0.2), hue=-0.2)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)


def test_blur_equals_torchvision():
    x = torch.rand(3, 3, 20, 15)
    sigma = torch.tensor([0.3, 1.1, 0.0])
    out = A.gaussian_blur(x, sigma, 5)
    for i in range(2):
        expected = TF.gaussian_blur(x[i], 5, sigma[i].item())
        torch.testing.assert_close(out[i], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(out[2], x[2], atol=1e-6, rtol=0)


def test_boxes_are_those_torchvision_draws():
    from torchvision.transforms import RandomResizedCrop

    x = torch.rand(4000, 1, 30, 20)
    boxes = torch.stack(A.Contrastive()._boxes(x), 1)
    top, left, height, width = boxes.T
    assert (boxes == boxes.round()).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 30).all() and (left + width <= 20).all()
    assert height.min() >= 1 and width.min() >= 1
    draw = RandomResizedCrop.get_params
    theirs = [draw(x[0], (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    theirs = torch.tensor(theirs, dtype=torch.float32)
    # means of 4,000 draws differ by a few standard errors at most
    error = theirs.std(0) * math.sqrt(2 / 4000)
    assert ((boxes.mean(0) - theirs.mean(0)).abs() < 4.5 * error).all()


def test_where_no_box_fits_the_middle_is_taken():
    x = torch.rand(3, 1, 4, 40)
    boxes = torch.stack(A.Contrastive(crop=(1.0, 1.0))._boxes(x), 1)
    assert boxes.tolist() == [[0.0, 17.0, 4.0, 5.0]] * 3


def test_solarize_and_order_of_magnitude():
    x = torch.full((64, 1, 8, 8), 0.9)
    policy = A.Contrastive(jitter=0, grayscale=0, solarize=1.0)
    torch.testing.assert_close(policy(x), 1 - x, atol=1e-5, rtol=0)


# -- the weak policy


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


# -- what all policies promise


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
    assert len(A._pieces(x)) > 1
    plain = A.Contrastive(crop=(1, 1), aspect=(1, 1), flip=0, jitter=0, grayscale=0)
    torch.testing.assert_close(plain(x), x, atol=1e-6, rtol=0)
    assert torch.equal(A.RandAugment(n_ops=0, cutout=0)(x), x)


def test_grey_images_skip_colors_and_stay_grey_in_three_channels():
    x = images(16, 1, 12, 12)
    policy = A.Contrastive(jitter=(0, 0, 0.8, 0.2), grayscale=1.0, flip=0, crop=(1, 1))
    policy.set_params(aspect=(1, 1))
    torch.testing.assert_close(policy(x), x, atol=1e-6, rtol=0)
    colored = images(16, 3, 12, 12)
    out = A.Contrastive(grayscale=1.0)(colored)
    torch.testing.assert_close(out[:, 0], out[:, 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(out[:, 0], out[:, 2], atol=1e-6, rtol=0)
    only = A.RandAugment(ops=("Color",), probability=1.0, cutout=0)
    assert torch.equal(only(x), x)
    assert not torch.equal(only(colored), colored)


def test_jitter_probability_and_strength():
    x = torch.full((3000, 3, 2, 2), 0.5)
    policy = A.Contrastive(jitter=(0.4, 0, 0, 0), jitter_probability=0.8, grayscale=0)
    values = policy(x)[:, 0, 0, 0]
    assert 0.76 < (values != values.mode().values).float().mean() < 0.84
    assert 0.3 <= values.min() < 0.31 and 0.69 < values.max() <= 0.7


# -- RandAugment


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


def test_the_weak_policy_comes_first():
    x = images(50, 3, 8, 8)
    policy = A.RandAugment(n_ops=0, cutout=0, weak=A.Weak(flip=1.0, shift=0))
    assert torch.equal(policy(x), x.flip(3))


# -- parameters


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


# -- CTAugment


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


# -- vectors


def test_vector_noise():
    center, scale = torch.tensor([5.0, -5, 0, 1]), torch.tensor([1.0, 2, 3, 4])
    policy = A.VectorNoise(0.5, 0.25, center, scale)
    x = torch.zeros(20000, 4)
    out = policy(x)
    dropped = out == center
    assert (dropped.float().mean(0) - 0.25).abs().max() < 0.02
    spread = torch.stack([out[~dropped[:, i], i].std() for i in range(4)])
    torch.testing.assert_close(spread, 0.5 * scale, rtol=0.05, atol=0)
    assert policy.get_params()["center"] is center
    assert set(policy.state_dict()) == {"center_", "scale_"}
    quiet = A.VectorNoise(noise=0, dropout=0)
    assert torch.equal(quiet(x), x)
    policy.set_params(center=None)
    assert policy.center_ == 0 and set(policy.state_dict()) == {"center_", "scale_"}
    for other in (clone(policy, safe=False), pickle.loads(pickle.dumps(policy))):
        assert torch.equal(other.scale_, scale)
    assert A.VectorNoise(scale=np.ones(4))(x.double()).dtype == torch.float64
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        policy(torch.zeros(2, 3, 4, 4))


@given(st.integers(0, 8), st.integers(1, 8), st.floats(0, 2), st.floats(0, 1))
def test_vector_noise_keeps_shape(n, width, noise, dropout):
    out = A.VectorNoise(noise, dropout)(torch.zeros(n, width))
    assert out.shape == (n, width) and torch.isfinite(out).all()


@pytest.mark.parametrize("kind", ["weak", "strong", "ctaugment", "contrastive", "scan"])
def test_build_augment(kind):
    vectors = A.build_augment(kind, (7,), torch.zeros(7), torch.ones(7))
    assert isinstance(vectors, A.VectorNoise)
    assert vectors.noise == (0.2 if kind in ("strong", "ctaugment") else 0.1)
    assert vectors(torch.rand(3, 7)).shape == (3, 7)
    for shape in ((1, 8, 8), (3, 32, 32), (3, 96, 96)):
        mean = torch.rand(shape[0], 1, 1)
        policy = A.build_augment(kind, shape, mean, torch.ones(shape[0], 1, 1))
        assert policy(images(2, *shape)).shape == (2, *shape)
    expected = {
        "weak": A.Weak,
        "strong": A.RandAugment,
        "ctaugment": A.CTAugment,
        "contrastive": A.Contrastive,
        "scan": A.RandAugment,
    }
    assert type(policy) is expected[kind]


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


def test_sobel_golden():
    for case in cases("sobel"):
        x = torch.tensor(case["images"])
        for grey, key in (("mean", "deepcluster"), ("luma", "iic")):
            found = A.sobel(x, grey)
            np.testing.assert_allclose(found, case[key], rtol=1e-6, atol=1e-8)
        one = torch.tensor(case["grey"])
        for grey in ("mean", "luma"):
            np.testing.assert_allclose(A.sobel(one, grey), case["iic"], 1e-6, 1e-8)
    with pytest.raises(ValueError, match="grey='blue'"):
        A.sobel(x, "blue")


@pytest.mark.parametrize("size, expected", [(9, (9, 9)), ((9, 12), (9, 12))])
def test_views_of_another_size(size, expected):
    x = torch.rand(6, 3, 20, 28)
    view = A.Contrastive(size=size, rotate=10, blur=0.5, solarize=0.5)
    assert view(x).shape == (6, 3, *expected)
    assert A.Contrastive(size=(20, 28))(x).shape == x.shape


def test_resized_crop_to_a_size_is_interpolation_of_the_cut():
    x = torch.rand(2, 3, 20, 28)
    box = [torch.full((2,), float(v)) for v in (4, 6, 8, 10)]
    found = A.resized_crop(x, *box, size=(16, 15))
    cut = x[:, :, 4:12, 6:16]
    expected = torch.nn.functional.interpolate(cut, (16, 15), mode="bilinear")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_default_views_of_every_method():
    for kind in A.VIEWS:
        for side in (32, 70):
            view = A.build_augment(kind, (3, side, side))
            out = side if kind != "swav_small" else round(side * 3 / 7)
            x = torch.rand(4, 3, side, side)
            assert view(x).shape == (4, 3, out, out)
            # no recipe for CIFAR blurs, but all for ImageNet of the second generation do
            blurs = kind not in ("moco_v1", "iic") and side == 70
            assert bool(view.blur) == blurs
