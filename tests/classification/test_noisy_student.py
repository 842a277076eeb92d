"""Noisy Student: rounds, balance, noise; hard cases work."""

import functools
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sklabel
from sklabel import CollapseWarning
from sklabel import classification as public
from sklabel._core.calibration import rescale
from sklabel.augment import Weak
from sklabel.backbones import build_backbone, drop_blocks_
from sklabel.classification._noisy_student import (
    NoisyStudentClassifier,
    _balanced_copies,
    _class_threshold,
    _NoisyStudent,
)
from sklabel.datasets import load_digit_images
from sklabel.losses import noisy_student_loss
from sklabel.optim import exponential_decay
from tests._golden import cases
from tests._making import Shift
from tests._pictures import stripes

X = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
X[::2] += 2
TRUTH = (np.arange(80) + 1) % 2
Y = np.where(np.arange(80) < 10, TRUTH, -1)


def short(**parameters):
    given = {"n_rounds": 2, "max_steps": 3, "batch_size": 5, "random_state": 0}
    return NoisyStudentClassifier(**{**given, **parameters})


def quiet(clf, x, y, **more):
    """Fit without the warning that such short trainings deserve."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        return clf.fit(x, y, **more)


@functools.cache
def digits():
    """1000 digits, 4 labels of each class."""
    images, target = load_digit_images(return_X_y=True)
    images, target = images[:1000], target[:1000]
    y = np.full(1000, -1)
    for k in range(10):
        y[np.flatnonzero(target == k)[:4]] = k
    return images, target, y


# -- what is published


def test_golden_filter_and_balance():
    for case in cases("noisystudent_filter_balance"):
        p, classes = case["probabilities"], case["label"]
        n_rows, least = int(case["num_image"]), float(case["min_threshold"])
        all_of_them = bool(case["use_all"])
        copies = _balanced_copies(
            p,
            case["uniform_per_image"],
            None if all_of_them else n_rows,
            least,
            duplicate=bool(case["upsample"]),
        )
        np.testing.assert_array_equal(copies, case["copies"])
        np.testing.assert_array_equal(p.argmax(1), classes)
        for k in range(p.shape[1]):
            scores = p.max(1)[classes == k]
            threshold = least
            if not all_of_them:
                threshold = _class_threshold(scores, n_rows, least)
            assert threshold == case["class_threshold"][k]
            assert (scores >= threshold).sum() == case["class_total_at_threshold"][k]


def test_golden_loss():
    for case in cases("noisystudent_loss"):
        labeled, unlabeled, teacher = (
            torch.from_numpy(case[name]).requires_grad_()
            for name in ("logits_labeled", "logits_unlabeled", "teacher_logits")
        )
        p = teacher.detach().softmax(1).numpy()
        targets = torch.from_numpy(
            p.argmax(1)
            if case["hard_label"]
            else rescale(p, float(case["temperature"]))
        )
        if not case["hard_label"]:
            np.testing.assert_allclose(targets, case["target"], rtol=1e-8)
        labels, smoothing = torch.from_numpy(case["labels"]), case["label_smoothing"]
        loss = noisy_student_loss(labeled, labels, unlabeled, targets, float(smoothing))
        np.testing.assert_allclose(loss.item(), case["loss"], rtol=1e-8)
        loss.backward()
        for logits, name in ((labeled, "labeled"), (unlabeled, "unlabeled")):
            expected = case[f"grad_logits_{name}"]
            np.testing.assert_allclose(logits.grad, expected, rtol=1e-8, atol=1e-12)
        alone = noisy_student_loss(
            labeled, labels, unlabeled[:0], targets[:0], float(smoothing)
        )
        np.testing.assert_allclose(alone.item(), case["loss_labeled"], rtol=1e-8)


def test_golden_learning_rate():
    for case in cases("noisystudent_lr"):
        per_epoch = case["num_train"] / case["batch_size"]
        total = int(case["train_steps"])
        interval = float(case["decay_epochs"] * per_epoch / total)
        peak = case["base_lr"] * case["batch_size"] / 256
        found = [
            peak * exponential_decay(int(step), total, int(5 * per_epoch), interval)
            for step in case["steps"]
        ]
        np.testing.assert_allclose(found, case["lr"], rtol=1e-9)
    assert exponential_decay(0, 350) == 1
    np.testing.assert_allclose(exponential_decay(349, 350), 0.97**145)
    settings = {"schedule": exponential_decay, "max_epochs": 20, "max_steps": None}
    rates = quiet(short(n_rounds=0, **settings), X, Y).net_.history[:, "lr"]
    assert rates[0] <= 0.03 and rates[-1] < 0.001


@pytest.mark.parametrize("hard", [True, False])
def test_the_estimator_trains_with_that_loss(hard, monkeypatch):
    seen = []
    loss_of = _NoisyStudent.loss

    def spy(self, x, y):
        self.eval()  # plain normalization, no dropout: rows stand for themselves
        loss = loss_of(self, x, y)
        with torch.no_grad():
            logits = self.online(self.augment(x)).log_softmax(1)
        seen.append((self.number, loss[0].item(), logits, y, self.targets))
        self.train()
        return loss

    monkeypatch.setattr(_NoisyStudent, "loss", spy)
    shifts = {"weak_augment": Shift(0.5), "strong_augment": Shift(-1.0)}
    quiet(
        short(n_rounds=1, hard_labels=hard, temperature=0.5, max_steps=4, **shifts),
        X,
        Y,
    )
    assert [number for number, *_ in seen] == [0] * 4 + [1] * 4
    for number, loss, logits, y, targets in seen:
        assert (y >= 0).sum() == 5 and (y < 0).sum() == (15 if number else 0)
        smoothed = 0.9 * torch.eye(2) + 0.05
        expected = -sum((smoothed[k] * row).sum() for k, row in zip(y[:5], logits)) / 5
        for k, row in zip(y[5:], logits[5:]):
            target = targets[-1 - k]
            target = smoothed[target] if hard else target
            expected -= (target * row).sum() / 5  # 3 times the mean of 15
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)


def test_targets_are_what_the_teacher_says_of_plain_rows(monkeypatch):
    given = {}
    drop = _NoisyStudent.drop_training_state

    def keep(self):
        if self.targets is not None or self.number == 0:  # dropped twice
            given[self.number] = self.targets
        drop(self)

    monkeypatch.setattr(_NoisyStudent, "drop_training_state", keep)
    teacher = quiet(short(n_rounds=0), X, Y)
    quiet(short(n_rounds=1, temperature=0.5), X, Y)
    expected = rescale(teacher.predict_proba(X), 0.5)
    np.testing.assert_allclose(given[1], expected, rtol=1e-6)
    quiet(short(n_rounds=1, hard_labels=True), X, Y)
    np.testing.assert_array_equal(given[1], teacher.predict(X))
    assert given[0] is None


# -- noise


def test_the_teacher_has_weak_views_and_students_all_noise(monkeypatch):
    seen = {}
    loss_of = _NoisyStudent.loss

    def spy(self, x, y):
        noise = len(self.hooks), self.online[1].p, isinstance(self.augment, Weak)
        seen.setdefault(self.number, noise)
        return loss_of(self, x, y)

    monkeypatch.setattr(_NoisyStudent, "loss", spy)
    images, _, y = digits()
    quiet(short(n_rounds=1, max_steps=1, threshold=0, dropout=0.3), images, y)
    assert seen == {0: (0, 0.0, True), 1: (3, 0.3, False)}
    seen.clear()
    clf = quiet(
        short(n_rounds=1, max_steps=1, threshold=0, noisy_teacher=True), images, y
    )
    assert seen == {0: (3, 0.2, False), 1: (3, 0.2, False)}
    assert not any(part._forward_hooks for part in clf.net_.module_.modules())


@pytest.mark.parametrize(
    "name, n_blocks",
    [("resnet8", 3), ("wrn_28_2", 12), ("resnet18", 8), ("efficientnet_b0", 9)],
)
def test_blocks_are_left_out(name, n_blocks):
    torch.manual_seed(0)
    net = build_backbone(name, (3, 32, 32))
    x = torch.rand(16, 3, 32, 32)
    plain = net.eval()(x)
    hooks = drop_blocks_(net, 0.4)
    rates = [next(iter(h.hooks_dict_ref().values())).rate for h in hooks]
    if name != "efficientnet_b0":
        np.testing.assert_allclose(rates, 0.4 * np.arange(1, n_blocks + 1) / n_blocks)
    assert len(hooks) >= n_blocks and abs(rates[-1] - 0.4) < 1e-12
    assert torch.equal(net(x), plain)  # evaluation is as it was
    if name != "efficientnet_b0":  # it has dropout of its own in its last layer
        net.train()
        assert not torch.equal(net(x), net(x))
        for hook in hooks:
            hook.remove()
        assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("name, n_blocks", [("resnet8", 3), ("resnet18", 8)])
def test_blocks_are_counted_as_in_the_released_code(name, n_blocks):
    for rule, first in (("linear", 1), ("efficientnet", 0)):
        net = build_backbone(name, (3, 32, 32))
        hooks = drop_blocks_(net, 0.3, rule)
        found = [next(iter(h.hooks_dict_ref().values())).rate for h in hooks]
        want = [0.3 * i / n_blocks for i in range(first, first + n_blocks)]
        np.testing.assert_allclose(found, [rate for rate in want if rate > 0])
    with pytest.raises(ValueError, match="rule"):
        drop_blocks_(net, 0.3, "square")


def test_the_released_count_reaches_the_students():
    X, target = load_digit_images(return_X_y=True)
    X, y = X[:60], np.where(np.arange(60) < 30, target[:60], -1)
    given = {"n_rounds": 1, "max_steps": 2, "batch_size": 8, "threshold": 0.0}
    found = []
    for rule in ("linear", "efficientnet"):
        clf = NoisyStudentClassifier(
            stochastic_depth_rule=rule, random_state=0, **given
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(clf.fit(X, y).predict_proba(X))
    assert not np.array_equal(*found)


def test_a_block_that_is_left_out_is_its_shortcut():
    block = build_backbone("resnet8", (1, 8, 8)).body[3].train()
    drop_blocks_(block, 0.5)
    x = torch.rand(400, 32, 8, 8)
    with torch.no_grad():
        h, branch = block(x), block.body(x)
    left_out = (h == x).flatten(1).all(1)
    assert 120 < left_out.sum() < 280
    # the mean is that without noise: what is kept is doubled
    kept = branch.flatten(1).abs().sum(1) > 0
    assert 120 < kept.sum() < 280
    assert drop_blocks_(nn.Linear(3, 3), 0.5) == []
    assert drop_blocks_(block, 0.0) == []


# -- learning


@pytest.mark.parametrize("form", ["vectors", "images"])
def test_students_keep_up_with_the_first_teacher(form):
    images, target = stripes(150)
    y = np.where(np.arange(150) < 15, target, -1)
    settings = {"batch_size": 12, "max_steps": 40, "precision": "float32"}
    if form == "vectors":
        images = images.reshape(150, -1).astype(np.float32)
    else:
        settings["weak_augment"] = Weak(flip=0, shift=0)
    accuracy = []
    for n_rounds in (0, 1):
        clf = quiet(short(n_rounds=n_rounds, **settings), images, y)
        accuracy.append((clf.transduction_ == target)[15:].mean())
    assert min(accuracy) > 0.9


# -- rounds


def test_the_history_of_all_rounds():
    clf = quiet(short(max_steps=None, max_epochs=4), X, Y)
    history = clf.net_.history
    # 70 unlabeled rows, 15 in a step: every round is as long, the teacher's included
    assert history[:, "train_batch_count"] == [4] * 12
    assert history[:, "round"] == [0] * 4 + [1] * 4 + [2] * 4
    assert clf.n_iter_ == 12 and clf.n_rounds_ == 2
    assert clf.net_.module_.n_steps == 16
    names = ("pseudo_label_share", "pseudo_label_classes", "pseudo_label_agreement")
    for name in names:
        assert len(history[:, name]) == 8  # the teacher has none
    before = quiet(short(n_rounds=1, max_steps=None, max_epochs=4), X, Y)
    agreement = (clf.predict(X) == before.predict(X))[10:].mean()
    np.testing.assert_allclose(history[-1, "pseudo_label_agreement"], agreement)
    assert history[:8, "train_loss"] == before.net_.history[:, "train_loss"]
    shares = history[-1, "pseudo_label_classes"]
    np.testing.assert_allclose(sum(shares), history[-1, "pseudo_label_share"])


def test_who_is_taught():
    # of the unlabeled rows 60 have one value of the only feature, 10 another
    x = np.concatenate([np.zeros(65), np.ones(15)])[:, None].astype(np.float32)
    y = np.where(np.isin(np.arange(80) % 16, (0, 15)), x[:, 0], -1).astype(int)
    seen = []

    class Note(Shift):
        def forward(self, x):
            seen.append(x[5:, 0].round().long())
            return x

    settings = {"weak_augment": None, "strong_augment": Note(0), "max_steps": 60}
    settings.update(n_rounds=1, threshold=0.6, lr=0.3)
    unlabeled = x[y == -1, 0]
    for rows, duplicate, share in (
        ("auto", True, 1 / 2),
        (None, True, unlabeled.mean()),
        (10_000, False, unlabeled.mean()),
    ):
        seen.clear()
        clf = quiet(short(rows_per_class=rows, duplicate=duplicate, **settings), x, y)
        # of the common class as many are drawn as make both equal
        kept = 45 / 70 if rows == "auto" else 1
        assert abs(clf.net_.history[-1, "pseudo_label_share"] - kept) < 0.17
        taught = torch.cat(seen).float()
        assert abs(taught.mean().item() - share) < 0.1, rows
        np.testing.assert_allclose(
            clf.net_.history[-1, "pseudo_label_classes"][1], unlabeled.mean(), atol=0.05
        )


def test_a_larger_student():
    images, _, y = digits()
    images, y = images[:60], y[:60]
    clf = quiet(
        short(student_backbone=["resnet8", "resnet9"], threshold=0, max_steps=1),
        images,
        y,
    )
    assert clf.encoder_.n_features_out == 512
    one = quiet(
        short(student_backbone="resnet9", n_rounds=1, threshold=0, max_steps=1),
        images,
        y,
    )
    assert one.encoder_.n_features_out == 512
    with pytest.raises(ValueError, match="2 entries; .* one for each of n_rounds=3"):
        short(n_rounds=3, student_backbone=["resnet8"] * 2).fit(images, y)


HARD = {
    "one label a class": np.where(np.arange(80) < 2, TRUTH, -1),
    "everything labeled": TRUTH,
    "twenty to one": np.where(np.arange(80) < 21, np.arange(80) == 0, -1),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("weight", [None, "balanced"])
def test_hard_cases(name, weight):
    clf = short(
        max_steps=40,
        batch_size=64,  # larger than the labeled rows
        class_weight=weight,
        lr=0.01,
    )
    quiet(clf, X, HARD[name].astype(int))
    p = clf.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    if name == "everything labeled":
        assert clf.n_rounds_ == 0  # nobody to teach
        assert clf.score(X, TRUTH) > 0.9


def test_no_row_above_the_threshold():
    settings = {"threshold": 1.0, "max_steps": 5}
    with pytest.warns(CollapseWarning, match="No unlabeled row reached threshold=1.0"):
        clf = short(**settings).fit(X, Y)
    assert clf.n_rounds_ == 0
    teacher = quiet(short(n_rounds=0, **settings), X, Y)
    np.testing.assert_array_equal(clf.predict_proba(X), teacher.predict_proba(X))


def test_what_goes_wrong_is_said():
    settings = {"max_steps": 60, "lr": 0.1, "threshold": 0.5}
    many = np.resize(X, (240, 6))  # of a few rows a class may be missing by chance
    y = np.where(np.arange(240) < 20, np.arange(240) >= 18, -1).astype(int)
    x = (np.where(y == 1, 9, 0)[:, None] + many / 10).astype(np.float32)
    with pytest.warns(CollapseWarning, match="100% .* of class 0, but 90% .*weight"):
        short(**settings).fit(x, y)
    y = np.where(np.arange(240) < 40, np.resize(TRUTH, 240), -1)
    y[:4] = 2
    x = many + np.where(y == 2, 20, 0)[:, None] * np.eye(6, dtype=np.float32)[5]
    with pytest.warns(CollapseWarning, match="None of the pseudo-labels is of class 2"):
        short(**settings).fit(x, y)


# -- going on


def test_the_same_seed_gives_the_same_bits():
    images, _, y = digits()
    images, y = images[:60], y[:60]
    first, again = (quiet(short(), images, y).predict_proba(images) for _ in range(2))
    np.testing.assert_array_equal(first, again)


LONGER = {"max_steps": None, "max_epochs": 3, "threshold": 0.0}


@functools.cache
def unbroken():
    """Answers after one student and after two, and the history."""
    images, _, y = digits()
    images, y = images[:100], y[:100]  # 60 of them unlabeled: 4 steps in an epoch
    one, two = (quiet(short(n_rounds=n, **LONGER), images, y) for n in (1, 2))
    return one.predict_proba(images), two.predict_proba(images), two.net_.history


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_broken_training_continues_to_the_same_bits(epoch, tmp_path, monkeypatch):
    images, _, y = digits()
    images, y = images[:100], y[:100]
    after_one, after_two, history = unbroken()
    after_step = _NoisyStudent.after_step

    def break_off(self):
        after_step(self)
        if self.number == 2 and self.n_steps == 4 * epoch + 2:
            raise KeyboardInterrupt

    clf = short(**LONGER, checkpoint_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(_NoisyStudent, "after_step", break_off)
        with pytest.warns(UserWarning, match="interrupted in stage 'round-2'"):
            quiet(clf, images, y)
    assert clf.interrupted_ and clf.n_rounds_ == 1
    # the teacher predicts where its student did not get through
    np.testing.assert_array_equal(clf.predict_proba(images), after_one)
    quiet(clf, images, y)
    assert not clf.interrupted_ and clf.n_rounds_ == 2
    np.testing.assert_array_equal(clf.predict_proba(images), after_two)
    names = ("round", "train_loss", "labeled_loss", "lr", "train_batch_count")
    assert clf.net_.history[:, names] == history[:, names]
    for name in ("pseudo_label_share", "pseudo_label_agreement"):
        assert clf.net_.history[:, name] == history[:, name]


def test_a_warm_start_takes_the_last_student_as_teacher():
    clf = quiet(short(warm_start=True, max_steps=10, lr=0.01), X, Y)
    steps = clf.net_.module_.n_steps
    p = clf.predict_proba(X)
    quiet(clf.set_params(max_steps=2, lr=1e-8), X, Y)
    assert clf.net_.module_.n_steps == steps + 4
    assert clf.net_.history[:, "round"][0] == 1
    np.testing.assert_allclose(clf.predict_proba(X), p, atol=0.1)
    quiet(clf.set_params(threshold=1.0), X, Y)  # nothing to teach: it stays as it is
    assert clf.n_rounds_ == 0 and clf._continued is None
    quiet(clf, X, TRUTH)  # nobody to teach: it goes on as its own teacher
    assert clf.net_.history[:, "round"] == [0]


@pytest.mark.parametrize("form", ["vectors", "images"])
def test_saved_and_loaded(form, tmp_path, monkeypatch):
    monkeypatch.setattr(public, "__all__", [*public.__all__, "NoisyStudentClassifier"])
    monkeypatch.setattr(
        public, "NoisyStudentClassifier", NoisyStudentClassifier, raising=False
    )
    x, y, settings = X, Y, {}
    if form == "images":
        x, _, y = digits()
        x, y = x[:60], y[:60]
        settings = {"student_backbone": ["resnet8", "resnet9"], "threshold": 0}
    clf = quiet(short(**settings), x, y)
    clf.save(tmp_path)
    for other in (sklabel.load(tmp_path), pickle.loads(pickle.dumps(clf))):
        np.testing.assert_array_equal(other.predict_proba(x), clf.predict_proba(x))
        assert other.n_rounds_ == 2
        assert other.net_.history[:, "round"] == clf.net_.history[:, "round"]


def test_withheld_labels_are_taught_as_unlabeled_rows():
    y = np.where(np.arange(80) < 40, TRUTH, -1)
    clf = quiet(short(calibration_size=0.5, max_steps=30), X, y)
    assert clf.calibration_temperature_ != 1
    np.testing.assert_array_equal(clf.transduction_[:40], y[:40])
    np.testing.assert_allclose(clf.predict_proba(X).sum(1), 1, rtol=1e-5)


def test_class_names_come_back():
    names = np.array(["ant", "bee"], dtype=object)
    y = np.array([names[k] if k >= 0 else -1 for k in Y], dtype=object)
    clf = quiet(short(), X, y)
    assert clf.classes_.tolist() == ["ant", "bee"]
    assert set(clf.transduction_) <= {"ant", "bee"}


def test_labeled_loss_is_that_of_the_labels():
    module = quiet(short(n_rounds=0), X, Y).net_.module_.eval()
    x, y = torch.from_numpy(X[:10]), torch.from_numpy(Y[:10])
    module.augment = nn.Identity()
    _, figures = module.loss(x, y)
    expected = cross_entropy(module.online(x), y)
    torch.testing.assert_close(figures["labeled_loss"], expected)
