"""FixMatch's kin, each trained a second time from its formulas, in slow loops."""

import copy
import inspect
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

import sklabel
from sklabel import CollapseWarning
from sklabel.classification._fixmatch import FixMatchClassifier, _FixMatch
from sklabel.modules import SoftWeights
from tests._making import Shift

N, K = 90, 3
TRUTH = np.arange(N) % K
X = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
X += 1.5 * np.eye(K, 6, dtype=np.float32)[TRUTH]
Y = np.where(np.arange(N) < 12, TRUTH, -1)
LR, DECAY = 0.1, 0.9


class Record(Callback):
    """Keeps what a training begins with, its batches and its losses."""

    def initialize(self):
        self.batches, self.losses, self.shares, self.start = [], [], [], None
        Record.last = self
        return self

    def on_batch_begin(self, net, batch=None, **kwargs):
        if self.start is None:
            self.start = copy.deepcopy(net.module_.online)
        self.batches.append(batch)

    def on_batch_end(self, net, loss=None, pseudo_label_share=None, **kwargs):
        self.losses.append(float(loss))
        self.shares.append(float(pseudo_label_share))


def fitted(**parameters):
    """Return a classifier after twelve steps, and what `Record` has kept."""
    given = {
        "max_steps": 12,
        "batch_size": 6,
        "unlabeled_ratio": 3,
        "weak_augment": Shift(0.5),
        "strong_augment": Shift(-1.0),
        "optimizer": "sgd",
        "lr": LR,
        "weight_decay": 0.0,
        "schedule": "constant",
        "ema_decay": DECAY,
        "ema_ramp": False,
        "device": "cpu",
        "random_state": 0,
        "net_params": {"callbacks": [Record], "optimizer__momentum": 0.0},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        clf = FixMatchClassifier(**{**given, **parameters}).fit(X, Y)
    return clf, getattr(Record, "last", None)


def short(**settings):
    return fitted(**settings)[0]


def softmax(logits):
    return [[float(v) for v in row.double().softmax(0)] for row in logits.detach()]


def cross_entropy(logits, target):
    return -torch.log_softmax(logits.double(), 0)[target]


@contextmanager
def still(module):
    """Let BatchNorm keep its running statistics."""
    norms = [m for m in module.modules() if hasattr(m, "running_mean")]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def train_again(record, loss, eman=False):
    """Train what a record begins with on its batches, by another loss; plain SGD.

    ``loss(labeled, weak, strong, labels)`` takes logits, and returns the loss and the
    share of the rows that count.
    """
    online, losses, shares = record.start, [], []
    weak_view = slice(0) if eman else slice(None)  # the average is asked, not this one
    wants_alone = "alone" in inspect.signature(loss.__call__).parameters
    average = copy.deepcopy(online)
    for x, y in record.batches:
        n = int((y >= 0).sum())
        views = [x[:n] + 0.5, (x[n:] + 0.5)[weak_view], x[n:] + 0.5 - 1.0]
        views = torch.cat(views)
        logits = online.train()(views)
        strong = logits[-len(x[n:]) :]
        weak = logits[n : n + len(x[n:])]
        if eman:
            with torch.no_grad():
                weak = average.eval()(x[n:] + 0.5)
        alone = {}
        if wants_alone:  # of the labeled rows, without trace in the running statistics
            with still(online):
                alone["alone"] = online(views[:n])
        value, share = loss(logits[:n], weak.detach(), strong, y[:n], **alone)
        online.zero_grad()
        value.backward()
        with torch.no_grad():
            for mean, weight in zip(
                average.parameters(), online.parameters(), strict=True
            ):
                weight -= LR * weight.grad
                mean.copy_(DECAY * mean + (1 - DECAY) * weight)
            for mean, new in zip(average.buffers(), online.buffers(), strict=True):
                if eman and new.is_floating_point():
                    new = DECAY * mean + (1 - DECAY) * new
                mean.copy_(new)
        losses.append(float(value.detach()))
        shares.append(share)
    return losses, shares, average


def compare(clf, record, loss, eman=False):
    losses, shares, average = train_again(record, loss, eman)
    np.testing.assert_allclose(record.losses, losses, rtol=2e-5)
    np.testing.assert_allclose(record.shares, shares, rtol=1e-4)
    assert 0 < min(shares) or 0 < max(shares) < 1  # some rows count
    found = dict(clf.net_.module_.average.named_parameters())
    for name, weight in average.named_parameters():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=2e-6)
    found = dict(clf.net_.module_.average.named_buffers())
    for name, value in average.named_buffers():
        if value.is_floating_point():  # not the number of batches
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6)


