"""Which packets a probe makes, and on whose interfaces they are judged.

A flow is judged where it leaves a pod and where it enters one, as far as its ends are pods. A packet to a Service is
judged at egress as it is, by its frontend; at ingress by every backend that it may be sent to: a flow is allowed only
if it is allowed whichever backend is chosen. The same holds for a name with several addresses.
The source address stays what it is: a node's own masquerading is not played.

Pure. Deliberately absent: verdicts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from schemas.policy import FrontendRow
from schemas.terms import IDENTITY_WORLD, Direction
from schemas.terms import Protocol as IpProtocol
from services.controller.policy import frontends
from services.controller.policy.model import Node, Packet, Pod, Service, World
from services.scenario.model import PORT_PROTOCOLS, End, Probe
from services.scenario.world import families_of

EXTENSION_HEADERS = frozenset({0, 43, 44, 51, 60})
"""Hop-by-hop options, routing, fragment, authentication, destination options: what lies behind is the protocol."""


class Reachable(Protocol):
    """What routes are found in: a cluster made of objects, or a live one."""

    @property
    def world(self) -> World:
        """Pods, nodes, Services and slices."""
        ...

    def owner_of(self, address: str) -> Pod | Node | None:
        """Whose address it is."""
        ...

    def frontend_of(self, packet: Packet) -> FrontendRow | None:
        """The Service's face that a packet is sent to; its backends are told by address."""
        ...

    def addresses_of(self, name: str) -> tuple[str, ...]:
        """What a name was resolved to."""
        ...


class RouteError(ValueError):
    """A probe that no packet can be made of; the message says why."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """One packet at one pod's interface. ``at``: seconds, see ``Probe``."""

    pod: Pod
    direction: Direction
    packet: Packet
    at: float

    @property
    def is_local(self) -> bool:
        """A pod's packet to itself: it never reaches the interface."""
        return self.direction is Direction.EGRESS and self.packet.destination in self.pod.addresses


@dataclass(frozen=True, slots=True)
class Route:
    """Every crossing of one probe; all must be allowed."""

    egress: tuple[Crossing, ...]
    ingress: tuple[Crossing, ...]


@dataclass(frozen=True, slots=True)
class _Flow:
    """What is on the way. ``pod``: whose it is, where a pod is judged."""

    packet: Packet
    pod: Pod | None
    at: float


def find_route(cluster: Reachable, probe: Probe, at: float) -> Route:
    """The crossings of a probe. RouteError."""
    sources = _source_addresses(cluster, probe.source)
    egress: list[Crossing] = []
    ingress: list[Crossing] = []
    for source, destination, port in _pair(cluster, probe, sources):
        if probe.protocol in EXTENSION_HEADERS and ":" in destination:
            raise RouteError(f"{probe.protocol} over IPv6 is an extension header, no protocol")
        packet = Packet(source=source, destination=destination, protocol=probe.protocol, port=port)
        flow = _Flow(packet, _governed(cluster, source), at)
        if flow.pod is not None:
            egress.append(Crossing(flow.pod, Direction.EGRESS, packet, at))
        ingress += _arrivals(cluster, flow)
    return Route(tuple(egress), tuple(ingress))


def _governed(cluster: Reachable, address: str) -> Pod | None:
    owner = cluster.owner_of(address)
    return owner if isinstance(owner, Pod) else None


# ---------------------------------------------------------------------------------------------------------------------
# Ends


def _find_pod(cluster: Reachable, end: End) -> Pod:
    pod = cluster.world.pods.get(end.pod) if end.pod else None
    if pod is None:
        raise RouteError(f"there is no pod {end}")
    return pod


def _pod_addresses(cluster: Reachable, end: End) -> tuple[str, ...]:
    """The pod's own, or those of its node where it has the node's network."""
    pod = _find_pod(cluster, end)
    addresses = pod.addresses
    if pod.host_network:
        node = cluster.world.nodes.get(pod.node)
        addresses = addresses or (node.addresses if node is not None else ())
    if end.address and end.address not in addresses:
        raise RouteError(f"{end.address} is none of the addresses of {pod.namespace}/{pod.name}")
    return (end.address,) if end.address else addresses


def _source_addresses(cluster: Reachable, end: End) -> tuple[str, ...]:
    addresses = _pod_addresses(cluster, end) if end.pod else (end.address,)
    if not addresses:
        raise RouteError(f"{end} has no address")
    return addresses


