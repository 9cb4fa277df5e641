"""What is said of rules that nothing matched: unused only where there is data of every node for all the time asked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from schemas import wire
from schemas.terms import Direction, NodeName
from schemas.usage import NodeCount, NodeUsage, PodUsage, RuleUsage
from services.controller.policy.model import hash_rule
from services.scenario.rows import Rows
from services.scenario.usage import Kept, RuleAnswer, Use, find_pods, find_use
from services.scenario.world import assemble_cluster
from tests import builders as k8s

NOW = 1_000_000
WEEK = 7 * 86400
BEGIN = NOW - WEEK
PORTS = {"egress": [{"ports": [{"port": 80}]}, {"ports": [{"port": 81}]}]}


def make(*policies: Any, pods: int = 1) -> Any:
    nodes = [k8s.node(f"node-{number}", f"192.168.0.{number + 1}") for number in range(pods)]
    web = [
        k8s.pod(f"app/web-{number}", f"10.0.0.{number + 1}", node=f"node-{number}", app="web") for number in range(pods)
    ]
    return assemble_cluster([("", one) for one in (k8s.namespace("app"), *nodes, *web, *policies)])


def node(number: int = 0, *, since: int = BEGIN - 10, at: int = NOW - 5) -> NodeUsage:
    return NodeUsage(node=NodeName(f"node-{number}"), epoch=1, since=since, at=at)


def counted(cluster: Any, place: int, *, first: int = BEGIN - 10, last: int = 0, nodes: int = 1) -> RuleUsage:
    """What was counted of a rule of the first policy, on so many nodes."""
    policy = cluster.policies[0]
    digest = hash_rule(Direction.EGRESS, policy.rules(Direction.EGRESS)[place])
    count = NodeCount(epoch=1, flows=3 if last else 0, first=first, last=last, at=NOW)
    counts = {f"node-{number}": count for number in range(nodes)}
    kind, namespace, name = policy.key
    return RuleUsage(
        kind=kind, namespace=namespace, name=name, uid=policy.uid, hash=digest, nodes=counts, first=first, last=last
    )


def ask(cluster: Any, kept: Kept) -> dict[str, RuleAnswer]:
    rows = Rows.read(cluster.state.rows())
    found = find_use(cluster.policies, rows, cluster.world, kept, seconds=WEEK, now=NOW)
    return {answer.rule.name: answer for answer in found}


def keep(nodes: list[NodeUsage], *rules: RuleUsage) -> Kept:
    kept = Kept(nodes={one.node: one for one in nodes})
    for one in rules:
        kept.rules[one.kind, one.namespace, one.name, one.hash] = [one]
    return kept


def test_a_rule_that_nothing_matched_in_the_time_is_unused() -> None:
    """Matched within it: used; matched before it, or never: unused, and since when there is data is told."""
    cluster = make(k8s.network_policy("p", PORTS))
    kept = keep([node()], counted(cluster, 0, last=NOW - 60), counted(cluster, 1, last=BEGIN - 5))
    found = ask(cluster, kept)
    assert (found["egress[0]"].use, found["egress[1]"].use) == (Use.USED, Use.UNUSED)
    assert found["egress[1]"].since == BEGIN - 10 and found["egress[1]"].last == BEGIN - 5


def test_data_younger_than_the_time_proves_nothing() -> None:
    """A node that counts for a rule since yesterday does not say what was last week; the youngest node decides."""
    cluster = make(k8s.network_policy("p", PORTS), pods=2)
    young = counted(cluster, 0, nodes=2)
    young.nodes["node-1"] = NodeCount(epoch=1, first=NOW - 86400, at=NOW)
    found = ask(cluster, keep([node(0), node(1)], young))
    assert (found["egress[0]"].use, found["egress[0]"].since) == (Use.UNPROVEN, NOW - 86400)
    assert found["egress[1]"].use is Use.UNPROVEN


@pytest.mark.parametrize(
    ("nodes", "note"),
    [([node(0)], "node-1 (never heard)"), ([node(0), node(1, at=NOW - 7200)], "node-1 (heard 2h ago)")],
)
def test_a_rule_with_pods_on_a_node_without_data_is_not_called_unused(nodes: list[NodeUsage], note: str) -> None:
    """A node that never reported, or does so no more, is named; a rule that was used all the same is used."""
    cluster = make(k8s.network_policy("p", PORTS), pods=2)
    kept = keep(nodes, counted(cluster, 0), counted(cluster, 1, last=NOW - 60))
    found = ask(cluster, kept)
    assert found["egress[0]"].use is Use.NO_DATA and note in found["egress[0]"].notes[0]
    assert found["egress[1]"].use is Use.USED


def test_a_rule_that_governs_no_pod_says_so() -> None:
    """It is in no pod's rules, so nothing could match it."""
    cluster = make(k8s.network_policy("p", {"podSelector": {"matchLabels": {"app": "none"}}, **PORTS}))
    assert {answer.use for answer in ask(cluster, keep([node()])).values()} == {Use.NO_PODS}


