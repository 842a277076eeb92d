"""Wrong arguments of public functions, modules and policies: one clear sentence."""

import importlib
import inspect
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from sklabel import (
    augment,
    losses,
    modules,
    neighbors,
    optim,
    pretrained,
    text,
)
from sklabel._core.checks import check_number, check_option, check_pair
from sklabel._core.parameters import Parameters

ROOMS = (
    "active_learning augment backbones classification clustering datasets embedding "
    "inspection losses metrics model_selection modules neighbors optim pretrained "
    "selection text"
)


def public():
    """Yield the name and the object of what is public and no estimator."""
    for room in ROOMS.split():
        module = importlib.import_module(f"sklabel.{room}")
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__
        ]
        for name in names:
            value = getattr(module, name)
            estimator = isinstance(value, type) and issubclass(value, Parameters)
            if callable(value) and not name.startswith("_") and not estimator:
                yield f"{room}.{name}", value


def text_options(value):
    """Return {parameter: its texts} as the docstring has them."""
    doc, found = inspect.getdoc(value) or "", {}
    for names, kind in re.findall(r"^(\w+(?:, \w+)*) : ([^\n]*)", doc, re.M):
        listed = re.search(r"\{([^}]*)\}", kind)
        texts = re.findall(r'"([^"]*)"', listed[1] if listed else kind)
        default = f'default="{texts[0]}"' if texts else ""
        if not listed and kind.endswith(default) and kind.startswith("str"):
            continue  # a free text
        for name in names.split(", ") if texts else ():
            found[name] = texts
    return {k: v for k, v in found.items() if k in inspect.signature(value).parameters}


X = torch.rand(6, 3, 8, 8)
Z = torch.randn(6, 4)
P = Z.softmax(1)
Y = torch.arange(6) % 3
# what a call needs beside the option
CALLS = {
    "augment.RandAugment": {},
    "augment.build_augment": {"sample_shape": (3, 8, 8)},
    "augment.sobel": {"x": X},
    "augment.op_values": {"ops": Y, "levels": Y},
    "model_selection.labeled_cross_val_predict": {"estimator": None, "X": X, "y": Y},
    "losses.nt_xent": {"z1": Z, "z2": Z},
    "losses.contrastive_clustering": {"z": Z, "y": Y, "centers": Z[:3]},
    "losses.uslt_global_loss": {"logits_weak": Z, "logits_strong": Z},
    "modules.mlp": {"in_features": 3, "hidden_features": 3, "out_features": 3},
    "modules.ProjectionNet": {
        "backbone": nn.Identity(),
        "project": nn.Identity(),
        "projection_size": 3,
    },
    "modules.fitting_queue_size": {"n_samples": 9, "batch_size": 3},
    "optim.LARS": {"params": [nn.Parameter(torch.zeros(2))], "lr": 0.1},
    "optim.scaled_lr": {"lr": 0.1, "batch_size": 8},
    "neighbors.kneighbors": {"Z": Z, "n_neighbors": 2},
    "neighbors.kmeans": {"Z": Z, "n_clusters": 2},
    "backbones.drop_blocks_": {"net": nn.Identity(), "rate": 0.1},
    "backbones.build_sobel_backbone": {"spec": "auto", "sample_shape": (3, 8, 8)},
    "pretrained.Frame": {"size": (4, 4), "resize": (4, 4)},
    "pretrained.pretrained_backbone": {"name": "squeezenet1_1", "weights": None},
    "text.tokenizer": {"context_length": 5},
    "datasets.load_image_folder": {"folder": "."},
    "model_selection.clustering_scorer": {},
}
OPTIONS = [
    (name, value, parameter, texts)
    for name, value in public()
    for parameter, texts in text_options(value).items()
]


def test_there_are_options():
    known = {name for name, *_ in OPTIONS}
    assert {"pretrained.Frame", "losses.contrastive_clustering"} <= known
    assert len(OPTIONS) > 20


@pytest.mark.parametrize("typo", ["{}x", "", "{}".upper() + " ", "none of these"])
@pytest.mark.parametrize(
    ("name", "value", "parameter", "texts"),
    OPTIONS,
    ids=[f"{name}-{parameter}" for name, _, parameter, _ in OPTIONS],
)
def test_a_typo_in_an_option_is_refused(name, value, parameter, texts, typo):
    wrong = typo.format(texts[0])
    with pytest.raises(ValueError) as error:
        value(**{**CALLS[name], parameter: wrong})
    message = str(error.value)
    assert parameter in message and repr(wrong) in message
    assert all(one in message for one in texts)
    assert message.endswith(".") and "\n" not in message


