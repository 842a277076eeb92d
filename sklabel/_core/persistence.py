"""Estimators on disk: weights as safetensors, everything else as JSON, no code."""

import hashlib
import importlib
import inspect
import json
import math
import os
import re
from contextlib import suppress
from contextvars import ContextVar
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from torch.utils._python_dispatch import TorchDispatchMode

from .. import augment
from .files import (
    explained,
    read_regular,
    remove_abandoned,
    remove_partial,
    replacing,
    sync_folder,
)
from .label_texts import ClassName

_FORMAT = 2
_FORMATS = (1, _FORMAT)  # 1: the weights have the same name in every folder
_PACKAGE = __package__.partition(".")[0]
_PUBLIC = ("embedding", "clustering", "classification", "selection", "active_learning")
_MOST_JSON = 2**27  # bytes
_MOST_VALUES = 2**27  # of one sample
# parameters that mean the machine of the user, not the model: a file does not set them
_OF_THE_MACHINE = frozenset(
    "accumulate cache_dir checkpoint_dir device net_params oracle verbose".split()
)
# names of models that are fetched, or read from another folder
_EXTERNAL = re.compile(r"(?:\w+/)?(?:hf[-_]hub|local[-_]dir):", re.ASCII)
_local_only = ContextVar("local_only", default=False)


