"""The wanted rows, and which of them changed since somebody last asked."""

from __future__ import annotations

from collections.abc import Iterable

from services.controller.flocks import Flock, Flocks, Row
from services.controller.policy.diff import RowChange, order


class RowStore:
    """Subject -> row. A row that changes and changes back is no change."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._noted: list[Row] = []
        self._flocks = Flocks()

    @property
    def rows(self) -> dict[str, bytes]:
        """Subject -> body, of the wanted ones. A copy."""
        bodies = {subject: row.body for subject, row in self._rows.items() if row.body is not None}
        return bodies | self._flocks.pending()

    def at(self, subject: str) -> Row:
        """The row of a subject, an unwanted one if there was none; good until it is dropped."""
        row = self._rows.get(subject)
        if row is None:
            row = self._rows[subject] = Row(subject)
        return row

    def put(self, subject: str, body: bytes) -> None:
        self.write(self.at(subject), body)

    def drop(self, subject: str) -> None:
        """Unknown subjects are fine."""
        row = self._rows.get(subject)
        if row is not None:
            self.write(row, None)

    def write(self, row: Row, body: bytes | None) -> None:
        """Put a row of this store; no body: drop it."""
        if row.body != body:
            if not row.is_noted:
                row.before, row.is_noted = row.body, True
                self._noted.append(row)
            row.body = body

    def write_member(self, flock: Flock, row: Row, body: bytes) -> None:
        """Put a row of this store as one of a flock; its body has the flock's part."""
        self.write(row, self._flocks.adopt(flock, row, body))

    def flip(self, flocks: Iterable[Flock], part: bytes) -> None:
        """Put another part into all rows of these flocks; the first part of those that have no rows yet."""
        self._flocks.flip(flocks, part)

    def take_changes(self) -> list[RowChange]:
        """The changes since the last call, in an order that is safe at every prefix."""
        flips = self._flocks.take()
        changes = []
        for row in self._noted:
            if row.body != row.before:
                changes.append(RowChange(row.subject, row.body))
            row.before, row.is_noted = None, False
            if row.body is None:
                self._flocks.abandon(row)
                del self._rows[row.subject]
        self._noted.clear()
        return order(changes, flips)
