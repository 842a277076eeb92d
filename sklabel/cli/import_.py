"""sklabel import: import labels from other programs."""

import json
import os
from collections import Counter
from contextlib import suppress
from itertools import repeat
from pathlib import Path

from .._core.files import read_regular
from .._core.label_texts import is_blank, is_unclear
from .._core.wording import n_of
from . import fit, inputs, lists, options, outputs, tables
from .formats import Found, coco, fiftyone, folders, label_studio, number, parquet
from .formats.places import Finder, plain

_CONFLICTS = ("refuse", "skip", "majority", "latest")


def add_parser(commands):
    parser = commands.add_parser(
        "import",
        help="import labels from other programs",
        description="Read the labels that another program has written, and write a "
        "CSV for fit. The format is recognized: JSON and JSON-MIN of Label Studio, "
        "COCO, labels.json of FiftyOne, a folder of class folders, CSV, Parquet. "
        "Labels from a person are marked as given, those from a model as predicted, "
        "with their confidence.",
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="files, or folders of class folders"
    )
    parser.add_argument(
        "--out",
        default=fit.OUT,
        metavar="CSV",
        help=f"where to write the labels (default {fit.OUT})",
    )
    parser.add_argument(
        "--folder",
        metavar="FOLDER",
        help="folder of the image files: paths and addresses, including those of "
        "uploads, are matched to its files and written relative to it",
    )
    parser.add_argument(
        "--skip-missing",
        action="store_true",
        help="leave out images that are not in --folder",
    )
    parser.add_argument(
        "--conflict",
        choices=_CONFLICTS,
        default="refuse",
        help="if an image has several labels: stop (default), skip the image, or use "
        "the label of the majority or of the latest annotation",
    )
    parser.add_argument(
        "--annotator",
        metavar="WHO",
        help="use only annotations of this person: a number or an address, as in the "
        "file",
    )
    parser.add_argument(
        "--path-column",
        metavar="NAME",
        help="column, or key of the task, with the image (default: path, or "
        "recognized)",
    )
    parser.add_argument(
        "--label-column",
        metavar="NAME",
        help="column with the label, or name of the labels in Label Studio (default: "
        "label, or recognized)",
    )
    options.add_writing(parser)
    options.add_traceback(parser)
    parser.set_defaults(run=run)


def run(args):
    """Write a CSV of the labels that other programs have written."""
    if args.skip_missing and args.folder is None:
        raise ValueError("--skip-missing is for --folder: give the folder.")
    out = Path(args.out)
    outputs.check_csv(out, "--out", args)
    if out.exists() and any(os.path.exists(f) and out.samefile(f) for f in args.files):
        raise ValueError(f"--out {out} is an input file: give another name.")
    finder = None
    if args.folder is not None:
        finder = Finder(inputs.list_images(args.folder, least=1), args.folder)
    found, missing, named = {}, [], set()
    for path in args.files:
        for one in map(_checked, _read(path, args), repeat(path)):
            named.update(one.labels if one.is_name else ())
            if args.annotator is not None and one.is_given and one.labels:
                if one.by != args.annotator:
                    one = Found(one.place)
            name = plain(one.place) if finder is None else finder.find(one.place, path)
            if name is None:
                missing.append((path, one.place))
            else:
                found.setdefault(name, []).append(one)
    if missing and not args.skip_missing:
        (path, place), n = missing[0], len({place for _, place in missing}) - 1
        more = f" and {n} more" if n else ""
        question = finder.names.did_you_mean(plain(place), path)
        raise ValueError(
            f"{path} names {place!r}{more}, but no such image is in {args.folder}. "
            f"{question} --skip-missing leaves out such images."
        )
    entries, conflicts = _entries(found, args.conflict)
    if conflicts and args.conflict == "refuse":
        (name, labels), n = conflicts[0], len(conflicts) - 1
        more = (
            f", and {n_of(n, 'more image')} {'has' if n == 1 else 'have'} several"
            if n
            else ""
        )
        raise ValueError(
            f"{name!r} has several labels: {', '.join(map(repr, labels))}{more}. "
            "Choose with --conflict majority, latest or skip."
        )
    if not any(entry.label for entry in entries):
        raise ValueError(f"there is no label in {' and '.join(args.files)}.")
    content = tables.as_marked(args.command, *lists.rows(entries))
    with outputs.writing(args, csv=(out, content)):
        pass
    _tell(entries, conflicts, missing, named, out, args)


def _folder_of(entries, files):
    """Return the only folder that was read, if image names are as in it."""
    if len(files) > 1 or not os.path.isdir(files[0]):
        return None
    try:
        names = lists.Names(inputs.list_images(files[0], least=1), files[0], None)
    except ValueError:  # it has no images
        return None
    found = all(names.find(e.name, files[0], files[0]) for e in entries)
    return files[0] if found else None


def _tell(entries, conflicts, missing, named, out, args):
    sources = Counter(entry.source for entry in entries)
    classes = {str(entry.label) for entry in entries if entry.label}
    told = [
        f"{n_of(sources['given'], 'label')} given",
        f"{sources['predicted']} predicted",
    ]
    told.append(f"{n_of(sources[''], 'image')} without a label")
    told.append(n_of(len(classes), "class"))
    if conflicts:
        told.append(f"{n_of(len(conflicts), 'image')} had several labels")
    n_missing = len({place for _, place in missing})
    if n_missing:
        verb = "is" if n_missing == 1 else "are"
        told.append(f"{n_of(n_missing, 'image')} {verb} not in {args.folder}")
    folder = args.folder or _folder_of(entries, args.files) or "FOLDER"
    to = outputs.free_csv(fit.OUT, "fit", taken=[out])
    changed = {} if str(to) == fit.OUT else {"out": str(to)}
    # in these files it is the name of a class, whatever it looks like
    changed["keep_label"] = sorted(filter(is_unclear, classes & named))
    then = options.command_line("fit", out, folder, **changed)
    outputs.show(f"{out}: {', '.join(told)}. Then: {then}\n")


