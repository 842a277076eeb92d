"""MixMatch: the published values, unlabeled rows help."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import nn
from torch.nn.functional import cross_entropy

import sklabel
from sklabel import CollapseWarning
from sklabel.augment import Weak
from sklabel.classification import _mixmatch
from sklabel.classification._mixmatch import MixMatchClassifier, _MixMatch
from sklabel.datasets import load_digit_images
from sklabel.losses import (
    guessed_labels,
    mixmatch_losses,
    mixup,
    sharpen,
)
from sklabel.modules import PredictedClasses, mixing_weights
from tests._golden import cases
from tests._pictures import stripes

# trainings of three steps guess at random
pytestmark = pytest.mark.filterwarnings("ignore::sklabel.CollapseWarning")

X = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
X[::2] += 2
TRUTH = (np.arange(80) + 1) % 2
Y = np.where(np.arange(80) < 10, TRUTH, -1)


def short(**parameters):
    given = {"max_steps": 3, "batch_size": 5, "random_state": 0, **parameters}
    return MixMatchClassifier(**given)


def tensor(values):
    return torch.from_numpy(np.array(values))


# -- the published values


class _Replies(nn.Module):
    """Stands for a network, and for an augmentation: gives prepared answers in turn."""

    def __init__(self, *answers):
        super().__init__()
        self.answers, self.seen = list(answers), []

    def forward(self, x):
        self.seen.append(x)
        return self.answers.pop(0)


def golden_module(case, monkeypatch):
    n_views, n_rows, n_classes = case["unlabeled_logits"].shape
    views = _Replies(tensor(case["x"]), *tensor(case["u"]))
    module = _MixMatch(
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, n_classes)),
        0.999,
        False,
        weak=views,
        predicted=PredictedClasses(n_rows),
        n_classes=n_classes,
        n_augmentations=n_views,
        temperature=float(case["temperature"]),
        alpha=float(case["beta"]),
        unlabeled_weight=float(case["w_match"]),
        ramp_up=int(case["warmup_images"]),
    )
    module.n_steps = float(case["step_images"]) / len(case["labels"])
    shares = tensor(case["lam"])
    monkeypatch.setattr(_mixmatch, "mixing_weights", lambda n, alpha: shares)
    order = tensor(case["perm"])
    monkeypatch.setattr(torch, "randperm", lambda n, device: order)
    return module


def test_golden_step(monkeypatch):
    for case in cases("mixmatch"):
        check_golden_step(case, monkeypatch)


def check_golden_step(case, monkeypatch):
    module = golden_module(case, monkeypatch)
    _, n_rows, n_classes = case["unlabeled_logits"].shape
    n_labeled = len(case["labels"])
    logits_x, logits_u = (
        tensor(case[k]).requires_grad_() for k in ("logits_x", "logits_u")
    )
    guesses = tensor(case["unlabeled_logits"]).flatten(0, 1)
    ignored = torch.randn_like(logits_x)  # labeled rows need no guess
    module.online = _Replies(
        torch.cat([ignored, guesses]), torch.cat([logits_x, logits_u])
    )
    y = torch.cat([tensor(case["labels"]).long(), -1 - torch.arange(n_rows)])
    loss, figures = module.loss(torch.zeros(len(y), 1), y)
    loss.backward()
    for found, key in (
        (module.online.seen[0][n_labeled:], "u"),  # guessed before anything is mixed
        (module.online.seen[1], "mixed_inputs"),
        (loss.detach(), "loss"),
        (figures["labeled_loss"], "loss_x"),
        (figures["unlabeled_loss"], "loss_u"),
        (logits_x.grad, "grad_logits_x"),
        (logits_u.grad, "grad_logits_u"),
    ):
        expected = case[key].reshape(found.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)
    weight = module._ramped_weight(n_labeled)
    np.testing.assert_allclose(weight, case["w_match_effective"], rtol=1e-12)
    sharpened = case["guess_sharpened"]
    confidence = figures["pseudo_label_confidence"]
    np.testing.assert_allclose(confidence, sharpened.max(1).mean(), rtol=1e-8)
    classes = np.bincount(sharpened.argmax(1), minlength=n_classes) / n_rows
    np.testing.assert_allclose(figures["pseudo_label_classes"], classes, atol=1e-7)


def test_golden_functions():
    for case in cases("mixmatch"):
        check_golden_functions(case)


def check_golden_functions(case):
    logits, temperature = tensor(case["unlabeled_logits"]), float(case["temperature"])
    mean = logits.softmax(-1).mean(0)
    np.testing.assert_allclose(mean, case["guess_mean"], rtol=1e-8)
    guesses = guessed_labels(logits.requires_grad_(), temperature)
    assert not guesses.requires_grad
    for found in (guesses, sharpen(mean.detach(), temperature)):
        np.testing.assert_allclose(found, case["guess_sharpened"], rtol=1e-8)
    n_views, _, n_classes = logits.shape
    given = torch.eye(n_classes, dtype=torch.float64)[tensor(case["labels"]).long()]
    targets = torch.cat([given, *[guesses] * n_views])
    mixed = mixup(targets, tensor(case["perm"]), tensor(case["lam"]))
    np.testing.assert_allclose(mixed, case["mixed_targets"], rtol=1e-8, atol=1e-15)
    logits = torch.cat([tensor(case["logits_x"]), tensor(case["logits_u"])])
    found = mixmatch_losses(logits, mixed, len(given))
    np.testing.assert_allclose(found, [case["loss_x"], case["loss_u"]], rtol=1e-8)


def test_the_losses_by_hand():
    logits = torch.tensor([[0.0, 0.0], [9.0, 9.0], [1.0, 1.0]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    labeled, unlabeled = mixmatch_losses(logits, targets, 1)
    np.testing.assert_allclose(labeled, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(unlabeled, 0.5 / 4, rtol=1e-6)  # of 2 rows and 2 classes
    assert mixmatch_losses(logits, targets, 3)[1] == 0
    assert all(
        part.dtype == torch.float32
        for part in mixmatch_losses(logits.bfloat16(), targets, 1)
    )


def test_sharpening_at_its_limits():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.4, 0.6], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(sharpen(p, 1.0), p)
    torch.testing.assert_close(sharpen(p[0], 1e-3), torch.eye(3)[0])
    torch.testing.assert_close(sharpen(p[2], 1e-3), p[2])  # a tie stays one
    squares = p**2 / (p**2).sum(1, keepdim=True)
    torch.testing.assert_close(sharpen(p, 0.5), squares)


@pytest.mark.parametrize("alpha", [1e-300, 1e-40, 1e-6, 0.1, 0.75, 5.0])
def test_a_row_keeps_the_larger_share(alpha):
    torch.manual_seed(0)
    shares = mixing_weights(20_000, alpha).numpy()
    drawn = np.random.default_rng(0).beta(alpha, alpha, 20_000) if alpha > 0.01 else 1
    expected = np.maximum(drawn, 1 - drawn) * np.ones(20_000)
    assert shares.min() >= 0.5 and shares.max() <= 1
    levels = [0.1, 0.3, 0.5, 0.7, 0.9]
    found, expected = np.quantile(shares, levels), np.quantile(expected, levels)
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_nothing_is_mixed_without_alpha():
    module = short(alpha=0, weak_augment=None).fit(X, Y).net_.module_.eval()
    module.predicted = PredictedClasses(80)
    x, y = torch.from_numpy(X[:40]), torch.from_numpy(Y[:40])
    y = y.where(y >= 0, -1 - torch.arange(40))
    _, figures = module.loss(x, y)
    assert figures["pseudo_label_agreement"] == 0  # nothing was guessed before
    again = module.loss(x, y)[1]
    assert again["pseudo_label_agreement"] == 1
    with torch.no_grad():
        logits = module.online(x)
    expected = cross_entropy(logits[:10], y[:10])
    torch.testing.assert_close(figures["labeled_loss"], expected)
    p = logits[10:].softmax(1)
    squares = p**2 / (p**2).sum(1, keepdim=True)  # the temperature is 1 / 2
    expected = (squares - p).square().mean()
    torch.testing.assert_close(figures["unlabeled_loss"], expected)


def test_guessing_leaves_no_trace_in_the_network():
    module = short().fit(X, Y).net_.module_.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = torch.from_numpy(X)
    guesses = module._guess([x[:10], x[10:], x[10:] + 0.1])
    assert guesses.shape == (70, 2) and not guesses.requires_grad
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    # the batch normalizes it: a scale that all of it shares is lost
    other = module._guess([2 * x[:10], 2 * x[10:], 2 * (x[10:] + 0.1)])
    torch.testing.assert_close(guesses, other, atol=1e-3, rtol=0)


def test_weights_still_learn_in_half_precision():
    settings = {"precision": "bfloat16", "max_steps": 2}
    start = short(lr=1e-20, **settings).fit(X, Y).net_.module_.online.parameters()
    after = short(lr=0.01, **settings).fit(X, Y).net_.module_.online.parameters()
    for a, b in zip(start, after, strict=True):
        assert not torch.equal(a, b)


def test_the_unlabeled_weight_grows():
    module = short(max_steps=40, unlabeled_weight=8.0).fit(X, Y).net_.module_
    assert module.total_steps == 40

    def weights(ramp_up):
        module.ramp_up = ramp_up
        found = []
        for module.n_steps in (0, 5, 10, 40, 99):
            found.append(module._ramped_weight(16))
        return found

    assert weights(1.0) == [0, 1, 2, 8, 8]
    assert weights(0.5) == [0, 2, 4, 8, 8]
    assert weights(0.0) == weights(0) == [8, 8, 8, 8, 8]
    assert weights(640) == [0, 1, 2, 8, 8]  # labeled rows, 16 in a step


# -- the estimator


def test_images_from_few_labels():
    images, target = stripes(150)
    y = np.where(np.arange(150) < 15, target, -1)
    settings = {"weak_augment": Weak(flip=0, shift=0), "precision": "float32"}
    fitted = short(batch_size=16, max_steps=60, **settings).fit(images, y)
    assert (fitted.transduction_ == target)[15:].mean() > 0.9
    history = fitted.net_.history
    assert history[-1, "pseudo_label_agreement"] > 0.8
    assert history[-1, "pseudo_label_confidence"] > 0.8
    classes = history[-1, "pseudo_label_classes"]
    assert len(classes) == 3 and abs(sum(classes) - 1) < 1e-5


def test_the_decay_is_apart_from_the_gradient():
    settings = {"max_steps": 1, "lr": 0.01, "ema_decay": 0.0, "ema_ramp": False}
    start = short(**{**settings, "lr": 1e-30}).fit(X, Y).net_.module_.online
    plain = short(**settings, weight_decay=0).fit(X, Y).net_.module_.online
    decayed = short(**settings, weight_decay=2.0).fit(X, Y).net_.module_.online
    parts = (dict(m.named_parameters()) for m in (start, plain, decayed))
    start, plain, decayed = parts
    for name, value in start.items():
        share = 0.01 * 2.0 if value.ndim > 1 else 0
        expected = plain[name] - share * value
        torch.testing.assert_close(decayed[name], expected, rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_bits():
    images, target = load_digit_images(return_X_y=True)
    y = np.where(np.arange(60) < 30, target[:60], -1)
    for data, labels in ((X, Y), (images[:60], y)):
        first, again, other = (
            short(random_state=seed).fit(data, labels).predict_proba(data)
            for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_a_broken_training_continues_to_the_same_bits(tmp_path, monkeypatch):
    settings = {"max_steps": 40, "ramp_up": 0.8}  # 14 steps in an epoch
    whole = short(**settings).fit(X, Y)
    broken = short(**settings, checkpoint_dir=tmp_path)
    step, calls = _MixMatch.after_step, []

    def power_cut(self):
        calls.append(1)
        if len(calls) == 33:
            raise RuntimeError("the power fails")
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(_MixMatch, "after_step", power_cut)
        with pytest.raises(RuntimeError, match="the power fails"):
            broken.fit(X, Y)
    broken.fit(X, Y)
    np.testing.assert_array_equal(broken.predict_proba(X), whole.predict_proba(X))
    losses = [e.net_.history[:, "train_loss"] for e in (whole, broken)]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_saved_and_loaded(tmp_path):
    images, target = load_digit_images(return_X_y=True)
    y = np.where(np.arange(60) < 30, target[:60], -1)
    for name, data, labels in (("vectors", X, Y), ("images", images[:60], y)):
        fitted = short().fit(data, labels)
        fitted.save(tmp_path / name)
        loaded = sklabel.load(tmp_path / name)
        expected = fitted.predict_proba(data)
        np.testing.assert_array_equal(loaded.predict_proba(data), expected)
        np.testing.assert_array_equal(loaded.transduction_, fitted.transduction_)
        assert loaded.net_.module_.n_steps == 3


def test_steps_and_epochs():
    # 70 unlabeled rows, 5 of them in a batch
    assert short(max_steps=None, max_epochs=2).fit(X, Y).net_.module_.n_steps == 28
    assert short(max_steps=11).fit(X, Y).net_.module_.n_steps == 11


def test_warm_start_goes_on_with_the_ramp():
    fitted = short(warm_start=True).fit(X, Y).fit(X, Y)
    assert fitted.net_.module_.n_steps == 6


HARD = {
    "one label a class": np.where(np.arange(80) < 2, TRUTH, -1),
    "everything labeled": TRUTH,
    "one row unlabeled": np.where(np.arange(80) < 79, TRUTH, -1),
    "twenty to one": np.where(np.arange(80) < 21, np.arange(80) == 0, -1),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("weight", [None, "balanced"])
def test_hard_cases(name, include, weight):
    clf = MixMatchClassifier(
        max_steps=40,
        batch_size=64,  # larger than the labeled rows
        include_labeled=include,
        n_augmentations=1,
        class_weight=weight,
        lr=0.01,
        random_state=0,
    )
    clf.fit(X, HARD[name].astype(int))
    p = clf.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    if name == "everything labeled":
        assert clf.score(X, TRUTH) > 0.9
    elif name == "one row unlabeled":  # it may be half of every batch; chance: 0.5
        assert clf.score(X, TRUTH) > 0.6


def test_one_image_and_one_label_in_a_batch():
    images, target = load_digit_images(return_X_y=True)
    y = np.where(np.arange(20) < 10, target[:20], -1)
    for data in (images[:20], images[:20].reshape(20, -1)):
        clf = short(batch_size=1, n_augmentations=1).fit(data, y)
        assert np.isfinite(clf.predict_proba(data)).all()


class _Note(nn.Module):
    """Remembers what of a batch is to be changed, and changes nothing."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x[:, 0].round().long())
        return x


