"""What every estimator does, written down, so that two states of the code compare."""

# python tests/tools/snapshot.py write OUT.json [--saved FOLDER] [--only NAME ...]
#                                               [--quick]
# python tests/tools/snapshot.py compare OLD.json NEW.json
# python tests/tools/snapshot.py load FOLDER
#
# write fits every public estimator a few steps, in many ways, and writes hashes of
# what comes out, and the texts of warnings and errors. compare prints what differs and
# exits with 1 where anything does. load reads models that another state saved (write
# --saved) and compares what they give with what they gave then.
#
# The package is that of the working directory, else of PYTHONPATH. The script uses
# public names only, so that it runs on any state of the package. The hashes are of
# bits: both states must be run on one machine, with the same libraries.

import argparse
import hashlib
import importlib
import inspect
import io
import json
import os
import pickle
import pkgutil
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import defaultdict
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SCIPY_ARRAY_API", "1")
if (Path.cwd() / "sklabel" / "__init__.py").exists():
    sys.path.insert(0, str(Path.cwd()))

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import sparse
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.utils import get_tags

import sklabel
from sklabel import (
    active_learning,
    classification,
    clustering,
    embedding,
    selection,
)

FOLDERS = embedding, clustering, classification, selection, active_learning
TMP = tempfile.gettempdir()  # replaced in main

# Settings in which every estimator learns something within a few steps.
COMMON = {
    "max_steps": 3,
    "batch_size": 16,
    "device": "cpu",
    "precision": "float32",
    "random_state": 0,
}


def settings(name):
    """Return the short settings of an estimator, newly built."""
    embedders = sklabel.embedding
    auto = embedders.AutoencoderTransformer
    simclr = embedders.SimCLRTransformer
    text = {"text_width": 16, "text_layers": 1, "text_heads": 2}
    return {
        "AutoencoderTransformer": {
            "n_components": 8,
            "filters": (4, 8),
            "hidden_sizes": (20, 30),
        },
        "BYOLTransformer": {"projection_hidden": 64, "projection_size": 16},
        "CLDTransformer": {"n_groups": 4, "projection_size": 16},
        "CLIPTransformer": {"projection_size": 16, **text},
        "MoCoTransformer": {"projection_size": 16, "bn_splits": 2},
        "PretrainedTransformer": {
            "backbone": "squeezenet1_1",
            "weights": None,
            "input_size": 32,
        },
        "SimCLRTransformer": {"projection_size": 16},
        "SwAVTransformer": {
            "n_prototypes": 30,
            "projection_hidden": 64,
            "projection_size": 16,
        },
        "DCECClusterer": {
            "n_clusters": 3,
            "n_init": 2,
            "update_interval": 2,
            "embedder": auto(
                4,
                filters=(4, 8),
                hidden_sizes=(20, 30),
                max_steps=2,
                batch_size=16,
                device="cpu",
            ),
        },
        "DeepClusterer": {"n_clusters": 3},
        "IICClusterer": {"n_clusters": 3, "n_sub_heads": 2, "n_repeats": 2},
        "IICSegmenter": {"n_clusters": 3, "half_side": 2},
        "SCANClusterer": {
            "n_clusters": 3,
            "n_neighbors": 5,
            "self_label_epochs": 1,
            "self_label_threshold": 0.3,
            "self_label_batch_size": 32,
            "embedder": simclr(max_steps=1, batch_size=16, device="cpu"),
        },
        "CCLClassifier": {
            "update_interval": 2,
            "embedder": auto(
                4,
                filters=(4, 8),
                hidden_sizes=(16, 32),
                max_steps=2,
                batch_size=16,
                device="cpu",
            ),
        },
        "CLIPClassifier": {"few_shot": "linear", "C": 1.0, "prompts": "{}"},
        "FixMatchClassifier": {"threshold": 0.3, "unlabeled_ratio": 2},
        "NoisyStudentClassifier": {"n_rounds": 1, "threshold": 0.0},
        "SimCLRv2Classifier": {
            "embedder": simclr(max_steps=1, batch_size=16, device="cpu"),
            "distill_epochs": 1,
            "distill_batch_size": 32,
        },
        "LearningLossSelector": {"width": 16},
        "TODSelector": {},
        "USLTSelector": {
            "n_heads": 2,
            "n_clusters": 4,
            "n_neighbors": 5,
            "embedder": simclr(max_steps=1, batch_size=16, device="cpu"),
        },
        "VAALSelector": {"width": 2, "n_components": 4},
        "BALDSelector": {"n_draws": 3},
        "CoreGCNSelector": {"n_steps": 5, "n_hidden": 8},
        "UncertainGCNSelector": {"n_steps": 5, "n_hidden": 8},
        "CoreSetSelector": {"time_limit": 5.0},
        "MMASelector": {"n_clusters": 3},
        "USLSelector": {"horizon_neighbors": 10},
        "ActiveLearningClassifier": {
            "n_rounds": 1,
            "n_samples": 9,
            "classifier": sklabel.classification.SupervisedClassifier(
                max_steps=2, device="cpu"
            ),
            "embedder": simclr(max_steps=1, batch_size=16, device="cpu"),
        },
    }.get(name, {})


def public_estimators():
    """Return every public estimator by name."""
    found = {}
    for folder in FOLDERS:
        names = getattr(folder, "__all__", None)
        if names is None:  # a plain module: its own classes
            names = [n for n, c in vars(folder).items() if own_class(c, folder)]
        for name in names:
            found[name] = getattr(folder, name)
    return found


def own_class(value, module):
    return (
        inspect.isclass(value)
        and issubclass(value, BaseEstimator)
        and not value.__name__.startswith("_")
        and value.__module__ == module.__name__
    )


def parameters_of(cls):
    return inspect.signature(cls).parameters


def make(cls, **given):
    """Return an estimator with short settings."""
    known = parameters_of(cls)
    chosen = {name: v for name, v in COMMON.items() if name in known}
    if "n_samples" in known:
        chosen["n_samples"] = 5
    chosen.update(settings(cls.__name__))
    chosen.update(given)
    return cls(**chosen)


# -- data


