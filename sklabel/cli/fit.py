"""sklabel fit: label all photographs of a folder from filled-in CSVs."""

from collections import Counter
from pathlib import Path

from .._core.wording import n_of
from . import (
    classifiers,
    embedders,
    inputs,
    issues,
    lists,
    models,
    options,
    outputs,
    tables,
    words,
)

OUT = "labels.csv"


def add_parser(commands):
    parser = commands.add_parser(
        "fit",
        usage="sklabel fit [options] CSV [CSV ...] FOLDER",
        help="label all photographs of a folder from a filled-in CSV",
        description="Train on the labels of one or more CSVs and on all other "
        "photographs of the folder, write a label and a confidence for every file, "
        "and save the model. Unlabeled are empty cells of a CSV, its unchanged "
        "predictions, and files that are not in it.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="CSV FOLDER",
        help="lists with the columns path and label, then the folder of image files",
    )
    parser.add_argument(
        "--out",
        default=OUT,
        metavar="CSV",
        help=f"where to write the labels of all images (default {OUT})",
    )
    parser.add_argument(
        "--model", metavar="DIR", help="folder for the model, which predict reads"
    )
    parser.add_argument(
        "--issues",
        metavar="CSV",
        help="where to write images to check: labels that are probably wrong, "
        "copies, and blank, dark, blurred or odd images",
    )
    options.add_top(parser)
    options.add_lists(parser)
    options.add_embedding(parser)
    parser.add_argument(
        "--method",
        choices=classifiers.NAMES,
        help="embedding (default): a classifier of the vectors, in seconds; the "
        "others also train the encoder: minutes to hours",
    )
    parser.add_argument(
        "--steps",
        type=options.positive,
        help="training steps of a method that trains (default 400); without "
        "--method: fixmatch",
    )
    options.add_training(parser)
    parser.set_defaults(run=run)


def run(args):
    """Train on filled-in CSVs and label every image of a folder."""
    *args.lists, args.folder = options.lists_and_folder(args)
    options.check_device(args.device)
    embedders.check(args)
    classifiers.check(args)
    files = inputs.list_images(args.folder)
    labels = lists.read(args.lists, files, args.folder, args)
    given = labels.given
    _check_classes(labels, args)
    out = Path(args.out)
    if not args.overwrite and out.exists() and any(map(out.samefile, args.lists)):
        raise ValueError(
            f"--out {out} is the file with your labels: give another name, or "
            "--overwrite."
        )
    outputs.check_distinct(
        out=out, issues=args.issues, model=args.model, checkpoint=args.checkpoint
    )
    outputs.check_csv(out, "--out", args)
    if args.issues is not None:
        outputs.check_csv(Path(args.issues), "--issues", args)
    outputs.check_model(args.model, "--model", args)
    outputs.check_folder(args.checkpoint, "--checkpoint", args)

    models.prepare()
    names, X, embedder, _ = embedders.embed(files, args)
    readable = {n: given[n] for n in names if n in given}
    _check_classes(labels._replace(given=readable), args)
    found = []
    if args.issues is not None:
        Z = embedder.transform(X)
        found = issues.find(files, names, Z, given, args.max_pixels)
    if classifiers.trains(args) and embedders.takes_paths(embedder):
        names, X = inputs.read_images(files, embedder.sample_shape_[1:], args, embedder)
    y = inputs.as_y(names, given)
    classifiers.announce(embedder, X, y, args)
    classifier = classifiers.make(embedder, args).fit(X, y)
    models.stop_if_interrupted(classifier)
    inputs.keep_range(classifier, args)

    predicted = models.predict(classifier, X, names, args.top)
    entries = []
    for name in files:
        entry = predicted.get(name, lists.Entry(name, ""))
        if name in given:
            entry = lists.given_entry(name, given[name], entry.label)
        entries.append(entry)
    content = tables.as_marked(args.command, *lists.rows(entries))
    listed = None
    if args.issues is not None:
        marked = tables.as_marked(args.command, *issues.rows(found, entries))
        listed = Path(args.issues), marked
    with outputs.writing(args, csv=(out, content), issues=listed):
        if args.model is not None:
            models.save(classifier, args.model, args.command)
    labeled = Counter(str(entry.label) for entry in entries)
    counts = words.counted({str(c): labeled[str(c)] for c in classifier.classes_})
    kept = ""
    if args.model is not None:
        kept = f"Model: {args.model}, {models.size_on_disk(args.model)}.\n"
    looked = "" if args.issues is None else issues.summary(found, args.issues)
    outputs.show(
        f"{n_of(len(entries), 'image')} in {out}, {labels.counts()}: {counts}\n"
        f"{models.outlook(classifier, entries)}\n{kept}{looked}"
    )


def command_for(filled_in, args, changed):
    """Return the command to paste once lists have been filled in.

    Parameters
    ----------
    filled_in : list of path
    args : namespace
        Of the command that came before.
    changed : dict
        Options whose values differ from that command.
    """
    to = outputs.free_csv(OUT, "fit", taken=filled_in)
    if str(to) != OUT:
        changed = {**changed, "out": str(to)}
    return options.command_line("fit", *filled_in, args.folder, args=args, **changed)


def _check_classes(labels, args):
    where = f"the column {args.label_column!r} of {' and '.join(args.lists)}"
    if not labels.given:
        used = (
            f": its {labels.predicted} predictions do not count as labels until "
            'you change them, or write "given" into the column source'
            if labels.predicted
            else ""
        )
        raise ValueError(
            f"{where} has no label for an image that can be read{used}. Fill in some "
            "cells."
        )
    classes = set(labels.given.values())
    if len(classes) == 1:
        raise ValueError(
            f"{where} has one class only, {classes.pop()!r}: label images of another "
            "class too."
        )
