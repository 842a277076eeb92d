"""Which network sees which view of which rows: one training step of every method."""

# Each case below is a real ``fit`` with a backbone that records what it is given, and
# with augmentations that leave their mark on every row. A line of a table is one
# forward pass, in the order of the passes:
#
#     network  a1(x) a2(x)       two views of the batch, by two calls of the policy a
#     average  a2(shuffled x)    the rows in another order than in the batch
#     network  [x] s1(w2(x))     the batch as it is, and a strong view of a weak one
#
# Rows in brackets teach nothing: no gradient comes back from them. A line ``--`` begins
# the next training step. The networks are
#
#     network  what the optimizer trains
#     average  a frozen copy in training mode: BatchNorm takes the batch's statistics
#     teacher  a frozen copy in evaluation mode

import textwrap
import warnings

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from sklabel import classification, clustering, embedding, selection

N, N_LABELED, ID, MARK = 16, 4, 0, 1  # rows, and the two columns that tell views apart

X = np.random.default_rng(0).normal(size=(N, 8)).astype(np.float32)
X[:, ID], X[:, MARK] = np.arange(N), 0
Y = np.where(np.arange(N) < N_LABELED, np.arange(N) % 2, -1)
TEXTS = [f"picture {i}" for i in range(N)]
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 6, 6, 4), dtype=np.uint8)
IMAGES[..., ID], IMAGES[..., MARK] = np.arange(N)[:, None, None], 0

steps = []  # what the training steps of the current fit have seen
open_step = None


def column(x, i, scale):
    """Return one of the two columns, of vectors or (as the first pixel) of images."""
    values = x[:, i].double() if x.ndim == 2 else x[:, i, 0, 0].double()
    return values * scale


class Step:
    def __init__(self, batch):
        x, y = batch
        parts = dict(zip(("x", "neighbors"), x if isinstance(x, tuple) else (x,)))
        self.rows = {k: column(part, ID, 1).tolist() for k, part in parts.items()}
        rows, n_labeled = self.rows["x"], int((y >= 0).sum()) if y.ndim == 1 else 0
        # in the place of its label an unlabeled row has its number
        is_mixed = y.tolist()[n_labeled:] == [-1 - row for row in rows[n_labeled:]]
        if is_mixed and (n_labeled < len(rows) or max(rows) < N_LABELED):
            parts = {"labeled": rows[:n_labeled], "unlabeled": rows[n_labeled:]}
            self.rows = {k: part for k, part in parts.items() if part}
        self.calls = {}  # of each policy
        self.names = []  # of all views, by their number
        self.forwards = []


class Watch(Callback):
    """Tells when a training step begins and ends, and which rows are in its batch."""

    def on_batch_begin(self, net, batch=None, **_):
        global open_step
        steps.append(open_step := Step(batch))

    def on_batch_end(self, net, **_):
        global open_step
        open_step = None


class Policy(nn.Module):
    """A view with a name: it writes the number of this call over the one before."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x):
        step = open_step
        call = step.calls[self.name] = step.calls.get(self.name, 0) + 1
        before = column(x, MARK, 1 if x.ndim == 2 else 255).round().int().tolist()
        assert len(set(before)) == 1, "a policy is given one kind of rows"
        inner = step.names[before[0] - 1] if before[0] else "{}"
        step.names.append(f"{self.name}{call}({inner})")
        x = x.clone()
        x[:, MARK] = len(step.names) / (1 if x.ndim == 2 else 255)
        return x


class Learner(Policy):
    """A policy that learns from how well its views of labeled rows are recognized."""

    def probe(self, x):
        return self(x), None

    def update(self, draw, match):
        pass


class Backbone(nn.Module):
    """Hands on all columns but the two, and records them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        h = x[:, 2:] * self.weight
        if open_step is not None:
            frozen = not self.weight.requires_grad
            who = ("average" if self.training else "teacher") if frozen else "network"
            forward = {"who": who, "x": x.detach().clone(), "gradient": None}
            open_step.forwards.append(forward)
            if h.requires_grad:
                h.register_hook(lambda gradient: forward.update(gradient=gradient))
        return h


