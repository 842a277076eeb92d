"""sklabel predict: label other photographs with a model that fit has kept."""

import sys
from pathlib import Path

from . import inputs, lists, models, options, outputs, tables


def add_parser(commands):
    parser = commands.add_parser(
        "predict",
        help="label other photographs with a model that fit has kept",
        description="Label photographs with a model that fit has kept.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of the model")
    parser.add_argument("folder", metavar="FOLDER", help="folder of image files")
    parser.add_argument(
        "--out", metavar="CSV", help="where to write the labels (default: print them)"
    )
    options.add_reading(parser)
    parser.set_defaults(run=run)


def run(args):
    """Label the images of a folder with a saved model."""
    options.check_device(args.device)
    models.check_order(args)
    files = inputs.list_images(args.folder, least=1)
    if args.out is not None:
        outputs.check_csv(Path(args.out), "--out", args)
    models.prepare()
    classifier = models.load_classifier(args)

    size = models.trained_size(classifier, args.model)
    names, images = inputs.read_images(files, size, args, classifier, least=1)
    predicted = models.predict(classifier, images, names)

    rows = [
        lists.row_of_prediction(name, *predicted.get(name, ("", ""))) for name in files
    ]
    if args.out is not None:
        content = tables.as_marked(args.command, lists.HEADER, rows)
        with outputs.writing(args, csv=(Path(args.out), content)):
            pass
    else:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8")
        outputs.show(tables.as_text(lists.HEADER, rows))
