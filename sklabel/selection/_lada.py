"""LADA: pairs whose mixtures are most informative (Kim et al., 2021)."""

import hashlib
import math
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from .._core.layers import choose_layers, output_shapes, pooled
from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    ArrayLike,
    AtLeastTwo,
    Augment,
    Count,
    Optimizer,
    Positive,
    SampleCount,
    Schedule,
)
from .._core.processes import own_part
from .._core.roles.selection import PredictedLossRole
from .._core.samplers import Coupled, LabeledThenCoupled
from ..modules import Method, filled_, frozen_copy

# of the Beta distribution, which has no draws at 0
_LEAST_TAU = 1e-3
_ACTIVATIONS = nn.ReLU.__module__


def mix(h, share):
    """Mix the outputs of a layer for the two rows of each pair.

    Parameters
    ----------
    h : Tensor of shape (2 B, ...)
        The first rows of all pairs, then the second ones.
    share : Tensor of shape (n_draws, B)
        Share of the first row of each pair, in [0, 1]. Paper: lambda.

    Returns
    -------
    mixed : Tensor of shape (n_draws * B, ...)
        The first draw of all pairs, then the second one, and so on.
    """
    first, second = h.chunk(2)
    share = share.to(h.dtype).view(*share.shape, *[1] * (h.ndim - 1))
    return (share * first + (1 - share) * second).flatten(0, 1)


def entropy_bits(logits):
    """Return the entropy (B,) of predictions (B, K) in bits."""
    return torch.special.entr(logits.softmax(1)).sum(1) / math.log(2)


@contextmanager
def _changed(part, change):
    """Replace the output of a part's first run by ``change(output)``."""
    done = False

    def hook(part, inputs, output):
        nonlocal done
        if done:
            return output
        done = True
        return change(output)

    handle = part.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class _Policy(nn.Module):
    """How evenly to mix two rows: tau in (0, 1), from the outputs of a layer."""

    def __init__(self, shape):
        super().__init__()
        self.maps = nn.Identity()
        n_features = 2 * (shape[0] if len(shape) == 1 else shape[-1])
        if len(shape) == 3:
            n_channels, *sides = shape
            small = min(sides) < 12  # no place for a second kernel and maximum
            self.maps = nn.Sequential(
                nn.Conv2d(2 * n_channels, 6, 5, padding=2),
                nn.ReLU(),
                nn.MaxPool2d(2, ceil_mode=small),
                nn.Conv2d(6, 16, 5, padding=2 if small else 0),
                nn.ReLU(),
                nn.MaxPool2d(2, ceil_mode=small),
                nn.Flatten(),
            )
            with torch.no_grad():
                n_features = self.maps(torch.zeros(1, 2 * n_channels, *sides)).shape[1]
        self.last = nn.Sequential(
            nn.Linear(n_features, 120),
            nn.Tanh(),
            nn.Linear(120, 60),
            nn.Tanh(),
            nn.Linear(60, 1),
            nn.Sigmoid(),
        )

    def forward(self, h):
        h = (h if h.ndim == 4 else pooled(h)).to(self.last[0].weight.dtype)
        pairs = torch.cat(h.chunk(2), 1)
        return self.last(self.maps(pairs))[:, 0].clamp_min(_LEAST_TAU)  # (B,)


class _LADA(Method):
    backbone: nn.Module
    head: nn.Linear
    augment: nn.Module
    _: KW_ONLY
    layer: str | None = None  # where the pairs of the round before are mixed
    mixing: torch.Tensor | None = None  # tau of each of these pairs

    training_only = ("layer", "mixing")

    def forward(self, x):
        return self.head(self.backbone(x)).float()  # (B, K)

    def mixed(self, layer, change, x):
        """Return the logits for pairs x whose layer outputs ``change`` mixes."""
        with _changed(self.backbone.body.get_submodule(layer), change):
            return self(torch.cat(x))

    def loss(self, x, y):
        if isinstance(x, tuple):
            return self._pair_loss(x, y)
        logits = self(self.augment(x))
        loss = cross_entropy(logits, y)
        hits = (logits.argmax(1) == y).float().mean()
        return loss, {"class_loss": loss.detach(), "train_accuracy": hits}

    def _pair_loss(self, x, y):
        """Return the error on mixtures with their two labels, y of shape (B, 2)."""
        tau = own_part(self.mixing.to(y.device))
        share = torch.distributions.Beta(tau, tau).sample()
        logits = self.mixed(self.layer, lambda h: mix(h, share[None]), x)
        errors = [cross_entropy(logits, k, reduction="none") for k in y.T]
        loss = (share * errors[0] + (1 - share) * errors[1]).mean()
        return loss, {"mixed_loss": loss.detach()}


