"""The command line: demo, select, fit, predict."""

import argparse
import os
import sys
import warnings


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str or None, default=None
        Arguments without the program's name; None: those of the process.

    Returns
    -------
    status : int
        0; 2 after wrong input or an unwritable output; 130 after Ctrl-C; 1 after any
        other error. Each but 0 comes with one line on stderr.
    """
    arguments = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # shown is what a user can act on, not what libraries tell programmers
        warnings.filterwarnings("default", category=UserWarning)
        warnings.filterwarnings("ignore", module="PIL|torch")
        warnings.filterwarnings("ignore", message=".* was interrupted in stage")
        warnings.showwarning = _show_warning
        try:
            arguments = _parser().parse_args(argv)
            arguments.run(arguments)
            sys.stdout.flush()
        except SystemExit as stop:  # --help and --version
            return int(stop.code or 0)
        except KeyboardInterrupt:
            again = getattr(arguments, "checkpoint", None) is not None
            more = (
                "run the same command again to continue" if again else "nothing written"
            )
            return _complain(f"interrupted: {more}.", 130)
        except BrokenPipeError:  # the reader of our output has left, as head does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            if getattr(arguments, "traceback", False):
                raise
            return _complain(*_explain(error))
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser():
    parser = _Parser(
        prog="sklabel",
        description="Label many images from few labels.",
        epilog="First steps: sklabel demo. Your own photographs: sklabel select "
        "FOLDER, write the labels into the CSV, sklabel fit CSV FOLDER.",
    )
    parser.add_argument(
        "--version", action="version", version=sys.modules[__package__].__version__
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_select(commands)
    _add_fit(commands)
    _add_predict(commands)
    return parser


def _add_demo(commands):
    parser = commands.add_parser(
        "demo",
        help="label 1,797 handwritten digits from 20 labels, in about a minute",
        description="Embed the 1,797 handwritten digits of scikit-learn, choose a few "
        "to label, label the rest from them, and compare with random choice. Needs no "
        "network.",
    )
    parser.add_argument(
        "--out", default="sklabel-demo", metavar="DIR", help="folder for the results"
    )
    parser.add_argument("--seeds", type=_positive, default=3, help="number of runs")
    parser.add_argument(
        "--n-samples", type=_positive, default=20, help="number of labels"
    )
    parser.add_argument(
        "--epochs", type=_positive, default=None, help="epochs of the embedding"
    )
    parser.add_argument(
        "--steps", type=_positive, default=None, help="steps of the classifier"
    )
    _add_common(parser)
    parser.set_defaults(run=_run("demo"))


def _add_select(commands):
    parser = commands.add_parser(
        "select",
        help="choose the photographs of a folder that are worth a label",
        description="Embed the photographs of a folder (and its subfolders), choose "
        "the ones worth a label and write them into a CSV to fill in, with a numbered "
        "contact sheet.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder of image files")
    parser.add_argument(
        "--n-samples", type=_positive, default=40, help="images to choose (default 40)"
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
    _add_embedding(parser)
    parser.add_argument(
        "--save-embedder", metavar="DIR", help="keep the embedding, for fit --embedder"
    )
    _add_training(parser)
    parser.set_defaults(run=_run("select"))


def _add_fit(commands):
    parser = commands.add_parser(
        "fit",
        help="label all photographs of a folder from a filled-in CSV",
        description="Train on the labels of a CSV and on all other photographs of the "
        "folder, write a label and a confidence for every file, and keep the model. "
        "Empty cells of the CSV and files that are not in it are unlabeled.",
    )
    parser.add_argument("csv", metavar="CSV", help="columns path and label")
    parser.add_argument("folder", metavar="FOLDER", help="folder of image files")
    parser.add_argument(
        "--out", default="labels.csv", metavar="CSV", help="(default labels.csv)"
    )
    parser.add_argument(
        "--model", metavar="DIR", help="folder to keep the model in, for predict"
    )
    parser.add_argument(
        "--label-column", default="label", metavar="NAME", help="(default label)"
    )
    _add_embedding(parser)
    parser.add_argument(
        "--steps", type=_positive, help="steps of the classifier (default 400)"
    )
    _add_training(parser)
    parser.set_defaults(run=_run("fit"))


def _add_predict(commands):
    parser = commands.add_parser(
        "predict",
        help="label other photographs with a model that fit has kept",
        description="Label photographs with a model that fit has kept.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of the model")
    parser.add_argument("folder", metavar="FOLDER", help="folder of image files")
    parser.add_argument("--out", metavar="CSV", help="(default: print)")
    _add_reading(parser)
    parser.set_defaults(run=_run("predict"))


def _add_embedding(parser):
    parser.add_argument(
        "--embedder", metavar="DIR", help="use this embedding, do not train one"
    )
    parser.add_argument(
        "--epochs",
        type=_positive,
        help="epochs of the embedding (default: 40, more for few images)",
    )
    parser.add_argument(
        "--image-size",
        type=_image_size,
        default=None,
        metavar="PIXELS",
        help="side to which images are resized (default 64)",
    )


def _add_training(parser):
    parser.add_argument(
        "--no-flip",
        action="store_true",
        help="the images have a right and a left, such as text",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="(default 0)")
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="keep the state of training here; the same command continues from it",
    )
    _add_reading(parser)


def _add_reading(parser):
    parser.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out image files that cannot be read",
    )
    _add_common(parser)


def _add_common(parser):
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error comes from"
    )


def _run(name):
    """Return the command as a function; what it imports takes seconds to load."""

    def run(arguments):
        from . import _cli

        getattr(_cli, name)(arguments)

    return run


def _positive(text):
    return _whole_number(text, 1)


def _image_size(text):
    # from 8 on no side can be taken for the color channels
    return _whole_number(text, 8)


def _seed(text):
    return _whole_number(text, 0)


def _whole_number(text, least):
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or number < least or number >= 2**31:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number of at least {least}"
        )
    return number


def _explain(error):
    """Return the line and the exit status for an error."""
    if isinstance(error, OSError) and error.strerror:
        places = [str(p) for p in (error.filename, error.filename2) if p is not None]
        return ": ".join([*places, error.strerror]), 2
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)):
        return str(error), 2
    what = f"unexpected {type(error).__name__}: {error}"
    return f"{what} (--traceback shows where it comes from)", 1


def _complain(message, status):
    # a file's name may hold anything, a line break too
    print(f"sklabel: {' '.join(message.split())}", file=sys.stderr)
    return status


def _show_warning(message, category, filename, lineno, file=None, line=None):
    _complain(f"warning: {message}", 0)


if __name__ == "__main__":
    sys.exit(main())
