"""Messages out of the pieces that the kernel hands over: TCP streams, fragments, datagrams too long for it.

Rules of this module:

* Where a message begins in a stream is said by the kernel, which knows it since the resolver's SYN, and from there on
  by each message's own length. A piece of a stream that nobody announced is dropped.
* A fragment that lays other bytes over those of an earlier one spoils its datagram (RFC 5722); a datagram whose
  checksum is wrong is none, as for the pod.
* Everything is bounded: assemblies, bytes in each, and seconds of waiting. What is given up is counted.

Pure: time comes in. Deliberately absent: parsing, and whether to believe (the kernel said who answered, and checked).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

import msgspec

from schemas.policy import FlowTimeouts
from services.dnsrecorder.event import Piece, ResolutionEvent

MAX_ASSEMBLIES = 1_024
"""Streams and datagrams at once; beyond it the endpoint with most of them loses the one that was silent longest."""
MAX_OF_ONE_ENDPOINT = 256
"""Of them: a noisy pod pushes out its own."""
MAX_BYTES = 2 * (65_535 + 2)
"""Waiting in one assembly: one whole message while the next has begun."""
WAIT_SECONDS = 10.0
"""For the rest of a message: longer than a resolver's retransmissions take on a link within a cluster. Other pieces do
not renew it."""
MAX_KEPT_BYTES = 1 << 20
"""Waiting in streams that are kept over a restart; those heard of last come first, and those without any always."""
SWEEP_SECONDS = 1.0
SEQUENCES = 1 << 32
PROTOCOL_UDP = 17


class Key(NamedTuple):
    """One stream, or one datagram. ``port``: 0 for datagrams, whose later fragments have none."""

    endpoint: int
    resolver: str
    resolver_port: int
    port: int
    datagram: int


class Handed(NamedTuple):
    """A whole message. ``begun_nanos``, ``done_nanos``: when the kernel released its first and its last piece."""

    message: bytes
    last: ResolutionEvent
    begun_nanos: int
    done_nanos: int


@dataclass(slots=True)
class Assembly:
    """``chunks``: offset -> bytes. ``at``: where the next message begins. ``whole``: a datagram's length, if known.

    ``checksum``: the kernel's part of a datagram's, 0 for none. ``heard``, ``since``: of the last piece, and of the
    first since the last message (seconds).
    """

    origin: int
    heard: float
    begun_nanos: int
    since: float = 0.0
    at: int = 0
    whole: int = 0
    checksum: int = 0
    waiting: int = 0
    chunks: dict[int, bytes] = field(default_factory=dict)

    def is_waiting(self) -> bool:
        return bool(self.chunks)

    def find_offset(self, place: int) -> int:
        """Of a sequence number, from the first message on; the one that is nearest to the next message."""
        return self.at + (place - self.origin - self.at + SEQUENCES // 2) % SEQUENCES - SEQUENCES // 2

    def is_late(self, now: float) -> bool:
        """Whether the rest of a message is given up."""
        return self.is_waiting() and now - self.since > WAIT_SECONDS


class Handovers:
    """All assemblies of one node.

    ``counters``: pieces, messages, unannounced, abandoned, overlapping, too_long, corrupt.
    """

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.idle_seconds = float(FlowTimeouts().tcp)
        """How long a stream between two messages is remembered: as long as the kernel keeps its flow."""
        self._assemblies: OrderedDict[Key, Assembly] = OrderedDict()
        self._swept = 0.0

    def __len__(self) -> int:
        return len(self._assemblies)

    def take(self, event: ResolutionEvent, now: float) -> list[Handed]:
        """The messages that this piece completes, oldest first. ``now``: seconds of a monotonic clock."""
        self.counters["handover_pieces"] += 1
        self.drop_late(now)
        if event.piece is Piece.DATAGRAM:
            return self._take_fragment(event, now)
        return self._take_segment(event, now)

    def drop_late(self, now: float) -> None:
        """Give up what waits too long. Streams between two messages are only forgotten. Looks once a second at most."""
        if now - self._swept < SWEEP_SECONDS:
            return
        self._swept = now
        for key, one in list(self._assemblies.items()):
            if one.is_late(now):
                self._give_up(key, one, now)
            elif now - one.heard > self.idle_seconds:
                self._drop(key)

    def dump(self) -> bytes:
        """Where streams are, for whoever reads the ring next."""
        kept: list[tuple[Key, Assembly]] = []
        room = MAX_KEPT_BYTES
        for key, one in reversed(self._assemblies.items()):
            if key.port and one.waiting <= room:
                kept.append((key, one))
                room -= one.waiting
        return msgspec.msgpack.encode(kept[::-1])

    def load(self, content: bytes) -> None:
        """Take up what was dumped in the same boot of the machine; ValueError if it is none."""
        try:
            self._assemblies.update(msgspec.msgpack.decode(content, type=list[tuple[Key, Assembly]]))
        except msgspec.DecodeError as error:
            raise ValueError(f"no streams: {error}") from error

    # -- streams

    def _take_segment(self, event: ResolutionEvent, now: float) -> list[Handed]:
        key = Key(event.endpoint, event.resolver, event.resolver_port, event.own_port, 0)
        assembly = self._assemblies.get(key)
        if event.piece is Piece.BEGIN and (assembly is None or _gives_way(assembly, event.whole, now)):
            assembly = self._begin(key, Assembly(event.whole, now, event.boottime_nanos))
        if assembly is None:
            self.counters["handover_unannounced"] += 1
            return []
        if not assembly.is_waiting():
            assembly.begun_nanos, assembly.since = event.boottime_nanos, now
        offset = assembly.find_offset(event.place)
        self._touch(key, assembly, now)
        if not self._put(key, assembly, max(offset, assembly.at), event.message[max(0, assembly.at - offset) :]):
            return []
        made = []
        while (message := _cut_message(assembly)) is not None:
            assembly.since = now
            made.append(self._finish(message, assembly, event))
        return made

    # -- datagrams

    def _take_fragment(self, event: ResolutionEvent, now: float) -> list[Handed]:
        key = Key(event.endpoint, event.resolver, event.resolver_port, 0, event.datagram)
        assembly = self._assemblies.get(key)
        if assembly is None:
            assembly = self._begin(key, Assembly(0, now, event.boottime_nanos, since=now))
        self._touch(key, assembly, now)
        if _contradicts(assembly.chunks, event.place, event.message):
            self.counters["handover_overlapping"] += 1
            del self._assemblies[key]
            return []
        assembly.whole = assembly.whole or event.whole
        assembly.checksum = assembly.checksum or event.checksum
        if not self._put(key, assembly, event.place, event.message):
            return []
        if not assembly.whole or _count_from(assembly.chunks, 0) < assembly.whole:
            return []
        message = _read(assembly.chunks, 0, assembly.whole)
        del self._assemblies[key]
        if assembly.checksum and not _is_sound(message, event.resolver, assembly.checksum):
            self.counters["handover_corrupt"] += 1
            return []
        return [self._finish(message, assembly, event)]

    # -- both

    def _begin(self, key: Key, assembly: Assembly) -> Assembly:
        if key in self._assemblies:
            self._drop(key)
        has = Counter(one.endpoint for one in self._assemblies)
        if has[key.endpoint] >= MAX_OF_ONE_ENDPOINT:
            self._drop_oldest_of(key.endpoint)
        elif len(self._assemblies) >= MAX_ASSEMBLIES:
            self._drop_oldest_of(max(has, key=has.__getitem__))
        self._assemblies[key] = assembly
        return assembly

    def _drop_oldest_of(self, endpoint: int) -> None:
        self._drop(next(one for one in self._assemblies if one.endpoint == endpoint))

    def _touch(self, key: Key, assembly: Assembly, now: float) -> None:
        assembly.heard = now
        self._assemblies.move_to_end(key)

    def _put(self, key: Key, assembly: Assembly, offset: int, piece: bytes) -> bool:
        """Whether the assembly is still there."""
        known = assembly.chunks.get(offset, b"")
        if len(piece) > len(known):
            assembly.chunks[offset] = piece
            assembly.waiting += len(piece) - len(known)
        if assembly.waiting <= MAX_BYTES:
            return True
        self.counters["handover_too_long"] += 1
        if key.port and _pass_over(assembly):
            return True  # what is whole behind the gap is taken out now
        del self._assemblies[key]
        return False

    def _give_up(self, key: Key, one: Assembly, now: float) -> None:
        """What is missing of one message is not worth a stream's place."""
        if key.port and _pass_over(one):
            self.counters["handover_abandoned"] += 1
            one.since = now
        else:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        if self._assemblies.pop(key).is_waiting():
            self.counters["handover_abandoned"] += 1

    def _finish(self, message: bytes, assembly: Assembly, last: ResolutionEvent) -> Handed:
        self.counters["handover_messages"] += 1
        begun, assembly.begun_nanos = assembly.begun_nanos, last.boottime_nanos
        return Handed(message, last, begun, last.boottime_nanos)