def told(step, given):
    """Return the lines of one step; ``given`` is X, by which backbones standardize."""
    scale = 1 if given.ndim == 2 else 255
    values = torch.from_numpy(given).movedim(-1, 1).double() / scale
    dims = (0,) if given.ndim == 2 else (0, 2, 3)
    mean, std = values.mean(dims), values.std(dims, correction=0)
    lines = []
    for forward in step.forwards:
        x = forward["x"]
        rows = (column(x, ID, scale * std[ID]) + scale * mean[ID]).round().int()
        marks = column(x, MARK, scale).round().int()  # a constant is left alone
        parts = []
        for first, last, name in runs(rows.tolist(), marks.tolist(), step.rows):
            mark = int(marks[first])
            name = (step.names[mark - 1] if mark else "{}").format(name)
            gradient = forward["gradient"]
            teaches = gradient is not None and bool(gradient[first:last].any())
            parts.append(name if teaches else f"[{name}]")
        lines.append(f"{forward['who']}  {' '.join(parts)}")
    return "\n".join(lines)


def runs(rows, marks, known):
    """Yield (first, last, name) of the parts of a forward that are one view each."""
    first = 0
    while first < len(rows):
        last = first + 1
        while last < len(rows) and marks[last] == marks[first]:
            last += 1
        name = str(rows[first:last])  # unless it is found to be one of the known
        for kind, own in known.items():
            part = rows[first : min(last, first + len(own))]
            if sorted(part) == sorted(own):
                last = first + len(own)
                name = kind if part == own else f"shuffled {kind}"
                break
        yield first, last, name
        first = last


def seen_by(estimator, x, y):
    """Return what the networks of a fit have seen, in the words of the tables."""
    steps.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one step collapses, or learns nothing
        estimator.fit(x, y)
    return "\n--\n".join(told(step, x) for step in steps)


def make(cls, **parameters):
    given = {
        "backbone": Backbone(),
        "max_steps": 1,
        "batch_size": N,
        "warmup_epochs": 0,
        "precision": "float32",
        "random_state": 0,
        "net_params": {"callbacks": [Watch]},
        **parameters,
    }
    return cls(**given)


a, b, small, weak, strong, e = map(Policy, ("a", "b", "small", "w", "s", "e"))
pretrained = make(embedding.AutoencoderTransformer, augment=e, n_components=3)