def _checked(one, path):
    """Return `Found` without blank labels; refuse texts that no file can hold."""
    for text in (one.place, *one.labels, one.predicted, *(o for o, _ in one.others)):
        if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError(
                f"{path} has the text {text!a}, which contains half a character: "
                "correct it there."
            )
    shown = tuple(label for label in one.labels if not is_blank(label))
    return one._replace(labels=shown)


def _read(path, args):
    """Return a list of `Found` from a file or a folder."""
    if os.path.isdir(path):
        labels = Path(path, "labels.json")
        if labels.is_file():
            return _where_it_is(_read(str(labels), args), Path(path, "data.json"))
        return folders.read(path, inputs.list_images(path, least=1), "export")
    content = read_regular(path)
    if content.startswith(b"PAR1"):
        header, rows = parquet.read(path)
        rows = [[tables.escape(cell) for cell in row] for row in rows]
        numbered = [tables.Row(line, row) for line, row in enumerate(rows, 2)]
        return _of_table(tables.Table(path, header, numbered), args)
    # NUL: of UTF-16
    start = content.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0")[:1]
    if not start:
        raise ValueError(f"{path} is empty: export it again.")
    if start in (b"{", b"["):
        return _of_json(path, content, args)
    wanted = [args.path_column or "path", args.label_column or "label"]
    return _of_table(tables.read(path, wanted), args)


def _where_it_is(found, data):
    """Replace names by the paths that FiftyOne has written next to its labels."""
    places = {}
    if data.is_file():
        places = _parsed(data, read_regular(data))
    if not isinstance(places, dict):
        raise ValueError(f"{data} does not say where the images are: remove this file.")
    return [one._replace(place=str(places.get(one.place, one.place))) for one in found]


def _parsed(path, content):
    """Return parsed JSON, in any Unicode encoding."""
    try:
        return json.loads(content)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: save it as UTF-8.") from None
    except RecursionError:
        raise ValueError(
            f"{path} cannot be read: its JSON is nested too deeply."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON: {error}. It may be incomplete: export it again."
        ) from None


def _of_json(path, content, args):
    data = _parsed(path, content)
    try:
        if coco.is_ours(data):
            return coco.read(path, data)
        if fiftyone.is_ours(data):
            return fiftyone.read(path, data)
        if label_studio.is_ours(data):
            return label_studio.read(path, data, args.path_column, args.label_column)
    except TypeError as error:
        raise ValueError(f"{path}: {error}.") from None
    raise ValueError(
        f"{path} is not a JSON file of Label Studio or COCO, nor labels.json of "
        "FiftyOne: export it in one of these formats."
    )


def _of_table(table, args):
    found = []
    for _, cell, entry in lists.table_entries(
        table, args.path_column or "path", args.label_column or "label"
    ):
        if not cell.strip():
            continue
        name = tables.unescape(cell)
        labels = (entry.label,) if entry.label else ()
        if entry.label.startswith('{"choices"'):  # several, as Label Studio has them
            with suppress(ValueError, RecursionError):
                labels = label_studio.as_labels(json.loads(entry.label)) or labels
        found.append(
            Found(
                name,
                tuple(labels),
                entry._replace(name=name).probability(),
                entry.source != "predicted",
                predicted=entry.predicted,
                others=entry.others,
                is_name=bool(entry.predicted),
            )
        )
    return found


def _entries(found, conflict):
    """Return the entry of each image, and (name, labels) of images with several."""
    entries, conflicts = [], []
    for name, said in found.items():
        told = [one for one in said if one.is_given and one.labels]
        models = [one for one in said if not one.is_given and one.labels]
        predicted = models[-1].labels[0] if models else ""
        predicted = predicted or next((o.predicted for o in said if o.predicted), "")
        labels = {one.labels for one in told}
        label = None
        if len(labels) > 1 or any(len(several) > 1 for several in labels):
            every = dict.fromkeys(label for one in told for label in one.labels)
            conflicts.append((name, list(every)))
            label = _decide(told, conflict)
        elif labels:
            label = labels.pop()[0]
        if label is not None:
            entries.append(lists.given_entry(name, label, predicted))
        elif models and not told:
            entries.append(_of_model(name, models[-1]))
        else:
            entries.append(lists.Entry(name, "", "", "", predicted))
    return entries, conflicts


def _of_model(name, one):
    told = "" if one.confidence is None else f"{min(one.confidence, 0.9999):.4f}"
    others = tuple(
        (label, "" if number(p) is None else f"{float(p):.4f}")
        for label, p in one.others
    )
    return lists.predicted_entry(name, one.labels[0], told, others)


def _decide(told, conflict):
    """Return the label of an image that has several, or None."""
    if conflict == "latest":
        last = max(enumerate(told), key=lambda pair: (pair[1].when, pair[0]))[1]
        return last.labels[0] if len(last.labels) == 1 else None
    if conflict == "majority":
        counts = Counter(label for one in told for label in one.labels).most_common(2)
        if len(counts) == 1 or counts[0][1] > counts[1][1]:
            return counts[0][0]
    return None
