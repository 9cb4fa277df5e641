"""A verdict's span: OpenTelemetry's names, links to what explains it, shares and a budget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bench.spans import make_event
from schemas.terms import Verdict
from services.common.exporting import BoundedProcessor, Emitter, ExportCounts
from services.nodeagent.verdictspans import VerdictSpans, make_attributes

PAGE = (Path(__file__).parents[2] / "docs" / "traces.md").read_text()


class Kept:
    """Spans that were emitted."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.processor = BoundedProcessor(self.exporter, 2048, ExportCounts())
        self.emitter = Emitter(TracerProvider(shutdown_on_exit=False), self.processor, "test")

    def spans(self) -> Sequence[ReadableSpan]:
        self.processor.shutdown()
        return self.exporter.get_finished_spans()


def test_a_span_has_both_links_and_begins_with_the_packet() -> None:
    """Trace and span ids are those of the event's traceparents."""
    kept, event = Kept(), make_event(3)
    VerdictSpans(kept.emitter, 1.0)(event)
    (span,) = kept.spans()
    assert (span.name, span.start_time) == ("verdict", event.unix_nanos)
    assert [(link.context.trace_id, link.context.span_id) for link in span.links] == [(7, 7), (4, 4)]


def test_allowed_flows_become_spans_by_their_share_and_denials_all() -> None:
    """A hundred of each at a tenth make a hundred and ten."""
    kept = Kept()
    spans = VerdictSpans(kept.emitter, 0.1)
    for number in range(100):
        spans(make_event(number))
        spans(msgspec.structs.replace(make_event(number), verdict=Verdict.ALLOW))
    assert len(kept.spans()) == 110


def test_what_is_over_the_budget_is_counted() -> None:
    """A flood costs what the budget allows."""
    kept = Kept()
    spans = VerdictSpans(kept.emitter, 1.0, rate=10)
    for number in range(1000):
        spans(make_event(number))
    assert len(kept.spans()) + spans.counters["spans_over_budget"] == 1000
    assert spans.counters["spans_over_budget"] > 900


def test_every_attribute_is_on_the_page() -> None:
    """docs/traces.md names each that a verdict can have."""
    event = msgspec.structs.replace(make_event(1), peer="app/db")
    made = make_attributes(event) | make_attributes(msgspec.structs.replace(event, protocol=47))
    assert set(made) <= set(re.findall(r"`([a-z0-9_.]+)`", PAGE))
