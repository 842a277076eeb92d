"""VAAL: variational adversarial active learning (Sinha, Ebrahimi, Darrell, 2019)."""

import math
from dataclasses import InitVar
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from .._core.health import CollapseWarning
from .._core.learner import Learner
from .._core.parameters import (
    KW_ONLY,
    AtLeastTwo,
    Count,
    NonNegative,
    Optimizer,
    Positive,
    SampleCount,
    Schedule,
    one_of,
)
from .._core.roles.selection import NetworkSelectionRole
from .._core.samplers import Mixed, count_labeled
from .._core.samples import evenly_spaced
from .._core.warn import warn
from ..backbones import Encoder, build_autoencoder
from ..modules import Method, mlp

REDUCTIONS = ("sum", "mean")


def kl_divergence(mu, logvar, reduction="sum"):
    r"""Measure how far codes are from a standard normal distribution.

    .. math:: -\frac12 \sum (1 + \log \sigma^2 - \mu^2 - \sigma^2)

    Parameters
    ----------
    mu, logvar : Tensor of shape (B, D)
        Mean and logarithm of the variance of each code.
    reduction : {"sum", "mean"}, default="sum"
        Over rows and components. The released code takes the sum, although its
        reconstruction error is a mean.

    Returns
    -------
    divergence : Tensor of shape ()
        >= 0.
    """
    terms = -0.5 * (1 + logvar - mu.square() - logvar.exp())
    return terms.sum() if reduction == "sum" else terms.mean()


def adversary_loss(logits_labeled, logits_unlabeled):
    """Return what the autoencoder minimizes: both kinds shall be taken for labeled.

    Parameters
    ----------
    logits_labeled : Tensor of shape (B, 1)
        Of the discriminator, before its sigmoid.
    logits_unlabeled : Tensor of shape (B', 1)

    Returns
    -------
    loss : Tensor of shape ()
        2 log 2 where the discriminator is at chance.
    """
    # log(1 + exp(-logit)) is the binary cross-entropy with target 1
    return F.softplus(-logits_labeled).mean() + F.softplus(-logits_unlabeled).mean()


def discriminator_loss(logits_labeled, logits_unlabeled):
    """Return what the discriminator minimizes: it shall tell the two kinds apart.

    Parameters
    ----------
    logits_labeled : Tensor of shape (B, 1)
        Before the sigmoid.
    logits_unlabeled : Tensor of shape (B', 1)

    Returns
    -------
    loss : Tensor of shape ()
        2 log 2 where the discriminator is at chance.
    """
    return F.softplus(-logits_labeled).mean() + F.softplus(logits_unlabeled).mean()


def least_labeled(logits, candidates, n_samples):
    """Choose the rows that the discriminator is most confident are not labeled.

    Parameters
    ----------
    logits : ndarray of shape (n,)
        Or probabilities of being labeled: only their order counts.
    candidates : ndarray of int
        Rows that may be chosen, ascending.
    n_samples : int

    Returns
    -------
    rows : ndarray of shape (n_samples,)
        The smallest first, the lowest row number among equals.
    """
    order = np.argsort(logits[candidates], kind="stable")
    return candidates[order[:n_samples]]


