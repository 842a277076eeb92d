"""One process of two that train together, and what may go wrong."""

# python tests/tools/troubled_processes.py FOLDER, with the environment of torchrun.
# What was seen goes to FOLDER/trouble-RANK.json. In the end the second process dies.

import json
import os
import sys
import threading
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from skorch.callbacks import Callback, EarlyStopping

import sklabel
from sklabel._core.identity import digest
from sklabel.classification import FixMatchClassifier, SupervisedClassifier
from sklabel.clustering import SCANClusterer
from sklabel.embedding import MoCoTransformer, SimCLRTransformer

SHORT = {"max_epochs": 3, "batch_size": 10, "device": "cpu", "backbone": "resnet8"}


class Breaks(Callback):
    """Break off after so many epochs; no part of a training's name."""

    n_epochs = 2

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == Breaks.n_epochs:
            raise OSError("broken off")


class Dies(Callback):
    def on_epoch_end(self, net, **kwargs):
        os._exit(3)


def weights(estimator):
    return digest(estimator.net_.module_.state_dict())


def refused(fit, *args):
    try:
        fit(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(folder):
    rank = int(os.environ["RANK"])
    rng = np.random.default_rng(0)
    # neither the rows nor the batches divide by two
    X = rng.integers(0, 256, (25, 8, 8, 3), dtype=np.uint8)
    y = np.where(np.arange(25) < 9, np.arange(25) % 3, -1)
    seen = {"rank": rank}

    # without a seed, with random views, bars and warnings of the first one alone
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for estimator in (
            FixMatchClassifier(**SHORT, verbose=1, unlabeled_ratio=2),
            SCANClusterer(3, self_label_epochs=1, **SHORT),
            MoCoTransformer(**SHORT),
        ):
            name = type(estimator).__name__
            seen[name] = weights(estimator.fit(X, y))
    seen["warnings"] = len(caught)
    seen["numbers"] = float(torch.rand(()))

    # broken off, and gone on with
    given = {**SHORT, "random_state": 0}
    whole = weights(SimCLRTransformer(**given).fit(X))
    kept = {**given, "checkpoint_dir": str(folder / "runs")}
    broken = SimCLRTransformer(**kept, net_params={"callbacks": [Breaks()]})
    seen["broken off"] = refused(broken.fit, X)
    Breaks.n_epochs = 0
    seen["goes on"] = weights(broken.fit(X)) == whole
    seen["epochs of the rest"] = len(broken.net_.history)

    stops = EarlyStopping("train_loss", patience=1, threshold=10)
    early = SimCLRTransformer(**given, net_params={"callbacks": [stops]}).fit(X)
    seen["epochs"] = early.n_iter_

    # not the same
    clf = SupervisedClassifier(**{**given, "max_epochs": 3 + rank})
    seen["parameters differ"] = refused(clf.fit, X, y)
    clf = SupervisedClassifier(**given)
    seen["labels differ"] = refused(clf.fit, X, np.where(np.arange(25) == rank, -1, y))
    seen["rows differ"] = refused(clf.fit, X[rank:], y[rank:])
    thread = threading.Thread(
        target=lambda: seen.update({"in a thread": refused(clf.fit, X, y)})
    )
    thread.start()
    thread.join()
    with sklabel.alone():
        seen["alone"] = weights(clf.fit(X, y))
        seen["alone, another"] = weights(clf.set_params(random_state=rank).fit(X, y))

    write(folder, seen)
    callbacks = [Dies()] if rank == 1 else []
    last = SimCLRTransformer(**given, net_params={"callbacks": callbacks})
    start = time.monotonic()
    seen["other died"] = refused(last.fit, X)
    seen["seconds"] = time.monotonic() - start
    write(folder, seen)
    os._exit(0)


def write(folder, seen):
    path = folder / f"trouble-{seen['rank']}.json"
    path.write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
