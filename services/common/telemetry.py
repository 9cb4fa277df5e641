"""Traces: spans from the first message on, and their context through NATS headers. Exporting is off by default.

Without an exporter spans are still made: their ids travel in ``traceparent``, so that logs, rows and statuses of
different processes can be joined.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, Span, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from schemas import wire
from services.common.exporting import Emitter, add_exporter
from services.common.settings import CommonSettings

_propagator = TraceContextTextMapPropagator()


def setup_telemetry(settings: CommonSettings, service: str) -> Emitter | None:
    """Configure the process's tracer provider; SettingsError if the exporter asked for cannot be had.

    Returns what takes finished spans, None where nothing is exported.
    """
    attributes = {"service.name": f"yett-{service}", "service.instance.id": f"{os.uname().nodename}-{os.getpid()}"}
    node = getattr(settings, "node", "")
    if node:
        attributes["k8s.node.name"] = node
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    emitter = add_exporter(provider, settings, scope=f"yett.{service}")
    trace.set_tracer_provider(provider)
    return emitter


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
    return [link for text in texts if (link := _make_link(text)) is not None]


@lru_cache(maxsize=4096)
def _make_link(text: str) -> Link | None:
    context = trace.get_current_span(extract(text)).get_span_context()
    return Link(context) if context.is_valid else None
