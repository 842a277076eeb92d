"""TURTLE: a second implementation in numpy, several spaces, ranked trainings."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import FeatureUnion
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn

import sklabel
from sklabel._core.samplers import shuffled
from sklabel.clustering import TURTLEClusterer
from sklabel.clustering._turtle import _TURTLE, _cross_validated

pytestmark = pytest.mark.filterwarnings("ignore::sklabel.CollapseWarning")
QUICK = {"n_steps": 60, "inner_steps": 5, "lr": 0.1, "inner_lr": 0.1, "random_state": 0}


# -- the second implementation: slow, in double precision, with its own Adam


class Adam:
    def __init__(self, lr):
        self.lr, self.t, self.m, self.v = lr, 0, {}, {}

    def step(self, weights, slopes):
        self.t += 1
        for name, g in slopes.items():
            m = self.m.get(name, 0) * 0.9 + 0.1 * g
            v = self.v.get(name, 0) * 0.999 + 0.001 * g * g
            self.m[name], self.v[name] = m, v
            m, v = m / (1 - 0.9**self.t), v / (1 - 0.999**self.t)
            weights[name] = weights[name] - self.lr * m / (np.sqrt(v) + 1e-8)


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def label(tasks, spaces):
    found = []
    for task, z in zip(tasks, spaces, strict=True):
        unit = task["v"] / np.sqrt((task["v"] ** 2).sum(1, keepdims=True))
        found.append(softmax(z @ (task["g"] * unit).T + task["b"]))
    return found


def slow_turtle(tasks, classifiers, spaces, n_steps, gamma, lr, inner_steps, inner_lr):
    """Return the losses; `classifiers` gives the first weights of each step."""
    n, n_spaces, losses = len(spaces[0]), len(spaces), []
    outer = [Adam(lr) for _ in spaces]
    for step in range(n_steps):
        of_spaces = label(tasks, spaces)
        labels = sum(of_spaces) / n_spaces
        error, slope = 0.0, np.zeros_like(labels)
        for s, z in enumerate(spaces):
            inner = {"W": classifiers[step][s][0], "c": classifiers[step][s][1]}
            adam = Adam(inner_lr)
            for _ in range(inner_steps):
                miss = (softmax(z @ inner["W"].T + inner["c"]) - labels) / n
                adam.step(inner, {"W": miss.T @ z, "c": miss.sum(0)})
            log_q = np.log(softmax(z @ inner["W"].T + inner["c"]))
            error -= (labels * log_q).sum() / n
            slope -= log_q / n
        entropy = 0.0
        for s, (z, p) in enumerate(zip(spaces, of_spaces, strict=True)):
            mean = p.mean(0)
            entropy -= (mean * np.log(mean)).sum()
            of_p = slope / n_spaces + gamma * (np.log(mean) + 1) / n
            of_logits = p * (of_p - (of_p * p).sum(1, keepdims=True))
            of_w, task = of_logits.T @ z, tasks[s]
            length = np.sqrt((task["v"] ** 2).sum(1, keepdims=True))
            unit = task["v"] / length
            along = (of_w * unit).sum(1, keepdims=True)
            slopes = {
                "g": along,
                "v": task["g"] / length * (of_w - along * unit),
                "b": of_logits.sum(0),
            }
            outer[s].step(task, slopes)
        losses.append(error - gamma * entropy)
    return losses


@pytest.mark.parametrize("sizes", [(64,), (40, 24)])
def test_the_training_is_that_of_a_second_implementation(sizes):
    X = (load_digits().data[:120] / 16).astype(np.float32)
    spaces = np.split(X.astype(np.float64), np.cumsum(sizes)[:-1], axis=1)
    given = {"n_steps": 5, "inner_steps": 4, "inner_lr": 0.03, "lr": 0.02}
    clusterer = TURTLEClusterer(
        7, space_sizes=sizes, entropy_weight=3.0, random_state=3, **given
    )
    seeds = np.random.RandomState(3).randint(2**31 - 1)
    with torch.random.fork_rng():
        torch.manual_seed(seeds)
        tasks = []
        for size in sizes:
            start = nn.Linear(size, 7)
            v = start.weight.detach().numpy().astype(float)
            b = start.bias.detach().numpy().astype(float)
            tasks.append(
                {"v": v, "g": np.linalg.norm(v, axis=1, keepdims=True), "b": b}
            )
        classifiers = []
        for _ in range(5):  # each pass over the rows has an order of its own
            shuffled(np.arange(120))
            layers = [nn.Linear(size, 7) for size in sizes]
            classifiers.append(
                [
                    [p.detach().numpy().astype(float) for p in la.parameters()]
                    for la in layers
                ]
            )
    losses = slow_turtle(tasks, classifiers, spaces, 5, 3.0, 0.02, 4, 0.03)
    clusterer.fit(X)
    module = clusterer.net_.module_
    for task, found in zip(tasks, module.tasks, strict=True):
        for name, weight in zip(
            "vgb", (found.direction, found.length, found.bias), strict=True
        ):
            np.testing.assert_allclose(weight.detach(), task[name], atol=2e-5)
    assert clusterer.net_.history[-1, "train_loss"] == pytest.approx(
        np.mean(losses), rel=1e-5
    )
    want = (sum(label(tasks, spaces)) / len(sizes)).argmax(1)
    assert adjusted_rand_score(clusterer.labels_, want) == 1
    np.testing.assert_array_equal(np.unique(want)[clusterer.labels_], want)


def test_the_published_numbers_are_the_defaults():
    given = TURTLEClusterer().get_params()
    published = {"n_steps": 6000, "inner_steps": 10, "inner_lr": 1e-3, "lr": 1e-3}
    published |= {"batch_size": 10_000, "entropy_weight": 10.0, "n_init": 1}
    assert {name: given[name] for name in published} == published


def test_no_gradient_passes_to_the_labels_that_classifiers_are_fitted_to():
    torch.manual_seed(0)
    module = _TURTLE(
        (4,), 3, torch.ones(4), entropy_weight=0.0, inner_steps=0, inner_lr=0.1
    )
    x = torch.randn(20, 4)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        loss, _ = module.loss(x, None)
        torch.manual_seed(1)
        q = nn.Linear(4, 3)(x).log_softmax(1).detach()
    (found,) = torch.autograd.grad(loss, [module.tasks[0].bias])
    p = module.label([x])[0]
    (want,) = torch.autograd.grad(-(p * q).sum(1).mean(), [module.tasks[0].bias])
    torch.testing.assert_close(found, want)


# -- spaces


def test_blobs_are_found_in_one_space_and_in_two():
    X, truth = make_blobs(90, random_state=1)
    X = StandardScaler().fit_transform(X)
    turned = np.hstack([X, X @ [[0, 2.0], [-2, 0]]])
    for x, sizes in ((X, None), (turned, [2, 2])):
        found = TURTLEClusterer(3, space_sizes=sizes, **QUICK).fit(x)
        assert adjusted_rand_score(truth, found.labels_) > 0.8
        np.testing.assert_array_equal(found.predict(x), found.labels_)
        np.testing.assert_allclose(
            found.predict_proba(x).max(1), found.confidence_, rtol=1e-5
        )


def test_embedders_give_the_spaces_that_arrays_hold(tmp_path):
    X = load_digits().data[:150] / 16
    parts = [FrozenEstimator(PCA(k, random_state=0).fit(X)) for k in (3, 5)]
    Z = np.hstack([part.transform(X) for part in parts]).astype(np.float32)
    by_arrays = TURTLEClusterer(4, space_sizes=[3, 5], **QUICK).fit(Z)
    by_embedders = TURTLEClusterer(4, embedder=parts, **QUICK).fit(X)
    np.testing.assert_array_equal(by_arrays.labels_, by_embedders.labels_)
    union = FrozenEstimator(FeatureUnion([("a", parts[0]), ("b", parts[1])]).fit(X))
    of_union = TURTLEClusterer(4, embedder=union, space_sizes=[3, 5], **QUICK).fit(X)
    np.testing.assert_array_equal(by_arrays.labels_, of_union.labels_)
    of_union.predict(X[:3])
    assert of_union.score(X) == by_arrays.score(Z)
    fitted = TURTLEClusterer(4, embedder=[PCA(3), FunctionTransformer()], **QUICK)
    assert len(clone(fitted).fit(X).embedder_) == 2
    assert TURTLEClusterer(4, embedder=PCA(3), **QUICK).fit(X).predict(X).shape == (
        150,
    )


def test_saved_and_loaded_with_its_embedders(tmp_path):
    X = (load_digits().images[:80] / 16).astype(np.float32)
    short = {"max_steps": 1, "random_state": 0}
    embedders = [
        FrozenEstimator(sklabel.embedding.SimCLRTransformer(**short).fit(X)),
        FrozenEstimator(sklabel.embedding.AutoencoderTransformer(4, **short).fit(X)),
    ]
    fitted = TURTLEClusterer(3, embedder=embedders, **QUICK).fit(X)
    fitted.save(tmp_path)
    n_weights = sum(
        p.numel() for e in embedders for p in e.net_.module_.state_dict().values()
    )
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size < 1.3 * 4 * n_weights  # each once
    loaded = sklabel.load(tmp_path)
    for other in (loaded, pickle.loads(pickle.dumps(fitted))):
        np.testing.assert_array_equal(other.predict_proba(X), fitted.predict_proba(X))
    assert loaded.score(X) == fitted.score(X)


@pytest.mark.parametrize("sizes", [[2, 2], [5, 0], [2.5, 2.5], []])
def test_sizes_that_do_not_add_up(sizes):
    with pytest.raises(ValueError, match="add up to 5, those of X or of the embedder"):
        TURTLEClusterer(2, space_sizes=sizes, **QUICK).fit(np.eye(9, 5))
    with pytest.raises(ValueError, match="add up to 5"):
        given = {"embedder": PCA(5), "space_sizes": sizes}
        TURTLEClusterer(2, **given, **QUICK).fit(np.eye(9, 6))


def test_sizes_beside_a_list_of_embedders():
    given = {"embedder": [PCA(2), PCA(3)], "space_sizes": [2, 3]}
    with pytest.raises(ValueError, match="leave out space_sizes"):
        TURTLEClusterer(2, **given, **QUICK).fit(np.eye(9, 6))


def test_no_embedder_in_the_list():
    with pytest.raises(ValueError, match="at least one"):
        TURTLEClusterer(2, embedder=[], **QUICK).fit(np.eye(9, 5))
    for wrong in (None, "pca", PCA):
        with pytest.raises(ValueError, match="must contain transformers, .* is none"):
            TURTLEClusterer(2, embedder=[PCA(2), wrong], **QUICK).fit(np.eye(9, 5))


def test_rescaled_spaces_do_not_depend_on_their_unit():
    X = load_digits().data[:120].astype(np.float32)
    given = {"space_sizes": [32, 32], "rescale": True, **QUICK}
    first = TURTLEClusterer(4, **given).fit(X)
    factors = np.repeat([4.0, 0.25], 32)  # no rounding
    second = TURTLEClusterer(4, **given).fit(X * factors)
    np.testing.assert_array_equal(first.labels_, second.labels_)
    scaled = X * first.net_.module_.factors.numpy()
    for part in np.split(scaled, 2, axis=1):
        assert np.square(part).mean() == pytest.approx(1, rel=1e-4)


# -- which training is the best


@pytest.mark.parametrize("rank_by", ["loss", "accuracy"])
def test_the_best_of_several_trainings_is_kept(rank_by):
    X = load_digits().data[:200] / 16
    given = {**QUICK, "n_steps": 15}
    found = TURTLEClusterer(5, n_init=3, rank_by=rank_by, **given).fit(X)
    scores = found.init_scores_
    assert scores.shape == (3,) and len(set(scores)) > 1
    if rank_by == "loss":
        assert -found.net_.history[-1, "train_loss"] == scores.max()
    else:
        assert ((scores > 0) & (scores <= 1)).all()
    first = TURTLEClusterer(5, rank_by=rank_by, **given).fit(X)
    assert first.init_scores_[0] == scores[0]


def test_labels_that_linear_classifiers_find_score_higher():
    rng = np.random.default_rng(0)
    Z = rng.standard_normal((200, 6))
    easy, hard = (Z[:, 0] > 0).astype(int), rng.integers(2, size=200)
    assert _cross_validated(Z, easy, 0) > 0.9 > 0.65 > _cross_validated(Z, hard, 0)
    assert _cross_validated(Z, np.zeros(200, int), 0) == 1
