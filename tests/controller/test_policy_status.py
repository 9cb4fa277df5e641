"""What is true of a policy, as conditions."""

from __future__ import annotations

import dataclasses

import pytest

from schemas.status import Problem
from schemas.terms import NodeName, RevisionNumber
from services.controller.manifests import ManifestEvent
from services.controller.policy_status import MESSAGE_MAX, PolicyObject, Published, Standing, describe, tell
from services.controller.world import State
from tests import builders as k8s

KEY = ("ApplicationNetworkPolicy", "shop", "p")
OBJECT = PolicyObject(KEY, "networking.k8s.aws/v1alpha1", "u1", 3, RevisionNumber(7))
FAULT = Problem(object="x", path="spec.egress[2].ports[0].port", message="0 is out of range 1..65535")
WARNING = Problem(object="x", path="spec.egress[0].name", message="has no name", severity="warning")


def standing(*problems: Problem, generation: int | None = 3, nodes: str = "ab", is_audited: bool = False) -> Standing:
    return Standing(problems, generation, frozenset(NodeName(node) for node in nodes), is_audited)


def at(**nodes: int) -> dict[str, RevisionNumber]:
    return {node: RevisionNumber(number) for node, number in nodes.items()}


CASES = [
    ("all nodes", standing(), at(a=7, b=9), (True, "Accepted"), (True, "Enforced", "enforced on 2 of 2 nodes")),
    ("one lags", standing(), at(a=7, b=6), (True, "Accepted"), (False, "Pending", "enforced on 1 of 2 nodes")),
    ("one is silent", standing(), at(a=7), (True, "Accepted"), (False, "Pending", "enforced on 1 of 2 nodes")),
    ("others do not count", standing(nodes="a"), at(a=7, c=1), (True, "Accepted"), (True, "Enforced", "1 of 1")),
    ("no pod", standing(nodes=""), at(a=1), (True, "Accepted"), (True, "NothingToEnforce", "no pod")),
    (
        "audit",
        standing(is_audited=True),
        at(a=7, b=9),
        (True, "Accepted"),
        (True, "Audited", "audited on 2 of 2 nodes"),
    ),
    ("audit lags", standing(is_audited=True), at(a=7), (True, "Accepted"), (False, "Pending", "audited on 1 of 2")),
    (
        "switched off",
        dataclasses.replace(standing(), is_switched_off=True),
        at(a=7, b=9),
        (True, "Accepted"),
        (False, "SwitchedOff", "nothing is enforced"),
    ),
    ("a warning", standing(WARNING), at(a=7, b=7), (True, "AcceptedWithWarnings"), (True, "Enforced", "2 of 2")),
    ("refused", standing(FAULT, generation=2), at(a=7, b=7), (False, "Invalid"), (False, "LastGoodVersion", "2")),
    ("refused, new", standing(WARNING, FAULT, generation=None), at(), (False, "Invalid"), (False, "Refused", "no")),
]


@pytest.mark.parametrize(
    ("stands", "acknowledged", "accepted", "programmed"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_conditions(
    stands: Standing,
    acknowledged: dict[str, RevisionNumber],
    accepted: tuple[bool, str],
    programmed: tuple[bool, str, str],
) -> None:
    """Programmed counts nodes that hold a ruleset of the policy and have come to its revision; it is never true while
    another version than the present one is in force."""
    first, second = describe(OBJECT, stands, acknowledged)
    assert (first.type, first.status, first.reason) == ("Accepted", *accepted)
    assert (second.type, second.status, second.reason) == ("Programmed", *programmed[:2])
    assert programmed[2] in second.message


def test_the_path_of_the_fault_is_in_the_message() -> None:
    """Errors alone, and no more than fits."""
    accepted, _ = describe(OBJECT, standing(WARNING, FAULT), {})
    assert accepted.message == "spec.egress[2].ports[0].port: 0 is out of range 1..65535"
    many = [Problem(object="x", path=f"spec.{number}", message="m" * 400) for number in range(9)]
    assert len(describe(OBJECT, standing(*many), {})[0].message) == MESSAGE_MAX


def test_a_policy_is_told_of_once_it_is_published() -> None:
    """By the revision that was the last when its version was; other kinds and objects that went are not told of."""

    def policy(name: str, generation: int) -> dict[str, object]:
        metadata = {"name": name, "namespace": "shop", "uid": f"u-{name}", "generation": generation}
        return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": {}}

    published = Published()
    published.begin({("NetworkPolicy", "shop", "a"): policy("a", 1)}, RevisionNumber(4))
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
    events = [ManifestEvent("f", obj=policy("b", 2)), ManifestEvent("f", obj=pod)]
    published.follow(events, RevisionNumber(5))
    assert {key[2]: obj.revision for key, obj in published.objects.items()} == {"a": 4, "b": 5}
    published.follow([ManifestEvent("f", gone=("NetworkPolicy", "shop", "a"))], RevisionNumber(6))
    [told] = tell(published, {key: standing() for key in published.objects}, at(a=5, b=5))
    assert (told.key[2], told.uid, told.generation, told.conditions[1].status) == ("b", "u-b", 2, True)


ON_TWO_NODES = (
    k8s.namespace("app"),
    k8s.node("node-a", "192.168.0.1"),
    k8s.node("node-b", "192.168.0.2"),
    k8s.pod("app/web", "10.0.0.1", node="node-a", app="web"),
    k8s.pod("app/other", "10.0.1.1", node="node-b", app="other"),
)
ON_WEB = k8s.application_policy("p", {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"]})
WEB_KEY = ("ApplicationNetworkPolicy", "app", "p")


def told_of(state: State, **acknowledged: int) -> tuple[set[str], str]:
    """The nodes that a policy is counted on, and what its status says of them."""
    nodes = {node.replace("_", "-"): RevisionNumber(number) for node, number in acknowledged.items()}
    stands, obj = state.standings([WEB_KEY])[WEB_KEY], dataclasses.replace(OBJECT, key=WEB_KEY)
    return set(stands.nodes), describe(obj, stands, nodes)[1].message


def test_only_nodes_that_hold_a_ruleset_of_the_policy_are_counted() -> None:
    """A policy of the pods on one of two nodes is on one node, whatever the other one has come to; with its pods it
    comes and goes, and a pod that is bound to no node, has ended, or is the node's own counts for nothing."""
    state = State()
    for obj in (*ON_TWO_NODES, ON_WEB):
        state.upsert(obj)
    assert told_of(state, node_a=7) == ({"node-a"}, "enforced on 1 of 1 nodes")
    assert told_of(state, node_b=7) == ({"node-a"}, "enforced on 0 of 1 nodes")
    second = k8s.pod("app/second", "10.0.1.2", node="node-b", app="web")
    for uncounted in (
        {**second, "spec": {}},
        {**second, "status": {"phase": "Succeeded"}},
        {**second, "spec": {**second["spec"], "hostNetwork": True}},
    ):
        state.upsert(uncounted)
        assert told_of(state, node_a=7, node_b=1) == ({"node-a"}, "enforced on 1 of 1 nodes")
    state.upsert(second)
    assert told_of(state, node_a=7, node_b=1) == ({"node-a", "node-b"}, "enforced on 1 of 2 nodes")
    state.delete("Pod", "app", "web")
    assert told_of(state, node_b=7) == ({"node-b"}, "enforced on 1 of 1 nodes")
    state.delete("Pod", "app", "second")
    assert told_of(state, node_a=7, node_b=7) == (set(), "it governs no pod on any node")
