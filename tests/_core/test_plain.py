"""Numbers of numpy as parameters, and another default dtype of torch."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone

import sklabel
from sklabel import classification, clustering, embedding, selection
from sklabel._core.plain import plain, plain_parameters
from sklabel.embedding import AutoencoderTransformer, SimCLRTransformer
from tests.test_common import SHORTEST, UNSTAGED

ESTIMATORS = {
    name: getattr(folder, name)
    for folder in (embedding, clustering, classification, selection)
    for name in folder.__all__
}
SETTINGS = {
    "IICSegmenter": {"half_side": 1, "n_clusters": 2, "max_steps": 2},
    "PretrainedTransformer": {
        "backbone": "squeezenet1_1",
        "weights": None,
        "input_size": 32,
    },
    "AutoencoderTransformer": {"filters": (4, 8), "hidden_sizes": (6, 7)},
    "SCANClusterer": {"prior": (0.25, 0.75)},
}
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 8, 8)).astype(np.uint8)
VECTORS = RNG.normal(size=(24, 6)).astype(np.float32)


def make(name, number=lambda value: value):
    """Return an estimator all of whose numbers are made by ``number``."""
    cls = ESTIMATORS[name]
    known = cls().get_params(deep=False)
    short = SHORTEST | UNSTAGED
    settings = {**short.get(name, {}), **SETTINGS.get(name, {})}
    for key, value in {"random_state": 0, "n_samples": 4, "device": "cpu"}.items():
        if key in known:
            settings[key] = value
    given = {**known, **settings}
    return clone(cls(**{key: number(value) for key, value in given.items()}))


def data(name):
    X = IMAGES if name in ("IICSegmenter", "PretrainedTransformer") else VECTORS
    y = np.where(np.arange(24) < 16, np.arange(24) % 2, -1)
    if name == "CLIPTransformer":
        y = [f"text {k % 3}" for k in range(24)]
    if name == "StratifiedSelector":
        y = np.arange(24) % 2
    return X, y


def used(estimator, X, y):
    """Return what an estimator gives after a fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        estimator.fit(X, y)
    return answers(estimator, X, y)


def answers(estimator, X, y):
    found = {}
    for verb in ("predict_proba", "predict", "transform"):
        if hasattr(estimator, verb):
            found[verb] = getattr(estimator, verb)(X)
    for name in ("labels_", "sample_indices_", "scores_", "transduction_"):
        if hasattr(estimator, name):
            found[name] = getattr(estimator, name)
    if hasattr(estimator, "score"):
        found["score"] = estimator.score(X, y)
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert np.asarray(found[name]).dtype == np.asarray(value).dtype, name


@pytest.fixture(scope="module")
def expected():
    known = {}

    def of(name):
        if name not in known:
            known[name] = used(make(name), *data(name))
        return known[name]

    return of


def as_numpy(integer, real):
    def number(value):
        if isinstance(value, tuple):
            return tuple(map(number, value))
        if isinstance(value, bool):
            return np.bool_(value)
        if isinstance(value, int):
            return integer(value)
        if isinstance(value, float):
            # a narrow one would be another number
            return real(value) if float(real(value)) == value else np.float64(value)
        return np.str_(value) if type(value) is str else value

    return number


KINDS = {
    "signed": as_numpy(np.int64, np.float64),
    "unsigned": as_numpy(np.uint64, np.float32),
    "narrow": as_numpy(np.int32, np.float16),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_numbers_of_numpy_are_numbers(name, kind, expected, tmp_path):
    X, y = data(name)
    estimator = make(name, KINDS[kind])
    given = estimator.get_params(deep=False)
    assert_same(used(estimator, X, y), expected(name))
    after = estimator.get_params(deep=False)
    assert all(after[key] is value for key, value in given.items())
    if hasattr(estimator, "save") and kind == "unsigned":
        estimator.save(tmp_path / "model")
        assert_same(answers(sklabel.load(tmp_path / "model"), X, y), expected(name))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_array_is_no_number(name):
    estimator = make(name)
    X, y = data(name)
    for key, value in estimator.get_params(deep=False).items():
        if isinstance(value, (int, float)) and key != "image_size":
            wrong = clone(estimator).set_params(**{key: np.array(value)})
            constraints = map(str, estimator._parameter_constraints[key])
            if any("array-like" in c for c in constraints) or key == "random_state":
                continue
            with pytest.raises(ValueError, match=f"'{key}' parameter"):
                wrong.fit(X, y)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_another_default_dtype_changes_nothing(name, expected, tmp_path):
    X, y = data(name)
    torch.set_default_dtype(torch.float64)
    try:
        estimator = make(name)
        assert_same(used(estimator, X, y), expected(name))
        if hasattr(estimator, "save"):
            estimator.save(tmp_path / "model")
            loaded = sklabel.load(tmp_path / "model")
            assert_same(answers(loaded, X, y), expected(name))
        assert torch.get_default_dtype() == torch.float64
        with pytest.raises(ValueError):
            estimator.fit(X[:0], y[:0])
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_search_and_codes_under_another_default_dtype(dtype):
    clip = make("CLIPTransformer")
    codes = AutoencoderTransformer(3, max_steps=1, random_state=0)
    found = []
    for default in (torch.float32, dtype):
        torch.set_default_dtype(default)
        try:
            used(clip, *data("CLIPTransformer"))
            rows, similarities = clip.search("text 1", VECTORS, n_results=3)
            decoded = codes.fit(VECTORS).inverse_transform(codes.transform(VECTORS))
            found.append([rows, similarities, clip.encode_text("text 2"), decoded])
        finally:
            torch.set_default_dtype(torch.float32)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_parameters_are_given_back():
    embedder = SimCLRTransformer(projection_size=np.int8(4))
    with plain_parameters(embedder):
        assert type(embedder.projection_size) is int
        embedder.temperature = 0.3
    assert type(embedder.projection_size) is np.int8 and embedder.temperature == 0.3
    with plain_parameters(embedder):
        embedder.projection_size = 7  # the fit itself has set another
    assert embedder.projection_size == 7
    assert type(plain(np.longdouble(0.5))) is float
    assert plain((np.int8(1), [np.str_("a")])) == (1, ["a"])
