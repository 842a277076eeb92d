"""One process of two that train together, and what may go wrong."""

# python tests/tools/troubled_processes.py FOLDER, with the environment of torchrun.
# What was seen goes to FOLDER/trouble-RANK.json. In the end the second process dies.

import contextlib
import io
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
from sklearn.linear_model import LogisticRegression
from skorch.callbacks import Callback, EarlyStopping
from torch import distributed, nn

import sklabel
from sklabel._core import launching, processes
from sklabel._core.identity import digest
from sklabel._core.net import Net
from sklabel.active_learning import ActiveLearningClassifier
from sklabel.classification import FixMatchClassifier, SupervisedClassifier
from sklabel.clustering import SCANClusterer
from sklabel.embedding import MoCoTransformer, SimCLRTransformer
from sklabel.selection import RandomSelector

SHORT = {"max_epochs": 3, "batch_size": 10, "device": "cpu", "backbone": "resnet8"}


class Breaks(Callback):
    """Break off after so many epochs; no part of a training's name."""

    n_epochs = 2

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == Breaks.n_epochs:
            raise OSError("broken off")


class BreaksOne(Callback):
    """End an epoch in the second process in another way than in the first one."""

    def __init__(self, act):
        self.act = act

    def on_epoch_end(self, net, **kwargs):
        if os.environ["RANK"] == "1" and len(net.history) == 2:
            self.act(net)


class FailsOne(nn.Module):
    """Views that fail in the second process."""

    def forward(self, x):
        if os.environ["RANK"] == "1":
            raise OSError("only here")
        return x


class Noise(nn.Module):
    """Views by numpy's random numbers, which are noted."""

    def forward(self, x):
        draw = np.random.normal(size=tuple(x.shape))
        DRAWN.append(float(draw.ravel()[0]))
        return x + torch.from_numpy(draw).to(x)


DRAWN: list = []


class Dies(Callback):
    def on_epoch_end(self, net, **kwargs):
        os._exit(3)


def weights(estimator):
    return digest(estimator.net_.module_.state_dict())


class Unpicklable(Exception):
    def __init__(self):
        super().__init__("of the first one")
        self.thread = threading.Lock()


def interrupt(net):
    raise KeyboardInterrupt


def fail(net):
    raise Unpicklable


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

    # without seeds of numpy
    V = rng.normal(size=(20, 3))
    seen["chosen"] = RandomSelector(n_samples=4).fit(V).sample_indices_.tolist()
    asked = []

    def oracle(rows):
        asked.append(rows)
        return rows % 2

    quick = LogisticRegression()
    loop = ActiveLearningClassifier(quick, oracle=oracle, n_rounds=1, n_samples=6)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        loop.set_params(verbose=1).fit(V)
    seen["asked"] = loop.sample_indices_.tolist()
    seen["questions"], seen["shown"] = len(asked), shown.getvalue()
    SimCLRTransformer(**{**SHORT, "backbone": "auto"}, augment=Noise()).fit(V)
    seen["drawn"] = DRAWN
    np.random.seed(5)
    RandomSelector(n_samples=4).fit(V)
    seen["seeded"] = np.random.random()

    # norms that see the rows of one process, and one that knows GPUs only
    norms = nn.InstanceNorm2d(4, track_running_stats=True), nn.SyncBatchNorm(4)
    own = nn.Sequential(nn.Conv2d(3, 4, 3), *norms, nn.Flatten())
    mixed = SimCLRTransformer(**{**SHORT, "backbone": own}).fit(X)
    seen["norms"] = weights(mixed)
    kinds = {type(part).__name__ for part in mixed.encoder_.modules()}
    seen["norm"] = "SyncBatchNorm" in kinds

    # what one process does at the end of an epoch, all do
    for name, act in (("stop", Net.stop), ("Ctrl-C", interrupt), ("fail", fail)):
        settings = {**given, "max_epochs": 4}
        one = SimCLRTransformer(**settings, net_params={"callbacks": [BreaksOne(act)]})
        seen[f"one: {name}"] = refused(one.fit, X) or (one.n_iter_, one.interrupted_)

    if hasattr(os, "fork"):
        child = os.fork()
        if child == 0:
            os._exit(1 if launching.joined() else 0)
        seen["copy"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

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

    # an error in one process that its script goes on after
    processes._SECONDS_TO_FAIL = 0.5
    failing = SimCLRTransformer(**given, augment=FailsOne())
    seen["fails in one"] = refused(failing.fit, X)
    seen["after it"] = refused(failing.set_params(augment="auto").fit, X)
    again = distributed.FileStore(str(folder / "again"), 2)
    distributed.init_process_group("gloo", store=again, rank=rank, world_size=2)

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