def save(estimator, folder, written_by=None):
    """Write the weights under the name of their hash, then ``estimator.json``.

    The renaming of ``estimator.json`` replaces an older model; its weights are removed
    afterwards. Killed at any moment, one of the two models can be loaded.
    """
    folder = Path(folder)
    tensors = {}
    encoded = _encode(estimator, tensors, "")
    weights = serialize(tensors)
    checksum = hashlib.sha256(weights).hexdigest()
    description = {"format": _FORMAT, "weights": checksum, "estimator": encoded}
    if written_by is not None:  # by whom, if not by a person's own save
        description["written_by"] = written_by
    text = json.dumps(description).encode()
    if len(text) > _MOST_JSON:
        raise ValueError(
            f"The estimator has {len(text):,} bytes besides its arrays, but load reads "
            f"at most {_MOST_JSON:,}: use joblib.dump for it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    before = _weights_named_in(folder)
    with replacing(folder / _weights_file(_FORMAT, checksum)) as file:
        file.write(weights)
    after = _weights_file(_FORMAT, checksum)
    try:
        with replacing(folder / "estimator.json") as file:
            file.write(text)
    except BaseException:  # such as a full disk: no model needs these weights
        if _weights_named_in(folder) != after:
            with suppress(OSError):
                (folder / after).unlink()
        raise
    if before not in (None, after):
        with suppress(OSError):
            (folder / before).unlink()
    # what a killed process has left; another one may be saving at this moment
    remove_abandoned(folder, r"weights-[0-9a-f]{12}\.safetensors", keep=after)
    remove_partial(folder, r"weights-[0-9a-f]{12}\.safetensors")
    sync_folder(folder)


def _weights_file(version, checksum):
    if version == 1:
        return "weights.safetensors"
    return f"weights-{checksum[:12]}.safetensors"


def _weights_named_in(folder):
    """Return the name of the weights of the model that stands in a folder, or None."""
    try:
        return _weights_file(*_described(folder, allow_external=True)[:2])
    except (OSError, ValueError):
        return None


def load(folder, *, allow_external=False):
    """Read an estimator that its method ``save`` wrote.

    Nothing of the folder is executed, nothing is fetched from a network, and nothing
    outside the folder is read: it may come from somebody you do not know.

    Parameters
    ----------
    folder : str or Path
    allow_external : bool, default=False
        Whether the model may need what lies outside the folder: ``hf-hub:`` and
        ``local-dir:`` names of open_clip, models whose text tower is described on a
        hub, and files of the folder that are links to elsewhere. Allow it to models
        of people you trust only.

    Returns
    -------
    estimator : fitted estimator
        ``device``, ``verbose``, ``accumulate``, ``checkpoint_dir``, ``cache_dir`` and
        ``net_params`` have their defaults, whatever they were where it was saved.

    Raises
    ------
    ValueError
        If the folder holds no estimator, one that this version cannot read, or one that
        needs ``allow_external``.
    TypeError
        If ``folder`` is neither text nor a path.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(
            f"folder={folder!r:.200} is a {type(folder).__name__}: give the path of a "
            "folder that save wrote."
        )
    folder = Path(folder)
    try:
        for _ in range(3):  # another process may be replacing the model
            version, checksum, description = _described(folder, allow_external)
            try:
                name = _weights_file(version, checksum)
                weights = _read(folder, name, allow_external)
                break
            except FileNotFoundError as error:
                missing = error
        else:
            raise missing
    except FileNotFoundError as error:
        raise ValueError(
            f"{str(folder)!r} holds no saved estimator ({error.filename} is missing)."
        ) from None
    except _Refused as error:
        raise ValueError(f"{str(folder)!r} is refused: {error}") from None
    except PermissionError as error:
        raise ValueError(explained(error)) from error
    except (OSError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{str(folder)!r} is damaged: {reason}") from error
    if checksum != hashlib.sha256(weights).hexdigest():
        raise ValueError(
            f"{str(folder)!r} is damaged: {name} and estimator.json were not written "
            "together. Save the estimator again."
        )
    before = _local_only.set(not allow_external)
    try:
        found = _decode(description["estimator"], deserialize(weights))
        # a loop of active learning has none before it is taught
        if not _is_estimator(found) or not {"net_", "pending_"} & set(vars(found)):
            raise ValueError(f"a {type(found).__name__} is not a fitted estimator")
        return found
    except Exception as error:  # what stands in the file may be anything
        refused = _refusal(error)
        if refused is not None:
            raise ValueError(f"{str(folder)!r} is refused: {refused}") from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{str(folder)!r} cannot be read by this version ({reason[:1000]}). Save "
            "the estimator again."
        ) from error
    finally:
        _local_only.reset(before)


def _read(folder, name, allow_external, limit=None):
    path = folder / name
    outside = os.path.dirname(os.path.realpath(path)) != os.path.realpath(folder)
    if outside and not allow_external:
        raise _Refused(f"{name} is a link to a file outside of it. {_ALLOW}")
    return read_regular(path, limit)


def _described(folder, allow_external):
    """Return format, checksum of the weights, and all that stands in the JSON."""
    text = _read(folder, "estimator.json", allow_external, _MOST_JSON)
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("estimator.json is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("estimator.json holds no description of an estimator")
    version, checksum = found.get("format"), found.get("weights")
    if version not in _FORMATS:
        raise ValueError(
            f"estimator.json has format {version!r}; this version reads "
            f"{' and '.join(map(str, _FORMATS))}"
        )
    if not isinstance(checksum, str) or not re.fullmatch("[0-9a-f]{64}", checksum):
        raise ValueError("estimator.json does not name its weights")
    return version, checksum, found


# -- what lies outside of the folder

_ALLOW = "If you trust its author: sklabel.load(folder, allow_external=True)."


class _Refused(ValueError):
    """The folder needs what lies outside of it."""


def _refusal(error):
    """Return the refusal that an error, or what it came from, is."""
    while error is not None and not isinstance(error, _Refused):
        error = error.__cause__ or error.__context__
    return error


def refuse_external(what):
    """Raise an error if a model is being loaded that must lie within its folder.

    Called by those who are about to fetch or read something else.
    """
    if _local_only.get():
        raise _Refused(f"{what} would be downloaded, or read from elsewhere. {_ALLOW}")


def is_external(name):
    """Return whether the name of a model says that it is fetched or lies elsewhere."""
    return isinstance(name, str) and _EXTERNAL.match(name) is not None


# -- to JSON


def _encode(value, tensors, key):
    """Return JSON for a value; arrays go to ``tensors`` under a key of their own."""
    if isinstance(value, ClassName):
        return {"class_name": str(value)}
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
        tensors[key] = torch.from_numpy(np.ascontiguousarray(value)).clone()
        return {"array": key}
    if isinstance(value, (torch.device, Path)):
        return str(value)
    if type(value) in _policies().values():
        parameters = _encode(value.get_params(deep=False), tensors, key)
        return {"augment": type(value).__name__, "parameters": parameters}
    if isinstance(value, np.random.RandomState):
        _, numbers, *rest = value.get_state()
        return {"random_state": [numbers.tolist(), *rest]}
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
    given = estimator.get_params(deep=False)
    parameters = {k: v for k, v in given.items() if k not in _OF_THE_MACHINE}
    # a frozen embedder is what fit has set, too: its weights are written once
    shared = [
        k
        for k, v in parameters.items()
        if f"{k}_" in vars(estimator) and _are_same_frozen(v, vars(estimator)[f"{k}_"])
    ]
    for name in shared:
        del parameters[name]
    fitted = {}
    for name, value in vars(estimator).items():
        if name in given or name in ("net_", *_NOT_KEPT):
            continue
        if name.startswith("_") and name not in _FITTED:
            raise TypeError(f"{name} has no place in a saved estimator.")
        if _may_be_fitted(type(estimator), name):  # not what a user has added
            fitted[name] = value
    described = {
        "class": [type(estimator).__module__.split(".")[1], type(estimator).__name__],
        "parameters": _encode(parameters, tensors, f"{key}.parameters"),
        "fitted": _encode(fitted, tensors, f"{key}.fitted"),
    }
    if shared:
        described["as_fitted"] = shared
    if hasattr(estimator, "net_"):
        net = estimator.net_
        for name, tensor in net.module_.state_dict().items():
            tensors[f"{key}.net.{name}"] = tensor.detach().cpu().contiguous().clone()
        history = [{k: v for k, v in e.items() if k != "batches"} for e in net.history]
        described["history"] = _encode(history, tensors, f"{key}.history")
        other = _set_since(estimator)
        if other:
            described["built_with"] = _encode(other, tensors, f"{key}.built_with")
    return {"estimator": described, "key": key}


def _set_since(estimator):
    """Return the values in ``fit`` of parameters that were set to others since."""
    made = getattr(estimator, "_built_with", {})
    if not made:
        return {}
    changed = set(estimator._changed_parameters(estimator._made_with()))
    changed -= _OF_THE_MACHINE
    return {k: made[k][0] for k in changed if made[k][0] is not getattr(estimator, k)}


# -- what fit sets: the names that a file may set, and what they must be


def _is_count(value):
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 0


def _is_number(value):
    return isinstance(value, Real) and math.isfinite(value)


def _is_flag(value):
    return isinstance(value, (bool, np.bool_))


def _is_shape(value):
    return (
        isinstance(value, tuple)
        and 1 <= len(value) <= 3
        and all(_is_count(n) and n > 0 for n in value)
        and math.prod(map(int, value)) <= _MOST_VALUES
    )


def _is_range(value):
    return value is None or (
        isinstance(value, tuple)
        and len(value) == 2
        and all(map(_is_number, value))
        and value[0] < value[1]
    )


def _are_sizes(value):
    if not isinstance(value, tuple):
        return _is_count(value) and 0 < value <= _MOST_VALUES
    return all(map(_are_sizes, value))


def _is_array(value):
    return isinstance(value, np.ndarray)


def _is_vector(value):
    return _is_array(value) and value.ndim == 1


def _are_texts(value):
    return isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)


def _are_origins(value):
    return isinstance(value, tuple) and all(
        name is None or isinstance(name, str) for name in value
    )


def _is_output(value):
    kinds = ("default", "pandas", "polars", None)
    return (
        isinstance(value, dict)
        and set(value) <= {"transform"}
        and all(kind in kinds for kind in value.values())
    )


def _is_estimator(value):
    return isinstance(value, BaseEstimator)


def _are_estimators(value):
    parts = value if isinstance(value, list) else [value]
    return all(map(_is_estimator, parts))


def _are_same_frozen(given, fitted):
    """Return whether what ``fit`` has set is a frozen parameter, or a list of them."""
    if isinstance(given, list) and isinstance(fitted, list):
        pairs = zip(given, fitted, strict=False)
        return len(given) == len(fitted) and all(
            _are_same_frozen(*pair) for pair in pairs
        )
    return isinstance(given, FrozenEstimator) and given is fitted


# All private names that are kept, and the public ones on which more depends. Any other
# public name ends in an underscore and may be anything plain.
_FITTED = {
    "_channels_last": _is_flag,
    "_distilled": _is_flag,
    "_for_rest": lambda value: value is None or isinstance(value, dict),
    "_framed": _is_flag,
    "_fresh": _is_flag,
    "_held_seed": lambda value: value is None or _is_count(value),
    "_n_cached": _is_count,
    "_names": _are_texts,
    "_network": _is_count,
    "_origins": _are_origins,
    "_pair_names": _are_texts,
    "_pixel_range": _is_range,
    "_rng": lambda value: isinstance(value, np.random.RandomState),
    "_row_shape": _is_shape,
    "_seconds": _is_number,
    "_sizes": _are_sizes,
    "_sklearn_output_config": _is_output,
    "_unfinished": _is_flag,
    "_value_range": _is_range,
    "calibration_temperature_": lambda value: _is_number(value) and value > 0,
    "center_labels_": _is_vector,
    "class_embedding_": _is_array,
    "classes_": lambda value: _is_vector(value) and len(value) > 0,
    "cluster_centers_": _is_array,
    "confidence_": _is_array,
    "embedder_": _are_estimators,
    "feature_names_in_": _is_vector,
    "interrupted_": _is_flag,
    "labels_": _is_array,
    "n_clusters_": lambda value: _is_count(value) and value > 0,
    "n_features_in_": lambda value: _is_count(value) and value > 0,
    "n_iter_": _is_count,
    "pending_": _is_vector,
    "refused_": _is_vector,
    "sample_indices_": _is_vector,
    "sample_shape_": _is_shape,
    "transduction_": _is_vector,
    "whitening_components_": _is_array,
    "whitening_mean_": _is_vector,
}
# of scikit-learn, and what only a fit in progress needs
_NOT_KEPT = (
    *("_metadata_request", "_skl_callbacks"),
    *("_before", "_built_with", "_changed", "_continued", "_earlier_epochs"),
    *("_goes_on", "_task"),
)
_PUBLIC_NAME = re.compile(r"[A-Za-z]\w*[A-Za-z0-9]_|[A-Za-z]_", re.ASCII)


def _may_be_fitted(cls, name):
    """Return whether an attribute may be what ``fit`` of a class has set."""
    if name.startswith("_"):
        return name in _FITTED
    own = inspect.getattr_static(cls, name, None)
    return (
        _PUBLIC_NAME.fullmatch(name) is not None
        and name != "net_"
        and not hasattr(own, "__get__")  # a method or a property
    )


def _is_plain(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    kinds = (bool, int, float, str, np.generic, np.ndarray, BaseEstimator)
    return value is None or isinstance(value, kinds)


def _check_fitted(estimator, fitted):
    """Raise an error if a file sets what ``fit`` of an estimator does not set."""
    for name, value in fitted.items():
        where = f"{type(estimator).__name__}.{name}"
        if not isinstance(name, str) or not _may_be_fitted(type(estimator), name):
            raise ValueError(f"{where} is not what fit sets")
        if not _FITTED.get(name, _is_plain)(value):
            raise ValueError(f"{where} cannot be {str(value)[:80]!r}")


# -- from JSON


def _decode(value, tensors):
    if not isinstance(value, dict):
        return value
    if "class_name" in value:
        return ClassName(value["class_name"])
    if "random_state" in value:
        numbers, *rest = value["random_state"]
        random = np.random.RandomState()
        random.set_state(("MT19937", np.array(numbers, np.uint32), *rest))
        return random
    if "scalar" in value:
        return _decode_scalar(value["scalar"], value["dtype"])
    for kind in (list, tuple):
        if kind.__name__ in value:
            return kind(_decode(part, tensors) for part in value[kind.__name__])
    if "dict" in value:
        return {name: _decode(part, tensors) for name, part in value["dict"]}
    if "objects" in value:
        parts = [_decode(part, tensors) for part in value["objects"]]
        flat = np.empty(len(parts), dtype=_checked_dtype(value["dtype"], parts))
        flat[:] = parts
        return flat.reshape(value["shape"])
    if "array" in value:
        return tensors[value["array"]].numpy()
    if "augment" in value:
        policies = _policies()
        if value["augment"] not in policies:
            raise ValueError(f"augment.{value['augment']} is not a policy.")
        return policies[value["augment"]](**_decode(value["parameters"], tensors))
    if "frozen" in value:
        frozen = _decode(value["frozen"], tensors)
        if not _is_estimator(frozen):
            raise ValueError("only an estimator can be frozen")
        return FrozenEstimator(frozen)
    return _decode_estimator(value["estimator"], tensors, value["key"])


def _decode_scalar(value, dtype):
    dtype = np.dtype(dtype)
    if dtype.kind not in "biufU" or isinstance(value, (dict, list)):
        raise ValueError(f"no number or text can be of {dtype}")
    return dtype.type(value)


def _checked_dtype(dtype, parts):
    """Return the dtype of an array of objects or texts, if it is not far too wide."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "OU":
        raise ValueError(f"no array of objects can be of {dtype}")
    n_letters = sum(len(part) for part in parts if isinstance(part, str))
    if dtype.itemsize * len(parts) > 2**20 + 2**8 * (len(parts) + n_letters):
        raise ValueError(f"{dtype} is too wide for what it holds")
    return dtype


def _decode_estimator(described, tensors, key):
    folder, name = described["class"]
    if folder not in _PUBLIC:
        raise ValueError(f"{folder}.{name} is not an estimator of this package.")
    public = importlib.import_module(f"{_PACKAGE}.{folder}")
    if name not in public.__all__:
        raise ValueError(f"{folder}.{name} is not known to this version.")
    parameters = _decode(described["parameters"], tensors)
    for parameter in _OF_THE_MACHINE:
        parameters.pop(parameter, None)
    for parameter, value in parameters.items():
        if is_external(value):
            refuse_external(f"{parameter}={value!r} of {name}")
    estimator = getattr(public, name)(**parameters)
    fitted = _decode(described["fitted"], tensors)
    _check_fitted(estimator, fitted)
    for parameter in described.get("as_fitted", ()):
        frozen = fitted.get(f"{parameter}_")
        if parameter not in _changeable(estimator) or not _are_same_frozen(
            frozen, frozen
        ):
            raise ValueError(f"{name}.{parameter} is not what fit sets")
        setattr(estimator, parameter, frozen)
    vars(estimator).update(fitted)
    if "history" in described:
        estimator._validate_params()
        prefix = f"{key}.net."
        weights = {
            k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)
        }
        history = _decode(described["history"], tensors)
        other = _decode(described.get("built_with", {"dict": []}), tensors)
        _check_built_with(estimator, other)
        shape = vars(estimator).get("sample_shape_")
        if shape is None:
            raise ValueError(f"{name}.sample_shape_ is missing")
        with _Bounded(tensors.values(), shape):
            estimator._restore_net(weights, history, other)
    return estimator


