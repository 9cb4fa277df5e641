"""The cluster-wide policies: one reader, three dialects.

* ``networking.k8s.aws/v1alpha1 ClusterNetworkPolicy`` (AWS): Accept, Deny, Pass; ``ports``; the seeds' spellings.
* ``policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy`` (UPSTREAM): Accept, Deny, Pass; ``protocols``, which the
  first publications of v1alpha2 had as ``ports``.
* ``policy.networking.k8s.io/v1beta1 ClusterNetworkPolicy`` (BETA): the same, with ``protocols`` alone.
* ``policy.networking.k8s.io/v1alpha1 AdminNetworkPolicy``, ``BaselineAdminNetworkPolicy``: Allow, Deny, Pass;
  ``ports``.

What differs is data in ``Dialect``. Sources: apis/v1alpha1 and apis/v1alpha2 of kubernetes-sigs/network-policy-api with
their validation markers, pkg/crd/crds.yaml of aws/amazon-network-policy-controller-k8s, NPEP-133 for domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from schemas.policy import CidrPeer, NodePeer, Peer, PodPeer, PortRange, Selector
from schemas.terms import Action, Direction, PolicyKind, Tier
from services.controller.policy.model import ANY_PORT, PRIORITY_LAST, PortSpec, Rule, Subject
from services.controller.policy.parse_fields import (
    PROTOCOLS,
    name_for_every_protocol,
    read_cidr,
    read_classic_port,
    read_domain,
    read_namespaced_pods,
    read_port_name,
    read_port_number,
    read_protocol,
    read_range,
    read_selector,
)
from services.controller.policy.parse_reader import Reader
from services.controller.policy.parse_spec import Spec

PRIORITY_MAX = 1000
NETWORKS_MAX = 25
"""Networks, and names, of one peer."""
CIDR_TEXT_MAX = 43
RULE_NAME_MAX = 100
PEERS_FIELD = {Direction.INGRESS: "from", Direction.EGRESS: "to"}
LIST_FIELD = {Direction.INGRESS: "ingress", Direction.EGRESS: "egress"}
ACTIONS = {"Accept": Action.ACCEPT, "Allow": Action.ACCEPT, "Deny": Action.DENY, "Pass": Action.PASS}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one API spells the same thing. ``tier`` None: the object says."""

    kind: PolicyKind
    actions: tuple[str, ...]
    ports_field: str
    tier: Tier | None = None
    has_priority: bool = True
    is_seed: bool = False
    """Accept the seeds' spellings, with a warning."""
    items_max: int = 100
    """Rules of one direction, peers of a rule, ports of a rule."""
    outside: tuple[str, ...] = ("nodes", "networks", "domainNames")
    """Egress peers beyond pods and namespaces."""
    needs_namespace_selector: bool = True
    """``pods`` without ``namespaceSelector`` is refused; v1alpha2 alone reads it as all namespaces."""
    has_underscore_names: bool = True
    """A label of a domain may begin with an underscore: the older pattern's range ``A-z`` holds it."""
    takes_embedded: bool = True
    """Whether an IPv6 prefix may be written with a dotted quad."""
    named_port_anywhere: bool = False
    """Whether a rule with a named port may have peers that are no pods; they match nothing by it."""
    takes_host_bits: bool = True
    """Whether bits beyond a prefix's length may be set: they are cleared, with a warning."""
    former_ports_field: str = ""
    """What an earlier publication of the same version had in the place of ``ports_field``: read with a warning."""


