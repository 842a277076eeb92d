"""Supervised training: it learns, from labeled rows only, and the encoder may stay."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sklabel
from sklabel.augment import Weak
from sklabel.classification import SupervisedClassifier
from sklabel.embedding import SimCLRTransformer
from tests._pictures import stripes

X = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
X[::2] += 2
TRUTH = (np.arange(80) + 1) % 2
Y = np.where(np.arange(80) < 20, TRUTH, -1)


def short(**parameters):
    given = {"max_steps": 3, "random_state": 0, **parameters}
    return SupervisedClassifier(**given)


def test_images_from_few_labels():
    images, target = stripes(150)
    y = np.where(np.arange(150) < 15, target, -1)
    settings = {"augment": Weak(flip=0, shift=0), "precision": "float32"}
    clf = short(max_steps=40, **settings).fit(images, y)
    assert (clf.transduction_ == target)[15:].mean() > 0.9
    accuracy = clf.net_.history[:, "train_accuracy"]
    assert accuracy[-1] > 0.95 > accuracy[0]


def test_unlabeled_rows_are_not_looked_at_in_training():
    class Note(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x

    seen = []
    clf = short(augment=Note(), max_epochs=2, max_steps=None, batch_size=7).fit(X, Y)
    assert sum(map(len, seen)) == 40
    np.testing.assert_allclose(
        torch.cat(seen[:3]).sort(0).values, np.sort(X[:20], 0), rtol=1e-6
    )
    # but they count for the mean and the spread that inputs are divided by
    np.testing.assert_allclose(clf.encoder_.mean, X.mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss(smoothing):
    module = short(label_smoothing=smoothing, augment=None).fit(X, Y).net_.module_
    x, y = torch.from_numpy(X[:20]), torch.from_numpy(Y[:20])
    loss, figures = module.eval().loss(x, y)
    logits = module.head(module.backbone(x))
    exact = cross_entropy(logits, y)
    even = -logits.log_softmax(1).mean()
    torch.testing.assert_close(loss, (1 - smoothing) * exact + smoothing * even)
    assert figures["train_accuracy"] == (logits.argmax(1) == y).float().mean()


def test_a_linear_probe_leaves_the_encoder_as_it_was():
    embedder = SimCLRTransformer(max_steps=2, random_state=0).fit(X)
    clf = short(backbone=embedder, train_backbone=False, max_steps=20).fit(X, Y)
    before, after = embedder.encoder_.state_dict(), clf.encoder_.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    trained = short(backbone=embedder, max_steps=20).fit(X, Y)
    assert not np.array_equal(clf.predict_proba(X), trained.predict_proba(X))


def test_a_broken_training_continues_to_the_same_bits(tmp_path, monkeypatch):
    from sklabel.classification._supervised import _Supervised

    settings = {"max_steps": 8, "batch_size": 10}
    whole = short(**settings).fit(X, Y).predict_proba(X)
    loss, calls = _Supervised.loss, []

    def power_cut(self, x, y):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("the power fails")
        return loss(self, x, y)

    broken = short(**settings, checkpoint_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(_Supervised, "loss", power_cut)
        with pytest.raises(RuntimeError, match="the power fails"):
            broken.fit(X, Y)
    np.testing.assert_array_equal(broken.fit(X, Y).predict_proba(X), whole)
    assert broken.n_iter_ == 4


def test_saved_and_loaded_and_warm_started(tmp_path):
    clf = short(train_backbone=False, calibration_size=10).fit(X, TRUTH)
    clf.save(tmp_path / "model")
    loaded = sklabel.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    assert loaded.calibration_temperature_ == clf.calibration_temperature_ != 1
    loaded.set_params(warm_start=True, lr=1e-9, max_steps=1, label_smoothing=0.5)
    p = loaded.fit(X, TRUTH).predict_proba(X)
    np.testing.assert_array_equal(p.argmax(1), clf.predict_proba(X).argmax(1))
    assert loaded.net_.module_.label_smoothing == 0.5
