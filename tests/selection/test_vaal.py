"""Tests of VAAL, which chooses what looks unlike the labeled rows."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

import sklabel
from sklabel import selection
from sklabel._core.adversary import (
    _empty_error,
    adversary_loss,
    convolutions,
    discriminator_loss,
    kl_divergence,
    least_labeled,
)
from sklabel._core.health import CollapseWarning
from sklabel._core.samplers import Mixed
from sklabel._core.samples import Samples
from sklabel.backbones import Encoder
from sklabel.selection._vaal import _VAAL, VAALSelector
from tests._golden import cases

TINY = {"max_steps": 2, "width": 2, "random_state": 0}
WORKS = {
    "adversary_weight": 0.1,
    "batch_size": 32,
    "lr": 2e-3,
    "random_state": 0,
}


def quiet(selector, X, y):
    """Fit without the warning that two steps are too few."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        return selector.fit(X, y)


def vectors(n=60, d=5):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, d)) + 3 * (np.arange(n) % 2)[:, None]).astype("f4")


def half(n):
    return np.where(np.arange(n) < n // 2, np.arange(n) % 2, -1)


@pytest.fixture(scope="module")
def images():
    return load_digits().images[:40].astype(np.uint8) * 15


# -- the functions


def test_golden_losses():
    names = ("x", "recon", "mu", "logvar")
    for case in cases("vaal_losses"):
        t = {k: torch.from_numpy(np.asarray(v)) for k, v in case.items() if k in KEYS}
        leaves = {k: v.requires_grad_() for k, v in t.items() if not k.endswith("x")}
        beta, weight = float(case["beta"]), float(case["adversary_param"])
        logits = [torch.logit(t[f"pred_{kind}"]) for kind in ("labeled", "unlabeled")]
        total = 0.0
        for kind, prefix in (("labeled", ""), ("unlabeled", "unl_")):
            x, recon, mu, logvar = (t[prefix + name] for name in names)
            loss = F.mse_loss(recon, x) + beta * kl_divergence(mu, logvar)
            check(loss, case[f"vae_loss_{kind}"])
            total = total + loss
        fooled = adversary_loss(*logits)
        check(fooled, case["adversarial_loss"])
        total = total + weight * fooled
        check(total, case["vae_total"])
        wanted = [k for k in leaves if not k.startswith("pred")]
        grads = torch.autograd.grad(total, [leaves[k] for k in wanted])
        for name, grad in zip(wanted, grads, strict=True):
            check(grad, case[f"grad_{name}"])
        preds = [t["pred_labeled"], t["pred_unlabeled"]]
        for loss, step, factor in (
            (adversary_loss, "vae", weight),
            (discriminator_loss, "disc", 1),
        ):
            value = loss(*map(torch.logit, preds))
            grads = torch.autograd.grad(value, preds)
            for kind, grad in zip(("labeled", "unlabeled"), grads, strict=True):
                check(factor * grad, case[f"grad_pred_{kind}_{step}"])
        check(value, case["discriminator_loss"])


KEYS = {f"{p}{k}" for p in ("", "unl_") for k in ("x", "recon", "mu", "logvar")}
KEYS |= {"pred_labeled", "pred_unlabeled"}


def check(found, expected):
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-8, atol=1e-12)


def test_golden_query():
    for case in cases("vaal_query"):
        p, budget = case["discriminator_prob_labeled"], int(case["budget"])
        pool = case["pool_indices"]
        rows = pool[least_labeled(p, np.arange(len(p)), budget)]
        np.testing.assert_array_equal(rows, case["selected_stable"])
        np.testing.assert_array_equal(np.sort(rows), case["selected_sorted"])


def test_divergence_of_torch():
    mu, logvar = torch.randn(2, 7, 3)
    normal = torch.distributions.Normal
    terms = torch.distributions.kl_divergence(
        normal(mu, (logvar / 2).exp()), normal(0.0, 1.0)
    )
    torch.testing.assert_close(kl_divergence(mu, logvar), terms.sum())
    torch.testing.assert_close(kl_divergence(mu, logvar, "mean"), terms.mean())
    assert kl_divergence(torch.zeros(4, 3), torch.zeros(4, 3)) == 0


