"""Numbers for content: ruleset handles, classes, domain rows, endpoint ids, sets and counter ranges.

Rules of this module:

* A number belongs to its content (a key) for as long as that content is wanted; asking again gives the same number.
* A released number is used again only when no fresh one is left, oldest release first, so that late events still find
  what it stood for. Whoever releases has deleted it from the kernel's maps before.
* The state is plain data and is written to disk *before* its numbers reach the kernel. Without it (amnesia) every space
  starts above all numbers found present, so nothing present is ever given a second meaning.

Deliberately absent: what the keys mean, the disk, the maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

_INDEXED = {"handles": "rulesets", "counters": "rule_counters", "endpoint_ids": "endpoints"}
"""Space -> the array whose size its numbers are bounded by."""


class NumbersExhausted(RuntimeError):
    """A space has no free number: its map's size is the limit. ``map`` names it, or the space where there is none."""

    def __init__(self, space: str, capacity: int) -> None:
        super().__init__(f"all {capacity} numbers of {space} are in use")
        self.map = _INDEXED.get(space, space)


class Numbers(msgspec.Struct, kw_only=True):
    """One space: numbers ``first`` .. ``last``."""

    space: str
    first: int
    last: int
    next: int = 0
    """The lowest number never given; 0: ``first``."""
    given: dict[str, int] = {}
    released: list[int] = []
    """Oldest first."""

    def find(self, key: str) -> int:
        """The number of ``key``; 0 if it has none."""
        return self.given.get(key, 0)

    def take(self, key: str) -> int:
        """The number of ``key``, a new one if it has none; NumbersExhausted."""
        number = self.given.get(key)
        if number is None:
            number = self.given[key] = self._fresh()
        return number

    def _fresh(self) -> int:
        candidate = max(self.next, self.first)
        if candidate <= self.last:
            self.next = candidate + 1
            return candidate
        if not self.released:
            raise NumbersExhausted(self.space, self.last - self.first + 1)
        return self.released.pop(0)

    def release(self, key: str) -> None:
        """The key is wanted no more and its number is gone from every map. Unknown keys are fine."""
        number = self.given.pop(key, None)
        if number is not None:
            self.released.append(number)

    def keep_only(self, keys: Iterable[str]) -> list[str]:
        """Release every key but these; returns the released."""
        kept = frozenset(keys)
        gone = [key for key in self.given if key not in kept]
        for key in gone:
            self.release(key)
        return gone

    def learn(self, present: Mapping[str, int]) -> None:
        """These keys' numbers were found present: remember them, unless key or number is known otherwise."""
        taken = set(self.given.values())
        for key, number in present.items():
            if key not in self.given and number not in taken:
                self.given[key] = number
                taken.add(number)
        self.avoid(present.values())

    def avoid(self, present: Iterable[int]) -> None:
        """These numbers were found present, whatever they mean: none of them is given to another key."""
        found = {number for number in present if self.first <= number <= self.last}
        self.released = [number for number in self.released if number not in found]
        start = max(self.next, self.first)
        top = max(found, default=0)
        if top < start:
            return
        if top - start <= _MAX_RECLAIMED:
            self.released.extend(number for number in range(start, top) if number not in found)
        self.next = top + 1


_MAX_RECLAIMED = 65536
"""Numbers below the highest one present are free again, if they are few: only small spaces can run out."""


class Ranges(msgspec.Struct, kw_only=True):
    """A space of ranges: each key has ``size`` consecutive numbers. First fit; a released range may be used again."""

    space: str
    capacity: int
    given: dict[str, tuple[int, int]] = {}
    """key -> (start, size)"""
    floor: int = 0
    """Nothing below it is given: set on amnesia."""

    def take(self, key: str, size: int) -> int:
        """Start of the range of ``key``; NumbersExhausted."""
        if key in self.given:
            return self.given[key][0]
        start = self._find_gap(size)
        self.given[key] = (start, size)
        return start

    def _find_gap(self, size: int) -> int:
        start = self.floor
        for used, length in sorted(self.given.values()):
            if used - start >= size:
                break
            start = max(start, used + length)
        if start + size > self.capacity:
            raise NumbersExhausted(self.space, self.capacity)
        return start

    def keep_only(self, keys: Iterable[str]) -> None:
        """Free every range but those of these keys."""
        kept = frozenset(keys)
        self.given = {key: place for key, place in self.given.items() if key in kept}

    def learn(self, key: str, start: int, size: int) -> None:
        """This range was found present and stands for ``key``."""
        self.given.setdefault(key, (start, size))


