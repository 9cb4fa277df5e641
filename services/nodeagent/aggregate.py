"""Denials like one another are told as one: the first at once, then how many there were, once every window.

Rules of this module:

* Like are denials of one endpoint, direction, peer, port, protocol, rule, reason, domain row and revision. Their source
  ports and sizes differ.
* A cause (endpoint, direction, protocol, rule, reason) may open only so many groups a window: what a scan denies beyond
  that is one group more, whose peers and ports vary. So neither a repeated denial nor a scan drowns anybody.
* Nothing is lost: what was taken in is told, or still counted in a group.

It works on the ring's raw records, because most of them need not be decoded at all. Pure: time comes in.
Layout: ``struct verdict_event``, bpf/types.h.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from schemas.terms import Direction

MAX_GROUPS = 20_000
"""Open at once; beyond it every denial counts in the group of its cause."""
GROUPS_A_CAUSE = 64
"""Single peers and ports that one cause is told with in one window."""

_ENDPOINT = slice(8, 12)
_SUPPRESSED = slice(12, 16)
_SOURCE, _DESTINATION = slice(16, 32), slice(32, 48)
_PORT_TO_DOMAIN = slice(50, 68)
"""Destination port, protocol, direction, verdict, reason, tier, family, bit, ruleset, domain row."""
_REVISION = slice(72, 76)
_CAUSE = slice(52, 64)
"""Protocol to ruleset."""
_DIRECTION = 53
_INGRESS = int(Direction.INGRESS)


class Told(msgspec.Struct, frozen=True):
    """A record that stands for ``count`` denials, of which the kernel held back ``suppressed`` more.

    ``varies``: the others differ in peer or port.
    """

    record: bytes
    count: int = 1
    suppressed: int = 0
    varies: bool = False


@dataclass(slots=True)
class _Group:
    ends: float
    record: bytes
    count: int = 0
    suppressed: int = 0
    is_folded: bool = False


class Aggregator:
    """The groups of one node. ``seconds``: length of a window."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._groups: OrderedDict[bytes, _Group] = OrderedDict()
        self._by_cause: Counter[bytes] = Counter()

    def __len__(self) -> int:
        """Groups that are open."""
        return len(self._groups)

    def take(self, record: bytes, now: float) -> Told | None:
        """One denial; what to tell at once, or None if it was counted. ``record``: at least as long as its layout."""
        peer = record[_SOURCE] if record[_DIRECTION] == _INGRESS else record[_DESTINATION]
        key = record[_ENDPOINT] + peer + record[_PORT_TO_DOMAIN] + record[_REVISION]
        group = self._groups.get(key)
        if group is None:
            cause = record[_ENDPOINT] + record[_CAUSE]
            is_folded = self._by_cause[cause] >= GROUPS_A_CAUSE or len(self._groups) >= MAX_GROUPS
            if is_folded:
                key = cause
                group = self._groups.get(key)
            if group is None:
                self._open(key, record, now, is_folded=is_folded)
                return Told(record, 1, int.from_bytes(record[_SUPPRESSED], "little"), varies=False)
        group.count += 1
        group.suppressed += int.from_bytes(record[_SUPPRESSED], "little")
        group.record = record
        return None

    def due(self, now: float) -> Iterator[Told]:
        """The counts of windows that are over. A group that counted something goes on for another window."""
        while self._groups:
            key, group = next(iter(self._groups.items()))
            if group.ends > now:
                return
            del self._groups[key]
            if group.count:
                told = Told(group.record, group.count, group.suppressed, group.is_folded and group.count > 1)
                self._groups[key] = _Group(now + self._seconds, group.record, is_folded=group.is_folded)
                yield told
            elif not group.is_folded:
                self._forget(group.record[_ENDPOINT] + group.record[_CAUSE])

    def rest(self) -> Iterator[Told]:
        """Every count that is not told yet: at the end."""
        yield from self.due(float("inf"))
        self._groups.clear()
        self._by_cause.clear()

    def _open(self, key: bytes, record: bytes, now: float, *, is_folded: bool) -> None:
        self._groups[key] = _Group(now + self._seconds, record, is_folded=is_folded)
        if not is_folded:
            self._by_cause[record[_ENDPOINT] + record[_CAUSE]] += 1

    def _forget(self, cause: bytes) -> None:
        self._by_cause[cause] -= 1
        if not self._by_cause[cause]:
            del self._by_cause[cause]
