"""Answers over TCP, in fragments, and too long for the kernel: what it learns of them, and what it hands over."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.terms import Direction, Reason
from services.common.bpf import BpfMap
from services.dnsrecorder.event import Piece, ResolutionEvent, decode_event
from services.dnsrecorder.handover import Handed, Handovers
from services.nodeagent import mapcodec
from services.nodeagent.loader import TAIL_PROGRAMS
from services.nodeagent.tables import Tables
from tests.bpf import packets
from tests.bpf.messages import A, address, alias, answer, query, wire_name
from tests.bpf.packets import ACK, FIN, PSH, SYN
from tests.bpf.prog_run import IFINDEX, Kernel, boot_seconds
from tests.bpf.worlds import (
    EGRESS,
    NETWORK_POLICY,
    NODE_LOCAL,
    OUTSIDE,
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
NAME, OTHER = "www.example.com", "a.wild.example"
ROW, WILD_ROW = 7, 8
WEB, WEB2 = "198.51.100.7", "198.51.100.8"
PORT = 40000
RULE = 1 << NETWORK_POLICY
MANY = tuple(f"198.18.{n // 250}.{n % 250 + 1}" for n in range(1000))


def tables(flags: int = TRUSTED) -> Tables:
    made = with_dns(make_tables(egress={"isolated": True}, ingress={"isolated": True}), flags)
    add_pattern(made, NAME, ROW, RULE)
    add_pattern(made, "*.wild.example", WILD_ROW, RULE)
    return made


@pytest.fixture
def dns(kernel: Kernel) -> Kernel:
    kernel.fill(tables())
    return kernel


def prefixed(message: bytes) -> bytes:
    """As TCP carries it: RFC 1035 4.2.2."""
    return struct.pack("!H", len(message)) + message


class Connection:
    """A TCP connection of the pod to a resolver, packet by packet. ``sent``: the resolver's next sequence number."""

    def __init__(
        self,
        kernel: Kernel,
        *,
        initial: int = 1000,
        port: int = PORT,
        ingress: int = 77,
        server: tuple[str, int] = (RESOLVER, 53),
    ) -> None:
        self.kernel, self.port, self.ingress, self.server = kernel, port, ingress, server
        self.sent = (initial + 1) % (1 << 32)
        assert self.from_pod(SYN)
        assert self.to_pod(SYN | ACK, sequence=initial)
        assert self.from_pod(ACK)

    def from_pod(self, flags: int, payload: bytes = b"") -> bool:
        address, port = self.server
        body = packets.tcp(self.port, port, flags, payload=payload)
        return self.kernel.from_pod(packets.ip(POD4, address, packets.TCP, body)).passed

    def to_pod(self, flags: int, payload: bytes = b"", *, sequence: int) -> bool:
        address, port = self.server
        body = packets.tcp(port, self.port, flags, payload=payload, sequence=sequence)
        return self.kernel.to_pod(packets.ip(address, POD4, packets.TCP, body), ingress=self.ingress).passed

    def ask(self, name: str = NAME) -> None:
        assert self.from_pod(PSH | ACK, prefixed(query(name, A)))

    def tell(self, payload: bytes) -> None:
        """The resolver's next segment: it passes, whatever is in it."""
        assert self.to_pod(PSH | ACK, payload, sequence=self.sent)
        self.sent = (self.sent + len(payload)) % (1 << 32)


def take_pieces(kernel: Kernel) -> list[ResolutionEvent]:
    return [decode_event(record) for record in kernel.handovers.consume(1 << 20)]


def assemble_pieces(pieces: list[ResolutionEvent]) -> list[Handed]:
    """What the recorder makes of them."""
    handovers = Handovers()
    return [handed for piece in pieces for handed in handovers.take(piece, 1.0)]


def assemble(kernel: Kernel) -> list[Handed]:
    """What the recorder makes of the pieces that wait."""
    return assemble_pieces(take_pieces(kernel))


def count(kernel: Kernel, reason: Reason) -> int:
    return kernel.count_reason(Direction.INGRESS, reason)


# ---------------------------------------------------------------------------------------------------------------------
# TCP, in the kernel


def test_an_answer_in_one_segment_is_learned(dns: Kernel) -> None:
    """A message that is whole in its segment is learned before the segment is released; nothing is handed over."""
    connection = Connection(dns)
    connection.ask()
    connection.tell(prefixed(answer(NAME, WEB)))
    assert set(dns.names_of(WEB)) == {ROW}
    assert take_pieces(dns) == []


