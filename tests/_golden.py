"""Golden values: what the methods' public implementations compute on stored inputs."""

import os
from pathlib import Path

import numpy as np
import pytest

OWN = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("SKLABEL_GOLDEN", OWN))


def cases(name):
    """Return every case of one golden file as a list of dicts.

    Parameters
    ----------
    name : str
        File name without ``.npz``. The folder is ``SKLABEL_GOLDEN`` or, by default,
        ``tests/golden``.

    Returns
    -------
    cases : list of dict
        Arrays by key, without the ``c{i}_`` prefix; ``case["i"]`` is the number of the
        case. The calling test is skipped where another folder lacks the file.
    """
    path = FOLDER / f"{name}.npz"
    if not path.exists():
        assert FOLDER != OWN or not OWN.exists(), f"{path} does not exist"
        pytest.skip(f"golden file {path.name} is not in {FOLDER}")
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    found = []
    for i in range(int(arrays["n_cases"])):
        prefix = f"c{i}_"
        case = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
        found.append({**case, "i": i})
    return found


def assert_same_ranking(rows, expected, values, atol=1e-7):
    """Assert that two rankings name the same rows, near ties in either order.

    Parameters
    ----------
    rows, expected : array-like of int of shape (n,)
        Row numbers in the order of their values.
    values : array-like
        What the rows were ranked by, one value a row.
    atol : float, default=1e-7
        How near two values are to count as a tie.
    """
    rows, expected, values = map(np.asarray, (rows, expected, values))
    assert len(np.unique(rows)) == len(rows) == len(expected)
    np.testing.assert_allclose(values[rows], values[expected], rtol=0, atol=atol)


def assert_farthest_first(Z, rows, known, rtol):
    """Assert that each row was, within ``rtol``, the farthest from those before it.

    Parameters
    ----------
    Z : ndarray of shape (n, D)
    rows : array-like of int
        In the order in which they were chosen.
    known : array-like of int
        Rows that were there before; where there are none the first choice is free.
    rtol : float
        How near two distances are to count as a tie.
    """
    Z, rows = Z.astype(np.float64), list(rows)
    known = list(known) or [rows.pop(0)]
    distances = np.linalg.norm(Z[:, None] - Z[known], axis=2).min(1)
    for row in rows:
        assert distances[row] >= (1 - rtol) * distances.max()
        distances = np.minimum(distances, np.linalg.norm(Z - Z[row], axis=1))
