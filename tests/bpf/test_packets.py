"""Packets that are not plain: judged right, or dropped with a reason of their own; and what always passes."""

from __future__ import annotations

import random
import struct

import pytest

from schemas.terms import Direction, Reason
from tests.bpf import packets
from tests.bpf.packets import ACK, IPV4, IPV6, SYN, TCP, UDP, ethernet, extension, fragment6, icmp, ipv4, ipv6, tcp, udp
from tests.bpf.prog_run import Kernel, Result
from tests.bpf.worlds import (
    EGRESS,
    GATEWAY6,
    NETWORK_POLICY,
    PEER4,
    PEER6,
    POD4,
    POD6,
    add_cidr,
    allow_all,
    make_tables,
)

pytestmark = pytest.mark.kernel
ALL = "255.255.255.255"
LINK_LOCAL = "fe80::5"
SEGMENTS_LEFT = b"\x00\x01" + bytes(4)
NO_SEGMENTS_LEFT = bytes(6)


@pytest.fixture
def open_pod(kernel: Kernel) -> Kernel:
    """Policy allows everything: what is dropped is dropped for the packet's own sake."""
    kernel.fill(allow_all())
    return kernel


@pytest.fixture
def shut_pod(kernel: Kernel) -> Kernel:
    """Policy allows nothing: what passes passes always."""
    kernel.fill(make_tables(egress={"isolated": True}, ingress={"isolated": True}))
    return kernel


def send4(kernel: Kernel, body: bytes, protocol: int = TCP, **rest: object) -> Result:
    return kernel.from_pod(packets.ip(POD4, PEER4, protocol, body, **rest))


def send6(kernel: Kernel, following: int, body: bytes, **rest: object) -> Result:
    return kernel.from_pod(packets.ip(POD6, PEER6, following, body, **rest))


def assert_dropped(result: Result, reason: Reason) -> None:
    assert not result.passed
    assert result.reason is reason


# ---------------------------------------------------------------------------------------------------------------------
# IPv4


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(ethernet(IPV4, b"\x55" + ipv4(POD4, PEER4, TCP, tcp(1, 2))[1:]), id="version 5"),
        pytest.param(ethernet(IPV4, b"\x44" + ipv4(POD4, PEER4, TCP, tcp(1, 2))[1:]), id="header of 16 bytes"),
        pytest.param(ethernet(IPV4, ipv4(POD4, PEER4, TCP, tcp(1, 2), total=19)), id="total below the header"),
        pytest.param(ethernet(IPV4, ipv4(POD4, PEER4, TCP, tcp(1, 2), total=2000)), id="total beyond the frame"),
        pytest.param(ethernet(IPV4, ipv4(POD4, PEER4, TCP, tcp(1, 2), total=0)), id="total 0"),
        pytest.param(ethernet(IPV4, ipv4(POD4, PEER4, TCP, tcp(1, 2), total=39)), id="TCP header cut"),
        pytest.param(ethernet(IPV4, ipv4(POD4, PEER4, UDP, udp(1, 2), total=27)), id="UDP header cut"),
        pytest.param(ethernet(IPV4, ipv4(POD4, PEER4, UDP, udp(1, 2, length=7))), id="UDP length 7"),
        pytest.param(ethernet(IPV4, ipv4(POD4, PEER4, UDP, udp(1, 2, length=90))), id="UDP length beyond"),
        pytest.param(ethernet(IPV4, ipv4(POD4, PEER4, 132, packets.sctp(1, 2)[:8])), id="SCTP header cut"),
        pytest.param(ethernet(IPV4, ipv4(POD4, PEER4, 1, b"\x08\0\0\0")), id="ICMP header cut"),
        pytest.param(ethernet(IPV4, ipv4(POD4, PEER4, TCP, tcp(1, 2)[:12] + b"\x40" + tcp(1, 2)[13:])), id="offset 4"),
        pytest.param(ethernet(IPV4, ipv4(POD4, PEER4, TCP, tcp(1, 2)[:12] + b"\xf0" + tcp(1, 2)[13:])), id="offset 15"),
        pytest.param(ethernet(IPV4, ipv4(POD4, PEER4, TCP, tcp(1, 2, 3))), id="SYN and FIN"),
        pytest.param(ethernet(IPV4, ipv4(POD4, PEER4, TCP, tcp(1, 2, 6))), id="SYN and RST"),
        pytest.param(ethernet(IPV4, ipv4(POD4, PEER4, TCP, tcp(1, 2), fragment=1)), id="fragment over the TCP flags"),
    ],
)
def test_malformed_ipv4(open_pod: Kernel, frame: bytes) -> None:
    """Headers that contradict the packet are malformed, whatever policy says."""
    assert_dropped(open_pod.from_pod(frame), Reason.MALFORMED)


