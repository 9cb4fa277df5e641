"""What the policy core thinks in: policies, the world they apply to, a packet, and what was found about it.

Everything here is normalised: after ``parse`` there is no None-or-empty puzzle, "any" is a value, isolation is a field,
named ports have a protocol. ``evaluate`` and ``compile`` both start from these types and share nothing after them.

Rules of this module: frozen, no I/O, no behaviour beyond lookup.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from schemas.policy import Config, Peer, PortRange, RuleSource, Selector
from schemas.terms import (
    ANY_PROTOCOL,
    Action,
    Default,
    Direction,
    NodeName,
    PolicyKind,
    Protocol,
    Reason,
    Tier,
    Verdict,
)

ANY_PORT = PortRange(protocol=ANY_PROTOCOL)
"""Every protocol, ICMP included: what a rule without ports means."""

AWS_KINDS = frozenset({PolicyKind.AWS_CLUSTER_NETWORK_POLICY, PolicyKind.APPLICATION_NETWORK_POLICY})
NAMESPACED_KINDS = frozenset({PolicyKind.NETWORK_POLICY, PolicyKind.APPLICATION_NETWORK_POLICY})

PRIORITY_LAST = 1001
"""Of a BaselineAdminNetworkPolicy, which has none: after every ClusterNetworkPolicy (0..1000)."""

ObjectKey = tuple[str, str]
"""(namespace, name); the namespace of a cluster-wide object is empty."""
PolicyKey = tuple[str, str, str]
"""(kind, namespace, name)."""
Labels = dict[str, str]

PORT_LABEL_PREFIX = "port:"
ENCRYPTED_DNS_PORTS = frozenset({443, 853})
"""Of a DNS Service, over UDP: HTTP/3 and QUIC, which nobody reads on the way. Source: RFC 9114, 9250."""
DNS_BACKENDS_MAX = 1024
"""Addresses and ports behind the DNS Service that are trusted, the first in order: 64 KB of the row, a quarter
of the agents' map. What is beyond teaches nothing, and is a problem of the Service."""
NO_NODE = NodeName("")
DEFAULT_CONFIG = Config()


class NamedPort(NamedTuple):
    """A port by its name on a pod. ``protocol``: a number, never "any": a name without one becomes several.

    A tuple, because whoever asks for rulesets hashes it.
    """

    protocol: int
    name: str

    @property
    def label(self) -> str:
        """The derived label that carries its number on an identity; ':' is illegal in Kubernetes label keys."""
        return f"{PORT_LABEL_PREFIX}{Protocol(self.protocol).name}/{self.name}"

    @classmethod
    def of_label(cls, label: str) -> NamedPort | None:
        """Inverse of ``label``; None for a real label."""
        protocol, slash, name = label.removeprefix(PORT_LABEL_PREFIX).partition("/")
        if not label.startswith(PORT_LABEL_PREFIX) or not slash or protocol not in Protocol.__members__:
            return None
        return cls(protocol=Protocol[protocol], name=name)


PortSpec = PortRange | NamedPort


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a policy. Matches if any peer and any port match; empty peers or ports match nothing.

    ``name``: its name, else its path (``egress[0]``). ``index``: its place in the policy's list.
    """

    action: Action
    peers: tuple[Peer, ...]
    ports: tuple[PortSpec, ...]
    name: str
    index: int


def hash_rule(direction: Direction, rule: Rule) -> str:
    """16 hex digits of what a rule says, whatever it is called and wherever in its policy it stands."""
    ports = [tuple(port) if isinstance(port, NamedPort) else port for port in rule.ports]
    said = (int(direction), int(rule.action), rule.peers, ports)
    return blake2b(_ENCODER.encode(said), digest_size=8).hexdigest()


_ENCODER = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True, slots=True)
class Subject:
    """The pods that a policy governs."""

    namespaces: Selector
    pods: Selector


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy object, normalised.

    ``created``: creationTimestamp (RFC 3339, sorts as text) or empty. ``isolates``: directions whose unmatched traffic
    it denies; only the NetworkPolicy tier has any. ``is_audited``: it opens and shuts nothing, and is told where it
    would have denied. Problems are not here: a policy that exists is good.
    """

    kind: PolicyKind
    namespace: str
    name: str
    tier: Tier
    priority: int
    subject: Subject
    isolates: frozenset[Direction]
    egress: tuple[Rule, ...]
    ingress: tuple[Rule, ...]
    uid: str = ""
    created: str = ""
    generation: int = 0
    is_audited: bool = False

    @property
    def key(self) -> PolicyKey:
        return (self.kind.value, self.namespace, self.name)

    @property
    def age_key(self) -> tuple[str, str, str, str]:
        """The order in which a tier is filled: oldest first, then by namespace and name. No order of arrival enters."""
        return (self.created, self.namespace, self.name, self.kind.value)

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        return self.egress if direction is Direction.EGRESS else self.ingress

    def source(self, rule: str) -> RuleSource:
        """How a verdict names one of its rules; an empty rule names the policy itself."""
        return RuleSource(kind=self.kind.value, namespace=self.namespace, name=self.name, rule=rule)


