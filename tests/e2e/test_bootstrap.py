"""No deadlock at the bottom: NATS is a pod of the node that strict mode shuts, and no earlier state is left."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from schemas.status import AgentStatus
from services.demo import servers, zones
from services.demo.lab import in_namespace, run_command
from services.demo.netns import open_socket
from services.demo.servers import NATS_PORT
from services.demo.topology import NODE_A
from services.nodeagent.gate import GROUP
from tests.e2e.onenode import ALLOWED, PORT, OneNode, echo_server, make_pod, one_node, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

NATS, CLIENT = make_pod(40, "yett-system"), make_pod(41)
BESIDE, NAMES, SIX = 4223, 5353, 4224
"""Ports of the NATS pod: not listed; listed for UDP; listed for TCP on IPv6."""
OPENINGS = f"tcp:{NATS.address}/32:{NATS_PORT},udp:{NATS.address}:{NAMES},tcp:[{NATS.address6}/128]:{SIX}"
QUIET_SECONDS = 0.5


class Hosted(OneNode):
    """NATS is in a pod of the node; the host's processes reach it by an address of the fabric."""

    def start_nats(self) -> None:
        run = self.run
        for pod in (NATS, CLIENT):
            self.lab.add_pod(pod)
        self.lab.pods.clear()  # the cluster does not know of them yet
        lead = f"ip daddr {run.fabric_address} tcp dport {NATS_PORT} dnat to {NATS.address}"
        chain = f"chain in {{ type nat hook prerouting priority dstnat; {lead}; }}"
        run_command(in_namespace(self.lab.fabric, "nft", "-f", "-"), given=f"table ip lead {{ {chain}; }}")
        folder = run.folder / "nats"
        folder.mkdir()
        configuration = folder / "nats-server.conf"
        configuration.write_text(zones.render_nats(folder, address="0.0.0.0", port=NATS_PORT))
        command = in_namespace(self.lab.pod_namespace(NATS), str(servers.find_nats_server()), "-c", str(configuration))
        process = servers.start_process(run, "nats", command)
        servers.wait_until(run, process, lambda: servers.connects(run.fabric_address, NATS_PORT))
        run.state.nats_url = f"nats://{run.fabric_address}:{NATS_PORT}"
        run.save()

    def wipe(self) -> None:
        """bpffs and the copy on disk."""
        shutil.rmtree(self.run.pins / NODE_A.key)
        shutil.rmtree(self.run.folder / f"state-{NODE_A.key}")

    def read_gate(self) -> str:
        return "".join(self.in_node("nft", "list", "table", family, "yett") for family in ("inet", "bridge"))

    def is_judged(self) -> bool:
        shown = self.in_node("ip", "-d", "link", "show", NATS.interface)
        return f"group {GROUP}" in shown or f"group {GROUP:#x}" in shown

    def connects(self, namespace: str, port: int, address: str = NATS.address) -> bool:
        return servers.connects(address, port, namespace)


@pytest.fixture(scope="module")
def node() -> Iterator[Hosted]:
    """All but an agent: that finds a NATS pod of which it knows nothing."""
    with one_node(Hosted, mode="strict") as made:
        made.build(default="allow")
        made.own["YETT_NATS_URL"] = f"nats://{NATS.address}:{NATS_PORT}"
        yield made


@contextmanager
def served(node: Hosted) -> Iterator[None]:
    """What the NATS pod has on its other ports."""
    six = open_socket(node.lab.pod_namespace(NATS), socket.AF_INET6, socket.SOCK_STREAM)
    with echo_server(node.lab.pod_namespace(NATS), port=BESIDE), closing(six):
        six.bind(("::", SIX))
        six.listen()
        yield


def sends(node: Hosted, namespace: str, source: str, port: int) -> bool:
    """Whether one of ten datagrams with this source reaches the outside."""
    with node.listen() as listener, closing(open_socket(namespace, socket.AF_INET, socket.SOCK_DGRAM)) as opened:
        opened.bind((source, port))
        for _ in range(10):
            opened.sendto(b"out", (ALLOWED, PORT))
        return listener.wait(QUIET_SECONDS)


def is_of(node: Hosted, status: AgentStatus) -> bool:
    return status.pid == node.agent.pid and status.revision > 0


def test_without_it_the_agent_waits_for_what_it_shuts(node: Hosted) -> None:
    """Nobody reaches the NATS pod, and the agent, which says that it waits, has told nothing."""
    assert node.connects(node.namespace, NATS_PORT)
    node.start_agent()
    until(lambda: "waiting for NATS" in node.read_agent_log(), 60, "the agent waits for NATS")
    until(lambda: node.in_node("tc", "filter", "show", "dev", NATS.interface, "ingress"), 20, "programs are on")
    assert not node.connects(node.namespace, NATS_PORT) and not node.connects(node.lab.pod_namespace(CLIENT), NATS_PORT)
    assert node.status() is None and "accept" not in node.read_gate().replace("policy accept", "")


def test_with_it_the_agent_hears_what_it_may_open(node: Hosted) -> None:
    """On nothing: it connects through the gate and gets its state, while of pods that it does not know exactly the
    listed ports pass. When the cluster names them they are judged, and policy alone decides. A restart without the
    setting leaves the table that was there without it."""
    without, inside, client = node.read_gate(), node.namespace, node.lab.pod_namespace(CLIENT)
    node.end_agent()
    node.wipe()
    node.start_agent(YETT_BOOTSTRAP=OPENINGS)
    node.await_status(lambda status: is_of(node, status), "the agent has a state", 60)
    with served(node):
        assert not node.is_judged()
        assert node.connects(inside, NATS_PORT) and node.connects(client, NATS_PORT)
        assert node.connects(inside, SIX, NATS.address6) and node.connects(client, SIX, NATS.address6)
        assert not node.connects(inside, BESIDE) and not node.connects(client, BESIDE)
        check_senders(node)
        node.in_node("nft", "flush", "chain", "inet", "yett", "prerouting")
        until(lambda: node.connects(inside, NATS_PORT) and not node.connects(inside, BESIDE), 20, "the gate is back")
        for pod in (NATS, CLIENT):
            node.lab.pods[pod.key] = pod
        node.announce([NATS, CLIENT])
        node.await_agent()
        assert node.is_judged()
        assert node.connects(inside, BESIDE) and node.connects(client, BESIDE)
    node.end_agent()
    node.start_agent()
    node.await_agent()
    assert node.read_gate() == without and node.is_judged()


def check_senders(node: Hosted) -> None:
    """From the listed port the served pod alone says something, from another not even that one; somebody else does not
    by taking its address, which would get through without the gate. What somebody added to the table goes again."""
    server, client = (node.lab.pod_namespace(pod) for pod in (NATS, CLIENT))
    assert sends(node, server, NATS.address, NAMES) and not sends(node, server, NATS.address, BESIDE)
    assert not sends(node, client, CLIENT.address, NAMES)
    node.in_pod(CLIENT, "ip", "addr", "add", f"{NATS.address}/32", "dev", "lo")
    assert not sends(node, client, NATS.address, NAMES)
    whole = node.read_gate()

    def forges() -> bool:
        node.in_node("nft", "insert", "rule", "inet", "yett", "prerouting", "iifname", CLIENT.interface, "accept")
        return sends(node, client, NATS.address, NAMES)

    until(forges, 20, "without the gate it would get through")
    node.in_pod(CLIENT, "ip", "addr", "del", f"{NATS.address}/32", "dev", "lo")
    until(lambda: node.read_gate() == whole, 20, "the rule that opened it is gone")
