"""Cumulative numbers of rules and pods: what survives what, what is reported, and what is bounded."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest

from schemas import wire
from schemas.policy import AddressRow, Backend, FrontendRow, PortRange, Ruleset, RulesetRule, RuleSource
from schemas.terms import Action, AddressKind, Default, Direction, IdentityId, NodeName, Reason
from schemas.usage import PeerKind, PodUsage, UsageReport
from services.nodeagent import usage as numbers
from services.nodeagent.usage import Facts, Owner, Reach, Totals, Usage, Watched

NODE = NodeName("node-a")
WEB = Owner("shop", "web", "uid-web")
TCP = 6


def make_ruleset(*hashes: str, also: str = "") -> Ruleset:
    """One rule a hash in the NetworkPolicy tier; ``also``: a second policy wrote the first rule too."""
    rules = []
    for place, digest in enumerate(hashes):
        sources = [RuleSource(kind="NetworkPolicy", namespace="shop", name="web", rule=f"egress[{place}]")]
        written = [digest]
        if also and not place:
            sources.append(RuleSource(kind="NetworkPolicy", namespace="shop", name="also", rule="egress[0]"))
            written.append(also)
        rules.append(
            RulesetRule(
                action=Action.ACCEPT,
                peers=(),
                ports=(PortRange(protocol=TCP),),
                sources=tuple(sources),
                hashes=tuple(written),
            )
        )
    return Ruleset(direction=Direction.EGRESS, default=Default.ALLOW, network_policy=tuple(rules))


def make_usage(totals: Totals | None = None) -> Usage:
    made = Usage(NODE, totals or Totals(epoch=7, since=100))
    made.enter("boot/maps", {})
    return made


def restart(usage: Usage) -> Usage:
    """Through the disk."""
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(usage.totals()), type=Totals)
    return make_usage(kept)


def flows_of(usage: Usage) -> dict[str, int]:
    return {rule.hash: rule.flows for rule in usage.totals().rules}


def reach(address: str = "192.0.2.1", *, port: int = 443, flows: int = 1, row: int = 0, **more: object) -> Reach:
    made = Reach(Direction.EGRESS, TCP, port, address, 0, row, Reason.DEFAULT, is_audited=False, flows=flows)
    return made._replace(**more)  # type: ignore[arg-type]  # fields by name, as tests write them


def told(usage: Usage) -> PodUsage:
    (pod,) = usage.next_report(200).pods
    return pod


def peers_of(pod: PodUsage) -> dict[tuple[PeerKind, str], int]:
    return {(one.kind, one.peer): one.flows for one in pod.contacts}


def test_a_rule_that_stays_keeps_its_history_while_others_change() -> None:
    """An edit makes another ruleset with other counters; the rule that is written as before goes on from its number."""
    usage = make_usage()
    usage.watch([Watched(0, make_ruleset("aa", "bb"))], 110)
    usage.count({0: 3, 1: 5}, 120)
    usage.watch([Watched(10, make_ruleset("cc", "aa"))], 130)
    usage.count({10: 1, 11: 4}, 140)
    assert flows_of(usage) == {"aa": 7, "bb": 5, "cc": 1}
    rules = {rule.hash: rule for rule in usage.totals().rules}
    assert (rules["aa"].first, rules["aa"].last, rules["aa"].rule) == (110, 140, "egress[1]")


def test_a_range_given_to_another_ruleset_carries_no_old_count() -> None:
    """What was counted in a range before belongs to whoever had it."""
    usage = make_usage()
    usage.watch([Watched(0, make_ruleset("aa"))], 110)
    usage.count({0: 30}, 120)
    usage.watch([Watched(0, make_ruleset("bb"))], 130)
    usage.count({0: 30}, 140)
    assert flows_of(usage) == {"aa": 30, "bb": 0}
    usage.count({0: 31}, 150)
    assert flows_of(usage) == {"aa": 30, "bb": 1}


def test_a_restart_neither_forgets_nor_counts_twice() -> None:
    """Numbers and what they were counted from are kept together; what the kernel counted meanwhile is added."""
    usage = make_usage()
    usage.watch([Watched(0, make_ruleset("aa"))], 110)
    usage.count({0: 3}, 120)
    again = restart(usage)
    again.watch([Watched(0, make_ruleset("aa"))], 130)
    again.count({0: 5}, 140)
    assert flows_of(again) == {"aa": 5}


def test_a_boot_and_new_maps_go_on_from_the_totals() -> None:
    """Other maps begin where they are: fresh ones at nothing, carried ones at what was copied."""
    usage = make_usage()
    usage.watch([Watched(0, make_ruleset("aa"))], 110)
    usage.count({0: 3}, 120)
    usage.enter("boot/other maps", {0: 3})
    usage.count({0: 4}, 130)
    assert flows_of(usage) == {"aa": 4}
    usage.enter("another boot/maps", {})
    usage.count({0: 4}, 140)
    assert flows_of(usage) == {"aa": 8}


def test_a_rule_that_two_policies_wrote_counts_for_both() -> None:
    """They share a bit: its use is the use of each."""
    usage = make_usage()
    usage.watch([Watched(0, make_ruleset("aa", also="dd"))], 110)
    usage.count({0: 2}, 120)
    assert {(rule.name, rule.flows) for rule in usage.totals().rules} == {("web", 2), ("also", 2)}


def test_of_a_shadow_ruleset_only_rules_under_audit_count() -> None:
    """A flow is judged by both rulesets: rules that both have count where they are enforced, and once."""
    usage = make_usage()
    usage.watch([Watched(0, make_ruleset("aa")), Watched(5, make_ruleset("aa", "bb"), is_shadow=True)], 110)
    usage.count({0: 2, 5: 2, 6: 3}, 120)
    assert flows_of(usage) == {"aa": 2, "bb": 3}


def test_a_live_flow_keeps_its_rule_in_use() -> None:
    """A connection that was opened long ago says that its rule is used now; it adds no flow."""
    usage = make_usage()
    usage.watch([Watched(0, make_ruleset("aa", "bb"))], 110)
    usage.count({0: 1}, 120)
    usage.note_live({0}, 900)
    rules = {rule.hash: rule for rule in usage.totals().rules}
    assert (rules["aa"].flows, rules["aa"].last) == (1, 900) and rules["bb"].last == 0


def test_only_what_changed_is_reported_until_it_is_taken() -> None:
    """A report that nobody took is made again; one that was taken leaves nothing but what changed since."""
    usage = make_usage()
    usage.watch([Watched(0, make_ruleset("aa", "bb"))], 110)
    first = usage.next_report(120)
    assert [rule.hash for rule in first.rules] == ["aa", "bb"] and usage.next_report(120) == first
    usage.count({1: 1}, 130)
    usage.note_taken(first)
    (news,) = usage.next_report(140).rules
    assert (news.hash, news.flows) == ("bb", 1)
    usage.note_taken(usage.next_report(140))
    assert not usage.has_news


def test_large_reports_are_cut_and_go_on() -> None:
    """No report is larger than a message; reports follow each other until everything is taken."""
    usage = make_usage()
    for place in range(30):
        owner = Owner("shop", f"web-{place}", f"uid-{place}")
        rows = [reach(f"192.0.2.{number % 250}", port=number) for number in range(numbers.CONTACTS_A_POD)]
        usage.reach(owner, place, rows, Facts(), now=120)
    usage.watch([Watched(0, make_ruleset(*(f"{number:04x}" for number in range(1000))))], 110)
    heard: list[UsageReport] = []
    while usage.has_news:
        heard.append(usage.next_report(130))
        assert len(wire.encode(heard[-1])) <= wire.MAX_ROW_BYTES
        usage.note_taken(heard[-1])
    assert sum(len(one.rules) for one in heard) == 1000
    assert {pod.uid for one in heard for pod in one.pods} == {f"uid-{place}" for place in range(30)}


def test_rules_long_gone_are_forgotten_once_they_are_told() -> None:
    """A rule that is nowhere in force and was not used for thirty days is dropped; one in force never."""
    usage = make_usage()
    usage.watch([Watched(0, make_ruleset("aa", "bb"))], 110)
    usage.watch([Watched(0, make_ruleset("aa"))], 120)
    late = 121 + numbers.KEEP_SECONDS
    usage.note_taken(usage.next_report(late))
    usage.note_taken(usage.next_report(late))
    assert set(flows_of(usage)) == {"aa"}


ADDRESSES = {
    "10.0.0.9": AddressRow(address="10.0.0.9", identity=IdentityId(300), uid="d", owner="data/db-0"),
    "192.168.0.1": AddressRow(
        address="192.168.0.1", kind=AddressKind.NODE, identity=IdentityId(301), uid="n", owner="node-a"
    ),
}
FRONT = FrontendRow(
    address="10.96.0.10",
    protocol=TCP,
    port=80,
    service="shop/cart",
    backends=(Backend(identity=IdentityId(300), port=8080),),
)
FACTS = Facts(addresses=ADDRESSES, frontends={("10.96.0.10", TCP, 80): FRONT}, patterns={5: "*.example.com"})


def named(names: dict[str, tuple[str, ...]]) -> Facts:
    """With what endpoint 4 was told."""
    return Facts(
        ADDRESSES, FACTS.frontends, FACTS.patterns, lambda endpoint, address: names.get(address, ()) if endpoint else ()
    )


@pytest.mark.parametrize(
    ("row", "names", "expected"),
    [
        (reach("10.0.0.9"), {}, [(PeerKind.POD, "data/db-0")]),
        (reach("192.168.0.1"), {}, [(PeerKind.NODE, "node-a")]),
        (reach("10.96.0.10", port=80), {}, [(PeerKind.SERVICE, "shop/cart")]),
        (reach("10.96.0.10", port=81), {}, [(PeerKind.ADDRESS, "10.96.0.10")]),
        (reach("192.0.2.1"), {}, [(PeerKind.ADDRESS, "192.0.2.1")]),
        (reach("192.0.2.1", row=5), {}, [(PeerKind.NAME, "*.example.com")]),
        (reach("192.0.2.1", row=5), {"192.0.2.1": ("x.test", "a.example.com")}, [(PeerKind.NAME, "a.example.com")]),
        (reach(), {"192.0.2.1": ("a.test", "b.test")}, [(PeerKind.NAME, "a.test"), (PeerKind.NAME, "b.test")]),
        (
            reach(direction=Direction.INGRESS),
            {"192.0.2.1": ("a.test",)},
            [(PeerKind.ADDRESS, "192.0.2.1")],
        ),
    ],
)
def test_a_peer_is_told_by_what_is_known_of_its_address(
    row: Reach, names: dict[str, tuple[str, ...]], expected: list[tuple[PeerKind, str]]
) -> None:
    """Its pod or node, else its Service and port, else the name that admitted it, else what this pod was told."""
    usage = make_usage()
    usage.reach(WEB, 4, [row], named(names), now=120)
    assert sorted(peers_of(told(usage))) == expected


def test_a_name_that_is_heard_after_its_flow_is_told_all_the_same() -> None:
    """An address becomes the contact of its name, with the flows that it had."""
    usage = make_usage()
    usage.reach(WEB, 4, [reach(flows=2)], FACTS, now=120)
    usage.reach(WEB, 4, [reach("10.0.0.9")], named({"192.0.2.1": ("a.test",)}), now=130)
    assert peers_of(told(usage)) == {(PeerKind.NAME, "a.test"): 2, (PeerKind.POD, "data/db-0"): 1}


def test_flows_that_need_no_rule_are_marked() -> None:
    """Implicit DNS and the own node are told as such; a later flow by a rule does not take the mark away."""
    usage = make_usage()
    rows = [reach(reason=Reason.DNS_IMPLICIT, port=53), reach(reason=Reason.OWN_NODE, port=80), reach(port=80)]
    usage.reach(WEB, 4, rows, FACTS, now=120)
    contacts = {one.port: one for one in told(usage).contacts}
    assert contacts[53].implicit and contacts[80].own_node and contacts[80].flows == 2


def test_one_pods_contacts_are_bounded_and_nobody_elses() -> None:
    """What a pod reached beyond its room is counted as dropped; another pod's contacts are all there."""
    usage = make_usage()
    many = numbers.CONTACTS_A_POD + 50
    usage.reach(WEB, 4, (reach(port=port + 1) for port in range(many)), FACTS, now=120)
    usage.reach(Owner("shop", "other", "uid-other"), 5, [reach()], FACTS, now=120)
    web, other = sorted(_all_pods(usage), key=lambda pod: pod.pod, reverse=True)
    assert len(web.contacts) == numbers.CONTACTS_A_POD and web.dropped == 50
    assert len(other.contacts) == 1 and other.dropped == 0


