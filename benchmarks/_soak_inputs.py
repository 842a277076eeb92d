"""What `soak.py` gives: the fits that it kills, and wrong input of many kinds."""

import contextlib
import functools
import inspect
import math
import signal
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.base import clone

import sklabel
from sklabel import (
    augment,
    datasets,
    inspection,
    metrics,
    model_selection,
    modules,
    neighbors,
    text,
)
from sklabel.active_learning import ActiveLearningClassifier

MINE = "path,label\n" + "".join(
    f"{k:02d}.png,{('dark', 'light')[k % 2]}\n" for k in range(8)
)


class TooLong(Exception):
    """A call did not end."""


def _end(number, frame):
    raise TooLong


signal.signal(signal.SIGALRM, _end)


@functools.cache
def vectors(n=60):
    """Return X (n, 6) in three groups, and y with one label in two."""
    rng = np.random.default_rng(0)
    groups = np.arange(n) % 3
    X = (np.eye(6)[groups] * 4 + rng.normal(size=(n, 6))).astype(np.float32)
    return X, np.where(np.arange(n) % 2, groups, -1)


def make_photographs(folder):
    """Write 16 small images into ``photos``, and ``mine.csv`` with labels of eight."""
    photos = Path(folder, "photos")
    photos.mkdir()
    rng = np.random.default_rng(0)
    for k in range(16):
        pixels = rng.integers(0, 100, (16, 16, 3)) + (k % 2) * 120
        Image.fromarray(pixels.astype(np.uint8)).save(photos / f"{k:02d}.png")
    Path(folder, "mine.csv").write_text(MINE)


# -- estimators

_SHORT = {
    "hidden_sizes": (20, 30),
    "max_epochs": 2,
    "n_clusters": 3,
    "n_prototypes": 30,
    "n_samples": 5,
    "projection_hidden": 16,
    "self_label_epochs": 1,
    "text_heads": 2,
    "text_layers": 1,
    "text_width": 16,
    "vae_steps": 1,
}
_WITHOUT_VECTORS = {  # they need images, texts or another estimator
    "CLIPClassifier",
    "CLIPTransformer",
    "IICSegmenter",
    "PretrainedTransformer",
}


def make(cls, **parameters):
    """Return an estimator that trains for seconds, on vectors."""
    names = cls().get_params(deep=False)
    given = {k: v for k, v in _SHORT.items() if k in names}
    if "random_state" in names:
        given["random_state"] = 0
    return clone(cls(**{**given, **parameters}))


def estimators():
    """Yield the classes of all public estimators."""
    folders = (
        sklabel.embedding,
        sklabel.clustering,
        sklabel.classification,
        sklabel.selection,
    )
    for folder in folders:
        for name in folder.__all__:
            found = getattr(folder, name)
            if inspect.isclass(found) and hasattr(found, "get_params"):
                yield found
    yield ActiveLearningClassifier


def fits():
    """Yield functions that make an estimator whose fit leaves checkpoints."""
    for cls in estimators():
        parameters = cls().get_params(deep=False)
        if "checkpoint_dir" in parameters and cls.__name__ not in _WITHOUT_VECTORS:
            yield functools.partial(make, cls)


# -- wrong input to estimators: kind -> X, y or value


def _with(X, value):
    X = X.astype(float).copy()
    X[3, 2] = value
    return X


