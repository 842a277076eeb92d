"""Arguments and results: a sentence for each that is wrong."""

import math
from numbers import Integral, Real

import numpy as np
import torch


def check_option(options, **given):
    """Raise an error for what is none of some texts, or of None, True and False.

    Parameters
    ----------
    options : iterable
    **given : object
        Values by the names of their parameters.
    """
    options = list(options)
    for name, value in given.items():
        if isinstance(value, str) and value in options:
            continue
        if not any(value is option for option in options):
            known = ", ".join(
                f'"{option}"' if isinstance(option, str) else repr(option)
                for option in options
            )
            raise ValueError(f"{name}={value!r} is not one of {known}.")


def check_number(low=-math.inf, high=math.inf, *, above=False, whole=False, **given):
    """Raise an error for what is no finite number from ``low`` to ``high``.

    Parameters
    ----------
    low, high : float
    above : bool, default=False
        Whether it must be above ``low``.
    whole : bool, default=False
        Whether it must be an integer.
    **given : object
        Values by the names of their parameters; tensors and arrays are left to torch.
    """
    kind = Integral if whole else Real
    for name, value in given.items():
        if isinstance(value, kind):
            fits = math.isfinite(value) and low <= value <= high
            if fits and not (above and value == low):
                continue
        elif getattr(value, "ndim", None) is not None and not isinstance(value, Real):
            continue
        what = "an integer" if whole else "a finite number"
        if high < math.inf:
            what += f" {'above' if above else 'from'} {low}"
            what += f" and at most {high}" if above else f" to {high}"
        elif low > -math.inf:
            what += f" {'above' if above else 'of at least'} {low}"
        raise ValueError(f"{name}={value!r} must be {what}.")


def check_pair(low=-math.inf, high=math.inf, *, whole=False, above=False, **given):
    """Raise an error for what are no two numbers from ``low`` to ``high``, in order.

    Parameters are those of `check_number`.
    """
    for name, value in given.items():
        numbers = list(value) if isinstance(value, (tuple, list)) else []
        if len(numbers) != 2:
            raise ValueError(f"{name}={value!r} must be a pair of numbers.")
        for number in numbers:
            try:
                check_number(low, high, whole=whole, above=above, **{name: number})
            except ValueError as error:
                what = str(error).partition(" must be ")[2].rstrip(".")
                raise ValueError(f"{name}={value!r} must hold {what} twice.") from None


def check_finite(values, problem):
    """Raise an error that tells the problem if numbers are NaN or infinite.

    Parameters
    ----------
    values : ndarray or Tensor
    problem : str
        What has made them so, and what to do.
    """
    is_tensor = isinstance(values, torch.Tensor)
    finite = values.isfinite() if is_tensor else np.isfinite(np.asarray(values))
    if not finite.all():
        raise ValueError(problem)