def _all_pods(usage: Usage) -> Iterable[PodUsage]:
    while usage.has_news:
        report = usage.next_report(200)
        yield from report.pods
        usage.note_taken(report)


def test_what_an_endpoint_number_lost_before_is_not_its_new_pods() -> None:
    """Losses are told from where a pod began; a map made anew begins at nothing."""
    usage = make_usage()
    usage.begin_pod(WEB, {Direction.EGRESS: 40}, now=120)
    usage.note_lost(WEB, {Direction.EGRESS: 42, Direction.INGRESS: 1}, now=130)
    usage.note_lost(WEB, {Direction.EGRESS: 1, Direction.INGRESS: 1}, now=140)
    assert (told(usage).lost_egress, told(usage).lost_ingress) == (3, 1)


def test_pods_that_are_gone_are_forgotten_once_they_are_told() -> None:
    """The last contacts of a deleted pod are reported before it is dropped."""
    usage = make_usage()
    usage.reach(WEB, 4, [reach()], FACTS, now=120)
    usage.end_pods([])
    assert told(usage).contacts
    usage.note_taken(usage.next_report(200))
    usage.end_pods([])
    assert not usage.totals().pods and restart(usage).owners() == {}


def test_too_many_rules_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its room a node counts no more rules, and says so."""
    monkeypatch.setattr(numbers, "RULES_MAX", 2)
    usage = make_usage()
    usage.watch([Watched(0, make_ruleset("aa", "bb", "cc"))], 110)
    usage.count({0: 1, 2: 1}, 120)
    assert flows_of(usage) == {"aa": 1, "bb": 0} and usage.counters["usage_rules_left_out"] == 1
