"""Which policies govern which pods.

Pods of one namespace with the same labels are one *profile*: a policy selects all of them or none, so every question is
asked once a profile. The index answers incrementally: a policy's change asks about the profiles of its namespace, a
namespace's relabelling about its own.

Rules of this module: no I/O; the predicate itself is ``schemas.selectors``, shared with the agent and ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from schemas.policy import NodePeer, Peer, PodPeer, Selector
from schemas.selectors import IN, NAMESPACE_NAME_LABEL, matches
from services.controller.policy.model import NAMESPACED_KINDS, Labels, NamedPort, Policy, PolicyKey

IDLE_MAX = 256
"""Sets of policies remembered beyond twice the profiles; beyond it those that govern nobody are dropped."""

Profile = tuple[str, frozenset[tuple[str, str]]]
"""(namespace, labels)."""
Applied = frozenset[PolicyKey]
"""The policies that govern a profile. Interned: profiles with equal ones have the same object."""


def profile_of(namespace: str, labels: Labels) -> Profile:
    return namespace, frozenset(labels.items())


def governs(policy: Policy, namespace: str, namespace_labels: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a policy's subject holds a pod. A namespaced policy never leaves its namespace."""
    if policy.kind in NAMESPACED_KINDS and policy.namespace != namespace:
        return False
    return matches(policy.subject.namespaces, namespace_labels) and matches(policy.subject.pods, labels)


@dataclass(frozen=True, slots=True)
class Named:
    """What identities tell apart: label keys of pods, label keys of nodes, named ports of peers."""

    pods: set[str] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    ports: set[NamedPort] = field(default_factory=set)

    def __or__(self, other: Named) -> Named:
        return Named(self.pods | other.pods, self.nodes | other.nodes, self.ports | other.ports)

    def __and__(self, other: Named) -> Named:
        return Named(self.pods & other.pods, self.nodes & other.nodes, self.ports & other.ports)

    def __sub__(self, other: Named) -> Named:
        return Named(self.pods - other.pods, self.nodes - other.nodes, self.ports - other.ports)

    def __xor__(self, other: Named) -> Named:
        return Named(self.pods ^ other.pods, self.nodes ^ other.nodes, self.ports ^ other.ports)

    def __len__(self) -> int:
        return len(self.pods) + len(self.nodes) + len(self.ports)


def named_by(policy: Policy) -> Named:
    """What a policy's peers name: what makes identities."""
    named = Named(ports=peer_ports(policy))
    for rule in (*policy.egress, *policy.ingress):
        for peer in rule.peers:
            if isinstance(peer, PodPeer):
                named.pods.update(_keys(peer.pods))
            elif isinstance(peer, NodePeer):
                named.nodes.update(_keys(peer.nodes))
    return named


def _keys(selector: Selector) -> set[str]:
    return {requirement.key for requirement in selector.requirements}


def peer_ports(policy: Policy) -> set[NamedPort]:
    """The named ports that a policy looks for on peers: those of its egress rules."""
    return {port for rule in policy.egress for port in rule.ports if isinstance(port, NamedPort)}


def subject_ports(policy: Policy) -> set[NamedPort]:
    """The named ports that a policy looks for on its subjects: those of its ingress rules."""
    return {port for rule in policy.ingress for port in rule.ports if isinstance(port, NamedPort)}


def namespaces_named(peer: PodPeer) -> tuple[str, ...] | None:
    """The only namespaces whose pods a peer can select, where it names them; else None."""
    for requirement in peer.namespaces.requirements:
        if requirement.key == NAMESPACE_NAME_LABEL and requirement.operator == IN:
            return requirement.values
    return None


def port_places(policy: Policy) -> set[tuple[NamedPort, str]]:
    """The named ports that a policy looks for on peers, each with the namespaces to look in; empty: in any."""
    places: set[tuple[NamedPort, str]] = set()
    for rule in policy.egress:
        ports = [port for port in rule.ports if isinstance(port, NamedPort)]
        for peer in pod_peers(rule.peers) or [PodPeer()]:
            named = namespaces_named(peer)
            places |= {(port, namespace) for port in ports for namespace in (("",) if named is None else named)}
    return places


def pod_peers(peers: Iterable[Peer]) -> list[PodPeer]:
    return [peer for peer in peers if isinstance(peer, PodPeer)]


@dataclass(slots=True, eq=False)
class Governed:
    """A profile and the policies that govern it, today's. One a profile; held by who asks often."""

    namespace: str
    labels: Labels
    applied: Applied = frozenset()


