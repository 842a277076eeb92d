"""The net: its loop, checkpoints, interrupts, schedules, precision."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import skorch
import torch
from torch import nn

from sklabel._core.net import OPTIMIZERS, SCHEDULES, Net
from sklabel._core.samplers import Mixed, Shuffled, split_batch
from sklabel._core.samples import Samples
from sklabel.augment import CTAugment
from sklabel.classification import FixMatchClassifier
from sklabel.clustering import SCANClusterer
from sklabel.embedding import MoCoTransformer, SimCLRTransformer
from sklabel.optim import warmup_cosine

X = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
Y = np.where(np.arange(50) < 20, np.arange(50) % 2, -1)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)


class Squares(nn.Module):
    """A least squares problem with random noise in the loss."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.steps = 0
        self.begun = 0

    def forward(self, x):
        return self.layer(x)

    def loss(self, x, y):
        h = self.layer(x + 0.1 * torch.randn_like(x))
        return (h - 1).square().mean(), {"first": h.detach()[:, 0].mean()}

    def before_epoch(self, net, samples):
        self.begun += 1

    def after_step(self):
        self.steps += 1

    def after_epoch(self, net, samples):
        return {"begun": self.begun}


def net(**settings):
    torch.manual_seed(0)
    settings = {"batch_size": 8, "max_epochs": 3, "lr": 0.1, **settings}
    return Net(Squares(), **settings).initialize()


def weights(fitted):
    return torch.cat([p.detach().ravel() for p in fitted.module_.parameters()])


# -- the loop


