"""A pretend accelerator: a device of torch whose tensors are kept on the CPU."""

# A tensor of the device "sim" behaves as one on a GPU: an operation on tensors of two
# devices is an error, `.numpy()` is an error, and only numbers mix. Values are those of
# the CPU, so that whole trainings run. What the host of a GPU would have to wait for
# (`.item()`, `.cpu()`, `nonzero`, a copy that blocks) is counted with the line of
# sklabel that asked for it, and so is every operation: a kernel to launch.
#
# It says nothing of speed, of memory, and of kernels that differ from the CPU's. It
# changes torch in the whole process, so a process of its own runs it.

import collections
import contextlib
import functools
import sys

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "sim"
aten = torch.ops.aten


class _Backend(_DummyBackendModule):
    """What ``torch.sim`` offers; ``free`` are the bytes that it says it has left."""

    free = 2**30

    @staticmethod
    def get_amp_supported_dtype():
        return [torch.bfloat16, torch.float16]

    def mem_get_info(self, device=None):
        return self.free, 2**30

    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None):
        torch.set_rng_state(state)

    def manual_seed(self, seed):
        pass

    class device:
        def __init__(self, index):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass


BACKEND = _Backend()
_setup_privateuseone_for_python_backend(NAME, backend_module=BACKEND)
DEVICE = torch.device(NAME, 0)

# -- autocast as CUDA has it: products in half precision, what loses digits in float32

_LOWER = "conv1d conv2d conv_transpose2d.input linear matmul mm addmm bmm baddbmm"
_FULL = (
    "softmax.int log_softmax.int nll_loss_nd mse_loss kl_div exp log pow.Tensor_Scalar "
    "norm.ScalarOpt_dim cdist cosine_similarity layer_norm sum.dim_IntList prod cumsum"
)
# kept: a library that is collected takes its kernels with it
_KEPT = [torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")]
_KEPT[0].fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
_WITHOUT = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def _cast_in_autocast(name, lower):
    packet, overload = (name.split(".") + ["default"])[:2]
    op = getattr(getattr(aten, packet), overload)

    def cast(x):
        if not isinstance(x, torch.Tensor) or x.device.type != NAME:
            return x
        half = torch.get_autocast_dtype(NAME)
        if lower and x.dtype in (torch.float32, torch.float16, torch.bfloat16):
            return x.to(half)
        return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x

    def kernel(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(_WITHOUT):
            args, kwargs = pytree.tree_map(cast, (args, kwargs))
            return op(*args, **kwargs)

    _KEPT[1].impl(name, kernel, "AutocastPrivateUse1")


for _name in _LOWER.split():
    _cast_in_autocast(_name, True)
for _name in _FULL.split():
    _cast_in_autocast(_name, False)
torch.__future__.set_overwrite_module_params_on_conversion(True)


# tensors made in inference mode take no part in what wraps them here
def _no_grad(mode=True):
    return torch.no_grad() if mode else contextlib.nullcontext()


torch.inference_mode = _no_grad
_Generator = torch.Generator


class _CPUGenerator(_Generator):
    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu" if on_it(device) else device)


torch.Generator = _CPUGenerator


def on_it(device):
    """Whether a device is the pretended one."""
    return device is not None and torch.device(device).type == NAME


# -- what is counted

# what the host waits for, on a CUDA device
_WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.is_nonzero.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.equal.default: "equal",
    aten.bincount.default: "bincount",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}
_INDEXED = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
}


class Log:
    """What was asked of the device; ``step`` is True within a step of a training.

    Attributes
    ----------
    waits, copies : Counter
        {(kind, line of sklabel, whether in a step): count}: waits of the host, and
        copies from it.
    launches : list of int
        Operations of each step.
    largest : int
        Numbers in the largest tensor that an operation gave.
    """

    def __init__(self):
        self.waits = collections.Counter()
        self.copies = collections.Counter()
        self.n_operations = 0
        self.largest = 0
        self.launches = []
        self.step = False

    def note(self, counter, kind):
        counter[(kind, _where(), self.step)] += 1

    def in_steps(self, counter):
        """Return {"kind line": count} of what happened within steps."""
        found = collections.Counter()
        for (kind, line, step), count in counter.items():
            if step:
                found[f"{kind} {line}"] += count
        return dict(found)


LOG = Log()


def _where():
    """Return the innermost line of sklabel that is being run."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/sklabel/" in name:
            place = name.rpartition("/sklabel/")[2]
            return f"{place} {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside"


# -- tensors


class DeviceMismatch(RuntimeError):
    """Tensors of two devices met in one operation."""


class SimTensor(torch.Tensor):
    """A tensor of the device; ``raw`` is the CPU tensor that holds its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw):
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
            requires_grad=False,
        )
        out.raw = raw
        return out

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __getitem__(self, index):
        if isinstance(index, list):  # torch copies it to the device, and waits
            LOG.note(LOG.waits, "index from the host")
            index = SimTensor(torch.tensor(index, dtype=None if index else torch.long))
        return super().__getitem__(index)

    def tolist(self):
        LOG.note(LOG.waits, "tolist")
        return self.raw.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError(f"can't convert {NAME} device type tensor to numpy: use .cpu()")

    __array__ = numpy

    def __deepcopy__(self, memo):
        new = SimTensor(self.raw.detach().clone())
        if getattr(self, "_is_param", False):  # a frozen one, too
            new = torch.nn.Parameter(new, self.requires_grad)
        elif self.requires_grad:
            new.requires_grad_()
        memo[id(self)] = new
        return new

    def __reduce_ex__(self, protocol):
        is_param = getattr(self, "_is_param", False)
        return _restored, (self.raw.detach(), self.requires_grad, is_param)


