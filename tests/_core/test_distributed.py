"""Under torch.distributed every process trains the whole model, or says why not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "tools" / "two_processes.py"


def run(folder, size):
    """Return what each of so many processes has found, told and refused."""
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank), str(size)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    for process in started:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors
    return [
        torch.load(folder / f"{size}-{rank}.pt", weights_only=True)
        for rank in range(size)
    ]


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without it"
)
def test_two_processes_train_what_one_trains(tmp_path):
    # slow: three processes load torch
    ((alone, told, refused),) = run(tmp_path, 1)
    assert not told and not refused
    first, second = run(tmp_path, 2)
    for found, _, reason in (first, second):
        assert found.keys() == alone.keys()
        for name, weights in alone.items():
            if isinstance(weights, int):
                assert found[name] == weights, name
                continue
            for key, weight in weights.items():
                assert torch.equal(found[name][key], weight), (name, key)
        assert "random_state=None" in reason and "2 processes" in reason
    assert len(first[1]) == 4 and "trains the whole" in first[1][0]
    assert not second[1]
