"""Attacks on the programs, each by name: what a pod, its neighbours or its resolver may try, and what becomes of it.

What is tested more widely elsewhere (``test_learner``, ``test_flows``, ``test_packets``) is attacked here once more in
its plainest form, as its author would do it.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from schemas.terms import Direction, Reason
from services.nodeagent.judge import FrontendShape
from services.nodeagent.mapcodec import SCOPE_LEARNED
from services.nodeagent.tables import CLASS_DOMAIN, CidrEntry, ConfigEntry, FrontendEntry, Tables
from tests.bpf import packets
from tests.bpf.messages import AAAA, A, address, alias, answer, query
from tests.bpf.packets import ACK, SYN, TCP, UDP, icmp, ipv4, tcp, udp
from tests.bpf.prog_run import IFINDEX, Kernel, Result
from tests.bpf.worlds import (
    EGRESS,
    INGRESS,
    NODE_LOCAL,
    OUTSIDE,
    PEER4,
    PEER6,
    POD4,
    POD6,
    POD_ID,
    RESOLVER,
    TRUSTED,
    add_cidr,
    add_pattern,
    make_tables,
    with_dns,
)

pytestmark = pytest.mark.kernel
RULE = 1 << 200
NAME, ROW = "www.example.com", 7
WEB = "198.51.100.7"
VICTIM = "10.0.0.6"
"""Another pod."""


def shut() -> Tables:
    """A pod that may talk to nobody."""
    return make_tables(egress={"isolated": True}, ingress={"isolated": True})


def named(flags: int = TRUSTED) -> Tables:
    """A pod that may ask the resolver and connect to one name."""
    tables = with_dns(shut(), flags)
    add_pattern(tables, NAME, ROW, RULE)
    return tables


def ask(kernel: Kernel, name: str = NAME, *, kind: int = A, identifier: int = 0x1234, port: int = 40000) -> Result:
    return kernel.from_pod(packets.ip(POD4, RESOLVER, UDP, udp(port, 53, query(name, kind, identifier))))


def tell(
    kernel: Kernel, message: bytes, *, source: str = RESOLVER, sport: int = 53, port: int = 40000, ingress: int = 77
) -> Result:
    return kernel.to_pod(packets.ip(source, POD4, UDP, udp(sport, port, message)), ingress=ingress)


def connect(kernel: Kernel, to: str = WEB, *, flags: int = SYN) -> Result:
    return kernel.from_pod(packets.ip(POD4, to, TCP, tcp(50000, 443, flags)))


def denied(result: Result, reason: Reason) -> None:
    assert not result.passed and result.reason is reason


# ---------------------------------------------------------------------------------------------------------------------
# Names


def test_a_name_taught_before_the_pod_does_not_open_it(kernel: Kernel) -> None:
    """A tenant lets its wildcard resolve to free pod addresses and waits: a pod that gets one is no name's."""
    tables = named()
    kernel.fill(tables)
    ask(kernel)
    tell(kernel, answer(NAME, VICTIM))
    assert connect(kernel, VICTIM).passed
    tables.ipcache[VICTIM] = 42
    kernel.fill(tables)
    denied(connect(kernel, VICTIM), Reason.ISOLATED)
    denied(connect(kernel, VICTIM, flags=ACK), Reason.ISOLATED)


def test_a_live_flow_by_name_ends_when_the_address_becomes_a_pods(kernel: Kernel) -> None:
    """Nor does the name that admitted a flow keep it alive towards the pod that has the address now."""
    tables = named()
    kernel.fill(tables)
    ask(kernel)
    tell(kernel, answer(NAME, VICTIM))
    assert connect(kernel, VICTIM).passed and connect(kernel, VICTIM, flags=ACK).passed
    tables.ipcache[VICTIM] = 42
    kernel.fill(tables)
    denied(connect(kernel, VICTIM, flags=ACK), Reason.ISOLATED)