def wrong_X(X):
    """Return {kind: X} that no estimator for vectors can learn from."""
    return {
        "NaN": _with(X, np.nan),
        "infinite": _with(X, np.inf),
        "beyond float32": _with(X, 1e300),
        "None": None,
        "empty list": [],
        "no rows": X[:0],
        "no columns": X[:, :0],
        "one number": 3.0,
        "a text": "photos",
        "a folder": Path("photos"),
        "missing files": ["a.png", "b.png"],
        "one dimension": X[:, 0],
        "five dimensions": X.reshape(len(X), 1, 1, 2, 3),
        "rows of several lengths": [[1.0, 2.0], [1.0], [2.0, 3.0]],
        "text cells": X.astype(str)[:, :2].tolist()[:-1] + [["a", "b"]],
        "objects": np.array([[object()] * 6] * len(X)),
        "complex": X * 1j,
        "a set": set(X[:, 0]),
        "a mapping": {"a": X},
        "a generator": (row for row in X),
        "a function": len,
        "a module": torch.nn.Linear(6, 2),
        "a class": np.ndarray,
        "a loader": torch.utils.data.DataLoader(torch.zeros(4, 6)),
        "sparse": _sparse(X),
        "bytes": b"\x00" * 24,
        "dates": np.full((len(X), 2), "2020-01-01", "datetime64[D]").tolist(),
        "missing cells": [[1.0, None]] * len(X),
        "a meta tensor": torch.zeros(6, 6, device="meta"),
        "NaN tensor": torch.full((6, 6), math.nan),
        "masked": np.ma.masked_greater(X, 0.5),
        "structured": np.zeros(len(X), [("a", float), ("b", float)]),
    }


def _sparse(X):
    from scipy.sparse import csr_array

    return csr_array(X)


def wrong_y(n):
    """Return {kind: y} for n rows."""
    y = np.arange(n) % 3
    return {
        "no label": np.full(n, -1),
        "all None": np.full(n, None),
        "one class": np.where(y, -1, 0),
        "too short": y[:-1],
        "too long": np.r_[y, 0],
        "None": None,
        "a number": 3,
        "a text": "cat",
        "fractions": y + 0.5,
        "infinite": np.where(y, np.inf, 0.0),
        "two columns": np.stack([y, y], 1),
        "one-hot": np.eye(3)[y],
        "text that stands for missing": np.where(y, "cat", "nan").astype(object),
        "NA": np.where(y, "cat", "NA").astype(object),
        "question marks": np.where(y, "cat", "?").astype(object),
        "text -1": np.where(y, "cat", "-1").astype(object),
        "texts and numbers": [("cat", 3, 3.5)[k] for k in y],
        "lists": np.array([[k] * 2 for k in y]).tolist(),
        "mappings": [{"label": k} for k in y],
        "a mapping": dict(enumerate(y)),
        "a set": {0, 1},
        "a generator": (k for k in y),
        "complex": y * 1j,
        "objects": [object() for _ in y],
        "look alike": np.array(["Cat", "cat", "dog"], object)[y],
        "spaces": np.array(["cat ", "cat", "dog"], object)[y],
    }


def wrong_weight(n):
    """Return {kind: sample_weight} for n rows."""
    ones = np.ones(n)
    return {
        "negative": -ones,
        "one negative": np.r_[ones[1:], -1],
        "NaN": ones * np.nan,
        "infinite": np.r_[ones[1:], np.inf],
        "zero": ones * 0,
        "too short": ones[1:],
        "two columns": np.ones((n, 2)),
        "text": ["a"] * n,
        "a text": "balanced",
        "complex": ones * 1j,
        "objects": [object()] * n,
    }


class _Odd:
    """An object that is nothing."""

    def __repr__(self):
        return "<odd>"


VALUES = {
    "an object": _Odd(),
    "an unknown text": "no such option",
    "an empty text": "",
    "a negative number": -1,
    "a large negative number": -1e30,
    "NaN": math.nan,
    "infinite": math.inf,
    "a fraction": 2.5,
    "zero": 0,
    "an empty list": [],
    "a list of texts": ["a"],
    "a mapping": {"no_such_setting": 1},
    "bytes": b"a",
    "a complex number": 1j,
    "a class": dict,
    "an array": np.zeros(3),
    "a pair of negatives": (-1, -1),
    "None": None,
    "True": True,
    "a huge number": 10**400,
}


def _refused(constraints, value):
    """Whether a value meets none of the constraints of a parameter."""
    from sklearn.utils._param_validation import make_constraint

    return not any(make_constraint(c).is_satisfied_by(value) for c in constraints)


