"""Rows of what is: namespaces, identities, addresses, frontends. Incremental: an event touches what it concerns.

* An identity is a namespace and those labels that some policy names. Keys in use only grow (until many lie idle), so
  that removing and re-adding a policy moves no pod's rows.
* An address belongs to the node that has it, else to the newest live pod; hostNetwork pods have none of their own.
* A namespace that only pods speak of exists with its name as its one label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from schemas import wire
from schemas.policy import AddressRow, FrontendRow, IdentityRow, NamespaceRow, PodPeer
from schemas.selectors import NAMESPACE_NAME_LABEL
from schemas.terms import IDENTITY_WORLD, AddressKind, IdentityId
from services.controller.marks import Marks
from services.controller.policy import frontends
from services.controller.policy.identity import Identities
from services.controller.policy.model import (
    EndpointSlice,
    Labels,
    NamedPort,
    Namespace,
    Node,
    ObjectKey,
    Pod,
    Service,
    World,
)
from services.controller.policy.select import Named
from services.controller.ports import NamedPorts
from services.controller.rows import RowStore

Owner = tuple[int, str]
"""Who claims a frontend: (kind, object); the lowest wins, so a ClusterIP before anybody's external address."""


class Facts:
    """The world and its rows. ``touched``: pods whose endpoint must be looked at again; who handles them clears it."""

    def __init__(self, rows: RowStore, identities: Identities) -> None:
        self.world = World()
        self.touched: Marks[ObjectKey] = Marks()
        self._named = Named()
        self._ports = NamedPorts()
        self._pods_on: dict[str, set[ObjectKey]] = {}
        self._rows = rows
        self._identities = identities
        self._pods_in: dict[str, set[ObjectKey]] = {}
        self._claims: dict[str, set[ObjectKey]] = {}
        self._node_at: dict[str, str] = {}
        self._pod_identity: dict[ObjectKey, IdentityId] = {}
        self._node_identity: dict[str, IdentityId] = {}
        self._users: Counter[IdentityId] = Counter()
        self._address_identity: dict[str, IdentityId] = {}
        self._slices_of: dict[ObjectKey, set[ObjectKey]] = {}
        self._services_at: dict[str, set[ObjectKey]] = {}
        self._selecting: dict[str, set[ObjectKey]] = {}
        self._frontends: dict[str, dict[Owner, bytes]] = {}
        self._faces: dict[str, set[str]] = {}
        self._targets: dict[ObjectKey, set[str]] = {}
        self._all_pods_in: dict[str, set[ObjectKey]] = {}
        self._stale_pods: Marks[ObjectKey] = Marks()
        self._stale_nodes: Marks[str] = Marks()
        self._stale_addresses: Marks[str] = Marks()
        self._stale_services: Marks[ObjectKey] = Marks()
        self._stale_hosts: Marks[ObjectKey] = Marks()

    # -- events -------------------------------------------------------------------------------------------------------

    def put_namespace(self, namespace: Namespace) -> None:
        self.world.namespaces[namespace.name] = namespace
        self._write_namespace(namespace.name)

    def drop_namespace(self, name: str) -> None:
        self.world.namespaces.pop(name, None)
        self._write_namespace(name)

    def put_pod(self, pod: Pod) -> None:
        self._unindex_pod(self.world.pods.get(pod.key))
        self.world.pods[pod.key] = pod
        self._index_pod(pod)
        self._write_namespace(pod.namespace)

    def drop_pod(self, key: ObjectKey) -> None:
        self._unindex_pod(self.world.pods.pop(key, None))
        self._write_namespace(key[0])

    def put_node(self, node: Node) -> None:
        self.drop_node(node.name)
        self.world.nodes[node.name] = node
        for address in node.addresses:
            self._node_at[address] = node.name
        self._stale_node(node)

    def drop_node(self, name: str) -> None:
        node = self.world.nodes.pop(name, None)
        if node is not None:
            for address in node.addresses:
                self._node_at.pop(address, None)
            self._stale_node(node)

    def put_service(self, service: Service) -> None:
        self.drop_service(service.key)
        self.world.services[service.key] = service
        self._selecting.setdefault(service.namespace, set()).add(service.key)

    def drop_service(self, key: ObjectKey) -> None:
        self.world.services.pop(key, None)
        self._selecting.get(key[0], set()).discard(key)
        self._stale_services.add(key)

    def put_slice(self, each: EndpointSlice) -> None:
        self.drop_slice(each.key)
        self.world.slices[each.key] = each
        service = (each.namespace, each.service)
        self._slices_of.setdefault(service, set()).add(each.key)
        self._stale_services.add(service)

    def drop_slice(self, key: ObjectKey) -> None:
        each = self.world.slices.pop(key, None)
        if each is not None:
            service = (each.namespace, each.service)
            self._slices_of.get(service, set()).discard(key)
            self._stale_services.add(service)

    def name_labels(self, named: Named) -> None:
        """What identities are made of; the pods and nodes that it concerns get new ones."""
        changed = named ^ self._named
        self._named = named
        if changed.pods:
            self._stale_pods.add_all(key for key, pod in self.world.pods.items() if changed.pods & pod.labels.keys())
        if changed.nodes:
            nodes = self.world.nodes.items()
            self._stale_nodes.add_all(name for name, node in nodes if changed.nodes & node.labels.keys())
        for port in changed.ports:
            self._stale_pods.add_all(self._ports.bearers(port))

    # -- questions ----------------------------------------------------------------------------------------------------

    def namespace_labels(self, name: str) -> Labels:
        namespace = self.world.namespaces.get(name)
        return namespace.labels if namespace is not None else {NAMESPACE_NAME_LABEL: name}

    def has_namespace(self, name: str) -> bool:
        return name in self.world.namespaces or bool(self._pods_in.get(name))

    def identity_of_pod(self, key: ObjectKey) -> IdentityId:
        return self._pod_identity[key]

    def pods_in(self, namespace: str) -> set[ObjectKey]:
        return self._pods_in.get(namespace, set())

    def numbers_of(self, port: NamedPort, peers: Iterable[PodPeer]) -> set[int]:
        """The numbers that a named port has on the pods that some peer selects."""
        return self._ports.numbers(port, peers, self.namespace_labels)

    def backing(self, service: Service) -> tuple[list[EndpointSlice], list[Pod]]:
        """A Service's slices, else the pods that it selects; in order of their names."""
        slices = [self.world.slices[each] for each in sorted(self._slices_of.get(service.key, ()))]
        return slices, [] if slices else self._selected_pods(service)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def write_rows(self) -> None:
        """Bring the rows of everything stale up to date: identities, then addresses, then frontends."""
        for name in self._stale_nodes:
            self._write_node(name)
        for key in self._stale_pods:
            self._write_pod(key)
        for address in self._stale_addresses:
            self._write_address(address)
        for key in self._stale_services:
            self._write_service(key)
        for key in self._stale_hosts:
            self._write_host_ports(key)
        self._stale_nodes.clear()
        self._stale_pods.clear()
        self._stale_addresses.clear()
        self._stale_services.clear()
        self._stale_hosts.clear()

    def _index_pod(self, pod: Pod) -> None:
        self._stale_pods.add(pod.key)
        self.touched.add(pod.key)
        self._all_pods_in.setdefault(pod.namespace, set()).add(pod.key)
        if pod.is_governed:
            self._pods_in.setdefault(pod.namespace, set()).add(pod.key)
            self._pods_on.setdefault(pod.node, set()).add(pod.key)
            for address in pod.addresses:
                self._claims.setdefault(address, set()).add(pod.key)
            self._ports.add(pod)
        self._stale_around(pod)

    def _unindex_pod(self, pod: Pod | None) -> None:
        if pod is None:
            return
        self._stale_pods.add(pod.key)
        self.touched.add(pod.key)
        self._all_pods_in.get(pod.namespace, set()).discard(pod.key)
        self._pods_in.get(pod.namespace, set()).discard(pod.key)
        self._pods_on.get(pod.node, set()).discard(pod.key)
        for address in pod.addresses:
            self._claims.get(address, set()).discard(pod.key)
        self._ports.remove(pod)
        self._stale_around(pod)

    def _stale_around(self, pod: Pod) -> None:
        """What depends on a pod: its addresses, the Services that choose it, its hostPorts."""
        self._stale_addresses.add_all(pod.addresses)
        for key in self._selecting.get(pod.namespace, ()):
            if frontends.selects(self.world.services[key], pod):
                self._stale_services.add(key)
        if any(port.host_port for port in pod.ports):
            self._stale_hosts.add(pod.key)

    def _stale_node(self, node: Node) -> None:
        self._stale_nodes.add(node.name)
        self._stale_addresses.add_all(node.addresses)
        for key, service in self.world.services.items():
            if any(port.node_port for port in service.ports):
                self._stale_services.add(key)
        for key in self._pods_on.get(node.name, ()):
            self.touched.add(key)
            if any(port.host_port for port in self.world.pods[key].ports):
                self._stale_hosts.add(key)

    def _write_namespace(self, name: str) -> None:
        subject = wire.subject_namespace(name)
        if self.has_namespace(name):
            self._rows.put(subject, wire.encode(NamespaceRow(name=name, labels=self.namespace_labels(name))))
        else:
            self._rows.drop(subject)

    def _write_pod(self, key: ObjectKey) -> None:
        pod = self.world.pods.get(key)
        old = self._pod_identity.pop(key, None)
        if pod is not None and pod.is_governed:
            labels = {label: value for label, value in pod.labels.items() if label in self._named.pods}
            for port in self._named.ports:
                number = pod.number_of(port)
                if number is not None:
                    labels[port.label] = str(number)
            self._pod_identity[key] = self._use(AddressKind.POD, pod.namespace, labels)
            if self._pod_identity[key] != old:
                self._stale_addresses.add_all(pod.addresses)
                self.touched.add(key)
                self._stale_around(pod)
        if old is not None:
            self._release(old)

    def _write_node(self, name: str) -> None:
        node = self.world.nodes.get(name)
        old = self._node_identity.pop(name, None)
        if node is not None:
            labels = {label: value for label, value in node.labels.items() if label in self._named.nodes}
            self._node_identity[name] = self._use(AddressKind.NODE, "", labels)
            if self._node_identity[name] != old:
                self._stale_addresses.add_all(node.addresses)
        if old is not None:
            self._release(old)

    def _use(self, kind: AddressKind, namespace: str, labels: Labels) -> IdentityId:
        identity = self._identities.number_of(kind, namespace, labels)
        self._users[identity] += 1
        if self._users[identity] == 1:
            row = IdentityRow(id=identity, kind=kind, namespace=namespace, labels=labels)
            self._rows.put(wire.subject_identity(identity), wire.encode(row))
        return identity

    def _release(self, identity: IdentityId) -> None:
        self._users[identity] -= 1
        if not self._users[identity]:
            del self._users[identity]
            self._rows.drop(wire.subject_identity(identity))

    def _write_address(self, address: str) -> None:
        row = self._address_row(address)
        subject = wire.subject_address(address)
        old = self._address_identity.pop(address, IDENTITY_WORLD)
        if row is None:
            self._rows.drop(subject)
        else:
            self._address_identity[address] = row.identity
            self._rows.put(subject, wire.encode(row))
        if old != self._address_identity.get(address, IDENTITY_WORLD):
            self._stale_services.add_all(self._services_at.get(address, ()))
            self._stale_hosts.add_all(self._claims.get(address, ()))

    def _address_row(self, address: str) -> AddressRow | None:
        name = self._node_at.get(address)
        if name is not None:
            node = self.world.nodes[name]
            return AddressRow(
                address=address,
                kind=AddressKind.NODE,
                identity=self._node_identity[name],
                uid=node.uid,
                owner=name,
                node=node.name,
            )
        claims = self._claims.get(address)
        if not claims:
            return None
        pod = max((self.world.pods[key] for key in claims), key=lambda each: (each.created, each.key))
        return AddressRow(
            address=address,
            identity=self._pod_identity[pod.key],
            uid=pod.uid,
            owner=f"{pod.namespace}/{pod.name}",
            node=pod.node,
        )

    def _identity_at(self, address: str) -> IdentityId:
        return self._address_identity.get(address, IDENTITY_WORLD)

    def _write_service(self, key: ObjectKey) -> None:
        service = self.world.services.get(key)
        rows: Iterable[FrontendRow] = ()
        targets: set[str] = set()
        if service is not None:
            slices, pods = self.backing(service)
            targets = frontends.target_addresses(slices) | {address for pod in pods for address in pod.addresses}
            rows = frontends.service_frontends(
                service, slices, pods, nodes=self.world.nodes.values(), identity_of=self._identity_at
            )
        self._depend(key, targets)
        self._write_frontends(rows, f"{FRONTEND_OF_SERVICE} {key[0]}/{key[1]}")

    def _depend(self, service: ObjectKey, targets: set[str]) -> None:
        """Note on whose addresses' identities a Service's frontends depend."""
        before = self._targets.pop(service, set())
        for address in before - targets:
            self._services_at[address].discard(service)
        for address in targets - before:
            self._services_at.setdefault(address, set()).add(service)
        if targets:
            self._targets[service] = targets

    def _selected_pods(self, service: Service) -> list[Pod]:
        keys = sorted(self._all_pods_in.get(service.namespace, ()))
        return [pod for key in keys if frontends.selects(service, pod := self.world.pods[key])]

    def _write_host_ports(self, key: ObjectKey) -> None:
        pod = self.world.pods.get(key)
        node = self.world.nodes.get(pod.node) if pod is not None else None
        rows = frontends.host_port_frontends(pod, node, self._identity_at) if pod is not None else ()
        self._write_frontends(rows, f"{FRONTEND_OF_HOST_PORT} {key[0]}/{key[1]}")

    def _write_frontends(self, rows: Iterable[FrontendRow], name: str) -> None:
        """Replace what one object claims; of several claims on one address and port the lowest owner's stands."""
        before = self._faces.pop(name, set())
        for subject in before:
            claims = self._frontends[subject]
            self._frontends[subject] = {owner: body for owner, body in claims.items() if owner[1] != name}
        claimed: set[str] = set()
        for row in rows:
            subject = wire.subject_frontend(row.address, row.protocol, row.port)
            self._frontends.setdefault(subject, {})[int(row.kind), name] = wire.encode(row)
            claimed.add(subject)
        if claimed:
            self._faces[name] = claimed
        for subject in before | claimed:
            claims = self._frontends[subject]
            if claims:
                self._rows.put(subject, claims[min(claims)])
            else:
                del self._frontends[subject]
                self._rows.drop(subject)


FRONTEND_OF_SERVICE = "service"
FRONTEND_OF_HOST_PORT = "host-port"
