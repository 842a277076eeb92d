"""sklabel demo: label handwritten digits from a few well-chosen ones."""

import time
from pathlib import Path
from typing import NamedTuple

import sklabel

from . import models, options, outputs, tables

_EMBEDDING_SHARE = 1  # of the bar, in trainings of the classifier
_CHOSEN, _RANDOM = "TypiClust", "random"
_SKLABEL, _SKLEARN = "sklabel", "scikit-learn"
_ARMS = [(_CHOSEN, _SKLABEL), (_CHOSEN, _SKLEARN)]
_ARMS += [(_RANDOM, _SKLABEL), (_RANDOM, _SKLEARN)]


def add_parser(commands):
    parser = commands.add_parser(
        "demo",
        help="label 1,797 handwritten digits from 20 labels, in seconds",
        description="Choose a few of the 1,797 handwritten digits of scikit-learn, "
        "label the rest from them, and compare the result with a random choice and "
        "with scikit-learn's LabelSpreading. Needs no network.",
    )
    parser.add_argument(
        "--out",
        default="sklabel-demo",
        metavar="DIR",
        help="folder for the results (default sklabel-demo)",
    )
    parser.add_argument(
        "--seeds", type=options.positive, default=1, help="number of runs (default 1)"
    )
    parser.add_argument(
        "--n-samples",
        type=options.positive,
        default=20,
        help="number of labels (default 20)",
    )
    parser.add_argument(
        "--epochs",
        type=options.positive,
        help="use a SimCLR embedding, trained for N epochs, instead of the pixels",
    )
    parser.add_argument(
        "--steps",
        type=options.positive,
        help="train FixMatch on that embedding for N steps (400 are good), instead "
        "of the classifier of vectors",
    )
    options.add_common(parser)
    parser.set_defaults(run=run)


def run(args):
    """Label scikit-learn's digits from a few chosen ones, and from random ones."""
    import numpy as np
    from tqdm.auto import tqdm

    options.check_device(args.device)
    images, target = sklabel.datasets.load_digit_images(return_X_y=True)
    options.check_n_samples(args.n_samples, len(images))
    folder = Path(args.out)
    sheet, table = folder / "chosen.png", folder / "labels.csv"
    outputs.check_new_folder(folder, (sheet.name, table.name), "--out", args)
    if folder.exists():
        outputs.check_picture(sheet, "--out", args)
        outputs.check_csv(table, "--out", args)

    models.prepare()  # all that is timed below
    results = {arm: [] for arm in _ARMS}
    with tqdm(
        total=args.seeds * (_EMBEDDING_SHARE + len(_ARMS)),
        bar_format="{desc} {percentage:3.0f}% |{bar}| "
        "{elapsed} elapsed, {remaining} left",
        disable=args.quiet,
    ) as bar:
        for seed in range(args.seeds):
            stage = f"run {seed + 1} of {args.seeds}:"
            bar.set_description_str(f"{stage} embed")
            start = time.perf_counter()
            embedded = _vectors(images, seed, args, bar)
            shared = time.perf_counter() - start
            for choice, labeler in _ARMS:
                bar.set_description_str(f"{stage} {choice}, {labeler}")
                start = time.perf_counter()
                selector = _selector(choice, args.n_samples, seed).fit(embedded.Z)
                rows = selector.sample_indices_
                y = np.full(len(target), -1)
                y[rows] = target[rows]  # the person's answers; no other label is read
                label = _label if labeler == _SKLABEL else _spread
                labels, confidence = label(embedded, y, seed, args, bar)
                rest = y == -1
                accuracy = float((labels[rest] == target[rest]).mean())
                seconds = shared + time.perf_counter() - start
                covered = len(np.unique(target[rows]))
                results[choice, labeler].append((covered, accuracy, seconds))
                if seed == 0 and (choice, labeler) == _ARMS[0]:
                    first = selector, embedded.Z, labels, confidence
        bar.update(bar.total - bar.n)  # sums of fractions
    folder.mkdir(parents=True, exist_ok=True)
    picture = outputs.picture(_sheet(images, target, *first[:2]), args.command)
    content = tables.as_marked(args.command, *_table(target, *first))
    with outputs.writing(args, csv=(table, content), picture=(sheet, picture)):
        pass
    n_classes = len(np.unique(target))
    text = _as_text(results, args.n_samples, len(target), n_classes)
    files = f"Chosen images by cluster: {sheet}. Labels of run 1: {table}."
    outputs.show(f"{text}\n{files}\n")


class _Vectors(NamedTuple):
    """Vectors of images, and their embedder, if it was trained."""

    images: object
    Z: object
    embedder: object


