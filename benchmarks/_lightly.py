"""SimCLR as users of lightly train it: the peer in the benchmarks of speed and learning."""

from pathlib import Path

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from sklabel.backbones import build_backbone
from sklabel.optim import param_groups, warmup_cosine


class Views(Dataset):
    """Two views of each image, by lightly's transform on PIL images."""

    def __init__(self, images):
        # the settings of sklabel.augment.Contrastive; no blur at 32 x 32, as in SimCLR
        side = images.shape[1]
        self.view = SimCLRTransform(input_size=side, cj_strength=0.5, gaussian_blur=0.0)
        self.images = [Image.fromarray(image) for image in images]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.view(self.images[row])


class SimCLR(nn.Module):
    """lightly's head on the network of ours."""

    def __init__(self, sample_shape, n_out=128):
        super().__init__()
        self.backbone = build_backbone("auto", sample_shape)
        width = self.backbone.n_features_out
        self.head = SimCLRProjectionHead(width, width, n_out)

    def forward(self, x):
        return self.head(self.backbone(x))


def loader(images, batch_size, workers):
    """Return lightly's batches of one shuffled epoch after another."""
    return DataLoader(
        Views(images),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def train_epoch(model, batches, loss, optimizer, set_lr=None):
    """One epoch of the training loop in lightly's guide."""
    model.train()
    for x0, x1 in batches:
        if set_lr is not None:
            set_lr()
        value = loss(model(x0), model(x1))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()


def simclr_lightly(x, x_test, epochs, seed, checkpoints=None, temperature=0.5):
    """Train as `SimCLRTransformer` does by default, with lightly's parts.

    Parameters
    ----------
    x, x_test : ndarray of shape (n, h, w, 3), uint8
    epochs : int
    seed : int
    checkpoints : str or None
        Folder; a broken run continues from its last epoch.
    temperature : float

    Returns
    -------
    Z, Z_test : ndarray
        Features before the head.
    """
    torch.manual_seed(seed)
    model = SimCLR((3, *x.shape[1:3]))
    batches = loader(x, 256, 0)
    optimizer = torch.optim.AdamW(param_groups(model, 1e-4), lr=1e-3)
    loss = NTXentLoss(temperature)
    step, done = 0, 0
    name = f"lightly-{len(x)}-{epochs}-{temperature}-{seed}.pt"
    file = Path(checkpoints or ".") / name
    if checkpoints and file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, done = state["step"], state["done"]
        torch.set_rng_state(state["rng"])

    def set_lr():
        nonlocal step
        factor = warmup_cosine(step, epochs * len(batches), len(batches))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * factor
        step += 1

    for epoch in range(done, epochs):
        train_epoch(model, batches, loss, optimizer, set_lr)
        if checkpoints:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "done": epoch + 1,
                "rng": torch.get_rng_state(),
            }
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, file.with_suffix(".partial"))
            file.with_suffix(".partial").replace(file)
        print(f"lightly, seed {seed}: epoch {epoch + 1} of {epochs}", flush=True)
    return features(model, x, batches), features(model, x_test, batches)


@torch.inference_mode()
def features(model, images, batches):
    """Return the features of plain images, standardized as lightly trains them."""
    model.eval()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    parts = []
    for start in range(0, len(images), 512):
        x = (images[start : start + 512] / 255 - mean) / std
        x = torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32))
        parts.append(model.backbone(x).numpy())
    return np.concatenate(parts)
