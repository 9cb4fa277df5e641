"""Spans on their way to a collector: a bounded queue, a thread of its own, and a count of what did not arrive.

Rules of this module:

* Whoever ends a span never waits: what does not fit in the queue is dropped and counted, and so is what a collector
  refuses or does not take in time.
* Off unless an endpoint is set, by our setting or by OpenTelemetry's own variables.
* The exporters are imported where they are used: gRPC alone costs a process 20 MB.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, TraceFlags
from opentelemetry.util.types import AttributeValue

from services.common.settings import CommonSettings, SettingsError

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
TIMEOUT_SECONDS = 3
"""For one batch, tries included; then it is lost, and counted."""
DELAY_MILLIS = 1000
BATCH = 512
END_SECONDS = 2.0
"""What a process waits at its end for its last spans: less than it has for all its ending."""


class ExportCounts:
    """Spans by what became of them; two threads count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.queued = 0
        """Ended, and not yet taken or given up."""
        self.exported = 0
        self.failed = 0
        self.dropped = 0

    def enter(self, limit: int) -> bool:
        """Whether there is room for one more among ``limit``; it is counted either way."""
        with self._lock:
            has_room = self.queued < limit
            self.queued += has_room
            self.dropped += not has_room
            return has_room

    def leave(self, spans: int, *, exported: bool) -> None:
        """A batch was taken, or given up."""
        with self._lock:
            self.queued -= spans
            self.exported += spans if exported else 0
            self.failed += 0 if exported else spans


counts = ExportCounts()
"""This process's."""


class CountingExporter(SpanExporter):
    """Another exporter, with its results counted."""

    def __init__(self, inner: SpanExporter, counts: ExportCounts) -> None:
        self._inner = inner
        self._counts = counts

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            self._counts.leave(len(spans), exported=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner.force_flush(timeout_millis)


class BoundedProcessor(BatchSpanProcessor):
    """OpenTelemetry's own, which drops without a count what does not fit. ``limit``: spans that may wait."""

    def __init__(self, exporter: SpanExporter, limit: int, counts: ExportCounts) -> None:
        super().__init__(
            CountingExporter(exporter, counts),
            max_queue_size=limit,
            schedule_delay_millis=DELAY_MILLIS,
            max_export_batch_size=min(BATCH, limit),
        )
        self._limit = limit
        self._counts = counts

    def on_end(self, span: ReadableSpan) -> None:
        if span.context.trace_flags.sampled and self._counts.enter(self._limit):
            super().on_end(span)


class Emitter:
    """Finished root spans, straight to the exporter: a quarter of what it costs to start, fill and end one."""

    def __init__(self, provider: TracerProvider, processor: BoundedProcessor, scope: str) -> None:
        self._provider = provider
        self._processor = processor
        self._scope = InstrumentationScope(scope)

    def emit(
        self, name: str, attributes: Mapping[str, AttributeValue], links: Sequence[Link], start_nanos: int
    ) -> SpanContext | None:
        """One span from ``start_nanos`` to now, in a trace of its own; None if the sampler leaves it out."""
        ids = self._provider.id_generator
        trace_id = ids.generate_trace_id()
        if self._provider.sampler.should_sample(None, trace_id, name).decision is not Decision.RECORD_AND_SAMPLE:
            return None
        context = SpanContext(trace_id, ids.generate_span_id(), is_remote=False, trace_flags=_SAMPLED)
        span = ReadableSpan(
            name,
            context,
            resource=self._provider.resource,
            attributes=attributes,
            links=links,
            start_time=start_nanos,
            end_time=time.time_ns(),
            instrumentation_scope=self._scope,
        )
        self._processor.on_end(span)
        return context


_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


def add_exporter(
    provider: TracerProvider, settings: CommonSettings, *, scope: str = "yett", counts: ExportCounts = counts
) -> Emitter | None:
    """Let a provider's spans go where the settings say, None if nowhere; SettingsError if that cannot be."""
    exporter = _make_exporter(settings)
    if exporter is None:
        return None
    processor = BoundedProcessor(exporter, settings.otel_queue, counts)
    provider.add_span_processor(processor)
    _end_in_time(provider)
    return Emitter(provider, processor, scope)


def _end_in_time(provider: TracerProvider) -> None:
    """At the process's end the last spans go out, if there is somebody who takes them at once."""
    ending, ended = threading.Event(), threading.Event()

    def shut_down() -> None:
        ending.wait()
        provider.shutdown()
        ended.set()

    def at_exit() -> None:
        ending.set()
        ended.wait(END_SECONDS)

    threading.Thread(target=shut_down, name="otel-end", daemon=True).start()
    atexit.register(at_exit)


def is_exporting(settings: CommonSettings) -> bool:
    """Whether spans go anywhere."""
    return _find_kind(settings) != "off"


def _find_kind(settings: CommonSettings) -> str:
    if settings.otel_exporter != "auto":
        return settings.otel_exporter
    is_set = settings.otel_endpoint or any(os.environ.get(name) for name in ENDPOINT_VARIABLES)
    return "otlp" if is_set else "off"


def _find_protocol(settings: CommonSettings) -> str:
    given = (os.environ.get(name, "") for name in PROTOCOL_VARIABLES)
    return settings.otel_protocol or next(filter(None, given), "http/protobuf")


def _make_exporter(settings: CommonSettings) -> SpanExporter | None:
    kind, protocol = _find_kind(settings), _find_protocol(settings)
    if kind == "off":
        return None
    if kind == "console":
        return ConsoleSpanExporter(out=sys.stderr)
    if protocol == "grpc":
        return _make_grpc_exporter(settings.otel_endpoint)
    if protocol == "http/protobuf":
        return _make_http_exporter(settings.otel_endpoint)
    raise SettingsError("YETT_OTEL_PROTOCOL", f"{protocol!r}: there are http/protobuf and grpc")


def _make_http_exporter(endpoint: str) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    url = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
    return OTLPSpanExporter(endpoint=url, timeout=TIMEOUT_SECONDS)


def _make_grpc_exporter(endpoint: str) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint or None, timeout=TIMEOUT_SECONDS)
