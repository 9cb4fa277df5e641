"""What is true of a policy, as conditions."""

from __future__ import annotations

import dataclasses

import pytest

from schemas.status import Problem
from schemas.terms import NodeName, RevisionNumber
from services.controller.manifests import ManifestEvent
from services.controller.policy_status import MESSAGE_MAX, PolicyObject, Published, Standing, describe, tell

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
