"""Flows: what was admitted goes on, replies come back, and every change is judged again."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from schemas.policy import FlowTimeouts
from schemas.terms import Default, Direction, Reason
from services.nodeagent.mapcodec import TICK_SHIFT
from services.nodeagent.tables import ConfigEntry, Tables
from tests.bpf import packets
from tests.bpf.packets import ACK, FIN, IPV4, IPV6, RST, SYN, TCP, UDP, echo, ethernet, icmp, ipv4, ipv6, tcp, udp
from tests.bpf.prog_run import IFINDEX, Kernel, Result, boot_seconds
from tests.bpf.worlds import (
    EGRESS,
    INGRESS,
    PEER4,
    PEER6,
    POD4,
    POD6,
    add_cidr,
    add_pattern,
    make_tables,
)

pytestmark = pytest.mark.kernel
ALLOW = 1 << 200
EXPIRES, EPOCH, PLACE = slice(8, 12), slice(0, 8), slice(32, 36)
SENT, REPLIES = 40, 104
"""Offsets in struct flow."""


def tables_with(direction: Direction, *, peer: str = PEER4) -> Tables:
    """One direction to one peer is allowed; all else is shut."""
    tables = make_tables(egress={"isolated": True}, ingress={"isolated": True})
    prefix = f"{peer}/{128 if ':' in peer else 32}"
    add_cidr(tables, prefix, 5, EGRESS if direction is Direction.EGRESS else INGRESS, ALLOW)
    return tables


@pytest.fixture
def outward(kernel: Kernel) -> Kernel:
    """The pod may connect to the peer, and nobody to the pod."""
    kernel.fill(tables_with(Direction.EGRESS))
    return kernel


@pytest.fixture
def inward(kernel: Kernel) -> Kernel:
    """The peer may connect to the pod, and the pod to nobody."""
    kernel.fill(tables_with(Direction.INGRESS))
    return kernel


def out(kernel: Kernel, flags: int = ACK, *, sport: int = 1000, dport: int = 443) -> Result:
    return kernel.from_pod(packets.ip(POD4, PEER4, TCP, tcp(sport, dport, flags)))


def back(kernel: Kernel, flags: int = ACK, *, sport: int = 443, dport: int = 1000, ingress: int = 77) -> Result:
    return kernel.to_pod(packets.ip(PEER4, POD4, TCP, tcp(sport, dport, flags)), ingress=ingress)


def handshake(kernel: Kernel) -> None:
    assert out(kernel, SYN).passed and back(kernel, SYN | ACK).passed and out(kernel).passed


def only_flow(kernel: Kernel) -> bytes:
    ((_, value),) = kernel.maps["flows"].items()
    return value


def is_among_answered(kernel: Kernel) -> bool:
    """Whether the only flow has none of the places, each fourth, for those that nobody answered."""
    return int.from_bytes(only_flow(kernel)[PLACE], "little") % 4 != 0


# ---------------------------------------------------------------------------------------------------------------------
# Replies


def test_replies_pass_and_new_flows_are_judged(outward: Kernel) -> None:
    """What the pod opened comes back; the same peer cannot open anything."""
    handshake(outward)
    assert back(outward, ACK).passed
    assert not back(outward, SYN, sport=444).passed
    assert not back(outward, SYN, sport=443, dport=1001).passed


def test_an_established_packet_makes_no_event(outward: Kernel) -> None:
    """Only new flows and denials are told."""
    handshake(outward)
    assert out(outward).event is None and back(outward).event is None


def test_the_same_towards_the_pod(inward: Kernel) -> None:
    """Inbound flows that policy admits are answered; the pod opens nothing."""
    assert back(inward, SYN, sport=5000, dport=80).passed
    assert out(inward, SYN | ACK, sport=80, dport=5000).passed
    assert not out(inward, SYN, sport=81, dport=5000).passed


@pytest.mark.parametrize("protocol", [UDP, packets.SCTP, 47])
def test_replies_of_other_protocols(outward: Kernel, protocol: int) -> None:
    """UDP, SCTP and protocols without ports have flows too."""
    body = {UDP: udp(5, 6), packets.SCTP: packets.sctp(5, 6), 47: bytes(8)}[protocol]
    turned = {UDP: udp(6, 5), packets.SCTP: packets.sctp(6, 5), 47: bytes(8)}[protocol]
    reply = packets.ip(PEER4, POD4, protocol, turned)
    assert not outward.to_pod(reply).passed
    assert outward.from_pod(packets.ip(POD4, PEER4, protocol, body)).passed
    assert outward.to_pod(reply).passed


def test_echo_belongs_to_who_asked(outward: Kernel) -> None:
    """A reply to the pod's echo passes; a request with the same identifier does not, nor another's reply."""
    assert outward.from_pod(packets.ip(POD4, PEER4, 1, echo(8, 7))).passed
    assert outward.to_pod(packets.ip(PEER4, POD4, 1, echo(0, 7))).passed
    assert not outward.to_pod(packets.ip(PEER4, POD4, 1, echo(8, 7))).passed
    assert not outward.to_pod(packets.ip("192.0.2.99", POD4, 1, echo(0, 7))).passed


def test_echo_of_ipv6(kernel: Kernel) -> None:
    """The same for ICMPv6."""
    kernel.fill(tables_with(Direction.EGRESS, peer=PEER6))
    assert kernel.from_pod(packets.ip(POD6, PEER6, 58, echo(128, 7))).passed
    assert kernel.to_pod(packets.ip(PEER6, POD6, 58, echo(129, 7))).passed
    assert not kernel.to_pod(packets.ip(PEER6, POD6, 58, echo(128, 7))).passed


def test_the_first_reply_moves_a_flow_out_of_reach(outward: Kernel) -> None:
    """Unanswered flows, which anyone can make, and answered ones compete for places among themselves."""
    assert out(outward, SYN).passed
    assert not is_among_answered(outward)
    assert back(outward, SYN | ACK).passed
    assert is_among_answered(outward)


def test_packets_and_bytes_are_counted_in_the_flow(outward: Kernel) -> None:
    """By direction: 2 packets out, 1 back, 60 bytes each."""
    handshake(outward)
    flow = only_flow(outward)
    assert struct.unpack_from("=QQ", flow, SENT) == (2, 120)
    assert struct.unpack_from("=QQ", flow, REPLIES) == (1, 60)


# ---------------------------------------------------------------------------------------------------------------------
# New flows on old ports


def test_a_syn_on_an_existing_tuple_is_a_new_flow(outward: Kernel) -> None:
    """Port reuse: the SYN is judged by today's policy, whatever lived on those ports."""
    handshake(outward)
    shut = make_tables(egress={"isolated": True})
    epoch = outward.maps["epoch"].get(bytes(4))
    outward.fill(shut)
    assert epoch is not None
    outward.maps["epoch"].put(bytes(4), epoch)  # as if nobody had told the live flows
    assert out(outward).passed
    assert not out(outward, SYN).passed


