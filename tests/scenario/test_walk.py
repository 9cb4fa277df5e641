"""The walk tells the oracle's verdict, and what each rule lacked."""

from __future__ import annotations

from typing import Any

from schemas.terms import Direction, NodeName, Reason, Tier, Verdict
from services.controller.policy.model import Answer, Packet, Pod
from services.scenario.evaluate_engine import EvaluateEngine
from services.scenario.route import Crossing
from services.scenario.rows import Rows
from services.scenario.walk import NODE_CACHE, CrossingWalk, Facts, Outcome, suppose_cache, walk_crossing
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


NAMED = k8s.application_policy("n", {"policyTypes": ["Egress"], "egress": [{"to": [{"domainNames": ["x.com"]}]}]})
CLAIMED = k8s.service("data/thief", "10.96.0.9", {"port": 53, "protocol": "UDP"}, externalIPs=[NODE_CACHE])


def ask_cache(
    *objects: Any, port: int = 53, protocol: int = 17, node: str = "node-a", config: dict[str, str] | None = None
) -> CrossingWalk:
    """A query to the DNS cache that the agent of this node has told of; the pod is on node-a."""
    cluster = assemble_cluster([("", obj) for obj in (*CLUSTER, *objects)], config=config)
    caches = {NodeName(node): frozenset({NODE_CACHE})} if node else {}
    facts = Facts(Rows.read(cluster.state.rows()), caches=caches)
    packet = Packet(WEB, NODE_CACHE, protocol, port)
    return walk_crossing(facts, facts.rows.endpoints["app", "web"], Direction.EGRESS, packet)


def test_a_nodes_own_cache_is_a_resolver_to_its_pods() -> None:
    """As if the settings named it, over UDP and TCP; it says what it is. Elsewhere, and at another port, it is any
    address of the world."""
    named = {"resolvers": NODE_CACHE}
    for protocol in (6, 17):
        told = ask_cache(NAMED, protocol=protocol)
        assert told.finding == ask_cache(NAMED, protocol=protocol, node="", config=named).finding
        assert (told.finding.verdict, told.finding.reason) == (Verdict.ALLOW, Reason.DNS_IMPLICIT)
        assert told.walks[0].seen_as == ("the DNS cache of its node",)
    for other in (ask_cache(NAMED, node="node-b"), ask_cache(NAMED, port=54), ask_cache(NAMED, protocol=132)):
        assert (other.finding.verdict, other.finding.reason) == (Verdict.DENY, Reason.ISOLATED)


def test_a_cache_opens_nothing_but_what_a_domain_rule_implies() -> None:
    """An isolated pod without one asks nobody; nor does one where the settings imply nothing, or a Service shows the
    address to the outside."""
    isolated = k8s.network_policy("p", {"policyTypes": ["Egress"]})
    for told in (ask_cache(isolated), ask_cache(NAMED, CLAIMED), ask_cache(NAMED, config={"dns-implicit": "false"})):
        assert told.finding.verdict is Verdict.DENY


def test_a_cache_that_nobody_told_of_can_be_supposed() -> None:
    """Where the verdict hangs on it, what it would be; where it does not, nothing."""
    cluster = assemble_cluster([("", obj) for obj in (*CLUSTER, NAMED)])
    facts = Facts(Rows.read(cluster.state.rows()))
    web = facts.rows.endpoints["app", "web"]
    found = suppose_cache(facts, web, Packet(WEB, NODE_CACHE, 17, 53))
    assert found is not None and found.reason is Reason.DNS_IMPLICIT
    assert suppose_cache(facts, web, Packet(WEB, NODE_CACHE, 17, 80)) is None
    known = Facts(facts.rows, caches={web.node: frozenset({NODE_CACHE})})
    assert suppose_cache(known, web, Packet(WEB, NODE_CACHE, 17, 53)) is None