@pytest.mark.parametrize("options", [b"\x01\x01\x01\x00", b"\x44\x04\x05\x00", bytes(40), b"\x07\x27\x04" + bytes(37)])
def test_options_are_skipped(open_pod: Kernel, options: bytes) -> None:
    """A packet with harmless options is judged by what follows them."""
    result = send4(open_pod, tcp(1, 443), options=options)
    assert result.passed and result.event is not None and result.event.destination_port == 443


@pytest.mark.parametrize("kind", [131, 137])
@pytest.mark.parametrize("before", [b"", b"\x01\x01\x01\x01", b"\x44\x04\x05\x00"])
def test_source_routes_are_dropped(open_pod: Kernel, kind: int, before: bytes) -> None:
    """Loose and strict source routes: the judged destination is not the last one."""
    route = bytes([kind, 7, 4]) + packets.pack("203.0.113.1") + b"\0"
    assert_dropped(send4(open_pod, tcp(1, 2), options=before + route), Reason.SOURCE_ROUTED)


@pytest.mark.parametrize("options", [b"\x44\x01\x01\x01", b"\x44\x05\x05\x00", b"\x01\x01\x01\x44"])
def test_options_that_lie_are_malformed(open_pod: Kernel, options: bytes) -> None:
    """An option shorter than itself or longer than the header."""
    assert_dropped(send4(open_pod, tcp(1, 2), options=options), Reason.MALFORMED)


# ---------------------------------------------------------------------------------------------------------------------
# IPv6


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(ethernet(IPV6, b"\x50" + ipv6(POD6, PEER6, TCP, tcp(1, 2))[1:]), id="version 5"),
        pytest.param(ethernet(IPV6, ipv6(POD6, PEER6, TCP, tcp(1, 2), total=200)), id="length beyond the frame"),
        pytest.param(ethernet(IPV6, ipv6(POD6, PEER6, TCP, tcp(1, 2), total=19)), id="TCP header cut"),
        pytest.param(ethernet(IPV6, ipv6(POD6, PEER6, 0, b"\x06\xff" + bytes(30))), id="extension beyond the end"),
        pytest.param(ethernet(IPV6, ipv6(POD6, PEER6, 0, b"\x06\0")), id="extension cut"),
        pytest.param(
            ethernet(IPV6, ipv6(POD6, PEER6, 44, fragment6(44, 0, more=True) + fragment6(6, 0, more=True) + tcp(1, 2))),
            id="two fragment headers",
        ),
    ],
)
def test_malformed_ipv6(open_pod: Kernel, frame: bytes) -> None:
    """The same for IPv6 and its extension headers."""
    assert_dropped(open_pod.from_pod(frame), Reason.MALFORMED)


@pytest.mark.parametrize("count", range(9))
def test_up_to_eight_extension_headers(open_pod: Kernel, count: int) -> None:
    """Eight extension headers are skipped; the ports are those of the transport behind them."""
    body = tcp(1, 443)
    following = TCP
    for _ in range(count):
        body, following = extension(following) + body, 60
    result = send6(open_pod, following, body)
    assert result.passed and result.event is not None
    assert (result.event.protocol, result.event.destination_port) == (TCP, 443)


def test_nine_extension_headers_are_too_many(open_pod: Kernel) -> None:
    """The ninth is dropped with its reason."""
    body, following = tcp(1, 443), TCP
    for _ in range(9):
        body, following = extension(following) + body, 60
    assert_dropped(send6(open_pod, following, body), Reason.TOO_MANY_HEADERS)


