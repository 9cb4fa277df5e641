"""The wanted rows, and which of them changed since somebody last asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.controller.policy.diff import RowChange, order


@dataclass(slots=True, eq=False)
class Row:
    """One subject's row; no body: it is not wanted. ``before``: its body when changes were last taken, if ``is_noted``.

    Held by who changes many at once: to look up ten thousand subjects costs more than what is done with them.
    """

    subject: str
    body: bytes | None = None
    before: bytes | None = None
    is_noted: bool = False


class RowStore:
    """Subject -> row. A row that changes and changes back is no change."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._noted: list[Row] = []

    @property
    def rows(self) -> dict[str, bytes]:
        """Subject -> body, of the wanted ones. A copy."""
        return {subject: row.body for subject, row in self._rows.items() if row.body is not None}

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
            self._note(row)
            row.body = body

    def replace(self, rows: Iterable[Row], old: bytes, new: bytes) -> None:
        """Put ``new`` where ``old`` stands in the bodies of these rows; those that are not wanted are passed over."""
        for row in rows:
            body = row.body
            if body is not None:
                if not row.is_noted:
                    self._note(row)
                row.body = body.replace(old, new, 1)

    def take_changes(self) -> list[RowChange]:
        """The changes since the last call, in an order that is safe at every prefix."""
        changes = []
        for row in self._noted:
            if row.body != row.before:
                changes.append(RowChange(row.subject, row.body))
            row.before, row.is_noted = None, False
            if row.body is None:
                del self._rows[row.subject]
        self._noted.clear()
        return order(changes)

    def _note(self, row: Row) -> None:
        if not row.is_noted:
            row.before, row.is_noted = row.body, True
            self._noted.append(row)
