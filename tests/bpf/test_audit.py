"""Audit: what the enforced rules accept is asked of the shadow too, which opens nothing; a flow is told once of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from schemas.terms import Default, Direction, Reason, Tier, Verdict
from services.nodeagent.tables import Tables
from tests.bpf import packets
from tests.bpf.packets import ACK, SYN, TCP, icmp, ipv4, tcp
from tests.bpf.prog_run import Kernel, Result, boot_seconds
from tests.bpf.worlds import (
    ADMIN,
    EGRESS,
    INGRESS,
    NETWORK_POLICY,
    PEER4,
    POD4,
    add_pattern,
    make_tables,
)

pytestmark = pytest.mark.kernel
EGRESS_SHADOW, INGRESS_SHADOW, NEWER_SHADOW = 10, 11, 12
ACCEPTS = {"any": 1 << NETWORK_POLICY}
ACCEPTS_OTHERWISE = {"any": 1 << ADMIN}
DENIES = {"any": 1 << ADMIN, "deny": 1 << ADMIN}
ISOLATES = {"isolated": True}


def with_shadows(
    enforced: dict[str, Any], egress: dict[str, Any] | None, ingress: dict[str, Any] | None = None
) -> Tables:
    """``enforced``: the rulesets of both directions. ``egress``, ``ingress``: the shadows, if any."""
    tables = make_tables(egress=enforced, ingress=enforced)
    for handle, given in ((EGRESS_SHADOW, egress), (NEWER_SHADOW, egress), (INGRESS_SHADOW, ingress)):
        if given is not None:
            bare = make_tables(egress=given).rulesets[EGRESS]
            tables.rulesets[handle] = replace(bare, hash=f"{handle:02}" * 16, counters=1024)
            tables.ports[(handle, 0)] = (1 << 512) - 1
    return point(tables, EGRESS_SHADOW if egress is not None else 0, INGRESS_SHADOW if ingress is not None else 0)


def point(tables: Tables, egress: int, ingress: int = 0) -> Tables:
    """The pod's shadows are these from now on."""
    tables.endpoints[1] = replace(tables.endpoints[1], egress_shadow=egress, ingress_shadow=ingress)
    return tables


def out(kernel: Kernel, flags: int = ACK, *, sport: int = 1000) -> Result:
    return kernel.from_pod(packets.ip(POD4, PEER4, TCP, tcp(sport, 443, flags)))


def back(kernel: Kernel, flags: int = ACK, *, dport: int = 1000) -> Result:
    return kernel.to_pod(packets.ip(PEER4, POD4, TCP, tcp(443, dport, flags)))


def handshake(kernel: Kernel) -> None:
    assert out(kernel, SYN).passed and back(kernel, SYN | ACK).passed and out(kernel).passed


@pytest.mark.parametrize(
    ("enforced", "shadow", "verdict", "reason", "tier"),
    [
        (ACCEPTS, DENIES, Verdict.AUDIT, Reason.RULE, Tier.ADMIN),
        (ACCEPTS, ISOLATES, Verdict.AUDIT, Reason.ISOLATED, Tier.NETWORK_POLICY),
        (ACCEPTS, {"default": Default.DENY}, Verdict.AUDIT, Reason.DEFAULT, Tier.DEFAULT),
        (ACCEPTS, {"default": Default.AUDIT}, Verdict.AUDIT, Reason.DEFAULT, Tier.DEFAULT),
        (ACCEPTS, {"default": Default.ALLOW}, Verdict.ALLOW, Reason.RULE, Tier.NETWORK_POLICY),
        (ACCEPTS, ACCEPTS_OTHERWISE, Verdict.ALLOW, Reason.RULE, Tier.NETWORK_POLICY),
        (DENIES, ACCEPTS, Verdict.DENY, Reason.RULE, Tier.ADMIN),
        (ISOLATES, ACCEPTS, Verdict.DENY, Reason.ISOLATED, Tier.NETWORK_POLICY),
        (ISOLATES, DENIES, Verdict.DENY, Reason.ISOLATED, Tier.NETWORK_POLICY),
        ({"default": Default.DENY}, ACCEPTS, Verdict.DENY, Reason.DEFAULT, Tier.DEFAULT),
    ],
)
@pytest.mark.parametrize("direction", list(Direction))
def test_the_two_answers_make_one(
    kernel: Kernel,
    direction: Direction,
    enforced: dict[str, Any],
    shadow: dict[str, Any],
    verdict: Verdict,
    reason: Reason,
    tier: Tier,
) -> None:
    """Denied is what enforced denies; of the rest audit is what the shadow does not accept, told as the shadow says."""
    is_egress = direction is Direction.EGRESS
    kernel.fill(with_shadows(enforced, shadow if is_egress else None, None if is_egress else shadow))
    result = out(kernel, SYN) if is_egress else back(kernel, SYN)
    event = result.event
    assert event is not None and (event.verdict, event.reason, event.tier) == (verdict, reason, tier)
    assert result.passed is (verdict is not Verdict.DENY)
    handles = (EGRESS_SHADOW, EGRESS) if is_egress else (INGRESS_SHADOW, INGRESS)
    assert event.ruleset == handles[verdict is not Verdict.AUDIT]
    assert event.is_shadow is (verdict is Verdict.AUDIT)


