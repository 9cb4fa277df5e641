"""From what was tried and what was said of it to a row: expected, observed, and who decided.

A row holds if what was observed is what was expected *and* Yett said so: a Blocked that no service can explain may as
well be a broken cable, and an Allowed by another rule than the one under test proves nothing.

Deliberately absent: traffic, the bus, tables on a screen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schemas.terms import Direction, Tier, Verdict
from schemas.verdict import VerdictEvent
from services.demo import topology
from services.demo.steps import ALLOWED, BLOCKED, Connect, Lookup, Probe, UseLive
from services.demo.topology import Pod

TIER_NAMES = {
    Tier.NONE: "",
    Tier.ADMIN: "Admin",
    Tier.NETWORK_POLICY: "NetworkPolicy",
    Tier.BASELINE: "Baseline",
    Tier.DEFAULT: "Default",
}
CURL_BLOCKED = 28
"""Dropped in silence, as Yett does. Refused (7) or anything else was not Yett."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One connection or question. ``failure``: what went wrong if it was not a silent drop; empty otherwise."""

    address: str
    port: int
    is_open: bool
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the demo's table. ``problem``: why it does not hold; empty if it does."""

    step: int
    source: str
    destination: str
    expected: str
    observed: str
    policy: str = ""
    rule: str = ""
    tier: str = ""
    reason: str = ""
    name: str = ""
    problem: str = ""

    def to_json(self) -> dict[str, str | int]:
        """The nine fields that are promised."""
        return {
            "step": self.step,
            "source": self.source,
            "destination": self.destination,
            "expected": self.expected,
            "observed": self.observed,
            "policy": self.policy,
            "rule": self.rule,
            "tier": self.tier,
            "reason": f"{self.reason}: {self.name}" if self.name else self.reason,
        }


def describe_source(probe: Probe) -> str:
    """The pod as rows name it."""
    shown = probe.shown_source if isinstance(probe, Connect) else ""
    return shown or topology.find_pod(probe.source).display


def describe_destination(probe: Probe) -> str:
    """The destination as rows name it: in the seed's words."""
    match probe:
        case Lookup():
            return f"DNS {probe.name}"
        case UseLive():
            return probe.shown
        case Connect():
            service = probe.target.rpartition("/")[2]
            return probe.shown or (f"{service} Service" if "/" in probe.target else probe.target)


def match_verdict(source: Pod, attempt: Attempt) -> Callable[[VerdictEvent], bool]:
    """Whether a verdict is about this attempt: at the source on its way out, or at a pod on its way in."""
    wanted = Verdict.ALLOW if attempt.is_open else Verdict.DENY

    def matches(event: VerdictEvent) -> bool:
        if event.verdict is not wanted or event.source_address not in source.addresses:
            return False
        if event.direction is Direction.EGRESS:
            is_target = (event.destination_address, event.destination_port) == (attempt.address, attempt.port)
            return is_target and (event.namespace, event.pod) == (source.namespace, source.name)
        return wanted is Verdict.DENY

    return matches


def make_row(step: int, probe: Probe, attempts: Sequence[Attempt], verdicts: Sequence[VerdictEvent | None]) -> Row:
    """The row of a probe. ``verdicts``: one an attempt, None where none was heard. Attempts must not be empty."""
    opened = {attempt.is_open for attempt in attempts}
    observed = _opposite(probe.expected) if len(opened) > 1 else (ALLOWED if opened.pop() else BLOCKED)
    event = next((verdict for verdict in verdicts if verdict is not None), None)
    return Row(
        step=step,
        source=describe_source(probe),
        destination=describe_destination(probe),
        expected=probe.expected,
        observed=observed,
        policy=event.policy.name if event and event.policy else "",
        rule=event.policy.rule if event and event.policy else "",
        tier=TIER_NAMES[event.tier] if event else "",
        reason=event.reason.name if event else "",
        name=event.name if event else "",
        problem="; ".join(_find_problems(probe, observed, attempts, verdicts)),
    )


def _opposite(expected: str) -> str:
    return BLOCKED if expected == ALLOWED else ALLOWED


def _find_problems(
    probe: Probe, observed: str, attempts: Sequence[Attempt], verdicts: Sequence[VerdictEvent | None]
) -> list[str]:
    problems = []
    if observed != probe.expected:
        found = ", ".join(f"{attempt.address} {'open' if attempt.is_open else 'shut'}" for attempt in attempts)
        problems.append(f"expected {probe.expected}: {found}")
    problems += [f"{attempt.address}: {attempt.failure}" for attempt in attempts if attempt.failure]
    if isinstance(probe, UseLive):
        return problems
    for attempt, verdict in zip(attempts, verdicts, strict=True):
        if verdict is None:
            problems.append(f"{attempt.address}: no verdict was heard")
        elif probe.policy is not None and (verdict.policy is None or verdict.policy.name != probe.policy):
            decided = verdict.policy.name if verdict.policy else verdict.reason.name
            problems.append(f"{attempt.address}: decided by {decided}, expected {probe.policy}")
    return problems
