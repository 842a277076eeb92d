"""Training on from an encoder that has learned: its rate, its head, what stays."""

import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from torch import nn

import sklabel
from sklabel._core.health import CollapseWarning
from sklabel._core.net import Net
from sklabel._core.transfer import EncoderClassifier, fit_probe
from sklabel.backbones import build_backbone
from sklabel.classification import FixMatchClassifier, SupervisedClassifier
from sklabel.embedding import CLIPTransformer, SimCLRTransformer
from tests.test_common import SHORTEST

CLASSES = [
    cls for cls in vars(sklabel.classification).values() if isinstance(cls, type)
]
CLASSES = [cls for cls in CLASSES if issubclass(cls, EncoderClassifier)]
every_classifier = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
# where the published training starts: what an encoder from nothing gets
PUBLISHED = {"backbone_lr": 1.0, "head_init": "random", "warmup_epochs": 0}

N = 120
TRUTH = np.arange(N) % 3
X = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
X += 3 * np.eye(3, 6, dtype=np.float32)[TRUTH]
Y = np.where(np.arange(N) < 18, TRUTH, -1)


@pytest.fixture(scope="module")
def embedder():
    return SimCLRTransformer(max_steps=20, random_state=0, device="cpu").fit(X)


def make(cls, embedder=None, **parameters):
    """Return a classifier that trains on from an embedder; None: from nothing."""
    given = {**SHORTEST.get(cls.__name__, {}), "random_state": 0, "device": "cpu"}
    if "embedder" in cls().get_params(deep=False):
        given["embedder"] = FrozenEstimator(embedder)
        # by default this method is that of its paper
        given |= dict.fromkeys(("backbone_lr", "head_init", "warmup_epochs"), "auto")
    elif embedder is not None:
        given["backbone"] = embedder
    return cls(**{**given, **parameters})


def fit(*args, **parameters):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        return make(*args, **parameters).fit(X, Y)