codes = arrays(np.float64, (6, 3), elements=st.floats(-20, 20))


@given(codes, codes, st.permutations(range(6)))
@settings(max_examples=30)
def test_losses_are_finite_and_do_not_heed_the_order(mu, logvar, order):
    mu, logvar = torch.from_numpy(mu), torch.from_numpy(logvar)
    loss = kl_divergence(mu, logvar)
    assert 0 <= loss + 1e-9 < np.inf
    torch.testing.assert_close(kl_divergence(mu[order], logvar[order]), loss)
    a, b = 100 * mu[:, :1], 100 * logvar[:, :1]  # a sigmoid would be 0 or 1
    for function in (adversary_loss, discriminator_loss):
        value = function(a, b)
        assert 0 <= value < np.inf
        torch.testing.assert_close(function(a[order], b[order]), value)


@given(arrays(np.float64, 12, elements=st.sampled_from([-1.0, 0.0, 0.5, 3.0])))
def test_least_labeled_is_a_stable_sort(logits):
    candidates = np.array([0, 2, 3, 5, 7, 8, 11])
    rows = least_labeled(logits, candidates, 4)
    expected = sorted(candidates, key=lambda row: (logits[row], row))[:4]
    assert rows.tolist() == expected


# -- the module


def small_module(shape=(6,), **settings):
    body = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 8), nn.Tanh())
    decoder = nn.Sequential(nn.Linear(3, int(np.prod(shape))), nn.Unflatten(1, shape))
    given = {"kl_weight": 0.1, "kl_reduction": "sum", "adversary_weight": 2.0}
    mean = torch.zeros(shape[0], *[1] * (len(shape) - 1))
    return _VAAL(
        Encoder(body, shape),
        decoder,
        3,
        mean,
        mean + 1,
        **{**given, "vae_steps": 1, **settings},
    )


