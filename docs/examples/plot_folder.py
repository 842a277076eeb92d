"""
Forty labels for a folder of photographs
========================================

A folder holds 400 images without labels. Choose forty, label these, and let the
classifier label the others, with a confidence for each.

The command line does the same: ``sklabel select FOLDER``, then ``sklabel fit
to_label.csv FOLDER``.
"""

# %%
# The pictures
# ------------
#
# scikit-learn and scikit-image contain some photographs. The images here are 40 random
# patches of 48 x 48 pixels from each of ten photographs, at half the resolution. In
# your work, X holds your photographs: an array, or paths with `image_size=64`.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from skimage import data
from skimage.color import gray2rgb
from sklearn.datasets import load_sample_images
from sklearn.frozen import FrozenEstimator

from sklabel.classification import EmbeddingClassifier
from sklabel.datasets import load_image_folder
from sklabel.embedding import SimCLRTransformer
from sklabel.inspection import SelectionDisplay
from sklabel.labels import partial_labels
from sklabel.selection import TypiClustSelector

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

folder = Path(tempfile.mkdtemp())
for row in rng.permutation(len(X)):
    Image.fromarray(X[row]).save(folder / f"{row:04d}.png")

# %%
# Choose
# ------
#
# X holds the paths. An encoder learns from all images, without labels.
# :class:`~sklabel.selection.TypiClustSelector` takes the most typical image of each of
# forty groups.

paths = load_image_folder(folder).paths
embedder = SimCLRTransformer(
    max_epochs=5, batch_size=64, image_size=24, random_state=0
).fit(paths)
Z = embedder.transform(paths)
selector = TypiClustSelector(40, random_state=0).fit(Z)
SelectionDisplay.from_estimator(selector, X, Z)
plt.show()

# %%
# Label forty, predict the rest
# -----------------------------
#
# Here the true labels replace a person.

rows = selector.sample_indices_
y = partial_labels(len(paths), rows, truth[rows])
classifier = EmbeddingClassifier(FrozenEstimator(embedder), random_state=0).fit(
    paths, y
)
low, high = classifier.estimated_accuracy_interval_
rest = np.setdiff1d(np.arange(len(X)), rows)
right = classifier.transduction_[rest] == truth[rest]
print(f"expected: {classifier.estimated_accuracy_:.0%} ({low:.0%} to {high:.0%})")
print(f"true:     {right.mean():.0%} of the other {len(rest)} images")

# %%
# For each class, the most confident images are on the left, the least confident ones on
# the right. Red frames are errors: they are on the right, so look there first.

confidence = classifier.predict_proba(paths).max(axis=1)
figure, axes = plt.subplots(10, 14, figsize=(9, 6.5), layout="constrained")
for line, kind in zip(axes, classifier.classes_, strict=True):
    own = rest[classifier.transduction_[rest] == kind]
    own = own[np.argsort(-confidence[own])]
    shown = np.concatenate([own[:7], own[-7:]]) if len(own) > 14 else own
    for ax in line:
        ax.set_axis_off()
    for ax, row in zip(line, shown, strict=False):
        ax.set_axis_on()
        ax.imshow(X[row])
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(
            color="white" if truth[row] == kind else "crimson", linewidth=3
        )
        ax.set_title(f"{confidence[row]:.2f}", fontsize=7, pad=1)
    line[0].set_ylabel(kind, rotation=0, ha="right", va="center")
plt.show()
