"""Whatever dies, no verdict changes; and what is started again takes part in the next change."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.demo import servers, topology
from services.demo.figures import FreshNames, ask, open_questions
from services.demo.pipeline import CAPABILITIES, CONTROLLER, agent_name, recorder_name
from services.demo.state import Process, is_alive
from services.demo.topology import NODE_A
from services.demo.traffic import Traffic
from tests.e2e.conftest import Running
from tests.e2e.watch import Route, Watch

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

ALLOWED_FROM = ("figures/prober", "figures/prober-b")
DENIED_FROM = ("app/curl-frontend", "app/curl-frontend.b")
ROUNDS = 60
"""Rounds of traffic in each state: before, while it is dead, after it is back."""

SWITCH = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: change-{number}, namespace: switch}}
spec: {{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: "203.0.113.{number}/32"}}}}]}}]}}
"""


@pytest.fixture(scope="module")
def routes(running: Running) -> list[Route]:
    """Allowed by a learned name, on both nodes; denied, on both nodes, to the very same address."""
    running.apply("figures.yaml")
    name, address = FreshNames().take()
    for key in ALLOWED_FROM:
        with open_questions(running.demo.lab, topology.find_pod(key)) as questions:
            ask(questions, name)
    allowed = [Route(topology.find_pod(key), address, is_allowed=True) for key in ALLOWED_FROM]
    return allowed + [Route(topology.find_pod(key), address, is_allowed=False) for key in DENIED_FROM]


def start_nats(running: Running) -> Process:
    """The server again, on its old store and address."""
    return servers.start_nats(running.demo.lab, servers.find_nats_server())


def find_process(running: Running, name: str) -> Process:
    """The newest process of that name."""
    return [process for process in running.demo.run.state.processes if process.name == name][-1]


CAPABILITY_BITS = {"net_admin": 12, "perfmon": 38, "bpf": 39}
"""Of linux/capability.h."""


VICTIMS: dict[str, Callable[[Running], Process]] = {
    CONTROLLER: lambda running: running.demo.pipeline.start_controller(),
    agent_name(NODE_A): lambda running: running.demo.pipeline.start_agent(NODE_A),
    recorder_name(NODE_A): lambda running: running.demo.pipeline.start_recorder(NODE_A),
    "nats": start_nats,
}


@pytest.mark.parametrize("victim", list(VICTIMS))
def test_kill_9_under_traffic_changes_no_verdict(running: Running, routes: list[Route], victim: str) -> None:
    """pid, traffic and revision do change; not one datagram is lost or let through."""
    killed = find_process(running, victim)
    before = running.revision()
    assert is_alive(killed)
    with Watch(running.demo.lab, routes) as watch:
        os.kill(killed.pid, signal.SIGKILL)
        watch.await_rounds(ROUNDS)
        assert not is_alive(killed)
        started = VICTIMS[victim](running)
        watch.await_rounds(ROUNDS)
        number = 10 + list(VICTIMS).index(victim)
        after = running.apply(f"change-{number}.yaml", SWITCH.format(number=number))
        watch.await_rounds(ROUNDS)
    assert watch.find_changes() == []
    assert watch.count_arrived() >= ROUNDS * 3 * len(ALLOWED_FROM)
    assert started.pid != killed.pid
    assert after > before


def test_names_travel_again_after_the_recorder_and_nats_were_killed(running: Running, routes: list[Route]) -> None:
    """What a pod on one node resolves is usable on the other."""
    names = FreshNames()
    name, address = (names.take(), names.take())[1]
    asker, user = (topology.find_pod(key) for key in ALLOWED_FROM)
    with open_questions(running.demo.lab, asker) as questions:
        ask(questions, name)
    with Watch(running.demo.lab, [Route(asker, address, is_allowed=True)]) as watch:
        deadline = time.monotonic() + 5
        while not _passes(running, user, address):
            assert time.monotonic() < deadline, "the name did not reach the other node"
    assert watch.find_changes() == []


def _passes(running: Running, pod: topology.Pod, address: str) -> bool:
    reached = running.run(Traffic(running.demo.lab).connect(pod, address, 80, address))
    return reached.is_open


