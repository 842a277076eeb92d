"""sklabel evaluate: compare predictions with labels from a person."""

from collections import Counter
from pathlib import Path

from .._core.wording import n_of
from . import inputs, lists, models, options, outputs, predict, tables, words

_SHOWN = 10  # confusions
_BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)


def add_parser(commands):
    parser = commands.add_parser(
        "evaluate",
        usage="sklabel evaluate [options] LABELS [LABELS ...] FOLDER "
        "(--model DIR | --predictions CSV)",
        help="compare predictions with labels from a person",
        description="Compare predictions with labels from a person: accuracy with a "
        "95 %% interval, precision and recall of each class, confusions, and "
        "calibration of the confidence. The interval is valid if the labeled images "
        "were drawn at random and the model was not trained on them.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="LABELS FOLDER",
        help="lists with labels from a person, then the folder of image files",
    )
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument(
        "--model", metavar="DIR", help="folder of a model that fit has saved"
    )
    group.add_argument(
        "--predictions",
        nargs="+",
        metavar="CSV",
        help="lists written by fit, predict or import; images whose label was given "
        "there are left out",
    )
    parser.add_argument(
        "--out",
        metavar="CSV",
        help="where to write each image with both labels, the most confident "
        "mistakes first",
    )
    options.add_lists(parser)
    options.add_cache(parser)
    options.add_reading(parser)
    parser.set_defaults(run=run)


def run(args):
    """Compare predictions with given labels."""
    if args.predictions and len(args.paths) == 1:  # the folder was taken for a list
        args.paths.append(args.predictions.pop())
    *args.lists, args.folder = options.lists_and_folder(args)
    if args.predictions == []:
        raise ValueError("--predictions needs a CSV (see sklabel evaluate --help)")
    options.check_device(args.device)
    outputs.check_folder(args.cache, "--cache", args)
    if args.out is not None:
        outputs.check_csv(Path(args.out), "--out", args)
    files = inputs.list_images(args.folder, least=1)
    given = lists.read(args.lists, files, args.folder, args).given
    if not given:
        raise ValueError(
            f"{' and '.join(args.lists)} has no label from a person: fill in some "
            "cells."
        )
    said, note = _predictions(given, files, args)
    known = [name for name in given if name in said]
    if not known:
        raise ValueError(
            f"no labeled image has a prediction{note}: label other images, or use "
            "another model."
        )
    truth = [str(given[name]) for name in known]
    predicted = [str(said[name].label) for name in known]
    confidence = [said[name].probability() for name in known]
    if args.out is not None:
        content = tables.as_marked(args.command, *_rows(known, truth, said))
        with outputs.writing(args, csv=(Path(args.out), content)):
            pass
    text = f"{n_of(len(known), 'image')} with a label and a prediction{note}.\n\n"
    text += _accuracy(truth, predicted) + "\n"
    text += _classes(truth, predicted) + _confusions(truth, predicted)
    text += _calibration(truth, predicted, confidence)
    outputs.show(text)


def _predictions(given, files, args):
    """Return {name: `lists.Entry`} and a note."""
    if args.model is not None:
        models.prepare()
        classifier = models.load_classifier(args)
        asked = {name: path for name, path in files.items() if name in given}
        names, X = predict.read(asked, classifier, args)
        return models.predict(classifier, X, names), ""
    entries = lists.entries(args.predictions, files, args.folder, args)
    said = {e.name: e for e in entries if e.label and not e.is_given}
    # a label that the person has corrected since was predicted nonetheless
    said |= {
        e.name: lists.predicted_entry(e.name, e.predicted, "")
        for e in entries
        if e.corrected and e.predicted
    }
    n = sum(e.is_given and not e.corrected and e.name in given for e in entries)
    note = f"; {n} left out, whose label the model was given" if n else ""
    return said, note


def _rows(names, truth, said):
    """Return the header and the rows of the CSV: the most confident mistakes first."""

    def order(pair):
        name, label = pair
        entry = said[name]
        return entry.label == label, -(entry.probability() or 0)

    rows = [
        [
            name,
            label,
            said[name].label,
            said[name].confidence,
            int(label == said[name].label),
        ]
        for name, label in sorted(zip(names, truth, strict=True), key=order)
    ]
    return ["path", "label", "predicted", "confidence", "right"], rows


def _accuracy(truth, predicted):
    low, high = interval(sum(map(str.__eq__, truth, predicted)), len(truth))
    right = sum(map(str.__eq__, truth, predicted)) / len(truth)
    return (
        f"{100 * right:.1f} % are right (95 % interval: {100 * low:.0f} to "
        f"{100 * high:.0f} %).\n"
    )


def interval(hits, n):
    """Return the 95 % interval of an accuracy."""
    from .._core.calibration import beta_interval

    return beta_interval(hits + 0.5, n - hits + 0.5)


def _classes(truth, predicted):
    of_truth, of_predicted = Counter(truth), Counter(predicted)
    both = Counter(t for t, p in zip(truth, predicted, strict=True) if t == p)
    rows = []
    for name in sorted(of_truth | of_predicted):
        n, m, hits = of_truth[name], of_predicted[name], both[name]
        rows.append([name, str(n), str(m), _percent(hits, m), _percent(hits, n)])
    return _table(["class", "labeled", "predicted", "precision", "recall"], rows)


def _confusions(truth, predicted):
    pairs = Counter((t, p) for t, p in zip(truth, predicted, strict=True) if t != p)
    if not pairs:
        return ""
    rows = [[str(n), t, p] for (t, p), n in pairs.most_common(_SHOWN)]
    return _table(["images", "labeled", "but predicted"], rows, left=(1, 2))


def _calibration(truth, predicted, confidence):
    told = [
        (c, t == p)
        for c, t, p in zip(confidence, truth, predicted, strict=True)
        if c is not None
    ]
    if not told:
        return ""
    rows, gap = [], 0.0
    for low, high in zip(_BINS[:-1], _BINS[1:], strict=True):
        own = [(c, right) for c, right in told if low <= c < high or c == high == 1]
        if own:
            mean = sum(c for c, _ in own) / len(own)
            hits = sum(right for _, right in own)
            gap += abs(mean * len(own) - hits)
            place = f"{low:.2f} to {high:.2f}"
            rows.append(
                [place, str(len(own)), _percent(mean), _percent(hits, len(own))]
            )
    table = _table(["confidence", "images", "mean", "right"], rows)
    return (
        f"{table}Mean difference between confidence and accuracy: "
        f"{gap / len(told):.3f}.\n"
    )


def _percent(hits, n=1):
    return f"{100 * hits / n:.0f} %" if n else "-"


def _table(header, rows, left=(0,)):
    """Return a table as text."""
    rows = [list(map(words.one_line, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in [header, *rows]:
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n\n"
