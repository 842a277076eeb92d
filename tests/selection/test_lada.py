"""LADA: a second implementation in numpy, pairs that are found again, the loop."""

import pickle

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

import sklabel
from sklabel._core.samplers import LabeledThenCoupled
from sklabel._core.samples import Samples
from sklabel.active_learning import ActiveLearningClassifier
from sklabel.selection import LADASelector
from sklabel.selection._lada import _pairs, _Policy, entropy_bits, mix
from tests._making import fit_broken_off

SHORT = {"max_epochs": 3, "policy_epochs": 1, "random_state": 0}


@pytest.fixture(scope="module")
def digits():
    X, target = load_digits(return_X_y=True)
    X = (X[:150] / 16).astype(np.float32)
    return X, np.where(np.arange(150) < 40, target[:150], -1), target[:150]


class Fixed:
    """In the place of the Beta distribution: every draw is 0.3."""

    def __init__(self, a, b, validate_args=None):
        assert torch.equal(a, b)
        self.a, self.shape = a, a.shape

    def sample(self):
        return torch.full(self.shape, 0.3)

    def rsample(self, shape):
        return torch.full((*shape, *self.shape), 0.3) + 0 * self.a


# -- the second implementation


def slow_entropy(logits):
    e = np.exp(logits - logits.max())
    return -sum(p * np.log2(p) for p in e / e.sum() if p > 0)


class SlowNet:
    """tanh(W2 mix(tanh(W1 x + b1)) + b2), a linear head, Adam; all by hand."""

    def __init__(self, state):
        names = {"0": 1, "2": 2}
        self.w = {}
        for name, value in state.items():
            part = name.split(".")
            if name.startswith("backbone.body"):
                self.w[f"{'W' if part[3] == 'weight' else 'b'}{names[part[2]]}"] = value
            elif part[0] == "head":
                self.w["V" if part[1] == "weight" else "c"] = value
        self.w = {k: v.numpy().astype(np.float64) for k, v in self.w.items()}
        self.mean, self.std = (
            state[f"backbone.{k}"].numpy().astype(np.float64) for k in ("mean", "std")
        )
        self.m, self.v, self.t = {}, {}, 0

    def forward(self, x, share=None):
        """Return logits and what lies between; of pairs the first rows come first."""
        x = (x - self.mean) / self.std
        h = np.tanh(x @ self.w["W1"].T + self.w["b1"])
        g = h
        if share is not None:
            n = len(h) // 2
            g = np.array([share * h[i] + (1 - share) * h[n + i] for i in range(n)])
        k = np.tanh(g @ self.w["W2"].T + self.w["b2"])
        return k @ self.w["V"].T + self.w["c"], (x, h, g, k)

    def step(self, x, targets, share=None, lr=1e-3):
        """One step of Adam on the cross-entropy with soft targets (n, K)."""
        logits, (x, h, g, k) = self.forward(x, share)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        loss = -(targets * np.log(p)).sum(1).mean()
        d = (p - targets) / len(p)
        slopes = {"V": d.T @ k, "c": d.sum(0)}
        d = d @ self.w["V"] * (1 - k**2)
        slopes |= {"W2": d.T @ g, "b2": d.sum(0)}
        d = d @ self.w["W2"]
        if share is not None:
            d = np.concatenate([share * d, (1 - share) * d])
        d = d * (1 - h**2)
        slopes |= {"W1": d.T @ x, "b1": d.sum(0)}
        self.t += 1
        for name, s in slopes.items():
            self.m[name] = 0.9 * self.m.get(name, 0) + 0.1 * s
            self.v[name] = 0.999 * self.v.get(name, 0) + 0.001 * s * s
            m = self.m[name] / (1 - 0.9**self.t)
            v = self.v[name] / (1 - 0.999**self.t)
            self.w[name] = self.w[name] - lr * m / (np.sqrt(v) + 1e-8)
        return loss


