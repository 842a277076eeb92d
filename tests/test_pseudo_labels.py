"""What corrects pseudo-labels, by hand; weights that had other names are found."""

import pytest
import torch
from torch import nn

from sklabel.modules import (
    ClassThresholds,
    DistributionAlignment,
    FixedThreshold,
    Method,
    NoAlignment,
    PredictedClasses,
)


def test_aligned_predictions_have_the_mean_of_the_labels():
    align = DistributionAlignment(torch.tensor([0.5, 0.5]))
    align.mean_prediction = torch.tensor([0.8, 0.2])
    aligned = align(torch.tensor([[0.8, 0.2]]).log(), 10**6).softmax(1)
    torch.testing.assert_close(aligned, torch.tensor([[0.5, 0.5]]), atol=1e-3, rtol=0)


def test_the_mean_prediction_moves_faster_at_first():
    for step, decay in ((1, 2 / 11), (10**6, 0.999)):
        align = DistributionAlignment(torch.tensor([0.9, 0.1]))
        align(torch.tensor([[0.7, 0.3], [0.9, 0.1]]).log(), step)
        expected = decay * torch.full((2,), 0.5) + (1 - decay) * torch.tensor(
            [0.8, 0.2]
        )
        torch.testing.assert_close(align.mean_prediction, expected)


def test_what_is_off_changes_nothing():
    logits = torch.randn(3, 2)
    assert NoAlignment()(logits, 1) is logits
    threshold = FixedThreshold(0.7)
    threshold.see(torch.arange(3), logits)
    assert threshold() == 0.7


def test_thresholds_follow_what_a_class_has_learned():
    thresholds = ClassThresholds(0.8, n_classes=2, n_rows=11)
    thresholds.confident = torch.tensor([0] * 6 + [1] * 3 + [-1] * 2)
    # FlexMatch, equations 5, 7 and 12: 6 and 3 of at most 6
    torch.testing.assert_close(thresholds(), torch.tensor([0.8, 0.8 * 0.5 / 1.5]))
    thresholds.confident = torch.tensor([0] * 2 + [1] * 1 + [-1] * 8)
    expected = [0.8 * 0.25 / 1.75, 0.8 * 0.125 / 1.875]  # the warm-up, equation 11
    torch.testing.assert_close(thresholds(), torch.tensor(expected))


def test_a_row_keeps_its_last_confident_class():
    thresholds = ClassThresholds(0.8, n_classes=2, n_rows=4, temperature=0.5)
    # 0.88 after the temperature, 0.73 before; and 0.62 after it
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.25, 0.0]])
    thresholds.see(torch.tensor([3, 1, 0]), logits)
    assert thresholds.confident.tolist() == [-1, 1, -1, 0]
    thresholds.see(torch.tensor([3, 1]), torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    assert thresholds.confident.tolist() == [-1, 0, -1, 0]


def test_rows_that_are_never_seen_do_not_count():
    thresholds = ClassThresholds(0.9, n_classes=2, n_rows=10, n_unused=8)
    thresholds.confident[8:] = torch.tensor([0, 1])
    torch.testing.assert_close(thresholds(), torch.full((2,), 0.9))


def test_agreement_with_the_predictions_before():
    predicted = PredictedClasses(4)
    rows = torch.tensor([2, 0])
    assert predicted.update(rows, torch.tensor([1, 0])) == 0  # there were none
    assert predicted.update(rows, torch.tensor([1, 1])) == 0.5
    assert predicted.classes.tolist() == [1, -1, 1, -1]


class _Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))


class _Renamed(Method):
    inner: nn.Module

    renamed = {"old_mean": "inner.mean", "gone": "inner.gone"}


@pytest.mark.parametrize("within", [False, True])
def test_a_weight_under_its_former_name_is_loaded(within):
    module = nn.ModuleDict({"part": _Renamed(_Inner())}) if within else None
    module = module or _Renamed(_Inner())
    prefix = "part." if within else ""
    former = {f"{prefix}old_mean": torch.ones(2), f"{prefix}gone": torch.ones(1)}
    module.load_state_dict(former)
    assert module.state_dict()[f"{prefix}inner.mean"].tolist() == [1, 1]
    module.load_state_dict({f"{prefix}inner.mean": torch.zeros(2)})  # its name now
    assert module.state_dict()[f"{prefix}inner.mean"].tolist() == [0, 0]
    with pytest.raises(RuntimeError, match="unknown"):
        module.load_state_dict({**former, f"{prefix}unknown": torch.ones(1)})
