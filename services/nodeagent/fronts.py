"""Services as the programs see them: uniform, empty, too many, or a set whose verdict is worked out beforehand.

Rules of this module: a set belongs to one frontend and its content (a change of backends makes a new set, so that the
frontend flips from one complete set to another); every local egress ruleset has a row for every set, because a missing
row shuts.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from schemas import wire
from schemas.policy import Backend, FrontendRow
from services.nodeagent.classes import TrackedDict
from services.nodeagent.judge import FrontendShape, find_cidr, judge_mixed
from services.nodeagent.numbers import Numbers
from services.nodeagent.tables import FrontendEntry, MixedEntry, Tables

MAX_BACKENDS = 64
"""Distinct (identity, port) of one frontend that are judged together; above, the frontend is denied."""

FrontKey = tuple[str, int, int]
"""(address, protocol, port)"""


class Fronts:
    """Feeds ``frontends`` and ``mixed``."""

    def __init__(
        self,
        numbers: Numbers,
        frontends: TrackedDict[FrontKey, FrontendEntry],
        mixed: TrackedDict[tuple[int, int], MixedEntry],
    ) -> None:
        self._numbers = numbers
        self._frontends = frontends
        self._mixed = mixed
        self._sets: dict[FrontKey, tuple[int, tuple[Backend, ...]]] = {}
        self._rulesets: frozenset[int] = frozenset()
        self._dirty: set[FrontKey] = set()

    def addresses(self) -> set[str]:
        """Every address that a Service stands behind."""
        return {address for address, _, _ in self._frontends}

    def set_frontend(self, key: FrontKey, row: FrontendRow | None) -> None:
        """A frontend's row, or None if it is gone."""
        self._drop_set(key)
        if row is None:
            self._frontends.drop(key)
            return
        self._frontends[key] = self._make_entry(key, row)

    def _drop_set(self, key: FrontKey) -> None:
        old = self._sets.pop(key, None)
        if old is not None:
            for handle in self._rulesets:
                self._mixed.drop((handle, old[0]))
        self._dirty.discard(key)

    def _make_entry(self, key: FrontKey, row: FrontendRow) -> FrontendEntry:
        if not row.backends:
            return FrontendEntry(FrontendShape.EMPTY)
        if len(row.backends) > MAX_BACKENDS:
            return FrontendEntry(FrontendShape.TOO_MANY)
        if len(row.backends) == 1:
            only = row.backends[0]
            return FrontendEntry(FrontendShape.UNIFORM, only.identity, only.port, only.address)
        number = self._numbers.take(_set_key(key, row))
        self._sets[key] = (number, row.backends)
        self._dirty.add(key)
        return FrontendEntry(FrontendShape.MIXED, number)

    def using(self, identities: Set[int]) -> set[FrontKey]:
        """Frontends with a set that one of these identities is in."""
        return {key for key, (_, backends) in self._sets.items() if any(one.identity in identities for one in backends)}

    def judge_sets(self, tables: Tables, rulesets: frozenset[int], changed: Iterable[FrontKey] | None) -> None:
        """Bring ``mixed`` up to date. ``rulesets``: handles of egress; ``changed``: besides new sets, None: all."""
        for handle in self._rulesets - rulesets:
            for number, _ in self._sets.values():
                self._mixed.drop((handle, number))
        added = rulesets - self._rulesets
        again = set(self._sets) if changed is None else self._dirty.union(changed)
        for key, (number, backends) in self._sets.items():
            handles = rulesets if key in again else added
            if not handles:
                continue
            front = find_cidr(tables, key[0])
            for handle in handles:
                self._mixed[(handle, number)] = judge_mixed(tables, handle, key, front, backends)
        self._rulesets = rulesets
        self._dirty.clear()

    def settle(self) -> None:
        """What no frontend uses is gone from the kernel."""
        used = {number for number, _ in self._sets.values()}
        for key in [key for key, number in self._numbers.given.items() if number not in used]:
            self._numbers.release(key)


def _set_key(key: FrontKey, row: FrontendRow) -> str:
    address, protocol, port = key
    return f"{address}-{protocol}-{port}:{wire.hash_content(row)}"
