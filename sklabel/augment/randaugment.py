"""RandAugment: random operations of random strength, with the tables of four codes."""

from functools import lru_cache

import torch

from .._core.checks import check_number, check_option, check_pair
from .operations import (
    EFFECTS,
    ENHANCEMENTS,
    GEOMETRY,
    GREY,
    OPERATIONS,
    apply_sorted,
    cut_out,
    draw_square,
    operation_number,
    sort_plan,
    to_bytes,
    to_device_of,
)
from .policy import ImagePolicy
from .weak import Weak

FIXMATCH = (*GEOMETRY, *ENHANCEMENTS, *EFFECTS[:2], "Posterize", "Solarize", "Identity")
MAX_LEVEL = 10
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
            f'table={table!r} is not one of "port", "official", "scan", "usb".'
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
        Ranges to use; see `RandAugment`.
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
    return torch.where(ops == operation_number("Posterize"), values.floor(), values)


class RandAugment(ImagePolicy):
    """Random operations of random strength and a hole: FixMatch's strong view.

    Every image has its own operations and strengths. A batch is sorted by operation,
    and each operation is computed once, on 8-bit values, with the same results as PIL.

    Parameters
    ----------
    n_ops : int, default=2
        Operations in a row, drawn with replacement.
    magnitude : int, default=10
        Levels are drawn from 1 to ``magnitude - 1``, in [2, 11]. Tables with continuous
        ranges draw from the whole range instead.
    probability : float, default=0.5
        Probability that a drawn operation is applied.
    cutout : float or tuple of two floats, default=0.5
        Side of the final square hole, as a share of the image's shorter side; a pair:
        drawn between the two, in whole pixels; 0: none.
    ops : "fixmatch" or tuple of str, default="fixmatch"
        Names from ``OPERATIONS`` to draw from; "fixmatch": the fourteen of FixMatch. A
        name may occur twice.
    table : {"port", "official", "scan", "usb"}, default="port"
        Strength of a level. "port": FixMatch's PyTorch port (enhancements 0.14..0.86,
        translations in shares of the side, black corners); "official": its TensorFlow
        code (enhancements 0.28..1.72, translations in pixels, gray corners); "scan" and
        "usb": continuous strengths (translations and shears up to 0.1 and 0.3).
    weak : nn.Module or None, default=None
        Policy applied first; FixMatch: :class:`Weak`.
    fill : array-like of shape (C,) or None, default=None
        Color of the hole, in [0, 1]; None: gray.

    Notes
    -----
    Gray is 127 of 255 in all tables; the official code has 127.5. As in the port, its
    holes are one pixel wider than stated. Without three channels, "Color" does nothing.
    Operations are drawn by the CPU's generator, since the CPU must know the sizes of
    slices; holes are drawn by the generator of the images' device.

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
        self._check()

    def _check(self):
        check_number(0, whole=True, n_ops=self.n_ops)
        check_number(0, 1, probability=self.probability)
        if isinstance(self.cutout, (tuple, list)):
            check_pair(0, 1, cutout=self.cutout)
        else:
            check_number(0, 1, cutout=self.cutout)
        check_option(("port", "official", "scan", "usb"), table=self.table)
        self._pool()
        if self.table not in RANGES:
            check_number(2, MAX_LEVEL + 1, whole=True, magnitude=self.magnitude)

    def _augment(self, x):
        images = to_bytes(x if self.weak is None else self.weak(x))
        if self.n_ops:
            ops, values = self._draw(*x.shape[::2], x.shape[3])
            order, moves, counts = sort_plan(ops)
            moves, values = (
                to_device_of(moves, x),
                to_device_of(values.gather(1, order), x),
            )
            fill = GREY if self.table == "official" else 0
            for k in range(self.n_ops):
                images = images.index_select(0, moves[k])
                images = apply_sorted(images, counts[k], values[k], fill=fill)
            images = images.index_select(0, moves[-1])
        if self.cutout:
            images = cut_out(images, *self._holes(x), self._color(x))
        return images

    def _pool(self):
        names = FIXMATCH if self.ops == "fixmatch" else self.ops
        unknown = [op for op in names if op not in OPERATIONS or op == "Rescale"]
        if isinstance(names, str) or unknown or not len(names):
            raise ValueError(
                f'ops={self.ops!r} is neither "fixmatch" nor a tuple of operations out '
                f"of {', '.join(op for op in OPERATIONS if op != 'Rescale')}."
            )
        return torch.tensor([operation_number(op) for op in names])

    def _draw(self, n, height, width):
        """Draw operations and their values, both (n_ops, B), on the host."""
        pool = self._pool()
        shape = (self.n_ops, n)
        ops = pool[torch.randint(len(pool), shape)]
        skipped = torch.rand(shape) >= self.probability
        ops = torch.where(skipped, operation_number("Identity"), ops)
        if self.table in RANGES:
            levels = torch.rand(shape, dtype=torch.float64)
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
            return draw_square(side, x)
        # a corner is moved to the border before the other one is counted from it
        place = torch.rand(2, n, device=x.device)
        top = (place[0] * height - side / 2).clamp_(min=0).long()
        left = (place[1] * width - side / 2).clamp_(min=0).long()
        return top, left, top + side + 1, left + side + 1

    def _color(self, x):
        if self.fill is None:
            return GREY
        fill = torch.as_tensor(self.fill, dtype=x.dtype).reshape(1, -1, 1, 1)
        return to_device_of(to_bytes(fill), x)


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
    fill : Tensor or tuple of shape (C,) or None, default=None
        Color of the hole, in [0, 1]; SCAN: the mean of the data. None: gray.

    Returns
    -------
    policy : RandAugment

    References
    ----------
    .. [1] W. Van Gansbeke et al., "SCAN: Learning to Classify Images without Labels",
       ECCV 2020.
    """
    if isinstance(fill, torch.Tensor):
        fill = tuple(fill.flatten().tolist())
    return RandAugment(
        n_ops=n_ops,
        probability=1.0,
        cutout=cutout,
        table="scan",
        weak=Weak(flip=flip, shift=0.0),
        fill=fill,
    )
