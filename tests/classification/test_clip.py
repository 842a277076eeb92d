"""CLIP as a classifier: classes from names, probes and memories from a few labels."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import sklabel
from sklabel._core.few_shot import (
    FewShotHead,
    class_embedding,
    linear_probe,
    remembered,
)
from sklabel.augment import Contrastive
from sklabel.classification import CLIPClassifier
from sklabel.classification._clip import _TEMPLATES
from sklabel.embedding import CLIPTransformer, SimCLRTransformer
from tests._golden import assert_same_ranking, cases

NAMES = ["cat", "dog", "fish"]
SAID = ["a furry cat", "a loyal dog", "a wet fish"]


def draw(n, seed, noise=1.0):
    """Return vectors around one center for each class, and their classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    centers = 2 * np.eye(3, 8)
    return (centers[y] + noise * rng.normal(size=(n, 8))).astype(np.float32), y


X, Y = draw(240, 0)
X_TEST, Y_TEST = draw(300, 1)


@pytest.fixture(scope="module")
def embedder():
    """Return towers trained on captions in which the names occur."""
    return CLIPTransformer(
        16,
        same_captions="positives",
        text_width=32,
        text_layers=1,
        text_heads=2,
        max_steps=60,
        batch_size=64,
        lr=3e-3,
        random_state=0,
    ).fit(X, [[NAMES[k], SAID[k]] for k in Y])


def tiny(class_names=None, **parameters):
    settings = {"prompts": "{}", "max_steps": 3, "batch_size": 32, "random_state": 0}
    return CLIPClassifier(class_names, **{**settings, **parameters})


def partly(y, n_labeled, names=None):
    labels = np.full(len(y), -1, dtype=object if names else int)
    labels[:n_labeled] = [names[k] for k in y[:n_labeled]] if names else y[:n_labeled]
    return labels


# -- the parts


