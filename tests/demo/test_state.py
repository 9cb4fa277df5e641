"""What a run made is on disk, and can be removed by anyone, whoever made it and however it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.demo import state
from services.demo.state import DemoError, Process, Run, find_runs, is_alive, read_start_time, stop_processes


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "FOLDER", tmp_path / "runs")
    monkeypatch.setattr(state, "PIN_FOLDER", tmp_path / "pins")


@pytest.fixture
def sleeper() -> subprocess.Popen[bytes]:
    """A process that would outlive the test, but for the test."""
    return subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])


def test_two_runs_take_two_slots_with_names_and_addresses_of_their_own() -> None:
    """Parallel runs never share a namespace or a link."""
    first, second = Run.create(), Run.create()
    assert first.folder != second.folder
    assert first.namespace("fabric") != second.namespace("fabric")
    assert len({first.host_address, first.fabric_address, second.host_address, second.fabric_address}) == 4


def test_a_record_is_read_back_by_another_process() -> None:
    """Everything that removal needs is in the file."""
    run = Run.create()
    run.record_namespace("yett9-fabric")
    run.record_process("self", os.getpid())
    assert [found.state for found in find_runs()] == [run.state]


def test_a_run_removed_twice_is_removed() -> None:
    """Ctrl-C and --stop may both come."""
    run = Run.create()
    run.remove()
    run.remove()
    assert find_runs() == []


def test_a_run_whose_owner_died_is_swept_up_and_a_kept_one_is_not() -> None:
    """A crash leaves nothing for long; --keep leaves what it was asked to."""
    crashed, kept = Run.create(), Run.create()
    crashed.state.owner = Process("yett demo", os.getpid(), 1)
    crashed.save()
    kept.release()
    Run.create()
    assert [run.state.slot for run in find_runs()] == [crashed.state.slot, kept.state.slot]
    assert [run.is_owned() for run in find_runs()] == [True, False]


def test_a_process_is_known_by_its_number_and_its_start(sleeper: subprocess.Popen[bytes]) -> None:
    """A number that another process got since is not ended."""
    real = Process("sleeper", sleeper.pid, read_start_time(sleeper.pid))
    impostor = Process("sleeper", sleeper.pid, real.started - 1)
    assert is_alive(real)
    assert not is_alive(impostor)
    stop_processes([impostor], seconds=0)
    assert sleeper.poll() is None
    stop_processes([real])
    assert sleeper.wait(timeout=5) == -signal.SIGTERM


def test_a_process_that_is_held_is_ended_too(sleeper: subprocess.Popen[bytes]) -> None:
    """Sabotage holds an agent; clean-up does not wait for it for ever."""
    process = Process("sleeper", sleeper.pid, read_start_time(sleeper.pid))
    sleeper.send_signal(signal.SIGSTOP)
    stop_processes([process])
    assert sleeper.wait(timeout=5) == -signal.SIGTERM


def test_more_runs_than_addresses_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how to make room."""
    monkeypatch.setattr(state, "MAX_RUNS", 1)
    Run.create()
    with pytest.raises(DemoError, match="yett demo --stop"):
        Run.create()
