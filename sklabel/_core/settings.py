"""Settings of a training that are checked before it begins."""

import functools
import inspect
import os
from pathlib import Path

import torch
from torch import nn

from .net import Net

# what an estimator itself gives its nets
_TAKEN = (
    *("criterion", "description", "device", "lr_scales"),
    *("module", "pixel_range", "stage"),
)


def check_folder(folder, name):
    """Raise an error if no files can be written into a folder, which need not exist."""
    if folder is None:
        return
    if not os.fspath(folder):
        raise ValueError(
            f'{name}="" is not a folder: use None for no folder, "." for the '
            "current one."
        )
    there = next(
        p for p in (Path(folder), *Path(folder).absolute().parents) if p.exists()
    )
    if not there.is_dir():
        raise ValueError(
            f"{name}={str(folder)!r} is not a folder, because {str(there)!r} is a "
            "file: give another folder."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"{name}={str(folder)!r} cannot be written to: change the permissions of "
            f"{str(there)!r}, or give another folder."
        )


def check_callable(value, name, what, n_arguments=3):
    """Raise an error if a parameter that is a function cannot be called as it will be.

    ``what``: its arguments, in words.
    """
    if not callable(value):
        return
    shown = repr(value)[:200]
    if isinstance(value, type):
        raise ValueError(
            f"{name}={shown} is a class: give an instance of it, {value.__name__}()."
        )
    called = value.forward if isinstance(value, nn.Module) else value
    try:
        inspect.signature(called).bind(*range(n_arguments))
    except TypeError as error:
        raise ValueError(
            f"{name}={shown} is called with {what}, which it does not accept: {error}."
        ) from None
    except ValueError:  # built in, without a signature
        pass


def watched(augment, name):
    """Return a policy of the user's that raises an error if it gives no batch."""
    if not isinstance(augment, nn.Module):
        augment = _Function(augment)
    augment.register_forward_hook(functools.partial(_check_views, name))
    return augment


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def _check_views(name, policy, args, views):
    x = args[0]
    if not isinstance(views, torch.Tensor):
        found = type(views).__name__
    elif views.ndim != x.ndim or len(views) != len(x) or not views.is_floating_point():
        found = f"{views.dtype} of shape {tuple(views.shape)}"
    else:
        return
    policy = policy.forward if isinstance(policy, _Function) else policy
    raise ValueError(
        f"{name}={policy!r} returns {found}, but it must return floats, one view of "
        f"each row of a batch of shape {tuple(x.shape)}."
    )


def check_net(settings, more):
    """Raise an error if a net cannot be made with these settings.

    ``settings``: parameters of estimators; ``more``: their ``net_params``.
    """
    names = [name for name in more if not isinstance(name, str)]
    if names:
        raise ValueError(f"net_params={more!r} must have texts as keys, not {names}.")
    taken = [name for name in _TAKEN if name in more]
    if taken:
        raise ValueError(
            f"net_params={more!r} cannot set {taken}, which the estimator sets itself."
        )
    error = _failure({**settings, **more})
    if error is None:
        return
    reason = " ".join(f"{error}".split())[:300] or type(error).__name__
    reason = reason.rstrip(".")
    if more and _failure(settings) is None:
        raise ValueError(
            f"net_params={more!r} cannot be given to the skorch net: {reason}."
        )
    if reason.startswith("optimizer="):
        raise ValueError(f"{reason}.")
    raise ValueError(
        f"optimizer={settings['optimizer']!r} cannot be created with "
        f"lr={settings['lr']}: {reason}."
    ) from error


def _failure(settings):
    """Return the error of a net for one number; None: there is none."""
    number = nn.ParameterList([nn.Parameter(torch.zeros(1))])
    try:
        Net(number, **{**settings, "device": "cpu", "checkpoint": None}).initialize()
    except Exception as error:  # of skorch, torch or the user's own function
        return error
    return None
