"""Optimization: LARS, learning rates over the steps, groups of parameters."""

import math
from numbers import Integral

import torch
from torch import nn
from torch.optim import Optimizer

from ._core.checks import check_number

VARIANTS = ("simclr", "byol", "larc", "clip")
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class LARS(Optimizer):
    r"""Layer-wise adaptive rate scaling: updates in proportion to each weight's norm.

    Parameters
    ----------
    params : iterable
        Parameters, or dicts of groups. A group with ``adapt=False``, such as biases and
        norms, has neither trust ratio nor weight decay, see `param_groups`.
    lr : float
        Learning rate, >= 0. Published: 0.3 to 4.8 with a ``trust_coefficient`` of
        0.001.
    momentum : float, default=0.9
        In [0, 1).
    weight_decay : float, default=0
        Factor of the weights that are added to the gradient, >= 0.
    trust_coefficient : float, default=0.001
        Ratio of the norms of update and weights, > 0. Paper: eta.
    variant : {"simclr", "byol", "larc", "clip"}, default="simclr"
        Published algorithm, see Notes.

    Notes
    -----
    With weight w, gradient g, decay d, momentum m and ``trust_coefficient`` c:

    - "simclr": :math:`r = c |w| / |g + d w|`; :math:`v = m v + lr\, r (g + d w)`;
      :math:`w = w - v`. The rate is inside the momentum.
    - "byol": the same r; :math:`v = m v + r (g + d w)`; :math:`w = w - lr\, v`.
    - "larc": as "byol" with :math:`r = c |w| / (|g| + d |w| + 10^{-8})`, and 0 if g is
      0, so that there is no decay then.
    - "clip": as "larc" with :math:`\min(r / lr, 1)` for r; CIFAR recipes use it with a
      coefficient of 0.02.

    Otherwise r is 1 if one of the norms is 0.

    References
    ----------
    .. [1] Y. You et al., "Large batch training of convolutional networks", 2017.
    """

    def __init__(
        self,
        params,
        lr,
        momentum=0.9,
        weight_decay=0,
        trust_coefficient=0.001,
        variant="simclr",
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "variant": variant,
            "adapt": True,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group):
        """Add parameters with settings of their own.

        Parameters
        ----------
        param_group : dict
            ``params`` and any settings.

        Raises
        ------
        ValueError
            For a setting outside its range.
        """
        group = {**self.defaults, **param_group}
        for name in ("lr", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name}={group[name]} must be >= 0.")
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum={group['momentum']} must be in [0, 1).")
        if not group["trust_coefficient"] > 0:
            raise ValueError(
                f"trust_coefficient={group['trust_coefficient']} must be > 0."
            )
        if group["variant"] not in VARIANTS:
            raise ValueError(f"variant={group['variant']!r} is not one of {VARIANTS}.")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure=None):
        """Update the parameters once.

        Parameters
        ----------
        closure : callable or None, default=None
            Computes the loss and its gradients again.

        Returns
        -------
        loss : Tensor or None
            What ``closure`` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike = {}  # norms of one device and dtype are computed together
            for p in group["params"]:
                if p.grad is not None:
                    if p.grad.is_sparse:
                        raise RuntimeError(
                            "LARS does not support sparse gradients: use "
                            "nn.Embedding with sparse=False, or torch.optim.SGD."
                        )
                    alike.setdefault((p.device, p.dtype), []).append(p)
            for weights in alike.values():
                self._step(group, weights)
        return loss

    def _step(self, group, weights):
        for w in weights:
            if "momentum_buffer" not in self.state[w]:
                self.state[w]["momentum_buffer"] = torch.zeros_like(w)
        velocities = [self.state[w]["momentum_buffer"] for w in weights]
        updates = [w.grad for w in weights]
        if group["adapt"]:
            updates = _adapted(weights, updates, group)
        rate_inside = group["variant"] == "simclr"
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(
            velocities, updates, alpha=group["lr"] if rate_inside else 1
        )
        torch._foreach_add_(
            weights, velocities, alpha=-1 if rate_inside else -group["lr"]
        )


def _adapted(weights, gradients, group):
    """Return gradients with decay, each scaled by its trust ratio."""
    decay, variant = group["weight_decay"], group["variant"]
    updates = torch._foreach_add(gradients, weights, alpha=decay)
    w = torch.stack(torch._foreach_norm(weights))  # (number of weights,)
    if variant in ("simclr", "byol"):
        g = torch.stack(torch._foreach_norm(updates))
        ratio = torch.where(g > 0, group["trust_coefficient"] * w / g, 1.0)
    else:
        g = torch.stack(torch._foreach_norm(gradients))
        ratio = group["trust_coefficient"] * w / (g + decay * w + 1e-8)
        if variant == "clip":
            # a rate of 0, as warm-ups begin with, leaves the bound
            ratio = (ratio / group["lr"]).clamp_max(1) if group["lr"] else ratio * 0 + 1
        ratio = torch.where(g > 0, ratio, 0.0)  # nothing decays without a gradient
    ratio = torch.where(w > 0, ratio, 1.0)
    torch._foreach_mul_(updates, list(ratio))
    return updates


def param_groups(module, weight_decay, lr_scales=None, alike=False):
    """Split parameters into groups with and without weight decay.

    Parameters
    ----------
    module : nn.Module
    weight_decay : float
        Weight decay of the first group.
    lr_scales : dict or None, default=None
        {name of a part: factor on the learning rate}; None: 1 for all.
    alike : bool, default=False
        Whether weight decay and adaptation also apply to biases and norms, as in SwAV.

    Returns
    -------
    groups : list of dict
        For a torch optimizer or `LARS`. The first: trainable parameters with two axes
        or more outside of norm layers. The second, without decay and with
        ``adapt=False``: all other trainable ones (biases, norms). A group may be empty.
        Parts with a factor have two such groups for each factor, which is stored as
        ``lr_scale``: multiply by it when setting ``lr``.
    """
    scales = {
        id(parameter): scale
        for name, scale in (lr_scales or {}).items()
        for parameter in module.get_submodule(name).parameters()
    }
    found, seen = {None: ([], [])}, set()
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            decays = alike or (parameter.ndim >= 2 and not isinstance(part, _NORMS))
            both = found.setdefault(scales.get(id(parameter)), ([], []))
            both[0 if decays else 1].append(parameter)
    groups = []
    for scale, (decayed, plain) in found.items():
        own = {} if scale is None else {"lr_scale": scale}
        groups += [
            {"params": decayed, "weight_decay": weight_decay, **own},
            {"params": plain, "weight_decay": 0.0, "adapt": False, **own},
        ]
    return groups


def layer_scales(module, parts, decay, scale=1.0):
    """Return learning rate factors that decay from the last layer to the first.

    Parameters
    ----------
    module : nn.Module
    parts : sequence of str
        Names of the parts that contain the layers, in order.
    decay : float
        Factor of each layer relative to the next one, in (0, 1]. The last layer has
        this factor itself, as parts after all layers have 1 (Bao et al.).
    scale : float, default=1.0
        Multiplies all factors, > 0.

    Returns
    -------
    lr_scales : dict of {str: float}
        For `param_groups`. A layer is a part with weights and the norms that follow it.
        Sequences and parts with more than half of all weights are split, so that each
        block of a residual network or a transformer is a layer. Weights outside the
        layers, such as a transformer's position embeddings, belong to the first.

    References
    ----------
    .. [1] H. Bao et al., "BEiT: BERT pre-training of image transformers", ICLR 2022.
    """
    check_number(0, 1, above=True, decay=decay)
    check_number(0, above=True, scale=scale)
    most = sum(_size(module.get_submodule(name)) for name in parts) / 2
    layers = []  # names of the parts of each
    for name in parts:
        for inner in _blocks(module, name, most):
            weights = module.get_submodule(inner).parameters()
            if not layers or any(p.ndim >= 2 for p in weights):
                layers.append([])
            layers[-1].append(inner)
    factors = [scale * decay ** (len(layers) - i) for i in range(len(layers))]
    scales = dict.fromkeys(parts, (factors or [scale])[0])
    for names, factor in zip(layers, factors, strict=True):
        scales.update(dict.fromkeys(names, factor))
    return scales


def _blocks(module, name, most):
    """Yield the names of the layers of a part, see `layer_scales`."""
    part = module.get_submodule(name)
    children = [key for key, child in part.named_children() if _size(child)]
    listed = isinstance(part, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
    if children and (listed or _size(part) > most):
        for key in children:
            yield from _blocks(module, f"{name}.{key}", most)
    elif _size(part):
        yield name


def _size(part):
    return sum(p.numel() for p in part.parameters())


def scaled_lr(lr, batch_size, scaling="linear"):
    """Return the learning rate for a batch size.

    Parameters
    ----------
    lr : float
        Base rate.
    batch_size : int
    scaling : {"linear", "sqrt"} or None, default="linear"
        "linear": ``lr * batch_size / 256``; "sqrt": ``lr * sqrt(batch_size)``, which
        needs a smaller ``lr`` (0.075 equals a linear 0.3 at 4096); None: ``lr``.

    Returns
    -------
    lr : float

    Raises
    ------
    ValueError
        For an unknown ``scaling``.
    """
    if scaling is None:
        return lr
    if scaling == "linear":
        return lr * batch_size / 256
    if scaling == "sqrt":
        return lr * math.sqrt(batch_size)
    raise ValueError(f'scaling={scaling!r} is neither "linear", "sqrt" nor None.')


def linear_ramp(length, n_steps, total_steps, batch_size=1):
    """Share of a weight that grows linearly from 0 to 1: MixMatch.

    Parameters
    ----------
    length : int or float
        When the share reaches 1: after a share of the training (float in [0, 1]), or a
        number of rows (int).
    n_steps : int
        Steps done.
    total_steps : int
    batch_size : int, default=1
        Rows per step.

    Returns
    -------
    share : float
    """
    if isinstance(length, Integral):
        done = n_steps * batch_size
    else:
        done, length = n_steps, length * total_steps
    return min(1, done / length) if length else 1


def step_counts(n_samples, batch_size, n_epochs, warmup_epochs=0):
    """Return the steps of a training as SimCLR's code counts them.

    Parameters
    ----------
    n_samples : int
    batch_size : int
    n_epochs : int
    warmup_epochs : float, default=0

    Returns
    -------
    total_steps, warmup_steps : int
    """
    check_number(1, whole=True, n_samples=n_samples, batch_size=batch_size)
    total_steps = n_samples * n_epochs // batch_size + 1
    return total_steps, round(warmup_epochs * n_samples // batch_size)


def warmup_cosine(step, total_steps, warmup_steps=0, final=0.0):
    """Linear from 0 to 1, then half a cosine down: SimCLR, BYOL.

    Parameters
    ----------
    step : int
        Steps done, >= 0. Beyond ``total_steps`` the factor stays at ``final``.
    total_steps : int
    warmup_steps : int, default=0
        Steps of the linear part.
    final : float, default=0.0
        Factor at ``total_steps``.

    Returns
    -------
    factor : float
        Times the peak rate.
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, _progress(step, total_steps, warmup_steps))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def truncated_cosine(step, total_steps, warmup_steps=0, clip=True):
    """Linear from 0 to 1, then the first 7/16 of half a cosine, to 0.195: FixMatch.

    Parameters
    ----------
    step : int
        Steps done, >= 0.
    total_steps : int
    warmup_steps : int, default=0
        Steps of a linear part from 0 to 1; published: none.
    clip : bool, default=True
        Whether the factor is constant beyond ``total_steps``, as in the official code;
        in a port it keeps falling, to 0 at the least.

    Returns
    -------
    factor : float
        Times the base rate.
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = _progress(step, total_steps, warmup_steps)
    if clip:
        progress = min(1.0, progress)
    return max(0.0, math.cos(7 * math.pi * progress / 16))


def step_decay(step, total_steps, warmup_steps=0, milestones=(0.6, 0.8), factor=0.1):
    """Linear from 0 to 1, then down in steps: MoCo's first version.

    Parameters
    ----------
    step : int
        Steps done, >= 0.
    total_steps : int
    warmup_steps : int, default=0
        Steps of the linear part.
    milestones : tuple of float, default=(0.6, 0.8)
        Shares of ``total_steps`` after which the factor falls. MoCo: epochs 120 and 160
        of 200.
    factor : float, default=0.1
        Multiplies the rate at each of them.

    Returns
    -------
    factor : float
        Times the peak rate.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return factor ** sum(step >= share * total_steps for share in milestones)


