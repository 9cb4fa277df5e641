"""The wanted rows, and which of them changed since somebody last asked."""

from __future__ import annotations

from collections.abc import Iterable

from services.controller.policy.diff import RowChange, order


class RowStore:
    """Subject -> body. A row that changes and changes back is no change."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}
        self._before: dict[str, bytes | None] = {}

    def put(self, subject: str, body: bytes) -> None:
        old = self.rows.get(subject)
        if old != body:
            self._before.setdefault(subject, old)
            self.rows[subject] = body

    def drop(self, subject: str) -> None:
        """Unknown subjects are fine."""
        old = self.rows.pop(subject, None)
        if old is not None:
            self._before.setdefault(subject, old)

    def replace(self, subjects: Iterable[str], old: bytes, new: bytes) -> None:
        """Put ``new`` where ``old`` stands in the bodies of these rows; rows that are not there are passed over."""
        rows, before = self.rows, self._before
        for subject in subjects:
            body = rows.get(subject)
            if body is not None:
                before.setdefault(subject, body)
                rows[subject] = body.replace(old, new, 1)

    def take_changes(self) -> list[RowChange]:
        """The changes since the last call, in an order that is safe at every prefix."""
        rows = self.rows
        changes = [
            RowChange(subject, body)
            for subject, before in self._before.items()
            if (body := rows.get(subject)) != before
        ]
        self._before.clear()
        return order(changes)