@pytest.mark.parametrize("initial", [(1 << 32) - 1, (1 << 32) - 2, (1 << 32) - 30, (1 << 31) - 1])
def test_sequence_numbers_wrap(dns: Kernel, initial: int) -> None:
    """Wherever the resolver's numbers begin, the second answer is found as the first was."""
    connection = Connection(dns, initial=initial)
    connection.tell(prefixed(answer(NAME, WEB)))
    connection.tell(prefixed(answer(OTHER, WEB2)))
    assert set(dns.names_of(WEB)) == {ROW} and set(dns.names_of(WEB2)) == {WILD_ROW}


def test_pipelined_answers_in_one_segment_are_all_learned(dns: Kernel) -> None:
    """Six answers in one segment, in whatever order they were asked."""
    connection = Connection(dns)
    names = [f"n{n}.wild.example" for n in range(6)]
    connection.tell(b"".join(prefixed(answer(name, f"198.51.100.{n}")) for n, name in enumerate(names, 1)))
    assert all(set(dns.names_of(f"198.51.100.{n}")) == {WILD_ROW} for n in range(1, 7))
    connection.tell(prefixed(answer(NAME, WEB2)))
    assert ROW in dns.names_of(WEB2)


def test_what_does_not_teach_keeps_the_place(dns: Kernel) -> None:
    """An error, a malformed message and one of another type: the answer behind them is still found."""
    connection = Connection(dns)
    others = (answer(NAME, rcode=3), answer(NAME, kind=16), b"", b"junk", answer(NAME, WEB2)[:-1], query(NAME))
    connection.tell(b"".join(prefixed(one) for one in others[:3]))
    connection.tell(b"".join(prefixed(one) for one in others[3:]))
    connection.tell(prefixed(answer(NAME, WEB)))
    assert set(dns.names_of(WEB)) == {ROW} and dns.names_of(WEB2) == {}


def test_a_segment_that_merely_looks_like_a_message_is_none(dns: Kernel) -> None:
    """In the midst of a message there stands what would be another: its bytes are data."""
    connection = Connection(dns)
    inner = prefixed(answer(NAME, WEB))
    outer = answer(OTHER, WEB2) + inner
    connection.tell(prefixed(outer)[: -len(inner)])
    connection.tell(inner)
    assert dns.names_of(WEB) == {}


@pytest.mark.parametrize("offset", [1, 2, -1, 1000, 1 << 31])
def test_a_segment_elsewhere_in_the_stream_teaches_nothing(dns: Kernel, offset: int) -> None:
    """A message out of place was not sent by the resolver, or not yet."""
    connection = Connection(dns)
    connection.sent = (connection.sent + offset) % (1 << 32)
    connection.tell(prefixed(answer(NAME, WEB)))
    assert dns.names_of(WEB) == {}


def test_without_the_resolvers_syn_nothing_is_learned(dns: Kernel) -> None:
    """A connection adopted in its midst: where a message begins is not known."""
    body = packets.tcp(PORT, 53, ACK)
    assert dns.from_pod(packets.ip(POD4, RESOLVER, packets.TCP, body)).passed
    body = packets.tcp(53, PORT, PSH | ACK, payload=prefixed(answer(NAME, WEB)), sequence=5000)
    assert dns.to_pod(packets.ip(RESOLVER, POD4, packets.TCP, body)).passed
    assert dns.names_of(WEB) == {} and take_pieces(dns) == []


def test_a_second_syn_moves_nothing(dns: Kernel) -> None:
    """A resolver's SYN that comes later, with other numbers, is not where the stream began."""
    connection = Connection(dns)
    connection.to_pod(SYN | ACK, sequence=9000)
    connection.to_pod(PSH | ACK, prefixed(answer(NAME, WEB)), sequence=9001)
    assert dns.names_of(WEB) == {}