# name: (estimator, X, y, what its networks see)
METHODS = {
    "SimCLR: two views, one forward of 2B rows": (
        make(embedding.SimCLRTransformer, augment=a),
        (X, None),
        "network  a1(x) a2(x)",
    ),
    "MoCo: the key of the other view, by the average, in another order": (
        make(embedding.MoCoTransformer, augment=a, symmetric=False),
        (X, None),
        """
        network  a1(x)
        average  [a2(shuffled x)]
        """,
    ),
    "MoCo, symmetric: each view is the query once": (
        make(embedding.MoCoTransformer, augment=a),
        (X, None),
        """
        network  a1(x)
        average  [a2(shuffled x)]
        network  a2(x)
        average  [a1(shuffled x)]
        """,
    ),
    "BYOL: a view of each policy, both by both networks": (
        make(embedding.BYOLTransformer, augment=(a, b)),
        (X, None),
        """
        network  a1(x)
        network  b1(x)
        average  [a1(x)]
        average  [b1(x)]
        """,
    ),
    "SwAV: two large crops in one forward, the small ones in another": (
        make(
            embedding.SwAVTransformer, augment=a, small_augment=small, n_small_crops=3
        ),
        (X, None),
        """
        network  a1(x) a2(x)
        network  small1(x) small2(x) small3(x)
        """,
    ),
    "CLD: two queries, and a third view for the key, by the average": (
        make(embedding.CLDTransformer, augment=a, n_groups=4),
        (X, None),
        """
        network  a1(x)
        network  a2(x)
        average  [a3(x)]
        """,
    ),
    "Autoencoder: one view": (
        make(embedding.AutoencoderTransformer, augment=a, n_components=3),
        (X, None),
        "network  a1(x)",
    ),
    "CLIP: one view of the images": (
        make(embedding.CLIPTransformer, augment=a, text_width=8, text_heads=2),
        (X, TEXTS),
        "network  a1(x)",
    ),
    "SCAN: a view of rows and one of their neighbors; plain rows teach one view": (
        make(
            clustering.SCANClusterer,
            augment=a,
            n_clusters=3,
            n_neighbors=5,
            self_label_epochs=1,
            self_label_batch_size=N,
            self_label_threshold=0.0,
        ),
        (X, None),
        """
        network  a1(x)
        network  a2(neighbors)
        --
        network  [x]
        network  a1(x)
        """,
    ),
    "IIC: the rows as they are against all their views at once": (
        make(
            clustering.IICClusterer,
            augment=a,
            n_clusters=3,
            n_repeats=3,
            n_restarts=0,
            sobel=False,
            max_steps=2,  # the larger heads, then those that count
        ),
        (X, None),
        """
        network  x
        network  a1(x) a2(x) a3(x)
        --
        network  x
        network  a1(x) a2(x) a3(x)
        """,
    ),
    "IIC segmentation: the images as they are against one view": (
        make(
            clustering.IICSegmenter,
            augment=a,
            n_clusters=3,
            half_side=1,
            flip=0,
            rotate=0,
            zoom=0,
            max_steps=2,
        ),
        (IMAGES, None),
        """
        network  x
        network  a1(x)
        --
        network  x
        network  a1(x)
        """,
    ),
    "DeepCluster: one view; the clusters are of the rows as they are": (
        make(
            clustering.DeepClusterer,
            augment=a,
            n_clusters=2,
            n_training_clusters=4,
            sobel=False,
        ),
        (X, None),
        "network  a1(x)",
    ),
    "DCEC: views in the pretraining only": (
        make(
            clustering.DCECClusterer, backbone="auto", embedder=pretrained, n_clusters=3
        ),
        (X, None),
        """
        network  e1(x)
        --
        network  x
        """,
    ),
    "CCL: views in the pretraining only": (
        make(
            classification.CCLClassifier,
            backbone="auto",
            embedder=pretrained,
            batch_size=4,
            unlabeled_ratio=3,
        ),
        (X, Y),
        """
        network  e1(x)
        --
        network  labeled unlabeled
        """,
    ),
    "Supervised: one view of the labeled rows": (
        make(classification.SupervisedClassifier, augment=a),
        (X, Y),
        "network  a1(labeled)",
    ),
    "FixMatch: weak views teach strong ones": (
        make(
            classification.FixMatchClassifier,
            weak_augment=weak,
            strong_augment=strong,
            threshold=0.0,
            batch_size=4,
            unlabeled_ratio=3,
            include_labeled=False,
        ),
        (X, Y),
        "network  w1(labeled) [w2(unlabeled)] s1(w3(unlabeled))",
    ),
    "FixMatch, a policy that learns: the average sees its views of labeled rows": (
        make(
            classification.FixMatchClassifier,
            weak_augment=weak,
            strong_augment=Learner("s"),
            threshold=0.0,
            batch_size=4,
            unlabeled_ratio=3,
            include_labeled=False,
        ),
        (X, Y),
        """
        network  w1(labeled) [w2(unlabeled)] s1(w3(unlabeled))
        teacher  [s2(w1(labeled))]
        """,
    ),
    "MixMatch: views are guessed together, then all of them learn": (
        make(
            classification.MixMatchClassifier,
            weak_augment=weak,
            n_augmentations=3,
            alpha=0,  # nothing is mixed, so that rows can be told
            ramp_up=0,
            batch_size=4,
            unlabeled_ratio=3,
            include_labeled=False,
        ),
        (X, Y),
        """
        network  [w1(labeled)] [w2(unlabeled)] [w3(unlabeled)] [w4(unlabeled)]
        network  w1(labeled) w2(unlabeled) w3(unlabeled) w4(unlabeled)
        """,
    ),
    "FixMatch with an average as teacher: it alone sees the weak views": (
        make(
            classification.FixMatchClassifier,
            weak_augment=weak,
            strong_augment=strong,
            teacher="average",
            threshold=0.0,
            batch_size=4,
            unlabeled_ratio=3,
            include_labeled=False,
        ),
        (X, Y),
        """
        network  w1(labeled) s1(w3(unlabeled))
        teacher  [w2(unlabeled)]
        """,
    ),
    "FixMatch with interpolated logits: labeled views also go alone": (
        make(
            classification.FixMatchClassifier,
            weak_augment=weak,
            strong_augment=strong,
            logit_interpolation=True,
            threshold=0.0,
            batch_size=4,
            unlabeled_ratio=3,
            include_labeled=False,
        ),
        (X, Y),
        """
        network  w1(labeled) [w2(unlabeled)] s1(w3(unlabeled))
        network  w1(labeled)
        """,
    ),
    "ReMixMatch: one weak view is guessed, the strong ones learn": (
        make(
            classification.ReMixMatchClassifier,
            weak_augment=weak,
            strong_augment=strong,
            n_augmentations=2,
            alpha=0,  # nothing is mixed, so that rows can be told
            ramp_up=0,
            batch_size=4,
            unlabeled_ratio=3,
            include_labeled=False,
        ),
        (X, Y),
        """
        network  [s1(w1(labeled))] [w4(unlabeled)] s2(w2(unlabeled))
        network  s1(w1(labeled)) w4(unlabeled) s2(w2(unlabeled)) s3(w3(unlabeled))
        """,
    ),
    "Noisy Student: the teacher learns from weak views, the student from noised ones": (
        make(
            classification.NoisyStudentClassifier,
            weak_augment=weak,
            strong_augment=strong,
            n_rounds=1,
            threshold=0.0,
            dropout=0,
            batch_size=4,
            unlabeled_ratio=3,
        ),
        (X, Y),
        """
        network  w1(labeled)
        --
        network  s1(w1(labeled)) s1(w1(unlabeled))
        """,
    ),
    "SimCLRv2: one view, the same for teacher and student": (
        make(
            classification.SimCLRv2Classifier,
            backbone="auto",
            embedder=make(embedding.SimCLRTransformer, augment=e, projection_layers=3),
            augment=a,
            max_steps=2,  # at first nothing comes back: the heads begin at zero
            distill_epochs=2,
            distill_batch_size=N,
        ),
        (X, Y),
        """
        network  e1(x) e2(x)
        --
        network  [a1(labeled)]
        --
        network  a1(labeled)
        --
        teacher  [a1(x)]
        network  [a1(x)]
        --
        teacher  [a1(x)]
        network  a1(x)
        """,
    ),
    "SimCLRv2, labels in the distillation: the teacher sees unlabeled rows only": (
        make(
            classification.SimCLRv2Classifier,
            backbone="auto",
            embedder=make(embedding.SimCLRTransformer, augment=e, projection_layers=3),
            augment=a,
            alpha=0.5,
            max_steps=2,
            batch_size=4,
            distill_epochs=2,
            distill_batch_size=12,
        ),
        (X, Y),
        """
        network  e1(x) e2(x)
        --
        network  [a1(labeled)]
        --
        network  a1(labeled)
        --
        teacher  [a1(unlabeled)]
        network  [a1(labeled)] [a1(unlabeled)]
        --
        teacher  [a1(unlabeled)]
        network  a1(labeled) a1(unlabeled)
        """,
    ),
    "USL-T: plain rows and views of neighbors teach a view of the rows": (
        make(
            selection.USLTSelector,
            augment=a,
            n_samples=3,
            n_neighbors=5,
            threshold=0.0,
            head="linear",
        ),
        (X, None),
        """
        network  [x]
        network  [a1(neighbors)]
        network  a2(x)
        """,
    ),
    "Learning loss: one view of the labeled rows": (
        make(selection.LearningLossSelector, augment=a, n_samples=3),
        (X, Y),
        "network  a1(labeled)",
    ),
    "TOD: one view, the same for both networks": (
        make(selection.TODSelector, augment=a, n_samples=3, batch_size=4),
        (X, Y),
        """
        network  a1(labeled) a1(unlabeled)
        average  [a1(labeled)] [a1(unlabeled)]
        """,
    ),
    "VAAL: no view; labeled and unlabeled rows in one forward": (
        make(selection.VAALSelector, n_samples=3, batch_size=4),
        (X, Y),
        "network  labeled unlabeled",
    ),
    "SRAAL: no view; labeled and unlabeled rows in one forward": (
        make(selection.SRAALSelector, n_samples=3, batch_size=4),
        (X, Y),
        "network  labeled unlabeled",
    ),
    "LADA: one view of the labeled rows; then the policy sees both rows of a pair": (
        make(
            selection.LADASelector,
            augment=a,
            n_samples=3,
            layers=("",),
            policy_epochs=1,
        ),
        (X, Y),
        """
        network  a1(labeled)
        --
        teacher  [x] [neighbors]
        """,
    ),
}


def test_every_method_has_a_table():
    folders = embedding, clustering, classification, selection
    found = {getattr(folder, name) for folder in folders for name in folder.__all__}
    seen = {type(estimator) for estimator, _, _ in METHODS.values()}
    trained = {cls for cls in found if hasattr(cls, "_stage")}
    assert trained - {classification.CLIPClassifier} == seen  # it has vectors


@pytest.mark.parametrize("name", METHODS)
def test_each_network_sees_its_views(name):
    estimator, data, expected = METHODS[name]
    assert seen_by(estimator, *data) == textwrap.dedent(expected).strip()


def test_keys_of_moco_go_back_into_the_order_of_the_batch():
    moco = make(
        embedding.MoCoTransformer,
        augment=None,
        symmetric=False,
        output="projection",
        queue_size=N,
        lr=1e-30,  # so that the average is still the network
    )
    seen_by(moco, X, None)
    keys = torch.from_numpy(moco.transform(X[np.int64(steps[0].rows["x"])]))
    torch.testing.assert_close(
        moco.net_.module_.queue.rows, nn.functional.normalize(keys)
    )
