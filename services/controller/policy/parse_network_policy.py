"""NetworkPolicy (networking.k8s.io/v1) and ApplicationNetworkPolicy (networking.k8s.aws/v1alpha1).

One reader for both: the second is the first with ``domainNames`` on egress peers.
Sources: the API's Go types and ValidateNetworkPolicy in kubernetes/pkg/apis/networking/validation; the seeds' spellings
``name`` and ``action`` on an ApplicationNetworkPolicy's rule are accepted with a warning.
"""

from __future__ import annotations

from schemas.policy import AnyPeer, CidrPeer, DomainPeer, Peer, PodPeer, Selector
from schemas.terms import Action, Direction, PolicyKind, Tier
from services.controller.policy.model import ANY_PORT, NamedPort, PortSpec, Rule, Subject
from services.controller.policy.parse_fields import (
    read_classic_port,
    read_domain,
    read_ip_block,
    read_selector,
    select_namespace,
)
from services.controller.policy.parse_reader import Reader
from services.controller.policy.parse_spec import Spec

DIRECTIONS = {"Ingress": Direction.INGRESS, "Egress": Direction.EGRESS}
PEERS_FIELD = {Direction.INGRESS: "from", Direction.EGRESS: "to"}
LIST_FIELD = {Direction.INGRESS: "ingress", Direction.EGRESS: "egress"}


def read_spec(spec: Reader, kind: PolicyKind, namespace: str) -> Spec:
    """The whole spec; its faults are in the report."""
    spec.fields("podSelector", "policyTypes", "ingress", "egress")
    subject = read_subject(spec, kind, namespace)
    isolates = read_isolation(spec)
    rules = {}
    for direction in Direction:
        listed = spec.get(LIST_FIELD[direction])
        read = [_read_rule(item, kind, namespace, direction, index) for index, item in enumerate(listed.items())]
        if read and direction not in isolates:
            listed.warn("ignored: policyTypes does not name this direction")
        rules[direction] = tuple(read) if direction in isolates else ()
    return Spec(
        tier=Tier.NETWORK_POLICY,
        priority=0,
        subject=subject,
        isolates=isolates,
        egress=rules[Direction.EGRESS],
        ingress=rules[Direction.INGRESS],
    )


def read_subject(spec: Reader, kind: PolicyKind, namespace: str) -> Subject:
    """``podSelector``; a NetworkPolicy may leave it out, which selects every pod of the namespace."""
    if kind is PolicyKind.APPLICATION_NETWORK_POLICY and not spec.get("podSelector").is_present:
        spec.get("podSelector").fault("required; {} selects all pods")
    return Subject(namespaces=select_namespace(namespace), pods=read_selector(spec.get("podSelector")))


def read_isolation(spec: Reader) -> frozenset[Direction]:
    """``policyTypes``; absent or empty is Ingress, and Egress too where there is any egress rule."""
    given = spec.get("policyTypes").items(at_most=2)
    if not given:
        has_egress = bool(spec.get("egress").value)
        return frozenset(Direction) if has_egress else frozenset({Direction.INGRESS})
    named = [item.choice(*DIRECTIONS) for item in given]
    return frozenset(DIRECTIONS[name] for name in named if name in DIRECTIONS)


def _read_rule(reader: Reader, kind: PolicyKind, namespace: str, direction: Direction, index: int) -> Rule:
    is_application = kind is PolicyKind.APPLICATION_NETWORK_POLICY
    extra = ("name", "action") if is_application else ()
    reader.fields(PEERS_FIELD[direction], "ports", *extra)
    name = _read_extras(reader) if is_application else ""
    with_domains = is_application and direction is Direction.EGRESS
    peers: list[Peer] = []
    for item in reader.get(PEERS_FIELD[direction]).items():
        peers += _read_peer(item, namespace, with_domains=with_domains)
    ports: list[PortSpec] = [read_classic_port(item) for item in reader.get("ports").items()]
    has_outside = direction is Direction.EGRESS and any(isinstance(peer, CidrPeer | DomainPeer) for peer in peers)
    if has_outside and any(isinstance(port, NamedPort) for port in ports):
        reader.get("ports").warn("a named port is a pod's: ipBlock and domainNames match nothing by it")
    return Rule(
        action=Action.ACCEPT,
        peers=tuple(peers) or (AnyPeer(),),
        ports=tuple(ports) or (ANY_PORT,),
        name=name or f"{LIST_FIELD[direction]}[{index}]",
        index=index,
    )


def _read_extras(reader: Reader) -> str:
    """The seeds' ``name`` and ``action``; an ApplicationNetworkPolicy can only accept."""
    for field in ("name", "action"):
        if reader.get(field).is_present:
            reader.get(field).warn(
                f"an ApplicationNetworkPolicy's rule has no {field}; read as in a ClusterNetworkPolicy"
            )
    action = reader.get("action")
    if action.is_present and action.text() not in ("Accept", "Allow"):
        action.fault(f"{action.value!r}: a rule of the NetworkPolicy tier can only Accept")
    return reader.get("name").text()


def _read_peer(reader: Reader, namespace: str, *, with_domains: bool) -> list[Peer]:
    domains = ("domainNames",) if with_domains else ()
    if not reader.fields("podSelector", "namespaceSelector", "ipBlock", *domains):
        return []
    present = reader.present()
    if not present:
        reader.fault("a peer must say something; to match everything leave the list out")
    if "domainNames" in present and domains:
        if len(present) > 1:
            reader.fault("domainNames may not stand beside another kind of peer")
        return [read_domain(item) for item in reader.get("domainNames").distinct(at_least=1)]
    if "ipBlock" in present:
        if len(present) > 1:
            reader.fault("ipBlock may not stand beside a selector")
        return [read_ip_block(reader.get("ipBlock"))]
    namespaces = reader.get("namespaceSelector")
    selected: Selector = read_selector(namespaces) if namespaces.is_present else select_namespace(namespace)
    return [PodPeer(namespaces=selected, pods=read_selector(reader.get("podSelector")))]
