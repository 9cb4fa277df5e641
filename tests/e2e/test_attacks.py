"""Attacks with real packets, stacks and translations: each gets through without an agent, and none with one.

The programs alone are attacked in ``tests/bpf/test_attacks.py``; here is what depends on what the kernel does around
them: forwarding, source routes, reassembly, kube-proxy's rules, segmentation, path MTU discovery.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

import pytest

from schemas.terms import Direction, Reason
from services.common.bpf import BpfMap
from services.demo import objects, topology
from services.demo.lab import HOST_VETH_MAC, UPLINK, run_command
from services.demo.netns import open_socket
from services.demo.topology import NODE_A, Pod
from services.nodeagent.datapath import REASONS
from tests.bpf import packets
from tests.bpf.packets import TCP, UDP, extension, fragment6, icmp, ipv4, tcp, udp
from tests.e2e.onenode import (
    ALLOWED,
    ALLOWED6,
    DENIED,
    DENIED6,
    PORT,
    OneNode,
    allow_egress,
    make_pod,
    one_node,
    until,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ATTACKER, VICTIM, SERVER = make_pod(10), make_pod(11, "u"), make_pod(12, "u", role="server")
NODE_PORT, WEB_PORT, SERVICE = 30080, 8080, "10.100.0.80"
BALANCER, EXTERNAL = "198.51.100.80", "198.51.100.81"
"""The Service's address at a load balancer, which hands packets on as they are, and an external one."""
_ETH_P_ALL = socket.htons(3)
_UDP_SEGMENT, _IPV6_FREEBIND = 103, 78
_PMTU_DO = 2
SHUT_INGRESS = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: shut, namespace: u}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""
OPEN_INGRESS = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: open, namespace: u}
spec: {podSelector: {matchLabels: {role: server}}, policyTypes: [Ingress], ingress: [{}]}
"""


def make_service() -> str:
    """A Service in front of the server: node port, load balancer, external address."""
    port = {"name": "http", "protocol": "TCP", "port": 80, "targetPort": WEB_PORT, "nodePort": NODE_PORT}
    metadata = {"name": "server", "namespace": "u"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": SERVICE,
            "clusterIPs": [SERVICE],
            "externalIPs": [EXTERNAL],
            "ports": [port],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": BALANCER}]}},
    }
    target = {"kind": "Pod", "namespace": "u", "name": SERVER.name, "uid": SERVER.uid}
    endpoint = {"addresses": [SERVER.address], "nodeName": NODE_A.name, "conditions": {"ready": True}}
    found = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "server"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": WEB_PORT}],
        "endpoints": [{**endpoint, "targetRef": target}],
    }
    return objects.render([service, found])


KUBE_PROXY = f"""
table ip kube-proxy {{
  chain prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump services; }}
  chain output {{ type nat hook output priority -100; policy accept; jump services; }}
  chain services {{
    ip daddr {SERVICE} tcp dport 80 jump server
    ip daddr {{ {BALANCER}, {EXTERNAL} }} tcp dport 80 meta mark set meta mark or 0x4000 jump server
    fib daddr type local tcp dport {NODE_PORT} meta mark set meta mark or 0x4000 jump server
  }}
  chain server {{
    ip saddr {SERVER.address} meta mark set meta mark or 0x4000
    meta l4proto tcp dnat to {SERVER.address}:{WEB_PORT}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    meta mark and 0x4000 == 0x4000 meta mark set meta mark xor 0x4000 masquerade fully-random
  }}
}}
"""
"""As kube-proxy writes them in nftables mode: services, node ports by ``fib``; masqueraded is hairpin, and what goes to
a node port or comes from outside."""


def checksummed(frame: bytes) -> bytes:
    """The frame with a right IPv4 header checksum, towards the node: a stack drops it otherwise before it is judged."""
    frame = bytes.fromhex(HOST_VETH_MAC.replace(":", "")) + frame[6:]
    at = 14 + 4 * (frame[12:14] == b"\x81\x00")
    if frame[at - 2 : at] != b"\x08\x00":
        return frame
    size = (frame[at] & 15) * 4
    words = struct.unpack(f"!{size // 2}H", frame[at : at + 10] + b"\0\0" + frame[at + 12 : at + size])
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    total = ~(total + (total >> 16)) & 0xFFFF
    return frame[: at + 10] + struct.pack("!H", total) + frame[at + 12 :]


def marker(name: str) -> bytes:
    return f"<{name}>".encode().ljust(48, b".")


def route_options(kind: int, *through: str) -> bytes:
    """A source route (LSRR 131, SSRR 137) through these addresses, padded."""
    body = b"".join(packets.pack(one) for one in through)
    return (bytes([kind, 3 + len(body), 4]) + body).ljust((6 + len(body)) & ~3, b"\0")


def send_udp(source: str, destination: str, name: str, **rest: object) -> bytes:
    return packets.ip(source, destination, UDP, udp(4000, PORT, marker(name)), **rest)


def quote(name: str) -> bytes:
    """An ICMP error's body: the packet that it quotes is of a flow that may be, behind it the data to smuggle."""
    return icmp(3, 1, bytes(4), ipv4(ALLOWED, ATTACKER.address, UDP, udp(PORT, 4000)) + marker(name))