def test_a_syn_against_the_flow_is_a_new_flow(outward: Kernel) -> None:
    """The peer cannot open an inbound connection on the tuple of an established outbound one."""
    handshake(outward)
    assert not back(outward, SYN).passed


def test_simultaneous_open(outward: Kernel) -> None:
    """While the pod's SYN is unanswered the peer's SYN on the same tuple is part of it."""
    assert out(outward, SYN).passed
    assert back(outward, SYN).passed and out(outward, SYN | ACK).passed


def test_an_expired_flow_is_no_flow(outward: Kernel) -> None:
    """What is over is judged anew."""
    assert outward.from_pod(packets.ip(POD4, PEER4, UDP, udp(5, 6))).passed
    ((key, value),) = outward.maps["flows"].items()
    past = bytearray(value)
    past[EXPIRES] = bytes(4)
    outward.maps["flows"].put(key, bytes(past))
    assert not outward.to_pod(packets.ip(PEER4, POD4, UDP, udp(6, 5))).passed


RENEWED = (slice(56, 60), slice(120, 124))
"""When each direction set ``expires`` last, of struct flow."""


def change_flow(kernel: Kernel, *, expires: int, is_renewed: bool) -> None:
    """The only flow with another end. ``is_renewed``: and as if its packets had set it just now."""
    ((key, value),) = kernel.maps["flows"].items()
    changed = bytearray(value)
    changed[EXPIRES] = expires.to_bytes(4, "little")
    if not is_renewed:
        for place in RENEWED:
            changed[place] = bytes(4)
    kernel.maps["flows"].put(key, bytes(changed))


