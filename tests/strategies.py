"""Random clusters, policies of every kind as Kubernetes objects, answers, and packets between them.

One generator, two dice: ``RandomDice`` rolls evenly from a seed, for volume; ``DrawnDice`` lets hypothesis choose, for
shrinking. Pools are small on purpose: random labels, prefixes and ports must meet to say anything.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

from services.controller.policy.model import Answer, Packet
from tests import builders as k8s

Obj = dict[str, Any]
T = TypeVar("T")

NAMESPACES = ("app", "db", "team.one")
NODES = {"node-a": ("192.168.0.1", "fd01::1"), "node.b": ("192.168.0.2",)}
POD_ADDRESSES = tuple(f"10.244.0.{n}" for n in range(1, 9))
POD_ADDRESSES_6 = tuple(f"fd00::{n}" for n in range(1, 9))
OUTSIDE_6 = ("2001:db8::7", "fd00::77")
OUTSIDE = ("198.51.100.7", "198.51.100.8", "203.0.113.9", "169.254.169.254", "10.9.9.9", "10.244.0.200")
SERVICES = {"10.100.0.1": "web", "10.100.0.2": "all", "10.100.0.3": "empty", "10.100.0.10": "kube-dns"}
DOMAINS = ("example.com", "a.example.com", "b.a.example.com", "example.org", "x.example.org")
PATTERNS = ("example.com", "*.example.com", "*.a.example.com", "example.org", "*.example.org", "*.Example.COM.")
INNER = {"0.0.0.0/0": "10.0.0.0/8", "10.0.0.0/8": "10.244.0.0/16", "198.51.100.0/24": "198.51.100.7/32"}
CIDRS = (
    *INNER,
    "::/0",
    "10.244.0.0/16",
    "10.244.0.2/32",
    "10.100.0.0/16",
    "198.51.100.7/32",
    "169.254.169.254/32",
    "192.168.0.0/24",
    "2001:db8::/32",
    "fd00::/64",
)
PORTS = (53, 80, 443, 8080)
PORT_NAMES = ("http", "dns")
PROTOCOLS = ("TCP", "TCP", "UDP", "SCTP")
VALUES = {"app": "xy", "tier": "pq", "team": "xy", "zone": "pq"}
AT = 1000.0
"""The moment at which packets are judged; answers lie before it."""


class Dice(Protocol):
    """Where randomness comes from."""

    def pick(self, options: Sequence[T]) -> T: ...


@dataclass
class RandomDice:
    """Even, from a seed."""

    random: random.Random

    def pick(self, options: Sequence[T]) -> T:
        return self.random.choice(options)


@dataclass
class DrawnDice:
    """Hypothesis' choice: the first option is the simplest."""

    draw: st.DrawFn

    def pick(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(options))


@dataclass(frozen=True)
class Scene:
    """Everything that one question needs."""

    cluster: list[Obj]
    policies: list[Obj]
    answers: list[Answer]
    packets: list[Packet]


def make_scene(dice: Dice, *, packets: int) -> Scene:
    return Scene(
        cluster=make_cluster(dice),
        policies=make_policies(dice),
        answers=make_answers(dice),
        packets=[make_packet(dice) for _ in range(packets)],
    )


@st.composite
def scenes(draw: st.DrawFn, *, packets: int = 20) -> Scene:
    """For ``@given``."""
    return make_scene(DrawnDice(draw), packets=packets)


def seeded_scene(seed: int, *, packets: int = 100) -> Scene:
    """The same scene for the same seed."""
    return make_scene(RandomDice(random.Random(seed)), packets=packets)


# ---------------------------------------------------------------------------------------------------------------------
# The cluster


