"""Policies in force: which govern whom, what their named ports stand for, which do not fit; and the rulesets of both.

A policy event concerns the profiles that the policy governs; a pod event usually finds its rulesets made.

Pods that a policy under audit governs have two rulesets a direction: one as if there were no such policy, which is
enforced, and one with all of them, its *shadow*. Where the two are the same there is one. What does not fit is decided
for either by itself, so that no policy under audit crowds out another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

import msgspec

from schemas.policy import PodPeer
from schemas.terms import Default, Direction, Tier
from services.controller.facts import Facts
from services.controller.marks import Marks
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
    Governed,
    Named,
    Selection,
    named_by,
    peer_ports,
    pod_peers,
    port_places,
    subject_ports,
)
from services.controller.rulesets import Numbers, Rulesets

ORDERED_TIERS = (Tier.ADMIN, Tier.BASELINE)
BEYOND_PORTS = 1 << 16
"""Numbers from here on are no ports: stand-ins for names that no subject has resolved."""


class Side(msgspec.Struct, frozen=True, gc=False):
    """The rulesets of one direction. ``shadow``: with the policies under audit, where that is another one."""

    enforced: Compiled
    shadow: Compiled | None = None

    def is_like(self, other: Side) -> bool:
        """Whether the rulesets are the same ones."""
        return self.enforced is other.enforced and self.shadow is other.shadow

    def rulesets(self) -> tuple[Compiled, ...]:
        return (self.enforced,) if self.shadow is None else (self.enforced, self.shadow)


class Rulings:
    """``stale``: profiles that other policies govern now; who handles them clears it."""

    def __init__(self, facts: Facts) -> None:
        self.selection = Selection()
        self.policies: dict[PolicyKey, Policy] = {}
        self.stale: Marks[Governed] = Marks()
        self.refused: frozenset[PolicyKey] = frozenset()
        """Admin and Baseline policies that do not fit some pod's budget, those under audit not counted in."""
        self.audited: set[PolicyKey] = set()
        self._refused_in_full: frozenset[PolicyKey] = frozenset()
        """Those under audit counted in: a superset, because more policies only fill a tier sooner."""
        self._retold: set[PolicyKey] = set()
        """Policies that were told apart from the others and are no longer, or the other way round."""
        self._asks: dict[Applied, tuple[Applied, ...]] = {}
        self._asked_by: dict[Applied, Marks[Applied]] = {}
        self._facts = facts
        self._numbers: dict[PolicyKey, dict[NamedPort, tuple[tuple[int, ...], ...]]] = {}
        self._asking: dict[tuple[NamedPort, str], set[PolicyKey]] = {}
        self._named_by: dict[PolicyKey, Named] = {}
        self._named: Named | None = None
        self._fragments: dict[PolicyKey, dict[tuple[Direction, Numbers], Fragment]] = {}
        self._rulesets = {each: Rulesets(each, self._fragment) for each in Direction}
        self._stand_ins: dict[NamedPort, int] = {}
        self._weighed: frozenset[frozenset[PolicyKey]] | None = None
        self._can_overflow: bool | None = None

    # -- events -------------------------------------------------------------------------------------------------------

    def put(self, policy: Policy) -> None:
        self._unindex(policy.key)
        self.policies[policy.key] = policy
        if policy.is_audited != (policy.key in self.audited):
            self.audited ^= {policy.key}
            self._retold.add(policy.key)
        for place in port_places(policy):
            self._asking.setdefault(place, set()).add(policy.key)
        self._renew(policy.key)
        self._name(policy.key, named_by(policy))
        for rulesets in self._rulesets.values():
            rulesets.put(policy)
        self._numbers[policy.key] = self._resolve(policy)
        self.stale.add_all(self.selection.put(policy))

    def drop(self, key: PolicyKey) -> None:
        self._unindex(key)
        if self.policies.pop(key, None) is not None:
            self.audited.discard(key)
            self.stale.add_all(self.selection.remove(key))
            self._numbers.pop(key, None)
            self._fragments.pop(key, None)
            self._name(key, None)
            for rulesets in self._rulesets.values():
                rulesets.drop(key)
            self._weighed = self._can_overflow = None

    def relabel(self, namespace: str) -> None:
        """A namespace appeared or changed its labels."""
        self.stale.add_all(self.selection.relabel(namespace, self._facts.namespace_labels(namespace)))
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

    def named(self) -> Named:
        """What identities must tell apart for the policies in force."""
        if self._named is None:
            self._named = Named()
            for each in self._named_by.values():
                self._named.pods.update(each.pods)
                self._named.nodes.update(each.nodes)
                self._named.ports.update(each.ports)
        return self._named

    def take_changed(self) -> dict[Direction, Marks[Applied]]:
        """The sets of policies whose rulesets may have changed since the last call. To be called before asking."""
        retold = [applied for applied in self._asks if not applied.isdisjoint(self._retold)] if self._retold else []
        self._retold.clear()
        changed = {}
        for direction, rulesets in self._rulesets.items():
            changed[direction] = Marks[Applied]()
            for asked in rulesets.take_changed():
                changed[direction].update(self._asked_by.get(asked, {}))
            changed[direction].add_all(retold)
        return changed

    def release(self, applied: Applied) -> None:
        """No group is governed by just these any more."""
        for asked in set(self._asks.pop(applied, ())):
            self._cease(applied, asked)

    def prune(self) -> None:
        """Forget sets of policies that govern nobody, when there are many."""
        for rulesets in self._rulesets.values():
            rulesets.prune()

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
        self._retold |= (refused ^ self.refused) | (in_full ^ self._refused_in_full)
        self._refused_in_full = in_full
        if refused != self.refused:
            self.refused = refused
            for rulesets in self._rulesets.values():
                rulesets.refuse(refused)

    def unfit(self) -> list[PolicyKey]:
        """Admin and Baseline policies that are in no ruleset at all, in order."""
        return sorted(self.refused | (self._refused_in_full & self.audited))

    def find_side(self, direction: Direction, applied: Applied, default: Default, ports: Numbers, *, dns: bool) -> Side:
        """What pods with these named ports that these policies govern have in one direction."""
        numbers = ports if direction is Direction.INGRESS else ()
        if applied.isdisjoint(self._told_apart()):
            self._ask(applied, (applied,))
            return Side(self._rulesets[direction].find(applied, default, numbers, dns=dns))
        full, enforced = applied - self._refused_in_full, applied - self.audited
        self._ask(applied, (full, enforced))
        return self._find_both(direction, full, enforced, default, numbers, dns=dns)

    def _told_apart(self) -> Set[PolicyKey]:
        """The policies beside which pods may have a shadow. Usually nobody is, and this is asked for every cohort."""
        return self.audited | (self._refused_in_full - self.refused) if self.audited else self.audited

    def _find_both(
        self, direction: Direction, full: Applied, enforced: Applied, default: Default, ports: Numbers, *, dns: bool
    ) -> Side:
        """A default of audit stands in the shadow alone: what is enforced beside one lets pass what no rule decides."""
        rulesets = self._rulesets[direction]
        shadow = rulesets.find(full, default, ports, dns=dns)
        if shadow.hash == rulesets.find(enforced, default, ports, dns=dns).hash:
            return Side(shadow)
        without = Default.ALLOW if default is Default.AUDIT else default
        return Side(rulesets.find(enforced, without, ports, dns=dns), shadow)

    def _ask(self, applied: Applied, asked: tuple[Applied, ...]) -> None:
        """Note of which sets' rulesets those of a set are made."""
        before = self._asks.get(applied, ())
        if before != asked:
            self._asks[applied] = asked
            for each in asked:
                self._asked_by.setdefault(each, Marks()).add(applied)
            for each in set(before).difference(asked):
                self._cease(applied, each)

    def _cease(self, applied: Applied, asked: Applied) -> None:
        users = self._asked_by[asked]
        users.pop(applied, None)
        if not users:
            del self._asked_by[asked]
            for rulesets in self._rulesets.values():
                rulesets.release(asked)

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

    def _name(self, key: PolicyKey, named: Named | None) -> None:
        """What identities must tell apart for one policy; None: it is gone."""
        if self._named_by.get(key) != named:
            self._named = None
            if named is None:
                del self._named_by[key]
            else:
                self._named_by[key] = named

    def _renew(self, key: PolicyKey) -> None:
        self._fragments.pop(key, None)
        for rulesets in self._rulesets.values():
            rulesets.renew(key)
        self._weighed = self._can_overflow = None

    def _unindex(self, key: PolicyKey) -> None:
        old = self.policies.get(key)
        if old is not None:
            for place in port_places(old):
                self._asking[place].discard(key)
                if not self._asking[place]:
                    del self._asking[place]