class _PolicyTraining(Method):
    """Train a policy to mix pairs so that the trained classifier is unsure of them."""

    classifier: _LADA
    policy: _Policy
    layer: str
    n_draws: int
    n_pairs: int

    frozen = ("classifier",)

    def __post_init__(self):
        # of the best epoch; buffers, so that a checkpoint keeps them
        self.register_buffer("tau", torch.ones(self.n_pairs))
        self.register_buffer("entropy", torch.zeros(self.n_pairs))
        self.register_buffer("best", torch.tensor(-1.0))

    def forward(self, x):
        return self.classifier(x)

    def look(self, x):
        """Return tau (B,) of pairs x, and the entropy (B,) of their mixtures."""
        tau = None

        def change(h):
            nonlocal tau
            with torch.autocast(h.device.type, enabled=False):
                tau = self.policy(h)
                beta = torch.distributions.Beta(tau, tau, validate_args=False)
                share = beta.rsample((self.n_draws,))
            return mix(h, share)

        entropy = entropy_bits(self.classifier.mixed(self.layer, change, x))
        return tau, entropy.view(self.n_draws, -1).mean(0)

    def loss(self, x, y):
        return -self.look(x)[1].mean()

    def after_epoch(self, net, sampler):
        found = net.evaluate_epoch(
            Coupled(sampler.samples, sampler.pairs, in_order=True),
            lambda x, y: self.look(x),
        )
        tau, entropy = (torch.cat(part) for part in zip(*found, strict=True))
        mean = entropy.mean()
        if mean > self.best:
            self.tau, self.entropy, self.best = tau, entropy, mean
        return {"mixed_entropy": float(mean)}


