"""One process of a torch.distributed group: fits estimators, and writes weights."""

# python tests/tools/two_processes.py FOLDER RANK SIZE
#
# Without a group where SIZE is 1. The weights go to FOLDER/SIZE-RANK.pt.

import os
import sys
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from sklabel.classification import FixMatchClassifier, SupervisedClassifier
from sklabel.clustering import DeepClusterer
from sklabel.embedding import SimCLRTransformer


def main(folder, rank, size):
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size
        )
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    y = np.where(np.arange(50) < 30, np.arange(50) % 2, -1)
    short = {"max_epochs": 3, "batch_size": 16, "random_state": 0, "device": "cpu"}
    kept = {**short, "checkpoint_dir": str(folder / f"runs-{size}")}
    found, told = {}, []
    for estimator in (
        SupervisedClassifier(**short),
        FixMatchClassifier(**kept),
        SimCLRTransformer(**kept),
        DeepClusterer(3, **short),
    ):
        name = type(estimator).__name__
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator.fit(x, y)
        told += [
            str(w.message) for w in caught if "torch.distributed" in str(w.message)
        ]
        found[name] = estimator.net_.module_.state_dict()
        found[f"{name} epochs"] = estimator.n_iter_
    try:
        SimCLRTransformer(max_steps=1, device="cpu").fit(x)
        refused = ""
    except ValueError as error:
        refused = str(error)
    torch.save([found, told, refused], folder / f"{size}-{rank}.pt")
    if size > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
