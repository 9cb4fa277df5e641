"""What a source has said of one kind, so that a new list says only what is different. Pure.

A list after a gap names what is there, never what went: only the difference to what was known tells. An object whose
content is the same is not said again, whatever its resourceVersion: heartbeats of nodes are most of a cluster's events.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.controller.kube_kinds import Item
from services.controller.policy.model import PolicyKey


class Memory:
    """Keys and fingerprints of one kind's objects."""

    def __init__(self) -> None:
        self._known: dict[PolicyKey, int] = {}
        self._listed: dict[PolicyKey, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def begin_list(self) -> None:
        """A list begins; one that was not finished is forgotten."""
        self._listed = {}

    def take_page(self, items: Iterable[Item]) -> list[Item]:
        """Those of the page that are new or different; they count as known when the list ends."""
        changed = []
        for item in items:
            self._listed[item.key] = item.fingerprint
            if self._known.get(item.key) != item.fingerprint:
                changed.append(item)
        return changed

    def end_list(self) -> list[PolicyKey]:
        """What was known and is not in the list: gone."""
        gone = [key for key in self._known if key not in self._listed]
        self._known, self._listed = self._listed, {}
        return gone

    def put(self, item: Item) -> bool:
        """Whether the object is new or different."""
        if self._known.get(item.key) == item.fingerprint:
            return False
        self._known[item.key] = item.fingerprint
        return True

    def drop(self, key: PolicyKey) -> bool:
        """Whether the object was known."""
        return self._known.pop(key, None) is not None
