"""sklabel export: export the labels of a folder to other programs."""

import os
import shlex
from pathlib import Path

import sklabel

from . import inputs, lists, options, outputs, tables
from .formats import coco, fiftyone, folders, label_studio, parquet

# and what is written where --out is not given
_OUT = {
    "folders": "labeled",
    "label-studio": "tasks.json",
    "coco": "coco.json",
    "fiftyone": "labels.json",
    "csv": "export.csv",
    "parquet": "labels.parquet",
}


def add_parser(commands):
    parser = commands.add_parser(
        "export",
        usage="sklabel export [options] LABELS [LABELS ...] FOLDER --to FORMAT",
        help="export labels to other programs",
        description="Write the labels of a folder of photographs in formats of other "
        "programs. Labels from a person and predictions stay separate, predictions "
        "with their confidence; import reads everything back.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="LABELS FOLDER",
        help="lists written by fit, predict or a person, then the folder of image "
        "files",
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=_OUT,
        help="folders: a folder for each class, with the images; label-studio: tasks "
        "with annotations and predictions; coco: categories and annotations; fiftyone: "
        "a FiftyOneImageClassificationDataset; csv; parquet",
    )
    told = ", ".join(f"{kind}: {name}" for kind, name in _OUT.items())
    parser.add_argument(
        "--out", metavar="PLACE", help=f"file or new folder to write ({told})"
    )
    parser.add_argument(
        "--min-confidence",
        type=options.share,
        metavar="P",
        help="leave out predictions with a lower confidence, between 0 and 1",
    )
    parser.add_argument(
        "--top",
        type=options.positive,
        default=1,
        metavar="N",
        help="write the N most likely classes, as written by fit --top N (default 1)",
    )
    parser.add_argument(
        "--link",
        action="store_true",
        help="with --to folders: links to the images instead of copies",
    )
    parser.add_argument(
        "--url-prefix",
        metavar="TEXT",
        help="with --to label-studio: prefix of the path of an image (default: "
        "/data/local-files/?d=FOLDER/)",
    )
    options.add_lists(parser)
    options.add_writing(parser)
    options.add_traceback(parser)
    parser.set_defaults(run=run)


def run(args):
    """Write the labels of a folder in the format of another program."""
    *args.lists, args.folder = options.lists_and_folder(args)
    for name, kind in (("link", "folders"), ("url_prefix", "label-studio")):
        if getattr(args, name) and args.to != kind:
            option = options.option(name, True)[0]
            raise ValueError(f"{option} is for --to {kind}: leave it out.")
    out = Path(args.out or _OUT[args.to])
    if args.to == "folders":
        outputs.check_new_tree(out, "--out", args)
    elif args.to == "csv":
        outputs.check_csv(out, "--out", args)
    else:
        outputs.check_file(out, "--out", args)
    if args.to == "parquet":
        parquet.check()
    files = inputs.list_images(args.folder, least=1)
    entries = lists.entries(args.lists, files, args.folder, args)
    labeled = [entry for entry in entries if entry.label]
    chosen = [entry for entry in labeled if _is_sure(entry, args.min_confidence)]
    if not chosen:
        raise ValueError(
            f"there is no label to export in {' and '.join(args.lists)}"
            + (" with enough confidence: lower --min-confidence." if labeled else ".")
        )
    chosen = _with_top(chosen, args)
    if args.to == "folders":
        with outputs.new_tree(out) as folder:
            folders.write(folder, chosen, files, args.link, args.command)
    else:
        content = _content(chosen, files, args)
        kind = "csv" if args.to == "csv" else "file"
        with outputs.writing(args, **{kind: (out, content)}):
            pass
    n_given = sum(entry.is_given for entry in chosen)
    left = {
        "less sure": len(labeled) - len(chosen),
        "without a label": len(entries) - len(labeled),
    }
    left = ", ".join(f"{n} {what}" for what, n in left.items() if n)
    outputs.show(
        f"{len(chosen)} labels in {out}: {n_given} given, {len(chosen) - n_given} "
        f"predicted{f'; left out: {left}' if left else ''}.\n"
        f"{_next_step(chosen, out, args)}"
    )


def _is_sure(entry, least):
    if entry.is_given:
        return True
    p = entry.probability()  # says so where it is no number
    return least is None or (p or 0) >= least


def _with_top(entries, args):
    known = max(len(entry.others) for entry in entries) + 1
    if known < args.top and any(not entry.is_given for entry in entries):
        raise ValueError(
            f"--top {args.top}, but {' and '.join(args.lists)} tells {known} of the "
            f"classes: write more with sklabel fit --top {args.top}."
        )
    return [entry._replace(others=entry.others[: args.top - 1]) for entry in entries]


def _content(entries, files, args):
    """Return the bytes of the file to write."""
    written_by = f"sklabel {sklabel.__version__}"
    if args.to == "csv":
        return tables.as_marked(args.command, *lists.rows(entries))
    if args.to == "parquet":
        return parquet.content(entries)
    if args.to == "coco":
        sizes = [_size(files[entry.name]) for entry in entries]
        return coco.content(entries, sizes, written_by)
    if args.to == "fiftyone":
        return fiftyone.content(entries)
    return label_studio.content(entries, _url_prefix(args), written_by)


def _url_prefix(args):
    if args.url_prefix is not None:
        return args.url_prefix
    from urllib.parse import quote

    return f"/data/local-files/?d={quote(Path(args.folder).resolve().name)}/"


def _size(path):
    """Return width and height of the upright image, or zeros."""
    from .._core.decoding import UNREADABLE, look, opened

    try:
        with opened(path) as image:
            height, width = look(image).size
    except UNREADABLE:
        return 0, 0
    return width, height


def _next_step(entries, out, args):
    """Return the next step in the other program."""
    if args.to == "label-studio":
        classes = sorted({str(entry.label) for entry in entries})
        return (
            "Labeling interface of the project:\n"
            f"{label_studio.interface(classes)}\n"
            f"Serve the images: LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true "
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="
            f"{shlex.quote(str(Path(args.folder).resolve().parent))}\n"
        )
    if args.to == "fiftyone":
        data, labels = os.path.abspath(args.folder), os.path.abspath(out)
        return (
            "In Python: fiftyone.Dataset.from_dir(dataset_type=fiftyone.types."
            "FiftyOneImageClassificationDataset, "
            f"data_path={data!r}, labels_path={labels!r})\n"
        )
    return ""
