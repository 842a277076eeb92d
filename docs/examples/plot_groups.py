"""
What is in this folder? Groups of photographs without labels
============================================================

There are 400 patches of photographs and no labels.
:class:`~sklabel.clustering.SCANClusterer` sorts them into groups. A person then names
each group, which takes a minute.
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
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_images
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import Normalizer, StandardScaler, normalize

from sklabel.clustering import SCANClusterer
from sklabel.embedding import SimCLRTransformer
from sklabel.inspection import ClusterDisplay
from sklabel.metrics import many_to_one_accuracy

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

# %%
# Cluster
# -------
#
# First compute the vectors, then find groups in them. Use more clusters than classes:
# you can merge two clusters of one class, but you cannot split a cluster of two
# classes.

embedder = SimCLRTransformer(max_epochs=5, batch_size=64, random_state=0)
Z = StandardScaler().fit_transform(embedder.fit_transform(X))
clusterer = SCANClusterer(
    n_clusters=12,
    n_neighbors=5,
    embedder=FrozenEstimator(Normalizer().fit(Z)),  # Z is an embedding already
    batch_size=64,
    self_label_epochs=0,
    random_state=0,
).fit(Z)

# %%
# Look at them
# ------------
#
# There is one row for each cluster, with the most confident images on the left and the
# least confident ones on the right. You see small and mixed clusters at a glance.

confidence = clusterer.predict_proba(Z).max(axis=1)
ClusterDisplay.from_predictions(X, clusterer.labels_, confidence, n_images=8)
plt.show()

# %%
# Name them
# ---------
#
# Give every cluster the name of most of its images. Without the true classes, you do
# this by eye.

k_means = KMeans(12, random_state=0).fit_predict(normalize(Z))
for name, labels in (("SCAN", clusterer.labels_), ("k-means", k_means)):
    print(f"{name:8s} {many_to_one_accuracy(truth, labels):.0%} right after naming")