def test_a_connection_that_the_resolver_opens_teaches_nothing(dns: Kernel) -> None:
    """Whoever may connect to the pod from a resolver's address and port does not answer a question."""
    opened = tables()
    opened.rulesets[2] = replace(opened.rulesets[2], any=RULE)
    dns.fill(opened)

    def from_resolver(flags: int, payload: bytes = b"", sequence: int = 1000) -> None:
        body = packets.tcp(53, PORT, flags, payload=payload, sequence=sequence)
        assert dns.to_pod(packets.ip(RESOLVER, POD4, packets.TCP, body)).passed

    from_resolver(SYN)
    assert dns.from_pod(packets.ip(POD4, RESOLVER, packets.TCP, packets.tcp(PORT, 53, SYN | ACK))).passed
    from_resolver(SYN | ACK)
    from_resolver(PSH | ACK, prefixed(answer(NAME, WEB)), 1001)
    assert dns.names_of(WEB) == {}


def test_a_stream_of_the_nodes_resolver_comes_from_this_node(dns: Kernel) -> None:
    """A segment in its name that came in over an interface teaches nothing."""
    dns.fill(tables(TRUSTED | NODE_LOCAL))
    Connection(dns, ingress=77).tell(prefixed(answer(NAME, WEB)))
    assert dns.names_of(WEB) == {} and count(dns, Reason.LEARN_UNTRUSTED) > 0
    Connection(dns, ingress=0, port=PORT + 1).tell(prefixed(answer(NAME, WEB)))
    assert set(dns.names_of(WEB)) == {ROW}


@pytest.mark.parametrize("server", [("203.0.113.53", 53), (RESOLVER, 5353), ("10.96.0.11", 53)])
def test_a_stream_from_a_server_that_is_not_trusted_teaches_nothing(dns: Kernel, server: tuple[str, int]) -> None:
    """A server that a rule lets the pod reach, at a port where others are trusted, at an address that is at another."""
    more = tables()
    more.resolvers[("10.96.0.11", 5353)] = TRUSTED
    add_cidr(more, f"{server[0]}/32", 78, EGRESS, RULE)
    dns.fill(more)
    connection = Connection(dns, server=server)
    connection.ask()
    whole = prefixed(answer(NAME, WEB))
    for payload in (whole, whole[:10], whole[10:], whole + whole[:1]):
        connection.tell(payload)
    connection.to_pod(PSH | ACK, whole, sequence=connection.sent + 100)
    assert list(dns.maps["resolutions"].items()) == []
    assert take_pieces(dns) == dns.drain() == []


def test_a_stream_from_a_resolver_at_a_port_of_its_own_is_read(dns: Kernel) -> None:
    """What answers behind a Service listens where it likes: learned in one segment, handed over in two."""
    more = tables()
    more.resolvers[("10.96.0.11", 5353)] = TRUSTED
    add_cidr(more, "10.96.0.11/32", 78, EGRESS, RULE)
    dns.fill(more)
    connection = Connection(dns, server=("10.96.0.11", 5353))
    connection.ask()
    connection.tell(prefixed(answer(NAME, WEB)))
    assert set(dns.names_of(WEB)) == {ROW}
    whole = prefixed(answer(OTHER, WEB2))
    connection.tell(whole[:10])
    connection.tell(whole[10:])
    (handed,) = assemble(dns)
    assert (handed.message, handed.last.resolver, handed.last.resolver_port) == (whole[2:], "10.96.0.11", 5353)


def test_a_stream_to_another_pod_teaches_nothing(dns: Kernel) -> None:
    """What the resolver tells a pod that is not behind this interface does not come in by it."""
    Connection(dns)
    body = packets.tcp(53, PORT, PSH | ACK, payload=prefixed(answer(NAME, WEB)), sequence=1001)
    assert not dns.to_pod(packets.ip(RESOLVER, "10.0.0.6", packets.TCP, body)).passed
    assert dns.names_of(WEB) == {} and take_pieces(dns) == []


def test_a_stream_through_the_pods_own_service_teaches_nothing(dns: Kernel) -> None:
    """What comes out of the pod's own interface was written by whoever stands behind its Service."""
    connection = Connection(dns)
    connection.ingress = IFINDEX
    connection.tell(prefixed(answer(NAME, WEB)))
    assert dns.names_of(WEB) == {} and take_pieces(dns) == []


def test_a_stream_from_outside_teaches_the_asker_alone(dns: Kernel) -> None:
    """A resolver outside the cluster is believed over TCP as over UDP: in the endpoint's own scope."""
    dns.fill(tables(TRUSTED | OUTSIDE))
    connection = Connection(dns)
    connection.tell(prefixed(answer(NAME, WEB)))
    assert dns.names_of(WEB) == {} and set(dns.names_of(WEB, POD_ID)) == {ROW}
    (event,) = dns.drain()
    assert decode_event(event).is_from_outside


