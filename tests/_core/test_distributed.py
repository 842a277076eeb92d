"""Several processes train one network together: what one process trains."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from sklabel._core import launching
from sklabel._core.processes import ALONE, Group, current, gathered, own_part, summed
from sklabel.modules import SplitBatchNorm

TOOLS = Path(__file__).parents[1] / "tools"

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without it"
)


def run(script, folder, size):
    """Run a script in so many processes; return what they wrote to stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(size):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = {name: str(value) for name, value in names.items()} if size > 1 else {}
        started.append(
            subprocess.Popen(
                [sys.executable, str(TOOLS / script), str(folder)],
                env={**os.environ, **own},
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        )
    return [process.communicate(timeout=300)[1] for process in started]


def test_two_processes_train_what_one_trains(tmp_path):
    # slow: three processes load torch and train 27 estimators
    said = run("two_processes.py", tmp_path, 1) + run("two_processes.py", tmp_path, 2)
    try:
        alone, first, second = (
            torch.load(tmp_path / f"{name}.pt", weights_only=True)
            for name in ("1-0", "2-0", "2-1")
        )
    except FileNotFoundError:
        pytest.fail("\n".join(said))
    assert len(alone) == 27
    for name, found in alone.items():
        for kind, values in found.items():
            pair = first[name][kind], second[name][kind]
            if kind == "history":
                assert pair[0] == pair[1], name
                assert pair[0] == pytest.approx(values, abs=1e-5, rel=1e-5), name
                continue
            values, *pair = (
                v if isinstance(v, dict) else {"": v} for v in (values, *pair)
            )
            for key, value in values.items():
                place = f"{name} {kind} {key}"
                # among processes all is equal, to the last bit
                assert torch.equal(pair[0][key], pair[1][key]), place
                assert torch.allclose(pair[0][key], value, rtol=1e-5, atol=1e-5), place


def test_what_may_go_wrong(tmp_path):
    # slow: two processes load torch, and fit what they shall not
    said = run("troubled_processes.py", tmp_path, 2)
    files = [tmp_path / f"trouble-{rank}.json" for rank in (0, 1)]
    assert all(file.exists() for file in files), "\n".join(said)
    seen = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for name in ("FixMatchClassifier", "SCANClusterer", "MoCoTransformer"):
        assert seen[0][name] == seen[1][name], name
    assert seen[0]["warnings"] > 0 == seen[1]["warnings"]
    assert seen[0]["numbers"] != seen[1]["numbers"]  # those of the user, unseeded
    assert "step/s]" in said[0] and "step/s]" not in said[1]
    for one in seen:
        assert "broken off" in one["broken off"]
        assert one["goes on"] and one["epochs of the rest"] == 3
        assert one["epochs"] == 2
        for name, part in (("parameters", "the parameters"), ("rows", "X")):
            message = one[f"{name} differ"]
            assert message.startswith("ValueError") and part in message
            assert "alone" in message
        assert "y, or what" in one["labels differ"]
        assert "n_jobs=1" in one["in a thread"]
        assert one["one: stop"] == [2, False] and one["one: Ctrl-C"] == [2, True]
        assert "of the first one" in one["one: fail"]
        assert one["norm"]
        assert one.get("copy", 0) == 0
        assert "A fit before failed in some" in one["after it"]
    for name in ("chosen", "asked", "seeded", "norms", "alone"):
        assert seen[0][name] == seen[1][name], name
    assert seen[0]["questions"] == 2 and seen[1]["questions"] == 0
    assert seen[0]["shown"].count("round") == 2 and not seen[1]["shown"]
    assert len(seen[0]["drawn"]) and not set(seen[0]["drawn"]) & set(seen[1]["drawn"])
    assert "waited in vain" in seen[0]["fails in one"]
    assert seen[1]["fails in one"] == "OSError: only here"
    assert seen[0]["alone, another"] != seen[1]["alone, another"]
    assert "Process 0 of 2 waited in vain" in seen[0]["other died"]
    assert seen[0]["seconds"] < 60
    assert len(list((tmp_path / "runs").glob("*/*.pt"))) == 1


def test_a_process_by_itself_gives_back_what_it_is_given():
    x = torch.rand(5, 2)
    assert gathered(x) is x and summed(x) is x and own_part(x) is x
    assert ALONE.part(x) is x and ALONE.shared(lambda: 3) == 3
    assert current() is ALONE and ALONE.is_first


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_parts_are_equally_long_and_cover_all_rows(n, size, monkeypatch):
    config = "cpu:gloo"
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda: config)
    groups = [Group(rank, size) for rank in range(size)]
    rows = np.arange(n) * 10
    parts = [group.part((rows, 3, torch.from_numpy(rows))) for group in groups]
    assert {len(part[0]) for part in parts} == {-(-n // size)}
    joined = np.concatenate([part[0] for part in parts])
    np.testing.assert_array_equal(joined[:n], rows)
    assert set(joined[n:]) <= set(rows)
    assert all(part[1] == 3 for part in parts)
    joined = torch.cat([part[2] for part in parts])
    assert torch.equal(joined[:n], torch.from_numpy(rows))
    assert len(groups[0].part(rows[:0])) == 0


def test_workers_of_a_process_do_not_meet_the_others(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert not launching.joined()  # nobody said where
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    process = multiprocessing.current_process()
    monkeypatch.setattr(process, "_config", {**process._config})
    monkeypatch.setattr(process, "_name", "LokyProcess-1")
    assert not launching.joined()


@pytest.fixture
def store(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(launching, "_store", lambda: store)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    store.set("sklabel/came/2", "")
    return store


def test_a_process_that_ends_without_fit_is_not_waited_for(store, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    launching._tell_that_it_ends()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RuntimeError, match="Process 1 of 3 has ended"):
        launching._wait_for_all()


def test_a_process_that_waits_long_says_for_whom(store, monkeypatch):
    monkeypatch.setattr(launching, "_PATIENCE", 0.01)
    with monkeypatch.context() as soon:
        soon.setattr(launching, "_LONGEST_WAIT", 0.05)
        with (
            pytest.warns(UserWarning, match="has waited"),
            pytest.raises(RuntimeError, match="Process 1 of 3 goes on without"),
        ):
            launching._wait_for_all()
    late = threading.Timer(0.3, lambda: store.set("sklabel/came/1", ""))
    late.start()
    with pytest.warns(UserWarning, match="Process 0 of 3 has waited .* process 1"):
        launching._wait_for_all()
    late.join()


def test_parts_of_split_norms_are_shared_out(monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(16, 3)
    whole = SplitBatchNorm(torch.nn.BatchNorm1d(3), 8).train()
    expected = whole(x)
    monkeypatch.setattr("sklabel.modules.batchnorm.n_in_step", lambda: 2)
    halves = SplitBatchNorm(torch.nn.BatchNorm1d(3), 8).train()
    found = torch.cat([halves(part) for part in x.chunk(2)])
    torch.testing.assert_close(found, expected)
    # never one part alone: then keys and queries would have the same statistics
    monkeypatch.setattr("sklabel.modules.batchnorm.n_in_step", lambda: 8)
    alone = torch.nn.BatchNorm1d(3).train()(x)
    assert not torch.allclose(halves(x), alone)
