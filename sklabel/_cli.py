"""What the commands do: read a folder and a CSV, run the estimators, write files."""

import csv
import io
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from tqdm.auto import tqdm

from ._core.display import cluster_sheet, contact_sheet
from ._core.health import watch_features
from ._core.image_files import ImageFiles
from ._core.net import resolve_device
from ._core.persistence import load
from .augment import Contrastive, Weak
from .classification import FixMatchClassifier
from .datasets import load_digit_images, load_image_folder
from .embedding import SimCLRTransformer
from .selection import RandomSelector, USLSelector

_IMAGE_SIZE = 64
_EMBEDDING_SHARE = 1  # of the demo's bar, in trainings of the classifier
_BLOCK = 256  # images that are read before Ctrl-C is noticed


# -- the commands


def select(arguments):
    """Choose the images of a folder worth a label; write a CSV and a contact sheet."""
    _check_device(arguments.device)
    files = _list_images(arguments.folder)
    out = Path(arguments.out)
    sheet = Path(arguments.sheet or out.with_suffix(".png"))
    known = {}
    if arguments.labeled is not None:
        known = _read_labels(arguments.labeled, "label", files, arguments.folder)
    n_open = len(files) - len(known)
    _check_budget(arguments.n_samples, n_open, "without a label" if known else "")
    if sheet == out:
        raise ValueError(f"--out and the contact sheet are both {out}: give --sheet.")
    if Path(arguments.folder).resolve() in sheet.resolve().parents:
        raise ValueError(
            f"the contact sheet {sheet} would lie among the images of "
            f"{arguments.folder} and be taken for one: give --sheet or --out another "
            "folder."
        )
    for path in (out, sheet):
        _check_output(path)
    _check_not_filled_in(out)
    _check_output_folder(arguments.save_embedder)

    embedder = _load_embedder(arguments)
    images, good = _read_images(files, _size_for(embedder, arguments), arguments)
    names = [name for name, ok in zip(files, good, strict=True) if ok]
    y = np.array([known.get(name, -1) for name in names], dtype=object)
    _check_budget(arguments.n_samples, int((y == -1).sum()), "that can be read")
    if embedder is None:
        embedder = _fit_embedder(images, arguments)
    selector = USLSelector(arguments.n_samples, random_state=arguments.seed)
    chosen = selector.fit(embedder.transform(images), y).sample_indices_
    asked = [names[row] for row in chosen]

    if arguments.save_embedder is not None:
        _save(embedder, arguments.save_embedder)
    picture = contact_sheet([files[name] for name in asked], asked)
    with _replacing(sheet) as partial:
        picture.save(partial, format="PNG")
    _write_csv(out, ["path", "label"], [[name, ""] for name in asked])
    print(
        f"{len(asked)} of {len(names)} images to label, the most telling first: write "
        f"their labels into {out}, {sheet} shows them. Then: sklabel fit {out} "
        f"{arguments.folder}"
    )


def fit(arguments):
    """Train on a filled-in CSV and label every image of a folder."""
    _check_device(arguments.device)
    files = _list_images(arguments.folder)
    given = _read_labels(arguments.csv, arguments.label_column, files, arguments.folder)
    _check_classes(given, arguments)
    out = Path(arguments.out)
    if out.exists() and out.samefile(arguments.csv):
        raise ValueError(f"--out {out} is the file with your labels: give another.")
    _check_output(out)
    _check_output_folder(arguments.model)

    embedder = _load_embedder(arguments)
    images, good = _read_images(files, _size_for(embedder, arguments), arguments)
    names = [name for name, ok in zip(files, good, strict=True) if ok]
    y = np.array([given.get(name, -1) for name in names], dtype=object)
    _check_classes({n: given[n] for n in names if n in given}, arguments)
    if embedder is None:
        embedder = _fit_embedder(images, arguments)
    classifier = FixMatchClassifier(
        backbone=embedder,
        weak_augment=Weak(flip=0) if arguments.no_flip else "auto",
        max_steps=arguments.steps or 400,
        batch_size=16,
        checkpoint_dir=arguments.checkpoint,
        device=arguments.device,
        random_state=arguments.seed,
        verbose=int(not arguments.quiet),
    ).fit(images, y)
    _stop_if_interrupted(classifier)

    predicted = _predict(classifier, images, names)
    rows = []
    for name in files:
        label, confidence = predicted.get(name, ("", ""))
        source = "predicted" if name in predicted else ""
        if name in given:
            label, confidence, source = given[name], "1.0000", "given"
        rows.append([name, label, confidence, source])
    if arguments.model is not None:
        _save(classifier, arguments.model)
    _write_csv(out, ["path", "label", "confidence", "source"], rows)
    counts = {
        str(c): sum(row[1] == str(c) for row in rows) for c in classifier.classes_
    }
    print(
        f"{len(rows)} images in {out}, {len(given)} labels given: "
        + ", ".join(f"{label} {count}" for label, count in counts.items())
    )


