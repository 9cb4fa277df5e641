"""Reports merged into what is kept: in any order, twice, by two controllers, the same numbers come out."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from schemas.policy import Labels
from schemas.terms import Direction, NodeName
from schemas.usage import Contact, NodeUsage, PeerKind, PodUsage, RuleCount, RuleUsage, UsageReport
from services.controller.policy.model import Rule, hash_rule
from services.controller.policy.parse import parse_object
from services.controller.usage import CONTACTS_MAX, merge_node, merge_pod, merge_rule
from tests import builders as k8s

KEEP = 1000


def make_report(node: str, epoch: int, at: int) -> UsageReport:
    return UsageReport(node=NodeName(node), epoch=epoch, since=epoch, at=at)


def merge(before: RuleUsage | None, node: str, epoch: int, flows: int, at: int) -> RuleUsage:
    rule = RuleCount(
        kind="NetworkPolicy", namespace="a", name="p", rule="egress[0]", hash="aa", flows=flows, first=epoch, last=at
    )
    return merge_rule(before, make_report(node, epoch, at), rule, uid="u", keep_seconds=KEEP)


def test_a_rule_is_the_sum_of_its_nodes_in_whatever_order_reports_come() -> None:
    """Every order of the reports of two nodes, each heard twice, gives the same entry."""
    reports = [("n1", 10, 1, 20), ("n1", 10, 3, 30), ("n2", 12, 5, 25)] * 2
    outcomes = set()
    for order in itertools.permutations(reports):
        entry = None
        for node, epoch, flows, at in order:
            entry = merge(entry, node, epoch, flows, at)
        assert entry is not None
        outcomes.add(msgspec.json.encode(entry, order="deterministic"))
        assert (entry.flows, entry.first, entry.last) == (8, 10, 30)
    assert len(outcomes) == 1


def test_a_node_that_counts_anew_adds_to_what_it_had() -> None:
    """A later epoch begins from nothing, and what was before stays; a late report of the older one changes nothing."""
    entry = merge(merge(None, "n1", 10, 7, 20), "n1", 30, 2, 40)
    assert entry.flows == 9
    assert merge(entry, "n1", 10, 8, 25).flows == 9


def test_a_silent_node_is_folded_and_its_flows_stay() -> None:
    """A node that nobody heard of for the time that things are kept is told apart no more."""
    entry = merge(merge(None, "n1", 10, 7, 20), "n2", 30, 2, 21 + KEEP)
    assert set(entry.nodes) == {"n2"} and (entry.gone, entry.flows) == (7, 9)


def contact(peer: str, *, last: int = 50, kind: PeerKind = PeerKind.NAME, flows: int = 1) -> Contact:
    return Contact(direction=Direction.EGRESS, protocol=6, port=443, kind=kind, peer=peer, flows=flows, last=last)


def pod(*contacts: Contact, uid: str = "u1", epoch: int = 10, since: int = 20, at: int = 60) -> PodUsage:
    return PodUsage(
        namespace="shop", pod="web", uid=uid, node=NodeName("n1"), epoch=epoch, since=since, at=at, contacts=contacts
    )


def nobody(kind: PeerKind, name: str) -> Labels | None:
    """Nothing is known of anybody."""
    return None


def peers(usage: PodUsage) -> set[str]:
    return {each.peer for each in usage.contacts}


def test_of_a_pod_the_newest_report_stands() -> None:
    """A report heard late or twice takes nothing back and adds nothing."""
    old, new = pod(contact("a.test")), pod(contact("a.test", flows=3), contact("b.test"), at=70)
    kept = merge_pod(merge_pod(None, old, nobody), new, nobody)
    assert kept == merge_pod(kept, old, nobody) == merge_pod(kept, new, nobody)
    assert peers(kept) == {"a.test", "b.test"} and sum(each.flows for each in kept.contacts) == 4


def test_what_an_earlier_epoch_saw_of_a_pod_is_kept() -> None:
    """A node that lost its file tells less; what was stored before stays, from when the pod was watched first."""
    kept = merge_pod(merge_pod(None, pod(contact("a.test")), nobody), pod(epoch=80, since=80, at=90), nobody)
    assert peers(kept) == {"a.test"} and kept.since == 20


def test_another_pod_of_the_same_name_begins_anew() -> None:
    """A recreated pod inherits nothing, and a late report of the one before does not come back."""
    old = merge_pod(None, pod(contact("a.test")), nobody)
    new = merge_pod(old, pod(contact("b.test"), uid="u2", at=99), nobody)
    assert peers(new) == {"b.test"} and merge_pod(new, pod(contact("a.test")), nobody) == new


def test_labels_are_those_that_owners_gave_and_outlive_the_pod() -> None:
    """Generated labels are left out; what was known of a peer once is known after it is gone."""
    labels: Labels = {"app": "db", "pod-template-hash": "x"}
    peer = contact("data/db-0", kind=PeerKind.POD)
    kept = merge_pod(None, pod(peer), lambda kind, name: labels if name == "data/db-0" else {"app": "web"})
    assert kept.contacts[0].labels == {"app": "db"} and kept.labels == {"app": "web"}
    later = merge_pod(kept, pod(peer, at=70), nobody)
    assert later.contacts[0].labels == {"app": "db"} and later.labels == {"app": "web"} and later.labels_known


def test_contacts_kept_of_a_pod_are_bounded_and_the_rest_is_told() -> None:
    """The contacts heard of longest ago go first, and are counted."""
    old = merge_pod(None, pod(*(contact(f"a{n}.test") for n in range(CONTACTS_MAX))), nobody)
    new = merge_pod(old, pod(contact("b.test", last=90), epoch=80, since=80, at=90), nobody)
    assert len(new.contacts) == CONTACTS_MAX and "b.test" in peers(new) and new.dropped == 1


def test_a_nodes_entry_only_moves_on() -> None:
    """When a node was heard last, and since when it counts: never what an older report says."""
    now = merge_node(None, make_report("n1", 30, 40))
    assert now == NodeUsage(node=NodeName("n1"), epoch=30, since=30, at=40)
    assert merge_node(now, make_report("n1", 10, 90)) == now


def rules_of(policy: dict[str, object]) -> list[tuple[Direction, Rule]]:
    parsed, _ = parse_object(policy)
    assert parsed is not None
    return [(direction, rule) for direction in Direction for rule in parsed.rules(direction)]  # type: ignore[union-attr]  # a policy


@pytest.mark.parametrize(
    ("change", "is_same"),
    [("nothing", True), ("a rule before it", True), ("its port", False), ("its peer", False)],
)
def test_a_rule_is_known_by_what_it_says(change: str, is_same: bool) -> None:
    """A rule's hash changes with its peers and ports, and not with its place among the others."""
    rule = {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 443}]}
    other = {"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}]}
    edited = {
        "nothing": [rule],
        "a rule before it": [other, rule],
        "its port": [{**rule, "ports": [{"port": 444}]}],
        "its peer": [{**rule, "to": other["to"]}],
    }[change]
    before = rules_of(k8s.network_policy("p", {"policyTypes": ["Egress", "Ingress"], "egress": [rule]}))
    after = rules_of(k8s.network_policy("p", {"policyTypes": ["Egress", "Ingress"], "egress": edited}))
    assert (hash_rule(*before[0]) in {hash_rule(*each) for each in after}) is is_same


def test_a_rule_says_another_thing_in_the_other_direction() -> None:
    """The same peers and ports, to and from, are two rules."""
    egress = rules_of(
        k8s.network_policy("p", {"policyTypes": ["Egress", "Ingress"], "egress": [{"to": [{"podSelector": {}}]}]})
    )
    ingress = rules_of(
        k8s.network_policy("p", {"policyTypes": ["Egress", "Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]})
    )
    assert hash_rule(*egress[0]) != hash_rule(*ingress[0])
