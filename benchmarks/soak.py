"""Kill fits, saves and commands, and give everything wrong input: nothing may be lost.

Three parts, each counted in a table:

kills
    A process is killed at every one of its file operations, and at random moments. What
    was there before must be whole, the same work run again must end in the bits of an
    undisturbed run, and no stray file may stay.
together
    Several processes do the same work in one folder at once: all must end in the same
    bits.
inputs
    Every public estimator, function and command is given wrong input of many kinds.
    Each must be refused in one clear message: by scikit-learn's or our own check, not
    from inside torch; a command ends with status 2 and one line. What is not refused is
    silent.

Processes are forked, with one thread of torch, from one that has loaded everything, so
that a kill costs milliseconds. For systems with `os.fork`.

    python benchmarks/soak.py                       # all, about 20 minutes
    python benchmarks/soak.py --only inputs
    python benchmarks/soak.py --only kills --random 20
"""

import argparse
import contextlib
import hashlib
import io
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import _soak_inputs  # noqa: E402

KILLED = 137


# -- processes that are killed


class Watch:
    """Count the file operations of this process in a folder; die at one of them."""

    def __init__(self, folder, at=None, torn=False):
        self.folder, self.at, self.torn, self.n = str(folder), at, torn, 0
        self.fsync = os.fsync
        os.fsync = self._fsync
        sys.addaudithook(self._event)

    def _event(self, event, args):
        if event == "open":
            path, mode, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if isinstance(path, str) and writes:
                self._operation(path)
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"):
            self._operation(os.fsdecode(args[0]))

    def _operation(self, path):
        if os.path.abspath(path).startswith(self.folder):
            self.n += 1
            if self.n == self.at:
                os._exit(KILLED)

    def _fsync(self, number):
        self.n += 1
        if self.n == self.at:
            if self.torn:  # as after a power failure, half of it was written
                with contextlib.suppress(OSError):
                    os.ftruncate(number, os.fstat(number).st_size // 2)
            os._exit(KILLED)
        self.fsync(number)


def start(work, folder, at=None, torn=False):
    """Fork a process that does ``work(folder)``; return its number and a pipe."""
    read, write = os.pipe()
    process = os.fork()
    if process:
        os.close(write)
        return process, read
    os.close(read)
    status = 1
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        warnings.simplefilter("ignore")
        watch = Watch(folder, at, torn)
        result = work(folder)
        with os.fdopen(write, "wb") as pipe:
            pickle.dump((watch.n, result), pipe)
        status = 0
    except BaseException:
        with contextlib.suppress(OSError), os.fdopen(write, "wb") as pipe:
            pickle.dump((0, traceback.format_exc()), pipe)
    os._exit(status)


def finish(process, read):
    """Return the status of a process, its number of operations, and its result."""
    with os.fdopen(read, "rb") as pipe:
        sent = pipe.read()
    _, status = os.waitpid(process, 0)
    n, result = pickle.loads(sent) if sent else (0, None)
    return os.waitstatus_to_exitcode(status), n, result


def digest(value):
    """Return a hash of arrays, tensors, estimators and what holds them."""
    found = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().float().numpy()
        if isinstance(value, np.ndarray):
            found.update(
                value.tobytes() if value.dtype != object else repr(value).encode()
            )
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                found.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            found.update(repr(value).encode())

    add(value)
    return found.hexdigest()


def names_in(folder):
    """Return the names of all files below a folder; those of checkpoints by kind."""
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*"))


# -- the work that is killed


class Fit:
    """A fit with checkpoints; its weights and outputs must be those of a calm one."""

    def __init__(self, make):
        self.make = make
        self.name = type(make()).__name__

    def prepare(self, folder):
        pass

    def run(self, folder):
        estimator = self.make().set_params(checkpoint_dir=str(Path(folder, "c")))
        X, y = _soak_inputs.vectors()
        estimator.fit(X, y)
        if hasattr(estimator, "sample_indices_"):
            output = estimator.sample_indices_
        else:
            verbs = ("predict_proba", "transform", "predict")
            output = getattr(estimator, next(v for v in verbs if hasattr(estimator, v)))
            output = output(X)
        return digest([estimator.net_.module_.state_dict(), output])

    def intact(self, folder):
        return True


class Save:
    """A model is saved over another: one of the two must load."""

    name = "save over a model"

    def prepare(self, folder):
        self._models()[0].save(folder)

    def run(self, folder):
        self._models()[1].save(folder)
        return self._loaded(folder)

    def intact(self, folder):
        kept = [digest(m.transform(_soak_inputs.vectors()[0])) for m in self._models()]
        return self._loaded(folder) in kept

    def _loaded(self, folder):
        import sklabel

        return digest(sklabel.load(folder).transform(_soak_inputs.vectors()[0]))

    def _models(self):
        from sklabel.embedding import SimCLRTransformer

        if not hasattr(self, "models"):
            X, _ = _soak_inputs.vectors()
            self.models = [
                SimCLRTransformer(max_steps=1, random_state=seed).fit(X)
                for seed in (0, 1)
            ]
        return self.models


class Command:
    """A command: a calm one has the same outputs, and files of a person stay."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = f"sklabel {name}", [name, *arguments]

    def prepare(self, folder):
        _soak_inputs.make_photographs(folder)
        if self.arguments[0] == "predict":
            fitted = ["fit", "mine.csv", "photos", "--model", "model", *SHORT]
            assert start_and_finish(lambda f: run_command(f, fitted), folder) == 0

    def run(self, folder):
        status = run_command(folder, self.arguments)
        if status:
            raise RuntimeError(f"status {status}")
        return digest(
            [
                (name, Path(folder, name).read_bytes())
                for name in names_in(folder)
                # checkpoints and descriptions hold the time that it took
                if Path(folder, name).is_file()
                and "checkpoint" not in name
                and not name.endswith("estimator.json")
            ]
        )

    def intact(self, folder):
        return Path(folder, "mine.csv").read_text() == _soak_inputs.MINE


SHORT = ["--epochs", "1", "--steps", "2", "--image-size", "16", "--quiet"]


def run_command(folder, arguments):
    from sklabel.cli import main

    os.chdir(folder)
    return main(arguments)


def start_and_finish(work, folder):
    status, _, result = finish(*start(work, folder))
    return status or (result if isinstance(result, int) else 0)


def works():
    """Yield all that is killed."""
    for make in _soak_inputs.fits():
        yield Fit(make)
    yield Save()
    select = ["select", "photos", "--n-samples", "6", "--epochs", "1"]
    yield Command(
        *select, "--image-size", "16", "--quiet", "--checkpoint", "checkpoint"
    )
    fit = ["fit", "mine.csv", "photos", "--model", "model", *SHORT]
    yield Command(*fit, "--checkpoint", "checkpoint")
    yield Command("predict", "model", "photos", "--out", "predicted.csv", "--quiet")


def kill(work, n_random, seed, most):
    """Return counts of kills and failures of one work, and what failed."""
    drawn = random.Random(seed)
    counts, failures = Counter(), []

    def attempt(kind, at=None, torn=False, delay=None):
        with tempfile.TemporaryDirectory() as folder:
            work.prepare(folder)
            process, read = start(work.run, folder, at, torn)
            if delay is not None:
                time.sleep(delay)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            status, _, _ = finish(process, read)
            if status == 0:
                counts["ended before"] += 1
                return
            counts[kind] += 1
            before = f"{work.name}, {kind}, at {delay or at}"
            if status not in (KILLED, -signal.SIGKILL):
                failures.append(f"{before}: status {status}")
            if not work.intact(folder):
                failures.append(f"{before}: what was there is lost")
            status, _, result = finish(*start(work.run, folder))
            if status or result != reference:
                failures.append(
                    f"{before}: other bits afterwards: {str(result)[-300:]}"
                )
            elif set(names_in(folder)) - allowed:
                stray = sorted(set(names_in(folder)) - allowed)
                failures.append(f"{before}: stray files {stray[:3]}")

    with tempfile.TemporaryDirectory() as folder:
        work.prepare(folder)
        begin = time.perf_counter()
        status, n, reference = finish(*start(work.run, folder))
        lasted = time.perf_counter() - begin
        if status:
            return counts, [f"{work.name}: fails undisturbed: {reference}"], 0
        allowed = set(names_in(folder))
    points = range(1, n + 1)
    if n > most:
        points = sorted(drawn.sample(points, most))
    for at in points:
        attempt("at a file operation", at)
    for at in drawn.sample(range(1, n + 1), min(n, most // 3)):
        attempt("torn", at, torn=True)
    for _ in range(n_random):
        attempt("at a random moment", delay=drawn.uniform(0, lasted))
    return counts, failures, n


def together(work, n_processes, rounds):
    """Return the rounds and failures of equal works in one folder at once."""
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        work.prepare(folder)
        _, _, reference = finish(*start(work.run, folder))
    for k in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            work.prepare(folder)
            running = [start(work.run, folder) for _ in range(n_processes)]
            for status, _, result in [finish(*r) for r in running]:
                if status or result != reference:
                    failures.append(f"{work.name}, round {k}: {str(result)[-300:]}")
    return failures


# -- wrong input


def judge(call):
    """Return how a wrong call ends: clear, vague, ugly or silent; and its message."""
    noise = io.StringIO()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
                result = call()
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {error}"
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1].filename
        package = "/sklabel/" in last or "/sklearn/" in last
        plain = isinstance(error, (ValueError, TypeError, AttributeError, OSError))
        if not plain or isinstance(error, AttributeError) and "/sklearn/" not in last:
            return "ugly", text
        if not package:
            return "ugly", f"{text} [{last}:{frames[-1].lineno}]"
        return ("clear" if len(str(error)) > 25 else "vague"), text
    if said:
        return "clear", f"warned: {said[-1].message}"
    return "silent", repr(result)[:200]


def judge_command(folder, arguments):
    """The same for a command: clear is status 2 and one line on stderr."""
    from sklabel.cli import main

    errors = io.StringIO()
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(errors):
            with contextlib.redirect_stdout(io.StringIO()):
                status = main(arguments)
    except BaseException as error:
        return "ugly", f"{type(error).__name__}: {error}"
    finally:
        os.chdir(before)
    text = errors.getvalue().strip()
    if status == 0:
        return "silent", text
    lines = [line for line in text.splitlines() if line.startswith("sklabel:")]
    # errors that nobody foresaw begin so; a CSV may have an unexpected end
    unforeseen = text.startswith("sklabel: unexpected ")
    clear = status == 2 and len(lines) == 1 and not unforeseen
    return ("clear" if clear else "ugly"), f"status {status}: {text}"


def give_wrong_input(seconds):
    """Return counts by part and outcome, the kinds, and what was not clear."""
    counts, kinds, bad = Counter(), set(), []
    for part, kind, what, call in _soak_inputs.calls():
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            outcome, text = judge(call)
        except _soak_inputs.TooLong:
            outcome, text = "ugly", f"over {seconds} s"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        counts[part, outcome] += 1
        kinds.add((part, kind))
        if outcome != "clear":
            bad.append(f"{outcome}: {part}: {what}: {kind}: {text[:300]}")
    for kind, prepare, arguments in _soak_inputs.command_lines():
        with tempfile.TemporaryDirectory() as folder:
            _soak_inputs.make_photographs(folder)
            prepare(Path(folder))
            before = {n: os.path.isfile(Path(folder, n)) for n in names_in(folder)}
            outcome, text = judge_command(folder, arguments)
            if outcome == "clear" and set(names_in(folder)) - set(before):
                outcome, text = (
                    "ugly",
                    f"{text}; left {set(names_in(folder)) - set(before)}",
                )
        counts["commands", outcome] += 1
        kinds.add(("commands", kind))
        if outcome != "clear":
            bad.append(
                f"{outcome}: commands: {' '.join(arguments)}: {kind}: {text[:300]}"
            )
    return counts, kinds, bad


def show(title, header, rows):
    print(f"\n{title}\n\n| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("kills", "together", "inputs"), nargs="+")
    parser.add_argument("--random", type=int, default=10, help="random kills per work")
    parser.add_argument("--most", type=int, default=60, help="file operations per work")
    parser.add_argument("--rounds", type=int, default=6, help="of processes together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--works", help="only works whose name holds this text")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = args.only or ("kills", "together", "inputs")
    problems = []
    chosen = [w for w in works() if not args.works or args.works in w.name]
    if "kills" in parts:
        rows = []
        for work in chosen:
            counts, failures, n = kill(work, args.random, args.seed, args.most)
            kinds = ("at a file operation", "torn", "at a random moment")
            rows.append([work.name, n, *(counts[k] for k in kinds), len(failures)])
            problems += failures
            print(rows[-1], *failures, sep="\n  ", flush=True)
        rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, 6))])
        show(
            "Kills",
            ["work", "file operations", "killed at one", "half written", "at random"]
            + ["failures"],
            rows,
        )
    if "together" in parts:
        rows = []
        for work in chosen:
            if isinstance(work, Command) and "select" not in work.name:
                continue
            failures = together(work, 3, args.rounds)
            rows.append([work.name, args.rounds, len(failures)])
            problems += failures
        show("Three processes, one folder", ["work", "rounds", "failures"], rows)
    if "inputs" in parts:
        counts, kinds, bad = give_wrong_input(20)
        outcomes = ("clear", "vague", "ugly", "silent")
        rows = [
            [
                part,
                sum(k[0] == part for k in kinds),
                *(counts[part, o] for o in outcomes),
            ]
            for part in sorted({part for part, _ in counts})
        ]
        rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, 6))])
        show("Wrong input", ["part", "kinds", *outcomes], rows)
        problems += bad
    print(*problems, sep="\n")
    return len(problems) > 0


if __name__ == "__main__":
    sys.exit(main())
