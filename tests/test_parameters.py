"""What each parameter of a training does, read off a fit of a few steps."""

# A row of `OWN` names a parameter, a value, what to look at and what must be seen
# there; with the default something else is seen. Parameters whose effect is proven
# beside their method (by a loss that is computed twice, or by a rule of its own) have
# no row.

import warnings

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from sklabel import classification, clustering, embedding, selection
from sklabel.embedding import AutoencoderTransformer, SimCLRTransformer

N = 32
X = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
X[::2] += 2
Y = np.where(np.arange(N) < 8, np.arange(N) % 2, -1)
TEXTS = [f"row {i}" for i in range(N)]
IMAGES = np.random.default_rng(0).random((N, 6, 6)).astype(np.float32)
torch.manual_seed(0)
BACKBONE, PIXELWISE = nn.Linear(6, 5), nn.Conv2d(1, 3, 1)
CODES = AutoencoderTransformer(2, hidden_sizes=(9,), max_steps=2)
PROJECTED = SimCLRTransformer(max_steps=2, projection_layers=3)
CODED = {"backbone": "auto", "embedder": CODES}

steps = []  # of the fits of the current test


class Watch(Callback):
    """Writes down what is set in every step, and what ``look`` sees in the module."""

    look = None

    def on_batch_end(self, net, batch=None, **figures):
        x, y = batch
        group = net.optimizer_.param_groups[0]
        steps.append(
            {
                "rows": len(x[0] if isinstance(x, tuple) else x),
                "labeled": int((y >= 0).sum()),
                "others": (-1 - y[y < 0]).tolist(),  # rows that count as unlabeled
                "lr": group["lr"],
                "weight_decay": group["weight_decay"],
                "optimizer": type(net.optimizer_).__name__,
                "seen": Watch.look(net.module_) if Watch.look else None,
                **figures,
            }
        )


def fit(cls, x=X, y=None, look=None, **parameters):
    """Return an estimator after a few steps; ``steps`` holds those."""
    given = {
        "backbone": BACKBONE,
        "max_steps": 1,
        "batch_size": 8,
        "lr": 1e-2,
        "warmup_epochs": 0,
        "schedule": "constant",
        "random_state": 0,
        "net_params": {"callbacks": [Watch]},
        **parameters,
    }
    steps.clear()
    Watch.look = look
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # little is learned in one step
        return cls(**given).fit(x, y)


def widths(module):
    return [m.out_features for m in module.modules() if isinstance(m, nn.Linear)]


# -- the parameters of every training

TRAINED = {
    embedding.SimCLRTransformer: (X, None, {}),
    embedding.MoCoTransformer: (X, None, {}),
    embedding.BYOLTransformer: (X, None, {}),
    embedding.SwAVTransformer: (X, None, {"n_prototypes": 6}),
    embedding.CLDTransformer: (X, None, {"n_groups": 4}),
    embedding.AutoencoderTransformer: (X, None, {}),
    embedding.CLIPTransformer: (X, TEXTS, {"text_width": 8, "text_heads": 2}),
    clustering.SCANClusterer: (X, None, {"n_clusters": 2, "self_label_epochs": 0}),
    clustering.DCECClusterer: (X, None, {**CODED, "n_clusters": 2, "tol": 0.0}),
    clustering.DeepClusterer: (X, None, {"n_clusters": 2, "sobel": False}),
    clustering.IICClusterer: (
        X,
        None,
        {"n_clusters": 2, "sobel": False, "n_restarts": 0},
    ),
    clustering.IICSegmenter: (
        IMAGES,
        None,
        {"n_clusters": 2, "half_side": 1, "backbone": PIXELWISE},
    ),
    classification.CCLClassifier: (X, Y, CODED),
    classification.SimCLRv2Classifier: (
        X,
        Y,
        {"backbone": "auto", "embedder": PROJECTED, "distill_epochs": 0},
    ),
    classification.SupervisedClassifier: (X, Y, {}),
    classification.FixMatchClassifier: (X, Y, {}),
    classification.MixMatchClassifier: (X, Y, {}),
    classification.ReMixMatchClassifier: (X, Y, {"n_augmentations": 2}),
    classification.NoisyStudentClassifier: (X, Y, {"n_rounds": 0}),
    selection.LearningLossSelector: (X, Y, {"n_samples": 2}),
    selection.SRAALSelector: (X, Y, {"n_samples": 2}),
    selection.TODSelector: (X, Y, {"n_samples": 2}),
    selection.USLTSelector: (X, None, {"n_samples": 2}),
    selection.VAALSelector: (X, Y, {"n_samples": 2}),
}
# train two networks in turn, or keys in the place of a network: see their own tests
OTHERS = {selection.LADASelector, classification.CLIPClassifier}
every_training = pytest.mark.parametrize("cls", TRAINED, ids=lambda c: c.__name__)


