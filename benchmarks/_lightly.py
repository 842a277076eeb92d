"""SimCLR, MoCo, BYOL and SwAV as users of lightly train them: the peers in benchmarks.

lightly's heads, losses, schedules and transforms on the network of ours, with the
widths, temperatures and views that ours have by default.
"""

import copy
from pathlib import Path

import numpy as np
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss, SwaVLoss
from lightly.models.modules import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
    SwaVProjectionHead,
    SwaVPrototypes,
)
from lightly.models.utils import (
    batch_shuffle,
    batch_unshuffle,
    deactivate_requires_grad,
    update_momentum,
)
from lightly.transforms import MoCoV2Transform, SimCLRTransform, SwaVTransform
from lightly.transforms.byol_transform import (
    BYOLTransform,
    BYOLView1Transform,
    BYOLView2Transform,
)
from lightly.utils.scheduler import cosine_schedule
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from sklabel.backbones import build_backbone
from sklabel.modules import fitting_queue_size, split_batchnorm_
from sklabel.optim import param_groups, warmup_cosine

BATCH_SIZE = 256


class SimCLR(nn.Module):
    def __init__(self, backbone, n_images):
        super().__init__()
        self.backbone = backbone
        width = backbone.n_features_out
        self.head = SimCLRProjectionHead(width, width, 128)
        self.criterion = NTXentLoss(0.5)

    @staticmethod
    def views(side):
        return SimCLRTransform(input_size=side, cj_strength=0.5, gaussian_blur=0.0)

    def loss(self, views, progress):
        z0, z1 = (self.head(self.backbone(x)) for x in views)
        return self.criterion(z0, z1)


class MoCo(nn.Module):
    """The symmetric form of lightly's benchmark on CIFAR-10."""

    def __init__(self, backbone, n_images):
        super().__init__()
        self.backbone = split_batchnorm_(backbone, 8)
        width = backbone.n_features_out
        self.head = MoCoProjectionHead(width, width, 128)
        self.slow = copy.deepcopy(nn.Sequential(self.backbone, self.head))
        deactivate_requires_grad(self.slow)
        size = fitting_queue_size("auto", n_images, BATCH_SIZE)
        self.criterion = NTXentLoss(0.1, memory_bank_size=(size, 128))

    @staticmethod
    def views(side):
        return MoCoV2Transform(input_size=side, min_scale=0.08, gaussian_blur=0.0)

    def loss(self, views, progress):
        update_momentum(self.backbone, self.slow[0], m=0.99)
        update_momentum(self.head, self.slow[1], m=0.99)

        def one_way(x_query, x_key):
            query = self.head(self.backbone(x_query))
            with torch.no_grad():
                shuffled, order = batch_shuffle(x_key)
                key = batch_unshuffle(self.slow(shuffled), order)
            return self.criterion(query, key)

        x0, x1 = views
        return 0.5 * (one_way(x0, x1) + one_way(x1, x0))


class BYOL(nn.Module):
    def __init__(self, backbone, n_images):
        super().__init__()
        self.backbone = backbone
        self.head = BYOLProjectionHead(backbone.n_features_out, 1024, 256)
        self.predict = BYOLPredictionHead(256, 1024, 256)
        self.slow = copy.deepcopy(nn.Sequential(self.backbone, self.head))
        deactivate_requires_grad(self.slow)
        self.criterion = NegativeCosineSimilarity()

    @staticmethod
    def views(side):
        none = {"input_size": side, "gaussian_blur": 0.0}
        return BYOLTransform(
            BYOLView1Transform(**none),
            BYOLView2Transform(**none, solarization_prob=0.2),
        )

    def loss(self, views, progress):
        momentum = cosine_schedule(progress[0], progress[1], 0.97, 1)
        update_momentum(self.backbone, self.slow[0], m=momentum)
        update_momentum(self.head, self.slow[1], m=momentum)
        x0, x1 = views
        p0, p1 = (self.predict(self.head(self.backbone(x))) for x in (x0, x1))
        with torch.no_grad():
            z0, z1 = self.slow(x0), self.slow(x1)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


