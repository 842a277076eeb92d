"""BYOL: the loss of both directions, the average's course, one view each policy."""

import numpy as np
import pytest
import torch
from torch import nn

from sklabel.augment import Contrastive
from sklabel.embedding import BYOLTransformer
from sklabel.embedding._byol import _views
from sklabel.losses import normalized_mse

X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)


def short(**parameters):
    given = {"max_steps": 3, "projection_hidden": 32, "random_state": 0, **parameters}
    return BYOLTransformer(**given)


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


@pytest.mark.parametrize("side, blurs", [(32, (0, 0)), (64, (1, 0.1))])
def test_the_two_views(side, blurs):
    views = _views((3, side, side))
    assert tuple(view.blur for view in views) == blurs
    assert tuple(view.solarize for view in views) == (0, 0.2)
    x = torch.rand(2, 3, side, side)
    for view in views:
        assert view.jitter == (0.4, 0.4, 0.2, 0.1) and view(x).shape == x.shape


def test_the_loss_is_both_directions_of_the_two_views():
    fitted = short(augment=(Times(1.0), Times(2.0))).fit(X)
    module, x = fitted.net_.module_.eval(), torch.from_numpy(X)
    p1, p2 = (module.predict(module.projected(v)) for v in (x, 2 * x))
    t1, t2 = (module.average(v) for v in (x, 2 * x))
    expected = normalized_mse(p1, t2) + normalized_mse(p2, t1)
    torch.testing.assert_close(module.loss(x, None), expected)
    np.testing.assert_allclose(fitted.score(X), -expected.item(), rtol=1e-5)


def test_the_average_moves_less_and_less_until_it_stands():
    moved = {}
    for ramp in (True, False):
        decays = []

        class Spy(BYOLTransformer):
            def _build_module(self, mean, std):
                module = super()._build_module(mean, std)
                after_step = module.after_step

                def spied():
                    online = next(module.parts().parameters()).detach().clone()
                    average = next(module.average.parameters())
                    before = average.detach().clone()
                    after_step()
                    share = (average - before).norm() / (online - before).norm()
                    decays.append(1 - float(share))

                module.after_step = spied
                return module

        Spy(
            ema_decay=0.5,
            ema_ramp=ramp,
            max_steps=4,
            projection_hidden=8,
            warmup_epochs=0,
            random_state=0,
        ).fit(X)
        moved[ramp] = decays
    # 1 - (1 - 0.5) (1 + cos(pi t / 4)) / 2
    expected = [1 - 0.25 * (1 + np.cos(np.pi * t / 4)) for t in range(4)]
    np.testing.assert_allclose(moved[True], expected, atol=1e-3)
    np.testing.assert_allclose(moved[False], [0.5] * 4, atol=1e-3)


def test_heads_are_the_papers():
    module = short(projection_size=7, projection_hidden=9).fit(X).net_.module_
    for head, n_in in ((module.project, 128), (module.predict, 7)):
        kinds = [type(m) for layer in head for m in layer]
        assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert [m.weight.shape for m in (head[0][0], head[1][0])] == [(9, n_in), (7, 9)]
        assert head[1][0].bias is None


def test_views_are_the_papers_and_differ():
    images = np.random.default_rng(0).integers(0, 256, (8, 70, 70, 3), dtype=np.uint8)
    module = short(max_steps=1).fit(images).net_.module_
    first, second = module.augment1, module.augment2
    assert (first.blur, first.solarize) == (1.0, 0.0)
    assert (second.blur, second.solarize) == (0.1, 0.2)
    module = short(max_steps=1, augment=Contrastive(flip=0)).fit(images).net_.module_
    assert module.augment1.flip == module.augment2.flip == 0


def test_a_triple_of_views_is_refused():
    with pytest.raises(ValueError, match="augment=.* pair"):
        short(augment=(None, None, None)).fit(X)
