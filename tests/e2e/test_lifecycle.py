"""An agent's life on its node: alone, with tiny maps, beside others' filters, and gone without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from schemas.status import FOREIGN_ENFORCER, AgentStatus
from services.common.metrics import LIVE_PATH, READY_PATH
from services.demo.lab import in_namespace, list_interfaces
from services.demo.pipeline import METRICS_AGENT
from services.demo.state import is_alive
from services.demo.topology import NODE_A, Pod
from services.nodeagent.gate import GROUP
from services.nodeagent.links import AUDIT_SECONDS
from services.nodeagent.metrics import MAP_REFUSED
from tests.e2e.foreign import accept_all, add_filter, pinned
from tests.e2e.onenode import ALLOWED, DENIED, PORT, OneNode, allow_egress, is_enforced, make_pod, one_node, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]

PODS = [make_pod(10), make_pod(11)]
OURS = "handle 0x7e77"


@pytest.fixture(scope="module")
def node() -> Iterator[OneNode]:
    """Strict, so that what is not judged is shut."""
    with one_node(mode="strict") as made:
        made.folder.write("10-allow.yaml", allow_egress("only", f"{ALLOWED}/32"))
        made.start(PODS)
        yield made


def run_agent(node: OneNode, *arguments: str, **own: str) -> subprocess.CompletedProcess[str]:
    """Another process of the agent's on the same node, to its end."""
    environment = {**node.pipeline.node_environment(NODE_A), **own}
    command = in_namespace(node.namespace, sys.executable, "-m", *arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def list_filters(node: OneNode, pod: Pod) -> list[str]:
    shown = [node.in_node("tc", "filter", "show", "dev", pod.interface, hook) for hook in ("ingress", "egress")]
    return [line for text in shown for line in text.splitlines() if "handle" in line]


def passes(node: OneNode, pod: Pod, address: str, seconds: float = 0.5) -> bool:
    """Whether a datagram of a new flow arrives."""
    with node.listen() as listener, node.open(pod) as opened:
        opened.sendto(b"x", (address, PORT))
        return listener.wait(seconds) and any(at == address for at, _ in listener.receive())


@pytest.mark.parametrize("place", ["the same folder", "a folder of its own"])
def test_a_second_agent_refuses_to_start(node: OneNode, tmp_path: Path, place: str) -> None:
    """With exit status 2 and a sentence for a person, and the first one goes on."""
    own = {} if place == "the same folder" else {"YETT_PIN_ROOT": f"/sys/fs/bpf/yett-second-{os.getpid()}"}
    done = run_agent(node, "services.nodeagent", **own)
    try:
        assert done.returncode == 2
        assert "another agent" in done.stderr and "end it first" in done.stderr
        assert "Traceback" not in done.stderr
        assert is_alive(node.agent) and passes(node, PODS[0], ALLOWED)
    finally:
        if own:
            Path(own["YETT_PIN_ROOT"]).rmdir()


MANY = [f"10.9.{n}.0/24" for n in range(70)]
TINY = {"YETT_MAP_PREFIXES": "64", "YETT_MAP_RULE_COUNTERS": "64", "YETT_MAP_RULESETS": "4"}
FULL = {
    "cidrs4": [allow_egress("many", f"{DENIED}/32", *MANY)],
    "rule_counters": [allow_egress(f"many-{n}", f"{DENIED}/32", ports=[{"port": n + 1}]) for n in range(70)],
    "rulesets": [allow_egress(f"own-{n}", MANY[n], pods={"app": pod.name}) for n, pod in enumerate(PODS)],
}
"""What is full -> policies that need more of it than there is: content of a map, or an index of an array."""


def test_a_full_map_is_told_and_changes_no_verdict(node: OneNode) -> None:
    """The policy that needs more room is not enforced, the one before it is, and it is said: in the status, and by the
    counter that an alert reads, on the page that is scraped."""
    node.end_agent()
    node.start_agent(**TINY)
    node.await_agent()
    for full, policies in FULL.items():
        assert count_refused(node, full) == 0
        before = node.revision()
        node.folder.write("11-many.yaml", "---\n".join(policies))
        status = node.await_status(lambda one, full=full: is_told(one, full), f"the full {full} is told")
        assert status.revision <= before and status.counters["failed_changes"] >= 1
        assert status.counters[f"refused_{full}"] >= 1 and count_refused(node, full) >= 1
        assert passes(node, PODS[0], ALLOWED) and not passes(node, PODS[0], DENIED)
        node.folder.remove("11-many.yaml")
        node.await_status(
            lambda one, before=before: not one.problems and one.revision > before, "the state that fits is enforced"
        )
        assert passes(node, PODS[0], ALLOWED) and not passes(node, PODS[0], DENIED)
    node.end_agent()
    node.start_agent()
    node.await_agent()


def is_told(status: AgentStatus, full: str) -> bool:
    return any(one.object == f"map {full}" for one in status.problems)


def count_refused(node: OneNode, full: str) -> float:
    """The counter of refused writes as Prometheus reads it; 0 while there is no such series."""
    families = text_string_to_metric_families(read_page(node, "/metrics")[1])
    samples = (one for family in families for one in family.samples if one.name == MAP_REFUSED.name)
    return sum(one.value for one in samples if one.labels == {"map": full})


@pytest.fixture
def foreign() -> Iterator[str]:
    """A pinned program of somebody else's that accepts everything and ends the chain; its path."""
    with pinned(accept_all(), "foreign") as pin:
        yield pin


def test_filters_of_others_are_neither_replaced_nor_removed(node: OneNode, foreign: str) -> None:
    """Behind ours they run on; before ours they are told, and in strict mode the interface is shut until they go."""
    pod = PODS[0]
    add_filter(node, pod, 9, foreign)
    add_filter(node, pod, 1, foreign)
    status = node.await_status(lambda one: state_of(one, pod) == "foreign", "the foreign filter is told")
    (told,) = [one.foreign for one in status.endpoints if one.foreign]
    assert told.endswith("at tc ingress, priority 1, handle 0x1")
    (problem,) = [one for one in status.problems if one.object == f"{FOREIGN_ENFORCER} on {pod.interface}"]
    assert told in problem.message
    assert not passes(node, pod, ALLOWED) and not passes(node, pod, DENIED)
    shown = list_filters(node, pod)
    assert sum("pref 1 " in line for line in shown) == 1
    assert sum("pref 9 " in line for line in shown) == 1
    assert sum(OURS in line for line in shown) == 2
    node.in_node("tc", "filter", "del", "dev", pod.interface, "ingress", "prio", "1")
    status = node.await_status(lambda one: state_of(one, pod) == "enforced", "the interface is judged again")
    assert not [one for one in status.problems if FOREIGN_ENFORCER in one.object]
    until(lambda: passes(node, pod, ALLOWED), 10, "the interface is open again")
    assert not passes(node, pod, DENIED)
    assert any("pref 9 " in line for line in list_filters(node, pod))


def state_of(status: AgentStatus, pod: Pod) -> str:
    return next((one.state for one in status.endpoints if one.interface == pod.interface), "")


@pytest.mark.parametrize("loss", ["clsact deleted", "one filter deleted", "filter replaced"])
def test_a_lost_filter_is_back_within_a_second(node: OneNode, loss: str) -> None:
    """By the kernel's notification: the agent looks by itself three times later. Then nothing denied passes, strict
    mode opens the interface again, and the loss is counted; how many denied datagrams passed until the agent had heard
    of it is printed, since whoever may take a filter off may let a packet pass too."""
    pod = PODS[1]
    until(lambda: passes(node, pod, ALLOWED), 10, "the pod is judged")
    status = node.status()
    before = status.counters.get("filters_put_back", 0) if status else 0
    device = ("dev", pod.interface)
    commands = {
        "clsact deleted": ("tc", "qdisc", "del", *device, "clsact"),
        "one filter deleted": ("tc", "filter", "del", *device, "ingress", "prio", "2"),
        "filter replaced": (
            *("tc", "filter", "replace", *device, "ingress", "prio", "2", "handle", "0x7e77", "bpf", "da"),
            *("object-pinned", str(next((node.run.pins / NODE_A.key).glob("*/program-to_pod")))),
        ),
    }
    leaked = 0
    with node.listen() as listener, node.open(pod) as opened:
        node.in_node(*commands[loss])
        lost_at = time.monotonic()
        while sum(OURS in line for line in list_filters(node, pod)) < 2 or time.monotonic() < lost_at + 0.5:
            opened.sendto(b"x", (DENIED, PORT))
            leaked += sum(1 for _ in listener.receive())
            assert time.monotonic() < lost_at + 1.5, "not put back within a second"
        while listener.wait(0.05):
            leaked += sum(1 for _ in listener.receive())
        print(f"\n{loss}: {leaked} denied datagrams passed before the agent heard of it")
        assert AUDIT_SECONDS >= 3 * 1.5, "it was not found by looking"
        for _ in range(20):
            opened.sendto(b"after", (DENIED, PORT))
        heard = set()  # one that passed before may come late
        while listener.wait(0.1):
            heard.update(data for _, data in listener.receive())
        assert b"after" not in heard, "nothing denied passes from then on"
    node.await_status(lambda one: one.counters.get("filters_put_back", 0) > before, "the loss is counted")
    until(lambda: passes(node, pod, ALLOWED), 10, "the interface is open again")
    assert not passes(node, pod, DENIED)


@pytest.mark.parametrize("former", ["ran here", "was never seen"])
def test_an_interface_that_comes_before_its_pod_is_not_a_former_pods(node: OneNode, former: str) -> None:
    """A pod's object outlives its sandbox, the next pod has its address, and the agent sees that one's interface before
    it hears whose it is: it is the new pod's as soon as that is known, and where the former pod had an interface of its
    own here, nobody's till then."""
    host = 60 if former == "ran here" else 61
    old, new, others = make_pod(host, "u"), Pod("t", f"new{host}", NODE_A, host), list(node.lab.pods.values())
    before = node.revision()
    node.folder.write("12-free.yaml", allow_egress("free", "0.0.0.0/0", namespace="u"))
    node.announce([*others, old])
    if former == "ran here":
        node.lab.add_pod(old)
    node.settle(before)
    if former == "ran here":
        node.lab.remove_pod(old)
        until(lambda: old.interface not in list_interfaces(node.namespace), 10, "the old interface is gone")
    node.lab.add_pod(new)
    node.await_status(lambda status: is_seen(status, new), "the interface is seen")
    assert former != "ran here" or not passes(node, new, DENIED)
    node.announce([*others, old, new])
    node.await_status(lambda status: is_enforced(status, new), "the interface is its pod's")
    assert passes(node, new, ALLOWED) and not passes(node, new, DENIED)
    before = node.revision()
    node.lab.remove_pod(new)
    node.announce(others)
    node.folder.remove("12-free.yaml")
    node.settle(before)


def is_seen(status: AgentStatus, pod: Pod) -> bool:
    return any(one.interface == pod.interface and pod.address in one.addresses for one in status.endpoints)


def read_page(node: OneNode, path: str) -> tuple[int, str]:
    """Status and content of what the agent serves; 0 while nobody answers."""
    url = f"http://{NODE_A.address}:{METRICS_AGENT}{path}"
    content, _, status = node.in_node("curl", "-s", "-w", "\n%{http_code}", url, check=False).rpartition("\n")
    return int(status), content


def kill_nats(node: OneNode) -> None:
    """Returns when it is gone; its store stays."""
    process = [one for one in node.run.state.processes if one.name == "nats"][-1]
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: not is_alive(process), 10, "NATS ends")