def exponential_decay(
    step, total_steps, warmup_steps=0, interval=2.4 / 350, factor=0.97
):
    """Linear from 0 to 1, then down in many small steps: EfficientNet, Noisy Student.

    Parameters
    ----------
    step : int
        Steps done, >= 0. Decays are counted from step 0, including those during the
        warm-up, as in the public code.
    total_steps : int
    warmup_steps : int, default=0
        Steps of the linear part. Noisy Student: 5 of 350 epochs.
    interval : float, default=2.4 / 350
        Share of ``total_steps`` after which the factor falls, > 0. Noisy Student: 2.4
        of 350 epochs, so that the rate ends at about a hundredth.
    factor : float, default=0.97
        Multiplies the rate at each of them.

    Returns
    -------
    factor : float
        Times the peak rate.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return factor ** (step // (interval * total_steps))


def constant(step, total_steps, warmup_steps=0):
    """Linear from 0 to 1, then 1.

    Parameters
    ----------
    step : int
        Steps done, >= 0.
    total_steps : int
        Ignored; every schedule takes it.
    warmup_steps : int, default=0
        Steps of the linear part.

    Returns
    -------
    factor : float
    """
    return step / warmup_steps if step < warmup_steps else 1.0


def _progress(step, total_steps, warmup_steps):
    """Return the share of the steps after the warm-up that are done."""
    return (step - warmup_steps) / max(1, total_steps - warmup_steps)
