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

from services.dnsrecorder.event import Piece, ResolutionEvent

MAX_ASSEMBLIES = 1_024
"""Streams and datagrams at once; beyond it the one that was silent longest goes."""
MAX_OF_ONE_ENDPOINT = 256
"""Of them: a noisy pod pushes out its own."""
MAX_BYTES = 2 * (65_535 + 2)
"""Waiting in one assembly: one whole message while the next has begun."""
WAIT_SECONDS = 10.0
"""For the rest of a message: longer than a resolver's retransmissions take on a link within a cluster."""
IDLE_SECONDS = 120.0
"""A stream between two messages is remembered, because only the kernel's first piece says where messages begin."""
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

    ``checksum``: the kernel's part of a datagram's, 0 for none.
    """

    origin: int
    heard: float
    begun_nanos: int
    at: int = 0
    whole: int = 0
    checksum: int = 0
    waiting: int = 0
    chunks: dict[int, bytes] = field(default_factory=dict)

    def is_waiting(self) -> bool:
        return bool(self.chunks)


class Handovers:
    """All assemblies of one node.

    ``counters``: pieces, messages, unannounced, abandoned, overlapping, too_long, corrupt.
    """

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
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
            if now - one.heard > (WAIT_SECONDS if one.is_waiting() else IDLE_SECONDS):
                self._drop(key)

    # -- streams

    def _take_segment(self, event: ResolutionEvent, now: float) -> list[Handed]:
        key = Key(event.endpoint, event.resolver, event.resolver_port, event.own_port, 0)
        assembly = self._assemblies.get(key)
        if event.piece is Piece.BEGIN and (assembly is None or not assembly.is_waiting()):
            assembly = self._begin(key, Assembly(event.whole, now, event.boottime_nanos))
        if assembly is None:
            self.counters["handover_unannounced"] += 1
            return []
        if not assembly.is_waiting():
            assembly.begun_nanos = event.boottime_nanos
        offset = (event.place - assembly.origin + SEQUENCES // 2) % SEQUENCES - SEQUENCES // 2
        self._touch(key, assembly, now)
        if not self._put(key, assembly, max(offset, assembly.at), event.message[max(0, assembly.at - offset) :]):
            return []
        made = []
        while (message := _cut_message(assembly)) is not None:
            made.append(self._finish(message, assembly, event))
        return made

    # -- datagrams

    def _take_fragment(self, event: ResolutionEvent, now: float) -> list[Handed]:
        key = Key(event.endpoint, event.resolver, event.resolver_port, 0, event.datagram)
        assembly = self._assemblies.get(key)
        if assembly is None:
            assembly = self._begin(key, Assembly(0, now, event.boottime_nanos))
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
        own = [one for one in self._assemblies if one.endpoint == key.endpoint]
        if len(own) >= MAX_OF_ONE_ENDPOINT:
            self._drop(own[0])
        elif len(self._assemblies) >= MAX_ASSEMBLIES:
            self._drop(next(iter(self._assemblies)))
        self._assemblies[key] = assembly
        return assembly

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
        del self._assemblies[key]
        return False

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


def _cut_message(assembly: Assembly) -> bytes | None:
    """The stream's next message, taken out; None if it is not whole."""
    there = _count_from(assembly.chunks, assembly.at)
    if there < 2:
        return None
    size = int.from_bytes(_read(assembly.chunks, assembly.at, 2), "big")
    if there < 2 + size:
        return None
    message = _read(assembly.chunks, assembly.at + 2, size)
    assembly.at += 2 + size
    rest: dict[int, bytes] = {}
    for offset, piece in assembly.chunks.items():
        if offset + len(piece) > assembly.at:
            begin = max(offset, assembly.at)
            rest[begin] = max(rest.get(begin, b""), piece[begin - offset :], key=len)
    assembly.chunks = rest
    assembly.waiting = sum(len(piece) for piece in rest.values())
    return message


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