def _count_from(chunks: dict[int, bytes], at: int) -> int:
    """How far the bytes reach without a gap from ``at`` on."""
    reached = at
    for offset in sorted(chunks):
        if offset > reached:
            break
        reached = max(reached, offset + len(chunks[offset]))
    return reached - at


def _read(chunks: dict[int, bytes], at: int, size: int) -> bytes:
    """That many bytes, which are there."""
    made = bytearray()
    for offset in sorted(chunks):
        begin = at + len(made) - offset
        if begin >= 0:
            made += chunks[offset][begin:]
    return bytes(made[:size])


def _gives_way(assembly: Assembly, begins: int, now: float) -> bool:
    """Whether a message that is announced to begin there is the first of another assembly: of another connection on the
    same ports, or of this one between two messages or after what it waits for in vain."""
    is_far = abs(assembly.find_offset(begins) - assembly.at) > MAX_BYTES
    return is_far or not assembly.is_waiting() or assembly.is_late(now)


def _read_size(assembly: Assembly) -> int | None:
    """Bytes of the stream's next message, its length included; None while that is not there."""
    if _count_from(assembly.chunks, assembly.at) < 2:
        return None
    return 2 + int.from_bytes(_read(assembly.chunks, assembly.at, 2), "big")


def _cut_message(assembly: Assembly) -> bytes | None:
    """The stream's next message, taken out; None if it is not whole."""
    size = _read_size(assembly)
    if size is None or _count_from(assembly.chunks, assembly.at) < size:
        return None
    message = _read(assembly.chunks, assembly.at, size)[2:]
    _advance(assembly, size)
    return message


