"""Policies in force: which govern whom, what their named ports stand for, which do not fit; and the rulesets of both.

A policy event concerns the profiles that the policy governs; a pod event usually finds its rulesets made. Versions
stand for content: every accepted change of a policy, or of the numbers behind its named ports, is a new one.

Pods that a policy under audit governs have two rulesets a direction: one as if there were no such policy, which is
enforced, and one with all of them, its *shadow*. Where the two are the same there is one. What does not fit is decided
for either by itself, so that no policy under audit crowds out another.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from schemas.policy import PodPeer
from schemas.terms import Default, Direction, Tier
from services.controller.facts import Facts
from services.controller.policy.compile import (
    BUDGETS,
    Compiled,
    Fragment,
    compile_policy,
    fit,
)
from services.controller.policy.model import NamedPort, Policy, PolicyKey
from services.controller.policy.select import (
    Applied,
    Named,
    Profile,
    Selection,
    named_by,
    peer_ports,
    pod_peers,
    port_places,
    subject_ports,
)
from services.controller.rulesets import Numbers, Rulesets, Versions

ORDERED_TIERS = (Tier.ADMIN, Tier.BASELINE)
BEYOND_PORTS = 1 << 16
"""Numbers from here on are no ports: stand-ins for names that no subject has resolved."""


@dataclass(frozen=True, slots=True)
class Side:
    """The rulesets of one direction. ``shadow``: with the policies under audit, where that is another one."""

    enforced: Compiled
    shadow: Compiled | None = None


class Rulings:
    """``stale``: profiles whose rulesets must be asked for again; who handles them clears it."""

    def __init__(self, facts: Facts) -> None:
        self.selection = Selection()
        self.policies: dict[PolicyKey, Policy] = {}
        self.stale: set[Profile] = set()
        self.refused: frozenset[PolicyKey] = frozenset()
        """Admin and Baseline policies that do not fit some pod's budget, those under audit not counted in."""
        self.audited: set[PolicyKey] = set()
        self._refused_in_full: frozenset[PolicyKey] = frozenset()
        """Those under audit counted in: a superset, because more policies only fill a tier sooner."""
        self._facts = facts
        self._versions = Versions()
        self._numbers: dict[PolicyKey, dict[NamedPort, tuple[tuple[int, ...], ...]]] = {}
        self._asking: dict[tuple[NamedPort, str], set[PolicyKey]] = {}
        self._named: dict[PolicyKey, Named] = {}
        self._fragments: dict[PolicyKey, dict[tuple[Direction, Numbers], Fragment]] = {}
        self._rulesets = {each: Rulesets(each, self._versions, self._fragment) for each in Direction}
        self._stand_ins: dict[NamedPort, int] = {}
        self._weighed: frozenset[frozenset[PolicyKey]] | None = None
        self._can_overflow: bool | None = None

    # -- events -------------------------------------------------------------------------------------------------------

    def put(self, policy: Policy) -> None:
        self._unindex(policy.key)
        self.policies[policy.key] = policy
        self.audited.discard(policy.key)
        if policy.is_audited:
            self.audited.add(policy.key)
        for place in port_places(policy):
            self._asking.setdefault(place, set()).add(policy.key)
        self._renew(policy.key)
        self._named[policy.key] = named_by(policy)
        for rulesets in self._rulesets.values():
            rulesets.put(policy)
        self._numbers[policy.key] = self._resolve(policy)
        self.stale |= self.selection.put(policy)

    def drop(self, key: PolicyKey) -> None:
        self._unindex(key)
        if self.policies.pop(key, None) is not None:
            self.audited.discard(key)
            self.stale |= self.selection.remove(key)
            for memory in (self._versions.of, self._numbers, self._named, self._fragments):
                memory.pop(key, None)
            for rulesets in self._rulesets.values():
                rulesets.drop(key)
            self._weighed = self._can_overflow = None

    def relabel(self, namespace: str) -> None:
        """A namespace appeared or changed its labels."""
        self.stale |= self.selection.relabel(namespace, self._facts.namespace_labels(namespace))
        self.renumber({(port, namespace) for port, _ in self._asking})

    def renumber(self, places: Iterable[tuple[NamedPort, str]]) -> None:
        """Pods of these namespaces with these ports came, went or changed: look again what the names stand for."""
        wanted = {wide for port, namespace in places for wide in ((port, namespace), (port, ""))}
        asking = {key for place in wanted for key in self._asking.get(place, ())}
        for key in asking:
            numbers = self._resolve(self.policies[key])
            if numbers != self._numbers[key]:
                self._numbers[key] = numbers
                self._renew(key)
                self.stale |= self.selection.profiles_of(key)

    def named(self) -> Named:
        """What identities must tell apart for the policies in force."""
        named = Named()
        for each in self._named.values():
            named.pods.update(each.pods)
            named.nodes.update(each.nodes)
            named.ports.update(each.ports)
        return named

    def prune(self, in_use: Container[str]) -> None:
        """Forget rulesets that nobody uses, when there are many."""
        for rulesets in self._rulesets.values():
            rulesets.prune(in_use)

    # -- answers ------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Decide which Admin and Baseline policies do not fit; those of a pod that overflows are refused for all."""
        if self._can_overflow is None:
            self._can_overflow = self._is_crowded()
        sets = frozenset(self.selection.applied_sets()) if self._can_overflow else frozenset()
        if sets == self._weighed:
            return
        self._weighed = sets
        in_full = frozenset(key for applied in sets for key in self._overflow(applied))
        refused = in_full
        if self.audited:
            refused = frozenset(key for applied in sets for key in self._overflow(applied - self.audited))
        for key in (refused ^ self.refused) | (in_full ^ self._refused_in_full):
            self.stale |= self.selection.profiles_of(key)
        self._refused_in_full = in_full
        if refused != self.refused:
            self.refused = refused
            for rulesets in self._rulesets.values():
                rulesets.refuse(refused)

    def unfit(self) -> list[PolicyKey]:
        """Admin and Baseline policies that are in no ruleset at all, in order."""
        return sorted(self.refused | (self._refused_in_full & self.audited))

    def find_rulesets(self, applied: Applied, default: Default, ports: Numbers, *, dns: bool) -> tuple[Side, Side]:
        """Egress and ingress of pods with these named ports that these policies govern."""
        told_apart = self.audited | (self._refused_in_full - self.refused)
        if applied.isdisjoint(told_apart):
            egress, ingress = self._rulesets[Direction.EGRESS], self._rulesets[Direction.INGRESS]
            return (
                Side(egress.find(applied, default, (), dns=dns)),
                Side(ingress.find(applied, default, ports, dns=dns)),
            )
        egress_side = self._find_both(Direction.EGRESS, applied, default, (), dns=dns)
        return egress_side, self._find_both(Direction.INGRESS, applied, default, ports, dns=dns)

    def _find_both(
        self, direction: Direction, applied: Applied, default: Default, ports: Numbers, *, dns: bool
    ) -> Side:
        """A default of audit stands in the shadow alone: what is enforced beside one lets pass what no rule decides."""
        rulesets, enforced = self._rulesets[direction], applied - self.audited
        full = rulesets.find(applied - self._refused_in_full, default, ports, dns=dns)
        if full.hash == rulesets.find(enforced, default, ports, dns=dns).hash:
            return Side(full)
        without = Default.ALLOW if default is Default.AUDIT else default
        return Side(rulesets.find(enforced, without, ports, dns=dns), full)

    def _fragment(self, key: PolicyKey, direction: Direction, numbers: Numbers) -> Fragment:
        fragments = self._fragments.setdefault(key, {})
        fragment = fragments.get((direction, numbers))
        if fragment is None:
            known = dict(numbers)

            def find(port: NamedPort, peers: Sequence[PodPeer]) -> Iterable[int]:
                if direction is Direction.EGRESS:
                    return self._facts.numbers_of(port, peers)
                return [known[port]] if port in known else []

            fragment = fragments[direction, numbers] = compile_policy(self.policies[key], direction, find)
        return fragment

    def _is_crowded(self) -> bool:
        """Whether any pod could overflow: more rules than a tier holds, or named ports that multiply them."""
        for tier in ORDERED_TIERS:
            policies = [policy for policy in self.policies.values() if policy.tier is tier]
            if any(peer_ports(policy) for policy in policies):
                return True
            if any(sum(len(each.rules(direction)) for each in policies) > BUDGETS[tier] for direction in Direction):
                return True
        return False

    def _overflow(self, applied: frozenset[PolicyKey]) -> Iterable[PolicyKey]:
        for tier in ORDERED_TIERS:
            keys = [key for key in applied if self.policies[key].tier is tier]
            for direction in Direction:
                # A rule is at least one bit, so few rules cannot overflow unless named ports multiply them.
                rules = sum(len(self.policies[key].rules(direction)) for key in keys)
                if rules <= BUDGETS[tier] and not any(peer_ports(self.policies[key]) for key in keys):
                    continue
                _, left_out = fit([self._widest(key, direction) for key in keys], tier)
                yield from (each.policy.key for each in left_out)

    def _widest(self, key: PolicyKey, direction: Direction) -> Fragment:
        """A fragment with as many bits as any subject may make of it: each named port is a number of its own."""
        if direction is Direction.EGRESS:
            return self._fragment(key, direction, ())
        ports = sorted(subject_ports(self.policies[key]))
        stand_ins = [self._stand_ins.setdefault(port, BEYOND_PORTS + len(self._stand_ins)) for port in ports]
        return self._fragment(key, direction, tuple(zip(ports, stand_ins, strict=True)))

    def _resolve(self, policy: Policy) -> dict[NamedPort, tuple[tuple[int, ...], ...]]:
        """What each named port of the egress rules stands for today, rule by rule."""
        return {
            port: tuple(
                tuple(sorted(self._facts.numbers_of(port, pod_peers(rule.peers) or [PodPeer()])))
                for rule in policy.egress
                if port in rule.ports
            )
            for port in peer_ports(policy)
        }

    def _renew(self, key: PolicyKey) -> None:
        self._versions.renew(key)
        self._fragments.pop(key, None)
        self._weighed = self._can_overflow = None

    def _unindex(self, key: PolicyKey) -> None:
        old = self.policies.get(key)
        if old is not None:
            for place in port_places(old):
                self._asking[place].discard(key)
                if not self._asking[place]:
                    del self._asking[place]
