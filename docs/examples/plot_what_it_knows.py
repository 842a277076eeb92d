"""
What does an embedding know?
============================

:class:`~sklabel.embedding.SimCLRTransformer` sees 400 patches of photographs and no
labels. Which patches does it find similar?
"""

# %%
# The pictures
# ------------
#
# scikit-learn and scikit-image contain some photographs. The images here are 40 random
# patches of 48 x 48 pixels from each of ten photographs, at half the resolution. In
# your work, X holds your photographs: an array, or paths with `image_size=64`.

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from skimage import data
from skimage.color import gray2rgb
from sklearn.datasets import load_sample_images
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

from sklabel.embedding import SimCLRTransformer

china, flower = load_sample_images().images
photographs = {
    "brick": data.brick(),
    "cat": data.chelsea(),
    "coffee": data.coffee(),
    "flower": flower,
    "grass": data.grass(),
    "gravel": data.gravel(),
    "moon": data.moon(),
    "retina": data.retina()[200:1200, 200:1200],
    "temple": china,
    "tissue": data.immunohistochemistry(),
}
rng = np.random.default_rng(0)
X, truth = [], []
for kind, photograph in photographs.items():
    if photograph.ndim == 2:
        photograph = gray2rgb(photograph)
    for _ in range(40):
        i, j = (rng.integers(length - 48) for length in photograph.shape[:2])
        X.append(photograph[i : i + 48 : 2, j : j + 48 : 2])
        truth.append(kind)
X, truth = np.stack(X), np.array(truth)

# %%
# Learn from images alone
# -----------------------
#
# A few epochs are enough for a first look. Longer trainings and more images help. With
# a network connection, ``PretrainedTransformer()`` needs no training.

embedder = SimCLRTransformer(max_epochs=5, batch_size=64, random_state=0)
Z = normalize(StandardScaler().fit_transform(embedder.fit_transform(X)))

# %%
# A map
# -----
#
# t-SNE draws the vectors in two dimensions. Patches of one photograph lie together,
# and so do patches of one color and texture.

places = TSNE(perplexity=10, random_state=0).fit_transform(Z)
figure, ax = plt.subplots(figsize=(9, 7))
ax.scatter(*places.T, s=1)
for row in range(len(X)):
    box = OffsetImage(X[row], zoom=0.7)
    ax.add_artist(AnnotationBbox(box, places[row], frameon=False))
ax.set_axis_off()
plt.show()

# %%
# Nearest neighbors
# -----------------
#
# Left: one patch of each photograph. Right: its eight nearest neighbors; a red frame
# marks a patch from a different photograph.

queries = [np.flatnonzero(truth == kind)[3] for kind in photographs]
near = NearestNeighbors(n_neighbors=9).fit(Z).kneighbors(Z[queries])[1]
figure, axes = plt.subplots(10, 9, figsize=(6, 6.6), layout="constrained")
for line, rows in zip(axes, near, strict=True):
    for ax, row in zip(line, rows, strict=True):
        ax.imshow(X[row])
        ax.set(xticks=[], yticks=[])
        wrong = truth[row] != truth[rows[0]]
        ax.spines[:].set(color="crimson" if wrong else "white", linewidth=3)
    line[0].set_ylabel(truth[rows[0]], rotation=0, ha="right", va="center")
plt.show()

right = (truth[near[:, 1:]] == truth[near[:, :1]]).mean()
print(f"{right:.0%} of these neighbors are of the same photograph")
