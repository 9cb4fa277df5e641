"""Rows that change together: endpoint rows of one group, whose rulesets are a part of the body that they share.

To change the part costs nothing; what the bodies are is worked out when changes are taken, in order of subjects, which
is remembered: to sort ten thousand subjects takes longer than to write their bodies.

Deliberately absent: what the part means (``endpoints``), rows by subject (``rows``).
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

import msgspec

from services.controller.policy.diff import RowChange
from services.controller.policy.model import ObjectKey

GONE_MAX = 1024
"""Members that have gone and are still in the order; beyond it they are taken out."""
MANY = 8
"""From an eighth of all members on, those of flipped flocks are found by going through all in their order."""


class Row(msgspec.Struct, eq=False):
    """One subject's row; no body: it is not wanted. ``before``: its body when changes were last taken, if ``is_noted``.

    Held by who changes many at once: to look up ten thousand subjects costs more than what is done with them.
    ``flock``: the one it is a member of; ``part_at``: where in the body that one's part begins.
    """

    subject: str
    body: bytes | None = None
    before: bytes | None = None
    is_noted: bool = False
    flock: Flock | None = None
    part_at: int = 0


class Flock(msgspec.Struct, eq=False):
    """Rows whose bodies have a part in common. ``rows``: None is a member that has no row.

    ``part``: what it is to be; ``written``: what it still is in the bodies. They differ from a flip until changes are
    taken.
    """

    rows: dict[ObjectKey, Row | None] = {}
    part: bytes = b""
    written: bytes = b""


class Flocks:
    """All flocks' members in order, and the flocks that have been flipped."""

    def __init__(self) -> None:
        self._members: list[Row] = []
        self._are_in_order = True
        self._gone = 0
        self._flipped: dict[Flock, None] = {}

    def __len__(self) -> int:
        """Members in order, with those that have gone since it was last made."""
        return len(self._members)

    def adopt(self, flock: Flock, row: Row, body: bytes) -> bytes:
        """A row is written, maybe for the first time, as a member of a flock; -> the body as its flock still has it."""
        if row.flock is None:
            self._members.append(row)
            self._are_in_order = False
        row.flock = flock
        row.part_at = body.index(flock.part)
        return body if flock.part == flock.written else _exchange(body, row.part_at, flock.part, flock.written)

    def abandon(self, row: Row) -> None:
        """A row is gone for good; one that is no member is fine."""
        if row.flock is not None:
            row.flock = None
            self._gone += 1
            if self._gone > GONE_MAX:
                self._put_in_order()

    def flip(self, flocks: Iterable[Flock], part: bytes) -> None:
        """Give all rows of these flocks another part, or flocks without rows their first."""
        for flock in flocks:
            if not flock.written:
                flock.part = flock.written = part
            elif part == flock.written:
                flock.part = flock.written
                self._flipped.pop(flock, None)
            else:
                flock.part = part
                self._flipped[flock] = None

    def pending(self) -> dict[str, bytes]:
        """Subject -> body of the rows whose flip has not been taken."""
        bodies = {}
        for row in self._flipped_rows():
            if row.flock is not None and row.body is not None:
                bodies[row.subject] = _exchange(row.body, row.part_at, row.flock.written, row.flock.part)
        return bodies

    def take(self) -> list[RowChange]:
        """The flips since the last call, by subject, of rows of which nothing else is noted; all have their bodies."""
        changes = []
        for row in self._flipped_rows():
            flock, body, at = row.flock, row.body, row.part_at
            if flock is None or body is None or flock.part is flock.written:
                continue
            part = flock.part
            row.body = body = body[:at] + part + body[at + len(flock.written) :]
            if not row.is_noted:
                changes.append(RowChange(row.subject, body))
        for flock in self._flipped:
            flock.written = flock.part
        self._flipped.clear()
        return changes

    def _flipped_rows(self) -> Iterable[Row]:
        """At least the members of flipped flocks, by subject."""
        if not self._are_many():
            rows = (row for flock in self._flipped for row in flock.rows.values() if row is not None)
            return sorted(rows, key=_subject_of)
        if not self._are_in_order:
            self._put_in_order()
        return self._members

    def _are_many(self) -> bool:
        rows = 0
        for flock in self._flipped:
            rows += len(flock.rows)
            if MANY * rows > len(self):
                return True
        return False

    def _put_in_order(self) -> None:
        """Near-linear: what was in order before is."""
        self._members = [row for row in self._members if row.flock is not None]
        self._members.sort(key=_subject_of)
        self._are_in_order, self._gone = True, 0


def _exchange(body: bytes, at: int, old: bytes, new: bytes) -> bytes:
    return body[:at] + new + body[at + len(old) :]


_subject_of = attrgetter("subject")
