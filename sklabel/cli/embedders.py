"""Embedders of photographs: a published encoder, a saved one, or SimCLR."""

import hashlib
import os
import socket
import statistics
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import sklabel

from . import inputs, models, outputs, words

# Of the small ones of torchvision the one that has been measured for this
_AUTO = ("mobilenet_v2", "IMAGENET1K_V1", "14 MB")
_NAMES = ("auto", "simclr")
# Pixels, measured with 40 and 100 labels behind mobilenet_v2: of 28 and 32 pixels in
# color it is ahead of SimCLR (blood cells, CIFAR-10), of 28 in gray behind it (MNIST)
_SMALL, _TINY = 48, 24
_SECONDS = 10  # that a server may be silent
_IMAGE_SIZE = 64  # of SimCLR


class Embedded(NamedTuple):
    """Photographs that can be read, and their embedder.

    Parameters
    ----------
    names : list of str
    X : ndarray
        Input of the embedder: paths, or pixels of one size.
    embedder : estimator
    option : dict
        ``embedder`` and ``weights`` with which another command finds the same one.
    """

    names: list
    X: Any
    embedder: Any
    option: dict


def check(args):
    """Raise an error for options that conflict, or for unwritable outputs."""
    outputs.check_folder(args.cache, "--cache", args)
    kind = args.embedder
    for one in _several(kind) if "+" in kind else ():
        if one in ("", *_NAMES):
            raise ValueError(
                f"--embedder {kind} must name published encoders with + between them, "
                f"and {one!r} is not one."
            )
    is_folder = kind not in _NAMES and Path(kind).is_dir()
    if args.weights is not None and (is_folder or kind in _NAMES):
        raise ValueError(
            f"--weights belongs to an encoder with a name, such as --embedder "
            f"mobilenet_v2, not to --embedder {kind}: leave it out."
        )
    if args.epochs is not None and kind not in _NAMES:
        raise ValueError(
            f"--epochs is for training an embedding, and --embedder {kind} is not "
            "trained: leave one of them out."
        )


def embed(files, args):
    """Return `Embedded` for the photographs that can be read.

    Parameters
    ----------
    files : dict
        Of `inputs.list_images`.
    args : namespace
        Of `options.add_embedding`, `add_cache` and `add_training`.
    """
    kind, why = args.embedder, ""
    if kind == "auto":
        embedder, why = _published(files, args)
        if embedder is not None:
            option = dict(zip(("embedder", "weights"), _AUTO[:2], strict=True))
            return _of_paths(files, args, embedder, option, told=True)
    elif kind != "simclr":
        option = {"embedder": kind, "weights": args.weights}
        is_folder = Path(kind).is_dir()
        embedder = (
            _saved(args) if is_folder else _named(kind, args.weights, files, args)
        )
        if takes_paths(embedder):
            return _of_paths(files, args, embedder, option, told=not is_folder)
        size = models.trained_size(embedder, kind)
        _check_size(size, args)
        names, images = inputs.read_images(files, size, args, embedder)
        return Embedded(names, images, embedder, option)
    size = (args.image_size or _IMAGE_SIZE,) * 2
    names, images = inputs.read_images(files, size, args)
    embedder = inputs.keep_range(_simclr(images, args, why), args)
    return Embedded(names, images, embedder, {"embedder": "simclr"})


def of(classifier):
    """Return the embedder in a classifier, or None."""
    from .._core.learner import unfrozen

    return unfrozen(getattr(classifier, "embedder_", None))


def keep(embedder, args):
    """Set an embedder of files to cache vectors and to mark files it cannot read."""
    embedder.set_params(
        cache_dir=args.kept, on_error="skip", max_pixels=args.max_pixels
    )


def takes_paths(estimator):
    """Return whether an embedder reads files itself, each at its own size."""
    return isinstance(estimator, sklabel.embedding.PretrainedTransformer)


def _of_paths(files, args, embedder, option, told):
    keep(embedder, args)
    names, paths = inputs.readable(embedder, files, args, told=told)
    return Embedded(names, paths, embedder, option)


def _check_size(size, args):
    if args.image_size not in (None, *size):
        raise ValueError(
            f"--image-size {args.image_size} does not fit: {args.embedder} "
            f"was trained on images of {size[0]}x{size[1]} pixels. Leave it out."
        )


# -- what others have trained


def _saved(args):
    embedder = models.load(args.embedder, args.device)
    if not hasattr(embedder, "transform"):
        raise ValueError(
            f"{args.embedder} holds a {type(embedder).__name__}, not an embedder: give "
            "the folder that select --save-embedder has written."
        )
    if takes_paths(embedder):
        # what it sees was set when it was made
        _check_size(embedder.net_.module_.frame.size, args)
    return embedder