@pytest.mark.parametrize("behind", [b"", tcp(1, 443)], ids=["nothing behind it", "octets behind it"])
@pytest.mark.parametrize("between", [False, True], ids=["at once", "after an extension header"])
def test_no_next_header_is_a_protocol_without_ports(open_pod: Kernel, between: bool, behind: bytes) -> None:
    """RFC 8200, 4.7: what follows header 59 is nobody's, a TCP header that lies there opens nothing."""
    following, body = (60, extension(59) + behind) if between else (59, behind)
    result = send6(open_pod, following, body)
    assert result.passed and result.event is not None
    assert (result.event.protocol, result.event.source_port, result.event.destination_port) == (59, 0, 0)
    open_pod.fill(make_tables(egress={"isolated": True}, ingress={"isolated": True}))
    assert not send6(open_pod, following, body).passed


def test_authentication_header_is_measured_in_its_own_unit(open_pod: Kernel) -> None:
    """AH counts its length in four bytes less two."""
    result = send6(open_pod, 51, struct.pack("!BB", TCP, 4) + bytes(22) + tcp(1, 443))
    assert result.passed and result.event is not None and result.event.destination_port == 443


def test_routing_headers(open_pod: Kernel) -> None:
    """With segments left it is a source route; without it is a header like others."""
    assert_dropped(send6(open_pod, 43, extension(TCP, SEGMENTS_LEFT) + tcp(1, 2)), Reason.SOURCE_ROUTED)
    assert send6(open_pod, 43, extension(TCP, NO_SEGMENTS_LEFT) + tcp(1, 2)).passed


@pytest.mark.parametrize(("source", "destination"), [(POD6, "::ffff:192.0.2.1"), ("::ffff:10.0.0.5", PEER6)])
def test_mapped_addresses_are_dropped(open_pod: Kernel, source: str, destination: str) -> None:
    """An IPv6 packet with a v4-mapped address would be judged as IPv4 and sent as something else."""
    frame = ethernet(IPV6, ipv6(source, destination, TCP, tcp(1, 2)))
    assert_dropped(open_pod.from_pod(frame), Reason.MAPPED_ADDRESS)


# ---------------------------------------------------------------------------------------------------------------------
# Super-packets over 64 KiB, whose length does not fit its field: RFC 2675, Documentation/networking of BIG TCP

JUMBO = extension(TCP, b"\xc2\x04" + (70_000).to_bytes(4, "big"))
SUPER_PACKETS = [
    pytest.param(PEER4, ethernet(IPV4, ipv4(POD4, PEER4, TCP, tcp(1, 443), total=0)), id="IPv4"),
    pytest.param(PEER4, ethernet(IPV4, ipv4(POD4, PEER4, TCP, tcp(1, 443), total=0, options=bytes(4))), id="options"),
    pytest.param(PEER6, ethernet(IPV6, ipv6(POD6, PEER6, TCP, tcp(1, 443), total=0)), id="IPv6"),
    pytest.param(PEER6, ethernet(IPV6, ipv6(POD6, PEER6, 0, JUMBO + tcp(1, 443), total=0)), id="jumbo option"),
]


@pytest.mark.parametrize(("peer", "frame"), SUPER_PACKETS)
def test_a_length_of_zero_is_a_super_packets(kernel: Kernel, peer: str, frame: bytes) -> None:
    """It reaches to the frame's end and is judged like any other; without segments it is malformed."""
    tables = make_tables(egress={"isolated": True})
    add_cidr(tables, f"{peer}/{128 if ':' in peer else 32}", 5, EGRESS, 1 << NETWORK_POLICY)
    for world, reason in ((tables, Reason.RULE), (make_tables(egress={"isolated": True}), Reason.ISOLATED)):
        kernel.fill(world)
        kernel.forget()
        result = kernel.from_pod(frame, gso_segs=50)
        assert result.passed is (reason is Reason.RULE) and result.reason is reason
        assert result.event is not None and (result.event.destination, result.event.destination_port) == (peer, 443)
        assert_dropped(kernel.from_pod(frame), Reason.MALFORMED)


# ---------------------------------------------------------------------------------------------------------------------
# Fragments


