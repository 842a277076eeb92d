"""The role of the embedders: transform."""

from functools import partial

import numpy as np
from sklearn.base import (
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)

from ...optim import scaled_lr, warmup_cosine
from ..callbacks import fitting
from ..health import warn_collapsed, watch_features
from ..parameters import Parameters
from ..samplers import Shuffled


class EmbeddingRole(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, Parameters, abstract=True
):
    """Transform samples into the encoder's features.

    Parameters
    ----------
    projection_size : int
        Output width of the projection head.
    output : {"backbone", "projection"}
        Which features ``transform`` returns: those before the head, or the head's.
    lr_scaling : {"linear", "sqrt"} or None
        "linear": times batch_size / 256; "sqrt": times sqrt(batch_size).
    final_lr : float
        Final learning rate of schedule "cosine", >= 0, scaled like ``lr``.

    Attributes
    ----------
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``feature_std``
        (1: spread over the sphere, 0: collapsed) and ``effective_rank``.
    encoder_ : nn.Module
        Trained encoder, without the head.
    """

    # what to change where the features have collapsed; {names} are parameters
    remedy = "lower lr={lr}"
    least_spread, least_rank = 0.05, 1.5

    @fitting
    def fit(self, X, y=None):
        """Train the network on X.

        Parameters
        ----------
        X : array-like
            Images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``; paths of image
            files; or vectors ``(n, D)``.
        y : None
            Ignored.

        Returns
        -------
        self : estimator
        """
        samples = self._check_X(X, reset=True)
        with self._seeded():
            self._train(samples)
        self._check_health()
        return self

    def _train(self, samples):
        """Train the module of the method on views of all rows."""
        statistics = samples.statistics()
        module = self._part("", lambda: self._build_module(*statistics))
        settings = {"lr": scaled_lr(self.lr, self.batch_size, self.lr_scaling)}
        final = getattr(self, "final_lr", 0)
        if final:
            settings["schedule"] = partial(warmup_cosine, final=final / self.lr)
        sampler = Shuffled(samples)
        self._stage("fit", module, sampler, watch=watch_features, **settings)

    def _check_settings(self):
        super()._check_settings()
        final = getattr(self, "final_lr", 0)
        if final and self.schedule != "cosine":
            raise ValueError(
                f'final_lr={final} is for schedule="cosine", but schedule='
                f"{self.schedule!r}: leave out one of them."
            )
        if final > self.lr:
            raise ValueError(
                f"final_lr={final} is larger than lr={self.lr}: lower final_lr."
            )

    def _check_health(self):
        """Warn if the features have collapsed."""
        remedy = self.remedy.format_map(vars(self))
        warn_collapsed(self, remedy, self.least_spread, self.least_rank)

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
            Higher is better. Values are comparable only for equal batch size and
            temperature.
        """
        sampler = Shuffled(self._check_X(X))
        with self._seeded():
            losses = self.net_.evaluate_epoch(sampler, self.net_.module_.loss)
        losses = [loss[0] if isinstance(loss, tuple) else loss for loss in losses]
        return -float(np.mean([float(loss) for loss in losses]))

    @property
    def _n_features_out(self):
        return self.net_.module_.n_features_out

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
