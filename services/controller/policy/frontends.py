"""Services -> frontends: which (address, protocol, port) stands for which backends.

Backends come from EndpointSlices, or from the selector where a Service has none (a folder of manifests).
A frontend serves the backends of its own address family.
As kube-proxy: ready endpoints, or where none is ready those that are still serving while they terminate.
Headless and ExternalName Services have no address and so no frontend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from schemas.policy import Backend, FrontendRow
from schemas.terms import IDENTITY_WORLD, FrontendKind, IdentityId
from services.controller.policy.model import EndpointSlice, NamedPort, Node, Pod, Service, ServicePort, SliceEndpoint

IdentityOf = Callable[[str], IdentityId]
"""An address -> its identity, IDENTITY_WORLD where it has none."""


@dataclass(frozen=True, slots=True)
class Target:
    """One backend's address and port."""

    address: str
    port: int


def service_frontends(
    service: Service,
    slices: Sequence[EndpointSlice],
    pods: Sequence[Pod],
    *,
    nodes: Iterable[Node],
    identity_of: IdentityOf,
) -> Iterator[FrontendRow]:
    """All faces of a Service. ``pods``: those its selector chooses, used where it has no slice."""
    faces = _faces(service)
    node_addresses = [address for node in nodes for address in node.addresses] if _has_node_ports(service) else []
    for port in service.ports:
        targets = list(_slice_targets(service, slices, port)) if slices else list(pod_targets(service, pods, port))
        for address, kind in faces:
            yield _frontend(service, port, port.port, address, kind, targets, identity_of)
        if port.node_port:
            for address in node_addresses:
                kind = FrontendKind.NODE_PORT
                yield _frontend(service, port, port.node_port, address, kind, targets, identity_of)


def host_port_frontends(pod: Pod, node: Node | None, identity_of: IdentityOf) -> Iterator[FrontendRow]:
    """A pod's hostPorts: faces of its node. A hostNetwork pod has none; its ports are the node's own."""
    if node is None or not pod.is_governed:
        return
    for port in pod.ports:
        if not port.host_port:
            continue
        for address in node.addresses:
            if port.host_address not in ("", "0.0.0.0", "::", address):
                continue
            targets = [Target(each, port.number) for each in pod.addresses]
            yield FrontendRow(
                address=address,
                protocol=port.protocol,
                port=port.host_port,
                kind=FrontendKind.HOST_PORT,
                service=f"{pod.namespace}/{pod.name}",
                backends=_backends(address, targets, identity_of),
            )


def pod_targets(service: Service, pods: Iterable[Pod], port: ServicePort) -> Iterator[Target]:
    """Where a port of a Service without slices leads. ``pods``: those that its selector chooses."""
    for pod in pods:
        if not pod.is_live or not (pod.is_ready or service.publishes_not_ready):
            continue
        number = port.target
        if isinstance(number, str):
            named = pod.number_of(NamedPort(protocol=port.protocol, name=number))
            if named is None:
                continue
            number = named
        yield from (Target(address, number) for address in pod.addresses)


def target_addresses(slices: Iterable[EndpointSlice]) -> set[str]:
    """Every address that a Service's slices name: whose identities its frontends depend on."""
    return {address for each in slices for endpoint in each.endpoints for address in endpoint.addresses}


def selects(service: Service, pod: Pod) -> bool:
    """Whether a Service's selector chooses a pod. A Service without a selector chooses none."""
    if service.selector is None or service.namespace != pod.namespace:
        return False
    return all(pod.labels.get(key) == value for key, value in service.selector.items())


def _faces(service: Service) -> list[tuple[str, FrontendKind]]:
    return [
        *((address, FrontendKind.CLUSTER_IP) for address in service.cluster_addresses),
        *((address, FrontendKind.EXTERNAL_IP) for address in service.external_addresses),
        *((address, FrontendKind.LOAD_BALANCER) for address in service.balancer_addresses),
    ]


def _has_node_ports(service: Service) -> bool:
    return any(port.node_port for port in service.ports)


def _frontend(
    service: Service,
    port: ServicePort,
    number: int,
    address: str,
    kind: FrontendKind,
    targets: Sequence[Target],
    identity_of: IdentityOf,
) -> FrontendRow:
    return FrontendRow(
        address=address,
        protocol=port.protocol,
        port=number,
        kind=kind,
        service=f"{service.namespace}/{service.name}",
        backends=_backends(address, targets, identity_of),
    )


def _backends(address: str, targets: Sequence[Target], identity_of: IdentityOf) -> tuple[Backend, ...]:
    """Distinct and sorted; an address without an identity stands for itself."""
    found = set()
    for target in targets:
        if (":" in target.address) != (":" in address):
            continue
        identity = identity_of(target.address)
        outside = target.address if identity == IDENTITY_WORLD else ""
        found.add(Backend(identity=identity, port=target.port, address=outside))
    return tuple(sorted(found, key=lambda each: (each.identity, each.port, each.address)))


def _slice_targets(service: Service, slices: Iterable[EndpointSlice], port: ServicePort) -> Iterator[Target]:
    usable = _usable([endpoint for each in slices for endpoint in each.endpoints], service)
    for each in slices:
        numbers = [number for name, protocol, number in each.ports if name == port.name and protocol == port.protocol]
        for endpoint in each.endpoints:
            if endpoint in usable:
                for number in numbers:
                    yield from (Target(address, number) for address in endpoint.addresses)


def _usable(endpoints: Sequence[SliceEndpoint], service: Service) -> Sequence[SliceEndpoint]:
    if service.publishes_not_ready:
        return endpoints
    ready = [endpoint for endpoint in endpoints if endpoint.is_ready]
    return ready or [endpoint for endpoint in endpoints if endpoint.is_serving]