@pytest.mark.parametrize("embedding", ["64:ff9b::a00:6", "2002:a00:6::1", "::a00:6"])
def test_no_translator_leads_to_a_pod(kernel: Kernel, embedding: str) -> None:
    """An IPv6 form of a pod's address is no way to it."""
    tables = named()
    tables.ipcache[VICTIM] = 42
    kernel.fill(tables)
    ask(kernel, kind=AAAA)
    tell(kernel, answer(NAME, embedding))
    assert not kernel.maps["resolutions"].keys()


def test_an_answer_through_the_pods_own_service_teaches_nothing(kernel: Kernel) -> None:
    """A Service of the pod's own that bears the resolver's address makes answers come out of its own interface."""
    kernel.fill(named())
    ask(kernel)
    tell(kernel, answer(NAME, WEB), ingress=IFINDEX)
    assert kernel.names_of(WEB) == {}
    assert kernel.count_reason(Direction.INGRESS, Reason.LEARN_UNTRUSTED) == 1
    assert not connect(kernel).passed


def test_an_answer_of_the_nodes_resolver_comes_from_this_node(kernel: Kernel) -> None:
    """A masqueraded packet bears the node's address and port 53: it was forwarded, so it teaches nothing."""
    kernel.fill(named(TRUSTED | NODE_LOCAL))
    ask(kernel)
    denied(tell(kernel, answer(NAME, WEB), ingress=77), Reason.ISOLATED)
    assert kernel.names_of(WEB) == {}
    assert tell(kernel, answer(NAME, WEB), ingress=0).passed and set(kernel.names_of(WEB)) == {ROW}


def test_an_outside_resolver_cannot_speak_for_the_cluster(kernel: Kernel) -> None:
    """Whoever can forge 8.8.8.8 towards one pod teaches that pod alone."""
    kernel.fill(named(TRUSTED | OUTSIDE))
    ask(kernel)
    tell(kernel, answer(NAME, WEB))
    assert kernel.names_of(WEB, SCOPE_LEARNED) == {} and set(kernel.names_of(WEB, POD_ID)) == {ROW}


def test_every_bit_of_an_answers_header_counts(kernel: Kernel) -> None:
    """One bit changed in id, flags, opcode, counts or question: what is learned is of the asked name, or nothing."""
    kernel.fill(named())
    good = answer(NAME, WEB)
    survivors = set()
    for at in range(len(good) - 16):
        for bit in range(8):
            kernel.forget()
            ask(kernel)
            changed = bytearray(good)
            changed[at] ^= 1 << bit
            tell(kernel, bytes(changed))
            names = kernel.names_of(WEB)
            if names:
                survivors.add(at)
                assert set(names) == {ROW}
    # AA, TC, RD; RA, Z, AD, CD; the counts of sections behind the answer; case of letters.
    question = set(range(12, 12 + len(NAME) + 2))
    assert survivors <= {2, 3, 8, 9, 10, 11} | question


def test_queries_of_one_pod_cannot_be_answered_to_another_interface(kernel: Kernel) -> None:
    """The interface is part of the question: a neighbour that knows port and id is not who asked."""
    tables = named()
    kernel.fill(tables)
    ask(kernel)
    tables.endpoints[1] = replace(tables.endpoints[1], id=POD_ID - 1)
    kernel.fill(tables)
    denied(tell(kernel, answer(NAME, WEB)), Reason.ISOLATED)
    assert kernel.names_of(WEB) == {}


def test_a_flood_of_queries_overwrites_ones_own_and_admits_nothing(kernel: Kernel) -> None:
    """After 20,000 other queries the first answer may be unknown: it is then refused, never taken for another's."""
    kernel.fill(named())
    ask(kernel)
    for number in range(20_000):
        ask(kernel, f"n{number}.flood.test", identifier=number & 0xFFFF, port=1024 + number % 60_000)
    result = tell(kernel, answer(NAME, WEB))
    assert result.passed == bool(kernel.names_of(WEB))
    assert not tell(kernel, answer("n1.flood.test", WEB, identifier=77), port=1025).passed
    assert len(kernel.maps["flows"].keys()) == 1


