"""
Several encoders: which one suits your images?
==============================================

An encoder decides which images count as similar, and all later steps build on it.
Four encoders see the same 400 patches of photographs. Which one groups them best, and
how many labels do you need to find out?
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
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.preprocessing import normalize

from sklabel.augment import Contrastive
from sklabel.embedding import AutoencoderTransformer, SimCLRTransformer
from sklabel.metrics import effective_rank

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
# Four encoders
# -------------
#
# Pixels need no encoder. An untrained network is a baseline that every training must
# beat. The autoencoder keeps what covers many pixels. SimCLR learns what its views have
# in common; these photographs differ in color, so the views keep it. A published
# encoder, ``PretrainedTransformer("resnet18")``, would be a fifth one, but needs a
# network connection once.

untrained = SimCLRTransformer(max_steps=1, lr=1e-9, random_state=0)
vectors = {"pixels": X.reshape(len(X), -1) / 255}
for name, encoder in {
    "untrained network": untrained,
    "autoencoder": AutoencoderTransformer(max_epochs=8, random_state=0),
    "SimCLR": SimCLRTransformer(
        augment=Contrastive(jitter=0.2, grayscale=0),
        max_epochs=8,
        batch_size=64,
        random_state=0,
    ),
}.items():
    vectors[name] = encoder.fit_transform(X)

# %%
# A hundred random labels decide
# ------------------------------
#
# The accuracy is that of the three nearest labeled neighbors, by cross-validation on
# 100 labels. The rank is the effective number of dimensions of the vectors.

sample = rng.permutation(len(X))[:100]
for name, Z in vectors.items():
    scores = cross_val_score(
        KNeighborsClassifier(3), normalize(Z)[sample], truth[sample]
    )
    rank = effective_rank(torch.as_tensor(Z, dtype=torch.float32))
    accuracy = f"{scores.mean():.2f} +- {scores.std():.2f}"
    print(f"{name:18s} accuracy {accuracy}  rank {rank:.0f}")

# %%
# The picture shows why. The first column has four patches, the other columns their six
# nearest neighbors. A red frame marks a patch from a different photograph. Pixels and
# the autoencoder match the brightness at each position; the networks match texture and
# color.

queries = [
    np.flatnonzero(truth == kind)[5] for kind in ("cat", "coffee", "grass", "temple")
]
figure = plt.figure(figsize=(8, 6), layout="constrained")
for part, (name, Z) in zip(figure.subfigures(2, 2).flat, vectors.items(), strict=True):
    part.suptitle(name)
    unit = normalize(Z)
    near = NearestNeighbors(n_neighbors=7).fit(unit).kneighbors(unit[queries])[1]
    for line, rows in zip(part.subplots(4, 7), near, strict=True):
        for ax, row in zip(line, rows, strict=True):
            ax.imshow(X[row])
            ax.set(xticks=[], yticks=[])
            wrong = truth[row] != truth[rows[0]]
            ax.spines[:].set(color="crimson" if wrong else "white", linewidth=2)
plt.show()