def list_map_ids(running: Running, node: topology.Node) -> dict[str, str]:
    """The kernel's ids of the node's pinned maps, by path; a map made anew has another id.

    Without the arrays of tail calls: they belong to a build of the programs, and hold no state.
    """
    found = {}
    for path in sorted((running.demo.run.pins / node.key).rglob("*")):
        if path.name.startswith("tails-"):
            continue
        shown = subprocess.run(
            ["bpftool", "-j", "map", "show", "pinned", str(path)], capture_output=True, text=True, check=False
        )
        if shown.returncode == 0 and '"id":' in shown.stdout:
            found[str(path)] = shown.stdout.partition('"id":')[2].partition(",")[0]
    return found


def test_an_agent_that_starts_again_flushes_no_map_and_cuts_no_connection(
    running: Running, routes: list[Route]
) -> None:
    """It reads what is pinned and writes the difference: the maps are the same ones, and flows live on in them."""
    pod, address = routes[0].pod, routes[0].address
    before = list_map_ids(running, NODE_A)
    assert len(before) >= 5, "no pinned maps found"
    running.demo.traffic.open_live(pod, address, topology.ECHO_PORT)
    with Watch(running.demo.lab, routes) as watch:
        agent = find_process(running, agent_name(NODE_A))
        os.kill(agent.pid, signal.SIGTERM)
        deadline = time.monotonic() + 5
        while is_alive(agent):
            assert time.monotonic() < deadline, "SIGTERM does not end the agent within 5 s"
            watch.await_rounds(1)
        running.demo.pipeline.start_agent(NODE_A)
        running.apply("change-20.yaml", SWITCH.format(number=20))
        watch.await_rounds(ROUNDS)
    assert watch.find_changes() == []
    assert running.demo.traffic.use_live(pod)
    after = list_map_ids(running, NODE_A)
    assert {path: after.get(path) for path in before} == before


def test_deleting_the_policy_stream_changes_no_verdict(running: Running, routes: list[Route]) -> None:
    """Agents keep their last state; the controller makes the stream anew, in a new epoch, and changes go on."""
    import nats

    async def delete_stream() -> None:
        client = await nats.connect(running.demo.run.state.nats_url)
        await client.jetstream().delete_stream("YETT_POLICY")
        await client.close()

    def epoch() -> str:
        status = running.run(running.demo.bus.ask_controller())
        return status.epoch if status else ""

    former = epoch()
    with Watch(running.demo.lab, routes) as watch:
        running.run(delete_stream())
        deadline = time.monotonic() + 60
        while epoch() in ("", former):
            assert time.monotonic() < deadline, "the controller made no new epoch"
            watch.await_rounds(10)
        running.settle(0)
        running.apply("change-21.yaml", SWITCH.format(number=21))
        watch.await_rounds(ROUNDS)
    assert watch.find_changes() == []


def test_a_new_flow_of_every_pod_is_judged_while_every_service_is_dead(running: Running, routes: list[Route]) -> None:
    """The pinned programs need nobody: neither for an old name nor for one that is resolved meanwhile."""
    names = [find_process(running, name) for name in VICTIMS if name != "nats"]
    for process in names:
        os.kill(process.pid, signal.SIGKILL)
    with Watch(running.demo.lab, routes) as watch:
        watch.await_rounds(ROUNDS)
        fresh = FreshNames()
        name, address = (fresh.take(), fresh.take(), fresh.take())[2]
        with open_questions(running.demo.lab, routes[0].pod) as questions:
            ask(questions, name)
        assert _passes(running, routes[0].pod, address)
    assert watch.find_changes() == []


def test_agents_and_recorders_have_the_capabilities_of_an_installation_and_no_others(running: Running) -> None:
    """Everything that these tests see them do is done with three of root's forty; deploy/base grants the same."""
    wanted = sum(1 << CAPABILITY_BITS[name] for name in CAPABILITIES)
    for name in [name_of(node) for node in topology.NODES for name_of in (agent_name, recorder_name)]:
        status = Path(f"/proc/{find_process(running, name).pid}/status").read_text()
        said = dict(line.split(":\t", 1) for line in status.splitlines())
        assert {int(said[each], 16) for each in ("CapPrm", "CapEff", "CapBnd")} == {wanted}, name
        assert said["NoNewPrivs"] == "1"
