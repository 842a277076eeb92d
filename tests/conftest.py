"""Settings of every test run: one torch thread, fixed seeds, hypothesis, GPU marker."""

import os

# scikit-learn's array API checks run only where scipy was imported with this set.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
# Small problems on few cores: more threads make the common checks many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile(
    "dev", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_collection_modifyitems(items):
    """Skip tests marked ``gpu`` where no CUDA device is found."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seeds():
    """Start every test from the same state of the three global generators."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
