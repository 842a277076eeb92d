"""Many rows: memory of what there is for each row, never of pairs of rows."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sklabel.classification import _embedding
from sklabel.neighbors import kmeans, kneighbors
from sklabel.selection import CoreSetSelector, MaxHerdingSelector

N_ROWS, N_OTHERS = 40_000, 2_000
BLOCK = 2**26  # numbers in a block of products; 8e7 are those of all pairs below


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that torch makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                # of a view all that it is a view of
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.numbers = max(self.numbers, size)
        return out


def rows(n=N_ROWS, dim=4):
    return np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)


TASKS = {
    "neighbors": lambda Z: kneighbors(Z, 2, queries=Z[:N_OTHERS], method="exact"),
    "kmeans": lambda Z: kmeans(Z, N_OTHERS, max_iter=1, random_state=0),
    "core-set": lambda Z: CoreSetSelector(N_OTHERS, random_state=0).fit(Z),
    "herding": lambda Z: MaxHerdingSelector(2, n_candidates=N_OTHERS).fit(Z),
}


@pytest.mark.parametrize("task", TASKS)
def test_no_matrix_of_all_pairs(task):
    Z = rows()
    tracemalloc.start()  # of numpy
    try:
        with Largest() as largest:
            TASKS[task](Z)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < largest.numbers <= BLOCK
    assert peak < 30 * Z.nbytes  # 19 MB


def test_many_known_rows_are_compared_in_parts():
    n = _embedding._MANY_KEYS + 1000
    z = torch.from_numpy(rows(n))
    module = _embedding._ProbeAndGraph(
        torch.nn.Identity(),
        torch.nn.Linear(4, 2),
        5,
        z,
        torch.ones(n),
        torch.rand(n, 2, generator=torch.Generator().manual_seed(0)),
        torch.ones(2),
    )
    with torch.inference_mode():
        expected = module.multiplied(z[:256], module.spread(z[:256]))
        with Largest() as largest:
            found = module(z[:256])
    assert largest.numbers <= BLOCK < 256 * n
    torch.testing.assert_close(found, expected)