def test_an_agent_is_ready_from_its_first_state_on(node: OneNode) -> None:
    """503 with programs on every interface and no state; 200 once a state is in force, and packets are judged by it
    then; still 200 when NATS is dead: a kubelet that took the agent out for that would help nobody, lag is a metric."""
    node.end_agent()
    assert run_agent(node, "services.cli", "detach").returncode == 0  # removes the state on disk, too
    kill_nats(node)
    node.start_agent()
    until(lambda: all(is_attached(node, pod) for pod in PODS), 60, "programs are on every interface")
    assert (read_page(node, READY_PATH)[0], read_page(node, LIVE_PATH)[0]) == (503, 200)
    assert not passes(node, PODS[0], ALLOWED)
    node.start_nats()
    until(lambda: read_page(node, READY_PATH)[0] == 200, 60, "the agent is ready")
    assert passes(node, PODS[0], ALLOWED) and not passes(node, PODS[0], DENIED)
    kill_nats(node)
    until(lambda: "yett_nats_connected 0.0" in read_page(node, "/metrics")[1], 20, "the agent has lost NATS")
    assert read_page(node, READY_PATH)[0] == 200
    assert passes(node, PODS[0], ALLOWED) and not passes(node, PODS[0], DENIED)
    node.start_nats()
    node.await_agent()


