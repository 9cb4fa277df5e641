"""Records of the ring buffer ``verdicts`` -> ``VerdictRecord``. Layout: ``struct verdict_event``, bpf/types.h. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from schemas import wire

_LAYOUT = struct.Struct("=QII16s16s2s2sBBBBBBHIIIIIII")
NO_BIT = 0xFFFF


@dataclass(frozen=True, slots=True)
class VerdictRecord:
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


def decode_verdict(record: bytes) -> VerdictRecord:
    """One record; ValueError if it is shorter than its layout."""
    if len(record) < _LAYOUT.size:
        raise ValueError(f"a verdict event of {len(record)} bytes, fewer than {_LAYOUT.size}")
    nanos, endpoint, suppressed, source, destination, source_port, destination_port, *numbers = _LAYOUT.unpack_from(
        record
    )
    protocol, direction, verdict, reason, tier, family, bit, *rest = numbers
    ruleset, domain, peer_identity, revision, frame_bytes, shadow, _ = rest
    return VerdictRecord(
        boottime_nanos=nanos,
        endpoint=endpoint,
        suppressed=suppressed,
        source=wire.unpack_address(source),
        destination=wire.unpack_address(destination),
        source_port=int.from_bytes(source_port, "big"),
        destination_port=int.from_bytes(destination_port, "big"),
        protocol=protocol,
        direction=direction,
        verdict=verdict,
        reason=reason,
        tier=tier,
        family=family,
        bit=bit,
        ruleset=ruleset,
        domain=domain,
        peer_identity=peer_identity,
        revision=revision,
        frame_bytes=frame_bytes,
        is_shadow=bool(shadow),
    )
