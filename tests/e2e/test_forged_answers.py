"""An accomplice outside who knows what a pod asks, and answers with the address of the cluster's DNS Service."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from schemas.status import FORGED_PACKETS
from services.demo import objects
from services.demo.netns import open_socket
from services.demo.topology import DNS_SERVICE, DNS_SERVICE6, FABRIC_DNS, FABRIC_DNS6, NODE_A
from services.nodeagent import nftrules
from services.nodeagent.sourcecheck import TABLE
from tests.bpf.messages import AAAA, A, answer, query
from tests.e2e.onenode import ALLOW_EXAMPLE, OneNode, forge, hears, list_checked, make_pod, one_node, passes, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

POD = make_pod(10)
DNS = "05-dns.yaml"
AT_ONCE_SECONDS = 1.5
"""By the kernel's notification: the agent looks by itself three times later."""


@dataclass(frozen=True)
class Family:
    """The pod's address, the Service's, what answers behind that, and three that names may lead to.

    ``level``, ``hops``: of the socket option that says how far a packet gets.
    """

    number: int
    pod: str
    service: str
    backend: str
    targets: tuple[str, str, str]
    level: int
    hops: int

    def query(self, name: str) -> bytes:
        """For the family's own kind of address."""
        return query(name, AAAA if self.number == socket.AF_INET6 else A)

    def open_backend(self, node: OneNode) -> socket.socket:
        """What kube-proxy's rules lead to, in the fabric."""
        opened = open_socket(node.lab.fabric, self.number, socket.SOCK_DGRAM)
        opened.bind((self.backend, 53))
        opened.settimeout(5)
        return opened


