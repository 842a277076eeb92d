"""Noise for vectors."""

import torch

from .._core.checks import check_number
from .policy import Policy


class VectorNoise(Policy):
    """Add noise to vectors and drop some of their features.

    Parameters
    ----------
    noise : float, default=0.1
        Standard deviation of Gaussian noise, in units of ``scale``.
    dropout : float, default=0.1
        Probability that a feature is replaced by its ``center``.
    center : array-like of shape (D,) or None, default=None
        Value of dropped features, such as their mean; None: 0.
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
        self._check()
        self._start()

    def _check(self):
        check_number(0, noise=self.noise)
        check_number(0, 1, dropout=self.dropout)

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