def test_an_answered_flow_expires_too(outward: Kernel) -> None:
    """Also where the packet is a plain one: what is over lets in nothing that the peer could not open."""
    assert outward.from_pod(packets.ip(POD4, PEER4, UDP, udp(5, 6))).passed
    for _ in range(2):
        assert outward.to_pod(packets.ip(PEER4, POD4, UDP, udp(6, 5))).passed
    change_flow(outward, expires=0, is_renewed=False)
    assert not outward.to_pod(packets.ip(PEER4, POD4, UDP, udp(6, 5))).passed


@pytest.mark.parametrize("send", [out, back])
def test_packets_renew_a_flow_within_a_tick(outward: Kernel, send: Callable[[Kernel], Result]) -> None:
    """Not each of them, but of any that come for a while one does, in either direction."""
    handshake(outward)
    out(outward), back(outward)
    full = read_lifetime(outward)
    ticks = time.clock_gettime_ns(_MONOTONIC_COARSE) >> TICK_SHIFT
    change_flow(outward, expires=ticks + 100, is_renewed=True)
    deadline = time.monotonic() + 10
    while read_lifetime(outward) < full - 10:
        assert send(outward).passed and time.monotonic() < deadline


def test_closing_shortens_a_flows_life(outward: Kernel) -> None:
    """Established: a day. One FIN: two minutes. Both, or RST: seconds."""
    handshake(outward)
    assert read_lifetime(outward) > 80_000
    out(outward, FIN | ACK)
    assert 90 < read_lifetime(outward) < 130
    back(outward, FIN | ACK)
    assert read_lifetime(outward) < 12


def test_a_reset_shortens_it_too(outward: Kernel) -> None:
    """RST ends a flow at once."""
    handshake(outward)
    back(outward, RST)
    assert read_lifetime(outward) < 12


_MONOTONIC_COARSE = 6
"""The clock that the programs read; linux/time.h."""


def read_lifetime(kernel: Kernel) -> int:
    """Ticks until the only flow is over if nothing comes."""
    ticks = time.clock_gettime_ns(_MONOTONIC_COARSE) >> TICK_SHIFT
    return int.from_bytes(only_flow(kernel)[EXPIRES], "little") - ticks


TIMEOUTS = FlowTimeouts(
    tcp=1000,
    tcp_opening=2000,
    tcp_closing=3000,
    tcp_closed=4000,
    udp=5000,
    udp_unanswered=6000,
    other=7000,
    other_unanswered=8000,
)


def fill_timeouts(kernel: Kernel, timeouts: FlowTimeouts) -> None:
    tables = tables_with(Direction.EGRESS)
    tables.config = ConfigEntry(timeouts=timeouts)
    kernel.fill(tables)


def is_lifetime(kernel: Kernel, seconds: int) -> bool:
    """Of the only flow: so many seconds from its last packet on, in whole ticks, of which one may have passed."""
    return 0 <= -(-seconds * 10**9 >> TICK_SHIFT) - read_lifetime(kernel) <= 1


def exchange(kernel: Kernel, protocol: int, there: bytes, back: bytes = b"") -> None:
    assert kernel.from_pod(packets.ip(POD4, PEER4, protocol, there)).passed
    assert not back or kernel.to_pod(packets.ip(PEER4, POD4, protocol, back)).passed


