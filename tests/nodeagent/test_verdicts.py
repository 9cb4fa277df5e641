"""One verdict, one story: names for numbers, also for numbers of yesterday."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from schemas.policy import AddressRow, AnyPeer, DomainPeer, PeersetPeer, PortRange, Ruleset, RulesetRule, RuleSource
from schemas.resolution import Observed
from schemas.terms import (
    FIRST_BIT,
    Action,
    Default,
    Direction,
    IdentityId,
    NodeName,
    Reason,
    RefusalReason,
    Tier,
    Verdict,
)
from services.nodeagent.events import NO_BIT, VerdictRecord
from services.nodeagent.names import Lesson
from services.nodeagent.refusals import Refused
from services.nodeagent.verdicts import PodName, Storyteller

SOURCE = RuleSource(kind="NetworkPolicy", namespace="app", name="allow", rule="egress[0]")
ISOLATOR = RuleSource(kind="NetworkPolicy", namespace="app", name="isolate", rule="")
RULE = RulesetRule(action=Action.ACCEPT, peers=(AnyPeer(),), ports=(PortRange(protocol=6),), sources=(SOURCE,))
RULESET = Ruleset(
    direction=Direction.EGRESS,
    default=Default.DENY,
    network_policy=(RULE,),
    isolated=True,
    isolated_by=(ISOLATOR,),
)
RECORD = VerdictRecord(
    boottime_nanos=1,
    endpoint=4,
    suppressed=2,
    source="10.0.0.1",
    destination="192.0.2.9",
    source_port=40000,
    destination_port=443,
    protocol=6,
    direction=int(Direction.EGRESS),
    verdict=int(Verdict.DENY),
    reason=int(Reason.ISOLATED),
    tier=int(Tier.NETWORK_POLICY),
    family=4,
    bit=NO_BIT,
    ruleset=3,
    domain=0,
    peer_identity=0,
    revision=17,
    frame_bytes=60,
    is_shadow=False,
)
POD = AddressRow(address="10.0.0.2", identity=IdentityId(300), uid="u", owner="app/db")


def storyteller() -> Storyteller:
    told = Storyteller(NodeName("node-a"))
    told.set_state(
        pods={4: PodName("app", "web")},
        rulesets={3: RULESET},
        patterns={9: "*.example.com"},
        owners={"10.0.0.2": POD},
    )
    return told


@pytest.mark.parametrize("reason", [Reason.ISOLATED, Reason.NAME_EXPIRED, Reason.NO_BACKEND, Reason.MIXED_BACKENDS])
def test_what_isolates_is_named_however_it_is_put(reason: Reason) -> None:
    """An expired name, a Service without a backend: it was isolation that denied; outside its tier it is not named."""
    event = storyteller().tell(replace(RECORD, reason=int(reason)), unix_nanos=5)
    assert event is not None and event.policy == ISOLATOR
    event = storyteller().tell(replace(RECORD, reason=int(reason), tier=int(Tier.DEFAULT)), unix_nanos=5)
    assert event is not None and event.policy is None


def test_the_rule_that_decided_is_named() -> None:
    """Handle and bit become policy and rule."""
    bit = FIRST_BIT[Tier.NETWORK_POLICY]
    record = replace(RECORD, verdict=int(Verdict.ALLOW), reason=int(Reason.RULE), bit=bit)
    event = storyteller().tell(record, unix_nanos=5)
    assert event is not None
    assert (event.namespace, event.pod, event.node) == ("app", "web", "node-a")
    assert (event.policy, event.tier, event.verdict) == (SOURCE, Tier.NETWORK_POLICY, Verdict.ALLOW)
    assert (event.revision, event.unix_nanos, event.suppressed) == (17, 5, 2)


def test_isolation_names_who_isolates() -> None:
    """A denial for want of a rule names the policy that isolates the pod."""
    event = storyteller().tell(RECORD, unix_nanos=5)
    assert event is not None
    assert event.policy == ISOLATOR


def test_late_records_find_yesterdays_meaning() -> None:
    """A ruleset and a pod that are gone are still named."""
    told = storyteller()
    told.set_state(pods={}, rulesets={}, patterns={}, owners={})
    event = told.tell(RECORD, unix_nanos=5)
    assert event is not None
    assert (event.pod, event.policy) == ("web", ISOLATOR)


def test_a_story_says_what_the_pods_row_says_of_owner_and_labels() -> None:
    """As the settings of the cluster ask for them."""
    told = storyteller()
    told.set_state(
        pods={4: PodName("app", "web", owner="Job/j", labels={"a": "b"})}, rulesets={}, patterns={}, owners={}
    )
    event = told.tell(RECORD, unix_nanos=5)
    assert event is not None and (event.owner, event.labels) == ("Job/j", {"a": "b"})


def test_a_taught_address_has_the_name_that_its_pod_asked_for() -> None:
    """The newest that the row's pattern covers; without one, the pattern."""
    told = storyteller()
    assert told.name_taught(4, "192.0.2.10", 9) == "*.example.com"
    for name in ("a.example.com", "elsewhere.net"):
        told.note_observed(Observed(endpoint_id=4, name=name, addresses=("192.0.2.10",), ttl_seconds=60))
    assert told.name_taught(4, "192.0.2.10", 9) == "a.example.com"
    assert told.name_taught(5, "192.0.2.10", 9) == "*.example.com"


