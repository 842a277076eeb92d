"""CCL: one center a class, three readings of the contrast, hard cases, parameters."""

import functools
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

import sklabel
from sklabel import CollapseWarning
from sklabel._core import codes as _codes
from sklabel._core.nested import encoded
from sklabel._core.samples import Samples
from sklabel.classification import _ccl
from sklabel.classification._ccl import CCLClassifier, _MixedRounds
from sklabel.datasets import load_digit_images
from sklabel.embedding import AutoencoderTransformer, SimCLRTransformer
from sklabel.losses import (
    contrastive_clustering,
    sharpened_targets,
    student_assignment,
    target_divergence,
)
from tests._golden import cases
from tests._pictures import stripes

X = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
X[::2] += 2
TRUTH = (np.arange(80) + 1) % 2
Y = np.where(np.arange(80) < 10, TRUTH, -1)
CODES = AutoencoderTransformer(2, hidden_sizes=(16,), max_steps=60)


def short(**parameters):
    given = {"max_steps": 3, "batch_size": 5, "unlabeled_ratio": 4, "embedder": CODES}
    given["random_state"] = 0
    return CCLClassifier(**{**given, **parameters})


def fitted_quietly(clf, *given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        return clf.fit(*given)


# what each reading is called in the golden file
READINGS = [
    ("rows", True, "center_anchored_norm1_pos1", "norm1_pos1"),
    ("rows", False, "center_anchored_norm0_pos1", "norm0_pos1"),
    ("literal", True, "center_anchored_sum_over_classes_norm1_pos0", "norm1_pos0"),
    ("literal", False, "center_anchored_sum_over_classes_norm0_pos0", "norm0_pos0"),
    ("centers", True, "centroid_ce_norm1", "centroid_ce_norm1"),
    ("centers", False, "centroid_ce_norm0", "centroid_ce_norm0"),
]


@pytest.mark.parametrize("contrast, normalize, value, gradient", READINGS)
def test_golden_losses_and_gradients(contrast, normalize, value, gradient):
    for case in cases("ccl_reconstructed"):
        z, centers = (
            torch.from_numpy(case[k]).requires_grad_() for k in ("z", "centers")
        )
        y, temperature = torch.from_numpy(case["labels"]), float(case["temperature"])
        loss = contrastive_clustering(z, y, centers, temperature, contrast, normalize)
        np.testing.assert_allclose(loss.item(), case[value], rtol=1e-8, atol=1e-12)
        loss.backward()
        # the stored gradient is that of the mean over the classes in use
        times = max(1, int(case["classes_used"])) if contrast == "literal" else 1
        for name, tensor in (("z", z), ("centers", centers)):
            expected = times * case[f"grad_{name}_{gradient}"]
            np.testing.assert_allclose(tensor.grad, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("contrast", ["rows", "literal", "centers"])
def test_the_estimator_trains_on_the_golden_losses(contrast):
    """The whole loss on codes that are given, beside the stored contrast."""

    class Given(torch.nn.Module):
        def forward(self, x):
            return x

        def error(self, z, x):
            return (z - 1).square().mean()

    normalize = contrast == "rows"
    key = next(r[2] for r in READINGS if r[:2] == (contrast, normalize))
    for case in cases("ccl_reconstructed"):
        z, centers = (torch.from_numpy(case[k]) for k in ("z", "centers"))
        module = _ccl._CCL(
            Given(),
            centers,
            contrastive_weight=3.0,
            cluster_weight=0.5,
            reconstruction_weight=2.0,
            contrast=contrast,
            temperature=float(case["temperature"]),
            alpha=1.0,
        )
        q = student_assignment(z, centers)
        module.targets = sharpened_targets(q)
        rows = torch.arange(0, len(z), 2)
        y = torch.cat([torch.from_numpy(case["labels"]), -1 - rows])
        loss, figures = module.loss(torch.cat([z, z[rows]]), y)
        cluster = target_divergence(q[rows], module.targets[rows])
        error = (z[rows] - 1).square().mean()
        expected = 3 * case[key] + 0.5 * cluster + 2 * error
        np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-8)
        np.testing.assert_allclose(
            figures["contrastive_loss"].item(), case[key], rtol=1e-8, atol=1e-12
        )


def test_golden_entropy_that_chooses_the_next_labels():
    for case in cases("dec_clustering"):
        z, centers = (torch.from_numpy(case[k]) for k in ("z", "centers"))
        embed, alpha = torch.nn.Identity(), float(case["alpha"])
        module = _ccl._CCL(
            embed,
            centers,
            contrastive_weight=1.0,
            cluster_weight=1.0,
            reconstruction_weight=0.0,
            contrast="rows",
            temperature=0.5,
            alpha=alpha,
        )
        q = module(z).detach().numpy()
        np.testing.assert_allclose(q, case["q"], rtol=1e-8)
        found = -(q * np.log(q)).sum(1)
        np.testing.assert_allclose(found, case["entropy_q"], rtol=1e-8)


def test_images_from_few_labels():
    images, target = stripes(150)
    y = np.where(np.arange(150) < 15, target, -1)
    settings = {"batch_size": 40, "precision": "float32"}
    codes = AutoencoderTransformer(10, filters=(16, 32), max_epochs=20, **settings)
    clf = CCLClassifier(
        embedder=codes, max_steps=40, update_interval=10, random_state=0, **settings
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        clf.fit(images, y)
    assert (clf.transduction_ == target)[15:].mean() > 0.9
    history = clf.net_.history
    # the images can still be drawn, better than by their mean
    error = history[-1, "reconstruction_loss"]
    assert error < 0.8 * (images / 255).var(0).mean()
    assert history[-1, "labeled_accuracy"] > 0.9
    assert len(history[-1, "class_shares"]) == 3
    assert abs(sum(history[-1, "class_shares"]) - 1) < 1e-6


def test_centers_begin_at_the_mean_code_of_each_class():
    clf = short(max_steps=1, lr=1e-30).fit(X, Y)
    Z = clf.embedder_.transform(X)
    means = [Z[Y == k].mean(0) for k in (0, 1)]
    np.testing.assert_allclose(clf.class_centers_, means, rtol=1e-4, atol=1e-5)
    weights = np.arange(80.0) + 1
    clf = short(max_steps=1, lr=1e-30).fit(X, Y, sample_weight=weights)
    means = [np.average(Z[Y == k], 0, weights[Y == k]) for k in (0, 1)]
    np.testing.assert_allclose(clf.class_centers_, means, rtol=1e-4, atol=1e-5)
    # predictions are the nearest centers, of standardized codes
    scale = clf.net_.module_.scale.numpy()
    distances = np.linalg.norm((Z[:, None] - clf.class_centers_) / scale, axis=2)
    np.testing.assert_array_equal(clf.predict(X), distances.argmin(1))


def test_a_class_without_a_usable_label_begins_at_a_center_of_k_means():
    x = np.repeat(np.eye(6, dtype=np.float32)[:3] * 9, 20, axis=0)
    x += np.random.default_rng(0).normal(size=x.shape).astype(np.float32) / 9
    y = np.where(np.arange(60) % 20 < 3, np.arange(60) // 20, -1)
    weights = (y != 2).astype(float)
    embedder = AutoencoderTransformer(6, hidden_sizes=(20,), max_steps=300)
    clf = short(max_steps=1, lr=1e-30, embedder=embedder)
    clf.fit(x, y, sample_weight=weights)
    # the group that no other class lies in
    assert (clf.predict(x) == np.arange(60) // 20).mean() > 0.9


def test_batches_hold_labels_and_rows_of_the_whole_set():
    for targets in (Y, TRUTH):
        mixed = _MixedRounds(Samples(X, (6,)), targets, 4, None, 9)
        batches = [mixed.fetch(rows) for rows in mixed.epoch(8)]
        assert len(batches) == mixed.n_batches(8) == 9
        passes = []
        for x, y in batches:
            assert (y[:8] >= 0).all() and (y[8:] < 0).all()
            np.testing.assert_array_equal(x[8:], X[-1 - y[8:]])
            passes.append(-1 - y[8:])
        for start in (0, 3, 6):  # 32, 32 and 16 rows
            seen = torch.cat(passes[start : start + 3])
            assert sorted(seen.tolist()) == list(range(80))


def test_the_same_seed_gives_the_same_bits():
    first = short().fit(X, Y).predict_proba(X)
    np.testing.assert_array_equal(short().fit(X, Y).predict_proba(X), first)


def test_epochs_and_steps():
    # 80 rows, 20 of them in a batch beside 5 labeled ones
    count = short(max_steps=None, max_epochs=3, update_interval=5).fit(X, Y)
    assert count.net_.history[:, "train_batch_count"] == [5, 5, 2]
    assert count.n_iter_ == 3


HARD = {
    "one label a class": np.where(np.arange(80) < 2, TRUTH, -1),
    "everything labeled": TRUTH,
    "twenty to one": np.where(np.arange(80) < 21, np.arange(80) == 0, -1),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("contrast", ["assignment", "rows", "literal", "centers"])
@pytest.mark.parametrize("weight", [None, "balanced"])
def test_hard_cases(name, contrast, weight):
    clf = short(
        max_steps=40,
        batch_size=64,  # larger than the labeled rows
        contrast=contrast,
        contrastive_weight=1e-3 if contrast == "literal" else 1.0,
        class_weight=weight,
    )
    clf = fitted_quietly(clf, X, HARD[name].astype(int))
    p = clf.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    if name == "everything labeled":
        assert clf.score(X, TRUTH) > 0.7  # codes of two numbers; chance: 0.5


def test_calibration_makes_labels_more_likely():
    y = np.where(np.arange(80) < 40, TRUTH, -1)
    plain = short(max_steps=40, calibration_size=20).fit(X, y)
    assert plain.calibration_temperature_ != 1
    p = plain.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    told = plain._predict_rows(X).argmax(1)
    np.testing.assert_array_equal(p.argmax(1), told)  # the order stays


def test_class_names_come_back():
    y = np.array([["ant", "bee"][k] if k >= 0 else -1 for k in Y], dtype=object)
    clf = short().fit(X, y)
    assert clf.classes_.tolist() == ["ant", "bee"]
    assert set(clf.transduction_) <= {"ant", "bee"} and set(clf.predict(X)) <= {
        "ant",
        "bee",
    }
    kept = clf.transduction_[:10]
    np.testing.assert_array_equal(kept, y[:10])


def test_a_frozen_autoencoder_is_used_as_it_is():
    embedder = AutoencoderTransformer(
        2, hidden_sizes=(9,), max_steps=30, random_state=0
    ).fit(X)
    before = embedder.transform(X)
    clf = short(embedder=FrozenEstimator(embedder)).fit(X, Y)
    assert clf.embedder_.estimator is embedder
    np.testing.assert_array_equal(embedder.transform(X), before)
    trained = clf.encoder_.eval()(torch.from_numpy(X)).detach()
    assert not np.allclose(trained, before)
    with pytest.raises(ValueError, match="backbone='resnet9' has no effect"):
        short(embedder=FrozenEstimator(embedder), backbone="resnet9").fit(X, Y)


def test_without_a_decoder_it_takes_other_embedders():
    embedder = SimCLRTransformer(max_steps=2)
    clf = fitted_quietly(short(embedder=embedder, reconstruction_weight=0), X, Y)
    assert "reconstruction_loss" not in clf.net_.history[-1]
    assert clf.class_centers_.shape == (2, 128)
    with pytest.raises(ValueError, match="SimCLRTransformer has no decoder"):
        short(embedder=embedder).fit(X, Y)
    with pytest.raises(ValueError, match="embedder=PCA has no network"):
        short(embedder=PCA(2), reconstruction_weight=0).fit(X, Y)


def test_warmup_is_counted_in_passes_over_the_rows():
    settings = {"max_epochs": 4, "max_steps": None, "batch_size": 4, "lr": 1.0}
    for interval in (3, 50):
        clf = short(warmup_epochs=2, update_interval=interval, **settings)
        clf = fitted_quietly(clf, X, Y)
        assert clf.net_.warmup_steps_ == clf.net_.total_steps_ / 2


def test_a_lost_class_is_told():
    groups = np.repeat(np.eye(6, dtype=np.float32)[:2] * 9, 20, axis=0)
    y = np.full(40, -1)
    y[[0, 20, 21]] = 0, 1, 2  # the last two are alike
    with pytest.warns(CollapseWarning, match="None of the predictions is of class 2"):
        short(max_steps=1, lr=1e-30).fit(groups, y)
    embedder = FrozenEstimator(AutoencoderTransformer(2, max_steps=1).fit(groups))
    with pytest.warns(CollapseWarning, match="100% of the predictions.* class 0.*33%"):
        short(max_steps=1, lr=1e-30, embedder=embedder).fit(0 * groups, y)


def test_warm_start_goes_on_from_codes_and_centers():
    clf = short(warm_start=True).fit(X, Y)
    embedder, centers = clf.embedder_, clf.class_centers_.copy()
    clf.set_params(lr=1e-30, cluster_weight=0.0).fit(X, Y)
    assert clf.embedder_ is embedder
    np.testing.assert_allclose(clf.class_centers_, centers, rtol=1e-5)
    assert clf.net_.module_.cluster_weight == 0


def test_a_broken_training_continues_to_the_same_bits(tmp_path, monkeypatch):
    settings = {"max_steps": 20, "update_interval": 5}
    whole = short(**settings).fit(X, Y).predict_proba(X)
    broken = short(**settings, checkpoint_dir=tmp_path)
    targets, calls = sharpened_targets, []

    def power_cut(q):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the power fails")
        return targets(q)

    with monkeypatch.context() as patch:
        patch.setattr(_codes, "sharpened_targets", power_cut)
        with pytest.raises(RuntimeError, match="the power fails"):
            broken.fit(X, Y)
    again = broken.fit(X, Y)
    np.testing.assert_array_equal(again.predict_proba(X), whole)
    assert len(again.net_.history) == 4


def test_saved_and_loaded(tmp_path):
    images, target = load_digit_images(return_X_y=True)
    digits = images[:60], np.where(np.arange(60) < 30, target[:60], -1)
    for data, y in ((X, Y), digits):
        clf = fitted_quietly(short(), data, y)
        clf.save(tmp_path / "model")
        loaded = sklabel.load(tmp_path / "model")
        np.testing.assert_array_equal(
            loaded.predict_proba(data), clf.predict_proba(data)
        )
        np.testing.assert_array_equal(loaded.class_centers_, clf.class_centers_)


def test_a_file_that_cannot_be_read_has_no_share_in_anything(tmp_path):
    files = [str(tmp_path / f"{i:02d}.png") for i in range(30)]
    for file, image in zip(files, load_digit_images().images, strict=False):
        Image.fromarray((image / image.max() * 255).astype(np.uint8)).save(file)
    bad = tmp_path / "99.png"
    bad.write_bytes(b"no image")
    given = {"image_size": 8, "on_error": "skip", "random_state": 0}
    codes = AutoencoderTransformer(4, max_steps=3, **given)
    clf = CCLClassifier(embedder=codes, max_steps=4, update_interval=2, **given)
    y = [0, 1, 0, 1, *[-1] * 26]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p = clf.fit(files, y).predict_proba(files)
        history = list(clf.net_.history)
        again = clf.fit([*files, str(bad)], [*y, -1]).predict_proba(files)
    np.testing.assert_array_equal(again, p)
    for before, after in zip(history, clf.net_.history, strict=True):
        for name in ("changed_share", "labeled_accuracy", "confident_share"):
            assert before[name] == after[name]
        assert before["class_shares"] == after["class_shares"]


def far_from_zero(n=120, seed=0):
    """Return vectors of three kinds that lie near each other, far from 0."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(n) % 3
    x = 30 + rng.normal(size=(n, 6)) + 2.5 * np.eye(6)[kinds]
    return x.astype(np.float32), kinds


def test_codes_far_from_zero_do_not_end_at_one_center():
    x, kinds = far_from_zero()
    y = np.where(np.arange(120) < 30, kinds, -1)
    net = torch.nn.Linear(6, 6)
    with torch.no_grad():  # codes are the vectors, and they are all alike by cosine
        net.weight.copy_(torch.eye(6))
        net.bias.fill_(30.0)
    embedder = SimCLRTransformer(backbone=net, max_steps=1, lr=1e-6, warmup_epochs=0)
    embedder = FrozenEstimator(embedder.set_params(random_state=0).fit(x))
    settings = {"embedder": embedder, "reconstruction_weight": 0, "max_steps": 100}
    settings |= {"update_interval": 20, "random_state": 0}
    probe = LogisticRegression().fit(embedder.transform(x)[:30], y[:30])
    expected = probe.score(embedder.transform(x)[30:], kinds[30:])
    found = fitted_quietly(CCLClassifier(**settings), x, y)
    assert found.score(x[30:], kinds[30:]) > expected - 0.05
    assert found.net_.history[-1, "labeled_accuracy"] > 0.9


def test_centers_are_the_means_of_the_labeled_codes():
    clf = fitted_quietly(short(max_steps=8, update_interval=2), X, Y)
    Z = encoded(clf, X)
    means = np.stack([Z[Y == k].mean(0) for k in (0, 1)])
    np.testing.assert_allclose(clf.class_centers_, means, rtol=1e-4, atol=1e-4)
    free = fitted_quietly(short(max_steps=8, update_centers=False), X, Y)
    Z = encoded(free, X)
    means = np.stack([Z[Y == k].mean(0) for k in (0, 1)])
    assert not np.allclose(free.class_centers_, means, rtol=1e-4, atol=1e-4)


def test_prediction_is_by_distance_of_standardized_codes():
    clf = fitted_quietly(short(max_steps=6, lr=1e-2), X, Y)
    module = clf.net_.module_
    Z = clf.embedder_.transform(X)
    np.testing.assert_allclose(module.shift, Z.mean(0), rtol=1e-3, atol=1e-4)
    z = (Z - Z.mean(0)) / module.scale.numpy()
    assert (z**2).sum(1).mean() == pytest.approx(10, rel=1e-3)
    codes = torch.from_numpy(
        (encoded(clf, X) - module.shift.numpy()) / module.scale.numpy()
    )
    q = student_assignment(codes, module.centers.detach())
    np.testing.assert_allclose(clf._predict_rows(X), q, rtol=1e-3, atol=1e-5)
    plain = fitted_quietly(short(standardize_codes=False), X, Y).net_.module_
    assert not plain.shift.any() and (plain.scale == 1).all()


def test_the_contrast_of_assignments_is_the_likelihood_of_the_labels():
    torch.manual_seed(0)
    z, centers = torch.randn(7, 3), torch.randn(4, 3)
    y = torch.tensor([0, 0, 0, 1, 1, 3, 3])
    for temperature, alpha in ((1.0, 1.0), (0.5, 2.0)):
        q = student_assignment(z, centers, alpha) ** (1 / temperature)
        p = q / q.sum(1, keepdim=True)
        rows = -p.gather(1, y[:, None])[:, 0].log()
        expected = (rows[:3].mean() + rows[3:5].mean() + rows[5:].mean()) / 3
        found = contrastive_clustering(
            z, y, centers, temperature, "assignment", True, alpha
        )
        torch.testing.assert_close(found, expected)
    # one class is told from the others too
    alone = contrastive_clustering(z[:3], y[:3], centers, contrast="assignment")
    assert alone > 0


def test_color_images_have_longer_codes():
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    y = np.where(np.arange(12) < 6, np.arange(12) % 2, -1)
    settings = {"max_steps": 1, "random_state": 0}
    for x, length in ((images, 64), (images[..., 0], 10)):
        clf = CCLClassifier(**settings)
        clf._default_embedder = functools.partial(AutoencoderTransformer, max_steps=1)
        assert fitted_quietly(clf, x, y).class_centers_.shape == (2, length)


def test_models_saved_before_predict_as_they_did():
    old = {"standardize_codes": False, "update_centers": False, "contrast": "rows"}
    module = fitted_quietly(short(**old), X, Y).net_.module_
    state = module.state_dict()
    expected = module(torch.from_numpy(X[:5]))
    del state["shift"], state["scale"]
    module.load_state_dict(state)
    torch.testing.assert_close(module(torch.from_numpy(X[:5])), expected)
