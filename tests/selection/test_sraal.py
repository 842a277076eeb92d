"""SRAAL: the loss by slow loops, its uncertainty, classifiers, the loop."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

import sklabel
from sklabel._core.adversary import discriminator_loss
from sklabel.active_learning import ActiveLearningClassifier
from sklabel.backbones import Encoder
from sklabel.classification import SupervisedClassifier
from sklabel.selection import SRAALSelector
from sklabel.selection._sraal import _SRAAL, uncertainty

SHORT = {"max_steps": 4, "width": 2, "random_state": 0}
pytestmark = pytest.mark.filterwarnings("ignore::sklabel.CollapseWarning")


@pytest.fixture(scope="module")
def digits():
    X, target = load_digits(return_X_y=True)
    X = (X[:150] / 16).astype(np.float32)
    return X, np.where(np.arange(150) < 50, target[:150], -1), target[:150]


# -- the second implementation


def slow_uncertainty(v):
    n = len(v)
    top = max(v)

    def variance(values):
        return sum((value - 1 / n) ** 2 for value in values) / n

    least = variance([top, *[(1 - top) / (n - 1)] * (n - 1)])
    if variance(v) < 1e-15:
        return 1 - top
    return 1 - least / variance(v) * top


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999), n_classes=st.integers(2, 12), power=st.integers(1, 40)
)
def test_uncertainty_by_loops(seed, n_classes, power):
    p = np.random.default_rng(seed).dirichlet(np.ones(n_classes)) ** power
    p /= p.sum()
    found = float(uncertainty(torch.from_numpy(p[None])))
    assert found == pytest.approx(slow_uncertainty(p), abs=1e-9)
    assert 0 <= found <= 1


def test_uncertainty_of_what_is_known():
    p = torch.tensor(
        [[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [0.5, 0.3, 0.1, 0.1]]
    )
    certain, even, two, three = uncertainty(p).tolist()
    assert certain == 0 and even == pytest.approx(0.75)
    assert two > three  # a rival makes unsure
    assert uncertainty(torch.ones(3, 1)).tolist() == [0, 0, 0]


def test_doubt_is_the_target_of_the_discriminator():
    rng = torch.Generator().manual_seed(0)
    labeled = torch.randn(5, 1, generator=rng, dtype=torch.float64)
    others = torch.randn(7, 1, generator=rng, dtype=torch.float64)
    doubt = torch.rand(7, 1, generator=rng, dtype=torch.float64)
    want = -np.mean([np.log(1 / (1 + np.exp(-d))) for d in labeled[:, 0].tolist()])
    for d, u in zip(others[:, 0].tolist(), doubt[:, 0].tolist(), strict=True):
        q = 1 / (1 + np.exp(-d))
        want -= ((1 - u) * np.log(q) + u * np.log(1 - q)) / 7
    assert float(discriminator_loss(labeled, others, doubt)) == pytest.approx(want)
    both = F.softplus(-labeled).mean() + F.softplus(others).mean()
    torch.testing.assert_close(discriminator_loss(labeled, others), both)


def small_module(**given):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
    settings = {"kl_weight": 0.1, "kl_reduction": "sum", "adversary_weight": 2.0}
    return _SRAAL(
        Encoder(body, (6,)),
        nn.Linear(3, 6),
        3,
        torch.zeros(6),
        torch.ones(6),
        head=nn.Linear(3, 4),
        vae_steps=1,
        **{**settings, **given},
    )


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum())


@pytest.mark.parametrize("given_doubts", [False, True])
def test_the_loss_by_loops(given_doubts):
    doubts = torch.linspace(0, 0.7, 10) if given_doubts else None
    module = small_module(doubts=doubts, label_weight=0.7)
    x, y = torch.randn(8, 6), torch.tensor([0, 3, 1, -1, -3, -5, -7, -10])
    torch.manual_seed(1)
    loss, metrics = module.loss(x, y)
    torch.manual_seed(1)
    noise = torch.randn(8, 3).numpy().astype(float)
    w = {
        k: v.numpy().astype(float)
        for k, v in module.state_dict().items()
        if torch.is_tensor(v)
    }

    def dense(h, name):
        return w[f"{name}.weight"] @ h + w[f"{name}.bias"]

    def judge(mu):
        h, layers = (
            mu,
            [
                k[:-7]
                for k in w
                if k.startswith("discriminator") and k.endswith("weight")
            ],
        )
        for i, name in enumerate(layers):
            h = dense(h, name)
            h = np.maximum(h, 0) if i < len(layers) - 1 else h
        return 1 / (1 + np.exp(-h[0]))

    error, kl, judged, classes, doubt = np.zeros(8), np.zeros(8), np.zeros(8), [], []
    for i in range(8):
        h = np.tanh(dense(x[i].numpy().astype(float), "backbone.body.0"))
        mu, logvar = dense(h, "to_mean"), dense(h, "to_logvar")
        z = mu + noise[i] * np.exp(logvar / 2)
        error[i] = np.mean((dense(z, "decoder") - x[i].numpy()) ** 2)
        kl[i] = -0.5 * sum(1 + logvar - mu**2 - np.exp(logvar))
        judged[i] = judge(mu)
        if i < 3:
            classes.append(-log_softmax(dense(z, "head"))[y[i]])
        elif given_doubts:
            doubt.append(float(doubts[-1 - int(y[i])]))
        else:
            doubt.append(slow_uncertainty(np.exp(log_softmax(dense(mu, "head")))))
    doubt = np.array(doubt)
    want = error[:3].mean() + error[3:].mean() + 0.1 * kl.sum()
    want += 0.7 * (np.mean(classes) + 0.1 * kl[:3].sum())
    want += 2.0 * -(np.log(judged[:3]).mean() + np.log(judged[3:]).mean())
    others = (1 - doubt) * np.log(judged[3:]) + doubt * np.log(1 - judged[3:])
    want += -np.log(judged[:3]).mean() - others.mean()
    assert loss.item() == pytest.approx(want, rel=1e-5)
    assert metrics["doubt"].item() == pytest.approx(doubt.mean(), rel=1e-5)


def test_the_codes_are_moved_by_the_adversary_and_not_by_the_discriminator():
    module = small_module(kl_weight=0.0, label_weight=0.0)
    x, y = torch.randn(8, 6), torch.tensor([0, 3, 1, -1, -3, -5, -7, -10])
    mu = module.encode(x)[0].detach().requires_grad_(True)
    seen, judged = module.judged(mu, [3, 5])
    (moved,) = torch.autograd.grad(seen[0].sum() + seen[1].sum(), [mu])
    assert moved.abs().sum() > 0  # the public re-implementation cuts this gradient
    doubt = module.doubt(mu[3:], -1 - y[3:])
    assert not doubt.requires_grad
    loss = discriminator_loss(*judged, doubt)
    (moved,) = torch.autograd.grad(loss, [mu], allow_unused=True)
    assert moved is None


# -- the selector


def test_what_a_classifier_doubts(digits):
    X, y, _ = digits
    classifier = LogisticRegression(max_iter=500)
    selector = SRAALSelector(8, classifier=classifier, **SHORT).fit(X, y)
    fitted = LogisticRegression(max_iter=500).fit(X[:50], y[:50])
    p = fitted.predict_proba(X)
    np.testing.assert_allclose(selector.classifier_.predict_proba(X), p)
    assert (
        selector.net_.module_.doubts is None or len(selector.net_.module_.doubts) == 150
    )
    frozen = SRAALSelector(8, classifier=FrozenEstimator(fitted), **SHORT).fit(X, y)
    np.testing.assert_array_equal(frozen.sample_indices_, selector.sample_indices_)
    own = SRAALSelector(8, **SHORT).fit(X, y)
    assert not hasattr(own, "classifier_")
    assert own.scores_.tolist() != selector.scores_.tolist()


def test_images_and_a_network(digits):
    X, y, _ = digits
    images = X.reshape(-1, 8, 8)
    network = SupervisedClassifier(max_steps=3, random_state=0)
    selector = SRAALSelector(8, classifier=network, **SHORT).fit(images, y)
    assert selector.sample_indices_.min() >= 50
    assert isinstance(selector.classifier_, SupervisedClassifier)
    again = pickle.loads(pickle.dumps(selector))
    np.testing.assert_array_equal(again.scores_, selector.scores_)


def test_saved_and_loaded(digits, tmp_path):
    X, y, _ = digits
    selector = SRAALSelector(8, **SHORT).fit(X, y)
    selector.save(tmp_path)
    loaded = sklabel.load(tmp_path)
    np.testing.assert_array_equal(loaded.sample_indices_, selector.sample_indices_)
    for a, b in zip(
        loaded.net_.module_.parameters(),
        selector.net_.module_.parameters(),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_a_new_class_in_a_warm_start(digits):
    X, y, _ = digits
    selector = SRAALSelector(8, warm_start=True, **SHORT)
    selector.fit(X, np.where(y < 6, y, -1))
    before = selector.net_.module_.head.weight[:6].clone()
    selector.set_params(max_steps=1, lr=1e-9).fit(X, y)
    assert selector.classes_.tolist() == list(range(10))
    torch.testing.assert_close(selector.net_.module_.head.weight[:6], before)


def test_in_the_loop_the_classifier_is_that_of_the_loop(digits):
    X, _, target = digits
    loop = ActiveLearningClassifier(
        LogisticRegression(max_iter=300),
        SRAALSelector(max_steps=2, width=2),
        n_rounds=2,
        n_samples=20,
        random_state=0,
    ).fit(X, target)
    assert isinstance(loop.selector_.classifier_, FrozenEstimator)
    assert loop.history_[-1]["n_labeled"] == 60


def test_it_asks_for_classes_without_labels(digits):
    X, target = load_digits(return_X_y=True)
    X, target = X[:400], target[:400]
    y = np.where((target < 7) & (np.arange(400) < 200), target, -1)
    selector = SRAALSelector(
        20,
        adversary_weight=0.1,
        max_epochs=10,
        batch_size=32,
        lr=2e-3,
        width=8,
        random_state=0,
    )
    rows = selector.fit_select(X, y)
    share = (target[y < 0] >= 7).mean()
    assert (target[rows] >= 7).mean() > share + 0.1