class _VAAL(Method):
    backbone: nn.Module
    decoder: nn.Module
    n_components: InitVar[int]
    mean: InitVar[torch.Tensor]
    std: InitVar[torch.Tensor]
    _: KW_ONLY
    kl_weight: float = 1.0
    kl_reduction: str = "sum"
    adversary_weight: float = 1.0
    vae_steps: int = 2

    def __post_init__(self, n_components, mean, std):
        self.to_mean = nn.Linear(self.backbone.n_features_out, n_components)
        self.to_logvar = nn.Linear(self.backbone.n_features_out, n_components)
        self.discriminator = mlp(n_components, 512, 1, 3, norm=False, last_norm=None)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.n_steps = 0

    def encode(self, x):
        """Return mean and log-variance of the codes, in float32."""
        h = self.backbone(x).float()
        with torch.autocast(x.device.type, enabled=False):
            return self.to_mean(h), self.to_logvar(h)  # (B, D) each

    def forward(self, x):
        mu, _ = self.encode(x)
        # bfloat16 would make many rows equally likely to be labeled
        with torch.autocast(x.device.type, enabled=False):
            return torch.cat([mu, self.discriminator(mu)], 1)  # (B, D + 1)

    def loss(self, x, y):
        n_labeled = count_labeled(y)
        sizes = [n_labeled, len(x) - n_labeled]
        # one forward: BatchNorm sees labeled and unlabeled rows together
        mu, logvar = self.encode(x)
        z = mu + torch.randn_like(mu) * (logvar / 2).exp()
        drawn = self.decoder(z).float()
        target = (x - self.mean) / self.std
        parts = zip(*(t.split(sizes) for t in (drawn, target, mu, logvar)), strict=True)
        error = kl = 0.0
        for part_drawn, part_target, part_mu, part_logvar in parts:
            error = error + F.mse_loss(part_drawn, part_target)
            kl = kl + kl_divergence(part_mu, part_logvar, self.kl_reduction)
        # Neither moves the other: one optimizer steps as two would, and skips the
        # discriminator where it gets no gradient.
        with torch.autocast(x.device.type, enabled=False):
            fixed = {k: p.detach() for k, p in self.discriminator.named_parameters()}
            seen = functional_call(self.discriminator, fixed, mu).split(sizes)
            with torch.set_grad_enabled(self.n_steps % self.vae_steps == 0):
                judged = self.discriminator(mu.detach()).split(sizes)
        adversary = adversary_loss(*seen)
        discriminator = discriminator_loss(*judged)
        right = [(judged[0] > 0).float().mean(), (judged[1] <= 0).float().mean()]
        loss = error + self.kl_weight * kl + self.adversary_weight * adversary
        return loss + discriminator, {
            "reconstruction": error.detach() / 2,
            "kl": kl.detach(),
            "adversary": adversary.detach(),
            "discriminator": discriminator.detach(),
            "discriminator_accuracy": sum(right) / 2,
        }

    def after_step(self):
        self.n_steps += 1

    def get_extra_state(self):
        return torch.tensor(self.n_steps)

    def set_extra_state(self, state):
        self.n_steps = int(state)


