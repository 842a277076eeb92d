"""Heads on an encoder: projection, clusters, prototypes."""

import copy
from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from .._core.checks import check_number, check_option
from .method import Method


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
        Whether there is a BatchNorm before each ReLU.
    last_norm : {"scale", True, None}, default="scale"
        BatchNorm after the last layer: without an offset, with an offset, or none.
    bias : bool or None, default=None
        Whether linear layers have a bias; None: if no BatchNorm follows.
    init_std : float or None, default=None
        Standard deviation of the normal distribution of initial weights; None: torch's
        initialization. SimCLR: 0.01.

    Returns
    -------
    mlp : nn.Sequential
        One ``nn.Sequential`` per layer, including its norm and ReLU: ``mlp[:i]`` ends
        after layer i.

    Raises
    ------
    ValueError
        If ``n_layers`` is below 1 or ``last_norm`` unknown.
    """
    check_number(1, whole=True, in_features=in_features)
    check_number(1, whole=True, hidden_features=hidden_features)
    check_number(1, whole=True, out_features=out_features, n_layers=n_layers)
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


class LinearHeaded(Method):
    """An encoder followed by a linear classification layer; classifiers train it.

    Attributes
    ----------
    encoder_parts : tuple of str
        Names of the parts that compute the features, in order; the first is an encoder.
    head_parts : tuple of str
        Names of the linear classification layers: the trained one, and its copies.
    """

    encoder_parts: ClassVar[tuple[str, ...]] = ("backbone",)
    head_parts: ClassVar[tuple[str, ...]] = ("head",)

    def features(self, x):
        """Return the input of the linear layer for samples x.

        Parameters
        ----------
        x : Tensor of shape (B, ...)

        Returns
        -------
        features : Tensor of shape (B, D)
        """
        for name in self.encoder_parts:
            x = self.get_submodule(name)(x)
        return x

    @torch.no_grad()
    def set_head_(self, weight, bias):
        """Set the weights of the linear layer and its copies.

        Parameters
        ----------
        weight : Tensor of shape (K, D)
        bias : Tensor of shape (K,)
        """
        for name in self.head_parts:
            head = self.get_submodule(name)
            head.weight.copy_(weight)
            head.bias.copy_(bias)


class ProjectionNet(Method):
    """Encoder with a projection head; methods that compare views train it.

    Parameters
    ----------
    backbone : nn.Module
        Maps samples to ``(B, D)`` features; has ``n_features_out``.
    project : nn.Module
        Maps features to ``(B, projection_size)``.
    projection_size : int
    output : {"backbone", "projection"}, default="backbone"
        Which of the two ``forward`` returns.

    Attributes
    ----------
    n_features_out : int
        Length of the rows that ``forward`` returns.
    """

    backbone: nn.Module
    project: nn.Module
    projection_size: int
    output: str = "backbone"

    def __post_init__(self):
        check_option(("backbone", "projection"), output=self.output)

    @property
    def n_features_out(self):
        if self.output == "backbone":
            return self.backbone.n_features_out
        return self.projection_size

    def forward(self, x):
        return self.backbone(x) if self.output == "backbone" else self.projected(x)

    def projected(self, x):
        """Return the head's output for samples x, whatever ``output`` is."""
        return self.project(self.backbone(x))

    def parts(self):
        """Return encoder and head as a sequence, to be copied and averaged."""
        return nn.Sequential(self.backbone, self.project)


@torch.no_grad()
def filled_(layer, old, places):
    """Copy the outputs of an old linear layer to some positions of a new one.

    Parameters
    ----------
    layer : nn.Linear
        The new layer, which is changed.
    old : nn.Linear
        The old layer, with K outputs.
    places : slice or array-like of int of shape (..., K)
        Outputs of ``layer``; with more axes, the old outputs are copied to each row.

    Returns
    -------
    layer : nn.Linear
    """
    layer.weight[places], layer.bias[places] = old.weight, old.bias
    return layer


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
    init_std : float or None, default=None
        Standard deviation of the initial weights, with biases of 0; None: torch's
        uniform initial values. Published: 0.01 for IIC.

    Notes
    -----
    ``forward`` maps ``(B, D)`` to logits of shape ``(H, B, K)``.
    """

    def __init__(self, in_features, n_classes, n_heads=1, init_std=None):
        super().__init__()
        self.n_classes = n_classes
        self.n_heads = n_heads
        # biases stay one axis long, so that optimizers tell them from weights
        self.linear = nn.Linear(in_features, n_heads * n_classes)
        if init_std is not None:
            nn.init.normal_(self.linear.weight, std=init_std)
            nn.init.zeros_(self.linear.bias)

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
            Their numbers, in the desired order.

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


class Prototypes(nn.Module):
    """Directions with which rows are compared.

    Parameters
    ----------
    n_features : int
        Length D of the rows.
    n_prototypes : int
        K.

    Notes
    -----
    ``forward`` maps ``(B, D)`` rows of length 1 to their ``(B, K)`` cosines, in at
    least float32. Call ``normalize_`` after every optimizer step.
    """

    def __init__(self, n_features, n_prototypes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_prototypes, n_features))
        self.normalize_()

    def forward(self, z, frozen=False):
        weight = self.weight.detach() if frozen else self.weight
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(z.to(weight.dtype), weight)

    @torch.no_grad()
    def normalize_(self):
        """Scale the prototypes to length 1, in place and without a gradient."""
        self.weight.copy_(F.normalize(self.weight))


class NormLinear(nn.Module):
    """Linear layer on directions: cosines of rows and weights, times a scale.

    Parameters
    ----------
    in_features : int
    out_features : int
    scale : float, default=1.0
        USL-T: 40.
    """

    def __init__(self, in_features, out_features, scale=1.0):
        super().__init__()
        weight = torch.empty(out_features, in_features).uniform_(-1, 1)
        self.weight = nn.Parameter(F.normalize(weight))
        self.scale = scale

    def forward(self, x):
        return self.scale * F.linear(F.normalize(x), F.normalize(self.weight))