def test_the_loop_is_a_bare_loop():
    sampler = Shuffled(Samples(X, (4,)))
    fitted = net(weight_decay=0.01, warmup_epochs=1)
    torch.manual_seed(1)
    fitted.partial_fit(sampler)

    torch.manual_seed(0)
    module = Squares()
    groups = [
        {"params": [module.layer.weight], "weight_decay": 0.01},
        {"params": [module.layer.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    torch.manual_seed(1)
    step, losses = 0, []
    for _ in range(3):
        for rows in sampler.epoch(8):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * warmup_cosine(step, 21, 7)
            loss, _ = module.loss(sampler.fetch(rows)[0], None)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step += 1
    expected = torch.cat([p.detach().ravel() for p in module.parameters()])
    assert torch.equal(weights(fitted), expected)
    found = fitted.history[:, "train_loss"]
    np.testing.assert_allclose(found, np.reshape(losses, (3, 7)).mean(1), rtol=1e-6)


def test_the_verbs_and_the_history():
    # 50 rows, batches of 7: the last row joins the batch before it
    fitted = net(batch_size=7, watch=lambda net, samples: {"seen": len(samples)})
    fitted.partial_fit(Shuffled(Samples(X, (4,))))
    assert fitted.module_.steps == 21
    assert fitted.history[:, "begun"] == [1, 2, 3]
    assert fitted.history[:, "seen"] == [50] * 3
    assert fitted.history[:, "train_batch_count"] == [7] * 3
    assert np.isfinite(fitted.history[:, ("train_loss", "first", "lr", "dur")]).all()


@pytest.mark.parametrize("max_steps", [1, 6, 7, 20])
def test_length_in_steps(max_steps):
    fitted = net(max_steps=max_steps).partial_fit(Shuffled(Samples(X, (4,))))
    batches = len(list(Shuffled(Samples(X, (4,))).epoch(8)))
    assert fitted.module_.steps == max_steps
    assert len(fitted.history) == -(-max_steps // batches)


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, torch.optim.RMSprop])
def test_optimizers_learn(optimizer):
    lr = 5.0 if optimizer in ("lars", "larc") else 0.02
    fitted = net(optimizer=optimizer, lr=lr, max_epochs=15, schedule="constant")
    losses = fitted.partial_fit(Shuffled(Samples(X, (4,)))).history[:, "train_loss"]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_by_name(schedule):
    rates = []

    class Note(skorch.callbacks.Callback):
        def on_batch_end(self, net, **kwargs):
            rates.append(net.optimizer_.param_groups[0]["lr"])

    fitted = net(schedule=schedule, warmup_epochs=1, callbacks=[("note", Note())])
    fitted.partial_fit(Shuffled(Samples(X, (4,))))
    expected = [0.1 * SCHEDULES[schedule](step, 21, 7) for step in range(21)]
    np.testing.assert_allclose(rates, expected)
    assert rates[0] < rates[3]


def test_a_schedule_of_the_user_and_settings_of_the_optimizer():
    fitted = net(
        schedule=lambda step, total, warmup: 1 - step / total,
        optimizer="sgd",
        optimizer__momentum=0.5,
    ).partial_fit(Shuffled(Samples(X, (4,))))
    group = fitted.optimizer_.param_groups[0]
    assert group["momentum"] == 0.5
    np.testing.assert_allclose(group["lr"], 0.1 / 21)


class Told(skorch.callbacks.Callback):
    """Takes what skorch documents, by position or by name."""

    def __init__(self):
        self.told = []

    def on_epoch_begin(self, net, dataset_train, dataset_valid, **kwargs):
        self.told.append(("epoch", dataset_train is not None, dataset_valid))

    def on_epoch_end(self, net, dataset_train, dataset_valid, **kwargs):
        self.told.append(("end", dataset_train is not None, dataset_valid))

    def on_batch_end(self, net, batch, training, loss, y_pred, **kwargs):
        assert training is True and loss.ndim == 0 and len(batch) == 2
        self.told.append(("batch", y_pred))


def test_callbacks_of_skorch_are_told_what_skorch_tells():
    told = Told()
    net(max_epochs=1, callbacks=[("told", told)]).partial_fit(
        Shuffled(Samples(X, (4,)))
    )
    expected = [("epoch", True, None), *[("batch", None)] * 7, ("end", True, None)]
    assert told.told == expected


@pytest.mark.parametrize(
    "callback",
    [
        skorch.callbacks.EpochScoring("accuracy"),
        skorch.callbacks.BatchScoring("accuracy", name="accuracy"),
        skorch.callbacks.PassthroughScoring("train_loss"),
        ("named", skorch.callbacks.EpochScoring("accuracy")),
    ],
)
def test_callbacks_that_score_are_refused_by_name(callback):
    classifier = FixMatchClassifier(
        max_steps=1, batch_size=8, net_params={"callbacks": [callback]}
    )
    with pytest.raises(ValueError, match="Scoring of skorch.*ScoringMonitor"):
        classifier.fit(X, Y)
    assert not hasattr(classifier, "net_")


def test_other_callbacks_of_skorch_work(tmp_path):
    callbacks = [
        skorch.callbacks.EarlyStopping(monitor="train_loss"),
        skorch.callbacks.Checkpoint(monitor=None, dirname=str(tmp_path)),
        skorch.callbacks.PrintLog(sink=lambda text: None),
    ]
    SimCLRTransformer(
        max_epochs=2, batch_size=8, net_params={"callbacks": callbacks}
    ).fit(X)
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "callback",
    [
        skorch.callbacks.EarlyStopping(),
        skorch.callbacks.Checkpoint(fn_prefix="unwritten"),
        skorch.callbacks.EarlyStopping(monitor="train_los"),
        skorch.callbacks.LRScheduler("ReduceLROnPlateau", monitor="valid_loss"),
    ],
)
def test_a_callback_that_monitors_an_unknown_value_is_told_what_there_is(callback):
    settings = {"max_epochs": 2, "batch_size": 8}
    embedder = SimCLRTransformer(**settings, net_params={"callbacks": [callback]})
    message = f"{type(callback).__name__} monitors '\\w+', which .*'train_loss'"
    with pytest.raises(ValueError, match=message):
        embedder.fit(X)


def test_a_callback_may_monitor_what_another_adds():
    class Adds(skorch.callbacks.Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record("valid_loss", 1.0)

    callbacks = [Adds(), skorch.callbacks.EarlyStopping(patience=2)]
    embedder = SimCLRTransformer(
        max_epochs=9, batch_size=8, net_params={"callbacks": callbacks}
    )
    assert 1 < len(embedder.fit(X).net_.history) < 9


def test_a_loss_that_is_no_number_names_the_remedy():
    with pytest.raises(ValueError, match=r"lr=1e\+30"):
        net(lr=1e30, optimizer="sgd", schedule="constant").partial_fit(
            Shuffled(Samples(X, (4,)))
        )


def test_the_bar(capsys):
    net(verbose=1, description="Squares fit").partial_fit(Shuffled(Samples(X, (4,))))
    out, err = capsys.readouterr()
    assert "Squares fit" in err and "loss=" in err and out == ""


def test_prediction_does_not_depend_on_the_rows_beside():
    fitted = net().partial_fit(Shuffled(Samples(X, (4,))))
    together = fitted.forward(Samples(X, (4,)))
    alone = torch.cat([fitted.forward(Samples(X[i : i + 1], (4,))) for i in range(50)])
    assert torch.equal(together, alone)


def test_pickle_keeps_the_weights_once_and_no_optimizer():
    fitted = net().partial_fit(Shuffled(Samples(X, (4,))))
    again = pickle.loads(pickle.dumps(fitted))
    assert again.module is again.module_
    assert torch.equal(weights(again), weights(fitted))
    assert not hasattr(again, "optimizer_")
    assert torch.equal(
        again.forward(Samples(X, (4,))), fitted.forward(Samples(X, (4,)))
    )


# -- precision


def test_bfloat16_trains_and_leaves_float32():
    seen = []

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            h = self.conv(x)
            seen.append(h.dtype)
            return h

    kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    for precision, kind in kinds.items():
        seen.clear()
        embedder = SimCLRTransformer(
            max_steps=1, backbone=Body(), precision=precision, random_state=0
        ).fit(IMAGES)
        assert set(seen[1:]) == {kind}  # the first call only measures the width
        assert embedder.transform(IMAGES).dtype == np.float32
        assert all(p.dtype == torch.float32 for p in embedder.encoder_.parameters())


@pytest.mark.parametrize(
    ("kinds", "images", "chosen"),
    [
        ({"bfloat16", "float16"}, True, "bfloat16"),
        ({"float16"}, True, "float16"),
        (set(), True, "float32"),
        ({"bfloat16", "float16"}, False, "float32"),
    ],
)
def test_auto_takes_what_the_hardware_multiplies(monkeypatch, kinds, images, chosen):
    for kind in ("bfloat16", "float16"):
        monkeypatch.setattr(
            f"sklabel._core.net.multiplies_{kind}", lambda device, k=kind: k in kinds
        )
    made = net(pixel_range=(0.0, 1.0) if images else None)
    assert made.used_precision() == chosen
    assert made.scaler_.is_enabled() == (chosen == "float16")
    for given in ("bfloat16", "float16", "tf32", "float32"):
        assert net(precision=given).used_precision() == given


def test_small_gradients_are_not_lost_in_float16():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1, bias=False)

        def forward(self, x):
            return self.layer(x)

        def loss(self, x, y):
            # of a gradient of 1e-9, float16 would make 0
            return self.layer(x).float().mean() * 1e-9

    given = {"batch_size": 50, "max_epochs": 1, "lr": 1e8, "optimizer": "sgd"}
    moved = {}
    for precision in ("float32", "float16"):
        torch.manual_seed(0)
        module = Small()
        before = module.layer.weight.detach().clone()
        Net(module, precision=precision, **given).initialize().partial_fit(
            Shuffled(Samples(X, (4,)))
        )
        moved[precision] = module.layer.weight.detach() - before
    assert moved["float32"].abs().min() > 1e-4
    torch.testing.assert_close(moved["float16"], moved["float32"], rtol=0.1, atol=1e-4)


def test_a_resumed_fit_in_float16_keeps_the_scale_of_the_loss(tmp_path):
    given = {"precision": "float16", "checkpoint": tmp_path / "fit.pt"}
    whole = net(precision="float16").partial_fit(Shuffled(Samples(X, (4,))))
    broken = net(**given)
    save, count = broken.save_checkpoint, []

    def save_twice():
        save()
        count.append(1)
        if len(count) == 2:
            raise InterruptedError

    broken.save_checkpoint = save_twice
    with pytest.raises(InterruptedError):
        broken.partial_fit(Shuffled(Samples(X, (4,))))
    again = net(**given).partial_fit(Shuffled(Samples(X, (4,))))
    assert torch.equal(weights(again), weights(whole))
    assert again.scaler_.state_dict() == whole.scaler_.state_dict()


# -- batches in parts


class Plain(Squares):
    """A loss that is a mean over the rows: nothing couples them."""

    def loss(self, x, y):
        h = self.layer(x)
        return (h - 1).square().mean(), {"first": h.detach()[:, 0].mean()}


@pytest.mark.parametrize("accumulate", [2, 3, 8, 100])
def test_parts_of_a_batch_add_up_to_it(accumulate):
    fitted = []
    for parts in (1, accumulate):
        torch.manual_seed(0)
        module = Plain()
        given = {"batch_size": 8, "max_epochs": 2, "lr": 0.1, "optimizer": "sgd"}
        made = Net(module, accumulate=parts, **given).initialize()
        torch.manual_seed(1)
        fitted.append(made.partial_fit(Shuffled(Samples(X, (4,)))))
    whole, parts = fitted
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-5, atol=1e-6)
    for name in ("train_loss", "first", "train_batch_count"):
        np.testing.assert_allclose(parts.history[:, name], whole.history[:, name], 1e-5)
    assert parts.module_.steps == whole.module_.steps


