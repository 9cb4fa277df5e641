"""A row holds only if the packets and the services say the same."""

from __future__ import annotations

import pytest

from schemas.policy import RuleSource
from schemas.terms import Direction, NodeName, Reason, Tier, Verdict
from schemas.verdict import VerdictEvent
from services.demo import topology
from services.demo.rows import Attempt, Row, make_row, match_verdict
from services.demo.steps import ALLOWED, BLOCKED, Connect, UseLive

POD = topology.find_pod("app/curl-backend")
FOUR, SIX = topology.OUTSIDE["example.com"]


def make_event(
    verdict: Verdict, address: str = FOUR, *, policy: str = "", direction: Direction = Direction.EGRESS, name: str = ""
) -> VerdictEvent:
    """A verdict on curl-backend's way to ``address``, port 80."""
    return VerdictEvent(
        node=NodeName("node-a"),
        namespace=POD.namespace,
        pod=POD.name,
        direction=direction,
        verdict=verdict,
        reason=Reason.RULE if policy else Reason.ISOLATED,
        tier=Tier.NETWORK_POLICY,
        source_address=POD.address6 if ":" in address else POD.address,
        destination_address=address,
        protocol=6,
        destination_port=80,
        policy=RuleSource(kind="NetworkPolicy", namespace="app", name=policy, rule="egress[0]") if policy else None,
        name=name,
    )


def make_attempts(*opened: bool) -> list[Attempt]:
    """One an address family."""
    return [Attempt(address, 80, is_open) for address, is_open in zip((FOUR, SIX), opened, strict=True)]


def test_an_allowed_row_names_who_allowed_it() -> None:
    """Policy, rule, tier, reason and the admitting name come from the verdict."""
    probe = Connect(POD.key, "example.com", 80, ALLOWED, "only")
    event = make_event(Verdict.ALLOW, policy="only", name="example.com")
    row = make_row(3, probe, make_attempts(True, True), [event, event])
    assert row == Row(
        step=3,
        source="curl-backend",
        destination="example.com",
        expected=ALLOWED,
        observed=ALLOWED,
        policy="only",
        rule="egress[0]",
        tier="NetworkPolicy",
        reason="RULE",
        name="example.com",
    )
    assert row.to_json()["reason"] == "RULE: example.com"


def test_a_denied_row_without_a_rule_names_the_name() -> None:
    """``denied: httpbin.org`` is more use than an address."""
    probe = Connect(POD.key, "httpbin.org", 80, BLOCKED)
    event = make_event(Verdict.DENY, name="httpbin.org")
    row = make_row(3, probe, make_attempts(False, False), [event, event])
    assert (row.problem, row.policy, row.to_json()["reason"]) == ("", "", "ISOLATED: httpbin.org")


@pytest.mark.parametrize("expected", [ALLOWED, BLOCKED])
def test_families_that_disagree_fail_the_row(expected: str) -> None:
    """Open over IPv6 alone is neither Allowed nor Blocked."""
    events = [make_event(Verdict.ALLOW), make_event(Verdict.DENY)]
    row = make_row(3, Connect(POD.key, "example.com", 80, expected), make_attempts(True, False), events)
    assert row.observed != expected
    assert row.problem


def test_blocked_without_a_verdict_is_not_proof() -> None:
    """A broken cable blocks as well: Yett must have said that it did."""
    row = make_row(3, Connect(POD.key, "example.com", 80, BLOCKED), make_attempts(False, False), [None, None])
    assert row.observed == BLOCKED
    assert "no verdict" in row.problem


def test_refused_is_not_blocked() -> None:
    """Yett drops in silence; anything else was not Yett."""
    attempts = [Attempt(FOUR, 80, is_open=False, failure="curl exit 7")]
    row = make_row(3, Connect(POD.key, "example.com", 80, BLOCKED), attempts, [make_event(Verdict.DENY)])
    assert "curl exit 7" in row.problem


def test_allowed_by_another_policy_fails_the_row() -> None:
    """A rule under test that did not decide was not tested."""
    probe = Connect(POD.key, "example.com", 80, ALLOWED, "only")
    row = make_row(3, probe, make_attempts(True, True), [make_event(Verdict.ALLOW, policy="other")] * 2)
    assert "decided by other" in row.problem


def test_a_live_connection_needs_no_verdict() -> None:
    """It was judged when it was opened."""
    row = make_row(10, UseLive(POD.key, "live", ALLOWED), [Attempt("", 0, is_open=True)], [None])
    assert (row.observed, row.problem) == (ALLOWED, "")


def test_a_verdict_belongs_to_the_attempt_of_its_tuple() -> None:
    """Another address, another conclusion or another pod's event is not about it."""
    matches = match_verdict(POD, Attempt(FOUR, 80, is_open=False))
    assert matches(make_event(Verdict.DENY))
    assert not matches(make_event(Verdict.ALLOW))
    assert not matches(make_event(Verdict.DENY, SIX))


def test_a_denial_at_the_destination_explains_a_blocked_row() -> None:
    """The packet left its pod and was stopped on its way into the other."""
    event = make_event(Verdict.DENY, "10.244.1.10", direction=Direction.INGRESS)
    assert match_verdict(POD, Attempt("10.100.12.34", 80, is_open=False))(event)
    assert not match_verdict(POD, Attempt("10.100.12.34", 80, is_open=True))(event)