A4, A6 = ATTACKER.address, ATTACKER.address6
OPTION = extension(UDP) + udp(4000, PORT, marker("extension-headers"))
ATTACKS: dict[str, list[bytes]] = {
    "denied": [send_udp(A4, DENIED, "denied")],
    "denied6": [send_udp(A6, DENIED6, "denied6")],
    "to-a-pod": [send_udp(A4, VICTIM.address, "to-a-pod")],
    "source-of-a-pod": [send_udp(VICTIM.address, ALLOWED, "source-of-a-pod")],
    "source-of-the-node": [send_udp(NODE_A.address, VICTIM.address, "source-of-the-node")],
    "source-of-the-gateway": [send_udp(topology.POD_GATEWAY, VICTIM.address, "source-of-the-gateway")],
    "source-of-the-outside": [send_udp(DENIED, VICTIM.address, "source-of-the-outside")],
    "source6-of-a-pod": [send_udp(VICTIM.address6, ALLOWED6, "source6-of-a-pod")],
    "extension-headers": [packets.ip(A6, DENIED6, 60, OPTION)],
    "routing-header": [
        packets.ip(
            *(A6, DENIED6, 43),
            extension(UDP, bytes([4, 1]) + bytes(4) + packets.pack(DENIED6))
            + udp(4000, PORT, marker("routing-header")),
        )
    ],
    "later-fragment": [
        packets.ip(A4, DENIED, UDP, marker("later-fragment"), fragment=10, identifier=77),
    ],
    "fragments": [
        packets.ip(A4, DENIED, UDP, udp(4000, PORT, marker("fragments") * 2, length=160), more=True, identifier=78),
        packets.ip(A4, DENIED, UDP, marker("fragments"), fragment=13, identifier=78),
    ],
    "fragments-after-an-allowed-first": [
        packets.ip(A4, ALLOWED, UDP, udp(4000, PORT, bytes(96), length=160), more=True, identifier=79),
        packets.ip(A4, DENIED, UDP, marker("fragments-after-an-allowed-first"), fragment=13, identifier=79),
    ],
    "fragment6": [packets.ip(A6, DENIED6, 44, fragment6(UDP, 10, more=False) + marker("fragment6"))],
    "tagged": [packets.tagged(send_udp(A4, DENIED, "tagged"), 0)],
    "tagged6": [packets.tagged(send_udp(A6, DENIED6, "tagged6"), 0)],
    "error-to-another": [packets.ip(A4, DENIED, 1, quote("error-to-another"))],
    "error-as-another": [packets.ip(DENIED, VICTIM.address, 1, quote("error-as-another"))],
    "discovery-as-tunnel": [
        packets.ip(A6, DENIED6, 58, icmp(135, 0, bytes(4), marker("discovery-as-tunnel")), hops=255)
    ],
    "advertisement-as-tunnel": [
        packets.ip(A6, DENIED6, 58, icmp(134, 0, bytes(4), marker("advertisement-as-tunnel")), hops=255)
    ],
    "protocol-of-nobody": [packets.ip(A4, DENIED, 253, marker("protocol-of-nobody"))],
    "protocol-zero": [packets.ip(A4, DENIED, 0, marker("protocol-zero"))],
    "tcp-without-syn": [packets.ip(A4, DENIED, TCP, tcp(4000, 443, packets.ACK, payload=marker("tcp-without-syn")))],
    "tcp-syn-with-data": [
        packets.ip(A4, DENIED, TCP, tcp(4000, 443, packets.SYN, payload=marker("tcp-syn-with-data")))
    ],
    "source-route": [
        send_udp(A4, NODE_A.address, "source-route", options=route_options(131, VICTIM.address)),
    ],
}
"""Name -> frames. Each carries its name, so that what arrives can be told."""
PERMITTED: dict[str, list[bytes]] = {
    "allowed": [send_udp(A4, ALLOWED, "allowed")],
    "priority-tag": [packets.tagged(send_udp(A4, ALLOWED, "priority-tag"), 0)],
    "priority-tag6": [packets.tagged(send_udp(A6, ALLOWED6, "priority-tag6"), 0)],
}
"""The same for what is no attack. The kernel has taken a tag off, out of band, by the time that a program looks."""
NOT_FORWARDED_ANYWAY = frozenset(
    {"fragment6", "later-fragment", "fragments-after-an-allowed-first", "source-of-the-node"}
)
"""What a node with address translation may stop by itself: it reassembles first, and its own address is a martian."""


