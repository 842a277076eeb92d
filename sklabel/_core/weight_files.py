"""Files of weights: read without running anything, and loaded with a clear error."""

import pickle
from collections import Counter
from pathlib import Path

import torch
from safetensors import safe_open

# what training programs put around a state dict
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "weights")


def load_weights_(module, path, *, heads=(), convert=None):
    """Read the weights of a module from a file, in place; nothing in it is executed.

    Parameters
    ----------
    module : nn.Module
        Left as it is if the file does not fit.
    path : str or Path
        A safetensors file, or a state dict written by ``torch.save``. It may stand
        under "state_dict", "model" and the like, and its names may have a prefix such
        as "module." or "visual."; what lies beside that prefix is left out.
    heads : sequence of str, default=()
        Parts, such as ``"fc"``, that the file need not have, or may have for another
        number of classes, or that the module need not have: those are left out.
    convert : callable or None, default=None
        ``convert(state_dict, module) -> state_dict`` renames what was published under
        other names.

    Returns
    -------
    module : nn.Module
        The same, on its device and of its dtype.

    Raises
    ------
    ValueError
        If there is no such file, if it is cut off or holds more than tensors, or if
        names or shapes are not those of the module; the message names them.

    Examples
    --------
    >>> import os, tempfile, torch
    >>> from sklabel.pretrained import load_weights_
    >>> net = torch.nn.Linear(3, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "net.pt")
    ...     torch.save({"state_dict": net.state_dict()}, path)
    ...     other = load_weights_(torch.nn.Linear(3, 2), path)
    >>> torch.equal(other.weight, net.weight)
    True
    """
    read = _without_wrapping(_read_weights(path))
    state = _strip_prefix(read, module.state_dict(), path)
    problems = _mismatches(module, state, heads)
    if problems and convert is not None:
        try:
            converted = _strip_prefix(
                convert(dict(read), module), module.state_dict(), path
            )
            if not _mismatches(module, converted, heads):
                state, problems = converted, []
        except Exception:  # it met names that it was not written for
            pass
    if problems:
        raise ValueError(
            f"weights={str(path)!r} does not fit {type(module).__name__}; "
            f"{'; '.join(problems)}. Give the backbone that the weights were saved "
            "from, with its input_size."
        )
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    fitting = {k: v for k, v in state.items() if v.shape == shapes.get(k)}
    module.load_state_dict(fitting, strict=False)
    return module


def _mismatches(module, state, heads):
    """Return what of a state dict does not fit a module, in words."""
    wanted = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in state.items()}

    def in_head(name):
        return any(name == head or name.startswith(f"{head}.") for head in heads)

    missing = [
        name
        for name in wanted
        # a count that only training without momentum reads
        if name not in given
        and not (in_head(name) or name.endswith("num_batches_tracked"))
    ]
    unknown = [name for name in given if name not in wanted and not in_head(name)]
    other = [
        f"{name} is {given[name]} in the file, {shape} in the network"
        for name, shape in wanted.items()
        if given.get(name, shape) != shape and not in_head(name)
    ]
    return [
        f"{what}: {some(names)}"
        for what, names in (
            ("missing in the file", missing),
            ("unknown to the network", unknown),
            ("of another shape", other),
        )
        if names
    ]


def _read_weights(path):
    """Return the tensors of a file by name."""
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(
            f"weights={str(path)!r} {what}: give the path of a .pt, .pth or "
            '.safetensors file, "DEFAULT" for the published weights, or None for '
            "random ones."
        )
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        if path.suffix == ".safetensors" or start[8:] == b"{":
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                return {name: file.get_tensor(name) for name in names}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise many kinds
        objects = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
        if objects or "TorchScript" in str(error):
            raise ValueError(
                f"weights={str(path)!r} holds Python objects, which could run code, so "
                "they are not read. Where the file was made, save only the tensors: "
                "torch.save(module.state_dict(), path)."
            ) from error
        raise ValueError(
            f"weights={str(path)!r} cannot be read ({reason_of(error)}). It is "
            "incomplete, or neither safetensors nor a state dict of torch.save: copy "
            "or download it again."
        ) from error
    return _unwrap(state, path)


def _unwrap(state, path):
    while isinstance(state, dict):
        inner = next((state[k] for k in _WRAPPERS if isinstance(state.get(k), dict)), 0)
        if not inner:
            tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
            if tensors:
                return tensors
            break
        state = inner
    found = f"the keys {some(state)}" if isinstance(state, dict) else "no dict"
    raise ValueError(
        f"weights={str(path)!r} holds {found}, but no tensors under "
        f"{', '.join(_WRAPPERS)}: save only module.state_dict()."
    )


def _without_wrapping(state):
    """Drop what parallel and compiled training put before every name."""
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: v for name, v in state.items()}
    return state


def _strip_prefix(state, wanted, path):
    """Return what stands under the prefix where most of the names wanted are found."""
    counts = Counter()
    for name in state:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                counts["".join(f"{part}." for part in parts[:i])] += 1
    if not counts or "" in counts and counts[""] == max(counts.values()):
        return state
    best = [prefix for prefix in counts if counts[prefix] == max(counts.values())]
    if len(best) > 1:
        raise ValueError(
            f"weights={str(path)!r} holds the network more than once, under "
            f"{some(map(repr, best))}: save a file of one of them."
        )
    n = len(best[0])
    return {name[n:]: v for name, v in state.items() if name.startswith(best[0])}


def some(names, n=3):
    """Return the first names, and how many there are beyond them."""
    names = list(map(str, names))
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(names[:n]) + more


def reason_of(error, length=200):
    """Return an error in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else f"{text[:length]}..."
