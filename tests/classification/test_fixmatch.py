"""FixMatch: unlabeled rows help, hard cases work."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss
from torch import nn
from torch.nn.functional import cross_entropy

from sklabel import CollapseWarning
from sklabel.augment import CTAugment, Weak
from sklabel.classification._fixmatch import FixMatchClassifier, _FixMatch
from sklabel.datasets import load_digit_images
from sklabel.modules import FixedThreshold, PredictedClasses
from tests._making import Shift
from tests._pictures import stripes

X = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
X[::2] += 2
TRUTH = (np.arange(80) + 1) % 2
Y = np.where(np.arange(80) < 10, TRUTH, -1)


def short(**parameters):
    given = {"max_steps": 3, "batch_size": 5, "random_state": 0, **parameters}
    return FixMatchClassifier(**given)


def test_images_from_few_labels():
    images, target = stripes(150)
    y = np.where(np.arange(150) < 15, target, -1)
    settings = {"weak_augment": Weak(flip=0, shift=0), "precision": "float32"}
    fitted = short(batch_size=12, max_steps=40, **settings).fit(images, y)
    assert (fitted.transduction_ == target)[15:].mean() > 0.9
    shares = fitted.net_.history[:, "pseudo_label_share"]
    assert shares[-1] > 0.5
    classes = fitted.net_.history[-1, "pseudo_label_classes"]
    assert len(classes) == 3 and abs(sum(classes) - shares[-1]) < 1e-5


class _Always(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        return self.logits.expand(len(x), -1)


@pytest.mark.parametrize("hard", [True, False])
def test_the_loss_is_that_of_the_paper(hard):
    clf = short(
        threshold=0.6,
        unlabeled_weight=3.0,
        temperature=0.5,
        hard_labels=hard,
        weak_augment=Shift(0.5),
        strong_augment=Shift(-1.0),
    ).fit(X, Y)
    module = clf.net_.module_.eval()  # plain normalization: rows stand for themselves
    x, y = torch.from_numpy(X[:40]), torch.from_numpy(Y[:40])
    y = y.where(y >= 0, -1 - torch.arange(40))  # an unlabeled row is told by its number
    # as the classifier makes it
    module.thresholds = FixedThreshold(0.6, temperature=0.5 if hard else 1.0)
    module.predicted = PredictedClasses(40)
    loss, figures = module.loss(x, y)
    assert figures["pseudo_label_agreement"] == 0  # nothing was predicted before
    assert module.loss(x, y)[1]["pseudo_label_agreement"] == 1
    with torch.no_grad():
        labeled = cross_entropy(module.online(x[:10] + 0.5), y[:10]).item()
        unlabeled, taken = 0.0, 0
        for row in x[10:]:
            weak = module.online(row[None] + 0.5)[0] / 0.5
            strong = module.online(row[None] + 0.5 - 1.0)[0]
            p = weak.softmax(0)
            # soft targets are sharpened after the rows have been chosen
            if (p if hard else (weak * 0.5).softmax(0)).max() >= 0.6:
                taken += 1
                target = torch.eye(2)[p.argmax()] if hard else p
                unlabeled -= float((target * strong.log_softmax(0)).sum())
    assert 0 < taken <= 30
    np.testing.assert_allclose(loss.item(), labeled + 3 * unlabeled / 30, rtol=1e-4)
    np.testing.assert_allclose(figures["pseudo_label_share"].item(), taken / 30)
    np.testing.assert_allclose(figures["labeled_loss"].item(), labeled, rtol=1e-5)


@pytest.mark.parametrize("strong", ["randaugment", "ctaugment", None, Weak(flip=0)])
def test_strong_views_of_images(strong):
    images, target = load_digit_images(return_X_y=True)
    y = np.where(np.arange(60) < 30, target[:60], -1)
    clf = short(strong_augment=strong).fit(images[:60], y)
    assert clf.predict_proba(images[:60]).shape == (60, 10)
    if strong == "ctaugment":  # the labeled rows have taught it something
        policy = clf.net_.module_.strong
        fresh = short(strong_augment=strong, max_steps=1).fit(images[:60], y)
        states = [
            torch.cat([b.float().ravel() for b in p.buffers()])
            for p in (policy, fresh.net_.module_.strong)
        ]
        assert not torch.equal(*states)


def test_ctaugment_probes_the_weak_view_that_is_trained_on(monkeypatch):
    images, target = load_digit_images(return_X_y=True)
    y = np.where(np.arange(60) < 30, target[:60], -1)
    seen, probed = [], []
    forward, probe = Weak.forward, CTAugment.probe

    def look(self, x):
        seen.append(forward(self, x))
        return seen[-1]

    def look_too(self, x):
        probed.append(x)
        return probe(self, x)

    monkeypatch.setattr(Weak, "forward", look)
    monkeypatch.setattr(CTAugment, "probe", look_too)
    short(strong_augment="ctaugment", max_steps=3).fit(images[:60], y)
    assert len(probed) == 3 and len(seen) == 9  # labeled, unlabeled, below the strong
    for step, x in enumerate(probed):
        assert x is seen[3 * step]


def test_steps_and_epochs():
    # 80 unlabeled rows (the labeled ones among them), 35 of them in a batch
    assert short(max_steps=None, max_epochs=2).fit(X, Y).net_.module_.n_steps in (4, 6)
    assert short(max_steps=11).fit(X, Y).net_.module_.n_steps == 11


HARD = {
    "one label a class": np.where(np.arange(80) < 2, TRUTH, -1),
    "everything labeled": TRUTH,
    "twenty to one": np.where(np.arange(80) < 21, np.arange(80) == 0, -1),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("weight", [None, "balanced"])
def test_hard_cases(name, include, weight):
    clf = FixMatchClassifier(
        max_steps=40,
        batch_size=64,  # larger than the labeled rows
        include_labeled=include,
        class_weight=weight,
        lr=0.01,
        random_state=0,
    ).fit(X, HARD[name].astype(int))
    p = clf.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    if name == "everything labeled":
        assert clf.score(X, TRUTH) > 0.9


def test_balance_draws_every_class_equally_often():
    seen = []

    class Note(Shift):
        def forward(self, x):
            seen.append(x[:, 0].round().long())
            return x

    x = np.zeros((80, 6), np.float32)
    x[0] = 1  # the only row of its class
    y = np.where(np.arange(80) < 40, np.arange(80) == 0, -1).astype(int)
    for weight, share in ((None, 1 / 40), ("balanced", 1 / 2), ({1: 39 / 9}, 0.1)):
        seen.clear()
        short(
            weak_augment=Note(0), class_weight=weight, batch_size=20, max_steps=20
        ).fit(x, y)
        labeled = torch.cat([part for part in seen if len(part) == 20])
        assert abs(labeled.float().mean().item() - share) < 0.03
    seen.clear()
    given = np.where(np.arange(80) < 40, np.where(x[:, 0] == 1, 39.0, 1.0), 1e9)
    short(weak_augment=Note(0), batch_size=20, max_steps=20).fit(x, y, given)
    labeled = torch.cat([part for part in seen if len(part) == 20])
    assert abs(labeled.float().mean().item() - 1 / 2) < 0.03


def test_weights_that_make_no_sense_are_refused():
    for weights, message in (
        (np.ones(79), r"sample_weight.shape == \(79,\), expected \(80,\)"),
        (-np.ones(80), "not negative"),
        (
            np.zeros(80),
            "None of the 10 labeled rows can be used: .* sample_weight or class_weight "
            "is",
        ),
        (np.full(80, np.nan), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            short().fit(X, Y, weights)
    for class_weight, message in (
        ({"cat": 2}, r"class_weight names \['cat'\]"),
        ({0: -1}, "class_weight={0: -1} must be finite and not negative"),
        ({0: np.nan}, "finite"),
        ({0: 0, 1: 0}, "None of the 10 labeled rows can be used"),
    ):
        with pytest.raises(ValueError, match=message):
            short(class_weight=class_weight).fit(X, Y)


def test_what_an_unlabeled_row_weighs_is_never_looked_at():
    weighted = short().fit(X, Y, np.where(Y < 0, np.nan, 1.0))
    ones = short().fit(X, Y, np.ones(len(Y)))
    np.testing.assert_array_equal(weighted.predict_proba(X), ones.predict_proba(X))


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_a_fit_that_is_as_unequal_as_the_labels_has_not_collapsed(class_weight):
    rng = np.random.default_rng(0)
    truth = (np.arange(400) % 25 == 0).astype(int)  # 4 in a hundred
    x = (np.eye(6)[truth] * 8 + rng.normal(size=(400, 6))).astype(np.float32)
    y = np.where(np.arange(400) < 100, truth, -1)
    settings = {"max_steps": 60, "threshold": 0.7, "class_weight": class_weight}
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        short(**settings, random_state=0).fit(x, y)


@pytest.fixture
def nothing_dropped(monkeypatch):
    """Modules that keep after fit what only training needs."""
    monkeypatch.setattr(_FixMatch, "drop_training_state", lambda self: None)


def test_thresholds_count_unlabeled_rows_only(nothing_dropped):
    y = np.where(np.arange(80) < 60, TRUTH, -1)
    clf = short(class_thresholds=True, include_labeled=False).fit(X, y)
    thresholds = clf.net_.module_.thresholds
    thresholds.confident = torch.tensor([-1] * 60 + [0, 1] * 10)  # all unlabeled ones
    torch.testing.assert_close(thresholds(), torch.full((2,), 0.95))


@pytest.mark.parametrize("hard", [True, False])
def test_a_row_is_learned_by_the_rule_of_the_mask(hard, nothing_dropped):
    clf = short(class_thresholds=True, threshold=0.8, temperature=0.5, hard_labels=hard)
    module = clf.fit(X, Y).net_.module_
    confident = module.thresholds.confident.fill_(-1)
    module.online = _Always(torch.tensor([[1.0, 0.0]]))  # 0.73, and 0.88 if sharpened
    module.loss(torch.from_numpy(X), torch.arange(-1, -81, -1))
    assert (confident == (0 if hard else -1)).all()


def test_a_second_fit_keeps_the_mean_prediction():
    clf = short(distribution_alignment=True, warm_start=True).fit(X, Y)
    module = clf.net_.module_
    module.align.mean_prediction, module.n_steps = torch.tensor([0.9, 0.1]), 10**6
    mean = clf.set_params(max_steps=1).fit(X, Y).net_.module_.align.mean_prediction
    torch.testing.assert_close(mean, torch.tensor([0.9, 0.1]), atol=2e-3, rtol=0)


def test_what_goes_wrong_is_said():
    settings = {"max_steps": 60, "lr": 0.03, "include_labeled": False}
    many = np.resize(X, (240, 6))  # of a few rows a class may be missing by chance
    reached = "reached threshold=0.99999.*lower the thr"
    with pytest.warns(CollapseWarning, match=reached):
        short(threshold=0.99999, lr=1e-6).fit(X, Y)
    # the labels say 90:10, and all unlabeled rows look like the first class
    y = np.where(np.arange(240) < 20, np.arange(240) >= 18, -1).astype(int)
    x = (np.where(y == 1, 9, 0)[:, None] + many / 10).astype(np.float32)
    with pytest.warns(CollapseWarning, match="100% .* of class 0, but 90% .*weight"):
        short(**settings).fit(x, y)
    # of the third class there are labeled rows only
    y = np.where(np.arange(240) < 40, np.resize(TRUTH, 240), -1)
    y[:4] = 2
    x = many - np.where(y == 2, 20, 0)[:, None] * np.eye(6, dtype=np.float32)[5]
    with pytest.warns(CollapseWarning, match="None of the pseudo-labels is of class 2"):
        short(**settings, threshold=0.5).fit(x, y)
    # an epoch of one step says too little of a rare class
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        short(**{**settings, "max_steps": 57}, threshold=0.5).fit(x, y)
        # nor do few rows, however often they are drawn
        y = np.where((np.arange(80) % 20 == 0), -1, TRUTH)
        short(**{**settings, "lr": 0.01}).fit(X + 3 * (y == -1)[:, None], y)


def test_the_rule_that_excludes_rows_is_said():
    rules = [
        ({"threshold": 0}, "rows had an energy below energy_.*=-99.*, raise energy_"),
        (
            {"threshold": "soft"},
            "rows had an energy below .* raise energy_threshold, or",
        ),
        (
            {"threshold": 0.3},
            "reached threshold=0.3 with an energy .*lower threshold or",
        ),
    ]
    for given, message in rules:
        with pytest.warns(CollapseWarning, match=message):
            short(**given, energy_threshold=-99.0, max_steps=2).fit(X, Y)


@pytest.mark.parametrize(
    "given, advised",
    [
        ({"threshold": "free"}, False),
        ({"threshold": 0.0, "relative_threshold": True}, False),
        ({"threshold": 0.0}, True),
    ],
)
def test_no_advice_is_an_error(given, advised):
    y = np.where(np.arange(240) < 20, np.arange(240) >= 18, -1).astype(int)
    x = np.resize(X, (240, 6)) / 10 + 9 * (y == 1)[:, None]
    clf = short(**given, max_steps=60, lr=0.03, include_labeled=False)
    with pytest.warns(CollapseWarning, match="of class 0, but 90%") as told:
        clf.fit(x.astype(np.float32), y)
    assert ("class_thresholds=True" in str(told[0].message)) is advised


def test_calibration_on_withheld_labels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    truth = (x[:, 0] + rng.normal(size=300) > 0).astype(int)  # sure answers are wrong
    y = np.where(np.arange(300) < 200, truth, -1)
    settings = {"max_steps": 200, "batch_size": 50}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        plain = short(**settings).fit(x, y)
        fitted = short(calibration_size=0.5, **settings).fit(x, y)
    assert plain.calibration_temperature_ == 1
    assert fitted.calibration_temperature_ > 1.5
    np.testing.assert_array_equal(fitted.transduction_[:200], y[:200])
    p = fitted.predict_proba(x)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert log_loss(truth[200:], p[200:]) < log_loss(
        truth[200:], plain.predict_proba(x)[200:]
    )
    for size in (5, 199, 0.01):
        with pytest.raises(ValueError, match=f"calibration_size={size} would withhold"):
            short(calibration_size=size).fit(x, y)


def test_class_names_come_back():
    names = np.array(["ant", "bee"], dtype=object)
    y = np.array([names[k] if k >= 0 else -1 for k in Y], dtype=object)
    clf = short().fit(X, y)
    assert clf.classes_.tolist() == ["ant", "bee"]
    assert set(clf.transduction_) <= {"ant", "bee"} and set(clf.predict(X)) <= set(
        names
    )


def test_labels_on_unreadable_files_only_are_refused(tmp_path):
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    files = sorted(map(str, tmp_path.glob("*.png")))
    clf = FixMatchClassifier(max_steps=1, on_error="skip", image_size=8)
    with pytest.raises(ValueError, match="None of the 2 labeled rows can be used"):
        with pytest.warns(UserWarning, match="2 of 6"):
            clf.fit(files, [0, 1, -1, -1, -1, -1])


def test_a_checkpoint_is_that_of_the_same_weights(tmp_path):
    weights = np.where(np.arange(80) < 5, 9.0, 1.0)
    clf = short(checkpoint_dir=tmp_path)
    plain = clf.fit(X, Y).predict_proba(X)
    assert not np.array_equal(clf.fit(X, Y, weights).predict_proba(X), plain)
    np.testing.assert_array_equal(clf.fit(X, Y).predict_proba(X), plain)


@pytest.mark.parametrize("align", [True, False])
def test_models_with_the_former_names_of_weights_load(align):
    module = short(distribution_alignment=align).fit(X, Y).net_.module_
    weights = module.state_dict()
    former = {name.removeprefix("align."): weight for name, weight in weights.items()}
    former.setdefault("prior", torch.tensor([0.5, 0.5]))  # they were always there
    former.setdefault("mean_prediction", torch.tensor([0.5, 0.5]))
    fresh = short(distribution_alignment=align, random_state=1).fit(X, Y).net_.module_
    fresh.load_state_dict(former)
    for name, weight in fresh.state_dict().items():
        assert torch.equal(weight, weights[name]), name
