"""
Clean a folder: copies, and images that are dark, blank or blurred
==================================================================

Before you label images, remove those that are not worth a label. Copies do harm: if
one copy is in the training set and one in the test set, the score is too high.
"""

# %%
# The pictures
# ------------
#
# scikit-learn and scikit-image contain some photographs. The images here are 20 random
# patches of 160 x 160 pixels from each of ten photographs, at a quarter of the
# resolution. In your work, X holds your photographs: an array, or paths with
# `image_size=64`.

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageFilter
from skimage import data
from skimage.color import gray2rgb
from sklearn.datasets import load_sample_images

from sklabel.inspection import find_duplicates, find_poor_images

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
    for _ in range(20):
        i, j = (rng.integers(length - 160) for length in photograph.shape[:2])
        X.append(photograph[i : i + 160 : 4, j : j + 160 : 4])
        truth.append(kind)
X, truth = np.stack(X), np.array(truth)

# %%
# Some faults
# -----------
#
# Now add some typical faults: copies that were saved again at a different size, and
# blurred, dark, bright and blank images.


def copy(image):
    """Return the image as it comes back from a smaller file."""
    return image.resize((30, 30)).resize((40, 40))


faults = {
    "copied": copy,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(5)),
    "dark": lambda image: image.point(lambda value: value * 0.15),
    "bright": lambda image: image.point(lambda value: 215 + value * 0.15),
    "blank": lambda image: Image.new("RGB", image.size, (90, 100, 110)),
}
made = []
for name, change in faults.items():
    for row in rng.choice(len(X), 6, replace=False):
        made.append(np.asarray(change(Image.fromarray(X[row]))))
folder = np.concatenate([X, made])
print(len(X), "patches and", len(made), "faults")

# %%
# Poor images
# -----------
#
# This step needs no training and no label: it measures brightness, contrast and
# sharpness. Green frames mark the faults from above. The others are smooth or dark
# parts of photographs: a person has the last word.

poor = find_poor_images(folder)
kinds = ("dark", "bright", "blank", "blurred")
figure, axes = plt.subplots(4, 10, figsize=(8, 3.6), layout="constrained")
for line, kind in zip(axes, kinds, strict=True):
    rows = getattr(poor, kind)
    for ax in line:
        ax.set_axis_off()
    for ax, row in zip(line, rows, strict=False):
        ax.set_axis_on()
        ax.imshow(folder[row])
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(color="limegreen" if row >= len(X) else "gray", linewidth=3)
    line[0].set_axis_on()
    line[0].set_ylabel(f"{kind}: {len(rows)}", rotation=0, ha="right", va="center")
plt.show()

# %%
# Copies
# ------
#
# Each column is a group of near duplicates, whatever their size and brightness. Keep
# one of each.

groups = [
    group for group in find_duplicates(folder, threshold=0.98).near if len(group) < 5
]
groups = groups[:12]
figure, axes = plt.subplots(
    2, len(groups), figsize=(8, 1.8), layout="constrained", squeeze=False
)
for column, group in zip(axes.T, groups, strict=True):
    for ax, row in zip(column, group, strict=False):
        ax.imshow(folder[row])
        ax.set_axis_off()
plt.show()
print(len(groups), "groups")