def test_a_stream_goes_on_after_a_change_of_policy(dns: Kernel) -> None:
    """A flow that is judged again keeps its place in the stream."""
    connection = Connection(dns)
    dns.bump()
    connection.tell(prefixed(answer(NAME, WEB)))
    assert set(dns.names_of(WEB)) == {ROW}


def test_a_stream_begun_before_its_port_was_a_resolvers_is_read_from_then_on(kernel: Kernel) -> None:
    """A resolver found while a connection to it opens: once judged again, no packet of it is a plain one."""
    made = make_tables(egress={"isolated": True}, ingress={"isolated": True})
    add_cidr(made, f"{RESOLVER}/32", 77, EGRESS, 1 << 191)
    kernel.fill(made)
    syn = packets.ip(POD4, RESOLVER, packets.TCP, packets.tcp(PORT, 53, SYN))
    assert kernel.from_pod(syn).passed
    kernel.fill(tables())
    syn_ack = packets.ip(RESOLVER, POD4, packets.TCP, packets.tcp(53, PORT, SYN | ACK, sequence=1000))
    assert kernel.to_pod(syn_ack).passed
    body = packets.tcp(53, PORT, PSH | ACK, payload=prefixed(answer(NAME, WEB)), sequence=1001)
    assert kernel.to_pod(packets.ip(RESOLVER, POD4, packets.TCP, body)).passed
    assert set(kernel.names_of(WEB)) == {ROW}


def test_truncated_over_udp_then_whole_over_tcp(dns: Kernel) -> None:
    """The TC bit with no records teaches nothing; the same question over TCP is learned."""
    udp = packets.udp(PORT, 53, query(NAME))
    assert dns.from_pod(packets.ip(POD4, RESOLVER, packets.UDP, udp)).passed
    cut = answer(NAME)
    cut = cut[:2] + bytes([cut[2] | 2]) + cut[3:]
    assert dns.to_pod(packets.ip(RESOLVER, POD4, packets.UDP, packets.udp(53, PORT, cut))).passed
    assert dns.names_of(WEB) == {}
    connection = Connection(dns)
    connection.ask()
    connection.tell(prefixed(answer(NAME, WEB)))
    assert set(dns.names_of(WEB)) == {ROW}


# ---------------------------------------------------------------------------------------------------------------------
# TCP, handed over


def segments_of(stream: bytes, *first: int, size: int = 2896) -> list[bytes]:
    """Cut at these places, then every ``size`` bytes: BPF_PROG_TEST_RUN takes frames of a page at most."""
    cuts = sorted({0, *first, *range((first or (0,))[-1] + size, len(stream), size), len(stream)})
    return [stream[begin:end] for begin, end in itertools.pairwise(cuts)]


@pytest.mark.parametrize("first", [(), (1,), (2,), (3,), (2, 14), (1400,), (1448, 2896)])
def test_a_message_over_several_segments_is_handed_over_whole(dns: Kernel, first: tuple[int, ...]) -> None:
    """1,000 addresses, wherever the segments are cut: the recorder has the message, and each segment passed at once."""
    message = answer(NAME, *MANY)
    connection = Connection(dns)
    for segment in segments_of(prefixed(message), *first):
        connection.tell(segment)
    (handed,) = assemble(dns)
    assert handed.message == message
    assert (handed.last.endpoint, handed.last.resolver, handed.last.own_port) == (POD_ID, RESOLVER, PORT)
    assert handed.begun_nanos <= handed.done_nanos
    assert count(dns, Reason.LEARN_HANDED_OVER) > 0


def test_the_first_piece_says_where_the_message_begins(dns: Kernel) -> None:
    """The pieces in order are the stream, each with the place of its first byte."""
    connection = Connection(dns, initial=(1 << 32) - 100)
    stream = prefixed(answer(NAME, *MANY[:300]))
    for segment in segments_of(stream):
        connection.tell(segment)
    pieces = take_pieces(dns)
    assert [piece.piece for piece in pieces] == [Piece.BEGIN, Piece.STREAM]
    assert (pieces[0].whole, pieces[0].place, pieces[1].place) == ((1 << 32) - 99,) * 2 + (2896 - 99,)
    assert b"".join(piece.message for piece in pieces) == stream


