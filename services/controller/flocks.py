"""Rows that change together: endpoint rows of one group, whose rulesets are a part of the body that they share.

A *brand* is such a part; a *flock* is rows that always bear the same one. To change the part, or a flock's brand,
touches no row: what the bodies are is worked out when changes are taken, in order of subjects, which is remembered. No
body is kept, only what stands around the part, in lists side by side: of ten thousand rows that are flipped no other
object is looked at, because most of such a flip is waiting for memory.

Deliberately absent: what the part means (``endpoints``), rows by subject (``rows``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter

import msgspec

from services.controller.policy.diff import RowChange
from services.controller.policy.model import ObjectKey

GONE_MAX = 1024
"""Members that have gone and are still in the order; beyond it they are taken out."""
MANY = 8
"""From an eighth of all members on, those of flipped flocks are found by going through all in their order."""


class Row(msgspec.Struct, eq=False, gc=False):
    """One subject's row; no body: it is not wanted. ``before``: its body when changes were last taken, if ``is_noted``.

    Held by who changes many at once: to look up ten thousand subjects costs more than what is done with them.
    ``place``: among the members of flocks, less than 0 if it is none; members' bodies are the flocks' matter.
    """

    subject: str
    body: bytes | None = None
    before: bytes | None = None
    is_noted: bool = False
    place: int = -1

    @property
    def is_member(self) -> bool:
        """Whether it is one of a flock."""
        return self.place >= 0


@dataclass(slots=True, eq=False)
class Brand:
    """A part of the bodies of all rows of these flocks. ``told``: what it was when changes were last taken."""

    part: bytes
    told: bytes
    flocks: dict[Flock, None] = field(default_factory=dict)

    @classmethod
    def of(cls, part: bytes) -> Brand:
        """One that nobody bears yet."""
        return cls(part, part)


@dataclass(slots=True, eq=False)
class Flock:
    """Rows of one brand; a member that has no row is None.

    ``former``: what its rows bore when changes were last taken, if it was given another brand since. ``due``: while
    changes are taken, what its rows are to bear, if that is something else.
    """

    rows: dict[ObjectKey, Row | None] = field(default_factory=dict)
    brand: Brand | None = None
    former: bytes | None = None
    due: bytes | None = None


class Flocks:
    """All flocks' members in order, and what has been flipped."""

    def __init__(self) -> None:
        self._members: list[Row | None] = []
        self._subjects: list[str] = []
        self._heads: list[bytes] = []
        self._tails: list[bytes] = []
        self._flock_at: list[Flock] = []
        self._nobody = Flock()
        self._are_in_order = True
        self._gone = 0
        self._flipped: dict[Brand, None] = {}
        self._moved: dict[Flock, None] = {}

    def __len__(self) -> int:
        """Members in order, with those that have gone since it was last made."""
        return len(self._members)

    # -- members ------------------------------------------------------------------------------------------------------

    def adopt(self, flock: Flock, row: Row, body: bytes) -> None:
        """A row is a member of a flock from now on, or still; its body has the part that the flock is to bear."""
        part = _part_of(flock)
        at = body.index(part)
        head, tail = body[:at], body[at + len(part) :]
        if row.is_member:
            self._heads[row.place], self._tails[row.place], self._flock_at[row.place] = head, tail, flock
            return
        row.place = len(self._members)
        self._members.append(row)
        self._subjects.append(row.subject)
        self._heads.append(head)
        self._tails.append(tail)
        self._flock_at.append(flock)
        self._are_in_order = False

    def abandon(self, row: Row) -> None:
        """A row is a member no more."""
        self._members[row.place], self._flock_at[row.place] = None, self._nobody
        row.place = -1
        self._gone += 1
        if self._gone > GONE_MAX:
            self._put_in_order()

    def holds(self, flock: Flock, row: Row, body: bytes) -> bool:
        """Whether a row is a member of this flock already, with this body."""
        return row.is_member and self._flock_at[row.place] is flock and self.body_of(row) == body

    def body_of(self, row: Row) -> bytes:
        """What a member is to be."""
        return self._heads[row.place] + _part_of(self._flock_at[row.place]) + self._tails[row.place]

    def told(self, row: Row) -> bytes:
        """What a member was when changes were last taken, if nothing but flips has come since."""
        flock = self._flock_at[row.place]
        part = flock.former if flock.former is not None else flock.brand.told if flock.brand is not None else b""
        return self._heads[row.place] + part + self._tails[row.place]

    # -- flips --------------------------------------------------------------------------------------------------------

    def flip(self, brand: Brand, part: bytes) -> None:
        """Make a brand another part, in all rows that bear it."""
        brand.part = part
        if part == brand.told:
            self._flipped.pop(brand, None)
        else:
            self._flipped[brand] = None

    def mark(self, flock: Flock, brand: Brand) -> None:
        """Give a flock another brand, or its first."""
        old = flock.brand
        if old is not None:
            old.flocks.pop(flock, None)
            if flock.former is None:
                flock.former = old.told
                self._moved[flock] = None
        flock.brand = brand
        brand.flocks[flock] = None

    def take(self) -> list[RowChange]:
        """The flips since the last call, by subject."""
        flocks = self._call_due()
        changes = self._write_all() if self._are_many(flocks) else self._write_few(flocks)
        for flock in flocks:
            flock.due = None
        for flock in self._moved:
            flock.former = None
        for brand in self._flipped:
            brand.told = brand.part
        self._flipped.clear()
        self._moved.clear()
        return changes

    def _call_due(self) -> list[Flock]:
        """Tell flocks what their rows are to bear; -> those for which it is something else than before."""
        flocks = []
        for brand in self._flipped:
            part = brand.part
            for flock in brand.flocks:
                if flock.former is None:
                    flock.due = part
                    flocks.append(flock)
        for flock in self._moved:
            part = _part_of(flock)
            if part != flock.former:
                flock.due = part
                flocks.append(flock)
        return flocks

    def _write_all(self) -> list[RowChange]:
        if not self._are_in_order:
            self._put_in_order()
        lists = zip(self._subjects, self._heads, self._tails, self._flock_at, strict=True)
        return [
            RowChange(subject, head + part + tail)
            for subject, head, tail, flock in lists
            if (part := flock.due) is not None
        ]

    def _write_few(self, flocks: Iterable[Flock]) -> list[RowChange]:
        rows = [row for flock in flocks for row in flock.rows.values() if row is not None and row.is_member]
        return [RowChange(row.subject, self.body_of(row)) for row in sorted(rows, key=_subject_of)]

    def _are_many(self, flocks: Iterable[Flock]) -> bool:
        rows = 0
        for flock in flocks:
            rows += len(flock.rows)
            if MANY * rows > len(self):
                return True
        return False

    def _put_in_order(self) -> None:
        """Near-linear: what was in order before is. Those that have gone are taken out."""
        members = [row for row in self._members if row is not None]
        members.sort(key=_subject_of)
        places = [row.place for row in members]
        self._subjects = [row.subject for row in members]
        self._heads = [self._heads[place] for place in places]
        self._tails = [self._tails[place] for place in places]
        self._flock_at = [self._flock_at[place] for place in places]
        for place, row in enumerate(members):
            row.place = place
        self._members, self._are_in_order, self._gone = [*members], True, 0


def _part_of(flock: Flock) -> bytes:
    return flock.brand.part if flock.brand is not None else b""


_subject_of = attrgetter("subject")
