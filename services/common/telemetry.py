"""Traces: spans from the first message on, and their context through NATS headers. Exporting is off by default.

Without an exporter spans are still made: their ids travel in ``traceparent``, so that logs, rows and statuses of
different processes can be joined.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Link, Span, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from schemas import wire
from services.common.settings import CommonSettings, SettingsError

_propagator = TraceContextTextMapPropagator()


def setup_telemetry(settings: CommonSettings, service: str) -> None:
    """Configure the process's tracer provider; SettingsError if the exporter asked for is not installed."""
    provider = TracerProvider(resource=Resource.create({"service.name": f"yett-{service}"}))
    exporter = _make_exporter(settings)
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def get_tracer(name: str) -> Tracer:
    """The tracer of one part."""
    return trace.get_tracer(f"yett.{name}")


def traceparent(span: Span | None = None) -> str:
    """W3C traceparent of a span (the current one by default); empty if there is none."""
    carrier: dict[str, str] = {}
    context = trace.set_span_in_context(span) if span is not None else None
    _propagator.inject(carrier, context=context)
    return carrier.get(wire.HEADER_TRACE, "")


def inject(headers: dict[str, str], span: Span | None = None) -> dict[str, str]:
    """Add the span's context to a message's headers; returns them."""
    text = traceparent(span)
    if text:
        headers[wire.HEADER_TRACE] = text
    return headers


def extract(text: str) -> Context:
    """The context that a traceparent stands for; an unusable one is an empty context."""
    return _propagator.extract({wire.HEADER_TRACE: text})


def links(texts: Iterable[str]) -> list[Link]:
    """Links to the spans of these traceparents; unusable ones are left out."""
    contexts = (trace.get_current_span(extract(text)).get_span_context() for text in texts)
    return [Link(context) for context in contexts if context.is_valid]


def _make_exporter(settings: CommonSettings) -> SpanExporter | None:
    if settings.otel_exporter == "off":
        return None
    if settings.otel_exporter == "console":
        return ConsoleSpanExporter(out=sys.stderr)
    try:
        module = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        raise SettingsError("YETT_OTEL_EXPORTER", "otlp needs opentelemetry-exporter-otlp-proto-http") from error
    exporter: SpanExporter = module.OTLPSpanExporter()
    return exporter