def test_a_later_fragment_follows_its_first(open_pod: Kernel) -> None:
    """The ports of the first fragment count for the later ones; without it they are dropped."""
    first = ethernet(IPV4, ipv4(POD4, PEER4, UDP, udp(5, 99, bytes(16), length=40), more=True, identifier=3))
    later = ethernet(IPV4, ipv4(POD4, PEER4, UDP, bytes(16), fragment=3, identifier=3))
    other = ethernet(IPV4, ipv4(POD4, PEER4, UDP, bytes(16), fragment=3, identifier=4))
    assert_dropped(open_pod.from_pod(later), Reason.FRAGMENT_UNKNOWN)
    assert open_pod.from_pod(first).passed and open_pod.from_pod(later).passed
    assert_dropped(open_pod.from_pod(other), Reason.FRAGMENT_UNKNOWN)


def test_fragments_of_ipv6(open_pod: Kernel) -> None:
    """The same with the fragment header; an atomic fragment is a whole packet."""
    later = send6(open_pod, 44, fragment6(UDP, 2, more=False) + bytes(8))
    assert_dropped(later, Reason.FRAGMENT_UNKNOWN)
    assert send6(open_pod, 44, fragment6(UDP, 0, more=True) + udp(5, 99, bytes(8), length=24)).passed
    assert send6(open_pod, 44, fragment6(UDP, 2, more=False) + bytes(8)).passed
    atomic = send6(open_pod, 44, fragment6(TCP, 0, more=False, identifier=9) + tcp(1, 443))
    assert atomic.passed and atomic.event is not None and atomic.event.destination_port == 443


OPTIONED = extension(43) + extension(UDP) + udp(5, 99, bytes(8), length=64)
"""What begins a fragmented datagram with two extension headers: 16 bytes, 8 of UDP's header, 8 of data."""


@pytest.mark.parametrize("following", [60, 0, 43])
def test_fragments_with_headers_behind_the_fragment_header(open_pod: Kernel, following: int) -> None:
    """Each fragment bears what the datagram begins with; the protocol stands in the first alone."""
    later = fragment6(following, 4, more=False) + bytes(8)
    assert_dropped(send6(open_pod, 44, later), Reason.FRAGMENT_UNKNOWN)
    assert send6(open_pod, 44, fragment6(following, 0, more=True) + OPTIONED).passed
    assert send6(open_pod, 44, later).passed
    assert_dropped(send6(open_pod, 44, fragment6(UDP, 4, more=False) + bytes(8)), Reason.FRAGMENT_UNKNOWN)
    other = fragment6(following, 4, more=False, identifier=8) + bytes(8)
    assert_dropped(send6(open_pod, 44, other), Reason.FRAGMENT_UNKNOWN)
    elsewhere = packets.ip(POD6, "2001:db8::81", 44, later)
    assert_dropped(open_pod.from_pod(elsewhere), Reason.FRAGMENT_UNKNOWN)


def test_a_denied_first_fragment_with_headers_behind_admits_none(shut_pod: Kernel) -> None:
    """Nor does one whose headers do not end in it."""
    for first in (OPTIONED, OPTIONED[:16], extension(UDP, bytes(262)) + udp(5, 99)):
        assert not send6(shut_pod, 44, fragment6(60, 0, more=True) + first).passed
        for following in (60, 43, UDP):
            later = fragment6(following, 4, more=False) + bytes(8)
            assert_dropped(send6(shut_pod, 44, later), Reason.FRAGMENT_UNKNOWN)


def test_a_denied_first_fragment_admits_none(shut_pod: Kernel) -> None:
    """Only what was let through is remembered."""
    first = ethernet(IPV4, ipv4(POD4, PEER4, UDP, udp(5, 99, bytes(16), length=40), more=True, identifier=3))
    later = ethernet(IPV4, ipv4(POD4, PEER4, UDP, bytes(16), fragment=3, identifier=3))
    assert not shut_pod.from_pod(first).passed
    assert_dropped(shut_pod.from_pod(later), Reason.FRAGMENT_UNKNOWN)


def test_a_first_fragment_without_ports_is_malformed(open_pod: Kernel) -> None:
    """A first fragment must hold the whole transport header."""
    frame = ethernet(IPV4, ipv4(POD4, PEER4, TCP, tcp(1, 2)[:8], more=True))
    assert_dropped(open_pod.from_pod(frame), Reason.MALFORMED)


# ---------------------------------------------------------------------------------------------------------------------
# Frames