FOUR = ("203.0.113.20", "203.0.113.21", "203.0.113.22")
SIX = ("2001:db8:1::20", "2001:db8:1::21", "2001:db8:1::22")
FAMILIES = [
    Family(socket.AF_INET, POD.address, DNS_SERVICE, FABRIC_DNS, FOUR, socket.IPPROTO_IP, socket.IP_TTL),
    Family(
        *(socket.AF_INET6, POD.address6, DNS_SERVICE6, FABRIC_DNS6, SIX),
        *(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
    ),
]
by_family = pytest.mark.parametrize("family", FAMILIES, ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def node() -> Iterator[OneNode]:
    """The DNS Service, kube-proxy's rules for it, and a recorder, which publishes what is learned."""
    with one_node() as made:
        made.folder.write(DNS, objects.render(objects.make_dns_service()))
        made.start([POD], default="allow")
        made.lab.apply_services(())
        made.pipeline.start_recorder(NODE_A)
        made.apply("10-names.yaml", ALLOW_EXAMPLE)
        yield made


def await_checked(node: OneNode) -> None:
    until(lambda: all(one.service in list_checked(node) for one in FAMILIES), 20, "the node checks sources")


def conspire(node: OneNode, family: Family, name: str, target: str) -> bytes:
    """The pod asks, so that nobody answers: its question ends at the node. It tells the accomplice its port, and he
    answers as the Service; what the pod hears."""
    told = answer(name, target)
    with closing(node.open(POD, family=family.number)) as asker:
        asker.setsockopt(family.level, family.hops, 1)
        asker.sendto(family.query(name), (family.service, 53))
        whom = family.pod, asker.getsockname()[1]
        forge(node.lab.fabric, family.service, told, whom)
        return hears(asker, 5 if node.own else 0.5)


@by_family
def test_without_the_check_it_is_believed(node: OneNode, family: Family) -> None:
    """The name leads where the accomplice says, and the cluster is told so."""
    target, name = family.targets[0], f"believed{family.number}.example.com"
    node.end_agent()
    node.own = {"YETT_RESOLVER_SOURCES": "any"}
    node.start_agent()
    node.await_agent()
    try:
        assert list_checked(node) == ""
        assert conspire(node, family, name, target)
        assert passes(node, POD, target, 5)
        until(lambda: node.is_published(name), 20, "it is published")
    finally:
        node.end_agent()
        node.own = {}
        node.start_agent()
        node.await_agent()
        await_checked(node)


@by_family
def test_with_the_check_nothing_is_heard_nor_learned_nor_published(node: OneNode, family: Family) -> None:
    """And it is counted. What the Service answers is heard, learned and published as ever."""
    forged, right = family.targets[1:]
    name = f"forged{family.number}.example.com"
    await_checked(node)
    status = node.await_status(lambda one: one.pid == node.agent.pid, "the agent speaks")
    counted = status.counters[FORGED_PACKETS]
    assert conspire(node, family, name, forged) == b""
    assert not passes(node, POD, forged, 0.3)
    status = node.await_status(lambda one: one.counters[FORGED_PACKETS] > counted, "it is counted")
    assert forged not in {one.address for one in status.learned}
    with closing(family.open_backend(node)) as backend:
        resolve(node, family, backend, f"right{family.number}.example.com", right)
    assert passes(node, POD, right, 5)
    until(lambda: node.is_published(f"right{family.number}.example.com"), 20, "the right answer is published")
    assert not node.is_published(name)


def resolve(node: OneNode, family: Family, resolver: socket.socket, name: str, target: str) -> None:
    """The pod asks the Service, and hears what ``resolver`` says."""
    asked, told = family.query(name), answer(name, target)
    with closing(node.open(POD, family=family.number)) as asker:
        asker.sendto(asked, (family.service, 53))
        found, whom = resolver.recvfrom(4096)
        assert found == asked
        resolver.sendto(told, whom)
        assert hears(asker, 5) == told


NO_TRANSLATION = """\
table inet node-cache {
  chain prerouting { type filter hook prerouting priority raw; ip daddr %(address)s notrack; }
  chain output { type filter hook output priority raw; ip saddr %(address)s notrack; }
}
"""


def test_a_cache_of_the_nodes_with_the_services_own_address_is_heard(node: OneNode) -> None:
    """NodeLocal DNSCache takes it, too, and keeps it from being translated: its answers come from the node itself."""
    family, target = FAMILIES[0], "203.0.113.23"
    await_checked(node)
    node.in_node("ip", "link", "add", "nodelocaldns", "type", "bridge")
    try:
        node.in_node("nft", "-f", "-", given=NO_TRANSLATION % {"address": family.service})
        node.in_node("ip", "link", "set", "nodelocaldns", "up")
        node.in_node("ip", "addr", "add", f"{family.service}/32", "dev", "nodelocaldns")
        node.await_status(lambda one: one.resolvers == (family.service,), "the cache is found")
        with closing(open_socket(node.namespace, socket.AF_INET, socket.SOCK_DGRAM)) as cache:
            cache.bind((family.service, 53))
            cache.settimeout(5)
            resolve(node, family, cache, "cached.example.com", target)
        assert passes(node, POD, target, 5)
        assert family.service in list_checked(node)
    finally:
        node.in_node("ip", "link", "del", "nodelocaldns")
        node.in_node("nft", "delete", "table", "inet", "node-cache")


@pytest.mark.parametrize(
    "change",
    [
        "flush ruleset",
        f"delete element inet {TABLE} resolvers4 {{ {DNS_SERVICE} }}",
        f"flush chain inet {TABLE} prerouting",
        f"delete table bridge {TABLE}",
    ],
)
def test_what_somebody_takes_away_is_back_at_once(node: OneNode, change: str) -> None:
    """Whole, and said in the status."""
    await_checked(node)
    whole = list_whole(node)
    node.in_node("nft", change)
    changed_at = time.monotonic()
    until(lambda: list_whole(node) == whole, 20, "it is put back")
    seconds = time.monotonic() - changed_at
    node.lab.apply_services(())
    assert seconds < AT_ONCE_SECONDS
    node.await_status(lambda one: one.counters["source_check_put_back"] > 0, "it is counted")


def list_whole(node: OneNode) -> list[str]:
    """Both families' tables without what was counted."""
    return [node.in_node("nft", "-s", "list", "table", family, TABLE, check=False) for family in nftrules.FAMILIES]


def test_it_follows_the_resolvers(node: OneNode) -> None:
    """A Service that goes takes its addresses out of the set; the backend's was never in it."""
    await_checked(node)
    assert all(one.backend not in list_checked(node) for one in FAMILIES)
    node.remove(DNS)
    until(lambda: not any(one.service in list_checked(node) for one in FAMILIES), 10, "they are nobody's")
    node.apply(DNS, objects.render(objects.make_dns_service()))
    await_checked(node)
