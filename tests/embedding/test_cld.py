"""CLD: the objective of one step, its parts in the history, short batches."""

import numpy as np
import pytest
import torch
from torch import nn

from sklabel.embedding import CLDTransformer
from sklabel.embedding._cld import _CLD
from sklabel.modules import NormLinear, Queue
from tests._golden import cases

X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)


def short(**parameters):
    return CLDTransformer(**{"max_steps": 3, "random_state": 0, **parameters})


def test_objective_golden():
    for case in cases("cld_moco"):
        backbone = nn.Identity()
        backbone.n_features_out = 1
        queue = Queue(*case["queue_initial"].shape).double()
        module = _CLD(
            backbone,
            nn.Identity(),
            1,
            augment=nn.Identity(),
            group=nn.Identity(),
            queue=queue,
            temperature=float(case["temperature_instance"]),
            group_temperature=float(case["temperature_group"]),
            group_weight=float(case["weight"]),
            n_groups=int(case["n_clusters"]),
            n_lloyd=int(case["n_iterations"]),
            decay=0.9,
            output="backbone",
        )
        module.queue.rows.copy_(torch.tensor(case["queue_initial"]))
        q1, q2, z1, z2 = (
            torch.tensor(case[name], requires_grad=True)
            for name in ("q1", "q2", "z1", "z2")
        )
        k = torch.tensor(case["k3"])
        instance, group = module.discriminate(q1, q2, k, z1, z2)
        loss = instance + module.group_weight * group
        loss.backward()
        expected = (case["loss_instance_1"] + case["loss_instance_2"]) / 2
        for found, value in (
            (loss, case["loss"]),
            (instance, expected),
            (group, case["loss_group"]),
        ):
            np.testing.assert_allclose(found.item(), value, rtol=1e-8)
        for name, tensor in (("q1", q1), ("q2", q2), ("z1", z1), ("z2", z2)):
            np.testing.assert_allclose(tensor.grad, case[f"grad_{name}"], 1e-8, 1e-12)
        module.keys = k
        module.after_step()
        np.testing.assert_allclose(queue.rows, case["queue_after"], rtol=1e-8)
        assert int(queue.pointer) == case["pointer"]


def test_the_queue_starts_as_the_authors_have_it():
    fitted = short(queue_size=500, max_steps=1, batch_size=2).fit(X)
    rows = fitted.net_.module_.queue.rows[2:]  # one batch of keys has come in
    bound = (128 / 3) ** -0.5
    assert 0.95 * bound < rows.abs().max() <= bound


def test_parts_of_the_loss_are_in_the_history():
    history = short(max_steps=None, max_epochs=2, group_weight=0.5).fit(X).net_.history
    for epoch in history:
        total = epoch["instance_loss"] + 0.5 * epoch["group_loss"]
        np.testing.assert_allclose(epoch["train_loss"], total, rtol=1e-5)


def test_a_batch_shorter_than_the_groups():
    # 64 rows in batches of 50: the last has 14
    assert np.isfinite(short(batch_size=50, n_groups=50).fit_transform(X)).all()


@pytest.mark.parametrize("side, blur", [(32, 0), (64, 0.5)])
def test_views(side, blur):
    x = np.random.default_rng(0).random((8, 3, side, side), dtype=np.float32)
    fitted = short(n_groups=2, max_steps=1, backbone="resnet8").fit(x)
    view = fitted.net_.module_.augment
    assert (view.crop, view.jitter) == ((0.2, 1), (0.4, 0.4, 0.4, 0.1))
    assert view.blur == blur


def test_heads():
    module = short(norm_head=True).fit(X).net_.module_
    assert isinstance(module.project, NormLinear)
    assert isinstance(module.group, NormLinear)
    assert isinstance(short().fit(X).net_.module_.group, nn.Linear)


def test_every_parameter_counts():
    base = {"max_steps": 6, "batch_size": 32, "n_groups": 8}
    plain = short(**base).fit_transform(X)
    for change in (
        {"n_groups": 5},
        {"temperature": 0.5},
        {"group_temperature": 0.5},
        {"group_weight": 0},
        {"n_lloyd": 1},
        {"queue_size": 16},
        {"ema_decay": 0.5},
        {"norm_head": True},
        {"projection_size": 16},
    ):
        found = short(**{**base, **change}).fit_transform(X)
        assert not np.array_equal(found, plain), change