class Selection:
    """Profiles x policies, kept up to date. Every method that changes something returns the profiles it concerns."""

    def __init__(self) -> None:
        self._policies: dict[PolicyKey, Policy] = {}
        self._cluster: dict[PolicyKey, Policy] = {}
        self._local: dict[str, dict[PolicyKey, Policy]] = {}
        self._governed: dict[Profile, Governed] = {}
        self._interned: dict[Applied, Applied] = {}
        self._in: dict[str, dict[Governed, None]] = {}
        self._namespaces: dict[str, Labels] = {}

    def find(self, profile: Profile) -> Governed:
        """What governs a profile; remembered until ``forget``."""
        governed = self._governed.get(profile)
        if governed is None:
            governed = self._governed[profile] = Governed(profile[0], dict(profile[1]))
            governed.applied = self._ask(governed)
            self._in.setdefault(profile[0], {})[governed] = None
        return governed

    def forget(self, profile: Profile) -> None:
        """No pod has this profile any more."""
        governed = self._governed.pop(profile, None)
        if governed is not None:
            del self._in[profile[0]][governed]

    def governed_by(self, key: PolicyKey) -> list[Governed]:
        """The profiles that a policy governs."""
        policy = self._policies.get(key)
        if policy is None:
            return []
        return [governed for governed in self._candidates(policy) if key in governed.applied]

    def applied_sets(self) -> set[Applied]:
        """Every distinct set of policies that governs some pod."""
        return {governed.applied for governed in self._governed.values()}

    def put(self, policy: Policy) -> list[Governed]:
        """Add or replace a policy -> the profiles that it came to govern or ceased to."""
        key = policy.key
        old = self._policies.get(key)
        self._policies[key] = policy
        self._shelf(policy)[key] = policy
        if old is not None and old.subject == policy.subject:
            return []
        concerned = []
        toggled: dict[Applied, Applied] = {}
        for governed, has in self._ask_all(policy):
            applied = governed.applied
            if (key in applied) != has:
                if applied not in toggled:
                    toggled[applied] = self._intern(applied ^ {key})
                governed.applied = toggled[applied]
                concerned.append(governed)
        return concerned

    def remove(self, key: PolicyKey) -> list[Governed]:
        """Remove a policy -> the profiles that it governed."""
        concerned = self.governed_by(key)
        policy = self._policies.pop(key, None)
        if policy is not None:
            self._shelf(policy).pop(key, None)
        for governed in concerned:
            governed.applied = self._intern(governed.applied - {key})
        return concerned

    def relabel(self, namespace: str, labels: Labels) -> list[Governed]:
        """A namespace's labels, new or changed -> the profiles whose policies changed."""
        self._namespaces[namespace] = labels
        concerned = []
        for governed in self._in.get(namespace, ()):
            applied = self._ask(governed)
            if applied != governed.applied:
                governed.applied = applied
                concerned.append(governed)
        return concerned

    def _ask(self, governed: Governed) -> Applied:
        candidates = (*self._cluster.values(), *self._local.get(governed.namespace, {}).values())
        return self._intern(frozenset(policy.key for policy in candidates if self._governs(policy, governed)))

    def _intern(self, applied: Applied) -> Applied:
        if len(self._interned) > 2 * len(self._governed) + IDLE_MAX:
            self._interned = {each.applied: each.applied for each in self._governed.values()}
        return self._interned.setdefault(applied, applied)

    def _shelf(self, policy: Policy) -> dict[PolicyKey, Policy]:
        return self._local.setdefault(policy.namespace, {}) if policy.kind in NAMESPACED_KINDS else self._cluster

    def _candidates(self, policy: Policy) -> Iterable[Governed]:
        if policy.kind in NAMESPACED_KINDS:
            return self._in.get(policy.namespace, ())
        return self._governed.values()

    def _ask_all(self, policy: Policy) -> Iterable[tuple[Governed, bool]]:
        """Every profile that a policy could govern, and whether it does; of namespaces it is asked once each."""
        local = policy.kind in NAMESPACED_KINDS
        for namespace in (policy.namespace,) if local else self._in:
            is_in = matches(policy.subject.namespaces, self._labels_of(namespace))
            for governed in self._in.get(namespace, ()):
                yield governed, is_in and matches(policy.subject.pods, governed.labels)

    def _governs(self, policy: Policy, governed: Governed) -> bool:
        return governs(policy, governed.namespace, self._labels_of(governed.namespace), governed.labels)

    def _labels_of(self, namespace: str) -> Labels:
        return self._namespaces.get(namespace) or {NAMESPACE_NAME_LABEL: namespace}
