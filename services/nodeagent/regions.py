"""Which part of the flow table is whose: every pod interface has a region of ``places`` of its own.

Rules of this module:

* Regions never overlap, and all are of one size: what floods an interface takes no place from another.
* An interface keeps its region while the size stays. The size is a power of two, and so is where a region begins a
  multiple of it. It changes only when the interfaces no longer fit, or would fit four times.
* Where it shrinks an interface keeps the beginning of its own region. Where it grows it keeps what its own lies in, or,
  if another's lies in that before it, it moves to one in which nobody's lies.
* Before regions are as wanted they are as ``plan_moves`` says, step by step: what somebody gives up is given to nobody
  before flows have left it.

Pure. Deliberately absent: how a place is taken (``bpf/flow.h``), how flows are moved (``moves``, ``bpf/move.h``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple


class Region(NamedTuple):
    """``size`` places from ``first`` on; none: the interface's packets make no flows."""

    first: int = 0
    size: int = 0


NO_REGION = Region()


def allot_regions(interfaces: Iterable[int], before: Mapping[int, Region], places: int) -> dict[int, Region]:
    """A region for each interface. ``before``: what they have now; ``places``: size of the whole, a power of two."""
    wanted = sorted(interfaces)
    size = _choose_size(len(wanted), {region.size for region in before.values() if region.size}, places)
    if size == 0:
        return dict.fromkeys(wanted, NO_REGION)
    owner: dict[int, int] = {}
    for first, one in sorted((before[one].first, one) for one in wanted if before.get(one, NO_REGION).size):
        owner.setdefault(first // size * size, one)
    after = {one: Region(first, size) for first, one in owner.items()}
    used = {first for region in before.values() for first in _find_firsts(region, size)}
    free = (first for first in range(0, places, size) if first not in owner)
    firsts = iter(sorted(free, key=lambda first: (first in used, first)))
    return {one: after[one] if one in after else Region(next(firsts), size) for one in wanted}


def plan_moves(before: Mapping[int, Region], after: Mapping[int, Region]) -> list[dict[int, Region]]:
    """What regions must be, one step after another, before they may be ``after``; after each step flows are moved.

    First nobody has anything any more of what ended and is given to another. Then who stays has as much as it will have
    and had, where it will be: that is its own or was nobody's.
    """
    size = max((region.size for region in after.values()), default=0)
    given = {region.first for one, region in after.items() if region.size and region != before.get(one)}
    ended = {
        one: NO_REGION
        for one, region in before.items()
        if one not in after and not given.isdisjoint(_find_firsts(region, size))
    }
    moved = {
        one: Region(region.first, min(region.size, before[one].size))
        for one, region in after.items()
        if before.get(one, NO_REGION).size
    }
    return [step for step in (ended, {one: region for one, region in moved.items() if region != before[one]}) if step]


def find_given(before: Mapping[int, Region], after: Mapping[int, Region]) -> list[Region]:
    """What each has after that it did not have before, as regions."""
    given = []
    for one, region in after.items():
        had = before.get(one, NO_REGION)
        if not had.size or had.first != region.first:
            given.append(region)
        elif had.size < region.size:
            given.append(Region(had.first + had.size, region.size - had.size))
    return [region for region in given if region.size]


def _find_firsts(region: Region, size: int) -> Iterator[int]:
    """Where those regions of ``size`` begin that this one has places of."""
    return iter(range(region.first // size * size, region.first + region.size, size) if region.size and size else ())


def _choose_size(interfaces: int, present: set[int], places: int) -> int:
    """Places of one region."""
    for size in present if len(present) == 1 else ():
        if interfaces <= places // size < 4 * max(interfaces, 1):
            return size
    regions = 1 << max(interfaces - 1, 0).bit_length()
    return places // regions
