"""
Four ways to choose 20 images
=============================

Four selectors choose 20 of 1,797 images of handwritten digits, in the same embedding
and without labels: random images, typical images of each group (USL), images that
cover all others (core-set), and typical images of groups that a network learns
(USL-T).
"""

# %%
# The embedding
# -------------

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklabel.augment import Contrastive
from sklabel.datasets import load_digit_images
from sklabel.embedding import SimCLRTransformer
from sklabel.inspection import SelectionDisplay
from sklabel.metrics import class_coverage
from sklabel.selection import CoreSetSelector, RandomSelector, USLSelector, USLTSelector

X, truth = load_digit_images(return_X_y=True)
views = Contrastive(flip=0, crop=(0.4, 1.0), rotate=15, jitter=0.2)
embedder = SimCLRTransformer(augment=views, max_epochs=20, random_state=0).fit(X)
Z = embedder.transform(X)

# %%
# The chosen images
# -----------------
#
# :class:`~sklabel.inspection.SelectionDisplay` shows the images in the order in which
# to label them, and their positions on a map of all images. USL chooses from dense
# regions; core-set chooses from the borders, where the odd digits are.

selectors = {
    "random": RandomSelector(20),
    "USL": USLSelector(20),
    "core-set": CoreSetSelector(20),
    "USL-T": USLTSelector(20, train_backbone=False),
}
for name in ("USL", "core-set"):
    selector = selectors[name].set_params(random_state=0).fit(Z)
    display = SelectionDisplay.from_estimator(selector, X, Z, cmap="gray_r")
    display.figure_.suptitle(name, fontweight="bold")
plt.show()

# %%
# What do they gain?
# ------------------
#
# The table shows means over five seeds: the share of the ten digits among the chosen
# images, and the accuracy of a logistic regression on all other images, after training
# on these 20. The true classes are used only here.

classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for i, (name, selector) in enumerate(selectors.items()):
    coverage, accuracy = [], []
    for seed in range(5):
        rows = selector.set_params(random_state=seed).fit_select(Z)
        rest = np.delete(np.arange(len(X)), rows)
        coverage.append(class_coverage(truth[rows], np.arange(10)))
        classifier.fit(Z[rows], truth[rows])
        accuracy.append(classifier.score(Z[rest], truth[rest]))
    axes.errorbar(np.mean(accuracy), i, xerr=np.std(accuracy, ddof=1), fmt="o", c="C0")
    print(
        f"{name:10s} digits met {np.mean(coverage):.2f}   "
        f"accuracy {np.mean(accuracy):.3f} +- {np.std(accuracy, ddof=1):.3f}"
    )
axes.set_yticks(range(4), selectors)
axes.invert_yaxis()
axes.set_xlabel("accuracy on the other images, 20 labels, five seeds")
plt.show()
