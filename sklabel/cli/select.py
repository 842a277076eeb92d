"""sklabel select: choose the most informative photographs of a folder to label."""

import os
from pathlib import Path

import sklabel

from . import embedders, fit, inputs, lists, models, options, outputs, tables


def add_parser(commands):
    parser = commands.add_parser(
        "select",
        help="choose the most informative photographs of a folder to label",
        description="Embed the photographs of a folder (and its subfolders), choose "
        "the most informative ones and write them into a CSV to fill in, with a "
        "numbered contact sheet.",
    )
    parser.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="folder of image files"
    )
    parser.add_argument(
        "--n-samples",
        type=options.positive,
        default=40,
        help="images to choose (default 40)",
    )
    parser.add_argument(
        "--out",
        default="to_label.csv",
        metavar="CSV",
        help="list to fill in (default to_label.csv)",
    )
    parser.add_argument(
        "--sheet", metavar="PNG", help="contact sheet (default: next to the CSV)"
    )
    parser.add_argument(
        "--labeled",
        nargs="+",
        action="extend",
        default=[],
        metavar="CSV",
        help="lists with labels: their labeled images are not chosen again",
    )
    options.add_lists(parser)
    options.add_embedding(parser)
    parser.add_argument(
        "--save-embedder",
        metavar="DIR",
        help="save the embedder in this folder, for fit --embedder",
    )
    options.add_training(parser)
    parser.set_defaults(run=run)


def run(args):
    """Choose the images of a folder to label; write a CSV and a contact sheet."""
    if args.folder is None and args.labeled and os.path.isdir(args.labeled[-1]):
        args.folder = args.labeled.pop()  # select --labeled a.csv b.csv photos
    if args.folder is None:
        raise ValueError("FOLDER is missing (see sklabel select --help)")
    options.check_device(args.device)
    embedders.check(args)
    files = inputs.list_images(args.folder)
    out = Path(args.out)
    sheet = Path(args.sheet or out.with_suffix(".png"))
    known = lists.read(args.labeled, files, args.folder, args)
    n_open = len(files) - len(known.given)
    options.check_n_samples(
        args.n_samples, n_open, "without a label" if known.given else ""
    )
    _check_outputs(out, sheet, args)

    models.prepare()
    names, X, embedder, option = embedders.embed(files, args)
    asked = choose(names, embedder.transform(X), known.given, args)

    content = list_of(asked, args)
    picture = outputs.picture(_sheet(files, asked, args), args.command)
    with outputs.writing(args, csv=(out, content), picture=(sheet, picture)):
        if args.save_embedder is not None:
            models.save(embedder, args.save_embedder, args.command)
    before = f", besides {known.counts()}" if args.labeled else ""
    outputs.show(
        f"{len(asked)} of {len(names)} images to label{before}, the most typical "
        f"first: write their labels into {out}, {sheet} shows them. Then: "
        f"{_next_command(out, args, option)}\n"
    )


def choose(names, Z, given, args):
    """Return the names of the photographs to label, the most typical first.

    Parameters
    ----------
    names : list of str
    Z : ndarray of shape (len(names), D)
        Vectors of them.
    given : dict
        {name: label} of those that are not chosen again.
    args : namespace
        ``n_samples`` and ``seed`` are used.
    """
    y = inputs.as_y(names, given)
    options.check_n_samples(args.n_samples, int((y == -1).sum()), "that can be read")
    selector = sklabel.selection.TypiClustSelector(
        args.n_samples, random_state=args.seed
    )
    return [names[row] for row in selector.fit(Z, y).sample_indices_]


def list_of(names, args):
    """Return the bytes of a list to fill in."""
    rows = [[number, name, ""] for number, name in enumerate(names, 1)]
    # as the next command looks for them; the number is that of the contact sheet
    header = ["number", args.path_column, args.label_column]
    return tables.as_marked(args.command, header, rows)


def _check_outputs(out, sheet, args):
    outputs.check_sheet(out, sheet, args)
    if out.exists() and any(map(out.samefile, args.labeled)):
        raise ValueError(f"--out {out} is a list with your labels: give another name.")
    outputs.check_distinct(
        out=out,
        sheet=sheet,
        save_embedder=args.save_embedder,
        checkpoint=args.checkpoint,
    )
    outputs.check_csv(out, "--out", args)
    outputs.check_picture(sheet, "--sheet", args)
    outputs.check_model(args.save_embedder, "--save-embedder", args)
    outputs.check_folder(args.checkpoint, "--checkpoint", args)


def _sheet(files, asked, args):
    from .._core.display import contact_sheet

    paths = [files[name] for name in asked]
    return contact_sheet(paths, asked, max_pixels=args.max_pixels)


def _next_command(out, args, option):
    """Return the command to paste once the list has been filled in."""
    if args.save_embedder is not None:
        option = dict.fromkeys(("weights", "epochs", "image_size"))
        option["embedder"] = args.save_embedder
    return fit.command_for([*args.labeled, out], args, option)
