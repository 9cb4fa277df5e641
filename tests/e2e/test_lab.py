"""The lab itself: without Yett every route is open, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.demo import control, servers
from services.demo.app import owned_run
from services.demo.lab import Lab, list_interfaces
from services.demo.state import NETNS, NETNS_CONFIG, Run, find_runs, is_alive
from services.demo.traffic import Traffic

pytestmark = pytest.mark.e2e

CRASHING_OWNER = """
import os, signal
from services.demo.lab import Lab
from services.demo.servers import start_outside
from services.demo.state import Run
run = Run.create()
lab = Lab(run)
lab.build([])
start_outside(lab)
print(run.state.slot, flush=True)
signal.pause()
"""


def traces(slot: int) -> list[str]:
    """What a run would leave behind: namespaces, their configuration, links of the host, records."""
    prefix = f"yett{slot}-"
    found = [str(path) for folder in (NETNS, NETNS_CONFIG) if folder.exists() for path in folder.glob(f"{prefix}*")]
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout.split()
    return found + [link for link in links if link.startswith(prefix)]


def test_without_yett_every_route_of_every_row_is_open(tmp_path: Path) -> None:
    """Else a Blocked would prove nothing."""
    import asyncio

    with owned_run() as run:
        lab = Lab(run)
        lab.build()
        servers.start_outside(lab)
        servers.start_pod_servers(lab, list(lab.pods.values()))
        assert asyncio.run(control.find_closed_routes(Traffic(lab), lab.pods.values())) == []


def test_two_labs_stand_side_by_side_and_leave_nothing() -> None:
    """Their namespaces hold the same addresses and never meet."""
    with owned_run() as first, owned_run() as second:
        for run in (first, second):
            lab = Lab(run)
            lab.build()
            assert "eth0" in list_interfaces(lab.node_namespace(next(iter(lab.pods.values())).node))
            assert traces(run.state.slot)
    assert traces(first.state.slot) == traces(second.state.slot) == []


def test_a_lab_whose_owner_was_killed_is_removed_by_stop() -> None:
    """kill -9 leaves daemons and namespaces; ``yett demo --stop`` ends and removes what was recorded."""
    owner = subprocess.Popen([sys.executable, "-c", CRASHING_OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    slot = int(owner.stdout.readline())
    (run,) = [run for run in find_runs() if run.state.slot == slot]
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert traces(slot)
    assert all(is_alive(process) for process in run.state.processes)
    subprocess.run([sys.executable, "-m", "services.cli", "demo", "--stop"], check=True, capture_output=True)
    assert traces(slot) == []
    assert not any(is_alive(process) for process in run.state.processes)
    assert slot not in [run.state.slot for run in find_runs()]


def test_an_interrupted_demo_leaves_nothing() -> None:
    """Ctrl-C in the middle: what was made so far is removed before the command ends."""
    command = [sys.executable, "-m", "services.cli", "demo", "--output", "json"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    mine: list[Run] = []
    while not mine or len(mine[0].state.namespaces) < 5:
        assert time.monotonic() < deadline and demo.poll() is None
        mine = [run for run in find_runs() if run.state.owner and run.state.owner.pid == demo.pid]
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=30)
    assert (demo.returncode, output) == (130, "")
    assert traces(mine[0].state.slot) == []
