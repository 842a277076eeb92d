"""Models of the commands: trained, kept in a folder, taken from one."""

from contextlib import suppress
from pathlib import Path

import sklabel

from . import options, outputs, signals

_IMAGE_SIZE = 64


def prepare():
    """Load what trains and predicts, which takes seconds."""
    with signals.loading():
        for task in ("embedding", "classification", "selection"):
            getattr(sklabel, task)


def fit_embedder(images, args):
    """Train an embedding; few images are seen more often."""
    batch_size = min(128, len(images))
    n_batches = -(-len(images) // batch_size)
    embedder = sklabel.embedding.SimCLRTransformer(
        augment=sklabel.augment.Contrastive(flip=0) if args.no_flip else "auto",
        max_epochs=args.epochs or max(40, 400 // n_batches),
        batch_size=max(2, batch_size),
        checkpoint_dir=args.checkpoint,
        device=args.device,
        random_state=args.seed,
        verbose=int(not args.quiet),
    ).fit(images)
    stop_if_interrupted(embedder)
    return embedder


def stop_if_interrupted(estimator):
    # an estimator takes Ctrl-C as "enough"; of a command, nothing is wanted then. It
    # may also have come where a library keeps it to itself
    if estimator.interrupted_ or signals.received():
        raise KeyboardInterrupt


def predict(classifier, images, names):
    """Return (label, confidence) as text for each name."""
    probabilities = classifier.predict_proba(images)
    labels = classifier.classes_[probabilities.argmax(axis=1)]
    confidence = probabilities.max(axis=1)
    return {
        name: (str(label), f"{p:.4f}")
        for name, label, p in zip(names, labels, confidence, strict=True)
    }


def save(estimator, folder, command):
    """Save an estimator with a note that a command has written it."""
    from .._core.persistence import save as save_into

    is_new = not Path(folder).exists()
    try:
        save_into(estimator, folder, written_by=outputs.written_by(command))
    except BaseException:
        if is_new:
            with suppress(OSError):
                Path(folder).rmdir()
        raise


def check_order(args):
    """Raise an error if the model and the folder of photographs are swapped."""
    first, second = (
        Path(place, "estimator.json").is_file() for place in (args.model, args.folder)
    )
    if second and not first:
        right = options.command_line("predict", args.folder, args.model)
        raise ValueError(f"the model comes first, then the folder: {right}")


def load_classifier(args):
    """Return the classifier of the folder ``args.model``."""
    classifier = _load(args.model, args.device)
    if not hasattr(classifier, "classes_"):
        raise ValueError(
            f"{args.model} holds a {type(classifier).__name__}, not a classifier: "
            "name the folder that sklabel fit --model has written."
        )
    return classifier


def load_embedder(args):
    """Return the embedder of ``--embedder``, or None."""
    if args.embedder is None:
        return None
    if args.epochs is not None:
        raise ValueError(
            "--epochs is for training an embedding, and --embedder uses one as it is: "
            "leave one of them out."
        )
    embedder = _load(args.embedder, args.device)
    if not hasattr(embedder, "transform"):
        raise ValueError(
            f"{args.embedder} holds a {type(embedder).__name__}, not an "
            "embedding: name the folder that select --save-embedder has written."
        )
    return embedder


def _load(folder, device):
    from .._core.net import resolve_device

    if not Path(folder).is_dir():
        raise ValueError(f"there is no model folder {folder}.")
    estimator = sklabel.load(folder)
    if device != "auto" and hasattr(estimator, "net_"):
        estimator.net_.device = resolve_device(device)
        estimator.net_.module_.to(estimator.net_.device)
    return estimator


def size_for(embedder, args):
    """Return (height, width) of the images for an embedder, or for one to train."""
    if embedder is None:
        return (args.image_size or _IMAGE_SIZE,) * 2
    size = trained_size(embedder, args.embedder)
    if args.image_size not in (None, *size):
        raise ValueError(
            f"--image-size {args.image_size} does not fit: {args.embedder} "
            f"was trained on images of {size[0]}x{size[1]} pixels. Leave it out."
        )
    return size


def trained_size(estimator, folder):
    """Return (height, width) of the images that an estimator was trained on."""
    shape = getattr(estimator, "sample_shape_", ())
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(
            f"{folder} was trained on samples of shape {tuple(shape)}, not on RGB "
            "images."
        )
    return shape[1:]