def test_weights_say_how_often_a_label_is_drawn():
    x = np.zeros((80, 6), np.float32)
    x[0] = 1  # the only row of its class
    y = np.where(np.arange(80) < 40, np.arange(80) == 0, -1).astype(int)
    weights = np.where(np.arange(80) < 40, np.where(x[:, 0] == 1, 39.0, 1.0), 1e9)
    for class_weight, sample_weight, share in (
        (None, None, 1 / 40),
        ("balanced", None, 1 / 2),
        ({1: 39 / 9}, None, 0.1),
        (None, weights, 1 / 2),
    ):
        clf = short(
            weak_augment=_Note(), class_weight=class_weight, batch_size=20, max_steps=20
        )
        seen = clf.fit(x, y, sample_weight).net_.module_.weak.seen
        labeled = torch.cat(seen[::3])  # then two views of the unlabeled rows
        assert abs(labeled.float().mean().item() - share) < 0.03
    for wrong, message in ((np.ones(79), "expected"), (-np.ones(80), "not negative")):
        with pytest.raises(ValueError, match=message):
            short().fit(X, Y, wrong)
    with pytest.raises(ValueError, match=r"class_weight names \['cat'\]"):
        short(class_weight={"cat": 2}).fit(X, Y)


def test_what_goes_wrong_is_said():
    rows = np.arange(80)
    # the labels say 50:50, and all unlabeled rows look like the first class
    y = np.where(rows < 20, rows % 2, -1)
    x = np.where(y[:, None] == 1, 9, 0) + X / 10
    fitted = short(max_steps=60, lr=0.01, batch_size=15)
    with pytest.warns(CollapseWarning, match="of class 0, but 50% of the labels.*try"):
        fitted.fit(x.astype(np.float32), y)
    # three classes, and no row looks like the last one
    y = np.where(rows < 30, rows % 3, -1)
    looks = np.where(rows < 30, rows % 3, rows % 2)
    x = 9 * np.eye(3)[looks] + np.random.default_rng(0).normal(size=(80, 3))
    with pytest.warns(
        CollapseWarning, match="None of the guessed labels is of class 2.*try"
    ):
        fitted.fit(x.astype(np.float32), y)


