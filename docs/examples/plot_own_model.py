"""
Your own torch model
====================

You have your own network, and you know torch. Any `torch.nn.Module` that turns a
batch of images (B, C, H, W) into vectors (B, D) can be a `backbone`: it learns
without labels, and its vectors then serve to label your images.
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
import torch
from skimage import data
from skimage.color import gray2rgb
from sklearn.datasets import load_sample_images
from sklearn.frozen import FrozenEstimator
from torch import nn

from sklabel.classification import EmbeddingClassifier
from sklabel.embedding import SimCLRTransformer
from sklabel.labels import partial_labels
from sklabel.selection import USLSelector

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
# A small network
# ---------------
#
# Images arrive as floats between 0 and 1. You need no base class of sklabel.


class TextureNet(nn.Module):
    """Two convolutions, and the mean and spread of each channel over the image."""

    def __init__(self, width=32):
        super().__init__()
        self.first = nn.Conv2d(3, width, 7, padding=3)
        self.body = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )

    def forward(self, x):
        x = self.body(self.first(x))
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1)


torch.manual_seed(0)
network = TextureNet()
embedder = SimCLRTransformer(
    backbone=network, max_epochs=8, batch_size=64, random_state=0
).fit(X)

# %%
# `fit` trains a copy: your module stays unchanged, and the trained one is part of
# `encoder_`.

# %%
# Forty labels
# ------------

Z = embedder.transform(X)
rows = USLSelector(40, random_state=0).fit_select(Z)
y = partial_labels(len(X), rows, truth[rows])
classifier = EmbeddingClassifier(FrozenEstimator(embedder), random_state=0).fit(X, y)
rest = np.setdiff1d(np.arange(len(X)), rows)
right = classifier.transduction_[rest] == truth[rest]
print(f"{right.mean():.0%} of {len(rest)} images are right")

# %%
# The matrix shows which photographs are confused; rows are the true ones.

names = list(photographs)
table = np.zeros((10, 10))
for true, guessed in zip(truth[rest], classifier.transduction_[rest], strict=True):
    table[names.index(true), names.index(guessed)] += 1
figure, ax = plt.subplots(figsize=(5, 4.2), layout="constrained")
ax.imshow(table, cmap="Blues")
for i, j in np.argwhere(table):
    dark = table[i, j] > table.max() / 2
    ax.text(
        j,
        i,
        int(table[i, j]),
        ha="center",
        va="center",
        color="white" if dark else "black",
    )
ax.set_xticks(range(10), names, rotation=60)
ax.set_yticks(range(10), names)
plt.show()
