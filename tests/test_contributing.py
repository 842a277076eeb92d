"""The files that the contributing page tells its reader to save do what it says."""

import argparse
import re
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest

from tests.cli._running import write_images

PAGE = Path(__file__).parents[1] / "docs/contributing.rst"


@pytest.fixture
def saved(monkeypatch):
    """Return a function that loads the block to be saved as a file, as a module."""
    if not PAGE.exists():
        pytest.skip("no documentation beside the tests")
    text = PAGE.read_text(encoding="utf-8")

    def load(path):
        told = re.search(
            rf"as `{path}`:\n\n\.\. code-block:: python\n\n((?:    .*\n|\n)+)",
            text,
        )
        name = path.removesuffix(".py").replace("/", ".")
        module = types.ModuleType(name)
        module.__package__ = name.rpartition(".")[0]
        monkeypatch.setitem(sys.modules, name, module)  # pickle looks for it here
        exec(textwrap.dedent(told[1]), vars(module))
        return module

    return load


def test_the_selector_chooses_the_medoids_of_groups(saved):
    cls = saved("sklabel/selection/_medoid.py").MedoidSelector
    X = np.repeat(np.eye(3, dtype=np.float32) * 9, [3, 7, 5], axis=0)
    X[[1, 4, 11], 0] += 0.5  # not the medoids
    selector = cls(3, random_state=0).fit(X)
    assert selector.sample_indices_.tolist() == [3, 10, 0]
    y = np.where(np.arange(15) < 3, 1, -1)
    assert cls(2, random_state=0).fit(X, y).sample_indices_.tolist() == [3, 10]


@pytest.mark.parametrize("n_samples", [1, 4, 12])
def test_the_selector_chooses_among_equal_rows(saved, n_samples):
    cls = saved("sklabel/selection/_medoid.py").MedoidSelector
    X = np.full((12, 3), 2.5, dtype=np.float32)
    chosen = cls(n_samples, random_state=0).fit_select(X)
    assert len(set(chosen.tolist())) == n_samples


def test_the_command_counts(saved, tmp_path, capsys):
    count = saved("sklabel/cli/count.py")
    parser = argparse.ArgumentParser()
    count.add_parser(parser.add_subparsers())
    args = parser.parse_args(["count", str(write_images(tmp_path, n=3))])
    args.run(args)
    assert capsys.readouterr().out.startswith("3 images")
