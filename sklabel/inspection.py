"""Pictures of what an estimator has found, drawn with matplotlib."""

import numpy as np

from ._data import check_images
from ._optional import import_optional


class ClusterDisplay:
    """The most and the least confident images of each cluster, one cluster in a row.

    The most confident images tell what a cluster is about, the least confident ones where
    its border runs. Use `from_estimator` or `from_predictions`.

    Parameters
    ----------
    images : sequence of n ndarray of shape (h, w) or (h, w, 3)
        As matplotlib shows them, uint8 or floats in [0, 1].
    labels : ndarray of int of shape (n,)
        Cluster of each image.
    confidence : ndarray of shape (n,)
        Probability of that cluster.
    sizes : dict of int to int
        Rows of each cluster, of which the images are some.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
    axes_ : ndarray of matplotlib.axes.Axes of shape (n_clusters, n_columns)
    """

    def __init__(self, images, labels, confidence, sizes):
        self.images = images
        self.labels = labels
        self.confidence = confidence
        self.sizes = sizes

    @classmethod
    def from_estimator(
        cls, clusterer, X, *, n_images=6, clusters=None, cmap="gray", figure=None
    ):
        """Draw the clusters in which a fitted clusterer puts the rows of X.

        Parameters
        ----------
        clusterer : fitted clusterer
            With ``predict`` and ``predict_proba``.
        X : array-like
            Images, in any form that estimators take; not flattened.
        n_images : int, default=6
            Most confident images, and as many least confident ones.
        clusters : array-like of int or None, default=None
            Which to draw; None: all.
        cmap : str or matplotlib.colors.Colormap, default="gray"
            Colors of grey images; "gray_r" for ink on paper.
        figure : matplotlib.figure.Figure or None, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        display : ClusterDisplay
        """
        p = clusterer.predict_proba(X)
        return cls.from_predictions(
            X,
            clusterer.predict(X),
            p.max(1),
            n_images=n_images,
            clusters=clusters,
            cmap=cmap,
            figure=figure,
        )

    @classmethod
    def from_predictions(
        cls,
        X,
        labels,
        confidence,
        *,
        n_images=6,
        clusters=None,
        cmap="gray",
        figure=None,
    ):
        """Draw clusters that are known.

        Parameters
        ----------
        X : array-like
            Images, in any form that estimators take; not flattened.
        labels : array-like of int of shape (n_samples,)
            Cluster of each row; negative: none.
        confidence : array-like of shape (n_samples,)
            The larger, the surer.
        n_images : int, default=6
            Most confident images, and as many least confident ones.
        clusters : array-like of int or None, default=None
            Which to draw; None: all.
        cmap : str or matplotlib.colors.Colormap, default="gray"
            Colors of grey images; "gray_r" for ink on paper.
        figure : matplotlib.figure.Figure or None, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        display : ClusterDisplay

        Raises
        ------
        ValueError
            If a cluster to draw has no row.
        """
        labels, confidence = np.asarray(labels), np.asarray(confidence)
        present = np.unique(labels[labels >= 0])
        clusters = present if clusters is None else np.asarray(clusters)
        missing = sorted(set(clusters.tolist()) - set(present.tolist()))
        if missing:
            raise ValueError(f"clusters {missing} have no row in X.")
        chosen = []
        for cluster in clusters:
            rows = np.flatnonzero(labels == cluster)
            rows = rows[np.argsort(-confidence[rows], kind="stable")]
            # of a small cluster every image once
            ends = [rows[:n_images], rows[n_images:][-n_images:]]
            chosen.append(np.concatenate(ends))
        rows = np.concatenate(chosen)
        sizes = {int(k): int((labels == k).sum()) for k in clusters}
        images = check_images(X, rows)
        display = cls(images, labels[rows], confidence[rows], sizes)
        return display.plot(n_images=n_images, cmap=cmap, figure=figure)

    def plot(self, *, n_images=6, cmap="gray", figure=None):
        """Draw the images.

        Parameters
        ----------
        n_images : int, default=6
            Most confident images, and as many least confident ones.
        cmap : str or matplotlib.colors.Colormap, default="gray"
            Colors of grey images; "gray_r" for ink on paper.
        figure : matplotlib.figure.Figure or None, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        self : ClusterDisplay
        """
        plt = import_optional("matplotlib.pyplot", extra="plot")
        n_columns = 2 * n_images + 1  # an empty one between the two groups
        if figure is None:
            size = (0.62 * n_columns + 1.2, 0.66 * len(self.sizes) + 0.5)
            figure = plt.figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(self.sizes), n_columns, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for line, (cluster, size) in zip(axes, self.sizes.items(), strict=True):
            places = [*line[:n_images], *line[n_images + 1 :]]
            shown = np.flatnonzero(self.labels == cluster)
            for ax, i in zip(places, shown, strict=False):
                ax.imshow(self.images[i], cmap=cmap)
            line[0].text(
                -0.2,
                0.5,
                f"{cluster}\n{size} rows",
                transform=line[0].transAxes,
                va="center",
                ha="right",
                fontsize=9,
            )
        axes[0, 0].set_title("most confident", loc="left", fontsize=10)
        axes[0, n_images + 1].set_title("least confident", loc="left", fontsize=10)
        self.figure_, self.axes_ = figure, axes
        return self
