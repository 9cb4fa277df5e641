"""Two sets of manifests compared by what they do: which flows between the pods of both change their verdict.

Asked are all pairs of pods, and pods with one address for every prefix and one name for every pattern that rules name;
on the ports that rules name, one that none names, and one protocol without ports. Pods that no rule can tell apart
(namespace, labels, ports) are asked once.

Pure. Deliberately absent: files, tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from schemas.policy import CidrPeer, DomainPeer, PortRange
from schemas.selectors import parse_address, parse_network
from schemas.terms import ANY_PROTOCOL, Protocol, Verdict
from services.controller.policy.model import NamedPort, Pod, Policy, Rule
from services.scenario.evaluate_engine import EvaluateEngine
from services.scenario.model import PORT_PROTOCOLS, End, Probe
from services.scenario.result import ProbeResult, conclude_probe
from services.scenario.route import RouteError, find_route
from services.scenario.words import format_protocol
from services.scenario.world import Cluster

UNNAMED_PORT_FIRST = 40_000
OUTSIDE = ("203.0.113.7", "2001:db8:0:3::7")
"""Stand for "anywhere" (0.0.0.0/0, ::/0); of documentation ranges."""
WILDCARD_LABEL = "any"
"""The label that stands for the star of a pattern."""

Port = tuple[int, int]
"""(protocol, port)."""


@dataclass(frozen=True, slots=True)
class Change:
    """A flow whose verdict is another one now. ``alike``: more pods on either side of which the same holds."""

    source: End
    destination: End
    protocol: int
    port: int
    before: ProbeResult
    after: ProbeResult
    alike: tuple[int, int] = (0, 0)

    @property
    def verdicts(self) -> tuple[Verdict | None, Verdict | None]:
        return self.before.verdict, self.after.verdict


@dataclass(frozen=True, slots=True)
class _Side:
    """One end, how many pods are like it, and the pod where it is one."""

    end: End
    alike: int = 0
    pod: Pod | None = None
    twin: End | None = None
    """Another pod like it, for a flow among themselves."""


def compare_clusters(old: Cluster, new: Cluster) -> list[Change]:
    """The changes, in the order of their ends and ports."""
    pods = list(_group_pods(old, new))
    outside = [_Side(end) for end in list_outside((*old.policies, *new.policies))]
    ports = list_ports((old, new))
    changes: list[Change] = []
    for source, destination in _pair(pods, outside):
        changes += _compare_pair(old, new, source, destination, ports)
    return changes


def _pair(pods: Sequence[_Side], outside: Sequence[_Side]) -> Iterator[tuple[_Side, _Side]]:
    for source in pods:
        for destination in pods:
            if source is not destination:
                yield source, destination
            elif source.twin is not None:
                yield source, _Side(source.twin, source.alike, source.pod)
        yield from ((source, each) for each in outside)
    for each in outside:
        if not each.end.name:
            yield from ((each, pod) for pod in pods)


def _compare_pair(
    old: Cluster, new: Cluster, source: _Side, destination: _Side, ports: Iterable[Port]
) -> Iterator[Change]:
    for protocol, port in ports:
        probe = Probe(id="", source=source.end, destination=destination.end, protocol=protocol, port=port)
        before, after = _judge(old, probe), _judge(new, probe)
        if before is not None and after is not None and before.verdict is not after.verdict:
            alike = (source.alike, destination.alike)
            yield Change(source.end, destination.end, protocol, port, before, after, alike)


def _judge(cluster: Cluster, probe: Probe) -> ProbeResult | None:
    """None where the ends have no family in common."""
    try:
        route = find_route(cluster, probe, 0.0)
    except RouteError:
        return None
    engine = EvaluateEngine()
    return conclude_probe(probe, engine.judge(cluster, route.egress), engine.judge(cluster, route.ingress))


def _group_pods(old: Cluster, new: Cluster) -> Iterator[_Side]:
    """Pods that both sets have, one of each kind that rules could tell apart."""
    groups: dict[object, list[Pod]] = {}
    for key in sorted(old.world.pods.keys() & new.world.pods.keys()):
        before, after = old.world.pods[key], new.world.pods[key]
        if before.is_governed and after.is_governed:
            kind = (key[0], _kind(before), _kind(after))
            groups.setdefault(kind, []).append(before)
    for group in groups.values():
        ends = [End(pod=pod.key) for pod in group]
        yield _Side(ends[0], len(group) - 1, group[0], ends[1] if len(ends) > 1 else None)


def _kind(pod: Pod) -> object:
    families = frozenset(parse_address(address).version for address in pod.addresses)
    return frozenset(pod.labels.items()), pod.ports, pod.node, families


# ---------------------------------------------------------------------------------------------------------------------
# What rules name


def _rules(policies: Iterable[Policy]) -> Iterator[Rule]:
    for policy in policies:
        yield from (*policy.egress, *policy.ingress)


def list_ports(clusters: Iterable[Cluster]) -> list[Port]:
    """Both ends of every range that a rule names, what named ports stand for, one port beside them, and ICMP."""
    found: set[Port] = set()
    protocols: set[int] = {Protocol.TCP}
    for cluster in clusters:
        numbers = [item for pod in cluster.world.pods.values() for item in pod.named_ports().items()]
        for rule in _rules(cluster.policies):
            for port in rule.ports:
                protocols.add(port.protocol)
                if isinstance(port, NamedPort):
                    found |= {(port.protocol, number) for named, number in numbers if named == port}
                elif port.protocol in PORT_PROTOCOLS and port != PortRange(protocol=port.protocol):
                    found |= {(port.protocol, max(port.first, 1)), (port.protocol, port.last)}
    for protocol in (protocols | {protocol for protocol, _ in found}) & PORT_PROTOCOLS:
        found.add((protocol, next(n for n in range(UNNAMED_PORT_FIRST, 65536) if (protocol, n) not in found)))
    others = protocols - PORT_PROTOCOLS - {ANY_PROTOCOL}
    return sorted(found) + [(protocol, 0) for protocol in sorted(others | {Protocol.ICMP})]


def list_outside(policies: Iterable[Policy]) -> list[End]:
    """One address for every prefix and for every exception, one name for every pattern."""
    addresses: set[str] = set()
    names: set[str] = set()
    for rule in _rules(policies):
        for peer in rule.peers:
            if isinstance(peer, DomainPeer):
                names.add(peer.pattern.replace("*", WILDCARD_LABEL))
            elif isinstance(peer, CidrPeer):
                addresses |= {choose_address(cidr) for cidr in (peer.cidr, *peer.excepts)}
    ordered = sorted(addresses, key=lambda each: (":" in each, int(parse_address(each))))
    return [End(address=address) for address in ordered] + [End(name=name) for name in sorted(names)]


def choose_address(cidr: str) -> str:
    """An address that stands for a prefix: the first host, and a documentation address for "anywhere"."""
    network = parse_network(cidr)
    if network.prefixlen == 0:
        return OUTSIDE[0] if network.version == 4 else OUTSIDE[1]
    return str(network[1] if network.num_addresses > 2 else network[0])


# ---------------------------------------------------------------------------------------------------------------------
# For people and programs


def format_end(end: End, alike: int) -> str:
    return f"{end} (and {alike} like it)" if alike else str(end)


def format_port(protocol: int, port: int) -> str:
    return f"{format_protocol(protocol)} {port}" if port else format_protocol(protocol)


def group_changes(changes: Iterable[Change]) -> dict[tuple[str, str, str, str], list[Change]]:
    """(from, to, before, after) -> the changes that are so, one a port."""
    groups: dict[tuple[str, str, str, str], list[Change]] = {}
    for change in changes:
        before, after = (verdict.name.lower() if verdict is not None else "" for verdict in change.verdicts)
        ends = format_end(change.source, change.alike[0]), format_end(change.destination, change.alike[1])
        groups.setdefault((*ends, before, after), []).append(change)
    return groups
