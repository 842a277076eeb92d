"""Estimators on disk: weights as safetensors, everything else as JSON, no code."""

import functools
import hashlib
import importlib
import json
import os
import types
from pathlib import Path

import joblib
import numpy as np
import torch
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator

from .. import augment

_FORMAT = 1
_PACKAGE = __package__.partition(".")[0]
_PUBLIC = ("embedding", "clustering", "classification", "selection")


def save(estimator, folder):
    """Write ``estimator.json`` and ``weights.safetensors``; the JSON comes last."""
    folder = Path(folder)
    tensors = {}
    encoded = _encode(estimator, tensors, "")
    weights = serialize(tensors)  # save_file would make it private
    description = {
        "format": _FORMAT,
        "weights": hashlib.sha256(weights).hexdigest(),
        "estimator": encoded,
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "weights.partial"
    partial.write_bytes(weights)
    os.replace(partial, folder / "weights.safetensors")
    partial = folder / "estimator.partial"
    partial.write_text(json.dumps(description), encoding="utf-8")
    os.replace(partial, folder / "estimator.json")


def load(folder):
    """Read an estimator that its method ``save`` wrote.

    Parameters
    ----------
    folder : str or Path

    Returns
    -------
    estimator : fitted estimator
        On the device its ``device`` parameter means here.

    Raises
    ------
    ValueError
        If the folder holds no estimator, or one that this version cannot read.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / "estimator.json").read_text("utf-8"))
        weights = (folder / "weights.safetensors").read_bytes()
    except FileNotFoundError as error:
        raise ValueError(
            f"{str(folder)!r} holds no saved estimator ({error.filename} is missing)."
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(folder)!r} is damaged: {error}") from error
    found = description.get("format") if isinstance(description, dict) else None
    if found != _FORMAT:
        raise ValueError(
            f"{str(folder)!r} has format {found!r}; this version reads format "
            f"{_FORMAT}."
        )
    if description.get("weights") != hashlib.sha256(weights).hexdigest():
        raise ValueError(
            f"{str(folder)!r} is damaged: weights.safetensors is not the file that "
            "estimator.json was written with. Save the estimator again."
        )
    try:
        return _decode(description["estimator"], deserialize(weights))
    except Exception as error:  # what stands in the file may be anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{str(folder)!r} holds what this version cannot read ({reason}). Save the "
            "estimator again."
        ) from error


def fingerprint(estimator, sampler, origin=None, identity=()):
    """Return a short name for one fit: same parameters, data and start, same name.

    ``origin``: name of the weights that it goes on from. ``identity``: what else makes
    it another one.
    """
    samples = sampler.samples
    parameters = estimator.get_params(deep=False)
    for name in ("checkpoint_dir", "verbose", "warm_start"):
        parameters.pop(name, None)
    n = len(samples)
    rows = np.unique(np.linspace(0, n - 1, min(n, 1024)).astype(int))
    paths = getattr(samples.source, "paths", None)
    data = joblib.hash(samples.source[rows] if paths is None else list(paths))
    key = [type(estimator).__name__, _plain(parameters), n, samples.sample_shape, data]
    key += [origin, _plain(getattr(estimator, "embedder_", None))]
    key += [joblib.hash(part) for part in (*sampler.identity, *identity)]
    return joblib.hash(repr(key))[:12]


def weights_name(module):
    """Return a short name for a module's weights."""
    return joblib.hash(_plain(module))


def _plain(value):
    """Return something whose repr is the same in every process."""
    if isinstance(value, dict):
        return sorted((name, _plain(part)) for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, torch.nn.Module):
        weights = {
            k: joblib.hash(v.cpu().numpy()) for k, v in value.state_dict().items()
        }
        attributes = getattr(value, "get_params", dict)()
        return [type(value).__name__, repr(value), _plain(attributes), _plain(weights)]
    if isinstance(value, BaseEstimator):
        net = getattr(value, "net_", None)
        weights = net.module_ if net is not None else getattr(value, "encoder_", None)
        return [
            type(value).__name__,
            _plain(value.get_params(deep=False)),
            _plain(weights),
        ]
    if isinstance(value, np.ndarray):
        return joblib.hash(value)
    if isinstance(value, functools.partial):
        return ["partial", *map(_plain, (value.func, value.args, value.keywords))]
    if isinstance(value, types.FunctionType):
        # lambdas share one name
        code, inner = value.__code__, [c.cell_contents for c in value.__closure__ or ()]
        constants = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
        parts = [code.co_code, code.co_names, constants, value.__defaults__, inner]
        return [value.__qualname__, *map(_plain, parts)]
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return repr(value)


def _encode(value, tensors, key):
    """Return JSON for a value; arrays go to ``tensors`` under a key of their own."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biufU":
        return {"scalar": value.item(), "dtype": value.dtype.str}
    if isinstance(value, (list, tuple)):
        parts = [_encode(part, tensors, f"{key}.{i}") for i, part in enumerate(value)]
        return {type(value).__name__: parts}
    if isinstance(value, dict):
        return {
            "dict": [[k, _encode(v, tensors, f"{key}.{k}")] for k, v in value.items()]
        }
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        parts = [_encode(part, tensors, key) for part in value.ravel().tolist()]
        dtype = value.dtype.str
        return {"objects": parts, "shape": list(value.shape), "dtype": dtype}
    if isinstance(value, np.ndarray):
        tensors[key] = torch.from_numpy(np.ascontiguousarray(value))
        return {"array": key}
    if isinstance(value, (torch.device, Path)):
        return str(value)
    if type(value) in _policies().values():
        parameters = _encode(value.get_params(deep=False), tensors, key)
        return {"augment": type(value).__name__, "parameters": parameters}
    if isinstance(value, FrozenEstimator):
        return {"frozen": _encode(value.estimator, tensors, key)}
    if type(value).__module__.split(".")[0] == _PACKAGE:
        return _encode_estimator(value, tensors, key)
    raise TypeError(
        f"{key.lstrip('.') or 'the estimator'} is a {type(value).__name__}, which save "
        "cannot write without executable code: use joblib.dump for this estimator."
    )


def _policies():
    """Return the public policies of `augment` by name."""
    found = {name: getattr(augment, name) for name in augment.__all__}
    return {name: value for name, value in found.items() if isinstance(value, type)}


def _encode_estimator(estimator, tensors, key):
    parameters = estimator.get_params(deep=False)
    fitted = {
        name: value
        for name, value in vars(estimator).items()
        if name not in parameters and name != "net_"
    }
    described = {
        "class": [type(estimator).__module__.split(".")[1], type(estimator).__name__],
        "parameters": _encode(parameters, tensors, f"{key}.parameters"),
        "fitted": _encode(fitted, tensors, f"{key}.fitted"),
    }
    if hasattr(estimator, "net_"):
        net = estimator.net_
        for name, tensor in net.module_.state_dict().items():
            tensors[f"{key}.net.{name}"] = tensor.detach().cpu().contiguous().clone()
        history = [{k: v for k, v in e.items() if k != "batches"} for e in net.history]
        described["history"] = _encode(history, tensors, f"{key}.history")
    return {"estimator": described, "key": key}


def _decode(value, tensors):
    if not isinstance(value, dict):
        return value
    if "scalar" in value:
        return np.dtype(value["dtype"]).type(value["scalar"])
    for kind in (list, tuple):
        if kind.__name__ in value:
            return kind(_decode(part, tensors) for part in value[kind.__name__])
    if "dict" in value:
        return {name: _decode(part, tensors) for name, part in value["dict"]}
    if "objects" in value:
        flat = np.empty(len(value["objects"]), dtype=value["dtype"])
        flat[:] = [_decode(part, tensors) for part in value["objects"]]
        return flat.reshape(value["shape"])
    if "array" in value:
        return tensors[value["array"]].numpy()
    if "augment" in value:
        policies = _policies()
        if value["augment"] not in policies:
            raise ValueError(f"augment.{value['augment']} is not a policy.")
        return policies[value["augment"]](**_decode(value["parameters"], tensors))
    if "frozen" in value:
        return FrozenEstimator(_decode(value["frozen"], tensors))
    return _decode_estimator(value["estimator"], tensors, value["key"])


def _decode_estimator(described, tensors, key):
    folder, name = described["class"]
    if folder not in _PUBLIC:
        raise ValueError(f"{folder}.{name} is not an estimator of this package.")
    public = importlib.import_module(f"{_PACKAGE}.{folder}")
    if name not in public.__all__:
        raise ValueError(f"{folder}.{name} is not known to this version.")
    estimator = getattr(public, name)(**_decode(described["parameters"], tensors))
    vars(estimator).update(_decode(described["fitted"], tensors))
    if "history" in described:
        prefix = f"{key}.net."
        weights = {
            k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)
        }
        estimator._restore_net(weights, _decode(described["history"], tensors))
    return estimator
