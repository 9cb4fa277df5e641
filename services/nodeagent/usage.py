"""What rules decided and pods reached on this node, as cumulative numbers that outlive the agent.

Rules of this module:

* The kernel's counters only grow; what was read last (the base) and what it came to are kept in one file, written
  together, so that a restart neither forgets nor counts twice. A range that is given to another ruleset goes on from
  the base of its number: no old count is inherited.
* Another scene (a boot, a new set of maps) begins from nothing in the kernel and goes on in the totals.
* Every pod has so many contacts and no more; what found no room is counted, and other pods are not touched.
* What is reported is what changed since the last report that was taken.

Pure: time, maps and files come in. Deliberately absent: NATS, labels (the controller knows them).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from schemas.policy import AddressRow, FrontendRow, Ruleset
from schemas.selectors import pattern_covers
from schemas.terms import AddressKind, Direction, NodeName, Reason, Tier
from schemas.usage import Contact, ContactKey, PeerKind, PodUsage, RuleCount, UsageReport, key_of

CONTACTS_A_POD = 400
"""About 150 bytes each: a pod's report stays far below what a message may be."""
RULES_MAX = 20_000
NAMED_LATE_SECONDS = 60
"""How long the name of an address that was reached is still waited for."""
KEEP_SECONDS = 30 * 86400
"""A rule that is in no ruleset of this node for so long, and was reported, is forgotten here."""
REPORT_RULES, REPORT_CONTACTS = 400, 800
"""In one message: under 256 KiB."""

RuleKey = tuple[str, str, str, str]
"""(kind, namespace, name, hash)."""
Numbered = tuple[int, list[RuleCount]]
"""(index of a counter, everybody who wrote that rule)."""


class Reach(NamedTuple):
    """New flows of one endpoint with one peer that were let in. ``port``: the destination's, 0 without ports."""

    direction: Direction
    protocol: int
    port: int
    address: str
    identity: int
    row: int
    """Domain row that admitted it, 0 if none did."""
    reason: int
    is_audited: bool
    flows: int


@dataclass(frozen=True, slots=True)
class Watched:
    """One ruleset in force and where its counters begin.

    ``is_shadow``: it is asked besides another, with the policies under audit; of its rules those count that no other
    ruleset has.
    """

    start: int
    ruleset: Ruleset
    is_shadow: bool = False

    @property
    def places(self) -> range:
        rules = (self.ruleset.admin, self.ruleset.network_policy, self.ruleset.baseline)
        return range(self.start, self.start + sum(map(len, rules)))


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose endpoint it is."""

    namespace: str
    pod: str
    uid: str


class PodTotals(msgspec.Struct, kw_only=True):
    """One pod's contacts. ``lost``: by direction, what the kernel said last and what it came to."""

    usage: PodUsage
    contacts: list[Contact] = []
    lost_base: dict[int, int] = {}


class Totals(msgspec.Struct, kw_only=True):
    """All that is kept, as it is on disk. ``scene``: which maps ``bases`` are of."""

    epoch: int
    since: int
    scene: str = ""
    bases: dict[int, int] = {}
    rules: list[RuleCount] = []
    pods: list[PodTotals] = []


