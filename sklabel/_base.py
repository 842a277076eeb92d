"""What every estimator shares: one base, and one mixin per role."""

import functools
import threading
from collections import namedtuple
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
    clone,
)
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from . import _persistence
from ._calibration import fit_temperature, hold_out, rescale
from ._callbacks import CallbackSupportMixin, Stage
from ._data import PIXEL_RANGES, check_pixel_range, check_samples, evenly
from ._labels import check_labels, decode_labels, encode_labels, is_labeled
from ._net import OPTIMIZERS, SCHEDULES, Net, resolve_device
from ._warn import warn
from .augment import VectorNoise, build_augment
from .backbones import build_backbone
from .metrics import effective_rank, feature_std
from .neighbors import kneighbors
from .optim import scaled_lr

# torch's generator belongs to the process: fits in threads take turns
_GENERATOR_LOCK = threading.RLock()

SHARED_CONSTRAINTS = {
    "backbone": [str, torch.nn.Module, BaseEstimator],
    "max_epochs": [Interval(Integral, 1, None, closed="left")],
    "max_steps": [Interval(Integral, 1, None, closed="left"), None],
    "batch_size": [Interval(Integral, 2, None, closed="left")],
    "optimizer": [StrOptions(set(OPTIMIZERS)), callable],
    "lr": [Interval(Real, 0, None, closed="neither")],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "schedule": [StrOptions(set(SCHEDULES)), callable],
    "warmup_epochs": [Interval(Real, 0, None, closed="left")],
    "image_shape": ["array-like", None],
    "image_size": [Interval(Integral, 1, None, closed="left"), "array-like", None],
    "on_error": [StrOptions({"raise", "skip"})],
    "warm_start": ["boolean"],
    "device": [str, torch.device],
    "precision": [StrOptions({"auto", "bfloat16", "float32"})],
    "checkpoint_dir": [str, Path, None],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
    "net_params": [dict, None],
}
CLASSIFIER_CONSTRAINTS = {
    "class_weight": [StrOptions({"balanced"}), dict, None],
    "calibration_size": [
        Interval(Integral, 1, None, closed="left"),
        Interval(Real, 0, 1, closed="neither"),
        None,
    ],
    **SHARED_CONSTRAINTS,
}


def unfrozen(estimator):
    """Return what a FrozenEstimator holds; anything else as it is."""
    return estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator


class CollapseWarning(UserWarning):
    """Training has lost what it was to learn; the message names what to change."""