def predict(arguments):
    """Label the images of a folder with a saved model."""
    _check_device(arguments.device)
    files = _list_images(arguments.folder)
    classifier = _load(arguments.model, arguments.device)
    if not hasattr(classifier, "classes_"):
        raise ValueError(
            f"{arguments.model} holds a {type(classifier).__name__}, not a classifier: "
            "name the folder that sklabel fit --model has written."
        )
    if arguments.out is not None:
        _check_output(Path(arguments.out))
    size = _image_side(classifier, arguments.model)
    images, good = _read_images(files, size, arguments)
    names = [name for name, ok in zip(files, good, strict=True) if ok]
    predicted = _predict(classifier, images, names)
    rows = [[name, *predicted.get(name, ("", ""))] for name in files]
    header = ["path", "label", "confidence"]
    if arguments.out is not None:
        _write_csv(Path(arguments.out), header, rows)
    else:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8")
        sys.stdout.write(_csv_text(header, rows))


def demo(arguments):
    """Label scikit-learn's digits from a few chosen ones, and from random ones."""
    _check_device(arguments.device)
    images, target = load_digit_images(return_X_y=True)
    _check_budget(arguments.n_samples, len(images), "")
    folder = Path(arguments.out)
    _check_output_folder(folder)
    sheet, table = folder / "chosen.png", folder / "labels.csv"
    for path in (sheet, table):
        if folder.exists():
            _check_output(path)

    results = {"chosen by USL": [], "random": []}
    with tqdm(
        total=arguments.seeds * (_EMBEDDING_SHARE + len(results)),
        bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left",
        disable=arguments.quiet,
    ) as bar:
        for seed in range(arguments.seeds):
            run = f"run {seed + 1} of {arguments.seeds}:"
            bar.set_description_str(f"{run} embed")
            start = time.perf_counter()
            embedder = _embed_digits(images, seed, arguments, bar)
            Z = embedder.transform(images)
            shared = time.perf_counter() - start
            for arm, make in zip(results, (USLSelector, RandomSelector), strict=True):
                bar.set_description_str(f"{run} {arm}")
                start = time.perf_counter()
                selector = make(arguments.n_samples, random_state=seed).fit(Z)
                rows = selector.sample_indices_
                y = np.full(len(target), -1)
                y[rows] = target[rows]  # the person's answers; no other label is read
                labels, confidence = _label_digits(
                    images, y, embedder, seed, arguments, bar
                )
                rest = y == -1
                accuracy = float((labels[rest] == target[rest]).mean())
                seconds = shared + time.perf_counter() - start
                results[arm].append((len(np.unique(target[rows])), accuracy, seconds))
                if seed == 0 and make is USLSelector:
                    first = selector, Z, labels, confidence
        bar.update(bar.total - bar.n)  # sums of fractions
    folder.mkdir(parents=True, exist_ok=True)
    _write_demo(sheet, table, images, target, *first)
    n_classes = len(np.unique(target))
    print(_demo_table(results, arguments.n_samples, len(target), n_classes))
    print(f"The chosen images by cluster: {sheet}. The labels of run 1: {table}.")


def _embed_digits(images, seed, arguments, bar):
    tick = _tick(bar, _EMBEDDING_SHARE)

    def watch(net, samples):
        tick(net, samples)
        return watch_features(net, samples)

    embedder = SimCLRTransformer(
        augment=_digit_views(),
        max_epochs=arguments.epochs or 25,
        random_state=seed,
        device=arguments.device,
        net_params={"watch": watch},
    ).fit(images)
    _stop_if_interrupted(embedder)
    return embedder