def make_cluster(dice: Dice) -> list[Obj]:
    """Namespaces, nodes, pods, Services and settings; always the same nodes and Service addresses."""
    teams: tuple[dict[str, str], ...] = ({}, {"team": "x"}, {"team": "y"})
    objects = [k8s.namespace(name, **dice.pick(teams)) for name in NAMESPACES]
    asked = dice.pick(("", "", "deny", "allow"))
    if asked:
        objects[0]["metadata"]["annotations"] = {"yett.dev/default": asked}
    for name, addresses in NODES.items():
        objects.append(k8s.node(name, *addresses, **dice.pick(({}, {"zone": "p"}, {"zone": "q"}))))
    objects += [make_pod(dice, index) for index in range(dice.pick((4, len(POD_ADDRESSES), 6)))]
    for address, name in SERVICES.items():
        selector = {"web": {"app": dice.pick("xy")}, "empty": {"none": "none"}, "all": {}, "kube-dns": None}[name]
        port = {"port": 80, "targetPort": dice.pick((80, 8080, "http"))}
        if name == "kube-dns":
            port = {"port": 53, "protocol": "UDP"}
        if name == "all":
            selector = {"tier": dice.pick("pq")}
        place = "kube-system" if name == "kube-dns" else "app"
        objects.append(k8s.service(f"{place}/{name}", address, port, selector=selector))
    data = {"default": dice.pick(("allow", "deny", "allow", "deny", "audit"))}
    if dice.pick((False, True)):
        data |= {"pod_cidrs": "10.244.0.0/16 fd00::/64", "service_cidrs": "10.100.0.0/16"}
    return [*objects, k8s.settings(**data)]


def make_labels(dice: Dice) -> dict[str, str]:
    chosen = {"app": dice.pick(("", "x", "y")), "tier": dice.pick(("", "p", "q"))}
    return {key: value for key, value in chosen.items() if value}


def make_pod(dice: Dice, index: int) -> Obj:
    ports: list[Obj] = []
    number = dice.pick((0, 80, 8080))
    if number:
        ports.append({"name": "http", "containerPort": number})
    if dice.pick((False, True)):
        ports.append({"name": "dns", "containerPort": 53, "protocol": "UDP"})
    obj = k8s.pod(
        f"{dice.pick(('app', *NAMESPACES))}/pod-{index}",
        POD_ADDRESSES[index],
        POD_ADDRESSES_6[index],
        node=dice.pick(tuple(NODES)),
        ports=ports,
        **make_labels(dice),
    )
    special = dice.pick((*[""] * 12, "Succeeded", "hostNetwork"))
    if special == "Succeeded":
        obj["status"]["phase"] = special
    elif special:
        obj["spec"]["hostNetwork"] = True
        obj["status"]["podIPs"] = [{"ip": "192.168.0.1"}]
    return obj


# ---------------------------------------------------------------------------------------------------------------------
# Policies


def make_policies(dice: Dice) -> list[Obj]:
    """Policies of every kind."""
    return [
        make_classic_policy(dice, f"p{index}") if dice.pick((True, False)) else make_cluster_policy(dice, f"p{index}")
        for index in range(dice.pick((4, 8, 2, 1, 0)))
    ]


def make_selector(dice: Dice, keys: Sequence[str] = ("app", "tier")) -> Obj:
    """A LabelSelector, often empty."""
    form = dice.pick(("empty", "labels", "expression", "empty", "both"))
    selector: Obj = {}
    if form in ("labels", "both"):
        key = dice.pick(keys)
        selector["matchLabels"] = {key: dice.pick(VALUES[key])}
    if form in ("expression", "both"):
        key = dice.pick(keys)
        expression: Obj = {"key": key, "operator": dice.pick(("In", "NotIn", "Exists", "DoesNotExist"))}
        if expression["operator"] in ("In", "NotIn"):
            expression["values"] = sorted({dice.pick(VALUES[key]), dice.pick(VALUES[key])})
        selector["matchExpressions"] = [expression]
    return selector


def make_namespaces(dice: Dice) -> Obj:
    form = dice.pick(("team", "all", "name"))
    if form == "name":
        return {"matchLabels": {"kubernetes.io/metadata.name": dice.pick(NAMESPACES)}}
    return make_selector(dice, keys=("team",)) if form == "team" else {}


