"""The base of all estimators that train a network."""

import copy
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    clone,
)
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ..augment import VectorNoise, build_augment
from ..backbones import build_backbone
from . import persistence
from .callbacks import CallbackSupportMixin, Stage
from .identity import digest, fingerprint, weights_name
from .inputs import check_pixel_range, check_samples
from .net import Net, resolve_device
from .parameters import Inference, Training
from .plain import float32_by_default, plain_parameters
from .processes import current
from .samples import PIXEL_RANGES, Samples
from .settings import check_callable, check_folder, check_net, watched
from .warn import warn

# torch's generator belongs to the process: fits in threads take turns
_GENERATOR_LOCK = threading.RLock()
# most of a training that goes into a warm-up which nobody has asked for
_WARMUP_SHARE = 0.1


@contextmanager
def seeded(seed, device):
    """Seed torch's generators that the device uses; give them back afterwards."""
    with _GENERATOR_LOCK, _kept_generators(device):
        if resolve_device(device).type == "cpu":
            # torch.manual_seed would seed those of all accelerators, too
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        yield


def _kept_generators(device):
    """Restore torch's generators after the block: its draws have no effect."""
    cuda = resolve_device(device).type == "cuda"
    return torch.random.fork_rng(
        devices=range(torch.cuda.device_count()) if cuda else []
    )


def unfrozen(estimator):
    """Return the estimator in a FrozenEstimator; anything else unchanged."""
    return estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator


class NetEstimator(Inference, CallbackSupportMixin, BaseEstimator, abstract=True):
    """Base of all estimators that apply a network: ``net_``, made in ``fit``.

    Attributes
    ----------
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``.
    encoder_ : nn.Module
        Trained encoder.
    sample_shape_ : tuple of int
        Shape of one sample: ``(D,)`` or ``(C, H, W)``.
    n_features_in_ : int
        Values per sample.
    """

    # the parameters that the module was made with, and their digests
    _built_with: dict = {}

    @contextmanager
    def _seeded(self):
        """Seed torch from ``random_state``, and give its generators back afterwards."""
        if self.random_state is None:
            seed = int(np.random.default_rng().integers(2**31 - 1))
        else:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        seed = current().shared(lambda: seed)
        with seeded(seed, self.device):
            yield seed

    def _restore_net(self, weights, history, built_with=()):
        """Set ``net_`` from saved weights; the inverse of saving it.

        ``built_with``: parameters that had other values when it was made.
        """
        given = {name: getattr(self, name) for name in built_with}
        vars(self).update(built_with)
        try:
            with plain_parameters(self), float32_by_default():
                self._set_net(weights, history)
        finally:
            vars(self).update(given)

    def _made_with(self):
        """Return the parameters that make the module: {name: (value, digest)}."""
        shared = Training._parameter_constraints.keys() - {"backbone"}
        given = self.get_params(deep=False)
        made = {name: given[name] for name in given if name not in shared}
        return {name: (value, digest(value)) for name, value in made.items()}

    def _changed_parameters(self, now):
        """Return the names of parameters that have changed since the last fit.

        ``now``: what `_made_with` returns now.
        """
        return [
            name
            for name, (_, before) in self._built_with.items()
            if name in now and now[name][1] != before
        ]

    def _set_net(self, weights, history):
        shape = self.sample_shape_
        shape = shape if len(shape) == 1 else (shape[0], 1, 1)
        with self._seeded():  # the first weights are drawn, and overwritten
            module = self._rebuild_module(torch.zeros(shape), torch.ones(shape))
        module.load_state_dict(weights)
        self.net_ = self._make_net(module, self._pixel_range)
        self._built_with = self._made_with()
        for epoch in history:
            self.net_.history.new_epoch()
            self.net_.history[-1].update(epoch)

    def _rebuild_module(self, mean, std):
        """Return a module for saved weights, as it is after training."""
        module = self._build_module(mean, std)
        module.drop_training_state()
        return module

    def _predict_rows(self, X):
        """Return the output for every row, float32; NaN where it cannot be read."""
        return self._forward_rows(self._check_X(X))

    def _forward_rows(self, samples):
        self.net_.module_.eval()
        rows = self.net_.evaluate(samples).numpy()
        rows[samples.bad] = np.nan
        return rows

    def _fit_nested(self, estimator, X, backbone="auto"):
        """Return a fitted estimator: a clone, or the estimator itself if frozen.

        ``backbone``: what the clone trains; "auto": its own.
        """
        own = isinstance(backbone, str) and backbone == "auto"
        if isinstance(estimator, FrozenEstimator):
            if own:
                return estimator
            raise ValueError(
                f"backbone={backbone!r} has no effect on a frozen embedder: leave it "
                'at "auto".'
            )
        copied = clone(estimator)
        if not own:
            # not cloned again: a fitted backbone would forget what it has learned
            copied.set_params(backbone=backbone)
        return self._fit_copy(copied, X)

    def _fit_copy(self, estimator, X, y=None):
        """Fit one of our estimators, with our settings where it has none."""
        unset = {
            name: getattr(self, name, empty)
            for name, empty in (
                ("checkpoint_dir", None),
                ("image_shape", None),
                ("image_size", None),
                ("max_pixels", None),
                ("on_error", "raise"),
            )
            if estimator.get_params(deep=False).get(name, 0) == empty
        }
        if "random_state" in estimator.get_params(deep=False):
            seed = int(torch.randint(2**31 - 1, ()))
            # without a seed of our own none is given: its checkpoint would not be found
            if estimator.random_state is None and self.random_state is not None:
                unset["random_state"] = seed
        estimator.set_params(**unset)
        task = self._task[0].subcontext(task_name="embed")
        with task.propagate_callback_context(estimator):
            estimator.fit(X, y)
        # then nothing is built on it: the stages to come are left out
        self.interrupted_ |= getattr(estimator, "interrupted_", False)
        return estimator

    @property
    def encoder_(self):
        """Trained encoder, as other estimators take it through ``backbone=``."""
        check_is_fitted(self)
        return self.net_.module_.backbone

    def save(self, folder):
        """Write the estimator into a folder as safetensors and JSON.

        Parameters
        ----------
        folder : str or Path
            Created if it does not exist. Nothing executable is written;
            ``sklabel.load`` reads it.

        Raises
        ------
        TypeError
            If a parameter is a user-defined object, which only pickle can save.
        """
        check_is_fitted(self)
        persistence.save(self, folder)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


