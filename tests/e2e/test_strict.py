"""Strict mode has no window: a pod's first packet is judged or dropped, whoever is awake, whatever was there before."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

import pytest

from schemas.status import AgentStatus
from services.demo.netns import open_socket
from services.demo.topology import Pod
from services.nodeagent.gate import GROUP
from tests.e2e.onenode import ALLOWED, DENIED, PORT, Listener, OneNode, allow_egress, make_pod, one_node, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

WAVE = 20
"""Pods whose senders run at once."""
PODS_AWAKE, PODS_ASLEEP = 100, 100
"""Pods that start while the agent runs, and while it was killed."""
PAUSE_SECONDS = 0.004
QUIET_SECONDS = 0.5


@pytest.fixture(scope="module")
def node() -> Iterator[OneNode]:
    """Strict, default deny; pods of namespace t may send to one address."""
    with one_node(mode="strict") as made:
        made.folder.write("10-allow.yaml", allow_egress("only", f"{ALLOWED}/32"))
        made.start([make_pod(250)])
        yield made


class Senders:
    """Every pod of a wave sends to both addresses from before its link is up, until ``stop``."""

    def __init__(self, node: OneNode) -> None:
        self._node = node
        self._sockets: dict[str, socket.socket] = {}
        self._stop = threading.Event()
        self.sent: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def add(self, pod: Pod, namespace: str) -> None:
        """From now on, whether there is an interface or not."""
        opened = open_socket(namespace, socket.AF_INET, socket.SOCK_DGRAM)
        opened.setblocking(False)
        self._sockets[pod.name] = opened

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        for one in self._sockets.values():
            one.close()

    def _work(self) -> None:
        while not self._stop.wait(PAUSE_SECONDS):
            for name, opened in list(self._sockets.items()):
                for address in (DENIED, ALLOWED):
                    try:
                        opened.sendto(name.encode(), (address, PORT))
                    except OSError:  # no interface, no route, no carrier yet
                        continue
                    self.sent[name] += 1


def start_wave(node: OneNode, hosts: range) -> tuple[list[Pod], Senders]:
    """Pods whose senders were there first; announced to the cluster before they run, as the scheduler binds them."""
    pods = [make_pod(host) for host in hosts]
    node.announce([*node.lab.pods.values(), *pods])
    senders = Senders(node)
    for pod in pods:
        node.lab.add_sandbox(pod)
        senders.add(pod, node.lab.pod_namespace(pod))
        node.lab.link_pod(pod)
    return pods, senders


def drain(listener: Listener, arrived: Counter[tuple[str, str]]) -> None:
    arrived.update((address, data.decode()) for address, data in listener.receive())


def await_arrivals(listener: Listener, arrived: Counter[tuple[str, str]], pods: list[Pod]) -> None:
    """Until every pod was heard at the allowed address: the senders did send, and the listener listens."""

    def all_heard() -> bool:
        drain(listener, arrived)
        return all(arrived[(ALLOWED, pod.name)] for pod in pods)

    until(all_heard, 60, "every pod's allowed datagrams arrive")


def names_heard(arrived: Counter[tuple[str, str]]) -> set[str]:
    """The pods of which anything arrived."""
    return {name for _, name in arrived}


def leaked(arrived: Counter[tuple[str, str]]) -> int:
    return sum(count for (address, _), count in arrived.items() if address == DENIED)


def test_a_pod_that_is_said_to_be_enforced_is_not_shut_any_more(node: OneNode) -> None:
    """The status follows the gate: the first packet after it, sent once, passes; of twenty pods every one's."""
    arrived: Counter[tuple[str, str]] = Counter()
    hosts = range(210, 230)
    with node.listen() as listener:
        for host in hosts:
            pod = make_pod(host)
            node.announce([*node.lab.pods.values(), pod])
            node.lab.add_pod(pod)
            node.await_status(lambda status, pod=pod: is_enforced(status, pod), f"{pod.key} is enforced")  # type: ignore[misc]
            with closing(node.open(pod)) as opened:
                opened.sendto(pod.name.encode(), (ALLOWED, PORT))
            listener.wait(QUIET_SECONDS)
            drain(listener, arrived)
    assert [host for host in hosts if not arrived[(ALLOWED, f"p{host}")]] == []


def is_enforced(status: AgentStatus, pod: Pod) -> bool:
    return any(each.pod == pod.key and each.state == "enforced" for each in status.endpoints)


