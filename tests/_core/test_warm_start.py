"""Warm starts: weights of the last fit, parameters as they are now."""

import copy
import inspect
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import Interval, Options, StrOptions
from torch import nn

import sklabel
from sklabel import augment, classification, clustering, embedding, selection
from sklabel._core.learner import Learner
from sklabel._core.parameters import Training
from sklabel.classification import SupervisedClassifier
from sklabel.clustering import SCANClusterer
from sklabel.embedding import (
    AutoencoderTransformer,
    CLIPTransformer,
    MoCoTransformer,
    SimCLRTransformer,
)
from sklabel.selection import TODSelector
from tests._making import broken_off, fit_broken_off
from tests.test_common import SHORTEST

ESTIMATORS = {
    name: getattr(folder, name)
    for folder in (embedding, clustering, classification, selection)
    for name in folder.__all__
    if issubclass(getattr(folder, name), Learner)
}
TINY = {"lr": 1e-9, "max_steps": 1, "random_state": 0, "device": "cpu"}
CODES = AutoencoderTransformer(4, hidden_sizes=(6, 7), max_steps=1)
# settings beside those of the common tests; each fit of which is short
SETTINGS = {
    "CLIPClassifier": {"few_shot": "fine_tune", "prompts": "{}"},
    "IICSegmenter": {"half_side": 1, "n_clusters": 2},
    "SimCLRv2Classifier": {
        "embedder": SimCLRTransformer(projection_layers=3, max_steps=1),
        "distill_epochs": 1,
    },
    "CCLClassifier": {"embedder": CODES},
    "DCECClusterer": {"embedder": CODES, "n_clusters": 2, "n_init": 1},
}
# values that are not found by themselves
OTHERS = {
    "backbone": [nn.Linear(8, 9)],
    "calibration_size": [12],
    "n_augmentations": [3],
    "ramp_up": [0.5],
    "distill_lr": [1e-8],
    "detach_after": [2],
    "student_backbone": [nn.Linear(8, 9)],
    "filters": [(4,)],
    "hidden_sizes": [(7,)],
    "prior": [(0.25, 0.75)],
    "layers": [("0",)],
    "frozen": ["norms"],
    "text_width": [18],
    "text_heads": [1],
    "image_size": [],
    "class_weight": ["balanced"],
    "classifier": [],
    "threshold": [0.5],
    "energy_threshold": [-1.0],
    "fairness_weight": [],  # of one kind of thresholds: a test of its own
}
# what says how long and in what way X is trained on, or is of other data
LEFT_OUT = {*Training._parameter_constraints, "n_samples", "weights", "class_names"}
LEFT_OUT -= {"backbone"}
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8)).astype(np.uint8)
VECTORS = IMAGES.reshape(24, 64)[:, :8].astype(np.float32) / 100
# what vectors do not have
OF_IMAGES = {"filters", "sobel", "n_small_crops", "small_augment"}
Y = np.where(np.arange(24) < 16, np.arange(24) % 2, -1)


def target(cls):
    return [f"text {k % 3}" for k in range(24)] if cls is CLIPTransformer else Y


def make(name, **given):
    settings = {**SHORTEST.get(name, {}), **SETTINGS.get(name, {}), **TINY, **given}
    cls = ESTIMATORS[name]
    if "n_samples" in cls().get_params():
        settings["n_samples"] = 4
    return clone(cls(**settings))


def others(name, parameter):
    """Return some other values of a parameter of a fitted estimator."""
    if (name, parameter) == ("FixMatchClassifier", "threshold"):
        return [0.5, "free", "soft"]
    if (name, parameter) == ("FixMatchClassifier", "distribution_alignment"):
        return [True, "predictions", "debiased"]
    if parameter == "final_lr":
        return [make(name).lr / 2]
    if (name, parameter) == ("IICSegmenter", "backbone"):
        return [nn.Conv2d(1, 9, 3, padding=1)]
    if (name, parameter) == ("IICSegmenter", "augment"):
        return [augment.Contrastive(crop=(1, 1), aspect=(1, 1), flip=0, jitter=0.1)]
    if parameter == "embedder":
        return {
            "CLIPClassifier": [CLIPTransformer(4, **SHORTEST["CLIPTransformer"])],
            "DCECClusterer": [clone(CODES).set_params(n_components=5)],
            "CCLClassifier": [clone(CODES).set_params(n_components=5)],
        }.get(name, [SimCLRTransformer(projection_size=5, max_steps=1)])
    if parameter in OTHERS:
        return OTHERS[parameter]
    now = make(name).get_params(deep=False)[parameter]
    constraints = ESTIMATORS[name]._parameter_constraints[parameter]
    if parameter.endswith("augment"):
        return [augment.VectorNoise(0.05, 0.3)]
    for constraint in constraints:
        if constraint == "boolean":
            return [not now]
        if (
            isinstance(constraint, (StrOptions, Options))
            and len(constraint.options) > 1
        ):
            return sorted(constraint.options - {now}, key=str)[:1]
    for constraint in constraints:
        if isinstance(constraint, Interval):
            number = now if isinstance(now, (int, float)) else 2
            if constraint.type.__name__ == "Integral":
                return [number + 1]
            below = constraint.right is None or number * 0.5 < constraint.right
            return [number * 0.5 or 0.25] if below else [0.25]
    return []


