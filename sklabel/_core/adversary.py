"""Codes that hide whether a row is labeled: the base of VAAL and SRAAL."""

import math
from dataclasses import KW_ONLY, InitVar
from itertools import pairwise

import numpy as np
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ..backbones import Encoder, build_autoencoder
from ..modules import Method, mlp
from .health import CollapseWarning
from .processes import gathered
from .roles.selection import NetworkSelectionRole
from .samples import evenly_spaced
from .warn import warn

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
    """Return the autoencoder's loss: both kinds should look labeled.

    Parameters
    ----------
    logits_labeled : Tensor of shape (B, 1)
        Of the discriminator, before its sigmoid.
    logits_unlabeled : Tensor of shape (B', 1)

    Returns
    -------
    loss : Tensor of shape ()
        2 log 2 if the discriminator is at chance.
    """
    # log(1 + exp(-logit)) is the binary cross-entropy with target 1
    return F.softplus(-logits_labeled).mean() + F.softplus(-logits_unlabeled).mean()


def discriminator_loss(logits_labeled, logits_unlabeled, doubt=1.0):
    """Return the discriminator's loss: it should tell the two kinds apart.

    Parameters
    ----------
    logits_labeled : Tensor of shape (B, 1)
        Before the sigmoid.
    logits_unlabeled : Tensor of shape (B', 1)
    doubt : float or Tensor of shape (B', 1), default=1.0
        Target probability that each unlabeled row is unlabeled, in [0, 1].

    Returns
    -------
    loss : Tensor of shape ()
        2 log 2 if the discriminator is at chance.
    """
    labeled = F.softplus(-logits_labeled).mean()
    unlabeled = F.softplus(logits_unlabeled) - (1 - doubt) * logits_unlabeled
    return labeled + unlabeled.mean()


def share_right(judged):
    """Return the balanced accuracy of the discriminator."""
    right = [(judged[0] > 0).float().mean(), (judged[1] <= 0).float().mean()]
    return sum(right) / 2


def least_labeled(logits, candidates, n_samples):
    """Choose the rows that the discriminator is most confident are not labeled.

    Parameters
    ----------
    logits : ndarray of shape (n,)
        Logits or probabilities of being labeled; only their order counts.
    candidates : ndarray of int
        Rows that may be chosen, ascending.
    n_samples : int

    Returns
    -------
    rows : ndarray of shape (n_samples,)
        The smallest first, ties by lowest row number.
    """
    order = np.argsort(logits[candidates], kind="stable")
    return candidates[order[:n_samples]]


class AdversarialCodes(Method):
    """Codes of an autoencoder, and a discriminator of labeled and unlabeled ones.

    Subclasses define the loss.
    """

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

    def drawn(self, x, sizes):
        """Return mean codes, drawn codes, and the autoencoder's error and divergence.

        ``sizes``: number of labeled rows of x, which come first, and of the others.
        Error and divergence are sums over the two kinds.
        """
        # one forward: BatchNorm sees labeled and unlabeled rows together
        mu, logvar = self.encode(x)
        z = mu + torch.randn_like(mu) * (logvar / 2).exp()
        drawn = self.decoder(z).float()
        target = (x - self.mean) / self.std
        parts = zip(*(t.split(sizes) for t in (drawn, target, mu, logvar)), strict=True)
        error = kl = 0.0
        for part_drawn, part_target, part_mu, part_logvar in parts:
            error = error + F.mse_loss(part_drawn, part_target)
            seen = gathered(part_mu), gathered(part_logvar)  # it may be a sum
            kl = kl + kl_divergence(*seen, self.kl_reduction)
        return mu, logvar, z, error, kl

    def judged(self, mu, sizes):
        """Return the discriminator's logits: what the codes learn of, and what it does.

        Neither moves the other: one optimizer steps as two would, and skips the
        discriminator where it gets no gradient.
        """
        with torch.autocast(mu.device.type, enabled=False):
            fixed = {k: p.detach() for k, p in self.discriminator.named_parameters()}
            seen = functional_call(self.discriminator, fixed, mu).split(sizes)
            with torch.set_grad_enabled(self.n_steps % self.vae_steps == 0):
                judged = self.discriminator(mu.detach()).split(sizes)
        return seen, judged

    def after_step(self):
        self.n_steps += 1

    def get_extra_state(self):
        return torch.tensor(self.n_steps)

    def set_extra_state(self, state):
        self.n_steps = int(state)


