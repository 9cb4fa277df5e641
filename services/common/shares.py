"""What each holder has at a time of something that all share, bounded. Pure: time comes in.

A thing that several ask for is charged to each of them, so that nobody has more than its share by way of others.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Thing = TypeVar("Thing", bound=Hashable)
LOOK_SECONDS = 1.0
"""A full share is gone through for what is over at most so often."""


class Shares(Generic[Thing]):
    """``limit`` things a holder. What is over gives its place back."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: dict[str, dict[Thing, float]] = {}
        self._looked: dict[str, float] = {}

    def take(self, holder: str, thing: Thing, *, until: float, now: float) -> bool:
        """Whether the holder may have it ``until`` then: it has it already, or room for one more. Seconds."""
        is_new = thing not in self._held.get(holder, ())
        if is_new and self.count(holder) >= self.limit and not self._make_room(holder, now):
            return False
        held = self._held.setdefault(holder, {})
        held[thing] = max(until, held.get(thing, until))
        return True

    def count(self, holder: str) -> int:
        """What it is charged for."""
        return len(self._held.get(holder, ()))

    def release(self, things: Iterable[Thing]) -> None:
        """Nobody has these any more."""
        gone = set(things)
        for held in self._held.values():
            for thing in gone & held.keys():
                del held[thing]

    def drop_expired(self, now: float) -> None:
        """Of every holder; call it now and then, or who is gone stays."""
        for holder in list(self._held):
            self._drop_expired(holder, now)

    def clear(self) -> None:
        """Nobody has anything."""
        self._held.clear()
        self._looked.clear()

    def _make_room(self, holder: str, now: float) -> bool:
        if now - self._looked.get(holder, float("-inf")) < LOOK_SECONDS:
            return False
        self._drop_expired(holder, now)
        self._looked[holder] = now
        return self.count(holder) < self.limit

    def _drop_expired(self, holder: str, now: float) -> None:
        live = {thing: until for thing, until in self._held[holder].items() if until > now}
        self._looked.pop(holder, None)
        if live:
            self._held[holder] = live
        else:
            del self._held[holder]
