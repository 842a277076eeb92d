"""Contrastive views: crop, mirror, recolor, blur, each on a whole batch."""

import functools
import math
from numbers import Integral

import torch
import torch.nn.functional as F

from .._core.checks import check_number, check_pair
from .policy import ImagePolicy, per_image, pieces, uniform

LUMA = (0.2989, 0.587, 0.114)
# Rows are Y, I and Q: hue turns the plane of I and Q.
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


@torch.no_grad()
def resized_crop(x, top, left, height, width, flip=None, angle=None, size=None):
    """Crop, resize, mirror and rotate each image in one resampling.

    Interpolation is bilinear. Without an angle, it uses pixels inside the box only, so
    the result equals cropping, resizing and mirroring. With an angle, the surroundings
    of the box become visible, and the border of the image is reflected.

    Parameters
    ----------
    x : Tensor of shape (B, C, H, W)
    top, left : Tensor of shape (B,)
        First row and column of the box, in pixels.
    height, width : Tensor of shape (B,)
        Size of the box in pixels, > 0; smaller than the image, because there is no
        smoothing.
    flip : Tensor of bool of shape (B,) or None, default=None
        Whether to mirror left to right.
    angle : Tensor of shape (B,) or None, default=None
        Counterclockwise rotation of the resized box, in degrees.
    size : tuple of two int or None, default=None
        Height and width of the result; None: those of the images. A box that is much
        larger than the result is not smoothed first.

    Returns
    -------
    x : Tensor of shape (B, C, height, width)
    """
    side_y, side_x = x.shape[2:]
    out_y, out_x = size or (side_y, side_x)
    # where in the box an output pixel lies, from its center: -0.5 to 0.5
    v = (torch.arange(out_y, dtype=x.dtype, device=x.device) + 0.5) / out_y - 0.5
    u = (torch.arange(out_x, dtype=x.dtype, device=x.device) + 0.5) / out_x - 0.5
    top, left, height, width = (per_image(t, x) for t in (top, left, height, width))
    direction = torch.ones_like(left)
    if flip is not None:
        direction = torch.where(flip, -direction, direction)
    if angle is None:
        ys = ((v + 0.5) * height[:, None] - 0.5).clamp_(min=0)
        ys = torch.minimum(ys, height[:, None] - 1) + top[:, None]  # (B, H)
        xs = ((u * direction[:, None] + 0.5) * width[:, None] - 0.5).clamp_(min=0)
        xs = torch.minimum(xs, width[:, None] - 1) + left[:, None]  # (B, W)
        ys, xs = ys[:, :, None], xs[:, None, :]
    else:
        radians = per_image(angle, x).deg2rad()[:, None, None]
        # in pixels, so that a rotation stays one where the image is not square
        right, down = u * side_x, v[:, None] * side_y
        across = right * radians.cos() - down * radians.sin()
        along = right * radians.sin() + down * radians.cos()
        across = across * (direction[:, None, None] / side_x)
        ys = (along / side_y + 0.5) * height[:, None, None] - 0.5 + top[:, None, None]
        xs = (across + 0.5) * width[:, None, None] - 0.5 + left[:, None, None]
    xs, ys = (xs * 2 + 1) / side_x - 1, (ys * 2 + 1) / side_y - 1
    if x.device.type == "cpu" and angle is None:
        # pairs as complex numbers: a fifth of the time of writing them one by one
        pairs = torch.complex(xs, torch.zeros_like(xs))
        grid = torch.view_as_real(pairs + torch.complex(torch.zeros_like(ys), ys))
    else:
        grid = torch.stack(torch.broadcast_tensors(xs, ys), -1)
    padding = "border" if angle is None else "reflection"
    return F.grid_sample(x, grid, padding_mode=padding, align_corners=False)


def _grey_weights(x):
    """Return the weights of the channels in the gray image."""
    return _kept_grey(x.shape[1], x.dtype, x.device)


# kept on each device: a copy from the host, however small, costs a launch in every step
@functools.lru_cache(64)
def _kept_grey(channels, dtype, device):
    weights = LUMA if channels == 3 else [1 / channels] * channels
    with torch.inference_mode(False):  # what is made there cannot be trained with
        return torch.tensor(weights, dtype=dtype).to(device, non_blocking=True)


def _hue_matrices(turns, x):
    """Return (B, 3, 3) matrices that rotate the hue by full turns."""
    luma, plane, turn = _kept_turn(x.dtype, x.device)
    radians = (2 * math.pi * turns)[:, None, None]
    return luma + plane * radians.cos() + turn * radians.sin()