def convolutions(shape, n_components, width):
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
    """Return the reconstruction error of codes without information.

    The best reconstruction is then the mean of all rows, with equal weight for both
    kinds.
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


class AdversarialRole(NetworkSelectionRole, abstract=True):
    """Choose the rows that a discriminator most confidently calls unlabeled.

    A selector defines ``_train(pool, seed)``, which trains a module of
    `AdversarialCodes`.
    """

    def _choose(self, pool):
        samples, (chosen, scores) = pool.X, pool.nothing()
        if not pool.n_samples:
            self._train_nothing()
            pool.space = np.empty((len(pool), 0))
            return chosen, scores
        candidates = self._candidates(pool)
        known = np.flatnonzero(pool.labeled & ~samples.bad)
        with self._seeded() as seed:
            self._train(pool, seed)
        found = self.net_.evaluate(samples).numpy()
        # in double precision 1 - D keeps apart what single precision calls certain
        codes, logits = found[:, :-1], found[:, -1].astype(np.float64)
        if pool.space is None:
            pool.space = codes
        self._check_health(samples, logits, known, candidates)
        scores[candidates] = expit(-logits[candidates])
        return least_labeled(logits, candidates, pool.n_samples), scores

    def _train(self, pool, seed):
        """Train the network."""
        raise NotImplementedError

    def _train_nothing(self):
        self._forget("net_", "n_iter_")

    def _candidates(self, pool):
        """Return the candidates, or raise an error."""
        labeled, bad = pool.labeled, pool.X.bad
        if not labeled.any():
            raise ValueError(
                f"{type(self).__name__} searches for rows unlike the labeled ones, but "
                "y has no labeled row: choose the first rows with USLSelector, and "
                "pass y with their labels and -1 for the others."
            )
        if bad[labeled].all():
            raise ValueError(
                f"None of the {labeled.sum()} labeled image files can be read: label "
                "other rows, or replace the files."
            )
        candidates = np.flatnonzero(~labeled & ~bad)
        if len(candidates) < pool.n_samples:
            raise ValueError(
                f"n_samples={pool.n_samples} rows are requested, but only "
                f"{len(candidates)} unlabeled rows can be read: lower n_samples, or "
                "replace the files that cannot be read."
            )
        return candidates

    def _build_codes(self, kind, mean, std, **given):
        """Return a module of a kind of `AdversarialCodes`, for samples of one shape."""
        shape = self.sample_shape_
        width = 16 if self.width == "auto" else self.width
        if len(shape) == 1:
            encode, decoder = build_autoencoder(
                shape, self.n_components, (8 * width, 8 * width)
            )
            body = encode[:-1]  # without the layer that makes the codes
        else:
            body, decoder = convolutions(shape, self.n_components, width)
            mean = std = torch.full_like(mean, 0.5)  # pixels in [-1, 1]
        if isinstance(self.backbone, str) and self.backbone == "auto":
            backbone = Encoder(body, shape, mean, std)
        else:
            backbone = self._build_backbone(mean, std)
        names = "kl_weight", "kl_reduction", "adversary_weight", "vae_steps"
        given.update({name: getattr(self, name) for name in names})
        module = kind(backbone, decoder, self.n_components, mean, std, **given)
        learned = "backbone", "to_mean", "to_logvar", "decoder", "discriminator"
        return self._take_over(module, *learned, "mean", "std", "n_steps")

    def _check_health(self, samples, logits, known, candidates):
        """Warn if the choice is close to random, with what to change."""
        if not self.net_.history:
            return  # interrupted in the first epoch
        name = type(self).__name__
        error = self.net_.history[-1, "reconstruction"]
        empty = _empty_error(self.net_, samples, (known, candidates))
        explained = 1 - error / empty if empty else 1.0
        if explained < 0.05:
            mean = self.kl_reduction == "mean"
            advice = "" if mean else 'kl_reduction="mean" with kl_weight=0.01, or '
            warn(
                f"The codes of {name} explain {max(0, explained):.0%} of the variance "
                f"of X, so the choice is close to random: try {advice}a lower "
                f"kl_weight (now {self.kl_weight}) or adversary_weight (now "
                f"{self.adversary_weight}), or train longer (max_epochs).",
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
                f"The discriminator of {name} is at chance: it puts a labeled row "
                f"before an unlabeled one in {area:.0%} of the pairs, so the choice "
                "is close to random. Lower adversary_weight (now "
                f"{self.adversary_weight}) or vae_steps (now {self.vae_steps}), or "
                "train longer (max_epochs); labeled rows that were drawn at random "
                "may not differ from the others.",
                CollapseWarning,
            )
