"""Operations on 8-bit images as PIL computes them, on whole batches; edges."""

import math

import torch
import torch.nn.functional as F

from .policy import pieces

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
GREY = 127


def sobel(x, grey="luma"):
    """Return the horizontal and vertical edges of the gray images.

    Parameters
    ----------
    x : Tensor of shape (B, C, H, W)
    grey : {"luma", "mean"}, default="luma"
        Gray as 0.299 R + 0.587 G + 0.114 B (IIC), or as the mean of the channels
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


# -- operations on 8-bit images


def widest_float(x):
    """Return the widest float format of the device of x."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _column(values, x):
    """Return per-sample values of shape (B, 1, 1, 1)."""
    return values.to(x.dtype)[:, None, None, None]


def to_bytes(x):
    """Return floats in [0, 1] as 8-bit integers."""
    half = torch.tensor(0.5, dtype=x.dtype)
    out = torch.empty_like(x, dtype=torch.uint8)
    parts = pieces(x, 2**16)
    spare = torch.empty_like(x[parts[0]])
    for part in parts:
        piece = x[part]
        scaled = torch.add(half, piece, alpha=255, out=spare[: len(piece)])
        scaled.clamp_(0, 255)
        # a CPU turns floats into bytes one by one, but into 16 bits many at once
        out[part] = scaled.short() if x.device.type == "cpu" else scaled
    return out


def _luma(f):
    """Return the gray image of 8-bit values held as floats, rounded as PIL does."""
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
    low, high = low.to(widest_float(x)), high.to(widest_float(x))
    # a true quotient: torch turns ``255 / t`` into a product with the reciprocal
    scale = torch.full_like(low, 255).div_(high - low)
    scale = torch.where(high > low, scale, 1)
    offset = torch.where(high > low, -low * scale, 0)
    return (x.to(scale.dtype) * scale).add_(offset).clamp_(0, 255).to(torch.uint8)


def _equalize(x):
    """Equalize the histogram of each channel by a table of values."""
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
    """Return (B, side, side) weights that enlarge a part of a line to its full length.

    Integers with 22 fractional bits, as in PIL for 8-bit images. Methods are numbered
    as CTAugment lists them: Lanczos, bicubic, bilinear, box, Hamming, nearest.
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
    """Enlarge the middle by one of six filters; crop up to a quarter of each side."""
    height, width = x.shape[2:]
    dtype = widest_float(x)
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


def cut_out(x, top, left, bottom, right, fill):
    """Paint a rectangle in each 8-bit image; ``bottom`` and ``right`` are exclusive."""
    rows = torch.arange(x.shape[2], device=x.device)
    columns = torch.arange(x.shape[3], device=x.device)
    rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    columns = (columns >= left[:, None]) & (columns < right[:, None])
    # products of bytes: many times as fast as logic and as a fill under a mask
    rows, columns = rows.to(torch.uint8), columns.to(torch.uint8)
    hole = (rows[:, :, None] * columns[:, None, :])[:, None]
    return x.mul_(1 - hole).add_(hole * fill)


def draw_square(side, x):
    """Draw a square of ``side`` pixels about any pixel; return its edges."""
    half = torch.div(side, 2, rounding_mode="floor")
    place = torch.rand(2, len(x), device=x.device)
    row, column = (place[0] * x.shape[2]).long(), (place[1] * x.shape[3]).long()
    return row - half, column - half, row + half, column + half


# -- a batch sorted by operation


def _maps(x, counts, values):
    """Return the affine maps of slices that are sorted as ``GEOMETRY``."""
    values = values.to(widest_float(x))
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
    """Enhance slices sorted as ``ENHANCEMENTS``: blend with a degenerate image."""
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
            total = _luma(f[part]).sum((1, 2, 3), keepdim=True, dtype=widest_float(x))
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


def apply_sorted(x, counts, values, methods=None, blend=False, fill=0):
    """Apply operations, in place, to 8-bit images that are sorted as ``OPERATIONS``.

    ``counts`` is the number of images of each operation, ``values`` (B,) the
    magnitudes, ``blend`` whether effects are blended with the image by these.
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
            out = cut_out(image, *draw_square(value.long(), image), GREY)
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
        For Rescale: its filter out of six, in [0, 1].
    blend : bool, default=False
        Whether AutoContrast, Equalize, Invert, Smooth and Blur are blended with the
        image by ``value`` in [0, 1], as in CTAugment.
    fill : float, default=0
        Value of pixels that geometry uncovers, in the units of x.

    Returns
    -------
    x : Tensor of shape (B, C, H, W)
        In the dtype of the input.

    Raises
    ------
    ValueError
        For an unknown operation.
    """
    if op not in OPERATIONS:
        raise ValueError(f"op={op!r} is not one of {', '.join(OPERATIONS)}.")
    values, methods = (
        torch.as_tensor(v, dtype=widest_float(x), device=x.device).expand(len(x))
        for v in (value, method)
    )
    counts = [len(x) if name == op else 0 for name in OPERATIONS]
    if op in GEOMETRY or x.dtype == torch.uint8:
        return apply_sorted(x.clone(), counts, values, methods, blend, fill)
    out = apply_sorted(to_bytes(x), counts, values, methods, blend)
    return out.to(x.dtype) / 255


def sort_plan(ops):
    """Plan how a batch is sorted by operation, for several operations in a row.

    ``ops`` (n_ops, B) is on the host, where the sizes of slices must be known, so the
    host never waits for the device. Returns ``order`` (n_ops, B): rows of the batch in
    the order of each operation; ``moves`` (n_ops + 1, B): how the rows move from one
    order to the next, and back at the end; ``counts`` per operation.
    """
    order = ops.argsort(dim=1, stable=True)
    inverse = order.argsort(1)
    moves = [order[:1]]
    if len(ops) > 1:
        moves.append(inverse[:-1].gather(1, order[1:]))
    moves.append(inverse[-1:])
    counts = [row.bincount(minlength=len(OPERATIONS)).tolist() for row in ops]
    return order, torch.cat(moves), counts


def to_device_of(values, x):
    """Copy a host tensor to the device of x without waiting for the device."""
    if values.dtype == torch.float64:
        values = values.to(widest_float(x))
    if x.device.type == "cpu":
        return values
    if x.device.type == "cuda":
        values = values.pin_memory()
    return values.to(x.device, non_blocking=True)


def operation_number(op):
    """Return the position of an operation in ``OPERATIONS``."""
    return OPERATIONS.index(op)
