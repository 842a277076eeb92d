"""What all losses promise, and that each of them is tested."""

import ast
from pathlib import Path

import pytest
import torch

from sklabel import losses
from sklabel.losses import (
    confidence_cross_entropy,
    nt_xent,
    pseudo_label,
    scan_head_scores,
    scan_loss,
)
from tests.losses._checks import assert_close


def test_every_public_loss_is_tested():
    tested = {
        alias.name
        for path in Path(__file__).parents[1].rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "sklabel.losses"
        for alias in node.names
    }
    missing = sorted(set(losses.__all__) - tested)
    assert not missing, f"no test imports these from sklabel.losses: {missing}"


def test_losses_leave_their_inputs_alone():
    a, b = torch.randn(2, 5, 4)
    before = a.clone(), b.clone()
    nt_xent(a, b), nt_xent(a, b, 1.0, False), scan_loss(a, b)
    confidence_cross_entropy(a, b, 0.1), pseudo_label(a, b, 0.1)
    scan_head_scores(a.softmax(1)[None], torch.zeros(5, 2, dtype=torch.long))
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


@pytest.mark.gpu
def test_losses_on_the_gpu():
    a, b = torch.randn(2, 33, 7)
    on_gpu = a.cuda(), b.cuda()
    for loss in (nt_xent, scan_loss, confidence_cross_entropy):
        assert_close(loss(*on_gpu).cpu(), loss(a, b).numpy(), rtol=1e-4)
    thresholds = torch.full((7,), 0.3)
    loss, mask = pseudo_label(*on_gpu, thresholds)
    expected, expected_mask = pseudo_label(a, b, thresholds)
    assert_close(loss.cpu(), expected.numpy(), rtol=1e-4)
    assert torch.equal(mask.cpu(), expected_mask)
