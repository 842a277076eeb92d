"""Every estimator, policy and loss on the pretend accelerator."""

# python tests/tools/on_pretend_device.py [--thorough] [WORD ...]
#
# Prints one JSON object a line: the name of the case; the error, or None; by how much
# the answer differs from that of the CPU; what the host waits for within steps, and
# copies to the device, per step; the operations of a step. With words, those cases
# alone whose names hold one of them; with --thorough every estimator is also saved,
# continued and resumed.

import copy
import functools
import json
import os
import pickle
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
warnings.simplefilter("ignore")

import numpy as np
import pretend_device as sim
import torch

torch.set_num_threads(1)

from sklearn.base import clone
from skorch import net as skorch_net

import sklabel
from sklabel import (
    classification,
    clustering,
    embedding,
    losses,
    neighbors,
    selection,
)
from sklabel._core.kcenter import k_center_greedy
from sklabel._core.net import Net
from sklabel.datasets import load_digit_images
from sklabel.selection._herding import herd
from tests.augment._policies import POLICIES
from tests.test_common import SHORTEST, UNSTAGED, color

images, target = load_digit_images(return_X_y=True)
rows = np.concatenate([np.flatnonzero(target == k)[:20] for k in (0, 1)])
rows = np.random.default_rng(0).permutation(rows)
TRUTH = target[rows]
Y = np.where(np.arange(40) < 16, TRUTH, -1)
IMAGES = color(images[rows])  # (40, 8, 8, 3)
VECTORS = IMAGES.reshape(40, -1)[:, ::8].astype(np.float32)
LARGER = np.kron(IMAGES, np.ones((1, 2, 2, 1), np.uint8))  # (40, 16, 16, 3)


def partly_frozen():
    """Return a network for color images whose first layers are not to be trained."""
    first = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    rest = torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3), torch.nn.Flatten()
    return torch.nn.Sequential(torch.nn.Sequential(*first).requires_grad_(False), *rest)


MORE = {
    # of several heads, one is kept by losses that hardly differ after so few steps
    "IICClusterer": {"n_sub_heads": 1},
    "IICSegmenter": {"max_steps": 2, "half_side": 1, "n_clusters": 2},
    "PretrainedTransformer": {
        "model": "squeezenet1_1",
        "weights": None,
        "input_size": 32,
    },
}
# these take vectors, as an embedder gives them
OF_VECTORS = {"USLSelector", "CoreSetSelector", "MaxHerdingSelector"}
OF_VECTORS |= {"UHerdingSelector", "TypiClustSelector", "EmbeddingClassifier"}
OF_VECTORS |= {"TURTLEClusterer"}
SHOWN_LARGER = {"SimCLRTransformer", "FixMatchClassifier", "VAALSelector"}
SHOWN_LARGER |= {"IICSegmenter"}
PRECISIONS = {
    "SimCLRTransformer": ("float16", "tf32"),
    "DeepClusterer": ("float16",),  # with an optimizer of its own
    "MixMatchClassifier": ("bfloat16",),
}
# with images, and with settings that take another way
VARIANTS = {
    # some weights have their first gradient, and momentum, after others
    "IICClusterer sgd": {"optimizer": "sgd", "n_sub_heads": 1},
    "FixMatchClassifier free": {"threshold": "free", "fairness_weight": 0.1},
    "FixMatchClassifier soft": {"threshold": "soft", "distribution_alignment": True},
    "FixMatchClassifier classes": {"class_thresholds": True, "threshold": 0.4},
    "FixMatchClassifier adamatch": {
        "relative_threshold": True,
        "logit_interpolation": True,
        "distribution_alignment": "predictions",
    },
    "FixMatchClassifier eman": {"teacher": "average", "energy_threshold": -1.0},
    "LADASelector frozen": {"backbone": partly_frozen},
}
# those whose saved, continued and resumed states are tried without --thorough
TRIED = {"SimCLRTransformer", "DeepClusterer", "FixMatchClassifier"}


