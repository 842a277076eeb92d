"""Parts of networks that methods share: heads, weight averages, row orders."""

import copy
from itertools import pairwise

import torch
from torch import nn


class ScaleBatchNorm1d(nn.BatchNorm1d):
    """Batch normalization with a trainable scale but no offset.

    Parameters
    ----------
    num_features : int
        Length D of the rows.
    eps : float, default=1e-5
        Added to the variance.
    momentum : float, default=0.1
        Weight of a new batch in the running statistics.
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__(num_features, eps, momentum)
        self.bias = None

    def reset_parameters(self):
        """Set the scale to 1 and forget the running statistics."""
        self.reset_running_stats()
        nn.init.ones_(self.weight)


def mlp(
    in_features,
    hidden_features,
    out_features,
    n_layers=2,
    norm=True,
    last_norm="scale",
    bias=None,
    init_std=None,
):
    """Multilayer perceptron; by default the projection head of SimCLR.

    Parameters
    ----------
    in_features : int
    hidden_features : int
        Width of all layers but the last.
    out_features : int
    n_layers : int, default=2
        >= 1. SimCLR: 2; its second version: 3.
    norm : bool, default=True
        Whether BatchNorm stands before each ReLU.
    last_norm : {"scale", True, None}, default="scale"
        BatchNorm after the last layer: without an offset, with one, or none.
    bias : bool or None, default=None
        Of the linear layers; None: where no BatchNorm follows.
    init_std : float or None, default=None
        Standard deviation of the normal distribution that weights are drawn from;
        None: torch's own initialization. SimCLR: 0.01.

    Returns
    -------
    mlp : nn.Sequential
        One ``nn.Sequential`` per layer, its norm and ReLU included: ``mlp[:i]`` ends
        after layer i.

    Raises
    ------
    ValueError
        If ``n_layers`` is below 1 or ``last_norm`` unknown.
    """
    if n_layers < 1:
        raise ValueError(f"n_layers={n_layers} must be at least 1.")
    if last_norm not in ("scale", True, False, None):
        raise ValueError(f'last_norm={last_norm!r} is neither "scale", True nor None.')
    widths = [in_features] + [hidden_features] * (n_layers - 1) + [out_features]
    layers = []
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        last = i == n_layers - 1
        normed = last_norm if last else norm
        linear = nn.Linear(n_in, n_out, bias=not normed if bias is None else bias)
        if init_std is not None:
            nn.init.normal_(linear.weight, std=init_std)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        layer = [linear]
        if normed:
            kind = ScaleBatchNorm1d if normed == "scale" else nn.BatchNorm1d
            layer.append(kind(n_out))
        if not last:
            layer.append(nn.ReLU(inplace=True))
        layers.append(nn.Sequential(*layer))
    return nn.Sequential(*layers)


class MultiHead(nn.Module):
    """Linear heads side by side, computed as one product.

    Parameters
    ----------
    in_features : int
        Length D of the features.
    n_classes : int
        Outputs K of each head.
    n_heads : int, default=1
        H.

    Notes
    -----
    ``forward`` maps ``(B, D)`` to logits of shape ``(H, B, K)``.
    """

    def __init__(self, in_features, n_classes, n_heads=1):
        super().__init__()
        self.n_classes = n_classes
        self.n_heads = n_heads
        # biases stay one axis long, so that optimizers tell them from weights
        self.linear = nn.Linear(in_features, n_heads * n_classes)

    def forward(self, x):
        logits = self.linear(x).unflatten(-1, (self.n_heads, self.n_classes))
        return logits.transpose(0, 1)  # (H, B, K)

    def keep_head(self, head):
        """Return a trainable copy of one head.

        Parameters
        ----------
        head : int
            Its number.

        Returns
        -------
        heads : MultiHead
            With one head.
        """
        return self._copy(slice(head, head + 1), slice(None))

    def keep_outputs(self, outputs):
        """Return a trainable copy with some outputs of every head.

        Parameters
        ----------
        outputs : array-like of int of shape (n_outputs,)
            Their numbers, in the order wanted.

        Returns
        -------
        heads : MultiHead
            With ``n_outputs`` classes.
        """
        return self._copy(slice(None), torch.as_tensor(outputs, dtype=torch.long))

    def _copy(self, heads, outputs):
        # a copy rather than a new module: that would draw from the global generator
        kept = copy.deepcopy(self)
        for name, values in self.linear.named_parameters():
            shape = (self.n_heads, self.n_classes, *values.shape[1:])
            values = values.detach().reshape(shape)[heads][:, outputs]
            kept.n_heads, kept.n_classes = values.shape[:2]
            setattr(kept.linear, name, nn.Parameter(values.flatten(0, 1).clone()))
        kept.linear.out_features = kept.n_heads * kept.n_classes
        return kept


def frozen_copy(module):
    """Copy a module; the copy's parameters take no gradient.

    Parameters
    ----------
    module : nn.Module

    Returns
    -------
    copy : nn.Module
    """
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update_(target_module, source_module, decay):
    """Move averaged weights toward the current ones, in place.

    ``target = decay * target + (1 - decay) * source`` for parameters; buffers, such as
    the running statistics of BatchNorm, are copied.

    Parameters
    ----------
    target_module : nn.Module
        The average; changed.
    source_module : nn.Module
        Of the same structure.
    decay : float
        In [0, 1]; 0 copies.

    Raises
    ------
    ValueError
        If the modules do not have the same parameters and buffers.
    """
    targets, sources = (list(m.parameters()) for m in (target_module, source_module))
    copies, originals = (list(m.buffers()) for m in (target_module, source_module))
    shapes, wanted = (
        [x.shape for x in tensors]
        for tensors in (targets + copies, sources + originals)
    )
    if shapes != wanted or len(targets) != len(sources):
        raise ValueError(
            f"{type(target_module).__name__} is no copy of "
            f"{type(source_module).__name__}: parameters or buffers differ in shape."
        )
    if targets:
        torch._foreach_lerp_(targets, sources, 1 - decay)
    if copies:
        torch._foreach_copy_(copies, originals)


def ema_decay(step, decay, kind="fixmatch"):
    """Decay of a weight average at one step; ramps make the start short-lived.

    Parameters
    ----------
    step : int
        Optimizer steps done, the one before the update included: 1 at the first.
    decay : float
        In [0, 1); the ramps end there.
    kind : {"fixmatch", "noisy_student", "tod"}, default="fixmatch"
        "fixmatch": no ramp; "noisy_student": ``(1 + step) / (10 + step)``; "tod":
        ``1 - 1 / (step + 1)``, the plain mean of all weights so far.

    Returns
    -------
    decay : float

    Raises
    ------
    ValueError
        For an unknown ``kind``.
    """
    if kind == "fixmatch":
        return decay
    if kind == "noisy_student":
        return min(decay, (1 + step) / (10 + step))
    if kind == "tod":
        return min(decay, 1 - 1 / (step + 1))
    raise ValueError(f'kind={kind!r} is none of "fixmatch", "noisy_student", "tod".')


def interleave(x, size):
    """Reorder rows so that each of ``size`` parts is spread over the batch.

    The result holds rows 0, ``size``, ``2 * size``, ... of x, then rows 1, ``1 + size``,
    ... : with ``size = 2 * unlabeled_ratio + 1`` every device of a split batch gets its
    share of labeled rows.

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
        As given to `interleave`.

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
    return x.unflatten(0, (size, -1)).transpose(0, 1).flatten(0, 1)
