"""The rulesets of one direction, compiled once for each distinct combination of policies and remembered.

What one tier contributes is remembered apart, because many rulesets share it. Every accepted change of a policy, or of
the numbers behind its named ports, *renews* it: the tiers that hold it are merged again, and no other. One that comes
out as it was stays what it was; the sets of policies whose tiers did not are *changed*, and must be asked about again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from schemas.terms import Default, Direction, Tier
from services.controller.marks import Marks
from services.controller.policy.compile import BUDGETS, Compiled, Fragment, Part, compile_part, compile_ruleset
from services.controller.policy.model import NamedPort, Policy, PolicyKey
from services.controller.policy.select import Applied, subject_ports

Numbers = tuple[tuple[NamedPort, int], ...]
"""A subject's named ports with their numbers, as far as the policies in question ask."""
Fragments = Callable[[PolicyKey, Direction, Numbers], Fragment]

IDLE_MAX = 256
"""Sets of policies remembered beyond twice those in use, for what comes back; the idle beyond go."""


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
    """One tier of a set of policies; sets that agree in it share it. ``stacks``: of those sets.

    ``keys``: those that say something, in order. ``asks``: the subject's named ports that they ask for. ``parts``: what
    they come to, by these ports' numbers.
    """

    tier: Tier
    keys: tuple[PolicyKey, ...]
    asks: frozenset[NamedPort]
    parts: dict[Numbers, Part] = field(default_factory=dict)
    stacks: dict[Stack, None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Stack:
    """All tiers of these sets of policies. ``found``: its rulesets, by the numbers of the named ports it asks for."""

    outlines: tuple[Outline, ...]
    asks: frozenset[NamedPort]
    applied: dict[Applied, None] = field(default_factory=dict)
    found: dict[tuple[Default, bool, Numbers], Compiled] = field(default_factory=dict)


class Rulesets:
    """``fragments``: makes and remembers what one policy contributes."""

    def __init__(self, direction: Direction, fragments: Fragments) -> None:
        self._direction = direction
        self._fragments = fragments
        self._shapes: dict[PolicyKey, Shape] = {}
        self._refused: frozenset[PolicyKey] = frozenset()
        self._stacks: dict[Applied, Stack] = {}
        self._shared: dict[tuple[Outline, ...], Stack] = {}
        self._idle: dict[Applied, None] = {}
        self._outlines: dict[tuple[Tier, tuple[PolicyKey, ...]], Outline] = {}
        self._holding: dict[PolicyKey, dict[Outline, None]] = {}
        self._stale: dict[Outline, None] = {}
        self._changed: Marks[Applied] = Marks()

    def put(self, policy: Policy) -> None:
        """Add or replace a policy."""
        shape = Shape.of(policy, self._direction)
        if self._shapes.get(policy.key) != shape:
            self._shapes[policy.key] = shape
            self._reshape(policy.key)
        self.renew(policy.key)

    def drop(self, key: PolicyKey) -> None:
        if self._shapes.pop(key, None) is not None:
            self._reshape(key)

    def renew(self, key: PolicyKey) -> None:
        """What a policy contributes may be something else now."""
        self._stale.update(self._holding.get(key, {}))

    def refuse(self, keys: frozenset[PolicyKey]) -> None:
        """Leave these out, until said otherwise."""
        before, self._refused = self._refused, keys
        for key in keys ^ before:
            self._reshape(key)

    def take_changed(self) -> Marks[Applied]:
        """The sets of policies whose rulesets may have changed since the last call. To be called before ``find``."""
        for outline in self._stale:
            if self._remake(outline):
                for stack in outline.stacks:
                    stack.found.clear()
                    self._changed.update(stack.applied)
        self._stale.clear()
        changed, self._changed = self._changed, Marks()
        return changed

    def find(self, applied: Applied, default: Default, ports: Numbers, *, dns: bool) -> Compiled:
        """The ruleset of pods with these named ports that these policies govern, the refused ones left out."""
        stack = self._stacks.get(applied)
        if stack is None:
            stack = self._stacks[applied] = self._stack(applied)
        elif applied in self._idle:
            del self._idle[applied]
        numbers = _asked_of(ports, stack.asks)
        compiled = stack.found.get((default, dns, numbers))
        if compiled is None:
            compiled = stack.found[default, dns, numbers] = self._compile(stack, default, numbers, dns=dns)
        return compiled

    def release(self, applied: Applied) -> None:
        """Nobody is governed by just these any more."""
        if applied in self._stacks:
            self._idle[applied] = None

    def prune(self) -> None:
        """Forget sets of policies that govern nobody, when there are many."""
        while 2 * len(self._idle) > len(self._stacks) + IDLE_MAX:
            self._detach(next(iter(self._idle)))

    def _reshape(self, key: PolicyKey) -> None:
        """Where a policy's rules stand is another place now: what holds it is outlined anew."""
        for applied in [each for each in self._stacks if key in each]:
            self._detach(applied)
            self._changed.add(applied)

    def _detach(self, applied: Applied) -> None:
        self._idle.pop(applied, None)
        stack = self._stacks.pop(applied)
        del stack.applied[applied]
        if not stack.applied:
            del self._shared[stack.outlines]
            for outline in stack.outlines:
                del outline.stacks[stack]
                if not outline.stacks:
                    self._remove(outline)

    def _remove(self, outline: Outline) -> None:
        del self._outlines[outline.tier, outline.keys]
        self._stale.pop(outline, None)
        for key in outline.keys:
            del self._holding[key][outline]

    def _stack(self, applied: Applied) -> Stack:
        found: dict[Tier, list[PolicyKey]] = {tier: [] for tier in BUDGETS}
        for key in sorted(applied):
            if self._shapes[key].speaks and key not in self._refused:
                found[self._shapes[key].tier].append(key)
        outlines = tuple([self._share(tier, tuple(keys)) for tier, keys in found.items()])
        stack = self._shared.get(outlines)
        if stack is None:
            asks = frozenset(port for outline in outlines for port in outline.asks)
            stack = self._shared[outlines] = Stack(outlines, asks)
            for outline in outlines:
                outline.stacks[stack] = None
        stack.applied[applied] = None
        return stack

    def _share(self, tier: Tier, keys: tuple[PolicyKey, ...]) -> Outline:
        outline = self._outlines.get((tier, keys))
        if outline is None:
            asks = frozenset(port for key in keys for port in self._shapes[key].asks)
            outline = self._outlines[tier, keys] = Outline(tier, keys, asks)
            for key in keys:
                self._holding.setdefault(key, {})[outline] = None
        return outline

    def _compile(self, stack: Stack, default: Default, numbers: Numbers, *, dns: bool) -> Compiled:
        admin, network_policy, baseline = [self._part(outline, numbers) for outline in stack.outlines]
        return compile_ruleset(self._direction, default, admin, network_policy, baseline, dns_implicit=dns)

    def _part(self, outline: Outline, ports: Numbers) -> Part:
        numbers = _asked_of(ports, outline.asks)
        part = outline.parts.get(numbers)
        if part is None:
            part = outline.parts[numbers] = self._compile_part(outline, numbers)
        return part

    def _remake(self, outline: Outline) -> bool:
        """Merge a tier again; whether it came out as something else. By numbers it is merged when somebody asks."""
        former = outline.parts.pop((), None)
        outline.parts.clear()
        if former is None or outline.asks:
            return True
        part = self._compile_part(outline, ())
        is_changed = not former.is_like(part)
        outline.parts[()] = part if is_changed else former
        return is_changed

    def _compile_part(self, outline: Outline, numbers: Numbers) -> Part:
        fragments = [self._fragments(key, self._direction, numbers) for key in outline.keys]
        return compile_part(self._direction, outline.tier, fragments)


def _asked_of(ports: Numbers, asks: frozenset[NamedPort]) -> Numbers:
    return tuple([pair for pair in ports if pair[0] in asks]) if asks else ()