@pytest.mark.parametrize("ethertype", [0x88CC, 0x8863, 0x0600, 0x9000, 0x888E])
def test_unknown_ethertypes_are_dropped(open_pod: Kernel, ethertype: int) -> None:
    """What is neither IP nor ARP nor a tag has a reason of its own, both ways."""
    assert_dropped(open_pod.from_pod(ethernet(ethertype, bytes(46))), Reason.UNKNOWN_ETHERTYPE)
    assert_dropped(open_pod.to_pod(ethernet(ethertype, bytes(46))), Reason.UNKNOWN_ETHERTYPE)


@pytest.mark.parametrize("tags", [(5,), (5, 6)])
def test_tagged_frames_are_judged_by_what_is_inside(open_pod: Kernel, tags: tuple[int, ...]) -> None:
    """Up to two VLAN tags in band are looked through."""
    result = open_pod.from_pod(packets.tagged(packets.ip(POD4, PEER4, TCP, tcp(1, 443)), *tags))
    assert result.passed and result.event is not None and result.event.destination_port == 443
    spoofed = packets.tagged(packets.ip("10.0.0.6", PEER4, TCP, tcp(1, 443)), *tags)
    assert_dropped(open_pod.from_pod(spoofed), Reason.SPOOFED_SOURCE)


def test_three_tags_are_an_unknown_ethertype(open_pod: Kernel) -> None:
    """There is a bound."""
    frame = packets.tagged(packets.ip(POD4, PEER4, TCP, tcp(1, 443)), 1, 2, 3)
    assert_dropped(open_pod.from_pod(frame), Reason.UNKNOWN_ETHERTYPE)


# ---------------------------------------------------------------------------------------------------------------------
# Whose addresses


@pytest.mark.parametrize("source", ["10.0.0.6", "0.0.0.0", "127.0.0.1", PEER4, "169.254.1.1"])
def test_a_pod_sends_from_its_own_address(open_pod: Kernel, source: str) -> None:
    """Any other source is spoofed."""
    assert_dropped(open_pod.from_pod(packets.ip(source, "192.0.2.1", TCP, tcp(1, 2))), Reason.SPOOFED_SOURCE)


@pytest.mark.parametrize("source", ["fd00::6", "::", "::1", LINK_LOCAL])
def test_a_pod_sends_from_its_own_ipv6_address(open_pod: Kernel, source: str) -> None:
    """The same for IPv6, link-local sources included, except for what always passes."""
    assert_dropped(open_pod.from_pod(packets.ip(source, "2001:db8::1", TCP, tcp(1, 2))), Reason.SPOOFED_SOURCE)


@pytest.mark.parametrize(("source", "destination"), [(PEER4, "10.0.0.6"), (PEER6, "fd00::6"), (PEER6, LINK_LOCAL)])
def test_a_pod_receives_what_is_sent_to_it(open_pod: Kernel, source: str, destination: str) -> None:
    """Unicast to anybody else does not come in: a pod cannot draw its neighbour's frames."""
    assert_dropped(open_pod.to_pod(packets.ip(source, destination, TCP, tcp(1, 2))), Reason.WRONG_DESTINATION)


def test_multicast_is_judged(open_pod: Kernel, kernel: Kernel) -> None:
    """Multicast and broadcast come in if policy lets them."""
    frame = packets.ip(PEER4, "224.0.0.251", UDP, udp(5353, 5353))
    assert open_pod.to_pod(frame).passed
    kernel.fill(make_tables(ingress={"isolated": True}))
    assert_dropped(kernel.to_pod(frame), Reason.ISOLATED)


def test_further_addresses_of_an_endpoint(kernel: Kernel) -> None:
    """Addresses beyond the first of each family are the endpoint's own too, and have flows of their own."""
    from dataclasses import replace

    tables = allow_all()
    tables.endpoints[1] = replace(tables.endpoints[1], more_addresses=True)
    tables.endpoint_addresses[(tables.endpoints[1].id, "10.0.0.55")] = 2
    kernel.fill(tables)
    assert kernel.from_pod(packets.ip("10.0.0.55", PEER4, TCP, tcp(1, 2))).passed
    assert not kernel.from_pod(packets.ip("10.0.0.56", PEER4, TCP, tcp(1, 2))).passed
    assert kernel.from_pod(packets.ip(POD4, PEER4, TCP, tcp(1, 2))).passed
    assert len(kernel.maps["flows"].keys()) == 2


