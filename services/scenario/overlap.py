"""Whether what one rule says is part of what another says, or meets it: peers, ports, subjects.

``covers`` errs on the side of no, ``overlaps`` on the side of yes, where only a running cluster could tell. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schemas.policy import AnyPeer, CidrPeer, DomainPeer, NodePeer, Peer, PodPeer, PortRange, Requirement, Selector
from schemas.selectors import IN, NAMESPACE_NAME_LABEL, matches, parse_network, pattern_covers
from schemas.terms import ANY_PROTOCOL
from services.controller.policy.model import NAMESPACED_KINDS, NamedPort, Pod, Policy, PortSpec, Rule, World


def governed_pods(policy: Policy, world: World) -> frozenset[tuple[str, str]]:
    """The pods that a policy governs, by key."""
    return frozenset(pod.key for pod in world.pods.values() if pod.is_governed and governs(policy, pod, world))


def governs(policy: Policy, pod: Pod, world: World) -> bool:
    if policy.kind in NAMESPACED_KINDS and policy.namespace != pod.namespace:
        return False
    labels = namespace_labels(world, pod.namespace)
    return matches(policy.subject.namespaces, labels) and matches(policy.subject.pods, pod.labels)


def namespace_labels(world: World, name: str) -> dict[str, str]:
    known = world.namespaces.get(name)
    return known.labels if known is not None else {NAMESPACE_NAME_LABEL: name}


# ---------------------------------------------------------------------------------------------------------------------
# Is all of the one in the other?


def rule_covers(wide: Rule, narrow: Rule) -> bool:
    """Whether every packet that ``narrow`` matches, ``wide`` matches too."""
    if not narrow.peers or not narrow.ports:
        return False
    return all(any(port_covers(each, port) for each in wide.ports) for port in narrow.ports) and all(
        any(peer_covers(each, peer) for each in wide.peers) for peer in narrow.peers
    )


def port_covers(wide: PortSpec, narrow: PortSpec) -> bool:
    if wide == narrow:
        return True
    if isinstance(wide, NamedPort):
        return False
    if wide.protocol == ANY_PROTOCOL:
        return True
    if isinstance(narrow, NamedPort):
        return wide.protocol == narrow.protocol and (wide.first, wide.last) == (0, 65535)
    return wide.protocol == narrow.protocol and wide.first <= narrow.first and narrow.last <= wide.last


def peer_covers(wide: Peer, narrow: Peer) -> bool:
    if wide == narrow or isinstance(wide, AnyPeer):
        return True
    if isinstance(wide, CidrPeer) and isinstance(narrow, CidrPeer):
        return cidr_covers(wide, narrow)
    if isinstance(wide, DomainPeer) and isinstance(narrow, DomainPeer):
        is_wide = wide.pattern.startswith("*.") and pattern_covers(wide.pattern, narrow.pattern.removeprefix("*."))
        return is_wide or pattern_covers(wide.pattern, narrow.pattern)
    if isinstance(wide, PodPeer) and isinstance(narrow, PodPeer):
        return selector_covers(wide.namespaces, narrow.namespaces) and selector_covers(wide.pods, narrow.pods)
    if isinstance(wide, NodePeer) and isinstance(narrow, NodePeer):
        return selector_covers(wide.nodes, narrow.nodes)
    return False


def cidr_covers(wide: CidrPeer, narrow: CidrPeer) -> bool:
    """What ``wide`` leaves out must be left out by ``narrow`` too."""
    if not is_inside(narrow.cidr, wide.cidr):
        return False
    spared = [each for each in wide.excepts if is_inside(each, narrow.cidr) or is_inside(narrow.cidr, each)]
    return all(any(is_inside(each, left) for left in narrow.excepts) for each in spared)


def is_inside(inner: str, outer: str) -> bool:
    first, second = parse_network(inner), parse_network(outer)
    return first.version == second.version and first.subnet_of(second)  # type: ignore[arg-type]  # one version


def selector_covers(wide: Selector, narrow: Selector) -> bool:
    """Each requirement of ``wide`` is one of ``narrow``, or follows from one."""
    return all(any(_follows(each, known) for known in narrow.requirements) for each in wide.requirements)


def _follows(wanted: Requirement, known: Requirement) -> bool:
    if wanted == known:
        return True
    is_choice = wanted.operator == known.operator == IN and wanted.key == known.key
    return is_choice and set(known.values) <= set(wanted.values)


# ---------------------------------------------------------------------------------------------------------------------
# Do they meet?


def rules_overlap(one: Rule, other: Rule, world: World) -> bool:
    """Whether some packet may match both."""
    return any_overlap(one.ports, other.ports) and any(
        peers_overlap(first, second, world) for first in one.peers for second in other.peers
    )


def any_overlap(ones: Sequence[PortSpec], others: Sequence[PortSpec]) -> bool:
    return any(_ports_overlap(first, second) for first in ones for second in others)


def _ports_overlap(one: PortSpec, other: PortSpec) -> bool:
    if isinstance(one, NamedPort) or isinstance(other, NamedPort):
        return ANY_PROTOCOL in (one.protocol, other.protocol) or one.protocol == other.protocol
    if ANY_PROTOCOL in (one.protocol, other.protocol):
        return True
    return one.protocol == other.protocol and one.first <= other.last and other.first <= one.last


def peers_overlap(one: Peer, other: Peer, world: World) -> bool:
    """A name may have any address of the world outside; of pods only those of the manifests are known, if any are."""
    if isinstance(one, CidrPeer) and isinstance(other, CidrPeer):
        first, second = parse_network(one.cidr), parse_network(other.cidr)
        return first.version == second.version and first.overlaps(second)
    if isinstance(one, DomainPeer) and isinstance(other, DomainPeer):
        return peer_covers(one, other) or peer_covers(other, one)
    if isinstance(one, PodPeer) and isinstance(other, PodPeer):
        return not world.pods or bool(pods_of([one], world) & pods_of([other], world))
    kinds = {type(one), type(other)}
    if kinds in ({PodPeer, DomainPeer}, {PodPeer, NodePeer}, {NodePeer, DomainPeer}):
        return False
    if kinds == {PodPeer, CidrPeer}:
        pods, block = (one, other) if isinstance(one, PodPeer) else (other, one)
        return not world.pods or any(
            is_inside(f"{address}/{128 if ':' in address else 32}", block.cidr)
            for key in pods_of([pods], world)
            for address in world.pods[key].addresses
            if isinstance(block, CidrPeer)
        )
    return True


def pods_of(peers: Iterable[Peer], world: World) -> frozenset[tuple[str, str]]:
    """The pods that pod peers select."""
    chosen = [peer for peer in peers if isinstance(peer, PodPeer)]
    return frozenset(
        pod.key
        for pod in world.pods.values()
        if pod.is_governed
        and any(
            matches(peer.namespaces, namespace_labels(world, pod.namespace)) and matches(peer.pods, pod.labels)
            for peer in chosen
        )
    )


def spans_everything(port: PortSpec) -> bool:
    """Whether a port means every protocol."""
    return isinstance(port, PortRange) and port.protocol == ANY_PROTOCOL
