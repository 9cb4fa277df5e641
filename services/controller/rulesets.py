"""The rulesets of one direction, compiled once for each distinct combination of policies and remembered.

Every accepted change of a policy, or of the numbers behind its named ports, gives it a new version, so that what is
remembered is never wrong. What one tier contributes is remembered apart, because many rulesets share it: an edit of a
policy that governs all pods merges its own tier again, and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field

from schemas.terms import Default, Direction, Tier
from services.controller.policy.compile import BUDGETS, Compiled, Fragment, Part, compile_part, compile_ruleset
from services.controller.policy.model import NamedPort, Policy, PolicyKey
from services.controller.policy.select import Applied, subject_ports

Numbers = tuple[tuple[NamedPort, int], ...]
"""A subject's named ports with their numbers, as far as the policies in question ask."""
Combination = tuple[int, bool, Part, Part, Part]
"""(default, DNS implicit, the part of every tier)."""
Fragments = Callable[[PolicyKey, Direction, Numbers], Fragment]

IDLE_MAX = 256
"""Rulesets remembered beyond twice those in use, for what comes back; beyond it the idle ones are dropped."""


@dataclass
class Versions:
    """Of the policies in force; they only grow. ``last``: the newest of all."""

    of: dict[PolicyKey, int] = field(default_factory=dict)
    last: int = 0

    def renew(self, key: PolicyKey) -> None:
        self.last += 1
        self.of[key] = self.last


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a policy decides where its rules stand: an edit that keeps it moves no policy to another part."""

    tier: Tier
    speaks: bool
    asks: frozenset[NamedPort]

    @classmethod
    def of(cls, policy: Policy, direction: Direction) -> Shape:
        asks = subject_ports(policy) if direction is Direction.INGRESS else ()
        return cls(policy.tier, bool(policy.rules(direction)) or direction in policy.isolates, frozenset(asks))


@dataclass(slots=True, eq=False)
class Outline:
    """One tier of a set of policies; sets that agree in it share it.

    ``keys``: those that say something, in order. ``asks``: the subject's named ports that they ask for. ``parts``: what
    they come to, by these ports' numbers; good for policies no newer than version ``as_of``.
    """

    tier: Tier
    keys: tuple[PolicyKey, ...]
    asks: frozenset[NamedPort]
    parts: dict[Numbers, Part] = field(default_factory=dict)
    as_of: int = 0


class Rulesets:
    """``fragments``: makes and remembers what one policy contributes."""

    def __init__(self, direction: Direction, versions: Versions, fragments: Fragments) -> None:
        self._direction = direction
        self._versions = versions
        self._fragments = fragments
        self._shapes: dict[PolicyKey, Shape] = {}
        self._refused: Container[PolicyKey] = ()
        self._outlines: dict[Applied, tuple[Outline, Outline, Outline]] = {}
        self._shared: dict[tuple[Tier, tuple[PolicyKey, ...]], Outline] = {}
        self._combinations: dict[Combination, Compiled] = {}
        self._remember_max = IDLE_MAX

    def put(self, policy: Policy) -> None:
        """Add or replace a policy."""
        shape = Shape.of(policy, self._direction)
        if self._shapes.get(policy.key) != shape:
            self._shapes[policy.key] = shape
            self._forget_outlines()

    def drop(self, key: PolicyKey) -> None:
        self._shapes.pop(key, None)

    def refuse(self, keys: Container[PolicyKey]) -> None:
        """Leave these out, until said otherwise."""
        self._refused = keys
        self._forget_outlines()

    def find(self, applied: Applied, default: Default, ports: Numbers, *, dns: bool) -> Compiled:
        """The ruleset of pods with these named ports that these policies govern, the refused ones left out."""
        outlines = self._outlines.get(applied)
        if outlines is None:
            outlines = self._outlines[applied] = self._outline(applied)
        admin, network_policy, baseline = outlines
        parts = self._part(admin, ports), self._part(network_policy, ports), self._part(baseline, ports)
        combination = (int(default), dns, *parts)
        compiled = self._combinations.get(combination)
        if compiled is None:
            compiled = compile_ruleset(self._direction, default, *parts, dns_implicit=dns)
            self._combinations[combination] = compiled
        return compiled

    def prune(self, in_use: Container[str]) -> None:
        """Forget rulesets that nobody uses, when there are many."""
        if len(self._combinations) <= self._remember_max:
            return
        self._combinations = {place: each for place, each in self._combinations.items() if each.hash in in_use}
        if len(self._outlines) > self._remember_max:
            self._forget_outlines()
        self._remember_max = 2 * len(self._combinations) + IDLE_MAX

    def _forget_outlines(self) -> None:
        self._outlines.clear()
        self._shared.clear()

    def _outline(self, applied: Applied) -> tuple[Outline, Outline, Outline]:
        found: dict[Tier, list[PolicyKey]] = {tier: [] for tier in BUDGETS}
        for key in sorted(applied):
            if self._shapes[key].speaks and key not in self._refused:
                found[self._shapes[key].tier].append(key)
        admin, network_policy, baseline = (self._share(tier, tuple(keys)) for tier, keys in found.items())
        return admin, network_policy, baseline

    def _share(self, tier: Tier, keys: tuple[PolicyKey, ...]) -> Outline:
        outline = self._shared.get((tier, keys))
        if outline is None:
            asks = frozenset(port for key in keys for port in self._shapes[key].asks)
            outline = self._shared[tier, keys] = Outline(tier, keys, asks)
        return outline

    def _part(self, outline: Outline, ports: Numbers) -> Part:
        if outline.as_of < self._versions.last:
            newest = max(map(self._versions.of.__getitem__, outline.keys), default=0)
            if newest > outline.as_of:
                outline.parts.clear()
            outline.as_of = self._versions.last
        numbers = tuple(pair for pair in ports if pair[0] in outline.asks) if outline.asks else ()
        part = outline.parts.get(numbers)
        if part is None:
            fragments = [self._fragments(key, self._direction, numbers) for key in outline.keys]
            part = outline.parts[numbers] = compile_part(self._direction, outline.tier, fragments)
        return part
