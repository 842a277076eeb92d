"""Random views of whole batches of images on their device; noise for vectors."""

import inspect
import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

# Operations of RandAugment and CTAugment. Those that share a pass over the pixels
# stand together: a batch is sorted by operation, and a slice of it is one group.
GEOMETRY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
ENHANCEMENTS = ("Brightness", "Color", "Contrast", "Sharpness")
EFFECTS = ("AutoContrast", "Equalize", "Invert", "Smooth", "Blur")
OPERATIONS = (
    *GEOMETRY,
    *ENHANCEMENTS,
    *EFFECTS,
    "Posterize",
    "Solarize",
    "Rescale",
    "Cutout",
    "Identity",
)
FIXMATCH = (*GEOMETRY, *ENHANCEMENTS, *EFFECTS[:2], "Posterize", "Solarize", "Identity")

# CTAugment's names, in the order of its rates, and the bins of their two parameters.
CTAUGMENT = {
    "autocontrast": ("AutoContrast", 17, 0),
    "blur": ("Blur", 17, 0),
    "brightness": ("Brightness", 17, 0),
    "color": ("Color", 17, 0),
    "contrast": ("Contrast", 17, 0),
    "cutout": ("Cutout", 17, 0),
    "equalize": ("Equalize", 17, 0),
    "invert": ("Invert", 17, 0),
    "identity": ("Identity", 0, 0),
    "posterize": ("Posterize", 8, 0),
    "rescale": ("Rescale", 17, 6),
    "rotate": ("Rotate", 17, 0),
    "sharpness": ("Sharpness", 17, 0),
    "shear_x": ("ShearX", 17, 0),
    "shear_y": ("ShearY", 17, 0),
    "smooth": ("Smooth", 17, 0),
    "solarize": ("Solarize", 17, 0),
    "translate_x": ("TranslateX", 17, 0),
    "translate_y": ("TranslateY", 17, 0),
}
CTAUGMENT_NAMES = {OPERATIONS.index(op): name for name, (op, *_) in CTAUGMENT.items()}
MAX_LEVEL = 10
GREY = 127
LUMA = (0.2989, 0.587, 0.114)
# Rows are Y, I and Q: hue turns the plane of I and Q.
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


# -- parameters of policies, without scikit-learn


class _Parameters(nn.Module):
    """Parameters by name, as scikit-learn's ``clone`` and grids want them."""

    def get_params(self, deep=True):
        """Return the arguments of the constructor by name.

        Parameters
        ----------
        deep : bool, default=True
            Whether the parameters of a policy held in a parameter are listed too, as
            ``name__parameter``.

        Returns
        -------
        params : dict
        """
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        params = {name: getattr(self, name) for name in names}
        if deep:
            for name, value in list(params.items()):
                if hasattr(value, "get_params"):
                    inner = value.get_params(deep=True)
                    params.update({f"{name}__{key}": v for key, v in inner.items()})
        return params

    def set_params(self, **params):
        """Change parameters; what was learned or derived from them starts anew.

        Parameters
        ----------
        **params : dict
            Values by name; ``name__parameter`` reaches into a policy held in ``name``.

        Returns
        -------
        self : nn.Module

        Raises
        ------
        ValueError
            For an unknown name.
        """
        known = self.get_params(deep=False)
        nested = {}
        for key, value in params.items():
            name, inside, rest = key.partition("__")
            if name not in known:
                raise ValueError(
                    f"{type(self).__name__} has no parameter {name!r}; it has "
                    f"{', '.join(known)}."
                )
            if inside:
                nested.setdefault(name, {})[rest] = value
            else:
                if isinstance(value, nn.Module):
                    self.__dict__.pop(name, None)
                elif name in self._modules:
                    del self._modules[name]
                setattr(self, name, value)
        for name, inner in nested.items():
            getattr(self, name).set_params(**inner)
        self._start()
        return self

    def _start(self):
        """Make what follows from the parameters."""

    def extra_repr(self):
        params = self.get_params(deep=False).items()
        shown = [(k, v) for k, v in params if not isinstance(v, nn.Module)]
        return ", ".join(f"{name}={value!r}" for name, value in shown)


class _ImagePolicy(_Parameters):
    """What all image policies share: checks, number format, range."""

    def forward(self, x):
        return self._guarded(x, self._augment)

    def _guarded(self, x, augment):
        if not torch.is_floating_point(x) or x.ndim != 4:
            raise ValueError(
                f"{type(self).__name__} takes images as floats in [0, 1] of shape "
                f"(B, C, H, W); got {x.dtype} of shape {tuple(x.shape)}."
            )
        if not x.numel():
            return x.clone()
        # 8-bit levels and matrices of color need more digits than half precision has
        work = x if x.dtype in (torch.float32, torch.float64) else x.float()
        device = x.device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            out = augment(work.contiguous())
            if out.dtype == torch.uint8:
                return out.to(work.dtype).div_(255).to(x.dtype)
            out = out.clamp(0, 1) if out is work else out.clamp_(0, 1)
        return out.to(x.dtype)

    def _augment(self, x):
        """Return images as floats or, in 8 bits, integers; ``x`` is left as it is."""
        raise NotImplementedError


def _uniform(n, low, high, x):
    """Draw n numbers from [low, high) on the device of x."""
    return torch.rand(n, dtype=x.dtype, device=x.device).mul_(high - low).add_(low)


def _pieces(x, size=2**18):
    """Return slices of a batch; on a CPU their buffers stay small.

    Large buffers go back to the system with every call, and fresh pages cost more than
    the arithmetic.
    """
    n, rest = len(x), x.numel() // max(1, len(x))
    step = max(1, size // max(1, rest)) if x.device.type == "cpu" else n
    return [slice(start, start + step) for start in range(0, n, step)]


def _per_image(values, x):
    """Return values of shape (B,), or one for all, in the number format of x."""
    values = torch.as_tensor(values, dtype=x.dtype, device=x.device)
    return values.expand(len(x))


# -- weak policy


@torch.no_grad()
def shift_flip(x, down, right, flip):
    """Shift images by whole pixels and mirror some; the border is reflected.

    Parameters
    ----------
    x : Tensor of shape (B, C, H, W)
    down : Tensor of int of shape (B,)
        Pixels by which an image moves down, in ``(-H, H)``.
    right : Tensor of int of shape (B,)
        Pixels by which it moves to the right, in ``(-W, W)``.
    flip : Tensor of bool of shape (B,)
        Whether it is mirrored left to right, after the shift.

    Returns
    -------
    x : Tensor of shape (B, C, H, W)
    """
    n, channels, height, width = x.shape
    rows = torch.arange(height, device=x.device) - down[:, None]  # (B, H)
    columns = torch.arange(width, device=x.device)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) - right[:, None]
    rows, columns = (
        (side - 1) - ((side - 1) - at.abs()).abs()
        for at, side in ((rows, height), (columns, width))
    )
    index = rows[:, :, None] * width + columns[:, None, :]  # (B, H, W)
    index = index.view(n, 1, -1).expand(n, channels, -1)
    return x.reshape(n, channels, -1).gather(2, index).view_as(x)


