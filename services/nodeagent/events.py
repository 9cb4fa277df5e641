"""Records of the ring buffer ``verdicts`` -> ``VerdictRecord``. Layout: ``struct verdict_event``, bpf/types.h. Pure."""

from __future__ import annotations

import struct
from functools import lru_cache
from socket import ntohs

import msgspec

from schemas import wire
from schemas.terms import Verdict

_LAYOUT = struct.Struct("=QII16s16sHHBBBBBBHIIIIIII")
NO_BIT = 0xFFFF


_VERDICT = 54
_ALLOW = int(Verdict.ALLOW)
RECORD_BYTES = _LAYOUT.size
_read_address = lru_cache(maxsize=65536)(wire.unpack_address)
"""Making text of an address costs more than all the rest of a record."""


class VerdictRecord(msgspec.Struct, frozen=True):
    """One verdict as the kernel tells it; numbers are those of ``schemas.terms``, unknown ones are kept as they are.

    ``bit``: rule bit that decided, ``NO_BIT`` for none. ``ruleset``: its handle. ``domain``: the domain row that
    admitted, or whose expiry denied. ``family``: 4, 6, or 0 if it was no IP packet.
    """

    boottime_nanos: int
    endpoint: int
    suppressed: int
    source: str
    destination: str
    source_port: int
    destination_port: int
    protocol: int
    direction: int
    verdict: int
    reason: int
    tier: int
    family: int
    bit: int
    ruleset: int
    domain: int
    peer_identity: int
    revision: int
    frame_bytes: int
    is_shadow: bool


def is_allow(record: bytes) -> bool:
    """Whether a whole record, not decoded yet, tells of an allowed flow."""
    return record[_VERDICT] == _ALLOW


def decode_verdict(record: bytes) -> VerdictRecord:
    """One record; ValueError if it is shorter than its layout."""
    if len(record) < RECORD_BYTES:
        raise ValueError(f"a verdict event of {len(record)} bytes, fewer than {RECORD_BYTES}")
    nanos, endpoint, suppressed, source, destination, source_port, destination_port, *numbers = _LAYOUT.unpack_from(
        record
    )
    protocol, direction, verdict, reason, tier, family, bit, *rest = numbers
    ruleset, domain, peer_identity, revision, frame_bytes, shadow, _ = rest
    # By place: names cost a third of it.
    return VerdictRecord(
        nanos,
        endpoint,
        suppressed,
        _read_address(source),
        _read_address(destination),
        ntohs(source_port),
        ntohs(destination_port),
        protocol,
        direction,
        verdict,
        reason,
        tier,
        family,
        bit,
        ruleset,
        domain,
        peer_identity,
        revision,
        frame_bytes,
        shadow != 0,
    )