def test_after_a_message_in_pieces_the_kernel_learns_again(dns: Kernel) -> None:
    """Where the pieces end with their message, the next one is learned as if nothing had been."""
    stream = prefixed(answer(OTHER, *MANY[:200]))
    connection = Connection(dns)
    connection.tell(stream[:1000])
    connection.tell(stream[1000:])
    connection.tell(prefixed(answer(NAME, WEB)))
    assert set(dns.names_of(WEB)) == {ROW}
    assert len(assemble(dns)) == 1


def test_messages_that_run_into_one_another_are_all_handed_over(dns: Kernel) -> None:
    """Segments cut without regard for messages: none is lost, learned here or there, none twice under a wrong name."""
    names = [f"n{n}.wild.example" for n in range(30)]
    stream = b"".join(prefixed(answer(name, f"198.18.9.{n}")) for n, name in enumerate(names, 1))
    connection = Connection(dns)
    for at in range(0, len(stream), 100):
        connection.tell(stream[at : at + 100])
    handed = {one.message for one in assemble(dns)}
    for n, name in enumerate(names, 1):
        assert answer(name, f"198.18.9.{n}") in handed or set(dns.names_of(f"198.18.9.{n}")) == {WILD_ROW}


def test_segments_out_of_order_are_handed_over(dns: Kernel) -> None:
    """A segment that overtakes another: the recorder has both, whatever their order."""
    connection = Connection(dns)
    first, second = prefixed(answer(OTHER, WEB2)), prefixed(answer(NAME, WEB))
    begin = connection.sent
    connection.to_pod(PSH | ACK, second, sequence=begin + len(first))
    connection.to_pod(PSH | ACK, first, sequence=begin)
    assert [one.message for one in assemble(dns)] == [first[2:], second[2:]]


def test_a_segment_sent_again_changes_nothing(dns: Kernel) -> None:
    """Retransmissions of what was learned, or of a piece, teach nothing twice and lose no place."""
    connection = Connection(dns)
    whole = prefixed(answer(NAME, WEB))
    begin = connection.sent
    connection.tell(whole)
    connection.to_pod(PSH | ACK, whole, sequence=begin)
    long = prefixed(answer(OTHER, *MANY[:200]))
    begin = connection.sent
    connection.tell(long[:1000])
    connection.to_pod(PSH | ACK, long[:1000], sequence=begin)
    connection.tell(long[1000:])
    assert [one.message for one in assemble(dns)] == [long[2:]]
    connection.tell(prefixed(answer(OTHER, WEB2)))
    assert set(dns.names_of(WEB2)) == {WILD_ROW}


def test_more_messages_than_one_packet_may_teach_are_handed_over(dns: Kernel) -> None:
    """Of twenty answers in one segment eight are learned here, the others by the recorder; so is what follows."""
    names = [f"n{n}.wild.example" for n in range(20)]
    connection = Connection(dns)
    connection.tell(b"".join(prefixed(answer(name, f"198.18.9.{n}")) for n, name in enumerate(names, 1)))
    connection.tell(prefixed(answer(NAME, WEB)))
    learned = [n for n in range(1, 21) if set(dns.names_of(f"198.18.9.{n}")) == {WILD_ROW}]
    handed = [one.message for one in assemble(dns)]
    assert learned == list(range(1, 9))
    assert handed == [answer(names[n - 1], f"198.18.9.{n}") for n in range(9, 21)] + [answer(NAME, WEB)]


def take_given_up(kernel: Kernel) -> list[ResolutionEvent]:
    """Whole messages that the kernel began to learn, and left to the recorder."""
    events = [decode_event(record) for record in kernel.resolutions.consume(1 << 20)]
    return [event for event in events if event.reason == Reason.LEARN_HANDED_OVER]


FRAME_BYTES = 3600
"""Of payload that BPF_PROG_TEST_RUN takes, some less than a page."""


def fill_pages(kernel: Kernel, addresses: Iterable[str], pages: int) -> None:
    """So many pages of each address are other names' for the next hour: a new name is written behind them."""
    taken = mapcodec.NamesPage(tuple((100 + n, boot_seconds() + 5000) for n in range(8)), (POD_ID,) * 8, more=True)
    keys = [mapcodec.encode_resolution_key(one, n, mapcodec.SCOPE_LEARNED) for one in addresses for n in range(pages)]
    kernel.maps["resolutions"].put_many(dict.fromkeys(keys, mapcodec.encode_names(taken)))


