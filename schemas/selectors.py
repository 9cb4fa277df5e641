"""The selector predicate: which labels, addresses and names a peer stands for.

Controller and agent must agree on it exactly, so it stands on the floor beside the rows it reads: the controller
asks it who a policy governs, the agent which identities a local ruleset's peers are.

Rules of this module: pure, total, no state. Labels are plain mappings; a missing label is no label.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache

from schemas.policy import AnyPeer, CidrPeer, IdentityRow, NodePeer, Peer, PodPeer, Requirement, Selector
from schemas.terms import AddressKind

IN = "In"
NOT_IN = "NotIn"
EXISTS = "Exists"
DOES_NOT_EXIST = "DoesNotExist"

NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"
"""On every namespace; the API server sets it, and so do we where it is missing."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether all requirements hold; the empty selector matches everything (as a Kubernetes LabelSelector)."""
    return all(_holds(requirement, labels) for requirement in selector.requirements)


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    """One requirement. NotIn and DoesNotExist hold for a missing key; an unknown operator never holds."""
    value = labels.get(requirement.key)
    if requirement.operator == IN:
        return value is not None and value in requirement.values
    if requirement.operator == NOT_IN:
        return value is None or value not in requirement.values
    if requirement.operator == EXISTS:
        return value is not None
    return requirement.operator == DOES_NOT_EXIST and value is None


def peer_selects(
    peer: Peer, *, kind: AddressKind, namespace_labels: Mapping[str, str], labels: Mapping[str, str]
) -> bool:
    """Whether a peer stands for addresses of this identity by what it *is*.

    Prefixes and names belong to addresses, not to identities: CidrPeer, DomainPeer and PeersetPeer are False.
    """
    if isinstance(peer, AnyPeer):
        return True
    if isinstance(peer, PodPeer):
        return kind is AddressKind.POD and matches(peer.namespaces, namespace_labels) and matches(peer.pods, labels)
    return isinstance(peer, NodePeer) and kind is AddressKind.NODE and matches(peer.nodes, labels)


def peer_selects_identity(peer: Peer, identity: IdentityRow, namespaces: Mapping[str, Mapping[str, str]]) -> bool:
    """``peer_selects`` on rows. ``namespaces``: labels by namespace; an unknown one has only its name as a label."""
    labels = namespaces.get(identity.namespace)
    if labels is None:
        labels = {NAMESPACE_NAME_LABEL: identity.namespace}
    return peer_selects(peer, kind=identity.kind, namespace_labels=labels, labels=identity.labels)


def peer_covers_address(peer: Peer, address: str) -> bool:
    """Whether a peer stands for this address by prefix alone: CidrPeer without its excepts, and AnyPeer."""
    if isinstance(peer, AnyPeer):
        return True
    if not isinstance(peer, CidrPeer) or not _contains(peer.cidr, address):
        return False
    return not any(_contains(excluded, address) for excluded in peer.excepts)


def pattern_covers(pattern: str, name: str) -> bool:
    """Whether a domain pattern stands for a name (both lower case, no trailing dot).

    ``*.x`` is one or more labels under x and not x (NPEP-133).
    """
    if pattern.startswith("*."):
        suffix = pattern[1:]
        return len(name) > len(suffix) and name.endswith(suffix)
    return pattern == name


def _contains(cidr: str, address: str) -> bool:
    network = parse_network(cidr)
    parsed = parse_address(address)
    return network.version == parsed.version and parsed in network


@lru_cache(maxsize=65536)
def parse_network(cidr: str) -> Network:
    """A canonical prefix; ValueError otherwise."""
    return ipaddress.ip_network(cidr)


@lru_cache(maxsize=65536)
def parse_address(address: str) -> Address:
    """An address; ValueError otherwise."""
    return ipaddress.ip_address(address)