def test_a_rule_behind_another_that_matches_all_of_it_is_named() -> None:
    """It could not be matched; the rule before it is told."""
    deny = {"action": "Deny", "name": "all", "to": [{"networks": ["0.0.0.0/0"]}]}
    part = {"action": "Deny", "name": "part", "to": [{"networks": ["192.0.2.0/24"]}]}
    cluster = make(k8s.cluster_policy("shut", {"egress": [deny, part]}))
    notes = ask(cluster, keep([node()]))["part"].notes
    assert any(note.startswith("shadowed: ") and "egress[0]" in note for note in notes)


def test_a_policy_younger_than_the_time_is_told() -> None:
    """What was made yesterday was not unused for a week."""
    made = datetime.fromtimestamp(NOW - 86400, UTC).isoformat().replace("+00:00", "Z")
    cluster = make(k8s.network_policy("p", PORTS, creationTimestamp=made))
    assert "the policy is younger: made 1d ago" in ask(cluster, keep([node()]))["egress[0]"].notes


def test_a_policy_of_the_same_name_before_it_does_not_count() -> None:
    """What an object with another uid was used for says nothing of this one."""
    cluster = make(k8s.network_policy("p", PORTS, uid="new"))
    old = counted(make(k8s.network_policy("p", PORTS, uid="old")), 0, last=NOW - 60)
    assert ask(cluster, keep([node()], old))["egress[0]"].use is not Use.USED


def test_entries_that_do_not_decode_are_left_aside() -> None:
    """A newer controller's entries, and keys in no table, change no answer."""
    entry = (wire.subject_usage_node(NodeName("node-0")), wire.encode(node()))
    kept = Kept.read([entry, (wire.subject_usage_node(NodeName("node-1")), b"{"), ("$KV.yett_usage.x.y", b"{}")])
    assert set(kept.nodes) == {"node-0"}


def test_a_pods_answer_is_what_it_may_and_what_it_did() -> None:
    """Rules in words, then the default or isolation; data of another pod of its name is not its own."""
    cluster = make(k8s.network_policy("p", {"policyTypes": ["Egress"], **PORTS}))
    rows = Rows.read(cluster.state.rows())
    uid = cluster.world.pods["app", "web-0"].uid
    usage = PodUsage(namespace="app", pod="web-0", uid=uid, node=NodeName("node-0"))
    (found,) = find_pods(rows, Kept(pods={("app", "web-0"): usage}))
    assert found.may[Direction.EGRESS][-1] == "nothing else" and "TCP 80" in found.may[Direction.EGRESS][0]
    assert found.may[Direction.INGRESS] == ("else allow (default)",) and found.usage == usage
    (other,) = find_pods(rows, Kept(pods={("app", "web-0"): PodUsage(**{**_fields(usage), "uid": "other"})}))
    assert other.usage is None


def _fields(usage: PodUsage) -> dict[str, Any]:
    return {name: getattr(usage, name) for name in usage.__struct_fields__}