@pytest.mark.parametrize(
    ("field", "play"),
    [
        ("tcp_opening", lambda kernel: out(kernel, SYN)),
        ("tcp", handshake),
        ("tcp", lambda kernel: (handshake(kernel), out(kernel), back(kernel))),
        ("tcp_closing", lambda kernel: (handshake(kernel), out(kernel, FIN | ACK))),
        ("tcp_closing", lambda kernel: (handshake(kernel), out(kernel, FIN | ACK), out(kernel))),
        ("tcp_closed", lambda kernel: (handshake(kernel), out(kernel, FIN | ACK), back(kernel, FIN | ACK))),
        ("tcp_closed", lambda kernel: (handshake(kernel), back(kernel, RST))),
        ("udp_unanswered", lambda kernel: exchange(kernel, UDP, udp(5, 6))),
        ("udp", lambda kernel: exchange(kernel, UDP, udp(5, 6), udp(6, 5))),
        ("other_unanswered", lambda kernel: exchange(kernel, 1, echo(8, 7))),
        ("other", lambda kernel: exchange(kernel, 1, echo(8, 7), echo(0, 7))),
        ("other", lambda kernel: exchange(kernel, packets.SCTP, packets.sctp(5, 6), packets.sctp(6, 5))),
        ("other", lambda kernel: exchange(kernel, 47, bytes(8), bytes(8))),
    ],
)
def test_every_protocol_and_state_has_its_timeout(kernel: Kernel, field: str, play: Callable[[Kernel], object]) -> None:
    """The setting of that name, whichever program the last packet met."""
    fill_timeouts(kernel, TIMEOUTS)
    play(kernel)
    assert is_lifetime(kernel, getattr(TIMEOUTS, field))


def test_a_changed_timeout_is_in_force_at_the_next_packet(kernel: Kernel) -> None:
    """Of a live flow too, longer or shorter, and nothing is cut by the change."""
    fill_timeouts(kernel, TIMEOUTS)
    handshake(kernel)
    for seconds in (50, 100_000):
        fill_timeouts(kernel, FlowTimeouts(tcp=seconds))
        for send in (out, back, out):
            assert send(kernel).passed and is_lifetime(kernel, seconds)


def test_a_flow_lives_no_longer_than_its_timeout(kernel: Kernel) -> None:
    """A second without a packet, where a second is what was set: the reply that comes later finds nothing."""
    fill_timeouts(kernel, FlowTimeouts(udp_unanswered=1))
    exchange(kernel, UDP, udp(5, 6))
    deadline = time.monotonic() + 10
    while read_lifetime(kernel) >= 0:
        assert time.monotonic() < deadline
    assert not kernel.to_pod(packets.ip(PEER4, POD4, UDP, udp(6, 5))).passed


def test_fragments_have_a_timeout_too(kernel: Kernel) -> None:
    """Later fragments are taken while it lasts, and no longer."""
    fill_timeouts(kernel, FlowTimeouts(fragment=1))
    first = ipv4(POD4, PEER4, UDP, udp(5, 6, bytes(16), length=40), more=True, identifier=3)
    later = ethernet(IPV4, ipv4(POD4, PEER4, UDP, bytes(16), fragment=3, identifier=3))
    assert kernel.from_pod(ethernet(IPV4, first)).passed
    assert kernel.from_pod(later).passed
    deadline = time.monotonic() + 10
    while kernel.from_pod(later).passed:
        assert time.monotonic() < deadline


# ---------------------------------------------------------------------------------------------------------------------
# Mid-stream


@pytest.mark.parametrize("first", ["out", "back"])
def test_connections_that_were_there_before_are_adopted(outward: Kernel, first: str) -> None:
    """A TCP packet without SYN and without flow passes where policy would have admitted the connection, either way."""
    assert (out if first == "out" else back)(outward, ACK).passed
    assert back(outward, ACK).passed and out(outward, ACK).passed
    assert len(outward.maps["flows"].keys()) == 1


