"""Tests of TOD."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import softmax
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import sklabel
from sklabel import selection
from sklabel.augment import Weak
from sklabel.losses import temporal_consistency
from sklabel.selection._tod import TODSelector, temporal_discrepancy
from tests._golden import assert_same_ranking, cases
from tests._making import fit_broken_off

SHORT = {"max_steps": 3, "batch_size": 8, "random_state": 0}


@pytest.fixture(scope="module")
def digits():
    X, target = load_digits(return_X_y=True)
    X = (X[:200] / 16).astype(np.float32)
    return X, np.where(np.arange(200) < 40, target[:200], -1), target[:200]


def images(X):
    return X.reshape(-1, 8, 8)


def logits_of(selector, X):
    """Return what the network says in evaluation."""
    samples = selector._check_X(X)
    return selector.net_.forward(samples).numpy()


def check_promises(selector, X, y, n_samples):
    rows = selector.sample_indices_
    assert rows.shape == (n_samples,) and rows.dtype == np.int64
    assert len(set(rows.tolist())) == n_samples
    assert (np.asarray(y)[rows] == -1).all()
    assert selector.support_.sum() == n_samples and selector.support_[rows].all()
    assert (selector.scores_[np.asarray(y) != -1] == -np.inf).all()
    assert not np.isnan(selector.scores_).any()
    unseen = selector.scores_ == -np.inf
    np.testing.assert_array_equal(np.isnan(selector.discrepancies_), unseen)
    order = np.argsort(-selector.scores_, kind="stable")[:n_samples]
    np.testing.assert_array_equal(rows, order)


# -- the functions


def test_golden():
    for case in cases("tod"):
        now, before = case["logits_current"], case["logits_previous"]
        found = temporal_discrepancy(now, before)
        np.testing.assert_allclose(found, case["score"], rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(found, case["score_float32"], rtol=1e-3, atol=1e-6)
        norm = temporal_discrepancy(now, before, measure="norm")
        np.testing.assert_allclose(norm, case["paper_score_l2"], rtol=1e-6)
        order = np.argsort(found, kind="stable")
        assert_same_ranking(order, case["order_ascending"], case["score"])
        budget = int(case["budget"])
        wanted = -case["score"] if case["first_cycle"] else case["score"]
        rows = (order if case["first_cycle"] else order[::-1])[:budget]
        expected = case["selected"][np.argsort(-wanted[case["selected"]])]
        assert_same_ranking(rows, expected, wanted)

        tensors = {
            name: torch.tensor(case[name], requires_grad=True)
            for part in ("lab", "unl")
            for name in (f"scores_{part}", f"cons_scores_{part}", f"ema_scores_{part}")
        }
        loss = sum(
            temporal_consistency(*(tensors[f"{n}scores_{part}"] for n in _PARTS))
            for part in ("lab", "unl")
        )
        expected = case["res_loss"] + case["consistency_loss"]
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-6)
        loss.backward()
        for part in ("lab", "unl"):
            for name in ("scores", "cons_scores"):
                want = case[f"grad_{name.removesuffix('_scores')}_{part}"]
                grad = tensors[f"{name}_{part}"].grad
                np.testing.assert_allclose(grad, want, rtol=1e-6, atol=1e-12)
            assert tensors[f"ema_scores_{part}"].grad is None


_PARTS = "", "cons_", "ema_"


def test_the_loss_of_a_step_is_the_slow_loop(digits):
    X, y, _ = digits
    settings = {**SHORT, "max_steps": 20, "batch_size": 5, "lr": 0.01}
    selector = TODSelector(5, **settings, augment=None, consistency_weight=0.3)
    module = selector.fit(X, y).net_.module_.eval()
    rows = np.r_[0:6, 60:64]  # six labeled ones, four that are not
    x, labels = torch.from_numpy(X[rows]), torch.tensor(np.r_[y[:6], [-1] * 4])
    loss, figures = module.loss(x, labels)
    with torch.no_grad():
        s, c = (part.double().numpy() for part in module.online(x))
        past = module.average(x)[0].double().numpy()
    assert abs(s - past).max() > 1e-3
    class_loss = sum(np.log(np.exp(s[i]).sum()) - s[i, y[i]] for i in range(6)) / 6
    consistency = 0.0
    for part in (range(6), range(6, 10)):  # each kind has its own mean
        for i in part:
            for k in range(s.shape[1]):
                pulls = (s[i, k] - c[i, k]) ** 2 + (c[i, k] - past[i, k]) ** 2
                consistency += pulls / len(part) / s.shape[1]
    np.testing.assert_allclose(figures["class_loss"], class_loss, rtol=1e-5)
    np.testing.assert_allclose(figures["consistency"], consistency, rtol=1e-4)
    np.testing.assert_allclose(loss.item(), class_loss + 0.3 * consistency, rtol=1e-5)


def test_consistency_by_hand():
    s, c, past = (torch.tensor([[a, 0.0]]) for a in (1.0, 3.0, 6.0))
    assert temporal_consistency(s, c, past).item() == (4 + 9) / 2
    assert temporal_consistency(s, s, s).item() == 0
    empty = torch.zeros(0, 3, requires_grad=True)
    loss = temporal_consistency(empty, empty, empty)
    assert loss.item() == 0
    loss.backward()
    low = torch.tensor([[300.0]], dtype=torch.bfloat16)
    assert temporal_consistency(low, low * 0, low).item() == 180000


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 5),
    n_classes=st.integers(1, 4),
    scale=st.sampled_from([0, 1e-3, 1, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_discrepancy(n, n_classes, scale, seed):
    rng = np.random.default_rng(seed)
    a, b = scale * rng.normal(size=(2, n, n_classes))
    found = temporal_discrepancy(a, b)
    assert found.shape == (n,) and (found >= 0).all() and (found <= 1 + 1e-12).all()
    np.testing.assert_array_equal(temporal_discrepancy(a, a), np.zeros(n))
    np.testing.assert_allclose(temporal_discrepancy(b, a), found, atol=1e-12)
    np.testing.assert_allclose(temporal_discrepancy(a + 3, b), found, atol=1e-9)
    norm = temporal_discrepancy(a, b, "norm")
    np.testing.assert_allclose(norm**2 / 2, found, atol=1e-12)
    plain = temporal_discrepancy(a, b, "norm", "logits")
    np.testing.assert_allclose(plain, np.linalg.norm(a - b, axis=1))


def test_classes_that_were_not_there_before():
    now, before = np.array([[5.0, 0.0, 0.0]]), np.array([[0.0, 0.0]])
    p = softmax(now[0])
    found = temporal_discrepancy(now, before, places=[0, 2])[0]
    assert found == pytest.approx(
        ((p[0] - 0.5) ** 2 + p[1] ** 2 + (p[2] - 0.5) ** 2) / 2
    )
    assert temporal_discrepancy(now, before, "norm", "logits", [0, 2])[0] == 5


# -- the selector


@pytest.mark.parametrize("form", ["vectors", "images"])
def test_discrepancies_go_with_losses(form):
    n = 500 if form == "vectors" else 300
    X, target = load_digits(return_X_y=True)
    X, target = (X[:n] / 16).astype(np.float32), target[:n]
    y = np.where(np.arange(n) < 50, target, -1)
    parameters = {"batch_size": 32, "precision": "float32", "random_state": 0}
    if form == "images":
        X = images(X)
        parameters |= {"max_epochs": 5, "augment": Weak(flip=0)}
    else:
        parameters["max_epochs"] = 12
    selector = TODSelector(20, warm_start=True, **parameters)

    def correlation():
        check_promises(selector, X, y, 20)
        losses = nn.functional.cross_entropy(
            torch.tensor(logits_of(selector, X)), torch.tensor(target), reduction="none"
        )
        rest = y == -1
        return spearmanr(selector.discrepancies_[rest], losses[rest])[0]

    selector.fit(X, y)
    # from the untrained network the sure rows have moved farthest
    assert correlation() < -0.5
    if form == "images":
        return
    y[selector.sample_indices_] = target[selector.sample_indices_]
    selector.fit(X, y)
    assert correlation() > 0.3
    np.testing.assert_array_equal(selector.scores_[y == -1] >= 0, True)


def test_scores_are_differences_to_the_network_before(digits):
    X, y, target = digits
    selector = TODSelector(10, warm_start=True, **SHORT).fit(X, y)
    before = logits_of(selector, X)
    more = y.copy()
    more[selector.sample_indices_] = target[selector.sample_indices_]
    rest = more == -1
    for measure, on in (("squared", "probabilities"), ("norm", "logits")):
        again = pickle.loads(pickle.dumps(selector))
        again.set_params(measure=measure, on=on, max_steps=20).fit(X, more)
        now = logits_of(again, X)
        want = temporal_discrepancy(now, before, measure, on)
        np.testing.assert_allclose(again.scores_[rest], want[rest], atol=1e-6)
        np.testing.assert_array_equal(again.scores_[rest], again.discrepancies_[rest])
        check_promises(again, X, more, 10)
        assert again.n_cycles_ == 2
    # rows may come and go between the fits
    part = pickle.loads(pickle.dumps(selector)).set_params(max_steps=20)
    part.fit(X[:150], more[:150])
    want = temporal_discrepancy(logits_of(part, X), before)[:150]
    np.testing.assert_allclose(
        part.scores_[more[:150] == -1], want[more[:150] == -1], atol=1e-6
    )


def test_first_cycle(digits):
    X, y, _ = digits
    rest = y == -1
    lowest = TODSelector(10, **SHORT).fit(X, y)
    np.testing.assert_array_equal(lowest.scores_[rest], -lowest.discrepancies_[rest])
    highest = TODSelector(10, first_cycle="highest", **SHORT).fit(X, y)
    np.testing.assert_array_equal(lowest.discrepancies_, highest.discrepancies_)
    np.testing.assert_array_equal(highest.scores_[rest], highest.discrepancies_[rest])
    assert not set(lowest.sample_indices_) & set(highest.sample_indices_)
    drawn = TODSelector(10, first_cycle="random", **SHORT).fit(X, y)
    np.testing.assert_array_equal(lowest.discrepancies_, drawn.discrepancies_)
    other = clone(drawn).set_params(random_state=1).fit(X, y)
    assert set(drawn.sample_indices_) != set(other.sample_indices_)
    for selector in (lowest, highest, drawn):
        check_promises(selector, X, y, 10)
        # without warm_start every fit is the first
        assert selector.fit(X, y).n_cycles_ == 1


def test_warm_start_continues(digits):
    X, y, target = digits
    selector = TODSelector(10, warm_start=True, **SHORT).fit(X, y)
    first = copy.deepcopy(selector.net_.module_.online)
    assert selector.net_.module_.n_steps == 3
    more = y.copy()
    more[selector.sample_indices_] = target[selector.sample_indices_]
    selector.set_params(lr=1e-9).fit(X, more)
    check_promises(selector, X, more, 10)
    module = selector.net_.module_
    assert module.n_steps == 6 and selector.n_cycles_ == 2
    for a, b in zip(module.online.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    # the weights have not moved, so hardly any prediction has
    assert np.nanmax(selector.discrepancies_) < 0.2
    cold = clone(selector)
    assert not hasattr(cold, "net_") and not hasattr(cold, "n_cycles_")
    assert cold.fit(X, more).n_cycles_ == 1
    with pytest.raises(ValueError, match="warm_start=False"):
        selector.fit(X[:, :5], more)
    assert selector.set_params(warm_start=False).fit(X, y).n_cycles_ == 1


def test_a_new_class_gets_outputs_and_a_lost_one_keeps_its_own(digits):
    X, _, target = digits
    y = np.where((np.arange(200) < 60) & (target > 3), target, -1)
    y[target == 6] = -1
    selector = TODSelector(5, warm_start=True, **SHORT).fit(X, y)
    assert selector.classes_.tolist() == [4, 5, 7, 8, 9]
    before = logits_of(selector, X)
    module = copy.deepcopy(selector.net_.module_)
    more = np.where(np.arange(200) < 60, target, -1)
    more[target == 9] = -1
    selector.set_params(lr=1e-9).fit(X, more)
    check_promises(selector, X, more, 5)
    assert selector.classes_.tolist() == list(range(10))
    places = [4, 5, 7, 8, 9]
    now = selector.net_.module_
    for i in range(2):
        old, new = module.online.heads[i].weight, now.online.heads[i].weight
        torch.testing.assert_close(new[places], old, rtol=0, atol=1e-6)
        assert now.average.heads[i].weight.shape == (10, 128)
        assert not now.average.heads[i].weight.requires_grad and new.requires_grad
    want = temporal_discrepancy(logits_of(selector, X), before, places=places)
    rest = more == -1
    np.testing.assert_allclose(selector.scores_[rest], want[rest], atol=1e-6)
    names = np.array([str(k) if k >= 0 else None for k in more], dtype=object)
    with pytest.raises(ValueError, match="warm_start=True continues on the classes"):
        selector.fit(X, names)


def test_the_average_is_the_mean_of_all_weights_so_far(digits):
    X, y, _ = digits
    selector = TODSelector(5, ema_decay=0.9999, **SHORT)
    seen = []

    class Watched(selector_module(selector, X, y)):
        def after_step(self):
            if not seen:
                # of the copy the training began with, nothing has moved yet
                seen.append(next(self.average.parameters()).detach().clone())
            seen.append(next(self.online.parameters()).detach().clone())
            super().after_step()

    import sklabel.selection._tod as tod

    original, tod._TOD = tod._TOD, Watched
    try:
        selector.fit(X, y)
    finally:
        tod._TOD = original
    average = next(selector.net_.module_.average.parameters())
    torch.testing.assert_close(average, torch.stack(seen).mean(0), rtol=1e-5, atol=1e-6)
    # the trained network predicts, not the average; the latter keeps its own statistics
    module = selector.net_.module_
    pairs = zip(module.average.buffers(), module.online.buffers(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def selector_module(selector, X, y):
    return type(clone(selector).fit(X, y).net_.module_)


def test_unlabeled_rows_take_part(digits):
    X, y, _ = digits

    def weight(**parameters):
        selector = TODSelector(5, augment=None, **{**SHORT, **parameters}).fit(X, y)
        return next(selector.encoder_.parameters()).detach(), selector

    first, selector = weight()
    assert selector.net_.history[-1]["consistency"] > 0
    assert selector.net_.total_steps_ == 3
    assert not torch.equal(first, weight(consistency_weight=1.0)[0])
    alone, selector = weight(unlabeled_ratio=0)
    assert not torch.equal(first, alone)


def test_forms_of_X(digits, tmp_path):
    X, y, _ = digits
    pictures = (images(X) * 255).astype(np.uint8)
    color = np.repeat(pictures[..., None], 3, axis=3)
    selector = TODSelector(7, **SHORT)
    check_promises(selector.fit(X, y), X, y, 7)
    np.testing.assert_array_equal(
        selector.assignments_[selector.sample_indices_], np.arange(7)
    )
    selector.fit(color, y)
    assert not hasattr(selector, "assignments_") and selector.n_features_in_ == 192
    expected = selector.scores_
    flat = clone(selector).set_params(image_shape=(8, 8, 3))
    np.testing.assert_array_equal(flat.fit(color.reshape(200, -1), y).scores_, expected)
    paths = []
    for i, picture in enumerate(color[:60]):
        paths.append(str(tmp_path / f"{i:03d}.png"))
        Image.fromarray(picture).save(paths[-1])
    found = clone(selector).fit(paths, y[:60]).scores_
    want = clone(selector).fit(color[:60], y[:60]).scores_
    np.testing.assert_array_equal(found, want)
    with open(paths[50], "wb") as file:
        file.write(b"no image")
    with pytest.raises(ValueError, match="050.png"):
        clone(selector).fit(paths, y[:60])
    skipping = clone(selector).set_params(on_error="skip", image_size=8, n_samples=19)
    with pytest.warns(UserWarning, match="1 of 60"):
        skipping.fit(paths, y[:60])
    assert skipping.scores_[50] == -np.inf and np.isnan(skipping.discrepancies_[50])
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="leaves 19 unlabeled"),
    ):
        skipping.set_params(n_samples=20).fit(paths, y[:60])


def test_only_candidates_are_looked_at(digits):
    X, y, _ = digits
    selector = TODSelector(5, n_candidates=30, **SHORT).fit(X, y)
    check_promises(selector, X, y, 5)
    looked_at = np.flatnonzero(np.isfinite(selector.scores_))
    assert len(looked_at) == 30
    whole = clone(selector).set_params(n_candidates=None).fit(X, y)
    np.testing.assert_allclose(
        whole.scores_[looked_at], selector.scores_[looked_at], atol=1e-6
    )
    few = clone(selector).set_params(n_candidates=2).fit(X, y)
    assert np.isfinite(few.scores_).sum() == 5


def test_it_needs_labels_of_two_classes(digits):
    X, y, _ = digits
    selector = TODSelector(5, **SHORT)
    for unlabeled in (None, np.full(200, -1), [None] * 200):
        with pytest.raises(ValueError, match="trains.*labels.*USLSelector"):
            selector.fit(X, unlabeled)
    with pytest.raises(ValueError, match="1 class"):
        selector.fit(X, np.where(y == 3, 3, -1))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        selector.fit(X, y[1:])
    with pytest.raises(ValueError, match="n_samples=161 .* only 160 of the 200"):
        clone(selector).set_params(n_samples=161).fit(X, y)
    for wrong in ({"measure": "l1"}, {"on": "x"}, {"first_cycle": 1}, {"ema_decay": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            clone(selector).set_params(**wrong).fit(X, y)


def test_every_row_is_labeled(digits):
    X, y, target = digits
    selector = TODSelector(**SHORT).fit(X, y)
    selector.fit(X, target)
    check_promises(selector, X, target, 0)
    assert not hasattr(selector, "net_") and not hasattr(selector, "n_cycles_")
    warm = TODSelector(**SHORT, warm_start=True).fit(X, y).fit(X, target).fit(X, y)
    check_promises(warm, X, y, 16)  # what was learned before is still there
    assert warm.n_cycles_ == 2


@pytest.mark.parametrize("X", [np.full((12, 3), 2.5), np.zeros((12, 3))])
def test_equal_rows_and_few_labels(X):
    y = np.r_[0, 1, [-1] * 10]
    selector = TODSelector(10, **SHORT).fit(X, y)
    check_promises(selector, X, y, 10)
    assert selector.sample_indices_.tolist() == list(range(2, 12))
    one = np.r_[0, 1, [1] * 9, -1]
    check_promises(TODSelector(1, **SHORT).fit(X, one), X, one, 1)


def test_same_seed_clone_pickle_and_generators(digits):
    X, y, target = digits
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    selector = TODSelector(15, **SHORT).fit(X, y)
    again = clone(selector).fit(X, y)
    np.testing.assert_array_equal(again.scores_, selector.scores_)
    other = clone(selector).set_params(random_state=1).fit(X, y)
    assert (other.scores_ != selector.scores_).any()
    np.testing.assert_array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])
    # names of classes change nothing
    names = np.array([None if k == -1 else f"digit {k}" for k in y], dtype=object)
    np.testing.assert_array_equal(clone(selector).fit(X, names).scores_, again.scores_)
    # a pickle holds the network to compare with
    selector.set_params(warm_start=True)
    kept = pickle.loads(pickle.dumps(selector))
    more = y.copy()
    more[selector.sample_indices_] = target[selector.sample_indices_]
    np.testing.assert_array_equal(
        kept.fit(X, more).scores_, selector.fit(X, more).scores_
    )
    assert kept.n_cycles_ == 2


def test_saved_and_loaded(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "TODSelector", TODSelector, raising=False)
    monkeypatch.setattr(selection, "__all__", [*selection.__all__, "TODSelector"])
    X, y, _ = digits
    selector = TODSelector(5, warm_start=True, **SHORT).fit(X, y)
    selector.save(tmp_path / "selector")
    loaded = sklabel.load(tmp_path / "selector")
    np.testing.assert_array_equal(loaded.scores_, selector.scores_)
    assert loaded.net_.module_.n_steps == 3
    np.testing.assert_array_equal(loaded.fit(X, y).scores_, selector.fit(X, y).scores_)
    assert loaded.n_cycles_ == 2


def test_a_fit_broken_off_can_be_compared_with(digits):
    X, y, _ = digits

    def schedule(step, total_steps, warmup_steps=0):
        if step == 2:
            raise KeyboardInterrupt
        return 1.0

    selector = TODSelector(5, warm_start=True, schedule=schedule, **SHORT)
    with pytest.warns(UserWarning, match="interrupted"):
        selector.fit(X, y)
    assert selector.interrupted_
    check_promises(selector, X, y, 5)
    selector.set_params(schedule="step").fit(X, y)
    assert selector.n_cycles_ == 2 and not selector.interrupted_


def test_a_pipeline_may_end_in_it(digits):
    X, y, _ = digits
    pipeline = make_pipeline(StandardScaler(), TODSelector(8, **SHORT))
    rows = pipeline.fit(X, y)[-1].sample_indices_
    scaled = StandardScaler().fit_transform(X)
    np.testing.assert_array_equal(rows, TODSelector(8, **SHORT).fit_select(scaled, y))


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("n_cycles", [1, 2])
def test_a_cycle_that_was_broken_off_goes_on(
    n_cycles, saved, digits, tmp_path, monkeypatch
):
    X, y, target = digits
    given = {**SHORT, "max_steps": None, "max_epochs": 4, "warm_start": True}
    selector = TODSelector(6, **given)
    if n_cycles == 2:
        selector.fit(X, y)
        y = np.where(np.isin(np.arange(200), selector.sample_indices_), target, y)
    cut = pickle.loads(pickle.dumps(selector)).set_params(checkpoint_dir=tmp_path)
    whole = selector.fit(X, y)
    at = 1 + whole.net_.history[0, "train_batch_count"]
    fit_broken_off(cut, X, y, at, monkeypatch)
    if saved:
        cut.save(tmp_path / "model")
        cut = sklabel.load(tmp_path / "model").set_params(checkpoint_dir=tmp_path)
    assert cut.fit(X, y).interrupted_ is False
    assert cut.n_cycles_ == whole.n_cycles_ == n_cycles
    np.testing.assert_allclose(cut.scores_, whole.scores_, atol=1e-6)
    # with other labels it is another cycle
    y = np.where(np.isin(np.arange(200), cut.sample_indices_), target, y)
    assert cut.fit(X, y).n_cycles_ == n_cycles + 1
