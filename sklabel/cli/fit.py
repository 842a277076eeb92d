"""sklabel fit: label all photographs of a folder from a filled-in CSV."""

from pathlib import Path

import sklabel

from . import inputs, models, options, outputs


def add_parser(commands):
    parser = commands.add_parser(
        "fit",
        help="label all photographs of a folder from a filled-in CSV",
        description="Train on the labels of a CSV and on all other photographs of the "
        "folder, write a label and a confidence for every file, and keep the model. "
        "Empty cells of the CSV and files that are not in it are unlabeled.",
    )
    parser.add_argument("csv", metavar="CSV", help="columns path and label")
    parser.add_argument("folder", metavar="FOLDER", help="folder of image files")
    parser.add_argument(
        "--out", default="labels.csv", metavar="CSV", help="(default labels.csv)"
    )
    parser.add_argument(
        "--model", metavar="DIR", help="folder to keep the model in, for predict"
    )
    parser.add_argument(
        "--label-column", default="label", metavar="NAME", help="(default label)"
    )
    options.add_embedding(parser)
    parser.add_argument(
        "--steps", type=options.positive, help="steps of the classifier (default 400)"
    )
    options.add_training(parser)
    parser.set_defaults(run=run)


def run(args):
    """Train on a filled-in CSV and label every image of a folder."""
    options.check_device(args.device)
    files = inputs.list_images(args.folder)
    given = inputs.read_labels(args.csv, args.label_column, files, args.folder)
    _check_classes(given, args)
    out = Path(args.out)
    if out.exists() and out.samefile(args.csv):
        raise ValueError(f"--out {out} is the file with your labels: give another.")
    outputs.check_file(out)
    outputs.check_folder(args.model)

    embedder = models.load_embedder(args)
    names, images = inputs.read_images(
        files, models.size_for(embedder, args), args, embedder
    )
    _check_classes({n: given[n] for n in names if n in given}, args)
    if embedder is None:
        embedder = models.fit_embedder(images, args)
    classifier = sklabel.classification.FixMatchClassifier(
        backbone=embedder,
        weak_augment=sklabel.augment.Weak(flip=0) if args.no_flip else "auto",
        max_steps=args.steps or 400,
        batch_size=16,
        checkpoint_dir=args.checkpoint,
        device=args.device,
        random_state=args.seed,
        verbose=int(not args.quiet),
    ).fit(images, inputs.as_y(names, given))
    models.stop_if_interrupted(classifier)
    inputs.keep_range(classifier, args)

    predicted = models.predict(classifier, images, names)
    rows = []
    for name in files:
        label, confidence = predicted.get(name, ("", ""))
        source = "predicted" if name in predicted else ""
        if name in given:
            label, confidence, source = given[name], "1.0000", "given"
        rows.append([name, label, confidence, source])
    if args.model is not None:
        models.save(classifier, args.model)
    outputs.write_csv(out, ["path", "label", "confidence", "source"], rows)
    counts = {
        str(c): sum(row[1] == str(c) for row in rows) for c in classifier.classes_
    }
    print(
        f"{len(rows)} images in {out}, {len(given)} labels given: "
        + ", ".join(f"{label} {count}" for label, count in counts.items())
    )


def _check_classes(labels, args):
    where = f"the column {args.label_column!r} of {args.csv}"
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