DIALECTS = {
    PolicyKind.AWS_CLUSTER_NETWORK_POLICY: Dialect(
        kind=PolicyKind.AWS_CLUSTER_NETWORK_POLICY,
        actions=("Accept", "Deny", "Pass"),
        ports_field="ports",
        is_seed=True,
        outside=("networks", "domainNames"),
        named_port_anywhere=True,
    ),
    PolicyKind.CLUSTER_NETWORK_POLICY: Dialect(
        kind=PolicyKind.CLUSTER_NETWORK_POLICY,
        actions=("Accept", "Deny", "Pass"),
        ports_field="protocols",
        items_max=25,
        needs_namespace_selector=False,
        has_underscore_names=False,
        former_ports_field="ports",
    ),
    PolicyKind.ADMIN_NETWORK_POLICY: Dialect(
        kind=PolicyKind.ADMIN_NETWORK_POLICY,
        actions=("Allow", "Deny", "Pass"),
        ports_field="ports",
        tier=Tier.ADMIN,
        takes_embedded=False,
    ),
    PolicyKind.BASELINE_ADMIN_NETWORK_POLICY: Dialect(
        kind=PolicyKind.BASELINE_ADMIN_NETWORK_POLICY,
        actions=("Allow", "Deny"),
        ports_field="ports",
        tier=Tier.BASELINE,
        has_priority=False,
        outside=("nodes", "networks"),
        takes_embedded=False,
    ),
}

BETA = replace(DIALECTS[PolicyKind.CLUSTER_NETWORK_POLICY], takes_host_bits=False, former_ports_field="")
"""``policy.networking.k8s.io/v1beta1``: v1alpha2 as it stands now, with one validation expression more."""


def read_spec(spec: Reader, kind: PolicyKind, *, is_beta: bool = False) -> Spec:
    """The whole spec; its faults are in the report."""
    dialect = BETA if is_beta else DIALECTS[kind]
    tier = () if dialect.tier is not None else ("tier",)
    priority = ("priority",) if dialect.has_priority else ()
    spec.fields(*tier, *priority, "subject", "ingress", "egress")
    return Spec(
        tier=dialect.tier if dialect.tier is not None else _read_tier(spec.get("tier"), dialect),
        priority=spec.get("priority").integer(first=0, last=PRIORITY_MAX) if priority else PRIORITY_LAST,
        subject=_read_subject(spec.get("subject"), dialect),
        isolates=frozenset(),
        egress=_read_rules(spec, dialect, Direction.EGRESS),
        ingress=_read_rules(spec, dialect, Direction.INGRESS),
    )


def _read_tier(reader: Reader, dialect: Dialect) -> Tier:
    text = reader.required_text()
    if dialect.is_seed and text in ("admin", "baseline"):
        reader.warn(f"{text!r} is read as {text.capitalize()!r}")
        text = text.capitalize()
    if reader.is_present and text not in ("Admin", "Baseline"):
        reader.fault(f"{text!r} is none of Admin, Baseline")
    return Tier.BASELINE if text == "Baseline" else Tier.ADMIN


def _read_subject(reader: Reader, dialect: Dialect) -> Subject:
    if not reader.is_present:
        reader.fault("required")
        return Subject(namespaces=Selector(), pods=Selector())
    reader.fields("namespaces", "pods")
    if len(reader.present()) != 1:
        reader.fault("exactly one of namespaces, pods is expected")
    if reader.get("pods").is_present:
        pods = _read_pods(reader.get("pods"), dialect)
        return Subject(namespaces=pods.namespaces, pods=pods.pods)
    return Subject(namespaces=_read_namespaces(reader.get("namespaces"), dialect), pods=Selector())


def _read_namespaces(reader: Reader, dialect: Dialect) -> Selector:
    """A LabelSelector, or in the seeds one wrapped in ``namespaceSelector``."""
    if dialect.is_seed and reader.present() == ["namespaceSelector"]:
        reader.get("namespaceSelector").warn("namespaces is a label selector itself; namespaceSelector is read as it")
        return read_selector(reader.get("namespaceSelector"))
    return read_selector(reader)


def _read_pods(reader: Reader, dialect: Dialect) -> PodPeer:
    namespaces = reader.get("namespaceSelector")
    if dialect.needs_namespace_selector and not namespaces.is_present:
        namespaces.fault("required; {} selects all namespaces")
    return read_namespaced_pods(reader)


