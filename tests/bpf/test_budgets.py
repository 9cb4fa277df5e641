"""Rulesets filled to their budgets in the kernel: each of 192 + 256 + 64 rules decides in its turn, and no other."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from schemas.terms import RULES_ADMIN, RULES_BASELINE, RULES_NETWORK_POLICY, Direction, Reason, Tier, Verdict
from services.controller.policy.model import Answer, Finding, Packet, Pod
from services.scenario.evaluate_engine import EvaluateEngine
from services.scenario.kernel_engine import KernelEngine
from services.scenario.route import Crossing
from services.scenario.world import Cluster, assemble_cluster
from tests import builders as k8s

pytestmark = pytest.mark.kernel
Obj = dict[str, Any]
WEB, PEER = "10.0.0.1", "10.0.0.2"
CLUSTER = [
    k8s.namespace("app"),
    k8s.node("node-a", "192.168.0.1"),
    k8s.pod("app/web", WEB, app="web"),
    k8s.pod("app/peer", PEER, app="peer"),
]
SUBJECT = {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}}
BUDGETS = {Tier.ADMIN: RULES_ADMIN, Tier.NETWORK_POLICY: RULES_NETWORK_POLICY, Tier.BASELINE: RULES_BASELINE}
FIRST_PORT = {Tier.ADMIN: 1000, Tier.NETWORK_POLICY: 2000, Tier.BASELINE: 3000}
RULES_A_POLICY = 24
WAYS = {Direction.EGRESS: ("egress", "to"), Direction.INGRESS: ("ingress", "from")}
AT = 100.0


def address_of(tier: Tier, number: int) -> str:
    """Outside, one for each rule."""
    return f"203.0.{int(tier)}.{number}"


def name_of(tier: Tier, number: int) -> str:
    return f"n{number}.{tier.name.lower().replace('_', '-')}.example"


def is_deny(number: int) -> bool:
    return number % 3 == 0


def make_rules(tier: Tier, direction: Direction, kind: str, count: int) -> list[Obj]:
    """Rule ``number`` of a tier matches one port, one prefix, or one name, and nothing else."""
    return [_make_rule(tier, direction, kind, number) for number in range(count)]


def _make_rule(tier: Tier, direction: Direction, kind: str, number: int) -> Obj:
    peers_field = WAYS[direction][1]
    if tier is Tier.NETWORK_POLICY:
        peers: dict[str, Obj] = {
            "port": {"podSelector": {}},
            "prefix": {"ipBlock": {"cidr": f"{address_of(tier, number)}/32"}},
            "name": {"domainNames": [name_of(tier, number)]},
        }
        ports = {"ports": [{"port": FIRST_PORT[tier] + number}]} if kind == "port" else {}
        return {peers_field: [peers[kind]], **ports}
    action = "Deny" if is_deny(number) and kind != "name" else "Accept"
    peers = {
        "port": {"namespaces": {}},
        "prefix": {"networks": [f"{address_of(tier, number)}/32"]},
        "name": {"domainNames": [name_of(tier, number)]},
    }
    protocols = {"protocols": [{"tcp": {"destinationPort": {"number": FIRST_PORT[tier] + number}}}]}
    rule = {"name": f"r{number}", "action": action, peers_field: [peers[kind]]}
    return rule | (protocols if kind == "port" else {})


def fill(direction: Direction, kind: str, counts: dict[Tier, int]) -> Iterator[Obj]:
    """Policies whose rules fill every tier, at priorities that follow each other."""
    field = WAYS[direction][0]
    for tier in (Tier.ADMIN, Tier.BASELINE):
        rules = make_rules(tier, direction, kind, counts[tier])
        for start in range(0, len(rules), RULES_A_POLICY):
            spec = {"tier": tier.name.capitalize(), "priority": start, "subject": SUBJECT}
            spec[field] = rules[start : start + RULES_A_POLICY]
            yield k8s.cluster_policy(f"{tier.name.lower()}-{start:03}", spec)
    rules = make_rules(Tier.NETWORK_POLICY, direction, kind, counts[Tier.NETWORK_POLICY])
    if rules:
        spec = {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": [field.capitalize()], field: rules}
        yield (k8s.application_policy if kind == "name" else k8s.network_policy)("many", spec)


def ask(engine: KernelEngine, objects: Iterable[Obj], packets: list[Packet], direction: Direction) -> list[Finding]:
    """The kernel's findings, which must be the oracle's."""
    answers = [
        Answer(name_of(tier, number), (address_of(tier, number),), ttl_seconds=300, at=AT)
        for tier, budget in BUDGETS.items()
        for number in range(budget)
    ]
    cluster = assemble_cluster([("", each) for each in (*CLUSTER, *objects)], answers=answers)
    assert not [each for each in cluster.problems if each.severity == "error"]
    crossings = [Crossing(web_of(cluster), direction, packet, AT) for packet in packets]
    said = engine.judge(cluster, crossings)
    assert said == EvaluateEngine().judge(cluster, crossings)
    return said


def web_of(cluster: Cluster) -> Pod:
    return cluster.world.pods["app", "web"]


def make_packets(tier: Tier, direction: Direction, kind: str) -> list[Packet]:
    """One for each rule of a tier."""
    numbers = range(BUDGETS[tier])
    if kind != "port":
        others = [address_of(tier, number) for number in numbers]
        return [Packet(*((WEB, other) if direction is Direction.EGRESS else (other, WEB)), 6, 443) for other in others]
    ends = (WEB, PEER) if direction is Direction.EGRESS else (PEER, WEB)
    return [Packet(*ends, 6, FIRST_PORT[tier] + number) for number in numbers]


EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS
ONLY_NETWORK_POLICY = {Tier.ADMIN: 0, Tier.NETWORK_POLICY: RULES_NETWORK_POLICY, Tier.BASELINE: 0}


@pytest.mark.parametrize(
    ("direction", "kind"),
    [(EGRESS, "port"), (EGRESS, "prefix"), (EGRESS, "name"), (INGRESS, "port")],
    ids=lambda each: each if isinstance(each, str) else each.name.lower(),
)
def test_every_rule_of_a_full_ruleset_decides_in_its_turn(
    direction: Direction, kind: str, engine: KernelEngine
) -> None:
    """Rule by rule, first and last of every word of the mask included: its own tier, policy, name and verdict."""
    full = list(fill(direction, kind, BUDGETS))
    not_isolated = list(fill(direction, kind, BUDGETS | {Tier.NETWORK_POLICY: 0}))
    _check_tier(engine, Tier.ADMIN, direction, kind, full)
    _check_tier(engine, Tier.NETWORK_POLICY, direction, kind, full)
    _check_tier(engine, Tier.BASELINE, direction, kind, not_isolated)


def test_every_prefix_of_a_full_ingress_ruleset_decides_in_its_turn(engine: KernelEngine) -> None:
    """Only the NetworkPolicy tier has prefixes on ingress."""
    _check_tier(engine, Tier.NETWORK_POLICY, INGRESS, "prefix", list(fill(INGRESS, "prefix", ONLY_NETWORK_POLICY)))


def _check_tier(engine: KernelEngine, tier: Tier, direction: Direction, kind: str, objects: list[Obj]) -> None:
    said = ask(engine, objects, make_packets(tier, direction, kind), direction)
    for number, finding in enumerate(said):
        can_deny = tier is not Tier.NETWORK_POLICY and kind != "name"
        verdict = Verdict.DENY if can_deny and is_deny(number) else Verdict.ALLOW
        assert (finding.verdict, finding.reason, finding.tier) == (verdict, Reason.RULE, tier), number
        assert finding.policy is not None
        field = WAYS[direction][0]
        rule = f"{field}[{number}]" if tier is Tier.NETWORK_POLICY else f"r{number}"
        assert finding.policy.rule == rule
        assert finding.name == (name_of(tier, number) if kind == "name" else "")


# ---------------------------------------------------------------------------------------------------------------------
# One more


OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def allow(name: str, ports: Iterable[int], created: str, namespace: str = "app") -> Obj:
    rules = [{"ports": [{"port": port}]} for port in ports]
    spec = {"policyTypes": ["Egress"], "egress": rules}
    return k8s.network_policy(name, spec, namespace=namespace, creationTimestamp=created)


def said_of(engine: KernelEngine, objects: list[Obj], ports: Iterable[int]) -> tuple[list[Finding], list[str]]:
    """(findings for TCP from web to peer, what is complained of), by kernel and oracle alike."""
    cluster = assemble_cluster([("", each) for each in (*CLUSTER, *objects)])
    crossings = [Crossing(web_of(cluster), Direction.EGRESS, Packet(WEB, PEER, 6, port), AT) for port in ports]
    said = engine.judge(cluster, crossings)
    assert said == EvaluateEngine().judge(cluster, crossings)
    return said, sorted(each.object for each in cluster.problems if each.severity == "error")


def test_what_overflows_is_left_out_policy_by_policy(engine: KernelEngine) -> None:
    """Last by (creationTimestamp, namespace, name) goes first, and all younger ones; isolation stays; in any order."""
    objects = [
        allow("d-oldest", range(1, 101), OLD),
        allow("a-next", range(101, 201), NEW),
        allow("b-too-much", range(201, 301), NEW),
        allow("c-would-fit", range(301, 303), NEW),
    ]
    for order in shuffles(objects, 4):
        said, problems = said_of(engine, order, (1, 100, 101, 200, 201, 300, 301, 999))
        assert [each.verdict.name for each in said] == ["ALLOW"] * 4 + ["DENY"] * 4
        assert {each.reason for each in said[4:]} == {Reason.ISOLATED}
        assert problems == ["NetworkPolicy app/b-too-much", "NetworkPolicy app/c-would-fit"]


def shuffles(objects: list[Obj], count: int) -> Iterator[list[Obj]]:
    """As many orders of arrival."""
    roll = random.Random(1)
    return (roll.sample(objects, len(objects)) for _ in range(count))


def test_a_policy_whose_rules_all_overflow_still_isolates(engine: KernelEngine) -> None:
    """Alone and too large: nothing of it is let through, and what it isolates stays shut."""
    said, problems = said_of(engine, [allow("huge", range(1, 258), OLD)], (1, 257, 999))
    assert [each.reason for each in said] == [Reason.ISOLATED] * 3
    assert problems == ["NetworkPolicy app/huge"]


def deny(name: str, ports: Iterable[int], *, tier: str, created: str, priority: int = 10) -> Obj:
    rules = [
        {
            "action": "Deny",
            "to": [{"namespaces": {}}],
            "protocols": [{"tcp": {"destinationPort": {"number": port}}}],
        }
        for port in ports
    ]
    spec = {"tier": tier, "priority": priority, "subject": SUBJECT, "egress": rules}
    return k8s.cluster_policy(name, spec, creationTimestamp=created)


@pytest.mark.parametrize(("tier", "budget"), [("Admin", RULES_ADMIN), ("Baseline", RULES_BASELINE)])
def test_an_ordered_tier_refuses_what_does_not_fit(tier: str, budget: int, engine: KernelEngine) -> None:
    """The newest policy, whatever its priority, whole, with a status; the older ones all stand, to the last rule."""
    ports = list(range(1, budget + 1))
    old = [deny(f"old-{start:03}", ports[start : start + 24], tier=tier, created=OLD) for start in range(0, budget, 24)]
    new = deny("new", [budget + 1, budget + 2], tier=tier, created=NEW, priority=0)
    for order in shuffles([*old, new], 3):
        said, problems = said_of(engine, order, (1, 64, budget, budget + 1, budget + 2))
        assert [each.verdict.name for each in said] == ["DENY"] * 3 + ["ALLOW"] * 2
        assert problems == ["ClusterNetworkPolicy.policy.networking.k8s.io new"]
    said, problems = said_of(engine, old, (1, 64, budget))
    assert [each.verdict.name for each in said] == ["DENY"] * 3 and not problems


def test_identical_rules_share_a_bit(engine: KernelEngine) -> None:
    """256 rules written twice fit: the second ones take no place, and the first is the one that is named."""
    twice = [allow("a", range(1, 257), OLD), allow("b", range(1, 257), NEW)]
    said, problems = said_of(engine, twice, (1, 256, 257))
    assert [each.verdict.name for each in said] == ["ALLOW", "ALLOW", "DENY"] and not problems
    assert said[0].policy is not None and said[0].policy.name == "a"