def _pair(cluster: Reachable, probe: Probe, sources: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """(source, destination, port) of every packet that the probe may mean."""
    end = probe.destination
    if end.service is not None:
        return _pair_service(cluster, probe, sources)
    if end.name and not end.address:
        mine = families_of(sources)
        versions = [version for version in _preferred(probe) if version in mine]
        addresses = cluster.addresses_of(end.name)
        if not addresses:
            raise RouteError(f"nobody has resolved {end.name}")
        for version in versions:
            chosen = [each for each in addresses if families_of([each]).get(version)]
            if chosen:
                return [(mine[version], each, probe.port) for each in chosen]
        raise RouteError(f"{end.name} has no address of a family that {probe.source} has")
    destinations = _pod_addresses(cluster, end) if end.pod else (end.address,)
    source, destination = _match_families(probe, sources, destinations)
    return [(source, destination, probe.port)]


def _pair_service(cluster: Reachable, probe: Probe, sources: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """To its cluster address. A headless Service is a name for its backends, and nothing translates the port."""
    key = probe.destination.service
    service = cluster.world.services.get(key) if key else None
    if service is None:
        raise RouteError(f"there is no Service {probe.destination}")
    port = probe.port or _only_port(probe, service)
    if service.cluster_addresses:
        return [(*_match_families(probe, sources, service.cluster_addresses), port)]
    pairs = []
    for source in families_of(sources).values():
        rows = [row for row in _backends_of_headless(cluster, service, source) if row.protocol == probe.protocol]
        behind = {each.address: each.port for row in rows if port in (row.port, probe.port) for each in row.backends}
        pairs += [(source, address, probe.port or target) for address, target in behind.items()]
    if not pairs:
        raise RouteError(
            f"Service {probe.destination} leads nowhere: it is an ExternalName, or headless without a backend"
        )
    return pairs


def _only_port(probe: Probe, service: Service) -> int:
    if probe.protocol not in PORT_PROTOCOLS:
        return 0
    ports = [port.port for port in service.ports if port.protocol == probe.protocol]
    if len(ports) != 1:
        raise RouteError(f"port is required: Service {probe.destination} has {len(ports)} ports of this protocol")
    return ports[0]


def _backends_of_headless(cluster: Reachable, service: Service, like: str) -> list[FrontendRow]:
    """What frontends at an address of this family would have behind them."""
    world = cluster.world
    slices = [each for each in world.slices.values() if (each.namespace, each.service) == service.key]
    pods = [pod for pod in world.pods.values() if frontends.selects(service, pod)]
    shown = replace(service, cluster_addresses=(like,), external_addresses=(), balancer_addresses=())
    return list(frontends.service_frontends(shown, slices, pods, nodes=(), identity_of=lambda _: IDENTITY_WORLD))


def _preferred(probe: Probe) -> tuple[int, int]:
    return (6, 4) if probe.protocol == IpProtocol.ICMPV6 else (4, 6)


def _match_families(probe: Probe, sources: Iterable[str], destinations: Iterable[str]) -> tuple[str, str]:
    """Addresses of one family, IPv4 if both have it (IPv6 for ICMPv6)."""
    mine, theirs = families_of(sources), families_of(destinations)
    for version in _preferred(probe):
        if version in mine and version in theirs:
            return mine[version], theirs[version]
    raise RouteError(f"{probe.source} and {probe.destination} have no address of the same family")


# ---------------------------------------------------------------------------------------------------------------------
# Arrivals


def _arrivals(cluster: Reachable, flow: _Flow) -> list[Crossing]:
    """Where it comes out: at the pod that has the address, or at each backend of the frontend that has."""
    row = cluster.frontend_of(flow.packet)
    targets = [(flow.packet.destination, flow.packet.port)]
    if row is not None and not _is_to_itself(flow):
        targets = [(backend.address, backend.port) for backend in row.backends]
    found = []
    for address, port in targets:
        pod = _governed(cluster, address)
        if pod is not None:
            own_node = _comes_from_own_node(cluster, flow, pod)
            packet = replace(flow.packet, destination=address, port=port, from_own_node=own_node)
            found.append(Crossing(pod, Direction.INGRESS, packet, flow.at))
    return found


def _is_to_itself(flow: _Flow) -> bool:
    return flow.pod is not None and flow.packet.destination in flow.pod.addresses


def _comes_from_own_node(cluster: Reachable, flow: _Flow, pod: Pod) -> bool:
    """Generated on the node: its kubelet, or a pod in its network."""
    owner = cluster.owner_of(flow.packet.source)
    return isinstance(owner, Node) and owner.name == pod.node
