"""A verdict is one readable line."""

from __future__ import annotations

import msgspec
import pytest

from schemas.policy import RuleSource
from schemas.terms import Direction, NodeName, Reason, RefusalReason, Tier, Verdict
from schemas.verdict import NameRefused, VerdictEvent
from services.cli.flows import describe_flow, describe_refused

DENIED = VerdictEvent(
    node=NodeName("node-a"),
    namespace="app",
    pod="curl-frontend",
    direction=Direction.EGRESS,
    verdict=Verdict.DENY,
    reason=Reason.ISOLATED,
    tier=Tier.NETWORK_POLICY,
    source_address="10.244.1.12",
    destination_address="192.0.2.10",
    protocol=6,
    destination_port=80,
    name="example.com",
    unix_nanos=1_765_000_000_123_000_000,
)
REFUSED = NameRefused(
    node=NodeName("node-a"),
    namespace="app",
    pod="curl-frontend",
    name="api.example.org",
    reason=RefusalReason.NXDOMAIN,
    resolver="10.96.0.10",
    unix_nanos=1_765_000_000_123_000_000,
)


def test_a_refused_name_says_that_the_gate_is_open_and_what_dns_said() -> None:
    """So that nobody looks for a rule where a resolver refuses."""
    line = "05:46:40.123 app/curl-frontend -> api.example.org: the gate is open, DNS said NXDOMAIN by 10.96.0.10"
    assert describe_refused(REFUSED) == line
    many = msgspec.structs.replace(REFUSED, count=7, varies=True, suppressed=2)
    assert describe_refused(many).endswith("DNS said NXDOMAIN by 10.96.0.10 (7 times) (and 2 more)")
    assert "api.example.org and other names:" in describe_refused(many)
    sinkhole = msgspec.structs.replace(REFUSED, reason=RefusalReason.SINKHOLE, addresses=("0.0.0.0",))
    assert "DNS said SINKHOLE (0.0.0.0)" in describe_refused(sinkhole)


def test_a_denial_names_the_pod_the_name_and_the_reason() -> None:
    """Who, to where, why."""
    assert (
        describe_flow(DENIED)
        == "05:46:40.123 app/curl-frontend -> example.com (192.0.2.10):80 TCP: ISOLATED in network_policy"
    )


def test_a_rule_is_named_with_its_policy() -> None:
    """And what was suppressed is counted."""
    source = RuleSource(kind="ClusterNetworkPolicy", name="block", rule="deny-metadata")
    event = msgspec.structs.replace(DENIED, policy=source, reason=Reason.RULE, tier=Tier.ADMIN, suppressed=7)
    assert describe_flow(event).endswith("RULE by block/deny-metadata in admin (and 7 like it)")


@pytest.mark.parametrize(("protocol", "shown"), [(17, "UDP"), (253, "253")])
def test_protocols_have_names_where_they_have_one(protocol: int, shown: str) -> None:
    """Others keep their number."""
    assert f" {shown}:" in describe_flow(msgspec.structs.replace(DENIED, protocol=protocol))


def test_inbound_shows_where_it_came_from() -> None:
    """The pod is on the left whatever the direction."""
    event = msgspec.structs.replace(DENIED, direction=Direction.INGRESS, name="", peer="app/curl-backend")
    assert "app/curl-frontend <- app/curl-backend (10.244.1.12) on:80" in describe_flow(event)


def test_a_count_is_shown() -> None:
    """And that a scan's peers differ."""
    assert describe_flow(msgspec.structs.replace(DENIED, count=12)).endswith("in network_policy (12 times)")
    varied = msgspec.structs.replace(DENIED, count=12, varies=True)
    assert describe_flow(varied).endswith("(12 times, peers and ports vary)")