def _digit_views():
    # a mirrored digit is another sign, and so is a piece of one; hands slant, and pens
    # differ little
    return Contrastive(flip=0, crop=(0.4, 1.0), rotate=15, jitter=0.2)


def _label_digits(images, y, embedder, seed, arguments, bar):
    """Return a class and a confidence for every image."""
    given = np.unique(y[y >= 0])
    if len(given) == 1:  # nothing to tell apart: so few labels name one class only
        bar.update(1)
        return np.full(len(y), given[0]), np.ones(len(y))
    classifier = FixMatchClassifier(
        backbone=embedder,
        weak_augment=Weak(flip=0),
        max_steps=arguments.steps or 400,
        batch_size=20,
        random_state=seed,
        device=arguments.device,
        net_params={"watch": _tick(bar)},
    ).fit(images, y)
    _stop_if_interrupted(classifier)
    probabilities = classifier.predict_proba(images)
    confidence = np.where(y >= 0, 1.0, probabilities.max(axis=1))
    return classifier.transduction_, confidence


def _tick(bar, amount=1):
    """Return a watch for a net that moves the bar in the course of a training."""
    done = 0.0

    def tick(net, samples):
        nonlocal done
        share = amount * net.step_ / net.total_steps_
        bar.update(share - done)
        done = share
        return {}

    return tick


def _write_demo(sheet, table, images, target, selector, Z, labels, confidence):
    chosen, stands_for = selector.sample_indices_, selector.assignments_
    unit = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    distance = 1 - (unit * unit[chosen][stands_for]).sum(axis=1)
    captions = [f"label {label}" for label in target[chosen]]
    picture = cluster_sheet(images, chosen, stands_for, distance, captions)
    with _replacing(sheet) as partial:
        picture.save(partial, format="PNG")
    source = np.where(selector.support_, "given", "predicted")
    rows = zip(range(len(target)), labels, confidence, source, target, strict=True)
    _write_csv(
        table,
        ["image", "label", "confidence", "source", "truth"],
        [[i, k, f"{p:.4f}", s, t] for i, k, p, s, t in rows],
    )


def _demo_table(results, n_samples, n_images, n_classes):
    """Return the results as text."""
    lines = [
        f"{n_images - n_samples} of {n_images} digits labeled from {n_samples} labels",
        "",
        f"{'labels':<15}{'classes covered':<19}{'accuracy on the rest':<24}seconds",
    ]
    for arm, runs in results.items():
        coverage, accuracy, seconds = np.array(runs).T
        spread = f"{accuracy.std(ddof=1):.3f}" if len(runs) > 1 else "-"
        lines.append(
            f"{arm:<15}{f'{coverage.mean():.1f} of {n_classes}':<19}"
            f"{f'{accuracy.mean():.3f} +- {spread}':<24}{seconds.mean():.1f}"
        )
    runs = len(results["random"])
    return "\n".join(lines) + (
        f"\n\nMean +- standard deviation of {runs} runs. Accuracy: on the images "
        "without a given\nlabel. Seconds of a run: embedding (both rows share it), "
        "choice and classifier."
    )


# -- training and prediction


