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


class Selection:
    """Profiles x policies, kept up to date. Every method that changes something returns the profiles it concerns."""

    def __init__(self) -> None:
        self._policies: dict[PolicyKey, Policy] = {}
        self._cluster: dict[PolicyKey, Policy] = {}
        self._local: dict[str, dict[PolicyKey, Policy]] = {}
        self._applied: dict[Profile, Applied] = {}
        self._interned: dict[Applied, Applied] = {}
        self._profiles: dict[str, set[Profile]] = {}
        self._namespaces: dict[str, Labels] = {}

    def policies_for(self, profile: Profile) -> Applied:
        """The policies that govern a profile; remembered until ``forget``."""
        applied = self._applied.get(profile)
        if applied is None:
            candidates = (*self._cluster.values(), *self._local.get(profile[0], {}).values())
            labels = dict(profile[1])
            governing = frozenset(policy.key for policy in candidates if self._governs(policy, profile[0], labels))
            applied = self._applied[profile] = self._intern(governing)
            self._profiles.setdefault(profile[0], set()).add(profile)
        return applied

    def forget(self, profile: Profile) -> None:
        """No pod has this profile any more."""
        if self._applied.pop(profile, None) is not None:
            self._profiles[profile[0]].discard(profile)

    def profiles_of(self, key: PolicyKey) -> set[Profile]:
        """The profiles that a policy governs."""
        policy = self._policies.get(key)
        if policy is None:
            return set()
        return {profile for profile in self._candidates(policy) if key in self._applied[profile]}

    def applied_sets(self) -> set[Applied]:
        """Every distinct set of policies that governs some pod."""
        return set(self._applied.values())

    def put(self, policy: Policy) -> set[Profile]:
        """Add or replace a policy -> the profiles that it governs or governed."""
        old = self._policies.get(policy.key)
        self._policies[policy.key] = policy
        self._shelf(policy)[policy.key] = policy
        if old is not None and old.subject == policy.subject:
            return self.profiles_of(policy.key)
        concerned = set()
        for profile in self._candidates(policy):
            had = policy.key in self._applied[profile]
            has = self._governs(policy, profile[0], dict(profile[1]))
            if had != has:
                applied = self._applied[profile]
                self._applied[profile] = self._intern(applied | {policy.key} if has else applied - {policy.key})
            if had or has:
                concerned.add(profile)
        return concerned

    def remove(self, key: PolicyKey) -> set[Profile]:
        """Remove a policy -> the profiles that it governed."""
        concerned = self.profiles_of(key)
        policy = self._policies.pop(key, None)
        if policy is not None:
            self._shelf(policy).pop(key, None)
        for profile in concerned:
            self._applied[profile] = self._intern(self._applied[profile] - {key})
        return concerned

    def relabel(self, namespace: str, labels: Labels) -> set[Profile]:
        """A namespace's labels, new or changed -> the profiles whose policies changed."""
        self._namespaces[namespace] = labels
        concerned = set()
        for profile in list(self._profiles.get(namespace, ())):
            before = self._applied.pop(profile)
            if self.policies_for(profile) != before:
                concerned.add(profile)
        return concerned

    def _intern(self, applied: Applied) -> Applied:
        if len(self._interned) > 2 * len(self._applied) + IDLE_MAX:
            self._interned = {each: each for each in self._applied.values()}
        return self._interned.setdefault(applied, applied)

    def _shelf(self, policy: Policy) -> dict[PolicyKey, Policy]:
        return self._local.setdefault(policy.namespace, {}) if policy.kind in NAMESPACED_KINDS else self._cluster

    def _candidates(self, policy: Policy) -> Iterable[Profile]:
        if policy.kind in NAMESPACED_KINDS:
            return list(self._profiles.get(policy.namespace, ()))
        return list(self._applied)

    def _governs(self, policy: Policy, namespace: str, labels: Labels) -> bool:
        namespace_labels = self._namespaces.get(namespace) or {NAMESPACE_NAME_LABEL: namespace}
        return governs(policy, namespace, namespace_labels, labels)