def audited_tables() -> Tables:
    """Policies on audit are judged by as well."""
    made = tables()
    made.rulesets[10] = replace(made.rulesets[EGRESS], hash="10" * 16, any=RULE, counters=1024)
    made.ports[(10, 0)] = made.ports[(EGRESS, 0)]
    made.endpoints[1] = replace(made.endpoints[1], egress_shadow=10)
    return made


def check_packet(kernel: Kernel, told: dict[bytes, list[str]], *, is_judged: bool) -> None:
    """Message -> its addresses, in one segment and one behind it: each is learned whole, or the recorder has it once.

    ``is_judged``: the segment is judged first, by the policies in force and by those on audit, which takes tail calls.
    """
    connection = Connection(kernel)
    kernel.drain()
    if is_judged:
        kernel.fill(audited_tables())
    connection.tell(b"".join(prefixed(message) for message in told))
    connection.tell(prefixed(answer(NAME, WEB)))
    pieces, given_up = take_pieces(kernel), take_given_up(kernel)
    assert not any(event.suppressed for event in (*pieces, *given_up))
    handed = [event.message for event in given_up] + [one.message for one in assemble_pieces(pieces)]
    left = [message for message, many in told.items() if not all(WILD_ROW in kernel.names_of(one) for one in many)]
    if ROW not in kernel.names_of(WEB):
        left.append(answer(NAME, WEB))
    assert sorted(handed) == sorted(left)


@pytest.mark.parametrize("is_judged", [False, True])
@pytest.mark.parametrize("pages", [0, 2])
@pytest.mark.parametrize("is_aliased", [False, True])
@pytest.mark.parametrize("size", [1, 16, 17, 33, 50, 65])
def test_whatever_one_packet_holds_is_learned_or_handed_over(
    dns: Kernel, size: int, is_aliased: bool, pages: int, is_judged: bool
) -> None:
    """However many answers of however many addresses: when tail calls end, the recorder has what is not learned."""
    first = [alias("other.test")] if is_aliased else []
    told: dict[bytes, list[str]] = {}
    for n in range(1, 20):
        many = [f"198.18.{n}.{each}" for each in range(1, size + 1)]
        message = answer(f"n{n}.wild.example", *first, *many)
        if sum(map(len, told)) + 2 * len(told) + len(message) + 2 > FRAME_BYTES:
            break
        told[message] = many
        dns.forget()
        dns.fill(tables())
        fill_pages(dns, itertools.chain.from_iterable(told.values()), pages)
        check_packet(dns, told, is_judged=is_judged)