class FreeMatch:
    """Equations 5 to 13 of FreeMatch."""

    def __init__(self, decay, fairness):
        self.decay, self.fairness = decay, fairness
        self.tau, self.p, self.h = 1 / K, [1 / K] * K, [1 / K] * K

    def __call__(self, labeled, weak, strong, labels):
        q, m = softmax(weak), self.decay
        self.tau = m * self.tau + (1 - m) * np.mean([max(row) for row in q])
        top = [row.index(max(row)) for row in q]
        for k in range(K):
            self.p[k] = m * self.p[k] + (1 - m) * np.mean([row[k] for row in q])
            self.h[k] = m * self.h[k] + (1 - m) * np.mean([t == k for t in top])
        used, unlabeled = [], 0.0
        for i, row in enumerate(q):
            if max(row) >= self.p[top[i]] / max(self.p) * self.tau:
                used.append(i)
                unlabeled = unlabeled + cross_entropy(strong[i], top[i])
        known = sum(map(cross_entropy, labeled, labels)) / len(labels)
        loss = known + unlabeled / len(q)
        if used and self.fairness:
            loss = loss + self.fairness * self.term(strong[used].double().softmax(1))
        return loss, len(used) / len(q)

    def term(self, q):
        counts = [int((q.argmax(1) == k).sum()) for k in range(K)]
        left = [self.p[k] / self.h[k] if self.h[k] else 0.0 for k in range(K)]
        right = [
            q[:, k].mean() * len(q) / c if (c := counts[k]) else 0 * q.sum()
            for k in range(K)
        ]
        return sum(
            left[k] / sum(left) * torch.log(right[k] / sum(right) + 1e-12)
            for k in range(K)
        )


@pytest.mark.parametrize("fairness", [0.0, 0.05])
def test_freematch(fairness):
    own = {"threshold": "free", "threshold_decay": 0.8, "fairness_weight": fairness}
    compare(*fitted(**own), FreeMatch(0.8, fairness))


class SoftMatch:
    """Equations 6 to 9 of SoftMatch, with uniform alignment."""

    def __init__(self, decay, n):
        self.decay, self.n = decay, n
        self.mu, self.var, self.p = 1 / K, 1.0, [1 / K] * K

    def __call__(self, labeled, weak, strong, labels):
        q, m = softmax(weak), self.decay
        for k in range(K):
            self.p[k] = m * self.p[k] + (1 - m) * np.mean([row[k] for row in q])
        sure = []
        for row in q:
            aligned = [row[k] / K / self.p[k] for k in range(K)]
            sure.append(max(aligned) / sum(aligned))
        mean = sum(sure) / len(sure)
        var = sum((c - mean) ** 2 for c in sure) / (len(sure) - 1)
        self.mu = m * self.mu + (1 - m) * mean
        self.var = m * self.var + (1 - m) * var
        unlabeled, total = 0.0, 0.0
        for i, row in enumerate(q):
            below = min(0.0, sure[i] - self.mu)
            weight = np.exp(-(below**2) / (2 * self.var / self.n**2))
            total += weight
            unlabeled = unlabeled + weight * cross_entropy(
                strong[i],
                row.index(max(row)),  # as predicted, not as aligned
            )
        known = sum(map(cross_entropy, labeled, labels)) / len(labels)
        return known + unlabeled / len(q), total / len(q)


def test_softmatch():
    own = {"threshold": "soft", "threshold_decay": 0.7, "soft_sharpness": 3.0}
    compare(*fitted(**own), SoftMatch(0.7, 3.0))


class AdaMatch:
    """Sections 3.1 to 3.3 of AdaMatch."""

    def __init__(self, tau):
        self.tau, self.n = tau, 0
        self.known, self.unknown = [1 / K] * K, [1 / K] * K

    def __call__(self, labeled, weak, strong, labels, alone):
        labeled = labeled + (alone - labeled) * 0.3
        self.n += 1
        m = min(0.999, (1 + self.n) / (10 + self.n))
        p, q = softmax(labeled), softmax(weak)
        for k in range(K):
            self.known[k] = m * self.known[k] + (1 - m) * np.mean([r[k] for r in p])
            self.unknown[k] = m * self.unknown[k] + (1 - m) * np.mean([r[k] for r in q])
        threshold = self.tau * np.mean([max(row) for row in p])
        unlabeled, used = 0.0, 0
        for i, row in enumerate(q):
            aligned = [row[k] * self.known[k] / self.unknown[k] for k in range(K)]
            if max(aligned) / sum(aligned) >= threshold:
                used += 1
                target = aligned.index(max(aligned))
                unlabeled = unlabeled + cross_entropy(strong[i], target)
        known = sum(map(cross_entropy, labeled, labels)) / len(labels)
        return known + unlabeled / len(q), used / len(q)


