"""Operations on 8-bit images: golden values, and PIL's."""

import numpy as np
import pytest
import torch

from sklabel import augment as A
from sklabel.augment.operations import apply_sorted, sort_plan
from tests._golden import cases
from tests.augment._policies import from_batch, images, to_batch


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
    order, moves, counts = sort_plan(ops)
    x = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8)
    values = torch.rand(3, 40, dtype=torch.float64) * 2
    out = x
    for k in range(3):
        out = out.index_select(0, moves[k])
        out = apply_sorted(out, counts[k], values[k, order[k]], fill=9)
    out = out.index_select(0, moves[-1])
    for i in range(40):
        single = x[i : i + 1]
        for k in range(3):
            single = A.apply_op(single, A.OPERATIONS[ops[k, i]], values[k, i], fill=9)
        assert torch.equal(out[i : i + 1], single)


def test_an_unknown_operation_is_refused():
    x = images(1, 3, 8, 8)
    with pytest.raises(ValueError, match="Twirl"):
        A.apply_op(x, "Twirl")


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
