"""
An encoder from elsewhere, twenty labels
========================================

Others have trained a network on their images and published the weights. The network
embeds your images without any training. USL chooses twenty of them, and a linear head
labels the rest.

Usually you download published weights, ``PretrainedTransformer("resnet18")``. This
example needs no network connection: it first makes a file of weights from the digits
0 to 4, without labels. The images to label are the digits 5 to 9, which the network
has never seen.
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

from sklabel.active_learning import ActiveLearningClassifier
from sklabel.augment import Contrastive
from sklabel.datasets import load_digit_images
from sklabel.embedding import PretrainedTransformer, SimCLRTransformer
from sklabel.selection import RandomSelector, USLSelector

images, truth = load_digit_images(return_X_y=True)
images = (
    np.repeat(images[..., None], 3, axis=3).repeat(4, 1).repeat(4, 2)
)  # 32 x 32 x 3
network = torchvision.models.resnet18()
network.fc = torch.nn.Identity()
trained = SimCLRTransformer(
    backbone=network,
    augment=Contrastive(flip=0, crop=(0.4, 1.0), rotate=15, jitter=0.2),
    max_epochs=5,
    random_state=0,
).fit(images[truth < 5])
folder = tempfile.mkdtemp()
weights = os.path.join(folder, "resnet18.pt")
torch.save(trained.encoder_.body.state_dict(), weights)

# %%
# Choose and label: one pipeline
# ------------------------------
#
# The last step asks for twenty labels and sees no others; here they come from y.
# ``cache_dir`` keeps the vectors, so each image is embedded only once.

X, y = images[truth >= 5], truth[truth >= 5]
embedder = PretrainedTransformer(
    "resnet18", weights=weights, input_size=32, cache_dir=folder, random_state=0
)


def accuracy_of_the_rest(selector, seed):
    hybrid = make_pipeline(
        embedder,
        StandardScaler(),
        ActiveLearningClassifier(
            LogisticRegression(max_iter=1000),
            initial_selector=selector(random_state=seed),
            n_samples=20,
            n_rounds=0,
        ),
    ).fit(X, y)
    rest = hybrid[-1].labels_ == -1
    return hybrid.score(X[rest], y[rest])


found = {
    name: np.array([accuracy_of_the_rest(selector, seed) for seed in range(5)])
    for name, selector in (("random", RandomSelector), ("USL", USLSelector))
}

# %%
# This is the accuracy on the 876 images without a label, mean and standard deviation of
# five seeds:

for name, values in found.items():
    print(f"{name:8s} {values.mean():.3f} +- {values.std(ddof=1):.3f}")

figure, axes = plt.subplots(figsize=(6, 2), layout="constrained")
for i, values in enumerate(found.values()):
    axes.scatter(values, np.full(len(values), i))
axes.set_yticks(range(2), list(found))
axes.set_ylim(1.5, -0.5)
axes.set_xlabel("accuracy on the other images, 20 labels, five seeds")
plt.show()

# %%
# ``FixMatchClassifier(backbone=embedder)`` starts from this network and trains it
# further, also on the unlabeled images; it needs a few hundred steps.