def counted(run):
    """Return ``Net.run_single_epoch``, with the log told of its begin and end."""

    def run_single_epoch(self, *args, **kwargs):
        log = sim.LOG
        log.step, n_operations, n_steps = True, log.n_operations, self.step_
        try:
            return run(self, *args, **kwargs)
        finally:
            log.step = False
            n_steps = max(1, self.step_ - n_steps)
            launches = (log.n_operations - n_operations) / n_steps
            log.launches += [launches] * n_steps

    return run_single_epoch


Net.run_single_epoch = counted(Net.run_single_epoch)
# the figures of an epoch are read once, at its end
OF_EPOCHS = "tolist _core/net.py run_single_epoch"
# a pickle is read on a machine that has no such device
skorch_net.get_map_location = lambda *args, **kwargs: torch.device("cpu")


def parameters(cls, device, **given):
    """Return the short settings of an estimator on a device."""
    own = {
        **(SHORTEST | UNSTAGED).get(cls.__name__, {}),
        **MORE.get(cls.__name__, {}),
        **given,
    }
    known = cls().get_params(deep=False)
    own = {name: value for name, value in own.items() if name in known}
    held = own.get("embedder")
    if held is not None and "device" in held.get_params():
        own["embedder"] = clone(held).set_params(device=device, precision="float32")
    if "classifier" in known and known["classifier"] is None:
        own["classifier"] = classification.SupervisedClassifier(
            max_steps=2, device=device, random_state=0
        )
    shared = {"device": device, "random_state": 0, "precision": "float32"}
    return {**{name: v for name, v in shared.items() if name in known}, **own}


def fitted(estimator, X, y):
    return estimator.fit(X) if y is None else estimator.fit(X, y)


def answer(estimator, X):
    """Return what the estimator is for, as one array of floats."""
    for verb in ("predict_proba", "transform"):
        if hasattr(estimator, verb):
            return np.asarray(getattr(estimator, verb)(X), float)
    return np.asarray(estimator.sample_indices_, float)


def use(estimator, X, y):
    """Score, pickle, save, continue and resume a fitted estimator."""
    if hasattr(estimator, "score"):
        estimator.score(X, TRUTH)
    again = pickle.loads(pickle.dumps(estimator))
    if hasattr(again, "net_"):
        assert next(again.net_.module_.parameters()).device.type == "cpu"
    given = estimator.get_params(deep=False)
    with tempfile.TemporaryDirectory() as folder:
        if hasattr(estimator, "save"):
            estimator.save(f"{folder}/model")
            sklabel.load(f"{folder}/model")
        if "checkpoint_dir" in given:
            for _ in range(2):
                kept = clone(estimator).set_params(checkpoint_dir=folder)
                fitted(kept, X, y)
    if "warm_start" in given:
        fitted(estimator.set_params(warm_start=True), X, y)


def of_fit(cls, X, y, thorough=True, **given):
    """Return what is found of one estimator."""
    expected = answer(fitted(cls(**parameters(cls, "cpu", **given)), X, y), X)
    with sim.PretendDevice():
        log = sim.LOG
        log.__init__()
        estimator = fitted(cls(**parameters(cls, sim.NAME, **given)), X, y)
        n_steps = max(1, len(log.launches))
        found = {
            "waits": per_step(log.in_steps(log.waits), n_steps),
            "copies": per_step(log.in_steps(log.copies), n_steps),
            "launches": float(np.median(log.launches)) if log.launches else 0,
        }
        found["gap"] = difference(cls, answer(estimator, X), expected)
        if thorough:
            use(estimator, X, y)
    return found


def difference(cls, found, expected):
    """Return by how much answers differ; of chosen rows the share that do."""
    if found.shape != expected.shape:
        return np.inf
    if cls.__name__.endswith("Selector"):
        return 1 - len(np.intersect1d(found, expected)) / len(expected)
    return float(np.nanmax(np.abs(found - expected)))


def per_step(counts, n_steps):
    counts.pop(OF_EPOCHS, None)
    return {key: round(count / n_steps, 2) for key, count in counts.items()}


