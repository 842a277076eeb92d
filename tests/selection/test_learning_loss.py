"""Tests of learning loss."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import sklabel
from sklabel import selection
from sklabel._core.layers import choose_layers, output_shapes
from sklabel.backbones import build_backbone, build_sobel_backbone
from sklabel.losses import learning_loss
from sklabel.selection._learning_loss import LearningLossSelector, _LossHead
from tests._golden import cases
from tests._pictures import stripes

SHORT = {"max_steps": 3, "width": 8, "random_state": 0}


@pytest.fixture(scope="module")
def digits():
    X, target = load_digits(return_X_y=True)
    X = (X[:200] / 16).astype(np.float32)
    return X, np.where(np.arange(200) < 40, target[:200], -1), target[:200]


def images(X):
    return X.reshape(-1, 8, 8)


# -- the loss


def test_golden_loss():
    for case in cases("learning_loss"):
        p, t = (torch.tensor(case[k]) for k in ("pred_loss", "target_loss"))
        p.requires_grad_(), t.requires_grad_()
        margin = float(case["margin"])
        loss = learning_loss(p, t, margin)
        loss.backward()
        np.testing.assert_allclose(loss.item(), case["loss"], rtol=1e-10)
        np.testing.assert_allclose(p.grad, case["grad_pred"], rtol=1e-10, atol=1e-15)
        assert t.grad is None and not case["grad_target"].any()
        pairs = [
            learning_loss(p[[i, -1 - i]], t[[i, -1 - i]], margin).item()
            for i in range(len(p) // 2)
        ]
        np.testing.assert_allclose(pairs, case["per_pair"], rtol=1e-10)


def test_loss_by_hand():
    losses = torch.tensor([3.0, 1.0, 9.0, 1.0, 2.0])
    predicted = torch.tensor([0.2, 0.5, 7.0, 0.1, 0.0], requires_grad=True)
    # 3 > 2: 1 - (0.2 - 0) = 0.8; 1 = 1 counts as less: 1 + (0.5 - 0.1) = 1.4
    loss = learning_loss(predicted, losses)
    assert loss.item() == pytest.approx((0.8 + 1.4) / 2)
    loss.backward()
    # up, down; the middle one has no partner
    assert predicted.grad.tolist() == [-0.5, 0.5, 0.0, -0.5, 0.5]


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 9), margin=st.floats(0, 3), seed=st.integers(0, 2**31))
def test_loss_is_the_slow_loop(n, margin, seed):
    rng = np.random.default_rng(seed)
    p, t = rng.normal(size=n), rng.integers(0, 3, n).astype(float)
    terms = []
    for i in range(n // 2):
        j = n - 1 - i
        sign = 1 if t[i] > t[j] else -1
        terms.append(max(0, margin - sign * (p[i] - p[j])))
    found = learning_loss(torch.tensor(p), torch.tensor(t), margin).item()
    assert found == pytest.approx(np.mean(terms) if terms else 0, abs=1e-12)
    # the size of the losses does not count, a constant on the predictions neither
    again = learning_loss(torch.tensor(p + 5), torch.tensor(3 * t + 1), margin).item()
    assert again == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("n_rows", [8, 7])
def test_the_loss_of_a_step_is_the_slow_loop(digits, n_rows):
    X, y, target = digits
    selector = LearningLossSelector(
        5, **SHORT, augment=None, margin=0.3, loss_weight=0.7, lr=0.01
    ).fit(X, y)
    module = selector.net_.module_.eval()
    x, labels = torch.from_numpy(X[:n_rows]), torch.tensor(target[:n_rows])
    loss, figures = module.loss(x, labels)
    with torch.no_grad():
        logits = module.head(module.backbone(x)).double().numpy()
        predicted = module(x)[:, 0].double().numpy()
    losses = [np.log(np.exp(s).sum()) - s[k] for s, k in zip(logits, target)]
    ranking = 0.0
    for i in range(n_rows // 2):  # the first with the last, and so on
        j = n_rows - 1 - i
        sign = 1 if losses[i] > losses[j] else -1
        hinge = max(0, 0.3 - sign * (predicted[i] - predicted[j]))
        ranking += hinge / (n_rows // 2)
    np.testing.assert_allclose(figures["class_loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(figures["ranking_loss"], ranking, rtol=1e-4)
    np.testing.assert_allclose(loss.item(), np.mean(losses) + 0.7 * ranking, rtol=1e-5)


def test_loss_extremes_and_errors():
    half = torch.tensor([100.0, -100.0], dtype=torch.bfloat16)
    assert learning_loss(half, torch.tensor([0.0, 1.0])).item() == 201
    one = torch.ones(1, requires_grad=True)
    learning_loss(one, torch.ones(1)).backward()
    assert one.grad.item() == 0
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(3, 1\)"):
        learning_loss(torch.zeros(3), torch.zeros(3, 1))


# -- the head and its layers


def test_golden_head():
    for case in cases("learning_loss_net"):
        n = sum(key.startswith("feature") for key in case)
        features = [torch.tensor(case[f"feature{i}"]) for i in range(n)]
        for feature in features:
            feature.requires_grad_()
        sizes = [feature.shape[1] for feature in features]
        head = _LossHead(sizes, len(case["w_FC1_bias"])).double()
        names = [(f"layers.{i}", f"FC{i + 1}") for i in range(n)] + [("last", "linear")]
        state = {
            f"{ours}.{kind}": torch.tensor(case[f"w_{theirs}_{kind}"])
            for ours, theirs in names
            for kind in ("weight", "bias")
        }
        head.load_state_dict(state)
        output = head(features)
        np.testing.assert_allclose(output.detach(), case["output"][:, 0], rtol=1e-10)
        output.sum().backward()
        for i, feature in enumerate(features):
            want = case[f"grad_feature{i}"]
            np.testing.assert_allclose(feature.grad, want, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize(
    "spec, shape, names, sizes",
    [
        ("auto", (5,), ["2", "5"], [(128,), (128,)]),
        ("auto", (3, 32, 32), ["2", "3", "4", "5"], None),
        ("resnet9", (3, 16, 16), ["2", "7", "11", "16"], None),
        ("wrn_28_2", (1, 8, 8), ["0", "4", "8", "14"], None),
        ("resnet18", (3, 16, 16), ["layer1", "layer2", "layer3", "layer4"], None),
        (nn.Sequential(nn.Linear(5, 7), nn.ReLU()), (5,), ["1"], [(7,)]),
        (nn.Linear(5, 3), (5,), [""], [(3,)]),
        (nn.Flatten(), (1, 2, 2), [""], [(4,)]),
        (
            nn.Sequential(
                nn.Conv2d(1, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU()),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(6, 500),
            ),
            (1, 8, 8),
            ["2", "3"],
            [(4, 6, 6), (6, 4, 4)],
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_layers_are_found(spec, shape, names, sizes):
    encoder = build_backbone(spec, shape)
    mode = encoder.training
    shapes = output_shapes(encoder)
    assert list(choose_layers(encoder.body, shapes)) == names
    if sizes is not None:
        assert [shapes[name] for name in names] == sizes
    assert encoder.training == mode
    assert not any(m._forward_hooks for m in encoder.modules())


def test_layers_within_wrapped_networks_and_transformers():
    encoder = build_sobel_backbone("resnet8", (3, 8, 8))
    found = choose_layers(encoder.body, output_shapes(encoder))
    assert found == tuple(f"1.body.{i}" for i in (2, 3, 4, 5))

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 12, 4, 4)
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
                for _ in range(6)
            )

        def forward(self, x):
            h = self.embed(x).flatten(2).transpose(1, 2)
            for block in self.blocks:
                h = block(h)
            return h.mean(1)

    body = Tokens()
    encoder = build_backbone(body, (3, 8, 8))
    found = choose_layers(encoder.body, output_shapes(encoder))
    assert found == tuple(f"blocks.{i}" for i in (2, 3, 4, 5))
    x = np.random.default_rng(0).random((12, 8, 8, 3)).astype(np.float32)
    y = np.r_[[0, 1] * 3, [-1] * 6]
    selector = LearningLossSelector(2, backbone=body, **SHORT).fit(x, y)
    assert selector.layers_ == found and np.isfinite(selector.scores_[6:]).all()


def test_what_the_head_sees_is_not_written_over(digits):
    X, y, _ = digits

    class Writes(nn.Module):
        def forward(self, x):
            return x.mul_(0)

    body = nn.Sequential(nn.Linear(64, 6), Writes())
    by_name = LearningLossSelector(5, layers=["0"], backbone=body, **SHORT).fit(X, y)
    assert by_name.scores_[y == -1].std() > 0


def test_named_layers(digits):
    X, y, _ = digits
    selector = LearningLossSelector(5, layers=["3", "5"], **SHORT).fit(images(X), y)
    assert selector.layers_ == ("3", "5")
    assert [f.in_features for f in selector.net_.module_.loss_head.layers] == [32, 128]
    for layers, named in ((["3", "layer4"], "layer4"), ([], "at least one")):
        with pytest.raises(ValueError, match=f"(?s){named}.*There are .*'5'"):
            LearningLossSelector(5, layers=layers, **SHORT).fit(images(X), y)
    with pytest.raises(ValueError, match="layers"):
        LearningLossSelector(5, layers="layer4", **SHORT).fit(images(X), y)


@pytest.mark.parametrize(
    "detach_after, attached", [(None, 8), (1, 2), (0, 0), (0.5, 4), (0.0, 0), (1.0, 8)]
)
def test_when_the_head_stops_teaching_the_backbone(
    digits, detach_after, attached, monkeypatch
):
    X, y, _ = digits
    seen = []
    selector = LearningLossSelector(
        5, detach_after=detach_after, **{**SHORT, "max_steps": None}, max_epochs=4
    )
    selector.set_params(batch_size=20)  # 2 steps an epoch
    module_class = selector.fit(X, y).net_.module_.__class__
    original = module_class.loss

    def loss(module, x, target):
        seen.append(module.n_steps < module.n_attached)
        return original(module, x, target)

    monkeypatch.setattr(module_class, "loss", loss)
    selector.fit(X, y)
    assert seen == [i < attached for i in range(8)]


def test_a_detached_head_does_not_move_the_backbone(digits):
    X, y, _ = digits

    def encoder(weight, detach_after):
        selector = LearningLossSelector(
            5, loss_weight=weight, detach_after=detach_after, augment=None, **SHORT
        ).fit(X, y)
        return next(selector.encoder_.parameters()).detach()

    alone = encoder(0, None)
    assert torch.equal(encoder(5.0, 0), alone)
    assert not torch.equal(encoder(5.0, None), alone)


# -- the selector


def check_promises(selector, X, y, n_samples):
    rows = selector.sample_indices_
    assert rows.shape == (n_samples,) and rows.dtype == np.int64
    assert len(set(rows.tolist())) == n_samples
    assert (np.asarray(y)[rows] == -1).all()
    assert selector.support_.sum() == n_samples and selector.support_[rows].all()
    assert (selector.scores_[np.asarray(y) != -1] == -np.inf).all()
    assert not np.isnan(selector.scores_).any()
    order = np.argsort(-selector.scores_, kind="stable")[:n_samples]
    np.testing.assert_array_equal(rows, order)


@pytest.mark.parametrize("form", ["vectors", "images"])
def test_rows_whose_class_cannot_be_learned_are_predicted_a_high_loss(form):
    rng = np.random.default_rng(0)
    X, kind = stripes(600)
    # all of the last kind are of the first or second class by chance
    y = np.where(kind == 2, rng.integers(0, 2, 600), kind)
    if form == "vectors":
        X = (3 * np.eye(6)[kind] + 0.3 * rng.normal(size=(600, 6))).astype(np.float32)
    y[400:] = -1
    settings = {"augment": None, "batch_size": 50, "max_steps": 40}
    settings |= {"precision": "float32", "random_state": 0}
    selector = LearningLossSelector(20, **settings).fit(X, y)
    check_promises(selector, X, y, 20)
    assert roc_auc_score(kind[400:] == 2, selector.scores_[400:]) > 0.85
    assert (kind[selector.sample_indices_] == 2).mean() > 0.75
    history = selector.net_.history
    assert history[-1]["ranking_loss"] < history[0]["ranking_loss"]
    assert history[-1]["class_loss"] < history[0]["class_loss"]


def test_forms_of_X(digits, tmp_path):
    X, y, _ = digits
    pictures = (images(X) * 255).astype(np.uint8)
    color = np.repeat(pictures[..., None], 3, axis=3)
    selector = LearningLossSelector(7, **SHORT)
    check_promises(selector.fit(X, y), X, y, 7)
    assert selector.assignments_.shape == (200,) and selector.n_features_in_ == 64
    np.testing.assert_array_equal(
        selector.assignments_[selector.sample_indices_], np.arange(7)
    )
    selector.fit(color, y)
    assert not hasattr(selector, "assignments_") and selector.n_features_in_ == 192
    expected = selector.scores_
    flat = clone(selector).set_params(image_shape=(8, 8, 3))
    np.testing.assert_array_equal(flat.fit(color.reshape(200, -1), y).scores_, expected)
    assert not hasattr(flat, "assignments_")
    paths = []
    for i, picture in enumerate(color[:60]):
        paths.append(str(tmp_path / f"{i:03d}.png"))
        Image.fromarray(picture).save(paths[-1])
    found = clone(selector).fit(paths, y[:60])
    np.testing.assert_array_equal(
        found.scores_, clone(selector).fit(color[:60], y[:60]).scores_
    )
    with open(paths[50], "wb") as file:
        file.write(b"no image")
    with pytest.raises(ValueError, match="050.png"):
        clone(selector).fit(paths, y[:60])
    skipping = clone(selector).set_params(on_error="skip", image_size=8, n_samples=19)
    with pytest.warns(UserWarning, match="1 of 60"):
        skipping.fit(paths, y[:60])
    assert skipping.scores_[50] == -np.inf and not skipping.support_[50]
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="leaves 19 unlabeled"),
    ):
        skipping.set_params(n_samples=20).fit(paths, y[:60])
    few = np.full(60, -1)
    few[[50, 3]] = 0, 1
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="1 class"):
        skipping.set_params(n_samples=5).fit(paths, few)


def test_only_candidates_are_looked_at(digits):
    X, y, _ = digits
    selector = LearningLossSelector(5, n_candidates=30, **SHORT).fit(X, y)
    check_promises(selector, X, y, 5)
    looked_at = np.flatnonzero(np.isfinite(selector.scores_))
    assert len(looked_at) == 30
    other = clone(selector).set_params(random_state=1).fit(X, y)
    assert set(looked_at) != set(np.flatnonzero(np.isfinite(other.scores_)))
    # what is looked at does not change what is learned
    whole = clone(selector).set_params(n_candidates=None).fit(X, y)
    np.testing.assert_allclose(
        whole.scores_[looked_at], selector.scores_[looked_at], rtol=1e-5
    )
    few = clone(selector).set_params(n_candidates=2).fit(X, y)
    assert np.isfinite(few.scores_).sum() == 5


def test_it_needs_labels_of_two_classes(digits):
    X, y, _ = digits
    selector = LearningLossSelector(5, **SHORT)
    for unlabeled in (None, np.full(200, -1), [None] * 200):
        with pytest.raises(ValueError, match="needs|trains.*labels.*USLSelector"):
            selector.fit(X, unlabeled)
    with pytest.raises(ValueError, match="1 class"):
        selector.fit(X, np.where(y == 3, 3, -1))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        selector.fit(X, y[1:])
    with pytest.raises(ValueError, match="n_samples=161 .* only 160 of the 200"):
        clone(selector).set_params(n_samples=161).fit(X, y)
    for wrong in ({"margin": 0}, {"detach_after": 1.5}, {"detach_after": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            clone(selector).set_params(**wrong).fit(X, y)


def test_every_row_is_labeled(digits):
    X, y, target = digits
    selector = LearningLossSelector(**SHORT).fit(X, y)
    assert hasattr(selector, "net_")
    selector.fit(X, target)
    check_promises(selector, X, target, 0)
    assert not hasattr(selector, "net_") and not hasattr(selector, "classes_")
    warm = LearningLossSelector(**SHORT, warm_start=True).fit(X, y).fit(X, target)
    warm.fit(X, y)  # what was learned before is still there
    check_promises(warm, X, y, 16)


@pytest.mark.parametrize("X", [np.full((12, 3), 2.5), np.zeros((12, 3))])
def test_equal_rows_and_few_labels(X):
    y = np.r_[0, 1, [-1] * 10]
    selector = LearningLossSelector(10, **SHORT).fit(X, y)
    check_promises(selector, X, y, 10)
    assert selector.sample_indices_.tolist() == list(range(2, 12))
    odd = np.r_[0, 1, 1, [-1] * 9]
    check_promises(LearningLossSelector(4, **SHORT).fit(X, odd), X, odd, 4)


def test_names_of_classes(digits):
    X, y, _ = digits
    names = np.array([None if k == -1 else f"digit {k}" for k in y], dtype=object)
    selector = LearningLossSelector(9, **SHORT)
    np.testing.assert_array_equal(
        clone(selector).fit_select(X, names), clone(selector).fit_select(X, y)
    )


def test_warm_start_continues(digits):
    X, y, target = digits
    selector = LearningLossSelector(10, warm_start=True, **SHORT).fit(X, y)
    first = copy.deepcopy(selector.net_.module_.state_dict())
    rows = selector.sample_indices_
    more = y.copy()
    more[rows] = target[rows]
    selector.set_params(lr=1e-9).fit(X, more)
    check_promises(selector, X, more, 10)
    for name, value in selector.net_.module_.state_dict().items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(value, first[name], rtol=0, atol=1e-6)
    assert not set(rows) & set(selector.sample_indices_)
    # another start forgets
    cold = clone(selector).set_params(warm_start=False).fit(X, more)
    weight = cold.net_.module_.loss_head.last.weight
    assert not torch.allclose(weight, first["loss_head.last.weight"], atol=1e-3)
    with pytest.raises(ValueError, match="warm_start=False"):
        selector.fit(X[:, :5], more)


def test_a_new_class_gets_an_output_and_a_lost_one_keeps_its_own(digits):
    X, _, target = digits
    y = np.where((np.arange(200) < 60) & (target > 3), target, -1)
    y[target == 6] = -1
    selector = LearningLossSelector(5, warm_start=True, **SHORT).fit(X, y)
    assert selector.classes_.tolist() == [4, 5, 7, 8, 9]
    head = copy.deepcopy(selector.net_.module_.head)
    more = np.where(np.arange(200) < 60, target, -1)
    more[target == 9] = -1
    selector.set_params(lr=1e-9).fit(X, more)
    assert selector.classes_.tolist() == list(range(10))
    wider = selector.net_.module_.head
    assert wider.weight.shape == (10, 128)
    torch.testing.assert_close(
        wider.weight[[4, 5, 7, 8, 9]], head.weight, rtol=0, atol=1e-6
    )
    names = np.array([str(k) if k >= 0 else None for k in more], dtype=object)
    with pytest.raises(ValueError, match="warm_start=True continues on the classes"):
        selector.fit(X, names)


def test_same_seed_clone_pickle_and_generators(digits):
    X, y, _ = digits
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    selector = LearningLossSelector(15, **SHORT).fit(X, y)
    again = clone(selector).fit(X, y)
    np.testing.assert_array_equal(again.scores_, selector.scores_)
    other = clone(selector).set_params(random_state=1).fit(X, y)
    assert (other.scores_ != selector.scores_).any()
    np.testing.assert_array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])
    selector.set_params(warm_start=True)
    kept = pickle.loads(pickle.dumps(selector))
    np.testing.assert_array_equal(kept.scores_, selector.scores_)
    np.testing.assert_array_equal(kept.fit(X, y).scores_, selector.fit(X, y).scores_)
    # no hook stays behind: the encoder is an encoder for others
    encoder = copy.deepcopy(selector.encoder_)
    assert not any(part._forward_hooks for part in encoder.modules())


def test_saved_and_loaded(digits, tmp_path, monkeypatch):
    name = "LearningLossSelector"
    monkeypatch.setattr(selection, name, LearningLossSelector, raising=False)
    monkeypatch.setattr(selection, "__all__", [*selection.__all__, name])
    X, y, _ = digits
    selector = LearningLossSelector(5, warm_start=True, **SHORT).fit(X, y)
    selector.save(tmp_path / "selector")
    loaded = sklabel.load(tmp_path / "selector")
    assert loaded.layers_ == selector.layers_
    np.testing.assert_array_equal(loaded.scores_, selector.scores_)
    np.testing.assert_array_equal(loaded.fit(X, y).scores_, selector.fit(X, y).scores_)


def test_a_checkpoint_is_taken_up(digits, tmp_path):
    X, y, _ = digits
    settings = {"max_epochs": 4, "batch_size": 20, "width": 8, "random_state": 0}

    class Stop:
        def __init__(self):
            self.n = 0

        def __call__(self, step, total_steps, warmup_steps=0):
            self.n += 1
            if self.n == 6:
                raise KeyboardInterrupt
            return 1.0

    whole = LearningLossSelector(5, schedule="constant", **settings).fit(X, y)
    broken = LearningLossSelector(5, schedule=Stop(), **settings)
    broken.set_params(checkpoint_dir=tmp_path)
    with pytest.warns(UserWarning, match="interrupted"):
        broken.fit(X, y)
    assert broken.interrupted_ and len(broken.sample_indices_) == 5
    # the same schedule under another name would be another fit: rename the file
    (run,) = tmp_path.iterdir()
    resumed = LearningLossSelector(
        5, schedule="constant", checkpoint_dir=tmp_path, **settings
    )
    resumed.fit(X, y)
    (new,) = set(tmp_path.iterdir()) - {run}
    (run / "fit.pt").replace(new / "fit.pt")
    np.testing.assert_array_equal(resumed.fit(X, y).scores_, whole.scores_)


def test_a_pipeline_may_end_in_it(digits):
    X, y, _ = digits
    pipeline = make_pipeline(StandardScaler(), LearningLossSelector(8, **SHORT))
    rows = pipeline.fit(X, y)[-1].sample_indices_
    scaled = StandardScaler().fit_transform(X)
    want = LearningLossSelector(8, **SHORT).fit_select(scaled, y)
    np.testing.assert_array_equal(rows, want)
