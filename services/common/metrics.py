"""Metrics for Prometheus, and a kubelet's probes: families declared once, read when they are asked for.

Rules of this module:

* A service keeps its counters as it likes; at a scrape one function puts them on a page, on the service's own loop, so
  that nobody counts behind a lock.
* Families are declared, so that ``docs/metrics.md`` and the code can be compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from nats.aio.client import Client
from prometheus_client import CollectorRegistry, Histogram, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.exporting import counts
from services.common.log import get_logger
from services.common.settings import CommonSettings

_log = get_logger("metrics")
T = TypeVar("T")

SCRAPE_SECONDS = 5.0
"""A loop that is busy for longer gives an empty page, and is not alive."""
READY_PATH, LIVE_PATH = "/readyz", "/livez"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. ``kind``: counter, gauge or histogram; a counter's name ends in ``_total``, units come last."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


SPANS = Family("yett_spans_total", "counter", "Spans by what became of them.", ("outcome",))
SPANS_QUEUED = Family("yett_spans_queued", "gauge", "Spans that wait for the collector.")
NATS_CONNECTED = Family("yett_nats_connected", "gauge", "1 while there is a connection to NATS.")
NATS_RECONNECTS = Family("yett_nats_reconnects_total", "counter", "Connections to NATS that were made again.")
COMMON = (SPANS, SPANS_QUEUED, NATS_CONNECTED, NATS_RECONNECTS)
"""Every service's."""


class Page:
    """Values by family and labels."""

    def __init__(self) -> None:
        self.values: dict[Family, dict[tuple[str, ...], float]] = {}

    def put(self, family: Family, value: float, *labels: str) -> None:
        """One value, with the values of the family's labels in their order."""
        self.values.setdefault(family, {})[labels] = value

    def put_common(self, connection: Client | None) -> None:
        """What every service says."""
        self.put(SPANS, counts.exported, "exported")
        self.put(SPANS, counts.failed, "failed")
        self.put(SPANS, counts.dropped, "dropped")
        self.put(SPANS_QUEUED, counts.queued)
        self.put(NATS_CONNECTED, 1 if connection is not None and connection.is_connected else 0)
        self.put(NATS_RECONNECTS, connection.stats["reconnects"] if connection is not None else 0)


Read = Callable[[Page], None]
"""Puts a service's values on a page; called on its loop."""


def make_families(page: Page) -> Iterator[Metric]:
    """In prometheus-client's own form."""
    for family, values in page.values.items():
        kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
        made = kind(family.name, family.help, labels=family.labels)
        for labels, value in values.items():
            made.add_metric(labels, value)
        yield made


def _ask(loop: asyncio.AbstractEventLoop, question: Callable[[], T]) -> T:
    """The answer of the service's loop, for another thread; concurrent.futures' TimeoutError if it does not turn."""

    async def answer() -> T:
        return question()

    asked = asyncio.run_coroutine_threadsafe(answer(), loop)
    try:
        return asked.result(SCRAPE_SECONDS)
    except FutureTimeoutError:
        asked.cancel()
        raise


class _LoopCollector(Collector):
    """Collects in prometheus-client's thread what the loop puts on a page."""

    def __init__(self, read: Read, loop: asyncio.AbstractEventLoop) -> None:
        self._read = read
        self._loop = loop

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is is known when it is read."""
        return ()

    def collect(self) -> Iterator[Metric]:
        return make_families(_ask(self._loop, self._make_page))

    def _make_page(self) -> Page:
        page = Page()
        self._read(page)
        return page


def make_histogram(family: Family, buckets: Iterable[float]) -> Histogram:
    """A histogram that is observed as things happen; ``serve_metrics`` takes it."""
    return Histogram(family.name, family.help, buckets=tuple(buckets), registry=None)


def serve_metrics(
    settings: CommonSettings,
    read: Read,
    histograms: Iterable[Histogram] = (),
    is_ready: Callable[[], bool] = lambda: True,
) -> Callable[[], None]:
    """Serve ``/metrics``, ``/readyz`` and ``/livez`` where the settings say so; returns what ends it.

    ``/readyz`` is 200 once ``is_ready`` says so and 503 before; ``/livez`` is 200 while the service's loop turns.
    A port that cannot be had is an error in the log and no more: nothing that is enforced depends on a page.
    """
    if not settings.metrics_port:
        return lambda: None
    loop = asyncio.get_running_loop()
    registry = CollectorRegistry()
    registry.register(_LoopCollector(read, loop))
    for histogram in histograms:
        registry.register(histogram)
    application = _Probes(make_wsgi_app(registry), is_ready, loop)
    try:
        server = make_server(settings.metrics_address, settings.metrics_port, application, _Server, _Quiet)
    except OSError as error:
        where = f"{settings.metrics_address}:{settings.metrics_port}"
        _log.error("metrics are not served", address=where, problem=str(error))
        return lambda: None
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end


class _Probes:
    """The page of metrics, with the two probes beside it."""

    def __init__(self, page: WSGIApplication, is_ready: Callable[[], bool], loop: asyncio.AbstractEventLoop) -> None:
        self._page = page
        self._is_ready = is_ready
        self._loop = loop

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path not in (READY_PATH, LIVE_PATH):
            return self._page(environ, start_response)
        try:
            is_good = _ask(self._loop, self._is_ready if path == READY_PATH else lambda: True)
        except FutureTimeoutError:
            is_good = False
        start_response("200 OK" if is_good else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"ok\n" if is_good else b"not yet\n"]


class _Server(ThreadingMixIn, WSGIServer):
    """A slow reader holds up nobody else."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """A request is no event."""

    def log_message(self, format: str, *args: object) -> None:
        pass