@pytest.mark.parametrize("target", range(0, 64, 3))
def test_owner_pointers_lead_nowhere_else(kernel: Kernel, target: int) -> None:
    """A compression pointer to any place teaches the asked name or nothing, and never hangs the learner."""
    kernel.fill(named())
    ask(kernel)
    tell(kernel, answer(NAME, address(WEB, owner=struct.pack("!H", 0xC000 | target))))
    assert set(kernel.names_of(WEB)) <= {ROW}


def test_an_alias_does_not_lend_its_name(kernel: Kernel) -> None:
    """An attacker's name with a CNAME to an allowed one teaches nothing under the allowed name."""
    kernel.fill(named())
    ask(kernel, "evil.test")
    owner = b"\x03www\x07example\x03com\0"
    tell(kernel, answer("evil.test", alias(NAME), address(WEB, owner=owner)))
    assert kernel.names_of(WEB) == {}


def test_a_quota_that_is_used_up_is_ones_own(kernel: Kernel) -> None:
    """A pod that learned all it may takes nothing from its neighbour."""
    tables = named()
    tables.config = ConfigEntry(names_per_endpoint=5)
    kernel.fill(tables)
    ask(kernel)
    tell(kernel, answer(NAME, *(f"198.18.0.{n}" for n in range(1, 31))))
    assert len(kernel.maps["resolutions"].keys()) == 5
    tables.endpoints[1] = replace(tables.endpoints[1], id=POD_ID - 1)
    kernel.fill(tables)
    ask(kernel)
    tell(kernel, answer(NAME, WEB))
    assert set(kernel.names_of(WEB)) == {ROW}


# ---------------------------------------------------------------------------------------------------------------------
# Neighbours


def test_a_tenants_64_patterns_on_an_address_shut_nobody_else_out(kernel: Kernel) -> None:
    """Sixty-four names of a tenant that lead to a neighbour's server leave room for the neighbour's own name."""
    tables = named()
    for row in range(100, 164):
        add_pattern(tables, f"n{row}.evil.test", row, RULE)
    kernel.fill(tables)
    for row in range(100, 164):
        ask(kernel, f"n{row}.evil.test")
        tell(kernel, answer(f"n{row}.evil.test", WEB))
    assert len(kernel.names_of(WEB)) == 64
    tables.endpoints[1] = replace(tables.endpoints[1], id=POD_ID - 1)
    for row in range(100, 164):
        del tables.peers[(EGRESS, CLASS_DOMAIN | row)]
    kernel.fill(tables)
    ask(kernel)
    tell(kernel, answer(NAME, WEB))
    assert connect(kernel).passed


# ---------------------------------------------------------------------------------------------------------------------
# ICMP, discovery


def test_fragments_of_an_error_are_no_channel(kernel: Kernel) -> None:
    """An error about a live flow is small: fragments would carry data past the ration and past a change of policy."""
    tables = shut()
    add_cidr(tables, f"{PEER4}/32", 5, INGRESS, RULE)
    kernel.fill(tables)
    assert kernel.to_pod(packets.ip(PEER4, POD4, UDP, udp(9, 10))).passed
    error = icmp(3, 3, bytes(4), ipv4(PEER4, POD4, UDP, udp(9, 10)) + bytes(500))
    first = packets.ip(POD4, PEER4, 1, error, more=True, identifier=9)
    denied(kernel.from_pod(first), Reason.ICMP_UNRELATED)
    for offset in (70, 140, 210):
        assert not kernel.from_pod(packets.ip(POD4, PEER4, 1, bytes(560), fragment=offset, identifier=9)).passed


