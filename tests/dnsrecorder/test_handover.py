"""Messages out of pieces: in any order, within bounds, and never of bytes that were not sent."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest
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


@pytest.mark.parametrize("begun", [1, 0], ids=["a stream", "a datagram"])
def test_what_waits_too_long_is_given_up_and_counted(begun: int) -> None:
    """A lost piece costs its message, not the memory."""
    handovers = Handovers()
    one = piece(Piece.BEGIN, b"\x0b", 0) if begun else piece(Piece.DATAGRAM, MESSAGE[:100], 0, whole=200, datagram=9)
    take(handovers, one, now=1.0)
    handovers.drop_late(1.0 + handover.WAIT_SECONDS + 1)
    assert len(handovers) == 0 and handovers.counters["handover_abandoned"] == 1


def test_a_lost_piece_costs_its_message_and_not_the_connection() -> None:
    """The kernel says once where a stream's messages begin; the lost one's own length says where the next does."""
    handovers = Handovers()
    take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE)[:100], 0))
    take(handovers, piece(Piece.STREAM, prefixed(MESSAGE)[200:], 200), now=5.0)
    late = 1.0 + handover.WAIT_SECONDS + 1
    assert take(handovers, piece(Piece.STREAM, prefixed(b"next"), 3002), now=late) == [b"next"]
    assert handovers.counters["handover_abandoned"] == 1


def test_other_pieces_do_not_renew_the_wait_for_a_lost_one() -> None:
    """A connection that goes on talking is given up as soon as one that does not."""
    handovers = Handovers()
    take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE)[:100], 0), now=0.0)
    for second in range(1, 10):
        take(handovers, piece(Piece.STREAM, bytes(100), 1000 + 100 * second), now=float(second))
    assert not handovers.counters["handover_abandoned"]
    take(handovers, piece(Piece.STREAM, bytes(100), 2000), now=handover.WAIT_SECONDS + 1)
    assert handovers.counters["handover_abandoned"] == 1


def test_a_gap_that_is_too_long_costs_its_message_and_not_the_connection() -> None:
    """The rest of what came, and what comes, is read."""
    handovers = Handovers()
    take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE)[:100], 0))
    many = b"".join([prefixed(MESSAGE)] * (handover.MAX_BYTES // len(prefixed(MESSAGE)) + 2))
    pieces = [piece(Piece.STREAM, many[at : at + 4000], 3002 + at) for at in range(0, len(many), 4000)]
    made = take(handovers, *pieces)
    assert set(made) == {MESSAGE} and len(made) == len(many) // 3002
    assert handovers.counters["handover_too_long"] == 1


def test_an_idle_connection_is_remembered_as_long_as_the_kernel_does() -> None:
    """Nobody would say again where its messages begin."""
    handovers = Handovers()
    handovers.idle_seconds = 3600.0
    assert take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE), 0)) == [MESSAGE]
    handovers.drop_late(3600.0)
    assert take(handovers, piece(Piece.STREAM, prefixed(b"later"), 3002), now=3600.5) == [b"later"]
    handovers.drop_late(7202.0)
    assert len(handovers) == 0 and not handovers.counters["handover_abandoned"]


def test_a_long_stream_is_followed_past_the_half_of_all_sequence_numbers() -> None:
    """A connection that is kept for a day may say more than 2 GiB."""
    handovers = Handovers()
    take(handovers, piece(Piece.BEGIN, prefixed(b"first"), 0))
    (assembly,) = handovers._assemblies.values()
    assembly.at = at = 3 * (1 << 30)
    assert take(handovers, piece(Piece.STREAM, prefixed(b"later"), at)) == [b"later"]


def test_a_connection_on_a_port_that_is_used_again_begins_anew_while_the_old_one_waits() -> None:
    """Its first message is nowhere near where the old one is; one that is near is the old one's own."""
    handovers = Handovers()
    take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE)[:100], 0))
    near = piece(Piece.BEGIN, prefixed(b"second"), 3002, whole=3002)
    assert take(handovers, near) == []
    far = handover.MAX_BYTES + 1
    assert take(handovers, piece(Piece.BEGIN, prefixed(b"other"), far, whole=far)) == [b"other"]
    assert handovers.counters["handover_abandoned"] == 1 and len(handovers) == 1