def test_every_part_holds_labeled_and_unlabeled_rows():
    targets = np.where(np.arange(50) < 20, np.arange(50) % 3, -1)
    mixed = Mixed(Samples(X, (4,)), targets, 3)
    x, y = mixed.fetch(next(mixed.epoch(8)))
    parts = split_batch(x, y, 4)
    assert [len(x) for x, _ in parts] == [8] * 4
    assert [y.n_labeled for _, y in parts] == [2] * 4
    for _, part in parts:
        assert (part[:2] >= 0).all() and (part[2:] < 0).all()
    assert sorted(torch.cat([y for _, y in parts]).tolist()) == sorted(y.tolist())
    pair = (x, x + 1)
    for (first, second), part in split_batch(pair, torch.arange(32), 5):
        assert torch.equal(second, first + 1) and len(part) == len(first) >= 2
    assert len(split_batch(x, torch.arange(32), 100)) == 16


@pytest.mark.parametrize("cls", [MoCoTransformer, FixMatchClassifier, SCANClusterer])
def test_methods_train_in_parts(cls):
    given = {"max_steps": 2, "batch_size": 16, "random_state": 0, "accumulate": 4}
    args = (X, Y) if cls is FixMatchClassifier else (X,)
    made = cls(**given)
    if cls is MoCoTransformer:
        made.set_params(bn_splits=1)
    made.fit(*args)
    if cls is MoCoTransformer:  # the keys of all parts, of both views
        assert int(made.net_.module_.queue.pointer) == 64 % made.queue_size_