def test_a_quote_opens_no_other_destination(kernel: Kernel) -> None:
    """A live flow quoted to anybody but its own peer, with any address swapped, leaves nowhere."""
    tables = shut()
    add_cidr(tables, f"{PEER4}/32", 5, EGRESS, RULE)
    kernel.fill(tables)
    assert kernel.from_pod(packets.ip(POD4, PEER4, UDP, udp(10, 9))).passed
    for to in (PEER4, "192.0.2.99", VICTIM, POD4):
        for source in (PEER4, "192.0.2.99", VICTIM, POD4):
            for destination in (PEER4, "192.0.2.99", VICTIM, POD4):
                quote = ipv4(source, destination, UDP, udp(9, 10))
                result = kernel.from_pod(packets.ip(POD4, to, 1, icmp(3, 1, bytes(4), quote)))
                assert result.passed == ((to, source, destination) == (PEER4, PEER4, POD4))


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_an_error_of_one_family_is_not_about_a_flow_of_the_other(kernel: Kernel, kind: int) -> None:
    """A v4-mapped address in a quote is no way in over IPv6 for whoever knows of a flow over IPv4."""
    tables = shut()
    add_cidr(tables, f"{PEER4}/32", 5, EGRESS, RULE)
    kernel.fill(tables)
    assert kernel.from_pod(packets.ip(POD4, PEER4, UDP, udp(10, 9))).passed
    quote = packets.ipv6(POD6, PEER6, UDP, udp(10, 9))
    mapped = quote[:24] + bytes(10) + b"\xff\xff" + packets.pack(PEER4) + quote[40:]
    error = packets.ip("2001:db8::bad", POD6, packets.ICMP6, icmp(kind, 0, bytes(4), mapped))
    denied(kernel.to_pod(error), Reason.ICMP_UNRELATED)
    own = packets.ip("203.0.113.1", POD4, packets.ICMP, icmp(3, 1, bytes(4), ipv4(POD4, PEER4, UDP, udp(10, 9))))
    assert kernel.to_pod(own).passed


def test_a_quote_within_a_quote_is_not_followed(kernel: Kernel) -> None:
    """An error that quotes an error that quotes a live flow is about nothing."""
    tables = shut()
    add_cidr(tables, f"{PEER4}/32", 5, EGRESS, RULE)
    kernel.fill(tables)
    assert kernel.from_pod(packets.ip(POD4, PEER4, UDP, udp(10, 9))).passed
    inner = icmp(3, 3, bytes(4), ipv4(PEER4, POD4, UDP, udp(9, 10)))
    quote = ipv4(POD4, PEER4, 1, inner)
    denied(kernel.to_pod(packets.ip("203.0.113.1", POD4, 1, icmp(3, 3, bytes(4), quote))), Reason.ICMP_UNRELATED)


@pytest.mark.parametrize("hops", [255, 64])
@pytest.mark.parametrize("kind", [133, 134, 135, 136, 137])
def test_discovery_carries_nothing_off_the_link(kernel: Kernel, kind: int, hops: int) -> None:
    """440 bytes in a discovery message to a far address: the tunnel out of a pod that may talk to nobody."""
    kernel.fill(shut())
    for to in (PEER6, "fd99::99", "ff05::2", "ff0e::1"):
        frame = packets.ip(POD6, to, 58, icmp(kind, 0, bytes(4), packets.pack(POD6) + bytes(424)), hops=hops)
        denied(kernel.from_pod(frame), Reason.ND_REFUSED)


# ---------------------------------------------------------------------------------------------------------------------
# Nodes and Services


def test_a_node_port_is_no_way_around(kernel: Kernel) -> None:
    """Through the own node: the sender is judged by what stands behind the port, the receiver by where it came in."""
    tables = shut()
    node = "192.0.2.1"
    tables.own_addresses[node] = 1
    tables.frontends[(node, TCP, 30080)] = FrontendEntry(int(FrontendShape.UNIFORM), 42, 8080)
    kernel.fill(tables)
    denied(kernel.from_pod(packets.ip(POD4, node, TCP, tcp(1000, 30080))), Reason.ISOLATED)
    denied(kernel.to_pod(packets.ip(node, POD4, TCP, tcp(1000, 8080)), ingress=77), Reason.ISOLATED)
    denied(kernel.to_pod(packets.ip("169.254.1.1", POD4, TCP, tcp(1000, 8080)), ingress=77), Reason.ISOLATED)