@functools.lru_cache(64)
def _kept_turn(dtype, device):
    to_yiq = torch.tensor(YIQ, dtype=torch.float64)
    from_yiq = torch.linalg.inv(to_yiq)
    # M = A + B cos + C sin, so that nothing but two numbers depends on the image
    luma, plane, turn = torch.zeros(3, 3, 3, dtype=torch.float64)
    luma[0, 0] = plane[1, 1] = plane[2, 2] = turn[1, 2] = 1
    turn[2, 1] = -1
    parts = torch.stack([from_yiq @ part @ to_yiq for part in (luma, plane, turn)])
    with torch.inference_mode(False):
        return parts.to(dtype).to(device, non_blocking=True, copy=True)


@torch.no_grad()
def color_jitter(
    x, brightness=None, contrast=None, saturation=None, hue=None, order=None
):
    """Change the colors of each image by its own factors, in its own order.

    Every step is one matrix product over the channels, clipped to [0, 1].

    Parameters
    ----------
    x : Tensor of shape (B, C, H, W)
    brightness : Tensor of shape (B,) or None, default=None
        Factors, >= 0.
    contrast : Tensor of shape (B,) or None, default=None
        Factors of the distance to the mean of the gray image, >= 0.
    saturation : Tensor of shape (B,) or None, default=None
        Factors of the distance to the gray image, >= 0. Only for three channels.
    hue : Tensor of shape (B,) or None, default=None
        Turns of the color circle, in [-0.5, 0.5]. Only for three channels.
    order : Tensor of int of shape (B, n_steps) or None, default=None
        Permutation of the steps that are not None, for each image; None: as listed
        here.

    Returns
    -------
    x : Tensor of shape (B, C, H, W)

    Notes
    -----
    torchvision rotates the hue in HSV space, which is not linear; here the I-Q plane of
    YIQ space is rotated, which preserves the gray image before clipping. Other steps
    equal torchvision's.
    """
    steps = _color_steps(x, brightness, contrast, saturation, hue, order)
    return _apply_color_steps(x, steps, torch.empty_like(x)) if steps else x


def _color_steps(
    x, brightness=None, contrast=None, saturation=None, hue=None, order=None
):
    """Return a list of matrices (B, C, C) with shares (B, 1, 1) of the gray mean.

    A step is the product with the matrix, plus the share of the gray image's mean;
    None where the share is 0 for all images.
    """
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    matrices, shares = [], []
    if brightness is not None:
        matrices.append(per_image(brightness, x)[:, None, None] * eye)
    if contrast is not None:
        factor = per_image(contrast, x)[:, None, None]
        matrices.append(factor * eye)
        shares = [torch.zeros_like(factor)] * (len(matrices) - 1) + [1 - factor]
    if saturation is not None:
        factor = per_image(saturation, x)[:, None, None]
        matrices.append(factor * eye + (1 - factor) * _grey_weights(x))
    if hue is not None:
        matrices.append(_hue_matrices(per_image(hue, x), x))
    if shares:
        shares += [torch.zeros_like(factor)] * (len(matrices) - len(shares))
    if order is not None and matrices:
        turn = order.T, torch.arange(len(x), device=x.device)
        matrices = list(torch.stack(matrices)[turn])
        shares = list(torch.stack(shares)[turn]) if shares else shares
    return list(zip(matrices, shares or [None] * len(matrices), strict=True))


def _apply_color_steps(x, steps, out):
    """Apply color steps one after the other, each clipped; the last writes ``out``."""
    weights = _grey_weights(x)
    pixels = x.reshape(*x.shape[:2], -1)
    # two buffers in turn, since fresh memory costs a CPU more than the arithmetic
    buffers = [torch.empty_like(pixels) for _ in steps[1:3]]
    for k, (matrix, share) in enumerate(steps):
        if share is not None:
            offset = share * (pixels.mean(2) @ weights)[:, None, None]
        target = buffers[k % 2] if k + 1 < len(steps) else out.flatten(2)
        pixels = torch.bmm(matrix, pixels, out=target)
        if share is not None:
            pixels.add_(offset)
        pixels.clamp_(0, 1)
    return out