# ---------------------------------------------------------------------------------------------------------------------
# The world


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A port that a pod declares. ``host_port`` 0: none."""

    protocol: int
    number: int
    name: str = ""
    host_port: int = 0
    host_address: str = ""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as facts. ``addresses``: what its status says, canonical text. ``is_live``: not Succeeded, not Failed.

    ``owner``: ``Kind/name`` of what made it, empty if nothing did; no policy looks at it.
    """

    namespace: str
    name: str
    uid: str
    labels: Labels = field(default_factory=dict)
    node: NodeName = NO_NODE
    addresses: tuple[str, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    created: str = ""
    host_network: bool = False
    is_live: bool = True
    is_ready: bool = True
    owner: str = ""

    @property
    def key(self) -> ObjectKey:
        return (self.namespace, self.name)

    @property
    def is_governed(self) -> bool:
        """Whether policies see it at all, as subject or peer."""
        return self.is_live and not self.host_network

    def number_of(self, port: NamedPort) -> int | None:
        """The number behind a named port: the first container's that declares it (as Kubernetes' FindPort)."""
        for declared in self.ports:
            if declared.name == port.name and declared.protocol == port.protocol:
                return declared.number
        return None

    def named_ports(self) -> dict[NamedPort, int]:
        """Every named port with its number."""
        found: dict[NamedPort, int] = {}
        for declared in self.ports:
            if declared.name:
                found.setdefault(NamedPort(protocol=declared.protocol, name=declared.name), declared.number)
        return found


@dataclass(frozen=True, slots=True)
class Namespace:
    """``labels`` always hold its name. ``default``: what its annotation asks for; it may only tighten."""

    name: str
    labels: Labels
    default: Default | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """``addresses``: of Node.status, InternalIP and ExternalIP. ``node_class``: whose default holds here."""

    name: NodeName
    uid: str
    labels: Labels = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    default: Default | None = None
    node_class: str = ""


@dataclass(frozen=True, slots=True)
class NodeClass:
    """The default of the nodes that belong to it (EKS: ``spec.networkPolicy``)."""

    name: str
    default: Default | None


@dataclass(frozen=True, slots=True)
class ServicePort:
    """``target``: a number, or a name on the backends. ``node_port`` 0: none."""

    name: str
    protocol: int
    port: int
    target: int | str
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """``selector`` None: its backends come from EndpointSlices alone."""

    namespace: str
    name: str
    cluster_addresses: tuple[str, ...] = ()
    external_addresses: tuple[str, ...] = ()
    balancer_addresses: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    selector: Labels | None = None
    publishes_not_ready: bool = False

    @property
    def key(self) -> ObjectKey:
        return (self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One endpoint of a slice. ``pod``: its name in the slice's namespace, or empty."""

    addresses: tuple[str, ...]
    is_ready: bool
    is_serving: bool = True
    pod: str = ""


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """``ports``: (name, protocol, number); ``service``: the Service's name, in the same namespace."""

    namespace: str
    name: str
    service: str
    endpoints: tuple[SliceEndpoint, ...] = ()
    ports: tuple[tuple[str, int, int], ...] = ()

    @property
    def key(self) -> ObjectKey:
        return (self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Settings:
    """The Yett ConfigMap: what agents need (``config``) and what only the controller does."""

    config: Config = DEFAULT_CONFIG
    namespace_defaults: dict[str, Default] = field(default_factory=dict)
    dns_service: ObjectKey = ("kube-system", "kube-dns")
    """Trusted with what is behind it, beside the ``resolvers`` of ``config``."""
    prefixes: int = 262_144
    """What an agent's table of prefixes holds."""
    prefixes_per_namespace: int = 32_768

    @property
    def prefixes_of_namespaces(self) -> int:
        """Of all namespaces together; the last fifth is for policies of the whole cluster."""
        return self.prefixes * 4 // 5


Fact = Pod | Namespace | Node | NodeClass | Service | EndpointSlice | Settings


@dataclass(frozen=True)
class World:
    """Everything that policies apply to, by key. Treated as immutable by whoever reads it."""

    namespaces: dict[str, Namespace] = field(default_factory=dict)
    pods: dict[ObjectKey, Pod] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    node_classes: dict[str, NodeClass] = field(default_factory=dict)
    services: dict[ObjectKey, Service] = field(default_factory=dict)
    slices: dict[ObjectKey, EndpointSlice] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)


# ---------------------------------------------------------------------------------------------------------------------
# Questions and answers


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a flow. ``port``: destination port in host order, 0 where the protocol has none.

    ``from_own_node``: generated on the node it is delivered on (``ingress_ifindex == 0``), whatever its source says.
    """

    source: str
    destination: str
    protocol: int
    port: int = 0
    from_own_node: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A DNS answer that the subject has received: seconds on the same clock as ``at`` in ``evaluate``."""

    name: str
    addresses: tuple[str, ...]
    ttl_seconds: float
    at: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What was concluded about one direction of one new flow, and why. ``name``: the domain that mattered."""

    verdict: Verdict
    tier: Tier
    reason: Reason
    policy: RuleSource | None = None
    name: str = ""
