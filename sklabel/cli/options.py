"""Options shared by commands: their values, checks and repetition."""

import argparse
import os
import shlex

from .._core.wording import n_of
from . import signals

# of select that fit has, too, in the command that select prints
_REPEATED = (
    "embedder",
    "weights",
    "cache",
    "no_cache",
    "epochs",
    "image_size",
    "no_flip",
    "seed",
    "checkpoint",
    "skip_broken",
    "device",
    "label_column",
    "path_column",
    "path_prefix",
    "unlabeled",
    "keep_label",
)


def add_embedding(parser):
    parser.add_argument(
        "--embedder",
        default="auto",
        metavar="NAME",
        help="embedder of the images: a published encoder (mobilenet_v2 or another "
        "of torchvision, timm/NAME, open_clip/NAME), a folder written by "
        "--save-embedder, or simclr, which learns from your images alone. NAME+NAME: "
        "the vectors of both, concatenated. Default: mobilenet_v2; simclr if images "
        "are small or there is no network",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="weights of the published encoder: a file, or a name in its library "
        "(default: the recommended weights)",
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        help="train simclr for N epochs (default: 40, more for few images)",
    )
    parser.add_argument(
        "--image-size",
        type=_image_size,
        default=None,
        metavar="PIXELS",
        help="side of the encoder's input in pixels (default: as published; simclr: "
        "64)",
    )
    add_cache(parser)


def add_cache(parser):
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--cache",
        metavar="DIR",
        help="cache vectors in this folder, so that no image is embedded twice "
        "(default: the system's cache folder)",
    )
    group.add_argument("--no-cache", action="store_true", help="cache no vectors")


def add_top(parser):
    parser.add_argument(
        "--top",
        type=positive,
        default=1,
        metavar="N",
        help="write the N most likely classes of an image (default 1)",
    )


def add_page(parser):
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="NAME",
        help="offer this class from the start (can be repeated)",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=10,
        metavar="N",
        help="train again after every N answers (default 10)",
    )
    parser.add_argument(
        "--port", type=_port, default=0, help="port of the page (default: a free one)"
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="only print the address of the page"
    )


def add_lists(parser):
    parser.add_argument(
        "--label-column",
        default="label",
        metavar="NAME",
        help="column of the CSV with the labels (default label)",
    )
    parser.add_argument(
        "--path-column",
        default="path",
        metavar="NAME",
        help="column of the CSV with the paths of the images (default path)",
    )
    parser.add_argument(
        "--path-prefix",
        metavar="TEXT",
        help="prefix of the paths in the CSV, before the path within FOLDER, such as "
        "a URL",
    )
    parser.add_argument(
        "--unlabeled",
        action="append",
        default=[],
        metavar="TEXT",
        help="treat cells with this text, such as NA, as unlabeled (can be repeated)",
    )
    parser.add_argument(
        "--keep-label",
        action="append",
        default=[],
        metavar="TEXT",
        help="treat this text, such as none, as the name of a class (can be repeated)",
    )


def add_training(parser):
    parser.add_argument(
        "--no-flip",
        action="store_true",
        help="do not mirror images: for text, or if left and right matter",
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        default=0,
        help="seed of random numbers; the same seed gives the same result (default 0)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="save the state of training in this folder; the same command continues "
        "from it",
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
    parser.add_argument(
        "--device",
        default="auto",
        help="device to compute on: auto (default), cpu, cuda, cuda:1, mps",
    )
    add_writing(parser)
    add_traceback(parser)


def add_writing(parser):
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing outputs, even files that you changed or that other "
        "programs wrote",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def add_traceback(parser):
    parser.add_argument(
        "--traceback", action="store_true", help="show the Python traceback of an error"
    )


def command_line(command, *words, args=None, **changed):
    """Return a command that can be pasted into a shell.

    Parameters
    ----------
    command : str
    *words : str
        Its positional arguments.
    args : namespace or None
        Of the previous command, whose options are repeated.
    **changed : str or None
        Options with another value; None: without the option.
    """
    defaults = {"seed": 0, "device": "auto", "embedder": "auto"}
    defaults.update(label_column="label", path_column="path")
    given = {n: getattr(args, n) for n in _REPEATED if hasattr(args, n)} | changed
    line = ["sklabel", command]
    # what begins with a dash would be taken for an option
    line += [f"./{word}" if str(word).startswith("-") else str(word) for word in words]
    for name, value in given.items():
        if value not in (None, False, defaults.get(name)):
            for one in value if isinstance(value, list) else [value]:
                line += option(name, one)
    return shlex.join(line)


def option(name, value):
    """Return an option and its value as words of a command."""
    dashed = f"--{name.replace('_', '-')}"
    if value is True:
        return [dashed]
    if str(value).startswith("-"):  # else it would be taken for an option
        return [f"{dashed}={value}"]
    return [dashed, str(value)]


def lists_and_folder(args):
    """Return lists and the folder of ``args.paths``, which comes last."""
    paths, command = args.paths, args.command
    folders = [path for path in paths if os.path.isdir(path)]
    if len(paths) < 2:
        missing = "CSV" if folders else "FOLDER"
        raise ValueError(f"{missing} is missing (see sklabel {command} --help)")
    if not folders and os.path.isfile(paths[-1]):
        raise ValueError(
            f"{paths[-1]} is a file, but the folder of the images must come last (see "
            f"sklabel {command} --help)"
        )
    if len(folders) == 1 and paths[-1] != folders[0]:
        csvs = [path for path in paths if path not in folders]
        right = reordered(args.argv, paths, [*csvs, *folders])
        raise ValueError(f"the CSV comes first, then the folder: {right}")
    return paths


def reordered(argv, paths, right):
    """Return the command that was given, with its paths in another order."""
    left, places = list(paths), []
    for place, word in enumerate(argv):
        if word in left and not argv[place - 1].startswith("--"):
            left.remove(word)
            places.append(place)
    if left:  # one of them may be the value of an option
        return command_line(argv[0], *right)
    line = list(argv)
    for place, word in zip(places, right, strict=True):
        line[place] = word
    return shlex.join(["sklabel", *line])


def _port(text):
    port = positive(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 65535")
    return port


def share(text):
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return number


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
    with signals.loading():
        import torch

        from .._core.net import resolve_device

    try:
        torch.empty(0, device=resolve_device(name))
    except (ValueError, RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"--device {name!r} is not available here.") from None


def check_n_samples(n_samples, n_images, kind=""):
    if n_samples > n_images:
        images = " ".join(filter(None, [n_of(n_images, "image"), kind]))
        raise ValueError(f"--n-samples {n_samples} is more than the {images}.")
