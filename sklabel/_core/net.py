"""The one skorch net: drives a module that returns its own loss."""

import collections
import ctypes
import functools
import io
import math
import time
from contextlib import ExitStack, closing, contextmanager, nullcontext
from importlib import import_module
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, PassthroughScoring
from skorch.callbacks.scoring import ScoringBase
from tqdm.auto import tqdm

from .. import optim
from ..modules.batchnorm import synchronized, unite_buffers_
from .batches import Batches
from .callbacks import NoStage, monitored
from .devices import (
    available_devices,  # noqa: F401, for those who ask the net
    fastest_convolutions,
    multiplies_bfloat16,
    multiplies_float16,
    resolve_device,  # noqa: F401
    tensor_float32,
    to_device,
)
from .divergence import check_loss, check_outputs
from .files import read_regular, replacing
from .identity import digest
from .plain import float32_by_default
from .processes import ALONE, current
from .random_numbers import Numbers
from .samplers import count_rows, split_batch
from .samples import to_unit
from .warn import warn

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "lars": (optim.LARS, {"momentum": 0.9}),
    # with the rate outside of the momentum, as BYOL has it
    "lars_outer": (optim.LARS, {"variant": "byol"}),
    # as SwAV has it, biases and norms too
    "larc": (optim.LARS, {"variant": "larc"}),
    # with a bound, as solo-learn's recipes for CIFAR have it
    "lars_clip": (optim.LARS, {"variant": "clip", "trust_coefficient": 0.02}),
}
# one kernel for all weights, on a device
_FUSED = ("sgd", "nesterov", "adam", "adamw")
SCHEDULES = {
    "cosine": optim.warmup_cosine,
    "truncated_cosine": optim.truncated_cosine,
    "step": optim.step_decay,
    "constant": optim.constant,
}
# the names of who uses them are understood too
OPTIMIZERS["lars_byol"] = OPTIMIZERS["lars_outer"]
OPTIMIZERS["lars_cifar"] = OPTIMIZERS["lars_clip"]
SCHEDULES["fixmatch"] = SCHEDULES["truncated_cosine"]

# a matrix product of very few rows is rounded in another way than one of many, and the
# prediction for a row must not depend on the rows it comes with
_FEWEST_ROWS = 32

_CHECKPOINT_FORMAT = 2  # 1 had neither checksum nor versions


