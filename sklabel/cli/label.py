"""sklabel label: label photographs in the browser, one by one."""

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

from .._core.optional import import_optional
from .._core.wording import n_of
from . import (
    embedders,
    fit,
    inputs,
    lists,
    models,
    options,
    outputs,
    pages,
    select,
    words,
)
from .answer_list import AnswerList

OUT = "to_label.csv"


def add_parser(commands):
    parser = commands.add_parser(
        "label",
        usage="sklabel label [options] [CSV] FOLDER",
        help="label photographs in the browser, one by one",
        description="Open a page on this machine that shows photographs one by one, "
        "in the order of the CSV; without a CSV, the most informative ones are "
        "chosen first, as in select. Each answer is written into the CSV at once. A "
        "classifier learns while you label: the page proposes classes, estimates the "
        "accuracy so far, and chooses what to label next.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="[CSV] FOLDER",
        help="list with the columns path and label, as written by select; then the "
        "folder of image files",
    )
    parser.add_argument(
        "--n-samples",
        type=options.positive,
        default=40,
        help="without a CSV: images to choose first (default 40)",
    )
    parser.add_argument(
        "--out",
        metavar="CSV",
        help=f"without a CSV: list to write (default {OUT}); an existing list is "
        "continued",
    )
    options.add_page(parser)
    options.add_lists(parser)
    options.add_embedding(parser)
    options.add_training(parser)
    parser.set_defaults(run=run)


def run(args):
    """Serve the page until the person has finished, or Ctrl-C."""
    csv, args.folder = _in_order(args)
    for name in ("starlette", "uvicorn"):
        import_optional(name, "label")
    from .._pages.session import Session

    names = {"keep": args.keep_label, "unlabeled": args.unlabeled}
    Session(1, [], None, classes=args.classes, **names)  # says which is no class
    options.check_device(args.device)
    embedders.check(args)
    files = inputs.list_images(args.folder)
    path = Path(csv or args.out or OUT)
    is_new = csv is None and not os.path.lexists(path)
    outputs.check_list(path)
    known = {}
    if not is_new:
        known = lists.read([str(path)], files, args.folder, args).given
    outputs.check_folder(args.checkpoint, "--checkpoint", args)
    if is_new:
        args.n_samples = min(args.n_samples, len(files))

    models.prepare()
    names, X, embedder, option = embedders.embed(files, args)
    Z = embedder.transform(X)
    if is_new:
        args.n_samples = min(args.n_samples, len(names))
        asked = select.choose(names, Z, known, args)
        with outputs.writing(args, csv=(path, select.list_of(asked, args))):
            pass
    answers = AnswerList(path, files, names, args.folder, args)
    _serve(answers, [files[name] for name in names], Z, option, args)


def _serve(answers, paths, Z, option, args):
    from .._pages.learning import Learner
    from .._pages.photographs import Photographs
    from .._pages.server import Server, labeling_routes
    from .._pages.session import Session

    session = Session(
        len(paths),
        answers.listed(),
        answers,
        classes=args.classes,
        keep=args.keep_label,
        unlabeled=args.unlabeled,
    )
    learner = Learner(Z, args.batch, args.seed)
    command = fit.command_for([answers.told], args, option)
    routes = labeling_routes(
        session,
        answers.names,
        Photographs(paths, args.max_pixels),
        near=learner.near,
        about={
            "title": Path(args.folder).name or Path(args.folder).resolve().name,
            "list": str(answers.told),
            "next": command,
        },
        finish=lambda: server.finish(),
    )
    server = Server(routes, args.port)
    pages.serve(
        server,
        f"Label at {server.url}\nCtrl-C ends it; all answers are saved.\n",
        args,
        begin=[lambda: learner.start(session)],
        end=[lambda: learner.stop()],
    )
    outputs.show(f"{_summary(session, answers)} Then: {command}\n")


def _summary(session, answers):
    with suppress(ValueError, OSError):  # what is in the file cannot be read now
        session.refresh()
    found = Counter(session.labels.values())
    counts = words.counted({label: found[label] for label in session.classes})
    n_labels, n_open = len(session.labels), session.n_open()
    left = f"; without an answer: {n_open}" if n_open else ""
    told = f": {counts}" if counts else ""
    labels = n_of(n_labels, "label")
    return f"{labels} in {answers.told}{told}{left}."


def _in_order(args):
    """Return the CSV, or None, and the folder."""
    folders = [path for path in args.paths if os.path.isdir(path)]
    if len(args.paths) > 2:
        raise ValueError("give one CSV and one folder (see sklabel label --help)")
    if len(args.paths) == 2 and folders == args.paths[:1]:
        right = options.reordered(args.argv, args.paths, args.paths[::-1])
        raise ValueError(f"the CSV comes first, then the folder: {right}")
    if len(args.paths) == 1 and not folders and os.path.isfile(args.paths[0]):
        raise ValueError("FOLDER is missing (see sklabel label --help)")
    if len(args.paths) == 1:
        return None, args.paths[0]
    if args.out is not None:
        raise ValueError(
            f"--out is for a new list, but answers are written into {args.paths[0]}: "
            "leave one of them out."
        )
    return args.paths
