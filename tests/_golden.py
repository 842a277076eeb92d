"""Golden values: what the methods' public implementations compute on stored inputs."""

import os
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(os.environ.get("SKLABEL_GOLDEN", Path(__file__).parent / "golden"))


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
        case. The calling test is skipped where the file is absent.
    """
    path = FOLDER / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"golden file {path.name} is not in {FOLDER}")
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    found = []
    for i in range(int(arrays["n_cases"])):
        prefix = f"c{i}_"
        case = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
        found.append({**case, "i": i})
    return found
