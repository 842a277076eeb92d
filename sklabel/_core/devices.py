"""Devices: which there are, what they multiply fast, and how tensors get there."""

from contextlib import contextmanager

import torch

# the share of a device's free memory that the rows of a training may take
SHARE_FOR_ROWS = 0.25


def resolve_device(device):
    """Return the torch device; ``"auto"``: CUDA, then MPS, then CPU.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    if device != "auto":
        try:
            found = torch.device(device)
            there = found.type != "meta" and torch.zeros(1, device=found).item() == 0
        except (RuntimeError, AssertionError, NotImplementedError, TypeError):
            there = False
        if not there:
            raise ValueError(
                f"device={str(device)!r} is not available: there are "
                f"{', '.join(available_devices())}."
            )
        return found
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def device_for(device, dtype):
    """Return the torch device for numbers of a type; MPS has no float64: CPU then."""
    device = resolve_device(device)
    without = device.type == "mps" and torch.empty(0, dtype=dtype).element_size() > 4
    return torch.device("cpu") if without else device


def available_devices():
    """Return the names of the devices that a network can run on."""
    found = ["auto", "cpu"]
    found += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [*found, *(["mps"] if torch.backends.mps.is_available() else [])]


def multiplies_bfloat16(device):
    """Whether the hardware multiplies bfloat16 faster than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        cpu = torch.cpu
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(cpu, check, bool)() for check in checks)
    return False


def multiplies_float16(device):
    """Whether the hardware multiplies float16 faster than float32, as T4 and V100."""
    return device == "cuda" and torch.cuda.get_device_capability() >= (7, 0)


def free_memory(device):
    """Return how many bytes an accelerator has left; of the CPU, and unknown: 0."""
    device = torch.device(device)
    if device.type == "mps":
        most = torch.mps.recommended_max_memory()
        return max(0, most - torch.mps.driver_allocated_memory())
    backend = getattr(torch, device.type, None)
    info = getattr(backend, "mem_get_info", None)
    return info(device)[0] if info is not None else 0


def pinned(x, device):
    """Return a tensor, or a tuple of them, from which a GPU can copy by itself."""
    if isinstance(x, tuple):
        return tuple(pinned(part, device) for part in x)
    if torch.device(device).type != "cuda" or x.device.type != "cpu" or x.is_pinned():
        return x
    return _keep_marks(x.pin_memory(), x)


def to_device(x, device):
    """Return a tensor on the device; the host does not wait for the copy."""
    moved = pinned(x, device).to(device, non_blocking=True)
    return moved if moved is x else _keep_marks(moved, x)


def _keep_marks(new, old):
    # what the host knows of a batch, such as how many rows of it are labeled
    vars(new).update(vars(old))
    return new


@contextmanager
def tensor_float32(device):
    """Let a GPU multiply float32 in the shorter format TF32."""
    if torch.device(device).type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def fastest_convolutions(device):
    """Let cuDNN try its algorithms, and keep the fastest for each shape.

    They differ in their last digits: not where the user has asked torch for
    deterministic ones.
    """
    cudnn = torch.backends.cudnn
    exact = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    if torch.device(device).type != "cuda" or exact or cudnn.benchmark:
        yield
        return
    cudnn.benchmark = True
    try:
        yield
    finally:
        cudnn.benchmark = False