HANDLES = 1024
IDENTITY_CLASSES = 0x3FFF_FFFF
CIDR_CLASSES = 0x3FFF_FFFF
PORT_CLASSES = 0xFFFF
DOMAIN_ROWS = 0x3FFF_FFFF
ENDPOINT_IDS = 1024
SETS = 0x7FFF_FFFF
COUNTERS = 65536


class Capacities(msgspec.Struct, frozen=True, kw_only=True):
    """How many numbers each space has: array sizes of the maps, and the widths of their fields."""

    handles: int = HANDLES
    endpoint_ids: int = ENDPOINT_IDS
    counters: int = COUNTERS


class Spaces(msgspec.Struct, kw_only=True):
    """All spaces of one agent: the part of its on-disk state that gives the maps their meaning."""

    handles: Numbers
    identity_classes: Numbers
    cidr_classes: Numbers
    port_classes: Numbers
    domain_rows: Numbers
    endpoint_ids: Numbers
    sets: Numbers
    counters: Ranges

    def all_numbers(self) -> Mapping[str, Numbers]:
        """The spaces of single numbers, by name."""
        spaces = (getattr(self, name) for name in self.__struct_fields__)
        return {space.space: space for space in spaces if isinstance(space, Numbers)}


def find_misfits(spaces: Spaces, capacities: Capacities) -> list[str]:
    """Names of the spaces that have given a number which these sizes do not have."""
    limits = {"handles": capacities.handles, "endpoint_ids": capacities.endpoint_ids}
    misfits = [name for name, size in limits.items() if max(getattr(spaces, name).given.values(), default=0) >= size]
    last = max((start + size for start, size in spaces.counters.given.values()), default=0)
    return [*misfits, *(["counters"] if last > capacities.counters else [])]


def resize(spaces: Spaces, capacities: Capacities) -> Spaces:
    """The same numbers in spaces of these sizes; every number given must fit (``find_misfits``)."""
    return msgspec.structs.replace(
        spaces,
        handles=_resize(spaces.handles, capacities.handles),
        endpoint_ids=_resize(spaces.endpoint_ids, capacities.endpoint_ids),
        counters=msgspec.structs.replace(spaces.counters, capacity=capacities.counters),
    )


def _resize(numbers: Numbers, size: int) -> Numbers:
    kept = [number for number in numbers.released if number < size]
    return msgspec.structs.replace(numbers, last=size - 1, next=min(numbers.next, size), released=kept)


def make_spaces(capacities: Capacities | None = None) -> Spaces:
    """Empty spaces. Number 0 is never given: in every map it is "none"."""
    sizes = capacities or Capacities()
    return Spaces(
        handles=Numbers(space="handles", first=1, last=sizes.handles - 1),
        identity_classes=Numbers(space="identity_classes", first=1, last=IDENTITY_CLASSES),
        cidr_classes=Numbers(space="cidr_classes", first=1, last=CIDR_CLASSES),
        port_classes=Numbers(space="port_classes", first=1, last=PORT_CLASSES),
        domain_rows=Numbers(space="domain_rows", first=1, last=DOMAIN_ROWS),
        endpoint_ids=Numbers(space="endpoint_ids", first=1, last=sizes.endpoint_ids - 1),
        sets=Numbers(space="sets", first=1, last=SETS),
        counters=Ranges(space="counters", capacity=sizes.counters),
    )
