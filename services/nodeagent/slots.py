"""Names of one address as slots in pages: where a domain row goes, and which pages are written for it.

An address has at most ``MAX_NAMES`` names at once. A row keeps its slot, so that a page that did not change is not
written. Rules of this module: pure; expiries are boottime seconds; a slot whose time is over is another row's before a
page is added.
"""

from __future__ import annotations

from collections.abc import Iterator

from services.nodeagent.mapcodec import NAME_PAGES, NAME_SLOTS, NamesPage

MAX_NAMES = NAME_SLOTS * NAME_PAGES
_FREE = (0, 0)

Slots = list[tuple[int, int]]
"""(domain row, expiry), (0, 0) where free."""


def place_row(slots: Slots, row: int, expires: int, now: int) -> int:
    """Put the row into its slot, a free one or a new one; the index, or -1 if all ``MAX_NAMES`` are taken and live.

    A later expiry stands: what was promised is not taken back.
    """
    index = _find_slot(slots, row, now)
    if index < 0:
        return -1
    if index == len(slots):
        slots.append(_FREE)
    before = slots[index]
    slots[index] = (row, max(expires, before[1]) if before[0] == row else expires)
    return index


def _find_slot(slots: Slots, row: int, now: int) -> int:
    """Its own, a free one, a new one; an expired one only before a page would be added: it still explains denials."""
    free = expired = -1
    for index, (taken, expiry) in enumerate(slots):
        if taken == row:
            return index
        if not taken:
            free = index if free < 0 else free
        elif expiry <= now and expired < 0:
            expired = index
    if free >= 0:
        return free
    is_page_open = len(slots) % NAME_SLOTS > 0
    return len(slots) if is_page_open or (expired < 0 and len(slots) < MAX_NAMES) else expired


def drop_expired(slots: Slots, before: int) -> bool:
    """Free what expired before then; whether all are free now. Order stays: a row never moves."""
    for index, (row, expiry) in enumerate(slots):
        if row and expiry <= before:
            slots[index] = _FREE
    while slots and slots[-1] == _FREE:
        slots.pop()
    return not slots


def list_pages(slots: Slots) -> Iterator[NamesPage]:
    """All pages; every one but the last says that more follow."""
    count = (len(slots) + NAME_SLOTS - 1) // NAME_SLOTS
    for page in range(count):
        own = slots[page * NAME_SLOTS : (page + 1) * NAME_SLOTS]
        filled = tuple(own) + (_FREE,) * (NAME_SLOTS - len(own))
        yield NamesPage(filled, (0,) * NAME_SLOTS, page + 1 < count)