@dataclass(frozen=True)
class Sniffers:
    """Raw sockets where nothing of an attack may arrive."""

    sockets: tuple[socket.socket, ...]

    def hear(self, seconds: float) -> bytes:
        """All frames that came within the time, read then or later."""
        heard, until_time = [], time.monotonic() + seconds
        while found := select.select(self.sockets, [], [], max(until_time - time.monotonic(), 0))[0]:
            heard += [ready.recv(65536) for ready in found]
        return b"".join(heard)

    def close(self) -> None:
        for one in self.sockets:
            one.close()


def open_sniffers(node: OneNode) -> Sniffers:
    places = ((node.lab.fabric, "node-a"), (node.lab.pod_namespace(VICTIM), "eth0"))
    made = []
    for namespace, interface in places:
        one = open_socket(namespace, socket.AF_PACKET, socket.SOCK_RAW, _ETH_P_ALL)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        one.bind((interface, 3))
        made.append(one)
    return Sniffers(tuple(made))


def attack(node: OneNode) -> set[str]:
    """Sends all of it; the names of the attacks that got anywhere."""
    with (
        closing(open_sniffers(node)) as sniffers,
        closing(open_socket(node.lab.pod_namespace(ATTACKER), socket.AF_PACKET, socket.SOCK_RAW, _ETH_P_ALL)) as raw,
    ):
        raw.bind(("eth0", 3))
        for _ in range(3):
            for frames in (*ATTACKS.values(), *PERMITTED.values()):
                for frame in frames:
                    raw.send(checksummed(frame))
        heard = sniffers.hear(1.5)
    assert {name for name in PERMITTED if marker(name) in heard} == PERMITTED.keys()
    return {name for name in ATTACKS if marker(name) in heard}


LONG = 5_000
"""Bytes of a frame of which a raw socket lays no more than the Ethernet header into the linear part."""
LONG_WAYS = {"long": (A4, ALLOWED), "long-denied": (A4, DENIED), "long6": (A6, ALLOWED6), "long6-denied": (A6, DENIED6)}


@contextmanager
def jumbo_links(node: OneNode) -> Iterator[None]:
    """From the attacker's pod to the fabric with an MTU of 9000."""
    links = [
        (node.lab.pod_namespace(ATTACKER), "eth0"),
        (node.namespace, ATTACKER.interface),
        (node.namespace, UPLINK),
        (node.lab.fabric, "node-a"),
    ]
    set_mtu(links, 9000)
    yield
    set_mtu(links, 1500)


def set_mtu(links: Iterable[tuple[str, str]], mtu: int) -> None:
    for namespace, link in links:
        run_command(["ip", "-n", namespace, "link", "set", link, "mtu", str(mtu)])


def send_long(node: OneNode) -> set[str]:
    """Frames of 5,000 bytes out of the pod; those that got to the fabric."""
    with (
        jumbo_links(node),
        closing(open_sniffers(node)) as sniffers,
        closing(open_socket(node.lab.pod_namespace(ATTACKER), socket.AF_PACKET, socket.SOCK_RAW, _ETH_P_ALL)) as raw,
    ):
        raw.bind(("eth0", 3))
        for _ in range(3):
            for name, (source, destination) in LONG_WAYS.items():
                body = udp(4000, PORT, marker(name).ljust(LONG, b"."))
                raw.send(checksummed(packets.ip(source, destination, UDP, body)))
        heard = sniffers.hear(1.0)
    return {name for name in LONG_WAYS if marker(name) in heard}


@pytest.fixture(scope="module")
def open_before() -> dict[str, set[str]]:
    """Which attacks got through before there was an agent."""
    return {}


