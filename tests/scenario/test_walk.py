"""The walk tells the oracle's verdict, and what each rule lacked."""

from __future__ import annotations

from typing import Any

from schemas.terms import Direction, Tier
from services.controller.policy.model import Answer, Packet, Pod
from services.scenario.evaluate_engine import EvaluateEngine
from services.scenario.route import Crossing
from services.scenario.rows import Rows
from services.scenario.walk import CrossingWalk, Facts, Outcome, walk_crossing
from services.scenario.world import assemble_cluster
from tests import builders as k8s
from tests.scenario.build import CLUSTER, DB, WEB
from tests.strategies import AT, seeded_scene

SEEDS = 60
OUTSIDE = "203.0.113.9"


def walk(*policies: Any, to: str = DB, port: int = 80, answers: Any = (), at: float = 0.0) -> CrossingWalk:
    cluster = assemble_cluster([("", obj) for obj in (*CLUSTER, *policies)], answers=answers)
    facts = Facts(Rows.read(cluster.state.rows()), cluster.answers, at)
    return walk_crossing(facts, facts.rows.endpoints["app", "web"], Direction.EGRESS, Packet(WEB, to, 6, port))


def outcomes(crossing: CrossingWalk, tier: Tier) -> list[Outcome]:
    return [each.outcome for step in crossing.walks[0].tiers if step.tier is tier for each in step.rules]


def test_the_walk_ends_with_the_oracles_finding() -> None:
    """For every interface in dozens of random clusters: verdict, tier, policy, rule, reason and name."""
    for seed in range(SEEDS):
        scene = seeded_scene(seed)
        cluster = assemble_cluster([("", obj) for obj in scene.cluster + scene.policies], answers=scene.answers)
        facts = Facts(Rows.read(cluster.state.rows()), cluster.answers, AT)
        for packet in scene.packets:
            for direction, own in ((Direction.EGRESS, packet.source), (Direction.INGRESS, packet.destination)):
                pod = cluster.oracle.owner_of(own)
                if isinstance(pod, Pod):
                    (wanted,) = EvaluateEngine().judge(cluster, [Crossing(pod, direction, packet, AT)])
                    told = walk_crossing(facts, facts.rows.endpoints[pod.key], direction, packet)
                    assert told.finding == wanted, (seed, pod.key, direction, packet)


def test_rules_say_what_they_lacked() -> None:
    """The port, the peer, or both; what comes after the rule that decides is not reached."""
    rules = [
        {"to": [{"ipBlock": {"cidr": f"{DB}/32"}}], "ports": [{"port": 443}]},
        {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 80}]},
        {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 443}]},
        {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
        {},
    ]
    found = outcomes(walk(k8s.network_policy("p", {"policyTypes": ["Egress"], "egress": rules})), Tier.NETWORK_POLICY)
    assert found == [Outcome.PORT, Outcome.PEER, Outcome.NEITHER, Outcome.DECIDES, Outcome.LATER]


def test_a_pass_ends_its_tier() -> None:
    """Admin rules behind it are not reached, the NetworkPolicy tier is."""
    passes = k8s.cluster_policy(
        "a", {"egress": [{"action": action, "to": [{"networks": ["0.0.0.0/0"]}]} for action in ("Pass", "Deny")]}
    )
    found = walk(passes)
    assert outcomes(found, Tier.ADMIN) == [Outcome.PASSES, Outcome.LATER]
    assert [step.is_reached for step in found.walks[0].tiers] == [True, True, True]


def test_a_name_whose_time_is_over_is_told() -> None:
    """It is what the rule lacked, and what the other side was known as."""
    named = k8s.application_policy("n", {"policyTypes": ["Egress"], "egress": [{"to": [{"domainNames": ["x.com"]}]}]})
    found = walk(named, to=OUTSIDE, answers=[Answer("x.com", (OUTSIDE,), 30, 0.0)], at=500)
    assert outcomes(found, Tier.NETWORK_POLICY) == [Outcome.EXPIRED]
    assert found.walks[0].seen_as == ("was known as x.com, whose time is over",)


def test_a_state_without_its_ruleset_denies() -> None:
    """As the kernel does: a missing row shuts."""
    cluster = assemble_cluster([("", obj) for obj in CLUSTER])
    rows = Rows.read(cluster.state.rows())
    rows.rulesets.clear()
    told = walk_crossing(Facts(rows), rows.endpoints["app", "web"], Direction.EGRESS, Packet(WEB, DB, 6, 80))
    assert (told.finding.verdict.name, told.finding.reason.name) == ("DENY", "NO_RULESET")
