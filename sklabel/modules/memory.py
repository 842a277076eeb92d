"""Memory of earlier batches."""

import torch
from torch import nn
from torch.nn import functional as F

from .._core.checks import check_number, check_option


class Queue(nn.Module):
    """The most recent rows, such as the keys of MoCo.

    Parameters
    ----------
    size : int
        Number of rows Q.
    n_features : int
        Length D of the rows.

    Attributes
    ----------
    rows : Tensor of shape (Q, D)
        Buffer, saved and moved with the module; initially random rows of length 1.
    pointer : Tensor of int of shape ()
        Position of the next row.
    """

    def __init__(self, size, n_features):
        super().__init__()
        check_number(1, whole=True, size=size, n_features=n_features)
        self.register_buffer("rows", F.normalize(torch.randn(size, n_features)))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push_(self, x):
        """Write rows over the oldest ones.

        Parameters
        ----------
        x : Tensor of shape (B, D)
            Any number of rows; if there are more than Q, the last Q are kept.
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
        A number is returned unchanged.
    n_samples : int
        Rows of the data set.
    batch_size : int

    Returns
    -------
    size : int
        "auto": a tenth of the rows, because old keys come from an outdated network; at
        least ``batch_size`` and at most 4096.
    """
    if not isinstance(size, str):
        check_number(1, whole=True, size=size)
        return size
    check_option(("auto",), size=size)
    return min(4096, max(n_samples // 10, min(batch_size, n_samples)))