def test_compiled_parts_keep_their_names(monkeypatch):
    compiled = []
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: compiled.append((self, how))
    )
    plain, fast = net(), net(compile=True, compile__mode="reduce-overhead")
    assert compiled == [(fast.module_.layer, {"mode": "reduce-overhead"})]
    assert plain.module_.state_dict().keys() == fast.module_.state_dict().keys()


@pytest.mark.parametrize("name", ["simclr", "fixmatch"])
def test_a_compiled_training_is_the_same(name):
    X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    y = np.where(np.arange(40) < 8, np.arange(40) % 2, -1)
    # traced, and run by torch's own kernels
    compiled = {"compile": True, "compile__backend": "aot_eager"}
    given = {"device": "cpu", "random_state": 0}
    plain, fast = (
        ESTIMATORS[name](net_params=how, **given).fit(X, y) for how in (None, compiled)
    )
    states = (own.net_.module_.state_dict() for own in (plain, fast))
    for before, now in zip(*(state.values() for state in states), strict=True):
        assert torch.equal(torch.as_tensor(before), torch.as_tensor(now))


# -- checkpoints and interrupts


ESTIMATORS = {
    "simclr": lambda **k: SimCLRTransformer(max_epochs=3, batch_size=16, **k),
    "fixmatch": lambda **k: FixMatchClassifier(max_epochs=3, batch_size=4, **k),
    "ctaugment": lambda **k: FixMatchClassifier(
        max_epochs=3, batch_size=4, strong_augment=CTAugment(), **k
    ),
    "scan": lambda **k: SCANClusterer(
        2, max_epochs=3, self_label_epochs=3, self_label_batch_size=16, **k
    ),
}


class Stop(Exception):
    pass


def stop_after(monkeypatch, n_epochs):
    """Let the process die when so many epochs of all stages have been kept."""
    save, count = Net.save_checkpoint, [0]

    def save_and_count(self):
        save(self)
        count[0] += 1
        if count[0] == n_epochs:
            raise Stop

    monkeypatch.setattr(Net, "save_checkpoint", save_and_count)