def _changeable(estimator):
    """Return the names of parameters that a file may set."""
    return estimator.get_params(deep=False).keys() - _OF_THE_MACHINE


def _check_built_with(estimator, other):
    """Raise an error if a file sets what is no valid parameter of an estimator."""
    if other == {}:
        return
    if not isinstance(other, dict) or not other.keys() <= _changeable(estimator):
        raise ValueError(f"{type(estimator).__name__} has no such parameters")
    for name, value in other.items():
        if is_external(value):
            refuse_external(f"{name}={value!r} of {type(estimator).__name__}")
    clone(estimator).set_params(**other)._validate_params()


class _Bounded(TorchDispatchMode):
    """Refuse what a network of so many weights cannot need, before it is allocated.

    A network is built with weights of its own before those of the file replace them. It
    may be larger than the file: parts are only for training, and are dropped.

    Parameters
    ----------
    tensors : iterable of Tensor
        All of the file.
    sample_shape : tuple of int
        A few samples are encoded to learn the width of an encoder.
    """

    def __init__(self, tensors, sample_shape):
        super().__init__()
        sizes = [tensor.numel() for tensor in tensors]
        self.n_values = 16 * sum(sizes) + 2**26
        if len(sample_shape) == 3:  # the weights of vectors are in the file
            self.n_values += 16 * math.prod(sample_shape)
        self.n_tensors = 64 * len(sizes) + 10_000

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        made = not any(isinstance(arg, torch.Tensor) for arg in args)
        if made or name.startswith("new_"):
            self.n_values -= _n_values(args)
            self.n_tensors -= 1
            if self.n_values < 0 or self.n_tensors < 0:
                raise ValueError("its network would be far larger than its weights")
        return function(*args, **(kwargs or {}))


def _n_values(args):
    """Return how many values an operation of torch makes, from its arguments."""
    for size in args:
        if isinstance(size, (list, tuple)) and all(isinstance(n, int) for n in size):
            return math.prod(size)
    return max((n for n in args if isinstance(n, int)), default=1)
