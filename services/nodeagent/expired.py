"""Names whose time is over: which of them stay in the kernel's map, and for how long.

An expired name opens nothing: a SYN is denied whatever the name's age, and is told why. It admits one thing, packets in
the middle of a TCP connection whose flow was evicted, or was left behind with an older layout. So it stays for a while,
and for longer where a connection of this node lives at the address.

Rules of this module: pure; times are boottime seconds, a *place* is an address and a scope as in the map's keys.
Deliberately absent: where live flows are read (``liveflows``), the maps (``datapath``).
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, field

from services.nodeagent.mapcodec import NamesPage

KEEP_WHEN_FULL_SECONDS = 60
"""How long an expired name stays while the map, or what its pod may learn, is nearly full."""
LOOKS = 12
"""How often live flows are looked at while an expired name stays: a flow that is evicted between two looks was seen by
the one before."""

Place = bytes
"""The first bytes of a key of ``resolutions``: all but the page."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How long a name stays after its time, and at most where a TCP connection lives at its address; in seconds."""

    expired_seconds: int = 3600
    in_use_seconds: int = 86_400


@dataclass(frozen=True, slots=True)
class Keep:
    """What expired by ``before`` goes, at a place in use what did by ``longest``; of ``crowded`` endpoints what did by
    ``hurried``, in use or not."""

    before: int
    longest: int
    hurried: int
    crowded: Set[int] = frozenset()

    def hurry(self) -> Keep:
        """The same where there is no room for what is over."""
        return Keep(self.hurried, self.hurried, self.hurried, self.crowded)

    def is_over(self, names: NamesPage, *, in_use: bool = False) -> bool:
        """Whether nothing of a page stays."""
        before = self.longest if in_use else self.before
        return not any(
            row and expiry > (self.hurried if owner in self.crowded else before)
            for (row, expiry), owner in zip(names.slots, names.owners, strict=True)
        )

    def is_doubtful(self, names: NamesPage) -> bool:
        """Whether it matters for a page that its place is in use."""
        return any(
            row and self.longest < expiry <= self.before and owner not in self.crowded
            for (row, expiry), owner in zip(names.slots, names.owners, strict=True)
        )


def choose_keep(terms: Terms, now: int, *, is_full: bool, crowded: Set[int] = frozenset()) -> Keep:
    """``is_full``: there is no room in the map for what is over."""
    hurried = now - min(KEEP_WHEN_FULL_SECONDS, terms.expired_seconds)
    before = now - terms.expired_seconds
    keep = Keep(before, min(before, now - terms.in_use_seconds), hurried, crowded)
    return keep.hurry() if is_full else keep


FindLive = Callable[[Set[Place]], Set[Place]]
"""Those of these places at which a TCP connection lives."""


@dataclass(slots=True)
class PlacesInUse:
    """Which places had a live connection within the time that a name stays: its flow may have gone since.

    Whoever begins knows nothing of the flows before, so at the ``start`` every place had one.
    """

    terms: Terms
    start: int
    _seen: dict[Place, int] = field(default_factory=dict)
    """When a live connection was seen; only for places that are asked for."""
    _looked: int | None = None

    def choose(self, doubtful: Set[Place], now: int, find_live: FindLive) -> Set[Place]:
        """Those of the doubtful that are in use. Flows are looked at now and then, and not if nothing is doubtful."""
        self._seen = {place: seen for place, seen in self._seen.items() if place in doubtful}
        if not doubtful:
            return frozenset()
        if self._looked is not None and now - self._looked < self.terms.expired_seconds // LOOKS:
            return doubtful
        self._looked = now
        self._seen.update(dict.fromkeys(find_live(doubtful), now))
        return {one for one in doubtful if now - self._seen.get(one, self.start) < self.terms.expired_seconds}
