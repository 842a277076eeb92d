"""SimCLRv2: three stages, each from the last one's weights; the student predicts."""

import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from torch import nn
from torch.nn.functional import cross_entropy

import sklabel
from sklabel.augment import Contrastive, Weak
from sklabel.classification import SimCLRv2Classifier
from sklabel.classification._simclrv2 import _Distilled
from sklabel.datasets import load_digit_images
from sklabel.embedding import (
    AutoencoderTransformer,
    CLDTransformer,
    MoCoTransformer,
    SimCLRTransformer,
)
from sklabel.losses import distillation
from tests._golden import cases
from tests._pictures import stripes

X = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
X[::2] += 2
TRUTH = (np.arange(80) + 1) % 2
Y = np.where(np.arange(80) < 20, TRUTH, -1)


@pytest.fixture(scope="module")
def embedder():
    return SimCLRTransformer(projection_layers=3, max_steps=5, random_state=0).fit(X)


@pytest.fixture
def short(embedder):
    def make(**parameters):
        given = {
            "embedder": FrozenEstimator(embedder),
            "max_steps": 3,
            "distill_epochs": 2,
            "distill_batch_size": 32,
            "random_state": 0,
        }
        return SimCLRv2Classifier(**{**given, **parameters})

    return make


def weights_of(module):
    return [w.detach().clone() for w in module.state_dict().values()]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# -- the loss


class _Columns(nn.Module):
    """A network whose logits are columns of its input."""

    def __init__(self, first, n):
        super().__init__()
        self.columns = slice(first, first + n)

    def logits(self, x):
        return x[:, self.columns]


def test_golden_distillation():
    for case in cases("simclrv2_distill"):
        alpha, temperature = float(case["alpha"]), float(case["temperature"])
        told, said, labeled = (
            torch.from_numpy(case[name])
            for name in ("teacher_logits", "student_logits", "student_logits_labeled")
        )
        n_classes = told.shape[1]
        loss = distillation(told, said, temperature).item()
        np.testing.assert_allclose(loss, case["loss_distill"], rtol=1e-8)
        np.testing.assert_allclose(
            loss * temperature**2, case["loss_distill_times_T2"], rtol=1e-8
        )
        np.testing.assert_allclose(
            (told / temperature).softmax(1), case["teacher_prob"], rtol=1e-8, atol=1e-15
        )
        # what the estimator minimizes; a teacher's opinion of labeled rows is not asked
        x = torch.cat([told, said], 1)
        y = -1 - torch.arange(len(x))
        if alpha < 1:
            x = torch.cat([torch.cat([torch.full_like(labeled, 9), labeled], 1), x])
            y = torch.cat([torch.from_numpy(case["labels"]).long(), y])
        x.requires_grad_(True)
        module = _Distilled(
            _Columns(0, n_classes),
            _Columns(n_classes, n_classes),
            nn.Identity(),
            temperature,
            alpha,
        )
        loss, figures = module.loss(x, y)
        np.testing.assert_allclose(loss.item(), case["loss"], rtol=1e-8)
        loss.backward()
        assert not x.grad[:, :n_classes].any()
        gradient = x.grad[:, n_classes:].numpy()
        n_labeled = len(x) - len(told)
        np.testing.assert_allclose(
            gradient[n_labeled:], case["grad_student"], rtol=1e-8, atol=1e-12
        )
        if alpha < 1:
            np.testing.assert_allclose(
                gradient[:n_labeled],
                case["grad_student_labeled"],
                rtol=1e-8,
                atol=1e-12,
            )
            np.testing.assert_allclose(
                figures["labeled_loss"].item(), case["loss_supervised"], rtol=1e-8
            )
        same = (told.argmax(1) == said.argmax(1)).double().mean()
        np.testing.assert_allclose(figures["teacher_agreement"], same, rtol=1e-6)