class Data:
    """The two sets of data: images and vectors of three classes, half labeled."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.truth = rng.permutation(np.arange(60) % 3)
        self.y = np.where(np.arange(60) < 30, self.truth, -1)
        rows, columns = np.mgrid[:12, :12]
        patterns = np.stack([rows % 4 < 2, columns % 6 < 3, (rows + columns) % 5 < 2])
        colors = np.array([[220, 60, 40], [40, 200, 80], [60, 80, 230]])
        noise = rng.integers(-40, 40, (60, 12, 12, 3))
        clean = patterns[self.truth][..., None] * colors[self.truth][:, None, None]
        self.images = np.clip(clean + noise + 20, 0, 255).astype(np.uint8)
        centers = rng.normal(size=(3, 8)) * 2
        noise = rng.normal(size=(60, 8))
        self.vectors = (centers[self.truth] + noise).astype(np.float32)
        self.weights = rng.uniform(0.5, 2.0, 60)
        self.captions = [f"a picture of kind {k}" for k in self.truth]

    def labels(self, cls):
        return self.truth if cls.__name__ == "StratifiedSelector" else self.y

    def paths(self, folder, broken=None):
        """Write the images; the file number ``broken`` cannot be read."""
        folder.mkdir(exist_ok=True)
        paths = []
        for i, image in enumerate(self.images):
            path = folder / f"{i:02d}.png"
            Image.fromarray(image).save(path)
            if i == broken:
                path.write_bytes(path.read_bytes()[:60])
            paths.append(str(path))
        return paths


# -- what is written down


def sha(data):
    return hashlib.sha256(data).hexdigest()[:12]


def plain(text):
    """Return a text without what differs from run to run, or tells a private place."""
    text = str(text)
    for folder in {TMP, os.path.realpath(TMP)}:
        text = text.replace(folder, "<tmp>")
    text = re.sub(r"0x[0-9a-fA-F]{6,}", "0x..", text)
    # where a private name lives is of no account
    text = re.sub(r"\bsklabel(?:\.\w+)*\._\w+(?:\.\w+)*?\.([A-Za-z]\w*)", r"\1", text)

    def ordered(match):  # the order of a set is that of hashes
        return "{" + ", ".join(sorted(match[1].split(", "))) + "}"

    return re.sub(r"\{([^{}]*)\}", ordered, text)


def describe(value, depth=0):
    """Return a short text that is the same for the same value, whatever it is."""
    if isinstance(value, np.generic):
        return f"{value.dtype}:{value!r}"
    if value is None or isinstance(value, (bool, int, float, complex)):
        return repr(value)
    if isinstance(value, str):
        return repr(plain(value))
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        return f"tensor {describe(tensor.numpy())}"
    if isinstance(value, np.ndarray):
        return describe_array(value)
    if isinstance(value, (pd.DataFrame, pd.Series)):
        names = list(getattr(value, "columns", [value.index.name]))
        return f"{type(value).__name__} {names} {describe(value.to_numpy())}"
    if sparse.issparse(value):
        dense = describe(value.toarray())
        return f"{type(value).__name__} {dense}"
    if isinstance(value, dict):
        parts = [f"{k!r}: {describe(v, depth + 1)}" for k, v in value.items()]
        return shorten("{" + "; ".join(parts) + "}")
    if isinstance(value, (list, tuple)):
        parts = ", ".join(describe(v, depth + 1) for v in value)
        return shorten(f"{type(value).__name__} of {len(value)} [{parts}]")
    if isinstance(value, (set, frozenset)):
        return shorten(f"set {sorted(describe(v) for v in value)}")
    if isinstance(value, torch.nn.Module):
        return f"module {whole(value)}"
    if isinstance(value, BaseEstimator) and depth < 4:
        fitted = {n: v for n, v in fitted_attributes(value).items() if n != "net_"}
        parts = [plain(repr(value))]
        parts += [f"{n}={describe(v, depth + 1)}" for n, v in sorted(fitted.items())]
        return shorten("; ".join(parts))
    if hasattr(value, "module_"):
        return f"net {whole(value.module_)}"
    if isinstance(value, type) or callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return f"{type(value).__name__} {plain(repr(value))}"


def describe_array(array):
    if array.dtype.kind == "O":
        parts = [describe(v) for v in array.ravel().tolist()]
        return f"object {array.shape} {sha(repr(parts).encode())} {shorten(str(parts))}"
    array = np.ascontiguousarray(array)
    text = f"{array.dtype} {array.shape} {sha(array.tobytes())}"
    if array.dtype.kind in "biuf" and array.size:
        wide = array.astype(np.float64).ravel()
        finite = wide[np.isfinite(wide)]
        mean = finite.mean() if finite.size else np.nan
        text += f" mean={mean:.7g} first={wide[0]:.7g}"
    return text


def shorten(text, limit=400):
    """Return a text of at most about ``limit`` characters, the rest as a hash."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - 40]}.. ({len(text)} characters, {sha(text.encode())})"


def whole(module):
    """Return one hash over the names and bytes of all weights."""
    digest = hashlib.sha256()
    state = module.state_dict()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(describe(state[name]).encode())
    return f"{len(state)} tensors {digest.hexdigest()[:12]}"


def fitted_attributes(estimator):
    """Return the public attributes whose names end in ``_``, by name."""
    names = {n for n in vars(estimator) if not n.startswith("_")}
    names |= {
        n
        for n in dir(type(estimator))
        if isinstance(inspect.getattr_static(type(estimator), n, None), property)
    }
    found = {}
    for name in sorted(names):
        if name.startswith("_") or not name.endswith("_"):
            continue
        try:
            found[name] = getattr(estimator, name)
        except Exception as error:  # a property of what was not trained
            found[name] = f"{type(error).__name__}: {error}"
    return found


def of_fit(estimator, weights=True):
    """Return what ``fit`` has left, as texts by name."""
    record = {}
    for name, value in fitted_attributes(estimator).items():
        if name == "net_":
            continue
        if name == "history_":
            value = [{k: v for k, v in e.items() if k != "seconds"} for e in value]
        record[f"attribute {name}"] = describe(value)
    others = set(vars(estimator)) - set(estimator.get_params(deep=False))
    record["attributes"] = " ".join(sorted(n for n in others if not n.startswith("_")))
    net = getattr(estimator, "net_", None)
    if net is not None:
        if weights:
            for name, tensor in net.module_.state_dict().items():
                record[f"weights {name}"] = describe(tensor)
        record["weights"] = whole(net.module_)
        record["history"] = of_history(net.history)
        record["training"] = str(net.module_.training)
    return record


def of_history(history):
    epochs = []
    for epoch in history:
        known = {k: v for k, v in epoch.items() if k not in ("dur", "batches")}
        batches = epoch.get("batches", [])
        epochs.append([sorted(known.items()), [sorted(b.items()) for b in batches]])
    keys = sorted({k for epoch in history for k in epoch})
    return f"{len(epochs)} epochs {keys} {sha(describe_all(epochs).encode())}"


def describe_all(value):
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(describe_all(v) for v in value) + "]"
    return describe(value)


