"""
Where are the labels wrong?
===========================

Every image has a label, and one label in twenty is wrong.
:func:`~sklabel.inspection.suspicious_labels` predicts each label from the others and
lists the contradictions, so a person checks only a few images.
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
from skimage import data
from skimage.color import gray2rgb
from sklearn.datasets import load_sample_images

from sklabel.embedding import SimCLRTransformer
from sklabel.inspection import suspicious_labels

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

given = truth.copy()
swapped = rng.permutation(len(X))[: len(X) // 20]
for row in swapped:
    given[row] = rng.choice([kind for kind in photographs if kind != truth[row]])

# %%
# Look for them
# -------------
#
# The vectors come from a network that has seen no labels, so wrong labels cannot have
# misled it.

Z = SimCLRTransformer(max_epochs=5, batch_size=64, random_state=0).fit_transform(X)
found = suspicious_labels(Z, given)
hit = np.isin(found.rows, swapped)
print(f"{len(found.rows)} suspicious labels")
print(f"{hit.sum()} of {len(swapped)} wrong labels are among them")

# %%
# The most suspicious labels come first. The given label is crossed out; the suggestion
# is below the image. Green frames mark labels that are really wrong.

figure, axes = plt.subplots(3, 8, figsize=(9, 4.6), layout="constrained")
for ax in axes.flat:
    ax.set_axis_off()
for ax, row, old, new, right in zip(
    axes.flat, found.rows, found.given, found.suggested, hit, strict=False
):
    ax.set_axis_on()
    ax.imshow(X[row])
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(color="limegreen" if right else "crimson", linewidth=4)
    ax.set_title(
        "".join(f"{letter}\u0336" for letter in old), fontsize=9, color="gray", pad=2
    )
    ax.set_xlabel(new, fontsize=9)
plt.show()

# %%
# What checking gains
# -------------------
#
# The figure shows how many wrong labels a person has found after a number of checks,
# in this order and in random order.

figure, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
ax.plot(
    np.arange(len(hit) + 1),
    np.concatenate([[0], hit.cumsum()]),
    label="most suspicious first",
)
ax.plot(
    [0, len(hit)],
    [0, len(hit) * len(swapped) / len(X)],
    "--",
    color="gray",
    label="at random",
)
ax.set(xlabel="labels checked", ylabel=f"wrong labels found, of {len(swapped)}")
ax.legend()
plt.show()
