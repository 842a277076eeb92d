"""What the tests of augmentations share: policies, shapes, images."""

import torch

from sklabel import augment as A

POLICIES = {
    "weak": A.Weak(),
    "weak, no flip": A.Weak(flip=0),
    "contrastive": A.Contrastive(),
    "contrastive, all": A.Contrastive(blur=0.5, rotate=20, solarize=0.5),
    "contrastive, plain": A.Contrastive(jitter=0, grayscale=0),
    "port": A.RandAugment(),
    "official": A.RandAugment(table="official", probability=1.0),
    "usb": A.RandAugment(table="usb", n_ops=3, probability=1.0),
    "within": A.RandAugment(weak=A.Weak(), fill=(0.2,)),
    "scan": A.scan_strong(),
    "ctaugment": A.CTAugment(),
}
SHAPES = [(1, 3, 32, 32), (5, 1, 28, 28), (4, 3, 3, 3), (3, 3, 1, 7), (2, 1, 9, 1)]
SHAPES += [(3, 3, 17, 40), (2, 2, 8, 8), (1, 1, 1, 1), (0, 3, 8, 8)]


def images(*shape, dtype=torch.float32):
    return (torch.randint(256, shape) / 255).to(dtype)


def to_batch(image):
    """Return an (H, W, C) array as a batch of one."""
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def from_batch(x):
    return x[0].permute(1, 2, 0).numpy()