def test_clip_zero_shot_golden():
    for case in cases("clip_zero_shot"):
        images, texts = torch.tensor(case["image"]), torch.tensor(case["text"])
        embedding = class_embedding(texts)
        np.testing.assert_allclose(
            embedding.numpy(), case["class_embedding"], rtol=1e-8, atol=1e-12
        )
        n_classes, n_features = embedding.shape
        head = FewShotHead(
            float(case["logit_scale"]) * embedding,
            np.zeros(n_classes),
            np.zeros((0, n_features)),
            np.zeros((0, n_classes)),
            0.0,
            1.0,
        )
        unit = images / images.norm(dim=1, keepdim=True)
        with torch.no_grad():
            logits, probability = head.linear(unit.float()), head(unit)
        np.testing.assert_allclose(logits, case["logits"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            probability, case["probability"], rtol=1e-3, atol=1e-5
        )
        for row, expected in enumerate(case["prediction"]):
            found = [int(probability[row].argmax())]
            assert_same_ranking(found, [expected], case["probability"][row], atol=1e-5)


@given(arrays(np.float64, (3, 4, 5), elements=st.floats(-100, 100)), st.floats(0.1, 9))
def test_the_length_and_the_order_of_prompts_do_not_count(texts, factor):
    # shorter than 1e-6 a row counts as zero
    texts = torch.tensor(np.where(np.abs(texts) < 1e-3, 1.0, texts))
    embedding = class_embedding(texts)
    torch.testing.assert_close(class_embedding(texts * factor), embedding)
    torch.testing.assert_close(class_embedding(texts.flip(1)), embedding)
    ragged = class_embedding([texts[0], texts[1, :1], texts[2, :2]])
    torch.testing.assert_close(ragged[0], embedding[0])


def test_the_memory_by_hand():
    u = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    keys, values = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.eye(2)
    expected = 2 * np.exp(-5.5 * (1 - np.array([[1, 0], [0.6, 0.8]])))
    np.testing.assert_allclose(remembered(u, keys, values, 2.0, 5.5), expected, 1e-5)


@pytest.mark.parametrize("C", [0.1, 30.0])
def test_the_probe_is_a_logistic_regression(C):
    rng = np.random.default_rng(0)
    Z, codes, weights = rng.normal(size=(50, 4)), np.arange(50) % 3, rng.random(50)
    coef, bias = linear_probe(Z, codes, weights, np.zeros((3, 4)), C)
    peer = LogisticRegression(C=C, fit_intercept=False, tol=1e-9, max_iter=5000)
    peer.fit(np.column_stack([Z, np.ones(50)]), codes, weights)
    np.testing.assert_allclose(np.column_stack([coef, bias]), peer.coef_, atol=1e-3)


def test_the_probe_stays_where_nothing_pulls():
    start = np.random.default_rng(0).normal(size=(3, 4))
    Z, codes = np.random.default_rng(1).normal(size=(9, 4)), np.zeros(9, int)
    coef, bias = linear_probe(Z, codes, np.ones(9), start, 1e-9)
    np.testing.assert_allclose(coef, start, atol=1e-6)
    np.testing.assert_allclose(bias, 0, atol=1e-6)


# -- zero-shot


def test_names_are_enough(embedder):
    clf = tiny(NAMES, embedder=embedder).fit(X)
    assert clf.classes_.tolist() == NAMES
    p = clf.predict_proba(X_TEST)
    assert p.dtype == np.float32 and p.shape == (300, 3)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert clf.score(X_TEST, Y_TEST) > 0.7  # chance: 0.33
    assert clf.score(X_TEST, Y_TEST) == clf.score(X_TEST, np.array(NAMES)[Y_TEST])
    assert set(clf.transduction_) == set(NAMES)
    # by hand
    T = class_embedding(torch.from_numpy(embedder.encode_text(NAMES))[:, None])
    logits = embedder.logit_scale_ * embedder.transform(X_TEST) @ T.numpy().T
    expected = torch.from_numpy(logits).softmax(1)
    np.testing.assert_allclose(p, expected, atol=1e-4)
    sharp = tiny(NAMES, embedder=embedder, logit_scale=100.0).fit(X)
    assert sharp.predict_proba(X_TEST).max(1).mean() > p.max(1).mean()
    np.testing.assert_array_equal(sharp.predict(X_TEST), clf.predict(X_TEST))


def test_prompts_are_averaged(embedder):
    clf = tiny(NAMES, embedder=embedder, prompts=("{}", "x {} y", "{}?")).fit(X)
    assert clf.prompts_[1] == ["dog", "x dog y", "dog?"]
    T = embedder.encode_text(clf.prompts_[1])
    mean = T.mean(0) / np.linalg.norm(T.mean(0))
    np.testing.assert_allclose(clf.class_embedding_[1], mean, atol=1e-5)
    assert CLIPClassifier().prompts == _TEMPLATES and len(_TEMPLATES) == 7
    own = {"cat": "a furry cat", "dog": SAID[1:2], "fish": ["a wet fish", "fish"]}
    clf = tiny(NAMES, embedder=embedder, prompts=own).fit(X)
    assert clf.prompts_ == [["a furry cat"], ["a loyal dog"], ["a wet fish", "fish"]]
    assert clf.score(X_TEST, Y_TEST) > 0.7


def test_fit_may_be_left_out(embedder):
    expected = tiny(NAMES, embedder=embedder).fit(X).predict_proba(X_TEST)
    clf = tiny(NAMES, embedder=embedder)
    np.testing.assert_allclose(clf.predict_proba(X_TEST), expected, atol=1e-6)
    np.testing.assert_allclose(clf.predict_proba(X_TEST[:1]), expected[:1], atol=1e-6)
    assert clf.score(X_TEST, Y_TEST) > 0.7
    assert not [name for name in vars(clf) if name.endswith("_")]
    clf.set_params(class_names=["fish", "cat"])  # nothing of before is kept
    assert set(clf.predict(X_TEST)) == {"fish", "cat"}
    for unready in (
        tiny(NAMES),
        tiny(embedder=embedder),
        tiny(NAMES, embedder=embedder, few_shot="adapter"),
        tiny(NAMES, embedder=clone(embedder)),
        clone(clf),  # a clone of the embedder has learned nothing
    ):
        with pytest.raises(NotFittedError, match="call fit first"):
            unready.predict(X_TEST)
    frozen = clone(tiny(NAMES, embedder=FrozenEstimator(embedder)))
    np.testing.assert_allclose(frozen.predict_proba(X_TEST), expected, atol=1e-6)


@pytest.mark.parametrize("class_weight", ["balanced", {"cat": 2.0}])
def test_weights_need_no_labels(embedder, class_weight):
    clf = tiny(NAMES, embedder=embedder, class_weight=class_weight)
    expected = tiny(NAMES, embedder=embedder).fit(X).predict(X_TEST)
    np.testing.assert_array_equal(clf.predict(X_TEST), expected)
    np.testing.assert_array_equal(clf.fit(X).predict(X_TEST), expected)


def test_the_classes_are_sorted_as_scorers_want(embedder):
    rows = Y_TEST < 2
    x, y = X_TEST[rows], np.array(NAMES)[Y_TEST[rows]]
    clf = tiny(["dog", "cat"], embedder=embedder).fit(X)
    assert clf.classes_.tolist() == ["cat", "dog"]
    assert clf.prompts_ == [["cat"], ["dog"]]
    assert get_scorer("roc_auc")(clf, x, y) > 0.8
    assert get_scorer("neg_log_loss")(clf, x, y) > -1
    # positions are those in class_names
    assert clf.score(x, 1 - Y_TEST[rows]) == clf.score(x, y) > 0.7


def test_labels_by_name_position_or_dict(embedder):
    by_name = tiny(NAMES, embedder=embedder).fit(X, partly(Y, 9, NAMES))
    by_position = tiny(NAMES, embedder=embedder).fit(X, partly(Y, 9))
    np.testing.assert_array_equal(by_name.transduction_, by_position.transduction_)
    assert by_name.transduction_[:9].tolist() == [NAMES[k] for k in Y[:9]]
    keyed = tiny({5: "cat", 3: "dog", 9: "fish"}, embedder=embedder)
    keyed.fit(X, [[5, 3, 9][k] if i < 9 else None for i, k in enumerate(Y)])
    assert keyed.classes_.tolist() == [3, 5, 9]
    assert keyed.prompts_ == [["dog"], ["cat"], ["fish"]]
    assert set(keyed.predict(X)) == {3, 5, 9}
    p = keyed.predict_proba(X_TEST)[:, [1, 0, 2]]
    np.testing.assert_allclose(p, by_name.predict_proba(X_TEST), atol=1e-6)
    assert keyed.score(X_TEST, np.array([5, 3, 9])[Y_TEST]) > 0.7


# -- few labels


@pytest.fixture(scope="module")
def misled(embedder):
    """Return the settings of a classifier two of whose names are swapped."""
    return {"class_names": ["dog", "cat", "fish"], "embedder": embedder}


def everything_of(embedder):
    """Return weights, history and parameters; using it may end its training mode."""
    module = embedder.net_.module_
    return (
        {name: value.tolist() for name, value in module.state_dict().items()},
        list(embedder.net_.history),
        str(embedder.get_params()),
        sorted(vars(embedder)),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"few_shot": "linear"},
        {"few_shot": "linear", "shrink_to": "zero", "C": 10.0},
        {"few_shot": "adapter", "alpha": 20.0},
        {"few_shot": "adapter", "alpha": "auto", "beta": "auto", "logit_scale": 2.0},
        {"few_shot": "fine_tune", "max_steps": 60, "lr": 1e-2},
    ],
    ids=str,
)
def test_labels_correct_wrong_names(misled, settings):
    before = everything_of(misled["embedder"])
    without = tiny(**misled).fit(X)
    assert without.score(X_TEST, Y_TEST) < 0.5
    clf = tiny(**misled, **settings).fit(X, partly(Y, 60))
    assert clf.score(X_TEST, Y_TEST) > 0.65
    np.testing.assert_allclose(clf.predict_proba(X_TEST).sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(
        clf.transduction_[:60], np.array(misled["class_names"])[Y[:60]]
    )
    if settings.get("alpha") == "auto":
        assert clf.alpha_ > 0 and clf.beta_ > 0
    if settings["few_shot"] == "linear":
        assert clf.C_ == settings.get("C", clf.C_)
    # the embedder that was given is left as it was
    assert everything_of(misled["embedder"]) == before


def test_towers_of_random_weights_are_no_published_model():
    with pytest.raises(
        ValueError, match="random weights: give embedder=CLIPTransformer"
    ):
        tiny(backbone="open_clip/ViT-B-32").fit(X, partly(Y, 60))


@pytest.mark.parametrize("few_shot, n", [("linear", 240), ("adapter", 8)])
def test_a_class_without_a_label_keeps_its_name(embedder, few_shot, n):
    y = np.where((Y == 2) | (np.arange(240) >= n), -1, Y)
    clf = tiny(NAMES, embedder=embedder, few_shot=few_shot, C=1.0).fit(X, y)
    found = clf.predict(X_TEST[Y_TEST == 2])
    assert np.mean(found == "fish") > 0.5


def test_the_adapter_is_that_of_the_paper(embedder):
    clf = tiny(NAMES, embedder=embedder, few_shot="adapter", alpha=0.7, beta=3.0)
    clf.fit(X, partly(Y, 12))
    Z, U = (embedder.transform(part) for part in (X[:12], X_TEST))
    T = embedder.encode_text(NAMES)
    memory = np.exp(-3.0 * (1 - U @ Z.T)) @ np.eye(3)[Y[:12]]
    logits = embedder.logit_scale_ * U @ T.T + 0.7 * memory
    expected = torch.from_numpy(logits).softmax(1)
    np.testing.assert_allclose(clf.predict_proba(X_TEST), expected, atol=1e-4)
    none = tiny(NAMES, embedder=embedder, few_shot="adapter", alpha=0.0)
    zero_shot = tiny(NAMES, embedder=embedder).fit(X).predict_proba(X_TEST)
    found = none.fit(X, partly(Y, 12)).predict_proba(X_TEST)
    np.testing.assert_allclose(found, zero_shot, atol=1e-6)


class _Turns(torch.nn.Module):
    """Views in a fixed order: the rows as they are, then moved, then as they are ..."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, x):
        self.n += 1
        return x + (0.5 if self.n % 2 == 0 else 0.0)


def embedded(embedder, x):
    module = embedder.net_.module_.eval()
    with torch.no_grad():
        z = module.project(module.backbone(torch.from_numpy(x)))
    return z.double().numpy()


def test_the_memory_holds_the_mean_over_views(embedder):
    clf = tiny(
        NAMES, embedder=embedder, few_shot="adapter", memory_views=3, augment=_Turns()
    )
    head = clf.fit(X, partly(Y, 12)).net_.module_.head
    raw = [embedded(embedder, X[:12] + moved) for moved in (0.0, np.float32(0.5))]
    mean = (2 * raw[0] + raw[1]) / 3
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(head.keys, expected, atol=1e-4)


@pytest.mark.parametrize("views", [0, 2])
def test_the_trained_memory_is_that_of_tip_adapter_f(embedder, views, monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda n, **k: torch.arange(n).flip(0))
    given = {"alpha": 2.0, "beta": 3.0, "batch_size": 5, "memory_epochs": 4}
    clf = tiny(
        NAMES,
        embedder=embedder,
        few_shot="adapter",
        memory_views=views,
        memory_lr=0.02,
        augment=_Turns(),
        class_weight={"cat": 3.0},
        **given,
    ).fit(X, partly(Y, 12))
    # the same from the formulas: cross-entropy of the sum, AdamW by hand
    weight = embedder.logit_scale_ * embedder.encode_text(NAMES).astype(float)
    codes = Y[:12]
    weights = np.where(codes == 0, 3.0, 1.0)
    weights *= 12 / weights.sum()
    raw = [embedded(embedder, X[:12] + moved) for moved in (0.0, np.float32(0.5))]
    F = raw[0] + raw[1] if views else raw[0]
    F = F / np.linalg.norm(F, axis=1, keepdims=True)
    m, v, t = np.zeros_like(F), np.zeros_like(F), 0
    n_steps = 4 * 3
    for epoch in range(4):
        Z = raw[epoch % 2] if views else raw[0]
        Z = Z / np.linalg.norm(Z, axis=1, keepdims=True)
        order = list(range(12))[::-1]
        for rows in (order[:5], order[5:10], order[10:]):
            gradient = np.zeros_like(F)
            for i in rows:
                near = [np.exp(-3.0 * (1 - Z[i] @ F[j])) for j in range(12)]
                logits = weight @ Z[i]
                for j in range(12):
                    logits[codes[j]] += 2.0 * near[j] * weights[j]
                p = np.exp(logits - logits.max())
                p /= p.sum()
                for j in range(12):
                    error = p[codes[j]] - (codes[i] == codes[j])
                    slope = 2.0 * weights[j] * near[j] * 3.0
                    gradient[j] += weights[i] * error * slope * Z[i] / len(rows)
            lr = 0.02 * (1 + np.cos(np.pi * t / n_steps)) / 2
            t += 1
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-4)
            F = F - lr * 0.01 * F - lr * step
    np.testing.assert_allclose(clf.net_.module_.head.keys, F, atol=2e-4)
    assert np.abs(F - clf.net_.module_.head.keys.numpy()).max() < 1e-2


def test_the_published_memory_runs_is_saved_and_seeded(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 12, 12, 3)).astype(np.uint8)
    y = np.where(np.arange(40) < 12, np.arange(40) % 2, -1)
    towers = CLIPTransformer(
        8, text_width=16, text_layers=1, text_heads=2, max_steps=2, random_state=0
    ).fit(images, [f"text {i % 3}" for i in range(40)])
    clf = CLIPClassifier(
        ["cat", "dog"],
        few_shot="adapter",
        embedder=FrozenEstimator(towers),
        memory_views=10,
        memory_epochs=3,
        batch_size=256,
        alpha="auto",
        beta="auto",
        augment=Contrastive(crop=(0.5, 1), jitter=0, grayscale=0),
        random_state=0,
    ).fit(images, y)
    p = clf.predict_proba(images)
    np.testing.assert_array_equal(clone(clf).fit(images, y).predict_proba(images), p)
    other = clone(clf).set_params(random_state=1).fit(images, y)
    assert not np.array_equal(other.predict_proba(images), p)
    clf.save(tmp_path / "model")
    loaded = sklabel.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(images), p)


def test_weights_count_in_probe_and_memory(embedder):
    y = partly(Y, 60)
    weights = np.where(Y == 0, 20.0, 1.0)
    for few_shot in ("linear", "adapter"):
        clf = tiny(NAMES, embedder=embedder, few_shot=few_shot, C=1.0, alpha=5.0)
        plain = clf.fit(X, y).predict_proba(X_TEST)[:, 0].mean()
        weighted = clf.fit(X, y, sample_weight=weights).predict_proba(X_TEST)
        assert weighted[:, 0].mean() > plain + 0.02
        by_class = clone(clf).set_params(class_weight={"cat": 20.0})
        by_class.set_params(embedder=embedder)
        np.testing.assert_allclose(
            by_class.fit(X, y).predict_proba(X_TEST), weighted, atol=1e-4
        )


def test_calibration(embedder):
    sure = {"embedder": embedder, "logit_scale": 300.0}
    clf = tiny(NAMES, calibration_size=60, **sure).fit(X, partly(Y, 120))
    assert clf.calibration_temperature_ > 2
    plain = tiny(NAMES, **sure).fit(X)
    np.testing.assert_array_equal(plain.predict(X_TEST), clf.predict(X_TEST))


# -- towers of its own


def test_labels_alone_train_small_towers():
    clf = CLIPClassifier(max_steps=80, lr=3e-3, random_state=0)
    clf.set_params(prompts=("{}", "the {}")).fit(X, partly(Y, 150, NAMES))
    assert clf.score(X_TEST, np.array(NAMES)[Y_TEST]) > 0.65  # chance: 0.33
    assert clf.embedder_.same_captions == "positives" and clf.n_iter_ > 1
    assert clf.classes_.tolist() == sorted(NAMES)
    later = clf.set_params(warm_start=True, max_steps=1, lr=1e-9)
    p = clf.predict_proba(X_TEST)
    assert (
        np.abs(later.fit(X, partly(Y, 150, NAMES)).predict_proba(X_TEST) - p).max()
        < 0.1
    )


@pytest.mark.parametrize("few_shot", ["zero_shot", "linear", "adapter"])
def test_an_embedder_that_has_learned_nothing_is_refused(embedder, few_shot):
    cloned = clone(tiny(NAMES, embedder=embedder, few_shot=few_shot))
    with pytest.raises(ValueError, match=r"not fitted .* FrozenEstimator\(embedder\)"):
        cloned.fit(X, partly(Y, 30))


def test_an_untrained_embedder_is_fine_tuned_from_the_start():
    own = CLIPTransformer(8, text_width=16, text_layers=1, text_heads=2)
    clf = tiny(NAMES, embedder=own, few_shot="fine_tune", max_steps=4)
    with pytest.warns(UserWarning, match=r"FrozenEstimator\(embedder\).*labels alone"):
        p = clf.fit(X, partly(Y, 30)).predict_proba(X)
    assert clf.embedder_ is not own and not hasattr(own, "net_")
    assert clf.class_embedding_.shape == (3, 8) and clf.embedder_.net_.step_ == 4
    with pytest.warns(UserWarning, match="labels alone"):
        np.testing.assert_array_equal(clf.fit(X, partly(Y, 30)).predict_proba(X), p)


@pytest.mark.parametrize(
    "trained, given",
    [
        (lambda x: x / 255, lambda x: x.astype(float)),  # floats of 0 to 254
        (lambda x: x, lambda x: x / 127 - 1),
        (lambda x: x / 127 - 1, lambda x: x.astype(float)),
        (lambda x: x / 127 - 1, lambda x: x / 127 - 1),
        (lambda x: x, lambda x: x.astype(float)),
    ],
)
def test_images_of_another_scale_than_the_towers_had(trained, given):
    x = np.random.default_rng(0).integers(0, 255, (12, 5, 5, 1), dtype=np.uint8)
    x[:, 0, 0], x[:, 0, 1] = 0, 254
    towers = CLIPTransformer(8, text_width=16, text_layers=1, text_heads=2, max_steps=1)
    towers.set_params(random_state=0).fit(trained(x), NAMES * 4)
    p = tiny(NAMES, embedder=towers).fit(x).predict_proba(x)
    found = tiny(NAMES, embedder=towers).fit(given(x)).predict_proba(given(x))
    np.testing.assert_allclose(found, p, atol=0.06)
    assert p.std(0).max() > 0.02


def test_dark_images_are_not_brightened():
    x = np.random.default_rng(0).integers(0, 256, (12, 5, 5, 1), dtype=np.uint8)
    towers = CLIPTransformer(8, text_width=16, text_layers=1, text_heads=2, max_steps=1)
    towers.set_params(random_state=0).fit(x, NAMES * 4)
    clf, dark = tiny(NAMES, embedder=towers), x // 4
    expected = clf.predict_proba(dark)
    np.testing.assert_allclose(clf.predict_proba(dark.astype(float)), expected, 1e-5)


def test_images_in_a_pipeline_and_as_a_backbone():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    y = np.arange(24) % 2
    pipe = make_pipeline(FunctionTransformer(), tiny(few_shot="linear"))
    assert pipe.fit(images, y).predict_proba(images).shape == (24, 2)
    clf = sklabel.classification.SupervisedClassifier(backbone=pipe[-1].embedder_)
    assert clf.set_params(max_steps=1).fit(images, y).predict(images).shape == (24,)


def test_published_weights_are_loaded_not_trained(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    import json

    from safetensors.torch import save_file

    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2}
    settings = {
        "embed_dim": 16,
        "vision_cfg": {**vision, "patch_size": 8},
        "text_cfg": {**text, "layers": 1},
    }
    (tmp_path / "tiny-classes.json").write_text(json.dumps(settings))
    open_clip.add_model_config(tmp_path / "tiny-classes.json")
    torch.manual_seed(0)
    state = open_clip.create_model("tiny-classes").state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    embedder = CLIPTransformer(
        backbone="open_clip/tiny-classes", weights=tmp_path / "weights.safetensors"
    )
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    clf = CLIPClassifier(NAMES, embedder=embedder)
    p = clf.predict_proba(images)  # no fit
    assert p.shape == (6, 3) and not hasattr(embedder, "net_")
    np.testing.assert_allclose(clf.fit(images).predict_proba(images), p, atol=1e-6)
    tuned = clone(clf).set_params(few_shot="fine_tune", max_steps=2, lr=1e-5)
    assert tuned.fit(images, [0, 1, 2, 0, -1, -1]).n_iter_ == 2
    clf.save(tmp_path / "saved")
    loaded = sklabel.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.predict_proba(images), p, atol=1e-6)


# -- as other estimators


@pytest.mark.parametrize("few_shot", ["zero_shot", "linear", "adapter"])
def test_pickle_save_and_seed(embedder, few_shot, tmp_path):
    clf = tiny(NAMES, embedder=embedder, few_shot=few_shot).fit(X, partly(Y, 30))
    p = clf.predict_proba(X_TEST)
    clf.save(tmp_path)
    for again in (pickle.loads(pickle.dumps(clf)), sklabel.load(tmp_path)):
        np.testing.assert_allclose(again.predict_proba(X_TEST), p, atol=1e-6)
        assert again.classes_.tolist() == NAMES and again.prompts_ == clf.prompts_
    other = clone(clf).set_params(embedder=FrozenEstimator(embedder))
    np.testing.assert_array_equal(other.fit(X, partly(Y, 30)).predict_proba(X_TEST), p)


def test_unreadable_files(tmp_path):
    from PIL import Image

    files = []
    for i in range(8):
        files.append(str(tmp_path / f"{i}.png"))
        Image.new("RGB", (8, 8), (i * 30, 0, 0)).save(files[-1])
    (tmp_path / "3.png").write_bytes(b"no image")
    y = ["dark", "dark", "dark", "dark", "light", "light", -1, -1]
    clf = tiny(few_shot="linear", on_error="skip", image_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf.fit(files, y)
        p, found = clf.predict_proba(files), clf.predict(files)
    assert np.isnan(p[3]).all() and np.isfinite(np.delete(p, 3, 0)).all()
    assert found[3] == -1 and clf.transduction_[3] == "dark"


def test_one_file_that_can_be_read_is_enough_without_fit(tmp_path):
    from PIL import Image

    files = [str(tmp_path / f"{i}.png") for i in range(4)]
    for i, file in enumerate(files):
        Image.new("RGB", (8, 8), (i * 60, 0, 0)).save(file)
    towers = CLIPTransformer(8, text_width=16, text_layers=1, text_heads=2, max_steps=1)
    towers.fit(files, ["a", "b", "c", "d"])
    clf = tiny(NAMES, embedder=towers, on_error="skip")
    found = clf.predict(files)
    (tmp_path / "0.png").write_bytes(b"no image")
    (tmp_path / "2.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="2 of 3 image files cannot be read"):
        some = clf.predict(files[:3])
    assert some.tolist() == [-1, found[1], -1]


@pytest.mark.parametrize(
    "parameters, y, message",
    [
        ({"prompts": "a photo"}, None, "'a photo' in prompts has no place.*write {}"),
        ({"prompts": ["{}", 3]}, None, "template 3"),
        ({"prompts": []}, None, "prompts is empty"),
        ({"prompts": {"cat": "a cat"}}, None, "no texts for the class 'dog'"),
        ({"prompts": {n: [] for n in NAMES}}, None, "no texts for the class 'cat'"),
        ({"class_names": ["cat"]}, None, "two classes"),
        ({"class_names": ["cat", "cat"]}, None, "names a class twice"),
        ({"class_names": None}, None, "requires y to be passed"),
        ({}, np.full(240, 7), "positions 7 to 7.*3 names"),
        ({}, np.array(["bird"] * 240), "bird"),
        ({}, [0, 1], "X has 240 rows, y has 2"),
        ({"few_shot": "linear"}, None, "no labeled row"),
        ({"few_shot": "adapter"}, np.full(240, -1), "no labeled row"),
        ({"embedder": None}, None, "labeled rows of at least two classes"),
        ({"embedder": None}, np.zeros(240, int), "two classes"),
    ],
)
def test_what_cannot_be_is_refused(embedder, parameters, y, message):
    settings = {"class_names": NAMES, "embedder": embedder, **parameters}
    with pytest.raises(ValueError, match=message):
        tiny(**settings).fit(X, y)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"alpha": 1e300}, r"too large .* or alpha_=1e\+300 or beta_=5"),
        ({"alpha": 1e308, "beta": "auto"}, "too large for float32: lower logit_scale_"),
        ({"logit_scale": 1e300, "few_shot": "zero_shot"}, r"scale_=1e\+300\.$"),
        ({"memory_epochs": 3, "memory_lr": 1e15}, "diverged: lower memory_lr=1000"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_logits_that_no_float_holds_are_an_error(embedder, parameters, message):
    settings = {"few_shot": "adapter", "embedder": embedder, **parameters}
    with pytest.raises(ValueError, match=message):
        tiny(NAMES, **settings).fit(X, Y)


def test_values_of_an_earlier_fit_are_forgotten(embedder):
    clf = tiny(NAMES, few_shot="adapter", embedder=embedder).fit(X, Y)
    assert clf.alpha_ == 1 and not hasattr(clf, "C_")
    clf.set_params(few_shot="linear", C=1.0).fit(X, Y)
    assert clf.C_ == 1 and not hasattr(clf, "alpha_") and not hasattr(clf, "beta_")
    assert not hasattr(clf.set_params(few_shot="zero_shot").fit(X, Y), "C_")


def test_embedders_that_cannot_be(embedder):
    with pytest.raises(TypeError, match="SimCLRTransformer does not embed texts"):
        tiny(NAMES, embedder=SimCLRTransformer()).fit(X, Y)
    with pytest.raises(ValueError, match="fitted on samples of shape"):
        tiny(NAMES, embedder=embedder).fit(X[:, :5])
    with pytest.raises(NotFittedError, match="frozen but not fitted"):
        tiny(NAMES, embedder=FrozenEstimator(CLIPTransformer())).fit(X, Y)