def _pass_over(assembly: Assembly) -> bool:
    """Go on behind the next message, whatever of it is missing; False where not even its length is there."""
    size = _read_size(assembly)
    if size is None:
        return False
    _advance(assembly, size)
    return True


def _advance(assembly: Assembly, size: int) -> None:
    assembly.at += size
    rest: dict[int, bytes] = {}
    for offset, piece in assembly.chunks.items():
        if offset + len(piece) > assembly.at:
            begin = max(offset, assembly.at)
            rest[begin] = max(rest.get(begin, b""), piece[begin - offset :], key=len)
    assembly.chunks = rest
    assembly.waiting = sum(len(piece) for piece in rest.values())


def _is_sound(message: bytes, resolver: str, checksum: int) -> bool:
    """Whether a datagram's checksum is right (RFC 768, RFC 8200 8.1). ``checksum``: see ``ResolutionEvent``.

    Words added up in one's complement are their number modulo 65,535.
    """
    said = int.from_bytes(message + bytes(len(message) % 2), "big")
    source = int.from_bytes(ip_address(resolver).packed, "big")
    return (checksum + PROTOCOL_UDP + 2 * (8 + len(message)) + source + said) % 65_535 == 0


def _contradicts(chunks: dict[int, bytes], offset: int, piece: bytes) -> bool:
    """Whether some byte of the piece differs from one that is there."""
    for other, there in chunks.items():
        begin, end = max(offset, other), min(offset + len(piece), other + len(there))
        if begin < end and piece[begin - offset : end - offset] != there[begin - other : end - other]:
            return True
    return False