class Weak(_ImagePolicy):
    """Mirror and shift images by some pixels: FixMatch's weak view.

    Parameters
    ----------
    flip : float, default=0.5
        Probability of mirroring left to right; 0 for digits and characters.
    shift : float, default=0.125
        Largest shift, as a share of the side, in [0, 1]: 4 of 32 pixels. Each image is
        shifted by whole pixels, both ways; the border is reflected.

    References
    ----------
    .. [1] K. Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with
       Consistency and Confidence", NeurIPS 2020, section 2.3.

    Examples
    --------
    >>> import torch
    >>> from sklabel.augment import Weak
    >>> Weak(flip=0)(torch.rand(8, 3, 32, 32)).shape
    torch.Size([8, 3, 32, 32])
    """

    def __init__(self, flip=0.5, shift=0.125):
        super().__init__()
        self.flip = flip
        self.shift = shift

    def _augment(self, x):
        n, _, height, width = x.shape
        flip = torch.rand(n, device=x.device) < self.flip
        moves = []
        for side in (height, width):
            # a reflected border is at most one pixel shorter than the image
            most = min(round(self.shift * side), side - 1)
            moves.append(torch.randint(-most, most + 1, (n,), device=x.device))
        if not self.flip and not self.shift:
            return x
        return shift_flip(x, *moves, flip)


# -- contrastive policy


@torch.no_grad()
def resized_crop(x, top, left, height, width, flip=None, angle=None, size=None):
    """Enlarge one box of each image to its full size, mirror and rotate, in one pass.

    Bilinear. Without an angle, pixels are interpolated inside the box only, so that the
    result is that of cutting the box out, resizing and mirroring it. With an angle, the
    surroundings of the box come into view, and the border of the image is reflected.

    Parameters
    ----------
    x : Tensor of shape (B, C, H, W)
    top, left : Tensor of shape (B,)
        First row and column of the box, in pixels.
    height, width : Tensor of shape (B,)
        Its size in pixels, > 0; smaller than the image's, as there is no smoothing.
    flip : Tensor of bool of shape (B,) or None, default=None
        Whether to mirror left to right.
    angle : Tensor of shape (B,) or None, default=None
        Degrees by which the resized box turns counter-clockwise.
    size : tuple of two int or None, default=None
        Height and width of the result; None: those of the images. A box that is much
        larger than the result is not smoothed before.

    Returns
    -------
    x : Tensor of shape (B, C, height, width)
    """
    side_y, side_x = x.shape[2:]
    out_y, out_x = size or (side_y, side_x)
    # where in the box an output pixel lies, from its center: -0.5 to 0.5
    v = (torch.arange(out_y, dtype=x.dtype, device=x.device) + 0.5) / out_y - 0.5
    u = (torch.arange(out_x, dtype=x.dtype, device=x.device) + 0.5) / out_x - 0.5
    top, left, height, width = (_per_image(t, x) for t in (top, left, height, width))
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
        radians = _per_image(angle, x).deg2rad()[:, None, None]
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
    """Return the weights of the channels in the grey image."""
    channels = x.shape[1]
    weights = LUMA if channels == 3 else [1 / channels] * channels
    return torch.tensor(weights, dtype=x.dtype).to(x.device, non_blocking=True)


def _hue_matrices(turns, x):
    """Return (B, 3, 3) matrices that turn the hue by so many full circles."""
    to_yiq = torch.tensor(YIQ, dtype=torch.float64)
    from_yiq = torch.linalg.inv(to_yiq)
    # M = A + B cos + C sin, so that nothing but two numbers depends on the image
    luma, plane, turn = torch.zeros(3, 3, 3, dtype=torch.float64)
    luma[0, 0] = plane[1, 1] = plane[2, 2] = turn[1, 2] = 1
    turn[2, 1] = -1
    parts = torch.stack([from_yiq @ part @ to_yiq for part in (luma, plane, turn)])
    luma, plane, turn = parts.to(x.dtype).to(x.device, non_blocking=True)
    radians = (2 * math.pi * turns)[:, None, None]
    return luma + plane * radians.cos() + turn * radians.sin()


@torch.no_grad()
def color_jitter(
    x, brightness=None, contrast=None, saturation=None, hue=None, order=None
):
    """Change the colors of each image by factors of its own, in an order of its own.

    Every step is one matrix product over the channels, clipped to [0, 1].

    Parameters
    ----------
    x : Tensor of shape (B, C, H, W)
    brightness : Tensor of shape (B,) or None, default=None
        Factors, >= 0.
    contrast : Tensor of shape (B,) or None, default=None
        Factors of the distance to the mean of the grey image, >= 0.
    saturation : Tensor of shape (B,) or None, default=None
        Factors of the distance to the grey image, >= 0. Only for three channels.
    hue : Tensor of shape (B,) or None, default=None
        Turns of the color circle, in [-0.5, 0.5]. Only for three channels.
    order : Tensor of int of shape (B, n_steps) or None, default=None
        In which order an image passes the steps that are not None: permutations; None:
        as listed here.

    Returns
    -------
    x : Tensor of shape (B, C, H, W)

    Notes
    -----
    torchvision turns the hue of HSV space, which is not linear; here the plane of I and
    Q turns in YIQ space, which leaves the grey image alone before clipping. Other steps
    are the same as torchvision's.
    """
    steps = _color_steps(x, brightness, contrast, saturation, hue, order)
    return _apply_color_steps(x, steps, torch.empty_like(x)) if steps else x


def _color_steps(
    x, brightness=None, contrast=None, saturation=None, hue=None, order=None
):
    """Return a list of matrices (B, C, C) with shares (B, 1, 1) of the grey mean.

    A step is the product with the matrix, plus the share of the grey image's mean;
    None where the share is 0 for all images.
    """
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    matrices, shares = [], []
    if brightness is not None:
        matrices.append(_per_image(brightness, x)[:, None, None] * eye)
    if contrast is not None:
        factor = _per_image(contrast, x)[:, None, None]
        matrices.append(factor * eye)
        shares = [torch.zeros_like(factor)] * (len(matrices) - 1) + [1 - factor]
    if saturation is not None:
        factor = _per_image(saturation, x)[:, None, None]
        matrices.append(factor * eye + (1 - factor) * _grey_weights(x))
    if hue is not None:
        matrices.append(_hue_matrices(_per_image(hue, x), x))
    if shares:
        shares += [torch.zeros_like(factor)] * (len(matrices) - len(shares))
    if order is not None and matrices:
        turn = order.T, torch.arange(len(x), device=x.device)
        matrices = list(torch.stack(matrices)[turn])
        shares = list(torch.stack(shares)[turn]) if shares else shares
    return list(zip(matrices, shares or [None] * len(matrices), strict=True))


def _apply_color_steps(x, steps, out):
    """Apply color steps one after the other, clipped each; the last writes ``out``."""
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
    """Blur each image by a Gaussian of its own width; the border is reflected.

    Parameters
    ----------
    x : Tensor of shape (B, C, H, W)
    sigma : Tensor of shape (B,)
        Standard deviations in pixels; images with 0 are left alone.
    kernel_size : int
        Side of the kernel, odd; cut where the image is too small to be reflected.

    Returns
    -------
    x : Tensor of shape (B, C, H, W)
    """
    sigma = _per_image(sigma, x)[:, None]
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