def _named(name, weights, files, args):
    """Return a published encoder."""
    names, given = _several(name), _several(weights or "DEFAULT")
    if len(given) not in (1, len(names)):
        raise ValueError(
            f"--weights names {len(given)} files or sets, but --embedder names "
            f"{len(names)} encoders: give one for each, with + between them."
        )
    given = [os.path.abspath(one) if Path(one).is_file() else one for one in given]
    embedder = sklabel.embedding.PretrainedTransformer(
        names if len(names) > 1 else names[0],
        weights=given if len(given) > 1 else given[0],
        input_size=args.image_size,
        on_error="skip",
        max_pixels=args.max_pixels,
        device=args.device,
        random_state=args.seed,
    )
    try:
        return embedder.fit(list(files.values()))
    except ValueError as error:
        if "is unknown" in str(error):
            raise ValueError(f"there is no model folder {name}, and {error}") from None
        raise


def _several(text):
    """Return the parts between plus signs; file names may contain them too."""
    return [text] if Path(text).exists() else text.split("+")


def _published(files, args):
    """Return a small published encoder, or None and the reason."""
    if args.epochs is not None:  # of a training
        return None, ""
    too_small = _too_small(files, args)
    if too_small:
        return None, f"Published encoders do not work well on {too_small}."
    name, weights, size = _AUTO
    try:
        with _impatient():
            embedder = _named(name, weights, files, args)
    except OSError as error:
        inputs.say(str(error))
        return None, ""
    import torch

    place = Path(torch.hub.get_dir(), "checkpoints")
    inputs.say(
        f"embedding with {name} (torchvision, {weights}, {size} in {place}); vectors "
        f"are kept in {args.kept}.",
        args,
    )
    return embedder, ""


def _too_small(files, args):
    """Describe images too small for an encoder of photographs, or return None."""
    from .._core.image_files import ImageFiles

    if args.image_size is not None:
        small = args.image_size < _SMALL
        return f"images of {args.image_size} pixels" if small else None
    paths = list(files.values())
    some = paths[:: -(-len(paths) // 200)]
    images = ImageFiles(some, (16, 16), skip=True, max_pixels=args.max_pixels)
    sizes = images.sizes()
    side = int(statistics.median(min(size) for size in sizes))
    if side >= _SMALL:
        return None
    if side < _TINY:
        return f"images of {side} pixels"
    pixels = images[range(0, len(some), 4)].astype(int)
    spread = (pixels.max(axis=3) - pixels.min(axis=3)).mean(axis=(1, 2))
    return f"gray images of {side} pixels" if (spread < 8).mean() > 0.5 else None


@contextmanager
def _impatient():
    """Give up on an unresponsive server after seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# -- SimCLR on the photographs themselves


def _simclr(images, args, why):
    """Return SimCLR trained on these images, now or by an earlier command.

    Parameters
    ----------
    images : ndarray of uint8 of shape (n, height, width, 3)
    args : namespace
    why : str
        Why no published encoder is used.
    """
    embedder = _new_simclr(images, args)
    if args.checkpoint is not None:  # what is learned is kept there
        return _train(images, embedder, args, why)
    place = args.kept / "simclr" / _digest(images, embedder)
    if (place / "estimator.json").exists():
        with suppress(ValueError):  # damaged: it is trained again
            found = models.load(place, args.device)
            inputs.say(f"the earlier SimCLR embedding is used, from {place}.", args)
            return found
    _train(images, embedder, args, why)
    try:
        embedder.save(place)
    except OSError as error:
        inputs.say(f"warning: the embedding could not be saved: {error}.")
    return embedder


def _train(images, embedder, args, why):
    _announce(images, embedder, args, why)
    embedder.fit(images)
    models.stop_if_interrupted(embedder)
    return embedder


def _new_simclr(images, args):
    """Return SimCLR for these images; with few images, epochs are more."""
    batch_size = max(2, min(128, len(images)))
    n_batches = -(-len(images) // batch_size)
    return sklabel.embedding.SimCLRTransformer(
        augment=sklabel.augment.Contrastive(flip=0) if args.no_flip else "auto",
        max_epochs=args.epochs or max(40, 400 // n_batches),
        batch_size=batch_size,
        checkpoint_dir=args.checkpoint,
        device=args.device,
        random_state=args.seed,
        verbose=int(not args.quiet),
    )


def _announce(images, embedder, args, why):
    """Print the expected time of training, measured in a few steps."""
    n_steps = embedder.max_epochs * max(1, len(images) // embedder.batch_size)
    if args.quiet or n_steps < models.LONG:
        return
    seconds = models.time_of_a_step(lambda n: _trial(images, embedder, n))
    inputs.say(
        f"{why} SimCLR is trained on these {len(images)} images alone: {n_steps} "
        f"steps, {words.duration(seconds * n_steps)}."
    )


def _trial(images, embedder, n_steps):
    from sklearn.base import clone

    changed = {"max_steps": n_steps, "checkpoint_dir": None, "verbose": 0}
    trial = clone(embedder).set_params(**changed)
    return trial.fit(images[: n_steps * embedder.batch_size])


def _digest(images, embedder):
    """Return a name for the embedding learned from these images."""
    import torch

    told = embedder.get_params(deep=False)
    for name in ("checkpoint_dir", "device", "verbose"):
        del told[name]
    key = repr((sklabel.__version__, torch.__version__, images.shape, told))
    digest = hashlib.blake2b(key.encode(), digest_size=12)
    digest.update(images)
    return digest.hexdigest()
