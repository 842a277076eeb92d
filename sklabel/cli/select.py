"""sklabel select: choose the photographs of a folder that are worth a label."""

from pathlib import Path

import sklabel

from . import inputs, models, options, outputs


def add_parser(commands):
    parser = commands.add_parser(
        "select",
        help="choose the photographs of a folder that are worth a label",
        description="Embed the photographs of a folder (and its subfolders), choose "
        "the ones worth a label and write them into a CSV to fill in, with a numbered "
        "contact sheet.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder of image files")
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
        "--sheet", metavar="PNG", help="contact sheet (default: beside the CSV)"
    )
    parser.add_argument(
        "--labeled",
        metavar="CSV",
        help="a list with labels: its labeled images are not chosen again",
    )
    options.add_embedding(parser)
    parser.add_argument(
        "--save-embedder", metavar="DIR", help="keep the embedding, for fit --embedder"
    )
    options.add_training(parser)
    parser.set_defaults(run=run)


def run(args):
    """Choose the images of a folder worth a label; write a CSV and a contact sheet."""
    options.check_device(args.device)
    files = inputs.list_images(args.folder)
    out = Path(args.out)
    sheet = Path(args.sheet or out.with_suffix(".png"))
    known = {}
    if args.labeled is not None:
        known = inputs.read_labels(args.labeled, "label", files, args.folder)
    n_open = len(files) - len(known)
    options.check_n_samples(args.n_samples, n_open, "without a label" if known else "")
    _check_sheet(sheet, out, args.folder)
    for path in (out, sheet):
        outputs.check_file(path)
    outputs.check_not_filled_in(out)
    outputs.check_folder(args.save_embedder)

    embedder = models.load_embedder(args)
    names, images = inputs.read_images(
        files, models.size_for(embedder, args), args, embedder
    )
    y = inputs.as_y(names, known)
    options.check_n_samples(args.n_samples, int((y == -1).sum()), "that can be read")
    if embedder is None:
        embedder = inputs.keep_range(models.fit_embedder(images, args), args)
    selector = sklabel.selection.USLSelector(args.n_samples, random_state=args.seed)
    chosen = selector.fit(embedder.transform(images), y).sample_indices_
    asked = [names[row] for row in chosen]

    if args.save_embedder is not None:
        models.save(embedder, args.save_embedder)
    _write_sheet(sheet, files, asked, args.max_pixels)
    outputs.write_csv(out, ["path", "label"], [[name, ""] for name in asked])
    print(
        f"{len(asked)} of {len(names)} images to label, the most telling first: write "
        f"their labels into {out}, {sheet} shows them. Then: sklabel fit {out} "
        f"{args.folder}"
    )


def _check_sheet(sheet, out, folder):
    if sheet == out:
        raise ValueError(f"--out and the contact sheet are both {out}: give --sheet.")
    if Path(folder).resolve() in sheet.resolve().parents:
        raise ValueError(
            f"the contact sheet {sheet} would lie among the images of "
            f"{folder} and be taken for one: give --sheet or --out another "
            "folder."
        )


def _write_sheet(path, files, asked, max_pixels):
    from .._core.display import contact_sheet

    paths = [files[name] for name in asked]
    picture = contact_sheet(paths, asked, max_pixels=max_pixels)
    outputs.write_picture(path, picture)