@pytest.fixture(scope="module")
def node(open_before: dict[str, set[str]]) -> Iterator[OneNode]:
    with one_node() as made:
        made.folder.write("10-only.yaml", allow_egress("only", f"{ALLOWED}/32", f"{ALLOWED6}/128"))
        made.folder.write("11-shut.yaml", SHUT_INGRESS)
        made.folder.write("12-service.yaml", make_service())
        made.folder.write("13-free.yaml", allow_egress("free", "0.0.0.0/0", namespace="u"))
        config = {"service-cidrs": "10.100.0.0/16", "pod-cidrs": ",".join(topology.POD_CIDRS)}
        made.build([ATTACKER, VICTIM, SERVER], config=config)
        made.in_node("nft", "-f", "-", given=KUBE_PROXY)
        for address in (BALANCER, EXTERNAL):
            run_command(["ip", "-n", made.lab.fabric, "route", "add", f"{address}/32", "via", NODE_A.address])
        made.in_node("sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/accept_source_route")
        made.in_node("sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/accept_source_route; do echo 1 >$f; done")
        open_before["attacks"] = attack(made)
        open_before["long"] = send_long(made)
        open_before["ways in"] = open_ways(made)
        made.start_agent()
        made.settle(0, seconds=60)
        yield made


def test_every_attack_gets_through_without_an_agent_and_none_with_one(
    node: OneNode, open_before: dict[str, set[str]]
) -> None:
    """The same frames, before and after: what proves nothing, because this kernel stops it anyway, is named."""
    stopped = ATTACKS.keys() - open_before["attacks"]
    print(f"{len(ATTACKS)} attacks; without an agent all but {sorted(stopped)} get through")
    assert open_before["attacks"] >= ATTACKS.keys() - NOT_FORWARDED_ANYWAY
    assert attack(node) == set()


def connects(node: OneNode, namespace: str, address: str, port: int) -> bool:
    """Whether the server answers a connection made from there."""
    with closing(open_socket(node.lab.pod_namespace(SERVER), socket.AF_INET, socket.SOCK_STREAM)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", WEB_PORT))
        listener.listen(8)
        with closing(open_socket(namespace, socket.AF_INET, socket.SOCK_STREAM)) as client:
            client.settimeout(0.8)
            return client.connect_ex((address, port)) == 0


FRONTS = {
    "the node's port": (NODE_A.address, NODE_PORT),
    "the load balancer": (BALANCER, 80),
    "the external address": (EXTERNAL, 80),
}


def in_fabric(node: OneNode) -> str:
    return node.lab.fabric


def in_pod(pod: Pod) -> Callable[[OneNode], str]:
    return lambda node: node.lab.pod_namespace(pod)


SENDERS = {"pod": in_pod(ATTACKER), "outside": in_fabric, "free pod": in_pod(VICTIM)}
WAYS_IN = {f"{sender} to {front}": (sender, *at) for sender in SENDERS for front, at in FRONTS.items()}
WAYS_IN["pod to the Service"] = ("pod", SERVICE, 80)


def open_ways(node: OneNode) -> set[str]:
    """The ways on which the server answers."""
    return {name for name, (sender, *at) in WAYS_IN.items() if connects(node, SENDERS[sender](node), *at)}


def test_no_translated_way_leads_around_policy(node: OneNode, open_before: dict[str, set[str]]) -> None:
    """Node ports, load balancers, external addresses: shut with the pod; once open, for those who may send."""
    assert open_before["ways in"] == WAYS_IN.keys()
    assert open_ways(node) == set()
    node.apply("14-open.yaml", OPEN_INGRESS)
    assert open_ways(node) == {name for name, (sender, *_) in WAYS_IN.items() if sender != "pod"}
    node.remove("14-open.yaml")


def test_a_pod_reaches_itself_through_its_own_service_and_a_probe_reaches_it(node: OneNode) -> None:
    """Under a policy that shuts everything: hairpin, and what the node itself generates."""
    assert connects(node, node.lab.pod_namespace(SERVER), SERVICE, 80)
    assert connects(node, node.namespace, SERVER.address, WEB_PORT)


def test_an_address_taken_inside_the_pod_is_nobodys(node: OneNode) -> None:
    """A pod that gives itself its neighbour's address sends nothing from it, and receives nothing for it."""
    node.in_pod(ATTACKER, "ip", "addr", "add", f"{VICTIM.address}/32", "dev", "eth0")
    try:
        with node.listen() as listener, closing(node.open(ATTACKER)) as pod:
            pod.bind((VICTIM.address, 0))
            for _ in range(5):
                pod.sendto(b"x", (ALLOWED, PORT))
            assert not listener.wait(0.5)
        status = node.status()
        assert status is not None
        (found,) = [one.addresses for one in status.endpoints if one.interface == ATTACKER.interface]
        assert VICTIM.address not in found
    finally:
        node.in_pod(ATTACKER, "ip", "addr", "del", f"{VICTIM.address}/32", "dev", "eth0")


def test_an_address_that_two_interfaces_claim_is_shut_on_both(node: OneNode) -> None:
    """A second host route to a pod's address shuts both pods, says so, and opens both again when it goes."""
    route = ("route", "add", f"{VICTIM.address}/32", "dev", ATTACKER.interface, "metric", "50")
    node.in_node("ip", *route)

    def states() -> set[str]:
        status = node.status()
        return {one.state for one in status.endpoints if one.interface != SERVER.interface} if status else set()

    until(lambda: states() == {"claimed-twice"}, 20, "both are told")
    assert not node_reaches(node, VICTIM) and not node_reaches(node, ATTACKER)
    node.in_node("ip", "route", "del", *route[2:])
    until(lambda: states() == {"enforced"}, 20, "both are judged again")
    until(lambda: node_reaches(node, VICTIM), 10, "what the node generates passes again")


def node_reaches(node: OneNode, pod: Pod) -> bool:
    """Whether a datagram that the node generates arrives in the pod."""
    with (
        closing(node.open(pod)) as opened,
        closing(open_socket(node.namespace, socket.AF_INET, socket.SOCK_DGRAM)) as host,
    ):
        opened.bind(("0.0.0.0", PORT))
        opened.settimeout(0.4)
        host.sendto(b"x", (pod.address, PORT))
        try:
            return opened.recv(8) == b"x"
        except TimeoutError:
            return False


def test_super_packets_are_judged_as_their_parts(node: OneNode) -> None:
    """Forty segments handed over as one: all arrive where policy allows, none where it denies; TCP likewise."""
    with node.listen() as listener, closing(node.open(ATTACKER)) as pod:
        pod.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, 1000)
        for address in (DENIED, ALLOWED):
            pod.sendto(bytes(40_000), (address, PORT))
        found: list[str] = []
        until(lambda: found.extend(at for at, _ in listener.receive()) or len(found) >= 40, 5, "all segments arrive")
        assert found == [ALLOWED] * 40
    assert send_bulk(node, 4_000_000) == 4_000_000