FROZEN = FrozenEstimator(SimCLRTransformer(max_steps=1).fit(VECTORS))
CASES = [
    (name, parameter)
    for name, cls in ESTIMATORS.items()
    for parameter in inspect.signature(cls).parameters
    if parameter not in LEFT_OUT and others(name, parameter)
]


def settings_of(module):
    """Return what a module is beside its weights, by the names of its parts."""
    plain = (bool, int, float, str, tuple, type(None))
    counts = {"training", "n_steps", "step", "total_steps", "number"}
    counts |= {"n_classes", "out_features", "out_channels"}  # of clusters in use
    return {
        name: (
            type(part).__name__,
            {
                k: v
                for k, v in vars(part).items()
                if not k.startswith("_") and isinstance(v, plain) and k not in counts
            },
        )
        for name, part in module.named_modules()
    }


def answer(fitted, X):
    for verb in ("predict_proba", "transform"):
        if hasattr(fitted, verb):
            return getattr(fitted, verb)(X)
    return fitted.net_.evaluate(fitted._check_X(X)).numpy()


def quiet(estimator, X, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return estimator.fit(X, y)


@pytest.fixture(scope="module")
def fitted():
    """Every estimator, fitted when it is first asked for."""
    known = {}

    def of(name, X):
        if (name, X.shape) not in known:
            y = target(ESTIMATORS[name])
            known[name, X.shape] = quiet(make(name), X, y)
        return copy.deepcopy(known[name, X.shape])

    return of


@pytest.mark.parametrize(("name", "parameter"), CASES, ids=lambda c: c)
def test_a_warm_start_obeys_the_parameters_or_says_why_not(
    name, parameter, fitted, tmp_path
):
    of_images = name == "IICSegmenter" or parameter in OF_IMAGES
    X, y = IMAGES if of_images else VECTORS, target(ESTIMATORS[name])
    for value in others(name, parameter):
        warm = fitted(name, X).set_params(warm_start=True, **{parameter: value})
        before = encoder_of(warm)
        try:
            quiet(warm, X, y)
        except ValueError as error:
            assert f"{parameter}=" in str(error) and "warm_start" in str(error)
            assert all(torch.equal(before[k], v) for k, v in encoder_of(warm).items())
            quiet(warm.set_params(warm_start=False), X, y)  # the value is a good one
            continue
        cold = quiet(clone(warm), X, y)
        assert settings_of(warm.net_.module_) == settings_of(cold.net_.module_)
        # at such a rate what was learned is as it was
        after = encoder_of(warm)
        assert before.keys() == after.keys()
        assert all(torch.allclose(before[k], after[k], atol=1e-4) for k in before)
        if not isinstance(value, nn.Module) or hasattr(value, "get_params"):
            warm.save(tmp_path / "model")
            loaded = sklabel.load(tmp_path / "model")
            np.testing.assert_array_equal(answer(loaded, X), answer(warm, X))


def encoder_of(estimator):
    state = estimator.encoder_.state_dict()
    return {k: v.clone() for k, v in state.items() if "running" not in k and v.ndim}


@pytest.mark.parametrize(
    ("cls", "parameter", "value"),
    [
        (SimCLRTransformer, "output", "projection"),
        (SimCLRTransformer, "projection_size", 5),
        (MoCoTransformer, "queue_size", 7),
        (AutoencoderTransformer, "hidden_sizes", (3,)),
        (SCANClusterer, "n_clusters", 3),
        (SupervisedClassifier, "backbone", FROZEN),
        (TODSelector, "measure", "norm"),
    ],
)
def test_what_is_set_after_a_fit_does_not_change_what_is_saved(
    cls, parameter, value, fitted, tmp_path
):
    estimator = fitted(cls.__name__, VECTORS)
    expected = answer(estimator, VECTORS)
    estimator.set_params(**{parameter: value}).save(tmp_path / "model")
    for _ in range(2):  # a second time from what was loaded
        loaded = sklabel.load(tmp_path / "model")
        found = loaded.get_params(deep=False)[parameter]
        assert type(found) is type(value) and (value is FROZEN or found == value)
        np.testing.assert_array_equal(answer(loaded, VECTORS), expected)
        loaded.save(tmp_path / "model")
    # and a warm start of what was loaded knows what has changed
    if parameter in ("projection_size", "hidden_sizes"):
        with pytest.raises(ValueError, match=f"{parameter}="):
            loaded.set_params(warm_start=True).fit(VECTORS)


@pytest.mark.parametrize("kind", ["loaded", "pickled"])
def test_a_codebook_of_another_embedder_is_refused(kind, fitted, tmp_path):
    clf = fitted("CCLClassifier", VECTORS)
    if kind == "loaded":
        clf.save(tmp_path / "model")
        clf = sklabel.load(tmp_path / "model")
    else:
        clf = pickle.loads(pickle.dumps(clf))
    clf.set_params(warm_start=True, device="cpu")
    quiet(clf, VECTORS, Y)
    with pytest.raises(ValueError, match="warm_start=True .*embedder="):
        clf.set_params(embedder__n_components=5).fit(VECTORS, Y)
    quiet(clf.set_params(embedder__n_components=4), VECTORS, Y)


def learned(estimator):
    return {k: v.clone() for k, v in estimator.net_.module_.state_dict().items()}


def check_same(found, expected, X):
    """Check that two fitted estimators predict the same, and choose the same rows."""
    np.testing.assert_array_equal(answer(found, X), answer(expected, X))
    for name in ("scores_", "sample_indices_", "labels_", "transduction_"):
        if hasattr(expected, name):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def start_of(estimator, X, y, monkeypatch):
    """Fit an estimator; return the weights that it has gone on from."""
    start, begun = Learner._start, []

    def watched(self, shape):
        module = start(self, shape)
        if self is estimator:
            begun.append(copy.deepcopy(module.state_dict()))
        return module

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_start", watched)
        quiet(estimator, X, y)
    return begun[0]


@pytest.mark.parametrize(
    "name, error, kept",
    [
        *(
            (name, KeyboardInterrupt, kept)
            for name in ESTIMATORS
            for kept in (False, True)
        ),
        # by the decorator of every fit
        *((name, RuntimeError, True) for name in list(ESTIMATORS)[:3]),
    ],
)
def test_a_second_fit_broken_off_in_its_first_epoch(
    name, error, kept, tmp_path, monkeypatch
):
    X, y = IMAGES if name == "IICSegmenter" else VECTORS, target(ESTIMATORS[name])
    several = {"max_steps": None, "max_epochs": 2, "batch_size": 4, "warm_start": True}
    first = quiet(make(name, lr=0.01, **several), X, y)
    cut = copy.deepcopy(first).set_params(checkpoint_dir=tmp_path if kept else None)
    before = learned(first)
    whole = quiet(copy.deepcopy(first), X, y)
    with broken_off(2, monkeypatch, error):
        if error is RuntimeError:
            with pytest.raises(RuntimeError, match="broken off"):
                quiet(cut, X, y)
        else:
            assert quiet(cut, X, y).interrupted_
    left = learned(cut)
    if error is RuntimeError:  # as if it had not begun
        check_same(cut, first, X)
    else:  # as it was at that step, and no part is lost
        assert before.keys() == left.keys()
        assert np.isfinite(answer(cut, X)).all()
    if error is RuntimeError or kept:  # the same call ends as if nothing was
        check_same(quiet(cut, X, y), whole, X)
    else:
        begun = start_of(cut, X, y, monkeypatch)
        assert all(torch.equal(begun[k], v) for k, v in left.items())
    assert not cut.interrupted_


def test_a_first_fit_broken_off_in_its_first_epoch(tmp_path, monkeypatch):
    given = {"max_epochs": 2, "batch_size": 4, "warm_start": True, "random_state": 0}
    whole = SimCLRTransformer(**given).fit(VECTORS)
    cut = SimCLRTransformer(**given, checkpoint_dir=tmp_path)
    fit_broken_off(cut, VECTORS, None, 2, monkeypatch)
    check_same(cut.fit(VECTORS), whole, VECTORS)


@pytest.mark.parametrize("kept", [False, True], ids=["no checkpoint", "checkpoint"])
def test_a_fine_tuning_broken_off_keeps_the_earlier_student(
    kept, tmp_path, monkeypatch
):
    first = quiet(make("SimCLRv2Classifier", lr=0.01, warm_start=True), VECTORS, Y)
    cut = copy.deepcopy(first).set_params(max_steps=3)
    whole = quiet(copy.deepcopy(cut), VECTORS, Y)
    cut.set_params(checkpoint_dir=tmp_path if kept else None)
    with broken_off(2, monkeypatch):
        quiet(cut, VECTORS, Y)
    assert cut.interrupted_
    assert set(cut.net_.history[:, "stage"]) <= {"fine-tune"}
    student = cut.predict_proba(VECTORS)
    np.testing.assert_array_equal(student, first.predict_proba(VECTORS))
    cut.save(tmp_path / "model")
    np.testing.assert_array_equal(
        sklabel.load(tmp_path / "model").predict_proba(VECTORS), student
    )
    quiet(cut, VECTORS, Y)
    if kept:
        check_same(cut, whole, VECTORS)
