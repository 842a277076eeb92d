"""
Label 1,797 images from 40: where are the errors?
=================================================

Four images of each digit have a label, the other 1,757 have none.
:class:`~sklabel.classification.FixMatchClassifier` learns from both and predicts a
class and a probability for every image. Does the probability show where the errors
are?
"""

# %%
# Train
# -----
#
# Digits must not be mirrored: `Weak(flip=0)`. Here the network starts from random
# weights; an embedder as `backbone` would be a better start.

import matplotlib.pyplot as plt
import numpy as np

from sklabel.augment import Weak
from sklabel.classification import FixMatchClassifier
from sklabel.datasets import load_digit_images
from sklabel.selection import StratifiedSelector

X, truth = load_digit_images(return_X_y=True)
labeled = StratifiedSelector(40, random_state=0).fit_select(X, truth)
y = np.full(len(X), -1)
y[labeled] = truth[labeled]

classifier = FixMatchClassifier(
    weak_augment=Weak(flip=0),
    batch_size=16,
    unlabeled_ratio=3,
    max_steps=250,
    random_state=0,
).fit(X, y)

# %%
# Sort by confidence
# ------------------
#
# Left: the share of all errors that you find if you look at the 1,757 images from the
# least to the most confident. Right: the least confident images with their predicted
# class, and the true class if it differs.

rest = np.flatnonzero(y == -1)
p = classifier.predict_proba(X[rest])
order = np.argsort(p.max(axis=1))
rows = rest[order]
found = classifier.transduction_[rows]
wrong = found != truth[rows]

figure = plt.figure(figsize=(9, 3.8), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1, 1.1])
ax = left.subplots()
ax.plot(np.arange(1, len(rows) + 1) / len(rows), wrong.cumsum() / wrong.sum())
ax.plot([0, 1], [0, 1], "--", color="gray", label="confidence without meaning")
ax.set(xlabel="share of images looked at", ylabel="share of all errors found")
ax.set_title(f"{1 - wrong.mean():.1%} of {len(rows)} images are right", fontsize=10)
ax.legend(loc="lower right", fontsize=8)
right.suptitle("The 40 least confident", fontsize=10)
for ax, row, name, bad in zip(
    right.subplots(5, 8).flat, rows, found, wrong, strict=False
):
    ax.imshow(X[row], cmap="gray_r")
    ax.set_axis_off()
    title = f"{name} ({truth[row]})" if bad else f"{name}"
    ax.set_title(title, fontsize=7, color="crimson" if bad else "black", pad=2)
plt.show()

# %%
# If a person checks the least confident tenth, they find this share of all errors:

tenth = len(rows) // 10
print(f"{wrong[:tenth].sum() / wrong.sum():.0%}")