def test_calibration_on_withheld_labels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    truth = (x[:, 0] + rng.normal(size=300) > 0).astype(int)
    y = np.where(np.arange(300) < 200, truth, -1)
    settings = {"max_steps": 200, "batch_size": 50, "alpha": 0.1}
    plain = short(**settings).fit(x, y)
    fitted = short(calibration_size=0.5, **settings).fit(x, y)
    assert plain.calibration_temperature_ == 1 != fitted.calibration_temperature_
    np.testing.assert_array_equal(fitted.transduction_[:200], y[:200])
    p = fitted.predict_proba(x)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    fitted.calibration_temperature_ = 1.0
    raw = fitted.predict_proba(x)
    assert log_loss(truth[200:], p[200:]) < log_loss(truth[200:], raw[200:])
    with pytest.raises(ValueError, match="calibration_size=199 would withhold"):
        short(calibration_size=199).fit(x, y)


def test_class_names_come_back():
    names = np.array(["ant", "bee"], dtype=object)
    y = np.array([names[k] if k >= 0 else -1 for k in Y], dtype=object)
    clf = short().fit(X, y)
    assert clf.classes_.tolist() == ["ant", "bee"]
    assert set(clf.transduction_) | set(clf.predict(X)) <= {"ant", "bee"}


@pytest.mark.parametrize(
    "wrong",
    [{"ramp_up": 1.5}, {"ramp_up": -1}, {"n_augmentations": 0}, {"temperature": 0}]
    + [{"alpha": -0.1}, {"unlabeled_weight": -1}],
    ids=str,
)
def test_wrong_parameters_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"'{name}' parameter"):
        short(**wrong).fit(X, Y)