def _read_rules(spec: Reader, dialect: Dialect, direction: Direction) -> tuple[Rule, ...]:
    listed = spec.get(LIST_FIELD[direction]).items(at_most=dialect.items_max)
    return tuple(_read_rule(item, dialect, direction, index) for index, item in enumerate(listed))


def _read_rule(reader: Reader, dialect: Dialect, direction: Direction, index: int) -> Rule:
    ports_fields = {dialect.ports_field, _find_ports(reader, dialect)}
    reader.fields("name", "action", PEERS_FIELD[direction], *sorted(ports_fields, reverse=True))
    name = reader.get("name").text()
    if len(name) > RULE_NAME_MAX:
        reader.get("name").fault(f"longer than {RULE_NAME_MAX} characters")
    action = _read_action(reader.get("action"), dialect)
    peers: list[Peer] = []
    for item in reader.get(PEERS_FIELD[direction]).items(at_least=1, at_most=dialect.items_max):
        peers += _read_peer(item, dialect, direction, action)
    ports = _read_ports(reader, dialect)
    _check_named_ports(reader, dialect, peers, ports)
    return Rule(
        action=action,
        peers=tuple(peers),
        ports=ports,
        name=name or f"{LIST_FIELD[direction]}[{index}]",
        index=index,
    )


def _check_named_ports(reader: Reader, dialect: Dialect, peers: Sequence[Peer], ports: Sequence[PortSpec]) -> None:
    """A name is a pod's; upstream's validation refuses it beside other peers, the AWS schema does not."""
    if all(isinstance(port, PortRange) for port in ports) or all(isinstance(peer, PodPeer) for peer in peers):
        return
    reader = reader.get(_find_ports(reader, dialect))
    if dialect.named_port_anywhere:
        reader.warn("a named port is a pod's: networks and domainNames match nothing by it")
    else:
        reader.fault("a named port cannot go with networks, nodes or domainNames")


def _read_action(reader: Reader, dialect: Dialect) -> Action:
    text = reader.required_text()
    if dialect.is_seed and text == "Allow":
        reader.warn("'Allow' is read as 'Accept'")
    elif reader.is_present and text not in dialect.actions:
        reader.fault(f"{text!r} is none of {', '.join(dialect.actions)}")
    return ACTIONS.get(text, Action.DENY)


def _read_peer(reader: Reader, dialect: Dialect, direction: Direction, action: Action) -> list[Peer]:
    outside = dialect.outside if direction is Direction.EGRESS else ()
    if not reader.fields("namespaces", "pods", *outside):
        return []
    if len(reader.present()) != 1:
        reader.fault(f"exactly one of {', '.join(('namespaces', 'pods', *outside))} is expected")
        return []
    chosen = reader.get(reader.present()[0])
    field = reader.present()[0]
    if field == "namespaces":
        return [PodPeer(namespaces=_read_namespaces(chosen, dialect))]
    if field == "pods":
        return [_read_pods(chosen, dialect)]
    if field == "nodes":
        return [NodePeer(nodes=read_selector(chosen))]
    if field == "networks":
        return [_read_network(item, dialect) for item in chosen.distinct(at_least=1, at_most=NETWORKS_MAX)]
    if field == "domainNames":
        if action is not Action.ACCEPT:
            chosen.fault("domainNames can only be accepted: a name that is not known cannot be denied")
        listed = chosen.distinct(at_least=1, at_most=NETWORKS_MAX)
        return [read_domain(item, takes_underscore=dialect.has_underscore_names) for item in listed]
    return []


def _read_network(reader: Reader, dialect: Dialect) -> Peer:
    if dialect.is_seed and isinstance(reader.value, dict):
        reader.fields("cidr")
        reader.warn("networks is a list of CIDRs; {cidr: ..} is read as one")
        reader = reader.get("cidr")
    text = reader.value if isinstance(reader.value, str) else ""
    if len(text) > CIDR_TEXT_MAX:
        reader.fault(f"longer than {CIDR_TEXT_MAX} characters")
    elif not dialect.takes_embedded and ":" in text and "." in text:
        reader.fault(f"{text!r}: an IPv4 address inside an IPv6 prefix is not supported by this API")
    return CidrPeer(cidr=read_cidr(reader, takes_host_bits=dialect.takes_host_bits))