class VectorEstimator(NetEstimator, abstract=True):
    """Base of estimators that take vectors: X itself, or its embedding.

    ``embedder`` may be a list: the vectors of all of them side by side.

    Attributes
    ----------
    embedder_ : transformer
        Fitted embedder, if there is one.
    sample_shape_ : tuple of int
        Shape of one sample: the embedder's if it has one, else ``(D,)``.
    """

    _continued = None  # there is no warm start
    _pixel_range = None  # of vectors

    def _check_X(self, X, reset=False):
        """Return the vectors of X as `Samples`."""
        if not reset:
            check_is_fitted(self)
        else:
            vars(self).pop("embedder_", None)
            self.interrupted_ = False
            if self.embedder is not None:
                self.embedder_ = self._fit_embedders(X)
        if hasattr(self, "embedder_"):
            return self._embed(X)
        samples = check_samples(self, X, reset, getattr(self, "sample_shape_", None))
        if len(samples.sample_shape) != 1:
            raise ValueError(
                f"{type(self).__name__} without an embedder takes vectors, but X has "
                f"samples of shape {samples.sample_shape}: give embedder=, such as "
                "PretrainedTransformer() or another one of sklabel.embedding."
            )
        if reset:
            self.sample_shape_ = samples.sample_shape
        return samples

    def _fit_embedders(self, X):
        given = self.embedder
        with self._seeded():
            if not isinstance(given, list):
                return self._fit_nested(given, X)
            if not given:
                raise ValueError("embedder=[] is empty: give at least one embedder.")
            for part in given:
                if not isinstance(part, BaseEstimator) or not hasattr(part, "fit"):
                    raise ValueError(
                        f"embedder={given} must contain transformers, such as "
                        f"PretrainedTransformer(), but {part!r} is none."
                    )
            return [self._fit_nested(part, X) for part in given]

    def _spaces(self, X):
        """Return the vectors of X from each embedder."""
        embedders = self.embedder_
        embedders = embedders if isinstance(embedders, list) else [embedders]
        spaces = []
        for embedder in embedders:
            Z = np.asarray(embedder.transform(X), dtype=np.float32)
            if Z.ndim != 2:
                raise ValueError(
                    f"embedder={type(unfrozen(embedder)).__name__} returns an array of "
                    f"shape {Z.shape} for X, not one vector for each row: use another "
                    "embedder."
                )
            spaces.append(Z)
        self.sample_shape_ = getattr(unfrozen(embedders[0]), "sample_shape_", None)
        self.sample_shape_ = self.sample_shape_ or np.shape(X)[1:]
        return spaces

    def _embed(self, X):
        """Return the vectors of X from the embedder."""
        spaces = self._spaces(X)
        Z = spaces[0] if len(spaces) == 1 else np.concatenate(spaces, axis=1)
        bad = np.isnan(Z).any(1)
        return Samples(np.nan_to_num(Z), Z.shape[1:], bad=bad)

    def _make_net(self, module, pixel_range=None, **settings):
        return Net(
            module,
            pixel_range=pixel_range,
            precision="float32",
            device=resolve_device(self.device),
            shared=False,  # a linear layer: each process trains the same one
            **settings,
        ).initialize()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = self.embedder is not None
        return tags


