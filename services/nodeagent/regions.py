"""Which part of the flow table is whose: every pod interface has a region of ``places`` of its own.

Rules of this module:

* Regions never overlap, and all are of one size: what floods an interface takes no place from another.
* An interface keeps its region while the size stays. The size is a power of two and changes only when the interfaces
  no longer fit, or would fit four times: then all move, and flows that were there keep their old places until the new
  owner needs them.

Pure. Deliberately absent: how a place is taken (``bpf/flow.h``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    kept = {one: before[one] for one in wanted if one in before and before[one].size == size}
    if len(set(kept.values())) < len(kept):
        kept = {}
    taken = {region.first for region in kept.values()}
    free = (first for first in range(0, places - size + 1, size) if first not in taken)
    return {one: kept[one] if one in kept else Region(next(free), size) for one in wanted}


def _choose_size(interfaces: int, present: set[int], places: int) -> int:
    """Places of one region."""
    for size in present if len(present) == 1 else ():
        if interfaces <= places // size < 4 * max(interfaces, 1):
            return size
    regions = 1 << max(interfaces - 1, 0).bit_length()
    return places // regions