def test_an_endpoint_never_known_tells_nothing() -> None:
    """A record of an endpoint that this agent never saw is no story."""
    assert storyteller().tell(replace(RECORD, endpoint=99), unix_nanos=5) is None


def test_a_denied_address_has_the_name_it_was_told_under() -> None:
    """The last name under which this very endpoint was told the address; another endpoint's does not count."""
    told = storyteller()
    assert told.lacks_name(RECORD) and told.lacks_name(replace(RECORD, verdict=int(Verdict.AUDIT)))
    assert not told.lacks_name(replace(RECORD, verdict=int(Verdict.ALLOW)))
    told.note_observed(Observed(endpoint_id=5, name="other.org", addresses=("192.0.2.9",)))
    assert told.lacks_name(RECORD)
    told.note_observed(Observed(endpoint_id=4, name="httpbin.org", addresses=("192.0.2.9",)))
    assert not told.lacks_name(RECORD)
    event = told.tell(RECORD, unix_nanos=5)
    assert event is not None
    assert event.name == "httpbin.org"


def test_pods_and_early_drops_wait_for_no_name() -> None:
    """A peer that is a pod, and a packet dropped before any rule, have no name to wait for."""
    told = storyteller()
    assert not told.lacks_name(replace(RECORD, destination="10.0.0.2"))
    assert not told.lacks_name(replace(RECORD, tier=int(Tier.NONE)))
    event = told.tell(replace(RECORD, destination="10.0.0.2"), unix_nanos=5)
    assert event is not None
    assert event.peer == "app/db"


def test_an_admitting_name_says_who_learned_it() -> None:
    """By the domain row: own answer, another node's lesson, else the pattern alone."""
    told = storyteller()
    record = replace(RECORD, verdict=int(Verdict.ALLOW), reason=int(Reason.RULE), domain=9)
    event = told.tell(record, unix_nanos=5)
    assert event is not None
    assert (event.name, event.learned_by) == ("*.example.com", "")
    told.note_lesson(Lesson("192.0.2.9", 9, 100, "a.example.com", "node-b"))
    event = told.tell(record, unix_nanos=5)
    assert event is not None
    assert (event.name, event.learned_by) == ("a.example.com", "node-b")
    told.note_observed(Observed(endpoint_id=4, name="b.example.com", addresses=("192.0.2.9",)))
    event = told.tell(record, unix_nanos=5)
    assert event is not None
    assert (event.name, event.learned_by) == ("b.example.com", "node-a")


def test_numbers_of_a_newer_program_shut() -> None:
    """A verdict, reason or tier that is not known is told as the closed one."""
    event = storyteller().tell(replace(RECORD, verdict=77, reason=250, tier=9), unix_nanos=5)
    assert event is not None
    assert (event.verdict, event.reason, event.tier) == (Verdict.DENY, Reason.UNKNOWN, Tier.NONE)


