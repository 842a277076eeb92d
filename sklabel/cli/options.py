"""Options that several commands have, and what they may be."""

import argparse


def add_embedding(parser):
    parser.add_argument(
        "--embedder", metavar="DIR", help="use this embedding, do not train one"
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        help="epochs of the embedding (default: 40, more for few images)",
    )
    parser.add_argument(
        "--image-size",
        type=_image_size,
        default=None,
        metavar="PIXELS",
        help="side to which images are resized (default 64)",
    )


def add_training(parser):
    parser.add_argument(
        "--no-flip",
        action="store_true",
        help="the images have a right and a left, such as text",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="(default 0)")
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="keep the state of training here; the same command continues from it",
    )
    add_reading(parser)


def add_reading(parser):
    parser.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out image files that cannot be read",
    )
    parser.add_argument(
        "--max-pixels",
        type=positive,
        metavar="N",
        help="read image files of up to N pixels (default 178,956,970)",
    )
    add_common(parser)


def add_common(parser):
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error comes from"
    )


def positive(text):
    return _whole_number(text, 1)


def _image_size(text):
    # from 8 on no side can be taken for the color channels
    return _whole_number(text, 8)


def _seed(text):
    return _whole_number(text, 0)


def _whole_number(text, least):
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or number < least or number >= 2**31:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of at least {least}"
        )
    return number


def check_device(name):
    import torch

    from .._core.net import resolve_device

    try:
        torch.empty(0, device=resolve_device(name))
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"the device {name!r} is not available here.") from None


def check_n_samples(n_samples, n_images, kind=""):
    if n_samples > n_images:
        images = " ".join(filter(None, [f"{n_images} images", kind]))
        raise ValueError(f"--n-samples {n_samples} is more than the {images}.")
