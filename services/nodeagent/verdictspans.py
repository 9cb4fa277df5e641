"""A verdict as a span: what was decided, with links to the span that applied its revision and to the one that learned
its name. Denials come aggregated, allowed flows by their share; beyond a budget a second both are only counted.

Attributes are OpenTelemetry's (source, destination, network, k8s, dns) and ``yett.*``.
"""

from __future__ import annotations

import time
from collections import Counter

from opentelemetry.util.types import AttributeValue

from schemas.terms import Protocol, Verdict
from schemas.verdict import VerdictEvent
from services.common.bucket import Buckets
from services.common.exporting import Emitter
from services.common.telemetry import links

SPANS_A_SECOND = 1_000.0
"""At 100 us each a tenth of a core."""
NAME = "verdict"
_TRANSPORTS = {Protocol.TCP: "tcp", Protocol.UDP: "udp"}
"""``network.transport`` has no others of ours."""
MILLION = 1_000_000


class VerdictSpans:
    """A sink of the verdict bus. ``allow_ratio``: share of the allowed flows that become spans; ``rate``: a second."""

    def __init__(self, emitter: Emitter, allow_ratio: float, *, rate: float = SPANS_A_SECOND) -> None:
        self._emitter = emitter
        self._step = round(allow_ratio * MILLION)
        self._allowed = 0
        self._budget = Buckets(rate=rate, burst=rate)
        self.counters: Counter[str] = Counter()

    def __call__(self, event: VerdictEvent) -> None:
        """One event, as a span that begins with the packet and ends now."""
        if event.verdict is Verdict.ALLOW and not self._is_share():
            return
        if not self._budget.take("", time.monotonic()):
            self.counters["spans_over_budget"] += 1
            return
        linked = links(filter(None, (event.applied_trace, event.learned_trace)))
        self._emitter.emit(NAME, make_attributes(event), linked, event.unix_nanos)
        self.counters["spans"] += 1

    def _is_share(self) -> bool:
        self._allowed += self._step
        if self._allowed < MILLION:
            return False
        self._allowed -= MILLION
        return True


def make_attributes(event: VerdictEvent) -> dict[str, AttributeValue]:
    """A verdict by OpenTelemetry's names; what is unknown is left out."""
    made: dict[str, AttributeValue] = {
        "source.address": event.source_address,
        "destination.address": event.destination_address,
        "network.type": "ipv6" if ":" in event.destination_address else "ipv4",
        "k8s.namespace.name": event.namespace,
        "k8s.pod.name": event.pod,
        "k8s.node.name": event.node,
        "yett.verdict": event.verdict.name.lower(),
        "yett.direction": event.direction.name.lower(),
        "yett.tier": event.tier.name.lower(),
        "yett.reason": event.reason.name,
        "yett.revision": event.revision,
        "yett.identity": event.peer_identity,
        "yett.count": event.count,
    }
    if event.source_port:
        made["source.port"] = event.source_port
    if event.destination_port:
        made["destination.port"] = event.destination_port
    if event.protocol in _TRANSPORTS:
        made["network.transport"] = _TRANSPORTS[Protocol(event.protocol)]
    else:
        made["yett.protocol"] = event.protocol
    if event.name:
        made["dns.question.name"] = event.name
    if event.learned_by:
        made["yett.learned_by"] = event.learned_by
    if event.peer:
        made["yett.peer"] = event.peer
    if event.policy is not None:
        policy = event.policy
        made["yett.policy.kind"] = policy.kind
        made["yett.policy"] = f"{policy.namespace}/{policy.name}" if policy.namespace else policy.name
        made["yett.rule"] = policy.rule
    return made
