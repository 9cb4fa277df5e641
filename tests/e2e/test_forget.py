"""How far names travel, and that they are forgotten: two nodes, real answers, real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator

import nats
import pytest

from schemas import wire
from schemas.resolution import Resolution
from schemas.terms import NodeName
from services.demo import objects, topology
from services.demo.convergence import START_SECONDS
from services.demo.netns import open_socket
from services.demo.pipeline import agent_name, recorder_name
from services.demo.state import is_alive
from services.demo.topology import NODE_A, NODE_B, NODES, Node, Pod, fresh_name
from tests.e2e.conftest import Running, start_running
from tests.e2e.onenode import until
from tests.e2e.test_bad_input import await_truth, run_yett

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

POLICY = """\
apiVersion: networking.k8s.aws/v1alpha1
kind: ApplicationNetworkPolicy
metadata: {name: fresh, namespace: app}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to: [{domainNames: ["*.fresh.example.net"]}]
    ports: [{protocol: TCP, port: 80}]
"""
NEAR, BESIDE, FAR = map(topology.find_pod, ("app/curl-backend", "app/curl-frontend", "app/curl-frontend.b"))
"""Two pods of node a, and one of node b."""
NUMBERS = iter(range(40_001, 41_000))
"""Of names that nobody has asked for."""
LIMITS = iter(range(101, 1000))
CLUSTER_FILE = "01-cluster.yaml"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A pipeline of this module's own: what is learned here is nobody else's."""
    with start_running() as started:
        started.apply("fresh.yaml", POLICY)
        yield started


def configure(running: Running, share: str) -> None:
    """In force when it returns; another limit each time, so that there is a revision to wait for."""
    before = running.revision()
    running.demo.folder.write_config({"share": share, "addresses-per-name": str(next(LIMITS))})
    running.settle(before)


def resolve(running: Running, pod: Pod, name: str) -> None:
    assert running.run(running.demo.traffic.resolve(pod, name)), f"{name} is not answered"


def connect(running: Running, pod: Pod, address: str) -> socket.socket | None:
    """A connection out of the pod, or none within a second."""
    opened = open_socket(running.demo.lab.pod_namespace(pod), socket.AF_INET, socket.SOCK_STREAM)
    opened.settimeout(1.0)
    try:
        opened.connect((address, 80))
    except TimeoutError:
        opened.close()
        return None
    return opened


def is_open(running: Running, pod: Pod, address: str) -> bool:
    opened = connect(running, pod, address)
    if opened is not None:
        opened.close()
    return opened is not None


def answers(opened: socket.socket) -> bool:
    """Whether the server at the other end still hears us."""
    opened.settimeout(2.0)
    with contextlib.suppress(OSError):
        opened.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return bool(opened.recv(64))
    return False


def forget(running: Running, *what: str) -> dict[str, object]:
    done = run_yett(running, "forget", *what, "--output", "json", "--wait", "10")
    assert done.returncode == 0, done.stderr or done.stdout
    return dict(json.loads(done.stdout))


def counter(running: Running, name: str, *, of_agent: bool = False) -> int:
    """Of node a's recorder, or of node b's agent, as it last said."""
    running.run(asyncio.sleep(0.05))  # statuses are heard while the loop runs
    found = running.demo.bus.agents.get(NODE_B.name) if of_agent else running.demo.bus.recorders.get(NODE_A.name)
    return found.counters.get(name, 0) if found else 0


def test_a_forgotten_name_opens_nothing_anywhere_until_it_is_resolved_again(running: Running) -> None:
    """Resolved on node a it opens there and on node b; forgotten, no new connection on either, while the live one goes
    on; a name under the same pattern stays; the next answer opens both nodes again."""
    configure(running, share="cluster")
    (name, address), (other, stays) = fresh_name(next(NUMBERS)), fresh_name(next(NUMBERS))
    for one in (name, other):
        resolve(running, NEAR, one)
    live = connect(running, NEAR, address)
    assert live is not None
    await_truth(lambda: is_open(running, FAR, address) and [True])
    await_truth(lambda: is_open(running, FAR, stays) and [True])
    told = forget(running, name)
    assert told["purged"] and set(told["forgotten"].values()) == {True} and len(told["forgotten"]) == 4  # type: ignore[attr-defined,arg-type]
    assert not is_open(running, NEAR, address) and not is_open(running, BESIDE, address)
    assert not is_open(running, FAR, address)
    assert answers(live), "a live connection goes on"
    live.close()
    assert is_open(running, NEAR, stays) and is_open(running, FAR, stays)
    assert forget(running, name)["purged"] == 0
    assert not is_open(running, NEAR, address)
    resolve(running, NEAR, name)
    assert is_open(running, NEAR, address)
    await_truth(lambda: is_open(running, FAR, address) and [True])


def test_what_a_node_published_is_forgotten_and_what_others_saw_stays(running: Running) -> None:
    """Of two names that node b resolved, one was resolved on node a too: after ``--node`` that one is still open on
    node a, the other one nowhere."""
    configure(running, share="cluster")
    (only, address), (both, shared) = fresh_name(next(NUMBERS)), fresh_name(next(NUMBERS))
    resolve(running, FAR, only)
    resolve(running, FAR, both)
    resolve(running, NEAR, both)
    for one in (address, shared):
        await_truth(lambda one=one: is_open(running, NEAR, one) and is_open(running, FAR, one) and [True])
    forget(running, "--node", NODE_B.name)
    assert not is_open(running, NEAR, address) and not is_open(running, FAR, address)
    assert is_open(running, NEAR, shared)
    resolve(running, FAR, only)
    assert is_open(running, FAR, address)
    await_truth(lambda: is_open(running, NEAR, address) and [True])