def test_every_training_is_looked_at():
    folders = embedding, clustering, classification, selection
    found = {getattr(folder, name) for folder in folders for name in folder.__all__}
    assert {cls for cls in found if hasattr(cls, "_stage")} == {*TRAINED} | OTHERS


@every_training
def test_steps_batches_and_the_optimizer_are_those_asked_for(cls):
    x, y, settings = TRAINED[cls]
    fit(cls, x, y, **settings, max_steps=3, batch_size=4)
    assert len(steps) == 3
    # where unlabeled rows come on top, it is the labeled ones that are counted
    assert all(4 in (step["rows"], step["labeled"]) for step in steps)
    fit(cls, x, y, **settings, max_steps=None, max_epochs=1)
    one = len(steps)
    fit(cls, x, y, **settings, max_steps=None, max_epochs=3)
    assert len(steps) == 3 * one
    for name, found in (("sgd", "SGD"), ("adam", "Adam"), ("lars", "LARS")):
        fit(cls, x, y, **settings, optimizer=name, lr=0.03, weight_decay=0.2)
        assert steps[0]["optimizer"] == found
        assert (steps[0]["lr"], steps[0]["weight_decay"]) == (0.03, 0.2)


@every_training
def test_the_rate_takes_its_course(cls):
    x, y, settings = TRAINED[cls]

    def rates(**parameters):
        fit(cls, x, y, **settings, lr=0.02, **parameters)
        return np.array([step["lr"] for step in steps])

    assert (rates(max_steps=8) == 0.02).all()
    found = rates(max_steps=8, schedule="cosine")
    assert found[0] == 0.02 and (np.diff(found) < 0).all() and found[-1] < 0.002
    fit(cls, x, y, **settings, max_steps=None, max_epochs=1)
    epoch = len(steps)
    found = rates(max_steps=None, max_epochs=4, warmup_epochs=2)
    rising = 0.02 * np.arange(2 * epoch) / (2 * epoch)
    np.testing.assert_allclose(found[: 2 * epoch], rising)
    assert (found[2 * epoch :] == 0.02).all()


@every_training
def test_another_seed_is_another_training(cls):
    x, y, settings = TRAINED[cls]

    def losses(seed):
        fit(cls, x, y, **settings, max_steps=2, random_state=seed)
        return [float(step["loss"]) for step in steps]

    assert losses(0) == losses(0) != losses(1)


# -- the loss is the sum of its parts, times what they weigh

