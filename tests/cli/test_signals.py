"""SIGTERM ends a command as Ctrl-C does, and leaves nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sklabel
from sklabel._core.net import Net
from sklabel.cli import fit, main, models, outputs, signals
from tests.cli._running import complaint, read_csv

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no such signal")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(sklabel.__file__).parents[1])}
ENDS = {
    signal.SIGTERM: (143, "terminated"),
    signal.SIGINT: (130, "interrupted"),
}


@pytest.fixture
def begin():
    """Return a function that starts a command, and its output when some text came."""
    running = []

    def start(*argv, until=None):
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "sklabel", *argv],
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            # what is started in the background ignores Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        running.append(process)
        shown = b""
        while until is not None and until not in shown:
            shown += process.stderr.read(1)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_a_training_ends_and_is_continued(here, begin, capsys, monkeypatch):
    argv = ["select", "photos", "--n-samples", "2", "--image-size", "16"]
    argv += ["--epochs", "4000", "--checkpoint", "state"]
    process = begin(*argv, until=b"1%")
    process.send_signal(signal.SIGTERM)
    shown = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 143 and "Traceback" not in shown
    last = shown.replace("\r", "\n").splitlines()[-1]
    assert last == "sklabel: terminated: run the same command again to continue."
    assert not list(Path().glob("to_label*")) and not list(Path().rglob("*.partial"))

    resume = Net.resume

    def resume_and_stop(net):
        resume(net)
        begun.append(net.step_)
        # here skorch keeps the KeyboardInterrupt to itself
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    begun = []
    monkeypatch.setattr(Net, "resume", resume_and_stop)
    complaint(capsys, *argv, "--quiet", status=143)
    assert 0 < begun[0] < 4000


@pytest.mark.parametrize("number", ENDS)
def test_while_libraries_are_loaded(here, begin, number):
    process = begin("fit", "filled.csv", "photos")
    time.sleep(0.7)
    process.send_signal(number)
    shown = process.communicate(timeout=60)[1].decode()
    # before the command has begun the system itself ends the process
    if process.returncode not in (-number, 1):
        assert process.returncode == ENDS[number][0]
        assert shown == f"sklabel: {ENDS[number][1]}: nothing written.\n"


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("place", ["list_images", "read_images"])
def test_in_a_process_that_does_other_things(here, capsys, monkeypatch, number, place):
    before = signal.getsignal(number)

    def receive(*args):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(fit.inputs, place, receive)
    status, word = ENDS[number]
    said = complaint(capsys, "fit", "filled.csv", "photos", status=status)
    assert said == f"{word}: nothing written."
    assert signal.getsignal(number) is before


def test_a_handler_of_the_caller_stays(here, capsys, monkeypatch):
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        list_images = fit.inputs.list_images

        def receive(*args):
            os.kill(os.getpid(), signal.SIGTERM)
            return list_images(*args)

        monkeypatch.setattr(fit.inputs, "list_images", receive)
        assert "no label" not in complaint(capsys, "fit", "no.csv", "photos")
        assert received == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_libraries_are_loaded_to_the_end(capsys):
    with pytest.raises(KeyboardInterrupt), signals.stopping(is_process=False):
        with signals.loading():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            done = True
    assert done and signals.ending() == ("terminated", 143)


def test_the_writing_is_brought_to_its_end(here, saved, monkeypatch):
    save = models.save

    def receive(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        save(*args)

    monkeypatch.setattr(outputs.os, "fsync", lambda number: None)
    monkeypatch.setattr(models, "save", receive)
    argv = ["fit", "filled.csv", "photos", "--steps", "2", "--quiet", "--model", "m"]
    assert main([*argv, "--embedder", str(saved / "embedder")]) == 0
    assert len(read_csv("labels.csv")) == 10 and sklabel.load("m")