def body():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh())


def test_two_rounds_equal_the_second_implementation(digits, monkeypatch):
    X, y, target = digits
    monkeypatch.setattr(torch.distributions, "Beta", Fixed)
    batches, states = [], []
    fetch, build = LabeledThenCoupled.fetch, LADASelector._build_module

    def fetched(sampler, rows):
        batches.append((rows[0] if isinstance(rows, tuple) else rows, sampler.targets))
        return fetch(sampler, rows)

    def built(selector, *given):
        module = build(selector, *given)
        states.append({k: v.clone() for k, v in module.state_dict().items()})
        return module

    monkeypatch.setattr(LabeledThenCoupled, "fetch", fetched)
    monkeypatch.setattr(LADASelector, "_build_module", built)
    selector = LADASelector(
        8, backbone=body(), layers=["1"], n_draws=2, warm_start=True, **SHORT
    )
    for round in range(2):
        batches.clear()
        asked = getattr(selector, "pairs_", np.empty((0, 2)))
        selector.fit(X, y)
        slow = SlowNet(states[-1])
        mixed = 0
        for rows, codes in batches:
            if rows.ndim == 1:
                slow.step(X[rows].astype(float), np.eye(10)[codes[rows]])
                continue
            mixed += 1
            np.testing.assert_array_equal(rows, asked)
            pair = X[np.concatenate(rows.T)].astype(float)
            one, other = (np.eye(10)[codes[part]] for part in rows.T)
            slow.step(pair, 0.3 * one + 0.7 * other, share=0.3)
        assert mixed == (3 if round else 0)  # a step for each epoch
        assert len(batches) == 3 * (4 if round == 0 else 5) + mixed
        found = SlowNet(selector.net_.module_.state_dict())
        for name, weight in slow.w.items():
            np.testing.assert_allclose(found.w[name], weight, atol=2e-5)
        # the scores of the pairs that are asked, one number after the other
        for i, j in selector.pairs_:
            own = [slow_entropy(slow.forward(X[[r]])[0][0]) for r in (i, j)]
            turned = own[0] < own[1] - 1e-6
            assert not turned
            both = [
                slow_entropy(slow.forward(X[order], share=0.3)[0][0])
                for order in ([i, j], [j, i])
            ]
            want = [sum(own) + mixture for mixture in both]  # in one order or the other
            assert np.abs(np.array(want) - selector.scores_[i]).min() < 2e-4
            assert selector.scores_[i] == selector.scores_[j]
        y = np.where(np.isin(np.arange(150), selector.sample_indices_), target, y)


def test_mixtures_and_entropies_by_loops():
    rng = np.random.default_rng(0)
    h, share = rng.standard_normal((6, 2, 3, 3)), rng.random((4, 3))
    found = mix(torch.from_numpy(h), torch.from_numpy(share)).numpy()
    for k in range(4):
        for i in range(3):
            want = share[k, i] * h[i] + (1 - share[k, i]) * h[3 + i]
            np.testing.assert_allclose(found[3 * k + i], want)
    logits = rng.standard_normal((5, 4)) * 50  # probabilities of 0 among them
    want = [slow_entropy(row) for row in logits]
    np.testing.assert_allclose(entropy_bits(torch.from_numpy(logits)), want, atol=1e-9)


