"""Random policies of every kind, as Kubernetes objects."""

from __future__ import annotations

from collections.abc import Sequence

from tests import builders as k8s
from tests.strategies.dice import Dice, Obj, is_rare
from tests.strategies.pools import CIDRS, INNER, NAMESPACES, PATTERNS, PORT_NAMES, PORTS, PROTOCOLS, VALUES

MODE_ANNOTATION = "yett.dev/mode"
RANGE_ENDS = (*(443, 442, 90, 443) * 8, 8080, 65535)
"""Of ranges that begin at 80; wide ones seldom, because the widest is 65,456 entries of an array. So is a protocol
without a port."""


def make_policies(dice: Dice) -> list[Obj]:
    """Policies of every kind."""
    return [
        make_classic_policy(dice, f"p{index}") if dice.pick((True, False)) else make_cluster_policy(dice, f"p{index}")
        for index in range(dice.pick((1, 8, 2, 4, 0, 8, 12, 12)))
    ]


def put_under_audit(dice: Dice, policies: Sequence[Obj]) -> None:
    """None of them, a few, or all: the annotation that says so, or the one that says the opposite."""
    one_in = dice.pick((0, 0, 0, 0, 4, 2, 1))
    for policy in policies if one_in else ():
        if is_rare(dice, one_in):
            policy["metadata"]["annotations"] = {MODE_ANNOTATION: "audit"}
        elif is_rare(dice, 8):
            policy["metadata"]["annotations"] = {MODE_ANNOTATION: "enforce"}


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


def make_subject(dice: Dice) -> Obj:
    """Mostly all pods, so that policies meet on one."""
    return make_selector(dice) if dice.pick((False, False, True)) else {}


def make_namespaces(dice: Dice) -> Obj:
    form = dice.pick(("team", "all", "name"))
    if form == "name":
        return {"matchLabels": {"kubernetes.io/metadata.name": dice.pick(NAMESPACES)}}
    return make_selector(dice, keys=("team",)) if form == "team" else {}


def make_classic_policy(dice: Dice, name: str) -> Obj:
    """A NetworkPolicy or an ApplicationNetworkPolicy."""
    is_application = dice.pick((True, False))
    spec: Obj = {"podSelector": make_subject(dice)}
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
        return _make_domains(dice)
    peer: Obj = {}
    if form in ("pods", "both"):
        peer["podSelector"] = make_selector(dice)
    if form in ("namespaces", "both"):
        peer["namespaceSelector"] = make_namespaces(dice)
    return peer


def _make_classic_port(dice: Dice) -> Obj:
    protocol: Obj = {"protocol": dice.pick(PROTOCOLS)}
    form = dice.pick((*("number", "range", "named") * 4, "all"))
    if form == "number":
        return protocol | {"port": dice.pick(PORTS)}
    if form == "range":
        return protocol | {"port": 80, "endPort": dice.pick((80, *RANGE_ENDS))}
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
    pods = {"namespaceSelector": make_namespaces(dice), "podSelector": make_subject(dice)}
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
    return _make_domains(dice)


def _make_domains(dice: Dice) -> Obj:
    return {"domainNames": _pick_distinct(dice, PATTERNS)}


def _pick_distinct(dice: Dice, choices: Sequence[str]) -> list[str]:
    """One to three, each once: these lists are sets by their schema."""
    return list(dict.fromkeys(dice.pick(choices) for _ in range(dice.pick((1, 2, 3)))))


def _make_aws_port(dice: Dice, is_named: bool) -> Obj:
    if is_named:
        return {"namedPort": dice.pick(PORT_NAMES)}
    if dice.pick((True, False)):
        return {"portNumber": {"protocol": dice.pick(PROTOCOLS), "port": dice.pick(PORTS)}}
    return {"portRange": {"protocol": dice.pick(PROTOCOLS), "start": 80, "end": dice.pick(RANGE_ENDS)}}


def _make_match(dice: Dice, is_named: bool) -> Obj:
    if is_named:
        return {"destinationNamedPort": dice.pick(PORT_NAMES)}
    port: Obj = {"number": dice.pick(PORTS)}
    if dice.pick((False, True)):
        port = {"range": {"start": 80, "end": dice.pick(RANGE_ENDS)}}
    return {dice.pick(PROTOCOLS).lower(): {"destinationPort": port}}