def test_what_policy_would_not_have_admitted_is_not_adopted(outward: Kernel) -> None:
    """Neither orientation is admitted: dropped."""
    frame = packets.ip(POD4, "192.0.2.99", TCP, tcp(1000, 443, ACK))
    assert not outward.from_pod(frame).passed


def test_a_syn_ack_answers_or_is_nothing(inward: Kernel, outward: Kernel) -> None:
    """A SYN-ACK without flow is a reply to what its receiver opened: only that orientation is asked."""
    outward.fill(tables_with(Direction.INGRESS))
    assert out(outward, SYN | ACK, sport=80, dport=5000).passed
    outward.forget_flows()
    assert not back(outward, SYN | ACK, sport=80, dport=5000).passed


def test_udp_is_not_adopted(outward: Kernel) -> None:
    """Only TCP says that it is under way."""
    assert not outward.to_pod(packets.ip(PEER4, POD4, UDP, udp(6, 5))).passed


# ---------------------------------------------------------------------------------------------------------------------
# Judged again


def test_a_policy_change_cuts_live_flows(outward: Kernel) -> None:
    """After the epoch each packet, in either direction, is judged by today's rules."""
    handshake(outward)
    outward.fill(make_tables(egress={"isolated": True}))
    assert not back(outward).passed
    assert not out(outward).passed


def test_a_flow_that_was_cut_is_not_taken_for_one_that_the_peer_opened(kernel: Kernel) -> None:
    """Where anybody may connect to the pod, packets of its own denied connection stay denied; a SYN of the peer's is
    another flow; and a policy that admits the connection again lets it go on."""
    open_inside = {"default": Default.ALLOW}
    allowed = make_tables(egress={"isolated": True}, ingress=open_inside)
    add_cidr(allowed, f"{PEER4}/32", 5, EGRESS, ALLOW)
    kernel.fill(allowed)
    handshake(kernel)
    kernel.fill(make_tables(egress={"isolated": True}, ingress=open_inside))
    for _ in range(3):
        assert not out(kernel).passed and not back(kernel).passed
    kernel.fill(allowed)
    assert out(kernel).passed and back(kernel).passed
    kernel.fill(make_tables(egress={"isolated": True}, ingress=open_inside))
    assert not out(kernel).passed
    assert back(kernel, SYN).passed and out(kernel, SYN | ACK).passed


def test_a_change_that_still_admits_cuts_nothing(outward: Kernel) -> None:
    """Re-judged and admitted: the flow goes on without an event, and is valid for the new epoch."""
    handshake(outward)
    outward.bump()
    result = back(outward)
    assert result.passed and result.event is None
    assert only_flow(outward)[EPOCH] == outward.maps["epoch"].get(bytes(4))


def test_a_relabelled_peer_is_judged_as_what_it_is_now(kernel: Kernel) -> None:
    """Identity is looked up anew: a flow lives by who the peer is, not who it was."""
    tables = make_tables(egress={"isolated": True})
    tables.ipcache[PEER4] = 300
    tables.classes.update({300: 1, 301: 2})
    tables.peers[(EGRESS, 1)] = ALLOW
    kernel.fill(tables)
    handshake(kernel)
    tables.ipcache[PEER4] = 301
    kernel.fill(tables)
    assert not out(kernel).passed


def test_a_name_that_expired_does_not_cut_its_flow(kernel: Kernel) -> None:
    """The domain row that admitted a flow counts while it lives; new connections do not."""
    tables = make_tables(egress={"isolated": True})
    add_pattern(tables, "a.test", 7, ALLOW)
    kernel.fill(tables)
    kernel.add_name(PEER4, 7, boot_seconds() + 60)
    handshake(kernel)
    kernel.maps["resolutions"].delete_many(kernel.maps["resolutions"].keys())
    kernel.add_name(PEER4, 7, boot_seconds() - 1)
    kernel.bump()
    assert out(kernel).passed and back(kernel).passed
    assert not out(kernel, SYN, sport=1001).passed


