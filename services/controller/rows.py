"""The wanted rows, and which of them changed since somebody last asked."""

from __future__ import annotations

from services.controller.flocks import Brand, Flock, Flocks, Row
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
        bodies = ((subject, self._body_of(row)) for subject, row in self._rows.items())
        return {subject: body for subject, body in bodies if body is not None}

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
        """Put a row of this store by itself; no body: drop it."""
        if row.is_member:
            self._note(row, self._flocks.told(row))
            self._flocks.abandon(row)
        elif row.body != body:
            self._note(row, row.body)
        row.body = body

    def write_member(self, flock: Flock, row: Row, body: bytes) -> None:
        """Put a row of this store as one of a flock; its body has the flock's part."""
        if not self._flocks.holds(flock, row, body):
            self._note(row, self._flocks.told(row) if row.is_member else row.body)
            self._flocks.adopt(flock, row, body)

    def flip(self, brand: Brand, part: bytes) -> None:
        """Make a brand another part, in all rows that bear it."""
        self._flocks.flip(brand, part)

    def mark(self, flock: Flock, brand: Brand) -> None:
        """Give a flock another brand, or its first."""
        self._flocks.mark(flock, brand)

    def take_changes(self) -> list[RowChange]:
        """The changes since the last call, in an order that is safe at every prefix."""
        flips = self._flocks.take()
        changes, apart = [], set()
        for row in self._noted:
            body = row.body
            if row.is_member:
                body = self._flocks.body_of(row)
                apart.add(row.subject)
            if body != row.before:
                changes.append(RowChange(row.subject, body))
            row.before, row.is_noted = None, False
            if body is None:
                del self._rows[row.subject]
        self._noted.clear()
        if apart:
            flips = [change for change in flips if change.subject not in apart]
        return order(changes, flips)

    def _note(self, row: Row, before: bytes | None) -> None:
        """Something has come over a row that was so when changes were last taken, unless it is noted already."""
        if not row.is_noted:
            row.before, row.is_noted = before, True
            self._noted.append(row)

    def _body_of(self, row: Row) -> bytes | None:
        return self._flocks.body_of(row) if row.is_member else row.body
