"""The contrastive policy and its pieces, against torchvision's."""

import itertools
import math

import pytest
import torch
from torchvision.transforms import functional as TF

from sklabel import augment as A
from tests.augment._policies import images


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
    boxes = torch.stack(A.Contrastive()._boxes(x, (16, 16)), 1)  # square, as theirs
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
    whole = A.Contrastive(crop=(1.0, 1.0))
    boxes = torch.stack(whole._boxes(x, (9, 9)), 1)
    assert boxes.tolist() == [[0.0, 17.0, 4.0, 5.0]] * 3
    whole.set_params(aspect=(1, 1))  # as wide as the view, or as it is
    boxes = torch.stack(whole._boxes(x, (3, 12)), 1)
    assert boxes.tolist() == [[0.0, 12.0, 4.0, 16.0]] * 3
    boxes = torch.stack(whole._boxes(x, (4, 40)), 1)
    assert boxes.tolist() == [[0.0, 0.0, 4.0, 40.0]] * 3


@pytest.mark.parametrize("side_y, side_x", [(32, 96), (96, 32), (48, 48), (33, 64)])
@pytest.mark.parametrize("size", [None, 24, (20, 40)])
def test_what_a_view_shows_keeps_its_proportions(side_y, side_x, size):
    x = torch.rand(4000, 1, side_y, side_x)
    out_y, out_x = torch.Size(A.Contrastive(size=size)(x[:1]).shape[2:])
    _, _, height, width = A.Contrastive()._boxes(x, (out_y, out_x))
    large = (height > 9) & (width > 9)  # others are rounded
    stretch = ((out_x / width) / (out_y / height))[large].log()
    least, greatest = (float(stretch.quantile(q)) for q in (0.02, 0.98))
    assert math.log(0.68) < least < -0.1 and 0.1 < greatest < math.log(1.48)
    assert abs(stretch.mean()) < 0.2


def test_solarize_and_order_of_magnitude():
    x = torch.full((64, 1, 8, 8), 0.9)
    policy = A.Contrastive(jitter=0, grayscale=0, solarize=1.0)
    torch.testing.assert_close(policy(x), 1 - x, atol=1e-5, rtol=0)


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
