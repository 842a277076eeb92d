"""Models of the commands: saving, loading and predicting."""

import time
import warnings
from contextlib import suppress
from pathlib import Path

import sklabel

from . import lists, options, outputs, signals

LONG = 100  # steps; the expected time of shorter trainings is not printed
_SURE = 0.9
_MOST = 0.9999  # rounded to 1, a prediction would seem to be certain


def prepare():
    """Import the libraries that train and predict, which takes seconds."""
    with signals.loading():
        for task in ("embedding", "classification", "selection"):
            getattr(sklabel, task)


def stop_if_interrupted(estimator):
    # an estimator takes Ctrl-C as "enough"; of a command, nothing is wanted then. It
    # may also have come where a library keeps it to itself
    if estimator.interrupted_ or signals.received():
        raise KeyboardInterrupt


def time_of_a_step(train):
    """Return the seconds of a step of training.

    Parameters
    ----------
    train : callable
        ``train(n)`` returns an estimator that has been trained for n steps.
    """
    seconds = []
    for n in (1, 4):
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stop_if_interrupted(train(n))
        seconds.append(time.perf_counter() - start)
    return max(0.0, seconds[1] - seconds[0]) / 3


def predict(classifier, images, names, top=1):
    """Return the predictions {name: `lists.Entry`}.

    Parameters
    ----------
    classifier : estimator
    images : array-like
        Input of the classifier.
    names : list of str
    top : int
        Number of classes per image, the most likely first.
    """
    import numpy as np

    p = np.minimum(classifier.predict_proba(images), _MOST)
    order = np.argsort(-p, axis=1, kind="stable")[:, :top]
    found = {}
    for name, best, row in zip(names, order, p, strict=True):
        told = [(str(classifier.classes_[k]), f"{row[k]:.4f}") for k in best]
        found[name] = lists.predicted_entry(name, *told[0], tuple(told[1:]))
    return found


def confidence(probabilities):
    """Return the largest probability of each row, for display."""
    return probabilities.max(axis=1).clip(max=_MOST)


def outlook(classifier, entries):
    """Return the estimated accuracy of the predicted labels, in words.

    Parameters
    ----------
    classifier : estimator
    entries : list of `lists.Entry`
    """
    confidence = [float(e.confidence) for e in entries if e.source == "predicted"]
    if not confidence:
        return ""
    n_sure = sum(p >= _SURE for p in confidence)
    sure = f"{n_sure} have a confidence of at least {_SURE:.0%}".replace("%", " %")
    others = f"Of the other {len(confidence)} labels "
    if not hasattr(classifier, "estimated_accuracy_"):
        return f"{others}{sure}."
    low, high = classifier.estimated_accuracy_interval_
    about = classifier.estimated_accuracy_
    return (
        f"{others}about {100 * about:.0f} % are right, between {100 * low:.0f} and "
        f"{100 * high:.0f} %; {sure}."
    )


def save(estimator, folder, command):
    """Save an estimator with a note on the command that wrote it."""
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
    classifier = load(args.model, args.device)
    if not hasattr(classifier, "classes_"):
        raise ValueError(
            f"{args.model} holds a {type(classifier).__name__}, not a classifier: give "
            "the folder that sklabel fit --model has written."
        )
    return classifier


def load(folder, device):
    """Return the estimator saved in a folder, on a device."""
    from sklearn.frozen import FrozenEstimator

    from .._core.net import resolve_device

    if not Path(folder).is_dir():
        raise ValueError(
            f"there is no model folder {folder}: give a folder that --model or "
            "--save-embedder has written."
        )
    estimator = sklabel.load(folder)
    part = estimator
    while device != "auto" and part is not None:
        if isinstance(part, FrozenEstimator):
            part = part.estimator
        part.set_params(device=device)
        if hasattr(part, "net_"):
            part.net_.device = resolve_device(device)
            part.net_.module_.to(part.net_.device)
        part = getattr(part, "embedder_", None)
    return estimator


def size_on_disk(folder):
    """Return the size of a model's files, in words."""
    n_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    return f"{n_bytes / 1e6:.{0 if n_bytes >= 1e7 else 1}f} MB"


def trained_size(estimator, folder):
    """Return (height, width) of the images that an estimator was trained on."""
    shape = getattr(estimator, "sample_shape_", ())
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(
            f"{folder} was trained on samples of shape {tuple(shape)}, not on RGB "
            "images."
        )
    return shape[1:]
