"""Whose answers count: what the setting lists, the cluster's DNS Service, and what answers behind it.

* The Service's address is what a pod's packets bear where they are translated behind its interface (kube-proxy). Where
  they are translated in its socket (load balancers in eBPF), or a headless Service's names are asked, they bear a
  backend's own address and port.
* Which ports speak DNS is told by protocol, not by name: distributions call them ``dns``, ``udp-53`` or nothing.

Deliberately absent: what a Service shows to the outside, which is trusted nowhere; every node finds that out itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schemas.policy import Resolver
from schemas.terms import Protocol
from services.controller.policy import frontends
from services.controller.policy.model import (
    DNS_BACKENDS_MAX,
    ENCRYPTED_DNS_PORTS,
    EndpointSlice,
    Pod,
    Service,
    ServicePort,
    Settings,
)

Place = tuple[str, int]
"""(address, port)."""


@dataclass(frozen=True, slots=True)
class Trusted:
    """``named``: what pods are told to ask, by setting and Service. ``left_out``: backends that were too many."""

    named: tuple[Resolver, ...] = ()
    backends: tuple[Resolver, ...] = ()
    left_out: int = 0

    @property
    def resolvers(self) -> tuple[Resolver, ...]:
        """In a canonical order: the same facts in any order are the same bytes."""
        return self.named + self.backends


def find_trusted(
    settings: Settings, service: Service | None, slices: Sequence[EndpointSlice], pods: Sequence[Pod]
) -> Trusted:
    """``service``: the one of ``dns_service``. ``pods``: those that it selects, used where it has no slice.

    What the setting says of an address and port holds, also where they are the Service's.
    """
    listed = settings.config.resolvers
    if service is None:
        return Trusted(named=listed)
    known = {(each.address, each.port) for each in listed}
    own = {(address, port.port) for port in dns_ports(service) for address in service.cluster_addresses} - known
    behind = sorted(set(_backends(service, slices, pods)) - known - own)
    return Trusted(
        named=listed + _trust(sorted(own)),
        backends=_trust(behind[:DNS_BACKENDS_MAX]),
        left_out=max(0, len(behind) - DNS_BACKENDS_MAX),
    )


def dns_ports(service: Service) -> list[ServicePort]:
    """UDP, but what is encrypted; and TCP of the same number, where the same is served (RFC 7766)."""
    numbers = {port.port for port in service.ports if port.protocol == Protocol.UDP} - ENCRYPTED_DNS_PORTS
    return [port for port in service.ports if port.protocol in (Protocol.UDP, Protocol.TCP) and port.port in numbers]


def _trust(places: Sequence[Place]) -> tuple[Resolver, ...]:
    return tuple(Resolver(address=address, port=port) for address, port in places)


def _backends(service: Service, slices: Sequence[EndpointSlice], pods: Sequence[Pod]) -> Iterator[Place]:
    for port in dns_ports(service):
        if not slices:
            yield from ((each.address, each.port) for each in frontends.pod_targets(service, pods, port))
        for each in slices:
            yield from _serving(each, port)


def _serving(each: EndpointSlice, port: ServicePort) -> Iterator[Place]:
    """Ready ones, and those that still serve while they terminate: they answer what they were asked before."""
    numbers = [number for name, protocol, number in each.ports if (name, protocol) == (port.name, port.protocol)]
    for endpoint in each.endpoints:
        if endpoint.is_ready or endpoint.is_serving:
            yield from ((address, number) for number in numbers for address in endpoint.addresses)
