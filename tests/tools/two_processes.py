"""One process of a group: fits every trained estimator, and writes what it learned."""

# python tests/tools/two_processes.py FOLDER, alone or with the environment of torchrun.
# Nothing here knows of processes: it is the script of a user. What is learned goes to
# FOLDER/SIZE-RANK.pt.

import os
import sys
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from torch import nn

from sklabel.classification import (
    CCLClassifier,
    FixMatchClassifier,
    MixMatchClassifier,
    NoisyStudentClassifier,
    ReMixMatchClassifier,
    SimCLRv2Classifier,
    SupervisedClassifier,
)
from sklabel.clustering import (
    DCECClusterer,
    DeepClusterer,
    IICClusterer,
    IICSegmenter,
    SCANClusterer,
    TURTLEClusterer,
)
from sklabel.embedding import (
    AutoencoderTransformer,
    BYOLTransformer,
    CLDTransformer,
    CLIPTransformer,
    MoCoTransformer,
    SimCLRTransformer,
    SwAVTransformer,
)
from sklabel.selection import (
    LADASelector,
    LearningLossSelector,
    SRAALSelector,
    TODSelector,
    USLTSelector,
    VAALSelector,
)

# Views and codes are drawn by each process for its own rows: without noise two
# processes see what one sees.
torch.randn_like = lambda x: 0 * x
torch.manual_seed(1)  # of the backbones
SHARED = {
    "optimizer": "sgd",
    "schedule": "constant",
    "lr": 0.01,
    "batch_size": 16,
    "max_epochs": 2,
    "random_state": 0,
    "device": "cpu",
    "precision": "float32",
    "backbone": nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh()),
}
STILL = {"augment": None}
EMBEDDER = SimCLRTransformer(**SHARED, **STILL)
DRAWS = {"max_epochs": 1}  # numbers in the steps: then the next order is another one


def estimators(folder):
    """Return {name: (estimator, X, y)}."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(64, 6)).astype(np.float32)
    X[:32] += 2
    y = np.where(np.arange(64) % 2 == 0, np.arange(64) // 32, -1)
    images = rng.random((32, 8, 8, 1)).astype(np.float32)
    texts = [f"the {'first' if i < 32 else 'second'} {i % 8}" for i in range(64)]
    given = {**SHARED, **STILL}
    codes = AutoencoderTransformer(3, **given, hidden_sizes=(8,))
    picks = {"n_samples": 4, **given}
    kept = {"checkpoint_dir": str(folder / f"runs-{os.environ.get('WORLD_SIZE', 1)}")}
    convolution = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
    )
    views = {"weak_augment": None, "strong_augment": None}
    named = {
        "SimCLR": (SimCLRTransformer(**given, **kept), X, None),
        "MoCo": (MoCoTransformer(**{**given, **DRAWS}, bn_splits=1), X, None),
        "BYOL": (BYOLTransformer(**given), X, None),
        "SwAV": (
            SwAVTransformer(
                **given, n_prototypes=6, n_small_crops=0, queue_size=16, queue_start=0
            ),
            X,
            None,
        ),
        "CLD": (CLDTransformer(n_groups=4, **given), X, None),
        "Autoencoder": (codes, X, None),
        "CLIP": (
            CLIPTransformer(
                8,
                **{**given, **DRAWS},
                text_width=8,
                text_layers=1,
                text_heads=1,
                same_captions="positives",
            ),
            X,
            texts,
        ),
        "SCAN": (
            SCANClusterer(
                3,
                n_neighbors=4,
                self_label_epochs=1,
                self_label_batch_size=16,
                self_label_threshold=0.2,
                embedder=EMBEDDER,
                **{**given, **DRAWS},
            ),
            X,
            None,
        ),
        "IIC": (IICClusterer(3, n_repeats=1, n_sub_heads=2, **given), X, None),
        "IIC of pixels": (
            IICSegmenter(
                2, **{**given, "backbone": "auto"}, max_steps=2, flip=0, half_side=1
            ),
            images,
            None,
        ),
        "DeepCluster": (
            DeepClusterer(3, n_training_clusters=6, **{**given, **DRAWS}),
            X,
            None,
        ),
        "DCEC": (DCECClusterer(3, embedder=codes, **SHARED), X, None),
        "TURTLE": (
            TURTLEClusterer(3, n_steps=20, random_state=0, device="cpu"),
            X,
            None,
        ),
        "supervised": (SupervisedClassifier(**given), X, y),
        "supervised, images": (
            SupervisedClassifier(**{**given, "backbone": convolution}),
            images,
            y[16:48],
        ),
        "FixMatch": (
            FixMatchClassifier(
                **SHARED,
                **views,
                unlabeled_ratio=1,
                threshold="free",
                fairness_weight=0.01,
                distribution_alignment=True,
                **kept,
            ),
            X,
            y,
        ),
        "MixMatch": (
            MixMatchClassifier(
                **{**SHARED, **DRAWS}, weak_augment=None, alpha=0, unlabeled_weight=1
            ),
            X,
            y,
        ),
        "ReMixMatch": (
            ReMixMatchClassifier(**{**SHARED, **DRAWS}, **views, alpha=0),
            X,
            y,
        ),
        "Noisy Student": (
            NoisyStudentClassifier(
                **SHARED, **views, n_rounds=1, dropout=0, stochastic_depth=0
            ),
            X,
            y,
        ),
        "SimCLRv2": (SimCLRv2Classifier(EMBEDDER, distill_epochs=2, **given), X, y),
        "CCL": (CCLClassifier(embedder=codes, **SHARED), X, y),
        "USL-T": (USLTSelector(embedder=EMBEDDER, **{**picks, "lr": 1e-4}), X, None),
        "learning loss": (LearningLossSelector(**picks), X, y),
        "LADA": (LADASelector(**picks), X, y),
        "TOD": (TODSelector(**picks), X, y),
        "VAAL": (VAALSelector(n_components=3, n_samples=4, **SHARED), X, y),
        "SRAAL": (SRAALSelector(n_components=3, n_samples=4, **SHARED), X, y),
    }
    return named


def learned(estimator):
    """Return what a fitted estimator has learned, on the CPU."""
    found = {"history": [epoch.get("train_loss") for epoch in estimator.net_.history]}
    state = estimator.net_.module_.state_dict()
    found["weights"] = {k: v for k, v in state.items() if hasattr(v, "shape")}
    for name in ("selected_indices_", "labels_", "transduction_"):
        if hasattr(estimator, name):
            found[name] = torch.as_tensor(np.asarray(getattr(estimator, name)))
    return found


def main(folder, *names):
    found = {}
    for name, (estimator, X, y) in estimators(folder).items():
        if names and name not in names:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[name] = learned(estimator.fit(X, y))
    size, rank = os.environ.get("WORLD_SIZE", 1), os.environ.get("RANK", 0)
    torch.save(found, folder / f"{size}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
