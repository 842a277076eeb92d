"""On a pretended accelerator: every estimator, policy and loss, and its waits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sklabel import classification, clustering, embedding, losses, selection
from tests.augment._policies import POLICIES

SCRIPT = Path(__file__).parents[1] / "tools" / "on_pretend_device.py"
ESTIMATORS = [
    name
    for folder in (embedding, clustering, classification, selection)
    for name in folder.__all__
]
LARGER = ["SimCLRTransformer", "FixMatchClassifier", "VAALSelector", "IICSegmenter"]
PRECISE = ["SimCLRTransformer float16", "SimCLRTransformer tf32"]
PRECISE += ["DeepClusterer float16", "MixMatchClassifier bfloat16"]
VARIANTS = [
    f"FixMatchClassifier {rule}"
    for rule in ("free", "soft", "classes", "adamatch", "eman")
]
VARIANTS += ["IICClusterer sgd", "LADASelector frozen"]
CASES = [*PRECISE, *ESTIMATORS, *(f"{name} 16" for name in LARGER), *VARIANTS]
CASES += [f"policy {name}" for name in POLICIES]
CASES += [f"loss {name}" for name in losses.__all__]
SEARCHES = [
    f"search kneighbors {case}"
    for case in (
        *("euclidean True", "euclidean False", "cosine True", "cosine False"),
        *("queries", "float64"),
    )
]
SEARCHES += ["search mine_neighbors", "search mine_neighbors product"]
SEARCHES += [
    f"search kmeans {case}"
    for case in ("random", "k-means++", "sample", "1-D", "2-D", "many")
]
SEARCHES += [f"search k_center_greedy{case}" for case in ("", " first", " many")]
SEARCHES += ["search herd"]
CASES += SEARCHES

# What the host waits for in a step, and why it stays; all others never wait.
WAITS = {
    # a text that several rows share is encoded once: how many there are must be known
    "CLIPTransformer": {"unique embedding/_clip.py contrast": 1},
    "CLIPClassifier": {"unique embedding/_clip.py contrast": 1},
}
# Operations of a step, at most. Before weights were stepped at once, batches normalized
# in parts at once and constants kept on the device: 956, 3179, 1344, 1653, 2253, 971,
# 676 and 308.
LAUNCHES = {
    "SimCLRTransformer": 760,
    "MoCoTransformer": 1960,
    "BYOLTransformer": 1120,
    "CLDTransformer": 1470,
    "SCANClusterer": 2080,
    "FixMatchClassifier": 880,
    "MixMatchClassifier": 500,
    "SupervisedClassifier": 210,
}
# Copies from the host per step: each strong view of ReMixMatch draws on the host.
COPIES = {"USLTSelector": 8, "SCANClusterer": 8, "ReMixMatchClassifier": 20}
# Choices by numbers that hardly differ after so few steps.
CHOICES = {"CoreGCNSelector", "UncertainGCNSelector", "VAALSelector 16", "TODSelector"}
CHOICES |= {"USLTSelector"}


@pytest.fixture(scope="module")
def found():
    # slow: some eighty trainings of a few steps in one process, which torch's own state
    # would be changed in
    run = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr
    lines = map(json.loads, run.stdout.splitlines())
    return {line["name"]: line for line in lines}


def test_all_are_tried(found):
    assert sorted(found) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_on_a_device_as_on_the_cpu_without_waiting(found, name):
    case = found[name]
    assert case["error"] is None, case["error"]
    assert case["waits"] == WAITS.get(name, {})
    low = 3e-2 if name.endswith("float16") else 5e-3
    assert case["gap"] <= (1.0 if name in CHOICES else low)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_rows_on_the_device_are_not_copied_again(found, name):
    # numbers of rows and what the policies draw on the host, never the pixels
    copies = sum(found[name].get("copies", {}).values())
    assert copies <= COPIES.get(name, 6)


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_step_launches_no_more_than_it_did(found, name):
    assert 0 < found[name]["launches"] <= LAUNCHES[name]


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_run_on_the_device_in_blocks(found, name):
    # of 700 rows, 64 at a time: never all pairs, but where there are 650 centers
    case = found[name]
    assert case["launches"] > 10
    if name.partition(" k")[2].startswith("neighbors") or "mine" in name:
        assert case["largest"] <= 64 * 700
