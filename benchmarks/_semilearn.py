"""FixMatch of semilearn (USB), on images held in memory and without a graphics card."""

import importlib.machinery
import sys
import time
import types

import numpy as np
import torch

# it is loaded for speech alone, and only where its build is that of torch
speech = types.ModuleType("torchaudio")
speech.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
sys.modules.setdefault("torchaudio", speech)

from semilearn import BasicDataset, get_algorithm, get_config, get_data_loader
from semilearn.core.hooks import EMAHook, ParamUpdateHook
from semilearn.datasets.augmentation import RandAugment
from torch import nn
from torchvision import transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class _Classifier(nn.Module):
    """A network as semilearn wants it."""

    def __init__(self, body, n_features, n_classes):
        super().__init__()
        self.body, self.head = body, nn.Linear(n_features, n_classes)
        nn.init.xavier_normal_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        h = self.body(x).mean((2, 3))
        return {"logits": self.head(h), "feat": h}


def fixmatch(x, y, body, n_features, steps, batch_size, seed, workers=0):
    """Train, and return a function of images to classes, and the seconds of a step.

    ``y`` holds -1 for unlabeled rows. Their trainer asks for CUDA, so their steps,
    hooks, loaders and augmentations are run by a loop of four lines.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)
    labeled = np.flatnonzero(y >= 0)
    n_classes = int(y.max()) + 1
    config = get_config(
        {
            "algorithm": "fixmatch",
            "net": "wrn_28_2",
            "use_pretrain": False,
            "epoch": 1,
            "num_train_iter": steps,
            "num_eval_iter": 10**9,
            "num_log_iter": 10**9,
            "optim": "SGD",
            "lr": 0.03,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "batch_size": batch_size,
            "uratio": 7,
            "dataset": "none",
            "num_labels": len(labeled),
            "num_classes": n_classes,
            "img_size": x.shape[1],
            "crop_ratio": 0.875,
            "hard_label": True,
            "p_cutoff": 0.95,
            "T": 1.0,
            "gpu": None,
            "rank": 0,
            "world_size": 1,
            "distributed": False,
            "amp": False,
        }
    )
    algorithm = get_algorithm(
        config,
        lambda num_classes, **_: _Classifier(body, n_features, num_classes),
        tb_log=None,
        logger=None,
    )
    border = int(x.shape[1] * 0.125)
    weak = [
        transforms.RandomCrop(x.shape[1], border, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
    ]
    end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    weakly = transforms.Compose(weak + end)
    strongly = transforms.Compose([*weak, RandAugment(3, 5), *end])
    loaders = [
        get_data_loader(
            config,
            BasicDataset("fixmatch", *part, n_classes, weakly, is_ulb, strongly, False),
            size,
            num_workers=workers,
        )
        for part, size, is_ulb in (
            ((x[labeled], y[labeled]), batch_size, False),
            ((x, None), 7 * batch_size, True),
        )
    ]
    EMAHook().before_run(algorithm)
    update, average = ParamUpdateHook(), EMAHook()
    algorithm.model.train()
    start = time.perf_counter()
    for labeled_batch, batch in zip(*loaders, strict=False):
        inputs = {k: v for k, v in {**labeled_batch, **batch}.items() if "idx" not in k}
        algorithm.out_dict, _ = algorithm.train_step(**inputs)
        update.after_train_step(algorithm)
        average.after_train_step(algorithm)
    seconds = (time.perf_counter() - start) / steps

    def predict(x_test, averaged):
        if averaged:
            algorithm.ema.apply_shadow()
        model = algorithm.model.eval()
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        found = []
        with torch.inference_mode():
            for i in range(0, len(x_test), 500):
                part = torch.from_numpy(x_test[i : i + 500]).float() / 255
                part = ((part - mean) / std).permute(0, 3, 1, 2)
                found.append(model(part)["logits"].argmax(1))
        if averaged:
            algorithm.ema.restore()
        return torch.cat(found).numpy()

    return predict, seconds