def test_distillation_is_least_where_the_student_is_the_teacher():
    t = torch.randn(20, 4, dtype=torch.float64) * 3
    s = t.clone().requires_grad_(True)
    loss = distillation(t, s + 5, 0.5)  # logits may be moved
    p = (t / 0.5).softmax(1)
    torch.testing.assert_close(loss, -(p * p.log()).sum(1).mean())
    loss.backward()
    assert s.grad.abs().max() < 1e-12
    extreme = distillation(t.half() * 1e3, -t.half() * 1e3, 0.1)
    assert extreme.dtype == torch.float32 and torch.isfinite(extreme)


# -- learning


@pytest.fixture(scope="module")
def digits():
    images, target = load_digit_images(return_X_y=True)
    return images[:80], target[:80]


def test_images_from_few_labels():
    images, target = stripes(150)
    y = np.where(np.arange(150) < 15, target, -1)
    settings = {"batch_size": 50, "precision": "float32", "random_state": 0}
    view = Contrastive(flip=0, crop=(0.6, 1.0), jitter=0.2)
    embedder = SimCLRTransformer(
        projection_layers=3, augment=view, max_epochs=6, **settings
    ).fit(images)
    del settings["batch_size"]

    def fitted(epochs, **more):
        clf = SimCLRv2Classifier(
            FrozenEstimator(embedder),
            augment=Weak(flip=0, shift=0),
            distill_epochs=epochs,
            distill_batch_size=50,
            max_steps=30,
            **settings,
            **more,
        ).fit(images, y)
        return clf, (clf.transduction_ == target)[15:].mean()

    _, teacher = fitted(0)
    student, accuracy = fitted(4)
    assert min(teacher, accuracy) > 0.9
    assert student.net_.history[-1, "teacher_agreement"] > 0.9
    # a small student that starts from nothing
    layers = [nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()]
    small, accuracy = fitted(
        10, student_backbone=nn.Sequential(*layers), temperature=1.0, distill_lr=1e-2
    )
    assert accuracy > 0.9
    assert small.encoder_.n_features_out == 256


# -- the stages


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_fine_tuning_starts_from_the_layer_said(short, embedder, layer):
    settings = {"lr": 1e-30, "distill_epochs": 0, "head_init": "random"}
    fitted = short(head_layer=layer, **settings).fit(X, Y)
    module, pretrained = fitted.net_.module_, embedder.net_.module_
    assert len(module.project) == layer
    found = list(module.project.parameters()) + list(module.backbone.parameters())
    expected = list(pretrained.project[:layer].parameters())
    assert_same(found, expected + list(embedder.encoder_.parameters()))
    assert not module.head.weight.abs().max() > 1e-20
    # as published, every layer is trained, none is frozen
    trained = (
        short(head_layer=layer, distill_epochs=0, backbone_lr=1.0)
        .fit(X, Y)
        .net_.module_
    )
    for before, after in zip(module.parameters(), trained.parameters(), strict=True):
        assert not torch.equal(before, after)


def test_predictions_are_those_of_the_head_on_the_layer(short):
    for layer in (0, 2):
        fitted = short(head_layer=layer, distill_epochs=0).fit(X, Y)
        module = fitted.net_.module_.eval()
        with torch.no_grad():
            h = module.backbone(torch.from_numpy(X))
            p = module.head(module.project(h)).softmax(1)
        np.testing.assert_allclose(fitted.predict_proba(X), p, rtol=1e-5, atol=1e-6)
        assert fitted.encoder_ is module.backbone
        x, y = torch.from_numpy(X[:20]), torch.from_numpy(Y[:20])
        module.augment = nn.Identity()
        torch.testing.assert_close(module.loss(x, y), cross_entropy(p.log()[:20], y))


def test_more_layers_than_the_head_has_are_refused(short):
    with pytest.raises(ValueError, match="head_layer=4, but .* has 3 layers"):
        short(head_layer=4).fit(X, Y)