ADAMATCH = {
    "relative_threshold": True,
    "logit_interpolation": True,
    "distribution_alignment": "predictions",
}


def test_adamatch(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.3))
    clf, record = fitted(**ADAMATCH, threshold=0.9)
    compare(clf, record, AdaMatch(0.9))
    # statistics are those of the joint batches alone
    norm = [m for m in clf.net_.module_.online.modules() if hasattr(m, "running_mean")]
    again = [m for m in record.start.modules() if hasattr(m, "running_mean")]
    assert norm
    for own, other in zip(norm, again, strict=True):
        torch.testing.assert_close(own.running_mean, other.running_mean)
        assert own.num_batches_tracked == 12


def test_a_batch_of_one_labeled_row_is_not_interpolated():
    short(**ADAMATCH, batch_size=1, max_steps=2)


class DebiasPL:
    """Equations 2 to 5 of DebiasPL."""

    def __init__(self, tau, m, threshold):
        self.tau, self.m, self.threshold = tau, m, threshold
        self.p = [1 / K] * K

    def __call__(self, labeled, weak, strong, labels):
        q = softmax(weak - self.tau * torch.tensor(self.p).log())
        raw = softmax(weak)
        for k in range(K):
            mean = sum(row[k] for row in raw) / len(raw)
            self.p[k] = self.m * self.p[k] + (1 - self.m) * mean
        unlabeled, used = 0.0, 0
        for i, row in enumerate(q):
            if max(row) >= self.threshold:
                used += 1
                margin = self.tau * torch.tensor(self.p).log()
                target = row.index(max(row))
                unlabeled = unlabeled + cross_entropy(strong[i] + margin, target)
        known = sum(map(cross_entropy, labeled, labels)) / len(labels)
        return known + unlabeled / len(q), used / len(q)


def test_debiaspl():
    own = {
        "distribution_alignment": "debiased",
        "debias_strength": 0.7,
        "debias_decay": 0.6,
        "threshold": 0.7,
    }
    compare(*fitted(**own), DebiasPL(0.7, 0.6, 0.7))


class FixMatch:
    """Equations 3 and 4 of FixMatch."""

    def __init__(self, threshold):
        self.threshold = threshold

    def __call__(self, labeled, weak, strong, labels):
        unlabeled, used = 0.0, 0
        for i, row in enumerate(softmax(weak)):
            if max(row) >= self.threshold:
                used += 1
                unlabeled = unlabeled + cross_entropy(strong[i], row.index(max(row)))
        known = sum(map(cross_entropy, labeled, labels)) / len(labels)
        return known + unlabeled / len(weak), used / len(weak)


class InPL(FixMatch):
    """Equations 3 and 4 of InPL: the energy in the confidence's place."""

    def __call__(self, labeled, weak, strong, labels):
        unlabeled, used = 0.0, 0
        for i, row in enumerate(weak.double().tolist()):
            if -np.log(np.exp(row).sum()) < self.threshold:
                used += 1
                unlabeled = unlabeled + cross_entropy(strong[i], row.index(max(row)))
        known = sum(map(cross_entropy, labeled, labels)) / len(labels)
        return known + unlabeled / len(weak), used / len(weak)


def test_inpl():
    compare(*fitted(threshold=0.0, energy_threshold=-2.0), InPL(-2.0))


def test_the_energy_is_that_of_the_predictions_as_they_were():
    both = {"distribution_alignment": "debiased", "debias_strength": 30.0}
    clf, record = fitted(threshold=0.0, energy_threshold=-2.0, **both)
    # the logarithm of a mean prediction is negative: debiased, all rows would fit
    assert min(record.shares) < 1


@pytest.mark.parametrize("teacher", ["online", "average"])
def test_fixmatch_and_eman(teacher):
    clf, record = fitted(threshold=0.5, teacher=teacher)
    compare(clf, record, FixMatch(0.5), eman=teacher == "average")


