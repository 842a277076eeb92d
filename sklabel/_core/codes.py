"""Learning in an embedder's codes: fit it, and train a copy of its network."""

import copy
from dataclasses import KW_ONLY
from typing import ClassVar

import torch
from torch import nn

from ..backbones import build_backbone
from ..losses import sharpened_targets, student_assignment
from ..modules import Method
from .freezing import thaw_
from .learner import Learner, unfrozen


class CenteredCodes(Method):
    """Codes assigned softly to centers, trained toward a sharper assignment.

    Subclasses set ``q`` after each round and give the loss.
    """

    embed: nn.Module
    centers: torch.Tensor  # (K, D)
    _: KW_ONLY
    alpha: float
    cluster_weight: float
    reconstruction_weight: float

    training_only: ClassVar[tuple[str, ...]] = ("q", "labels", "targets")

    def __post_init__(self):
        self.centers = nn.Parameter(self.centers)
        # of all readable rows, after the last round
        self.q = self.labels = self.targets = None

    @property
    def backbone(self):
        return getattr(self.embed, "backbone", self.embed)

    def forward(self, x):
        return self.assign(self.embed(x))  # (B, K)

    def assign(self, z):
        """Return the soft assignment (B, K) of codes z of shape (B, D)."""
        return student_assignment(z, self.centers, self.alpha)

    def before_epoch(self, net, sampler):
        samples = sampler.samples
        # of the whole set, in evaluation mode, and constant for a round
        q = net.evaluate(samples, samples.good) if self.q is None else self.q
        self.labels = q.argmax(1)
        self.targets = torch.zeros(len(samples), q.shape[1], device=net.device)
        self.targets[samples.good] = sharpened_targets(q).to(net.device)


class CodesMixin:
    """For estimators with ``embedder``, ``backbone`` and ``reconstruction_weight``.

    If ``embedder`` is None, the method's class ``_default_embedder`` is used.
    """

    _bound: ClassVar[tuple[str, ...]] = ("embedder", "backbone")

    def _n_components(self):
        """Return the length of the codes of the default embedder."""
        return 10

    def _fit_embedder(self, X):
        """Return the embedder, fitted."""
        embedder = self.embedder
        if embedder is None:
            embedder = self._new_embedder(n_components=self._n_components())
        inner = unfrozen(embedder)
        if getattr(inner, "output", "backbone") != "backbone":
            raise ValueError(
                f'embedder={type(inner).__name__}(output="{inner.output}") has its '
                "codes after the head, which is not trained here: use "
                'output="backbone".'
            )
        if (
            self.reconstruction_weight
            and isinstance(inner, Learner)
            and not hasattr(inner, "inverse_transform")
        ):
            raise _no_decoder(inner)
        fitted = self._fit_nested(embedder, X, self.backbone)
        if not hasattr(unfrozen(fitted), "encoder_"):
            raise ValueError(
                f"embedder={type(inner).__name__} has no network that can be trained "
                "further: use one of sklabel.embedding."
            )
        return fitted

    def _build_embed(self):
        """Return a trainable copy of the encoder, with its decoder if it has one."""
        trained = unfrozen(self.embedder_)
        embed = trained.net_.module_
        decodes = hasattr(embed, "error")
        if self.reconstruction_weight and not decodes:
            raise _no_decoder(trained)
        if self._continued is not None:
            embed = self._continued.embed
        elif not decodes:
            return build_backbone(trained, self.sample_shape_)
        return thaw_(copy.deepcopy(embed))

    def _first_codes(self, X):
        """Return the codes (n, D) of X before the training."""
        trained = unfrozen(self.embedder_)
        embed = self._build_embed()
        encode = getattr(embed, "backbone", embed).to(trained.net_.device).eval()
        samples = trained._check_X(X)
        return trained.net_.evaluate(samples, forward=encode).numpy()

    def _code_length(self):
        embed = self._build_embed()
        return getattr(embed, "backbone", embed).n_features_out


def _no_decoder(embedder):
    return ValueError(
        f"embedder={type(embedder).__name__} has no decoder: use an "
        "AutoencoderTransformer, or reconstruction_weight=0."
    )
