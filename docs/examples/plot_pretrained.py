"""
An encoder from elsewhere, twenty labels
========================================

Somebody has trained a network on other images, and gives its weights away. It embeds yours
without any training; USL chooses twenty of them; a linear head, or FixMatch with the network
as its start, labels the rest.

Published weights would be downloaded here, ``PretrainedTransformer("resnet18")``. To need no
network connection, the file of weights is made first: from the digits 0 to 4, without labels.
The images to label are the digits 5 to 9, which it has never seen.
"""

# %%
# A file of weights
# -----------------

import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch
import torchvision
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklabel.augment import Contrastive, Weak
from sklabel.classification import FixMatchClassifier
from sklabel.datasets import load_digit_images
from sklabel.embedding import PretrainedTransformer, SimCLRTransformer
from sklabel.selection import RandomSelector, USLSelector

images, truth = load_digit_images(return_X_y=True)
images = np.repeat(images[..., None], 3, axis=3).repeat(4, 1).repeat(4, 2)  # 32 x 32 x 3
network = torchvision.models.resnet18()
network.fc = torch.nn.Identity()
trained = SimCLRTransformer(
    backbone=network,
    augment=Contrastive(flip=0, crop=(0.4, 1.0), rotate=15, jitter=0.2),
    max_epochs=8,
    random_state=0,
).fit(images[truth < 5])
folder = tempfile.mkdtemp()
weights = os.path.join(folder, "resnet18.pt")
torch.save(trained.encoder_.body.state_dict(), weights)

# %%
# Choose and label
# ----------------
#
# ``cache_dir`` keeps the vectors: each image is embedded once, whatever is fitted on them.

X, y = images[truth >= 5], truth[truth >= 5]
embedder = PretrainedTransformer(
    "resnet18", weights=weights, input_size=32, cache_dir=folder, random_state=0
).fit(X)


def accuracy_of_the_rest(selector, seed):
    chosen = make_pipeline(embedder, StandardScaler(), selector(20, random_state=seed))
    rows = chosen.fit(X)[-1].sample_indices_
    rest = np.delete(np.arange(len(X)), rows)
    head = make_pipeline(embedder, StandardScaler(), LogisticRegression(max_iter=1000))
    linear = head.fit(X[rows], y[rows]).score(X[rest], y[rest])
    partly = np.where(np.isin(np.arange(len(X)), rows), y, -1)
    fixmatch = FixMatchClassifier(
        backbone=embedder,
        weak_augment=Weak(flip=0),
        max_steps=50,
        batch_size=8,
        random_state=seed,
    ).fit(X, partly)
    return linear, np.mean(fixmatch.transduction_[rest] == y[rest])


selectors = {"random": RandomSelector, "USL": USLSelector}
found = {
    name: np.array([accuracy_of_the_rest(selector, seed) for seed in range(3)])
    for name, selector in selectors.items()
}

# %%
# Accuracy on the 876 images without a label, mean and standard deviation of three seeds:

print(f"{'20 labels':10s} {'linear head':>17s} {'FixMatch':>17s}")
for name, values in found.items():
    mean, std = values.mean(0), values.std(0, ddof=1)
    cells = (f"{m:9.3f} +- {s:.3f}" for m, s in zip(mean, std, strict=True))
    print(f"{name:10s}", *cells)

figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
for i, (name, values) in enumerate(found.items()):
    places = np.arange(2) + 0.15 * (2 * i - 1)
    axes.errorbar(values.mean(0), places, xerr=values.std(0, ddof=1), fmt="o", label=name)
axes.set_yticks(range(2), ["linear head", "FixMatch"])
axes.invert_yaxis()
axes.set_xlabel("accuracy on the other images, 20 labels, three seeds")
axes.legend()
plt.show()
