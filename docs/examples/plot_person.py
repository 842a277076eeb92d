"""
Active learning with a person
=============================

Label ten images, train, choose images that the classifier is unsure of, label ten
more. :class:`~sklabel.active_learning.ActiveLearningClassifier` asks, a person
answers, and the loop can stop and continue at any time. Here the true labels replace
the person.
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
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklabel.active_learning import ActiveLearningClassifier
from sklabel.embedding import SimCLRTransformer
from sklabel.selection import BADGESelector, MaxHerdingSelector, RandomSelector

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

Z = SimCLRTransformer(max_epochs=5, batch_size=64, random_state=0).fit_transform(X)

# %%
# Ask in rounds
# -------------
#
# `query` returns the rows to label, and `teach` takes the answers. The first ten are
# typical images, because there is no classifier yet; later ones are images that the
# classifier is unsure of.

classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def answer(rows):
    """Label rows; a person would look at ``X[rows]``."""
    return truth[rows]


def run(selector, first, seed):
    loop = ActiveLearningClassifier(
        classifier, selector, first, n_rounds=5, n_samples=10, random_state=seed
    )
    loop.begin(Z)
    asked, accuracy = [], []
    for _ in range(6):
        rows = loop.query()
        loop.teach(rows, answer(rows))
        asked.append(rows)
        rest = np.setdiff1d(np.arange(len(Z)), np.concatenate(asked))
        accuracy.append((loop.predict(Z[rest]) == truth[rest]).mean())
    return asked, accuracy


asked, _ = run(BADGESelector(), MaxHerdingSelector(), 0)

# %%
# The chosen images
# -----------------
#
# There is one row for each round.

figure, axes = plt.subplots(6, 10, figsize=(7, 4.6), layout="constrained")
for number, (line, rows) in enumerate(zip(axes, asked, strict=True), 1):
    for ax, row in zip(line, rows, strict=True):
        ax.imshow(X[row])
        ax.set(xticks=[], yticks=[])
        ax.set_title(truth[row], fontsize=7, pad=1)
    line[0].set_ylabel(f"round {number}", rotation=0, ha="right", va="center")
plt.show()

# %%
# What it gains
# -------------
#
# The figure shows the accuracy on the images without a label, with mean and standard
# deviation of three seeds. The first choice gains most. Later, random choice is as good
# on these easy images: compare before you trust a selector.

figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
labels = np.arange(10, 70, 10)
for name, selector, first in (
    ("MaxHerding, then BADGE", BADGESelector(), MaxHerdingSelector()),
    ("random", RandomSelector(), RandomSelector()),
):
    curves = np.array([run(selector, first, seed)[1] for seed in range(3)])
    ax.errorbar(labels, curves.mean(0), curves.std(0, ddof=1), capsize=3, label=name)
    print(f"{name:24s}", *(f"{value:.2f}" for value in curves.mean(0)))
ax.set(xlabel="labels", ylabel="accuracy on the others")
ax.legend()
plt.show()