# ---------------------------------------------------------------------------------------------------------------------
# Always


def solicit(
    source: str, destination: str, kind: int = 135, *, code: int = 0, hops: int = 255, target: str = POD6
) -> bytes:
    return packets.ip(source, destination, 58, icmp(kind, code, bytes(4), packets.pack(target)), hops=hops)


def test_arp_with_the_own_sender_passes(shut_pod: Kernel) -> None:
    """ARP of the pod passes if the sender is the pod; ARP to the pod passes."""
    assert shut_pod.from_pod(packets.arp(POD4, "10.0.0.1")).passed
    assert shut_pod.to_pod(packets.arp("10.0.0.1", POD4)).passed
    assert shut_pod.count_reason(Direction.EGRESS, Reason.ALWAYS) == 1


@pytest.mark.parametrize("sender", ["10.0.0.6", "0.0.0.0", "10.0.0.1"])
def test_arp_in_anothers_name_is_dropped(open_pod: Kernel, sender: str) -> None:
    """A pod cannot poison its neighbours."""
    assert_dropped(open_pod.from_pod(packets.arp(sender, "10.0.0.1", operation=2)), Reason.BAD_ARP)


def test_arp_of_another_hardware_is_dropped(open_pod: Kernel) -> None:
    """Not Ethernet and IPv4: not ARP as we know it."""
    frame = bytearray(packets.arp(POD4, "10.0.0.1"))
    frame[19] = 16
    assert_dropped(open_pod.from_pod(bytes(frame)), Reason.BAD_ARP)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(solicit(POD6, "ff02::1:ff00:1"), id="solicitation to multicast"),
        pytest.param(solicit(LINK_LOCAL, "ff02::1:ff00:1"), id="solicitation from link-local"),
        pytest.param(solicit("::", "ff02::1:ff00:5"), id="duplicate address detection"),
        pytest.param(solicit(POD6, GATEWAY6), id="solicitation to the gateway"),
        pytest.param(solicit(POD6, GATEWAY6, 136), id="advertisement of the own address"),
        pytest.param(solicit(LINK_LOCAL, GATEWAY6, 136, target=LINK_LOCAL), id="advertisement of the own link-local"),
        pytest.param(solicit(LINK_LOCAL, "ff02::2", 133), id="router solicitation"),
        pytest.param(packets.ip(LINK_LOCAL, "ff02::16", 58, icmp(143, 0), hops=1), id="listener report"),
        pytest.param(packets.ip("::", "ff02::16", 58, icmp(131, 0), hops=1), id="listener report without address"),
        pytest.param(packets.ip("0.0.0.0", ALL, UDP, udp(68, 67)), id="DHCP discover"),
        pytest.param(packets.ip(POD4, ALL, UDP, udp(68, 67)), id="DHCP rebind"),
        pytest.param(packets.ip(LINK_LOCAL, "ff02::1:2", UDP, udp(546, 547)), id="DHCPv6 solicit"),
    ],
)
def test_what_always_passes_from_the_pod(shut_pod: Kernel, frame: bytes) -> None:
    """Exactly this list, through a policy that denies everything."""
    assert shut_pod.from_pod(frame).passed


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        pytest.param(solicit(POD6, "fd99::99"), Reason.ND_REFUSED, id="discovery to somewhere else is a tunnel"),
        pytest.param(solicit(POD6, GATEWAY6, hops=64), Reason.ND_REFUSED, id="hop limit 64"),
        pytest.param(solicit(POD6, GATEWAY6, code=1), Reason.ND_REFUSED, id="code 1"),
        pytest.param(solicit(LINK_LOCAL, "ff02::1", 134), Reason.ND_REFUSED, id="router advertisement"),
        pytest.param(solicit(LINK_LOCAL, "ff02::1", 137), Reason.ND_REFUSED, id="redirect"),
        pytest.param(solicit(POD6, GATEWAY6, 136, target="fd00::6"), Reason.ND_REFUSED, id="another's address"),
        pytest.param(
            solicit(LINK_LOCAL, GATEWAY6, 136, target="fe80::6"), Reason.ND_REFUSED, id="another's link-local"
        ),
        pytest.param(solicit(GATEWAY6, "ff02::1", 136, target=GATEWAY6), Reason.ND_REFUSED, id="the gateway's name"),
        pytest.param(solicit("fd00::6", GATEWAY6), Reason.ND_REFUSED, id="solicitation as another"),
        pytest.param(solicit("::", GATEWAY6), Reason.ND_REFUSED, id="no source, unicast"),
        pytest.param(packets.ip(POD6, PEER6, 58, icmp(143, 0), hops=1), Reason.ISOLATED, id="a report to somewhere"),
        pytest.param(packets.ip(POD6, PEER6, 58, packets.echo(128, 1)), Reason.ISOLATED, id="echo"),
        pytest.param(packets.ip("0.0.0.0", "192.0.2.1", UDP, udp(68, 67)), Reason.SPOOFED_SOURCE, id="DHCP unicast"),
        pytest.param(packets.ip(POD4, "192.0.2.1", UDP, udp(68, 67)), Reason.ISOLATED, id="DHCP ports to anybody"),
        pytest.param(packets.ip("0.0.0.0", ALL, UDP, udp(68, 53)), Reason.SPOOFED_SOURCE, id="other ports"),
        pytest.param(packets.ip("10.0.0.6", ALL, UDP, udp(68, 67)), Reason.SPOOFED_SOURCE, id="DHCP as another"),
        pytest.param(packets.ip(POD6, "ff02::1:2", UDP, udp(546, 547)), Reason.ISOLATED, id="DHCPv6 from a global"),
    ],
)
def test_what_looks_like_it_does_not(shut_pod: Kernel, frame: bytes, reason: Reason) -> None:
    """Nothing beside the list: each near miss is judged or dropped."""
    assert_dropped(shut_pod.from_pod(frame), reason)


