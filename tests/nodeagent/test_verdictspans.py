"""A verdict's span: OpenTelemetry's names, links to what explains it, shares and a budget."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from pkgutil import iter_modules

import msgspec
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating import attributes as conventions

from bench.spans import make_event
from schemas.terms import Verdict
from services.common.exporting import BoundedProcessor, Emitter, ExportCounts
from services.nodeagent.verdictspans import VerdictSpans, make_attributes
from services.story.__main__ import RECORDING
from services.story.recording import read_recording

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


def list_conventional() -> set[str]:
    """Every attribute that OpenTelemetry's semantic conventions know, as its own package has them."""
    modules = [
        importlib.import_module(f"{conventions.__name__}.{one.name}") for one in iter_modules(conventions.__path__)
    ]
    return {value for one in modules for name, value in vars(one).items() if name.isupper() and isinstance(value, str)}


def test_attributes_are_conventional_or_our_own() -> None:
    """Of a verdict's span, and of every span of the story that was recorded."""
    event = msgspec.structs.replace(make_event(1), peer="app/db")
    spans = [span for scene in read_recording(RECORDING).scenes for span in scene.spans]
    names = {*make_attributes(event), *(name for span in spans for name in span.attributes)}
    wanted = ("source", "destination", "network", "k8s", "dns", "server", "yett")
    assert {name.partition(".")[0] for name in names} == set(wanted)
    assert {name for name in names if not name.startswith("yett.")} <= list_conventional()


def test_every_attribute_is_on_the_page() -> None:
    """docs/traces.md names each that a verdict can have."""
    event = msgspec.structs.replace(make_event(1), peer="app/db")
    made = make_attributes(event) | make_attributes(msgspec.structs.replace(event, protocol=47))
    assert set(made) <= set(re.findall(r"`([a-z0-9_.]+)`", PAGE))
