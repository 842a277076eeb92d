"""Batch normalization over parts of a batch."""

import math
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from .._core.checks import check_number
from .._core.processes import n_in_step, summed


class SplitBatchNorm(nn.Module):
    """Batch normalization within parts of a batch.

    It simulates the batches of several devices: statistics of the whole batch would
    reveal to a network which rows are in the same batch.

    Parameters
    ----------
    norm : nn.BatchNorm1d or nn.BatchNorm2d
        Layer whose weights, statistics and settings are used.
    n_splits : int
        Number of parts with equally many consecutive rows. A batch that does not split
        evenly is split into fewer parts (the greatest common divisor), of at least two
        rows.

    Notes
    -----
    The running statistics are updated by the mean over the parts and used as usual in
    evaluation mode. The public code puts every ``n_splits``-th row into one part, which
    is equivalent for batches in random order; consecutive rows need no reordering in
    memory.
    """

    def __init__(self, norm, n_splits):
        super().__init__()
        self.norm = norm
        self.n_splits = n_splits

    def forward(self, x):
        # of several processes that share a batch each has some of the parts
        n_splits = max(min(2, self.n_splits), self.n_splits // n_in_step())
        n_splits = math.gcd(len(x), n_splits)
        if not self.norm.training or n_splits == 1 or len(x) < 2 * n_splits:
            return self.norm(x)
        if x.device.type != "cpu" and _is_plain(self.norm):
            return self._in_one(x, n_splits)  # on the CPU it is no faster
        # each part goes through the norm itself, from the same statistics: some have
        # none, and those of others add an activation
        norm, out, moved = self.norm, [], []
        before = dict(norm.named_buffers(recurse=False))
        for part in x.split(len(x) // n_splits):
            for name, buffer in before.items():
                setattr(norm, name, buffer.clone())
            out.append(norm(part))
            moved.append([getattr(norm, name) for name in before])
        with torch.no_grad():
            for (name, own), parts in zip(before.items(), zip(*moved), strict=True):
                own.copy_(_mean(parts))
                setattr(norm, name, own)
        return torch.cat(out)

    def _in_one(self, x, n_splits):
        """Return the same by one kernel, in which each part has its own channels."""
        norm, n_channels = self.norm, x.shape[1]
        parts = x.unflatten(0, (n_splits, -1)).transpose(0, 1).flatten(1, 2)
        given = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        mean, var, *affine = (
            None if value is None else value.repeat(n_splits) for value in given
        )
        out = F.batch_norm(parts, mean, var, *affine, True, norm.momentum, norm.eps)
        with torch.no_grad():
            for own, moved in ((norm.running_mean, mean), (norm.running_var, var)):
                own.copy_(moved.view(n_splits, n_channels).mean(0))
            norm.num_batches_tracked += 1
        return out.unflatten(1, (n_splits, n_channels)).transpose(0, 1).flatten(0, 1)


def _is_plain(norm):
    """Return whether a norm is torch's own, with decaying running statistics."""
    plain = type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)
    return plain and norm.running_mean is not None and norm.momentum is not None


def _mean(parts):
    """Return the mean of tensors; for counts, which are equal, the first."""
    if parts[0].is_floating_point():
        return torch.stack(parts).mean(0)
    return parts[0]


class _SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization of a batch that several processes share; also on CPUs."""

    def forward(self, x):
        if not self.training or n_in_step() == 1:
            return super().forward(x)
        dims = [0, *range(2, x.ndim)]
        n = n_in_step() * x.numel() // x.shape[1]
        wide = x.float()
        # in two rounds: one would lose digits
        mean = summed(wide.sum(dims)) / n
        centered = wide - mean.view(1, -1, *[1] * (x.ndim - 2))
        var = summed(centered.square().sum(dims)) / n
        if self.running_mean is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                rate = self.momentum
                if rate is None:
                    rate = 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.to(self.running_mean), rate)
                unbiased = var * n / max(1, n - 1)
                self.running_var.lerp_(unbiased.to(self.running_var), rate)
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        out = centered * scale.view(1, -1, *[1] * (x.ndim - 2))
        if self.bias is not None:
            out = out + self.bias.view(1, -1, *[1] * (x.ndim - 2))
        return out.to(x.dtype)

    def _check_input_dim(self, x):
        pass


@contextmanager
def synchronized(module, group):
    """While processes train together: BatchNorm normalizes the whole batch.

    Not so within `SplitBatchNorm`, nor in norms with a ``forward`` of their own.

    Parameters
    ----------
    module : nn.Module
    group : Group
        Of one process nothing changes.
    """
    if group.size == 1:
        yield
        return
    parts = list(module.modules())
    apart = {id(part.norm) for part in parts if isinstance(part, SplitBatchNorm)}
    # the second knows GPUs only
    usual = nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward
    norms = [
        part
        for part in parts
        if getattr(type(part), "forward", None) in usual and id(part) not in apart
    ]
    before = [(type(norm), vars(norm).get("process_group")) for norm in norms]
    for norm in norms:
        on_gpu = norm.weight is not None and norm.weight.is_cuda
        norm.__class__ = nn.SyncBatchNorm if on_gpu else _SharedBatchNorm
        norm.process_group = None  # the default one
    try:
        yield
    finally:
        for norm, (kind, processes) in zip(norms, before, strict=True):
            norm.__class__ = kind
            del norm.process_group
            if issubclass(kind, nn.SyncBatchNorm):
                norm.process_group = processes


def unite_buffers_(module, group):
    """Give all processes the same buffers, in place, where each has seen its own rows.

    Statistics of norms are averaged; any other buffer is that of the first process.

    Parameters
    ----------
    module : nn.Module
    group : Group
        Of one process nothing changes.
    """
    if group.size == 1:
        return
    shared = nn.SyncBatchNorm, _SharedBatchNorm  # these have seen all rows
    group.average_(
        [
            statistic
            for norm in module.modules()
            if isinstance(norm, nn.modules.batchnorm._NormBase)
            and not isinstance(norm, shared)
            for statistic in (norm.running_mean, norm.running_var)
            if statistic is not None
        ]
    )
    group.copy_first_(module.buffers())


def split_batchnorm_(module, n_splits):
    """Split every batch normalization of a module into parts, or undo it, in place.

    Parameters
    ----------
    module : nn.Module
    n_splits : int
        See `SplitBatchNorm`; 1 restores the plain layers.

    Returns
    -------
    module : nn.Module
        The same one.
    """
    check_number(1, whole=True, n_splits=n_splits)
    for name, child in module.named_children():
        if isinstance(child, SplitBatchNorm):
            child = child.norm
        if not isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            split_batchnorm_(child, n_splits)
        elif n_splits > 1:
            child = SplitBatchNorm(child, n_splits)
        setattr(module, name, child)
    return module


def interleave(x, size):
    """Reorder rows so that each of ``size`` parts is spread over the batch.

    The result holds rows 0, ``size``, ``2 * size``, ... of x, then 1, ``1 + size``,
    ...: with ``size = 2 * unlabeled_ratio + 1``, every device gets its share of labeled
    rows.

    Parameters
    ----------
    x : Tensor of shape (B, ...)
    size : int
        Divides B.

    Returns
    -------
    x : Tensor of shape (B, ...)

    Raises
    ------
    ValueError
        If ``size`` does not divide B.
    """
    if size < 1 or len(x) % size:
        raise ValueError(f"size={size} does not divide the {len(x)} rows.")
    return x.unflatten(0, (-1, size)).transpose(0, 1).flatten(0, 1)


def deinterleave(x, size):
    """Undo `interleave`.

    Parameters
    ----------
    x : Tensor of shape (B, ...)
    size : int
        As given to `interleave`, with the same error.

    Returns
    -------
    x : Tensor of shape (B, ...)
    """
    if size < 1 or len(x) % size:
        raise ValueError(f"size={size} does not divide the {len(x)} rows.")
    return x.unflatten(0, (size, -1)).transpose(0, 1).flatten(0, 1)