def test_what_always_passes_to_the_pod(shut_pod: Kernel) -> None:
    """Discovery from the link and DHCP answers reach the pod; a far packet with DHCP's ports does not."""
    assert shut_pod.to_pod(solicit(GATEWAY6, POD6, target=POD6)).passed
    assert shut_pod.to_pod(solicit(GATEWAY6, "ff02::1", 134)).passed
    assert shut_pod.to_pod(packets.ip("10.0.0.1", POD4, UDP, udp(67, 68)), ingress=0).passed
    assert shut_pod.to_pod(packets.ip("10.0.0.1", ALL, UDP, udp(67, 68))).passed
    assert_dropped(shut_pod.to_pod(packets.ip(PEER4, POD4, UDP, udp(67, 68))), Reason.ISOLATED)
    assert_dropped(shut_pod.to_pod(solicit(GATEWAY6, POD6, hops=64)), Reason.ND_REFUSED)


# ---------------------------------------------------------------------------------------------------------------------
# Everything else


def test_random_bytes_never_pass_a_shut_pod(shut_pod: Kernel) -> None:
    """20,000 random and mutated frames, both ways: only what always passes, and every denial has a known reason."""
    rng = random.Random(5)
    seeds = [
        packets.ip(POD4, PEER4, TCP, tcp(1, 443, ACK)),
        packets.ip(POD6, PEER6, TCP, tcp(1, 443, SYN)),
        packets.ip(POD4, PEER4, UDP, udp(68, 67)),
        packets.ip(POD6, PEER6, 0, extension(44) + fragment6(UDP, 0, more=True) + udp(5, 99)),
        packets.ip(POD4, PEER4, 1, icmp(3, 4, bytes(4), ipv4(PEER4, POD4, TCP, tcp(1, 2)))),
        solicit(POD6, PEER6),
    ]
    known = {int(reason) for reason in Reason}
    passed = 0
    for _ in range(10_000):
        frame = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 6)):
            frame[rng.randrange(12, len(frame))] = rng.randrange(256)
        least = 54 if frame[12:14] == b"\x86\xdd" else 34  # what the kernel's test run takes
        cut = bytes(frame[: rng.randrange(least, len(frame) + 1)])
        for result in (shut_pod.from_pod(cut), shut_pod.to_pod(cut)):
            passed += result.passed
            assert result.event is None or result.event.reason in known - {0}
    always = sum(shut_pod.count_reason(direction, Reason.ALWAYS) for direction in Direction)
    assert passed == always