def test_a_restart_forgets_no_more_than_was_said(running: Running) -> None:
    """What was learned after the word outlives an agent's and a recorder's restart, though the word is read again."""
    configure(running, share="cluster")
    name, address = fresh_name(next(NUMBERS))
    resolve(running, NEAR, name)
    forget(running, name)
    resolve(running, NEAR, name)
    await_truth(lambda: is_open(running, FAR, address) and [True])
    pids = {node.name: running.demo.bus.agents[node.name].pid for node in NODES}
    for node in NODES:
        restart(running, node)
    until(lambda: are_new(running, pids), START_SECONDS, "both agents enforce again")
    assert is_open(running, NEAR, address) and is_open(running, FAR, address)


def restart(running: Running, node: Node) -> None:
    """A node's agent and recorder, ended properly and started again."""
    pipeline = running.demo.pipeline
    for process in (pipeline.processes[agent_name(node)], pipeline.processes[recorder_name(node)]):
        os.kill(process.pid, signal.SIGTERM)
        while is_alive(process):
            time.sleep(0.01)
    pipeline.start_agent(node)
    pipeline.start_recorder(node)


def are_new(running: Running, pids: dict[str, int]) -> bool:
    """Whether every agent is another than these, enforces, and has read what was to be forgotten."""
    running.run(asyncio.sleep(0.05))
    found = running.demo.bus.agents
    return all(found[name].pid != pid and found[name].revision and found[name].forgotten for name, pid in pids.items())


def test_share_node_keeps_names_on_their_node(running: Running) -> None:
    """Another pod of the node may use what one resolved, by its own rules; the other node hears nothing, and the stream
    holds nothing. Back at ``cluster`` what is still true is told."""
    configure(running, share="node")
    name, address = fresh_name(next(NUMBERS))
    before = counter(running, "not_shared")
    resolve(running, NEAR, name)
    await_truth(lambda: counter(running, "not_shared") > before and [True])
    assert is_open(running, NEAR, address) and is_open(running, BESIDE, address)
    assert not is_open(running, FAR, address)
    configure(running, share="cluster")
    await_truth(lambda: is_open(running, FAR, address) and [True])


def test_a_name_refused_under_other_settings_is_used_once_they_allow_it(running: Running) -> None:
    """A recorder that hears of ``cluster`` first tells a name while the other agent still refuses it; once, and the
    agent has it nevertheless."""
    configure(running, share="node")
    name, address = fresh_name(next(NUMBERS))
    refused = counter(running, "names_not_shared", of_agent=True)
    running.run(tell_once(running, name, address))
    await_truth(lambda: counter(running, "names_not_shared", of_agent=True) > refused and [True])
    assert not is_open(running, FAR, address)
    configure(running, share="cluster")
    await_truth(lambda: is_open(running, FAR, address) and [True])


async def tell_once(running: Running, name: str, address: str) -> None:
    """As the recorder of node a tells it; the stream has it afterwards."""
    told = Resolution(name=name, addresses=(address,), ttl_seconds=60, node=NodeName(NODE_A.name))
    connection = await nats.connect(running.demo.run.state.nats_url)
    headers = {**wire.headers_for(told), wire.HEADER_TTL: "120s"}
    await connection.jetstream().publish(wire.subject_resolution(told.node, name), wire.encode(told), headers=headers)
    await connection.close()


def test_share_off_keeps_names_with_the_pod_that_asked(running: Running) -> None:
    """Nobody else may use it, on the same node or another."""
    configure(running, share="off")
    name, address = fresh_name(next(NUMBERS))
    resolve(running, NEAR, name)
    assert is_open(running, NEAR, address)
    assert not is_open(running, BESIDE, address) and not is_open(running, FAR, address)
    configure(running, share="cluster")


@pytest.mark.parametrize(("zones", "is_shared"), [(("one", "one"), True), (("one", "two"), False), (("", ""), False)])
def test_share_zone_stops_at_the_zone(running: Running, zones: tuple[str, str], is_shared: bool) -> None:
    """Nodes of one zone share, of two do not; nodes of no known zone are in nobody's."""
    cluster = objects.make_cluster()
    for node in (one for one in cluster if one["kind"] == "Node"):
        zone = zones[node["metadata"]["name"] == NODE_B.name]
        node["metadata"]["labels"] |= {"topology.kubernetes.io/zone": zone} if zone else {}
    running.demo.folder.write(CLUSTER_FILE, objects.render(cluster))
    configure(running, share="zone")
    name, address = fresh_name(next(NUMBERS))
    before = counter(running, "names_not_shared", of_agent=True)
    resolve(running, NEAR, name)
    assert is_open(running, BESIDE, address)
    if is_shared:
        await_truth(lambda: is_open(running, FAR, address) and [True])
    else:
        await_truth(lambda: counter(running, "names_not_shared", of_agent=True) > before and [True])
        assert not is_open(running, FAR, address)
