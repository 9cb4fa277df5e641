"""Raw records of the ring ``verdicts``, as the kernel writes them (``struct verdict_event``, bpf/types.h)."""

from __future__ import annotations

import struct

from schemas import wire
from schemas.terms import Direction, Reason, Tier, Verdict
from services.nodeagent.events import NO_BIT


def make_record(
    *,
    endpoint: int = 4,
    source: str = "10.0.0.1",
    destination: str = "192.0.2.9",
    source_port: int = 40000,
    destination_port: int = 443,
    direction: Direction = Direction.EGRESS,
    verdict: Verdict = Verdict.DENY,
    suppressed: int = 0,
    revision: int = 17,
    boottime_nanos: int = 1,
) -> bytes:
    """One record: by default a denial for want of a rule."""
    return struct.pack(
        "=QII16s16s2s2sBBBBBBHIIIIIII",
        boottime_nanos,
        endpoint,
        suppressed,
        wire.pack_address(source),
        wire.pack_address(destination),
        source_port.to_bytes(2, "big"),
        destination_port.to_bytes(2, "big"),
        6,
        direction,
        verdict,
        Reason.ISOLATED,
        Tier.NETWORK_POLICY,
        4,
        NO_BIT,
        3,
        0,
        0,
        revision,
        60,
        0,
        0,
    )