class Contrastive(_ImagePolicy):
    """Crop, mirror, recolor, and perhaps blur images: SimCLR's views.

    Crop, mirror image and rotation are one resampling; each step of the color jitter is
    one matrix product over the channels. One-channel images skip saturation, hue and
    grayscale.

    Parameters
    ----------
    crop : tuple of two floats, default=(0.08, 1.0)
        Smallest and largest share of the area that a view shows.
    aspect : tuple of two floats, default=(3/4, 4/3)
        Least and greatest width over height of what it shows.
    flip : float, default=0.5
        Probability of mirroring left to right; 0 for digits and characters.
    jitter : float or tuple of four floats, default=0.5
        Strength s of the color jitter; brightness, contrast and saturation are changed
        by factors within 0.8 s of 1 and hue by up to 0.2 s turns. Or these four.
        SimCLR: 0.5 for 32 x 32, 1 for ImageNet.
    jitter_probability : float, default=0.8
        Probability that the colors of an image change.
    grayscale : float, default=0.2
        Probability of losing the colors.
    blur : float, default=0.0
        Probability of a Gaussian blur, with a standard deviation from 0.1 to 2 pixels
        and a kernel of a tenth of the side. SimCLR: 0.5 on ImageNet, none at 32 x 32.
    rotate : float, default=0.0
        Largest rotation in degrees, both ways.
    solarize : float, default=0.0
        Probability of inverting the values from 0.5 up. BYOL: 0.2 in the second view.
    size : int, tuple of two int or None, default=None
        Side, or height and width, of the views; None: those of the images. The small
        crops of SwAV are three sevenths as large.

    Notes
    -----
    A view differs from torchvision's for the same parameters in one step, the hue (see
    :func:`color_jitter`), and in rotations: they show what lies around the crop.

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

    def _augment(self, x):
        n = len(x)
        crop = [*self._boxes(x), torch.rand(n, device=x.device) < self.flip]
        if self.rotate:
            crop.append(_uniform(n, -self.rotate, self.rotate, x))
        colors = self._draw_colors(x)
        size = (self.size,) * 2 if isinstance(self.size, int) else self.size
        size = tuple(size or x.shape[2:])
        same = size == tuple(x.shape[2:])
        out = torch.empty_like(x) if same else x.new_empty(*x.shape[:2], *size)
        for part in _pieces(x):
            view = resized_crop(x[part], *(t[part] for t in crop), size=size)
            if not colors:
                out[part] = view
                continue
            steps = [(m[part], None if s is None else s[part]) for m, s in colors]
            _apply_color_steps(view, steps, out[part])
        if self.blur:
            sigma = _uniform(n, 0.1, 2.0, x)
            chosen = torch.rand(n, device=x.device) < self.blur
            side = max(3, 2 * round((min(x.shape[2:]) / 10 - 1) / 2) + 1)
            out = gaussian_blur(out, torch.where(chosen, sigma, 0), side)
        if self.solarize:
            chosen = torch.rand(n, 1, 1, 1, device=x.device) < self.solarize
            out = torch.where(chosen & (out >= 0.5), 1 - out, out)
        return out

    def _boxes(self, x, tries=10):
        """Draw top, left, height and width as torchvision does, for all images."""
        n, _, side_y, side_x = x.shape
        area = _uniform((tries, n), *self.crop, x) * (side_y * side_x)
        ratio = _uniform((tries, n), *map(math.log, self.aspect), x).exp()
        width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (width >= 1) & (width <= side_x) & (height >= 1) & (height <= side_y)
        # where no try fits, the largest box in the middle with an allowed aspect
        wide = min(max(side_x / side_y, self.aspect[0]), self.aspect[1])
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
                factor = _uniform(n, max(0.0, 1 - strength), 1 + strength, x)
                factors[name] = torch.where(chosen, factor, 1)
        if jitter[3] and colored:
            turns = _uniform(n, -jitter[3], jitter[3], x)
            factors["hue"] = torch.where(chosen, turns, 0)
        order = torch.rand(n, len(factors), device=x.device).argsort(1)
        steps = _color_steps(x, **factors, order=order)
        if self.grayscale and colored:
            grey = torch.rand(n, device=x.device) < self.grayscale
            steps += _color_steps(x, saturation=torch.where(grey, 0.0, 1.0))
        return steps


def sobel(x, grey="luma"):
    """Return the horizontal and vertical edges of the grey images.

    Parameters
    ----------
    x : Tensor of shape (B, C, H, W)
    grey : {"luma", "mean"}, default="luma"
        Grey as 0.299 R + 0.587 G + 0.114 B (IIC), or as the mean of the channels
        (DeepCluster). Images of other than three channels: the mean.

    Returns
    -------
    edges : Tensor of shape (B, 2, H, W)
        3 x 3 Sobel filters as cross-correlation, with zeros around the image.

    Raises
    ------
    ValueError
        For an unknown ``grey``.
    """
    if grey not in ("luma", "mean"):
        raise ValueError(f'grey={grey!r} is neither "luma" nor "mean".')
    channels = x.shape[1]
    weights = [1 / channels] * channels
    if grey == "luma" and channels == 3:
        weights = [0.299, 0.587, 0.114]
    across = x.new_tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    filters = torch.stack([across, across.T])[:, None]  # (2, 1, 3, 3)
    return F.conv2d(
        torch.einsum("bchw,c->bhw", x, x.new_tensor(weights))[:, None],
        filters,
        padding=1,
    )


# -- operations on 8-bit images, as PIL computes them


def _wide(x):
    """Return the widest float format of the device of x."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _column(values, x):
    """Return per-sample values of shape (B, 1, 1, 1)."""
    return values.to(x.dtype)[:, None, None, None]


def _to_bytes(x):
    """Return floats in [0, 1] as 8-bit integers."""
    half = torch.tensor(0.5, dtype=x.dtype)
    out = torch.empty_like(x, dtype=torch.uint8)
    parts = _pieces(x, 2**16)
    spare = torch.empty_like(x[parts[0]])
    for part in parts:
        piece = x[part]
        scaled = torch.add(half, piece, alpha=255, out=spare[: len(piece)])
        out[part] = scaled.clamp_(0, 255)
    return out


def _luma(f):
    """Return the grey image of 8-bit values held as floats, rounded as PIL does."""
    channels = f.shape[1]
    if channels == 3:
        # products with 16 bits behind the point stay below 2**24: exact in float32
        grey = f[:, 0] * 19595 + f[:, 1] * 38470 + f[:, 2] * 7471
        return ((grey + 32768) * (1 / 65536)).floor_()[:, None]
    return f.mean(1, keepdim=True).add_(0.5).floor_() if channels > 1 else f


def _blend(start, end, weight):
    """Return ``start + weight (end - start)`` in 8 bits, cut off; spoil ``end``."""
    return end.sub_(start).mul_(weight).add_(start).clamp_(0, 255).to(torch.uint8)


def _boxes_of(f, side):
    """Return sums over squares of ``side`` pixels that lie inside the image."""
    for dim in (2, 3):
        length = max(f.shape[dim] - side + 1, 0)
        parts = [f.narrow(dim, i, length) for i in range(side)] if length else []
        f = sum(parts) if parts else f.narrow(dim, 0, 0)
    return f


def _smooth(f):
    """Return the 3 x 3 smoothing of PIL (5 in the middle, 13 in all), border kept."""
    out = f.clone()
    if min(f.shape[2:]) >= 3:
        inner = f[:, :, 1:-1, 1:-1]
        # thirteenths never end in a half: any rounding is PIL's
        out[:, :, 1:-1, 1:-1] = ((_boxes_of(f, 3) + 4 * inner) / 13).round_()
    return out


def _blur(f):
    """Return the mean over the rim of 5 x 5 pixels, border of two kept."""
    out = f.clone()
    if min(f.shape[2:]) >= 5:
        rim = _boxes_of(f, 5) - _boxes_of(f[:, :, 1:-1, 1:-1], 3)
        out[:, :, 2:-2, 2:-2] = (rim / 16 + 0.5).floor_()
    return out