def of_policy(policy):
    """Return what is found of an augmentation policy."""
    x = torch.rand(8, 3, 16, 16)
    torch.manual_seed(0)
    expected = copy.deepcopy(policy)(x.clone())
    with sim.PretendDevice():
        log = sim.LOG
        torch.manual_seed(0)
        moved, there = copy.deepcopy(policy).to(sim.NAME), x.to(sim.NAME)
        moved(there)  # what is made once is made
        log.__init__()
        torch.manual_seed(0)
        log.step = True
        found = moved(there)
        waits, copies = log.in_steps(log.waits), log.in_steps(log.copies)
        n_operations = log.n_operations
        log.step = False
        gap = float((found.cpu() - expected).abs().max())
    return {"gap": gap, "waits": waits, "copies": copies, "launches": n_operations}


def of_loss(loss, args):
    """Return what is found of a loss and its gradient."""
    if args is None:
        raise ValueError("add arguments of this loss to of_losses")

    def run(device):
        torch.manual_seed(0)
        given = [a.to(device) if isinstance(a, torch.Tensor) else a for a in args]
        first = given[0] = given[0].detach().requires_grad_()
        sim.LOG.__init__()
        sim.LOG.step = True
        out = loss(*given)
        out = out if isinstance(out, tuple) else (out,)
        total = sum(o.float().sum() for o in out if o.requires_grad)
        if not isinstance(total, int):
            total.backward()
        waits = sim.LOG.in_steps(sim.LOG.waits)
        sim.LOG.step = False
        gradient = first.grad if first.grad is not None else first * 0
        return [o.detach().float().cpu() for o in (*out, gradient)], waits

    expected, _ = run("cpu")
    with sim.PretendDevice():
        found, waits = run(sim.NAME)
    gaps = [(a - b).abs().max() for a, b in zip(expected, found, strict=True)]
    return {"gap": float(max(gaps)), "waits": waits}


def of_search(search, *args):
    """Return what is found of a function that takes a device: do all results agree?"""
    expected = [np.asarray(part, float) for part in search(*args, device="cpu")]
    with sim.PretendDevice():
        sim.LOG.__init__()
        found = search(*args, device=sim.NAME)
        n_operations, largest = sim.LOG.n_operations, sim.LOG.largest
    gaps = []
    for a, b in zip(expected, found, strict=True):
        finite = np.isfinite(a)
        np.testing.assert_array_equal(a[~finite], np.asarray(b)[~finite])
        gaps.append(np.abs(a[finite] - np.asarray(b)[finite]).max(initial=0))
    gap = float(max(gaps))
    return {"gap": gap, "waits": {}, "launches": n_operations, "largest": largest}


def of_searches():
    """Yield (name, function, arguments) of what searches and clusters vectors."""
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(700, 5)).astype(np.float32)
    Z[600:] = Z[:100]  # copies
    fixed = np.ascontiguousarray(Z)
    fixed.flags.writeable = False
    for metric in ("euclidean", "cosine"):
        for own in (True, False):
            block = functools.partial(
                neighbors.kneighbors, metric=metric, include_self=own, block_size=64
            )
            yield f"kneighbors {metric} {own}", block, (Z, 6)
    short = functools.partial(neighbors.kneighbors, block_size=64)
    yield "kneighbors queries", short, (fixed, 6, Z[:50].astype(np.float64))
    yield "kneighbors float64", short, (Z.astype(np.float64), 6)
    mined = functools.partial(neighbors.mine_neighbors, block_size=64)
    yield "mine_neighbors", mined, (Z, 6)
    yield "mine_neighbors product", mined, (Z, 6, False)
    for init in ("random", "k-means++", "sample", np.arange(9), Z[:9]):
        name = init if isinstance(init, str) else f"{init.ndim}-D"
        run = functools.partial(neighbors.kmeans, init=init, random_state=0)
        yield f"kmeans {name}", run, (Z, 9)
    yield "kmeans many", functools.partial(neighbors.kmeans, random_state=0), (Z, 650)
    yield "k_center_greedy", k_center_greedy, (Z, 40, [3, 5])
    yield "k_center_greedy first", k_center_greedy, (Z, 40, (), 7)
    yield "k_center_greedy many", k_center_greedy, (Z, 40, np.arange(300))
    yield "herd", herd, (Z, 30, None, [1, 2])


