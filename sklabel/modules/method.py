"""The base of the methods: a module of fields that returns its own loss."""

import sys
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import nn

from .._core.freezing import lock_, thaw_

if sys.version_info >= (3, 11):  # it tells editors and type checkers of the fields
    from typing import dataclass_transform
else:

    def dataclass_transform(**kwargs):
        return lambda cls: cls


@dataclass_transform(eq_default=False)
class Method(nn.Module):
    """Base of the modules of methods, which a net trains.

    ``forward(x)`` returns predictions, and training minimizes ``loss(x, y)``. Optional:
    ``before_epoch(net, sampler)``, ``after_step()`` and ``after_epoch(net, sampler)``,
    which returns metrics for the history.

    A subclass declares its fields as a dataclass does; the constructor takes them in
    this order and ``__post_init__`` creates the rest. A subclass with its own
    ``__init__`` calls ``super().__init__()``.

    Attributes
    ----------
    frozen : tuple of str
        Names of parts that are not trained and stay in evaluation mode; nested parts as
        in "text.norm".
    training_only : tuple of str
        Names of parts, buffers and other attributes that only training needs. They are
        None after it.
    policies : tuple of str
        Names of parts that make the views; a warm start creates them anew.
    renamed : dict
        {former name of a weight: its present name}, as in ``state_dict``. If the module
        has no such part, the old weight is dropped.

    Examples
    --------
    >>> from torch import nn
    >>> from sklabel.modules import Method
    >>> class Denoising(Method):
    ...     backbone: nn.Module
    ...     augment: nn.Module
    ...
    ...     def loss(self, x, y):
    ...         return (self.backbone(self.augment(x)) - x).square().mean()
    >>> Denoising(nn.Linear(2, 2), augment=nn.Dropout())
    Denoising(
      (backbone): Linear(in_features=2, out_features=2, bias=True)
      (augment): Dropout(p=0.5, inplace=False)
    )
    """

    frozen: ClassVar[tuple[str, ...]] = ()
    training_only: ClassVar[tuple[str, ...]] = ()
    policies: ClassVar[tuple[str, ...]] = ("augment",)
    renamed: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            return
        dataclass(eq=False, repr=False)(cls)
        for field in fields(cls):
            if field.name in vars(cls):  # a default would hide the part of that name
                delattr(cls, field.name)

    def __new__(cls, *args, **kwargs):
        method = super().__new__(cls)
        nn.Module.__init__(method)  # before the fields are set: parts register there
        return method

    def train(self, mode=True):
        """Switch to training or evaluation; frozen parts stay in evaluation."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def set_trained(self, name, trained):
        """Set whether a part is trained or frozen."""
        part = self.get_submodule(name)
        if trained:
            thaw_(part)
        else:
            lock_(part)
            self.frozen = (*self.frozen, name)

    def drop_training_state(self):
        """Drop the state that only training needs."""
        for name in self.training_only:
            setattr(self, name, None)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        own = self.state_dict() if self.renamed else ()
        for old, new in self.renamed.items():
            weight = state_dict.pop(prefix + old, None)
            if weight is not None and new in own:
                state_dict[prefix + new] = weight
        super()._load_from_state_dict(state_dict, prefix, *args)