def _fit_embedder(images, arguments):
    """Train an embedding; few images are seen more often."""
    batch_size = min(128, len(images))
    n_batches = -(-len(images) // batch_size)
    embedder = SimCLRTransformer(
        augment=Contrastive(flip=0) if arguments.no_flip else "auto",
        max_epochs=arguments.epochs or max(40, 400 // n_batches),
        batch_size=max(2, batch_size),
        checkpoint_dir=arguments.checkpoint,
        device=arguments.device,
        random_state=arguments.seed,
        verbose=int(not arguments.quiet),
    ).fit(images)
    _stop_if_interrupted(embedder)
    return embedder


def _stop_if_interrupted(estimator):
    # an estimator takes Ctrl-C as "enough"; of a command, nothing is wanted then
    if estimator.interrupted_:
        raise KeyboardInterrupt


def _predict(classifier, images, names):
    """Return (label, confidence) as text for each name."""
    probabilities = classifier.predict_proba(images)
    labels = classifier.classes_[probabilities.argmax(axis=1)]
    confidence = probabilities.max(axis=1)
    return {
        name: (str(label), f"{p:.4f}")
        for name, label, p in zip(names, labels, confidence, strict=True)
    }


def _load(folder, device):
    if not Path(folder).is_dir():
        raise ValueError(f"there is no model folder {folder}.")
    estimator = load(folder)
    if device != "auto" and hasattr(estimator, "net_"):
        estimator.net_.device = resolve_device(device)
        estimator.net_.module_.to(estimator.net_.device)
    return estimator


def _save(estimator, folder):
    """Save an estimator without what belongs to this machine and this run only."""
    here = {"device": "auto", "checkpoint_dir": None, "verbose": 0}
    if hasattr(estimator, "classes_"):
        here.update({f"backbone__{name}": value for name, value in here.items()})
    estimator.set_params(**here).save(folder)


def _load_embedder(arguments):
    """Return the embedder of ``--embedder``, or None."""
    if arguments.embedder is None:
        return None
    if arguments.epochs is not None:
        raise ValueError(
            "--epochs is for training an embedding, and --embedder uses one as it is: "
            "leave one of them out."
        )
    embedder = _load(arguments.embedder, arguments.device)
    if not hasattr(embedder, "transform"):
        raise ValueError(
            f"{arguments.embedder} holds a {type(embedder).__name__}, not an "
            "embedding: name the folder that select --save-embedder has written."
        )
    return embedder


def _size_for(embedder, arguments):
    if embedder is None:
        return (arguments.image_size or _IMAGE_SIZE,) * 2
    size = _image_side(embedder, arguments.embedder)
    if arguments.image_size not in (None, *size):
        raise ValueError(
            f"--image-size {arguments.image_size} does not fit: {arguments.embedder} "
            f"was trained on images of {size[0]}x{size[1]} pixels. Leave it out."
        )
    return size


def _image_side(estimator, folder):
    shape = getattr(estimator, "sample_shape_", ())
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(
            f"{folder} was trained on samples of shape {tuple(shape)}, not on RGB "
            "images."
        )
    return shape[1:]


def _check_device(name):
    try:
        torch.empty(0, device=resolve_device(name))
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"the device {name!r} is not available here.") from None


# -- reading


def _list_images(folder):
    """Return {path relative to the folder: path} of its images, in natural order."""
    files = {}
    for path in load_image_folder(folder, labels=None).paths:
        name = Path(path).relative_to(Path(folder).expanduser()).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the name of the file {name!a} is not UTF-8: rename it."
            ) from None
        files[name] = path
    if len(files) < 2:
        raise ValueError(f"{folder} holds one image: at least two are needed.")
    return files