@pytest.mark.parametrize("n_epochs", [1, 2, 4])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_resumed_fit_has_the_bits_of_one_that_was_not_broken(
    name, n_epochs, tmp_path, monkeypatch
):
    data = IMAGES if name == "ctaugment" else X
    y = Y[: len(data)]
    whole = ESTIMATORS[name](random_state=0).fit(data, y)
    with monkeypatch.context() as patch:
        stop_after(patch, n_epochs)
        broken = ESTIMATORS[name](random_state=0, checkpoint_dir=tmp_path)
        if n_epochs <= 3 or name == "scan":
            with pytest.raises(Stop):
                broken.fit(data, y)
    resumed = ESTIMATORS[name](random_state=0, checkpoint_dir=tmp_path).fit(data, y)
    for a, b in zip(
        whole.net_.module_.state_dict().values(),
        resumed.net_.module_.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b)
    losses = [e.net_.history[:, "train_loss"] for e in (whole, resumed)]
    assert losses[0] == losses[1]


def test_another_fit_does_not_take_the_checkpoint(tmp_path):
    make = ESTIMATORS["simclr"]
    make(random_state=0, checkpoint_dir=tmp_path).fit(X)
    for other, data in (({"lr": 0.5}, X), ({}, X + 1), ({"random_state": 1}, X)):
        settings = {"random_state": 0, **other}
        fresh = make(**settings).fit(data)
        found = make(**settings, checkpoint_dir=tmp_path).fit(data)
        assert torch.equal(weights(found.net_), weights(fresh.net_))


def test_a_damaged_checkpoint_is_named_with_the_remedy(tmp_path):
    make = ESTIMATORS["simclr"]
    make(random_state=0, checkpoint_dir=tmp_path).fit(X)
    (path,) = tmp_path.rglob("*.pt")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="fit.pt.*remove"):
        make(random_state=0, checkpoint_dir=tmp_path).fit(X)


def interrupt_in_epoch(monkeypatch, cls, epoch):
    loss, count = cls.loss, [0]

    def interrupted(self, x, y):
        count[0] += 1
        if count[0] == epoch:
            raise KeyboardInterrupt
        return loss(self, x, y)

    monkeypatch.setattr(cls, "loss", interrupted)


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("name", ["simclr", "fixmatch", "scan"])
def test_ctrl_c_leaves_a_fitted_estimator(name, step, monkeypatch):
    estimator = ESTIMATORS[name](random_state=0)
    module = {
        "simclr": "sklabel.embedding._simclr._SimCLR",
        "fixmatch": "sklabel.classification._fixmatch._FixMatch",
        "scan": "sklabel.clustering._scan._SCAN",
    }[name]
    folder, cls = module.rsplit(".", 1)
    cls = getattr(__import__(folder, fromlist=[cls]), cls)
    interrupt_in_epoch(monkeypatch, cls, step)
    if name == "scan":
        estimator.set_params(batch_size=16)
    with pytest.warns(UserWarning, match="interrupted in stage"):
        estimator.fit(X, Y)
    assert estimator.interrupted_
    verb = estimator.transform if name == "simclr" else estimator.predict_proba
    assert np.isfinite(verb(X)).all()


@pytest.mark.parametrize("before", ["resume", "_check_finite", "on_train_begin"])
@pytest.mark.parametrize("name", ["simclr", "fixmatch", "scan"])
def test_ctrl_c_outside_of_the_steps_leaves_the_old_state(name, before, monkeypatch):
    estimator = ESTIMATORS[name](random_state=0)
    fresh = vars(estimator).copy()

    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    for known in (fresh, None):
        with monkeypatch.context() as patch:
            patch.setattr(Net, before, interrupted)
            state = vars(estimator).copy()
            with pytest.raises(KeyboardInterrupt):
                estimator.fit(X, Y)
        assert vars(estimator) == state
        if known is fresh:
            assert not hasattr(estimator, "net_")
            estimator.fit(X, Y)
            p = estimator.encoder_(torch.from_numpy(X)).detach()
    assert torch.equal(estimator.encoder_(torch.from_numpy(X)), p)


def test_ctrl_c_as_the_first_epoch_begins(monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("sklabel._core.callbacks.Stage.begin_epoch", interrupted)
    with pytest.warns(UserWarning, match="after 0 of"):
        fitted = ESTIMATORS["simclr"](random_state=0).fit(X)
    assert fitted.interrupted_ and fitted.n_iter_ == 0
    assert np.isfinite(fitted.transform(X)).all()


def test_files_of_a_finished_fit(tmp_path):
    fitted = ESTIMATORS["scan"](random_state=0, checkpoint_dir=tmp_path).fit(X)
    files = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["cluster.pt", "self-label.pt"]
    assert not fitted.interrupted_
    assert all(isinstance(p, Path) for p in tmp_path.iterdir())
