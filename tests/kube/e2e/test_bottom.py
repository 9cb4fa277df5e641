"""Nothing at the bottom waits for what stands on it: with everything gone at once, strict mode comes up by itself."""

from __future__ import annotations

import os
import shutil
import signal
import time

import pytest

from services.demo.convergence import START_SECONDS
from services.demo.servers import find_nats_server
from services.demo.state import is_alive
from services.demo.topology import NODE_A, NODES
from tests.kube.e2e.cluster import Cluster, open_to

pytestmark = [pytest.mark.kube, pytest.mark.e2e, pytest.mark.timeout(240)]

OPEN, SHUT = "203.0.113.10", "203.0.113.20"
CLIENTS = ("switch/switch-client", "switch/switch-client-b")


def kill_everything(whole: Cluster) -> None:
    """Controllers, agents, recorders, NATS and the API server, in one instant."""
    names = {"nats", *whole.demo.pipeline.processes}
    alive = [process for process in whole.demo.run.state.processes if process.name in names and is_alive(process)]
    assert len(alive) == len(names)
    for process in alive:
        os.kill(process.pid, signal.SIGKILL)
    whole.kube.apiserver.stop(signal.SIGKILL)
    whole.until(lambda: not any(map(is_alive, alive)), 10, "all are gone")


def reach(whole: Cluster, address: str) -> list[bool]:
    return [whole.reaches(key, address) for key in CLIENTS]


def test_everything_starts_at_once_on_nothing(whole: Cluster) -> None:
    """Pinned maps, the stream and one agent's copy on disk are wiped: the API server alone remembers. What policy
    allows passes again, what it denies does not, and every pod is enforced."""
    whole.apply("bottom.yaml", open_to(OPEN))
    run = whole.demo.run
    kill_everything(whole)
    for node in NODES:
        shutil.rmtree(run.pins / node.key)
    shutil.rmtree(run.folder / f"state-{NODE_A.key}")
    shutil.rmtree(run.folder / "nats" / "data")
    started = time.monotonic()
    whole.demo.pipeline.start()
    whole.demo.pipeline.start_nats(find_nats_server())
    whole.kube.start_apiserver()
    whole.demo.bus.agents.clear()
    whole.run(whole.demo.settle(0, seconds=START_SECONDS))
    print(f"enforced again after {time.monotonic() - started:.1f} s")
    assert reach(whole, OPEN) == [True, True] and reach(whole, SHUT) == [False, False]
    before = whole.revision()
    whole.objects.remove("bottom.yaml")
    whole.settle(before)
    assert reach(whole, OPEN) == [False, False]