class BaseLearner(CallbackSupportMixin, BaseEstimator):
    """Base of all estimators that train a module through a net.

    A method file gives the module and the public face. The base checks X, builds the
    parts, holds the seed, trains, saves and loads.
    """

    # of the last fit: names of the weights that it may have started from, whether it
    # trained nothing at all, and whether it was broken off
    _origins, _fresh, _unfinished = (None,), True, False

    def _check_X(self, X, reset=False):
        """Return X as `Samples`; with ``reset`` (in fit) remember its shape."""
        if not reset:
            check_is_fitted(self)
            samples = check_samples(self, X, False, self.sample_shape_)
            check_pixel_range(samples, self._pixel_range, type(self).__name__)
            return samples
        samples = check_samples(self, X, True)
        if samples.n_trained < 2:
            raise ValueError(
                f"Found array with {len(samples)} sample(s) (shape="
                f"{(len(samples), *samples.sample_shape)}) while a minimum of 2 is "
                f"required by {type(self).__name__}: n_samples = 1 is too few to train."
            )
        self._continued = self._start(samples.sample_shape)
        self.sample_shape_ = samples.sample_shape
        self.interrupted_, self._unfinished = False, True
        return samples

    def _start(self, sample_shape):
        """Return the module that ``fit`` goes on from; None: from nothing."""
        if not self.warm_start or not hasattr(self, "net_") or self._fresh:
            self._origins, self._fresh = (None,), True
            return None
        if sample_shape != self.sample_shape_:
            raise ValueError(
                f"warm_start=True continues on samples of shape {self.sample_shape_}, "
                f"but X has {sample_shape}: use warm_start=False."
            )
        own = _persistence.weights_name(self.net_.module_)
        # what was broken off goes on from its checkpoint, if it is the same training
        self._origins = (*self._origins, own) if self._unfinished else (own,)
        return self.net_.module_

    def _checkpoint(self, samples, stage):
        """Return the file of a stage; it exists where the stage was begun before."""
        if self.checkpoint_dir is None:
            return None
        for origin in self._origins:
            run = _persistence.fingerprint(self, samples, origin)
            folder = Path(self.checkpoint_dir) / f"{type(self).__name__}-{run}"
            if folder.exists():
                break
        self._origins = (origin,)
        return folder / f"{stage}.pt"

    def _black_and_white(self, samples):
        """Return the pixel range of X, or of what has been trained on such images."""
        own = samples.pixel_range()
        if own is None or own in PIXEL_RANGES:
            return own
        for part in (getattr(self, "embedder_", None), getattr(self, "backbone", None)):
            known = getattr(unfrozen(part), "_pixel_range", None)
            if known is not None and _holds(known, own):
                return known
        return own

    @contextmanager
    def _seeded(self):
        """Seed torch from ``random_state``, and give its generators back afterwards."""
        if self.random_state is None:
            seed = int(np.random.default_rng().integers(2**31 - 1))
        else:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        cuda = resolve_device(self.device).type == "cuda"
        with (
            _GENERATOR_LOCK,
            torch.random.fork_rng(
                devices=range(torch.cuda.device_count()) if cuda else []
            ),
        ):
            torch.manual_seed(seed)
            yield seed

    def _build_backbone(self, mean=None, std=None):
        """Return the encoder to train; "auto": that of the embedder, if one was fitted."""
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
            return clone(augment, safe=False)
        if isinstance(default, str):
            return build_augment(default, self.sample_shape_, mean, std)
        if len(self.sample_shape_) == 1:
            return VectorNoise(noise, noise, mean, std)
        return default

    def _fit_held(self, estimator, X):
        """Return ``estimator`` fitted: a clone of it, or itself where it is frozen."""
        if isinstance(estimator, FrozenEstimator):
            return estimator
        return self._fit_within(clone(estimator), X)

    def _fit_on_backbone(self, embedder, X):
        """Return an embedder fitted; the ``backbone``, where given, is what it trains."""
        if isinstance(self.backbone, str) and self.backbone == "auto":
            return self._fit_held(embedder, X)
        if isinstance(embedder, FrozenEstimator):
            raise ValueError(
                f"backbone={self.backbone!r} has no effect on a frozen embedder: "
                'leave it at "auto".'
            )
        # not cloned again: then a fitted backbone would forget what it has learned
        return self._fit_within(clone(embedder).set_params(backbone=self.backbone), X)

    def _fit_within(self, estimator, X, y=None):
        """Fit an estimator of our own, which takes over what it has not been given."""
        unset = {
            name: getattr(self, name)
            for name, empty in (
                ("checkpoint_dir", None),
                ("image_shape", None),
                ("image_size", None),
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

    def _make_net(self, module, pixel_range, **settings):
        """Return an initialized net; ``settings`` win over the shared parameters."""
        names = ("max_epochs", "max_steps", "batch_size", "optimizer", "lr")
        names += ("weight_decay", "schedule", "warmup_epochs", "precision", "verbose")
        given = {name: getattr(self, name) for name in names}
        return Net(
            module,
            pixel_range=pixel_range,
            device=resolve_device(self.device),
            **{**given, **settings, **(self.net_params or {})},
        ).initialize()

    def _fit_net(
        self,
        module,
        samples,
        *,
        stage="fit",
        predicts=True,
        watch=None,
        train=True,
        **settings,
    ):
        """Train a module on samples; a method's stages are calls of this in turn.

        Parameters
        ----------
        module : nn.Module
            With the verbs of `Net`.
        samples : Samples
        stage : str
            Names the progress bar and the checkpoint.
        predicts : bool
            Whether the estimator can predict between the epochs of this stage.
        watch : callable or None
            See `Net`.
        train : bool
            False makes the net of a stage that is left out.
        **settings
            Win over the estimator's own parameters.

        Returns
        -------
        self
        """
        self._continued = None  # the module holds what it takes over
        checkpoint = self._checkpoint(samples, stage)
        self._pixel_range = self._black_and_white(samples)
        net = self._make_net(
            module,
            self._pixel_range,
            checkpoint=checkpoint,
            watch=watch,
            stage=Stage(self, stage, predicts),
            description=f"{type(self).__name__} {stage}",
            **settings,
        )
        self.net_ = net
        self.n_iter_ = 0
        if self.interrupted_:
            return self
        self._fresh = False
        if not train:
            return self
        net.partial_fit(samples)
        net.stage = None  # it knows X
        self.n_iter_ = len(net.history)
        if net.interrupted_:
            self.interrupted_ = True
            warn(
                f"{type(self).__name__} was interrupted in stage {stage!r} after "
                f"{net.step_} of {net.total_steps_} steps. It is fitted with what it "
                "had learned; call fit again for the rest.",
                UserWarning,
            )
        return self

    def _restore_net(self, weights, history):
        """Set ``net_`` from saved weights; the inverse of saving it."""
        shape = self.sample_shape_
        shape = shape if len(shape) == 1 else (shape[0], 1, 1)
        with self._seeded():  # the first weights are drawn, and overwritten
            module = self._rebuild_module(torch.zeros(shape), torch.ones(shape))
        module.load_state_dict(weights)
        self.net_ = self._make_net(module, self._pixel_range)
        for epoch in history:
            self.net_.history.new_epoch()
            self.net_.history[-1].update(epoch)

    def _rebuild_module(self, mean, std):
        return self._build_module(mean, std)

    def _predict_rows(self, X):
        """Return the module's forward for every row, float32; NaN for unreadable ones."""
        return self._forward_rows(self._check_X(X))

    def _forward_rows(self, samples):
        rows = self.net_.forward(samples).numpy()
        rows[samples.bad] = np.nan
        return rows

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
            Made if it does not exist. Nothing executable is written; ``sklabel.load``
            reads it.

        Raises
        ------
        TypeError
            If a parameter is an object of the user's own, which only pickle can keep.
        """
        check_is_fitted(self)
        _persistence.save(self, folder)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


class EmbeddingMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Transform samples into the encoder's features."""

    def transform(self, X):
        """Embed samples.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_features_out), float32
            A row of NaN for a file that cannot be read, with ``on_error="skip"``.
        """
        return self._predict_rows(X)

    def score(self, X, y=None):
        """Return the negative training loss on X, so that a search needs no labels.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.
        y : None
            Ignored.

        Returns
        -------
        score : float
            Higher is better. Values compare only at equal batch size and temperature.
        """
        samples = self._check_X(X)
        net = self.net_
        module = net.module_.eval()
        losses = []
        with self._seeded(), torch.inference_mode():
            for rows in samples.epoch(self.batch_size):
                x, y = samples[rows]
                with net.autocast():
                    loss = module.loss(net.to_device(x), y.to(net.device))
                losses.append(float(loss[0] if isinstance(loss, tuple) else loss))
        return -float(np.mean(losses))

    @property
    def _n_features_out(self):
        return self.net_.module_.n_features_out

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _fit_embedding(self, samples, remedy, **limits):
        """Train the method's module; a collapse is told with what to change."""
        with self._seeded():
            module = self._continued or self._build_module(*samples.statistics())
            lr = scaled_lr(self.lr, self.batch_size, self.lr_scaling)
            self._fit_net(module, samples, watch=watch_features, lr=lr)
        self._warn_collapse(remedy, **limits)
        return self

    def _warn_collapse(self, remedy, least_spread=0.05, least_rank=1.5):
        if not self.net_.history:
            return  # interrupted in the first epoch
        spread = self.net_.history[-1].get("feature_std", 1.0)
        rank = self.net_.history[-1].get("effective_rank", np.inf)
        if spread < least_spread or rank < least_rank:
            warn(
                f"The features of {type(self).__name__} have collapsed (spread "
                f"{spread:.3f} of 1, effective rank {rank:.1f}): {remedy}.",
                CollapseWarning,
            )


def watch_features(net, samples, n_rows=256):
    """Return spread and effective rank of the features of some rows, for the history."""
    net.module_.eval()
    x, _ = samples[samples.spread(n_rows)]
    with torch.inference_mode(), net.autocast():
        h = net.module_(net.to_device(x[0] if isinstance(x, tuple) else x)).float()
    net.module_.train()
    return {
        "feature_std": float(feature_std(h)),
        "effective_rank": float(effective_rank(h)),
    }


class PredictClustersMixin:
    """Predict the cluster of samples from the module's probabilities."""

    def predict_proba(self, X):
        """Return the probability of each cluster.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_clusters), float32
        """
        return self._predict_rows(X)

    def predict(self, X):
        """Return the cluster of each sample.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        labels : ndarray of int of shape (n_samples,)
            -1 for a file that cannot be read, with ``on_error="skip"``.
        """
        return _most_probable(self.predict_proba(X))


class ClusteringMixin(PredictClustersMixin, ClusterMixin):
    """What the clusterers that train a network have in common."""

    def _set_labels(self, p, samples, remedy, remedy_largest, prior=None):
        """Set ``labels_`` and what goes with them; return the clusters in use.

        Parameters
        ----------
        p : ndarray of shape (n_samples, K)
            Probabilities; clusters that no row uses do not count.
        samples : Samples
        remedy : str
            What to do about clusters that are not in use.
        remedy_largest : str
            What to do about one cluster that holds most rows.
        prior : Tensor of shape (K,) or None
            Shares that the clusters were asked to have; None: equal ones.
        """
        good = ~samples.bad
        labels = p[good].argmax(1)
        used = np.unique(labels)
        p = p[:, used] / p[:, used].sum(1, keepdims=True)
        self.labels_ = np.full(len(samples), -1)
        self.labels_[good] = np.searchsorted(used, labels)
        self.confidence_ = np.where(good, p.max(1), np.nan).astype(np.float32)
        set_n_clusters(self, remedy, remedy_largest, prior)
        return used


def check_n_clusters(clusterer, samples):
    """Check that there are as many readable rows as clusters."""
    if clusterer.n_clusters > samples.n_trained:
        raise ValueError(
            f"n_clusters={clusterer.n_clusters} is larger than the number of samples, "
            f"{samples.n_trained}."
        )


def set_n_clusters(
    clusterer, remedy, remedy_largest, prior=None, of="rows", largest=0.5
):
    """Set ``n_clusters_`` by ``labels_``, and warn of missing or too large clusters.

    ``prior``: the shares that they were asked to have; None: equal ones. ``of``: what
    has labels. ``largest``: the share of one cluster that is too large, where there are
    more than a few.
    """
    sizes = np.bincount(clusterer.labels_[clusterer.labels_ >= 0])
    clusterer.n_clusters_, wanted = len(sizes), clusterer.n_clusters
    share, expected = sizes.max() / sizes.sum(), 0.0
    if prior is not None:
        wanted, expected = int((prior > 0).sum()), float(prior.max())
    if len(sizes) < wanted:
        warn(
            f"Only {len(sizes)} of n_clusters={clusterer.n_clusters} clusters are in use; "
            f"sizes {sizes.tolist()}. {remedy}.",
            CollapseWarning,
        )
    elif wanted > 1 and share > max(
        min(max(largest, 3 / wanted), 0.95), (1 + expected) / 2
    ):
        warn(
            f"One cluster holds {share:.0%} of the {of}. {remedy_largest}.",
            CollapseWarning,
        )


def check_information(clusterer, what):
    """Say so where views say next to nothing of each other (IIC)."""
    history = clusterer.net_.history  # empty where Ctrl-C broke off the first epoch
    found = history[-1].get("information", np.inf) if history else np.inf
    best = np.log(clusterer.n_clusters)
    if found < 0.05 * best:
        warn(
            f"The clusters of {what} say next to nothing of each other: information "
            f"{found:.3f}, at best {best:.2f}. Raise lr={clusterer.lr} or "
            f"max_epochs={clusterer.max_epochs}, or change augment.",
            CollapseWarning,
        )


def predict_all(net, samples, forward=None):
    """Return the module's probabilities of readable rows, un-augmented, in eval mode.

    ``forward``: what is asked in the module's place.
    """
    batches = [
        net.evaluation_step(batch, forward=forward)
        for batch in net.get_iterator(samples)
    ]
    net.module_.train()
    dim = 0 if batches[0].ndim == 2 else 1
    p = torch.cat(batches, dim).cpu()
    p = p if dim == 0 else p.transpose(0, 1)  # (n, K) or (n, heads, K)
    return p[torch.from_numpy(samples.good)] if samples.bad.any() else p


def predict_some(net, samples, rows, forward=None):
    """Return the module's output for some rows, in that order, in eval mode."""
    batches = np.array_split(rows, -(-len(rows) // net.batch_size))
    return torch.cat(
        [net.evaluation_step(samples[batch], forward=forward) for batch in batches]
    )


def cluster_figures(p, neighbors=None):
    """Return what shows trouble without labels: how the rows (n, K) lie in clusters."""
    labels = p.argmax(1)
    counts = torch.bincount(labels, minlength=p.shape[1])
    figures = {
        "largest_cluster": float(counts.max() / len(p)),
        "clusters_used": int((counts > 0).sum()),
        "confident_share": float((p.max(1).values > 0.99).float().mean()),
    }
    if neighbors is not None:
        same = labels[torch.from_numpy(neighbors[:, 1:])] == labels[:, None]
        figures["neighbor_agreement"] = float(same.float().mean())
    return figures


def lost_clusters(used, labels):
    """Return which of the clusters that were in use (K,) have no row any more.

    Not by their number: one may come into use as another is lost.
    """
    lost = used.clone()
    lost[labels.unique()] = False
    return lost


def neighbor_agreement(Z, labels, n_rows=1000, n_neighbors=10):
    """Return how often the nearest rows of Z share a row's cluster, by some rows."""
    rows = evenly(len(Z), n_rows)
    k = min(n_neighbors, len(Z) - 1)
    _, near = kneighbors(Z, k + 1, queries=Z[rows], method="exact")
    same = labels[near] == labels[rows, None]
    return float(same[near != rows[:, None]].mean())


def watch_accuracy(net, samples, rows, codes):
    """Return the accuracy on rows with known classes, for the history."""
    p = predict_some(net, samples, rows)
    net.module_.train()
    return {"held_accuracy": float((p.argmax(1).cpu().numpy() == codes).mean())}


class LabeledScoreMixin:
    """Score on the rows that have a label."""

    def score(self, X, y, sample_weight=None):
        """Return the accuracy on the labeled rows.

        Parameters
        ----------
        X : array-like
            What ``predict`` takes.
        y : array-like of shape (n_samples,)
            Classes; rows that are unlabeled (-1, None or NaN) do not count.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each row.

        Returns
        -------
        accuracy : float
        """
        labeled = is_labeled(y)
        if not labeled.any():
            raise ValueError("y has no labeled row to score on: every label is -1.")
        weights = _check_sample_weight(sample_weight, labeled)[labeled]
        if not weights.any():
            raise ValueError("sample_weight must not be 0 for every labeled row.")
        found = np.asarray(self.predict(X))
        if len(found) != len(labeled):
            raise ValueError(
                "Found input variables with inconsistent numbers of samples: "
                f"X has {len(found)} rows, y has {len(labeled)}."
            )
        truth = np.asarray(y).reshape(-1)  # y may be a column
        hits = found[labeled] == truth[labeled]
        return float(np.average(hits, weights=weights))


# labeled rows that are withheld, with their classes and their sample_weight
Held = namedtuple("Held", "rows codes weights")


class ClassificationMixin(LabeledScoreMixin, ClassifierMixin):
    """Encode partly labeled y, and predict classes from the module's probabilities."""

    def _encode_y(self, y, samples):
        """Set ``classes_`` and return class codes, -1 for an unlabeled row."""
        classes, codes = encode_labels(check_labels(y, n_samples=len(samples)))
        if self._continued is not None and not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"warm_start=True continues on the classes {self.classes_}, but y has "
                f"{classes}: use warm_start=False."
            )
        self.classes_ = classes
        self.calibration_temperature_ = 1.0  # until the end: callbacks may predict
        return codes

    def _divide_labels(self, codes, samples, sample_weight, seed):
        """Divide the labeled rows into those to train on and those to calibrate on.

        Only rows that can be read and have a weight are of use for either.

        Parameters
        ----------
        codes : ndarray of int of shape (n_samples,)
            -1 for an unlabeled row.
        samples : Samples
        sample_weight : array-like of shape (n_samples,) or None
        seed : int

        Returns
        -------
        rows : Samples
            Without labeled rows of weight 0.
        trained : ndarray of int of shape (n_samples,)
            The codes, -1 where the label is withheld.
        weights : ndarray of shape (n_samples,) or None
            How often each labeled row is drawn; None: all equally often.
        held : Held
            Rows whose labels are withheld.
        """
        self._check_class_weight()
        own = _check_sample_weight(sample_weight, codes >= 0)
        given = own * self._class_weights()[codes]
        weightless = (codes >= 0) & (given == 0)
        rows = samples.without(weightless)
        if rows.n_trained < 2:  # BatchNorm cannot train on one
            rows = samples
        usable = np.where(samples.bad | weightless, -1, codes)
        self._check_usable(usable, codes)
        trained, held = codes, np.empty(0, int)
        if self._continued is None or not hasattr(self, "_held_seed"):
            self._held_seed = seed
        if self.calibration_size is not None:
            # what goes on with the same y withholds the same rows: it knows the others
            usable, held = hold_out(usable, self.calibration_size, self._held_seed)
            trained = codes.copy()
            trained[held] = -1
        held = Held(held, codes[held], own[held])
        if self.class_weight is None and sample_weight is None:
            return rows, trained, None, held
        known = usable >= 0
        weights = np.where(known, given, 0.0)
        if self.class_weight == "balanced":
            weights[known] /= np.bincount(usable[known])[usable[known]]
        return rows, trained, weights, held

    def _check_class_weight(self):
        if not isinstance(self.class_weight, dict):
            return
        classes = self.classes_.tolist()
        unknown = [name for name in self.class_weight if name not in classes]
        if unknown:
            raise ValueError(
                f"class_weight names {unknown}, which are no labels of y: "
                f"{self.classes_}."
            )
        weights = np.array([*self.class_weight.values()], dtype=float)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(
                f"class_weight={self.class_weight} must be finite and not negative."
            )

    def _class_weights(self):
        """Return the weight that was given to each class."""
        given = self.class_weight if isinstance(self.class_weight, dict) else {}
        return np.array([given.get(name, 1.0) for name in self.classes_.tolist()])

    def _check_usable(self, usable, codes):
        """Say so where no labeled row, of a class or at all, is of use."""
        lost = np.setdiff1d(codes[codes >= 0], usable)
        if not len(lost):
            return
        if (usable < 0).all():
            raise ValueError(
                f"None of the {(codes >= 0).sum()} labeled rows is of use: their image "
                "files cannot be read, or their sample_weight or class_weight is zero. "
                "Label others."
            )
        names = ", ".join(map(str, self.classes_[lost].tolist()))
        warn(
            f"No labeled row of class {names} is of use: image files that cannot be "
            "read, or whose sample_weight or class_weight is zero. Label others, or take "
            "these labels away.",
            UserWarning,
        )

    def _watch(self, held):
        """Return what watches the accuracy on withheld rows; None: there are none."""
        if not len(held.rows):
            return None
        return functools.partial(watch_accuracy, rows=held.rows, codes=held.codes)

    def _finish(self, samples, codes, held, y):
        """Calibrate on the rows withheld, and give every row of X a class.

        A row has the given class, else the predicted one. One that could not be read
        keeps the mark that unlabeled rows have in y.
        """
        p = self._forward_rows(samples)
        if len(held.rows):
            temperature = fit_temperature(p[held.rows], held.codes, held.weights)
            self.calibration_temperature_ = temperature
            self._check_held(len(held.rows))
        codes = np.where(codes >= 0, codes, _most_probable(p))
        self.transduction_ = decode_labels(codes, self.classes_, like=y)

    def _check_held(self, n_rows):
        """Say so where the accuracy on withheld rows has fallen late."""
        history = getattr(getattr(self, "net_", None), "history", [])
        course = [
            epoch["held_accuracy"]
            for epoch in history
            # every stage trains a network of its own
            if "held_accuracy" in epoch  # Ctrl-C may have come before
            and all(epoch.get(k) == history[-1].get(k) for k in ("stage", "round"))
        ]
        if not course:
            return
        best, last = max(course), course[-1]
        mean = (best + last) / 2
        # the best of many epochs is high by chance, too
        if best - last > 3 * np.sqrt(2 * mean * (1 - mean) / n_rows):
            warn(
                f"The accuracy on the {n_rows} withheld rows fell from {best:.0%} to "
                f"{last:.0%} at the end of the training: train shorter, lower lr, or "
                "label more rows.",
                CollapseWarning,
            )

    def _check_shares(self, shares, prior, rows, n_rows, *remedies, **settings):
        """Say so where one class has nearly all of some rows, or another none of them.

        Parameters
        ----------
        shares, prior : ndarray of shape (n_classes,)
            Of these rows, and of the labeled ones whatever their weights; both sum to 1.
        rows : str
            What they are.
        n_rows : int
            Their number: of fewer than ten a class may be missing by chance.
        *remedies : str
            What to try.
        **settings
            Parameters that may help, unless they are set like that.
        """
        most, least = shares.argmax(), shares.argmin()
        expected = n_rows * prior
        unset = [f"{k}={v!r}" for k, v in settings.items() if getattr(self, k) != v]
        ways = " or ".join([*unset, *remedies, "more labels of what is rare"])
        if (
            shares[most] > (1 + prior[most]) / 2
            and expected.sum() - expected[most] >= 10
        ):
            warn(
                f"{shares[most]:.0%} of the {rows} are of class {self.classes_[most]}, "
                f"but {prior[most]:.0%} of the labels. Unless your data are like that, "
                f"try {ways}.",
                CollapseWarning,
            )
        elif shares[least] < 1e-4 and expected[least] >= 10:
            warn(
                f"None of the {rows} is of class {self.classes_[least]}: try {ways}.",
                CollapseWarning,
            )

    def predict_proba(self, X):
        """Return the probability of each class.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes), float32
            Columns in the order of ``classes_``.
        """
        return rescale(self._predict_rows(X), self.calibration_temperature_)

    def predict(self, X):
        """Return the class of each sample.

        Parameters
        ----------
        X : array-like
            Samples of the fitted shape.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            -1 for a file that cannot be read, with ``on_error="skip"``.
        """
        codes = _most_probable(self.predict_proba(X))
        return decode_labels(codes, self.classes_)


def _most_probable(probabilities):
    bad = np.isnan(probabilities[:, 0])
    return np.where(bad, -1, np.nan_to_num(probabilities).argmax(1))


def _holds(outer, inner):
    """Return whether one range of values holds three quarters of another at least."""
    common = min(outer[1], inner[1]) - max(outer[0], inner[0])
    return common >= 0.75 * (inner[1] - inner[0])


def _check_sample_weight(sample_weight, labeled):
    """Return the weight of each row (None: 1), checked where it has a label."""
    if sample_weight is None:
        return np.ones(len(labeled))
    given = np.asarray(sample_weight, dtype=np.float64)
    if given.ndim == 0:
        given = np.full(len(labeled), given)
    if given.shape != labeled.shape:
        raise ValueError(
            f"sample_weight.shape == {given.shape}, expected {labeled.shape}!"
        )
    if not (np.isfinite(given) & (given >= 0))[labeled].all():
        raise ValueError("sample_weight must be finite and not negative.")
    return given