PARTS = {
    "CLD": (
        embedding.CLDTransformer,
        {"group_weight": 0.3, "n_groups": 4},
        {"instance_loss": 1, "group_loss": 0.3},
    ),
    "DCEC": (
        clustering.DCECClusterer,
        {
            "backbone": "auto",
            "embedder": CODES,
            "n_clusters": 2,
            "cluster_weight": 0.3,
            "reconstruction_weight": 2.0,
        },
        {"cluster_loss": 0.3, "reconstruction_loss": 2.0},
    ),
    "CCL": (
        classification.CCLClassifier,
        {
            "backbone": "auto",
            "embedder": CODES,
            "contrastive_weight": 0.7,
            "cluster_weight": 0.3,
            "reconstruction_weight": 2.0,
        },
        {"contrastive_loss": 0.7, "cluster_loss": 0.3, "reconstruction_loss": 2.0},
    ),
    "MixMatch": (
        classification.MixMatchClassifier,
        {"unlabeled_weight": 30.0, "ramp_up": 0},
        {"labeled_loss": 1, "unlabeled_loss": 30.0},
    ),
    "ReMixMatch": (
        classification.ReMixMatchClassifier,
        {"unlabeled_weight": 3.0, "anchor_weight": 0.7, "ramp_up": 0},
        {"labeled_loss": 1, "unlabeled_loss": 3.0, "anchor_loss": 0.7},
    ),
    "ReMixMatch of images": (
        classification.ReMixMatchClassifier,
        {
            "unlabeled_weight": 3.0,
            "anchor_weight": 0.7,
            "rotation_weight": 0.3,
            "ramp_up": 0,
            "image_shape": (2, 3),
            "backbone": "auto",
        },
        {
            "labeled_loss": 1,
            "unlabeled_loss": 3.0,
            "anchor_loss": 0.7,
            "rotation_loss": 0.3,
        },
    ),
    "MixMatch, at the foot of the ramp": (
        classification.MixMatchClassifier,
        {"unlabeled_weight": 30.0, "ramp_up": 0.5},
        {"labeled_loss": 1, "unlabeled_loss": 0},
    ),
    "SimCLRv2": (
        classification.SimCLRv2Classifier,
        {
            "backbone": "auto",
            "embedder": PROJECTED,
            "alpha": 0.4,
            "distill_epochs": 1,
        },
        {"labeled_loss": 0.6, "distillation_loss": 0.4},
    ),
    "learning loss": (
        selection.LearningLossSelector,
        {"n_samples": 2, "loss_weight": 0.3},
        {"class_loss": 1, "ranking_loss": 0.3},
    ),
    "TOD": (
        selection.TODSelector,
        {"n_samples": 2, "consistency_weight": 0.3},
        {"class_loss": 1, "consistency": 0.3},
    ),
    "USL-T": (
        selection.USLTSelector,
        {"n_samples": 2, "local_weight": 0.3},
        {"global_loss": 1, "local_loss": 0.3},
    ),
    "VAAL": (
        selection.VAALSelector,
        {"n_samples": 2, "kl_weight": 0.3, "adversary_weight": 0.7},
        {"reconstruction": 2, "kl": 0.3, "adversary": 0.7, "discriminator": 1},
    ),
}
LABELED = ("classification", "selection")


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_the_loss_weigh_what_was_said(name):
    cls, parameters, weights = PARTS[name]
    y = Y if any(folder in cls.__module__ for folder in LABELED) else None
    fit(cls, X, y, **parameters)
    step = steps[-1]
    total = sum(weight * float(step[part]) for part, weight in weights.items())
    assert float(step["loss"]) == pytest.approx(total, rel=1e-5)
    assert all(float(step[part]) != 0 for part in weights)


# -- the parameters of one method


def of_module(look):
    """Look at the module while it is trained, in the last step."""
    return ("module", look)


def of_fit(look):
    """Look at what ``fit`` returned."""
    return ("fit", look)


def step(key):
    """Look at the last step itself."""
    return ("step", lambda last: last[key])


project = of_module(lambda m: widths(m.project))
convolutions = of_module(
    lambda m: [c.out_channels for c in m.modules() if type(c) is nn.Conv2d]
)


def overclustered(steps):
    return ["overcluster_loss" in step for step in steps]


def all_others(steps):
    return [row for step in steps for row in step["others"]]


