"""The role of the embedders: transform."""

import numpy as np
from sklearn.base import (
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)

from ...optim import scaled_lr
from ..health import CollapseWarning, watch_features
from ..parameters import Parameters
from ..samplers import Shuffled
from ..warn import warn


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

    Attributes
    ----------
    net_ : skorch.NeuralNet
        Trained net; ``net_.history`` holds per epoch ``train_loss``, ``feature_std``
        (1: spread over the sphere, 0: collapsed) and ``effective_rank``.
    encoder_ : nn.Module
        Trained encoder, the head left out.
    """

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

    def _fit_embedding(self, samples, remedy, **limits):
        """Train the method's module; a collapse is told with what to change."""
        with self._seeded():
            module = self._continued or self._build_module(*samples.statistics())
            lr = scaled_lr(self.lr, self.batch_size, self.lr_scaling)
            self._fit_net(module, Shuffled(samples), watch=watch_features, lr=lr)
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