def test_200_pods_that_send_from_before_their_link_is_up_leak_nothing(node: OneNode) -> None:
    """Half of them while the agent runs, half after kill -9: none of their datagrams reaches what policy denies."""
    arrived: Counter[tuple[str, str]] = Counter()
    sent = 0
    with node.listen() as listener:
        for first in range(2, 2 + PODS_AWAKE, WAVE):
            pods, senders = start_wave(node, range(first, first + WAVE))
            await_arrivals(listener, arrived, pods)
            senders.stop()
            assert all(senders.sent[pod.name] for pod in pods)
            sent += sum(senders.sent.values())
        node.end_agent()
        asleep, waves = [], []
        for first in range(2 + PODS_AWAKE, 2 + PODS_AWAKE + PODS_ASLEEP, WAVE):
            pods, senders = start_wave(node, range(first, first + WAVE))
            until(lambda pods=pods, senders=senders: all(senders.sent[one.name] > 40 for one in pods), 30, "all send")
            asleep += pods
            waves.append(senders)
            if len(waves) > 1:
                senders.stop()
        drain(listener, arrived)
        assert names_heard(arrived).isdisjoint(one.name for one in asleep), "with the agent dead no new pod is heard"
        node.start_agent()
        awake = asleep[:WAVE]
        await_arrivals(listener, arrived, awake)
        waves[0].stop()
        sent += sum(sum(one.sent.values()) for one in waves)
        drain(listener, arrived)
    print(f"{sent} datagrams from 200 pods, {sum(arrived.values())} arrived, {leaked(arrived)} where policy denies")
    assert leaked(arrived) == 0


@dataclass(frozen=True)
class Reborn(Pod):
    """A pod of a StatefulSet after its deletion: namespace, name and interface as before, another uid."""

    @property
    def uid(self) -> str:
        return f"{Pod.uid.__get__(self)[:-4]}beef"


OLD = make_pod(251)
HEIRS: dict[str, Pod] = {
    "number": make_pod(252),
    "number and name": Reborn(OLD.namespace, OLD.name, OLD.node, 253, OLD.labels),
    "number, name and address": Reborn(OLD.namespace, OLD.name, OLD.node, OLD.host, OLD.labels),
}


@pytest.mark.parametrize("keeps", list(HEIRS))
def test_what_takes_the_place_of_a_judged_interface_is_shut(node: OneNode, keeps: str) -> None:
    """With the agent dead, a new interface gets what a judged one had: nothing passes it, out or in, until it is judged
    for itself; marking it by hand opens it, which shows that the test would see a leak."""
    heir, others = HEIRS[keeps], list(node.lab.pods.values())
    node.announce([*others, OLD])
    node.lab.add_pod(OLD)
    node.settle(-1)
    index = read_index(node, OLD)
    node.end_agent()
    node.lab.remove_pod(OLD)
    node.lab.add_sandbox(heir)
    node.lab.link_pod(heir, ifindex=index)
    with node.listen() as listener, closing(node.open(heir)) as pod, closing(open_in_node(node)) as host:
        pod.bind(("0.0.0.0", PORT))
        pod.settimeout(QUIET_SECONDS)
        assert not passes_out(pod, listener) and not passes_in(host, heir, pod)
        node.in_node("ip", "link", "set", heir.interface, "group", str(GROUP))
        assert passes_out(pod, listener) and passes_in(host, heir, pod)
        node.announce([*others, heir])
        node.start_agent()
        node.await_agent()
        until(lambda: passes_out(pod, listener), 20, "the new pod is judged for itself")
        assert not passes_out(pod, listener, DENIED)
    node.lab.remove_pod(heir)
    node.announce(others)


def read_index(node: OneNode, pod: Pod) -> int:
    """Number of the host's side of a pod's link."""
    return int(node.in_node("ip", "-o", "link", "show", pod.interface).split(":")[0])


def open_in_node(node: OneNode) -> socket.socket:
    return open_socket(node.namespace, socket.AF_INET, socket.SOCK_DGRAM)


def passes_out(pod: socket.socket, listener: Listener, address: str = ALLOWED) -> bool:
    """Whether one of ten datagrams out of the pod arrives."""
    list(listener.receive())
    for _ in range(10):
        pod.sendto(b"out", (address, PORT))
    listener.wait(QUIET_SECONDS)
    return any(at == address for at, _ in listener.receive())


def passes_in(host: socket.socket, heir: Pod, pod: socket.socket) -> bool:
    """Whether one of ten datagrams from the node arrives in the pod."""
    for _ in range(10):
        with suppress(PermissionError):  # how a local sender learns of a drop in postrouting
            host.sendto(b"in", (heir.address, PORT))
    try:
        return pod.recv(64) == b"in"
    except TimeoutError:
        return False
