"""The layers of an encoder: what they give, and which ones to look at."""

from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

# parts that say nothing beyond the part before them
_POOLED = (
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
    nn.Dropout,
    nn.Identity,
)
_N_LAYERS = 4  # of ResNet-18: its stages


def pooled(x):
    """Return what is left of an output after the mean over places.

    Parameters
    ----------
    x : Tensor of shape (B, C, H, W), (B, T, C) or (B, C)
        Maps, tokens or vectors.

    Returns
    -------
    x : Tensor of shape (B, C)
        A copy, never a view.
    """
    axes = {4: (2, 3), 3: 1}.get(x.ndim)
    half = x.dtype in (torch.bfloat16, torch.float16)
    if axes is None:
        return x.clone()
    return x.mean(axes, dtype=torch.float32 if half else None)


@contextmanager
def outputs_of(net, names, look=pooled):
    """Collect ``look(output)`` of parts of a network, in the order in which they end.

    The hooks are gone afterwards, so that the network can be copied and pickled.
    """
    outputs, handles = {}, []

    def hook(name):
        def keep(part, inputs, output):
            if isinstance(output, torch.Tensor):
                outputs.pop(name, None)
                # at once: a later part may write over it
                outputs[name] = look(output)

        return keep

    try:
        for name in names:
            handles.append(net.get_submodule(name).register_forward_hook(hook(name)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def output_shapes(encoder):
    """Return the shape of what each part of an encoder's network gives.

    Parameters
    ----------
    encoder : Encoder

    Returns
    -------
    shapes : dict of {str: tuple of int}
        Without the batch, by the name of the part, "" for the whole network, in the
        order in which they end. Only parts that give maps, tokens or vectors.
    """
    training = encoder.training
    x = torch.zeros(2, *encoder.sample_shape, device=encoder.mean.device)
    names = [name for name, _ in encoder.body.named_modules()]
    with outputs_of(encoder.body, names, look=lambda output: output.shape) as shapes:
        encoder.eval()(x)
    encoder.train(training)
    return {
        name: tuple(shape[1:])
        for name, shape in shapes.items()
        if 2 <= len(shape) <= 4 and shape[0] == 2
    }


def choose_layers(net, shapes):
    """Choose the layers whose outputs the loss is predicted from.

    Parameters
    ----------
    net : nn.Module
    shapes : dict of {str: tuple of int}
        See `output_shapes`.

    Returns
    -------
    names : tuple of str
        At most four. A block is a part with weights and the parts without (norms,
        activations, pooling) that follow it; they are looked for further inside while
        there are fewer than four and one part holds nine tenths of the weights. Of
        more than four, those at the end of a stage are taken, where the shape changes,
        if there are three of them or more; of these the last four.
    """
    order = list(shapes)
    maps = any(len(shape) > 1 for shape in shapes.values())
    parts = [("", net)]
    while True:
        names = _ends_of_blocks(parts, shapes, maps)
        weights = [_n_weights(name, part, shapes, maps) for name, part in parts]
        heaviest = int(np.argmax(weights))
        if len(names) >= _N_LAYERS or weights[heaviest] < 0.9 * sum(weights):
            break
        inner = sorted(
            _children(*parts[heaviest], shapes), key=lambda p: order.index(p[0])
        )
        if not inner:
            break
        parts[heaviest : heaviest + 1] = inner
    if len(names) > _N_LAYERS:
        after = [*(shapes[name] for name in names[1:]), None]
        ends = [n for n, shape in zip(names, after, strict=True) if shapes[n] != shape]
        names = ends if len(ends) >= 3 else names
    return tuple(names[-_N_LAYERS:]) or ("",)


def _ends_of_blocks(parts, shapes, maps):
    """Return the last part of each block that gives what is looked for."""
    ends = []
    for name, part in parts:
        if any(p.ndim > 1 for p in part.parameters()):
            ends.append(None)
        if ends and not isinstance(part, _POOLED) and (len(shapes[name]) > 1) == maps:
            ends[-1] = name
    return [name for name in ends if name is not None]


def _n_weights(name, part, shapes, maps):
    """Return the number of weights of a part; 0 if nothing in it is looked for."""
    inside = (
        shape
        for other, shape in shapes.items()
        if not name or other == name or other.startswith(f"{name}.")
    )
    looked_for = any((len(shape) > 1) == maps for shape in inside)
    return sum(p.numel() for p in part.parameters()) if looked_for else 0


def _children(name, part, shapes):
    """Yield the parts of a part that are run; lists of modules are looked into."""
    for key, child in part.named_children():
        full = f"{name}.{key}" if name else key
        if full in shapes:
            yield full, child
        else:
            yield from _children(full, child, shapes)
