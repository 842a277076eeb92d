"""Bases of policies: parameters by name, and checks and formats of images."""

import inspect

import torch
from torch import nn


class Policy(nn.Module):
    """Parameters by name, as scikit-learn's ``clone`` and grids need them."""

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
        """Set parameters; learned and derived state is reset.

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
            For an unknown name or a wrong value.
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
                self._set(name, value)
        try:
            self._check()
            for name, inner in nested.items():
                getattr(self, name).set_params(**inner)
        except ValueError:
            for name, value in known.items():
                self._set(name, value)
            raise
        self._start()
        return self

    def _set(self, name, value):
        if isinstance(value, nn.Module):
            self.__dict__.pop(name, None)
        elif name in self._modules:
            del self._modules[name]
        setattr(self, name, value)

    def _check(self):
        """Raise an error if a parameter is wrong."""

    def _start(self):
        """Derive state from the parameters."""

    def extra_repr(self):
        params = self.get_params(deep=False).items()
        shown = [(k, v) for k, v in params if not isinstance(v, nn.Module)]
        return ", ".join(f"{name}={value!r}" for name, value in shown)


class ImagePolicy(Policy):
    """Base of image policies: checks, number format, range."""

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
        """Return images as floats or 8-bit integers; ``x`` is not changed."""
        raise NotImplementedError


def uniform(n, low, high, x):
    """Draw n numbers from [low, high) on the device of x."""
    return torch.rand(n, dtype=x.dtype, device=x.device).mul_(high - low).add_(low)


def pieces(x, size=2**18):
    """Return slices of a batch; on a CPU their buffers stay small.

    Large buffers are returned to the system with every call, and fresh pages cost more
    than the arithmetic.
    """
    n, rest = len(x), x.numel() // max(1, len(x))
    step = max(1, size // max(1, rest)) if x.device.type == "cpu" else n
    return [slice(start, start + step) for start in range(0, n, step)]


def per_image(values, x):
    """Return values of shape (B,), or one for all, in the number format of x."""
    values = torch.as_tensor(values, dtype=x.dtype, device=x.device)
    return values.expand(len(x))