def test_a_probes_flow_is_not_taken_over_by_a_forwarded_syn(kernel: Kernel) -> None:
    """Where the node itself connected before, a forwarded SYN with its address and ports is judged for itself."""
    kernel.fill(shut())
    assert kernel.to_pod(packets.ip("192.0.2.1", POD4, TCP, tcp(1000, 8080)), ingress=0).passed
    assert kernel.from_pod(packets.ip(POD4, "192.0.2.1", TCP, tcp(8080, 1000, SYN | ACK))).passed
    denied(kernel.to_pod(packets.ip("192.0.2.1", POD4, TCP, tcp(1000, 8080)), ingress=77), Reason.ISOLATED)


def test_a_pod_that_nobody_told_of_is_not_the_world(kernel: Kernel) -> None:
    """Until its row arrives, a rule for 0.0.0.0/0 does not open an address of the pods' range."""
    tables = shut()
    add_cidr(tables, "0.0.0.0/0", 5, EGRESS, RULE)
    tables.cidrs["10.0.0.0/16"] = CidrEntry(tables.cidrs["0.0.0.0/0"].klass, unknown_pod=True)
    kernel.fill(tables)
    denied(connect(kernel, VICTIM), Reason.UNKNOWN_POD)
    assert connect(kernel, PEER4).passed


# ---------------------------------------------------------------------------------------------------------------------
# Headers, fragments, flows


def only_tcp_443() -> Tables:
    """A pod that may connect to one peer of each family, to TCP port 443 alone."""
    tables = shut()
    tables.ports.clear()
    tables.port_classes[443] = 9  # of TCP: the first slot
    tables.ports[(EGRESS, 9)] = RULE
    add_cidr(tables, f"{PEER4}/32", 5, EGRESS, RULE)
    add_cidr(tables, f"{PEER6}/128", 6, EGRESS, RULE)
    return tables


@pytest.mark.parametrize(
    ("frame", "whole"),
    [
        (packets.ip(POD4, PEER4, TCP, tcp(1000, 443)), 54),
        (packets.ip(POD4, PEER4, TCP, tcp(1000, 443), options=b"\1" * 40), 94),
        (packets.ip(POD6, PEER6, TCP, tcp(1000, 443)), 74),
        (packets.ip(POD6, PEER6, 0, packets.extension(60) + packets.extension(TCP) + tcp(1000, 443)), 90),
    ],
)
def test_a_header_cut_at_any_byte_does_not_pass(kernel: Kernel, frame: bytes, whole: int) -> None:
    """Wherever the frame ends before its headers do, it is dropped; whole, it passes."""
    kernel.fill(only_tcp_443())
    least = 54 if frame[12:14] == b"\x86\xdd" else 34
    for size in range(least, whole):
        assert not kernel.from_pod(frame[:size]).passed
    assert kernel.from_pod(frame[:whole]).passed


@pytest.mark.parametrize("size", range(0, 40))
def test_a_length_that_lies_does_not_pass(kernel: Kernel, size: int) -> None:
    """An IP length that leaves no room for the transport header hides no ports in the padding."""
    kernel.fill(only_tcp_443())
    assert not kernel.from_pod(packets.ip(POD4, PEER4, TCP, tcp(1000, 443), total=size)).passed
    if size < 20:
        assert not kernel.from_pod(packets.ip(POD6, PEER6, TCP, tcp(1000, 443), total=size)).passed


def test_overlapping_fragments_change_no_port(kernel: Kernel) -> None:
    """A second first fragment with other ports is judged by its own; none reaches back into a TCP header."""
    kernel.fill(only_tcp_443())
    body = tcp(1000, 443) + bytes(20)
    assert kernel.from_pod(packets.ip(POD4, PEER4, TCP, body, more=True, identifier=3)).passed
    other = tcp(1000, 22) + bytes(20)
    denied(kernel.from_pod(packets.ip(POD4, PEER4, TCP, other, more=True, identifier=3)), Reason.ISOLATED)
    for offset in (1, 2):
        for more in (True, False):
            frame = packets.ip(POD4, PEER4, TCP, other[offset * 8 :], fragment=offset, more=more, identifier=3)
            denied(kernel.from_pod(frame), Reason.MALFORMED)