def weights(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(first, second):
    return all(torch.equal(v, second[k]) for k, v in first.items())


class Course:
    """The rates of each group of parameters, as every optimizer step saw them."""

    def __init__(self, monkeypatch):
        self.rates, step = [], Net.train_step

        def seen(net, *args, **kwargs):
            encoder = [
                id(p)
                for name in net.module_.encoder_parts
                for p in net.module_.get_submodule(name).parameters()
            ]
            rates = {True: set(), False: set()}
            for group in net.optimizer_.param_groups:
                for p in group["params"]:
                    rates[id(p) in encoder].add(group["lr"])
            self.rates.append((rates[True], rates[False]))
            return step(net, *args, **kwargs)

        monkeypatch.setattr(Net, "train_step", seen)


def test_there_are_classifiers():
    assert len(CLASSES) == 6


@every_classifier
@pytest.mark.parametrize("given, factor", [("auto", 0.1), (0.25, 0.25), (1.0, 1.0)])
def test_the_encoder_has_a_rate_of_its_own(cls, embedder, given, factor, monkeypatch):
    course = Course(monkeypatch)
    fit(cls, embedder, backbone_lr=given, max_steps=4, schedule="constant", lr=1e-3)
    for encoder, head in course.rates:
        assert len(encoder) == len(head) == 1
        assert encoder.pop() == pytest.approx(factor * head.pop())


def clip():
    tower = {"text_width": 8, "text_layers": 1, "text_heads": 2}
    texts = [f"kind {kind}" for kind in Y]
    return CLIPTransformer(4, **tower, max_steps=1, random_state=0).fit(X, texts)


@pytest.mark.parametrize("backbone", [lambda: norms("statistics"), clip])
def test_what_has_learned_from_much_or_from_texts_moves_less(backbone, monkeypatch):
    torch.manual_seed(0)
    settings = {"backbone": backbone(), "max_steps": 4, "lr": 1e-3}
    course = Course(monkeypatch)
    fit(FixMatchClassifier, **settings, schedule="constant")
    for encoder, head in course.rates:
        assert encoder.pop() == pytest.approx(0.01 * head.pop())


@every_classifier
def test_the_layers_of_the_encoder_have_rates_of_their_own(cls, embedder, monkeypatch):
    course = Course(monkeypatch)
    settings = {"max_steps": 4, "schedule": "constant", "lr": 1e-3, "layer_decay": 0.5}
    clf = fit(cls, embedder, backbone_lr=0.5, **settings)
    for encoder, head in course.rates:
        # the default network for vectors has two layers, and SimCLRv2 keeps a third
        layers = 3 if hasattr(clf.net_.module_, "teacher") and len(encoder) == 3 else 2
        wanted = [5e-4 * 0.5**i for i in range(layers, 0, -1)]
        np.testing.assert_allclose(sorted(encoder), wanted)
        assert head == {1e-3}


@every_classifier
def test_few_rows_are_trained_for_a_least_number_of_steps(cls, monkeypatch, embedder):
    counts, loop = [], Net.fit_loop

    def counted(net, *args, **kwargs):
        loop(net, *args, **kwargs)
        if hasattr(net.module_, "encoder_parts"):
            counts.append(net.step_)

    monkeypatch.setattr(Net, "fit_loop", counted)
    short = {"max_steps": None, "max_epochs": 1}
    fit(cls, embedder, **short)
    plain = counts.copy()
    assert max(plain) < 35
    counts.clear()
    fit(cls, embedder, min_steps=35, **short)
    assert counts == [35] * len(plain)
    counts.clear()
    fit(cls, embedder, min_steps=1, **short)  # a floor, no more
    assert counts == plain
    counts.clear()
    fit(cls, embedder, max_steps=3, min_steps=35)
    assert counts[0] == 3


@every_classifier
def test_the_rate_rises_first(cls, embedder, monkeypatch):
    course = Course(monkeypatch)
    settings = {"max_steps": 60, "schedule": "constant", "lr": 1e-3}
    fit(cls, embedder, **settings)
    head = [rates.copy().pop() for _, rates in course.rates[:60]]
    # three steps are 5 %
    assert head[0] == 0 < head[1] < head[2] < head[3] == head[4] == 1e-3
    course.rates.clear()
    fit(cls, embedder, **settings, warmup_epochs=0)
    assert all(rates == {1e-3} for _, rates in course.rates)


@every_classifier
def test_an_encoder_from_nothing_is_trained_as_before(cls, embedder):
    if cls.__name__ == "SimCLRv2Classifier":
        return  # it always has a pretraining
    now = fit(cls, max_steps=3)
    published = fit(cls, max_steps=3, **PUBLISHED)
    assert same(weights(now.net_.module_), weights(published.net_.module_))
    other = fit(cls, max_steps=3, **{**PUBLISHED, "backbone_lr": 0.1})
    assert not same(weights(now.net_.module_), weights(other.net_.module_))


@every_classifier
@pytest.mark.parametrize("weighted", [False, True])
def test_the_head_begins_as_a_probe(cls, embedder, weighted):
    sample_weight = np.where(np.arange(N) % 2, 3.0, 1.0) if weighted else None
    settings = {"distill_epochs": 0} if cls.__name__ == "SimCLRv2Classifier" else {}
    clf = make(cls, embedder, max_steps=1, lr=1e-30, head_init="auto", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        module = clf.fit(X, Y, sample_weight).net_.module_
    start = copy.deepcopy(embedder.encoder_).eval()
    h = start(torch.from_numpy(X))
    if hasattr(module, "project"):
        h = copy.deepcopy(embedder.net_.module_.project[:1]).eval()(h)
    h = h.detach().double().numpy()
    given = np.ones(18) if sample_weight is None else sample_weight[:18]
    probe = fit_probe(h[:18], Y[:18], given, 3)
    for name in module.head_parts:
        head = module.get_submodule(name)
        np.testing.assert_allclose(head.weight.detach(), probe.weight, atol=1e-5)
        np.testing.assert_allclose(head.bias.detach(), probe.bias, atol=1e-4)
    assert ((h @ probe.weight.T + probe.bias).argmax(1) == TRUTH).mean() > 0.8


@every_classifier
def test_a_frozen_encoder_keeps_its_bits(cls, embedder):
    clf = fit(cls, embedder, train_backbone=False, max_steps=5, lr=0.1)
    assert same(weights(embedder.encoder_), weights(clf.encoder_))
    moved = fit(cls, embedder, max_steps=5, lr=0.1)
    assert not same(weights(embedder.encoder_), weights(moved.encoder_))


@every_classifier
def test_batchnorm_of_a_pretrained_encoder_stays(cls, embedder):
    def stays(clf):
        before, after = weights(embedder.encoder_), weights(clf.encoder_)
        norms = {
            name
            for name, part in clf.encoder_.named_modules()
            if isinstance(part, nn.BatchNorm1d)
        }
        assert norms
        found = {k: torch.equal(before[k], v) for k, v in after.items()}
        rest = [v for k, v in found.items() if k.endswith("weight")]
        return [v for k, v in found.items() if k.rpartition(".")[0] in norms], rest

    norms, rest = stays(fit(cls, embedder, max_steps=5))
    assert all(norms) and not all(rest)
    norms, _ = stays(fit(cls, embedder, max_steps=5, backbone_lr=1.0))
    assert not any(norms)


@every_classifier
def test_saved_loaded_and_trained_on(cls, embedder, tmp_path):
    clf = fit(cls, embedder, max_steps=2)
    clf.save(tmp_path)
    loaded = sklabel.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    before = weights(loaded.net_.module_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded.set_params(warm_start=True, lr=1e-30, max_steps=1).fit(X, Y)
    after = weights(loaded.net_.module_)
    # what it has learned is not replaced by a probe
    key = f"{loaded.net_.module_.head_parts[0]}.weight"
    torch.testing.assert_close(after[key], before[key], atol=1e-6, rtol=1e-4)


def norms(learned):
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.LayerNorm(5))
    if learned == "statistics":
        module.train()(torch.randn(8, 6))
    if learned == "scales":
        nn.init.normal_(module[2].weight)
    if learned == "zeros at the end of a branch":
        nn.init.zeros_(module[1].weight)
    return module


@pytest.mark.parametrize(
    "learned, expected",
    [
        ("nothing", False),
        ("zeros at the end of a branch", False),
        ("statistics", True),
        ("scales", True),
    ],
)
def test_a_module_shows_whether_it_has_learned(learned, expected):
    assert build_backbone(norms(learned), (6,)).pretrained is expected


def test_what_has_learned(embedder):
    assert build_backbone(embedder, (6,)).pretrained
    assert build_backbone(FrozenEstimator(embedder), (6,)).pretrained
    assert build_backbone(embedder.encoder_, (6,)).pretrained
    for name, shape in (("auto", (6,)), ("auto", (1, 8, 8)), ("resnet18", (3, 8, 8))):
        assert not build_backbone(name, shape).pretrained


def test_a_probe_of_one_label_a_class_and_of_a_class_without():
    probe = fit_probe(X[:3], TRUTH[:3], np.ones(3), 4)
    assert len(probe.rows) == 0
    logits = X @ probe.weight.T + probe.bias
    assert (logits.argmax(1) == TRUTH).mean() > 0.8
    # as sure as it is right: four labels of each class, all the same rows
    noise = np.random.default_rng(1).normal(size=(40, 6))
    unsure = fit_probe(noise, np.arange(40) % 2, np.ones(40), 2)
    assert np.abs(noise @ unsure.weight.T).max() < 5
    alike = fit_probe(np.ones((6, 4)), np.arange(6) % 2, np.ones(6), 2)
    assert np.isfinite(alike.weight).all() and np.isfinite(alike.bias).all()


def test_a_ruined_embedding_is_told_of(embedder):
    with pytest.warns(CollapseWarning, match="A linear probe on the embedding"):
        # each view is one of another row
        settings = {"augment": lambda x: x.roll(1, 0), "backbone_lr": 1.0}
        make(SupervisedClassifier, embedder, max_steps=30, **settings).fit(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(SupervisedClassifier, embedder, max_steps=30).fit(X, Y)
        # from nothing there is nothing to compare with
        make(SupervisedClassifier, max_steps=1).fit(X, Y)


def test_nothing_of_the_comparison_is_kept(embedder):
    clf = fit(FixMatchClassifier, embedder, max_steps=1)
    assert "_before" not in vars(clf)