def slow_policy(policy, first, second):
    """tau of one pair of maps (C, H, W), from the written layers."""
    w = {k: v.numpy().astype(np.float64) for k, v in policy.state_dict().items()}
    h = np.concatenate([first, second])
    for name, border in (("maps.0", 2), ("maps.3", 0)):
        padded = np.pad(h, ((0, 0), (border, border), (border, border)))
        h = np.stack(
            [
                correlate(padded, kernel, "valid")[0] + bias
                for kernel, bias in zip(
                    w[f"{name}.weight"], w[f"{name}.bias"], strict=True
                )
            ]
        )
        h = np.maximum(h, 0)
        n, m = h.shape[1] // 2, h.shape[2] // 2
        h = np.array(
            [
                [
                    [c[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max() for j in range(m)]
                    for i in range(n)
                ]
                for c in h
            ]
        )
    h = h.ravel()
    for name in ("last.0", "last.2"):
        h = np.tanh(w[f"{name}.weight"] @ h + w[f"{name}.bias"])
    return 1 / (1 + np.exp(-(w["last.4.weight"] @ h + w["last.4.bias"])))[0]


def test_the_policy_has_the_published_layers():
    torch.manual_seed(0)
    policy = _Policy((3, 14, 16))
    h = np.random.default_rng(0).standard_normal((4, 3, 14, 16))
    with torch.no_grad():
        tau = policy(torch.from_numpy(h).float())
    want = [slow_policy(policy, h[i], h[2 + i]) for i in range(2)]
    np.testing.assert_allclose(tau, want, rtol=1e-5)
    widths = [part.out_features for part in policy.last if isinstance(part, nn.Linear)]
    assert widths == [120, 60, 1]


SMALL = [(2, 1, 1), (2, 3, 7), (5, 8, 8), (4,), (6, 4)]
SMALL += [(2, side, 11) for side in (9, 10, 11, 12, 40)]
SMALL += [(2, 40, side) for side in (10, 11, 12, 13)]


@pytest.mark.parametrize("shape", SMALL)
def test_policies_for_small_maps_vectors_and_tokens(shape):
    tau = _Policy(shape)(torch.zeros(6, *shape))
    assert tau.shape == (3,) and (tau > 0).all() and (tau < 1).all()


def test_the_policy_learns_to_mix_so_that_the_network_is_unsure(digits):
    X, y, _ = digits
    given = {**SHORT, "max_epochs": 30, "policy_epochs": 12, "n_draws": 40}
    selector = LADASelector(10, backbone=body(), policy_lr=3e-2, **given).fit(X, y)
    curve = selector.policy_curve_
    assert len(curve) == 12 and curve[-1] > curve[0]
    assert np.isfinite(selector.mixing_).all() and (selector.mixing_ > 0).all()


# -- pairs


def test_pairs_of_rows():
    assert _pairs(np.arange(4)).tolist() == [[0, 1], [2, 3]]
    assert _pairs(np.arange(5)).tolist() == [[0, 1], [2, 3], [4, 4]]


@pytest.mark.parametrize("n_samples", [1, 2, 7, 110])
def test_whole_pairs_are_asked_but_for_an_odd_row(n_samples, digits):
    X, y, _ = digits
    selector = LADASelector(n_samples, **SHORT).fit(X, y)
    rows = selector.sample_indices_
    assert selector.pairs_.shape == (n_samples // 2, 2)
    np.testing.assert_array_equal(
        rows[: n_samples - n_samples % 2], selector.pairs_.ravel()
    )
    assert (np.diff(selector.scores_[rows]) <= 0).all()


def test_pairs_are_found_again_wherever_their_rows_stand(digits):
    X, y, target = digits
    selector = LADASelector(6, warm_start=True, **SHORT).fit(X, y)
    pairs = selector.pairs_
    y = y.copy()
    y[pairs[:2]] = target[pairs[:2]]  # the third got no label
    order = np.random.default_rng(0).permutation(150)
    again = pickle.loads(pickle.dumps(selector)).fit(X[order], y[order])
    assert "mixed_loss" in again.net_.history[-1]
    seen = []
    selector._continued = selector.net_.module_
    samples = Samples(X[order], (64,))
    found, mixing, layer = selector._answered(samples, y[order])
    seen = order[found]
    np.testing.assert_array_equal(seen, pairs[:2])
    np.testing.assert_array_equal(mixing, selector.mixing_[:2])
    assert layer == selector.layer_


def test_a_new_start_mixes_nothing(digits):
    X, y, target = digits
    selector = LADASelector(6, **SHORT).fit(X, y)
    y = np.where(np.isin(np.arange(150), selector.sample_indices_), target, y)
    assert "mixed_loss" not in selector.fit(X, y).net_.history[-1]
    other = clone(selector).fit(X, y)
    np.testing.assert_array_equal(other.sample_indices_, selector.sample_indices_)


def test_one_pair(digits):
    X, y, target = digits
    selector = LADASelector(2, warm_start=True, **SHORT).fit(X, y)
    y = np.where(np.isin(np.arange(150), selector.sample_indices_), target, y)
    assert np.isfinite(selector.fit(X, y).net_.history[-1, "mixed_loss"])


def test_saved_it_goes_on_with_its_pairs(digits, tmp_path):
    X, y, target = digits
    selector = LADASelector(6, warm_start=True, **SHORT).fit(X, y)
    selector.save(tmp_path)
    y = np.where(np.isin(np.arange(150), selector.sample_indices_), target, y)
    loaded = sklabel.load(tmp_path).fit(X, y)
    assert "mixed_loss" in loaded.net_.history[-1]
    np.testing.assert_array_equal(
        loaded.sample_indices_, selector.fit(X, y).sample_indices_
    )


def test_checkpoints_go_on_after_the_policy(digits, tmp_path):
    X, y, _ = digits
    first = LADASelector(6, checkpoint_dir=tmp_path, **SHORT).fit(X, y)
    second = LADASelector(6, checkpoint_dir=tmp_path, **SHORT).fit(X, y)
    np.testing.assert_array_equal(first.scores_, second.scores_)
    np.testing.assert_array_equal(first.mixing_, second.mixing_)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("at", [7, 13, 20])  # while it mixes, and in the policy
def test_a_second_round_that_was_broken_off_goes_on(
    at, saved, digits, tmp_path, monkeypatch
):
    X, y, target = digits
    given = {"warm_start": True, "batch_size": 10, "policy_batch_size": 20, **SHORT}
    selector = LADASelector(6, **given).fit(X, y)
    y = np.where(np.isin(np.arange(150), selector.sample_indices_), target, y)
    cut = pickle.loads(pickle.dumps(selector)).set_params(checkpoint_dir=tmp_path)
    whole = selector.fit(X, y)
    fit_broken_off(cut, X, y, at, monkeypatch)
    if saved:
        cut.save(tmp_path / "model")
        cut = sklabel.load(tmp_path / "model").set_params(checkpoint_dir=tmp_path)
    assert cut.fit(X, y).interrupted_ is False
    np.testing.assert_allclose(cut.scores_, whole.scores_)
    np.testing.assert_array_equal(cut.sample_indices_, whole.sample_indices_)
    # with other labels it is another round
    y = np.where(np.isin(np.arange(150), cut.sample_indices_), target, y)
    np.testing.assert_allclose(cut.fit(X, y).scores_, whole.fit(X, y).scores_)


def test_layers_that_are_not_there(digits):
    with pytest.raises(ValueError, match=r"layers=\['99'\] must be names"):
        LADASelector(2, layers=["99"], **SHORT).fit(*digits[:2])
    with pytest.raises(ValueError, match=r"vectors, at least one\. There are"):
        LADASelector(2, layers=[], **SHORT).fit(*digits[:2])


def test_in_the_loop_with_refused_rows(digits):
    X, _, target = digits
    hidden = target.copy()

    def oracle(rows):
        return np.where(rows % 7 == 0, -1, hidden[rows])

    loop = ActiveLearningClassifier(
        LogisticRegression(max_iter=300),
        LADASelector(warm_start=True, max_epochs=2, policy_epochs=1),
        n_rounds=3,
        n_samples=20,
        oracle=oracle,
        random_state=0,
    ).fit(X)
    assert len(loop.refused_) > 2
    assert "mixed_loss" in loop.selector_.net_.history[-1]
