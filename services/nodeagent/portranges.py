"""Port ranges cut into segments, so that every (protocol, port) has one class of ranges that cover it.

Class 0 is what no specific range covers: there only "every protocol" rules match, and it needs no entries.
Rules of this module: indices are those of ``tables.port_classes``; "every protocol" belongs to every class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from schemas.policy import PortRange
from schemas.terms import ANY_PROTOCOL
from services.nodeagent.tables import PORT_SLOTS, PORT_SLOTS_OTHER

PORTS = 65536


def index_of(protocol: int, port: int) -> int:
    """Index into ``port_classes`` of a packet's protocol and destination port (host order)."""
    slot = PORT_SLOTS.get(protocol)
    return PORT_SLOTS_OTHER + protocol if slot is None else slot * PORTS + port


def cut_ranges(ranges: Iterable[PortRange]) -> Iterator[tuple[range, frozenset[PortRange]]]:
    """(indices, ranges that cover all of them), without ANY_PROTOCOL and without what nothing covers."""
    by_protocol: dict[int, list[PortRange]] = {}
    for one in ranges:
        if one.protocol != ANY_PROTOCOL:
            by_protocol.setdefault(one.protocol, []).append(one)
    for protocol, own in sorted(by_protocol.items()):
        if protocol in PORT_SLOTS:
            yield from _cut_ports(PORT_SLOTS[protocol] * PORTS, own)
        else:
            start = PORT_SLOTS_OTHER + protocol
            yield range(start, start + 1), frozenset(own)


def _cut_ports(base: int, ranges: list[PortRange]) -> Iterator[tuple[range, frozenset[PortRange]]]:
    opening: dict[int, list[PortRange]] = {}
    closing: dict[int, list[PortRange]] = {}
    for one in ranges:
        opening.setdefault(one.first, []).append(one)
        closing.setdefault(one.last + 1, []).append(one)
    edges = sorted(opening.keys() | closing.keys())
    covering: set[PortRange] = set()
    for start, end in pairwise(edges):
        covering.difference_update(closing.get(start, ()))
        covering.update(opening.get(start, ()))
        if covering:
            yield range(base + start, base + end), frozenset(covering)