def make_classic_policy(dice: Dice, name: str) -> Obj:
    """A NetworkPolicy or an ApplicationNetworkPolicy."""
    is_application = dice.pick((True, False))
    spec: Obj = {"podSelector": make_selector(dice)}
    types: tuple[str, ...] = dice.pick(((), ("Ingress",), ("Egress",), ("Ingress", "Egress")))
    if types:
        spec["policyTypes"] = list(types)
    for field, peers_field in (("ingress", "from"), ("egress", "to")):
        with_domains = is_application and field == "egress"
        rules = [_make_classic_rule(dice, peers_field, with_domains) for _ in range(dice.pick((1, 2, 0)))]
        if rules:
            spec[field] = rules
    build = k8s.application_policy if is_application else k8s.network_policy
    created = dice.pick(("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"))
    return build(name, spec, namespace=dice.pick(("app", *NAMESPACES)), creationTimestamp=created)


def _make_classic_rule(dice: Dice, peers_field: str, with_domains: bool) -> Obj:
    rule: Obj = {}
    if dice.pick((True, True, True, False)):
        rule[peers_field] = [_make_classic_peer(dice, with_domains) for _ in range(dice.pick((1, 2)))]
    if dice.pick((False, True)):
        rule["ports"] = [_make_classic_port(dice) for _ in range(dice.pick((1, 2)))]
    return rule


def _make_classic_peer(dice: Dice, with_domains: bool) -> Obj:
    form = dice.pick(("pods", "namespaces", "both", "block", *(("domains",) * 3 if with_domains else ())))
    if form == "block":
        block: Obj = {"cidr": dice.pick(CIDRS)}
        if block["cidr"] in INNER and dice.pick((True, False)):
            block["except"] = [INNER[block["cidr"]]]
        return {"ipBlock": block}
    if form == "domains":
        return {"domainNames": _pick_distinct(dice, PATTERNS)}
    peer: Obj = {}
    if form in ("pods", "both"):
        peer["podSelector"] = make_selector(dice)
    if form in ("namespaces", "both"):
        peer["namespaceSelector"] = make_namespaces(dice)
    return peer


def _make_classic_port(dice: Dice) -> Obj:
    protocol: Obj = {"protocol": dice.pick(PROTOCOLS)}
    form = dice.pick(("number", "all", "range", "named"))
    if form == "number":
        return protocol | {"port": dice.pick(PORTS)}
    if form == "range":
        return protocol | {"port": 80, "endPort": dice.pick((80, 443, 65535))}
    return protocol | {"port": dice.pick(PORT_NAMES)} if form == "named" else protocol


def make_cluster_policy(dice: Dice, name: str, *, only_deny: bool = False) -> Obj:
    """A policy of one of the four cluster-wide kinds."""
    kind = dice.pick(("aws", "upstream", "admin", "baseline"))
    accept = "Accept" if kind in ("aws", "upstream") else "Allow"
    actions = (accept, "Deny") if kind == "baseline" else (accept, "Deny", "Pass")
    spec: Obj = {}
    if kind in ("aws", "upstream"):
        spec["tier"] = dice.pick(("Admin", "Baseline"))
    if kind != "baseline":
        spec["priority"] = dice.pick((0, 10, 20))
    pods = {"namespaceSelector": make_namespaces(dice), "podSelector": make_selector(dice)}
    spec["subject"] = dice.pick(({"namespaces": make_namespaces(dice)}, {"pods": pods}))
    for field in ("ingress", "egress"):
        count = dice.pick((1, 2, 0))
        rules = [
            _make_cluster_rule(dice, kind, field, "Deny" if only_deny else dice.pick(actions), index)
            for index in range(count)
        ]
        if rules:
            spec[field] = rules
    if kind == "baseline":
        return k8s.baseline_policy(spec)
    build = {"aws": k8s.aws_cluster_policy, "upstream": k8s.cluster_policy, "admin": k8s.admin_policy}[kind]
    return build(name, spec)