def test_a_pattern_that_is_withdrawn_cuts_its_flows(kernel: Kernel) -> None:
    """The stored row admits only what the rules still give it."""
    tables = make_tables(egress={"isolated": True})
    add_pattern(tables, "a.test", 7, ALLOW)
    kernel.fill(tables)
    kernel.add_name(PEER4, 7, boot_seconds() + 60)
    handshake(kernel)
    tables.peers.clear()
    kernel.fill(tables)
    assert not out(kernel).passed


def test_own_node_is_remembered(kernel: Kernel) -> None:
    """A flow that this node generated goes on after a change, though its replies do not show where it came from."""
    kernel.fill(make_tables(ingress={"isolated": True}, egress={"isolated": True}))
    assert back(kernel, SYN, sport=5000, dport=80, ingress=0).passed
    kernel.bump()
    assert out(kernel, SYN | ACK, sport=80, dport=5000).passed


def test_hairpin_flows_go_on(kernel: Kernel) -> None:
    """A pod that reached itself through its Service keeps the connection over a change."""
    kernel.fill(make_tables(ingress={"isolated": True}, egress={"isolated": True}))
    assert back(kernel, SYN, sport=5000, dport=80, ingress=IFINDEX).passed
    kernel.bump()
    assert out(kernel, SYN | ACK, sport=80, dport=5000).passed


def test_the_reverse_orientation_is_judged_by_its_own_direction(inward: Kernel) -> None:
    """An inbound flow is judged again as inbound, whichever packet comes first after the change."""
    assert back(inward, SYN, sport=5000, dport=80).passed
    inward.bump()
    assert out(inward, SYN | ACK, sport=80, dport=5000).passed
    tables = tables_with(Direction.INGRESS)
    tables.peers.clear()
    inward.fill(tables)
    assert not out(inward, ACK, sport=80, dport=5000).passed


# ---------------------------------------------------------------------------------------------------------------------
# ICMP errors


def unreachable(inner: bytes, *, source: str = "203.0.113.1", kind: int = 3) -> bytes:
    return packets.ip(source, POD4, 1, icmp(kind, 4, bytes(4), inner))


@pytest.mark.parametrize("kind", [3, 11, 12])
def test_an_error_about_a_live_flow_passes(outward: Kernel, kind: int) -> None:
    """Path MTU discovery works through a deny-all policy: any router may report on a live flow."""
    handshake(outward)
    assert outward.to_pod(unreachable(ipv4(POD4, PEER4, TCP, tcp(1000, 443, ACK)), kind=kind)).passed
    assert outward.count_reason(Direction.INGRESS, Reason.RELATED) == 1


@pytest.mark.parametrize(
    "inner",
    [
        pytest.param(ipv4(POD4, PEER4, TCP, tcp(1001, 443)), id="another port"),
        pytest.param(ipv4(POD4, "192.0.2.99", TCP, tcp(1000, 443)), id="another peer"),
        pytest.param(ipv4("10.0.0.6", PEER4, TCP, tcp(1000, 443)), id="another pod's packet"),
        pytest.param(ipv4(PEER4, POD4, TCP, tcp(443, 1000)), id="a packet the other way"),
        pytest.param(ipv4(POD4, PEER4, TCP, tcp(1000, 443))[:24], id="cut short"),
        pytest.param(b"", id="nothing quoted"),
    ],
)
def test_an_error_about_nothing_is_dropped(outward: Kernel, inner: bytes) -> None:
    """Only a quote of a live flow, in the pod's own name, is related."""
    handshake(outward)
    result = outward.to_pod(unreachable(inner))
    assert not result.passed and result.reason is Reason.ICMP_UNRELATED


def test_errors_from_the_pod_go_to_the_flows_peer(inward: Kernel) -> None:
    """A pod may report on a live flow to that flow's peer, and to nobody else."""
    assert inward.to_pod(packets.ip(PEER4, POD4, UDP, udp(9, 10))).passed
    quote = ipv4(PEER4, POD4, UDP, udp(9, 10))
    assert inward.from_pod(packets.ip(POD4, PEER4, 1, icmp(3, 3, bytes(4), quote))).passed
    other = inward.from_pod(packets.ip(POD4, "192.0.2.99", 1, icmp(3, 3, bytes(4), quote)))
    assert not other.passed and other.reason is Reason.ICMP_UNRELATED


