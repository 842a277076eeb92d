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


class Views(nn.Module):
    """Three views that can be worked out by hand."""

    shifts = (0.0, 0.4, -0.3)

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.shifts[(self.calls - 1) % 3]


def slow_groups(z, n_groups, n_lloyd):
    """K-means from the first rows on; the labels are those of the last means."""
    centers = z[:n_groups].copy()
    for _ in range(n_lloyd):
        labels = [
            min(range(n_groups), key=lambda k: sum((row - centers[k]) ** 2))
            for row in z
        ]
        for k in range(n_groups):
            own = [row for row, label in zip(z, labels) if label == k]
            centers[k] = np.mean(own, axis=0) if own else 0
    return labels, centers


def cross_entropy(scores, target):
    return np.log(np.exp(scores).sum()) - scores[target]


def test_the_loss_is_the_slow_loop():
    fitted = short(
        augment=Views(),
        temperature=0.3,
        group_temperature=0.4,
        group_weight=0.7,
        n_groups=4,
        n_lloyd=3,
        ema_decay=0.5,
        lr=0.1,
        warmup_epochs=0,
    ).fit(X)
    module = fitted.net_.module_.eval()
    module.augment.calls = 0
    x = torch.from_numpy(X[:12])
    (loss, figures), queue = module.loss(x, None), module.queue.rows
    with torch.no_grad():
        h1, h2 = (module.backbone(x + shift) for shift in Views.shifts[:2])
        q1, q2 = module.project(h1), module.project(h2)
        z1, z2 = module.group(h1), module.group(h2)
        k = module.average(x + Views.shifts[2])
        parts = [nn.functional.normalize(part) for part in (q1, q2, z1, z2, k)]
    q1, q2, z1, z2, k = (part.double().numpy() for part in parts)
    queue = queue.double().numpy()
    (labels1, centers1), (labels2, centers2) = (slow_groups(z, 4, 3) for z in (z1, z2))
    instance = group = 0.0
    for i in range(12):
        for q in (q1, q2):  # the same key and the same queue for both
            scores = np.array([q[i] @ k[i], *(q[i] @ other for other in queue)]) / 0.3
            instance += cross_entropy(scores, 0) / 2 / 12
        # each view among the groups of the other
        group += cross_entropy(centers2 @ z1[i] / 0.4, labels2[i]) / 2 / 12
        group += cross_entropy(centers1 @ z2[i] / 0.4, labels1[i]) / 2 / 12
    np.testing.assert_allclose(figures["instance_loss"], instance, rtol=1e-5)
    np.testing.assert_allclose(figures["group_loss"], group, rtol=1e-5)
    np.testing.assert_allclose(loss.item(), instance + 0.7 * group, rtol=1e-5)


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