SEGMENTS, SEGMENT_BYTES = 40, 1000


@pytest.fixture
def opened_server(node: OneNode) -> Iterator[None]:
    """Anybody may send to it."""
    node.apply("14-open.yaml", OPEN_INGRESS)
    yield
    node.remove("14-open.yaml")


@pytest.mark.usefixtures("opened_server")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_super_packets_to_a_pod_are_judged_as_their_parts(node: OneNode, family: socket.AddressFamily) -> None:
    """Forty segments in one arrive where ingress is open, and as the answer to what the pod asked; else none does."""
    is_six = family == socket.AF_INET6
    outside = ALLOWED6 if is_six else ALLOWED
    at_server, at_attacker = (one.address6 if is_six else one.address for one in (SERVER, ATTACKER))
    with (
        closing(open_socket(node.lab.fabric, family, socket.SOCK_DGRAM)) as sender,
        closing(node.open(SERVER, family=family)) as server,
        closing(node.open(ATTACKER, family=family)) as attacker,
        closing(open_socket(node.lab.pod_namespace(ATTACKER), socket.AF_PACKET, socket.SOCK_RAW, _ETH_P_ALL)) as raw,
    ):
        if is_six:
            sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        sender.bind((outside, PORT))
        sender.settimeout(5)
        sender.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, SEGMENT_BYTES)
        server.bind(("", PORT))
        attacker.bind(("", PORT))
        raw.bind(("eth0", 3))
        sender.sendto(bytes(SEGMENTS * SEGMENT_BYTES), (at_attacker, PORT))
        sender.sendto(bytes(SEGMENTS * SEGMENT_BYTES), (at_server, PORT))
        assert count_segments(server) == SEGMENTS
        assert not select.select([attacker], [], [], 0)[0], "what nobody asked for arrived"
        attacker.sendto(b"ask", (outside, PORT))
        assert sender.recv(8) == b"ask"
        sender.sendto(bytes(SEGMENTS * SEGMENT_BYTES), (at_attacker, PORT))
        assert count_segments(attacker) == SEGMENTS
        raw.setblocking(False)
        sizes = []
        with suppress(BlockingIOError):
            while True:
                sizes.append(len(raw.recv(65536)))
    assert max(sizes) > SEGMENTS * SEGMENT_BYTES, "no super-packet went through the programs"