def test_a_flow_keeps_the_name_that_admitted_it() -> None:
    """Denied later, when nothing names its address any more, it is still told by that name; another flow is not."""
    told = storyteller()
    told.note_lesson(Lesson("192.0.2.9", 9, 100, "a.example.com", "node-b"), "trace")
    told.tell(replace(RECORD, verdict=int(Verdict.ALLOW), reason=int(Reason.RULE), domain=9), unix_nanos=5)
    event = told.tell(RECORD, unix_nanos=6)
    assert event is not None
    assert (event.verdict, event.name, event.learned_by) == (Verdict.DENY, "a.example.com", "node-b")
    event = told.tell(replace(RECORD, source_port=40001), unix_nanos=7)
    assert event is not None and event.name == ""


def test_a_verdict_names_the_spans_that_explain_it() -> None:
    """Of its own revision, not of the newest; and of the answer that was news last."""
    told = storyteller()
    told.note_applied(17, "seventeen")
    told.note_applied(18, "eighteen")
    told.note_observed(Observed(endpoint_id=4, name="a.example.com", addresses=("192.0.2.9",)), "older")
    told.note_observed(Observed(endpoint_id=4, name="a.example.com", addresses=("192.0.2.9",)), "newer")
    event = told.tell(replace(RECORD, verdict=int(Verdict.ALLOW), reason=int(Reason.RULE), domain=9), unix_nanos=5)
    assert event is not None
    assert (event.applied_trace, event.learned_trace) == ("seventeen", "newer")


def with_names(*peers: DomainPeer | PeersetPeer) -> Ruleset:
    """Whose rules name these."""
    return replace(RULESET, network_policy=(replace(RULE, peers=(*peers, AnyPeer())),))


def storyteller_with_names() -> Storyteller:
    """Of two pods; *.example.com is a pattern in force on the node, and of the first pod alone."""
    told = storyteller()
    told.set_state(
        pods={4: PodName("app", "web", 6), 5: PodName("app", "db", 7)},
        rulesets={6: with_names(DomainPeer(pattern="*.example.com")), 7: with_names(DomainPeer(pattern="example.net"))},
        patterns={9: "*.example.com", 10: "example.net"},
        owners={},
    )
    return told


def test_a_name_that_dns_refuses_is_a_story_of_its_own() -> None:
    """The gate is open, DNS said no: with what it said, who said it, how often, and the trace of the answer."""
    refused = Refused(4, "a.example.com", RefusalReason.NXDOMAIN, resolver="10.96.0.10", count=3, trace="answer")
    told = storyteller_with_names().tell_refused(refused, unix_nanos=5)
    assert told is not None
    assert (told.node, told.namespace, told.pod, told.name) == ("node-a", "app", "web", "a.example.com")
    assert (told.reason, told.resolver, told.count) == (RefusalReason.NXDOMAIN, "10.96.0.10", 3)
    assert (told.learned_trace, told.unix_nanos) == ("answer", 5)


@pytest.mark.parametrize(("endpoint", "name"), [(4, "a.example.org"), (5, "a.example.com"), (99, "a.example.com")])
def test_what_the_pods_own_rules_do_not_name_is_not_refused_by_dns(endpoint: int, name: str) -> None:
    """The gate is shut for it, whatever a neighbour may: an uncovered name, a neighbour's, an unknown pod's."""
    refused = Refused(endpoint, name, RefusalReason.NXDOMAIN)
    assert storyteller_with_names().tell_refused(refused, unix_nanos=5) is None


def test_a_rule_whose_peers_stand_elsewhere_has_every_name_in_force() -> None:
    """A pod is told too much rather than nothing."""
    told = storyteller_with_names()
    told.set_state(
        pods={5: PodName("app", "db", 8)}, rulesets={8: with_names(PeersetPeer(hash="ab"))}, patterns={}, owners={}
    )
    assert told.covers(5, "a.example.com") and not told.covers(5, "a.example.org")