class SwAV(nn.Module):
    def __init__(self, backbone, n_images):
        super().__init__()
        self.backbone = backbone
        self.head = SwaVProjectionHead(backbone.n_features_out, 2048, 128)
        frozen = n_images // BATCH_SIZE
        self.prototypes = SwaVPrototypes(128, 512, n_steps_frozen_prototypes=frozen)
        self.criterion = SwaVLoss()

    @staticmethod
    def views(side):
        return SwaVTransform(
            crop_sizes=(side, side),
            crop_counts=(2, 0),
            cj_strength=0.5,
            gaussian_blur=0.0,
        )

    def loss(self, views, progress):
        self.prototypes.normalize()
        scores = []
        for x in views:
            z = nn.functional.normalize(self.head(self.backbone(x)), dim=1)
            scores.append(self.prototypes(z, progress[0]))
        return self.criterion(scores, [])


METHODS = {"SimCLR": SimCLR, "MoCo": MoCo, "BYOL": BYOL, "SwAV": SwAV}


class Views(Dataset):
    """Two views of each image, by lightly's transform on PIL images."""

    def __init__(self, images, transform):
        self.transform = transform
        self.images = [Image.fromarray(image) for image in images]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.transform(self.images[row])


def build(name, images, backbone="auto"):
    """Return a method of lightly on one of our networks."""
    shape = (3, *images.shape[1:3])
    return METHODS[name](build_backbone(backbone, shape), len(images))


def loader(name, images, workers=0):
    """Return lightly's batches of one shuffled epoch after another."""
    return DataLoader(
        Views(images, METHODS[name].views(images.shape[1])),
        BATCH_SIZE,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def train_epoch(model, batches, optimizer, done=0, epochs=1, set_lr=None):
    """One epoch of the training loop in lightly's guide."""
    model.train()
    device = next(model.parameters()).device
    for i, views in enumerate(batches):
        step = done * len(batches) + i
        if set_lr is not None:
            set_lr(step, epochs * len(batches))
        views = [x.to(device) for x in views]
        value = model.loss(views, (step, epochs * len(batches)))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()


def embed(name, x, x_test, epochs, seed, backbone, workers=0, checkpoints=None):
    """Train as our estimator of that name does by default, with lightly's parts.

    Parameters
    ----------
    name : str
        A key of ``METHODS``.
    x, x_test : ndarray of shape (n, h, w, 3), uint8
    epochs : int
    seed : int
    backbone : str
        A name of ours.
    workers : int
        Processes that make views.
    checkpoints : str or None
        Folder; a broken run continues from its last epoch.

    Returns
    -------
    Z, Z_test : ndarray
        Features before the head.
    """
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(name, x, backbone).to(device)
    batches = loader(name, x, workers)
    optimizer = torch.optim.AdamW(param_groups(model, 1e-4), lr=1e-3)
    done = 0
    file = f"lightly-{name}-{backbone}-{len(x)}-{epochs}-{seed}.pt"
    file = Path(checkpoints or ".") / file
    if checkpoints and file.exists():
        state = torch.load(file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
        torch.set_rng_state(state["rng"].cpu())

    def set_lr(step, total):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * warmup_cosine(step, total, len(batches))

    for epoch in range(done, epochs):
        train_epoch(model, batches, optimizer, epoch, epochs, set_lr)
        if checkpoints:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "done": epoch + 1,
                "rng": torch.get_rng_state(),
            }
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, file.with_suffix(".partial"))
            file.with_suffix(".partial").replace(file)
        print(f"lightly {name}, seed {seed}: epoch {epoch + 1} of {epochs}", flush=True)
    return features(model, x), features(model, x_test)


@torch.inference_mode()
def features(model, images):
    """Return the features of plain images, standardized as lightly trains them."""
    model.eval()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(images), 512):
        x = (images[start : start + 512] / 255 - mean) / std
        x = torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32)).to(device)
        parts.append(model.backbone(x).cpu().numpy())
    return np.concatenate(parts)