def test_one_optimizer_moves_both_networks_as_two_would():
    module = small_module(vae_steps=2)
    other = pickle.loads(pickle.dumps(module))
    one = torch.optim.Adam(module.parameters(), 1e-2)
    critic = list(other.discriminator.parameters())
    ours = {id(p) for p in critic}
    vae = [p for p in other.parameters() if id(p) not in ours]
    two = torch.optim.Adam(vae, 1e-2), torch.optim.Adam(critic, 1e-2)
    for step in range(5):
        x, y = torch.randn(8, 6), torch.tensor([0, 0, 0, -1, -2, -3, -4, -5])
        torch.manual_seed(step)
        loss, _ = module.loss(x, y)
        loss.backward()
        one.step()
        one.zero_grad(set_to_none=True)
        module.after_step()

        torch.manual_seed(step)
        mu, logvar = other.encode(x)
        drawn = other.decoder(mu + torch.randn_like(mu) * (logvar / 2).exp())
        loss = 0.0
        for part in (slice(3), slice(3, 8)):
            loss = loss + F.mse_loss(drawn[part], x[part])
            terms = 1 + logvar[part] - mu[part] ** 2 - logvar[part].exp()
            loss = loss - 0.05 * terms.sum()
        p = torch.sigmoid(other.discriminator(mu))
        bce = F.binary_cross_entropy
        loss = loss + 2 * (bce(p[:3], torch.ones(3, 1)) + bce(p[3:], torch.ones(5, 1)))
        gradients = torch.autograd.grad(loss, vae)
        if step % 2 == 0:
            p = torch.sigmoid(other.discriminator(mu.detach()))
            loss = bce(p[:3], torch.ones(3, 1)) + bce(p[3:], torch.zeros(5, 1))
            loss.backward()
            two[1].step()
            two[1].zero_grad()
        for parameter, gradient in zip(vae, gradients, strict=True):
            parameter.grad = gradient
        two[0].step()
        for a, b in zip(module.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_discriminator_learns_in_one_of_so_many_steps():
    module = small_module(vae_steps=3)
    moved = []
    for _ in range(7):
        module.zero_grad(set_to_none=True)
        loss, figures = module.loss(torch.randn(4, 6), torch.tensor([0, 0, -1, -2]))
        loss.backward()
        moved.append(module.discriminator[0][0].weight.grad is not None)
        assert module.to_mean.weight.grad is not None
        assert not any(figure.requires_grad for figure in figures.values())
        module.after_step()
    assert moved == [True, False, False, True, False, False, True]


def test_each_loss_leaves_the_other_network_alone():
    x, y = torch.randn(8, 6), torch.tensor([0, 0, 0, 0, -1, -2, -3, -4])
    losses = {}
    for weight in (0.0, 50.0):
        torch.manual_seed(0)
        module = small_module(adversary_weight=weight)
        module.loss(x, y)[0].backward()
        losses[weight] = module
    a, b = losses.values()
    critic = [m.discriminator[0][0].weight.grad for m in (a, b)]
    assert torch.equal(*critic)
    assert not torch.allclose(a.to_mean.weight.grad, b.to_mean.weight.grad)
    # not through the draw either: the discriminator sees the mean
    grad = a.to_logvar.weight.grad, b.to_logvar.weight.grad
    torch.testing.assert_close(*grad)


def test_published_size():
    encode, decode = convolutions((3, 32, 32), 32, 128)
    encoder = Encoder(encode, (3, 32, 32))
    assert encoder.n_features_out == 1024 * 2 * 2
    module = _VAAL(encoder, decode, 32, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    count = {
        k: sum(p.numel() for p in m.parameters()) for k, m in module._modules.items()
    }
    critic = count.pop("discriminator")
    assert round(critic / 1e6, 2) == 0.28
    assert round(sum(count.values()) / 1e6, 2) == 22.84


@pytest.mark.parametrize(
    "side",
    [(1, 1), (1, 9), (2, 3), (8, 8), (9, 7), (28, 28), (33, 47), (64, 5), (16, 17)],
)
def test_what_the_decoder_draws_has_the_shape_of_the_images(side):
    shape = (3, *side)
    encode, decode = convolutions(shape, 4, 2)
    assert encode(torch.randn(2, *shape)).ndim == 2
    assert decode(torch.randn(2, 4)).shape == (2, *shape)


# -- the choice


def test_promises():
    X, y = vectors(90), half(90)
    selector = quiet(VAALSelector(7, **TINY), X, y)
    rows, scores = selector.sample_indices_, selector.scores_
    assert rows.shape == (7,) and rows.dtype == np.int64 and len(set(rows)) == 7
    assert (y[rows] == -1).all()
    assert (scores[y >= 0] == -np.inf).all()
    assert ((scores[y < 0] >= 0) & (scores[y < 0] <= 1)).all()
    order = np.lexsort((np.arange(90), -scores))
    np.testing.assert_array_equal(rows, order[:7])
    np.testing.assert_array_equal(np.flatnonzero(selector.support_), np.sort(rows))
    distances = np.linalg.norm(X[:, None] - X[rows].astype(float), axis=-1)
    np.testing.assert_array_equal(selector.assignments_, distances.argmin(1))
    history = selector.net_.history[-1]
    for name in ("reconstruction", "kl", "adversary", "discriminator"):
        assert np.isfinite(history[name])
    assert 0 <= history["discriminator_accuracy"] <= 1
    # what the labels say does not count, only which rows have one
    names = np.array(["cat" if k >= 0 else None for k in y], dtype=object)
    again = quiet(clone(selector), X, names)
    np.testing.assert_array_equal(again.scores_, scores)


def test_scores_are_one_minus_the_probability_of_a_label():
    X, y = vectors(), half(60)
    selector = quiet(VAALSelector(5, **TINY), X, y)
    module = selector.net_.module_.eval()
    with torch.inference_mode():
        p = module(torch.from_numpy(X))[:, -1].sigmoid().numpy()
    np.testing.assert_allclose(selector.scores_[y < 0], 1 - p[y < 0], rtol=1e-5)


@pytest.mark.parametrize("n_samples, n", [(None, 3), (0.5, 15), (1, 1), (30, 30)])
def test_number_of_rows(n_samples, n):
    selector = quiet(VAALSelector(n_samples, **TINY), vectors(), half(60))
    assert len(selector.sample_indices_) == n


def test_rows_of_another_kind_are_found():
    rng = np.random.default_rng(0)
    kind = np.arange(400) % 4 == 0
    X = rng.normal(size=(400, 8)) + np.where(kind, 2, -2)[:, None]
    y = np.where(~kind & (rng.random(400) < 0.3), 1, -1)
    selector = VAALSelector(30, max_epochs=8, width=4, **WORKS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = selector.fit_select(X, y)
    assert kind[rows].mean() > 0.8


def test_digits_that_have_no_label_are_chosen():
    X, target = load_digits(return_X_y=True)
    X, target = X[:400], target[:400]
    y = np.where((target < 7) & (np.arange(400) < 200), target, -1)
    selector = VAALSelector(20, max_epochs=10, width=8, **WORKS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = selector.fit_select(X, y)
    assert (target[rows] >= 7).mean() > (target[y < 0] >= 7).mean() + 0.15


def test_the_default_explains_the_rows_and_the_published_sum_does_not():
    X, y = load_digits(return_X_y=True)[0][:400], half(400)
    settings = {"max_steps": 200, "width": 8, "batch_size": 32, "lr": 2e-3}
    settings["random_state"] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        VAALSelector(**settings).fit(X, y)
    with pytest.warns(CollapseWarning, match='explain .*kl_reduction="mean"'):
        VAALSelector(kl_reduction="sum", kl_weight=1, **settings).fit(X, y)


def test_empty_codes_are_told():
    X, y = load_digits(return_X_y=True)[0][:200], half(200)
    selector = VAALSelector(max_epochs=5, width=4, **WORKS)
    with pytest.warns(
        CollapseWarning, match='explain .*kl_reduction="mean".*kl_weight'
    ):
        selector.set_params(kl_reduction="sum", kl_weight=1.0).fit(X, y)
    with pytest.warns(CollapseWarning, match=r"try a lower kl_weight \(now 5\)"):
        selector.set_params(kl_reduction="mean", kl_weight=5).fit(X, y)


def test_the_error_of_empty_codes():
    X, y = vectors(60) + 9 * (np.arange(60) < 7)[:, None], np.arange(60) < 7
    selector = quiet(VAALSelector(5, **TINY), X, np.where(y, 0, -1))
    module = selector.net_.module_
    Z = (X - module.mean.numpy()) / module.std.numpy()
    kinds = np.flatnonzero(y), np.flatnonzero(~y)
    drawn = (Z[y].mean(0) + Z[~y].mean(0)) / 2
    expected = np.mean([((Z[rows] - drawn) ** 2).mean() for rows in kinds])
    found = _empty_error(selector.net_, Samples(X, (5,)), kinds)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_discriminator_at_chance_is_told():
    # every unlabeled row has a labeled twin: nothing tells the two kinds apart
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(150, 3)) @ rng.normal(size=(3, 10)), 2, axis=0)
    y = np.where(np.arange(300) % 2, 1, -1)
    selector = VAALSelector(max_epochs=20, width=4, vae_steps=1000, **WORKS)
    with pytest.warns(CollapseWarning, match=r"at chance.*vae_steps \(now 1000\)"):
        selector.fit(X, y)


def test_one_row_of_each_kind_and_rows_that_are_all_alike():
    selector = VAALSelector(1, **TINY)
    rows = quiet(selector, vectors(2), [3, -1]).sample_indices_
    assert rows.tolist() == [1]
    for X in (np.full((12, 3), 2.5), np.zeros((12, 4, 4))):
        selector = quiet(VAALSelector(4, **TINY), X, half(12))
        assert selector.sample_indices_.tolist() == [6, 7, 8, 9]  # ties: by number
        assert np.isfinite(selector.scores_[6:]).all()
        assert selector.assignments_.min() >= 0


def test_nothing_is_left_to_ask():
    X = vectors()
    selector = quiet(VAALSelector(**TINY), X, half(60))
    selector.fit(X, np.zeros(60))
    assert selector.sample_indices_.shape == (0,) and not hasattr(selector, "net_")
    assert (selector.scores_ == -np.inf).all() and (selector.assignments_ == -1).all()


# -- what X may be


def test_images_of_any_form(images, tmp_path):
    y = half(40)
    first = quiet(VAALSelector(5, **TINY), images, y)
    flat = VAALSelector(5, image_shape=(8, 8), **TINY)
    np.testing.assert_array_equal(
        quiet(flat, images.reshape(40, -1), y).scores_, first.scores_
    )
    codes = first.net_.forward(Samples(images, (1, 8, 8), True)).numpy()[:, :-1]
    distances = np.linalg.norm(codes[:, None] - codes[first.sample_indices_], axis=-1)
    np.testing.assert_array_equal(first.assignments_, distances.argmin(1))

    paths = []
    for i, image in enumerate(images):
        paths.append(str(tmp_path / f"{i:02d}.png"))
        Image.fromarray(np.stack([image] * 3, 2)).save(paths[-1])
    color = np.stack([images] * 3, 3)
    np.testing.assert_array_equal(
        quiet(VAALSelector(5, **TINY), paths, y).scores_,
        quiet(VAALSelector(5, **TINY), color, y).scores_,
    )


def test_files_that_cannot_be_read_are_never_chosen(images, tmp_path):
    paths = []
    for i, image in enumerate(images[:12]):
        paths.append(str(tmp_path / f"{i:02d}.png"))
        Image.fromarray(image).save(paths[-1])
    for i in (1, 9):
        (tmp_path / f"{i:02d}.png").write_bytes(b"no image")
    y = half(12)
    selector = VAALSelector(5, on_error="skip", image_size=8, **TINY)
    with pytest.warns(UserWarning, match="2 of 12 image files"):
        quiet(selector, paths, y)
    assert sorted(selector.sample_indices_) == [6, 7, 8, 10, 11]
    assert selector.scores_[9] == -np.inf
    np.testing.assert_array_equal(selector.assignments_ < 0, np.isin(range(12), [1, 9]))
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="n_samples=6.*only 5"),
    ):
        selector.set_params(n_samples=6).fit(paths, y)
    y = np.where(np.arange(12) == 1, 0, -1)
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="None of the 1 labe"),
    ):
        selector.set_params(n_samples=1).fit(paths, y)


