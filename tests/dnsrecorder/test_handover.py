"""Messages out of pieces: in any order, within bounds, and never of bytes that were not sent."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from services.dnsrecorder import handover
from services.dnsrecorder.event import Piece, ResolutionEvent
from services.dnsrecorder.handover import Handovers

MESSAGE = bytes(n % 251 for n in range(3000))


def piece(
    kind: Piece, content: bytes, place: int, *, whole: int = 0, endpoint: int = 1, port: int = 4000, datagram: int = 0
) -> ResolutionEvent:
    return ResolutionEvent(
        boottime_nanos=5,
        endpoint=endpoint,
        suppressed=0,
        resolver="10.96.0.10",
        resolver_port=53,
        reason=102,
        learned=0,
        answers=0,
        protocol=6,
        domain=0,
        message=content,
        piece=kind,
        own_port=port,
        place=place % (1 << 32),
        whole=whole % (1 << 32),
        datagram=datagram,
    )


def prefixed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def take(handovers: Handovers, *pieces: ResolutionEvent, now: float = 1.0) -> list[bytes]:
    return [handed.message for one in pieces for handed in handovers.take(one, now)]


@given(
    st.lists(st.binary(max_size=400), min_size=1, max_size=5),
    st.lists(st.integers(1, 300), min_size=1, max_size=8),
    st.integers(0, (1 << 32) - 1),
    st.randoms(use_true_random=False),
)
def test_a_stream_gives_its_messages_however_it_is_cut(messages, sizes, origin, rng) -> None:  # type: ignore[no-untyped-def]  # hypothesis
    """After the first piece the others may come in any order, twice, and across the wrap of sequence numbers."""
    stream = b"".join(prefixed(message) for message in messages)
    cuts, at = [], 0
    while at < len(stream):
        size = sizes[len(cuts) % len(sizes)]
        cuts.append((at, stream[at : at + size]))
        at += size
    first, *others = cuts
    others += rng.sample(others, len(others) // 2)
    rng.shuffle(others)
    handovers = Handovers()
    made = take(handovers, piece(Piece.BEGIN, first[1], origin + first[0], whole=origin))
    made += take(handovers, *(piece(Piece.STREAM, content, origin + at) for at, content in others))
    assert made == messages


@given(st.binary(min_size=20, max_size=200), st.sampled_from(["10.96.0.10", "fd00::53"]), st.data())
def test_a_datagram_with_a_wrong_checksum_is_none(message: bytes, resolver: str, data: st.DataObject) -> None:
    """Whatever bit is another one: what the pod's own stack would discard teaches nothing."""
    whole = len(message)
    rest = struct.pack("!III", 8 + whole, 17, 8 + whole) + message + bytes(whole % 2)
    checksum = 65_535 - int.from_bytes(ip_address(resolver).packed + rest, "big") % 65_535
    cut, at = data.draw(st.integers(1, whole - 1)), data.draw(st.integers(0, whole - 1))
    changed = bytearray(message)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    handovers = Handovers()
    for datagram, content, made in ((1, message, [message]), (2, bytes(changed), [])):
        first = piece(Piece.DATAGRAM, content[:cut], 0, whole=whole, datagram=datagram)
        last = piece(Piece.DATAGRAM, content[cut:], cut, datagram=datagram)
        pieces = (replace(first, resolver=resolver, checksum=checksum), replace(last, resolver=resolver))
        assert take(handovers, *pieces) == made
    assert handovers.counters["handover_corrupt"] == 1 and len(handovers) == 0


@given(st.permutations(range(6)))
def test_a_datagram_is_whole_when_all_its_bytes_are_there(order: list[int]) -> None:
    """Fragments in any order; the first one alone says how many bytes there are."""
    handovers = Handovers()
    parts = [
        piece(Piece.DATAGRAM, MESSAGE[n * 500 : n * 500 + 500], n * 500, whole=0 if n else 3000, datagram=9)
        for n in range(6)
    ]
    assert take(handovers, *(parts[n] for n in order)) == [MESSAGE]
    assert len(handovers) == 0


def test_a_fragment_that_overlaps_with_other_bytes_spoils_its_datagram() -> None:
    """Whoever sends a second version of a fragment gets neither believed (RFC 5722)."""
    handovers = Handovers()
    first = piece(Piece.DATAGRAM, MESSAGE[:1000], 0, whole=2000, datagram=9)
    forged = piece(Piece.DATAGRAM, b"x" * 1000, 500, datagram=9)
    rest = piece(Piece.DATAGRAM, MESSAGE[1000:2000], 1000, datagram=9)
    assert take(handovers, first, forged, rest) == []
    assert handovers.counters["handover_overlapping"] == 1


def test_a_stream_that_nobody_announced_gives_nothing() -> None:
    """Bytes of a stream whose messages begin nobody knows where are no message, whatever they look like."""
    handovers = Handovers()
    assert take(handovers, piece(Piece.STREAM, prefixed(MESSAGE), 100)) == []
    assert handovers.counters["handover_unannounced"] == 1 and len(handovers) == 0


def test_streams_are_told_apart() -> None:
    """By endpoint, resolver and port: the pieces of one complete no other."""
    handovers = Handovers()
    begin = prefixed(MESSAGE)[:1000]
    others = [
        piece(Piece.STREAM, prefixed(MESSAGE)[1000:], 1000, endpoint=2),
        piece(Piece.STREAM, prefixed(MESSAGE)[1000:], 1000, port=4001),
    ]
    assert take(handovers, piece(Piece.BEGIN, begin, 0, whole=0), *others) == []


def test_a_new_connection_on_the_same_port_begins_anew() -> None:
    """Between two messages a BEGIN says where the next one is, wherever the last one was."""
    handovers = Handovers()
    assert take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE), 7, whole=7)) == [MESSAGE]
    assert take(handovers, piece(Piece.BEGIN, prefixed(b"second"), 99_000, whole=99_000)) == [b"second"]


def test_what_waits_too_long_is_given_up_and_counted() -> None:
    """A lost piece costs its message, not the memory."""
    handovers = Handovers()
    take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE)[:100], 0, whole=0), now=1.0)
    handovers.drop_late(1.0 + handover.WAIT_SECONDS + 1)
    assert len(handovers) == 0 and handovers.counters["handover_abandoned"] == 1


def test_a_noisy_endpoint_pushes_out_its_own() -> None:
    """More streams than one may have: the neighbour's assembly is still there."""
    handovers = Handovers()
    take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE)[:100], 0, whole=0, endpoint=2))
    for port in range(handover.MAX_OF_ONE_ENDPOINT + 50):
        take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE)[:100], 0, whole=0, port=port))
    assert len(handovers) == handover.MAX_OF_ONE_ENDPOINT + 1
    assert take(handovers, piece(Piece.STREAM, prefixed(MESSAGE)[100:], 100, endpoint=2)) == [MESSAGE]


def test_an_assembly_holds_no_more_than_two_messages() -> None:
    """Bytes far behind a gap are not kept for ever."""
    handovers = Handovers()
    take(handovers, piece(Piece.BEGIN, b"\xff", 0, whole=0))
    for n in range(handover.MAX_BYTES // 4000 + 2):
        take(handovers, piece(Piece.STREAM, bytes(4000), 100 + n * 4000))
    assert len(handovers) == 0 and handovers.counters["handover_too_long"] == 1
