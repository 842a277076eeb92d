"""The role of embedders of images and texts: search images by words."""

from numbers import Integral

import numpy as np
from sklearn.utils.validation import check_array, check_is_fitted


class SearchRole:
    """Compare images with texts: ``transform`` and ``encode_text`` give unit rows."""

    def similarity(self, texts, X=None, *, Z=None):
        """Return the cosine between each image and each text.

        Parameters
        ----------
        texts : str or list of str
            Of length n_texts.
        X : array-like or None, default=None
            Samples of the fitted shape.
        Z : array-like of shape (n_samples, n_features_out) or None, default=None
            Their embedding from :meth:`transform`, to use instead of X, so that images
            need not be embedded again.

        Returns
        -------
        similarities : ndarray of shape (n_samples, n_texts), float32
            In [-1, 1]; NaN for a file that cannot be read.
        """
        if (X is None) == (Z is None):
            raise ValueError("Give either X or its embedding Z.")
        check_is_fitted(self)
        if Z is None:
            Z = self.transform(X)
        Z = check_array(Z, dtype=np.float32, ensure_all_finite="allow-nan")
        if Z.shape[1] != self._n_features_out:
            raise ValueError(
                f"Z has {Z.shape[1]} columns, but an embedding has "
                f"{self._n_features_out}: give the result of transform."
            )
        return Z @ self.encode_text(texts).T

    def search(self, texts, X=None, n_results=10, *, Z=None):
        """Find the images that texts describe.

        Parameters
        ----------
        texts : str or list of str
            Of length n_texts; a single text counts as a list of one.
        X : array-like or None, default=None
            Samples of the fitted shape.
        n_results : int, default=10
            Images for each text; fewer if X has fewer readable ones.
        Z : array-like of shape (n_samples, n_features_out) or None, default=None
            Their embedding from :meth:`transform`, to use instead of X, so that images
            need not be embedded again.

        Returns
        -------
        rows : ndarray of int of shape (n_texts, n_results)
            Row numbers, the most similar first; ties in row order.
        similarities : ndarray of shape (n_texts, n_results), float32
            Cosines, the largest first.
        """
        if not isinstance(n_results, Integral) or n_results < 1:
            raise ValueError(f"n_results={n_results!r} must be a positive integer.")
        s = self.similarity(texts, X, Z=Z).T  # (n_texts, n_samples)
        n_readable = int((~np.isnan(s[0])).sum())
        # NaN is sorted behind everything
        rows = np.argsort(-s, axis=1, kind="stable")[:, : min(n_results, n_readable)]
        return rows, np.take_along_axis(s, rows, axis=1)
