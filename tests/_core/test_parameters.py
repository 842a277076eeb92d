"""Parameters are fields: constructor, constraints and texts come from them."""

import importlib
import inspect
import pickle
from typing import ClassVar

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils._param_validation import InvalidParameterError

from sklabel._core.parameters import KW_ONLY, Count, Positive, UnitInterval
from sklabel.classification import FixMatchClassifier
from sklabel.embedding import SimCLRTransformer

X = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)


class Sharper(SimCLRTransformer):
    """A user's estimator that is made of fields.

    Parameters
    ----------
    sharpness : int
        How often the temperature is halved.
    lr
        Found by a search.
    """

    sharpness: Count = 1
    _: KW_ONLY
    share: UnitInterval = 0.5
    lr: Positive = 0.01
    names: ClassVar[list] = []  # no parameter
    counted_: int  # neither is what a fit sets

    def _build_module(self, mean, std):
        module = super()._build_module(mean, std)
        module.temperature /= 2**self.sharpness
        return module


class Short(SimCLRTransformer):
    """A user's estimator with a constructor of its own."""

    def __init__(self, temperature=0.1, n_steps=3):
        super().__init__(temperature, max_steps=n_steps)
        self.n_steps = n_steps


def test_a_subclass_adds_fields():
    names = list(inspect.signature(Sharper).parameters)
    assert names[:2] == ["temperature", "sharpness"] and "share" in names
    kinds = {p.name: p.kind for p in inspect.signature(Sharper).parameters.values()}
    assert kinds["sharpness"] == inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert kinds["share"] == kinds["lr"] == inspect.Parameter.KEYWORD_ONLY
    assert not {"names", "counted_"} & set(names)
    embedder = Sharper(0.2, 3, share=0.1)
    assert (embedder.temperature, embedder.sharpness, embedder.lr) == (0.2, 3, 0.01)
    assert embedder.batch_size == SimCLRTransformer().batch_size
    assert "sharpness=3" in repr(embedder) and "lr" not in repr(embedder)
    assert clone(embedder).get_params() == embedder.get_params()
    assert pickle.loads(pickle.dumps(embedder)).get_params() == embedder.get_params()


def test_a_subclass_checks_its_fields():
    Sharper(max_steps=1).fit(X)
    with pytest.raises(InvalidParameterError, match=r"'sharpness' .* range \[1, inf\)"):
        Sharper(sharpness=0).fit(X)
    with pytest.raises(InvalidParameterError, match=r"'lr' .* range \(0.0, inf\)"):
        Sharper(lr=0).fit(X)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sharpnes'"):
        Sharper(sharpnes=1)


def test_plain_annotations_are_kinds_too():
    class Plain(SimCLRTransformer):
        extra: int = 1
        lr: float = 0.01
        loud: bool = False
        note: str | None = None

    Plain(extra=np.int64(2), lr=1, loud=np.bool_(True), note="x", max_steps=1).fit(X)
    for wrong in ({"extra": 1.5}, {"lr": "fast"}, {"loud": 2}, {"note": 3}):
        with pytest.raises(InvalidParameterError, match=next(iter(wrong))):
            Plain(**wrong).fit(X)


def test_a_subclass_is_searched_and_trained():
    search = GridSearchCV(Sharper(max_steps=1), {"sharpness": [1, 2]}, cv=2).fit(X)
    module = search.best_estimator_.net_.module_
    assert module.temperature == 0.5 / 2 ** search.best_params_["sharpness"]


def test_the_texts_of_a_subclass_are_joined():
    doc = inspect.getdoc(Sharper)
    assert "sharpness : int, default=1\n    How often" in doc
    assert "lr : float, default=0.01\n    Peak learning rate." in doc
    assert "    Found by a search." in doc  # added to what the parents say
    assert doc.index("temperature : ") < doc.index("sharpness : ") < doc.index("lr : ")
    assert "encoder_ : nn.Module" in doc
    assert "default=0.001" in SimCLRTransformer.__doc__  # as it was


def test_a_constructor_of_ones_own_is_left_alone():
    assert [*inspect.signature(Short).parameters] == ["temperature", "n_steps"]
    embedder = Short(n_steps=2)
    assert embedder.get_params() == {"temperature": 0.1, "n_steps": 2}
    assert embedder.max_steps == 2 and embedder.batch_size == 256
    assert clone(embedder.fit(X)).n_steps == 2
    assert embedder.transform(X).shape == (40, embedder.encoder_.n_features_out)
    with pytest.raises(InvalidParameterError, match="'temperature'"):
        Short(temperature=-1.0).fit(X)


def test_defaults_are_seen_on_the_class_but_belong_to_the_instance():
    one, other = FixMatchClassifier(), FixMatchClassifier(threshold=0.5)
    assert (one.threshold, other.threshold) == (0.95, 0.5)
    assert vars(one).keys() == one.get_params().keys()


def test_where_docstrings_are_stripped():
    class Bare(SimCLRTransformer):
        extra: Count = 1

    assert Bare.__doc__ is None
    assert Bare(extra=2).extra == 2


def test_annotations_may_be_texts(tmp_path, monkeypatch):
    (tmp_path / "late_annotations.py").write_text(
        "from __future__ import annotations\n"
        "from sklabel._core.parameters import Count\n"
        "from sklabel.embedding import SimCLRTransformer\n\n\n"
        "class Late(SimCLRTransformer):\n    extra: Count = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    late = importlib.import_module("late_annotations").Late
    with pytest.raises(InvalidParameterError, match="'extra'"):
        late(extra=0, max_steps=1).fit(X)