# ---------------------------------------------------------------------------------------------------------------------
# Ports


def _find_ports(rule: Reader, dialect: Dialect) -> str:
    """The field that stands there: the one in use, or the one that it replaced."""
    former = dialect.former_ports_field
    return former if former and rule.get(former).is_present else dialect.ports_field


def _read_ports(rule: Reader, dialect: Dialect) -> tuple[PortSpec, ...]:
    """Absent is every protocol."""
    field = _find_ports(rule, dialect)
    reader, is_former = rule.get(field), field != dialect.ports_field
    if is_former and rule.get(dialect.ports_field).is_present:
        reader.fault(f"{dialect.ports_field} replaces it: give one of the two")
    elif is_former:
        reader.warn(f"read as the first publications of this version had it; now it is {dialect.ports_field}")
    is_protocols = field == "protocols"
    at_least = 1 if reader.is_present else 0
    ports: list[PortSpec] = []
    for item in reader.items(at_least=at_least, at_most=dialect.items_max):
        ports += _read_protocol_match(item) if is_protocols else _read_port(item, dialect)
    return tuple(ports) or (ANY_PORT,)


def _read_port(reader: Reader, dialect: Dialect) -> list[PortSpec]:
    if dialect.is_seed and set(reader.present()) & {"protocol", "port", "endPort"}:
        reader.warn("{protocol, port} is read as {portNumber: {protocol, port}}")
        port = read_classic_port(reader)
        return [port]
    if not reader.fields("portNumber", "portRange", "namedPort"):
        return []
    if len(reader.present()) != 1:
        reader.fault("exactly one of portNumber, portRange, namedPort is expected")
        return []
    if reader.get("namedPort").is_present:
        return [*name_for_every_protocol(read_port_name(reader.get("namedPort")))]
    if reader.get("portRange").is_present:
        ranged = reader.get("portRange")
        ranged.fields("protocol", "start", "end")
        protocol = read_protocol(ranged.get("protocol"))
        return [read_range(ranged, protocol, first="start", last="end", is_strict=True)]
    single = reader.get("portNumber")
    single.fields("protocol", "port")
    number = read_port_number(single.get("port"))
    return [PortRange(protocol=read_protocol(single.get("protocol")), first=number, last=number)]


def _read_protocol_match(reader: Reader) -> list[PortSpec]:
    """v1alpha2: ``{tcp|udp|sctp: {destinationPort: {number|range}}}`` or ``{destinationNamedPort: name}``."""
    if not reader.fields("tcp", "udp", "sctp", "destinationNamedPort"):
        return []
    if len(reader.present()) != 1:
        reader.fault("exactly one of tcp, udp, sctp, destinationNamedPort is expected")
        return []
    field = reader.present()[0]
    chosen = reader.get(field)
    if field == "destinationNamedPort":
        return [*name_for_every_protocol(read_port_name(chosen))]
    if field.upper() not in PROTOCOLS or not chosen.fields("destinationPort"):
        return []
    port = chosen.get("destinationPort")
    if not port.is_present:
        chosen.fault("destinationPort is expected")
        return []
    return [_read_destination_port(port, field)]


def _read_destination_port(reader: Reader, field: str) -> PortSpec:
    protocol = PROTOCOLS[field.upper()]
    reader.fields("number", "range")
    if len(reader.present()) != 1:
        reader.fault("exactly one of number, range is expected")
    elif reader.get("range").is_present:
        ranged = reader.get("range")
        ranged.fields("start", "end")
        return read_range(ranged, protocol, first="start", last="end", is_strict=True)
    number = read_port_number(reader.get("number"))
    return PortRange(protocol=protocol, first=number, last=number)