def test_errors_from_the_pod_are_rationed(inward: Kernel) -> None:
    """Quoting a live flow is no channel: about a hundred a second."""
    assert inward.to_pod(packets.ip(PEER4, POD4, UDP, udp(9, 10))).passed
    frame = packets.ip(POD4, PEER4, 1, icmp(3, 3, bytes(4), ipv4(PEER4, POD4, UDP, udp(9, 10))))
    passed = sum(inward.from_pod(frame).passed for _ in range(400))
    assert 100 <= passed <= 200


def test_errors_of_ipv6(kernel: Kernel) -> None:
    """Packet too big about a live IPv6 flow passes; about nothing it is dropped."""
    kernel.fill(tables_with(Direction.EGRESS, peer=PEER6))
    assert kernel.from_pod(packets.ip(POD6, PEER6, TCP, tcp(1000, 443))).passed
    quote = ipv6(POD6, PEER6, TCP, tcp(1000, 443))
    assert kernel.to_pod(packets.ip("2001:db8:9::1", POD6, 58, icmp(2, 0, bytes(4), quote))).passed
    wrong = ipv6(POD6, PEER6, TCP, tcp(1001, 443))
    assert not kernel.to_pod(packets.ip("2001:db8:9::1", POD6, 58, icmp(2, 0, bytes(4), wrong))).passed


def test_an_error_about_an_echo(outward: Kernel) -> None:
    """An echo request is a flow that errors may quote."""
    assert outward.from_pod(packets.ip(POD4, PEER4, 1, echo(8, 7))).passed
    assert outward.to_pod(unreachable(ipv4(POD4, PEER4, 1, echo(8, 7)))).passed
    assert not outward.to_pod(unreachable(ipv4(POD4, PEER4, 1, echo(8, 8)))).passed


def test_a_related_error_does_not_outlive_the_permission(outward: Kernel) -> None:
    """An error that quotes a flow which policy no longer admits is denied, however often it comes."""
    handshake(outward)
    outward.fill(make_tables(egress={"isolated": True}))
    for _ in range(2):
        assert not outward.to_pod(unreachable(ipv4(POD4, PEER4, TCP, tcp(1000, 443, ACK)))).passed


# ---------------------------------------------------------------------------------------------------------------------
# Budgets


def test_a_noisy_pod_is_told_in_part_and_counted_in_full(outward: Kernel) -> None:
    """Verdict events have a budget an endpoint; what it holds back is counted and told with the next."""
    tables = tables_with(Direction.EGRESS)
    tables.config = replace(tables.config, events_per_second=10)
    outward.fill(tables)
    denied = packets.ip(POD4, "192.0.2.99", TCP, tcp(1, 2))
    told = [outward.from_pod(denied).event for _ in range(100)]
    assert 10 <= sum(event is not None for event in told) <= 30
    assert outward.count_reason(Direction.EGRESS, Reason.ISOLATED) == 100


def test_without_allow_events_only_denials_are_told(outward: Kernel) -> None:
    """Allowed new flows are told only where the setting says so."""
    tables = tables_with(Direction.EGRESS)
    tables.config = replace(tables.config, allow_events=False)
    outward.fill(tables)
    assert out(outward, SYN).event is None
    assert back(outward, SYN, sport=1).event is not None


def test_families_do_not_meet(kernel: Kernel) -> None:
    """A flow of one family says nothing of the other, on the same ports."""
    kernel.fill(tables_with(Direction.EGRESS))
    assert kernel.from_pod(ethernet(IPV4, ipv4(POD4, PEER4, TCP, tcp(1000, 443)))).passed
    assert not kernel.to_pod(ethernet(IPV6, ipv6(PEER6, POD6, TCP, tcp(443, 1000, SYN | ACK)))).passed