def test_a_noisy_pod_hands_over_no_more_than_its_share(dns: Kernel) -> None:
    """Beyond 512 pieces in a second the rest is counted as suppressed; every segment still passes."""
    connection = Connection(dns)
    segments = segments_of(prefixed(answer(NAME, *MANY)), size=500)
    pieces = []
    while not any(one.suppressed for one in pieces):
        for segment in segments:
            connection.tell(segment)
        pieces += take_pieces(dns)
    assert len(pieces) <= 512 * (2 + (pieces[-1].boottime_nanos - pieces[0].boottime_nanos) // 1_000_000_000)


def test_the_end_of_a_connection_is_no_message(dns: Kernel) -> None:
    """A FIN with the last answer: it is learned."""
    connection = Connection(dns)
    connection.to_pod(PSH | ACK | FIN, prefixed(answer(NAME, WEB)), sequence=connection.sent)
    assert set(dns.names_of(WEB)) == {ROW}


# ---------------------------------------------------------------------------------------------------------------------
# Datagrams


def ask_udp(kernel: Kernel, name: str = NAME) -> None:
    body = packets.udp(PORT, 53, query(name))
    assert kernel.from_pod(packets.ip(POD4, RESOLVER, packets.UDP, body)).passed


def fragments_of(message: bytes, *, size: int = 1480, identifier: int = 9, is_sealed: bool = True) -> list[bytes]:
    """``is_sealed``: with a checksum."""
    body = packets.udp(53, PORT, message)
    if is_sealed:
        body = packets.seal_udp(RESOLVER, POD4, body)
    frames = []
    for at in range(0, len(body), size):
        more = at + size < len(body)
        header = packets.ipv4(
            RESOLVER,
            POD4,
            packets.UDP,
            body[at : at + size],
            fragment=at // 8,
            more=more,
            identifier=identifier,
        )
        frames.append(packets.ethernet(packets.IPV4, header))
    return frames


@pytest.mark.parametrize("size", [1480, 256])
def test_an_answer_in_fragments_is_handed_over(dns: Kernel, size: int) -> None:
    """Every fragment passes, and the recorder has the message."""
    message = answer(NAME, *MANY[:200])
    ask_udp(dns)
    assert all(dns.to_pod(frame).passed for frame in fragments_of(message, size=size))
    (handed,) = assemble(dns)
    assert handed.message == message


@pytest.mark.parametrize("name", [OTHER, f"a{OTHER}"], ids=["odd", "even"])
def test_a_forged_fragment_spoils_the_datagram(dns: Kernel, name: str) -> None:
    """Whoever guesses a datagram's id may write its rest: the checksum does not fit, so neither pod nor we take it."""
    true, forged = answer(name, *MANY[:200]), answer(name, *MANY[300:500])
    ask_udp(dns, name)
    first, *_ = fragments_of(true)
    _, *others = fragments_of(forged)
    handovers = Handovers()
    assert all(dns.to_pod(frame).passed for frame in (first, *others))
    assert [one for piece in take_pieces(dns) for one in handovers.take(piece, 1.0)] == []
    assert handovers.counters["handover_corrupt"] == 1
    assert all(dns.to_pod(frame).passed for frame in fragments_of(true, identifier=10))
    (handed,) = assemble(dns)
    assert handed.message == true


def test_a_datagram_without_a_checksum_is_handed_over(dns: Kernel) -> None:
    """Over IPv4 a sender may leave it out, and the pod takes it."""
    message = answer(NAME, *MANY[:200])
    ask_udp(dns)
    assert all(dns.to_pod(frame).passed for frame in fragments_of(message, is_sealed=False))
    (handed,) = assemble(dns)
    assert handed.message == message


@pytest.mark.parametrize("is_sealed", [True, False])
def test_an_answer_in_fragments_with_headers_before_its_own_is_handed_over(dns: Kernel, is_sealed: bool) -> None:
    """Behind the fragment header of IPv6 there may stand others, no part of the message. A checksum there has to be."""
    more = tables()
    resolver = "fd00::53"
    more.resolvers[(resolver, 53)] = TRUSTED
    add_cidr(more, f"{resolver}/128", 78, EGRESS, RULE)
    dns.fill(more)
    assert dns.from_pod(packets.ip(POD6, resolver, packets.UDP, packets.udp(PORT, 53, query(NAME)))).passed
    message = answer(NAME, *MANY[:200])
    datagram = packets.udp(53, PORT, message)
    if is_sealed:
        datagram = packets.seal_udp(resolver, POD6, datagram)
    body = packets.extension(43) + packets.extension(packets.UDP) + datagram
    for at in range(0, len(body), 1232):
        header = packets.fragment6(60, at // 8, more=at + 1232 < len(body))
        assert dns.to_pod(packets.ip(resolver, POD6, 44, header + body[at : at + 1232])).passed
    assert [handed.message for handed in assemble(dns)] == ([message] if is_sealed else [])


def test_fragments_in_another_order_are_denied_but_for_what_follows_the_first(dns: Kernel) -> None:
    """A later fragment without its first does not pass, so it is not handed over either."""
    first, *others = fragments_of(answer(NAME, *MANY[:200]))
    ask_udp(dns)
    assert not dns.to_pod(others[0]).passed
    assert dns.to_pod(first).passed
    assert len(take_pieces(dns)) == 1


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(answer(OTHER, *MANY[:400]), id="not asked"),
        pytest.param(answer(NAME, *MANY[:400], rcode=3), id="an error"),
        pytest.param(answer(NAME, *MANY[:400], kind=16), id="another type"),
    ],
)
def test_what_would_not_be_learned_is_not_handed_over(dns: Kernel, message: bytes) -> None:
    """The conditions on the question hold for long answers too."""
    ask_udp(dns)
    for frame in fragments_of(message, size=1480):
        dns.to_pod(frame)
    assert take_pieces(dns) == []


