"""
Which 20 images are worth a label?
==================================

A person will label 20 of 1,797 images of handwritten digits. Chosen at random, the 20
spend several labels on one kind of digit and may leave another out. Here they are
chosen from an embedding that was learned without any label.
"""

# %%
# Embed the images
# ----------------
#
# The views of an image must keep its meaning. A mirrored digit is another sign, so
# there is no flip; a small piece of one is no digit, so a view shows at least 40 % of
# the area; hands slant, so views are turned by up to 15 degrees.

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
# :class:`~sklabel.selection.USLSelector` takes typical images that lie far apart;
# :class:`~sklabel.selection.RandomSelector` is what it must beat. The true classes are
# used for the picture only: sorted by class, gaps show.

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
# One draw proves little. Over ten seeds, the mean share of the ten digits that are
# among the 20 chosen images:

for name, selector in (("USL", USLSelector(20)), ("random", RandomSelector(20))):
    shares = [
        class_coverage(
            truth[selector.set_params(random_state=seed).fit_select(Z)], np.arange(10)
        )
        for seed in range(10)
    ]
    print(f"{name}: {np.mean(shares):.2f}")
