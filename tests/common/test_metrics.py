"""A page for Prometheus is read on the service's loop, and nothing depends on its port."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.parser import text_string_to_metric_families

from services.common.metrics import Family, Page, make_histogram, serve_metrics
from services.common.settings import CommonSettings

COUNTER = Family("yett_test_total", "counter", "Things.", ("kind",))
HISTOGRAM = Family("yett_test_seconds", "histogram", "Times.")


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return int(opened.getsockname()[1])


def make_settings(port: int) -> CommonSettings:
    return CommonSettings(metrics_port=port, metrics_address="127.0.0.1")


def fetch(port: int) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_a_scrape_reads_on_the_loop_and_never_beside_it() -> None:
    """So that no counter changes while it is read."""
    port, threads = find_free_port(), []

    def read(page: Page) -> None:
        threads.append(threading.current_thread())
        page.put(COUNTER, 3, "a")

    async def scenario() -> str:
        histogram = make_histogram(HISTOGRAM, (0.1, 1.0))
        histogram.observe(0.5)
        end = serve_metrics(make_settings(port), read, [histogram])
        text = await asyncio.to_thread(fetch, port)
        await asyncio.to_thread(end)
        return text

    text = asyncio.run(scenario())
    values = {
        (one.name, *one.labels.values()): one.value for f in text_string_to_metric_families(text) for one in f.samples
    }
    assert values["yett_test_total", "a"] == 3
    assert (values["yett_test_seconds_bucket", "0.1"], values["yett_test_seconds_bucket", "1.0"]) == (0, 1)
    assert threads == [threading.main_thread()]


def test_without_a_port_nothing_is_served() -> None:
    """The default."""
    serve_metrics(CommonSettings(), lambda page: None)()


def test_a_port_that_is_taken_is_no_reason_to_stop() -> None:
    """What is enforced does not depend on who watches."""

    async def scenario(port: int) -> None:
        serve_metrics(make_settings(port), lambda page: None)()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        asyncio.run(scenario(taken.getsockname()[1]))


def test_ready_is_what_the_service_says_and_alive_is_that_its_loop_turns() -> None:
    """A kubelet asks both; the answer comes from the loop, so a loop that hangs is neither."""
    port, said = find_free_port(), [False]

    def status_of(path: str) -> int:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    async def scenario() -> list[int]:
        end = serve_metrics(make_settings(port), lambda page: None, is_ready=lambda: said[0])
        found = [await asyncio.to_thread(status_of, path) for path in ("/readyz", "/livez")]
        said[0] = True
        found.append(await asyncio.to_thread(status_of, "/readyz"))
        with ThreadPoolExecutor(1) as pool:
            hung = pool.submit(status_of, "/livez")
            found.append(hung.result(timeout=30))  # the loop does nothing else meanwhile
        await asyncio.to_thread(end)
        return found

    assert asyncio.run(scenario()) == [503, 200, 200, 503]