# ---------------------------------------------------------------------------------------------------------------------
# In one packet, and given up


def tell_udp(kernel: Kernel, message: bytes) -> list[ResolutionEvent]:
    """The answer to what was asked; it passes. What the ring of answers has of it."""
    kernel.drain()
    ask_udp(kernel)
    body = packets.udp(53, PORT, message)
    assert kernel.to_pod(packets.ip(RESOLVER, POD4, packets.UDP, body)).passed
    assert take_pieces(kernel) == []
    return [decode_event(record) for record in kernel.resolutions.consume(16)]


@pytest.mark.parametrize(("labels", "is_learned"), [(15, True), (16, False), (17, False)])
def test_an_owner_of_many_labels_is_the_recorders(dns: Kernel, labels: int, is_learned: bool) -> None:
    """A chain that ends at a name of more labels than the kernel walks: it is whole in its event, which says so."""
    target = ".".join(f"l{n}" for n in range(labels))
    message = answer(NAME, alias(target), address(WEB, owner=wire_name(target)))
    (event,) = tell_udp(dns, message)
    assert (event.message, event.piece, event.learned) == (message, Piece.NONE, int(is_learned))
    assert event.reason == (0 if is_learned else Reason.LEARN_HANDED_OVER)
    assert set(dns.names_of(WEB)) == ({ROW} if is_learned else set())
    assert count(dns, Reason.LEARN_HANDED_OVER) == (not is_learned)


@pytest.mark.parametrize("is_aliased", [False, True])
@pytest.mark.parametrize("pages", [3, 6])
def test_an_answer_that_is_learned_in_part_is_the_recorders(dns: Kernel, pages: int, is_aliased: bool) -> None:
    """Where the addresses have many names already, tail calls end before all are placed: the event has them all."""
    many = MANY[:180]
    fill_pages(dns, many, pages)
    message = answer(NAME, *([alias("other.test")] if is_aliased else []), *many)
    (event,) = tell_udp(dns, message)
    assert (event.message, event.piece, event.reason) == (message, Piece.NONE, Reason.LEARN_HANDED_OVER)
    learned = [one for one in many if ROW in dns.names_of(one)]
    assert 0 < len(learned) == event.learned < len(many)


def count_suppressed(kernel: Kernel) -> int:
    """What the pod's next event will say that it was preceded by: ``answers_suppressed`` of struct quota."""
    quota = kernel.maps["quotas"].get(POD_ID.to_bytes(4, "little"))
    assert quota is not None
    return int.from_bytes(quota[20:24], "little")


def test_a_tail_call_that_fails_is_not_silent() -> None:
    """Each program of the learner gone, one after the other: the recorder has the message, or it is counted."""
    kernel = Kernel(Path("/sys/fs/bpf"))
    try:
        kernel.fill(tables())
        (path,) = kernel.root.rglob("tails-*")
        with BpfMap(path) as tails:
            check_without(kernel, tails)
    finally:
        kernel.close()


def check_without(kernel: Kernel, tails: BpfMap) -> None:
    def remove(program: str) -> None:
        tails.delete(TAIL_PROGRAMS[program].to_bytes(4, "little"))

    connection = Connection(kernel)
    plain, aliased = answer(NAME, WEB), answer(NAME, alias("other.test"), WEB)
    for program, message in (("learn_write", plain), ("learn_alias", aliased)):
        remove(program)
        (event,) = tell_udp(kernel, message)
        assert (event.message, event.reason) == (message, Reason.LEARN_HANDED_OVER)
        connection.tell(prefixed(message) * 2)
        assert [event.message for event in take_given_up(kernel)] == [message] * 2
    remove("learn_pieces")
    connection.tell(prefixed(plain)[:10])
    assert take_pieces(kernel) == [] and count_suppressed(kernel) == 1
    ask_udp(kernel)
    first, *_ = fragments_of(answer(NAME, *MANY[:200]))
    assert kernel.to_pod(first).passed
    assert take_pieces(kernel) == [] and count_suppressed(kernel) == 2
    remove("learn_walk")
    assert tell_udp(kernel, plain) == [] and count_suppressed(kernel) == 3
    remove("learn_stream")
    connection.tell(prefixed(plain))
    assert count_suppressed(kernel) == 4