def test_a_shadow_of_one_direction_says_nothing_of_the_other(kernel: Kernel) -> None:
    """What nobody puts under audit is judged once."""
    kernel.fill(with_shadows(ACCEPTS, DENIES))
    result = back(kernel, SYN)
    assert result.event is not None and result.event.verdict == Verdict.ALLOW


def test_a_shadow_that_is_missing_audits(kernel: Kernel) -> None:
    """A missing row accepts nothing; being a shadow, it shuts nothing either."""
    tables = with_shadows(ACCEPTS, DENIES)
    del tables.rulesets[EGRESS_SHADOW]
    kernel.fill(tables)
    result = out(kernel, SYN)
    assert result.passed and result.event is not None
    assert (result.event.verdict, result.reason) == (Verdict.AUDIT, Reason.NO_RULESET)


# ---------------------------------------------------------------------------------------------------------------------
# Live flows


@pytest.mark.parametrize("first", [out, back])
def test_a_live_flow_is_told_once_and_as_its_opener_sent_it(kernel: Kernel, first: Any) -> None:
    """It comes under audit: its next packet tells, whichever side's, and none after that, whatever else changes."""
    tables = with_shadows(ACCEPTS, DENIES)
    kernel.fill(point(tables, 0))
    handshake(kernel)
    kernel.fill(point(tables, EGRESS_SHADOW))
    result = first(kernel)
    event = result.event
    assert result.passed and event is not None
    assert (event.verdict, event.direction, event.ruleset) == (Verdict.AUDIT, Direction.EGRESS, EGRESS_SHADOW)
    told = (event.source, event.source_port, event.destination, event.destination_port)
    assert told == (POD4, 1000, PEER4, 443)
    for _ in range(2):
        assert [send(kernel).event for send in (out, back, out)] == [None] * 3
        kernel.bump()


def test_a_flow_that_began_under_audit_is_not_told_again(kernel: Kernel) -> None:
    """Its first packet told; a change elsewhere is no news."""
    kernel.fill(with_shadows(ACCEPTS, DENIES))
    handshake(kernel)
    kernel.bump()
    assert [send(kernel).event for send in (back, out)] == [None] * 2


def test_an_edit_of_what_is_under_audit_is_told_anew(kernel: Kernel) -> None:
    """Another shadow ruleset is another question: who watches its answers hears of flows that were there before."""
    tables = with_shadows(ACCEPTS, DENIES)
    kernel.fill(tables)
    handshake(kernel)
    kernel.fill(point(tables, NEWER_SHADOW))
    event = out(kernel).event
    assert event is not None and (event.verdict, event.ruleset) == (Verdict.AUDIT, NEWER_SHADOW)
    assert out(kernel).event is None


def test_a_default_of_audit_tells_of_live_flows_too(kernel: Kernel) -> None:
    """Without any shadow: the ruleset itself says audit."""
    kernel.fill(make_tables(egress={"default": Default.ALLOW}))
    handshake(kernel)
    kernel.fill(make_tables(egress={"default": Default.AUDIT}))
    event = out(kernel).event
    assert event is not None and (event.verdict, event.reason) == (Verdict.AUDIT, Reason.DEFAULT)
    assert out(kernel).event is None


def test_enforcing_what_was_under_audit_ends_the_flow(kernel: Kernel) -> None:
    """The flip that makes the shadow the enforced ruleset: denied from the next packet on."""
    tables = with_shadows(ACCEPTS, DENIES)
    kernel.fill(tables)
    handshake(kernel)
    tables.endpoints[1] = replace(tables.endpoints[1], egress=EGRESS_SHADOW, egress_shadow=0)
    kernel.fill(tables)
    result = out(kernel)
    assert not result.passed and result.event is not None and result.event.verdict == Verdict.DENY


def test_an_error_that_quotes_a_flow_leaves_the_telling_to_its_next_packet(kernel: Kernel) -> None:
    """The error's own addresses are nobody's flow."""
    tables = with_shadows(ACCEPTS, DENIES)
    kernel.fill(point(tables, 0))
    handshake(kernel)
    kernel.fill(point(tables, EGRESS_SHADOW))
    quoted = ipv4(POD4, PEER4, TCP, tcp(1000, 443, ACK))
    result = kernel.to_pod(packets.ip(PEER4, POD4, 1, icmp(3, 4, bytes(4), quoted)))
    assert result.passed and result.event is None
    event = back(kernel).event
    assert event is not None and (event.verdict, event.source) == (Verdict.AUDIT, POD4)


def test_a_name_that_expired_does_not_audit_its_flow(kernel: Kernel) -> None:
    """In the shadow too expiry stops new connections, not live ones."""
    tables = with_shadows({"default": Default.ALLOW}, ISOLATES)
    add_pattern(tables, "a.test", 7, 1 << NETWORK_POLICY, handle=EGRESS_SHADOW)
    kernel.fill(tables)
    kernel.add_name(PEER4, 7, boot_seconds() + 60)
    handshake(kernel)
    kernel.maps["resolutions"].delete_many(kernel.maps["resolutions"].keys())
    kernel.add_name(PEER4, 7, boot_seconds() - 1)
    kernel.bump()
    assert out(kernel).event is None
    event = out(kernel, SYN, sport=1001).event
    assert event is not None and (event.verdict, event.reason) == (Verdict.AUDIT, Reason.NAME_EXPIRED)