def _no_names(_endpoint: int, _address: str) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What addresses are now. ``names``: of (endpoint id, address), the names that it was told, newest first."""

    addresses: Mapping[str, AddressRow] = field(default_factory=dict)
    frontends: Mapping[tuple[str, int, int], FrontendRow] = field(default_factory=dict)
    patterns: Mapping[int, str] = field(default_factory=dict)
    names: Callable[[int, str], tuple[str, ...]] = _no_names


class Usage:
    """One node's numbers. ``now`` everywhere: Unix seconds."""

    def __init__(self, node: NodeName, totals: Totals) -> None:
        self._node = node
        self._epoch, self._since, self._scene = totals.epoch, totals.since, totals.scene
        self._bases = dict(totals.bases)
        self._rules = {_key(one): one for one in totals.rules}
        self._pods = {one.usage.uid: one for one in totals.pods}
        self._contacts = {uid: {key_of(each): each for each in one.contacts} for uid, one in self._pods.items()}
        self._watched: list[tuple[Watched, list[Numbered]]] = []
        self._in_force: frozenset[RuleKey] = frozenset()
        self._enforced: frozenset[RuleKey] = frozenset()
        self._dirty_rules: set[RuleKey] = set(self._rules)
        self._dirty_pods: set[str] = set(self._pods)
        self.is_changed = True
        """Since ``totals`` was taken last."""
        self.counters: Counter[str] = Counter()

    def totals(self) -> Totals:
        """All that must be kept, as of now."""
        self.is_changed = False
        pods = [
            msgspec.structs.replace(one, contacts=list(self._contacts[uid].values())) for uid, one in self._pods.items()
        ]
        return Totals(
            epoch=self._epoch,
            since=self._since,
            scene=self._scene,
            bases=self._bases,
            rules=list(self._rules.values()),
            pods=pods,
        )

    def owners(self) -> dict[str, Owner]:
        """Every pod that is known, by uid."""
        found = ((uid, one.usage) for uid, one in self._pods.items())
        return {uid: Owner(one.namespace, one.pod, uid) for uid, one in found}

    # -- rules

    def enter(self, scene: str, present: Mapping[int, int]) -> None:
        """These maps are the ones now. ``present``: their counters, whoever they were counted for.

        Nothing is counted of what is there already unless it is the scene of the bases.
        """
        if scene != self._scene:
            self._scene, self._bases = scene, dict(present)
            self.is_changed = True

    def watch(self, rulesets: Iterable[Watched], now: int) -> None:
        """The rulesets in force from now on; those before must have been read after they were."""
        self._watched = [(one, list(_number(one))) for one in rulesets]
        found = {_key(each): each for _, rules in self._watched for _, rule in rules for each in rule}
        for key, each in found.items():
            before = self._rules.get(key)
            if before is None:
                if len(self._rules) >= RULES_MAX:
                    self.counters["usage_rules_left_out"] += 1
                    continue
                before = msgspec.structs.replace(each, first=now)
                self._put_rule(key, before)
            elif before.rule != each.rule:
                self._put_rule(key, msgspec.structs.replace(before, rule=each.rule))
        self._in_force = frozenset(found)
        enforced = [rules for one, rules in self._watched if not one.is_shadow]
        self._enforced = frozenset(_key(each) for rules in enforced for _, rule in rules for each in rule)

    def places(self) -> list[range]:
        """Where the counters of watched rulesets are."""
        return [one.places for one, _ in self._watched]

    def count(self, present: Mapping[int, int], now: int) -> None:
        """The counters of ``places``, as they are."""
        for one, numbered in self._watched:
            for index, rules in numbered:
                flows, base = present.get(index, 0), self._bases.get(index, 0)
                if flows != base:
                    self._bases[index] = flows
                    self.is_changed = True
                    counted = [each for each in rules if not one.is_shadow or _key(each) not in self._enforced]
                    self._add(counted, flows - base if flows > base else flows, now)

    def note_live(self, indices: Iterable[int], now: int) -> None:
        """Rules that have let in a flow which lives still: in use, though nothing new was counted."""
        live = frozenset(indices)
        for _, numbered in self._watched:
            for index, rules in numbered:
                if index in live:
                    self._add(rules, 0, now)

    def _add(self, rules: Iterable[RuleCount], flows: int, now: int) -> None:
        for rule in rules:
            key = _key(rule)
            before = self._rules.get(key)
            if before is not None:
                self._put_rule(key, msgspec.structs.replace(before, flows=before.flows + flows, last=now))

    def _put_rule(self, key: RuleKey, rule: RuleCount) -> None:
        self._rules[key] = rule
        self._dirty_rules.add(key)
        self.is_changed = True

    # -- pods

    def reach(self, owner: Owner, endpoint: int, rows: Iterable[Reach], facts: Facts, *, now: int) -> None:
        """Rows of one endpoint, read once each."""
        totals = self._pod(owner, now)
        contacts = self._contacts[owner.uid]
        for row in rows:
            for contact in _describe(row, endpoint, facts, now):
                self._merge(totals, contacts, contact)
        self._name_late(totals, contacts, lambda address: facts.names(endpoint, address), now)

    def _name_late(
        self,
        totals: PodTotals,
        contacts: dict[ContactKey, Contact],
        names: Callable[[str], tuple[str, ...]],
        now: int,
    ) -> None:
        """Addresses of flows whose names were heard after them."""
        bare = [
            each
            for each in contacts.values()
            if each.kind is PeerKind.ADDRESS
            and each.direction is Direction.EGRESS
            and each.last + NAMED_LATE_SECONDS > now
        ]
        for contact in bare:
            found = names(contact.address)
            if found:
                del contacts[key_of(contact)]
            for name in found:
                self._merge(totals, contacts, msgspec.structs.replace(contact, kind=PeerKind.NAME, peer=name))

    def note_lost(self, owner: Owner, lost: Mapping[Direction, int], *, now: int) -> None:
        """Flows that found no row, since the map was made: what the kernel says of this endpoint now."""
        known = owner.uid in self._pods
        if not known and not any(lost.values()):
            return
        totals = self._pod(owner, now)
        for direction, count in lost.items():
            base = totals.lost_base.get(int(direction), 0)
            if count == base:
                continue
            more = count - base if count > base else count
            field = "lost_egress" if direction is Direction.EGRESS else "lost_ingress"
            totals.lost_base[int(direction)] = count
            self._touch(totals, **{field: getattr(totals.usage, field) + more})

    def begin_pod(self, owner: Owner, lost: Mapping[Direction, int], *, now: int) -> None:
        """This pod is watched from now on; what its number lost before was another's."""
        if owner.uid not in self._pods:
            self._pod(owner, now).lost_base = {int(direction): count for direction, count in lost.items()}

    def end_pods(self, kept: Iterable[str]) -> None:
        """Pods that are gone from this node: forgotten once they were reported."""
        kept = frozenset(kept)
        for uid in [uid for uid in self._pods if uid not in kept and uid not in self._dirty_pods]:
            del self._pods[uid], self._contacts[uid]
            self.is_changed = True

    def _pod(self, owner: Owner, now: int) -> PodTotals:
        found = self._pods.get(owner.uid)
        if found is None:
            usage = PodUsage(
                namespace=owner.namespace,
                pod=owner.pod,
                uid=owner.uid,
                node=self._node,
                epoch=self._epoch,
                since=now,
            )
            found = self._pods[owner.uid] = PodTotals(usage=usage)
            self._contacts[owner.uid] = {}
            self._touch(found)
        return found

    def _touch(self, totals: PodTotals, **changes: int) -> None:
        totals.usage = msgspec.structs.replace(totals.usage, **changes)
        self._dirty_pods.add(totals.usage.uid)
        self.is_changed = True

    def _merge(self, totals: PodTotals, contacts: dict[ContactKey, Contact], new: Contact) -> None:
        before = contacts.get(key_of(new))
        if before is None and len(contacts) >= CONTACTS_A_POD:
            self._touch(totals, dropped=totals.usage.dropped + 1)
            return
        contacts[key_of(new)] = merge_contacts(before, new) if before else new
        self._touch(totals)

    # -- reports

    def next_report(self, now: int) -> UsageReport:
        """What changed since the last report that was taken, as much as one message holds."""
        rules = [self._rules[key] for key in sorted(self._dirty_rules)[:REPORT_RULES]]
        pods: list[PodUsage] = []
        room = REPORT_CONTACTS
        for uid in sorted(self._dirty_pods):
            contacts = tuple(self._contacts[uid].values())
            if pods and len(contacts) > room:
                break
            room -= len(contacts) + 1
            pods.append(msgspec.structs.replace(self._pods[uid].usage, at=now, contacts=contacts))
        return UsageReport(
            node=self._node, epoch=self._epoch, since=self._since, at=now, rules=tuple(rules), pods=tuple(pods)
        )

    def refresh(self) -> None:
        """Everything that is in force here is news again, so that only what is gone grows old where it is kept."""
        self._dirty_rules |= self._in_force & self._rules.keys()
        self._dirty_pods |= self._pods.keys()

    @property
    def has_news(self) -> bool:
        """Whether something is yet to be reported."""
        return bool(self._dirty_rules or self._dirty_pods)

    def note_taken(self, report: UsageReport) -> None:
        """The controller has it: what did not change since is news no more."""
        for rule in report.rules:
            key = _key(rule)
            if self._rules.get(key) == rule:
                self._dirty_rules.discard(key)
        for pod in report.pods:
            own = self._pods.get(pod.uid)
            told = msgspec.structs.replace(pod, at=0, contacts=())
            if own is not None and own.usage == told and tuple(self._contacts[pod.uid].values()) == pod.contacts:
                self._dirty_pods.discard(pod.uid)
        self._forget_old(report.at)

    def _forget_old(self, now: int) -> None:
        for key in [*self._rules]:
            rule = self._rules[key]
            is_old = max(rule.first, rule.last) + KEEP_SECONDS < now
            if is_old and key not in self._in_force and key not in self._dirty_rules:
                del self._rules[key]
                self.is_changed = True


