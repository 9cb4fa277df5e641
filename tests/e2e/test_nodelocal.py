"""NodeLocal DNSCache: found on its node by its interface, trusted while that is there, and from this node alone."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from schemas.status import FORGED_PACKETS
from schemas.terms import Reason, Verdict
from services.demo.netns import open_socket
from tests.bpf.messages import answer, query
from tests.e2e.onenode import (
    ALLOW_EXAMPLE,
    ALLOWED,
    DENIED,
    OneNode,
    forge,
    hears,
    list_checked,
    make_pod,
    one_node,
    passes,
    until,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

POD, NEIGHBOUR = make_pod(10), make_pod(11, "u")
CACHE, CACHE6 = "169.254.20.10", "fd00:20::10"
NAME, FORGED, UNHEARD = "www.example.com", "forged.example.com", "unheard.example.com"
FORWARD_ANYTHING = (
    "cd /proc/sys/net/ipv4/conf; for one in *; do echo 1 >$one/accept_local; echo 0 >$one/rp_filter; done"
)
"""A packet that bears an address of the node is a martian, which this kernel drops by itself: here it does not."""


@pytest.fixture(scope="module")
def node() -> Iterator[OneNode]:
    """No resolver in the settings, no cluster DNS Service; what no policy isolates may be sent."""
    with one_node() as made:
        made.start([POD, NEIGHBOUR], default="allow")
        made.apply("10-names.yaml", ALLOW_EXAMPLE)
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


def test_a_name_that_the_nodes_cache_tells_is_open_at_once(node: OneNode) -> None:
    """The pod has a domain rule and no rule for DNS; its first packet after the answer arrives."""
    with node_cache(node) as cache, node.open(POD) as asker:
        assert not passes(node, POD, ALLOWED, 0.3)
        asker.sendto(query(NAME), (CACHE, 53))
        asked, whom = cache.recvfrom(4096)
        assert asked == query(NAME) and whom[0] == POD.address
        told = answer(NAME, ALLOWED)
        cache.sendto(told, whom)
        assert hears(asker, 5) == told
        assert passes(node, POD, ALLOWED, 5)


@contextmanager
def restarted(node: OneNode, sources: str) -> Iterator[None]:
    """An agent with this ``YETT_RESOLVER_SOURCES`` while the block runs."""
    node.end_agent()
    node.start_agent(YETT_RESOLVER_SOURCES=sources)
    node.await_agent()
    yield
    node.end_agent()
    node.start_agent()
    node.await_agent()


def test_what_others_say_in_its_name_teaches_nothing(node: OneNode) -> None:
    """A right answer to an outstanding question, where nothing drops it on its way: a neighbour's is a forged source,
    one from beyond the node comes as far as the pod and is not believed; the cache's own still is."""
    with restarted(node, "any"), node_cache(node) as cache, node.open(POD) as asker:
        asker.sendto(query(FORGED), (CACHE, 53))
        _, whom = cache.recvfrom(4096)
        told = answer(FORGED, DENIED)
        forge(node.lab.pod_namespace(NEIGHBOUR), CACHE, told, whom)
        assert hears(asker, 0.3) == b""
        forge(node.lab.fabric, CACHE, told, whom)
        assert hears(asker, 5) == told
        assert not passes(node, POD, DENIED, 0.3)
        cache.sendto(told, whom)
        assert hears(asker, 5) == told
        assert passes(node, POD, DENIED, 5)


def test_what_others_say_in_its_name_does_not_come_to_the_pod(node: OneNode) -> None:
    """While the cache is there its address is dropped as a source, and counted; the cache's own answers pass."""
    with node_cache(node) as cache, node.open(POD) as asker:
        until(lambda: CACHE in list_checked(node) and CACHE6 in list_checked(node), 10, "the node checks sources")
        asker.sendto(query(UNHEARD), (CACHE, 53))
        _, whom = cache.recvfrom(4096)
        told = answer(UNHEARD, ALLOWED)
        forge(node.lab.fabric, CACHE, told, whom)
        assert hears(asker, 0.3) == b""
        node.await_status(lambda one: one.counters[FORGED_PACKETS] == 1, "it is counted")
        cache.sendto(told, whom)
        assert hears(asker, 5) == told
    until(lambda: CACHE not in list_checked(node), 10, "the address is nobody's any more")


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
