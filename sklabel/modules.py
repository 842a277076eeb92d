"""Parts of networks that methods share: heads, weight averages, row orders."""

import copy
import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F


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


class ProjectionNet(nn.Module):
    """Encoder with a projection head: what methods that compare views train.

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

    def __init__(self, backbone, project, projection_size, output="backbone"):
        super().__init__()
        self.backbone = backbone
        self.project = project
        self.output = output
        widths = {"backbone": backbone.n_features_out, "projection": projection_size}
        self.n_features_out = widths[output]

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
    """Put the outputs of an old linear layer into some places of a new one.

    Parameters
    ----------
    layer : nn.Linear
        The new one, which is changed.
    old : nn.Linear
        K outputs.
    places : slice or array-like of int of shape (..., K)
        Outputs of ``layer``; more axes: the old ones are put into each row of places.

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


class Prototypes(nn.Module):
    """Directions that rows are compared with.

    Parameters
    ----------
    n_features : int
        Length D of the rows.
    n_prototypes : int
        K.

    Notes
    -----
    ``forward`` maps ``(B, D)`` rows of length 1 to their ``(B, K)`` cosines, in float32
    at least. Call ``normalize_`` after every optimizer step.
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


class Queue(nn.Module):
    """The rows seen last, such as the keys of MoCo.

    Parameters
    ----------
    size : int
        Number of rows Q.
    n_features : int
        Length D of the rows.

    Attributes
    ----------
    rows : Tensor of shape (Q, D)
        A buffer, saved and moved with the module. At first random rows of length 1.
    pointer : Tensor of int of shape ()
        Where the next row goes.
    """

    def __init__(self, size, n_features):
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, n_features)))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push_(self, x):
        """Write rows over the oldest ones.

        Parameters
        ----------
        x : Tensor of shape (B, D)
            Any number of rows; of more than Q, the last Q are kept.
        """
        size = len(self.rows)
        kept = x[-size:]
        first = self.pointer + (len(x) - len(kept))
        place = (first + torch.arange(len(kept), device=x.device)) % size
        self.rows[place] = kept.detach().to(self.rows)
        self.pointer.copy_((self.pointer + len(x)) % size)


def fitting_queue_size(size, n_samples, batch_size):
    """Return the length of a queue of keys for one data set.

    Parameters
    ----------
    size : int or "auto"
        A number is returned as it is.
    n_samples : int
        Rows of the data set.
    batch_size : int

    Returns
    -------
    size : int
        "auto": a tenth of the rows, since older keys were made by another network; at least
        a batch, at most 4096.
    """
    if size != "auto":
        return size
    return min(4096, max(n_samples // 10, min(batch_size, n_samples)))


class SplitBatchNorm(nn.Module):
    """Batch normalization within parts of a batch.

    It stands for the batches of several devices: with the statistics of the whole batch,
    a network can tell from them which rows came together.

    Parameters
    ----------
    norm : nn.BatchNorm1d or nn.BatchNorm2d
        Its weights, statistics and settings are taken over.
    n_splits : int
        Parts of equally many consecutive rows. A batch that does not split evenly is split
        into fewer parts (the greatest common divisor), of two rows at least.

    Notes
    -----
    The running statistics move by the mean over the parts; in evaluation mode they are
    used as usual. The public code puts every ``n_splits``-th row into one part, which is
    the same for batches in random order; consecutive rows keep their place in memory.
    """

    def __init__(self, norm, n_splits):
        super().__init__()
        self.norm = norm
        self.n_splits = n_splits

    def forward(self, x):
        n_splits = math.gcd(len(x), self.n_splits)
        if not self.training or n_splits == 1 or len(x) < 2 * n_splits:
            return self.norm(x)
        norm, out, moved = self.norm, [], []
        for part in x.split(len(x) // n_splits):
            moved.append((norm.running_mean.clone(), norm.running_var.clone()))
            affine = norm.weight, norm.bias
            out.append(
                F.batch_norm(part, *moved[-1], *affine, True, norm.momentum, norm.eps)
            )
        with torch.no_grad():
            for own, parts in zip((norm.running_mean, norm.running_var), zip(*moved)):
                own.copy_(torch.stack(parts).mean(0))
            norm.num_batches_tracked += 1
        return torch.cat(out)


def split_batchnorm_(module, n_splits):
    """Split every batch normalization of a module into parts, or undo it, in place.

    Parameters
    ----------
    module : nn.Module
    n_splits : int
        See `SplitBatchNorm`; 1 puts the plain layers back.

    Returns
    -------
    module : nn.Module
        The same one.
    """
    for name, child in module.named_children():
        if isinstance(child, SplitBatchNorm):
            child = child.norm
        if not isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            split_batchnorm_(child, n_splits)
        elif n_splits > 1:
            child = SplitBatchNorm(child, n_splits)
        setattr(module, name, child)
    return module


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


class Snapshot(nn.Module):
    """A copy of modules from the moment of their lowest score.

    It is a module itself, so a checkpoint of the module that holds it keeps it.

    Parameters
    ----------
    *parts : nn.Module
        What is copied.

    Attributes
    ----------
    parts : nn.ModuleList
        The copies, frozen.
    score : Tensor of shape ()
        The lowest so far; inf before the first offer.
    """

    def __init__(self, *parts):
        super().__init__()
        self.parts = copy.deepcopy(nn.ModuleList(parts)).requires_grad_(False)
        self.register_buffer("score", torch.tensor(float("inf")))

    def keep_if_better(self, score, *parts):
        """Copy these parts if their score is lower; return whether it is.

        Parameters
        ----------
        score : float or Tensor of shape ()
        *parts : nn.Module
            As given at the start.

        Returns
        -------
        kept : bool
        """
        if score >= self.score:
            return False
        self.score.fill_(float(score))
        for copied, part in zip(self.parts, parts, strict=True):
            copied.load_state_dict(part.state_dict())
        return True

    def restore_(self, *parts):
        """Bring these parts back to what they were, if anything was kept.

        Parameters
        ----------
        *parts : nn.Module
            As given at the start.
        """
        if self.score < float("inf"):
            for copied, part in zip(self.parts, parts, strict=True):
                part.load_state_dict(copied.state_dict())


@torch.no_grad()
def ema_update_(target_module, source_module, decay, copy_buffers=True):
    """Move averaged weights toward the current ones, in place.

    ``target = decay * target + (1 - decay) * source`` for parameters.

    Parameters
    ----------
    target_module : nn.Module
        The average; changed.
    source_module : nn.Module
        Of the same structure.
    decay : float
        In [0, 1]; 0 copies.
    copy_buffers : bool, default=True
        Whether buffers, such as the running statistics of BatchNorm, are copied. Not so
        where the target normalizes its own batches (MoCo, BYOL).

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
    if copies and copy_buffers:
        torch._foreach_copy_(copies, originals)