def _vectors(images, seed, args, bar):
    if args.epochs is None and args.steps is None:
        bar.update(_EMBEDDING_SHARE)
        return _Vectors(images, images.reshape(len(images), -1), None)
    embedder = _embed(images, seed, args, bar)
    return _Vectors(images, embedder.transform(images), embedder)


def _selector(choice, n_samples, seed):
    selection = sklabel.selection
    make = (
        selection.TypiClustSelector if choice == _CHOSEN else selection.RandomSelector
    )
    return make(n_samples, random_state=seed)


def _embed(images, seed, args, bar):
    embedder = sklabel.embedding.SimCLRTransformer(
        # a mirrored digit is another sign, and so is a piece of one; hands slant, and
        # pens differ little
        augment=sklabel.augment.Contrastive(
            flip=0, crop=(0.4, 1.0), rotate=15, jitter=0.2
        ),
        max_epochs=args.epochs or 25,
        random_state=seed,
        device=args.device,
        net_params=_moving(bar, _EMBEDDING_SHARE),
    ).fit(images)
    models.stop_if_interrupted(embedder)
    return embedder


def _label(embedded, y, seed, args, bar):
    """Return a class and a confidence for every image."""
    import numpy as np

    given = np.unique(y[y >= 0])
    if len(given) == 1:  # nothing to tell apart: so few labels name one class only
        bar.update(1)
        return np.full(len(y), given[0]), np.ones(len(y))
    if args.steps is None:
        X = embedded.Z
        classifier = sklabel.classification.EmbeddingClassifier(
            random_state=seed, device=args.device
        ).fit(X, y)
        bar.update(1)
    else:
        X = embedded.images
        classifier = sklabel.classification.FixMatchClassifier(
            backbone=embedded.embedder,
            weak_augment=sklabel.augment.Weak(flip=0),
            max_steps=args.steps,
            batch_size=20,
            random_state=seed,
            device=args.device,
            net_params=_moving(bar, 1),
        ).fit(X, y)
    models.stop_if_interrupted(classifier)
    confidence = models.confidence(classifier.predict_proba(X))
    return classifier.transduction_, np.where(y >= 0, 1.0, confidence)


def _spread(embedded, y, seed, args, bar):
    """The same by scikit-learn, on the same vectors."""
    from sklearn.semi_supervised import LabelSpreading

    spread = LabelSpreading(kernel="knn", n_neighbors=7).fit(embedded.Z, y)
    bar.update(1)
    return spread.transduction_, spread.label_distributions_.max(axis=1)


def _moving(bar, amount):
    """Return the settings of a net that updates the bar while it trains."""
    from .._core.net import Progress

    start = bar.n
    return {
        "callbacks": [
            Progress(lambda share: bar.update(start + amount * share - bar.n))
        ]
    }


def _sheet(images, target, selector, Z):
    import numpy as np

    from .._core.display import cluster_sheet

    chosen, stands_for = selector.sample_indices_, selector.assignments_
    unit = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    distance = 1 - (unit * unit[chosen][stands_for]).sum(axis=1)
    captions = [f"label {label}" for label in target[chosen]]
    return cluster_sheet(images, chosen, stands_for, distance, captions)


def _table(target, selector, Z, labels, confidence):
    import numpy as np

    source = np.where(selector.support_, "given", "predicted")
    rows = zip(range(len(target)), labels, confidence, source, target, strict=True)
    return (
        ["image", "label", "confidence", "source", "truth"],
        [[i, k, f"{p:.4f}", s, t] for i, k, p, s, t in rows],
    )


def _as_text(results, n_samples, n_images, n_classes):
    import numpy as np

    lines = [
        f"{n_images - n_samples} of {n_images} digits labeled from {n_samples} labels",
        "",
        f"{'chosen by':<11}{'labeled by':<14}{'classes covered':<17}"
        f"{'accuracy on the rest':<22}seconds",
    ]
    for (choice, labeler), runs in results.items():
        coverage, accuracy, seconds = np.array(runs).T
        spread = f" +- {accuracy.std(ddof=1):.3f}" if len(runs) > 1 else ""
        lines.append(
            f"{choice:<11}{labeler:<14}{f'{coverage.mean():.1f} of {n_classes}':<17}"
            f"{f'{accuracy.mean():.3f}{spread}':<22}{seconds.mean():.1f}"
        )
    runs = len(results[_ARMS[0]])
    of = f"Mean +- standard deviation of {runs} runs" if runs > 1 else "One run"
    return "\n".join(lines) + (
        f"\n\n{of}; accuracy on the images without a given label.\n"
        "scikit-learn: LabelSpreading on the same vectors."
    )
