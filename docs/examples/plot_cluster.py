"""
What groups are there, before anybody has labeled an image?
===========================================================

There are 1,797 images of handwritten digits and no labels.
:class:`~sklabel.clustering.SCANClusterer` learns an embedding, finds the nearest
neighbors of each image in it, and trains a network that puts neighbors into the same
cluster.
"""

# %%
# Cluster
# -------
#
# The views suit digits: they do not mirror, and they show most of the digit. With fewer
# than 200 images per class and a short training, few rows reach the published
# confidence of 0.99, and self-labeling would learn only from these; with 0.9, more rows
# take part.

import matplotlib.pyplot as plt
import numpy as np

from sklabel.augment import Contrastive
from sklabel.clustering import SCANClusterer
from sklabel.datasets import load_digit_images
from sklabel.embedding import SimCLRTransformer
from sklabel.inspection import ClusterDisplay
from sklabel.metrics import clustering_accuracy

X, truth = load_digit_images(return_X_y=True)
views = Contrastive(flip=0, crop=(0.4, 1.0), rotate=15, jitter=0.2)
clusterer = SCANClusterer(
    n_clusters=10,
    embedder=SimCLRTransformer(augment=views, max_epochs=20),
    augment=views,
    max_epochs=20,
    self_label_epochs=5,
    self_label_threshold=0.9,
    random_state=0,
).fit(X)

# %%
# Look at the clusters
# --------------------
#
# A cluster has a number, not a name. :class:`~sklabel.inspection.ClusterDisplay` draws
# each cluster as a row: the most confident images show what it contains, the least
# confident ones where its border is.

ClusterDisplay.from_estimator(clusterer, X, cmap="gray_r")
plt.show()

# %%
# How good are the clusters? The true digits were not used so far. If clusters and
# digits are matched one to one, they agree for this share of the images:

print(f"accuracy  {clustering_accuracy(truth, clusterer.labels_):.2f}")
sure = clusterer.confidence_ > np.median(clusterer.confidence_)
for name, half in (("surer half", sure), ("other half", ~sure)):
    print(f"{name} {clustering_accuracy(truth[half], clusterer.labels_[half]):.2f}")
