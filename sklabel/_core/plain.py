"""What a caller may have set otherwise: numbers of numpy, and torch's default dtype."""

from contextlib import contextmanager

import numpy as np
import torch


def plain(value):
    """Return numbers and texts of numpy as Python's own; anything else as it is."""
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


@contextmanager
def plain_parameters(estimator):
    """Give an estimator plain numbers as parameters, and its own ones back afterwards.

    torch takes numpy's numbers at some places and not at others.
    """
    given = estimator.get_params(deep=False)
    changed = {k: new for k, old in given.items() if (new := plain(old)) is not old}
    vars(estimator).update(changed)
    try:
        yield
    finally:
        for name, value in changed.items():
            if vars(estimator)[name] is value:
                vars(estimator)[name] = given[name]


@contextmanager
def float32_by_default():
    """Let torch make float32 where no dtype is given, as our networks are."""
    default = torch.get_default_dtype()
    if default == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