def _convolutions(shape, n_components, width):
    """Return encoder and decoder for images, with fewer layers for small ones.

    Four convolutions halve an image of 32 x 32 to 2 x 2. The decoder begins one layer
    before the last, as published.
    """
    # as long as two pixels remain
    n_layers = min(4, max(1, int(math.log2(min(shape[1:]))) - 1))
    widths = [shape[0], *(width * 2**i for i in range(n_layers))]
    sides = [tuple(shape[1:])]
    encode, decode = [], [nn.Conv2d(width, shape[0], 1)]
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        if i:
            side = sides[-2]  # one size larger than where the encoder has n_in
            odd = [n % 2 if n > 1 else 0 for n in side]
            up = nn.ConvTranspose2d(n_out, n_in, *_window(side), odd, bias=False)
            decode = [up, nn.BatchNorm2d(n_in), nn.ReLU(inplace=True), *decode]
        down = nn.Conv2d(n_in, n_out, *_window(sides[-1]), bias=False)
        encode += [down, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]
        sides.append(tuple(max(1, n // 2) for n in sides[-1]))
    first = (widths[-1], *sides[-2])
    start = [
        nn.Linear(n_components, math.prod(first)),
        nn.Unflatten(1, first),
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*encode, nn.Flatten()), nn.Sequential(*start, *decode)


def _window(side):
    """Return kernel, stride and border that halve a side; one of one pixel stays."""
    return [4 if n > 1 else 3 for n in side], [2 if n > 1 else 1 for n in side], 1


def _empty_error(net, samples, kinds, n_rows=2048):
    """Return the reconstruction error of codes that tell nothing of a row.

    The best that can be drawn then is one mean of all rows, where each kind of rows
    counts as much as the other.
    """
    means, variances = [], []
    for rows in kinds:
        some = rows[evenly_spaced(len(rows), n_rows)]
        x = net.to_device(samples[some]) - net.module_.mean
        variance, mean = torch.var_mean(x / net.module_.std, 0, correction=0)
        means.append(mean)
        variances.append(variance)
    between = (means[0] - means[1]).square() / 4
    return float((sum(variances) / 2 + between).mean())


class VAALSelector(NetworkSelectionRole, Learner):
    """Choose the rows that look least like those that have a label.

    An autoencoder gives every row a short code, and learns to make the codes of labeled
    and unlabeled rows look alike; a second network, the discriminator, learns to tell
    them apart. The rows of which it is surest that they have no label are chosen. What
    the labels say is not used, and no classifier is needed. Read more in the
    :ref:`User Guide <vaal>`.

    Parameters
    ----------
    n_samples : int, float in (0, 1) or None
        Number of rows to choose; a share of the rows without a label; None: a tenth of
        them, at most 40.
    n_components : int
        Length of a code. Published: 32 for CIFAR.
    kl_weight : float
        Weight of the divergence of the codes from a normal distribution, >= 0. Paper:
        beta. Published: 1, on the sum.
    kl_reduction : {"mean", "sum"}
        "mean": the divergence is a mean over rows and components, as the reconstruction
        error is. "sum": their sum, as in the released code; see Notes.
    adversary_weight : float
        Weight of the autoencoder's wish to have all rows taken for labeled ones, >= 0.
    vae_steps : int
        The discriminator learns in one of so many steps of the autoencoder.
    width : int or "auto"
        Channels of the first of four convolutions, doubled from one to the next;
        vectors go through two layers of 8 times as many units. Published: 128, that is
        128, 256, 512, 1024. "auto": 16, with which 2,000 images of 32 x 32 pixels take
        two minutes on two cores.
    max_epochs : int
        Passes over the unlabeled rows, or over the labeled ones where these take more
        steps. Published: 100 over all rows, with both kinds in every step.
    batch_size : int
        Labeled samples per step, and as many unlabeled ones; labeled rows are repeated
        as needed.
    optimizer
        Published: Adam.
    lr : float
        Peak learning rate of both networks. Published: 5e-4.
    warmup_epochs
        Published: none.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_samples,)
        Chosen rows in the order of asking: the highest score first, the lowest row
        number among equals.
    scores_ : ndarray of shape (n_rows,)
        Probability of having no label, after the discriminator; ``-inf`` for rows
        labeled already and for files that cannot be read.
    assignments_ : ndarray of shape (n_rows,)
        Position in ``sample_indices_`` of the nearest chosen row, among vectors as they
        are, among images by their codes; -1 for files that cannot be read.
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``reconstruction``
        (mean squared error), ``kl`` (both kinds of rows together), ``adversary``,
        ``discriminator`` (the loss of each) and ``discriminator_accuracy`` (0.5:
        chance). Not where every row is labeled.
    encoder_ : nn.Module
        Trained encoder, without the layer that makes the codes.
    n_features_in_ : int
        Values per sample.

    Raises
    ------
    ValueError
        If no row has a label, if more rows are asked than have none, or if too few
        files can be read.

    Warns
    -----
    CollapseWarning
        If the codes tell nothing of the rows, or the discriminator is at chance at the
        end: the choice is random then.

    See Also
    --------
    USLSelector : Needs no label: for the first choice.
    CoreSetSelector : Rows far from all labeled ones, among vectors.

    Notes
    -----
    Images go through convolutions of 4 pixels with stride 2, batch normalization and
    ReLU, as long as two pixels of a side remain (four layers from 32 pixels on),
    mirrored by transposed convolutions; pixels are in [-1, 1]. Vectors are standardized
    and go through dense layers. The discriminator is a perceptron of 512 and 512 units
    that sees the mean of a code, not a draw.

    On digits of which 100 of the classes 0 to 6 have a label, 31% of the other rows are
    of the classes 7 to 9. Of 50 chosen rows 67% are (75% of vectors; means of three
    seeds), with ``adversary_weight=0.1`` 76% (50%), and with the published
    ``kl_weight=1, kl_reduction="sum"`` 41% (49%).

    Departures from the released code:

    - The divergence is a mean and weighs 0.01. With the published sum and weight of 1
      no code can pay for itself: the reconstruction error, a mean, cannot fall by more
      than the variance of a pixel, while a nat of information about each row costs 128
      per batch. The codes stay empty then, and the fit warns.
    - Labeled and unlabeled rows pass the encoder together, so that batch
      normalization cannot give each kind statistics of its own.
    - The discriminator moves in the same step as the autoencoder, not after it. Neither
      gets a gradient of the other's loss.
    - ``width`` and ``max_epochs`` are smaller.

    References
    ----------
    .. [1] S. Sinha, S. Ebrahimi, T. Darrell, "Variational adversarial active learning",
       ICCV 2019; equations 1 to 5, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklabel.selection import VAALSelector
    >>> X, target = load_digits(return_X_y=True)
    >>> X, target = X[:400], target[:400]
    >>> y = np.where((target < 7) & (np.arange(400) < 200), target, -1)
    >>> selector = VAALSelector(
    ...     20,
    ...     adversary_weight=0.1,
    ...     max_epochs=10,
    ...     batch_size=32,
    ...     lr=2e-3,
    ...     width=8,
    ...     random_state=0,
    ... )
    >>> rows = selector.fit_select(X, y)
    >>> bool((target[rows] >= 7).mean() > 0.5)  # of classes that have no label
    True
    """

    n_samples: SampleCount = None
    _: KW_ONLY
    n_components: Count = 32
    kl_weight: NonNegative = 0.01
    kl_reduction: Annotated[str, one_of(REDUCTIONS)] = "mean"
    adversary_weight: NonNegative = 1.0
    vae_steps: Count = 2
    width: Count | Literal["auto"] = "auto"
    max_epochs: Count = 50
    batch_size: AtLeastTwo = 128
    optimizer: Optimizer = "adam"
    lr: Positive = 5e-4
    schedule: Schedule = "constant"

    def _choose(self, pool):
        samples, (chosen, scores) = pool.X, pool.nothing()
        if not pool.n_samples:
            self._forget("net_", "n_iter_")
            pool.space = np.empty((len(pool), 0))
            return chosen, scores
        candidates = self._candidates(pool)
        known = np.flatnonzero(pool.labeled & ~samples.bad)
        mixed = Mixed(samples, pool.labeled - 1, 1.0, include_labeled=False)
        with self._seeded():
            module = self._build_module(*samples.statistics())
            self._stage("fit", module, mixed, predicts=False)
        found = self.net_.evaluate(samples).numpy()
        # in double precision 1 - D keeps apart what single precision calls certain
        codes, logits = found[:, :-1], found[:, -1].astype(np.float64)
        if pool.space is None:
            pool.space = codes
        self._check_health(samples, logits, known, candidates)
        scores[candidates] = expit(-logits[candidates])
        return least_labeled(logits, candidates, pool.n_samples), scores

    def _candidates(self, pool):
        """Return the rows that may be chosen, or raise what is missing."""
        labeled, bad = pool.labeled, pool.X.bad
        if not labeled.any():
            raise ValueError(
                "VAALSelector looks for rows unlike the labeled ones, but y has no "
                "labeled row: choose the first rows with USLSelector, and pass y with "
                "their labels and -1 for the others."
            )
        if bad[labeled].all():
            raise ValueError(
                f"None of the {labeled.sum()} labeled image files can be read: label "
                "others, or replace them."
            )
        candidates = np.flatnonzero(~labeled & ~bad)
        if len(candidates) < pool.n_samples:
            raise ValueError(
                f"n_samples={pool.n_samples} rows are asked, but of those without a "
                f"label only {len(candidates)} can be read: ask for fewer, or replace "
                "the files that cannot be read."
            )
        return candidates

    def _build_module(self, mean, std):
        shape = self.sample_shape_
        width = 16 if self.width == "auto" else self.width
        if len(shape) == 1:
            encode, decoder = build_autoencoder(
                shape, self.n_components, (8 * width, 8 * width)
            )
            body = encode[:-1]  # without the layer that makes the codes
        else:
            body, decoder = _convolutions(shape, self.n_components, width)
            mean = std = torch.full_like(mean, 0.5)  # pixels in [-1, 1]
        if isinstance(self.backbone, str) and self.backbone == "auto":
            backbone = Encoder(body, shape, mean, std)
        else:
            backbone = self._build_backbone(mean, std)
        module = _VAAL(
            backbone,
            decoder,
            self.n_components,
            mean,
            std,
            kl_weight=self.kl_weight,
            kl_reduction=self.kl_reduction,
            adversary_weight=self.adversary_weight,
            vae_steps=self.vae_steps,
        )
        learned = "backbone", "to_mean", "to_logvar", "decoder", "discriminator"
        return self._take_over(module, *learned, "mean", "std", "n_steps")

    def _check_health(self, samples, logits, known, candidates):
        """Warn if the choice is as good as random, and say what to change."""
        if not self.net_.history:
            return  # interrupted in the first epoch
        error = self.net_.history[-1, "reconstruction"]
        empty = _empty_error(self.net_, samples, (known, candidates))
        explained = 1 - error / empty if empty else 1.0
        if explained < 0.05:
            mean = self.kl_reduction == "mean"
            advice = "" if mean else 'kl_reduction="mean" with kl_weight=0.01, or '
            warn(
                f"The codes of VAALSelector explain {max(0, explained):.0%} of the "
                "variance of X, so that the choice is close to random: try "
                f"{advice}a lower kl_weight (now {self.kl_weight}) or adversary_weight "
                f"(now {self.adversary_weight}), or train longer (max_epochs).",
                CollapseWarning,
            )
            return
        is_labeled = np.repeat([1, 0], [len(known), len(candidates)])
        area = roc_auc_score(is_labeled, logits[np.r_[known, candidates]])
        # twice the standard deviation of the area where nothing can be told apart
        n = len(is_labeled)
        chance = 2 * math.sqrt((n + 1) / (12 * len(known) * len(candidates)))
        if area < 0.5 + min(chance, 0.25):
            warn(
                "The discriminator of VAALSelector is at chance: it puts a labeled row "
                f"before an unlabeled one in {area:.0%} of the pairs, so that the "
                "choice is close to random. Lower adversary_weight (now "
                f"{self.adversary_weight}) or vae_steps (now {self.vae_steps}), or "
                "train longer (max_epochs); labeled rows that were drawn at random may "
                "not differ from the others.",
                CollapseWarning,
            )
