"""Records of the rings ``resolution_events`` and ``handovers`` -> ``ResolutionEvent``. Layout: bpf/types.h. Pure."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from schemas import wire
from schemas.terms import Reason

_LAYOUT = struct.Struct("=QII16s2sHBBBBIBB2sIIII")
RESOLVER_OUTSIDE = 4
"""Flag of a resolver outside the cluster: what it says serves the asker alone."""
MAX_COUNTED = 255
"""Of ``answers`` and ``learned``, a byte each; a message of 4,095 bytes may hold 270 addresses of the root's name."""


class Piece(enum.IntEnum):
    """What the bytes of an event are. NONE: a whole message."""

    NONE = 0
    BEGIN = 1
    """Of a TCP stream, and it is known where in it a message begins."""
    STREAM = 2
    DATAGRAM = 3


@dataclass(frozen=True, slots=True)
class ResolutionEvent:
    """One answer that the kernel took for news, or a piece of one that it hands over.

    ``message``: the DNS message (TCP's length left out), or the piece's bytes. ``answers``: addresses it accepted;
    ``learned``: those it wrote to ``resolutions``, both ``MAX_COUNTED`` at most; ``reason``: UNKNOWN (0) if it learned
    everything, else why not. ``domain``: row of the covering pattern, 0 for none. ``own_port``: the asker's.
    ``place``: of a piece, the sequence number of its first byte, or its offset in the datagram's message. ``whole``: of
    BEGIN, the sequence number where a message's length begins; of DATAGRAM, the message's bytes, 0 where not told.
    ``datagram``: what the pieces of one datagram have in common. ``checksum``: of its first fragment, what UDP's, its
    ports and the destination add up to (RFC 768), 0 where nothing is to be checked.
    """

    boottime_nanos: int
    endpoint: int
    suppressed: int
    resolver: str
    resolver_port: int
    reason: int
    learned: int
    answers: int
    protocol: int
    domain: int
    message: bytes
    resolver_flags: int = 0
    piece: Piece = Piece.NONE
    own_port: int = 0
    place: int = 0
    whole: int = 0
    datagram: int = 0
    checksum: int = 0

    @property
    def is_refusal(self) -> bool:
        """Whether the kernel says that the answer gives a covered name no address; ``suppressed`` counts such."""
        return self.reason in (Reason.LEARN_RCODE, Reason.LEARN_NO_ADDRESS)

    @property
    def is_complete(self) -> bool:
        """Whether the kernel read the whole answer, so that its count can be held against ours."""
        return self.reason == Reason.UNKNOWN

    def counts(self, addresses: int) -> bool:
        """Whether the kernel accepted so many, as far as its byte can tell."""
        return self.answers == min(addresses, MAX_COUNTED)

    @property
    def is_from_outside(self) -> bool:
        """Whether the resolver is outside the cluster, so that nobody but the asker is to believe it."""
        return bool(self.resolver_flags & RESOLVER_OUTSIDE)


def decode_event(record: bytes) -> ResolutionEvent:
    """One record; ValueError if it is shorter than it says, or a piece of a kind that does not exist."""
    if len(record) < _LAYOUT.size:
        raise ValueError(f"a resolution event of {len(record)} bytes, fewer than its {_LAYOUT.size} of header")
    fields = _LAYOUT.unpack_from(record)
    nanos, endpoint, suppressed, resolver, port, size, reason, learned, answers, protocol, domain = fields[:11]
    flags, piece, own_port, place, whole, datagram, checksum = fields[11:]
    message = record[_LAYOUT.size : _LAYOUT.size + size]
    if len(message) != size:
        raise ValueError(f"a resolution event with {len(message)} bytes of message instead of {size}")
    return ResolutionEvent(
        boottime_nanos=nanos,
        endpoint=endpoint,
        suppressed=suppressed,
        resolver=wire.unpack_address(resolver),
        resolver_port=int.from_bytes(port, "big"),
        reason=reason,
        learned=learned,
        answers=answers,
        protocol=protocol,
        domain=domain,
        message=message,
        resolver_flags=flags,
        piece=Piece(piece),
        own_port=int.from_bytes(own_port, "big"),
        place=place,
        whole=whole,
        datagram=datagram,
        checksum=checksum,
    )