def is_attached(node: OneNode, pod: Pod) -> bool:
    """Whether both of our programs are on the pod's interface."""
    return sum(OURS in line for line in list_filters(node, pod)) == 2


def test_yett_detach_removes_every_trace(node: OneNode) -> None:
    """Filters, marks, nftables, pins, state: what is left is what was there before the agent, and traffic flows."""
    refused = run_agent(node, "services.cli", "detach")
    assert refused.returncode == 2 and "another agent" in refused.stderr
    tables = [f"table {family} {name}" for family in ("inet", "bridge") for name in ("yett", "yett-resolvers")]
    until(lambda: set(tables) <= set(node.in_node("nft", "list", "tables").splitlines()), 10, "all tables are there")
    node.end_agent()
    done = run_agent(node, "services.cli", "detach")
    assert done.returncode == 0, done.stderr
    for pod in PODS:
        assert not any(OURS in line for line in list_filters(node, pod))
        assert f"group {GROUP}" not in node.in_node("ip", "link", "show", pod.interface)
    assert "clsact" not in node.in_node("tc", "qdisc", "show", "dev", PODS[1].interface)
    assert "yett" not in node.in_node("nft", "list", "tables")
    assert not (node.run.pins / NODE_A.key).exists()
    assert not (node.run.folder / f"state-{NODE_A.key}").exists()
    assert passes(node, PODS[1], DENIED)
    node.start_agent()
    node.await_agent()
    until(lambda: not passes(node, PODS[1], DENIED), 10, "an agent that starts again enforces again")
