"""
Which threshold, when only 100 rows have a label?
=================================================

FixMatch learns from its own predictions if their probability reaches `threshold`. How
high should the threshold be, and how long should training last? You have only 100
labels to decide. scikit-learn's folds would count -1 as a class;
:class:`~sklabel.model_selection.LabeledKFold` splits the labeled rows and keeps all
unlabeled ones in every training set.
"""

# %%
# Search
# ------

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV

from sklabel.augment import Weak
from sklabel.classification import FixMatchClassifier
from sklabel.datasets import load_digit_images
from sklabel.model_selection import LabeledKFold
from sklabel.selection import StratifiedSelector

X, truth = load_digit_images(return_X_y=True)
labeled = StratifiedSelector(100, random_state=0).fit_select(X, truth)
y = np.full(len(X), -1)
y[labeled] = truth[labeled]

thresholds, lengths = [0.5, 0.8, 0.95], [80, 200]
search = GridSearchCV(
    FixMatchClassifier(
        weak_augment=Weak(flip=0), batch_size=16, unlabeled_ratio=3, random_state=0
    ),
    {"threshold": thresholds, "max_steps": lengths},
    cv=LabeledKFold(3, shuffle=True, random_state=0),
).fit(X, y)

# %%
# Compare with the truth
# ----------------------
#
# In this example, the classes of the unlabeled rows are known. So each candidate can
# also be fitted on all 100 labels and scored on the other rows; the search tries to
# estimate this score. Bars are one standard error over the three folds.

rest = y == -1
results = search.cv_results_
spread = results["std_test_score"] / np.sqrt(search.n_splits_ - 1)

figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True, layout="constrained")
for ax, length in zip(axes, lengths, strict=True):
    mine = results["param_max_steps"] == length
    real = [
        search.estimator.set_params(threshold=t, max_steps=length)
        .fit(X, y)
        .score(X[rest], truth[rest])
        for t in thresholds
    ]
    place = np.arange(len(thresholds))
    ax.errorbar(
        place - 0.05,
        results["mean_test_score"][mine],
        spread[mine],
        fmt="o",
        capsize=3,
        label="guessed from 100 labels",
    )
    ax.plot(place + 0.05, real, "s", label=f"measured on {rest.sum()} rows")
    ax.set_xticks(place, thresholds)
    ax.set(title=f"{length} steps", xlabel="threshold")
axes[0].set_ylabel("accuracy")
axes[0].legend(fontsize=8)
plt.show()

print(search.best_params_)

# %%
# For trainings of one length, the search does not find the measured order of the
# thresholds: 100 labels, 33 of them in each test set, are too few to decide. But they
# are enough to show that the longer training is better.
