"""Published settings in docstrings can be typed as they stand there."""

import ast
import functools
import inspect
import warnings

import numpy as np
import pytest
from skorch.callbacks import Callback

from sklabel import augment, classification, clustering, embedding, optim, selection
from sklabel._core.docstrings import split_sections

MODULES = embedding, clustering, classification, selection
ESTIMATORS = [getattr(m, name) for m in MODULES for name in m.__all__]
NAMES = {
    "functools": functools,
    **vars(optim),
    **{name: getattr(m, name) for m in (*MODULES, augment) for name in m.__all__},
}
# what data of some rows cannot have, or a person not wait for
SMALLER = {"n_training_clusters": 8, "n_components": 4, "n_clusters": 6}
# the large networks of torchvision have tests of their own
FASTER = {"resnet50": "resnet18", "vgg16_bn": "auto"}
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
VECTORS = np.random.default_rng(0).normal(size=(48, 8)).astype(np.float32)
Y = np.where(np.arange(16) < 8, np.arange(16) % 2, -1)
TEXTS = [f"row {i}" for i in range(16)]


def literals(cls):
    """Yield what stands between double backquotes in the notes of a class."""
    notes = split_sections(cls.__doc__).get("Notes", "")
    for text in notes.split("``")[1::2]:
        yield " ".join(text.split())


def recipes():
    """Return (class, text) of every setting that names parameters of the class."""
    found = []
    for cls in ESTIMATORS:
        known = inspect.signature(cls).parameters
        for text in literals(cls):
            try:
                call = ast.parse(f"f({text})", mode="eval").body
            except SyntaxError:
                continue
            names = [keyword.arg for keyword in call.keywords]
            if len(names) > 1 and not call.args and set(names) <= set(known):
                found.append((cls, text))
    return found


RECIPES = recipes()


class Three(Callback):
    """Ends a training after three steps, however long it was to be."""

    def on_batch_end(self, net, batch=None, **figures):
        net.total_steps_ = min(net.total_steps_, 3)


def typed(cls, text):
    """Return the estimator that the text makes, as a person would type it."""
    return eval(f"cls({text})", {**NAMES, "cls": cls})


def shortened(estimator):
    """Give an estimator, and those in it, three steps and sizes that 16 rows allow."""
    given = estimator.get_params(deep=False)
    shorter = {name: n for name, n in SMALLER.items() if name in given}
    if given.get("backbone") in FASTER:
        shorter["backbone"] = FASTER[given["backbone"]]
    for name, value in given.items():
        if hasattr(value, "get_params"):
            shorter[name] = shortened(value)
    if "net_params" in given:
        callbacks = {"callbacks": [Three]}
        shorter["net_params"] = {**(given["net_params"] or {}), **callbacks}
    if "random_state" in given:
        shorter["random_state"] = 0
    return estimator.set_params(**shorter)


def test_recipes_are_found():
    by_class = {cls.__name__: [t for c, t in RECIPES if c is cls] for cls, _ in RECIPES}
    assert len(RECIPES) >= 20
    for name in ("SimCLR", "MoCo", "BYOL", "SwAV", "CLD", "CLIP"):
        assert by_class[f"{name}Transformer"], name
    for name in ("SCANClusterer", "DeepClusterer", "FixMatchClassifier", "USLSelector"):
        assert by_class[name], name


@pytest.mark.parametrize("cls", ESTIMATORS, ids=lambda cls: cls.__name__)
def test_settings_name_parameters(cls):
    # one misspelled name, and it would not be found
    known = inspect.signature(cls).parameters
    for text in literals(cls):
        try:
            call = ast.parse(f"f({text})", mode="eval").body
        except SyntaxError:
            continue
        names = [keyword.arg for keyword in call.keywords]
        if len(names) > 1 and not call.args:
            assert set(names) <= set(known), text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "cls, text", RECIPES, ids=lambda v: getattr(v, "__name__", None) or v[:40]
)
def test_a_recipe_runs_as_it_is_written(cls, text):
    estimator = typed(cls, text)
    settings = estimator.get_params(deep=False)
    kind = cls.__module__.split(".")[1]
    x = VECTORS if kind == "selection" and "backbone" not in settings else IMAGES
    y = {"classification": Y, "selection": np.resize(Y, len(x))}.get(kind)
    if cls is embedding.CLIPTransformer:
        y = TEXTS
    if "n_samples" in settings:
        estimator.set_params(n_samples=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = shortened(estimator).fit(x, y)
    if hasattr(fitted, "net_"):
        history = fitted.net_.history
        assert np.isfinite(history[:, "train_loss"]).all()
        assert all(epoch["train_batch_count"] <= 3 for epoch in history)
