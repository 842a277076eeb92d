"""Parameters of estimators, declared once as typed fields."""

# A field is a name, a kind and a default::
#
#     class FixMatchClassifier(ClassificationRole, Learner):
#         threshold: UnitInterval = 0.95
#         _: KW_ONLY
#         temperature: Positive = 1.0
#         lr: Positive = 0.03  # declared by Learner; here with another default
#
# From the fields come the constructor and its signature, the constraints that `fit`
# checks, and the texts of inherited parameters in the docstring.

import inspect
import sys
import typing
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, Union

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import HasMethods, Interval, Options, StrOptions

from .docstrings import join_docstring
from .net import OPTIMIZERS, SCHEDULES

if sys.version_info >= (3, 11):  # it tells editors and type checkers of the fields
    from typing import dataclass_transform
else:

    def dataclass_transform(**kwargs):
        return lambda cls: cls


def one_of(names):
    """Constraint of a text that must be one of some names."""
    return StrOptions(set(names))


def between(low, high):
    """Constraint of a number in [low, high]; None: no limit."""
    return Interval(Real, low, high, closed="both" if high is not None else "left")


def whole(low):
    """Constraint of an integer that is at least ``low``."""
    return Interval(Integral, low, None, closed="left")


# -- kinds: what a type checker sees, and what `fit` checks

Count = Annotated[int, whole(1)]
AtLeastTwo = Annotated[int, whole(2)]
CountOrZero = Annotated[int, whole(0)]
Positive = Annotated[float, Interval(Real, 0, None, closed="neither")]
NonNegative = Annotated[float, between(0, None)]
UnitInterval = Annotated[float, between(0, 1)]
BelowOne = Annotated[float, Interval(Real, 0, 1, closed="left")]
OpenUnitInterval = Annotated[float, Interval(Real, 0, 1, closed="neither")]
Factor = Annotated[float, Interval(Real, 0, 1, closed="right")]
SampleCount: TypeAlias = (
    Count | OpenUnitInterval | None
)  # a number of rows, or their share
ArrayLike = Annotated[Any, "array-like"]
RandomState = Annotated[int | np.random.RandomState | None, "random_state"]
Verbosity = Annotated[int, "verbose"]
Augment: TypeAlias = Literal["auto"] | torch.nn.Module | Callable | None
Backbone: TypeAlias = str | torch.nn.Module | BaseEstimator
Optimizer = Annotated[str | type, one_of(OPTIMIZERS), callable]
Schedule = Annotated[str | Callable, one_of(SCHEDULES), callable]
LearningRateScaling: TypeAlias = Literal["linear", "sqrt"] | None
ProbabilisticClassifier = Annotated[BaseEstimator, HasMethods(["fit", "predict_proba"])]
ImageProcessor = Annotated[Any, HasMethods(["to_dict"])]  # of transformers
Committee = Annotated[list[BaseEstimator], list]