def count_segments(receiver: socket.socket) -> int:
    """How many of the segments come, within a time."""
    receiver.settimeout(5)
    count = 0
    while count < SEGMENTS:
        assert len(receiver.recv(65536)) == SEGMENT_BYTES
        count += 1
    return count


def send_bulk(node: OneNode, size: int, address: str = ALLOWED) -> int:
    """Bytes of one TCP connection out of the attacker's pod that arrived at the allowed address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        closing(open_socket(node.lab.fabric, family, socket.SOCK_STREAM)) as listener,
        closing(node.open(ATTACKER, socket.SOCK_STREAM, family)) as pod,
    ):
        listener.bind(("", 0))
        listener.listen(1)
        pod.settimeout(5)
        pod.connect((address, listener.getsockname()[1]))
        with closing(listener.accept()[0]) as server:
            server.settimeout(5)
            pod.setblocking(False)
            data, sent, received = memoryview(bytes(size)), 0, 0
            deadline = time.monotonic() + 20
            while received < size and time.monotonic() < deadline:
                readable, writable, _ = select.select([server], [pod] if sent < size else [], [], 0.2)
                if writable:
                    sent += pod.send(data[sent : sent + 262_144])
                if readable:
                    received += len(server.recv(1_048_576))
            return received


def test_headers_outside_the_linear_part_are_judged(node: OneNode, open_before: dict[str, set[str]]) -> None:
    """Of a long frame the programs see no header where they look first: they judge by what is in its pages."""
    assert open_before["long"] == LONG_WAYS.keys()
    assert send_long(node) == {"long", "long6"}


@dataclass(frozen=True)
class NarrowPath:
    """A way to the allowed address over a link of ``mtu`` bytes. ``level``, ``known``, ``discover``: of socket options:
    the path's MTU, and whether it is found out."""

    family: int
    address: str
    gateway: str
    mtu: int
    level: int
    known: int
    discover: int


NARROW = {
    "ipv4": NarrowPath(socket.AF_INET, ALLOWED, NODE_A.gateway, 700, socket.IPPROTO_IP, 14, 10),
    "ipv6": NarrowPath(socket.AF_INET6, ALLOWED6, NODE_A.gateway6, 1290, socket.IPPROTO_IPV6, 24, 23),
}


@pytest.mark.parametrize("family", list(NARROW))
def test_path_mtu_discovery_works_through_a_policy_that_shuts_everything(node: OneNode, family: str) -> None:
    """A narrow link behind the node: its error reaches the pod, whose next datagrams are small enough."""
    path = NARROW[family]
    run_command(["ip", "-n", node.lab.fabric, "link", "set", "node-a", "mtu", "1500"])
    route = f"{path.address}/{128 if family == 'ipv6' else 32}"
    node.in_node("ip", "route", "add", route, "via", path.gateway, "mtu", "lock", str(path.mtu))
    counted = count_related(node)
    try:
        with closing(node.open(ATTACKER, family=path.family)) as pod:
            pod.setsockopt(path.level, path.discover, _PMTU_DO)
            pod.connect((path.address, PORT))
            send_quietly(pod, 1400)
            until(lambda: pod.getsockopt(path.level, path.known) == path.mtu, 5, "the pod learns the path's MTU")
        assert send_bulk(node, 200_000, path.address) == 200_000
        until(lambda: count_related(node) > counted, 5, "counted as related")
    finally:
        node.in_node("ip", "route", "del", route)


def count_related(node: OneNode) -> int:
    """Errors about live flows that were let into pods, by the kernel's count now: a status is up to a second old."""
    (pin,) = (node.run.pins / NODE_A.key).glob("*/reasons")
    with BpfMap(pin) as reasons:
        found = reasons.get((Direction.INGRESS * REASONS + Reason.RELATED).to_bytes(4, "little"))
    return int.from_bytes((found or b"")[:8], "little")


def send_quietly(opened: socket.socket, size: int) -> None:
    """One datagram; that an earlier one's error is told with this call is fine."""
    try:
        opened.send(bytes(size))
    except OSError:
        return