def test_no_fragment_reaches_back_into_headers_behind_the_fragment_header(kernel: Kernel) -> None:
    """With an extension header before TCP's its ports lie further behind: no later fragment lays others over them."""
    kernel.fill(only_tcp_443())

    def send(offset: int, body: bytes, following: int = 60) -> Result:
        fragment = packets.fragment6(following, offset, more=offset == 0) + body
        return kernel.from_pod(packets.ip(POD6, PEER6, 44, fragment))

    denied(send(0, packets.extension(TCP) + tcp(1000, 22) + bytes(12)), Reason.ISOLATED)
    denied(send(4, bytes(32)), Reason.FRAGMENT_UNKNOWN)
    assert send(0, packets.extension(TCP) + tcp(1000, 443) + bytes(12)).passed
    other = packets.extension(TCP) + tcp(1000, 22) + bytes(12)
    for offset in (1, 2, 3):
        denied(send(offset, other[offset * 8 :]), Reason.MALFORMED)
        denied(send(offset, other[offset * 8 :], UDP), Reason.FRAGMENT_UNKNOWN)
    assert send(4, bytes(32)).passed
    kernel.fill(shut())
    denied(send(5, bytes(32)), Reason.ISOLATED)


def test_a_later_fragment_of_another_protocol_is_unknown(kernel: Kernel) -> None:
    """IPv6 reassembles by id and addresses alone: a first fragment of TCP does not carry later ones of UDP along."""
    kernel.fill(only_tcp_443())
    first = packets.fragment6(TCP, 0, more=True) + tcp(1000, 443) + bytes(12)
    assert kernel.from_pod(packets.ip(POD6, PEER6, 44, first)).passed
    for following in (UDP, 60, 43, 0, 58):
        later = packets.fragment6(following, 4, more=False) + bytes(32)
        denied(kernel.from_pod(packets.ip(POD6, PEER6, 44, later)), Reason.FRAGMENT_UNKNOWN)


def test_fragments_of_a_flow_that_policy_ended_stop(kernel: Kernel) -> None:
    """A change of policy is judged for later fragments too."""
    kernel.fill(only_tcp_443())
    assert kernel.from_pod(packets.ip(POD4, PEER4, TCP, tcp(1000, 443) + bytes(20), more=True, identifier=4)).passed
    kernel.fill(shut())
    denied(kernel.from_pod(packets.ip(POD4, PEER4, TCP, bytes(80), fragment=5, identifier=4)), Reason.ISOLATED)


def test_syns_against_a_flow_are_judged(kernel: Kernel) -> None:
    """On the ports of a live connection the peer opens nothing back, with any extra flags."""
    kernel.fill(only_tcp_443())
    assert kernel.from_pod(packets.ip(POD4, PEER4, TCP, tcp(1000, 443))).passed
    assert kernel.to_pod(packets.ip(PEER4, POD4, TCP, tcp(443, 1000, SYN | ACK))).passed
    for extra in (0, 8, 0x20, 0x40, 0x80, 0xC0):
        assert not kernel.to_pod(packets.ip(PEER4, POD4, TCP, tcp(443, 1000, SYN | extra))).passed


def test_a_flow_belongs_to_its_interface(kernel: Kernel) -> None:
    """The same peer and ports on another interface are another flow."""
    tables = shut()
    add_cidr(tables, f"{PEER4}/32", 5, EGRESS, RULE)
    kernel.fill(tables)
    reply = packets.ip(PEER4, POD4, UDP, udp(99, 1000))
    assert kernel.from_pod(packets.ip(POD4, PEER4, UDP, udp(1000, 99))).passed
    ((key, value),) = kernel.maps["flows"].items()
    kernel.forget_flows()
    kernel.maps["flows"].put(key[:16] + (2).to_bytes(4, "little") + key[20:], value)
    denied(kernel.to_pod(reply), Reason.ISOLATED)
    kernel.maps["flows"].put(key, value)
    assert kernel.to_pod(reply).passed