def calls():
    """Yield part, kind, what is called, and the call; each must be refused."""
    X, y = vectors()
    for cls in estimators():
        name = cls.__name__
        given = (X, y) if name != "ActiveLearningClassifier" else (X, np.abs(y))
        if name not in _WITHOUT_VECTORS:
            yield from _wrong_data(cls, X, y)
        constraints = getattr(cls, "_parameter_constraints", {})
        for parameter in cls().get_params(deep=False):
            for kind, value in VALUES.items():
                allowed = constraints.get(parameter)
                if allowed is None or not _refused(allowed, value):
                    continue
                yield (
                    "parameters",
                    kind,
                    f"{name}({parameter}=)",
                    functools.partial(_fit, cls, {parameter: value}, *given),
                )
    yield from _wrong_arguments()


def _fit(cls, parameters, *given, **weights):
    return make(cls, **parameters).fit(*given, **weights)


@functools.cache
def _fitted(cls):
    return make(cls).fit(*vectors())


def _wrong_data(cls, X, y):
    name = cls.__name__
    for kind, wrong in wrong_X(X).items():
        length = len(X)
        with contextlib.suppress(TypeError):
            length = len(wrong)
        labels = (np.arange(length) % 3) if length else y
        call = functools.partial(_fit, cls, {}, wrong, labels)
        yield "X of fit", kind, f"{name}.fit", call
    classifies = cls.__name__.endswith("Classifier")
    if classifies:
        for kind, wrong in wrong_y(len(X)).items():
            yield "y", kind, f"{name}.fit", functools.partial(_fit, cls, {}, X, wrong)
    if classifies and "sample_weight" in inspect.signature(cls.fit).parameters:
        for kind, wrong in wrong_weight(len(X)).items():
            call = functools.partial(_fit, cls, {}, X, y, sample_weight=wrong)
            yield "sample_weight", kind, f"{name}.fit", call
    for verb in ("predict", "predict_proba", "transform"):
        if not hasattr(cls, verb) or name == "ActiveLearningClassifier":
            continue
        if name.endswith("Selector"):
            continue
        call = functools.partial(lambda c, v: getattr(make(c), v)(X), cls, verb)
        yield "X of predict", "before fit", f"{name}.{verb}", call
        wrongs = {"other columns": X[:, :4], "one row": X[0], **wrong_X(X)}
        for kind, wrong in wrongs.items():
            if kind == "a generator":
                wrong = (row for row in X)
            call = functools.partial(
                lambda c, v, w: getattr(_fitted(c), v)(w), cls, verb, wrong
            )
            yield "X of predict", kind, f"{name}.{verb}", call


# -- functions: a call that is right, and the values that are wrong in it

# not arrays and tensors: those that building blocks take are torch's to refuse
_NUMBERS = ("an object", "an unknown text", "a negative number", "NaN")
_TEXTS = ("an object", "an unknown text", "an empty text", "a negative number")
_NOTHING = ("an object", "None")


