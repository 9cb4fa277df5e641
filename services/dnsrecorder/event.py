"""Records of the ring buffer ``resolution_events`` -> ``ResolutionEvent``. Layout: bpf/types.h. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from schemas import wire
from schemas.terms import Reason

_LAYOUT = struct.Struct("=QII16s2sHBBBBII")


@dataclass(frozen=True, slots=True)
class ResolutionEvent:
    """One answer that the kernel took for news, or hands over. ``message``: the DNS message, TCP's length left out.

    ``answers``: addresses it accepted; ``learned``: those it wrote to ``resolutions``; ``reason``: UNKNOWN (0) if it
    learned everything, else why not. ``domain``: row of the covering pattern, 0 for none.
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

    @property
    def is_complete(self) -> bool:
        """Whether the kernel read the whole answer, so that its count can be held against ours."""
        return self.reason == Reason.UNKNOWN


def decode_event(record: bytes) -> ResolutionEvent:
    """One record; ValueError if it is shorter than it says."""
    if len(record) < _LAYOUT.size:
        raise ValueError(f"a resolution event of {len(record)} bytes, fewer than its {_LAYOUT.size} of header")
    nanos, endpoint, suppressed, resolver, port, size, reason, learned, answers, protocol, domain, _ = (
        _LAYOUT.unpack_from(record)
    )
    message = record[_LAYOUT.size : _LAYOUT.size + size]
    if len(message) != size:
        raise ValueError(f"a resolution event with {len(message)} bytes of message instead of {size}")
    return ResolutionEvent(
        nanos,
        endpoint,
        suppressed,
        wire.unpack_address(resolver),
        int.from_bytes(port, "big"),
        reason,
        learned,
        answers,
        protocol,
        domain,
        message,
    )