class Net(NeuralNet):
    """Train and apply a module with the verbs ``forward`` and ``loss``.

    The module may also have ``before_epoch(net, sampler)``, ``after_step()`` and
    ``after_epoch(net, sampler)``, which returns metrics for the history. ``loss(x, y)``
    returns the scalar to minimize, or that and a dict of tensors to watch; the history
    holds their mean over the epoch.

    Parameters
    ----------
    module : nn.Module
    pixel_range : (float, float) or None
        See `Samples.pixel_range`.
    optimizer : str or class
        A key of `OPTIMIZERS`, or a torch optimizer.
    schedule : str or callable
        A key of `SCHEDULES`, or ``f(step, total_steps, warmup_steps) -> factor``.
    warmup_epochs : float
    weight_decay : float
        For weights only, never for biases and norms.
    lr_scales : dict or None
        {name of a part of the module: factor on its learning rate}.
    max_steps : int or None
        Length of the training in optimizer steps; overrides max_epochs.
    precision : {"auto", "bfloat16", "float16", "tf32", "float32"}
        With "auto", for images, what the hardware multiplies faster than float32:
        bfloat16, else float16. Losses are scaled in float16, so that small gradients
        are not lost.
    accumulate : int
        Parts that a batch is computed in, one after the other; their gradients add up.
    checkpoint : Path or None
        File written after each epoch, and read to continue.
    watch : callable or None
        ``watch(net, samples) -> dict`` of metrics for the history of each epoch.
    stage : _callbacks.Stage or None
        Told of the epochs.
    description : str
        Stands before the progress bar.
    compile : bool
        Whether to compile the module's parts.
    shared : bool
        Whether the processes of a `Group` train it together; else each trains it whole.

    Notes
    -----
    A loop of its own replaces skorch's, which takes 1.3 to 2 times a bare torch loop on
    small networks: nothing is recorded, synchronized or called back per batch unless
    callbacks are given.
    """

    group_ = ALONE  # the processes that train it together
    rate = None  # the parameter of the estimator that lr comes from, with its value

    def __init__(
        self,
        module,
        *,
        pixel_range=None,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.0,
        lr_scales=None,
        schedule="cosine",
        warmup_epochs=0,
        max_epochs=10,
        max_steps=None,
        batch_size=128,
        precision="auto",
        accumulate=1,
        checkpoint=None,
        watch=None,
        stage=None,
        description="",
        device="cpu",
        verbose=0,
        compile=False,
        shared=True,
        callbacks="disable",
        **kwargs,
    ):
        self.shared = shared
        self.pixel_range = pixel_range
        self.weight_decay = weight_decay
        self.lr_scales = lr_scales
        self.schedule = schedule
        self.warmup_epochs = warmup_epochs
        self.max_steps = max_steps
        self.precision = precision
        self.accumulate = accumulate
        self.checkpoint = checkpoint
        self.watch = watch
        self.stage = stage
        self.description = description
        super().__init__(
            module,
            criterion=_NoCriterion,
            optimizer=optimizer,
            lr=lr,
            max_epochs=max_epochs,
            batch_size=batch_size,
            train_split=None,
            callbacks=callbacks,
            device=device,
            verbose=verbose,
            compile=compile,
            **kwargs,
        )

    @property
    def _default_callbacks(self):
        return []

    # -- what skorch asks for

    def initialize_callbacks(self):
        super().initialize_callbacks()
        for _, callback in self.callbacks_:
            if isinstance(callback, (ScoringBase, PassthroughScoring)):
                raise ValueError(
                    f"{type(callback).__name__} of skorch scores predictions that this "
                    "net does not make in training: use ScoringMonitor of "
                    "sklearn.callback with set_callbacks, or read net_.history"
                )
        return self

    def initialize_module(self):
        self.module_ = self.module
        if torch.device(self.device).type == "cpu":
            _keep_freed_memory()
        if torch.device(self.device).type in ("cpu", "cuda"):
            self.module_.to(memory_format=torch.channels_last)
        return self

    def torch_compile(self, module, name):
        # in place, part by part: torch.compile(module) would rename every saved weight,
        # and its loss would run uncompiled; not the views, whose shapes are drawn
        if self.compile:
            for child in module.children():
                if any(True for _ in child.parameters()):
                    child.compile(**self.get_params_for("compile"))
        return module

    def initialize_optimizer(self, triggered_directly=None):
        optimizer, defaults = OPTIMIZERS.get(self.optimizer, (self.optimizer, {}))
        given = self.get_params_for("optimizer")
        given.pop("lr", None)
        device = torch.device(self.device).type
        if self.optimizer in _FUSED and device not in ("cpu", "mps"):
            if not {"foreach", "dampening"} & set(given):
                defaults = {"fused": True, **defaults}
        settings = {"lr": self.lr, **defaults, **given}
        groups = optim.param_groups(
            self.module_,
            self.weight_decay,
            self.lr_scales,
            alike=settings.get("variant") == "larc",  # as it is published
        )
        self.optimizer_ = optimizer(groups, **settings)
        if "momentum" in settings and settings.get("fused"):
            self.optimizer_.register_step_pre_hook(_begin_momentum)
        scaled = self.used_precision() == "float16"
        self.scaler_ = torch.amp.GradScaler(device, enabled=scaled)
        if not isinstance(self.optimizer_, torch.optim.Optimizer):
            raise ValueError(
                f"optimizer={self.optimizer!r} gives a "
                f"{type(self.optimizer_).__name__}, which is not a torch optimizer."
            )
        return self

    def get_dataset(self, X, y=None):
        return X

    def get_iterator(self, dataset, training=False):
        if training:  # a sampler
            return Batches(dataset, self.batch_size, self.device, self.group_)
        rows = np.arange(len(dataset))
        return (dataset[block] for block in self._blocks(rows))

    @float32_by_default()
    def evaluation_step(self, batch, training=False, forward=None):
        self.check_is_fitted()
        x = self.to_device(batch)
        n = len(x)
        if x.ndim == 2 and n < _FEWEST_ROWS:
            x = torch.cat([x, x.new_zeros(_FEWEST_ROWS - n, x.shape[1])])
        self._set_training(training)
        with torch.inference_mode(not training), self.autocast():
            return (forward or self.module_)(x).float()[..., :n, :]

    def evaluate(self, samples, rows=None, forward=None):
        """Return the module's output for plain rows, in evaluation mode.

        Parameters
        ----------
        samples : Samples
        rows : ndarray of int or None
            Which rows, in this order; None: all.
        forward : callable or None
            What is asked in the module's place.

        Returns
        -------
        output : Tensor of shape (..., n_rows, D), float32
            On the CPU.
        """
        rows = np.arange(len(samples)) if rows is None else rows
        group = current()  # in a fit the processes share this work, too
        was_training = self.module_.training
        batches = [
            self.evaluation_step(samples[block], forward=forward).cpu()
            for block in self._blocks(group.part(rows))
        ]
        self.module_.train(was_training)
        return group.collected(torch.cat(batches, -2), len(rows), -2)

    @float32_by_default()
    def evaluate_tensor(self, x, forward):
        """Return ``forward(x)`` for rows that are not samples: tokens, codes."""
        self.module_.eval()
        with torch.inference_mode(), self.autocast():
            parts = [
                forward(block.to(self.device)).float().cpu()
                for block in self._blocks(x)
            ]
        return torch.cat(parts)

    @float32_by_default()
    def evaluate_epoch(self, sampler, step):
        """Return ``step(x, y)`` of each batch of one epoch, in evaluation mode."""
        self.module_.eval()
        found = []
        with torch.inference_mode():
            for draw in sampler.epoch(self.batch_size):
                x, y = sampler.fetch(draw)
                with self.autocast():
                    found.append(step(self.to_device(x), to_device(y, self.device)))
        return found

    def _blocks(self, rows):
        # no gradients are kept, so a batch can be larger
        size = max(256, self.batch_size)
        return (rows[start : start + size] for start in range(0, len(rows), size))

    # -- training

    def stop(self):
        """End the training after this epoch."""
        self.total_steps_ = self.step_

    def partial_fit(self, X, y=None, classes=None, **fit_params):
        """Train; Ctrl-C that `fit_loop` lets pass is raised: skorch drops it."""
        self.notify("on_train_begin", X=X, y=y)
        self.fit_loop(X, y, **fit_params)
        self.notify("on_train_end", X=X, y=y)
        return self

    def fit_loop(self, X, y=None, epochs=None, **fit_params):
        sampler = X
        self.group_ = group = current() if self.shared else ALONE
        self.numbers_ = Numbers(group, self.device)
        batches = self.get_iterator(sampler, training=True)
        self.total_steps_ = self.max_steps or self.max_epochs * len(batches)
        self.warmup_steps_ = round(self.warmup_epochs * len(batches))
        if self.warmup_steps_ >= self.total_steps_:
            warn(
                f"warmup_epochs={self.warmup_epochs} is as long as the whole training, "
                f"of {self.total_steps_} steps, so the learning rate never reaches "
                f"lr={self.lr}, or never falls: lower it, or train longer.",
                UserWarning,
            )
        self.step_ = 0
        self.interrupted_ = False
        group.copy_first_([*self.module_.parameters(), *self.module_.buffers()])
        if not self.resume():
            self.save_checkpoint()  # what a break in the first epoch goes back to
        stage = self.stage if self.stage and group.is_first else NoStage()
        stage.begin(math.ceil((self.total_steps_ - self.step_) / len(batches)))
        data = {"dataset_train": sampler, "dataset_valid": None}  # as skorch names them
        with self._working(sampler, batches):
            try:
                while self.step_ < self.total_steps_:
                    stage.begin_epoch()
                    self.notify("on_epoch_begin", **data)
                    self.run_single_epoch(batches, True, "train", self.train_step)
                    self._after_epoch(sampler)
                    if any(group.together(lambda: self._end_epoch(stage, data))):
                        self.stop()
            except KeyboardInterrupt:
                within_epoch = self.history and "train_loss" not in self.history[-1]
                if within_epoch and group.size > 1:
                    raise  # the others are in another step
                self.interrupted_ = True
                if within_epoch:
                    self.history.pop()  # the epoch that was broken off
        stage.end()
        self._check_finite(sampler.samples)
        return self

    @contextmanager
    def _working(self, sampler, batches):
        """Hold what a training needs, and give it back afterwards."""
        with ExitStack() as stack:
            self.progress_ = stack.enter_context(self._progress(batches))
            self.batches_ = stack.enter_context(closing(batches))
            stack.enter_context(sampler.samples.held_on(self.device))
            stack.enter_context(fastest_convolutions(self.device))
            stack.enter_context(synchronized(self.module_, self.group_))
            if self.precision == "tf32":  # of the gradients, too
                stack.enter_context(tensor_float32(self.device))
            try:
                yield
            finally:
                del self.progress_, self.batches_

    def _end_epoch(self, stage, data):
        """Tell that an epoch has ended; return whether the training ends here."""
        with monitored(dict(self.callbacks_).values(), self.history[-1]):
            self.notify("on_epoch_end", **data)
        self.save_checkpoint()
        return stage.end_epoch() or self.step_ >= self.total_steps_

    def _check_finite(self, samples):
        """Raise if the last steps led to outputs that are not finite."""
        # not the weights: where images are smaller than a kernel, torch's gradients of
        # its outer taps are garbage in bfloat16, and no prediction depends on them
        check_outputs(self, self.evaluate(samples, samples.spread(_FEWEST_ROWS)))

    def on_epoch_begin(self, net, dataset_train=None, **kwargs):
        super().on_epoch_begin(net, dataset_train, **kwargs)
        if hasattr(self.module_, "before_epoch"):
            self.module_.before_epoch(self, dataset_train)

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        start, sums, n_steps = time.perf_counter(), {}, 0
        counts = collections.Counter()  # not every step gives every metric
        self.numbers_.begin_epoch()
        self.module_.train()
        after_step = getattr(self.module_, "after_step", None)
        told = {"training": True, "y_pred": None}  # the module predicts nothing here
        for batch in iterator:
            if self.callbacks_:
                self.notify("on_batch_begin", batch=batch, training=True)
            self._set_lr()
            metrics = step_fn(batch)
            if self.step_ == 0:
                self.first_loss_ = metrics["loss"]  # of weights that none has changed
            if after_step is not None:
                after_step()
            for name, value in metrics.items():
                sums[name] = sums[name] + value if name in sums else value
            counts.update(metrics.keys())
            if self.callbacks_:
                self.notify("on_batch_end", batch=batch, **{**metrics, **told})
            self.step_ += 1
            n_steps += 1
            if self.progress_ is not None:
                self.progress_.update()
            if self.step_ == self.total_steps_:
                break
        means = {name: value / counts[name] for name, value in sums.items()}
        for name, mean in self.group_.averaged(means).items():
            name = "train_loss" if name == "loss" else name
            self.history.record(name, mean.tolist())
        self.history.record("lr", self.optimizer_.param_groups[0]["lr"])
        self.history.record("train_batch_count", n_steps)
        self.history.record("dur", time.perf_counter() - start)

    def train_step(self, batch, **fit_params):
        """One optimizer step; returns the loss and the metrics to watch, detached."""
        parts = split_batch(*batch, self.accumulate) if self.accumulate > 1 else [batch]
        n_rows, sums = sum(count_rows(x) for x, _ in parts), {}
        for number, (x, y) in enumerate(parts, 1):
            with self.autocast(), self.numbers_.own(), self.group_.step():
                loss = self.module_.loss(self.to_device(x), to_device(y, self.device))
            loss, metrics = loss if isinstance(loss, tuple) else (loss, {})
            if number == len(parts) and self.step_ + 1 < self.total_steps_:
                self.batches_.look_ahead()  # from here on no numbers are drawn
            metrics = {"loss": loss.detach(), **metrics}
            if len(parts) > 1:
                share = count_rows(x) / n_rows
                loss = loss * share
                metrics = {name: value * share for name, value in metrics.items()}
            self.scaler_.scale(loss).backward()
            for name, value in metrics.items():
                sums[name] = sums[name] + value if name in sums else value
        self.group_.average_gradients_(self.module_)
        self._step()
        return sums

    def _step(self):
        if self.scaler_.is_enabled():
            # parts of the module with an optimizer of their own
            stepped = {id(p) for g in self.optimizer_.param_groups for p in g["params"]}
            scale = self.scaler_.scale(torch.ones((), device=self.device))
            for p in self.module_.parameters():
                if id(p) not in stepped and p.grad is not None:
                    p.grad.div_(scale).nan_to_num_(0, 0, 0)
        self.scaler_.step(self.optimizer_)
        self.scaler_.update()
        self.optimizer_.zero_grad(set_to_none=True)

    def to_device(self, x):
        """Return a fetched batch as floats on the device, pixels in [0, 1]."""
        if isinstance(x, tuple):
            return tuple(self.to_device(part) for part in x)
        return to_unit(to_device(x, self.device), self.pixel_range)

    def autocast(self):
        """Return the context of mixed precision for training and prediction."""
        precision = self.used_precision()
        if precision == "tf32":
            return tensor_float32(self.device)
        if precision == "float32":
            return nullcontext()
        kind = torch.device(self.device).type
        return torch.autocast(kind, getattr(torch, precision))

    def used_precision(self):
        """Return the precision that "auto" stands for; any other as it is."""
        if self.precision != "auto":
            return self.precision
        device = torch.device(self.device).type
        if self.pixel_range is None:
            return "float32"  # a small perceptron gains nothing and loses digits
        if multiplies_bfloat16(device):
            return "bfloat16"
        return "float16" if multiplies_float16(device) else "float32"

    def _set_lr(self):
        schedule = SCHEDULES.get(self.schedule, self.schedule)
        factor = schedule(self.step_, self.total_steps_, self.warmup_steps_)
        if not isinstance(factor, Real):
            raise ValueError(
                f"schedule={self.schedule!r} gives {factor!r} in step {self.step_}: it "
                "must return a number, the share of the learning rate."
            )
        for group in self.optimizer_.param_groups:
            group["lr"] = self.lr * factor * group.get("lr_scale", 1)

    def _after_epoch(self, sampler):
        unite_buffers_(self.module_, self.group_)
        loss = self.history[-1, "train_loss"]
        check_loss(self, loss)
        metrics = {}
        if hasattr(self.module_, "after_epoch"):
            metrics.update(self.module_.after_epoch(self, sampler) or {})
        if self.watch is not None:
            metrics.update(self.watch(self, sampler.samples))
        for name, value in metrics.items():
            self.history.record(name, value)
        if self.progress_ is not None:
            self.progress_.set_postfix(loss=f"{loss:.4f}")

    def _progress(self, batches):
        if not self.verbose or not self.group_.is_first:
            return nullcontext()
        return tqdm(
            total=self.total_steps_,
            initial=self.step_,
            desc=self.description,
            unit="step",
            mininterval=0.5,
        )

    # -- checkpoints

    def save_checkpoint(self):
        """Write the state after an epoch; a reader never sees half a file."""
        if self.checkpoint is None or not self.group_.is_first:
            return
        path = Path(self.checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "module": self.module_.state_dict(),
            "optimizer": self.optimizer_.state_dict(),
            "step": self.step_,
            "total_steps": self.total_steps_,
            "history": self.history.to_list(),
            "rng": torch.get_rng_state(),
        }
        if torch.device(self.device).type == "cuda":
            state["rng_cuda"] = torch.cuda.get_rng_state(self.device)
        if self.scaler_.is_enabled():
            state["scaler"] = self.scaler_.state_dict()
        kept = {"format": _CHECKPOINT_FORMAT, **_versions(), "checksum": digest(state)}
        content = io.BytesIO()  # torch's own writer hides that a disk is full
        torch.save({**kept, **state}, content)
        with replacing(path) as file:
            file.write(content.getbuffer())

    def resume(self):
        """Continue from the checkpoint; return whether there is one."""
        if self.checkpoint is None:
            return False
        try:
            content = self.group_.shared(lambda: read_regular(self.checkpoint))
        except FileNotFoundError:
            return False
        except ValueError as error:
            raise self._no_checkpoint(f"cannot be read: {error}") from error
        try:
            state = torch.load(
                io.BytesIO(content), map_location="cpu", weights_only=True
            )
        except Exception as error:  # torch raises many kinds
            raise self._no_checkpoint("is damaged") from error
        if not isinstance(state, dict) or state.get("format") != _CHECKPOINT_FORMAT:
            raise self._no_checkpoint("has another format than this version writes")
        about = {name: state.pop(name, None) for name in ("format", *_versions())}
        if state.pop("checksum", None) != digest(state):
            raise self._no_checkpoint("is damaged: its checksum does not match")
        others = {name: v for name, v in about.items() if v != _versions().get(name, v)}
        try:
            self._continue_from(state)
        except Exception as error:  # torch and skorch raise many kinds
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            written = f"; it was written with {_shown(others)}" if others else ""
            raise self._no_checkpoint(
                f"does not fit this training ({reason}){written}"
            ) from error
        if others:
            warn(
                f"The checkpoint {str(self.checkpoint)!r} was written with "
                f"{_shown(others)}: the training continues, but its result may differ "
                "in the last digits from that of a single version.",
                UserWarning,
            )
        return True

    def _continue_from(self, state):
        step, total, history = (state[k] for k in ("step", "total_steps", "history"))
        if not (isinstance(step, int) and isinstance(total, int) and step >= 0):
            raise ValueError(f"step {step!r} of {total!r}")
        history = [dict(epoch) for epoch in history]
        self.module_.load_state_dict(state["module"])
        self.optimizer_.load_state_dict(state["optimizer"])
        if "scaler" in state:
            self.scaler_.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if "rng_cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)
        self.step_, self.total_steps_ = step, total
        for epoch in history:
            self.history.new_epoch()
            self.history[-1].update(epoch)

    def _no_checkpoint(self, what):
        return ValueError(
            f"The checkpoint {str(self.checkpoint)!r} {what}: remove the file to train "
            "this stage from the start."
        )

    def __getstate__(self):
        # once is enough for the weights, and a trained net needs no optimizer's state
        names = ("module", "optimizer_", "progress_", "batches_", "scaler_")
        names += ("group_", "numbers_")
        left_out = {k: vars(self).pop(k) for k in names if k in vars(self)}
        try:
            return super().__getstate__()
        finally:
            vars(self).update(left_out)

    def __setstate__(self, state):
        super().__setstate__(state)
        self.module = self.module_


