"""sklabel predict: label other photographs with a model saved by fit."""

from collections import Counter
from pathlib import Path

from .._core.wording import n_of
from . import embedders, inputs, lists, models, options, outputs, tables, words


def add_parser(commands):
    parser = commands.add_parser(
        "predict",
        help="label other photographs with a model saved by fit",
        description="Label the photographs of a folder, or one photograph, with a "
        "model saved by fit.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of the model")
    parser.add_argument(
        "folder", metavar="FOLDER", help="folder of image files, or one image file"
    )
    parser.add_argument(
        "--out", metavar="CSV", help="where to write the labels (default: print them)"
    )
    options.add_top(parser)
    options.add_cache(parser)
    options.add_reading(parser)
    parser.set_defaults(run=run)


def run(args):
    """Label the images of a folder with a saved model."""
    options.check_device(args.device)
    models.check_order(args)
    outputs.check_folder(args.cache, "--cache", args)
    files = inputs.list_images(args.folder, least=1, one=True)
    if args.out is not None:
        outputs.check_csv(Path(args.out), "--out", args)
    else:
        outputs.check_stdout("--out")
    models.prepare()
    classifier = models.load_classifier(args)

    names, X = read(files, classifier, args)
    predicted = models.predict(classifier, X, names, args.top)
    entries = [predicted.get(name, lists.Entry(name, "")) for name in files]
    header, rows = lists.rows(entries)
    if args.out is not None:
        content = tables.as_marked(args.command, header, rows)
        with outputs.writing(args, csv=(Path(args.out), content)):
            pass
        labeled = Counter(str(e.label) for e in entries if e.label)
        counts = words.counted(dict(sorted(labeled.items()))) or "no label"
        outputs.show(f"{n_of(len(entries), 'image')} in {args.out}: {counts}\n")
    else:
        outputs.show(tables.as_text(header, rows), as_it_is=True)


def read(files, classifier, args):
    """Return the names of files that can be read, and the classifier's input."""
    embedder = embedders.of(classifier)
    if embedder is not None and embedders.takes_paths(embedder):
        embedders.keep(embedder, args)
        return inputs.readable(embedder, files, args, least=1)
    size = models.trained_size(classifier, args.model)
    return inputs.read_images(files, size, args, embedder or classifier, least=1)