@pytest.mark.parametrize("value", [None, 3, 0.5, ["rows"]], ids=repr)
def test_no_text_is_no_option(value):
    for call in (
        lambda: losses.contrastive_clustering(Z, Y, Z[:3], contrast=value),
        lambda: pretrained.Frame((4, 4), (4, 4), mode=value),
        lambda: augment.RandAugment(table=value),
    ):
        with pytest.raises(ValueError, match=re.escape(repr(value))):
            call()


NUMBERS = [
    (augment.Weak, {"flip": 7}),
    (augment.Weak, {"shift": -0.1}),
    (augment.Weak, {"shift": math.nan}),
    (augment.VectorNoise, {"noise": -1}),
    (augment.VectorNoise, {"dropout": 1.5}),
    (augment.VectorNoise, {"noise": "0.1"}),
    (augment.Contrastive, {"jitter": -1}),
    (augment.Contrastive, {"jitter": (0.1, 0.1, 0.1)}),
    (augment.Contrastive, {"jitter": (0.1, 0.1, -0.1, 0.1)}),
    (augment.Contrastive, {"flip": 7}),
    (augment.Contrastive, {"crop": (0.5, 1.5)}),
    (augment.Contrastive, {"crop": 0.5}),
    (augment.Contrastive, {"aspect": (0, 1)}),
    (augment.Contrastive, {"jitter_probability": math.inf}),
    (augment.Contrastive, {"grayscale": -0.2}),
    (augment.Contrastive, {"blur": None}),
    (augment.Contrastive, {"rotate": -5}),
    (augment.Contrastive, {"solarize": 2}),
    (augment.Contrastive, {"size": 0}),
    (augment.Contrastive, {"size": (4, 4, 4)}),
    (augment.Contrastive, {"size": (4, 0.5)}),
    (augment.RandAugment, {"probability": -1}),
    (augment.RandAugment, {"cutout": -5}),
    (augment.RandAugment, {"cutout": (0.1, 2)}),
    (augment.RandAugment, {"n_ops": 1.5}),
    (augment.RandAugment, {"magnitude": 12}),
    (augment.RandAugment, {"ops": ("Rotat",)}),
    (augment.CTAugment, {"threshold": math.nan}),
    (augment.CTAugment, {"depth": -1}),
    (augment.CTAugment, {"decay": 1.1}),
    (augment.CTAugment, {"cutout": -0.5}),
    (augment.scan_strong, {"flip": 2}),
    (augment.scan_strong, {"n_ops": -1}),
    (losses.nt_xent, {"z1": Z, "z2": Z, "temperature": 0}),
    (losses.info_nce, {"queries": Z, "keys": Z, "queue": Z, "temperature": -1}),
    (losses.sinkhorn, {"scores": Z, "epsilon": 0}),
    (losses.sinkhorn, {"scores": Z, "n_iterations": -1}),
    (losses.lloyd_groups, {"z": Z, "n_groups": 0}),
    (losses.student_assignment, {"z": Z, "centers": Z, "alpha": math.nan}),
    (losses.contrastive_clustering, dict(z=Z, y=Y, centers=Z, temperature=0)),
    (losses.iic_loss, {"p1": P, "p2": P, "marginal_weight": -1}),
    (losses.pseudo_label, {"logits_weak": Z, "logits_strong": Z, "threshold": 7}),
    (losses.pseudo_label, {"logits_weak": Z, "logits_strong": Z, "temperature": 0}),
    (losses.sharpen, {"probabilities": P, "temperature": 0}),
    (losses.distillation, dict(logits_teacher=Z, logits_student=Z, temperature=-1)),
    (modules.mlp, {"in_features": 3, "out_features": 3, "hidden_features": 0}),
    (modules.mlp, dict(in_features=3, hidden_features=3, out_features=3, n_layers=0)),
    (modules.Queue, {"n_features": 3, "size": 0}),
    (modules.DistributionAlignment, {"prior": P[0], "decay": 2}),
    (modules.FixedThreshold, {"threshold": "0.9"}),
    (modules.ramped_decay, {"step": 1, "decay": -1}),
    (
        modules.ema_update_,
        dict(target_module=nn.ReLU(), source_module=nn.ReLU(), decay=2),
    ),
    (modules.fitting_queue_size, {"n_samples": 3, "batch_size": 3, "size": 0}),
    (optim.LARS, {"params": [nn.Parameter(Z)], "lr": 0.1, "momentum": 2}),
    (pretrained.Frame, {"resize": (4, 4), "size": (4, -4)}),
    (pretrained.Frame, {"size": (4, 4), "resize": 4}),
    (text.ByteTokenizer, {"context_length": -1}),
    (text.ByteTokenizer, {"context_length": 2.5}),
    (text.tokenizer, {"name": "bytes", "context_length": 2}),
]