class LADASelector(PredictedLossRole, Learner):
    """Select pairs of rows whose mixtures are most informative for a network.

    A network is trained on the labeled rows. Mixtures of two rows, made within the
    network, are additional training rows that cost no label; a small policy network
    learns how evenly to mix each pair so that the network is as unsure of the mixture
    as possible. LADA selects the pairs whose rows and mixtures have the highest
    entropy; with ``warm_start=True``, the next fit also trains on the mixtures of the
    pairs that have been labeled. Read more in the :ref:`User Guide <lada>`.

    Parameters
    ----------
    layers : "auto" or sequence of str
        Parts of the backbone whose outputs are mixed, by their names in
        ``named_modules()``; one is drawn in each fit. "auto": the first activation
        and the end of the first stage, as published for ResNet-18.
    n_draws : int
        Number of mixtures evaluated for each pair.
    n_candidates : int or None
        Number of unlabeled rows, drawn at random, to pair; at least ``n_samples``.
        None: all.
    policy_epochs : int
        Passes over the pairs to train the policy. The epoch with the most uncertain
        mixtures is used.
    policy_batch_size : int
        Pairs per step of the policy.
    policy_lr : float
        Learning rate of the policy (Adam), > 0.
    augment : "auto", nn.Module or None
        Random views of labeled rows; "auto": :class:`sklabel.augment.Weak` for images,
        :class:`sklabel.augment.VectorNoise` for vectors.
    max_epochs : int
        Passes over the labeled rows, each followed by one step on the mixed pairs.
    schedule
        Published: "constant".

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows, those of the best pair first, ties by lower row number. If the
        number is odd, the last row is the less confident one of its pair.
    scores_ : ndarray of shape (n_rows,)
        Score of the row's pair: entropy of both rows plus mean entropy of the mixtures,
        in bits; ``-inf`` for labeled rows, for rows that were not scored and for files
        that cannot be read.
    pairs_ : ndarray of int of shape (n_pairs, 2)
        Chosen pairs.
    mixing_ : ndarray of shape (n_pairs,)
        How evenly each pair is mixed: the share of the first row is drawn from
        Beta(tau, tau). Paper: tau.
    layer_ : str
        Layer in which pairs are mixed; "" is the whole backbone.
    policy_curve_ : list of float
        Mean entropy of the mixtures after each epoch of the policy.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``class_loss``,
        ``train_accuracy`` and, if there are pairs, ``mixed_loss``. Empty if every row
        is labeled.
    n_features_in_ : int
        Values per sample.

    Raises
    ------
    ValueError
        If no row is labeled, all labels are of one class, y does not fit X, more rows
        are requested than are unlabeled and readable, or ``layers`` names a part that
        the backbone does not have.

    See Also
    --------
    LearningLossSelector : Rows of high expected loss.
    sklabel.classification.MixMatchClassifier : Trains on mixtures, too.

    Notes
    -----
    The published loop is ``ActiveLearningClassifier(classifier,
    LADASelector(warm_start=True), n_samples=10)``: the network continues in every
    round, and the pairs it has selected are mixed while it trains. Pairs with an
    unlabeled row are left out. Rows are identified by their values, wherever they are
    in X.

    Differences from the paper: in networks of vectors and of tokens the policy has no
    convolutions; on small maps its second convolution has padding; tau is at least
    0.001, below which sampling fails. Mixtures by a spatial transformer are not
    implemented, as in the released code.

    References
    ----------
    .. [1] Y.-Y. Kim, K. Song, J. Jang, I.-C. Moon, "LADA: look-ahead data acquisition
       via augmentation for deep active learning", NeurIPS 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import LADASelector
    >>> X, y = load_digits(return_X_y=True)
    >>> y_partly = np.where(np.arange(len(y)) < 50, y, -1)
    >>> selector = LADASelector(20, max_epochs=10, policy_epochs=1, random_state=0)
    >>> rows = selector.fit_select(X, y_partly)
    >>> bool(rows.min() >= 50)
    True
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    layers: Literal["auto"] | ArrayLike = "auto"
    n_draws: Count = 5
    n_candidates: Count | None = 2000
    policy_epochs: Count = 10
    policy_batch_size: AtLeastTwo = 100
    policy_lr: Positive = 5e-5
    augment: Augment = None
    max_epochs: Count = 50
    batch_size: AtLeastTwo = 10
    optimizer: Optimizer = "adam"
    schedule: Schedule = "constant"

    _bound = ("layers",)

    def _train(self, samples, codes, places, rows, random):
        pairs, mixing, layer = self._answered(samples, codes)
        if len(pairs) == 1:  # BatchNorm cannot train on a single row
            pairs, mixing = pairs.repeat(2, axis=0), mixing.repeat(2)
        module = self._build_module(*samples.statistics(), places)
        module.layer, module.mixing = layer, torch.from_numpy(mixing)
        self._stage("fit", module, LabeledThenCoupled(samples, codes, pairs))
        module.drop_training_state()
        trained = self.net_
        entropy = np.zeros(len(samples))
        entropy[rows] = entropy_bits(trained.evaluate(samples, rows)).numpy()
        pairs = _pairs(random.permutation(rows))
        self.layer_ = self._draw_layer(module.backbone, random)
        looked = self._look_ahead(samples, pairs, frozen_copy(module))
        self.net_, self.n_iter_ = trained, len(trained.history)
        # the less sure row comes first
        turned = entropy[pairs[:, 1]] > entropy[pairs[:, 0]]
        pairs[turned] = pairs[turned, ::-1]
        self.pairs_, self.mixing_ = pairs, looked.tau.cpu().numpy()
        scores = np.zeros(len(samples))
        scores[pairs] = (entropy[pairs].sum(1) + looked.entropy.cpu().numpy())[:, None]
        return scores[rows]

    def _order(self, pool, scores):
        """Return the rows of the best pairs; keep the pairs with both rows chosen."""
        lowest = self.pairs_.min(1)
        order = np.lexsort((lowest, -scores[lowest]))
        chosen = list(dict.fromkeys(self.pairs_[order].ravel().tolist()))
        chosen = chosen[: pool.n_samples]
        asked = np.isin(self.pairs_, chosen).all(1)
        asked = order[(asked & (self.pairs_[:, 0] != self.pairs_[:, 1]))[order]]
        self.pairs_, self.mixing_ = self.pairs_[asked], self.mixing_[asked]
        self._pair_names = _names(pool.X, self.pairs_.ravel())
        return np.array(chosen, dtype=np.int64)

    def _train_nothing(self, samples):
        super()._train_nothing(samples)
        if not self.warm_start:
            self._forget("pairs_", "mixing_", "layer_", "policy_curve_", "_pair_names")

    def _answered(self, samples, codes):
        """Return the pairs of the last fit that are now labeled, and their tau.

        If it was broken off and none of its pairs is labeled, it goes on, with the
        pairs that it mixed.
        """
        before, self._for_rest = self._for_rest, None
        nothing = np.empty((0, 2), np.int64), np.empty(0, np.float32), None
        if self._continued is None or not hasattr(self, "pairs_"):
            return nothing
        labeled = np.flatnonzero((codes >= 0) & ~samples.bad)
        rows = dict(zip(_names(samples, labeled), labeled.tolist(), strict=True))
        given = [(self._pair_names, self.mixing_, self.layer_)]
        if self._goes_on and before:
            given.append(tuple(before.values()))
        for names, mixing, layer in given:
            found = np.array([rows.get(name, -1) for name in names], np.int64)
            pairs = found.reshape(-1, 2)
            known = (pairs >= 0).all(1)
            if known.any():
                self._for_rest = {"names": names, "mixing": mixing, "layer": layer}
                return pairs[known], mixing[known].astype(np.float32), layer
        return nothing

    def _draw_layer(self, backbone, random):
        shapes = output_shapes(backbone)
        if isinstance(self.layers, str):
            stages = choose_layers(backbone.body, shapes)
            first = [
                name
                for name in shapes
                if type(backbone.body.get_submodule(name)).__module__ == _ACTIVATIONS
            ][:1]
            layers = [*first, *(name for name in stages if name not in first)][:2]
        else:
            layers = list(map(str, self.layers))
            unknown = [name for name in layers if name not in shapes]
            if unknown or not layers:
                wrong = f", but {unknown} are not" if unknown else ", at least one"
                raise ValueError(
                    f"layers={layers!r} must be names of parts of the backbone that "
                    f"give maps, tokens or vectors{wrong}. There are {list(shapes)}."
                )
        return layers[random.randint(len(layers))]

    def _look_ahead(self, samples, pairs, classifier):
        """Train the policy, and return its tau and entropy for each pair."""
        shape = output_shapes(classifier.backbone)[self.layer_]
        training = _PolicyTraining(
            classifier, _Policy(shape), self.layer_, self.n_draws, len(pairs)
        )
        self._stage(
            "policy",
            training,
            Coupled(samples, pairs),
            identity=(self.layer_,),
            predicts=False,
            max_epochs=self.policy_epochs,
            max_steps=None,
            batch_size=self.policy_batch_size,
            optimizer="adam",
            lr_name="policy_lr",
            weight_decay=0.0,
            schedule="constant",
            warmup_epochs=0,
        )
        name = "mixed_entropy"
        self.policy_curve_ = [e[name] for e in self.net_.history if name in e]
        return training

    def _build_module(self, mean, std, places=None):
        before = self._continued
        backbone = self._part("backbone", lambda: self._build_backbone(mean, std))
        head = nn.Linear(backbone.n_features_out, len(self.classes_))
        if before is not None:
            head = filled_(head.to(before.head.weight), before.head, places)
        augment = self._build_augment(self.augment, "weak", mean, std)
        return _LADA(backbone, head, augment)


def _pairs(rows):
    """Return rows in pairs (n, 2); the last of an odd number is its own partner."""
    return rows[
        np.minimum(np.arange(len(rows) + len(rows) % 2), len(rows) - 1)
    ].reshape(-1, 2)


def _names(samples, rows):
    """Return a name for each of some rows that only equal rows share."""
    return [
        hashlib.blake2b(samples[[row]].numpy().tobytes(), digest_size=16).hexdigest()
        for row in rows
    ]
