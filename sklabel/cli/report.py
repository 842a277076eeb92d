"""sklabel report: one HTML file that shows how good the labels of a folder are."""

import datetime
import hashlib
import platform
import shlex
from collections import defaultdict
from pathlib import Path

import sklabel

from .._core.wording import n_of
from . import embedders, inputs, lists, models, options, outputs

_BYTES = 4_000_000  # of all pictures, as text in the file
_SHOWN = 6  # pictures in a row
_ON_MAP = 2000
_SURE = 0.9
_AGREE = 0.995


def add_parser(commands):
    parser = commands.add_parser(
        "report",
        usage="sklabel report [options] LABELS [LABELS ...] FOLDER",
        help="one HTML file that shows how good the labels of a folder are",
        description="Write one HTML page to view and share: numbers of given and "
        "predicted labels per class, estimated accuracy, accuracy by confidence, the "
        "most and least confident images of each class, a map of the images, and how "
        "it was made. The file needs no server and includes the pictures, at most "
        f"{_BYTES / 1e6:.0f} MB.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="LABELS FOLDER",
        help="lists written by fit, predict or import, then the folder of image files",
    )
    parser.add_argument(
        "--out",
        default="report.html",
        metavar="HTML",
        help="page to write (default report.html)",
    )
    parser.add_argument(
        "--title", metavar="TEXT", help="heading of the page (default: from the folder)"
    )
    parser.add_argument(
        "--map",
        choices=("tsne", "pca", "none"),
        default="tsne",
        help="method of the map (default tsne); none: no map and no estimated "
        "accuracy, which both need the embedding",
    )
    options.add_lists(parser)
    options.add_embedding(parser)
    options.add_training(parser)
    parser.set_defaults(run=run)


def run(args):
    """Write the report."""
    from .._pages.report import classes as table_of
    from .._pages.report import curve, figures, made, map_of, page, pictures, thumbnails

    *args.lists, args.folder = options.lists_and_folder(args)
    options.check_device(args.device)
    embedders.check(args)
    files = inputs.list_images(args.folder, least=1)
    entries = lists.entries(args.lists, files, args.folder, args)
    labeled = [entry for entry in entries if entry.label]
    if not labeled:
        raise ValueError(f"there is no label in {' and '.join(args.lists)}.")
    out = Path(args.out)
    outputs.check_page(out, "--out", args)
    outputs.check_folder(args.checkpoint, "--checkpoint", args)

    points, estimate, encoder, note = [], None, None, ""
    names = sorted({str(entry.label) for entry in labeled})
    if args.map != "none" and len(files) > 1:
        models.prepare()
        found, X, embedder, option = embedders.embed(files, args)
        Z = embedder.transform(X)
        estimate = _estimate(Z, found, labeled, args)
        points, note = _map(Z, found, labeled, names, args)
        encoder = " ".join(filter(None, (option["embedder"], option.get("weights"))))

    paths = [files[entry.name] for entry in labeled]
    classes = _classes(labeled, names)
    addresses, n_bytes = thumbnails(paths, _order(classes), _BYTES, args.max_pixels)
    wanted = len(set(_order(classes)))
    missing = wanted - len(addresses)
    told = f"Pictures: {len(addresses)}, {n_bytes / 1e6:.1f} MB of at most "
    told += f"{_BYTES / 1e6:.0f} MB"
    told += f"; {missing} left out or not readable." if missing else "."
    title = args.title or f"Labels of {Path(args.folder).resolve().name}"
    text = page(
        title,
        f"{len(labeled):,} labeled images in {len(names)} classes",
        [
            figures(_figures(labeled, files, estimate)),
            table_of(classes),
            curve(_curve(labeled)),
            map_of(points, names, note),
            pictures(
                classes,
                addresses,
                "The numbers are confidences. Check the least confident images next.",
            ),
            made([*_made(encoder, estimate, args), ("Pictures", told, False)]),
        ],
        sklabel.__version__,
    )
    with outputs.writing(args, file=(out, outputs.as_page(text, args.command))):
        pass
    size = out.stat().st_size / 1e6
    outputs.show(
        f"{out}: {n_of(len(labeled), 'labeled image')}, {size:.1f} MB. {told}\n"
    )


def _estimate(Z, found, labeled, args):
    """Return accuracy, its interval, and how many predictions agree; or None.

    It is that of `fit`: from cross-validation on the labeled images.
    """
    import numpy as np

    given = {e.name: e.label for e in labeled if e.is_given}
    y = inputs.as_y(found, given)
    predicted = {e.name: str(e.label) for e in labeled if not e.is_given}
    if len(set(given.values())) < 2 or not predicted:
        return None
    classifier = sklabel.classification.EmbeddingClassifier(
        device=args.device, random_state=args.seed
    ).fit(Z, y)
    said = dict(zip(found, map(str, classifier.predict(Z)), strict=True))
    same = [said.get(name) == label for name, label in predicted.items()]
    low, high = classifier.estimated_accuracy_interval_
    return classifier.estimated_accuracy_, low, high, float(np.mean(same))