METHODS = (
    "predict_proba",
    "predict",
    "transform",
    "score_samples",
    "inverse_transform",
    "encode_text",
    "similarity",
    "search",
    "spread_labels",
    "get_feature_names_out",
    "score",
)


def of_use(estimator, X, data, only=METHODS):
    """Return what every method gives, as texts by name."""
    record = {}
    for name in METHODS:
        if name not in only or not hasattr(estimator, name):
            continue
        try:
            given = arguments(estimator, name, X, data)
            record[f"method {name}"] = describe(getattr(estimator, name)(*given))
        except Exception as error:
            record[f"method {name}"] = told(error)
    return record


def arguments(estimator, name, X, data):
    if name == "inverse_transform":
        return (estimator.transform(X),)
    if name == "encode_text":
        return (["a red thing", "something blue"],)
    if name in ("similarity", "search"):
        return (["a red thing"], X)
    if name == "spread_labels":
        return (data.y, 3)
    if name == "get_feature_names_out":
        return ()
    if name == "score":
        return (X, data.truth)
    return (X,)


def told(error):
    return plain(f"{type(error).__name__}: {error}")


def case(run):
    """Return what ``run()`` gives, with its warnings, or its error."""
    record = {}
    torch.set_num_threads(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            record.update(run() or {})
        except Exception as error:
            record["error"] = told(error)
            if os.environ.get("SNAPSHOT_TRACE"):
                traceback.print_exc(file=sys.__stderr__)
    for text, count in count_of(caught).items():
        record[f"warning {text}"] = str(count)
    if torch.get_num_threads() != 1:
        record["threads"] = str(torch.get_num_threads())
    return record


def count_of(caught):
    counts = defaultdict(int)
    for w in caught:
        if issubclass(w.category, ResourceWarning):
            continue
        place = Path(w.filename)
        if place.name == Path(__file__).name:
            at = "at the caller"
        elif "sklabel" in place.parts[-4:]:
            at = "in sklabel"
        else:
            at = f"in {place.name}"
        counts[plain(f"{w.category.__name__} {at}: {w.message}")] += 1
    return counts


# -- the form of an estimator


def of_form(cls):
    signature = inspect.signature(cls)
    record = {}
    record["order"] = " ".join(signature.parameters)
    for name, p in signature.parameters.items():
        record[f"parameter {name}"] = f"{p.kind.name} {describe(p.default)}"
    methods = {n for n in dir(cls) if not n.startswith("_")}
    for name in sorted(methods):
        found = inspect.getattr_static(cls, name)
        try:
            function = getattr(cls, name)
        except AttributeError:  # available under conditions
            record[f"public {name}"] = "conditional"
            continue
        if callable(function):
            try:
                record[f"public {name}"] = of_signature(function)
            except (TypeError, ValueError):
                record[f"public {name}"] = "(?)"
        else:
            record[f"public {name}"] = type(found).__name__
    return record


def public_modules():
    """Return the public modules that hold no estimator, by name."""
    found = {"": sklabel}
    for module in pkgutil.iter_modules(sklabel.__path__):
        if not module.name.startswith("_"):
            found[module.name] = importlib.import_module(f"sklabel.{module.name}")
    return found


def of_module(module):
    """Return the signatures of the public names of a module."""
    names = getattr(module, "__all__", None)
    if names is None:
        own = module.__name__
        names = [n for n, v in vars(module).items() if owner(v) == own and n[0] != "_"]
    record = {}
    for name in sorted(names):
        value = getattr(module, name)
        if inspect.isclass(value) and issubclass(value, BaseEstimator):
            record[name] = "estimator"
        elif inspect.isclass(value):
            try:
                record[name] = str(of_form(value))
            except ValueError:
                record[name] = "class"
        elif callable(value):
            record[name] = of_signature(value)
        else:
            record[name] = type(value).__name__
    return {"public": record}


def owner(value):
    return getattr(value, "__module__", None) if callable(value) else None


def of_signature(function):
    arguments = [
        f"{p.name} {p.kind.name} {describe(p.default)}"
        for p in inspect.signature(function).parameters.values()
    ]
    return f"({', '.join(arguments)})"


def of_constraints(cls):
    constraints = getattr(cls, "_parameter_constraints", {})
    if not isinstance(constraints, dict):
        return {"all": describe(constraints)}
    return {
        name: str(sorted(map(of_constraint, listed)))
        if isinstance(listed, (list, tuple))
        else describe(listed)
        for name, listed in constraints.items()
    }


def of_constraint(constraint):
    name = type(constraint).__name__
    if constraint is None or isinstance(constraint, str):
        return repr(constraint)
    if constraint is callable:
        return "callable"
    if isinstance(constraint, type):
        return constraint.__qualname__
    if hasattr(constraint, "options"):
        return f"{name}({sorted(map(repr, constraint.options))})"
    if hasattr(constraint, "methods"):
        return f"{name}({sorted(constraint.methods)})"
    if name == "Interval":
        c = constraint
        return f"Interval({c.type.__name__}, {c.left}, {c.right}, {c.closed})"
    return plain(f"{name} {constraint}")


def of_tags(cls):
    def flat(value, prefix):
        if hasattr(value, "__dataclass_fields__"):
            parts = {}
            for name in value.__dataclass_fields__:
                parts.update(flat(getattr(value, name), f"{prefix}.{name}"))
            return parts
        return {prefix: describe(value)}

    record = flat(get_tags(make(cls)), "tags")
    record["repr"] = plain(repr(make(cls)))
    record["repr of defaults"] = plain(repr(cls()))
    return record


# -- fits


class Suite:
    """All cases of one estimator."""

    def __init__(self, name, cls, data, folder, saved, quick):
        self.name, self.cls, self.data, self.folder = name, cls, data, folder
        self.saved, self.quick = saved, quick
        self.record, self.y = {}, data.labels(cls)
        self.known = parameters_of(cls)
        fit = inspect.signature(cls.fit).parameters
        self.weighted = "sample_weight" in fit
        # what trains on images, and what takes vectors alone
        self.learner = "max_steps" in self.known
        takes_images = "max_steps" in self.known or "image_shape" in self.known
        takes_images = takes_images or name == "ActiveLearningClassifier"
        self.X = data.images if takes_images else data.vectors
        # where images would only take longer
        self.V = data.images if name in IMAGES_ONLY else data.vectors

    def run(self):
        self.record["signature"] = of_form(self.cls)
        self.record["constraints"] = case(lambda: of_constraints(self.cls))
        self.record["tags"] = case(lambda: of_tags(self.cls))
        self.add("fit images", lambda: self.fitted(self.data.images))
        self.add("fit vectors", lambda: self.fitted(self.data.vectors))
        if self.quick:
            return self.record
        self.options()
        self.errors()
        return self.record

    def add(self, kind, run):
        start = time.perf_counter()
        self.record[kind] = case(run)
        seconds = time.perf_counter() - start
        if seconds > 3:
            say(f"  {self.name}: {kind} took {seconds:.0f} s")

    def fitted(self, X, y="own", fit=None, names=True, **given):
        y = self.y if isinstance(y, str) else y
        estimator = make(self.cls, **given)
        estimator.fit(X, y, **(fit or {}))
        record = {**of_fit(estimator, names), **of_use(estimator, X, self.data)}
        changed = [
            n for n in given if estimator.get_params(deep=False)[n] is not given[n]
        ]
        if changed:
            record["parameters changed by fit"] = str(changed)
        return record

    def option(self, name, X=None, needs=(), **given):
        """Fit with other parameters, where the estimator has them all."""
        if all(n in self.known for n in (*needs, *(k for k in given if k not in FITS))):
            X = self.X if X is None else X
            self.add(f"option {name}", lambda: self.fitted(X, names=False, **given))

    # each option once
    def options(self):
        data, cls = self.data, self.cls
        images = self.X is data.images
        self.twice()
        if self.weighted:
            self.option("sample_weight", fit={"sample_weight": data.weights})
        self.option("calibration_size", calibration_size=0.4)
        self.option("calibration_size too small", calibration_size=0.1)
        self.option("class_weight", class_weight="balanced")
        self.option("class_weight of a dict", class_weight={0: 1.0, 1: 2.0, 2: 3.0})
        self.option("no labels", y=None)
        self.option("all labels", y=data.truth)
        names = np.array(["ant", "bee", "cat"], dtype=object)[data.truth]
        names[30:] = -1
        if not cls.__name__.endswith("Transformer"):
            self.option("names for labels", y=names)
        if images and "image_shape" in self.known:
            flat = data.images.reshape(60, -1)
            self.option("image_shape", flat, image_shape=(12, 12, 3))
            self.option("image_size", image_size=8)
            self.option("floats", (data.images / 255).astype(np.float32))
            self.option("channels first", data.images.transpose(0, 3, 1, 2).copy())
            self.option("grey", data.images[..., 0].copy())
            self.option("files", data.paths(self.folder / "good"))
            broken = data.paths(self.folder / "bad", broken=7)
            self.option("on_error skip", broken, on_error="skip", image_size=12)
            self.option("on_error raise", broken)
        if "checkpoint_dir" in self.known:
            self.add("option checkpoint_dir", self.checkpoints)
        if "backbone" in self.known and self.learner:
            self.option("backbone of an embedder", backbone=simclr(data.images))
            self.option(
                "backbone of a frozen embedder",
                backbone=FrozenEstimator(simclr(data.images)),
            )
            self.option("backbone of a module", data.vectors, backbone=small_module())
        self.embedders()
        self.classifiers()
        if self.name in BFLOAT:
            self.option("bfloat16", precision="bfloat16")
        if "net_params" in self.known and self.learner:
            self.option("net_params", self.V, net_params={"max_epochs": 1})
            self.option("net_params wrong", self.V, net_params={"nonsense": 1})
        if "max_epochs" in self.known:
            self.option("epochs", self.V, max_steps=None, max_epochs=2)
            # a scheduled optimizer over more than one epoch
            self.option("warmup", self.V, warmup_epochs=1, max_steps=8)
            self.add("option interrupted", self.interrupted)
        if "verbose" in self.known:
            self.add("option verbose", self.talking)
        self.add("option callbacks", self.watched)
        self.add("option verbs", self.verbs)
        self.variants()
        if self.name == "ActiveLearningClassifier":
            self.add("option person", self.asked)
        self.add("option frame", self.frame)
        self.add("option pickle", self.pickled)
        self.add("option saved", self.save)

    def twice(self):
        def run(X, **given):
            estimator = make(self.cls, **given)
            estimator.fit(X, self.y)
            first = describe(of_fit(estimator))
            estimator.fit(X, self.y)
            return {"first": first, **of_fit(estimator, False)}

        self.add("option fit twice", lambda: run(self.V))
        if "warm_start" in self.known:
            self.add("option warm_start", lambda: run(self.X, warm_start=True))

    def checkpoints(self):
        # the path is relative: a held embedder's name depends on it
        folder = Path(self.name) / "checkpoints"
        record = {}
        for i in range(2):
            estimator = make(self.cls, checkpoint_dir=str(folder)).fit(self.X, self.y)
            found = {**of_fit(estimator, False), **of_use(estimator, self.X, self.data)}
            record.update({f"fit {i} {k}": v for k, v in found.items()})
        return {**record, **of_checkpoints(folder)}

    def interrupted(self):
        """Break training off after an epoch, and go on from the checkpoint."""
        folder = Path(self.name) / "interrupted"
        X = self.V
        given = {"max_steps": 9, "checkpoint_dir": str(folder)}
        whole = make(self.cls, **{**given, "checkpoint_dir": None}).fit(X, self.y)
        record = {f"whole {k}": v for k, v in of_fit(whole, False).items()}
        estimator = make(self.cls, **given)
        watcher = Watcher(self.name)
        estimator.set_callbacks(watcher)
        try:
            estimator.fit(X, self.y)
            record["broken off"] = "fit returned"
        except KeyboardInterrupt:
            record["broken off"] = "KeyboardInterrupt"
        record.update({f"broken {k}": v for k, v in of_fit(estimator, False).items()})
        record["tasks"] = " ".join(watcher.tasks)
        record.update(of_checkpoints(folder))
        again = make(self.cls, **given).fit(X, self.y)
        record.update({f"again {k}": v for k, v in of_fit(again, False).items()})
        return record

    def watched(self):
        """Let a callback look on, which changes nothing."""
        estimator, watcher = make(self.cls), Watcher()
        X = self.V
        estimator.set_callbacks(watcher).fit(X, self.y)
        return {**of_fit(estimator, False), "tasks": " ".join(watcher.tasks)}

    def talking(self):
        """What verbose=1 prints: the words, in the order of their first use."""
        X = self.V
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            make(self.cls, verbose=1).fit(X, self.y)
        words = re.findall(r"[A-Za-z_]{2,}", plain(out.getvalue()))
        return {"words": " ".join(dict.fromkeys(words))}

    def verbs(self):
        """Fit and use at once, and seeds of other kinds."""
        X = self.V
        record = {}
        for name in ("fit_predict", "fit_transform", "fit_select"):
            if hasattr(self.cls, name):
                found = getattr(make(self.cls), name)(X, self.y)
                record[name] = describe(found)
        if "random_state" in self.known:
            rng = np.random.RandomState(3)
            np.random.seed(5)
            torch.manual_seed(5)
            fitted = make(self.cls, random_state=rng).fit(X, self.y)
            found = of_fit(fitted, False)
            record.update({f"RandomState {k}": v for k, v in found.items()})
            record["drawn after"] = str(rng.randint(2**31))
            record["global numbers"] = f"{np.random.random()} {torch.rand(1).item()}"
        return record

    def variants(self):
        """Fit once with each value that a list of words or a switch allows."""
        constraints = getattr(self.cls, "_parameter_constraints", {})
        for name, parameter in self.known.items():
            if name in SHARED and self.name not in FULL:
                continue
            if name in ("warm_start", "on_error", "precision", "max_steps", "verbose"):
                continue
            X = self.X if name in OF_IMAGES else self.V
            for value in choices(constraints.get(name, ()), parameter.default):
                if (name, value) == ("neighbor_method", "approximate"):
                    continue  # compiles for a minute
                self.add(
                    f"variant {name}={value!r}",
                    lambda g={name: value}, X=X: self.fitted(X, names=False, **g),
                )
        given = SPECIAL.get(self.name, lambda data: {})(self.data)
        for label, parameters in given.items():
            parameters = dict(parameters)
            X = parameters.pop("X", self.X)
            self.option(label, X, **parameters)

    def embedders(self):
        if "embedder" not in self.known:
            return
        data, images = self.data, self.data.images
        auto = make(sklabel.embedding.AutoencoderTransformer)
        self.option("embedder None", data.vectors, embedder=None)
        self.option("embedder of vectors", data.vectors, embedder=clone(auto))
        self.option("embedder autoencoder", embedder=clone(auto))
        self.option("embedder fitted", embedder=simclr(images))
        self.option("embedder frozen", embedder=FrozenEstimator(simclr(images)))
        self.option(
            "embedder frozen AE", embedder=FrozenEstimator(clone(auto).fit(images))
        )

    def classifiers(self):
        if "classifier" not in self.known:
            return
        data = self.data
        X, y = data.vectors, data.y
        linear = LogisticRegression(max_iter=50)
        forest = RandomForestClassifier(5, random_state=0)
        ours = make(sklabel.classification.SupervisedClassifier)
        self.option("classifier linear", X, classifier=linear)
        self.option("classifier forest", X, classifier=forest)
        self.option("classifier ours", X, classifier=ours)
        fitted = clone(linear).fit(X[y >= 0], y[y >= 0])
        self.option("classifier frozen", X, classifier=FrozenEstimator(fitted))
        trained = FrozenEstimator(clone(ours).fit(data.images, y))
        self.option("classifier ours, images", data.images, classifier=ours)
        self.option("classifier frozen, images", data.images, classifier=trained)

    def asked(self):
        """Run the loop by hand: begin, query, teach, attach."""
        data, record = self.data, {}
        loop = make(self.cls, classifier=LogisticRegression(max_iter=50))
        for name in ("query", "teach", "attach", "predict"):
            given = {"teach": ([0], [1]), "query": ()}.get(name, (data.vectors,))
            found = case(lambda n=name, g=given: getattr(loop, n)(*g))
            record[f"before begin {name}"] = str(found)
        loop.begin(data.vectors)
        for i in range(3):
            rows = loop.query()
            record[f"rows {i}"] = describe(rows)
            answers = data.truth[rows].astype(object)
            answers[0] = -1
            loop.teach(rows, answers)
            found = of_fit(loop)
            record.update({f"round {i} {k}": v for k, v in found.items()})
        wrong = {"too few": ([1, 2], [0]), "no row": ([99], [0]), "text": ([1], ["a"])}
        for label, given in wrong.items():
            record[f"wrong {label}"] = str(case(lambda g=given: loop.teach(*g) and {}))
        again = pickle.loads(pickle.dumps(loop))
        record["loaded query"] = str(case(lambda: {"rows": describe(again.query())}))
        again.attach(data.vectors)
        record["attached query"] = describe(again.query())
        return {**record, **of_use(again, data.vectors, data)}

    def frame(self):
        X = pd.DataFrame(self.data.vectors).rename(columns="x{}".format)
        estimator = make(self.cls)
        if hasattr(estimator, "set_output"):
            estimator.set_output(transform="pandas")
        estimator.fit(X, pd.Series(self.y))
        return {**of_fit(estimator, False), **of_use(estimator, X, self.data)}

    def pickled(self):
        estimator = make(self.cls).fit(self.X, self.y)
        again = pickle.loads(pickle.dumps(estimator))
        return {**of_fit(again, False), **of_use(again, self.X, self.data)}

    def save(self):
        if not hasattr(self.cls, "save"):
            return {}
        record = {}
        for kind, X in (("images", self.X), ("vectors", self.data.vectors)):
            if kind == "vectors" and self.X is X:
                continue
            folder = (self.saved or self.folder / "models") / f"{self.name}-{kind}"
            found = case(lambda X=X, folder=folder: self.saved_once(X, folder))
            record.update({f"{kind} {k}": v for k, v in found.items()})
        return record

    def saved_once(self, X, folder):
        estimator = make(self.cls).fit(X, self.y)
        estimator.save(folder)
        found = loaded(folder, X, self.data)
        (folder / "expected.json").write_text(json.dumps(found, indent=0))
        described = json.loads((folder / "estimator.json").read_text("utf-8"))
        described.pop("weights", None)
        form = shapes(described)
        return {**found, "file": shorten(str(form)), "files": file_names(folder)}

    # -- errors

    def errors(self):
        X, y = self.data.vectors[::3].copy(), self.y[::3].copy()
        if self.name in IMAGES_ONLY:
            X = self.data.images[::3].copy()
        for name in self.known:
            for label, bad in BAD.items():
                given = {name: bad()}
                self.add(
                    f"wrong {name}={label}", lambda g=given: self.accepted(X, y, **g)
                )
        fit = self.accepted
        nan = X.astype(float)
        nan[3] = np.nan
        self.add("wrong X with NaN", lambda: fit(nan, y))
        self.add("wrong X of one row", lambda: fit(X[:1], y[:1]))
        self.add("wrong X of no row", lambda: fit(X[:0], y[:0]))
        self.add("wrong X of one dimension", lambda: fit(X.reshape(-1), y))
        self.add("wrong X of words", lambda: fit([["a", "b"]] * 20, y))
        self.add("wrong X of missing files", lambda: fit(["no-such.png"] * 20, y))
        self.add("wrong X None", lambda: fit(None, y))
        self.add("wrong X sparse", lambda: fit(sparse.csr_matrix(self.data.vectors), y))
        self.add("wrong y of -1", lambda: fit(X, np.full(20, -1)))
        self.add("wrong y of one class", lambda: fit(X, np.zeros(20, int)))
        self.add("wrong y of another length", lambda: fit(X, y[:-1]))
        self.add("wrong y None", lambda: fit(X, None))
        self.add("wrong y continuous", lambda: fit(X, np.linspace(0, 1, 20)))
        self.add("wrong y of two dimensions", lambda: fit(X, np.stack([y, y], 1)))
        self.add("wrong y with NaN", lambda: fit(X, np.where(y < 0, np.nan, y)))
        if self.weighted:
            self.add("wrong weights", lambda: fit(X, y, {"sample_weight": [1.0]}))
            below = np.full(20, -1.0)
            self.add("wrong weights < 0", lambda: fit(X, y, {"sample_weight": below}))
        self.add("wrong use", lambda: self.misused(X, y))

    def accepted(self, X, y, fit=None, **given):
        make(self.cls, **given).fit(X, y, **(fit or {}))
        return {"accepted": "True"}

    def misused(self, X, y):
        unfitted, record = make(self.cls), {}
        for name, found in of_use(unfitted, X, self.data).items():
            record[f"unfitted {name}"] = found
        if hasattr(unfitted, "save"):
            record["unfitted save"] = str(
                case(lambda: unfitted.save(self.folder / "none"))
            )
        fitted = make(self.cls).fit(X, y)
        fewer = X[:, :-2]
        for label, other in (("fewer", fewer), ("NaN", X * np.nan), ("none", X[:0])):
            for name, found in of_use(fitted, other, self.data).items():
                record[f"{label} {name}"] = found
        return record


FITS = ("y", "fit", "names")
BFLOAT = {
    "AutoencoderTransformer",
    "MoCoTransformer",
    "SimCLRTransformer",
    "SCANClusterer",
    "FixMatchClassifier",
    "SupervisedClassifier",
    "TODSelector",
}
IMAGES_ONLY = {"IICSegmenter", "PretrainedTransformer"}
# these have the variants of the parameters that all share too, one of each role
FULL = {"SimCLRTransformer", "IICClusterer", "SupervisedClassifier", "TODSelector"}
SHARED = {"optimizer", "schedule", "lr_scaling", "backbone"}
OF_IMAGES = {
    "augment",
    "weak_augment",
    "strong_augment",
    "small_augment",
    "sobel",
    "norm_head",
    "pooling",
}
BAD = {"object()": object, "-1": lambda: -1, "'nonsense'": lambda: "nonsense"}


def special_clip(data):
    captions = np.array(data.captions, dtype=object)
    lists = [[c, c.upper()] for c in data.captions]
    some = captions.copy()
    some[40:] = -1
    return {
        "captions": {"y": captions},
        "captions, lists": {"y": lists, "X": data.vectors},
        "captions, some": {"y": some, "X": data.vectors},
        "frozen": {"y": captions, "X": data.vectors, "frozen": "image"},
        "captions, empty": {"y": [""] * 60, "X": data.vectors},
        "captions, numbers": {"y": list(range(60)), "X": data.vectors},
        "heads": {"y": captions, "X": data.vectors, "text_heads": 3},
    }


def special_clip_classifier(data):
    names = ["ant", "bee", "cat"]
    towers = make(sklabel.embedding.CLIPTransformer).fit(data.vectors, data.captions)
    held = FrozenEstimator(towers)
    found = {}
    for few_shot in ("zero_shot", "linear", "fine_tune", "adapter"):
        found[f"{few_shot} of names"] = {
            "X": data.vectors,
            "class_names": names,
            "embedder": held,
            "few_shot": few_shot,
        }
    found["zero-shot without y"] = {
        "X": data.vectors,
        "class_names": names,
        "embedder": held,
        "few_shot": "zero_shot",
        "y": None,
    }
    vectors = {"X": data.vectors, "embedder": held}
    found["one name"] = {**vectors, "class_names": ["ant"]}
    found["a name twice"] = {**vectors, "class_names": ["ant", "ant", "bee"]}
    found["names by label"] = {**vectors, "class_names": dict(enumerate(names))}
    found["no place for a name"] = {**vectors, "class_names": names, "prompts": "a"}
    found["C auto"] = {**vectors, "C": "auto"}
    found["logit_scale"] = {**vectors, "logit_scale": 10.0}
    return found


def of_vectors(**cases):
    """Return what gives each case the vectors for X."""
    return lambda data: {
        f"{name} {i}": {"X": data.vectors, **given}
        for name, listed in cases.items()
        for i, given in enumerate(listed)
    }


# cases of one estimator: parameters, and y and X where they are other ones
SPECIAL = {
    "CLIPTransformer": special_clip,
    "CLIPClassifier": special_clip_classifier,
    "AutoencoderTransformer": of_vectors(sizes=[{"hidden_sizes": ()}]),
    "BYOLTransformer": of_vectors(augment=[{"augment": (None, None, None)}]),
    "MoCoTransformer": of_vectors(queue=[{"queue_size": 32}, {"queue_size": 7}]),
    "SwAVTransformer": of_vectors(
        queue=[{"queue_size": 32, "queue_start": 0}, {"n_small_crops": 2}],
        frozen=[{"frozen_epochs": 0}],
    ),
    "DCECClusterer": of_vectors(
        weights=[{"reconstruction_weight": 0.0}, {"tol": 1.0}],
        many=[{"n_clusters": 61}],
    ),
    "DeepClusterer": of_vectors(
        training=[
            {"n_training_clusters": 6},
            {"n_training_clusters": 2},
            {"n_components": 3},
        ],
        many=[{"n_clusters": 61}],
    ),
    "IICClusterer": of_vectors(
        heads=[
            {"n_overclusters": 6},
            {"n_overclusters": 6, "max_steps": None, "max_epochs": 2},
            {"n_restarts": 1},
        ],
        many=[{"n_clusters": 61}],
    ),
    "IICSegmenter": lambda data: {
        "overclusters": {"n_overclusters": 5},
        "overclusters, epochs": {
            "n_overclusters": 5,
            "max_steps": None,
            "max_epochs": 2,
        },
        "half_side": {"half_side": 12},
        "moved": {"rotate": 10.0, "zoom": 0.1, "flip": 0.0},
        "vectors as images": {
            "X": data.images[..., 0].reshape(60, -1),
            "image_shape": (12, 12),
        },
    },
    "SCANClusterer": of_vectors(
        prior=[
            {"prior": [0.5, 0.3, 0.2]},
            {"prior": [1.0]},
            {"prior": [-1.0, 1.0, 1.0]},
        ],
        steps=[
            {"self_label_epochs": 0},
            {"n_heads": 3},
            {"self_label_epochs": 2, "self_label_threshold": 0.0},
        ],
        many=[{"n_clusters": 61}, {"n_neighbors": 100}],
    ),
    "CCLClassifier": of_vectors(
        weights=[{"reconstruction_weight": 0.0}, {"cluster_weight": 0.0}],
    ),
    "FixMatchClassifier": of_vectors(
        weights=[{"unlabeled_weight": 0.0}, {"unlabeled_ratio": 0}, {"threshold": 1.0}],
    ),
    "MixMatchClassifier": of_vectors(
        weights=[
            {"n_augmentations": 1},
            {"alpha": 0.0},
            {"unlabeled_ratio": 2},
            {"ramp_up": 0.0},
        ],
    ),
    "ReMixMatchClassifier": of_vectors(
        weights=[
            {"n_augmentations": 1},
            {"alpha": 0.0},
            {"unlabeled_ratio": 2},
            {"ramp_up": 0.0},
        ],
    ),
    "NoisyStudentClassifier": of_vectors(
        rounds=[
            {"n_rounds": 2},
            {"n_rounds": 0},
            {"rows_per_class": 5},
            {"n_rounds": 2, "student_backbone": ["auto"]},
        ],
        noise=[{"dropout": 0.0, "stochastic_depth": 0.0}, {"threshold": 0.9}],
    ),
    "SimCLRv2Classifier": of_vectors(
        stages=[{"distill_epochs": 0}, {"alpha": 0.5}, {"head_layer": 0}],
        wrong=[{"head_layer": 9}],
    ),
    "LearningLossSelector": lambda data: {
        "layers": {"layers": ["nonsense"]},
        "candidates": {"n_candidates": 10},
        "late": {"detach_after": 0.0},
    },
    "TODSelector": of_vectors(
        rows=[{"n_candidates": 10}, {"unlabeled_ratio": 0}, {"n_samples": 31}],
        warm=[{"warm_start": True, "n_samples": 0.5}],
    ),
    "USLTSelector": of_vectors(
        heads=[{"head_used": 5}, {"head_used": 1}, {"reassign_interval": 1}],
        rows=[{"n_samples": 0.2}, {"n_samples": None}, {"n_clusters": None}],
        many=[{"n_clusters": 61}],
    ),
    "VAALSelector": of_vectors(rows=[{"n_samples": 0.5}, {"vae_steps": 1}]),
    "BADGESelector": of_vectors(rows=[{"n_samples": 31}, {"n_samples": None}]),
    "BALDSelector": of_vectors(
        rows=[
            {"n_samples": 0.2},
            {"batch": True},
            {"batch": True, "measure": "mean_std"},
            {"n_candidates": 10},
        ],
    ),
    "CoreGCNSelector": of_vectors(rows=[{"n_candidates": 10}, {"lr": 1e6}]),
    "UncertainGCNSelector": of_vectors(rows=[{"n_candidates": 10}, {"lr": 1e6}]),
    "CoreSetSelector": of_vectors(
        rows=[{"n_samples": 0.2}, {"robust": True, "outlier_share": 0.1}],
    ),
    "MMASelector": of_vectors(
        rows=[{"n_samples": 0.2}, {"diversity": "kmeans"}, {"measure": "nonsense"}],
    ),
    "RandomSelector": of_vectors(rows=[{"n_samples": 0.2}, {"n_samples": None}]),
    "StratifiedSelector": of_vectors(rows=[{"n_samples": 0.2}, {"n_samples": 60}]),
    "USLSelector": of_vectors(
        rows=[
            {"n_samples": 0.2},
            {"n_samples": 31},
            {"n_neighbors": 5},
            {"n_neighbors": 100},
            {"n_clusters": 7},
            {"n_clusters": 2},
        ],
        clusters=[
            {"fit": {"clusters": np.arange(60) % 6}},
            {"fit": {"clusters": [1, 2]}},
        ],
    ),
    "UncertaintySelector": of_vectors(rows=[{"n_samples": 0.2}, {"n_samples": 31}]),
    "ActiveLearningClassifier": lambda data: {
        "vectors": {"X": data.vectors, "y": data.truth},
        "linear": {
            "X": data.vectors,
            "y": data.truth,
            "classifier": LogisticRegression(max_iter=50),
        },
        "linear warm": {
            "X": data.vectors,
            "y": data.truth,
            "classifier": LogisticRegression(max_iter=50),
            "warm_start": True,
        },
        "warm": {"X": data.vectors, "y": data.truth, "warm_start": True},
        "oracle": {
            "X": data.vectors,
            "y": None,
            "oracle": lambda rows: data.truth[rows],
        },
        "oracle of another length": {
            "X": data.vectors,
            "y": None,
            "oracle": lambda rows: data.truth[rows][1:],
        },
        "selector": {
            "X": data.vectors,
            "y": data.truth,
            "selector": sklabel.selection.MMASelector(n_clusters=3),
            "initial_selector": sklabel.selection.RandomSelector(),
            "n_initial": 12,
            "n_rounds": 3,
        },
    },
}


class Watcher:
    """A callback of scikit-learn that notes the tasks, or breaks training off."""

    max_propagation_depth = None

    def __init__(self, interrupt=None):
        self.interrupt, self.tasks = interrupt, []

    def setup(self, estimator, context):
        self.tasks.append(f"setup:{type(estimator).__name__}")

    def teardown(self, estimator, context):
        self.tasks.append(f"teardown:{type(estimator).__name__}")

    def on_fit_task_begin(self, estimator, context):
        self.tasks.append(f"begin:{context.task_name}")

    def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator):
        told = "" if fitted_estimator is None else "+"
        self.tasks.append(f"end:{context.estimator_name}:{context.task_name}{told}")
        if context.task_name == "epoch" and context.estimator_name == self.interrupt:
            self.interrupt = None
            raise KeyboardInterrupt
        return False


