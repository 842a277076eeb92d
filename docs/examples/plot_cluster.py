"""
What groups are there, before anybody has labeled an image?
===========================================================

1,797 images of handwritten digits, not one label.
:class:`~sklabel.clustering.SCANClusterer` learns an embedding, finds the nearest
neighbors of each image in it, and trains a network that puts neighbors into one
cluster.
"""

# %%
# Cluster
# -------
#
# The views fit digits: no mirror images, most of the digit in view. With fewer than 200
# images of a kind and a short training, few rows reach the published confidence of
# 0.99, and self-labeling would learn from these alone; 0.9 lets more of them take part.

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
# A cluster has a number, not a name.
# :class:`~sklabel.inspection.ClusterDisplay` draws each as a row: its most confident
# images tell what it is about, its least confident ones where its border runs.

ClusterDisplay.from_estimator(clusterer, X, cmap="gray_r")
plt.show()

# %%
# How good are they? The true digits were not used so far. Matched one to one, cluster
# and digit agree for this share of the images:

print(f"accuracy  {clustering_accuracy(truth, clusterer.labels_):.2f}")
sure = clusterer.confidence_ > np.median(clusterer.confidence_)
for name, half in (("surer half", sure), ("other half", ~sure)):
    print(f"{name} {clustering_accuracy(truth[half], clusterer.labels_[half]):.2f}")