def _map(Z, found, labeled, names, args):
    """Return the points of the map, and its caption."""
    import numpy as np
    from sklearn.decomposition import PCA

    entry_of = {entry.name: entry for entry in labeled}
    rows = np.array([i for i, name in enumerate(found) if name in entry_of])
    if len(rows) < 3:
        return [], ""
    given = np.array([entry_of[found[i]].is_given for i in rows])
    first = np.random.default_rng(args.seed).permutation(len(rows))
    first = first[np.argsort(~given[first], kind="stable")][:_ON_MAP]
    rows = rows[np.sort(first)]
    z = np.asarray(Z, np.float64)[rows]
    z = PCA(min(50, *z.shape), random_state=args.seed).fit_transform(z - z.mean(0))
    how = "principal components"
    if args.map == "tsne" and len(rows) >= 10 and len(np.unique(z, axis=0)) > 3:
        from sklearn.manifold import TSNE

        how = (
            "t-SNE, which keeps neighbors together; distances between groups mean "
            "little"
        )
        perplexity = min(30.0, (len(rows) - 1) / 3)
        z = TSNE(
            perplexity=perplexity, init="pca", random_state=args.seed
        ).fit_transform(z)
    z = np.column_stack([z, np.zeros((len(z), 2))])[:, :2]
    span = np.ptp(z, axis=0).max() or 1.0
    place = (z - z.min(0)) / span + (1 - np.ptp(z, axis=0) / span) / 2
    from .._pages.report import Point

    number = {name: k for k, name in enumerate(names)}
    points = []
    for row, (x, y) in zip(rows, place, strict=True):
        entry = entry_of[found[row]]
        points.append(Point(number[str(entry.label)], x, y, entry.name, entry.is_given))
    some = (
        f"{len(rows):,} of {len(entry_of):,} images"
        if len(rows) < len(entry_of)
        else f"All {len(rows):,} images"
    )
    return points, (
        f"{some} by {how}. The larger dots are given labels; check dots among those of "
        "another class."
    )


def _classes(labeled, names):
    from .._pages.report import Class, Picture

    given, predicted = defaultdict(list), defaultdict(list)
    for row, entry in enumerate(labeled):
        if entry.is_given:
            given[str(entry.label)].append(Picture(row, entry.name, None))
        else:
            p = entry.probability() or 0
            predicted[str(entry.label)].append(Picture(row, entry.name, p))
    found = []
    for name in names:
        own = sorted(predicted[name], key=lambda p: (-p.confidence, p.row))
        mean = sum(p.confidence for p in own) / len(own) if own else None
        half = min(_SHOWN, -(-len(own) // 2))
        least = own[max(half, len(own) - _SHOWN) :][::-1]
        found.append(
            Class(
                name,
                len(given[name]),
                len(own),
                mean,
                own[:half],
                least,
                given[name][:_SHOWN] if not own else [],
            )
        )
    return found


def _order(classes):
    """Return the rows of pictures, the first of every class first."""
    ranked = []
    for c in classes:
        for own in (c.surest, c.least, c.given):
            ranked += [(rank, picture.row) for rank, picture in enumerate(own)]
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])]


def _curve(labeled):
    import numpy as np

    p = [e.probability() for e in labeled if not e.is_given]
    p = [value for value in p if value is not None]
    p = np.sort(np.array(p))[::-1]
    return np.cumsum(p) / np.arange(1, len(p) + 1)


def _figures(labeled, files, estimate):
    """Return name, number and explanation of the key figures."""
    n_given = sum(entry.is_given for entry in labeled)
    p = [e.probability() or 0 for e in labeled if not e.is_given]
    n_open = len(files) - len(labeled)
    told = [
        (
            "Images",
            f"{len(files):,}",
            f"{n_open:,} without a label" if n_open else "all of them labeled",
        ),
        (
            "Given labels",
            f"{n_given:,}",
            f"{len(p):,} others are predicted" if p else "none is predicted",
        ),
    ]
    if estimate is not None:
        about, low, high, same = estimate
        more = (
            f"between {100 * low:.0f} and {100 * high:.0f} %, for the predicted labels"
        )
        if same < _AGREE:
            more += f"; by another classifier, which agrees with {100 * same:.0f} %"
        told.append(("Estimated right", f"{100 * about:.0f} %", more))
    elif p:
        mean = 100 * sum(p) / len(p)
        told.append(("Mean confidence", f"{mean:.0f} %", "of the predicted labels"))
    if p:
        n_sure = sum(value >= _SURE for value in p)
        share = 100 * n_sure / len(p)
        told.append(
            (
                f"Confidence of {_SURE:.0%} or more".replace("%", " %"),
                f"{n_sure:,}",
                f"{share:.0f} % of the predicted labels",
            )
        )
    return told


def _made(encoder, estimate, args):
    """Return the rows on how the report was made: name, text, whether it is code."""
    import numpy
    import sklearn
    import torch

    versions = f"sklabel {sklabel.__version__}, scikit-learn {sklearn.__version__}, "
    versions += f"torch {torch.__version__}, numpy {numpy.__version__}, Python "
    versions += platform.python_version()
    told = [
        ("Command", shlex.join(["sklabel", *args.argv]), True),
        ("Lists", ", ".join(map(_with_digest, args.lists)), False),
        ("Date", datetime.date.today().isoformat(), False),
        ("Seed", str(args.seed), False),
        ("Versions", versions, False),
    ]
    if encoder:
        told.insert(3, ("Encoder", encoder, False))
    if estimate is not None:
        told.append(
            (
                "Estimate",
                "By cross-validation on the given labels, with a classifier of the "
                "vectors (EmbeddingClassifier). The 95 % interval is valid if the "
                "given labels were drawn at random; chosen images are often easier "
                "than the others.",
                False,
            )
        )
    return told


def _with_digest(path):
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
    return f"{path} (SHA-256 {digest}...)"