class AveragedClassifier(nn.Module):
    """A classifier that is trained, and the moving average of its weights that predicts.

    ``forward`` gives probabilities ``(B, K)``; ``after_step`` moves the average.

    Parameters
    ----------
    online : nn.Sequential
        Encoder first; maps ``(B, ...)`` to logits ``(B, K)``.
    decay : float
        Of the average, in [0, 1).
    ramp : bool, default=True
        Whether the decay grows as (1 + t) / (10 + t) up to ``decay``.
    average : nn.Sequential or None, default=None
        Of the same structure, with parameters that take no gradient; None: a copy.
    """

    def __init__(self, online, decay, ramp=True, average=None):
        super().__init__()
        self.online = online
        self.average = frozen_copy(online) if average is None else average
        self.ema_decay = decay
        self.ema_ramp = ramp
        self.n_steps = 0

    @property
    def backbone(self):
        """Encoder of the average."""
        return self.average[0]

    def train(self, mode=True):
        """Switch to training; the average stays in evaluation."""
        super().train(mode)
        self.average.eval()
        return self

    def forward(self, x):
        return self.average(x).float().softmax(1)  # (B, K)

    def after_step(self):
        """Move the average toward the weights that a step has changed."""
        self.n_steps += 1
        decay = self.ema_decay
        if self.ema_ramp:
            decay = ramped_decay(self.n_steps, decay)
        ema_update_(self.average, self.online, decay)

    def get_extra_state(self):
        """Return the number of steps, which a checkpoint keeps."""
        return torch.tensor(self.n_steps)

    def set_extra_state(self, state):
        """Take up the number of steps of a checkpoint."""
        self.n_steps = int(state)


def linear_classifier(backbone, n_classes):
    """Put a linear layer behind an encoder, with FixMatch's initial weights.

    Parameters
    ----------
    backbone : nn.Module
        With ``n_features_out``.
    n_classes : int

    Returns
    -------
    classifier : nn.Sequential
        Maps samples to logits ``(B, n_classes)``. Weights after Glorot, biases of 0.
    """
    head = nn.Linear(backbone.n_features_out, n_classes)
    nn.init.xavier_normal_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(backbone, head)


def ramped_decay(step, decay):
    """Decay of a weight average that grows as ``(1 + step) / (10 + step)``.

    Parameters
    ----------
    step : int
        Optimizer steps done, the one before the update included: 1 at the first.
    decay : float
        Where the growth ends, in [0, 1).

    Returns
    -------
    decay : float
    """
    return min(decay, (1 + step) / (10 + step))


def mean_decay(step, decay):
    """Decay of a weight average that begins as the plain mean of all weights so far.

    Parameters
    ----------
    step : int
        Optimizer steps done, the one before the update included: 1 at the first.
    decay : float
        Where the growth as ``1 - 1 / (step + 1)`` ends, in [0, 1).

    Returns
    -------
    decay : float
    """
    return min(decay, 1 - 1 / (step + 1))


def cosine_decay(step, decay, total_steps):
    """Decay of a weight average that rises to 1 over the training, by half a cosine.

    Parameters
    ----------
    step : int
        Optimizer steps done before the one of the update: 0 at the first.
    decay : float
        At the first step, in [0, 1).
    total_steps : int
        Step of the 1, >= 1.

    Returns
    -------
    decay : float
    """
    return 1 - (1 - decay) * (1 + math.cos(math.pi * min(1, step / total_steps))) / 2


def interleave(x, size):
    """Reorder rows so that each of ``size`` parts is spread over the batch.

    The result holds rows 0, ``size``, ``2 * size``, ... of x, then 1, ``1 + size``, ...:
    with ``size = 2 * unlabeled_ratio + 1`` every device gets its share of labeled rows.

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