def test_an_announced_beginning_takes_the_place_of_what_waits_in_vain() -> None:
    """Between two looks at all streams too."""
    handovers = Handovers()
    take(handovers, piece(Piece.BEGIN, b"\x0b", 0), now=1.0)
    handovers.drop_late(0.5 + handover.WAIT_SECONDS)
    begin = piece(Piece.BEGIN, prefixed(b"second"), 3002, whole=3002)
    assert take(handovers, begin, now=1.2 + handover.WAIT_SECONDS) == [b"second"]


def test_streams_go_on_after_a_restart() -> None:
    """Those between two messages and those within one; fragments are asked for again by who resolves."""
    handovers = Handovers()
    assert take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE), 0)) == [MESSAGE]
    take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE)[:100], 0, port=4001))
    take(handovers, piece(Piece.DATAGRAM, MESSAGE[:100], 0, whole=200, datagram=9))
    again = Handovers()
    again.load(handovers.dump())
    assert take(again, piece(Piece.STREAM, prefixed(b"next"), 3002)) == [b"next"]
    assert take(again, piece(Piece.STREAM, prefixed(MESSAGE)[100:], 100, port=4001)) == [MESSAGE]
    assert len(again) == 2
    with pytest.raises(ValueError, match="no streams"):
        again.load(b"garbage")


def test_what_is_kept_over_a_restart_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams with many bytes that wait are left out, those heard of longest ago first; idle ones never."""
    monkeypatch.setattr(handover, "MAX_KEPT_BYTES", 250)
    handovers = Handovers()
    take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE), 0))
    take(handovers, *(piece(Piece.BEGIN, prefixed(MESSAGE)[:100], 0, port=port) for port in range(1, 5)))
    again = Handovers()
    again.load(handovers.dump())
    assert [key.port for key in again._assemblies] == [4000, 3, 4]


def test_a_noisy_endpoint_pushes_out_its_own() -> None:
    """More streams than one may have: the neighbour's assembly is still there."""
    handovers = Handovers()
    take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE)[:100], 0, whole=0, endpoint=2))
    for port in range(handover.MAX_OF_ONE_ENDPOINT + 50):
        take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE)[:100], 0, whole=0, port=port))
    assert len(handovers) == handover.MAX_OF_ONE_ENDPOINT + 1
    assert take(handovers, piece(Piece.STREAM, prefixed(MESSAGE)[100:], 100, endpoint=2)) == [MESSAGE]


def test_connections_of_five_noisy_endpoints_leave_a_neighbours_alone() -> None:
    """More than all may have together: who has most gives way, however long the neighbour's was silent."""
    handovers = Handovers()
    assert take(handovers, piece(Piece.BEGIN, prefixed(MESSAGE), 0, endpoint=9)) == [MESSAGE]
    for port in range(handover.MAX_OF_ONE_ENDPOINT):
        take(handovers, *(piece(Piece.BEGIN, prefixed(MESSAGE), 0, endpoint=one, port=port) for one in range(1, 6)))
    assert len(handovers) == handover.MAX_ASSEMBLIES
    assert take(handovers, piece(Piece.STREAM, prefixed(b"next"), 3002, endpoint=9)) == [b"next"]


def test_an_assembly_holds_no_more_than_two_messages() -> None:
    """Bytes far behind a gap are not kept for ever."""
    handovers = Handovers()
    take(handovers, piece(Piece.BEGIN, b"\xff", 0, whole=0))
    for n in range(handover.MAX_BYTES // 4000 + 2):
        take(handovers, piece(Piece.STREAM, bytes(4000), 100 + n * 4000))
    assert len(handovers) == 0 and handovers.counters["handover_too_long"] == 1