def test_other_embedders():
    for held, n_layers in (
        (MoCoTransformer(max_steps=2), 1),
        (CLDTransformer(max_steps=2), 1),
        (AutoencoderTransformer(3, hidden_sizes=(9,), max_steps=2), 0),
    ):
        fitted = SimCLRv2Classifier(
            held, max_steps=2, distill_epochs=1, random_state=0
        ).fit(X, Y)
        assert len(fitted.net_.module_.teacher.project) == n_layers
        assert fitted.predict_proba(X).shape == (80, 2)
    with pytest.raises(ValueError, match="embedder=PCA has no network"):
        SimCLRv2Classifier(PCA(2)).fit(X, Y)


def test_the_default_embedder_and_its_backbone():
    fitted = SimCLRv2Classifier(
        backbone=nn.Linear(6, 5), max_steps=2, distill_epochs=1, random_state=0
    ).fit(X, Y)
    assert len(fitted.embedder_.net_.module_.project) == 3
    assert fitted.encoder_.n_features_out == 5
    frozen = FrozenEstimator(fitted.embedder_)
    with pytest.raises(ValueError, match="has no effect on a frozen embedder"):
        SimCLRv2Classifier(frozen, backbone="resnet9").fit(X, Y)


def test_a_frozen_embedder_is_left_as_it_was(short, embedder):
    before, Z = weights_of(embedder.net_.module_), embedder.transform(X)
    wants = [p.requires_grad for p in embedder.net_.module_.parameters()]
    fitted = short(student_backbone=embedder).fit(X, Y)
    fitted.set_params(warm_start=True).fit(X, Y)
    assert fitted.embedder_.estimator is embedder
    assert_same(weights_of(embedder.net_.module_), before)
    np.testing.assert_array_equal(embedder.transform(X), Z)
    assert [p.requires_grad for p in embedder.net_.module_.parameters()] == wants


def test_the_student_begins_where_it_is_told(short, embedder):
    still = {"distill_lr": 1e-30, "distill_weight_decay": 0.0, "distill_epochs": 1}
    pretrained = list(embedder.encoder_.parameters())
    for backbone in (None, embedder):
        student = (
            short(student_backbone=backbone, **still).fit(X, Y).net_.module_.student
        )
        assert_same(list(student.backbone.parameters()), pretrained)
        assert len(student.project) == 0  # without the head, as published
    module = short(student_backbone="auto", **still).fit(X, Y).net_.module_
    fresh = list(module.student.backbone.parameters())
    assert [p.shape for p in fresh] == [p.shape for p in pretrained]
    assert not torch.equal(fresh[0], pretrained[0])


def test_the_teacher_is_that_of_the_fine_tuning_and_stays(short):
    teacher = short(distill_epochs=0).fit(X, Y).net_.module_
    distilled = short().fit(X, Y)
    teacher.augment = None
    assert_same(weights_of(distilled.net_.module_.teacher), weights_of(teacher))
    assert distilled.encoder_ is distilled.net_.module_.student.backbone


@pytest.mark.parametrize("alpha", [1, 0.999, 0.5, 0])
def test_the_student_is_as_sure_as_the_answers_it_was_taught(short, alpha):
    fitted = short(alpha=alpha).fit(X, Y)
    student = copy.deepcopy(fitted.net_.module_.student).eval()
    with torch.no_grad():
        logits = student.logits(torch.from_numpy(X))
    p = (logits / (fitted.temperature if alpha else 1)).softmax(1)
    np.testing.assert_allclose(fitted.predict_proba(X), p, rtol=1e-5, atol=1e-6)


def test_confidence_does_not_jump_where_alpha_leaves_1(short):
    settings = {"max_steps": 30, "distill_epochs": 20}
    sure, mixed = (
        short(alpha=alpha, **settings).fit(X, Y).predict_proba(X).max(1).mean()
        for alpha in (1, 0.999)
    )
    assert sure > 0.9 and abs(sure - mixed) < 0.05


