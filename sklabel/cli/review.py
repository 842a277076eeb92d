"""sklabel review: check and correct the labels of all photographs in the browser."""

import threading
from collections import Counter
from pathlib import Path

from .._core.optional import import_optional
from .._core.wording import n_of
from . import embedders, inputs, issues, lists, models, options, outputs, pages
from .answer_list import AnswerList

_BYTES_A_ROW = 8  # of its number, as text
_SECONDS = 10  # to wait for what is still being looked at


def add_parser(commands):
    parser = commands.add_parser(
        "review",
        usage="sklabel review [options] LABELS FOLDER",
        help="check and correct the labels of all photographs in the browser",
        description="Open a page on this machine that shows all photographs by "
        "label, the least confident first. It marks labels that are probably wrong, "
        "copies, and blank, dark, blurred or odd images. One key corrects one or "
        "many images. A corrected label counts as given at once; all other labels "
        "are predicted again in the background and written into the same CSV.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="LABELS FOLDER",
        help="list written by fit, predict or label, then the folder of image files",
    )
    options.add_page(parser)
    options.add_lists(parser)
    options.add_embedding(parser)
    options.add_training(parser)
    parser.set_defaults(run=run)


def run(args):
    """Serve the page until the person has finished, or Ctrl-C."""
    *args.lists, args.folder = options.lists_and_folder(args)
    if len(args.lists) > 1:
        raise ValueError(
            f"answers are written into one list, but {len(args.lists)} are given: give "
            "one (fit merges several)."
        )
    for name in ("starlette", "uvicorn"):
        import_optional(name, "label")
    options.check_device(args.device)
    embedders.check(args)
    files = inputs.list_images(args.folder)
    lists.read(args.lists, files, args.folder, args)  # what is wrong is told at once
    outputs.check_list(Path(args.lists[0]))
    outputs.check_folder(args.checkpoint, "--checkpoint", args)

    models.prepare()
    names, X, embedder, _ = embedders.embed(files, args)
    answers = AnswerList(args.lists[0], files, names, args.folder, args)
    _serve(answers, files, embedder.transform(X), args)


def _serve(answers, files, Z, args):
    from .._pages.learning import Learner
    from .._pages.photographs import Photographs
    from .._pages.review import Review, review_routes
    from .._pages.server import Server

    names = answers.names
    review = Review(
        len(names),
        answers,
        classes=args.classes,
        keep=args.keep_label,
        unlabeled=args.unlabeled,
    )
    learner = Learner(Z, args.batch, args.seed, n_asked=0)
    routes = review_routes(
        review,
        names,
        Photographs([files[name] for name in names], args.max_pixels),
        near=learner.near,
        learn=learner.now,
        about={
            "title": Path(args.folder).name or Path(args.folder).resolve().name,
            "list": str(answers.told),
            "next": options.command_line(
                "report", answers.told, args.folder, args=args
            ),
        },
        finish=lambda: server.finish(),
    )
    longest = 2**16 + _BYTES_A_ROW * len(names)
    server = Server(routes, args.port, longest=longest)
    before = review.labels
    # predictions that are there are those of `fit`
    is_predicted = len(answers.predictions) + len(review.answers) >= len(names)
    ended = threading.Event()
    looking = threading.Thread(
        target=_look,
        args=(review, files, names, Z, before, args.max_pixels, ended),
        daemon=True,
    )
    pages.serve(
        server,
        f"Review at {server.url}\nCtrl-C ends it; all answers are saved.\n",
        args,
        begin=[
            lambda: learner.start(review, known=before if is_predicted else None),
            looking.start,
        ],
        end=[ended.set, learner.stop, lambda: looking.ident and looking.join(_SECONDS)],
    )
    outputs.show(_summary(review, before, answers.told))


def _look(review, files, names, Z, given, max_pixels, ended):
    """Search for issues while the page is shown."""
    from .._pages.review import Issue

    row_of = {name: row for row, name in enumerate(names)}
    labels = {names[row]: label for row, label in given.items()}
    try:
        for found in issues.parts(files, names, Z, labels, max_pixels):
            if ended.is_set():
                return
            review.found(
                Issue(row_of[name], kind, detail)
                for name, kind, detail in found
                if name in row_of
            )
    except Exception as error:  # the person can go on without
        review.not_learned(error)


def _summary(review, before, path):
    now = review.labels
    n_new = sum(row not in before for row in now)
    n_changed = sum(now.get(row, label) != label for row, label in before.items())
    n_gone = sum(row not in now for row in before)
    counts = {"new": n_new, "changed": n_changed, "taken back": n_gone}
    told = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
    kinds = Counter(answer.mark for answer in review.answers.values() if answer.mark)
    marks = "".join(f"; {mark}: {n}" for mark, n in sorted(kinds.items()))
    labels = n_of(len(now), "label")
    return f"{labels} given in {path}{f' ({told})' if told else ''}{marks}.\n"
