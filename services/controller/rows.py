"""The wanted rows, and which of them changed since somebody last asked."""

from __future__ import annotations

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

    def take_changes(self) -> list[RowChange]:
        """The changes since the last call, in an order that is safe at every prefix."""
        changes = [
            RowChange(subject, self.rows.get(subject))
            for subject, before in self._before.items()
            if self.rows.get(subject) != before
        ]
        self._before.clear()
        return order(changes)
