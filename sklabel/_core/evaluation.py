"""A module's output for many rows, in evaluation mode."""

import numpy as np
import torch


def predict_all(net, samples, forward=None):
    """Return the module's probabilities of readable rows, un-augmented, in eval mode.

    ``forward``: what is asked in the module's place.
    """
    batches = [
        net.evaluation_step(batch, forward=forward)
        for batch in net.get_iterator(samples)
    ]
    net.module_.train()
    dim = 0 if batches[0].ndim == 2 else 1
    p = torch.cat(batches, dim).cpu()
    p = p if dim == 0 else p.transpose(0, 1)  # (n, K) or (n, heads, K)
    return p[torch.from_numpy(samples.good)] if samples.bad.any() else p


def predict_some(net, samples, rows, forward=None):
    """Return the module's output for some rows, in that order, in eval mode."""
    batches = np.array_split(rows, -(-len(rows) // net.batch_size))
    return torch.cat(
        [net.evaluation_step(samples[batch], forward=forward) for batch in batches]
    )