@pytest.mark.parametrize("kind", ["predictions", "debiased"])
def test_a_warm_start_keeps_what_the_alignment_has_learned(kind):
    clf = FixMatchClassifier(
        distribution_alignment=kind, max_steps=2, warm_start=True, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        module = clf.fit(X, Y).net_.module_
        module.align.mean_prediction = torch.tensor([0.8, 0.1, 0.1])
        module.n_steps = 10**6
        mean = clf.set_params(max_steps=1).fit(X, Y).net_.module_.align.mean_prediction
    torch.testing.assert_close(mean, torch.tensor([0.8, 0.1, 0.1]), atol=2e-3, rtol=0)


def test_weights_of_one_row_and_of_equal_rows():
    for logits in (torch.tensor([[2.0, 0.0]]), torch.zeros(4, 2)):
        weights = SoftWeights(2, decay=0.0).weigh(torch.arange(len(logits)), logits)
        torch.testing.assert_close(weights, torch.ones(len(logits)))


def test_averages_of_thresholds_move_faster_at_first_unless_as_published():
    for ramp, decays in ((True, (2 / 11, 3 / 12)), (False, (0.999, 0.999))):
        clf, record = fitted(threshold="free", ema_ramp=ramp, max_steps=1)
        # with nothing moved every row counts: the confidence is at least 1 / K
        assert record.shares[0] <= 1
        thresholds = clf._build_thresholds(K, None)
        expected = 1 / K
        for decay, value in zip(decays, (0.5, 0.9), strict=True):
            logits = torch.tensor([[value, (1 - value) / 2, (1 - value) / 2]]).log()
            thresholds.weigh(torch.tensor([0]), logits)
            expected = decay * expected + (1 - decay) * value
            torch.testing.assert_close(thresholds.confidence, torch.tensor(expected))


@pytest.mark.parametrize(
    "asked",
    [
        {"threshold": "free", "class_thresholds": True},
        {"threshold": "soft", "relative_threshold": True},
        {"relative_threshold": True, "class_thresholds": True},
    ],
    ids=str,
)
def test_two_ways_to_set_thresholds_are_refused(asked):
    with pytest.raises(ValueError, match="choose one"):
        FixMatchClassifier(**asked).fit(X, Y)
    with pytest.raises(ValueError, match="fairness_weight=0.1 needs .*threshold=0.95"):
        FixMatchClassifier(fairness_weight=0.1).fit(X, Y)


# what the docstring and the user guide call published
RECIPES = {
    "USB": {
        "optimizer": "adamw",
        "lr": 5e-4,
        "layer_decay": 0.5,
        "backbone_lr": 1,
        "head_init": "random",
        "ema_decay": 0,
        "batch_size": 8,
        "unlabeled_ratio": 1,
    },
    "InPL": {"threshold": 0, "energy_threshold": -9.5, "ema_ramp": False},
    "EMAN": {
        "teacher": "average",
        "threshold": 0.7,
        "unlabeled_weight": 10,
        "unlabeled_ratio": 5,
        "ema_ramp": False,
    },
    "DebiasPL": {
        "distribution_alignment": "debiased",
        "debias_decay": 0.99,
        "threshold": 0.8,
        "unlabeled_weight": 10,
        "unlabeled_ratio": 5,
        "lr": 0.003,
        "teacher": "average",
        "ema_ramp": False,
    },
    "AdaMatch": {
        "threshold": 0.9,
        **ADAMATCH,
        "unlabeled_ratio": 3,
        "weight_decay": 1e-3,
        "ema_ramp": False,
    },
    "SoftMatch": {"threshold": "soft", "ema_ramp": False},
    "FreeMatch": {
        "threshold": "free",
        "fairness_weight": 0.01,
        "ema_ramp": False,
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_recipe_runs_is_saved_and_goes_on(name, tmp_path):
    given = {"max_steps": 3, "batch_size": 6, "random_state": 0, "device": "cpu"}
    clf = FixMatchClassifier(**{**given, **RECIPES[name]}, warm_start=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        p = clf.fit(X, Y).predict_proba(X)
        assert np.isfinite(p).all() and clf.net_.module_.n_steps == 3
        clf.save(tmp_path / "model")
        loaded = sklabel.load(tmp_path / "model")
        np.testing.assert_array_equal(loaded.predict_proba(X), p)
        assert clf.net_.module_.thresholds is None  # of the training alone
        assert clf.fit(X, Y).net_.module_.n_steps == 6
        assert loaded.fit(X, Y).net_.module_.n_steps == 6


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_was_broken_off_ends_in_the_same_bits(
    name, tmp_path, monkeypatch
):
    settings = {**RECIPES[name], "net_params": None, "max_steps": 9}
    whole = short(**settings)
    step, calls = _FixMatch.after_step, []

    def power_cut(self):
        calls.append(1)
        if len(calls) == 7:
            raise RuntimeError("the power fails")
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(_FixMatch, "after_step", power_cut)
        with pytest.raises(RuntimeError, match="the power fails"):
            short(**settings, checkpoint_dir=tmp_path)
    found = short(**settings, checkpoint_dir=tmp_path)
    np.testing.assert_array_equal(found.predict_proba(X), whole.predict_proba(X))