class Learner(Training, NetEstimator, abstract=True):
    """Base of all estimators that train a module through a net.

    A method file defines the module and the public estimator. The base checks X, builds
    the parts, seeds, trains, saves and loads.

    Attributes
    ----------
    n_iter_ : int
        Epochs trained.
    interrupted_ : bool
        Whether Ctrl-C ended the training early.
    """

    # of the last fit: names of the weights that it may have started from, whether it
    # trained nothing at all, and whether it was broken off
    _origins, _fresh, _unfinished = (None,), True, False
    # in a fit: the module that it goes on from, until a new one has taken over its
    # weights; parameters that it did not have; the history of the stages before this
    _continued, _changed, _earlier_epochs = None, (), ()
    # in a fit: whether it goes on with one that was broken off; until its first stage
    # begins, whether it may. What a method needs for it: {name: plain value}, kept
    # until a fit is not broken off
    _goes_on, _for_rest = False, None
    # what weights depend on beyond their shapes: a warm start refuses another value
    _bound: ClassVar[tuple[str, ...]] = ()

    def _check_X(self, X, reset=False):
        """Return X as `Samples`; with ``reset`` (in fit) remember its shape."""
        if not reset:
            check_is_fitted(self)
            samples = check_samples(self, X, False, self.sample_shape_)
            check_pixel_range(samples, self._pixel_range, type(self).__name__)
            return samples
        self._check_settings()
        samples = check_samples(self, X, True)
        if samples.n_trained < 2:
            raise ValueError(
                f"Found array with {len(samples)} sample(s) (shape="
                f"{(len(samples), *samples.sample_shape)}) while a minimum of 2 is "
                f"required by {type(self).__name__}: n_samples = 1 is too few to train."
            )
        made = self._made_with()
        self._changed, self._built_with = self._changed_parameters(made), made
        self._continued = self._start(samples.sample_shape)
        self.sample_shape_ = samples.sample_shape
        self.interrupted_, self._unfinished = False, True
        self._earlier_epochs = ()
        if not self._goes_on:
            self._forget("_for_rest")
        return samples

    def _check_settings(self):
        """Raise errors early that would otherwise occur during training."""
        resolve_device(self.device)
        check_folder(self.checkpoint_dir, "checkpoint_dir")
        for name, value in self.get_params(deep=False).items():
            if name.endswith("augment"):
                for view in value if isinstance(value, (list, tuple)) else [value]:
                    check_callable(view, name, "a batch", n_arguments=1)
        check_callable(self.schedule, "schedule", "(step, total_steps, warmup_steps)")
        names = "optimizer", "lr", "weight_decay"
        settings = {name: getattr(self, name) for name in names}
        check_net(settings, self.net_params or {})

    def _start(self, sample_shape):
        """Return the module that ``fit`` continues from, or None."""
        if not self.warm_start or not hasattr(self, "net_") or self._fresh:
            self._origins, self._fresh = (None,), True
            return None
        if sample_shape != self.sample_shape_:
            raise ValueError(
                f"warm_start=True continues on samples of shape {self.sample_shape_}, "
                f"but X has {sample_shape}: use warm_start=False."
            )
        if set(self._changed) & set(self._bound):
            raise self._misfit([n for n in self._changed if n in self._bound])
        own = weights_name(self.net_.module_)
        self._goes_on = self._unfinished
        # what was broken off goes on from its checkpoint, if it is the same training
        self._origins = (*self._origins, own) if self._unfinished else (own,)
        return copy.deepcopy(self.net_.module_)  # as it is, should this fit fail

    def _checkpoint(self, sampler, stage, identity):
        """Return the file of a stage; it exists if the stage was started before."""
        if self.checkpoint_dir is None:
            self._goes_on = False
            return None
        for number, origin in enumerate(self._origins, 1):
            run = fingerprint(self, sampler, origin, identity)
            folder = Path(self.checkpoint_dir) / f"{type(self).__name__}-{run}"
            if folder.exists():
                break
        if len(self._origins) > 1:
            self._goes_on = number < len(self._origins)
            self._origins = (origin,)
        return folder / f"{stage}.pt"

    def _resolve_pixel_range(self, samples):
        """Return the pixel range of X, or of a network trained on such images."""
        own = samples.pixel_range()
        if own is None or own in PIXEL_RANGES:
            return own
        for part in (getattr(self, "embedder_", None), getattr(self, "backbone", None)):
            known = getattr(unfrozen(part), "_pixel_range", None)
            if known is not None and _holds(known, own):
                return known
        return own

    def _build_backbone(self, mean=None, std=None):
        """Return the encoder to train; "auto": the embedder's, if there is one."""
        embedder = unfrozen(getattr(self, "embedder_", None))
        own = isinstance(self.backbone, str) and self.backbone == "auto"
        # an embedder may have seen images of another size
        if own and getattr(embedder, "sample_shape_", None) == self.sample_shape_:
            if hasattr(embedder, "encoder_"):
                return build_backbone(embedder, self.sample_shape_)
        return build_backbone(self.backbone, self.sample_shape_, mean, std)

    def _build_augment(self, augment, default, mean, std, noise=0.1):
        """Return a fresh policy: ``augment`` itself, or the one "auto" stands for.

        ``default``: a kind of `build_augment`, or the policy for images; vectors get
        ``noise`` then.
        """
        if augment is None:
            return torch.nn.Identity()
        if augment != "auto":
            own = clone(augment, safe=False)
            if type(own).__module__.startswith("sklabel."):
                return own
            given = self.get_params(deep=False).items()
            names = [name for name, value in given if value is augment]
            return watched(own, *(names or ["augment"])[:1])
        if isinstance(default, str):
            return build_augment(default, self.sample_shape_, mean, std)
        if len(self.sample_shape_) == 1:
            return VectorNoise(noise, noise, mean, std)
        return default

    def _new_embedder(self, **settings):
        """Return the default embedder, on the same device as this estimator.

        The method names its class, ``_default_embedder``.
        """
        names = "device", "precision", "verbose"
        shared = {name: getattr(self, name) for name in names}
        return self._default_embedder(**settings, **shared)

    # -- warm starts

    def _misfit(self, names):
        given = self.get_params(deep=False)
        shown = " and ".join(f"{name}={given[name]!r}"[:200] for name in names)
        return ValueError(
            "warm_start=True continues from the weights of the last fit, which do not "
            f"fit {shown or 'the network of the current parameters'}: undo the "
            "changes, or use warm_start=False."
        )

    def _part(self, name, build):
        """Return a part of the module, in a warm start with its earlier weights.

        Parameters
        ----------
        name : str
            Of the part; "": the module itself.
        build : callable
            Creates it from the parameters. In a warm start, its random draws have no
            effect.

        Raises
        ------
        ValueError
            If the weights do not fit.
        """
        if self._continued is None:
            return build()
        with _kept_generators(self.device):
            part = build()
        return self._load(part, self._continued.get_submodule(name))

    def _take_over(self, module, *names):
        """Load the learned state of the last module in a warm start.

        Parameters
        ----------
        module : Method
        *names : str
            Parts that have learned, buffers and counts.

        Returns
        -------
        module : Method
        """
        if self._continued is not None:
            for name in names:
                before = getattr(self._continued, name)
                if isinstance(before, torch.nn.Module):
                    self._load(getattr(module, name), before)
                else:
                    setattr(module, name, before)
        return module

    def _load(self, part, before):
        """Return a part with the weights of another, which must fit."""
        policies = getattr(part, "policies", ())

        def learned(module):
            state = module.state_dict()
            return {
                k: v for k, v in state.items() if k.partition(".")[0] not in policies
            }

        own, weights = learned(part), learned(before)
        shapes = [
            {name: getattr(value, "shape", None) for name, value in state.items()}
            for state in (own, weights)
        ]
        if shapes[0] != shapes[1]:
            raise self._misfit(self._changed)
        part.load_state_dict(weights, strict=False)
        return part

    def _make_net(self, module, pixel_range, **settings):
        """Return an initialized net; ``settings`` win over the shared parameters."""
        names = ("max_epochs", "max_steps", "batch_size", "optimizer", "lr")
        names += ("weight_decay", "schedule", "warmup_epochs", "precision", "verbose")
        names += ("accumulate",)
        given = {name: getattr(self, name) for name in names}
        return Net(
            module,
            pixel_range=pixel_range,
            device=resolve_device(self.device),
            **{**given, **settings, **(self.net_params or {})},
        ).initialize()

    def _n_epochs(self, sampler, max_epochs=None, max_steps=0, batch_size=None, **_):
        """Return the length of a training in epochs, which may be fractional."""
        max_steps = self.max_steps if max_steps == 0 else max_steps
        if max_steps is None:
            return max_epochs or self.max_epochs
        return max_steps / sampler.n_batches(batch_size or self.batch_size)

    def _stage(
        self,
        name,
        module,
        sampler,
        *,
        identity=(),
        predicts=True,
        watch=None,
        train=True,
        lr_name="lr",
        **settings,
    ):
        """Train a module: one stage of a method. Its epochs are added to the history.

        A stage that was started before continues from its checkpoint.

        Parameters
        ----------
        name : str
            Names the progress bar and the checkpoint.
        module : Method
        sampler : Shuffled or another sampler
            The rows, and the order in which they are drawn.
        identity : sequence
            What identifies this training, besides the estimator's parameters, the rows
            and the ``identity`` of their sampler: names the checkpoint.
        predicts : bool
            Whether the estimator can predict between the epochs of this stage.
        watch : callable or None
            See `Net`.
        train : bool
            False creates the net of a skipped stage.
        lr_name : str
            The parameter that holds the learning rate of this stage; if it is None,
            ``lr`` does. It is named if the stage diverges.
        **settings
            Win over the estimator's own parameters.

        Returns
        -------
        module : Method
        """
        self._continued = None  # the module holds what it takes over
        lr_name = "lr" if getattr(self, lr_name) is None else lr_name
        settings.setdefault("lr", getattr(self, lr_name))
        usual = type(self).warmup_epochs
        if usual and usual == self.warmup_epochs and "warmup_epochs" not in settings:
            n_batches = sampler.n_batches(settings.get("batch_size", self.batch_size))
            n_steps = round(n_batches * self._n_epochs(sampler, **settings))
            longest = int(_WARMUP_SHARE * n_steps) / n_batches
            settings["warmup_epochs"] = min(usual, longest)
        self._pixel_range = self._resolve_pixel_range(sampler.samples)
        net = self._make_net(
            module,
            self._pixel_range,
            checkpoint=self._checkpoint(sampler, name, identity),
            watch=watch,
            stage=Stage(self, name, predicts),
            description=f"{type(self).__name__} {name}",
            **settings,
        )
        net.rate = f"{lr_name}={getattr(self, lr_name)}"
        if "lr" in (self.net_params or {}):
            net.rate = f"net_params={self.net_params!r}"
        self.net_ = net
        self._fresh &= self.interrupted_
        if train and not self.interrupted_:
            self._agree(name, sampler)
            net.partial_fit(sampler)
            net.stage = None  # it knows X
            if net.interrupted_:
                self.interrupted_ = True
                warn(
                    f"{type(self).__name__} was interrupted in stage {name!r} after "
                    f"{net.step_} of {net.total_steps_} steps. It is fitted with its "
                    "weights at that step; call fit again for "
                    "the rest.",
                    UserWarning,
                )
        net.history[:0] = self._earlier_epochs
        self._earlier_epochs = net.history[:]
        self.n_iter_ = len(net.history)
        return module

    def _agree(self, stage, sampler):
        """Raise an error if processes that train together do not train the same."""
        group = current()
        if group.size == 1:
            return
        samples = sampler.samples
        some = samples[samples.spread(32)]
        group.agree(
            {
                "their estimators": (type(self).__name__, stage),
                "the parameters": _plain(self.get_params(deep=False)),
                "X": (len(samples), digest(some)),
                "y, or what the fit has made of X before": digest(sampler.identity),
            }
        )


def _plain(parameters):
    kinds = str, int, float
    given = parameters.items()
    return {k: v for k, v in given if isinstance(v, kinds) and k != "verbose"}


def _holds(outer, inner):
    """Return whether one range of values holds at least 3/4 of another."""
    common = min(outer[1], inner[1]) - max(outer[0], inner[0])
    return common >= 0.75 * (inner[1] - inner[0])