def of_losses():
    """Yield (name, function, arguments) of every public loss."""
    torch.manual_seed(0)
    a, b, c = torch.randn(3, 12, 5)
    p, q = a.softmax(1), b.softmax(1)
    group = torch.arange(12) % 5
    maps = torch.rand(2, 3, 4, 8, 8).softmax(2)
    made = {
        "nt_xent": (a, b),
        "info_nce": (a, b, c),
        "normalized_mse": (a, b),
        "sinkhorn": (a,),
        "swapped_prediction": (torch.stack([a, b, c]), torch.stack([p, q])),
        "lloyd_groups": (a, 3),
        "group_discrimination": (a, b, 3),
        "clip_loss": (a, b, torch.tensor(1.0)),
        "unit_rows": (a,),
        "scan_loss": (a, b),
        "scan_consistency": (a, b),
        "scan_head_scores": (p[None], torch.arange(24).reshape(12, 2) % 12),
        "iic_loss": (p, q),
        "iic_segmentation_loss": (*maps, None, None, 1.0, 1),
        "student_assignment": (a, b[:3]),
        "sharpened_targets": (p,),
        "target_divergence": (p, q),
        "contrastive_clustering": (a, group, b[:5]),
        "entropy": (p,),
        "mean_entropy": (p,),
        "pseudo_label": (a, b, 0.1),
        "pseudo_targets": (a, 0.1),
        "self_adaptive_fairness": (a, q.max(1).values, p.mean(0), q.mean(0)),
        "confidence_cross_entropy": (a, b, 0.1),
        "sharpen": (p,),
        "guessed_labels": (torch.stack([a, b]), 0.5),
        "mixup": (a, torch.randperm(12), torch.rand(12)),
        "mixmatch_losses": (a, q, 4),
        "noisy_student_loss": (a[:4], group[:4], a[4:], q[4:]),
        "distillation": (a, b),
        "uslt_local_loss": (a, b, p[0], 1.0, 1.0),
        "uslt_global_loss": (a, b),
        "learning_loss": (a[:, 0], b[:, 0].abs()),
        "temporal_consistency": (a, b, c),
    }
    for name in losses.__all__:
        yield name, getattr(losses, name), made.get(name)


def cases(thorough=False):
    """Yield (name, function without arguments) of all there is to run."""
    for folder in (embedding, clustering, classification, selection):
        for name in folder.__all__:
            cls = getattr(folder, name)
            y = None if folder in (embedding, clustering) else Y
            if name == "StratifiedSelector":
                y = TRUTH
            if name == "CLIPTransformer":
                y = [["a nought", "a one"][k] for k in TRUTH]
            X = VECTORS if name in OF_VECTORS else IMAGES
            tried = name in TRIED or thorough
            yield name, lambda c=cls, X=X, y=y, t=tried: of_fit(c, X, y, t)
            for precision in PRECISIONS.get(name, ()):
                given = {"precision": precision}
                yield (
                    f"{name} {precision}",
                    lambda c=cls, X=X, y=y, g=given: of_fit(c, X, y, False, **g),
                )
            if name in SHOWN_LARGER:
                yield f"{name} 16", lambda c=cls, y=y: of_fit(c, LARGER, y, False)
    for name, given in VARIANTS.items():
        folders = (clustering, classification, selection)
        folder = next(f for f in folders if name.split()[0] in f.__all__)
        cls, y = getattr(folder, name.split()[0]), None if folder is clustering else Y
        own = {k: v() if callable(v) else v for k, v in given.items()}
        yield name, lambda c=cls, y=y, g=own: of_fit(c, IMAGES, y, False, **g)
    for name, policy in POLICIES.items():
        yield f"policy {name}", lambda p=policy: of_policy(p)
    for name, search, args in of_searches():
        yield f"search {name}", lambda f=search, a=args: of_search(f, *a)
    for name, loss, args in of_losses():
        yield f"loss {name}", lambda f=loss, a=args: of_loss(f, a)


def main(words):
    thorough = "--thorough" in words
    words = [word for word in words if not word.startswith("-")]
    for name, run in cases(thorough):
        if words and not any(word in name for word in words):
            continue
        found, start = {"name": name, "error": None}, time.process_time()
        try:
            found.update(run())
        except Exception:
            found["error"] = traceback.format_exc(limit=-4)
        found["seconds"] = round(time.process_time() - start, 1)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
