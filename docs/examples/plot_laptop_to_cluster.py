"""
From a laptop to a cluster
==========================

A training that takes hours may be interrupted: the battery is empty, or the time
limit of the queue is reached. With `checkpoint_dir`, the same call continues where it
stopped, and the result has the same bits as without the interruption. A job script
needs no logic: it calls `fit`, and you submit it until it is done.
"""

# %%
# The pictures
# ------------
#
# scikit-learn and scikit-image contain some photographs. The images here are 20 random
# patches of 48 x 48 pixels from each of ten photographs, at half the resolution. In
# your work, X holds your photographs: an array, or paths with `image_size=64`.

import tempfile
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from joblib import Parallel, delayed
from skimage import data
from skimage.color import gray2rgb
from sklearn.datasets import load_sample_images
from skorch.callbacks import Callback

from sklabel.embedding import SimCLRTransformer

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
    for _ in range(20):
        i, j = (rng.integers(length - 48) for length in photograph.shape[:2])
        X.append(photograph[i : i + 48 : 2, j : j + 48 : 2])
        truth.append(kind)
X, truth = np.stack(X), np.array(truth)

# %%
# Interrupted, and continued
# --------------------------
#
# The callback simulates a power cut: it stops the training after the second epoch, as
# Ctrl-C does. The second call has the same parameters and the same folder.


class PowerCut(Callback):
    """Stop the training in its third epoch."""

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 3:
            raise KeyboardInterrupt


folder = tempfile.mkdtemp()
settings = {"max_epochs": 5, "batch_size": 64, "random_state": 0}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # `fit` warns that it was interrupted
    stopped = SimCLRTransformer(
        **settings, checkpoint_dir=folder, net_params={"callbacks": [PowerCut()]}
    ).fit(X)
continued = SimCLRTransformer(**settings, checkpoint_dir=folder).fit(X)
whole = SimCLRTransformer(**settings).fit(X)
same = (continued.transform(X) == whole.transform(X)).all()
print(
    "interrupted after",
    len(stopped.net_.history),
    "epochs; the same bits in the end:",
    same,
)

figure, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
before, after = stopped.net_.history, continued.net_.history
for history, label, style in (
    (
        whole.net_.history,
        "never interrupted",
        {"lw": 8, "alpha": 0.2, "color": "black"},
    ),
    (after, "continued", {"marker": "o", "color": "C1"}),
    (before, "before the power cut", {"marker": "o", "color": "C0"}),
):
    ax.plot(history[:, "epoch"], history[:, "train_loss"], label=label, **style)
ax.axvline(len(before) + 0.5, color="crimson", ls="--")
ax.set(xlabel="epoch", ylabel="training loss")
ax.legend()
plt.show()

# %%
# Several seeds side by side
# --------------------------
#
# A cluster runs one job for each seed. On one machine, joblib does this: one process
# for each fit, with one torch thread (``OMP_NUM_THREADS=1``). All of them may share a
# `checkpoint_dir`: finished trainings are read, not repeated. Here `n_jobs=1`, so that
# the page builds anywhere.


def train(seed):
    return SimCLRTransformer(
        max_epochs=1, batch_size=64, random_state=seed, checkpoint_dir=folder
    ).fit(X)


def all_seeds():
    start = time.perf_counter()
    fits = Parallel(n_jobs=1)(delayed(train)(seed) for seed in range(3))
    return fits, time.perf_counter() - start


fits, seconds = all_seeds()
fits, again = all_seeds()
print(f"first call {seconds:.1f} s, submitted again {again:.1f} s")

# %%
# On a GPU, only the time changes: `device="auto"` uses CUDA if it is available. Save
# the model and open it on the laptop:

fits[0].save(f"{folder}/model")
