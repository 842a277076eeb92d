"""The command line, with one file per command."""

# A command has add_parser(commands) and run(args). What takes seconds to load is loaded
# in run: public names through `sklabel`, which loads them when they are first used, and
# everything else by imports inside functions.

import argparse
import difflib
import re
import sys
import warnings

import sklabel

from .._core.files import explained
from . import (
    caches,
    cluster,
    demo,
    evaluate,
    export,
    fit,
    import_,
    label,
    outputs,
    predict,
    report,
    review,
    select,
    signals,
    words,
)

__all__ = ["main"]


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str or None, default=None
        Arguments without the program's name; None: those of the process.

    Returns
    -------
    status : int
        0; 2 after wrong input or an unwritable output; 130 after Ctrl-C and 143 after
        SIGTERM; 1 after any other error. Each except 0 comes with one line on stderr.
    """
    args = None
    with (
        outputs.streams(),
        warnings.catch_warnings(),
        signals.stopping(is_process=argv is None),
    ):
        warnings.simplefilter("ignore")
        # shown is what a user can act on, not what libraries tell programmers
        warnings.filterwarnings("default", category=UserWarning)
        warnings.filterwarnings("ignore", module="PIL|torch")
        warnings.filterwarnings("ignore", message=".* was interrupted in stage")
        warnings.showwarning = _show_warning
        try:
            args = _parse(argv)
            _check_places(args)
            args.argv = list(sys.argv[1:] if argv is None else argv)
            with caches.chosen(args):
                args.run(args)
        except SystemExit as stop:  # --help and --version
            return int(stop.code or 0)
        except KeyboardInterrupt:
            again = getattr(args, "checkpoint", None) is not None
            more = (
                "run the same command again to continue" if again else "nothing written"
            )
            what, status = signals.ending()
            return _complain(f"{what}: {more}.", status)
        except BrokenPipeError:  # the reader of our output has left, as head does
            outputs.give_up_stdout()
            return 1
        except Exception as error:
            if getattr(args, "traceback", False):
                raise
            return _complain(*_explain(error, args))
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser():
    """Return the parser, and the parsers of the commands by name."""
    parser = _Parser(
        prog="sklabel",
        description="Label many images from few labels.",
        epilog="First steps: sklabel demo. Your own photographs: sklabel label FOLDER, "
        "then sklabel fit CSV FOLDER.",
    )
    parser.add_argument("--version", action="version", version=sklabel.__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (
        *(demo, select, label, fit, predict, review),
        *(evaluate, cluster, report, export, import_),
    ):
        command.add_parser(commands)
    return parser, commands.choices


def _parse(argv):
    argv = sys.argv[1:] if argv is None else argv
    parser, commands = _parser()
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        raise ValueError(
            f"invalid choice: {argv[0]!r} is not a command{_like(argv[0], commands)} "
            f"(choose from {', '.join(commands)})"
        )
    args, rest = parser.parse_known_args(argv)
    if rest and hasattr(args, "paths") and not any(r.startswith("-") for r in rest):
        args.paths += rest  # fit a.csv b.csv --steps 9 photos
    elif rest:
        known = re.findall(r"--[a-z][a-z-]*", commands[args.command].format_help())
        raise ValueError(
            f"unrecognized arguments: {' '.join(rest)}{_like(rest[0], known)} "
            f"(see sklabel {args.command} --help)"
        )
    return args


def _like(word, known):
    """Return a "Did you mean" question with a similar known word."""
    found = difflib.get_close_matches(word.partition("=")[0], set(known), n=1)
    return f". Did you mean {found[0]}?" if found else ""


def _check_places(args):
    """Raise an error for an empty text instead of a file or a folder."""
    places = ("out", "sheet", "sheets", "model", "issues", "checkpoint", "cache")
    for name in (*places, "embedder", "weights"):
        if getattr(args, name, None) == "":
            raise ValueError(
                f"--{name} is empty: give a path, or leave the option out."
            )
    if "" in (getattr(args, "folder", None), *getattr(args, "paths", ())):
        raise ValueError(
            f"a path is empty: name a file or a folder (see sklabel {args.command} "
            "--help)."
        )


def _explain(error, args):
    """Return the line and the exit status for an error."""
    if isinstance(error, OSError) and error.strerror:
        return explained(error), 2
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)):
        return str(error), 2
    if isinstance(error, MemoryError):
        smaller = ": try a smaller --image-size" if hasattr(args, "image_size") else ""
        return f"there is not enough memory{smaller}.", 2
    what = f"unexpected {type(error).__name__}: {error}"
    return f"{what} (--traceback shows where the error comes from)", 1


def _complain(message, status):
    print(f"sklabel: {words.in_commands(message)}", file=sys.stderr)
    return status


def _show_warning(message, category, filename, lineno, file=None, line=None):
    _complain(f"warning: {message}", 0)