@pytest.mark.parametrize(
    ("value", "given"),
    NUMBERS,
    ids=[
        f"{v.__name__}-{'-'.join(map(str, list(g)[-1:]))}-{i}"
        for i, (v, g) in enumerate(NUMBERS)
    ],
)
def test_a_number_out_of_range_is_refused(value, given):
    name = list(given)[-1]
    with pytest.raises(ValueError, match=rf"{name}=.*\.$") as error:
        value(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "policy",
    [
        augment.Weak(),
        augment.VectorNoise(),
        augment.Contrastive(),
        augment.RandAugment(weak=augment.Weak()),
        augment.CTAugment(),
    ],
    ids=lambda p: type(p).__name__,
)
def test_a_policy_looks_at_what_is_set_too(policy):
    known = policy.get_params()
    last = list(known)[-1].partition("__")[0]
    with pytest.raises(ValueError, match="="):
        policy.set_params(**{last: None, next(iter(known)): -3})
    assert policy.get_params() == known  # as it was
    if "weak" in known:
        with pytest.raises(ValueError, match="flip=3"):
            policy.set_params(n_ops=1, weak__flip=3)
        assert policy.get_params() == known
    for number in (np.float32, np.float64):
        flat = {k: number(v) for k, v in known.items() if isinstance(v, float)}
        policy.set_params(**{k: v for k, v in flat.items() if "__" not in k})


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_that_are_not_finite_are_refused(bad, dtype):
    Z = np.random.default_rng(0).normal(size=(9, 3)).astype(dtype)
    good = Z.copy()
    Z[4, 1] = bad
    for call in (
        lambda: neighbors.mine_neighbors(Z, 2),
        lambda: neighbors.mine_neighbors(Z, 2, normalize=False),
        lambda: neighbors.kneighbors(Z, 2),
        lambda: neighbors.kneighbors(good, 2, queries=Z),
        lambda: neighbors.kmeans(Z, 2),
    ):
        with pytest.raises(ValueError, match="(?i)nan|infinity|finite"):
            call()


def test_the_checks_themselves():
    for value in (0.5, 1, True, np.float32(1), np.int8(0), np.bool_(True)):
        check_number(0, 1, x=value)
    for value in (torch.tensor(7.0), np.array([7.0, 8.0]), torch.ones(3)):
        check_number(0, 1, x=value)  # torch says what is wrong with those
    for value in (-0.1, 1.1, math.nan, math.inf, None, "1", [1], 1j):
        with pytest.raises(
            ValueError, match=r"^x=.* must be a finite number from 0 to"
        ):
            check_number(0, 1, x=value)
    with pytest.raises(ValueError, match="must be an integer of at least 2"):
        check_number(2, whole=True, x=1)
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        check_number(0, 1, above=True, x=0)
    with pytest.raises(ValueError, match=r"^b=2 must be a finite number above 3\.$"):
        check_number(3, above=True, a=4, b=2)
    check_option(("a", None, True), x=None)
    check_option(("a", None, True), x=np.str_("a"))
    for value in ("b", 1, False, np.array(["a", "a"]), torch.ones(2)):
        with pytest.raises(ValueError, match='not one of "a", None, True'):
            check_option(("a", None, True), x=value)
    check_pair(0, 1, x=(0, 1), y=[0.5, 0.1])
    for value in ((0, 2), (0,), 0.5, None, "ab", (0, "a")):
        with pytest.raises(ValueError, match=r"^x="):
            check_pair(0, 1, x=value)
