"""
What does an embedding learn?
=============================

An untrained encoder also turns images into vectors, and its nearest neighbors are not
bad: similar strokes give similar vectors. This example trains an encoder without
labels, and compares its vectors before and after.
"""

# %%
# Train
# -----
#
# This example uses :class:`~sklabel.embedding.MoCoTransformer`; all embedders work in
# the same way. One step at a rate of nearly zero gives the untrained encoder. The views
# keep the class of a digit: they do not mirror, show most of the digit, and rotate it
# only a little.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.manifold import TSNE

from sklabel.augment import Contrastive
from sklabel.datasets import load_digit_images
from sklabel.embedding import MoCoTransformer
from sklabel.neighbors import kneighbors

X, truth = load_digit_images(return_X_y=True)
views = Contrastive(flip=0, crop=(0.4, 1.0), rotate=15, jitter=0.2)
settings = {"augment": views, "batch_size": 128, "random_state": 0}
embeddings = {
    "Before training": MoCoTransformer(max_steps=1, lr=1e-9, **settings),
    "After training": MoCoTransformer(max_epochs=18, **settings),
}
embeddings = {name: e.fit_transform(X) for name, e in embeddings.items()}

# %%
# Nearest neighbors
# -----------------
#
# Each row shows a digit, framed, and the eight images with the closest vectors. Above
# each image is its true class, in red if it differs from the first.

rows = [np.flatnonzero(truth == digit)[7] for digit in (1, 3, 5, 8, 9)]

figure = plt.figure(figsize=(9.5, 3.4), layout="constrained")
for part, (name, Z) in zip(figure.subfigures(1, 2), embeddings.items(), strict=True):
    _, indices = kneighbors(Z, 8, metric="cosine", include_self=False)
    right = (truth[indices] == truth[:, None]).mean()
    part.suptitle(f"{name}: {right:.0%} of all neighbors alike", fontweight="bold")
    axes = part.subplots(len(rows), 9)
    for line, row in zip(axes, rows, strict=True):
        for ax, i in zip(line, [row, *indices[row]], strict=True):
            ax.imshow(X[i], cmap="gray_r")
            alike = truth[i] == truth[row]
            ax.set_title(truth[i], fontsize=8, pad=1, color="k" if alike else "r")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(i == row)
plt.show()

# %%
# A map
# -----
#
# scikit-learn's t-SNE maps the vectors onto a plane and keeps neighbors together. The
# colors are the true classes, which neither the training nor the map has seen. Some
# images are drawn at their positions.

figure, axes = plt.subplots(1, 2, figsize=(9.5, 5), layout="constrained")
for ax, (name, Z) in zip(axes, embeddings.items(), strict=True):
    plane = TSNE(random_state=0, metric="cosine", init="pca").fit_transform(Z)
    ax.scatter(*plane.T, c=truth, cmap="tab10", s=6, alpha=0.6, linewidths=0)
    low, high = plane.min(0) - 4, plane.max(0) + 4
    taken = []
    for i in np.random.default_rng(0).permutation(len(X)):
        place = (plane[i] - low) / (high - low)
        if all(np.abs(place - other).max() > 0.07 for other in taken):
            taken.append(place)
            x, y = plane[i]
            w, h = (high - low) * 0.022
            # the paper of an image is left out, so that the points stay visible
            ink = np.ma.masked_less(X[i], 60)
            ax.imshow(ink, cmap="gray_r", vmin=0, extent=(x - w, x + w, y - h, y + h))
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="auto")
    ax.set_title(name, fontweight="bold")
    ax.set_axis_off()
for digit in range(10):
    color = plt.get_cmap("tab10")(digit)
    axes[1].plot([], [], "o", color=color, label=digit)
figure.legend(loc="outside lower center", ncols=10, frameon=False)
plt.show()

# %%
# The groups are not perfect. The embedding separates only what the views allow, and
# nobody has told it that an open 9 is not a 4.
