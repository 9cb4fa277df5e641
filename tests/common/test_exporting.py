"""Spans reach a collector by HTTP and by gRPC; a collector that is not there costs nobody anything."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent import futures

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings

from services.common.exporting import ExportCounts, add_exporter, is_exporting
from services.common.settings import CommonSettings

SPANS = 10_000
QUEUE = 100


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return int(opened.getsockname()[1])


def await_counts(counts: ExportCounts, is_so: Callable[[ExportCounts], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so(counts):
        assert time.monotonic() < deadline, vars(counts)
        os.sched_yield()


def test_nothing_is_exported_unless_an_endpoint_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """By our setting or by OpenTelemetry's variable; ``off`` wins over both."""
    assert not is_exporting(CommonSettings())
    assert is_exporting(CommonSettings(otel_endpoint="http://127.0.0.1:4318"))
    assert not is_exporting(CommonSettings(otel_endpoint="http://127.0.0.1:4318", otel_exporter="off"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert is_exporting(CommonSettings())


def test_spans_arrive_by_http() -> None:
    """At a receiver that is not ours."""

    async def scenario() -> None:
        port = find_free_port()
        async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(http_port=port)) as receiver:
            counts, provider = ExportCounts(), TracerProvider(shutdown_on_exit=False)
            add_exporter(provider, CommonSettings(otel_endpoint=f"http://127.0.0.1:{port}"), counts=counts)
            arrival = asyncio.ensure_future(receiver.await_trace(lambda span: span.name == "told", timeout=10))
            await asyncio.sleep(0)
            provider.get_tracer("test").start_span("told").end()
            assert (await arrival).name == "told"
            await asyncio.to_thread(provider.shutdown)
            assert (counts.exported, counts.failed, counts.dropped, counts.queued) == (1, 0, 0, 0)

    asyncio.run(scenario())


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the names of spans."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def Export(self, request, context):  # type: ignore[no-untyped-def]
        self.names += [
            span.name for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans
        ]
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_arrive_by_grpc() -> None:
    """At a server made from OpenTelemetry's own definition."""
    server, collector = grpc.server(futures.ThreadPoolExecutor(1)), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        counts, provider = ExportCounts(), TracerProvider(shutdown_on_exit=False)
        settings = CommonSettings(otel_endpoint=f"http://127.0.0.1:{port}", otel_protocol="grpc")
        add_exporter(provider, settings, counts=counts)
        provider.get_tracer("test").start_span("told").end()
        provider.shutdown()
        assert collector.names == ["told"]
        assert counts.exported == 1
    finally:
        server.stop(0)


def test_without_a_collector_nobody_waits_and_every_span_is_accounted_for() -> None:
    """Memory is bounded by the queue: what does not fit is dropped at once, what was taken fails, and both count."""
    counts, provider = ExportCounts(), TracerProvider(shutdown_on_exit=False)
    settings = CommonSettings(otel_endpoint=f"http://127.0.0.1:{find_free_port()}", otel_queue=QUEUE)
    add_exporter(provider, settings, counts=counts)
    tracer = provider.get_tracer("test")
    for _ in range(SPANS):
        tracer.start_span("lost").end()
        assert counts.queued <= QUEUE
    assert counts.dropped > 0
    await_counts(counts, lambda found: found.queued == 0)
    assert counts.exported == 0
    assert counts.failed + counts.dropped == SPANS


_ENDING = """
from services.common.settings import CommonSettings
from services.common.telemetry import get_tracer, setup_telemetry
setup_telemetry(CommonSettings(otel_endpoint="http://127.0.0.1:{port}"), "test")
get_tracer("test").start_span("last").end()
print("ends", flush=True)
"""


def test_a_process_that_ends_is_not_held_up_by_its_last_spans() -> None:
    """A collector that takes connections and never answers leaves it within the five seconds that are promised."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = _ENDING.format(port=silent.getsockname()[1])
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "ends\n"
            ended = time.monotonic()
            assert process.wait(30) == 0
            assert time.monotonic() - ended < 5