def test_the_history_tells_of_both_stages(short):
    fitted = short(max_steps=None, max_epochs=3, distill_epochs=2).fit(X, Y)
    history = fitted.net_.history
    assert history[:, "stage"] == ["fine-tune"] * 3 + ["distill"] * 2
    assert fitted.n_iter_ == 5 and len(history[:, "train_loss"]) == 5
    assert len(history[:, "teacher_agreement"]) == 2
    assert "labeled_loss" not in history[-1]
    # twenty labels fit into a batch; eighty rows are two batches of 32 and the rest
    assert history[:, "train_batch_count"] == [1, 1, 1, 3, 3]
    mixed = short(alpha=0.4).fit(X, Y).net_.history[-1]
    total = 0.6 * mixed["labeled_loss"] + 0.4 * mixed["distillation_loss"]
    np.testing.assert_allclose(mixed["train_loss"], total, rtol=1e-5)
    alone = short(distill_epochs=0).fit(X, Y)
    assert set(alone.net_.history[:, "stage"]) == {"fine-tune"}


class _Note(nn.Module):
    """A view that remembers what it has seen."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __sklearn_clone__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        self.seen.append(len(x))
        return x


def test_what_a_batch_holds(short):
    seen = []
    view = _Note(seen)
    short(augment=view, batch_size=8, distill_epochs=1).fit(X, Y)
    assert seen == [8, 8, 4, 32, 32, 16]  # 20 labels; then every row once
    seen.clear()
    short(augment=view, batch_size=8, distill_epochs=1, alpha=0.5).fit(X, Y)
    # 8 labeled rows, and 32 of all; three such steps visit every labeled row
    assert seen == [8, 8, 4, 40, 40, 40]


# -- parameters and hard cases


def test_same_seed_same_bits(short):
    whole = SimCLRTransformer(projection_layers=3, max_steps=2)
    first, again = (short(embedder=whole).fit(X, Y).predict_proba(X) for _ in range(2))
    np.testing.assert_array_equal(first, again)


HARD = {
    "one label a class": np.where(np.arange(80) < 2, TRUTH, -1),
    "everything labeled": TRUTH,
    "twenty to one": np.where(np.arange(80) < 21, np.arange(80) == 0, -1),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("alpha", [1, 0.5, 0])
@pytest.mark.parametrize("weight", [None, "balanced"])
def test_hard_cases(short, name, alpha, weight):
    fitted = short(
        max_steps=20,
        batch_size=64,  # larger than the labeled rows
        distill_batch_size=500,  # and larger than all
        distill_epochs=20,
        alpha=alpha,
        class_weight=weight,
    ).fit(X, HARD[name].astype(int))
    p = fitted.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    if name == "everything labeled":
        assert fitted.score(X, TRUTH) > 0.9


def test_a_single_row_with_a_weight(short):
    for alpha in (1, 0.5):
        weights = (np.arange(80) == 3).astype(float)
        fitted = short(alpha=alpha).fit(X, Y, weights)
        assert (fitted.predict(X) == Y[3]).mean() > 0.9


def test_images_and_class_names(digits):
    images, target = digits
    names = np.array([f"digit {k}" for k in range(10)], dtype=object)
    y = np.full(80, -1, dtype=object)
    y[:40] = names[target[:40]]
    fitted = SimCLRv2Classifier(
        SimCLRTransformer(projection_layers=3, max_steps=2),
        max_steps=5,
        distill_epochs=1,
        random_state=0,
    ).fit(images[:80], y)
    assert fitted.predict_proba(images[:80]).shape == (80, 10)
    assert fitted.classes_.tolist() == names.tolist()
    assert fitted.transduction_[:40].tolist() == y[:40].tolist()
    assert set(fitted.transduction_) <= set(names)


def test_calibration_uses_rows_that_were_withheld(short):
    y = np.where(np.arange(80) < 60, TRUTH, -1)
    fitted = short(calibration_size=20, max_steps=100, distill_epochs=6).fit(X, y)
    assert fitted.calibration_temperature_ != 1
    np.testing.assert_allclose(fitted.predict_proba(X).sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(fitted.transduction_[:60], y[:60])


# -- broken off, continued, saved


def break_at(monkeypatch, method, call, error):
    """Let the method of the distillation fail when it is called for the n-th time."""
    original, calls = getattr(_Distilled, method), []

    def failing(self, *given):
        calls.append(1)
        if len(calls) == call:
            raise error
        return original(self, *given)

    monkeypatch.setattr(_Distilled, method, failing)


@pytest.mark.parametrize("call", [1, 3])
@pytest.mark.parametrize("alpha", [1, 0.5])
def test_a_broken_distillation_continues_to_the_same_bits(
    short, tmp_path, monkeypatch, call, alpha
):
    settings = {
        "embedder": SimCLRTransformer(projection_layers=3, max_steps=2),
        "distill_epochs": 4,
        "alpha": alpha,
        "student_backbone": "auto",
    }
    whole = short(**settings).fit(X, Y)
    broken = short(**settings, checkpoint_dir=tmp_path)
    with monkeypatch.context() as patch:
        break_at(patch, "after_epoch", call, RuntimeError("the power fails"))
        with pytest.raises(RuntimeError, match="the power fails"):
            broken.fit(X, Y)
    broken.fit(X, Y)
    np.testing.assert_array_equal(broken.predict_proba(X), whole.predict_proba(X))
    stages = whole.net_.history[:, "stage"]
    assert broken.net_.history[:, "stage"] == stages and broken.n_iter_ == len(stages)
    # other labels are another training
    other = np.where(Y >= 0, 1 - Y, -1)
    expected = short(**settings).fit(X, other).predict_proba(X)
    np.testing.assert_array_equal(broken.fit(X, other).predict_proba(X), expected)


def test_interrupted_in_either_stage(short, monkeypatch):
    with monkeypatch.context() as patch:
        break_at(patch, "loss", 5, KeyboardInterrupt())
        with pytest.warns(UserWarning, match="interrupted in stage 'distill'"):
            fitted = short(distill_epochs=9).fit(X, Y)
    assert fitted.interrupted_ and hasattr(fitted.net_.module_, "student")
    assert fitted.predict(X).shape == (80,)
    seen = []

    class Break(_Note):
        def forward(self, x):
            if len(self.seen) == 4:
                raise KeyboardInterrupt
            return super().forward(x)

    clf = short(augment=Break(seen), max_steps=9)
    with pytest.warns(UserWarning, match="interrupted in stage 'fine-tune'"):
        fitted = clf.fit(X, Y)
    # the teacher predicts, not a student that has learned nothing
    assert fitted.interrupted_ and not hasattr(fitted.net_.module_, "student")
    assert set(fitted.net_.history[:, "stage"]) == {"fine-tune"}


def test_warm_start_goes_on_from_teacher_and_student(short):
    for epochs in (0, 2):
        fitted = short(distill_epochs=epochs, warm_start=True).fit(X, Y)
        before = copy.deepcopy(fitted.net_.module_)
        held = fitted.embedder_
        still = {"lr": 1e-30, "distill_lr": 1e-30, "distill_weight_decay": 0}
        fitted.set_params(**still).fit(X, Y)
        assert fitted.embedder_ is held
        assert_same(list(fitted.net_.module_.parameters()), list(before.parameters()))
    # a distillation after all
    fitted = short(distill_epochs=0, warm_start=True).fit(X, Y)
    fitted.set_params(distill_epochs=1, lr=1e-30).fit(X, Y)
    assert fitted.net_.history[-1, "stage"] == "distill"


@pytest.mark.parametrize("epochs", [0, 1])
def test_saved_and_loaded(short, tmp_path, epochs, digits):
    for data in (X, digits[0][:80]):
        settings = {"distill_epochs": epochs, "head_layer": 2}
        if data is not X:
            held = SimCLRTransformer(projection_layers=3, max_steps=1)
            settings |= {"embedder": held, "augment": Weak(flip=0)}
        fitted = short(student_backbone="auto", **settings).fit(data, Y)
        fitted.save(tmp_path / "model")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = sklabel.load(tmp_path / "model")
        np.testing.assert_array_equal(
            loaded.predict_proba(data), fitted.predict_proba(data)
        )
        np.testing.assert_array_equal(loaded.transduction_, fitted.transduction_)
        assert loaded.n_iter_ == len(loaded.net_.history) == fitted.n_iter_
