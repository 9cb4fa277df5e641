"""What the oracle reads of a world before it reads any policy: whose addresses, which Services, what DNS said.

``label_keys`` are those of all policies, whichever of them are asked: an identity tells pods apart by what any names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from schemas.policy import FrontendRow, NodePeer, PodPeer
from schemas.terms import IDENTITY_WORLD, FrontendKind, IdentityId
from services.controller.policy import frontends
from services.controller.policy.model import (
    DNS_BACKENDS_MAX,
    ENCRYPTED_DNS_PORTS,
    Answer,
    NamedPort,
    Node,
    Packet,
    Pod,
    Policy,
    Rule,
    Service,
    ServicePort,
    World,
)

LabelKeys = tuple[set[str], set[str], set[NamedPort]]
"""Of pods, of nodes, and the named ports of pods."""


@dataclass(frozen=True, slots=True)
class Ground:
    """``answers``: names in lower case, without a trailing dot. ``frontends``: backends by address."""

    world: World
    answers: list[Answer]
    owners: dict[str, Pod | Node]
    frontends: dict[tuple[str, int, int], FrontendRow]
    resolvers: frozenset[tuple[str, int]]
    label_keys: LabelKeys

    def frontend_of(self, packet: Packet) -> FrontendRow | None:
        """The Service's face that a packet is sent to."""
        return self.frontends.get((packet.destination, packet.protocol, packet.port))


def read_ground(policies: Sequence[Policy], world: World, answers: Iterable[Answer]) -> Ground:
    """``policies``: all that there are."""
    owners = _owners(world)
    faces = _frontends(world, owners)
    return Ground(
        world=world,
        answers=[replace(each, name=each.name.lower().removesuffix(".")) for each in answers],
        owners=owners,
        frontends=faces,
        resolvers=_resolvers(world, faces),
        label_keys=_read_label_keys(policies),
    )


def all_rules(policy: Policy) -> tuple[Rule, ...]:
    return (*policy.egress, *policy.ingress)


def _owners(world: World) -> dict[str, Pod | Node]:
    owners: dict[str, Pod | Node] = {}
    for pod in sorted(world.pods.values(), key=lambda each: (each.created, each.key)):
        if pod.is_governed:
            owners.update(dict.fromkeys(pod.addresses, pod))
    for node in world.nodes.values():
        owners.update(dict.fromkeys(node.addresses, node))
    return owners


def _frontends(world: World, owners: dict[str, Pod | Node]) -> dict[tuple[str, int, int], FrontendRow]:
    """Every face of every Service, backends by address. Of several claims the lowest kind's, then name's, stands."""

    def nobody(_: str) -> IdentityId:
        return IDENTITY_WORLD

    rows: list[tuple[FrontendKind, str, FrontendRow]] = []
    for service in world.services.values():
        slices = [each for each in world.slices.values() if (each.namespace, each.service) == service.key]
        slices.sort(key=lambda each: each.name)
        pods = [pod for pod in world.pods.values() if frontends.selects(service, pod)]
        for row in frontends.service_frontends(service, slices, pods, nodes=world.nodes.values(), identity_of=nobody):
            rows.append((row.kind, f"service {row.service}", row))
    for pod in world.pods.values():
        for row in frontends.host_port_frontends(pod, world.nodes.get(pod.node), nobody):
            rows.append((row.kind, f"host-port {row.service}", row))
    chosen: dict[tuple[str, int, int], FrontendRow] = {}
    for _, _, row in sorted(rows, key=lambda each: each[:2], reverse=True):
        chosen[row.address, row.protocol, row.port] = row
    return chosen


def _resolvers(world: World, faces: dict[tuple[str, int, int], FrontendRow]) -> frozenset[tuple[str, int]]:
    """Who may be asked for names; not where a Service shows that address and port to the outside, which are its owner's
    to choose. Source: CVE-2020-8554.
    """
    trusted = {(each.address, each.port) for each in world.settings.config.resolvers}
    service = world.services.get(world.settings.dns_service)
    if service is not None:
        ports = _dns_ports(service)
        trusted |= {(address, port.port) for address in service.cluster_addresses for port in ports}
        behind = {place for port in ports for place in _answering(world, service, port)}
        trusted |= set(sorted(behind - trusted)[:DNS_BACKENDS_MAX])
    return frozenset(
        each for each in trusted if not any(_is_claimed(faces.get((each[0], n, each[1]))) for n in (6, 17))
    )


def _dns_ports(service: Service) -> list[ServicePort]:
    """Those of UDP that are no encrypted DNS, and those of TCP that share a number with one of them."""
    plain = {each.port for each in service.ports if each.protocol == 17 and each.port not in ENCRYPTED_DNS_PORTS}
    return [each for each in service.ports if each.port in plain and each.protocol in (6, 17)]


def _answering(world: World, service: Service, port: ServicePort) -> Iterator[tuple[str, int]]:
    """Addresses behind a Service's port that are ready or still serve, as its slices say, else as its pods do."""
    slices = [each for each in world.slices.values() if (each.namespace, each.service) == service.key]
    for each in slices:
        for endpoint in each.endpoints:
            for name, protocol, number in each.ports:
                if name == port.name and protocol == port.protocol and (endpoint.is_ready or endpoint.is_serving):
                    yield from ((address, number) for address in endpoint.addresses)
    for pod in () if slices else world.pods.values():
        is_ready = pod.is_ready or service.publishes_not_ready
        if frontends.selects(service, pod) and pod.is_live and is_ready:
            target = port.target
            number_of = pod.number_of(NamedPort(port.protocol, target)) if isinstance(target, str) else target
            if number_of is not None:
                yield from ((address, number_of) for address in pod.addresses)


def _is_claimed(face: FrontendRow | None) -> bool:
    return face is not None and face.kind.is_claim


def _read_label_keys(policies: Iterable[Policy]) -> LabelKeys:
    pods: set[str] = set()
    nodes: set[str] = set()
    ports: set[NamedPort] = set()
    for policy in policies:
        ports |= {port for rule in policy.egress for port in rule.ports if isinstance(port, NamedPort)}
        for peer in (peer for rule in all_rules(policy) for peer in rule.peers):
            if isinstance(peer, PodPeer):
                pods |= {requirement.key for requirement in peer.pods.requirements}
            elif isinstance(peer, NodePeer):
                nodes |= {requirement.key for requirement in peer.nodes.requirements}
    return pods, nodes, ports