def share_of_cosine(neighbors):
    """Return how many of some neighbors are those of standardized rows by cosine."""
    z = (X - X.mean(0)) / X.std(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    nearest = np.argsort(-z @ z.T, axis=1)[:, : neighbors.shape[1]]
    return np.mean([np.isin(a, b).mean() for a, b in zip(neighbors, nearest)])


clusters = {"n_clusters": 2}
coded = {**CODED, "max_steps": 12}
distilled = {"backbone": "auto", "embedder": PROJECTED, "distill_epochs": 1}


def of_steps(look):
    """Look at all steps."""
    return ("steps", look)


def of_targets(look):
    """Look at what a teacher has said, if there was one."""
    return of_module(lambda m: None if m.targets is None else look(m.targets))


n_rounds = of_fit(lambda e: len(e.net_.history))

# fmt: off
OWN = [
    (embedding.SimCLRTransformer, {}, [
        ("temperature", 0.07, of_module(lambda m: m.temperature), 0.07),
        ("projection_size", 7, project, [5, 7]),
        ("projection_hidden", 9, project, [9, 128]),
        ("projection_layers", 3, project, [5, 5, 128]),
        ("output", "projection", of_fit(lambda e: e.transform(X).shape[1]), 128),
        ("lr_scaling", "linear", step("lr"), 1e-2 * 8 / 256),
        ("lr_scaling", "sqrt", step("lr"), 1e-2 * 8**0.5),
    ]),
    (embedding.MoCoTransformer, {}, [
        ("temperature", 0.5, of_module(lambda m: m.temperature), 0.5),
        ("projection_size", 7, project, [5, 7]),
        ("projection_hidden", 9, project, [9, 128]),
        ("queue_size", 16, of_module(lambda m: len(m.queue.rows)), 16),
    ]),
    (embedding.BYOLTransformer, {}, [
        ("projection_size", 7, of_module(lambda m: widths(m.project)[-1]), 7),
        ("projection_hidden", 9, of_module(lambda m: widths(m.predict)[0]), 9),
    ]),
    (embedding.SwAVTransformer, {}, [
        ("n_prototypes", 10, of_module(lambda m: len(m.prototypes.weight)), 10),
        ("temperature", 0.5, of_module(lambda m: m.temperature), 0.5),
        ("epsilon", 0.5, of_module(lambda m: m.epsilon), 0.5),
        ("n_iterations", 1, of_module(lambda m: m.n_iterations), 1),
        ("projection_size", 7, of_module(lambda m: widths(m.project)[-1]), 7),
        ("projection_hidden", 9, of_module(lambda m: widths(m.project)[0]), 9),
    ]),
    (embedding.CLDTransformer, {"n_groups": 4}, [
        ("projection_size", 7, of_module(lambda m: widths(m.group)), [7]),
        ("queue_size", 16, of_module(lambda m: len(m.queue.rows)), 16),
        ("ema_decay", 0.5, of_module(lambda m: m.decay), 0.5),
    ]),
    (embedding.AutoencoderTransformer, {"backbone": "auto", "image_shape": (2, 3)}, [
        ("filters", (4, 9), convolutions, [4, 9]),
    ]),
    (embedding.AutoencoderTransformer, {"backbone": "auto"}, [
        ("n_components", 3, of_fit(lambda e: e.transform(X).shape[1]), 3),
        ("hidden_sizes", (9, 4), of_module(lambda m: widths(m.backbone)), [9, 4, 128]),
    ]),
    (embedding.CLIPTransformer, {"text_width": 8, "text_heads": 2, "lr": 1e-9}, [
        ("temperature", 0.5, of_fit(lambda e: round(e.logit_scale_, 4)), 2.0),
        ("projection_size", 7, of_fit(lambda e: e.transform(X).shape[1]), 7),
        ("text_width", 12, of_module(lambda m: m.text.embed.embedding_dim), 12),
        ("text_layers", 2, of_module(lambda m: len(m.text.blocks)), 2),
        ("text_heads", 4, of_module(lambda m: m.text.blocks[0].n_heads), 4),
    ]),
    (clustering.SCANClusterer, {**clusters, "self_label_epochs": 1}, [
        ("n_neighbors", 5, of_fit(lambda e: e.neighbors_.shape[1]), 6),
        ("self_label_epochs", 3, n_rounds, 4),
        ("self_label_batch_size", 16, step("rows"), 16),
        ("self_label_threshold", 0.3, of_fit(lambda e: e.net_.module_.threshold), 0.3),
        ("metric", "cosine", of_fit(lambda e: share_of_cosine(e.neighbors_)), 1.0),
        ("balance_clusters", False, of_fit(lambda e: e.net_.module_.balance), False),
    ]),
    (clustering.SCANClusterer, {**clusters, "self_label_epochs": 0}, [
        ("n_heads", 3, of_module(lambda m: m.heads.n_heads), 3),
        ("entropy_weight", 1.0, of_module(lambda m: m.entropy_weight), 1.0),
    ]),
    (clustering.IICClusterer, {**clusters, "sobel": False}, [
        ("n_overclusters", 7, of_module(lambda m: m.overcluster.n_classes), 7),
        ("n_sub_heads", 2, of_module(lambda m: m.heads.n_heads), 2),
        ("marginal_weight", 2.0, of_module(lambda m: m.marginal_weight), 2.0),
        ("n_clusters", 3, of_module(lambda m: m.heads.n_classes), 3),
    ]),
    (clustering.IICSegmenter, {**clusters, "backbone": "auto", "half_side": 1,
                               "image_shape": (2, 3), "max_steps": None,
                               "max_epochs": 1}, [
        ("n_overclusters", 7, of_module(lambda m: m.overcluster.out_channels), 7),
        ("width", 0.5, convolutions, [32, 64, 128, 10, 2]),
        # 4 steps a pass
        ("overcluster_epochs", 0, of_steps(lambda s: overclustered(s)), [False] * 4),
        ("cluster_epochs", 2, of_steps(lambda s: overclustered(s)),
         [True] * 4 + [False] * 8),
    ]),
    (clustering.DCECClusterer, {**coded, **clusters, "update_interval": 4,
                                "tol": 0.0}, [
        ("alpha", 2.0, of_module(lambda m: m.alpha), 2.0),
        ("n_clusters", 3, of_module(lambda m: len(m.centers)), 3),
    ]),
    (clustering.DeepClusterer, {**clusters, "sobel": False, "max_epochs": 4,
                                "max_steps": None}, [
        ("n_training_clusters", 6, of_module(lambda m: m.head.out_features), 6),
        ("n_components", 3, of_module(lambda m: m.n_components), 3),
        ("n_kmeans_iter", 1, of_module(lambda m: m.n_kmeans_iter), 1),
        # between reassignments nothing changes its cluster
        ("reassign_epochs", 3, of_fit(lambda e: e.net_.history[2, "nmi"]), 1.0),
        ("n_clusters", 3, of_fit(lambda e: e.n_clusters_), 3),
    ]),
    (classification.CCLClassifier, {**coded, "update_interval": 4}, [
        ("alpha", 2.0, of_module(lambda m: m.alpha), 2.0),
        ("temperature", 0.3, of_module(lambda m: m.temperature), 0.3),
        ("contrast", "centers", of_module(lambda m: m.contrast), "centers"),
        ("unlabeled_ratio", 2, step("rows"), 8 + 16),
        ("update_interval", 2, n_rounds, 6),
    ]),
    (classification.SupervisedClassifier, {}, [
        ("train_backbone", False,
         of_module(lambda m: any(p.requires_grad for p in m.backbone.parameters())),
         False),
    ]),
    (classification.FixMatchClassifier, {"max_steps": 4}, [
        ("unlabeled_ratio", 2, step("rows"), 8 + 16),
        ("ema_decay", 0.1, of_module(lambda m: m.decay), 0.1),
        ("include_labeled", False, of_steps(lambda s: min(all_others(s))), 8),
        ("threshold", "soft",
         of_module(lambda m: type(m.thresholds).__name__), "SoftWeights"),
        ("threshold", "free",
         of_module(lambda m: type(m.thresholds).__name__), "FreeThresholds"),
        ("class_thresholds", True,
         of_module(lambda m: torch.as_tensor(m.thresholds()).ndim), 1),
        ("distribution_alignment", "debiased",
         of_module(lambda m: type(m.align).__name__), "Debiasing"),
        ("distribution_alignment", "predictions",
         of_module(lambda m: type(m.align).__name__), "PredictedAlignment"),
        ("relative_threshold", True,
         of_module(lambda m: type(m.thresholds).__name__), "RelativeThreshold"),
        ("teacher", "average", of_module(lambda m: m.average_buffers), True),
        ("energy_threshold", -2.0,
         of_module(lambda m: getattr(m.inliers, "threshold", None)), -2.0),
        ("logit_interpolation", True, of_module(lambda m: m.interpolated), True),
        ("distribution_alignment", True,
         of_module(lambda m: hasattr(m.align, "prior")), True),
    ]),
    (classification.FixMatchClassifier, {"max_steps": 4, "threshold": "free"}, [
        ("threshold_decay", 0.3, of_module(lambda m: m.thresholds.decay), 0.3),
        ("fairness_weight", 0.1, of_module(lambda m: m.fairness_weight), 0.1),
    ]),
    (classification.FixMatchClassifier,
     {"max_steps": 4, "distribution_alignment": "debiased"}, [
        ("debias_strength", 1.0, of_module(lambda m: m.align.strength), 1.0),
        ("debias_decay", 0.3, of_module(lambda m: m.align.decay), 0.3),
    ]),
    (classification.FixMatchClassifier, {"max_steps": 4, "threshold": "soft"}, [
        ("soft_sharpness", 1.0, of_module(lambda m: m.thresholds.sharpness), 1.0),
    ]),
    (classification.MixMatchClassifier, {"max_steps": 4}, [
        ("unlabeled_ratio", 2, step("rows"), 8 + 16),
        ("include_labeled", True, of_steps(lambda s: min(all_others(s)) < 8), True),
        ("n_augmentations", 3, of_module(lambda m: m.n_augmentations), 3),
        ("temperature", 0.1, of_module(lambda m: m.temperature), 0.1),
        ("alpha", 0.2, of_module(lambda m: m.alpha), 0.2),
        ("ema_decay", 0.1, of_module(lambda m: m.decay), 0.1),
    ]),
    (classification.ReMixMatchClassifier, {"max_steps": 4}, [
        ("unlabeled_ratio", 2, step("rows"), 8 + 16),
        ("include_labeled", True, of_steps(lambda s: min(all_others(s)) < 8), True),
        ("n_augmentations", 3, of_module(lambda m: m.n_augmentations), 3),
        ("temperature", 0.1, of_module(lambda m: m.temperature), 0.1),
        ("alpha", 0.2, of_module(lambda m: m.alpha), 0.2),
        ("ema_decay", 0.1, of_module(lambda m: m.decay), 0.1),
    ]),
    (classification.NoisyStudentClassifier, {"n_rounds": 1, "threshold": 0.0}, [
        ("n_rounds", 2, of_fit(lambda e: e.n_rounds_), 2),
        ("unlabeled_ratio", 2, step("rows"), 8 + 16),
        ("dropout", 0.4, of_module(lambda m: m.online[1].p), 0.4),
        ("label_smoothing", 0.3, of_module(lambda m: m.label_smoothing), 0.3),
        ("ema_decay", 0.1, of_module(lambda m: m.decay), 0.1),
        ("hard_labels", True, of_targets(lambda t: t.is_floating_point()), False),
        ("temperature", 1e4, of_targets(lambda t: round(float(t.max()), 3)), 0.5),
    ]),
    (classification.SimCLRv2Classifier, distilled, [
        ("temperature", 3.0, of_module(lambda m: getattr(m, "temperature", 0)), 3.0),
        ("distill_epochs", 3,
         of_fit(lambda e: e.net_.history[:, "stage"].count("distill")), 3),
        ("distill_batch_size", 16, step("rows"), 16),
        ("distill_lr", 0.05, step("lr"), 0.05),
        ("distill_weight_decay", 5.0, step("weight_decay"), 5.0),
    ]),
    (selection.LearningLossSelector, {"n_samples": 2}, [
        ("width", 7, of_module(lambda m: m.loss_head.last.in_features), 7),
        ("detach_after", 0.5, of_module(lambda m: m.n_attached), 0.5),
    ]),
    (selection.TODSelector, {"n_samples": 2}, [
        ("unlabeled_ratio", 2, step("rows"), 8 + 16),
        ("ema_decay", 0.1, of_module(lambda m: m.ema_decay), 0.1),
    ]),
    (selection.USLTSelector, {"n_samples": 2}, [
        ("n_clusters", 9, of_module(lambda m: m.heads.n_classes), 9),
        ("n_heads", 1, of_module(lambda m: m.heads.n_heads), 1),
        ("n_neighbors", 5, of_fit(lambda e: e.neighbors_.shape[1]), 6),
        ("ema_decay", 0.9, of_module(lambda m: m.ema_decay), 0.9),
        ("cluster_weights", None, of_module(lambda m: m.cluster_weights), None),
        ("mean_over", "batch", of_module(lambda m: m.mean_over), "batch"),
        ("reassign_interval", 3, of_module(lambda m: m.reassign_interval), 3),
        ("min_size", 0.7, of_module(lambda m: m.min_size), 0.7),
        ("max_size", 1.7, of_module(lambda m: m.max_size), 1.7),
        ("count_decay", 0.7, of_module(lambda m: m.count_decay), 0.7),
        ("head", "linear", of_module(lambda m: type(m.heads).__name__), "MultiHead"),
    ]),
]
# fmt: on
ROWS = [
    pytest.param(cls, base, *row, id=f"{cls.__name__}-{row[0]}={row[1]}")
    for cls, base, rows in OWN
    for row in rows
]


@pytest.mark.parametrize("cls, base, parameter, value, probe, expected", ROWS)
def test_a_parameter_does_what_it_says(cls, base, parameter, value, probe, expected):
    where, look = probe
    y = Y if any(folder in cls.__module__ for folder in LABELED) else None
    y = TEXTS if cls is embedding.CLIPTransformer else y

    def seen(**parameters):
        in_steps = look if where == "module" else None
        estimator = fit(cls, X, y, in_steps, **{**base, **parameters})
        if where == "fit":
            return look(estimator)
        if where == "steps":
            return look(steps)
        return steps[-1]["seen"] if where == "module" else look(steps[-1])

    assert seen() != expected
    assert seen(**{parameter: value}) == expected


WARMED = [c for c in TRAINED if getattr(c, "warmup_epochs", 0) == 1]


@pytest.mark.parametrize("cls", WARMED, ids=lambda c: c.__name__)
@pytest.mark.parametrize("max_steps", [1, 9, 15, 50])
def test_the_warmup_of_a_short_training_is_a_tenth_of_it(cls, max_steps):
    x, y, settings = TRAINED[cls]
    fit(cls, x, y, **settings, lr=0.02, max_steps=max_steps, warmup_epochs=1)
    rates = [step["lr"] for step in steps]
    # an epoch has 4 steps; the rates of whole trainings are those of before
    length = min(4, max_steps // 10)
    np.testing.assert_allclose(rates[:length], 0.02 * np.arange(length) / (length or 1))
    assert (np.array(rates[length:]) == 0.02).all()


def test_a_warmup_without_an_end_is_told():
    settings = {"max_steps": 3, "batch_size": 8, "random_state": 0}
    with pytest.warns(UserWarning, match="warmup_epochs=2 is as long as the whole"):
        SimCLRTransformer(warmup_epochs=2, **settings).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SimCLRTransformer(**settings).fit(X)