def _key(rule: RuleCount) -> RuleKey:
    return rule.kind, rule.namespace, rule.name, rule.hash


def merge_contacts(before: Contact, new: Contact) -> Contact:
    """Both as one; ``new`` counts flows that ``before`` does not."""
    return msgspec.structs.replace(
        new,
        flows=before.flows + new.flows,
        first=before.first,
        audited=before.audited or new.audited,
        own_node=before.own_node or new.own_node,
        implicit=before.implicit or new.implicit,
    )


def _number(watched: Watched) -> Iterator[Numbered]:
    """Every rule, with its counter. Rules without a hash are of an older controller."""
    index = watched.start
    for tier in (Tier.ADMIN, Tier.NETWORK_POLICY, Tier.BASELINE):
        for rule in watched.ruleset.tier(tier):
            written = zip(rule.sources, rule.hashes, strict=False)
            yield (
                index,
                [
                    RuleCount(kind=one.kind, namespace=one.namespace, name=one.name, rule=one.rule, hash=digest)
                    for one, digest in written
                ],
            )
            index += 1


def _describe(row: Reach, endpoint: int, facts: Facts, now: int) -> Iterable[Contact]:
    """The peer as people know it; an address with several names is a contact with each."""
    for kind, peer, port in _find_peers(row, endpoint, facts):
        yield Contact(
            direction=row.direction,
            protocol=row.protocol,
            port=row.port,
            kind=kind,
            peer=peer,
            address=row.address,
            target_port=port,
            flows=row.flows,
            first=now,
            last=now,
            audited=row.is_audited,
            own_node=row.reason == Reason.OWN_NODE,
            implicit=row.reason == Reason.DNS_IMPLICIT,
        )


def _find_peers(row: Reach, endpoint: int, facts: Facts) -> list[tuple[PeerKind, str, int]]:
    owner = facts.addresses.get(row.address)
    if owner is not None:
        return [(PeerKind.NODE if owner.kind is AddressKind.NODE else PeerKind.POD, owner.owner, 0)]
    if row.direction is Direction.EGRESS:
        front = facts.frontends.get((row.address, row.protocol, row.port))
        if front is not None:
            ports = {backend.port for backend in front.backends}
            return [(PeerKind.SERVICE, front.service, ports.pop() if len(ports) == 1 else 0)]
        names = facts.names(endpoint, row.address)
        pattern = facts.patterns.get(row.row, "")
        if pattern:
            names = tuple(name for name in names if pattern_covers(pattern, name))[:1] or (pattern,)
        if names:
            return [(PeerKind.NAME, name, 0) for name in names]
    return [(PeerKind.ADDRESS, row.address, 0)]