def test_wrong_input_is_refused():
    X, y = vectors(), half(60)
    for none in (None, np.full(60, -1), np.full(60, np.nan)):
        with pytest.raises(ValueError, match="no labeled row.*USLSelector"):
            VAALSelector(**TINY).fit(X, none)
    with pytest.raises(ValueError, match="n_samples=31 .* only 30 of the 60 rows"):
        VAALSelector(31, **TINY).fit(X, y)
    with pytest.raises(ValueError, match="n_samples=1 .* only 0 of the 60 rows"):
        VAALSelector(1, **TINY).fit(X, np.ones(60))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        VAALSelector(**TINY).fit(X, y[1:])
    for wrong in (
        {"vae_steps": 0},
        {"kl_weight": -1},
        {"kl_reduction": "max"},
        {"width": "wide"},
        {"n_components": 0},
        {"adversary_weight": -0.1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VAALSelector(**{**TINY, **wrong}).fit(X, y)


# -- as an estimator


def test_same_seed_same_rows_and_nothing_else_changes():
    X, y = vectors(), half(60)
    X_before, y_before, state = X.copy(), y.copy(), torch.get_rng_state()
    first = quiet(VAALSelector(**TINY), X, y)
    np.testing.assert_array_equal(quiet(clone(first), X, y).scores_, first.scores_)
    other = quiet(clone(first).set_params(random_state=1), X, y)
    assert not np.array_equal(other.scores_, first.scores_)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(X, X_before)
    np.testing.assert_array_equal(y, y_before)
    loaded = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(loaded.sample_indices_, first.sample_indices_)
    scaled = make_pipeline(StandardScaler(), clone(first))
    found = quiet(scaled, X, y)[-1]
    assert found.scores_[y < 0].min() >= 0


def test_save_and_load(tmp_path, monkeypatch, images):
    # the public list may be older than this file
    monkeypatch.setattr(selection, "VAALSelector", VAALSelector, raising=False)
    monkeypatch.setattr(selection, "__all__", [*selection.__all__, "VAALSelector"])
    fitted = quiet(VAALSelector(4, **TINY), images, half(40))
    fitted.save(tmp_path / "model")
    loaded = sklabel.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.scores_, fitted.scores_)
    samples = Samples(images, (1, 8, 8), True)
    assert torch.equal(loaded.net_.forward(samples), fitted.net_.forward(samples))
    assert loaded.net_.module_.n_steps == 2


@pytest.mark.parametrize("backbone", ["resnet8", nn.Sequential(nn.Conv2d(1, 4, 3))])
def test_another_backbone(backbone, images):
    selector = VAALSelector(4, backbone=backbone, **TINY)
    quiet(selector, images, half(40))
    assert len(selector.sample_indices_) == 4
    assert selector.encoder_(torch.zeros(2, 1, 8, 8)).ndim == 2


def test_warm_start_takes_over_weights_but_not_settings():
    X, y = vectors(), half(60)
    selector = quiet(VAALSelector(warm_start=True, **TINY), X, y)
    before = selector.net_.module_.to_mean.weight.detach().clone()
    quiet(selector.set_params(max_steps=1, lr=1e-9, kl_weight=0.5), X, y)
    module = selector.net_.module_
    torch.testing.assert_close(module.to_mean.weight, before)
    assert module.kl_weight == 0.5 and module.n_steps == 3


def test_a_checkpoint_is_continued_to_the_same_bits(tmp_path):
    X, y = vectors(), half(60)
    settings = {**TINY, "max_steps": None, "max_epochs": 3, "batch_size": 8}
    whole = quiet(VAALSelector(5, **settings), X, y)

    class Stop(Exception):
        pass

    class Halting(VAALSelector):
        def _make_net(self, module, pixel_range, **given):
            net = super()._make_net(module, pixel_range, **given)
            save = net.save_checkpoint

            def save_once():
                save()
                raise Stop

            net.save_checkpoint = save_once
            return net

    Halting.__name__ = "VAALSelector"
    Halting.__qualname__ = "VAALSelector"
    with pytest.raises(Stop):
        Halting(5, checkpoint_dir=tmp_path, **settings).fit(X, y)
    rest = VAALSelector(5, checkpoint_dir=tmp_path, **settings)
    quiet(rest, X, y)
    assert len(rest.net_.history) == 3
    np.testing.assert_array_equal(rest.scores_, whole.scores_)


def test_batches_hold_both_kinds():
    samples = Samples(vectors(20), (5,))
    mixed = Mixed(samples, (np.arange(20) < 3) - 1, 1.0, include_labeled=False)
    for rows in mixed.epoch(4):
        _, y = mixed.fetch(rows)
        assert (y[:4] == 0).all() and (y[4:] < 0).all()
        assert set(-1 - y[4:].numpy()) <= set(range(3, 20))


@pytest.mark.gpu
def test_on_a_gpu(images):
    selector = VAALSelector(4, **{**TINY, "device": "cuda"})
    quiet(selector, images, half(40))
    assert len(set(selector.sample_indices_.tolist())) == 4
