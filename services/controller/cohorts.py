"""Flocks of endpoints that have the same rulesets; and the rows of rulesets, their peersets and domain patterns.

A *cohort* is asked about once: its flocks' pods are governed by the same policies and have the same default and named
ports. A ruleset is a row as long as some cohort uses it; so is what it refers to.

Deliberately absent: who is in a flock (``endpoints``), what a ruleset is (``rulesets``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from typing import TypeVar

import msgspec

from schemas import wire
from schemas.policy import DomainRow
from schemas.terms import Default, RulesetHash
from services.controller.flocks import Flock, Row
from services.controller.policy.compile import Compiled
from services.controller.policy.model import PolicyKey
from services.controller.policy.select import Applied
from services.controller.rows import RowStore
from services.controller.rulesets import Numbers
from services.controller.rulings import Rulings, Side

T = TypeVar("T")


class Used(msgspec.Struct, eq=False, gc=False):
    """A ruleset that is published. ``users``: how many cohorts; with the last one it goes."""

    compiled: Compiled
    row: Row
    users: int = 0


class Cohort(msgspec.Struct, eq=False):
    """``dns``: whether DNS is implicit. ``reference``: how an endpoint row's body names its rulesets.

    ``left_out``: policies that did not fit the NetworkPolicy tier; of a shadow those under audit only, because what is
    enforced of the others stands beside it.
    """

    applied: Applied
    default: Default
    ports: Numbers
    dns: bool
    egress: Side
    ingress: Side
    reference: bytes
    left_out: frozenset[PolicyKey]
    used: list[Used]
    flocks: dict[Flock, None] = {}


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
        siblings = self._cohorts.setdefault(applied, {})
        cohort = siblings.get((default, ports, dns))
        if cohort is None:
            cohort = siblings[default, ports, dns] = self._make(applied, default, ports, dns=dns)
        if cohort is not former:
            cohort.flocks[flock] = None
            self._rows.flip((flock,), cohort.reference)
            if former is not None:
                self.leave(flock, former)
        return cohort

    def leave(self, flock: Flock, cohort: Cohort) -> None:
        """With the last flock a cohort goes."""
        del cohort.flocks[flock]
        if not cohort.flocks:
            siblings = self._cohorts[cohort.applied]
            del siblings[cohort.default, cohort.ports, cohort.dns]
            if not siblings:
                del self._cohorts[cohort.applied]
                self._rulings.release(cohort.applied)
            self._forget(cohort.used, cohort.left_out)

    def ask_again(self, changed: set[Applied]) -> None:
        """Give the cohorts whose policies say something else their rulesets of today, and flip their flocks."""
        for applied in changed:
            for cohort in self._cohorts.get(applied, {}).values():
                self._ask(cohort)
        self._rulings.prune(self._used)

    def _make(self, applied: Applied, default: Default, ports: Numbers, *, dns: bool) -> Cohort:
        sides = self._rulings.find_rulesets(applied, default, ports, dns=dns)
        left_out = _left_out(sides, self._rulings.audited)
        self._left_out.update(left_out)
        return Cohort(applied, default, ports, dns, *sides, _refer(*sides), left_out, self._publish(sides))

    def _ask(self, cohort: Cohort) -> None:
        sides = self._rulings.find_rulesets(cohort.applied, cohort.default, cohort.ports, dns=cohort.dns)
        reference, left_out = _refer(*sides), _left_out(sides, self._rulings.audited)
        if reference == cohort.reference and left_out == cohort.left_out:
            return
        former = cohort.used, cohort.left_out
        cohort.egress, cohort.ingress = sides
        cohort.reference, cohort.left_out = reference, left_out
        self._left_out.update(left_out)
        cohort.used = self._publish(sides)
        self._rows.flip(cohort.flocks, reference)
        self._forget(*former)

    # -- what cohorts use ---------------------------------------------------------------------------------------------

    def _publish(self, sides: tuple[Side, Side]) -> list[Used]:
        """These rulesets have one user more each: the first one brings the rows."""
        return [self._use(compiled) for side in sides for compiled in (side.enforced, side.shadow) if compiled]

    def _use(self, compiled: Compiled) -> Used:
        used = self._used.get(compiled.hash)
        if used is None:
            used = self._used[compiled.hash] = self._bring(compiled)
        used.users += 1
        return used

    def _forget(self, rulesets: list[Used], left_out: frozenset[PolicyKey]) -> None:
        """These have one user less: with the last one their rows go."""
        for key in left_out:
            _is_last(self._left_out, key)
        for used in rulesets:
            used.users -= 1
            if not used.users:
                del self._used[used.compiled.hash]
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


def _left_out(sides: tuple[Side, Side], audited: Container[PolicyKey]) -> frozenset[PolicyKey]:
    found: set[PolicyKey] = set()
    for side in sides:
        found.update(side.enforced.left_out)
        if side.shadow is not None:
            found.update(key for key in side.shadow.left_out if key in audited)
    return frozenset(found)


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
