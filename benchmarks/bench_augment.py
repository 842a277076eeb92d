"""Speed of augmentations: ours, kornia's batched ones, torchvision's per image.

All candidates take turns in one run, in a new order each round, on the same number of
threads; per-image candidates use one core, and their rate is multiplied by the number
of threads, as that many loader workers would reach at best.
"""

import argparse
import os

import numpy as np
import torch
from _common import alternate, machine

from sklabel.augment import Contrastive, RandAugment, Weak

JITTER = (0.4, 0.4, 0.4, 0.1)


def contrastive(x, images):
    """Return SimCLR's policy at 32 x 32 by every library: {name: (function, views)}."""
    from torchvision import transforms as T

    channels, side = x.shape[1], x.shape[2]
    ours = Contrastive()
    colors = [T.RandomApply([T.ColorJitter(*JITTER)], p=0.8), T.RandomGrayscale(0.2)]
    single = T.Compose(
        [T.RandomResizedCrop(side), T.RandomHorizontalFlip()]
        + (colors if channels == 3 else [T.RandomApply([T.ColorJitter(0.4, 0.4)], 0.8)])
    )
    found = {
        "sklabel": (lambda: ours(x), len(x)),
        "torchvision on PIL": (lambda: [single(i) for i in images], len(images)),
    }
    K = kornia_augmentation()
    if K is not None:
        colors = [K.ColorJitter(*JITTER, p=0.8), K.RandomGrayscale(p=0.2)]
        if channels == 1:
            colors = [K.RandomBrightness((0.6, 1.4)), K.RandomContrast((0.6, 1.4))]
        kornia = torch.nn.Sequential(
            K.RandomResizedCrop((side, side)), K.RandomHorizontalFlip(), *colors
        )
        found["kornia"] = (lambda: kornia(x), len(x))
    return found


def randaugment(x, images):
    """Return two operations by every library; ours draws per image."""
    from torchvision.transforms import v2

    ours, always = RandAugment(), RandAugment(probability=1.0, cutout=0)
    single = v2.RandAugment(2, 9)
    few = (x[: len(images)] * 255).to(torch.uint8)
    found = {
        "sklabel": (lambda: ours(x), len(x)),
        "sklabel, both ops always, no hole": (lambda: always(x), len(x)),
        "torchvision v2 on PIL": (lambda: [single(i) for i in images], len(images)),
        "torchvision v2 on tensors": (lambda: [single(i) for i in few], len(few)),
    }
    K = kornia_augmentation()
    if K is not None and x.shape[1] == 3:
        kornia = K.auto.RandAugment(n=2, m=10)
        # the method draws for each image; kornia's draws once for what it is given
        found["kornia (one draw for the whole batch)"] = (lambda: kornia(x), len(x))
        found["kornia, a draw for each image"] = (
            lambda: [kornia(image[None]) for image in x[: len(images)]],
            len(images),
        )
    return found


def weak(x, images):
    """Return mirror image and shift, for comparison with the network's own time."""
    ours = Weak()
    return {"sklabel": (lambda: ours(x), len(x))}


def kornia_augmentation():
    """Return kornia's module, or None where it is not installed."""
    try:
        import kornia.augmentation as K
    except ImportError:
        return None
    return K


def report(title, found, rounds, seed):
    """Print views per second of each candidate, and how many times ours that is."""
    seconds = alternate({k: f for k, (f, _) in found.items()}, rounds, seed)
    n_threads = torch.get_num_threads()
    rates = {}
    for name, times in seconds.items():
        workers = n_threads if "torchvision" in name else 1
        rates[name] = workers * found[name][1] / times
    print(f"\n{title}\n{'':40s}{'views/s':>10s}{'ours is, times':>16s}{'worst':>8s}")
    for name, rate in rates.items():
        line = f"{name:40s}{np.median(rate):10.0f}"
        if not name.startswith("sklabel"):
            ratio = rates["sklabel"] / rate
            line += f"{np.median(ratio):16.2f}{ratio.min():8.2f}"
        print(line)


def main():
    """Run every policy on both image sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--single", type=int, default=64, help="images one by one")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from torchvision.transforms.functional import to_pil_image

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    print(machine())
    for channels, side in ((3, 32), (1, 28)):
        x = torch.randint(256, (args.batch_size, channels, side, side)) / 255
        images = [to_pil_image(image) for image in x[: args.single]]
        shape = f"{side} x {side} x {channels}, batches of {args.batch_size}"
        for policy in (contrastive, randaugment, weak):
            title = f"{policy.__name__}, {shape}, {args.threads} threads"
            report(title, policy(x, images), args.rounds, args.seed)
    print(machine())


if __name__ == "__main__":
    main()
