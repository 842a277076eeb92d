"""Layers that the user has frozen stay frozen, in every method."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from sklabel._core.freezing import frozen_by_user, keep_frozen_, lock_, thaw_
from sklabel._core.identity import digest
from sklabel.backbones import build_backbone
from sklabel.classification import (
    CCLClassifier,
    FixMatchClassifier,
    SimCLRv2Classifier,
    SupervisedClassifier,
)
from sklabel.clustering import DCECClusterer, IICSegmenter, SCANClusterer
from sklabel.embedding import BYOLTransformer, MoCoTransformer, SimCLRTransformer
from sklabel.modules import frozen_copy
from tests.test_parameters import TRAINED, X, Y, fit

IN_CODES = CCLClassifier, DCECClusterer


def body(n_in=6):
    """Return a network whose first two layers are frozen; so is half of the last."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(n_in, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)
    )
    net[:2].requires_grad_(False)
    net[3].bias.requires_grad_(False)
    return net


def maps():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1)
    )
    net[:2].requires_grad_(False)
    net[3].bias.requires_grad_(False)
    return net


def state_of(estimator):
    """Return what the user's network holds in a fitted estimator, by its own names."""
    parts = estimator.encoder_.modules()
    net = next(p for p in parts if type(p) is nn.Sequential and len(p) > 2)
    return {name.replace("norm.", ""): v for name, v in net.state_dict().items()}


def check(estimator, net, moved=True):
    found = state_of(estimator)
    for name, before in net.state_dict().items():
        same = torch.equal(found[name], before)
        assert same == (name != "3.weight" or not moved), name


@pytest.mark.parametrize("cls", TRAINED, ids=lambda cls: cls.__name__)
def test_frozen_layers_stay(cls):
    x, y, settings = TRAINED[cls]
    net = maps() if cls is IICSegmenter else body()
    given = {"backbone": net, "max_steps": 3, "lr": 0.1}
    if cls in IN_CODES or cls is SimCLRv2Classifier:
        given["backbone"] = "auto"
        given["embedder"] = SimCLRTransformer(backbone=net, max_steps=2)
    if cls in IN_CODES:
        given["reconstruction_weight"] = 0
    fitted = fit(cls, x, y, **{**settings, **given})
    check(fitted, net)
    # what goes on from there leaves them as well
    fitted.set_params(warm_start=True).fit(x, y)
    check(fitted, net)


def test_frozen_layers_of_both_stages_of_scan_and_of_its_embedder():
    net = body()
    fitted = fit(
        SCANClusterer, backbone=net, n_clusters=2, self_label_epochs=2, max_steps=3
    )
    check(fitted, net)
    embedder = SimCLRTransformer(backbone=net, max_steps=2)
    fitted = fit(SCANClusterer, backbone="auto", n_clusters=2, embedder=embedder)
    check(fitted, net)


def test_layers_of_a_fitted_embedder_frozen_before_or_after():
    net = body()
    before = fit(SimCLRTransformer, backbone=net, max_steps=2)
    check(fit(FixMatchClassifier, y=Y, backbone=before, backbone_lr=1), net)
    after = fit(SimCLRTransformer, max_steps=2, backbone=thaw_(body()))
    after.encoder_.body[3].requires_grad_(False)
    start = copy.deepcopy(after.encoder_.body)
    found = fit(SupervisedClassifier, y=Y, backbone=after, backbone_lr=1, lr=0.1)
    moved = state_of(found)
    assert torch.equal(moved["3.weight"], start[3].weight)
    assert not torch.equal(moved["0.weight"], start[0].weight)


def test_what_a_method_freezes_for_itself_is_trained_by_the_next():
    # the layer alone was trained here
    head = fit(SupervisedClassifier, y=Y, train_backbone=False)
    averaged = fit(FixMatchClassifier, y=Y, max_steps=2)
    for first in (head, averaged, head.encoder_, averaged.encoder_):
        start = copy.deepcopy(getattr(first, "encoder_", first).state_dict())
        found = fit(BYOLTransformer, backbone=first, max_steps=2, lr=0.1)
        weights = found.encoder_.state_dict()
        names = [n for n in weights if n.endswith("weight")]
        inner = [w for n, w in start.items() if n.endswith("weight")]
        assert not any(
            torch.equal(weights[n], w) for n, w in zip(names, inner, strict=True)
        )


def test_a_frozen_norm_keeps_its_statistics_and_others_do_not():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    for n_splits in (1, 4):
        fitted = fit(MoCoTransformer, backbone=net, bn_splits=n_splits)
        assert state_of(fitted)["1.running_mean"].any()
        net[1].requires_grad_(False)
        fitted = fit(MoCoTransformer, backbone=net, bn_splits=n_splits)
        assert not state_of(fitted)["1.running_mean"].any()
        # of the average too, which sees its batches in training mode
        average = fitted.net_.module_.average[0].state_dict()
        assert not any(v.any() for k, v in average.items() if "running_mean" in k)
        net[1].requires_grad_(True)
    encoder = build_backbone(net.requires_grad_(False), (6,)).train()
    # what has no weights of its own goes with the part that holds it
    assert not encoder.body[2].training and not encoder.body[1].training


def test_checkpoints_tell_frozen_layers_apart(tmp_path):
    settings = {"max_steps": 4, "checkpoint_dir": tmp_path, "net_params": None}
    free = fit(SimCLRTransformer, backbone=thaw_(body()), **settings)
    net = body()
    check(fit(SimCLRTransformer, backbone=net, **settings), net)
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 2
    assert digest(net) != digest(thaw_(body())) and digest(net) == digest(body())
    free.encoder_.body[0].requires_grad_(False)
    before = digest(fit(SimCLRTransformer, backbone=body()))
    free = fit(SimCLRTransformer, backbone=body())
    assert digest(free) == before
    free.encoder_.body[3].requires_grad_(False)
    assert digest(free) != before


def test_marks_are_kept_in_copies_and_files():
    net = keep_frozen_(nn.Sequential(body(), nn.Linear(4, 2)))
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        locked = frozen_copy(again)
        assert not any(p.requires_grad for p in locked.parameters())
        for thawed in (thaw_(locked), thaw_(lock_(lock_(again)))):
            flags = [p.requires_grad for p in thawed.parameters()]
            assert flags == [False] * 4 + [True, False, True, True]
            assert frozen_by_user(thawed[0][3]) == ("bias",)
    # thawed by the user, they are trained again
    net[0].requires_grad_(True)
    assert all(p.requires_grad for p in keep_frozen_(net).parameters())


def test_a_wholly_frozen_network_leaves_the_head_to_learn():
    net = body().requires_grad_(False)
    fitted = fit(SupervisedClassifier, X, Y, backbone=net, max_steps=60, lr=0.1)
    check(fitted, net, moved=False)
    losses = fitted.net_.history[:, "train_loss"]
    assert np.mean(losses[-5:]) < losses[0]
    assert np.isfinite(fitted.predict_proba(X)).all()
