"""NodeLocal DNSCache: found on its node by its interface, trusted while that is there, and from this node alone."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from schemas.terms import Reason, Verdict
from services.demo.netns import open_socket
from tests.bpf import packets
from tests.bpf.messages import answer, query
from tests.e2e.onenode import ALLOWED, DENIED, PORT, Listener, OneNode, make_pod, one_node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

POD, NEIGHBOUR = make_pod(10), make_pod(11, "u")
CACHE, CACHE6 = "169.254.20.10", "fd00:20::10"
NAME, FORGED = "www.example.com", "forged.example.com"
POLICY = """\
apiVersion: networking.k8s.aws/v1alpha1
kind: ApplicationNetworkPolicy
metadata: {name: names, namespace: t}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to: [{domainNames: ["*.example.com"]}]
"""
FORWARD_ANYTHING = (
    "cd /proc/sys/net/ipv4/conf; for one in *; do echo 1 >$one/accept_local; echo 0 >$one/rp_filter; done"
)
"""A packet that bears an address of the node is a martian, which this kernel drops by itself: here it does not."""


@pytest.fixture(scope="module")
def node() -> Iterator[OneNode]:
    """No resolver in the settings, no cluster DNS Service; what no policy isolates may be sent."""
    with one_node() as made:
        made.start([POD, NEIGHBOUR], default="allow")
        made.apply("10-names.yaml", POLICY)
        made.in_node("sh", "-c", FORWARD_ANYTHING)
        yield made


@contextmanager
def node_cache(node: OneNode) -> Iterator[socket.socket]:
    """The interface and addresses as node-cache makes them, known to the agent, and the socket it listens on.

    A bridge without ports instead of a dummy, which not every kernel has.
    """
    node.in_node("ip", "link", "add", "nodelocaldns", "type", "bridge")
    try:
        node.in_node("ip", "link", "set", "nodelocaldns", "up")
        node.in_node("ip", "addr", "add", f"{CACHE}/32", "dev", "nodelocaldns")
        node.in_node("ip", "addr", "add", f"{CACHE6}/128", "dev", "nodelocaldns", "nodad")
        node.await_status(lambda one: one.resolvers == (CACHE, CACHE6), "the cache is found")
        with closing(open_socket(node.namespace, socket.AF_INET, socket.SOCK_DGRAM)) as opened:
            opened.bind((CACHE, 53))
            opened.settimeout(5)
            yield opened
    finally:
        node.in_node("ip", "link", "del", "nodelocaldns")
    node.await_status(lambda one: not one.resolvers, "the cache is gone")


def passes(node: OneNode, listener: Listener, address: str, seconds: float) -> bool:
    """Whether a datagram of the pod's arrives there within the time."""
    with node.open(POD) as opened:
        opened.sendto(b"x", (address, PORT))
        return listener.wait(seconds) and (address, b"x") in list(listener.receive())


def forge(namespace: str, message: bytes, port: int) -> None:
    """The message to the pod, as if the cache had sent it."""
    body = packets.udp(53, port, message)
    with closing(open_socket(namespace, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as raw:
        raw.sendto(packets.ipv4(CACHE, POD.address, packets.UDP, body), (POD.address, 0))


def hears(opened: socket.socket, seconds: float) -> bytes:
    """What comes within the time."""
    return opened.recv(4096) if select.select([opened], [], [], seconds)[0] else b""


def test_a_name_that_the_nodes_cache_tells_is_open_at_once(node: OneNode) -> None:
    """The pod has a domain rule and no rule for DNS; its first packet after the answer arrives."""
    with node_cache(node) as cache, node.listen() as listener, node.open(POD) as asker:
        assert not passes(node, listener, ALLOWED, 0.3)
        asker.sendto(query(NAME), (CACHE, 53))
        asked, whom = cache.recvfrom(4096)
        assert asked == query(NAME) and whom[0] == POD.address
        told = answer(NAME, ALLOWED)
        cache.sendto(told, whom)
        assert hears(asker, 5) == told
        assert passes(node, listener, ALLOWED, 5)


def test_what_others_say_in_its_name_teaches_nothing(node: OneNode) -> None:
    """A right answer to an outstanding question: a neighbour's is a forged source, one from beyond the node comes as
    far as the pod and is not believed; the cache's own still is."""
    with node_cache(node) as cache, node.listen() as listener, node.open(POD) as asker:
        asker.sendto(query(FORGED), (CACHE, 53))
        _, whom = cache.recvfrom(4096)
        told = answer(FORGED, DENIED)
        forge(node.lab.pod_namespace(NEIGHBOUR), told, whom[1])
        assert hears(asker, 0.3) == b""
        forge(node.lab.fabric, told, whom[1])
        assert hears(asker, 5) == told
        assert not passes(node, listener, DENIED, 0.3)
        cache.sendto(told, whom)
        assert hears(asker, 5) == told
        assert passes(node, listener, DENIED, 5)


def test_it_may_be_asked_only_while_it_is_there(node: OneNode) -> None:
    """When its interface goes, the flow in which it was asked a moment ago is judged again, and denied."""
    with node.open(POD) as asker:
        with node_cache(node) as cache:
            asker.sendto(query(NAME), (CACHE, 53))
            assert cache.recv(4096) == query(NAME)
        since = time.monotonic()
        asker.sendto(query(NAME), (CACHE, 53))
        told = node.await_verdict(since, lambda one: one.destination_address == CACHE, "the question is denied")
        assert (told.verdict, told.reason, told.destination_port) == (Verdict.DENY, Reason.ISOLATED, 53)