def _restored(raw, requires_grad, is_param):
    # what was on a device is on the CPU where there is none
    return torch.nn.Parameter(raw, requires_grad) if is_param else raw


torch.serialization.add_safe_globals([_restored])


@functools.cache
def _is_composite(func):
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


def _run(func, args, kwargs):
    flat, spec = pytree.tree_flatten((args, kwargs))
    on_device = [a for a in flat if isinstance(a, SimTensor)]
    on_host = [
        a for a in flat if isinstance(a, torch.Tensor) and not isinstance(a, SimTensor)
    ]
    target = kwargs.get("device")
    LOG.n_operations += 1
    if func is aten.copy_.default:
        return _copy_(func, args, kwargs)
    if func is aten._to_copy.default:
        return _to(args[0], kwargs)
    if on_device and any(a.ndim for a in on_host):
        _check_devices(func, args, on_device, on_host)
    if on_it(target) and not on_device and any(a.ndim for a in on_host):
        raise DeviceMismatch(f"{func}: tensors of the CPU with device={NAME!r}")
    if on_device:
        kind = _WAITS.get(func) or _waits_for_a_mask(func, args)
        if kind:
            LOG.note(LOG.waits, kind)
    raw = [a.raw if isinstance(a, SimTensor) else a for a in flat]
    raw_args, raw_kwargs = pytree.tree_unflatten(raw, spec)
    if on_it(raw_kwargs.get("device")):
        raw_kwargs = {**raw_kwargs, "device": torch.device("cpu")}
        raw_kwargs.pop("pin_memory", None)
    out = func(*raw_args, **raw_kwargs)
    gives_tensors = bool(on_device) if target is None else on_it(target)
    if func is aten._local_scalar_dense.default or not gives_tensors:
        return out
    # an operation in place, or with out=, gives back what it was given
    known = {id(a.raw): a for a in on_device}

    def back(x):
        if not isinstance(x, torch.Tensor):
            return x
        LOG.largest = max(LOG.largest, x.numel())
        return known[id(x)] if id(x) in known else SimTensor(x)

    return pytree.tree_map(back, out)


def _copy_(func, args, kwargs):
    to, source = args[:2]
    if isinstance(to, SimTensor) and not isinstance(source, SimTensor) and source.ndim:
        LOG.note(LOG.copies, "copy_")
    if isinstance(source, SimTensor) and not isinstance(to, SimTensor):
        LOG.note(LOG.waits, "copy_")
    func(*(a.raw if isinstance(a, SimTensor) else a for a in args), **kwargs)
    return to


def _to(x, kwargs):
    kwargs = dict(kwargs)
    target = kwargs.pop("device", None)
    non_blocking = kwargs.pop("non_blocking", False)
    kwargs.pop("pin_memory", None)
    here = isinstance(x, SimTensor)
    there = here if target is None else on_it(target)
    out = aten._to_copy.default(x.raw if here else x, **kwargs)
    if there and not here:
        LOG.note(LOG.copies, "to")
        if not non_blocking:  # torch waits for the stream after such a copy
            LOG.note(LOG.waits, "copy that blocks")
    if here and not there:
        LOG.note(LOG.waits, "to the CPU")
    return SimTensor(out) if there else out


def _check_devices(func, args, on_device, on_host):
    # torch itself copies indices (not the values of a mask) from the CPU
    values = [v for v in args[2:3] if isinstance(v, torch.Tensor)]
    indexed = func in _INDEXED and isinstance(args[0], SimTensor)
    if not indexed or any(v.ndim and not isinstance(v, SimTensor) for v in values):
        raise DeviceMismatch(
            f"Expected all tensors to be on the same device: {func} got {NAME} "
            f"{[tuple(a.shape) for a in on_device]} and cpu "
            f"{[tuple(a.shape) for a in on_host if a.ndim]}"
        )
    LOG.note(LOG.copies, "index")
    LOG.note(LOG.waits, "index from the host")


def _waits_for_a_mask(func, args):
    if func not in _INDEXED:
        return None
    masks = torch.bool, torch.uint8
    if not any(isinstance(i, torch.Tensor) and i.dtype in masks for i in args[1]):
        return None
    # with one value it is a masked_fill, without waiting
    one_value = func is not aten.index.Tensor and args[2].numel() == 1
    return None if one_value else "mask"


class PretendDevice(TorchDispatchMode):
    """In this context tensors are made on the device "sim", and moved to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat = pytree.tree_leaves((args, kwargs))
        if on_it(kwargs.get("device")) or any(isinstance(a, SimTensor) for a in flat):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)
