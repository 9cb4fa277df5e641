"""What a span of a verdict costs the agent: made, queued, encoded and sent, in processor time of this process.

The receiver is a process of its own that takes everything (OTLP over HTTP), so that its work does not count.
"""

from __future__ import annotations

import json
import time

from opentelemetry.sdk.trace import TracerProvider

from bench.bounds import Measured
from bench.tracing import receiver
from schemas.policy import RuleSource
from schemas.terms import Direction, NodeName, Reason, RevisionNumber, Tier, Verdict
from schemas.verdict import VerdictEvent
from services.common.exporting import BATCH, ExportCounts, add_exporter
from services.common.settings import CommonSettings
from services.nodeagent.verdictspans import VerdictSpans

SPANS, CHUNK = 10_240, BATCH
TRACE = "00-{:032x}-{:016x}-01"


def make_event(number: int) -> VerdictEvent:
    """A denial as it comes: every attribute, two links."""
    return VerdictEvent(
        node=NodeName("node-a"),
        namespace="app",
        pod=f"web-{number % 50}",
        direction=Direction.EGRESS,
        verdict=Verdict.DENY,
        reason=Reason.ISOLATED,
        tier=Tier.NETWORK_POLICY,
        source_address="10.244.1.12",
        destination_address=f"192.0.2.{number % 250}",
        protocol=6,
        source_port=number % 60000,
        destination_port=443,
        policy=RuleSource(kind="NetworkPolicy", namespace="app", name="isolate", rule="egress[0]"),
        name=f"n{number % 100}.example.com",
        learned_by="node-b",
        revision=RevisionNumber(7),
        unix_nanos=time.time_ns(),
        applied_trace=TRACE.format(7, 7),
        learned_trace=TRACE.format(1 + number % 100, 1 + number % 100),
    )


def measure_spans() -> list[Measured]:
    """One row."""
    with receiver() as endpoint:
        counts, provider = ExportCounts(), TracerProvider(shutdown_on_exit=False)
        emitter = add_exporter(provider, CommonSettings(otel_endpoint=endpoint), counts=counts)
        assert emitter is not None
        spans = VerdictSpans(emitter, 1.0, rate=1e9)
        events = [make_event(number) for number in range(SPANS)]
        began = time.process_time()
        for first in range(0, SPANS, CHUNK):
            for event in events[first : first + CHUNK]:
                spans(event)
            _await_sent(counts, first + CHUNK)
        micros = (time.process_time() - began) / SPANS * 1e6
        provider.shutdown()
    spread = f"{counts.exported} exported, {counts.failed + counts.dropped} not"
    return [Measured("a verdict as an exported span, processor time", round(micros, 1), "us", 100.0, spread)]


def _await_sent(counts: ExportCounts, spans: int) -> None:
    """Until the receiver has taken so many."""
    deadline = time.monotonic() + 10
    while counts.exported < spans:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{counts.exported} of {spans} spans were taken, {counts.failed} failed")
        time.sleep(0.05)


if __name__ == "__main__":
    print(json.dumps([row.to_json() for row in measure_spans()], indent=1))