def _make_cluster_rule(dice: Dice, kind: str, field: str, action: str, index: int) -> Obj:
    rule: Obj = {"action": action}
    if dice.pick((True, False)):
        rule["name"] = f"rule-{index}"
    is_named = dice.pick((False, False, False, True))
    if is_named or dice.pick((False, True)):
        ports_field, make_port = ("protocols", _make_match) if kind == "upstream" else ("ports", _make_aws_port)
        rule[ports_field] = [make_port(dice, is_named) for _ in range(dice.pick((1, 2)))]
    forms = ["namespaces", "pods"]
    if field == "egress" and not is_named:
        forms += ["networks", "networks", *(["nodes"] if kind != "aws" else [])]
        if action in ("Accept", "Allow") and kind != "baseline":
            forms += ["domainNames", "domainNames"]
    peers = [_make_cluster_peer(dice, dice.pick(forms)) for _ in range(dice.pick((1, 2)))]
    rule["from" if field == "ingress" else "to"] = peers
    return rule


def _make_cluster_peer(dice: Dice, form: str) -> Obj:
    if form == "namespaces":
        return {"namespaces": make_namespaces(dice)}
    if form == "pods":
        return {"pods": {"namespaceSelector": make_namespaces(dice), "podSelector": make_selector(dice)}}
    if form == "networks":
        return {"networks": _pick_distinct(dice, CIDRS)}
    if form == "nodes":
        return {"nodes": make_selector(dice, keys=("zone",))}
    return {"domainNames": _pick_distinct(dice, PATTERNS)}


def _pick_distinct(dice: Dice, choices: Sequence[str]) -> list[str]:
    """One or two, each once: these lists are sets by their schema."""
    return list(dict.fromkeys(dice.pick(choices) for _ in range(dice.pick((1, 2)))))


def _make_aws_port(dice: Dice, is_named: bool) -> Obj:
    if is_named:
        return {"namedPort": dice.pick(PORT_NAMES)}
    if dice.pick((True, False)):
        return {"portNumber": {"protocol": dice.pick(PROTOCOLS), "port": dice.pick(PORTS)}}
    return {"portRange": {"protocol": dice.pick(PROTOCOLS), "start": 80, "end": dice.pick((443, 65535))}}


def _make_match(dice: Dice, is_named: bool) -> Obj:
    if is_named:
        return {"destinationNamedPort": dice.pick(PORT_NAMES)}
    port: Obj = {"number": dice.pick(PORTS)}
    if dice.pick((False, True)):
        port = {"range": {"start": 80, "end": dice.pick((443, 9000))}}
    return {dice.pick(PROTOCOLS).lower(): {"destinationPort": port}}


# ---------------------------------------------------------------------------------------------------------------------
# Answers and packets


def make_answers(dice: Dice) -> list[Answer]:
    """What pods were told, some of it expired at ``AT``."""
    return [
        Answer(
            name=dice.pick(DOMAINS),
            addresses=tuple(
                sorted({dice.pick(OUTSIDE * 2 + OUTSIDE_6 + POD_ADDRESSES[:2]) for _ in range(dice.pick((1, 2, 3)))})
            ),
            ttl_seconds=dice.pick((0, 60, 300)),
            at=dice.pick((990.0, 600.0, 0.0, 1200.0)),
        )
        for _ in range(dice.pick((4, 8, 2, 0)))
    ]


def make_packet(dice: Dice) -> Packet:
    """Between anything and anything of one family."""
    is_six = dice.pick((False, False, False, True))
    pods = POD_ADDRESSES_6[:6] if is_six else POD_ADDRESSES[:6]
    nodes = ("fd01::1",) if is_six else ("192.168.0.1", "192.168.0.2")
    outside = OUTSIDE_6 if is_six else OUTSIDE
    services = () if is_six else tuple(SERVICES)
    protocol = dice.pick((6, 6, 6, 6, 17, 17, 132, 58 if is_six else 1, 47))
    place = dice.pick(("pod", "outside", "service", "node", "outside"))
    chosen = {"pod": pods, "outside": outside, "service": services or outside, "node": nodes}[place]
    is_outbound = place == "service" or dice.pick((True, True, False))
    return Packet(
        source=dice.pick(pods) if is_outbound else dice.pick(chosen),
        destination=dice.pick(chosen) if is_outbound else dice.pick(pods),
        protocol=protocol,
        port=dice.pick((*PORTS, 80, 22)) if protocol in (6, 17, 132) else 0,
        from_own_node=dice.pick((False,) * 9 + (True,)),
    )
