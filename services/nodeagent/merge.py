"""What two layouts' programs wrote at once, made one: names of an address, questions in a set.

Rules of this module: pure; what the newer programs wrote stays, and of one name or question the later time stands; what
the older ones wrote comes beside it. Deliberately absent: keys, maps, and what was charged for what (``carry``).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence

from services.nodeagent.mapcodec import NAME_PAGES, NAME_SLOTS, NamesPage

_WAY = struct.Struct("=QIHH")
"""``struct query``: hash, asked, id, port."""
_FREE = (0, 0)


def merge_queries(newer: bytes, older: bytes) -> bytes:
    """A ``struct query_set`` with the questions of both, those asked last if they are too many.

    A question that is done is one that was asked long ago; where one side does not know so, it is open until its time
    is over, and its answer may come once more.
    """
    asked: dict[tuple[int, int, int], int] = {}
    for key, ticks in (*_list_queries(newer), *_list_queries(older)):
        asked[key] = max(asked.get(key, 0), ticks)
    kept = sorted(asked.items(), key=lambda one: -one[1])[: len(newer) // _WAY.size]
    if {*kept} == {*_list_queries(newer)}:
        return newer
    packed = b"".join(_WAY.pack(key[0], ticks, *key[1:]) for key, ticks in kept)
    return packed.ljust(len(newer), b"\0")


def _list_queries(value: bytes) -> list[tuple[tuple[int, int, int], int]]:
    return [((hash_, number, port), asked) for hash_, asked, number, port in _WAY.iter_unpack(value) if hash_]


def merge_names(
    newer: Sequence[NamesPage], older: Iterable[NamesPage], now: int
) -> tuple[list[NamesPage], Counter[int]]:
    """The pages of one address and scope with the live names of both, and how many came beside, by owner.

    ``now``: boottime seconds. A name keeps its slot; one for which there is no room is left out.
    """
    slots = [slot for page in newer for slot in page.slots]
    owners = [owner for page in newer for owner in page.owners]
    added: Counter[int] = Counter()
    for page in older:
        for (row, expiry), owner in zip(page.slots, page.owners, strict=True):
            if not row or expiry <= now:
                continue
            index = _find_slot(slots, row, now)
            if index == len(slots):
                slots += [_FREE] * NAME_SLOTS
                owners += [0] * NAME_SLOTS
            if index < 0:
                continue
            if slots[index][0] == row:
                slots[index] = (row, max(expiry, slots[index][1]))
                continue
            slots[index], owners[index] = (row, expiry), owner
            added[owner] += 1
    return list(_cut(slots, owners)), added


def _find_slot(slots: Sequence[tuple[int, int]], row: int, now: int) -> int:
    """Its own, a free one, a new page's first, one whose time is over; -1: none."""
    rows = [taken for taken, _ in slots]
    for wanted in (row, 0):
        if wanted in rows:
            return rows.index(wanted)
    if len(slots) < NAME_SLOTS * NAME_PAGES:
        return len(slots)
    return next((index for index, (_, expiry) in enumerate(slots) if expiry <= now), -1)


def _cut(slots: Sequence[tuple[int, int]], owners: Sequence[int]) -> Iterable[NamesPage]:
    for first in range(0, len(slots), NAME_SLOTS):
        last = first + NAME_SLOTS
        yield NamesPage(tuple(slots[first:last]), tuple(owners[first:last]), last < len(slots))