@torch.no_grad()
def gaussian_blur(x, sigma, kernel_size):
    """Blur each image by a Gaussian with its own width; the border is reflected.

    Parameters
    ----------
    x : Tensor of shape (B, C, H, W)
    sigma : Tensor of shape (B,)
        Standard deviations in pixels; images with 0 are not changed.
    kernel_size : int
        Side of the kernel, odd; reduced if the image is too small to be reflected.

    Returns
    -------
    x : Tensor of shape (B, C, H, W)
    """
    sigma = per_image(sigma, x)[:, None]
    for dim in (3, 2):
        reach = min(kernel_size // 2, x.shape[dim] - 1)
        if reach < 1:
            continue
        distance = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        kernel = torch.exp(-0.5 * (distance / sigma.clamp(min=1e-3)) ** 2)
        kernel = kernel / kernel.sum(1, keepdim=True)  # (B, taps)
        border = (reach, reach, 0, 0) if dim == 3 else (0, 0, reach, reach)
        padded = F.pad(x, border, mode="reflect")
        out = torch.zeros_like(x)
        for i in range(2 * reach + 1):
            tap = kernel[:, i, None, None, None]
            out.addcmul_(padded.narrow(dim, i, x.shape[dim]), tap)
        x = out
    return x


class Contrastive(ImagePolicy):
    """Crop, mirror, recolor, and perhaps blur images: SimCLR's views.

    Crop, mirroring and rotation are one resampling; each step of the color jitter is
    one matrix product over the channels. One-channel images skip saturation, hue and
    grayscale.

    Parameters
    ----------
    crop : tuple of two floats, default=(0.08, 1.0)
        Smallest and largest share of the image area in a view.
    aspect : tuple of two floats, default=(3/4, 4/3)
        Smallest and largest aspect ratio of the crop, relative to that of the view,
        which need not be square; 1 keeps the proportions.
    flip : float, default=0.5
        Probability of mirroring left to right; 0 for digits and characters.
    jitter : float or tuple of four floats, default=0.5
        Strength s of the color jitter: brightness, contrast and saturation change by
        factors within 0.8 s of 1, and hue by up to 0.2 s turns. Four floats set these
        ranges directly. SimCLR: 0.5 for 32 x 32, 1 for ImageNet.
    jitter_probability : float, default=0.8
        Probability that the colors of an image change.
    grayscale : float, default=0.2
        Probability of conversion to gray.
    blur : float, default=0.0
        Probability of a Gaussian blur, with a standard deviation from 0.1 to 2 pixels
        and a kernel of a tenth of the side. SimCLR: 0.5 on ImageNet, none at 32 x 32.
    rotate : float, default=0.0
        Largest rotation in degrees, in both directions.
    solarize : float, default=0.0
        Probability of inverting the values from 0.5 up. BYOL: 0.2 in the second view.
    size : int, tuple of two int or None, default=None
        Side, or height and width, of the views; None: those of the images. Small crops
        of SwAV have 3/7 of the side.

    Notes
    -----
    For the same parameters, a view differs from torchvision's in the hue (see
    :func:`color_jitter`) and in rotations, which show the surroundings of the crop.

    References
    ----------
    .. [1] T. Chen et al., "A Simple Framework for Contrastive Learning of Visual
       Representations", ICML 2020, appendix A.

    Examples
    --------
    >>> import torch
    >>> from sklabel.augment import Contrastive
    >>> x = torch.rand(8, 3, 32, 32)
    >>> view = Contrastive(blur=0.5)
    >>> torch.equal(view(x), view(x))
    False
    """

    def __init__(
        self,
        crop=(0.08, 1.0),
        aspect=(3 / 4, 4 / 3),
        flip=0.5,
        jitter=0.5,
        jitter_probability=0.8,
        grayscale=0.2,
        blur=0.0,
        rotate=0.0,
        solarize=0.0,
        size=None,
    ):
        super().__init__()
        self.crop = crop
        self.aspect = aspect
        self.flip = flip
        self.jitter = jitter
        self.jitter_probability = jitter_probability
        self.grayscale = grayscale
        self.blur = blur
        self.rotate = rotate
        self.solarize = solarize
        self.size = size
        self._check()

    def _check(self):
        check_pair(0, 1, crop=self.crop)
        check_pair(0, above=True, aspect=self.aspect)
        check_number(0, 1, flip=self.flip, jitter_probability=self.jitter_probability)
        check_number(0, 1, grayscale=self.grayscale, blur=self.blur)
        check_number(0, 1, solarize=self.solarize)
        check_number(0, 180, rotate=self.rotate)
        if isinstance(self.jitter, (tuple, list)):
            if len(self.jitter) != 4:
                raise ValueError(f"jitter={self.jitter!r} must be one number or four.")
            for strength in self.jitter:
                check_number(0, jitter=strength)
        else:
            check_number(0, jitter=self.jitter)
        if isinstance(self.size, (tuple, list)):
            check_pair(1, whole=True, size=self.size)
        elif self.size is not None:
            check_number(1, whole=True, size=self.size)

    def _augment(self, x):
        n = len(x)
        size = (self.size,) * 2 if isinstance(self.size, Integral) else self.size
        size = tuple(size or x.shape[2:])
        crop = [*self._boxes(x, size), torch.rand(n, device=x.device) < self.flip]
        if self.rotate:
            crop.append(uniform(n, -self.rotate, self.rotate, x))
        colors = self._draw_colors(x)
        same = size == tuple(x.shape[2:])
        out = torch.empty_like(x) if same else x.new_empty(*x.shape[:2], *size)
        for part in pieces(x):
            view = resized_crop(x[part], *(t[part] for t in crop), size=size)
            if not colors:
                out[part] = view
                continue
            steps = [(m[part], None if s is None else s[part]) for m, s in colors]
            _apply_color_steps(view, steps, out[part])
        if self.blur:
            sigma = uniform(n, 0.1, 2.0, x)
            chosen = torch.rand(n, device=x.device) < self.blur
            side = max(3, 2 * round((min(x.shape[2:]) / 10 - 1) / 2) + 1)
            out = gaussian_blur(out, torch.where(chosen, sigma, 0), side)
        if self.solarize:
            chosen = torch.rand(n, 1, 1, 1, device=x.device) < self.solarize
            out = torch.where(chosen & (out >= 0.5), 1 - out, out)
        return out

    def _boxes(self, x, size, tries=10):
        """Draw top, left, height and width as torchvision does, for all images.

        ``size``: height and width to which boxes are stretched.
        """
        n, _, side_y, side_x = x.shape
        proportions = size[1] / size[0]
        least, greatest = (proportions * ratio for ratio in self.aspect)
        area = uniform((tries, n), *self.crop, x) * (side_y * side_x)
        ratio = uniform((tries, n), *map(math.log, self.aspect), x).exp() * proportions
        width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (width >= 1) & (width <= side_x) & (height >= 1) & (height <= side_y)
        # where no try fits, the largest box in the middle with an allowed aspect
        wide = min(max(side_x / side_y, least), greatest)
        middle_x = max(1, min(side_x, round(side_y * wide)))
        middle_y = max(1, min(side_y, round(side_x / wide)))
        first, found = fits.to(torch.uint8).argmax(0)[None], fits.any(0)
        width = torch.where(found, width.gather(0, first)[0], middle_x)
        height = torch.where(found, height.gather(0, first)[0], middle_y)
        place = torch.rand(2, n, dtype=x.dtype, device=x.device)
        place = torch.where(found, place, 0.5)
        top = (place[0] * (side_y - height + found)).floor()
        left = (place[1] * (side_x - width + found)).floor()
        return top, left, height, width

    def _draw_colors(self, x):
        """Draw the color steps of all images, as `_apply_color_steps` takes them."""
        n, channels = x.shape[:2]
        jitter = self.jitter
        if not isinstance(jitter, (tuple, list)):
            jitter = (0.8 * jitter, 0.8 * jitter, 0.8 * jitter, 0.2 * jitter)
        colored = channels == 3
        factors = {}
        chosen = torch.rand(n, device=x.device) < self.jitter_probability
        names = ("brightness", "contrast", "saturation")
        for name, strength in zip(names, jitter, strict=False):
            if strength and (colored or name != "saturation"):
                factor = uniform(n, max(0.0, 1 - strength), 1 + strength, x)
                factors[name] = torch.where(chosen, factor, 1)
        if jitter[3] and colored:
            turns = uniform(n, -jitter[3], jitter[3], x)
            factors["hue"] = torch.where(chosen, turns, 0)
        order = torch.rand(n, len(factors), device=x.device).argsort(1)
        steps = _color_steps(x, **factors, order=order)
        if self.grayscale and colored:
            grey = torch.rand(n, device=x.device) < self.grayscale
            steps += _color_steps(x, saturation=torch.where(grey, 0.0, 1.0))
        return steps
