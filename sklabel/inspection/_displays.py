"""Pictures of the results of estimators, drawn with matplotlib."""

import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import _num_samples

from .._core.inputs import check_images
from .._core.optional import import_optional


class ClusterDisplay:
    """The most and the least confident images of each cluster, one cluster in a row.

    The most confident images show what a cluster contains, the least confident ones
    where its border is. Use `from_estimator` or `from_predictions`.

    Parameters
    ----------
    images : sequence of n ndarray of shape (h, w) or (h, w, 3)
        As matplotlib shows them, uint8 or floats in [0, 1].
    labels : ndarray of int of shape (n,)
        Cluster of each image.
    confidence : ndarray of shape (n,) or None
        Confidence of each image in its cluster; larger is more confident. None: not
        known.
    sizes : dict of int to int
        Number of rows of each cluster; the images are some of them.

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
        """Draw the clusters that a fitted clusterer predicts for the rows of X.

        Parameters
        ----------
        clusterer : fitted clusterer
            With ``predict``, and ``predict_proba`` or ``score_samples``.
        X : array-like
            Images, in any form that estimators take; not flattened.
        n_images : int, default=6
            Number of most confident images, and of least confident ones.
        clusters : array-like of int or None, default=None
            Clusters to draw; None: all.
        cmap : str or matplotlib.colors.Colormap, default="gray"
            Colormap of gray images; "gray_r" for dark ink on white paper.
        figure : matplotlib.figure.Figure or None, default=None
            Figure to draw into; None: a new figure.

        Returns
        -------
        display : ClusterDisplay

        Raises
        ------
        ValueError
            If the clusterer has no confidence, or predicts a map of clusters for each
            image.
        """
        if hasattr(clusterer, "predict_proba"):
            confidence = clusterer.predict_proba(X).max(1)
        elif hasattr(clusterer, "score_samples"):
            confidence = clusterer.score_samples(X)
        else:
            raise ValueError(
                f"{type(clusterer).__name__} has neither predict_proba nor "
                "score_samples, so its confidence is not known: use "
                "ClusterDisplay.from_predictions(X, labels, confidence)."
            )
        return cls.from_predictions(
            X,
            clusterer.predict(X),
            confidence,
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
        confidence=None,
        *,
        n_images=6,
        clusters=None,
        cmap="gray",
        figure=None,
    ):
        """Draw clusters from their labels.

        Parameters
        ----------
        X : array-like
            Images, in any form that estimators take; not flattened.
        labels : array-like of int of shape (n_samples,)
            Cluster of each row; negative: no cluster.
        confidence : array-like of shape (n_samples,) or None, default=None
            Confidence of each row; larger is more confident. None: not known; the first
            and the last rows of each cluster are drawn.
        n_images : int, default=6
            Number of most confident images, and of least confident ones.
        clusters : array-like of int or None, default=None
            Clusters to draw; None: all.
        cmap : str or matplotlib.colors.Colormap, default="gray"
            Colormap of gray images; "gray_r" for dark ink on white paper.
        figure : matplotlib.figure.Figure or None, default=None
            Figure to draw into; None: a new figure.

        Returns
        -------
        display : ClusterDisplay

        Raises
        ------
        ValueError
            If a cluster to draw has no row, ``labels`` are maps, or the lengths differ.
        """
        labels = np.asarray(labels)
        if labels.ndim != 1:
            raise ValueError(
                f"ClusterDisplay draws images with one cluster each, but labels have "
                f"shape {labels.shape}. Look at a map of clusters over its image with "
                "plt.imshow(X[0]); plt.imshow(labels[0], alpha=0.5)."
            )
        check_consistent_length(X, labels, confidence)
        known = confidence is not None
        confidence = np.asarray(confidence, float) if known else np.zeros(len(labels))
        present = np.unique(labels[labels >= 0])
        clusters = present if clusters is None else np.asarray(clusters)
        missing = sorted(set(clusters.tolist()) - set(present.tolist()))
        if missing:
            raise ValueError(f"clusters {missing} have no row in X.")
        chosen = []
        for cluster in clusters:
            rows = np.flatnonzero(labels == cluster)
            rows = rows[np.argsort(-confidence[rows], kind="stable")]
            chosen.append(np.concatenate(_ends(rows, n_images)))
        rows = np.concatenate(chosen)
        sizes = {int(k): int((labels == k).sum()) for k in clusters}
        images = check_images(X, rows)
        confidence = confidence[rows] if known else None
        display = cls(images, labels[rows], confidence, sizes)
        return display.plot(n_images=n_images, cmap=cmap, figure=figure)

    def plot(self, *, n_images=6, cmap="gray", figure=None):
        """Draw the images.

        Parameters
        ----------
        n_images : int, default=6
            Number of most confident images, and of least confident ones, at most as
            many as the display was made with.
        cmap : str or matplotlib.colors.Colormap, default="gray"
            Colormap of gray images; "gray_r" for dark ink on white paper.
        figure : matplotlib.figure.Figure or None, default=None
            Figure to draw into; None: a new figure.

        Returns
        -------
        self : ClusterDisplay

        Raises
        ------
        ValueError
            If ``n_images`` is more than the display was made with.
        """
        plt = import_optional("matplotlib.pyplot", extra="plot")
        n_columns = 2 * n_images + 1  # an empty one between the two groups
        if figure is None:
            size = (0.62 * n_columns + 1.2, 0.66 * len(self.sizes) + 0.5)
            figure = plt.figure(figsize=size, layout="constrained")
        axes = _image_axes(figure, len(self.sizes), n_columns)
        for line, (cluster, size) in zip(axes, self.sizes.items(), strict=True):
            rows = np.flatnonzero(self.labels == cluster)
            if len(rows) < min(size, 2 * n_images):
                raise ValueError(
                    f"n_images={n_images} is more than the {len(rows) // 2} that the "
                    "display was made with: make another display."
                )
            if self.confidence is not None:
                surest = np.argsort(-np.asarray(self.confidence)[rows], kind="stable")
                rows = rows[surest]
            places = line[:n_images], line[n_images + 1 :]
            for own, shown in zip(places, _ends(rows, n_images), strict=True):
                for ax, i in zip(own, shown, strict=False):
                    _show(ax, self.images[i], cmap)
            line[0].text(
                -0.2,
                0.5,
                f"{cluster}\n{size} rows",
                transform=line[0].transAxes,
                va="center",
                ha="right",
                fontsize=9,
            )
        if self.confidence is not None:
            axes[0, 0].set_title("most confident", loc="left", fontsize=10)
            axes[0, n_images + 1].set_title("least confident", loc="left", fontsize=10)
        self.figure_, self.axes_ = figure, axes
        return self


def _image_axes(figure, n_lines, n_columns):
    axes = figure.subplots(n_lines, n_columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    return axes


def _show(ax, image, cmap):
    # black and white are those of all images, not the darkest and brightest of this one
    ax.imshow(image, cmap=cmap, vmin=0, vmax=255 if image.dtype == np.uint8 else 1)


def _ends(rows, n):
    """Return the first and the last n rows, each once if there are few."""
    return rows[:n], rows[n:][-n:]


class SelectionDisplay:
    """The images a selector chose, in labeling order, and their positions among all.

    The images are those a person will label; the map shows which part of the data they
    represent. Use `from_estimator` or `from_selection`.

    Parameters
    ----------
    images : sequence of n ndarray of shape (h, w) or (h, w, 3)
        Chosen images as matplotlib shows them, uint8 or floats in [0, 1].
    sample_indices : ndarray of int of shape (n,)
        Their rows, in labeling order.
    chosen_map : ndarray of shape (n, 2)
        Positions of the chosen rows on the map.
    map : ndarray of shape (m, 2)
        Positions of all rows, or of a sample of them.
    n_asked : int
        Total number of chosen rows; the images are the first of them.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
    axes_ : ndarray of matplotlib.axes.Axes
        Axes of the images.
    map_ax_ : matplotlib.axes.Axes
    """

    def __init__(self, images, sample_indices, chosen_map, map, n_asked):
        self.images = images
        self.sample_indices = sample_indices
        self.chosen_map = chosen_map
        self.map = map
        self.n_asked = n_asked

    @classmethod
    def from_estimator(
        cls,
        selector,
        X,
        Z,
        *,
        n_images=40,
        projection=None,
        max_points=20_000,
        cmap="gray",
        figure=None,
    ):
        """Draw what a fitted selector chose.

        Parameters
        ----------
        selector : fitted selector
            With ``sample_indices_``; in a pipeline, the last step is used.
        X : array-like
            Images of all rows, in any form that estimators take; not flattened.
        Z : array-like of shape (n_samples, n_features)
            Vectors of all rows, such as those that the selector used.
        n_images : int, default=40
            Number of chosen images to draw, from the first.
        projection : estimator or None, default=None
            With ``fit_transform`` to two columns, such as
            :class:`sklearn.manifold.TSNE`; None: :class:`sklearn.decomposition.PCA`.
            Vectors of two columns are used as is.
        max_points : int, default=20000
            Maximum number of rows on the map; if there are more, every k-th is drawn,
            plus the chosen ones.
        cmap : str or matplotlib.colors.Colormap, default="gray"
            Colormap of gray images; "gray_r" for dark ink on white paper.
        figure : matplotlib.figure.Figure or None, default=None
            Figure to draw into; None: a new figure.

        Returns
        -------
        display : SelectionDisplay
        """
        if hasattr(selector, "steps"):
            selector = selector.steps[-1][1]
        return cls.from_selection(
            X,
            Z,
            selector.sample_indices_,
            n_images=n_images,
            projection=projection,
            max_points=max_points,
            cmap=cmap,
            figure=figure,
        )

    @classmethod
    def from_selection(
        cls,
        X,
        Z,
        sample_indices,
        *,
        n_images=40,
        projection=None,
        max_points=20_000,
        cmap="gray",
        figure=None,
    ):
        """Draw chosen rows from their numbers.

        Parameters
        ----------
        X : array-like
            Images of all rows, in any form that estimators take; not flattened.
        Z : array-like of shape (n_samples, n_features)
            Vectors of all rows, such as those that the selector used.
        sample_indices : array-like of int
            Chosen rows, in labeling order.
        n_images : int, default=40
            Number of chosen images to draw, from the first.
        projection : estimator or None, default=None
            With ``fit_transform`` to two columns, such as
            :class:`sklearn.manifold.TSNE`; None: :class:`sklearn.decomposition.PCA`.
            Vectors of two columns are used as is.
        max_points : int, default=20000
            Maximum number of rows on the map; if there are more, every k-th is drawn,
            plus the chosen ones.
        cmap : str or matplotlib.colors.Colormap, default="gray"
            Colormap of gray images; "gray_r" for dark ink on white paper.
        figure : matplotlib.figure.Figure or None, default=None
            Figure to draw into; None: a new figure.

        Returns
        -------
        display : SelectionDisplay

        Raises
        ------
        ValueError
            If no row is chosen, a row is not one of Z, or X and Z differ in length.
        """
        rows = np.asarray(sample_indices, dtype=np.int64).reshape(-1)
        Z = check_array(Z, dtype=[np.float32, np.float64])
        if _num_samples(X) != len(Z):
            raise ValueError(
                f"X has {_num_samples(X)} images, but Z has {len(Z)} rows: pass the "
                "vectors of all images, in the same order."
            )
        if not (len(rows) and 0 <= rows.min() and rows.max() < len(Z)):
            raise ValueError(
                f"sample_indices must be rows of X, 0 to {len(Z) - 1}, and at least "
                f"one, got {rows[:5].tolist()}."
            )
        shown = np.arange(0, len(Z), -(-len(Z) // max_points))
        places = Z[np.concatenate([rows, shown])]
        if places.shape[1] == 1:
            places = np.c_[places, np.zeros(len(places))]
        elif places.shape[1] > 2:
            if projection is None:
                projection = PCA(2, random_state=0)
            places = np.asarray(clone(projection).fit_transform(places))
        images = check_images(X, rows[:n_images])
        display = cls(
            images, rows[:n_images], places[: len(rows)], places[len(rows) :], len(rows)
        )
        return display.plot(cmap=cmap, figure=figure)

    def plot(self, *, cmap="gray", figure=None):
        """Draw the images and the map.

        Parameters
        ----------
        cmap : str or matplotlib.colors.Colormap, default="gray"
            Colormap of gray images; "gray_r" for dark ink on white paper.
        figure : matplotlib.figure.Figure or None, default=None
            Figure to draw into; None: a new figure.

        Returns
        -------
        self : SelectionDisplay
        """
        plt = import_optional("matplotlib.pyplot", extra="plot")
        n = len(self.images)
        n_columns = min(8, n)
        n_lines = -(-n // n_columns)
        if figure is None:
            height = max(4.0, 0.75 * n_lines + 0.5)
            size = (0.6 * n_columns + 1.1 * height, height)
            figure = plt.figure(figsize=size, layout="constrained")
        left, right = figure.subfigures(
            1, 2, width_ratios=[0.6 * n_columns, max(4.0, 0.75 * n_lines)]
        )
        axes = _image_axes(left, n_lines, n_columns)
        for i, (ax, image) in enumerate(zip(axes.flat, self.images, strict=False)):
            _show(ax, image, cmap)
            ax.set_title(i + 1, fontsize=8, pad=2)
        rest = f", the first {n} of {self.n_asked}" if n < self.n_asked else ""
        left.suptitle(f"in labeling order{rest}", fontsize=10)
        ax = right.subplots()
        size = float(np.clip(4000 / len(self.map), 1, 12))
        ax.scatter(*self.map.T, s=size, c="0.8", linewidths=0, rasterized=True)
        ax.scatter(*self.chosen_map.T, s=36, c="C3", edgecolors="white", linewidths=0.7)
        for i, place in enumerate(self.chosen_map[:n]):
            ax.annotate(
                i + 1,
                place,
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=7,
            )
        ax.set(xticks=[], yticks=[])
        ax.set_title("among all", fontsize=10)
        self.figure_, self.axes_, self.map_ax_ = figure, axes, ax
        return self