def _autocontrast(x):
    """Stretch each channel to 0..255."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    low, high = low.to(_wide(x)), high.to(_wide(x))
    # a true quotient: torch turns ``255 / t`` into a product with the reciprocal
    scale = torch.full_like(low, 255).div_(high - low)
    scale = torch.where(high > low, scale, 1)
    offset = torch.where(high > low, -low * scale, 0)
    return (x.to(scale.dtype) * scale).add_(offset).clamp_(0, 255).to(torch.uint8)


def _equalize(x):
    """Make the histogram of each channel as flat as a table of values can."""
    n, channels, height, width = x.shape
    values = x.reshape(n * channels, -1).long()
    counts = torch.zeros(n * channels, 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(1, values, torch.ones_like(values[:1, :1]).expand_as(values))
    last = counts.gather(1, values.amax(1, keepdim=True))
    step = torch.div(height * width - last, 255, rounding_mode="floor")
    below = counts.cumsum(1) - counts
    table = torch.div(
        below + torch.div(step, 2, rounding_mode="floor"),
        step.clamp(min=1),
        rounding_mode="floor",
    )
    table = torch.where(step > 0, table, torch.arange(256, device=x.device))
    return table.clamp_(max=255).to(torch.uint8).gather(1, values).view_as(x)


def _posterize(x, bits):
    """Keep the highest bits."""
    dropped = torch.bitwise_left_shift(torch.ones_like(bits), 8 - bits)
    return x & _column(256 - dropped, x)


def _solarize(x, threshold):
    """Invert the values from a threshold up."""
    threshold = threshold.ceil().clamp(0, 256).to(torch.int16)[:, None, None, None]
    return x ^ (x.to(torch.int16) >= threshold).to(torch.uint8).mul_(255)


def _rotation(degrees, height, width):
    """Return the rows (B, 6) of maps from output to input pixels, about the middle."""
    # 15 digits, as PIL: the quarter turns come out exactly
    radians = -degrees * (math.pi / 180)
    cos, sin = (torch.round(t, decimals=15) for t in (radians.cos(), radians.sin()))
    x, y = width / 2, height / 2
    return torch.stack(
        [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y], 1
    )


def _affine(x, matrix, fill):
    """Map images by PIL's nearest neighbor, in its fixed-point arithmetic.

    ``matrix`` holds rows (a, b, c, d, e, f): the output pixel (x, y) shows the input at
    (a x + b y + c, d x + e y + f), or ``fill`` outside.
    """
    n, channels, height, width = x.shape
    a, b, c, d, e, f = matrix.T[:, :, None]  # (B, 1) each
    # 16 bits behind the point; twice the side stays below 2**15 for 32-bit integers
    dtype = torch.int32 if max(height, width) < 2**13 else torch.int64
    a, b, c, d, e, f = (
        (value * 65536 + 0.5).floor().to(dtype)
        for value in (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    )
    across = torch.arange(width, dtype=dtype, device=x.device)
    down = torch.arange(height, dtype=dtype, device=x.device)
    columns = (a * across + c)[:, None, :] + (b * down)[:, :, None]  # (B, H, W)
    rows = (d * across + f)[:, None, :] + (e * down)[:, :, None]
    # a rim of one pixel holds the fill, and everything outside is clamped to it
    columns = columns.bitwise_right_shift_(16).clamp_(-1, width)
    rows = rows.bitwise_right_shift_(16).clamp_(-1, height)
    index = rows.mul_(width + 2).add_(columns).add_(width + 3).long()
    padded = F.pad(x, (1, 1, 1, 1), value=fill).view(n, channels, -1)
    index = index.view(n, 1, -1).expand(n, channels, -1)
    return padded.gather(2, index).view_as(x)


def _resampling(side, start, length, method, dtype):
    """Return (B, side, side) weights that enlarge a part of a line to all of it.

    Integers with 22 bits behind the point, as PIL has for 8-bit images. Methods are
    numbered as CTAugment lists them: Lanczos, bicubic, bilinear, box, Hamming, nearest.
    """
    place = torch.arange(side, dtype=dtype, device=start.device)
    parts = (start, length, method)
    start, length, method = (t.to(dtype)[:, None, None] for t in parts)
    center = (place[:, None] + 0.5) * (length / side)  # (B, side, 1)
    position = place - start  # of an input pixel in the cut
    t = position - center + 0.5
    size = t.abs()
    lanczos = torch.sinc(t) * torch.sinc(t / 3) * ((t >= -3) & (t < 3))
    near = (1.5 * size - 2.5) * size * size + 1
    far = ((-0.5 * size + 2.5) * size - 4) * size + 2
    bicubic = torch.where(size < 1, near, torch.where(size < 2, far, 0))
    bilinear = (1 - size).clamp_(min=0)
    box = ((t > -0.5) & (t <= 0.5)).to(dtype)
    hamming = torch.sinc(t) * (0.54 + 0.46 * torch.cos(math.pi * t)) * (size < 1)
    nearest = (position == center.floor()).to(dtype)
    filters = torch.stack([lanczos, bicubic, bilinear, box, hamming, nearest])
    weights = filters.gather(0, method.long()[None].expand_as(filters[:1]))[0]
    weights = weights * ((position >= 0) & (position < length))
    weights = weights / weights.sum(2, keepdim=True)
    return (weights.abs() * 2**22 + 0.5).floor() * weights.sign()


def _rescale(x, level, method):
    """Enlarge the middle by one of six filters; up to a quarter goes at each side."""
    height, width = x.shape[2:]
    dtype = _wide(x)
    method = (method * 5.99).floor()
    out = x
    for dim, side in ((3, width), (2, height)):
        cut = level.to(dtype) * 0.25
        start = (cut * side).round()
        length = ((1 - cut) * side).round() - start
        weights = _resampling(side, start, length, method, dtype)[:, None]
        f = out.to(dtype)
        f = f @ weights.mT if dim == 3 else weights @ f
        out = (f + 2**21).mul_(2.0**-22).floor_().clamp_(0, 255).to(torch.uint8)
    return out


def _cut_out(x, top, left, bottom, right, fill):
    """Paint a rectangle in each 8-bit image; ``bottom`` and ``right`` stay outside."""
    rows = torch.arange(x.shape[2], device=x.device)
    columns = torch.arange(x.shape[3], device=x.device)
    rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    columns = (columns >= left[:, None]) & (columns < right[:, None])
    # products of bytes: many times as fast as logic and as a fill under a mask
    rows, columns = rows.to(torch.uint8), columns.to(torch.uint8)
    hole = (rows[:, :, None] * columns[:, None, :])[:, None]
    return x.mul_(1 - hole).add_(hole * fill)


def _square(side, x):
    """Draw a square of ``side`` pixels about any pixel; return its edges."""
    half = torch.div(side, 2, rounding_mode="floor")
    place = torch.rand(2, len(x), device=x.device)
    row, column = (place[0] * x.shape[2]).long(), (place[1] * x.shape[3]).long()
    return row - half, column - half, row + half, column + half


# -- the engine: a batch sorted by operation


def _maps(x, counts, values):
    """Return the affine maps of slices that are sorted as ``GEOMETRY``."""
    values = values.to(_wide(x))
    matrix = values.new_zeros(len(values), 6)
    matrix[:, 0] = matrix[:, 4] = 1
    start = 0
    for name, count in zip(GEOMETRY, counts, strict=True):
        part = slice(start, start + count)
        if name == "Rotate" and count:
            matrix[part] = _rotation(values[part], *x.shape[2:])
        elif count:
            column = {"ShearX": 1, "ShearY": 3, "TranslateX": 2, "TranslateY": 5}[name]
            matrix[part, column] = values[part]
        start += count
    return matrix


def _enhance(x, counts, factor):
    """Enhance slices that are sorted as ``ENHANCEMENTS``: blends with a dull image."""
    f = x.float()
    dull = torch.zeros_like(f)  # brightness
    start = counts[0]
    for name, count in zip(ENHANCEMENTS[1:], counts[1:], strict=True):
        part = slice(start, start + count)
        if not count:
            continue
        if name == "Sharpness":
            dull[part] = _smooth(f[part])
        elif name == "Contrast":
            total = _luma(f[part]).sum((1, 2, 3), keepdim=True, dtype=_wide(x))
            mean = total / (x.shape[2] * x.shape[3])
            dull[part] = (mean + 0.5).floor().float()
        elif x.shape[1] == 3:
            dull[part] = _luma(f[part])
        else:  # an image without colors is its own dull one
            dull[part] = f[part]
        start += count
    return _blend(dull, f, _column(factor, f))


def _effect(name, x):
    if name == "AutoContrast":
        return _autocontrast(x)
    if name == "Equalize":
        return _equalize(x)
    if name == "Invert":
        return ~x
    filtered = _smooth(x.float()) if name == "Smooth" else _blur(x.float())
    return filtered.to(torch.uint8)


def _apply_sorted(x, counts, values, methods=None, blend=False, fill=0):
    """Apply operations, in place, to 8-bit images that are sorted as ``OPERATIONS``.

    ``counts`` says how many images take each operation, ``values`` (B,) its magnitudes,
    ``blend`` whether effects are blended with the image by them.
    """
    ends = [0]
    for count in counts:
        ends.append(ends[-1] + count)
    n_maps, n_first = len(GEOMETRY), len(GEOMETRY) + len(ENHANCEMENTS)
    if ends[n_maps]:
        part = slice(0, ends[n_maps])
        maps = _maps(x, counts[:n_maps], values[part])
        x[part] = _affine(x[part], maps, fill)
    if ends[n_first] > ends[n_maps]:
        part = slice(ends[n_maps], ends[n_first])
        x[part] = _enhance(x[part], counts[n_maps:n_first], values[part])
    for i, name in enumerate(OPERATIONS[:-1]):
        if i < n_first or not counts[i]:
            continue
        part = slice(ends[i], ends[i + 1])
        image, value = x[part], values[part]
        if name in EFFECTS:
            out = _effect(name, image)
            if blend:
                f = image.float()
                out = _blend(f, out.float(), _column(value, f))
        elif name == "Posterize":
            out = _posterize(image, value.long())
        elif name == "Solarize":
            out = _solarize(image, value)
        elif name == "Rescale":
            out = _rescale(image, value, methods[part])
        else:  # "Cutout"
            out = _cut_out(image, *_square(value.long(), image), GREY)
        x[part] = out
    return x


@torch.no_grad()
def apply_op(x, op, value=0.0, method=0.0, blend=False, fill=0):
    """Apply one operation of RandAugment or CTAugment to all images, as PIL does.

    Parameters
    ----------
    x : Tensor of shape (B, C, H, W)
        8-bit integers, or floats in [0, 1], which are rounded to 8 bits except for
        geometry.
    op : str
        One of ``OPERATIONS``.
    value : float or Tensor of shape (B,), default=0.0
        Magnitude: the slope of ShearX and ShearY, pixels of TranslateX and TranslateY
        (where the output takes its pixels from), degrees of Rotate
        (counter-clockwise), factor of Brightness, Color, Contrast and Sharpness, bits
        kept by Posterize, threshold of Solarize in 8-bit levels, side of Cutout in
        pixels (centered anywhere), level of Rescale in [0, 1].
    method : float or Tensor of shape (B,), default=0.0
        For Rescale: which of its six filters, in [0, 1].
    blend : bool, default=False
        Whether AutoContrast, Equalize, Invert, Smooth and Blur are blended with the
        image by ``value`` in [0, 1]; CTAugment's way.
    fill : float, default=0
        Of pixels that geometry uncovers, in the units of x.

    Returns
    -------
    x : Tensor of shape (B, C, H, W)
        Of the same type.

    Raises
    ------
    ValueError
        For an unknown operation.
    """
    if op not in OPERATIONS:
        raise ValueError(f"op={op!r} is none of {', '.join(OPERATIONS)}.")
    values, methods = (
        torch.as_tensor(v, dtype=_wide(x), device=x.device).expand(len(x))
        for v in (value, method)
    )
    counts = [len(x) if name == op else 0 for name in OPERATIONS]
    if op in GEOMETRY or x.dtype == torch.uint8:
        return _apply_sorted(x.clone(), counts, values, methods, blend, fill)
    out = _apply_sorted(_to_bytes(x), counts, values, methods, blend)
    return out.to(x.dtype) / 255


def _sort_plan(ops):
    """Plan how a batch is sorted by operation, for several operations in a row.

    ``ops`` (n_ops, B) lies on the host, where the sizes of slices must be known; so the
    device never has to be waited for. Returns ``order`` (n_ops, B): rows of the batch
    in the order of each operation; ``moves`` (n_ops + 1, B): how the rows move from one
    order to the next, and back in the end; ``counts`` per operation.
    """
    order = ops.argsort(dim=1, stable=True)
    inverse = order.argsort(1)
    moves = [order[:1]]
    if len(ops) > 1:
        moves.append(inverse[:-1].gather(1, order[1:]))
    moves.append(inverse[-1:])
    counts = [row.bincount(minlength=len(OPERATIONS)).tolist() for row in ops]
    return order, torch.cat(moves), counts


def _send(values, x):
    """Copy a host tensor to the device of x without waiting for the device."""
    if values.dtype == torch.float64:
        values = values.to(_wide(x))
    if x.device.type == "cpu":
        return values
    if x.device.type == "cuda":
        values = values.pin_memory()
    return values.to(x.device, non_blocking=True)


# -- RandAugment

ENHANCE_RANGE = {name: (0.05, 0.95) for name in ENHANCEMENTS}
# Ranges of tables with continuous magnitudes; translation in shares of the side.
RANGES = {
    "usb": {
        "Rotate": (-30, 30),
        "Solarize": (0, 256),
        "Posterize": (4, 8),
        **ENHANCE_RANGE,
        **{name: (-0.3, 0.3) for name in GEOMETRY[:4]},
    },
    "scan": {
        "Rotate": (-30, 30),
        "Solarize": (0, 256),
        "Posterize": (4, 8),
        **ENHANCE_RANGE,
        **{name: (-0.1, 0.1) for name in GEOMETRY[:4]},
    },
}


def _level_value(op, level, table):
    """Return the magnitude of one operation at an integer level of 0..10."""
    share = level / MAX_LEVEL
    official = table == "official"
    if op == "Rotate":
        return int(level * 30 / MAX_LEVEL)
    if op in ("ShearX", "ShearY"):
        return share * 0.3
    if op in ("TranslateX", "TranslateY"):
        # pixels of any image, or a share of the side
        return float(level) if official else share * 0.3
    if op == "Solarize":
        return 256 - int(level * 256 / MAX_LEVEL)
    if op == "Posterize":
        bits = int(level * 4 / MAX_LEVEL)
        return 4 - bits if official else 4 + bits
    if op in ENHANCEMENTS:
        return share * 1.8 + 0.1 if official else share * 0.9 + 0.05
    return 0.0


@lru_cache
def _value_table(table, height, width):
    """Return values by operation, sign (-, +) and level, or ends of the range, float64.

    Of shape (len(OPERATIONS), 2, 11), or 2 in the place of 11.
    """
    if table in RANGES:
        rows = [RANGES[table].get(op, (0, 0)) for op in OPERATIONS]
    elif table in ("port", "official"):
        levels = range(MAX_LEVEL + 1)
        rows = [[_level_value(op, i, table) for i in levels] for op in OPERATIONS]
    else:
        raise ValueError(
            f'table={table!r} is none of "port", "official", "scan", "usb".'
        )
    values = torch.tensor(rows, dtype=torch.float64)[:, None].repeat(1, 2, 1)
    values[: len(GEOMETRY), 0] *= -1
    if table != "official":
        for name, side in (("TranslateX", width), ("TranslateY", height)):
            rows = values[OPERATIONS.index(name)]
            rows *= side
            if table == "port":
                rows.trunc_()
    return values


def op_values(ops, levels, table="port", size=(32, 32), signs=1):
    """Return magnitudes of RandAugment's operations, as `apply_op` takes them.

    Parameters
    ----------
    ops : Tensor of int of shape (...)
        Positions in ``OPERATIONS``.
    levels : Tensor of shape (...)
        Integers 0..10 for the tables "port" and "official"; shares of the range in
        [0, 1] for "scan" and "usb".
    table : {"port", "official", "scan", "usb"}, default="port"
        Whose ranges; see `RandAugment`.
    size : tuple of two int, default=(32, 32)
        Height and width of the images.
    signs : Tensor of shape (...) or int, default=1
        1 or -1 for geometry.

    Returns
    -------
    values : Tensor of float64 of shape (...)

    Raises
    ------
    ValueError
        For an unknown table.
    """
    known = _value_table(table, *size)
    positive = torch.as_tensor(signs > 0).long()
    if table in ("port", "official"):
        return known[ops, positive, levels]
    low, high = known[ops, positive].unbind(-1)
    values = low + (high - low) * levels
    return torch.where(ops == _number("Posterize"), values.floor(), values)


def _number(op):
    """Return the position of an operation in ``OPERATIONS``."""
    return OPERATIONS.index(op)


class RandAugment(_ImagePolicy):
    """Random operations of random strength and a hole: FixMatch's strong view.

    Every image draws its own operations and strengths. A batch is sorted by operation,
    and each operation computed once, on 8-bit values and to the same grey levels as
    PIL's.

    Parameters
    ----------
    n_ops : int, default=2
        Operations in a row, drawn with replacement.
    magnitude : int, default=10
        Levels are drawn from 1 to ``magnitude - 1``, in [2, 11]. Tables with continuous
        ranges draw from all of the range instead.
    probability : float, default=0.5
        Probability that a drawn operation is applied.
    cutout : float or tuple of two floats, default=0.5
        Side of the square that is painted over in the end, as a share of the image's
        shorter side; a pair: drawn between the two, in whole pixels; 0: none.
    ops : "fixmatch" or tuple of str, default="fixmatch"
        Names out of ``OPERATIONS`` to draw from; "fixmatch": its fourteen. A name may
        occur twice.
    table : {"port", "official", "scan", "usb"}, default="port"
        Strength of a level. "port": FixMatch's PyTorch port (enhancements 0.14..0.86,
        translations in shares of the side, black corners); "official": its TensorFlow
        code (enhancements 0.28..1.72, translations in pixels, grey corners); "scan" and
        "usb": continuous strengths (translations and shears up to 0.1 and 0.3).
    weak : nn.Module or None, default=None
        Applied first; FixMatch: :class:`Weak`.
    fill : array-like of shape (C,) or None, default=None
        Color of the hole, in [0, 1]; None: grey.

    Notes
    -----
    Grey is 127 of 255 in all tables; the official code has 127.5. The port's holes are
    one pixel wider than their name, as there. Without three channels, "Color" does
    nothing. Operations are drawn from the generator of the CPU, since the sizes of the
    slices must be known there; holes from that of the images' device.

    References
    ----------
    .. [1] E. D. Cubuk et al., "RandAugment: Practical automated data augmentation with
       a reduced search space", CVPR workshops 2020.
    .. [2] K. Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with
       Consistency and Confidence", NeurIPS 2020, appendix.

    Examples
    --------
    >>> import torch
    >>> from sklabel.augment import RandAugment, Weak
    >>> strong = RandAugment(weak=Weak(flip=0))
    >>> strong(torch.rand(8, 1, 28, 28)).shape
    torch.Size([8, 1, 28, 28])
    """

    def __init__(
        self,
        n_ops=2,
        magnitude=10,
        probability=0.5,
        cutout=0.5,
        ops="fixmatch",
        table="port",
        weak=None,
        fill=None,
    ):
        super().__init__()
        self.n_ops = n_ops
        self.magnitude = magnitude
        self.probability = probability
        self.cutout = cutout
        self.ops = ops
        self.table = table
        self.weak = weak
        self.fill = fill

    def _augment(self, x):
        images = _to_bytes(x if self.weak is None else self.weak(x))
        if self.n_ops:
            ops, values = self._draw(*x.shape[::2], x.shape[3])
            order, moves, counts = _sort_plan(ops)
            moves, values = _send(moves, x), _send(values.gather(1, order), x)
            fill = GREY if self.table == "official" else 0
            for k in range(self.n_ops):
                images = images.index_select(0, moves[k])
                images = _apply_sorted(images, counts[k], values[k], fill=fill)
            images = images.index_select(0, moves[-1])
        if self.cutout:
            images = _cut_out(images, *self._holes(x), self._color(x))
        return images

    def _pool(self):
        names = FIXMATCH if self.ops == "fixmatch" else self.ops
        unknown = [op for op in names if op not in OPERATIONS or op == "Rescale"]
        if isinstance(names, str) or unknown or not len(names):
            raise ValueError(
                f'ops={self.ops!r} is neither "fixmatch" nor a tuple of operations out '
                f"of {', '.join(op for op in OPERATIONS if op != 'Rescale')}."
            )
        return torch.tensor([_number(op) for op in names])

    def _draw(self, n, height, width):
        """Draw operations and their values, both (n_ops, B), on the host."""
        pool = self._pool()
        shape = (self.n_ops, n)
        ops = pool[torch.randint(len(pool), shape)]
        skipped = torch.rand(shape) >= self.probability
        ops = torch.where(skipped, _number("Identity"), ops)
        if self.table in RANGES:
            levels = torch.rand(shape, dtype=torch.float64)
        elif not 2 <= self.magnitude <= MAX_LEVEL + 1:
            raise ValueError(f"magnitude={self.magnitude} is not in [2, 11].")
        else:
            levels = torch.randint(1, self.magnitude, shape)
        signs = torch.randint(2, shape) * 2 - 1
        return ops, op_values(ops, levels, self.table, (height, width), signs)

    def _holes(self, x):
        """Draw top, left, bottom and right of the hole of each image."""
        n, _, height, width = x.shape
        shares = self.cutout
        if not isinstance(shares, (tuple, list)):
            shares = (shares, shares)
        low, high = (max(1, round(share * min(height, width))) for share in shares)
        side = torch.randint(low, high + 1, (n,), device=x.device)
        if self.table != "port":
            return _square(side, x)
        # a corner is moved to the border before the other one is counted from it
        place = torch.rand(2, n, device=x.device)
        top = (place[0] * height - side / 2).clamp_(min=0).long()
        left = (place[1] * width - side / 2).clamp_(min=0).long()
        return top, left, top + side + 1, left + side + 1

    def _color(self, x):
        if self.fill is None:
            return GREY
        fill = torch.as_tensor(self.fill, dtype=x.dtype).reshape(1, -1, 1, 1)
        return _send(_to_bytes(fill), x)


def scan_strong(flip=0.5, n_ops=4, cutout=(1 / 32, 0.5), fill=None):
    """Return SCAN's strong policy: four operations, always applied, and a hole.

    Parameters
    ----------
    flip : float, default=0.5
        Probability of mirroring left to right.
    n_ops : int, default=4
        Operations in a row.
    cutout : tuple of two floats, default=(1 / 32, 0.5)
        Smallest and largest side of the hole, as shares of the image's side: 1 to 16 of
        32 pixels.
    fill : array-like of shape (C,) or None, default=None
        Color of the hole, in [0, 1]; SCAN: the mean of the data. None: grey.

    Returns
    -------
    policy : RandAugment

    References
    ----------
    .. [1] W. Van Gansbeke et al., "SCAN: Learning to Classify Images without Labels",
       ECCV 2020.
    """
    return RandAugment(
        n_ops=n_ops,
        probability=1.0,
        cutout=cutout,
        table="scan",
        weak=Weak(flip=flip, shift=0.0),
        fill=fill,
    )


# -- CTAugment


def ctaugment_values(op, levels, size=(32, 32), cutout=0.5):
    """Return magnitudes of a CTAugment operation, as `apply_op` takes them.

    Parameters
    ----------
    op : str
        One of the keys of ``CTAUGMENT``.
    levels : Tensor of shape (B,)
        In [0, 1].
    size : tuple of two int, default=(32, 32)
        Height and width of the images.
    cutout : float, default=0.5
        Side of the largest hole, as a share of the shorter side.

    Returns
    -------
    values : Tensor of shape (B,)
    """
    centered = 2 * levels - 1
    if op in ("brightness", "color", "contrast", "sharpness"):
        return 0.1 + 1.9 * levels
    if op == "posterize":
        return 1 + (levels * 7.999).floor()
    if op == "solarize":
        return (levels * 255.999).floor()
    if op == "rotate":
        return (centered * 45).round()
    if op in ("shear_x", "shear_y", "translate_x", "translate_y"):
        # translations by parts of a PIXEL, as in the public code
        return centered * 0.3
    if op == "cutout":
        # a thousandth less, as in the public code: 16 of 32 pixels, not 17
        return 1 + (levels * min(size) * (cutout - 0.001)).floor()
    return levels


class CTAugment(_ImagePolicy):
    """Random operations whose strength follows what the model still recognizes.

    Each parameter of the 19 operations is cut into bins. `probe` applies operations of
    any strength to labeled images, `update` tells how well the model did on them, and
    training draws only from bins where it did well.

    Parameters
    ----------
    depth : int, default=2
        Operations in a row, drawn with replacement.
    decay : float, default=0.99
        Weight of the past in the rate of a bin, in [0, 1].
    threshold : float, default=0.80
        Bins whose rate is below this share of the best one are not used.
    cutout : float, default=0.5
        Side of the square that is painted grey in the end, as a share of the image's
        shorter side; 0: none, and no more than a pixel where it is drawn as one of the
        operations.

    Attributes
    ----------
    rates : Tensor of shape (19, 2, 17)
        By operation, parameter and bin; a buffer. Missing bins are 0.

    References
    ----------
    .. [1] D. Berthelot et al., "ReMixMatch: Semi-Supervised Learning with Distribution
       Alignment and Augmentation Anchoring", ICLR 2020.

    Examples
    --------
    >>> import torch
    >>> from sklabel.augment import CTAugment
    >>> policy = CTAugment()
    >>> x = torch.rand(8, 3, 32, 32)
    >>> views, draw = policy.probe(x)
    >>> policy.update(draw, torch.rand(8))
    >>> policy(x).shape
    torch.Size([8, 3, 32, 32])
    """

    def __init__(self, depth=2, decay=0.99, threshold=0.80, cutout=0.5):
        super().__init__()
        self.depth = depth
        self.decay = decay
        self.threshold = threshold
        self.cutout = cutout
        self._start()

    def _start(self):
        numbers = [_number(op) for op, *_ in CTAUGMENT.values()]
        bins = torch.tensor([bins for _, *bins in CTAUGMENT.values()])
        device = self.rates.device if "rates" in self._buffers else None
        known = torch.arange(17) < bins[:, :, None]
        # what the tables say is no state: it is made anew, never loaded
        self.numbers = torch.tensor(numbers)
        self.register_buffer("bins", bins.to(device), persistent=False)
        self.register_buffer("known", known.to(device), persistent=False)
        self.register_buffer("rates", known.float().to(device))

    def probabilities(self):
        """Return the probabilities of the bins that training draws from.

        Returns
        -------
        probabilities : Tensor of shape (19, 2, 17)
            Sum to one over the bins of a parameter, or to 0 where there is none.
        """
        weight = (self.rates + (1 - self.decay)) * self.known
        weight = weight / weight.amax(2, keepdim=True).clamp(min=1e-30)
        weight = weight * (weight >= self.threshold) * self.known
        return weight / weight.sum(2, keepdim=True).clamp(min=1e-30)

    def probe(self, x):
        """Apply operations of any strength, to learn from what the model makes of it.

        Parameters
        ----------
        x : Tensor of shape (B, C, H, W)
            Images in [0, 1]; FixMatch: the labeled ones.

        Returns
        -------
        views : Tensor of shape (B, C, H, W)
        draw : tuple of two Tensors
            Operations, int of shape (B, depth), and levels in [0, 1] of shape
            (B, depth, 2): what `update` needs.
        """
        draw = ()

        def augment(images):
            nonlocal draw
            shape = (self.depth, len(images), 2)
            ops = self._draw_ops(len(images))
            levels = torch.rand(shape, device=images.device)
            draw = _send(ops, images).T, levels.transpose(0, 1)
            return self._transform(images, ops, levels)

        return self._guarded(x, augment), draw

    @torch.no_grad()
    def update(self, draw, proximity):
        """Learn from how close the model's answers on probes came to the labels.

        Parameters
        ----------
        draw : tuple of two Tensors
            From `probe`.
        proximity : Tensor of shape (B,)
            In [0, 1]: 1 minus half the absolute distance of probabilities and label.

        Notes
        -----
        The result is that of one update after the other, row by row.
        """
        ops, levels = (t.to(self.rates.device) for t in draw)
        bins = self.bins[ops]  # (B, depth, 2)
        level = torch.nan_to_num(levels.to(_wide(levels)))
        bin_number = (level * bins * 0.999).long()
        parameter = torch.arange(2, device=ops.device)
        entry = ((ops[..., None] * 2 + parameter) * 17 + bin_number).flatten()
        # entries of missing parameters go to one behind the last
        n_entries = self.rates.numel()
        entry = torch.where(bins.flatten() > 0, entry, n_entries)
        proximity = proximity.to(level)[:, None, None].expand(bins.shape).flatten()
        order = entry.argsort(dim=0, stable=True)
        entry, proximity = entry[order], proximity[order]
        ends = torch.searchsorted(entry, entry, right=True)
        # an update is forgotten a little with each later one of the same entry
        later = ends - 1 - torch.arange(len(entry), device=entry.device)
        gain = (1 - self.decay) * proximity * self.decay ** later.to(level)
        rates = self.rates.to(level.dtype).flatten()
        rates = torch.cat([rates, rates.new_zeros(1)])
        count = torch.zeros_like(rates).index_add_(0, entry, torch.ones_like(gain))
        rates = (rates * self.decay**count).index_add_(0, entry, gain)
        self.rates.copy_(rates[:-1].view_as(self.rates))

    def _augment(self, x):
        ops = self._draw_ops(len(x))
        chances = self.probabilities().to(x.device)[_send(ops, x)]  # (depth, B, 2, 17)
        # the smallest of exponential times with these rates is a draw from them
        bins = (chances / torch.empty_like(chances).exponential_()).argmax(-1)
        inside = torch.rand(bins.shape, device=x.device)
        n_bins = self.bins.to(x.device)[_send(ops, x)].clamp(min=1)
        return self._transform(x, ops, (bins + inside) / n_bins, self.cutout)

    def _draw_ops(self, n):
        return torch.randint(len(CTAUGMENT), (self.depth, n))

    def _transform(self, x, ops, levels, cutout=0):
        """Apply operations (depth, B) on the host at levels (depth, B, 2)."""
        n, size = len(x), x.shape[2:]
        numbers = self.numbers[ops]
        images = _to_bytes(x)
        if self.depth:
            order, moves, counts = _sort_plan(numbers)
            moves, order = _send(moves, x), _send(order, x)
            levels = levels.to(_wide(x))
            for k in range(self.depth):
                sorted_levels = levels[k].index_select(0, order[k])
                level, method = sorted_levels.unbind(1)
                values = [
                    ctaugment_values(CTAUGMENT_NAMES[i], part, size, self.cutout)
                    for i, part in enumerate(level.split(counts[k]))
                    if len(part)
                ]
                images = images.index_select(0, moves[k])
                images = _apply_sorted(
                    images, counts[k], torch.cat(values), method, blend=True
                )
            images = images.index_select(0, moves[-1])
        if cutout:
            level = torch.ones(n, device=x.device)
            side = ctaugment_values("cutout", level, size, cutout)
            images = _cut_out(images, *_square(side.long(), x), GREY)
        return images


# -- vectors


class VectorNoise(_Parameters):
    """Add noise to vectors and drop some of their features.

    Parameters
    ----------
    noise : float, default=0.1
        Standard deviation of Gaussian noise, in units of ``scale``.
    dropout : float, default=0.1
        Probability that a feature is replaced by its ``center``.
    center : array-like of shape (D,) or None, default=None
        What dropped features become, such as their mean; None: 0.
    scale : array-like of shape (D,) or None, default=None
        Scale of the features, such as their standard deviation; None: 1.

    Examples
    --------
    >>> import torch
    >>> from sklabel.augment import VectorNoise
    >>> VectorNoise(noise=0.2)(torch.zeros(4, 10)).shape
    torch.Size([4, 10])
    """

    def __init__(self, noise=0.1, dropout=0.1, center=None, scale=None):
        super().__init__()
        self.noise = noise
        self.dropout = dropout
        self.center = center
        self.scale = scale
        self._start()

    def _start(self):
        for name, given, default in (
            ("center_", self.center, 0.0),
            ("scale_", self.scale, 1.0),
        ):
            known = self._buffers.get(name)
            value = torch.as_tensor(default if given is None else given)
            value = value.detach().to(torch.float32).clone()
            device = value.device if known is None else known.device
            self.register_buffer(name, value.to(device))

    def forward(self, x):
        if not torch.is_floating_point(x) or x.ndim != 2:
            raise ValueError(
                "VectorNoise takes floats of shape (B, D); got "
                f"{x.dtype} of shape {tuple(x.shape)}."
            )
        center, scale = self.center_.to(x), self.scale_.to(x)
        x = x + torch.randn_like(x) * (self.noise * scale)
        dropped = torch.rand(x.shape, device=x.device) < self.dropout
        return torch.where(dropped, center, x)


# What the methods' authors change in `Contrastive`, for images of less than 64 pixels and
# for larger ones. Blur is left out of the former, as in all recipes for CIFAR.
_MOCO = {"crop": (0.2, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1), "blur": 0.5}
_MOCO_V1 = {"crop": (0.2, 1.0), "jitter": (0.4,) * 4, "jitter_probability": 1.0}
_BYOL = {"jitter": (0.4, 0.4, 0.2, 0.1)}
# the public code cuts out 20 of 32 pixels for CIFAR, 40 % of the area
_IIC = {
    "crop": (0.4, 1.0),
    "jitter": (0.4, 0.4, 0.4, 0.125),
    "jitter_probability": 1.0,
    "grayscale": 0.0,
}
VIEWS = {
    "contrastive": ({}, {"jitter": 1.0, "blur": 0.5}),
    "moco_v1": (_MOCO_V1, _MOCO_V1),
    "moco_v2": ({**_MOCO, "crop": (0.08, 1.0), "blur": 0.0}, _MOCO),
    "byol_1": (_BYOL, {**_BYOL, "blur": 1.0}),
    "byol_2": ({**_BYOL, "solarize": 0.2}, {**_BYOL, "blur": 0.1, "solarize": 0.2}),
    "swav": ({"crop": (0.14, 1.0)}, {"crop": (0.14, 1.0), "jitter": 1.0, "blur": 0.5}),
    "swav_small": (
        {"crop": (0.05, 0.14)},
        {"crop": (0.05, 0.14), "jitter": 1.0, "blur": 0.5},
    ),
    "cld": ({**_MOCO, "blur": 0.0}, _MOCO),
    "iic": (_IIC, _IIC),
}


def build_augment(kind, sample_shape, center=None, scale=None):
    """Return the policy that estimators use unless told otherwise.

    Parameters
    ----------
    kind : str
        "weak", "strong", "ctaugment", "scan", "contrastive" (SimCLR's views), "moco_v1",
        "moco_v2", "byol_1" and "byol_2" (its first and second view), "swav",
        "swav_small" (its small crops), "cld" or "iic".
    sample_shape : tuple of int
        ``(D,)`` of vectors or ``(C, H, W)`` of images.
    center, scale : Tensor or None, default=None
        Mean and standard deviation of each feature or channel.

    Returns
    -------
    policy : nn.Module
        For vectors :class:`VectorNoise`, with twice the noise where ``kind`` is
        "strong", "ctaugment" or "swav_small".

    Raises
    ------
    ValueError
        For an unknown kind or another number of dimensions.
    """
    kinds = ("weak", "strong", "ctaugment", "scan", *VIEWS)
    if kind not in kinds:
        raise ValueError(f"kind={kind!r} is none of {kinds}.")
    if len(sample_shape) == 1:
        strength = 0.2 if kind in ("strong", "ctaugment", "swav_small") else 0.1
        return VectorNoise(strength, strength, center, scale)
    if len(sample_shape) != 3:
        raise ValueError(f"sample_shape={sample_shape} is neither (D,) nor (C, H, W).")
    if kind == "weak":
        return Weak()
    if kind == "strong":
        return RandAugment()
    if kind == "ctaugment":
        return CTAugment()
    if kind == "scan":
        if center is None:
            return scan_strong()
        return scan_strong(fill=tuple(torch.as_tensor(center).flatten().tolist()))
    small = min(sample_shape[1:]) < 64
    settings = VIEWS[kind][0 if small else 1]
    if kind == "swav_small":
        size = tuple(max(1, round(side * 3 / 7)) for side in sample_shape[1:])
        settings = {**settings, "size": size}
    return Contrastive(**settings)
