"""
Which 20 images are worth a label?
==================================

A person will label 20 of 1,797 images of handwritten digits. A random choice labels
some digits several times and may miss others. This example chooses from an embedding
that was learned without labels.
"""

# %%
# Embed the images
# ----------------
#
# The views of an image must keep its class. A mirrored digit is a different sign, so
# there is no flip. A small piece of a digit is not a digit, so a view shows at least
# 40 % of the area. Handwriting slants, so views are rotated by up to 15 degrees.

import matplotlib.pyplot as plt
import numpy as np

from sklabel.augment import Contrastive
from sklabel.datasets import load_digit_images
from sklabel.embedding import SimCLRTransformer
from sklabel.metrics import class_coverage
from sklabel.selection import RandomSelector, USLSelector

X, truth = load_digit_images(return_X_y=True)
views = Contrastive(flip=0, crop=(0.4, 1.0), rotate=15, jitter=0.2)
embedder = SimCLRTransformer(augment=views, max_epochs=20, random_state=0).fit(X)
Z = embedder.transform(X)

# %%
# Choose
# ------
#
# :class:`~sklabel.selection.USLSelector` chooses typical images that are far apart; it
# must beat :class:`~sklabel.selection.RandomSelector`. The true classes are used only
# for the picture: sorted by class, missing digits are visible.

chosen = {
    "Chosen by USL": USLSelector(n_samples=20, random_state=0).fit_select(Z),
    "Chosen at random": RandomSelector(n_samples=20, random_state=0).fit_select(Z),
}

figure = plt.figure(figsize=(8, 4.6), layout="constrained")
for part, (name, rows) in zip(figure.subfigures(2, 1), chosen.items(), strict=True):
    rows = rows[np.argsort(truth[rows], kind="stable")]
    missing = sorted(set(range(10)) - set(truth[rows].tolist()))
    lacks = f"no {', '.join(map(str, missing))}" if missing else "every digit is there"
    part.suptitle(f"{name}: {lacks}", fontweight="bold")
    for axes, row in zip(part.subplots(2, 10).flat, rows, strict=True):
        axes.imshow(X[row], cmap="gray_r")
        axes.set_title(truth[row], fontsize=9)
        axes.set_axis_off()
plt.show()

# %%
# A single draw proves little. This is the mean share of the ten digits among the 20
# chosen images, over ten seeds:

for name, selector in (("USL", USLSelector(20)), ("random", RandomSelector(20))):
    shares = [
        class_coverage(
            truth[selector.set_params(random_state=seed).fit_select(Z)], np.arange(10)
        )
        for seed in range(10)
    ]
    print(f"{name}: {np.mean(shares):.2f}")
