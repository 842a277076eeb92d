"""The weak policy: mirror and shift."""

import torch

from .._core.checks import check_number
from .policy import ImagePolicy


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


class Weak(ImagePolicy):
    """Mirror and shift images by a few pixels: FixMatch's weak view.

    Parameters
    ----------
    flip : float, default=0.5
        Probability of mirroring left to right; 0 for digits and characters.
    shift : float, default=0.125
        Largest shift, as a share of the side, in [0, 1]: 4 of 32 pixels. Each image is
        shifted by whole pixels in both directions; the border is reflected.

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
        self._check()

    def _check(self):
        check_number(0, 1, flip=self.flip, shift=self.shift)

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