def _begin_momentum(optimizer, args, kwargs):
    """Give weights that have a gradient for the first time a momentum of zero.

    torch's fused step takes all of a group with a momentum, or all without.
    """
    for group in optimizer.param_groups:
        for weight in group["params"] if group["momentum"] else ():
            state = optimizer.state[weight]
            if weight.grad is not None and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(weight)


@functools.cache
def _versions():
    """Return the versions on which the bits of a training depend."""
    own = import_module(__package__.partition(".")[0])
    return {"sklabel": own.__version__, "torch": str(torch.__version__)}


def _shown(versions):
    return ", ".join(f"{name} {number}" for name, number in versions.items())


class Progress(Callback):
    """Tell how far the training is, after each epoch; one of a net's ``callbacks``.

    Parameters
    ----------
    tell : callable
        ``tell(share)``, the share of the steps that are done.
    """

    def __init__(self, tell):
        self.tell = tell

    def on_epoch_end(self, net, **kwargs):
        self.tell(net.step_ / net.total_steps_)


class _NoCriterion:
    """skorch wants a criterion; our modules return their loss themselves."""


@functools.cache
def _keep_freed_memory():
    """Let glibc keep large buffers that are freed, for the next batch.

    Given back to the system and zeroed anew for each batch, they took over a quarter of
    the processor time of a training step. It holds for the whole process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        mallopt(parameter, 1 << 30)
