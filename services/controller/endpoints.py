"""Endpoint rows, and with them the rulesets, peersets and domain patterns that somebody uses.

* Pods that every question answers alike (profile, default, named ports) are one *group*: rulesets are asked for once a
  group, and the flip is one replacement in each member's row, not a row made anew.
* A ruleset is a row as long as some group uses it; so is what it refers to.
* A pod that is not bound to a node has no row yet.
* A group that a policy under audit governs has shadows beside its rulesets; they are rows like any other ruleset.

Deliberately absent: which policies govern whom (``rulings``), facts' own rows (``facts``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from schemas import wire
from schemas.policy import DomainRow, EndpointRow
from schemas.terms import Default, NodeName, RulesetHash
from services.controller.facts import Facts
from services.controller.policy.compile import Compiled
from services.controller.policy.defaults import default_of
from services.controller.policy.model import ObjectKey, Pod, PolicyKey, Settings
from services.controller.policy.select import Applied, Profile, profile_of
from services.controller.rows import Row, RowStore
from services.controller.rulesets import Numbers
from services.controller.rulings import Rulings, Side

T = TypeVar("T")
Question = tuple[Profile, Default | None, Numbers]
"""What a group is known by. No default: its pods are not bound to a node."""


@dataclass(slots=True, eq=False)
class Pair:
    """The rulesets of some groups. ``reference``: how an endpoint row's body names them. ``users``: how many groups.

    ``left_out``: policies that did not fit the NetworkPolicy tier; of a shadow those under audit only, because what is
    enforced of the others stands beside it.
    """

    egress: Side
    ingress: Side
    reference: bytes
    left_out: frozenset[PolicyKey]
    users: int = 0

    def rulesets(self) -> Iterator[Compiled]:
        for side in (self.egress, self.ingress):
            yield side.enforced
            if side.shadow is not None:
                yield side.shadow


@dataclass(slots=True, eq=False)
class Group:
    """``rows``: the endpoint row of each pod, None while the pods are not bound."""

    profile: Profile
    default: Default | None
    ports: Numbers
    rows: dict[ObjectKey, Row | None] = field(default_factory=dict)
    pair: Pair | None = None


class Endpoints:
    """Follows ``Facts.touched`` and ``Rulings.stale``, and clears them."""

    def __init__(self, rows: RowStore, facts: Facts, rulings: Rulings) -> None:
        self._rows = rows
        self._facts = facts
        self._rulings = rulings
        self._groups: dict[Question, Group] = {}
        self._group_of: dict[ObjectKey, Group] = {}
        self._groups_of: dict[Profile, set[Group]] = {}
        self._users: Counter[RulesetHash] = Counter()
        self._live: dict[RulesetHash, Compiled] = {}
        self._peersets: Counter[str] = Counter()
        self._patterns: Counter[str] = Counter()
        self._left_out: Counter[PolicyKey] = Counter()

    @property
    def left_out(self) -> list[PolicyKey]:
        """The policies that did not fit the NetworkPolicy tier of some ruleset in use, in order."""
        return sorted(self._left_out)

    def nodes_by_policy(self) -> dict[PolicyKey, set[NodeName]]:
        """The nodes that hold a ruleset of each policy that governs a pod."""
        found: dict[PolicyKey, set[NodeName]] = {}
        pods = self._facts.world.pods
        for group in self._groups.values():
            nodes = {pods[key].node for key, row in group.rows.items() if row}
            for policy in self._rulings.selection.policies_for(group.profile):
                found.setdefault(policy, set()).update(nodes)
        return found

    def write_rows(self, settings: Settings) -> None:
        """Bring the rows of everything stale up to date. The facts' rows must be."""
        touched = self._facts.touched
        defaults: dict[tuple[str, str], Default] = {}
        fresh = {group for key in touched if (group := self._regroup(key, settings, defaults)) is not None}
        self._rulings.settle()
        self._flip(fresh, dns=settings.config.dns_implicit)
        for key in touched:
            group = self._group_of.get(key)
            row = group.rows[key] if group is not None else None
            if row is not None and group is not None and group.pair is not None:
                self._rows.write(row, self._encode(self._facts.world.pods[key], group.pair))
        touched.clear()
        self._rulings.prune(self._live)

    # -- groups -------------------------------------------------------------------------------------------------------

    def _regroup(self, key: ObjectKey, settings: Settings, defaults: dict[tuple[str, str], Default]) -> Group | None:
        """Move a pod to the group it belongs to now; -> that group."""
        pod = self._facts.world.pods.get(key)
        row: Row | None = None
        new: Group | None = None
        if pod is not None and pod.is_governed:
            new = self._find_group(pod, settings, defaults)
            if pod.node:
                row = self._rows.at(wire.subject_endpoint(pod.node, pod.namespace, pod.name))
        old = self._group_of.pop(key, None)
        before = old.rows.pop(key) if old is not None else None
        if new is not None:
            self._group_of[key] = new
            new.rows[key] = row
        if before is not None and before is not row:
            self._rows.write(before, None)
        if old is not None and not old.rows:
            self._disband(old)
        return new

    def _find_group(self, pod: Pod, settings: Settings, defaults: dict[tuple[str, str], Default]) -> Group:
        default: Default | None = None
        if pod.node:
            place = (pod.namespace, pod.node)
            if place not in defaults:
                defaults[place] = default_of(pod, self._facts.world, settings)
            default = defaults[place]
        question = (profile_of(pod.namespace, pod.labels), default, tuple(sorted(pod.named_ports().items())))
        group = self._groups.get(question)
        if group is None:
            group = self._groups[question] = Group(*question)
            self._groups_of.setdefault(group.profile, set()).add(group)
            self._rulings.selection.policies_for(group.profile)
        return group

    def _disband(self, group: Group) -> None:
        del self._groups[group.profile, group.default, group.ports]
        if group.pair is not None:
            self._release(group.pair)
        others = self._groups_of[group.profile]
        others.discard(group)
        if not others:
            del self._groups_of[group.profile]
            self._rulings.selection.forget(group.profile)

    # -- the flip -----------------------------------------------------------------------------------------------------

    def _flip(self, fresh: set[Group], *, dns: bool) -> None:
        """Ask again for groups whose policies changed, and for these; point their members at what came out."""
        groups = set(fresh)
        for profile in self._rulings.stale:
            groups |= self._groups_of.get(profile, set())
        self._rulings.stale.clear()
        answers: dict[tuple[Applied, Default, Numbers], Pair] = {}
        policies_for = self._rulings.selection.policies_for
        for group in groups:
            if group.default is None:
                continue
            question = (policies_for(group.profile), group.default, group.ports)
            pair = answers.get(question)
            if pair is None:
                egress, ingress = self._rulings.find_rulesets(*question, dns=dns)
                pair = answers[question] = Pair(
                    egress, ingress, _refer(egress, ingress), _left_out((egress, ingress), self._rulings.audited)
                )
            self._point(group, pair)

    def _point(self, group: Group, pair: Pair) -> None:
        """A group's rulesets are these from now on."""
        old = group.pair
        if old is not None and (old.reference, old.left_out) == (pair.reference, pair.left_out):
            return
        group.pair = pair
        self._retain(pair)
        if old is not None:
            self._rows.replace(filter(None, group.rows.values()), old.reference, pair.reference)
            self._release(old)

    def _encode(self, pod: Pod, pair: Pair) -> bytes:
        row = EndpointRow(
            node=pod.node,
            namespace=pod.namespace,
            pod=pod.name,
            uid=pod.uid,
            identity=self._facts.identity_of_pod(pod.key),
            egress=pair.egress.enforced.hash,
            ingress=pair.ingress.enforced.hash,
            egress_shadow=_name_shadow(pair.egress),
            ingress_shadow=_name_shadow(pair.ingress),
            addresses=pod.addresses,
        )
        return wire.encode(row)

    # -- what groups use ----------------------------------------------------------------------------------------------

    def _retain(self, pair: Pair) -> None:
        pair.users += 1
        if pair.users == 1:
            self._left_out.update(pair.left_out)
            for compiled in pair.rulesets():
                self._publish(compiled)

    def _release(self, pair: Pair) -> None:
        pair.users -= 1
        if not pair.users:
            for key in pair.left_out:
                _is_last(self._left_out, key)
            for compiled in pair.rulesets():
                self._withdraw(compiled)

    def _publish(self, compiled: Compiled) -> None:
        """A ruleset has one user more: the first one brings its rows."""
        self._users[compiled.hash] += 1
        if self._users[compiled.hash] > 1:
            return
        self._live[compiled.hash] = compiled
        self._rows.put(wire.subject_ruleset(compiled.hash), compiled.body)
        for digest, body in compiled.peersets.items():
            self._peersets[digest] += 1
            self._rows.put(wire.subject_peerset(digest), body)
        for pattern in compiled.patterns:
            self._patterns[pattern] += 1
            self._rows.put(wire.subject_domain(pattern), wire.encode(DomainRow(pattern=pattern)))

    def _withdraw(self, compiled: Compiled) -> None:
        """A ruleset has one user less: with the last one its rows go."""
        if not _is_last(self._users, compiled.hash):
            return
        published = self._live.pop(compiled.hash)
        self._rows.drop(wire.subject_ruleset(published.hash))
        for digest in published.peersets:
            if _is_last(self._peersets, digest):
                self._rows.drop(wire.subject_peerset(digest))
        for pattern in published.patterns:
            if _is_last(self._patterns, pattern):
                self._rows.drop(wire.subject_domain(pattern))


def _is_last(users: Counter[T], name: T) -> bool:
    """Count one user less; whether nobody is left."""
    users[name] -= 1
    if users[name]:
        return False
    del users[name]
    return True


def _left_out(sides: Iterable[Side], audited: Container[PolicyKey]) -> frozenset[PolicyKey]:
    found: set[PolicyKey] = set()
    for side in sides:
        found.update(side.enforced.left_out)
        if side.shadow is not None:
            found.update(key for key in side.shadow.left_out if key in audited)
    return frozenset(found)


def _name_shadow(side: Side) -> RulesetHash:
    return side.shadow.hash if side.shadow is not None else RulesetHash("")


def _refer(egress: Side, ingress: Side) -> bytes:
    """As an endpoint row's body has it, field names and quotes included, so that nothing else in it looks so."""
    text = b'"egress":"%b","ingress":"%b"' % (egress.enforced.hash.encode(), ingress.enforced.hash.encode())
    for name, side in ((b"egress", egress), (b"ingress", ingress)):
        if side.shadow is not None:
            text += b',"%b_shadow":"%b"' % (name, side.shadow.hash.encode())
    return text