def _read_images(files, size, arguments):
    """Decode all images.

    Parameters
    ----------
    files : dict
        Of `_list_images`.
    size : (int, int)
        Height and width to which they are resized.
    arguments : namespace
        ``skip_broken`` and ``quiet`` are used.

    Returns
    -------
    images : ndarray of shape (n_good, height, width, 3), uint8
        They are decoded once for all that is done with them.
    good : ndarray of bool of shape (n_files,)
    """
    paths = list(files.values())
    images = np.empty((len(paths), *size, 3), np.uint8)
    broken = {}

    def decode(row):
        try:
            images[row] = ImageFiles([paths[row]], size)[np.array([0])][0]
        except ValueError as error:
            broken[row] = error.__cause__ or error

    with (
        tqdm(
            total=len(paths), desc="reading", unit="image", disable=arguments.quiet
        ) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for start in range(0, len(paths), _BLOCK):
            block = range(start, min(start + _BLOCK, len(paths)))
            list(pool.map(decode, block))
            bar.update(len(block))
    good = np.ones(len(paths), bool)
    good[list(broken)] = False
    if broken:
        row = min(broken)
        found = (
            f"{len(broken)} of {len(paths)} image files cannot be read"
            f"{', the first is' if len(broken) > 1 else ':'} {paths[row]} "
            f"({broken[row]})"
        )
        if not arguments.skip_broken:
            raise ValueError(
                f"{found}. Repair or remove such files, or leave them out with "
                "--skip-broken."
            )
        if good.sum() < 2:
            raise ValueError(f"{found}. At least two images are needed.")
        print(f"sklabel: {' '.join(found.split())}; left out.", file=sys.stderr)
    return images[good] if broken else images, good


def _read_labels(path, column, files, folder):
    """Return {name: label} of the rows of a CSV that have a label.

    The separator may be a comma, a semicolon or a tab: spreadsheets write all three.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: save it as CSV UTF-8.") from None
    first_line = text.partition("\n")[0]
    separator = max(",;\t", key=first_line.count)
    try:
        table = csv.DictReader(
            io.StringIO(text, newline=""), delimiter=separator, strict=True
        )
        header, rows = list(table.fieldnames or []), list(table)
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV: {error}.") from None
    for name in ("path", column):
        if name not in header:
            found = ", ".join(map(repr, header)) or "none"
            remedy = "" if name == "path" else " Name one with --label-column."
            raise ValueError(f"{path} has no column {name!r}; found: {found}.{remedy}")
    labels, strangers = {}, []
    for row in rows:
        name, label = row["path"] or "", (row[column] or "").strip()
        if not name and not label:
            continue
        if name not in files:
            name = PurePosixPath(name.replace("\\", "/")).as_posix()
        if name not in files:
            strangers.append(row["path"])
        elif label and labels.setdefault(name, label) != label:
            raise ValueError(
                f"{path} has two labels for {name}: {labels[name]!r} and {label!r}."
            )
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise ValueError(
            f"{path} names {strangers[0]!r}{more}, but no such image is in {folder}: "
            "paths count from that folder."
        )
    if "-1" in labels.values():
        raise ValueError(
            f"{path} has the label '-1', which stands for unlabeled in this package: "
            "leave such cells empty, or give the class another name."
        )
    return labels


# -- checks before the long work


def _check_budget(n_samples, n_images, kind):
    if n_samples > n_images:
        images = " ".join(filter(None, [f"{n_images} images", kind]))
        raise ValueError(f"--n-samples {n_samples} is more than the {images}.")


def _check_classes(labels, arguments):
    where = f"the column {arguments.label_column!r} of {arguments.csv}"
    if not labels:
        raise ValueError(
            f"{where} has no label for an image that can be read: fill in some cells."
        )
    classes = set(labels.values())
    if len(classes) == 1:
        raise ValueError(
            f"{where} has one class only, {classes.pop()!r}: label images of another "
            "class too."
        )


def _check_output(path):
    """Raise an error if a file cannot be written, while nothing has been done yet."""
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write {path}: it is not a file.")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"cannot write {path}: it is write-protected.")
    _check_place(path, path.parent)


def _check_output_folder(folder):
    """The same for a folder that may have to be made."""
    if folder is None:
        return
    folder = place = Path(folder)
    while not place.exists():
        place = place.parent
    _check_place(folder, place)


def _check_place(path, folder):
    if not folder.is_dir():
        missing = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"cannot write {path}: {folder} {missing}.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}.") from None


def _check_not_filled_in(path):
    """Raise an error if a CSV holds labels: an hour of somebody's work."""
    if not path.exists():
        return
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        filled = sum(bool((row.get("label") or "").strip()) for row in rows)
    except (UnicodeDecodeError, csv.Error):
        filled = "other"
    if filled or (rows and "label" not in rows[0]):
        raise ValueError(
            f"{path} exists and is no empty list of sklabel select: it is not "
            "overwritten. Give another --out, or remove it."
        )


# -- writing


@contextmanager
def _replacing(path):
    """Yield a place to write to; it becomes ``path`` when all went well."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _csv_text(header, rows):
    text = io.StringIO()
    # until Python 3.13 a lone carriage return is not quoted by itself
    odd = any("\r" in str(cell) for row in rows for cell in row)
    quoting = csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL
    writer = csv.writer(text, lineterminator="\n", quoting=quoting)
    writer.writerows([header, *rows])
    return text.getvalue()


def _write_csv(path, header, rows):
    with _replacing(path) as partial:
        partial.write_bytes(_csv_text(header, rows).encode())