def _functions():
    """Yield a function, its right arguments, and {name: kinds that are wrong}."""
    X, _ = vectors()
    truth = np.arange(60) % 3
    sure = np.ones(60)
    rows = {"Z": X, "n_neighbors": 3}
    numbers = dict.fromkeys(("n_neighbors", "block_size"), _NUMBERS)
    texts = dict.fromkeys(("metric", "method"), _TEXTS)
    yield neighbors.kneighbors, rows, {**numbers, **texts, "Z": _NOTHING}
    yield neighbors.mine_neighbors, rows, {**numbers, "Z": _NOTHING}
    labels = {"labels_true": truth, "labels_pred": truth}
    wrong = ("an object", "None", "a fraction")
    yield metrics.clustering_accuracy, labels, dict.fromkeys(labels, wrong)
    known = {"Z_train": X, "y_train": truth, "Z_test": X, "y_test": truth}
    wrong = {"Z_train": _NOTHING, "k": _NUMBERS, "temperature": _NUMBERS}
    yield metrics.knn_accuracy, known, wrong
    wrong = ("an object", "None", "an unknown text", "a negative number")
    yield datasets.load_image_folder, None, {"folder": wrong}
    yield sklabel.load, None, {"folder": wrong}
    sizes = {"in_features": 6, "hidden_features": 5, "out_features": 4}
    yield modules.mlp, sizes, dict.fromkeys(sizes, _NUMBERS)
    wrong = dict.fromkeys(("flip", "jitter", "grayscale", "blur"), _NUMBERS)
    yield augment.Contrastive, {}, wrong
    wrong = dict.fromkeys(("n_ops", "probability", "cutout"), _NUMBERS)
    yield augment.RandAugment, {}, wrong
    yield augment.CTAugment, {}, dict.fromkeys(("threshold", "decay"), _NUMBERS)
    yield augment.VectorNoise, {}, {"noise": _NUMBERS}
    yield text.ByteTokenizer, {"context_length": 16}, {"context_length": _NUMBERS}
    yield model_selection.LabeledKFold, {}, {"n_splits": _NUMBERS}
    yield model_selection.labeled_scorer, {"scoring": "accuracy"}, {"scoring": _TEXTS}
    drawn = {"X": np.zeros((60, 4, 4)), "labels": truth, "confidence": sure}
    draw = inspection.ClusterDisplay.from_predictions
    yield draw, drawn, dict.fromkeys(("X", "labels", "confidence"), _NOTHING)
    found = {"X": X, "y": truth}
    wrong = {"n_folds": _NUMBERS, "X": _NOTHING, "y": ("an object", "None")}
    yield inspection.suspicious_labels, found, wrong
    wrong = {"threshold": _NUMBERS, "X": _NOTHING}
    yield inspection.find_duplicates, {"X": X}, wrong


def _wrong_arguments():
    for function, right, wrong in _functions():
        if right is not None:  # None: what is right would need files
            _use(function, right)
        for name, kinds in wrong.items():
            for kind in kinds:
                given = {**(right or {}), name: VALUES[kind]}
                yield (
                    "functions",
                    f"{kind} as {name}",
                    f"{function.__qualname__}({name}=)",
                    functools.partial(_use, function, given),
                )


def _use(function, given):
    """Call a function; one that makes a splitter is used, which may check it."""
    made = function(**given)
    if hasattr(made, "split"):
        return list(made.split(*vectors()))
    return made


# -- commands


def _write(name, content):
    def prepare(folder):
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)

    return prepare


def _nothing(folder):
    pass


def _corrupt(folder):
    (folder / "photos" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 50)


def _empty_folder(folder):
    (folder / "empty").mkdir()


def _picture(folder):
    (folder / "to_label.png").write_bytes((folder / "photos" / "00.png").read_bytes())


def _filled_in(folder):
    (folder / "to_label.csv").write_text(MINE)
    (folder / "labels.csv").write_text(MINE)


def _read_only(folder):
    (folder / "closed").write_text("a file, not a folder")


def _pipe(folder):
    import os

    os.mkfifo(folder / "photos" / "zz.png")


def _model_of_a_stranger(folder):
    (folder / "model").mkdir()
    (folder / "model" / "estimator.json").write_text('{"estimator": "os.system"}')


def _lists():
    """Return {kind: content of a CSV of labels}, none of them usable."""
    row = MINE.splitlines()[1]
    return {
        "empty": "",
        "header only": "path,label\n",
        "no labels": MINE.replace(",dark", ",").replace(",light", ","),
        "one class": MINE.replace("light", "dark"),
        "no path column": MINE.replace("path", "file_of_it"),
        "no label column": MINE.replace("label", "kind_of_it"),
        "stranger": MINE + "stranger.png,dark\n",
        "two labels": MINE + "00.png,light\n",
        "minus one": MINE + "09.png,-1\n",
        "stands for missing": MINE + "09.png,NA\n",
        "null": MINE + "09.png,null\n",
        "question mark": MINE + "09.png,?\n",
        "cell too many": MINE + "09.png,dark, blue\n",
        "two columns of one name": MINE.replace("path,label", "path,label,label"),
        "open quote": MINE + '"09.png,dark\n',
        "not text": bytes(range(256)) * 4,
        "workbook": b"PK\x03\x04" + bytes(200),
        "nul bytes": MINE.encode() + b"\x00\x00,\x00\n",
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
        "json": '{"path": "00.png"}',
        "no header": row + "\n" + row + "\n",
        "path outside": MINE + "../mine.csv,dark\n",
    }