def constraints(kind):
    """Return scikit-learn's constraints for the kind of a parameter."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return list(parts[1:])
    if origin in (Union, UnionType):
        return [constraint for part in parts for constraint in constraints(part)]
    if origin is Literal:
        if isinstance(parts[0], str):
            return [StrOptions(set(parts))]
        return [Options(Integral, set(parts))]
    if kind is bool:
        return ["boolean"]
    if kind in (int, float):  # as a user may write it; numpy's numbers are numbers
        number = {int: Integral, float: Real}[kind]
        return [Interval(number, None, None, closed="neither")]
    if kind is Callable:
        return [callable]
    return [None if kind is type(None) else kind]


@dataclass_transform(eq_default=False)
class Parameters:
    """Base of estimators whose parameters are fields.

    A subclass with its own ``__init__`` is not changed. A name that begins or ends with
    an underscore is not a parameter.

    Parameters
    ----------
    abstract : bool, default=False
        Of a class definition: its fields are for subclasses; it gets no constructor.
    """

    def __init_subclass__(cls, abstract=False, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            return
        positional, named = _fields(cls)
        cls._parameter_constraints = {
            name: constraints(kind) for name, kind in {**positional, **named}.items()
        }
        if abstract:
            return
        for name in named:
            setattr(cls, name, getattr(cls, name))
        own, doc = vars(cls).get("__annotations__", {}), vars(cls).get("__doc__")
        cls.__annotations__ = {**positional, "_": KW_ONLY, **named}
        dataclass(eq=False, repr=False)(cls)
        cls.__annotations__, cls.__doc__ = own, doc
        cls.__init__.__annotations__ = {}  # help() shows names and defaults
        _, *given = inspect.signature(cls.__init__).parameters.values()
        join_docstring(cls, {parameter.name: parameter.default for parameter in given})

    def _forget(self, *names):
        """Drop attributes that an earlier fit has set, where they are set."""
        for name in names:
            vars(self).pop(name, None)


def _fields(cls):
    """Return the kinds of positional parameters by name, and of the others.

    Positional ones: those of the parents come first. The others: those of the class
    itself come first. A parameter that is declared again keeps its place.
    """
    places, kinds = {}, {}  # of each class: names of both sorts
    for parent in reversed(cls.__mro__):
        if not issubclass(parent, Parameters):
            continue
        names = places[parent] = ([], [])
        sort = names[0]
        for name, kind in inspect.get_annotations(parent, eval_str=True).items():
            if kind is KW_ONLY:
                sort = names[1]
            elif typing.get_origin(kind) is ClassVar or kind is ClassVar:
                continue
            elif name.strip("_") == name:
                if name not in kinds:
                    sort.append(name)
                kinds[name] = kind
    positional = [name for names in places.values() for name in names[0]]
    named = [name for names in reversed(places.values()) for name in names[1]]
    return {n: kinds[n] for n in positional}, {n: kinds[n] for n in named}


class Inference(Parameters, abstract=True):
    """What every estimator with a network has.

    Parameters
    ----------
    image_shape : tuple or None
        (height, width) or (height, width, channels) of the images if X is 2-D.
    image_size : int, tuple or None
        Size to which image files are resized; None: all must have the same size.
    on_error : {"raise", "skip"}
        What to do with image files that cannot be read.
    max_pixels : int or None
        Maximum number of pixels of an image file. Larger images raise an error, since a
        small file may decode to fill the memory. None: 178,956,970.
    device : str or torch.device
        "auto": CUDA, then MPS, then CPU.
    precision : {"auto", "bfloat16", "float16", "tf32", "float32"}
        "auto": for images, bfloat16 autocast if the hardware supports it, else float16
        if it supports that; see :ref:`device_and_precision`.
    random_state : int, RandomState instance or None
        Seed of everything random; the global generators are not changed.
    verbose : int
        1: a progress bar.
    """

    _: KW_ONLY
    image_shape: ArrayLike | None = None
    image_size: Count | ArrayLike | None = None
    on_error: Literal["raise", "skip"] = "raise"
    max_pixels: Count | None = None
    device: str | torch.device = "auto"
    precision: Literal["auto", "bfloat16", "float16", "tf32", "float32"] = "auto"
    random_state: RandomState = None
    verbose: Verbosity = 0


class Training(Inference, abstract=True):
    """What every estimator that trains a network has.

    Parameters
    ----------
    backbone : str, nn.Module or fitted embedder
        Encoder; see :func:`sklabel.backbones.build_backbone`.
    max_epochs : int
        Passes over X.
    max_steps : int or None
        Length of training in optimizer steps; overrides ``max_epochs``.
    batch_size : int
        Samples per step; the rest of an epoch, if two or more, makes a smaller step,
        which most published code drops.
    accumulate : int
        Number of parts in which a batch is computed, one after the other, to save
        memory; their gradients add up to one step. Losses that compare rows, and
        BatchNorm, see only one part at a time.
    optimizer : str or class
        "sgd", "nesterov", "adam", "adamw", or one of the LARS family for batches of
        thousands, see :class:`sklabel.optim.LARS`: "lars", "lars_outer", "larc" (biases
        and norms are treated like all others), "lars_clip".
    lr : float
        Peak learning rate.
    weight_decay : float
        Weight decay, not applied to biases and norms except with "larc".
    schedule : {"cosine", "truncated_cosine", "step", "constant"} or callable
        Learning rate schedule after the warm-up.
    warmup_epochs : float
        Epochs of linear warm-up. The default is cut to a tenth of the training, other
        values are not.
    warm_start : bool
        Whether ``fit`` continues from the weights of the last fit, with the current
        parameters. Parameters that change the shape of the network raise an error.
    checkpoint_dir : str, Path or None
        Folder for checkpoints; if the same fit is called again, it continues from the
        last one.
    net_params : dict or None
        Further settings of the net, such as ``compile``, ``callbacks`` or
        ``optimizer__momentum``.
    """

    _: KW_ONLY
    backbone: Backbone = "auto"
    max_epochs: Count = 40
    max_steps: Count | None = None
    batch_size: AtLeastTwo = 256
    optimizer: Optimizer = "adamw"
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    schedule: Schedule = "cosine"
    warmup_epochs: NonNegative = 0
    warm_start: bool = False
    checkpoint_dir: str | Path | None = None
    accumulate: Count = 1
    net_params: dict | None = None
