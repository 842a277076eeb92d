"""sklabel predict: label other photographs with a model that fit has kept."""

import sys
from pathlib import Path

from . import inputs, models, options, outputs


def add_parser(commands):
    parser = commands.add_parser(
        "predict",
        help="label other photographs with a model that fit has kept",
        description="Label photographs with a model that fit has kept.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of the model")
    parser.add_argument("folder", metavar="FOLDER", help="folder of image files")
    parser.add_argument("--out", metavar="CSV", help="(default: print)")
    options.add_reading(parser)
    parser.set_defaults(run=run)


def run(args):
    """Label the images of a folder with a saved model."""
    options.check_device(args.device)
    files = inputs.list_images(args.folder)
    classifier = models.load_classifier(args)
    if args.out is not None:
        outputs.check_file(Path(args.out))

    size = models.trained_size(classifier, args.model)
    names, images = inputs.read_images(files, size, args, classifier)
    predicted = models.predict(classifier, images, names)

    rows = [[name, *predicted.get(name, ("", ""))] for name in files]
    header = ["path", "label", "confidence"]
    if args.out is not None:
        outputs.write_csv(Path(args.out), header, rows)
    else:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8")
        sys.stdout.write(outputs.csv_text(header, rows))
