"""Flocks of endpoints that have the same rulesets; and the rows of rulesets, their peersets and domain patterns.

A *cohort* is asked about once: its flocks' pods are governed by the same policies and have the same default and named
ports. A ruleset is a row as long as some cohort uses it; so is what it refers to.

Deliberately absent: who is in a flock (``endpoints``), what a ruleset is (``rulesets``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from schemas import wire
from schemas.policy import DomainRow
from schemas.terms import Default, Direction, RulesetHash
from services.controller.flocks import Brand, Flock, Row
from services.controller.policy.compile import Compiled
from services.controller.policy.model import PolicyKey
from services.controller.policy.select import Applied
from services.controller.rows import RowStore
from services.controller.rulesets import Numbers
from services.controller.rulings import Rulings, Side

T = TypeVar("T")
DIRECTIONS = tuple(Direction)
"""An enumeration is slow to go through, and this is done for every cohort."""


class Used(msgspec.Struct, eq=False, gc=False):
    """A ruleset that is published. ``users``: how many sides of cohorts; with the last one it goes."""

    compiled: Compiled
    row: Row
    users: int = 0


@dataclass(slots=True, eq=False)
class Cohort:
    """``dns``: whether DNS is implicit. ``sides``: of each direction. ``brand``: how an endpoint row's body names their
    rulesets, and whose rows do.

    ``left_out``: policies that did not fit the NetworkPolicy tier; of a shadow those under audit only, because what is
    enforced of the others stands beside it.
    """

    applied: Applied
    default: Default
    ports: Numbers
    dns: bool
    sides: list[Side]
    brand: Brand
    left_out: frozenset[PolicyKey]


class Cohorts:
    """The cohorts that have a flock."""

    def __init__(self, rows: RowStore, rulings: Rulings) -> None:
        self._rows = rows
        self._rulings = rulings
        self._cohorts: dict[Applied, dict[tuple[Default, Numbers, bool], Cohort]] = {}
        self._used: dict[RulesetHash, Used] = {}
        self._peersets: Counter[str] = Counter()
        self._patterns: Counter[str] = Counter()
        self._left_out: Counter[PolicyKey] = Counter()

    @property
    def left_out(self) -> list[PolicyKey]:
        """The policies that did not fit the NetworkPolicy tier of some ruleset in use, in order."""
        return sorted(self._left_out)

    def join(
        self, flock: Flock, former: Cohort | None, applied: Applied, default: Default, ports: Numbers, *, dns: bool
    ) -> Cohort:
        """Bring a flock into the cohort where it belongs, out of its former one."""
        siblings = self._cohorts.get(applied)
        if siblings is None:
            siblings = self._cohorts[applied] = {}
        cohort = siblings.get((default, ports, dns))
        if cohort is None:
            cohort = siblings[default, ports, dns] = self._make(applied, default, ports, dns=dns)
        if cohort is not former:
            self._rows.mark(flock, cohort.brand)
            if former is not None:
                self._end_if_empty(former)
        return cohort

    def leave(self, flock: Flock, cohort: Cohort) -> None:
        """A flock is no more; with the last one a cohort goes."""
        del cohort.brand.flocks[flock]
        self._end_if_empty(cohort)

    def _end_if_empty(self, cohort: Cohort) -> None:
        if not cohort.brand.flocks:
            siblings = self._cohorts[cohort.applied]
            del siblings[cohort.default, cohort.ports, cohort.dns]
            if not siblings:
                del self._cohorts[cohort.applied]
                self._rulings.release(cohort.applied)
            self._count_out(cohort.left_out)
            for side in cohort.sides:
                self._forget(side)

    def ask_again(self, changed: Mapping[Direction, Iterable[Applied]]) -> None:
        """Give the cohorts whose policies say something else their rulesets of today, and flip their flocks."""
        for direction, sets in changed.items():
            for applied in sets:
                for cohort in self._cohorts.get(applied, {}).values():
                    self._ask(cohort, direction)
        self._rulings.prune()

    def _make(self, applied: Applied, default: Default, ports: Numbers, *, dns: bool) -> Cohort:
        sides = [self._rulings.find_side(each, applied, default, ports, dns=dns) for each in DIRECTIONS]
        left_out = _left_out(sides, self._rulings.audited)
        if left_out:
            self._left_out.update(left_out)
        for side in sides:
            self._use(side)
        return Cohort(applied, default, ports, dns, sides, Brand.of(_refer(*sides)), left_out)

    def _ask(self, cohort: Cohort, direction: Direction) -> None:
        """What is new comes before what was goes: a ruleset that stays in use is no row that went."""
        old = cohort.sides[direction]
        new = self._rulings.find_side(direction, cohort.applied, cohort.default, cohort.ports, dns=cohort.dns)
        if new.shadow is None and new.is_like(old):
            return
        self._use(new)
        cohort.sides[direction] = new
        self._renew_left_out(cohort)
        self._rows.flip(cohort.brand, _refer(*cohort.sides))
        self._forget(old)

    def _renew_left_out(self, cohort: Cohort) -> None:
        left_out = _left_out(cohort.sides, self._rulings.audited)
        if left_out != cohort.left_out:
            self._left_out.update(left_out)
            self._count_out(cohort.left_out)
            cohort.left_out = left_out

    def _count_out(self, left_out: frozenset[PolicyKey]) -> None:
        for key in left_out:
            _is_last(self._left_out, key)

    # -- what cohorts use ---------------------------------------------------------------------------------------------

    def _use(self, side: Side) -> None:
        """A side's rulesets have one user more each: the first one brings the rows."""
        for compiled in side.rulesets():
            used = self._used.get(compiled.hash)
            if used is None:
                used = self._used[compiled.hash] = self._bring(compiled)
            used.users += 1

    def _forget(self, side: Side) -> None:
        """They have one user less: with the last one their rows go."""
        for compiled in side.rulesets():
            used = self._used[compiled.hash]
            used.users -= 1
            if not used.users:
                del self._used[compiled.hash]
                self._take_away(used)

    def _bring(self, compiled: Compiled) -> Used:
        row = self._rows.at(wire.subject_ruleset(compiled.hash))
        self._rows.write(row, compiled.body)
        for digest, body in compiled.peersets.items():
            self._peersets[digest] += 1
            self._rows.put(wire.subject_peerset(digest), body)
        for pattern in compiled.patterns:
            self._patterns[pattern] += 1
            self._rows.put(wire.subject_domain(pattern), wire.encode(DomainRow(pattern=pattern)))
        return Used(compiled, row)

    def _take_away(self, used: Used) -> None:
        self._rows.write(used.row, None)
        for digest in used.compiled.peersets:
            if _is_last(self._peersets, digest):
                self._rows.drop(wire.subject_peerset(digest))
        for pattern in used.compiled.patterns:
            if _is_last(self._patterns, pattern):
                self._rows.drop(wire.subject_domain(pattern))


def _is_last(users: Counter[T], name: T) -> bool:
    """Count one user less; whether nobody is left."""
    users[name] -= 1
    if users[name]:
        return False
    del users[name]
    return True


_NOTHING: frozenset[PolicyKey] = frozenset()


def _left_out(sides: Iterable[Side], audited: Container[PolicyKey]) -> frozenset[PolicyKey]:
    found = _NOTHING
    for side in sides:
        found = found.union(side.enforced.left_out) if side.enforced.left_out else found
        if side.shadow is not None:
            found = found.union(key for key in side.shadow.left_out if key in audited)
    return found


def name_shadow(side: Side) -> RulesetHash:
    """Empty: there is none."""
    return side.shadow.hash if side.shadow is not None else RulesetHash("")


def _refer(egress: Side, ingress: Side) -> bytes:
    """As an endpoint row's body has it, field names and quotes included, so that nothing else in it looks so."""
    text = b'"egress":"%b","ingress":"%b"' % (egress.enforced.hash.encode(), ingress.enforced.hash.encode())
    for name, side in ((b"egress", egress), (b"ingress", ingress)):
        if side.shadow is not None:
            text += b',"%b_shadow":"%b"' % (name, side.shadow.hash.encode())
    return text
