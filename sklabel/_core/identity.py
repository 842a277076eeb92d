"""Names of trainings: the same parameters, data and start give the same name."""

import functools
import hashlib
import math
import os
import types
import weakref
from numbers import Integral, Real

import joblib
import numpy as np
import torch
from sklearn.base import BaseEstimator

from .freezing import frozen_by_user

# of the data of Samples
_digests: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def fingerprint(estimator, sampler, origin=None, identity=()):
    """Return a short name for one fit: same parameters, data and start, same name.

    ``origin``: name of the weights that it goes on from. ``identity``: what else makes
    it another one.
    """
    samples = sampler.samples
    parameters = _parameters(estimator)
    parameters.pop("warm_start", None)
    key = [type(estimator).__name__, parameters, origin]
    key += [getattr(estimator, "embedder_", None)]
    key += [len(samples), samples.sample_shape, samples.channels_last, samples.bad]
    if samples not in _digests:
        _digests[samples] = _data_digest(samples.source)
    key += [_digests[samples], *sampler.identity, *identity]
    return digest(key)[:12]


def weights_name(module):
    """Return a short name for a module's weights."""
    return digest(_weights(module))


def digest(value):
    """Return a hash of a value's state, the same in every process."""
    text = repr(_state(value))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _parameters(estimator):
    """Return the parameters that a training depends on."""
    parameters = dict(estimator.get_params(deep=False))
    for name in ("cache_dir", "checkpoint_dir", "verbose"):
        parameters.pop(name, None)
    if parameters.get("accumulate") == 1:  # as if it were not there: older checkpoints
        del parameters["accumulate"]
    return parameters


def _data_digest(source):
    """Return a hash of all rows; of image files their paths, sizes and times."""
    if getattr(source, "is_encoded", False):
        return digest(source.states())
    found = hashlib.sha256(repr((str(source.dtype), source.shape)).encode())
    n_bytes = source.dtype.itemsize * math.prod(source.shape[1:])
    step = max(1, 2**24 // max(1, n_bytes))
    for start in range(0, len(source), step):
        found.update(np.ascontiguousarray(source[start : start + step]))
    return found.hexdigest()


# of every module, and of no consequence for what it does in training
_OF_MODULES = {*vars(torch.nn.Module()), "locked", "kept_frozen"}
# times, and who is told of the training
_NOT_LEARNED = {"cv_results_", "refit_time_", "_skl_callbacks"}


def _state(value, above=()):
    """Return lists, texts and numbers, whose repr is the same in every process."""
    if any(value is other for other in above):
        return "circle"
    inner = functools.partial(_state, above=(*above, value))
    if value is None or isinstance(value, (bytes, bool)):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, dict):
        parts = [[inner(name), inner(part)] for name, part in value.items()]
        return ["dict", *sorted(parts, key=repr)]
    if isinstance(value, (list, tuple)):
        return [inner(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return ["set", *sorted((inner(part) for part in value), key=repr)]
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return ["array", value.shape, inner(value.ravel().tolist())]
        return ["array", value.dtype.str, value.shape, _data_of(value)]
    if torch.nn.parameter.is_lazy(value):
        return ["lazy", str(value.dtype)]
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return ["tensor", str(value.dtype), tuple(value.shape), _data_of(array)]
    if isinstance(value, np.random.RandomState):
        return ["random", inner(value.get_state(legacy=False))]
    if isinstance(value, np.random.Generator):
        return ["random", inner(value.bit_generator.state)]
    if isinstance(value, torch.Generator):
        return ["random", inner(value.get_state())]
    if isinstance(value, (torch.dtype, torch.device, os.PathLike)):
        return str(value)
    if isinstance(value, functools.partial):
        return ["partial", *map(inner, (value.func, value.args, value.keywords))]
    if isinstance(value, types.FunctionType):
        return ["function", *_function_state(value, inner)]
    if isinstance(value, types.MethodType):
        return ["method", inner(value.__func__), inner(value.__self__)]
    if isinstance(value, (type, types.BuiltinFunctionType)):
        return f"{value.__module__}.{value.__qualname__}"
    return [f"{type(value).__module__}.{type(value).__qualname__}"] + (
        _object_state(value, inner)
    )


def _data_of(array):
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _function_state(function, inner):
    """Return what tells a function from another one; lambdas share one name."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    parts = [function.__qualname__, function.__defaults__, function.__kwdefaults__]
    parts += [cells, _code_state(function.__code__)]
    # numbers and texts that it takes from its file
    names = sorted(set(function.__code__.co_names) & set(function.__globals__))
    taken = [(name, function.__globals__[name]) for name in names]
    parts += [pair for pair in taken if isinstance(pair[1], (Real, str))]
    return map(inner, parts)


def _code_state(code):
    constants = [
        _code_state(c) if isinstance(c, types.CodeType) else c for c in code.co_consts
    ]
    return [code.co_code, code.co_names, constants]


def _object_state(value, inner):
    if isinstance(value, torch.nn.Module):
        own = {k: v for k, v in vars(value).items() if k not in _OF_MODULES}
        parts = [own, value._parameters, value._buffers, list(value._modules.items())]
        frozen = frozen_by_user(value)
        parts += [frozen] if frozen else []
        hooks = value._forward_pre_hooks, value._forward_hooks
        return [inner(part) for part in (*parts, *(list(h.values()) for h in hooks))]
    if isinstance(value, BaseEstimator):
        parameters = _parameters(value)
        net = getattr(value, "net_", None)
        if net is not None:
            return [inner(parameters), inner(_weights(net.module_))]
        hidden = {*value.get_params(deep=False), *_NOT_LEARNED}
        learned = {k: v for k, v in vars(value).items() if k not in hidden}
        return [inner(parameters), inner(learned)]
    if hasattr(value, "get_params"):  # of skorch; it remembers the training
        return [inner(value.get_params(deep=False))]
    if hasattr(value, "__dict__"):
        return [inner(vars(value))]
    try:
        return [joblib.hash(value)]
    except Exception:  # such as a lock: it has no state that could be compared
        return []


def _weights(module):
    """Return what a trained network has learned, and what it is."""
    attributes = getattr(module, "get_params", dict)()
    state = [type(module).__name__, repr(module), attributes, module.state_dict()]
    # what the user has frozen is not trained on from here
    parts = [(name, frozen_by_user(part)) for name, part in module.named_modules()]
    frozen = [pair for pair in parts if pair[1]]
    return [*state, frozen] if frozen else state
