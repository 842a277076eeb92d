"""Small pictures of three kinds, which any network that learns tells apart."""

import numpy as np


def stripes(n, noise=40):
    """Return noisy pictures of 8 x 8 pixels and their kinds, in turn.

    The kinds are stripes along rows, stripes along columns, and a chessboard.
    """
    rows, columns = np.indices((8, 8)) // 2
    kinds = np.stack([rows % 2, columns % 2, (rows + columns) % 2])
    y = np.arange(n) % 3
    x = 60 + 130 * kinds[y] + np.random.default_rng(0).normal(0, noise, (n, 8, 8))
    return x.clip(0, 255).astype(np.uint8), y