def choices(constraints, default):
    """Return the values of words and switches but for the default."""
    found = []
    for constraint in constraints:
        if isinstance(constraint, str) and constraint == "boolean":
            found += [True, False]
        elif constraint is None and default is not None:
            found.append(None)
        elif hasattr(constraint, "options"):
            found += sorted(constraint.options, key=str)
    return [v for v in found if type(v) is not type(default) or v != default]


def of_checkpoints(folder):
    """Return the names of checkpoint files and of what stands in them."""
    record = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        try:
            state = torch.load(path, weights_only=True)
            record[f"file {name}"] = " ".join(sorted(map(str, state)))
        except Exception as error:
            record[f"file {name}"] = told(error)[:200]
    return record


def small_module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU())


_KEPT = {}


def simclr(images):
    """Return a fitted embedder of images, the same for all."""
    if "simclr" not in _KEPT:
        _KEPT["simclr"] = make(sklabel.embedding.SimCLRTransformer).fit(images)
    return _KEPT["simclr"]


def loaded(folder, X, data):
    estimator = sklabel.load(folder)
    found = {**of_fit(estimator), **of_use(estimator, X, data)}
    found["repr"] = plain(repr(estimator))
    return found


def shapes(value):
    """Return the form of a JSON file, without its numbers."""
    if isinstance(value, dict):
        return {k: shapes(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shapes(v) for v in value]
    return value if isinstance(value, str) else type(value).__name__


def file_names(folder):
    return " ".join(sorted(p.name for p in folder.iterdir()))


# -- commands


def write(out, saved=None, only=None, quick=False):
    estimators, modules = public_estimators(), public_modules()
    unknown = set(only or ()) - set(estimators)
    if unknown:
        sys.exit(f"no such estimator: {', '.join(sorted(unknown))}")
    meta = {
        "package": str(Path(sklabel.__file__).parent),
        "estimators": [*sorted(estimators), *(f"module {n}" for n in modules)],
        "partial": bool(only) or quick,
    }
    listed = {} if only else {f"module {n}": of_module(m) for n, m in modules.items()}
    result = {"meta": meta, "estimators": listed}
    say(f"sklabel of {meta['package']}")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        global TMP
        TMP = folder
        os.chdir(folder)
        data = Data()
        for name in only or estimators:
            begun = time.perf_counter()
            place = Path(folder) / name
            place.mkdir()
            suite = Suite(name, estimators[name], data, place, saved, quick)
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                result["estimators"][name] = suite.run()
            n_cases = len(suite.record)
            say(f"{name:26} {n_cases:4} cases {time.perf_counter() - begun:6.1f} s")
        os.chdir("/")
    out.write_text(json.dumps(result, indent=1))
    say(f"{time.perf_counter() - start:.0f} s; written to {out}")


def say(text):
    print(text, file=sys.__stderr__, flush=True)


def compare(old, new):
    """Print what differs; return how many cases do."""
    old, new = (json.loads(p.read_text()) for p in (old, new))
    partial = old["meta"]["partial"] or new["meta"]["partial"]
    count = 0
    names = sorted({*old["meta"]["estimators"], *new["meta"]["estimators"]})
    for name in names:
        sides = [side["estimators"].get(name) for side in (old, new)]
        if None in sides:
            missing = [side["meta"]["estimators"] for side in (old, new)]
            if not all(name in listed for listed in missing):
                print(f"== {name}: only in {'NEW' if sides[0] is None else 'OLD'}")
                count += 1
            elif not partial:
                print(f"== {name}: not run")
                count += 1
            continue
        places = {}  # a difference: the cases in which it stands
        for kind in dict.fromkeys([*sides[0], *sides[1]]):
            if kind not in sides[0] or kind not in sides[1]:
                if not partial:
                    line = f"    only in {'NEW' if kind in sides[1] else 'OLD'}"
                    places.setdefault(line, []).append(kind)
                continue
            for line in differences(sides[0][kind], sides[1][kind]):
                places.setdefault(line, []).append(kind)
        if places:
            print(f"== {name}", *grouped(places), sep="\n")
            count += 1
    ran = [n for n in names if n in old["estimators"] and n in new["estimators"]]
    print(f"{count} of {len(ran)} estimators differ.")
    return count


def grouped(places):
    """Return the differences, those of the same cases under one line of names."""
    groups = {}
    for line, kinds in places.items():
        groups.setdefault(tuple(kinds), []).append(line)
    for kinds, lines in groups.items():
        more = f"; and {len(kinds) - 6} more" if len(kinds) > 6 else ""
        yield f"  {'; '.join(kinds[:6])}{more}"
        yield from lines


def differences(old, new):
    """Return lines on what differs between two records."""
    lines = []
    gone = {k: v for k, v in old.items() if k not in new}
    added = {k: v for k, v in new.items() if k not in old}
    for key, value in list(gone.items()):
        same = [k for k, v in added.items() if v == value and v.count(" ") > 1]
        if same and key.split()[0] == same[0].split()[0] == "weights":
            lines.append(f"    renamed, same value: {key} -> {same[0]}")
            gone.pop(key)
            added.pop(same[0])
    lines += [f"    gone: {k} = {v}" for k, v in gone.items()]
    lines += [f"    new: {k} = {v}" for k, v in added.items()]
    for key in old.keys() & new.keys():
        if old[key] != new[key]:
            lines.append(f"    {key}\n      - {old[key]}\n      + {new[key]}")
    return sorted(lines)


def load(folder):
    """Load what another state saved; return how many give something else."""
    data, count = Data(), 0
    models = sorted(p.parent for p in folder.rglob("expected.json"))
    for model in models:
        X = data.vectors if model.name.endswith("vectors") else data.images
        expected = json.loads((model / "expected.json").read_text())
        with redirect_stderr(io.StringIO()):
            found = case(lambda m=model, X=X: loaded(m, X, data))
        found = {k: v for k, v in found.items() if not k.startswith("warning")}
        lines = differences(expected, found)
        if lines:
            print(f"== {model.name}", *lines, sep="\n")
            count += 1
    print(f"{count} of {len(models)} saved models differ.")
    return count if models else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writer = commands.add_parser("write")
    writer.add_argument("out", type=lambda p: Path(p).resolve())
    writer.add_argument("--saved", type=lambda p: Path(p).resolve())
    writer.add_argument("--only", nargs="+")
    writer.add_argument("--quick", action="store_true")
    comparer = commands.add_parser("compare")
    comparer.add_argument("old", type=Path)
    comparer.add_argument("new", type=Path)
    loader = commands.add_parser("load")
    loader.add_argument("folder", type=lambda p: Path(p).resolve())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_warn_always(True)
    if arguments.command == "write":
        write(arguments.out, arguments.saved, arguments.only, arguments.quick)
    elif arguments.command == "compare":
        sys.exit(bool(compare(arguments.old, arguments.new)))
    else:
        sys.exit(bool(load(arguments.folder)))


def quietly(run):
    """Run; a reader of the output that has seen enough, such as head, is no error."""
    try:
        run()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    quietly(main)