def command_lines():
    """Yield kind, what is prepared in the folder, and arguments; each is refused."""
    short = ["--epochs", "1", "--steps", "2", "--image-size", "16", "--quiet"]
    for kind, content in _lists().items():
        yield (
            f"list: {kind}",
            _write("l.csv", content),
            ["fit", "l.csv", "photos", *short],
        )
    for option, values in {
        "--n-samples": ("0", "-1", "17", "1.5", "x", "", "1e9"),
        "--image-size": ("0", "-8", "x", "9999999", "1.5"),
        "--epochs": ("0", "-1", "x"),
        "--device": ("gpu", "", "3", "cuda:99"),
        "--seed": ("-1", "x", "1.5", "99999999999999"),
        "--max-pixels": ("0", "-1", "x"),
        "--embedder": ("no-such-folder", "photos", "mine.csv"),
        "--labeled": ("no.csv", "photos/00.png"),
        "--out": ("no-such-folder/a.csv", "photos", "", "/proc/none/a.csv"),
        "--sheet": ("no-such-folder/a.png", "photos", "photos/a.png", "to_label.csv"),
        "--save-embedder": ("mine.csv", "photos"),
        "--checkpoint": ("mine.csv", "photos"),
        "--no-such-option": ("1",),
    }.items():
        for value in values:
            line = ["select", "photos", *short, option, value]
            yield f"select {option} {value or '(empty)'}", _nothing, line
    for option, values in {
        "--steps": ("0", "-1", "x", "1.5"),
        "--model": ("mine.csv", "photos"),
        "--out": ("mine.csv", "photos", "no-such-folder/a.csv"),
        "--label-column": ("none", ""),
        "--path-column": ("none", ""),
        "--embedder": ("no-such-folder", "photos"),
    }.items():
        for value in values:
            line = ["fit", "mine.csv", "photos", *short, option, value]
            yield f"fit {option} {value or '(empty)'}", _nothing, line
    for kind, prepare, line in (
        ("no command", _nothing, []),
        ("unknown command", _nothing, ["selct", "photos"]),
        ("no folder", _nothing, ["select"]),
        ("missing folder", _nothing, ["select", "nowhere", *short]),
        ("file as folder", _nothing, ["select", "mine.csv", *short]),
        ("empty folder", _empty_folder, ["select", "empty", *short]),
        ("fit without CSV", _nothing, ["fit", "photos", *short]),
        ("fit without folder", _nothing, ["fit", "mine.csv", *short]),
        ("fit swapped", _nothing, ["fit", "photos", "mine.csv", *short]),
        ("missing CSV", _nothing, ["fit", "no.csv", "photos", *short]),
        ("folder as CSV", _empty_folder, ["fit", "empty", "photos", *short]),
        ("broken image", _corrupt, ["select", "photos", *short]),
        ("broken image in fit", _corrupt, ["fit", "mine.csv", "photos", *short]),
        ("pipe among images", _pipe, ["select", "photos", *short]),
        ("list that is filled in", _filled_in, ["select", "photos", *short]),
        ("labels of a person", _filled_in, ["fit", "mine.csv", "photos", *short]),
        ("picture of a person", _picture, ["select", "photos", *short]),
        (
            "out in a file",
            _read_only,
            ["select", "photos", *short] + ["--out", "closed/a.csv"],
        ),
        ("predict without model", _nothing, ["predict", "nowhere", "photos"]),
        ("predict photographs", _nothing, ["predict", "photos", "photos"]),
        ("predict a stranger's", _model_of_a_stranger, ["predict", "model", "photos"]),
        ("demo among photographs", _nothing, ["demo", "--out", "photos"]),
        ("demo seeds", _nothing, ["demo", "--seeds", "0"]),
    ):
        yield kind, prepare, line
